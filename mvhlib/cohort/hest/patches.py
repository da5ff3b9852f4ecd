"""Patches that HEST cut around spots: their file, their corners and the tiles they make."""

import glob
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib.artifacts import InputError, h5_array, h5_attr, h5_reader
from mvhlib.cohort.base import Section, check_mpp, check_scale, present

if TYPE_CHECKING:
    from mvhlib.tiles.cut import Tiles

log = logging.getLogger(__name__)

#: Side of a patch where nothing else tells [um/px]: patches are resampled to this.
PATCH_MPP = 0.5
#: A corner may miss half a patch from its spot by this share of the side.
CORNER_TOLERANCE = 0.25
#: Largest side of a patch [level-0 px].
LARGEST_PATCH_PX = 100_000


@dataclass(frozen=True)
class Patches:
    """A patch file, open."""

    img: Any  # h5 dataset (n, S, S, 3)
    coords: np.ndarray
    barcodes: list[str]
    side: int  # [px]
    source_px: float | None  # side in level-0 pixels, where it is stated
    mpp: float | None  # of level 0, where it is stated


@contextmanager
def open_patches(path: Path) -> Iterator[Patches]:
    with h5_reader(path) as stream:
        img = h5_array(stream, "img", kind="integer", ndim=4, read=False)
        key = next((name for name in ("barcode", "barcodes") if name in stream), None)
        if key is None:
            raise InputError(path, "barcode", f"is missing; the file has {sorted(stream)}",
                             "fetch the file again: patches are joined on barcode")
        names = [str(name) for name in h5_array(stream, key, kind="text", ndim=(1, 2)).reshape(-1)]
        coords = h5_array(stream, "coords", ndim=(2, 3)).astype(np.float64)
        if coords.shape[-1] != 2 or np.abs(coords).max(initial=0) > 1e8:
            raise InputError(path, "coords", f"of shape {coords.shape} are not positions of "
                             "corners, (n, 2)", "fetch the file again")
        coords = coords.reshape(-1, 2)
        if img.dtype != np.uint8 or img.shape[3] != 3 or img.shape[1] != img.shape[2] or \
                img.shape[1] == 0:
            raise InputError(path, "img", f"is {img.dtype} of shape {img.shape}",
                             "patches are uint8, (n, S, S, 3): fetch the file again")
        if not len(img) == len(coords) == len(names) or len(img) == 0:
            raise InputError(path, "img", f"has shape {img.shape} for {len(coords)} "
                             f"coords and {len(names)} names", "fetch the file again")
        if len(set(names)) < len(names):
            raise InputError(path, key, "stands more than once", "fetch the file again")
        if not all(name.strip() for name in names):
            raise InputError(path, key, "is blank", "fetch the file again")
        source, mpp = (h5_attr(img, name, above=0) for name in ("patch_size_src", "pixel_size"))
        if source is not None and source > LARGEST_PATCH_PX:
            raise InputError(path, "patch_size_src", f"is {source:g} px", "fetch the file again")
        yield Patches(img, coords, names, int(img.shape[1]),
                      None if source is None else float(source),
                      None if mpp is None else check_mpp(mpp, path, "pixel_size"))


def same_scale(cut: Patches, mpp: float | None, path: Path) -> None:
    """Refuse patches that were cut at another scale than the metadata state."""
    if mpp is not None and cut.mpp is not None:
        check_scale(cut.mpp, mpp, path, "pixel_size", said="is {:.4g} um/px",
                    seen="the metadata say pixel_size_um_estimated {:.4g}")


def find_corners(cut: Patches, names: Sequence[str], centers: np.ndarray, mpp: float | None,
                 path: Path) -> tuple[np.ndarray, float, np.ndarray]:
    """Top-left corners `(n, 2)`, the side in level-0 px, and the spot of each patch (-1: none).

    Files differ in what they state, and older ones are said to hold centres. The spots tell: a
    corner is half a side from its spot's centre, a centre is on it.
    """
    place = {name: index for index, name in enumerate(names)}
    spot = np.array([place.get(name, -1) for name in cut.barcodes])
    if (spot < 0).all():
        raise InputError(path, "barcode", f"none of {len(spot)} patches has a spot, for example "
                         f"{cut.barcodes[0]!r} against {next(iter(names))!r}",
                         "take patches and counts of one sample and release")
    joined = spot >= 0
    offset = float(np.median(centers[spot[joined]] - cut.coords[joined]))
    side, scale = cut.source_px, cut.mpp or mpp
    if side is None:
        # No attribute: half a side is what corners are off by; centres leave the usual scale.
        usual = None if scale is None else cut.side * PATCH_MPP / scale
        side = 2 * offset if offset > CORNER_TOLERANCE * cut.side else usual
        if side is None:
            raise InputError(path, "patch_size_src", "is missing, and the pixel size is not known",
                             "pass metadata= with HEST's csv")
    corners = None
    if abs(offset - side / 2) <= CORNER_TOLERANCE * side:
        corners = cut.coords
    elif abs(offset) <= CORNER_TOLERANCE * side:
        log.info("%s: coords are centres, not corners", path)
        corners = cut.coords - side / 2
    if corners is not None:
        # The median says nothing of single patches: with x and y swapped it may be right.
        off = np.abs(corners[joined] + side / 2 - centers[spot[joined]]).max(axis=1)
        far = off > side / 2
        if far.mean() > 0.05:
            raise InputError(path, "coords", f"of {int(far.sum())} of {len(far)} patches lie off "
                             f"their spot by more than half a patch ({side / 2:.0f} px)",
                             "take patches and counts of one sample and release")
        return corners, side, spot
    raise InputError(path, "coords", f"are {offset:.0f} px from the spots' centres, neither half a "
                     f"patch ({side / 2:.0f}) nor 0", "take patches and counts of one release")


def patch_file(path: str | Path, section: Section | str) -> Path | None:
    """The section's file of patches below `path`, or None where there is none."""
    name = section if isinstance(section, str) else section.name
    root = Path(path)
    found = [root / "patches" / f"{name}.h5",
             *sorted(root.glob(f"*/patches/{glob.escape(name)}.h5"))]
    return next((file for file in found if present(file, "patches")), None)


def tiles(path: str | Path, section: Section) -> "Tiles":
    """The tiles that HEST cut around the section's spots, as they are.

    Parameters
    ----------
    path
        Folder that the cohort was read from.
    section
        Of that cohort, or of the run's copy of it.

    Returns
    -------
    Tiles
        In the file's order, with top-left corners; spots without a patch are not among them, and
        patches without a spot are left out. Side and scale are the file's own.

    Raises
    ------
    InputError
        If there is no file, it does not fit the spots, or nothing tells its scale.
    """
    from mvhlib.tiles.store import read_tiles

    file = patch_file(path, section)
    if file is None:
        raise InputError(path, f"patches/{section.name}.h5", "does not exist",
                         "fetch the patches, or cut tiles from wsis")
    adata = section.adata
    with open_patches(file) as cut:
        corners, side, spot = find_corners(cut, list(adata.obs_names), adata.obsm["spatial"],
                                           section.mpp, file)
        same_scale(cut, section.mpp, file)
        mpp = cut.mpp or section.mpp
    if mpp is None:
        raise InputError(file, "pixel_size", "is not stated, and the section has no scale",
                         "pass metadata= with HEST's csv")
    if section.mpp is not None and abs(mpp / section.mpp - 1) > 0.02:
        log.warning("%s: pixel size is %.4g um/px, the metadata say %.4g", file, mpp, section.mpp)
    found = read_tiles(file, tile_um=side * mpp)
    found = replace(found, coords=np.rint(corners).astype(np.int64), source_mpp=float(mpp))
    log.info("%s: %d of %d spots have a patch; %d patches have no spot", section.name,
             int((spot >= 0).sum()), adata.n_obs, int((spot < 0).sum()))
    return found if (spot >= 0).all() else found.select(np.flatnonzero(spot >= 0))
