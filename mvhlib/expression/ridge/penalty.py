"""Choice of the ridge penalty by leaving out one training unit at a time."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.expression.ridge.moments import GroupMoments

#: Penalties in units of a standardised feature's sum of squares per row; HEST's users found
#: optima in the thousands, small cohorts lie lower.
DEFAULT_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 5, 13))


def check_alphas(alphas: float | Sequence[float]) -> tuple[float, ...]:
    """Return penalties as a tuple; refuse 0, for which fewer spots than features have no solution.

    Raises
    ------
    InputError
        If there is none, or one is not positive and finite.
    """
    values = tuple(float(alpha) for alpha in np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    if not values or not np.isfinite(values).all() or min(values) <= 0:
        raise InputError("ridge", "alphas", f"{list(values)} are not all positive",
                         "give penalties above 0")
    return values


@dataclass(frozen=True)
class Choice:
    """The penalty chosen on inner folds.

    Attributes
    ----------
    alpha
        The penalty.
    curve
        Criterion per penalty `(A,)`; NaN everywhere when there was nothing to choose.
    n_inner
        Inner folds that it rests on.
    at_edge
        Whether it is the smallest or largest offered, so that a wider grid might do better.
    """

    alpha: float
    curve: np.ndarray
    n_inner: int
    at_edge: bool


def inner_folds(units: Mapping[Hashable, Hashable], n_inner: int) -> list[list[Hashable]]:
    """Inner validation sets: groups of one unit together, at most `n_inner` sets.

    Parameters
    ----------
    units
        Unit (study, patient, section, block) of each training group.
    n_inner
        With more units than this, units are dealt to the sets in the order of their names.
    """
    names = sorted(set(units.values()), key=str)
    place = {name: number % max(2, n_inner) for number, name in enumerate(names)}
    sets: dict[int, list[Hashable]] = {}
    for group, unit in units.items():
        sets.setdefault(place[unit], []).append(group)
    return [sets[number] for number in sorted(sets)]


def choose_alpha(moments: GroupMoments, units: Mapping[Hashable, Hashable],
                 alphas: Sequence[float], *, columns: Sequence[int] | None = None,
                 criterion: str = "pcc", n_inner: int = 8) -> Choice:
    """Choose the penalty by leaving out one training unit at a time.

    The criterion is averaged over genes (without those that are constant), then over the held-out
    groups, then over inner folds. ``"pcc"`` is the quantity that is reported; it does not see
    offsets between sections, which inner folds by study would otherwise punish. A tie goes to the
    larger penalty.

    Parameters
    ----------
    moments
        Of all groups.
    units
        Training group -> unit that is left out together. Nothing else is looked at.
    alphas
        Penalties to choose from.
    columns
        Genes of this fold; None for all.
    criterion
        ``"pcc"`` (largest) or ``"mse"`` (smallest).
    n_inner
        Most inner folds; see `inner_folds`.

    Returns
    -------
    Choice
        With the geometric middle of `alphas` when the training set has a single unit.

    Raises
    ------
    InputError
        On an unknown criterion.
    """
    if criterion not in ("pcc", "mse"):
        raise InputError("ridge", "criterion", f"{criterion!r} is not known",
                         "use 'pcc' or 'mse'")
    alphas = check_alphas(alphas)
    if len(alphas) == 1:
        return Choice(alphas[0], np.full(1, np.nan), 0, False)
    folds = inner_folds(units, n_inner)
    nothing = Choice(float(np.sort(alphas)[len(alphas) // 2]), np.full(len(alphas), np.nan), 0,
                     False)
    if len(folds) < 2:
        return nothing
    curves = []
    for held_out in folds:
        out = set(held_out)
        fit = moments.decompose([group for group in units if group not in out]).fit(columns)
        scores = []
        for group in held_out:
            pcc, mse = fit.score(moments.groups[group].genes(columns), alphas)
            scores.append(_mean_known(pcc) if criterion == "pcc" else -mse.mean(axis=1))
        curves.append(_mean_known(np.array(scores).T))
    curve = _mean_known(np.array(curves).T)
    if not np.isfinite(curve).any():
        return nothing
    order = np.argsort(alphas)[::-1]
    values = np.where(np.isfinite(curve), curve, -np.inf)
    best = order[np.argmax(values[order])]
    edge = bool(best in (order[0], order[-1]))
    return Choice(alphas[best], curve if criterion == "pcc" else -curve, len(folds), edge)


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis without NaN; NaN where nothing is known."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
