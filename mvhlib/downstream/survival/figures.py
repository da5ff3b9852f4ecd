"""Figures of survival: Kaplan-Meier curves with numbers at risk, calibration, hazard ratios."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Where the axis of hazard ratios ends at most.
FURTHEST_RATIO = 10.0


def plot_kaplan_meier(risks: pd.DataFrame, ax: "Axes", *, n_marks: int = 5,
                      colours: tuple[str, str] = ("#0072B2", "#D55E00")) -> "Axes":
    """Draw survival of the low- and the high-risk group, censored patients as ticks.

    Numbers at risk stand below the axis.

    Parameters
    ----------
    risks
        Rows of one model: time_months, event, high_risk.
    n_marks
        Times at which the patients at risk are counted.
    """
    from lifelines import KaplanMeierFitter
    from matplotlib.ticker import MaxNLocator

    last = float(risks["time_months"].max())
    marks = [m for m in MaxNLocator(n_marks).tick_values(0, last) if 0 <= m <= last]
    for row, (is_high, colour) in enumerate(zip((False, True), colours, strict=True)):
        part = risks[risks["high_risk"] == is_high]
        label = "high risk" if is_high else "low risk"
        if len(part) == 0:
            continue
        fitted = KaplanMeierFitter().fit(part["time_months"], part["event"])
        curve = fitted.survival_function_.iloc[:, 0]
        band = fitted.confidence_interval_
        ax.step(curve.index, curve, where="post", color=colour, label=label)
        ax.fill_between(band.index, band.iloc[:, 0], band.iloc[:, 1], step="post", color=colour,
                        alpha=0.15, linewidth=0)
        censored = np.sort(part.loc[part["event"] == 0, "time_months"])
        ax.plot(censored, fitted.survival_function_at_times(censored), "|", color=colour,
                markersize=3, markeredgewidth=0.5)
        for mark in marks:
            ax.text(mark, -0.30 - 0.09 * row, f"{(part['time_months'] >= mark).sum()}",
                    color=colour, ha="center", va="center", fontsize=6.5,
                    transform=ax.get_xaxis_transform())
    ax.text(0, -0.22, "at risk", ha="center", va="center", fontsize=6.5,
            transform=ax.get_xaxis_transform())
    ax.set_xticks(marks)
    ax.set_xlim(0, last)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("months", labelpad=1)
    ax.set_ylabel("survival")
    return ax


def plot_calibration(table: pd.DataFrame, ax: "Axes", *, label: str = "", colour: str = "#D55E00"
                     ) -> "Axes":
    """Draw `calibration`: observed against predicted probability, with the diagonal."""
    error = np.abs([table["observed"] - table["ci_low"], table["ci_high"] - table["observed"]])
    ax.errorbar(table["predicted"], table["observed"], yerr=np.nan_to_num(error), fmt="o-",
                markersize=3.5, capsize=1.5, linewidth=0.9, color=colour, label=label or None)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.6, zorder=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("predicted probability of an event")
    ax.set_ylabel("observed")
    return ax


def plot_hazard_ratios(table: pd.DataFrame, ax: "Axes", *, colour: str = "#0072B2") -> "Axes":
    """Draw hazard ratios with their intervals on a log axis, one row per entry of ``column``.

    Intervals that reach further than `FURTHEST_RATIO` are cut.
    """
    from matplotlib.ticker import NullLocator

    y = np.arange(len(table))
    error = [table["hazard_ratio"] - table["ci_low"], table["ci_high"] - table["hazard_ratio"]]
    ax.errorbar(table["hazard_ratio"], y, xerr=np.nan_to_num(error), fmt="o", markersize=3,
                capsize=1.5, linewidth=0.9, color=colour)
    ax.axvline(1, color="0.7", linewidth=0.6, zorder=0)
    reach = max(1.5, *np.nan_to_num(1 / table["ci_low"]), *np.nan_to_num(table["ci_high"]))
    reach = min(reach, FURTHEST_RATIO)
    ax.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if 1 / reach <= tick <= reach]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.95 / reach, 1.05 * reach)
    ax.set_yticks(y, table["column"])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel("hazard ratio per standard deviation")
    return ax


def row_name(row: str) -> str:
    """A row of the figure of all models, ``<encoder>|<model>``, as it is printed."""
    encoder, _, model = row.partition("|")
    if encoder == "no image":
        return model
    encoder, _, adjusted = encoder.partition("+")
    return f"{model}, {plots.label(encoder)}" + (f" ({adjusted})" if adjusted else "")
