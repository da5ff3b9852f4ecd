"""Means over classes, then units, with intervals; paired differences of encoders or splits."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mvhlib import statistics
from mvhlib.artifacts import InputError
from mvhlib.downstream.retrieval.classes import CLASSIFIERS

SUMMARY_COLUMNS = ("dataset", "encoder", "classifier", "split", "metric", "unit", "n_units",
                   "mean", "ci_low", "ci_high")


def summarise(values: pd.DataFrame, dataset: str, unit: str = "patient") -> pd.DataFrame:
    """Means over units with Student's t interval, and the chance level as an encoder of its own.

    Parameters
    ----------
    values
        From `retrieve` or `cross_modal`.
    dataset
        Its name in the table.
    unit
        ``"patient"`` or ``"study"``.

    Returns
    -------
    DataFrame
        Columns `SUMMARY_COLUMNS`. The rows of encoder ``chance`` hold the expectation of a random
        order over the same units; it is known and has no interval. Nor have units that all agree
        (three patients at 1.0), whose spread says nothing. Intervals are cut at 0 and 1.
    """
    if unit not in ("patient", "study"):
        raise InputError("retrieval", "unit", f"{unit!r} is not known", "use patient or study")
    found = []
    keys = ["classifier", "split", "metric"]
    for (*named, encoder), part in values.groupby([*keys, "encoder"], sort=False):
        # Classes take the place of genes and sections: a patient is told by the study as well.
        value, chance = (statistics.unit_means(
            part.assign(section=part[unit]), unit, value=column,
            by=[] if unit == "study" else ["study"]) for column in ("value", "chance"))
        interval = statistics.t_interval(value)
        if np.ptp(value) == 0:  # units that agree to the last digit have no spread
            interval = replace(interval, low=np.nan, high=np.nan)
        base = {"dataset": dataset, **dict(zip(keys, named, strict=True)), "unit": unit,
                "n_units": interval.n}
        found.append(base | {"encoder": encoder, "mean": interval.mean, "ci_low": interval.low,
                             "ci_high": interval.high})
        found.append(base | {"encoder": "chance", "mean": float(chance.mean()),
                             "ci_low": np.nan, "ci_high": np.nan})
    table = pd.DataFrame(found, columns=list(SUMMARY_COLUMNS))
    # Chance is the same for every encoder on the same tiles: one row of it, after theirs.
    is_chance = table["encoder"] == "chance"
    table[["ci_low", "ci_high"]] = table[["ci_low", "ci_high"]].clip(0, 1)
    return pd.concat([table[~is_chance], table[is_chance].drop_duplicates(keys)],
                     ignore_index=True)


def compare_all(values: pd.DataFrame, encoders: Sequence[str], splits: Sequence[str], *,
                unit: str = "patient", seed: int = 0) -> pd.DataFrame:
    """Acc@1 of every way to search: encoders against the first, and splits against the first.

    Encoders are compared in the last of `splits`; all comparisons are corrected together. What has
    no values is left out; no row, but the columns, where nothing is left.

    Returns
    -------
    DataFrame
        Columns of `compare`, then ``of`` (the encoder whose splits are compared), ``classifier``,
        ``p_wilcoxon_holm`` and ``p_permutation_holm`` over all rows.
    """
    tests = []
    for name in [each for each in dict.fromkeys(values["classifier"]) if each in CLASSIFIERS]:
        part = values[(values["classifier"] == name) & (values["metric"] == "acc@1")]
        same = {"classifier": name, "metric": "acc@1", "unit": unit, "seed": seed}
        found = []
        if ((part["encoder"] == encoders[0]) & (part["split"] == splits[-1])).any():
            found.append(compare(values, "encoder", encoders[0], split=splits[-1], **same))
        found += [compare(values, "split", splits[0], encoder=e, **same).assign(of=e)
                  for e in encoders
                  if ((part["encoder"] == e) & (part["split"] == splits[0])).any()]
        if found:
            tests.append(pd.concat(found).assign(classifier=name))
    table = (pd.concat(tests, ignore_index=True) if tests
             else statistics.compare({}).assign(of="", classifier=""))
    for test in ("p_wilcoxon", "p_permutation"):
        table[f"{test}_holm"] = statistics.holm(table[test])
    return table


def compare(values: pd.DataFrame, by: str, baseline: str, *, unit: str = "patient", seed: int = 0,
            **chosen: str) -> pd.DataFrame:
    """Every encoder (or split, or classifier) against one, paired by unit, corrected together.

    Parameters
    ----------
    values
        From `retrieve` or `cross_modal`.
    by
        Column that is compared, for instance ``"encoder"``.
    baseline
        Its value that the others are held against.
    unit
        ``"patient"`` or ``"study"``.
    seed
        Of the permutations beyond 16 units.
    chosen
        What the other columns have to be: ``classifier="nearest", split="study", metric="map"``.

    Returns
    -------
    DataFrame
        As from `mvhlib.statistics.compare`.

    Raises
    ------
    InputError
        If `baseline` has no such values.
    """
    part = values
    for column, value in chosen.items():
        part = part[part[column] == value]
    wide = part.pivot_table(index=unit, columns=by, values="value")
    if baseline not in wide:
        raise InputError("retrieval", by, f"{baseline!r} has no values for {chosen}",
                         f"use one of {list(wide)}")
    others = [name for name in dict.fromkeys(part[by]) if name != baseline]
    return statistics.compare({f"{name} - {baseline}": (wide[name], wide[baseline])
                               for name in others}, rng=np.random.default_rng(seed))
