"""Pools of a run's tiles: the spots of its cohort, its slides, its labelled images.

::

    OUT/runs/<profile>/tiles/             of ``cohort``: one tile per spot
                      /slides/tiles/      of ``slides``: whole slides with outcomes
                      /labelled/tiles/    of ``labelled``: images with one label each
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mvhlib import artifacts

if TYPE_CHECKING:
    from mvhlib.notebook import Run

#: Pool -> its folder in the run, the table of its owners, that table's columns for what is cut and
#: for the group that it belongs to, what the group is called, and the notebook that makes it.
POOLS = {"cohort": ("", "cohort/manifest.csv", "section", "study", "study", "01_cohort"),
         "slides": ("slides", "slides/slides.csv", "slide", "site", "site", "01_cohort"),
         "labelled": ("labelled", "labelled/labels.csv", "image", "label", "class", "02_tiles")}
#: Columns of ``features/<encoder>/manifest.csv``.
FEATURE_COLUMNS = ("section", "n_tiles", "width")


def tiled(run: "Run", pools: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Read ``tiles/manifest.csv`` of every pool that has one; it may have no rows.

    Raises
    ------
    InputError
        If 02_tiles left none.
    """
    found = {pool: run.path(POOLS[pool][0], "tiles", "manifest.csv") for pool in pools}
    there = {pool: path for pool, path in found.items() if path.exists()}
    if not there:
        run.need(run.path("tiles", "manifest.csv"), made_by="02_tiles")
    return {pool: artifacts.read_csv(run.need(path, made_by="02_tiles"))
            for pool, path in there.items()}


def there(run: "Run", pool: str) -> bool:
    """True if the table of a pool's owners exists.

    Where it is not, but the notebook that makes it has run, the data set has none: that is printed.

    Raises
    ------
    InputError
        If that notebook has not run.
    """
    _, table, _, _, _, made_by = POOLS[pool]
    if run.path(table).exists():
        return True
    if not run.path("provenance", f"{made_by}.json").exists():
        run.need(run.path(table), made_by=made_by)
    print(f"There is no {table}: this data set has none, and what is asked of it is left out.")
    return False


def owners(run: "Run", pool: str) -> tuple[pd.DataFrame, str]:
    """Owners of each section, slide or image of a pool.

    Returns
    -------
    DataFrame, str
        Columns section (the tile file's name), study (or what stands in its place) and patient
        (NaN where nobody says); and what stands in the study's place: study, site or class.
    """
    _, table, name, group, called, made_by = POOLS[pool]
    rows = artifacts.read_csv(run.need(run.path(table), made_by=made_by))
    kept = rows[[name, group]].set_axis(["section", "study"], axis=1)
    patient = rows["patient"].replace("", float("nan")) if "patient" in rows else float("nan")
    return kept.assign(patient=patient), called


def embedded(run: "Run", encoders: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """Find the first pool that 04_embed embedded, and the folder of each encoder's features there.

    Encoders that embedded other pools alone are left out, which is printed.

    Returns
    -------
    str, dict
        Pool; encoder -> ``features/<encoder>`` of that pool. Empty where no tile was embedded.

    Raises
    ------
    InputError
        If 04_embed has not run for an encoder.
    """
    found: dict[str, dict[str, Path]] = {pool: {} for pool in POOLS}
    for encoder in encoders:
        folders = {pool: run.path(POOLS[pool][0], "features", encoder) for pool in POOLS}
        made = {pool: folder for pool, folder in folders.items()
                if (folder / "manifest.csv").exists()}
        if not made:
            run.need(folders["cohort"] / "manifest.csv", made_by="04_embed")
        for pool, folder in made.items():
            if len(artifacts.read_csv(run.need(folder / "manifest.csv", made_by="04_embed"))):
                found[pool][encoder] = folder
    pool = next((name for name, folders in found.items() if folders), "cohort")
    if lacking := [encoder for encoder in encoders if encoder not in found[pool]]:
        print(f"Left out, since no tile of the pool {pool} was embedded: {', '.join(lacking)}.")
    return pool, found[pool]


def write_manifest(folder: str | Path, made: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``features/<encoder>/manifest.csv``; without a row where nothing was embedded."""
    return artifacts.write_csv(Path(folder) / "manifest.csv",
                               pd.DataFrame(list(made), columns=list(FEATURE_COLUMNS)))
