"""Comparison of scores: drops, paired tests, nulls, leaks, remarks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mvhlib import lattice, phrases, plots, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression import protocols
from mvhlib.expression.evaluation.scoring import Evaluation
from mvhlib.expression.scores import drop
from mvhlib.nulls import permutation_null, toroidal_null
from mvhlib.power import score_correlation

NULL_COLUMNS = ("protocol", "method", "encoder", "null", "observed", "low", "high", "p",
                "p_smallest")


def drops(scores: pd.DataFrame, *, random: str = "random10_section", loso: str = "loso",
          unit: str = "patient") -> pd.DataFrame:
    """Compute the loss from random folds to an unseen study, per encoder, panel and program.

    Parameters
    ----------
    scores
        Rows of both protocols; other protocols and controls are left out.
    unit
        The difference is taken within each unit, and the interval over units.

    Returns
    -------
    DataFrame
        Columns method, encoder, panel, program, random, loso, difference, ci_low, ci_high,
        n_units, drop: means of Pearson's r, their paired difference with its 95 % interval, and the
        share of the random-fold score that is lost (NaN where that is not above 0). What was not
        scored under both protocols has no row.
    """
    columns = ["method", "encoder", "panel", "program", "random", "loso", "difference", "ci_low",
               "ci_high", "n_units", "drop"]
    both = scores[(scores["control"] == "none") & scores["protocol"].isin([random, loso])]
    if both["protocol"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    both = pd.concat([both.assign(program="all"), both[both["program"].fillna("") != ""]])
    rows = []
    for keys, part in both.groupby(["method", "encoder", "panel", "program"], sort=False):
        if part["protocol"].nunique() < 2:
            continue
        units = statistics.unit_means(part, unit, by=["protocol"]).unstack("protocol")
        gap = statistics.t_interval(units[random] - units[loso])
        means = units.mean()
        rows.append((*keys, means[random], means[loso], gap.mean, gap.low, gap.high, gap.n,
                     drop(means[random], means[loso])))
    return pd.DataFrame(rows, columns=columns)


def comparisons(scores: pd.DataFrame, primary: Sequence[str], *, protocol: str = "loso",
                units: Sequence[str] = ("patient", "study"),
                planned: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Paired tests of one encoder against others, under one protocol.

    The pair named in advance is a family of its own; the same encoder against every other one is
    the second family, and further pairs named in advance are the third, each corrected by Holm's
    method within itself.

    Parameters
    ----------
    scores
        Rows of all encoders.
    primary
        The encoder and the rival that were named in advance; none named: no first and no second
        family.
    units
        Sections are averaged within each; sections that share a patient, or patients that share a
        study, are not independent. Both are shown, the coarser one is the safer reading. Where all
        sections are replicates of one patient they are the unit, and no patient is inferred to.
    planned
        Further pairs.

    Returns
    -------
    DataFrame
        protocol, panel, family (``primary``, ``secondary`` or ``planned``), unit, and the columns
        of `mvhlib.statistics.compare`. Pairs of which an encoder was not scored are left out.
    """
    rows = scores[(scores["control"] == "none") & (scores["protocol"] == protocol)]
    if protocol == "section" and rows["patient"].nunique() == 1:
        units = ("section",)
    first, *rivals = primary or [None]
    tables = []
    for panel, part in rows.groupby("panel", sort=False):
        there = list(dict.fromkeys(part["encoder"]))
        others = [name for name in there if name != first and first in there]
        families = {"primary": [(first, name) for name in others if name in rivals],
                    "secondary": [(first, name) for name in others if name not in rivals],
                    "planned": [(a, b) for a, b in planned if {a, b} <= set(there)]}
        for unit in units:
            means = statistics.unit_means(part, unit, by=["encoder"]).unstack("encoder")
            for family, named in families.items():
                pairs = {f"{a} - {b}": (means[a], means[b]) for a, b in named}
                if pairs:
                    table = statistics.compare(pairs)
                    tables.append(table.assign(protocol=protocol, panel=panel, family=family,
                                               unit=unit))
    front = ["protocol", "panel", "family", "unit"]
    if not tables:
        return pd.DataFrame(columns=[*front, *statistics.compare({}).columns])
    found = pd.concat(tables, ignore_index=True)
    return found[front + [name for name in found if name not in front]]


def encoder_correlation(scores: pd.DataFrame, pair: Sequence[str], *, protocol: str = "loso",
                        unit: str = "study") -> float:
    """Correlation of two encoders' scores over units, which decides the power of a paired test.

    NaN where no pair is named, one of them was not scored, or fewer than three units are left.
    """
    if len(pair) < 2:
        return float("nan")
    rows = scores[(scores["control"] == "none") & (scores["protocol"] == protocol)]
    means = statistics.unit_means(rows, unit, by=["encoder"]).unstack(unit)
    if not set(pair) <= set(means.index) or means.shape[1] < 3:
        return float("nan")
    return score_correlation(means.loc[pair[0]], means.loc[pair[1]]).mean


def nulls(result: "Evaluation", *, n_draws: int = 199, seed: int = 0) -> pd.DataFrame:
    """A result's score beside two nulls: spots permuted, and maps shifted over the array.

    Returns
    -------
    DataFrame
        protocol, method, encoder, null, observed, low, high, p, p_smallest. The shift keeps the
        smoothness of both maps, which a permutation destroys; it is left out where the spots lie
        on no array. No row where no gene varies.
    """
    maps = [part for part in result.predictions.values() if part.coords is not None]
    measured, predicted = [part.measured for part in maps], [part.predicted for part in maps]
    rng = np.random.default_rng(seed)
    if not any((np.ptp(t, axis=0) * np.ptp(p, axis=0)).any()
               for t, p in zip(measured, predicted, strict=True)):
        return pd.DataFrame(columns=list(NULL_COLUMNS))
    found = [permutation_null(measured, predicted, n_draws=n_draws, rng=rng)]
    try:
        positions = [lattice.array_positions(part.coords) for part in maps]
    except InputError:
        positions = None
    if positions is not None:
        found.append(toroidal_null(measured, predicted, positions, n_draws=n_draws,
                                              wrap=False, rng=rng))
    return pd.DataFrame([{"protocol": result.job.protocol, "method": result.method,
                          "encoder": result.job.encoder, "null": null.method,
                          "observed": null.observed, "low": null.low, "high": null.high,
                          "p": null.p, "p_smallest": null.p_smallest} for null in found],
                        columns=list(NULL_COLUMNS))


def leaks(summary: pd.DataFrame, least: float = 0.05) -> pd.DataFrame:
    """Compare scores of permuted features with zero.

    Nothing can be learned from features that are shuffled within each section, but few units and
    few genes leave a mean that is not 0. Only an interval that leaves zero out proves a leak: of
    99.9 %, so that an honest control fails once in a thousand rows.

    Parameters
    ----------
    summary
        Columns `protocols.SUMMARY_COLUMNS`, with intervals of 95 %.
    least
        A mean of Pearson's r up to this size is none.

    Returns
    -------
    DataFrame
        protocol, encoder, panel, unit, n_units, mean, low, high (99.9 %) and verdict: ``none``,
        ``leak``, or ``open`` (larger than `least`, and the interval holds zero, or there is none).
    """
    from scipy import stats

    rows = summary[(summary["control"] == "permuted") & (summary["metric"] == "pcc")
                   & (summary["program"] == "all")]
    found = []
    for row in rows.itertuples():
        free = max(1, int(row.n_units) - 1)
        wider = stats.t.ppf(0.9995, free) / stats.t.ppf(0.975, free)
        low, high = (row.mean + wider * (end - row.mean) for end in (row.ci_low, row.ci_high))
        verdict = "none" if not abs(row.mean) >= least else (
            "leak" if low > 0 or high < 0 else "open")
        found.append((row.protocol, row.encoder, row.panel, row.unit, row.n_units, row.mean, low,
                      high, verdict))
    return pd.DataFrame(found, columns=["protocol", "encoder", "panel", "unit", "n_units", "mean",
                                        "low", "high", "verdict"])


def remarks(summary: pd.DataFrame, learned: Sequence[str] = ()) -> str:
    """State the caveats of a summary, in one or two sentences per protocol.

    Parameters
    ----------
    summary
        Columns ``protocol, encoder, encoder_saw_test_images, unit, n_units``.
    learned
        Encoders that learned from the *expression* of tested sections, not from images alone.
    """
    said = []
    for protocol, rows in summary.groupby("protocol", sort=False):
        note = [protocols.NOTES[protocol]] if protocol in protocols.NOTES else []
        units = rows[rows["unit"].isin(["patient", "study"])]
        if len(units) and units["n_units"].max() < 4:
            count = phrases.count(int(units["n_units"].max()), units["unit"].iloc[0])
            note.append(f"{count}, a demonstration that allows no test")
        if note:
            said.append(f"{protocol}: {'; '.join(note)}.")
    saw = summary.loc[summary["encoder_saw_test_images"] == "yes", "encoder"].unique()
    for what, names in (("Learned from the expression of sections that are tested here, so that "
                         "their rows are no test", [name for name in saw if name in learned]),
                        ("Pretrained on test images", [name for name in saw
                                                       if name not in learned])):
        if names:
            said.append(f"{what}: {phrases.listed(map(plots.label, names))}.")
    return " ".join(said)
