"""Monitors that show early if a run goes wrong: spread of the embedding, time steps, poles."""

import torch
from torch import Tensor, nn

from mvhlib.training import as_double

#: Quantiles that the log holds of time steps and poles.
QUANTILES = (0.05, 0.5, 0.95)
#: Rows whose spread is a smaller share of their length than this are equal.
EQUAL = 1e-5


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values of centred rows `(n, D)` (Roy & Vetterli 2007).

    Between 0 (all rows equal) and min(n - 1, D). Rows that differ by rounding alone count as
    equal: noise has full rank.
    """
    x = as_double(x)
    centred = x - x.mean(dim=0)
    if not centred.norm() > EQUAL * x.norm():
        return 0.0
    values = torch.linalg.svdvals(centred)
    p = values / values.sum()
    return float(torch.exp(-(p * torch.log(p.clamp(min=1e-300))).sum()))


@torch.no_grad()
def _inputs(backbone: nn.Module, images: Tensor) -> dict[int, Tensor]:
    """Input of each state-space mixer on these images, block by block."""
    inputs: dict[int, Tensor] = {}
    hooks = []
    for number, block in enumerate(backbone.blocks):
        if hasattr(block.mixer, "delta"):
            def keep(_module, args, number=number):
                inputs[number] = args[0]
            hooks.append(block.mixer.register_forward_pre_hook(keep))
    if not hooks:
        return {}
    try:
        backbone.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(sorted(inputs.items()))


@torch.no_grad()
def _steps_and_poles(backbone: nn.Module, images: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Time steps on these images, and real parts of the poles, of each state-space block."""
    found = {}
    for number, x in _inputs(backbone, images).items():
        mixer = backbone.blocks[number].mixer
        poles = mixer.A.real if mixer.A.is_complex() else mixer.A
        found[number] = as_double(mixer.delta(x)), as_double(poles)
    return found


def state_space_quantiles(backbone: nn.Module, images: Tensor) -> dict[str, float]:
    """Quantiles of time steps and poles of each state-space layer, on these images.

    ``delta_<block>_<q>`` [per token] and ``pole_<block>_<q>`` (real parts, negative).
    """
    out = {}
    for number, pair in _steps_and_poles(backbone, images).items():
        for name, values in zip(("delta", "pole"), pair, strict=True):
            values = values.flatten().sort().values
            for q in QUANTILES:
                out[f"{name}_{number}_{q:g}"] = float(values[round(q * (len(values) - 1))])
    return out


def state_space_extremes(backbone: nn.Module, images: Tensor) -> dict[str, float]:
    """Extremes that bound the recurrences of all state-space layers, on these images.

    ``delta_min``, ``delta_median``, ``delta_max`` [per token]; ``pole_min``, ``pole_max``: real
    parts of the eigenvalues of A; ``decay_max``: no state grows by more than this factor at any
    token, exp(delta Re A) with the smallest time step and the largest pole of a layer.
    """
    layers = _steps_and_poles(backbone, images).values()
    if not layers:
        return {}
    steps = torch.cat([delta.flatten() for delta, _ in layers])
    poles = torch.cat([pole.flatten() for _, pole in layers])
    decay = max(float(torch.exp(delta.min() * pole.max())) for delta, pole in layers)
    return {"delta_min": float(steps.min()), "delta_median": float(steps.median()),
            "delta_max": float(steps.max()), "pole_min": float(poles.min()),
            "pole_max": float(poles.max()), "decay_max": decay}


@torch.no_grad()
def state_shares(backbone: nn.Module, images: Tensor) -> dict[int, float]:
    """Contribution of each state-space block's states, relative to its skip path.

    Parameters
    ----------
    backbone
        In evaluation mode.
    images
        `(B, 3, H, W)`, normalised for it.

    Returns
    -------
    dict
        Block -> Euclidean norm of the scan's output without its skip path, over that of the skip
        path alone, on these images. Empty for a model without such layers. Below 0.05 a comparison
        of poles, directions or time steps compares what the model hardly uses.
    """
    return {number: float(as_double(state).norm() / as_double(skip).norm())
            for number, x in _inputs(backbone, images).items()
            for state, skip in [backbone.blocks[number].mixer.state_and_skip(x)]}
