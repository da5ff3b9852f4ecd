"""One vector per slide from its bag of tiles: a mixture of prototypes, and two simple baselines.

Prototypes are k-means centres of the training tiles. Around them a mixture of diagonal Gaussians
is fitted to every slide by a step or a few of maximum a posteriori EM, and the slide is described
by the result, ``[pi, mu, Sigma]``: the share, the mean and the variance of each prototype
(PANTHER: Song et al., "Morphological prototyping for unsupervised slide representation learning in
computational pathology", CVPR 2024; the EM and its prior: Kim, "Differentiable
expectation-maximization for set representation learning", ICLR 2022).

With prototypes `m_k`, a prior of weight `tau` and prior variance `eps`, one step from
`pi_k = 1/K, mu_k = m_k, Sigma_k = eps` is

.. math:: q_{tk} \\propto \\pi_k N(x_t; \\mu_k, \\Sigma_k), \\quad \\sum_k q_{tk} = 1,
          \\quad n_k = \\sum_t q_{tk} + \\tau, \\quad \\pi_k = n_k / \\sum_j n_j,

.. math:: \\mu_k = \\frac{\\sum_t q_{tk} x_t + \\tau m_k}{n_k}, \\quad
          \\Sigma_k = \\frac{\\sum_t q_{tk} x_t^2 + \\tau (\\epsilon + m_k^2)}{n_k} - \\mu_k^2 .

A bag is `(T, D)`; bags are any sequence that gives one at a time, so that a class which reads a
file per index never holds more than one slide and the sample for k-means.

What a careful user should know
    * `eps` is a variance in the units of the features: without `scale` an encoder whose features
      have a standard deviation of 0.1 gets a prior a hundred times too wide.
    * Prototypes of features that carry the scanner are prototypes of scanners. Adjust features by
      site first (`mvhlib.expression.site.centre`) or look at the prototypes' tiles.
    * The variance of a prototype says how alike its tiles are only where the encoder resolves the
      difference, and its prior pulls small shares towards `eps`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from mvhlib import standardise
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Mixture:
    """A mixture of diagonal Gaussians fitted to one bag.

    Attributes
    ----------
    pi
        Share of each prototype, `(K,)`, sums to 1.
    mu, sigma
        Mean and variance (not its root) of each, `(K, D)`.
    responsibility
        Of every prototype for every tile, `(T, K)`, from the last E step.
    """

    pi: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    responsibility: np.ndarray

    @property
    def vector(self) -> np.ndarray:
        """``[pi, mu, Sigma]``, `(K + 2 K D,)`."""
        return np.concatenate([self.pi, self.mu.ravel(), self.sigma.ravel()])


def e_step(X: np.ndarray, pi: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Responsibilities `(T, K)` of a mixture of diagonal Gaussians for the rows of `X` `(T, D)`."""
    precision = 1.0 / sigma
    # sum over D of (x - mu)^2 / sigma, expanded so that no (T, K, D) array is made
    square = X**2 @ precision.T - 2 * X @ (mu * precision).T + (mu**2 * precision).sum(axis=1)
    log = np.log(pi) - 0.5 * (np.log(2 * np.pi * sigma).sum(axis=1) + square)  # (T, K)
    log -= log.max(axis=1, keepdims=True)
    weight = np.exp(log)
    return weight / weight.sum(axis=1, keepdims=True)


def m_step(X: np.ndarray, responsibility: np.ndarray, prototypes: np.ndarray, tau: float,
           eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, means and variances that maximise the posterior; see the head of the module."""
    n = responsibility.sum(axis=0) + tau  # (K,)
    mu = (responsibility.T @ X + tau * prototypes) / n[:, None]
    second = (responsibility.T @ X**2 + tau * (eps + prototypes**2)) / n[:, None]
    return n / n.sum(), mu, second - mu**2


def map_em(X: np.ndarray, prototypes: np.ndarray, n_iter: int = 1, tau: float = 1.0,
           eps: float = 1.0) -> Mixture:
    """Fit the mixture to one bag by `n_iter` steps from the prototypes.

    Parameters
    ----------
    X
        `(T, D)`.
    prototypes
        `(K, D)`.
    tau
        Weight of the prior, in tiles per prototype.
    eps
        Variance of the prior.

    Raises
    ------
    InputError
        On a bag without tiles, a width that differs, or features that are not finite.
    """
    X = np.asarray(X, dtype=np.float64)
    prototypes = np.asarray(prototypes, dtype=np.float64)
    _check_bag("mixture", X, prototypes.shape[1])
    if n_iter < 1 or tau <= 0 or eps <= 0:
        raise InputError("mixture", "n_iter, tau, eps", f"are {n_iter}, {tau}, {eps}",
                         "use at least one step and a positive prior")
    pi = np.full(len(prototypes), 1.0 / len(prototypes))
    mu, sigma = prototypes, np.full(prototypes.shape, float(eps))
    for _ in range(n_iter):
        responsibility = e_step(X, pi, mu, sigma)
        pi, mu, sigma = m_step(X, responsibility, prototypes, tau, eps)
    return Mixture(pi, mu, sigma, responsibility)


class MeanEmbedding(TransformerMixin, BaseEstimator):
    """The mean of a bag's tiles, `(D,)` per slide; the simplest baseline."""

    def fit(self, bags: Sequence[np.ndarray], y=None) -> "MeanEmbedding":
        """Note the width, and the mean and spread of the training slides."""
        self.width_ = _first(bags).shape[1]
        self.blocks_ = [slice(0, self.width_)]
        _remember_blocks(self, bags)
        return self

    def transform(self, bags: Sequence[np.ndarray]) -> np.ndarray:
        """`(n, D)`, centred on the training slides and of total variance one there."""
        return _balance(self, self.describe(bags))

    def describe(self, bags: Sequence[np.ndarray]) -> np.ndarray:
        """`(n, D)` in the units of the features."""
        return np.stack([_checked("mean", bag, self.width_).mean(axis=0) for bag in bags])


class _Prototypes(TransformerMixin, BaseEstimator):
    """Base of the histogram and the mixture: scaling of tiles, and k-means on them."""

    def fit(self, bags: Sequence[np.ndarray], y=None):
        """Fit scale, principal components and prototypes on tiles of the training slides.

        Every slide gives the same number of tiles at most, so that a large one does not decide
        what there is.
        """
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        rng = np.random.default_rng(self.seed)
        tiles = self._sample(bags, rng)
        if len(tiles) <= self.n_prototypes:
            raise InputError("prototypes", "tiles", f"are {len(tiles)} for {self.n_prototypes} "
                             "prototypes", "use fewer prototypes or more slides")
        self.width_ = tiles.shape[1]
        scale = standardise.fit(tiles)
        self.centre_, self.map_ = scale.mean, np.diag(scale.inverse)
        with threadpool_limits(1):
            if self.n_components is not None:
                scaled = (tiles - self.centre_) @ self.map_
                n = min(self.n_components, *scaled.shape)
                fitted = PCA(n, svd_solver="full").fit(scaled)
                # one factor for all components: their proportions stay, their mean variance is 1
                self.map_ = self.map_ @ fitted.components_.T / np.sqrt(
                    fitted.explained_variance_.mean())
            found = KMeans(self.n_prototypes, n_init=self.n_init,
                           random_state=int(rng.integers(2**31))).fit(self._scale(tiles))
        # largest first, so that prototype 0 is the commonest whatever order k-means found
        order = np.argsort(-np.bincount(found.labels_, minlength=self.n_prototypes),
                           kind="stable")
        self.prototypes_ = found.cluster_centers_[order]
        self.blocks_ = self._layout()
        _remember_blocks(self, bags)
        return self

    def transform(self, bags: Sequence[np.ndarray]) -> np.ndarray:
        """`(n, E)`: `describe`, each block centred on the training slides and of variance one."""
        return _balance(self, self.describe(bags))

    def describe(self, bags: Sequence[np.ndarray]) -> np.ndarray:
        """`(n, E)` as the paper has it, in units of the scaled features."""
        return np.stack([self._vector(bag) for bag in bags])

    def assign(self, bag: np.ndarray) -> np.ndarray:
        """Responsibility of every prototype for every tile, `(T, K)`, at the prototypes."""
        K = len(self.prototypes_)
        return e_step(self._scale(bag), np.full(K, 1 / K), self.prototypes_,
                      np.ones_like(self.prototypes_))

    def distance(self, bag: np.ndarray) -> np.ndarray:
        """Euclidean distance of every tile to every prototype, `(T, K)`."""
        from scipy.spatial.distance import cdist

        return cdist(self._scale(bag), self.prototypes_)

    def _scale(self, bag: np.ndarray) -> np.ndarray:
        return (_checked("prototypes", bag, self.width_) - self.centre_) @ self.map_

    def _sample(self, bags: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        width, rows = _first(bags).shape[1], []
        for bag in bags:
            bag = _checked("prototypes", bag, width)
            n = min(len(bag), self.tiles_per_slide)
            rows.append(bag[np.sort(rng.permutation(len(bag))[:n])])
        return np.concatenate(rows)


class HistogramEmbedding(_Prototypes):
    """Share of a slide's tiles that lie nearest to each prototype, `(K,)` per slide.

    Parameters
    ----------
    n_prototypes
        `K`.
    n_components
        Principal components of the standardised tiles in which distances are taken; None keeps
        all dimensions.
    tiles_per_slide
        Most tiles of one slide that k-means sees.
    n_init
        Starts of k-means.
    seed
        Draws the tiles and starts k-means.
    """

    def __init__(self, n_prototypes: int = 16, n_components: int | None = None,
                 tiles_per_slide: int = 200, n_init: int = 3, seed: int = 0):
        self.n_prototypes, self.n_components = n_prototypes, n_components
        self.tiles_per_slide, self.n_init, self.seed = tiles_per_slide, n_init, seed

    def _layout(self) -> list[slice]:
        return [slice(0, self.n_prototypes)]

    def _vector(self, bag: np.ndarray) -> np.ndarray:
        nearest = self.distance(bag).argmin(axis=1)
        return np.bincount(nearest, minlength=self.n_prototypes) / len(nearest)


class MixtureEmbedding(_Prototypes):
    """``[pi, mu, Sigma]`` of a slide, `(K + 2 K D,)`; see the head of the module.

    Parameters
    ----------
    n_prototypes
        `K`; the paper's 16 is for thousands of tiles per slide.
    n_iter
        Steps of EM.
    tau, eps
        Weight and variance of the prior, see `map_em`.
    n_components, tiles_per_slide, n_init, seed
        As in `HistogramEmbedding`.

    Notes
    -----
    `transform` gives each of the three blocks the same total variance over the training slides;
    otherwise the `K` shares would vanish beside the `2 K D` others in any principal component.
    """

    def __init__(self, n_prototypes: int = 16, n_iter: int = 1, tau: float = 1.0,
                 eps: float = 1.0, n_components: int | None = None, tiles_per_slide: int = 200,
                 n_init: int = 3, seed: int = 0):
        self.n_prototypes, self.n_iter, self.tau, self.eps = n_prototypes, n_iter, tau, eps
        self.n_components, self.tiles_per_slide = n_components, tiles_per_slide
        self.n_init, self.seed = n_init, seed

    def mixture(self, bag: np.ndarray) -> Mixture:
        """The mixture of one slide, in units of the scaled features."""
        return map_em(self._scale(bag), self.prototypes_, self.n_iter, self.tau, self.eps)

    def _layout(self) -> list[slice]:
        K, size = self.prototypes_.shape[0], self.prototypes_.size
        return [slice(0, K), slice(K, K + size), slice(K + size, K + 2 * size)]

    def _vector(self, bag: np.ndarray) -> np.ndarray:
        return self.mixture(bag).vector


def prototype_table(embedding: MixtureEmbedding, bags: Sequence[np.ndarray]) -> "pd.DataFrame":
    """Two numbers per slide and prototype: its share, and how unlike its tiles are.

    Returns
    -------
    pd.DataFrame
        Columns ``share <k>`` and ``spread <k>``, one row per slide; the spread is the root of the
        mean over dimensions of the prototype's variance.
    """
    import pandas as pd

    fitted = [embedding.mixture(bag) for bag in bags]
    share = np.stack([each.pi for each in fitted])
    spread = np.sqrt(np.stack([each.sigma.mean(axis=1) for each in fitted]))
    return pd.DataFrame({f"{name} {k}": values[:, k] for name, values in
                         (("share", share), ("spread", spread)) for k in range(share.shape[1])})


def nearest_tiles(embedding: _Prototypes, bags: Mapping[str, np.ndarray], n: int = 8
                  ) -> "pd.DataFrame":
    """The `n` tiles that lie nearest to each prototype, at most one of a slide where that suffices.

    Returns
    -------
    pd.DataFrame
        Columns prototype, slide, tile (row of the bag), distance; nearest first.
    """
    import pandas as pd

    names = list(bags)
    distance = [embedding.distance(bags[name]) for name in names]
    rows = []
    for k in range(len(embedding.prototypes_)):
        best = [int(d[:, k].argmin()) for d in distance]
        each = sorted((float(d[t, k]), name, t)
                      for d, name, t in zip(distance, names, best, strict=True))
        if len(each) < n:
            each = sorted((float(d[t, k]), name, t)
                          for d, name in zip(distance, names, strict=True)
                          for t in range(len(d)))
        rows += [(k, name, tile, value) for value, name, tile in each[:n]]
    return pd.DataFrame(rows, columns=["prototype", "slide", "tile", "distance"])


def gather(features: Mapping[str, np.ndarray], slides: "pd.DataFrame") -> dict[str, np.ndarray]:
    """Join the tiles of all slides of a patient into one bag.

    Parameters
    ----------
    features
        Slide -> `(T, D)`, or an object with ``.features``.
    slides
        Columns slide, patient.

    Returns
    -------
    dict
        Patient -> `(T, D)` float32, in the order of `slides`.

    Raises
    ------
    InputError
        If a slide of the table has no features, features have no row in it, or a bag is empty.
    """
    missing = sorted(set(slides["slide"]) - set(features))
    if missing:
        raise InputError("slides", "features", f"are missing for {len(missing)} of {len(slides)} "
                         f"slides, for example {missing[:3]}", "embed them, or drop their rows")
    unknown = sorted(set(features) - set(slides["slide"]))
    if unknown:
        raise InputError("slides", "slide", f"{unknown[:3]} have features but no row",
                         "add them to the table, or name the slides that you want")
    bags = {}
    for patient, rows in slides.groupby("patient", sort=False):
        parts = [np.asarray(getattr(features[name], "features", features[name]), np.float32)
                 for name in rows["slide"]]
        bags[str(patient)] = _checked(str(patient), np.concatenate(parts), None).astype(np.float32)
    return bags


def _first(bags: Sequence[np.ndarray]) -> np.ndarray:
    for bag in bags:
        return _checked("bags", bag, None)
    raise InputError("bags", "number", "is zero", "give the training slides")


def _checked(where: str, bag: np.ndarray, width: int | None) -> np.ndarray:
    bag = np.asarray(bag, dtype=np.float64)
    _check_bag(where, bag, width)
    return bag


def _check_bag(where: str, bag: np.ndarray, width: int | None) -> None:
    if bag.ndim != 2 or len(bag) == 0:
        raise InputError(where, "bag", f"has shape {bag.shape}", "give one row per tile, and leave "
                         "out slides without tiles")
    if width is not None and bag.shape[1] != width:
        raise InputError(where, "bag", f"has {bag.shape[1]} features, expected {width}",
                         "use one encoder for all slides")
    if not np.isfinite(bag).all():
        raise InputError(where, "bag", "holds NaN or infinity",
                         "check the encoder: its weights or its precision overflow")


def _remember_blocks(embedding, bags: Sequence[np.ndarray]) -> None:
    """Mean of every column over the training slides, and one scale per block."""
    values = embedding.describe(bags)
    embedding.mean_ = values.mean(axis=0)
    total = [float(values[:, block].var(axis=0).sum()) for block in embedding.blocks_]
    embedding.block_scale_ = [np.sqrt(each) if each > 1e-24 else 1.0 for each in total]


def _balance(embedding, values: np.ndarray) -> np.ndarray:
    values = values - embedding.mean_
    for block, scale in zip(embedding.blocks_, embedding.block_scale_, strict=True):
        values[:, block] /= scale
    return values
