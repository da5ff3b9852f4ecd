"""The authors' scores, whose genes are selected on the test section; the table says so."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mvhlib import statistics


def selected_on_test(predictions: Mapping[str, Any], n: int = 50) -> pd.DataFrame:
    """The authors' scores: genes are selected by the measured expression of the test section.

    HEG are the `n` genes with the largest sum there, HVG those with the largest variance; a
    correlation that does not exist counts as 0. Chosen on the test section, so not comparable with
    any score on genes that were fixed before.

    Parameters
    ----------
    predictions
        Section -> object with ``measured`` and ``predicted``, such as `protocols.Prediction`.

    Returns
    -------
    DataFrame
        Columns section, genes (``HEG, selected on test`` and the like), pcc.
    """
    from mvhlib.expression.scores import pearson

    rows = []
    for section, prediction in predictions.items():
        measured = np.asarray(prediction.measured, dtype=np.float64)
        r = np.nan_to_num(pearson(measured, np.asarray(prediction.predicted, dtype=np.float64)))
        for name, size in (("HEG", measured.sum(axis=0)), ("HVG", measured.var(axis=0))):
            best = np.argsort(-size, kind="stable")[:n]
            rows.append({"section": section, "genes": f"{name}, selected on test",
                         "pcc": float(r[best].mean())})
    return pd.DataFrame(rows)


def selected_table(predictions: Mapping[str, Mapping[str, Any]], manifest: pd.DataFrame,
                   unit: str) -> pd.DataFrame:
    """Scores by `selected_on_test` of several methods, averaged over units.

    Parameters
    ----------
    predictions
        Method -> section (or ``fold/section``) -> prediction; ``cmrcnet`` and ``bleep`` among them.
    manifest
        Columns section and `unit`.

    Returns
    -------
    DataFrame
        Columns genes, method, unit, n_units, mean, ci_low, ci_high, gain: of CMRCNet, relative to
        the same model without reconstruction.
    """
    owner = manifest.set_index("section")[unit]
    chosen = pd.concat([selected_on_test(own).assign(method=method)
                        for method, own in predictions.items()])
    chosen[unit] = chosen["section"].str.rpartition("/")[2].map(owner)
    table = statistics.unit_table(chosen, unit, by=["genes", "method"])
    means = table.pivot(index="genes", columns="method", values="mean")
    return table.assign(gain=table["genes"].map(means["cmrcnet"] / means["bleep"] - 1))
