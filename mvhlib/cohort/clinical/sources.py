"""Readers: PANTHER's splits, SurvPath's tables, a cohort of slides, any table."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError
from mvhlib.cohort.clinical.folds import check_folds, site_folds
from mvhlib.cohort.clinical.outcomes import Clinical
from mvhlib.cohort.clinical.patients import (
    chosen,
    one_cancer,
    one_patient_each,
    one_row_each,
    with_outcome,
    with_site,
)
from mvhlib.cohort.clinical.values import (
    DAYS_PER_MONTH,
    UNITS,
    is_male,
    parsed,
    patients_of,
    stages_of,
)

SOURCES = ("panther", "survpath", "slides", "table")

#: Columns of the TCGA clinical data resource that PANTHER's tables carry, and our names for them.
PANTHER_COLUMNS = {"age": "age_at_initial_pathologic_diagnosis", "sex": "sex",
                   "stage": "ajcc_pathologic_tumor_stage", "site": "tissue_source_site"}

#: Larger covariates are slips of a pen.
LARGEST = 1e9

#: Endpoints of the synthetic slide cohort, and the suffix of their columns.
SLIDE_ENDPOINTS = {"composition": "", "spread": "_spread"}


def read_with_folds(source: str, folder: str | os.PathLike, endpoint: str, n_folds: int, seed: int,
                    **options) -> tuple[Clinical, pd.DataFrame]:
    """Read one endpoint's complete patients and make folds that keep sites together.

    Where all patients are of one site, each becomes a site of its own, and a note says so.

    Raises
    ------
    TooFew
        If too few patients, events or sites are there for folds that all have an event.
    """
    found = read(source, folder, endpoint, **options).complete()
    if found.folds is None and found.table["site"].nunique() < 2:
        found = replace(found, table=found.table.assign(site=found.table["patient"]), notes=[
            *found.notes, "all patients are of one site: folds keep patients apart, and nothing "
                          "is said of another hospital"])
    folds = found.folds if found.folds is not None else site_folds(found.table, n_folds, seed)
    check_folds(folds, found.table, group="site")
    return found, folds


def read(source: str, folder: str | os.PathLike, endpoint: str, **options) -> Clinical:
    """Read the outcomes of a data set; see the head of the package.

    Parameters
    ----------
    source
        One of `SOURCES`.
    endpoint
        ``os``, ``dss``, ``pfi``, ... (panther, survpath); ``composition`` or ``spread`` (the
        synthetic slides); any name for a table.
    **options
        Of the reader; a table needs ``file``, its name in the folder.

    Raises
    ------
    InputError
        On an unknown source, a missing file or column, or whatever `check_outcomes` refuses.
    """
    if source == "table":
        if "file" not in options:
            raise InputError(folder, "file", "is not named", "pass file=<name of the csv>")
        file = options.pop("file")
        if not isinstance(file, str | os.PathLike):
            raise InputError(folder, "file", f"is {file!r}", "pass file=<name of the csv>")
        path = Path(folder) / file
        return read_table(path, endpoint=endpoint, **options)
    readers = {"panther": read_panther, "survpath": read_survpath, "slides": read_slides}
    if source not in readers:
        raise InputError("clinical", "source", f"{source!r} is not known",
                         f"use one of {list(SOURCES)}")
    return readers[source](folder, endpoint, **options)


def read_panther(folder: str | os.PathLike, endpoint: str = "os", *,
                 not_positive: str = "refuse") -> Clinical:
    """Read PANTHER's split layout: every fold, and what the folds say of each patient.

    Parameters
    ----------
    folder
        Holds ``<name>_k=<fold>/{train,test}.csv``; a ``val.csv`` counts as training, since
        penalties are chosen on inner folds here.
    not_positive
        ``drop`` leaves out patients whose time is zero or less (PFI of TCGA-COADREAD has some)
        and notes it.

    Raises
    ------
    InputError
        If files or columns are missing, a patient's outcome or site differs between two rows or
        folds, or a fold has a patient on both sides.
    """
    folder = Path(folder)
    named = {path: found for path in sorted(folder.glob("*_k=*")) if path.is_dir()
             and (found := re.fullmatch(r"([^.].*)_k=(\w+)", path.name))}
    if not named:
        raise InputError(folder, "folds", "holds no folder <name>_k=<fold>",
                         "give the folder that holds PANTHER's splits")
    cohorts = sorted({found[1] for found in named.values()})
    if len(cohorts) > 1:
        raise InputError(folder, "folds", f"are of {len(cohorts)} cohorts or endpoints: "
                         f"{', '.join(cohorts[:3])}", "keep each in a folder of its own")
    time, censorship = f"{endpoint}_survival_days", f"{endpoint}_censorship"
    parts, assigned = [], []
    for path, found in named.items():
        for name in ("train", "val", "test"):
            file = path / f"{name}.csv"
            if name == "val" and not (file.exists() or file.is_symlink()):
                continue
            given = tables.read_table(file, ("case_id", "slide_id", time, censorship))
            one_cancer(file, given)
            part = parsed(file, given, PANTHER_COLUMNS | {
                "patient": "case_id", "slide": "slide_id", "time": time, "censorship": censorship})
            parts.append(part)
            assigned.append(pd.DataFrame({"fold": found[2], "patient": part["patient"].unique(),
                                          "role": "test" if name == "test" else "train"}))
    rows = pd.concat(parts, ignore_index=True)
    one_patient_each(folder, rows)
    table = one_row_each(folder, rows, {"time": time, "event": censorship} | {
        ours: PANTHER_COLUMNS["sex" if ours == "male" else ours]
        for ours in ("site", "age", "male", "stage") if ours in rows})
    out = pd.DataFrame({"patient": table["patient"],
                        "time_months": table["time"] / DAYS_PER_MONTH, "event": table["event"]} | {
        name: table[name] for name in ("site", "age", "male", "stage") if name in table})
    covariates = tuple(name for name in ("age", "male", "stage") if name in out)
    slides = rows[["patient", "slide"]].drop_duplicates()
    clinical = Clinical(out, endpoint, slides, pd.concat(assigned, ignore_index=True), covariates)
    clinical = with_outcome(folder, clinical, not_positive)
    check_folds(clinical.folds, clinical.table, "site" if "site" in out else None, folder)
    return clinical


def read_survpath(folder: str | os.PathLike, endpoint: str = "os", *,
                  not_positive: str = "refuse") -> Clinical:
    """Read SurvPath's tables of one cancer; no folds, make them by `site_folds`.

    Parameters
    ----------
    endpoint
        ``os``, ``dss`` or ``pfi``.
    not_positive
        As in `read_panther`.

    Raises
    ------
    InputError
        As in `read_panther`.
    """
    folder = Path(folder)
    found = sorted(folder.glob("tcga_*_clinical.csv"))
    if len(found) != 1:
        raise InputError(folder, "tables", f"hold {len(found)} files tcga_<cancer>_clinical.csv",
                         "give a folder with the tables of one cancer")
    main = found[0].with_name(found[0].name.replace("_clinical", ""))
    suffix = "" if endpoint == "os" else f"_{endpoint}"
    time, censorship = f"survival_months{suffix}", f"censorship{suffix}"
    given = tables.read_table(main, ("case_id", "slide_id", "age", "site", "is_female", time,
                                     censorship))
    one_cancer(main, given)
    rows = parsed(main, given, {"patient": "case_id", "slide": "slide_id", "time": time,
                                "censorship": censorship, "age": "age", "site": "site"})
    female = tables.whole_words(given, "is_female", main, {"1": 1.0, "1.0": 1.0, "0": 0.0,
                                                           "0.0": 0.0})
    rows["male"] = 1.0 - female
    one_patient_each(main, rows)
    tables.names(given, "slide_id", main, unique=True)
    table = one_row_each(main, rows, {"age": "age", "site": "site", "male": "is_female",
                                      "time": time, "event": censorship})
    others = tables.read_table(found[0], ("case_id", "stage"))
    stages = pd.DataFrame({"patient": patients_of(found[0], others, "case_id"),
                           "t_stage": stages_of(found[0], others, "stage")})
    stages = stages[stages["patient"].isin(table["patient"])]
    stages = one_row_each(found[0], stages, {"t_stage": "stage"}).set_index("patient")["t_stage"]
    out = pd.DataFrame({
        "patient": table["patient"], "time_months": table["time"] * UNITS["months30"]
        / DAYS_PER_MONTH,
        "event": table["event"], "site": table["site"], "age": table["age"], "male": table["male"],
        "t_stage": table["patient"].map(stages)})
    slides = pd.DataFrame({"patient": rows["patient"],
                           "slide": rows["slide"].str.removesuffix(".svs")})
    return with_outcome(main, Clinical(out, endpoint, slides, None, ("age", "male", "t_stage")),
                        not_positive)


def read_slides(folder: str | os.PathLike, endpoint: str = "composition", *,
                only: Mapping[str, object] | None = None,
                not_positive: str = "refuse") -> Clinical:
    """Read ``slides.csv`` of a cohort of bags, one of its endpoints.

    Parameters
    ----------
    endpoint
        ``composition`` reads ``time_months`` and ``event``; any other name is a suffix of them.
    only
        Column -> the value, or the values, of the rows that are read; None: all rows.
    not_positive
        As in `read_panther`.

    Raises
    ------
    InputError
        If a cell is not what its column holds (see the package), a slide stands twice or
        has two patients, or the rows of a patient disagree.
    """
    path = Path(folder) / "slides.csv"
    suffix = SLIDE_ENDPOINTS.get(endpoint, f"_{endpoint}")
    columns = {"time": f"time_months{suffix}", "event": f"event{suffix}",
               "log_hazard": f"log_hazard{suffix}"}
    given = tables.read_table(path, ("slide", "patient", columns["time"], columns["event"]))
    given = chosen(path, given, only)
    rows = parsed(path, given, columns | {
        name: name for name in ("slide", "patient", "site", "age", "sex", "stage")})
    one_patient_each(path, rows)
    tables.names(given, "slide", path, unique=True)
    table = one_row_each(path, rows, {
        ours: "sex" if ours == "male" else columns.get(ours, ours)
        for ours in ("time", "event", "log_hazard", "site", "age", "stage", "male")
        if ours in rows})
    out = table.rename(columns={"time": "time_months"})
    covariates = tuple(name for name in ("age", "male", "stage") if name in out)
    slides = rows[["patient", "slide"]].reset_index(drop=True)
    return with_site(with_outcome(path, Clinical(out, endpoint, slides, None, covariates),
                                  not_positive))


def read_table(path: str | os.PathLike, *, patient: str = "id", time: str = "time",
               event: str | None = "event", censorship: str | None = None, unit: str = "months",
               site: str | None = None, covariates: Sequence[str] = (),
               endpoint: str = "os", only: Mapping[str, object] | None = None,
               not_positive: str = "refuse") -> Clinical:
    """Read any csv with one row per patient.

    Parameters
    ----------
    patient, time
        Columns.
    only
        Column -> the value, or the values, of the rows that are read, such as
        ``{"type": ["COAD", "READ"]}``; None: all rows.
    event, censorship
        Give one of the two columns: ``event`` is 1 where it was seen, ``censorship`` is 1 where
        the patient was censored.
    unit
        Of the times: one of `UNITS`.
    site
        Column by which folds are kept apart; without one, each patient is a site, and a note says
        so.
    covariates
        Columns of numbers, the stage last; words are read where a column is called ``sex`` or
        ``gender`` (1 is male), or has ``stage`` in its name.
    not_positive
        As in `read_panther`.

    Raises
    ------
    InputError
        If a patient stands more than once, a column is missing or not numeric, or whatever
        `check_outcomes` refuses.
    """
    if (event is None) == (censorship is None):
        raise InputError(path, "event", "and censorship are both given, or neither is",
                         "pass event=<column> or event=None, censorship=<column>")
    if unit not in UNITS:
        raise InputError(path, "unit", f"is {unit!r}", f"use one of {list(UNITS)}")
    wanted = [patient, time, event or censorship, *covariates, *([site] if site else [])]
    given = chosen(path, tables.read_table(path, tuple(dict.fromkeys(wanted))), only)
    rows = parsed(path, given, {"patient": patient, "time": time,
                                "event" if event else "censorship": event or censorship}
                  | ({"site": site} if site else {}))
    out = pd.DataFrame({"patient": rows["patient"],
                        "time_months": rows["time"] * UNITS[unit] / DAYS_PER_MONTH,
                        "event": rows["event"]})
    if site:
        out["site"] = rows["site"]
    for name in covariates:
        words = not given[name].str.contains(r"^[-+.\d]", regex=True).any()
        if words and name.casefold() in ("sex", "gender"):
            out[name] = is_male(path, given, name)
        elif words and "stage" in name.casefold():
            out[name] = stages_of(path, given, name)
        elif name.casefold() == "age":
            out[name] = tables.numbers(given, name, path, low=0, high=120, missing=True,
                                       unit="years")
        else:
            out[name] = tables.numbers(given, name, path, low=-LARGEST, high=LARGEST, missing=True)
    out = out.reset_index(drop=True)
    clinical = Clinical(out, endpoint, None, None, tuple(covariates))
    return with_site(with_outcome(path, clinical, not_positive))
