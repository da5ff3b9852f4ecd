"""Spatial structure of measured and predicted expression, on one graph per section.

Moran's I says how much neighbouring spots resemble each other. A prediction made from overlapping
or similar tiles is smoother than the truth; the excess of its I over that of the measurement is
named over-smoothing. Part of that excess is right: the measurement holds counting noise, which
has no spatial structure and lowers its I.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats
from scipy.spatial import cKDTree

from mvhlib.artifacts import InputError
from mvhlib.expression.scores import is_constant

#: Neighbours of a spot on the two kinds of array.
SQUARE, HEXAGONAL = 4, 6


def lattice(coords: np.ndarray) -> int:
    """Neighbours per spot of the array: 4 (legacy ST, binned HD) or 6 (Visium), from coordinates.

    The directions to the nearest spots repeat every 90 or every 60 degrees, whatever the rotation
    of the image: the larger of the two bond-orientation averages decides (Halperin and Nelson
    1978). Holes, edges and a tenth of a pitch of jitter do not matter.

    Parameters
    ----------
    coords
        Spot centres `(T, 2)`, any unit, equal scale on both axes.

    Raises
    ------
    InputError
        With fewer than four spots, or spots that share a point.
    """
    coords = np.asarray(coords, dtype=np.float64)
    if len(coords) < 4:
        raise InputError("spatial", "spots", f"are {len(coords)}", "use a section with more spots")
    tree = cKDTree(coords)
    distance, index = tree.query(coords, k=min(7, len(coords)))
    distance, index = distance[:, 1:], index[:, 1:]
    pitch = np.median(distance[:, 0])
    if distance[:, 0].min() <= 1e-9 * max(pitch, 1e-300):
        raise InputError("spatial", "coordinates", "several spots lie on one point",
                         "give one place per spot")
    step = coords[index] - coords[:, None]
    angle = np.arctan2(step[..., 1], step[..., 0])
    near = distance <= 1.25 * pitch
    order = {fold: np.abs((np.exp(1j * fold * angle) * near).sum(axis=1)).sum() / near.sum()
             for fold in (SQUARE, HEXAGONAL)}
    return SQUARE if order[SQUARE] >= order[HEXAGONAL] else HEXAGONAL


def graph(coords: np.ndarray, n_neighbors: int | None = None) -> sparse.csr_matrix:
    """Neighbours on the array, rows scaled to sum 1, by `squidpy.gr.spatial_neighbors`.

    Parameters
    ----------
    coords
        Spot centres `(T, 2)`.
    n_neighbors
        4 or 6; None to detect it by `lattice`.

    Returns
    -------
    sparse.csr_matrix
        `(T, T)`; a spot without neighbours has an empty row.
    """
    import anndata
    import squidpy

    coords = np.asarray(coords, dtype=np.float64)
    kind = lattice(coords) if n_neighbors is None else n_neighbors
    adata = anndata.AnnData(sparse.csr_matrix((len(coords), 1), dtype=np.float32))
    adata.obsm["spatial"] = coords
    # squidpy announces every graph; one line per section and encoder drowns a notebook.
    announcer = logging.getLogger("spatialdata._logging")
    level = announcer.level
    announcer.setLevel(logging.WARNING)
    try:
        if hasattr(squidpy.gr, "spatial_neighbors_grid"):  # since squidpy 1.8
            squidpy.gr.spatial_neighbors_grid(adata, n_neighs=kind, n_rings=1)
        else:
            squidpy.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=kind, n_rings=1)
    finally:
        announcer.setLevel(level)
    links = sparse.csr_matrix(adata.obsp["spatial_connectivities"], dtype=np.float64)
    degree = np.asarray(links.sum(axis=1)).ravel()
    scale = np.divide(1.0, degree, out=np.zeros_like(degree), where=degree > 0)
    return sparse.csr_matrix(sparse.diags(scale) @ links)


def morans_i(values: np.ndarray, weights: sparse.spmatrix) -> np.ndarray:
    """Moran's I of every column.

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
    centred = values - values.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = (len(values) / weights.sum() * (centred * (weights @ centred)).sum(axis=0)
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
    """False-discovery rates; NaN stays NaN and does not count."""
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
    kind = lattice(coords[common]) if n_neighbors is None else n_neighbors
    weights = graph(coords[common], kind)
    truth, prediction = (
        moran_test(values[common], weights, n_permutations=n_permutations,
                   rng=np.random.default_rng(seed)) for values in (measured, predicted))
    return pd.DataFrame({
        "gene": list(genes), "n_spots": int(common.sum()), "n_neighbors": kind,
        "i_true": truth["i"], "p_true": truth["p"], "fdr_true": truth["fdr"],
        "i_pred": prediction["i"], "p_pred": prediction["p"], "fdr_pred": prediction["fdr"],
        "oversmoothing": prediction["i"] - truth["i"]})


def residual(measured: np.ndarray, predicted: np.ndarray, *,
             standardised: bool = False) -> np.ndarray:
    """Measured less predicted, positive where the tissue expresses more than its image suggests.

    Parameters
    ----------
    measured, predicted
        `(T, G)`.
    standardised
        Bring both to mean 0 and standard deviation 1 per gene first. An offset between studies
        then does not colour the whole map; constant genes become 0.
    """
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    if measured.shape != predicted.shape:
        raise InputError("spatial", "shape", f"measured {measured.shape}, predicted "
                         f"{predicted.shape}", "give the same spots and genes in one order")
    if standardised:
        measured, predicted = _standardise(measured), _standardise(predicted)
    return measured - predicted


def _standardise(values: np.ndarray) -> np.ndarray:
    spread = np.nanstd(values, axis=0)
    varies = spread > 1e-12 * np.nanmax(np.abs(values), axis=0, initial=1e-300)
    scale = np.where(varies, spread, 1.0)
    return np.where(varies, (values - np.nanmean(values, axis=0)) / scale, 0.0)
