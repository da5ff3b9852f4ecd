"""Search of a data directory for the counts, spots and image of each section."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError
from mvhlib.cohort.base import entries, section_list
from mvhlib.cohort.legacy_st.tables import POSITION, read_lines

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
TABLE_SUFFIXES = (".tsv.gz", ".tsv", ".txt.gz", ".txt", ".csv.gz", ".csv")


def find_tables(root: Path, folders: Iterable[str], pattern: str) -> dict[str, Path]:
    """Files of `folders` below `root` whose whole name matches `pattern`, by section.

    Parameters
    ----------
    pattern
        Regular expression with a group ``section``, without the table suffix.

    Raises
    ------
    InputError
        If two files claim one section.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in entries(root / folder):
            suffix = table_suffix(path)
            match = suffix and re.fullmatch(pattern, path.name.removesuffix(suffix))
            if not match:
                continue
            name = match["section"]
            if name in found:
                raise InputError(path, "section", f"{name} has a second file, {found[name].name}",
                                 "keep one of them")
            found[name] = path
    return found


def is_counts(path: Path) -> bool:
    """True if a table looks like counts: its second row begins with an array position."""
    try:
        lines = read_lines(path)
    except InputError:  # a broken archive is likelier a table than a note
        return path.name.endswith(".gz")
    return len(lines) > 1 and bool(re.fullmatch(POSITION, lines[1].split("\t")[0].strip('"')))


def table_suffix(path: Path) -> str | None:
    """The ending of a table's name, or None."""
    return next((end for end in TABLE_SUFFIXES if path.name.endswith(end)), None)


def find_images(root: Path, names: Iterable[str], depth: int = 3) -> dict[str, Path]:
    """The image of each section, wherever it lies below `root`.

    A file belongs to a section if its folder has the section's name, or its own name begins with
    it; where it begins with two, it belongs to the longer. A folder of its own wins: there the
    full-resolution image lies.

    Raises
    ------
    InputError
        If a section has two images of equal standing, or a link leads nowhere.
    """
    names = list(names)
    files, folders = [], [root]
    for _ in range(depth + 1):
        found = [path for folder in folders for path in entries(folder)]
        folders = [path for path in found if path.is_dir()]
        lost = [path for path in found if path.is_symlink() and not path.exists()
                and path.suffix.lower() in ("", *IMAGE_SUFFIXES)]
        if lost:
            raise InputError(lost[0], "link", "leads nowhere, and images may lie behind it",
                             "correct the link, or delete it")
        files += [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES
                  and not path.is_dir()]
    owner = {path: max((name for name in names
                        if re.match(rf"{re.escape(name)}(?![0-9A-Za-z])", path.name)),
                       key=len, default=None) for path in files}
    found = {}
    for name in names:
        in_folder = [path for path in files if path.parent.name == name and path.parent != root]
        candidates = in_folder or [path for path in files if owner[path] == name]
        if len(candidates) > 1:
            raise InputError(candidates[1], "image", f"section {name} has two images, the other is "
                             f"{candidates[0]}", "keep one of them")
        if candidates:
            found[name] = candidates[0]
    return found


def check_keys(option: Mapping[str, Any] | None, name: str, known: Iterable[str] | None = None
               ) -> Mapping[str, Any]:
    """Check an option that is set per section: a mapping, whose keys are sections.

    Raises
    ------
    InputError
        If it is no mapping, or a key is none of `known`.
    """
    if option is None:
        return {}
    if not isinstance(option, Mapping):
        raise InputError(f"option {name}", name, f"is {option!r}", "write {section: value}")
    unknown = [] if known is None else [key for key in option if key not in set(known)]
    if unknown:
        raise InputError(f"option {name}", "section", f"{unknown[:5]} are not among the sections",
                         "name sections that exist, in quotes")
    return option


def check_names(found: Mapping[str, Path], wanted: Iterable[str] | None, root: Path) -> list[str]:
    """Names of the sections to read, in their natural order; all that were found by default."""
    if wanted is None:
        return sorted(found, key=_natural)
    wanted = section_list(wanted, root)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise InputError(root, "sections", f"{unknown} are not there; there are "
                         f"{sorted(found, key=_natural)}", "name sections that exist")
    return wanted


def _natural(name: str) -> list:
    """Sort key that puts A2 before A10."""
    # [0-9]: other digits, such as superscripts, are no numbers to Python.
    return [int(part) if index % 2 else part
            for index, part in enumerate(re.split(r"([0-9]+)", name))]
