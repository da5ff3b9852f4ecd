"""Size of a pixel, from the distance of spots; and the reduction of reduced images."""

import logging
import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.tiles.slides import open_slide

log = logging.getLogger(__name__)

#: Distance of neighbouring spots [µm] on the 1,007-spot arrays.
PITCH_UM = 200.0
#: Nearest spots [µm] on the 1,934-spot arrays: two 1,007-spot lattices, one set into the centres
#: of the other.
STAGGERED_PITCH_UM = PITCH_UM / 2**0.5


@dataclass(frozen=True)
class Lattice:
    """Lattice of one section's spots, which determines the scale of its pixels.

    Attributes
    ----------
    pitch_px
        Distance of nearest spots [px of the spot file].
    pitch_um
        The same distance on the array [µm].
    anisotropy
        Distance along x over distance along y, each per array step; 1 on a square lattice.
    staggered
        True for arrays that use every other position of their grid.
    """

    pitch_px: float
    pitch_um: float
    anisotropy: float
    staggered: bool

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the spot file [µm/px]."""
        return self.pitch_um / self.pitch_px


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image that its file does not state.

    Attributes
    ----------
    full_width_px
        Width of the full-resolution image that the spot file's pixels belong to [px].
    exclude
        Boxes `(x0, y0, x1, y1)` [px of this file] that are no tissue.
    dark_background
        True where the surroundings of the tissue are black.
    """

    full_width_px: float | None = None
    exclude: tuple[tuple[int, int, int, int], ...] = ()
    dark_background: bool | None = None


def measure_lattice(spots: pd.DataFrame, where, pitch_um: float | None = None) -> Lattice:
    """Measure how many pixels lie between neighbouring spots.

    An affine map from array positions to pixels is fitted to all spots by least squares, so that
    the jitter of single spots averages out and a turned array does no harm.

    Parameters
    ----------
    spots
        As from `read_spots`.
    pitch_um
        Distance of nearest spots [µm]; None takes `PITCH_UM`, or `STAGGERED_PITCH_UM` where the
        spots use every other array position.

    Raises
    ------
    InputError
        If all spots stand in one row or column, or their pixels do not follow the array.
    """
    pitch_um = None if pitch_um is None else positive(pitch_um, where, "pitch_um")
    position = spots[["array_x", "array_y"]].to_numpy(float)
    pixel = spots[["pixel_x", "pixel_y"]].to_numpy(float)
    design = np.column_stack([position - position.mean(0), np.ones(len(spots))])
    if np.linalg.matrix_rank(design) < 3:
        raise InputError(where, "x, y", "spots in one line do not give the scale",
                         "pass mpp= in micrometres per pixel")
    fitted = np.linalg.lstsq(design, pixel, rcond=None)[0]
    step_x, step_y = fitted[:2]  # px per array step
    across, along = np.linalg.norm(step_x), np.linalg.norm(step_y)
    parity = (spots["array_x"] + spots["array_y"]) % 2
    staggered = len(spots) > 4 and parity.nunique() == 1
    if staggered:
        pitch_px = (np.linalg.norm(step_x + step_y) + np.linalg.norm(step_x - step_y)) / 2
    else:
        pitch_px = (across + along) / 2
    if not pitch_px > 0 or min(across, along) == 0:
        raise InputError(where, "pixel_x, pixel_y", "do not change with the array position",
                         "give pixel positions of the image")
    off = float(np.median(np.linalg.norm(pixel - design @ fitted, axis=1)))
    if off > pitch_px / 2:
        raise InputError(where, "pixel_x, pixel_y", f"do not follow the array positions: half of "
                         f"the spots are more than {off:.0f} px from their place, and neighbours "
                         f"{pitch_px:.0f} px apart",
                         "give pixels and array positions of one section")
    if not staggered and abs(math.log(across / along)) > math.log(1.25):
        raise InputError(where, "pixel_x, pixel_y", f"neighbours are {across:.4g} px apart along x "
                         f"and {along:.4g} px along y, on a square array", "give pixels of an "
                         "image that was not stretched")
    if step_x[0] * step_y[1] - step_x[1] * step_y[0] < 0:
        log.warning("%s: pixels mirror the array; x and y may be swapped", where)
    default = STAGGERED_PITCH_UM if staggered else PITCH_UM
    return Lattice(float(pitch_px), float(pitch_um or default), float(across / along),
                   bool(staggered))


def estimate_scale(path: Path, facts: ImageFacts, spots: pd.DataFrame, lattice: Lattice) -> float:
    """Find how much an image was reduced, by laying the spots' footprint over its tissue.

    The reduction is the one parameter; the overlap (intersection over union) of tissue and
    footprint has one clear peak over it. Good to about one per cent: state the full width where
    it is known.

    Returns
    -------
    float
        Pixels of this image per pixel of the spot file.

    Raises
    ------
    InputError
        If no reduction makes the spots cover the tissue.
    """
    with open_slide(path, exclude=facts.exclude,
                    dark_background=bool(facts.dark_background)) as slide:
        thumbnail = slide.thumbnail(500).astype(int)
        shrink = thumbnail.shape[1] / slide.width
    height, width = thumbnail.shape[:2]
    tissue = thumbnail.max(axis=2) - thumbnail.min(axis=2) > 15  # stained, neither white nor grey
    if facts.dark_background:
        # White inside the tissue counts as well: its outline was cut out by hand.
        tissue |= thumbnail.max(axis=2) < 250
    pixel = spots[["pixel_x", "pixel_y"]].to_numpy()
    rows, columns = np.mgrid[:height, :width]

    def overlap(scale: float) -> float:
        half = lattice.pitch_px * scale / 2
        footprint = np.zeros_like(tissue)
        for x, y in pixel * scale:
            footprint[max(0, round(y - half)):max(0, round(y + half)),
                      max(0, round(x - half)):max(0, round(x + half))] = True
        return (footprint & tissue).sum() / max(1, (footprint | tissue).sum())

    reach = pixel.max(axis=0) + lattice.pitch_px / 2
    most = min(width / reach[0], height / reach[1]) * 1.02
    scales = most * 0.985 ** np.arange(100)
    best = max(scales, key=overlap)
    scales = best * np.linspace(0.985, 1.015, 31)
    best = max(scales, key=overlap)
    if overlap(best) < 0.6:
        raise InputError(path, "full_width_px",
                         f"the image is reduced and its scale cannot be found (best overlap of "
                         f"spots and tissue {overlap(best):.2f})",
                         "pass full_width_px={section: width of the full image in px}")
    # A cut-out at full scale has spots beyond it as well.
    if overlap(shrink) > overlap(best) - 0.05 and abs(math.log(best / shrink)) > 0.1:
        raise InputError(path, "image", "may be a cut-out of the full image or a reduced one: the "
                         f"spots cover its tissue either way ({overlap(shrink):.2f} and "
                         f"{overlap(best):.2f})", "give the whole image, or pass "
                         "full_width_px={section: width of the full image in px}")
    return float(best / shrink)


def positive(value: Any, where, field: str) -> float:
    """A number above 0 that a caller states."""
    if isinstance(value, bool) or not isinstance(value, (Real, np.number)) or \
            not 0 < float(value) < math.inf:
        raise InputError(where, field, f"is {value!r}", "give a number above 0")
    return float(value)


def share_beyond(spots: pd.DataFrame, size: tuple[int, int]) -> float:
    """Share of the selected spots whose pixel lies beyond an image of `size` (width, height)."""
    pixel = spots.loc[spots["selected"], ["pixel_x", "pixel_y"]].to_numpy()
    return float((pixel >= size).any(axis=1).mean())


def is_dark(path: Path) -> bool:
    """True where most of an image's outermost pixels are black."""
    with open_slide(path) as slide:
        brightest = slide.thumbnail(200).max(axis=2)
    border = np.concatenate([brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1]])
    return bool(np.median(border) < 40)


def scale_of(name: str, image: Path, size: tuple[int, int], facts: ImageFacts, spots: pd.DataFrame,
             lattice: Lattice) -> float:
    """Pixels of a reduced image per pixel of the spot file."""
    if facts.full_width_px is not None:
        return size[0] / facts.full_width_px
    scale = estimate_scale(image, facts, spots[spots["selected"]], lattice)
    log.warning("%s: %s is a reduced image; laid over its tissue, the spots give a full width of "
                "%.0f px (about 1 %% certain; full_width_px= states it)", name, image.name,
                size[0] / scale)
    return scale
