"""Names of the user's files that can stand in a table and in a profile, and those that cannot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError, safe_name


def unsafe(path: Path, root: Path) -> str:
    """Why a slide's file below `root` can be named in no table, in one line; empty where it can."""
    try:
        safe_name(path.stem, path, "slide")
    except InputError as error:
        return str(error)
    return unwritable(root, {"slide": str(path.relative_to(root))})


def unwritable(root: Path, cells: Mapping[str, Any]) -> str:
    """Why a row of a table cannot be written, in one line; empty where it can.

    Names of files are bytes: those that are no UTF-8 are no text.
    """
    for column, cell in cells.items():
        try:
            str(cell).encode()
        except UnicodeEncodeError:
            return str(InputError(root, column, f"is {cell!r}, which is no UTF-8", "rename the "
                                  "file and its folders, or make links with plain names to them"))
    return ""
