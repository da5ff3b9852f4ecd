"""Tables that users bring: read as text, strictly, whatever program wrote them.

`read_table` gives every cell as stripped text, indexed by the row that an editor shows; `names`,
`numbers` and `whole_words` turn a column into what it is said to hold, or name the row that does
not fit. Tables of the run folder are read by `mvhlib.artifacts.read_csv`.

==================  ================================================================================
what                how it is read
==================  ================================================================================
encoding            UTF-8 with or without byte order mark. Single Latin letters with accents (``ü``,
                    ``é``) from an old Windows file, where the Western and the Central European code
                    page agree on each; any other bytes, and UTF-16, are refused
separator           comma, semicolon or tab, found in the header; Excel's line ``sep=;`` is obeyed
quotes              double, doubled inside; one that never closes is refused
row names           R's and pandas' first column without a name is left out
comments            two lines or more that begin with ``#`` and stand above the header (cBioPortal)
                    are passed over
rows                ragged ones are refused; blank ones are passed over
columns             names are stripped; doubled ones are refused
numbers             ``12``, ``-0.5``, ``1e-3``; ``0,5`` in tables of semicolons and tabs alone; a
                    comma or point that may be one of thousands is refused
not known           blank, ``NA``, ``N/A``, ``[Not Available]``, ``not reported``, ``--``, and the
                    like (`NOT_KNOWN`)
``.gz``             is unpacked; a plain file with that ending, or a packed one without, is refused
==================  ================================================================================
"""

import csv
import gzip
import io
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError, check_file, reading, safe_name

if TYPE_CHECKING:
    import pandas as pd

#: Largest table, unpacked [bytes]: a list of slides, tiles or genes is far smaller.
LARGEST = 16 * 2**20
MOST_COLUMNS = 20_000

SEPARATORS = (",", ";", "\t")

#: Cells that hold no name: a patient called ``NA`` would stand for many.
NO_NAME = frozenset((
    "", "na", "n/a", "n.a.", "#n/a", "nan", "<na>", "null", "[not available]", "[not applicable]",
    "[unknown]", "[not evaluated]", "[discrepancy]", "not available", "not reported"))
#: Cells whose value is not known (lower case).
NOT_KNOWN = NO_NAME | frozenset((
    "none", "-", "--", "'--", ".", "?", "missing", "unknown", "unk", "unspecified",
    "not specified", "not applicable", "not evaluated", "not recorded", "not known", "not given",
    "not allowed to collect", "[completed]", "[pending]", "unbekannt", "keine angabe", "k. a.",
    "k.a.", "inconnu", "desconocido", "sconosciuto", "ignoto", "onbekend"))

#: First bytes of binary files, whatever their names.
_FOREIGN = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "an Excel workbook or another zip archive",
            b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"\x89HDF": "an h5 file",
            b"PAR1": "a parquet file", b"%PDF": "a PDF file", b"\x89PNG": "a png image",
            b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"{\\rtf": "RTF",
            b"\xff\xd8\xff": "a jpeg image", b"\x00\x05\x16\x07": "a shadow file of macOS",
            b"version https://git-lfs": "a pointer of Git LFS, whose content was not fetched"}
_UTF8 = "save it as 'CSV UTF-8' (comma separated)"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+", re.ASCII)


def read_table(path: str | os.PathLike, columns: Sequence[str] = (), *, any_row: bool = False,
               largest: int = LARGEST) -> "pd.DataFrame":
    """Read a table of the user's; see the head of the module for what is accepted.

    Parameters
    ----------
    columns
        Columns that must be there.
    any_row
        Whether a header alone is a table too.
    largest
        Size that it may have, unpacked [bytes].

    Returns
    -------
    DataFrame
        All cells are text without blanks at their ends; blank cells are ``""``. Its index, called
        ``line``, holds the row of the file [from 1] that an editor shows. ``attrs["separator"]``
        and ``attrs["decimal"]`` say how it is written.

    Raises
    ------
    InputError
        If the file is not there, is no text, has no header or no row, lacks a column, names one
        twice, has ragged rows or a quote that does not close.
    """
    import pandas as pd

    names, body, separator = read_rows(path, columns, any_row=any_row, largest=largest)
    frame = pd.DataFrame({name: pd.Series([row[at] for _, row in body], dtype=object)
                          for at, name in enumerate(names)})
    frame.index = pd.Index([line for line, _ in body], name="line", dtype="int64")
    comma = separator != "," and any(
        _COMMA.fullmatch(cell) and not _THOUSANDS.fullmatch(cell) for _, row in body
        for cell in row)
    frame.attrs = {"separator": separator, "decimal": "," if comma else "."}
    return frame


def read_rows(path: str | os.PathLike, columns: Sequence[str] = (), *, any_row: bool = False,
              largest: int = LARGEST) -> tuple[list[str], list[tuple[int, tuple[str, ...]]], str]:
    """What `read_table` reads, for machines without pandas.

    Returns
    -------
    names, rows, separator
        Columns; for each row its line [from 1] and one cell for each column; what stands between.
    """
    path = Path(path)
    text = _text(path, _bytes(path, largest))
    separator, lines, rows = _rows(path, text, columns)
    header, width = rows[0], len(rows[0])
    odd = next((at for at, row in enumerate(rows) if len(row) != width), None)
    if odd is not None:
        hint = ("; R's write.table leaves out the name of the row names: write with row.names=FALSE"
                if all(len(row) == width + 1 for row in rows[1:]) else "")
        raise InputError(path, f"row {lines[odd]}", f"has {len(rows[odd])} cells where the header "
                         f"(row {lines[0]}) has {width}", "give every row one cell per column, and "
                         f"quote cells that hold {separator!r}{hint}")
    full = [at for at in range(1, len(rows)) if any(rows[at])]
    lines, body = [lines[at] for at in full], [rows[at] for at in full]
    kept = []
    for at, name in enumerate(header):
        if name:
            kept.append(at)
        elif at > 0 and (filled := next((line for line, row in zip(lines, body, strict=True)
                                         if row[at]), None)):
            raise InputError(path, f"column {at + 1}", f"has no name and is filled in row {filled}",
                             "name it in the header, or delete it")
    names = [header[at] for at in kept]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise InputError(path, "columns", f"{_some(twice)} stands more than once in the header",
                         "keep one, or rename the others")
    check_columns(path, names, columns)
    if not body and not any_row:
        raise InputError(path, "rows", "are none below the header", "give one row or more")
    if len(kept) < len(header):
        body = [tuple(row[at] for at in kept) for row in body]
    return names, list(zip(lines, body, strict=True)), separator


def check_columns(path: str | os.PathLike, present: Sequence[str], needed: Iterable[str]) -> None:
    """Refuse a table that lacks a column; one whose name is near is named."""
    missing = [name for name in needed if name not in present]
    if missing:
        near = [f"{found!r} for {name!r}" for name in missing for found in present
                if _plain(found) == _plain(name)]
        seen = _some([*map(repr, present)], 20) or "none"
        raise InputError(path, "columns", f"lacks {missing}; has {seen}",
                         f"rename {', '.join(near)}" if near else "add or rename the columns")


def names(frame: "pd.DataFrame", column: str, path: str | os.PathLike, *, unique: bool = False,
          safe: bool = False, none: Iterable[str] = NOT_KNOWN) -> "pd.Series":
    """Names of a column: text as it stands, every one there.

    Parameters
    ----------
    frame
        From `read_table`.
    unique
        Whether each may stand once only.
    safe
        Whether they become files or folders: see `mvhlib.artifacts.safe_name`.
    none
        Words (lower case) that are no name. Genes may be called ``NA``: pass ``("",)``.

    Raises
    ------
    InputError
        Naming the first row that is blank, holds one of `none` or a character that is not seen,
        repeats a name, or differs from another name in its invisible spelling alone.
    """
    values = _column(frame, column, path)
    blank = values.str.lower().isin(set(none) | {""})
    if blank.any():
        refuse(path, values, blank, "where a name is needed", "fill it in, or delete the row")
    unseen = ~values.map(str.isprintable).astype(bool)
    if unseen.any():
        refuse(path, values, unseen, "with an invisible character", "type the name again")
    for line, name in values.items() if safe else ():
        safe_name(name, path, f"{column}, row {line}")
    if unique and values.duplicated().any():
        refuse(path, values, values.duplicated(), "a second time", "keep one row for each")
    distinct = values.drop_duplicates()
    spelt = distinct.map(lambda name: unicodedata.normalize("NFC", name))
    if spelt.duplicated().any():
        refuse(path, distinct, spelt.duplicated(), "which another row holds as well, with its "
               "accents encoded differently", "copy the name from one row to the other")
    return values


def numbers(frame: "pd.DataFrame", column: str, path: str | os.PathLike, *,
            low: float | None = None, high: float | None = None, above: float | None = None,
            whole: bool = False, missing: bool = False, unit: str = "") -> "pd.Series":
    """Numbers of a column, float64.

    Parameters
    ----------
    frame
        From `read_table`; its separator decides whether ``0,5`` is a number.
    low, high, above
        Least and largest value that is possible; value that all are above.
    whole
        Whether they must be whole numbers.
    missing
        Whether a number may be unknown (`NOT_KNOWN`): it becomes NaN. Else it is refused.
    unit
        Said in the error.

    Raises
    ------
    InputError
        Naming the first row whose cell is no number, infinite, or outside the limits.
    """
    import pandas as pd

    values = _column(frame, column, path)
    unknown = values.str.lower().isin(NOT_KNOWN)
    unit = f" [{unit}]" if unit else ""
    if unknown.any() and not missing:
        refuse(path, values, unknown, f"where a number is needed{unit}",
               "fill it in, or delete the row")
    found = pd.Series(np.nan, index=values.index, dtype=np.float64, name=values.name)
    written = values[~unknown]
    commas = written.str.contains(",", regex=False)
    thousands = written.map(lambda cell: bool(_THOUSANDS.fullmatch(cell))).astype(bool)
    if frame.attrs.get("separator", ",") != ",":
        if commas.any() and written.str.contains(".", regex=False).any():
            refuse(path, written, commas, "beside numbers with a decimal point",
                   "write one kind of decimal separator")
        decimal = frame.attrs.get("decimal", ".")
        doubtful = thousands & ((commas & (decimal != ",")) | (~commas & (decimal == ",")))
        # 12,5 in another row of this column: then 1,234 is no thousand either.
        if (commas & ~thousands).any():
            doubtful &= ~commas
        plain = written.where(~commas, written.str.replace(",", ".", n=1, regex=False))
    else:
        doubtful, plain = thousands & commas, written
    if doubtful.any():
        refuse(path, written, doubtful, "which may mean thousands", "write 1234 or 1.234, without "
               "a separator between thousands")
    odd = ~plain.map(lambda cell: bool(_NUMBER.fullmatch(cell))).astype(bool)
    if odd.any():
        refuse(path, written, odd, f"and not a number{unit}", "write digits with a decimal point"
               + (", or leave it blank where it is not known" if missing else ""))
    found[~unknown] = plain.astype(np.float64)
    limits = [(np.isinf(found), "which is infinite", "write a number that was measured")]
    if whole:
        limits.append((found.notna() & (found != np.floor(found)), "and not a whole number",
                       "write a whole number"))
    for limit, wrong, said in ((above, lambda x: found <= x, "above"),
                               (low, lambda x: found < x, "or more"),
                               (high, lambda x: found > x, "or less")):
        if limit is not None:
            bounds = f"{said} {limit:g}" if said == "above" else f"{limit:g} {said}"
            limits.append((wrong(limit), f"and must be {bounds}{unit}", "correct the number"))
    for wrong, problem, fix in limits:
        if wrong.any():
            refuse(path, values, wrong, problem, fix)
    return found


def whole_words(frame: "pd.DataFrame", column: str, path: str | os.PathLike,
                words: Mapping[str, float], *, missing: bool = True) -> "pd.Series":
    """Values of the words of a column, float64; upper or lower case and blanks do not count.

    Parameters
    ----------
    words
        Lower-case word -> its value; nothing else is taken for one, not even its beginning.
    missing
        Whether a value may be unknown (`NOT_KNOWN`, where it is not among `words`): NaN.

    Raises
    ------
    InputError
        Naming the first row whose word is not among them.
    """
    values = _column(frame, column, path)
    said = values.str.lower().str.split().str.join(" ")
    found = said.map(dict(words)).astype(np.float64)
    odd = found.isna() & ~(said.isin(NOT_KNOWN) if missing else said.isin(()))
    if odd.any():
        refuse(path, values, odd, "which is not understood",
               f"write one of {_some([*words], 8)}" + (", or leave it blank" if missing else ""))
    return found


def refuse(path: str | os.PathLike, values: "pd.Series", wrong, problem: str, fix: str) -> None:
    """Raise an `InputError` that names the first row of a column that is wrong, and its cell."""
    lines = list(values.index[np.asarray(wrong, dtype=bool)])
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    cell = values[np.asarray(wrong, dtype=bool)].iloc[0]
    said = repr(str(cell)[:60]) if str(cell) else "blank"
    raise InputError(path, str(values.name), f"row {lines[0]}{more} is {said} {problem}", fix)


def _column(frame: "pd.DataFrame", column: str, path: str | os.PathLike) -> "pd.Series":
    check_columns(path, list(frame.columns), (column,))
    return frame[column]


def _some(values: Sequence[str], most: int = 3) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _bytes(path: Path, largest: int) -> bytes:
    """Content of a table, unpacked where its name ends with ``.gz``."""
    check_file(path)
    with reading(path, fix="check that the file is complete and that you may read it"):
        with open(path, "rb") as stream:
            content = stream.read(largest + 1)
        if path.suffix.lower() == ".gz":
            if content[:2] != b"\x1f\x8b":
                raise InputError(path, "file", "ends with .gz and is not a gzip file",
                                 "rename it without .gz")
            try:
                with gzip.open(io.BytesIO(content)) as stream:
                    content = stream.read(largest + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(path, "file", f"cannot be unpacked ({error})",
                                 "it is probably cut off: copy it again") from error
    if len(content) > largest:
        raise InputError(path, "file", f"has more than {largest // 2**20} MB, which no table of "
                         "this kind has", "give the table alone")
    if not content.strip(b"\xef\xbb\xbf \t\r\n\0"):
        raise InputError(path, "file", "is empty", "give a table with a header and rows")
    return content


def foreign(content: bytes) -> str:
    """Name the format of a binary file from its first bytes; empty where that is not known.
    """
    found = next((kind for start, kind in _FOREIGN.items() if content.startswith(start)), "")
    if not found and re.match(rb"\s*<(!doctype|html|\?xml)", content[:200].lower()):
        found = "a web page"
    return found


def _text(path: Path, content: bytes) -> str:
    kind = foreign(content)
    if kind:
        raise InputError(path, "file", f"is {kind}, not a csv", "unpack it, or save it as csv" if
                         kind == "gzip" else _UTF8)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(path, "encoding", "is UTF-16", _UTF8)
    if b"\0" in content:
        line = content[:content.index(b"\0")].count(b"\n") + 1
        raise InputError(path, f"row {line}", "holds a byte of zero: it is not text, or it is "
                         "UTF-16", _UTF8)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        with_accents = _windows(content)
        if with_accents is None:
            raise InputError(path, f"row {line}", f"holds the byte 0x{content[error.start]:02x}, "
                             "which is not UTF-8", _UTF8) from error
        return with_accents


def _windows(content: bytes) -> str | None:
    """Text of an old Windows or Latin file, where there is one way to read it.

    Single accented letters inside Latin words, on which the Western and the Central European code
    pages agree, are no Cyrillic, Greek or Chinese text, which has runs of such bytes.
    """
    text = content.decode("latin-1")
    letters = set(re.findall(r"[\x80-\xff]", text))
    pages = ("cp1252", "cp1250", "iso8859-2", "iso8859-15")
    agreed = all(letter.isalpha() and {letter.encode("latin-1").decode(page, "replace")
                                       for page in pages} == {letter} for letter in letters)
    lonely = not re.search(r"[\x80-\xff]{2}|(?<![A-Za-z])[\x80-\xff](?![A-Za-z])", text)
    return text if agreed and lonely else None


def _rows(path: Path, text: str, columns: Sequence[str]
          ) -> tuple[str, list[int], list[tuple[str, ...]]]:
    """The separator; first line and stripped cells of the header and of every row below it."""
    told = re.match(r"(?:\s*\n)*\"?sep=([^\r\n])\"?[ \t]*(?:\r\n|\r|\n)", text, re.IGNORECASE)
    skipped = 0
    if told:
        if told[1] not in SEPARATORS:
            raise InputError(path, "row 1", f"says that the separator is {told[1]!r}",
                             "use comma, semicolon or tab")
        skipped = text[:told.end()].count("\n") or text[:told.end()].count("\r")
        text = text[told.end():]
    comments = re.match(r"(?:#[^\r\n]*(?:\r\n|\r|\n)){2,}", text)
    if comments:
        skipped += len(comments[0].splitlines())
        text = text[comments.end():]
    separator = told[1] if told else _separator(path, text, columns)
    lines, rows, last = [], [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            cells = tuple(map(str.strip, row))
            if len(cells) > 1 or any(cells):
                lines.append(last + 1 + skipped)
                rows.append(cells)
            last = reader.line_num
    except csv.Error as error:
        line = last + 1 + skipped
        problem = ("begins a quote that never closes" if "end of data" in str(error)
                   else f"cannot be read ({error})")
        raise InputError(path, f"row {line}", problem,
                         "close the quote, or double a quote that is part of the text") from error
    if not rows:
        raise InputError(path, "file", "is empty", "give a table with a header and rows")
    return separator, lines, rows


def _separator(path: Path, text: str, columns: Sequence[str]) -> str:
    """What separates the columns: with it the header has most of the columns that are needed."""
    found = {}
    if max(text.lstrip().partition("\n")[0].count(each) for each in SEPARATORS) > MOST_COLUMNS:
        raise InputError(path, "columns", f"are more than {MOST_COLUMNS}", "give patients, slides, "
                         "tiles or genes in rows")
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            header = next((row for row in reader if any(cell.strip() for cell in row)), [])
        except csv.Error:
            continue
        cells = [cell.strip() for cell in header]
        found[separator] = (len(set(columns) & set(cells)), len(cells))
    if not found:
        raise InputError(path, "row 1", "is not a header of a csv",
                         "name the columns in the first row")
    return max(found, key=lambda separator: found[separator])
