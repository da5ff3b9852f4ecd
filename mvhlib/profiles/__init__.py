"""Inspection of a user's data set, and a profile that runs on it.

>>> found = look("data/mine")                         # doctest: +SKIP
>>> print("\\n".join(found.lines()))                   # doctest: +SKIP
>>> write(found, "params", "mine")                    # doctest: +SKIP

`KINDS` is the table of what is recognised. `look` asks each kind whether its files are there and
lets the one that answers say what it reads; nothing is guessed that a reader does not confirm.
"""

from mvhlib.profiles.found import Found, Row
from mvhlib.profiles.kinds import KINDS, look
from mvhlib.profiles.write import check_free, what_next, write

__all__ = ["KINDS", "Found", "Row", "check_free", "look", "what_next", "write"]
