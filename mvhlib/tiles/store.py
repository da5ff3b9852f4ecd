"""Keep tiles in h5: one file per section, in HEST's layout with our attributes on top.

::

    <section>.h5
        img       (n, S, S, 3) uint8   attrs patch_size_src, patch_size_target, downsample,
                                             pixel_size (HEST's names, all of level 0)
        coords    (n, 2) int64         top-left corner (x, y) [level-0 px]
        barcode   (n, 1) bytes         padded to equal length
        outside   (n,) float32         share of the tile that is padding
        attrs     tile_px, tile_um, mpp, source_mpp, key

HEST: Jaume et al., NeurIPS 2024. Its files have neither `outside` nor the file's attributes; the
side S differs between releases (224, older ones 256), so it is read and never assumed.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib.artifacts import InputError, h5_reader, h5_writer, read_attr, sha256_file
from mvhlib.tiles.cut import Tiles


def write_tiles(path: str | os.PathLike, tiles: Tiles, barcodes: Sequence[str] | None = None,
                key: str = "") -> None:
    """Write the tiles of one section; equal tiles give equal bytes.

    Parameters
    ----------
    path
        ``tiles/<section>.h5``; appears only when it is whole.
    tiles
        Tiles of one section.
    barcodes
        One unique name per tile; None takes those of `tiles`.
    key
        Hash of what the tiles were made from, for resuming.

    Raises
    ------
    InputError
        If names are missing, repeated, or not as many as the tiles.
    """
    names = encode_names(path, tiles.barcodes if barcodes is None else barcodes, len(tiles))
    with h5_writer(path) as stream:
        img = _put(stream, "img", np.asarray(tiles.img, dtype=np.uint8))
        img.attrs["patch_size_src"] = tiles.source_px
        img.attrs["patch_size_target"] = tiles.tile_px
        img.attrs["downsample"] = tiles.source_px / tiles.tile_px
        img.attrs["pixel_size"] = tiles.source_mpp
        _put(stream, "coords", np.asarray(tiles.coords, dtype=np.int64))
        _put(stream, "barcode", names)
        _put(stream, "outside", np.asarray(tiles.outside, dtype=np.float32))
        for name in ("tile_px", "tile_um", "mpp", "source_mpp"):
            stream.attrs[name] = getattr(tiles, name)
        stream.attrs["key"] = key


def read_tiles(path: str | os.PathLike, tile_um: float | None = None) -> Tiles:
    """Read the tiles of one section, ours or HEST's.

    Parameters
    ----------
    path
        An h5 file with `img`, `coords` and `barcode`.
    tile_um
        Side of a tile [µm], for files that do not say it (HEST's are 112).

    Raises
    ------
    InputError
        If the file is truncated, its datasets do not fit each other, or the scale is not stated.
    """
    with open_tiles(path, tile_um) as (head, img):
        try:
            pixels = img[:]
        except OSError as error:
            raise _unreadable(path, error) from error
    return Tiles(pixels, head.coords, head.outside, head.tile_px, head.tile_um, head.mpp,
                 head.source_mpp, head.barcodes)


@dataclass(frozen=True)
class TileHead:
    """Everything of a tile file but the pixels; names as in `Tiles`."""

    coords: np.ndarray = field(repr=False)
    outside: np.ndarray = field(repr=False)
    barcodes: list[str] = field(repr=False)
    n_tiles: int
    tile_px: int
    tile_um: float
    mpp: float
    source_mpp: float


@contextmanager
def open_tiles(path: str | os.PathLike, tile_um: float | None = None
               ) -> Iterator[tuple[TileHead, Any]]:
    """Open a tile file; yields its head and the `img` dataset, to be sliced batch by batch.

    Raises
    ------
    InputError
        As `read_tiles`.
    """
    with h5_reader(path) as stream:
        for name in ("img", "coords"):
            if name not in stream:
                raise InputError(path, name, f"is missing; the file has {sorted(stream)}",
                                 "make the file by 02_tiles or take a patch file of HEST")
        img = stream["img"]
        if img.dtype != np.uint8 or img.ndim != 4 or img.shape[3] != 3 or (
                img.shape[1] != img.shape[2]):
            raise InputError(path, "img", f"is {img.dtype} of shape {img.shape}",
                             "store uint8 tiles of shape (n, S, S, 3)")
        n, side = img.shape[:2]
        try:
            coords = stream["coords"][:].astype(np.int64)
            outside = stream["outside"][:] if "outside" in stream else np.zeros(n, np.float32)
            names = read_names(stream)
        except OSError as error:
            raise _unreadable(path, error) from error
        if names is None:
            names = coordinate_names(coords)
        for name, rows in (("coords", coords), ("outside", outside), ("barcode", names)):
            if len(rows) != n:
                raise InputError(path, name, f"has {len(rows)} rows for {n} tiles",
                                 "it is probably truncated: delete it and make it again")
        extent, source_mpp = _scale(path, stream, img, side, tile_um)
        yield TileHead(coords, outside, names, n, side, extent, extent / side, source_mpp), img


def manifest_row(path: str | os.PathLike) -> dict[str, Any]:
    """One row of ``tiles/manifest.csv``: what a tile file holds, without reading its pixels.

    Returns
    -------
    dict
        section (the file's name), n_tiles, tile_px [px], tile_um [µm], mpp, source_mpp [µm/px],
        padded_max (largest share of padding of a tile), sha256 (the key that the file was made by,
        else of the file).
    """
    path = Path(path)
    with open_tiles(path) as (head, _):
        return {"section": path.stem, "n_tiles": head.n_tiles, "tile_px": head.tile_px,
                "tile_um": head.tile_um, "mpp": head.mpp, "source_mpp": head.source_mpp,
                "padded_max": float(head.outside.max(initial=0)),
                "sha256": read_attr(path, "key") or sha256_file(path)}


def _scale(path: Any, stream: Any, img: Any, side: int, tile_um: float | None
           ) -> tuple[float, float]:
    """Side of a tile [µm] and scale of level 0 [µm/px], from our attributes or HEST's."""
    source_mpp = stream.attrs.get("source_mpp", img.attrs.get("pixel_size"))
    if tile_um is None:
        tile_um = stream.attrs.get("tile_um")
    if tile_um is None and {"patch_size_src", "pixel_size"} <= set(img.attrs):
        tile_um = float(img.attrs["patch_size_src"]) * float(img.attrs["pixel_size"])
    if tile_um is None:
        raise InputError(path, "tile_um", "is stated neither as attribute nor by patch_size_src "
                         "and pixel_size", "pass tile_um= (112 for files of HEST)")
    tile_um = float(tile_um)
    return tile_um, float(source_mpp) if source_mpp is not None else tile_um / side


def encode_names(path: Any, names: Sequence[str] | None, n: int) -> np.ndarray:
    """Names as `(n, 1)` bytes of equal length, as HEST stores them; refuses repeats."""
    if names is None:
        raise InputError(path, "barcode", "no names were given", "pass barcodes=")
    names = [str(name) for name in names]
    if len(names) != n:
        raise InputError(path, "barcode", f"{len(names)} names for {n} tiles",
                         "give one name per tile")
    if len(set(names)) != n:
        twice = sorted(name for name, count in Counter(names).items() if count > 1)[:3]
        raise InputError(path, "barcode", f"stands more than once, for example {twice}",
                         "make the names unique")
    raw = [name.encode() for name in names]
    width = max((len(name) for name in raw), default=1)
    return np.array(raw, dtype=f"S{max(1, width)}").reshape(n, 1)


def read_names(stream: Any) -> list[str] | None:
    """Names of an h5 file: `barcode` or `barcodes`, `(n,)` or `(n, 1)`, bytes or text."""
    for field_name in ("barcode", "barcodes"):
        if field_name in stream:
            values = np.asarray(stream[field_name][()]).reshape(-1)
            return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
    return None


def coordinate_names(coords: np.ndarray) -> list[str]:
    """Names for tiles that have none, from their corners."""
    return [f"x{x}_y{y}" for x, y in np.asarray(coords).tolist()]


def _put(stream: Any, name: str, array: np.ndarray) -> Any:
    """Write a dataset without a time stamp."""
    return stream.create_dataset(name, data=array, track_times=False)


def _unreadable(path: Any, error: Exception) -> InputError:
    return InputError(path, "file", f"cannot be read ({error})",
                      "it is probably truncated: delete it and make it again")
