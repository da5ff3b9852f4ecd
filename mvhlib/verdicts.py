"""The rule that judges a claim by a measured difference.

========================  ========================================================================
``precondition not met``  what the claim takes for granted was not so; ``why`` says what
``as claimed``            the whole interval lies on the claimed side
``the other way``         the whole interval lies on the other side
``undecided``             neither; ``why`` names the smallest difference that could have been seen
========================  ========================================================================
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

AS_CLAIMED, OTHER_WAY = "as claimed", "the other way"
UNDECIDED, NOT_MET = "undecided", "precondition not met"


class Verdict(NamedTuple):
    """A verdict and what it rests on, in words; `why` is empty where the interval says it all."""

    verdict: str
    why: str


def judge(low: float, high: float, *, sign: int = 1, threshold: float = 0.0,
          unmet: Sequence[str] = ()) -> Verdict:
    """Judge an interval against a claim.

    Parameters
    ----------
    low, high
        Ends of the interval, in either order.
    sign
        1: claimed is a value above the threshold; -1: below.
    threshold
        Where the claim begins.
    unmet
        Preconditions that were not met, in words.

    Examples
    --------
    >>> judge(0.01, 0.05).verdict
    'as claimed'
    >>> judge(-0.01, 0.05)
    Verdict(verdict='undecided', why='a difference of 0.030 could have been seen')
    """
    if unmet:
        return Verdict(NOT_MET, "; ".join(unmet))
    if not (math.isfinite(low) and math.isfinite(high)):
        return Verdict(UNDECIDED, "no interval")
    low, high = sorted((sign * (low - threshold), sign * (high - threshold)))
    if low > 0:
        return Verdict(AS_CLAIMED, "")
    if high < 0:
        return Verdict(OTHER_WAY, "")
    if low == high:
        return Verdict(UNDECIDED, "no difference anywhere")
    return Verdict(UNDECIDED, f"a difference of {(high - low) / 2:.3f} could have been seen")
