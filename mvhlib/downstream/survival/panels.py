"""Figures of survival with a panel per endpoint."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import dots, plots
from mvhlib.cohort.clinical import ENDPOINTS
from mvhlib.downstream.survival.figures import (
    plot_calibration,
    plot_hazard_ratios,
    plot_kaplan_meier,
    row_name,
)
from mvhlib.downstream.survival.inference import calibration, calibration_slope, logrank_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_concordance(table: pd.DataFrame, permuted: Mapping[str, pd.DataFrame],
                     endpoints: Sequence[str]) -> "Figure":
    """Draw Harrell's C of every model; the band is what models of permuted outcomes reach.

    Parameters
    ----------
    table
        Rows of the summary of one metric and one kind of folds; models called ``*.permuted`` are
        left out.
    permuted
        Endpoint -> scores from `permuted_scores`.
    """
    import matplotlib.pyplot as plt

    drawn = table[~table["model"].str.endswith(".permuted")]
    drawn = drawn.assign(row=drawn["encoder"].replace("none", "no image") + "|" + drawn["model"])
    order = list(dict.fromkeys(drawn["row"]))
    fig, axes = plt.subplots(1, len(endpoints), figsize=(plots.PAGE, dots.height(len(order))),
                             sharey=True, sharex=True, squeeze=False)
    for ax, endpoint in zip(axes[0], endpoints, strict=True):
        if endpoint in permuted:
            each = permuted[endpoint].query("metric == 'harrell_c'").groupby(
                ["encoder", "permutation"])["value"].mean()
            ax.axvspan(each.min(), each.max(), color="0.9", zorder=0)
        dots.rows(drawn[drawn["endpoint"] == endpoint], ax, by="row", names=order, zero=0.5,
                  xlabel="Harrell's C", write=row_name)
        ax.set_title(ENDPOINTS.get(endpoint, endpoint))
    axes[0, 0].set_xlim(max(0.0, drawn["mean"].min() - 0.15), min(1.0, drawn["mean"].max() + 0.15))
    return fig


def draw_risk_groups(risks: Mapping[str, pd.DataFrame]) -> "Figure":
    """Draw Kaplan-Meier curves of one model's risk groups, with the log-rank test.

    Parameters
    ----------
    risks
        Endpoint -> rows of one model; see `select`.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(risks), figsize=(plots.PAGE, 3.0), squeeze=False)
    for ax, (endpoint, own) in zip(axes[0], risks.items(), strict=True):
        plot_kaplan_meier(own, ax)
        ax.set_title(f"{ENDPOINTS.get(endpoint, endpoint)}, log-rank p {logrank_of(own)['p']:.1g}")
        ax.legend(loc="lower left")
    return fig


def draw_calibration(risks: Mapping[str, pd.DataFrame], horizon_months: float
                     ) -> "tuple[Figure, pd.DataFrame]":
    """Draw the calibration of one model at the horizon, with its slope; and return what is drawn.

    The table has the columns of `calibration`, endpoint, slope.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(risks), figsize=(plots.PAGE, 2.9), squeeze=False)
    parts = []
    for ax, (endpoint, own) in zip(axes[0], risks.items(), strict=True):
        table, slope = calibration(own, horizon_months), calibration_slope(own)
        plot_calibration(table, ax)
        ax.set_aspect("equal")
        said = (f"slope {slope.mean:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
                if np.isfinite(slope.mean) else "no slope fits so few events")
        ax.set_title(f"{ENDPOINTS.get(endpoint, endpoint)},\n{said}")
        parts.append(table.assign(endpoint=endpoint, slope=slope.mean))
    return fig, pd.concat(parts)


def draw_prototypes(ratios: Sequence[pd.DataFrame], pictures: np.ndarray | None, n_prototypes: int
                    ) -> "Figure":
    """Draw the tiles nearest to each prototype, and the hazard ratios of its share and spread.

    Parameters
    ----------
    ratios
        One table of `hazard_ratios` per endpoint, with a column endpoint.
    pictures
        Six tiles per prototype, or None where there are none.
    """
    import matplotlib.pyplot as plt

    n_panels = 2 * len(ratios)
    fig, axes = plt.subplots(1, 1 + n_panels, width_ratios=[2.6] + [1] * n_panels,
                             figsize=(plots.PAGE, 1.1 + 0.39 * n_prototypes))
    if pictures is not None:
        plots.tile_grid(pictures, axes[0], n_columns=6)
        axes[0].set_title("nearest tiles of k")
    else:
        axes[0].set_axis_off()
    kinds = {"share": "share of", "spread": "variation in"}
    cases = [(table, name, kind) for table in ratios for name, kind in kinds.items()]
    for ax, (table, name, kind) in zip(axes[1:], cases, strict=True):
        rows = table[table["column"].str.startswith(name)]
        plot_hazard_ratios(rows.assign(column=range(len(rows))), ax)
        ax.set(title=f"{table['endpoint'].iloc[0]}:\n{kind} k", xlabel="")
    fig.supxlabel("hazard ratio per standard deviation", fontsize=7)
    return fig
