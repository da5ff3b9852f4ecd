"""Tables of counts, spots and labels as text, whoever wrote them."""

import gzip
import io
import re
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort import dated_genes
from mvhlib.cohort.base import check_counts

if TYPE_CHECKING:
    from anndata import AnnData

SPOT_COLUMNS = ("x", "y", "pixel_x", "pixel_y")
#: Names, in lower case, of the two columns of a spot file whose rows are called by array positions.
PIXEL_PAIRS = (("pixel_x", "pixel_y"), ("x", "y"))
#: Bytes of the largest table, unpacked: 1,934 spots of 40,000 genes have half of it.
LARGEST_TABLE = 400 * 2**20
#: Farthest array position and pixel; the arrays have 35 positions a side.
FARTHEST_STEP, FARTHEST_PX = 10_000, 10_000_000
#: An array position as counts name their spots.
POSITION = r"\s*(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)\s*"


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
        raise InputError(path, "file", f"is not UTF-8 text ({error})",
                         "save it as tab-separated text in UTF-8") from error
    del content
    if "\0" in text:
        raise InputError(path, "file", "holds NUL characters, so it is not text or UTF-16",
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
        raise InputError(path, "counts", "have only one column",
                         "give a tab-separated table of spots x genes")
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
    lost = dated_genes.dated(genes)  # before they are summed, or refused as repeated
    if lost.any() and not lost.all():
        dated_genes.say(genes, lost, path)
        counts, genes = counts[:, ~lost], [gene for gene, out in zip(genes, lost, strict=True)
                                           if not out]
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
    """Parse rows of whole numbers after a name, with pandas' result in a tenth of its time.

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
                         "or one that cannot be a position", "remove or complete the row")
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
    """True if the first two lines of a table are those of a spot file."""
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


def read_labels(path: Path) -> pd.Series:
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
