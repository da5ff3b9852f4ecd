"""What a method stops training on: whole patients held out, and errors within their sections."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mvhlib.cohort.splits import hold_out


def held_out(samples: Sequence[Any], share: float, seed: int) -> tuple[np.ndarray, str]:
    """Rows of all samples together that training stops on, and the unit that was left out.

    Parameters
    ----------
    samples
        With ``name``, ``patient`` and ``X``, one row a spot.
    share
        Of the rows; 0 holds none out.

    Returns
    -------
    array, str
        `(T,)` bool; ``"patient"``, ``"section"`` where there is one patient, or ``"none"``.
    """
    sizes = [len(sample.X) for sample in samples]
    for unit, level in (("patient", "patient"), ("section", "name")):
        groups = [str(getattr(sample, level)) for sample in samples]
        if share > 0 and len(set(groups)) > 1:
            return hold_out(np.repeat(groups, sizes), share, seed), unit
    return np.zeros(sum(sizes), dtype=bool), "none"


def within(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """`(T, G)` less the mean of each owner `(T,)`, as float64.

    What sections differ by as a whole (library, stain) cannot be learned from others, is not
    scored by a correlation within sections, and would decide a plain error.
    """
    left = values.astype(np.float64)
    for owner in np.unique(owners):
        left[owners == owner] -= left[owners == owner].mean(axis=0)
    return left
