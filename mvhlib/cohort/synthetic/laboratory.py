"""Effects of stainer and scanner: from tissue to pixels, and how studies differ."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mvhlib.cohort.synthetic.tissue import Layout

#: RGB absorption of haematoxylin and eosin, unit length (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.650, 0.704, 0.286], [0.140, 0.880, 0.455]])

#: Where batches of dye differ: haematoxylin between blue and red, eosin between orange and magenta.
_TURNS = np.array([[1.0, 0.0, -1.0], [0.0, -0.3, 1.0]])


@dataclass(frozen=True)
class Appearance:
    """Effects of stainer and scanner on a section."""

    gains: tuple[float, float] = (1.0, 1.0)
    stains: Any = None
    blur_um: float = 0.8
    haze: float = 0.0
    curve: float = 0.0


def expose(layout: Layout, texture: np.ndarray | float, look: Appearance, mpp: float,
           drift: np.ndarray | None = None) -> np.ndarray:
    """Pixels `(H, W, 3)` uint8 of a layout under one appearance.

    Parameters
    ----------
    texture
        Relative modulation of eosin, mean 0.
    drift
        `(3, H, W)`: log-gain of haematoxylin, of eosin, and factor on the blur.
    """
    from scipy.ndimage import gaussian_filter

    def blurred(concentration: np.ndarray, blur_um: float) -> np.ndarray:
        return gaussian_filter(concentration, blur_um / mpp, mode="nearest", truncate=3.0)

    maps = []
    for concentration in (layout.haematoxylin, layout.eosin):
        if drift is None or np.ptp(drift[2]) == 0:
            maps.append(blurred(concentration, look.blur_um))
            continue
        low, high = drift[2].min(), drift[2].max()
        share = (drift[2] - low) / (high - low)
        maps.append((1 - share) * blurred(concentration, look.blur_um * low)
                    + share * blurred(concentration, look.blur_um * high))
    maps[1] = maps[1] * np.clip(1 + texture, 0.05, None)
    gains = [np.full(1, gain) for gain in look.gains]
    if drift is not None:
        gains = [gain * np.exp(change) for gain, change in zip(gains, drift[:2], strict=True)]
    stains = _STAINS if look.stains is None else look.stains
    density = sum((gain * stain)[..., None] * vector
                  for gain, stain, vector in zip(gains, maps, stains, strict=True))
    light = np.exp(-density - 0.03)
    light = light + look.curve * light * (1 - light) * (2 * light - 1)
    light = look.haze + (1 - look.haze) * light
    return np.round(255 * np.clip(light, 0, 1)).astype(np.uint8)


def plan_studies(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Artefact signs `(n,)`, offsets `(n,)` and scores of the five axes of appearance `(n, 5)`.

    All studies are equally far from the middle, and from eight studies on the scores are
    uncorrelated with the offset and only weakly tied to the sign: how a study looks tells which
    study it is, but not, from other studies, what its sign and offset are. Independent draws
    would by chance make some studies alike: leaving one out would cost nothing, and offsets
    would transfer.
    """
    order = rng.permutation(n)
    signs = np.where(order % 2, -1.0, 1.0)
    offsets = np.where(order // 2 % 2, -1.0, 1.0)
    if n == 1:
        return signs, offsets, np.zeros((1, 5))
    reserved = [signs, offsets][:max(0, n - 6)]
    columns = np.column_stack([np.ones(n), *reserved, rng.standard_normal((n, n))])[:, :n]
    basis = np.linalg.qr(columns)[0][:, 1 + len(reserved):]  # (n, n - 1 - reserved)
    size = max(basis.shape[1], 5)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    scores = basis @ turn[:basis.shape[1], :5] * np.sqrt(n)
    # without any tie, linear readouts of few features cannot learn the sign even where they may
    scores += 0.5 * signs[:, None] * [1, -1, 0, 0, 0]
    return signs, offsets, scores * np.sqrt(5) / np.linalg.norm(scores, axis=1, keepdims=True)


def draw_appearances(scores: np.ndarray, stain: float, blur: float,
                     tone: float) -> list[Appearance]:
    """One appearance per study from its scores `(n, 5)`; at strength 0 all are equal."""
    looks = []
    for gain_h, gain_e, hue, focus, contrast in scores:
        stains = []
        for vector, direction in zip(_STAINS, _TURNS, strict=True):
            direction = direction - direction @ vector * vector / (vector @ vector)
            turned = np.clip(vector + 0.08 * stain * hue * direction, 0.01, None)
            stains.append(turned / np.linalg.norm(turned))
        looks.append(Appearance(
            gains=(float(np.exp(0.40 * stain * gain_h)), float(np.exp(0.40 * stain * gain_e))),
            stains=np.array(stains), blur_um=float(0.8 * np.exp(0.40 * blur * focus)),
            haze=float(np.clip(0.05 - 0.03 * tone * contrast, 0, 0.4)),
            curve=float(np.clip(0.3 * tone * contrast, -0.9, 0.9))))
    return looks
