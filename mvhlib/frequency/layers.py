"""State-space layers of a model during a forward pass: poles, steps, memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mvhlib.artifacts import InputError
from mvhlib.frequency.forward import watch
from mvhlib.frequency.theory import (
    half_life,
    mean_density,
    mean_energy_share,
    token_response,
    with_conjugates,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from torch import Tensor, nn

#: What an audit reports of every distribution.
QUANTILES = (0, 0.05, 0.5, 0.95, 1)
#: Where the published histogram of a trained model's eigenvalues begins; it ends at 0.
PUBLISHED_MIN = -10


@dataclass(frozen=True)
class Layer:
    """One state-space layer, in one direction, during a forward pass on images.

    Attributes
    ----------
    block, direction
        Index of the block; ``"forward"`` or ``"backward"``.
    poles
        A, `(D, S)` complex; Hydra's `(H, 1)`, one per head.
    delta
        Steps `(T, D)` of the tokens that were sampled.
    b, c, skip
        Input and output projections `(T, S)` of the same tokens, and D `(D,)`; None for Hydra,
        whose heads have one pole each: there they scale the response and cannot shape it.
    """

    block: int
    direction: str
    poles: np.ndarray
    delta: np.ndarray
    b: np.ndarray | None = None
    c: np.ndarray | None = None
    skip: np.ndarray | None = None

    @property
    def rates(self) -> np.ndarray:
        """delta times A, `(T, D, S)` complex [per token]."""
        return self.delta[..., None] * self.poles

    @property
    def half_lives(self) -> np.ndarray:
        """`(T, D, S)` [tokens]."""
        return half_life(self.poles, self.delta[..., None])

    @property
    def is_complex(self) -> bool:
        return bool((self.poles.imag != 0).any())

    def mean_density(self, theta: ArrayLike) -> np.ndarray:
        """Energy density `(F,)` for white coefficients; every channel and token counts equally."""
        return mean_density(self.poles, self.delta, theta).mean(axis=(0, 1))

    def mean_energy_share(self, theta0: float = np.pi / 4) -> float:
        """Share of energy above theta0 for white coefficients, mean of channels and tokens."""
        return float(mean_energy_share(self.poles, self.delta, theta0).mean())

    def response(self, theta: ArrayLike, token: int, skip: bool = False) -> np.ndarray:
        """H(theta) `(D, F)` with delta, B and C frozen at those of a sampled token.

        Parameters
        ----------
        theta
            `(F,)` [rad per token].
        token
            Row of `delta`, `b`, `c`.
        skip
            Add the all-pass path D.

        Raises
        ------
        InputError
            For a layer without `b` and `c`.
        """
        if self.b is None or self.c is None or self.skip is None:
            raise InputError("frequency.Layer", "b, c", "are not known for this mixer",
                             "use mean_density: modes of equal poles have one shape")
        c = self.b[token] * self.c[token]
        poles, c = (with_conjugates(self.poles, np.broadcast_to(c, self.poles.shape))
                    if self.is_complex else (self.poles, c))
        return token_response(poles, c, self.delta[token], theta,
                              self.skip if skip else 0.0)

    def density(self, theta: ArrayLike, n_tokens: int = 16, skip: bool = False) -> np.ndarray:
        """Energy density `(F,)` with the tokens' own B and C, 1 on average over the circle.

        Parameters
        ----------
        theta
            `(F,)` [rad per token].
        n_tokens
            How many of the sampled tokens are averaged, evenly spread.
        skip
            Add the all-pass path D.
        """
        tokens = np.unique(np.linspace(0, len(self.delta) - 1, n_tokens).round().astype(int))
        total = np.zeros(len(np.asarray(theta)))
        # Cells that grow towards pi: a slow mode is a spike at 0 of the width of 1 - rho.
        edges = np.concatenate([[0.0], np.geomspace(1e-5, np.pi, 400)])
        middle = (edges[1:] + edges[:-1]) / 2
        for token in tokens:
            power = np.abs(self.response(theta, token, skip)) ** 2
            whole = np.abs(self.response(middle, token, skip)) ** 2 @ np.diff(edges) / np.pi
            total += (power / whole[:, None]).mean(0)
        return total / len(tokens)

    def row(self) -> dict[str, float | int | str]:
        """Quantiles of A, delta, delta A, rho and the half-life: one row of an audit.

        ``a_in_range`` and ``delta_a_in_range`` are the shares of modes from `PUBLISHED_MIN` to 0.
        """
        low, high = self.poles.real.min(), self.poles.real.max()
        row = {"block": self.block, "direction": self.direction, "a_min": low, "a_max": high,
               "a_imag_max": np.abs(self.poles.imag).max()}
        decay = np.quantile(-self.rates.real, QUANTILES)
        tables = {"delta": np.quantile(self.delta, QUANTILES), "delta_a": -decay[::-1],
                  # Both fall as the decay rises, and so do their quantiles.
                  "rho": np.exp(-decay[::-1]), "half_life": np.log(2) / decay[::-1]}
        for name, values in tables.items():
            for level, value in zip(("min", "q05", "median", "q95", "max"), values, strict=True):
                row[f"{name}_{level}"] = float(value)
        row["a_in_range"] = float((self.poles.real >= PUBLISHED_MIN).mean())
        row["delta_a_in_range"] = float((self.rates.real >= PUBLISHED_MIN).mean())
        return row | {"energy_share": self.mean_energy_share()}


def audit(model: "nn.Module", images: "Tensor", max_tokens: int = 256) -> list[Layer]:
    """Poles and steps of every state-space layer of a backbone during a forward pass on images.

    Parameters
    ----------
    model
        A `mvhlib.backbones.Backbone`; left in the mode in which it came.
    images
        `(B, 3, H, W)`, normalised for the model.
    max_tokens
        Tokens kept per layer, evenly spread over all images.

    Returns
    -------
    list
        One `Layer` per state-space block and direction, in order; empty for a ViT.

    Raises
    ------
    InputError
        If the model has no blocks.
    """
    seen: dict[int, list[Layer]] = {}

    def attach(model: "nn.Module") -> list:
        mixers = [(i, block.mixer) for i, block in enumerate(model.blocks)
                  if hasattr(block.mixer, "A") and hasattr(block.mixer, "delta")]
        return [mixer.register_forward_pre_hook(
            lambda mixer, given, i=i: seen.update({i: _read(i, mixer, given[0], max_tokens)}))
            for i, mixer in mixers]

    watch(model, images, attach)
    return [layer for i in sorted(seen) for layer in seen[i]]


def _read(block: int, mixer: "nn.Module", x: "Tensor", max_tokens: int) -> list[Layer]:
    """The layers of one mixer on its input `x` `(B, N, D)`, one per direction."""
    from mvhlib.backbones.mixers import BidirectionalMamba, HydraMixer

    def sample(tensor):
        rows = tensor.flatten(0, 1)
        keep = np.unique(np.linspace(0, len(rows) - 1, max_tokens).round().astype(int))
        return _float64(rows[keep])

    if isinstance(mixer, HydraMixer):
        delta, poles = sample(mixer.delta(x)), _float64(mixer.A).astype(complex)[:, None]
        return [Layer(block, "forward", poles, delta[:, :mixer.n_heads]),
                Layer(block, "backward", poles, delta[:, mixer.n_heads:])]
    both = isinstance(mixer, BidirectionalMamba) and mixer.directions == 2
    layers = []
    for direction in ("forward", "backward") if both else ("forward",):
        end = "_b" if direction == "backward" else ""
        # delta() runs the projection that B and C come from as well.
        x_proj, found = getattr(mixer, f"x_proj{end}"), []
        hook = x_proj.register_forward_hook(lambda *call, found=found: found.append(call[2]))
        try:
            delta = mixer.delta(x, backward=direction == "backward") if both else mixer.delta(x)
        finally:
            hook.remove()
        _, b, c = found[0].split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
        poles = _float64(mixer.A_b if end else mixer.A).astype(complex)
        layers.append(Layer(block, direction, poles, sample(delta), sample(b), sample(c),
                            _float64(mixer.D_b if end else mixer.D)))
    return layers


def _float64(tensor: "Tensor") -> np.ndarray:
    array = tensor.detach().cpu().resolve_conj().numpy()
    return array.astype(complex if np.iscomplexobj(array) else float)


def histogram(layers: Sequence[Layer], edges: ArrayLike, of: str) -> np.ndarray:
    """Histogram of the real part of -A or of -delta A: share of modes, `(layers, bins)`.

    Parameters
    ----------
    layers
        From `audit`.
    edges
        Borders of the bins, `(bins + 1,)`.
    of
        ``"a"`` [per unit of time] or ``"delta_a"`` [per token].
    """
    counts = []
    for layer in layers:
        values = -(layer.poles if of == "a" else layer.rates).real
        counts.append(np.histogram(values, edges)[0] / values.size)
    return np.array(counts)


def histogram_table(layers: Sequence[Layer], edges: dict[str, ArrayLike]) -> "DataFrame":
    """`histogram` as a table: columns block, direction, of, left, right, share; no empty bins.

    Parameters
    ----------
    layers
        From `audit`.
    edges
        Borders of the bins for ``"a"`` and ``"delta_a"``.
    """
    import pandas as pd

    tables = []
    for of, borders in edges.items():
        borders = np.asarray(borders, float)
        for layer, share in zip(layers, histogram(layers, borders, of), strict=True):
            tables.append(pd.DataFrame({
                "block": layer.block, "direction": layer.direction, "of": of,
                "left": borders[:-1], "right": borders[1:], "share": share}))
    table = pd.concat(tables, ignore_index=True)
    return table[table["share"] > 0].reset_index(drop=True)


def density_table(layers: Sequence[Layer], theta: ArrayLike) -> "DataFrame":
    """Energy density per token, mean over layers: columns theta, density; white is 1 everywhere.

    With the layers' own B and C, or for white coefficients where those are not known (Hydra).
    """
    import pandas as pd

    found = [layer.density(theta) if layer.b is not None else layer.mean_density(theta)
             for layer in layers]
    return pd.DataFrame({"theta": theta, "density": np.mean(found, axis=0)})


def spectrum(table: "DataFrame", edges: ArrayLike, ax: "Axes", *, color: str,
             filled: bool, linestyle: str = "-") -> "Axes":
    """Draw the rows of `histogram_table` that belong to one axis.

    Parameters
    ----------
    table
        Rows of one model, or of several seeds of it (column seed), and one of ``"a"``,
        ``"delta_a"``.
    edges
        Borders of its bins.
    color
        Of lines and filling.
    filled
        Fill the mean over layers and draw every layer as a thin line; else the mean as a line.
    linestyle
        Of that line.
    """
    edges = np.asarray(edges, float)
    shares = []
    layer = [key for key in ("seed", "block", "direction") if key in table]
    for _, rows in table.groupby(layer, sort=False):
        share = np.zeros(len(edges) - 1)
        share[np.searchsorted(edges, rows["left"].to_numpy())] = rows["share"]
        shares.append(share)
    mean = np.mean(shares, axis=0)
    if not filled:
        ax.stairs(mean, edges, color=color, linewidth=0.9, linestyle=linestyle)
        return ax
    ax.stairs(mean, edges, fill=True, color=color, alpha=0.55, linewidth=0)
    for share in shares:
        # As vectors, dozens of layers are too much for a committed svg.
        ax.stairs(share, edges, color=color, linewidth=0.5, alpha=0.8,
                  rasterized=len(shares) > 12)
    return ax
