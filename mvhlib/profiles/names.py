"""Names of the user's files that can stand in a table and in a profile, and those that cannot."""

from pathlib import Path

from mvhlib.artifacts import InputError, safe_name, safe_path


def unsafe(path: Path, root: Path) -> str:
    """Why a slide's file can be named in no table, in one line; empty where it can.

    Its name becomes a file's, and its path below `root` a cell: bytes that are no UTF-8, control
    characters, and a dot or hyphen at the beginning are refused.
    """
    try:
        safe_name(path.stem, path, "slide")
        safe_path(path.relative_to(root), path, "slide")
    except InputError as error:
        return str(error)
    return ""
