"""Tables that `make profile` writes for a person to fill in, and what is left to fill in of them.

A row is a section, a slide or an image. A cell that only the user can fill in holds `BLANK`; cells
that may stay empty are empty. Every reader of such a table checks it in full; this module only
checks for cells that are still to be filled in, so that a run is refused before it begins.

From then on it is the user's own table, which `mvhlib.tables` reads cell by cell as it stands: a
slide ``+7.png`` is written as that, without the apostrophe by which `mvhlib.artifacts.write_csv`
keeps spreadsheets from taking it for a formula.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvhlib import tables
from mvhlib.artifacts import FLOAT_FORMAT, InputError, atomic

#: What stands in a cell that the user has to fill in.
BLANK = "?"
#: Columns that name what a row is of, in the order in which they are looked for.
_OF = ("section", "slide", "image")
#: Columns that have to be filled in where they are there and rows are sections.
_NEEDED = ("study", "patient")
#: Words that people write into a cell that is still open, in lower case.
_LATER = frozenset(("todo", "tbd", "tba", "fill in", "fixme", "xxx", "to be filled in"))


def check_filled(path: str | os.PathLike) -> None:
    """Refuse a table that still has a cell to fill in.

    Raises
    ------
    InputError
        Naming the first such cell by column, row and what the row is of, and how many there are.
    """
    table = tables.read_table(path, any_row=True)
    of = next((column for column in _OF if column in table), None)
    if of is None:
        return
    needed = [column for column in _NEEDED if column in table] if of == "section" else []
    blank = [(row, column) for row in table.index for column in table.columns
             if table.at[row, column] == BLANK
             or (column in needed and _is_open(table.at[row, column]))]
    if not blank:
        return
    row, column = blank[0]
    more = f" (and {len(blank) - 1} more cells)" if len(blank) > 1 else ""
    raise InputError(path, f"{column}, row {row}", f"is not filled in for {of} "
                     f"{table.at[row, of]!r}{more}", _FIXES.get(column, "fill it in"))


def _is_open(cell: str) -> bool:
    """Whether a cell holds what people write who mean to come back to it."""
    return cell.strip("?. ") == "" or cell.lower() in tables.NOT_KNOWN | _LATER


_FIXES = {
    "patient": "write the donor, the same in all rows of one person or animal",
    "study": "write the study, the same in all rows of one laboratory's series",
    "mpp": "write micrometres per pixel of the full image, to which positions refer, "
           "such as 0.5"}


def write_template(path: str | os.PathLike, columns: Sequence[str],
                   rows: Sequence[Mapping[str, Any]], always: int = 3,
                   separator: str = ",") -> Path:
    """Write a table to fill in; a cell that a row lacks stays empty.

    Parameters
    ----------
    columns
        Their order; the first `always` stand, others where a row has something there.
    rows
        Column -> cell; `BLANK` where the user has to fill in.
    separator
        Of the columns. Cells of another table keep their meaning (``0,5``) with that table's.
    """
    import pandas as pd

    kept = [column for number, column in enumerate(columns)
            if number < always or any(row.get(column) not in (None, "") for row in rows)]
    table = pd.DataFrame([{column: row.get(column, "") for column in kept} for row in rows],
                         columns=kept)
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, sep=separator, float_format=FLOAT_FORMAT,
                     lineterminator="\n")
    return Path(path)
