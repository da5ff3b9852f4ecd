"""Tables that a run writes and reads again; users' own tables are `mvhlib.tables`'s."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvhlib.artifacts.errors import InputError, reading
from mvhlib.artifacts.files import atomic, check_file

#: Nine significant digits: enough to reproduce a figure, few enough to read.
FLOAT_FORMAT = "%.9g"
#: Bytes that no cell holds; tabs and line ends may stand in quotes.
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")


def write_csv(path: str | os.PathLike, frame) -> Path:
    """Write a data frame without its index; floats with nine significant digits.

    Text that a spreadsheet would run as a formula (it begins with ``=``, ``+``, ``-``, ``@`` or a
    control character) gets an apostrophe in front, and so does text that begins with apostrophes
    and goes on like that; `read_csv` takes that one apostrophe off again, so that every value comes
    back as it was. Numbers are no text. ``-``, ``-4``, ``+42 %`` and ``-10 to 0`` stay as they are:
    nothing in them can be run.
    """
    import csv

    guarded, returns = frame, False
    for at, kind in enumerate(frame.dtypes):
        if kind.kind != "O":
            continue
        texts = {value for value in frame.iloc[:, at] if isinstance(value, str)}
        # Unquoted, a carriage return would end the row for whoever reads the file.
        returns = returns or any("\r" in text for text in texts)
        runs = {text for text in texts if _runs(text)}
        if runs:
            guarded = frame.copy(deep=False) if guarded is frame else guarded
            guarded.isetitem(at, [f"'{value}" if isinstance(value, str) and value in runs else value
                                  for value in frame.iloc[:, at]])
    if any(isinstance(column, str) and _runs(column) for column in frame.columns):
        guarded = guarded.set_axis([f"'{column}" if isinstance(column, str) and _runs(column)
                                    else column for column in frame.columns], axis=1)
    with atomic(path) as temporary:
        guarded.to_csv(temporary, index=False, float_format=FLOAT_FORMAT, lineterminator="\n",
                       quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)
    return Path(path)


#: What a spreadsheet takes for the beginning of a formula; apostrophes of ours may stand before it.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_SHARE = r"[+-]?\d+(\.\d+)?"
_PROSE = re.compile(rf"-|-\d+(\.\d+)?|{_SHARE} to {_SHARE}|{_SHARE}[+-]\d+(\.\d+)?j|"
                    rf"{_SHARE} ?%( \(\w+\))?(, {_SHARE} ?%( \(\w+\))?)*", re.ASCII)


def _runs(text: str) -> bool:
    """True if a cell needs an apostrophe, lest a spreadsheet runs it or `read_csv` strips it."""
    return bool(_FORMULA.match(text)) and not _PROSE.fullmatch(text)


def _unguarded(value: Any) -> Any:
    """A cell without the apostrophe that `write_csv` put in front."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _FORMULA.match(
        value) else value


#: Columns of the run folder that hold names: text, whatever they look like.
NAME_COLUMNS = frozenset((
    "section", "study", "patient", "specimen", "slide", "image", "site", "donor", "sample",
    "barcode", "gene", "symbol", "program", "panel", "protocol", "fold", "role", "group",
    "trained_on", "tested_on", "encoder", "method", "member", "label", "system", "variant",
    "dataset", "source", "split", "unit", "pool", "metric", "control", "classifier", "claim"))
#: Columns of the run folder that hold numbers, or nothing where one is not known.
NUMBER_COLUMNS = frozenset((
    "n_spots", "n_genes", "n_tiles", "n_units", "n_nan", "mpp", "source_mpp", "tile_px", "tile_um",
    "image_width_px", "image_height_px", "rank", "pcc", "mae", "mse", "ceiling", "mean", "ci_low",
    "ci_high"))


def read_csv(path: str | os.PathLike, columns: tuple[str, ...] = (), **options):
    """Read a table of the run folder, as `write_csv` writes it; users' own: `mvhlib.tables`.

    ==================  ============================================================================
    what                how it is read
    ==================  ============================================================================
    encoding            UTF-8 alone, commas, double quotes
    rows                one cell for each column; longer and shorter ones are refused
    columns             each once
    `NAME_COLUMNS`      text, so that section ``007`` stays; blank is NaN, and ``NA`` is a gene
    `NUMBER_COLUMNS`    numbers or blank (NaN); text is refused
    other columns       as pandas takes them
    ``'=SUM``           the apostrophe that `write_csv` puts before a formula is taken off
    ==================  ============================================================================

    Parameters
    ----------
    columns
        Columns that must be there.
    **options
        Of `pandas.read_csv`; ``dtype`` goes before the rules above.

    Raises
    ------
    InputError
        If there is no such file, it is no text of this kind, or a column is lacking, doubled or not
        of its kind.
    """
    import io

    import pandas as pd

    path = Path(path)
    check_file(path)
    with reading(path):
        content = path.read_bytes()
    header = _header(path, content)
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {header}",
                         "add or rename the columns")
    kinds = options.pop("dtype", {})
    if isinstance(kinds, dict):
        kinds = {column: str for column in header if column in NAME_COLUMNS} | kinds
    with reading(path, fix="make the table again, or mend the cell"):
        frame = pd.read_csv(io.BytesIO(content), **{
            "keep_default_na": False, "na_values": [""], "dtype": kinds, "encoding": "utf-8-sig",
            "low_memory": False} | options)
    for column in header if isinstance(kinds, dict) else ():
        if column in NUMBER_COLUMNS - set(kinds) and frame[column].dtype.kind == "O":
            wrong = pd.to_numeric(frame[column], errors="coerce").isna() & frame[column].notna()
            if wrong.any():
                raise InputError(path, str(column), f"row {int(wrong.to_numpy().argmax()) + 2} is "
                                 f"{str(frame[column][wrong].iloc[0])[:60]!r} and no number",
                                 "make the table again, or mend the cell")
    if b"'" in content:
        for at in range(frame.shape[1]):
            if frame.dtypes.iloc[at].kind == "O":
                frame.isetitem(at, frame.iloc[:, at].map(_unguarded))
        frame.columns = [_unguarded(column) for column in frame.columns]
    return frame


def _header(path: Path, content: bytes) -> list[str]:
    """Column names of a table of the run folder, once all of its rows are as wide as these."""
    import csv
    import io

    if not content.strip():
        raise InputError(path, "file", "is empty", "make it again")
    if b"\0" in content:
        raise InputError(path, "file", "holds a byte of zero: it is no text, or UTF-16",
                         "save it as UTF-8, or make it again")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise InputError(path, f"row {line}", f"holds the byte 0x{content[error.start]:02x}, which "
                         "is no UTF-8", "save the table as UTF-8, or make it again") from error
    odd = _CONTROL.search(content)
    if odd:
        raise InputError(path, f"row {content[:odd.start()].count(bytes([10])) + 1}",
                         f"holds the control character 0x{odd[0][0]:02x}",
                         "make the table again, or mend the cell")
    header: list[str] = []
    line = 0
    try:
        header = next(row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row)
        for line, width in _widths(text):
            if width not in (0, len(header)):
                raise InputError(path, f"row {line}", f"has {width} cells for {len(header)} "
                                 "columns", "give every row one cell per column, or make the table "
                                 "again")
    except csv.Error as error:
        raise InputError(path, f"row {line + 1}", f"cannot be read ({error})",
                         "close the quote, or make the table again") from error
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise InputError(path, "columns", f"{', '.join(twice[:3]) or 'a blank one'} stands more "
                         "than once", "keep one, or rename the others")
    return [_unguarded(name) for name in header]


def _widths(text: str) -> Iterator[tuple[int, int]]:
    """Last line and number of cells of every row of a csv; a blank row has none."""
    import csv
    import io

    if '"' in text or "\r" in text:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        yield from ((rows.line_num, len(row)) for row in rows)
    else:  # counting commas says the same, ten times as fast
        yield from ((line, row.count(",") + 1 if row else 0)
                    for line, row in enumerate(text.split("\n"), 1))
