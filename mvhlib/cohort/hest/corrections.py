"""Table of corrections: who gave which tissue, and the sets that a cohort can be made of."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError
from mvhlib.cohort.base import Cohort, section_list
from mvhlib.cohort.hest.metadata import Sample
from mvhlib.places import resolve

log = logging.getLogger(__name__)

#: Columns of a table of corrections beside the sets.
CORRECTION_COLUMNS = ("section", "study", "substudy", "donor", "specimen", "duplicate_of", "note")
#: Sets of the colorectal table; see ``params/hest_crc/README.md``.
MEMBERSHIPS = ("A", "Aprime", "B", "C", "S", "bench")


def read_corrections(path: str | Path) -> pd.DataFrame:
    """Read a table of corrections; sets become booleans, and so does each value of ``group``.

    Raises
    ------
    InputError
        If a column is missing, an id stands twice, a set holds other than 0 and 1, or a duplicate
        is not in the study and specimen of what it duplicates.
    """
    found = Path(path)
    if not found.exists() and not found.is_absolute():
        found = resolve(path)
    table = tables.read_table(found, CORRECTION_COLUMNS)
    named = ["group"] if "group" in table else []
    for column in ("section", "study", "substudy", "donor", "specimen", *named):
        tables.names(table, column, found, unique=column == "section", safe=column == "section")
    table = table.reset_index(drop=True)
    for column in ("duplicate_of", "note"):
        table[column] = table[column].where(table[column] != "", np.nan)
    groups = table.pop("group") if named else pd.Series(dtype=str)
    for column in table.columns.difference(CORRECTION_COLUMNS, sort=False):
        if not set(table[column]) <= {"0", "1"}:
            raise InputError(found, column, f"holds {sorted(set(map(str, table[column])))[:5]}",
                             "use 0 and 1 in the columns of sets")
        table[column] = table[column] == "1"
    for group in dict.fromkeys(groups):
        table[group] = groups == group
    by_name = table.set_index("section")
    for name, other in by_name["duplicate_of"].dropna().items():
        if other not in by_name.index:
            raise InputError(found, "duplicate_of", f"of {name} names {other!r}, which has no row",
                             "name a sample of the table")
        for column in ("study", "substudy", "donor", "specimen"):
            if by_name.at[name, column] != by_name.at[other, column]:
                raise InputError(found, column, f"of {name} and {other} differ, though one "
                                 "duplicates the other", "give both the same")
    return table


def choose(root: Path, present: list[str], table: pd.DataFrame | None, where: Any,
           include: str | Sequence[str] | None, sections: Iterable[str] | None,
           duplicates: bool) -> list[str]:
    """Ids to read, in the order of the table, else of their names."""
    names = sorted(present)
    if include is not None:
        if table is None:
            raise InputError("hest", "include", "names a set, but there is no table of sets",
                             "pass corrections=params/hest_crc/samples.csv")
        wanted = [include] if isinstance(include, str) else list(include)
        known = [column for column in table.columns if column not in CORRECTION_COLUMNS]
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            raise InputError(where, "include", f"{unknown} is not one of its sets", f"use {known}")
        listed = list(table.loc[table[wanted].any(axis=1), "section"])
        names = [name for name in listed if name in set(present)]
        if len(names) < len(listed) and sections is None:
            gone = [name for name in listed if name not in set(present)]
            log.warning("%s: %d of the %d samples of %s are not there, for example %s; this is a "
                        "smaller cohort", root, len(gone), len(listed), "+".join(wanted), gone[:3])
    if sections is not None:
        sections = section_list(sections, root)
        unknown = [name for name in sections if name not in names]
        if unknown:
            raise InputError(root, "sections", f"{unknown[:3]} are not among the {len(names)} "
                             "samples found", "name ids of files in st or adata")
        names = sections
    elif table is not None and not duplicates:
        copies = table.set_index("section")["duplicate_of"].dropna()
        for name in [n for n in names if n in copies.index and copies[n] in names]:
            log.info("%s is left out: it duplicates %s", name, copies[name])
            names.remove(name)
    if not names:
        raise InputError(root, "sections", "no sample is left",
                         "check include against the files in st or adata")
    return names


def who(sample: Sample, row: Mapping[str, Any] | None, substudies: bool,
        unrecorded: str) -> tuple[str, str, str]:
    """Study, patient and specimen of a sample."""
    if row is not None:
        return row["substudy" if substudies else "study"], row["donor"], row["specimen"]
    for key in ("dataset_title", "patient"):
        value = sample.facts.get(key, "")
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise InputError(sample.told_by, key, f"of {sample.name} is {value!r}, not a name",
                             "write it as text")
    study = str(sample.facts.get("dataset_title", sample.root.absolute().name)).strip()
    if "patient" in sample.facts:
        patient = f"{study}, {str(sample.facts['patient']).strip()}"
    else:
        log.warning("%s: no donor is stated; it counts as %s", sample.name,
                    "one patient with the others of its study" if unrecorded == "study"
                    else "a patient of its own")
        patient = f"{study}, donor not stated" if unrecorded == "study" else sample.name
    # Nothing tells blocks apart, so all sections of a donor count as replicates.
    return study, patient, patient


def label(cohort: Cohort | pd.DataFrame, include: str | Sequence[str] | None = None) -> str:
    """Name the cohort for tables and figures by set and size, as in ``CRC-S (57)``.

    Parameters
    ----------
    cohort
        The cohort or its manifest.
    include
        As in `mvhlib.cohort.hest.read`; None for whatever lies in the folder.
    """
    chosen = [include] if isinstance(include, str) else list(include or [])
    colorectal = "CRC-" if set(chosen) <= set(MEMBERSHIPS) else "HEST "
    name = colorectal + "+".join(chosen) if chosen else "HEST"
    return f"{name} ({len(cohort)})"


def describe(cohort: Cohort, include: str | Sequence[str] | None = None) -> str:
    """One line: label, sections per study (the sizes of leave-one-study-out folds), patients."""
    sizes = pd.Series([section.study for section in cohort]).value_counts()
    parts = ", ".join(f"{study} {size}" for study, size in
                      sorted(sizes.items(), key=lambda item: (-item[1], item[0])))
    return (f"{label(cohort, include)}: {len(cohort)} sections of {len(cohort.patients)} patients, "
            f"{len(sizes)} studies: {parts}")
