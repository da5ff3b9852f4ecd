"""Stain normalisation of tiles: the effect of dye and scanner, estimated and exchanged.

Two methods. Both are fitted on all tiles of one section, so that a section without tumour is not
stretched tile by tile, and both are deterministic.

``macenko``
    Optical density is additive in the stains (Beer and Lambert). The two stain vectors are the
    extreme directions of the tissue's pixels in the plane of the two largest eigenvectors of their
    optical densities; concentrations follow by least squares and are scaled to the target's
    99th percentiles (Macenko et al., "A method for normalizing histology slides for quantitative
    analysis", ISBI 2009).
``reinhard``
    Mean and standard deviation of the tissue's pixels in the lαβ space, where channels of natural
    images are nearly uncorrelated, are moved to the target's (Reinhard et al., "Color transfer
    between images", IEEE CG&A 2001; space by Ruderman et al., JOSA A 1998).

Nothing here sees expression. A target that is averaged over all sections has seen the images of
the test sections as well; `REFERENCE` has not.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from mvhlib.artifacts import InputError, read_attr, sha256_file, sha256_of
from mvhlib.tiles.cut import Tiles
from mvhlib.tiles.store import read_tiles, write_tiles

#: Intensity of light that no tissue has absorbed.
WHITE = 255.0

#: Least optical density (natural logarithm, mean of the channels) of a pixel that counts as tissue.
#: Macenko requires it in every channel, which drops pure eosin, as it hardly absorbs red.
TISSUE_OD = 0.15

#: Share of pixels beyond each extreme direction, against outliers [%].
EXTREME_PERCENT = 1.0

#: Percentile of the concentrations that stands for "fully stained" [%].
STRONG_PERCENT = 99.0

#: Most pixels that a fit looks at; beyond, every k-th is taken.
MOST_PIXELS = 400_000

#: Fewer tissue pixels than this tell nothing of a stain.
LEAST_PIXELS = 100

#: Two stain vectors closer than this are one stain [degrees].
LEAST_ANGLE = 2.0

#: RGB to cone responses (Reinhard et al. 2001), its rows scaled to sum 1 so that grey stays grey,
#: and logarithms of cone responses to lαβ.
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LMS = _LMS / _LMS.sum(axis=1, keepdims=True)
_LAB = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3.0], [6.0], [2.0]])


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """Optical density `-ln(I / 255)` of every channel, float64; black counts as intensity 1."""
    return -np.log(np.clip(np.asarray(pixels, dtype=np.float64), 1.0, WHITE) / WHITE)


def intensity(density: np.ndarray) -> np.ndarray:
    """Intensity 0 to 255, float64, of an optical density; the inverse of `optical_density`."""
    return np.clip(WHITE * np.exp(-np.asarray(density, dtype=np.float64)), 0.0, WHITE)


def is_tissue(pixels: np.ndarray, threshold: float = TISSUE_OD) -> np.ndarray:
    """Mask `(...)` of the pixels of RGB `(..., 3)` that absorb light."""
    return optical_density(pixels).mean(axis=-1) > threshold


def tissue_pixels(images: np.ndarray, threshold: float = TISSUE_OD,
                  most: int = MOST_PIXELS) -> np.ndarray:
    """Pixels that absorb light, `(n, 3)` float64, at most `most` evenly picked.

    Raises
    ------
    InputError
        If the images are not RGB, or hold fewer than 100 such pixels.
    """
    images = np.asarray(images)
    if images.ndim < 2 or images.shape[-1] != 3:
        raise InputError("stain", "images", f"have shape {images.shape}", "give (..., 3) RGB")
    flat = images.reshape(-1, 3)
    # Picked before and after the threshold: the first keeps memory small, the second the fit even.
    flat = flat[::max(1, len(flat) // (4 * most))]
    dark = flat[is_tissue(flat, threshold)]
    if len(dark) < LEAST_PIXELS:
        raise InputError("stain", "tissue", f"{len(dark)} pixels absorb light, {LEAST_PIXELS} are "
                         "needed", "leave out tiles of background, or lower the threshold")
    return dark[::max(1, len(dark) // most)].astype(np.float64)


def estimate_stains(images: np.ndarray, *, threshold: float = TISSUE_OD,
                    percent: float = EXTREME_PERCENT) -> np.ndarray:
    """Stain vectors `(2, 3)` by Macenko's method: rows haematoxylin, eosin, of unit length.

    Parameters
    ----------
    images
        RGB `(..., 3)`, 0 to 255.
    threshold
        Least optical density of a tissue pixel, mean of its channels.
    percent
        Share of pixels that may lie beyond either vector [%].

    Raises
    ------
    InputError
        If there is too little tissue, or one stain only.
    """
    density = optical_density(tissue_pixels(images, threshold))
    # The plane through the origin: Beer-Lambert has no offset, so nothing is centred.
    _, vectors = np.linalg.eigh(density.T @ density)
    plane = vectors[:, [2, 1]]
    if plane[:, 0].sum() < 0:
        plane[:, 0] = -plane[:, 0]
    projected = density @ plane
    angle = np.arctan2(projected[:, 1], projected[:, 0])
    low, high = np.percentile(angle, [percent, 100 - percent])
    if np.degrees(high - low) < LEAST_ANGLE:
        raise InputError("stain", "stains", f"lie {np.degrees(high - low):.2f} degrees apart: one "
                         "stain only", "use reinhard, or images stained with two dyes")
    stains = np.stack([plane @ [np.cos(a), np.sin(a)] for a in (low, high)])
    stains = np.maximum(stains, 0.0)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    # Haematoxylin is blue: of the two it absorbs more red for the blue that it absorbs.
    blueness = stains[:, 0] - stains[:, 2]
    return stains[np.argsort(-blueness, kind="stable")]


def concentrations(images: np.ndarray, stains: np.ndarray) -> np.ndarray:
    """Concentrations `(..., 2)` by least squares; negative ones, which no dye has, become 0."""
    density = optical_density(images)
    found = density @ np.linalg.pinv(np.asarray(stains, dtype=np.float64))
    return np.maximum(found, 0.0)


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """lαβ `(..., 3)` of RGB; black counts as intensity 1."""
    light = np.clip(np.asarray(pixels, dtype=np.float64), 1.0, WHITE) / WHITE
    return np.log10(light @ _LMS.T) @ _LAB.T


def from_lab(lab: np.ndarray) -> np.ndarray:
    """RGB 0 to 255, float64, of lαβ; the inverse of `to_lab` inside the gamut."""
    light = 10.0 ** (np.asarray(lab, dtype=np.float64) @ np.linalg.inv(_LAB).T)
    return np.clip(WHITE * (light @ np.linalg.inv(_LMS).T), 0.0, WHITE)


@dataclass(frozen=True)
class Macenko:
    """How a section is stained, by Macenko's method.

    Attributes
    ----------
    stains
        `(2, 3)`, rows haematoxylin and eosin, unit length.
    strong
        99th percentile of each concentration over tissue, `(2,)`.
    """

    name: ClassVar[str] = "macenko"
    stains: np.ndarray
    strong: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray) -> "Macenko":
        """Estimate from RGB `(..., 3)`; raises as `estimate_stains`."""
        stains = estimate_stains(images)
        strong = np.percentile(concentrations(tissue_pixels(images), stains), STRONG_PERCENT,
                               axis=0)
        return cls(stains, strong)

    @classmethod
    def average(cls, profiles: "list[Macenko]") -> "Macenko":
        """Mean vectors, scaled to unit length again, and geometric mean concentrations."""
        stains = np.mean([profile.stains for profile in profiles], axis=0)
        stains /= np.linalg.norm(stains, axis=1, keepdims=True)
        return cls(stains, np.exp(np.mean([np.log(p.strong) for p in profiles], axis=0)))

    def move(self, images: np.ndarray, target: "Macenko") -> np.ndarray:
        """`images` of this section, float64 0 to 255, stained like `target`.

        What the two stains do not explain (pigment, pen, camera noise) is dropped.
        """
        amount = concentrations(images, self.stains) * (target.strong / self.strong)
        return intensity(amount @ target.stains)


@dataclass(frozen=True)
class Reinhard:
    """How a section is stained, by Reinhard's method.

    Attributes
    ----------
    mean, spread
        Of the tissue's pixels in lαβ, `(3,)` each.
    """

    name: ClassVar[str] = "reinhard"
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray) -> "Reinhard":
        """Estimate from RGB `(..., 3)`.

        Raises
        ------
        InputError
            If there is too little tissue, or it has one colour only.
        """
        lab = to_lab(tissue_pixels(images))
        spread = lab.std(axis=0)
        if spread.min() < 1e-9:
            raise InputError("stain", "colours", "do not vary", "give tiles with tissue")
        return cls(lab.mean(axis=0), spread)

    @classmethod
    def average(cls, profiles: "list[Reinhard]") -> "Reinhard":
        """Mean of the means, geometric mean of the spreads."""
        return cls(np.mean([p.mean for p in profiles], axis=0),
                   np.exp(np.mean([np.log(p.spread) for p in profiles], axis=0)))

    def move(self, images: np.ndarray, target: "Reinhard") -> np.ndarray:
        """`images` of this section, float64 0 to 255, coloured like `target`.

        Pixels without tissue stay as they are: the shift of the tissue's mean would tint the
        glass.
        """
        images = np.asarray(images, dtype=np.float64)
        moved = from_lab((to_lab(images) - self.mean) * (target.spread / self.spread)
                         + target.mean)
        return np.where(is_tissue(images)[..., None], moved, images)


METHODS = {"macenko": Macenko, "reinhard": Reinhard}

#: A target that no data has been seen for: the vectors of Ruifrok and Johnston (Anal. Quant. Cytol.
#: Histol. 2001) at concentrations of an ordinary stain.
REFERENCE = Macenko(
    np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
    / np.linalg.norm([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]], axis=1, keepdims=True),
    np.array([1.8, 1.0]))


def profiles(images: Mapping[str, np.ndarray], method: str = "macenko"
             ) -> dict[str, Macenko | Reinhard]:
    """Fit every section by itself.

    Parameters
    ----------
    images
        Section -> RGB `(T, S, S, 3)`.
    method
        ``"macenko"`` or ``"reinhard"``.

    Raises
    ------
    InputError
        On an unknown method, and with the section's name on what `fit` refuses.
    """
    if method not in METHODS:
        raise InputError("stain", "method", f"{method!r} is not known",
                         f"use one of {list(METHODS)}")
    found = {}
    for section, pixels in images.items():
        try:
            found[section] = METHODS[method].fit(pixels)
        except InputError as error:
            raise InputError(section, error.field, error.problem, error.fix) from error
    return found


def average(fitted: Mapping[str, Macenko | Reinhard]) -> Macenko | Reinhard:
    """The middle of several sections' profiles, as a target.

    Give training sections only where the target must not know the test images.
    """
    kinds = {type(profile) for profile in fitted.values()}
    if len(kinds) != 1:
        raise InputError("stain", "profiles", f"are of {len(kinds)} methods",
                         "give profiles of one method, at least one")
    return kinds.pop().average(list(fitted.values()))


def normalise(images: np.ndarray, profile: Macenko | Reinhard, target: Macenko | Reinhard, *,
              as_float: bool = False, chunk: int = 64) -> np.ndarray:
    """Exchange the stain of one section's tiles.

    Parameters
    ----------
    images
        RGB `(T, S, S, 3)` uint8.
    profile
        Of this section.
    target
        What to look like; of the same method.
    as_float
        float32 instead of rounded uint8.
    chunk
        Tiles held in float64 at once.

    Raises
    ------
    InputError
        On profiles of two methods.
    """
    if type(profile) is not type(target):
        raise InputError("stain", "target", f"is of {target.name}, the section's profile of "
                         f"{profile.name}", "fit both by one method")
    images = np.asarray(images)
    out = np.empty(images.shape, dtype=np.float32 if as_float else np.uint8)
    for start in range(0, len(images), chunk):
        moved = profile.move(images[start:start + chunk], target)
        out[start:start + chunk] = moved if as_float else np.rint(moved)
    return out


def normalise_folder(tiles_dir: str | os.PathLike, out_dir: str | os.PathLike,
                     method: str = "macenko", *,
                     target: Macenko | Reinhard | None = None) -> dict[str, Macenko | Reinhard]:
    """Write every tile file of a folder again with its stain exchanged.

    Files that were made from the same tiles, method and target are kept.

    Parameters
    ----------
    tiles_dir, out_dir
        Hold and get ``<section>.h5``.
    method
        ``"macenko"`` or ``"reinhard"``.
    target
        None: the average of all sections of the folder, test sections included (their images, not
        their expression).

    Returns
    -------
    dict
        Section -> its profile before.
    """
    tiles_dir, out_dir = Path(tiles_dir), Path(out_dir)
    paths = sorted(tiles_dir.glob("*.h5"))
    if not paths:
        raise InputError(tiles_dir, "tiles", "no section has an h5 file here",
                         "cut them by 02_tiles")
    if tiles_dir.resolve() == out_dir.resolve():
        raise InputError(out_dir, "folder", "holds the tiles that are to be normalised",
                         "write to another folder")
    # One section at a time: a cohort's tiles need not fit into memory.
    fitted = {path.stem: profiles({path.stem: read_tiles(path).img}, method)[path.stem]
              for path in paths}
    target = average(fitted) if target is None else target
    for path in paths:
        content = [getattr(target, name) for name in target.__dataclass_fields__]
        key = sha256_of(sha256_file(path), method, *content)
        if read_attr(out_dir / path.name, "key") == key:
            continue
        tiles: Tiles = read_tiles(path)
        write_tiles(out_dir / path.name,
                    replace(tiles, img=normalise(tiles.img, fitted[path.stem], target)), key=key)
    return fitted


def colour_statistics(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel's optical density per tile, `(T, 6)` float64.

    The least that an image gives away; a reference below learned features.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise InputError("stain", "images", f"have shape {images.shape}", "give (T, S, S, 3)")
    flat = images.reshape(len(images), -1, 3)
    rows = [optical_density(tile) for tile in flat]
    return np.array([np.r_[row.mean(axis=0), row.std(axis=0)] for row in rows]).reshape(-1, 6)
