"""The hand-made features: a baseline that every network must beat."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.encoders.options import refuse, take_mpp
from mvhlib.encoders.patch import EvalTransform, PatchEncoder


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
        """Mean gradient at four scales, and its anisotropy at two, `(B, 6)`."""
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


def handmade(options: dict[str, Any]) -> PatchEncoder:
    bands = bool(options.pop("bands", False))
    name, mpp = options.pop("name", "handmade-bands" if bands else "handmade"), take_mpp(options)
    refuse("handmade", options, ("name", "mpp", "bands", "device"))
    model = HandmadeFeatures(bands)
    return PatchEncoder(name, model, EvalTransform(None), len(model.feature_names), mpp=mpp,
                        min_px=HandmadeFeatures.MIN_PX, kind="colour and texture",
                        identity={"handmade": model.feature_names})
