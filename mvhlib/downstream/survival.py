"""Survival by Cox regression: fitted on training folds, scored inside test folds, never pooled.

A model is a set of clinical columns, an embedding of the slide, or both (`Model`). The embedding's
prototypes, its principal components and the ridge penalty are chosen on the training patients of
each fold; clinical columns carry no penalty. Risks of two folds come from two models and are on two
scales, so every score is computed inside a fold and averaged (`evaluate`); what has to look at all
patients at once (Kaplan-Meier of risk groups, likelihood ratios) is stratified by fold.

Two kinds of interval, and each table says which it holds:
    * over folds, Student's t on one number per fold (`summarise`, `differences`). It carries the
      differences between sites. Folds share training patients, so that it is too narrow (Bengio
      and Grandvalet, JMLR 2004), most where there is nothing to learn (see `permuted_scores`).
    * over patients, a bootstrap within each test fold at fixed models (`patient_interval`).

Scores: Harrell's C (JAMA 1982); Uno's C (Statistics in Medicine 2011), which weighs pairs by the
inverse of the censoring distribution squared and so does not depend on it; the Brier score with
inverse censoring weights, integrated over time (Graf et al., Statistics in Medicine 1999). The
censoring distribution is that of the training patients.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import BaseEstimator, clone

from mvhlib import statistics
from mvhlib.artifacts import InputError
from mvhlib.cohort.clinical import check_folds, check_outcomes, grouped_folds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Ridge penalties that are tried, per patient and unit of the largest principal component.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

#: Scores of a fold.
METRICS = ("harrell_c", "uno_c", "ibs", "ibs_kaplan_meier", "observed_expected")

SEPARATES = ("look for columns that repeat each other or separate events from the rest, use fewer "
             "columns or fewer folds")

#: Columns of the summary that the contract names.
SUMMARY = ("dataset", "endpoint", "model", "encoder", "fold_scheme", "metric", "n_patients",
           "n_events", "mean", "ci_low", "ci_high")


# --------------------------------------------------------------------------------------------
# scores of one set of patients


def _pairs(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """`(n, n)` bool: row's event was seen, and column was known to live longer.

    A patient censored at the very time of another's event is taken to have outlived it.
    """
    longer = (time[:, None] < time) | ((time[:, None] == time) & (event == 0))
    return longer & (event[:, None] == 1)


def _order(risk: np.ndarray) -> np.ndarray:
    """`(n, n)`: 1 where the row has the higher risk, 0.5 where both are equal."""
    return (risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)


def harrell_c(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Share of comparable pairs whose earlier event has the higher risk; ties count half.

    NaN where no pair is comparable. It depends on how patients were censored; see `uno_c`.
    """
    time, event, risk = (np.asarray(values, float) for values in (time, event, risk))
    pairs = _pairs(time, event)
    return float((pairs * _order(risk)).sum() / pairs.sum()) if pairs.any() else float("nan")


@dataclass
class Censoring:
    """Kaplan-Meier estimate of the time to censoring; events leave before censorings of a time.

    Attributes
    ----------
    times, survival
        Where it steps, and its value from there on.
    """

    times: np.ndarray
    survival: np.ndarray

    @classmethod
    def fit(cls, time: np.ndarray, event: np.ndarray) -> "Censoring":
        time, event = np.asarray(time, float), np.asarray(event, int)
        times, code = np.unique(time, return_inverse=True)
        events = np.bincount(code, event)
        censored = np.bincount(code, 1 - event)
        at_risk = len(time) - np.cumsum(np.r_[0, (events + censored)[:-1]]) - events
        step = np.where(at_risk > 0, 1 - censored / np.maximum(at_risk, 1), 1.0)
        return cls(times, np.cumprod(step))

    def at(self, time: np.ndarray) -> np.ndarray:
        """Probability of being censored later than `time`."""
        return np.r_[1.0, self.survival][np.searchsorted(self.times, time, side="right")]

    def before(self, time: np.ndarray) -> np.ndarray:
        """Probability of being censored at `time` or later."""
        return np.r_[1.0, self.survival][np.searchsorted(self.times, time, side="left")]


def uno_c(time: np.ndarray, event: np.ndarray, risk: np.ndarray, censoring: Censoring,
          tau: float = np.inf) -> float:
    """Uno's C: Harrell's, each pair weighed by the inverse square of the censoring survival.

    Parameters
    ----------
    censoring
        Of the training patients.
    tau
        Events from here on start no pair [the unit of `time`].

    Returns
    -------
    float
        NaN where no pair is comparable before `tau`.

    Raises
    ------
    InputError
        If no training patient was followed as long as an event that counts.
    """
    time, event, risk = (np.asarray(values, float) for values in (time, event, risk))
    counts = (event == 1) & (time < tau)
    remain = censoring.before(time)
    if (remain[counts] <= 0).any():
        raise InputError("survival", "tau", f"{tau:g} lies beyond the follow-up of the training "
                         "patients", "use a shorter horizon")
    weight = np.where(counts, 1.0 / np.maximum(remain, 1e-300) ** 2, 0.0)
    pairs = _pairs(time, event) * weight[:, None]
    total = pairs.sum()
    return float((pairs * _order(risk)).sum() / total) if total > 0 else float("nan")


def brier_scores(time: np.ndarray, event: np.ndarray, survival: np.ndarray, times: np.ndarray,
                 censoring: Censoring) -> np.ndarray:
    """Brier score at each of `times`, `(m,)`, with inverse censoring weights (Graf et al. 1999).

    Parameters
    ----------
    survival
        Predicted probability of living beyond each of `times`, `(n, m)`.
    times
        Increasing; the last must lie within the follow-up of the training patients.

    Raises
    ------
    InputError
        If nobody of the training patients was followed that long.
    """
    time, event = np.asarray(time, float), np.asarray(event, float)
    times, survival = np.asarray(times, float), np.asarray(survival, float)
    remain = censoring.at(times)  # (m,)
    if remain[-1] <= 0:
        raise InputError("survival", "horizon", f"{times[-1]:g} lies beyond the follow-up of the "
                         "training patients", "use a shorter horizon")
    died = (time[:, None] <= times) & (event[:, None] == 1)  # (n, m)
    lives = time[:, None] > times
    before = np.maximum(censoring.before(time), 1e-300)[:, None]
    return (died * survival**2 / before + lives * (1 - survival) ** 2 / remain).mean(axis=0)


def integrated_brier(time: np.ndarray, event: np.ndarray, survival: np.ndarray, times: np.ndarray,
                     censoring: Censoring) -> float:
    """Mean of `brier_scores` over the span of `times`, by the trapezoid rule."""
    times = np.asarray(times, float)
    scores = brier_scores(time, event, survival, times, censoring)
    return float(np.trapezoid(scores, times) / (times[-1] - times[0]))


def kaplan_meier_at(time: np.ndarray, event: np.ndarray, times: Any) -> np.ndarray:
    """Kaplan-Meier estimate of survival at `times`; NaN beyond a last time that was censored."""
    from lifelines import KaplanMeierFitter

    time = np.asarray(time, float)
    times = np.atleast_1d(np.asarray(times, float))
    values = KaplanMeierFitter().fit(time, event).survival_function_at_times(times).to_numpy()
    unknown = (times > time.max()) & (values > 0)
    return np.where(unknown, np.nan, values)


# --------------------------------------------------------------------------------------------
# the model


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
            spread = covariates.std(axis=0)
            if (spread < 1e-9).any():
                raise InputError("cox", "covariates", f"column {int(spread.argmin())} does not "
                                 "vary among the training patients", "leave it out")
            design.covariates = covariates.mean(axis=0), spread
        if image is not None:
            largest = min(n_components, len(image) - 1, image.shape[1])
            fitted = PCA(largest, svd_solver="full").fit(image)
            deviation = np.sqrt(fitted.explained_variance_)
            # a component a hundred times smaller would be shrunk to nothing, and stall Newton
            keep = deviation > 0.01 * deviation[0]
            if deviation[0] < 1e-12:
                raise InputError("cox", "image", "does not vary among the training patients",
                                 "look at the embedding")
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
    """Cox regression (by lifelines) with principal components and a penalty chosen inside.

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
            for index in order:  # from the strongest on, each starts where the last one ended
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
        raise InputError("cox", "columns", f"do not converge: {str(error).splitlines()[0]}",
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
        self.part = rank / size[self.group]  # Efron: so much of the tied deaths has left already
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
        raise InputError("cox", "columns", "do not converge", SEPARATES)


# --------------------------------------------------------------------------------------------
# folds


@dataclass(frozen=True)
class Model:
    """What goes into a Cox model.

    Attributes
    ----------
    name
        As in tables.
    covariates
        Columns of the clinical table.
    embedding
        An estimator of `mvhlib.downstream.mixture`, fitted on the training bags of each fold.
    encoder
        Whose features; ``none`` without an embedding.
    """

    name: str
    covariates: tuple[str, ...] = ()
    embedding: Any = None
    encoder: str = "none"


@dataclass
class Evaluation:
    """What models reached.

    Attributes
    ----------
    scores
        Tidy: fold, model, encoder, metric (one of `METRICS`), value, n_patients, n_events.
    risks
        One row per model and tested patient: fold, model, encoder, patient, time_months, event,
        risk (log hazard on the scale of the fold's model, not comparable between folds),
        high_risk (above the median of the training patients), third (of the training risks, 0 to
        2), event_probability (by the horizon).
    penalties
        fold, model, encoder, penalty.
    """

    scores: pd.DataFrame
    risks: pd.DataFrame
    penalties: pd.DataFrame


def evaluate(table: pd.DataFrame, folds: pd.DataFrame, models: Sequence[Model],
             bags: Mapping[str, Mapping[str, np.ndarray]] | None = None, *, horizon: float,
             group: str | None = "site", cox: RidgeCox | None = None, n_times: int = 60,
             cache: dict | None = None) -> Evaluation:
    """Fit every model on the training side of every fold and score it on the test side.

    Parameters
    ----------
    table
        patient, time_months, event, and the covariates, none of them missing.
    folds
        fold, patient, role; see `mvhlib.cohort.clinical.site_folds`.
    models
        Compared on the same patients.
    bags
        Encoder -> patient -> `(T, D)`.
    horizon
        Scores that depend on time end here [months].
    group
        Column whose values stay together, in the given folds and in the inner ones; None: patients.
    cox
        Settings of the Cox model.
    n_times
        Points of the integrated Brier score.
    cache
        A dict that several calls with the same `bags` may share (endpoints, permutations): an
        embedding knows no outcome, so that it is fitted once per set of training patients.

    Raises
    ------
    InputError
        If folds leak, a covariate is missing for a patient, or a patient has no bag.
    """
    check_outcomes("survival", table)
    check_folds(folds, table, group)
    cox = RidgeCox() if cox is None else cox
    names = [(model.name, model.encoder) for model in models]
    if len(set(names)) < len(names):
        raise InputError("survival", "models", f"{names} stand more than once", "name them apart")
    _check_models(table, models, bags or {})
    who = table.set_index("patient")
    times = np.linspace(horizon / n_times, horizon, n_times)
    embedded = {} if cache is None else cache
    scores, risks, penalties = [], [], []
    for fold, rows in folds.groupby("fold", sort=False):
        train, test = (list(rows.loc[rows["role"] == role, "patient"])
                       for role in ("train", "test"))
        for model in models:
            sides = [{}, {}]
            if model.covariates:
                for side, patients in zip(sides, (train, test), strict=True):
                    side["covariates"] = who.loc[patients, list(model.covariates)].to_numpy(float)
            if model.embedding is not None:
                key = (model.encoder, repr(model.embedding), tuple(train), tuple(test))
                if key not in embedded:
                    own = [[bags[model.encoder][name] for name in patients]
                           for patients in (train, test)]
                    fitted = clone(model.embedding).fit(own[0])
                    embedded[key] = fitted.transform(own[0]), fitted.transform(own[1])
                for side, values in zip(sides, embedded[key], strict=True):
                    side["image"] = values
            fitted = clone(cox).fit(
                who.loc[train, "time_months"], who.loc[train, "event"],
                groups=None if group is None else who.loc[train, group].astype(str), **sides[0])
            about = {"fold": fold, "model": model.name, "encoder": model.encoder}
            scores += [about | row for row in _score(fitted, who.loc[train], who.loc[test],
                                                     sides[1], times)]
            risks.append(_risks(fitted, sides, who.loc[test], horizon).assign(**about))
            penalties.append(about | {"penalty": fitted.penalty_})
    first = ["fold", "model", "encoder"]
    risk = pd.concat(risks, ignore_index=True)
    return Evaluation(pd.DataFrame(scores), risk[first + [c for c in risk if c not in first]],
                      pd.DataFrame(penalties))


def _check_models(table: pd.DataFrame, models: Sequence[Model], bags) -> None:
    for model in models:
        missing = [name for name in model.covariates if name not in table]
        if missing:
            raise InputError("survival", "covariates", f"{missing} of model {model.name} are not "
                             "in the table", f"use some of {list(table.columns)}")
        lacking = table[list(model.covariates)].isna().any(axis=1)
        if lacking.any():
            raise InputError("survival", "covariates", f"{int(lacking.sum())} patients lack one of "
                             f"{list(model.covariates)}", "leave them out (Clinical.complete)")
        if model.embedding is None:
            continue
        if model.encoder not in bags:
            raise InputError("survival", "bags", f"lack the encoder {model.encoder!r}",
                             f"give its features; there are {sorted(bags)}")
        absent = sorted(set(table["patient"]) - set(bags[model.encoder]))
        if absent:
            raise InputError("survival", "bags", f"lack {absent[:3]} for {model.encoder}",
                             "leave out patients without a slide")


def _score(fitted: RidgeCox, train: pd.DataFrame, test: pd.DataFrame, columns: dict,
           times: np.ndarray) -> list[dict]:
    time, event = test["time_months"].to_numpy(float), test["event"].to_numpy(int)
    censoring = Censoring.fit(train["time_months"], train["event"])
    risk = fitted.risk(**columns)
    survival = fitted.survival(times, **columns)
    # the reference that knows no patient: the training patients' Kaplan-Meier curve
    curve = kaplan_meier_at(train["time_months"], train["event"], times)
    everyone = np.broadcast_to(curve, survival.shape)
    at_own = fitted.survival(np.unique(time), **columns)
    own = at_own[np.arange(len(time)), np.searchsorted(np.unique(time), time)]
    expected = -np.log(np.maximum(own, 1e-300)).sum()
    values = {
        "harrell_c": harrell_c(time, event, risk),
        "uno_c": uno_c(time, event, risk, censoring, times[-1]),
        "ibs": integrated_brier(time, event, survival, times, censoring),
        "ibs_kaplan_meier": integrated_brier(time, event, everyone, times, censoring),
        "observed_expected": float(event.sum() / max(expected, 1e-300))}
    return [{"metric": name, "value": value, "n_patients": len(time), "n_events": int(event.sum())}
            for name, value in values.items()]


def _risks(fitted: RidgeCox, sides: list[dict], test: pd.DataFrame, horizon: float
           ) -> pd.DataFrame:
    """Risks of the tested patients, and their groups by cuts on the training risks."""
    cuts = np.quantile(fitted.risk(**sides[0]), [1 / 3, 1 / 2, 2 / 3])
    risk = fitted.risk(**sides[1])
    return pd.DataFrame({
        "patient": test.index, "time_months": test["time_months"].to_numpy(float),
        "event": test["event"].to_numpy(int), "risk": risk, "high_risk": risk > cuts[1],
        "third": np.searchsorted(cuts[[0, 2]], risk, side="left"),
        "event_probability": 1 - fitted.survival([horizon], **sides[1])[:, 0]})


def permute_outcomes(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The table with time and event, together, dealt out anew: nothing is left to learn."""
    order = np.random.default_rng(seed).permutation(len(table))
    outcome = ["time_months", "event"]
    return table.assign(**{name: table[name].to_numpy()[order] for name in outcome})


def permuted_scores(table: pd.DataFrame, folds: pd.DataFrame, models: Sequence[Model],
                    bags: Mapping[str, Mapping[str, np.ndarray]] | None = None, *,
                    n_permutations: int, seed: int, **options) -> pd.DataFrame:
    """Scores of `evaluate` under permuted outcomes, a control for leaks.

    Parameters
    ----------
    n_permutations
        Each with folds, prototypes and penalties as before.
    **options
        Of `evaluate`.

    Returns
    -------
    pd.DataFrame
        As `Evaluation.scores`, models named ``<model>.permuted``, with a column permutation.

    Notes
    -----
    The unit of an interval is the permutation. Without signal, folds share more than patients: what
    fold a learned from b is what b learned from a, so that an interval over folds is too narrow.
    """
    seeds = np.random.SeedSequence([seed, len(table)]).generate_state(n_permutations)
    drawn = [evaluate(permute_outcomes(table, int(each)), folds, models, bags, **options)
             .scores.assign(permutation=number) for number, each in enumerate(seeds)]
    scores = pd.concat(drawn, ignore_index=True)
    return scores.assign(model=scores["model"] + ".permuted")


# --------------------------------------------------------------------------------------------
# tables


def summarise(scores: pd.DataFrame, *, dataset: str, endpoint: str, fold_scheme: str,
              confidence: float = 0.95) -> pd.DataFrame:
    """Mean of each score over folds with Student's t interval; columns `SUMMARY`.

    Where `scores` has a column permutation, the interval is over permutations of the mean over
    folds.
    """
    rows = []
    for (model, encoder, metric), part in scores.groupby(["model", "encoder", "metric"],
                                                         sort=False):
        n = part[["n_patients", "n_events"]]
        values = part["value"]
        if "permutation" in part:
            n = n[part["permutation"] == part["permutation"].iloc[0]]
            values = part.groupby("permutation")["value"].mean()
        found = statistics.t_interval(values, confidence)
        rows.append((dataset, endpoint, model, encoder, fold_scheme, metric, *map(int, n.sum()),
                     found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def differences(result: Evaluation,
                pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]],
                metric: str = "harrell_c") -> pd.DataFrame:
    """Score of one model less that of another, paired within folds.

    Parameters
    ----------
    pairs
        ``((model, encoder), (model, encoder))``, the second subtracted from the first.

    Returns
    -------
    pd.DataFrame
        ``model, encoder, than, than_encoder, metric, n_folds, difference, ci_low, ci_high``
        (Student's t over folds), ``p_added`` (see `added_value`), ``p_added_holm`` over the pairs.

    Raises
    ------
    InputError
        If a model has no scores.
    """
    wide = result.scores[result.scores["metric"] == metric].pivot(
        index="fold", columns=["model", "encoder"], values="value")
    rows = []
    for first, second in pairs:
        for name in (first, second):
            if name not in wide:
                raise InputError("survival", "model", f"{name} has no scores",
                                 f"use some of {list(wide.columns)}")
        gap = statistics.t_interval(wide[first] - wide[second])
        rows.append((*first, *second, metric, gap.n, gap.mean, gap.low, gap.high,
                     added_value(result.risks, first, second)["p"]))
    found = pd.DataFrame(rows, columns=["model", "encoder", "than", "than_encoder", "metric",
                                        "n_folds", "difference", "ci_low", "ci_high", "p_added"])
    return found.assign(p_added_holm=statistics.holm(found["p_added"]))


def patient_interval(risks: pd.DataFrame, *, seed: int, n_boot: int = 999,
                     confidence: float = 0.95) -> statistics.Interval:
    """Mean over folds of Harrell's C of one model, with a bootstrap over patients.

    Patients are drawn with replacement within each test fold, the models stay as they are: the
    interval speaks of other patients of these sites, not of other sites or training sets.

    Parameters
    ----------
    risks
        Rows of one model: fold, time_months, event, risk. Without a column ``fold`` all rows are
        one set, as for a risk that nothing was fitted for.
    """
    rng = np.random.default_rng(seed)
    folds = ([part for _, part in risks.groupby("fold", sort=False)] if "fold" in risks
             else [risks])
    means, draws = [], []
    for part in folds:
        time, event, risk = (part[name].to_numpy(float)
                             for name in ("time_months", "event", "risk"))
        pairs = _pairs(time, event)
        good = pairs * _order(risk)
        weight = rng.multinomial(len(part), np.full(len(part), 1 / len(part)),
                                 size=n_boot).astype(float)
        with np.errstate(invalid="ignore"):
            draws.append(((weight @ good) * weight).sum(1) / ((weight @ pairs) * weight).sum(1))
        means.append(good.sum() / pairs.sum())
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.nanmean(draws, axis=0), [tail, 1 - tail])
    return statistics.Interval(float(np.mean(means)), float(low), float(high), len(risks),
                               "bootstrap over patients within folds")


def select(risks: pd.DataFrame, model: str, encoder: str = "none") -> pd.DataFrame:
    """Rows of one model.

    Raises
    ------
    InputError
        If there are none.
    """
    part = risks[(risks["model"] == model) & (risks["encoder"] == encoder)]
    if len(part) == 0:
        known = sorted(set(zip(risks["model"], risks["encoder"], strict=True)))
        raise InputError("survival", "model", f"{(model, encoder)} has no risks",
                         f"use one of {known}")
    return part.reset_index(drop=True)


def likelihood_ratio(frame: pd.DataFrame, small: Sequence[str], large: Sequence[str],
                     strata: str | None = None) -> dict[str, float]:
    """Likelihood-ratio test of nested Cox models without penalty.

    Parameters
    ----------
    frame
        time_months, event, the columns of both models.
    small, large
        Columns; `small` may be empty and must lie in `large`.
    strata
        Column that gets a baseline hazard of its own per value; the fold, where columns are risks.

    Returns
    -------
    dict
        chi2, df, p.

    Notes
    -----
    For clinical columns on one table this is the textbook test. For risks of tested patients (see
    `added_value`) the p is approximate: their models share training patients.
    """
    if not set(small) < set(large):
        raise InputError("likelihood ratio", "columns", f"{list(small)} are not nested in "
                         f"{list(large)}", "give a model and a larger one that holds it")
    big = _plain_cox(frame, large, strata)
    if len(small):
        low = _plain_cox(frame, small, strata).log_likelihood_
    else:
        low = big._ll_null_
    chi2 = float(2 * (big.log_likelihood_ - low))
    df = len(large) - len(small)
    return {"chi2": chi2, "df": df, "p": float(stats.chi2.sf(max(chi2, 0.0), df))}


def added_value(risks: pd.DataFrame, model: tuple[str, str], than: tuple[str, str]
                ) -> dict[str, float]:
    """Whether a model's risk says more about tested patients than another's alone does.

    Among patients who no model was fitted on, both risks enter one Cox model stratified by fold,
    and the larger is tested against the one with `than` alone (one degree of freedom). Unlike a
    test on training patients it does not reward flexibility.
    """
    keys = ["fold", "patient", "time_months", "event"]
    both = select(risks, *than)[[*keys, "risk"]].merge(
        select(risks, *model)[[*keys, "risk"]], on=keys, suffixes=("_than", "_model"))
    return likelihood_ratio(both, ["risk_than"], ["risk_than", "risk_model"], strata="fold")


def hazard_ratios(values: pd.DataFrame, table: pd.DataFrame, *, adjust: Sequence[str] = (),
                  strata: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Hazard ratio per standard deviation of each column, one Cox model per column.

    Parameters
    ----------
    values
        Columns of interest, rows as in `table`.
    table
        time_months, event, and the columns of `adjust` and `strata`.
    adjust
        Covariates that every model holds as well.
    strata
        Column with a baseline hazard of its own per value, for instance the site.

    Returns
    -------
    pd.DataFrame
        ``column, hazard_ratio, ci_low, ci_high, p, p_holm``; Wald. Describes these patients and
        is no prediction.
    """
    rows = []
    for name in values:
        column = values[name].to_numpy(float)
        if column.std() < 1e-12:
            rows.append((name, np.nan, np.nan, np.nan, np.nan))
            continue
        frame = table.assign(**{"value_": (column - column.mean()) / column.std()})
        fitted = _plain_cox(frame, ["value_", *adjust], strata)
        beta, error = fitted.params_["value_"], fitted.standard_errors_["value_"]
        half = stats.norm.ppf(0.5 + confidence / 2) * error
        rows.append((name, *np.exp([beta, beta - half, beta + half]),
                     2 * stats.norm.sf(abs(beta / error))))
    found = pd.DataFrame(rows, columns=["column", "hazard_ratio", "ci_low", "ci_high", "p"])
    known = found["p"].notna()
    found["p_holm"] = np.nan
    found.loc[known, "p_holm"] = statistics.holm(found.loc[known, "p"])
    return found


def proportional_hazards(table: pd.DataFrame, columns: Sequence[str],
                         strata: str | None = None) -> pd.DataFrame:
    """Whether effects stay the same over time: test on scaled Schoenfeld residuals.

    Grambsch and Therneau (Biometrika 1994) with ranked times, by lifelines.

    Returns
    -------
    pd.DataFrame
        ``column, coefficient, chi2, p, p_holm``; a small p speaks against proportional hazards.
    """
    from lifelines.statistics import proportional_hazard_test

    fitted = _plain_cox(table, columns, strata)
    frame = table[["time_months", "event", *columns, *([strata] if strata else [])]]
    found = proportional_hazard_test(fitted, frame, time_transform="rank").summary
    found = found.reindex(list(columns))
    return pd.DataFrame({"column": list(columns),
                         "coefficient": fitted.params_[list(columns)].to_numpy(),
                         "chi2": found["test_statistic"].to_numpy(), "p": found["p"].to_numpy(),
                         "p_holm": statistics.holm(found["p"])})


def _plain_cox(frame: pd.DataFrame, columns: Sequence[str], strata: str | None):
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    chosen = frame[["time_months", "event", *columns, *([strata] if strata else [])]]
    try:
        return CoxPHFitter().fit(chosen, "time_months", "event",
                                 strata=[strata] if strata else None)
    except ConvergenceError as error:
        raise InputError("cox", "columns", f"{list(columns)} do not converge",
                         SEPARATES) from error


def stratified_logrank(time: np.ndarray, event: np.ndarray, high: np.ndarray,
                       strata: np.ndarray | None = None) -> dict[str, float]:
    """Log-rank test of two groups, observed and expected events summed over strata.

    Returns
    -------
    dict
        chi2, df (1), p. Mantel, Cancer Chemotherapy Reports 1966.

    Raises
    ------
    InputError
        If no stratum has patients of both groups at risk at an event.
    """
    time, event, high = np.asarray(time, float), np.asarray(event, int), np.asarray(high, bool)
    strata = np.zeros(len(time)) if strata is None else np.asarray(strata)
    excess = variance = 0.0
    for stratum in pd.unique(strata):
        own = strata == stratum
        t, d, g = time[own], event[own], high[own]
        for moment in np.unique(t[d == 1]):
            at_risk, dies = t >= moment, (t == moment) & (d == 1)
            n, m, deaths = at_risk.sum(), (at_risk & g).sum(), dies.sum()
            excess += (dies & g).sum() - deaths * m / n
            if n > 1:
                variance += deaths * (m / n) * (1 - m / n) * (n - deaths) / (n - 1)
    if variance <= 0:
        raise InputError("log-rank", "groups", "are never at risk together",
                         "look at the cut: one group may be empty")
    chi2 = excess**2 / variance
    return {"chi2": float(chi2), "df": 1, "p": float(stats.chi2.sf(chi2, 1))}


def calibration(risks: pd.DataFrame, horizon: float) -> pd.DataFrame:
    """Predicted against observed probability of an event by the horizon, in thirds of the risk.

    Thirds are cut on the training risks of each fold. Predicted is the mean of the group, observed
    one less the Kaplan-Meier estimate; both are averaged over the folds in which the group's
    follow-up reaches the horizon.

    Parameters
    ----------
    risks
        Rows of one model.

    Returns
    -------
    pd.DataFrame
        ``third, n_folds, n_patients, predicted, observed, ci_low, ci_high``; Student's t over
        folds.
    """
    rows = []
    for third in range(3):
        pairs, n = [], 0
        for _, part in risks[risks["third"] == third].groupby("fold", sort=False):
            seen = 1 - kaplan_meier_at(part["time_months"], part["event"], horizon)[0]
            if np.isfinite(seen):
                pairs.append((part["event_probability"].mean(), seen))
                n += len(part)
        if pairs:
            predicted, observed = np.array(pairs).T
            found = statistics.t_interval(observed)
            rows.append((third, len(pairs), n, predicted.mean(), found.mean, found.low,
                         found.high))
    return pd.DataFrame(rows, columns=["third", "n_folds", "n_patients", "predicted", "observed",
                                       "ci_low", "ci_high"])


def calibration_slope(risks: pd.DataFrame, confidence: float = 0.95) -> statistics.Interval:
    """Coefficient of the predicted log hazard among tested patients, stratified by fold.

    1 is calibrated, less is a model that promises too much difference between patients. Wald
    interval over patients.
    """
    fitted = _plain_cox(risks, ["risk"], "fold")
    beta, error = float(fitted.params_["risk"]), float(fitted.standard_errors_["risk"])
    half = stats.norm.ppf(0.5 + confidence / 2) * error
    return statistics.Interval(beta, beta - half, beta + half, len(risks), "Wald")


# --------------------------------------------------------------------------------------------
# figures


def plot_kaplan_meier(risks: pd.DataFrame, ax: "Axes", *, n_marks: int = 5,
                      colours: tuple[str, str] = ("#0072B2", "#D55E00")) -> "Axes":
    """Draw survival of the low- and the high-risk group, censored patients as ticks.

    Numbers at risk stand below the axis.

    Parameters
    ----------
    risks
        Rows of one model: time_months, event, high_risk.
    n_marks
        Times at which the patients at risk are counted.
    """
    from lifelines import KaplanMeierFitter
    from matplotlib.ticker import MaxNLocator

    last = float(risks["time_months"].max())
    marks = [m for m in MaxNLocator(n_marks).tick_values(0, last) if 0 <= m <= last]
    for row, (is_high, colour) in enumerate(zip((False, True), colours, strict=True)):
        part = risks[risks["high_risk"] == is_high]
        label = "high risk" if is_high else "low risk"
        if len(part) == 0:
            continue
        fitted = KaplanMeierFitter().fit(part["time_months"], part["event"])
        curve = fitted.survival_function_.iloc[:, 0]
        band = fitted.confidence_interval_
        ax.step(curve.index, curve, where="post", color=colour, label=label)
        ax.fill_between(band.index, band.iloc[:, 0], band.iloc[:, 1], step="post", color=colour,
                        alpha=0.15, linewidth=0)
        censored = np.sort(part.loc[part["event"] == 0, "time_months"])
        ax.plot(censored, fitted.survival_function_at_times(censored), "|", color=colour,
                markersize=3, markeredgewidth=0.5)
        for mark in marks:
            ax.text(mark, -0.30 - 0.09 * row, f"{(part['time_months'] >= mark).sum()}",
                    color=colour, ha="center", va="center", fontsize=6.5,
                    transform=ax.get_xaxis_transform())
    ax.text(0, -0.22, "at risk", ha="center", va="center", fontsize=6.5,
            transform=ax.get_xaxis_transform())
    ax.set_xticks(marks)
    ax.set_xlim(0, last)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("months", labelpad=1)
    ax.set_ylabel("survival")
    return ax


def plot_calibration(table: pd.DataFrame, ax: "Axes", *, label: str = "", colour: str = "#D55E00"
                     ) -> "Axes":
    """Draw `calibration`: observed against predicted probability, with the diagonal."""
    error = np.abs([table["observed"] - table["ci_low"], table["ci_high"] - table["observed"]])
    ax.errorbar(table["predicted"], table["observed"], yerr=np.nan_to_num(error), fmt="o-",
                markersize=3.5, capsize=1.5, linewidth=0.9, color=colour, label=label or None)
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.6, zorder=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("predicted probability of an event")
    ax.set_ylabel("observed")
    return ax


def plot_hazard_ratios(table: pd.DataFrame, ax: "Axes", *, colour: str = "#0072B2") -> "Axes":
    """Draw hazard ratios with their intervals on a log axis, one row per entry of ``column``."""
    from matplotlib.ticker import NullLocator

    y = np.arange(len(table))
    error = [table["hazard_ratio"] - table["ci_low"], table["ci_high"] - table["hazard_ratio"]]
    ax.errorbar(table["hazard_ratio"], y, xerr=np.nan_to_num(error), fmt="o", markersize=3,
                capsize=1.5, linewidth=0.9, color=colour)
    ax.axvline(1, color="0.7", linewidth=0.6, zorder=0)
    reach = max(1.5, *np.nan_to_num(1 / table["ci_low"]), *np.nan_to_num(table["ci_high"]))
    ax.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if 1 / reach <= tick <= reach]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.95 / reach, 1.05 * reach)
    ax.set_yticks(y, table["column"])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel("hazard ratio per standard deviation")
    return ax
