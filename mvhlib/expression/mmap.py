"""MMAP: three magnifications of a spot, then the prototypes of its slide (arXiv 2510.11344).

Stage 1 looks at a spot through three views. One cross-attention lets the class token of the
highest zoom ask the tokens of the other two; a linear head on the fused token and one on the class
token are averaged. Stage 2 clusters the fused tokens of each slide by k-means, lets every spot
attend to the most similar half of its slide's centres, and averages again. A slide's prototypes
come from its own image, so a prediction needs the whole slide and no label of it.

::

    tiles  --view_tokens-->  (T, V, N, D)  --stage 1-->  prediction, fused token
                                                             |
                                k-means per slide, top L     v
    prototypes  <------------------------------------  fused tokens  --stage 2-->  prediction

The views come from an encoder that is frozen (its tokens are computed once: `token_folder`) or that
is adapted by low-rank updates while stage 1 is trained (`MMAP(encoder=...)` on uint8 tiles).

Written from the description of the method, not from its code. What the authors' code does and we do
not by default is behind flags: `random_crop_eval` and ``mask_padding=False``. What is ours: tokens
are standardised by their mean and spread over the training spots, heads start at the mean
expression of the training spots, and training may stop early on patients held out for that.

`stnet` is MMAP with one view and no prototypes: a linear head on the embedding of the tile, after
He et al. (Nature Biomedical Engineering 4, 2020). What MMAP has learned serves other tasks as an
encoder of tiles: `mvhlib.expression.fused`.
"""

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib import statistics
from mvhlib.artifacts import InputError, read_attr, sha256_file, sha256_of
from mvhlib.claims import JUDGED_COLUMNS, judge
from mvhlib.encoders import PatchEncoder, model_tokens, names_of, pool_tokens, reduce_area
from mvhlib.features import Features, read_features, write_features
from mvhlib.tiles.cut import Tiles, cut_spots
from mvhlib.tiles.store import open_tiles
from mvhlib.training import Fit, FitConfig, fit, keyed_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvhlib.cohort import Section

#: Zooms of the three views, from the widest field to the narrowest.
ZOOMS = (1, 2, 4)

#: A view cut from the slide needs as many pixels of its own along its side.
MIN_VIEW_PX = 32

#: The authors' number of prototypes: a fifth of the spots, between these.
FEWEST, MOST = 32, 80

#: Cosine between a fused token and another spot's class token below which nothing is penalised.
MARGIN = 0.2

#: Spots at once where nothing is learned: fixed, so that equal input gives equal bytes.
EVAL_BATCH = 256

#: Spots from which the mean and spread of an adapted encoder's tokens are taken.
STANDARD_SPOTS = 512


# --------------------------------------------------------------------------------------------
# views


def crop_views(tiles: Tensor, zooms: Sequence[int] = ZOOMS,
               places: Tensor | None = None) -> list[Tensor]:
    """Crop every tile once per zoom; the encoder's own resizing enlarges the crops again.

    Parameters
    ----------
    tiles
        `(B, 3, S, S)`.
    zooms
        A zoom of z keeps the z-th part of the side.
    places
        Where in the tile each crop lies, `(B, V, 2)` as (row, column) in [0, 1); None: the centre,
        where the spot is. A random crop at zoom 4 may miss it.

    Returns
    -------
    list of Tensor
        `(B, 3, S / z, S / z)` per zoom.
    """
    side = tiles.shape[-1]
    found = []
    for number, zoom in enumerate(zooms):
        px = side // zoom
        room = side - px
        if places is None or room == 0:
            start = room // 2
            found.append(tiles[..., start:start + px, start:start + px])
            continue
        corners = (places[:, number] * (room + 1)).long().tolist()
        found.append(torch.stack([tile[:, y:y + px, x:x + px]
                                  for tile, (y, x) in zip(tiles, corners, strict=True)]))
    return found


def cut_views(section: "Section", centers: np.ndarray, fields_um: Sequence[float], tile_px: int
              ) -> list[Tiles]:
    """Cut the views of each spot from the slide: wider fields instead of enlarged crops.

    Parameters
    ----------
    section
        With a slide of known scale.
    centers
        Spot centres (x, y), `(T, 2)` [level-0 px].
    fields_um
        Side of the tissue that each view shows [µm], widest first.
    tile_px
        Side of each view in pixels; its scale is ``field_um / tile_px`` [µm/px].

    Returns
    -------
    list of Tiles
        One per field.

    Raises
    ------
    InputError
        If fields are not in falling order, or the section is too coarse for one of them (under 32
        source pixels).
    """
    if list(fields_um) != sorted(set(fields_um), reverse=True):
        raise InputError("cut_views", "fields_um", f"are {list(fields_um)}", "name each field "
                         "once, the widest (zoom 1) first")
    with section.slide as slide:
        for field_um in fields_um:
            px = math.inf if slide.mpp is None else field_um / slide.mpp
            if px < MIN_VIEW_PX:
                raise InputError(section.name, "mpp", f"a view of {field_um:g} µm has {px:.0f} px "
                                 f"at {slide.mpp:.3g} µm/px, less than {MIN_VIEW_PX}",
                                 f"take fields of {MIN_VIEW_PX * slide.mpp:.0f} µm or more, or "
                                 "leave the section out")
        return [cut_spots(slide, centers, tile_um=field_um, tile_px=tile_px)
                for field_um in fields_um]


def augment(tiles: Tensor, elastic: bool = True) -> Tensor:
    """Turn, mirror, re-light and bend tiles `(B, V, 3, S, S)`; the views of a spot go together.

    Probabilities are the authors': vertical flip, right-angle turn, transposition and elastic
    deformation 0.5 each, brightness and contrast 0.1. Strengths that are not known are the defaults
    of the package they used (20 %); the elastic field (120 px, smoothed over 6 px) is scaled
    with the side of the tile from 224 px. Draws from torch's global generator, which the training
    loop seeds by step.
    """
    side, n = tiles.shape[-1], len(tiles)
    chance = torch.rand(n, 5)
    turns = torch.randint(0, 4, (n,))
    light = 1 + 0.4 * (torch.rand(n, 2) - 0.5)
    out = []
    for tile, u, turn, (gain, spread) in zip(tiles, chance, turns.tolist(), light, strict=True):
        if u[0] < 0.5:
            tile = tile.flip(-2)
        if u[1] < 0.5:
            tile = tile.rot90(turn, (-2, -1))
        if u[2] < 0.5:
            tile = tile.transpose(-2, -1)
        if u[3] < 0.1:
            mean = tile.mean()
            tile = (((tile - mean) * spread + mean) * gain).clamp(0, 1)
        out.append(tile)
    tiles = torch.stack(out)
    bent = chance[:, 4] < 0.5
    if elastic and bent.any():
        tiles[bent] = _bend(tiles[bent], 120 * side / 224, 6 * side / 224)
    return tiles


def _bend(tiles: Tensor, alpha: float, sigma: float) -> Tensor:
    """Move pixels by smooth random fields: uniform noise, blurred by `sigma`, times `alpha`."""
    n, n_views, _, side, _ = tiles.shape
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(tiles)
    shift = (2 * torch.rand(2 * n, 1, side, side) - 1).to(tiles)
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        weights = kernel.view(shape)
        pad = [size // 2 for size in weights.shape[2:]]
        shift = F.conv2d(shift, weights, padding=pad)
    shift = alpha * shift.view(n, 2, side, side).permute(0, 2, 3, 1) * 2 / side  # in [-1, 1]
    line = (torch.arange(side, device=tiles.device) + 0.5) * 2 / side - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1) + shift
    flat = F.grid_sample(tiles.flatten(1, 2), grid, padding_mode="reflection",
                         align_corners=False)
    return flat.view_as(tiles)


# --------------------------------------------------------------------------------------------
# tokens


@torch.inference_mode()
def view_tokens(encoder: PatchEncoder, tiles: np.ndarray, *, grid: int = 4,
                tile_mpp: float | None = None, batch: int = 32) -> np.ndarray:
    """Tokens of every view of every spot by a frozen encoder, at the centre of the tile.

    Parameters
    ----------
    encoder
        With class and patch tokens.
    tiles
        `(T, S, S, 3)` uint8, cropped here; or `(T, V, S, S, 3)`, views cut by `cut_views`.
    grid
        See `pool_tokens`: 196 tokens of a tile make large files, and what a query needs of the
        surroundings is coarse. 0 keeps all of them, as published.
    tile_mpp
        Scale of the tiles [µm/px], where the encoder has a working resolution: cropped tiles are
        reduced to it first.

    Returns
    -------
    np.ndarray
        `(T, V, 1 + N, D)` float32, the class token first.
    """
    parts = []
    for start in range(0, len(tiles), batch):
        x = _pixels(np.asarray(tiles[start:start + batch]), encoder.device)
        if encoder.mpp is not None and tile_mpp is not None and x.shape[1] == 1:
            px = round(x.shape[-1] * tile_mpp / encoder.mpp)
            x = reduce_area(x, px) if px < x.shape[-1] else x
        views = crop_views(x[:, 0]) if x.shape[1] == 1 else list(x.unbind(1))
        with _half(encoder):
            found = [pool_tokens(model_tokens(encoder.model, encoder.eval_transforms.batch(view)),
                                 grid) for view in views]
        parts.append(torch.stack(found, dim=1).float().cpu().numpy())
    return np.concatenate(parts)


def _pixels(tiles: np.ndarray, device: torch.device | str) -> Tensor:
    """uint8 `(B, S, S, 3)` or `(B, V, S, S, 3)` to float `(B, V, 3, S, S)` in 0-1."""
    x = torch.from_numpy(np.ascontiguousarray(tiles)).to(device)
    x = x.unsqueeze(1) if x.ndim == 4 else x
    return x.permute(0, 1, 4, 2, 3).float() / 255


def _half(encoder: PatchEncoder) -> torch.autocast:
    """Autocast to the encoder's precision on a GPU; a CPU computes in float32."""
    kind = encoder.device.type
    return torch.autocast(kind, encoder.precision if kind == "cuda" else torch.bfloat16,
                          enabled=kind == "cuda" and encoder.precision != torch.float32)


def class_token(tokens: np.ndarray) -> np.ndarray:
    """The class token of the whole tile, `(T, D)`, of tokens `(T, V, 1 + N, D)`."""
    return tokens[:, 0, 0]


def all_views(tokens: np.ndarray) -> np.ndarray:
    """Class token and mean patch token of every view, `(T, 2 V D)`: MMAP's input for ridge."""
    means = tokens[:, :, 1:].mean(axis=2)
    return np.concatenate([tokens[:, :, 0], means], axis=1).reshape(len(tokens), -1)


def tile_folder(tiles_dir: str | os.PathLike, sections: Iterable[str], *,
                fields_um: Sequence[float] = (), slides: "Mapping[str, Section] | None" = None
                ) -> dict[str, Features]:
    """uint8 tiles for an encoder that is adapted: section -> `Features` of `(T, S, S, 3)`.

    With `fields_um`, views `(T, V, S, S, 3)` cut from the slides; see `token_folder`.
    """
    found = {}
    for name in sections:
        with open_tiles(Path(tiles_dir) / f"{name}.h5") as (head, img):
            attrs = {"tile_px": head.tile_px, "tile_um": head.tile_um, "mpp": head.mpp,
                     "source_mpp": head.source_mpp}
            pixels = _views_of(head, img, fields_um, None if slides is None else slides[name])
            found[name] = Features(np.asarray(pixels), head.coords, head.barcodes, attrs)
    return found


def _views_of(head: Any, img: Any, fields_um: Sequence[float], section: "Section | None") -> Any:
    """The tiles as they are, or the views of their centres cut from the slide."""
    if not fields_um:
        return img
    centers = head.coords + head.tile_um / head.source_mpp / 2
    views = cut_views(section, centers, fields_um, head.tile_px)
    return np.stack([view.img for view in views], axis=1)


def token_folder(encoder: PatchEncoder, tiles_dir: str | os.PathLike, out_dir: str | os.PathLike,
                 sections: Sequence[str], *, grid: int = 4, fields_um: Sequence[float] = (),
                 slides: "Mapping[str, Section] | None" = None) -> dict[str, Features]:
    """Tokens of the named sections, read from `out_dir` where they were made before.

    Parameters
    ----------
    encoder, grid
        See `view_tokens`.
    tiles_dir
        Holds ``<section>.h5``, tiles with the spot at the centre.
    out_dir
        Gets ``<section>.h5``: a feature file whose rows are the tokens of one spot end to end.
    fields_um
        Empty: cropped views. Else the fields of the views that are cut from the slides
        (`cut_views`), in tiles of the size of `tiles_dir`'s.
    slides
        Section -> `Section`, needed for `fields_um`.

    Returns
    -------
    dict
        Section -> `Features` with ``features`` of shape `(T, V, 1 + N, D)`.

    Raises
    ------
    InputError
        If tiles are missing, or a section is too coarse for a view.
    """
    identity, found = encoder.identity, {}
    for name in sections:
        source, target = Path(tiles_dir) / f"{name}.h5", Path(out_dir) / f"{name}.h5"
        key = sha256_of(identity, sha256_file(source), grid, list(fields_um), list(ZOOMS))
        if read_attr(target, "key") != key:
            with open_tiles(source) as (head, img):
                coarse = encoder.mpp is not None and head.source_mpp > encoder.mpp * 1.01
                if coarse and not fields_um:
                    raise InputError(source, "mpp", f"the slide's {head.source_mpp:.3g} µm/px are "
                                     f"coarser than the working resolution {encoder.mpp:.3g}",
                                     f"create the encoder with mpp={head.source_mpp:.3g} or more")
                pixels = _views_of(head, img, fields_um, None if slides is None else slides[name])
                values = view_tokens(encoder, pixels, grid=grid, tile_mpp=head.mpp)
                attrs = {"encoder": encoder.enc_name, "tile_px": head.tile_px,
                         "tile_um": head.tile_um, "mpp": head.mpp, "source_mpp": head.source_mpp,
                         "working_mpp": encoder.mpp, "source_sha256": sha256_file(source),
                         "views": values.shape[1], "tokens": values.shape[2]}
                flat = values.reshape(len(values), -1)
                write_features(target, Features(flat, head.coords, head.barcodes, attrs), key=key)
        stored = read_features(target)
        shape = (len(stored), int(stored.attrs["views"]), int(stored.attrs["tokens"]), -1)
        found[name] = replace(stored, features=stored.features.reshape(shape))
    return found


# --------------------------------------------------------------------------------------------
# parts of the model


class CrossAttention(nn.Module):
    """The first token asks all of them: layer norm, heads without bias, no residual, no MLP.

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


class _Trained(nn.Module):
    """Keeps and loads what is trained, and buffers; frozen weights are the encoder's own."""

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
    """Stage 2: a spot's token asks the prototypes of its slide."""

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


# --------------------------------------------------------------------------------------------
# prototypes


def n_prototypes(n_spots: int, asked: str | int = "rule", where: str = "slide") -> int:
    """Prototypes K of a slide: a number, or the authors' rule ``min(max(n // 5, 32), 80)``.

    The rule never gives more than there are spots.

    Raises
    ------
    InputError
        If a number is asked for and the slide has fewer spots.
    """
    if asked == "rule":
        return min(max(n_spots // 5, FEWEST), MOST, n_spots)
    if not isinstance(asked, int) or asked < 1:
        raise InputError("mmap", "prototypes", f"is {asked!r}", "use 'rule', 'none' or a number")
    if asked > n_spots:
        raise InputError(where, "spots", f"are {n_spots}, fewer than {asked} prototypes",
                         "ask for fewer prototypes, or leave the slide out")
    return asked


def n_selected(k: int, asked: float) -> int:
    """Prototypes L that a spot attends to: below 1 a share of K (published: 0.5), else a number."""
    return max(1, int(asked * k)) if asked < 1 else min(k, int(asked))


def cluster(tokens: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Centres `(K, D)` of the tokens `(T, D)` of one slide by k-means, not trained afterwards."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        found = KMeans(k, n_init=1, random_state=seed).fit(np.asarray(tokens, dtype=np.float64))
    return found.cluster_centers_.astype(np.float32)


def _cosine(tokens: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Cosines `(T, K)`."""
    def unit(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    return unit(tokens) @ unit(centres).T


def select(tokens: np.ndarray, centres: np.ndarray, n: int) -> np.ndarray:
    """The `n` centres most similar to each token by cosine, the most similar first, `(T, n)`."""
    return np.argsort(-_cosine(tokens, centres), axis=1, kind="stable")[:, :n]


@dataclass(frozen=True)
class Prototypes:
    """The prototypes of one slide, ready to be looked at.

    Attributes
    ----------
    assignment
        Most similar prototype of each spot `(T,)`.
    nearest
        Spots most similar to each prototype, `(K, n)`.
    weight
        Mean attention that the slide's spots pay to each prototype, `(K,)`; 0 where none chose it.
    predicted
        Expression that the model predicts for each spot, `(T, G)`.
    genes
        Names of the columns.
    """

    assignment: np.ndarray = field(repr=False)
    nearest: np.ndarray = field(repr=False)
    weight: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    genes: list[str] = field(repr=False)

    @property
    def sizes(self) -> np.ndarray:
        """Spots of each prototype `(K,)`."""
        return np.bincount(self.assignment, minlength=len(self.nearest))

    @property
    def largest(self) -> np.ndarray:
        """Prototypes by falling number of spots."""
        return np.argsort(-self.sizes, kind="stable")

    def expression(self) -> pd.DataFrame:
        """Mean prediction over the spots of each prototype, one row per prototype and gene.

        Columns prototype, n_spots, gene, predicted, above: the difference from the slide's mean, in
        the units of the target, so that a gene whose prediction hardly varies stays near 0.
        Prototypes without spots are left out.
        """
        mean = self.predicted.mean(axis=0)
        rows = []
        for number in np.flatnonzero(self.sizes):
            own = self.predicted[self.assignment == number].mean(axis=0)
            rows.append(pd.DataFrame({"prototype": number, "n_spots": self.sizes[number],
                                      "gene": self.genes, "predicted": own, "above": own - mean}))
        return pd.concat(rows, ignore_index=True)

    def top_genes(self, n: int = 5) -> pd.DataFrame:
        """The `n` genes of each prototype that stand highest above the slide's mean, with rank."""
        table = self.expression().sort_values(["prototype", "above"], ascending=[True, False],
                                              kind="stable")
        table.insert(2, "rank", table.groupby("prototype").cumcount() + 1)
        return table[table["rank"] <= n].reset_index(drop=True)


def draw_map(shown: Prototypes, adata, prototypes: Sequence[int], ax: "Axes", *,
             img: bool = False) -> "Axes":
    """Draw where the named prototypes lie; the spots of all others are grey.

    Parameters
    ----------
    adata
        The section, rows in the order of the spots.
    """
    from matplotlib.colors import ListedColormap

    from mvhlib import plots

    names = [f"{number}" for number in prototypes]
    colours = plots.categorical_colours(names) | {"others": "0.85"}
    found = np.array([f"{number}" if number in set(prototypes) else "others"
                      for number in shown.assignment])
    # squidpy gives colours to categories in their sorted order.
    palette = ListedColormap([colours[name] for name in sorted(set(found))])
    plots.spatial_map(adata, found, ax, img=img, palette=palette, size=1.0)
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    return ax


def draw_tiles(shown: Prototypes, images: np.ndarray, prototypes: Sequence[int], ax: "Axes", *,
               n_genes: int = 3) -> "Axes":
    """Draw one row per prototype: its nearest tiles, its number of spots and its first genes.

    Parameters
    ----------
    images
        Tiles `(T, S, S, 3)` in the order of the spots.
    """
    from mvhlib import plots

    colours = plots.categorical_colours([f"{number}" for number in prototypes])
    n = shown.nearest.shape[1]
    plots.tile_grid(np.concatenate([images[shown.nearest[number]] for number in prototypes]), ax,
                    n_columns=n, gap_px=images.shape[1] // 16)
    step = images.shape[1] + images.shape[1] // 16
    genes = shown.top_genes(n_genes)
    for row, number in enumerate(prototypes):
        y = (row + 0.5) * step
        names = ", ".join(genes.loc[genes["prototype"] == number, "gene"])
        ax.scatter(-0.35 * step, y, s=45, color=colours[f"{number}"], clip_on=False)
        ax.text(n * step + 0.1 * step, y, f"{shown.sizes[number]} spots\n{names}", va="center",
                fontsize=6.5)
    ax.set_xlim(-0.7 * step, n * step)
    return ax


# --------------------------------------------------------------------------------------------
# the estimator


class MMAP:
    """Stage 1 and stage 2 as one estimator for `mvhlib.expression.protocols.run`.

    Parameters
    ----------
    encoder
        None: samples hold tokens `(T, V, 1 + N, D)` of the three views (`token_folder`), or plain
        embeddings `(T, D)` where `zooms` names one view. A `PatchEncoder`: samples hold uint8 tiles
        `(T, S, S, 3)`, or views cut from the slide `(T, V, S, S, 3)`, and one copy of it per view
        is adapted.
    zooms
        Which views are used, of 1, 2 and 4.
    prototypes
        ``"rule"``, a number K, or ``"none"`` for stage 1 alone.
    selected
        L: below 1 a share of K, else a number.
    similarity, similarity_from
        Weight of the similarity term, and the epochs of stage 1 that go without it. Stage 2 has it
        from the start.
    stage1, stage2
        How each stage is trained; published: Adam, 1e-5 to 1e-6, 50 epochs, batch 16. None takes
        that, for stage 2 the same as for stage 1.
    validation
        Share of the patients held out of training to stop early and to choose the best epoch
        (`FitConfig.patience`); of the sections where there is one patient. The error is taken
        within sections. 0, as published: the last epoch.
    heads, head_width, dropout
        Of both attention blocks; published: 8, 64, 0.2.
    rank, alpha, first_block
        Of the low-rank updates; see `add_lora`.
    augmented
        Turn, mirror, bend tiles in training (not possible with frozen tokens).
    mask_padding
        False: rows of zeros that fill up a slide's prototypes are attended to, as the authors' are:
        behind the layer norm they are a constant token.
    random_crop_eval
        True: crops are random in evaluation too, as the authors' are; two predictions differ.
    folder
        Holds the state of every fold and stage, so that a killed run goes on. Variants that differ
        in stage 2 alone share stage 1.
    device
        Where models are trained.
    name
        In tables.
    """

    def __init__(self, encoder: PatchEncoder | None = None, *, zooms: Sequence[int] = ZOOMS,
                 prototypes: str | int = "rule", selected: float = 0.5, similarity: float = 0.1,
                 similarity_from: int = 5, stage1: FitConfig | None = None,
                 stage2: FitConfig | None = None, validation: float = 0.0, heads: int = 8,
                 head_width: int = 64, dropout: float = 0.2, rank: int = 16, alpha: float = 32.0,
                 first_block: int | None = None, augmented: bool = True, mask_padding: bool = True,
                 random_crop_eval: bool = False, folder: str | os.PathLike | None = None,
                 device: str = "cpu", name: str = "mmap"):
        self.zooms = tuple(sorted(set(zooms)))
        if not self.zooms or not set(self.zooms) <= set(ZOOMS):
            raise InputError("mmap", "zooms", f"are {list(zooms)}", f"use some of {list(ZOOMS)}")
        if prototypes != "none":
            n_prototypes(10**9, prototypes)
        if not selected > 0:
            raise InputError("mmap", "selected", f"is {selected}",
                             "use a share below 1 or a number")
        if encoder is None and random_crop_eval:
            raise InputError("mmap", "random_crop_eval", "needs pixels, and frozen tokens are of "
                             "centre crops", "give an encoder and tiles")
        if encoder is not None and encoder.mpp is not None:
            raise InputError("mmap", "encoder", f"works at {encoder.mpp:g} µm/px, and an adapted "
                             "one takes tiles as they are", "cut the tiles at this scale and "
                             "create the encoder without mpp")
        self.encoder, self.prototypes_asked, self.selected = encoder, prototypes, selected
        self.similarity, self.similarity_from = similarity, similarity_from
        self.stage1 = stage1 or FitConfig(epochs=50, batch=16, lr=1e-5, min_lr=1e-6)
        self.stage2 = stage2 or self.stage1
        self.validation = validation
        self.attention = {"heads": heads, "head_width": head_width, "dropout": dropout}
        self.rank, self.alpha, self.first_block = rank, alpha, first_block
        self.augmented, self.mask_padding = augmented, mask_padding
        self.random_crop_eval = random_crop_eval
        self.folder = None if folder is None else Path(folder)
        self.device, self.name = torch.device(device), name
        self.spot_model: SpotModel | None = None
        self.prototype_model: PrototypeModel | None = None
        self.trained_on: dict[str, list[str]] = {}
        self.fits: list[dict[str, Any]] = []

    # ---- data

    def _check(self, X: np.ndarray, where: str) -> np.ndarray:
        """The array as the model reads it, or an error that names the section."""
        if self.encoder is not None:
            if X.dtype != np.uint8 or X.ndim not in (4, 5) or X.shape[-1] != 3 or (
                    X.ndim == 5 and X.shape[1] != len(ZOOMS)):
                raise InputError(where, "tiles", f"are {X.dtype} of shape {X.shape}",
                                 "give uint8 tiles (T, S, S, 3), or (T, 3, S, S, 3) for views cut "
                                 "from the slide")
            return X
        if X.ndim == 2 and len(self.zooms) == 1:
            return X[:, None, None]  # (T, D) -> (T, 1, 1, D): one view, no patch tokens
        if X.ndim != 4 or X.shape[1] != len(ZOOMS):
            raise InputError(where, "tokens", f"have shape {X.shape}",
                             f"give (T, {len(ZOOMS)}, 1 + N, D) by token_folder")
        return X

    def _views(self, X: np.ndarray, train: bool) -> list[Tensor]:
        """The views of a batch: tokens as they are, or images for the encoders."""
        numbers = [ZOOMS.index(zoom) for zoom in self.zooms]
        if self.encoder is None:
            columns = [0] if X.shape[1] == 1 else numbers
            return [torch.from_numpy(np.ascontiguousarray(X[:, n])).to(self.device)
                    for n in columns]
        x = _pixels(X, self.device)
        if train and self.augmented:
            x = augment(x)
        if x.shape[1] > 1:
            views = [x[:, number] for number in numbers]
        else:
            places = None
            if train:
                places = torch.rand(len(x), len(numbers), 2)
            elif self.random_crop_eval:
                places = torch.rand(len(x), len(numbers), 2, generator=self._crops)
            views = crop_views(x[:, 0], self.zooms, places)
        return [self.encoder.eval_transforms.batch(view) for view in views]

    def _seeded(self, make: Callable[[], nn.Module], seed: int, stage: int) -> nn.Module:
        """A module whose initial weights depend on seed and stage alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_generator(seed, stage).integers(2**62)))
            return make().to(self.device)

    # ---- fitting

    def fit(self, samples: Sequence[Any], genes: Sequence[str], fold: Any,
            seed: int) -> dict[str, Any]:
        """Train both stages.

        Parameters
        ----------
        samples
            Objects with ``name, patient, X, Y``: `(T, ...)` and `(T, G)`.
        genes
            Names of the columns of `Y`.
        fold
            Names the state's folder.
        seed
            Of weights, order, dropout, crops and k-means.

        Returns
        -------
        dict
            What was trained; `describe` joins those of all folds.

        Raises
        ------
        InputError
            On samples of another shape, or with fewer spots than prototypes.
        """
        arrays = [self._check(sample.X, sample.name) for sample in samples]
        if self.prototypes_asked != "none":
            for sample in samples:
                n_prototypes(len(sample.X), self.prototypes_asked, sample.name)
        self.genes, self._seed = list(genes), seed
        self.trained_on = names_of(samples)
        self._crops = torch.Generator().manual_seed(seed)
        Y = np.concatenate([np.asarray(sample.Y, dtype=np.float32) for sample in samples])
        held, unit = self._held_out(samples, seed)
        self._owner = np.repeat(np.arange(len(samples)), [len(array) for array in arrays])
        recipe = self._recipe(samples, arrays, seed)
        first = self._fit_spots(np.concatenate(arrays), Y, held, seed, fold, recipe)
        record = {"fold": fold, "n_slides": len(samples), "n_spots": len(Y),
                  "spots_per_slide_min": min(len(a) for a in arrays),
                  "spots_per_slide_median": float(np.median([len(a) for a in arrays])),
                  "spots_per_slide_max": max(len(a) for a in arrays), "n_genes": len(genes),
                  "n_patients": len({sample.patient for sample in samples}),
                  "inner_unit": unit, "n_parameters_stage1": first.n_parameters,
                  "epochs_stage1": first.n_epochs, "best_epoch_stage1": first.best_epoch,
                  "k_min": 0, "k_max": 0, "n_parameters_stage2": 0, "epochs_stage2": 0,
                  "best_epoch_stage2": 0}
        self.prototype_model = None
        if self.prototypes_asked != "none":
            second, ks = self._fit_prototypes(arrays, Y, held, seed, fold, recipe)
            record |= {"k_min": min(ks), "k_max": max(ks),
                       "n_parameters_stage2": second.n_parameters,
                       "epochs_stage2": second.n_epochs, "best_epoch_stage2": second.best_epoch}
        self.fits.append(record)
        return record

    def _held_out(self, samples: Sequence[Any], seed: int) -> tuple[np.ndarray, str]:
        """Rows for early stopping, whole patients (or sections), and what was left out."""
        from mvhlib.cohort.splits import hold_out

        for unit, level in (("patient", "patient"), ("section", "name")):
            groups = np.concatenate([np.repeat(str(getattr(sample, level)), len(sample.X))
                                     for sample in samples])
            if self.validation > 0 and len(set(groups)) > 1:
                return hold_out(groups, self.validation, seed), unit
        return np.zeros(len(groups), dtype=bool), "none"

    def _errors(self, residual: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        """Squared errors of held-out rows; the one that stops training is taken within sections.

        What sections differ by as a whole (library, stain) cannot be learned from others, is not
        scored by a correlation within sections, and would decide a plain error.
        """
        within = residual.astype(np.float64)
        for owner in np.unique(self._owner[rows]):
            own = self._owner[rows] == owner
            within[own] -= within[own].mean(axis=0)
        return {"loss": float((within**2).mean()), "mse": float((residual**2).mean())}

    def _recipe(self, samples: Sequence[Any], arrays: Sequence[np.ndarray],
                seed: int) -> dict[str, Any]:
        """What decides the weights of stage 1; rows of each section stand for its data."""
        if self.folder is None:
            return {}
        data = [(sample.name, np.asarray(sample.Y, dtype=np.float32),
                 np.ascontiguousarray(array[::max(1, len(array) // 16)]))
                for sample, array in zip(samples, arrays, strict=True)]
        return {"data": sha256_of(*(part for each in data for part in each)), "seed": seed,
                "genes": sha256_of(self.genes), "zooms": list(self.zooms),
                "similarity": [self.similarity, self.similarity_from],
                "attention": self.attention, "validation": self.validation,
                "encoder": None if self.encoder is None else [
                    self.encoder.identity, self.rank, self.alpha, self.first_block,
                    self.augmented]}

    def _place(self, stage: str, fold: Any, recipe: Mapping[str, Any],
               config: FitConfig) -> Path | None:
        if self.folder is None:
            return None
        digest = sha256_of(dict(recipe), asdict(config))[:12]
        return self.folder / f"fold_{fold}" / f"{stage}-{digest}"

    def _fit_spots(self, X: np.ndarray, Y: np.ndarray, held: np.ndarray, seed: int, fold: Any,
                   recipe: Mapping[str, Any]) -> Fit:
        def make() -> SpotModel:
            copies = None if self.encoder is None else adapted_copies(
                self.encoder.model, len(self.zooms), self.rank, self.alpha, self.first_block)
            width = X.shape[-1] if copies is None else self.encoder.model.embed_dim
            return SpotModel(width, Y.shape[1], len(self.zooms), copies, **self.attention)

        model = self.spot_model = self._seeded(make, seed, 1)
        rows, inner = np.flatnonzero(~held), np.flatnonzero(held)
        heads = [model.head_query] + ([model.head_fused] if len(self.zooms) > 1 else [])
        _start_at_mean(heads, Y[rows])
        with torch.no_grad():
            some = rows if self.encoder is None else rows[::max(1, len(rows) // STANDARD_SPOTS)]
            model.eval()
            parts = [model.tokens(self._views(X[some[n:n + EVAL_BATCH]], train=False))
                     for n in range(0, len(some), EVAL_BATCH)]
            model.standardise([torch.cat(view) for view in zip(*parts, strict=True)])
        target = torch.from_numpy(Y).to(self.device)

        def loss(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            with self._autocast():
                predicted, fused, query = model(self._views(X[rows[batch]], train=True))
            terms = {"mse": F.mse_loss(predicted.float(), target[rows[batch]])}
            terms["similarity"] = similarity_loss(fused.float(), query.float())
            on = len(self.zooms) > 1 and epoch >= self.similarity_from
            weight = self.similarity if on else 0.0
            return terms | {"loss": terms["mse"] + weight * terms["similarity"]}

        def validate() -> dict[str, float]:
            return self._errors(self._spots(X[inner])[0] - Y[inner], inner)

        return fit(model, loss, len(rows), self.stage1, seed=seed,
                   validate=validate if len(inner) else None,
                   folder=self._place("stage1", fold, recipe, self.stage1), key=dict(recipe))

    def _autocast(self) -> torch.autocast:
        half = torch.float32 if self.encoder is None else self.encoder.precision
        on = self.device.type == "cuda" and half != torch.float32
        return torch.autocast(self.device.type, half if on else torch.bfloat16, enabled=on)

    @torch.no_grad()
    def _spots(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stage 1 without training: prediction `(T, G)` and fused token `(T, D)`."""
        self.spot_model.eval()
        parts = []
        for start in range(0, len(X), EVAL_BATCH):
            with self._autocast():
                predicted, fused, _ = self.spot_model(
                    self._views(X[start:start + EVAL_BATCH], train=False))
            parts.append((predicted.float().cpu().numpy(), fused.float().cpu().numpy()))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _slide(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres `(K, D)` of a slide, and which of them each spot asks, `(T, L)`."""
        k = n_prototypes(len(tokens), self.prototypes_asked)
        centres = cluster(tokens, k, self._seed)
        return centres, select(tokens, centres, n_selected(k, self.selected))

    def _padded(self, chosen: np.ndarray) -> np.ndarray:
        """Indices `(T, L)` filled up with -1 to the greatest L of any slide."""
        most = MOST if self.prototypes_asked == "rule" else int(self.prototypes_asked)
        return np.pad(chosen, ((0, 0), (0, n_selected(most, self.selected) - chosen.shape[1])),
                      constant_values=-1)

    def _gather(self, centres: Tensor, chosen: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Prototypes `(B, L, D)` of each spot with zero rows as padding, and which are real."""
        index = torch.from_numpy(chosen).to(centres.device)
        real = index >= 0
        found = centres[index.clamp(min=0)] * real[..., None]
        return found, real if self.mask_padding else None

    def _fit_prototypes(self, arrays: Sequence[np.ndarray], Y: np.ndarray, held: np.ndarray,
                        seed: int, fold: Any, recipe: Mapping[str, Any]) -> tuple[Fit, list[int]]:
        stage1, tokens, centres, chosen, ks = [], [], [], [], []
        for array in arrays:  # stage 1 is run once; its outputs and the centres stay as they are
            predicted, fused = self._spots(array)
            own, near = self._slide(fused)
            near = self._padded(near)
            chosen.append(np.where(near >= 0, near + sum(ks), -1))  # places among all centres
            stage1.append(predicted)
            tokens.append(fused)
            centres.append(own)
            ks.append(len(own))
        token, before, target, bank = (
            torch.from_numpy(each).to(self.device) for each in
            (np.concatenate(tokens), np.concatenate(stage1), Y, np.concatenate(centres)))
        near = np.concatenate(chosen)
        model = self.prototype_model = self._seeded(
            lambda: PrototypeModel(token.shape[1], Y.shape[1], **self.attention), seed, 2)
        rows, inner = np.flatnonzero(~held), np.flatnonzero(held)
        _start_at_mean([model.head], Y[rows])

        def forward(batch: np.ndarray) -> tuple[Tensor, Tensor]:
            return model(token[batch], *self._gather(bank, near[batch]), before[batch])

        def loss(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            own = rows[batch]
            predicted, fused = forward(own)
            terms = {"mse": F.mse_loss(predicted, target[own]),
                     "similarity": similarity_loss(fused, token[own])}
            return terms | {"loss": terms["mse"] + self.similarity * terms["similarity"]}

        def validate() -> dict[str, float]:
            parts = np.array_split(inner, -(-len(inner) // EVAL_BATCH))
            predicted = np.concatenate([forward(part)[0].cpu().numpy() for part in parts])
            return self._errors(predicted - Y[inner], inner)

        recipe = dict(recipe) | {"stage1": asdict(self.stage1), "selected": self.selected,
                                 "prototypes": self.prototypes_asked,
                                 "mask_padding": self.mask_padding,
                                 "random_crop_eval": self.random_crop_eval}
        found = fit(model, loss, len(rows), self.stage2, seed=seed,
                    validate=validate if len(inner) else None,
                    folder=self._place("stage2", fold, recipe, self.stage2), key=recipe)
        return found, ks

    # ---- using

    def predict(self, sample: Any) -> np.ndarray:
        """Expression `(T, G)` of all spots of one slide, which are needed together.

        Raises
        ------
        InputError
            Before `fit`, on another shape, or with fewer spots than prototypes.
        """
        return self._predict(sample.X, sample.name)[0]

    @torch.no_grad()
    def _predict(self, X: np.ndarray, where: str) -> tuple[np.ndarray, ...]:
        """Prediction, fused tokens, centres, chosen prototypes and the attention paid to them."""
        if self.spot_model is None:
            raise InputError(self.name, "model", "is not fitted", "call fit first")
        X = self._check(X, where)
        if self.prototype_model is not None:
            n_prototypes(len(X), self.prototypes_asked, where)
        predicted, tokens = self._spots(X)
        if self.prototype_model is None:
            return predicted, tokens, None, None, None
        centres, near = self._slide(tokens)
        bank, padded = torch.from_numpy(centres).to(self.device), self._padded(near)
        self.prototype_model.eval()
        found, paid = [], []
        for start in range(0, len(X), EVAL_BATCH):
            part = slice(start, start + EVAL_BATCH)
            token = torch.from_numpy(tokens[part]).to(self.device)
            chosen, mask = self._gather(bank, padded[part])
            out, _ = self.prototype_model(token, chosen, mask,
                                          torch.from_numpy(predicted[part]).to(self.device))
            whole = torch.cat([token[:, None], chosen], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
            found.append(out.cpu().numpy())
            paid.append(self.prototype_model.fusion.weights(whole, mask).mean(dim=1).cpu().numpy())
        return np.concatenate(found), tokens, centres, near, np.concatenate(paid)

    def fused(self, X: np.ndarray, where: str = "slide") -> np.ndarray:
        """Fused tokens `(T, D)` of stage 1; no spot needs another one."""
        return self._spots(self._check(X, where))[1]

    def prototypes(self, X: np.ndarray, n_nearest: int = 4, where: str = "slide") -> Prototypes:
        """The prototypes of one slide by the model fitted last.

        Parameters
        ----------
        X
            As in the samples, all spots of the slide.
        n_nearest
            Spots shown per prototype.

        Raises
        ------
        InputError
            For a model without prototypes.
        """
        predicted, tokens, centres, near, paid = self._predict(X, where)
        if centres is None:
            raise InputError(self.name, "prototypes", "are 'none'", "fit with prototypes")
        alike = _cosine(tokens, centres)
        weight = np.zeros(len(centres))
        np.add.at(weight, near, paid[:, 1:near.shape[1] + 1])
        nearest = np.argsort(-alike, axis=0, kind="stable")[:n_nearest].T  # (T, K) -> (K, n)
        return Prototypes(alike.argmax(axis=1), nearest, weight / len(X), predicted, self.genes)

    def describe(self) -> pd.DataFrame:
        """One row per fit: slides, spots, genes, patients, prototypes and parameters trained."""
        return pd.DataFrame([{"method": self.name} | record for record in self.fits])


def _start_at_mean(heads: Iterable[nn.Linear], Y: np.ndarray) -> None:
    """Let heads predict the mean of the targets before they have learned anything."""
    with torch.no_grad():
        for head in heads:
            head.weight.zero_()
            head.bias.copy_(torch.from_numpy(Y.mean(axis=0)))


def stnet(encoder: PatchEncoder | None = None, **options: Any) -> MMAP:
    """MMAP with the whole tile as its one view and no prototypes; options as in `MMAP`."""
    return MMAP(encoder, **({"zooms": (1,), "prototypes": "none", "name": "stnet"} | options))


#: Named configurations.
METHODS: dict[str, Callable[..., MMAP]] = {"mmap": MMAP, "stnet": stnet}


# --------------------------------------------------------------------------------------------
# ablations


def unit_scores(scores: pd.DataFrame, unit: str, by: str = "variant") -> pd.DataFrame:
    """Mean correlation per unit (rows) and variant (columns): over genes, then over sections."""
    sections = scores.groupby([by, unit, "section"], sort=False)["pcc"].mean()
    return sections.groupby([by, unit], sort=False).mean().unstack(by)


def against(scores: pd.DataFrame, reference: str, unit: str, by: str = "variant") -> pd.DataFrame:
    """Every variant beside the reference, paired by unit.

    Parameters
    ----------
    scores
        Columns of `protocols.SCORE_COLUMNS` and `by`.
    unit
        ``patient`` or ``study``; ``section`` where one patient's sections are all there is, which
        says nothing of other patients.

    Returns
    -------
    DataFrame
        Columns variant, unit, n_units, mean, ci_low, ci_high, difference (variant - reference),
        diff_low, diff_high, p_permutation_holm, note; Student's t intervals over units.
    """
    table = unit_scores(scores, unit, by)
    others = [name for name in table.columns if name != reference]
    tests = statistics.compare({name: (table[name], table[reference]) for name in others})
    tests = tests.set_index("comparison")
    rows = []
    for name in table.columns:
        mean = statistics.t_interval(table[name])
        row = {by: name, "unit": unit, "n_units": mean.n, "mean": mean.mean, "ci_low": mean.low,
               "ci_high": mean.high, "difference": 0.0, "diff_low": 0.0, "diff_high": 0.0,
               "p_permutation_holm": np.nan, "note": "reference"}
        if name != reference:
            test = tests.loc[name]
            row |= {"difference": test["difference"], "diff_low": test["ci_low"],
                    "diff_high": test["ci_high"], "note": test["note"],
                    "p_permutation_holm": test["p_permutation_holm"]}
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts(scores: pd.DataFrame, claims: Mapping[str, tuple[str, str]], unit: str,
             by: str = "variant") -> pd.DataFrame:
    """Whether claims of the form "this variant is better than that one" hold here.

    Parameters
    ----------
    claims
        Words -> (the variant said to be better, the other one). Those with a variant that is not
        in the scores are left out.

    Returns
    -------
    DataFrame
        Columns `mvhlib.claims.JUDGED_COLUMNS`; see `mvhlib.claims.judge`.
    """
    table = unit_scores(scores, unit, by)
    rows = [judge(table, words, better, worse, unit=unit)
            for words, (better, worse) in claims.items() if better in table and worse in table]
    return pd.DataFrame(rows, columns=list(JUDGED_COLUMNS))


def draw_differences(table: pd.DataFrame, ax: "Axes", *, by: str = "variant") -> "Axes":
    """Draw what each variant gains over the reference, with intervals; one row per variant."""
    from mvhlib import plots

    y = np.arange(len(table))
    low, high = table["difference"] - table["diff_low"], table["diff_high"] - table["difference"]
    ax.axvline(0, color="0.75", linewidth=0.6, zorder=0)
    is_reference = (table["note"] == "reference").to_numpy()
    for part, filling in ((~is_reference, plots.colour("mmap")), (is_reference, "white")):
        ax.errorbar(table["difference"][part], y[part], xerr=np.nan_to_num([low, high])[:, part],
                    fmt="o", markersize=3.2, capsize=1.5, linewidth=0.9,
                    color=plots.colour("mmap"), markerfacecolor=filling)
    ax.set_yticks(y, table[by])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=5)
    return ax
