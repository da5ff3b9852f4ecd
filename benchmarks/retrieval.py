"""Retrieval of the 50 nearest spots: exact, and by an index, for galleries of 1e3 to 1e6.

Galleries are drawn from trained embeddings where `--embeddings` names a file of notebook
13_cmrcnet (``embeddings.npz``): a point and random weights over its ten nearest fellows, so that
the number of directions in which neighbours differ is kept, and with it how hard the search is.
Without a file a generator stands in: curved images of 12 dimensions in 256, with noise. The
intrinsic dimension of what was searched (TwoNN, Facco et al. 2017) is printed with every row.

Baseline is the exact search of `mvhlib.neighbours` in the same process, candidates its indices,
each tuned to recall 0.99, and a little more, on queries that are not measured. Times are taken in
turn, one query each. Rows tell apart: one query alone, median and 99th percentile; many at once,
per query; building the index, with the memory that it holds. Notes say the recall at 50 on the
measured queries, and by how much the mean correlation of predicted with true expression changes
against the exact search.

A kind of index that is slower than the exact search at two sizes in a row is left out at larger
ones: tuned to this recall it has nothing to skip.

Points that fill 256 dimensions evenly are the worst case: no index can skip much. They are shown,
without a target.

    python benchmarks/retrieval.py --out DIR [--quick] [--embeddings FILE] [--kinds cells ivf hnsw]
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mvhlib import lineage, neighbours
from mvhlib.artifacts import InputError, write_csv
from mvhlib.expression.scores import pearson

COLUMNS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
           "threads", "device", "dtype", "note")
K, WIDTH, LATENT, GENES = 50, 256, 12, 50
#: Asked of the tuning queries, so that the measured ones reach 0.99 in spite of chance.
TUNED = 0.994
FULL = {"sizes": (1_000, 10_000, 100_000, 1_000_000), "uniform": (100_000,), "single": 300,
        "batch": 512, "tune": 200}
QUICK = {"sizes": (1_000, 10_000, 50_000), "uniform": (10_000,), "single": 100, "batch": 128,
         "tune": 100}

#: Draws `n` of: ``"gallery"`` (vectors, expression) or ``"queries"`` (vectors, expression).
Source = Callable[[str, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def generated(seed: int = 0) -> Source:
    """Spots and images of one curved sheet; the images are a little beside their spots."""
    fixed = np.random.default_rng(seed)
    inner = fixed.normal(size=(LATENT, 4 * LATENT)).astype(np.float32) / LATENT**0.5
    outer = fixed.normal(size=(4 * LATENT, WIDTH)).astype(np.float32)
    genes = fixed.normal(size=(4 * LATENT, GENES)).astype(np.float32)

    def draw(what: str, n: int, rng: np.random.Generator):
        z = rng.normal(size=(n, LATENT)).astype(np.float32)
        seen = z + 0.1 * rng.normal(size=z.shape).astype(np.float32) * (what == "queries")
        vectors = np.tanh(seen @ inner) @ outer
        vectors += 0.02 * rng.standard_normal(vectors.shape, dtype=np.float32)
        expression = np.tanh(z @ inner) @ genes
        return vectors, expression + rng.standard_normal(expression.shape, dtype=np.float32) * 3

    return draw


def uniform(what: str, n: int, rng: np.random.Generator):
    """Directions evenly over all of space; expression means nothing there."""
    return (rng.standard_normal((n, WIDTH), dtype=np.float32),
            rng.standard_normal((n, 2), dtype=np.float32))


def resampled(path: Path, fellows: int = 10) -> Source:
    """Trained embeddings, each new point a random mixture of an old one and its fellows."""
    with np.load(path) as stream:
        if missing := {"spot", "image", "expression"} - set(stream.files):
            raise InputError(path, "arrays", f"lack {sorted(missing)}",
                             "take embeddings.npz of 13_cmrcnet")
        stored = {name: stream[name].astype(np.float32) for name in stream.files}
    near = {side: neighbours.build(stored[side]).search(stored[side], fellows + 1)[1]
            for side in ("spot", "image")}

    def draw(what: str, n: int, rng: np.random.Generator):
        side = "spot" if what == "gallery" else "image"
        vectors = np.empty((n, stored[side].shape[1]), np.float32)
        expression = np.empty((n, stored["expression"].shape[1]), np.float32)
        for start in range(0, n, 20_000):
            who = rng.integers(len(stored[side]), size=min(20_000, n - start))
            weights = rng.dirichlet(np.ones(fellows + 1), len(who)).astype(np.float32)
            part = slice(start, start + len(who))
            vectors[part] = np.einsum("nf,nfd->nd", weights, stored[side][near[side][who]])
            if what == "gallery":
                expression[part] = stored["expression"][who]
        if what == "queries":  # the truth of an image that is held out: its nearest spot's
            nearest = neighbours.build(stored["spot"]).search(vectors, 1)[1][:, 0]
            expression = stored["expression"][nearest]
        return vectors, expression

    return draw


def intrinsic_dimension(vectors: np.ndarray, rng: np.random.Generator, n: int = 1000) -> float:
    """TwoNN: how many directions there are near a point, by the ratio of its two nearest."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = rng.choice(len(unit), min(n, len(unit)), replace=False)
    rows = neighbours.build(unit).search(unit[asked], 3)[1]
    distance = np.linalg.norm(unit[asked][:, None].astype(np.float64) - unit[rows], axis=2)
    distance = np.sort(distance, axis=1)
    ratio = distance[:, 2] / distance[:, 1]
    kept = np.isfinite(ratio) & (distance[:, 1] > 1e-6)
    return float(kept.sum() / np.log(ratio[kept]).sum())


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def accuracy(index: neighbours.Index, queries: np.ndarray, stored: np.ndarray,
             truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Neighbours, and the mean correlation over genes of their mean expression with the truth."""
    rows = index.search(queries, K)[1]
    r = pearson(truth, np.stack([stored[chosen].mean(axis=0) for chosen in rows]))
    return rows, float(np.nanmean(r))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for retrieval.csv")
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute or two")
    parser.add_argument("--embeddings", type=Path, help="embeddings.npz of 13_cmrcnet")
    installed = importlib.util.find_spec("faiss") is not None
    parser.add_argument("--kinds", nargs="+", choices=neighbours.KINDS[1:],
                        default=["cells", "ivf", "hnsw"] if installed else ["cells"])
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    rows: list[dict] = []

    def add(what, kind, exact_s, index_s, note, memory=np.nan):
        rows.append({"what": what, "baseline": "exact (torch)", "candidate": kind,
                     "baseline_s": exact_s, "candidate_s": index_s, "ratio": exact_s / index_s,
                     "peak_mb": memory, "threads": torch.get_num_threads(), "device": "cpu",
                     "dtype": "float32", "note": note})
        lineage.enter(write_csv(options.out / "retrieval.csv",
                                pd.DataFrame(rows, columns=list(COLUMNS))), __file__)
        print(f"{what}, {kind}: exact {exact_s:.3g} s, index {index_s:.3g} s, "
              f"{exact_s / index_s:.1f} times ({note})", flush=True)

    known = ("resampled from trained embeddings", resampled(options.embeddings)) if (
        options.embeddings) else (f"generated in {LATENT} dimensions", generated())
    plan = [(*known, n) for n in size["sizes"]]
    plan += [("uniform worst case, no target", uniform, n) for n in size["uniform"]]
    behind: dict[tuple[str, str], int] = {}  # source and kind -> sizes in a row at which it lost
    for origin, draw, n in plan:
        rng = np.random.default_rng(n)
        vectors, stored = draw("gallery", n, rng)
        tuning, _ = draw("queries", size["tune"], rng)
        queries, truth = draw("queries", max(size["single"], size["batch"]), rng)
        about = (f"{origin}, {vectors.shape[1]} wide, intrinsic dimension "
                 f"{intrinsic_dimension(vectors, rng):.1f}")
        title = f"{'uniform, ' if draw is uniform else ''}{n} vectors"
        built = seconds(neighbours.build, vectors)
        exact = neighbours.build(vectors)
        single, batch = queries[:size["single"]], queries[:size["batch"]]
        truth_rows, exact_pcc = accuracy(exact, single, stored, truth[:len(single)])
        for kind in [kind for kind in options.kinds if behind.get((origin, kind), 0) < 2]:
            start = time.perf_counter()
            index = neighbours.build(vectors, kind)
            build_s = time.perf_counter() - start
            start = time.perf_counter()
            index.tune(tuning, K, TUNED)
            tune_s = time.perf_counter() - start
            found, pcc = accuracy(index, single, stored, truth[:len(single)])
            note = (f"recall@{K} {neighbours.recall(found, truth_rows):.4f}, change in PCC "
                    f"{pcc - exact_pcc:+.4f} from {exact_pcc:.4f}, effort {index.effort}; {about}")
            times = np.array([[seconds(each.search, query, K) for each in (exact, index)]
                              for query in single])  # in turn, so that drift hits both
            lost = np.median(times[:, 1]) > np.median(times[:, 0])
            behind[origin, kind] = behind.get((origin, kind), 0) + 1 if lost else 0
            for name, q in (("p50", 50), ("p99", 99)):
                add(f"{title}, one query, {name}", kind, *np.percentile(times, q, axis=0),
                    note)
            together = np.median([[seconds(each.search, batch, K) for each in (exact, index)]
                                  for _ in range(3)], axis=0) / len(batch)
            add(f"{title}, {len(batch)} queries at once, per query", kind, *together, note)
            add(f"{title}, building", kind, built, build_s,
                f"tuning {tune_s:.2f} s beside; exact holds {exact.nbytes / 2**20:.0f} MB; "
                f"{about}", index.nbytes / 2**20)


if __name__ == "__main__":
    main()
