"""Every method and encoder side by side: the same sections, genes and units, ranked with care.

A rank is only as good as the test behind it. Mean ranks over units are compared by Friedman's test
and, where that finds a difference, by Nemenyi's critical difference (Demsar, JMLR 7, 2006): two
systems whose mean ranks lie closer than it share a bar in the diagram and no order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import artifacts, statistics
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEYS = ("section", "gene")
#: Method of other systems' predictions (`mvhlib.expression.given`), each an encoder of its own.
GIVEN = "given"
SCORE_COLUMNS = ("system", "method", "encoder", "encoder_saw_test_images", "study", "patient",
                 *KEYS, "program", "pcc")
TABLE_COLUMNS = ("system", "method", "encoder", "encoder_saw_test_images", "unit", "n_units",
                 "n_genes", "mean", "ci_low", "ci_high", "mean_rank", "behind", "behind_low",
                 "behind_high", "p_holm", "note")


def read(folder: str | Path, protocol: str, encoders: Iterable[str] | None = None) -> pd.DataFrame:
    """Scores of every method and encoder of a protocol, cut to what all of them scored.

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.
    protocol
        "" where 05 could score nothing (see `mvhlib.expression.evaluation.scored`): no row then.
    encoders
        Slugs to keep, beside predictions of other systems; None keeps all that are there.

    Returns
    -------
    pd.DataFrame
        Columns system (``encoder`` for ridge and for predictions of other systems, else ``method on
        encoder``), method, encoder, encoder_saw_test_images, study, patient, section, program,
        gene, pcc; controls left out.

    Raises
    ------
    InputError
        If nothing was scored, or the systems have no section and gene in common.
    """
    parts = []
    for path in sorted(Path(folder, protocol).glob("*/*/scores.csv")):
        method, encoder = path.parts[-3], path.parts[-2]
        if encoders is not None and encoder not in set(encoders) and method != GIVEN:
            continue
        table = artifacts.read_csv(path, ("control", "panel", *SCORE_COLUMNS[1:]))
        table = table[(table["control"] == "none") & (table["panel"] == table["panel"].iloc[0])]
        system = encoder if method in ("ridge", GIVEN) else f"{method} on {encoder}"
        parts.append(table.assign(system=system))
    if not parts and protocol:
        raise InputError(folder, protocol, "holds no scores", "run 05_expression first")
    if not parts:
        return pd.DataFrame(columns=list(SCORE_COLUMNS))
    everything = pd.concat(parts, ignore_index=True)
    everything["program"] = everything["program"].fillna("")
    n_systems = everything["system"].nunique()
    shared = everything.groupby(list(KEYS))["system"].transform("nunique") == n_systems
    if not shared.any():
        raise InputError(folder, protocol, "the systems share no section and gene",
                         "evaluate all of them on one cohort and panel")
    return everything.loc[shared, list(SCORE_COLUMNS)].reset_index(drop=True)


def unit_means(scores: pd.DataFrame, unit: str = "patient") -> pd.DataFrame:
    """Mean score per unit (rows) and system (columns): genes, then sections, then units.

    ``section`` as the unit is for replicates of one patient and says nothing of another one.
    """
    return statistics.unit_means(scores, unit, by=["system"]).unstack("system")[
        list(dict.fromkeys(scores["system"]))]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of systems and what may be read from them.

    Attributes
    ----------
    ranks
        System -> mean rank over units, 1 the best, sorted.
    critical_difference
        Nemenyi's, at 5 %: closer mean ranks are no order. NaN with fewer than two units or
        systems.
    p_friedman
        Of the hypothesis that all systems are alike.
    n_units
        Patients or studies.
    """

    ranks: pd.Series = field(repr=False)
    critical_difference: float
    p_friedman: float
    n_units: int

    def groups(self) -> list[tuple[str, ...]]:
        """Runs of systems that no test separates; all of them where Friedman's p is above 5 %."""
        names, values = list(self.ranks.index), self.ranks.to_numpy()
        if not self.p_friedman <= 0.05:
            return [tuple(names)]
        found: list[tuple[int, int]] = []
        for start in range(len(names)):
            end = int(np.searchsorted(values, values[start] + self.critical_difference, "right"))
            if not found or end > found[-1][1]:
                found.append((start, end))
        return [tuple(names[start:end]) for start, end in found]


def rank(means: pd.DataFrame) -> Ranking:
    """Rank the columns of `unit_means` within every row."""
    from scipy import stats

    means = means.dropna()
    n, k = means.shape
    ranks = means.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    if n < 2 or k < 2:
        return Ranking(ranks, float("nan"), float("nan"), n)
    # Nemenyi's q is the studentised range with infinite degrees of freedom, over the root of two.
    q = stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2)
    # Friedman's test needs three systems; of two it is the sign of their difference.
    p = (stats.friedmanchisquare(*means.to_numpy().T).pvalue if k > 2
         else statistics.signed_rank_test(means.iloc[:, 0], means.iloc[:, 1]))
    return Ranking(ranks, float(q * np.sqrt(k * (k + 1) / (6 * n))), float(p), n)


def table(scores: pd.DataFrame, unit: str = "patient") -> pd.DataFrame:
    """The leaderboard: mean with interval, mean rank, distance from the best, and its test.

    Returns
    -------
    pd.DataFrame
        system, method, encoder, encoder_saw_test_images, unit, n_units, n_genes, mean, ci_low,
        ci_high, mean_rank, behind, behind_low, behind_high (paired difference from the system
        with the best mean rank), p_holm (Wilcoxon, corrected over all systems), and note: ``best
        mean rank``, ``not separable from it``, ``behind it``, or ``the only system``.
    """
    if scores.empty:
        return pd.DataFrame(columns=list(TABLE_COLUMNS))
    means = unit_means(scores, unit)
    ranking = rank(means)
    best = ranking.ranks.index[0]
    pairs = {name: (means[best].to_numpy(), means[name].to_numpy())
             for name in ranking.ranks.index[1:]}
    tests = statistics.compare(pairs).set_index("comparison")
    facts = scores.drop_duplicates("system").set_index("system")
    rows = []
    for name in ranking.ranks.index:
        row = {"system": name, **facts.loc[name, ["method", "encoder",
                                                  "encoder_saw_test_images"]],
               "n_genes": scores["gene"].nunique(), **statistics.unit_row(means[name], unit),
               "mean_rank": ranking.ranks[name], "behind": np.nan, "behind_low": np.nan,
               "behind_high": np.nan, "p_holm": np.nan,
               "note": "best mean rank" if pairs else "the only system"}
        if name != best:
            test = tests.loc[name]
            apart = test["p_wilcoxon_holm"] <= 0.05
            row |= {"behind": test["difference"], "behind_low": test["ci_low"],
                    "behind_high": test["ci_high"], "p_holm": test["p_wilcoxon_holm"],
                    "note": "behind it" if apart else test["note"] or "not separable from it"}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def by_program(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each system (rows) for each gene program (columns)."""
    known = scores[scores["program"] != ""]
    return known.groupby(["system", "program"], sort=False)["pcc"].mean().unstack("program")


def draw_ranks(ranking: Ranking, ax: "Axes", label, colour) -> "Axes":
    """Critical-difference diagram: mean ranks on a line, bars over systems that are not separable.

    Parameters
    ----------
    label, colour
        Functions of a system's name.
    """
    ranks, k = ranking.ranks, len(ranking.ranks)
    for row, (name, value) in enumerate(ranks.items()):
        ax.plot(value, row, "o", markersize=4, color=colour(name))
        ax.annotate(f"{value:.1f}", (value, row), xytext=(5, 3), textcoords="offset points",
                    fontsize=6)
    places = {name: row for row, name in enumerate(ranks.index)}
    for number, group in enumerate(ranking.groups()):
        if len(group) > 1:
            x = k + 0.35 + 0.22 * number
            ax.plot([x, x], [places[group[0]] - 0.25, places[group[-1]] + 0.25], color="0.25",
                    linewidth=2, solid_capstyle="butt")
    ax.set_yticks(range(k), [label(name) for name in ranks.index])
    ax.set_ylim(k - 0.4, -0.6)
    ax.set_xlabel("mean rank (1 is best); bars join systems that no test separates")
    return ax


