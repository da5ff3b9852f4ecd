"""Sections of HEST's samples: counts and centres, with the array checked against the scale."""

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import lattice
from mvhlib.artifacts import InputError, h5_reader, h5_sizes, reading
from mvhlib.cohort.base import (
    Cohort,
    ImageRef,
    Section,
    check_counts,
    check_mpp,
    check_places,
    check_scale,
    check_sparse,
    present,
)
from mvhlib.cohort.feature_matrix import told_apart
from mvhlib.cohort.hest.corrections import choose, describe, read_corrections, who
from mvhlib.cohort.hest.genes import is_control
from mvhlib.cohort.hest.metadata import Sample, find_samples, stated_number
from mvhlib.cohort.hest.patches import find_corners, open_patches, same_scale
from mvhlib.cohort.hest.pictures import mosaic, stored_picture
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Distance of neighbouring spots that each technology has, or is pooled to [um], and how far a
#: section may be from it. Spots of legacy arrays are printed, and stand less evenly.
PITCH_UM = {"Visium": 100.0, "Xenium": 100.0, "Spatial Transcriptomics": 200.0}
PITCH_TOLERANCE = {"Visium": 0.1, "Xenium": 0.1, "Spatial Transcriptomics": 0.2}
#: Distance where nothing tells [um].
USUAL_PITCH_UM = 100.0


def read(path: str | Path, *, metadata: str | Path | None = None,
         corrections: str | Path | None = None, include: str | Sequence[str] | None = None,
         sections: Iterable[str] | None = None, substudies: bool = False,
         duplicates: bool = False, unrecorded: str = "study", images: bool = True) -> Cohort:
    """Read samples in the layout of HEST-1k, of a task of hest-bench, or of a folder of tasks.

    The image of a section is ``wsis/<id>.tif`` where there is one. Otherwise the patches stand
    for it: the section counts as imaged, and `mvhlib.cohort.hest.tiles` gives what
    was cut.

    Parameters
    ----------
    path
        Folder that holds ``st``, or ``adata``, or task folders with ``adata``.
    metadata
        HEST's csv; None takes the newest ``HEST_v*.csv`` in `path`, where there is one.
    corrections
        Table of corrections and sets, as `mvhlib.cohort.hest.read_corrections` reads it; relative
        paths are taken from the working directory, else from the clone.
    include
        Set of that table, or several; a sample of any of them is read. Where the table has a column
        ``group``, its groups are sets as well. None reads all samples.
    sections
        Ids to read; None reads all (of `include`).
    substudies
        Take the column ``substudy`` for the study (COLON MAP then counts as two).
    duplicates
        True keeps samples that duplicate another one.
    unrecorded
        Patient of a section whose donor is stated nowhere: ``"study"`` counts all such sections
        of a study as one patient, so that none is on both sides of a fold; ``"section"`` takes each
        for a patient of its own, on trust.
    images
        False reads every section as expression-only.

    Raises
    ------
    InputError
        If a file is missing or broken, a set or id is not known, or no sample is left.
    """
    root = Path(path)
    if unrecorded not in ("study", "section"):
        raise InputError("hest", "unrecorded", f"is {unrecorded!r}", "use study or section")
    table = None if corrections is None else read_corrections(corrections)
    samples = find_samples(root, metadata)
    names = choose(root, list(samples), table, corrections, include, sections, duplicates)
    rows = {} if table is None else table.set_index("section").to_dict("index")
    made = []
    for name in names:
        sample = samples[name]
        study, patient, specimen = who(sample, rows.get(name), substudies, unrecorded)
        made.append(_section(root, sample, study, patient, specimen, images))
    cohort = Cohort(made)
    log.info("%s", describe(cohort, include))
    return cohort


def _section(root: Path, sample: Sample, study: str, patient: str, specimen: str,
             images: bool) -> Section:
    wsi = sample.root / "wsis" / f"{sample.name}.tif"
    patches = sample.root / "patches" / f"{sample.name}.h5"
    mpp = stated_number(sample, "pixel_size_um_estimated")
    if mpp is not None:
        mpp = check_mpp(mpp, sample.told_by, f"pixel_size_um_estimated of {sample.name}")
    ref = size = None
    if images and present(wsi, "slide"):
        with open_slide(wsi, mpp=mpp) as slide:
            size, mpp = (slide.width, slide.height), slide.mpp
        ref = ImageRef(str(wsi.relative_to(root)))
    elif images and present(patches, "patches"):
        with open_patches(patches) as cut:
            same_scale(cut, mpp, patches)
            mpp = mpp or cut.mpp
            reach = cut.coords.max(axis=0) + (cut.source_px or 0)
        stated = [stated_number(sample, f"fullres_px_{side}") for side in ("width", "height")]
        size = tuple(int(max(a or 0, np.ceil(b))) for a, b in zip(stated, reach, strict=True))
        ref = ImageRef(str(patches.relative_to(root)))
    if ref is not None and mpp is None:
        raise InputError(sample.counts, "pixel_size_um_estimated", f"of {sample.name} is stated "
                         "neither by the csv nor by its json nor by its patches",
                         "pass metadata= with HEST's csv")
    return Section(name=sample.name, study=study, patient=patient, specimen=specimen,
                   source="hest", load=lambda: _load(sample, mpp, ref, size, patches),
                   mpp=mpp if ref is not None else None, image_ref=ref, image_size=size,
                   roots={"data": root})


def _load(sample: Sample, mpp: float | None, ref: ImageRef | None,
          size: tuple[int, int] | None, patches: Path) -> "AnnData":
    """Counts and centres; controls dropped, a picture kept where there is no slide."""
    import anndata
    from scipy import sparse

    path = sample.counts
    with h5_reader(path) as stream:
        h5_sizes(stream)
    with reading(path, fix="it is probably truncated: fetch it again"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that repeat: told apart or refused
        stored = anndata.read_h5ad(path)
    if stored.X is None:
        raise InputError(path, "X", "is missing", "HEST's files hold raw counts there")
    if hasattr(stored.X, "indptr"):
        check_sparse(stored.X, path, "X")
    check_places(stored, path)
    with reading(path, "obs", "is no table of places", "fetch it again"):
        obs = stored.obs[[c for c in ("array_row", "array_col") if c in stored.obs]]
        adata = anndata.AnnData(obs=obs.copy(),
                                var=pd.DataFrame(index=stored.var_names.astype(str)))
    adata.obs_names = adata.obs_names.astype(str)
    # Two Ensembl ids may share a symbol.
    adata.var_names = told_apart(adata.var_names, stored.var.get("gene_ids"))
    with reading(path, "X", fix="HEST's files hold raw counts there"):
        adata.layers["counts"] = sparse.csr_matrix(stored.X)
    check_counts(adata, path)
    adata.layers["counts"] = adata.layers["counts"].astype(np.int32)
    adata.obsm["spatial"] = np.asarray(stored.obsm["spatial"], dtype=np.float64)
    controls = is_control(adata.var_names)
    adata = adata[:, ~controls].copy()
    adata.X = adata.layers["counts"].copy()
    technology = str(sample.facts.get("st_technology", "")).strip()
    adata.uns["lattice"] = _lattice(sample, technology, adata.obsm["spatial"], mpp)
    adata.uns["hest"] = {"technology": technology, "n_control_features": int(controls.sum())}
    if ref is not None and ref.path.endswith(".h5"):
        with reading(path, 'uns["spatial"]', fix="delete the pictures there, or fetch it again"):
            picture = stored_picture(stored, path)
        if picture is None:
            with open_patches(patches) as cut:
                corners, side, _ = find_corners(cut, list(adata.obs_names), adata.obsm["spatial"],
                                                mpp, patches)
                picture = mosaic(cut, corners, side, size)
        pixels, scale = picture
        diameter = adata.uns["lattice"]["spot_um"] / mpp
        adata.uns["spatial"] = {sample.name: {
            "images": {"hires": pixels}, "metadata": {},
            "scalefactors": {"tissue_hires_scalef": scale, "spot_diameter_fullres": diameter}}}
    return adata


def _lattice(sample: Sample, technology: str, centers: np.ndarray, mpp: float | None
             ) -> dict[str, Any]:
    """Kind of the array, and its pitch as measured from the centres.

    Raises
    ------
    InputError
        If the scale does not give spots the distance that the technology has.
    """
    hexagonal = technology == "Visium"
    record: dict[str, Any] = {"kind": "hexagonal" if hexagonal else "square",
                              "n_neighs": 6 if hexagonal else 4, "coordinates": "pixel"}
    pitch = np.nan
    if len(centers) > 1 and mpp is not None:
        nearest = lattice.nearest(centers) * mpp
        pitch = float(np.median(nearest))
        record["pitch_um"] = pitch
        if pitch == 0:
            raise InputError(sample.counts, 'obsm["spatial"]', "gives half of the spots the "
                             "position of another spot", "give every spot its own position")
        # Where tissue is torn half of the spots may stand alone, but not all of them.
        close = float(np.quantile(nearest, 0.1))
        if technology in PITCH_UM:
            usual = PITCH_UM[technology]
            if technology == "Spatial Transcriptomics":  # spots of other makers' arrays are closer
                usual = stated_number(sample, "inter_spot_dist") or usual
            tolerance = PITCH_TOLERANCE[technology]
            if close <= 0 or abs(math.log(close / usual)) > math.log1p(tolerance):
                check_scale(mpp, mpp * usual / pitch, sample.told_by,
                            f"pixel_size_um_estimated of {sample.name}",
                            said="{:.4g} um/px is stated, by which spots are "
                            f"{pitch:.1f} um apart", seen=f"{technology} has {usual:.0f} um "
                            "between them, so it is {:.4g}", tolerance=tolerance)
    record["spot_um"] = 55.0 if hexagonal else pitch if np.isfinite(pitch) else USUAL_PITCH_UM
    return record
