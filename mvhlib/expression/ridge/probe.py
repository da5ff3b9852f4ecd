"""Ridge regression as an estimator, and its coefficients for raw features."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from mvhlib.artifacts import InputError
from mvhlib.expression.ridge.moments import CHUNK_ROWS, GroupMoments
from mvhlib.expression.ridge.penalty import DEFAULT_ALPHAS, check_alphas, choose_alpha


class RidgeProbe(RegressorMixin, BaseEstimator):
    """Ridge on standardised features, with an intercept and a penalty chosen on inner folds.

    Parameters
    ----------
    alphas
        Penalties to choose from; one number fixes it.
    criterion
        What the inner folds compare: ``"pcc"`` or ``"mse"``; see `choose_alpha`.
    n_inner
        Most inner folds.

    Attributes
    ----------
    alpha_
        The penalty used.
    coef_
        `(G, D)`, for features as given (the standardisation is folded in), or `(D,)` for one gene.
    intercept_
        `(G,)`, or a number for one gene.
    choice_
        `Choice`: the criterion per penalty and whether the grid's edge was hit.
    n_features_in_
        Width of the features.
    """

    def __init__(self, alphas: float | Sequence[float] = DEFAULT_ALPHAS, criterion: str = "pcc",
                 n_inner: int = 8):
        self.alphas = alphas
        self.criterion = criterion
        self.n_inner = n_inner

    def fit(self, X: np.ndarray, Y: np.ndarray, groups: Sequence | None = None,
            sections: Sequence | None = None) -> "RidgeProbe":
        """Choose the penalty, then fit on all rows.

        Parameters
        ----------
        X
            Features `(T, D)`.
        Y
            Expression `(T, G)` or `(T,)`.
        groups
            Unit of each spot (study, patient, section) that inner folds leave out together. None:
            five runs of consecutive spots, since neighbours resemble each other and must not
            validate each other.
        sections
            Section of each spot where `groups` are coarser: the criterion is then taken within
            sections.

        Raises
        ------
        InputError
            On shapes that do not match or values that are not finite.
        """
        alphas = check_alphas(self.alphas)
        X, Y = np.asarray(X), np.asarray(Y)
        self._single = Y.ndim == 1
        Y = Y[:, None] if self._single else Y
        if X.ndim != 2 or len(X) != len(Y):
            raise InputError("RidgeProbe", "X", f"shape {X.shape} does not fit Y {Y.shape}",
                             "give one row per spot in both")
        if groups is None:
            groups = np.minimum(np.arange(len(X)) * 5 // max(len(X), 1), 4)
        groups = np.asarray(groups)
        sections = groups if sections is None else np.asarray(sections)
        if len(groups) != len(X) or len(sections) != len(X):
            raise InputError("RidgeProbe", "groups", f"have {len(groups)} labels for {len(X)} "
                             "spots", "give one label per spot")
        keys = list(zip(groups.tolist(), sections.tolist(), strict=True))
        moments = GroupMoments()
        rows: dict[tuple, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        for key, where in rows.items():
            moments.add(key, X[where], Y[where])
        units = {key: key[0] for key in rows}
        self.choice_ = choose_alpha(moments, units, alphas, criterion=self.criterion,
                                    n_inner=self.n_inner)
        self.alpha_ = self.choice_.alpha
        coef, intercept = solve(moments, rows, self.alpha_)
        self.coef_ = coef[:, 0] if self._single else coef.T
        self.intercept_ = float(intercept[0]) if self._single else intercept
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted expression `(T, G)`, or `(T,)` where one gene was fitted.

        Raises
        ------
        InputError
            On features of another width.
        """
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise InputError("RidgeProbe", "X", f"shape {X.shape}, fitted on width "
                             f"{self.n_features_in_}", "use features of the same encoder")
        return predict(X, self.coef_.T, self.intercept_)


def solve(moments: GroupMoments, groups: Iterable[Hashable], alpha: float,
          columns: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients `(D, G)` and intercepts `(G,)` of one fold, for raw features."""
    decomposition = moments.decompose(groups)
    fit = decomposition.fit(columns)
    coef = fit.coef([alpha])[0]
    shift_y = moments.shift_y if columns is None else moments.shift_y[columns]
    intercept = shift_y + fit.mean_y - (moments.shift_x + decomposition.mean_x) @ coef
    return coef, intercept


def predict(X: np.ndarray, coef: np.ndarray, intercept: np.ndarray | float,
            chunk_rows: int = CHUNK_ROWS) -> np.ndarray:
    """`X coef + intercept` in float64, chunk by chunk, so that `X` is never copied whole."""
    result = np.empty((len(X), *coef.shape[1:]))
    for start in range(0, len(X), chunk_rows):
        rows = slice(start, start + chunk_rows)
        result[rows] = X[rows].astype(np.float64) @ coef + intercept
    return result
