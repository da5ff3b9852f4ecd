"""Which encoder wins under which regression: HEST-Benchmark's own, and what differs from it.

HEST reduces features to 256 principal components and fits ridge with a fixed penalty and without an
intercept. Each of the three is changed here: components or all features, the penalty
`100 / (width genes)` or one that inner folds over training sections choose (scikit-learn's grid
search), with and without an intercept. Expression is log1p of counts, as HEST's. Features are
centred, so that at one penalty an intercept changes the squared error and no correlation.

    python benchmarks/regressions.py --run runs/her2st_readouts [--encoders A B] --out benchmarks

reads the cohort and encoders' features of a run, of all if none is named, and writes
`regressions.csv`: mean over genes, sections and units of r and of the squared error, with the
encoder's rank under that regression.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from mvhlib import artifacts, cohort, features, lineage, statistics
from mvhlib.expression import evaluation

COLUMNS = ("run", "protocol", "components", "penalty", "intercept", "encoder", "unit", "n_units",
           "r", "r_low", "r_high", "mse", "rank")
N_COMPONENTS = 256
#: Penalties that the inner folds choose from, per spot of the training set.
GRID = np.logspace(-6, 2, 9)


class Regression:
    """Standardised features, perhaps their components, and ridge: an `Estimator`."""

    def __init__(self, components: bool, tuned: bool, intercept: bool):
        self.components, self.tuned, self.intercept = components, tuned, intercept
        self.name = "-".join(("pca" if components else "all", "tuned" if tuned else "fixed",
                              "intercept" if intercept else "none"))

    def fit(self, samples, genes, fold, seed):
        """Fit on the training sections."""
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x = np.concatenate([sample.X for sample in samples]).astype(np.float64)
        y = np.concatenate([sample.Y for sample in samples]).astype(np.float64)
        section = np.repeat(np.arange(len(samples)), [len(sample.X) for sample in samples])
        width = min(N_COMPONENTS, *x.shape) if self.components else x.shape[1]
        steps = [StandardScaler()] + [PCA(width, random_state=1)] * self.components
        self.reduce = make_pipeline(*steps)
        z = self.reduce.fit_transform(x)
        ridge = Ridge(alpha=100 / (width * y.shape[1]), fit_intercept=self.intercept)
        if self.tuned:
            ridge = GridSearchCV(ridge, {"alpha": GRID * len(z)}, cv=LeaveOneGroupOut(),
                                 scoring="neg_mean_squared_error")
            self.ridge = ridge.fit(z, y, groups=section).best_estimator_
        else:
            self.ridge = ridge.fit(z, y)

    def predict(self, sample):
        """Expression `(T, G)`."""
        return self.ridge.predict(self.reduce.transform(sample.X.astype(np.float64)))


def measure(run: Path, protocol: str, wanted: list[str]) -> pd.DataFrame:
    """Rows of the table for every encoder of a run."""
    manifest = artifacts.read_csv(run / "cohort/manifest.csv")
    panels = artifacts.read_csv(run / "cohort/panels.csv")
    panels = panels[panels["panel"] == panels["panel"].iloc[0]]  # the run's own, without markers
    people = cohort.read("run", run / "cohort")
    rows = []
    for encoder in wanted or sorted(path.name for path in (run / "features").iterdir()):
        embedded = features.read_folder(run / "features" / encoder)
        jobs, left_out = evaluation.jobs(manifest, [protocol],
                                         {encoder: evaluation.resolution(embedded)}, seed=0)
        if not jobs:
            print(encoder, *left_out["left_out"], sep=": ")
            continue
        for settings in itertools.product([True, False], repeat=3):
            regression = Regression(*settings)
            result = evaluation.evaluate(
                jobs[0], people, embedded, panels, controls=["none"], method=regression,
                normalize="log1p", encoder_saw_test_images="unknown")
            unit = "section" if protocol == "section" else "patient"
            r, mse = (statistics.unit_table(result.scores, unit, value=value).iloc[0]
                      for value in ("pcc", "mse"))
            rows.append((run.name, protocol, "256" if settings[0] else "all",
                         "inner folds" if settings[1] else "HEST's", settings[2], encoder, unit,
                         r["n_units"], r["mean"], r["ci_low"], r["ci_high"], mse["mean"]))
            print(*rows[-1][2:6], f"{r['mean']:.3f}", sep="  ", flush=True)
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    table["rank"] = table.groupby(["components", "penalty", "intercept"])["r"].rank(
        ascending=False, method="min").astype(int)
    return table[list(COLUMNS)]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="runs/<profile>; nothing is done without one")
    parser.add_argument("--protocol", default="section")
    parser.add_argument("--encoders", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    if given.run is None:
        print("regressions: no --run is given, nothing to compare")
        return 0
    path = given.out / "regressions.csv"
    table = measure(given.run, given.protocol, given.encoders)
    if path.exists():
        old = artifacts.read_csv(path, dtype={"components": str})
        table = pd.concat([old[old["run"] != given.run.name], table])
    lineage.enter(artifacts.write_csv(path, table), __file__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
