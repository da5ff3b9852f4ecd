"""Outcomes and covariates of patients: what a survival table has to be before anything is fitted.

`read` gives one row per patient whatever the layout:

=========  =========================================================================================
source     what lies in the folder
=========  =========================================================================================
panther    ``<name>_k=<fold>/{train,test[,val]}.csv`` (PANTHER, Song et al., CVPR 2024): one row per
           slide, days, ``<endpoint>_censorship``; the five folds of TCGA-COADREAD are disjoint by
           tissue source site. AJCC stage stands in ``ajcc_pathologic_tumor_stage``;
           ``clinical_stage`` is "[Not Applicable]" throughout.
survpath   ``tcga_<cancer>.csv`` and ``tcga_<cancer>_clinical.csv`` (SurvPath, Jaume et al., CVPR
           2024): one row per slide, months of 30 days. The column ``stage`` of the clinical table
           is not the AJCC stage: beside PANTHER's table, stage IIA (T3 N0) stands as "III" and
           stage IIB (T4 N0) as "IV". It is the T of TNM in Roman numerals, and is read as
           ``t_stage``. ``grade`` is "N/A" throughout.
slides     ``slides.csv`` of a cohort of bags: slide, patient, ``time_months``, ``event``; more
           endpoints have a suffix, ``time_months_spread``.
table      any csv with one row per patient, its columns named by the caller (`read_table`).
=========  =========================================================================================

``event`` is 1 where it was seen and 0 where the patient was censored; the layouts above that say
``censorship`` mean the opposite (1 is censored). Times are months of 365.25 / 12 days.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, read_csv

SOURCES = ("panther", "survpath", "slides", "table")
DAYS_PER_MONTH = 365.25 / 12

#: Days in one unit of time of a table.
UNITS = {"days": 1.0, "months": DAYS_PER_MONTH, "months30": 30.0, "years": 365.25}

#: Columns of the TCGA clinical data resource that PANTHER's tables carry, and our names for them.
PANTHER_COLUMNS = {"age": "age_at_initial_pathologic_diagnosis", "sex": "sex",
                   "stage": "ajcc_pathologic_tumor_stage", "site": "tissue_source_site"}

#: Endpoints of the synthetic slide cohort, and the suffix of their columns.
SLIDE_ENDPOINTS = {"composition": "", "spread": "_spread"}

#: Endpoints as they are written in a figure.
ENDPOINTS = {"os": "overall survival", "dss": "disease-specific survival",
             "pfi": "progression-free interval", "dfi": "disease-free interval",
             "composition": "hazard by composition", "spread": "hazard by spread"}

_ROMAN = {"0": 0.0, "IS": 0.0, "I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}
_OUTCOME = ("patient", "time_months", "event")


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


def read(source: str, folder: str | os.PathLike, endpoint: str, **options) -> Clinical:
    """Read the outcomes of a data set; see the head of the module.

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
        path = Path(folder) / options.pop("file")
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
    places = {found[1]: path for path in sorted(folder.glob("*_k=*")) if path.is_dir()
              and (found := re.fullmatch(r".*_k=(\w+)", path.name))}
    if not places:
        raise InputError(folder, "folds", "holds no folder <name>_k=<fold>",
                         "give the folder that holds PANTHER's splits")
    time, censorship = f"{endpoint}_survival_days", f"{endpoint}_censorship"
    parts, assigned = [], []
    for fold, path in places.items():
        for name in ("train", "val", "test"):
            if name == "val" and not (path / "val.csv").exists():
                continue
            part = read_csv(path / f"{name}.csv", ("case_id", "slide_id", time, censorship),
                            dtype={"case_id": str, "slide_id": str}, low_memory=False)
            parts.append(part)
            assigned.append(pd.DataFrame({"fold": fold, "patient": part["case_id"].unique(),
                                          "role": "test" if name == "test" else "train"}))
    rows = pd.concat(parts, ignore_index=True)
    known = {name: column for name, column in PANTHER_COLUMNS.items() if column in rows}
    table = _one_row_each(folder, rows, "case_id", [time, censorship, *known.values()])
    table = table.rename(columns={column: name for name, column in known.items()} | {
        "case_id": "patient"})
    out = pd.DataFrame({"patient": table["patient"],
                        "time_months": table[time] / DAYS_PER_MONTH,
                        "event": _event_of_censorship(folder, censorship, table[censorship])})
    for name in ("site", "age"):
        if name in table:
            out[name] = table[name]
    if "sex" in table:
        out["male"] = _male(folder, table["sex"])
    if "stage" in table:
        out["stage"] = table["stage"].map(stage_number)
    covariates = tuple(name for name in ("age", "male", "stage") if name in out)
    slides = rows[["case_id", "slide_id"]].drop_duplicates().rename(
        columns={"case_id": "patient", "slide_id": "slide"})
    clinical = Clinical(out, endpoint, slides, pd.concat(assigned, ignore_index=True), covariates)
    clinical = _with_outcome(folder, clinical, not_positive)
    check_folds(clinical.folds, clinical.table, group="site" if "site" in out else None)
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
    rows = read_csv(main, ("case_id", "slide_id", "age", "site", "is_female", time, censorship),
                    dtype={"case_id": str, "site": str})
    table = _one_row_each(main, rows, "case_id",
                          ["age", "site", "is_female", time, censorship])
    stages = read_csv(found[0], ("case_id", "stage"), dtype={"case_id": str})
    stages = stages[stages["case_id"].isin(table["case_id"])]
    stages = _one_row_each(found[0], stages, "case_id", ["stage"]).set_index("case_id")["stage"]
    out = pd.DataFrame({
        "patient": table["case_id"], "time_months": table[time] * UNITS["months30"]
        / DAYS_PER_MONTH,
        "event": _event_of_censorship(main, censorship, table[censorship]), "site": table["site"],
        "age": table["age"], "male": 1.0 - table["is_female"],
        "t_stage": table["case_id"].map(stages).map(stage_number)})
    slides = pd.DataFrame({"patient": rows["case_id"],
                           "slide": rows["slide_id"].str.removesuffix(".svs")})
    return _with_outcome(main, Clinical(out, endpoint, slides, None, ("age", "male", "t_stage")),
                         not_positive)


def read_slides(folder: str | os.PathLike, endpoint: str = "composition") -> Clinical:
    """Read ``slides.csv`` of a cohort of bags, one of its endpoints.

    Parameters
    ----------
    endpoint
        ``composition`` reads ``time_months`` and ``event``; any other name is a suffix of them.
    """
    path = Path(folder) / "slides.csv"
    suffix = SLIDE_ENDPOINTS.get(endpoint, f"_{endpoint}")
    columns = {"time_months": f"time_months{suffix}", "event": f"event{suffix}",
               "log_hazard": f"log_hazard{suffix}"}
    rows = read_csv(path, ("slide", "patient", columns["time_months"], columns["event"]),
                    dtype={"slide": str, "patient": str})
    given = [name for name in (*columns.values(), "site", "age", "sex", "stage") if name in rows]
    table = _one_row_each(path, rows, "patient", given)
    out = pd.DataFrame({"patient": table["patient"]} | {
        name: table[column] for name, column in columns.items() if column in table} | {
        name: table[name] for name in ("site", "age", "stage") if name in table})
    if "sex" in table:
        out["male"] = _male(path, table["sex"])
    covariates = tuple(name for name in ("age", "male", "stage") if name in out)
    clinical = Clinical(out, endpoint, rows[["patient", "slide"]].copy(), None, covariates)
    return _with_site(_with_outcome(path, clinical))


def read_table(path: str | os.PathLike, *, patient: str = "id", time: str = "time",
               event: str | None = "event", censorship: str | None = None, unit: str = "months",
               site: str | None = None, covariates: Sequence[str] = (),
               endpoint: str = "os") -> Clinical:
    """Read any csv with one row per patient.

    Parameters
    ----------
    patient, time
        Columns.
    event, censorship
        Give one of the two columns: ``event`` is 1 where it was seen, ``censorship`` is 1 where
        the patient was censored.
    unit
        Of the times: one of `UNITS`.
    site
        Column by which folds are kept apart; without one, each patient is a site, and a note says
        so.
    covariates
        Numeric columns, the stage last.

    Raises
    ------
    InputError
        If a patient stands more than once, a column is missing or not numeric, or whatever
        `check_outcomes` refuses.
    """
    if (event is None) == (censorship is None):
        raise InputError(path, "event", "and censorship: one of them must be named",
                         "pass event=<column> or event=None, censorship=<column>")
    if unit not in UNITS:
        raise InputError(path, "unit", f"is {unit!r}", f"use one of {list(UNITS)}")
    wanted = [patient, time, event or censorship, *covariates, *([site] if site else [])]
    rows = read_csv(path, tuple(wanted), dtype={patient: str})
    for column in (time, event or censorship, *covariates):
        if not pd.api.types.is_numeric_dtype(rows[column]):
            raise InputError(path, column, f"is not numeric: {rows[column].iloc[0]!r}",
                             "write numbers, and leave what is not known empty")
    out = pd.DataFrame({"patient": rows[patient],
                        "time_months": rows[time] * UNITS[unit] / DAYS_PER_MONTH,
                        "event": rows[event] if event else _event_of_censorship(
                            path, censorship, rows[censorship])})
    if site:
        out["site"] = rows[site].astype(str)
    for name in covariates:
        out[name] = rows[name].astype(float)
    return _with_site(_with_outcome(path, Clinical(out, endpoint, None, None,
                                                   tuple(covariates))))


def stage_number(text: object) -> float:
    """1 to 4 of ``Stage IIIB``, ``III`` or 3; NaN of ``[Not Available]``, ``[Discrepancy]``."""
    if isinstance(text, (int, float, np.number)):
        return float(text) if np.isfinite(text) else float("nan")
    found = re.fullmatch(r"(?:stage )?(0|IS|I{1,3}|IV)[A-C]?[0-9]?", str(text).strip(),
                         flags=re.IGNORECASE)
    return _ROMAN[found[1].upper()] if found else float("nan")


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
        raise InputError(where, "patient", f"only {len(table)} have an outcome",
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
                         "drop them (not_positive=\"drop\"): they say nothing of survival")
    values = set(pd.unique(table["event"]))
    if not values <= {0, 1}:
        raise InputError(where, "event", f"has values {sorted(map(str, values))}",
                         "use 1 for an event and 0 for a censored time")
    if table["event"].sum() == 0:
        raise InputError(where, "event", f"all {len(table)} patients are censored",
                         "look whether 1 means censored (then pass it as censorship)")


def site_folds(table: pd.DataFrame, n_folds: int = 5, seed: int = 0,
               group: str = "site") -> pd.DataFrame:
    """Folds that keep sites together and share out the events as evenly as that allows.

    Parameters
    ----------
    n_folds
        Reduced to the number of sites where there are fewer.
    group
        Column that must stand on one side; ``patient`` for no more than patients.

    Returns
    -------
    pd.DataFrame
        Columns fold, patient, role; checked by `check_folds`.

    Raises
    ------
    InputError
        With fewer than two sites.
    """
    fold_of = grouped_folds(table["event"].to_numpy(), table[group].astype(str).to_numpy(),
                            n_folds, seed)
    folds = pd.concat([pd.DataFrame({
        "fold": str(fold), "patient": table["patient"],
        "role": np.where(fold_of == fold, "test", "train")}) for fold in range(fold_of.max() + 1)],
        ignore_index=True)
    check_folds(folds, table, group=group)
    return folds


def grouped_folds(event: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of every row `(n,)` from 0: groups whole, events and rows as even as can be.

    Raises
    ------
    InputError
        With fewer than two groups.
    """
    names, code = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2:
        raise InputError("folds", "groups", f"are {len(names)}", "give two groups or more")
    n_folds = min(n_folds, len(names))
    events = np.bincount(code, np.asarray(event, float))
    sizes = np.bincount(code)
    # largest number of events first into the fold that holds least; ties in random order
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.lexsort((-sizes[order], -events[order]))]
    load, home = np.zeros((n_folds, 2)), np.empty(len(names), dtype=np.int64)
    for group in order:
        fold = min(range(n_folds), key=lambda k: tuple(load[k]))
        home[group] = fold
        load[fold] += events[group], sizes[group]
    return home[code]


def check_folds(folds: pd.DataFrame, table: pd.DataFrame, group: str | None = None) -> None:
    """Refuse folds that leak, disagree about who takes part, or cannot be scored.

    Parameters
    ----------
    folds
        Columns fold, patient, role (train, test).
    group
        Column of `table` that must not stand on both sides of a fold.

    Raises
    ------
    InputError
        On a patient or group on both sides, patients that differ between folds, a patient who is
        tested more than once, or a side without events.
    """
    who = table.set_index("patient")
    if len(folds) == 0 or not set(folds["role"]) <= {"train", "test"}:
        raise InputError("folds", "role", f"is {sorted(set(folds['role']))}",
                         "use train and test")
    unknown = sorted(set(folds["patient"]) - set(who.index))
    if unknown:
        raise InputError("folds", "patient", f"{unknown[:3]} have no outcome",
                         "make the folds of this table")
    members = {}
    for fold, rows in folds.groupby("fold", sort=False):
        sides = {role: rows.loc[rows["role"] == role, "patient"] for role in ("train", "test")}
        both = sorted(set(sides["train"]) & set(sides["test"]))
        if both:
            raise InputError("folds", "patient", f"{both[:3]} on both sides of fold {fold}",
                             "put each patient on one side")
        if group is not None:
            shared = sorted(set(who.loc[sides["train"], group]) & set(who.loc[sides["test"],
                                                                              group]))
            if shared:
                raise InputError("folds", group, f"{shared[:3]} on both sides of fold {fold}",
                                 f"put all patients of one {group} on one side")
        for role, names in sides.items():
            if len(names) == 0 or who.loc[names, "event"].sum() == 0:
                raise InputError("folds", "event", f"fold {fold} has no {role} patient with an "
                                 "event", "use fewer folds")
        members[fold] = set(rows["patient"])
    first = next(iter(members))
    for fold, names in members.items():
        odd = sorted(names ^ members[first])
        if odd:
            raise InputError("folds", "patient", f"{odd[:3]} take part in one of the folds {first} "
                             f"and {fold} and not in the other", "use the same patients in all")
    tested = folds.loc[folds["role"] == "test", "patient"]
    if tested.duplicated().any():
        raise InputError("folds", "patient", f"{list(tested[tested.duplicated()][:3])} are tested "
                         "in more than one fold", "test each patient once")


def _one_row_each(where, rows: pd.DataFrame, patient: str, columns: list[str]) -> pd.DataFrame:
    """One row per patient from one per slide and fold; rows of a patient must agree."""
    counts = rows.groupby(patient, sort=False)[columns].nunique(dropna=False)
    unlike = counts[(counts > 1).any(axis=1)]
    if len(unlike):
        column = unlike.columns[(unlike > 1).any()][0]
        names = list(unlike.index[unlike[column] > 1][:3])
        raise InputError(where, column, f"disagrees between rows or folds of {names}",
                         "a patient has one outcome: mend the table")
    return rows.drop_duplicates(patient)[[patient, *columns]].reset_index(drop=True)


def _event_of_censorship(where, column: str, values: pd.Series) -> pd.Series:
    known = set(pd.unique(values.dropna()))
    if not known <= {0, 1}:
        raise InputError(where, column, f"has values {sorted(known)}", "1 is censored and 0 an "
                         "event; competing risks (-1) are not read, choose another endpoint")
    return 1 - values


def _male(where, values: pd.Series) -> pd.Series:
    code = values.astype(str).str.strip().str.lower().str[:1].map({"m": 1.0, "f": 0.0})
    if (code.isna() & values.notna()).any():
        odd = sorted(set(values[code.isna() & values.notna()].astype(str)))
        raise InputError(where, "sex", f"is {odd[:3]}", "use male and female, or leave it empty")
    return code


def _with_site(clinical: Clinical) -> Clinical:
    """Every patient a site of its own where none is known."""
    if "site" in clinical.table:
        return clinical
    return replace(clinical, table=clinical.table.assign(site=clinical.table["patient"]),
                   notes=[*clinical.notes, "no site is known: folds keep patients apart"])


def _with_outcome(where, clinical: Clinical, not_positive: str = "refuse") -> Clinical:
    """Leave out patients without this endpoint (noted), and check the rest."""
    table, notes = clinical.table, list(clinical.notes)
    has = table["time_months"].notna() & table["event"].notna()
    if not has.all():
        notes.append(f"{int((~has).sum())} of {len(has)} patients have no {clinical.endpoint}")
    table = table[has]
    if not_positive == "drop":
        late = table["time_months"] > 0
        if not late.all():
            notes.append(f"{int((~late).sum())} patients have a time of zero or less")
        table = table[late]
    table = table.assign(event=table["event"].astype(int))
    check_outcomes(where, table)
    return clinical._only(table, notes)
