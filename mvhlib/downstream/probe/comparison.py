"""A probe under every split that the data allow, and the leak of the random split."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mvhlib import statistics
from mvhlib.artifacts import InputError, TooFew
from mvhlib.downstream.probe.classifiers import LogisticProbe, NearestNeighbours
from mvhlib.downstream.probe.scores import Scores, score
from mvhlib.downstream.probe.splits import folds

METRICS = {"balanced_accuracy": "balanced accuracy", "weighted_f1": "weighted F1",
           "auroc": "AUROC", "attention_auroc": "AUROC of attention"}
COLUMNS = ("dataset", "encoder", "classifier", "split", "metric", "unit", "n_units", "mean",
           "ci_low", "ci_high")

LEAK_COLUMNS = ("dataset", "encoder", "classifier", "metric", "grouped", "random", "leak",
                "ci_low", "ci_high", "n_units")


@dataclass(frozen=True)
class Result:
    """A classifier's predictions on unseen rows.

    Attributes
    ----------
    scores
        All repeats together.
    classes, truth
        Names; class of each row.
    probability
        `(repeats, n, K)`; NaN where a row is never tested.
    fold
        `(repeats, n)`.
    """

    scores: Scores
    classes: tuple[str, ...]
    truth: np.ndarray = field(repr=False)
    probability: np.ndarray = field(repr=False)
    fold: np.ndarray = field(repr=False)

    def table(self, *, dataset: str, encoder: str, classifier: str, split: str,
              unit: str = "patient", confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Rows of ``summary.csv``, columns `COLUMNS`."""
        rows = self.scores.intervals(confidence=confidence, seed=seed)
        return rows.assign(dataset=dataset, encoder=encoder, classifier=classifier, split=split,
                           unit=unit)[list(COLUMNS)]


def evaluate(X: np.ndarray, labels: Sequence[str], groups: Sequence[str], *,
             classifier: str = "logistic", split: str = "grouped", n_folds: int = 5,
             repeats: int = 1, seed: int = 0, fold: np.ndarray | None = None) -> Result:
    """Train and test a probe on every fold.

    Parameters
    ----------
    X, labels, groups
        Embedding `(n, D)`, class and patient of each row. Groups are held out together where the
        split says so, and are the units of the interval in any case.
    classifier
        ``logistic`` or ``knn``.
    split, n_folds
        As in `folds`.
    repeats
        Ways of folding; with few patients a score depends on who meets whom.
    fold
        Folds of one's own, `(n,)`, -1 for rows that are only trained on: a published partition.
        `split` then says how the inner folds are made.

    Raises
    ------
    InputError
        As `folds`; on embeddings that are not finite or do not fit the labels; on a class that a
        fold tests and does not train.
    """
    X, labels = np.asarray(X), np.asarray(labels, dtype=str)
    groups = np.asarray(groups, dtype=str)
    if X.ndim != 2 or len(X) != len(labels):
        raise InputError("probe", "embeddings", f"have shape {X.shape} for {len(labels)} labels",
                         "give one row per label")
    if not np.isfinite(X).all():
        raise InputError("probe", "embeddings", "hold NaN or infinity", "embed the images again")
    if classifier not in ("logistic", "knn"):
        raise InputError("probe", "classifier", f"{classifier!r} is not known",
                         "use logistic or knn")
    classes = np.unique(labels)
    all_folds, chances, total = [], [], None
    for repeat in range(repeats if fold is None else 1):
        cut = np.asarray(fold) if fold is not None else folds(
            labels, groups, split=split, n_folds=n_folds, seed=seed + repeat)
        found = np.full((len(X), len(classes)), np.nan)
        for k in np.unique(cut[cut >= 0]):
            train, test = cut != k, cut == k
            if set(labels[train]) != set(classes):
                raise TooFew("probe", "fold", f"{k} trains on "
                                 f"{np.unique(labels[train]).tolist()} of {classes.tolist()}",
                                 "give every class to both sides")
            model = (LogisticProbe(split=split, seed=seed + repeat) if classifier == "logistic"
                     else NearestNeighbours())
            model.fit(X[train], labels[train], groups[train])
            found[test] = model.predict_proba(X[test])
        tested = cut >= 0
        counted = score(labels[tested], found[tested], classes, groups[tested], seed=seed)
        total = counted if total is None else total + counted
        all_folds.append(cut)
        chances.append(found)
    return Result(total, tuple(classes), labels, np.stack(chances), np.stack(all_folds))


@dataclass(frozen=True)
class Comparison:
    """One embedding and one label under every split that the data allow.

    Attributes
    ----------
    table
        Rows of ``summary.csv``.
    leaks
        What the random split adds over the grouped one, with its interval: dataset, encoder,
        classifier, metric, grouped, random, leak, ci_low, ci_high, n_units.
    results
        (classifier, split) -> `Result`.
    left_out
        dataset, encoder, split, reason.
    """

    table: pd.DataFrame
    leaks: pd.DataFrame
    results: dict[tuple[str, str], Result] = field(repr=False)
    left_out: pd.DataFrame


def compare(X: np.ndarray, about: pd.DataFrame, *, dataset: str, encoder: str,
            label: str = "label", classifiers: Sequence[str] = ("logistic", "knn"),
            n_folds: int = 5, repeats: int = 1, seed: int = 0) -> Comparison:
    """Evaluate an embedding under every split that the data allow.

    Parameters
    ----------
    X, about
        Embedding `(n, D)`, and a frame of `n` rows: the column `label`, ``patient`` (empty where
        nobody says), and where known ``study`` and ``partition`` (train or test, as published).
    n_folds, repeats, seed
        As in `evaluate`.

    Notes
    -----
    A random split is left out where every row is of a patient of its own: it leaks nothing there,
    and is the grouped one.
    """
    labels = about[label].astype(str).to_numpy()
    patients = about["patient"].fillna("").astype(str).to_numpy()
    known = bool((patients != "").all())
    units, unit = (patients, "patient") if known else (np.arange(len(X)).astype(str), "image")
    plan = {"grouped": (patients, "grouped", None, "patient")}
    if "study" in about:
        plan["grouped_study"] = (about["study"].astype(str).to_numpy(), "grouped", None, "study")
    if len(np.unique(units)) < len(X) or not known:
        plan["random"] = (units, "random", None, unit)
    if "partition" in about:
        tested = np.where(about["partition"].astype(str) == "test", 0, -1)
        plan["given"] = (units, "grouped" if known else "random", tested, unit)
    tables, results, left_out = [], {}, []
    for name, (groups, split, fold, unit) in plan.items():
        try:
            if fold is None:
                folds(labels, groups, split=split, n_folds=n_folds, seed=seed, unit=unit)
        except InputError as reason:
            left_out.append((dataset, encoder, name, f"{reason.field} {reason.problem}"))
            continue
        for classifier in classifiers:
            try:
                found = evaluate(X, labels, groups, classifier=classifier, split=split, fold=fold,
                                 n_folds=n_folds, repeats=repeats, seed=seed)
            except TooFew as reason:
                left_out.append((dataset, encoder, f"{name}, {classifier}",
                                 f"{reason.field} {reason.problem}"))
                continue
            results[classifier, name] = found
            tables.append(found.table(dataset=dataset, encoder=encoder, classifier=classifier,
                                      split=name, unit=unit, seed=seed))
    leaks = [leak(results[classifier, "random"].scores, results[classifier, "grouped"].scores,
                  seed=seed).assign(dataset=dataset, encoder=encoder, classifier=classifier)
             for classifier in classifiers if {"random", "grouped"} <= {
                 split for made, split in results if made == classifier}]
    empty = pd.DataFrame(columns=[*LEAK_COLUMNS])
    return Comparison(
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS)),
        pd.concat(leaks, ignore_index=True)[list(LEAK_COLUMNS)] if leaks else empty,
        results, pd.DataFrame(left_out, columns=["dataset", "encoder", "split", "reason"]))


def leak(random: Scores, grouped: Scores, *, confidence: float = 0.95, n_boot: int = 999,
         seed: int = 0) -> pd.DataFrame:
    """Random less grouped, of the same patients: metric, grouped, random, leak, ci_low, ci_high.

    Both are computed on the same draws of patients, so that what makes a patient easy in both
    does not widen the interval.
    """
    n = len(random.confusion)
    if len(grouped.confusion) != n:
        raise InputError("probe", "units", f"are {n} and {len(grouped.confusion)}",
                         "compare splits of the same patients")
    whole = np.ones((1, n))
    high, low, rows = random.metrics(whole), grouped.metrics(whole), []
    for metric in high:
        found = statistics.spatial_block_bootstrap(
            float(high[metric][0] - low[metric][0]),
            lambda w, metric=metric: random.metrics(w[0])[metric] - grouped.metrics(w[0])[metric],
            [n], confidence, n_boot=n_boot, rng=np.random.default_rng(seed))
        rows.append({"metric": metric, "grouped": float(low[metric][0]),
                     "random": float(high[metric][0]), "leak": found.mean, "ci_low": found.low,
                     "ci_high": found.high, "n_units": random.n_units})
    return pd.DataFrame(rows)


def shared_patients(compared: Comparison, patients: Sequence[str]) -> int:
    """Patients who stand on both sides of a grouped fold: 0, or a fold leaks.

    Parameters
    ----------
    patients
        Of each row that was compared.
    """
    patients = np.asarray(patients, dtype=str)
    return sum(int((pd.Series(fold).groupby(patients).nunique() > 1).sum())
               for (_, split), result in compared.results.items() if split == "grouped"
               for fold in result.fold)
