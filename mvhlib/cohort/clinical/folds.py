"""Folds of patients that keep sites together."""

import os

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, TooFew


def site_folds(table: pd.DataFrame, n_folds: int = 5, seed: int = 0,
               group: str = "site") -> pd.DataFrame:
    """Folds that keep sites together and share out the events as evenly as that allows.

    Parameters
    ----------
    n_folds
        Reduced to the number of sites where there are fewer.
    group
        Column that must stand on one side; ``patient`` for no more than patients.

    Returns
    -------
    pd.DataFrame
        Columns fold, patient, role; checked by `check_folds`.

    Raises
    ------
    InputError
        With fewer than two sites.
    """
    fold_of = grouped_folds(table["event"].to_numpy(), table[group].astype(str).to_numpy(),
                            n_folds, seed)
    folds = pd.concat([pd.DataFrame({
        "fold": str(fold), "patient": table["patient"],
        "role": np.where(fold_of == fold, "test", "train")}) for fold in range(fold_of.max() + 1)],
        ignore_index=True)
    check_folds(folds, table, group=group)
    return folds


def grouped_folds(event: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of every row `(n,)` from 0: groups whole, events and rows as even as can be.

    Raises
    ------
    InputError
        With fewer than two groups.
    """
    names, code = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2:
        raise TooFew("folds", "groups", f"are {len(names)}", "give two groups or more")
    n_folds = min(n_folds, len(names))
    events = np.bincount(code, np.asarray(event, float))
    sizes = np.bincount(code)
    # largest number of events first into the fold that holds least; ties in random order
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.lexsort((-sizes[order], -events[order]))]
    load, home = np.zeros((n_folds, 2)), np.empty(len(names), dtype=np.int64)
    for group in order:
        fold = min(range(n_folds), key=lambda k: tuple(load[k]))
        home[group] = fold
        load[fold] += events[group], sizes[group]
    return home[code]


def check_folds(folds: pd.DataFrame, table: pd.DataFrame, group: str | None = None,
                where: str | os.PathLike = "folds") -> None:
    """Refuse folds that leak, disagree about who takes part, or cannot be scored.

    Parameters
    ----------
    folds
        Columns fold, patient, role (train, test).
    group
        Column of `table` that must not stand on both sides of a fold.
    where
        The folder or file that they are of, for the error.

    Raises
    ------
    InputError
        On a patient or group on both sides, patients that differ between folds, a patient who is
        tested more than once, or a side without events.
    """
    who = table.set_index("patient")
    if len(folds) == 0 or not set(folds["role"]) <= {"train", "test"}:
        raise InputError(where, "role", f"is {sorted(set(folds['role']))}",
                         "use train and test")
    unknown = sorted(set(folds["patient"]) - set(who.index))
    if unknown:
        raise InputError(where, "patient", f"{unknown[:3]} have no outcome",
                         "make the folds of this table")
    members = {}
    for fold, rows in folds.groupby("fold", sort=False):
        sides = {role: rows.loc[rows["role"] == role, "patient"] for role in ("train", "test")}
        both = sorted(set(sides["train"]) & set(sides["test"]))
        if both:
            raise InputError(where, "patient", f"{both[:3]} are on both sides of fold {fold}",
                             "put each patient on one side")
        if group is not None:
            shared = sorted(set(who.loc[sides["train"], group]) & set(who.loc[sides["test"],
                                                                              group]))
            if shared:
                raise InputError(where, group, f"{shared[:3]} are on both sides of fold {fold}",
                                 f"put all patients of one {group} on one side")
        for role, names in sides.items():
            if len(names) == 0 or who.loc[names, "event"].sum() == 0:
                raise TooFew(where, "event", f"fold {fold} has no {role} patient with an "
                                 "event", "use fewer folds")
        members[fold] = set(rows["patient"])
    first = next(iter(members))
    for fold, names in members.items():
        odd = sorted(names ^ members[first])
        if odd:
            raise InputError(where, "patient", f"{odd[:3]} are in one of the folds {first} "
                             f"and {fold} and not in the other", "use the same patients in all")
    tested = folds.loc[folds["role"] == "test", "patient"]
    if tested.duplicated().any():
        raise InputError(where, "patient", f"{list(tested[tested.duplicated()][:3])} are tested "
                         "in more than one fold", "test each patient once")
