"""Scores of predicted expression, per gene and section first, and their ceilings.

Pearson correlation is taken over the spots of one section, because offsets between sections
(another library, another stain) inflate a correlation over pooled spots. Where pooled correlation
is wanted, as HEST-Benchmark reports it, its floor stands beside it: what remains of it when spots
are shuffled within their section and nothing but the section's offset is known.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import normalize, targets

#: A spread below this part of the largest value is rounding, not variation.
CONSTANT = 1e-12

#: Values of a block of spots that is worked on at a time: what is made of it stays in the cache.
BLOCK = 2**15

#: Number of best genes whose mean is PCC-10.
BEST_GENES = 10


def dense(values) -> np.ndarray:
    """Convert a dense or sparse matrix to a plain array."""
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def is_constant(values: np.ndarray) -> np.ndarray:
    """Mark the columns of `(T, G)` that vary by no more than rounding."""
    return _constant(values.min(axis=0), values.max(axis=0))


def _constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return high - low <= CONSTANT * np.maximum(np.abs(low), np.abs(high))


def pearson(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation per gene, NaN where truth or prediction is constant.

    Beside float64 copies of what is not float64, memory holds one block of spots at a time where
    both sides are stored spot after spot.

    Parameters
    ----------
    measured, predicted
        `(T, G)` of one section (or of whatever is to be pooled).

    Returns
    -------
    np.ndarray
        `(G,)`.

    Raises
    ------
    InputError
        On shapes that differ or values that are not finite.
    """
    return _pearson(*_pair(measured, predicted))


def _pearson(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    if len(measured) < 2:
        return np.full(measured.shape[1], np.nan)
    unknown, means, scales = np.zeros(measured.shape[1], bool), [], []
    for values in (measured, predicted):
        low, high, mean = values.min(axis=0), values.max(axis=0), values.mean(axis=0)
        unknown |= _constant(low, high)
        means.append(mean)
        # The largest distance from the mean: squares of tiny values would underflow.
        scales.append(np.maximum(high - mean, mean - low))

    def products(*block: np.ndarray) -> tuple[np.ndarray, ...]:
        x, y = ((values - mean) / scale
                for values, mean, scale in zip(block, means, scales, strict=True))
        return x * y, x * x, y * y

    with np.errstate(divide="ignore", invalid="ignore"):
        xy, xx, yy = _sums(measured, predicted, products)
        r = xy / (np.sqrt(xx) * np.sqrt(yy))
    r[unknown] = np.nan
    return np.clip(r, -1.0, 1.0)


def _blocks(*arrays: np.ndarray) -> list[slice]:
    """Blocks of the rows of `(T, G)` whose sums can go on from block to block, byte for byte.

    numpy adds row after row where rows are stored one after the other; a single column, and
    columns that are stored one after the other, it adds in pairs: those are one block.
    """
    n_rows, n_columns = arrays[0].shape
    if n_columns < 2 or not all(values.flags.c_contiguous for values in arrays):
        return [slice(None)]
    step = max(1, BLOCK // n_columns)
    return [slice(start, start + step) for start in range(0, max(n_rows, 1), step)]


def _sums(measured: np.ndarray, predicted: np.ndarray,
          terms: Callable[..., tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Sums over the spots, `(G,)` each, of the arrays that `terms` makes of a block of both."""
    sums: list[np.ndarray] = []
    for rows in _blocks(measured, predicted):
        parts = terms(measured[rows], predicted[rows])
        for part, before in zip(parts, sums, strict=False):  # nothing is before the first block
            part[0] += before
        sums = [part.sum(axis=0) for part in parts]
    return sums


def _pair(measured, predicted) -> tuple[np.ndarray, np.ndarray]:
    measured = np.asarray(measured, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    if measured.shape != predicted.shape or measured.ndim != 2:
        raise InputError("scores", "shape", f"measured {measured.shape}, predicted "
                         f"{predicted.shape}", "give (spots, genes) in one order for both")
    for name, values in (("measured", measured), ("predicted", predicted)):
        if not all(np.isfinite(values[rows]).all() for rows in _blocks(values)):
            raise InputError("scores", name, "holds NaN or infinity",
                             "leave out spots that were not measured or predicted")
    return measured, predicted


def section_scores(measured: np.ndarray, predicted: np.ndarray,
                   genes: Sequence[str]) -> pd.DataFrame:
    """One row per gene: ``gene, n_spots, pcc, mae, mse`` over the spots of one section.

    Parameters
    ----------
    measured, predicted
        `(T, G)`, in the units of the transformed expression.
    genes
        Names of the columns.

    Raises
    ------
    InputError
        On shapes that differ, values that are not finite, or another number of names.
    """
    measured, predicted = _pair(measured, predicted)
    if len(genes) != measured.shape[1]:
        raise InputError("scores", "genes", f"{len(genes)} names for {measured.shape[1]} columns",
                         "name every column")

    def errors(measured: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
        error = predicted - measured
        return np.abs(error), error * error

    absolute, squared = (total / len(measured) for total in _sums(measured, predicted, errors))
    return pd.DataFrame({"gene": list(genes), "n_spots": len(measured),
                         "pcc": _pearson(measured, predicted), "mae": absolute, "mse": squared})


def pooled_scores(measured: Sequence[np.ndarray],
                  predicted: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pooled Pearson correlation per gene and its floor under shuffling within sections.

    The floor is the expectation of the pooled correlation when the predictions of every section
    are shuffled among its spots. A shuffle keeps all variances and leaves, on average, only the
    covariance of section means, so the expectation is known without shuffling:

    .. math:: r_0 = \\frac{\\sum_s n_s (\\bar y_s - \\bar y)(\\bar p_s - \\bar p)}
                         {N\\, \\mathrm{sd}(y)\\, \\mathrm{sd}(p)}

    It is 0 for one section, near the pooled score itself where a method only tells sections
    apart, and negative where held-out sections are predicted by the mean of the others.

    Parameters
    ----------
    measured, predicted
        `(T, G)` per section, genes in one order.

    Returns
    -------
    tuple
        ``pcc_pooled`` and ``pcc_floor``, `(G,)` each; NaN where either side is constant.
    """
    pairs = [_pair(m, p) for m, p in zip(measured, predicted, strict=True)]
    all_measured = np.concatenate([m for m, _ in pairs])
    all_predicted = np.concatenate([p for _, p in pairs])
    pooled = pearson(all_measured, all_predicted)
    mean_m, mean_p = all_measured.mean(axis=0), all_predicted.mean(axis=0)
    between = sum(len(m) * (m.mean(axis=0) - mean_m) * (p.mean(axis=0) - mean_p)
                  for m, p in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = between / len(all_measured) / (all_measured.std(axis=0)
                                               * all_predicted.std(axis=0))
    floor[np.isnan(pooled)] = np.nan
    return pooled, floor


def best_genes(scores: pd.DataFrame, n_best: int | None = BEST_GENES) -> list[str]:
    """The genes of PCC-10: those with the highest mean test correlation in one fold.

    They are selected on the test sections, so their mean is biased upward: a published quantity,
    kept for comparison and never to be read as what a user would get (Stem's code; per fold is our
    choice, the papers do not say).

    Parameters
    ----------
    scores
        Columns ``gene`` and ``pcc`` of one fold. Ties go by the gene's name.
    n_best
        How many; None: all, from the best to the worst.
    """
    means = scores.groupby("gene", sort=True)["pcc"].mean().dropna()
    return list(means.sort_values(ascending=False, kind="stable").index[:n_best])


def median_section(scores: pd.DataFrame) -> str:
    """The section whose mean correlation is the median: neither the best nor the worst to show."""
    means = scores.groupby("section", sort=True)["pcc"].mean().dropna().sort_values(kind="stable")
    return str(means.index[(len(means) - 1) // 2])


def per_gene(scores: pd.DataFrame, sections) -> pd.DataFrame:
    """Mean score of each gene, with properties of the gene that may explain it.

    Parameters
    ----------
    scores
        Columns gene, program, pcc, ceiling, section; of one encoder, protocol and panel.
    sections
        The cohort's sections, with raw counts.

    Returns
    -------
    DataFrame
        Columns gene, program, pcc, ceiling, share (pcc over ceiling), mean_expression and variance
        (log1p counts per 10,000, within sections): means over the sections that were tested.
    """
    tested = set(scores["section"])
    members = [section.adata for section in sections if section.name in tested]
    table = scores.assign(program=scores["program"].fillna("").astype(str)).groupby(
        ["gene", "program"], as_index=False, sort=True)[["pcc", "ceiling"]].mean()
    names = list(table["gene"])
    table["share"] = table["pcc"] / table["ceiling"].where(table["ceiling"] > 0)
    table["mean_expression"], table["variance"] = np.mean(
        [[values.mean(axis=0), values.var(axis=0)]
         for values in (targets(adata, names) for adata in members)], axis=0)
    return table


def calibration(predictions, n_bins: int = 10) -> pd.DataFrame:
    """Measured against predicted expression, in bins of the prediction, within sections.

    Both are taken as differences from the section's mean of the gene, so that an offset between
    laboratories is no error here. A slope below 1 means that predictions are too extreme, above 1
    that they are too timid.

    Parameters
    ----------
    predictions
        AnnData (or objects alike) with layers measured and predicted, one per section.
    n_bins
        Bins with equally many spots, gene by gene.

    Returns
    -------
    DataFrame
        Columns bin, predicted, measured (means over genes and sections), slope (measured on
        predicted, of all genes and spots), n_sections.

    Raises
    ------
    InputError
        If a section has fewer spots than bins.
    """
    points, products, squares = [], 0.0, 0.0
    for prediction in predictions:
        known = np.isfinite(prediction.layers["predicted"]).all(axis=1)
        measured, predicted = (np.asarray(prediction.layers[name], dtype=np.float64)[known]
                               for name in ("measured", "predicted"))
        if len(measured) < n_bins:
            raise InputError("calibration", "n_bins", f"is {n_bins} for {len(measured)} spots",
                             "use fewer bins")
        measured, predicted = measured - measured.mean(axis=0), predicted - predicted.mean(axis=0)
        products, squares = products + (measured * predicted).sum(), squares + (predicted**2).sum()
        order = np.argsort(predicted, axis=0, kind="stable")
        points.append([[np.take_along_axis(values, rows, axis=0).mean()
                        for rows in np.array_split(order, n_bins)]
                       for values in (predicted, measured)])
    mean = np.mean(points, axis=0)
    return pd.DataFrame({"bin": np.arange(1, n_bins + 1), "predicted": mean[0],
                         "measured": mean[1],
                         "slope": products / squares if squares > 0 else np.nan,
                         "n_sections": len(points)})


def drop(random: float, loso: float, *, error: bool = False) -> float:
    """Share of a random-split score that is lost on an unseen study.

    ``(random - loso) / random`` for correlations, ``(loso - random) / random`` for errors, as
    MVHybrid's tables have it (arXiv 2508.00383); NaN when the random score is not above 0, where
    a share has no meaning.
    """
    if not random > 0:
        return float("nan")
    return float((loso - random if error else random - loso) / random)


def _split(shape: tuple[int, ...], dispersion: np.ndarray | None,
           rng: np.random.Generator) -> float | np.ndarray:
    """Probability with which a count goes to the first half: one for all, or one drawn for each."""
    if dispersion is None:
        return 0.5
    over = dispersion > 0
    share = np.full(shape, 0.5)
    share[:, over] = rng.beta(0.5 / dispersion[over], 0.5 / dispersion[over],
                              size=(shape[0], int(over.sum())))
    return share


def ceiling(counts, library: np.ndarray, how: str = "log1p_cp10k", *, n_splits: int = 10,
            rng: np.random.Generator, dispersion: np.ndarray | float | None = None) -> np.ndarray:
    """Highest correlation that a perfect predictor could reach, per gene, by count splitting.

    Every count is split in two by binomial thinning with probability 1/2; for Poisson counts the
    halves are independent given the true rate. Each half is transformed with its own library.
    The mean correlation `r` of halves over `n_splits` splits is brought to full depth by Spearman
    and Brown, `2 r / (1 + r)`: the reliability of the measurement. A perfect predictor knows the
    true rate, not the noise, so it reaches the square root of that.

    Only sampling noise of the counts lowers this ceiling. Real differences between spots that no
    image shows are part of the signal here, so it is an upper bound. With a dispersion the counts
    are taken as negative binomial, variance ``mean + dispersion * mean**2`` about each spot's own
    mean: the probability of each split is then drawn from ``Beta(a, a)``, ``a = 1 / (2 *
    dispersion)``, which makes the halves independent again, so that what varies from spot to spot
    by itself counts as noise; `mvhlib.expression.ceilings`. log1p is not linear, so halves
    are not quite parallel: against known rates the ceiling is right within 0.02 above three counts
    per spot, reads 0.02 to 0.05 high at about one, and a single weak gene may be off by 0.1 to 0.2,
    since the root of a small reliability is steep.

    Parameters
    ----------
    counts
        Raw counts `(T, G)` of the genes wanted.
    library
        Total counts per spot over all genes `(T,)`.
    how
        Units of the target; see `mvhlib.cohort.genes.normalize`.
    n_splits
        Splits to average over.
    rng
        Source of randomness.
    dispersion
        Of each gene `(G,)`, or of all; None or 0 for Poisson counts.

    Returns
    -------
    np.ndarray
        `(G,)` in [0, 1]; 0 where halves do not correlate positively, NaN where a gene is constant.

    References
    ----------
    Neufeld et al., "Data thinning for convolution-closed distributions", JMLR 2024, and "Negative
    binomial count splitting for single-cell RNA sequencing data", 2023; Spearman 1910, Brown 1910.
    """
    counts = dense(counts)
    whole = np.rint(counts).astype(np.int64)
    if (whole != counts).any() or (whole < 0).any():
        raise InputError("ceiling", "counts", "are negative or fractional",
                         "give raw counts, not normalised values")
    library = np.rint(np.asarray(library, dtype=np.float64)).astype(np.int64).ravel()
    elsewhere = library - whole.sum(axis=1)
    if (elsewhere < 0).any():
        raise InputError("ceiling", "library", "is below the sum of the genes given",
                         "give the total over all genes")
    if dispersion is not None:
        dispersion = np.broadcast_to(np.asarray(dispersion, dtype=np.float64), whole.shape[1:])
        if not (dispersion >= 0).all():
            raise InputError("ceiling", "dispersion", "is negative or not a number",
                             "give 0 for Poisson counts")
    total, known = np.zeros(whole.shape[1]), np.zeros(whole.shape[1])
    for _ in range(n_splits):
        half = rng.binomial(whole, _split(whole.shape, dispersion, rng))
        half_library = rng.binomial(elsewhere, 0.5) + half.sum(axis=1)
        r = pearson(normalize(half, how, half_library),
                    normalize(whole - half, how, library - half_library))
        total += np.nan_to_num(r)
        known += np.isfinite(r)
    mean = np.divide(total, known, out=np.full(len(total), np.nan), where=known > 0)
    mean = np.where(is_constant(whole), np.nan, np.clip(mean, 0.0, 1.0))
    return np.sqrt(2 * mean / (1 + mean))
