"""h5 files of any origin: links and sizes are checked before anything is read."""

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib.artifacts.errors import InputError, reading
from mvhlib.artifacts.files import atomic, check_file


@contextlib.contextmanager
def h5_writer(path: str | os.PathLike) -> Iterator[Any]:
    """Open an h5 file for writing beside its place; it appears only when it is complete."""
    import h5py

    with atomic(path) as temporary, h5py.File(temporary, "w", track_order=True) as stream:
        yield stream


#: Advice about a file that is not a complete h5 file.
_MAKE_AGAIN = ("it is probably truncated or damaged: copy it again from its "
               "source, or delete it and run again what wrote it")


@contextlib.contextmanager
def h5_reader(path: str | os.PathLike) -> Iterator[Any]:
    """Open an h5 file for reading; whatever is wrong with it is one clear error.

    Links to other files are refused before anything is read, be they external links, external
    storage or virtual datasets: an h5 file has to contain its own data. Errors of h5py and of numpy
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
    """Return `path` if the h5 library reads the file without a crash; call this first.

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
    if _key(facts) in _WALKED:
        return path
    ended = _in_child(lambda: _walk_h5(path))
    if ended is not None and os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == _GREEDY:
        raise InputError(path, "file", "is damaged: the h5 library asks for more than "
                         f"{_WALK_BYTES / 2**30:g} GB to read it", _MAKE_AGAIN)
    if ended is not None and os.WIFSIGNALED(ended):
        how = os.WTERMSIG(ended)
        raise InputError(path, "file", "is damaged: the h5 library does not finish reading it"
                         if how in (signal.SIGXCPU, signal.SIGKILL) else
                         f"is damaged: the h5 library crashes on it ({signal.Signals(how).name})",
                         _MAKE_AGAIN)
    _WALKED.add(_key(facts))
    return path


def check_h5_files(paths: Iterable[str | os.PathLike]) -> None:
    """Walk through the files of a folder in one child process, so that each needs none of its own.

    A fork costs more the more a process holds, and a hundred folders of features are thousands of
    files. Nothing is refused here: where the child does not come through, `check_h5` asks file by
    file and names the one.
    """
    new = {}
    for path in paths:
        with contextlib.suppress(OSError):
            facts = os.stat(path)
            if facts.st_size and _key(facts) not in _WALKED:
                new[_key(facts)] = Path(path)
    if len(new) > 1 and _in_child(lambda: [_walk_h5(path) for path in new.values()]) == 0:
        _WALKED.update(new)


def _key(facts: os.stat_result) -> tuple[int, int, int, int]:
    """Identity of a file, which changes if another one takes its place."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _in_child(work: Callable[[], Any]) -> int | None:
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

            faulthandler.disable()  # it would print a trace of a crash that is said in one line
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
    try:
        if not _ends(child, _WALK_S):
            return None  # a slow disk says nothing about the file
        status, child = os.waitpid(child, 0)[1], 0
        return status
    except ChildProcessError:
        child = 0  # another handler has collected it
        return None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _ends(child: int, seconds: float) -> bool:
    """Wait until a child process has ended, without collecting it; False where it takes longer."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.pidfd_open(child)  # Linux: wakes at once
        try:
            return bool(select.select([handle], [], [], seconds)[0])
        finally:
            os.close(handle)
    start, pause = time.monotonic(), 0.0005
    while time.monotonic() - start < seconds:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return False


def _walk_h5(path: Path) -> None:
    """Access all that a reader accesses; ignore errors other than those of memory."""
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

    def look(name: str, link: Any) -> None:  # h5py hides what is raised in here
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
                             "correct the link, or copy the data to this name") from None
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
            raise InputError(where, label, f"is missing; the file has {sorted(stream)[:12]}",
                             "give a file that has it")
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
            raise InputError(where, label, f"has {shape[0] if shape else 'no'} rows and needs "
                             f"{rows}", _MAKE_AGAIN)
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
    if node.id.get_create_plist().get_layout() == 1:  # contiguous: no size is checked
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
                raise InputError(where, field, f"is {value!r}, not text", "store text")
            return value
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise InputError(where, field, f"is {value!r}, not a number",
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
