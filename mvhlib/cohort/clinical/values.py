"""Meaning of clinical words: events, sex, stage, units of time, names of patients."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mvhlib import tables, tcga
from mvhlib.artifacts import InputError, check_spelling

DAYS_PER_MONTH = 365.25 / 12

#: Days in one unit of time of a table.
UNITS = {"days": 1.0, "months": DAYS_PER_MONTH, "months30": 30.0, "years": 365.25}

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

_ROMAN = {"0": 0.0, "IS": 0.0, "I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0,
          "1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0}


def stage_number(text: object) -> float:
    """1 to 4 of ``Stage IIIB``, ``III``, ``2A`` or 3; NaN of anything else."""
    if isinstance(text, (int, float, np.number)):
        return float(text) if float(text) in (0, 1, 2, 3, 4) else float("nan")
    found = re.fullmatch(r"(?:(?:ajcc|uicc|pathologic|clinical) )?(?:(?:stage|stadium|stade|"
                         r"estadio|stadio) )?(0|IS|I{1,3}|IV|[1-4])(?:[A-C][0-9]?|\.0)?",
                         " ".join(re.split(r"[\s_]+", str(text).strip())), flags=re.IGNORECASE)
    return _ROMAN[found[1].upper()] if found else float("nan")


def parsed(path, given: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Parse a table's columns under our names; absent columns are left out.

    ``sex`` becomes ``male``, and ``censorship`` becomes ``event``.
    """
    out = pd.DataFrame(index=given.index)
    for ours, column in columns.items():
        if column not in given:
            continue
        if ours == "patient":
            out[ours] = patients_of(path, given, column)
        elif ours in ("slide", "site"):
            out[ours] = tables.names(given, column, path, safe=ours == "slide")
        elif ours in ("time", "log_hazard"):
            out[ours] = tables.numbers(given, column, path, missing=True)
        elif ours == "event":
            out[ours] = _events(path, given, column, EVENTS)
        elif ours == "censorship":
            out["event"] = 1.0 - _events(path, given, column, CENSORED)
        elif ours == "sex":
            out["male"] = is_male(path, given, column)
        elif ours == "stage":
            out[ours] = _as_written(stages_of(path, given, column), given[column])
        else:
            out[ours] = _as_written(tables.numbers(given, column, path, low=0, high=120,
                                                   missing=True, unit="years"), given[column])
    return out


def _as_written(values: pd.Series, text: pd.Series) -> pd.Series:
    """Return whole numbers if every value is written without a decimal point."""
    return values.astype(np.int64) if text.str.fullmatch(r"\d+").all() else values


def patients_of(path, given: pd.DataFrame, column: str) -> pd.Series:
    found = tables.names(given, column, path, safe=True).map(tcga.patient_of)
    check_spelling(found, path, column)
    return found


def _events(path, given: pd.DataFrame, column: str, words: Mapping[str, float]) -> pd.Series:
    said = given[column].str.lower()
    odd = ~said.isin(tables.NOT_KNOWN | set(words))
    if odd.any():
        line, cell = given.index[odd][0], given[column][odd].iloc[0]
        one, zero = ("an event", "a censored time") if words is EVENTS else ("censored", "an event")
        raise InputError(path, column, f"has values that mean neither, such as {cell[:60]!r} in "
                         f"row {line}", f"use 1 for {one} and 0 for {zero}, or whole words; "
                         "competing risks (-1) are not read, choose another endpoint")
    return said.map(words).astype(np.float64)


def is_male(path, given: pd.DataFrame, column: str) -> pd.Series:
    said = given[column].str.casefold()
    if (said == "m").any() and (said == "mujer").any():
        tables.refuse(path, given[column], said == "m", "in a column with 'mujer', so that it may "
                      "mean either sex", "write male and female")
    return tables.whole_words(given, column, path, SEXES)


def stages_of(path, given: pd.DataFrame, column: str) -> pd.Series:
    """Stages 0 to 4, NaN where not known; ``Stage X`` and ``I/II NOS`` say that it is not."""
    said = given[column]
    found = said.map(stage_number).astype(np.float64)
    unknown = said.str.lower().isin(tables.NOT_KNOWN | {"x", "stage x", "i/ii nos"})
    odd = found.isna() & ~unknown
    if odd.any():
        tables.refuse(path, said, odd, "and not a stage", "write I to IV, followed by A to C where "
                      "that is known, or leave it blank")
    return found
