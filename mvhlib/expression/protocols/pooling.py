"""Pooling over folds: whole sections, and correlations over pooled spots."""

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd

from mvhlib.expression.protocols.records import POOLED_COLUMNS, Prediction
from mvhlib.expression.protocols.rows import Rows
from mvhlib.expression.scores import pooled_scores


def assemble(parts: list[tuple], rows: Rows) -> Prediction:
    """Assemble a section from the folds that tested its spots, with the genes that all have."""
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


def pool_folds(pieces: Mapping[str, list[tuple]], programs: Mapping[str, str],
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
        for which, genes in members.items():  # genes of the same parts are pooled at once
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
