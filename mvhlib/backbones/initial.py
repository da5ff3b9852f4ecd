"""Initial weights, drawn for each module by its name below the seed and by its family's rules.

Two models that share a part of the same name and shape share its initial weights at the same seed,
whatever else they are built of, so that variants of one seed are paired.
"""

import hashlib
import math

import torch
from torch import nn

from mvhlib.backbones.mixers import Attention, init_dt_proj

#: Linear layers of a state-space mixer that Mamba leaves at PyTorch's default.
PROJECTIONS = ("in_proj", "x_proj", "x_proj_b", "out_proj")
#: Standard deviation of a standard normal that is cut off at two.
TRUNCATED_STD = 0.87962566103423978


def stream(seed: int, name: str) -> int:
    """Derive a 63-bit seed for `name` from `seed`: same names, same numbers."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def initialise(model: nn.Module, seed: int, *, init: str, dt_init: str, projections: str) -> None:
    """Draw all weights of a `mvhlib.backbones.backbone.Backbone`, in place.

    Parameters
    ----------
    model
        Built; what its modules drew when they were made is replaced. A and D are constants of
        their classes and stay.
    seed
        Each module draws from its own stream; the global random state is left alone.
    init
        Family: ``"vit"``, ``"mvhybrid"``, ``"vim"``, ``"hydra"``. Convolutions inside mixers and
        EinFFT have their class's weights in all of them.
    dt_init
        ``"mamba"``: time-step projections keep Mamba's initialisation; ``"released"``: where the
        published code overwrites it, so does this.
    projections
        ``"family"``: a mixer's projections follow `init`; ``"mamba"``: they follow Mamba's code
        (Gu & Dao 2023): PyTorch's uniform default, and `out_proj` divided by the root of the
        number of blocks.
    """
    with torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is None:
                continue
            torch.random.manual_seed(stream(seed, name))
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                mixer = model.get_submodule(name.rpartition(".")[0])
                _linear(module, name.rpartition(".")[2], mixer, len(model.blocks), init, dt_init,
                        projections)
        if init == "vim":
            torch.random.manual_seed(stream(seed, "patch_embed.proj"))
            _lecun_normal(model.patch_embed.proj)
        for name, std in (("cls_token", 1e-6 if init == "vit" else 0.02), ("pos_embed", 0.02)):
            if (token := getattr(model, name)) is not None:
                torch.random.manual_seed(stream(seed, name))
                nn.init.normal_(token, std=std)


@torch.no_grad()
def _linear(layer: nn.Linear, name: str, mixer: nn.Module, depth: int, init: str, dt_init: str,
            projections: str) -> None:
    """Weights of one linear layer, which holds PyTorch's default."""
    if name in ("dt_proj", "dt_proj_b") and (
            dt_init == "mamba" or (init in ("vim", "hydra") and name == "dt_proj")):
        init_dt_proj(layer)
        return
    if projections == "mamba" and name in PROJECTIONS and not isinstance(mixer, Attention):
        if name == "out_proj":
            layer.weight /= math.sqrt(depth)
        return
    if init in ("vit", "mvhybrid"):
        # Published as truncated at +-2, a hundred standard deviations: a plain normal.
        nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None and init != "hydra":
        nn.init.zeros_(layer.bias)
    if init == "vim" and name in ("out_proj", "fc2"):
        layer.weight /= math.sqrt(depth)


@torch.no_grad()
def _lecun_normal(conv: nn.Conv2d) -> None:
    """A truncated normal whose variance is 1 / fan_in after truncation; no bias."""
    nn.init.trunc_normal_(conv.weight, std=1, a=-2, b=2)
    conv.weight *= math.sqrt(1 / conv.weight[0].numel()) / TRUNCATED_STD
    nn.init.zeros_(conv.bias)
