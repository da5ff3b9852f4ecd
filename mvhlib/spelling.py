"""Spellings of one name: accents that are encoded in two ways, columns that are written otherwise.

A column that must be there is missed when it is called ``MPP`` (`mvhlib.tables.check_columns`); one
that may be left out is not, and what stands in it would be lost without a word.
"""

import os
import unicodedata
from collections.abc import Iterable

from mvhlib.artifacts import InputError
from mvhlib.tables import _plain


def spelt(name: str) -> str:
    """A name with its accents encoded one way: macOS takes them apart in the names of files."""
    return unicodedata.normalize("NFC", name)


def refuse_other_spellings(path: str | os.PathLike, columns: Iterable[str],
                           known: Iterable[str]) -> None:
    """Refuse a table with a column that differs from one that is read in its spelling alone.

    Parameters
    ----------
    path
        The table.
    columns
        Names of its columns.
    known
        Names that are read. Case, blanks, hyphens, underscores and points are the spelling.

    Raises
    ------
    InputError
        Naming the column and the name that it has to have; or, where a column of that name is
        there as well, saying that one of the two has to go.
    """
    present, known = list(columns), list(known)
    meant = {_plain(name): name for name in known if _plain(name)}
    for column in present:
        name = meant.get(_plain(column))
        if name is None or column in known:
            continue
        if name in present:
            raise InputError(path, column, f"stands beside {name!r}, which differs from it in "
                             "spelling alone", "delete one of the two columns")
        raise InputError(path, column, f"is not read, since the column is called {name!r}",
                         f"rename it to {name!r}")
