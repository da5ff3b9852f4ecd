"""CMRCNet: images and expression in one space, then the most similar training spots answer.

Zhang et al., arXiv 2506.08854, from its description. An image encoder and an expression head are
trained so that the two embeddings of a spot agree (a contrastive loss with soft targets), while a
second branch rebuilds the image's embedding from tokens of which half the numbers are masked, with
the help of the spot's genes. To predict, the image of a new spot is embedded and the expression of
its `k` nearest training spots is averaged: any gene that they were measured for can be asked.

::

    tile -> tokens (B, N, D) -> mean -> head -> image embedding (B, W)  -.
    genes (B, G) ---------------------> head -> spot embedding (B, W)   -+-> soft-target loss
    tokens, masked -+-> attention to gene tokens, twice refined -> mean -> ~ image embedding

Where the released code and the paper's summary part ways, or the code holds what looks like a slip,
`Settings` says so and takes the repaired form; flags restore the authors'.

With a frozen encoder (`encoder=None`, samples hold tokens or features) one transformer block on top
of its tokens is trained, which both branches share. It has to be there: with nothing shared and a
detached target, the reconstruction could not change what is retrieved.
"""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib import encoders, neighbours
from mvhlib.artifacts import InputError, atomic, remove_tree, sha256_of, write_json
from mvhlib.backbones.backbone import Backbone, Block
from mvhlib.backbones.channel import Mlp
from mvhlib.backbones.mixers import Attention
from mvhlib.encoders import (
    EvalTransform,
    PatchEncoder,
    model_tokens,
    names_of,
    pool_tokens,
    seen,
)
from mvhlib.features import Features, align, read_folder
from mvhlib.tiles.store import read_tiles
from mvhlib.training import Fit, FitConfig, fit

if TYPE_CHECKING:
    from mvhlib.cohort import Section
    from mvhlib.expression.protocols import Sample

#: The published image encoder: 56 M parameters, random at the start.
PUBLISHED_ENCODER = {"img_size": 224, "patch_size": 32, "embed_dim": 768, "depth": 8,
                     "num_heads": 8}

#: The published schedule; the weights of the lowest validation loss are kept.
PUBLISHED_TRAINING = FitConfig(epochs=60, batch=64, lr=1e-4, min_lr=1e-5, optimizer="adamw",
                               weight_decay=1e-3)

#: Rows embedded at once.
EMBED_BATCH = 256

CHOICES = {"reconstruct": ("image", "genes", "none"), "loss": ("mse", "cosine"),
           "schedule": ("joint", "two_stage")}


@dataclass(frozen=True)
class Settings:
    """What the model is made of; defaults are the released code's, but for the last three flags.

    Attributes
    ----------
    width
        Of both embeddings and of the reconstruction, W.
    tau
        Temperature: divides the logits and multiplies the similarities that make the soft target,
        as CMRCNet has it. (BLEEP divides both; at 1 they agree.)
    reconstruct
        ``"image"``: masked image tokens, helped by genes, rebuild the image embedding;
        ``"genes"``: the other way round; ``"none"``.
    loss
        Of the reconstruction: ``"mse"`` or ``"cosine"`` (1 less the cosine).
    mask_rate
        Share of the tokens' numbers that is set to 0.
    schedule
        ``"joint"``, as in the released code; ``"two_stage"``: the contrastive loss alone for the
        first half of the epochs, then both. The paper's summary names two stages and no more.
    log_scale
        Each term x enters as log(1 + x), the contrastive one per spot. BLEEP adds them as they are.
    gene_hidden, gene_tokens
        Width of the self-normalising gene branch, and the tokens that it is cut into.
    share_blocks
        True: the two refining blocks are one, as in the released code, which lists it twice.
    keep_prob_semantics
        True: `mask_rate` is the share that is kept, as in the released code; the same at 0.5.
    detach_targets
        False: gradients also flow through the soft target and the embedding to be rebuilt, as in
        the released code.
    """

    width: int = 256
    tau: float = 1.0
    reconstruct: str = "image"
    loss: str = "mse"
    mask_rate: float = 0.5
    schedule: str = "joint"
    log_scale: bool = True
    gene_hidden: int = 2048
    gene_tokens: int = 8
    share_blocks: bool = False
    keep_prob_semantics: bool = False
    detach_targets: bool = True

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError("cmrcnet", name, f"is {getattr(self, name)!r}",
                                 f"use one of {list(known)}")
        if not self.tau > 0:
            raise InputError("cmrcnet", "tau", f"is {self.tau}", "use a number above 0")
        if not 0 <= self.mask_rate < 1 and not (self.keep_prob_semantics and self.mask_rate == 1):
            raise InputError("cmrcnet", "mask_rate", f"is {self.mask_rate}",
                             "use 0 (nothing is masked) up to, not including, 1")
        if self.width % 8:
            raise InputError("cmrcnet", "width", f"is {self.width}",
                             "use a multiple of 8, the number of attention heads")
        if self.gene_hidden % self.gene_tokens:
            raise InputError("cmrcnet", "gene_hidden", f"is {self.gene_hidden}",
                             f"use a multiple of gene_tokens, {self.gene_tokens}")


# --------------------------------------------------------------------------------------------
# losses


def soft_targets(spot: Tensor, image: Tensor, tau: float = 1.0) -> Tensor:
    """Which spots of a batch count as alike, `(B, B)`: rows sum to 1, columns do not.

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
    """1 where a number stays and 0 where it is masked, each drawn by itself.

    Parameters
    ----------
    rate
        Share masked; with `keep_prob_semantics` the share kept.
    generator
        None: torch's global one, which the training loop seeds by step.
    """
    kept = rate if keep_prob_semantics else 1 - rate
    return (torch.rand(tuple(shape), generator=generator) < kept).float()


# --------------------------------------------------------------------------------------------
# parts of the network


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
    """Tiles to tokens by an encoder that is trained; tiles are turned and mirrored meanwhile."""

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
    """Images `(B, 3, S, S)`, each mirrored and turned by a random multiple of 90 degrees."""
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


# --------------------------------------------------------------------------------------------
# encoders


def published_encoder(name: str = "cmrcnet-vit", seed: int = 0) -> PatchEncoder:
    """The published image encoder: ViT of 8 blocks and 8 heads, patch 32, 224 px, random weights.

    Colours are normalised as those of our other backbones, not by ImageNet's: the first layer of
    a network that starts at random absorbs the difference.
    """
    return encoders.create_encoder("vit12_small_patch16_256", name=name, seed=seed,
                                   **PUBLISHED_ENCODER)


class _TokenModel(nn.Module):
    """Class token and pooled patch tokens, end to end in one row."""

    def __init__(self, model: nn.Module, grid: int):
        super().__init__()
        self.model, self.grid = model, grid

    def forward(self, x: Tensor) -> Tensor:
        return pool_tokens(model_tokens(self.model, x), self.grid).flatten(1)


class _MeanTokens(_TokenModel):
    """Mean over the class token and the patch tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return pool_tokens(model_tokens(self.model, x), self.grid).mean(dim=1)


def token_encoder(encoder: PatchEncoder, grid: int = 2) -> PatchEncoder:
    """An encoder whose features are tokens end to end, so that feature files can hold them.

    Parameters
    ----------
    encoder
        A network with class and patch tokens.
    grid
        Patch tokens are averaged over `grid` x `grid` fields of the tile; 0 keeps all of them.

    Returns
    -------
    PatchEncoder
        Of (1 + grid^2) D features; `as_tokens` cuts them apart again.

    Raises
    ------
    InputError
        If the encoder has no tokens.
    """
    width = int(getattr(encoder.model, "embed_dim", encoder.embedding_dim))
    side = encoder.tile_px or 224
    with torch.inference_mode():
        n = model_tokens(encoder.model, torch.zeros(1, 3, side, side, device=encoder.device)
                         ).shape[1]
    n = 1 + grid**2 if grid else n
    return PatchEncoder(f"{encoder.enc_name}-tokens", _TokenModel(encoder.model, grid),
                        encoder.eval_transforms, n * width, precision=encoder.precision,
                        mpp=encoder.mpp, min_px=encoder.min_px, is_random=encoder.is_random,
                        kind=f"{n} tokens of {encoder.kind}", config=encoder.config,
                        identity=encoder._identity | {"tokens": n, "grid": grid})


def as_tokens(features, width: int):
    """`Features` of `token_encoder` as `(T, N, width)`."""
    return replace(features, features=features.features.reshape(len(features), -1, width))


def inputs(kind: str, encoder: PatchEncoder, folder: str | os.PathLike, sections: Sequence[str],
           grid: int = 2) -> dict[str, Features]:
    """What the estimator reads of each section.

    Parameters
    ----------
    kind
        ``"features"``: those of `04_embed`, ``"tokens"``: of the frozen encoder, computed once and
        kept in ``features/<encoder>-tokens``; ``"tiles"``: pixels, for an encoder that is trained.
    folder
        Holds ``tiles/`` and ``features/``.
    grid
        See `token_encoder`.

    Returns
    -------
    dict
        Section -> `Features` of shape `(T, D)`, `(T, N, D)` or `(T, S, S, 3)` uint8.

    Raises
    ------
    InputError
        On an unknown kind, or files that are missing.
    """
    folder, name = Path(folder), encoder.enc_name
    if kind == "features":
        return read_folder(folder / "features" / name, sections)
    if kind == "tokens":
        reader, place = token_encoder(encoder, grid), folder / "features" / f"{name}-tokens"
        encoders.encode_folder(reader, folder / "tiles", place, sections)
        width = int(getattr(encoder.model, "embed_dim", encoder.embedding_dim))
        return {section: as_tokens(found, width)
                for section, found in read_folder(place, sections).items()}
    if kind != "tiles":
        raise InputError("cmrcnet", "kind", f"is {kind!r}", "use features, tokens or tiles")
    found = {}
    for section in sections:
        path = folder / "tiles" / f"{section}.h5"
        tiles = read_tiles(path)
        if encoder.mpp is not None and tiles.source_mpp > encoder.mpp * 1.01:
            raise InputError(path, "mpp", f"the slide's {tiles.source_mpp:.3g} um/px are coarser "
                             f"than the working resolution {encoder.mpp:.3g}",
                             f"create the encoder with mpp={tiles.source_mpp:.3g} or more")
        found[section] = Features(_at_resolution(tiles.img, encoder, tiles.mpp), tiles.coords,
                                  tiles.barcodes, {"mpp": tiles.mpp, "working_mpp": encoder.mpp})
    return found


def _at_resolution(img: np.ndarray, encoder: PatchEncoder, tile_mpp: float) -> np.ndarray:
    """Tiles averaged down to the encoder's working resolution, as uint8; else as they are."""
    px = encoder._working_px(img.shape[1:3], tile_mpp)
    if px is None:
        return img
    parts = [encoders.reduce_area(torch.from_numpy(part).permute(0, 3, 1, 2).float(), px)
             for part in np.array_split(img, max(1, len(img) // EMBED_BATCH))]
    return torch.cat(parts).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# --------------------------------------------------------------------------------------------
# the estimator


@dataclass
class Fitted:
    """One fold's model with its gallery: what retrieval needs, and nothing of the test sections.

    Attributes
    ----------
    network
        In evaluation mode.
    genes
        Names of the columns of `expression`.
    gallery
        One row per stored spot: section, row (its place among the section's spots).
    expression
        `(n, G)`, of the gallery's rows.
    index
        Over the spots' embeddings.
    fit
        Log, best epoch and parameters of the training.
    about
        Row of `CMRCNet.describe`.
    """

    network: Network = field(repr=False)
    genes: list[str] = field(repr=False)
    gallery: pd.DataFrame = field(repr=False)
    expression: np.ndarray = field(repr=False)
    index: neighbours.Index = field(repr=False)
    fit: Fit = field(repr=False)
    about: dict[str, Any]
    trained_on: dict[str, list[str]] = field(repr=False)
    encoder: PatchEncoder | None = field(default=None, repr=False)

    def embed_images(self, X: np.ndarray) -> np.ndarray:
        """Image embeddings `(T, W)` of tokens, features or tiles."""
        X = X[:, None] if X.ndim == 2 else X
        return _embed(self.network.embed_images, X, self.network)

    def embed_spots(self, Y: np.ndarray) -> np.ndarray:
        """Spot embeddings `(T, W)` of expression `(T, G)`."""
        return _embed(self.network.embed_spots, np.asarray(Y, dtype=np.float32), self.network)

    def retrieve(self, X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarity and gallery rows of the `k` nearest spots, `(T, k)` each."""
        return self.index.search(self.embed_images(X), k)

    def predict(self, X: np.ndarray, k: int) -> np.ndarray:
        """Unweighted mean of the stored expression of the `k` nearest spots, `(T, G)`."""
        return _mean_of_rows(self.expression, self.retrieve(X, k)[1])

    def predict_table(self, X: np.ndarray, tables: Mapping[str, np.ndarray], k: int) -> np.ndarray:
        """The same for any table of the training spots, for instance of genes not trained on.

        Parameters
        ----------
        tables
            Section -> `(spots, columns)`, rows in the order of the section's samples; see `table`.

        Raises
        ------
        InputError
            If a training section has no table, or one of another length.
        """
        stored = []
        for section, rows in self.gallery.groupby("section", sort=False)["row"]:
            if section not in tables:
                raise InputError("cmrcnet", "tables", f"hold nothing of {section}",
                                 "give one per training section")
            values = np.asarray(tables[section])
            if len(values) != self.about["spots"][section]:
                raise InputError(section, "table", f"has {len(values)} rows for "
                                 f"{self.about['spots'][section]} spots",
                                 "give one row per spot with a tile, in their order")
            stored.append(values[rows.to_numpy()])
        return _mean_of_rows(np.concatenate(stored), self.retrieve(X, k)[1])

    def match(self, X: np.ndarray, Y: np.ndarray) -> pd.DataFrame:
        """How well a section's images and spots find each other among its own spots.

        Returns
        -------
        DataFrame
            direction (``image to expression`` and back), median_rank (from 1), recall1, recall5,
            recall10, n_spots, and chance_rank, what guessing would give.
        """
        image, spot = self.embed_images(X), self.embed_spots(Y)
        image, spot = (side / np.linalg.norm(side, axis=1, keepdims=True)
                       for side in (image, spot))
        rows = []
        for direction, similarity in (("image to expression", image @ spot.T),
                                      ("expression to image", spot @ image.T)):
            rank = 1 + (similarity > np.diag(similarity)[:, None]).sum(axis=1)
            rows.append({"direction": direction, "median_rank": float(np.median(rank)),
                         **{f"recall{k}": float(np.mean(rank <= k)) for k in (1, 5, 10)},
                         "n_spots": len(rank), "chance_rank": (len(rank) + 1) / 2})
        return pd.DataFrame(rows)

    @torch.inference_mode()
    def rebuild_error(self, X: np.ndarray, Y: np.ndarray, mask_rate: float, *,
                      shuffled: bool = False, seed: int = 0) -> float:
        """Error of the reconstruction of one section, with its own genes or those of other spots.

        Parameters
        ----------
        shuffled
            Give every spot the genes of another one: what the error loses by that is what the
            branch takes from the genes, and does not copy from the image.

        Raises
        ------
        InputError
            If the model was trained without reconstruction, or rebuilds genes.
        """
        self._needs("image")
        network, settings = self.network.eval(), self.network.settings
        image, genes = self._batch(X, Y)
        if shuffled:
            genes = genes[torch.arange(len(genes), device=genes.device).roll(len(genes) // 2)]
        tokens = network.image(image)
        own = network.image_tokens(tokens)
        mask = mask_of(own.shape, mask_rate, generator=torch.Generator().manual_seed(seed)).to(own)
        rebuilt = network.reconstruction(own * mask, network.gene_tokens(genes))
        return float(reconstruction_error(rebuilt, network.image_head(tokens.mean(dim=1)),
                                          settings.loss))

    @torch.inference_mode()
    def attention(self, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Weights of the first cross-attention, `(T, N, M)`: image tokens over gene tokens."""
        self._needs("image")
        network = self.network.eval()
        image, genes = self._batch(X, Y)
        own, other = network.image_tokens(network.image(image)), network.gene_tokens(genes)
        return network.reconstruction.cross(own, other, other)[1].cpu().numpy()

    def _needs(self, side: str) -> None:
        if self.network.settings.reconstruct != side:
            raise InputError("cmrcnet", "reconstruct", f"is {self.network.settings.reconstruct!r}",
                             f"train with reconstruct={side!r}")

    def _batch(self, X: np.ndarray, Y: np.ndarray) -> tuple[Tensor, Tensor]:
        device = next(self.network.parameters()).device
        X = X[:, None] if X.ndim == 2 else X
        return (torch.from_numpy(np.ascontiguousarray(X)).to(device),
                torch.from_numpy(np.asarray(Y, dtype=np.float32)).to(device))

    def save_embeddings(self, path: str | os.PathLike, X: np.ndarray) -> Path:
        """Write the gallery and queries for `benchmarks/retrieval.py`.

        Parameters
        ----------
        path
            ``.npz`` with spot `(n, W)`, expression `(n, G)` and image `(T, W)`.
        X
            Images that are no part of the gallery.
        """
        with atomic(path) as temporary:
            np.savez(temporary, spot=_embed(self.network.embed_spots, self.expression,
                                            self.network),
                     expression=self.expression, image=self.embed_images(X))
        return Path(path)

    def patch_encoder(self, name: str = "cmrcnet") -> PatchEncoder:
        """The trained image encoder for classification, survival or another regression.

        Its features are the mean over all tokens, what the projection head reads.

        Raises
        ------
        InputError
            If the encoder was frozen: it is then what it was before.
        """
        model, given = self._trained_encoder(), self.encoder
        width = self.network.image.width
        return PatchEncoder(name, _MeanTokens(copy.deepcopy(model), self.network.image.grid),
                            given.eval_transforms, width, precision=given.precision,
                            min_px=given.min_px, kind=f"{type(model).__name__} of CMRCNet",
                            config={"pretrained_on": self.trained_on})

    def save_encoder(self, folder: str | os.PathLike) -> Path:
        """Write the trained backbone, so that `mvhlib.encoders.create_encoder(folder)` reads it.

        Read it with ``pool="cls+mean"``: the model was trained on the mean over its tokens.

        Raises
        ------
        InputError
            If the encoder was frozen, or is none of ours.
        """
        model = self._trained_encoder()
        if not isinstance(model, Backbone):
            raise InputError(folder, "encoder", f"is a {type(model).__name__}, no backbone of "
                             "mvhlib", "use patch_encoder()")
        return model.save_pretrained(folder, pretrained_on=self.trained_on)

    def _trained_encoder(self) -> nn.Module:
        if not isinstance(self.network.image, TileTokens):
            raise InputError("cmrcnet", "encoder", "was frozen, there is nothing new to export",
                             "give CMRCNet an encoder and tiles")
        return self.network.image.model


def _mean_of_rows(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.stack([table[chosen].mean(axis=0) for chosen in rows]).astype(np.float32)


@torch.inference_mode()
def _embed(function, values: np.ndarray, network: nn.Module) -> np.ndarray:
    network.eval()
    device = next(network.parameters()).device
    parts = [function(torch.from_numpy(np.ascontiguousarray(values[start:start + EMBED_BATCH]))
                      .to(device)).cpu().numpy() for start in range(0, len(values), EMBED_BATCH)]
    return np.concatenate(parts).astype(np.float32)


class CMRCNet:
    """Contrastive learning with masked reconstruction, as an estimator for `protocols.run`.

    Parameters
    ----------
    encoder
        None: samples hold features `(T, D)` or tokens `(T, N, D)` of a frozen encoder
        (`token_encoder`). A `PatchEncoder` whose model has tokens: samples hold uint8 tiles
        `(T, S, S, 3)`, and a copy of it is trained in every fold (`published_encoder`).
    settings
        See `Settings`.
    training
        See `mvhlib.training.FitConfig`; default `PUBLISHED_TRAINING`.
    k
        Neighbours that are averaged.
    index, recall
        Kind of `mvhlib.neighbours`; an index other than ``"exact"`` is tuned to this recall on
        the held-out images.
    grid
        Patch tokens are averaged over `grid` x `grid` fields before the reconstruction; 0 keeps
        all, as published. Of trained encoders; frozen tokens come as they are.
    spots_per_section
        Train on at most so many spots of a section, drawn at random; all of them are stored.
    validation
        Share of the training spots held out to choose the best epoch: whole patients, or whole
        sections where there is one patient. With one training section nothing is held out, and
        the last epoch counts. (Published: a fifth of the spots at random, whose neighbours are
        trained on.)
    folder
        Holds the state of every fold, so that a killed run goes on, and its final weights.
    device
        Where the model is trained.
    name
        In tables.
    """

    def __init__(self, encoder: PatchEncoder | None = None, *, settings: Settings | None = None,
                 training: FitConfig | None = None, k: int = 50, index: str = "exact",
                 recall: float = 0.99, grid: int = 0, spots_per_section: int | None = None,
                 validation: float = 0.2, folder: str | os.PathLike | None = None,
                 device: str | torch.device = "cpu", name: str = "cmrcnet"):
        self.encoder, self.settings = encoder, settings or Settings()
        self.training, self.k = training or PUBLISHED_TRAINING, k
        self.index, self.recall, self.grid = index, recall, grid
        self.spots_per_section, self.validation = spots_per_section, validation
        self.folder = None if folder is None else Path(folder)
        self.device, self.name = torch.device(device), name
        self.fitted: dict[str, Fitted] = {}
        self.current: Fitted | None = None

    def fit(self, samples: "Sequence[Sample]", genes: Sequence[str], fold: str,
            seed: int) -> dict[str, Any]:
        """Train on a fold's sections and store their spots.

        Parameters
        ----------
        samples
            Objects with ``name, study, patient, X, Y``; `Y` may be any second modality, as long as
            its rows are the spots and its columns are named by `genes`.
        fold
            Key of `fitted`, and name of the state's folder.

        Returns
        -------
        dict
            What was trained on; see `describe`.

        Raises
        ------
        InputError
            If `k` is larger than the gallery, or samples do not fit each other or the encoder.
        """
        X = [self._checked(sample) for sample in samples]
        Y = np.concatenate([np.asarray(sample.Y, dtype=np.float32) for sample in samples])
        if not 1 <= self.k <= len(Y):
            raise InputError("cmrcnet", "k", f"is {self.k} for a gallery of {len(Y)} spots in fold "
                             f"{fold}", f"use 1 to {len(Y)}")
        gallery = pd.DataFrame({
            "section": np.repeat([sample.name for sample in samples], [len(x) for x in X]),
            "row": np.concatenate([np.arange(len(x)) for x in X])})
        held, unit = self._held_out(samples, X, seed)
        train = np.flatnonzero(~held & self._drawn(X, seed))
        X = np.concatenate(X)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Network(self._image(X[train]), Y.shape[1], self.settings).to(self.device)
        report = self._train(network, X, Y, train, np.flatnonzero(held), str(fold), seed)
        about = {"fold": str(fold), "n_slides": len(samples), "n_spots": len(Y),
                 "n_trained": len(train), "n_validation": int(held.sum()), "inner_unit": unit,
                 "n_patients": len({sample.patient for sample in samples}),
                 "n_genes": len(genes), "n_parameters": report.n_parameters,
                 "epochs": report.n_epochs, "best_epoch": report.best_epoch,
                 "spots": {sample.name: len(sample.X) for sample in samples}}
        trained_on = seen(names_of(samples), self.encoder and self.encoder.pretrained_on)
        stored = _embed(network.embed_spots, Y, network)
        index = neighbours.build(stored, self.index, seed=seed)
        self.current = Fitted(network, list(genes), gallery, Y, index, report, about, trained_on,
                              self.encoder)
        if self.index != "exact" and held.any():
            index.tune(self.current.embed_images(X[held][:256]), self.k, self.recall)
        self.fitted[str(fold)] = self.current
        return about

    def predict(self, sample: "Sample", k: int | None = None) -> np.ndarray:
        """Predict the genes of the last fit from the sample's images, `(T, G)`."""
        if self.current is None:
            raise InputError("cmrcnet", "fit", "has not been called", "fit first")
        return self.current.predict(self._checked(sample), k or self.k)

    def predict_genes(self, X: np.ndarray, tables: Mapping[str, np.ndarray], *,
                      fold: str | None = None, k: int | None = None) -> np.ndarray:
        """Any table of the training spots, averaged over the neighbours; see `table`."""
        fitted = self.current if fold is None else self.fitted[str(fold)]
        return fitted.predict_table(X, tables, k or self.k)

    def describe(self) -> pd.DataFrame:
        """One row per fold: slides, spots, genes, patients and parameters trained."""
        rows = [{name: value for name, value in fitted.about.items() if name != "spots"}
                for fitted in self.fitted.values()]
        return pd.DataFrame([{"method": self.name} | row for row in rows])

    def log(self) -> pd.DataFrame:
        """Loss terms, target entropy and alignment of every epoch of every fold."""
        return pd.concat([pd.DataFrame(fitted.fit.log).assign(method=self.name, fold=fold)
                          for fold, fitted in self.fitted.items()], ignore_index=True)

    # ---- parts of fit

    def _checked(self, sample: "Sample") -> np.ndarray:
        """The sample's images as the model reads them, or an error that names the section."""
        X = np.asarray(sample.X)
        if self.encoder is None:
            if X.ndim not in (2, 3):
                raise InputError(sample.name, "features", f"have shape {X.shape}",
                                 "give (T, D) or tokens (T, N, D), or an encoder for tiles")
            return X[:, None] if X.ndim == 2 else X  # (T, D) -> (T, 1, D)
        if X.dtype != np.uint8 or X.ndim != 4 or X.shape[-1] != 3:
            raise InputError(sample.name, "tiles", f"are {X.dtype} of shape {X.shape}",
                             "give uint8 tiles (T, S, S, 3)")
        return X

    def _image(self, X: np.ndarray) -> nn.Module:
        if self.encoder is None:
            return FrozenTokens(torch.from_numpy(np.asarray(X, np.float32)), self.settings.width)
        model = copy.deepcopy(self.encoder.model).train().requires_grad_(True)
        return TileTokens(model, self.encoder.eval_transforms, self.grid)

    def _held_out(self, samples, X, seed: int) -> tuple[np.ndarray, str]:
        from mvhlib.cohort.splits import hold_out

        sizes = [len(x) for x in X]
        for unit, attribute in (("patient", "patient"), ("section", "name")):
            groups = [str(getattr(sample, attribute)) for sample in samples]
            if self.validation > 0 and len(set(groups)) > 1:
                return hold_out(np.repeat(groups, sizes), self.validation, seed), unit
        return np.zeros(sum(sizes), dtype=bool), "none"

    def _drawn(self, X, seed: int) -> np.ndarray:
        """True for the spots that are trained on."""
        if self.spots_per_section is None:
            return np.ones(sum(map(len, X)), dtype=bool)
        rng = np.random.default_rng(seed)
        return np.concatenate([rng.permutation(len(x)) < self.spots_per_section for x in X])

    def _train(self, network: Network, X: np.ndarray, Y: np.ndarray, train: np.ndarray,
               held: np.ndarray, fold: str, seed: int) -> Fit:
        x, y = torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(Y)
        first_half = math.ceil(self.training.epochs / 2)

        def terms(rows: np.ndarray, reconstruct: bool = True, generator=None) -> dict:
            chosen = torch.from_numpy(rows)
            return network.losses(x[chosen].to(self.device), y[chosen].to(self.device),
                                  reconstruct=reconstruct, generator=generator)

        def loss(rows: np.ndarray, epoch: int) -> dict[str, Tensor]:
            joint = self.settings.schedule == "joint" or epoch >= first_half
            return terms(train[rows], joint)

        def validate() -> dict[str, float]:
            # Masks as in training, and the same ones in every epoch. The whole sum counts in both
            # stages, or the first would always look best.
            generator = torch.Generator().manual_seed(seed)
            size = self.training.batch
            parts = [terms(held[start:start + size], generator=generator)
                     for start in range(0, max(1, len(held) - len(held) % size), size)]
            return {name: float(np.mean([float(part[name]) for part in parts]))
                    for name in parts[0]}

        options = {"seed": seed, "validate": validate if len(held) else None}
        if self.folder is None:
            return fit(network, loss, len(train), self.training, **options)
        recipe = {"settings": asdict(self.settings), "training": asdict(self.training),
                  "grid": self.grid, "seed": seed,
                  "encoder": None if self.encoder is None else self.encoder.identity,
                  "data": sha256_of(X, Y, train, held)}
        folder = self.folder / f"{fold}-{sha256_of(recipe)[:12]}"
        done = _read_finished(folder, network)
        if done is not None:
            return done
        report = fit(network, loss, len(train), self.training, folder=folder, key=recipe,
                     **options)
        _write_finished(folder, network, report)
        return report


def _write_finished(folder: Path, network: nn.Module, report: Fit) -> None:
    """Final weights, then the report that vouches for them; the optimiser's state goes."""
    from safetensors.torch import save_model

    with atomic(folder / "model.safetensors") as temporary:
        save_model(network, str(temporary))
    write_json(folder / "fit.json", asdict(report))
    remove_tree(folder / "state")


def _read_finished(folder: Path, network: nn.Module) -> Fit | None:
    import json

    from safetensors.torch import load_model

    if not (folder / "fit.json").is_file():
        return None
    load_model(network, str(folder / "model.safetensors"))
    network.eval()
    return Fit(**json.loads((folder / "fit.json").read_text(encoding="utf-8")))


def bleep(encoder: PatchEncoder | None = None, *, settings: Settings | None = None,
          **options: Any) -> CMRCNet:
    """BLEEP (Xie et al., NeurIPS 2023): no reconstruction, and the loss as it is, without log."""
    settings = replace(settings or Settings(), reconstruct="none", log_scale=False)
    return CMRCNet(encoder, settings=settings, **({"name": "bleep"} | options))


#: Named configurations.
METHODS = {"cmrcnet": CMRCNet, "bleep": bleep}


def selected_on_test(predictions: Mapping[str, Any], n: int = 50) -> pd.DataFrame:
    """The authors' scores: genes are chosen by the truth of the section that they are scored on.

    HEG are the `n` genes with the largest sum there, HVG those with the largest variance; a
    correlation that does not exist counts as 0. Chosen on the test section, so not comparable with
    any score on genes that were fixed before.

    Parameters
    ----------
    predictions
        Section -> object with ``measured`` and ``predicted``, such as `protocols.Prediction`.

    Returns
    -------
    DataFrame
        Columns section, genes (``HEG, selected on test`` and the like), pcc.
    """
    from mvhlib.expression.scores import pearson

    rows = []
    for section, prediction in predictions.items():
        measured = np.asarray(prediction.measured, dtype=np.float64)
        r = np.nan_to_num(pearson(measured, np.asarray(prediction.predicted, dtype=np.float64)))
        for name, size in (("HEG", measured.sum(axis=0)), ("HVG", measured.var(axis=0))):
            best = np.argsort(-size, kind="stable")[:n]
            rows.append({"section": section, "genes": f"{name}, selected on test",
                         "pcc": float(r[best].mean())})
    return pd.DataFrame(rows)


def paired(section: "Section", features: Features, genes: Sequence[str]
           ) -> tuple[np.ndarray, np.ndarray]:
    """Images and expression of the spots that have both, `(T, ...)` and `(T, G)`, in one order.

    For what is asked of a trained model about a section whose expression is known; see `table`.
    """
    known = set(features.barcodes)
    names = [name for name in section.adata.obs_names if name in known]
    return align(features, names), table(section, genes, names)


def table(section: "Section", genes: Sequence[str], barcodes: Sequence[str] | None = None,
          normalize: str = "log1p_cp10k") -> np.ndarray:
    """Normalised expression of any measured genes, `(T, len(genes))`, for `Fitted.predict_table`.

    Parameters
    ----------
    barcodes
        Spots that have a tile; others are left out. None takes all.

    Raises
    ------
    InputError
        If the section was not measured for a gene.
    """
    from mvhlib.cohort.genes import normalize as normalized
    from mvhlib.expression.scores import dense

    adata = section.adata
    lacking = [gene for gene in genes if gene not in adata.var_names]
    if lacking:
        raise InputError(section.name, "genes", f"{lacking[:3]} are not measured here",
                         "ask for genes of all training sections")
    known = set(adata.obs_names) if barcodes is None else set(barcodes)
    counts = adata.layers["counts"][np.flatnonzero([name in known for name in adata.obs_names])]
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    columns = adata.var_names.get_indexer(list(genes))
    return np.asarray(normalized(dense(counts[:, columns]), normalize, library), dtype=np.float32)
