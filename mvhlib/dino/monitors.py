"""What tells early that a run goes wrong: spread of the embedding, time steps and poles."""

import torch
from torch import Tensor, nn

#: Quantiles that the log holds of time steps and poles.
QUANTILES = (0.05, 0.5, 0.95)
#: Rows whose spread is a smaller share of their length than this are equal.
EQUAL = 1e-5


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values of centred rows `(n, D)` (Roy & Vetterli 2007).

    Between 0 (all rows equal) and min(n - 1, D). Rows that differ by rounding alone count as
    equal: noise has full rank.
    """
    x = x.double()
    centred = x - x.mean(dim=0)
    if not centred.norm() > EQUAL * x.norm():
        return 0.0
    values = torch.linalg.svdvals(centred)
    p = values / values.sum()
    return float(torch.exp(-(p * torch.log(p.clamp(min=1e-300))).sum()))


@torch.no_grad()
def state_space_quantiles(backbone: nn.Module, images: Tensor) -> dict[str, float]:
    """Quantiles of time steps and poles of each state-space layer, on these images.

    ``delta_<block>_<q>`` [per token] and ``pole_<block>_<q>`` (real parts, negative).
    """
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
    out = {}
    for number, x in sorted(inputs.items()):
        mixer = backbone.blocks[number].mixer
        poles = mixer.A.real if mixer.A.is_complex() else mixer.A
        for name, values in (("delta", mixer.delta(x)), ("pole", poles)):
            values = values.detach().flatten().double().sort().values
            for q in QUANTILES:
                out[f"{name}_{number}_{q:g}"] = float(values[round(q * (len(values) - 1))])
    return out
