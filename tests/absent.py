"""Small cohorts that lack something, and notebooks run on them cell by cell in this process.

`walk` runs a notebook as papermill does, without a kernel: seconds for what takes minutes there.
"""

import ast
import contextlib
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from mvhlib import notebook
from mvhlib.places import home

#: Sizes of a walk: as small as every notebook can bear.
SMALL = {
    "01_cohort": {"source": "visium", "n_genes": 8, "protocols": ["random10_section", "loso"]},
    "02_tiles": {"tile_px": 64}, "04_embed": {},
    "03_pretrain": {"encoder": "mvh", "backbone": "mvhybrid_micro_patch8_64", "steps": 2,
                    "batch": 8, "n_local": 2, "prototypes": 32, "koleo_group": 4, "save_every": 2},
    "05_expression": {"encoders": ["handmade"], "primary": [], "n_draws": 9},
    "06_spatial_maps": {"n_permutations": 9},
    "07_classification": {"datasets": ["tissue"], "encoders": ["handmade"], "n_folds": 3},
    "08_retrieval": {"encoders": ["handmade"], "depths": [1, 3], "n_hits": 3, "n_umap": 100},
    "09_survival": {"encoders": ["uni"], "endpoints": ["composition"], "n_folds": 3,
                    "n_permutations": 2, "n_prototypes": 3, "tile_components": 4,
                    "cox_components": 4},
    "10_frequency": {"backbones": ["mvhybrid"], "trained": [], "n_images": 4, "n_tokens": 16},
    "11_ablations": {"encoders": ["handmade"], "pairs": [], "stability_steps": 2,
                     "stability_grid": [{"lr_factor": [10], "depth": [2]}]},
    "12_mmap": {"encoder": "mvh", "source": "mvhybrid_micro_patch8_64", "weights": "random",
                "training": {"epochs": 1, "batch": 32, "lr": 0.002, "min_lr": 0.0002},
                "ablations": ["prototypes"], "ablation_folds": 1, "ablation_k": [4],
                "similarity_from": 0, "n_shown": 2},
    "13_cmrcnet": {"encoder": "mvh", "source": "mvhybrid_micro_patch8_64", "weights": "random",
                   "model": {"width": 8, "gene_hidden": 16}, "fit": {"epochs": 1, "lr": 1e-3},
                   "spots_per_section": 6, "k": 5, "ks": [3, 5], "mask_rates": [0.0, 0.5],
                   "ablation_epochs": 1, "transfer_epochs": 1},
    "14_leaderboard": {"encoders": ["handmade"]},
    "15_transfer": {"encoders": ["handmade"], "organs": {}},
    "16_predict": {"zarr": False, "synthetic": {"spots_per_side": 5, "n_genes_per_program": 2}},
    "17_frequency_theory": {"n_images": 4, "n_tokens": 16, "n_draws": 20},
    "18_embeddings": {"encoders": ["handmade"]},
    "19_genes": {}, "20_site": {"encoders": ["handmade"]},
}

#: Notebooks in the order in which one needs another.
ORDER = ("01_cohort", "02_tiles", "03_pretrain", "04_embed", "05_expression", "06_spatial_maps",
         "07_classification", "08_retrieval", "10_frequency", "11_ablations", "12_mmap",
         "13_cmrcnet", "14_leaderboard", "15_transfer", "16_predict",
         "17_frequency_theory", "18_embeddings", "19_genes", "20_site")


def walk(name: str, out: Path, **given) -> str:
    """Run every cell of a notebook; return what it printed.

    Its parameters are `SMALL`'s, then `given`. A notebook that ends early by ``SystemExit(0)`` has
    ended well, as for papermill.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    given = {"profile": "walk", "out": str(out)} | SMALL.get(name, {}) | given
    cells = [cell for cell in json.loads(
        (home() / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"]
    codes = ["".join(cell["source"]) for cell in cells]
    injected = "# Parameters\n" + "\n".join(f"{key} = {value!r}" for key, value in given.items())
    space = {"__name__": "__main__", "display": print, "In": [codes[0], injected]}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            for code in [codes[0], injected, *codes[1:]]:
                _run_cell(code, space)
                plt.close("all")
        except SystemExit as end:
            assert end.code in (0, None), end
        finally:
            plt.close("all")
            for path in list(notebook.execution._held):
                notebook.execution._release(path)
    assert (out / "runs" / given["profile"] / "provenance").glob(f"{name}*.json")
    return said.getvalue()


def _run_cell(code: str, space: dict) -> None:
    """Run a cell, and print what its last line is, as a notebook shows it."""
    body = ast.parse(code).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)
        if value is not None and not code.rstrip().endswith(";"):
            print(repr(value))


def visium(outs: Path, *, seed: int = 0, rows: int = 8, columns: int = 12, n_genes: int = 20,
           image: bool = True, constant: int = 0) -> None:
    """Space Ranger's output: spots 100 um apart, darker tissue where the first genes are high.

    The last `constant` genes have the same count in every spot.
    """
    (outs / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    row, column = (axis.ravel() for axis in np.mgrid[0:rows, 0:columns])
    kept = (row + column) % 2 == 0
    row, column = row[kept], column[kept]
    x, y = np.rint(column * 20 + 60).astype(int), np.rint(row * 20 * 3**0.5 + 60).astype(int)
    dark = np.sin(row / 2 + seed) + np.cos(column / 3)
    pd.DataFrame({
        "barcode": [f"ACGT{i:012d}-1" for i in range(len(row))], "in_tissue": 1,
        "array_row": row, "array_col": column, "pxl_row_in_fullres": y, "pxl_col_in_fullres": x,
    }).to_csv(outs / "spatial" / "tissue_positions.csv", index=False)
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps({
        "spot_diameter_fullres": 26.0, "tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 0.1}))
    if image:
        pixels = np.full((y.max() + 60, x.max() + 60, 3), 235.0)
        for at_x, at_y, shade in zip(x, y, dark, strict=True):
            pixels[at_y - 20:at_y + 20, at_x - 20:at_x + 20] = [200, 130 - 20 * shade, 170]
        pixels += rng.normal(0, 12, pixels.shape)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            outs / "spatial" / "tissue_hires_image.png")
    rate = np.exp(1 + 0.5 * dark[:, None] * (np.arange(n_genes) % 2))
    counts = rng.poisson(rate)
    counts[:, n_genes - constant:] = 3
    _write_10x(outs / "filtered_feature_bc_matrix.h5", counts)


def _write_10x(path: Path, counts: np.ndarray) -> None:
    matrix = sparse.csc_matrix(counts.T)
    n, n_genes = counts.shape
    with h5py.File(path, "w") as stream:
        group = stream.create_group("matrix")
        group["barcodes"] = np.array([f"ACGT{i:012d}-1" for i in range(n)], "S")
        group["data"], group["indices"] = matrix.data.astype(np.int32), matrix.indices
        group["indptr"], group["shape"] = matrix.indptr, np.array(matrix.shape)
        features = group.create_group("features")
        features["name"] = np.array([f"GENE{i}" for i in range(n_genes)], "S")
        features["id"] = np.array([f"ENSG{i:05d}" for i in range(n_genes)], "S")
        features["feature_type"] = np.array(["Gene Expression"] * n_genes, "S")
        features["genome"] = np.array(["GRCh38"] * n_genes, "S")


def people(folder: Path, who: list[tuple[str, str]], **options) -> Path:
    """A directory of Visium sections: `who` is (study, patient) of each; returns it.

    ``imageless``: indices of sections without an image.
    """
    imageless = options.pop("imageless", ())
    names = [f"S{number}" for number in range(len(who))]
    for number, name in enumerate(names):
        visium(folder / name / "outs", seed=number,
               **({"image": number not in imageless} | options))
    pd.DataFrame({"section": names, "study": [study for study, _ in who],
                  "patient": [patient for _, patient in who]}).to_csv(
        folder / "samples.csv", index=False)
    return folder


def label(cohort: Path, sections=None, classes: int = 2) -> None:
    """Write a pathologist's label into the sections of a run's cohort folder."""
    import anndata

    for path in sorted(cohort.glob("*.h5ad")):
        if sections is not None and path.stem not in sections:
            continue
        adata = anndata.read_h5ad(path)
        place = np.argsort(np.argsort(adata.obsm["spatial"][:, 0]))
        adata.obs["label"] = [f"class {int(rank * classes / len(place))}" for rank in place]
        adata.write_h5ad(path)


def trident(folder: Path, slides: list[str], *, n_tiles: int = 20, width: int = 8) -> None:
    """Features of slides as TRIDENT writes them, with no tiles beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in slides:
        with h5py.File(folder / f"{name}.h5", "w") as stream:
            stream["features"] = rng.normal(size=(1, n_tiles, width)).astype(np.float16)
            stream["coords"] = np.arange(2 * n_tiles).reshape(1, n_tiles, 2) * 256
            stream["coords"].attrs.update({
                "patch_size": 256, "patch_size_level0": 512, "target_magnification": 20,
                "level0_magnification": 40})


def slides(folder: Path, n: int = 24, *, sites: int = 6, events: bool = True,
           **columns) -> pd.DataFrame:
    """``slides.csv`` with one slide per patient."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({
        "slide": [f"s{i}" for i in range(n)], "patient": [f"P{i}" for i in range(n)],
        "site": [f"H{i % sites}" for i in range(n)], "age": rng.integers(40, 80, n),
        "sex": rng.choice(["male", "female"], n), "stage": rng.integers(1, 5, n),
        "time_months": (rng.exponential(30, n) + 0.1).round(1),
        "event": rng.integers(0, 2, n) * events}).assign(**columns)
    table.to_csv(folder / "slides.csv", index=False)
    return table


def images(folder: Path, classes: dict[str, int], side: int = 64) -> None:
    """Images of each class in a folder of its own, and nobody says who they are of."""
    rng = np.random.default_rng(0)
    for number, (name, n) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(n):
            pixels = rng.normal(150 + 30 * number, 25, (side, side, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
                folder / name / f"{name}{index}.png")
