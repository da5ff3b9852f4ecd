"""Networks of MMAP's two stages, and the similarity term."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.encoders import model_tokens

#: Cosine between a fused token and another spot's class token below which nothing is penalised.
MARGIN = 0.2


class CrossAttention(nn.Module):
    """Attention from the first token to all: layer norm, heads without bias, no residual, no MLP.

    Parameters
    ----------
    dim
        Width D.
    heads, head_width
        Published: 8 of 64.
    dropout
        On the output.
    """

    def __init__(self, dim: int, heads: int = 8, head_width: int = 64, dropout: float = 0.2):
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.pre_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each head attends to each token, `(B, heads, N)`; rows sum to 1."""
        return self._attend(self.pre_norm(tokens), mask)

    def _attend(self, normed: Tensor, mask: Tensor | None) -> Tensor:
        q = self.to_q(normed[:, :1]).unflatten(-1, (self.heads, -1))  # (B, 1, heads, width)
        k = self.to_k(normed).unflatten(-1, (self.heads, -1))  # (B, N, heads, width)
        scores = torch.einsum("bqhd,bnhd->bhn", q, k) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        return scores.softmax(dim=-1)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map `(B, N, D)` to `(B, 1, D)`; tokens where `mask` `(B, N)` is false get no weight."""
        normed = self.pre_norm(tokens)
        values = self.to_v(normed).unflatten(-1, (self.heads, -1))
        y = torch.einsum("bhn,bnhd->bhd", self._attend(normed, mask), values)
        return self.to_out(y.flatten(1)[:, None])


def similarity_loss(a: Tensor, b: Tensor, margin: float = MARGIN) -> Tensor:
    """Pull each row of `a` to its own row of `b`, push it from the others; `(B, D)` each.

    With cosines C, ``[sum_i (1 - C_ii) + sum_{i != j} max(0, C_ij - margin)] / B``. The second sum
    has B (B - 1) terms and is divided by B alone, so it grows with the batch.
    """
    cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    own = cosine.diagonal()
    others = (cosine - margin).clamp(min=0)
    return ((1 - own).sum() + others.sum() - others.diagonal().sum()) / len(a)


class _Trained(nn.Module):
    """A module whose state holds trained weights and buffers, not the encoder's frozen weights."""

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        # The encoders share their frozen weights: each name of them counts.
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False)
                  if not p.requires_grad}
        whole = super().state_dict(*arguments, **options)
        return {name: value for name, value in whole.items() if name not in frozen}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True,
                        assign: bool = False) -> Any:
        if strict and set(state) != set(self.state_dict()):
            raise RuntimeError(f"{sorted(set(state) ^ set(self.state_dict()))[:3]} do not fit")
        return super().load_state_dict(state, strict=False, assign=assign)


class SpotModel(_Trained):
    """Stage 1: views of a spot to a prediction, a fused token and a class token.

    Parameters
    ----------
    width
        Of the tokens, D.
    n_genes, n_views
        With one view there is nothing to fuse: one head on its class token.
    encoders
        One per view, adapted while this is trained; None where tokens are given.
    attention
        Options of `CrossAttention`.
    """

    def __init__(self, width: int, n_genes: int, n_views: int,
                 encoders: Iterable[nn.Module] | None = None, **attention: Any):
        super().__init__()
        self.encoders = None if encoders is None else nn.ModuleList(encoders)
        self.head_query = nn.Linear(width, n_genes)
        if n_views > 1:
            self.fusion = CrossAttention(width, **attention)
            self.head_fused = nn.Linear(width, n_genes)
        # Mean and spread of class tokens and of patch tokens, per view, over the training spots.
        self.register_buffer("centre", torch.zeros(n_views, 2, width))
        self.register_buffer("spread", torch.ones(n_views, 2, width))

    def tokens(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Tokens per view `(B, 1 + N, D)`, of images where this model holds encoders."""
        if self.encoders is None:
            return list(views)
        return [model_tokens(encoder, view).float()
                for encoder, view in zip(self.encoders, views, strict=True)]

    def standardise(self, tokens: Sequence[Tensor]) -> None:
        """Take the mean and spread of `tokens`, one `(B, 1 + N, D)` per view, from here on."""
        for number, each in enumerate(tokens):
            for kind, part in enumerate((each[:, :1], each[:, 1:])):
                flat = part.reshape(-1, each.shape[-1])
                if len(flat) > 1:
                    self.centre[number, kind] = flat.mean(dim=0)
                    self.spread[number, kind] = flat.std(dim=0).clamp(min=1e-6)

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Views, the highest zoom last, to prediction `(B, G)`, fused `(B, D)`, class `(B, D)`."""
        ready = []
        for number, each in enumerate(self.tokens(views)):
            centre, spread = self.centre[number], self.spread[number]
            cls = (each[:, :1] - centre[0]) / spread[0]
            patches = (each[:, 1:] - centre[1]) / spread[1]
            ready.append((cls, patches))
        query = ready[-1][0]  # (B, 1, D)
        if len(ready) == 1:
            return self.head_query(query[:, 0]), query[:, 0], query[:, 0]
        # The patch tokens of the highest zoom itself are not used.
        fused = self.fusion(torch.cat([query, *(patches for _, patches in ready[:-1])], dim=1))
        fused, query = fused[:, 0], query[:, 0]
        return (self.head_fused(fused) + self.head_query(query)) / 2, fused, query


class PrototypeModel(nn.Module):
    """Stage 2: a spot's token attends to the prototypes of its slide."""

    def __init__(self, width: int, n_genes: int, **attention: Any):
        super().__init__()
        self.fusion = CrossAttention(width, **attention)
        self.head = nn.Linear(width, n_genes)

    def forward(self, token: Tensor, chosen: Tensor, mask: Tensor | None,
                prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Token `(B, D)`, its prototypes `(B, L, D)`, stage 1 `(B, G)` to prediction and token.

        Prototypes where `mask` `(B, L)` is false are padding and get no weight; None attends to
        all rows, padding included.
        """
        if mask is not None:
            mask = F.pad(mask, (1, 0), value=True)  # the spot itself is always there
        fused = self.fusion(torch.cat([token[:, None], chosen], dim=1), mask)[:, 0]
        return (prediction + self.head(fused)) / 2, fused
