"""Figures of retrieval: the prototypes' hits, maps of their classes, and a UMAP."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import plots
from mvhlib.downstream.retrieval.classes import Fold, Prototypes, folds, level_of
from mvhlib.expression.site import Rows

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

RIGHT, WRONG, QUERY = "#009E73", "#D55E00", "#000000"


def hits(rows: Rows, fold: Fold, n_hits: int = 5, scale: bool = False) -> pd.DataFrame:
    """The tiles that each class's prototype finds in a fold's query tiles.

    Returns
    -------
    DataFrame
        ``prototype, place, section, tile, patient, label, hit``; place 0 is the gallery tile
        nearest to the prototype, which stands for it in a picture.
    """
    truth = rows.about["label"].to_numpy(str)
    fitted = Prototypes(scale).fit(rows.X[fold.gallery], truth[fold.gallery])
    found = []
    for side, first, n in ((fold.gallery, 0, 1), (fold.query, 1, n_hits)):
        about, distances = rows.about[side], fitted.distances(rows.X[side])
        for k, name in enumerate(fitted.classes_):
            near = np.argsort(distances[:, k], kind="stable")
            if first == 0:  # tiles of the class itself, not all that are near its mean
                near = near[truth[side][near] == name]
            chosen = about.iloc[near[:n]]
            found.append(pd.DataFrame({
                "prototype": name, "place": np.arange(first, first + len(chosen)),
                "section": chosen["section"].to_numpy(), "tile": chosen.index.to_numpy(),
                "patient": chosen["patient"].to_numpy(), "label": chosen["label"].to_numpy(),
                "hit": (chosen["label"] == name).to_numpy()}))
    return pd.concat(found).sort_values(["prototype", "place"], ignore_index=True)


def median_fold(rows: Rows, values: pd.DataFrame, encoder: str, split: str, seed: int = 0) -> Fold:
    """The fold whose query is neither the best nor the worst, by its prototypes' ``map``.

    Queries of one class have no ``map`` and are not chosen, unless all are such.
    """
    part = values[(values["encoder"] == encoder) & (values["split"] == split)
                  & (values["classifier"] == "prototypes")]
    part = part[part["metric"] == ("map" if (part["metric"] == "map").any() else "acc@1")]
    plan = {fold.name: fold for fold in folds(rows.about, split, seed)}
    if split == "random":
        return plan[min(plan)]
    mean = part.groupby(level_of(split))["value"].mean().sort_values(kind="stable")
    return plan[str(mean.index[(len(mean) - 1) // 2])]


def tile_images(folder: str | Path, table: pd.DataFrame) -> list[np.ndarray]:
    """The tile of each row of `hits`; of a labelled image its middle tile."""
    from mvhlib.tiles import store

    tiles = {name: store.read_tiles(Path(folder) / f"{name}.h5")
             for name in table["section"].unique()}
    pictures = []
    for section, tile in zip(table["section"], table["tile"], strict=True):
        own = tiles[section]
        names = list(own.barcodes or [])
        pictures.append(own.img[names.index(tile) if tile in names else len(own) // 2])
    return pictures


def draw_hits(table: pd.DataFrame, images: Sequence[np.ndarray], ax: "Axes") -> "Axes":
    """Draw one row per prototype: the tile that stands for it, then its hits in falling likeness.

    Parameters
    ----------
    table
        From `hits`.
    images
        One tile per row of it, `(S, S, 3)` each.
    """
    from matplotlib.patches import Rectangle

    names = list(dict.fromkeys(table["prototype"]))
    for (_, row), image in zip(table.iterrows(), images, strict=True):
        left = row["place"] + (0.3 if row["place"] else 0)
        top = 1.2 * names.index(row["prototype"])
        ax.imshow(image, extent=(left, left + 0.94, top + 0.94, top))
        tint = QUERY if row["place"] == 0 else RIGHT if row["hit"] else WRONG
        ax.add_patch(Rectangle((left, top), 0.94, 0.94, fill=False, edgecolor=tint, linewidth=1.6,
                               linestyle="-" if row["hit"] else "--"))
        ax.text(left + 0.47, top + 0.98, row["label"], ha="center", va="top", fontsize=6,
                color=tint)
    ax.set_xlim(-0.05, table["place"].max() + 1.3)
    ax.set_ylim(1.2 * len(names), -0.05)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def draw_map(adata: "AnnData", rows: Rows, fold: Fold, axes: Sequence["Axes"]) -> pd.DataFrame:
    """Draw the class of each spot of one section, and that of its nearest prototype, on white.

    Parameters
    ----------
    adata
        A section whose spots are among the fold's queries.
    axes
        Two.

    Returns
    -------
    DataFrame
        ``spot, x_px, y_px, label, nearest``, what is drawn.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D

    truth = rows.about["label"].to_numpy(str)
    fitted = Prototypes().fit(rows.X[fold.gallery], truth[fold.gallery])
    section = str(adata.obs["section"].iloc[0])
    own = fold.query & (rows.about["section"] == section).to_numpy()
    spots = list(rows.about.index[own])
    shown = adata[spots]
    nearest = fitted.predict(rows.X[own])
    colours = plots.categorical_colours(fitted.classes_)
    for ax, values, title in zip(axes, (truth[own], nearest), ("class", "nearest prototype"),
                                 strict=True):
        present = [name for name in fitted.classes_ if name in set(values)]
        plots.spatial_map(shown, pd.Categorical(values, categories=present), ax, title=title,
                          palette=ListedColormap([colours[name] for name in present]))
        ax.get_legend().remove()  # each knows its own classes only; one legend names all
    marks = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colours[name], label=name)
             for name in fitted.classes_]
    axes[-1].legend(handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5))
    x, y = np.asarray(shown.obsm["spatial"], float).T
    return pd.DataFrame({"spot": spots, "x_px": x, "y_px": y, "label": truth[own],
                         "nearest": nearest})


#: Points that a UMAP needs; its layout cannot begin from fewer.
LEAST_UMAP = 10


def umap(rows: Rows, seed: int = 0, max_rows: int = 2000) -> pd.DataFrame:
    """Two dimensions in which tiles that are neighbours by cosine stay neighbours.

    UMAP (McInnes et al., arXiv 1802.03426) by scanpy, 15 neighbours. Neighbourhoods can be read
    from it; distances between groups, their sizes and the gaps between them mean little.

    Parameters
    ----------
    max_rows
        Tiles drawn at most, chosen at random.

    Returns
    -------
    DataFrame
        ``section, study, patient, label, umap1, umap2``.
    """
    import anndata
    import scanpy as sc

    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows.X))[:max_rows])
    centred = (rows.X - rows.X.mean(axis=0))[chosen].astype(np.float32)
    adata = anndata.AnnData(centred)
    sc.pp.neighbors(adata, n_neighbors=min(15, len(chosen) - 1), use_rep="X", metric="cosine",
                    random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    table = rows.about[["section", "study", "patient", "label"]].iloc[chosen].reset_index(drop=True)
    return table.assign(umap1=adata.obsm["X_umap"][:, 0], umap2=adata.obsm["X_umap"][:, 1])
