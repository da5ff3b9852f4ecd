"""Ridge regression for many folds and many penalties at once, exactly.

A ridge fit needs the rows only through their moments: `n`, the sums of x and y, X'X, X'Y and y'y.
Moments of disjoint groups of spots add up, so one pass over the data (a Gram matrix per section,
float64) is enough for every leave-group-out fold: a fold is a sum of groups, or the total less the
group left out. One eigendecomposition per fold then serves all penalties, and even the scores on
the held-out group come from that group's own moments,

.. math:: \\mathrm{cov}(\\hat y, y) = w^\\top C_{xy}, \\qquad
          \\mathrm{var}(\\hat y) = w^\\top C_{xx} w,

without predicting a spot. Standardisation of the features (`StandardScaler`) is a diagonal scaling
of the same matrix. Results equal scikit-learn's ``make_pipeline(StandardScaler(), Ridge(alpha))``.

Memory is `D^2 + D G` numbers per group and a chunk of rows, whatever the number of spots.

Products are float64 throughout. Chunks in float32 with float64 sums would halve the time of the
pass and were tried and refused: with 40,000 spots, 768 features and targets of unit noise,
predictions moved by 3e-5 for independent features, and by 7e-2 at the smallest penalty for features
of condition number 1000. A last layer norm ties the features to each other: those of this library's
backbones have 4e7 on the synthetic cohort.

Everything goes through numpy's own BLAS and LAPACK: scipy's wheel brings a second OpenBLAS, whose
threads wait in a spin while the first one's work, which made an eigendecomposition between two
matrix products two to five times slower.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from mvhlib.artifacts import InputError

#: Penalties in units of a standardised feature's sum of squares per row; HEST's users found
#: optima in the thousands, small cohorts lie lower.
DEFAULT_ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 5, 13))

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
        """The same spots with the chosen genes only; the feature part is shared."""
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
            _check_finite(group, self.shift_x, self.shift_y)
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
        _check_finite(group, sums.x, sums.y)
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
            raise InputError("folds", "groups", f"not known or none: {unknown[:3]}",
                             "add their rows first")
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


def _check_finite(where: Hashable, x: np.ndarray, y: np.ndarray) -> None:
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
        """Everything that depends on the genes; `columns` chooses among them."""
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
        """Coefficients for features as they are (not standardised), `(A, D, G)`."""
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


def check_alphas(alphas: float | Sequence[float]) -> tuple[float, ...]:
    """Penalties as a tuple; refuse what leaves a fold with fewer spots than features unsolved.

    Raises
    ------
    InputError
        If there is none, or one is not positive and finite.
    """
    values = tuple(float(alpha) for alpha in np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    if not values or not np.isfinite(values).all() or min(values) <= 0:
        raise InputError("ridge", "alphas", f"{list(values)} are not all positive",
                         "give penalties above 0")
    return values


@dataclass(frozen=True)
class Choice:
    """The penalty chosen on inner folds.

    Attributes
    ----------
    alpha
        The penalty.
    curve
        Criterion per penalty `(A,)`; NaN everywhere when there was nothing to choose.
    n_inner
        Inner folds that it rests on.
    at_edge
        Whether it is the smallest or largest offered, so that a wider grid might do better.
    """

    alpha: float
    curve: np.ndarray
    n_inner: int
    at_edge: bool


def inner_folds(units: Mapping[Hashable, Hashable], n_inner: int) -> list[list[Hashable]]:
    """Inner validation sets: groups of one unit together, at most `n_inner` sets.

    Parameters
    ----------
    units
        Unit (study, patient, section, block) of each training group.
    n_inner
        With more units than this, units are dealt to the sets in the order of their names.
    """
    names = sorted(set(units.values()), key=str)
    place = {name: number % max(2, n_inner) for number, name in enumerate(names)}
    sets: dict[int, list[Hashable]] = {}
    for group, unit in units.items():
        sets.setdefault(place[unit], []).append(group)
    return [sets[number] for number in sorted(sets)]


def choose_alpha(moments: GroupMoments, units: Mapping[Hashable, Hashable],
                 alphas: Sequence[float], *, columns: Sequence[int] | None = None,
                 criterion: str = "pcc", n_inner: int = 8) -> Choice:
    """Choose the penalty by leaving out one unit of the training set after the other.

    The criterion is averaged over genes (without those that are constant), then over the held-out
    groups, then over inner folds. ``"pcc"`` is the quantity that is reported; it does not see
    offsets between sections, which inner folds by study would otherwise punish. A tie goes to the
    larger penalty.

    Parameters
    ----------
    moments
        Of all groups.
    units
        Training group -> unit that is left out together. Nothing else is looked at.
    alphas
        Penalties to choose from.
    columns
        Genes of this fold; None for all.
    criterion
        ``"pcc"`` (largest) or ``"mse"`` (smallest).
    n_inner
        Most inner folds; see `inner_folds`.

    Returns
    -------
    Choice
        With the geometric middle of `alphas` when the training set has a single unit.

    Raises
    ------
    InputError
        On an unknown criterion.
    """
    if criterion not in ("pcc", "mse"):
        raise InputError("ridge", "criterion", f"{criterion!r} is not known",
                         "use 'pcc' or 'mse'")
    alphas = check_alphas(alphas)
    if len(alphas) == 1:
        return Choice(alphas[0], np.full(1, np.nan), 0, False)
    folds = inner_folds(units, n_inner)
    nothing = Choice(float(np.sort(alphas)[len(alphas) // 2]), np.full(len(alphas), np.nan), 0,
                     False)
    if len(folds) < 2:
        return nothing
    curves = []
    for held_out in folds:
        out = set(held_out)
        fit = moments.decompose([group for group in units if group not in out]).fit(columns)
        scores = []
        for group in held_out:
            pcc, mse = fit.score(moments.groups[group].genes(columns), alphas)
            scores.append(_mean_known(pcc) if criterion == "pcc" else -mse.mean(axis=1))
        curves.append(_mean_known(np.array(scores).T))
    curve = _mean_known(np.array(curves).T)
    if not np.isfinite(curve).any():
        return nothing
    order = np.argsort(alphas)[::-1]
    values = np.where(np.isfinite(curve), curve, -np.inf)
    best = order[np.argmax(values[order])]
    edge = bool(best in (order[0], order[-1]))
    return Choice(alphas[best], curve if criterion == "pcc" else -curve, len(folds), edge)


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis without NaN; NaN where nothing is known."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


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
        """Fit.

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
    """Coefficients `(D, G)` and intercepts `(G,)` of one fold, for features as they are."""
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


def hest_ridge(X_train: np.ndarray, y_train: np.ndarray, X_test: np.ndarray, *,
               n_components: int = 256, random_state: int = 1, solver: str = "lsqr",
               tol: float = 1e-4) -> np.ndarray:
    """Predictions by HEST-Benchmark's regression, as it is.

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
    _check_finite("hest_ridge", X_test.sum(axis=0), y_train.sum(axis=0))
    reduce, ridge = _hest_fit(X_train, y_train, n_components, random_state, solver, tol)
    return ridge.predict(_components(reduce.transform(X_test)))


def hest_linear(X_train: np.ndarray, y_train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`hest_ridge` as coefficients `(D, G)` and intercept `(G,)` for features as they are.

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

    _check_finite("hest_ridge", X.sum(axis=0), y.sum(axis=0))
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
