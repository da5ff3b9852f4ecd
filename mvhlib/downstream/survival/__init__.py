"""Survival by Cox regression: fitted on training folds, scored inside test folds, never pooled.

`scores`      C-indices, Brier scores and Kaplan-Meier of one set of patients
`cox`         a Cox model whose penalty is chosen inside
`evaluation`  models over folds, and the same with permuted outcomes
`inference`   intervals, differences, tests, hazard ratios, calibration
`figures`     curves of risk groups, calibration, hazard ratios
`panels`      the same with a panel per endpoint
`line_up`     which models and pairs are compared, and the summary over endpoints

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

from mvhlib.downstream.survival.cox import PENALTIES, PartialLikelihood, RidgeCox
from mvhlib.downstream.survival.evaluation import (
    METRICS,
    Evaluation,
    Model,
    evaluate,
    permute_outcomes,
    permuted_scores,
)
from mvhlib.downstream.survival.figures import (
    plot_calibration,
    plot_hazard_ratios,
    plot_kaplan_meier,
    row_name,
)
from mvhlib.downstream.survival.inference import (
    SUMMARY,
    added_value,
    calibration,
    calibration_slope,
    clinical_ratios,
    control,
    differences,
    hazard_ratios,
    likelihood_ratio,
    logrank_of,
    patient_interval,
    proportional_hazards,
    select,
    stratified_logrank,
    summarise,
)
from mvhlib.downstream.survival.line_up import models_of, pairs_of, summary_of
from mvhlib.downstream.survival.panels import (
    draw_calibration,
    draw_concordance,
    draw_prototypes,
    draw_risk_groups,
)
from mvhlib.downstream.survival.scores import (
    Censoring,
    brier_scores,
    harrell_c,
    integrated_brier,
    kaplan_meier_at,
    uno_c,
)

__all__ = ["Censoring", "Evaluation", "METRICS", "Model", "PENALTIES", "PartialLikelihood",
           "RidgeCox", "SUMMARY", "added_value", "brier_scores", "calibration", "calibration_slope",
           "clinical_ratios", "control", "differences", "draw_calibration", "draw_concordance",
           "draw_prototypes", "draw_risk_groups", "evaluate", "harrell_c", "hazard_ratios",
           "integrated_brier", "kaplan_meier_at", "likelihood_ratio", "logrank_of", "models_of",
           "pairs_of", "patient_interval", "permute_outcomes", "permuted_scores",
           "plot_calibration", "plot_hazard_ratios", "plot_kaplan_meier", "proportional_hazards",
           "row_name", "select", "stratified_logrank", "summarise", "summary_of", "uno_c"]
