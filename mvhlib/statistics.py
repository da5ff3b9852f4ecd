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

from mvhlib import phrases, verdicts
from mvhlib.artifacts import InputError

#: Up to so many pairs every flip of signs is enumerated.
ENUMERATE_TO = 16

IMPOSSIBLE = "no test possible at this n"


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

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
    seed of the training and another study, say. Either interval alone covers too little, and so
    does the wider of the two where seeds are many (`benchmarks/coverage.csv`).

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
    """Two-sided Wilcoxon signed-rank p of paired scores, by `scipy.stats.wilcoxon`.

    Zeros are dropped and ties get middle ranks. Exact without ties, and with them where all flips
    of signs can be enumerated (`ENUMERATE_TO` pairs); beyond that, the normal approximation.
    """
    difference = _differences(a, b)
    n = len(difference)
    if n == 0:
        return 1.0
    tied = len(np.unique(np.abs(difference))) < n
    method = ("exact" if not tied else stats.PermutationMethod(n_resamples=np.inf)
              if n <= ENUMERATE_TO else "asymptotic")
    return float(stats.wilcoxon(difference, method=method).pvalue)


def sign_flip_test(a: Sequence[float], b: Sequence[float], *, n_draws: int = 9999,
                   rng: np.random.Generator | None = None) -> float:
    """Two-sided permutation p of the mean paired difference, by flipping signs.

    Up to 16 pairs all flips are enumerated, as one product; `scipy.stats.permutation_test` gives
    the same number and takes a second for it. Beyond, `n_draws` random flips with the observed one
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
    """Holm's step-down correction by statsmodels; NaN stays NaN and does not count."""
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method="holm")[1]
    return adjusted


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by scikit-learn; NaN where there is one kind of case only.

    Raises
    ------
    InputError
        If scores and cases differ in number, or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    score, positive = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    if score.shape != positive.shape or not np.isfinite(score).all():
        raise InputError("auroc", "score", "does not fit the labels or is not finite",
                         "give one number per spot")
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, score))


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
                  "verdict", "why")


def judge(units: pd.DataFrame, words: str, better: str, worse: str | None = None, *,
          unit: str = "patient") -> dict[str, Any]:
    """Test whether the arm that the authors call better is better here, unit by unit.

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
        for their number; the verdict is that of `mvhlib.verdicts.judge`, and says so where no test
        is possible at this n.
    """
    rival = worse or str(units.mean().drop(better).idxmax())
    gap = t_interval(units[better] - units[rival])
    verdict, why = verdicts.judge(gap.low, gap.high)
    if verdict != verdicts.UNDECIDED:
        why = "on these sections" if unit == "section" else ""
        if smallest_p(gap.n) > 0.05:
            why = ", ".join(filter(None, [why, IMPOSSIBLE]))
    values = (words, better, rival, unit, gap.n, gap.mean, gap.low, gap.high, verdict, why)
    return dict(zip(JUDGED_COLUMNS, values, strict=True))


def sentence(judged: Mapping[str, Any]) -> str:
    """Describe a row of `judge` in a sentence."""
    why = f" ({judged['why']})" if judged["why"] else ""
    return (f"{judged['claim']}: {judged['verdict']}{why}; {judged['better']} less "
            f"{judged['worse']} {phrases.mean(*(judged[key] for key in _GAP), 3)} over "
            f"{phrases.count(judged['n_units'], judged['unit'])}")


_GAP = ("difference", "ci_low", "ci_high")


def tally(judged: pd.DataFrame, most: int = 3) -> str:
    """Count the claims by verdict, and name those that are decided.

    Parameters
    ----------
    judged
        Rows of `judge`.
    most
        Names of one verdict at most.
    """
    if judged.empty:
        return "No claim was tried."
    said = []
    for verdict, own in judged.groupby("verdict", sort=False):
        names = "" if verdict == verdicts.UNDECIDED else f" ({phrases.listed(own['claim'], most)})"
        said.append(f"{len(own)} {verdict}{names}")
    units = phrases.count(int(judged["n_units"].max()), judged["unit"].iloc[0])
    return f"Of {phrases.count(len(judged), 'claim')} tried over {units}: {'; '.join(said)}."


def placed(name: str, difference: float, low: float, high: float) -> str:
    """Say whether another arm is ahead, behind or indistinguishable, in the same units.

    Parameters
    ----------
    name
        The other arm.
    difference, low, high
        Of it, less what the sentence speaks of.

    Examples
    --------
    >>> placed("ridge", 0.05, 0.03, 0.07), placed("ridge", -0.05, -0.07, -0.03)
    ('ridge is ahead by 0.050 [0.030, 0.070]', 'ridge is behind by 0.050 [0.030, 0.070]')
    >>> placed("ridge", 0.01, -0.01, 0.03)
    'ridge is not told apart from it (0.010 [-0.010, 0.030])'
    >>> placed("ridge", 0.01, float("nan"), 0.03)
    'ridge differs by 0.010 (no interval)'
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{name} differs by {phrases.mean(difference, low, high, 3)}"
    if low > 0 or high < 0:
        low, high = sorted((abs(low), abs(high)))
        where = "ahead" if difference > 0 else "behind"
        return f"{name} is {where} by {phrases.mean(abs(difference), low, high, 3)}"
    return f"{name} is not told apart from it ({phrases.mean(difference, low, high, 3)})"


def placed_beside(name: str, compared: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Place each arm that `name` was compared with, one phrase each; see `placed`.

    Parameters
    ----------
    compared
        From `compare`, comparisons called ``name - other``.
    names
        Arm -> how it is called.
    """
    own = compared[compared["comparison"].str.startswith(f"{name} - ")]
    return [placed(names[row.comparison.split(" - ")[1]], -row.difference, -row.ci_high,
                   -row.ci_low) for row in own.itertuples()]


def against(units: pd.DataFrame, reference: str, unit: str) -> pd.DataFrame:
    """Every arm less a reference, unit by unit.

    Parameters
    ----------
    units
        One row per unit of inference, one column per arm.

    Returns
    -------
    pd.DataFrame
        Columns ``arm, unit, n_units, mean, ci_low, ci_high`` of the paired difference; the
        reference itself is left out.
    """
    others = [name for name in units if name != reference]
    return pd.DataFrame([{"arm": name, **unit_row(units[name] - units[reference], unit)}
                         for name in others],
                        columns=["arm", "unit", "n_units", "mean", "ci_low", "ci_high"])
