"""Run a protocol: read, guard, fit every fold, score every test section."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.splits import LEAKS, spot_folds
from mvhlib.expression import ridge
from mvhlib.expression.protocols.fits import (
    HEST_SOLVER,
    LinearFit,
    fit_estimator,
    fit_hest,
    fit_ridge,
)
from mvhlib.expression.protocols.guards import (
    check_members,
    check_overlap,
    checked_plan,
    unseen_units,
)
from mvhlib.expression.protocols.pooling import assemble, pool_folds
from mvhlib.expression.protocols.records import (
    CONTROLS,
    METHODS,
    PENALTY_COLUMNS,
    SCORE_COLUMNS,
    Estimator,
    Prediction,
    check_choice,
    method_name,
)
from mvhlib.expression.protocols.rows import (
    Rows,
    attainable,
    check_widths,
    cut_strips,
    genes_of_folds,
    note_programs,
    read_rows,
)
from mvhlib.expression.protocols.summary import summarise
from mvhlib.expression.scores import section_scores

if TYPE_CHECKING:
    from mvhlib.features import Features

#: What a reader of the table must know about a protocol; printed with it.
NOTES = LEAKS | {
    "section": "spots of one patient, no inference to patients",
    "mvhybrid_bench": "genes selected with test samples; no intercept; its first fold is three "
                      "people",
    "hest_bench": "genes selected with test samples; no intercept",
}

#: Protocols of HEST-Benchmark: its regression, ln(1 + raw counts), and genes that saw the test.
BENCHMARKS = ("hest_bench", "mvhybrid_bench")


@dataclass
class Result:
    """Results of one encoder under one protocol.

    Attributes
    ----------
    scores
        Columns `SCORE_COLUMNS`, one row per fold, test section and gene.
    predictions
        Section -> `Prediction`; of ``transfer``, whose sections are tested by several groups,
        ``<fold>/<section>``.
    penalties
        Columns `PENALTY_COLUMNS`, one row per fold.
    pooled
        Columns `POOLED_COLUMNS`: correlation over the pooled spots of each fold's test sections
        (scope ``fold``, as HEST-Benchmark has it) and of all test sections (scope ``all``), with
        its floor. Over all sections of a leave-one-study-out run it may be negative: each study is
        predicted by the mean of the others, which is low where the study itself is high.
    notes
        What a reader of the table must know.
    """

    scores: pd.DataFrame
    predictions: dict[str, Prediction] = field(repr=False)
    penalties: pd.DataFrame
    pooled: pd.DataFrame
    notes: list[str]

    def summary(self, unit: str) -> pd.DataFrame:
        """Rows of ``summary.csv``; see `summarise`."""
        return summarise(self.scores, unit, pooled=self.pooled, predictions=self.predictions)


# A keyword for each choice that the tables name: a settings object would only be filled in once.
def run(sections: Iterable[Any], features: "Mapping[str, Features | np.ndarray]",
        folds: pd.DataFrame, protocol: str,
        genes_by_fold: Mapping[Hashable, Sequence[str]], *, encoder: str,
        method: "str | Estimator" = "ridge", control: str = "none", panel: str = "",
        alphas: Sequence[float] = ridge.DEFAULT_ALPHAS, inner_unit: str | None = None,
        criterion: str = "pcc", n_inner: int = 8,
        normalize: str | None = None, ceiling_splits: int = 5,
        encoder_saw_test_images: str = "no",
        pretrained_on: Mapping[str, Iterable[str]] | None = None, seed: int = 0) -> Result:
    """Evaluate one encoder by one protocol.

    Parameters
    ----------
    sections
        Objects with ``name``, ``study``, ``patient`` and ``adata`` (raw counts in
        ``layers["counts"]``, optionally ``var["program"]`` and ``obsm["spatial"]``), such as a
        `Cohort`. Only those that the folds name are read.
    features
        Section -> `Features`, joined on barcode, spots without a tile left out; or a plain array
        with one row per spot in the section's own order.
    folds
        Columns ``fold, section, role`` (``train``, ``test`` or ``both``).
    protocol
        Its name in the tables. For ``random10_spot``, `splits.spot_folds` deals the spots of every
        section to the folds with `seed`: give the seed that the folds were made with.
    genes_by_fold
        Fold -> genes, chosen on that fold's training sections.
    encoder
        Its slug in the tables.
    method
        ``"ridge"`` (standardised features, intercept, inner-fold penalty) or ``"hest_ridge"``
        (HEST-Benchmark's regression as it is; `alphas` is not used), or an `Estimator`, whose
        features may have any shape `(T, ...)`.
    control
        ``"permuted"``: rows of the features are permuted within each section, in training and
        test, which leaves nothing to predict but what a section's mean gives away.
    panel
        Name of the gene panel in the tables.
    alphas, criterion, n_inner
        See `ridge.choose_alpha`.
    inner_unit
        ``"study"``, ``"patient"`` or ``"section"``: what inner folds leave out together. None: what
        the protocol's outer folds leave out. Where a fold's training set has one such unit only,
        the next finer one is used, down to strips of a single section; the penalties say which.
    normalize
        See `mvhlib.cohort.genes.normalize`. None: ``"log1p_cp10k"``, and ``"log1p"`` (no library
        size) for ``hest_ridge``.
    ceiling_splits
        Splits for the attainable ceiling; 0 leaves the column empty.
    encoder_saw_test_images
        ``"no"``, ``"yes"`` or ``"unknown"``.
    pretrained_on
        ``{"sections": ..., "patients": ..., "studies": ...}`` that the encoder was pretrained on;
        see `check_overlap`.
    seed
        Of permutations, spot folds and count splits.

    Returns
    -------
    Result

    Raises
    ------
    InputError
        On folds without training or test sections or with a section on both sides, sections or
        features that are missing, features that are not finite, do not join or differ in width,
        genes that a section lacks, and on an encoder that claims to be clean and is not.
    """
    estimator = None if isinstance(method, str) else method
    method = method_name(method)
    if estimator is None:
        check_choice("method", method, METHODS)
    check_choice("control", control, CONTROLS)
    alphas = ridge.check_alphas(alphas)
    if normalize is None:
        normalize = "log1p" if method == "hest_ridge" else "log1p_cp10k"
    by_spot = protocol == "random10_spot"
    if by_spot and estimator is not None:
        raise InputError("protocol", "random10_spot", f"cuts sections, and {method} reads whole "
                         "ones", "choose another protocol for it")
    plan = checked_plan(folds, protocol, by_spot)
    used = {name for train, test in plan.values() for name in (*train, *test)}
    members = {section.name: section for section in sections if section.name in used}
    check_members(used, members, features, plan, protocol)
    tested = [members[name] for _, test in plan.values() for name in test]
    unseen = unseen_units(protocol, sections=[s.name for s in tested],
                          patients=[s.patient for s in tested], studies=[s.study for s in tested])
    check_overlap(pretrained_on, **unseen, claim=encoder_saw_test_images, encoder=encoder)
    genes, columns = genes_of_folds(plan, genes_by_fold)
    if normalize == "mmap" and any(len(chosen) != len(genes) for chosen in columns.values()):
        raise InputError("protocol", "normalize", "'mmap' scales by the panel, and the panels of "
                         "the folds differ", "use one panel for all folds")
    data, programs = _read_all(plan, members, features, genes, genes_by_fold, normalize, control,
                               keep_counts=ceiling_splits > 0, seed=seed, by_spot=by_spot,
                               as_hest=method == "hest_ridge", flat=estimator is None)
    check_widths(data, encoder)
    if estimator is not None:
        fits = fit_estimator(estimator, plan, data, columns, genes_by_fold, seed)
    elif method == "ridge":
        fits = fit_ridge(plan, data, columns, protocol, by_spot, alphas, inner_unit, criterion,
                         n_inner)
    else:
        fits = fit_hest(plan, data, columns, by_spot)
    about = {"protocol": protocol, "method": method, "encoder": encoder, "control": control,
             "panel": panel, "encoder_saw_test_images": encoder_saw_test_images}
    scores, penalties, pieces = _score_folds(plan, data, fits, columns, genes_by_fold, programs,
                                             about, normalize, ceiling_splits, seed, by_spot)
    pooled = pool_folds(pieces, programs, about)
    notes = [NOTES[protocol]] if protocol in NOTES else []
    if method == "hest_ridge":
        notes.append(HEST_SOLVER)
    left_out = sum(len(members[n].adata) - len(data[n].Y) for n in data)
    if left_out:
        notes.append(f"{left_out} spots without a tile left out")
    predictions = _predictions(pieces, data, by_fold=protocol == "transfer")
    return Result(scores, predictions, penalties, pooled, notes)


def _read_all(plan, members: Mapping[str, Any], features: Mapping[str, Any], genes: list[str],
              genes_by_fold: Mapping[Hashable, Sequence[str]], normalize: str, control: str, *,
              keep_counts: bool, seed: int, as_hest: bool, flat: bool, by_spot: bool
              ) -> tuple[dict[str, Rows], dict[str, str]]:
    """Rows of every section that a fold names, in the cohort's order; and each gene's program."""
    needed = {name: set() for name in members}
    for fold, (train, test) in plan.items():
        for name in (*train, *test):
            needed[name].update(genes_by_fold[fold])
    alone = {train[0] for train, _ in plan.values() if len(train) == 1}
    programs: dict[str, str] = {}
    data: dict[str, Rows] = {}
    for name, section in members.items():
        data[name] = read_rows(section, features[name], genes, needed[name], normalize, control,
                               keep_counts=keep_counts, seed=seed, as_hest=as_hest, flat=flat)
        note_programs(programs, section.adata, genes, name)
        if by_spot:
            number = spot_folds(len(data[name].Y), seed, len(plan), name)
            data[name].parts = np.array(list(plan), dtype=object)[number]
        elif name in alone:
            data[name].parts = cut_strips(data[name].coords, len(data[name].Y))
    return data, programs


def _score_folds(plan, data: Mapping[str, Rows], fits: Callable, columns,
                 genes_by_fold: Mapping[Hashable, Sequence[str]], programs: Mapping[str, str],
                 about: Mapping[str, str], normalize: str, ceiling_splits: int, seed: int,
                 by_spot: bool) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, list[tuple]]]:
    """Fit fold by fold and score every test section.

    Returns
    -------
    scores, penalties
        See `Result`.
    pieces
        Section -> fold, spots, genes, truth and prediction of each fold that tested it.
    """
    tables, penalties, pieces = [], [], {}
    ceilings: dict[str, np.ndarray] = {}
    for fold, (_, test) in plan.items():
        predict, penalty = fits(fold)
        if penalty is not None:
            penalties.append({**about, "fold": fold} | penalty)
        for name in test:
            rows = data[name]
            chosen = rows.parts == fold if by_spot else np.ones(len(rows.Y), dtype=bool)
            if not chosen.any():
                continue
            if rows.counts is not None and name not in ceilings:
                ceilings[name] = attainable(rows, normalize, ceiling_splits, seed)
            measured = rows.Y[chosen][:, columns[fold]]
            predicted = predict(rows, chosen).astype(np.float32)
            names = list(genes_by_fold[fold])
            table = section_scores(measured, predicted, names)
            table["ceiling"] = ceilings[name][columns[fold]] if name in ceilings else np.nan
            table["program"] = [programs.get(gene, "") for gene in names]
            tables.append(table.assign(**about, fold=fold, study=rows.study,
                                       patient=rows.patient, section=name))
            pieces.setdefault(name, []).append((fold, np.flatnonzero(chosen), names, measured,
                                                predicted))
    scores = pd.concat(tables, ignore_index=True)[list(SCORE_COLUMNS)]
    return scores, pd.DataFrame(penalties, columns=list(PENALTY_COLUMNS)), pieces


def _predictions(pieces: Mapping[str, list[tuple]], data: Mapping[str, Rows], *,
                 by_fold: bool) -> dict[str, Prediction]:
    """Predictions by section; by ``<fold>/<section>`` where several groups test a section."""
    if by_fold:
        return {f"{part[0]}/{name}": assemble([part], data[name])
                for name, parts in pieces.items() for part in parts}
    return {name: assemble(parts, data[name]) for name, parts in pieces.items()}


def fit_on(sections: Iterable[Any], features: "Mapping[str, Features | np.ndarray]",
           train: Sequence[str], protocol: str, genes: Sequence[str], *,
           method: "str | Estimator" = "ridge", normalize: str | None = None, fold: str = "all",
           alphas: Sequence[float] = ridge.DEFAULT_ALPHAS, seed: int = 0
           ) -> "LinearFit | Estimator":
    """Fit on the named sections as `run` fits a fold of a protocol, and keep the fit.

    Parameters
    ----------
    sections, features, method, normalize, alphas, seed
        As in `run`.
    train
        Sections in the order in which the folds name them.
    protocol
        Says what inner folds leave out together.
    genes
        All of which every training section has measured.
    fold
        What an estimator's state is kept under.

    Returns
    -------
    LinearFit or Estimator
        With `train` and `genes` of a fold it gives that fold's predictions.

    Raises
    ------
    InputError
        As `run`.
    """
    estimator = None if isinstance(method, str) else method
    name = method_name(method)
    if estimator is None:
        check_choice("method", name, METHODS)
    if normalize is None:
        normalize = "log1p" if name == "hest_ridge" else "log1p_cp10k"
    plan, columns = {fold: (list(train), [])}, {fold: list(range(len(genes)))}
    members = {section.name: section for section in sections if section.name in set(train)}
    check_members(set(train), members, features, {}, "section")
    data = {name_: read_rows(section, features[name_], list(genes), set(genes), normalize, "none",
                             keep_counts=False, seed=seed, as_hest=name == "hest_ridge",
                             flat=estimator is None) for name_, section in members.items()}
    if len(data) == 1:
        for rows in data.values():
            rows.parts = cut_strips(rows.coords, len(rows.Y))
    check_widths(data, name)
    if estimator is not None:
        fit_estimator(estimator, plan, data, columns, {fold: list(genes)}, seed)(fold)
        return estimator
    if name == "ridge":
        return fit_ridge(plan, data, columns, protocol, False, ridge.check_alphas(alphas), None,
                         "pcc", 8)(fold)[0]
    return LinearFit(*ridge.hest_linear(np.concatenate([data[n].X for n in train]),
                                        np.concatenate([data[n].Y for n in train])))


def joined(results: Sequence[Result], folds: Sequence[Hashable]) -> Result:
    """Join results that differ in their folds alone.

    Parameters
    ----------
    results
        Of `run`, each with folds and test sections of its own; not of folds by spot.
    folds
        All folds in the order of the tables.
    """
    if len(results) == 1:
        return results[0]
    names = {str(fold): fold for fold in folds}
    place = {fold: number for number, fold in enumerate(folds)}

    def stacked(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
        table = pd.concat(tables, ignore_index=True)
        return table.sort_values("fold", key=lambda column: column.map(place), kind="stable",
                                 ignore_index=True)

    scores = stacked(part.scores for part in results)
    predictions = {name: part for result in results for name, part in result.predictions.items()}
    in_order = sorted(predictions, key=lambda name: place[names[predictions[name].fold]])
    pieces = {name: [(names[p.fold], None, p.genes, p.measured, p.predicted)]
              for name, p in ((name, predictions[name]) for name in in_order)}
    within = [part.pooled[part.pooled["scope"] == "fold"] for part in results]
    base = within[0].iloc[0][["protocol", "method", "encoder", "encoder_saw_test_images", "control",
                              "panel"]].to_dict()
    over_all = pool_folds(pieces, dict(zip(scores["gene"], scores["program"], strict=True)), base)
    over_all = over_all[over_all["scope"] == "all"]
    return Result(scores, predictions, stacked(part.penalties for part in results),
                  pd.concat([stacked(within), over_all], ignore_index=True),
                  list(dict.fromkeys(note for part in results for note in part.notes)))
