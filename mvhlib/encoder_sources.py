"""Resolution of an encoder's `source`, without loading a network.

The workflow asks before anything runs, and `mvhlib.encoders` when it makes the encoder.

``published_encoders.csv`` beside this module is a table of the field's encoders: where the weights
are, how a tile becomes their input, how their output is read, and who says so. It is data: a row
more is an encoder more. A licence or a gate on which its sources differ is ``unclear``.

``python:path/file.py:function`` is a function of the user's own. A relative path starts at the
profile's folder where the file is there, else at the clone. ``features:folder`` is a folder below
DATA of precomputed features (`mvhlib.slide_features`).
"""

import ast
import csv
import functools
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError, check_file, one_line, reading, safe_path
from mvhlib.places import home, resolve

PYTHON = "python:"
#: A folder of precomputed features of slides: nothing is embedded.
FEATURES = "features:"
#: Sources whose weights, where they have any, no notebook of ours makes.
FOREIGN = (PYTHON, "timm:", "hf-hub:")
#: EfficientNet-Lite0 with ImageNet's weights, from the package registry.
IMAGENET = "imagenet"


@dataclass(frozen=True)
class Published:
    """A row of the table of published encoders.

    Attributes
    ----------
    name, other_names
        In lower case; hyphens, underscores and dots make no difference.
    loader
        ``timm``, ``transformers``, or ``python`` where only the authors' own code builds it.
    hub, hub_file
        Repository of the Hugging Face hub, and the file in it where timm does not find it alone.
    architecture, arguments
        Of timm, for weights in a file; ``"package.module:name"`` stands for an object.
    input_px, resize_px
        Side of the input [px]; side that a tile is resized to first, whose centre is taken.
    mpp
        Scale of the tiles that it was trained on [µm/px]; None where it has none.
    mean, std, interpolation, pool, width
        Normalisation, resampling, read-out (``-`` without tokens), width of the features.
    licence, gated, sources, note
        Of the weights; ``yes``, ``no`` or ``unclear``; who says so; what else a user should know.
    """

    name: str
    other_names: tuple[str, ...]
    loader: str
    hub: str
    hub_file: str
    architecture: str
    arguments: dict[str, Any]
    input_px: int
    resize_px: int | None
    mpp: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str
    pool: str
    width: int
    licence: str
    gated: str
    sources: str
    note: str


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())


@functools.cache
def published() -> dict[str, Published]:
    """Read the table of published encoders: name -> row."""
    found = {}
    path = Path(__file__).with_name("published_encoders.csv")
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            colours = {key: tuple(map(float, row[key].split())) or None for key in ("mean", "std")}
            found[row["name"]] = Published(**row | colours | {
                "other_names": tuple(row["other_names"].split()),
                "arguments": json.loads(row["arguments"] or "{}"),
                "input_px": int(row["input_px"]), "width": int(row["width"]),
                "resize_px": int(row["resize_px"]) if row["resize_px"] else None,
                "mpp": float(row["mpp"]) if row["mpp"] else None})
    return found


def find_published(source: str) -> Published | None:
    """Find the row of a published encoder by any of its names; None if there is none."""
    for row in published().values():
        if _plain(source) in map(_plain, (row.name, *row.other_names)):
            return row
    return None


def brings_weights(source: str) -> bool:
    """True if ``weights: pretrained`` means the source's own weights, not those of 03_pretrain."""
    return (source.startswith(FOREIGN) or source == IMAGENET
            or find_published(source) is not None)


def check_package(source: str, where: str | Path, field: str) -> None:
    """Refuse a source whose package is not installed, before anything has run for it.

    Raises
    ------
    InputError
        Naming the package.
    """
    row = find_published(source)
    loader = "timm" if source.startswith(("timm:", "hf-hub:")) else row.loader if row else ""
    if loader in ("timm", "transformers") and importlib.util.find_spec(loader) is None:
        extra = " (the extra timm)" if loader == "timm" else ""
        raise InputError(where, field, f"is {source!r}, which needs {loader}",
                         f"pip install {loader}{extra}")


def trained_by(source: str, weights: str, encoder: str) -> tuple[str, str]:
    """The notebook that makes an encoder's weights, and their folder below ``encoders/``.

    Both are "" where no notebook of ours does.

    Parameters
    ----------
    source, weights
        As 04_embed is given them.
    encoder
        Its slug.
    """
    made_by = {"pretrained": "03_pretrain", "mmap": "12_mmap", "cmrcnet": "13_cmrcnet"}
    method, _, built_on = weights.partition(":")
    if method not in made_by or brings_weights(source):
        return "", ""
    return made_by[method], f"{method}-{built_on}" if built_on else encoder


def learned_expression(weights: str) -> bool:
    """True if an encoder's weights come from a method that was trained on expression."""
    return weights.partition(":")[0] in ("mmap", "cmrcnet")


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
    with reading(path, function, "is in a file that cannot be read", "save it as UTF-8"):
        text = path.read_bytes().decode("utf-8-sig")
    try:
        tree = ast.parse(text, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        said = error.msg if isinstance(error, SyntaxError) else one_line(error, 160)
        raise InputError(path, function, f"is in a file that is not Python ({line}{said})",
                         "correct the file") from error
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    if function not in names and "*" not in names:  # "*": all names of another file
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
    """The user's files that determine an encoder's output: its code, its weights."""
    found = [python_file(source)[0]] if source.startswith(PYTHON) else []
    if weights and brings_weights(source) and resolve(weights).is_file():
        found.append(resolve(weights))
    return found
