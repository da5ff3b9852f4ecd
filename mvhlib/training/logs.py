"""Logs that grow by one row per step and survive being killed."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvhlib.artifacts import FLOAT_FORMAT, InputError, atomic, reading


class CsvLog:
    """A csv that grows by one row per logged step and survives being killed.

    Parameters
    ----------
    path
        Its first column is ``step``.
    columns
        Names of the other columns.
    """

    def __init__(self, path: str | os.PathLike, columns: Iterable[str]):
        self.path = Path(path)
        self.columns = ["step", *columns]

    def cut(self, step: int) -> None:
        """Keep only whole rows of steps before `step`: those after it will be written again."""
        rows = []
        if self.path.exists():
            with reading(self.path, "log", fix="delete it"), \
                    open(self.path, newline="", encoding="utf-8") as stream:
                text = stream.read()
            whole = text[:text.rfind("\n") + 1]
            rows = [line for line in whole.splitlines()[1:]
                    if line.split(",", 1)[0].isdigit() and int(line.split(",", 1)[0]) < step]
        with atomic(self.path) as temporary:
            lines = [",".join(self.columns), *rows]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row.

        Raises
        ------
        InputError
            If a column is missing or unknown.
        """
        row = {"step": step, **values}
        if set(row) != set(self.columns):
            raise InputError(self.path, "columns", f"{set(row) ^ set(self.columns)} are missing or "
                             "unknown", "give a value for every column")
        line = ",".join(cell(row[name]) for name in self.columns)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def cell(value: Any) -> str:
    if isinstance(value, float):
        return FLOAT_FORMAT % value
    return str(value)


def read_log(path: str | os.PathLike) -> dict[str, list[float]]:
    """Read a log as lists of numbers, one per column; an unfinished last row is left out."""
    with reading(path, "log", "is not a log of numbers", "delete it and train again"):
        with open(path, newline="", encoding="utf-8") as stream:
            text = stream.read()
        names, *rows = [row for row in csv.reader(text[:text.rfind("\n") + 1].splitlines())
                        if row] or [[]]
        if any(len(row) != len(names) for row in rows) or len(set(names)) < len(names):
            raise ValueError("its rows differ in width, or a column stands twice")
        found = {name: [float(row[at]) for row in rows] for at, name in enumerate(names) if rows}
        if rows and not all(step >= 0 and step.is_integer() for step in found["step"]):
            raise ValueError("its steps are not whole numbers from 0")
        return found
