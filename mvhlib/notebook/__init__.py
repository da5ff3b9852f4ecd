"""Frame of every notebook: checked parameters, a seeded start, outputs with provenance.

A notebook begins with ``run = notebook.begin("05_expression", globals())`` and ends with
``run.finish()``. Between them it reads through `Run.need` and writes through `Run.save_figure`,
`Run.save_table` and `Run.path`::

    OUT/runs/<profile>/provenance/<stem>.json       what went in, what came out; written last
    OUT/figures/<profile>/<name>/<figure>.png .svg .csv .json
    OUT/figures/<profile>/<name>/<table>.csv, <table>.timing.csv
    OUT/figures/<profile>/<name>/answer.md          what this run found (`mvhlib.answers`)
    OUT/runs/<profile>/figures/<name>/<figure>.tissue.*      figures with pixels of real tissue

papermill only warns about a parameter that the notebook does not have; `begin` refuses it. It also
sees to it that an `InputError` or a failed check is one line in the notebook, without the traceback
above it, wherever the notebook runs.
"""

from mvhlib.notebook.execution import UNCOMMITTED, CheckFailed, Run, stem
from mvhlib.notebook.parameters_cell import (
    COMMON,
    check_parameters,
    declared_parameters,
    given_parameters,
    read_parameters_cell,
)
from mvhlib.notebook.start import begin, show_errors_in_one_line

__all__ = ["COMMON", "CheckFailed", "Run", "UNCOMMITTED", "begin", "check_parameters",
           "declared_parameters", "given_parameters", "read_parameters_cell",
           "show_errors_in_one_line", "stem"]
