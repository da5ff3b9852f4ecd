"""Legacy Spatial Transcriptomics: what every data set of that family shares.

A section is three files: counts (spots x genes, index ``XxY`` in array positions), a spot file
(array position and pixel of every spot, and which of them lie under tissue) and, sometimes, an
image. The scale is measured, not believed: neighbouring spots of an array are a known distance
apart, so their distance in pixels gives micrometres per pixel.

Sources: Ståhl et al., Science 353, 78 (2016), for the arrays; Andersson et al., Nature
Communications 12, 6012 (2021), and Bergenstråhle et al., BMC Genomics 21, 482 (2020), for the
file formats.

==================  ================================================================================
what                how it is read
==================  ================================================================================
tables              apart by tabs, or by commas; UTF-8 or UTF-16 with byte order mark; packed by
                    gzip or not, whatever the ending says; the header may lack the corner, as R
                    writes it; other ragged rows are refused
counts              one row per spot, one column per gene; a header is asked for, names once each;
                    whole numbers, not all 0
doubled genes       refused, since nothing tells which is which; the source ``legacy_st`` sums them
                    where it is asked to
index of counts     ``10x13``; ``9.97x13.04``, as the ST pipeline aligns them, is rounded where
                    there is a spot file
spot file           x, y, pixel_x, pixel_y (or rows ``XxY`` with X, Y [px]): finite numbers;
                    selected: 0 and 1, or TRUE and FALSE
positions           pixels must follow array positions by one map, its steps equally long within a
                    quarter; else they are of another image
scale               measured from the spots; a stated one must agree within a tenth
image               at most one spot in twenty outside. One that was reduced is recognised by more
                    than a tenth outside, and its scale found, unless it could be a cut-out as well
absent              image: expression-only; spot file: array positions, expression-only; labels
``samples.csv``     for the source ``legacy_st``: columns section, study, patient, counts;
                    optionally specimen, spots, image, labels (paths below DATA) and full_width_px.
                    One file belongs to one section
refused             links that lead nowhere, paths that leave DATA, two files for one section
==================  ================================================================================
"""

import gzip
import io
import logging
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort.base import (
    Cohort,
    ImageRef,
    Section,
    check_counts,
    check_inside,
    check_mpp,
    check_scale,
    entries,
    section_list,
)
from mvhlib.places import resolve
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Distance of neighbouring spots [µm] on the 1,007-spot arrays.
PITCH_UM = 200.0
#: Nearest spots [µm] on the 1,934-spot arrays: two 1,007-spot lattices, one set into the centres
#: of the other.
STAGGERED_PITCH_UM = PITCH_UM / 2**0.5
#: Diameter of a spot [µm].
SPOT_UM = 100.0

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
TABLE_SUFFIXES = (".tsv.gz", ".tsv", ".txt.gz", ".txt", ".csv.gz", ".csv")
SPOT_COLUMNS = ("x", "y", "pixel_x", "pixel_y")
#: Names, in lower case, of the two columns of a spot file whose rows are called by array positions.
PIXEL_PAIRS = (("pixel_x", "pixel_y"), ("x", "y"))
#: Bytes of the largest table, unpacked: 1,934 spots of 40,000 genes have half of it.
LARGEST_TABLE = 400 * 2**20
#: Farthest array position and pixel; the arrays have 35 positions a side.
FARTHEST_STEP, FARTHEST_PX = 10_000, 10_000_000
#: An array position as counts name their spots.
POSITION = r"\s*(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)\s*"


@dataclass(frozen=True)
class Lattice:
    """What the spots of one section say about the scale of their pixels.

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
    """What an image file does not say about itself.

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


def read(path: str | Path, *, samples: str | Path | None = None,
         sections: Iterable[str] | None = None, images: bool = True,
         pitch_um: float | None = None, sum_doubled: bool = False) -> Cohort:
    """Read sections of any laboratory, whose files a table names.

    Parameters
    ----------
    path
        Data directory; the paths of the table start there.
    samples
        The table (see the module); None takes ``samples.csv`` in `path`.
    sections
        Names to read; None reads all.
    images
        False reads every section as expression-only.
    pitch_um
        Distance of nearest spots [µm]; None is that of the array.
    sum_doubled
        Sum the columns of a gene that stands more than once, as symbols of two Ensembl ids do.

    Raises
    ------
    InputError
        If a file is missing or broken, or a path leaves `path`.
    """
    root = Path(path)
    file = resolve(samples) if samples is not None else root / "samples.csv"
    table = tables.read_table(file, ("section", "study", "patient", "counts"))
    for column in ("section", "study", "patient", "counts"):
        tables.names(table, column, file, unique=column in ("section", "counts"))
    for column in ("specimen", "spots", "image", "labels", "full_width_px"):
        if column not in table:
            table[column] = ""
    widths = tables.numbers(table, "full_width_px", file, above=0, missing=True, unit="px")
    rows = {row["section"]: row | {"full_width_px": width} for row, width in
            zip(table.to_dict("records"), widths, strict=True)}
    for column in ("spots", "image", "labels"):
        twice = [name for name, n in Counter(table[column]).items() if name and n > 1]
        if twice:
            raise InputError(file, column, f"{twice[0]!r} stands more than once",
                             "give every section its own file")

    def below(row: Mapping[str, Any], column: str) -> Path | None:
        if not row[column]:
            return None
        way = Path(row[column])
        if way.is_absolute() or ".." in way.parts:
            raise InputError(file, column, f"is {row[column]!r}, which leads out of {root}",
                             "put the file, or a link to it, into the data directory")
        return check_file(root / way, column)

    made = []
    for name in check_names(rows, sections, root) if sections is not None else rows:
        row = rows[name]
        width = row["full_width_px"]
        made.append(make_section(
            name, root=root, counts=below(row, "counts"), spot_file=below(row, "spots"),
            image=below(row, "image") if images else None, study=row["study"],
            patient=row["patient"], specimen=row["specimen"] or row["patient"],
            source="legacy_st", labels=below(row, "labels"),
            facts=ImageFacts(full_width_px=width) if width > 0 else None, pitch_um=pitch_um,
            sum_doubled=sum_doubled))
    return Cohort(made)


def read_lines(path: Path) -> list[str]:
    """Rows of a tab-separated table as text, each with as many cells as the others.

    The first may have one cell less: R leaves out the name of the row names. Blank rows at the end
    are left out.

    Raises
    ------
    InputError
        If the file is missing, no text, truncated, unreasonably large or ragged.
    """
    path = check_file(path)
    with reading(path):
        with open(path, "rb") as stream:
            content = stream.read(LARGEST_TABLE + 1)
        if content[:2] == b"\x1f\x8b":  # judged by its first bytes and not by its name
            try:
                with gzip.open(io.BytesIO(content)) as stream:
                    content = stream.read(LARGEST_TABLE + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(path, "file", f"is a broken gz file ({error})",
                                 "it is probably truncated: copy it again from its source"
                                 ) from error
    if len(content) > LARGEST_TABLE:
        raise InputError(path, "file", f"has more than {LARGEST_TABLE // 2**20} MB, which no table "
                         "of one section has", "give one section's table")
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not wide and (kind := tables.foreign(content)):
        raise InputError(path, "file", f"is {kind}", "give a tab-separated text file")
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, "file", f"is no UTF-8 text ({error})",
                         "save it as tab-separated text in UTF-8") from error
    del content
    if "\0" in text:
        raise InputError(path, "file", "holds NUL characters, so it is no text or UTF-16",
                         "save it as tab-separated text in UTF-8")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(path, "table", "is empty", "copy it again from its source")
    lines = with_tabs(lines)
    if len(lines) > 1:
        cells = [line.count("\t") + 1 for line in lines]
        usual = cells[1]
        ragged = next((row for row, n in enumerate(cells)
                       if n != usual and not (row == 0 and n == usual - 1)), None)
        if ragged is not None:
            raise InputError(path, f"row {ragged + 1}", f"has {cells[ragged]} cells where row 2 "
                             f"has {usual}", "it is probably cut off or was edited: copy it again "
                             "from its source")
    return lines


def with_tabs(lines: list[str]) -> list[str]:
    """Lines of a table whose cells are apart by commas, with tabs; others as they are."""
    first = lines[:2]
    commas = [line.count(",") for line in first]
    if any("\t" in line for line in first) or len(first) < 2 or commas[1] < 2 or \
            commas[1] - commas[0] not in (0, 1):
        return lines
    return [line.replace(",", "\t") for line in lines]


def read_table(path: Path, **options) -> pd.DataFrame:
    """Read a tab-separated table; without a header where `options` say ``header=None``.

    Raises
    ------
    InputError
        If the file is missing, truncated, empty, ragged, or names a column twice.
    """
    path = Path(path)
    lines = read_lines(path)
    if "header" not in options:
        names = [name.strip().strip('"') for name in lines[0].split("\t")]
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            raise InputError(path, "columns", f"{twice[:3]} stand more than once in the header",
                             "keep one, or rename the others")
        if "\t" not in lines[0]:
            raise InputError(path, "columns", f"are one: {lines[0][:60]!r}",
                             "give a tab-separated table")
    with reading(path, "table", fix="give a tab-separated table"):
        return pd.read_csv(io.StringIO("\n".join(lines)), sep="\t", **options)


def read_counts(path: Path, sum_doubled: bool = False) -> "AnnData":
    """Read a count table: one row per spot (index ``XxY``), one column per gene.

    Parameters
    ----------
    sum_doubled
        Sum the columns of a gene that stands more than once, at the place of the first.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 CSR `(T, G)`; the same matrix is X.

    Raises
    ------
    InputError
        If the file is missing or truncated, has no header or no index, a cell is no number, a
        barcode or gene stands twice or is blank, or counts are negative, fractional or all 0.
    """
    from anndata import AnnData
    from scipy import sparse

    path = Path(path)
    lines = read_lines(path)
    with reading(path, "table", fix="give a tab-separated table"):
        # Header and body apart: pandas would rename a gene that stands twice and hide the fault.
        cells = lines[0].split("\t")
        if '"' in lines[0]:
            cells = pd.read_csv(io.StringIO(lines[0]), sep="\t", header=None, dtype=str,
                                keep_default_na=False, skip_blank_lines=False).iloc[0]
        genes = [str(gene).strip() for gene in cells]
        if len(lines) > 1:
            body = _digits(lines[1:])
            if body is None:
                body = pd.read_csv(io.StringIO("\n".join(lines[1:])), sep="\t", header=None,
                                   index_col=0, dtype={0: str}, keep_default_na=False,
                                   na_values=[""])
    if len(lines) == 1:
        raise InputError(path, "counts", "are none below the header", "give one row per spot")
    del lines
    if body.shape[1] == 0:
        raise InputError(path, "counts", "are one column", "give a tab-separated table of spots x "
                         "genes")
    _check_header(path, genes)
    if len(genes) == body.shape[1] + 1:
        genes = genes[1:]  # R leaves the corner out, the ST pipeline writes it
    if len(genes) != body.shape[1]:
        raise InputError(path, "header", f"names {len(genes)} genes for {body.shape[1]} columns",
                         "the file is probably truncated: copy it again from its source")
    words = [gene for gene, kind in zip(genes, body.dtypes, strict=True) if kind.kind not in "iuf"]
    if words:
        raise InputError(path, "counts", f"hold text in column {words[0]!r}",
                         "give a table of numbers")
    names = body.index.to_series().fillna("").astype(str).str.strip()
    counts = sparse.csr_matrix(body.to_numpy())
    if sum_doubled and len(set(genes)) < len(genes):
        code, first = pd.factorize(np.array(genes, dtype=object))
        onto = sparse.csr_matrix((np.ones(len(code), dtype=counts.dtype),
                                  (np.arange(len(code)), code)))
        counts, genes = (counts @ onto).tocsr(), list(first)
    with warnings.catch_warnings():  # names that repeat: check_counts refuses them
        warnings.simplefilter("ignore", UserWarning)
        adata = AnnData(obs=pd.DataFrame(index=pd.Index(names.to_numpy(), dtype=object)),
                        var=pd.DataFrame(index=pd.Index(genes, dtype=str)))
    adata.layers["counts"] = counts
    check_counts(adata, path)
    adata.layers["counts"] = counts.astype(np.int32)
    adata.X = adata.layers["counts"].copy()
    return adata


def _digits(lines: list[str]) -> pd.DataFrame | None:
    """Rows of plain whole numbers behind a name, as pandas reads them in ten times the time.

    None where a row holds anything else: signs, points, quotes, blank cells.
    """
    names, rows = [], []
    for line in lines:
        name, _, cells = line.partition("\t")
        # Unchecked, NumPy would stop at the first cell that it cannot read.
        if '"' in name or not re.fullmatch(r"\d{1,18}(\t\d{1,18})*", cells, re.ASCII):
            return None
        names.append(name or np.nan)
        rows.append(np.fromstring(cells, dtype=np.int64, sep="\t"))
    return pd.DataFrame(np.array(rows), index=pd.Index(names, dtype=object))


def _check_header(path: Path, cells: list[str]) -> None:
    """Refuse a first row that is a spot, or that names spots instead of genes."""
    positions = [bool(re.fullmatch(POSITION, cell)) for cell in cells]
    fix = "give spots in rows, and a first row that names the genes"
    if len(cells) > 2 and all(positions[1:]):
        raise InputError(path, "header", f"names spots ({cells[1]}, ...) and no genes: the table "
                         "stands on its side", fix)
    numbers = [bool(re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", cell, re.IGNORECASE))
               for cell in cells[1:]]
    if positions[0] or (numbers and all(numbers)):
        raise InputError(path, "header", f"is missing: the first row is a spot ({cells[0]}, "
                         f"{', '.join(cells[1:3])}, ...)", fix)


def read_spots(path: Path) -> pd.DataFrame:
    """Read a spot file.

    Returns
    -------
    DataFrame
        Index ``XxY`` (rounded array position); columns array_x, array_y (int), pixel_x, pixel_y
        [px] and selected (bool, True throughout where the file does not say).

    Raises
    ------
    InputError
        If a column is missing or no finite number, selected is neither yes nor no, or two spots
        share an array position.
    """
    path = Path(path)
    table = _named_spots(read_table(path))
    missing = [column for column in SPOT_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "give x, y, pixel_x and pixel_y")
    if table.empty:
        raise InputError(path, "rows", "are none below the header", "give one row per spot")
    numbers = table[list(SPOT_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    farthest = [FARTHEST_STEP, FARTHEST_STEP, FARTHEST_PX, FARTHEST_PX]
    wrong = ~(numbers.abs().astype(float) <= farthest).to_numpy()  # NaN is wrong as well
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(path, "x, y, pixel_x, pixel_y", f"hold no number in row {row + 1} "
                         f"({SPOT_COLUMNS[column]} is {table[SPOT_COLUMNS[column]].iloc[row]!r}), "
                         "or one that is no position", "remove or complete the row")
    spots = pd.DataFrame({
        "array_x": numbers["x"].round().astype(int), "array_y": numbers["y"].round().astype(int),
        "pixel_x": numbers["pixel_x"].astype(float), "pixel_y": numbers["pixel_y"].astype(float),
        "selected": _yes_or_no(path, table["selected"]) if "selected" in table.columns else True})
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["array_x"], spots["array_y"],
                                                      strict=True)])
    if not spots.index.is_unique:
        twice = list(spots.index[spots.index.duplicated()][:3])
        raise InputError(path, "x, y", f"two spots share an array position, for example {twice}",
                         "keep one row per array position")
    return spots


def _named_spots(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose rows are called ``XxY`` and hold two columns of pixels, under our names.

    He et al., Nature Biomedical Engineering 4, 827 (2020), published theirs so.
    """
    if set(SPOT_COLUMNS) <= set(table.columns) or not 2 <= table.shape[1] <= 3:
        return table
    if table.shape[1] == 3:
        table = table.set_index(table.columns[0])
    pixels = {str(column).lower(): column for column in table.columns}
    parts = [re.fullmatch(POSITION, str(name)) for name in table.index]
    pair = next((pair for pair in PIXEL_PAIRS if set(pair) <= set(pixels)), None)
    if pair is None or not parts or not all(parts):
        return table
    return pd.DataFrame({"x": [part[1] for part in parts], "y": [part[2] for part in parts],
                         "pixel_x": table[pixels[pair[0]]].to_numpy(),
                         "pixel_y": table[pixels[pair[1]]].to_numpy()})


def is_spots(lines: list[str]) -> bool:
    """Whether the first two lines of a table are those of a spot file."""
    if len(lines) < 2:
        return False
    header, row = ([cell.strip().strip('"') for cell in line.split("\t")]
                   for line in with_tabs(lines[:2]))
    return set(SPOT_COLUMNS) <= set(header) or (
        len(row) == 3 and bool(re.fullmatch(POSITION, row[0]))
        and any(set(pair) == {cell.lower() for cell in header[-2:]} for pair in PIXEL_PAIRS))


def _yes_or_no(path: Path, column: pd.Series) -> np.ndarray:
    """A column of 0 and 1, or of R's TRUE and FALSE."""
    said = column.astype(str).str.strip().str.lower().map(
        {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False})
    if said.isna().any():
        row = int(np.flatnonzero(said.isna())[0])
        raise InputError(path, str(column.name), f"is {column.iloc[row]!r} in row {row + 1}",
                         "write 1 for spots under tissue and 0 for the others")
    return said.to_numpy(bool)


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
    pitch_um = None if pitch_um is None else _positive(pitch_um, where, "pitch_um")
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


def find_tables(root: Path, folders: Iterable[str], pattern: str) -> dict[str, Path]:
    """Files of `folders` below `root` whose whole name matches `pattern`, by section.

    Parameters
    ----------
    pattern
        Regular expression with a group ``section``, without the table suffix.

    Raises
    ------
    InputError
        If two files claim one section.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in entries(root / folder):
            suffix = table_suffix(path)
            match = suffix and re.fullmatch(pattern, path.name.removesuffix(suffix))
            if not match:
                continue
            name = match["section"]
            if name in found:
                raise InputError(path, "section", f"{name} has a second file, {found[name].name}",
                                 "keep one of them")
            found[name] = path
    return found


def is_counts(path: Path) -> bool:
    """Whether a table looks like one of counts: its second row begins with an array position."""
    try:
        lines = read_lines(path)
    except InputError:  # a broken archive is likelier a table than a note
        return path.name.endswith(".gz")
    return len(lines) > 1 and bool(re.fullmatch(POSITION, lines[1].split("\t")[0].strip('"')))


def table_suffix(path: Path) -> str | None:
    """The ending of a table's name, or None."""
    return next((end for end in TABLE_SUFFIXES if path.name.endswith(end)), None)


def find_images(root: Path, names: Iterable[str], depth: int = 3) -> dict[str, Path]:
    """The image of each section, wherever it lies below `root`.

    A file belongs to a section if its folder has the section's name, or its own name begins with
    it; where it begins with two, it belongs to the longer. A folder of its own wins: there the
    full-resolution image lies.

    Raises
    ------
    InputError
        If a section has two images of equal standing, or a link leads nowhere.
    """
    names = list(names)
    files, folders = [], [root]
    for _ in range(depth + 1):
        found = [path for folder in folders for path in entries(folder)]
        folders = [path for path in found if path.is_dir()]
        lost = [path for path in found if path.is_symlink() and not path.exists()
                and path.suffix.lower() in ("", *IMAGE_SUFFIXES)]
        if lost:
            raise InputError(lost[0], "link", "leads nowhere, and may stand for images",
                             "mend the link, or delete it")
        files += [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES
                  and not path.is_dir()]
    owner = {path: max((name for name in names
                        if re.match(rf"{re.escape(name)}(?![0-9A-Za-z])", path.name)),
                       key=len, default=None) for path in files}
    found = {}
    for name in names:
        in_folder = [path for path in files if path.parent.name == name and path.parent != root]
        candidates = in_folder or [path for path in files if owner[path] == name]
        if len(candidates) > 1:
            raise InputError(candidates[1], "image", f"section {name} has two images, the other is "
                             f"{candidates[0]}", "keep one of them")
        if candidates:
            found[name] = candidates[0]
    return found


def make_section(name: str, *, root: Path, counts: Path, spot_file: Path | None,
                 image: Path | None, study: str, patient: str, specimen: str, source: str,
                 labels: Path | None = None, facts: ImageFacts | None = None,
                 pitch_um: float | None = None, mpp: float | None = None,
                 sum_doubled: bool = False) -> Section:
    """Make a section of its files; counts are read at first use.

    Parameters
    ----------
    root
        Data directory; the image is recorded relative to it.
    spot_file
        None gives an expression-only section whose coordinates are array positions.
    labels
        Table with x, y and label per spot, or None.
    facts
        What is known of the image file.
    pitch_um
        Distance of nearest spots [µm]; see `measure_lattice`.
    mpp
        Micrometres per pixel of the spot file [µm/px]; None measures it.
    sum_doubled
        See `read_counts`.

    Raises
    ------
    InputError
        If the spot file is broken, its scale cannot be measured or is not `mpp`, or its spots lie
        outside the image.
    """
    spots = lattice = ref = size = image_mpp = None
    scale = 1.0
    if spot_file is not None:
        spots = read_spots(spot_file)
        if not spots["selected"].any():
            raise InputError(spot_file, "selected", "no spot lies on tissue",
                             "select the spots under tissue (1), or leave the column out")
    elif image is not None:
        log.warning("%s: has an image and no spot file, so it is expression-only", name)
        image = None
    if image is not None:
        if mpp is None or spots["array_x"].nunique() > 1 < spots["array_y"].nunique():
            lattice = measure_lattice(spots, spot_file, pitch_um)
            if mpp is not None:
                check_scale(check_mpp(mpp, spot_file), lattice.mpp, spot_file, "mpp",
                            said="{:.4g} um/px is stated", seen="spots that are "
                            f"{lattice.pitch_um:.4g} um apart make it {{:.4g}}")
        else:
            pitch = PITCH_UM if pitch_um is None else _positive(pitch_um, name, "pitch_um")
            lattice = Lattice(pitch / check_mpp(mpp, spot_file), pitch, 1.0, False)
        mpp = lattice.mpp if mpp is None else mpp
        with open_slide(check_file(image, "image")) as slide:
            size = (slide.width, slide.height)
        facts = facts or ImageFacts()
        if facts.full_width_px is not None:
            _positive(facts.full_width_px, f"section {name}", "full_width_px")
        reduced = facts.full_width_px is not None or _beyond(spots, size) > 0.1
        if facts.dark_background is None and reduced:
            # Only reduced images come cut out of black, and looking costs a whole decoding.
            facts = replace(facts, dark_background=_is_dark(image))
        if reduced:
            scale = _scale(name, image, size, facts, spots, lattice)
        check_inside(spots.loc[spots["selected"], ["pixel_x", "pixel_y"]].to_numpy() * scale, size,
                     image)
        image_mpp = mpp / scale
        ref = ImageRef(str(image.relative_to(root)), "data", facts.exclude,
                       bool(facts.dark_background))
        if abs(lattice.anisotropy - 1) > 0.05 and not lattice.staggered:
            log.warning("%s: spots are %.3g times as far apart along x as along y; the image may "
                        "be stretched", name, lattice.anisotropy)

    def load() -> "AnnData":
        adata = _join(read_counts(counts, sum_doubled), spots, counts, spot_file, scale)
        adata.uns["lattice"] = {
            "kind": "square", "n_neighs": 4, "spot_um": SPOT_UM,
            "pitch_um": lattice.pitch_um if lattice else PITCH_UM,
            "pitch_px": lattice.pitch_px * scale if lattice else -1.0,
            "anisotropy": lattice.anisotropy if lattice else 1.0,
            "coordinates": "array" if spots is None else "pixel"}
        if labels is not None:
            adata.obs["label"] = _read_labels(labels).reindex(adata.obs_names).to_numpy()
            adata.obs["label"] = adata.obs["label"].astype("category")
        return adata

    return Section(name=name, study=study, patient=patient, specimen=specimen, source=source,
                   load=load, mpp=image_mpp, image_ref=ref, image_size=size, roots={"data": root})


def _positive(value: Any, where, field: str) -> float:
    """A number above 0 that a caller states."""
    if isinstance(value, bool) or not isinstance(value, (Real, np.number)) or \
            not 0 < float(value) < math.inf:
        raise InputError(where, field, f"is {value!r}", "give a number above 0")
    return float(value)


def check_keys(option: Mapping[str, Any] | None, name: str, known: Iterable[str] | None = None
               ) -> Mapping[str, Any]:
    """An option that says something of each section: a mapping, whose keys are sections.

    Raises
    ------
    InputError
        If it is no mapping, or a key is none of `known`.
    """
    if option is None:
        return {}
    if not isinstance(option, Mapping):
        raise InputError(f"option {name}", name, f"is {option!r}", "write {section: value}")
    unknown = [] if known is None else [key for key in option if key not in set(known)]
    if unknown:
        raise InputError(f"option {name}", "section", f"{unknown[:5]} are not there",
                         "name sections that exist, in quotes")
    return option


def check_names(found: Mapping[str, Path], wanted: Iterable[str] | None, root: Path) -> list[str]:
    """Names of the sections to read, in their natural order; all that were found by default."""
    if wanted is None:
        return sorted(found, key=_natural)
    wanted = section_list(wanted, root)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise InputError(root, "sections", f"{unknown} are not there; there are "
                         f"{sorted(found, key=_natural)}", "name sections that exist")
    return wanted


def _natural(name: str) -> list:
    """Sort key that puts A2 before A10."""
    # [0-9]: other digits, such as superscripts, are no numbers to Python.
    return [int(part) if index % 2 else part
            for index, part in enumerate(re.split(r"([0-9]+)", name))]


def _beyond(spots: pd.DataFrame, size: tuple[int, int]) -> float:
    """Share of the selected spots whose pixel lies beyond an image of `size` (width, height)."""
    pixel = spots.loc[spots["selected"], ["pixel_x", "pixel_y"]].to_numpy()
    return float((pixel >= size).any(axis=1).mean())


def _is_dark(path: Path) -> bool:
    """True where most of an image's outermost pixels are black."""
    with open_slide(path) as slide:
        brightest = slide.thumbnail(200).max(axis=2)
    border = np.concatenate([brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1]])
    return bool(np.median(border) < 40)


def _scale(name: str, image: Path, size: tuple[int, int], facts: ImageFacts, spots: pd.DataFrame,
           lattice: Lattice) -> float:
    """Pixels of a reduced image per pixel of the spot file."""
    if facts.full_width_px is not None:
        return size[0] / facts.full_width_px
    scale = estimate_scale(image, facts, spots[spots["selected"]], lattice)
    log.warning("%s: %s is a reduced image; laid over its tissue, the spots give a full width of "
                "%.0f px (about 1 %% certain; full_width_px= states it)", name, image.name,
                size[0] / scale)
    return scale


def _join(adata: "AnnData", spots: pd.DataFrame | None, counts: Path, spot_file: Path | None,
          scale: float) -> "AnnData":
    """Keep the spots that have counts, a position and lie under tissue; count the others."""
    if spots is None:
        parts = [re.fullmatch(POSITION, name) for name in adata.obs_names]
        if None in parts:
            raise InputError(counts, "index", f"{adata.obs_names[parts.index(None)]!r} is no array "
                             "position like 10x13", "give a spot file, or an index XxY")
        position = np.array([[float(v) for v in part.groups()] for part in parts])
        if np.abs(position).max() > FARTHEST_STEP:
            raise InputError(counts, "index", "holds positions that no array has",
                             "give a spot file, or an index XxY")
        adata.obs["array_x"], adata.obs["array_y"] = np.rint(position).astype(int).T
        adata.obsm["spatial"] = position
        return adata
    adata = _rounded(adata, counts)
    joined = adata.obs_names.isin(spots.index)
    if not joined.any():
        raise InputError(counts, "index", f"none of {adata.n_obs} spots is in {spot_file} "
                         f"({adata.obs_names[0]!r} against {spots.index[0]!r})",
                         "give the counts and the spots of the same section")
    selected = spots["selected"].reindex(adata.obs_names, fill_value=False).to_numpy(bool)
    if not selected.any():
        raise InputError(spot_file, "selected", "no spot with counts lies on tissue",
                         "select the spots under tissue (1), or leave the column out")
    record = {"n_counts": adata.n_obs, "n_spots": len(spots), "n_kept": int(selected.sum()),
              "n_without_position": int((~joined).sum()),
              "n_off_tissue": int((joined & ~selected).sum()),
              "n_without_counts": int((~spots.index[spots["selected"]].isin(
                  adata.obs_names)).sum()),
              "scale": scale}
    if record["n_without_position"]:
        log.warning("%s: %d of %d spots have no position and are dropped", counts.name,
                    record["n_without_position"], adata.n_obs)
    adata = adata[selected].copy()
    place = spots.loc[adata.obs_names]
    adata.obs["array_x"] = place["array_x"].to_numpy()
    adata.obs["array_y"] = place["array_y"].to_numpy()
    adata.obsm["spatial"] = place[["pixel_x", "pixel_y"]].to_numpy() * scale
    adata.uns["join"] = record
    return adata


def _rounded(adata: "AnnData", counts: Path) -> "AnnData":
    """Spots named by the array position next to their aligned one (``9.97x13.04``: ``10x13``)."""
    parts = [re.fullmatch(POSITION, name) for name in adata.obs_names]
    if None in parts or not any("." in name for name in adata.obs_names):
        return adata
    names = pd.Index(["x".join(str(round(float(value))) for value in part.groups())
                      for part in parts])
    if names.has_duplicates:
        first = names[names.duplicated()][0]
        raise InputError(counts, "index", f"{list(adata.obs_names[names == first])} are both next "
                         f"to array position {first}", "keep one spot per array position")
    adata.obs["aligned"] = adata.obs_names.to_numpy()
    adata.obs_names = names
    return adata


def _read_labels(path: Path) -> pd.Series:
    """Class per spot, index ``XxY``; rows without a position or a class are left out."""
    table = read_table(path)
    missing = [column for column in ("x", "y", "label") if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "give x, y and label")
    table = table.dropna(subset=["x", "y", "label"])
    if not isinstance(table.index, pd.RangeIndex) and table.index.dtype.kind != "i":
        raise InputError(path, "rows", "have more cells than the header", "name every column")
    places = table[["x", "y"]].apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = ~(places.abs() <= FARTHEST_STEP).all(axis=1)
    if wrong.any():
        row = table.index[wrong][0]
        raise InputError(path, "x, y", f"are {table.at[row, 'x']!r}, {table.at[row, 'y']!r} in row "
                         f"{row + 1}", "give array positions, or leave both blank")
    labels = pd.Series(table["label"].astype(str).to_numpy(),
                       index=[f"{round(x)}x{round(y)}"
                              for x, y in zip(places["x"], places["y"], strict=True)])
    several = labels.groupby(labels.index).nunique()
    if (several > 1).any():
        first = several.index[several > 1][0]
        raise InputError(path, "label", f"of array position {first} is {list(labels[first])}",
                         "keep one row per array position")
    return labels[~labels.index.duplicated()]
