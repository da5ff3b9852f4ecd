"""Turn tiles into features: one object for every encoder, and a command for whole folders.

`PatchEncoder` has what TRIDENT's `BasePatchEncoder` and HEST's `benchmark(model, transforms,
precision)` ask for, by duck type. `create_encoder` makes one from

====================  ============================================================================
source                what it is
====================  ============================================================================
``handmade``          interpretable colour and texture features, the floor that a network must beat
a registry name       a backbone of `mvhlib.backbones` (also ``backbone:<name>``); weights random,
                      which is the other floor, or a directory
a directory           what `save_pretrained` wrote, or the fused token of MMAP
                      (`mvhlib.expression.fused`)
``timm:<name>``       a model of timm with its published weights
``hf-hub:<org/name>`` a model that timm finds on the Hugging Face hub
====================  ============================================================================

Tiles are resampled as tensors with antialiasing. With a working resolution `mpp`, finer tiles are
first reduced to it by area, so that sections of unlike sharpness meet on equal terms.

Runs with torch, numpy, h5py and safetensors alone::

    python -m mvhlib.encoders --encoder SLUG_OR_DIR --tiles DIR --out DIR
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError, read_attr, read_json, sha256_file, sha256_of
from mvhlib.backbones.backbone import LUNIT_MEAN, LUNIT_STD
from mvhlib.features import Features, write_features
from mvhlib.parameters import check_seed, fits
from mvhlib.places import choose_device
from mvhlib.progress import bar as progress_bar
from mvhlib.tiles.store import open_tiles

#: Counted up when the numbers of an encoder change for reasons that its weights do not show.
VERSION = 1

#: Tiles per batch on a CPU: fixed, so that equal input gives equal bytes.
CPU_BATCH = 32
#: What reads a directory whose config.json names another kind than a backbone, as module:function.
LOADERS = {"mmap": "mvhlib.expression.fused:load"}


def area_matrix(size_in: int, size_out: int) -> Tensor:
    """Weights `(size_out, size_in)` that average by area; exact for fractional ratios too."""
    edges = torch.arange(size_out + 1, dtype=torch.float64) * size_in / size_out
    pixel = torch.arange(size_in, dtype=torch.float64)
    overlap = (torch.minimum(edges[1:, None], pixel + 1)
               - torch.maximum(edges[:-1, None], pixel)).clamp(min=0)
    return (overlap / overlap.sum(dim=1, keepdim=True)).float()


def reduce_area(x: Tensor, size: int) -> Tensor:
    """Average images `(B, 3, H, W)` down to `(B, 3, size, size)`."""
    rows = area_matrix(x.shape[-2], size).to(x)
    columns = area_matrix(x.shape[-1], size).to(x)
    return rows @ x @ columns.T


class EvalTransform:
    """Make a network's input of one image: scale, resize, normalise.

    Parameters
    ----------
    input_px
        Side of the input [px], or None to keep the size of the image.
    mean, std
        Of the colours [0-1]; None leaves them in 0-1.
    interpolation
        ``"bilinear"`` or ``"bicubic"``, both antialiased.
    """

    def __init__(self, input_px: int | None, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, interpolation: str = "bilinear"):
        self.input_px = input_px
        self.interpolation = "bicubic" if interpolation == "bicubic" else "bilinear"
        self.mean = None if mean is None else tuple(float(v) for v in mean)
        self.std = None if std is None else tuple(float(v) for v in std)

    def __call__(self, image: Any) -> Tensor:
        """An image (Pillow's, or an array `(H, W, 3)` uint8) to `(3, S, S)` float32."""
        if hasattr(image, "convert"):
            image = image.convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (H,W,3) -> (1,3,H,W)
        return self.batch(pixels.float() / 255)[0]

    def batch(self, x: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in 0-1 to the input of the network."""
        if self.input_px is not None and x.shape[-2:] != (self.input_px, self.input_px):
            x = F.interpolate(x, size=(self.input_px, self.input_px), mode=self.interpolation,
                              antialias=True, align_corners=False)
            x = x.clamp(0, 1)  # bicubic overshoots at sharp borders, no camera does
        if self.mean is not None:
            x = (x - x.new_tensor(self.mean).view(1, 3, 1, 1)) / (
                x.new_tensor(self.std).view(1, 3, 1, 1))
        return x

    def __repr__(self) -> str:
        return (f"EvalTransform(input_px={self.input_px}, mean={self.mean}, std={self.std}, "
                f"interpolation={self.interpolation!r})")


class PatchEncoder(nn.Module):
    """An encoder of tiles, whatever is inside.

    Parameters
    ----------
    enc_name
        Its name in tables and files.
    model
        `(B, 3, S, S)` float to `(B, D)`.
    eval_transforms
        Makes the model's input of an image.
    embedding_dim
        Width D of the features.
    precision
        Type that autocast uses on a GPU; a CPU always computes in float32.
    mpp
        Working resolution [µm/px]: finer tiles are averaged down to it first; None takes tiles as
        they are.
    min_px
        Smallest side of a tile that can be encoded [px].
    is_random
        True where no weights were loaded.
    kind, config, identity
        A word for the repr, what the weights say of their making (the sections that they saw),
        and what beside the weights decides the numbers.
    """

    def __init__(self, enc_name: str, model: nn.Module, eval_transforms: EvalTransform,
                 embedding_dim: int, *, precision: torch.dtype = torch.float32,
                 mpp: float | None = None, min_px: int = 1, is_random: bool = False,
                 kind: str = "network", config: dict[str, Any] | None = None,
                 identity: dict[str, Any] | None = None):
        super().__init__()
        if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
            raise InputError(enc_name, "mpp", f"is {mpp}", "give micrometres per pixel, above 0")
        self.enc_name = enc_name
        self.model = model.eval().requires_grad_(False)
        self.eval_transforms = eval_transforms
        self.embedding_dim = int(embedding_dim)
        self.precision = precision
        self.mpp = mpp
        self.min_px = min_px
        self.is_random = is_random
        self.kind = kind
        self.config = config or {}
        self._identity = identity or {}

    @property
    def tile_px(self) -> int | None:
        """Side of the model's input [px]; None where any size will do."""
        return self.eval_transforms.input_px

    @property
    def feature_names(self) -> list[str]:
        """A name per feature; `<enc_name>_<i>` where they have no meaning of their own."""
        names = getattr(self.model, "feature_names", None)
        return list(names) if names else [f"{self.enc_name}_{i}" for i in range(self.embedding_dim)]

    @property
    def pretrained_on(self) -> dict[str, list[str]] | None:
        """Sections, patients and studies that the weights have seen; None where nobody says.

        Empty for random weights and for features without weights.
        """
        if self.is_random or not any(True for _ in self.model.parameters()):
            return {}
        return self.config.get("pretrained_on")

    @property
    def device(self) -> torch.device:
        tensor = next((t for t in (*self.parameters(), *self.buffers())), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def identity(self) -> str:
        """sha256 of the weights and of everything else that decides the numbers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(raw.numpy()))
        precision = str(self.precision) if self.device.type == "cuda" else "torch.float32"
        return sha256_of({"version": VERSION, "weights": digest.hexdigest(), "mpp": self.mpp,
                          "transform": repr(self.eval_transforms), "precision": precision,
                          **self._identity})

    def train(self, mode: bool = True) -> "PatchEncoder":
        """Stay in evaluation mode: an encoder is never trained through this object."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images that `eval_transforms` made, `(B, 3, S, S)`, to features `(B, D)` float32."""
        device = x.device.type
        half = device == "cuda" and self.precision != torch.float32
        with torch.autocast(device, self.precision) if half else contextlib.nullcontext():
            out = self.model(x)
        if out.ndim != 2 or out.shape[1] != self.embedding_dim:
            raise InputError(self.enc_name, "output", f"has shape {tuple(out.shape)}, not "
                             f"(B, {self.embedding_dim})", "ask the model for pooled features")
        return out.float()

    @torch.inference_mode()
    def encode(self, tiles: Any, batch_size: int | None = None, progress: bool = False, *,
               tile_mpp: float | None = None) -> np.ndarray:
        """Encode tiles.

        Parameters
        ----------
        tiles
            `(T, H, W, 3)` uint8: an array, or an h5 dataset that is read batch by batch.
        batch_size
            Tiles at once; None is fixed on a CPU and sized by its memory on a GPU.
        progress
            Show a bar where tqdm is installed.
        tile_mpp
            Scale of the tiles [µm/px]; needed where the encoder has a working resolution.

        Returns
        -------
        np.ndarray
            `(T, D)` float32.

        Raises
        ------
        InputError
            If the tiles are not uint8 RGB, smaller than one patch, or coarser than the working
            resolution.
        """
        shape = tuple(tiles.shape)
        if len(shape) != 4 or shape[3] != 3 or tiles.dtype != np.uint8:
            raise InputError(self.enc_name, "tiles", f"are {tiles.dtype} of shape {shape}",
                             "give uint8 tiles of shape (n, height, width, 3)")
        working = self._working_px(shape[1:3], tile_mpp)
        out = np.empty((shape[0], self.embedding_dim), dtype=np.float32)
        size = batch_size or self._default_batch(shape[1:3])
        start, bar = 0, progress_bar(
            shape[0], self.enc_name, "tile", show=progress, stays=False)
        with bar:
            while start < shape[0]:
                pixels = np.asarray(tiles[start:start + size])
                try:
                    out[start:start + len(pixels)] = self._encode_batch(pixels, working)
                except torch.cuda.OutOfMemoryError:
                    if size == 1:
                        raise
                    torch.cuda.empty_cache()
                    size = size // 2
                    continue
                start += len(pixels)
                bar.update(len(pixels))
        return out

    def _encode_batch(self, pixels: np.ndarray, working: int | None) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        x = x.permute(0, 3, 1, 2).float() / 255  # (B, H, W, 3) -> (B, 3, H, W)
        if working is not None:
            x = reduce_area(x, working)
        return self.forward(self.eval_transforms.batch(x)).cpu().numpy()

    def _working_px(self, size: tuple[int, int], tile_mpp: float | None) -> int | None:
        """Side of the tiles at the working resolution, or None where it is theirs already."""
        if min(size) < self.min_px:
            raise InputError(self.enc_name, "tiles", f"are {size[0]} x {size[1]} px",
                             f"cut them at {self.min_px} px or more")
        if self.mpp is None:
            return None
        if tile_mpp is None:
            raise InputError(self.enc_name, "tile_mpp", "is not given, and the encoder works at "
                             f"{self.mpp:g} µm/px", "pass tile_mpp=, the scale of the tiles")
        if tile_mpp > self.mpp * 1.01:
            raise InputError(self.enc_name, "mpp", f"tiles of {tile_mpp:.3g} µm/px are coarser "
                             f"than the working resolution {self.mpp:.3g}",
                             f"create the encoder with mpp={tile_mpp:.3g} or more")
        if size[0] != size[1]:
            raise InputError(self.enc_name, "tiles", f"are {size[0]} x {size[1]} px, not square",
                             "cut square tiles")
        px = round(size[0] * tile_mpp / self.mpp)
        if px < self.min_px:
            raise InputError(self.enc_name, "mpp", f"leaves {px} px of a tile at {self.mpp:g} "
                             f"µm/px, less than {self.min_px}", "take larger tiles or a finer mpp")
        return None if px >= size[0] else px

    def _default_batch(self, size: tuple[int, int]) -> int:
        """Tiles at once: fixed on a CPU; on a GPU the power of two that fills half its memory."""
        if self.device.type != "cuda":
            return CPU_BATCH
        px = self.tile_px or max(size)
        # 200 kB of activations per token of 16 px was the most that any of our models took, with
        # the recurrence in plain PyTorch; the tile itself is held four times in float32.
        need = (px / 16) ** 2 * 200e3 + 4 * 12 * size[0] * size[1]
        total = torch.cuda.get_device_properties(self.device).total_memory
        return int(2 ** min(10, max(3, math.floor(math.log2(0.5 * total / need)))))

    def __repr__(self) -> str:
        tiles = "tiles of any size" if self.tile_px is None else f"{self.tile_px} px input"
        scale = "" if self.mpp is None else f" at {self.mpp:g} µm/px"
        parameters = sum(p.numel() for p in self.parameters())
        size = f", {parameters / 1e6:.1f} M parameters" if parameters else ""
        weights = ", random weights" if self.is_random else ""
        precision = f", {str(self.precision).removeprefix('torch.')} on GPU" if parameters else ""
        return (f"PatchEncoder {self.enc_name}: {self.kind}, {tiles}{scale} -> "
                f"{self.embedding_dim} features{size}{weights}{precision}")


class HandmadeFeatures(nn.Module):
    """Colour and texture that a pathologist could name, computed per tile.

    Parameters
    ----------
    bands
        Add the energy in bands of spatial frequency, [cycles per tile] slow 0.5-2, middle 4-8,
        fine 16-64, along (within rows) and across (down columns).

    Notes
    -----
    Stains are separated by the optical densities of haematoxylin, eosin and DAB (Ruifrok and
    Johnston, Analytical and Quantitative Cytology and Histology 23, 2001); local binary patterns
    after Ojala et al. (IEEE TPAMI 24, 2002), in classes that a turned tile keeps. A tile of equal
    pixels gives 0 for every skewness, correlation and texture, never NaN.
    """

    #: Bands of spatial frequency: name, from, to [cycles per tile].
    BANDS = (("slow", 0.5, 2.0), ("middle", 4.0, 8.0), ("fine", 16.0, 64.0))
    #: Optical density of haematoxylin above which a pixel is taken for a nucleus.
    NUCLEUS_OD = 0.35
    MIN_PX = 16

    def __init__(self, bands: bool = False):
        super().__init__()
        self.bands = bands
        stains = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
        stains = stains / stains.norm(dim=1, keepdim=True)
        self.register_buffer("unmix", torch.linalg.inv(stains.double()).float(), persistent=False)
        self.register_buffer("pattern_class", _pattern_classes(), persistent=False)
        names = [f"{part}_{channel}" for part in ("mean", "std", "skew")
                 for channel in ("red", "green", "blue")]
        names += [f"{part}_{stain}" for part in ("od_mean", "od_std")
                  for stain in ("haematoxylin", "eosin", "residual")]
        names += [f"od_q{q}_{stain}" for stain in ("haematoxylin", "eosin") for q in (10, 50, 90)]
        names += ["od_correlation", "nuclear_area", "lumen_area", "saturation_mean",
                  "saturation_std"]
        names += [f"gradient_{scale}" for scale in (1, 2, 4, 8)]
        names += ["coherence_2", "coherence_8"]
        names += [f"pattern_{kind}" for kind in ("pit", "corner", "edge", "peak", "mixed")]
        if bands:
            names += [f"band_{name}_{axis}" for name, _, _ in self.BANDS
                      for axis in ("along", "across")]
        self.feature_names = names

    def forward(self, x: Tensor) -> Tensor:
        """RGB `(B, 3, H, W)` in 0-1 to features `(B, D)`."""
        flat = x.flatten(2)  # (B, 3, H, W) -> (B, 3, H W)
        mean = flat.mean(dim=2)
        centred = flat - mean[..., None]
        std = centred.square().mean(dim=2).sqrt()
        # Below half a grey level there is no shape to speak of, only rounding.
        skew = (centred * centred * centred).mean(dim=2) / std.clamp(min=1 / 512) ** 3
        columns = [mean, std, skew]

        od = -torch.log10(flat.clamp(min=1 / 255))
        stains = torch.einsum("bcn,cs->bsn", od, self.unmix)  # (B, 3, H W), H E residual
        stain_mean = stains.mean(dim=2)
        stain_centred = stains - stain_mean[..., None]
        stain_std = stain_centred.square().mean(dim=2).sqrt()
        columns += [stain_mean, stain_std, _quantiles(stains[:, 0]), _quantiles(stains[:, 1])]
        covariance = (stain_centred[:, 0] * stain_centred[:, 1]).mean(dim=1)
        correlation = covariance / (stain_std[:, 0] * stain_std[:, 1]).clamp(min=1e-4)
        brightest, darkest = flat.amax(dim=1), flat.amin(dim=1)
        saturation = (brightest - darkest) / brightest.clamp(min=1 / 255)
        columns += [torch.stack([
            correlation, (stains[:, 0] > self.NUCLEUS_OD).float().mean(dim=1),
            ((darkest > 0.8) & (saturation < 0.1)).float().mean(dim=1),
            saturation.mean(dim=1), saturation.std(dim=1, correction=0)], dim=1)]

        grey = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        columns += [self._texture(grey), self._patterns(grey)]
        if self.bands:
            columns.append(self._band_energy(grey[:, 0]))
        return torch.cat(columns, dim=1)

    def _texture(self, grey: Tensor) -> Tensor:
        """Mean gradient at four scales, and how far it has one direction at two, `(B, 6)`."""
        gradients, coherence = [], []
        for scale in (1, 2, 4, 8):
            g = grey if scale == 1 else F.avg_pool2d(grey, scale)
            dx = (g[..., 1:-1, 2:] - g[..., 1:-1, :-2]).flatten(1) / 2
            dy = (g[..., 2:, 1:-1] - g[..., :-2, 1:-1]).flatten(1) / 2
            if dx.shape[1] == 0:  # 16 px at scale 8: two pixels have no centred difference
                dx = dy = grey.new_zeros(len(grey), 1)
            gradients.append((dx.square() + dy.square()).sqrt().mean(dim=1))
            if scale in (2, 8):
                xx, yy, xy = ((a * b).mean(dim=1) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
                spread = ((xx - yy).square() + 4 * xy.square()).sqrt()
                coherence.append(spread / (xx + yy).clamp(min=1e-8))
        return torch.stack(gradients + coherence, dim=1)

    def _patterns(self, grey: Tensor) -> Tensor:
        """Shares of local binary patterns at radius 2 by class, `(B, 5)`."""
        h, w = grey.shape[-2:]
        ring = ((0, 2), (1, 1), (2, 0), (1, -1), (0, -2), (-1, -1), (-2, 0), (-1, 1))
        centre = grey[:, 0, 2:-2, 2:-2]
        # One grey level of slack: glass is noise of one level, and noise is no pattern.
        centre = centre + 1 / 255
        code = torch.zeros(centre.shape, dtype=torch.uint8, device=grey.device)
        for bit, (i, j) in enumerate(ring):
            code += (grey[:, 0, 2 + i:h - 2 + i, 2 + j:w - 2 + j] > centre).to(torch.uint8) << bit
        tile = torch.arange(len(code), device=grey.device)[:, None] * 256
        code = (code.flatten(1).long() + tile).flatten()
        counts = torch.bincount(code, minlength=256 * len(grey))
        return counts.view(-1, 256).float() @ self.pattern_class / centre[0].numel()

    def _band_energy(self, grey: Tensor) -> Tensor:
        """Log of the energy per band and direction, `(B, 6)`.

        A Hann window keeps the unequal borders of a tile from leaking into every band; a
        frequency counts as along where it varies more within rows than down columns.
        """
        h, w = grey.shape[-2:]
        window = (torch.hann_window(h, periodic=False).to(grey)[:, None]
                  * torch.hann_window(w, periodic=False).to(grey)[None])
        mean = (grey * window).sum(dim=(1, 2), keepdim=True) / window.sum()
        spectrum = torch.fft.rfft2((grey - mean) * window)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, H, W // 2 + 1)
        power[..., 1:(w + 1) // 2] *= 2  # the half that rfft leaves out
        power = power / (h * w * window.square().sum())  # Parseval: sums to the variance
        down = torch.fft.fftfreq(h, 1 / h).abs().to(grey)[:, None]
        right = torch.fft.rfftfreq(w, 1 / w).to(grey)[None]
        radius = (down.square() + right.square()).sqrt()
        # A frequency that lies between two bins shows in both: a band takes half a bin more.
        energies = []
        for _, low, high in self.BANDS:
            band = (radius >= low - 0.5) & (radius <= high + 0.5) & (radius > 0)
            for direction in (band & (right > down), band & (down > right)):
                energies.append((power * direction).sum(dim=(1, 2)))
        return torch.log10(torch.stack(energies, dim=1) + 1e-7)


def _pattern_classes() -> Tensor:
    """Which class each of the 256 binary patterns of a ring belongs to, `(256, 5)` of 0 and 1.

    With at most two changes around the ring the class is the number of brighter neighbours: pit 8,
    corner 5-7, edge 3-4, peak 1-2 (0 is flat, left out since the shares sum to 1); more changes
    are mixed.
    """
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1  # (256, 8)
    uniform = (bits != bits.roll(1, dims=1)).sum(dim=1) <= 2
    ones = bits.sum(dim=1)
    classes = [uniform & (ones >= low) & (ones <= high)
               for low, high in ((8, 8), (5, 7), (3, 4), (1, 2))]
    return torch.stack([*classes, ~uniform], dim=1).float()


def _quantiles(values: Tensor) -> Tensor:
    """The 10th, 50th and 90th percentile of each row `(B, n)`, nearest rank, `(B, 3)`."""
    n = values.shape[1]
    ranks = [min(n, max(1, math.ceil(q * n))) for q in (0.1, 0.5, 0.9)]
    return torch.stack([values.kthvalue(rank, dim=1).values for rank in ranks], dim=1)


def create_encoder(source: str | os.PathLike, **options: Any) -> PatchEncoder:
    """Make an encoder.

    Parameters
    ----------
    source
        See the head of this module.
    **options
        For all: `name` (in tables; default from the source), `mpp` (working resolution [µm/px]),
        `device`. Networks: `input_px`, `precision` (``"bf16"``, ``"fp16"``, ``"fp32"``, on GPU).
        ``handmade``: `bands`. Backbones: `weights` (``"random"`` or a directory), `seed`,
        `preset`, and what `mvhlib.backbones.create_model` takes; directories: `pool`,
        `scan_backend`. timm: `weights` (``"random"`` or ``"pretrained"``), `seed`, and what
        `timm.create_model` takes.

    Returns
    -------
    PatchEncoder

    Raises
    ------
    InputError
        On an unknown source or option, a missing package, or weights that do not fit.
    """
    text = os.fspath(source)
    device = torch.device(choose_device(options.pop("device", None), where="create_encoder"))
    if text == "handmade":
        encoder = _handmade(options)
    elif text.startswith(("timm:", "hf-hub:")):
        encoder = _timm(text, options)
    elif Path(text).is_dir():
        encoder = _directory(Path(text), options)
    else:
        encoder = _backbone(text, options)
    return encoder.to(device)


def _handmade(options: dict[str, Any]) -> PatchEncoder:
    bands = bool(options.pop("bands", False))
    name, mpp = options.pop("name", "handmade-bands" if bands else "handmade"), _mpp(options)
    _refuse("handmade", options, ("name", "mpp", "bands", "device"))
    model = HandmadeFeatures(bands)
    return PatchEncoder(name, model, EvalTransform(None), len(model.feature_names), mpp=mpp,
                        min_px=HandmadeFeatures.MIN_PX, kind="colour and texture",
                        identity={"handmade": model.feature_names})


def _backbone(text: str, options: dict[str, Any]) -> PatchEncoder:
    """A registry name, with random weights or those of a directory."""
    from mvhlib import backbones

    name = text.removeprefix("backbone:")
    if not backbones.is_model(name):
        known = ["handmade", *backbones.list_models()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise InputError("create_encoder", "source", f"{text!r} is neither a directory nor a name "
                         "of the registry", f"did you mean {' or '.join(near)}? Other sources: "
                         "timm:<name>, hf-hub:<org/name>")
    weights = options.pop("weights", "random")
    if weights not in (None, "random"):
        if not Path(weights).is_dir():
            raise InputError(weights, "weights", "is no directory",
                             "give weights='random' or what save_pretrained wrote")
        config, (wanted, _, preset) = _read_config(Path(weights)), name.partition(".")
        architecture, own = config.get("architecture", wanted), config.get("preset", preset)
        if architecture != wanted or preset not in ("", own):
            raise InputError(weights, "architecture", f"is '{architecture}.{own}', not {name!r}",
                             "name the architecture of the weights, or give the directory alone")
        options.setdefault("name", name)
        return _directory(Path(weights), options)
    if options.get("preset") not in (None, "released") and "." not in name:
        name = f"{name}.{options.pop('preset')}"
    title, mpp, seed = options.pop("name", name), _mpp(options), _seed(options)
    input_px, precision = options.pop("input_px", None), _precision(options)
    model = backbones.create_model(name, seed=seed, **options)
    return _network(title, model, mpp, input_px, precision, is_random=True, config={})


def _directory(folder: Path, options: dict[str, Any]) -> PatchEncoder:
    """What `save_pretrained` wrote, or `mvhlib.expression.fused.save`."""
    from mvhlib import backbones

    config = _read_config(folder)
    options.pop("weights", None)
    title = options.pop("name", folder.name)
    if config.get("kind") in LOADERS:
        module, function = LOADERS[config["kind"]].split(":")
        return getattr(importlib.import_module(module), function)(folder, config, title, **options)
    mpp = _mpp(options)
    input_px, precision = options.pop("input_px", None), _precision(options)
    overrides = {name: options.pop(name) for name in ("pool", "scan_backend") if name in options}
    _refuse(folder, options, ("name", "mpp", "input_px", "precision", "device", "pool",
                              "scan_backend"))
    model = backbones.from_pretrained(folder, **overrides)
    return _network(title, model, mpp, input_px, precision, is_random=False, config=config)


def _read_config(folder: Path) -> dict[str, Any]:
    """An encoder's ``config.json``, and in it, where it is, whom the weights have seen."""
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise InputError(folder, "config.json", "is missing",
                         "give a directory that save_pretrained wrote")
    config = read_json(path)
    saw = config.get("pretrained_on")
    if saw is not None and not (isinstance(saw, dict) and all(
            isinstance(names, list) and all(
                isinstance(name, str) and name and name == name.strip() for name in names)
            for names in saw.values())):
        raise InputError(path, "pretrained_on", f"is {saw!r}", "list names of sections, patients "
                         "and studies, or copy it again from its source")
    return config


def _network(name: str, model: nn.Module, mpp: float | None, input_px: int | None,
             precision: torch.dtype, is_random: bool, config: dict[str, Any]) -> PatchEncoder:
    """Wrap one of our backbones; its input size is the one it was built for."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size", (3, None, None))
    patch_px = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    patch_px = patch_px[0] if isinstance(patch_px, (tuple, list)) else patch_px
    px = input_px or size[-1]
    if px is None:
        raise InputError(name, "input_px", "is not known for this model", "pass input_px=")
    if patch_px and px % patch_px:
        raise InputError(name, "input_px", f"{px} px is not a multiple of the patch, {patch_px} px",
                         f"take {max(1, px // patch_px) * patch_px} px")
    transform = EvalTransform(int(px), cfg.get("mean", LUNIT_MEAN),
                              cfg.get("std", LUNIT_STD),
                              cfg.get("interpolation", "bilinear"))
    # Arguments such as pool or dt_bias_count change the numbers and no weight.
    identity = {"model_args": getattr(model, "model_args", {})}
    return PatchEncoder(name, model, transform, model.num_features, precision=precision, mpp=mpp,
                        min_px=patch_px or 1, is_random=is_random, kind=type(model).__name__,
                        config=config, identity=identity)


def _timm(text: str, options: dict[str, Any]) -> PatchEncoder:
    """A model of timm, or of the Hugging Face hub through timm."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise InputError("create_encoder", "source", f"{text!r} needs timm ({error})",
                         "pip install timm, with a torchvision built for your torch") from error
    weights, seed = options.pop("weights", "pretrained"), _seed(options)
    if weights not in ("pretrained", "random"):
        raise InputError("create_encoder", "weights", f"is {weights!r}",
                         "timm models take 'pretrained' or 'random'")
    name, mpp = options.pop("name", None), _mpp(options)
    input_px, precision = options.pop("input_px", None), _precision(options)
    with torch.random.fork_rng():  # timm initialises from the global state
        torch.manual_seed(seed)
        try:
            model = timm.create_model(text.removeprefix("timm:"), pretrained=weights != "random",
                                      num_classes=0, **options)
        except Exception as error:
            raise InputError("create_encoder", "source", f"timm cannot make {text!r} ({error})",
                             "check the name, the network and, for gated models, huggingface-cli "
                             "login") from error
    cfg = getattr(model, "pretrained_cfg", None) or {}
    px = input_px or cfg.get("input_size", (3, 224, 224))[-1]
    transform = EvalTransform(int(px), cfg.get("mean", (0.485, 0.456, 0.406)),
                              cfg.get("std", (0.229, 0.224, 0.225)),
                              cfg.get("interpolation", "bicubic"))
    title = name or text.partition(":")[2].replace("/", "-").lower()
    return PatchEncoder(title, model, transform, model.num_features, precision=precision, mpp=mpp,
                        is_random=weights == "random", kind="timm",
                        identity={"timm": text, "options": repr(sorted(options.items()))})


def _mpp(options: dict[str, Any]) -> float | None:
    mpp = options.pop("mpp", None)
    if mpp is not None and not (fits(mpp, "float") and mpp > 0):
        raise InputError("create_encoder", "mpp", f"is {mpp!r}",
                         "give micrometres per pixel, above 0")
    return None if mpp is None else float(mpp)


def _seed(options: dict[str, Any]) -> int:
    return check_seed(options.pop("seed", 0), "create_encoder")


def _precision(options: dict[str, Any]) -> torch.dtype:
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    asked = options.pop("precision", "bf16")
    if asked not in known:
        raise InputError("create_encoder", "precision", f"is {asked!r}",
                         f"use one of {list(known)}")
    return known[asked]


def _refuse(where: Any, options: dict[str, Any], known: Iterable[str]) -> None:
    for name in options:
        near = difflib.get_close_matches(name, list(known), n=1)
        raise InputError(where, name, "is no option of this encoder",
                         f"did you mean {near[0]}?" if near else f"options are {list(known)}")


def names_of(samples: Iterable[Any]) -> dict[str, list[str]]:
    """Sections, patients and studies of training samples, as ``pretrained_on`` lists them."""
    samples = list(samples)
    return {level: sorted({str(getattr(sample, attribute)) for sample in samples})
            for level, attribute in (("sections", "name"), ("patients", "patient"),
                                     ("studies", "study"))}


def seen(*lists: Mapping[str, Iterable[str]] | None) -> dict[str, list[str]]:
    """What several trainings have seen, taken together; None has seen nothing."""
    return {level: sorted({name for each in lists for name in (each or {}).get(level, ())})
            for level in ("sections", "patients", "studies")}


def model_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Class token, then patch tokens, `(B, 1 + N, D)`, of a backbone of ours or a ViT of timm.

    Raises
    ------
    InputError
        If the model has no class token and patch tokens.
    """
    find = getattr(model, "forward_features", None)
    found = None if find is None else find(images)
    if isinstance(found, Mapping):
        return torch.cat([found["cls"][:, None], found["patch_tokens"]], dim=1)
    n_prefix = getattr(model, "num_prefix_tokens", 0)
    if found is None or found.ndim != 3 or n_prefix < 1:
        raise InputError(type(model).__name__, "tokens", "it gives no class token with patch "
                         "tokens", "take a vision transformer or a backbone of mvhlib")
    return torch.cat([found[:, :1], found[:, n_prefix:]], dim=1)  # registers are left out


def pool_tokens(tokens: Tensor, grid: int) -> Tensor:
    """Average the patch tokens of `(B, 1 + N, D)` over `grid` x `grid` fields; 0 keeps them."""
    if not grid:
        return tokens
    patches = tokens[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1] or side < grid:
        raise InputError("pool_tokens", "grid", f"{grid} x {grid} cannot be made of "
                         f"{patches.shape[1]} patch tokens", "use 0, or a coarser grid")
    image = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, N, D) -> (B, D, side, side)
    pooled = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :1], pooled], dim=1)


def encode_folder(encoder: PatchEncoder, tiles_dir: str | os.PathLike, out_dir: str | os.PathLike,
                  sections: Sequence[str] | None = None, *, layout: str = "mvhlib",
                  batch_size: int | None = None, progress: bool = False,
                  report: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Encode the tiles of every section of a folder; finished sections are skipped.

    Parameters
    ----------
    encoder
        What to encode with.
    tiles_dir
        Holds ``<section>.h5``.
    out_dir
        Gets ``<section>.h5``, each whole or not there.
    sections
        Names; None takes every h5 file of `tiles_dir`.
    layout
        ``mvhlib``, ``trident`` or ``hest``.
    batch_size, progress
        As in `PatchEncoder.encode`.
    report
        Gets one line per section, `print` for instance.

    Returns
    -------
    list of dict
        section, n_tiles, width, skipped, seconds.

    Raises
    ------
    InputError
        If no section is there, or one of them is truncated or coarser than the working
        resolution. Those before it are kept.

    Notes
    -----
    A section is skipped when its file carries the key that this call would give it: a hash of the
    weights and settings of the encoder, the bytes of the tiles, and the layout.
    """
    tiles_dir, out_dir = Path(tiles_dir), Path(out_dir)
    found = sorted(path.stem for path in tiles_dir.glob("*.h5"))
    names = found if sections is None else list(sections)
    missing = [name for name in names if name not in set(found)]
    if missing or not names:
        raise InputError(tiles_dir, "tiles", f"{missing or 'no section'} has no h5 file here",
                         "cut them by 02_tiles" if not found else f"here are {found[:8]}")
    identity, rows = encoder.identity, []
    for name in names:
        start = time.perf_counter()
        source, target = tiles_dir / f"{name}.h5", out_dir / f"{name}.h5"
        source_sha256 = sha256_file(source)
        key = sha256_of(identity, encoder.enc_name, source_sha256, layout)
        with open_tiles(source) as (head, img):
            # Enlarged tiles say a fine mpp and are blurred: what counts is their slide's own.
            if encoder.mpp is not None and head.source_mpp > encoder.mpp * 1.01:
                raise InputError(source, "mpp", f"the slide's {head.source_mpp:.3g} µm/px are "
                                 f"coarser than the working resolution {encoder.mpp:.3g}",
                                 f"create the encoder with mpp={head.source_mpp:.3g} or more")
            skipped = read_attr(target, "key") == key
            if not skipped:
                try:
                    values = encoder.encode(img, batch_size, progress, tile_mpp=head.mpp)
                except OSError as error:
                    raise InputError(source, "img", f"cannot be read ({error})",
                                     "it is probably truncated: delete it and make it again"
                                     ) from error
        if not skipped:
            attrs = {"encoder": encoder.enc_name, "tile_px": head.tile_px, "tile_um": head.tile_um,
                     "mpp": head.mpp, "source_mpp": head.source_mpp,
                     "working_mpp": encoder.mpp, "source_sha256": source_sha256}
            write_features(target, Features(values, head.coords, head.barcodes, attrs), layout,
                           key)
        seconds = time.perf_counter() - start
        rows.append({"section": name, "n_tiles": head.n_tiles, "width": encoder.embedding_dim,
                     "skipped": skipped, "seconds": seconds})
        if report is not None:
            report(f"{name}: {head.n_tiles} tiles "
                   + ("were done already" if skipped else
                      f"in {seconds:.1f} s ({head.n_tiles / max(seconds, 1e-9):.0f} per s)"))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 2 on bad input, after one line that says what to mend."""
    parser = argparse.ArgumentParser(prog="python -m mvhlib.encoders",
                                     description="Encode a folder of tiles; resumes by itself.")
    parser.add_argument("--encoder", required=True,
                        help="handmade, a registry name, a directory, timm:<name>, hf-hub:<name>")
    parser.add_argument("--tiles", required=True, help="folder of <section>.h5")
    parser.add_argument("--out", required=True, help="folder for the features, <section>.h5 each")
    parser.add_argument("--sections", nargs="+", help="names; default: every h5 file of --tiles")
    parser.add_argument("--name", help="name in the files; default: from the encoder")
    parser.add_argument("--weights", help="'random' or a directory")
    parser.add_argument("--seed", type=int, help="of random weights")
    parser.add_argument("--mpp", type=float, help="working resolution [um/px]")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), help="on a GPU")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1; default: auto")
    parser.add_argument("--batch-size", type=int, help="default: by memory")
    parser.add_argument("--layout", default="mvhlib", choices=("mvhlib", "trident", "hest"))
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON",
                        help="any other option of create_encoder, for example bands=true")
    given = parser.parse_args(arguments)
    try:
        options = {name: value for name in ("name", "weights", "seed", "mpp", "precision", "device")
                   if (value := getattr(given, name)) is not None}
        for option in given.option:
            name, _, value = option.partition("=")
            try:
                options[name] = json.loads(value)
            except ValueError:
                options[name] = value
        encoder = create_encoder(given.encoder, **options)
        print(encoder, flush=True)
        rows = encode_folder(encoder, given.tiles, given.out, given.sections, layout=given.layout,
                             batch_size=given.batch_size, progress=sys.stderr.isatty(),
                             report=lambda line: print(line, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    done = [row for row in rows if not row["skipped"]]
    print(f"{len(rows)} sections in {given.out}, {len(done)} of them encoded now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
