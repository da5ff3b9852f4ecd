"""Names of genes that a spreadsheet has made dates of: ``SEPT2`` becomes ``2-Sep``.

Such a name is nobody's: ``1-Mar`` was MARCH1 or MARC1, and a table that holds both says ``1-Mar``
twice. A list of a user's is refused for it. Of a table of counts, which its reader can often not
mend, those genes are left out, and the log says so: never summed, never predicted under that name.

Source: Ziemann, Eren and El-Osta, Genome Biology 17, 177 (2016).
"""

import logging
import os
import re
from collections.abc import Iterable

import numpy as np

log = logging.getLogger(__name__)

_MONTHS = "(jan|feb|mar|m[äa]r|apr|may|mai|jun|jul|aug|sep|sept|oct|okt|nov|dec|dez)"
_DATE = re.compile(rf"(\d{{1,2}}[-.]\s?{_MONTHS}|{_MONTHS}-\d{{2}}|"
                   r"\d{4}-\d{2}-\d{2}( 00:00:00)?)", re.IGNORECASE)
#: What readers put behind a symbol that stands twice.
_NUMBERED = re.compile(r"-\d+$")


def is_date(name: str) -> bool:
    return bool(_DATE.fullmatch(name))


def dated(names: Iterable[str]) -> np.ndarray:
    """True `(G,)` for names that are dates, numbered or not (``1-Mar-1``)."""
    return np.array([name[:1] in "0123456789JFMASONDjfmasond" and (
        is_date(name) or is_date(_NUMBERED.sub("", name))) for name in map(str, names)], dtype=bool)


def say(names: Iterable[str], lost: np.ndarray, where: str | os.PathLike) -> None:
    """Put into the log which genes are left out."""
    gone = [name for name, out in zip(names, lost, strict=True) if out]
    log.warning("%s: %d genes have dates for names, into which a spreadsheet has turned symbols "
                "such as SEPTIN2 or MARCHF1, and are left out: %s", where, len(gone),
                ", ".join(gone[:5]))
