"""Tissue before any laboratory has touched it: classes, smooth fields, nuclei."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

VERSION = "1"
CLASSES = ("lumen", "gland", "stroma", "tumour", "lymphocytes")


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


_TISSUES = (
    _Tissue(0.03, 0.00, 40, 2.6, 2.2, 0.7, 0.15, 0.1),     # lumen: white, little debris
    _Tissue(0.42, 0.16, 4200, 5.2, 3.1, 0.85, 0.10, 0.15),  # gland: regular, elongated
    _Tissue(0.62, 0.03, 1300, 6.4, 1.9, 0.80, 0.20, 0.10),  # stroma: pink, few spindles
    _Tissue(0.40, 0.20, 3900, 6.2, 4.8, 0.70, 0.25, 0.45),  # tumour: large, vesicular, uneven
    _Tissue(0.26, 0.12, 8500, 3.2, 2.9, 1.15, 0.08, 0.10),  # lymphocytes: small, round, dark
)


def generator(seed: int, *key: int) -> np.random.Generator:
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


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], step: float) -> np.ndarray:
    """Smooth Gaussian field of mean 0 and variance 1 that decorrelates over about `step` px."""
    rows, columns = (_bspline(length, float(step)) for length in shape)
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


@dataclass
class Layout:
    """Tissue before any laboratory has touched it."""

    labels: np.ndarray  # (H, W) index into CLASSES, -1 off tissue
    haematoxylin: np.ndarray  # (H, W) background and nuclei [OD]
    eosin: np.ndarray  # (H, W) [OD]
    nuclei: np.ndarray  # (n, 2) centres (x, y) [px]


def draw_labels(rng: np.random.Generator, shape: tuple[int, int], mpp: float,
                tilt: np.ndarray) -> np.ndarray:
    """Class of every pixel; `tilt` (4,) shifts the patient's prevalences."""
    def field(microns: float) -> np.ndarray:
        return smooth_field(rng, shape, microns / mpp)

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


def lay_out(rng: np.random.Generator, labels: np.ndarray, mpp: float, crowding: np.ndarray,
            grade: np.ndarray | None = None) -> Layout:
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
    return Layout(labels, background[..., 1] + stained, eosin, nuclei)
