"""Checks of names and paths: printable on one line, and usable as files."""

import os
import re
from collections.abc import Iterable
from typing import Any

from mvhlib.artifacts.errors import InputError, one_line

#: What no name may hold: separators of folders, control characters, half characters (bytes of a
#: file name that are no UTF-8), separators of lines and paragraphs.
_UNSAFE = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
#: What a number gains where one of its column was missing: ``7.0``.
_POINT_ZERO = re.compile(r"(?<=\d)\.0+$")
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


def check_spelling(names: Iterable[str], where: str | os.PathLike, field: str) -> None:
    """Refuse two patients, studies or classes whose names differ in case or blanks alone, or by .0.

    They are one, typed twice: as two they would stand on both sides of a fold.

    Raises
    ------
    InputError
        Names both.
    """
    spelt: dict[str, str] = {}
    for name in names:
        plain = _POINT_ZERO.sub("", " ".join(name.casefold().split()))
        other = spelt.setdefault(plain, name)
        if other != name:
            raise InputError(where, field, f"{other!r} and {name!r} differ only in upper "
                             "and lower case, blanks or .0", "spell them the same way, or, if they "
                             "are two, rename one of them")


#: Characters that a line of text cannot hold.
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
                             "control character", "write names without such characters")
