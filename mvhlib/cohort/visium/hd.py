"""Visium HD: bins, summed into squares."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort import pseudospots
from mvhlib.cohort.base import Cohort, Section
from mvhlib.cohort.feature_matrix import GeneNames
from mvhlib.cohort.visium.array import check_lattice, fit_steps
from mvhlib.cohort.visium.counts import genes_of, place_spots
from mvhlib.cohort.visium.images import find_image
from mvhlib.cohort.visium.layouts import (
    COUNT_FILES,
    find_outputs,
    first_of,
    is_bin_folder,
    is_visium,
)
from mvhlib.cohort.visium.positions import array_places, pixels, read_positions
from mvhlib.cohort.visium.scale import agree, read_scalefactors, scale_factor
from mvhlib.cohort.visium.sections import assemble, make_cohort, number_option

if TYPE_CHECKING:
    from anndata import AnnData


def read_hd(path: str | Path, *, spot_um: float = 100.0, min_fill: float = 0.25,
            samples: str | Path | pd.DataFrame | None = None, study: str | None = None,
            patient: str | None = None, image: str | Path | None = None,
            mpp: float | None = None) -> Cohort:
    """Read Visium HD, its bins summed into squares of `spot_um`.

    Parameters
    ----------
    path
        A Space Ranger ``outs`` folder with ``binned_outputs``, one ``square_*um`` folder, or a
        folder of several. The coarsest bins that divide `spot_um` are taken.
    spot_um
        Side of a pseudo-spot [µm].
    min_fill
        Pseudo-spots with a smaller share of their bins under tissue are left out [0-1].
    samples, study, patient, image, mpp
        As in `mvhlib.cohort.visium.read`; the scale is the file's own ``microns_per_pixel``.

    Raises
    ------
    InputError
        As `mvhlib.cohort.visium.read`, and if no bins divide `spot_um`.
    """
    spot_um = number_option("spot_um", spot_um, above=0.0)
    min_fill = number_option("min_fill", min_fill, low=0.0, high=1.0)
    path = Path(path)
    if path.name == "binned_outputs":  # its folders are one tissue at several bin sizes
        path = path.parent
    outputs = {name: _bins(folder, spot_um)
               for name, folder in find_outputs(path, "visium_hd").items()}
    names = GeneNames([])  # of the sections that are made

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _hd_section(name, folder, root, row, names, spot_um, min_fill)

    return make_cohort(path, outputs, samples, study, patient, image, mpp, make)


def _bins(folder: Path, spot_um: float) -> Path:
    """The folder of the coarsest bins that divide `spot_um`."""
    if is_bin_folder(folder):
        return folder
    sizes = {}
    for path in sorted((folder / "binned_outputs").glob("square_*um")):
        digits = path.name.removeprefix("square_").removesuffix("um")
        if digits.isdigit() and is_visium(path):
            sizes[int(digits)] = path
    dividing = [size for size in sizes if spot_um / size >= 1 and spot_um % size == 0]
    if not dividing:
        raise InputError(folder / "binned_outputs", "spot_um",
                         f"{spot_um:g} is not a multiple of the bins there ({sorted(sizes)} um)",
                         "choose spot_um as a multiple of a bin")
    return sizes[max(dividing)]


def _hd_section(name: str, folder: Path, root: Path, row: dict[str, Any], names: GeneNames,
                spot_um: float, min_fill: float) -> Section:
    spatial = folder / "spatial"
    scalefactors = read_scalefactors(spatial)
    where = spatial / "scalefactors_json.json"
    stated = scale_factor(scalefactors, "microns_per_pixel", where)
    bin_um = scale_factor(scalefactors, "bin_size_um", where)
    mpp = row.get("mpp") or stated
    for field, value in (("microns_per_pixel", mpp), ("bin_size_um", bin_um)):
        if value is None:
            raise InputError(where, field, "is missing",
                             "copy it again from the Space Ranger output, or pass mpp=")
    agree(row.get("mpp"), stated, where, "mpp", "microns_per_pixel says", "leave mpp out")
    named = re.fullmatch(r"square_(\d+)um", folder.absolute().name)
    agree(bin_um, float(named[1]) if named else None, where, "bin_size_um",
          "the folder's name says", "copy spatial/ of this very folder again", "µm")
    diameter = scale_factor(scalefactors, "spot_diameter_fullres", where)
    agree(diameter and diameter * mpp, bin_um, where, "spot_diameter_fullres times the scale",
          "bin_size_um says", "give scale factors of this very folder", "µm")
    if spot_um < bin_um or abs(spot_um / bin_um - round(spot_um / bin_um)) > 1e-6:
        raise InputError(folder, "spot_um", f"{spot_um:g} is not a multiple of the bins "
                         f"({bin_um:g} um)", "choose spot_um as a multiple of a bin")
    image, scale = find_image(row, root, spatial, scalefactors)
    matrix = first_of(folder, COUNT_FILES)
    names.paths.append(matrix)

    def load() -> "AnnData":
        positions = read_positions(spatial)
        _check_bins(positions, bin_um, mpp, spatial)
        bins = place_spots(genes_of(matrix, names), positions, matrix)
        # Rows and columns of the bins make the raster, so a turned slide stays square; an affine
        # fit carries the squares' centres into the image.
        grid = bins.obs[["array_col", "array_row"]].to_numpy(float)
        counts, cells = pseudospots.aggregate_bins(
            bins.layers["counts"], (grid + 0.5) * bin_um, spot_um, bin_um, min_fill)
        if len(cells) == 0:
            raise InputError(matrix, "min_fill", "no pseudo-spot lies on tissue",
                             "lower min_fill or spot_um")
        design = np.column_stack([grid, np.ones(len(grid))])
        if np.linalg.matrix_rank(design) < 3:
            raise InputError(spatial, "in_tissue", "bins under tissue lie in one line, from "
                             "which no square can be placed", "give a section with more tissue")
        map_to_px = np.linalg.lstsq(design, bins.obsm["spatial"], rcond=None)[0]
        centres = (cells + 0.5) * spot_um / bin_um - 0.5
        adata = pseudospots.to_adata(counts, cells, bins.var, spot_um)
        adata.obsm["spatial"] = np.column_stack([centres, np.ones(len(centres))]) @ map_to_px
        adata.obsm["spatial"] *= scale
        adata.uns["join"] = bins.uns["join"] | {"n_pseudospots": len(cells), "bin_um": bin_um}
        return adata

    return assemble(name, row, root, "visium_hd", load, image, mpp / scale)


def _check_bins(positions: pd.DataFrame, bin_um: float, mpp: float, where: Path) -> None:
    """Compare the distance of neighbouring bins with the stated scale."""
    found = fit_steps(array_places(positions), pixels(positions))
    if found is None:
        raise InputError(where, "array_row, array_col", "are all in one line",
                         "copy the table of positions again from the Space Ranger output")
    steps, off = found
    for axis, length in zip(("row", "column"), np.linalg.norm(steps, axis=1), strict=True):
        agree(bin_um, length * mpp, where, "bin_size_um",
              f"a {axis} further is {length:.4g} px at {mpp:.4g} µm/px, hence",
              "give positions and scale factors of the same folder", "µm")
    check_lattice(steps, off, mpp, positions.index, where)
