"""Retrieval by class prototypes and nearest tiles: queries, galleries and ranking scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin

from mvhlib import standardise
from mvhlib.artifacts import InputError
from mvhlib.expression.site import Rows

if TYPE_CHECKING:
    from mvhlib.features import Features

SPLITS = ("patient", "study", "random")
CLASSIFIERS = ("prototypes", "prototypes_scaled", "nearest")

#: One value per patient: what `retrieve` and `cross_modal` return.
VALUE_COLUMNS = ("encoder", "classifier", "split", "metric", "study", "patient", "value", "chance")

#: Folds of the split ``random``.
N_RANDOM = 10

#: Query tiles that are held against the gallery at a time: bounds the memory of a search.
CHUNK_ROWS = 1024


def image_rows(features: "Mapping[str, Features]", labels: pd.DataFrame,
               label: str = "label") -> Rows:
    """One row per labelled image: the mean of its tiles' features.

    Parameters
    ----------
    features
        Image -> features of its tiles.
    labels
        Columns image, patient and `label`; study where there are several.
    label
        The column that is searched for.

    Raises
    ------
    InputError
        On missing columns, images that are named twice, or belong to nobody where others do,
        labels that miss images, and images that miss labels.
    """
    where = "labels.csv"
    missing = [name for name in ("image", "patient", label) if name not in labels.columns]
    if missing:
        raise InputError(where, "columns", f"lacks {missing}; it has {list(labels.columns)}",
                         "add them, or name the label that it has")
    names = labels["image"].astype(str)
    if names.duplicated().any():
        raise InputError(where, "image", f"{names[names.duplicated()].iloc[0]!r} occurs twice",
                         "give every image one row")
    for column in ("patient", label):
        if column == "patient" and labels[column].isna().all():
            continue  # nobody says whose the images are: nothing of theirs can be held out
        if labels[column].isna().any():
            raise InputError(where, column, f"is empty for {names[labels[column].isna()].iloc[0]}",
                             "fill it, or take the image out")
    for here, there, problem, fix in (
            (names, features, "have a label and no features", "embed them by 04_embed, or take "
             "them out of labels.csv"),
            (features, names, "have features and no label", "add them to labels.csv")):
        lone = sorted(set(here) - set(there))
        if lone:
            raise InputError(where, "image", f"{len(lone)} {problem}, for example {lone[:3]}", fix)
    X = np.stack([features[name].features.mean(axis=0, dtype=np.float64) for name in names])
    about = pd.DataFrame({
        "section": names.to_numpy(), "study": labels.get("study", "one"),
        "patient": labels["patient"].astype(str).where(labels["patient"].notna()),
        "label": labels[label].astype(str)})
    return Rows(X, about.set_index(names.to_numpy()))


def keep_classes(rows: Rows, split: str = "patient") -> tuple[Rows, list[str]]:
    """Leave out rows without a label, and classes that one patient (or study) alone has.

    A class that only one patient (or study) has cannot be retrieved from another. Fewer than two
    classes, or two patients, leave nothing to search: the rows are then empty.

    Returns
    -------
    tuple
        The rows that remain, and the names of the classes left out.
    """
    level = level_of(split)
    about = rows.about
    owners = about.groupby("label")[level].nunique()
    dropped = sorted(owners.index[owners < 2])
    kept = (about["label"].notna() & ~about["label"].isin(dropped)).to_numpy()
    if about["label"][kept].nunique() < 2:
        kept[:] = False
    return Rows(rows.X[kept], about[kept]), dropped


def level_of(split: str) -> str:
    if split not in SPLITS:
        raise InputError("retrieval", "split", f"{split!r} is not known", f"use {list(SPLITS)}")
    return "study" if split == "study" else "patient"


@dataclass(frozen=True)
class Fold:
    """Query and gallery masks `(T,)` of one fold."""

    name: str
    query: np.ndarray = field(repr=False)
    gallery: np.ndarray = field(repr=False)


def folds(about: pd.DataFrame, split: str, seed: int = 0) -> list[Fold]:
    """Deal rows into queries and galleries.

    Parameters
    ----------
    about
        Columns study, patient, one row per tile or image.
    split
        ``"patient"`` or ``"study"``: each is the query once, against all others; a patient who
        stands in the query's study and in another one is left out of the gallery. ``"random"``:
        rows in ten parts whoever they belong to, which has patients on both sides.
    seed
        Of the random split.

    Raises
    ------
    InputError
        With fewer than two patients (or studies).
    """
    level = level_of(split)
    if split == "random":
        number = np.random.default_rng(seed).permutation(np.arange(len(about)) % N_RANDOM)
        owner = np.array([f"{n:02d}" for n in number])
    else:
        owner = about[level].to_numpy(str)
    names = sorted(set(owner))
    if len(names) < 2:
        raise InputError("retrieval", level, f"is only {names}", "give two or more: "
                         "tiles are never searched among those of their own group")
    found = []
    for name in names:
        query = owner == name
        apart = ~query
        if split != "random":
            apart &= ~about["patient"].isin(set(about["patient"][query])).to_numpy()
        found.append(Fold(name, query, apart))
    return found


class Prototypes(ClassifierMixin, BaseEstimator):
    """Nearest class mean of centred, length-one embeddings.

    SimpleShot (Wang et al., arXiv 1911.04623): subtract the training mean, divide by the length,
    average per class, take the nearest mean by Euclidean distance. The means are not made
    length-one again, so a class that scatters widely has a short prototype.

    Parameters
    ----------
    scale
        Divide each feature by its training standard deviation first. SimpleShot does not, and for
        embeddings of a network it matters little; features in different units need it.

    Attributes
    ----------
    classes_
        Names `(K,)`, sorted.
    mean_, spread_
        Of the training features, `(D,)`.
    prototypes_
        `(K, D)`.
    """

    def __init__(self, scale: bool = False):
        self.scale = scale

    def fit(self, X: np.ndarray, y: Sequence) -> "Prototypes":
        """Fit.

        Raises
        ------
        InputError
            If rows and labels do not fit, or a feature is not finite.
        """
        X, y = np.asarray(X, dtype=np.float64), np.asarray(y)
        if X.ndim != 2 or len(X) != len(y) or len(X) == 0:
            raise InputError("Prototypes", "X", f"has shape {X.shape} for {len(y)} labels",
                             "give one row per label, and at least one")
        if not np.isfinite(X).all():
            raise InputError("Prototypes", "X", "holds NaN or infinity", "embed the tiles again")
        scale = standardise.fit(X)
        self.mean_ = scale.mean
        self.spread_ = scale.spread if self.scale else np.where(scale.varies, 1.0, np.inf)
        self.classes_, code = np.unique(y, return_inverse=True)
        z = self.transform(X)
        self.prototypes_ = np.stack([z[code == k].mean(axis=0) for k in range(len(self.classes_))])
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Centred embeddings of length one, `(T, D)`; one that equals the mean stays zero."""
        return unit_length((np.asarray(X, dtype=np.float64) - self.mean_) / self.spread_)

    def distances(self, X: np.ndarray) -> np.ndarray:
        """Squared Euclidean distance to each prototype, `(T, K)`."""
        z, p = self.transform(X), self.prototypes_
        return (z**2).sum(1)[:, None] - 2 * z @ p.T + (p**2).sum(1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Class of the nearest prototype, `(T,)`."""
        return self.classes_[self.distances(X).argmin(axis=1)]


def unit_length(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)


def ranked(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Relevance of the gallery in the order of falling similarity, `(Q, N)` bool.

    Ties keep the gallery's order.
    """
    order = np.argsort(-similarity, axis=1, kind="stable")
    return np.take_along_axis(np.asarray(relevant, bool), order, axis=1)


def accuracy_at_k(relevant: np.ndarray, k: int) -> np.ndarray:
    """Whether one of the `k` nearest is relevant, `(Q,)`; `relevant` is ranked."""
    return relevant[:, :k].any(axis=1).astype(np.float64)


def precision_at_k(relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of the `k` nearest that is relevant, `(Q,)`.

    Where fewer than `k` are relevant at all, that many nearest are looked at, so that 1 can be
    reached.
    """
    depth = np.minimum(k, np.maximum(relevant.sum(axis=1), 1))  # (Q,)
    found = np.cumsum(relevant, axis=1)[np.arange(len(relevant)), depth - 1]
    return found / depth


def average_precision(relevant: np.ndarray) -> np.ndarray:
    """Mean of the precision at the place of each relevant item, `(Q,)`; NaN where there is none."""
    place = np.arange(1, relevant.shape[1] + 1)
    total = relevant.sum(axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (np.cumsum(relevant, axis=1) / place * relevant).sum(axis=1) / np.where(
            total > 0, total, np.nan)


def chance_accuracy(n_relevant: np.ndarray, n: int, k: int) -> np.ndarray:
    """Expected `accuracy_at_k` of a random order: `1 - C(n - m, k) / C(n, k)`."""
    from scipy.special import gammaln

    left = n - np.asarray(n_relevant, dtype=np.float64)
    k = min(k, n)
    with np.errstate(invalid="ignore"):
        log_miss = (gammaln(left + 1) - gammaln(left - k + 1)
                    - gammaln(n + 1) + gammaln(n - k + 1))
    return np.where(left >= k, 1 - np.exp(log_miss), 1.0)


def chance_average_precision(n_relevant: np.ndarray, n: int) -> np.ndarray:
    """Expected `average_precision` of a random order of `n` with `m` relevant.

    A relevant item at place i has (i - 1)(m - 1)/(n - 1) relevant ones before it on average, so
    the mean over places is `H/n + (m - 1)/(n - 1) (1 - H/n)` with the harmonic number `H` of n.
    """
    if n == 1:
        return np.ones_like(np.asarray(n_relevant, dtype=np.float64))
    share = np.sum(1.0 / np.arange(1, n + 1)) / n
    return share + (np.asarray(n_relevant, dtype=np.float64) - 1) / (n - 1) * (1 - share)


def retrieve(rows: Rows, split: str, *, encoder: str = "", ks: Sequence[int] = (1, 5, 10),
             seed: int = 0) -> pd.DataFrame:
    """Search classes in patients that the prototypes, or the gallery, have not seen.

    Metrics, per patient:

    * ``acc@1`` of prototypes: the nearest prototype is the tile's own class. ``acc@k`` of
      ``nearest``: one of the k tiles most alike is of the same class. It rises with k by chance
      alone, and can be below chance, since neighbours of one patient fail together; ``map`` over
      the whole gallery has neither trouble.
    * ``precision@k`` and ``map`` of prototypes: a class's prototype ranks the patient's tiles. Only
      for patients with two classes or more, as one class is always found.

    Parameters
    ----------
    rows
        From `mvhlib.expression.site.rows` or `image_rows`, all labelled; see `keep_classes`.
    split
        See `folds`. Under ``random`` a patient's tiles are ranked by the distance that each has to
        the prototypes of its own fold.
    encoder
        Its slug in the table.
    ks
        Depths.
    seed
        Of the random split.

    Returns
    -------
    DataFrame
        Columns `VALUE_COLUMNS`: one row per classifier, metric and patient, each with the value
        that a random order would be expected to have.

    Raises
    ------
    InputError
        On rows without a label, one class only, or a class that one patient (or study) alone has.
    """
    about = rows.about.reset_index(drop=True)
    if about["label"].isna().any():
        raise InputError("retrieval", "labels", f"{int(about['label'].isna().sum())} of "
                         f"{len(about)} rows have none", "leave them out by keep_classes")
    truth = about["label"].to_numpy(str)
    classes = np.unique(truth)
    if len(classes) < 2:
        raise InputError("retrieval", "labels", f"are all {list(classes)}", "give two classes")
    plan = folds(about, split, seed)
    owners = about.groupby(truth)[level_of(split)].nunique()
    if (owners < 2).any():
        raise InputError("retrieval", "labels", f"class {owners.index[owners < 2][0]!r} is found "
                         f"in one {level_of(split)} only", "leave it out by keep_classes, or merge "
                         "it with another")
    values = []
    for name in CLASSIFIERS:
        per_tile: dict[str, np.ndarray] = {}
        if name == "nearest":
            per_tile = _nearest(rows.X, truth, plan, ks)
        else:
            distances = _distances(rows.X, truth, plan, classes, scale=name.endswith("scaled"))
            right = classes[distances.argmin(axis=1)] == truth
            per_tile["acc@1"] = np.stack([right, np.full(len(truth), 1 / len(classes))])
        for (study, patient), where in about.groupby(["study", "patient"]).groups.items():
            where = np.asarray(where)
            who = {"encoder": encoder, "classifier": name, "split": split, "study": study,
                   "patient": patient}
            for metric, (value, chance) in per_tile.items():
                values.append(who | {"metric": metric, "value": _by_class(value, truth, where),
                                     "chance": _by_class(chance, truth, where)})
            if name != "nearest" and len(np.unique(truth[where])) > 1:
                values += [who | row for row in _by_prototype(distances[where], truth[where],
                                                              classes, ks)]
    return pd.DataFrame(values)[list(VALUE_COLUMNS)]


def _by_class(values: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Mean over the classes of the chosen tiles of the mean over each."""
    return float(pd.Series(values[where]).groupby(truth[where]).mean().mean())


def _distances(X: np.ndarray, truth: np.ndarray, plan: Sequence[Fold], classes: np.ndarray, *,
               scale: bool) -> np.ndarray:
    """Distance of every tile to the prototypes of the fold that queries it, `(T, K)`."""
    out = np.empty((len(X), len(classes)))
    for fold in plan:
        fitted = Prototypes(scale).fit(X[fold.gallery], truth[fold.gallery])
        if len(fitted.classes_) < len(classes):
            lost = sorted(set(classes) - set(fitted.classes_))
            raise InputError("retrieval", "labels", f"{lost} are not in the gallery of fold "
                             f"{fold.name}", "leave them out by keep_classes, or merge them")
        out[fold.query] = fitted.distances(X[fold.query])
    return out


def _nearest(X: np.ndarray, truth: np.ndarray, plan: Sequence[Fold],
             ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Metric -> value and chance of each query tile, `(2, T)`."""
    names = [*(f"acc@{k}" for k in ks), "map"]
    out = {name: np.full((2, len(X)), np.nan) for name in names}
    for fold in plan:
        gallery = np.flatnonzero(fold.gallery)
        fitted = Prototypes().fit(X[gallery], truth[gallery])
        z, known = fitted.transform(X[gallery]), truth[gallery]
        queries = np.flatnonzero(fold.query)
        for start in range(0, len(queries), CHUNK_ROWS):
            part = queries[start:start + CHUNK_ROWS]
            alike = known[None, :] == truth[part][:, None]
            hits = ranked(fitted.transform(X[part]) @ z.T, alike)
            n_alike, n = alike.sum(axis=1), len(gallery)
            for k in ks:
                out[f"acc@{k}"][:, part] = (accuracy_at_k(hits, k),
                                            chance_accuracy(n_alike, n, k))
            out["map"][:, part] = average_precision(hits), chance_average_precision(n_alike, n)
    return out


def _by_prototype(distances: np.ndarray, truth: np.ndarray, classes: np.ndarray,
                  ks: Sequence[int]) -> list[dict]:
    """Metrics of a patient's classes, each ranked by its prototype, averaged over classes."""
    present = np.flatnonzero(np.isin(classes, truth))
    alike = truth[None, :] == classes[present][:, None]  # (K, T)
    hits = ranked(-distances[:, present].T, alike)
    n_alike, n = alike.sum(axis=1), len(truth)
    found = [{"metric": f"precision@{k}", "value": precision_at_k(hits, k).mean(),
              "chance": (n_alike / n).mean()} for k in ks]
    return [*found, {"metric": "map", "value": average_precision(hits).mean(),
                     "chance": chance_average_precision(n_alike, n).mean()}]
