"""Co-expression of genes, measured and predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.expression.scores import is_constant
from mvhlib.expression.structure.gene_set_scores import maps_of


@dataclass(frozen=True)
class CoExpression:
    """Gene-gene correlation of truth and prediction, in one order.

    Attributes
    ----------
    genes
        In the order of a clustering of the truth.
    measured, predicted
        Correlation matrices `(G, G)`, means over sections of within-section correlations.
    mantel_r, mantel_p
        Correlation of both matrices' entries off the diagonal, and its one-sided p.
    frobenius
        Norm of their difference, off the diagonal.
    frobenius_share
        The same as a share of the truth's own norm: 0 perfect, 1 as far off as predicting
        independent genes.
    inflation
        Mean absolute correlation of the prediction over that of the truth. Above 1 is the rule:
        counting noise weakens the truth's, and a linear model predicts few independent patterns.
    n_sections
        Sections that were averaged.
    left_out
        Genes that do not vary in some section.
    """

    genes: list[str]
    measured: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    mantel_r: float
    mantel_p: float
    frobenius: float
    frobenius_share: float
    inflation: float
    n_sections: int
    left_out: list[str]

    def record(self) -> dict[str, Any]:
        """Return the numbers as a row of a table."""
        return {"n_genes": len(self.genes), "n_sections": self.n_sections,
                "mantel_r": self.mantel_r, "mantel_p": self.mantel_p, "frobenius": self.frobenius,
                "frobenius_share": self.frobenius_share, "inflation": self.inflation,
                "n_left_out": len(self.left_out)}


def mantel(a: np.ndarray, b: np.ndarray, *, n_permutations: int = 999,
           rng: np.random.Generator) -> tuple[float, float]:
    """Mantel's r of two symmetric matrices and its one-sided p.

    Pearson's correlation of the entries above the diagonal; under the null, rows and columns of one
    matrix are permuted together, since its entries are not independent of each other (Mantel,
    "The detection of disease clustering", Cancer Research 1967). The observed order counts as one
    permutation.

    Returns
    -------
    tuple of float
        r and p; both NaN where a matrix is constant off its diagonal.

    Raises
    ------
    InputError
        On shapes that differ, matrices that are not symmetric or smaller than 3 x 3.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) < 3:
        raise InputError("mantel", "shape", f"{a.shape} against {b.shape}",
                         "give two square matrices of three rows or more")
    if not (np.isfinite(a).all() and np.isfinite(b).all()
            and np.allclose(a, a.T) and np.allclose(b, b.T)):
        raise InputError("mantel", "matrix", "is not finite or not symmetric",
                         "give correlations or distances")
    n = len(a)
    off = ~np.eye(n, dtype=bool)
    x, y = (np.where(off, m - m[off].mean(), 0.0) for m in (a, b))
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    if np.ptp(a[off]) <= 1e-12 or np.ptp(b[off]) <= 1e-12:
        return float("nan"), float("nan")
    observed = float((x * y).sum() / norm)
    above = 0
    for _ in range(n_permutations):
        order = rng.permutation(n)
        above += (x * y[np.ix_(order, order)]).sum() / norm >= observed - 1e-12
    return float(np.clip(observed, -1, 1)), float((1 + above) / (1 + n_permutations))


def cluster_order(correlation: np.ndarray) -> np.ndarray:
    """Order rows so that similar ones are neighbours.

    Leaves of an average-linkage tree on `1 - r`, in the optimal order (Bar-Joseph et al.,
    Bioinformatics 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = np.clip(1 - (correlation + correlation.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def varying(predictions: Mapping[str, Any]) -> list[str]:
    """Genes that vary in every section, in the truth and in the prediction."""
    shared: dict[str, int] = {}
    for section, prediction in predictions.items():
        measured, predicted, names = maps_of(section, prediction)
        still = ~(is_constant(measured) | is_constant(predicted))
        for name, keep in zip(names, still, strict=True):
            shared[name] = shared.get(name, 0) + bool(keep)
    return [name for name, count in shared.items() if count == len(predictions)]


def co_expression(predictions: Mapping[str, Any], genes: Sequence[str] | None = None, *,
                  n_permutations: int = 999, seed: int = 0) -> CoExpression:
    """Compare gene-gene correlations of truth and prediction, within sections.

    Parameters
    ----------
    predictions
        As in `score_sets`.
    genes
        Which; None takes those that all sections have.
    n_permutations, seed
        Of Mantel's test.

    Raises
    ------
    InputError
        Where fewer than three genes vary in every section.
    """
    maps = {section: maps_of(section, prediction) for section, prediction in predictions.items()}
    if not maps:
        raise InputError("co-expression", "sections", "none was given", "give predictions")
    names = list(next(iter(maps.values()))[2] if genes is None else genes)
    shared = set.intersection(*(set(each[2]) for each in maps.values()))
    lacking = [name for name in names if name not in shared]
    if genes is not None and lacking:
        raise InputError("co-expression", "genes", f"{lacking[:3]} are not predicted in every "
                         "section", "choose genes of the panel")
    names = [name for name in names if name in shared]
    picked = []
    for measured, predicted, known in maps.values():
        place = {name: number for number, name in enumerate(known)}
        columns = [place[name] for name in names]
        picked.append((measured[:, columns], predicted[:, columns]))
    varies = np.ones(len(names), dtype=bool)
    for pair in picked:
        for values in pair:
            varies &= ~is_constant(values)
    if varies.sum() < 3:
        raise InputError("co-expression", "genes", f"{varies.sum()} vary in every section",
                         "choose genes that are found in every section")
    truth, guess = (np.mean([np.corrcoef(pair[side][:, varies], rowvar=False) for pair in picked],
                            axis=0) for side in (0, 1))
    order = cluster_order(truth)
    truth, guess = (matrix[np.ix_(order, order)] for matrix in (truth, guess))
    r, p = mantel(truth, guess, n_permutations=n_permutations, rng=np.random.default_rng(seed))
    off = ~np.eye(len(order), dtype=bool)
    error, size = np.linalg.norm((guess - truth)[off]), np.linalg.norm(truth[off])
    kept = [name for name, keep in zip(names, varies, strict=True) if keep]
    return CoExpression([kept[number] for number in order], truth, guess, r, p, float(error),
                        float(error / size), float(np.abs(guess[off]).mean()
                                                   / np.abs(truth[off]).mean()),
                        len(picked), [n for n, keep in zip(names, varies, strict=True) if not keep])
