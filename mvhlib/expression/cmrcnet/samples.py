"""Inputs of CMRCNet: a section's features, tokens or tiles, and its expression."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mvhlib import encoders, spots
from mvhlib.artifacts import InputError
from mvhlib.encoders import PatchEncoder, model_tokens, pool_tokens
from mvhlib.expression.cmrcnet.network import EMBED_BATCH
from mvhlib.features import Features, read_folder
from mvhlib.tiles.store import read_tiles

if TYPE_CHECKING:
    from mvhlib.cohort import Section

#: The published image encoder: 56 M parameters, random at the start.
PUBLISHED_ENCODER = {"img_size": 224, "patch_size": 32, "embed_dim": 768, "depth": 8,
                     "num_heads": 8}


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


class MeanTokens(_TokenModel):
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
    """Read the estimator's input of each section.

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


def paired(section: "Section", features: Features, genes: Sequence[str]
           ) -> tuple[np.ndarray, np.ndarray]:
    """Images and expression of the spots that have both, `(T, ...)` and `(T, G)`, in one order.

    For what is asked of a trained model about a section whose expression is known; see `table`.
    """
    kept, values = spots.join(section.name, section.adata.obs_names, features)
    return values, table(section, genes, section.adata.obs_names[kept])


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
                         "choose genes that all training sections measured")
    known = set(adata.obs_names) if barcodes is None else set(barcodes)
    counts = adata.layers["counts"][np.flatnonzero([name in known for name in adata.obs_names])]
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    columns = adata.var_names.get_indexer(list(genes))
    return np.asarray(normalized(dense(counts[:, columns]), normalize, library), dtype=np.float32)


def other_genes(sections: "Sequence[Section]", genes: Sequence[str]) -> list[str]:
    """Return the genes measured in all sections, without those in `genes`, sorted by name."""
    shared = set.intersection(*(set(section.adata.var_names) for section in sections))
    return sorted(shared - set(genes))
