"""Feature files: one h5 per section, in our layout, TRIDENT's or HEST's, and one reader for all.

========  ==========================  =========================================================
layout    datasets                    attributes
========  ==========================  =========================================================
mvhlib    features, coords, barcodes  on the file: encoder, width, tile_px, tile_um, mpp,
                                      source_mpp, working_mpp, source_sha256, key
trident   features, coords, barcodes  features: encoder, name; coords: patch_size,
                                      patch_size_level0, level0_magnification,
                                      target_magnification, overlap, level0_width and _height
hest      embeddings, coords,         none
          barcodes
========  ==========================  =========================================================

TRIDENT itself stores no barcodes; they are added, its readers ignore them. Its magnifications are
nominal, 10 divided by µm/px. Features of CLAM (`features`, `coords`) are read as well.

TRIDENT: Zhang et al., arXiv 2502.06750. HEST: Jaume et al., NeurIPS 2024.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib.artifacts import InputError, h5_reader, h5_writer
from mvhlib.tiles.store import coordinate_names, encode_names, read_names

if TYPE_CHECKING:
    from mvhlib.tiles.cut import Tiles

LAYOUTS = ("mvhlib", "trident", "hest")

#: Attributes of a file in our layout, beside `key`.
ATTRS = ("encoder", "width", "tile_px", "tile_um", "mpp", "source_mpp", "working_mpp",
         "source_sha256")


@dataclass
class Features:
    """What an encoder made of the tiles of one section.

    Attributes
    ----------
    features
        `(T, D)` float32.
    coords
        Top-left corner (x, y) of each tile, `(T, 2)` int64 [level-0 px].
    barcodes
        One name per tile.
    attrs
        What is known of `ATTRS`.
    """

    features: np.ndarray = field(repr=False)
    coords: np.ndarray = field(repr=False)
    barcodes: list[str] = field(repr=False)
    attrs: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return self.features.shape[1]


def write_features(path: str | os.PathLike, feats: Features, layout: str = "mvhlib",
                   key: str = "") -> None:
    """Write the features of one section; equal features give equal bytes.

    Parameters
    ----------
    path
        ``features/<encoder>/<section>.h5``; appears only when it is whole.
    feats
        Features with their coordinates and names.
    layout
        One of `LAYOUTS`.
    key
        Hash of what the features were made from, for resuming.

    Raises
    ------
    InputError
        On an unknown layout, rows that do not fit, repeated names, or features not finite.
    """
    if layout not in LAYOUTS:
        raise InputError(path, "layout", f"{layout!r} is not among {list(LAYOUTS)}",
                         "use one of these names")
    values = np.ascontiguousarray(feats.features, dtype=np.float32)
    coords = np.asarray(feats.coords, dtype=np.int64)
    if values.ndim != 2 or coords.shape != (len(values), 2):
        raise InputError(path, "features", f"have shape {values.shape}, coords {coords.shape}",
                         "give (n, D) and (n, 2)")
    if not np.isfinite(values).all():
        rows = int((~np.isfinite(values)).any(axis=1).sum())
        raise InputError(path, "features", f"are not finite in {rows} of {len(values)} rows",
                         "look at the encoder: its weights or its precision overflow")
    names = encode_names(path, feats.barcodes, len(values))
    attrs = {"width": values.shape[1]} | {k: v for k, v in feats.attrs.items() if v is not None}
    with h5_writer(path) as stream:
        def put(name: str, array: np.ndarray) -> Any:
            return stream.create_dataset(name, data=array, track_times=False)

        features = put("embeddings" if layout == "hest" else "features", values)
        places = put("coords", coords)
        put("barcodes", names)
        stream.attrs["key"] = key
        if layout == "mvhlib":
            for name in sorted(attrs):
                stream.attrs[name] = attrs[name]
        if layout == "trident":
            title = Path(path).stem
            features.attrs.update({"encoder": attrs.get("encoder", ""), "name": title,
                                   "savetodir": ""})
            for name, value in _trident_attrs(attrs).items():
                places.attrs[name] = value
            places.attrs.update({"name": title, "savetodir": ""})


def read_features(path: str | os.PathLike) -> Features:
    """Read the features of one section in any layout.

    Raises
    ------
    InputError
        If the file is truncated, holds no features per tile, or its rows do not fit each other.
    """
    with h5_reader(path) as stream:
        found = [name for name in ("features", "embeddings") if name in stream]
        if not found:
            raise InputError(path, "features", f"is missing; the file has {sorted(stream)}",
                             "make the file by 04_embed")
        dataset = stream[found[0]]
        try:
            values = np.asarray(dataset[()], dtype=np.float32)
            coords = stream["coords"][()] if "coords" in stream else None
            names = read_names(stream)
        except OSError as error:
            raise InputError(path, "file", f"cannot be read ({error})",
                             "it is probably truncated: delete it and make it again") from error
        attrs = _read_attrs(stream, dataset)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]  # (1, n, D) -> (n, D)
    if values.ndim == 1:
        raise InputError(path, found[0], f"is one vector of {len(values)} for the whole slide",
                         "give the features of its tiles")
    if values.ndim != 2:
        raise InputError(path, found[0], f"has shape {values.shape}", "store (n, D)")
    n = len(values)
    coords = np.zeros((n, 2), np.int64) if coords is None else np.asarray(coords)
    if coords.ndim == 3 and coords.shape[0] == 1:
        coords = coords[0]
    coords = coords.astype(np.int64)
    if names is None:
        names = coordinate_names(coords)
    for name, rows in (("coords", coords), ("barcodes", names)):
        if len(rows) != n:
            raise InputError(path, name, f"has {len(rows)} rows for {n} features",
                             "it is probably truncated: delete it and make it again")
    return Features(values, coords, names, {"width": values.shape[1]} | attrs)


def read_folder(folder: str | os.PathLike,
                sections: Sequence[str] | None = None) -> dict[str, Features]:
    """Read ``<folder>/<section>.h5`` of all, or of the named, sections.

    Raises
    ------
    InputError
        If a file is missing or broken, or widths differ, as those of two encoders do.
    """
    folder = Path(folder)
    names = sorted(path.stem for path in folder.glob("*.h5")) if sections is None else sections
    if not names:
        raise InputError(folder, "features", "holds no h5 file", "run 04_embed for this encoder")
    found = {name: read_features(folder / f"{name}.h5") for name in names}
    widths = {name: each.features.shape[1] for name, each in found.items()}
    if len(set(widths.values())) > 1:
        raise InputError(folder, "features", f"differ in width: {widths}",
                         "delete the folder and run 04_embed again")
    return found


def from_tiles(tiles: "Tiles", function: Callable[[np.ndarray], np.ndarray]) -> Features:
    """Features by a plain function of the tiles, `(T, S, S, 3)` uint8 -> `(T, D)`."""
    names = tiles.barcodes or coordinate_names(tiles.coords)
    values = np.asarray(function(tiles.img), dtype=np.float32)
    return Features(values, tiles.coords, list(names), {"encoder": function.__name__})


def align(features: Features, names: Sequence[str]) -> np.ndarray:
    """Rows of `features`, `(T, D)`, in the order of `names`.

    Fewer tiles than spots is normal (off tissue, off the image): choose the spots that have one
    first, for instance ``[n for n in names if n in set(features.barcodes)]``.

    Raises
    ------
    InputError
        If a name has no row, or a barcode of the features stands more than once.
    """
    where = features.attrs.get("encoder", "features")
    row = {name: index for index, name in enumerate(features.barcodes)}
    if len(row) != len(features.barcodes):
        raise InputError(where, "barcodes", f"{len(features.barcodes) - len(row)} are repeated",
                         "make the names unique per section")
    names = [str(name) for name in names]
    missing = [name for name in names if name not in row]
    if missing:
        raise InputError(
            where, "barcodes", f"{len(missing)} of {len(names)} spots have no features, for example"
            f" {missing[:3]}; the features are named like {features.barcodes[:2]}",
            "take features and counts of the same section, and only spots that have a tile")
    return features.features[[row[name] for name in names]]


def _trident_attrs(attrs: dict[str, Any]) -> dict[str, Any]:
    """Our attributes in TRIDENT's words; what is not known is left out."""
    found: dict[str, Any] = {"overlap": int(attrs.get("overlap", 0))}
    if "tile_px" in attrs:
        found["patch_size"] = int(attrs["tile_px"])
    if attrs.get("source_mpp"):
        # Not rounded: 0.69 µm/px has no round magnification, and tile_um is recovered from it.
        found["level0_magnification"] = 10.0 / float(attrs["source_mpp"])
        if "tile_um" in attrs:
            found["patch_size_level0"] = round(float(attrs["tile_um"]) / attrs["source_mpp"])
    if attrs.get("mpp"):
        found["target_magnification"] = 10.0 / float(attrs["mpp"])
    for name in ("level0_width", "level0_height"):
        if name in attrs:
            found[name] = int(attrs[name])
    return found


def _read_attrs(stream: Any, dataset: Any) -> dict[str, Any]:
    """Our attributes, else what can be told from TRIDENT's."""
    attrs = {name: _plain(value) for name, value in stream.attrs.items() if name != "key"}
    if "encoder" not in attrs and "encoder" in dataset.attrs:
        attrs["encoder"] = _plain(dataset.attrs["encoder"])
    places = stream["coords"].attrs if "coords" in stream else {}
    if "tile_px" not in attrs and "patch_size" in places and "target_magnification" in places:
        attrs["tile_px"] = int(places["patch_size"])
        attrs["mpp"] = 10.0 / float(places["target_magnification"])
        attrs["tile_um"] = attrs["tile_px"] * attrs["mpp"]
        if "level0_magnification" in places:
            attrs["source_mpp"] = 10.0 / float(places["level0_magnification"])
    for name in ("level0_width", "level0_height"):
        if name in places:
            attrs.setdefault(name, int(places[name]))
    return attrs


def _plain(value: Any) -> Any:
    """An attribute as Python's own type."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
