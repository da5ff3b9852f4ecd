"""Comparison of MMAP's variants with their reference, paired by unit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import phrases, statistics
from mvhlib.expression import preconditions
from mvhlib.statistics import JUDGED_COLUMNS, judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def against(scores: pd.DataFrame, reference: str, unit: str, by: str = "variant") -> pd.DataFrame:
    """Compare every variant with the reference, paired by unit.

    Parameters
    ----------
    scores
        Columns of `protocols.SCORE_COLUMNS` and `by`.
    unit
        ``patient`` or ``study``; ``section`` where one patient's sections are all there is, which
        says nothing of other patients.

    Returns
    -------
    DataFrame
        Columns variant, unit, n_units, mean, ci_low, ci_high, difference (variant - reference),
        diff_low, diff_high, p_permutation_holm, note; Student's t intervals over units.
    """
    table = statistics.unit_means(scores, unit, by=[by]).unstack(by)[
        list(dict.fromkeys(scores[by]))]
    others = [name for name in table.columns if name != reference]
    tests = statistics.compare({name: (table[name], table[reference]) for name in others})
    tests = tests.set_index("comparison")
    rows = []
    for name in table.columns:
        row = {by: name, **statistics.unit_row(table[name], unit), "difference": 0.0,
               "diff_low": 0.0, "diff_high": 0.0, "p_permutation_holm": np.nan,
               "note": "reference"}
        if name != reference:
            test = tests.loc[name]
            row |= {"difference": test["difference"], "diff_low": test["ci_low"],
                    "diff_high": test["ci_high"], "note": test["note"],
                    "p_permutation_holm": test["p_permutation_holm"]}
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts(scores: pd.DataFrame, claims: Mapping[str, tuple[str, str]], unit: str,
             by: str = "variant", unmet: Sequence[str] = ()) -> pd.DataFrame:
    """Test claims of the form "this variant is better than that one".

    Parameters
    ----------
    claims
        Words -> (the variant said to be better, the other one). Those with a variant that is not
        in the scores are left out.
    unmet
        What the variants' trainings were short of, from `mvhlib.expression.preconditions.unmet`.

    Returns
    -------
    DataFrame
        Columns `mvhlib.statistics.JUDGED_COLUMNS`; see `mvhlib.statistics.judge`.
    """
    table = statistics.unit_means(scores, unit, by=[by]).unstack(by)
    rows = [judge(table, words, better, worse, unit=unit)
            for words, (better, worse) in claims.items() if better in table and worse in table]
    return pd.DataFrame(preconditions.void(rows, unmet), columns=list(JUDGED_COLUMNS))


def sentence(paired: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Summarise a table of `against`: its reference, then each other method.

    Parameters
    ----------
    names
        Variant -> how it is called.
    """
    own = paired[paired["note"] == "reference"].iloc[0]
    others = [statistics.placed(names.get(row.variant, row.variant), row.difference, row.diff_low,
                                row.diff_high)
              for row in paired[paired["note"] != "reference"].itertuples()]
    return (f"{names.get(own['variant'], own['variant'])} reaches a mean Pearson r of "
            f"{phrases.row_mean(own, 3)}; on the same units {phrases.listed(others)}.")


def draw_differences(table: pd.DataFrame, ax: "Axes", *, by: str = "variant") -> "Axes":
    """Draw what each variant gains over the reference, with intervals; one row per variant."""
    from mvhlib import plots

    y = np.arange(len(table))
    low, high = table["difference"] - table["diff_low"], table["diff_high"] - table["difference"]
    ax.axvline(0, color="0.75", linewidth=0.6, zorder=0)
    is_reference = (table["note"] == "reference").to_numpy()
    for part, filling in ((~is_reference, plots.colour("mmap")), (is_reference, "white")):
        ax.errorbar(table["difference"][part], y[part], xerr=np.nan_to_num([low, high])[:, part],
                    fmt="o", markersize=3.2, capsize=1.5, linewidth=0.9,
                    color=plots.colour("mmap"), markerfacecolor=filling)
    ax.set_yticks(y, table[by])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=5)
    return ax
