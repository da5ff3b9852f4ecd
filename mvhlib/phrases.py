"""Numbers of a table as a sentence writes them: a mean with its interval, a count of units.

An answer (`mvhlib.answers`) is built from these, so that all notebooks say alike what was measured
and, in words, what was not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Units of inference whose plural is not made by an s, or whose name is written otherwise.
PLURALS = {"study": "studies", "block": "spot blocks", "class": "classes", "series": "series",
           "biopsy": "biopsies"}


def plural(unit: str) -> str:
    """Several of a unit: ``patients``, ``studies``."""
    return PLURALS.get(unit, f"{unit}s")


def count(n: int, unit: str) -> str:
    """A number of units: ``1 patient``, ``8 studies``.

    Examples
    --------
    >>> count(1, "study"), count(8, "study"), count(1200, "spot")
    ('1 study', '8 studies', '1,200 spots')
    """
    return f"{n:,} {unit if n == 1 else plural(unit)}"


def number(value: float, digits: int = 2) -> str:
    """A number with so many digits behind the point; a zero has no sign, and none is in words.

    Examples
    --------
    >>> number(0.314), number(-0.001), number(float("nan"))
    ('0.31', '0.00', 'not measured')
    """
    if not math.isfinite(value):
        return "not measured"
    return f"{value + 0.0 if round(value, digits) else 0.0:.{digits}f}"


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval in brackets, or ``""`` where there is none.

    Examples
    --------
    >>> interval(-0.101, 0.2), interval(float("nan"), 0.2)
    ('[-0.10, 0.20]', '')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def mean(value: float, low: float, high: float, digits: int = 2) -> str:
    """A mean with its interval, or that it has none.

    Examples
    --------
    >>> mean(0.31, 0.28, 0.34), mean(0.31, float("nan"), float("nan"))
    ('0.31 [0.28, 0.34]', '0.31 (no interval)')
    """
    if not math.isfinite(value):
        return number(value)
    return f"{number(value, digits)} {interval(low, high, digits) or '(no interval)'}"


def row_mean(row: Mapping[str, Any], digits: int = 2) -> str:
    """The mean of a row of a summary, its interval and its units.

    Parameters
    ----------
    row
        Has ``mean, ci_low, ci_high, unit, n_units``.

    Examples
    --------
    >>> row_mean({"mean": 0.3, "ci_low": 0.2, "ci_high": 0.4, "unit": "study", "n_units": 8})
    '0.30 [0.20, 0.40] over 8 studies'
    """
    said = mean(row["mean"], row["ci_low"], row["ci_high"], digits)
    return f"{said} over {count(int(row['n_units']), row['unit'])}"


def listed(items: Iterable[Any], most: int = 6) -> str:
    """Names in a sentence: ``a``, ``a and b``, ``a, b and 3 more``.

    Examples
    --------
    >>> listed("ab"), listed("abcdef", most=3)
    ('a and b', 'a, b, c and 3 more')
    """
    items = [str(item) for item in items]
    if len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def span(values: Sequence[float], digits: int = 0) -> str:
    """The range of those values that are numbers, as one number where they are alike.

    Examples
    --------
    >>> span([3, 3]), span([1, 2.6, float("nan")]), span([])
    ('3', '1 to 3', 'not known')
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "not known"
    ends = [f"{value:,.{digits}f}" for value in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def on(run: Any, text: str = "") -> str:
    """A sentence that says first whether its data are synthetic; else it begins with a capital.

    Parameters
    ----------
    run
        The `mvhlib.notebook.Run`.
    text
        Begins as inside a sentence: ``hand-made predicts ...``. Without it the opening alone is
        returned, for a sentence that may begin with a capital anywhere.
    """
    if run.is_synthetic:
        return f"On synthetic data, one seed: {text}"
    return text[:1].upper() + text[1:]
