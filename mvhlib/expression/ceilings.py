"""Ceilings of the correlation that a perfect predictor could reach: three estimates of them.

The ceiling of `mvhlib.expression.scores.ceiling` treats counts as Poisson and all variance beyond
that as signal. It is an upper bound, and a loose one where counts vary more than Poisson counts
from spot to spot. The lowest estimate treats as noise whatever a spot does not share with its
neighbours: counts are negative binomial around a mean that neighbours share, and the dispersion is
estimated from differences between neighbours, like the nugget of a variogram. It counts as noise
any tissue that truly changes from one spot to the next, so it is too low. The third estimate lies
between the two and assumes one dispersion for all genes. Such a dispersion cannot exceed that of
the least variable genes, so the tenth percentile over genes is used.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, lattice, phrases
from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import normalize
from mvhlib.expression import scores
from mvhlib.expression.protocols import stream

#: Columns of `table` and what they are called.
NAMES = {"ceiling_counting": "noise of counting alone",
         "ceiling_common": "and noise common to all genes",
         "ceiling_neighbours": "and all that neighbours do not share",
         "ceiling_true": "true rates known"}
#: Quantile of the genes' dispersions that is taken as common to all.
COMMON = 0.1


def dispersion(counts, library: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Estimate each gene's dispersion around the mean that neighbouring spots share.

    With counts `x` over relative library sizes, `e`, of two neighbours `i` and `j` whose rates are
    alike, ``E[(e_i - e_j)**2] / 2`` is the mean of what counting adds, ``e / size``, and
    ``dispersion * mean**2``, and ``E[e_i * e_j]`` is ``mean**2``: the estimate is the ratio of the
    sums over all pairs, by the method of moments.

    Parameters
    ----------
    counts
        Raw counts `(T, G)`.
    library
        Total counts per spot over all genes `(T,)`; spots without any are nobody's neighbours.
    coords
        Spot centres `(T, 2)`, any unit.

    Returns
    -------
    np.ndarray
        `(G,)`, at least 0; NaN where a gene is never found in two neighbours.

    Raises
    ------
    InputError
        If no spot has counts, or spots share a point.
    """
    counts = scores.dense(counts).astype(np.float64)
    size = np.asarray(library, dtype=np.float64).ravel()
    filled = size > 0
    if not filled.any():
        raise InputError("dispersion", "library", "is 0 for every spot", "give raw counts")
    i, j = (lattice.graph(coords) > 0).nonzero()
    both = filled[i] & filled[j]  # a spot without any count has no known rate
    i, j = i[both], j[both]
    size = np.where(filled, size / size[filled].mean(), 1.0)[:, None]
    relative, noise = counts / size, counts / size**2
    apart = ((relative[i] - relative[j]) ** 2 - noise[i] - noise[j]).sum(axis=0) / 2
    together = (relative[i] * relative[j]).sum(axis=0)
    return np.divide(np.maximum(apart, 0.0), together, out=np.full(len(together), np.nan),
                     where=together > 0)


def table(sections: Iterable[Any], genes: Sequence[str], how: str = "log1p_cp10k", *,
          truth: Path | None = None, n_splits: int = 4, seed: int = 0) -> pd.DataFrame:
    """Compute every ceiling of each gene, averaged over sections, and the true one if it is known.

    Parameters
    ----------
    sections
        Sections with raw counts and spot centres.
    genes
        Genes wanted.
    how
        Units of the target; see `mvhlib.cohort.genes.normalize`.
    truth
        Folder of ``<section>.h5ad`` with the layer ``rate`` (log of the rate per count of library),
        as the synthetic cohort has it; None, or a folder that is not there, on real tissue.
    n_splits
        Splits to average over.
    seed
        Of the splits; each section draws from a stream of its own.

    Returns
    -------
    DataFrame
        One row per gene: gene, program, dispersion, ceiling_counting, ceiling_common,
        ceiling_neighbours and, where the rates are known, ceiling_true (correlation of the measured
        with the true expression; 0 for a gene whose rate is the same everywhere).
    """
    found = []
    for section in sections:
        adata = section.adata[:, list(genes)]
        library = np.asarray(section.adata.layers["counts"].sum(axis=1)).ravel()
        over = dispersion(adata.layers["counts"], library, adata.obsm["spatial"])
        rows = pd.DataFrame({"gene": list(genes), "dispersion": over})
        rows["program"] = adata.var["program"].astype(str).to_numpy() if "program" in adata.var \
            else ""
        noise = {"counting": None, "common": np.nanquantile(over, COMMON) if len(over) else 0.0,
                 "neighbours": np.nan_to_num(over)}
        for name, value in noise.items():
            rows[f"ceiling_{name}"] = scores.ceiling(
                adata.layers["counts"], library, how, n_splits=n_splits, dispersion=value,
                rng=stream(seed, "ceiling", section.name))
        if truth is not None and (path := truth / f"{section.name}.h5ad").exists():
            rows["ceiling_true"] = _reached(path, adata, library, how)
        found.append(rows)
    return pd.concat(found).groupby(["gene", "program"], as_index=False, sort=False).mean()


def _reached(path: Path, adata: Any, library: np.ndarray, how: str) -> np.ndarray:
    """Correlate measured with true expression (expected counts, normalised like the target)."""
    import anndata

    with artifacts.reading(artifacts.check_h5(path), "truth",
                           "is not an AnnData with the layer rate", "run 01_cohort again"):
        known = anndata.read_h5ad(path)[adata.obs_names]
    rate = np.exp(known.layers["rate"].astype(np.float64))
    rate *= library[:, None] / rate.sum(axis=1, keepdims=True)
    columns = known.var_names.get_indexer(adata.var_names)
    r = scores.pearson(normalize(scores.dense(adata.layers["counts"]), how, library),
                       normalize(rate[:, columns], how, library))
    return np.nan_to_num(r)


def said(table: pd.DataFrame) -> str:
    """Summarise `table` in one sentence."""
    means = table[[name for name in NAMES if name in table]].mean()
    return "Ceiling of the mean gene: " + "; ".join(
        f"{NAMES[name]} {phrases.number(value)}" for name, value in means.items()) + "."
