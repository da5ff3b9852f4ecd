"""Early stopping: the patients held out for it, and their errors within sections."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mvhlib.cohort.splits import hold_out


def held_out(samples: Sequence[Any], share: float, seed: int) -> tuple[np.ndarray, str]:
    """Hold out rows (of all samples together) for early stopping; name the unit left out.

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
    """Subtract from `values` `(T, G)` the mean of each of `owners` `(T,)`, as float64.

    Differences between whole sections (library, stain) cannot be learned from other sections and
    do not change a correlation within sections, but would dominate a plain error.
    """
    left = values.astype(np.float64)
    for owner in np.unique(owners):
        left[owners == owner] -= left[owners == owner].mean(axis=0)
    return left
