"""How many studies a paired comparison needs, from what papers report of their encoders."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mvhlib.artifacts import InputError
from mvhlib.statistics import Interval


@dataclass(frozen=True)
class Published:
    """Two encoders' scores under leave-one-study-out as a paper prints them.

    Attributes
    ----------
    comparison
        What is compared, on which genes.
    mean_a, sd_a, mean_b, sd_b
        Means and standard deviations over studies.
    n_studies
        Studies that they rest on.
    source
        Where it is printed.
    """

    comparison: str
    mean_a: float
    sd_a: float
    mean_b: float
    sd_b: float
    n_studies: int
    source: str

    @property
    def gap(self) -> float:
        return self.mean_a - self.mean_b


#: Leave-one-study-out Pearson correlation over 200 genes and eight studies.
PUBLISHED_GAPS = (
    Published("MVHybrid - ViT12, 200 highly variable genes", 0.138, 0.102, 0.097, 0.108, 8,
              "MVHybrid, arXiv 2508.00383"),
    Published("MVHybrid - ViT12, 200 high-mean highly variable genes", 0.212, 0.166, 0.110, 0.203,
              8, "MVHybrid, arXiv 2508.00383"),
)

#: Correlations between two encoders' scores over studies for which power is tabulated.
POWER_CORRELATIONS = (0.0, 0.5, 0.8, 0.95)


def sd_of_difference(sd_a: float, sd_b: float, correlation: float) -> float:
    """Standard deviation of paired differences, `sqrt(a^2 + b^2 - 2 r a b)`.

    A paper that prints two standard deviations and not this one hides what a paired test needs.

    Raises
    ------
    InputError
        On a negative standard deviation or a correlation beyond -1 to 1.
    """
    if sd_a < 0 or sd_b < 0 or not -1 <= correlation <= 1:
        raise InputError("power", "spread", f"is {sd_a}, {sd_b} at correlation {correlation}",
                         "give standard deviations of at least 0 and a correlation of -1 to 1")
    return float(np.sqrt(max(sd_a**2 + sd_b**2 - 2 * correlation * sd_a * sd_b, 0.0)))


def paired_power(gap: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test, by statsmodels' `TTestPower`.

    Parameters
    ----------
    gap
        True mean difference.
    sd
        Standard deviation of the differences.
    n
        Pairs (studies).
    alpha
        Level of the test.
    """
    from statsmodels.stats.power import TTestPower

    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0 if gap else alpha
    # From a thousand standard errors on, scipy's noncentral t leaves its range.
    if abs(gap) * np.sqrt(n) / sd > 30 + stats.t.ppf(1 - alpha / 2, n - 1):
        return 1.0
    return float(min(1.0, TTestPower().power(abs(gap) / sd, n, alpha)))


def studies_needed(gap: float, sd: float, *, power: float = 0.8, alpha: float = 0.05,
                   most: int = 100_000) -> float:
    """Fewest pairs that give a paired t test this power.

    Returns
    -------
    float
        A whole number; infinite where `most` pairs do not suffice, as for a gap of 0.

    Raises
    ------
    InputError
        If `power` is not above `alpha` and below 1.
    """
    from statsmodels.stats.power import TTestPower

    if not alpha < power < 1:
        raise InputError("power", "power", f"is {power} at level {alpha}",
                         "choose a power above the level and below 1")
    if gap == 0 or paired_power(gap, sd, most, alpha) < power:
        return float("inf")
    if paired_power(gap, sd, 2, alpha) >= power:
        return 2.0
    return float(np.ceil(TTestPower().solve_power(abs(gap) / sd, alpha=alpha, power=power)))


def score_correlation(a: Sequence[float], b: Sequence[float],
                      confidence: float = 0.95) -> Interval:
    """Correlation between two encoders' scores over units, with Fisher's z interval.

    What a paired test gains by pairing, by `scipy.stats.pearsonr`; from four units on there is an
    interval.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError("correlation", "pairs", f"{a.shape} against {b.shape}",
                         "give one score per unit for both, in one order")
    known = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[known], b[known], int(known.sum())
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), n, "fisher z")
    found = stats.pearsonr(a, b)
    if n < 4 or abs(found.statistic) == 1:
        return Interval(float(found.statistic), float("nan"), float("nan"), n, "fisher z")
    bounds = found.confidence_interval(confidence)
    return Interval(float(found.statistic), float(bounds.low), float(bounds.high), n, "fisher z")


def power_table(gaps: Sequence[Published] = PUBLISHED_GAPS,
                correlations: Sequence[float] = POWER_CORRELATIONS, *,
                measured: float | None = None, power: float = 0.8,
                alpha: float = 0.05) -> pd.DataFrame:
    """How many studies would show the gaps that papers report, by a paired t test.

    The published standard deviations are taken for the true ones; a paper that prints no
    correlation between its encoders leaves the answer open by an order of magnitude.

    Parameters
    ----------
    gaps
        What was reported.
    correlations
        Between the two encoders' scores, over studies.
    measured
        The correlation found in this run; None or NaN leaves it out.
    power, alpha
        Of the test.

    Returns
    -------
    pd.DataFrame
        ``comparison, gap, sd_a, sd_b, correlation, assumed, sd_difference, n_needed,
        n_published, power_published``; ``assumed`` is False for the measured correlation,
        ``power_published`` the chance that the published number of studies had of showing the gap.
    """
    grid = [(float(value), True) for value in correlations]
    if measured is not None and np.isfinite(measured):
        grid.append((float(measured), False))
    rows = []
    for gap in gaps:
        for correlation, assumed in grid:
            sd = sd_of_difference(gap.sd_a, gap.sd_b, correlation)
            rows.append({
                "comparison": gap.comparison, "gap": gap.gap, "sd_a": gap.sd_a, "sd_b": gap.sd_b,
                "correlation": correlation, "assumed": assumed, "sd_difference": sd,
                "n_needed": studies_needed(gap.gap, sd, power=power, alpha=alpha),
                "n_published": gap.n_studies,
                "power_published": paired_power(gap.gap, sd, gap.n_studies, alpha)})
    return pd.DataFrame(rows, columns=["comparison", "gap", "sd_a", "sd_b", "correlation",
                                       "assumed", "sd_difference", "n_needed", "n_published",
                                       "power_published"])
