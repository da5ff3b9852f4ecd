"""Sums over groups of spots, and the ridge solutions of any fold that follow from them."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mvhlib.artifacts import InputError

#: Rows that are widened to float64 at a time: bounds the memory of a pass over a large section.
CHUNK_ROWS = 2048

#: Columns of coefficients (penalties times genes) that a score works on at a time, and rows of a
#: block of its symmetric products.
SCORE_COLUMNS, SCORE_ROWS = 2048, 128

#: A centred sum of squares below this part of the uncentred one is rounding, not variation.
CONSTANT = 1e-13

#: Decompositions are kept up to this size, since two folds can share an inner training set.
CACHE_BYTES = 256 * 2**20


@dataclass
class Moments:
    """Sums over a group of spots, about a common shift.

    Attributes
    ----------
    n
        Number of spots.
    x, y
        Sums, `(D,)` and `(G,)`.
    xx, xy
        `(D, D)` and `(D, G)`.
    yy
        Sum of squares per gene, `(G,)`.
    """

    n: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.x + other.x, self.y + other.y,
                       self.xx + other.xx, self.xy + other.xy, self.yy + other.yy)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.n - other.n, self.x - other.x, self.y - other.y,
                       self.xx - other.xx, self.xy - other.xy, self.yy - other.yy)

    def __iadd__(self, other: "Moments") -> "Moments":
        self.n += other.n
        for mine, theirs in ((self.x, other.x), (self.y, other.y), (self.xx, other.xx),
                             (self.xy, other.xy), (self.yy, other.yy)):
            mine += theirs
        return self

    def copy(self) -> "Moments":
        return Moments(self.n, self.x.copy(), self.y.copy(), self.xx.copy(), self.xy.copy(),
                       self.yy.copy())

    def genes(self, columns: Sequence[int] | None) -> "Moments":
        """Select genes of the same spots; the feature part is shared."""
        if columns is None:
            return self
        return Moments(self.n, self.x, self.y[columns], self.xx, self.xy[:, columns],
                       self.yy[columns])

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Means of x and y (about the shift) and the centred `C_xx`, `C_xy`, `c_yy`."""
        mean_x, mean_y = self.x / self.n, self.y / self.n
        cxx = self.xx - np.outer(self.x, mean_x)
        cxy = self.xy - np.outer(self.x, mean_y)
        cyy = self.yy - self.y * mean_y
        cyy[cyy <= CONSTANT * self.yy] = 0.0
        return mean_x, mean_y, cxx, cxy, cyy


class GroupMoments:
    """Moments of every group of spots, gathered in one streaming pass.

    A group is the finest thing that a fold keeps together or that a score is averaged over: a
    section, usually. Both sides are shifted by the means of the first chunk seen, which removes
    the cancellation that a large common mean would cause; the shift is undone in the intercept.

    Parameters
    ----------
    chunk_rows
        Rows that are widened to float64 at a time.
    """

    def __init__(self, chunk_rows: int = CHUNK_ROWS):
        self.chunk_rows = chunk_rows
        self.groups: dict[Hashable, Moments] = {}
        self.shift_x: np.ndarray | None = None
        self.shift_y: np.ndarray | None = None
        self._total: Moments | None = None
        self._cache: OrderedDict[frozenset, Decomposition] = OrderedDict()

    def add(self, group: Hashable, X: np.ndarray, Y: np.ndarray) -> "GroupMoments":
        """Add the rows of one group; may be called again for further rows of the same group.

        Parameters
        ----------
        group
            Label, for example the section's name.
        X
            Features `(T, D)`.
        Y
            Expression `(T, G)`.

        Raises
        ------
        InputError
            On no rows, rows that do not match, a width or number of genes that differs from the
            groups before, or values that are not finite.
        """
        X, Y = np.asarray(X), np.asarray(Y)
        if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or len(X) == 0:
            raise InputError(group, "features", f"shape {X.shape} does not fit expression "
                             f"{Y.shape}", "give one row per spot in both, and at least one")
        if self.shift_x is None:
            with np.errstate(invalid="ignore", over="ignore"):
                self.shift_x = X[:self.chunk_rows].mean(axis=0, dtype=np.float64)
                self.shift_y = Y[:self.chunk_rows].mean(axis=0, dtype=np.float64)
            check_finite(group, self.shift_x, self.shift_y)
        if X.shape[1] != len(self.shift_x):
            raise InputError(group, "features", f"are {X.shape[1]} wide, those of the sections "
                             f"before {len(self.shift_x)}", "use features of one encoder")
        if Y.shape[1] != len(self.shift_y):
            raise InputError(group, "genes", f"number {Y.shape[1]}, in the sections before "
                             f"{len(self.shift_y)}", "use one list of genes for all sections")
        width, genes = X.shape[1], Y.shape[1]
        sums = Moments(0, np.zeros(width), np.zeros(genes), np.zeros((width, width)),
                       np.zeros((genes, width)).T, np.zeros(genes))
        # Buffers once, since fresh pages for every chunk cost as much as filling them.
        n_rows = min(self.chunk_rows, len(X))
        x_rows, y_rows = np.empty((n_rows, width)), np.empty((n_rows, genes))
        xx, yx = np.empty((width, width)), np.empty((genes, width))
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(X), n_rows):
                rows = slice(start, start + n_rows)
                n = len(X[rows])
                x = np.subtract(X[rows], self.shift_x, out=x_rows[:n])
                y = np.subtract(Y[rows], self.shift_y, out=y_rows[:n])
                sums.n += n
                sums.x += x.sum(axis=0)
                sums.y += y.sum(axis=0)
                sums.xx += np.matmul(x.T, x, out=xx)  # numpy sees the symmetry: half the work
                sums.xy.T[...] += np.matmul(y.T, x, out=yx)  # in this order, since G is small
                sums.yy += np.einsum("tg,tg->g", y, y)
        # A NaN or an infinity anywhere survives into the sums, so one look at them is enough.
        check_finite(group, sums.x, sums.y)
        if group in self.groups:
            self.groups[group] += sums
        else:
            self.groups[group] = sums
        self._total = None
        self._cache.clear()
        return self

    @property
    def total(self) -> Moments:
        """Moments of all groups together."""
        if self._total is None:
            self._total = self._sum(self.groups)
        return self._total

    def _sum(self, groups: Iterable[Hashable]) -> Moments:
        groups = list(groups)
        result = self.groups[groups[0]].copy()
        for group in groups[1:]:
            result += self.groups[group]
        return result

    def subset(self, groups: Iterable[Hashable]) -> Moments:
        """Moments of the union of `groups`, by the shorter of summation and subtraction.

        Subtraction is used only when it leaves at least half of the spots: what remains is then
        never small against what was cancelled.
        """
        groups = list(groups)
        unknown = [group for group in groups if group not in self.groups]
        if unknown or not groups:
            raise InputError("folds", "groups", f"are unknown, or none is given: {unknown[:3]}",
                             "add their spots first")
        kept = set(groups)
        left = [group for group in self.groups if group not in kept]
        n_left = sum(self.groups[group].n for group in left)
        if len(left) < len(groups) and 2 * n_left <= self.total.n:
            result = self.total.copy()
            for group in left:
                result = result - self.groups[group]
            return result
        return self._sum(groups)

    def decompose(self, groups: Iterable[Hashable]) -> "Decomposition":
        """Eigendecomposition of a training set; kept, since folds share inner training sets."""
        key = frozenset(groups)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # The order of the set must not decide the order of the sum.
        solved = Decomposition(self.subset([group for group in self.groups if group in key]))
        self._cache[key] = solved
        while len(self._cache) > 1 and len(self._cache) * solved.nbytes > CACHE_BYTES:
            self._cache.popitem(last=False)
        return solved


def check_finite(where: Hashable, x: np.ndarray, y: np.ndarray) -> None:
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x))
        raise InputError(where, "features", f"hold NaN or infinity, for example in column {bad[0]}",
                         "embed the section again")
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y))
        raise InputError(where, "expression",
                         f"holds NaN or infinity, for example in gene number {bad[0]}",
                         "leave out spots without counts")


class Decomposition:
    """A training set's standardised Gram matrix, `R = V diag(values) V'`.

    Parameters
    ----------
    moments
        Of the training spots.

    Raises
    ------
    InputError
        With fewer than two spots.
    """

    def __init__(self, moments: Moments):
        if moments.n < 2:
            raise InputError("fold", "training spots", f"are {moments.n}", "train on two or more")
        self.n = moments.n
        self.moments = moments
        self.mean_x, _, cxx, _, _ = moments.centred()
        squares = np.diag(cxx).copy()
        varies = squares > CONSTANT * np.diag(moments.xx)
        scale = np.sqrt(np.where(varies, squares, 1.0) / moments.n)
        # A constant feature carries nothing: its row is zero rather than rounding over one.
        self.inverse = inverse = np.where(varies, 1.0 / scale, 0.0)
        cxx *= inverse[:, None]
        cxx *= inverse
        self.values, vectors = np.linalg.eigh(cxx)
        np.clip(self.values, 0.0, None, out=self.values)
        vectors *= inverse[:, None]
        self.basis = vectors  # (D, D): from eigenvectors to unscaled features

    @property
    def nbytes(self) -> int:
        return self.basis.nbytes + self.moments.xx.nbytes + self.moments.xy.nbytes

    def fit(self, columns: Sequence[int] | None = None) -> "FoldFit":
        """Fit all genes, or those of `columns`."""
        return FoldFit(self, self.moments.genes(columns))


class FoldFit:
    """Ridge solutions of one training set for any penalty.

    Parameters
    ----------
    decomposition
        Of the training set's features.
    moments
        Of the training set, with the genes wanted.
    """

    def __init__(self, decomposition: Decomposition, moments: Moments):
        self.decomposition = decomposition
        self.mean_y = moments.y / moments.n
        cxy = moments.xy - np.outer(moments.x, self.mean_y)
        cyy = moments.yy - moments.y * self.mean_y
        # A gene that is constant in training has nothing to learn; rounding must not become a
        # prediction whose correlation looks like a number.
        cxy[:, cyy <= CONSTANT * moments.yy] = 0.0
        self.projected = decomposition.basis.T @ cxy  # (D, G)

    def shrinkage(self, alphas: Sequence[float]) -> np.ndarray:
        """`1 / (eigenvalue + alpha)`, `(D, A)`."""
        return 1.0 / (self.decomposition.values[:, None] + np.asarray(alphas)[None, :])

    def coef(self, alphas: Sequence[float]) -> np.ndarray:
        """Coefficients for raw (not standardised) features, `(A, D, G)`."""
        return np.stack([self.decomposition.basis @ (shrink[:, None] * self.projected)
                         for shrink in self.shrinkage(alphas).T])

    def score(self, held_out: Moments, alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Pearson correlation and mean squared error on held-out spots, from their moments.

        Returns
        -------
        tuple
            `(A, G)` each; NaN correlation where truth or prediction is constant.
        """
        basis, projected = self.decomposition.basis, self.projected
        mean_x, mean_y, cxx, cxy, cyy = held_out.centred()
        shrink = self.shrinkage(alphas)  # (D, A)
        # All but the variance is a sum over the eigenbasis: one thin product for all penalties.
        covariance = shrink.T @ (projected * (basis.T @ cxy))
        shift = basis.T @ (mean_x - self.decomposition.mean_x)  # (D,)
        bias = mean_y - self.mean_y - (shrink * shift[:, None]).T @ projected
        variance = self._variance(cxx, shrink)
        mse = (cyy - 2 * covariance + variance) / held_out.n + bias**2
        # A constant prediction leaves only rounding behind: compare with what w could have made.
        reach = float(np.diag(cxx) @ self.decomposition.inverse**2)
        norms = (shrink**2).T @ projected**2
        flat_prediction = variance <= CONSTANT * norms * max(reach, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            pcc = covariance / np.sqrt(variance * cyy)
        pcc[flat_prediction | (cyy == 0)[None, :]] = np.nan
        return np.clip(pcc, -1.0, 1.0), np.clip(mse, 0.0, None)

    def _variance(self, cxx: np.ndarray, shrink: np.ndarray) -> np.ndarray:
        """`w' C_xx w` for the coefficients of every penalty and gene, `(A, G)`."""
        basis = self.decomposition.basis
        (width, n_alphas), n_genes = shrink.shape, self.projected.shape[1]
        # With many columns it is cheaper to bring the matrix into the eigenbasis than them out.
        many = n_alphas * n_genes > 2 * width
        matrix = basis.T @ (cxx @ basis) if many else cxx
        result = np.empty((n_alphas, n_genes))
        step = max(1, SCORE_COLUMNS // max(n_genes, 1))
        for start in range(0, n_alphas, step):
            some = shrink[:, start:start + step]
            w = (some[:, :, None] * self.projected[:, None, :]).reshape(width, -1)
            result[start:start + step] = _quadratic(
                matrix, w if many else basis @ w).reshape(-1, n_genes)
        return result


def _quadratic(matrix: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`w' M w` for every column of `w`; a symmetric `M` is multiplied from its diagonal on only."""
    result = np.zeros(w.shape[1])
    for start in range(0, len(w), SCORE_ROWS):
        rows = slice(start, start + SCORE_ROWS)
        part = matrix[rows, start:].copy()
        part[:, SCORE_ROWS:] *= 2  # what lies below the diagonal mirrors this
        result += np.einsum("dc,dc->c", w[rows], part @ w[start:])
    return result
