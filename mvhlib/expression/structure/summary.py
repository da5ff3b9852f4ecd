"""Means over units, from one row per section."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mvhlib import statistics
from mvhlib.artifacts import InputError


def summarise(table: pd.DataFrame, value: str, units: Mapping[str, str] | None = None, *,
              by: Sequence[str] = ("source",), confidence: float = 0.95) -> pd.DataFrame:
    """Mean and Student's t interval over units, from one row per section.

    Parameters
    ----------
    table
        From `score_sets`, `localise` or `class_auroc`.
    value
        Column to average, for instance ``auroc``.
    units
        Section -> patient or study; sections are averaged within it. None: sections are the units,
        which says nothing of other patients.
    by
        Columns that are kept apart.

    Returns
    -------
    pd.DataFrame
        Columns of `by`, then ``metric, mean, ci_low, ci_high, n_units, n_sections``.
    """
    table = table.dropna(subset=[value])
    unit = table["section"] if units is None else table["section"].map(units)
    if unit.isna().any():
        raise InputError("structure", "units", f"lack {sorted(set(table['section'][unit.isna()]))}",
                         "name every section's patient")
    found = statistics.unit_table(table.assign(unit=unit), "unit", by=list(by), value=value,
                                  confidence=confidence)
    sections = table.groupby(list(by), sort=False)["section"].nunique()
    found = found.assign(metric=value, n_sections=sections.to_numpy())
    return found[[*by, "metric", "mean", "ci_low", "ci_high", "n_units", "n_sections"]]
