"""A section as a fold reads it: counts and features joined, genes in the folds' order."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvhlib import spots
from mvhlib.artifacts import InputError, sha256_of
from mvhlib.cohort.genes import UNITS
from mvhlib.cohort.genes import normalize as normalized
from mvhlib.expression.scores import ceiling, dense

#: Longest side of the thumbnail in a file of predictions [px].
SMALL_PX = 250

#: Strips that a section is cut into where it is the whole training set.
STRIPS = 4


@dataclass
class Rows:
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


def genes_of_folds(plan, genes_by_fold) -> tuple[list[str], dict[Hashable, list[int]]]:
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


def read_rows(section, features, genes: list[str], needed: set[str], normalize: str, control: str,
              *, keep_counts: bool, seed: int, as_hest: bool = False, flat: bool = True) -> Rows:
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
        X = X[stream(seed, "permuted", section.name).permutation(len(X))]
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
    return Rows(section.name, str(section.study), str(section.patient), X, Y, names,
                None if coords is None else np.asarray(coords, dtype=np.float64)[kept],
                panel if keep_counts else None, library, np.zeros(len(names), dtype=np.int64),
                UNITS[normalize], _drawn(section.name, adata))


def _drawn(name: str, adata: Any) -> dict[str, Any] | None:
    """Copy one section's ``uns["spatial"]`` with a smaller thumbnail, for its predictions."""
    place = next(iter(adata.uns.get("spatial", {}).values()), None)
    image = None if place is None else place.get("images", {}).get("hires")
    if image is None:
        return None
    step = max(1, -(-max(image.shape[:2]) // SMALL_PX))
    scales = dict(place["scalefactors"])
    scales["tissue_hires_scalef"] = float(scales["tissue_hires_scalef"]) / step
    return {name: {"images": {"hires": np.ascontiguousarray(image[::step, ::step])},
                   "scalefactors": scales, "metadata": {}}}


def stream(seed: int, purpose: str, name: str) -> np.random.Generator:
    """A generator that depends on seed, purpose and section alone, not on the order of work."""
    digest = hashlib.sha256(f"{purpose}/{name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


#: Ceilings by content: every encoder, control and protocol asks for the same ones.
_CEILINGS: dict[str, np.ndarray] = {}


def attainable(rows: Rows, normalize: str, n_splits: int, seed: int) -> np.ndarray:
    key = sha256_of(rows.name, rows.counts, rows.library, normalize, n_splits, seed)
    if key not in _CEILINGS:
        _CEILINGS[key] = ceiling(rows.counts, rows.library, normalize, n_splits=n_splits,
                                 rng=stream(seed, "ceiling", rows.name))
    return _CEILINGS[key]


def note_programs(programs: dict[str, str], adata, genes: list[str], where: str) -> None:
    if "program" not in adata.var:
        return
    for gene in genes:
        if gene in adata.var_names:
            program = str(adata.var.at[gene, "program"])
            if programs.setdefault(gene, program) != program:
                raise InputError(where, 'var["program"]', f"of {gene} is {program!r}, elsewhere "
                                 f"{programs[gene]!r}", "give a gene one program")


def cut_strips(coords: np.ndarray | None, n: int) -> np.ndarray:
    """Cut a section into strips of equally many spots along its longer side."""
    if coords is None:
        position = np.arange(n)
    else:
        axis = int(np.argmax(np.ptp(coords, axis=0)))
        position = coords[:, axis]
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(position, kind="stable")] = np.arange(n)
    return rank * STRIPS // max(n, 1)


def check_widths(data: Mapping[str, Rows], encoder: str) -> None:
    widths = {name: " x ".join(map(str, rows.X.shape[1:])) for name, rows in data.items()}
    if len(set(widths.values())) > 1:
        few = {width: next(n for n, w in widths.items() if w == width)
               for width in sorted(set(widths.values()))}
        raise InputError(encoder, "features", "differ in width: " + ", ".join(
            f"{name} has {width}" for width, name in few.items()), "use features of one encoder")
