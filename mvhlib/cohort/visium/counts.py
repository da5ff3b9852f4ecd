"""Counts of an output, joined with positions by barcode."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort import pseudospots
from mvhlib.cohort.feature_matrix import GeneNames, read_matrix
from mvhlib.cohort.visium.layouts import COPY_SPATIAL

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Share of a filtered matrix's spots off tissue, and of spots under tissue without counts, above
#: which the two files are of different sections: a choice of spots by hand changes one of them.
OTHER_SECTION = 0.05


def genes_of(matrix: Path, names: GeneNames) -> "AnnData":
    """Counts of the matrix without controls of the platform."""
    adata = read_matrix(matrix, names)
    return adata[:, ~pseudospots.is_control(adata.var_names)].copy()


def place_spots(adata: "AnnData", positions: pd.DataFrame, matrix: Path) -> "AnnData":
    """Keep barcodes that have a position and lie on tissue; count the others."""
    if adata.n_obs == 0:
        raise InputError(matrix, "barcode", "there is none: the matrix is empty",
                         "give the matrix of a section")
    positions = _join_names(adata.obs_names, positions)
    joined = adata.obs_names.isin(positions.index)
    if not joined.any():
        raise InputError(matrix, "barcode", f"none of {adata.n_obs} spots has a position "
                         f"({adata.obs_names[0]!r} against {positions.index[0]!r})",
                         "give the matrix and spatial/ of the same section")
    if not joined.all() and matrix.name.startswith("filtered"):
        raise InputError(
            matrix, "barcode", f"{int((~joined).sum())} of {adata.n_obs} spots have no position, "
            f"for example {adata.obs_names[~joined][0]!r}: the table of positions was cut, or is "
            "of another section", COPY_SPATIAL)
    on_tissue = positions["in_tissue"].reindex(adata.obs_names).fillna(0).to_numpy() != 0
    if not on_tissue.any():
        raise InputError(matrix, "in_tissue", "no spot lies on tissue",
                         "run Space Ranger's tissue detection again or correct in_tissue")
    record = {"n_counts": adata.n_obs, "n_spots": len(positions), "n_kept": int(on_tissue.sum()),
              "n_without_position": int((~joined).sum()),
              "n_off_tissue": int((joined & ~on_tissue).sum()),
              "n_without_counts": int((~positions.index[positions["in_tissue"] != 0].isin(
                  adata.obs_names)).sum())}
    n_under = record["n_kept"] + record["n_without_counts"]
    if matrix.name.startswith("filtered") and min(
            record["n_off_tissue"] / adata.n_obs,
            record["n_without_counts"] / n_under) > OTHER_SECTION:
        raise InputError(
            matrix, "barcode", f"{record['n_off_tissue']} of {adata.n_obs} spots with counts lie "
            f"off the tissue, and {record['n_without_counts']} of {n_under} spots under it have no "
            "counts: barcodes are the same on every slide, and these are of two sections",
            "give the matrix and spatial/ of the same section")
    if record["n_without_position"]:
        log.warning("%s: %d of %d spots have no position and are left out", matrix,
                    record["n_without_position"], adata.n_obs)
    adata = adata[on_tissue].copy()
    if adata.layers["counts"].sum() == 0:
        raise InputError(matrix, "counts", f"are 0 in all of {adata.n_obs} spots under tissue",
                         "give the counts of this section, or leave it out")
    place = positions.loc[adata.obs_names]
    adata.obs["array_row"] = place["array_row"].to_numpy()
    adata.obs["array_col"] = place["array_col"].to_numpy()
    adata.obsm["spatial"] = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    adata.uns["join"] = record
    return adata


def _join_names(barcodes: pd.Index, positions: pd.DataFrame) -> pd.DataFrame:
    """Positions under the matrix's barcodes: ``-1`` may stand in one of the two alone."""
    if barcodes.isin(positions.index).any():
        return positions
    bare, listed = barcodes.str.removesuffix("-1"), positions.index.str.removesuffix("-1")
    one_sided = (barcodes.str.endswith("-1").all() and not positions.index.str.contains("-").any()
                 ) or (positions.index.str.endswith("-1").all() and not
                       barcodes.str.contains("-").any())
    if not one_sided or not bare.isin(listed).any():
        return positions
    given = dict(zip(bare, barcodes, strict=True))
    return positions.set_axis([given.get(name, name) for name in listed])
