"""Fit models on the training side of every fold and score them on the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from mvhlib.artifacts import InputError
from mvhlib.cohort.clinical import check_folds, check_outcomes
from mvhlib.downstream.survival.cox import RidgeCox
from mvhlib.downstream.survival.scores import (
    Censoring,
    harrell_c,
    integrated_brier,
    kaplan_meier_at,
    uno_c,
)

#: Scores of a fold.
METRICS = ("harrell_c", "uno_c", "ibs", "ibs_kaplan_meier", "observed_expected")


@dataclass(frozen=True)
class Model:
    """Inputs of a Cox model.

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
    """Scores and risks of models.

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
        raise InputError("survival", "models", f"{names} stand more than once",
                         "give every model its own name")
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
    """Permute the pairs of time and event over patients, so that nothing is left to learn."""
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
