"""Losses of DINOv2: class tokens, masked patches, and spread.

Oquab et al. 2023 (DINOv2), after Caron et al. 2021 (DINO), Zhou et al. 2022 (iBOT) and Sablayrolles
et al. 2019 (KoLeo). All of them work in one process and in many; in many, the Sinkhorn iteration
runs over the samples of all processes, and averaging the gradients over processes gives those of
one process with the whole batch.

Letters: B images, R rows (crops or masked tokens), K prototypes, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mvhlib.artifacts import InputError
from mvhlib.training import all_reduce, gather, world_size

#: A prototype's mass below this counts as this, so that a prototype nobody chooses stays finite.
LEAST_MASS = 1e-30


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def sinkhorn(logits: Tensor | Sequence[Tensor], temperature: float,
             n_iterations: int = 3) -> Tensor | list[Tensor]:
    """Assign rows to prototypes so that all prototypes are used equally (Caron et al. 2020, SwAV).

    Parameters
    ----------
    logits
        `(R, K)` of the teacher, or a list of such (micro-batches), which are balanced together.
    temperature
        Of the teacher.
    n_iterations
        Alternations of "prototypes get equal mass" and "rows sum to 1".

    Returns
    -------
    Tensor or list of Tensor
        Targets of the same shapes; every row sums to 1. Without gradient, at least float32.

    Notes
    -----
    With `P = exp(logits / t)` the result is `diag(v) P diag(u)`, and only the vectors u, v are
    iterated: two products of the matrix with a vector per iteration, no copy of it. Each row of P
    is scaled by its own maximum, and v starts at what was taken out; both are exact, and large
    logits neither overflow nor leave a row of zeros.
    """
    several = not isinstance(logits, Tensor)
    parts = list(logits) if several else [logits]
    plans, rows = [], []
    for part in parts:
        scores = _wide(part) / temperature  # (R, K)
        top = scores.max(dim=1).values
        plans.append(scores.sub_(top[:, None]).exp_())
        rows.append(top)
    highest = all_reduce(torch.cat([*rows, rows[0].new_tensor([-torch.inf])]).max(), "max")
    rows = [(top - highest).exp() for top in rows]
    with torch.autocast(plans[0].device.type, enabled=False):  # it would round the products
        for _ in range(n_iterations):
            mass = sum(row @ plan for row, plan in zip(rows, plans, strict=True))  # (K,)
            columns = 1 / all_reduce(mass).clamp(min=LEAST_MASS)
            rows = [1 / (plan @ columns) for plan in plans]
    for row, plan in zip(rows, plans, strict=True):
        plan.mul_(columns).mul_(row[:, None])
    return plans if several else plans[0]


def cross_entropy(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy `(R,)` of student logits `(R, K)` against targets `(R, K)`."""
    return -(targets * F.log_softmax(_wide(student) / temperature, dim=-1)).sum(dim=-1)


def dino_loss(student: Sequence[Tensor], targets: Sequence[Tensor],
              temperature: float = 0.1) -> Tensor:
    """Sum over all pairs (student crop, teacher crop) of the mean cross-entropy.

    Parameters
    ----------
    student
        Logits `(B, K)`, one tensor per crop.
    targets
        `(B, K)` of `sinkhorn`, one tensor per teacher crop that supervises these student crops.
        For global crops hand over one student crop with the *other* crop's targets at a time.

    Notes
    -----
    Cross-entropy is linear in the targets, so each student crop meets their sum once.
    """
    total = sum(targets)
    return sum(cross_entropy(crop, total, temperature).mean() for crop in student)


def token_weights(masks: Tensor) -> Tensor:
    """Weight of each masked token, 1 / (masked tokens of its crop): masks `(R, N)` to `(M,)`.

    In the order in which ``x[masks]`` picks tokens.
    """
    count = masks.sum(dim=1).clamp(min=1)
    return (1 / count).repeat_interleave(masks.sum(dim=1))


def ibot_loss(student: Tensor, targets: Tensor, masks: Tensor,
              temperature: float = 0.1) -> Tensor:
    """Mean over crops of the mean cross-entropy over a crop's masked tokens.

    Parameters
    ----------
    student, targets
        `(M, K)`: the masked tokens in the order of ``x[masks]``.
    masks
        `(R, N)` bool; crops without a mask count in the mean with 0.
    """
    weights = token_weights(masks).to(targets)
    return (cross_entropy(student, targets, temperature) * weights).sum() / len(masks)


def koleo_loss(cls: Tensor, group: int = 0, eps: float = 1e-8) -> Tensor:
    """Mean of -log(distance to the nearest neighbour), which pushes embeddings apart.

    Parameters
    ----------
    cls
        Class tokens `(B, D)` of one crop per image, before the head.
    group
        Rows among which neighbours are sought: consecutive groups of this size, over process
        borders if needed; 0 takes the rows of this process as one group.
    eps
        Added to distances; published 1e-8.

    Raises
    ------
    InputError
        If the groups do not divide the rows.
    """
    group = group or len(cls)
    if len(cls) % group:
        if (len(cls) * world_size()) % group:
            raise InputError("koleo_loss", "group", f"{group} does not divide {len(cls)} rows "
                             f"of {world_size()} processes", "choose a divisor of their product")
        cls = gather(cls)
    with torch.autocast(cls.device.type, enabled=False):
        x = F.normalize(_wide(cls), dim=-1, eps=eps).unflatten(0, (-1, group))  # (n, group, D)
        with torch.no_grad():
            closeness = x @ x.transpose(1, 2)
            closeness.diagonal(dim1=1, dim2=2).fill_(-1)
            nearest = closeness.argmax(dim=2)  # (n, group)
        neighbours = x.gather(1, nearest[..., None].expand_as(x))
        distance = torch.linalg.vector_norm(x - neighbours + eps, dim=-1)
        return -torch.log(distance + eps).mean()
