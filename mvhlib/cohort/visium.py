"""10x platforms: Visium spots, Visium HD bins and Xenium transcripts.

Each reader takes one output folder, or a folder of several. What the outputs do not say (study,
patient, specimen, full image) stands in a table ``samples.csv`` beside them, columns
``section,study,patient,specimen`` and optionally ``folder,image,mpp,alignment``; a single output
needs none.

===============  =================================================================================
what             what is accepted; anything else is refused in one line
===============  =================================================================================
layouts          Space Ranger 1 to 4: ``filtered_feature_bc_matrix`` (else ``raw_``) as h5 or as a
                 folder, gzipped or not, beside ``spatial/``; ``binned_outputs/square_*um`` of
                 Visium HD (parquet or csv); ``transcripts.parquet``, ``.csv`` or ``.csv.gz`` of
                 Xenium. Flat files with a prefix, as GEO has them, are to be sorted into folders
counts           whole, not negative, features x barcodes; genes alone (antibodies are left out)
genes            a symbol that stands for several genes is numbered by Ensembl id, alike in all
                 sections of a cohort
barcodes         unique; every one of a filtered matrix has a position, with or without ``-1``
positions        with a header or without, `POSITION_COLUMNS`; whole array positions, finite pixels
scale            measured from the positions; what scale factors, `mpp`, the image's own tags and
                 Xenium's ``pixel_size`` state must agree within 5 %
array            Visium: hexagonal. A square array needs ``pitch_um=`` or ``mpp=``; bins of
                 Visium HD need source ``visium_hd``
image            the sizes of the full and the reduced images fit their scale factors, and at most
                 5 % of the spots lie outside
hidden files     ``._*``, ``.DS_Store`` and folders that begin with a dot are passed over
===============  =================================================================================
"""

import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, check_file, check_spelling, reading, safe_name
from mvhlib.cohort import pseudospots
from mvhlib.cohort.base import MPP_RANGE, Cohort, ImageRef, Section, check_inside, check_mpp
from mvhlib.cohort.feature_matrix import GeneNames, open_packed, read_lines, read_matrix
from mvhlib.places import resolve
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Distance of neighbouring Visium spots and their diameter [µm].
PITCH_UM, SPOT_UM = 100.0, 55.0
#: Diameter [µm] that Space Ranger's ``spot_diameter_fullres`` stands for: not the 55 µm of a
#: spot, but a theoretical 65 µm (Space Ranger documentation, "Imaging outputs").
SCALEFACTOR_SPOT_UM = 65.0
#: What that diameter may measure [µm]: some versions do write the 55 µm.
SPOT_RANGE_UM = (50.0, 70.0)
#: Side of a pixel of Xenium's morphology image [µm].
XENIUM_PX_UM = 0.2125
#: How far a stated scale may be from the measured one, as a share of it.
SCALE_TOLERANCE = 0.05
#: How far spots may be from the lattice fitted to them: root mean square, and the worst [µm].
RMS_UM, WORST_UM = 15.0, 50.0

#: Share of a filtered matrix's spots off tissue, and of spots under tissue without counts, above
#: which the two files are of different sections: a choice of spots by hand changes one of them.
OTHER_SECTION = 0.05

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres",
                    "pxl_col_in_fullres")
COUNT_FILES = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix",
               "raw_feature_bc_matrix.h5", "raw_feature_bc_matrix")
POSITION_FILES = ("tissue_positions.csv", "tissue_positions.parquet", "tissue_positions_list.csv",
                  "tissue_positions.csv.gz", "tissue_positions_list.csv.gz")
#: Endings of the reduced images: Space Ranger's, and those that people convert them to.
REDUCED = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
TRANSCRIPT_FILES = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")
#: Of Xenium's cells: read by `mvhlib.cohort.xenium_cells` where no transcripts are at hand.
CELL_MATRICES = ("cell_feature_matrix.h5", "cell_feature_matrix")
CELL_TABLES = ("cells.parquet", "cells.csv.gz", "cells.csv")
#: Ends of the names of files that `mvhlib.cohort.flat` reads where they lie loose.
_LOOSE = re.compile(r".+((filtered|raw)_feature_bc_matrix\.h5|(matrix\.mtx|features\.tsv|"
                    r"barcodes\.tsv|scalefactors_json\.json|tissue_positions(_list)?\.(csv|parquet)|"
                    r"transcripts\.(csv|parquet))(\.gz)?)")
_COPY_SPATIAL = "copy spatial/ of the Space Ranger output as a whole"
_TRUNCATED = "it is probably truncated: copy it again from its source"


def read(path: str | Path, *, samples: str | Path | pd.DataFrame | None = None,
         study: str | None = None, patient: str | None = None,
         image: str | Path | None = None, mpp: float | None = None,
         pitch_um: float | None = None, transposed: bool = False) -> Cohort:
    """Read Space Ranger output of Visium, or what is written in its layout.

    Counts come from the filtered matrix (else the raw one), spots with ``in_tissue`` are kept, and
    the scale is measured: neighbouring spots are 100 µm apart. Without a full image the
    sections' image is ``tissue_hires_image.png``, and coordinates are in its pixels.

    Parameters
    ----------
    path
        An ``outs`` folder, or a folder of several.
    samples
        Table of the sections (see the module); None looks for ``samples.csv`` in `path`.
    study, patient
        For a single output without a table: names of its study and patient.
    image
        Full-resolution image of a single output; relative paths are taken from `path`.
    mpp
        Micrometres per pixel of the full image [µm/px]; None measures it.
    pitch_um
        Distance of neighbouring spots of a square array, which is not Visium's [µm].
    transposed
        Say so where rows of the array do run along the image's width and columns along its height.
        Otherwise such positions are refused: mostly the two pixel columns were swapped.

    Raises
    ------
    InputError
        If a file is missing or broken, spots and counts do not join, scales disagree, the image is
        not the one that positions speak of, or several outputs stand there without a table that
        names their patients.
    """
    pitch_um = number_option("pitch_um", pitch_um, above=0.0)
    outputs = _outputs(Path(path), _is_spots, "visium")
    names = _names(outputs)

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _visium_section(name, folder, root, row, names, pitch_um, transposed)

    return make_cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


def read_hd(path: str | Path, *, spot_um: float = 100.0, min_fill: float = 0.25,
            samples: str | Path | pd.DataFrame | None = None, study: str | None = None,
            patient: str | None = None, image: str | Path | None = None,
            mpp: float | None = None) -> Cohort:
    """Read Visium HD, its bins summed into squares of `spot_um`.

    Parameters
    ----------
    path
        A Space Ranger ``outs`` folder with ``binned_outputs``, one ``square_*um`` folder, or a
        folder of several. The coarsest bins that divide `spot_um` are taken.
    spot_um
        Side of a pseudo-spot [µm].
    min_fill
        Pseudo-spots with a smaller share of their bins under tissue are left out [0-1].
    samples, study, patient, image, mpp
        As in `read`; the scale is the file's own ``microns_per_pixel``.

    Raises
    ------
    InputError
        As `read`, and if no bins divide `spot_um`.
    """
    spot_um = number_option("spot_um", spot_um, above=0.0)
    min_fill = number_option("min_fill", min_fill, low=0.0, high=1.0)
    path = Path(path)
    if path.name == "binned_outputs":  # its folders are one tissue at several bin sizes
        path = path.parent
    outputs = {name: _bins(folder, spot_um)
               for name, folder in _outputs(path, _has_bins, "visium_hd").items()}
    names = _names(outputs)

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _hd_section(name, folder, root, row, names, spot_um, min_fill)

    return make_cohort(path, outputs, samples, study, patient, image, mpp, make)


def read_xenium(path: str | Path, *, spot_um: float = 100.0, min_counts: int = 10,
                min_qv: float = 20.0, samples: str | Path | pd.DataFrame | None = None,
                study: str | None = None, patient: str | None = None,
                image: str | Path | None = None, mpp: float | None = None) -> Cohort:
    """Read Xenium, its transcripts counted in squares of `spot_um`; controls are dropped.

    Positions are ``he_x, he_y`` [px of the H&E image] where the table has them (HEST's layout),
    else ``x_location, y_location`` [µm]. The latter are carried into the H&E image by the 3 x 3
    matrix that Xenium exports (column ``alignment`` of the samples table; it maps H&E pixels to
    pixels of the morphology image); without it the section is expression-only.

    Parameters
    ----------
    path
        Folder with ``transcripts.parquet`` (or .csv, .csv.gz), or a folder of several.
    spot_um
        Side of a pseudo-spot [µm].
    min_counts
        Pseudo-spots with fewer transcripts are left out.
    min_qv
        Transcripts of a lower quality value are left out (20 is Xenium's own limit).
    samples, study, patient, image
        As in `read`.
    mpp
        Micrometres per pixel of the H&E image [µm/px]; needed with ``he_x, he_y``, else taken
        from the matrix.

    Raises
    ------
    InputError
        If a file is missing or broken, a column is missing, or the scale is not known.
    """
    spot_um = number_option("spot_um", spot_um, above=0.0)
    min_counts = number_option("min_counts", min_counts, low=0.0)
    min_qv = number_option("min_qv", min_qv, low=0.0)
    outputs = _outputs(Path(path), _is_xenium, "xenium")

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _xenium_section(name, folder, root, row, spot_um, min_counts, min_qv)

    return make_cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


# --- what is where ------------------------------------------------------------------------------

def number_option(name: str, value: Any, *, above: float | None = None, low: float | None = None,
            high: float | None = None) -> Any:
    """A numeric option, as it was given; None stays None."""
    if value is None:
        return None
    bounds = ", ".join(f"{word} {bound:g}" for word, bound in
                       (("above", above), ("at least", low), ("at most", high))
                       if bound is not None)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) \
            or not np.isfinite(value) or (above is not None and not value > above) \
            or (low is not None and value < low) or (high is not None and value > high):
        raise InputError("options", name, f"is {value!r}", f"give a number {bounds}")
    return value


def first_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is in `folder`; a link that leads nowhere is an error."""
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            check_file(path)
        if path.exists():
            return path
    return None


def _is_visium(folder: Path) -> bool:
    spatial = folder / "spatial"
    packed = spatial / "scalefactors_json.json.gz"  # one by one, as GEO does: mvhlib.cohort.flat
    return first_of(folder, COUNT_FILES) is not None and spatial.is_dir() and not packed.exists()


def _is_spots(folder: Path) -> bool:
    return _is_visium(folder) and not _is_bin_folder(folder)


def _is_bin_folder(folder: Path) -> bool:
    return folder.absolute().name.startswith("square_")


def _has_bins(folder: Path) -> bool:
    return (folder / "binned_outputs").is_dir() or (_is_bin_folder(folder) and _is_visium(folder))


def _is_xenium(folder: Path) -> bool:
    return first_of(folder, TRANSCRIPT_FILES) is not None


def _is_cells(folder: Path) -> bool:
    return not _is_xenium(folder) and first_of(folder, CELL_MATRICES) is not None \
        and first_of(folder, CELL_TABLES) is not None


#: Source -> what a folder of its output looks like.
PLATFORMS = {"visium": _is_spots, "visium_hd": _has_bins, "xenium": _is_xenium,
             "xenium_cells": _is_cells,
             "segmented": lambda folder: (folder / "segmented_outputs").is_dir()}


def _levels(root: Path) -> list[list[Path]]:
    """List `root` and three levels of folders below it, without hidden ones."""
    levels = [[root]]
    for _ in range(3):
        levels.append([folder for above in levels[-1] for folder in sorted(above.glob("*/"))
                       if not folder.name.startswith(".")])
    return levels


def holds(path: str | Path, source: str) -> bool:
    """True if a directory has outputs of a platform, judged by names alone.

    Parameters
    ----------
    source
        One of `PLATFORMS`.
    """
    return any(PLATFORMS[source](folder) for level in _levels(Path(path)) for folder in level)


def outputs(path: str | Path, source: str) -> dict[str, Path]:
    """Name -> folder of a directory's outputs of a platform, as its reader calls them.

    Raises
    ------
    InputError
        If there is none, or two would have one name.
    """
    path = Path(path)
    if source == "visium_hd" and path.name == "binned_outputs":
        path = path.parent  # its folders are one tissue at several bin sizes
    return _outputs(path, PLATFORMS[source], source)


def _outputs(root: Path, accept: Callable[[Path], bool], source: str) -> dict[str, Path]:
    """Output folders at `root`, up to three levels below; named after the folder, not ``outs``."""
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "pass an output folder")
    levels = _levels(root)
    accepted: list[Path] = []
    for level in levels:
        accepted += [folder for folder in level if accept(folder)
                     and not any(folder.is_relative_to(above) for above in accepted)]
    if not accepted:
        raise InputError(root, "data", *_what_else(levels, source))
    named: dict[str, Path] = {}
    for folder in accepted:
        name = next(part for part in reversed(folder.absolute().parts) if part != "outs")
        if name in named:
            raise InputError(folder, "section", f"a second output is called {name}",
                             "give every output folder its own name")
        named[name] = folder
    return named


def _what_else(levels: list[list[Path]], source: str) -> tuple[str, str]:
    """Describe what was found instead of an output of `source`, and what to do."""
    for other, accept, what in (("visium_hd", _has_bins, "bins of Visium HD"),
                                ("visium", _is_spots, "spots of Visium"),
                                ("xenium", _is_xenium, "transcripts of Xenium"),
                                ("xenium_cells", _is_cells, "cells of Xenium")):
        found = next((folder for level in levels for folder in level if accept(folder)), None)
        if other != source and found is not None:
            return f"holds {what} ({found})", f"read it with source {other}"
    folders = [folder for level in levels for folder in level]
    files = [path for folder in folders[:200] for path in sorted(folder.iterdir())
             if not path.name.startswith(".")]
    loose = next((path for path in files if _LOOSE.fullmatch(path.name)), None)
    if loose is not None:
        return f"holds {loose.name}, whose name has a prefix", "read it with source flat"
    packed = next((path for path in files if path.name.endswith((".tar", ".tar.gz", ".zip"))),
                  None)
    if packed is not None:
        return f"holds no output, but {packed.name}", "unpack it"
    if source == "xenium" and any(path.name == "cell_feature_matrix.h5" for path in files):
        return ("holds cells of Xenium, but no transcripts",
                "copy transcripts.parquet of the same output, which is what is read")
    counts = next((folder for folder in folders if first_of(folder, COUNT_FILES)), None)
    if counts is not None:
        return f"holds counts in {counts} without spatial/ beside them", _COPY_SPATIAL
    return ("holds no output of this platform",
            "pass the folder with the feature matrix and spatial/, or with transcripts")


def _names(outputs: dict[str, Path]) -> GeneNames:
    return GeneNames(first_of(folder, COUNT_FILES) for folder in outputs.values())


def samples_table(samples: str | Path | pd.DataFrame) -> pd.DataFrame:
    """Rows of the samples table as text; a column ``mpp`` as numbers, NaN where it is blank."""
    columns = ("section", "study", "patient")
    if isinstance(samples, pd.DataFrame):
        missing = [column for column in columns if column not in samples.columns]
        if missing:
            raise InputError("samples", "columns", f"lacks {missing}", "add the columns")
        table = samples.astype(object).where(samples.notna(), "").map(
            lambda cell: str(cell).strip()).set_axis(range(1, len(samples) + 1))
        where: str | Path = "samples"
    else:
        where = resolve(samples)
        table = tables.read_table(where, columns)
    for column in columns:
        found = tables.names(table, column, where, unique=column == "section")
        if column != "section":
            check_spelling(found, where, column)
    if "mpp" in table:
        table["mpp"] = tables.numbers(table, "mpp", where, low=MPP_RANGE[0], high=MPP_RANGE[1],
                                      missing=True, unit="µm/px")
    return table


def make_cohort(root: Path, outputs: dict[str, Path], samples, study, patient, image, mpp,
            make: Callable[[str, Path, Path, dict[str, Any]], Section]) -> Cohort:
    """Sections of the outputs, with what the samples table says of each."""
    if mpp is not None:
        check_mpp(mpp, "options")
    if samples is None:
        samples = first_of(root.absolute(), ("samples.csv",))
    if samples is None:
        if len(outputs) > 1 and patient is None:
            raise InputError(root / "samples.csv", "file",
                             f"does not exist, so the patients of {sorted(outputs)} are unknown",
                             "write section,study,patient,specimen for each, or pass patient= "
                             "if they are all of one")
        name = root.absolute().name
        table = pd.DataFrame([{"section": section, "study": study or name,
                               "patient": patient or section, "specimen": patient or section}
                              for section in outputs]).astype(str)
    else:
        table = samples_table(samples)
    where = resolve(samples) if isinstance(samples, (str, Path)) else root
    if image is not None:
        if len(outputs) > 1:
            raise InputError(root, "image", f"is one for {len(outputs)} sections",
                             "name each section's image in samples.csv")
        table["image"] = str(image)
    made, used = [], {}
    spelt = {unicodedata.normalize("NFC", name): folder for name, folder in outputs.items()}
    for row in table.to_dict("records"):
        row = {key: value for key, value in row.items() if value != "" and not pd.isna(value)}
        row.setdefault("specimen", row["patient"])
        for field in ("section", "study", "patient", "specimen"):
            row[field] = safe_name(row[field], where, field)
        name = row["section"]
        folder = spelt.get(unicodedata.normalize("NFC", row.get("folder", name)))
        if folder is None:
            raise InputError(where, "section", f"{name} has no output folder; there are "
                             f"{sorted(outputs)}", "name the folder in a column folder")
        if folder in used:
            raise InputError(where, "folder", f"{row.get('folder', name)} is read as section "
                             f"{used[folder]} and as {name}", "give every section its own output")
        used[folder] = name
        if mpp is not None:
            row.setdefault("mpp", mpp)
        made.append(make(name, folder, root, row))
    left = sorted(name for name, folder in outputs.items() if folder not in used)
    if left:
        log.warning("%s names no section of the outputs %s: they are not read", where, left)
    return Cohort(made)


# --- positions and scale ------------------------------------------------------------------------

def _read_positions(folder: Path) -> pd.DataFrame:
    """Positions by barcode; files of Space Ranger 1 have no header, those of 2 and later do."""
    path = first_of(folder, POSITION_FILES)
    if path is None:
        raise InputError(folder, "tissue_positions", "does not exist", _COPY_SPATIAL)
    check_file(path)
    if path.suffix == ".parquet":
        with reading(path, "table", fix=_TRUNCATED):
            table = pd.read_parquet(path)
            if "barcode" in table.index.names:
                table = table.reset_index()
    else:
        table = _position_rows(path)
    missing = [column for column in POSITION_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "copy the file again from the Space Ranger output")
    if len(table) == 0:
        raise InputError(path, "rows", "are none", "copy the file again from the Space Ranger "
                         "output")
    table = table.reset_index(drop=True)
    barcode = table["barcode"].map(_text)
    odd = (barcode == "") | ~barcode.map(str.isprintable).astype(bool)
    if odd.any():
        raise InputError(path, "barcode", f"is {barcode[odd].iloc[0]!r} for spot "
                         f"{int(odd.argmax()) + 1}: blank or no text",
                         "give every spot its barcode")
    if barcode.duplicated().any():
        raise InputError(path, "barcode", "stands more than once, for example "
                         f"{list(barcode[barcode.duplicated()][:3])}", "keep one row per barcode")
    columns = {"in_tissue": _column(table, "in_tissue", path, 0, 1, whole=True)}
    for name in ("array_row", "array_col"):
        columns[name] = _column(table, name, path, 0, 100_000, whole=True)
    for name in ("pxl_row_in_fullres", "pxl_col_in_fullres"):
        columns[name] = _column(table, name, path, -1e7, 1e7)
    found = pd.DataFrame(columns).set_axis(pd.Index(barcode, name="barcode"))
    shared = found.duplicated(["array_row", "array_col"])
    if shared.any():
        raise InputError(path, "array_row, array_col", f"{found.index[shared.argmax()]} stands "
                         "where another barcode does", "give every barcode its own position")
    return found


def _text(value: Any) -> str:
    """A cell as text: None and NaN of a parquet table are blank."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return "" if value is None or value is pd.NA or value != value else str(value).strip()


def _position_rows(path: Path) -> pd.DataFrame:
    """Cells of a csv as text, under the header's names or Space Ranger's order."""
    lines = read_lines(path)
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = [(number, [cell.strip().strip('"') for cell in line.split(separator)])
            for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(path, "rows", "are none", "copy the file again from the Space Ranger "
                         "output")
    header = rows[0][1] if "barcode" in rows[0][1] else list(POSITION_COLUMNS)
    body = rows[1:] if "barcode" in rows[0][1] else rows
    if len(set(header)) < len(header):
        raise InputError(path, "columns", f"stand twice: {header}", "keep one of each")
    if header is rows[0][1] and not set(POSITION_COLUMNS) <= set(header):
        return pd.DataFrame(columns=header)  # the caller says which are missing
    for number, cells in body:
        if len(cells) != len(header):
            raise InputError(path, f"row {number}", f"has {len(cells)} cells for {len(header)} "
                             "columns", _TRUNCATED)
    return pd.DataFrame([cells for _, cells in body], columns=header, dtype=object)


def _column(table: pd.DataFrame, name: str, path: Path, low: float, high: float, *,
            whole: bool = False) -> np.ndarray:
    """Numbers of a column, each of them checked; types of a parquet file stay what they are."""
    given = table[name]
    if given.dtype.kind in "iuf":
        found = given.to_numpy()
        number = found.astype(float)
    elif given.dtype.kind == "b":
        number = given.to_numpy().astype(float)
        found = number.astype(np.int64)
    else:
        number = np.array([_number(cell) for cell in given], dtype=float)
        safe = np.isfinite(number).all() and (number == np.floor(number)).all()
        found = number.astype(np.int64) if safe else number
    wrong = ~((number >= low) & (number <= high))
    if whole:
        wrong |= number != np.floor(number)
    if wrong.any():
        at = int(wrong.argmax())
        kind = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
        raise InputError(path, name, f"is {_text(given.iloc[at])!r} for barcode "
                         f"{_text(table['barcode'].iloc[at])!r} (spot {at + 1}), not {kind}",
                         "copy the file again from the Space Ranger output")
    return found


def _number(cell: Any) -> float:
    """The number that a cell spells, NaN where it spells none."""
    text = _text(cell)
    # Python also reads 1_000 and digits of other scripts.
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) \
        else np.nan


def read_scalefactors(folder: Path) -> dict[str, Any]:
    path = folder / "scalefactors_json.json"
    if not path.exists() and not path.is_symlink():
        raise InputError(path, "file", "does not exist", _COPY_SPATIAL)
    check_file(path)
    with reading(path, problem="is no JSON", fix="copy it again from the Space Ranger output"):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(found, dict):
        raise InputError(path, "file", f"holds a {type(found).__name__}, not names and "
                         "values", "copy it again from the Space Ranger output")
    for key in ("spot_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef",
                "microns_per_pixel", "bin_size_um"):
        _factor(found, key, path)
    return found


def _factor(scalefactors: dict[str, Any], key: str, where: Path, *,
            needed: bool = False) -> float | None:
    """A scale factor: a number above 0, or None where the file has none."""
    value = scalefactors.get(key)
    if value is None:
        if needed:
            raise InputError(where, key, "is missing" if key not in scalefactors else "is null",
                             "copy it again from the Space Ranger output")
        return None
    high = 10.0 if key.startswith("tissue_") else 1e5
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= high:
        raise InputError(where, key, f"is {value!r}, not a number above 0 and up to {high:g}",
                         "copy it again from the Space Ranger output")
    return float(value)


def agree(stated: float | None, measured: float | None, where: Path | str, field: str,
           what: str, fix: str, unit: str = "µm/px") -> None:
    """Refuse two values of one quantity that are more than 5 % apart."""
    if stated is None or measured is None:
        return
    if abs(stated / measured - 1) > SCALE_TOLERANCE:
        raise InputError(where, field, f"is {stated:.4g} {unit}, but {what} {measured:.4g}", fix)


def _join_names(barcodes: pd.Index, positions: pd.DataFrame) -> pd.DataFrame:
    """Positions under the matrix's barcodes: ``-1`` may stand in one of the two alone."""
    if barcodes.isin(positions.index).any():
        return positions
    bare, listed = barcodes.str.removesuffix("-1"), positions.index.str.removesuffix("-1")
    one_sided = (barcodes.str.endswith("-1").all() and not positions.index.str.contains("-").any()
                 ) or (positions.index.str.endswith("-1").all() and not
                       barcodes.str.contains("-").any())
    if not one_sided or not bare.isin(listed).any():
        return positions
    given = dict(zip(bare, barcodes, strict=True))
    return positions.set_axis([given.get(name, name) for name in listed])


def _place(adata: "AnnData", positions: pd.DataFrame, matrix: Path) -> "AnnData":
    """Keep barcodes that have a position and lie on tissue; count the others."""
    if adata.n_obs == 0:
        raise InputError(matrix, "barcode", "there is none: the matrix is empty",
                         "give the matrix of a section")
    positions = _join_names(adata.obs_names, positions)
    joined = adata.obs_names.isin(positions.index)
    if not joined.any():
        raise InputError(matrix, "barcode", f"none of {adata.n_obs} spots has a position "
                         f"({adata.obs_names[0]!r} against {positions.index[0]!r})",
                         "give the matrix and spatial/ of the same section")
    if not joined.all() and matrix.name.startswith("filtered"):
        raise InputError(
            matrix, "barcode", f"{int((~joined).sum())} of {adata.n_obs} spots have no position, "
            f"for example {adata.obs_names[~joined][0]!r}: the table of positions was cut, or is "
            "of another section", _COPY_SPATIAL)
    on_tissue = positions["in_tissue"].reindex(adata.obs_names).fillna(0).to_numpy() != 0
    if not on_tissue.any():
        raise InputError(matrix, "in_tissue", "no spot lies on tissue",
                         "run Space Ranger's tissue detection again or correct in_tissue")
    record = {"n_counts": adata.n_obs, "n_spots": len(positions), "n_kept": int(on_tissue.sum()),
              "n_without_position": int((~joined).sum()),
              "n_off_tissue": int((joined & ~on_tissue).sum()),
              "n_without_counts": int((~positions.index[positions["in_tissue"] != 0].isin(
                  adata.obs_names)).sum())}
    n_under = record["n_kept"] + record["n_without_counts"]
    if matrix.name.startswith("filtered") and min(
            record["n_off_tissue"] / adata.n_obs,
            record["n_without_counts"] / n_under) > OTHER_SECTION:
        raise InputError(
            matrix, "barcode", f"{record['n_off_tissue']} of {adata.n_obs} spots with counts lie "
            f"off the tissue, and {record['n_without_counts']} of {n_under} spots under it have no "
            "counts: barcodes are the same on every slide, and these are of two sections",
            "give the matrix and spatial/ of the same section")
    if record["n_without_position"]:
        log.warning("%s: %d of %d spots have no position and are dropped", matrix,
                    record["n_without_position"], adata.n_obs)
    adata = adata[on_tissue].copy()
    if adata.layers["counts"].sum() == 0:
        raise InputError(matrix, "counts", f"are 0 in all of {adata.n_obs} spots under tissue",
                         "give the counts of this section, or leave it out")
    place = positions.loc[adata.obs_names]
    adata.obs["array_row"] = place["array_row"].to_numpy()
    adata.obs["array_col"] = place["array_col"].to_numpy()
    adata.obsm["spatial"] = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    adata.uns["join"] = record
    return adata


def genes_of(matrix: Path, names: GeneNames) -> "AnnData":
    """Counts of the matrix without controls of the platform."""
    adata = read_matrix(matrix, names)
    return adata[:, ~pseudospots.is_control(adata.var_names)].copy()


def _steps(grid: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels per unit of each axis `(2, 2)`, and each spot's distance from that lattice [px]."""
    design = np.column_stack([grid - grid.mean(0), np.ones(len(grid))])
    if len(grid) < 3 or np.linalg.matrix_rank(design) < 3:
        return None
    fitted = np.linalg.lstsq(design, pixel, rcond=None)[0]
    return fitted[:2], np.linalg.norm(pixel - design @ fitted, axis=1)


def measure_mpp(positions: pd.DataFrame, scalefactors: dict[str, Any], where) -> float:
    """Micrometres per pixel of the full image, from neighbouring spots 100 µm apart.

    In a row of the hexagonal lattice neighbours differ by two in ``array_col``; a column step is
    50 µm, a row step 86.6 µm. Both are fitted to all spots. A layout that does not allow it
    falls back to ``spot_diameter_fullres``, which stands for 65 µm.

    Raises
    ------
    InputError
        If neither gives a scale.
    """
    um, pixel = _lattice_um(positions), _pixels(positions)
    found = _steps(um, pixel)
    if found is not None:
        lengths = np.linalg.norm(found[0], axis=1)  # px per µm, along each axis
        if lengths.min() > 0:
            return float(1 / lengths.mean())
    diameter = _factor(scalefactors, "spot_diameter_fullres", where)
    if diameter is None:
        raise InputError(where, "spot_diameter_fullres", "is missing", "pass mpp=")
    return SCALEFACTOR_SPOT_UM / diameter


def _lattice_um(positions: pd.DataFrame) -> np.ndarray:
    """Places on a Visium array `(n, 2)` [µm], along its rows' and its columns' axis."""
    return _array_places(positions) * [PITCH_UM * 3**0.5 / 2, PITCH_UM / 2]


def _array_places(positions: pd.DataFrame) -> np.ndarray:
    return positions[["array_row", "array_col"]].to_numpy(float)


def _pixels(positions: pd.DataFrame) -> np.ndarray:
    return positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)


def _check_lattice(steps: np.ndarray, off: np.ndarray, um_per_px: float, names: pd.Index,
                   where: Path) -> None:
    """Refuse positions that do not lie where their array positions put them."""
    rows, columns = steps
    cosine = rows @ columns / (np.linalg.norm(rows) * np.linalg.norm(columns))
    rms, worst = float(np.sqrt(np.mean(off**2))) * um_per_px, int(off.argmax())
    if abs(cosine) > 0.1 or rms > RMS_UM or off[worst] * um_per_px > WORST_UM:
        raise InputError(
            where, "pxl_row_in_fullres, pxl_col_in_fullres", "do not fit array_row and array_col: "
            f"spots are {rms:.3g} um from the lattice on average, {names[worst]} is "
            f"{off[worst] * um_per_px:.3g} um from it",
            "copy the table of positions again from the Space Ranger output")


def lies_transposed(positions: pd.DataFrame) -> bool:
    """Whether rows of the array run along the image's width and its columns along the height.

    A scan that was turned by a quarter does not lie so: there one of the two runs backwards.
    """
    found = _steps(_lattice_um(positions), _pixels(positions))
    if found is None:
        return False
    across, along = found[0]  # a row further, a column further: (x, y) [px/µm]
    return bool(across[0] > 0.94 * np.linalg.norm(across) > 0
                and along[1] > 0.94 * np.linalg.norm(along) > 0)


def array_kind(positions: pd.DataFrame, where: Path, transposed: bool) -> str:
    """The kind of the array, hexagonal or square, by its pixels; anything else is refused."""
    found = _steps(_lattice_um(positions), _pixels(positions))
    if found is None:
        return "hexagonal"  # too few spots to tell
    steps, off = found
    lengths = np.linalg.norm(steps, axis=1)
    if not lengths.min() > 0:
        raise InputError(where, "pxl_row_in_fullres, pxl_col_in_fullres", "are all the same along "
                         "one axis of the array", "copy the table of positions again")
    _check_lattice(steps, off, 1 / float(lengths.max()), positions.index, where)
    ratio = lengths[0] / lengths[1]
    if abs(ratio * 3 - 1) < 3 * SCALE_TOLERANCE:
        raise InputError(where, "array_row, array_col", "are swapped: a row further is "
                         f"{lengths[0] * PITCH_UM * 3**0.5 / 2:.4g} px and a column further "
                         f"{lengths[1] * PITCH_UM / 2:.4g} px, where rows lie 1.73 times as far "
                         "apart as columns", "exchange the two columns")
    square = abs(ratio * 3**0.5 - 1) < SCALE_TOLERANCE
    if not square and abs(ratio - 1) > SCALE_TOLERANCE:
        raise InputError(where, "array_row, array_col", f"a row further is "
                         f"{lengths[0] * PITCH_UM * 3**0.5 / 2:.4g} px and a column further "
                         f"{lengths[1] * PITCH_UM / 2:.4g} px, which is neither a hexagonal "
                         "array (1.73 to 1) nor a square one",
                         "copy the table of positions again from the Space Ranger output")
    if not transposed and lies_transposed(positions):
        raise InputError(where, "pxl_row_in_fullres, pxl_col_in_fullres", "rows of the array run "
                         "along the image's width and columns along its height, as if the two were "
                         "swapped", "exchange the two columns, or pass transposed=True if the "
                         "image does lie so")
    return "square" if square else "hexagonal"


# --- images -------------------------------------------------------------------------------------

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


def find_image(row: dict[str, Any], root: Path, spatial: Path,
                scalefactors: dict[str, Any]) -> tuple[Path | None, float]:
    """The user's full image at scale 1, else Space Ranger's reduced one with its scale."""
    where = spatial / "scalefactors_json.json"
    reduced = _reduced(spatial)
    if "image" in row:
        path = _full_image(row, root)
        _check_sizes(path, 1.0, reduced, scalefactors, where)
        return path, 1.0
    for size, path in reduced.items():
        scale = _factor(scalefactors, f"tissue_{size}_scalef", where, needed=True)
        others = {other: at for other, at in reduced.items() if other != size}
        _check_sizes(path, scale, others, scalefactors, where)
        return path, scale
    return None, 1.0


def _full_image(row: dict[str, Any], root: Path) -> Path:
    path = root / str(row["image"])
    if not os.path.lexists(path):
        raise InputError(path, "image", "does not exist", "correct the path of the full image")
    return check_file(path, "image")


def _size(path: Path) -> tuple[int, int]:
    with open_slide(path) as slide:
        return slide.width, slide.height


def _check_sizes(image: Path, scale: float, others: dict[str, Path],
                 scalefactors: dict[str, Any], where: Path) -> None:
    """Refuse an image whose size does not fit that of the reduced ones and their scale factors."""
    size = None
    for other, path in others.items():
        factor = _factor(scalefactors, f"tissue_{other}_scalef", where)
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


def _image_ref(image: Path, root: Path, stated: bool, mpp: float) -> tuple[ImageRef,
                                                                           tuple[int, int]]:
    """Record of an image; one outside the data directory keeps its absolute path."""
    with open_slide(image) as slide:
        size = (slide.width, slide.height)
        if not stated:
            agree(slide.mpp, mpp, image, "mpp", "the positions say",
                   "pass mpp= to say which one holds, or give the image that they speak of")
    inside = image.absolute().is_relative_to(root.absolute())
    path = image.absolute().relative_to(root.absolute()) if inside else image.absolute()
    return ImageRef(str(path)), size


def assemble(name: str, row: dict[str, Any], root: Path, source: str,
              load: Callable[[], "AnnData"], image: Path | None, mpp: float | None,
              pixel: np.ndarray | None = None) -> Section:
    """Make the section; spots at `pixel`, or those that `load` gives, must lie in the image."""
    ref, size = _image_ref(image, root, "mpp" in row, mpp) if image is not None else (None, None)
    if pixel is not None and len(pixel) and ref is not None:
        check_inside(pixel, size, image)

    def checked() -> "AnnData":
        adata = load()
        if ref is not None:
            check_inside(adata.obsm["spatial"], size, image)
        return adata

    return Section(name=name, study=row["study"], patient=row["patient"],
                   specimen=row["specimen"], source=source, load=checked,
                   mpp=mpp if image is not None else None, image_ref=ref, image_size=size,
                   roots={"data": root})


# --- sections -----------------------------------------------------------------------------------

def _visium_section(name: str, folder: Path, root: Path, row: dict[str, Any], names: GeneNames,
                    pitch_um: float | None, transposed: bool) -> Section:
    spatial = folder / "spatial"
    scalefactors = read_scalefactors(spatial)
    where = spatial / "scalefactors_json.json"
    positions = _read_positions(spatial)
    if "bin_size_um" in scalefactors or positions.index.str.match(r"s_\d+um_\d+_\d+").any():
        raise InputError(folder, "data", "holds bins of Visium HD, not spots of Visium",
                         "read it with source visium_hd")
    kind = array_kind(positions, spatial, transposed)
    diameter = _factor(scalefactors, "spot_diameter_fullres", where)
    measured = measure_mpp(positions, scalefactors, where)
    if kind == "square":
        steps, _ = _steps(_array_places(positions), _pixels(positions))
        step_px = float(np.linalg.norm(steps, axis=1).mean())
        if pitch_um is None and "mpp" not in row:
            raise InputError(
                spatial, "array_row, array_col", f"spots stand {step_px:.4g} px apart on a square "
                "lattice, and Visium's array is hexagonal", "read bins of Visium HD with source "
                "visium_hd; for another platform pass pitch_um= (the distance of neighbouring "
                "spots) or mpp=")
        mpp = row.get("mpp") or pitch_um / step_px
        pitch = pitch_um or mpp * step_px
        agree(row.get("mpp"), pitch / step_px, where, "mpp", "pitch_um and the positions say",
               "state one of the two")
        spot = min(pitch, diameter * mpp) if diameter else pitch
        lattice = {"kind": "square", "n_neighs": 4, "spot_um": float(spot),
                   "pitch_um": float(pitch), "coordinates": "pixel"}
    else:
        if pitch_um is not None:
            agree(pitch_um, PITCH_UM, spatial, "pitch_um", "the array is Visium's, with",
                   "leave pitch_um out", "µm")
        agree(row.get("mpp"), measured, where, "mpp", "spots 100 um apart say",
               "leave mpp out, or give the positions of the full image")
        agree(_factor(scalefactors, "microns_per_pixel", where), measured, where,
               "microns_per_pixel", "spots 100 um apart say", "copy spatial/ again as a whole")
        if diameter and not SPOT_RANGE_UM[0] <= diameter * measured <= SPOT_RANGE_UM[1]:
            raise InputError(
                where, "spot_diameter_fullres", f"is {diameter:.4g} px, which is "
                f"{diameter * measured:.4g} um where spots 100 um apart are "
                f"{PITCH_UM / measured:.4g} px apart, and Space Ranger means 65 um",
                "give scale factors and positions of the same output")
        mpp = row.get("mpp") or measured
        lattice = {"kind": "hexagonal", "n_neighs": 6, "spot_um": SPOT_UM, "pitch_um": PITCH_UM,
                   "coordinates": "pixel"}
    image, scale = find_image(row, root, spatial, scalefactors)
    matrix = first_of(folder, COUNT_FILES)

    def load() -> "AnnData":
        adata = _place(genes_of(matrix, names), positions, matrix)
        adata.obsm["spatial"] = adata.obsm["spatial"] * scale
        adata.uns["lattice"] = dict(lattice)
        return adata

    return assemble(name, row, root, "visium", load, image, mpp / scale,
                     _pixels(positions[positions["in_tissue"] != 0]) * scale)


def _bins(folder: Path, spot_um: float) -> Path:
    """The folder of the coarsest bins that divide `spot_um`."""
    if _is_bin_folder(folder):
        return folder
    sizes = {}
    for path in sorted((folder / "binned_outputs").glob("square_*um")):
        digits = path.name.removeprefix("square_").removesuffix("um")
        if digits.isdigit() and _is_visium(path):
            sizes[int(digits)] = path
    dividing = [size for size in sizes if spot_um / size >= 1 and spot_um % size == 0]
    if not dividing:
        raise InputError(folder / "binned_outputs", "spot_um",
                         f"{spot_um:g} is no multiple of the bins there ({sorted(sizes)} um)",
                         "choose spot_um as a multiple of a bin")
    return sizes[max(dividing)]


def _hd_section(name: str, folder: Path, root: Path, row: dict[str, Any], names: GeneNames,
                spot_um: float, min_fill: float) -> Section:
    spatial = folder / "spatial"
    scalefactors = read_scalefactors(spatial)
    where = spatial / "scalefactors_json.json"
    stated = _factor(scalefactors, "microns_per_pixel", where)
    bin_um = _factor(scalefactors, "bin_size_um", where)
    mpp = row.get("mpp") or stated
    for field, value in (("microns_per_pixel", mpp), ("bin_size_um", bin_um)):
        if value is None:
            raise InputError(where, field, "is missing",
                             "copy it again from the Space Ranger output, or pass mpp=")
    agree(row.get("mpp"), stated, where, "mpp", "microns_per_pixel says", "leave mpp out")
    named = re.fullmatch(r"square_(\d+)um", folder.absolute().name)
    agree(bin_um, float(named[1]) if named else None, where, "bin_size_um",
           "the folder's name says", "copy spatial/ of this very folder again", "µm")
    diameter = _factor(scalefactors, "spot_diameter_fullres", where)
    agree(diameter and diameter * mpp, bin_um, where, "spot_diameter_fullres times the scale",
           "bin_size_um says", "give scale factors of this very folder", "µm")
    if spot_um < bin_um or abs(spot_um / bin_um - round(spot_um / bin_um)) > 1e-6:
        raise InputError(folder, "spot_um", f"{spot_um:g} is no multiple of the bins "
                         f"({bin_um:g} um)", "choose spot_um as a multiple of a bin")
    image, scale = find_image(row, root, spatial, scalefactors)
    matrix = first_of(folder, COUNT_FILES)

    def load() -> "AnnData":
        positions = _read_positions(spatial)
        _check_bins(positions, bin_um, mpp, spatial)
        bins = _place(genes_of(matrix, names), positions, matrix)
        # Rows and columns of the bins make the raster, so a turned slide stays square; an affine
        # fit carries the squares' centres into the image.
        grid = bins.obs[["array_col", "array_row"]].to_numpy(float)
        counts, cells = pseudospots.aggregate_bins(
            bins.layers["counts"], (grid + 0.5) * bin_um, spot_um, bin_um, min_fill)
        if len(cells) == 0:
            raise InputError(matrix, "min_fill", "no pseudo-spot lies on tissue",
                             "lower min_fill or spot_um")
        design = np.column_stack([grid, np.ones(len(grid))])
        if np.linalg.matrix_rank(design) < 3:
            raise InputError(spatial, "in_tissue", "bins under tissue lie in one line, which "
                             "places no square", "give a section with more tissue")
        map_to_px = np.linalg.lstsq(design, bins.obsm["spatial"], rcond=None)[0]
        centres = (cells + 0.5) * spot_um / bin_um - 0.5
        adata = pseudospots.to_adata(counts, cells, bins.var, spot_um)
        adata.obsm["spatial"] = np.column_stack([centres, np.ones(len(centres))]) @ map_to_px
        adata.obsm["spatial"] *= scale
        adata.uns["join"] = bins.uns["join"] | {"n_pseudospots": len(cells), "bin_um": bin_um}
        return adata

    return assemble(name, row, root, "visium_hd", load, image, mpp / scale)


def _check_bins(positions: pd.DataFrame, bin_um: float, mpp: float, where: Path) -> None:
    """Compare the distance of neighbouring bins with the stated scale."""
    found = _steps(_array_places(positions), _pixels(positions))
    if found is None:
        raise InputError(where, "array_row, array_col", "are all in one line",
                         "copy the table of positions again from the Space Ranger output")
    steps, off = found
    for axis, length in zip(("row", "column"), np.linalg.norm(steps, axis=1), strict=True):
        agree(bin_um, length * mpp, where, "bin_size_um",
               f"a {axis} further is {length:.4g} px at {mpp:.4g} µm/px, hence",
               "give positions and scale factors of the same folder", "µm")
    _check_lattice(steps, off, mpp, positions.index, where)


def _read_transcripts(path: Path, places: tuple[str, str], min_qv: float) -> tuple[pd.DataFrame,
                                                                                   int]:
    """Transcripts of genes at sufficient quality, and how many were dropped as controls."""
    present = _columns(path)
    missing = [name for name in ("feature_name", *places) if name not in present]
    if missing:
        raise InputError(path, missing[0] if missing[0] == "feature_name" else "columns",
                         f"lacks {missing}; has {present}", "give a transcripts table of Xenium")
    wanted = [name for name in present if name in ("feature_name", "qv", *places)]
    with reading(path, fix=_TRUNCATED):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path, columns=wanted)
        else:
            with open_packed(path) as stream:
                table = pd.read_csv(stream, usecols=wanted, keep_default_na=False,
                                    na_values=[""])[wanted]
    if len(table) == 0:
        raise InputError(path, "rows", "are none", "copy it again from its source")
    if table["feature_name"].dtype.kind in "iufb":
        raise InputError(path, "feature_name", f"holds numbers, such as "
                         f"{table['feature_name'].iloc[0]}, where genes must stand",
                         "give every row one cell per column, without names of rows")
    if isinstance(table["feature_name"].iloc[0], bytes):
        with reading(path, "feature_name", fix=_TRUNCATED):
            table["feature_name"] = table["feature_name"].str.decode("utf-8")
    # Tens of millions of rows name a few thousand genes.
    odd = [name for name in table["feature_name"].unique()
           if not _text(name) or not _text(name).isprintable()]
    if odd:
        at = (table["feature_name"].isna() | table["feature_name"].isin(odd)).to_numpy()
        raise InputError(path, "feature_name", f"is {_text(odd[0])!r} in row {int(at.argmax()) + 1}"
                         ", which is no name", "copy it again from its source")
    spaced = {name: name.strip() for name in table["feature_name"].unique()
              if name != name.strip()}
    if spaced:
        table["feature_name"] = table["feature_name"].astype(object).replace(spaced)
    for name in (*places, *(["qv"] if "qv" in wanted else [])):
        values = pd.to_numeric(table[name], errors="coerce")
        # The largest slide is a few centimetres; a pixel index is no further than that.
        wrong = ~(values.abs() < 1e6).to_numpy()
        if wrong.any():
            raise InputError(path, name, f"is {_text(table[name].iloc[int(wrong.argmax())])!r} in "
                             f"row {int(wrong.argmax()) + 1}, not a number below 1e6",
                             "copy it again from its source")
        table[name] = values
    if "qv" in table.columns:
        table = table[table["qv"] >= min_qv]
    names = pd.Index(table["feature_name"].astype(str).unique())
    control = set(names[pseudospots.is_control(names)])
    drop = table["feature_name"].isin(control)
    return table[~drop], int(drop.sum())


def _read_alignment(path: Path) -> np.ndarray:
    """Matrix `(3, 3)` from H&E pixels to pixels of the morphology image."""
    check_file(path, "alignment")
    fix = "export the H&E image alignment from Xenium Explorer again"
    with reading(path, "alignment", "is no 3 x 3 matrix", fix):
        matrix = np.loadtxt(path, delimiter=",", encoding="utf-8-sig", max_rows=100)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(
            matrix[2], [0, 0, 1], atol=1e-6):
        raise InputError(path, "alignment", f"is no 3 x 3 matrix of finite numbers that ends in "
                         f"0,0,1 (shape {matrix.shape})", fix)
    scales = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not scales[1] > 1e-3 or scales[0] > 1e3 or scales[0] / scales[1] > 1 + SCALE_TOLERANCE:
        raise InputError(path, "alignment", f"scales its two axes by {scales[0]:.4g} and "
                         f"{scales[1]:.4g}, as no image of a tissue section does", fix)
    return matrix


def _xenium_px_um(folder: Path) -> float:
    """Side of a pixel of the morphology image [µm], as ``experiment.xenium`` says."""
    path = first_of(folder, ("experiment.xenium",))
    if path is None:
        return XENIUM_PX_UM
    check_file(path)
    with reading(path, problem="is no JSON", fix="copy it again from the Xenium output"):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    value = found.get("pixel_size", XENIUM_PX_UM) if isinstance(found, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or \
            not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
        raise InputError(path, "pixel_size", f"is {value!r}, not micrometres per pixel",
                         "copy it again from the Xenium output")
    return float(value)


def _check_he(path: Path, mpp: float) -> None:
    """Compare `mpp` with the distances that the same transcripts have in µm and in pixels."""
    both = ("x_location", "y_location")
    if not set(both) <= set(_columns(path)):
        return
    table, _ = _read_transcripts(path, ("he_x", "he_y", *both), 0.0)
    some = table.iloc[:: max(1, len(table) // 10_000)]
    found = _steps(some[list(both)].to_numpy(float), some[["he_x", "he_y"]].to_numpy(float))
    if found is not None:
        px_per_um = float(np.linalg.norm(found[0], axis=1).mean())
        agree(mpp, 1 / px_per_um if px_per_um > 0 else None, path, "mpp",
               "he_x, he_y against x_location, y_location say",
               "pass mpp= of the H&E image that he_x and he_y speak of")


def xenium_image(name: str, folder: Path, root: Path, row: dict[str, Any]) -> tuple[
        Path | None, float | None, Callable[[np.ndarray], np.ndarray]]:
    """H&E image of an output, its scale [µm/px], and what carries µm of the output into it.

    Without an alignment there is no image, and places stay in µm.
    """
    image, mpp, px_um = _full_image(row, root) if "image" in row else None, row.get("mpp"), \
        _xenium_px_um(folder)
    if "alignment" not in row:
        if image is not None:
            log.warning("%s: places in um cannot be carried into the image without an alignment; "
                        "the section is expression-only", name)
        return None, mpp, lambda um: um
    to_morphology = _read_alignment(root / str(row["alignment"]))
    to_he = np.linalg.inv(to_morphology)
    aligned = float(px_um * abs(np.linalg.det(to_morphology[:2, :2])) ** 0.5)
    agree(mpp, aligned, root / str(row["alignment"]), "mpp", "the alignment says",
           "leave mpp out, or export the alignment of this image")

    def to_pixels(um: np.ndarray) -> np.ndarray:
        return (np.column_stack([um / px_um, np.ones(len(um))]) @ to_he.T)[:, :2]

    return image, mpp or aligned, to_pixels


def _xenium_section(name: str, folder: Path, root: Path, row: dict[str, Any], spot_um: float,
                    min_counts: int, min_qv: float) -> Section:
    path = check_file(first_of(folder, TRANSCRIPT_FILES))
    he = {"he_x", "he_y"} <= set(_columns(path))
    if he:
        image, mpp = _full_image(row, root) if "image" in row else None, row.get("mpp")
        if not mpp:
            raise InputError(path, "mpp", "he_x and he_y are pixels of unknown size",
                             "pass mpp= of the H&E image in micrometres per pixel")
    else:
        image, mpp, to_pixels = xenium_image(name, folder, root, row)

    def load() -> "AnnData":
        columns = ("he_x", "he_y") if he else ("x_location", "y_location")
        if he:
            _check_he(path, mpp)
        table, n_controls = _read_transcripts(path, columns, min_qv)
        um = table[list(columns)].to_numpy(float) * (mpp if he else 1.0)
        genes = sorted(table["feature_name"].unique())
        feature = pd.Categorical(table["feature_name"], categories=genes).codes
        counts, cells = pseudospots.aggregate_points(feature, um, len(genes), spot_um, min_counts)
        if len(cells) == 0:
            raise InputError(path, "min_counts", "no pseudo-spot lies on tissue",
                             "lower min_counts or min_qv")
        adata = pseudospots.to_adata(counts, cells, pd.DataFrame(index=pd.Index(genes)), spot_um)
        centre = (cells + 0.5) * spot_um
        adata.obsm["spatial"] = centre / mpp if he else to_pixels(centre)
        if not he and "alignment" not in row:
            adata.uns["lattice"]["coordinates"] = "um"
        adata.uns["join"] = {"n_transcripts": len(table), "n_control_transcripts": n_controls,
                             "n_pseudospots": len(cells)}
        return adata

    return assemble(name, row, root, "xenium", load, image, mpp)


def _columns(path: Path) -> list[str]:
    """Column names of a transcripts table, without reading its rows."""
    with reading(path, fix=_TRUNCATED):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        with open_packed(path) as stream:
            first = pd.read_csv(stream, nrows=1, header=0)
    if not isinstance(first.index, pd.RangeIndex):  # pandas takes what is too much for names
        raise InputError(path, "rows", "have more cells than the header has columns",
                         "write the table without names of rows")
    return list(first.columns)
