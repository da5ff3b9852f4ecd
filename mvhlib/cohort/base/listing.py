"""Listing of a data directory, and the choice of its sections."""

from collections.abc import Iterable
from pathlib import Path

from mvhlib.artifacts import InputError, check_file, reading, safe_name


def entries(folder: Path) -> list[Path]:
    """List a folder by name, without hidden files; nothing where there is no folder.

    Raises
    ------
    InputError
        If it is a file, a link that leads nowhere, or may not be read.
    """
    if not folder.is_dir():
        if folder.is_symlink() or folder.exists():
            raise InputError(folder, "folder", "is a link that leads nowhere" if folder.is_symlink()
                             else "is a file", "correct the link, or put the folder itself there")
        return []
    with reading(folder, "folder", fix="change its permissions"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def present(path: Path, field: str = "file") -> bool:
    """True if the file exists; anything else of that name is refused, not passed over.

    Raises
    ------
    InputError
        If it is a folder, or a link that leads nowhere or in a circle.
    """
    if not (path.exists() or path.is_symlink()):
        return False
    check_file(path, field)
    return True


def section_list(sections: Iterable[str], where) -> list[str]:
    """Return the names of the requested sections.

    Raises
    ------
    InputError
        If it is one text and no list, or a name is no text (YAML reads 007 as a number).
    """
    if isinstance(sections, str) or not isinstance(sections, Iterable):
        raise InputError(where, "sections", f"is {sections!r}, not a list",
                         f"write a list, as in [{sections}]")
    return [safe_name(name, where, "sections") for name in sections]
