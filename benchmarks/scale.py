# ruff: noqa: E402
"""How time and memory of each step grow with the data: tiles, spots, sections.

Every size is measured in a process of its own, after its libraries are loaded and its input is
made; `peak_mb` is what the process holds at most beyond that. The fixed cost is what a straight
line through the two smallest sizes has left at no data. `slope` is that of the logarithms of what
exceeds it, over the upper decade: 1 where ten times the data take ten times as long; the aim is
1.05.

============  =====================================================================================
step          what is done
============  =====================================================================================
embed         `encode_folder` on files of 1,000 tiles of 64 px, a micro ViT; `waits` is the share of
              time in which the encoder has no tile to read (aim: below 10 %)
ridge         moments of sections of 125 to 1,000 spots, 64 features, 20 genes; the penalty chosen
              by 8 inner folds; coefficients
scores        r, absolute and squared error of 20 genes in one section
Moran         the graph of one square array, Moran's I of 20 genes
map           one spatial map as a PNG
retrieval     50 nearest of 64 queries in a gallery of 128 numbers a spot, exact
sections      folds that leave out one study, and the table of means with their intervals, from
              scores of 20 genes a section
============  =====================================================================================

The last rows compute what HEST-1k (1,229 sections, 2.1 million spots) would take by these rates.

    python benchmarks/scale.py --out DIR [--quick]
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# numba asks for the package coverage, and would find the benchmark of that name beside this file.
sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).resolve().parent]

import numpy as np
import pandas as pd
import torch

from mvhlib import lineage
from mvhlib.artifacts import write_csv

COLUMNS = ("step", "unit", "n", "seconds", "fixed_s", "slope", "peak_mb", "waits", "threads",
           "note")
WIDTH, GENES, SECTION = 64, 20, 1_000
FULL = {"embed": (1_000, 10_000, 100_000), "ridge": (1_000, 10_000, 100_000, 1_000_000),
        "scores": (1_000, 10_000, 100_000, 1_000_000), "Moran": (1_000, 10_000, 100_000, 1_000_000),
        "map": (1_000, 10_000, 100_000, 1_000_000),
        "retrieval": (1_000, 10_000, 100_000, 1_000_000), "sections": (10, 100, 1_000)}
QUICK = {step: tuple(n // 10 for n in sizes[:3]) for step, sizes in FULL.items()} | {
    "sections": (10, 20, 40)}
UNIT = {"embed": "tiles", "sections": "sections"}
HEST_SPOTS, HEST_SECTIONS = 2_100_000, 1_229
#: What is timed; a dict that it returns replaces or adds to what is measured of it.
Task = Callable[[], object]


def embed(n: int, folder: Path) -> Task:
    """Tiles in files of `SECTION`, all with the same pixels: links to one file."""
    from mvhlib import encoders
    from mvhlib.tiles import store
    from mvhlib.tiles.cut import Tiles

    rng = np.random.default_rng(0)
    size = min(n, SECTION)
    tiles = Tiles(rng.integers(0, 256, (size, 64, 64, 3), np.uint8),
                  rng.integers(0, 50_000, (size, 2)), np.zeros(size, np.float32), 64, 32.0, 0.5,
                  0.5, [f"spot{i}" for i in range(size)])
    (folder / "tiles").mkdir()
    store.write_tiles(folder / "tiles/s0.h5", tiles)
    for number in range(1, n // size):
        os.link(folder / "tiles/s0.h5", folder / f"tiles/s{number}.h5")
    encoder = encoders.create_encoder("vit12_micro_patch8_64", weights="random", seed=0,
                                      device="cpu")
    encoder.encode(tiles.img[:32])

    def alone() -> float:
        began = time.perf_counter()
        encoder.encode(tiles.img)
        return (time.perf_counter() - began) / size

    def task() -> dict[str, float]:
        before, began = alone(), time.perf_counter()
        encoders.encode_folder(encoder, folder / "tiles", folder / "features")
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "waits": 1 - (before + alone()) / 2 * n / seconds}

    return task


def ridge(n: int, _folder: Path) -> Task:
    from mvhlib.expression import ridge as solver

    rng = np.random.default_rng(0)
    size = min(SECTION, n // 8)
    x = rng.standard_normal((size, WIDTH), dtype=np.float32)
    y = (x @ rng.standard_normal((WIDTH, GENES), dtype=np.float32)
         + rng.standard_normal((size, GENES), dtype=np.float32))

    def task() -> None:
        moments = solver.GroupMoments()
        for number in range(n // size):
            moments.add(number, x, y)
        units = {name: name % 8 for name in moments.groups}
        best = solver.choose_alpha(moments, units, solver.DEFAULT_ALPHAS).alpha
        solver.solve(moments, list(moments.groups), best)

    return task


def scores(n: int, _folder: Path) -> Task:
    from mvhlib.expression.scores import section_scores

    measured = np.random.default_rng(0).standard_normal((n, GENES))
    predicted = measured + np.random.default_rng(1).standard_normal((n, GENES))
    genes = [f"G{i}" for i in range(GENES)]
    return lambda: section_scores(measured, predicted, genes)


def _array(n: int) -> np.ndarray:
    """Centres of about `n` spots, 100 px apart on a square."""
    side = round(n**0.5)
    return 100.0 * np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)


def moran(n: int, _folder: Path) -> Task:
    from mvhlib.expression.spatial import morans_i
    from mvhlib.lattice import graph

    coords = _array(n)
    values = np.random.default_rng(0).standard_normal((len(coords), GENES))
    graph(_array(100), 4)  # its libraries
    return lambda: morans_i(values, graph(coords, 4))


def spatial_map(n: int, folder: Path) -> Task:
    import anndata
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from mvhlib import plots

    def draw(coords: np.ndarray) -> None:
        adata = anndata.AnnData(np.zeros((len(coords), 1), np.float32))
        adata.obsm["spatial"] = coords
        fig, ax = plt.subplots()
        plots.spatial_map(adata, coords[:, 0], ax)
        fig.savefig(folder / "map.png", dpi=150)
        plt.close(fig)

    draw(_array(100))
    return lambda: draw(_array(n))


def retrieval(n: int, _folder: Path) -> Task:
    from mvhlib import neighbours

    rng = np.random.default_rng(0)
    gallery, queries = (rng.standard_normal((k, 128), dtype=np.float32) for k in (n, 64))
    return lambda: neighbours.build(gallery).search(queries, 50)


def sections(n: int, _folder: Path) -> Task:
    from mvhlib import statistics
    from mvhlib.cohort import splits

    names = [f"s{i}" for i in range(n)]
    manifest = pd.DataFrame({"section": names, "study": [f"study{i % 5}" for i in range(n)],
                             "patient": [f"p{i % 5}.{i // 10}" for i in range(n)],
                             "specimen": names, "has_image": True, "mpp": 0.5})
    rows = manifest.loc[np.repeat(np.arange(n), GENES), ["section", "study", "patient"]]
    table = rows.assign(gene=[f"G{i}" for i in range(GENES)] * n, encoder="x",
                        pcc=np.random.default_rng(0).uniform(size=n * GENES))

    def task() -> None:
        splits.make(manifest, "loso")
        statistics.unit_table(table, "study", by=["encoder"])

    return task


STEPS = {"embed": embed, "ridge": ridge, "scores": scores, "Moran": moran, "map": spatial_map,
         "retrieval": retrieval, "sections": sections}


def measure(step: str, n: int, answer: Any) -> None:
    """Time one task in this process; the shortest of three runs where they are short."""
    with tempfile.TemporaryDirectory() as folder:
        task = STEPS[step](n, Path(folder))
        before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        while not found or (sum(found) < 2 and len(found) < 3 and step != "embed"):
            began = time.perf_counter()
            said = task()
            found.append(time.perf_counter() - began)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        answer.put({"seconds": min(found), "peak_mb": peak} | (
            said if isinstance(said, dict) else {}))


def apart(step: str, n: int) -> dict[str, Any]:
    """What `measure` finds in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=measure, args=(step, n, answer))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)
    return answer.get()


def fixed_cost(n: list[int], seconds: list[float]) -> float:
    """What a line through the two smallest sizes has left at no data [s], from 0 to the least."""
    each = (seconds[1] - seconds[0]) / (n[1] - n[0])
    return min(max(0.0, seconds[0] - each * n[0]), *seconds)


def slope(n: list[int], seconds: list[float]) -> float:
    """Of the logarithms of what exceeds the fixed cost, over the two largest sizes."""
    fixed = fixed_cost(n, seconds)
    below, above = (max(s - fixed, 1e-9) for s in seconds[-2:])
    return float(np.log(above / below) / np.log(n[-1] / n[-2]))


def hest(table: pd.DataFrame) -> list[dict[str, Any]]:
    """HEST-1k by the rate of the largest size of each step [s]."""
    rows = []
    for step, own in table.groupby("step", sort=False):
        last = own.iloc[-1]
        wanted = HEST_SECTIONS if step == "sections" else HEST_SPOTS
        rows.append({"step": f"{step}, HEST-1k", "unit": last["unit"], "n": wanted,
                     "seconds": last["fixed_s"] + (last["seconds"] - last["fixed_s"]) * wanted
                     / last["n"], "threads": last["threads"],
                     "note": "computed from the row of the largest size"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for scale.csv")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes, a minute")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for step, sizes in (QUICK if options.quick else FULL).items():
        own: list[dict[str, Any]] = []
        for n in sizes:
            own.append({"step": step, "unit": UNIT.get(step, "spots"), "n": n,
                        "threads": torch.get_num_threads()} | apart(step, n))
            seen = [row["n"] for row in own], [row["seconds"] for row in own]
            if len(own) > 1:
                own[-1]["fixed_s"] = fixed_cost(*seen)
            if len(own) > 2:
                own[-1]["slope"] = slope(*seen)
            print({key: round(value, 4) if isinstance(value, float) else value
                   for key, value in own[-1].items()}, flush=True)
            lineage.enter(write_csv(options.out / "scale.csv",
                                    pd.DataFrame(rows + own, columns=list(COLUMNS))), __file__)
        rows += own
    rows += hest(pd.DataFrame(rows))
    lineage.enter(write_csv(options.out / "scale.csv",
                            pd.DataFrame(rows, columns=list(COLUMNS))), __file__)


if __name__ == "__main__":
    main()
