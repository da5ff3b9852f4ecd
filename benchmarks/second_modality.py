"""Does CMRCNet pair images with something other than genes? A table in ``obsm``, synthetic.

The synthetic cohort is written as somebody else's AnnData files with a second modality in
``obsm["protein"]``: counts of antibodies, two for each cause that tissue shows (the share of a
tissue class, the density of nuclei) and six that follow nothing. The cohort is read again by
``cohort.read("h5ad", folder, obsm="protein")``, as ``options: {obsm: protein}`` of 01_cohort does,
and every study is left out in turn: CMRCNet, the same without reconstruction (BLEEP) and ridge, on
one set of frozen tokens of an untrained ViT. Beside it stand the same systems on the genes of the
same spots, and ridge with exchanged features.

Rows: mean Pearson r of what a cause drives (``visible``) and of what none does (``none``), with
Student's t interval over studies, and CMRCNet less BLEEP and less ridge, paired by study. Counts
are divided by their sum over a spot, as genes are: of eighteen antibodies twelve drive that sum, so
that those which follow nothing fall where the others rise, and are not at zero.

    python benchmarks/second_modality.py --out DIR [--quick]
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mvhlib import cohort, encoders, lineage, statistics
from mvhlib.artifacts import write_csv
from mvhlib.cohort import synthetic
from mvhlib.expression import cmrcnet, evaluation
from mvhlib.tiles import cut, store

ENCODER, TILE_UM, TILE_PX = "vit12_micro_patch8_64", 100.0, 64  # as in 02_tiles and 04_embed
CAUSES = (*synthetic.CLASSES, "density")
PER_CAUSE, WITHOUT_CAUSE = 2, 6
#: Mean count of an antibody, and change of its log-rate by a standard deviation of its cause.
DEPTH, EFFECT = 40.0, 0.5
FULL = {"cohort": {}, "epochs": 60, "k": 50}
QUICK = {"cohort": {"n_studies": 3, "sections_per_patient": 1, "spots_per_side": 6,
                    "n_genes_per_program": 2}, "epochs": 2, "k": 5}


def antibodies(truth: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Counts of every antibody in every spot of one section, Poisson around its rate."""
    columns = {}
    for cause in CAUSES:
        for number in range(PER_CAUSE):
            columns[f"{cause}-{number + 1}"] = truth[f"cause_{cause}"].to_numpy()
    for number in range(WITHOUT_CAUSE):
        columns[f"none-{number + 1}"] = np.zeros(len(truth))
    rates = {name: DEPTH * np.exp(EFFECT * cause) for name, cause in columns.items()}
    return pd.DataFrame({name: rng.poisson(rate) for name, rate in rates.items()},
                        index=truth.index)


def write_files(people: cohort.Cohort, painted: Path, folder: Path, seed: int) -> None:
    """The cohort as another laboratory would hand it over: h5ad with obsm, images, samples.csv."""
    import anndata

    scales = {}
    truth = {s.name: anndata.read_h5ad(painted / "truth" / f"{s.name}.h5ad").obs for s in people}
    for cause in CAUSES:  # of one scale, over the cohort: shares lie between 0 and 1
        every = np.concatenate([each[f"cause_{cause}"] for each in truth.values()])
        scales[cause] = every.mean(), every.std()
    folder.mkdir(parents=True)
    rows = []
    for number, section in enumerate(people):
        standard = truth[section.name].copy()
        for cause, (mean, sd) in scales.items():
            standard[f"cause_{cause}"] = (standard[f"cause_{cause}"] - mean) / sd
        own = section.adata
        anndata.AnnData(
            X=own.layers["counts"].copy(), obs=own.obs[[]].copy(), var=own.var[[]].copy(),
            obsm={"spatial": own.obsm["spatial"], "protein": antibodies(
                standard, np.random.default_rng([seed, number]))}
        ).write_h5ad(folder / f"{section.name}.h5ad")
        image = f"{section.name}.png"
        shutil.copy(painted / "images" / image, folder / image)
        rows.append({"section": section.name, "study": section.study, "patient": section.patient,
                     "image": image, "mpp": section.mpp})
    write_csv(folder / "samples.csv", pd.DataFrame(rows))


def tokens(people: cohort.Cohort, folder: Path) -> dict:
    """Tiles of every section, and the tokens that an untrained ViT makes of them."""
    for section in people:
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=TILE_UM, tile_px=TILE_PX)
        store.write_tiles(folder / "tiles" / f"{section.name}.h5", tiles,
                          list(section.adata.obs_names))
    encoder = encoders.create_encoder(ENCODER, weights="random", seed=0, device="cpu")
    return cmrcnet.inputs("tokens", encoder, folder, [section.name for section in people])


def evaluate(people: cohort.Cohort, images: dict, plan: dict, seed: int
             ) -> dict[str, evaluation.Evaluation]:
    """System -> its scores on studies that it has not seen."""
    panels = evaluation.choose_panels(people, ["loso"], ["all"], 0, seed=seed)
    (job,), _ = evaluation.jobs(people.manifest, ["loso"], {ENCODER: None}, seed=seed)
    flat = {name: replace(f, features=f.features.reshape(len(f), -1))
            for name, f in images.items()}
    recipe = {"settings": cmrcnet.Settings(width=64, gene_hidden=512), "k": plan["k"], "grid": 2,
              "training": replace(cmrcnet.PUBLISHED_TRAINING, epochs=plan["epochs"], lr=1e-3,
                                  min_lr=1e-5)}
    def score(method, features, **more):
        return evaluation.evaluate(job, people, features, panels, method=method, unit="study",
                                   seed=seed, **{"controls": ["none"]} | more)

    found = {name: score(make(**recipe), images) for name, make in cmrcnet.METHODS.items()}
    return found | {"ridge": score("ridge", flat, controls=["none", "permuted"])}


def summary(results: dict[str, evaluation.Evaluation], modality: str) -> pd.DataFrame:
    """One row per system and per pair, of what a cause drives and of what none does."""
    parts = []
    for system, result in results.items():
        for control, part in result.scores.groupby("control"):
            name = system if control == "none" else f"{system}, features exchanged"
            parts.append(part.assign(system=name))
    scores = pd.concat(parts, ignore_index=True)
    none = scores["gene"].str.startswith(("none-", "noise-"))
    visible = scores["gene"].str.startswith(tuple(f"{cause}-" for cause in CAUSES))
    rows = []
    for shown, part in (("visible", scores[visible]), ("none", scores[none])):
        means = statistics.unit_means(part, "study", by=["system"]).unstack("system")
        about = {"modality": modality, "follows": shown, "n_columns": part["gene"].nunique()}
        for system in means:
            row = statistics.unit_row(means[system], "study")
            rows.append(about | {"what": system} | row)
        for other in ("bleep", "ridge"):
            row = statistics.unit_row(means["cmrcnet"] - means[other], "study")
            rows.append(about | {"what": f"cmrcnet less {other}"} | row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for second_modality.csv")
    parser.add_argument("--quick", action="store_true", help="a tiny cohort, no claim")
    options = parser.parse_args()
    plan, seed, tables = QUICK if options.quick else FULL, 0, []
    with tempfile.TemporaryDirectory() as folder:
        painted, files = Path(folder, "painted"), Path(folder, "files")
        people = cohort.read("synthetic", painted, seed=seed, **plan["cohort"])
        people = people.subset([s.name for s in people if s.adata.n_vars])
        write_files(people, painted, files, seed)
        for modality, obsm in (("protein", "protein"), ("genes", "")):
            read = cohort.read("h5ad", files, keep=Path(folder, "kept"), obsm=obsm)
            images = tokens(read, Path(folder, "run"))
            tables.append(summary(evaluate(read, images, plan, seed), modality))
            table = pd.concat(tables, ignore_index=True)
            table.insert(0, "data", "synthetic")
            lineage.enter(write_csv(options.out / "second_modality.csv", table), __file__)
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
