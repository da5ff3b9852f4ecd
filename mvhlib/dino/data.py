"""Tiles to pretrain on, read when they are needed: h5 files, folders of images, whole slides.

==========================  ====================================================================
what lies in the folder     what a sample is
==========================  ====================================================================
``*.h5`` with `img`         one row (our tiles, or a patch file of HEST)
images of the tile's size   one image
larger images               one window of a grid without overlap
whole slides                one tile of a grid over the tissue, cut when it is read
==========================  ====================================================================

Folders are searched recursively, through links too. Which sample comes when is a function of (seed,
position in the run), so resuming needs to remember no more than the step.
"""

import contextlib
import fnmatch
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from mvhlib.artifacts import InputError, reading, safe_name, sha256_of
from mvhlib.tables import read_rows
from mvhlib.tiles.slides import TIFF, WHOLE_SLIDE, Slide
from mvhlib.training import keyed_generator

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Names of the column of a manifest that names the file, and of the one that names the patient.
FILE_COLUMNS, PATIENT_COLUMNS = ("section", "image", "file"), ("patient", "patient_id")


class _Part:
    """Tiles of one file. `name` is the section; `side` the tiles' side [px]."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self.n_tiles, self.side = 0, 0
        self._opened: tuple[int, object] | None = None

    def handle(self) -> object:
        """The open file; every process opens its own."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self.open())
        return self._opened[1]

    def open(self) -> object:
        raise NotImplementedError

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Tiles `(n, S, S, 3)` uint8 at `rows`, in their order."""
        raise NotImplementedError

    def identity(self) -> list:
        """Identity of this file, which distinguishes it from another of the same name."""
        return [self.name, self.n_tiles, self.path.stat().st_size]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}


class _H5Tiles(_Part):
    def __init__(self, path: Path, name: str):
        super().__init__(path, name)
        from mvhlib.tiles.store import open_tiles

        # The scale plays no part here, so a file that does not state it will do.
        with open_tiles(path, tile_um=1.0) as (head, img):
            self.n_tiles, self.side = head.n_tiles, int(img.shape[1])

    def open(self) -> object:
        import h5py

        return h5py.File(self.path, "r")

    def read(self, rows: np.ndarray) -> np.ndarray:
        with reading(self.path, "img", fix="it is probably truncated: make it again"):
            img = self.handle()["img"]
            return np.stack([img[int(row)] for row in rows])

    def identity(self) -> list:
        from mvhlib.artifacts import read_attr

        return [*super().identity(), read_attr(self.path, "key") or ""]


class _Image(_Part):
    def __init__(self, path: Path, name: str, tile_px: int):
        super().__init__(path, name)
        with self._opened_image() as image:
            width, height = image.width, image.height
        self.side = tile_px or min(width, height)
        self.columns, self.rows = width // self.side, height // self.side
        self.n_tiles = self.columns * self.rows
        if not self.n_tiles:
            raise InputError(path, "size", f"is {width} x {height} px, less than a tile of "
                             f"{tile_px} px", "set a smaller tile_px, or leave the file out")

    @contextlib.contextmanager
    def _opened_image(self) -> Iterator[Slide]:
        from mvhlib.tiles.slides import open_slide

        try:
            with open_slide(self.path) as image:
                yield image
        except InputError as error:
            raise InputError(error.where, error.field, error.problem,
                             f"{error.fix}; or set on_bad=skip") from error

    def read(self, rows: np.ndarray) -> np.ndarray:
        # Decoded for each batch and forgotten: a folder is larger than memory.
        with self._opened_image() as image:
            pixels, _ = image.region(0, 0, image.width, image.height)
        side = self.side
        corners = [(int(row) // self.columns * side, int(row) % self.columns * side)
                   for row in rows]
        return np.stack([pixels[y:y + side, x:x + side] for y, x in corners])


class _WholeSlide(_Part):
    def __init__(self, path: Path, name: str, tile_px: int, tile_um: float):
        super().__init__(path, name)
        from mvhlib.tiles import cut

        if not tile_px or not tile_um:
            raise InputError(path, "tile_px, tile_um", "are needed to tile a slide",
                             "set both, for example tile_px=256 tile_um=128")
        self.side, self.tile_um = tile_px, tile_um
        slide = self.handle()
        self.corners = cut.grid_corners(slide, tile_um=tile_um, tile_px=tile_px,
                                        mask=cut.tissue_mask(slide))
        self.n_tiles = len(self.corners)

    def open(self) -> object:
        from mvhlib.tiles.slides import open_slide

        return open_slide(self.path)

    def read(self, rows: np.ndarray) -> np.ndarray:
        from mvhlib.tiles import cut

        return cut.cut_at(self.handle(), self.corners[rows], tile_um=self.tile_um,
                          tile_px=self.side).img


class TileSource(Dataset):
    """Tiles of a folder, a file or several of them, all of one size.

    Parameters
    ----------
    path
        A file, or a folder that is searched recursively.
    tile_px
        Side of a tile [px]; 0 takes that of the files.
    tile_um
        Side of a tile on the tissue [µm]; for whole slides.
    sections
        Use only files of these names (without ending), where ``*`` stands for anything; empty uses
        all.
    exclude
        Leave these out, for example the sections that a model will be tested on; as in `sections`.
    manifest
        A csv that says patient and study of each section (columns section or image, patient or
        patient_id, and study).
    study
        Of all files, where no manifest says it.
    on_bad
        ``"raise"``, or ``"skip"``: an unreadable file is reported and left out, an unreadable
        tile is reported and the next one taken.

    Raises
    ------
    InputError
        If nothing is found, a file is unreadable, tiles differ in size, or a name in `sections`
        or `exclude` is not there.
    """

    def __init__(self, path: str | os.PathLike, *, tile_px: int = 0, tile_um: float = 0.0,
                 sections: Sequence[str] = (), exclude: Sequence[str] = (),
                 manifest: str | os.PathLike = "", study: str = "", on_bad: str = "raise"):
        self.path, self.on_bad = Path(path), on_bad
        if on_bad not in ("raise", "skip"):
            raise InputError(path, "on_bad", f"is {on_bad!r}", "choose raise or skip")
        files = _files(self.path)
        named = {}
        for file in files:
            named.setdefault(_section_name(self.path, file, files), []).append(file)
        for field, wanted in (("sections", sections), ("exclude", exclude)):
            missing = sorted(pattern for pattern in set(wanted) if not _matching(named, [pattern]))
            if missing:
                raise InputError(self.path, field, f"{missing} are not there; there are "
                                 f"{sorted(named)[:8]}", "name files without their ending")
        self.skipped: list[str] = []
        kept = _matching(named, sections or ["*"]) - _matching(named, exclude)
        wanted = [(file, name) for name in sorted(kept) for file in named[name]]
        self.parts: list[_Part] = []
        # Opening many small files is waiting for a disk.
        with ThreadPoolExecutor(8) as pool:
            opened = pool.map(lambda one: _part_or_error(*one, tile_px, tile_um), wanted)
            for part in opened:
                if isinstance(part, InputError):
                    self._bad(part)
                else:
                    self.parts.append(part)
        if not self.parts:
            raise InputError(self.path, "tiles", "no tile is left to train on",
                             "check sections, exclude and the files themselves")
        sides = {part.side: part for part in self.parts}
        if len(sides) > 1 or (tile_px and tile_px not in sides):
            first, *rest = sorted(sides)
            other = rest[0] if rest else tile_px
            raise InputError(sides[first].path, "tile size", f"is {first} px, elsewhere {other} px",
                             "cut all tiles alike, or set tile_px for images")
        self.tile_px = next(iter(sides))
        self.starts = np.cumsum([0, *(part.n_tiles for part in self.parts)])
        self.saw = _provenance([part.name for part in self.parts], manifest, study)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def identity(self) -> str:
        """Hash over names, sizes and keys of the files (not over their pixels)."""
        return sha256_of([part.identity() for part in self.parts])

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        """Tiles `(n, S, S, 3)` uint8; each file is read once for all of its tiles."""
        indices = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(indices), self.tile_px, self.tile_px, 3), dtype=np.uint8)
        owner = np.searchsorted(self.starts, indices, side="right") - 1
        for number in np.unique(owner):
            rows = np.flatnonzero(owner == number)
            try:
                out[rows] = self.parts[number].read(indices[rows] - self.starts[number])
            except InputError as error:
                self._bad(error)
                # Tiles of the files behind this one, the same for every process and every run.
                behind = (self.starts[number + 1] + np.arange(len(rows))) % len(self)
                out[rows] = self._elsewhere(behind, tried={int(number)})
        return out

    def _elsewhere(self, indices: np.ndarray, tried: set[int]) -> np.ndarray:
        """Tiles from the first readable file at or after each index."""
        tiles = []
        for index in indices.tolist():
            seen = set(tried)
            while True:
                number = int(np.searchsorted(self.starts, index, side="right") - 1)
                if number in seen:
                    raise InputError(self.path, "tiles", "no readable file is left",
                                     "replace the broken files")
                try:
                    tiles.append(self.parts[number].read(
                        np.array([index - self.starts[number]]))[0])
                    break
                except InputError as error:
                    self._bad(error)
                    seen.add(number)
                    index = int(self.starts[number + 1]) % len(self)
        return np.stack(tiles)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.__getitems__([index])[0]

    def _bad(self, error: InputError) -> None:
        if self.on_bad == "raise":
            raise error
        if error.where not in self.skipped:
            self.skipped.append(error.where)
            print(f"skipped: {error}", file=sys.stderr)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} files skipped" if self.skipped else ""
        return (f"TileSource: {len(self)} tiles of {self.tile_px} px in {len(self.parts)} files"
                f"{skipped}")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(path, "tiles", "does not exist", "name a folder or a file of tiles")
    known = (".h5", ".hdf5", *IMAGES, *TIFF, *WHOLE_SLIDE)
    found = []
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        found += [Path(folder, name) for name in sorted(names)
                  if name.lower().endswith(known) and not name.startswith(".")]
    if not found:
        raise InputError(path, "tiles", "holds no tile file, image or slide",
                         f"put files here that end in one of {', '.join(known[:8])}, ...")
    return found


def _section_name(root: Path, file: Path, files: Sequence[Path]) -> str:
    """The file's name without ending; with its folder where that alone names several files."""
    return file.stem if len(files) == 1 or not root.is_dir() else (
        file.relative_to(root).with_suffix("").as_posix())


def _matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    return {name for name in names for p in patterns if name == p or fnmatch.fnmatchcase(name, p)}


def _part_or_error(file: Path, name: str, tile_px: int, tile_um: float) -> _Part | InputError:
    try:
        return _part(file, name, tile_px, tile_um)
    except InputError as error:
        return error


def _part(file: Path, name: str, tile_px: int, tile_um: float) -> _Part:
    ending = file.suffix.lower()
    if ending in (".h5", ".hdf5"):
        return _H5Tiles(file, name)
    if ending in WHOLE_SLIDE or (ending in TIFF and tile_um):
        return _WholeSlide(file, name, tile_px, tile_um)
    return _Image(file, name, tile_px)


def _provenance(names: Sequence[str], manifest: str | os.PathLike,
                study: str) -> dict[str, list[str]]:
    """Sections, patients and studies of the files that are used."""
    sections = sorted(set(names))
    patients, studies = set(), {study} if study else set()
    if manifest:
        path = Path(manifest)
        columns, lines, _ = read_rows(path)
        rows = [dict(zip(columns, cells, strict=True)) for _, cells in lines]
        key = next((c for c in FILE_COLUMNS if c in columns), None)
        person = next((c for c in PATIENT_COLUMNS if c in columns), None)
        if key is None or person is None:
            raise InputError(path, "columns", f"are {columns}", "give section (or image) and "
                             "patient (or patient_id)")
        known: dict[str, dict[str, str]] = {}
        for row in rows:
            name = _without_ending(row[key])
            other = known.setdefault(name, row)
            if other[person] != row[person] or other.get("study") != row.get("study"):
                raise InputError(path, key, f"{name!r} has two patients or studies",
                                 "keep one row for each file")
        missing = [name for name in sections if name.rsplit("/", 1)[-1] not in known]
        if missing:
            raise InputError(path, key, f"does not list {missing[:3]}",
                             "add a row for every file, so that overlap with a test can be seen")
        for name in sections:
            row = known[name.rsplit("/", 1)[-1]]
            patients.add(safe_name(row[person], path, person))
            if row.get("study"):
                studies.add(safe_name(row["study"], path, "study"))
    return {"sections": sections, "patients": sorted(patients), "studies": sorted(studies)}


def _without_ending(name: str) -> str:
    """A file's name without the ending of an image; dots within a section's name stay."""
    base = name.rsplit("/", 1)[-1]
    endings = (".h5", *IMAGES, *TIFF, *WHOLE_SLIDE)
    return base.rsplit(".", 1)[0] if base.lower().endswith(endings) else base


def sample_order(n_tiles: int, seed: int, first: int, n: int) -> np.ndarray:
    """Indices of the tiles at positions `first` to `first + n` of an endless shuffled stream.

    Every pass over the tiles has its own permutation, keyed by (seed, pass).
    """
    out = np.empty(n, dtype=np.int64)
    position, filled = first, 0
    while filled < n:
        epoch, offset = divmod(position, n_tiles)
        take = min(n - filled, n_tiles - offset)
        order = _permutation(n_tiles, seed, epoch)
        out[filled:filled + take] = order[offset:offset + take]
        position, filled = position + take, filled + take
    return out


_last_permutation: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(n_tiles: int, seed: int, epoch: int) -> np.ndarray:
    key = (n_tiles, seed, epoch)
    if key not in _last_permutation:
        _last_permutation.clear()
        rng = keyed_generator(seed, epoch, stream="order")
        _last_permutation[key] = rng.permutation(n_tiles)
    return _last_permutation[key]


class BatchOrder:
    """For each micro-batch from `first_step` on, the tiles that one process reads.

    The global batch of a step is cut into micro-batches, and each of those into one piece per
    process: sample `i` of the batch belongs to micro-batch ``i // (micro_batch * n_processes)``.

    Parameters
    ----------
    n_tiles, seed
        Of the source.
    batch, micro_batch
        Images per step; images at once in one process.
    rank, n_processes
        Of this process.
    first_step, n_steps
        Steps to serve, the last one excluded.
    """

    def __init__(self, n_tiles: int, seed: int, batch: int, micro_batch: int, rank: int,
                 n_processes: int, first_step: int, n_steps: int):
        self.n_tiles, self.seed, self.batch = n_tiles, seed, batch
        self.micro_batch, self.rank, self.n_processes = micro_batch, rank, n_processes
        self.steps = range(first_step, n_steps)

    @property
    def n_micro(self) -> int:
        """Micro-batches per step."""
        return self.batch // (self.micro_batch * self.n_processes)

    def positions(self, micro: int) -> np.ndarray:
        """Positions in the global batch of this process's micro-batch `micro`, `(B,)`."""
        first = (micro * self.n_processes + self.rank) * self.micro_batch
        return np.arange(first, first + self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            tiles = sample_order(self.n_tiles, self.seed, step * self.batch, self.batch)
            for micro in range(self.n_micro):
                yield tiles[self.positions(micro)].tolist()

    def __len__(self) -> int:
        return len(self.steps) * self.n_micro
