"""Views and their tokens for every spot of a section, computed once and kept in files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mvhlib.artifacts import InputError, read_attr, sha256_file, sha256_of
from mvhlib.encoders import PatchEncoder, model_tokens, pool_tokens, reduce_area
from mvhlib.expression.mmap.views import ZOOMS, crop_views, cut_views
from mvhlib.features import Features, read_features, write_features
from mvhlib.tiles.store import open_tiles

if TYPE_CHECKING:
    from mvhlib.cohort import Section


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
        x = pixels(np.asarray(tiles[start:start + batch]), encoder.device)
        if encoder.mpp is not None and tile_mpp is not None and x.shape[1] == 1:
            px = round(x.shape[-1] * tile_mpp / encoder.mpp)
            x = reduce_area(x, px) if px < x.shape[-1] else x
        views = crop_views(x[:, 0]) if x.shape[1] == 1 else list(x.unbind(1))
        with _half(encoder):
            found = [pool_tokens(model_tokens(encoder.model, encoder.eval_transforms.batch(view)),
                                 grid) for view in views]
        parts.append(torch.stack(found, dim=1).float().cpu().numpy())
    return np.concatenate(parts)


def pixels(tiles: np.ndarray, device: torch.device | str) -> Tensor:
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
