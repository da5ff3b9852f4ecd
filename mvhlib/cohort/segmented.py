"""Cells that Space Ranger 4 segmented on Visium HD, summed to pseudo-spots as bins are.

==================  ================================================================================
what                how it is read
==================  ================================================================================
folder              ``segmented_outputs`` of an output: ``filtered_feature_cell_matrix`` (h5 or a
                    folder), ``cell_segmentations.geojson``, ``spatial/``
cells               the centroid of each polygon's outline, in pixels of the full image; its
                    ``cell_id`` is the number in the barcode ``cellid_000000017-1``
scale               ``microns_per_pixel`` of the scale factors, or `mpp`
==================  ================================================================================

A cell lies in the square that holds its centroid; squares with fewer counts than `min_counts` are
left out. Source: Space Ranger documentation, "Segmented outputs".
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort import pseudospots, visium
from mvhlib.cohort.base import FARTHEST_PX, Cohort, Section
from mvhlib.cohort.feature_matrix import GeneNames

if TYPE_CHECKING:
    from anndata import AnnData

MATRICES = ("filtered_feature_cell_matrix.h5", "filtered_feature_cell_matrix")
OUTLINES = "cell_segmentations.geojson"


def read(path: str | Path, *, spot_um: float = 100.0, min_counts: int = 10,
         samples: str | Path | pd.DataFrame | None = None, study: str | None = None,
         patient: str | None = None, image: str | Path | None = None,
         mpp: float | None = None) -> Cohort:
    """Read segmented outputs.

    Parameters
    ----------
    path
        A Space Ranger ``outs`` folder with ``segmented_outputs``, or a folder of several.
    spot_um
        Side of a pseudo-spot [µm].
    min_counts
        Pseudo-spots with fewer counts are left out.
    samples, study, patient, image, mpp
        As in `mvhlib.cohort.visium.read_hd`.

    Raises
    ------
    InputError
        If a file is missing or broken, a cell has no outline, or the scale is not known.
    """
    spot_um = visium.number_option("spot_um", spot_um, above=0.0)
    min_counts = visium.number_option("min_counts", min_counts, low=0.0)
    outputs = visium.outputs(path, "segmented")
    names = GeneNames([])  # of the sections that are made

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _section(name, folder / "segmented_outputs", root, row, names, spot_um, min_counts)

    return visium.make_cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


def _matrix(folder: Path) -> Path:
    """The matrix of cells of an output."""
    place = folder / "segmented_outputs"
    found = visium.first_of(place, MATRICES)
    if found is None:
        raise InputError(place, "feature matrix", f"is not there: none of {list(MATRICES)}",
                         "copy segmented_outputs as a whole")
    return found


def _section(name: str, folder: Path, root: Path, row: dict[str, Any], names: GeneNames,
             spot_um: float, min_counts: float) -> Section:
    spatial = folder / "spatial"
    scalefactors = visium.read_scalefactors(spatial)
    where, stated = spatial / "scalefactors_json.json", scalefactors.get("microns_per_pixel")
    mpp = row.get("mpp") or stated
    if mpp is None:
        raise InputError(where, "microns_per_pixel", "is missing",
                         "copy spatial/ of segmented_outputs again, or pass mpp=")
    visium.agree(row.get("mpp"), stated, where, "mpp", "microns_per_pixel says", "leave mpp out")
    image, scale = visium.find_image(row, root, spatial, scalefactors)
    matrix = _matrix(folder.parent)
    names.paths.append(matrix)

    def load() -> "AnnData":
        cells = visium.genes_of(matrix, names)
        centres = centroids(folder / OUTLINES)
        number = cells.obs_names.to_series().map(_number)
        missing = ~number.isin(centres.index).to_numpy()
        if missing.any():
            raise InputError(folder / OUTLINES, "cell_id", f"lacks {int(missing.sum())} of "
                             f"{cells.n_obs} cells, the first is {cells.obs_names[missing][0]!r}",
                             "give outlines and counts of the same output")
        pixel = centres.loc[number].to_numpy(float)
        return pseudospots.of_cells(cells, pixel * mpp, spot_um, min_counts,
                                    lambda um: um / mpp * scale, where=matrix)

    return visium.assemble(name, row, root, "segmented", load, image, mpp / scale)


def _number(barcode: str) -> int:
    """The number in ``cellid_000000017-1``; -1 of any other name."""
    found = re.fullmatch(r"cellid_(\d{1,15})(?:-\d+)?", barcode)
    return int(found[1]) if found else -1


def centroids(path: Path) -> pd.DataFrame:
    """Centroid (x, y) [px of the full image] of every outlined cell, by its number.

    Raises
    ------
    InputError
        If it is no collection of polygons that each name a cell, once.
    """
    check_file(path)
    fix = "copy it again from the Space Ranger output"
    with reading(path, "features", "are not polygons with a cell_id", fix):
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        number = [int(feature["properties"]["cell_id"]) for feature in features]
        rings = [np.asarray(_outer(feature["geometry"]), dtype=np.float64)[:, :2]
                 for feature in features]
        places = np.array([_centroid(ring) for ring in rings]).reshape(-1, 2)
    far = ~(np.abs(places) <= FARTHEST_PX).all(axis=1)
    if far.any():
        at = int(far.argmax())
        raise InputError(path, f"features: cell_id {number[at]}",
                         f"has its centre at {places[at].tolist()} px", fix)
    if len(set(number)) < len(number):
        raise InputError(path, "features", "name a cell twice",
                         fix)
    return pd.DataFrame(places, index=number, columns=["x", "y"])


def _outer(geometry: dict[str, Any]) -> list:
    """Outline of a polygon, or of the first of several."""
    rings = geometry["coordinates"]
    return rings[0][0] if geometry["type"] == "MultiPolygon" else rings[0]


def _centroid(ring: np.ndarray) -> np.ndarray:
    """Centre of mass of a polygon's area; the mean of its corners where it has no area."""
    x, y = (ring - ring[0]).T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2
    if abs(area) < 1e-9:
        return ring.mean(axis=0)
    return ring[0] + np.array([((x + np.roll(x, -1)) * cross).sum(),
                               ((y + np.roll(y, -1)) * cross).sum()]) / (6 * area)
