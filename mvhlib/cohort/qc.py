"""What every section looks like before anything is fitted to it: one row of numbers each."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mvhlib.cohort.base import Section
from mvhlib.cohort.pseudospots import is_control
from mvhlib.cohort.thumbnail import attach_thumbnail

COLUMNS = ("section", "study", "patient", "n_spots", "n_genes", "n_genes_found",
           "n_empty_spots", "counts_q05", "counts_q25", "counts_median", "counts_q75",
           "counts_q95", "genes_per_spot_q05", "genes_per_spot_median", "genes_per_spot_q95",
           "mito_fraction_median", "n_control_features", "n_dropped", "mpp", "spot_pitch_um",
           "n_outside_image", "tissue_fraction_median", "fraction_on_tissue")


def table(sections: Iterable[Section], *, min_tissue: float = 0.5,
          preset: str = "default") -> pd.DataFrame:
    """Quality of each section.

    Parameters
    ----------
    sections
        A cohort or sections.
    min_tissue
        A spot lies on tissue where at least this share of it is tissue [0-1].
    preset
        Settings of the tissue mask; see `mvhlib.tiles.cut`.

    Returns
    -------
    DataFrame
        One row per section, columns `COLUMNS`. Numbers that a section cannot have are NaN: of the
        image where it has none, mitochondrial where genes have no symbols.

    Raises
    ------
    InputError
        If counts or an image cannot be read.
    """
    return pd.DataFrame([_row(section, min_tissue, preset) for section in sections],
                        columns=list(COLUMNS))


def per_spot(section: Section, *, preset: str = "default") -> pd.DataFrame:
    """Per spot: counts, genes found, mitochondrial share, tissue share, and whether it is outside.

    Returns
    -------
    DataFrame
        Index: barcodes; columns counts, genes, mito_fraction, tissue_fraction (NaN without an
        image), outside_image (False without one).
    """
    adata = section.adata
    counts = adata.layers["counts"]
    total = np.asarray(counts.sum(axis=1)).ravel().astype(float)
    mito = adata.var_names.str.match("^(MT-|mt-)")
    if mito.any():
        part = np.asarray(counts[:, np.flatnonzero(mito)].sum(axis=1)).ravel()
        mito_fraction = np.divide(part, total, out=np.full(len(total), np.nan), where=total > 0)
    else:
        mito_fraction = np.full(len(total), np.nan)
    frame = pd.DataFrame({"counts": total, "genes": np.asarray((counts > 0).sum(axis=1)).ravel(),
                          "mito_fraction": mito_fraction, "tissue_fraction": np.nan,
                          "outside_image": False}, index=adata.obs_names)
    if not section.has_image:
        return frame
    x, y = np.asarray(adata.obsm["spatial"], float).T
    width, height = section.image_size
    frame["outside_image"] = (x < 0) | (y < 0) | (x >= width) | (y >= height)
    for x0, y0, x1, y1 in section.image_ref.exclude:
        frame["outside_image"] |= (x >= x0) & (y >= y0) & (x < x1) & (y < y1)
    frame["tissue_fraction"] = _tissue(section, x, y, preset)
    return frame


def _tissue(section: Section, x: np.ndarray, y: np.ndarray, preset: str) -> np.ndarray:
    """Share of each spot's square that is tissue."""
    from mvhlib.tiles.cut import tissue_mask
    from mvhlib.tiles.slides import Slide

    # The thumbnail is enough for a spot of 100 um, and the section needs one anyway: its
    # full image is decoded once, not twice.
    attach_thumbnail(section)
    small = section.adata.uns["spatial"][section.name]
    scale = float(small["scalefactors"]["tissue_hires_scalef"])
    side = float(small["scalefactors"]["spot_diameter_fullres"]) * scale
    with Slide.from_array(small["images"]["hires"], name=section.name,
                          mpp=section.mpp / scale if section.mpp else None) as slide:
        mask = tissue_mask(slide, preset)
    return mask.fraction(x * scale - side / 2, y * scale - side / 2, side, side)


def _median(values: pd.Series) -> float:
    """Median of what is known, NaN where nothing is."""
    return float(values.median()) if values.notna().any() else np.nan


def _row(section: Section, min_tissue: float, preset: str) -> dict[str, object]:
    adata, spots = section.adata, per_spot(section, preset=preset)
    counts = adata.layers["counts"]
    found = np.asarray((counts > 0).sum(axis=0)).ravel() > 0
    join = adata.uns.get("join", {})
    record: dict[str, object] = {
        "section": section.name, "study": section.study, "patient": section.patient,
        "n_spots": adata.n_obs, "n_genes": adata.n_vars, "n_genes_found": int(found.sum()),
        "n_empty_spots": int((spots["counts"] == 0).sum()),
        "mito_fraction_median": _median(spots["mito_fraction"]),
        "n_control_features": int(is_control(adata.var_names).sum()),
        "n_dropped": int(join.get("n_without_position", 0)),
        "mpp": np.nan if section.mpp is None else section.mpp,
        "spot_pitch_um": float(adata.uns.get("lattice", {}).get("pitch_um", np.nan)),
        "n_outside_image": int(spots["outside_image"].sum()) if section.has_image else np.nan,
        "tissue_fraction_median": _median(spots["tissue_fraction"]),
        "fraction_on_tissue": ((spots["tissue_fraction"] >= min_tissue).mean()
                               if section.has_image else np.nan)}
    for field, percents in (("counts", (5, 25, 50, 75, 95)), ("genes", (5, 50, 95))):
        label = "counts" if field == "counts" else "genes_per_spot"
        for percent in percents:
            name = "median" if percent == 50 else f"q{percent:02d}"
            record[f"{label}_{name}"] = float(np.percentile(spots[field], percent))
    return record
