"""Comparability of sections at their own resolutions."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError

#: Scales whose ratio is below this are comparable; above it images are matched in resolution.
MPP_TOLERANCE = 1.25


@dataclass(frozen=True)
class Resolution:
    """Comparability of a protocol's sections at their own resolutions.

    Attributes
    ----------
    status
        ``comparable``, or ``matched``: read all images at `mpp`.
    mpp
        Scale to read all images at [µm/px]; the coarsest one. None where the scales are
        comparable or not known.
    message
        One sentence for the log and the figure.
    """

    status: str
    mpp: float | None
    message: str


def match_resolution(manifest: pd.DataFrame, tolerance: float = MPP_TOLERANCE) -> Resolution:
    """Compare the scales of all sections that have one."""
    if "mpp" not in manifest.columns or manifest["mpp"].isna().all():
        return Resolution("comparable", None, "no scale is known, so none is compared")
    scales = manifest.dropna(subset=["mpp"])
    odd = ~(np.isfinite(scales["mpp"]) & (scales["mpp"] > 0))
    if odd.any():
        raise InputError("manifest.csv", "mpp", f"is {scales['mpp'][odd].iloc[0]} for section "
                         f"{scales['section'][odd].iloc[0]}", "state a scale above 0 [um/px], or "
                         "leave it blank")
    finest, coarsest = float(scales["mpp"].min()), float(scales["mpp"].max())
    span = f"{finest:.3g} to {coarsest:.3g} um/px"
    if coarsest <= finest * tolerance:
        return Resolution("comparable", None, f"scales are comparable ({span})")
    who = sorted(scales.loc[scales["mpp"] > finest * tolerance, "patient"].unique())
    return Resolution("matched", coarsest, f"scales differ ({span}; coarse: patient "
                      f"{', '.join(map(str, who))}), all images are reduced to "
                      f"{coarsest:.3g} um/px")


def worst_resolution(folds: pd.DataFrame, table: pd.DataFrame, tolerance: float) -> Resolution:
    """The resolution that all folds can share: that of the fold with the coarsest mismatch."""
    found = [match_resolution(table[table["section"].isin(rows["section"])], tolerance)
             for _, rows in folds.groupby("fold", sort=False)]
    matched = [resolution for resolution in found if resolution.status == "matched"]
    return max(matched, key=lambda resolution: resolution.mpp) if matched else found[0]
