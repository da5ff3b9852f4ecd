"""Every method and encoder side by side: the same sections, genes and units, ranked with care.

A rank is only as good as the test behind it. The system with the best mean rank is compared with
every other one unit by unit: the paired difference with its interval, and Wilcoxon's signed-rank
test corrected by Holm's method. Tests of mean ranks (Nemenyi's critical difference) are not used:
whether they separate two systems depends on which others stand beside them (Benavoli, Corani and
Mangili, JMLR 17, 2016), and they join what the paired tests separate.

A system whose encoder has learned from the sections that it is tested on is listed with its score,
behind the others and without a rank.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import phrases, statistics
from mvhlib.artifacts import InputError
from mvhlib.cohort import synthetic
from mvhlib.expression.score_files import read_first_panel
from mvhlib.expression.scored_on import GIVEN, stale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEYS = ("section", "gene")
SCORE_COLUMNS = ("system", "method", "encoder", "encoder_saw_test_images", "study", "patient",
                 *KEYS, "program", "pcc")
TABLE_COLUMNS = ("system", "method", "encoder", "encoder_saw_test_images", "unit", "n_units",
                 "n_genes", "mean", "ci_low", "ci_high", "mean_rank", "behind", "behind_low",
                 "behind_high", "p_holm", "note")
#: What is said of each system in the table.
BEST, ALIKE, BEHIND = "best mean rank", "not separable from it", "behind it"
ONLY = "the only system"
APART = "learned from tested sections: no rank"


def read(folder: str | Path, protocol: str, encoders: Iterable[str] | None = None, *,
         report: Callable[[str], None] = print) -> pd.DataFrame:
    """Scores of every method and encoder of a protocol, cut to what all of them scored.

    Other systems that were scored before the cohort changed are left out (`scored_on.stale`).

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.
    protocol
        "" where 05 could score nothing (see `mvhlib.expression.evaluation.scored`): no row then.
    encoders
        Slugs to keep, beside predictions of other systems; None keeps all that are there.
    report
        Gets a line for each system that is left out.

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
    left_out = stale(Path(folder), protocol)
    for line in left_out.values():
        report(line)
    for path in sorted(Path(folder, protocol).glob("*/*/scores.csv")):
        method, encoder = path.parts[-3], path.parts[-2]
        if encoders is not None and encoder not in set(encoders) and method != GIVEN:
            continue
        if method == GIVEN and encoder in left_out:
            continue
        table = read_first_panel(path, SCORE_COLUMNS[1:])
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
    p_friedman
        Of the hypothesis that all systems are alike; NaN with fewer than two units or systems.
    n_units
        Patients or studies.
    """

    ranks: pd.Series = field(repr=False)
    p_friedman: float
    n_units: int


def rank(means: pd.DataFrame) -> Ranking:
    """Rank the columns of `unit_means` within every row."""
    from scipy import stats

    means = means.dropna()
    n, k = means.shape
    ranks = means.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    if n < 2 or k < 2:
        return Ranking(ranks, float("nan"), n)
    # Friedman's test needs three systems; of two it is the sign of their difference.
    p = (stats.friedmanchisquare(*means.to_numpy().T).pvalue if k > 2
         else statistics.signed_rank_test(means.iloc[:, 0], means.iloc[:, 1]))
    return Ranking(ranks, float(p), n)


def ranked(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of the systems that get a rank: those that have not learned from tested sections."""
    return scores[scores["encoder_saw_test_images"] != "yes"]


def table(scores: pd.DataFrame, unit: str = "patient") -> pd.DataFrame:
    """The leaderboard: mean with interval, mean rank, distance from the best, and its test.

    Returns
    -------
    pd.DataFrame
        system, method, encoder, encoder_saw_test_images, unit, n_units, n_genes, mean, ci_low,
        ci_high, mean_rank, behind, behind_low, behind_high (paired difference from the system
        with the best mean rank), p_holm (Wilcoxon, corrected over all ranked systems), and note:
        `BEST`, `ALIKE`, `BEHIND`, `ONLY`, or why there is no test. Systems that have learned from
        tested sections come last, with the note `APART`, and have neither rank nor test.
    """
    if scores.empty:
        return pd.DataFrame(columns=list(TABLE_COLUMNS))
    means = unit_means(scores, unit)
    order = rank(means[[name for name in means if name in set(ranked(scores)["system"])]]).ranks
    best = order.index[0] if len(order) else None
    others = means.drop(columns=order.index).mean().sort_values(ascending=False, kind="stable")
    pairs = {name: (means[best].to_numpy(), means[name].to_numpy()) for name in order.index[1:]}
    tests = statistics.compare(pairs).set_index("comparison")
    facts = scores.drop_duplicates("system").set_index("system")
    rows = []
    for name in [*order.index, *others.index]:
        row = {"system": name, **facts.loc[name, ["method", "encoder",
                                                  "encoder_saw_test_images"]],
               "n_genes": scores["gene"].nunique(), **statistics.unit_row(means[name], unit),
               "mean_rank": order.get(name, np.nan), "behind": np.nan, "behind_low": np.nan,
               "behind_high": np.nan, "p_holm": np.nan,
               "note": APART if name in others else BEST if pairs else ONLY}
        if name in pairs:
            test = tests.loc[name]
            apart = test["p_wilcoxon_holm"] <= 0.05
            row |= {"behind": test["difference"], "behind_low": test["ci_low"],
                    "behind_high": test["ci_high"], "p_holm": test["p_wilcoxon_holm"],
                    "note": BEHIND if apart else test["note"] or ALIKE}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def with_signal(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of the genes that the image shows; none where nobody knows which these are.

    Only the synthetic cohort knows: its noise, and what follows the study or an artefact, are left
    out (`mvhlib.cohort.synthetic.WITHOUT_SIGNAL`).
    """
    without = scores["program"].isin(synthetic.WITHOUT_SIGNAL)
    return scores[(scores["program"] != "") & ~without] if without.any() else scores.iloc[:0]


def by_program(scores: pd.DataFrame, unit: str = "patient") -> pd.DataFrame:
    """Mean score over units of each system (rows) for each gene program (columns)."""
    known = scores[scores["program"] != ""]
    found = statistics.unit_table(known, unit, by=["system", "program"])
    return found.pivot(index="system", columns="program", values="mean")[
        list(dict.fromkeys(known["program"]))]


def draw(board: pd.DataFrame, axes: "Sequence[Axes]", label, colour) -> None:
    """Draw a leaderboard, one row per system: its score, and its distance from the best mean rank.

    Parameters
    ----------
    board
        From `table`. A filled dot on the right is behind the best by the corrected test, an open
        one is not; below the line stand systems without a rank.
    axes
        Two, side by side; the y axis of the second is that of the first.
    label, colour
        Functions of a system's name.
    """
    ranked_rows = int((board["note"] != APART).sum())
    for y, row in enumerate(board.itertuples()):
        color = "0.55" if row.note == APART else colour(row.system)
        for ax, value, low, high, filled in (
                (axes[0], row.mean, row.ci_low, row.ci_high, row.note != APART),
                (axes[1], -row.behind, -row.behind_high, -row.behind_low, row.note == BEHIND)):
            if np.isfinite(value):
                error = np.nan_to_num([[value - low], [high - value]])
                ax.errorbar(value, y, xerr=error, fmt="o", markersize=3.6, capsize=1.5, color=color,
                            linewidth=0.9, markerfacecolor=color if filled else "white")
        axes[0].annotate(phrases.number(row.mean), (1, y), xycoords=("axes fraction", "data"),
                         xytext=(3, 0), textcoords="offset points", va="center", fontsize=6)
    for ax in axes:
        if 0 < ranked_rows < len(board):
            ax.axhline(ranked_rows - 0.5, color="0.6", linewidth=0.6, linestyle=":")
        ax.locator_params(axis="x", nbins=5)
        ax.set_ylim(len(board) - 0.4, -0.6)
    axes[0].set_yticks(range(len(board)), [label(name) for name in board["system"]])
    axes[0].set_xlabel("mean Pearson r")
    axes[1].tick_params(labelleft=False)
    axes[1].axvline(0, color="0.75", linewidth=0.6, zorder=0)
    axes[1].set_xlabel("less the best mean rank, paired\n(filled: behind it by the test)")


def sentence(board: pd.DataFrame, where: str, label) -> str:
    """What a leaderboard says: the best mean rank, how many are behind it, and who has no rank.

    Parameters
    ----------
    board
        From `table`.
    where
        What was not seen, such as ``on an unseen study`` (`mvhlib.plots.on_protocol`).
    label
        Function of a system's name.
    """
    if board.empty:
        return "no system was scored, so that none is compared."
    own = board[board["note"] != APART]
    apart = board[board["note"] == APART]
    said = []
    if len(own):
        first = own.iloc[0]
        said.append(f"{label(first['system'])} reaches a mean Pearson r of "
                    f"{phrases.row_mean(first)} {where}"
                    + (" and is the only system with a rank." if len(own) == 1 else
                       f", the best mean rank of {len(own)} systems."))
        if first["encoder_saw_test_images"] == "unknown":
            said.append("What it was trained on is not stated, so that it may have learned from "
                        "the tested sections.")
    if len(own) > 1:
        said.append(_behind(own, label))
    if len(apart):
        each = [f"{label(row.system)} ({phrases.number(row.mean)})" for row in apart.itertuples()]
        said.append(f"{phrases.listed(each)} learned from tested sections and "
                    f"{'has' if len(apart) == 1 else 'have'} no rank.")
    return " ".join(said)


def _behind(own: pd.DataFrame, label) -> str:
    """How many ranked systems the tests put behind the best, and which they do not."""
    rest = own.iloc[1:]
    behind = rest[rest["note"] == BEHIND]
    n, unit = int(own["n_units"].min()), own["unit"].iloc[0]
    if statistics.smallest_p(n) * len(rest) > 0.05:
        return (f"With {phrases.count(n, unit)} no test can put another system behind it, "
                f"corrected for {phrases.count(len(rest), 'comparison')}.")
    if len(behind) == len(rest):
        closest = rest.loc[rest["behind"].idxmin()]
        gap = phrases.mean(closest["behind"], closest["behind_low"], closest["behind_high"])
        return (f"Wilcoxon's test with Holm's correction puts every other system behind it; the "
                f"closest, {label(closest['system'])}, by {gap}.")
    alike = [label(name) for name in rest.loc[rest["note"] != BEHIND, "system"]]
    return (f"Wilcoxon's test with Holm's correction puts {len(behind)} of the other {len(rest)} "
            f"behind it and cannot tell it from {phrases.listed(alike)}.")
