"""What every file shares: errors that name it, atomic writing, hashes, locks.

A file under ``OUT`` either is whole or is not there: everything is written beside its place and
renamed. Nothing that depends on the clock, the host or the place of the clone goes into a file
whose bytes are compared.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Nine significant digits: enough to reproduce a figure, few enough to read.
FLOAT_FORMAT = "%.9g"


class InputError(ValueError):
    """Bad input, said in one line: which file, which field, what is wrong, how to mend it.

    Parameters
    ----------
    where
        File or directory (or the name of a parameter set) that holds the fault.
    field
        Column, key, dataset or parameter.
    problem
        What was found.
    fix
        What the user can do about it.
    """

    def __init__(self, where: str | os.PathLike, field: str, problem: str, fix: str):
        self.where, self.field, self.problem, self.fix = (
            one_line(part) for part in (where, field, problem, fix))
        super().__init__(f"{self.where}: {self.field}: {self.problem}. Fix: {self.fix}.")

    def __reduce__(self):
        return type(self), (self.where, self.field, self.problem, self.fix)


def one_line(text: Any, longest: int = 400) -> str:
    """Put `text` on one line of at most `longest` characters; its middle is left out beyond."""
    line = " ".join(str(text).split())
    if len(line) <= longest:
        return line
    return f"{line[:longest // 2]} ... {line[-longest // 2:]}"


@contextlib.contextmanager
def reading(path: str | os.PathLike, field: str = "file", problem: str = "cannot be read",
            fix: str = "replace it by a whole file of this kind") -> Iterator[None]:
    """Turn what a library raises over a broken file into one `InputError` that names the file.

    A reader wraps the lines that parse a user's file, no more: an error of our own code behind
    them must stay a traceback. An `InputError` raised inside passes as it is, so that a reader
    says what it knows better.

    Parameters
    ----------
    path
        The file or folder that is read.
    field
        Column, key or dataset at fault, where it is known.
    problem
        What is said before the library's own words.
    fix
        What the user can do about it.

    Raises
    ------
    InputError
        For every error of the block but a lack of disk space, which is no fault of the file.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(path, field, f"{problem} ({_said(error)})", fix) from error
    except Exception as error:
        raise InputError(path, field, f"{problem} ({_said(error)})", fix) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}" if str(error) else type(error).__name__


def check_file(path: str | os.PathLike) -> None:
    """Refuse what is no plain file to be read: absent, a folder, a pipe, a link to nothing."""
    path = Path(path)
    with reading(path):
        if path.is_symlink() and not path.exists():
            raise InputError(path, "file", "is a link to nothing", "mend the link")
        if not path.exists():
            raise InputError(path, "file", "does not exist", "check the path")
        if not path.is_file():
            raise InputError(path, "file", "is a folder" if path.is_dir() else "is no plain file",
                             "give the path of a file")


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds.

    What a killed process left of an earlier attempt is deleted first: a file has one writer at a
    time (see `lock`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{glob.escape(path.stem)}~*{glob.escape(path.suffix)}"):
        left_over.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}~", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write `text` to `path` by atomic rename."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as JSON with sorted keys, so that equal content gives equal bytes."""
    return write_text(path, json.dumps(content, indent=1, sort_keys=True, default=_plain) + "\n")


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
    """Whether a cell needs an apostrophe, lest a spreadsheet runs it or `read_csv` strips it."""
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


def sha256_file(path: str | os.PathLike) -> str:
    """sha256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(*content: Any) -> str:
    """sha256 of JSON-like content and numpy arrays; equal content gives an equal key."""
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=_plain).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and paths into what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextlib.contextmanager
def lock(path: str | os.PathLike, announce=print) -> Iterator[None]:
    """Hold an operating-system lock on `path`; wait for another holder and name its process.

    The lock dies with the process, so a killed run never blocks the next one for good.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            announce(f"waiting for process {holder}, which still writes to {path.parent}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield


@contextlib.contextmanager
def h5_writer(path: str | os.PathLike) -> Iterator[Any]:
    """Open an h5 file for writing beside its place; it appears only when it is complete."""
    import h5py

    with atomic(path) as temporary, h5py.File(temporary, "w", track_order=True) as stream:
        yield stream


@contextlib.contextmanager
def h5_reader(path: str | os.PathLike) -> Iterator[Any]:
    """Open an h5 file for reading; a truncated or foreign file is one clear error."""
    import h5py

    path = Path(path)
    if not path.exists():
        raise InputError(path, "file", "does not exist", "check the path")
    try:
        stream = h5py.File(path, "r")
    except OSError as error:
        raise InputError(path, "file", f"is not a readable h5 file ({error})",
                         "it is probably truncated: delete it and make it again") from error
    with stream:
        yield stream


def read_attr(path: str | os.PathLike, name: str) -> str | None:
    """Attribute `name` of an h5 file, or None where the file or the attribute is not there."""
    import h5py

    try:
        with h5py.File(path, "r") as stream:
            value = stream.attrs.get(name)
    except (OSError, RuntimeError):
        return None
    return value.decode() if isinstance(value, bytes) else value


def remove_tree(path: str | os.PathLike) -> None:
    """Delete a directory and everything in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
