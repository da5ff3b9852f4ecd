"""Sensitivity of an encoder's embedding to noise in single bands of spatial frequency.

Radial frequencies [cycles per px]; divided by the scale [µm/px] they are cycles per µm.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import standardise
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor


def octaves(px: int) -> list[tuple[float, float]]:
    """Bands of one octave each, from one cycle per tile to Nyquist's frequency [cycles per px].

    Parameters
    ----------
    px
        Side of the tiles [px]; a power of two gives whole octaves, else the first is narrower.

    Examples
    --------
    >>> octaves(8)
    [(0.125, 0.25), (0.25, 0.5)]
    """
    edges = [0.5]
    while edges[-1] > 1 / px:
        edges.append(max(edges[-1] / 2, 1 / px))
    return list(zip(edges[:0:-1], edges[-2::-1], strict=True))


def _inside(size: tuple[int, int], band: tuple[float, float]) -> np.ndarray:
    """Which frequencies of images `(H, W)` belong to a band, in the order of `numpy.fft`."""
    low, high = band
    radius = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])
    return (radius >= low) & ((radius < high) | ((radius == 0.5) & (high == 0.5))) & (radius > 0)


def band_noise(shape: tuple[int, int, int], band: tuple[float, float],
               rng: np.random.Generator, rms: float = 1.0) -> np.ndarray:
    """Gaussian noise `(B, H, W)` with energy in one radial band and the same RMS in every image.

    Parameters
    ----------
    shape
        B, H, W.
    band
        Lowest frequency, and highest [cycles per px]; the highest belongs to the band only where
        it is Nyquist's, 0.5, so that neighbouring bands share nothing.
    rng
        Draws the noise.
    rms
        Of each image, exactly.

    Raises
    ------
    InputError
        If an image of this size has no frequency in the band.
    """
    inside = _inside(shape[1:], band)
    if not inside.any():
        raise InputError("band_noise", "band", f"{band[0]:g} to {band[1]:g} cycles per px holds no "
                         f"frequency of images of {shape[1]} x {shape[2]} px",
                         f"start at {1 / max(shape[1:]):g} or above, with a wider band")
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * inside).real
    return rms * noise / np.sqrt((noise**2).mean(axis=(1, 2), keepdims=True))


def sensitivity(encoder: Any, images: "Tensor", bands: Sequence[tuple[float, float]], *,
                rms: float, seed: int) -> "DataFrame":
    """Measure how far an encoder's embedding moves when band-limited noise is added to tiles.

    Parameters
    ----------
    encoder
        A `mvhlib.encoders.PatchEncoder`, or what has its `eval_transforms` and is called alike.
    images
        `(B, 3, H, W)` in 0-1, at least three.
    bands
        Frequencies from, to [cycles per px].
    rms
        Of the noise, in every band [share of full scale]; the same in red, green and blue. Nothing
        is clipped, since clipping puts energy into other bands.
    seed
        Of the noise: every encoder that is asked with it sees the same noise.

    Returns
    -------
    DataFrame
        Columns image, low, high [cycles per px], change: distance between the embeddings with and
        without noise over the root mean square distance between two different tiles. Every
        feature is divided by its standard deviation over the tiles first, since features of unlike
        units have no distance; those that never vary are left out.
    """
    import pandas as pd
    import torch

    def embed(x: "Tensor") -> np.ndarray:
        with torch.inference_mode():
            device = getattr(encoder, "device", "cpu")
            return encoder(encoder.eval_transforms.batch(x.to(device))).double().cpu().numpy()

    plain = embed(images)
    spread = plain.std(axis=0, ddof=1)
    varies = standardise.varies(spread, np.abs(plain).max(axis=0))
    if not varies.any():
        raise InputError(getattr(encoder, "enc_name", "encoder"), "embedding",
                         f"is the same for all {len(images)} tiles", "give tiles that differ")
    rows = []
    for number, (low, high) in enumerate(bands):
        rng = np.random.default_rng([seed, number])
        noise = band_noise((len(images), *images.shape[-2:]), (low, high), rng, rms)
        moved = embed(images + torch.from_numpy(noise[:, None]).to(images))
        change = (moved - plain)[:, varies] / spread[varies]
        # Two independent tiles are sqrt(2) standard deviations apart in every feature.
        rows.append(pd.DataFrame({"image": np.arange(len(images)), "low": low, "high": high,
                                  "change": np.sqrt((change**2).mean(axis=1) / 2)}))
    return pd.concat(rows, ignore_index=True)


def band_contrast(images: "Tensor", bands: Sequence[tuple[float, float]]) -> np.ndarray:
    """RMS of each tile's own brightness in each band, `(B, bands)`.

    Parameters
    ----------
    images
        `(B, 3, H, W)` in 0-1.
    bands
        As in `sensitivity`.
    """
    import torch

    grey = images.mean(dim=1)
    power = torch.fft.fft2(grey, norm="forward").abs().square()
    inside = torch.from_numpy(np.array([_inside(grey.shape[1:], band) for band in bands]))
    return torch.einsum("bhw,khw->bk", power, inside.to(power)).sqrt().double().numpy()
