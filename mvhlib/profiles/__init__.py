"""Inspection of a user's data set, and a profile that runs on it.

>>> found = look("data/mine")                         # doctest: +SKIP
>>> print("\\n".join(found.lines()))                   # doctest: +SKIP
>>> write(found, "params", "mine")                    # doctest: +SKIP

`KINDS` is the table of recognised kinds of data. `look` checks the files of each kind, and reports
what the reader of a matching kind reads; it guesses nothing that a reader does not confirm.
"""

from mvhlib.profiles.found import Found, Row
from mvhlib.profiles.kinds import KINDS, look
from mvhlib.profiles.write import check_free, what_next, write

__all__ = ["KINDS", "Found", "Row", "check_free", "look", "what_next", "write"]
