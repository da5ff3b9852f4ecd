"""A synthetic cohort whose every cause is known; synthetic slides and organs beside it.

A section is drawn in optical-density space. Smooth random fields lay out lumen, glands, stroma,
tumour and lymphocytes; nuclei of class-specific size, density and chromatin texture are stamped on
it; haematoxylin and eosin add up along two stain vectors (Ruifrok & Johnston 2001) and Beer-Lambert
turns them into pixels. Counts are negative binomial around a rate that is a known function of what
was drawn, or of nothing. The causes stay in ``truth/<section>.h5ad``.

Gene programs (``var["program"]``)
    ``lumen gland stroma tumour lymphocytes`` follow the share of that class in the spot's tile,
    ``density`` the nuclei per area, the six frequency programs the contrast that the tile carries
    in one band and one orientation, ``study_offset`` nothing but the study, ``artefact`` the
    gradient of stain and focus that every section shows, with a sign that differs between
    studies, ``noise`` nothing at all.

What a study does
    It multiplies the optical density of each stain, turns the stain vectors a little, blurs, and
    bends the tone curve. Biology, counts and the section's layout do not depend on these strengths:
    cohorts of one seed at different strengths are the same tissue seen by other laboratories.

What an organ does (``n_organs`` above 1; the demo has one)
    Studies are dealt to organs in turn. An organ has more of one tissue class and less of another,
    and every second gene of the class programs follows another class than in the first organ
    (``var["organ_specific"]``): a gland gene of the first organ is a stroma gene of the second.
    The other half, density and textures mean the same everywhere. What a model loses between
    organs is then the biology, what it loses between studies of one organ the laboratory.

Simplifications that a careful user should know
    * Every program takes a fixed share of the library and the library size is independent of
      the tissue, so that neither normalisation nor dropout hands a tissue signal to noise genes.
      Real library sizes follow cellularity.
    * Frequency textures modulate eosin inside the tile of one spot. Their total contrast is the
      same in every tile, and is restored after blur (blur moves contrast from fine to coarse
      bands but leaves the tile's histogram alone); real blur would also narrow the histogram.
    * A tile that is larger than `tile_px`, or off the spot grid, sees textures of neighbours.
    * Blur acts on stain concentrations rather than on light, and there is no sensor noise.
    * Classes do not overlap, nuclei do not touch on purpose, sections of a patient share
      prevalences but not outlines, and no study differs in biology from others of its organ.

Rendering is in float64, so that another CPU's last bit practically never changes a pixel.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib.artifacts import InputError, atomic, write_csv
from mvhlib.cohort.base import Cohort, ImageRef, Section

if TYPE_CHECKING:
    import pandas as pd

VERSION = "1"
CLASSES = ("lumen", "gland", "stroma", "tumour", "lymphocytes")
#: Bands in cycles per tile; the fine one ends at the tile's Nyquist frequency, `tile_px / 2`.
BANDS = {"slow": (0.5, 2.0), "middle": (4.0, 8.0), "fine": (16.0, 64.0)}
FREQUENCY_PROGRAMS = tuple(f"{band}_{way}" for band in BANDS for way in ("along", "across"))
PROGRAMS = (*CLASSES, "density", *FREQUENCY_PROGRAMS, "study_offset", "artefact", "noise")
#: Programs whose genes follow nothing that tissue shows.
WITHOUT_SIGNAL = ("study_offset", "artefact", "noise")
#: What programs have in common: groups that are few enough to be told apart in a figure.
GROUPS = {**dict.fromkeys((*CLASSES, "density"), "tissue class"),
          **dict.fromkeys(FREQUENCY_PROGRAMS, "texture"),
          **dict.fromkeys(("study_offset", "artefact"), "artefact"), "noise": "noise"}
ROLES = {"evaluation": ("S", 0), "pretraining": ("U", 1), "prediction": ("V", 4)}

_CAUSES = {
    **{name: f"share of {name} in the spot's tile" for name in CLASSES},
    "density": "nuclei per mm2 in the spot's tile",
    **{f"{band}_{way}": f"texture contrast at {low:g} to {high:g} cycles per tile (at most the "
                        f"tile's Nyquist), varying {way} the raster"
       for band, (low, high) in BANDS.items() for way in ("along", "across")},
    "study_offset": "the study, equal in all its spots",
    "artefact": "gradient of stain and focus across the section, its sign differing by study",
    "noise": "none",
}

#: Share of the library that goes to each group of programs. Fixed, see the module's docstring.
_SHARES = {"classes": 0.30, "density": 0.06, "frequency": 0.36, "study_offset": 0.06,
           "artefact": 0.06, "noise": 0.16}
#: Change of log-rate per unit of a cause (class share: 0 to 1; the others are standardised).
_EFFECTS = {"classes": 2.5, "density": 0.7, "frequency": 0.8, "study_offset": 0.6, "artefact": 1.3}

#: RGB absorption of haematoxylin and eosin, unit length (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.650, 0.704, 0.286], [0.140, 0.880, 0.455]])

#: Where batches of dye differ: haematoxylin between blue and red, eosin between orange and magenta.
_TURNS = np.array([[1.0, 0.0, -1.0], [0.0, -0.3, 1.0]])


@dataclass(frozen=True)
class _Tissue:
    """How one class looks: background stain [OD], and its nuclei."""

    eosin: float
    haematoxylin: float
    per_mm2: float
    long_um: float
    short_um: float
    stain: float
    size_spread: float
    chromatin: float


#: Shift of the prevalences of tumour, glands and lymphocytes by organ, in units of the spread of
#: patients, relative to the first organ's.
_ORGAN_TILTS = ((0.0, 0.0, 0.0, 0.0), (-1.5, 1.5, 0.0, 0.0), (0.0, -1.5, 1.5, 0.0),
                (1.5, 0.0, -1.5, 0.0), (-1.5, 0.0, 1.5, 0.0))

_TISSUES = (
    _Tissue(0.03, 0.00, 40, 2.6, 2.2, 0.7, 0.15, 0.1),     # lumen: white, little debris
    _Tissue(0.42, 0.16, 4200, 5.2, 3.1, 0.85, 0.10, 0.15),  # gland: regular, elongated
    _Tissue(0.62, 0.03, 1300, 6.4, 1.9, 0.80, 0.20, 0.10),  # stroma: pink, few spindles
    _Tissue(0.40, 0.20, 3900, 6.2, 4.8, 0.70, 0.25, 0.45),  # tumour: large, vesicular, uneven
    _Tissue(0.26, 0.12, 8500, 3.2, 2.9, 1.15, 0.08, 0.10),  # lymphocytes: small, round, dark
)


@dataclass(frozen=True)
class _Appearance:
    """What stainer and scanner do to a section."""

    gains: tuple[float, float] = (1.0, 1.0)
    stains: Any = None
    blur_um: float = 0.8
    haze: float = 0.0
    curve: float = 0.0


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=64)
def _bspline(length: int, step: float) -> np.ndarray:
    """Uniform cubic B-splines at pixel centres `(length, n_knots)`, rows of unit norm.

    Random coefficients under unit rows give a smooth field of variance one everywhere.
    """
    position = (np.arange(length) + 0.5) / step
    knot, t = np.floor(position).astype(int), position % 1.0
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4,
                        -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1)
    basis = np.zeros((length, knot.max() + 4))
    np.put_along_axis(basis, knot[:, None] + np.arange(4), weights, 1)
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


def _field(rng: np.random.Generator, shape: tuple[int, int], step: float) -> np.ndarray:
    """Smooth Gaussian field of mean 0 and variance 1 that decorrelates over about `step` px."""
    rows, columns = (_bspline(length, float(step)) for length in shape)
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


@dataclass
class _Layout:
    """Tissue before any laboratory has touched it."""

    labels: np.ndarray  # (H, W) index into CLASSES, -1 off tissue
    haematoxylin: np.ndarray  # (H, W) background and nuclei [OD]
    eosin: np.ndarray  # (H, W) [OD]
    nuclei: np.ndarray  # (n, 2) centres (x, y) [px]


def _labels(rng: np.random.Generator, shape: tuple[int, int], mpp: float,
            tilt: np.ndarray) -> np.ndarray:
    """Class of every pixel; `tilt` (4,) shifts the patient's prevalences."""
    def field(microns: float) -> np.ndarray:
        return _field(rng, shape, microns / mpp)

    height, width = shape
    region = 0.85 * field(260) + 0.45 * field(90)
    gland, nest, lymph = field(75), field(60), 0.8 * field(90) + 0.6 * field(30)
    labels = np.full(shape, 2, dtype=np.int8)
    labels[gland > 0.35 - 0.3 * tilt[1]] = 1
    labels[gland > 1.2 - 0.3 * tilt[1]] = 0
    tumour = region > 0.25 - 0.3 * tilt[0]
    labels[tumour] = 3
    labels[tumour & (nest > 1.7)] = 0
    labels[(region > -0.9) & (lymph > 1.05 - 0.3 * tilt[2]) & ((labels == 2) | (labels == 3))] = 4
    y, x = np.meshgrid(*(np.abs(2 * (np.arange(n) + 0.5) / n - 1) for n in (height, width)),
                       indexing="ij")
    outline = (x**4 + y**4) ** 0.25 + 0.05 * field(200)
    labels[outline > 0.97] = -1
    return labels


def _lay_out(rng: np.random.Generator, labels: np.ndarray, mpp: float, crowding: np.ndarray,
             grade: np.ndarray | None = None) -> _Layout:
    """Stamp nuclei into `labels` and sum the stains.

    Parameters
    ----------
    crowding
        `(H, W)` factor on nuclear density, 0.4 to 1.6.
    grade
        `(H, W)` in -1 to 1: nuclear stain is multiplied by `1 + 0.85 grade`, so that the mean
        optical density is linear in it.
    """
    shape = labels.shape
    centres, kinds = [], []
    for index, tissue in enumerate(_TISSUES):
        pitch = 1000.0 / np.sqrt(1.6 * tissue.per_mm2) / mpp
        counts = [int(np.ceil(length / pitch)) for length in shape]
        y, x = np.meshgrid(*(np.arange(n) for n in counts), indexing="ij")
        # every second row is shifted by half a pitch; the jitter keeps neighbours apart
        points = np.stack([x + 0.5 * (y % 2), y.astype(float)], -1).reshape(-1, 2)
        points = (points + rng.uniform(0.1, 0.9, points.shape)) * pitch
        keep = rng.uniform(0, 1.6, len(points))
        inside = (points[:, 0] < shape[1]) & (points[:, 1] < shape[0])
        column, row = points[inside].astype(int).T
        chosen = (labels[row, column] == index) & (keep[inside] < crowding[row, column])
        centres.append(points[inside][chosen])
        kinds.append(np.full(chosen.sum(), index))
    nuclei, kind = np.concatenate(centres), np.concatenate(kinds)
    table = np.array([(t.long_um, t.short_um, t.stain, t.size_spread, t.chromatin)
                      for t in _TISSUES])[kind]  # (n, 5)
    n = len(nuclei)
    scale = np.exp(table[:, 3] * rng.standard_normal(n))
    column, row = nuclei.astype(int).T
    stain = table[:, 2] * np.exp(0.1 * rng.standard_normal(n))
    if grade is not None:
        stain *= 1 + 0.85 * grade[row, column]
    long, short = (table[:, :2] * scale[:, None] / mpp).T
    angle = rng.uniform(0, np.pi, n)
    half = int(np.ceil(min(long.max(initial=1.0), 14.0 / mpp))) + 1
    offset = np.arange(-half, half + 1)
    dx = column[:, None] + offset + 0.5 - nuclei[:, :1]  # (n, w)
    dy = row[:, None] + offset + 0.5 - nuclei[:, 1:]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u = (dx[:, None, :] * cos + dy[:, :, None] * sin) / long[:, None, None]  # (n, w, w)
    v = (dy[:, :, None] * cos - dx[:, None, :] * sin) / short[:, None, None]
    cover = np.clip((1 - np.hypot(u, v)) * short[:, None, None] + 0.5, 0, 1)
    grain = rng.standard_normal(cover.shape) * table[:, 4, None, None]
    value = cover * stain[:, None, None]
    value *= np.clip(1 + grain, 0.1, 2.0)

    padded = np.zeros((2, shape[0] + 2 * half, shape[1] + 2 * half))
    flat = ((row[:, None] + half + offset) * padded.shape[2])[:, :, None] \
        + (column[:, None] + half + offset)[:, None, :]
    np.maximum.at(padded[0].reshape(-1), flat.ravel(), value.ravel())
    np.maximum.at(padded[1].reshape(-1), flat.ravel(), cover.ravel())
    stained, covered = padded[:, half:-half, half:-half]
    background = np.array([(t.eosin, t.haematoxylin) for t in _TISSUES] + [(0.0, 0.0)])[labels]
    eosin = background[..., 0] * (1 - 0.55 * covered)
    return _Layout(labels, background[..., 1] + stained, eosin, nuclei)


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


def _texture(rng: np.random.Generator, n: int, tile_px: int, contrast: np.ndarray,
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


def _expose(layout: _Layout, texture: np.ndarray | float, look: _Appearance, mpp: float,
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


def _plan_studies(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _appearances(scores: np.ndarray, stain: float, blur: float, tone: float) -> list[_Appearance]:
    """One appearance per study from its scores `(n, 5)`; at strength 0 all are equal."""
    looks = []
    for gain_h, gain_e, hue, focus, contrast in scores:
        stains = []
        for vector, direction in zip(_STAINS, _TURNS, strict=True):
            direction = direction - direction @ vector * vector / (vector @ vector)
            turned = np.clip(vector + 0.08 * stain * hue * direction, 0.01, None)
            stains.append(turned / np.linalg.norm(turned))
        looks.append(_Appearance(
            gains=(float(np.exp(0.40 * stain * gain_h)), float(np.exp(0.40 * stain * gain_e))),
            stains=np.array(stains), blur_um=float(0.8 * np.exp(0.40 * blur * focus)),
            haze=float(np.clip(0.05 - 0.03 * tone * contrast, 0, 0.4)),
            curve=float(np.clip(0.3 * tone * contrast, -0.9, 0.9))))
    return looks


def _contrasts(rng: np.random.Generator, n: int) -> np.ndarray:
    """RMS of the six textures on an n x n grid `(n, n, 6)`, squares summing to 1.

    A third of the variance is smooth over about two spots, the rest is the spot's own.
    """
    smooth = np.stack([_field(rng, (n, n), 1.5) for _ in FREQUENCY_PROGRAMS], -1)
    logit = 1.5 * (np.sqrt(1 / 3) * smooth + np.sqrt(2 / 3) * rng.standard_normal(smooth.shape))
    power = np.exp(logit - logit.max(-1, keepdims=True))
    return np.sqrt(power / power.sum(-1, keepdims=True))


def _genes(seed: int, n_per_program: int) -> "pd.DataFrame":
    """The genes: program, cause, direction and effect, and abundance before any cause."""
    import pandas as pd

    rng = _rng(seed, 99)
    rows = []
    for program in PROGRAMS:
        n = max(20, n_per_program) if program == "noise" else n_per_program
        for number in range(n):
            group = _group(program)
            direction = 0 if group == "noise" else -1 if group != "classes" and number % 2 else 1
            effect = direction * _EFFECTS.get(group, 0.0) * rng.uniform(0.8, 1.2)
            rows.append((f"{program.replace('_', '-')}-{number + 1:02d}", program,
                         _CAUSES[program], effect, np.exp(0.4 * rng.standard_normal())))
    frame = pd.DataFrame(rows, columns=["gene", "program", "cause", "effect", "abundance"])
    return frame.set_index("gene")


def group_of(program: object) -> str:
    """The group of a gene's program, for figures; genes of no program of ours are ``genes``."""
    return GROUPS.get(str(program), "genes")


def _group(program: str) -> str:
    if program in CLASSES:
        return "classes"
    return "frequency" if program in FREQUENCY_PROGRAMS else program


def _wiring(genes: "pd.DataFrame", organ: int) -> np.ndarray:
    """Name of the cause that drives each gene in an organ, counted from 0."""
    drivers = genes["program"].to_numpy(dtype=object).copy()
    if organ:
        turned = np.flatnonzero(genes["organ_specific"])
        drivers[turned] = [CLASSES[(CLASSES.index(name) + organ) % len(CLASSES)]
                           for name in drivers[turned]]
    return drivers


def _log_rates(genes: "pd.DataFrame", causes: Mapping[str, np.ndarray],
               organ: int = 0) -> np.ndarray:
    """Log share of the library per spot and gene `(T, G)`; shares sum to 1 in every spot.

    Each group of programs (each frequency program by itself) is normalised to its own share of
    the library: what rises in it is paid by what falls in it, never by another group's genes.
    """
    n_spots = len(causes["density"])
    rate = np.empty((n_spots, len(genes)))
    program, drivers = genes["program"].to_numpy(), _wiring(genes, organ)
    for blocks, group in [((*CLASSES,), "classes"), *(((p,), _group(p)) for p in PROGRAMS[5:])]:
        columns = np.flatnonzero(np.isin(program, blocks))
        driver = np.stack([causes[p] if p != "noise" else np.zeros(n_spots)
                           for p in drivers[columns]], 1)  # (T, genes of the block)
        part = genes["effect"].to_numpy()[columns] * driver \
            + np.log(genes["abundance"].to_numpy()[columns])
        part -= np.log(np.exp(part).sum(1, keepdims=True))
        share = _SHARES[group] / (len(FREQUENCY_PROGRAMS) if group == "frequency" else 1)
        rate[:, columns] = part + np.log(share)
    return rate


def _count(rng: np.random.Generator, rate: np.ndarray, depth: float,
           dispersion: float) -> tuple[np.ndarray, np.ndarray]:
    """Negative binomial counts `(T, G)` and expected library sizes `(T,)`.

    Variance `mean + dispersion * mean**2`; the library is log-normal over spots.
    """
    library = depth * np.exp(0.3 * rng.standard_normal(len(rate)) - 0.045)
    mean = library[:, None] * np.exp(rate)
    counts = rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape))
    return counts, library


#: Mean and standard deviation of one of six contrasts of `_contrasts`.
_CONTRAST_MOMENTS = (0.345, 0.218)


@dataclass(frozen=True)
class _Recipe:
    """Everything that a cohort is made from; stored with it."""

    seed: int
    version: str
    role: str
    n_studies: int
    patients_per_study: int
    sections_per_patient: int
    spots_per_side: int
    tile_px: int
    mpp: float
    stain_strength: float
    blur_strength: float
    tone_strength: float
    artefact_strength: float
    texture_strength: float
    n_genes_per_program: int
    depth: float
    dispersion: float
    n_organs: int = 1

    def __post_init__(self):
        def refuse(name: str, problem: str, fix: str):
            raise InputError("synthetic cohort", name, problem, fix)

        if self.version != VERSION:
            refuse("version", f"{self.version!r} is not {VERSION!r}, the one that this code makes",
                   f"ask for version {VERSION!r}, or install the release that made the other")
        if self.role not in ROLES:
            refuse("role", f"{self.role!r} is unknown", f"use one of {sorted(ROLES)}")
        for name in ("n_studies", "patients_per_study", "sections_per_patient"):
            if not 1 <= getattr(self, name) <= 26:
                refuse(name, f"is {getattr(self, name)}", "use 1 to 26")
        if not 1 <= self.n_organs <= len(_ORGAN_TILTS):
            refuse("n_organs", f"is {self.n_organs}", f"use 1 to {len(_ORGAN_TILTS)}")
        if self.spots_per_side < 3:
            refuse("spots_per_side", f"is {self.spots_per_side}", "use at least 3")
        if self.tile_px < 36 or self.tile_px % 2:
            refuse("tile_px", f"is {self.tile_px}; the fine band starts at 16 cycles per tile",
                   "use an even number of at least 36")
        if self.n_genes_per_program < 2:
            refuse("n_genes_per_program", f"is {self.n_genes_per_program}", "use at least 2")
        for name in ("mpp", "depth", "dispersion"):
            if not 0 < getattr(self, name) < np.inf:
                refuse(name, f"is {getattr(self, name)}", "use a positive number")
        for name in ("stain_strength", "blur_strength", "tone_strength", "artefact_strength",
                     "texture_strength"):
            if not 0 <= getattr(self, name) <= 4:
                refuse(name, f"is {getattr(self, name)}", "use 0 (no effect) to 4")


def make_cohort(folder: str | Path, *, seed: int = 0, version: str = VERSION,
                role: str = "evaluation", n_studies: int = 8, patients_per_study: int = 2,
                sections_per_patient: int = 2, spots_per_side: int = 12, tile_px: int = 64,
                mpp: float = 1.5625, stain_strength: float = 1.0, blur_strength: float = 1.0,
                tone_strength: float = 1.0, artefact_strength: float = 1.0,
                texture_strength: float = 1.0, n_genes_per_program: int = 8,
                depth: float = 4000.0, dispersion: float = 0.15, n_organs: int = 1) -> Cohort:
    """Make the synthetic cohort: images and truth on disk, counts in the sections.

    Parameters
    ----------
    folder
        Takes ``images/<section>.png`` and ``truth/<section>.h5ad``; the latter holds
        ``layers["rate"]``, the log share of the library that each gene was given in each spot,
        and every cause in ``obs``.
    seed
        Everything follows from it; strengths change no draw.
    version
        Of the generator, part of the cohort's identity.
    role
        ``"evaluation"`` (studies S1...), ``"pretraining"`` (studies U1...) or ``"prediction"``
        (studies V1...): no study, patient or section of the one is in another.
    n_studies, patients_per_study, sections_per_patient
        A section is a specimen of its own: none is a replicate of another.
    spots_per_side
        Side of the square spot grid; spots less than three quarters on tissue are left out.
    tile_px, mpp
        Side of a spot's tile, which is also the distance of spots [px], and micrometres per px.
    stain_strength, blur_strength, tone_strength
        Spread of the studies in stain vectors and their gains, in blur, in haze and tone curve;
        1 is a spread as between laboratories, 0 none.
    artefact_strength
        Size of the gradient of stain and focus inside sections.
    texture_strength
        Relative contrast of the frequency textures.
    n_genes_per_program
        Genes of each program (of noise at least 20).
    depth
        Mean library size [counts].
    dispersion
        Of the negative binomial: variance `mean + dispersion * mean**2`.
    n_organs
        Organs that the studies are dealt to in turn; see the module, and `organs` for who is whose.

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    recipe = _Recipe(
        seed=seed, version=version, role=role, n_studies=n_studies,
        patients_per_study=patients_per_study, sections_per_patient=sections_per_patient,
        spots_per_side=spots_per_side, tile_px=tile_px, mpp=mpp, stain_strength=stain_strength,
        blur_strength=blur_strength, tone_strength=tone_strength,
        artefact_strength=artefact_strength, texture_strength=texture_strength,
        n_genes_per_program=n_genes_per_program, depth=depth, dispersion=dispersion,
        n_organs=n_organs)
    folder = Path(folder)
    letter, stream = ROLES[role]
    genes = _genes(seed, n_genes_per_program)
    if n_organs > 1:
        is_second = genes.groupby("program").cumcount() % 2 == 1
        genes["organ_specific"] = (is_second & genes["program"].isin(CLASSES)).astype(int)
    signs, offsets, scores = _plan_studies(_rng(seed, stream, 0), n_studies)
    looks = _appearances(scores, stain_strength, blur_strength, tone_strength)
    drawn = []
    for study in range(n_studies):
        for patient in range(patients_per_study):
            tilt = _rng(seed, stream, 2, study, patient).standard_normal(4)
            for number in range(sections_per_patient):
                name = f"{letter}{study + 1}P{patient + 1}{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[number]}"
                drawn.append((
                    folder, name, recipe, genes,
                    _rng(seed, stream, 3, study, patient, number).spawn(6),
                    tilt + np.array(_ORGAN_TILTS[study % n_organs]), looks[study], signs[study],
                    offsets[study], study % n_organs))
    # Every section has generators of its own, so that their order does not matter.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return Cohort(list(pool.map(lambda each: _make_section(*each), drawn)))


def organs(cohort: Cohort) -> dict[str, str]:
    """Organ of each section of a cohort made here, for `mvhlib.cohort.splits.make`'s `groups`."""
    return {section.name: f"organ {section.adata.uns['synthetic'].get('organ', 1)}"
            for section in cohort}


def read(path: str | Path, **options) -> Cohort:
    """`make_cohort` under the signature of the other readers; `path` is the folder it fills."""
    import inspect

    known = [name for name in inspect.signature(make_cohort).parameters if name != "folder"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError("synthetic cohort", ", ".join(unknown), "no such option",
                         f"use {', '.join(known)}")
    return make_cohort(path, **options)


#: Change per unit of the gradient, which runs from about -1 to 1: log H gain, log E gain, log blur.
#: Both stains and the blur grow together, as where a section is thicker.
_GRADIENT = np.array([0.60, 0.60, 0.70])


def _make_section(folder: Path, name: str, recipe: _Recipe, genes: "pd.DataFrame",
                  rngs: list[np.random.Generator], tilt: np.ndarray, look: _Appearance,
                  sign: float, offset: float, organ: int = 0) -> Section:
    """Draw one section, write image and truth, and return it with its counts."""
    import anndata
    import pandas as pd
    from PIL import Image
    from scipy import sparse

    n, tile, mpp = recipe.spots_per_side, recipe.tile_px, recipe.mpp
    side, margin = (n + 1) * tile, tile // 2
    shape = (side, side)
    labels = _labels(rngs[0], shape, mpp, tilt)
    crowding = np.clip(1 + 0.4 * _field(rngs[1], shape, 150 / mpp), 0.4, 1.6)
    layout = _lay_out(rngs[1], labels, mpp, crowding)

    # every section has this gradient, so that the images of no study can be told by it
    angle = rngs[2].uniform(0, 2 * np.pi)
    ramp = (np.arange(side) + 0.5) / side * 2 - 1
    gradient = np.cos(angle) * ramp[None] + np.sin(angle) * ramp[:, None]  # (H, W)
    drift = gradient * recipe.artefact_strength * _GRADIENT[:, None, None]
    drift[2] = np.exp(drift[2])

    # a ring of tiles around the spots, so that the margin looks like the rest
    contrast = _contrasts(rngs[3], n + 2)
    centre = np.clip((np.arange(n + 2) * tile).astype(int), 0, side - 1)
    blur_px = look.blur_um / mpp * drift[2][np.ix_(centre, centre)]
    texture = _texture(rngs[4], n + 2, tile, contrast, blur_px)[margin:-margin, margin:-margin]
    jitter = np.exp(0.06 * recipe.stain_strength * rngs[5].standard_normal(2))
    look = replace(look, gains=tuple(np.array(look.gains) * jitter))
    pixels = _expose(layout, 0.28 * recipe.texture_strength * texture, look, mpp, drift)

    grid = labels[margin:-margin, margin:-margin].reshape(n, tile, n, tile).swapaxes(1, 2)
    shares = np.stack([(grid == index).mean((2, 3)) for index in range(len(CLASSES))], -1)
    tissue = shares.sum(-1)
    row, column = np.nonzero(tissue >= 0.75)
    cell = (layout.nuclei - margin) // tile
    inside = ((cell >= 0) & (cell < n)).all(1)
    nuclei = np.zeros((n, n))
    np.add.at(nuclei, tuple(cell[inside].astype(int).T[::-1]), 1)
    per_mm2 = nuclei / (tile * mpp / 1000) ** 2
    spots = np.stack([column, row], 1)
    centres = margin + (spots + 0.5) * tile
    at = sign * gradient[centres[:, 1].astype(int), centres[:, 0].astype(int)]

    causes = {name: shares[row, column, index] for index, name in enumerate(CLASSES)}
    causes["density"] = np.log((per_mm2[row, column] + 500) / 3000) / 0.5
    mean, deviation = _CONTRAST_MOMENTS
    for index, program in enumerate(FREQUENCY_PROGRAMS):
        causes[program] = (contrast[1:-1, 1:-1][row, column, index] - mean) / deviation
    causes["study_offset"] = np.full(len(row), offset)
    causes["artefact"] = at
    rate = _log_rates(genes, causes, organ)
    counts, library = _count(rngs[5], rate, recipe.depth, recipe.dispersion)

    place = {"study": name.split("P")[0], "patient": name[:-1], "section": name}
    obs = pd.DataFrame({"array_row": row, "array_col": column},
                       index=[f"{x}x{y}" for x, y in spots])
    truth = obs.assign(**{f"cause_{key}": value for key, value in causes.items()},
                       tissue=tissue[row, column], nuclei=nuclei[row, column].astype(int),
                       nuclei_per_mm2=per_mm2[row, column], library=library,
                       tissue_class=pd.Categorical.from_codes(
                           shares[row, column].argmax(1), CLASSES), **place)
    for index, program in enumerate(FREQUENCY_PROGRAMS):
        truth[f"contrast_{program}"] = contrast[1:-1, 1:-1][row, column, index]
    parameters = {key: getattr(recipe, key) for key in recipe.__dataclass_fields__}
    if parameters["n_organs"] == 1:  # cohorts without organs keep their bytes
        del parameters["n_organs"]
    else:
        parameters["organ"] = organ + 1
    uns = {"synthetic": parameters | {
        "stain_gains": np.array(look.gains), "stain_vectors": look.stains,
        "blur_um": look.blur_um, "haze": look.haze, "tone_curve": look.curve,
        "artefact_sign": sign, "study_offset": offset}}
    var = genes[["program", "cause"]].assign(cause=[_CAUSES[d] for d in _wiring(genes, organ)])
    image = folder / "images" / f"{name}.png"
    with atomic(image) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=4)
    with atomic(folder / "truth" / f"{name}.h5ad") as temporary:
        anndata.AnnData(
            obs=truth, var=genes, layers={"rate": rate.astype(np.float32)},
            obsm={"spatial": centres}, uns=uns).write_h5ad(temporary)

    step = max(1, -(-side // 1000))
    thumbnail = np.asarray(Image.fromarray(pixels).reduce(step)) if step > 1 else pixels
    adata = anndata.AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)), obs=obs.assign(**place), var=var,
        obsm={"spatial": centres},
        uns=uns | {"spatial": {name: {
            "images": {"hires": thumbnail},
            "scalefactors": {"tissue_hires_scalef": 1 / step,
                             "spot_diameter_fullres": float(tile)}}}})
    adata.layers["counts"] = adata.X.copy()
    return Section(
        name=name, study=place["study"], patient=place["patient"], specimen=name,
        source="synthetic", load=lambda: adata, mpp=mpp,
        image_ref=ImageRef(f"images/{name}.png", root="cohort"), image_size=(side, side),
        roots={"cohort": folder})


#: Classes that a tile of the slide cohort can have, and their mean share.
_SLIDE_CLASSES = {"gland": 0.20, "stroma": 0.33, "tumour": 0.35, "lymphocytes": 0.12}


def make_slide_cohort(folder: str | Path, *, seed: int = 0, version: str = VERSION,
                      n_patients: int = 300, n_sites: int = 8, tiles_per_slide: int = 25,
                      tile_px: int = 32, mpp: float = 1.5625, site_strength: float = 1.0,
                      event_rate: float = 0.4, effect: float = 1.1) -> "pd.DataFrame":
    """Make the slide cohort: one slide per patient, a bag of tiles each, a label and two outcomes.

    Every tile is of one class. The label ``MSI`` plants tumour tiles that lymphocytes invade,
    ``MSS`` slides have none. The hazard of the first outcome is linear in the bag's class shares;
    that of the second depends on how much nuclear stain differs among tumour tiles, while its mean
    over them is the same in every slide. Both also depend on stage and, a little, on site.

    Parameters
    ----------
    folder
        Takes ``tiles/<slide>.h5`` (layout of `mvhlib.tiles.store`), ``slides.csv`` (the returned
        table) and ``tiles_truth.csv`` (slide, barcode, tissue_class, grade, planted).
    n_sites
        Each has its own stain, blur and tone, a share of MSI and a baseline hazard of its own.
    tiles_per_slide
        At least 16, of which at least 8 are tumour.
    site_strength
        0: sites are alike in everything.
    event_rate
        Share of patients whose event is seen before censoring.
    effect
        Change of log-hazard per standard deviation of the image's cause.

    Returns
    -------
    pd.DataFrame
        slide, patient, site, age, sex, stage, label, time_months, event, time_months_spread,
        event_spread, the true log_hazard and log_hazard_spread, and their causes: share_<class>,
        grade_spread, n_planted.

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    import pandas as pd

    from mvhlib.tiles.cut import Tiles
    from mvhlib.tiles.store import write_tiles

    for name, value, low, high in (
            ("n_patients", n_patients, 20, 100_000), ("n_sites", n_sites, 1, 26),
            ("tiles_per_slide", tiles_per_slide, 16, 10_000), ("tile_px", tile_px, 24, 1024),
            ("mpp", mpp, 0.1, 10), ("site_strength", site_strength, 0, 4),
            ("event_rate", event_rate, 0.05, 0.95), ("effect", effect, 0, 5)):
        if not low <= value <= high:
            raise InputError("synthetic slide cohort", name, f"is {value}",
                             f"use {low} to {high}")
    if version != VERSION:
        raise InputError("synthetic slide cohort", "version", f"{version!r} is not {VERSION!r}",
                         f"ask for version {VERSION!r}")
    folder = Path(folder)
    rng = _rng(seed, 2, 0)
    looks = _appearances(_plan_studies(rng, n_sites)[2], *[site_strength] * 3)
    site = rng.permutation(np.arange(n_patients) % n_sites)
    site_score = rng.permutation(np.linspace(-1, 1, n_sites)) if n_sites > 1 else np.zeros(1)
    planted_site = rng.permutation(site_score)[site]
    msi = rng.uniform(size=n_patients) < 0.3 + 0.12 * site_strength * planted_site
    stage = rng.choice(4, n_patients, p=[0.18, 0.36, 0.30, 0.16]) + 1
    age = np.round(np.clip(rng.normal(67, 11, n_patients), 25, 95)).astype(int)
    sex = np.where(rng.uniform(size=n_patients) < 0.5, "female", "male")
    spread = rng.uniform(0.05, 0.55, n_patients)
    width = len(str(n_patients))
    names = [f"SL{index + 1:0{width}d}" for index in range(n_patients)]

    shares, tiles_truth = np.empty((n_patients, len(_SLIDE_CLASSES))), []
    planted = np.zeros(n_patients, dtype=int)
    for index, name in enumerate(names):
        draw = _rng(seed, 2, 1, index)
        kind, grade, invaded = _draw_bag(draw, tiles_per_slide, bool(msi[index]), spread[index])
        shares[index] = [(kind == CLASSES.index(tissue)).mean() for tissue in _SLIDE_CLASSES]
        planted[index] = invaded.sum()
        look = looks[site[index]]
        jitter = np.exp(0.06 * site_strength * draw.standard_normal(2))
        look = replace(look, gains=tuple(np.array(look.gains) * jitter))
        img, coords = _draw_tiles(draw, kind, grade, invaded, look, tile_px, mpp)
        barcodes = [f"{x // tile_px}x{y // tile_px}" for x, y in coords]
        write_tiles(folder / "tiles" / f"{name}.h5", Tiles(
            img, coords, np.zeros(len(img), np.float32), tile_px, tile_px * mpp, mpp, mpp,
            barcodes))
        tiles_truth.append(pd.DataFrame({
            "slide": name, "barcode": barcodes, "tissue_class": np.array(CLASSES)[kind],
            "grade": grade, "planted": invaded.astype(int)}))

    def score(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / max(values.std(), 1e-12)

    columns = dict(zip(_SLIDE_CLASSES, shares.T, strict=True))
    clinical = 0.45 * (stage - 2.4) + 0.25 * site_strength * site_score[site]
    hazards = {"": clinical + effect * score(columns["tumour"] - columns["lymphocytes"]),
               "_spread": clinical + effect * score(spread)}
    table = pd.DataFrame({
        "slide": names, "patient": [f"PT{name[2:]}" for name in names],
        "site": [f"site{index + 1}" for index in site], "age": age, "sex": sex, "stage": stage,
        "label": np.where(msi, "MSI", "MSS")})
    for suffix, hazard in hazards.items():
        table[f"time_months{suffix}"], table[f"event{suffix}"] = _follow(rng, hazard, event_rate)
    for suffix, hazard in hazards.items():
        table[f"log_hazard{suffix}"] = hazard
    table = table.assign(**{f"share_{tissue}": values for tissue, values in columns.items()},
                         grade_spread=spread, n_planted=planted)
    write_csv(folder / "tiles_truth.csv", pd.concat(tiles_truth))
    write_csv(folder / "slides.csv", table)
    return table


def make_organ_images(folder: str | Path, *, seed: int = 0, version: str = VERSION,
                      n_organs: int = 3, n_scanners: int = 9, patients_per_cell: int = 3,
                      tiles_per_image: int = 9, tile_px: int = 64, mpp: float = 1.5625,
                      scanner_strength: float = 1.0, contrast: float = 0.8) -> "pd.DataFrame":
    """Make images of organs, each seen by every scanner: tissue of origin without a confounder.

    Organs have the same classes of tissue in the same shares. They differ in the scale of their
    texture: coarse, middle or fine. Its histogram is one for all, so that no statistic of colour
    tells an organ from another, and whoever names the organ has looked at structure. A confounded
    set is part of this one: keep one organ of each scanner.

    Parameters
    ----------
    folder
        Takes ``tiles/<image>.h5`` (layout of `mvhlib.tiles.store`) and ``labels.csv`` (the returned
        table).
    n_organs
        2 or 3; two are the coarse and the middle one.
    n_scanners
        Each has its own stain, blur and tone.
    patients_per_cell
        Patients, with one image each, of every organ at every scanner.
    tiles_per_image
        At least 9, of which 8 are tumour.
    scanner_strength
        0: scanners are alike.
    contrast
        Share of the texture's variance at the organ's own scale; the other scales share the rest.

    Returns
    -------
    pd.DataFrame
        image, patient, label (the organ), study (the scanner).

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    import pandas as pd

    from mvhlib.tiles.cut import Tiles
    from mvhlib.tiles.store import write_tiles

    for name, value, low, high in (
            ("n_organs", n_organs, 2, len(BANDS)), ("n_scanners", n_scanners, 1, 26),
            ("patients_per_cell", patients_per_cell, 1, 1000),
            ("tiles_per_image", tiles_per_image, 9, 10_000), ("tile_px", tile_px, 36, 1024),
            ("mpp", mpp, 0.1, 10), ("scanner_strength", scanner_strength, 0, 4),
            ("contrast", contrast, 0, 1)):
        if not low <= value <= high:
            raise InputError("synthetic organs", name, f"is {value}", f"use {low} to {high}")
    if version != VERSION:
        raise InputError("synthetic organs", "version", f"{version!r} is not {VERSION!r}",
                         f"ask for version {VERSION!r}")
    folder, rows = Path(folder), []
    looks = _appearances(_plan_studies(_rng(seed, 3, 0), n_scanners)[2], *[scanner_strength] * 3)
    for organ, scanner, number in np.ndindex(n_organs, n_scanners, patients_per_cell):
        draw = _rng(seed, 3, 1, organ, scanner, number)
        power = np.full(len(BANDS), (1 - contrast) / (len(BANDS) - 1))
        power[organ] = contrast
        kind, grade, planted = _draw_bag(draw, tiles_per_image, False, 0.0)
        jitter = np.exp(0.06 * scanner_strength * draw.standard_normal(2))
        look = replace(looks[scanner], gains=tuple(np.array(looks[scanner].gains) * jitter))
        img, coords = _draw_tiles(draw, kind, grade, planted, look, tile_px, mpp,
                                  contrast=np.repeat(np.sqrt(power / 2), 2))
        name = f"{list(BANDS)[organ]}-scanner{scanner + 1}-{number + 1:02d}"
        write_tiles(folder / "tiles" / f"{name}.h5", Tiles(
            img, coords, np.zeros(len(img), np.float32), tile_px, tile_px * mpp, mpp, mpp,
            [f"{x // tile_px}x{y // tile_px}" for x, y in coords]))
        rows.append((name, f"OP{len(rows) + 1:04d}", f"{list(BANDS)[organ]} organ",
                     f"scanner{scanner + 1}"))
    table = pd.DataFrame(rows, columns=["image", "patient", "label", "study"])
    write_csv(folder / "labels.csv", table)
    return table


def _draw_bag(rng: np.random.Generator, n: int, msi: bool, spread: float
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, grade and whether it is invaded, of each of `n` tiles, shuffled."""
    share = rng.dirichlet(7 * np.array(list(_SLIDE_CLASSES.values())))
    number = rng.multinomial(n - 8, share)
    number[list(_SLIDE_CLASSES).index("tumour")] += 8
    kind = rng.permutation(np.repeat([CLASSES.index(tissue) for tissue in _SLIDE_CLASSES], number))
    tumour = np.flatnonzero(kind == CLASSES.index("tumour"))
    invaded, grade = np.zeros(n, dtype=bool), np.zeros(n)
    if msi:
        invaded[tumour[:rng.integers(2, 5)]] = True
    plain = tumour[~invaded[tumour]]
    # evenly spaced grades, so that mean and spread of the bag are exact and none runs away
    even = np.linspace(-1, 1, len(plain))
    grade[rng.permutation(plain)] = spread * even / even.std()
    return kind, grade, invaded


def _draw_tiles(rng: np.random.Generator, kind: np.ndarray, grade: np.ndarray,
                invaded: np.ndarray, look: _Appearance, tile_px: int, mpp: float,
                contrast: np.ndarray | float = 6**-0.5) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(T, S, S, 3)` and corners `(T, 2)` of the tiles of one slide.

    `contrast` is the RMS of the six textures `(6,)`, squares summing to 1.
    """
    side = int(np.ceil(np.sqrt(len(kind))))
    shape = (side * tile_px, side * tile_px)

    def mosaic(values: np.ndarray) -> np.ndarray:
        grid = np.full(side * side, 0, dtype=values.dtype)
        grid[:len(values)] = values
        return np.kron(grid.reshape(side, side), np.ones((tile_px, tile_px), values.dtype))

    labels = mosaic(kind.astype(np.int8))
    labels[mosaic(invaded.astype(np.int8)).astype(bool) & (_field(rng, shape, 14 / mpp) > 0.2)] = \
        CLASSES.index("lymphocytes")
    layout = _lay_out(rng, labels, mpp, np.ones(shape), grade=mosaic(grade))
    texture = _texture(rng, side, tile_px, np.full((side, side, 6), contrast),
                       np.full((side, side), look.blur_um / mpp))
    pixels = _expose(layout, 0.28 * texture, look, mpp)
    tiles = pixels.reshape(side, tile_px, side, tile_px, 3).swapaxes(1, 2)
    row, column = np.divmod(np.arange(len(kind)), side)
    return (tiles.reshape(-1, tile_px, tile_px, 3)[:len(kind)],
            np.stack([column, row], 1).astype(np.int64) * tile_px)


def _follow(rng: np.random.Generator, log_hazard: np.ndarray, event_rate: float
            ) -> tuple[np.ndarray, np.ndarray]:
    """Time [months] and event; Weibull times, uniform censoring of a length that gives the rate."""
    n = len(log_hazard)
    shape = 1.2
    death = 70 * (rng.exponential(size=n) * np.exp(-log_hazard)) ** (1 / shape)
    follow_up = rng.uniform(0.1, 1, n)
    # at length L the patients with death <= L * follow_up have their event seen
    length = np.quantile(death / follow_up, event_rate)
    time = np.minimum(death, length * follow_up)
    return np.maximum(np.round(time, 1), 0.1), (death <= length * follow_up).astype(int)
