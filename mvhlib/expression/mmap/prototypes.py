"""Prototypes of a slide: their number, the selection for each spot, their figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The authors' number of prototypes: a fifth of the spots, between these.
FEWEST, MOST = 32, 80


def n_prototypes(n_spots: int, asked: str | int = "rule", where: str = "slide") -> int:
    """Prototypes K of a slide: a number, or the authors' rule ``min(max(n // 5, 32), 80)``.

    The rule never gives more than there are spots.

    Raises
    ------
    InputError
        If a number is asked for and the slide has fewer spots.
    """
    if asked == "rule":
        return min(max(n_spots // 5, FEWEST), MOST, n_spots)
    if not isinstance(asked, int) or asked < 1:
        raise InputError("mmap", "prototypes", f"is {asked!r}", "use 'rule', 'none' or a number")
    if asked > n_spots:
        raise InputError(where, "spots", f"are {n_spots}, fewer than {asked} prototypes",
                         "use fewer prototypes, or leave the slide out")
    return asked


def n_selected(k: int, asked: float) -> int:
    """Prototypes L that a spot attends to: below 1 a share of K (published: 0.5), else a number."""
    return max(1, int(asked * k)) if asked < 1 else min(k, int(asked))


def cluster(tokens: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Centres `(K, D)` of the tokens `(T, D)` of one slide by k-means, not trained afterwards."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        found = KMeans(k, n_init=1, random_state=seed).fit(np.asarray(tokens, dtype=np.float64))
    return found.cluster_centers_.astype(np.float32)


def cosine(tokens: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Cosine `(T, K)` of every token with every centre."""
    def unit(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    return unit(tokens) @ unit(centres).T


def select(tokens: np.ndarray, centres: np.ndarray, n: int) -> np.ndarray:
    """The `n` centres most similar to each token by cosine, the most similar first, `(T, n)`."""
    return np.argsort(-cosine(tokens, centres), axis=1, kind="stable")[:, :n]


@dataclass(frozen=True)
class Prototypes:
    """The prototypes of one slide, for tables and figures.

    Attributes
    ----------
    assignment
        Most similar prototype of each spot `(T,)`.
    nearest
        Spots most similar to each prototype, `(K, n)`.
    weight
        Mean attention that the slide's spots pay to each prototype, `(K,)`; 0 where none chose it.
    predicted
        Expression that the model predicts for each spot, `(T, G)`.
    genes
        Names of the columns.
    """

    assignment: np.ndarray = field(repr=False)
    nearest: np.ndarray = field(repr=False)
    weight: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    genes: list[str] = field(repr=False)

    @property
    def sizes(self) -> np.ndarray:
        """Spots of each prototype `(K,)`."""
        return np.bincount(self.assignment, minlength=len(self.nearest))

    @property
    def largest(self) -> np.ndarray:
        """Prototypes by falling number of spots."""
        return np.argsort(-self.sizes, kind="stable")

    def expression(self) -> pd.DataFrame:
        """Mean prediction over the spots of each prototype, one row per prototype and gene.

        Columns prototype, n_spots, gene, predicted, above: the difference from the slide's mean, in
        the units of the target, so that a gene whose prediction hardly varies stays near 0.
        Prototypes without spots are left out.
        """
        mean = self.predicted.mean(axis=0)
        rows = []
        for number in np.flatnonzero(self.sizes):
            own = self.predicted[self.assignment == number].mean(axis=0)
            rows.append(pd.DataFrame({"prototype": number, "n_spots": self.sizes[number],
                                      "gene": self.genes, "predicted": own, "above": own - mean}))
        return pd.concat(rows, ignore_index=True)

    def top_genes(self, n: int = 5) -> pd.DataFrame:
        """The `n` genes of each prototype predicted highest above the slide's mean, with rank."""
        table = self.expression().sort_values(["prototype", "above"], ascending=[True, False],
                                              kind="stable")
        table.insert(2, "rank", table.groupby("prototype").cumcount() + 1)
        return table[table["rank"] <= n].reset_index(drop=True)


def draw_map(shown: Prototypes, adata, prototypes: Sequence[int], ax: "Axes", *,
             img: bool = False) -> "Axes":
    """Draw where the named prototypes lie; the spots of all others are grey.

    Parameters
    ----------
    adata
        The section, rows in the order of the spots.
    """
    from matplotlib.colors import ListedColormap

    from mvhlib import plots

    names = [f"{number}" for number in prototypes]
    colours = plots.categorical_colours(names) | {"others": "0.85"}
    found = np.array([f"{number}" if number in set(prototypes) else "others"
                      for number in shown.assignment])
    # squidpy gives colours to categories in their sorted order.
    palette = ListedColormap([colours[name] for name in sorted(set(found))])
    plots.spatial_map(adata, found, ax, img=img, palette=palette, size=1.0)
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    return ax


def draw_tiles(shown: Prototypes, images: np.ndarray, prototypes: Sequence[int], ax: "Axes", *,
               n_genes: int = 3) -> "Axes":
    """Draw one row per prototype: its nearest tiles, its number of spots and its first genes.

    Parameters
    ----------
    images
        Tiles `(T, S, S, 3)` in the order of the spots.
    """
    from mvhlib import plots

    colours = plots.categorical_colours([f"{number}" for number in prototypes])
    n = shown.nearest.shape[1]
    plots.tile_grid(np.concatenate([images[shown.nearest[number]] for number in prototypes]), ax,
                    n_columns=n, gap_px=images.shape[1] // 16)
    step = images.shape[1] + images.shape[1] // 16
    genes = shown.top_genes(n_genes)
    for row, number in enumerate(prototypes):
        y = (row + 0.5) * step
        names = ", ".join(genes.loc[genes["prototype"] == number, "gene"])
        ax.scatter(-0.35 * step, y, s=45, color=colours[f"{number}"], clip_on=False)
        ax.text(n * step + 0.1 * step, y, f"{shown.sizes[number]} spots\n{names}", va="center",
                fontsize=6.5)
    ax.set_xlim(-0.7 * step, n * step)
    return ax


def draw_attention(shown: Prototypes, adata, prototypes: Sequence[int]
                   ) -> "tuple[Figure, pd.DataFrame]":
    """Draw where the named prototypes lie, and the attention that each prototype of a slide gets.

    Returns
    -------
    figure, table
        The table has a row per prototype: its share of the spots, and of their attention.
    """
    import matplotlib.pyplot as plt

    from mvhlib import plots

    share = pd.DataFrame({"prototype": range(len(shown.sizes)),
                          "spots": shown.sizes / len(shown.assignment), "attention": shown.weight})
    fig, (where, ax) = plt.subplots(1, 2, figsize=(plots.PAGE, 2.7))
    draw_map(shown, adata, prototypes, where)
    ax.scatter(share["spots"], share["attention"], s=9, color=plots.colour("mmap"))
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.6, zorder=0)
    ax.set_xlabel("share of the spots")
    ax.set_ylabel("share of the attention")
    return fig, share
