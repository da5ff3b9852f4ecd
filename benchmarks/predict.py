# ruff: noqa: E402
"""`make predict` on a large synthetic pyramid: peak memory, and tiles per second of the encoder.

A tiff of `--side` px a side (0.5 um/px, tiles of 512 px by JPEG, three levels) is drawn and for
each of `--encoders` (hand-made features, or a backbone with random weights) a model is fitted on a
small synthetic cohort, in a process of its own; so is the prediction. Baseline is the encoder alone
on tiles in memory; candidate is the prediction, from opening the slide to the last tile, and the
note says how long the files took then. The encoder is timed before the prediction and after it, in
the same process; its median counts. `peak_mb` is the largest resident size of the process until the
prediction ends, with all libraries in it.

    python benchmarks/predict.py --out DIR [--quick] [--side 60000] [--tile-um 256] [--memory]

`--memory` leaves the times empty: memory is the same beside other work, times are not.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# numba asks for the package coverage, and would find the benchmark of that name beside this file.
sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).resolve().parent]

import numpy as np
import pandas as pd
import tifffile
import torch

from mvhlib import artifacts, cohort, encoders, features, lineage, notebook
from mvhlib.expression import evaluation
from mvhlib.prediction import apply, keep, model, slides
from mvhlib.tiles import cut, store
from mvhlib.tiles.slides import open_slide

COLUMNS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
           "threads", "device", "dtype", "note")
SIDE, TILE, MPP = 512, 512, 0.5
#: Tiles that the encoder reads alone, and how often it does before the prediction and after it.
N_ALONE, REPEATS = 64, 3


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


def fit(folder: Path, tile_um: float, source: str) -> tuple[Path, np.ndarray]:
    """A model on the features of an encoder, and pixels to draw a slide from."""
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
    random = {} if source == "handmade" else {"weights": "random", "seed": 0}
    encoders.encode_folder(encoders.create_encoder(source, **random), run.path("tiles"),
                           run.path("features", source))
    read = features.read_folder(run.path("features", source))
    panels = evaluation.choose_panels(people, ["loso"], ["hvg"], 100)
    (job,), _ = evaluation.jobs(people.manifest, ["loso"], {source: None})
    result = evaluation.evaluate(job, people, read, panels, controls=["none"], ceiling_splits=0)
    keep.keep(run, [result], people, read, panels, recipe={
        "source": source, "weights": random.get("weights", ""), "options": {}, "seed": 0})
    image = people[next(iter(people.sections))].image()
    middle = image[image.shape[0] // 6:-image.shape[0] // 6, image.shape[1] // 6:]
    return run.path("models/ridge", source), np.tile(middle, (2, 2, 1))


def prepare(folder: Path, side: int, tile_um: float, source: str) -> None:
    """Model and slide, in a process of its own: what they take is not counted."""
    _, pattern = fit(folder, tile_um, source)
    (folder / "slides").mkdir()
    draw(folder / "slides/large.tif", side, pattern)


class Clock:
    """Prints what a prediction says of its progress, and knows when its last tile was read."""

    def __init__(self) -> None:
        self.began = self.reached = time.perf_counter()

    def report(self, line: str) -> None:
        print(line, flush=True)
        if "tiles/s" in line:
            self.reached = time.perf_counter()


def alone(fitted: model.Model, path: Path) -> list[float]:
    """Seconds per tile of the encoder on tiles in memory, once for each of `REPEATS`."""
    with open_slide(path, mpp=MPP) as slide:
        corners = np.random.default_rng(1).integers(0, slide.width // 2, (N_ALONE, 2))
        tiles = cut.cut_at(slide, corners, tile_um=fitted.tile_um, tile_px=fitted.tile_px)
    fitted.encoder.encode(tiles.img[:8], tile_mpp=tiles.mpp)  # warm
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        fitted.encoder.encode(tiles.img, tile_mpp=tiles.mpp)
        found.append((time.perf_counter() - began) / N_ALONE)
    return found


def measure(source: str, side: int, tile_um: float, memory: bool, out: Path) -> None:
    """One row: a slide predicted by a model on one encoder, and the encoder alone."""
    with tempfile.TemporaryDirectory() as folder:
        in_process(prepare, Path(folder), side, tile_um, source)
        path = Path(folder) / "slides/large.tif"
        fitted = model.read(Path(folder) / "runs/bench/models/ridge" / source)
        each = alone(fitted, path)
        clock = Clock()
        (outcome,) = apply.predict(slides.find(path, MPP), fitted, Path(folder) / "out",
                                   report=clock.report)
        files_s = time.perf_counter() - clock.reached
        whole_s = (clock.reached - clock.began) / max(outcome.n_tiles, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        each_s = float(np.median(each + alone(fitted, path)))
        size = path.stat().st_size / 1e6
    if memory:
        each_s = whole_s = np.nan
    row = {"what": f"slide of {side} px a side, {outcome.n_tiles} tiles, {source}",
           "baseline": "the encoder alone, s per tile", "candidate": "make predict, s per tile",
           "baseline_s": each_s, "candidate_s": whole_s, "ratio": each_s / whole_s, "peak_mb": peak,
           "threads": torch.get_num_threads(), "device": "cpu", "dtype": "float32",
           "note": f"file of {size:.0f} MB, {outcome.error or 'done'}; all files written"
           + ("" if memory else f", in {files_s:.0f} s")}
    print(row)
    artifacts.write_csv(out, pd.DataFrame([row])[list(COLUMNS)])


def in_process(function: Callable[..., None], *arguments: object) -> None:
    """Run a function in a fresh process; end with its exit code where it fails."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="8,000 px a side")
    parser.add_argument("--side", type=int, default=60_000)
    parser.add_argument("--tile-um", type=float, default=256.0)
    parser.add_argument("--encoders", nargs="+", default=["handmade", "vit12_small_patch16_256"])
    parser.add_argument("--memory", action="store_true", help="state no times")
    options = parser.parse_args()
    side = 8_000 if options.quick else options.side
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source in options.encoders:
            written = Path(folder) / f"{source}.csv"
            in_process(measure, source, side if source == "handmade" else side // 4,
                       options.tile_um, options.memory, written)
            rows.append(pd.read_csv(written))
    lineage.enter(artifacts.write_csv(options.out / "predict.csv", pd.concat(rows)), __file__)


if __name__ == "__main__":
    main()
