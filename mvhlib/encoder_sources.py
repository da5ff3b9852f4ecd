"""What the `source` of an encoder names, told without loading a network.

The workflow asks before anything runs, and `mvhlib.encoders` when it makes the encoder.

``python:path/file.py:function`` is a function of the user's own. A relative path starts at the
profile's folder where the file is there, else at the clone.
"""

import ast
import os
from pathlib import Path

from mvhlib.artifacts import InputError, check_file, one_line, reading, safe_path
from mvhlib.places import home, resolve

PYTHON = "python:"
#: Sources whose weights, where they have any, no notebook of ours makes.
FOREIGN = (PYTHON, "timm:", "hf-hub:")


def brings_weights(source: str) -> bool:
    """Whether ``weights: pretrained`` means the source's own, and not what 03_pretrain makes."""
    return source.startswith(FOREIGN)


def python_file(source: str, folder: str | os.PathLike | None = None) -> tuple[Path, str]:
    """Take ``python:path/file.py:function`` apart.

    Parameters
    ----------
    source
        As the user wrote it; the path may hold blanks, ``#`` and colons.
    folder
        Where a relative path is looked for before the clone: the profile's.

    Returns
    -------
    tuple
        The file, which is there, and the name of the function.

    Raises
    ------
    InputError
        If it has no such form, or no such file is there.
    """
    place, _, function = source.removeprefix(PYTHON).rpartition(":")
    if not place or not function.isidentifier():
        raise InputError(source, "source", "names no function in a file",
                         "write python:path/file.py:function")
    safe_path(place, source, "source")
    written = Path(place).expanduser()
    near = Path(folder) / written if folder is not None else None
    path = near if near is not None and os.path.lexists(near) else resolve(written)
    if not os.path.lexists(path):
        raise InputError(path, function, "cannot be called, because the file is not there",
                         "write python:path/file.py:function, its path from the clone, from the "
                         "profile's folder, or in full")
    return check_file(path, function), function


def read_code(path: Path, function: str) -> tuple[ast.Module, str]:
    """Parse a file of Python, and see that it defines `function`; nothing in it runs.

    Returns
    -------
    tuple
        The tree, and the text.

    Raises
    ------
    InputError
        If it is no Python, or nothing in it has that name.
    """
    with reading(path, function, "stands in a file that cannot be read", "save it as UTF-8"):
        text = path.read_bytes().decode("utf-8-sig")
    try:
        tree = ast.parse(text, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        said = error.msg if isinstance(error, SyntaxError) else one_line(error, 160)
        raise InputError(path, function, f"stands in a file that is no Python ({line}{said})",
                         "mend the file") from error
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    if function not in names and "*" not in names:  # "*": whatever another file holds
        raise InputError(path, function, "is not defined in this file", "define it, or name "
                         f"another: {[name for name in sorted(names) if name[0] != '_'][:8]}")
    return tree, text


def in_plan(source: str, folder: Path) -> str:
    """A source of a profile, as every job of it reads it: its file checked, its path full.

    Inside the clone the path starts there, so that it is the same on every machine.
    """
    if not source.startswith(PYTHON):
        return source
    path, function = python_file(source, folder)
    read_code(path, function)
    # Not resolved: a link to a file names the file that the link leads to at that time.
    path = Path(os.path.abspath(path))
    if path.is_relative_to(home()):
        path = path.relative_to(home())
    return f"{PYTHON}{path}:{function}"


def files_of(source: str, weights: str = "") -> list[Path]:
    """Files of the user's that decide what an encoder computes: its code, its weights."""
    found = [python_file(source)[0]] if source.startswith(PYTHON) else []
    if weights and brings_weights(source) and resolve(weights).is_file():
        found.append(resolve(weights))
    return found
