"""Files appear whole or not at all: atomic writing, JSON, locks."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvhlib.artifacts.errors import InputError, reading
from mvhlib.artifacts.hashes import as_json

#: Folders of an OUT that hold what a run made.
OUTPUTS = ("runs", "figures", "predictions")


def is_output(folder: str | os.PathLike) -> bool:
    """Whether a folder is an OUT: what a run draws there is nobody's data, though DATA hold it."""
    folder = Path(folder)
    return (folder / "runs").is_dir() and ((folder / ".cache").is_dir()
                                           or (folder / "figures").is_dir())


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
        if isinstance(error, OSError) and os.path.islink(path):
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
    return write_text(path, json.dumps(content, indent=1, sort_keys=True, default=as_json) + "\n")


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


def remove_tree(path: str | os.PathLike) -> None:
    """Delete a directory and everything in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
