"""From scores per gene to means over units, with the interval that the units allow."""

from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import pandas as pd

from mvhlib import lattice, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression.protocols.records import SCORE_COLUMNS, Prediction, check_choice
from mvhlib.expression.scores import best_genes

SUMMARY_COLUMNS = ("protocol", "method", "encoder", "encoder_saw_test_images", "control", "panel",
                   "program", "metric", "n_genes", "n_nan", "unit", "n_units", "mean", "ci_low",
                   "ci_high")
METRICS = ("pcc", "pcc10", "mae", "mse", "pcc_pooled", "pcc_floor")


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
    check_choice("unit", unit, ("patient", "study"))
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
