"""Folds that keep patients or studies together, and the random ones that do not."""

import warnings
from collections.abc import Sequence

import numpy as np

from mvhlib.artifacts import InputError

SPLITS = {"grouped": "unseen patients", "grouped_study": "unseen studies",
          "random": "random split\n(leaks patients)", "given": "the publishers' split"}


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
    n_folds = most_folds(labels, groups, split, n_folds)
    for attempt in range(100):
        fold = deal(labels, groups, split, n_folds, [seed, attempt])
        if all(set(labels[fold != k]) == set(labels) for k in range(n_folds)):
            return fold
    raise InputError("probe", "folds", f"{n_folds} leave no fold in which every class is trained",
                     "use fewer classes, or more patients")


def most_folds(labels: np.ndarray, groups: np.ndarray, split: str, n_folds: int) -> int:
    """At most one fold per unit, and per row of the largest class."""
    units = len(np.unique(groups)) if split == "grouped" else len(labels)
    return min(n_folds, units, int(np.unique(labels, return_counts=True)[1].max()))


def deal(labels: np.ndarray, groups: np.ndarray, split: str, n_folds: int,
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
