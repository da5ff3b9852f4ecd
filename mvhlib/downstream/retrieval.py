"""Find tissue by its likeness: class prototypes, nearest tiles, and image against expression.

Three questions to an encoder whose weights stay as they are:

* ``prototypes``: the mean embedding of a class, made from some patients, is held against the tiles
  of another one. Is a tile's nearest prototype its own class, and are a prototype's nearest tiles
  of its class? ``prototypes_scaled`` divides each feature by its training spread first, without
  which features with units (the hand-made ones) count by their size.
* ``nearest``: are the tiles most alike, among other patients, of the same class?
* ``ridge`` and ``cca``: given a spot's image, which of its section's expression profiles is its
  own, and the other way round?

Query and gallery never share a patient (split ``patient``) or a study (``study``); ``random`` is
there to show what that leaks. Means are over classes within a patient, so that a common class does
not speak for a rare one, and intervals over patients or studies.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin

from mvhlib import plots, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression.site import Rows

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from mvhlib.features import Features

SPLITS = ("patient", "study", "random")
CLASSIFIERS = ("prototypes", "prototypes_scaled", "nearest")
DIRECTIONS = ("image_to_expression", "expression_to_image")

#: One value per patient: what `retrieve` and `cross_modal` return.
VALUE_COLUMNS = ("encoder", "classifier", "split", "metric", "study", "patient", "value", "chance")
SUMMARY_COLUMNS = ("dataset", "encoder", "classifier", "split", "metric", "unit", "n_units",
                   "mean", "ci_low", "ci_high")

#: Folds of the split ``random``.
N_RANDOM = 10

#: Query tiles that are held against the gallery at a time: bounds the memory of a search.
CHUNK_ROWS = 1024

#: Shares of the identity that `CanonicalRidge` chooses from; 1 is partial least squares.
SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 1.0)

RIGHT, WRONG, QUERY = "#009E73", "#D55E00", "#000000"


# --------------------------------------------------------------------------------------------
# what is searched


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
        On missing columns, images that are named twice or belong to nobody, labels that miss
        images, and images that miss labels.
    """
    where = "labels.csv"
    missing = [name for name in ("image", "patient", label) if name not in labels.columns]
    if missing:
        raise InputError(where, "columns", f"lacks {missing}; it has {list(labels.columns)}",
                         "add them, or name the label that it has")
    names = labels["image"].astype(str)
    if names.duplicated().any():
        raise InputError(where, "image", f"{names[names.duplicated()].iloc[0]!r} stands twice",
                         "give every image one row")
    for column in ("patient", label):
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
        "patient": labels["patient"].astype(str), "label": labels[label].astype(str)})
    return Rows(X, about.set_index(names.to_numpy()))


def keep_classes(rows: Rows, split: str = "patient") -> tuple[Rows, list[str]]:
    """Leave out rows without a label, and classes that one patient (or study) alone has.

    Whose class nobody else has cannot be found in anybody else. Fewer than two classes, or two
    patients, leave nothing to search: the rows are then empty.

    Returns
    -------
    tuple
        The rows that remain, and the names of the classes left out.
    """
    level = _level(split)
    about = rows.about
    owners = about.groupby("label")[level].nunique()
    dropped = sorted(owners.index[owners < 2])
    kept = (about["label"].notna() & ~about["label"].isin(dropped)).to_numpy()
    if about["label"][kept].nunique() < 2:
        kept[:] = False
    return Rows(rows.X[kept], about[kept]), dropped


def _level(split: str) -> str:
    if split not in SPLITS:
        raise InputError("retrieval", "split", f"{split!r} is not known", f"use {list(SPLITS)}")
    return "study" if split == "study" else "patient"


@dataclass(frozen=True)
class Fold:
    """Who asks and who is asked, as masks `(T,)` over the rows."""

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
    level = _level(split)
    if split == "random":
        number = np.random.default_rng(seed).permutation(np.arange(len(about)) % N_RANDOM)
        owner = np.array([f"{n:02d}" for n in number])
    else:
        owner = about[level].to_numpy(str)
    names = sorted(set(owner))
    if len(names) < 2:
        raise InputError("retrieval", level, f"only {names} is there", "give two or more, since "
                         "nobody is searched among their own tiles")
    found = []
    for name in names:
        query = owner == name
        apart = ~query
        if split != "random":
            apart &= ~about["patient"].isin(set(about["patient"][query])).to_numpy()
        found.append(Fold(name, query, apart))
    return found


# --------------------------------------------------------------------------------------------
# prototypes


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
            raise InputError("Prototypes", "X", f"shape {X.shape} for {len(y)} labels",
                             "give one row per label, and at least one")
        if not np.isfinite(X).all():
            raise InputError("Prototypes", "X", "holds NaN or infinity", "embed the tiles again")
        self.mean_ = X.mean(axis=0)
        spread = X.std(axis=0) if self.scale else np.ones(X.shape[1])
        varies = spread > 1e-12 * np.maximum(np.abs(X).max(axis=0), 1e-300)
        self.spread_ = np.where(varies, spread, np.inf)
        self.classes_, code = np.unique(y, return_inverse=True)
        z = self.transform(X)
        self.prototypes_ = np.stack([z[code == k].mean(axis=0) for k in range(len(self.classes_))])
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Centred embeddings of length one, `(T, D)`; one that equals the mean stays zero."""
        return _unit_length((np.asarray(X, dtype=np.float64) - self.mean_) / self.spread_)

    def distances(self, X: np.ndarray) -> np.ndarray:
        """Squared Euclidean distance to each prototype, `(T, K)`."""
        z, p = self.transform(X), self.prototypes_
        return (z**2).sum(1)[:, None] - 2 * z @ p.T + (p**2).sum(1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Class of the nearest prototype, `(T,)`."""
        return self.classes_[self.distances(X).argmin(axis=1)]


def _unit_length(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)


# --------------------------------------------------------------------------------------------
# scores of a ranking, and what a random one gives


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


# --------------------------------------------------------------------------------------------
# retrieval of classes


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
    owners = about.groupby(truth)[_level(split)].nunique()
    if (owners < 2).any():
        raise InputError("retrieval", "labels", f"class {owners.index[owners < 2][0]!r} is found "
                         f"in one {_level(split)} only", "leave it out by keep_classes, or merge "
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
    """Distance of every tile to the prototypes of the fold that asks for it, `(T, K)`."""
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


def summarise(values: pd.DataFrame, dataset: str, unit: str = "patient") -> pd.DataFrame:
    """Means over units with Student's t interval, and the chance level as an encoder of its own.

    Parameters
    ----------
    values
        From `retrieve` or `cross_modal`.
    dataset
        Its name in the table.
    unit
        ``"patient"`` or ``"study"``.

    Returns
    -------
    DataFrame
        Columns `SUMMARY_COLUMNS`. The rows of encoder ``chance`` hold the expectation of a random
        order over the same units; it is known and has no interval. Nor have units that all agree
        (three patients at 1.0), whose spread says nothing. Intervals are cut at 0 and 1.
    """
    if unit not in ("patient", "study"):
        raise InputError("retrieval", "unit", f"{unit!r} is not known", "use patient or study")
    found = []
    keys = ["classifier", "split", "metric"]
    for (*named, encoder), part in values.groupby([*keys, "encoder"], sort=False):
        per_unit = part.groupby([unit] if unit == "study" else ["study", "patient"])[
            ["value", "chance"]].mean()
        interval = statistics.t_interval(per_unit["value"])
        if np.ptp(per_unit["value"]) == 0:  # units that agree to the last digit have no spread
            interval = replace(interval, low=np.nan, high=np.nan)
        base = {"dataset": dataset, **dict(zip(keys, named, strict=True)), "unit": unit,
                "n_units": interval.n}
        found.append(base | {"encoder": encoder, "mean": interval.mean, "ci_low": interval.low,
                             "ci_high": interval.high})
        found.append(base | {"encoder": "chance", "mean": float(per_unit["chance"].mean()),
                             "ci_low": np.nan, "ci_high": np.nan})
    table = pd.DataFrame(found, columns=list(SUMMARY_COLUMNS))
    # Chance is the same for every encoder on the same tiles: one row of it, after theirs.
    is_chance = table["encoder"] == "chance"
    table[["ci_low", "ci_high"]] = table[["ci_low", "ci_high"]].clip(0, 1)
    return pd.concat([table[~is_chance], table[is_chance].drop_duplicates(keys)],
                     ignore_index=True)


def compare(values: pd.DataFrame, by: str, baseline: str, *, unit: str = "patient", seed: int = 0,
            **chosen: str) -> pd.DataFrame:
    """Every encoder (or split, or classifier) against one, paired by unit, corrected together.

    Parameters
    ----------
    values
        From `retrieve` or `cross_modal`.
    by
        Column that is compared, for instance ``"encoder"``.
    baseline
        Its value that the others are held against.
    unit
        ``"patient"`` or ``"study"``.
    seed
        Of the permutations beyond 16 units.
    chosen
        What the other columns have to be: ``classifier="nearest", split="study", metric="map"``.

    Returns
    -------
    DataFrame
        As from `mvhlib.statistics.compare`.

    Raises
    ------
    InputError
        If `baseline` has no such values.
    """
    part = values
    for column, value in chosen.items():
        part = part[part[column] == value]
    wide = part.pivot_table(index=unit, columns=by, values="value")
    if baseline not in wide:
        raise InputError("retrieval", by, f"{baseline!r} has no values for {chosen}",
                         f"use one of {list(wide)}")
    others = [name for name in dict.fromkeys(part[by]) if name != baseline]
    return statistics.compare({f"{name} - {baseline}": (wide[name], wide[baseline])
                               for name in others}, rng=np.random.default_rng(seed))


# --------------------------------------------------------------------------------------------
# image against expression


@dataclass(frozen=True)
class Pairs:
    """Spots of one section that have a tile: features `(T, D)` and expression `(T, G)`."""

    study: str
    patient: str
    X: np.ndarray = field(repr=False)
    Y: np.ndarray = field(repr=False)


def read_pairs(sections: Iterable[Any], features: "Mapping[str, Features]",
               genes: Sequence[str]) -> dict[str, Pairs]:
    """Join each section's features with its normalised expression (ln of 1 + counts per 10,000).

    Sections without features are left out.
    """
    from mvhlib.cohort.genes import normalize
    from mvhlib.expression.scores import dense
    from mvhlib.features import align

    found = {}
    for section in sections:
        if section.name not in features:
            continue
        adata, given = section.adata, features[section.name]
        known = set(given.barcodes)
        spots = [name for name in adata.obs_names if name in known]
        counts = adata[spots].layers["counts"]
        library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        columns = adata.var_names.get_indexer(list(genes))
        if (columns < 0).any():
            raise InputError(section.name, "genes", f"lack {genes[int(np.argmin(columns))]!r}",
                             "choose genes that all sections have")
        found[section.name] = Pairs(section.study, section.patient, align(given, spots),
                                    dense(normalize(counts[:, columns], library=library)))
    return found


class RidgeMatch(BaseEstimator):
    """Predict expression from the image, and compare profiles.

    `mvhlib.expression.ridge.RidgeProbe` with its penalty chosen on inner folds. Both sides are
    profiles over genes in units of the genes' training spread.
    """

    def fit(self, X: np.ndarray, Y: np.ndarray, groups: Sequence,
            sections: Sequence) -> "RidgeMatch":
        """Fit on training spots; `groups` are left out together by inner folds."""
        from mvhlib.expression.ridge import RidgeProbe

        spread = Y.std(axis=0, dtype=np.float64)
        self.inverse_ = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        self.probe_ = RidgeProbe().fit(X, Y, groups=groups, sections=sections)
        return self

    def transform(self, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and measured profiles, `(T, G)` each."""
        return self.probe_.predict(X) * self.inverse_, Y * self.inverse_


class CanonicalRidge(BaseEstimator):
    """Canonical correlation between features and expression, shrunken.

    Both sides are standardised on the training spots, and their correlation matrices replaced by
    `(1 - s) R + s I` before they are inverted (Vinod, "Canonical ridge and econometrics of joint
    production", J. Econometrics 1976): `s` near 0 is canonical correlation analysis, 1 is partial
    least squares. A variate counts by its canonical correlation.

    Parameters
    ----------
    n_components
        Most variates.
    shrinkages
        Values of `s` to choose from by leaving one group out after the other; the criterion is
        the mean relative rank of a spot's own pair within its section. One value fixes it.

    Attributes
    ----------
    shrinkage_
        The `s` used.
    correlations_
        Canonical correlations under the shrunken metric, `(C,)`.
    """

    def __init__(self, n_components: int = 16, shrinkages: Sequence[float] = SHRINKAGES):
        self.n_components = n_components
        self.shrinkages = shrinkages

    def fit(self, X: np.ndarray, Y: np.ndarray, groups: Sequence | None = None,
            sections: Sequence | None = None) -> "CanonicalRidge":
        """Fit on training spots.

        Parameters
        ----------
        X, Y
            `(T, D)` and `(T, G)`.
        groups, sections
            Unit (study, patient) that inner folds leave out, and the section of each spot; both
            are needed where there is something to choose.

        Raises
        ------
        InputError
            On shrinkages outside 0 to 1, or none chosen and no two groups to choose on.
        """
        given = [float(s) for s in np.atleast_1d(self.shrinkages)]
        if not given or min(given) < 0 or max(given) > 1:
            raise InputError("CanonicalRidge", "shrinkages", f"are {given}",
                             "give shares of 0 to 1")
        X, Y = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
        self.shrinkage_ = given[0]
        if len(given) > 1:
            self.shrinkage_ = self._choose(X, Y, given, groups, sections)
        return self._solve(self._moments(X, Y), self.shrinkage_)

    def transform(self, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted variates of images and of expression, `(T, C)` each."""
        return (X - self.mean_x_) @ self.weights_x_, (Y - self.mean_y_) @ self.weights_y_

    def _choose(self, X, Y, given, groups, sections) -> float:
        groups = np.asarray(groups, dtype=str)
        names = np.unique(groups) if groups.ndim else []
        if len(names) < 2 or sections is None or len(groups) != len(X):
            raise InputError("CanonicalRidge", "groups", "are fewer than two", "give the study, "
                             "patient or section of each spot, or fix the shrinkage")
        sections = np.asarray(sections, dtype=str)
        cost = np.zeros(len(given))
        for name in names:
            inside = groups == name
            moments = self._moments(X[~inside], Y[~inside])
            for index, s in enumerate(given):
                self._solve(moments, s)
                ranks = []
                for section in np.unique(sections[inside]):
                    rows = inside & (sections == section)
                    match = similarity(*self.transform(X[rows], Y[rows]))
                    ranks += [relative_rank(pair_ranks(m)).mean() for m in (match, match.T)]
                cost[index] += np.mean(ranks)
        return given[int(np.argmin(cost))]

    @staticmethod
    def _moments(X: np.ndarray, Y: np.ndarray) -> tuple:
        """Means, inverse spreads, and the three correlation matrices."""
        means, inverses, z = [], [], []
        for values in (X, Y):
            mean, spread = values.mean(axis=0), values.std(axis=0)
            varies = spread > 1e-12 * np.maximum(np.abs(values).max(axis=0), 1e-300)
            means.append(mean)
            inverses.append(np.divide(1.0, spread, out=np.zeros_like(spread), where=varies))
            z.append((values - mean) * inverses[-1])
        n = len(X)
        return means, inverses, z[0].T @ z[0] / n, z[1].T @ z[1] / n, z[0].T @ z[1] / n

    def _solve(self, moments: tuple, s: float) -> "CanonicalRidge":
        means, inverses, rxx, ryy, rxy = moments
        halves = [_inverse_root((1 - s) * r + s * np.eye(len(r))) for r in (rxx, ryy)]
        left, self.correlations_, right = np.linalg.svd(halves[0] @ rxy @ halves[1],
                                                        full_matrices=False)
        kept = slice(0, self.n_components)
        self.correlations_ = self.correlations_[kept]
        weight = np.sqrt(self.correlations_)
        self.mean_x_, self.mean_y_ = means
        self.weights_x_ = inverses[0][:, None] * (halves[0] @ left[:, kept]) * weight
        self.weights_y_ = inverses[1][:, None] * (halves[1] @ right.T[:, kept]) * weight
        return self


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """`matrix^(-1/2)` of a symmetric matrix; directions without variance are left out."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > 1e-10 * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T


def similarity(images: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Cosine of every image with every profile of one section, `(T, T)`.

    Each side is centred on its own mean over the section first: a study's stain or depth shifts
    all its spots alike and says nothing of which belongs to which. No pair is used for that, but
    the section as a whole is.
    """
    sides = [_unit_length(side - side.mean(axis=0)) for side in (images, expression)]
    return sides[0] @ sides[1].T


def pair_ranks(similarity: np.ndarray) -> np.ndarray:
    """Rank of each row's own column, 1 the best, `(T,)`; ties share the middle rank."""
    own = np.diag(similarity)[:, None]
    tied = np.isclose(similarity, own, rtol=0, atol=1e-12)
    return 1 + ((similarity > own) & ~tied).sum(axis=1) + (tied.sum(axis=1) - 1) / 2


def relative_rank(ranks: np.ndarray) -> np.ndarray:
    """Ranks as 0 (first) to 1 (last) of the gallery; a random order has mean and median 0.5."""
    return (ranks - 1) / max(len(ranks) - 1, 1)


def match_scores(similarity: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> pd.DataFrame:
    """Recall and median rank of both directions, for any model that embeds both sides.

    Parameters
    ----------
    similarity
        `(T, T)`: rows images, columns expression profiles, pairs on the diagonal.
    ks
        Depths.

    Returns
    -------
    DataFrame
        ``metric, value, chance``: ``<direction>_recall@k``, the share of spots whose pair is among
        the k nearest (a random order finds `k / T`), and ``<direction>_median_rank``, from 0 to 1
        (random 0.5).
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or len(similarity) < 2:
        raise InputError("retrieval", "similarity", f"has shape {similarity.shape}",
                         "give (T, T) of two spots or more, pairs on the diagonal")
    found = []
    for direction, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        ranks = pair_ranks(matrix)
        n = len(ranks)
        found += [(f"{direction}_recall@{k}", (ranks <= k).mean(), min(k, n) / n) for k in ks]
        found.append((f"{direction}_median_rank", np.median(relative_rank(ranks)), 0.5))
    return pd.DataFrame(found, columns=["metric", "value", "chance"])


def cross_modal(sections: Iterable[Any], features: "Mapping[str, Features]", folds: pd.DataFrame,
                genes_by_fold: Mapping[Hashable, Sequence[str]], *, split: str, encoder: str = "",
                ks: Sequence[int] = (1, 5, 10)) -> pd.DataFrame:
    """Find a spot's expression by its image, and its image by its expression, in unseen sections.

    Ridge and canonical correlation are fitted on the training sections of each fold, penalties
    chosen inside; every test section is a gallery of its own, in which each spot has one right
    answer. Neighbouring spots resemble each other, so the first rank is a hard question.

    Parameters
    ----------
    sections, features
        A `Cohort`, and section -> `Features` of one encoder.
    folds
        Columns fold, section, role, of `mvhlib.cohort.splits.make`.
    genes_by_fold
        Fold -> genes, chosen on its training sections.
    split
        The protocol of the folds: ``"loso"`` or ``"patient"``.

    Returns
    -------
    DataFrame
        Columns `VALUE_COLUMNS`, one row per classifier, metric and patient (mean over sections).

    Raises
    ------
    InputError
        On another protocol, a fold without genes, or sections without features.
    """
    if split not in ("loso", "patient"):
        raise InputError("cross_modal", "split", f"{split!r} leaves neither a study nor a patient "
                         "out", "use loso or patient")
    sections = list(sections)
    found = []
    for fold, part in folds.groupby("fold", sort=False):
        if str(fold) not in genes_by_fold:
            raise InputError("panels.csv", f"fold {fold}", "has no genes", "name the protocol "
                             f"{split!r} in 01_cohort's parameters and run it again")
        pairs = read_pairs([s for s in sections if s.name in set(part["section"])], features,
                           genes_by_fold[str(fold)])
        missing = sorted(set(part["section"]) - set(pairs))
        if missing:
            raise InputError("cross_modal", "features", f"of {missing[:3]} are missing",
                             "run 04_embed for all sections of the folds")
        train = {name: pairs[name] for name in part.loc[part["role"] == "train", "section"]}
        X = np.concatenate([pair.X for pair in train.values()]).astype(np.float64)
        Y = np.concatenate([pair.Y for pair in train.values()]).astype(np.float64)
        inner = _inner_groups(train, split)
        for name, model in (("ridge", RidgeMatch()), ("cca", CanonicalRidge())):
            model.fit(X, Y, **inner)
            for section in part.loc[part["role"] == "test", "section"]:
                own = pairs[section]
                scores = match_scores(similarity(*model.transform(own.X, own.Y)), ks)
                found.append(scores.assign(encoder=encoder, classifier=name, split=split,
                                           study=own.study, patient=own.patient))
    keys = [name for name in VALUE_COLUMNS if name not in ("value", "chance")]
    return pd.concat(found).groupby(keys, sort=False, as_index=False)[["value", "chance"]].mean()[
        list(VALUE_COLUMNS)]


def _inner_groups(train: Mapping[str, Pairs], split: str) -> dict[str, np.ndarray]:
    """What inner folds leave out: the unit of the outer ones, or the next finer that there is."""
    sizes = [len(pair.X) for pair in train.values()]
    sections = np.repeat(list(train), sizes)
    levels = ["patient"] if split == "patient" else ["study", "patient"]
    for owner in ([getattr(pair, level) for pair in train.values()] for level in levels):
        if len(set(owner)) > 1:
            return {"groups": np.repeat(owner, sizes), "sections": sections}
    if len(train) > 1:
        return {"groups": sections, "sections": sections}
    # One section is all there is: five runs of consecutive spots, as RidgeProbe takes them.
    runs = (np.arange(sizes[0]) * 5 // sizes[0]).astype(str)
    return {"groups": runs, "sections": runs}


# --------------------------------------------------------------------------------------------
# figures


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
            if first == 0:  # of the class itself, not only near its mean
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
    mean = part.groupby(_level(split))["value"].mean().sort_values(kind="stable")
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
