"""Choice of the genes to predict, and the units of their expression.

A panel is chosen on the sections that it is given: pass training sections only. Every panel is cut
to the genes that all of these sections share.

Panels
    ``hvg``
        Highly variable genes. Scanpy's normalised dispersion of log1p-normalised counts, per
        section; the ranks are averaged over sections, so that no section rules by its size and no
        offset between studies counts as variation.
    ``hmhvg``
        Highly variable genes that are highly expressed as well (recipe of Stem, Zhu et al., ICLR
        2025): union of each section's 2,000 most variable genes, without mitochondrial and
        ribosomal ones, ranked by mean and by standard deviation; the intersection of the top m
        of both, with the smallest m that leaves enough.
    ``heg``
        Highest mean expression, sections weighing alike.
    ``markers_breast``, ``markers_colorectal``, ``markers_liver``
        Named lists with their sources, in ``markers.csv``.
    ``all``
        Every shared gene, in the order of the first section.
    a path to a csv
        Column ``gene``; or ``list,gene,source`` as in ``markers.csv``, all lists together. It is
        read by `mvhlib.tables.read_table`, relative to the clone. Genes are text, also ``NA``; none
        is blank, and what a spreadsheet made a date of (``2-Sep``, ``SEPT2`` once) is refused.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, read_csv
from mvhlib.cohort import dated_genes
from mvhlib.cohort.pseudospots import is_control
from mvhlib.places import resolve

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

MARKERS = Path(__file__).with_name("markers.csv")
COMPUTED = ("hvg", "hmhvg", "heg")
PANEL_COLUMNS = ("panel", "protocol", "fold", "rank", "gene")
#: What values are after each of `normalize`'s ways.
UNITS = {"log1p_cp10k": "ln(1 + counts per 10,000 of the spot)", "log1p": "ln(1 + counts)",
         "mmap": "log10(1 + counts per 10,000 of the panel)"}
NORMALIZATIONS = tuple(UNITS)
#: Mitochondrial and ribosomal genes, as human and mouse symbols.
HOUSEKEEPING = r"^(MT-|RPS|RPL|mt-|Rps|Rpl)"


class Panel(list):
    """Gene names in the order of their rank.

    Attributes
    ----------
    name
        Name of the panel.
    absent
        Genes of a marker list that not all sections have, in the order of the list.
    """

    def __init__(self, genes: Iterable[str], name: str, absent: Iterable[str] = ()):
        super().__init__(genes)
        self.name, self.absent = name, list(absent)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self.name, self.absent)

    def __repr__(self) -> str:
        head = ", ".join(self[:5]) + (", ..." if len(self) > 5 else "")
        gone = f"; absent: {', '.join(self.absent)}" if self.absent else ""
        return f"Panel {self.name}: {len(self)} genes ({head}){gone}"


def panel(name: str, adatas: Sequence["AnnData"], n_genes: int = 50, *,
          min_spots: float = 0.1, available: Iterable[str] | None = None,
          memory: dict[Any, Any] | None = None) -> Panel:
    """Choose the genes of a panel on the given sections.

    Parameters
    ----------
    name
        See the module.
    adatas
        Training sections, with raw counts in ``layers["counts"]``.
    n_genes
        Size of a computed panel; marker lists and ``all`` are taken whole. Fewer are returned,
        and the log says so, where not enough genes qualify.
    min_spots
        Computed panels: least share of the spots of every section in which a gene must be
        found [0-1], since a gene seen in three spots has no correlation worth the name.
    available
        Names of genes that the test sections have as well; names tell nothing of their
        expression, so this is no peeking. None: no restriction.
    memory
        Keeps what was computed of each section; hand the same dict to the next panel, since folds
        share most of their sections.

    Raises
    ------
    InputError
        If the name is not known, a list cannot be read, or the sections share no gene with each
        other or with the list.
    """
    adatas = list(adatas)
    if not adatas:
        raise InputError(f"panel {name}", "sections", "none was given", "pass training sections")
    shared = shared_genes(adatas, available)
    if len(shared) == 0:
        raise InputError(f"panel {name}", "genes", f"the {len(adatas)} sections share none "
                         f"(first section: {list(adatas[0].var_names[:3])}, last: "
                         f"{list(adatas[-1].var_names[:3])})",
                         "use one naming scheme (symbols or Ensembl ids) and one species")
    if name == "all":
        return Panel(shared, name)
    if name not in COMPUTED:
        return _marker_panel(name, shared)
    if n_genes < 1:
        raise InputError(f"panel {name}", "n_genes", f"is {n_genes}", "choose at least one gene")
    statistics = [_remembered(adata, shared, {} if memory is None else memory)
                  for adata in adatas]
    found = np.min([table["found"].to_numpy() for table in statistics], axis=0)
    qualified = (found >= min_spots) & (found > 0)
    if not qualified.any():
        raise InputError(f"panel {name}", "min_spots", f"none of {len(shared)} shared genes is "
                         f"found in {min_spots:.0%} of the spots of every section",
                         "lower min_spots")
    ranked = {"hvg": _hvg, "hmhvg": _hmhvg, "heg": _heg}[name](statistics, qualified)
    said = (name, len(ranked), n_genes)
    if len(ranked) < n_genes and said not in (memory or ()):
        log.warning("panel %s: %d genes qualify, %d were asked for", *said)
        if memory is not None:
            memory[said] = True  # said once for all folds of a cohort
    return Panel(ranked[:n_genes], name)


def frame(chosen: Sequence[str], name: str, protocol: str, fold: str) -> pd.DataFrame:
    """Rows of ``panels.csv`` for one panel of one fold; ranks start at 1."""
    return pd.DataFrame({"panel": str(name), "protocol": protocol, "fold": str(fold),
                         "rank": np.arange(1, len(chosen) + 1), "gene": list(chosen)},
                        columns=list(PANEL_COLUMNS))


def concat(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join the parts of ``panels.csv``; keep its columns even where there is no part."""
    frames = list(frames)
    if not frames:
        return pd.DataFrame(columns=list(PANEL_COLUMNS))
    return pd.concat(frames, ignore_index=True)


def shared_genes(adatas: Sequence["AnnData"], available: Iterable[str] | None = None) -> pd.Index:
    """Genes that all sections have, in the order of the first; controls are left out."""
    genes = adatas[0].var_names
    for adata in adatas[1:]:
        genes = genes[genes.isin(adata.var_names)]
    if available is not None:
        genes = genes[genes.isin(list(available))]
    return genes[~is_control(genes)] if len(genes) else genes


def marker_lists() -> list[str]:
    """Names of the marker panels that come with the library."""
    return [f"markers_{name}" for name in dict.fromkeys(read_csv(MARKERS)["list"])]


def marker_sets() -> dict[str, list[str]]:
    """The marker panels that come with the library: name -> genes."""
    table = read_csv(MARKERS)
    return {f"markers_{name}": list(part["gene"])
            for name, part in table.groupby("list", sort=False)}


def normalize(counts, how: str = "log1p_cp10k", library: np.ndarray | None = None):
    """Turn raw counts into prediction targets.

    Parameters
    ----------
    counts
        Raw counts `(T, G)`, dense or sparse, of the genes to normalise.
    how
        ``log1p_cp10k``: counts per 10,000 of the spot's library, then ln(1 + x).
        ``log1p``: ln(1 + counts), without library size, as HEST-Benchmark does.
        ``mmap``: counts per 10,000 of these genes alone, then log10(1 + x), as MMAP does with its
        panel.
    library
        Counts of each spot over all genes `(T,)`, for ``log1p_cp10k`` of a panel; None sums
        `counts`.

    Returns
    -------
    array or csr_matrix
        float32 `(T, G)`, sparse where `counts` is. Spots without counts become zeros.

    Raises
    ------
    InputError
        If `how` is not known, or `library` does not fit.
    """
    from scipy import sparse

    if how not in NORMALIZATIONS:
        raise InputError("normalize", "how", f"{how!r} is not among {list(NORMALIZATIONS)}",
                         "use one of these")
    is_sparse = sparse.issparse(counts)
    values = (sparse.csr_matrix(counts, dtype=np.float64) if is_sparse
              else np.asarray(counts, dtype=np.float64))
    if how != "log1p":
        if library is None or how == "mmap":
            library = np.asarray(values.sum(axis=1)).ravel()
        library = np.asarray(library, dtype=np.float64).ravel()
        if len(library) != values.shape[0]:
            raise InputError("normalize", "library", f"has {len(library)} entries for "
                             f"{values.shape[0]} spots", "give one total per spot")
        factor = np.divide(1e4, library, out=np.zeros_like(library), where=library > 0)
        values = sparse.diags(factor) @ values if is_sparse else values * factor[:, None]
    if is_sparse:
        values = sparse.csr_matrix(values)
        values.data = np.log1p(values.data)
    else:
        values = np.log1p(values)
    if how == "mmap":
        values = values / np.log(10.0)
    return values.astype(np.float32)


def names(table: pd.DataFrame, column: str, path: str | os.PathLike, *, unique: bool = False
          ) -> pd.Series:
    """Return the genes of a user's table, from `mvhlib.tables.read_table`; refuse dates.

    Raises
    ------
    InputError
        As `mvhlib.tables.names` does, and on a date; ``NA`` is a gene.
    """
    found = tables.names(table, column, path, unique=unique, none=("",))
    dates = found.map(dated_genes.is_date).astype(bool)
    if dates.any():
        tables.refuse(path, found, dates, "a date, into which a spreadsheet has turned a gene such "
                      "as SEPTIN2 or MARCHF1", "write the gene's symbol, in a column that is "
                      "formatted as text")
    return found


def targets(adata: "AnnData", genes: Sequence[str], how: str = "log1p_cp10k") -> np.ndarray:
    """Targets `(T, G)` float32 of `genes`; the library is that of all genes of the section.

    Raises
    ------
    InputError
        If the section lacks a gene.
    """
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing:
        raise InputError("section", "genes", f"lacks {missing[:5]}", "choose the panel with "
                         "available= set to the genes that all sections share")
    counts = adata.layers["counts"]
    library = np.asarray(counts.sum(axis=1)).ravel()
    chosen = counts[:, adata.var_names.get_indexer(list(genes))]
    chosen = chosen.toarray() if hasattr(chosen, "toarray") else np.asarray(chosen)
    return normalize(chosen, how, library=library if how == "log1p_cp10k" else None)


def _remembered(adata: "AnnData", genes: pd.Index, memory: dict[Any, Any]) -> pd.DataFrame:
    key = (id(adata), tuple(genes))
    if key not in memory:
        memory[key] = (adata, _statistics(adata, genes))  # adata lives on: its id stays its own
    return memory[key][1]


def _statistics(adata: "AnnData", genes: pd.Index) -> pd.DataFrame:
    """Per gene of one section: share of spots, moments, scanpy's normalised dispersion."""
    import anndata
    import scanpy as sc
    from scipy import sparse

    counts = adata.layers["counts"]
    library = np.asarray(counts.sum(axis=1)).ravel()
    counts = sparse.csr_matrix(counts)[:, adata.var_names.get_indexer(genes)]
    values = normalize(counts, library=library)
    found = np.asarray((counts > 0).mean(axis=0)).ravel()
    work = anndata.AnnData(values, var=pd.DataFrame(index=genes))
    with warnings.catch_warnings():  # it warns of bins of one gene and of genes without a count
        warnings.simplefilter("ignore")
        table = sc.pp.highly_variable_genes(work, flavor="seurat", inplace=False)
    dispersion = np.nan_to_num(table["dispersions_norm"].to_numpy(float), nan=-np.inf)
    dispersion[found == 0] = -np.inf
    exact = values.astype(np.float64)
    total = np.asarray(exact.sum(axis=0)).ravel()
    squares = np.asarray(exact.multiply(exact).sum(axis=0)).ravel()
    return pd.DataFrame({"found": found, "dispersion": dispersion, "sum": total,
                         "squares": squares, "n_spots": float(adata.n_obs)}, index=genes)


def _rank(score: np.ndarray) -> np.ndarray:
    """Rank from 0 for the highest; equal scores share their mean rank."""
    return pd.Series(-score).rank(method="average").to_numpy() - 1


def _order(genes: pd.Index, *keys: np.ndarray) -> list[str]:
    """Genes by ascending keys, the first one foremost; ties go by name."""
    return list(genes[np.lexsort((genes.to_numpy(str), *reversed(keys)))])


def _hvg(statistics: list[pd.DataFrame], qualified: np.ndarray) -> list[str]:
    ranks = np.mean([_rank(table["dispersion"].to_numpy()[qualified]) for table in statistics],
                    axis=0)
    return _order(statistics[0].index[qualified], ranks)


def _hmhvg(statistics: list[pd.DataFrame], qualified: np.ndarray, per_section: int = 2000
           ) -> list[str]:
    genes = statistics[0].index
    union = np.zeros(len(genes), bool)
    for table in statistics:
        dispersion = table["dispersion"].to_numpy()
        union |= (_rank(dispersion) < per_section) & np.isfinite(dispersion)
    housekeeping = genes.to_series().str.match(HOUSEKEEPING).to_numpy()
    chosen = union & qualified & ~housekeeping
    n = sum(table["n_spots"].iloc[0] for table in statistics)
    mean = sum(table["sum"] for table in statistics).to_numpy()[chosen] / n
    square = sum(table["squares"] for table in statistics).to_numpy()[chosen] / n
    by_mean, by_std = _rank(mean), _rank(square - mean**2)
    # A gene enters the intersection of both top m at m = the worse of its two ranks, so ordering
    # by that equals raising m until enough genes are left.
    return _order(genes[chosen], np.maximum(by_mean, by_std), by_mean + by_std)


def _heg(statistics: list[pd.DataFrame], qualified: np.ndarray) -> list[str]:
    mean = np.mean([(table["sum"] / table["n_spots"]).to_numpy()[qualified]
                    for table in statistics], axis=0)
    return _order(statistics[0].index[qualified], -mean)


def _marker_panel(name: str, shared: pd.Index) -> Panel:
    """A named list or a csv of the user's, cut to the genes that the sections have."""
    if str(name).endswith(".csv"):
        where = resolve(str(name))
        wanted = list(dict.fromkeys(names(tables.read_table(where, ("gene",)), "gene", where)))
    else:
        where, table = MARKERS, read_csv(MARKERS, ("list", "gene", "source"))
        key = re.sub(r"^markers_", "", str(name))
        if f"markers_{key}" != name or key not in set(table["list"]):
            raise InputError("panel", "name", f"{name!r} is not known; there are "
                             f"{[*COMPUTED, 'all', *marker_lists()]}",
                             "use one of these or the path of a csv with a column gene")
        wanted = list(dict.fromkeys(table.loc[table["list"] == key, "gene"]))
    present = [gene for gene in wanted if gene in shared]
    absent = [gene for gene in wanted if gene not in shared]
    if not present:
        raise InputError(where, "gene", f"none of its {len(wanted)} genes is in all sections "
                         f"(which name genes like {list(shared[:3])})",
                         "use the sections' naming scheme")
    if absent:
        log.warning("panel %s: these genes are absent from at least one section and are left out: "
                    "%s", name, ", ".join(absent))
    return Panel(present, str(name), absent)
