"""Measured, predicted and residual expression on the tissue, on one scale for all of a figure."""

from typing import TYPE_CHECKING

import numpy as np

from mvhlib import lattice, phrases, plots
from mvhlib.artifacts import InputError
from mvhlib.standardise import standardise

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes


def map_values(prediction: "AnnData", genes) -> "pd.DataFrame":
    """What `measured_predicted` draws, as a table: one row per spot and gene.

    Parameters
    ----------
    prediction
        Layers ``measured`` and ``predicted``, ``obsm["spatial"]``.

    Returns
    -------
    DataFrame
        gene, spot, x_px, y_px, measured and predicted as they are, both again in standard
        deviations from the section's mean (``_z``), and their difference, ``residual``.
    """
    import pandas as pd

    columns = [list(prediction.var_names).index(gene) for gene in genes]
    measured, predicted = (np.asarray(prediction.layers[layer][:, columns], float)
                           for layer in ("measured", "predicted"))
    left = residual(measured, predicted, standardised=True)
    z = [standardise(values) for values in (measured, predicted)]
    x, y = np.asarray(prediction.obsm["spatial"], float).T
    return pd.concat([pd.DataFrame({
        "gene": gene, "spot": list(prediction.obs_names), "x_px": x, "y_px": y,
        "measured": measured[:, k], "predicted": predicted[:, k], "measured_z": z[0][:, k],
        "predicted_z": z[1][:, k], "residual": left[:, k]})
        for k, gene in enumerate(genes)], ignore_index=True)


def residual(measured: np.ndarray, predicted: np.ndarray, *,
             standardised: bool = False) -> np.ndarray:
    """Measured less predicted, positive where the tissue expresses more than its image suggests.

    Parameters
    ----------
    measured, predicted
        `(T, G)`.
    standardised
        Bring both to mean 0 and standard deviation 1 per gene first. An offset between studies
        then does not colour the whole map; constant genes become 0.
    """
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    if measured.shape != predicted.shape:
        raise InputError("residual", "shape", f"measured {measured.shape}, predicted "
                         f"{predicted.shape}", "give the same spots and genes in one order")
    if standardised:
        measured, predicted = standardise(measured), standardise(predicted)
    return measured - predicted


def measured_predicted(adata: "AnnData", prediction: "AnnData", genes, axes, *, img: bool = False,
                       marked: str | None = None) -> np.ndarray:
    """Draw measured, predicted and residual maps, one row of axes per gene.

    Values are in standard deviations from the section's mean, so that measured and predicted of all
    rows share one colour bar, and residuals another; beside each row stands its Pearson r over the
    section's spots.

    Parameters
    ----------
    adata
        The section, for its thumbnail and spot size.
    prediction
        Its prediction; spots that it lacks are left out.
    genes
        One per row of `axes` `(genes, 3)`, or `(genes, 4)`, whose first column is the H&E alone.
    img
        Draw the H&E below the spots, which then let half of it through.
    marked
        Barcode of a spot to be ringed.
    """
    values = map_values(prediction, genes)
    common = adata[list(prediction.obs_names)]
    limits = [max(1e-9, float(np.nanquantile(np.abs(values[kinds]), 0.99)))
              for kinds in (["measured_z", "predicted_z"], ["residual"])]
    # Without tissue below them spots may be larger than they are: the map reads better.
    options = {"img": img, "colorbar": False, "size": 1.0 if img else _filling(common),
               "alpha": 0.6 if img else 1.0}
    for row, gene in zip(axes, genes, strict=True):
        part = values[values["gene"] == gene]
        for ax, kind in zip(row[-3:], ("measured_z", "predicted_z", "residual"), strict=True):
            limit = limits[kind == "residual"]
            plots.spatial_map(common, part[kind].to_numpy(), ax, **options, vmin=-limit, vmax=limit,
                              cmap="coolwarm" if kind == "residual" else "viridis",
                              title=kind.removesuffix("_z") if gene == genes[0] else "")
        if len(row) > 3:
            _tissue_alone(adata, row[0], like=row[1], title="H&E" if gene == genes[0] else "")
        for ax in row if marked is not None else ():
            place = part.loc[part["spot"] == marked, ["x_px", "y_px"]].to_numpy()[0]
            ax.scatter(*place * plots.image_scale(adata), s=45, facecolor="none",
                       edgecolor="black", linewidth=1.0)
        r = np.corrcoef(part["measured_z"], part["predicted_z"])[0, 1] if (
            part[["measured_z", "predicted_z"]].std().min() > 0) else np.nan
        row[0].text(-0.04, 0.5, f"{gene}\nr = {phrases.number(r)}", rotation=90, ha="right",
                    va="center", fontsize=7, transform=row[0].transAxes)
    _colour_bar(axes[:, -3:-1], "viridis", limits[0], "z")
    _colour_bar(axes[:, -1:], "coolwarm", limits[1], "z, measured - predicted")
    return axes


def _tissue_alone(adata: "AnnData", ax: "Axes", *, like: "Axes", title: str) -> None:
    """Draw a section's thumbnail, cut as the map beside it."""
    library = next(iter(adata.uns["spatial"].values()))
    ax.imshow(library["images"]["hires"], interpolation="bilinear")
    ax.set_xlim(like.get_xlim())
    ax.set_ylim(like.get_ylim())
    ax.set_title(title, fontsize=like.title.get_fontsize())
    ax.set_axis_off()


def _colour_bar(axes: np.ndarray, cmap: str, limit: float, name: str) -> None:
    """One colour bar below the columns of `axes`, symmetric about 0."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    drawn = ScalarMappable(Normalize(-limit, limit), cmap)
    axes.flat[0].figure.colorbar(drawn, ax=list(axes.flat), location="bottom", label=name,
                                 shrink=0.5 if axes.shape[1] > 1 else 0.8, aspect=25, pad=0.02)


def _filling(adata: "AnnData") -> float:
    """Size at which spots all but touch, relative to their own."""
    places = np.asarray(adata.obsm["spatial"], float)
    pitch = lattice.pitch(places)
    library = next(iter(adata.uns["spatial"].values()))
    return max(1.0, 0.9 * pitch / float(library["scalefactors"]["spot_diameter_fullres"]))
