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
import math
import os
import platform
import re
import shutil
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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


class TooFew(InputError):
    """Nothing is wrong, there is too little of it: a notebook leaves this part out and says so."""


def where_enough(items: Iterable[Any], function: Callable[[Any], Any]
                 ) -> tuple[dict[Any, Any], list[str]]:
    """Call `function` for every item; where it says `TooFew`, go on with the others.

    Returns
    -------
    tuple
        Item -> result, of those that had enough; and why the others are left out, a sentence each.
    """
    done, reasons = {}, []
    for item in items:
        try:
            done[item] = function(item)
        except TooFew as error:
            reasons.append(f"{item} is left out: {error.where}: {error.field} {error.problem}.")
    return done, reasons


def one_line(text: Any, longest: int = 400) -> str:
    """Put `text` on one line of at most `longest` characters; its middle is left out beyond."""
    line = " ".join(str(text).split())
    if len(line) <= longest:
        return line
    return f"{line[:longest // 2]} ... {line[-longest // 2:]}"


#: What no name may hold: separators of folders, control characters, half characters (bytes of a
#: file name that are no UTF-8), separators of lines and paragraphs.
_UNSAFE = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
#: Bytes; file systems take 255, and endings are added.
LONGEST_NAME = 200


def safe_name(name: Any, where: str | os.PathLike, field: str,
              longest: int = LONGEST_NAME) -> str:
    """Return a name that can be a file's or a folder's, without the blanks around it.

    Sections, patients, studies, slides, encoders and profiles come from users' tables and become
    paths: such a name must stay in its folder, and must be no option of a command.

    Parameters
    ----------
    name
        As it was read.
    where, field
        The file, and its column or key, for the error.
    longest
        Bytes that it may have; more than `LONGEST_NAME` where no file is named after it.

    Raises
    ------
    InputError
        If it is no text, is blank or longer than `longest`, holds a slash, a backslash
        or a control character, or begins with a dot (a hidden file is never data) or a hyphen.
    """
    if not isinstance(name, str):
        raise InputError(where, field, f"is {name!r} ({type(name).__name__}), not text",
                         "write the name in quotes")
    stripped, problem = name.strip(), ""
    if not stripped:
        problem = "is blank"
    elif found := _UNSAFE.search(stripped):
        problem = f"is {stripped!r}, which holds {found[0]!r}"
    elif stripped[0] in ".-":
        problem = f"is {stripped!r}, which begins with {stripped[0]!r}"
    elif len(stripped.encode()) > longest:
        problem = f"is {one_line(stripped, 60)!r}, longer than {longest} bytes"
    if problem:
        raise InputError(where, field, problem, "choose a name that begins with a letter or digit "
                         "and holds no slash, backslash or line break")
    return stripped


def safe_path(path: Any, where: str | os.PathLike, field: str) -> str:
    """Return a path that the user gave, as it is, if it can be said in one line.

    Raises
    ------
    InputError
        If it is blank, or holds a line break, another control character, or bytes that are no
        UTF-8.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(where, field, f"is {text!r}", "name a file or a folder")
    if found := _UNSAFE.search(text.replace("/", "").replace("\\", "")):
        raise InputError(where, field, f"is {text!r}, which holds {found[0]!r}",
                         "rename the folder, or make a link with a plain name to it")
    return text


#: What a line of text cannot hold.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


def check_sayable(names: Iterable[Any], where: str | os.PathLike, field: str) -> None:
    """Refuse barcodes, genes and the like that hold a line break or another control character.

    Raises
    ------
    InputError
        Names the first of them.
    """
    for number, name in enumerate(names, 1):
        if _BREAKS.search(str(name)):
            raise InputError(where, field, f"number {number} is {str(name)!r}, which holds a "
                             "control character", "write names of letters, digits and signs")


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


def check_file(path: str | os.PathLike, field: str = "file") -> Path:
    """Return `path` if it is a file, or a link to one; otherwise say what it is instead.

    Parameters
    ----------
    path
        A path that the user named.
    field
        What the error calls it.

    Raises
    ------
    InputError
        If nothing is there, a link leads nowhere or in a circle, or it is a folder, a pipe or a
        device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, OSError) and path.is_symlink():
            way = "runs in a circle" if error.errno == errno.ELOOP else "does not exist"
            raise InputError(path, field, f"is a link to {os.readlink(path)}, which {way}",
                             "mend the link, or put the file itself there") from None
        if isinstance(error, PermissionError):
            raise InputError(path, field, "may not be read by this user",
                             "change its permissions") from None
        raise InputError(path, field, "does not exist", "check the path") from None
    if stat.S_ISDIR(mode):
        raise InputError(path, field, "is a folder", "name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(path, field, "is a pipe or a device", "copy its content to a file")
    return path


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


#: Bytes of a JSON file that is read; ours are kilobytes, an executed notebook's figures some MB.
LARGEST_JSON = 200_000_000


def read_json(path: str | os.PathLike, kind: type = dict) -> Any:
    """Read a JSON file whose outermost value is of `kind`.

    Raises
    ------
    InputError
        If it is no file, no JSON in UTF-8, too large, nested too deeply, or another kind.
    """
    path = check_file(path)
    with reading(path, "content", "is no readable JSON", "delete it and make it again"):
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(path, "size", f"is over {LARGEST_JSON // 10**6} MB",
                             "delete it and make it again")
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, kind):
        raise InputError(path, "content", f"is a {type(content).__name__}, not a {kind.__name__}",
                         "delete it and make it again")
    return content


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
    """Hold an operating-system lock on `path`; wait for another holder, named by process and host.

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
        stream.write(this_process())
        stream.flush()
        yield


def this_process() -> str:
    """Number and host of this process, as locks name their holder."""
    return f"{os.getpid()} on {platform.node() or 'this machine'}"


@contextlib.contextmanager
def h5_writer(path: str | os.PathLike) -> Iterator[Any]:
    """Open an h5 file for writing beside its place; it appears only when it is complete."""
    import h5py

    with atomic(path) as temporary, h5py.File(temporary, "w", track_order=True) as stream:
        yield stream


#: Said of a file that is no whole h5 file.
_MAKE_AGAIN = ("it is probably truncated or damaged: delete it and make it again, or copy it again "
               "from its source")


@contextlib.contextmanager
def h5_reader(path: str | os.PathLike) -> Iterator[Any]:
    """Open an h5 file for reading; whatever is wrong with it is one clear error.

    Links to other files are refused before anything is read, be they external links, external
    storage or virtual datasets: an h5 file speaks for itself alone. Errors of h5py and of numpy
    inside the block are turned into one line as by `reading`, so keep only the reading in it.

    Raises
    ------
    InputError
        If the file is missing, a folder, empty, truncated or no h5 file, if it holds a link to
        another file or one that leads nowhere, or if the block fails.
    """
    with h5_opened(path) as stream, reading(path, fix=_MAKE_AGAIN):
        yield stream


@contextlib.contextmanager
def h5_opened(path: str | os.PathLike) -> Iterator[Any]:
    """Open and look through an h5 file as `h5_reader`; errors of the block stay what they are."""
    import h5py

    path = check_h5(path)
    try:
        stream = h5py.File(path, "r")
    except PermissionError as error:
        raise InputError(path, "file", "may not be read by this user",
                         "change its permissions") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(path, "file", f"is not a readable h5 file ({error})",
                         _MAKE_AGAIN) from error
    with stream:
        with reading(path, fix=_MAKE_AGAIN):
            _check_links(path, stream)
        yield stream


#: Files that a child process has walked through: device, inode, size and time of change.
_WALKED: set[tuple[int, int, int, int]] = set()

#: What the walk may take: processor time [s], memory [bytes], time by the clock [s].
_WALK_CPU_S, _WALK_BYTES, _WALK_S = 5, 2 * 2**30, 120.0
#: How the child ends where the library asks for more memory than that.
_GREEDY = 3


def check_h5(path: str | os.PathLike) -> Path:
    """Return `path` if the h5 library comes through its file alive; call it before others do.

    A few damaged bytes make the library loop for good or crash the process, and nothing in the
    process can stop that. So a child process looks at every name, attribute and dataset first, with
    a limit of processor time. Each file is walked through once in the life of a process.

    Raises
    ------
    InputError
        If there is no such file, it is empty, or the library hangs or crashes over it. All other
        faults are left to the reading itself.
    """
    path = check_file(path)
    facts = path.stat()
    if facts.st_size == 0:
        raise InputError(path, "file", "is empty", _MAKE_AGAIN)
    key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if key in _WALKED:
        return path
    ended = _in_child(lambda: _walk_h5(path))
    if ended is not None and os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == _GREEDY:
        raise InputError(path, "file", "is damaged: the h5 library asks for more than "
                         f"{_WALK_BYTES / 2**30:g} GB over it", _MAKE_AGAIN)
    if ended is not None and os.WIFSIGNALED(ended):
        how = os.WTERMSIG(ended)
        raise InputError(path, "file", "is damaged: the h5 library does not come to an end over it"
                         if how in (signal.SIGXCPU, signal.SIGKILL) else
                         f"is damaged: the h5 library crashes over it ({signal.Signals(how).name})",
                         _MAKE_AGAIN)
    _WALKED.add(key)
    return path


def _in_child(work: Callable[[], None]) -> int | None:
    """Do `work` in a forked child with limits; its wait status, or None where none can be had.

    The child does nothing but `work`, writes nothing and leaves without cleaning up, so that it
    may be forked beside threads.
    """
    try:
        child = os.fork()
    except (OSError, AttributeError):
        return None
    if child == 0:
        try:
            import faulthandler
            import resource

            faulthandler.disable()  # it would write of a crash that is reported in one line
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (_WALK_CPU_S, most))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            with contextlib.suppress(OSError, ValueError):
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                room = pages * resource.getpagesize() + _WALK_BYTES
                low, most = resource.getrlimit(resource.RLIMIT_AS)
                if low == resource.RLIM_INFINITY or low > room:
                    resource.setrlimit(resource.RLIMIT_AS, (room, most))
            work()
        finally:
            os._exit(0)
    start, pause = time.monotonic(), 0.0005
    try:
        while time.monotonic() - start < _WALK_S:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                return status
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return None  # a slow disk says nothing about the file
    except ChildProcessError:
        child = 0  # another handler has collected it
        return None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _walk_h5(path: Path) -> None:
    """Touch what a reader touches; errors are no matter here, but those of too much memory."""
    import h5py

    @contextlib.contextmanager
    def passing() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, MemoryError) or "memory allocation failed" in str(error):
                os._exit(_GREEDY)

    nodes: list[Any] = []
    with passing(), h5py.File(path, "r") as stream:
        with passing():
            stream.visititems_links(lambda name, link: None)
        with passing():
            stream.visititems(lambda name, node: nodes.append(node))
        for node in [stream, *nodes]:
            with passing():
                for name in node.attrs:
                    with passing():
                        node.attrs[name]
            with passing():
                if isinstance(node, h5py.Dataset):
                    _check_size(str(path), node.name, node)
                    if node.size * node.dtype.itemsize <= 2**25:
                        node[()]
                    else:
                        node[:1], node[-1:]


def _check_links(path: Path, stream: Any) -> None:
    """Refuse links that leave the file or lead nowhere, at any depth."""
    import h5py

    links, elsewhere = [], []

    def look(name: str, link: Any) -> None:  # h5py does not let an error of ours through
        if not isinstance(link, h5py.HardLink):
            links.append((name, link))

    def inside(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and (node.is_virtual or node.external):
            elsewhere.append(name)

    stream.visititems_links(look)
    for name, link in links:
        if isinstance(link, h5py.ExternalLink):
            raise InputError(path, name, f"is a link to another file ({link.filename})",
                             "copy the data into this file")
        try:
            stream[name]
        except (KeyError, OSError, RuntimeError):
            raise InputError(path, name, f"is a link to {link.path}, which leads nowhere",
                             "mend the link, or copy the data to this name") from None
    stream.visititems(inside)
    if elsewhere:
        raise InputError(path, elsewhere[0], "keeps its values in another file",
                         "copy the data into this file")


#: What compression may gain at most: deflate packs 1032 bytes into one.
_PACKED = 1100


def h5_array(stream: Any, name: str, *, kind: str = "number", ndim: int | tuple[int, ...] | None
             = None, rows: int | None = None, finite: bool = True, read: bool = True) -> Any:
    """Read one dataset of an h5 file after checking it.

    Parameters
    ----------
    stream
        An open file, or a group of one.
    name
        The dataset, with slashes where it lies deeper.
    kind
        ``"number"``: integers or floats (or bool); ``"integer"``: integers alone; ``"text"``.
    ndim
        Number of dimensions, or those that are allowed; None takes any but a scalar.
    rows
        Length of the first dimension, where it is known.
    finite
        Refuse NaN and infinity; unused for integers and text.
    read
        False checks all but the values and returns the dataset, to be read in parts.

    Returns
    -------
    numpy.ndarray
        In the dtype of the file; text as an array of `str` (dtype object), read as UTF-8.

    Raises
    ------
    InputError
        If the dataset is missing, a group, of another kind or shape, declares more values than the
        file holds, holds NaN or infinity, or text that is not UTF-8.
    """
    import h5py

    where = os.fsdecode(stream.file.filename)
    label = f"{stream.name.strip('/')}/{name}".strip("/")
    with reading(where, label, fix=_MAKE_AGAIN):
        node = stream.get(name)
        if node is None:
            raise InputError(where, label, f"is missing; here are {sorted(stream)[:12]}",
                             "take a file that has it")
        if not isinstance(node, h5py.Dataset):
            raise InputError(where, label, "is a group", "store an array under this name")
        if h5py.h5o.get_info(node.id).fileno != h5py.h5o.get_info(stream.id).fileno:
            raise InputError(where, label, "lies in another file", "copy the data into this file")
        found = _kind(node)
        wanted = {"number": ("whole numbers", "fractions", "yes and no"),
                  "integer": ("whole numbers",), "text": ("text",)}[kind]
        if found not in wanted:
            belongs = {"number": "numbers", "integer": "whole numbers", "text": "text"}[kind]
            raise InputError(where, label, f"holds {found} ({node.dtype}) instead of {belongs}",
                             f"store {belongs}")
        shape = node.shape
        if shape is None:
            raise InputError(where, label, "holds nothing", "store an array under this name")
        allowed = (ndim,) if isinstance(ndim, int) else ndim
        if len(shape) not in allowed if allowed is not None else not shape:
            dimensions = " or ".join(map(str, allowed)) if allowed else "at least 1"
            raise InputError(where, label, f"has shape {shape}",
                             f"store an array of {dimensions} dimensions")
        if rows is not None and (not shape or shape[0] != rows):
            raise InputError(where, label, f"has {shape[0] if shape else 'no'} rows for {rows}",
                             _MAKE_AGAIN)
        _check_size(where, label, node)
        if not read:
            return node
        values = node[()]
        if kind == "text":
            return _decoded(where, label, np.asarray(values, dtype=object))
        values = np.asarray(values)
        if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise InputError(where, label, f"holds NaN or infinity in {bad} of {values.size} "
                             "values", "make the file again from finite numbers")
        return values


def h5_sizes(stream: Any) -> None:
    """Refuse an open file of which a dataset declares more than the file can hold.

    For files that another library reads as a whole: it would ask for the memory first.
    """
    import h5py

    where, nodes = os.fsdecode(stream.file.filename), []
    stream.visititems(lambda name, node: nodes.append((name, node)))
    for name, node in nodes:
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            _check_size(where, name, node)


def _kind(node: Any) -> str:
    import h5py

    if h5py.check_string_dtype(node.dtype) is not None:
        return "text"
    if h5py.check_enum_dtype(node.dtype) is not None:
        return "names of categories"
    return {"i": "whole numbers", "u": "whole numbers", "f": "fractions", "b": "yes and no"}.get(
        node.dtype.kind, "neither numbers nor text")


def _check_size(where: str, label: str, node: Any) -> None:
    """Refuse a dataset that declares more than the file can hold, before memory is asked for."""
    declared = int(node.size) * node.dtype.itemsize
    stored = int(node.id.get_storage_size())
    if stored > os.path.getsize(where):
        raise InputError(where, label, f"takes {stored:,} bytes, more than the file has",
                         _MAKE_AGAIN)
    if node.id.get_create_plist().get_layout() == 1:  # contiguous: its size is believed, not told
        offset = node.id.get_offset()
        end = os.path.getsize(where)
        stored = 0 if offset is None else max(0, min(stored, end - offset))
        if offset is not None and node.dtype.kind == "O":
            _check_lengths(where, label, offset, stored, end)
    if declared and node.chunks:
        declared = max(declared, math.prod(node.chunks) * node.dtype.itemsize)
    # A compressed dataset is believed up to what its filter can gain.
    gain = _PACKED if node.id.get_create_plist().get_nfilters() else 1
    if declared > stored * gain:
        raise InputError(where, label, f"declares {declared:,} bytes of shape {node.shape} and the "
                         f"file holds {stored:,} of them", _MAKE_AGAIN)


def _check_lengths(where: str, label: str, offset: int, stored: int, end: int) -> None:
    """Refuse texts that are said to be longer than the file, which HDF5 would make room for.

    Each is kept as its length (4 bytes), the place of its collection (8) and its number there (4).
    """
    with open(where, "rb") as file:
        file.seek(offset)
        kept = file.read(stored - stored % 16)
    lengths = np.frombuffer(kept, dtype="<u4").reshape(-1, 4)[:, 0]
    if (lengths > end).any():
        raise InputError(where, label, f"holds a text of {lengths.max():,} bytes, more than the "
                         "file has", _MAKE_AGAIN)


def _decoded(where: str, label: str, values: np.ndarray) -> np.ndarray:
    """Bytes to text, strictly; a NUL inside is damage."""
    flat = values.reshape(-1)
    out = np.empty(flat.shape, dtype=object)
    for index, value in enumerate(flat.tolist()):
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
            text.encode()  # h5py lets broken bytes through as lone surrogates
        except UnicodeError:
            raise InputError(where, label, f"is not UTF-8 in row {index}",
                             "write the names as UTF-8") from None
        if "\0" in text:
            raise InputError(where, label, f"holds a NUL in row {index}", _MAKE_AGAIN)
        out[index] = text
    return out.reshape(values.shape)


def h5_attr(node: Any, name: str, *, kind: str = "number", above: float | None = None,
            below: float | None = None, field: str = "") -> Any:
    """Read one attribute of an open h5 file, group or dataset after checking it.

    Parameters
    ----------
    node
        Whose attribute it is.
    name
        The attribute.
    kind
        ``"number"``: one finite number (or its text); ``"text"``: UTF-8.
    above, below
        Bounds that a number must lie between, for instance 0 for a scale.
    field
        What an error calls it; the attribute's name where empty.

    Returns
    -------
    float, int, str or None
        As Python's own type; None where the attribute is not there.

    Raises
    ------
    InputError
        If the attribute is of another kind, several values, not finite or out of bounds.
    """
    where = os.fsdecode(node.file.filename)
    field = field or name
    with reading(where, field, "is an attribute that cannot be read", _MAKE_AGAIN):
        value = node.attrs.get(name)
        if value is None:
            return None
        value = np.asarray(value)
        if value.size != 1:
            raise InputError(where, field, f"is an attribute of {value.size} values",
                             "store one value")
        value = value.reshape(-1)[0]
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, (str, bytes)):
            value = str(_decoded(where, field, np.array([value], dtype=object))[0])
        if kind == "text":
            if not isinstance(value, str):
                raise InputError(where, field, f"is {value!r}, which is no text", "store text")
            return value
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise InputError(where, field, f"is {value!r}, which is no number",
                                 "store a number, with a decimal point") from None
        if not isinstance(value, (int, float)) or not math.isfinite(value) or (
                above is not None and not value > above) or (
                below is not None and not value < below):
            bound = "" if above is None else f" above {above:g}"
            bound += "" if below is None else f" and below {below:g}"
            raise InputError(where, field, f"is {value!r}", f"store a finite number{bound}")
        return value


def read_attr(path: str | os.PathLike, name: str) -> str | None:
    """Text attribute `name` of an h5 file; None where file, attribute or its text is unreadable."""
    import h5py

    try:
        with h5py.File(check_h5(path), "r") as stream:
            value = stream.attrs.get(name)
            value = value.decode() if isinstance(value, bytes) else value
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):  # InputError is a ValueError
        return None
    return value if isinstance(value, str) else None


def remove_tree(path: str | os.PathLike) -> None:
    """Delete a directory and everything in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
