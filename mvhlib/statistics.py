"""Intervals and tests over few clusters.

The unit of inference is the patient or the study, never the spot: spots of one section share
stain, library and neighbourhood. Scores are averaged within a unit first, and these functions see
one number per unit. With five units, no paired test can reach 0.05, however large the effect; that
is said instead of a p-value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mvhlib.artifacts import InputError

#: From so many clusters on, the percentile bootstrap covers; below it is too narrow.
PERCENTILE_FROM = 30

#: Up to so many pairs every flip of signs is enumerated.
ENUMERATE_TO = 16

IMPOSSIBLE = "no test possible at this n"


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes
    ----------
    mean, low, high
        The last two NaN where the number of units allows no interval.
    n
        Units that it rests on.
    method
        How it was made.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str


def _known(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    return values[np.isfinite(values)]


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval on the means of clusters.

    Exact for normal cluster means at any number from two on, and the standard recommendation for
    few clusters (Cameron and Miller, "A practitioner's guide to cluster-robust inference", J. Human
    Resources 2015). NaN values are left out; the number of units says so.
    """
    values = _known(values)
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else float("nan"), float("nan"), float("nan"), n,
                        "t")
    mean = float(values.mean())
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, "t")


def unit_means(scores: pd.DataFrame, unit: str, *, by: Sequence[str] = (), value: str = "pcc",
               within: Sequence[str] = (), over: str = "mean") -> pd.Series:
    """Average scores to one number per unit of inference: genes, then sections, then units.

    A section counts once whatever it measured, and a unit once however many sections it has. Genes
    without a score (NaN) are left out.

    Parameters
    ----------
    scores
        One row per gene of a section, or per section; columns `unit`, ``section``, `value`, those
        of `by` and of `within`.
    unit
        Column of the unit of inference: ``study``, ``patient``, or ``section`` where replicates of
        one patient are all there is.
    by
        Columns that are kept apart, such as ``encoder``.
    value
        Column that is averaged.
    within
        Columns that are averaged within a section before sections are, such as ``fold`` where a
        section is scored by several.
    over
        How genes are put together within a section: ``mean`` or ``median``.

    Returns
    -------
    pd.Series
        Indexed by `by` and `unit`, sorted; ``.unstack(by)`` gives a column per series.
    """
    section = list(dict.fromkeys([*by, unit, "section"]))
    means = scores.groupby([*section, *within])[value].agg(over)
    if within:
        means = means.groupby(section).mean()
    return means.groupby([*by, unit]).mean()


def unit_table(scores: pd.DataFrame, unit: str, *, by: Sequence[str] = (), value: str = "pcc",
               within: Sequence[str] = (), over: str = "mean",
               confidence: float = 0.95) -> pd.DataFrame:
    """Mean over units with Student's interval at their number.

    Parameters
    ----------
    scores, unit, by, value, within, over
        See `unit_means`.

    Returns
    -------
    pd.DataFrame
        Columns of `by`, then ``unit, n_units, mean, ci_low, ci_high``; rows in the order in which
        `scores` names them first. The interval is NaN at one unit.
    """
    means = unit_means(scores, unit, by=by, value=value, within=within, over=over)
    order = list(dict.fromkeys(zip(*(scores[name] for name in by), strict=True))) if by else [()]
    rows = []
    for keys in order:
        own = means.loc[keys] if by else means
        rows.append((*keys, *unit_row(own, unit, confidence).values()))
    return pd.DataFrame(rows, columns=[*by, "unit", "n_units", "mean", "ci_low", "ci_high"])


def unit_row(values: Sequence[float], unit: str, confidence: float = 0.95) -> dict[str, Any]:
    """One number per unit as the cells of a table: unit, n_units, mean, ci_low, ci_high."""
    found = t_interval(values, confidence)
    return {"unit": unit, "n_units": found.n, "mean": found.mean, "ci_low": found.low,
            "ci_high": found.high}


def combine(*sources: Interval) -> Interval:
    """The interval of one mean that several independent sources of chance move.

    Half-widths add as the root of the sum of their squares, as independent errors do: another
    seed of the training and another study, say. Either interval alone covers too little, and the
    wider of the two still does (`benchmarks/coverage.csv`).

    Parameters
    ----------
    sources
        Intervals around the same mean, one per source.

    Returns
    -------
    Interval
        NaN bounds where a source allows no interval; ``n`` is the smallest of theirs.
    """
    half = np.sqrt(sum(((each.high - each.low) / 2) ** 2 for each in sources))
    mean = sources[0].mean
    return Interval(mean, mean - half, mean + half, min(each.n for each in sources),
                    "root of summed squares")


def bootstrap_t_interval(values: Sequence[float], confidence: float = 0.95, *,
                         n_boot: int = 1999, rng: np.random.Generator) -> Interval:
    """Studentised bootstrap interval on the means of clusters.

    The quantiles of `(mean* - mean) / se*` replace those of Student's t, so that skewed clusters
    are covered as well (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter
    12.5). Resamples without spread carry no `se*`: their t is infinite with the sign of the
    difference, which widens the interval instead of dropping them in silence. Where that reaches
    the quantile itself (fewer than four clusters), Student's t is returned and named.
    """
    values = _known(values)
    n = len(values)
    if n < 2:
        return t_interval(values, confidence)
    mean, se = values.mean(), values.std(ddof=1) / np.sqrt(n)
    draws = values[rng.integers(0, n, size=(n_boot, n))]
    spread = draws.std(axis=1, ddof=1) / np.sqrt(n)
    flat = spread <= 1e-12 * max(abs(mean), se)
    difference = draws.mean(axis=1) - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(flat, np.sign(difference) * np.inf, difference / spread)
    t[np.isnan(t)] = 0.0
    tail = (1 - confidence) / 2
    low_t, high_t = np.quantile(t, [tail, 1 - tail], method="inverted_cdf")
    if not (np.isfinite(low_t) and np.isfinite(high_t)):
        return t_interval(values, confidence)
    return Interval(float(mean), float(mean - high_t * se), float(mean - low_t * se), n,
                    "bootstrap-t")


def percentile_interval(values: Sequence[float], confidence: float = 0.95, *,
                        n_boot: int = 1999, rng: np.random.Generator) -> Interval:
    """Percentile bootstrap interval over clusters, with expanded percentiles.

    The percentiles are moved outward by what Student's t and the sample variance ask for at this
    number, which the plain ones lack (Hesterberg, "What teachers should know about the bootstrap",
    The American Statistician 2015, section 5): simulated at 30 clusters, the plain form covers
    93 %, this one 95 %.

    Raises
    ------
    InputError
        With fewer than 30 clusters, where percentiles of resamples are too narrow and too
        coarse (4 clusters, plain form: about 80 % where 95 % are meant).
    """
    values = _known(values)
    if len(values) < PERCENTILE_FROM:
        raise InputError("statistics", "clusters", f"are {len(values)}, the percentile bootstrap "
                         f"needs {PERCENTILE_FROM}", "use t_interval or bootstrap_t_interval")
    means = values[rng.integers(0, len(values), size=(n_boot, len(values)))].mean(axis=1)
    n = len(values)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + confidence / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), len(values), "percentile")


def spatial_block_bootstrap(estimate: float, statistic: Callable[[list[np.ndarray]], np.ndarray],
                            n_blocks: Sequence[int], confidence: float = 0.95, *,
                            n_boot: int = 999, rng: np.random.Generator) -> Interval:
    """Interval for a score inside given sections, by resampling blocks of neighbouring spots.

    Blocks are drawn with replacement within each section, which keeps the autocorrelation inside
    a block (Lahiri, "Resampling methods for dependent data", 2003, chapter 12). The standard
    deviation of the statistic over draws, corrected for the number of blocks, is multiplied by
    Student's t on `blocks - sections` degrees of freedom: the percentiles themselves would be too
    narrow for few blocks. It speaks of these sections only, of no other patient.

    Parameters
    ----------
    estimate
        The statistic on the data as they are.
    statistic
        Takes one weight matrix `(R, K_s)` per section (how often each block was drawn) and
        returns `(R,)`.
    n_blocks
        Blocks of each section, `K_s`.
    confidence
        Coverage wanted.
    n_boot
        Draws `R`.
    rng
        Source of randomness.
    """
    n_blocks = [int(number) for number in n_blocks]
    total, freedom = sum(n_blocks), sum(n_blocks) - len(n_blocks)
    if freedom < 1:
        return Interval(float(estimate), float("nan"), float("nan"), total, "spatial blocks")
    weights = [rng.multinomial(number, np.full(number, 1 / number), size=n_boot).astype(np.float64)
               for number in n_blocks]
    draws = _known(statistic(weights))
    if len(draws) < n_boot / 2:
        return Interval(float(estimate), float("nan"), float("nan"), total, "spatial blocks")
    error = draws.std(ddof=1) * np.sqrt(total / freedom)
    half = stats.t.ppf(0.5 + confidence / 2, freedom) * error
    return Interval(float(estimate), float(estimate - half), float(estimate + half), total,
                    "spatial blocks")


def smallest_p(n: int) -> float:
    """Smallest two-sided p of a paired sign-flip or signed-rank test with `n` non-zero pairs.

    Of the `2^n` equally likely patterns of signs, two are the most extreme.
    """
    return min(1.0, 2.0 ** (1 - n))


def signed_rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided Wilcoxon signed-rank p of paired scores.

    Zeros are dropped and ties get middle ranks; the distribution over all patterns of signs is
    convolved exactly, ties included (Wilcoxon 1945; Hollander, Wolfe and Chicken, "Nonparametric
    statistical methods", 2014, chapter 3).
    """
    difference = _differences(a, b)
    if len(difference) == 0:
        return 1.0
    # Twice the middle ranks are whole numbers, so the convolution is over integers.
    ranks = np.rint(2 * stats.rankdata(np.abs(difference))).astype(np.int64)
    patterns = np.zeros(ranks.sum() + 1)
    patterns[0] = 1.0
    for rank in ranks:
        shifted = np.zeros_like(patterns)
        shifted[rank:] = patterns[:-rank]
        patterns = (patterns + shifted) / 2
    positive = int(ranks[difference > 0].sum())
    extreme = min(positive, int(ranks.sum()) - positive)
    return float(min(1.0, 2 * patterns[:extreme + 1].sum()))


def sign_flip_test(a: Sequence[float], b: Sequence[float], *, n_draws: int = 9999,
                   rng: np.random.Generator | None = None) -> float:
    """Two-sided permutation p of the mean paired difference, by flipping signs.

    Up to 16 pairs all flips are enumerated; beyond, `n_draws` random ones with the observed one
    counted among them (Phipson and Smyth, "Permutation p-values should never be zero", 2010).

    Raises
    ------
    InputError
        With more than 16 pairs and no `rng`.
    """
    difference = _differences(a, b)
    n = len(difference)
    if n == 0:
        return 1.0
    observed = abs(difference.sum())
    tolerance = 1e-12 * np.abs(difference).sum()
    if n <= ENUMERATE_TO:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        sums = (1 - 2 * bits) @ difference
        return float((np.abs(sums) >= observed - tolerance).mean())
    if rng is None:
        raise InputError("sign_flip_test", "rng", f"is needed for {n} pairs",
                         "pass a numpy Generator")
    sums = (1 - 2 * rng.integers(0, 2, size=(n_draws, n))) @ difference
    return float((1 + (np.abs(sums) >= observed - tolerance).sum()) / (n_draws + 1))


def _differences(a, b) -> np.ndarray:
    """Non-zero differences of pairs that are known on both sides."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError("paired test", "pairs", f"{a.shape} against {b.shape}",
                         "give one score per unit for both, in one order")
    difference = (a - b)[np.isfinite(a) & np.isfinite(b)]
    return difference[difference != 0]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction; NaN stays NaN and does not count (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def compare(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], *,
            confidence: float = 0.95, alpha: float = 0.05,
            rng: np.random.Generator | None = None) -> pd.DataFrame:
    """Paired comparisons of one family, corrected together.

    Parameters
    ----------
    pairs
        Name of a comparison -> scores of both sides, one per unit and in one order. Name one
        primary comparison in advance and give it alone; further ones are a family of their own.
    confidence
        Of the interval of the mean difference (Student's t).
    alpha
        Level that the smallest attainable p is held against.
    rng
        For more than 16 pairs.

    Returns
    -------
    pd.DataFrame
        ``comparison, n_units, difference, ci_low, ci_high, p_wilcoxon, p_permutation, p_smallest,
        p_wilcoxon_holm, p_permutation_holm, note``. Where the smallest p that `n` can give is
        above `alpha`, the p-values are NaN, the note says so, and effect and interval remain.
    """
    rows = []
    for name, (a, b) in pairs.items():
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        nonzero = _differences(a, b)
        interval = t_interval(a - b, confidence)
        least = smallest_p(interval.n)
        possible = least <= alpha
        rows.append({
            "comparison": name, "n_units": interval.n, "difference": interval.mean,
            "ci_low": interval.low, "ci_high": interval.high,
            "p_wilcoxon": signed_rank_test(a, b) if possible else np.nan,
            "p_permutation": sign_flip_test(a, b, rng=rng) if possible else np.nan,
            "p_smallest": least,
            "note": IMPOSSIBLE if not possible else
                    "" if len(nonzero) == interval.n else
                    f"{interval.n - len(nonzero)} pairs do not differ"})
    frame = pd.DataFrame(rows, columns=["comparison", "n_units", "difference", "ci_low",
                                        "ci_high", "p_wilcoxon", "p_permutation", "p_smallest",
                                        "note"])
    frame.insert(8, "p_wilcoxon_holm", holm(frame["p_wilcoxon"]))
    frame.insert(9, "p_permutation_holm", holm(frame["p_permutation"]))
    return frame


#: Columns of a verdict by `judge`.
JUDGED_COLUMNS = ("claim", "better", "worse", "unit", "n_units", "difference", "ci_low", "ci_high",
                  "verdict")


def judge(units: pd.DataFrame, words: str, better: str, worse: str | None = None, *,
          unit: str = "patient") -> dict[str, Any]:
    """Whether the arm that authors call better is better here, unit by unit.

    Parameters
    ----------
    units
        One row per unit of inference, one column per arm.
    words
        The claim, as it stands in the table.
    better, worse
        Arms; None takes the best of the others, a rival chosen by its result, which favours it a
        little.
    unit
        Its name; a verdict over sections speaks of these patients alone.

    Returns
    -------
    dict
        `JUDGED_COLUMNS`: Student's interval of the paired difference, one by one and not corrected
        for their number; the verdict is ``as claimed`` or ``the other way`` where it leaves zero
        out, else ``not decided``, and says so where no test is possible at this n.
    """
    rival = worse or str(units.mean().drop(better).idxmax())
    gap = t_interval(units[better] - units[rival])
    verdict = ("as claimed" if gap.low > 0 else "the other way" if gap.high < 0
               else "not decided")
    if verdict != "not decided":
        verdict += " on these sections" if unit == "section" else ""
        few = smallest_p(gap.n) > 0.05
        verdict += f", {IMPOSSIBLE}" if few else ""
    values = (words, better, rival, unit, gap.n, gap.mean, gap.low, gap.high, verdict)
    return dict(zip(JUDGED_COLUMNS, values, strict=True))


def sentence(judged: Mapping[str, Any]) -> str:
    """A row of `judge` to be read."""
    return (f"{judged['claim']}: {judged['verdict']} ({judged['better']} less {judged['worse']} "
            f"{judged['difference']:+.3f} [{judged['ci_low']:+.3f}, {judged['ci_high']:+.3f}], "
            f"{judged['n_units']} {judged['unit']}s)")


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
    """Power of the two-sided paired t test, in closed form.

    The statistic follows a noncentral t distribution with `n - 1` degrees of freedom and
    noncentrality `gap sqrt(n) / sd` (Cohen, "Statistical power analysis", 1988, chapter 2).

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
    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0 if gap else alpha
    limit, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(gap) * np.sqrt(n) / sd
    if shift > 30 + limit:  # scipy's noncentral t leaves its range there
        return 1.0
    # From the wrong side the test rejects as well, as rarely as that is.
    beyond = stats.nct.sf(limit, n - 1, shift) + np.nan_to_num(stats.nct.cdf(-limit, n - 1, shift))
    return float(min(1.0, beyond))


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
    if not alpha < power < 1:
        raise InputError("power", "power", f"is {power} at level {alpha}",
                         "ask for more than the level and less than 1")
    if gap == 0 or paired_power(gap, sd, most, alpha) < power:
        return float("inf")
    low, high = 1, 2
    while paired_power(gap, sd, high, alpha) < power:
        low, high = high, min(2 * high, most)
    while high - low > 1:  # power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if paired_power(gap, sd, middle, alpha) >= power else (middle,
                                                                                         high)
    return float(high)


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


def score_correlation(a: Sequence[float], b: Sequence[float],
                      confidence: float = 0.95) -> Interval:
    """Correlation between two encoders' scores over units, with Fisher's z interval.

    What a paired test gains by pairing; from four units on there is an interval (Fisher 1921).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError("correlation", "pairs", f"{a.shape} against {b.shape}",
                         "give one score per unit for both, in one order")
    known = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[known], b[known], int(known.sum())
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), n, "fisher z")
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if n < 4 or abs(r) == 1:
        return Interval(r, float("nan"), float("nan"), n, "fisher z")
    half = stats.norm.ppf(0.5 + confidence / 2) / np.sqrt(n - 3)
    return Interval(r, float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half)),
                    n, "fisher z")


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


@dataclass(frozen=True)
class Null:
    """A score beside what it would be without any relation between truth and prediction.

    Attributes
    ----------
    observed
        Mean over sections of the mean over genes of Pearson's r.
    low, high
        Between them lies 95 % (or the confidence asked for) of the null.
    p
        Two-sided, the observed order counted among the draws.
    p_smallest
        The least p that so many draws can give.
    draws
        The score of every draw, the observed one not among them.
    method
        ``"permutation"``, ``"toroidal shift"`` or ``"random shift"`` (not wrapped).
    """

    observed: float
    low: float
    high: float
    p: float
    p_smallest: float
    draws: np.ndarray
    method: str


def permutation_null(measured: Sequence[np.ndarray], predicted: Sequence[np.ndarray], *,
                     confidence: float = 0.95, n_draws: int = 999,
                     rng: np.random.Generator) -> Null:
    """Null of a score by permuting the spots within each section, all genes together.

    Exact where spots are exchangeable. Neighbouring spots are not: maps that are smooth on their
    own accord correlate by chance far more than their permutations do, and this null is then too
    narrow (simulated by `null_coverage`). `toroidal_null` keeps that smoothness.

    Parameters
    ----------
    measured, predicted
        `(T_s, G)` per section. Spots with a missing value are left out; genes that do not vary in a
        section are left out of it.
    confidence
        Share of the null between ``low`` and ``high``.
    n_draws
        Permutations.
    rng
        Source of randomness.

    Raises
    ------
    InputError
        On shapes that differ, or where no gene varies in any section.
    """
    observed, draws = [], []
    for truth, guess in _paired_maps(measured, predicted):
        x, y = _unit_columns(truth), _unit_columns(guess)
        both = (x != 0).any(axis=0) & (y != 0).any(axis=0)
        if not both.any():
            continue
        x, y = x[:, both], y[:, both]
        observed.append((x * y).sum() / both.sum())
        # r of a permuted map, summed over genes, is the sum of one entry per row of x y^T.
        products, rows = x @ y.T / both.sum(), np.arange(len(x))
        scores = []
        for start in range(0, n_draws, 100):
            orders = np.tile(rows, (min(100, n_draws - start), 1))
            scores.append(products[rows, rng.permuted(orders, axis=1)].sum(axis=1))
        draws.append(np.concatenate(scores))
    return _null(observed, draws, confidence, "permutation")


def toroidal_null(measured: Sequence[np.ndarray], predicted: Sequence[np.ndarray],
                  positions: Sequence[np.ndarray], *, confidence: float = 0.95,
                  n_draws: int = 999, min_overlap: float = 0.5, wrap: bool = True,
                  rng: np.random.Generator) -> Null:
    """Null of a score by shifting each prediction over its array.

    A shift destroys the relation between two maps and keeps the autocorrelation of both, genes
    included. Wrapped to a torus (Lotwick and Silverman, JRSS B 1982) all spots are used, but maps
    do not fit each other where the torus is closed, so that the null is slightly narrow for smooth
    maps on small sections. Without wrapping the overlap alone is used and its correlation scaled by
    the root of its share of the spots, since fewer pairs vary more (variance correction of
    Mrkvicka et al., "Revisiting the random shift approach for testing in spatial statistics",
    Spatial Statistics 2021); that is closer to what it promises. Simulated by `null_coverage` where
    95 % are meant, 20 x 20 spots, four sections: 94 % against 95 % for a kernel of 1.5 spots, 91 %
    against 97 % for one of 3; 30 sections of 16 x 16 spots, kernel 0.8: 93 % on the torus.
    Permutation of the spots gives 45 % at 1.5.

    Tissue is no rectangle: a shift is scored over the spots whose shifted place is a spot as well,
    and shifts that leave too few are not drawn. All shifts are computed at once by Fourier
    transform.

    Parameters
    ----------
    measured, predicted
        As in `permutation_null`.
    positions
        Integer row and column of every spot, `(T_s, 2)`, per section; see
        `mvhlib.lattice.array_positions`. On a
        hexagonal array columns count half pitches, so that row and column have one parity.
    confidence
        Share of the null between ``low`` and ``high``.
    n_draws
        Draws; each shifts every section by itself.
    min_overlap
        Least share of a section's spots that a shift must pair.
    wrap
        False for the second form above.
    rng
        Source of randomness.

    Raises
    ------
    InputError
        On shapes that differ, two spots on one place, or where no gene varies or no shift is left.
    """
    observed, draws = [], []
    positions = list(positions)
    maps = list(_paired_maps(measured, predicted, positions))
    for truth, guess, places in maps:
        scores = _shifted_scores(truth, guess, places, min_overlap, wrap)
        if scores is None:
            continue
        observed.append(scores[0])
        if len(scores) < 2:
            raise InputError("toroidal null", "positions", "leave no shift that pairs "
                             f"{min_overlap:.0%} of the spots", "lower min_overlap")
        draws.append(rng.choice(scores[1:], size=n_draws))
    return _null(observed, draws, confidence, "toroidal shift" if wrap else "random shift")


def _paired_maps(measured, predicted, positions=None):
    """Yield truth and prediction of every section (and its positions), spots without NaN."""
    measured, predicted = list(measured), list(predicted)
    lengths = {len(measured), len(predicted), len(measured if positions is None else positions)}
    if len(lengths) != 1 or not measured:
        raise InputError("null", "sections", f"differ in number: {sorted(lengths)}",
                         "give truth and prediction of the same sections")
    for number, (truth, guess) in enumerate(zip(measured, predicted, strict=True)):
        truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
        places = None if positions is None else np.asarray(positions[number])
        if truth.shape != guess.shape or truth.ndim != 2 or (
                places is not None and places.shape != (len(truth), 2)):
            raise InputError("null", f"section {number}", f"measured {truth.shape}, predicted "
                             f"{guess.shape}" + ("" if places is None else
                                                 f", positions {places.shape}"),
                             "give the same spots and genes in one order")
        known = np.isfinite(truth).all(axis=1) & np.isfinite(guess).all(axis=1)
        yield (truth[known], guess[known]) if places is None else (
            truth[known], guess[known], places[known])


def _unit_columns(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and norm 1; those that do not vary become 0."""
    if len(values) == 0:
        return values
    centred = values - values.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    varies = np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(axis=0)
    return np.where(varies, centred, 0.0) / np.where(varies, norm, 1.0)


def _shifted_scores(truth: np.ndarray, guess: np.ndarray, places: np.ndarray,
                    min_overlap: float, wrap: bool = True) -> np.ndarray | None:
    """Mean over genes of r for every shift that pairs enough spots; the first is no shift."""
    if len(truth) == 0:
        return None
    x, y = _unit_columns(truth), _unit_columns(guess)
    both = (x != 0).any(axis=0) & (y != 0).any(axis=0)
    if not both.any():
        return None
    places = places - places.min(axis=0)
    if not np.issubdtype(places.dtype, np.integer):
        raise InputError("toroidal null", "positions", "are not whole numbers",
                         "use array_positions of the spot centres")
    height, width = places.max(axis=0) + 1
    parity = places.sum(axis=1) % 2
    hexagonal = len(places) > 3 and (parity == parity[0]).all()
    if hexagonal:  # an odd torus would break the rows' alternation
        height, width = height + height % 2, width + width % 2
    if not wrap:  # so much glass around that nothing meets itself
        height, width = 2 * height, 2 * width
    flat = places[:, 0] * width + places[:, 1]
    if len(np.unique(flat)) < len(flat):
        raise InputError("toroidal null", "positions", "put two spots on one place",
                         "use array_positions of the spot centres")

    def spectrum(values):  # (T, G) -> (G, height, width // 2 + 1)
        grid = np.zeros((values.shape[1], height * width))
        grid[:, flat] = values.T
        return np.fft.rfft2(grid.reshape(-1, height, width))

    def correlate(one, other):  # sum over spots p of one(p + shift) other(p)
        return np.fft.irfft2(one * np.conj(other), s=(height, width)).reshape(len(one), -1)

    mask = spectrum(np.ones((len(places), 1)))
    count = np.rint(correlate(mask, mask)[0])
    enough = count >= max(min_overlap * len(places), 3)
    enough[0] = True
    total, genes = np.zeros(int(enough.sum())), np.zeros(int(enough.sum()))
    n = count[enough]
    for gene in np.flatnonzero(both):
        x1, y1 = spectrum(x[:, [gene]]), spectrum(y[:, [gene]])
        x2, y2 = spectrum(x[:, [gene]] ** 2), spectrum(y[:, [gene]] ** 2)
        sx, sxx = correlate(mask, x1)[0][enough], correlate(mask, x2)[0][enough]
        sy, syy = correlate(y1, mask)[0][enough], correlate(y2, mask)[0][enough]
        sxy = correlate(y1, x1)[0][enough]
        vx, vy = sxx - sx**2 / n, syy - sy**2 / n
        good = (vx > 1e-9) & (vy > 1e-9)  # of columns whose squares sum to 1
        r = (sxy - sx * sy / n) / np.sqrt(np.where(good, vx * vy, 1.0))
        if not wrap:  # fewer pairs vary more
            r = r * np.sqrt(n / len(places))
        total += np.where(good, np.clip(r, -1, 1), 0.0)
        genes += good
    return (total / np.maximum(genes, 1))[genes > 0]


def _null(observed: list[float], draws: list, confidence: float, method: str) -> Null:
    if not observed:
        raise InputError("null", "genes", "do not vary in any section",
                         "give measured and predicted expression")
    score = float(np.mean(observed))
    null = np.mean(np.asarray(draws, dtype=np.float64), axis=0)
    ranked, n = np.sort(null), len(null)
    # Order statistics, so that a draw of the null lies outside with the probability promised.
    tail = max(int(np.floor((n + 1) * (1 - confidence) / 2 + 1e-9)), 1)
    centre = float(null.mean())
    beyond = (np.abs(null - centre) >= abs(score - centre) - 1e-12).sum()
    return Null(score, float(ranked[tail - 1]), float(ranked[n - tail]),
                float((1 + beyond) / (n + 1)), 1 / (n + 1), null, method)


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
        null = (permutation_null(truth, guess, n_draws=n_draws, rng=rng)
                if method == "permutation" else
                toroidal_null(truth, guess, [places] * n_sections, n_draws=n_draws,
                              wrap=method == "toroidal shift", rng=rng))
        hits += null.low < null.observed < null.high
    return hits / n_repetitions
