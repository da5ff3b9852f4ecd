"""`PatchEncoder`, the interface of every encoder, and the transform of its tiles.

Tiles are resampled as tensors with antialiasing. With a working resolution `mpp`, finer tiles are
first reduced to it by area, so that sections of unlike sharpness meet on equal terms.
"""

import contextlib
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError, one_line, sha256_of
from mvhlib.encoders.memory import TooLarge, lacks_memory
from mvhlib.encoders.tokens import ReadOut
from mvhlib.progress import bar as progress_bar

#: Part of every cache key: increment when code changes an encoder's output.
VERSION = 1

#: Tiles per batch on a CPU: fixed, so that equal input gives equal bytes.
CPU_BATCH = 32


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


def update_by_weights(digest: Any, model: nn.Module) -> None:
    """Feed names, types, shapes and values of a network's weights to a hash."""
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):  # a module's extra state may be anything
            digest.update(f"{name}{tensor!r}".encode())
            continue
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))


class EvalTransform:
    """Turn an image into a network's input: scale, resize, normalise.

    Parameters
    ----------
    input_px
        Side of the input [px], or None to keep the size of the image.
    mean, std
        Of the colours [0-1]; None leaves them in 0-1.
    interpolation
        ``"bilinear"`` or ``"bicubic"``, both antialiased.
    resize_px
        Side that an image is resized to first, where only the centre of it is the input [px].
    """

    def __init__(self, input_px: int | None, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, interpolation: str = "bilinear",
                 resize_px: int | None = None):
        self.input_px, self.resize_px = input_px, resize_px
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
        px = self.resize_px or self.input_px
        if px is not None and x.shape[-2:] != (px, px):
            x = F.interpolate(x, size=(px, px), mode=self.interpolation,
                              antialias=True, align_corners=False)
            x = x.clamp(0, 1)  # bicubic overshoots at sharp borders, no camera does
        if self.resize_px is not None:
            at = (self.resize_px - self.input_px) // 2
            x = x[..., at:at + self.input_px, at:at + self.input_px]
        if self.mean is not None:
            x = (x - x.new_tensor(self.mean).view(1, 3, 1, 1)) / (
                x.new_tensor(self.std).view(1, 3, 1, 1))
        return x

    def __repr__(self) -> str:
        return (f"EvalTransform(input_px={self.input_px}, mean={self.mean}, std={self.std}, "
                f"interpolation={self.interpolation!r}"
                + (f", resize_px={self.resize_px})" if self.resize_px else ")"))


class PatchEncoder(nn.Module):
    """An encoder of tiles around any network.

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
    pool
        Read-out of its tokens: ``cls``, ``mean``, ``cls+mean``, ``mean+std``; ``-`` without tokens.
    """

    def __init__(self, enc_name: str, model: nn.Module, eval_transforms: EvalTransform,
                 embedding_dim: int, *, precision: torch.dtype = torch.float32,
                 mpp: float | None = None, min_px: int = 1, is_random: bool = False,
                 kind: str = "network", config: dict[str, Any] | None = None,
                 identity: dict[str, Any] | None = None, pool: str = "-"):
        super().__init__()
        if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
            raise InputError(enc_name, "mpp", f"is {mpp}", "give micrometres per pixel, above 0")
        self.enc_name = enc_name
        #: Where its weights came from, for errors about what they compute.
        self.where: Any = enc_name
        self.model = model.eval().requires_grad_(False)
        self.eval_transforms = eval_transforms
        self.embedding_dim = int(embedding_dim)
        self.precision = precision
        self.mpp = mpp
        self.min_px = min_px
        self.is_random = is_random
        self.kind = kind
        self.config = config or {}
        self.pool = pool
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
        """Sections, patients and studies that the weights were trained on; None if not stated.

        Empty for random weights, and for features without weights where nobody says otherwise.
        """
        if self.is_random:
            return {}
        if "pretrained_on" not in self.config and not any(True for _ in self.model.parameters()):
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
        update_by_weights(digest, self.model)
        precision = str(self.precision) if self.device.type == "cuda" else "torch.float32"
        return sha256_of({"version": VERSION, "weights": digest.hexdigest(), "mpp": self.mpp,
                          "transform": repr(self.eval_transforms), "precision": precision,
                          **self._identity})

    @property
    def description(self) -> dict[str, Any]:
        """Describe the encoder's input and output, for the record beside its features."""
        return {"encoder": self.enc_name, "kind": self.kind, "pool": self.pool,
                "depths": next((part.depths for part in self.model.modules()
                               if isinstance(part, ReadOut)), None), "width": self.embedding_dim,
                "input_px": self.tile_px, "mpp": self.mpp, "mean": self.eval_transforms.mean,
                "std": self.eval_transforms.std, "random": self.is_random,
                "sha256": self.identity}

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
            resolution, or a feature is not finite.
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
                except Exception as error:
                    if not lacks_memory(error):
                        raise
                    if size == 1 and isinstance(error, InputError):
                        raise
                    if size == 1:
                        raise TooLarge(self.enc_name, "memory", "is short for a single tile "
                                       f"({one_line(error, 160)})", "take a smaller network, fewer "
                                       "input_px, or a machine with more") from error
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    size = min(size, len(pixels)) // 2 or 1
                    continue
                start += len(pixels)
                bar.update(len(pixels))
        if bad := int((~np.isfinite(out)).any(axis=1).sum()):
            raise InputError(self.where, "features", f"are NaN or infinite for {bad} of "
                             f"{len(out)} tiles", "look at its weights and its precision")
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
