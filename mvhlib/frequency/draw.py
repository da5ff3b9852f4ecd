"""Curves of many encoders in one axis: colour shows the family, line style the training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mvhlib import plots
from mvhlib.frequency import theory
from mvhlib.frequency.layers import PUBLISHED_MIN, spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: Columns that say whose a curve is; state is ``untrained``, ``trained`` or ``fixed``.
WHOSE = ("encoder", "preset", "state")
#: What passes waves alike to within this share passes all of them.
FLAT = 0.05
#: Families of poles whose curve is drawn, and the backbone whose colour each has.
_FAMILY_COLOURS = {"real": "mvhybrid", "equal": "hydrahybrid", "s4d_lin": "vit12",
                   "random": "handmade"}
#: Marks of presets: filled as published.
_PRESET_MARKS = ("o", "s", "D")
#: Lines: what training did is solid.
_STYLES = {"untrained": "--", "trained": "-", "fixed": "-"}
#: Marks of the second and further trained encoders of one family.
_MARKS = ("", "o", "s", "D", "^", "v")


def _style(preset: str, state: str) -> str:
    return ":" if preset == "corrected" else _STYLES[state]


def _marks(table: "DataFrame") -> dict[str, str]:
    seen: dict[str, list[str]] = {}
    for encoder in table.loc[table["state"] == "trained", "encoder"].unique():
        seen.setdefault(plots.family(encoder), []).append(encoder)
    return {encoder: _MARKS[k % len(_MARKS)] for names in seen.values()
            for k, encoder in enumerate(names)}


def curves(table: "DataFrame", ax: "Axes", *, x: str, y: str = "mean") -> "Axes":
    """Draw one line per encoder, preset and state.

    Parameters
    ----------
    table
        Columns of `WHOSE`, `x`, `y`; what is not untrained gets a band from ci_low to ci_high
        where it has them.
    """
    marks = _marks(table)
    for (encoder, preset, state), rows in table.groupby(list(WHOSE), sort=False):
        color = plots.colour(encoder)
        ax.plot(rows[x], rows[y], _style(preset, state), color=color, markersize=3,
                marker=marks.get(encoder, ""), linewidth=1.0)
        if "ci_low" in rows and state != "untrained":
            ax.fill_between(rows[x], rows["ci_low"], rows["ci_high"], color=color, alpha=0.12,
                            linewidth=0)
    return ax


def legend(table: "DataFrame", fig: "Figure") -> None:
    """Put a legend for `curves` below the figure: families by colour, states by line."""
    from matplotlib.lines import Line2D

    families = dict.fromkeys(plots.family(encoder) for encoder in table["encoder"])
    handles = [Line2D([], [], color=plots.colour(name), label=plots.label(name))
               for name in families]
    drawn = {_style(preset, state): "corrected, untrained" if preset == "corrected" else state
             for preset, state in table[["preset", "state"]].drop_duplicates().itertuples(
                 index=False, name=None) if state != "fixed"}
    handles += [Line2D([], [], color="0.3", linestyle=style, label=text)
                for style, text in drawn.items()]
    handles += [Line2D([], [], color=plots.colour(encoder), marker=mark, markersize=3,
                       label=plots.label(encoder))
                for encoder, mark in _marks(table).items() if mark]
    fig.legend(handles=handles, loc="outside lower center",
               ncols=len(handles) if len(handles) < 8 else -(-len(handles) // 2))


def family_colours() -> dict[str, str]:
    """Colour of each family of poles, by its printed name."""
    return {theory.FAMILIES[name]: plots.colour(backbone)
            for name, backbone in _FAMILY_COLOURS.items()}


def passes(halves: "DataFrame", ax: "Axes", *, n_states: int = 16) -> "DataFrame":
    """Draw the share of energy that passes above pi/4 over the step, and where each layer stands.

    Parameters
    ----------
    halves
        Columns backbone, preset, direction, delta_median, energy_share; a point per row, open for
        all but the first preset.
    n_states
        Modes of the families of poles whose curves are drawn.

    Returns
    -------
    DataFrame
        The curves: columns family, delta, energy_share.
    """
    import pandas as pd

    steps = np.geomspace(1e-3, 1, 80)
    curves_of = {theory.FAMILIES[name]: theory.mean_energy_share(
        np.broadcast_to(poles, (len(steps), len(poles))), steps)
        for name, poles in theory.families(n_states).items()}
    for name, share in curves_of.items():
        ax.plot(steps, share, color=family_colours()[name], linewidth=1.0, label=f"poles {name}")
    presets = list(dict.fromkeys(halves["preset"]))
    backbones = list(dict.fromkeys(halves["backbone"]))
    for (backbone, preset), rows in halves.groupby(["backbone", "preset"], sort=False):
        number, color = presets.index(preset), plots.colour(backbone)
        # Smaller on larger: layers that agree stay visible.
        ax.plot(rows["delta_median"], rows["energy_share"], _PRESET_MARKS[number % 3], color=color,
                markersize=max(3.5, 8 - 1.5 * backbones.index(backbone)) + 2 * (number > 0),
                markerfacecolor=color if number == 0 else "none", linestyle="",
                markeredgewidth=0.9, label=f"{plots.label(backbone)}, {preset}")
    ax.axhline(0.75, color="0.7", linewidth=0.6, linestyle=":", zorder=0)
    ax.annotate("white noise", (steps[0], 0.75), xytext=(2, 2), textcoords="offset points",
                fontsize=6, color="0.4")
    ax.set(xscale="log", xlabel="median step delta [time per token]", ylim=(0, 0.9),
           ylabel="share of energy above pi/4 rad per token")
    return pd.concat([pd.DataFrame({"family": name, "delta": steps, "energy_share": share})
                      for name, share in curves_of.items()], ignore_index=True)


def tilt(table: "DataFrame", ax: "Axes", panels: Sequence[str]) -> "Axes":
    """Draw the gain for the fastest wave over that for the mean of all tokens, as numbers.

    Parameters
    ----------
    table
        Columns of `WHOSE`, panel and fastest_over_mean; cells that a model has not stay white.
    panels
        Columns of the drawing, in their order.
    """
    wide = table.pivot(index=list(WHOSE), columns="panel", values="fastest_over_mean")
    wide = wide.reindex(index=table[list(WHOSE)].drop_duplicates().itertuples(
        index=False, name=None), columns=list(panels))
    decades = np.log10(wide.to_numpy(float))
    plots.heatmap(np.ma.masked_invalid(decades), ax, vmax=1.0, cmap="RdBu_r",
                  label="log10 of the number")
    for (row, column), value in np.ndenumerate(wide.to_numpy(float)):
        if np.isfinite(value):
            color = "white" if abs(np.log10(value)) > 0.7 else "black"
            ax.text(column, row, f"{value:.2g}" if value < 0.1 else f"{value:.2f}", ha="center",
                    va="center", fontsize=6, color=color)
    ax.set_xticks(range(wide.shape[1]), [name.replace(" ", "\n", 1) for name in wide.columns])
    ax.set_yticks(range(len(wide)), [f"{plots.label(encoder)}, {preset}, {state}"
                                     for encoder, preset, state in wide.index])
    ax.set_aspect("auto")
    return ax


def before_after(bins: "DataFrame", edges: dict[str, ArrayLike], density: "DataFrame",
                 axes: "Sequence[Axes]") -> None:
    """Draw one encoder's spectra before and after training, and what its layers pass.

    Parameters
    ----------
    bins
        `histogram_table` of both states, with the column state.
    edges
        Borders of its bins, for ``"a"`` and ``"delta_a"``.
    density
        Columns of `WHOSE`, theta and density.
    axes
        Three: A, delta times A, density.
    """
    name = bins["encoder"].iloc[0]
    for of, ax in zip(edges, axes, strict=False):
        for state, color in (("trained", plots.colour(name)), ("untrained", "black")):
            rows = bins[(bins["of"] == of) & (bins["state"] == state)]
            spectrum(rows, edges[of], ax, color=color, filled=state == "trained",
                     linestyle=_STYLES[state])
        ax.axvline(-PUBLISHED_MIN, color="0.4", linestyle=":", linewidth=0.8)
    axes[0].set(xlabel="-A  [per unit of time]", xticks=[1, 4, 7, 10, 13, 16],
                ylabel=f"{plots.label(name)}\nshare of modes")
    axes[1].set(xlabel="-delta A  [per token]", xscale="log")
    curves(density, axes[2], x="theta", y="density")
    axes[2].axhline(1, color="0.8", linewidth=0.6, zorder=0)
    axes[2].set(xscale="log", yscale="log", xlabel="theta [rad per token]",
                ylabel="energy density, white = 1")
    low, high = axes[2].get_ylim()
    axes[2].set_ylim(min(0.1, low), max(10, high))  # a decade each way: small changes look small


def draw_slow_and_fast(over: "DataFrame", inside: "DataFrame", axes: "Sequence[Axes]",
                       mpp: float = 1.0) -> None:
    """Draw the two tables of `mvhlib.frequency.tissue.slow_and_fast`, means over units.

    Parameters
    ----------
    over
        Columns of, mean, ci_low, ci_high of Moran's I; drawn from high to low.
    inside
        Columns of, low, high, mean: variance explained by each band.
    axes
        Two.
    mpp
        Scale of the tiles [um/px]; bands are written as wavelengths.
    """
    order = list(over.sort_values("mean", kind="stable")["of"])
    over = over.set_index("of").loc[order]
    hues = ["#D55E00" if "border" in name else "0.35" for name in order]
    axes[0].barh(range(len(order)), over["mean"], color=hues, alpha=0.8)
    for y, row in enumerate(over.itertuples()):
        axes[0].plot([row.ci_low, row.ci_high], [y, y], color="black", linewidth=0.8)
    axes[0].axvline(0, color="0.6", linewidth=0.6)
    if len(order) < 4:  # a lone bar would fill the axis
        axes[0].set_ylim(-2, len(order) + 1)
    axes[0].set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    axes[0].set_xlabel("Moran's I over the spots")
    table = inside.pivot(index="of", columns=["low", "high"], values="mean").loc[order[::-1]]
    image = axes[1].imshow(table, cmap="viridis", vmin=0, aspect="auto", rasterized=True)
    axes[1].set_yticks(range(len(order)), [name.replace("_", " ") for name in order[::-1]])
    axes[1].set_xticks(range(table.shape[1]), [
        "mean" if high == 0 else f"{mpp / high:.3g}-\n{mpp / low:.3g}" for low, high in table])
    axes[1].set_xlabel("wavelength in the tile [um]")
    axes[1].figure.colorbar(image, ax=axes[1], shrink=0.8, label="variance explained")
