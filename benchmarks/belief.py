# ruff: noqa: E402
"""Does what `make predict` says of itself hold? Interval of r, and tiles outside the distribution.

Every unit (study of the synthetic cohort, section of one patient on her2st) is left out in turn:
a model is fitted on the others, with what to expect of each gene from folds among them alone, and
predicts the sections that were left out.

- ``coverage``: share of genes whose found r lies in the stated 95 % interval.
- ``blurred``, ``restained``, ``foreign``: half of a section's tiles are blurred, stained otherwise
  or, ``foreign``, exchanged for tiles of noise and flat colour as no tissue has. Share of them that
  is marked as outside, and of the untouched rest; mean over genes of r, and squared error about the
  section's mean, of marked tiles and of all others.

    python benchmarks/belief.py --out DIR [--quick] [--her2st DIR]
"""

import argparse
import sys
import tempfile
from pathlib import Path

# numba asks for the package coverage, and would find the benchmark of that name beside this file.
sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).resolve().parent]

import numpy as np
import pandas as pd
from scipy import ndimage

from mvhlib import artifacts, cohort, encoders, features, lineage, notebook
from mvhlib.cohort.genes import normalize
from mvhlib.expression import evaluation
from mvhlib.expression.scores import dense, pearson
from mvhlib.prediction import keep, model
from mvhlib.tiles import cut, store

COLUMNS = ("what", "data", "held_out", "section", "n_genes", "n_tiles", "covered", "expected_r",
           "found_r", "marked_changed", "marked_rest", "r_marked", "r_rest", "mse_marked",
           "mse_rest")
RECIPE = {"source": "handmade", "weights": "", "options": {}, "seed": 0}


def blurred(tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus: a Gaussian of 4 px."""
    return ndimage.gaussian_filter(tiles, (0, 4, 4, 0))


def restained(tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Red and blue exchanged, and half as dense again."""
    return np.clip(255 - (255 - tiles[..., ::-1].astype(float)) * 1.5, 0, 255).astype(np.uint8)


def foreign(tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat colour with noise: ink, folds and dirt have no nuclei."""
    flat = rng.uniform(30, 220, (len(tiles), 1, 1, 3))
    return np.clip(flat + rng.normal(0, 12, tiles.shape), 0, 255).astype(np.uint8)


CHANGES = {"blurred": blurred, "restained": restained, "foreign": foreign}


def prepare(people: cohort.Cohort, run: notebook.Run, tile_um: float, tile_px: int) -> dict:
    """Tiles of every section in the run folder, and their features."""
    for section in people:
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=tile_um, tile_px=tile_px)
        store.write_tiles(run.path("tiles", f"{section.name}.h5"), tiles,
                          [str(name) for name in section.adata.obs_names])
    encoders.encode_folder(encoders.create_encoder("handmade"), run.path("tiles"),
                           run.path("features/handmade"))
    return features.read_folder(run.path("features/handmade"))


def leave_out(people: cohort.Cohort, run: notebook.Run, read: dict, protocol: str, unit: str,
              n_genes: int):
    """Unit -> the model that was fitted without it, and its sections."""
    groups: dict[str, list[str]] = {}
    for section in people:
        groups.setdefault(str(getattr(section, unit)), []).append(section.name)
    for left, sections in groups.items():
        others = people.subset([s.name for s in people if s.name not in sections])
        panels = evaluation.choose_panels(others, [protocol], ["hvg"], n_genes)
        (job,), _ = evaluation.jobs(others.manifest, [protocol], {"handmade": None})
        result = evaluation.evaluate(job, others, read, panels, controls=["none"],
                                     ceiling_splits=0)
        keep.keep(run, [result], others, read, panels, recipe=RECIPE)
        yield left, model.read(run.path("models/ridge/handmade")), sections


def truth(section: cohort.Section, genes: list[str], barcodes: list[str]) -> np.ndarray:
    adata = section.adata[barcodes]
    counts = adata.layers["counts"]
    own = dense(counts[:, adata.var_names.get_indexer(genes)])
    return normalize(own, "log1p_cp10k", np.asarray(counts.sum(axis=1)).ravel())


def rows_of(left: str, fitted: model.Model, section: cohort.Section, run: notebook.Run, data: str,
            rng: np.random.Generator) -> list[dict]:
    """Coverage of one section, and what each change does to it."""
    tiles = store.read_tiles(run.path("tiles", f"{section.name}.h5"))
    genes = list(fitted.genes["gene"])
    measured = truth(section, genes, tiles.barcodes)
    base = {"data": data, "held_out": left, "section": section.name, "n_genes": len(genes),
            "n_tiles": len(tiles)}

    def predict(img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X = fitted.encoder.encode(img, tile_mpp=tiles.mpp)
        return fitted.regressor.step(X)["predicted"], (
            fitted.domain.distance(X) > fitted.domain.bound)

    predicted, outside = predict(tiles.img)
    table = fitted.genes.assign(r=pearson(measured, predicted))
    known = table.dropna(subset=["r", "ci_low"])
    inside = known["r"].between(known["ci_low"], known["ci_high"])
    rows = [base | {"what": "coverage", "n_genes": len(known), "covered": inside.mean(),
                    "expected_r": known["expected_r"].mean(), "found_r": known["r"].mean(),
                    "marked_rest": outside.mean()}]
    for name, change in CHANGES.items():
        changed = rng.permutation(len(tiles)) < len(tiles) // 2
        img = tiles.img.copy()
        img[changed] = change(img[changed], rng)
        predicted, outside = predict(img)
        error = ((predicted - measured) - (predicted - measured)[~changed].mean(axis=0)) ** 2
        split = {}
        for kind, chosen in (("marked", outside), ("rest", ~outside)):
            enough = chosen.sum() >= 10
            split[f"r_{kind}"] = float(np.nanmean(pearson(
                measured[chosen], predicted[chosen]))) if enough else np.nan
            split[f"mse_{kind}"] = float(error[chosen].mean()) if enough else np.nan
        rows.append(base | {"what": name, "marked_changed": outside[changed].mean(),
                            "marked_rest": outside[~changed].mean()} | split)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="five studies instead of eight")
    parser.add_argument("--her2st", type=Path, help="that data set's folder, for patient C")
    options = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for data in ["synthetic"] + (["her2st"] if options.her2st else []):
            run = notebook.Run("belief", {"profile": data, "out": folder, "data": "", "seed": 0,
                                          "device": "cpu"})
            if data == "synthetic":
                people = cohort.read("synthetic", run.path("cohort"), seed=0, n_studies=5 if
                                     options.quick else 8, sections_per_patient=1)
                how = ("loso", "study", 100)
                read = prepare(people, run, 100.0, 64)
            else:
                people = cohort.read("her2st", options.her2st,
                                     sections=["C2", "C3", "C4", "C5"])
                how = ("section", "name", 785)
                read = prepare(people, run, 154.6, 224)
            for left, fitted, sections in leave_out(people, run, read, *how):
                for section in sections:
                    rows += rows_of(left, fitted, people[section], run, data, rng)
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    lineage.enter(artifacts.write_csv(options.out / "belief.csv", table), __file__)
    print(table.groupby(["data", "what"], sort=False).mean(numeric_only=True).drop(
        columns=["n_genes", "n_tiles"]).round(3).to_string())


if __name__ == "__main__":
    main()
