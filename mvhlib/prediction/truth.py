"""Comparison of predictions with measured expression."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, cohort, phrases
from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import normalize
from mvhlib.expression.scores import dense, section_scores

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def synthetic_slide(folder: Path, seed: int = 0, **options: Any
                    ) -> tuple[Path, dict[str, "AnnData"]]:
    """Draw a synthetic slide of a study that no cohort holds, with what was measured on it.

    Parameters
    ----------
    folder
        Gets the section; in ``images/`` of it stand the slide, ``slides.csv`` with its scale, and
        ``<slide>.spots.h5ad``, which says where it was measured and not what.
    options
        Of `mvhlib.cohort.synthetic.make_cohort`, where they differ from one section.

    Returns
    -------
    Path, dict
        The folder of slides; slide -> its AnnData, with ``layers["counts"]``.
    """
    one = {"n_studies": 1, "patients_per_study": 1, "sections_per_patient": 1}
    unseen = cohort.read("synthetic", folder, seed=seed, role="prediction", **one | options)
    where = folder / "images"
    for section in unseen:
        with artifacts.atomic(where / f"{section.name}.spots.h5ad") as path:
            section.adata[:, :0].write_h5ad(path)
    artifacts.write_csv(where / "slides.csv", unseen.manifest[["section", "mpp"]].rename(
        columns={"section": "slide"}))
    return where, {section.name: section.adata for section in unseen}


def against(predicted: "AnnData", measured: "AnnData") -> pd.DataFrame:
    """Observed and expected correlation of every gene.

    Parameters
    ----------
    predicted
        Of a slide, as `mvhlib.prediction.outputs.to_adata` makes it, at the measured spots.
    measured
        ``layers["counts"]`` of the same spots, by name; it may hold more spots and genes.

    Returns
    -------
    DataFrame
        gene, expected_r, ci_low, ci_high, r, inside (whether the interval holds r; None where
        either is not known), n_spots.

    Raises
    ------
    InputError
        If no spot or no gene is in both.
    """
    spots = [name for name in predicted.obs_names if name in set(measured.obs_names)]
    genes = [name for name in predicted.var_names if name in set(measured.var_names)]
    if not spots or not genes:
        raise InputError("predictions", "spots, genes", "have none in common with what was "
                         "measured", "predict at the measured spots: <slide>.spots.h5ad")
    counts = measured[spots].layers["counts"]
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    how = predicted.uns["mvh"]["normalize"]
    own = dense(counts[:, measured.var_names.get_indexer(genes)])
    table = section_scores(normalize(own, how, library), dense(predicted[spots, genes].X), genes)
    table = table.set_index("gene").join(predicted.var[["expected_r", "ci_low", "ci_high"]])
    table["r"] = table.pop("pcc")
    known = table[["r", "ci_low", "ci_high"]].notna().all(axis=1)
    inside = table["r"].between(table["ci_low"], table["ci_high"])
    table["inside"] = inside.astype(object).where(known, None)
    return table.reset_index()[["gene", "expected_r", "ci_low", "ci_high", "r", "inside",
                                "n_spots"]]


def sentence(scored: pd.DataFrame) -> str:
    """Summarise a table of `against`: the observed correlations and the expected ones."""
    found = (f"a mean Pearson r of {phrases.number(scored['r'].mean())} over "
             f"{phrases.count(int(scored['r'].notna().sum()), 'gene')}")
    if scored["expected_r"].notna().any():
        found += f", where {phrases.number(scored['expected_r'].mean())} was expected"
    known = scored["inside"].dropna()
    if known.empty:
        return f"{found}; no interval had been stated"
    return (f"{found}; {int(known.astype(bool).sum())} of the {len(known)} genes with a stated "
            f"95 % interval lie within it")


def draw(table: pd.DataFrame, ax: "Axes") -> "Axes":
    """Draw observed against expected correlation, with the stated interval."""
    shown = table.dropna(subset=["expected_r", "r"])
    bars = shown.dropna(subset=["ci_low"])
    ax.vlines(bars["expected_r"], bars["ci_low"], bars["ci_high"], color="0.85", linewidth=0.8,
              zorder=0)
    inside = shown["inside"].map({True: "inside its interval", False: "outside"}).fillna(
        "no interval")
    for label, colour in (("inside its interval", "#0072B2"), ("outside", "#D55E00"),
                          ("no interval", "0.6")):
        rows = shown[inside == label]
        if rows.empty:
            continue
        ax.plot(rows["expected_r"], rows["r"], "o", markersize=3, color=colour, label=label)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.6)
    ax.set(xlabel="expected Pearson r", ylabel="found Pearson r")
    return ax
