"""Run a job over its panels and controls, and write the results."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mvhlib import artifacts, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression import protocols, ridge
from mvhlib.expression.evaluation.plan import Job, Member, assign, method_of

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort
    from mvhlib.features import Features


@dataclass
class Evaluation:
    """Scores of one job over all panels and controls.

    Attributes
    ----------
    scores, pooled, penalties, summary
        Tables; see `protocols.Result` and `protocols.summarise`.
    predictions
        Section -> `protocols.Prediction`, first panel, no control.
    notes
        What a reader of the tables must know.
    method
        The method used: `jobs` of a benchmark have their own.
    members
        Fold -> member, of an encoder that was pretrained several times.
    """

    job: Job
    scores: pd.DataFrame
    pooled: pd.DataFrame
    penalties: pd.DataFrame
    summary: pd.DataFrame
    predictions: dict[str, protocols.Prediction] = field(repr=False)
    notes: list[str]
    method: str = "ridge"
    members: dict[Hashable, str] = field(default_factory=dict)

    def unit_means(self, unit: str, over: str = "mean") -> pd.Series:
        """Correlation of the first panel, one number per unit; see `statistics.unit_means`."""
        own = self.scores[self.scores["panel"] == self.scores["panel"].iloc[0]]
        return statistics.unit_means(own, unit, over=over)

    def write(self, folder: str | Path, *, predictions: bool = True) -> list[Path]:
        """Write the files that the package's head lists; return the tables' paths."""
        folder = Path(folder)
        tables = {"folds": self.job.folds, "scores": self.scores, "pooled": self.pooled,
                  "penalties": self.penalties}
        if self.members:
            tables["members"] = pd.DataFrame(self.members.items(), columns=["fold", "member"])
        for section, prediction in self.predictions.items() if predictions else ():
            with artifacts.atomic(folder / "predictions" / f"{section}.h5ad") as temporary:
                prediction.to_adata(model=f"{self.method} on {self.job.encoder}",
                                    protocol=self.job.protocol).write_h5ad(temporary)
        return [artifacts.write_csv(folder / f"{name}.csv", frame)
                for name, frame in tables.items()]


def evaluate(job: Job, cohort: "Cohort", features: "Mapping[str, Features]",
             panels: pd.DataFrame, *, controls: Sequence[str] = ("none", "permuted"),
             method: "str | protocols.Estimator" = "ridge",
             alphas: Iterable[float] = ridge.DEFAULT_ALPHAS, unit: str = "patient", seed: int = 0,
             **options) -> Evaluation:
    """Run one job for every panel and control.

    Parameters
    ----------
    job
        From `jobs`.
    features
        Section -> `Features` of the job's encoder.
    panels
        ``panels.csv`` of `01_cohort`: panel, protocol, fold, rank, gene.
    controls, method, alphas, seed, options
        See `protocols.run`. Benchmarks run with their own regression and normalisation, whatever
        the name given here.
    unit
        Over which intervals are taken: ``"patient"`` or ``"study"``.

    Raises
    ------
    InputError
        If a fold has no panel, and whatever `protocols.run` refuses.
    """
    return _evaluate(job, panels, controls, method, unit, lambda genes, **how: protocols.run(
        cohort, features, job.folds, job.protocol, genes, encoder=job.encoder,
        alphas=tuple(alphas), seed=seed, **options | how))


def crossfit(job: Job, cohort: "Cohort", members: Mapping[str, Member], panels: pd.DataFrame, *,
             controls: Sequence[str] = ("none", "permuted"),
             method: "str | protocols.Estimator" = "ridge", unit: str = "patient",
             **options) -> Evaluation:
    """Run one job of an encoder that was pretrained several times, as `evaluate` does of one.

    Each fold is learned and tested on the features of the member that saw none of its test sections
    (see `assign`): embeddings of two trainings are never mixed. The tables speak of one encoder,
    and claim that it saw no test images.

    Raises
    ------
    InputError
        If every member saw what a fold tests, and whatever `evaluate` refuses.
    """
    chosen, why = assign(members, job.folds, job.protocol, cohort.manifest)
    if why:
        raise InputError(job.encoder, "members", why, "pretrain it once more without these "
                         "sections, or leave it out of this protocol")

    def run(genes, **how) -> protocols.Result:
        return protocols.joined([protocols.run(
            cohort, member.features, job.folds[job.folds["fold"].map(chosen) == name], job.protocol,
            genes, encoder=job.encoder, pretrained_on=member.pretrained_on, **options | how)
            for name, member in members.items() if name in chosen.values()], list(chosen))

    result = _evaluate(job, panels, controls, method, unit, run)
    result.members = chosen
    result.notes = [*result.notes, f"pretrained {len(set(chosen.values()))} times, each fold by a "
                    "training that did not see it"]
    return result


def _evaluate(job: Job, panels: pd.DataFrame, controls: Sequence[str],
              method: "str | protocols.Estimator", unit: str,
              run: Callable[..., protocols.Result]) -> Evaluation:
    """Call `run` for every panel and control and put the results into one."""
    method, demanded = method_of(job.protocol, method)
    how = {"method": method} | ({} if demanded is None else {"normalize": demanded})
    chosen = panels[panels["protocol"] == job.protocol]
    if chosen.empty:
        raise InputError("panels.csv", "protocol", f"holds no panel for {job.protocol!r}",
                         "name the protocol in 01_cohort's parameters and run it again")
    results = {}
    for panel, rows in chosen.groupby("panel", sort=False):
        by_fold = {str(fold): list(part.sort_values("rank")["gene"])
                   for fold, part in rows.groupby("fold", sort=False)}
        for control in controls:
            results[panel, control] = run(by_fold, control=control, panel=panel, **how)
    first = next(iter(results.values()))
    parts = list(results.values())
    return Evaluation(
        job=job,
        scores=pd.concat([part.scores for part in parts], ignore_index=True),
        pooled=pd.concat([part.pooled for part in parts], ignore_index=True),
        penalties=pd.concat([part.penalties for part in parts], ignore_index=True),
        summary=pd.concat([part.summary(unit) for part in parts], ignore_index=True),
        predictions=first.predictions, notes=first.notes,
        method=protocols.method_name(method))


def benchmarks(results: Sequence[Evaluation]) -> pd.DataFrame:
    """HEST-Benchmark's own table of those results that are of a benchmark; else an empty one."""
    tables = [protocols.benchmark_table(result.pooled) for result in results
              if result.job.protocol in protocols.BENCHMARKS]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
