"""Token maps of a model: their two-dimensional spectra layer by layer, and what blocks do to waves.

Patch tokens in raster order are an image of D channels; the class token is left out. *Along* is
what varies within the rows of that image, neighbours in the sequence; *across* is what varies from
row to row, a whole row of tokens apart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from mvhlib.artifacts import InputError
from mvhlib.frequency.forward import watch

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor, nn

#: Directions of a token map that spectra are averaged over.
DIRECTIONS = ("all", "along", "across")
#: Above this radius [cycles per token] a frequency counts as high; half of Nyquist's.
HIGH = 0.25
#: Size of the waves that are sent through a block, relative to the tokens' own.
STEP = 1e-2


def token_streams(model: "nn.Module", images: "Tensor") -> list["Tensor"]:
    """Tokens `(B, 1 + N, D)` in front of the first block and behind each, as blocks see them.

    Parameters
    ----------
    model
        A `mvhlib.backbones.Backbone`; left in the mode in which it came.
    images
        `(B, 3, H, W)`, normalised for the model.

    Raises
    ------
    InputError
        If the model has no blocks.
    """
    streams: list[Tensor] = []

    def attach(model: "nn.Module") -> list:
        fronts = [block.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
                  for block in model.blocks]
        return [*fronts, model.blocks[-1].register_forward_hook(
            lambda _, given, found: streams.append(found))]

    watch(model, images, attach)
    return streams


def patch_positions(model: "nn.Module", n_patches: int) -> np.ndarray:
    """Where the patches stand in the sequence, in raster order `(N,)`."""
    return np.delete(np.arange(n_patches + 1), model.cls_index(n_patches))


# ---- spectra of token maps


def map_power(maps: ArrayLike, grid: tuple[int, int]) -> np.ndarray:
    """Power of token maps at every two-dimensional frequency, mean over channels.

    Parameters
    ----------
    maps
        Patch tokens `(B, N, D)` in raster order.
    grid
        Rows and columns of patches, h w = N.

    Returns
    -------
    np.ndarray
        `(B, h, w)`, frequencies in the order of `numpy.fft`; its sum over h and w is that of the
        squared tokens of one channel (Parseval).
    """
    maps = np.asarray(maps, float)
    if maps.ndim != 3 or maps.shape[1] != grid[0] * grid[1]:
        raise InputError("map_power", "grid", f"of {grid} does not fit maps {maps.shape}",
                         "give (B, rows * columns, D)")
    image = maps.reshape(len(maps), *grid, -1)  # (B, N, D) -> (B, h, w, D)
    return (np.abs(np.fft.fft2(image, axes=(1, 2), norm="ortho")) ** 2).mean(-1)


def _radius(grid: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Radius `(h, w)` [cycles per token], and which frequencies belong to each direction."""
    down, right = np.abs(np.fft.fftfreq(grid[0]))[:, None], np.abs(np.fft.fftfreq(grid[1]))[None]
    radius = np.hypot(down, right)
    # The corners beyond Nyquist have no counterpart along an axis.
    inside = (radius > 0) & (radius <= 0.5)
    return radius, {"all": inside, "along": inside & (right > down),
                    "across": inside & (down > right)}


def radial_amplitude(power: ArrayLike) -> "DataFrame":
    """Log-amplitude of `map_power` over rings of equal radius.

    Parameters
    ----------
    power
        `(h, w)`: of one image, or a mean over images.

    Returns
    -------
    DataFrame
        Columns direction (see `DIRECTIONS`), radius [cycles per token], log_amplitude: half the
        log10 of the mean power in a ring that is one period over the map wide. White maps are
        flat.
    """
    import pandas as pd

    power = np.asarray(power, float)
    radius, directions = _radius(power.shape)
    side = max(power.shape)
    ring = np.rint(radius * side).astype(int)
    rows = []
    for direction, chosen in directions.items():
        for k in range(1, side // 2 + 1):
            values = power[chosen & (ring == k)]
            if len(values):
                rows.append({"direction": direction, "radius": k / side,
                             "log_amplitude": 0.5 * np.log10(values.mean())})
    return pd.DataFrame(rows)


def high_minus_low(power: ArrayLike) -> dict[str, np.ndarray]:
    """Log10 of the amplitude above half of Nyquist over that below, per direction.

    Parameters
    ----------
    power
        `(..., h, w)` from `map_power`.

    Returns
    -------
    dict
        Direction -> `(...)` [decades]; 0 for white maps, negative for smooth ones.
    """
    power = np.asarray(power, float)
    radius, directions = _radius(power.shape[-2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        return {direction: 0.5 * np.log10(power[..., chosen & (radius > HIGH)].mean(-1)
                                          / power[..., chosen & (radius <= HIGH)].mean(-1))
                for direction, chosen in directions.items()}


def token_spectra(model: "nn.Module", images: "Tensor") -> tuple["DataFrame", "DataFrame"]:
    """Spectra of the token maps in front of the first block (layer 0) and behind each.

    Parameters
    ----------
    model
        A `mvhlib.backbones.Backbone`.
    images
        `(B, 3, H, W)`, at least two.

    Returns
    -------
    spectra
        Columns layer, direction, radius, log_amplitude (`radial_amplitude` of the mean power).
    contrasts
        Columns layer, image, direction, high_minus_low.

    Notes
    -----
    What every image has alike (learned positions, the start of a scan) says nothing about tissue
    and is subtracted: maps are deviations from their mean over the images.
    """
    import pandas as pd

    size, patch = images.shape[-2:], model.patch_embed.patch_size
    grid = (size[0] // patch[0], size[1] // patch[1])
    places = patch_positions(model, grid[0] * grid[1])
    spectra, contrasts = [], []
    for layer, stream in enumerate(token_streams(model, images)):
        maps = stream[:, places].double().cpu().numpy()
        power = map_power(maps - maps.mean(0), grid)
        spectra.append(radial_amplitude(power.mean(0)).assign(layer=layer))
        for direction, values in high_minus_low(power).items():
            contrasts.append(pd.DataFrame({"layer": layer, "image": np.arange(len(values)),
                                           "direction": direction, "high_minus_low": values}))
    spectra = pd.concat(spectra, ignore_index=True)
    return (spectra[["layer", "direction", "radius", "log_amplitude"]],
            pd.concat(contrasts, ignore_index=True))


# ---- waves through blocks


def whole_waves(n_patches: int, octaves: int = 6) -> np.ndarray:
    """Frequencies of whole waves over the patches: 0, then octaves up to pi [rad per token].

    Examples
    --------
    >>> (whole_waves(64) / (2 * np.pi) * 64).round(6).tolist()
    [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    """
    periods = np.rint(n_patches / 2 * 0.5 ** np.arange(octaves))
    return 2 * np.pi / n_patches * np.unique(np.append(periods, 0))


def wave_gain(function: "Callable[[Tensor], Tensor]", tokens: "Tensor", theta: ArrayLike,
              places: ArrayLike, rng: np.random.Generator,
              step: float = STEP) -> tuple[np.ndarray, np.ndarray]:
    """Gain of a map of tokens for small waves on top of real tokens.

    A wave ``d exp(i theta m)`` over the patches m is added to the tokens in a random direction d
    of the channels, one per image, and the linear part of the answer is taken by central
    differences: real and imaginary part of the wave are sent one after the other.

    Parameters
    ----------
    function
        Maps `(B, N, D)` to `(B, N, D)`, image by image.
    tokens
        `(B, N, D)`, the point at which it is linearised.
    theta
        `(F,)` [rad per token], along the raster order; 2 pi k / patches for whole waves.
    places
        Positions of the patches in the sequence; the other tokens are left alone and not read.
    rng
        Draws the directions, `(B, D)` standard normal.
    step
        Size of the wave relative to the tokens' RMS.

    Returns
    -------
    gain
        `(F,)`: amplitude of the answer at the wave's own frequency over that of the wave, root
        mean square over images. ``|H(theta)|`` of a linear filter.
    total
        `(F,)`: the same over all frequencies, since what depends on the tokens also scatters.
    """
    import torch

    places = np.asarray(places)
    patches = tokens[:, places]
    direction = torch.from_numpy(rng.standard_normal((len(tokens), tokens.shape[2]))).to(tokens)
    scale = step * patches.square().mean().sqrt()
    index = np.arange(len(places))
    gain, total = [], []
    for frequency in np.asarray(theta, float):
        turn = np.exp(1j * frequency * index)
        answers = []
        for wave in (turn.real, turn.imag):
            added = torch.zeros_like(tokens)
            added[:, places] = (torch.from_numpy(wave).to(tokens)[None, :, None]
                                * direction[:, None] * scale)
            with torch.no_grad():
                plus, minus = function(torch.cat([tokens + added, tokens - added])).chunk(2)
            answers.append(((plus - minus)[:, places] / (2 * scale)).double().cpu().numpy())
        answer = answers[0] + 1j * answers[1]  # (B, patches, D)
        sent = (direction.double() ** 2).sum().item()
        own = np.einsum("bnd,n->bd", answer, turn.conj()) / len(places)
        gain.append(np.sqrt((np.abs(own) ** 2).sum() / sent))
        total.append(np.sqrt((np.abs(answer) ** 2).sum() / len(places) / sent))
    return np.array(gain), np.array(total)


def block_response(model: "nn.Module", images: "Tensor", rng: np.random.Generator,
                   theta: ArrayLike | None = None) -> "DataFrame":
    """`wave_gain` of every block of a model, of its two branches, and of all blocks in a row.

    Parameters
    ----------
    model
        A `mvhlib.backbones.Backbone`.
    images
        `(B, 3, H, W)`, normalised for the model.
    rng
        Draws the directions of the waves.
    theta
        `(F,)` [rad per token]; None takes `whole_waves`.

    Returns
    -------
    DataFrame
        Columns block, kind (class of its mixer), part, theta, gain, total. Parts: ``mixer`` and
        ``channel mixer``, each with its norm and without the residual; ``block``, with both
        residuals; ``all blocks`` (block -1), from the embedding to the last.
    """
    import pandas as pd

    streams = token_streams(model, images)
    n_patches = streams[0].shape[1] - 1
    places = patch_positions(model, n_patches)
    theta = whole_waves(n_patches) if theta is None else np.asarray(theta, float)

    def through(x: "Tensor") -> "Tensor":
        for block in model.blocks:
            x = block(x)
        return x

    cases = [(-1, "", "all blocks", through, streams[0])]
    for i, (block, x) in enumerate(zip(model.blocks, streams, strict=False)):
        middle = x + _scaled(block.mixer(block.norm1(x)), block.gamma1)
        parts = {"mixer": (lambda t, b=block: _scaled(b.mixer(b.norm1(t)), b.gamma1), x),
                 "channel mixer": (
                     lambda t, b=block: _scaled(b.channel_mixer(b.norm2(t)), b.gamma2), middle),
                 "block": (block, x)}
        cases += [(i, type(block.mixer).__name__, part, function, at)
                  for part, (function, at) in parts.items()]
    rows = []
    was_training = model.training
    model.eval()
    for i, kind, part, function, at in cases:
        gain, total = wave_gain(function, at.detach(), theta, places, rng)
        rows.append(pd.DataFrame({"block": i, "kind": kind, "part": part, "theta": theta,
                                  "gain": gain, "total": total}))
    model.train(was_training)
    return pd.concat(rows, ignore_index=True)


def _scaled(branch: "Tensor", gamma: "Tensor | None") -> "Tensor":
    return branch if gamma is None else branch * gamma
