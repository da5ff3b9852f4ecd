"""Images of a section: the user's full one, or Space Ranger's reduced ones, and their sizes."""

import logging
import os
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError, check_file
from mvhlib.cohort.base import ImageRef
from mvhlib.cohort.visium.layouts import first_of
from mvhlib.cohort.visium.scale import agree, scale_factor
from mvhlib.tiles.slides import open_slide

log = logging.getLogger(__name__)

#: Endings of the reduced images: Space Ranger's, and those that people convert them to.
REDUCED = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def find_image(row: dict[str, Any], root: Path, spatial: Path,
               scalefactors: dict[str, Any]) -> tuple[Path | None, float]:
    """The user's full image at scale 1, else Space Ranger's reduced one with its scale."""
    where = spatial / "scalefactors_json.json"
    reduced = _reduced(spatial)
    if "image" in row:
        path = full_image(row, root)
        _check_sizes(path, 1.0, reduced, scalefactors, where)
        return path, 1.0
    for size, path in reduced.items():
        scale = scale_factor(scalefactors, f"tissue_{size}_scalef", where, needed=True)
        others = {other: at for other, at in reduced.items() if other != size}
        _check_sizes(path, scale, others, scalefactors, where)
        return path, scale
    return None, 1.0


def full_image(row: dict[str, Any], root: Path) -> Path:
    """The full image that a row of the samples table names."""
    path = root / str(row["image"])
    if not os.path.lexists(path):
        raise InputError(path, "image", "does not exist", "correct the path of the full image")
    return check_file(path, "image")


def _reduced(spatial: Path) -> dict[str, Path]:
    """Space Ranger's reduced images that are there; a link that leads nowhere is an error."""
    found = {}
    for size in ("hires", "lowres"):
        name = f"tissue_{size}_image"
        path = first_of(spatial, tuple(f"{name}{ending}" for ending in REDUCED))
        if path is None and (packed := first_of(spatial, (f"{name}.png.gz", f"{name}.jpg.gz"))):
            raise InputError(packed, "image", "is packed", "unpack it")
        if path is not None:
            found[size] = check_file(path, "image")
    return found


def _size(path: Path) -> tuple[int, int]:
    with open_slide(path) as slide:
        return slide.width, slide.height


def _check_sizes(image: Path, scale: float, others: dict[str, Path],
                 scalefactors: dict[str, Any], where: Path) -> None:
    """Refuse an image whose size does not fit that of the reduced ones and their scale factors."""
    size = None
    for other, path in others.items():
        factor = scale_factor(scalefactors, f"tissue_{other}_scalef", where)
        if factor is None:
            continue
        try:
            found = _size(path)
        except InputError as error:
            log.warning("%s is not compared with %s, which cannot be read (%s)", image, path, error)
            continue
        size = size or _size(image)
        expected = [side * scale / factor for side in found]
        # A side of the reduced image is rounded to a whole pixel.
        if any(abs(a - b) > max(0.01 * b, 1.5 * scale / factor)
               for a, b in zip(size, expected, strict=True)):
            raise InputError(
                image, "image", f"is {size[0]} x {size[1]} px, but {path.name} ({found[0]} x "
                f"{found[1]} px at tissue_{other}_scalef {factor:.4g}) says "
                f"{expected[0]:.0f} x {expected[1]:.0f}",
                "give the image that Space Ranger was given, not a reduced, turned or cropped one")


def image_ref(image: Path, root: Path, stated: bool, mpp: float) -> tuple[ImageRef,
                                                                          tuple[int, int]]:
    """Record of an image; one outside the data directory keeps its absolute path."""
    with open_slide(image) as slide:
        size = (slide.width, slide.height)
        if not stated:
            agree(slide.mpp, mpp, image, "mpp", "the positions say",
                  "pass mpp= to say which one holds, or give the image that they describe")
    inside = image.absolute().is_relative_to(root.absolute())
    path = image.absolute().relative_to(root.absolute()) if inside else image.absolute()
    return ImageRef(str(path)), size
