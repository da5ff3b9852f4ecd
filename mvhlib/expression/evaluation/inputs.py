"""Inputs that a method's notebook reads, and how it ends where nothing can be scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd

from mvhlib import artifacts, cohort
from mvhlib.expression import protocols
from mvhlib.expression.evaluation.plan import Job, jobs, nobody_imaged

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort
    from mvhlib.notebook import Run


@dataclass(frozen=True)
class Inputs:
    """What 01_cohort wrote for a run.

    Attributes
    ----------
    manifest, panels
        ``manifest.csv`` and ``panels.csv``, folds of the latter as text.
    people
        The sections.
    directions
        Groups and pairs of the protocols ``transfer`` and ``within``.
    """

    manifest: pd.DataFrame = field(repr=False)
    panels: pd.DataFrame = field(repr=False)
    people: "Cohort"
    directions: Mapping[str, Any]


def read_inputs(run: "Run", table: str) -> Inputs:
    """Read the cohort of a run; end the notebook if no section has an image.

    Parameters
    ----------
    table
        Name of the summary that is then written without a row.
    """
    def made(name: str):
        return run.need(run.path("cohort", name), made_by="01_cohort")

    manifest = artifacts.read_csv(made("manifest.csv"))
    panels = artifacts.read_csv(made("panels.csv"), dtype={"fold": str})
    if why := nobody_imaged(manifest):
        end(run, table, why)
    return Inputs(manifest, panels, cohort.read("run", run.path("cohort"), data=run.data),
                  artifacts.read_json(made("directions.json")))


def jobs_or_end(run: "Run", table: str, found: Inputs, wanted: Sequence[str],
                resolution: Mapping[str, float | None], **fold_options: Any
                ) -> tuple[list[Job], pd.DataFrame]:
    """Plan jobs as `jobs` does, with the run's seed; end the notebook if there are none."""
    planned, left_out = jobs(found.manifest, wanted, resolution, seed=run.seed,
                             **found.directions, **fold_options)
    if not planned:
        end(run, table, "No protocol can be evaluated: " + "; ".join(left_out["left_out"].unique()))
    return planned, left_out


def end(run: "Run", table: str, why: str) -> NoReturn:
    """Write a summary without rows, and end the notebook with the reason as its answer."""
    run.save_table(pd.DataFrame(columns=list(protocols.SUMMARY_COLUMNS)), table)
    run.end(why)
