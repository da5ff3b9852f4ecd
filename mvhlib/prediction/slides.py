"""Slides that a user names, and the stated facts about each.

==================================  ========================================================
beside a slide                      what it is
==================================  ========================================================
``slides.csv``                      in the slides' folder: ``slide`` (file name, or without its
                                    ending), and any of ``mpp`` [um/px], ``organ``, ``scanner``
``<slide>.spots.csv``               predict at these places, not on a grid: columns ``x`` and ``y``
                                    (centre [level-0 px]), and ``barcode`` if they have names
``<slide>.spots.h5ad``              the same from an AnnData: ``obsm["spatial"]`` and its names
==================================  ========================================================

A link to a slide is read as the slide; files of other kinds are passed over.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvhlib import artifacts, tables
from mvhlib.artifacts import InputError, safe_name
from mvhlib.cohort.base import check_mpp, entries
from mvhlib.spelling import refuse_other_spellings, spelt
from mvhlib.tiles.slides import TIFF, WHOLE_SLIDE

#: Endings of images; whole slides first.
ENDINGS = (*WHOLE_SLIDE, *TIFF, ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".jp2")
STATED = ("mpp", "organ", "scanner")


@dataclass(frozen=True)
class Asked:
    """A slide, and what the user states about it.

    Attributes
    ----------
    path, name
        The file; its name without the ending, which is the folder of its predictions.
    mpp
        Micrometres per level-0 pixel, or None for what the file states.
    organ, scanner
        "" where nobody said it.
    spots
        The file of places, or None for a grid.
    """

    path: Path
    name: str
    mpp: float | None = None
    organ: str = ""
    scanner: str = ""
    spots: Path | None = None


def find(where: str | os.PathLike, mpp: float | None = None) -> list[Asked]:
    """The slides of a file or folder, in the order of their names.

    Parameters
    ----------
    where
        A slide, or a folder of them; folders inside are not entered.
    mpp
        Of all slides; `slides.csv` goes before it.

    Raises
    ------
    InputError
        If there is none, two have one name but for the ending, or ``slides.csv`` names one that is
        not there, names one twice, or has a column whose name is spelled otherwise.
    """
    where = Path(where)
    folder = where if where.is_dir() else artifacts.check_file(where, "SLIDES").parent
    mpp = None if mpp is None else check_mpp(mpp, where, "MPP")
    kinds = ENDINGS if where.is_dir() else (*ENDINGS, where.suffix.lower())
    beside = [path for path in entries(folder) if path.suffix.lower() in kinds]
    paths = beside if where.is_dir() else [where]
    if not paths:
        raise InputError(where, "SLIDES", "holds no slide", f"name a slide or a folder of slides "
                         f"({', '.join(e[1:] for e in ENDINGS[:4])}, ..., png, jpg)")
    names = [safe_name(path.stem, folder, "name") for path in paths]
    alike = [spelt(name) for name in names]
    twice = sorted({name for name in alike if alike.count(name) > 1})
    if twice:
        raise InputError(folder, "name", f"{twice[0]!r} is the name of two slides, whose "
                         "predictions would share a folder", "rename one of them")
    said = _stated(folder, [*beside, *paths])
    return [Asked(path, name, **({"mpp": mpp} | said.get(path.name, {})), spots=_spots(path))
            for path, name in zip(paths, names, strict=True)]


def _stated(folder: Path, paths: Sequence[Path]) -> dict[str, dict]:
    """Read ``slides.csv``: file name -> columns. Of two `paths` of one name the later one counts.
    """
    path = folder / "slides.csv"
    if not os.path.lexists(path):
        return {}
    frame = tables.read_table(path, ("slide",))
    refuse_other_spellings(path, frame.columns, ("slide", *STATED))
    names = tables.names(frame, "slide", path, unique=True)
    # A whole file name goes before one without its ending: x.tif is not x.tif.png.
    known = {spelt(p.stem): p.name for p in paths} | {spelt(p.name): p.name for p in paths}
    files = names.map(spelt).map(known)
    if files.isna().any():
        raise InputError(path, "slide", f"{names[files.isna()].iloc[0]!r} is not a slide in this "
                         "folder", "write the file's name")
    if files.duplicated().any():
        tables.refuse(path, names, files.duplicated(), "and names the same file as a row above it",
                      "keep one row for each slide")
    columns = {key: frame[key] for key in ("organ", "scanner") if key in frame}
    if "mpp" in frame:
        columns["mpp"] = tables.numbers(frame, "mpp", path, above=0, missing=True, unit="um/px")
    return {file: {key: values.loc[row] for key, values in columns.items()
                   if not (key == "mpp" and np.isnan(values.loc[row]))}
            for row, file in files.items()}


def _spots(path: Path) -> Path | None:
    found = [path.with_name(f"{path.stem}.spots{ending}") for ending in (".csv", ".h5ad")]
    found = [each for each in found if os.path.lexists(each)]
    if len(found) > 1:
        raise InputError(found[0], "spots", f"are in {found[1].name} as well", "keep one file")
    return found[0] if found else None


def read_spots(path: Path) -> tuple[np.ndarray, list[str]]:
    """Centres `(T, 2)` float64 [level-0 px] and names of the places of a file.

    Raises
    ------
    InputError
        If it holds none, they are no finite numbers, names repeat, or the column of names is
        spelled otherwise.
    """
    if path.suffix == ".csv":
        frame = tables.read_table(path, ("x", "y"))
        refuse_other_spellings(path, frame.columns, ("x", "y", "barcode"))
        centres = np.stack([tables.numbers(frame, axis, path, unit="px") for axis in "xy"], axis=1)
        names = list(tables.names(frame, "barcode", path, unique=True)) if "barcode" in frame else (
            [f"x{x:g}_y{y:g}" for x, y in centres])
    else:
        with artifacts.h5_reader(path) as stream:
            centres = artifacts.h5_array(stream, "obsm/spatial", ndim=(2,)).astype(float)[:, :2]
            key = stream["obs"].attrs.get("_index", "_index")
            names = [str(name) for name in artifacts.h5_array(stream, f"obs/{key}", kind="text",
                                                              ndim=(1,))]
    if len(centres) == 0 or not np.isfinite(centres).all():
        raise InputError(path, "spots", "are none, or not finite",
                         "give one position (x, y) per spot")
    if len(names) != len(centres) or len(set(names)) != len(names):
        raise InputError(path, "barcode", "stands more than once, or not for every spot",
                         "give every spot a name of its own")
    return centres, names
