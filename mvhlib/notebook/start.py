"""The first cell of a notebook: parameters, seed, lock and style."""

import random
import sys
from typing import Any

import numpy as np

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.notebook.execution import CheckFailed, Run, hold_lock
from mvhlib.notebook.parameters_cell import WILDCARDS, collect
from mvhlib.parameters import check_seed

#: Columns and rows of a table on screen.
SHOWN = (8, 16)
#: What libraries say of themselves: category, and how the message begins.
QUIET = ((SyntaxWarning, ".* is not a valid key!"),)


def begin(name: str, namespace: dict[str, Any]) -> Run:
    """Check the parameters, seed everything, take the stage's lock and set the style.

    Parameters
    ----------
    name
        The notebook's file name without ending, for example ``"05_expression"``.
    namespace
        ``globals()`` of the notebook.

    Raises
    ------
    InputError
        On an unknown or mistyped parameter, a profile or encoder that is no name of a folder, a
        seed that is none, a data directory that is not there or a place that cannot be written.
    """
    show_errors_in_one_line()
    _, values = collect(name, namespace)
    for key in ("profile", *WILDCARDS):
        if isinstance(values.get(key), str) and artifacts.safe_name(values[key], name, key) != (
                values[key]):
            raise InputError(name, key, f"is {values[key]!r}", "remove the blanks around it")
    check_seed(values["seed"], name)
    artifacts.safe_path(values["out"], name, "out")
    if values["data"]:
        artifacts.safe_path(values["data"], name, "data")
    run = Run(name, values)
    if run.data is not None and not run.data.is_dir():
        raise InputError(run.data, "data", "is not a directory",
                         "pass DATA=<directory> (make) or -p data <directory> (papermill)")
    with artifacts.reading(run.out, "out", "cannot be written",
                           "choose a folder that you may write to"):
        run._lock_path.parent.mkdir(parents=True, exist_ok=True)
    hold_lock(run._lock_path)
    seed_everything(run.seed)
    from mvhlib import plots

    plots.set_style()
    set_tables()
    print(f"{run.stem}: profile {run.profile}, seed {run.seed}, device {run.device}")
    return run


def set_tables() -> None:
    """Show tables as a page can hold them: `SHOWN` columns and rows, three digits; files keep all.

    Warnings that a reader can do nothing about, of libraries about themselves, are not shown.
    """
    import warnings

    import pandas as pd

    n_columns, n_rows = SHOWN
    pd.set_option("display.max_columns", n_columns, "display.max_rows", n_rows,
                  "display.min_rows", n_rows, "display.width", 100, "display.max_colwidth", 60,
                  "display.float_format", three_digits)
    for category, message in QUIET:
        warnings.filterwarnings("ignore", category=category, message=message)


def three_digits(value: float) -> str:
    """A number as a table shows it.

    Examples
    --------
    >>> [three_digits(value) for value in (0.12345, 3897.4, -0.00004, 2.0)]
    ['0.123', '3,897', '-4e-05', '2']
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def show_errors_in_one_line() -> None:
    """Show `InputError` and `CheckFailed` without a traceback in the kernel that runs this.

    The message says what to mend; frames of the library would only stand between it and its reader.
    All other errors keep their traceback.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return

    def show(shell, kind, error, traceback, tb_offset=None):
        line = f"{kind.__name__}: {artifacts.one_line(error, 2000)}"
        shell._showtraceback(kind, error, [line])
        return [line]

    shell.set_custom_exc((InputError, CheckFailed), show)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; library code draws from generators that it is handed."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
