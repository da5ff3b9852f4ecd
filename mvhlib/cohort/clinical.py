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

What is read of their columns, upper or lower case; any other cell is refused with its row:

=========  =========================================================================================
column     accepted
=========  =========================================================================================
patient    text, so that ``007`` stays; every TCGA barcode is cut to its first 12 characters; none
           may be blank, ``NA`` or the like, or hold a slash (`mvhlib.artifacts.safe_name`)
slide      text; of one patient alone, whom a TCGA barcode in its name must not contradict
time       finite numbers, up to a hundred years; blank or ``NA`` leaves the patient out, and a note
           says so
event      0 and 1, ``alive`` and ``dead``, ``yes`` and ``no``, cBioPortal's ``1:DECEASED`` and what
           else stands in `EVENTS`; blank or ``NA`` as for the time
sex        ``male``, ``female``, M, F, and the same in other languages (`SEXES`); or not known
stage      0 to 4, I to IV with A to C behind, ``Stage`` or ``Stadium`` before; ``Stage X`` is not
           known
age        numbers from 0 to 120 [years]; or not known
site       text; none may be blank
=========  =========================================================================================

What is not known (`mvhlib.tables.NOT_KNOWN`) is NaN, and `Clinical.complete` leaves it out with a
note; a column of which nothing is known is no covariate. A table of several TCGA studies (COAD and
READ count as one) is refused unless ``only`` says which are meant.

``event`` is 1 where it was seen and 0 where the patient was censored; the layouts above that say
``censorship`` mean the opposite (1 is censored). Times are months of 365.25 / 12 days.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, TooFew

SOURCES = ("panther", "survpath", "slides", "table")
DAYS_PER_MONTH = 365.25 / 12

#: No patient is followed for a hundred years: such a time is in another unit.
LONGEST_MONTHS = 1200.0

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

#: Words of an event, in lower case: 1 where it was seen, 0 where the patient was censored.
EVENTS = dict.fromkeys((
    "1", "1.0", "true", "yes", "event", "dead", "deceased", "died", "death", "1:deceased", "1:dead",
    "1:death", "1:recurred", "1:recurred/progressed", "1:progression", "1:progressed", "1:event",
    "1:dead with tumor", "recurred", "progressed", "verstorben", "gestorben", "tot", "décédé",
    "décédée", "mort", "morte", "fallecido", "fallecida", "muerto", "muerta", "deceduto",
    "deceduta", "overleden"), 1.0) | dict.fromkeys((
        "0", "0.0", "false", "no", "censored", "alive", "living", "0:living", "0:alive",
        "0:censored", "0:diseasefree", "0:no event", "0:alive or dead tumor free", "lebt", "lebend",
        "lebendig", "vivant", "vivante", "vivo", "viva", "levend"), 0.0)
#: Words of a column that says who was censored.
CENSORED = dict.fromkeys(("1", "1.0", "true", "yes", "censored"), 1.0) | dict.fromkeys(
    ("0", "0.0", "false", "no", "event"), 0.0)
#: Words of a sex, in lower case: 1 is male. Letters that mean one sex here and the other there
#: (H, V) are none of them.
SEXES = dict.fromkeys((
    "m", "male", "man", "männlich", "maennlich", "mann", "homme", "masculin", "hombre", "masculino",
    "varón", "varon", "maschio", "uomo", "mannelijk"), 1.0) | dict.fromkeys((
        "f", "w", "female", "woman", "weiblich", "frau", "femme", "féminin", "feminin", "mujer",
        "femenino", "femenina", "feminino", "femmina", "donna", "vrouw", "vrouwelijk"), 0.0)

#: Studies of TCGA, as tables name them with or without ``TCGA-`` before.
TCGA_STUDIES = frozenset((
    "ACC BLCA BRCA CESC CHOL COAD COADREAD DLBC ESCA GBM HNSC KICH KIRC KIRP LAML LGG LIHC LUAD "
    "LUSC MESO OV PAAD PCPG PRAD READ SARC SKCM STAD TGCT THCA THYM UCEC UCS UVM").split())

_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)
_ROMAN = {"0": 0.0, "IS": 0.0, "I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0,
          "1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0}
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
            _one_cancer(file, given)
            part = _parsed(file, given, PANTHER_COLUMNS | {
                "patient": "case_id", "slide": "slide_id", "time": time, "censorship": censorship})
            parts.append(part)
            assigned.append(pd.DataFrame({"fold": found[2], "patient": part["patient"].unique(),
                                          "role": "test" if name == "test" else "train"}))
    rows = pd.concat(parts, ignore_index=True)
    _one_patient_each(folder, rows)
    table = _one_row_each(folder, rows, {"time": time, "event": censorship} | {
        ours: PANTHER_COLUMNS["sex" if ours == "male" else ours]
        for ours in ("site", "age", "male", "stage") if ours in rows})
    out = pd.DataFrame({"patient": table["patient"],
                        "time_months": table["time"] / DAYS_PER_MONTH, "event": table["event"]} | {
        name: table[name] for name in ("site", "age", "male", "stage") if name in table})
    covariates = tuple(name for name in ("age", "male", "stage") if name in out)
    slides = rows[["patient", "slide"]].drop_duplicates()
    clinical = Clinical(out, endpoint, slides, pd.concat(assigned, ignore_index=True), covariates)
    clinical = _with_outcome(folder, clinical, not_positive)
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
    _one_cancer(main, given)
    rows = _parsed(main, given, {"patient": "case_id", "slide": "slide_id", "time": time,
                                 "censorship": censorship, "age": "age", "site": "site"})
    female = tables.whole_words(given, "is_female", main, {"1": 1.0, "1.0": 1.0, "0": 0.0,
                                                           "0.0": 0.0})
    rows["male"] = 1.0 - female
    _one_patient_each(main, rows)
    table = _one_row_each(main, rows, {"age": "age", "site": "site", "male": "is_female",
                                       "time": time, "event": censorship})
    others = tables.read_table(found[0], ("case_id", "stage"))
    stages = pd.DataFrame({"patient": _patients(found[0], others, "case_id"),
                           "t_stage": _stages(found[0], others, "stage")})
    stages = stages[stages["patient"].isin(table["patient"])]
    stages = _one_row_each(found[0], stages, {"t_stage": "stage"}).set_index("patient")["t_stage"]
    out = pd.DataFrame({
        "patient": table["patient"], "time_months": table["time"] * UNITS["months30"]
        / DAYS_PER_MONTH,
        "event": table["event"], "site": table["site"], "age": table["age"], "male": table["male"],
        "t_stage": table["patient"].map(stages)})
    slides = pd.DataFrame({"patient": rows["patient"],
                           "slide": rows["slide"].str.removesuffix(".svs")})
    return _with_outcome(main, Clinical(out, endpoint, slides, None, ("age", "male", "t_stage")),
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
        If a cell is not what its column holds (see the head of the module), a slide stands twice or
        has two patients, or the rows of a patient disagree.
    """
    path = Path(folder) / "slides.csv"
    suffix = SLIDE_ENDPOINTS.get(endpoint, f"_{endpoint}")
    columns = {"time": f"time_months{suffix}", "event": f"event{suffix}",
               "log_hazard": f"log_hazard{suffix}"}
    given = tables.read_table(path, ("slide", "patient", columns["time"], columns["event"]))
    given = _chosen(path, given, only)
    rows = _parsed(path, given, columns | {
        name: name for name in ("slide", "patient", "site", "age", "sex", "stage")})
    _one_patient_each(path, rows)
    tables.names(given, "slide", path, unique=True)
    table = _one_row_each(path, rows, {
        ours: "sex" if ours == "male" else columns.get(ours, ours)
        for ours in ("time", "event", "log_hazard", "site", "age", "stage", "male")
        if ours in rows})
    out = table.rename(columns={"time": "time_months"})
    covariates = tuple(name for name in ("age", "male", "stage") if name in out)
    slides = rows[["patient", "slide"]].reset_index(drop=True)
    return _with_site(_with_outcome(path, Clinical(out, endpoint, slides, None, covariates),
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
        raise InputError(path, "event", "and censorship: one of them must be named",
                         "pass event=<column> or event=None, censorship=<column>")
    if unit not in UNITS:
        raise InputError(path, "unit", f"is {unit!r}", f"use one of {list(UNITS)}")
    wanted = [patient, time, event or censorship, *covariates, *([site] if site else [])]
    given = _chosen(path, tables.read_table(path, tuple(dict.fromkeys(wanted))), only)
    rows = _parsed(path, given, {"patient": patient, "time": time,
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
            out[name] = _male(path, given, name)
        elif words and "stage" in name.casefold():
            out[name] = _stages(path, given, name)
        else:
            out[name] = tables.numbers(given, name, path, missing=True)
    out = out.reset_index(drop=True)
    clinical = Clinical(out, endpoint, None, None, tuple(covariates))
    return _with_site(_with_outcome(path, clinical, not_positive))


def stage_number(text: object) -> float:
    """1 to 4 of ``Stage IIIB``, ``III``, ``2A`` or 3; NaN of anything else."""
    if isinstance(text, (int, float, np.number)):
        return float(text) if float(text) in (0, 1, 2, 3, 4) else float("nan")
    found = re.fullmatch(r"(?:(?:ajcc|uicc|pathologic|clinical) )?(?:(?:stage|stadium|stade|"
                         r"estadio|stadio) )?(0|IS|I{1,3}|IV|[1-4])(?:[A-C][0-9]?|\.0)?",
                         " ".join(re.split(r"[\s_]+", str(text).strip())), flags=re.IGNORECASE)
    return _ROMAN[found[1].upper()] if found else float("nan")


def patient_of(name: str) -> str:
    """The patient of a TCGA barcode: its first 12 characters; other names as they are."""
    found = _BARCODE.match(name)
    return found[1].upper() if found else name


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
                         "drop them (not_positive=\"drop\"): they say nothing of survival")
    values = set(pd.unique(table["event"]))
    if not values <= {0, 1}:
        raise InputError(where, "event", f"has values {sorted(map(str, values))}",
                         "use 1 for an event and 0 for a censored time")
    if table["event"].sum() == 0:
        raise TooFew(where, "event", f"all {len(table)} patients are censored",
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
        raise TooFew("folds", "groups", f"are {len(names)}", "give two groups or more")
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


def check_folds(folds: pd.DataFrame, table: pd.DataFrame, group: str | None = None,
                where: str | os.PathLike = "folds") -> None:
    """Refuse folds that leak, disagree about who takes part, or cannot be scored.

    Parameters
    ----------
    folds
        Columns fold, patient, role (train, test).
    group
        Column of `table` that must not stand on both sides of a fold.
    where
        The folder or file that they are of, for the error.

    Raises
    ------
    InputError
        On a patient or group on both sides, patients that differ between folds, a patient who is
        tested more than once, or a side without events.
    """
    who = table.set_index("patient")
    if len(folds) == 0 or not set(folds["role"]) <= {"train", "test"}:
        raise InputError(where, "role", f"is {sorted(set(folds['role']))}",
                         "use train and test")
    unknown = sorted(set(folds["patient"]) - set(who.index))
    if unknown:
        raise InputError(where, "patient", f"{unknown[:3]} have no outcome",
                         "make the folds of this table")
    members = {}
    for fold, rows in folds.groupby("fold", sort=False):
        sides = {role: rows.loc[rows["role"] == role, "patient"] for role in ("train", "test")}
        both = sorted(set(sides["train"]) & set(sides["test"]))
        if both:
            raise InputError(where, "patient", f"{both[:3]} on both sides of fold {fold}",
                             "put each patient on one side")
        if group is not None:
            shared = sorted(set(who.loc[sides["train"], group]) & set(who.loc[sides["test"],
                                                                              group]))
            if shared:
                raise InputError(where, group, f"{shared[:3]} on both sides of fold {fold}",
                                 f"put all patients of one {group} on one side")
        for role, names in sides.items():
            if len(names) == 0 or who.loc[names, "event"].sum() == 0:
                raise TooFew(where, "event", f"fold {fold} has no {role} patient with an "
                                 "event", "use fewer folds")
        members[fold] = set(rows["patient"])
    first = next(iter(members))
    for fold, names in members.items():
        odd = sorted(names ^ members[first])
        if odd:
            raise InputError(where, "patient", f"{odd[:3]} take part in one of the folds {first} "
                             f"and {fold} and not in the other", "use the same patients in all")
    tested = folds.loc[folds["role"] == "test", "patient"]
    if tested.duplicated().any():
        raise InputError(where, "patient", f"{list(tested[tested.duplicated()][:3])} are tested "
                         "in more than one fold", "test each patient once")


def _parsed(path, given: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """What the columns of a table hold, by our names; columns that it lacks are left out.

    ``sex`` becomes ``male``, and ``censorship`` becomes ``event``.
    """
    out = pd.DataFrame(index=given.index)
    for ours, column in columns.items():
        if column not in given:
            continue
        if ours == "patient":
            out[ours] = _patients(path, given, column)
        elif ours in ("slide", "site"):
            out[ours] = tables.names(given, column, path, safe=ours == "slide")
        elif ours in ("time", "log_hazard"):
            out[ours] = tables.numbers(given, column, path, missing=True)
        elif ours == "event":
            out[ours] = _events(path, given, column, EVENTS)
        elif ours == "censorship":
            out["event"] = 1.0 - _events(path, given, column, CENSORED)
        elif ours == "sex":
            out["male"] = _male(path, given, column)
        elif ours == "stage":
            out[ours] = _as_written(_stages(path, given, column), given[column])
        else:
            out[ours] = _as_written(tables.numbers(given, column, path, low=0, high=120,
                                                   missing=True, unit="years"), given[column])
    return out


def _as_written(values: pd.Series, text: pd.Series) -> pd.Series:
    """Whole numbers where all are there and written without a point."""
    return values.astype(np.int64) if text.str.fullmatch(r"\d+").all() else values


def _patients(path, given: pd.DataFrame, column: str) -> pd.Series:
    return tables.names(given, column, path, safe=True).map(patient_of)


def _events(path, given: pd.DataFrame, column: str, words: Mapping[str, float]) -> pd.Series:
    said = given[column].str.lower()
    odd = ~said.isin(tables.NOT_KNOWN | set(words))
    if odd.any():
        line, cell = given.index[odd][0], given[column][odd].iloc[0]
        one, zero = ("an event", "a censored time") if words is EVENTS else ("censored", "an event")
        raise InputError(path, column, f"has values that say neither, such as {cell[:60]!r} in row "
                         f"{line}", f"use 1 for {one} and 0 for {zero}, or whole words; competing "
                         "risks (-1) are not read, choose another endpoint")
    return said.map(words).astype(np.float64)


def _male(path, given: pd.DataFrame, column: str) -> pd.Series:
    said = given[column].str.casefold()
    if (said == "m").any() and (said == "mujer").any():
        tables.refuse(path, given[column], said == "m", "beside 'mujer', and may be either",
                      "write male and female")
    return tables.whole_words(given, column, path, SEXES)


def _stages(path, given: pd.DataFrame, column: str) -> pd.Series:
    """Stages 0 to 4, NaN where not known; ``Stage X`` and ``I/II NOS`` say that it is not."""
    said = given[column]
    found = said.map(stage_number).astype(np.float64)
    unknown = said.str.lower().isin(tables.NOT_KNOWN | {"x", "stage x", "i/ii nos"})
    odd = found.isna() & ~unknown
    if odd.any():
        tables.refuse(path, said, odd, "and no stage", "write I to IV, with A to C behind where "
                      "that is known, or leave it blank")
    return found


def _chosen(path, given: pd.DataFrame, only: Mapping[str, object] | None) -> pd.DataFrame:
    """The rows that hold the values which `only` names, of one cancer unless it says otherwise."""
    if only is not None and not isinstance(only, Mapping):
        raise InputError(path, "only", f"is {only!r}", "map a column to the values that are meant")
    for column, values in (only or {}).items():
        tables.check_columns(path, list(given.columns), (column,))
        kept = {str(value) for value in ([values] if isinstance(values, str | int | float)
                                         else values)}
        absent = sorted(kept - set(given[column]))
        if absent:
            raise InputError(path, column, f"never is {absent[:3]}, which only= asks for",
                             f"use some of {sorted(set(given[column]))[:8]}")
        given = given[given[column].isin(kept)]
    if not only:
        _one_cancer(path, given)
    return given


def _one_cancer(path, given: pd.DataFrame) -> None:
    """Refuse a table of several TCGA studies: their patients are no one cohort."""
    for column in given.columns:
        found = set(given[column].str.upper().str.removeprefix("TCGA-")) - {""}
        cancers = {"COADREAD" if name in ("COAD", "READ") else name for name in found}
        if len(cancers) > 1 and found <= TCGA_STUDIES:
            raise InputError(path, column, f"names {len(cancers)} cancers: {sorted(found)[:5]}",
                             "pass only={column: values} for the rows that are meant, or keep one "
                             "table per cancer")


def _one_patient_each(where, rows: pd.DataFrame) -> None:
    """Refuse a slide of two patients, also where its TCGA barcode names another one."""
    owners = rows.groupby("slide", sort=False)["patient"].nunique()
    shared = list(owners.index[owners > 1])
    if shared:
        of = rows["slide"] == shared[0]
        raise InputError(where, "slide", f"{shared[:3]} stand under more than one patient: "
                         f"{sorted(set(rows['patient'][of]))[:3]}"
                         + (f" (rows {list(rows.index[of])[:3]})" if rows.index.name else ""),
                         "a slide has one patient: mend the table")
    barcodes = rows["slide"].str.extract(_BARCODE, expand=False).str.upper()
    other = barcodes.notna() & rows["patient"].str.match(_BARCODE) & (barcodes != rows["patient"])
    if other.any():
        tables.refuse(where, rows["slide"], other, "and of another patient than its row says: "
                      f"{rows['patient'][other].iloc[0]}", "mend the slide or the patient")


def _one_row_each(where, rows: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
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
                         "a patient has one outcome: mend the table")
    return rows.drop_duplicates("patient")[["patient", *columns]].reset_index(drop=True)


def _with_site(clinical: Clinical) -> Clinical:
    """Every patient a site of its own where none is known."""
    if "site" in clinical.table:
        return clinical
    return replace(clinical, table=clinical.table.assign(site=clinical.table["patient"]),
                   notes=[*clinical.notes, "no site is known: folds keep patients apart"])


def _with_outcome(where, clinical: Clinical, not_positive: str = "refuse") -> Clinical:
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
                         f"for patient {table['patient'][late].iloc[0]}", "look at the unit: days "
                         "need unit=days")
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
