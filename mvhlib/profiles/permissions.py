"""What this user may not read of a data set: it is passed over, and named in the report.

``lost+found`` lies at the top of many disks, and a colleague's folder may be closed to others.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mvhlib.tiles.whole import may_list

#: Files and folders whose permissions are looked at; each is a question to the file server.
_MOST_ASKED = 10_000


def open_folders(root: Path, depth: int) -> list[Path]:
    """A directory and the folders below it that may be read, level by level, without hidden ones.

    Parameters
    ----------
    depth
        Levels below `root`.
    """
    found = level = [root]
    for _ in range(depth):
        level = [folder for above in level for folder in sorted(above.glob("*/"))
                 if not folder.name.startswith(".") and may_list(folder)]
        found = found + level
    return found


def closed(root: Path) -> list[str]:
    """What may not be read in a directory and two levels below it, named from there; none hidden.

    In a large data set the first `_MOST_ASKED` files and folders are looked at.
    """
    return [str(path.relative_to(root)) for path in islice(_inside(root), _MOST_ASKED)
            if os.path.exists(path)
            and not (may_list(path) if os.path.isdir(path) else os.access(path, os.R_OK))]


def _inside(root: Path) -> Iterator[Path]:
    for folder in open_folders(root, 2):
        yield from (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
