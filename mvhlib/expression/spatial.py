"""Spatial structure of measured and predicted expression, on one graph per section.

Moran's I says how much neighbouring spots resemble each other. A prediction made from overlapping
or similar tiles is smoother than the truth; the excess of its I over that of the measurement is
named over-smoothing. Part of that excess is right: the measurement holds counting noise, which
has no spatial structure and lowers its I.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats

from mvhlib.artifacts import InputError
from mvhlib.expression.scores import is_constant
from mvhlib.lattice import graph, neighbours_on

#: Values of a block of genes that Moran's I is taken of at a time, in a large section (32 MB).
BLOCK = 2**22


def morans_i(values: np.ndarray, weights: sparse.spmatrix) -> np.ndarray:
    """Moran's I of every column; large sections are worked through a few genes at a time.

    .. math:: I = \\frac{T}{\\sum_{ij} w_{ij}}
                  \\frac{\\sum_{ij} w_{ij} z_i z_j}{\\sum_i z_i^2}, \\quad z = x - \\bar x

    Parameters
    ----------
    values
        `(T, G)`.
    weights
        `(T, T)`, from `graph`.

    Returns
    -------
    np.ndarray
        `(G,)`, NaN for constant columns (Moran 1950).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != weights.shape[0]:
        raise InputError("spatial", "values", f"shape {values.shape} on a graph of "
                         f"{weights.shape[0]} spots", "give one row per spot of the graph")
    n_spots, n_genes = values.shape
    mean, result = values.mean(axis=0), np.empty(n_genes)
    step = max(2, BLOCK // max(n_spots, 1))
    # The last block takes a gene left over: numpy would add up a single column in another order.
    starts = range(0, max(n_genes - 1, 1), step)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = n_spots / weights.sum()
        for start, end in zip(starts, [*starts[1:], n_genes], strict=True):
            centred = values[:, start:end] - mean[start:end]
            result[start:end] = (scale * (centred * (weights @ centred)).sum(axis=0)
                                 / (centred**2).sum(axis=0))
    result[is_constant(values)] = np.nan
    return result


def moran_test(values: np.ndarray, weights: sparse.spmatrix, *, n_permutations: int = 199,
               rng: np.random.Generator) -> pd.DataFrame:
    """Moran's I with a one-sided p from permutations of the spots, and its FDR over genes.

    All genes are permuted together, so one permuted graph serves them all. The observed order
    counts as one of the permutations. False-discovery rate by Benjamini and Hochberg (1995).

    Parameters
    ----------
    values
        `(T, G)`.
    weights
        From `graph`.
    n_permutations
        Permutations; the smallest p is `1 / (n_permutations + 1)`.
    rng
        Source of randomness.

    Returns
    -------
    pd.DataFrame
        ``i, p, fdr`` per gene; NaN for constant genes, which do not count in the FDR.
    """
    values = np.asarray(values, dtype=np.float64)
    observed = morans_i(values, weights)
    centred = values - values.mean(axis=0)
    constant = ~np.isfinite(observed)
    scale = (centred**2).sum(axis=0)
    scale[constant] = 1.0
    z = centred / np.sqrt(scale) * np.sqrt(len(values) / weights.sum())
    above = np.zeros(values.shape[1])
    weights = sparse.csr_matrix(weights)
    for _ in range(n_permutations):
        shuffled = z[rng.permutation(len(z))]
        above += (shuffled * (weights @ shuffled)).sum(axis=0) >= observed - 1e-12
    p = (1 + above) / (1 + n_permutations)
    p[constant] = np.nan
    return pd.DataFrame({"i": observed, "p": p, "fdr": benjamini_hochberg(p)})


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """Benjamini-Hochberg false-discovery rates; NaN stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    rates = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        rates[known] = stats.false_discovery_control(p[known], method="bh")
    return rates


def smoothing(measured: np.ndarray, predicted: np.ndarray, coords: np.ndarray,
              genes: Sequence[str], *, n_neighbors: int | None = None, n_permutations: int = 199,
              seed: int = 0) -> pd.DataFrame:
    """Moran's I of truth and prediction on one graph, and the excess of the prediction's.

    Parameters
    ----------
    measured, predicted
        `(T, G)` of one section. Spots with a missing value in either are left out of both, so
        that the graph is common.
    coords
        Spot centres `(T, 2)`.
    genes
        Names of the columns.
    n_neighbors
        4 or 6; None to detect it.
    n_permutations
        Of the null; see `moran_test`. Truth and prediction see the same permutations.
    seed
        Of the permutations.

    Returns
    -------
    pd.DataFrame
        ``gene, n_spots, n_neighbors, i_true, p_true, fdr_true, i_pred, p_pred, fdr_pred,
        oversmoothing``, the last `i_pred - i_true`.

    Raises
    ------
    InputError
        On shapes that differ, or fewer than four common spots.
    """
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    coords = np.asarray(coords, dtype=np.float64)
    if measured.shape != predicted.shape or len(coords) != len(measured):
        raise InputError("spatial", "shape", f"measured {measured.shape}, predicted "
                         f"{predicted.shape}, coordinates {coords.shape}",
                         "give the same spots and genes in one order")
    if len(genes) != measured.shape[1]:
        raise InputError("spatial", "genes", f"{len(genes)} names for {measured.shape[1]} columns",
                         "name every column")
    common = np.isfinite(measured).all(axis=1) & np.isfinite(predicted).all(axis=1)
    kind = neighbours_on(coords[common]) if n_neighbors is None else n_neighbors
    weights = graph(coords[common], kind)
    truth, prediction = (
        moran_test(values[common], weights, n_permutations=n_permutations,
                   rng=np.random.default_rng(seed)) for values in (measured, predicted))
    return pd.DataFrame({
        "gene": list(genes), "n_spots": int(common.sum()), "n_neighbors": kind,
        "i_true": truth["i"], "p_true": truth["p"], "fdr_true": truth["fdr"],
        "i_pred": prediction["i"], "p_pred": prediction["p"], "fdr_pred": prediction["fdr"],
        "oversmoothing": prediction["i"] - truth["i"]})
