"""Precomputed features of slides (TRIDENT, CLAM): found, checked, kept for 07 and 09.

==================  ================================================================================
what                how it is read
==================  ================================================================================
folders             those that hold ``<slide>.h5`` with ``features`` `(n, D)`, by TRIDENT
                    (``20x_256px_0px_overlap/features_uni_v1``) or CLAM (``h5_files``); each is an
                    encoder. ``pt_files`` of CLAM, tensors `(n, D)`, where no h5 stands beside them:
                    they have no places
not features        one vector a slide, coordinates alone (``patches``), other h5: passed over
no tile             slides in which no tissue was found are left out, and the log names them
owners              ``slides.csv`` as of whole slides (`mvhlib.tiles.whole`); a slide of the table
                    needs its features and has one row, features of other slides are not read
closed              folders that may not be read are passed over
==================  ================================================================================

An encoder's source is ``features:<folder below DATA>``. Nobody says on what it was pretrained.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mvhlib.artifacts import InputError, h5_reader, reading, write_csv, write_json
from mvhlib.encoder_sources import FEATURES
from mvhlib.features import Features, read_features, write_features
from mvhlib.tiles import pools, whole

log = logging.getLogger(__name__)

#: How deep below the data directory folders of features are looked for.
_DEPTH = 4
#: Folders of CLAM, whose encoder has the name of what they lie in.
_OF_CLAM = ("h5_files", "pt_files")


#: Files of a folder that are opened to see whether it holds features: the first may be broken.
_MOST_TRIED = 5


def size(path: Path) -> tuple[int, int] | None:
    """Tiles and width of an h5 file of features; None of any other file.

    Raises
    ------
    InputError
        If it is no whole h5 file.
    """
    with h5_reader(path) as stream:
        shape = stream["features"].shape if "features" in stream else ()
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 else None


def _are_features(files: Sequence[Path]) -> bool:
    """Whether h5 files hold features of tiles, by the first of them that is whole."""
    for path in files[:_MOST_TRIED]:
        try:
            return size(path) is not None
        except InputError:
            continue
    return False


def faults(folders: Mapping[str, Mapping[str, Path]], slides: Sequence[str]) -> dict[str, str]:
    """Slide -> what is wrong with its file, where it cannot be read, or is h5 and holds no tile."""
    found: dict[str, str] = {}
    for files in folders.values():
        for name in slides:
            if name in found:
                continue
            try:
                if files[name].suffix != ".h5":
                    with reading(files[name], "features", fix="change the file's permissions"):
                        open(files[name], "rb").close()
                    continue
                held = size(files[name])
                if held is None or 0 in held:
                    raise InputError(files[name], "features", "hold no tile" if held else
                                     "are missing, or one vector for the whole slide",
                                     "check the slide's tissue mask, or leave the slide out")
            except InputError as error:
                found[name] = str(error)
    return found


def find(root: str | Path) -> dict[str, dict[str, Path]]:
    """Folder below `root` -> slide -> its file of features, of every folder that holds some."""
    root = Path(root)
    found = {}
    for folder in _folders(root, _DEPTH):
        files = {path.stem: path for path in sorted(folder.iterdir())
                 if path.suffix == ".h5" and not path.name.startswith(".")}
        if not _are_features([*files.values()]):
            tensors = folder.name == "pt_files" and not (folder.parent / "h5_files").is_dir()
            files = {path.stem: path for path in sorted(folder.glob("*.pt"))} if tensors else {}
        if files:
            found[str(folder.relative_to(root))] = files
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for below in sorted(folder.glob("*/")):
            if not below.name.startswith(".") and whole.may_list(below):
                yield from _folders(below, depth - 1)


def slug(root: Path, folder: str) -> str:
    """Name of an encoder after the folder of its features: ``uni_v1`` of ``features_uni_v1``."""
    path = root.absolute() / folder
    name = path.parent.name if path.name in _OF_CLAM else path.name
    name = re.sub(r"[^a-z0-9_.-]+", "-", re.sub(r"^features?[_-]", "", name.lower())).strip("-_.")
    return name or "features"


def take(data: str | Path, source: str, table: str, out: str | Path, encoder: str) -> list[Path]:
    """Keep the features of one folder for a run.

    Parameters
    ----------
    data
        The data set's directory.
    source
        ``features:<folder below data>``.
    table
        ``slides.csv``, from `data` or from the clone; empty takes the one in `data`, if there.
    out
        Gets ``features/<encoder>/<slide>.h5`` with a manifest, and ``slides.csv``.

    Returns
    -------
    list of Path
        What was written: the manifest, ``pretrained_on.json``, ``slides.csv``.

    Raises
    ------
    InputError
        If there are no features, a slide of the table has none, a file is broken, or widths differ.
    """
    root, name = Path(data), source.removeprefix(FEATURES)
    files = find(root).get(name if name not in ("", "./") else ".")
    if not files:
        raise InputError(root, source, "holds no features of tiles",
                         f"name one of {list(find(root))[:4]}")
    slides = whole.read(root, table, files=files)
    target = Path(out) / "features" / encoder
    rows, empty = [], []
    for slide in slides:
        given = _read(slide.path)
        if len(given) == 0:
            empty.append(slide.name)
            continue
        if rows and given.width != rows[0]["width"]:
            raise InputError(slide.path, "features", f"are {given.width} wide, those of "
                             f"{rows[0]['section']} {rows[0]['width']}",
                             "keep the files of one encoder in a folder")
        attrs = {key: value for key, value in given.attrs.items() if key != "width"}
        write_features(target / f"{slide.name}.h5", Features(
            given.features, given.coords, given.barcodes, attrs | {"encoder": encoder}))
        rows.append({"section": slide.name, "n_tiles": len(given), "width": given.width})
    if empty:
        log.warning("%s: %d slides have no tile and are left out: %s", root / name, len(empty),
                    ", ".join(empty[:5]))
        slides = [slide for slide in slides if slide.name not in empty]
    if not slides:
        raise InputError(root / name, "features", "of all slides hold no tile",
                         "check how tissue was found in them")
    if left := len(files) - len(slides) - len(empty):
        log.warning("%s: %d slides are not in the table and are not read", root / name, left)
    return [pools.write_manifest(target, rows), write_json(target / "pretrained_on.json", None),
            write_csv(Path(out) / "slides.csv", whole.table(slides))]


def _read(path: Path) -> Features:
    """Features of a slide; a tensor has no places and rows have numbers for names."""
    if path.suffix != ".pt":
        return read_features(path)
    import torch

    with reading(path, "features", "are not a tensor that can be read without running code",
                 "give the h5 file of the same slide"):
        values = torch.load(path, map_location="cpu", weights_only=True).float().numpy()
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise InputError(path, "features", f"have shape {values.shape}, or NaN in them",
                         "store finite numbers of shape (n, D)")
    return Features(values.astype(np.float32), np.zeros((len(values), 2), np.int64),
                    [f"row{index}" for index in range(len(values))], {"width": values.shape[1]})


def sizes(files: Mapping[str, Path]) -> dict[str, str]:
    """Slide -> what its file holds, in words."""
    said = {}
    for name, path in files.items():
        try:
            held = size(path) if path.suffix == ".h5" else None
        except InputError:
            continue
        said[name] = f"{held[0]} tiles x {held[1]}" if held else "a tensor"
    return said
