"""Judgement of a system by all that this package measures, so that systems can be compared."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.expression import spatial
from mvhlib.expression.scores import pearson
from mvhlib.expression.structure.correlations import co_expression, varying
from mvhlib.expression.structure.gene_set_scores import LEAST_GENES, maps_with_names, score_sets
from mvhlib.expression.structure.regions import align, class_aurocs, localise
from mvhlib.expression.structure.summary import summarise

if TYPE_CHECKING:
    from mvhlib.features import Features

#: Columns of `judge_system`.
SYSTEM_COLUMNS = ("measure", "source", "mean", "ci_low", "ci_high", "n_units", "n_sections")


def judge_system(predictions: Mapping[str, Any], units: Mapping[str, str] | None, *,
                 sets: Mapping[str, Sequence[str]] | None = None,
                 signs: Mapping[str, float] | None = None,
                 labels: Mapping[str, pd.Series] | None = None,
                 looks: "Mapping[str, Features] | None" = None, positive: str = "",
                 groups: Mapping[str, str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Judge one system's predictions: genes, smoothness, gene sets, co-expression, places.

    Parameters
    ----------
    predictions
        Section -> AnnData with layers measured and predicted and obsm spatial.
    units
        Section -> patient or study; None: sections are the units, as in `summarise`.
    sets, signs
        Gene sets and their genes' signs, as in `score_sets`; sets with too few predicted genes are
        left out.
    labels, looks
        Section -> classes of its spots, and features of its tiles' colour; a section may lack both.
    positive
        The class that is looked for by `class_aurocs`.
    groups
        Section -> patient, of which the classifier of that class must not have seen one.
    seed
        Of the clusters.

    Returns
    -------
    DataFrame
        Columns `SYSTEM_COLUMNS`, one row per measure and source. Measures of the source
        ``predicted``: ``genes`` and ``gene_sets`` (mean Pearson r), ``oversmoothing`` (Moran's I of
        the prediction less that of the truth), ``co_expression`` (Mantel's r within a section);
        then ``ari``, ``nmi`` and ``auroc`` of each source (measured, predicted, colour) where there
        are classes.
    """
    rows = []
    for section, prediction in predictions.items():
        measured, predicted, genes, _ = maps_with_names(prediction)
        smooth = spatial.smoothing(measured, predicted, np.asarray(prediction.obsm["spatial"]),
                                   genes, n_permutations=0)
        own = {section: prediction}
        known = {name: each for name, each in (sets or {}).items()
                 if len(set(each) & set(varying(own))) >= LEAST_GENES}
        rows.append({
            "section": section, "source": "predicted",
            "genes": np.nanmean(pearson(measured, predicted)),
            "oversmoothing": smooth["oversmoothing"].mean(),
            "gene_sets": score_sets(own, known, signs=signs)["pcc"].mean() if known else np.nan,
            "co_expression": co_expression(own, n_permutations=0).mantel_r
            if len(varying(own)) >= 3 else np.nan})
    tables = [(pd.DataFrame(rows), ("genes", "gene_sets", "oversmoothing", "co_expression"))]
    if labels and set(labels) & set(predictions):
        sources, classes = align(predictions, labels, {"colour": looks} if looks else {})
        tables += [(localise(sources, classes, seed=seed), ("ari", "nmi")),
                   (class_aurocs(sources, classes, positive, groups=groups), ("auroc",))]
    found = pd.concat([summarise(table, measure, units) for table, measures in tables
                       for measure in measures], ignore_index=True)
    return found.rename(columns={"metric": "measure"})[list(SYSTEM_COLUMNS)]
