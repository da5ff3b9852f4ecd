"""Cohorts: sections with study and patient, read from any source of counts and images.

>>> cohort = read("her2st", "data/her2st")            # doctest: +SKIP
>>> cohort.manifest                                   # doctest: +SKIP
"""

import difflib
import importlib
import inspect
import os
from pathlib import Path

from mvhlib.artifacts import InputError
from mvhlib.cohort.base import (
    MANIFEST_COLUMNS,
    Cohort,
    ImageRef,
    Section,
    check_counts,
    read_section,
    write_section,
)
from mvhlib.cohort.thumbnail import attach_thumbnail

__all__ = ["MANIFEST_COLUMNS", "SOURCES", "Cohort", "ImageRef", "Section", "attach_thumbnail",
           "check_counts", "read", "read_section", "write_section"]

#: Reader of each source, as module:function.
SOURCES = {
    "synthetic": "mvhlib.cohort.synthetic:read",
    "her2st": "mvhlib.cohort.her2st:read",
    "mob": "mvhlib.cohort.mob:read",
    "legacy_st": "mvhlib.cohort.legacy_st:read",
    "visium": "mvhlib.cohort.visium:read",
    "visium_hd": "mvhlib.cohort.visium:read_hd",
    "xenium": "mvhlib.cohort.visium:read_xenium",
    "segmented": "mvhlib.cohort.segmented:read",
    "xenium_cells": "mvhlib.cohort.xenium_cells:read",
    "flat": "mvhlib.cohort.flat:read",
    "hest": "mvhlib.cohort.hest:read",
    "joined": "mvhlib.cohort.joined:read",
    "run": "mvhlib.cohort.base:read_run",
    "h5ad": "mvhlib.cohort.anndata_files:read",
    "spatialdata": "mvhlib.cohort.spatial_data:read",
}


def read(source: str, path: str | Path | None = None, *, seed: int | None = None,
         keep: str | Path | None = None, **options) -> Cohort:
    """Read a cohort.

    Parameters
    ----------
    source
        One of `SOURCES`: ``synthetic``, ``her2st``, ``mob``, ``legacy_st``, ``visium``,
        ``visium_hd``, ``segmented``, ``xenium``, ``xenium_cells``, ``flat``, ``hest``,
        ``h5ad``, ``spatialdata``, ``joined`` for several of them as one cohort, or ``run`` for the
        cohort folder that a run wrote.
    path
        Directory of the data set; the synthetic source takes the folder that it writes into.
    seed
        Of the synthetic source; real tissue has none, and the others ignore it.
    keep
        Folder for images that lie inside files of counts (``h5ad``, ``spatialdata``) or are packed
        (``flat``): the run's cohort folder; the other sources ignore it.
    options
        Passed to the reader.

    Raises
    ------
    InputError
        If the source or an option is not known, the directory is missing, or a file is broken.
    """
    if source not in SOURCES:
        near = difflib.get_close_matches(str(source), SOURCES, n=1)
        raise InputError("cohort", "source", f"{source!r} is not among {list(SOURCES)}",
                         f"did you mean {near[0]!r}" if near else "use one of these")
    if source != "synthetic":
        if path is None or str(path) == "":
            raise InputError(f"cohort source {source}", "data", "no directory was given",
                             "pass the directory of the data set, as in make figures DATA=dir")
        if not os.path.exists(path):  # False as well for a name that no disk can hold
            raise InputError(path, "data", "does not exist", "check the path")
    module, function = SOURCES[source].split(":")
    reader = getattr(importlib.import_module(module), function)
    if source == "synthetic":
        # Its options are many and checked by itself.
        return reader(path, **options, **({} if seed is None else {"seed": seed}))
    known = [name for name in inspect.signature(reader).parameters if name not in ("path", "keep")]
    if keep is not None and "keep" in inspect.signature(reader).parameters:
        given = {"keep": keep}
    else:
        given = {}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(f"cohort source {source}", ", ".join(unknown), "is no option of it",
                         f"use {', '.join(known)}")
    try:
        return reader(path, **options, **given)
    except InputError as error:
        if error.where != "cohort" and not error.where.startswith("section "):
            raise
        # Said where no file is known: the directory is named at least.
        where = path if error.where == "cohort" else f"{path}: {error.where}"
        raise type(error)(where, error.field, error.problem, error.fix) from error
