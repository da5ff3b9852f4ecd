"""HEST-Benchmark's regression, unchanged."""

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.expression.ridge.moments import check_finite


def hest_ridge(X_train: np.ndarray, y_train: np.ndarray, X_test: np.ndarray, *,
               n_components: int = 256, random_state: int = 1, solver: str = "lsqr",
               tol: float = 1e-4) -> np.ndarray:
    """Predict by HEST-Benchmark's regression, unchanged.

    `StandardScaler`, then PCA to `n_components` fitted on the training spots, then ridge by lsqr
    without an intercept and with the penalty `100 / (n_components G)` (at most 1000 iterations).
    The features are centred and there is no intercept, so predictions centre on 0 and the mean
    squared error holds the squared mean of the expression: never compare it with that of a fit
    with an intercept. With fewer spots or features than `n_components`, as many components as
    there are.

    Parameters
    ----------
    X_train, X_test
        Features `(T, D)`.
    y_train
        Expression `(T, G)`; HEST uses log1p of raw counts.
    n_components
        Principal components.
    random_state
        Of the PCA's randomised solver.
    solver, tol
        Of scikit-learn's ridge; the defaults are HEST's (its tolerance is scikit-learn's).

    Returns
    -------
    np.ndarray
        `(T, G)` for the rows of `X_test`.

    Raises
    ------
    InputError
        On widths that differ or values that are not finite.

    References
    ----------
    Jaume et al., "HEST-1k", NeurIPS 2024, benchmark code.
    """
    X_train, X_test, y_train = np.asarray(X_train), np.asarray(X_test), np.asarray(y_train)
    if X_train.shape[1] != X_test.shape[1]:
        raise InputError("hest_ridge", "features", f"are {X_test.shape[1]} wide in the test and "
                         f"{X_train.shape[1]} in the training set", "use features of one encoder")
    check_finite("hest_ridge", X_test.sum(axis=0), y_train.sum(axis=0))
    reduce, ridge = _hest_fit(X_train, y_train, n_components, random_state, solver, tol)
    return ridge.predict(_components(reduce.transform(X_test)))


def hest_linear(X_train: np.ndarray, y_train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients `(D, G)` and intercept `(G,)` of `hest_ridge`, for raw features.

    Its predictions are those of `hest_ridge` but for the rounding of the components to float32.
    """
    reduce, ridge = _hest_fit(np.asarray(X_train), np.asarray(y_train), 256, 1, "lsqr", 1e-4)
    scaler, pca = reduce.steps[0][1], reduce.steps[1][1]
    coef = pca.components_.astype(np.float64).T @ ridge.coef_.T  # (D, K) (K, G)
    scale = scaler.scale_.astype(np.float64)
    intercept = -(scaler.mean_ / scale + pca.mean_) @ coef
    return coef / scale[:, None], intercept


def _hest_fit(X: np.ndarray, y: np.ndarray, n_components: int, random_state: int, solver: str,
              tol: float):
    """Scaler with PCA, and the ridge regression behind them, fitted."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_finite("hest_ridge", X.sum(axis=0), y.sum(axis=0))
    n_components = min(n_components, *X.shape)
    reduce = make_pipeline(StandardScaler(), PCA(n_components, random_state=random_state))
    Z = _components(reduce.fit_transform(X))
    y = y.astype(np.float64)
    ridge = Ridge(solver=solver, tol=tol, alpha=100 / (n_components * y.shape[1]),
                  random_state=0, fit_intercept=False, max_iter=1000)
    return reduce, ridge.fit(Z, y)


def _components(Z: np.ndarray) -> np.ndarray:
    """HEST keeps the components as float32 tensors, which scikit-learn turns into float64: lsqr
    stops by a tolerance, and in float32 it stops elsewhere."""
    return Z.astype(np.float32).astype(np.float64)
