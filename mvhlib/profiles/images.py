"""Kinds of images without expression: labelled ones, and whole slides."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mvhlib import tables
from mvhlib.artifacts import InputError
from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import Found, Row
from mvhlib.profiles.listed import own_table
from mvhlib.profiles.names import unsafe
from mvhlib.profiles.permissions import open_folders
from mvhlib.tiles import labelled, whole
from mvhlib.tiles.slides import open_slide

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


def _groups(root: Path) -> Counter[str]:
    """Images of each folder; where no folder has one, of each beginning of a name."""
    below = Counter({folder.name: n for folder in open_folders(root, 1)[1:] if (n := sum(
        path.suffix.lower() in labelled.IMAGES for path in folder.iterdir()))})
    return below or Counter(path.stem.partition("-")[0] for path in root.iterdir()
                            if path.suffix.lower() in labelled.IMAGES and "-" in path.stem)


def _are_classes(groups: Counter[str]) -> bool:
    """Two classes with two images each: groups of one are slides, or patients, and no classes."""
    return sum(n > 1 for n in groups.values()) > 1


def holds_folder(root: Path) -> bool:
    """True for two classes or more, each a folder of images or a prefix of their names."""
    return not (holds_glas(root) or holds_mhist(root) or holds_slides(root)) and \
        _are_classes(_groups(root))


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
            advice.append("The files do not state their scale: fill in labelled_mpp in "
                          "02_tiles.yaml.")
        if not any(image.patient for image in images):
            advice.append("No file says which patient each image is of: the image is the unit of "
                          "every table, and images of one patient may be on both sides of a fold. "
                          "Add patients.csv (image, patient) to DATA to change that.")
        return Found(root, kind, SAYS[kind], kind, of="image", rows=rows, used=used, advice=advice)

    return look


def _scale(path: Path) -> float | None:
    with open_slide(path) as slide:
        return slide.mpp


def holds_slides(root: Path) -> bool:
    """True for whole slides, a table of them, or images without classes."""
    if (root / "slides.csv").is_file() or whole.find(root):
        return True
    if holds_glas(root) or holds_mhist(root):
        return False
    groups = _groups(root)
    if len(groups) > 1:
        return not _are_classes(groups)
    return not open_folders(root, 1)[1:] and bool(whole.find(root, whole.IMAGES))


def look_slides(root: Path) -> Found:
    """Slides by their table, else by their files: of each the scale is read off its header."""
    listed = (root / "slides.csv").is_file()
    files = [] if listed else whole.find(root) or whole.find(root, whole.IMAGES)
    unnamed = {path: said for path in files if (said := unsafe(path, root))}
    slides = whole.read(root) if listed else whole.of_files(
        root, [path for path in files if path not in unnamed])
    rows = [_slide_row(slide, root) for slide in slides]
    rows += [Row(path.stem, problem=said) for path, said in unnamed.items()]
    used = {path.relative_to(root).parts[0] for path in [*files, *(s.path for s in slides)]}
    found = Found(root, "slides", "whole slides" + (", listed in slides.csv" if listed else ""),
                  "slides", of="slide", rows=rows,
                  used=used | ({"slides.csv"} if listed else set()),
                  table=() if listed else whole.COLUMNS)
    found.options = {"endpoints": whole.endpoints(slides)}
    if listed:
        own_table(found)
    else:
        found.advice = ["patient, study, label, time and event may stay blank: tiles and features "
                        "need none of them, 07_classification needs patient and label, 09_survival "
                        "patient, time [months] and event (1: seen, 0: censored)."]
    return found


def _slide_row(slide: whole.WholeSlide, root: Path) -> Row:
    cells = {"slide": str(slide.path.relative_to(root))}
    try:
        whole.check_readable(slide.path)
        with open_slide(slide.path, mpp=slide.mpp) as pixels:
            scale, size = pixels.mpp, f"{pixels.width} x {pixels.height} px"
    except InputError as error:
        return Row(slide.name, cells, problem=str(error))
    if scale is None:
        cells["mpp"] = BLANK
    return Row(slide.name, cells, {
        "patient": slide.patient or None, "study": slide.study or None,
        "label": slide.label or None, "mpp": BLANK if scale is None else scale, "image": size})
