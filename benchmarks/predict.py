# ruff: noqa: E402
"""`make predict` on a large synthetic pyramid: peak memory, and tiles per second of the encoder.

A tiff of `--side` px a side (0.5 um/px, tiles of 512 px by JPEG, three levels) is drawn and a model
of hand-made features is fitted on a small synthetic cohort, both in a process of their own; the
slide is predicted in this one. Baseline is the encoder alone on tiles in memory; candidate is the
prediction, from opening the slide to the last tile, and the note says how long the files took then.
Both are timed side by side: about once a minute the prediction pauses while the encoder reads
`PAUSE` tiles, and these pauses are taken off the candidate's time. `peak_mb` is the largest
resident size of this process, with all libraries in it.

    python benchmarks/predict.py --out DIR [--quick] [--side 60000] [--tile-um 256] [--memory]

`--memory` leaves the times empty: memory is the same beside other work, times are not.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# numba asks for the package coverage, and would find the benchmark of that name beside this file.
sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).resolve().parent]

import numpy as np
import pandas as pd
import tifffile
import torch

from mvhlib import artifacts, cohort, encoders, features, notebook
from mvhlib.expression import evaluation
from mvhlib.prediction import apply, keep, model, slides
from mvhlib.tiles import cut, store
from mvhlib.tiles.slides import open_slide

COLUMNS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
           "threads", "device", "dtype", "note")
SIDE, TILE, MPP = 512, 512, 0.5
#: Tiles that the encoder reads alone in one pause, and the time between two pauses [s].
PAUSE, EVERY_S = 64, 60.0


def draw(path: Path, side: int, pattern: np.ndarray) -> None:
    """A pyramid whose every tile is a piece of `pattern`, turned and shifted."""
    rng = np.random.default_rng(0)

    def tiles(n: int) -> Iterator[np.ndarray]:
        for _ in range(n):
            y, x = rng.integers(0, pattern.shape[0] - SIDE, 2)
            yield np.ascontiguousarray(np.rot90(pattern[y:y + SIDE, x:x + SIDE],
                                                rng.integers(4)))

    with tifffile.TiffWriter(path, bigtiff=True) as stream:
        for level, factor in enumerate((1, 4, 16)):
            px = max(SIDE, side // factor)
            n = (-(-px // SIDE)) ** 2
            stream.write(tiles(n), shape=(px, px, 3), dtype=np.uint8, tile=(SIDE, SIDE),
                         photometric="rgb", compression="jpeg", compressionargs={"level": 85},
                         subfiletype=1 if level else 0, metadata=None)


def fit(folder: Path, tile_um: float) -> tuple[Path, np.ndarray]:
    """A model of hand-made features, and pixels to draw a slide from."""
    run = notebook.Run("predict", {"profile": "bench", "out": str(folder), "data": "", "seed": 0,
                                   "device": "cpu"})
    people = cohort.read("synthetic", run.path("cohort"), seed=0, n_studies=3, mpp=MPP,
                         tile_px=TILE // 4, patients_per_study=1, sections_per_patient=1,
                         spots_per_side=8)
    for section in people:
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=tile_um, tile_px=128)
        store.write_tiles(run.path("tiles", f"{section.name}.h5"), tiles,
                          [str(name) for name in section.adata.obs_names])
    encoders.encode_folder(encoders.create_encoder("handmade"), run.path("tiles"),
                           run.path("features/handmade"))
    read = features.read_folder(run.path("features/handmade"))
    panels = evaluation.choose_panels(people, ["loso"], ["hvg"], 100)
    (job,), _ = evaluation.jobs(people.manifest, ["loso"], {"handmade": None})
    result = evaluation.evaluate(job, people, read, panels, controls=["none"], ceiling_splits=0)
    keep.keep(run, [result], people, read, panels, recipe={
        "source": "handmade", "weights": "", "options": {}, "seed": 0})
    image = people[next(iter(people.sections))].image()
    middle = image[image.shape[0] // 6:-image.shape[0] // 6, image.shape[1] // 6:]
    return run.path("models/ridge/handmade"), np.tile(middle, (2, 2, 1))


def prepare(folder: Path, side: int, tile_um: float) -> None:
    """Model and slide, in a process of its own: what they take is not counted."""
    _, pattern = fit(folder, tile_um)
    (folder / "slides").mkdir()
    draw(folder / "slides/large.tif", side, pattern)


class Alone:
    """The encoder alone, timed in pauses of a prediction."""

    def __init__(self, fitted: model.Model, path: Path):
        with open_slide(path, mpp=MPP) as slide:
            corners = np.random.default_rng(1).integers(0, slide.width // 2, (PAUSE, 2))
            self.tiles = cut.cut_at(slide, corners, tile_um=fitted.tile_um, tile_px=fitted.tile_px)
        self.encoder, self.seconds = fitted.encoder, []
        self.last, self.reached = -EVERY_S, time.perf_counter()
        self.encoder.encode(self.tiles.img, tile_mpp=self.tiles.mpp)  # warm

    def report(self, line: str) -> None:
        """What a prediction says of its progress; now and then it waits here."""
        print(line, flush=True)
        if "tiles/s" not in line:
            return
        self.reached = time.perf_counter()  # the last such line comes with the last tile
        if self.reached - self.last > EVERY_S:
            began = self.reached
            self.encoder.encode(self.tiles.img, tile_mpp=self.tiles.mpp)
            self.last = time.perf_counter()
            self.seconds.append(self.last - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="8,000 px a side")
    parser.add_argument("--side", type=int, default=60_000)
    parser.add_argument("--tile-um", type=float, default=256.0)
    parser.add_argument("--memory", action="store_true", help="state no times")
    options = parser.parse_args()
    side = 8_000 if options.quick else options.side
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(
            target=prepare, args=(Path(folder), side, options.tile_um))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(maker.exitcode)
        path = Path(folder) / "slides/large.tif"
        fitted = model.read(Path(folder) / "runs/bench/models/ridge/handmade")
        alone = Alone(fitted, path)
        began = time.perf_counter()
        (outcome,) = apply.predict(slides.find(path, MPP), fitted, Path(folder) / "out",
                                   report=alone.report)
        files_s = time.perf_counter() - alone.reached
        pauses = alone.seconds[:-1] if alone.last > alone.reached else alone.seconds
        whole = (alone.reached - began - sum(pauses)) / max(outcome.n_tiles, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = path.stat().st_size / 1e6
    each = float(np.median(alone.seconds or [np.nan])) / PAUSE
    if options.memory:
        each = whole = np.nan
    row = {"what": f"slide of {side} px a side, {outcome.n_tiles} tiles",
           "baseline": "the encoder alone, s per tile", "candidate": "make predict, s per tile",
           "baseline_s": each, "candidate_s": whole, "ratio": each / whole, "peak_mb": peak,
           "threads": torch.get_num_threads(), "device": "cpu", "dtype": "float32",
           "note": f"file of {size:.0f} MB, {outcome.error or 'done'}; all files written"
           + ("" if options.memory else f", in {files_s:.0f} s; encoder alone in "
              f"{len(alone.seconds)} pauses")}
    artifacts.write_csv(options.out / "predict.csv", pd.DataFrame([row])[list(COLUMNS)])
    print(row)


if __name__ == "__main__":
    main()
