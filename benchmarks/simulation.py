"""Cohorts drawn at random, on which intervals, nulls and power are tried: for tests and tables."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from mvhlib import nulls
from mvhlib.artifacts import InputError
from mvhlib.power import sd_of_difference
from mvhlib.statistics import Interval, signed_rank_test, t_interval


def coverage(interval: Callable[[np.ndarray, np.random.Generator], Interval], n_clusters: int, *,
             n_repetitions: int = 2000, seed: int = 0, spots: int = 50,
             between: float = 0.1, within: float = 0.5, skew: float = 0.0) -> float:
    """Share of simulated cohorts whose interval holds the true mean.

    A cohort is `n_clusters` clusters; each has a true score (normal, or a shifted gamma with
    skewness `skew`, of standard deviation `between`) and `spots` noisy observations of it, which
    are averaged, as scores are.

    Parameters
    ----------
    interval
        Takes cluster means and a generator.
    n_clusters
        Clusters in a cohort.
    n_repetitions
        Cohorts to simulate.
    seed
        Fixed beforehand.
    spots, between, within
        Observations per cluster, spread of clusters, spread of observations.
    skew
        0 for normal clusters.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, n_clusters]))
    truth, hits = 0.3, 0
    for _ in range(n_repetitions):
        if skew:
            shape = 4 / skew**2
            effect = (rng.gamma(shape, size=n_clusters) - shape) / np.sqrt(shape)
        else:
            effect = rng.standard_normal(n_clusters)
        means = truth + between * effect + within / np.sqrt(spots) * rng.standard_normal(n_clusters)
        found = interval(means, rng)
        hits += bool(found.low <= truth <= found.high)
    return hits / n_repetitions


def two_way_coverage(together: Callable[[Interval, Interval], Interval], n_seeds: int,
                     n_units: int, *, n_repetitions: int = 2000, seed: int = 0,
                     of_seeds: float = 0.02, of_units: float = 0.03, rest: float = 0.03) -> float:
    """Share of simulated experiments whose combined interval holds the true difference.

    An experiment is a table of `n_seeds` trainings by `n_units` studies. Each training and each
    study moves the difference by its own, normal effect; what is left differs from cell to cell.

    Parameters
    ----------
    together
        Makes one interval of those over seeds and over units, as `mvhlib.statistics.combine` does.
    of_seeds, of_units, rest
        Standard deviations.
    """
    rng, truth, hits = np.random.default_rng([seed, n_seeds, n_units]), 0.1, 0
    for _ in range(n_repetitions):
        cells = (truth + of_seeds * rng.standard_normal((n_seeds, 1))
                 + of_units * rng.standard_normal(n_units)
                 + rest * rng.standard_normal((n_seeds, n_units)))
        found = together(t_interval(cells.mean(axis=1)), t_interval(cells.mean(axis=0)))
        hits += bool(found.low <= truth <= found.high)
    return hits / n_repetitions


def simulated_power(gap: float, sd_a: float, sd_b: float, correlation: float, n: int, *,
                    test: str = "t", alpha: float = 0.05, n_repetitions: int = 2000,
                    seed: int = 0) -> float:
    """Share of simulated cohorts in which a paired test finds the gap.

    Scores of both encoders are drawn from a bivariate normal distribution, one pair per study.

    Parameters
    ----------
    test
        ``"t"``, or ``"wilcoxon"``, which no number below six can satisfy at 0.05.
    gap, sd_a, sd_b, correlation, n, alpha
        See `sd_of_difference` and `paired_power`.
    n_repetitions, seed
        Of the simulation.

    Raises
    ------
    InputError
        On an unknown test.
    """
    if test not in ("t", "wilcoxon"):
        raise InputError("power", "test", f"{test!r} is not known", "use t or wilcoxon")
    sd_of_difference(sd_a, sd_b, correlation)  # refuses what makes no sense
    rng = np.random.default_rng(np.random.SeedSequence([seed, n]))
    x, y = rng.standard_normal((2, n_repetitions, n))
    a = gap + sd_a * x
    b = sd_b * (correlation * x + np.sqrt(1 - correlation**2) * y)
    p = (stats.ttest_rel(a, b, axis=1).pvalue if test == "t" else
         np.array([signed_rank_test(one, other) for one, other in zip(a, b, strict=True)]))
    return float((p <= alpha).mean())


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], smooth: float) -> np.ndarray:
    """Gaussian field of variance 1, cut from a larger one so that its borders do not meet.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        Rows and columns [spots].
    smooth
        Standard deviation of the kernel [spots]; 0 gives independent spots.
    """
    if smooth == 0:
        return rng.standard_normal(shape)
    reach = int(np.ceil(4 * smooth))
    offset = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offset / smooth) ** 2)
    kernel /= np.linalg.norm(kernel)
    white = rng.standard_normal((shape[0] + 2 * reach, shape[1] + 2 * reach))
    bands = []
    for length in shape:
        band = np.zeros((length, length + 2 * reach))
        for number, value in enumerate(kernel):
            band[np.arange(length), np.arange(length) + number] = value
        bands.append(band)
    return bands[0] @ white @ bands[1].T


def null_coverage(method: str, *, n_sections: int = 8, side: int = 20, smooth: float = 0.0,
                  n_genes: int = 1, n_draws: int = 199, n_repetitions: int = 2000,
                  seed: int = 0) -> float:
    """Share of simulated cohorts without any relation whose score lies inside the null's 95 %.

    Truth and prediction are independent Gaussian fields on square arrays.

    Parameters
    ----------
    method
        ``"permutation"``, ``"toroidal shift"`` or ``"random shift"`` (not wrapped).
    n_sections, side, n_genes
        Sections of a cohort; spots along a section's side; genes.
    smooth
        See `smooth_field`; 0 for spots that are exchangeable.
    n_draws, n_repetitions, seed
        Draws of each null; cohorts to simulate; fixed beforehand.

    Raises
    ------
    InputError
        On an unknown method.
    """
    if method not in ("permutation", "toroidal shift", "random shift"):
        raise InputError("null", "method", f"{method!r} is not known",
                         "use permutation, toroidal shift or random shift")
    rng = np.random.default_rng(np.random.SeedSequence([seed, n_sections, side]))
    places = np.stack(np.divmod(np.arange(side**2), side), 1)
    hits = 0
    for _ in range(n_repetitions):
        truth, guess = ([np.stack([smooth_field(rng, (side, side), smooth).ravel()
                                   for _ in range(n_genes)], 1) for _ in range(n_sections)]
                        for _ in range(2))
        null = (nulls.permutation_null(truth, guess, n_draws=n_draws, rng=rng)
                if method == "permutation" else
                nulls.toroidal_null(truth, guess, [places] * n_sections, n_draws=n_draws,
                              wrap=method == "toroidal shift", rng=rng))
        hits += null.low < null.observed < null.high
    return hits / n_repetitions
