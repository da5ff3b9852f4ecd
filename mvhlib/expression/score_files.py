"""Reading ``scores.csv``, which an evaluation leaves for each protocol, method and encoder."""

from pathlib import Path

import pandas as pd

from mvhlib import artifacts
from mvhlib.artifacts import InputError

#: Columns that say who and what was scored, in every row that has them.
_NAMED = ("encoder", "patient", "section", "gene")
_AGAIN = "delete the file and run its notebook again"


def read_scores(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read one ``scores.csv``, controls and all panels.

    Raises
    ------
    InputError
        If there is no row, a column of `columns` is lacking, a name is blank or padded, or a
        correlation lies outside -1 to 1.
    """
    table = artifacts.read_csv(path, ("pcc", *columns), dtype={"fold": str})
    if table.empty:
        raise InputError(path, "rows", "are none", _AGAIN)
    for column in (name for name in _NAMED if name in table):
        names = pd.unique(table[column])
        wrong = [name for name in names if not isinstance(name, str) or not name.strip()
                 or name != name.strip()]
        if wrong:
            raise InputError(path, column, f"holds {wrong[0]!r}, which is no name", _AGAIN)
        artifacts.check_sayable(names, path, column)
    wrong = table["pcc"][table["pcc"].abs() > 1 + 1e-6]  # blank where a gene is constant
    if len(wrong):
        raise InputError(path, "pcc", f"is {wrong.iloc[0]:g} in row {wrong.index[0] + 2}", _AGAIN)
    return table


def read_first_panel(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Rows of the first panel without controls, which systems and variants are compared by.

    Raises
    ------
    InputError
        As `read_scores`.
    """
    table = read_scores(path, ("control", "panel", *columns))
    return table[(table["control"] == "none") & (table["panel"] == table["panel"].iloc[0])]
