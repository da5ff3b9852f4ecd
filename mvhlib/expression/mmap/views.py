"""Three views of a spot: crops of its tile, or fields cut from the slide."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvhlib.artifacts import InputError
from mvhlib.tiles.cut import Tiles, cut_spots

if TYPE_CHECKING:
    from mvhlib.cohort import Section

#: Zooms of the three views, from the widest field to the narrowest.
ZOOMS = (1, 2, 4)

#: A view cut from the slide needs as many pixels of its own along its side.
MIN_VIEW_PX = 32


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
