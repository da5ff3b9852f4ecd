"""Labelled images: readers of three published layouts, and their cutting into tiles.

==========  ====================================================================================
kind        layout
==========  ====================================================================================
``folder``  one folder per class, or class names in front of file names (``TUM-AACHEHDV.tif``):
            NCT-CRC-HE (Kather et al. 2018), UniToPatho (Barbano et al. 2021)
``mhist``   a csv with ``Image Name``, ``Majority Vote Label`` (Wei et al. 2021), images anywhere
``glas``    ``labels.csv`` with image, patient_id, label and, where known, grade; images anywhere
            (Sirinukunwattana et al. 2017)
==========  ====================================================================================

Images are found below the folder by name, whatever their format and sub-folder. A label without
an image, or an image without a label, is an error: a set that shrinks in silence is another set.

==========  ====================================================================================
what        how it is read
==========  ====================================================================================
tables      as `mvhlib.tables.read_table` does; other csv files beside it are passed over
image       a name with or without folder and ending; once in the table, once below the folder
label       text, of every image; neither blank nor ``NA``
patient     text, of every image or of none; ``NA``, ``unknown`` and the like name nobody
links       are followed; one that leads nowhere, or back to where it lies, is refused
classes     folders at the top, or beginnings of names; blanks around them do not count, two that
            differ in case are refused, and so are ``train`` and ``test`` with classes inside
files       hidden ones (``.x``, ``._x``), and what a run wrote, are passed over
==========  ====================================================================================

NCT-CRC-HE and MHIST are published without patients. Where nobody says who an image is of, `patient`
is empty, images are the unit of what is computed, and no grouped evaluation is possible.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import tables
from mvhlib.artifacts import (
    OUTPUTS,
    InputError,
    check_file,
    check_sayable,
    check_spelling,
    is_output,
    read_attr,
    safe_name,
    sha256_file,
    sha256_of,
    write_csv,
)
from mvhlib.tiles.cut import Tiles, cut_at, cut_spots
from mvhlib.tiles.slides import TIFF, WHOLE_SLIDE, Slide, open_slide
from mvhlib.tiles.store import coordinate_names, manifest_row, write_tiles

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("folder", "mhist", "glas")

#: Endings of files that are looked at as images.
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", *TIFF, *WHOLE_SLIDE)

#: Folders that hold a part of a set, and its classes inside.
_PART = re.compile(r"(train|test|val|valid|dev|fold|split)(ing|idation|ation)?[ _-]?(set|data)?"
                   r"[ _-]?\d*", re.IGNORECASE)

#: The csv of MHIST and what its columns are called here.
_MHIST = {"Number of Annotators who Selected SSA (Out of 7)": "votes_ssa",
          "Number of Annotators who Selected SSA": "votes_ssa", "Partition": "partition"}


@dataclass(frozen=True)
class LabelledImage:
    """One image with its label.

    Attributes
    ----------
    name
        Unique in its set; names its files.
    path
        Where its pixels are.
    label
        Its class.
    patient
        Who it is of; empty where the set does not say.
    extra
        What else the set says (grade, partition, votes), by column.
    opened
        Options of `mvhlib.tiles.slides.open_slide` for this image, such as a scale of its own.
    centers
        Where its tiles lie, (x, y) of their centres `(T, 2)` [level-0 px]; None: in a grid.
    """

    name: str
    path: Path = field(repr=False)
    label: str
    patient: str = ""
    extra: dict[str, str] = field(default_factory=dict, repr=False)
    opened: dict[str, Any] = field(default_factory=dict, repr=False)
    centers: np.ndarray | None = field(default=None, repr=False, compare=False)


def read(kind: str, folder: str | os.PathLike, n_classes: int = 2) -> list[LabelledImage]:
    """Read a set of labelled images; pixels are not touched.

    Parameters
    ----------
    kind
        One of `KINDS`.
    folder
        The set's directory; links inside it are followed.
    n_classes
        Least number of classes.

    Returns
    -------
    list of LabelledImage
        Sorted by name.

    Raises
    ------
    InputError
        If labels and images do not fit each other one to one, a label is empty, a patient is
        named for some images only, or too few classes are found.
    """
    if kind not in KINDS:
        raise InputError("labelled images", "kind", f"{kind!r} is not known", f"use one of {KINDS}")
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "folder", "is not a directory", "give the set's directory")
    images = {"folder": _read_folder, "mhist": _read_mhist, "glas": _read_glas}[kind](folder)
    images = sorted(images, key=lambda image: image.name)
    without = [image for image in images if image.label.lower() in tables.NO_NAME]
    if without:
        said = {image.label for image in without} - {""}
        raise InputError(folder, "label", f"is {' or '.join(sorted(said)) or 'empty'} for "
                         f"{_some([image.name for image in without])}", "label every image")
    for image in images:
        safe_name(image.name, image.path, "name")
    for field_name in ("label", "patient"):
        check_sayable([getattr(image, field_name) for image in images], folder, field_name)
        check_spelling([getattr(image, field_name) for image in images], folder, field_name)
    one_file_each(folder, images)
    nobody = [image.name for image in images if not image.patient]
    if nobody and len(nobody) < len(images):
        raise InputError(folder, "patient", f"is empty for {_some(nobody)}",
                         "name the patient of every image or of none")
    if len({image.label for image in images}) < n_classes:
        raise InputError(folder, "label", f"has {len({i.label for i in images})} class",
                         f"give {n_classes} classes or more")
    return images


def one_file_each(where: str | os.PathLike, images: Sequence[LabelledImage],
                  of: Sequence[str] = ("label", "patient")) -> None:
    """Refuse links by which one file is an image of two classes (or two patients).

    Parameters
    ----------
    of
        Attributes that two images of one file must share.
    """
    first: dict[str, LabelledImage] = {}
    for image in images:
        other = first.setdefault(os.path.realpath(image.path), image)
        for name in of:
            said = {getattr(other, name), getattr(image, name)}
            if len(said) > 1:
                raise InputError(where, name, f"is {_some(sorted(said))} for one file, which is "
                                 f"both {other.name} and {image.name}", f"give it one {name}")


def _read_folder(folder: Path) -> list[LabelledImage]:
    """Class from the folder that an image lies in, else from its name before the first hyphen."""
    found = _find_images(folder)
    if not found:
        raise InputError(folder, "images", "are none below this folder",
                         f"use one of the endings {list(IMAGES)}")
    _check_classes(folder, found)
    labels = [path.relative_to(folder).parts[0].strip() if path.parent != folder
              else path.stem.partition("-")[0] if "-" in path.stem else "" for path in found]
    stems = Counter(path.stem for path in found)
    # Class folders that each begin at 1.png need the class in the name to tell them apart.
    repeated = max(stems.values()) > 1
    names = [f"{label}-{path.stem}" if repeated else path.stem
             for label, path in zip(labels, found, strict=True)]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise InputError(folder, "images", f"share a name: {_some(twice)}",
                         "give every image of a class a name of its own")
    patients = _patients(folder, names)
    return [LabelledImage(name, path, label, patients.get(name, _slide(path.stem)))
            for name, path, label in zip(names, found, labels, strict=True)]


def _check_classes(folder: Path, found: Sequence[Path]) -> None:
    """Refuse folders that are parts of a set, with the folders of the classes inside them."""
    deep = {parts[0] for path in found if len(parts := path.relative_to(folder).parts) > 2}
    parts = sorted(name for name in deep if _PART.fullmatch(name.strip()))
    if len(parts) > 1 and len(parts) == len(deep):
        raise InputError(folder, "label", f"folders {', '.join(parts[:4])} are parts of a set and "
                         "no classes", "name one of them as the directory, or put the classes of "
                         "all of them side by side")


def _slide(stem: str) -> str:
    """The slide that UniToPatho writes in front of ``.ndpi``, each of another patient."""
    slide = re.match(r"(.+?)\.ndpi", stem)
    return slide[1] if slide else ""


def _patients(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Patients of a folder's images from ``patients.csv`` (image, patient), where there is one."""
    path = folder / "patients.csv"
    if not (path.exists() or path.is_symlink()):
        return {}
    rows = tables.read_table(path, ("image", "patient"))
    given = tables.names(rows, "image", path, none=tables.NO_NAME).map(
        lambda name: Path(name).stem if Path(name).suffix.lower() in IMAGES else name)
    _once(path, given)
    _same(path, set(given), set(names))
    return dict(zip(given, _named(path, rows, "patient"), strict=True))


def _named(path: Path, rows: "pd.DataFrame", column: str) -> list[str]:
    """Patients of a table; empty where it does not say who."""
    known = ~rows[column].str.lower().isin(tables.NOT_KNOWN)
    tables.names(rows[known], column, path)
    return list(rows[column].where(known, ""))


def _once(path: Path, stems: "pd.Series") -> None:
    twice = [stem for stem, n in Counter(stems).items() if n > 1]
    if twice:
        raise InputError(path, stems.name, f"stands more than once: {_some(twice)} (rows "
                         f"{list(stems.index[stems == twice[0]])[:3]})", "keep one row per image")


def _read_mhist(folder: Path) -> list[LabelledImage]:
    needed = ("Image Name", "Majority Vote Label")
    path, rows = _find_table(folder, needed)
    return _join(folder, path, rows, *needed, patient=None, extra={
        column: name for column, name in _MHIST.items() if column in rows})


def _read_glas(folder: Path) -> list[LabelledImage]:
    needed = ("image", "patient_id", "label")
    path, rows = _find_table(folder, needed)
    return _join(folder, path, rows, "image", "label", patient="patient_id", extra={
        column: column for column in rows if column not in needed})


def _join(folder: Path, table: Path, rows: "pd.DataFrame", name: str, label: str,
          patient: str | None, extra: dict[str, str]) -> list[LabelledImage]:
    """Bring the rows of a table and the images below a folder together, one to one."""
    given = tables.names(rows, name, table, none=tables.NO_NAME).map(_stem)
    _once(table, given)
    found = _find_images(folder)
    paths = {path.stem: path for path in found}
    if len(paths) < len(found):
        doubled = [stem for stem, n in Counter(path.stem for path in found).items() if n > 1]
        raise InputError(folder, "images", f"share a name: {_some(doubled)}",
                         "keep one file per image")
    _same(table, set(given), set(paths))
    patients = [""] * len(rows) if patient is None else _named(table, rows, patient)
    return [LabelledImage(stem, paths[stem], row[label], who,
                          {new: row[old] for old, new in extra.items()})
            for stem, who, row in zip(given, patients, rows.to_dict("records"), strict=True)]


def _same(table: Path, labelled: set[str], imaged: set[str]) -> None:
    """Refuse labels that miss images and images that miss labels, naming both."""
    problems = []
    if labelled - imaged:
        problems.append(f"{len(labelled - imaged)} rows miss an image: "
                        f"{_some(sorted(labelled - imaged))}")
    if imaged - labelled:
        problems.append(f"{len(imaged - labelled)} images miss a row: "
                        f"{_some(sorted(imaged - labelled))}")
    if problems:
        raise InputError(table, "images", "; ".join(problems),
                         "add what is missing, or take out what has no partner")


def _find_images(folder: Path) -> list[Path]:
    """Image files below a folder, through links, sorted; hidden files are none."""
    found = []
    for place, below, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        here = os.path.realpath(place)
        drawn = OUTPUTS if is_output(place) else ()
        below[:] = [name for name in below if not name.startswith(".") and name not in drawn]
        for name in below:
            path = Path(place) / name
            if path.is_symlink() and f"{here}/".startswith(f"{os.path.realpath(path)}/"):
                raise InputError(path, "folder", "is a link to a folder that holds it",
                                 "take the link out")
        for name in names:
            path = Path(place) / name
            if name.startswith("."):
                continue
            # A class folder behind a broken link looks like a file without an ending.
            is_image = path.suffix.lower() in IMAGES
            if is_image or path.is_symlink():
                check_file(path)
            if is_image:
                found.append(path)
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise InputError(error.filename, "folder", f"cannot be read ({error.strerror})",
                     "make it readable") from error


def _find_table(folder: Path, columns: Sequence[str]) -> "tuple[Path, pd.DataFrame]":
    """The one csv in or just below a folder that has `columns`."""
    candidates = sorted(path for pattern in ("*.csv", "*/*.csv") for path in folder.glob(pattern)
                        if not any(part.startswith(".") for part in
                                   path.relative_to(folder).parts))
    read, broken = {}, []
    for path in candidates:
        try:
            read[path] = tables.read_table(path, any_row=True)
        except InputError as error:
            broken.append(error)
    fitting = {path: table for path, table in read.items() if set(columns) <= set(table.columns)}
    if not fitting and broken:
        raise broken[0]
    if not fitting and len(read) == 1:  # the only one: its columns may be misspelt
        [(path, table)] = read.items()
        if any(name.casefold() in map(str.casefold, table.columns) for name in columns):
            tables.check_columns(path, list(table.columns), columns)
    if len(fitting) != 1:
        problem = (f"are two: {[path.name for path in fitting]}" if fitting else
                   f"is not there: no csv has the columns {list(columns)}; "
                   f"seen {[path.name for path in candidates]}")
        raise InputError(folder, "table of labels", problem, "keep the one csv that labels images")
    [(path, table)] = fitting.items()
    if len(table) == 0:
        raise InputError(path, "rows", "are none", "give one row per image")
    return path, table


def _stem(name: str) -> str:
    """A table's image name without folder and ending."""
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGES else path.name


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def corners(slide: Slide, tile_um: float) -> tuple[np.ndarray, float]:
    """Where to cut an image, `(T, 2)` [level-0 px], and how wide a tile is there [µm].

    As many tiles as fit along each side, rounded, and spread evenly between the borders: they
    overlap a little or leave a narrow gap, and none is padded. An image with a side shorter than
    a tile is one tile as a whole, as wide as its longer side, and so of another scale.
    """
    side = tile_um / slide.mpp
    size = (slide.width, slide.height)
    if min(size) < side:
        longer = max(size)
        at = [-(longer - length) // 2 for length in size]
        return np.array([at], dtype=np.int64), longer * slide.mpp
    places = []
    for length in size:
        n = max(1, round(length / side))
        rest = length - side
        places.append(np.linspace(0, rest, n) if n > 1 else np.array([rest / 2]))
    x, y = np.meshgrid(*(np.floor(place) for place in places))
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.int64), float(tile_um)


def cut(images: Sequence[LabelledImage], out: str | os.PathLike, *, tile_um: float, tile_px: int,
        mpp: float | None = None) -> list[dict]:
    """Cut labelled images into tiles; images whose file holds these tiles already are left alone.

    Parameters
    ----------
    images
        From `read`.
    out
        Gets ``tiles/<image>.h5``, ``tiles/manifest.csv`` and, last, ``labels.csv`` (image, patient,
        label, and what else the set says).
    tile_um, tile_px
        Side of a tile [µm], [px]; see `corners`.
    mpp
        Scale of the images [µm/px] that bring none of their own; None takes what whole slides
        state, plain images state none.

    Returns
    -------
    list of dict
        Rows of the manifest: section (the image), n_tiles, tile_px, tile_um, mpp, source_mpp,
        padded_max, sha256.

    Raises
    ------
    InputError
        If there are no images, names repeat, an image cannot be decoded, or its scale is unknown.
    """
    import pandas as pd

    out = Path(out)
    names = [image.name for image in images]
    if not names or len(set(names)) < len(names):
        raise InputError(out, "images", "are none, or share a name", "use what read() returns")
    rows = []
    for image in images:
        path = out / "tiles" / f"{image.name}.h5"
        own = [image.opened, image.centers] if image.opened else []
        key = sha256_of([tile_um, tile_px, mpp], sha256_file(image.path), *own)
        if read_attr(path, "key") != key:
            tiles = _cut_one(image, tile_um, tile_px, mpp)
            write_tiles(path, tiles, coordinate_names(tiles.coords), key=key)
        rows.append(manifest_row(path))
    write_csv(out / "tiles" / "manifest.csv", pd.DataFrame(rows))
    write_csv(out / "labels.csv", pd.DataFrame([
        {"image": image.name, "patient": image.patient, "label": image.label} | image.extra
        for image in images]))
    return rows


def _cut_one(image: LabelledImage, tile_um: float, tile_px: int, mpp: float | None) -> Tiles:
    with open_slide(image.path, **{"mpp": mpp} | image.opened) as slide:
        if slide.mpp is None:
            raise InputError(image.path, "mpp", "is not known, so micrometres mean nothing",
                             "state the scale of the images [µm/px]")
        if image.centers is not None:
            return cut_spots(slide, image.centers, tile_um=tile_um, tile_px=tile_px)
        places, width_um = corners(slide, tile_um)
        return cut_at(slide, places, tile_um=width_um, tile_px=tile_px)
