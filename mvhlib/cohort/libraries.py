"""AnnData files that hold several sections: one library of ``uns["spatial"]`` each.

``scanpy.concat`` of some Visium sections makes such files. Each library is a section of its name,
with its own image; which spot is of which, a column of ``obs`` must say. Where no column does, or
two say different things, nothing can be told apart: the file is refused in one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, h5_reader

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Part:
    """A section of a file.

    Attributes
    ----------
    path
        The file.
    library
        Key of ``uns["spatial"]``; "" where the file is one section.
    """

    path: Path
    library: str = ""


def parts(files: Mapping[str, Path]) -> dict[str, Part]:
    """Section -> its part of a file; files of one library keep their names.

    A library is called as its key, after the name of its file where two files have such a library
    or another file is called so.
    """
    inside = {name: of_file(path) for name, path in files.items()}
    keys = [key for name, found in inside.items() for key in (found or [name])]
    made = {}
    for name, path in files.items():
        if not inside[name]:
            made[name] = Part(path)
        for key in inside[name]:
            made[key if keys.count(key) == 1 else f"{name}-{key}"] = Part(path, key)
    return made


def of_file(path: Path) -> list[str]:
    """Libraries of a file that has several; empty for any other file, a broken one too."""
    try:
        state = path.stat()
        return list(_of_file(path, state.st_mtime_ns, state.st_size))
    except (InputError, OSError):  # the file's reader says what is wrong with it
        return []


@lru_cache(maxsize=1024)
def _of_file(path: Path, changed_ns: int, size: int) -> tuple[str, ...]:
    """Cached while the file is unchanged, since a folder is searched section by section."""
    with h5_reader(path) as stream:
        if "uns" not in stream or "spatial" not in stream["uns"]:
            return ()
        spatial = stream["uns/spatial"]
        found = sorted(key for key in spatial if hasattr(spatial[key], "keys"))
    return tuple(found) if len(found) > 1 else ()


def take(stored: "AnnData", library: str, path: Path) -> "AnnData":
    """The spots of one library, with its image alone in ``uns["spatial"]``.

    Raises
    ------
    InputError
        If no column of ``obs`` says which spots they are, or two do and differ, or it has none.
    """
    every = sorted(key for key, value in stored.uns["spatial"].items()
                   if isinstance(value, Mapping))
    column = _column(stored.obs, every, path)
    mine = stored.obs[column].astype(str).to_numpy() == library
    if not mine.any():
        raise InputError(path, f'uns["spatial"][{library!r}]', f'has no spot in obs["{column}"]',
                         "leave it out of samples.csv, or out of the file")
    taken = stored[mine].copy()
    taken.uns["spatial"] = {library: stored.uns["spatial"][library]}
    return taken


def _column(obs: pd.DataFrame, every: list[str], path: Path) -> str:
    """The column whose every value is a library, and not one library alone."""
    said = {}
    for column in obs:
        if obs[column].dtype.kind in "ifbc":
            continue
        values = obs[column].astype(str)
        if values.isin(every).all() and values.nunique() > 1:
            said[column] = values.to_numpy()
    where = f"has several libraries {every[:4]}"
    if not said:
        raise InputError(path, 'uns["spatial"]', f"{where}, and no column of obs says which spots "
                         "are of which", "write one file per section, or a column library_id")
    first, *others = said
    if not all(np.array_equal(said[first], said[other]) for other in others):
        raise InputError(path, "obs", f"{list(said)[:4]} name libraries, but different ones",
                         "keep the column that is right")
    return str(first)
