"""Regions of tissue: clusters against labels, and classes predicted from expression."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import spots, standardise, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression.structure.gene_set_scores import maps_with_names

if TYPE_CHECKING:
    from mvhlib.features import Features

#: Principal components that clusters are sought in.
COMPONENTS = 20

PLACE_COLUMNS = ("source", "section", "n_spots", "n_classes", "n_clusters", "ari", "nmi")
AUROC_COLUMNS = ("source", "section", "positive", "trained_on", "n_spots", "n_positive", "auroc")


def clusters(values: np.ndarray, n_clusters: int, *, components: int = COMPONENTS,
             seed: int = 0) -> np.ndarray:
    """Cluster the spots of one section: standardise, leading principal components, k-means.

    Parameters
    ----------
    values
        `(T, F)`: expression or image features.
    n_clusters
        How many.
    components
        Principal components at most.
    seed
        Of the starts of k-means (ten).

    Returns
    -------
    np.ndarray
        Cluster of each spot `(T,)`.

    Raises
    ------
    InputError
        On values that are not finite or do not vary, or more clusters than spots.
    """
    from sklearn.cluster import KMeans

    z = _standard(values)
    if n_clusters < 1 or n_clusters > len(z):
        raise InputError("clusters", "n_clusters", f"is {n_clusters} for {len(z)} spots",
                         "use fewer clusters")
    left, size, _ = np.linalg.svd(z, full_matrices=False)
    # The sign of a component is arbitrary; a fixed one gives the same clusters on every machine.
    largest = np.abs(left).argmax(axis=0)
    left = left * np.sign(left[largest, np.arange(left.shape[1])])
    k = min(components, left.shape[1])
    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(left[:, :k] * size[:k])


def _standard(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError("structure", "values", f"shape {values.shape} or not finite",
                         "give (spots, features) without NaN")
    scale = standardise.fit(values)
    if not scale.varies.any():
        raise InputError("structure", "values", "do not vary", "give expression or features")
    return scale(values)[:, scale.varies]


def localise(sources: Mapping[str, Mapping[str, np.ndarray]],
             labels: Mapping[str, Sequence[Any]], *, n_clusters: int | None = None,
             seed: int = 0) -> pd.DataFrame:
    """Measure how well clusters of each source agree with labels, section by section.

    Parameters
    ----------
    sources
        For instance ``measured`` (the reference above), ``predicted``, and ``colour`` (below; see
        `mvhlib.tiles.stain.colour_statistics`): each section -> `(T, F)`. A source may lack
        sections.
    labels
        Section -> one label per spot; spots without one (None, NaN, ``undetermined``) are
        clustered and not compared. Sections with fewer than two classes are left out.
    n_clusters
        None: as many as the section has classes.
    seed
        See `clusters`.

    Returns
    -------
    pd.DataFrame
        Columns `PLACE_COLUMNS`: adjusted Rand index (Hubert and Arabie 1985; 0 by chance) and
        normalised mutual information (arithmetic mean; above 0 by chance).

    Raises
    ------
    InputError
        On another number of labels than spots.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    found = []
    for source, sections in sources.items():
        for section, values in sections.items():
            if section not in labels:
                continue
            names, known = _classes(section, labels[section], len(values))
            n_classes = len(set(names[known]))
            if n_classes < 2:
                continue
            k = n_clusters or n_classes
            guess = clusters(values, k, seed=seed)[known]
            found.append({
                "source": source, "section": section, "n_spots": int(known.sum()),
                "n_classes": n_classes, "n_clusters": k,
                "ari": float(adjusted_rand_score(names[known], guess)),
                "nmi": float(normalized_mutual_info_score(names[known], guess))})
    return pd.DataFrame(found, columns=list(PLACE_COLUMNS))


def _classes(section: str, labels: Sequence[Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels as text, and a mask of those that name a class."""
    values = np.asarray(labels, dtype=object).ravel()
    if len(values) != n:
        raise InputError(section, "labels", f"are {len(values)} for {n} spots",
                         "give one label per spot, None where there is none")
    names = np.array(["" if pd.isna(value) else str(value) for value in values], dtype=str)
    return names, ~np.isin(names, spots.NO_CLASS)


def align(predictions: Mapping[str, Any], labels: Mapping[str, pd.Series],
          features: "Mapping[str, Mapping[str, Features]] | None" = None
          ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Bring truth, prediction, image features and labels to the same spots.

    Parameters
    ----------
    predictions
        As in `score_sets`; AnnData's ``obs_names``, or ``barcodes``, name the spots.
    labels
        Section -> series indexed by barcode; spots that it lacks have no label.
    features
        Name -> section -> `Features` (colour statistics, say); spots without a row in any of
        them are left out.

    Returns
    -------
    tuple of dict
        Sources ``measured``, ``predicted`` and those of `features`, each section -> `(T, F)`; and
        section -> label per spot, None where there is none.
    """
    from mvhlib.features import align as rows_of

    features = features or {}
    sources: dict[str, dict[str, np.ndarray]] = {"measured": {}, "predicted": {},
                                                 **{name: {} for name in features}}
    found = {}
    for section, prediction in predictions.items():
        measured, predicted, _, names = maps_with_names(prediction)
        known = np.isfinite(measured).all(axis=1) & np.isfinite(predicted).all(axis=1)
        here = [each[section] for each in features.values() if section in each]
        for each in here:
            known &= np.isin(names, each.barcodes)
        if not known.any():
            raise InputError(section, "barcodes", "of prediction and features have none in common",
                             "take both of the same section")
        kept = [name for name, keep in zip(names, known, strict=True) if keep]
        sources["measured"][section] = np.asarray(measured)[known]
        sources["predicted"][section] = np.asarray(predicted)[known]
        for name, each in features.items():
            if section in each:
                sources[name][section] = rows_of(each[section], kept)
        if section in labels:
            found[section] = spots.classes(section, kept, labels[section])
    return sources, found


def class_auroc(values: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[Any]],
                positive: str, *, source: str = "", train: Mapping[str, np.ndarray] | None = None,
                groups: Mapping[str, str] | None = None, penalty: float = 1.0) -> pd.DataFrame:
    """AUROC of one tissue class by a logistic regression that has not seen the section.

    Every section is standardised by itself. The regression weighs both kinds of spots alike, and
    within training every spot counts the same.

    Parameters
    ----------
    values
        Section -> `(T, F)`; each section with both kinds of spots is scored.
    labels
        Section -> label per spot; see `localise`. May name more sections than `values`.
    positive
        The class, for instance ``invasive cancer``.
    source
        Its name in the table.
    train
        Section -> `(T, F)` to learn from, with the same columns; None: `values`. Give measured
        expression here to ask whether predicted expression can stand in for it; sections
        without an image may serve.
    groups
        Section -> patient or study: all of the scored section's group are left out of training.
        None: the section alone.
    penalty
        Inverse strength ``C`` of the ridge penalty, on standardised columns.

    Returns
    -------
    pd.DataFrame
        Columns `AUROC_COLUMNS`, one row per scored section; no row for sections without both kinds
        of spots, NaN where nothing is left to learn from.

    Raises
    ------
    InputError
        If no section has the class, or training has other columns.
    """
    from sklearn.linear_model import LogisticRegression

    train = values if train is None else train
    known_names = {name for each in labels.values() for name in set(map(str, each))}
    if positive not in known_names:
        raise InputError("auroc", "positive", f"no spot is {positive!r}",
                         f"use one of {sorted(known_names - set(spots.NO_CLASS))[:8]}")

    def read(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes, known = _classes(name, labels[name], len(matrix))
        matrix = np.asarray(matrix, dtype=np.float64)
        return standardise.standardise(matrix)[known], classes[known] == positive

    learn = {name: read(name, matrix) for name, matrix in train.items() if name in labels}
    found = []
    for section, matrix in values.items():
        if section not in labels:
            continue
        x, y = read(section, matrix)
        if y.all() or not y.any():
            continue
        own = section if groups is None else groups[section]
        others = [name for name in learn if name != section
                  and (name if groups is None else groups[name]) != own]
        score, row = np.nan, {"source": source, "section": section, "positive": positive,
                              "trained_on": ",".join(others), "n_spots": len(y),
                              "n_positive": int(y.sum())}
        if others:
            X = np.concatenate([learn[name][0] for name in others])
            Y = np.concatenate([learn[name][1] for name in others])
            if X.shape[1] != x.shape[1]:
                raise InputError(section, "columns", f"are {x.shape[1]}, in training {X.shape[1]}",
                                 "give the same genes in one order")
            if Y.any() and not Y.all():
                model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
                score = statistics.auroc(model.fit(X, Y).decision_function(x), y)
        found.append(row | {"auroc": score})
    return pd.DataFrame(found, columns=list(AUROC_COLUMNS))


def class_aurocs(sources: Mapping[str, Mapping[str, np.ndarray]],
                 labels: Mapping[str, Sequence[Any]], positive: str, *,
                 groups: Mapping[str, str] | None = None) -> pd.DataFrame:
    """`class_auroc` of every source; the classifier of measured expression scores the predicted.

    No row where no section has the class.
    """
    known = {str(name) for each in labels.values() for name in set(each)}
    tables = [class_auroc(values, labels, positive, source=name, groups=groups,
                          train=sources["measured"] if name == "predicted" else None)
              for name, values in sources.items() if positive in known]
    return pd.concat(tables) if tables else pd.DataFrame(columns=list(AUROC_COLUMNS))
