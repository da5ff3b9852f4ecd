"""CMRCNet's network: image tokens, gene tokens, heads, masked reconstruction."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.backbones.backbone import Block
from mvhlib.backbones.channel import Mlp
from mvhlib.backbones.mixers import Attention
from mvhlib.encoders import EvalTransform, model_tokens, pool_tokens
from mvhlib.expression.cmrcnet.losses import (
    contrastive_terms,
    mask_of,
    reconstruction_error,
)
from mvhlib.expression.cmrcnet.settings import Settings

#: Rows embedded at once.
EMBED_BATCH = 256


class ProjectionHead(nn.Module):
    """BLEEP's head: p = linear(x), then LayerNorm(p + dropout(linear(GELU(p))))."""

    def __init__(self, width_in: int, width: int, dropout: float = 0.1):
        super().__init__()
        self.projection = nn.Linear(width_in, width)
        self.fc = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, D)` to `(B, W)`."""
        p = self.projection(x)
        return self.norm(p + self.dropout(self.fc(F.gelu(p))))


class GeneTokens(nn.Module):
    """Expression as tokens: one self-normalising layer (Klambauer et al. 2017), cut into pieces."""

    def __init__(self, n_genes: int, hidden: int, n_tokens: int, width: int):
        super().__init__()
        self.fc, self.dropout = nn.Linear(n_genes, hidden), nn.AlphaDropout(0.25)
        self.n_tokens = n_tokens
        own = hidden // n_tokens
        # Published: 2048 is 8 tokens of 256, as wide as the embedding. Else they are brought there.
        self.resize = nn.Identity() if own == width else nn.Linear(own, width)

    def forward(self, genes: Tensor) -> Tensor:
        """Map `(B, G)` to `(B, M, W)`."""
        x = self.dropout(F.elu(self.fc(genes)))
        return self.resize(x.unflatten(1, (self.n_tokens, -1)))  # (B, M H) -> (B, M, H)


class ResidualCrossAttention(nn.Module):
    """Attention that also keeps the query's own content: V1(q) + softmax(q k' / sqrt(d)) V2(k).

    q and k are dropout(ReLU(linear)) of the two sides, and both values are made of them: V1 of the
    transformed query, V2 of the transformed key.

    Parameters
    ----------
    dim, heads
        Width of the tokens, and heads of d = dim / heads.
    """

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.25):
        super().__init__()
        self.heads = heads
        self.fc_q, self.fc_k = (nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
                                for _ in range(2))
        self.fc_v1, self.fc_v2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Map `(B, N, W)` and `(B, M, W)` to `(B, N, W)`."""
        q, k = self.fc_q(x), self.fc_k(other)
        heads = [side.unflatten(2, (self.heads, -1)).transpose(1, 2)
                 for side in (q, k, self.fc_v2(k))]  # (B, N, W) -> (B, H, N, d)
        q_heads, k_heads, values = heads
        weights = torch.softmax(q_heads @ k_heads.mT / math.sqrt(q_heads.shape[-1]), dim=-1)
        return self.fc_v1(q) + (weights @ values).transpose(1, 2).flatten(2)


class Refine(nn.Module):
    """Pre-norm self-attention and MLP, then the residual cross-attention to the other side."""

    def __init__(self, dim: int, heads: int = 8):
        super().__init__()
        self.block = Block(Attention(dim, heads), nn.Sequential(Mlp(dim), nn.Dropout(0.1)),
                           lambda: nn.LayerNorm(dim), dim, None, 0.0)
        self.cross = ResidualCrossAttention(dim, heads)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = self.block(x)
        return x + self.cross(x, other)


class Reconstruction(nn.Module):
    """Rebuild one side's embedding from its masked tokens and the other side's tokens."""

    def __init__(self, dim: int, share_blocks: bool = False):
        super().__init__()
        self.cross = nn.MultiheadAttention(dim, 4, batch_first=True)
        first = Refine(dim)
        self.refine = nn.ModuleList([first, first if share_blocks else Refine(dim)])

    def forward(self, masked: Tensor, other: Tensor) -> Tensor:
        """Map masked `(B, N, W)` and other `(B, M, W)` to `(B, W)`."""
        x = self.cross(masked, other, other, need_weights=False)[0]
        for refine in self.refine:
            x = refine(x, other)
        return x.mean(dim=1)  # (B, N, W) -> (B, W)


class FrozenTokens(nn.Module):
    """Tokens of a frozen encoder: standardised, brought to a width, one transformer block.

    Parameters
    ----------
    tokens
        Of the training spots, `(T, N, D)`: their mean and spread are kept.
    """

    def __init__(self, tokens: Tensor, width: int):
        super().__init__()
        self.width = width
        flat = tokens.flatten(0, 1)
        self.register_buffer("mean", flat.mean(dim=0))
        self.register_buffer("spread", flat.std(dim=0, correction=0).clamp(min=1e-6))
        self.resize = nn.Linear(tokens.shape[-1], width)
        self.block = Block(Attention(width, 8), Mlp(width), lambda: nn.LayerNorm(width), width,
                           None, 0.0)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, W)`."""
        x = self.resize((x.float() - self.mean) / self.spread)
        return self.norm(self.block(x))


class TileTokens(nn.Module):
    """Tiles to tokens by a trainable encoder; tiles are rotated and mirrored during training."""

    def __init__(self, model: nn.Module, transform: EvalTransform, grid: int):
        super().__init__()
        self.model, self.transform, self.grid = model, transform, grid
        self.width = int(getattr(model, "embed_dim", model.num_features))

    def forward(self, tiles: Tensor) -> Tensor:
        """Map uint8 `(B, S, S, 3)` to `(B, 1 + N, D)`."""
        x = tiles.permute(0, 3, 1, 2).float() / 255
        if self.training:
            x = turned(x)
        return pool_tokens(model_tokens(self.model, self.transform.batch(x)), self.grid)


def turned(x: Tensor) -> Tensor:
    """Mirror each image of `(B, 3, S, S)` and rotate it by a multiple of 90 degrees, at random."""
    draw = torch.randint(0, 2, (3, len(x), 1, 1, 1), device="cpu").to(x.device, torch.bool)
    x = torch.where(draw[0], x.flip(-1), x)
    x = torch.where(draw[1], x.flip(-2), x)
    return torch.where(draw[2], x.transpose(-1, -2), x)


class Network(nn.Module):
    """Both encoders, the heads, and the reconstruction."""

    def __init__(self, image: nn.Module, n_genes: int, settings: Settings):
        super().__init__()
        self.settings, self.image = settings, image
        self.image_head = ProjectionHead(image.width, settings.width)
        self.spot_head = ProjectionHead(n_genes, settings.width)
        if settings.reconstruct != "none":
            self.image_tokens = nn.Linear(image.width, settings.width)
            self.gene_tokens = GeneTokens(n_genes, settings.gene_hidden, settings.gene_tokens,
                                          settings.width)
            self.reconstruction = Reconstruction(settings.width, settings.share_blocks)

    def embed_images(self, x: Tensor) -> Tensor:
        """Image embeddings `(B, W)`; published: the mean over all tokens, the class token too."""
        return self.image_head(self.image(x).mean(dim=1))

    def embed_spots(self, y: Tensor) -> Tensor:
        """Expression `(B, G)` to spot embeddings `(B, W)`."""
        return self.spot_head(y)

    def losses(self, x: Tensor, y: Tensor, *, reconstruct: bool = True,
               generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Terms of a batch: ``loss`` and its parts, the target's entropy, and the alignment.

        Parameters
        ----------
        reconstruct
            False leaves the reconstruction out of the sum.
        generator
            Of the mask; None takes torch's global one.

        Returns
        -------
        dict
            ``contrastive`` and ``reconstruction`` as they enter the sum, ``target_entropy`` [nat],
            ``alignment``: mean cosine of the two embeddings of a spot.
        """
        s = self.settings
        tokens = self.image(x)
        image, spot = self.image_head(tokens.mean(dim=1)), self.spot_head(y)
        rows, entropy = contrastive_terms(spot, image, s.tau, s.detach_targets)
        contrastive = (torch.log1p(rows) if s.log_scale else rows).mean()
        terms = {"loss": contrastive, "contrastive": contrastive.detach(),
                 "target_entropy": entropy.mean(),
                 "alignment": F.cosine_similarity(image, spot).mean().detach()}
        if s.reconstruct != "none":
            own, other = self.image_tokens(tokens), self.gene_tokens(y)
            target = image
            if s.reconstruct == "genes":
                own, other, target = other, own, spot
            mask = mask_of(own.shape, s.mask_rate, s.keep_prob_semantics, generator).to(own)
            error = reconstruction_error(self.reconstruction(own * mask, other), target, s.loss,
                                         s.detach_targets)
            error = torch.log1p(error) if s.log_scale else error
            terms["reconstruction"] = error.detach()
            if reconstruct:
                terms["loss"] = contrastive + error
        return terms


@torch.inference_mode()
def embed_rows(function: Callable[[Tensor], Tensor], values: np.ndarray, network: nn.Module
               ) -> np.ndarray:
    """Apply part of a network to rows in evaluation mode, batch by batch."""
    network.eval()
    device = next(network.parameters()).device
    parts = [function(torch.from_numpy(np.ascontiguousarray(values[start:start + EMBED_BATCH]))
                      .to(device)).cpu().numpy() for start in range(0, len(values), EMBED_BATCH)]
    return np.concatenate(parts).astype(np.float32)
