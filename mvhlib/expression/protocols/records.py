"""Records of an evaluation: samples, estimators, predictions, columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError

SCORE_COLUMNS = ("protocol", "fold", "study", "patient", "section", "method", "encoder",
                 "encoder_saw_test_images", "control", "panel", "program", "gene", "n_spots",
                 "pcc", "mae", "mse", "ceiling")
POOLED_COLUMNS = ("protocol", "scope", "fold", "method", "encoder", "encoder_saw_test_images",
                  "control", "panel", "program", "gene", "n_sections", "n_spots", "pcc_pooled",
                  "pcc_floor")
PENALTY_COLUMNS = ("protocol", "fold", "method", "encoder", "control", "panel", "alpha",
                   "at_edge", "inner_unit", "n_inner", "criterion", "best")

CONTROLS = ("none", "permuted")
METHODS = ("ridge", "hest_ridge")

#: What inner folds leave out together: the thing that the outer folds leave out.
INNER_UNITS = {"loso": "study", "patient": "patient", "section": "section",
               "random10_section": "patient", "random10_spot": "spots", "hest_bench": "patient",
               "mvhybrid_bench": "patient", "transfer": "patient", "within": "patient"}


@dataclass(frozen=True)
class Sample:
    """One section as an estimator sees it.

    Attributes
    ----------
    X
        `(T, ...)` features, tokens or tiles of its spots.
    Y
        `(T, G)` normalised expression of the fold's genes. `Estimator.predict` must not read it.
    coords
        `(T, 2)` spot centres [px], or None.
    """

    name: str
    study: str
    patient: str
    X: np.ndarray
    Y: np.ndarray
    coords: np.ndarray | None


class Estimator(Protocol):
    """A method that sees whole sections, such as `mvhlib.expression.mmap.MMAP`.

    Attributes
    ----------
    name
        Stands in the column ``method``.
    """

    name: str

    def fit(self, samples: Sequence[Sample], genes: Sequence[str], fold: str,
            seed: int) -> dict | None:
        """Learn from the training sections of a fold, afresh; anything returned is a remark."""

    def predict(self, sample: Sample) -> np.ndarray:
        """Predict the genes of the last fit, `(T, G)`."""


@dataclass(frozen=True)
class Prediction:
    """Truth and prediction of one section, ready for layers of an AnnData.

    Attributes
    ----------
    measured, predicted
        `(T, G)` float32; NaN in `predicted` for spots that no fold tested.
    genes
        Names of the columns.
    barcodes
        Names of the rows.
    coords
        `(T, 2)` spot centres, or None where the section has none.
    fold
        The fold that tested it; several are joined by a comma (spot-level folds).
    unit
        What the values are.
    drawn
        The section's entry of ``uns["spatial"]`` with a small thumbnail, or None.
    """

    measured: np.ndarray
    predicted: np.ndarray
    genes: list[str]
    barcodes: list[str]
    coords: np.ndarray | None
    fold: str
    unit: str = ""
    drawn: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_adata(self, **about: str):
        """Return an AnnData that scanpy and squidpy can draw.

        X and the layer ``predicted`` are the prediction, the layer ``measured`` the truth;
        ``obsm["spatial"]`` and ``uns["spatial"]`` say where, and ``uns["mvh"]`` holds the unit of
        both and what is given as `about`, such as the model's name.
        """
        import anndata

        obs, var = (pd.DataFrame(index=pd.Index(names, dtype=str))
                    for names in (self.barcodes, self.genes))
        adata = anndata.AnnData(X=self.predicted, obs=obs, var=var)
        adata.layers["measured"] = self.measured
        adata.layers["predicted"] = self.predicted
        if self.coords is not None:
            adata.obsm["spatial"] = np.asarray(self.coords, dtype=np.float64)
        adata.uns["fold"] = self.fold
        adata.uns["mvh"] = {"unit": self.unit, **about}
        if self.drawn:
            adata.uns["spatial"] = dict(self.drawn)
        return adata


def method_name(method: "str | Estimator") -> str:
    """Return the entry of the column ``method``."""
    return method if isinstance(method, str) else method.name


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError("protocol", name, f"{value!r} is not known", f"use one of {list(known)}")
