"""Scores with intervals by resampling patients, and the confusion of classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import statistics
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: More units than this are bundled at random for the bootstrap, whose tables grow with the square.
MOST_UNITS = 1000


@dataclass(frozen=True)
class Scores:
    """Counts per patient for every score and its bootstrap.

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
        raise InputError("probe", "truth", f"has {sorted(set(truth) - set(classes))}, on which "
                         "the classifier was not trained", "train on every class")
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


def confusion_table(scores: Scores) -> pd.DataFrame:
    """Confusion of classes: columns is, called, and the share of the true class."""
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
