"""Folds x method -> tidy scores: the evaluation of every expression predictor.

A protocol is a table of folds (`mvhlib.cohort.splits.make`). For each fold the penalty is chosen
on inner folds of the training sections, the fit sees training sections only, and every test
section is scored by itself; see `mvhlib.expression.scores`. Protocols that use test data, as some
authors' do, carry a note that says so.
"""

from mvhlib.expression.protocols.evaluate import BENCHMARKS, NOTES, Result, fit_on, joined, run
from mvhlib.expression.protocols.fits import LinearFit
from mvhlib.expression.protocols.guards import check_overlap, overlap, unseen_units
from mvhlib.expression.protocols.pooling import benchmark_table
from mvhlib.expression.protocols.records import (
    SCORE_COLUMNS,
    Estimator,
    Prediction,
    Sample,
    method_name,
)
from mvhlib.expression.protocols.rows import stream
from mvhlib.expression.protocols.summary import SUMMARY_COLUMNS, summarise

__all__ = ["BENCHMARKS", "Estimator", "LinearFit", "NOTES", "Prediction", "Result", "SCORE_COLUMNS",
           "SUMMARY_COLUMNS", "Sample", "benchmark_table", "check_overlap", "fit_on", "joined",
           "method_name", "overlap", "run", "stream", "summarise", "unseen_units"]
