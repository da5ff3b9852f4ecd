"""Input of the rivals: one embedding per spot."""

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.expression.mmap.tokens import class_token


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
        return np.ascontiguousarray(class_token(X), dtype=np.float32)
    if X.ndim != 2:
        raise InputError(where, "embedding", f"has shape {X.shape}", "give (T, D), one row a spot")
    return np.asarray(X, dtype=np.float32)
