"""Cells of Xenium where its transcripts are not at hand: summed to pseudo-spots.

==================  ================================================================================
what                how it is read
==================  ================================================================================
folder              ``cell_feature_matrix.h5`` (or a folder of that name) beside ``cells.csv.gz``,
                    ``cells.csv`` or ``cells.parquet``
cells               ``cell_id`` is the matrix's barcode; ``x_centroid``, ``y_centroid`` [µm]
image               column ``image`` of the samples table, with ``alignment`` as for the source
                    ``xenium``; without an alignment the section is expression-only
==================  ================================================================================

A cell lies in the square that holds its centroid, so that what of it reaches beyond counts there
too: transcripts, where they are at hand, are read by the source ``xenium``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort import pseudospots, visium
from mvhlib.cohort.base import Cohort, Section
from mvhlib.cohort.feature_matrix import GeneNames, open_packed

if TYPE_CHECKING:
    from anndata import AnnData


def read(path: str | Path, *, spot_um: float = 100.0, min_counts: int = 10,
         samples: str | Path | pd.DataFrame | None = None, study: str | None = None,
         patient: str | None = None, image: str | Path | None = None,
         mpp: float | None = None) -> Cohort:
    """Read cells of Xenium.

    Parameters
    ----------
    path
        Folder with the matrix and the table of cells, or a folder of several.
    spot_um
        Side of a pseudo-spot [µm].
    min_counts
        Pseudo-spots with fewer counts are left out.
    samples, study, patient, image, mpp
        As in `mvhlib.cohort.visium.read_xenium`.

    Raises
    ------
    InputError
        If a file is missing or broken, or a cell of the matrix has no place.
    """
    spot_um = visium.number_option("spot_um", spot_um, above=0.0)
    min_counts = visium.number_option("min_counts", min_counts, low=0.0)
    outputs = visium.outputs(path, "xenium_cells")
    names = GeneNames(visium.first_of(folder, visium.CELL_MATRICES) for folder in outputs.values())

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _section(name, folder, root, row, names, spot_um, min_counts)

    return visium.make_cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


def _section(name: str, folder: Path, root: Path, row: dict[str, Any], names: GeneNames,
             spot_um: float, min_counts: float) -> Section:
    matrix = visium.first_of(folder, visium.CELL_MATRICES)
    listed = visium.first_of(folder, visium.CELL_TABLES)
    image, mpp, to_pixels = visium.xenium_image(name, folder, root, row)

    def load() -> "AnnData":
        cells = visium.genes_of(matrix, names)
        places = centroids(listed)
        known = cells.obs_names.isin(places.index)
        if not known.all():
            raise InputError(listed, "cell_id", f"lacks {int((~known).sum())} of {cells.n_obs} "
                             f"cells, the first is {cells.obs_names[~known][0]!r}",
                             "give the matrix and the cells of one output")
        adata = pseudospots.of_cells(cells, places.loc[cells.obs_names].to_numpy(float), spot_um,
                                     min_counts, to_pixels, where=matrix)
        if "alignment" not in row:
            adata.uns["lattice"]["coordinates"] = "um"
        return adata

    return visium.assemble(name, row, root, "xenium_cells", load, image, mpp)


def centroids(path: Path) -> pd.DataFrame:
    """Centroid (x, y) [µm] of every cell, by its id.

    Raises
    ------
    InputError
        If a column is missing, a cell occurs twice, or a place is no finite number.
    """
    check_file(path)
    with reading(path, fix="it is probably truncated: copy it again from its source"):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with open_packed(path) as stream:
                table = pd.read_csv(stream, dtype={"cell_id": str}, keep_default_na=False)
    wanted = ["cell_id", "x_centroid", "y_centroid"]
    missing = [column for column in wanted if column not in table]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)[:8]}",
                         "give the table of cells of a Xenium output")
    names = table["cell_id"].map(lambda value: value.decode() if isinstance(value, bytes)
                                 else str(value).strip())
    places = table[wanted[1:]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    wrong = ~(np.abs(places) < 1e6).all(axis=1)
    if wrong.any():
        raise InputError(path, "x_centroid, y_centroid", f"of cell {names[wrong].iloc[0]!r} are "
                         "not numbers below 1e6", "copy it again from its source")
    if names.duplicated().any():
        raise InputError(path, "cell_id", f"{names[names.duplicated()].iloc[0]!r} occurs twice",
                         "keep one row for each cell")
    return pd.DataFrame(places, index=pd.Index(names), columns=["x", "y"])
