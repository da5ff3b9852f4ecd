"""Expected correlation of each gene on an unseen section, estimated from the folds.

The interval is a prediction interval for one new section of a left-out unit, not a confidence
interval of a mean: its width reflects how much sections differ. Units (studies, patients) are few,
so that Student's t at their number gives the width.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mvhlib import statistics

#: Protocols from hardest to easiest: the first that was scored gives the expected correlations.
PROTOCOLS = ("loso", "patient", "section", "random10_section", "mvhybrid_bench", "hest_bench")
#: What a protocol leaves out, and the next finer where it left out one alone.
UNITS = {"loso": ("study", "patient", "section"), "random10_section": ("patient", "section")}
COLUMNS = ("gene", "expected_r", "ci_low", "ci_high", "n_sections", "n_units")
CONFIDENCE = 0.95


def choose(protocols: Iterable[str]) -> str:
    """Choose the protocol whose folds give the expected correlations; "" if there is none."""
    there = set(protocols)
    return next((name for name in PROTOCOLS if name in there), "")


def table(scores: pd.DataFrame, protocol: str) -> tuple[pd.DataFrame, str]:
    """Expected correlation per gene, in order of the scores' genes, and the unit of inference.

    Parameters
    ----------
    scores
        Rows of one panel without control: section, patient, study, gene, pcc.

    Returns
    -------
    DataFrame, str
        Columns `COLUMNS`. The interval is NaN where a gene was scored on fewer than two units;
        correlations that are not known (constant genes) are left out.
    """
    from scipy import stats

    levels = UNITS.get(protocol, ("patient", "section"))
    unit = next((level for level in levels if scores[level].nunique() > 1), "section")
    known = scores[np.isfinite(scores["pcc"])]
    by_section = known.groupby(["gene", *dict.fromkeys([unit, "section"])])["pcc"].mean()
    by_unit = statistics.unit_means(known, unit, by=["gene"])
    rows = []
    for gene in dict.fromkeys(scores["gene"]):
        if gene not in by_unit.index:
            rows.append((gene, np.nan, np.nan, np.nan, 0, 0))
            continue
        part, means = by_section[gene], by_unit[gene]
        n, mean, half = len(means), float(means.mean()), np.nan
        if n > 1:
            spread = float(np.sqrt(((part - mean) ** 2).sum() / (len(part) - 1)))
            half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * spread * np.sqrt(1 + 1 / n)
        rows.append((gene, mean, max(-1.0, mean - half) if n > 1 else np.nan,
                     min(1.0, mean + half) if n > 1 else np.nan, len(part), n))
    return pd.DataFrame(rows, columns=list(COLUMNS)), unit
