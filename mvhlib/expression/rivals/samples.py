"""What the rivals read of a section: one standardised embedding per spot."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.cohort.splits import hold_out


def embedding(X: np.ndarray, where: str) -> np.ndarray:
    """Embedding `(T, D)` of each spot.

    Parameters
    ----------
    X
        `(T, D)`, or tokens of several views `(T, V, 1 + N, D)` as `mvhlib.expression.mmap` reads
        them, of which the class token of the first view, the whole tile, is taken.

    Raises
    ------
    InputError
        On another shape.
    """
    if X.ndim == 4:
        return np.ascontiguousarray(X[:, 0, 0], dtype=np.float32)
    if X.ndim != 2:
        raise InputError(where, "embedding", f"has shape {X.shape}", "give (T, D), one row a spot")
    return np.asarray(X, dtype=np.float32)


def early_stop(samples: Sequence[Any], share: float, seed: int) -> np.ndarray:
    """Which samples `(S,)` training stops on: whole patients, sections of one patient else."""
    for level in ("patient", "name"):
        groups = np.array([str(getattr(sample, level)) for sample in samples])
        if share > 0 and len(set(groups)) > 1:
            return hold_out(groups, share, seed)
    return np.zeros(len(samples), dtype=bool)


def within(Y: np.ndarray) -> np.ndarray:
    """Expression less the section's mean: what a correlation within sections can see."""
    return np.asarray(Y, dtype=np.float32) - np.asarray(Y, dtype=np.float32).mean(axis=0)
