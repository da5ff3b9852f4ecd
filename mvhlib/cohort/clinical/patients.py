"""Reduction of a table to one row per patient of one cohort."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from mvhlib import tables, tcga
from mvhlib.artifacts import InputError
from mvhlib.cohort.clinical.outcomes import Clinical, check_outcomes

#: No patient is followed for a hundred years: such a time is in another unit.
LONGEST_MONTHS = 1200.0


def chosen(path, given: pd.DataFrame, only: Mapping[str, object] | None) -> pd.DataFrame:
    """Select the rows with the values in `only`; of one cancer, unless `only` says otherwise."""
    if only is not None and not isinstance(only, Mapping):
        raise InputError(path, "only", f"is {only!r}", "write a mapping of a column to the values "
                         "to keep")
    for column, values in (only or {}).items():
        tables.check_columns(path, list(given.columns), (column,))
        kept = {str(value) for value in ([values] if isinstance(values, str | int | float)
                                         else values)}
        absent = sorted(kept - set(given[column]))
        if absent:
            raise InputError(path, column, f"never holds {absent[:3]}, which only= selects",
                             f"use some of {sorted(set(given[column]))[:8]}")
        given = given[given[column].isin(kept)]
    if not only:
        one_cancer(path, given)
    return given


def one_cancer(path, given: pd.DataFrame) -> None:
    """Refuse a table of several TCGA studies: their patients are no one cohort."""
    for column in given.columns:
        found = set(given[column].str.upper().str.removeprefix("TCGA-")) - {""}
        cancers = {"COADREAD" if name in ("COAD", "READ") else name for name in found}
        if len(cancers) > 1 and found <= tcga.STUDIES:
            raise InputError(path, column, f"names {len(cancers)} cancers: {sorted(found)[:5]}",
                             "pass only={column: values} to select the rows of one cancer, or keep "
                             "one table per cancer")


def one_patient_each(where, rows: pd.DataFrame) -> None:
    """Refuse a slide of two patients, or whose TCGA barcode names another patient."""
    owners = rows.groupby("slide", sort=False)["patient"].nunique()
    shared = list(owners.index[owners > 1])
    if shared:
        of = rows["slide"] == shared[0]
        raise InputError(where, "slide", f"{shared[:3]} belong to more than one patient: "
                         f"{sorted(set(rows['patient'][of]))[:3]}"
                         + (f" (rows {list(rows.index[of])[:3]})" if rows.index.name else ""),
                         "correct the table: a slide belongs to one patient")
    other = np.array([tcga.of_another(slide, patient) for slide, patient in
                      zip(rows["slide"], rows["patient"], strict=True)], dtype=bool)
    if other.any():
        tables.refuse(where, rows["slide"], other, "and so of another patient than its row says: "
                      f"{rows['patient'][other].iloc[0]}", "correct the slide or the patient")


def one_row_each(where, rows: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """One row per patient from one per slide and fold; rows of a patient must agree.

    `columns` holds our names, and what the table calls them.
    """
    counts = rows.groupby("patient", sort=False)[list(columns)].nunique(dropna=False)
    unlike = counts[(counts > 1).any(axis=1)]
    if len(unlike):
        column = unlike.columns[(unlike > 1).any()][0]
        people = list(unlike.index[unlike[column] > 1][:3])
        own = rows.loc[rows["patient"] == people[0], column].drop_duplicates()
        at = f" (rows {list(own.index)[:3]})" if rows.index.name else ""
        raise InputError(where, columns[column], f"disagrees between rows or folds of {people}{at}",
                         "correct the table: a patient has one outcome")
    return rows.drop_duplicates("patient")[["patient", *columns]].reset_index(drop=True)


def with_site(clinical: Clinical) -> Clinical:
    """Give each patient a site of its own where no site is known."""
    if "site" in clinical.table:
        return clinical
    return replace(clinical, table=clinical.table.assign(site=clinical.table["patient"]),
                   notes=[*clinical.notes, "no site is known: folds keep patients apart"])


def with_outcome(where, clinical: Clinical, not_positive: str = "refuse") -> Clinical:
    """Leave out patients without this endpoint (noted), and check the rest."""
    if not_positive not in ("refuse", "drop"):
        raise InputError(where, "not_positive", f"is {not_positive!r}", "use refuse or drop")
    table, notes = clinical.table, list(clinical.notes)
    empty = [name for name in clinical.covariates if table[name].isna().all()]
    same = [name for name in clinical.covariates if table[name].nunique() == 1
            and table[name].notna().all()]
    for names, said in ((empty, "nothing is known of"), (same, "all patients are alike in")):
        if names:
            notes.append(f"{said} {', '.join(names)}, which is left out")
    empty += same
    if empty:
        clinical = replace(clinical, covariates=tuple(
            name for name in clinical.covariates if name not in empty))
    late = table["time_months"] > LONGEST_MONTHS
    if late.any():
        raise InputError(where, "time", f"is {table['time_months'][late].iloc[0] / 12:.0f} years "
                         f"for patient {table['patient'][late].iloc[0]}", "check the unit: times "
                         "in days need unit=days")
    has = table["time_months"].notna() & table["event"].notna()
    if not has.all():
        notes.append(f"{int((~has).sum())} of {len(has)} patients have no {clinical.endpoint}")
    table = table[has]
    if not_positive == "drop":
        positive = table["time_months"] > 0
        if not positive.all():
            notes.append(f"{int((~positive).sum())} patients have a time of zero or less")
        table = table[positive]
    table = table.assign(event=table["event"].astype(int))
    check_outcomes(where, table)
    return clinical._only(table, notes)
