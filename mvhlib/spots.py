"""Spots joined by name: their features, their labels.

Features are stored per tile and counts per spot. Tiles are fewer (off tissue, off the image), and
their order is that of another file, so that every use of both begins with a join on the barcode.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.features import align

if TYPE_CHECKING:
    from mvhlib.features import Features

#: Labels that name no class.
NO_CLASS = ("undetermined", "nan", "")


def join(section: str, names: Sequence[str], features: "Features | np.ndarray", *,
         as_stored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Find the spots of a section that have features.

    Parameters
    ----------
    section
        Its name, for errors.
    names
        Barcodes of the spots, `(T,)`.
    features
        `Features`, joined on barcode; or an array with one row per spot in the section's order.
    as_stored
        Keep the order of the features' file, as HEST-Benchmark does, whose solver stops by a
        tolerance: its numbers depend on the order of rows. Else that of `names`.

    Returns
    -------
    tuple of np.ndarray
        Places of the joined spots among `names`, `(N,)` int64; and their features, `(N, ...)`.

    Raises
    ------
    InputError
        If no spot has features, rows and spots differ in number, or a feature is not finite.
    """
    names = [str(name) for name in names]
    if not hasattr(features, "barcodes"):
        values = np.asarray(features)
        if values.ndim < 2 or len(values) != len(names):
            raise InputError(section, "features", f"shape {values.shape} for {len(names)} spots",
                             "give one row per spot")
        kept = np.arange(len(names))
    else:
        if as_stored:
            place = {name: number for number, name in enumerate(names)}
            kept = np.array([place[name] for name in features.barcodes if name in place],
                            dtype=np.int64)
        else:
            known = set(features.barcodes)
            kept = np.flatnonzero([name in known for name in names])
        if len(kept) == 0:
            raise InputError(section, "barcodes", "of spots and features have none in common, for "
                             f"example {next(iter(names), None)!r} and "
                             f"{next(iter(features.barcodes), None)!r}",
                             "take features and counts of the same section")
        values = align(features, [names[number] for number in kept])
    if not np.isfinite(values).all():
        raise InputError(section, "features", "hold NaN or infinity", "embed the section again")
    return kept, values


def classes(section: str, names: Sequence[str], labels: Any) -> np.ndarray:
    """Class of each spot as text, `(T,)` object; None where it has none.

    Parameters
    ----------
    section
        Its name, for errors.
    names
        Barcodes of the spots.
    labels
        Series indexed by barcode, or None. Spots that it lacks, and those of `NO_CLASS`, have no
        class.

    Raises
    ------
    InputError
        If the labels share no barcode with the spots.
    """
    if labels is None:
        return np.full(len(names), None, dtype=object)
    series = pd.Series(labels).astype(object)
    found = series.reindex([str(name) for name in names])
    if len(found) and found.isna().all() and len(series.dropna()):
        raise InputError(section, "labels", f"have no barcode in common with the spots, for "
                         f"example {series.index[0]!r} and {names[0]!r}",
                         "index the labels by barcode")
    return np.array([None if pd.isna(value) or str(value) in NO_CLASS else str(value)
                     for value in found], dtype=object)
