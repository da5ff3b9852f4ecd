"""Several data sets joined into one cohort, for transfer between them.

Every source keeps its reader, its studies and its patients; images are found below the common
directory. Sources that name genes unlike (another species, Ensembl ids beside symbols) are brought
to one naming scheme by a table, or by upper-casing, which makes most mouse symbols those of their
human orthologues and is no more than that.

==================  ================================================================================
what                how it is read
==================  ================================================================================
sources             a list of mappings; ``path`` leads down from DATA, over links if need be, and
                    never up
orthologues         as `mvhlib.tables` reads users' tables, columns gene and symbol: none blank,
                    each once; ``ENSG1`` and ``ENSG1.12`` are one gene
sections            called differently in all sources, also without regard to case
images              below DATA
==================  ================================================================================
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError
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
    source_of: dict[str, str] = {}
    if isinstance(sources, (str, Mapping)) or not isinstance(sources, Sequence) or not sources:
        raise InputError("cohort source joined", "sources", f"is {sources!r}",
                         f"write a list of mappings with the keys {', '.join(KEYS)}")
    for number, entry in enumerate(sources):
        where = f"joined source {number + 1}"
        if not isinstance(entry, Mapping) or not {"source", "path"} <= set(entry) <= set(KEYS):
            raise InputError(where, "sources", f"is {entry!r}",
                             f"write a mapping with the keys {', '.join(KEYS)}; the last two are "
                             "optional")
        source, below, options = entry["source"], entry["path"], entry.get("options") or {}
        for key, value in (("source", source), ("path", below)):
            if not isinstance(value, str) or not value.strip():
                raise InputError(where, key, f"is {value!r}", "write it as text")
        if Path(below).is_absolute() or ".." in Path(below).parts:
            raise InputError(where, "path", f"is {below!r}, which leads out of {root}",
                             "give the common directory as DATA, or put a link into it")
        if source in ("joined", "synthetic"):
            raise InputError(where, "source", f"is {source!r}",
                             "name a source that reads one data set")
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise InputError(where, "options", f"is {options!r}",
                             "write a mapping of option names to values")
        rename = _renaming(entry.get("symbols", ""), where)
        for section in read_source(source, root / below, **options):
            first = source_of.setdefault(section.name, f"source {number + 1} ({source}, {below})")
            if made and first != f"source {number + 1} ({source}, {below})":
                raise InputError(where, "section", f"{section.name!r} is a section of {first} as "
                                 f"well as of {source}, {below}", "rename one, or choose other "
                                 "sections= in the options of one source")
            made.append(_moved(section, root, rename))
    return Cohort(made)


def _renaming(symbols: str, where: str) -> Callable[[pd.Index], list[str]] | None:
    """Return a function from a source's gene names to the common ones."""
    if not symbols:
        return None
    if symbols == "upper":
        return lambda names: [str(name).upper() for name in names]
    if not isinstance(symbols, str) or not symbols.endswith(".csv"):
        raise InputError(where, "symbols", f"is {symbols!r}",
                         "use upper, or a csv with gene and symbol")
    file = resolve(symbols)
    table = tables.read_table(file, ("gene", "symbol"))
    for column in ("gene", "symbol"):
        # A gene may be called NA.
        tables.names(table, column, file, unique=True, none=("",))
    twice = [gene for gene, n in Counter(gene.split(".")[0] if gene.startswith("ENS") else gene
                                         for gene in table["gene"]).items() if n > 1]
    if twice:
        raise InputError(file, "gene", f"holds {twice[0]} with two version numbers",
                         "keep one row per gene: orthologues must be one to one")
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
        if not image.is_relative_to(root) or ".." in image.parts[len(root.parts):]:
            raise InputError(section.name, "image", f"{image} lies outside {root}",
                             "put the image, or a link to it, below the common directory")
        ref = replace(ref, path=str(image.relative_to(root)), root="data")
    return replace(section, load=renamed, image_ref=ref, roots={"data": root})
