"""Samples on disk, and what HEST's csv and their own json state of each."""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, reading
from mvhlib.cohort.base import entries, present

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """One sample on disk and what is known of it."""

    name: str
    root: Path  # folder that st/ or adata/ lies in
    counts: Path
    facts: Mapping[str, Any]  # row of the csv, filled up from the sample's own json
    told_by: Path  # csv, json, or the counts where there is neither


def find_samples(root: Path, metadata: str | Path | None) -> dict[str, Sample]:
    """Id -> sample, of whichever layout `root` is."""
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "pass the folder of HEST-1k")
    homes = [home for home in (root, *(path for path in entries(root) if path.is_dir()))
             if any(entries(home / sub) for sub in ("st", "adata"))]
    if root in homes:
        homes = [root]
    files: dict[str, tuple[Path, Path]] = {}
    for home in homes:
        for sub in ("st", "adata"):
            for file in entries(home / sub):
                if file.suffix != ".h5ad":
                    continue
                if file.stem in files:
                    log.warning("%s is in %s as well; the first is read", file,
                                files[file.stem][1])
                files.setdefault(file.stem, (home, file))
    if not files:
        raise InputError(root, "st", "holds no <id>.h5ad, nor does adata or a task's adata",
                         "pass the folder of HEST-1k, or one or all tasks of hest-bench")
    rows, csv = read_metadata(root, metadata)
    samples = {}
    for name, (home, file) in files.items():
        facts, own = _facts(home, name, rows.get(name, {}))
        samples[name] = Sample(name, home, file, facts, csv if name in rows else own or file)
    return samples


def read_metadata(root: Path, metadata: str | Path | None
              ) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """Read the csv: id -> the stated cells of its row; and the csv itself."""
    if metadata is None:
        def version(file: Path) -> list[int]:
            return [int(number) for number in re.findall(r"\d+", file.stem)]

        found = sorted((file for file in root.glob("HEST_v*.csv")
                        if not file.name.startswith(".")), key=version)
        if not found:
            log.info("%s holds no HEST_v*.csv, only what the samples' own files say is known", root)
            return {}, None
        metadata = found[-1]
    table = tables.read_table(metadata, ("id", "dataset_title", "patient",
                                         "pixel_size_um_estimated"))
    tables.names(table, "id", metadata, unique=True)
    return {row["id"]: {key: value for key, value in row.items() if _stated(value)}
            for row in table.to_dict("records")}, Path(metadata)


def _stated(value: Any) -> bool:
    """True if a cell holds a value; the csv has blank as well as empty cells."""
    said = str(value).strip().lower()
    return said not in tables.NOT_KNOWN and said not in ("[]", "{}")


def _facts(home: Path, name: str, row: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The csv's row, filled up from ``metadata/<id>.json``; and that file, where there is one."""
    path = home / "metadata" / f"{name}.json"
    if not present(path):
        return dict(row), None
    with reading(path, problem="is not a JSON object",
                 fix="it is probably truncated: fetch it again"):
        own = json.loads(path.read_text(encoding="utf-8-sig"))
        own = {key: value for key, value in own.items() if _stated(value)}
    return own | dict(row), path


def stated_number(sample: Sample, name: str) -> float | None:
    """A positive number that is stated of a sample; None where it is not stated."""
    value = sample.facts.get(name)
    if value is None:
        return None
    said = str(value).strip() if isinstance(value, (str, int, float)) else ""
    number = math.nan
    if _NUMBER.fullmatch(said):
        # pandas' own parser: it ends one step of the last digit off, and runs were keyed by that.
        try:
            number = float(pd.to_numeric(said) if isinstance(value, str) else value)
        except ValueError:  # a whole number beyond 64 bits
            number = float(said)
    if not 0 < number < math.inf:
        raise InputError(sample.told_by, name, f"of {sample.name} is {value!r}",
                         "state a positive number, with a decimal point")
    return number
