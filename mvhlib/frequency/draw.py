"""Curves of many encoders in one axis: colour says the family, the line what was done to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from mvhlib import plots
from mvhlib.frequency.layers import PUBLISHED_MIN, spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: Columns that say whose a curve is; state is ``untrained``, ``trained`` or ``fixed``.
WHOSE = ("encoder", "preset", "state")
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
