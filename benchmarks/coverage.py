"""Do the intervals hold what they promise? Simulated coverage, with a seed fixed beforehand.

Intervals
    A cohort of clusters (patients or studies) with a known true mean is drawn, and the share of
    cohorts is counted whose 95 % interval holds it: `simulation.coverage`. Clusters are
    normal, or skewed (a gamma of skewness 1). The plain percentile bootstrap, which the library
    does not have, is drawn as well, to show why.
Two sources of chance
    Several seeds of a training on several studies: the interval over one of the two, the wider of
    both, and the root of their summed squares, which `mvhlib.statistics.combine` takes.
Nulls
    Truth and prediction are unrelated maps on the sections of a cohort, and the share of cohorts is
    counted whose score lies inside the null's 95 %: `simulation.null_coverage`. A cluster
    is a section of 12 x 12 spots, the size of the synthetic cohort's. Maps are independent from
    spot to spot, or smooth (Gaussian kernel of 1.5 spots), which permuting the spots cannot cover
    and shifting the map can.

``ci_low`` and ``ci_high`` say how exactly so many repetitions know the coverage (Clopper-Pearson,
95 %). About five minutes on one thread.

    python benchmarks/coverage.py --out DIR [--quick]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import simulation
from scipy.stats import binomtest

from mvhlib import lineage, statistics
from mvhlib.artifacts import write_csv

COLUMNS = ("what", "n_clusters", "distribution", "repetitions", "coverage", "ci_low", "ci_high",
           "seed")
SEED = 20
CLUSTERS = (4, 8, 16, 30)
SKEWS = {"normal": 0.0, "skewed (gamma, skewness 1)": 1.0}
SMOOTH = {"independent spots": 0.0, "smooth (kernel of 1.5 spots)": 1.5}
SIDE = 12

#: With 119 draws the 2.5 % on each side are three draws exactly.
DRAWS = 119


def plain_percentile(values: np.ndarray, rng: np.random.Generator) -> statistics.Interval:
    """The textbook's percentile bootstrap."""
    means = values[rng.integers(0, len(values), size=(999, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return statistics.Interval(float(values.mean()), float(low), float(high), len(values),
                               "plain percentile")


INTERVALS = {
    "Student's t": lambda values, rng: statistics.t_interval(values),
    "percentile, plain (never used)": plain_percentile,
}
TOGETHER = {
    "over seeds alone": lambda seeds, units: seeds,
    "over studies alone": lambda seeds, units: units,
    "the wider of both": lambda seeds, units: max(seeds, units, key=lambda own: own.high - own.low),
    "root of summed squares": statistics.combine,
}
NULLS = {"permutation within sections": "permutation", "shift, not wrapped": "random shift"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for coverage.csv")
    parser.add_argument("--quick", action="store_true", help="100 repetitions, seconds")
    options = parser.parse_args()
    repetitions = 100 if options.quick else 2000
    rows = []

    def add(what, n_clusters, distribution, coverage):
        bounds = binomtest(round(coverage * repetitions), repetitions).proportion_ci()
        rows.append((what, n_clusters, distribution, repetitions, coverage, bounds.low,
                     bounds.high, SEED))
        lineage.enter(write_csv(options.out / "coverage.csv",
                                pd.DataFrame(rows, columns=list(COLUMNS))), __file__)
        print(f"{what}, {n_clusters} clusters, {distribution}: {coverage:.3f} "
              f"({bounds.low:.3f} to {bounds.high:.3f})", flush=True)

    for name, interval in INTERVALS.items():
        for distribution, skew in SKEWS.items():
            for n in CLUSTERS:
                add(f"interval: {name}", n, distribution,
                    simulation.coverage(interval, n, n_repetitions=repetitions, seed=SEED,
                                        skew=skew))
    for name, together in TOGETHER.items():
        for n_seeds, n_units in ((3, 4), (4, 8), (8, 8), (8, 16)):
            add(f"seeds and studies: {name}, {n_seeds} seeds", n_units, "normal",
                simulation.two_way_coverage(together, n_seeds, n_units,
                                            n_repetitions=repetitions, seed=SEED))
    for name, method in NULLS.items():
        for distribution, smooth in SMOOTH.items():
            for n in CLUSTERS:
                add(f"null: {name}, {DRAWS} draws, {SIDE} x {SIDE} spots", n, distribution,
                    simulation.null_coverage(method, n_sections=n, side=SIDE, smooth=smooth,
                                             n_draws=DRAWS, n_repetitions=repetitions, seed=SEED))


if __name__ == "__main__":
    main()
