"""Tokens of a network: how they are found, pooled and read out."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError


def model_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Class token, then patch tokens, `(B, 1 + N, D)`, of a backbone of ours or a ViT of timm.

    Raises
    ------
    InputError
        If the model has no class token and patch tokens.
    """
    find = getattr(model, "forward_features", None)
    found = None if find is None else find(images)
    if isinstance(found, Mapping):
        return torch.cat([found["cls"][:, None], found["patch_tokens"]], dim=1)
    n_prefix = getattr(model, "num_prefix_tokens", 0)
    if found is None or found.ndim != 3 or n_prefix < 1:
        raise InputError(type(model).__name__, "tokens", "it gives no class token with patch "
                         "tokens", "take a vision transformer or a backbone of mvhlib")
    return torch.cat([found[:, :1], found[:, n_prefix:]], dim=1)  # registers are left out


def pool_tokens(tokens: Tensor, grid: int) -> Tensor:
    """Average the patch tokens of `(B, 1 + N, D)` over `grid` x `grid` fields; 0 keeps them."""
    if not grid:
        return tokens
    patches = tokens[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1] or side < grid:
        raise InputError("pool_tokens", "grid", f"{grid} x {grid} cannot be made of "
                         f"{patches.shape[1]} patch tokens", "use 0, or a coarser grid")
    image = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, N, D) -> (B, D, side, side)
    pooled = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :1], pooled], dim=1)
