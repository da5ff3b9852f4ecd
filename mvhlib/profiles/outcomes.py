"""Kinds without pixels: tables of patients' outcomes, and features that somebody else computed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvhlib import tables
from mvhlib.artifacts import InputError, h5_reader
from mvhlib.cohort import clinical
from mvhlib.profiles.found import Found, Row

#: Endings that tables may have.
_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
#: Names of columns, lower case and without ``_``, ``.``, ``-`` and blanks.
_PATIENT = ("patient", "patientid", "bcrpatientbarcode", "caseid", "case", "submitterid", "id")
_TIME = {"time": "months", "timemonths": "months", "timedays": "days", "timeyears": "years",
         "osmonths": "months", "osdays": "days", "survivalmonths": "months",
         "survivaldays": "days", "futime": "days", "days": "days", "months": "months"}
#: Endpoints of the TCGA clinical data resource, whose times are days.
_CDR = ("OS", "DSS", "PFI", "DFI")
_SITE = ("site", "hospital", "centre", "center", "tissuesourcesite")
_EVENT = ("event", "status", "death", "osevent", "osstatus", "fustat", "vitalstatus")
_CENSORED = ("censorship", "censored")
_COVARIATES = (("age", "ageatinitialpathologicdiagnosis", "ageatdiagnosis"), ("sex", "gender"),
               ("stage", "ajccpathologictumorstage", "ajccstage", "tumorstage"))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _find(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_plain = {_plain(column): column for column in columns}
    return next((by_plain[name] for name in wanted if name in by_plain), None)


def _survival_columns(columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Endpoint -> options of `mvhlib.cohort.clinical.read_table`; empty where none is there."""
    patient = _find(columns, _PATIENT)
    if patient is None:
        return {}
    kept = [column for names in _COVARIATES if (column := _find(columns, names))]
    site = _find(columns, _SITE)
    shared = {"patient": patient, "covariates": kept} | ({"site": site} if site else {})
    found = {}
    for endpoint in _CDR:
        time = _find(columns, (f"{endpoint}time".lower(),))
        event = _find(columns, (endpoint.lower(),))
        if time and event:
            found[endpoint.lower()] = shared | {"time": time, "event": event, "unit": "days"}
    if not found:
        time = _find(columns, tuple(_TIME))
        event, censored = _find(columns, _EVENT), _find(columns, _CENSORED)
        if time and (event or censored):
            found["os"] = shared | {"time": time, "unit": _TIME[_plain(time)]} | (
                {"event": event} if event else {"event": None, "censorship": censored})
    return found


def _tables(root: Path) -> dict[Path, list[str]]:
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
        map(_survival_columns, _tables(root).values()))


def look(root: Path) -> Found:
    folders = [name for name in ("panther", "survpath") if (root / name).is_dir()]
    if folders:
        source = folders[0]
        rows = [_row(source, root / source, endpoint, {}) for endpoint in ("os", "dss")]
        return Found(root, "outcomes", f"survival tables of {source}", source, of="table",
                     rows=rows, used=set(folders))
    rows, used = [], set()
    for path, columns in _tables(root).items():
        for endpoint, options in _survival_columns(columns).items():
            rows.append(_row("table", root, endpoint, {"file": path.name} | options))
            used.add(path.name)
    good = [row for row in rows if not row.problem]
    advice = []
    if len({row.cells["options"]["file"] for row in good}) > 1:
        advice.append(f"Several tables have outcomes: the profile reads {_first(good)}; name "
                      "another by `columns: {file: ...}` in 09_survival.yaml.")
    return Found(root, "outcomes", "outcomes of patients, without pixels", "table", of="table",
                 rows=rows, used=used, advice=advice)


def _first(rows: Sequence[Row]) -> str:
    return rows[0].cells["options"]["file"]


def _row(source: str, folder: Path, endpoint: str, options: dict[str, Any]) -> Row:
    """One endpoint of a table, read as 09_survival would."""
    name = f"{options.get('file', source)}: {endpoint}"
    cells = {"endpoint": endpoint, "options": options}
    try:
        read = clinical.read(source, folder, endpoint, **options)
    except InputError as error:
        if only := _studies(error, folder, options):
            return _row(source, folder, endpoint, options | {"only": only})
        if "not_positive" in error.fix and "not_positive" not in options:
            return _row(source, folder, endpoint, options | {"not_positive": "drop"})
        return Row(name, cells, problem=str(error))
    return Row(name, cells, {"holds": f"{len(read.table)} patients, {read.n_events} events"})


def _studies(error: InputError, folder: Path, options: dict[str, Any]) -> dict[str, str] | None:
    """The first cancer of a table that holds several, which is what `error` may be about."""
    if "only" in options or "only" not in f"{error.problem} {error.fix}" or "file" not in options:
        return None
    table = tables.read_table(folder / options["file"])
    for column in table.columns:
        names = list(dict.fromkeys(table[column].str.upper().str.removeprefix("TCGA-")))
        if names and set(names) - {""} <= clinical.TCGA_STUDIES:
            return {column: table[column].iloc[0]}
    return None


# --- features ------------------------------------------------------------------------------------

def _feature_files(root: Path) -> list[Path]:
    folders = [root, *root.glob("*/"), *root.glob("*/*/")]
    return [path for folder in folders for path in sorted(folder.iterdir())
            if path.suffix in (".h5", ".pt") and not path.name.startswith(".")]


def _is_features(path: Path) -> tuple[int, int] | None:
    """Tiles and width of a file of features; None of any other file."""
    try:
        with h5_reader(path) as stream:
            shape = stream["features"].shape if "features" in stream else ()
    except InputError:
        return None
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 else None


def holds_features(root: Path) -> bool:
    files = _feature_files(root)
    return any(path.suffix == ".pt" and path.parent.name == "pt_files" for path in files) or any(
        _is_features(path) for path in files[:5] if path.suffix == ".h5")


def look_features(root: Path) -> Found:
    rows = []
    for path in _feature_files(root):
        size = _is_features(path) if path.suffix == ".h5" else None
        if size or path.suffix == ".pt":
            rows.append(Row(path.stem, facts={"holds": f"{size[0]} tiles x {size[1]}" if size
                                              else "a tensor"}))
    used = {path.relative_to(root).parts[0] for path in _feature_files(root)}
    return Found(root, "features", "features of tiles, by TRIDENT or CLAM", "", of="slide",
                 rows=rows, used=used, advice=[
                     "To run: give the slides themselves (kind slides), and name the same encoder "
                     "in workflow.yaml; 02_tiles and 04_embed then make these files.",
                     "To use these files in code: mvhlib.features.read_features(path) reads h5 of "
                     "TRIDENT's and HEST's layouts; a .pt has no coordinates and is not read."])
