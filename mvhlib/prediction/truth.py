"""Predictions held against expression that was measured after all."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import normalize
from mvhlib.expression.scores import dense, section_scores

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def against(predicted: "AnnData", measured: "AnnData") -> pd.DataFrame:
    """Found correlation of every gene beside the expected one.

    Parameters
    ----------
    predicted
        Of a slide, as `mvhlib.prediction.outputs.to_adata` makes it, at the measured spots.
    measured
        ``layers["counts"]`` of the same spots, by name; it may hold more spots and genes.

    Returns
    -------
    DataFrame
        gene, expected_r, ci_low, ci_high, r, inside (whether the interval holds r; None where
        either is not known), n_spots.

    Raises
    ------
    InputError
        If no spot or no gene is in both.
    """
    spots = [name for name in predicted.obs_names if name in set(measured.obs_names)]
    genes = [name for name in predicted.var_names if name in set(measured.var_names)]
    if not spots or not genes:
        raise InputError("predictions", "spots, genes", "have none in common with what was "
                         "measured", "predict at the measured spots: <slide>.spots.h5ad")
    counts = measured[spots].layers["counts"]
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    how = predicted.uns["mvh"]["normalize"]
    own = dense(counts[:, measured.var_names.get_indexer(genes)])
    table = section_scores(normalize(own, how, library), dense(predicted[spots, genes].X), genes)
    table = table.set_index("gene").join(predicted.var[["expected_r", "ci_low", "ci_high"]])
    table["r"] = table.pop("pcc")
    known = table[["r", "ci_low", "ci_high"]].notna().all(axis=1)
    inside = table["r"].between(table["ci_low"], table["ci_high"])
    table["inside"] = inside.astype(object).where(known, None)
    return table.reset_index()[["gene", "expected_r", "ci_low", "ci_high", "r", "inside",
                                "n_spots"]]


def draw(table: pd.DataFrame, ax: "Axes") -> "Axes":
    """Found against expected correlation, with the interval that was stated."""
    shown = table.dropna(subset=["expected_r", "r"])
    bars = shown.dropna(subset=["ci_low"])
    ax.vlines(bars["expected_r"], bars["ci_low"], bars["ci_high"], color="0.85", linewidth=0.8,
              zorder=0)
    outside = shown["inside"] == False  # noqa: E712 - a column of True, False and None
    for rows, colour, label in ((shown[~outside], "#0072B2", "inside its interval"),
                                (shown[outside], "#D55E00", "outside")):
        ax.plot(rows["expected_r"], rows["r"], "o", markersize=3, color=colour, label=label)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.6)
    ax.set(xlabel="expected Pearson r", ylabel="found Pearson r")
    return ax
