"""Textures of six bands and orientations inside the tile of one spot."""

from functools import lru_cache

import numpy as np

from mvhlib.cohort.synthetic.tissue import smooth_field

#: Bands in cycles per tile; the fine one ends at the tile's Nyquist frequency, `tile_px / 2`.
BANDS = {"slow": (0.5, 2.0), "middle": (4.0, 8.0), "fine": (16.0, 64.0)}
FREQUENCY_PROGRAMS = tuple(f"{band}_{way}" for band in BANDS for way in ("along", "across"))


@lru_cache(maxsize=8)
def _band_masks(side: int, tile_px: int) -> np.ndarray:
    """Fourier masks `(6, side, side // 2 + 1)` of the frequency programs, in their order."""
    fy = np.abs(np.fft.fftfreq(side))[:, None] * tile_px
    fx = np.fft.rfftfreq(side)[None] * tile_px
    radius = np.hypot(fx, fy)
    masks = []
    for low, high in BANDS.values():
        ring = (radius >= low) & (radius <= min(high, tile_px / 2))
        # within 30 degrees of the axis: the two orientations stay apart
        masks += [ring & (fy < 0.577 * fx), ring & (fx < 0.577 * fy)]
    return np.array(masks)


@lru_cache(maxsize=8)
def _texture_levels(tile_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Taper `(tile_px, tile_px)` and the sorted values that every tile's texture takes.

    One histogram for all tiles: otherwise few slow waves (a flat histogram) could be told from
    many fine ones (a normal histogram) without looking at any frequency.
    """
    edge = np.minimum(np.arange(tile_px), np.arange(tile_px)[::-1]) + 1.0
    taper = np.clip(edge / 4, 0, 1)
    taper = taper[:, None] * taper
    draws = np.random.default_rng(0).standard_normal((16, tile_px, tile_px)) * taper
    levels = np.sort(draws.reshape(16, -1), 1).mean(0)
    levels -= levels.mean()
    return taper, levels / levels.std()


def _blur_passed(side: int, tile_px: int, blur_px: np.ndarray) -> np.ndarray:
    """Contrast `(..., 6)` that a Gaussian of `blur_px` `(...)` leaves in each band, 0 to 1."""
    middle = []
    for low, high in BANDS.values():
        middle += 2 * [np.linspace(low, min(high, tile_px / 2), 9)]
    frequency = np.array(middle) / tile_px  # (6, 9) cycles per px
    # ring area grows with the radius
    weight = frequency / frequency.sum(1, keepdims=True)
    power = np.exp(-4 * np.pi**2 * frequency**2 * np.asarray(blur_px)[..., None, None] ** 2)
    return np.sqrt((power * weight).sum(-1))


def draw_texture(rng: np.random.Generator, n: int, tile_px: int, contrast: np.ndarray,
                 blur_px: np.ndarray) -> np.ndarray:
    """Texture `(n tile_px, n tile_px)` of mean 0 and RMS 1 in every tile of an n x n grid.

    Parameters
    ----------
    contrast
        `(n, n, 6)` RMS per band and orientation, squares summing to 1.
    blur_px
        `(n, n)` blur of each tile: it takes contrast from the fine bands, then the total is
        restored.
    """
    from scipy import fft

    side = n * tile_px
    noise = fft.rfft2(rng.standard_normal((side, side)))
    weight = contrast * _blur_passed(side, tile_px, blur_px)
    total = np.zeros((n, n, tile_px, tile_px))
    for mask, share in zip(_band_masks(side, tile_px), np.moveaxis(weight, -1, 0),
                           strict=True):
        carrier = fft.irfft2(noise * mask, s=(side, side))
        carrier = carrier.reshape(n, tile_px, n, tile_px).swapaxes(1, 2)  # (n, n, S, S)
        carrier = carrier - carrier.mean((2, 3), keepdims=True)
        deviation = carrier.std((2, 3), keepdims=True)
        # a tile below 32 px has no fine band: nothing is added, nothing divided by zero
        total += share[..., None, None] * carrier / np.maximum(deviation, 1e-9)
    taper, levels = _texture_levels(tile_px)
    order = np.argsort((total * taper).reshape(n * n, -1), axis=1, kind="stable")
    tiles = np.empty_like(order, dtype=float)
    np.put_along_axis(tiles, order, np.broadcast_to(levels, order.shape), 1)
    return tiles.reshape(n, n, tile_px, tile_px).swapaxes(1, 2).reshape(side, side)


def draw_contrasts(rng: np.random.Generator, n: int) -> np.ndarray:
    """RMS of the six textures on an n x n grid `(n, n, 6)`, squares summing to 1.

    A third of the variance is smooth over about two spots, the rest is the spot's own.
    """
    smooth = np.stack([smooth_field(rng, (n, n), 1.5) for _ in FREQUENCY_PROGRAMS], -1)
    logit = 1.5 * (np.sqrt(1 / 3) * smooth + np.sqrt(2 / 3) * rng.standard_normal(smooth.shape))
    power = np.exp(logit - logit.max(-1, keepdims=True))
    return np.sqrt(power / power.sum(-1, keepdims=True))


#: Mean and standard deviation of one of six contrasts of `draw_contrasts`.
CONTRAST_MOMENTS = (0.345, 0.218)
