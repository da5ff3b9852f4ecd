"""Patients with an outcome, refused where no survival model can be fitted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, TooFew

#: Endpoints as they are written in a figure.
ENDPOINTS = {"os": "overall survival", "dss": "disease-specific survival",
             "pfi": "progression-free interval", "dfi": "disease-free interval",
             "composition": "hazard by composition", "spread": "hazard by spread"}

_OUTCOME = ("patient", "time_months", "event")
#: A minute, and two hundred years.
_SHORTEST_MONTHS, _LONGEST_MONTHS = 2e-5, 2400.0


@dataclass
class Clinical:
    """Patients with an outcome.

    Attributes
    ----------
    table
        One row per patient: patient, time_months, event, and what is known of site, age [years],
        male (1 or 0), stage (1 to 4), t_stage, log_hazard (synthetic).
    endpoint
        Whose times these are.
    slides
        Columns patient, slide, or None.
    folds
        Columns fold, patient, role (train, test), as the data set gives them, or None.
    covariates
        Clinical columns that a baseline uses, the stage last.
    notes
        What was left out, and why.
    """

    table: pd.DataFrame = field(repr=False)
    endpoint: str
    slides: pd.DataFrame | None = field(default=None, repr=False)
    folds: pd.DataFrame | None = field(default=None, repr=False)
    covariates: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def n_events(self) -> int:
        return int(self.table["event"].sum())

    def complete(self, columns: Sequence[str] | None = None) -> "Clinical":
        """The patients who have all of `columns`, so that models are compared on the same ones.

        Raises
        ------
        InputError
            If nobody is left, or all who are left are censored.
        """
        columns = list(self.covariates if columns is None else columns)
        whole = self.table[columns].notna().all(axis=1)
        missing = self.table[columns].isna().sum()
        notes = [*self.notes] + ([] if whole.all() else [
            f"{int((~whole).sum())} of {len(whole)} patients are left out, who lack "
            + ", ".join(f"{name} ({n})" for name, n in missing.items() if n)])
        return self._only(self.table[whole], notes)

    def _only(self, table: pd.DataFrame, notes: list[str]) -> "Clinical":
        kept = set(table["patient"])
        check_outcomes(self.endpoint, table)
        slides, folds = (frame if frame is None else frame[frame["patient"].isin(kept)].reset_index(
            drop=True) for frame in (self.slides, self.folds))
        return replace(self, table=table.reset_index(drop=True), slides=slides, folds=folds,
                       notes=notes)


def check_outcomes(where: str | os.PathLike, table: pd.DataFrame) -> None:
    """Refuse a table from which no survival model can be fitted.

    Raises
    ------
    InputError
        On missing columns, duplicate patients, times that are not positive and finite, events
        other than 0 and 1, fewer than two patients, or all patients censored.
    """
    missing = [name for name in _OUTCOME if name not in table]
    if missing:
        raise InputError(where, "columns", f"lack {missing}", f"give {list(_OUTCOME)}")
    if len(table) < 2:
        raise TooFew(where, "patient", f"only {len(table)} have an outcome",
                         "give more patients")
    twice = table["patient"][table["patient"].duplicated()]
    if len(twice):
        raise InputError(where, "patient", f"{list(twice[:3])} stand more than once",
                         "keep one row per patient")
    time = pd.to_numeric(table["time_months"], errors="coerce")
    bad = ~(np.isfinite(time) & (time > 0))
    if bad.any():
        raise InputError(where, "time", f"is missing, zero or negative for {int(bad.sum())} "
                         f"patients, for example {list(table['patient'][bad][:3])}",
                         "to leave them out, since such times say nothing about survival, write "
                         "not_positive: drop under columns in 09_survival.yaml")
    odd = (time < _SHORTEST_MONTHS) | (time > _LONGEST_MONTHS)
    if odd.any():
        raise InputError(where, "time", f"is {time[odd].iloc[0]:g} months for patient "
                         f"{table['patient'][odd].iloc[0]!r}", "correct it, or the unit of the "
                         "times")
    values = set(pd.unique(table["event"]))
    if not values <= {0, 1}:
        raise InputError(where, "event", f"has values {sorted(map(str, values))}",
                         "use 1 for an event and 0 for a censored time")
    if table["event"].sum() == 0:
        raise TooFew(where, "event", f"all {len(table)} patients are censored",
                         "check whether 1 means censored (then pass the column as censorship)")
