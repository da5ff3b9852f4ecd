"""The figure of all probes: a panel per data set, a row per split."""

from typing import TYPE_CHECKING

import pandas as pd

from mvhlib import plots
from mvhlib.downstream.probe.splits import SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels beside each other.
_ACROSS = 3


def draw_auroc(table: pd.DataFrame) -> "Figure":
    """Draw AUROC by split and encoder with its interval; attention has rows of its own.

    Parameters
    ----------
    table
        Rows of the summary of one metric: dataset, encoder, classifier (``logistic`` or ``mil``),
        split, mean, ci_low, ci_high.
    """
    import matplotlib.pyplot as plt

    attention = table["classifier"].map({"mil": ",\nattention"}).fillna("")
    table = table.assign(row=table["split"].map(SPLITS) + attention)
    names, n = list(dict.fromkeys(table["dataset"])), max(table["encoder"].nunique(), 3)
    lines = [table.loc[table["dataset"] == name, "row"].nunique() for name in names]
    heights = [1 + max(lines[k:k + _ACROSS]) * n * min(0.12, 0.7 / n)
               for k in range(0, len(names), _ACROSS)]
    fig, axes = plt.subplots(len(heights), min(len(names), _ACROSS), squeeze=False, sharex=True,
                             height_ratios=heights, figsize=(plots.PAGE, 0.6 + sum(heights)))
    for ax, name in zip(axes.flat, names, strict=False):
        part = table[table["dataset"] == name]
        plots.forest(part, ax=ax, by="row", xlabel="AUROC", zero=False)
        ax.axvline(0.5, color="0.75", linewidth=0.6, zorder=0)
        ax.tick_params(labelbottom=True)
        title = name.replace("_confounded", ",\nconfounded with scanner").replace("_", " ")
        ax.set_title(plots.headline(title, None, summary=part))
    for ax in axes.flat[len(names):]:
        ax.set_axis_off()
    plots.legend_below(fig, axes[0, 0])
    return fig
