"""Lack of memory, reported in one line before the system kills the process without one."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import torch

from mvhlib.artifacts import InputError


class TooLarge(InputError):
    """More memory is needed than is free; smaller batches of tiles may fit."""


def lacks_memory(error: BaseException) -> bool:
    """True if an error reports a lack of memory, of the machine or of its GPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError | TooLarge):
        return True
    return (isinstance(error, RuntimeError) and "memory" in str(error)) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _in_bytes(path: str, key: str) -> int | None:
    """A line ``key: n kB`` of a file of the system's, in bytes."""
    for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def free_memory() -> int | None:
    """Bytes that this process may still allocate; None where unknown (not Linux)."""
    try:
        free = _in_bytes("/proc/meminfo", "MemAvailable")
    except OSError:
        return None
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" is not a number
        group = Path("/sys/fs/cgroup")
        left = int((group / "memory.max").read_text()) - int(
            (group / "memory.current").read_text())
        free = left if free is None else min(free, max(left, 0))
    return free


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Let a block take the memory that is free, and no more: the next byte is a `MemoryError`.

    Linux promises memory that it does not have, and ends a process that comes for it. Where a GPU
    is in use the block runs without a limit, since its driver maps more than it takes.
    """
    free = None if torch.cuda.is_initialized() else free_memory()
    if free is None:
        yield
        return
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        most = (_in_bytes("/proc/self/status", "VmData") or 0) + free
        for limit in (before, hard):
            most = most if limit == resource.RLIM_INFINITY else min(most, limit)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    except (OSError, ValueError):  # a system that does not allow it
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
