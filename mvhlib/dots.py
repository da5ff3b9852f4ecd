"""One labelled row per encoder: dots with their intervals, and the number at the end of the row.

Ten encoders told apart by marks and hues cannot be read; ten rows can. A filled dot is what the
figure is about, an open one what it is compared with: a control, or the easier kind of folds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mvhlib import phrases, plots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Height of one row, and of what stands above and below all of them [inch].
ROW, FRAME = 0.17, 1.0


def height(n_rows: int) -> float:
    """Height of a figure of so many rows [inch]."""
    return FRAME + ROW * max(n_rows, 3)


def order(table: "pd.DataFrame", *, by: str = "encoder", value: str = "mean") -> list:
    """Rows from the best to the worst, by their filled dots."""
    filled = table[~table["open"]] if "open" in table else table
    best = filled.groupby(by, sort=False)[value].mean().sort_values(ascending=False, kind="stable")
    return list(dict.fromkeys([*best.index, *table[by]]))


def rows(table: "pd.DataFrame", ax: "Axes", *, by: str = "encoder",
         names: Sequence | None = None, write: Callable[[str], str] = plots.label,
         marked: Sequence[str] = (), xlabel: str = "mean Pearson r", zero: float | None = 0.0,
         digits: int = 2, signed: bool = False, joined: bool = False) -> "Axes":
    """Draw one row per encoder, the first on top.

    Parameters
    ----------
    table
        Columns `by`, ``mean`` and, where there are any, ``ci_low``, ``ci_high`` and ``open`` (the
        dot is drawn open, and its number is not written).
    names
        Values of `by`, one per row; as they come where it is not given. What the table lacks is an
        empty row, so that panels side by side agree.
    write
        How a value of `by` is printed.
    marked
        Values of `by` that get an asterisk.
    zero
        Where a grey line stands: nothing found, or chance.
    signed
        Write numbers with their sign, as of differences.
    joined
        Draw a line from the open to the filled dot of a row.
    """
    names = list(dict.fromkeys(table[by])) if names is None else list(names)
    table = table[table[by].isin(names)]
    is_open = table["open"].to_numpy(bool) if "open" in table else np.zeros(len(table), bool)
    two = is_open.any() and not is_open.all() and not joined
    for place, name in enumerate(names):
        colour = plots.colour(str(name))
        ax.axhline(place, color="0.92", linewidth=0.5, zorder=0)
        own = table[by].to_numpy() == name
        if joined and own.sum() > 1:
            ax.plot(table.loc[own, "mean"], [place] * own.sum(), color=colour, linewidth=1.0,
                    alpha=0.5, zorder=1)
        for open_dot in (True, False):
            for row in table[own & (is_open == open_dot)].itertuples():
                y = place + (0.14 if open_dot else -0.14) * two
                ends = [getattr(row, end, np.nan) for end in ("ci_low", "ci_high")]
                error = np.nan_to_num([[row.mean - ends[0]], [ends[1] - row.mean]])
                ax.errorbar(row.mean, y, xerr=np.maximum(error, 0), fmt="o", markersize=3.4,
                            capsize=1.5, linewidth=0.9, color=colour, zorder=3,
                            markerfacecolor="white" if open_dot else colour)
                if not open_dot and np.isfinite(row.mean):
                    number = phrases.number(row.mean, digits)
                    ax.text(1.02, place, f"+{number}" if signed and row.mean > 0 else number,
                            transform=ax.get_yaxis_transform(), va="center", fontsize=6)
    if zero is not None:
        ax.axvline(zero, color="0.7", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(names)), _written(names, write, marked))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(xlabel)
    ax.locator_params(axis="x", nbins=5)
    return ax


def _written(names: Iterable, write: Callable[[str], str], marked: Sequence[str]) -> list[str]:
    return [write(str(name)) + (" *" if name in marked else "") for name in names]


def matrix(table: "pd.DataFrame", ax: "Axes", *, label: str, vmin: float | None = None,
           vmax: float = 1.0, digits: int = 2, cmap: str = "RdBu_r",
           write: Callable[[str], str] = plots.label, marked: Sequence[str] = ()) -> "Axes":
    """Draw a table as a heat map with its numbers; cells without one stay blank.

    Parameters
    ----------
    table
        One row per encoder, one column per program (or whatever it was scored on).
    label
        Of the colour bar.
    vmin, vmax
        Ends of the scale; without `vmin` it is symmetric about 0.
    write, marked
        See `rows`.
    """
    import seaborn as sns

    low = -vmax if vmin is None else vmin
    # Rounded here: a small negative number is written as 0.00, without a sign.
    sns.heatmap(table.astype(float).round(digits) + 0.0, ax=ax, cmap=cmap, vmin=low, vmax=vmax,
                annot=True, fmt=f".{digits}f", annot_kws={"fontsize": plots.SMALLEST_PT},
                linewidths=0.4, rasterized=True,
                cbar_kws={"label": label, "shrink": 0.8, "pad": 0.02})
    ax.set_yticks(np.arange(len(table)) + 0.5, _written(table.index, write, marked), rotation=0)
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, [
        str(name).replace("_", " ") for name in table.columns], rotation=40, ha="right",
        rotation_mode="anchor")
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    return ax
