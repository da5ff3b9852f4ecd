"""Visium: spots on a hexagonal array, or on a square one of another platform."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.base import Cohort, Section
from mvhlib.cohort.feature_matrix import GeneNames
from mvhlib.cohort.visium.array import (
    PITCH_UM,
    SPOT_RANGE_UM,
    SPOT_UM,
    array_kind,
    fit_steps,
    measure_mpp,
)
from mvhlib.cohort.visium.counts import genes_of, place_spots
from mvhlib.cohort.visium.images import find_image
from mvhlib.cohort.visium.layouts import COUNT_FILES, find_outputs, first_of
from mvhlib.cohort.visium.positions import array_places, pixels, read_positions
from mvhlib.cohort.visium.scale import agree, read_scalefactors, scale_factor
from mvhlib.cohort.visium.sections import assemble, make_cohort, number_option

if TYPE_CHECKING:
    from anndata import AnnData


def read(path: str | Path, *, samples: str | Path | pd.DataFrame | None = None,
         study: str | None = None, patient: str | None = None,
         image: str | Path | None = None, mpp: float | None = None,
         pitch_um: float | None = None, transposed: bool = False) -> Cohort:
    """Read Space Ranger output of Visium, or what is written in its layout.

    Counts come from the filtered matrix (else the raw one), spots with ``in_tissue`` are kept, and
    the scale is measured: neighbouring spots are 100 µm apart. Without a full image the
    sections' image is ``tissue_hires_image.png``, and coordinates are in its pixels.

    Parameters
    ----------
    path
        An ``outs`` folder, or a folder of several.
    samples
        Table of the sections (see the package); None looks for ``samples.csv`` in `path`.
    study, patient
        For a single output without a table: names of its study and patient.
    image
        Full-resolution image of a single output; relative paths are taken from `path`.
    mpp
        Micrometres per pixel of the full image [µm/px]; None measures it.
    pitch_um
        Distance of neighbouring spots of a square array, which is not Visium's [µm].
    transposed
        Say so where rows of the array do run along the image's width and columns along its height.
        Otherwise such positions are refused: mostly the two pixel columns were swapped.

    Raises
    ------
    InputError
        If a file is missing or broken, spots and counts do not join, scales disagree, the image is
        not the one that positions speak of, or several outputs stand there without a table that
        names their patients.
    """
    pitch_um = number_option("pitch_um", pitch_um, above=0.0)
    outputs = find_outputs(Path(path), "visium")
    names = GeneNames([])  # of the sections that are made, whatever else lies beside them

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _visium_section(name, folder, root, row, names, pitch_um, transposed)

    return make_cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


def _visium_section(name: str, folder: Path, root: Path, row: dict[str, Any], names: GeneNames,
                    pitch_um: float | None, transposed: bool) -> Section:
    spatial = folder / "spatial"
    scalefactors = read_scalefactors(spatial)
    where = spatial / "scalefactors_json.json"
    positions = read_positions(spatial)
    if "bin_size_um" in scalefactors or positions.index.str.match(r"s_\d+um_\d+_\d+").any():
        raise InputError(folder, "data", "holds bins of Visium HD, not spots of Visium",
                         "read it with source visium_hd")
    kind = array_kind(positions, spatial, transposed)
    diameter = scale_factor(scalefactors, "spot_diameter_fullres", where)
    measured = measure_mpp(positions, scalefactors, where)
    if kind == "square":
        steps, _ = fit_steps(array_places(positions), pixels(positions))
        step_px = float(np.linalg.norm(steps, axis=1).mean())
        if pitch_um is None and "mpp" not in row:
            raise InputError(
                spatial, "array_row, array_col", f"spots stand {step_px:.4g} px apart on a square "
                "lattice, and Visium's array is hexagonal", "read bins of Visium HD with source "
                "visium_hd; for another platform pass pitch_um= (the distance of neighbouring "
                "spots) or mpp=")
        mpp = row.get("mpp") or pitch_um / step_px
        pitch = pitch_um or mpp * step_px
        agree(row.get("mpp"), pitch / step_px, where, "mpp", "pitch_um and the positions say",
              "state one of the two")
        spot = min(pitch, diameter * mpp) if diameter else pitch
        lattice = {"kind": "square", "n_neighs": 4, "spot_um": float(spot),
                   "pitch_um": float(pitch), "coordinates": "pixel"}
    else:
        if pitch_um is not None:
            agree(pitch_um, PITCH_UM, spatial, "pitch_um", "the array is Visium's, with",
                  "leave pitch_um out", "µm")
        agree(row.get("mpp"), measured, where, "mpp", "spots 100 um apart say",
              "leave mpp out, or give the positions of the full image")
        agree(scale_factor(scalefactors, "microns_per_pixel", where), measured, where,
              "microns_per_pixel", "spots 100 um apart say", "copy spatial/ again as a whole")
        if diameter and not SPOT_RANGE_UM[0] <= diameter * measured <= SPOT_RANGE_UM[1]:
            raise InputError(
                where, "spot_diameter_fullres", f"is {diameter:.4g} px, which is "
                f"{diameter * measured:.4g} um where spots 100 um apart are "
                f"{PITCH_UM / measured:.4g} px apart, and Space Ranger means 65 um",
                "give scale factors and positions of the same output")
        mpp = row.get("mpp") or measured
        lattice = {"kind": "hexagonal", "n_neighs": 6, "spot_um": SPOT_UM, "pitch_um": PITCH_UM,
                   "coordinates": "pixel"}
    image, scale = find_image(row, root, spatial, scalefactors)
    matrix = first_of(folder, COUNT_FILES)
    names.paths.append(matrix)

    def load() -> "AnnData":
        adata = place_spots(genes_of(matrix, names), positions, matrix)
        adata.obsm["spatial"] = adata.obsm["spatial"] * scale
        adata.uns["lattice"] = dict(lattice)
        return adata

    return assemble(name, row, root, "visium", load, image, mpp / scale,
                    pixels(positions[positions["in_tissue"] != 0]) * scale)
