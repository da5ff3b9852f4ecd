"""Losses of CMRCNet (soft-target contrast and reconstruction error) and its random masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_targets(spot: Tensor, image: Tensor, tau: float = 1.0) -> Tensor:
    """Soft targets `(B, B)` from the similarity of spots; rows sum to 1, columns do not.

    softmax over rows of tau (I I' + S S') / 2 for image and spot embeddings I, S `(B, W)`.
    """
    return torch.softmax(tau * (image @ image.T + spot @ spot.T) / 2, dim=1)


def contrastive_terms(spot: Tensor, image: Tensor, tau: float = 1.0,
                      detach: bool = True) -> tuple[Tensor, Tensor]:
    """Soft-target cross-entropy of each spot, both directions averaged, and the target's entropy.

    The second direction is measured against the target's transpose, whose rows are no distribution;
    that is the published form (BLEEP's as well), and it is kept.

    Parameters
    ----------
    spot, image
        `(B, W)`, not normalised: behind a LayerNorm their squared norm is about W, so that at tau 1
        an untrained target is nearly one-hot.
    detach
        Stop gradients through the target.

    Returns
    -------
    Tensor, Tensor
        Losses `(B,)`; entropy of each row of the target `(B,)` [nat], at most log B.
    """
    target = soft_targets(spot, image, tau)
    target = target.detach() if detach else target
    logits = spot @ image.T / tau
    to_image = -(target * F.log_softmax(logits, dim=1)).sum(dim=1)
    to_spot = -(target.T * F.log_softmax(logits.T, dim=1)).sum(dim=1)
    with torch.no_grad():
        entropy = -torch.special.xlogy(target, target).sum(dim=1)
    return (to_image + to_spot) / 2, entropy


def reconstruction_error(rebuilt: Tensor, target: Tensor, kind: str = "mse",
                         detach: bool = True) -> Tensor:
    """Mean squared error, or 1 less the mean cosine, of `(B, W)` rows."""
    target = target.detach() if detach else target
    if kind == "mse":
        return F.mse_loss(rebuilt, target)
    return 1 - F.cosine_similarity(rebuilt, target, dim=1).mean()


def mask_of(shape: Sequence[int], rate: float, keep_prob_semantics: bool = False,
            generator: torch.Generator | None = None) -> Tensor:
    """Draw an independent mask: 1 where a number is kept, 0 where it is masked.

    Parameters
    ----------
    rate
        Share masked; with `keep_prob_semantics` the share kept.
    generator
        None: torch's global one, which the training loop seeds by step.
    """
    kept = rate if keep_prob_semantics else 1 - rate
    return (torch.rand(tuple(shape), generator=generator) < kept).float()
