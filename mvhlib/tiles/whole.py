"""A user's whole slides: their owners, and bags of tiles cut over their tissue.

``slides.csv`` lists them, one row each:

==============  ====================================================================================
column          what stands in it
==============  ====================================================================================
slide           name of the slide, or of its file; with or without folder and ending
patient         who gave the tissue; of every slide or of none. A TCGA barcode stands for its
                first 12 characters
study           where it was made (hospital, laboratory, cohort); blank: one for all
label           the class of the slide; blank where nobody knows
time, event     outcome: months until the event or the end of follow-up, and 1 for an event, 0 for
                none. ``time_days``, ``time_years`` and ``time_months`` say another unit. More
                endpoints have a suffix: ``time_dss``, ``event_dss``
age, sex,       of the patient, as `mvhlib.cohort.clinical` reads them
stage
mpp             micrometres per pixel [µm/px], of slides that do not state it
==============  ====================================================================================

Without the table every whole slide of the directory is read, and nobody's name is known. A table
may name some of the slides only, each once; a column that is spelled otherwise (``MPP``) is
refused. Labels and outcomes want patients, since folds keep them together. Slides of one name in
folders of their own have the folder's name before theirs. Folders that may not be read are passed
over.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import tables, tcga
from mvhlib.artifacts import (
    InputError,
    check_file,
    check_spelling,
    read_attr,
    reading,
    safe_name,
    sha256_file,
    sha256_of,
    write_csv,
)
from mvhlib.places import resolve
from mvhlib.spelling import refuse_other_spellings, spelt
from mvhlib.tiles.cut import Tiles, cut_at, grid_corners, tissue_mask
from mvhlib.tiles.slides import TIFF, WHOLE_SLIDE, Slide, open_slide
from mvhlib.tiles.store import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    coordinate_names,
    manifest_row,
    write_tiles,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: Months in one unit of a column of times.
MONTHS = {"time": 1.0, "time_months": 1.0, "time_days": 12 / 365.25, "time_years": 12.0}
#: Endings of files that a table may name; without one, whole slides alone are taken.
IMAGES = (*WHOLE_SLIDE, *TIFF, ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jp2")
COLUMNS = ("slide", "patient", "study", "label", "time", "event", "mpp")
_TIME = re.compile(r"(time(?:_months|_days|_years)?)(?:_(?!months|days|years)(\w+))?")
_PASSED_ON = ("age", "sex", "stage")


@dataclass(frozen=True)
class WholeSlide:
    """A slide file, and what its table says of it.

    Attributes
    ----------
    name, path
        Unique; the file.
    patient, study, label
        Empty where nobody knows.
    mpp
        As the table states it [µm/px]; None where the file is believed.
    outcome
        Columns ``time_months_<endpoint>``, ``event_<endpoint>``, and ``age``, ``sex``, ``stage``.
    """

    name: str
    path: Path
    patient: str = ""
    study: str = ""
    label: str = ""
    mpp: float | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> Slide:
        """The slide, whose scale is known.

        Raises
        ------
        InputError
            If the file cannot be read, or neither it nor the table states a scale.
        """
        slide = open_slide(self.path, mpp=self.mpp)
        if slide.mpp is None:
            slide.close()
            raise InputError(self.path, "mpp", "is not known, so micrometres mean nothing",
                             "state micrometres per pixel in the column mpp of slides.csv")
        return slide


def may_list(folder: Path) -> bool:
    """Whether this user may see what is in a folder: `find` passes over one that is closed."""
    return os.access(folder, os.R_OK | os.X_OK)


def check_readable(path: Path) -> None:
    """Refuse a slide that is no file, or that this user may not read.

    Raises
    ------
    InputError
        Naming it.
    """
    if not os.access(check_file(path, "slide"), os.R_OK):
        raise InputError(path, "slide", "may not be read by this user",
                         "change its permissions, or leave the slide out")


def find(folder: str | Path, endings: Sequence[str] = WHOLE_SLIDE) -> list[Path]:
    """Slide files in a directory and its folders, sorted; hidden and closed ones are passed over.

    Raises
    ------
    InputError
        If the directory itself may not be read.
    """
    root = Path(folder)
    places = [root, *(path for path in sorted(root.glob("*/"))
                      if not path.name.startswith(".") and may_list(path))]
    with reading(root, "folder", fix="change its permissions"):
        return [path for place in places for path in sorted(place.iterdir())
                if path.suffix.lower() in endings and not path.name.startswith(".")]


def read(folder: str | Path, table: str = "", *,
         files: Mapping[str, Path] | None = None) -> list[WholeSlide]:
    """Read which slides there are; pixels are not touched.

    Parameters
    ----------
    folder
        The data set's directory.
    table
        ``slides.csv``, from `folder` or from the clone. Empty takes ``slides.csv`` in `folder`, and
        where there is none every whole slide.
    files
        Slide -> file that stands for it, features of its tiles for instance; None looks for the
        slides themselves.

    Raises
    ------
    InputError
        If there is no slide, a row has no file or two, a file has two rows, a cell is not what its
        column holds, a column is spelled otherwise, or somebody has a label or an outcome and no
        name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "name the folder of the slides")
    if not table and not (root / "slides.csv").exists():
        found = of_files(root, find(root) if files is None else [*files.values()])
        if not found:
            raise InputError(root, "slides", f"are none with an ending of {list(WHOLE_SLIDE)}",
                             "list other images in slides.csv")
        closed = [each.name for each in sorted(root.glob("[!.]*/")) if not may_list(each)]
        if closed and files is None:
            log.warning("%s: %s may not be read by this user: slides that lie there are passed "
                        "over", root, ", ".join(closed[:5]))
        return found
    own = root / (table or "slides.csv")
    path = own if own.exists() else resolve(table)
    rows = tables.read_table(path, ("slide",))
    refuse_other_spellings(path, rows.columns, _columns_read(list(rows.columns)))
    tables.names(rows, "slide", path, unique=True)
    files = _files(root, path, rows["slide"]) if files is None else _given(
        files, path, rows["slide"])
    again = rows.index.map(files).duplicated()
    if again.any():
        tables.refuse(path, rows["slide"], again, "and names the same file as a row above it",
                      "keep one row for each slide")
    known = _owners(path, rows)
    mpp = tables.numbers(rows, "mpp", path, low=SMALLEST_SCALE, high=LARGEST_SCALE, missing=True,
                         unit="µm/px") \
        if "mpp" in rows else rows["slide"].map(lambda _: np.nan).astype(float)
    outcomes = _outcomes(path, rows)
    names = _names(root, [stem(name) for name in rows["slide"]], [*files.values()])
    made = []
    for line, name in zip(rows.index, names, strict=True):
        made.append(WholeSlide(
            safe_name(name, path, f"slide, row {line}"), files[line],
            *(known[column][line] for column in ("patient", "study", "label")),
            mpp=None if np.isnan(mpp[line]) else float(mpp[line]), outcome=outcomes[line]))
    _unique(path, made)
    return made


def of_files(root: Path, files: Sequence[Path]) -> list[WholeSlide]:
    """Slides that nobody lists, of which no more is known than their files.

    Raises
    ------
    InputError
        If several may be one DICOM slide, or a name cannot be a file's or is that of two.
    """
    _one_dicom_each(files)
    names = _names(root, [path.stem for path in files], files)
    found = [WholeSlide(safe_name(name, path, "slide"), path)
             for name, path in zip(names, files, strict=True)]
    _unique(root, found)
    return found


def _columns_read(columns: Sequence[str]) -> list[str]:
    """Names of the columns that are read: the fixed ones, and times of the table's endpoints."""
    plain = [re.sub(r"[\W_]+", "_", column.lower()) for column in columns]
    times = [name for name in plain if (of := _TIME.fullmatch(name)) and f"event_{of[2]}" in plain]
    return [*COLUMNS, *MONTHS, *_PASSED_ON, *times, *filter(_TIME.fullmatch, columns)]


def _one_dicom_each(files: Iterable[Path]) -> None:
    """Refuse several DICOM files in a folder: levels, label and overview of a slide are files each.

    OpenSlide opens the slide by any of them, so that one slide would be read as many.
    """
    folders = Counter(path.parent for path in files if path.suffix.lower() == ".dcm")
    folder, n = max(folders.items(), key=lambda each: each[1], default=(None, 0))
    if n > 1:
        raise InputError(folder, "slides", f"are {n} DICOM files, of which several may be levels "
                         "of one slide", "name one file of each slide in slides.csv")


def stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGES else path.name


def _names(root: Path, stems: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Names of slides; where files of several folders share one, the folder's goes before it."""
    homes: dict[str, set[Path]] = {}
    for each, path in zip(stems, files, strict=True):
        homes.setdefault(spelt(each).casefold(), set()).add(path.parent)
    return [f"{path.parent.name}-{each}" if len(homes[spelt(each).casefold()]) > 1
            and path.parent != root else each for each, path in zip(stems, files, strict=True)]


def _unique(where: Path, slides: Sequence[WholeSlide]) -> None:
    seen: dict[str, Path] = {}
    for slide in slides:
        if seen.setdefault(spelt(slide.name).casefold(), slide.path) != slide.path:
            raise InputError(where, "slide", f"{slide.name} is the name of two files",
                             "give every slide a name of its own")
    _say_copies(slides)


def _say_copies(slides: Sequence[WholeSlide]) -> None:
    """Put into the log which slides are one file under two names, and not said to be one patient's.

    Folds keep a patient together; they cannot keep two copies together that nobody knows of. Files
    are read only where others have the same number of bytes, and this user may read them.
    """
    slides = [slide for slide in slides if slide.path.is_file() and os.access(slide.path, os.R_OK)]
    sizes = Counter(slide.path.stat().st_size for slide in slides)
    first: dict[str, WholeSlide] = {}
    for slide in slides:
        if sizes[slide.path.stat().st_size] < 2:
            continue
        other = first.setdefault(sha256_file(slide.path), slide)
        if other is not slide and not (slide.patient and slide.patient == other.patient):
            log.warning("%s and %s are the same file under two names: one of them may be tested "
                        "by a model that learned from the other. Delete one, or name one patient "
                        "for both in slides.csv", other.path, slide.path)


def _files(root: Path, table: Path, names: "pd.Series") -> dict[int, Path]:
    """Row -> file: the one that its cell names, in full or by its beginning."""
    there = find(root, IMAGES)
    by_name: dict[str, list[Path]] = {}
    for path in there:
        for key in {path.name, path.stem, str(path.relative_to(root))}:
            by_name.setdefault(spelt(key), []).append(path)
    found = {}
    for line, name in names.items():
        files = by_name.get(spelt(name)) or []
        if len(files) != 1:
            raise InputError(table, f"slide, row {line}", f"is {name!r}, of which there are "
                             f"{len(files)} files in {root}", "name the file, with its ending")
        found[line] = check_file(files[0], "slide")
    return found


def _given(files: Mapping[str, Path], table: Path, names: "pd.Series") -> dict[int, Path]:
    """Row -> the file that stands for the slide of its cell."""
    by_name = {spelt(name): path for name, path in files.items()}
    of = {line: by_name.get(spelt(stem(name))) for line, name in names.items()}
    missing = [(line, names[line]) for line, path in of.items() if path is None]
    if missing:
        raise InputError(table, f"slide, row {missing[0][0]}", f"is {missing[0][1]!r}, which has "
                         f"no features (and {len(missing) - 1} more); there are "
                         f"{list(files)[:3]}", "name slides as their files are, or leave the row "
                         "out")
    return {line: check_file(path, "features") for line, path in of.items()}


def _owners(path: Path, rows: "pd.DataFrame") -> dict[str, dict[int, str]]:
    """Patient, study and label of every row; empty where it is not known."""
    known: dict[str, dict[int, str]] = {}
    for column in ("patient", "study", "label"):
        cells = rows[column] if column in rows else rows["slide"].map(lambda _: "")
        said = ~cells.str.lower().isin(tables.NOT_KNOWN)
        if said.any() and not said.all() and column != "label":
            tables.names(rows, column, path)  # of all or of none: it names the blank row
        if column == "patient":
            cells = cells.map(tcga.patient_of)
        check_spelling(cells[said], path, column)
        known[column] = dict(cells.where(said, ""))
    for line, patient in known["patient"].items():
        if tcga.of_another(stem(rows.at[line, "slide"]), patient):
            raise InputError(path, f"patient, row {line}", f"is {patient}, and the slide "
                             f"{rows.at[line, 'slide']} is of another by its barcode",
                             "mend the slide or the patient")
    needs = [column for column in rows if _TIME.fullmatch(column)
             and (~rows[column].str.lower().isin(tables.NOT_KNOWN)).any()]
    if not any(known["patient"].values()) and (needs or any(known["label"].values())):
        raise InputError(path, "patient", f"is not stated, and folds of {(needs or ['label'])[0]} "
                         "keep patients together", "add a column patient")
    return known


def _outcomes(path: Path, rows: "pd.DataFrame") -> dict[int, dict[str, Any]]:
    """Row -> the columns of outcomes and covariates under the names of a run's ``slides.csv``."""
    found: dict[int, dict[str, Any]] = {line: {} for line in rows.index}
    for column in rows.columns:
        matched = _TIME.fullmatch(column)
        if not matched or rows[column].str.lower().isin(tables.NOT_KNOWN).all():
            continue
        endpoint = matched[2] or "os"
        event = f"event_{matched[2]}" if matched[2] else "event"
        tables.check_columns(path, list(rows.columns), [event])
        times = tables.numbers(rows, column, path, low=0, missing=True) * MONTHS[matched[1]]
        if any(f"time_months_{endpoint}" in row for row in found.values()):
            raise InputError(path, column, f"is a second time of {endpoint}", "keep one of them")
        for line, time in times.items():
            found[line] |= {f"time_months_{endpoint}": "" if np.isnan(time) else float(time),
                            f"event_{endpoint}": rows.at[line, event]}
    for column in _PASSED_ON:
        if column in rows:
            for line, cell in rows[column].items():
                found[line][column] = cell
    return found


def endpoints(slides: Sequence[WholeSlide]) -> list[str]:
    """Endpoints that the slides' table has."""
    return list(dict.fromkeys(column.removeprefix("time_months_") for slide in slides
                              for column in slide.outcome if column.startswith("time_months_")))


def cut(slides: Sequence[WholeSlide], out: str | Path, *, tile_um: float, tile_px: int,
        mask: str = "default", most: int = 0, seed: int = 0) -> list[dict]:
    """Cut every slide into a grid over its tissue; one whose file holds these tiles is left alone.

    Parameters
    ----------
    slides
        From `read`.
    out
        Gets ``tiles/<slide>.h5``, ``tiles/manifest.csv`` and, last, ``slides.csv``.
    tile_um, tile_px
        Side of a tile [µm], [px].
    mask
        Preset of the tissue mask.
    most
        Tiles of a slide at most, drawn at random; 0 for all.

    Returns
    -------
    list of dict
        Rows of the manifest (`mvhlib.tiles.store.manifest_row`).

    Raises
    ------
    InputError
        If a slide cannot be read, its scale is not known, or no tile has tissue.
    """
    import pandas as pd

    out, rows = Path(out), []
    for slide in slides:
        check_readable(slide.path)
        path = out / "tiles" / f"{slide.name}.h5"
        key = sha256_of([tile_um, tile_px, mask, most, seed if most else 0, slide.mpp],
                        sha256_file(slide.path))
        if read_attr(path, "key") != key:
            tiles = _cut_one(slide, tile_um, tile_px, mask, most, seed)
            write_tiles(path, tiles, coordinate_names(tiles.coords), key=key)
        rows.append(manifest_row(path))
    write_csv(out / "tiles" / "manifest.csv", pd.DataFrame(rows))
    write_csv(out / "slides.csv", table(slides))
    return rows


def _cut_one(slide: WholeSlide, tile_um: float, tile_px: int, mask: str, most: int, seed: int
             ) -> Tiles:
    with slide.open() as pixels:
        corners = grid_corners(pixels, tile_um=tile_um, tile_px=tile_px,
                               mask=tissue_mask(pixels, preset=mask))
        if most and len(corners) > most:
            kept = np.random.default_rng(seed).choice(len(corners), most, replace=False)
            corners = corners[np.sort(kept)]
        return cut_at(pixels, corners, tile_um=tile_um, tile_px=tile_px)


def table(slides: Sequence[WholeSlide]) -> "pd.DataFrame":
    """``slides.csv`` of a run: slide, patient, site, and what else is known of any of them."""
    import pandas as pd

    made = pd.DataFrame([{"slide": slide.name, "patient": slide.patient,
                          "site": slide.study or "one site", "label": slide.label} | slide.outcome
                         for slide in slides])
    return made if (made["label"] != "").any() else made.drop(columns="label")
