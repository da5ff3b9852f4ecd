"""Ridge for all folds and penalties at once, against scikit-learn refitted for each.

Leave-one-study-out over 8 studies, 768 features, 13 penalties, held-out Pearson correlation per
gene for every one of the 104 fits. Baselines, in the same process on the same numbers:

refit
    ``sklearn.linear_model.Ridge(solver="cholesky")`` in float32 (the features' own precision, its
    fastest) refitted per fold and penalty. A sample of fits is timed and multiplied; the note says
    how many.
per fold
    What one would write by hand: Gram matrix, one eigendecomposition and all penalties for each
    fold, with the solver's own arithmetic, but nothing shared between folds, and predictions for
    the held-out study.

The candidate works in float64 and standardises the features, which the refit does not. ``peak_mb``
is what the candidate allocates beside the data, which arrive section by section.

    python benchmarks/ridge.py --out DIR [--quick]
"""

import argparse
import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from mvhlib.artifacts import write_csv
from mvhlib.expression import ridge
from mvhlib.expression.scores import pearson

STUDIES = 8
COLUMNS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
           "threads", "device", "dtype", "note")
FULL = {"width": 768, "sizes": ((50_000, 50), (200_000, 50), (200_000, 2000)), "fits": 5,
        "repeats": 3}
QUICK = {"width": 192, "sizes": ((8_000, 20),), "fits": 104, "repeats": 3}


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


def per_fold(data) -> np.ndarray:
    """The same numbers with one eigendecomposition per fold and nothing shared."""
    result = []
    for held_out, x_test, y_test in data:
        moments = ridge.GroupMoments()
        for name, x, y in data:
            if name != held_out:
                moments.add("train", x, y)
        coefs = moments.decompose(["train"]).fit().coef(ridge.DEFAULT_ALPHAS)
        # Correlation does not see the intercept.
        result.append([pearson(y_test, x_test.astype(np.float64) @ coef) for coef in coefs])
    return np.array(result)


def refit(data, n_fits: int) -> list[float]:
    """Seconds of single scikit-learn fits with their held-out correlation."""
    seconds = []
    plan = [(fold, alpha) for alpha in ridge.DEFAULT_ALPHAS for fold in range(STUDIES)]
    chosen = plan if n_fits >= len(plan) else plan[:: len(plan) // n_fits][:n_fits]
    last, x = None, None
    for fold, alpha in sorted(chosen):
        if fold != last:  # joining the training studies is not counted
            x = np.concatenate([d[1] for n, d in enumerate(data) if n != fold])
            y = np.concatenate([d[2] for n, d in enumerate(data) if n != fold])
            last = fold
        start = time.perf_counter()
        model = Ridge(alpha=alpha, solver="cholesky").fit(x, y)
        pearson(data[fold][2], model.predict(data[fold][1]))
        seconds.append(time.perf_counter() - start)
    return seconds


def largest_difference(data) -> float:
    """Largest difference in predictions to scikit-learn in float64, over folds and penalties."""
    _, moments = at_once(data)
    worst = 0.0
    for fold, (held_out, x_test, _) in enumerate(data):
        x, y = (np.concatenate([d[side] for n, d in enumerate(data) if n != fold]).astype(float)
                for side in (1, 2))
        train = [name for name, _, _ in data if name != held_out]
        for alpha in ridge.DEFAULT_ALPHAS:
            expected = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x, y).predict(
                x_test.astype(float))
            found = ridge.predict(x_test, *ridge.solve(moments, train, alpha))
            worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def peak_mb(n: int, width: int, genes: int) -> float:
    """Largest allocation of the solver with one section of data alive at a time [MB]."""
    tracemalloc.start()
    at_once(sections(n, width, genes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    block = n // STUDIES * (2 * width + 3 * genes) * 4  # the generator's own section
    return max(peak - block, 0) / 2**20


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for ridge.csv")
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
    rows = []

    def add(what, baseline, baseline_s, candidate_s, dtype, note, peak=np.nan):
        rows.append({"what": what, "baseline": baseline, "candidate": "mvhlib.expression.ridge",
                     "baseline_s": baseline_s, "candidate_s": candidate_s,
                     "ratio": baseline_s / candidate_s, "peak_mb": peak, "threads": threads,
                     "device": "cpu", "dtype": dtype, "note": note})
        print(f"{what}: {baseline} {baseline_s:.3g} s, ours {candidate_s:.3g} s, "
              f"{baseline_s / candidate_s:.1f} times, {peak:.0f} MB ({note})", flush=True)

    for n, genes in size["sizes"]:
        width = size["width"]
        what = f"{STUDIES} folds x {len(ridge.DEFAULT_ALPHAS)} penalties, {n} spots, {genes} genes"
        data = list(sections(n, width, genes))
        at_once(data)  # warm up
        ours, hand = [], []
        for _ in range(size["repeats"]):  # side by side, so that drift hits both
            ours.append(timed(at_once, data))
            hand.append(timed(per_fold, data))
        fits = refit(data, size["fits"])
        total = STUDIES * len(ridge.DEFAULT_ALPHAS)
        peak = peak_mb(n, width, genes)
        candidate = statistics.median(ours)
        add(what, "sklearn Ridge(cholesky) refitted", statistics.median(fits) * total, candidate,
            "float32 / float64", f"median of {len(fits)} fits times {total}", peak)
        add(what, "one eigendecomposition per fold", statistics.median(hand), candidate,
            "float64 / float64", f"median of {len(hand)}", peak)
        if options.quick:
            worst = largest_difference(data)
            rows[-1]["note"] += f"; largest difference to sklearn float64 {worst:.1e}"
            print(f"largest difference of predictions to sklearn float64: {worst:.2e}")
    write_csv(options.out / "ridge.csv", pd.DataFrame(rows, columns=list(COLUMNS)))


if __name__ == "__main__":
    main()
