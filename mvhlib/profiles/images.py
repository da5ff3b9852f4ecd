"""Kinds of images without expression: labelled ones, and whole slides."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mvhlib import tables
from mvhlib.artifacts import InputError
from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import Found, Row
from mvhlib.tiles import labelled
from mvhlib.tiles.slides import WHOLE_SLIDE, open_slide

SAYS = {"glas": "labelled images with patients, listed in a csv",
        "mhist": "labelled images in MHIST's layout, without patients",
        "folder": "labelled images, a folder or a beginning of the name for each class"}
#: Images whose headers are read to learn their scale.
_MOST_OPENED = 20


def _has_columns(root: Path, columns: set[str]) -> bool:
    for path in [*root.glob("*.csv"), *root.glob("*/*.csv")]:
        try:
            if columns <= set(tables.read_table(path, any_row=True).columns):
                return True
        except InputError:
            continue
    return False


def holds_glas(root: Path) -> bool:
    return _has_columns(root, {"image", "patient_id", "label"})


def holds_mhist(root: Path) -> bool:
    return _has_columns(root, {"Image Name", "Majority Vote Label"})


def holds_folder(root: Path) -> bool:
    """Two classes at least, each a folder of images or a beginning of their names."""
    if holds_glas(root) or holds_mhist(root) or holds_slides(root):
        return False
    below = [folder.name for folder in root.glob("*/") if not folder.name.startswith(".")
             and any(path.suffix.lower() in labelled.IMAGES for path in folder.iterdir())]
    here = Counter(path.stem.partition("-")[0] for path in root.iterdir()
                   if path.suffix.lower() in labelled.IMAGES and "-" in path.stem)
    return len(below) > 1 or (not below and len(here) > 1)


def look_labelled(kind: str) -> Callable[[Path], Found]:
    def look(root: Path) -> Found:
        images = labelled.read(kind, root)
        scales = {image.name: _scale(image.path) for image in images[:_MOST_OPENED]}
        stated = all(scale is not None for scale in scales.values())
        rows = [Row(image.name, facts={
            "patient": image.patient or None, "label": image.label,
            "mpp": scales.get(image.name) if stated else BLANK}) for image in images]
        used = {image.path.relative_to(root).parts[0] for image in images}
        used |= {path.name for path in root.glob("*.csv") if kind != "folder"
                 or path.name == "patients.csv"}
        advice = []
        if not stated:
            advice.append("The files do not state their scale: fill in labelled_mpp in 02_tiles.yaml.")
        if not any(image.patient for image in images):
            advice.append("Nobody says whose the images are: images are the unit of every table, and "
                          "one patient's may stand on both sides of a fold. patients.csv (image, "
                          "patient) in DATA changes that.")
        return Found(root, kind, SAYS[kind], kind, of="image", rows=rows, used=used, advice=advice)

    return look


def _scale(path: Path) -> float | None:
    with open_slide(path) as slide:
        return slide.mpp


def holds_slides(root: Path) -> bool:
    return (root / "slides.csv").is_file() or any(
        path.suffix.lower() in WHOLE_SLIDE for folder in (root, *root.glob("*/"))
        for path in folder.iterdir())
