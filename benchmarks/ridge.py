"""Ridge for all folds and penalties at once, against scikit-learn refitted for each.

Leave-one-study-out over 8 studies, 768 features, 13 penalties, held-out Pearson correlation per
gene for every one of the 104 fits. Baselines, in the same process on the same numbers:

refitted, float32
    ``sklearn.linear_model.Ridge(solver="cholesky")`` in the features' own precision, its fastest,
    refitted per fold and penalty. A sample of fits is timed and multiplied; the note says how many.
    Its coefficients are good to about four digits.
refitted, float64
    The same in the precision of the candidate.
one eigendecomposition per fold
    What one would write by hand: Gram matrix, one eigendecomposition and all penalties for each
    fold, with the solver's own arithmetic, but nothing shared between folds, and predictions for
    the held-out study. Where the note says so, some folds are timed and multiplied.

share of the machine's peak
    Products alone, at the rate of one large product in the same precision, taken between the
    candidate's runs. The note says how many times scikit-learn's refits in float32 would take if
    both sides ran at their precision's peak: what sharing between folds can give at most.

The candidate works in float64 and standardises the features, which the refits do not. ``peak_mb``
is what numpy allocates for it beside the data; LAPACK's own workspace of one eigendecomposition
comes on top. The last row is that peak at two numbers of spots.

    python benchmarks/ridge.py --out DIR [--quick]

Every row is written as soon as it is measured.
"""

import argparse
import statistics
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from mvhlib import lineage
from mvhlib.artifacts import write_csv
from mvhlib.expression import ridge
from mvhlib.expression.scores import pearson

STUDIES = 8
COLUMNS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
           "threads", "device", "dtype", "note")


@dataclass(frozen=True)
class Size:
    """One problem and how much of each baseline is timed.

    Attributes
    ----------
    n, genes
        Spots and genes.
    fits32, fits64
        Fits of scikit-learn.
    by_hand
        Folds of the eigendecomposition per fold.
    repeats
        Runs of the candidate, and of the folds by hand.
    checked
        Pairs of fold and penalty whose predictions are compared with scikit-learn in float64.
    """

    n: int
    genes: int
    fits32: int
    fits64: int
    by_hand: int
    repeats: int
    checked: int = 0


FULL = (Size(50_000, 50, 7, 5, 8, 3, checked=8), Size(200_000, 50, 5, 3, 4, 3),
        Size(200_000, 2000, 3, 2, 1, 2))
QUICK = (Size(8_000, 20, 104, 26, 8, 3, checked=104), Size(32_000, 20, 13, 13, 8, 3))
FULL_WIDTH, QUICK_WIDTH = 768, 192


def sections(n: int, width: int, genes: int, seed: int = 0):
    """Features and expression of one study after the other, float32."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((width, genes), dtype=np.float32) / width**0.5
    for study in range(STUDIES):
        x = rng.standard_normal((n // STUDIES, width), dtype=np.float32)
        x += rng.standard_normal(width, dtype=np.float32)
        y = x @ weights + rng.standard_normal((len(x), genes), dtype=np.float32)
        yield f"study{study}", x, y


def at_once(data) -> tuple[np.ndarray, ridge.GroupMoments]:
    """Held-out correlation of every fold and penalty, `(folds, A, G)`."""
    moments = ridge.GroupMoments()
    for name, x, y in data:
        moments.add(name, x, y)
    result = []
    for held_out in moments.groups:
        train = [name for name in moments.groups if name != held_out]
        result.append(moments.decompose(train).fit().score(moments.groups[held_out],
                                                           ridge.DEFAULT_ALPHAS)[0])
    return np.array(result), moments


def per_fold(data, n_folds: int) -> np.ndarray:
    """The same numbers with one eigendecomposition per fold and nothing shared."""
    result = []
    for held_out, x_test, y_test in data[:n_folds]:
        moments = ridge.GroupMoments()
        for name, x, y in data:
            if name != held_out:
                moments.add("train", x, y)
        coefs = moments.decompose(["train"]).fit().coef(ridge.DEFAULT_ALPHAS)
        # Correlation does not see the intercept.
        result.append([pearson(y_test, x_test.astype(np.float64) @ coef) for coef in coefs])
    return np.array(result)


def sample(n: int) -> list[tuple[int, float]]:
    """`n` of all pairs of fold and penalty, spread over both, in the order of the folds."""
    plan = [((number + shift) % STUDIES, alpha)
            for shift, alpha in enumerate(ridge.DEFAULT_ALPHAS) for number in range(STUDIES)]
    return sorted(plan[i] for i in np.linspace(0, len(plan) - 1, n).astype(int))


def training(data, fold: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all studies but one."""
    return tuple(np.concatenate([part[side] for number, part in enumerate(data)
                                 if number != fold]).astype(dtype, copy=False) for side in (1, 2))


def refit(data, n_fits: int, dtype) -> list[float]:
    """Seconds of single scikit-learn fits with their held-out correlation."""
    seconds, last = [], None
    for fold, alpha in sample(n_fits):
        if fold != last:  # joining the training studies is not counted
            x, y = training(data, fold, dtype)
            x_test, y_test = (part.astype(dtype, copy=False) for part in data[fold][1:])
            last = fold
        start = time.perf_counter()
        model = Ridge(alpha=alpha, solver="cholesky").fit(x, y)
        pearson(y_test, model.predict(x_test))
        seconds.append(time.perf_counter() - start)
    return seconds


def largest_difference(data, n_pairs: int) -> float:
    """Largest difference in predictions to scikit-learn in float64, over folds and penalties."""
    _, moments = at_once(data)
    worst, last = 0.0, None
    for fold, alpha in sample(n_pairs):
        held_out, x_test, _ = data[fold]
        if fold != last:
            (x, y), last = training(data, fold, np.float64), fold
        expected = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x, y).predict(
            x_test.astype(np.float64))
        train = [name for name, _, _ in data if name != held_out]
        found = ridge.predict(x_test, *ridge.solve(moments, train, alpha))
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def peak_mb(data) -> float:
    """Largest allocation of the solver beside the data [MB]."""
    tracemalloc.start()
    at_once(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def peak_rate(dtype, edge: int = 4096) -> float:
    """Operations a second of one large product [FLOP/s]."""
    left, right = (np.random.default_rng(0).random((edge, edge)).astype(dtype) for _ in range(2))
    left @ right
    return 2 * edge**3 / min(timed(np.matmul, left, right) for _ in range(3))


def operations(size: Size, width: int) -> tuple[float, float]:
    """What the candidate and all of scikit-learn's refits must compute at least [FLOP].

    A product of a matrix with itself is symmetric and counts half; an eigendecomposition counts
    nine times the cube of its side, a Cholesky factor a third.
    """
    n, genes, alphas = size.n, size.genes, len(ridge.DEFAULT_ALPHAS)
    sums = n * width**2 + 2 * n * width * genes
    fold = (9 + 4) * width**3 + 4 * width**2 * genes + width**2 * alphas * genes
    known = n * (STUDIES - 1) / STUDIES
    fit = (known * width**2 + 2 * known * width * genes + width**3 / 3 + 2 * width**2 * genes
           + 2 * (n - known) * width * genes)
    return sums + STUDIES * fold, STUDIES * alphas * fit


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for ridge.csv")
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    options = parser.parse_args()
    sizes, width = (QUICK, QUICK_WIDTH) if options.quick else (FULL, FULL_WIDTH)
    threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
    n_fits = STUDIES * len(ridge.DEFAULT_ALPHAS)
    rows, peaks = [], {}

    def add(what, baseline, candidate, baseline_s, candidate_s, ratio, peak, dtype, note):
        rows.append(dict(zip(COLUMNS, (what, baseline, candidate, baseline_s, candidate_s, ratio,
                                       peak, threads, "cpu", dtype, note), strict=True)))
        lineage.enter(write_csv(options.out / "ridge.csv",
                                pd.DataFrame(rows, columns=list(COLUMNS))), __file__)
        print(f"{what}: {baseline} {baseline_s:.3g} s, {candidate} {candidate_s:.3g} s, "
              f"ratio {ratio:.3g}, {peak:.0f} MB ({note})", flush=True)

    for size in sizes:
        what = (f"{STUDIES} folds x {len(ridge.DEFAULT_ALPHAS)} penalties, {size.n} spots, "
                f"{size.genes} genes, {width} features")
        data = list(sections(size.n, width, size.genes))
        peak = peaks[size.genes, size.n] = peak_mb(data)  # warms up as well
        ours, hand, rates = [], [], []
        for _ in range(size.repeats):  # side by side, so that drift hits both
            rates.append([peak_rate(dtype) for dtype in (np.float64, np.float32)])
            ours.append(timed(at_once, data))
            hand.append(timed(per_fold, data, size.by_hand) * STUDIES / size.by_hand)
        candidate = statistics.median(ours)

        def against(baseline, seconds, dtype, note, what=what, candidate=candidate, peak=peak):
            add(what, baseline, "mvhlib.expression.ridge", seconds, candidate,
                seconds / candidate, peak, dtype, note)

        for dtype, n in (("float32", size.fits32), ("float64", size.fits64)):
            fits = refit(data, n, dtype)
            against(f"sklearn Ridge(cholesky) refitted, {dtype}",
                    statistics.median(fits) * n_fits, f"{dtype} / float64",
                    f"median of {n} fits times {n_fits}; candidate: median of {size.repeats}")
        note = f"median of {size.repeats}" + (
            f", {size.by_hand} of {STUDIES} folds and multiplied" if size.by_hand < STUDIES else "")
        if size.checked:
            note += (f"; largest difference of predictions to sklearn in float64 "
                     f"{largest_difference(data, size.checked):.1e}, {size.checked} of {n_fits} "
                     "pairs of fold and penalty")
        against("one eigendecomposition per fold", statistics.median(hand), "float64 / float64",
                note)
        wide, narrow = (statistics.median(rate) for rate in zip(*rates, strict=True))
        least, refits = operations(size, width)
        against(f"products alone at {wide / 1e9:.0f} GFLOP/s", least / wide, "float64",
                f"ratio is the share of the peak; with both sides at their peak, float32 at "
                f"{narrow / 1e9:.0f} GFLOP/s, refits in float32 would take "
                f"{refits / narrow / (least / wide):.0f} times as long, in float64 "
                f"{refits / least:.0f} times")
    (few, low), (many, high) = sorted((n, peak) for (genes, n), peak in peaks.items()
                                      if genes == sizes[0].genes)
    add(f"memory, {sizes[0].genes} genes, {width} features", f"{few} spots", f"{many} spots",
        np.nan, np.nan, low / high, high, "float64",
        f"ratio of peaks: {low:.1f} MB at {few} spots, {high:.1f} MB at {many}")


if __name__ == "__main__":
    main()
