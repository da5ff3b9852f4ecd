"""Choice of the models and pairs to compare, and the summary over endpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mvhlib.cohort.clinical import Clinical
from mvhlib.downstream.survival.evaluation import Evaluation, Model
from mvhlib.downstream.survival.inference import SUMMARY, patient_interval, summarise


def models_of(covariates: tuple[str, ...], embeddings: Mapping[str, Any], adjusted: Sequence[str],
              plain: Sequence[str], *, true_hazard: bool = False) -> list[Model]:
    """Models that are compared: clinical columns, embeddings of every encoder, and both.

    Parameters
    ----------
    covariates
        Clinical columns, stage last; none: no model has any.
    embeddings
        Name -> estimator of `mvhlib.downstream.mixture`; ``mixture`` among them.
    adjusted, plain
        Encoders as the models read them, and as they are; the latter get the mixture alone, where
        they differ.
    true_hazard
        Whether the table knows it: the ceiling.
    """
    models = [Model("stage", covariates[-1:]), Model("clinical", covariates)] if covariates else []
    models += [Model("true hazard", ("log_hazard",))] if true_hazard else []
    for encoder in adjusted:
        models += [Model(name, (), each, encoder) for name, each in embeddings.items()]
        models += [Model("clinical+mixture", covariates, embeddings["mixture"], encoder)
                   ] if covariates else []
    return models + [Model("mixture", (), embeddings["mixture"], encoder)
                     for encoder in plain if encoder not in adjusted]


def pairs_of(covariates: Sequence[str], adjusted: Sequence[str], plain: Sequence[str]
             ) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of (model, encoder) for `differences`: the first is compared with the second.

    Parameters
    ----------
    covariates, adjusted, plain
        As in `models_of`; encoders of both lists in one order.
    """
    pairs = [(("clinical", "none"), ("stage", "none"))] if covariates else []
    for encoder in adjusted:
        pairs += [(("mixture", encoder), (other, encoder)) for other in ("mean", "histogram")]
        pairs += [(("clinical+mixture", encoder), ("clinical", "none"))] if covariates else []
    return pairs + [(("mixture", ours), ("mixture", theirs))
                    for ours, theirs in zip(adjusted, plain, strict=True) if ours != theirs]


def summary_of(outcomes: Mapping[str, Clinical], results: Mapping[str, Evaluation],
               permuted: Mapping[str, pd.DataFrame], covariates: Sequence[str], *, dataset: str,
               fold_scheme: str, seed: int) -> pd.DataFrame:
    """Rows of ``summary.csv`` of all endpoints; columns `SUMMARY`.

    Stage alone, for which nothing is fitted, is scored over all patients as well, under the scheme
    ``all_patients``: its interval is a bootstrap over patients.
    """
    parts = []
    for endpoint, outcome in outcomes.items():
        about = {"dataset": dataset, "endpoint": endpoint, "fold_scheme": fold_scheme}
        scored = [results[endpoint].scores,
                  *([permuted[endpoint]] if endpoint in permuted else [])]
        parts += [summarise(scores, **about) for scores in scored]
        if not covariates:
            continue
        risk = outcome.table[covariates[-1]]
        whole = patient_interval(outcome.table.assign(risk=risk), seed=seed)
        parts.append(pd.DataFrame([about | {
            "model": "stage", "encoder": "none", "fold_scheme": "all_patients",
            "metric": "harrell_c", "n_patients": whole.n, "n_events": outcome.n_events,
            "mean": whole.mean, "ci_low": whole.low, "ci_high": whole.high}]))
    return pd.concat(parts, ignore_index=True)[list(SUMMARY)]
