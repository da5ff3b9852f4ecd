"""Tables of patients' outcomes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvhlib import tables, tcga
from mvhlib.artifacts import InputError, safe_path
from mvhlib.cohort import clinical
from mvhlib.profiles.found import Found, Row

#: Endings that tables may have.
_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
#: Names of columns, lower case and without ``_``, ``.``, ``-`` and blanks.
PATIENT = ("patient", "patientid", "bcrpatientbarcode", "caseid", "case", "submitterid",
           "casesubmitterid", "tcgaparticipantbarcode", "participantid", "subjectid", "id")
_TIME = {"time": "months", "timemonths": "months", "timedays": "days", "timeyears": "years",
         "osmonths": "months", "osdays": "days", "survivalmonths": "months",
         "survivaldays": "days", "daystolastknownalive": "days", "followupmonths": "months",
         "followupdays": "days", "futime": "days", "days": "days", "months": "months"}
#: Those that do not say it.
_NO_UNIT = ("time",)
#: Endpoints of the TCGA clinical data resource, whose times are days.
_CDR = ("OS", "DSS", "PFI", "DFI")
_SITE = ("site", "hospital", "centre", "center", "tissuesourcesite")
_EVENT = ("event", "status", "death", "osevent", "osstatus", "fustat", "vitalstatus")
_CENSORED = ("censorship", "censored")
COVARIATES = {"age": ("age", "ageatinitialpathologicdiagnosis", "ageatdiagnosis"),
              "sex": ("sex", "gender"),
              "stage": ("stage", "ajccpathologictumorstage", "ajccpathologicstage", "ajccstage",
                        "tumorstage")}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def find_column(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_plain = {_plain(column): column for column in columns}
    return next((by_plain[name] for name in wanted if name in by_plain), None)


def survival_columns(columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Endpoint -> options of `mvhlib.cohort.clinical.read_table`; empty where none is there."""
    patient = find_column(columns, PATIENT)
    if patient is None:
        return {}
    kept = [column for names in COVARIATES.values() if (column := find_column(columns, names))]
    site = find_column(columns, _SITE)
    shared = {"patient": patient, "covariates": kept} | ({"site": site} if site else {})
    found = {}
    for endpoint in _CDR:
        time = find_column(columns, (f"{endpoint}time".lower(),))
        event = find_column(columns, (endpoint.lower(),))
        if time and event:
            found[endpoint.lower()] = shared | {"time": time, "event": event, "unit": "days"}
    if not found:
        time = find_column(columns, tuple(_TIME))
        event, censored = find_column(columns, _EVENT), find_column(columns, _CENSORED)
        if time and (event or censored):
            found["os"] = shared | {"time": time, "unit": _TIME[_plain(time)]} | (
                {"event": event} if event else {"event": None, "censorship": censored})
    return found


def of_two_times(root: Path) -> tuple[Path, str, str] | None:
    """A table as GDC has it, and its columns: days to death for the dead, to the last visit for
    the others."""
    for path, columns in tables_in(root).items():
        death = find_column(columns, ("daystodeath", "deathdaysto"))
        last = find_column(columns, ("daystolastfollowup", "lastcontactdaysto"))
        if death and last:
            return path, death, last
    return None


def tables_in(root: Path) -> dict[Path, list[str]]:
    """Tables in a directory and their columns; what is no table is none."""
    found = {}
    for path in sorted(root.iterdir()):
        if path.is_file() and path.name.lower().endswith(_TABLES) and not path.name.startswith("."):
            try:
                found[path] = list(tables.read_rows(path, any_row=True)[0])
            except InputError:
                continue
    return found


def holds(root: Path) -> bool:
    if (root / "slides.csv").exists():
        return False
    return any((root / name).is_dir() for name in ("panther", "survpath")) or any(
        map(survival_columns, tables_in(root).values()))


def look(root: Path) -> Found:
    folders = [name for name in ("panther", "survpath") if (root / name).is_dir()]
    if folders:
        source = folders[0]
        rows = [_row(source, root / source, endpoint, {}) for endpoint in ("os", "dss")]
        return Found(root, "outcomes", f"survival tables of {source}", source, of="table",
                     rows=rows, used=set(folders))
    rows, used = [], set()
    for path, columns in tables_in(root).items():
        for endpoint, options in survival_columns(columns).items():
            rows.append(_row("table", root, endpoint, {"file": path.name} | options))
            used.add(path.name)
    good = [row for row in rows if not row.problem]
    advice = []
    if len({row.cells["options"]["file"] for row in good}) > 1:
        advice.append(f"Several tables have outcomes: the profile reads {_first(good)}; name "
                      "another by `columns: {file: ...}` in 09_survival.yaml.")
    for row in good:
        time = row.cells["options"]["time"]
        if _plain(time) in _NO_UNIT:
            advice.append(f"{row.name}: the column {time} does not say its unit, and is taken for "
                          "months: where it is days, write unit: days under `columns` in "
                          "09_survival.yaml.")
    return Found(root, "outcomes", "outcomes of patients, without pixels", "table", of="table",
                 rows=rows, used=used, advice=advice)


def _first(rows: Sequence[Row]) -> str:
    return rows[0].cells["options"]["file"]


def _row(source: str, folder: Path, endpoint: str, options: dict[str, Any]) -> Row:
    """One endpoint of a table, read as 09_survival would."""
    name = f"{options.get('file', source)}: {endpoint}"
    cells = {"endpoint": endpoint, "options": options}
    try:
        safe_path(options.get("file", source), folder, "file")  # it is written into the profile
        read = clinical.read(source, folder, endpoint, **options)
    except InputError as error:
        if only := _studies(error, folder, options):
            return _row(source, folder, endpoint, options | {"only": only})
        if "not_positive" in error.fix and "not_positive" not in options:
            return _row(source, folder, endpoint, options | {"not_positive": "drop"})
        return Row(name, cells, problem=str(error))
    longest = read.table["time_months"].max()
    return Row(name, cells, {"holds": f"{len(read.table)} patients, {read.n_events} events, "
                             f"up to {longest:.0f} months"})


def _studies(error: InputError, folder: Path, options: dict[str, Any]) -> dict[str, str] | None:
    """The first cancer of a table that holds several, which is what `error` may be about."""
    if "only" in options or "only" not in f"{error.problem} {error.fix}" or "file" not in options:
        return None
    table = tables.read_table(folder / options["file"])
    for column in table.columns:
        names = list(dict.fromkeys(table[column].str.upper().str.removeprefix("TCGA-")))
        if names and set(names) - {""} <= tcga.STUDIES:
            return {column: table[column].iloc[0]}
    return None
