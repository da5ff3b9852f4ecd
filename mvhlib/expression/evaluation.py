"""Many encoders under many protocols: what can be compared, run, written and read again.

Files, below ``expression/<protocol>/<method>/<encoder>/``::

    folds.csv                    fold, section, role
    scores.csv                   one row per fold, section, gene, panel and control
    pooled.csv  penalties.csv    pooled correlations with their floor; the penalty of each fold
    members.csv                  fold, member: of an encoder that was pretrained several times, each
                                 time without one section, the one that did not see what is tested
    predictions/<section>.h5ad   X and layers measured and predicted, of the first panel without
                                 control; scanpy and squidpy draw it as it is; of several seeds
                                 those of the first
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, lattice, phrases, plots, statistics
from mvhlib.artifacts import InputError
from mvhlib.cohort import genes, hest, splits
from mvhlib.expression import protocols, ridge
from mvhlib.expression.scores import drop
from mvhlib.nulls import permutation_null, toroidal_null
from mvhlib.power import score_correlation

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort
    from mvhlib.features import Features
    from mvhlib.notebook import Run

#: What the benchmarks' own panel is called, and its size: genes chosen as HEST does, with the test
#: samples. Under another protocol a panel of this name is chosen on the training sections alone.
HEST_PANELS = {"hest_var": "var", "hest_mean": "mean"}
BENCHMARK_PANEL, BENCHMARK_GENES = "hest_var", 50

#: What was not run, and why; also of ``expression/left_out.csv``.
LEFT_OUT_COLUMNS = ["protocol", "encoder", "left_out"]
NULL_COLUMNS = ("protocol", "method", "encoder", "null", "observed", "low", "high", "p",
                "p_smallest")
#: An encoder's resolution may miss the coarsest image's by this factor and still count as matched.
MPP_SLACK = 1.05


@dataclass(frozen=True)
class Job:
    """One encoder under one protocol."""

    protocol: str
    encoder: str
    folds: pd.DataFrame = field(repr=False, compare=False)


def resolution(features: "Mapping[str, Features]") -> float | None:
    """Resolution that every section was reduced to before it was embedded [um/px].

    The coarser of the tiles' own scale and the encoder's working resolution, where all sections
    agree on it but for rounding (HEST cuts whole pixels); None where they do not, or it is not
    stated.
    """
    reduced = []
    for each in features.values():
        stated = [each.attrs.get(name) for name in ("mpp", "working_mpp")]
        reduced.append(max((float(value) for value in stated if value), default=0.0))
    alike = bool(reduced) and 0 < max(reduced) <= min(reduced) * MPP_SLACK
    return min(reduced) if alike else None


def method_of(protocol: str, method: "str | protocols.Estimator"
              ) -> "tuple[str | protocols.Estimator, str | None]":
    """Method and normalisation of a protocol: benchmarks have a regression of their own.

    An estimator keeps its place there, since a benchmark's folds and genes are what it is asked
    to be compared on.

    Returns
    -------
    tuple
        The method, and the normalisation that it demands (None: free).
    """
    if protocol in protocols.BENCHMARKS and isinstance(method, str):
        return "hest_ridge", "log1p"
    return method, None


@dataclass(frozen=True)
class Member:
    """One training of an encoder that was pretrained several times, each time without one section.

    Attributes
    ----------
    features
        Section -> `Features`.
    pretrained_on
        ``{"sections": ..., "patients": ..., "studies": ...}``.
    """

    features: "Mapping[str, Features]" = field(repr=False)
    pretrained_on: Mapping[str, Iterable[str]]


def assign(members: Mapping[str, Member], folds: pd.DataFrame, protocol: str,
           manifest: pd.DataFrame) -> tuple[dict[Hashable, str], str]:
    """Choose for every fold the first member that was not pretrained on what the fold tests.

    What counts as seen is said by `protocols.unseen_units`.

    Parameters
    ----------
    manifest
        Columns section, patient, study.

    Returns
    -------
    tuple
        Fold -> member; and "", or why there is none for a fold.
    """
    owners = manifest.astype({"section": str}).set_index("section")[["patient", "study"]]
    chosen = {}
    for fold, part in folds.groupby("fold", sort=False):
        names = part.loc[part["role"] != "train", "section"].astype(str)
        tested = protocols.unseen_units(protocol, sections=names, patients=owners.loc[
            names, "patient"], studies=owners.loc[names, "study"])
        seen = {name: protocols.overlap(member.pretrained_on, **tested)
                for name, member in members.items()}
        clean = [name for name, shared in seen.items() if not shared]
        if not clean:
            return {}, (f"fold {fold}: each of its {len(members)} trainings saw "
                        f"{next(iter(seen.values()))[0]}")
        chosen[fold] = clean[0]
    return chosen, ""


def jobs(manifest: pd.DataFrame, wanted: Sequence[str], encoders: Mapping[str, float | None],
         seed: int = 0, *, members: Mapping[str, Mapping[str, Member]] | None = None,
         **fold_options) -> tuple[list[Job], pd.DataFrame]:
    """Decide what can be compared.

    Parameters
    ----------
    manifest
        The cohort's; see `mvhlib.cohort.splits.make`.
    wanted
        Protocols.
    encoders
        Slug -> resolution that every section is reduced to [um/px] (see `resolution`), or None
        where tiles are taken as they are.
    seed
        Of the random protocols.
    members
        Encoders that were pretrained several times: slug -> `Member` by name.
    fold_options
        Further options of `mvhlib.cohort.splits.make`: ``given``, ``shared_donors``, ``groups``,
        ``pairs``.

    Returns
    -------
    list of Job, DataFrame
        What to run; and ``protocol, encoder, left_out`` for what is not run, with the reason: a
        cohort too small for the protocol, images of unlike resolution and an encoder that would see
        the difference, or a fold whose test sections each of an encoder's trainings saw.
    """
    planned, reasons = [], []
    for protocol in wanted:
        why = splits.possible(manifest, [protocol], seed=seed, **fold_options)[protocol]
        if why:
            reasons.append({"protocol": protocol, "encoder": "all", "left_out": why})
            continue
        folds = splits.make(manifest, protocol, seed=seed, **fold_options)
        used = manifest[manifest["section"].isin(folds["section"])]
        common = splits.match_resolution(used)
        for encoder, mpp in encoders.items():
            if common.mpp is not None and (mpp or 0) * MPP_SLACK < common.mpp:
                reasons.append({"protocol": protocol, "encoder": encoder, "left_out":
                                f"{common.message}; this encoder does not reduce them"})
                continue
            _, why = assign(members[encoder], folds, protocol, manifest) if encoder in (
                members or {}) else ({}, "")
            if why:
                reasons.append({"protocol": protocol, "encoder": encoder, "left_out": why})
            else:
                planned.append(Job(protocol, encoder, folds))
    return planned, pd.DataFrame(reasons, columns=LEFT_OUT_COLUMNS)


def first_possible(manifest: pd.DataFrame, wanted: Sequence[str], resolution: Mapping[str, Any],
                   panels: pd.DataFrame, seed: int = 0) -> tuple[str, list[Job], pd.DataFrame]:
    """The first of the protocols that the cohort allows and that 01 chose genes for.

    Returns
    -------
    tuple
        Protocol ("" where there is none), its jobs, and what is left out of those tried (see
        `jobs`).
    """
    reasons = []
    for protocol in dict.fromkeys(wanted):
        planned, left_out = jobs(manifest, [protocol], resolution, seed=seed)
        reasons.append(left_out)
        if planned and (panels["protocol"] == protocol).any():
            return protocol, planned, pd.concat(reasons, ignore_index=True)
    return "", [], pd.concat(reasons, ignore_index=True)


def choose_panels(cohort: "Cohort", wanted: Sequence[str], names: Sequence[str], n_genes: int,
                  seed: int = 0, *, benchmark_genes: Sequence[str] | None = None,
                  **fold_options) -> pd.DataFrame:
    """Choose every panel of every fold, each on the fold's training sections alone.

    The benchmarks (``hest_bench``, ``mvhybrid_bench``) are the exception, and say so wherever they
    are printed: their one panel of 50 genes is chosen on all sections of the protocol, as their
    authors did.

    Parameters
    ----------
    wanted
        Protocols; those that the cohort does not allow are left out.
    names, n_genes
        See `mvhlib.cohort.genes.panel`; ``hest_var`` and ``hest_mean`` as well, which choose on the
        training sections as HEST does on all (`mvhlib.cohort.hest.k_genes`).
    benchmark_genes
        Genes of ``hest_bench`` as its task states them (`mvhlib.cohort.hest.bench_genes`); None
        chooses them.
    fold_options
        As in `jobs`; give both the same.

    Returns
    -------
    DataFrame
        Columns of ``panels.csv``: panel, protocol, fold, rank (from 1), gene. Genes are cut to
        those that the protocol's test sections have as well, by name only; for ``transfer`` and
        ``within`` fold by fold (see ``measured_in`` of `mvhlib.cohort.splits.make`).
    """
    parts, known, measured, memory = [], {}, {}, {}
    allowed = [p for p, why in splits.possible(cohort.manifest, wanted, seed=seed,
                                               **fold_options).items() if not why]
    for protocol in allowed:
        folds = splits.make(cohort.manifest, protocol, seed=seed, **fold_options)
        measured |= {s: frozenset(cohort[s].adata.var_names) for s in folds["section"].unique()
                     if s not in measured}
        if protocol in protocols.BENCHMARKS:
            stated = benchmark_genes if protocol == "hest_bench" else None
            chosen = list(stated) if stated is not None else _panel(
                BENCHMARK_PANEL, [cohort[s].adata for s in folds["section"].unique()],
                BENCHMARK_GENES, None, memory)
            parts += [genes.frame(chosen, BENCHMARK_PANEL, protocol, fold)
                      for fold in folds["fold"].unique()]
            continue
        # Groups of unlike platforms share few genes: transfer counts those of each pair.
        everyone = tuple(folds["section"].unique())
        measured_in = folds.attrs.get("measured_in", {})
        for fold, part in folds.groupby("fold", sort=False):
            train = tuple(part.loc[part["role"] != "test", "section"])
            common = frozenset.intersection(*(measured[s] for s in measured_in.get(fold, everyone)))
            for name in names:
                if (train, name, common) not in known:
                    known[train, name, common] = _panel(
                        name, [cohort[s].adata for s in train], n_genes, common, memory)
                parts.append(genes.frame(known[train, name, common], name, protocol, fold))
    return genes.concat(parts)


def _panel(name: str, adatas: list, n_genes: int, available: set[str] | None,
           memory: dict) -> list[str]:
    if name in HEST_PANELS:
        return hest.k_genes(adatas, n_genes, HEST_PANELS[name], available=available)
    return genes.panel(name, adatas, n_genes=n_genes, available=available, memory=memory)


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
        """Write the files that the module's head lists; return the tables' paths."""
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


def drops(scores: pd.DataFrame, *, random: str = "random10_section", loso: str = "loso",
          unit: str = "patient") -> pd.DataFrame:
    """What is lost from random folds to a study never seen, per encoder, panel and program.

    Parameters
    ----------
    scores
        Rows of both protocols; other protocols and controls are left out.
    unit
        The difference is taken within each unit, and the interval over units.

    Returns
    -------
    DataFrame
        Columns method, encoder, panel, program, random, loso, difference, ci_low, ci_high,
        n_units, drop: means of Pearson's r, their paired difference with its 95 % interval, and the
        share of the random-fold score that is lost (NaN where that is not above 0). What was not
        scored under both protocols has no row.
    """
    columns = ["method", "encoder", "panel", "program", "random", "loso", "difference", "ci_low",
               "ci_high", "n_units", "drop"]
    both = scores[(scores["control"] == "none") & scores["protocol"].isin([random, loso])]
    if both["protocol"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    both = pd.concat([both.assign(program="all"), both[both["program"].fillna("") != ""]])
    rows = []
    for keys, part in both.groupby(["method", "encoder", "panel", "program"], sort=False):
        if part["protocol"].nunique() < 2:
            continue
        units = statistics.unit_means(part, unit, by=["protocol"]).unstack("protocol")
        gap = statistics.t_interval(units[random] - units[loso])
        means = units.mean()
        rows.append((*keys, means[random], means[loso], gap.mean, gap.low, gap.high, gap.n,
                     drop(means[random], means[loso])))
    return pd.DataFrame(rows, columns=columns)


def comparisons(scores: pd.DataFrame, primary: Sequence[str], *, protocol: str = "loso",
                units: Sequence[str] = ("patient", "study"),
                planned: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Paired tests of one encoder against others, under one protocol.

    The pair named in advance is a family of its own; the same encoder against every other one is
    the second family, and further pairs named in advance are the third, each corrected by Holm's
    method within itself.

    Parameters
    ----------
    scores
        Rows of all encoders.
    primary
        The encoder and the rival that were named in advance; none named: no first and no second
        family.
    units
        Sections are averaged within each; sections that share a patient, or patients that share a
        study, are not independent. Both are shown, the coarser one is the safer reading. Where all
        sections are replicates of one patient they are the unit, and no patient is inferred to.
    planned
        Further pairs.

    Returns
    -------
    DataFrame
        protocol, panel, family (``primary``, ``secondary`` or ``planned``), unit, and the columns
        of `mvhlib.statistics.compare`. Pairs of which an encoder was not scored are left out.
    """
    rows = scores[(scores["control"] == "none") & (scores["protocol"] == protocol)]
    if protocol == "section" and rows["patient"].nunique() == 1:
        units = ("section",)
    first, *rivals = primary or [None]
    tables = []
    for panel, part in rows.groupby("panel", sort=False):
        there = list(dict.fromkeys(part["encoder"]))
        others = [name for name in there if name != first and first in there]
        families = {"primary": [(first, name) for name in others if name in rivals],
                    "secondary": [(first, name) for name in others if name not in rivals],
                    "planned": [(a, b) for a, b in planned if {a, b} <= set(there)]}
        for unit in units:
            means = statistics.unit_means(part, unit, by=["encoder"]).unstack("encoder")
            for family, named in families.items():
                pairs = {f"{a} - {b}": (means[a], means[b]) for a, b in named}
                if pairs:
                    table = statistics.compare(pairs)
                    tables.append(table.assign(protocol=protocol, panel=panel, family=family,
                                               unit=unit))
    front = ["protocol", "panel", "family", "unit"]
    if not tables:
        return pd.DataFrame(columns=[*front, *statistics.compare({}).columns])
    found = pd.concat(tables, ignore_index=True)
    return found[front + [name for name in found if name not in front]]


def encoder_correlation(scores: pd.DataFrame, pair: Sequence[str], *, protocol: str = "loso",
                        unit: str = "study") -> float:
    """Correlation of two encoders' scores over units, which decides the power of a paired test.

    NaN where no pair is named, one of them was not scored, or fewer than three units are left.
    """
    if len(pair) < 2:
        return float("nan")
    rows = scores[(scores["control"] == "none") & (scores["protocol"] == protocol)]
    means = statistics.unit_means(rows, unit, by=["encoder"]).unstack(unit)
    if not set(pair) <= set(means.index) or means.shape[1] < 3:
        return float("nan")
    return score_correlation(means.loc[pair[0]], means.loc[pair[1]]).mean


def nulls(result: "Evaluation", *, n_draws: int = 199, seed: int = 0) -> pd.DataFrame:
    """A result's score beside two nulls: spots permuted, and maps shifted over the array.

    Returns
    -------
    DataFrame
        protocol, method, encoder, null, observed, low, high, p, p_smallest. The shift keeps the
        smoothness of both maps, which a permutation destroys; it is left out where the spots lie
        on no array. No row where no gene varies.
    """
    maps = [part for part in result.predictions.values() if part.coords is not None]
    measured, predicted = [part.measured for part in maps], [part.predicted for part in maps]
    rng = np.random.default_rng(seed)
    if not any((np.ptp(t, axis=0) * np.ptp(p, axis=0)).any()
               for t, p in zip(measured, predicted, strict=True)):
        return pd.DataFrame(columns=list(NULL_COLUMNS))
    found = [permutation_null(measured, predicted, n_draws=n_draws, rng=rng)]
    try:
        positions = [lattice.array_positions(part.coords) for part in maps]
    except InputError:
        positions = None
    if positions is not None:
        found.append(toroidal_null(measured, predicted, positions, n_draws=n_draws,
                                              wrap=False, rng=rng))
    return pd.DataFrame([{"protocol": result.job.protocol, "method": result.method,
                          "encoder": result.job.encoder, "null": null.method,
                          "observed": null.observed, "low": null.low, "high": null.high,
                          "p": null.p, "p_smallest": null.p_smallest} for null in found],
                        columns=list(NULL_COLUMNS))


def leaks(summary: pd.DataFrame, least: float = 0.05) -> pd.DataFrame:
    """Hold what was predicted from permuted features against zero.

    Nothing can be learned from features that are shuffled within each section, but few units and
    few genes leave a mean that is not 0. Only an interval that leaves zero out proves a leak: of
    99.9 %, so that an honest control fails once in a thousand rows.

    Parameters
    ----------
    summary
        Columns `protocols.SUMMARY_COLUMNS`, with intervals of 95 %.
    least
        A mean of Pearson's r up to this size is none.

    Returns
    -------
    DataFrame
        protocol, encoder, panel, unit, n_units, mean, low, high (99.9 %) and verdict: ``none``,
        ``leak``, or ``open`` (larger than `least`, and the interval holds zero, or there is none).
    """
    from scipy import stats

    rows = summary[(summary["control"] == "permuted") & (summary["metric"] == "pcc")
                   & (summary["program"] == "all")]
    found = []
    for row in rows.itertuples():
        free = max(1, int(row.n_units) - 1)
        wider = stats.t.ppf(0.9995, free) / stats.t.ppf(0.975, free)
        low, high = (row.mean + wider * (end - row.mean) for end in (row.ci_low, row.ci_high))
        verdict = "none" if not abs(row.mean) >= least else (
            "leak" if low > 0 or high < 0 else "open")
        found.append((row.protocol, row.encoder, row.panel, row.unit, row.n_units, row.mean, low,
                      high, verdict))
    return pd.DataFrame(found, columns=["protocol", "encoder", "panel", "unit", "n_units", "mean",
                                        "low", "high", "verdict"])


def with_panels(planned: Sequence[Job], panels: pd.DataFrame) -> tuple[list[Job], pd.DataFrame]:
    """Those jobs whose protocol 01 chose genes for; and what is left out, as `jobs` says it."""
    there = set(panels["protocol"])
    lacking = dict.fromkeys(job.protocol for job in planned if job.protocol not in there)
    return [job for job in planned if job.protocol in there], pd.DataFrame(
        [(protocol, "all", f"01_cohort chose no genes for {protocol}; name it in its `protocols`")
         for protocol in lacking], columns=LEFT_OUT_COLUMNS)


def nobody_imaged(manifest: pd.DataFrame) -> str:
    """Why a cohort allows no prediction at all, in a sentence; "" where a section has an image."""
    imaged = manifest["has_image"].astype(str).str.lower().isin(("true", "1"))
    return "" if imaged.any() else ("No section of this cohort has an image, so that no expression "
                                    "can be predicted from one.")


def write_left_out(folder: str | Path, left_out: pd.DataFrame) -> Path:
    """Write ``left_out.csv``, which tells the notebooks behind 05 what it could not score."""
    return artifacts.write_csv(Path(folder) / "left_out.csv", left_out)


def write_nothing(run: "Run", *reasons: str) -> None:
    """Write 05's tables without a row, and the reasons, for the notebooks behind it."""
    reasons = pd.DataFrame([("all", "all", why) for why in dict.fromkeys(reasons)],
                           columns=LEFT_OUT_COLUMNS)
    run.note(write_left_out(run.path("expression"), reasons))
    empty = pd.DataFrame(columns=list(protocols.SCORE_COLUMNS))
    run.save_table(protocols.summarise(empty, "patient"), "summary")
    run.save_table(drops(empty), "drop")
    run.save_table(comparisons(empty, []), "comparisons")


def scored(folder: str | Path, protocol: str, method: str, encoder: str) -> tuple[str, str, str]:
    """Find the scores to show: those asked for, else others that 05 has written.

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.
    protocol, method, encoder
        What was asked for.

    Returns
    -------
    tuple
        Protocol and encoder of scores that are there; and "", or a sentence that says what is shown
        instead and why. Another encoder stands in only where one alone was scored. Both are ""
        where 05 could score nothing, and the sentence says why.

    Raises
    ------
    InputError
        If 05 has not run, or several encoders were scored and the one asked for was not.
    """
    folder = Path(folder)
    there = [path.parent for path in sorted(folder.glob(f"*/{method}/*/scores.csv"))]
    made = {(path.parent.parent.name, path.name) for path in there}
    if (protocol, encoder) in made:
        return protocol, encoder, ""
    made = {each for each in made if each[0] not in ("transfer", "within")}  # those are 15's
    reasons = artifacts.read_csv(folder / "left_out.csv") if (
        folder / "left_out.csv").exists() else pd.DataFrame(columns=LEFT_OUT_COLUMNS)
    if not made:
        if reasons.empty:
            raise InputError(folder / protocol / method / encoder / "scores.csv", "input",
                             "does not exist yet", "run notebooks/05_expression.ipynb first")
        return "", "", "Nothing was scored by 05_expression. " + str(reasons["left_out"].iloc[0])
    encoders = sorted({name for _, name in made})
    said = []
    if encoder not in encoders:
        if len(encoders) > 1:
            raise InputError("05_expression", "encoder", f"{encoder!r} was not scored by {method}",
                             f"choose one of {encoders}")
        said.append(f"{encoder} was not scored, {encoders[0]} is the only encoder.")
        encoder = encoders[0]
    own = [name for name in splits.PROTOCOLS if (name, encoder) in made]
    own += sorted({name for name, of in made if of == encoder} - set(own))
    if protocol not in own:
        why = reasons.loc[(reasons["protocol"] == protocol)
                          & reasons["encoder"].isin(["all", encoder]), "left_out"]
        said.append(f"{protocol} was left out by 05_expression ("
                    + (str(why.iloc[0]) if len(why) else "it was not asked for")
                    + f"), {own[0]} is shown.")
        protocol = own[0]
    return protocol, encoder, " ".join(said)


def benchmarks(results: Sequence[Evaluation]) -> pd.DataFrame:
    """HEST-Benchmark's own table of those results that are of a benchmark; else an empty one."""
    tables = [protocols.benchmark_table(result.pooled) for result in results
              if result.job.protocol in protocols.BENCHMARKS]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def remarks(summary: pd.DataFrame, learned: Sequence[str] = ()) -> str:
    """What a reader of the summary must know, in a sentence or two per protocol.

    Parameters
    ----------
    summary
        Columns ``protocol, encoder, encoder_saw_test_images, unit, n_units``.
    learned
        Encoders that learned from the *expression* of tested sections, not from images alone.
    """
    said = []
    for protocol, rows in summary.groupby("protocol", sort=False):
        note = [protocols.NOTES[protocol]] if protocol in protocols.NOTES else []
        units = rows[rows["unit"].isin(["patient", "study"])]
        if len(units) and units["n_units"].max() < 4:
            count = phrases.count(int(units["n_units"].max()), units["unit"].iloc[0])
            note.append(f"{count}, a demonstration that allows no test")
        if note:
            said.append(f"{protocol}: {'; '.join(note)}.")
    saw = summary.loc[summary["encoder_saw_test_images"] == "yes", "encoder"].unique()
    for what, names in (("Learned from the expression of sections that are tested here, so that "
                         "their rows are no test", [name for name in saw if name in learned]),
                        ("Pretrained on test images", [name for name in saw
                                                       if name not in learned])):
        if names:
            said.append(f"{what}: {phrases.listed(map(plots.label, names))}.")
    return " ".join(said)


def features_of(folder: str | Path, section: str) -> str:
    """Name below ``features/`` of the embedding that a section was predicted from.

    Parameters
    ----------
    folder
        ``expression/<protocol>/<method>/<encoder>``. The embedding is the encoder's own or, where
        it was pretrained several times, that of the training which did not see the section.
    """
    folder = Path(folder)
    if not (folder / "members.csv").exists():
        return folder.name
    folds = artifacts.read_csv(folder / "folds.csv", dtype=str)
    members = artifacts.read_csv(folder / "members.csv", dtype=str).set_index("fold")["member"]
    own = folds.loc[(folds["role"] == "test") & (folds["section"] == section), "fold"]
    return members[own.item()]


def read_prediction(folder: str | Path, section: str):
    """Read what `Evaluation.write` wrote of one section: AnnData with measured and predicted."""
    import anndata

    path = Path(folder) / "predictions" / f"{section}.h5ad"
    if not path.exists():
        raise InputError(path, "file", "does not exist", "run 05_expression for this section")
    again = "delete it and run 05_expression again"
    with artifacts.h5_reader(path) as stream:
        artifacts.h5_sizes(stream)
    with artifacts.reading(path, fix=again):
        adata = anndata.read_h5ad(path)
    for layer in ("measured", "predicted"):
        if layer not in adata.layers:
            raise InputError(path, f"layers/{layer}", "is missing", again)
    return adata
