"""How much of a label a frozen embedding holds: linear and nearest-neighbour probes.

Rows are tiles, or images by the mean of their tiles; what may not stand on both sides of a fold is
the patient. Scores are balanced accuracy, weighted F1 and AUROC, each with an interval over
patients.

============  ===========================================================================
split         what a fold holds out
============  ===========================================================================
``grouped``   whole patients (or studies, where those are passed as groups)
``random``    rows, whoever they are of: leaks patients, and is there to show how much
``given``     what the publishers of a set hold out; groups are not looked at
============  ===========================================================================

The published systems name these tasks and no protocol. The choices here (frozen features, logistic
regression, 20 neighbours after centring and scaling to length 1) are those of UNI's evaluation
(Chen et al., Nature Medicine 30, 2024), but for the penalty, which UNI fixes by the width and which
is chosen here on inner folds of the training side.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import standardise, statistics
from mvhlib.artifacts import InputError, TooFew

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvhlib.features import Features
    from mvhlib.notebook import Run

SPLITS = {"grouped": "unseen patients", "grouped_study": "unseen studies",
          "random": "random split\n(leaks patients)", "given": "the publishers' split"}
METRICS = {"balanced_accuracy": "balanced accuracy", "weighted_f1": "weighted F1",
           "auroc": "AUROC", "attention_auroc": "AUROC of attention"}
COLUMNS = ("dataset", "encoder", "classifier", "split", "metric", "unit", "n_units", "mean",
           "ci_low", "ci_high")

LEAK_COLUMNS = ("dataset", "encoder", "classifier", "metric", "grouped", "random", "leak",
                "ci_low", "ci_high", "n_units")

#: L2 penalties per row of training data that the inner folds choose from.
PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
INNER_FOLDS = 3

#: Neighbours that vote.
NEIGHBOURS = 20

#: More units than this are bundled at random for the bootstrap, whose tables grow with the square.
MOST_UNITS = 1000


# --------------------------------------------------------------------------------------------
# rows


def image_means(features: "Mapping[str, Features | np.ndarray]", names: Sequence[str]
                ) -> np.ndarray:
    """Mean of the tile embeddings of each image, `(n, D)` float64, in the order of `names`.

    Raises
    ------
    InputError
        If an image has no features, or no tiles.
    """
    missing = [name for name in names if name not in features]
    if missing:
        raise InputError("probe", "features", f"are missing for {missing[:3]} and "
                         f"{max(0, len(missing) - 3)} more", "embed every image")
    values = [np.asarray(getattr(features[name], "features", features[name]), dtype=np.float64)
              for name in names]
    empty = [name for name, each in zip(names, values, strict=True) if len(each) == 0]
    if empty:
        raise InputError("probe", "tiles", f"are none in {empty[:3]}",
                         "leave the image out, or lower the share of tissue that a tile needs")
    return np.stack([each.mean(axis=0) for each in values])


def embeddings(run: "Run", pool: str, encoders: Sequence[str], names: Sequence[str]
               ) -> "dict[str, dict[str, Features]]":
    """Features of each encoder, and `colour_features` as ``stain`` where the tiles are there.

    Parameters
    ----------
    pool
        Folder in the run: "" of the cohort, ``slides``, ``labelled``.
    names
        Sections, slides or images.
    """
    from mvhlib.features import read_folder

    found = {encoder: read_folder(run.need(run.path(pool, "features", encoder), made_by="04_embed"),
                                  names) for encoder in encoders}
    if all(run.path(pool, "tiles", f"{name}.h5").exists() for name in names):
        return found | {"stain": colour_features(run.path(pool, "tiles"), names)}
    print(f"{pool or 'cohort'}: features came without tiles, so that stain is not compared.")
    return found


def embedded(run: "Run", pool: str, encoders: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those of `names` that every encoder has features of."""
    folders = [run.need(run.path(pool, "features", encoder), made_by="04_embed")
               for encoder in encoders]
    return sorted(name for name in names
                  if all((folder / f"{name}.h5").exists() for folder in folders))


def saw(run: "Run", encoder: str) -> set[str]:
    """Sections that an encoder was pretrained on; none where that is not known."""
    import json

    path = run.path("features", encoder, "pretrained_on.json")
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return set((told or {}).get("sections", ()))


def colour_features(tiles_dir, names: Sequence[str], batch: int = 512) -> "dict[str, Features]":
    """The stain-only baseline: mean and spread of each channel's optical density, per tile.

    What six numbers of colour name as well as an embedding does, the embedding need not have
    learned from tissue. Origin and scanner are confounded wherever one hospital sends one organ.
    """
    from pathlib import Path

    from mvhlib.features import Features
    from mvhlib.tiles.stain import colour_statistics
    from mvhlib.tiles.store import open_tiles

    found = {}
    for name in names:
        with open_tiles(Path(tiles_dir) / f"{name}.h5") as (head, img):
            values = [colour_statistics(img[start:start + batch])
                      for start in range(0, head.n_tiles, batch)]
        found[name] = Features(np.concatenate([np.zeros((0, 6)), *values]).astype(np.float32),
                               head.coords, head.barcodes)
    return found


# --------------------------------------------------------------------------------------------
# folds


def folds(labels: Sequence[str], groups: Sequence[str], *, split: str = "grouped",
          n_folds: int = 5, seed: int = 0, unit: str = "patient") -> np.ndarray:
    """Number of the fold that tests each row, `(n,)`; classes are spread as evenly as groups allow.

    Parameters
    ----------
    labels, groups
        Class and patient of each row, `(n,)`.
    split
        ``grouped`` or ``random``.
    n_folds
        At most the number of groups.
    unit
        What the groups are (patient, study), for errors.

    Raises
    ------
    InputError
        If a class has one patient (or one row), patients are not named, or no way of folding
        leaves every class something to be learned from.
    """
    labels, groups = np.asarray(labels, dtype=str), np.asarray(groups, dtype=str)
    if split not in ("grouped", "random"):
        raise InputError("probe", "split", f"{split!r} is not known", "use grouped or random")
    if labels.shape != groups.shape or labels.ndim != 1:
        raise InputError("probe", "groups", f"have shape {groups.shape}, labels {labels.shape}",
                         "give one patient per row")
    if len(np.unique(labels)) < 2:
        raise InputError("probe", "labels", f"are all {labels[:1].tolist() or 'missing'}",
                         "give rows of two classes or more")
    if split == "grouped" and (groups == "").any():
        raise InputError("probe", unit, f"is not named for {(groups == '').sum()} rows",
                         f"name every {unit}, or use split random and say that it may leak them")
    for name in np.unique(labels).tolist():
        units = np.unique(groups[labels == name]) if split == "grouped" else (
            np.flatnonzero(labels == name))
        if len(units) < 2:
            what = (f"has one {unit} ({units[0]}): held out, it cannot be learned"
                    if split == "grouped" else "has one row")
            raise InputError("probe", f"class {name!r}", what,
                             f"leave the class out or add a {unit} that has it")
    n_folds = _most_folds(labels, groups, split, n_folds)
    for attempt in range(100):
        fold = _split(labels, groups, split, n_folds, [seed, attempt])
        if all(set(labels[fold != k]) == set(labels) for k in range(n_folds)):
            return fold
    raise InputError("probe", "folds", f"{n_folds} leave no fold in which every class is trained",
                     "use fewer classes, or more patients")


def _most_folds(labels: np.ndarray, groups: np.ndarray, split: str, n_folds: int) -> int:
    """At most one fold per unit, and per row of the largest class."""
    units = len(np.unique(groups)) if split == "grouped" else len(labels)
    return min(n_folds, units, int(np.unique(labels, return_counts=True)[1].max()))


def _split(labels: np.ndarray, groups: np.ndarray, split: str, n_folds: int,
           entropy: list[int]) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedGroupKFold if split == "grouped" else StratifiedKFold
    random_state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    fold = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():  # rare classes are checked by `folds`
        warnings.simplefilter("ignore", UserWarning)
        cut = kind(n_folds, shuffle=True, random_state=random_state)
        for k, (_, test) in enumerate(cut.split(labels, labels, groups)):
            fold[test] = k
    return fold


# --------------------------------------------------------------------------------------------
# classifiers


class LogisticProbe:
    """Multinomial logistic regression on standardised features, its L2 chosen on inner folds.

    The penalty is per row (`C = 1 / (penalty n)` in scikit-learn), so that what the smaller inner
    folds choose means the same on the whole training side. The choice is by log loss, a proper
    score, over inner folds of the same kind as the outer ones.

    Parameters
    ----------
    penalties
        To choose from; one alone is taken as it is.
    split, seed
        Of the inner folds.

    Attributes
    ----------
    classes_, penalty_
        Classes in the order of the probabilities; the penalty that was chosen.
    """

    def __init__(self, penalties: Sequence[float] = PENALTIES, split: str = "grouped",
                 seed: int = 0):
        self.penalties, self.split, self.seed = tuple(penalties), split, seed

    def fit(self, X: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> "LogisticProbe":
        """Choose the penalty, then fit on all rows."""
        X, labels = np.asarray(X, dtype=np.float64), np.asarray(labels, dtype=str)
        groups = np.asarray(groups, dtype=str)
        self.classes_ = np.unique(labels)
        self.penalty_ = self.penalties[0]
        if len(self.penalties) > 1:
            if self.split == "grouped" and len(np.unique(groups)) < 2:
                raise TooFew("probe", "patients", "are one on the training side, too few to "
                                 "choose a penalty on", "add patients, or give one penalty")
            n_folds = _most_folds(labels, groups, self.split, INNER_FOLDS)
            if n_folds > 1:  # else no class could be held out and learned: the strongest penalty
                inner = _split(labels, groups, self.split, n_folds, [self.seed, 1])
                loss = sum(self._inner_losses(X, labels, inner == k) for k in np.unique(inner))
                # Of equal losses the stronger penalty, which stands first.
                self.penalty_ = self.penalties[int(np.argmin(loss))]
        self._fitted = self._path(X, labels, [self.penalty_])[0]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of each class, `(n, K)`."""
        return self._fitted(np.asarray(X, dtype=np.float64))

    def _inner_losses(self, X: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Summed log loss of the rows under `test`, one number per penalty."""
        if test.all() or len(np.unique(labels[~test])) < 2:
            return np.zeros(len(self.penalties))
        column = np.searchsorted(self.classes_, labels[test])
        losses = []
        for predict in self._path(X[~test], labels[~test], self.penalties):
            chances = predict(X[test])[np.arange(len(column)), column]
            # A class that the inner training side lacks has probability 0 under every penalty.
            losses.append(-np.log(np.maximum(chances, 1e-6)).sum())
        return np.array(losses)

    def _path(self, X: np.ndarray, labels: np.ndarray, penalties: Sequence[float]) -> list:
        """One prediction function per penalty, each started from the one before."""
        from sklearn.linear_model import LogisticRegression

        # Constant on the training side: no information there, and arbitrary scale on the test side.
        scale = standardise.fit(X)

        def scaled(values):
            return scale(values)[:, scale.varies]

        z, found = scaled(X), []
        model = LogisticRegression(max_iter=2000, warm_start=True)
        columns = np.searchsorted(self.classes_, np.unique(labels))
        for penalty in penalties:
            model.set_params(C=1 / (penalty * len(z)))
            model.fit(z, labels)
            weight, bias = model.coef_.copy(), model.intercept_.copy()

            def predict(values, weight=weight, bias=bias):
                score = scaled(values) @ weight.T + bias
                if len(columns) == 2:  # scikit-learn keeps one column for two classes
                    score = np.concatenate([np.zeros_like(score), score], axis=1)
                score = np.exp(score - score.max(axis=1, keepdims=True))
                chances = np.zeros((len(values), len(self.classes_)))
                chances[:, columns] = score / score.sum(axis=1, keepdims=True)
                return chances

            found.append(predict)
        return found


class NearestNeighbours:
    """Vote of the `k` training rows of greatest cosine, after centring by the training mean.

    Embeddings share a large offset, in which the cosine of any two is near 1: hence the centring
    (SimpleShot, Wang et al., arXiv 1911.04623).
    """

    def __init__(self, k: int = NEIGHBOURS):
        self.k = k

    def fit(self, X: np.ndarray, labels: np.ndarray, groups: object = None) -> "NearestNeighbours":
        """Keep the training rows; `groups` are taken for the sake of one signature, and unused."""
        labels = np.asarray(labels, dtype=str)
        self.classes_, self._code = np.unique(labels, return_inverse=True)
        self._mean = np.asarray(X, dtype=np.float64).mean(axis=0)
        self._rows = self._unit(X)
        return self

    def predict_proba(self, X: np.ndarray, batch: int = 1024) -> np.ndarray:
        """Share of each class among the neighbours, `(n, K)`; of equal cosines the earlier row."""
        k = min(self.k, len(self._rows))
        votes = np.zeros((len(X), len(self.classes_)))
        for start in range(0, len(X), batch):
            cosine = self._unit(X[start:start + batch]) @ self._rows.T
            nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
            for column in range(len(self.classes_)):
                votes[start:start + batch, column] = (self._code[nearest] == column).mean(axis=1)
        return votes

    def _unit(self, X: np.ndarray) -> np.ndarray:
        centred = np.asarray(X, dtype=np.float64) - self._mean
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        return centred / np.where(length > 0, length, 1)


# --------------------------------------------------------------------------------------------
# scores


@dataclass(frozen=True)
class Scores:
    """What every score and its bootstrap need, patient by patient.

    Attributes
    ----------
    classes
        Names, `K` of them.
    n_units
        Patients.
    confusion
        `(U, K, K)`: of each unit, rows of a class (second) that were called another (third).
    wins, pairs
        `(K, U, U)`: of the pairs of a row of class k in the first unit and a row of another class
        in the second, how many the probability of k puts in the right order (ties count half), and
        how many there are.
    """

    classes: tuple[str, ...]
    n_units: int
    confusion: np.ndarray = field(repr=False)
    wins: np.ndarray = field(repr=False)
    pairs: np.ndarray = field(repr=False)

    def __add__(self, other: "Scores") -> "Scores":
        """Repeats of one experiment, taken together."""
        return Scores(self.classes, self.n_units, self.confusion + other.confusion,
                      self.wins + other.wins, self.pairs + other.pairs)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics with each unit counted `weights` `(R, U)` times; each `(R,)`.

        NaN where a class is not drawn. AUROC of more than two classes is the mean over classes,
        each against the rest.
        """
        n_units, k = self.confusion.shape[:2]
        table = (weights @ self.confusion.reshape(n_units, -1)).reshape(-1, k, k)  # (R, K, K)
        right = np.diagonal(table, axis1=1, axis2=2)
        true, called = table.sum(axis=2), table.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = right / true
            f1 = 2 * right / (true + called)
            area = np.stack([((weights @ wins) * weights).sum(axis=1)
                             / ((weights @ pairs) * weights).sum(axis=1)
                             for wins, pairs in zip(self.wins, self.pairs, strict=True)])
        shares = true / true.sum(axis=1, keepdims=True)
        return {"balanced_accuracy": recall.mean(axis=1),
                "weighted_f1": (shares * np.nan_to_num(f1)).sum(axis=1),
                "auroc": area.mean(axis=0)}

    def intervals(self, *, confidence: float = 0.95, n_boot: int = 999, seed: int = 0
                  ) -> pd.DataFrame:
        """Each metric with its interval over units: metric, n_units, mean, ci_low, ci_high.

        Units are drawn with replacement and bring all their rows with them; the spread of the
        draws, times Student's t of the number of units, is the half width, cut at 0 and 1
        (`mvhlib.statistics.spatial_block_bootstrap` with patients for blocks).
        """
        whole = self.metrics(np.ones((1, len(self.confusion))))
        rows = []
        for metric, value in whole.items():
            found = statistics.spatial_block_bootstrap(
                float(value[0]), lambda weights, metric=metric: self.metrics(weights[0])[metric],
                [len(self.confusion)], confidence, n_boot=n_boot, rng=np.random.default_rng(seed))
            rows.append({"metric": metric, "n_units": self.n_units, "mean": found.mean,
                         "ci_low": max(found.low, 0.0), "ci_high": min(found.high, 1.0)})
        return pd.DataFrame(rows)


def score(truth: Sequence[str], probability: np.ndarray, classes: Sequence[str],
          units: Sequence[str], *, fold: np.ndarray | None = None, seed: int = 0) -> Scores:
    """Count what `Scores` needs.

    Parameters
    ----------
    truth, probability
        Class of each row `(n,)`, and probability of each of `classes` `(n, K)`, of rows that the
        classifier has not seen.
    units
        Patient of each row, `(n,)`.
    fold
        Where given, AUROC compares only rows tested by one and the same model: outputs of networks
        trained on different folds need not share a scale. None compares all rows, which calibrated
        probabilities allow, and which few patients need; it errs on the low side, since a class
        that is missing in training for being tested becomes less likely.
    seed
        Of the bundles of more than `MOST_UNITS` units.

    Raises
    ------
    InputError
        On probabilities that are not finite or do not fit, or a class that is not in `classes`.
    """
    truth, units = np.asarray(truth, dtype=str), np.asarray(units, dtype=str)
    classes, probability = tuple(classes), np.asarray(probability, dtype=np.float64)
    if probability.shape != (len(truth), len(classes)) or not np.isfinite(probability).all():
        raise InputError("probe", "probability", f"has shape {probability.shape} or is not finite",
                         f"give one row of {len(classes)} finite numbers per row")
    if not set(truth) <= set(classes):
        raise InputError("probe", "truth", f"has {sorted(set(truth) - set(classes))}, which are "
                         "no classes of the classifier", "train on every class")
    unit = np.unique(units, return_inverse=True)[1]
    n_units = int(unit.max()) + 1
    if n_units > MOST_UNITS:
        unit = np.random.default_rng(seed).permutation(n_units)[unit] % MOST_UNITS
    n = min(n_units, MOST_UNITS)
    code = np.array([classes.index(name) for name in truth])
    confusion = np.zeros((n, len(classes), len(classes)))
    np.add.at(confusion, (unit, code, probability.argmax(axis=1)), 1)
    fold = np.zeros(len(truth)) if fold is None else np.asarray(fold)
    positive = range(len(classes)) if len(classes) > 2 else (1,)
    wins, pairs = np.zeros((2, len(positive), n, n))
    for row, k in enumerate(positive):
        for part in np.unique(fold):
            here = fold == part
            win, pair = _ordered_pairs(probability[here, k], code[here] == k, unit[here], n)
            wins[row] += win
            pairs[row] += pair
    return Scores(classes, n_units, confusion, wins, pairs)


def _ordered_pairs(value: np.ndarray, is_class: np.ndarray, unit: np.ndarray, n_units: int
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in the right order and all pairs, `(U, U)`: by unit of the class row and of the other.

    The numbers that the Mann-Whitney statistic is made of, which divided by each other are AUROC.
    """
    wins = np.zeros((n_units, n_units))
    above, owner = value[is_class], unit[is_class]
    for other in np.unique(unit[~is_class]):
        below = np.sort(value[~is_class & (unit == other)])
        beaten = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
        wins[:, other] = np.bincount(owner, beaten / 2, minlength=n_units)
    return wins, np.outer(np.bincount(owner, minlength=n_units),
                          np.bincount(unit[~is_class], minlength=n_units)).astype(np.float64)


# --------------------------------------------------------------------------------------------
# the evaluation


@dataclass(frozen=True)
class Result:
    """A classifier's answers on rows that it had not seen.

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


def in_two_units(labels: Sequence[str], units: Sequence[str]) -> np.ndarray:
    """Rows `(n,)` whose class is found in two patients or more: the others cannot be held out.

    Where nobody says who a row is of (blank or NaN), the row itself is the unit.
    """
    owners = [("row", at) if pd.isna(unit) or unit == "" else unit for at, unit in enumerate(units)]
    found = pd.DataFrame({"label": list(labels), "unit": pd.Series(owners, dtype=object)})
    return (found.groupby("label")["unit"].transform("nunique") > 1).to_numpy()


def one_class_per_study(labels: Sequence[str], studies: Sequence[str]) -> np.ndarray:
    """Rows `(n,)` of a confounded set: one class of each study, classes spread over the studies.

    Where every study holds one class anyway, these are all rows.
    """
    labels, studies = np.asarray(labels, dtype=str), np.asarray(studies, dtype=str)
    kept, taken = np.zeros(len(labels), dtype=bool), dict.fromkeys(np.unique(labels), 0)
    for study in np.unique(studies):
        here = studies == study
        chosen = min(np.unique(labels[here]), key=taken.__getitem__)
        taken[chosen] += 1
        kept |= here & (labels == chosen)
    return kept


def confounding(labels: Sequence[str], studies: Sequence[str], patients: Sequence[str]
                ) -> pd.DataFrame:
    """Whether a class can be told from the study that it comes from, class by class.

    Returns
    -------
    pd.DataFrame
        ``label, n_rows, n_patients, n_studies, shared`` (share of its rows from studies that hold
        another class as well) and ``note``.
    """
    table = pd.DataFrame({"label": labels, "study": studies, "patient": patients}, dtype=str)
    table["shared"] = table.groupby("study")["label"].transform("nunique") > 1
    found = table.groupby("label").agg(
        n_rows=("study", "size"), n_patients=("patient", "nunique"),
        n_studies=("study", "nunique"), shared=("shared", "mean")).reset_index()
    found["note"] = np.where(found["shared"] == 0, "origin and scanner are confounded", "")
    return found


def thin(groups: Sequence[str], most: int, seed: int = 0) -> np.ndarray:
    """Positions of at most `most` rows of each group, drawn at random, in their order."""
    rng, groups = np.random.default_rng(seed), np.asarray(groups, dtype=str)
    kept = [rng.permutation(np.flatnonzero(groups == name))[:most] for name in np.unique(groups)]
    return np.sort(np.concatenate(kept))


def confusion_table(scores: Scores) -> pd.DataFrame:
    """Which class was called which: is, called, and the share of the true class that was."""
    counts = scores.confusion.sum(axis=0)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return pd.DataFrame([
        {"is": true, "called": called, "share": share[row, column]}
        for row, true in enumerate(scores.classes)
        for column, called in enumerate(scores.classes)])


def confusion_matrix(scores: Scores, ax: "Axes") -> "Axes":
    """Draw `confusion_table`, true classes as rows."""
    n = len(scores.classes)
    share = confusion_table(scores)["share"].to_numpy().reshape(n, n)
    ax.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(*share.shape):
        ax.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", fontsize=6.5,
                color="white" if share[row, column] > 0.55 else "black")
    names = [name.replace(" ", "\n") for name in scores.classes]
    ax.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 6 else 0)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="called", ylabel="is")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax
