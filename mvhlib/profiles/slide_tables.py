"""Precomputed features of slides, and the table of the slides' owners."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mvhlib import slide_features, tables, tcga
from mvhlib.artifacts import InputError, h5_reader, safe_path
from mvhlib.cohort.clinical import values
from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import MOST_LINES, Found, Row
from mvhlib.profiles.listed import own_table
from mvhlib.profiles.names import unsafe
from mvhlib.profiles.outcomes import (
    COVARIATES,
    PATIENT,
    find_column,
    survival_columns,
    tables_in,
)
from mvhlib.spelling import spelt
from mvhlib.tiles import whole

log = logging.getLogger(__name__)

_SLIDE = ("slide", "slideid", "slidename", "filename", "file", "image", "wsi")
_LABEL = ("label", "class", "target", "diagnosis", "subtype", "oncotreecode")
#: A slide of TCGA: its site and its patient stand in its name.
_TCGA = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})\b.*", re.IGNORECASE)


class _Contradiction(NamedTuple):
    """A cell of which the rows of one table say several things."""

    table: str
    values: tuple[Any, ...]


def holds(root: Path) -> bool:
    return bool(slide_features.find(root))


def other_h5(root: Path) -> list[str]:
    """What an h5 file in a directory or its folders holds, where it holds no features."""
    for path in [*sorted(root.glob("*.h5")), *sorted(root.glob("*/*.h5"))]:
        try:
            with h5_reader(path) as stream:
                return sorted(stream)[:4]
        except InputError:
            continue
    return []


def look(root: Path) -> Found:
    folders = slide_features.find(root)
    for folder in folders:
        safe_path(folder, root / folder, "folder")  # it becomes an encoder's source
    slides = sorted(set.intersection(*(set(files) for files in folders.values())))
    first = next(iter(folders.values()))
    used = {Path(name).parts[0] if name != "." else file.name for name, files in folders.items()
            for file in (files.values() if name == "." else list(files.values())[:1])}
    found = Found(root, "features", "features of tiles, by TRIDENT or CLAM", "features", of="slide",
                  used=used, table=(*whole.COLUMNS[:-1], "age", "sex", "stage"))
    found.options = {"encoders": _slugs(root, folders), "endpoints": []}
    found.advice = [f"Encoders: {', '.join(found.options['encoders'])}."]
    if not slides:
        raise InputError(root, "features", f"of {list(folders)[:3]} are of different slides",
                         "name the folder of one encoder with DATA=")
    if (root / "slides.csv").is_file():
        _take_listed(found, folders)
        return found
    held = slide_features.sizes({name: first[name] for name in slides[:MOST_LINES]})
    broken = slide_features.faults(folders, slides[:MOST_LINES])
    known, taken = _known(root, slides)
    if taken:
        found.used |= {path.name for path in taken}
        found.advice.append("Patients, labels and outcomes are those of "
                            f"{' and '.join(path.name for path in taken)}: check slides.csv "
                            "of the profile before you run it.")
    found.advice += _contradictions(known)
    found.rows = [Row(name, {"slide": name} | known[name], {"holds": held.get(name)},
                      problem=broken.get(name) or unsafe(first[name], root)) for name in slides]
    found.options["endpoints"] = ["os"] if any("time" in row for row in known.values()) else []
    if taken and not any("label" in row for row in known.values()):
        found.advice.append("No column of theirs is called label: copy the column of classes into "
                            "the column label of slides.csv, and add 07_classification to "
                            "notebooks.")
    if not any("label" in row or "time" in row for row in known.values()):
        found.advice.append("No table holds label (for 07_classification), or time [months] and "
                            "event (1: seen, 0: censored; for 09_survival): fill them in in "
                            "slides.csv of the profile, and add the notebook to notebooks.")
    return found


def _take_listed(found: Found, folders: Mapping[str, Mapping[str, Path]]) -> None:
    """Rows of ``slides.csv``, each with what its files of features hold."""
    first = next(iter(folders.values()))
    anywhere = {name: path for files in folders.values() for name, path in files.items()}
    listed = whole.read(found.root, files=anywhere)
    names = [each.path.stem for each in listed]
    lacking = {name: str(InputError(found.root / folder, "features", f"of {name} are not there",
                                    "compute them, or leave the slide out"))
               for folder, files in folders.items() for name in names if name not in files}
    looked_at = [name for name in names if name not in lacking][:MOST_LINES]
    held = slide_features.sizes({name: first[name] for name in looked_at})
    problems = lacking | slide_features.faults(folders, looked_at)
    found.rows = [Row(each.name, facts={
        "patient": each.patient or None, "study": each.study or None,
        "label": each.label or None, "holds": held.get(name)}, problem=problems.get(name, ""))
        for each, name in zip(listed, names, strict=True)]
    found.options["endpoints"] = whole.endpoints(listed)
    found.table, found.used = (), found.used | {"slides.csv"}
    own_table(found)


def _slugs(root: Path, folders: Mapping[str, Any]) -> dict[str, str]:
    """Slug -> source of each folder; a number is added where two have one name."""
    found: dict[str, str] = {}
    for folder in folders:
        name = base = slide_features.slug(root, folder)
        number = 1
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found[name] = slide_features.FEATURES + folder
    return found


def _known(root: Path, slides: list[str]) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Owner of each slide from TCGA names and from tables of the directory; also these tables."""
    known: dict[str, dict[str, Any]] = {}
    for name in slides:
        barcode = _TCGA.fullmatch(name)
        known[name] = {"patient": barcode[1].upper() if barcode else BLANK}
        if barcode:
            known[name]["study"] = barcode[2].upper()
    there = {}
    for path in tables_in(root):
        try:
            there[path] = tables.read_table(path, any_row=True)
        except InputError:
            continue
    taken: list[Path] = []
    # The table that says most, and once more: one may list the slides of each patient, and another
    # what is known of the patients.
    for _ in range(2):
        said = {path: _new(_said(path, table, known), known if taken else {})
                for path, table in there.items() if path not in taken}
        best = max(said, key=lambda path: len(said[path]), default=None)
        if best is None or not said[best]:
            break
        taken.append(best)
        for name, row in said[best].items():
            known[name] |= row
    return known, taken


def _contradictions(known: Mapping[str, dict[str, Any]]) -> list[str]:
    """Leave cells to the user of which a table says several things; a sentence for each table."""
    found: dict[str, list[str]] = {}
    for name, row in known.items():
        for column, cell in row.items():
            if isinstance(cell, _Contradiction):
                row[column] = BLANK
                found.setdefault(cell.table, []).append(
                    f"{column} of {name} is {' and '.join(map(str, cell.values[:3]))}")
    return [f"Rows of {table} contradict each other: {'; '.join(said[:5])}"
            + (f"; and {len(said) - 5} more cells" if len(said) > 5 else "")
            + f". These cells are left at {BLANK}." for table, said in found.items()]


def _new(said: Mapping[str, Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]
         ) -> dict[str, dict[str, Any]]:
    """Slide -> cells of columns of which nothing is known yet."""
    found = {name: {column: value for column, value in row.items()
                    if known.get(name, {}).get(column, BLANK) == BLANK}
             for name, row in said.items()}
    return {name: row for name, row in found.items() if row}


def _said(path: Path, table: pd.DataFrame, known: Mapping[str, Mapping[str, Any]]
          ) -> dict[str, dict[str, Any]]:
    """Find the cells of a table for each slide, by slide or else by patient.

    A slide may have several rows, as far as they agree; else the cell is a `_Contradiction`.
    """
    columns = list(table.columns)
    slide, patient = find_column(columns, _SLIDE), find_column(columns, PATIENT)
    rows: dict[str, list[int]] = {}
    if slide is not None:
        by_name = _lines(table[slide].map(whole.stem).map(spelt))
        rows = {name: by_name[spelt(name)] for name in known if spelt(name) in by_name}
    if not rows and patient is not None:
        by_patient = _lines(table[patient].map(tcga.patient_of))
        rows = {name: by_patient[row["patient"]] for name, row in known.items()
                if row["patient"] != BLANK and row["patient"] in by_patient}
    outcome = next(iter(survival_columns(columns).values()), {})
    label = find_column(columns, _LABEL)
    wanted = {"label": label} | {
        name: find_column(columns, names) for name, names in COVARIATES.items()}
    texts = {column: table[of] for column, of in wanted.items() if of is not None}
    if slide is not None and patient is not None:
        texts["patient"] = table[patient].map(tcga.patient_of)
    cells: dict[str, Mapping[int, Any]] = {
        column: dict(text[~text.str.lower().isin(tables.NOT_KNOWN)])
        for column, text in texts.items()}
    found: dict[str, dict[str, Any]] = {}
    for column, cell_of in (cells | _outcomes(path, table, outcome)).items():
        for name, lines in rows.items():
            if said := tuple(dict.fromkeys(cell_of[at] for at in lines if at in cell_of)):
                found.setdefault(name, {})[column] = (
                    said[0] if len(said) == 1 else _Contradiction(path.name, said))
    return found


def _lines(names: pd.Series) -> dict[str, list[int]]:
    """Name -> the rows that it stands in."""
    return {name: list(lines) for name, lines in names.groupby(names).groups.items()}


def _outcomes(path: Path, table: pd.DataFrame, options: Mapping[str, Any]
              ) -> dict[str, dict[int, float]]:
    """Time [months] and event as ``slides.csv`` has them, by row; rows without one are left out.

    A table whose times are no numbers, or whose events are no words for one, has no outcomes here:
    `make doctor` of the table alone says what is wrong with it.
    """
    if not options:
        return {}
    named = {"time": options["time"], "event" if options.get("event") else "censorship":
             options.get("event") or options["censorship"]}
    try:
        said = values.parsed(path, table, named).dropna()
    except InputError as error:
        log.warning("%s The outcomes of this table are not taken over.", error)
        return {}
    months = said["time"] * whole.MONTHS[f"time_{options['unit']}"]
    return {"time": {at: round(float(month), 3) for at, month in months.items()},
            "event": {at: int(event) for at, event in said["event"].items()}}
