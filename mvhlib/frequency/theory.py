"""Frequencies that a diagonal state-space layer passes: closed forms, per time and per token.

The layer in continuous time, with poles a_j = v_j + i w_j (v_j < 0) and c_j = b_j C_j::

    G(i omega) = sum_j c_j / (i omega - a_j) + D                     omega [rad per unit of time]

and as the scan computes it, with a step delta per token (Gu & Dao 2023, with Euler's rule for B)::

    h_t = rho h_(t-1) + delta b x_t,   y_t = C h_t + D x_t,   rho = exp(delta a)
    H(theta) = sum_j delta c_j / (1 - rho_j exp(-i theta)) + D       theta [rad per token]

*High-frequency total variation* is the length of the curve G above a frequency,
V(omega0) = integral from omega0 of ``|G'(i omega)|``, the measure by which MV_Hybrid (Cho et al.
2025, arXiv 2508.00383) argues for negative real poles. It has closed forms for one mode
(`mode_variation`), and a quadrature for many (`variation`). What the layer does to a sequence of
tokens is decided by delta times A and not by A, hence the second half: `token_response`,
`half_life`, `energy_share`.

Everything is float64. Glossary: S modes (states), D channels, T tokens, F frequencies.
"""

import numpy as np
from numpy.typing import ArrayLike

from mvhlib.artifacts import InputError

#: Below this multiplier a single mode's gain never falls to 1 / sqrt(2) of that at zero.
NO_CUTOFF = 3 - 2 * np.sqrt(2)
#: Nodes of the Gauss-Legendre rule in each panel of the quadrature.
NODES = 24

#: How the families of `families` are written in print.
FAMILIES = {"real": "real, -1 to -S (MVHybrid)", "equal": "all -1 (Hydra)",
            "s4d_lin": "complex, S4D-Lin", "random": "complex, random"}


def families(n: int = 16, rng: np.random.Generator | None = None,
             draws: int | None = None) -> dict[str, np.ndarray]:
    """Poles `(S,)`, or `(draws, S)`, of the families that are compared.

    ``real``     -1 ... -S, S4D-Real: MambaVision and Vim at initialisation
    ``equal``    -1 for all: Hydra at initialisation (one pole per head)
    ``s4d_lin``  -1/2 + i pi k, k = 0 ... S-1: S4D-Lin (Gu et al. 2022, "On the parameterization
                 and initialization of diagonal state space models")
    ``random``   real part log-uniform in [-S, -1/2], imaginary part uniform in [0, pi S): the span
                 of the others without their order, a control of ours

    Parameters
    ----------
    n
        Modes, S.
    rng
        Draws the random family; without it that family is left out.
    draws
        Sets of poles: independent ones of the random family, copies of the others.
    """
    k = np.arange(n)
    poles = {"real": -(k + 1.0) + 0j, "equal": np.full(n, -1.0 + 0j),
             "s4d_lin": -0.5 + 1j * np.pi * k}
    if rng is not None:
        shape = (n,) if draws is None else (draws, n)
        depth = np.exp(rng.uniform(np.log(0.5), np.log(n), shape))
        poles["random"] = -depth + 1j * rng.uniform(0, np.pi * n, shape)
    if draws is None:
        return poles
    return {name: np.broadcast_to(p, (draws, n)) for name, p in poles.items()}


def with_conjugates(poles: ArrayLike, coefficients: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The modes and their mirror images, `(..., 2 S)`: what twice the real part of an output has.

    A scan with complex poles keeps one half of each conjugate pair and returns ``2 Re``.
    """
    poles, coefficients = np.asarray(poles, complex), np.asarray(coefficients, complex)
    return (np.concatenate([poles, poles.conj()], axis=-1),
            np.concatenate([coefficients, coefficients.conj()], axis=-1))


# --------------------------------------------------------------------------------------------
# continuous time


def _stable(poles: ArrayLike) -> np.ndarray:
    poles = np.asarray(poles, complex)
    if not (poles.real < 0).all():
        raise InputError("frequency", "poles", "reach a real part of "
                         f"{poles.real.max():g}", "give poles with a negative real part; a layer "
                         "whose A is -exp(A_log) cannot have others")
    return poles


def transfer(poles: ArrayLike, coefficients: ArrayLike, omega: ArrayLike,
             skip: float = 0.0) -> np.ndarray:
    """G(i omega) `(F,)` of modes `(S,)`.

    Raises
    ------
    InputError
        If a pole is not in the left half-plane.
    """
    poles, c = _stable(poles), np.asarray(coefficients, complex)
    return (c / (1j * np.asarray(omega, float)[..., None] - poles)).sum(-1) + skip


def cutoff(pole: ArrayLike) -> np.ndarray:
    """Frequency where one real mode has lost 3 dB, ``|lambda|`` [rad per unit of time]."""
    return np.abs(_stable(pole))


def mode_variation(coefficient: ArrayLike, pole: ArrayLike, omega0: ArrayLike) -> np.ndarray:
    """High-frequency total variation of one mode, exactly.

    V = (|c| / |v|) (pi/2 - arctan((omega0 - w) / |v|)) for a = v + i w; for a real pole -lambda
    this is (|c| / lambda) arctan(lambda / omega0).

    Examples
    --------
    >>> round(float(mode_variation(1, -4, 10)), 7)
    0.0951266
    """
    pole = _stable(pole)
    width = -pole.real
    # pi/2 - arctan(x / width), without the cancellation at large x.
    angle = np.arctan2(width, np.asarray(omega0, float) - pole.imag)
    return np.abs(coefficient) / width * angle


def mode_variation_bounds(coefficient: ArrayLike, pole: ArrayLike,
                          omega0: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound on `mode_variation` of one mode, for omega0 > w.

    With x = omega0 - w: ``|c| / sqrt(v^2 + x^2) <= V <= min(|c| / x, (pi/2) |c| / sqrt(...))``.
    For a real mode the lower bound is ``|G(i omega0)|``, since the curve ends in 0.

    Raises
    ------
    InputError
        If omega0 is not above the mode's own frequency.
    """
    pole = _stable(pole)
    size, x = np.abs(coefficient), np.asarray(omega0, float) - pole.imag
    if not (x > 0).all():
        raise InputError("mode_variation_bounds", "omega0", "lies below the mode's frequency",
                         "the bounds hold above it; mode_variation holds everywhere")
    lower = size / np.hypot(pole.real, x)
    return lower, np.minimum(size / x, np.pi / 2 * lower)


def published_real(coefficients: ArrayLike, poles: ArrayLike, omega0: float) -> float:
    """MV_Hybrid's expression for negative real poles, ``sum |c| / sqrt(lambda^2 + omega0^2)``.

    It is the sum of the modes' ``|G(i omega0)|``: a *lower* bound on the sum of their total
    variations, up to pi/2 too small. It is set against `published_complex`, an *upper* bound.
    """
    return float((np.abs(coefficients) / np.hypot(np.abs(_stable(poles)), omega0)).sum())


def published_complex(coefficients: ArrayLike, poles: ArrayLike, omega0: float) -> float:
    """MV_Hybrid's expression for complex poles, ``sum |c| / |w - omega0|``.

    The upper bound of `mode_variation_bounds`, which drops the real part: it diverges at a mode's
    own frequency, where the total variation stays below ``pi |c| / |v|``.
    """
    return float((np.abs(coefficients) / np.abs(_stable(poles).imag - omega0)).sum())


def variation(poles: ArrayLike, coefficients: ArrayLike, omega0: float,
              both_tails: bool = False) -> float:
    """High-frequency total variation of a sum of modes, by quadrature.

    Parameters
    ----------
    poles, coefficients
        `(S,)` each.
    omega0
        Lower end of the integral; ``-inf`` for the whole curve.
    both_tails
        Add the part below -omega0, which is not a mirror image for complex modes without their
        conjugates.

    Notes
    -----
    Gauss-Legendre panels that double in width away from each mode; the tail is mapped to a finite
    interval by u = 1 / omega. The triangle inequality makes the sum of `mode_variation` an upper
    bound.
    """
    poles, c = _stable(poles), np.asarray(coefficients, complex)
    if omega0 == -np.inf:
        return (_variation_above(poles, c, 0.0)
                + _variation_above(poles.conj(), c.conj(), 0.0))
    value = _variation_above(poles, c, omega0)
    if both_tails:
        # |G'(-i omega)| of the modes is |G'(i omega)| of their mirror images.
        value += _variation_above(poles.conj(), c.conj(), omega0)
    return value


def _variation_above(poles: np.ndarray, c: np.ndarray, omega0: float) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    width = -poles.real
    far = 4 * max(abs(omega0), float((np.abs(poles.imag) + width).max()))
    steps = width.min() * 2.0 ** np.arange(-2, np.ceil(np.log2(2 * far / width.min())) + 1)
    edges = poles.imag[:, None] + np.concatenate([-steps, [0.0], steps])
    edges = edges[(edges > omega0) & (edges < far)]
    edges = np.unique(np.concatenate([[omega0], edges, [far]]))

    def integral(edges, speed):
        half = np.diff(edges) / 2
        at = edges[:-1, None] + half[:, None] * (1 + nodes)
        return float((half[:, None] * weights * speed(at)).sum())

    near = integral(edges, lambda omega: np.abs(
        (c / (1j * omega[..., None] - poles) ** 2).sum(-1)))
    tail = integral(np.linspace(0, 1 / far, 3), lambda u: np.abs(
        (c / (1j - poles * u[..., None]) ** 2).sum(-1)))
    return near + tail


def variation_share(poles: ArrayLike, coefficients: ArrayLike, omega0: ArrayLike) -> np.ndarray:
    """Share of the whole curve's total variation that lies above omega0, in both tails.

    Parameters
    ----------
    poles, coefficients
        `(S,)` each.
    omega0
        `(F,)` or a number, not negative; gives the same shape.
    """
    omega0 = np.asarray(omega0, float)
    above = [variation(poles, coefficients, at, both_tails=True) for at in omega0.ravel()]
    whole = variation(poles, coefficients, -np.inf)
    return np.reshape(above, omega0.shape) / whole


def decayed(poles: ArrayLike, learning_rate: ArrayLike, weight_decay: ArrayLike) -> np.ndarray:
    """Real poles -exp(A_log) after every step of a run in which A_log feels weight decay alone.

    Decoupled decay (AdamW) multiplies a parameter by 1 - rate * decay at each step: A_log goes to
    0 and every pole to -1, whatever it was, unless gradients resist. The published recipe decays
    A_log, since its rule looks at names alone.

    Parameters
    ----------
    poles
        At the start `(S,)`, real and negative.
    learning_rate, weight_decay
        Per step `(steps,)`.

    Returns
    -------
    np.ndarray
        `(steps, S)`.
    """
    left = np.cumprod(1 - np.asarray(learning_rate, float) * np.asarray(weight_decay, float))
    return -np.exp(left[:, None] * np.log(-_stable(poles).real))


# --------------------------------------------------------------------------------------------
# per token


def multiplier(poles: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """What is left of a state after one token, rho = exp(delta a)."""
    return np.exp(np.asarray(delta, float) * _stable(poles))


def token_response(poles: ArrayLike, coefficients: ArrayLike, delta: ArrayLike, theta: ArrayLike,
                   skip: ArrayLike = 0.0) -> np.ndarray:
    """Transfer function per token, H(theta) `(..., F)`, of modes `(..., S)` with a step `(...)`.

    Parameters
    ----------
    poles, coefficients
        a and b C; a scan that returns ``2 Re`` takes them `with_conjugates`.
    delta
        Step, frozen at one value for each row of modes.
    theta
        Frequencies `(F,)` [rad per token].
    skip
        D of the layer, `(...)`: an all-pass path beside the modes.

    Notes
    -----
    The input enters as ``delta b`` (Euler), not by the exact zero-order hold, so the gain at zero
    is delta c / (1 - rho) and not c / lambda.
    """
    delta = np.asarray(delta, float)[..., None]
    rho, gain = multiplier(poles, delta), delta * np.asarray(coefficients, complex)
    turn = np.exp(-1j * np.asarray(theta, float))
    shape = np.broadcast_shapes(rho.shape, gain.shape)
    total = np.zeros((*shape[:-1], len(turn)), complex)
    # One mode at a time: the sum over modes needs no array of modes times frequencies.
    rho, gain = np.broadcast_to(rho, shape), np.broadcast_to(gain, shape)
    for j in range(shape[-1]):
        total += gain[..., j, None] / (1 - rho[..., j, None] * turn)
    return total + np.asarray(skip, float)[..., None]


def nyquist_to_dc(delta: ArrayLike, decay: ArrayLike) -> np.ndarray:
    """Gain of a real mode -lambda at the highest frequency over that at zero.

    (1 - rho) / (1 + rho) = tanh(delta lambda / 2): 0 is a perfect low-pass, 1 an all-pass.
    """
    return np.tanh(np.asarray(delta, float) * np.asarray(decay, float) / 2)


def token_cutoff(rho: ArrayLike) -> np.ndarray:
    """Frequency [rad per token] where a real mode has lost 3 dB; nan where it never does.

    cos(theta) = (4 rho - 1 - rho^2) / (2 rho), which needs rho > 3 - 2 sqrt(2) = 0.1716.
    """
    rho = np.asarray(rho, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        # 1 - cos(theta) = (1 - rho)^2 / (2 rho), written so that it stays exact near rho = 1.
        theta = 2 * np.arcsin((1 - rho) / (2 * np.sqrt(rho)))
    return np.where(rho > NO_CUTOFF, theta, np.nan)


def half_life(poles: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """Tokens after which a state has lost half its size, ln 2 / (delta ``|Re a|``)."""
    return np.log(2) / (np.asarray(delta, float) * -_stable(poles).real)


def _gram(rho: np.ndarray, theta0: float) -> np.ndarray:
    """Energy `(..., S, S)` of pairs of modes above theta0, in both tails, over a whole circle's.

    The integral of 1 / ((1 - rho_i e^-it) (1 - conj(rho_j) e^it)) by partial fractions and
    logarithms.
    """
    one, two = rho[..., :, None], rho[..., None, :].conj()

    def primitive(theta):
        turn = np.exp(1j * theta)
        return theta - 1j * np.log(1 - one / turn) + 1j * np.log(1 - two * turn)

    inside = primitive(theta0) - primitive(-theta0)
    return (2 * np.pi - inside) / (2 * np.pi * (1 - one * two))


def energy_share(poles: ArrayLike, coefficients: ArrayLike, delta: ArrayLike,
                 theta0: float = np.pi / 4) -> np.ndarray:
    """Share of the impulse response's energy above theta0 [rad per token], in closed form.

    White noise has 1 - theta0 / pi, 0.75 for the default.

    Parameters
    ----------
    poles, coefficients
        `(..., S)` each: one or many draws.
    delta
        `(...)` or a number.
    """
    rho, c = multiplier(poles, np.asarray(delta, float)[..., None]), np.asarray(coefficients)
    whole, above = (np.einsum("...i,...ij,...j->...", c, _gram(rho, at), c.conj(),
                              optimize=True).real for at in (0.0, theta0))
    return above / whole


def mean_energy_share(poles: ArrayLike, delta: ArrayLike,
                      theta0: float = np.pi / 4) -> np.ndarray:
    """Energy above theta0 over all energy, both in expectation over white coefficients.

    Parameters
    ----------
    poles, delta
        `(..., S)` and `(...)`; gives `(...)`.
    """
    rho = multiplier(poles, np.asarray(delta, float)[..., None])
    energy = 1 / (1 - np.abs(rho) ** 2)
    return (energy * _mode_share(rho, theta0)).sum(-1) / energy.sum(-1)


def _mode_share(rho: np.ndarray, theta0: float) -> np.ndarray:
    """Share of one mode's energy above theta0: the integral of Poisson's kernel."""
    radius, angle = np.abs(rho), np.angle(rho)
    slope = (1 + radius) / np.maximum(1 - radius, np.finfo(float).tiny)

    def primitive(theta):
        # The half angle may pass pi/2, where arctan jumps by pi.
        half = theta / 2
        turns = np.round(half / np.pi)
        return 2 * (np.arctan(slope * np.tan(half - np.pi * turns)) + np.pi * turns)

    inside = primitive(theta0 - angle) - primitive(-theta0 - angle)
    return 1 - inside / (2 * np.pi)


def mean_density(poles: ArrayLike, delta: ArrayLike, theta: ArrayLike) -> np.ndarray:
    """Expected energy density over white coefficients, `(..., F)`, 1 on average over the circle.

    Both tails are averaged, as for a real output. 1 everywhere is an all-pass.
    """
    rho = multiplier(poles, np.asarray(delta, float)[..., None])
    theta = np.asarray(theta, float)
    total, whole = 0.0, 0.0
    for mode in np.moveaxis(rho, -1, 0):
        for turn in (np.exp(-1j * theta), np.exp(1j * theta)):
            total = total + 0.5 / np.abs(1 - mode[..., None] * turn) ** 2
        whole = whole + 1 / (1 - np.abs(mode) ** 2)
    return total / whole[..., None]
