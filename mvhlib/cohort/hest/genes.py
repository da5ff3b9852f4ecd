"""Controls among HEST's genes, and the genes that HEST-Benchmark selects."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort import pseudospots

if TYPE_CHECKING:
    from anndata import AnnData


def is_control(genes: pd.Index) -> np.ndarray:
    """Controls of the platform; HEST's own test is a substring, which catches a few more."""
    named = pd.Series(genes.astype(str)).str.contains("BLANK|Control", regex=True).to_numpy()
    return pseudospots.is_control(genes) | named


def k_genes(adatas: Sequence["AnnData"], k: int = 50, criterion: str = "var", *,
            min_spots: float = 0.1, available: Iterable[str] | None = None) -> list[str]:
    """Genes as HEST-Benchmark selects them, the most variable first.

    Genes found in a tenth of the spots of every sample, without controls; raw counts of all samples
    are stacked, ln(1 + x) is taken, and scanpy's most variable genes (``"var"``), or those of the
    highest mean count (``"mean"``), are chosen. HEST does so on all samples of a task, test samples
    among them; give training sections to avoid that.

    Parameters
    ----------
    adatas
        Sections with raw counts in ``layers["counts"]``.
    k
        Genes wanted; all that qualify where there are fewer.
    criterion
        ``"var"`` or ``"mean"``.
    min_spots
        Least share of the spots of every section that a gene is found in [0-1].
    available
        Names to choose among; None: no restriction.

    Raises
    ------
    InputError
        If the criterion is not known or no gene qualifies.
    """
    import anndata
    import scanpy as sc
    from scipy import sparse

    if criterion not in ("var", "mean"):
        raise InputError("k_genes", "criterion", f"is {criterion!r}", "use var or mean")
    adatas = list(adatas)
    if not adatas:
        raise InputError("k_genes", "sections", "none was given", "pass sections with counts")
    common = None if available is None else set(available)
    for adata in adatas:
        counts = sparse.csr_matrix(adata.layers["counts"])
        found = np.asarray((counts > 0).sum(axis=0)).ravel() >= np.ceil(min_spots * adata.n_obs)
        here = set(adata.var_names[found & ~is_control(adata.var_names)])
        common = here if common is None else common & here
    genes = sorted(common)
    if not genes:
        raise InputError("k_genes", "genes", f"none is found in {min_spots:.0%} of the spots of "
                         f"every one of {len(adatas)} sections", "lower min_spots")
    stacked = sparse.vstack([sparse.csr_matrix(adata.layers["counts"])
                             [:, adata.var_names.get_indexer(genes)] for adata in adatas],
                            format="csr").astype(np.float32)
    if criterion == "mean":
        score = np.asarray(stacked.astype(np.float64).mean(axis=0)).ravel()
    else:
        stacked.data = np.log1p(stacked.data)
        table = sc.pp.highly_variable_genes(
            anndata.AnnData(stacked, var=pd.DataFrame(index=genes)), n_top_genes=k, inplace=False)
        score = np.nan_to_num(table["dispersions_norm"].to_numpy(float), nan=-np.inf)
    order = np.lexsort((np.array(genes), -score))
    return [genes[index] for index in order[:k]]
