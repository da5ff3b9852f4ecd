"""Figure of gene-gene correlations, measured and predicted, in named blocks of genes."""

from collections.abc import Mapping

import numpy as np

from mvhlib import plots
from mvhlib.expression.structure import CoExpression

#: Genes whose names fit beside a matrix half a page wide.
NAMED_GENES = 40


def order(together: CoExpression, programs: Mapping[str, str]) -> tuple[np.ndarray, list[str]]:
    """Return an order of the genes that groups those of one program.

    Parameters
    ----------
    together
        From `structure.co_expression`: its order is that of a clustering of the truth.
    programs
        Gene -> program; genes without one keep the clustering's order, after the others.

    Returns
    -------
    tuple
        Positions in `together.genes`, and the program of each; programs in the order in which the
        clustering has their middles.
    """
    own = np.array([str(programs.get(gene) or "") for gene in together.genes])
    middle = {name: np.median(np.flatnonzero(own == name)) if name else np.inf for name in set(own)}
    positions = np.array(sorted(range(len(own)), key=lambda k: (middle[own[k]], own[k], k)), int)
    return positions, list(own[positions])


def draw(together: CoExpression, programs: Mapping[str, str], axes) -> None:
    """Draw measured and predicted correlation in one order and on one scale.

    Blocks are programs, with lines between them; where none is known, genes are named as far as
    there is room.

    Parameters
    ----------
    axes
        Two.
    """
    positions, own = order(together, programs)
    starts = [k for k in range(len(own)) if k == 0 or own[k] != own[k - 1]]
    ends = [*starts[1:], len(own)]
    if any(own):
        ticks = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
        names = [own[start].replace("_", " ") or "other" for start in starts]
    else:
        ticks = range(len(own)) if len(own) <= NAMED_GENES else []
        names = [together.genes[k] for k in positions][:len(ticks)]
    for ax, side in zip(axes, ("measured", "predicted"), strict=True):
        drawn = ax.imshow(getattr(together, side)[np.ix_(positions, positions)], cmap="RdBu_r",
                          vmin=-1, vmax=1, interpolation="nearest", rasterized=True)
        ax.set_title(side)
        for edge in starts[1:] if any(own) else []:
            ax.axhline(edge - 0.5, color="0.4", linewidth=0.3)
            ax.axvline(edge - 0.5, color="0.4", linewidth=0.3)
        ax.set_xticks(ticks, names, rotation=90, fontsize=plots.SMALLEST_PT)
        ax.set_yticks(ticks, names if side == "measured" else [], fontsize=plots.SMALLEST_PT)
        ax.tick_params(length=0)
    axes[0].figure.colorbar(drawn, ax=list(axes), shrink=0.7, label="mean Pearson r")
