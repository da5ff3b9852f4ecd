"""Low-rank updates of a frozen encoder (Hu et al., "LoRA", ICLR 2022)."""

import copy
import math

from torch import Tensor, nn

from mvhlib.artifacts import InputError


class LowRankLinear(nn.Module):
    """A frozen linear layer plus a trained update of low rank that starts at zero.

    ``y = W x + b + (alpha / rank) U D x`` with U zero at the start (Hu et al., "LoRA", ICLR 2022).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))

#: Input and output projections of a token mixer: attention's in our backbones and timm's, and those
#: of the state-space layers.
PROJECTIONS = ("qkv", "proj", "in_proj", "out_proj")


def add_lora(model: nn.Module, rank: int = 16, alpha: float = 32.0,
             first_block: int | None = None) -> list[str]:
    """Give the token mixers of the last blocks low-rank updates; everything else is frozen.

    Parameters
    ----------
    model
        With ``blocks``, each holding its token mixer as ``mixer`` (ours) or ``attn`` (timm's).
    rank, alpha
        Published: 16 and 32.
    first_block
        From which block on, counted from 0. None: as the authors, 15 of 24 in proportion.

    Returns
    -------
    list of str
        Names of the layers that were wrapped.

    Raises
    ------
    InputError
        If there is nothing to adapt.
    """
    blocks = list(getattr(model, "blocks", ()))
    first = round(len(blocks) * 15 / 24) if first_block is None else first_block
    model.requires_grad_(False)
    wrapped = []
    for number, block in enumerate(blocks):
        mixer = getattr(block, "mixer", getattr(block, "attn", None))
        for name in PROJECTIONS if number >= first else ():
            layer = getattr(mixer, name, None)
            if isinstance(layer, nn.Linear):
                setattr(mixer, name, LowRankLinear(layer, rank, alpha).to(layer.weight.device))
                wrapped.append(f"blocks.{number}.{name}")
    if not wrapped:
        raise InputError(type(model).__name__, "blocks", f"none of {len(blocks)} from block {first}"
                         f" on has a layer named {' or '.join(PROJECTIONS)}",
                         "choose an earlier first block, or a transformer")
    return wrapped


def adapted_copies(model: nn.Module, n: int, rank: int, alpha: float, first_block: int | None
                   ) -> list[nn.Module]:
    """Copies of a model that share its frozen weights, each with low-rank updates of its own."""
    shared = {id(p): p for p in model.parameters()}
    copies = [copy.deepcopy(model, dict(shared)) for _ in range(n)]
    for each in copies:
        add_lora(each, rank, alpha, first_block)
    return copies
