"""Pseudo-spots: fine measurements summed into squares of stated size.

Visium HD bins and Xenium transcripts resolve far below what a tile predicts. Summed over squares of
`spot_um` they become spots like any other.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

#: Features that are no genes: negative probes, unused codewords, blanks.
CONTROL = (r"^(BLANK|Blank|NegControl|NegPrb|Negative|negative_control|Unassigned|Deprecated|"
           r"DEPRECATED_|Intergenic|antisense_|SystemControl|FalseCode|GenomicControl|Control)")


def is_control(features: pd.Index) -> np.ndarray:
    """True `(G,)` for features that are controls of the platform, judged by their names."""
    return pd.Series(features.astype(str)).str.match(CONTROL).to_numpy()


def squares(um: np.ndarray, spot_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Assign points to squares of a raster whose corner is the origin.

    Parameters
    ----------
    um
        Positions `(n, 2)` [µm].
    spot_um
        Side of a square [µm].

    Returns
    -------
    index, cells
        Square of each point `(n,)`, and the squares' positions in the raster `(T, 2)` (x, y),
        sorted by row and column.

    Raises
    ------
    InputError
        If `spot_um` is no length, or a point is nowhere (NaN, infinite) or further away than a
        raster can count.
    """
    if not (np.isfinite(spot_um) and spot_um > 0):
        raise InputError("pseudo-spots", "spot_um", f"is {spot_um}", "give micrometres above 0")
    raster = np.floor(um / spot_um)
    lost = ~(np.abs(raster) < 2**31).all(axis=1)  # NaN compares as false
    if lost.any():
        at = int(lost.argmax())
        raise InputError("pseudo-spots", "position", f"of point {at + 1} is {um[at].tolist()} um",
                         "give finite positions in micrometres")
    raster = raster.astype(np.int64)
    cells, index = np.unique(raster[:, ::-1], axis=0, return_inverse=True)
    return index.ravel(), cells[:, ::-1]


def aggregate_bins(counts: "csr_matrix", um: np.ndarray, spot_um: float, bin_um: float,
                   min_fill: float) -> tuple["csr_matrix", np.ndarray]:
    """Sum bins into squares.

    Parameters
    ----------
    counts
        `(n, G)` per bin.
    um
        Bin centres `(n, 2)` [µm].
    bin_um
        Side of a bin [µm]; a square holds ``(spot_um / bin_um) ** 2`` of them.
    min_fill
        Squares with a smaller share of their bins present are left out.

    Returns
    -------
    counts, cells
        `(T, G)` and raster positions `(T, 2)`.
    """
    from scipy import sparse

    index, cells = squares(um, spot_um)
    filled = np.bincount(index, minlength=len(cells)) * (bin_um / spot_um) ** 2
    summing = sparse.csr_matrix((np.ones(len(index), counts.dtype),
                                 (index, np.arange(len(index)))), shape=(len(cells), len(index)))
    keep = filled >= min_fill
    return (summing @ counts).tocsr()[keep], cells[keep]


def aggregate_cells(counts: "csr_matrix", um: np.ndarray, spot_um: float, min_counts: float
                    ) -> tuple["csr_matrix", np.ndarray]:
    """Sum cells into the squares that hold their centres.

    Parameters
    ----------
    counts
        `(n, G)` per cell.
    um
        Centres `(n, 2)` [µm].
    min_counts
        Squares with fewer counts are left out.

    Returns
    -------
    counts, cells
        `(T, G)` and raster positions `(T, 2)`.
    """
    from scipy import sparse

    index, cells = squares(um, spot_um)
    summing = sparse.csr_matrix((np.ones(len(index), counts.dtype),
                                 (index, np.arange(len(index)))), shape=(len(cells), len(index)))
    summed = (summing @ counts).tocsr()
    keep = np.asarray(summed.sum(axis=1)).ravel() >= min_counts
    return summed[keep], cells[keep]


def aggregate_points(feature: np.ndarray, um: np.ndarray, n_features: int, spot_um: float,
                     min_counts: int) -> tuple["csr_matrix", np.ndarray]:
    """Count transcripts per square.

    Parameters
    ----------
    feature
        Index of each transcript's gene `(n,)`.
    um
        Positions `(n, 2)` [µm].
    min_counts
        Squares with fewer transcripts are left out.

    Returns
    -------
    counts, cells
        int32 `(T, G)` and raster positions `(T, 2)`.
    """
    from scipy import sparse

    index, cells = squares(um, spot_um)
    counts = sparse.coo_matrix((np.ones(len(index), np.int32), (index, feature)),
                               shape=(len(cells), n_features)).tocsr()
    keep = np.asarray(counts.sum(axis=1)).ravel() >= min_counts
    return counts[keep], cells[keep]


def to_adata(counts: "csr_matrix", cells: np.ndarray, var: pd.DataFrame,
             spot_um: float) -> "AnnData":
    """Make spots of squares; barcodes ``<column>x<row>``, positions in the raster in obs."""
    from anndata import AnnData

    names = pd.Index([f"{x}x{y}" for x, y in cells])
    adata = AnnData(obs=pd.DataFrame({"array_x": cells[:, 0], "array_y": cells[:, 1]},
                                     index=names), var=var)
    adata.layers["counts"] = counts.astype(np.int32)
    adata.X = adata.layers["counts"].copy()
    adata.uns["lattice"] = {"kind": "square", "n_neighs": 4, "spot_um": float(spot_um),
                            "pitch_um": float(spot_um), "coordinates": "pixel"}
    return adata


def of_cells(cells: "AnnData", um: np.ndarray, spot_um: float, min_counts: float,
             to_pixels: Callable[[np.ndarray], np.ndarray], *,
             where: str | os.PathLike) -> "AnnData":
    """Spots of segmented cells, each in the square that holds its centre.

    Parameters
    ----------
    cells
        Layer ``counts``, one row per cell.
    um
        Centres `(n, 2)` [µm].
    min_counts
        Squares with fewer counts are left out.
    to_pixels
        From places [µm] to those of ``obsm["spatial"]``.
    where
        The matrix, for errors.

    Raises
    ------
    InputError
        If no square has so many counts.
    """
    counts, places = aggregate_cells(cells.layers["counts"], um, spot_um, min_counts)
    if len(places) == 0:
        raise InputError(where, "min_counts", "no pseudo-spot has so many counts",
                         "lower min_counts")
    adata = to_adata(counts, places, cells.var, spot_um)
    adata.obsm["spatial"] = to_pixels((places + 0.5) * spot_um)
    adata.uns["join"] = {"n_cells": cells.n_obs, "n_pseudospots": len(places)}
    return adata
