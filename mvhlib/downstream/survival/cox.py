"""Cox regression with a ridge penalty on the slide's embedding, chosen on inner folds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from mvhlib import standardise
from mvhlib.artifacts import InputError, TooFew
from mvhlib.cohort.clinical import grouped_folds

#: Ridge penalties that are tried, per patient and unit of the largest principal component.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

SEPARATES = ("look for columns that repeat each other or separate events from the rest, use fewer "
             "columns or fewer folds")


@dataclass
class _Design:
    """Columns of a Cox model, standardised and rotated on the training patients."""

    covariates: tuple[np.ndarray, np.ndarray] | None = None
    components: Any = None
    deviation: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def fit(cls, covariates: np.ndarray | None, image: np.ndarray | None,
            n_components: int) -> "_Design":
        from sklearn.decomposition import PCA

        design = cls()
        if covariates is not None:
            scale = standardise.fit(covariates)
            if not scale.varies.all():
                raise TooFew("cox", "covariates", f"column {int(scale.varies.argmin())} does "
                             "not vary among the training patients", "leave it out")
            design.covariates = scale.mean, scale.spread
        if image is not None:
            largest = min(n_components, len(image) - 1, image.shape[1])
            fitted = PCA(largest, svd_solver="full").fit(image)
            deviation = np.sqrt(fitted.explained_variance_)
            # a component a hundred times smaller would be shrunk to nothing, and stall Newton
            keep = deviation > 0.01 * deviation[0]
            if deviation[0] < 1e-12:
                raise TooFew("cox", "image", "does not vary among the training patients",
                                 "check the embedding: it is the same for all patients")
            design.components = fitted.mean_, fitted.components_[keep]
            design.deviation = deviation[keep]
        return design

    def apply(self, covariates: np.ndarray | None, image: np.ndarray | None) -> np.ndarray:
        parts = []
        if self.covariates is not None:
            parts.append((covariates - self.covariates[0]) / self.covariates[1])
        if self.components is not None:
            parts.append((image - self.components[0]) @ self.components[1].T / self.deviation)
        return np.concatenate(parts, axis=1)  # (n, p + q)

    def ridge(self, penalty: float) -> np.ndarray:
        """Penalty of each column's squared coefficient, per patient: none for clinical columns.

        Columns have variance one; a plain ridge on the components shrinks a small one more than a
        large one, which is a penalty by the inverse of its variance here.
        """
        n_plain = 0 if self.covariates is None else len(self.covariates[0])
        own = penalty * (self.deviation.max(initial=0.0) / self.deviation) ** 2
        return np.concatenate([np.zeros(n_plain), own])


class RidgeCox(BaseEstimator):
    """Cox regression (by lifelines) with principal components and a nested choice of penalty.

    The penalty maximises the cross-validated partial likelihood over inner folds that keep groups
    together: what the left-out patients add to the log-likelihood of all at the coefficients of the
    rest (Verweij and van Houwelingen, Statistics in Medicine 1993). It is steadier than a C-index
    of a few events. Components are fitted again in every inner fold.

    Parameters
    ----------
    n_components
        Most principal components of the embedding; they are not whitened.
    penalties
        Tried for the embedding. Clinical columns have none.
    n_inner
        Inner folds.
    seed
        Draws the inner folds.

    Attributes
    ----------
    penalty_
        The chosen one; NaN without an embedding.
    path_
        penalty, likelihood: cross-validated, per event, compared with no embedding at all only
        through the largest penalty.
    fitter_
        lifelines' ``CoxPHFitter`` on standardised columns.
    """

    def __init__(self, n_components: int = 20, penalties: Sequence[float] = PENALTIES,
                 n_inner: int = 4, seed: int = 0):
        self.n_components, self.penalties = n_components, penalties
        self.n_inner, self.seed = n_inner, seed

    def fit(self, time: np.ndarray, event: np.ndarray, *, covariates: np.ndarray | None = None,
            image: np.ndarray | None = None, groups: np.ndarray | None = None) -> "RidgeCox":
        """Fit on training patients.

        Parameters
        ----------
        covariates
            `(n, p)`, no penalty.
        image
            `(n, E)`, an embedding.
        groups
            What inner folds keep together, `(n,)`; every patient by itself where None.

        Raises
        ------
        InputError
            Without columns, with values that are not finite, or where no model converges.
        """
        time, event = np.asarray(time, float), np.asarray(event, int)
        covariates, image = (values if values is None else np.asarray(values, float)
                             for values in (covariates, image))
        if covariates is None and image is None:
            raise InputError("cox", "columns", "are none", "give covariates, an image or both")
        for name, values in (("covariates", covariates), ("image", image)):
            if values is not None and not np.isfinite(values).all():
                raise InputError("cox", name, "are not finite", "drop patients who lack a value")
        self.penalty_, self.path_ = float("nan"), pd.DataFrame()
        if image is not None:
            self.path_ = self._inner(time, event, covariates, image, groups)
            best = int(self.path_["likelihood"].argmax())
            self.penalty_ = float(self.path_["penalty"].iloc[best])
        self.design_ = _Design.fit(covariates, image, self.n_components)
        self.fitter_ = _fit_cox(self.design_.apply(covariates, image), time, event,
                                self.design_.ridge(self.penalty_))
        return self

    def risk(self, covariates: np.ndarray | None = None,
             image: np.ndarray | None = None) -> np.ndarray:
        """Log hazard relative to the mean of the training patients, `(n,)`."""
        frame = _named(self.design_.apply(covariates, image))
        return self.fitter_.predict_log_partial_hazard(frame).to_numpy()

    def survival(self, times: np.ndarray, covariates: np.ndarray | None = None,
                 image: np.ndarray | None = None) -> np.ndarray:
        """Probability of living beyond each of `times`, `(n, m)`; Breslow's baseline."""
        frame = _named(self.design_.apply(covariates, image))
        return self.fitter_.predict_survival_function(frame, times=np.asarray(times)).to_numpy().T

    def _inner(self, time, event, covariates, image, groups) -> pd.DataFrame:
        groups = np.arange(len(time)) if groups is None else np.asarray(groups)
        fold = grouped_folds(event, groups, self.n_inner, self.seed)
        order = np.argsort(self.penalties)[::-1]
        total = np.zeros(len(self.penalties))
        for held in range(fold.max() + 1):
            rest = fold != held
            own = [values if values is None else values[rest] for values in (covariates, image)]
            design = _Design.fit(*own, self.n_components)
            columns = design.apply(covariates, image)
            everyone = PartialLikelihood(columns, time, event)
            others = PartialLikelihood(columns[rest], time[rest], event[rest])
            beta = np.zeros(columns.shape[1])
            for index in order:  # from the strongest penalty on, each from the last one's end
                beta = others.maximise(design.ridge(self.penalties[index]) * rest.sum(), beta)
                total[index] += everyone.at(beta)[0] - others.at(beta)[0]
        return pd.DataFrame({"penalty": self.penalties, "likelihood": total / event.sum()})


def _named(columns: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(columns, columns=[f"x{index}" for index in range(columns.shape[1])])


def _fit_cox(columns: np.ndarray, time: np.ndarray, event: np.ndarray, ridge: np.ndarray):
    """lifelines' Cox model of columns of variance one, which it standardises once more."""
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError, ConvergenceWarning

    frame = _named(columns).assign(time=time, event=event)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            return CoxPHFitter(penalizer=ridge).fit(frame, "time", "event")
    except (ConvergenceError, ConvergenceWarning) as error:
        raise TooFew("cox", "columns", f"do not converge: {str(error).splitlines()[0]}",
                         SEPARATES) from error


class PartialLikelihood:
    """Cox's log partial likelihood with Efron's correction for ties, and its ridge maximum.

    The same as lifelines' (a test says so), in a thirtieth of the time: choosing a penalty takes
    many small fits, and lifelines spends most of each on its report.

    Parameters
    ----------
    X
        `(n, p)`.
    time, event
        `(n,)`.
    """

    def __init__(self, X: np.ndarray, time: np.ndarray, event: np.ndarray):
        order = np.argsort(-np.asarray(time, float), kind="stable")  # latest first
        self.X, time = np.asarray(X, float)[order], np.asarray(time, float)[order]
        self.dies = np.flatnonzero(np.asarray(event)[order] == 1)
        # of every death: the last row of its risk set, the group of its time, its rank in it
        self.last = np.searchsorted(-time, -time[self.dies], side="right") - 1
        _, self.group, size = np.unique(time[self.dies], return_inverse=True, return_counts=True)
        by_group = np.argsort(self.group, kind="stable")
        rank = np.empty(len(self.dies), dtype=np.int64)
        rank[by_group] = np.arange(len(by_group)) - np.repeat(np.cumsum(size) - size, size)
        self.part = rank / size[self.group]  # Efron: share of tied deaths removed already
        self.n_groups = len(size)

    def at(self, beta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Value, gradient `(p,)` and negative Hessian `(p, p)` at `beta`."""
        X, dies, group = self.X, self.dies, self.group
        eta = X @ beta
        shift = eta.max(initial=0.0)
        w = np.exp(eta - shift)
        wX = w[:, None] * X
        tied0 = np.bincount(group, w[dies], minlength=self.n_groups)
        tied1 = np.zeros((self.n_groups, X.shape[1]))
        np.add.at(tied1, group, wX[dies])
        zero = np.cumsum(w)[self.last] - self.part * tied0[group]  # (deaths,)
        one = np.cumsum(wX, axis=0)[self.last] - self.part[:, None] * tied1[group]
        mean = one / zero[:, None]
        # weight of a row's x x^T: one over every risk set that holds it, less Efron's parts
        enters = np.bincount(self.last, 1 / zero, minlength=len(X))
        share = np.cumsum(enters[::-1])[::-1].copy()
        share[dies] -= np.bincount(group, self.part / zero, minlength=self.n_groups)[group]
        value = float((eta[dies] - np.log(zero) - shift).sum())
        return (value, X[dies].sum(axis=0) - mean.sum(axis=0),
                (wX * share[:, None]).T @ X - mean.T @ mean)

    def maximise(self, ridge: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Coefficients that maximise the likelihood less ``(ridge * beta ** 2).sum() / 2``.

        Raises
        ------
        InputError
            If Newton's steps do not settle, as where a column separates events from the rest.
        """
        def objective(beta):
            value, gradient, hessian = self.at(beta)
            return (value - 0.5 * (ridge * beta**2).sum(), gradient - ridge * beta,
                    hessian + np.diag(ridge))

        beta = np.array(start, float)
        value, gradient, hessian = objective(beta)
        for _ in range(60):
            try:
                step = np.linalg.solve(hessian, gradient)
            except np.linalg.LinAlgError:
                break
            if gradient @ step < 1e-9:
                return beta
            for halving in range(30):
                trial = objective(beta + step / 2**halving)
                if trial[0] >= value:
                    break
            beta = beta + step / 2**halving
            value, gradient, hessian = trial
        raise TooFew("cox", "columns", "do not converge", SEPARATES)
