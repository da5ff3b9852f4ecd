"""Evaluation of many encoders under many protocols: plan, run, write, read, compare.

Files, below ``expression/<protocol>/<method>/<encoder>/``::

    folds.csv                    fold, section, role
    scores.csv                   one row per fold, section, gene, panel and control
    pooled.csv  penalties.csv    pooled correlations with their floor; the penalty of each fold
    members.csv                  fold, member: of an encoder that was pretrained several times, each
                                 time without one section, the one that did not see what is tested
    predictions/<section>.h5ad   X and layers measured and predicted, of the first panel without
                                 control, ready for scanpy and squidpy; only the first seed of
                                 an encoder with several
"""

from mvhlib.expression.evaluation.comparison import (
    comparisons,
    drops,
    encoder_correlation,
    leaks,
    nulls,
    remarks,
)
from mvhlib.expression.evaluation.files import (
    features_of,
    read_prediction,
    read_scores,
    scored,
    write_left_out,
    write_nothing,
)
from mvhlib.expression.evaluation.inputs import Inputs, end, jobs_or_end, read_inputs
from mvhlib.expression.evaluation.panels import choose_panels
from mvhlib.expression.evaluation.plan import (
    LEFT_OUT_COLUMNS,
    Job,
    Member,
    assign,
    fewer,
    first_possible,
    jobs,
    nobody_imaged,
    resolution,
    with_panels,
)
from mvhlib.expression.evaluation.scoring import Evaluation, benchmarks, crossfit, evaluate

__all__ = ["Evaluation", "Inputs", "Job", "LEFT_OUT_COLUMNS", "Member", "assign", "benchmarks",
           "choose_panels", "comparisons", "crossfit", "drops", "encoder_correlation", "end",
           "evaluate", "features_of", "fewer", "first_possible", "jobs", "jobs_or_end", "leaks",
           "nobody_imaged", "nulls", "read_inputs", "read_prediction", "read_scores", "remarks",
           "resolution", "scored", "with_panels", "write_left_out", "write_nothing"]
