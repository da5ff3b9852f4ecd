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


#: What no name may hold: separators of folders, control characters, half characters (bytes of a
#: file name that are no UTF-8), separators of lines and paragraphs.
_UNSAFE = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
#: Bytes; file systems take 255, and endings are added.
LONGEST_NAME = 200


def safe_name(name: Any, where: str | os.PathLike, field: str) -> str:
    """Return a name that can be a file's or a folder's, without the blanks around it.

    Sections, patients, studies, slides, encoders and profiles come from users' tables and become
    paths: such a name must stay in its folder, and must be no option of a command.

    Parameters
    ----------
    name
        As it was read.
    where, field
        The file, and its column or key, for the error.

    Raises
    ------
    InputError
        If it is no text, is blank or longer than `LONGEST_NAME` bytes, holds a slash, a backslash
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
    elif len(stripped.encode()) > LONGEST_NAME:
        problem = f"is {one_line(stripped, 60)!r}, longer than {LONGEST_NAME} bytes"
    if problem:
        raise InputError(where, field, problem, "choose a name that begins with a letter or digit "
                         "and holds no slash, backslash or line break")
    return stripped


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
    """Write a data frame without its index; floats with nine significant digits."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format=FLOAT_FORMAT, lineterminator="\n")
    return Path(path)


def read_csv(path: str | os.PathLike, columns: tuple[str, ...] = (), **options):
    """Read a csv and check that it has `columns`; names stay text (``NA`` is a gene as well)."""
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise InputError(path, "file", "does not exist", "check the path")
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""], **options)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(frame.columns)}",
                         "add or rename the columns")
    return frame


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
