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

What is checked: pixels are uint8 squares in RGB; there is one finite corner in whole pixels, one
share of padding in [0, 1] and one name per tile; names are text, not blank and not repeated; scales
are finite and above 0, and those that a file states twice agree. Anything else is refused.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib.artifacts import (
    InputError,
    check_sayable,
    h5_array,
    h5_attr,
    h5_opened,
    h5_writer,
    read_attr,
    read_csv,
    reading,
    sha256_file,
)
from mvhlib.tiles.cut import Tiles

if TYPE_CHECKING:
    import pandas as pd

#: Columns of ``tiles/manifest.csv``, see `manifest_row`.
MANIFEST_COLUMNS = ("section", "n_tiles", "tile_px", "tile_um", "mpp", "source_mpp", "padded_max",
                    "sha256")

#: A place of legacy Spatial Transcriptomics, and as HEST writes it.
_PLACE, _PADDED = re.compile(r"(0|[1-9]\d{0,2})x(0|[1-9]\d{0,2})"), re.compile(r"\d{3}x\d{3}")
LAYOUTS = ("mvhlib", "hest")


def write_tiles(path: str | os.PathLike, tiles: Tiles, barcodes: Sequence[str] | None = None,
                key: str = "", layout: str = "mvhlib") -> None:
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
    layout
        ``mvhlib``, or ``hest`` to hand the file to HEST's own code: places of legacy arrays get
        three digits a side (``009x012``), since its writer needs names of one length. Datasets are
        HEST's in both.

    Raises
    ------
    InputError
        If names are missing, blank, repeated, or not as many as the tiles, or what is written
        would not be read: pixels of another kind, corners or scales that are no numbers.
    """
    if layout not in LAYOUTS:
        raise InputError(path, "layout", f"{layout!r} is not among {list(LAYOUTS)}",
                         "use one of these names")
    barcodes, padded = tiles.barcodes if barcodes is None else list(barcodes), False
    if layout == "hest" and barcodes is not None:
        barcodes, padded = pad_places(barcodes)
    names = encode_names(path, barcodes, len(tiles))
    pixels = np.asarray(tiles.img)
    shape = (len(pixels), tiles.tile_px, tiles.tile_px, 3)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise InputError(path, "img", f"is {pixels.dtype} of shape {pixels.shape}",
                         f"give uint8 tiles of shape {shape}")
    coords = whole_coords(path, tiles.coords, len(pixels))
    outside = np.asarray(tiles.outside, dtype=np.float32)
    _check_outside(path, outside, len(pixels))
    for name in ("tile_um", "mpp", "source_mpp"):
        check_positive(path, name, getattr(tiles, name))
    check_agree(path, "mpp", tiles.mpp, tiles.tile_um / tiles.tile_px, "tile_um / tile_px")
    with h5_writer(path) as stream:
        img = _put(stream, "img", pixels)
        img.attrs["patch_size_src"] = tiles.source_px
        img.attrs["patch_size_target"] = tiles.tile_px
        img.attrs["downsample"] = tiles.source_px / tiles.tile_px
        img.attrs["pixel_size"] = tiles.source_mpp
        _put(stream, "coords", coords)
        _put(stream, "barcode", names)
        _put(stream, "outside", outside)
        for name in ("tile_px", "tile_um", "mpp", "source_mpp"):
            stream.attrs[name] = getattr(tiles, name)
        stream.attrs["key"] = key
        if padded:
            stream.attrs["barcodes_padded"] = True


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
        If the file is truncated, its datasets do not fit each other, the scale is not stated, or
        a value cannot be true.
    """
    with open_tiles(path, tile_um) as (head, img):
        pixels = img[:]
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
    """Open a tile file; yields its head and its pixels, to be sliced batch by batch.

    Raises
    ------
    InputError
        As `read_tiles`.
    """
    with h5_opened(path) as stream:
        with reading(path, fix="delete the file and make it again"):
            for name in ("img", "coords"):
                if name not in stream:
                    raise InputError(path, name, f"is missing; the file has {sorted(stream)}",
                                     "make the file by 02_tiles or take a patch file of HEST")
            img = h5_array(stream, "img", kind="integer", ndim=4, read=False)
            if img.dtype != np.uint8 or img.shape[3] != 3 or not 0 < img.shape[1] == img.shape[2]:
                raise InputError(path, "img", f"is {img.dtype} of shape {img.shape}",
                                 "store uint8 tiles of shape (n, S, S, 3)")
            n, side = img.shape[:2]
            coords = read_coords(stream, n)
            outside = np.zeros(n, np.float32)
            if "outside" in stream:
                outside = h5_array(stream, "outside", ndim=1)
                _check_outside(path, outside, n)
            stored = read_names(stream)
            if stored is not None and bool(stream.attrs.get("barcodes_padded", False)):
                stored = plain_places(stored)
            names = tile_names(path, stored, coords)
            extent, source_mpp = _scale(path, stream, img, side, tile_um)
        yield (TileHead(coords, outside, names, n, side, extent, extent / side, source_mpp),
               _Pixels(path, img))


class _Pixels:
    """The `img` dataset of an open file; what h5py raises at damaged bytes names the file."""

    def __init__(self, path: Any, dataset: Any):
        self._path, self._dataset = path, dataset
        self.shape, self.dtype, self.ndim = dataset.shape, dataset.dtype, dataset.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        with reading(self._path, "img", fix="it is probably damaged: make it again"):
            return self._dataset[index]


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


def read_manifest(folder: str | os.PathLike) -> "pd.DataFrame":
    """Read ``tiles/manifest.csv`` and compare every row with its tile file.

    Returns
    -------
    pandas.DataFrame
        As `manifest_row`; `section` is text.

    Raises
    ------
    InputError
        If a section stands twice, its file is missing or cannot be read, or the two disagree.
    """
    path = Path(folder) / "manifest.csv"
    frame = read_csv(path, MANIFEST_COLUMNS[:-2] + MANIFEST_COLUMNS[-1:],
                     dtype={"section": str, "sha256": str})
    twice = frame["section"][frame["section"].duplicated()].tolist()
    if twice:
        raise InputError(path, "section", f"{twice[0]!r} stands more than once",
                         "run 02_tiles again")
    for row in frame.to_dict("records"):
        found = manifest_row(path.parent / f"{row['section']}.h5")
        for name in ("n_tiles", "tile_px", "tile_um", "mpp", "source_mpp", "sha256"):
            alike = (row[name] == found[name] if name == "sha256" else
                     isinstance(row[name], (int, float))
                     and np.isclose(row[name], found[name], rtol=1e-6))
            if not alike:
                raise InputError(path, name, f"of section {row['section']} is {row[name]}, its "
                                 f"file says {found[name]}", "run 02_tiles again")
    return frame


def manifest(folder: str | os.PathLike, names: Iterable[str]) -> "pd.DataFrame":
    """``tiles/manifest.csv``: `manifest_row` of every name; no row, but the columns, for none."""
    import pandas as pd

    rows = [manifest_row(Path(folder) / f"{name}.h5") for name in names]
    return pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))


def pictures(folder: str | os.PathLike, names: Iterable[str], tiles: Iterable[int]
             ) -> np.ndarray | None:
    """Pixels of single tiles, `(n, S, S, 3)`: of file ``<name>.h5`` each the tile of that number.

    None where a file is not there: features may come without tiles.
    """
    wanted = [(Path(folder) / f"{name}.h5", tile) for name, tile in zip(names, tiles, strict=True)]
    if not all(path.exists() for path, _ in wanted):
        return None
    return np.stack([read_tiles(path).img[tile] for path, tile in wanted])


#: No pixel is so small [um]: a nanometre.
SMALLEST_SCALE = 1e-3
#: No tile is so wide [um, px] and no pixel [um]: a centimetre.
LARGEST_SCALE = 1e4


def _scale(path: Any, stream: Any, img: Any, side: int, tile_um: float | None
           ) -> tuple[float, float]:
    """Side of a tile [µm] and scale of level 0 [µm/px], from our attributes or HEST's."""
    stated = {name: h5_attr(stream, name, above=SMALLEST_SCALE, below=LARGEST_SCALE)
              for name in ("tile_px", "tile_um", "mpp", "source_mpp")}
    hests = {name: h5_attr(img, name, above=SMALLEST_SCALE, below=LARGEST_SCALE)
             for name in ("patch_size_src", "pixel_size")}
    if stated["tile_px"] is not None and stated["tile_px"] != side:
        raise InputError(path, "tile_px", f"is {stated['tile_px']:g}, the tiles are {side} px",
                         "make the file again")
    if stated["mpp"] is not None and stated["tile_um"] is not None:
        check_agree(path, "mpp", stated["mpp"], stated["tile_um"] / side, "tile_um / tile_px")
    if stated["source_mpp"] is not None and hests["pixel_size"] is not None:
        check_agree(path, "source_mpp", stated["source_mpp"], hests["pixel_size"], "pixel_size")
    source_mpp = hests["pixel_size"] if stated["source_mpp"] is None else stated["source_mpp"]
    if tile_um is None:
        tile_um = stated["tile_um"]
    else:
        check_positive(path, "tile_um", tile_um)
    if tile_um is None and None not in hests.values():
        tile_um = float(hests["patch_size_src"]) * float(hests["pixel_size"])
    if tile_um is None:
        raise InputError(path, "tile_um", "is stated neither as attribute nor by patch_size_src "
                         "and pixel_size", "pass tile_um= (112 for files of HEST)")
    tile_um = float(tile_um)
    return tile_um, float(source_mpp) if source_mpp is not None else tile_um / side


def check_positive(path: Any, name: str, value: Any) -> None:
    """Refuse a scale or an extent that is no finite number above 0."""
    if isinstance(value, (str, bool)) or not np.isscalar(value) or not (
            np.isfinite(value) and value > 0):
        raise InputError(path, name, f"is {value!r}", "give a finite number above 0")


def check_agree(path: Any, name: str, value: float, other: float, by: str) -> None:
    """Refuse a scale that a file states twice, and not alike (1 %)."""
    if abs(value / other - 1) > 0.01:
        raise InputError(path, name, f"is {value:g}, but {by} is {other:g}",
                         "make the file again, or correct the one that is wrong")


def _check_outside(path: Any, outside: np.ndarray, n: int) -> None:
    if outside.shape != (n,):
        raise InputError(path, "outside", f"has {len(np.atleast_1d(outside))} rows for {n} tiles",
                         "it is probably truncated: delete it and make it again")
    if not ((outside >= 0) & (outside <= 1)).all():  # NaN is neither
        raise InputError(path, "outside", "is no share between 0 and 1 in some rows",
                         "make the file again")


def read_coords(stream: Any, n: int) -> np.ndarray:
    """Corners `(n, 2)` int64 of an open h5 file: `coords`, `(n, 2)` or `(1, n, 2)`."""
    return whole_coords(stream.file.filename, h5_array(stream, "coords", ndim=(1, 2, 3)), n)


#: No slide is wider [px].
_FARTHEST = 2**31


def whole_coords(path: Any, coords: Any, n: int) -> np.ndarray:
    """`coords` as `(n, 2)` int64, if they are n finite corners in whole pixels."""
    with reading(path, "coords", fix="give one (x, y) per tile"):
        coords = np.asarray(coords)
        if coords.ndim == 3 and coords.shape[0] == 1:
            coords = coords[0]
        if coords.ndim == 2 and coords.shape[1] == 2 and len(coords) != n:
            raise InputError(path, "coords", f"has {len(coords)} rows for {n} tiles",
                             "it is probably truncated: delete it and make it again")
        if coords.shape != (n, 2) or coords.dtype.kind not in "iuf":
            raise InputError(path, "coords", f"is {coords.dtype} of shape {coords.shape}",
                             f"store numbers of shape ({n}, 2)")
        if not (np.abs(coords.astype(np.float64)) <= _FARTHEST).all():  # NaN is not
            raise InputError(path, "coords", "holds NaN, infinity or places beyond any slide",
                             "give the top-left corner (x, y) of each tile in level-0 pixels")
        if coords.dtype.kind == "f" and (coords != np.rint(coords)).any():
            raise InputError(path, "coords", "holds fractions of pixels",
                             "round the corners to whole level-0 pixels")
        return coords.astype(np.int64)


def encode_names(path: Any, names: Sequence[str] | None, n: int) -> np.ndarray:
    """Names as `(n, 1)` bytes of equal length, as HEST stores them; refuses blanks and repeats."""
    if names is None:
        raise InputError(path, "barcode", "no names were given", "pass barcodes=")
    names = _unique(path, "barcode", [str(name) for name in names], n, "tiles")
    with reading(path, "barcode", "cannot be written", "use names in UTF-8"):
        raw = [name.encode() for name in names]
    width = max((len(name) for name in raw), default=1)
    return np.array(raw, dtype=f"S{max(1, width)}").reshape(n, 1)


def pad_places(names: Sequence[str]) -> tuple[list[str], bool]:
    """Names such as ``9x12`` as HEST writes them, ``009x012``, and whether they are such names."""
    names = [str(name) for name in names]
    if not names or not all(map(_PLACE.fullmatch, names)):
        return names, False
    return ["x".join(part.zfill(3) for part in name.split("x")) for name in names], True


def plain_places(names: Sequence[str]) -> list[str]:
    """The names that `pad_places` was given."""
    return ["x".join(part.lstrip("0") or "0" for part in name.split("x"))
            if _PADDED.fullmatch(name) else name for name in names]


def read_names(stream: Any) -> list[str] | None:
    """Names of an h5 file: `barcode` or `barcodes`, `(n,)`, `(n, 1)` or `(1, n)`; None without.

    Bytes and text are read as UTF-8 and stripped, whole numbers become text. Repeats are the
    caller's to judge.

    Raises
    ------
    InputError
        If the names are of another kind or shape, or not UTF-8.
    """
    for field_name in ("barcode", "barcodes"):
        if field_name in stream:
            node = stream[field_name]
            kind = "integer" if getattr(getattr(node, "dtype", None), "kind", "") in "iu" else (
                "text")
            values = h5_array(stream, field_name, kind=kind, ndim=(1, 2))
            if values.ndim == 2 and 1 not in values.shape and values.size:
                raise InputError(stream.file.filename, field_name, f"has shape {values.shape}",
                                 "store one name per tile")
            return [str(value).strip() for value in values.reshape(-1).tolist()]
    return None


def tile_names(path: Any, names: list[str] | None, coords: np.ndarray) -> list[str]:
    """The names that a file holds, or names by place; refuses blanks and repeats."""
    if names is None:
        return _unique(path, "coords", coordinate_names(coords), len(coords), "tiles")
    return _unique(path, "barcode", names, len(coords), "tiles")


def _unique(path: Any, field_name: str, names: list[str], n: int, what: str) -> list[str]:
    names = [name.strip() for name in names]
    if len(names) != n:
        raise InputError(path, field_name, f"has {len(names)} names for {n} {what}",
                         "give one name per tile")
    if "" in names:
        raise InputError(path, field_name, f"is blank in row {names.index('')}",
                         "give every tile a name")
    check_sayable(names, path, field_name)
    if len(set(names)) != n:
        twice = sorted(name for name, count in Counter(names).items() if count > 1)[:3]
        raise InputError(path, field_name, f"stands more than once, for example {twice}",
                         "make the names unique")
    return names


def coordinate_names(coords: np.ndarray) -> list[str]:
    """Names for tiles that have none, from their corners."""
    return [f"x{x}_y{y}" for x, y in np.asarray(coords).tolist()]


def _put(stream: Any, name: str, array: np.ndarray) -> Any:
    """Write a dataset without a time stamp."""
    return stream.create_dataset(name, data=array, track_times=False)
