"""The three ways to fit a fold: exact ridge, HEST-Benchmark's regression, an estimator."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.expression import ridge
from mvhlib.expression.protocols.records import INNER_UNITS, Estimator, Sample, check_choice
from mvhlib.expression.protocols.rows import Rows

#: Printed with every fit by `ridge.hest_ridge`: its numbers depend on where the solver stops.
HEST_SOLVER = "PCA 256 and ridge by lsqr (tolerance 1e-4), penalty 100/(components x genes)"

#: From fine to coarse; where a training set holds one unit only, the next finer one serves.
FINER = {"study": "patient", "patient": "section", "section": "block"}


@dataclass(frozen=True)
class LinearFit:
    """A fitted ridge regression.

    Attributes
    ----------
    coef, intercept
        `(D, G)` and `(G,)`, for features as they are.
    """

    coef: np.ndarray = field(repr=False)
    intercept: np.ndarray = field(repr=False)

    def __call__(self, rows: "Rows", chosen: np.ndarray) -> np.ndarray:
        """Predict the chosen spots of a section, `(T, G)`."""
        return ridge.predict(rows.X[chosen], self.coef, self.intercept)


def fit_ridge(plan, data: Mapping[str, Rows], columns, protocol: str, by_spot: bool,
              alphas: Sequence[float], inner_unit: str | None, criterion: str, n_inner: int):
    """Gather the moments once; the returned function then solves any fold."""
    if inner_unit is not None:
        check_choice("inner_unit", inner_unit, ("study", "patient", "section"))
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


def fit_hest(plan, data: Mapping[str, Rows], columns, by_spot: bool):
    """HEST-Benchmark's regression, with all training spots in memory as in its own code."""

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


def fit_estimator(estimator: "Estimator", plan, data: Mapping[str, Rows], columns,
                  genes_by_fold, seed: int):
    """Hand an estimator the training sections of a fold, and one test section at a time."""

    def sample(rows: Rows, fold) -> Sample:
        return Sample(rows.name, rows.study, rows.patient, rows.X, rows.Y[:, columns[fold]],
                      rows.coords)

    def fit(fold):
        estimator.fit([sample(data[name], fold) for name in plan[fold][0]],
                      list(genes_by_fold[fold]), str(fold), seed)

        def predict(rows: Rows, chosen: np.ndarray) -> np.ndarray:
            seen = sample(rows, fold)
            hidden = replace(seen, Y=np.full_like(seen.Y, np.nan))  # a test section has no truth
            predicted = np.asarray(estimator.predict(hidden))
            if predicted.shape != seen.Y.shape or not np.isfinite(predicted).all():
                raise InputError(rows.name, f"prediction by {estimator.name}",
                                 f"has shape {predicted.shape} for {seen.Y.shape}, or is not "
                                 "finite", "correct the estimator")
            return predicted

        return predict, None

    return fit
