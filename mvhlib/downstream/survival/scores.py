"""Scores of one set of patients: Harrell's and Uno's C, Brier scores, Kaplan-Meier at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mvhlib.artifacts import TooFew


def comparable_pairs(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """`(n, n)` bool: row's event was seen, and column was known to live longer.

    A patient censored at the very time of another's event is taken to have outlived it.
    """
    longer = (time[:, None] < time) | ((time[:, None] == time) & (event == 0))
    return longer & (event[:, None] == 1)


def higher_risk(risk: np.ndarray) -> np.ndarray:
    """`(n, n)`: 1 where the row has the higher risk, 0.5 where both are equal."""
    return (risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)


def harrell_c(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Share of comparable pairs whose earlier event has the higher risk; ties count half.

    NaN where no pair is comparable. It depends on how patients were censored; see `uno_c`.
    """
    from lifelines.utils import concordance_index

    time, event, risk = (np.asarray(values, float) for values in (time, event, risk))
    if not comparable_pairs(time, event).any():
        return float("nan")
    return float(concordance_index(time, -risk, event))


@dataclass
class Censoring:
    """Kaplan-Meier estimate of the time to censoring; events leave before censorings of a time.

    Attributes
    ----------
    times, survival
        Where it steps, and its value from there on.
    """

    times: np.ndarray
    survival: np.ndarray

    @classmethod
    def fit(cls, time: np.ndarray, event: np.ndarray) -> "Censoring":
        time, event = np.asarray(time, float), np.asarray(event, int)
        times, code = np.unique(time, return_inverse=True)
        events = np.bincount(code, event)
        censored = np.bincount(code, 1 - event)
        at_risk = len(time) - np.cumsum(np.r_[0, (events + censored)[:-1]]) - events
        step = np.where(at_risk > 0, 1 - censored / np.maximum(at_risk, 1), 1.0)
        return cls(times, np.cumprod(step))

    def at(self, time: np.ndarray) -> np.ndarray:
        """Probability of being censored later than `time`."""
        return np.r_[1.0, self.survival][np.searchsorted(self.times, time, side="right")]

    def before(self, time: np.ndarray) -> np.ndarray:
        """Probability of being censored at `time` or later."""
        return np.r_[1.0, self.survival][np.searchsorted(self.times, time, side="left")]


def uno_c(time: np.ndarray, event: np.ndarray, risk: np.ndarray, censoring: Censoring,
          tau: float = np.inf) -> float:
    """Uno's C: Harrell's, each pair weighed by the inverse square of the censoring survival.

    Parameters
    ----------
    censoring
        Of the training patients.
    tau
        Events from here on start no pair [the unit of `time`].

    Returns
    -------
    float
        NaN where no pair is comparable before `tau`.

    Raises
    ------
    InputError
        If no training patient was followed as long as an event that counts.
    """
    time, event, risk = (np.asarray(values, float) for values in (time, event, risk))
    counts = (event == 1) & (time < tau)
    remain = censoring.before(time)
    if (remain[counts] <= 0).any():
        raise TooFew("survival", "tau", f"{tau:g} lies beyond the follow-up of the training "
                         "patients", "use a shorter horizon")
    weight = np.where(counts, 1.0 / np.maximum(remain, 1e-300) ** 2, 0.0)
    pairs = comparable_pairs(time, event) * weight[:, None]
    total = pairs.sum()
    return float((pairs * higher_risk(risk)).sum() / total) if total > 0 else float("nan")


def brier_scores(time: np.ndarray, event: np.ndarray, survival: np.ndarray, times: np.ndarray,
                 censoring: Censoring) -> np.ndarray:
    """Brier score at each of `times`, `(m,)`, with inverse censoring weights (Graf et al. 1999).

    Parameters
    ----------
    survival
        Predicted probability of living beyond each of `times`, `(n, m)`.
    times
        Increasing; the last must lie within the follow-up of the training patients.

    Raises
    ------
    InputError
        If nobody of the training patients was followed that long.
    """
    time, event = np.asarray(time, float), np.asarray(event, float)
    times, survival = np.asarray(times, float), np.asarray(survival, float)
    remain = censoring.at(times)  # (m,)
    if remain[-1] <= 0:
        raise TooFew("survival", "horizon", f"{times[-1]:g} lies beyond the follow-up of the "
                         "training patients", "use a shorter horizon")
    died = (time[:, None] <= times) & (event[:, None] == 1)  # (n, m)
    lives = time[:, None] > times
    before = np.maximum(censoring.before(time), 1e-300)[:, None]
    return (died * survival**2 / before + lives * (1 - survival) ** 2 / remain).mean(axis=0)


def integrated_brier(time: np.ndarray, event: np.ndarray, survival: np.ndarray, times: np.ndarray,
                     censoring: Censoring) -> float:
    """Mean of `brier_scores` over the span of `times`, by the trapezoid rule."""
    times = np.asarray(times, float)
    scores = brier_scores(time, event, survival, times, censoring)
    return float(np.trapezoid(scores, times) / (times[-1] - times[0]))


def kaplan_meier_at(time: np.ndarray, event: np.ndarray, times: Any) -> np.ndarray:
    """Kaplan-Meier estimate of survival at `times`; NaN beyond a last time that was censored."""
    from lifelines import KaplanMeierFitter

    time = np.asarray(time, float)
    times = np.atleast_1d(np.asarray(times, float))
    values = KaplanMeierFitter().fit(time, event).survival_function_at_times(times).to_numpy()
    unknown = (times > time.max()) & (values > 0)
    return np.where(unknown, np.nan, values)
