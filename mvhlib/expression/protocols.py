"""Folds x method -> tidy scores: the evaluation of every expression predictor.

A protocol is a table of folds (`mvhlib.cohort.splits.make`). For each fold the penalty is chosen
on inner folds of the training sections, the fit sees training sections only, and every test
section is scored by itself; see `mvhlib.expression.scores`. Variants that peek, as some authors
do, carry a note that says so.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from mvhlib import lattice, spots, statistics
from mvhlib.artifacts import InputError, sha256_of
from mvhlib.cohort.genes import UNITS
from mvhlib.cohort.genes import normalize as normalized
from mvhlib.cohort.splits import LEAKS, spot_folds
from mvhlib.expression import ridge
from mvhlib.expression.scores import (
    best_genes,
    ceiling,
    dense,
    pooled_scores,
    section_scores,
)

if TYPE_CHECKING:
    from mvhlib.features import Features

SCORE_COLUMNS = ("protocol", "fold", "study", "patient", "section", "method", "encoder",
                 "encoder_saw_test_images", "control", "panel", "program", "gene", "n_spots",
                 "pcc", "mae", "mse", "ceiling")
POOLED_COLUMNS = ("protocol", "scope", "fold", "method", "encoder", "encoder_saw_test_images",
                  "control", "panel", "program", "gene", "n_sections", "n_spots", "pcc_pooled",
                  "pcc_floor")
PENALTY_COLUMNS = ("protocol", "fold", "method", "encoder", "control", "panel", "alpha",
                   "at_edge", "inner_unit", "n_inner", "criterion", "best")
SUMMARY_COLUMNS = ("protocol", "method", "encoder", "encoder_saw_test_images", "control", "panel",
                   "program", "metric", "n_genes", "n_nan", "unit", "n_units", "mean", "ci_low",
                   "ci_high")
METRICS = ("pcc", "pcc10", "mae", "mse", "pcc_pooled", "pcc_floor")
CONTROLS = ("none", "permuted")
METHODS = ("ridge", "hest_ridge")

#: What a reader of the table must know about a protocol; printed with it.
NOTES = LEAKS | {
    "section": "spots of one patient, no inference to patients",
    "mvhybrid_bench": "genes selected with test samples; no intercept; its first fold is three "
                      "people",
    "hest_bench": "genes selected with test samples; no intercept",
}

#: Protocols of HEST-Benchmark: its regression, ln(1 + raw counts), and genes that saw the test.
BENCHMARKS = ("hest_bench", "mvhybrid_bench")

#: Printed with every fit by `ridge.hest_ridge`: its numbers depend on where the solver stops.
HEST_SOLVER = "PCA 256 and ridge by lsqr (tolerance 1e-4), penalty 100/(components x genes)"

#: What inner folds leave out together: the thing that the outer folds leave out.
INNER_UNITS = {"loso": "study", "patient": "patient", "section": "section",
               "random10_section": "patient", "random10_spot": "spots", "hest_bench": "patient",
               "mvhybrid_bench": "patient", "transfer": "patient", "within": "patient"}

#: What no fold of a protocol may have on both sides, whoever made the folds.
APART = {"loso": ("study", "patient"), "patient": ("patient",), "hest_bench": ("patient",),
         "mvhybrid_bench": ("patient",), "transfer": ("study", "patient"), "within": ("patient",)}

#: From fine to coarse; where a training set holds one unit only, the next finer one serves.
FINER = {"study": "patient", "patient": "section", "section": "block"}

#: Longest side of the thumbnail in a file of predictions [px].
SMALL_PX = 250

#: Strips that a section is cut into where it is the whole training set.
STRIPS = 4


@dataclass(frozen=True)
class Sample:
    """One section as an estimator sees it.

    Attributes
    ----------
    X
        `(T, ...)` features, tokens or tiles of its spots.
    Y
        `(T, G)` normalised expression of the fold's genes. `Estimator.predict` must not read it.
    coords
        `(T, 2)` spot centres [px], or None.
    """

    name: str
    study: str
    patient: str
    X: np.ndarray
    Y: np.ndarray
    coords: np.ndarray | None


class Estimator(Protocol):
    """A method that sees whole sections, such as `mvhlib.expression.mmap.MMAP`.

    Attributes
    ----------
    name
        Stands in the column ``method``.
    """

    name: str

    def fit(self, samples: Sequence[Sample], genes: Sequence[str], fold: str,
            seed: int) -> dict | None:
        """Learn from the training sections of a fold, afresh; anything returned is a remark."""

    def predict(self, sample: Sample) -> np.ndarray:
        """Predict the genes of the last fit, `(T, G)`."""


@dataclass(frozen=True)
class LinearFit:
    """A ridge regression that was fitted.

    Attributes
    ----------
    coef, intercept
        `(D, G)` and `(G,)`, for features as they are.
    """

    coef: np.ndarray = field(repr=False)
    intercept: np.ndarray = field(repr=False)

    def __call__(self, rows: "_Rows", chosen: np.ndarray) -> np.ndarray:
        """Predict the chosen spots of a section, `(T, G)`."""
        return ridge.predict(rows.X[chosen], self.coef, self.intercept)


@dataclass(frozen=True)
class Prediction:
    """Truth and prediction of one section, ready for layers of an AnnData.

    Attributes
    ----------
    measured, predicted
        `(T, G)` float32; NaN in `predicted` for spots that no fold tested.
    genes
        Names of the columns.
    barcodes
        Names of the rows.
    coords
        `(T, 2)` spot centres, or None where the section has none.
    fold
        The fold that tested it; several are joined by a comma (spot-level folds).
    unit
        What the values are.
    drawn
        The section's entry of ``uns["spatial"]`` with a small thumbnail, or None.
    """

    measured: np.ndarray
    predicted: np.ndarray
    genes: list[str]
    barcodes: list[str]
    coords: np.ndarray | None
    fold: str
    unit: str = ""
    drawn: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_adata(self, **about: str):
        """AnnData that scanpy and squidpy can draw as it is.

        X and the layer ``predicted`` are the prediction, the layer ``measured`` the truth;
        ``obsm["spatial"]`` and ``uns["spatial"]`` say where, and ``uns["mvh"]`` holds the unit of
        both and what is given as `about`, such as the model's name.
        """
        import anndata

        obs, var = (pd.DataFrame(index=pd.Index(names, dtype=str))
                    for names in (self.barcodes, self.genes))
        adata = anndata.AnnData(X=self.predicted, obs=obs, var=var)
        adata.layers["measured"] = self.measured
        adata.layers["predicted"] = self.predicted
        if self.coords is not None:
            adata.obsm["spatial"] = np.asarray(self.coords, dtype=np.float64)
        adata.uns["fold"] = self.fold
        adata.uns["mvh"] = {"unit": self.unit, **about}
        if self.drawn:
            adata.uns["spatial"] = dict(self.drawn)
        return adata


@dataclass
class Result:
    """What a protocol gave.

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


@dataclass
class _Rows:
    """One section, joined: what a fold needs of it."""

    name: str
    study: str
    patient: str
    X: np.ndarray
    Y: np.ndarray
    barcodes: list[str]
    coords: np.ndarray | None
    counts: np.ndarray | None
    library: np.ndarray
    parts: np.ndarray  # label per spot where folds or inner folds cut through the section
    unit: str = ""
    drawn: Mapping[str, Any] | None = None  # uns["spatial"], the thumbnail cut down


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
        _check_choice("method", method, METHODS)
    _check_choice("control", control, CONTROLS)
    alphas = ridge.check_alphas(alphas)
    if normalize is None:
        normalize = "log1p" if method == "hest_ridge" else "log1p_cp10k"
    by_spot = protocol == "random10_spot"
    if by_spot and estimator is not None:
        raise InputError("protocol", "random10_spot", f"cuts sections, and {method} reads whole "
                         "ones", "choose another protocol for it")
    plan = _plan(folds, protocol, by_spot)
    used = {name for train, test in plan.values() for name in (*train, *test)}
    members = {section.name: section for section in sections if section.name in used}
    _check_members(used, members, features, plan, protocol)
    tested = [members[name] for _, test in plan.values() for name in test]
    unseen = unseen_units(protocol, sections=[s.name for s in tested],
                          patients=[s.patient for s in tested], studies=[s.study for s in tested])
    check_overlap(pretrained_on, **unseen, claim=encoder_saw_test_images, encoder=encoder)
    genes, columns = _genes(plan, genes_by_fold)
    if normalize == "mmap" and any(len(chosen) != len(genes) for chosen in columns.values()):
        raise InputError("protocol", "normalize", "'mmap' scales by the panel, and the panels of "
                         "the folds differ", "use one panel for all folds")
    needed = {name: set() for name in used}
    for fold, (train, test) in plan.items():
        for name in (*train, *test):
            needed[name].update(genes_by_fold[fold])
    alone = {train[0] for train, _ in plan.values() if len(train) == 1}
    programs: dict[str, str] = {}
    data: dict[str, _Rows] = {}
    for name in (n for n in members if n in used):  # in the order of the cohort
        data[name] = _read(members[name], features[name], genes, needed[name], normalize, control,
                           keep_counts=ceiling_splits > 0, seed=seed,
                           as_hest=method == "hest_ridge", flat=estimator is None)
        _note_programs(programs, members[name].adata, genes, name)
        if by_spot:
            number = spot_folds(len(data[name].Y), seed, len(plan), name)
            data[name].parts = np.array(list(plan), dtype=object)[number]
        elif name in alone:
            data[name].parts = _strips(data[name].coords, len(data[name].Y))
    _check_widths(data, encoder)

    if estimator is not None:
        fits = _fit_estimator(estimator, plan, data, columns, genes_by_fold, seed)
    elif method == "ridge":
        fits = _fit_ridge(plan, data, columns, protocol, by_spot, alphas, inner_unit, criterion,
                          n_inner)
    else:
        fits = _fit_hest(plan, data, columns, by_spot)
    base = {"protocol": protocol, "method": method, "encoder": encoder, "control": control,
            "panel": panel}
    claim = {"encoder_saw_test_images": encoder_saw_test_images}
    tables, penalties, pieces = [], [], {}
    ceilings: dict[str, np.ndarray] = {}
    for fold, (_, test) in plan.items():
        predict, penalty = fits(fold)
        if penalty is not None:
            penalties.append(base | {"fold": fold} | penalty)
        for name in test:
            rows = data[name]
            chosen = rows.parts == fold if by_spot else np.ones(len(rows.Y), dtype=bool)
            if not chosen.any():
                continue
            if rows.counts is not None and name not in ceilings:
                ceilings[name] = _ceiling(rows, normalize, ceiling_splits, seed)
            measured = rows.Y[chosen][:, columns[fold]]
            predicted = predict(rows, chosen).astype(np.float32)
            names = list(genes_by_fold[fold])
            table = section_scores(measured, predicted, names)
            table["ceiling"] = ceilings[name][columns[fold]] if name in ceilings else np.nan
            table["program"] = [programs.get(gene, "") for gene in names]
            tables.append(table.assign(**base, **claim, fold=fold, study=rows.study,
                                       patient=rows.patient, section=name))
            pieces.setdefault(name, []).append((fold, np.flatnonzero(chosen), names, measured,
                                                predicted))
    scores = pd.concat(tables, ignore_index=True)[list(SCORE_COLUMNS)]
    pooled = _pool(pieces, programs, base | claim)
    notes = [NOTES[protocol]] if protocol in NOTES else []
    if method == "hest_ridge":
        notes.append(HEST_SOLVER)
    left_out = sum(len(members[n].adata) - len(data[n].Y) for n in data)
    if left_out:
        notes.append(f"{left_out} spots without a tile left out")
    if protocol == "transfer":
        predictions = {f"{part[0]}/{name}": _assemble([part], data[name])
                       for name, parts in pieces.items() for part in parts}
    else:
        predictions = {name: _assemble(parts, data[name]) for name, parts in pieces.items()}
    return Result(scores, predictions,
                  pd.DataFrame(penalties, columns=list(PENALTY_COLUMNS)), pooled, notes)


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
        _check_choice("method", name, METHODS)
    if normalize is None:
        normalize = "log1p" if name == "hest_ridge" else "log1p_cp10k"
    plan, columns = {fold: (list(train), [])}, {fold: list(range(len(genes)))}
    members = {section.name: section for section in sections if section.name in set(train)}
    _check_members(set(train), members, features, {}, "section")
    data = {name_: _read(section, features[name_], list(genes), set(genes), normalize, "none",
                         keep_counts=False, seed=seed, as_hest=name == "hest_ridge",
                         flat=estimator is None) for name_, section in members.items()}
    if len(data) == 1:
        for rows in data.values():
            rows.parts = _strips(rows.coords, len(rows.Y))
    _check_widths(data, name)
    if estimator is not None:
        _fit_estimator(estimator, plan, data, columns, {fold: list(genes)}, seed)(fold)
        return estimator
    if name == "ridge":
        return _fit_ridge(plan, data, columns, protocol, False, ridge.check_alphas(alphas), None,
                          "pcc", 8)(fold)[0]
    return LinearFit(*ridge.hest_linear(np.concatenate([data[n].X for n in train]),
                                        np.concatenate([data[n].Y for n in train])))


def joined(results: Sequence[Result], folds: Sequence[Hashable]) -> Result:
    """One result of several that share everything but their folds.

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
    over_all = _pool(pieces, dict(zip(scores["gene"], scores["program"], strict=True)), base)
    over_all = over_all[over_all["scope"] == "all"]
    return Result(scores, predictions, stacked(part.penalties for part in results),
                  pd.concat([stacked(within), over_all], ignore_index=True),
                  list(dict.fromkeys(note for part in results for note in part.notes)))


def method_name(method: "str | Estimator") -> str:
    """What stands in the column ``method``."""
    return method if isinstance(method, str) else method.name


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError("protocol", name, f"{value!r} is not known", f"use one of {list(known)}")


def _plan(folds: pd.DataFrame, protocol: str,
          by_spot: bool) -> dict[Hashable, tuple[list[str], list[str]]]:
    """Fold -> training sections, test sections, both checked."""
    missing = [name for name in ("fold", "section", "role") if name not in folds.columns]
    if missing:
        raise InputError("folds", "columns", f"lack {missing}", "use fold, section, role")
    strange = sorted(set(folds["role"]) - ({"both"} if by_spot else {"train", "test"}))
    if strange or len(folds) == 0:
        raise InputError("folds", "role", f"{strange or 'of no fold'} under {protocol}",
                         "make the folds by mvhlib.cohort.splits.make for this protocol")
    plan = {}
    for fold, frame in folds.groupby("fold", sort=False):
        train, test = (list(dict.fromkeys(frame.loc[frame["role"].isin((side, "both")), "section"]))
                       for side in ("train", "test"))
        if not train or not test:
            side = "training" if not train else "test"
            raise InputError("folds", f"fold {fold}", f"has no {side} section (one "
                             f"{INNER_UNITS.get(protocol, 'group')} cannot be left out and learned "
                             "from)", "give at least two groups, or choose another protocol")
        both = sorted(set(train) & set(test))
        if both and not by_spot:
            raise InputError("folds", f"fold {fold}", f"{both[:3]} stand on both sides",
                             "keep a section on one side")
        plan[fold] = (train, test)
    if by_spot and len(plan) < 2:
        raise InputError("folds", "fold", "spot-level folds need two or more", "name ten folds")
    tests = [name for _, test in plan.values() for name in test]
    twice = sorted({name for name in tests if tests.count(name) > 1})
    if twice and not by_spot and protocol != "transfer":
        raise InputError("folds", "section", f"{twice[:3]} are tested in more than one fold",
                         "test each section once")
    return plan


def _check_members(used: set[str], members: Mapping[str, Any], features: Mapping[str, Any],
                   plan: Mapping[Hashable, tuple[list[str], list[str]]], protocol: str) -> None:
    for what, known in (("sections", members), ("features", features)):
        missing = sorted(used - set(known))
        if missing:
            raise InputError("folds", what, f"{missing[:3]} of the folds are not among the {what}",
                             "make the folds from sections that have features")
    for level in APART.get(protocol, ()):
        groups = {getattr(section, level) for section in members.values()}
        if len(groups) < 2:
            raise InputError("folds", level, f"only {sorted(groups)} is there, {protocol} needs "
                             "two", "add another one, or choose another protocol")
        for fold, (train, test) in plan.items():
            both = {getattr(members[n], level) for n in train} & {getattr(members[n], level)
                                                                 for n in test}
            if both:
                raise InputError("folds", f"fold {fold}", f"{level} {sorted(both)} stands on both "
                                 "sides", f"leave out whole {level}s")


def unseen_units(protocol: str, *, sections: Iterable[str], patients: Iterable[str],
                 studies: Iterable[str]) -> dict[str, Iterable[str]]:
    """Of what is tested, that which an encoder that saw no test images may not have seen.

    Under ``section`` it is the sections: patient and study are shared by design, as `NOTES` says.
    Under every other protocol it is the patients and studies as well.
    """
    return {"sections": sections} if protocol == "section" else {
        "sections": sections, "patients": patients, "studies": studies}


def overlap(pretrained_on: Mapping[str, Iterable[str]], **tested: Iterable[str]) -> list[str]:
    """What an encoder was pretrained on of what is tested, in words; empty where nothing is.

    Parameters
    ----------
    pretrained_on
        Sections, patients and studies.
    tested
        From `unseen_units`.
    """
    found = []
    for level, names in tested.items():
        shared = {str(name) for name in names} & {str(n) for n in pretrained_on.get(level, ())}
        found += [f"{level} {sorted(shared)[:3]}"] if shared else []
    return found


def check_overlap(pretrained_on: Mapping[str, Iterable[str]] | None, *,
                  sections: Iterable[str] = (), patients: Iterable[str] = (),
                  studies: Iterable[str] = (), claim: str = "no", encoder: str = "encoder") -> None:
    """Refuse a row that says ``encoder_saw_test_images = no`` when the encoder did.

    Parameters
    ----------
    pretrained_on
        What the encoder's ``config.json`` lists under ``sections``, ``patients``, ``studies``;
        None where nothing is listed (hand-made or random encoders).
    sections, patients, studies
        Of the test sections.
    claim
        ``"no"``, ``"yes"`` or ``"unknown"``.
    encoder
        Named in the error.

    Raises
    ------
    InputError
        On an unknown claim, or ``"no"`` with a shared section, patient or study.
    """
    _check_choice("encoder_saw_test_images", claim, ("no", "yes", "unknown"))
    if claim != "no" or not pretrained_on:
        return
    shared = overlap(pretrained_on, sections=sections, patients=patients, studies=studies)
    if shared:
        raise InputError(encoder, "encoder_saw_test_images", f"is 'no', but it was pretrained on "
                         f"{shared[0]} of the test folds", "say 'yes', or pretrain on other tissue")


def _genes(plan, genes_by_fold) -> tuple[list[str], dict[Hashable, list[int]]]:
    """All genes of all folds in order of appearance, and each fold's columns among them."""
    for fold in plan:
        chosen = list(genes_by_fold.get(fold, ()))
        if not chosen:
            raise InputError("genes", f"fold {fold}", "has no genes",
                             "choose a panel on its training sections")
        if len(set(chosen)) != len(chosen):
            raise InputError("genes", f"fold {fold}", "names a gene twice", "name each gene once")
    genes = list(dict.fromkeys(gene for fold in plan for gene in genes_by_fold[fold]))
    place = {gene: number for number, gene in enumerate(genes)}
    return genes, {fold: [place[gene] for gene in genes_by_fold[fold]] for fold in plan}


def _read(section, features, genes: list[str], needed: set[str], normalize: str, control: str, *,
          keep_counts: bool, seed: int, as_hest: bool = False, flat: bool = True) -> _Rows:
    """Join a section's counts and features; permute the latter for the control.

    `as_hest` keeps the order of the features' file and float64 targets, as HEST-Benchmark does: its
    solver stops by a tolerance, so that numbers depend on both.
    """
    adata = section.adata
    lacking = sorted(needed - set(adata.var_names))
    if lacking:
        raise InputError(section.name, "genes", f"{len(lacking)} of the panel are not measured "
                         f"here, for example {lacking[:3]}",
                         "choose the panel among genes that all sections share")
    names = [str(name) for name in adata.obs_names]
    kept, X = spots.join(section.name, names, features, as_stored=as_hest)
    if flat and X.ndim != 2:
        raise InputError(section.name, "features", f"shape {X.shape} for {len(names)} spots",
                         "give one row per spot")
    names = [names[number] for number in kept]
    if control == "permuted":
        X = X[_stream(seed, "permuted", section.name).permutation(len(X))]
    counts = adata.layers["counts"][kept]
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    column = {gene: number for number, gene in enumerate(adata.var_names)}
    panel = np.zeros((len(names), len(genes)), dtype=np.float32)
    here = [number for number, gene in enumerate(genes) if gene in column]
    # Genes of other folds that this section lacks stay 0: no fold of this section reads them.
    panel[:, here] = dense(counts[:, [column[genes[number]] for number in here]])
    coords = adata.obsm["spatial"] if "spatial" in adata.obsm else None
    Y = (np.log1p(panel.astype(np.float64)) if as_hest and normalize == "log1p"
         else normalized(panel, normalize, library))
    return _Rows(section.name, str(section.study), str(section.patient), X, Y, names,
                 None if coords is None else np.asarray(coords, dtype=np.float64)[kept],
                 panel if keep_counts else None, library, np.zeros(len(names), dtype=np.int64),
                 UNITS[normalize], _drawn(section.name, adata))


def _drawn(name: str, adata: Any) -> dict[str, Any] | None:
    """``uns["spatial"]`` of one section, its thumbnail cut down: every prediction carries it."""
    place = next(iter(adata.uns.get("spatial", {}).values()), None)
    image = None if place is None else place.get("images", {}).get("hires")
    if image is None:
        return None
    step = max(1, -(-max(image.shape[:2]) // SMALL_PX))
    scales = dict(place["scalefactors"])
    scales["tissue_hires_scalef"] = float(scales["tissue_hires_scalef"]) / step
    return {name: {"images": {"hires": np.ascontiguousarray(image[::step, ::step])},
                   "scalefactors": scales, "metadata": {}}}


def _stream(seed: int, purpose: str, name: str) -> np.random.Generator:
    """A generator that depends on seed, purpose and section alone, not on the order of work."""
    digest = hashlib.sha256(f"{purpose}/{name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


#: Ceilings by content: every encoder, control and protocol asks for the same ones.
_CEILINGS: dict[str, np.ndarray] = {}


def _ceiling(rows: _Rows, normalize: str, n_splits: int, seed: int) -> np.ndarray:
    key = sha256_of(rows.name, rows.counts, rows.library, normalize, n_splits, seed)
    if key not in _CEILINGS:
        _CEILINGS[key] = ceiling(rows.counts, rows.library, normalize, n_splits=n_splits,
                                 rng=_stream(seed, "ceiling", rows.name))
    return _CEILINGS[key]


def _note_programs(programs: dict[str, str], adata, genes: list[str], where: str) -> None:
    if "program" not in adata.var:
        return
    for gene in genes:
        if gene in adata.var_names:
            program = str(adata.var.at[gene, "program"])
            if programs.setdefault(gene, program) != program:
                raise InputError(where, 'var["program"]', f"of {gene} is {program!r}, elsewhere "
                                 f"{programs[gene]!r}", "give a gene one program")


def _strips(coords: np.ndarray | None, n: int) -> np.ndarray:
    """Cut a section into strips of equally many spots along its longer side."""
    if coords is None:
        position = np.arange(n)
    else:
        axis = int(np.argmax(np.ptp(coords, axis=0)))
        position = coords[:, axis]
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(position, kind="stable")] = np.arange(n)
    return rank * STRIPS // max(n, 1)


def _check_widths(data: Mapping[str, _Rows], encoder: str) -> None:
    widths = {name: " x ".join(map(str, rows.X.shape[1:])) for name, rows in data.items()}
    if len(set(widths.values())) > 1:
        few = {width: next(n for n, w in widths.items() if w == width)
               for width in sorted(set(widths.values()))}
        raise InputError(encoder, "features", "differ in width: " + ", ".join(
            f"{name} has {width}" for width, name in few.items()), "use features of one encoder")


def _fit_ridge(plan, data: Mapping[str, _Rows], columns, protocol: str, by_spot: bool,
               alphas: Sequence[float], inner_unit: str | None, criterion: str, n_inner: int):
    """Gather the moments once; the returned function then solves any fold."""
    if inner_unit is not None:
        _check_choice("inner_unit", inner_unit, ("study", "patient", "section"))
    moments = ridge.GroupMoments()
    for name, rows in data.items():
        for part in dict.fromkeys(rows.parts.tolist()):
            chosen = rows.parts == part
            # Spot-level folds keep one matrix per fold: a section's own is never needed.
            moments.add(("", part) if by_spot else (name, part), rows.X[chosen], rows.Y[chosen])

    def units(groups: list[tuple], level: str) -> dict[tuple, Hashable]:
        if level in ("spots", "block"):
            return {group: group for group in groups}
        if level == "section":
            return {group: group[0] for group in groups}
        return {group: getattr(data[group[0]], level) for group in groups}

    def fit(fold):
        train = set(plan[fold][0])
        groups = [group for group in moments.groups
                  if (group[1] != fold if by_spot else group[0] in train)]
        level = "spots" if by_spot else inner_unit or INNER_UNITS.get(protocol, "section")
        while len(set(units(groups, level).values())) < 2 and level in FINER:
            level = FINER[level]
        choice = ridge.choose_alpha(moments, units(groups, level), alphas, columns=columns[fold],
                                    criterion=criterion, n_inner=n_inner)
        coef, intercept = ridge.solve(moments, groups, choice.alpha, columns[fold])
        best = (np.nan if not np.isfinite(choice.curve).any()
                else float(np.nanmax(choice.curve) if criterion == "pcc"
                           else np.nanmin(choice.curve)))
        record = {"alpha": choice.alpha, "at_edge": choice.at_edge, "inner_unit": level,
                  "n_inner": choice.n_inner, "criterion": criterion, "best": best}
        return LinearFit(coef, intercept), record

    return fit


def _fit_hest(plan, data: Mapping[str, _Rows], columns, by_spot: bool):
    """HEST-Benchmark's regression; all training spots are held at once, as theirs are."""

    def fit(fold):
        chosen = [(data[name], data[name].parts != fold if by_spot
                   else np.ones(len(data[name].Y), dtype=bool)) for name in plan[fold][0]]
        X = np.concatenate([rows.X[keep] for rows, keep in chosen])
        Y = np.concatenate([rows.Y[keep][:, columns[fold]] for rows, keep in chosen])
        tests = [data[name] for name in plan[fold][1]]
        keep = [rows.parts == fold if by_spot else np.ones(len(rows.Y), dtype=bool)
                for rows in tests]
        predicted = ridge.hest_ridge(X, Y, np.concatenate(
            [rows.X[k] for rows, k in zip(tests, keep, strict=True)]))
        # The randomised PCA is fitted once; the test sections then ask for their part in order.
        queue = iter(np.split(predicted, np.cumsum([k.sum() for k in keep])[:-1]))
        n_components = min(256, *X.shape)
        record = {"alpha": 100 / (n_components * Y.shape[1]), "at_edge": False,
                  "inner_unit": "none", "n_inner": 0, "criterion": "fixed", "best": np.nan}
        return lambda rows, chosen: next(queue), record

    return fit


def _fit_estimator(estimator: "Estimator", plan, data: Mapping[str, _Rows], columns,
                   genes_by_fold, seed: int):
    """Hand an estimator the training sections of a fold, and one test section at a time."""

    def sample(rows: _Rows, fold) -> Sample:
        return Sample(rows.name, rows.study, rows.patient, rows.X, rows.Y[:, columns[fold]],
                      rows.coords)

    def fit(fold):
        estimator.fit([sample(data[name], fold) for name in plan[fold][0]],
                      list(genes_by_fold[fold]), str(fold), seed)

        def predict(rows: _Rows, chosen: np.ndarray) -> np.ndarray:
            seen = sample(rows, fold)
            hidden = replace(seen, Y=np.full_like(seen.Y, np.nan))  # a test section has no truth
            predicted = np.asarray(estimator.predict(hidden))
            if predicted.shape != seen.Y.shape or not np.isfinite(predicted).all():
                raise InputError(rows.name, f"prediction by {estimator.name}",
                                 f"has shape {predicted.shape} for {seen.Y.shape}, or is not "
                                 "finite", "mend the estimator")
            return predicted

        return predict, None

    return fit


def _assemble(parts: list[tuple], rows: _Rows) -> Prediction:
    """The whole section from the folds that tested its spots; genes that all of them have."""
    common = set.intersection(*(set(names) for _, _, names, _, _ in parts))
    genes = [gene for gene in parts[0][2] if gene in common]
    measured = np.full((len(rows.Y), len(genes)), np.nan, dtype=np.float32)
    predicted = measured.copy()
    for _, where, names, truth, guess in parts:
        place = {gene: number for number, gene in enumerate(names)}
        columns = [place[gene] for gene in genes]
        measured[where], predicted[where] = truth[:, columns], guess[:, columns]
    return Prediction(measured, predicted, genes, rows.barcodes, rows.coords,
                      ",".join(str(part[0]) for part in parts), rows.unit, rows.drawn)


def _pool(pieces: Mapping[str, list[tuple]], programs: Mapping[str, str],
          base: Mapping[str, str]) -> pd.DataFrame:
    """Pooled correlation and floor per gene, within each fold and over all folds."""
    by_fold: dict[Hashable, list[tuple]] = {}
    for parts in pieces.values():
        for part in parts:
            by_fold.setdefault(part[0], []).append(part)
    rows = []

    def add(scope: str, fold: Hashable, parts: list[tuple]) -> None:
        members: dict[tuple, list[str]] = {}
        for gene in dict.fromkeys(gene for part in parts for gene in part[2]):
            which = tuple(n for n, part in enumerate(parts) if gene in part[2])
            members.setdefault(which, []).append(gene)
        for which, genes in members.items():  # genes that the same parts share, at once
            sides = [[part[side][:, [part[2].index(gene) for gene in genes]]
                      for part in (parts[n] for n in which)] for side in (3, 4)]
            pooled, floor = pooled_scores(*sides)
            n_spots = sum(len(part) for part in sides[0])
            for gene, value, least in zip(genes, pooled, floor, strict=True):
                rows.append(dict(base) | {
                    "scope": scope, "fold": fold, "program": programs.get(gene, ""), "gene": gene,
                    "n_sections": len(which), "n_spots": n_spots, "pcc_pooled": value,
                    "pcc_floor": least})

    for fold, parts in by_fold.items():
        add("fold", fold, parts)
    add("all", "all", [part for parts in by_fold.values() for part in parts])
    return pd.DataFrame(rows, columns=list(POOLED_COLUMNS))


def benchmark_table(pooled: pd.DataFrame) -> pd.DataFrame:
    """HEST-Benchmark's own numbers: correlation over each fold's pooled test spots.

    The mean over genes of a fold is not guarded: a gene that is constant in the test spots makes it
    NaN, as it does there. The spread is that of the population of folds (``ddof`` 0), not a
    standard error.

    Parameters
    ----------
    pooled
        `Result.pooled`, of one or several runs.

    Returns
    -------
    DataFrame
        Columns protocol, method, encoder, control, panel, n_folds, pearson_mean, pearson_std.
    """
    keys = ["protocol", "method", "encoder", "control", "panel"]
    own = pooled[pooled["scope"] == "fold"].fillna({"panel": ""})
    rows = []
    for values, part in own.groupby(keys, sort=False):
        folds = [gene["pcc_pooled"].to_numpy().mean() for _, gene in part.groupby("fold")]
        rows.append((*values, len(folds), float(np.mean(folds)), float(np.std(folds))))
    return pd.DataFrame(rows, columns=[*keys, "n_folds", "pearson_mean", "pearson_std"])


def summarise(scores: pd.DataFrame, unit: str, *, pooled: pd.DataFrame | None = None,
              predictions: Mapping[str, Prediction] | None = None, confidence: float = 0.95,
              n_boot: int = 999, seed: int = 0) -> pd.DataFrame:
    """Rows of ``summary.csv``: means over units, with the interval that the units allow.

    Scores are averaged over genes within a section, over sections within a unit, and the interval
    is Student's t over units. NaN correlations are left out of the mean and counted in ``n_nan``
    (gene x section). Where one patient's sections are replicates
    (protocol ``section`` within one patient) no unit is left: the interval is then by spatial
    blocks, ``unit`` is ``block``, and it speaks of the spots of this patient only.

    Metric ``pcc10`` is the mean of the ten genes that score best on the test sections of a fold:
    biased upward by selection. ``pcc_pooled`` and ``pcc_floor`` are per fold (``unit`` is
    ``fold``).

    Parameters
    ----------
    scores
        Columns `SCORE_COLUMNS`; several encoders, protocols and controls may stand together.
    unit
        ``"patient"`` or ``"study"``.
    pooled
        `Result.pooled`, for the pooled metrics.
    predictions
        Section -> `Prediction`, for the interval by spatial blocks; the mean stands alone without.
        Of one encoder and control: with several in `scores`, summarise them one by one.
    confidence, n_boot, seed
        Of the intervals, the last two of the block bootstrap.

    Returns
    -------
    pd.DataFrame
        Columns `SUMMARY_COLUMNS`; program ``all`` and, where genes have programs, each of them.

    Raises
    ------
    InputError
        On an unknown unit or missing columns.
    """
    _check_choice("unit", unit, ("patient", "study"))
    missing = [name for name in SCORE_COLUMNS if name not in scores.columns]
    if missing:
        raise InputError("scores", "columns", f"lack {missing}", "use the scores of run()")
    keys = ["protocol", "method", "encoder", "encoder_saw_test_images", "control", "panel"]
    # Read from a csv, an empty panel or program is missing; groups of it would be dropped.
    scores = scores.fillna({"panel": "", "program": ""})
    pooled = None if pooled is None else pooled.fillna({"panel": "", "program": ""})
    n_series = len(scores[keys].drop_duplicates())
    if predictions is not None and n_series > 1:
        raise InputError("summarise", "predictions", f"belong to one of {n_series} series in the "
                         "scores", "summarise each result by itself and join the tables")
    rows = []
    for values, frame in scores.groupby(keys, sort=False):
        head = dict(zip(keys, values, strict=True))
        pools = None if pooled is None else pooled[
            (pooled[keys] == pd.Series(head)).all(axis=1) & (pooled["scope"] == "fold")]
        named = [p for p in dict.fromkeys(frame["program"]) if p != ""]
        for program in ("all", *sorted(named)):
            part = frame if program == "all" else frame[frame["program"] == program]
            pool = pools if pools is None or program == "all" else pools[
                pools["program"] == program]
            rows += [head | {"program": program} | row for row in _summaries(
                part, unit, pool, predictions, confidence, n_boot, seed)]
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def _summaries(frame: pd.DataFrame, unit: str, pooled: pd.DataFrame | None, predictions,
               confidence: float, n_boot: int, seed: int) -> Iterable[dict]:
    blocks = frame["protocol"].iloc[0] == "section" and frame["patient"].nunique() == 1
    best = {fold: best_genes(part) for fold, part in frame.groupby("fold", sort=False)}
    chosen = np.fromiter((gene in best[fold] for fold, gene in
                          zip(frame["fold"], frame["gene"], strict=True)), bool, len(frame))
    if blocks and predictions is not None:
        resampled = _block_intervals(frame, predictions, best, confidence, n_boot, seed)
    for metric in ("pcc", "pcc10", "mae", "mse"):
        part = frame[chosen] if metric == "pcc10" else frame
        column = "pcc" if metric == "pcc10" else metric
        label = unit
        if blocks:
            label = "block"
            interval = resampled[metric] if predictions is not None else statistics.Interval(
                float(statistics.unit_means(part, "section", value=column,
                                            within=["fold"]).mean()), np.nan, np.nan, 0, "none")
        else:
            interval = statistics.t_interval(statistics.unit_means(
                part, unit, value=column, within=["fold"]), confidence)
        yield {"metric": metric, "n_genes": part["gene"].nunique(),
               "n_nan": int(part[column].isna().sum()), "unit": label, "n_units": interval.n,
               "mean": interval.mean, "ci_low": interval.low, "ci_high": interval.high}
    if pooled is None:
        return
    for metric in ("pcc_pooled", "pcc_floor"):
        interval = statistics.t_interval(pooled.groupby("fold")[metric].mean(), confidence)
        yield {"metric": metric, "n_genes": pooled["gene"].nunique(),
               "n_nan": int(pooled[metric].isna().sum()), "unit": "fold", "n_units": interval.n,
               "mean": interval.mean, "ci_low": interval.low, "ci_high": interval.high}


def _block_intervals(frame: pd.DataFrame, predictions: Mapping[str, Prediction],
                     best: Mapping[Hashable, list[str]], confidence: float, n_boot: int,
                     seed: int) -> dict[str, statistics.Interval]:
    """Intervals of the four metrics by resampling blocks of spots within each section."""
    sums, masks = [], []  # sections without any known correlation are left out
    for (name, fold), part in frame.groupby(["section", "fold"], sort=True):
        prediction = predictions.get(name)
        if prediction is None or prediction.coords is None:
            raise InputError(name, "predictions", "are missing, or without coordinates",
                             "pass the predictions of run() on sections with obsm['spatial']")
        place = {gene: number for number, gene in enumerate(prediction.genes)}
        genes = list(part["gene"])
        columns = [place[gene] for gene in genes]
        blocks = lattice.spatial_blocks(prediction.coords)
        sums.append(_block_sums(prediction.measured[:, columns].astype(np.float64),
                                prediction.predicted[:, columns].astype(np.float64), blocks))
        known = part["pcc"].notna().to_numpy()
        if not known.any():
            sums.pop()
            continue
        masks.append((known, known & np.isin(genes, best[fold])))

    def statistic(metric: str, weights: list[np.ndarray]) -> np.ndarray:
        return np.mean([_metric_of_sums(metric, w, s, mask[metric == "pcc10"])
                        for w, s, mask in zip(weights, sums, masks, strict=True)], axis=0)

    result = {}
    for metric in ("pcc", "pcc10", "mae", "mse"):
        counts = [s.shape[0] for s in sums]
        if not counts:
            result[metric] = statistics.Interval(np.nan, np.nan, np.nan, 0, "none")
            continue
        whole = statistic(metric, [np.ones((1, number)) for number in counts])[0]
        result[metric] = statistics.spatial_block_bootstrap(
            whole, lambda weights, metric=metric: statistic(metric, weights), counts, confidence,
            n_boot=n_boot, rng=np.random.default_rng(seed))
    return result


def _block_sums(measured: np.ndarray, predicted: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Per block: spots, sums, squares, products, absolute and squared errors, `(K, 8, G)`."""
    error = predicted - measured
    # About the section's means, so that little is cancelled when blocks are combined.
    m, p = measured - measured.mean(axis=0), predicted - predicted.mean(axis=0)
    parts = (np.ones_like(m), m, p, m**2, p**2, m * p, np.abs(error), error**2)
    member = np.zeros((blocks.max() + 1, len(blocks)))
    member[blocks, np.arange(len(blocks))] = 1.0
    return np.stack([member @ part for part in parts], axis=1)


def _metric_of_sums(metric: str, weights: np.ndarray, sums: np.ndarray,
                    genes: np.ndarray) -> np.ndarray:
    """Mean over genes of a metric, for every row of block weights `(R, K)`; `(R,)`."""
    n = weights @ sums[:, 0, :1]  # (R, 1)
    if metric in ("mae", "mse"):
        return ((weights @ sums[:, 6 if metric == "mae" else 7]) / n).mean(axis=1)
    m, p, mm, pp, mp = (weights @ sums[:, k][:, genes] for k in range(1, 6))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (mp - m * p / n) / np.sqrt((mm - m**2 / n) * (pp - p**2 / n))
    r[~np.isfinite(r)] = np.nan
    known = np.isfinite(r)
    return np.where(known.any(axis=1), np.where(known, r, 0).sum(axis=1)
                    / np.maximum(known.sum(axis=1), 1), np.nan)
