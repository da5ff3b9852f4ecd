"""Features of many sections, one row per spot, with section, patient, study and label."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import spots
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from mvhlib.features import Features


@dataclass(frozen=True)
class Rows:
    """Features of many sections, one row per spot, with section, patient, study and label.

    Attributes
    ----------
    X
        `(T, D)` float64.
    about
        One row per spot: section, study, patient, specimen where it is known, and label (None
        where there is none).
    """

    X: np.ndarray = field(repr=False)
    about: pd.DataFrame = field(repr=False)


def rows(features: "Mapping[str, Features | np.ndarray]", sections: Iterable[Any],
         labels: str | Mapping[str, pd.Series] | None = None) -> Rows:
    """Join features with section, patient, study and, where given, a label per spot.

    Parameters
    ----------
    features
        Section -> `Features`, joined on barcode; or an array with one row per spot.
    sections
        Such as a `Cohort`; those without features are left out.
    labels
        A column of the sections' ``obs`` (``"label"`` of her2st), or section -> series indexed by
        barcode (``tissue_class`` of the synthetic truth). Sections may lack it.

    Raises
    ------
    InputError
        On features that do not join, are not finite or differ in width, or where no section has
        any.
    """
    X, about = [], []
    for section in sections:
        if section.name not in features:
            continue
        given, adata = features[section.name], section.adata
        kept, values = spots.join(section.name, adata.obs_names, given)
        if values.ndim != 2:
            raise InputError(section.name, "features", f"shape {values.shape} for "
                             f"{adata.n_obs} spots", "give one row per spot")
        names = np.asarray(adata.obs_names, dtype=str)[kept]
        if X and values.shape[1] != X[0].shape[1]:
            raise InputError(section.name, "features", f"are {values.shape[1]} wide, others "
                             f"{X[0].shape[1]}", "use features of one encoder")
        X.append(np.asarray(values, dtype=np.float64))
        about.append(pd.DataFrame({
            "section": section.name, "study": str(section.study), "patient": str(section.patient),
            "specimen": str(getattr(section, "specimen", section.name)),
            "label": _labels(labels, section.name, adata, names)}, index=names))
    if not X:
        raise InputError("site", "features", "are of none of the sections",
                         "give features of the cohort's sections")
    return Rows(np.concatenate(X), pd.concat(about))


def _labels(labels, section: str, adata, names: np.ndarray) -> np.ndarray:
    """Label of each spot as text, None where it has none."""
    if isinstance(labels, str):
        series = adata.obs[labels] if labels in adata.obs else None
    else:
        series = None if labels is None else labels.get(section)
    return spots.classes(section, names, series)
