"""Several data sets as one cohort: what transfer between them needs.

Every source keeps its reader, its studies and its patients; images are found below the common
directory. Sources that name genes unlike (another species, Ensembl ids beside symbols) are brought
to one naming scheme by a table, or by upper-casing, which makes most mouse symbols those of their
human orthologues and is no more than that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mvhlib.artifacts import InputError, read_csv
from mvhlib.cohort.base import Cohort, Section
from mvhlib.places import resolve

KEYS = ("source", "path", "symbols", "options")


def read(path: str | Path, *, sources: Sequence[Mapping[str, Any]]) -> Cohort:
    """Read the sources in their order.

    Parameters
    ----------
    path
        Directory that all sources lie below.
    sources
        One mapping each: ``source`` (a reader of `mvhlib.cohort.read`), ``path`` (below `path`),
        optionally ``options`` of that reader, and ``symbols``: ``upper``, or a csv with the columns
        gene and symbol (relative to the clone). Versions of Ensembl ids (``.12``) are passed over;
        genes that the table lacks keep their names, so that libraries stay whole.

    Raises
    ------
    InputError
        If a source is not described as above, its table gives a symbol twice, two genes of a
        section come to one name, or two sections have one.
    """
    from mvhlib.cohort import read as read_source

    root, made = Path(path), []
    for number, entry in enumerate(sources):
        where = f"joined source {number + 1}"
        if not isinstance(entry, Mapping) or not {"source", "path"} <= set(entry) <= set(KEYS):
            raise InputError(where, "sources", f"is {entry!r}",
                             f"write a mapping of {', '.join(KEYS)}; the last two may be left out")
        rename = _renaming(entry.get("symbols", ""), where)
        below = read_source(entry["source"], root / entry["path"], **entry.get("options", {}))
        made += [_moved(section, root, rename) for section in below]
    return Cohort(made)


def _renaming(symbols: str, where: str) -> Callable[[pd.Index], list[str]] | None:
    """What turns a source's gene names into the common ones."""
    if not symbols:
        return None
    if symbols == "upper":
        return lambda names: [str(name).upper() for name in names]
    if not str(symbols).endswith(".csv"):
        raise InputError(where, "symbols", f"is {symbols!r}",
                         "use upper, or a csv with gene and symbol")
    table = read_csv(resolve(symbols), ("gene", "symbol"), dtype=str)
    for column in ("gene", "symbol"):
        if table[column].isna().any() or table[column].duplicated().any():
            raise InputError(symbols, column, "is empty in a row, or stands more than once",
                             "keep orthologues that are one to one")
    symbol_of = dict(zip(table["gene"], table["symbol"], strict=True))

    def rename(names: pd.Index) -> list[str]:
        found = [symbol_of.get(name, symbol_of.get(str(name).split(".")[0])) for name in names]
        return [str(name) if new is None else new for name, new in zip(names, found, strict=True)]

    return rename


def _moved(section: Section, root: Path, rename: Callable[[pd.Index], list[str]] | None) -> Section:
    """The section with its image found from the common directory, and its genes renamed."""
    load, ref = section.load, section.image_ref

    def renamed():
        adata = load()
        if rename is not None:
            adata = adata.copy()
            # Two genes that end up with one name are refused when the counts are checked.
            adata.var_names = rename(adata.var_names)
        return adata

    if ref is not None:
        image = section.roots[ref.root] / ref.path
        ref = replace(ref, path=str(image.relative_to(root)), root="data")
    return replace(section, load=renamed, image_ref=ref, roots={"data": root})
