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
nominal, 10 divided by µm/px. Features of CLAM (`features`, `coords`) are read as well, and arrays
of shape `(1, n, D)`.

HEST writes places of legacy Spatial Transcriptomics with three digits a side ("009x012"): its
layout gets them so, and they come back as they were.

What is checked on reading: features are finite numbers; there is one corner in whole pixels and one
name per row; names are UTF-8, not blank and not repeated; scales are finite and above 0, and those
that a file states twice agree; nothing lies in another file. Anything else is refused.

TRIDENT: Zhang et al., arXiv 2502.06750. HEST: Jaume et al., NeurIPS 2024.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import read_outs
from mvhlib.artifacts import (
    InputError,
    check_h5_files,
    check_sayable,
    h5_array,
    h5_attr,
    h5_reader,
    h5_writer,
    read_attr,
    read_csv,
    read_json,
    reading,
    sha256_file,
    sha256_of,
    write_json,
)
from mvhlib.tiles.store import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    check_agree,
    check_positive,
    coordinate_names,
    encode_names,
    pad_places,
    plain_places,
    read_coords,
    read_names,
    tile_names,
    whole_coords,
)

if TYPE_CHECKING:
    from mvhlib.tiles.cut import Tiles

LAYOUTS = ("mvhlib", "trident", "hest")

#: Attributes of a file in our layout, beside `key`.
ATTRS = ("encoder", "width", "tile_px", "tile_um", "mpp", "source_mpp", "working_mpp",
         "source_sha256")

#: Those that are a scale or an extent.
_SCALES = ("tile_px", "tile_um", "mpp", "source_mpp", "working_mpp")


@dataclass
class Features:
    """Features of the tiles of one section.

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
        On an unknown layout, rows that do not fit, blank or repeated names, features not finite,
        or scales that are no numbers above 0.
    """
    if layout not in LAYOUTS:
        raise InputError(path, "layout", f"{layout!r} is not among {list(LAYOUTS)}",
                         "use one of these names")
    with reading(path, "features", "are no numbers", "give an array (n, D)"):
        values = np.ascontiguousarray(feats.features, dtype=np.float32)
    if values.ndim != 2 or np.shape(feats.coords) != (len(values), 2):
        raise InputError(path, "features", f"have shape {values.shape}, coords "
                         f"{np.shape(feats.coords)}", "give (n, D) and (n, 2)")
    coords = whole_coords(path, feats.coords, len(values))
    if not np.isfinite(values).all():
        rows = int((~np.isfinite(values)).any(axis=1).sum())
        raise InputError(path, "features", f"are not finite in {rows} of {len(values)} rows",
                         "look at the encoder: its weights or its precision overflow")
    barcodes = list(feats.barcodes)
    barcodes, padded = pad_places(barcodes) if layout == "hest" else (barcodes, False)
    names = encode_names(path, barcodes, len(values))
    attrs = {"width": values.shape[1]} | {k: v for k, v in feats.attrs.items() if v is not None}
    for name in _SCALES:
        if name in attrs:
            check_positive(path, name, attrs[name])
    with h5_writer(path) as stream:
        def put(name: str, array: np.ndarray) -> Any:
            return stream.create_dataset(name, data=array, track_times=False)

        features = put("embeddings" if layout == "hest" else "features", values)
        places = put("coords", coords)
        put("barcodes", names)
        stream.attrs["key"] = key
        if padded:
            stream.attrs["barcodes_padded"] = True
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
        If the file is truncated, holds no features per tile, its rows do not fit each other, or
        a value cannot be true (see above).

    Notes
    -----
    A file without `coords` gets zeros for them and, if it has no names either, names by row.
    """
    with h5_reader(path) as stream:
        found = [name for name in ("features", "embeddings") if name in stream]
        if not found:
            raise InputError(path, "features", f"is missing; the file has {sorted(stream)}",
                             "make the file by 04_embed")
        dataset = h5_array(stream, found[0], ndim=(1, 2, 3), read=False)
        shape = dataset.shape[1:] if len(dataset.shape) == 3 and dataset.shape[0] == 1 else (
            dataset.shape)  # (1, n, D) -> (n, D)
        if len(shape) == 1:
            raise InputError(path, found[0], f"is one vector of {shape[0]} for the whole slide",
                             "give the features of its tiles")
        if len(shape) != 2 or shape[1] == 0:
            raise InputError(path, found[0], f"has shape {dataset.shape}", "store (n, D)")
        values = _float32(path, found[0], h5_array(stream, found[0])).reshape(shape)
        n = len(values)
        coords = read_coords(stream, n) if "coords" in stream else np.zeros((n, 2), np.int64)
        names = read_names(stream)
        if names is None and "coords" not in stream:
            names = [f"row{index}" for index in range(n)]
        elif names is not None and bool(stream.attrs.get("barcodes_padded", False)):
            names = plain_places(names)
        if names is not None and len(names) != n:
            raise InputError(path, "barcodes", f"has {len(names)} rows for {n} features",
                             "it is probably truncated: delete it and make it again")
        names = tile_names(path, names, coords)
        attrs = _read_attrs(path, stream, dataset)
    if attrs.get("width", shape[1]) != shape[1]:
        raise InputError(path, "width", f"is {attrs['width']}, the features have {shape[1]}",
                         "delete the file and run 04_embed again")
    return Features(values, coords, names, {"width": shape[1]} | attrs)


def _float32(path: Any, name: str, values: np.ndarray) -> np.ndarray:
    """`values` as float32, unless one of them is too large for it."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    if not np.isfinite(small).all():
        raise InputError(path, name, "holds numbers too large for float32",
                         "look at the encoder: its weights or its precision overflow")
    return small


def read_out(folder: str | os.PathLike) -> str:
    """Read-out by which tokens became the features of a folder, as 04_embed recorded it.

    Returns
    -------
    str
        A name of `mvhlib.read_outs`, ``-`` for encoders without tokens, and ``unknown`` for
        features that somebody else made.
    """
    path = Path(folder) / "encoder.json"
    if not os.path.lexists(path):
        return "unknown"
    pool = read_json(path).get("pool")
    if pool not in (*read_outs.READ_OUTS, read_outs.ALL, "-"):
        raise InputError(path, "pool", f"is {pool!r}", "run 04_embed again")
    return pool


def write_about(folder: str | os.PathLike, pretrained_on: Mapping[str, Any] | None,
                made: Mapping[str, Any]) -> list[Path]:
    """Record beside features their encoder's training data, settings and read-out.

    Parameters
    ----------
    pretrained_on
        ``{"sections": ..., "patients": ..., "studies": ...}``; None: nobody says.
    made
        For ``encoder.json``; its ``pool`` is what `read_out` gives.
    """
    return [write_json(Path(folder) / "pretrained_on.json", pretrained_on),
            write_json(Path(folder) / "encoder.json", made)]


def write_read_out(folder: str | os.PathLike, target: str | os.PathLike, read_out: str,
                   sections: Sequence[str]) -> list[dict[str, Any]]:
    """Write one read-out of features that hold all of them (`mvhlib.read_outs.ALL`).

    Parameters
    ----------
    folder, target
        Where ``<section>.h5`` of the whole stand, and where those of the read-out go; a file that
        was made of the same whole is kept.
    read_out
        One of `mvhlib.read_outs.READ_OUTS`.

    Returns
    -------
    list of dict
        section, n_tiles, width, skipped, seconds, as `mvhlib.encoders.encode_folder` gives them.
    """
    rows = []
    for name in sections:
        start = time.perf_counter()
        source, path = Path(folder) / f"{name}.h5", Path(target) / f"{name}.h5"
        whole = read_features(source)
        columns = read_outs.columns(read_out, whole.width)
        key = sha256_of(sha256_file(source), read_out)
        skipped = read_attr(path, "key") == key
        if not skipped:
            attrs = {k: v for k, v in whole.attrs.items() if k != "width"}
            write_features(path, Features(whole.features[:, columns], whole.coords, whole.barcodes,
                                          attrs | {"encoder": Path(target).name}), key=key)
        rows.append({"section": name, "n_tiles": len(whole), "width": len(columns),
                     "skipped": skipped, "seconds": time.perf_counter() - start})
    return rows


def read_folder(folder: str | os.PathLike,
                sections: Sequence[str] | None = None) -> dict[str, Features]:
    """Read ``<folder>/<section>.h5`` of all, or of the named, sections.

    Where 04_embed left a manifest, "all" are those that it names: files of an earlier run that
    stand beside them belong to nobody.

    Raises
    ------
    InputError
        If a file is missing or broken, differs from what the manifest says of it, or widths differ,
        as those of two encoders do.
    """
    folder = Path(folder)
    stated = _manifest(folder / "manifest.csv")
    if sections is None:
        names = sorted(stated) if stated else sorted(
            path.stem for path in folder.glob("*.h5") if not path.name.startswith("."))
    else:
        names = list(sections)
    if not names:
        raise InputError(folder, "features", "holds no h5 file", "run 04_embed for this encoder")
    check_h5_files(folder / f"{name}.h5" for name in names)
    found = {name: read_features(folder / f"{name}.h5") for name in names}
    for name in stated.keys() & found.keys():
        shape = found[name].features.shape
        if stated[name] != shape:
            raise InputError(folder / "manifest.csv", "n_tiles, width",
                             f"of section {name} are {stated[name]}, its file has {shape}",
                             "run 04_embed again")
    widths = {name: each.features.shape[1] for name, each in found.items()}
    if len(set(widths.values())) > 1:
        raise InputError(folder, "features", f"differ in width: {widths}",
                         "delete the folder and run 04_embed again")
    return found


def _manifest(path: Path) -> dict[str, tuple[int, int]]:
    """Section -> (n_tiles, width) of a manifest of 04_embed; empty where there is none."""
    if not path.exists() and not path.is_symlink():
        return {}
    frame = read_csv(path, ("section", "n_tiles", "width"), dtype={"section": str})
    twice = frame["section"][frame["section"].duplicated()].tolist()
    if twice:
        raise InputError(path, "section", f"{twice[0]!r} stands more than once",
                         "run 04_embed again")
    with reading(path, "n_tiles, width", "are no whole numbers", "run 04_embed again"):
        return {name: (int(n), int(width)) for name, n, width in
                zip(frame["section"], frame["n_tiles"], frame["width"], strict=True)}


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


def _read_attrs(path: Any, stream: Any, dataset: Any) -> dict[str, Any]:
    """Our attributes, else what can be told from TRIDENT's."""
    attrs: dict[str, Any] = {}
    for name in stream.attrs:
        if name in (*_SCALES, "width"):
            attrs[name] = h5_attr(stream, name, above=0 if name == "width" else SMALLEST_SCALE,
                                  below=None if name == "width" else LARGEST_SCALE)
        elif name == "encoder":
            attrs[name] = h5_attr(stream, name, kind="text")
        elif name not in ("key", "barcodes_padded"):
            attrs[name] = _plain(stream.attrs[name])
    if "encoder" not in attrs and "encoder" in dataset.attrs:
        attrs["encoder"] = h5_attr(dataset, "encoder", kind="text")
    if "encoder" in attrs:
        check_sayable([attrs["encoder"]], path, "encoder")
        if not attrs["encoder"].strip():
            raise InputError(path, "encoder", "is blank", "name the encoder that made the features")
    places = stream["coords"] if "coords" in stream else None
    trident = {} if places is None else {
        name: h5_attr(places, name, above=0, field=f"coords: {name}")
        for name in ("patch_size", "patch_size_level0", "target_magnification",
                     "level0_magnification", "level0_width", "level0_height")
        if name in places.attrs}
    if "tile_px" not in attrs and {"patch_size", "target_magnification"} <= trident.keys():
        attrs["tile_px"] = int(trident["patch_size"])
        attrs["mpp"] = 10.0 / float(trident["target_magnification"])
        attrs["tile_um"] = attrs["tile_px"] * attrs["mpp"]
        if "level0_magnification" in trident:
            attrs["source_mpp"] = 10.0 / float(trident["level0_magnification"])
            _check_level0(path, trident)
    elif {"tile_px", "tile_um", "mpp"} <= attrs.keys():
        check_agree(path, "mpp", attrs["mpp"], attrs["tile_um"] / attrs["tile_px"],
                    "tile_um / tile_px")
    for name in ("level0_width", "level0_height"):
        if name in trident:
            attrs.setdefault(name, int(trident[name]))
    return attrs


def _check_level0(path: Any, trident: dict[str, Any]) -> None:
    """Refuse a side in level-0 pixels that the two magnifications contradict."""
    side = trident.get("patch_size_level0")
    if side is None:
        return
    wanted = trident["patch_size"] * trident["level0_magnification"] / (
        trident["target_magnification"])
    if abs(side - wanted) > max(1.0, 0.02 * wanted):
        raise InputError(path, "coords: patch_size_level0", f"is {side:g} px, the magnifications "
                         f"make it {wanted:.4g}", "correct the one that is wrong")


def _plain(value: Any) -> Any:
    """An attribute as Python's own type; text is UTF-8 or an error."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        value.encode()  # h5py lets broken bytes through as lone surrogates
    return value.item() if isinstance(value, np.generic) else value
