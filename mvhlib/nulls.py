"""Null distributions of a score, under which image and expression are unrelated.

Maps of one section are smooth, and two smooth maps correlate by chance: a null that keeps the
smoothness (`toroidal_null`) stands beside one that does not (`permutation_null`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mvhlib.artifacts import InputError


@dataclass(frozen=True)
class Null:
    """A score and its distribution without any relation between truth and prediction.

    Attributes
    ----------
    observed
        Mean over sections of the mean over genes of Pearson's r.
    low, high
        Between them lies 95 % (or the confidence asked for) of the null.
    p
        Two-sided, the observed order counted among the draws.
    p_smallest
        The least p that so many draws can give.
    draws
        The score of every draw, the observed one not among them.
    method
        ``"permutation"``, ``"toroidal shift"`` or ``"random shift"`` (not wrapped).
    """

    observed: float
    low: float
    high: float
    p: float
    p_smallest: float
    draws: np.ndarray
    method: str


def permutation_null(measured: Sequence[np.ndarray], predicted: Sequence[np.ndarray], *,
                     confidence: float = 0.95, n_draws: int = 999,
                     rng: np.random.Generator) -> Null:
    """Null of a score by permuting the spots within each section, all genes together.

    Exact where spots are exchangeable. Neighbouring spots are not: maps that are smooth on their
    own accord correlate by chance far more than their permutations do, and this null is then too
    narrow (simulated by `null_coverage`). `toroidal_null` keeps that smoothness.

    Parameters
    ----------
    measured, predicted
        `(T_s, G)` per section. Spots with a missing value are left out; genes that do not vary in a
        section are left out of it.
    confidence
        Share of the null between ``low`` and ``high``.
    n_draws
        Permutations.
    rng
        Source of randomness.

    Raises
    ------
    InputError
        On shapes that differ, or where no gene varies in any section.
    """
    observed, draws = [], []
    for truth, guess in _paired_maps(measured, predicted):
        x, y = _unit_columns(truth), _unit_columns(guess)
        both = (x != 0).any(axis=0) & (y != 0).any(axis=0)
        if not both.any():
            continue
        x, y = x[:, both], y[:, both]
        observed.append((x * y).sum() / both.sum())
        # r of a permuted map, summed over genes, is the sum of one entry per row of x y^T.
        products, rows = x @ y.T / both.sum(), np.arange(len(x))
        scores = []
        for start in range(0, n_draws, 100):
            orders = np.tile(rows, (min(100, n_draws - start), 1))
            scores.append(products[rows, rng.permuted(orders, axis=1)].sum(axis=1))
        draws.append(np.concatenate(scores))
    return _null(observed, draws, confidence, "permutation")


def toroidal_null(measured: Sequence[np.ndarray], predicted: Sequence[np.ndarray],
                  positions: Sequence[np.ndarray], *, confidence: float = 0.95,
                  n_draws: int = 999, min_overlap: float = 0.5, wrap: bool = True,
                  rng: np.random.Generator) -> Null:
    """Null of a score by shifting each prediction over its array.

    A shift destroys the relation between two maps and keeps the autocorrelation of both, genes
    included. Wrapped to a torus (Lotwick and Silverman, JRSS B 1982) all spots are used, but maps
    do not fit each other where the torus is closed, so that the null is slightly narrow for smooth
    maps on small sections. Without wrapping the overlap alone is used and its correlation scaled by
    the root of its share of the spots, since fewer pairs vary more (variance correction of
    Mrkvicka et al., "Revisiting the random shift approach for testing in spatial statistics",
    Spatial Statistics 2021); that is closer to what it promises. Simulated by `null_coverage` where
    95 % are meant, 20 x 20 spots, four sections: 94 % against 95 % for a kernel of 1.5 spots, 91 %
    against 97 % for one of 3; 30 sections of 16 x 16 spots, kernel 0.8: 93 % on the torus.
    Permutation of the spots gives 45 % at 1.5.

    Tissue is no rectangle: a shift is scored over the spots whose shifted place is a spot as well,
    and shifts that leave too few are not drawn. All shifts are computed at once by Fourier
    transform.

    Parameters
    ----------
    measured, predicted
        As in `permutation_null`.
    positions
        Integer row and column of every spot, `(T_s, 2)`, per section; see
        `mvhlib.lattice.array_positions`. On a
        hexagonal array columns count half pitches, so that row and column have one parity.
    confidence
        Share of the null between ``low`` and ``high``.
    n_draws
        Draws; each shifts every section by itself.
    min_overlap
        Least share of a section's spots that a shift must pair.
    wrap
        False for the second form above.
    rng
        Source of randomness.

    Raises
    ------
    InputError
        On shapes that differ, two spots on one place, or where no gene varies or no shift is left.
    """
    observed, draws = [], []
    positions = list(positions)
    maps = list(_paired_maps(measured, predicted, positions))
    for truth, guess, places in maps:
        scores = _shifted_scores(truth, guess, places, min_overlap, wrap)
        if scores is None:
            continue
        observed.append(scores[0])
        if len(scores) < 2:
            raise InputError("toroidal null", "positions", "leave no shift that pairs "
                             f"{min_overlap:.0%} of the spots", "lower min_overlap")
        draws.append(rng.choice(scores[1:], size=n_draws))
    return _null(observed, draws, confidence, "toroidal shift" if wrap else "random shift")


def _paired_maps(measured, predicted, positions=None):
    """Yield truth and prediction of every section (and its positions), spots without NaN."""
    measured, predicted = list(measured), list(predicted)
    lengths = {len(measured), len(predicted), len(measured if positions is None else positions)}
    if len(lengths) != 1 or not measured:
        raise InputError("null", "sections", f"differ in number: {sorted(lengths)}",
                         "give truth and prediction of the same sections")
    for number, (truth, guess) in enumerate(zip(measured, predicted, strict=True)):
        truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
        places = None if positions is None else np.asarray(positions[number])
        if truth.shape != guess.shape or truth.ndim != 2 or (
                places is not None and places.shape != (len(truth), 2)):
            raise InputError("null", f"section {number}", f"measured {truth.shape}, predicted "
                             f"{guess.shape}" + ("" if places is None else
                                                 f", positions {places.shape}"),
                             "give the same spots and genes in one order")
        known = np.isfinite(truth).all(axis=1) & np.isfinite(guess).all(axis=1)
        yield (truth[known], guess[known]) if places is None else (
            truth[known], guess[known], places[known])


def _unit_columns(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and norm 1; those that do not vary become 0."""
    if len(values) == 0:
        return values
    centred = values - values.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    varies = np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(axis=0)
    return np.where(varies, centred, 0.0) / np.where(varies, norm, 1.0)


def _shifted_scores(truth: np.ndarray, guess: np.ndarray, places: np.ndarray,
                    min_overlap: float, wrap: bool = True) -> np.ndarray | None:
    """Mean over genes of r for every shift that pairs enough spots; the first is no shift."""
    if len(truth) == 0:
        return None
    x, y = _unit_columns(truth), _unit_columns(guess)
    both = (x != 0).any(axis=0) & (y != 0).any(axis=0)
    if not both.any():
        return None
    places = places - places.min(axis=0)
    if not np.issubdtype(places.dtype, np.integer):
        raise InputError("toroidal null", "positions", "are not whole numbers",
                         "use array_positions of the spot centres")
    height, width = places.max(axis=0) + 1
    parity = places.sum(axis=1) % 2
    hexagonal = len(places) > 3 and (parity == parity[0]).all()
    if hexagonal:  # an odd torus would break the rows' alternation
        height, width = height + height % 2, width + width % 2
    if not wrap:  # enough empty glass around the tissue that it never overlaps itself
        height, width = 2 * height, 2 * width
    flat = places[:, 0] * width + places[:, 1]
    if len(np.unique(flat)) < len(flat):
        raise InputError("toroidal null", "positions", "put two spots on one position",
                         "use array_positions of the spot centres")

    def spectrum(values):  # (T, G) -> (G, height, width // 2 + 1)
        grid = np.zeros((values.shape[1], height * width))
        grid[:, flat] = values.T
        return np.fft.rfft2(grid.reshape(-1, height, width))

    def correlate(one, other):  # sum over spots p of one(p + shift) other(p)
        return np.fft.irfft2(one * np.conj(other), s=(height, width)).reshape(len(one), -1)

    mask = spectrum(np.ones((len(places), 1)))
    count = np.rint(correlate(mask, mask)[0])
    enough = count >= max(min_overlap * len(places), 3)
    enough[0] = True
    total, genes = np.zeros(int(enough.sum())), np.zeros(int(enough.sum()))
    n = count[enough]
    for gene in np.flatnonzero(both):
        x1, y1 = spectrum(x[:, [gene]]), spectrum(y[:, [gene]])
        x2, y2 = spectrum(x[:, [gene]] ** 2), spectrum(y[:, [gene]] ** 2)
        sx, sxx = correlate(mask, x1)[0][enough], correlate(mask, x2)[0][enough]
        sy, syy = correlate(y1, mask)[0][enough], correlate(y2, mask)[0][enough]
        sxy = correlate(y1, x1)[0][enough]
        vx, vy = sxx - sx**2 / n, syy - sy**2 / n
        good = (vx > 1e-9) & (vy > 1e-9)  # of columns whose squares sum to 1
        r = (sxy - sx * sy / n) / np.sqrt(np.where(good, vx * vy, 1.0))
        if not wrap:  # fewer pairs vary more
            r = r * np.sqrt(n / len(places))
        total += np.where(good, np.clip(r, -1, 1), 0.0)
        genes += good
    return (total / np.maximum(genes, 1))[genes > 0]


def _null(observed: list[float], draws: list, confidence: float, method: str) -> Null:
    if not observed:
        raise InputError("null", "genes", "do not vary in any section",
                         "give measured and predicted expression")
    score = float(np.mean(observed))
    null = np.mean(np.asarray(draws, dtype=np.float64), axis=0)
    ranked, n = np.sort(null), len(null)
    # Order statistics, so that a draw of the null lies outside with the probability promised.
    tail = max(int(np.floor((n + 1) * (1 - confidence) / 2 + 1e-9)), 1)
    centre = float(null.mean())
    beyond = (np.abs(null - centre) >= abs(score - centre) - 1e-12).sum()
    return Null(score, float(ranked[tail - 1]), float(ranked[n - tail]),
                float((1 + beyond) / (n + 1)), 1 / (n + 1), null, method)
