"""A model applied to a whole slide, some hundred tiles at a time.

Tiles are cut in one thread while the encoder reads those before them, and what is predicted of
them goes to a file of its own, by atomic rename, with a key of everything that decides it and a
hash of its content. A killed run finds these parts again. Nothing of the size of the slide is held
but a few numbers per tile: its place, its distance from the training tiles, and what is asked for.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib import artifacts
from mvhlib.artifacts import InputError, h5_array, h5_reader, h5_writer, read_attr, sha256_of
from mvhlib.prediction.model import Model
from mvhlib.tiles import cut, stain
from mvhlib.tiles.slides import Slide

#: Tiles of a part. Fixed: MMAP and networks give the same bytes for the same batches.
PART = 256
#: Least share of tissue of a tile on the grid [0-1].
MIN_TISSUE = 0.5
#: A slide whose resolution lies outside what a model has seen by this factor is refused.
FARTHEST_SCALE = 2.0
#: Time between two lines about progress [s].
REPORT_S = 5.0


@dataclass(frozen=True)
class Places:
    """Places at which a slide is predicted.

    Attributes
    ----------
    corners
        Top-left corners of the tiles (x, y), `(T, 2)` int64 [level-0 px].
    centres
        Their centres, or the spots that were given, `(T, 2)` float64 [level-0 px].
    names
        One per tile.
    tissue
        Share of each tile that is tissue, `(T,)` [0-1].
    side_px
        Side of a tile [level-0 px].
    spacing_px
        Distance of neighbouring tiles: of the grid, or of the given spots [level-0 px].
    """

    corners: np.ndarray = field(repr=False)
    centres: np.ndarray = field(repr=False)
    names: list[str] = field(repr=False)
    tissue: np.ndarray = field(repr=False)
    side_px: float
    spacing_px: float

    def __len__(self) -> int:
        return len(self.corners)


@dataclass(frozen=True)
class Predicted:
    """Predictions of a model for one slide.

    Attributes
    ----------
    values
        `(T, G)` float32, columns named by `genes`.
    distance
        From the training tiles, `(T,)`.
    colour
        Mean optical density of the tiles, `(3,)`.
    outside
        Share of each tile that is no image, `(T,)`.
    """

    values: np.ndarray = field(repr=False)
    genes: list[str] = field(repr=False)
    distance: np.ndarray = field(repr=False)
    colour: np.ndarray
    outside: np.ndarray = field(repr=False)


def check_scale(slide: Slide, model: Model) -> None:
    """Refuse a slide without a scale, or with a scale far outside the model's range.

    Raises
    ------
    InputError
        Names the scale, and those that the model has seen.
    """
    if slide.mpp is None:
        raise InputError(slide.path, "mpp", "is not known: the file states none",
                         "give MPP=<micrometres per pixel>, or a column mpp in slides.csv beside "
                         "the slide")
    seen = model.domain.mpp
    if model.encoder.mpp is not None and slide.mpp > 1.01 * model.encoder.mpp:
        raise InputError(slide.path, "mpp", f"{slide.mpp:.3g} um/px is coarser than what the "
                         f"model's encoder works at, {model.encoder.mpp:.3g}",
                         "give a sharper image, or choose a model whose encoder is coarser")
    factor = model.domain.new_scale(model.effective_mpp(slide.mpp))
    if factor > FARTHEST_SCALE:
        raise InputError(slide.path, "mpp", f"{slide.mpp:.3g} um/px is far from what the model has "
                         f"seen, {seen.min():.3g} to {seen.max():.3g}",
                         "check MPP, or choose a model that was fitted on such images")


def places(slide: Slide, model: Model, spots: tuple[np.ndarray, Sequence[str]] | None = None,
           stride_um: float | None = None) -> Places:
    """Where to predict: at given spots, or on a grid over the tissue.

    Parameters
    ----------
    spots
        Centres `(T, 2)` [level-0 px] and names.
    stride_um
        Distance of neighbouring tiles of the grid [um]; None puts them edge to edge.

    Raises
    ------
    InputError
        On a slide without tissue, spots that lie beside it, or a stride for given spots.
    """
    size = {"tile_um": model.tile_um, "tile_px": model.tile_px}
    side = model.tile_um / slide.mpp
    mask = cut.tissue_mask(slide)
    if spots is None:
        if not mask.mask.any():
            raise InputError(slide.path, "tissue", "is none: nothing in it is coloured like "
                             "tissue", "check the slide, or give spots beside it to predict anyway")
        corners = cut.grid_corners(slide, step_um=stride_um, mask=mask, min_tissue=MIN_TISSUE,
                                   **size)
        centres = corners + side / 2
        names = [f"x{x}_y{y}" for x, y in corners.tolist()]
        spacing = side if stride_um is None else stride_um / slide.mpp
    else:
        if stride_um is not None:
            raise InputError(slide.path, "STRIDE_UM", "is given, and so are spots beside the slide",
                             "leave one of them out")
        centres, names = spots
        beside = ((centres < 0) | (centres > (slide.width, slide.height))).any(axis=1)
        if beside.any():
            raise InputError(slide.path, "spots", f"{int(beside.sum())} of {len(centres)} lie "
                             f"outside the image ({slide.width} x {slide.height} px)",
                             "give centres (x, y) in pixels of this image at full resolution")
        corners = np.rint(centres - side / 2).astype(np.int64)
        spacing = _spacing(centres, side)
    share = mask.fraction(corners[:, 0], corners[:, 1], side, side)
    return Places(corners, np.asarray(centres, float), list(names), share, side, spacing)


def _spacing(centres: np.ndarray, side: float) -> float:
    """Median distance of a spot from the next; the tile's side for a single one."""
    from scipy.spatial import cKDTree

    if len(centres) < 2:
        return side
    return float(np.median(cKDTree(centres).query(centres, k=2)[0][:, 1])) or side


def run(slide: Slide, model: Model, where: Places, folder: Path, key: str, *,
        genes: Sequence[str] | None = None, report: Callable[[str], None] | None = None
        ) -> Predicted:
    """Predict all places of a slide, part by part.

    Parameters
    ----------
    folder
        Gets ``<number>.h5`` for every part; delete it once what was predicted is written.
    key
        Hash of the slide, the model and the places.
    genes
        Of those that the model predicts; None takes all.
    report
        Gets a line about progress every few seconds.

    Raises
    ------
    InputError
        On genes that the model lacks, or a slide that cannot be decoded.
    """
    chosen, columns = check_genes(model, genes)
    starts = range(0, len(where), PART)
    todo = [start for start in starts if not _is_whole(_part(folder, start), _key(key, start))]
    began, done = time.monotonic(), len(where) - sum(_length(where, start) for start in todo)
    fresh, last = 0, 0.0
    for start, tiles, colour in _cut_ahead(slide, model, where, todo):
        found = _predict(model, tiles, colour)
        _write(_part(folder, start), _key(key, start), found)
        fresh += len(tiles)
        now = time.monotonic()
        if report is not None and (now - last > REPORT_S or start == todo[-1]):
            rate, last = fresh / max(now - began, 1e-9), now
            left = (len(where) - done - fresh) / rate / 60
            report(f"{done + fresh:,} of {len(where):,} tiles, {rate:.1f} tiles/s, "
                   f"{left:.1f} min left")
    return _gather(model, where, folder, starts, chosen, columns, Path(slide.path).name)


def check_genes(model: Model, genes: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Return the requested genes, and their indices among those of the model.

    Raises
    ------
    InputError
        If the model lacks one.
    """
    known = list(model.genes["gene"])
    place = {gene: number for number, gene in enumerate(known)}
    chosen = known if genes is None else list(dict.fromkeys(genes))
    lacking = [gene for gene in chosen if gene not in place]
    if lacking:
        raise InputError(f"model {model.name}", "GENES", f"{', '.join(lacking[:5])} are not among "
                         f"its {len(known)} genes", "choose genes of its model.json, or fit a "
                         "model on a panel that has them")
    return chosen, np.array([place[gene] for gene in chosen], dtype=np.int64)


def _cut_ahead(slide: Slide, model: Model, where: Places, todo: Sequence[int]
               ) -> Iterator[tuple[int, cut.Tiles, np.ndarray]]:
    """Tiles of every part and their colours, cut while the caller works on the part before."""
    def tiles_of(start: int) -> tuple[cut.Tiles, np.ndarray]:
        tiles = cut.cut_at(slide, where.corners[start:start + PART], tile_um=model.tile_um,
                           tile_px=model.tile_px)
        return tiles, colours(tiles)

    with ThreadPoolExecutor(1) as pool:
        ahead = [(start, pool.submit(tiles_of, start)) for start in todo[:1]]
        for number in range(len(todo)):
            start, future = ahead.pop()
            tiles, colour = future.result()
            if number + 1 < len(todo):
                ahead.append((todo[number + 1], pool.submit(tiles_of, todo[number + 1])))
            yield start, tiles, colour


def colours(tiles: cut.Tiles) -> np.ndarray:
    """Mean optical density of each tile, `(T, 3)`."""
    return stain.colour_statistics(tiles.img)[:, :3]


def _predict(model: Model, tiles: cut.Tiles, colour: np.ndarray) -> dict[str, np.ndarray]:
    X = model.regressor.read(model.encoder, tiles.img, tiles.mpp)
    found = model.regressor.step(X)
    return found | {"distance": model.domain.distance(model.regressor.look(X)),
                    "colour": colour, "outside": tiles.outside}


def _part(folder: Path, start: int) -> Path:
    return folder / f"{start // PART:06d}.h5"


def _key(key: str, start: int) -> str:
    return sha256_of(key, start)


def _length(where: Places, start: int) -> int:
    return min(PART, len(where) - start)


def _write(path: Path, key: str, found: dict[str, np.ndarray]) -> None:
    with h5_writer(path) as stream:
        for name in sorted(found):
            stream.create_dataset(name, data=found[name], track_times=False)
        stream.attrs["key"] = key
        stream.attrs["content"] = sha256_of(*(found[name] for name in sorted(found)))


def _is_whole(path: Path, key: str) -> bool:
    """True if a part is the one that this run would make; a damaged part is made again."""
    if not path.exists() or read_attr(path, "key") != key:
        return False
    try:
        with h5_reader(path) as stream:
            found = [h5_array(stream, name, finite=False) for name in sorted(stream)]
            return stream.attrs["content"] == sha256_of(*found)
    except InputError:
        return False


def _gather(model: Model, where: Places, folder: Path, starts: range, genes: list[str],
            columns: np.ndarray, title: str) -> Predicted:
    """Read all parts in order, and run the step that needs them together."""
    whole: dict[str, list[Any]] = {}
    needs_all = model.regressor.kind == "mmap"
    for start in starts:
        with h5_reader(_part(folder, start)) as stream:
            for name in stream:
                values = h5_array(stream, name, finite=False, rows=_length(where, start))
                if name == "predicted" and not needs_all:
                    values = values[:, columns]
                whole.setdefault(name, []).append(values)
    found = {name: np.concatenate(parts) for name, parts in whole.items()}
    values = model.regressor.finish(found, title)
    values = values[:, columns] if needs_all else values
    if not np.isfinite(values).all():
        raise InputError(f"model {model.name}", "prediction", "is not finite",
                         "fit the model again")
    return Predicted(values.astype(np.float32), genes, found["distance"],
                     found["colour"].mean(axis=0), found["outside"])


def clear(folder: Path) -> None:
    """Delete the parts of a slide whose predictions are written."""
    artifacts.remove_tree(folder)
