"""What a laboratory's stain costs: random folds against leave-one-study-out, on synthetic tissue.

The synthetic cohort is drawn at strength 0, 1 and 2 of everything that tells studies apart (stain,
blur, tone curve), with the same tissue, counts and folds at every strength. Tiles go through the
hand-made features, ridge predicts all genes, and the two protocols are compared. Expected: no drop
at strength 0 and a growing one after. Genes whose cause is known must behave as their cause does:

visible
    Tissue classes, density, frequency programs: their cause is in the tile.
study_offset
    The study's own mean and nothing else: seen by a correlation over pooled spots under random
    folds, not above zero there when the study is left out (below zero even, since a left-out study
    is predicted by the mean of the others), zero within sections always.
artefact
    A gradient inside each section whose sign the study decides: learned under random folds as far
    as the stain tells the study, not above zero when the study is left out.
noise
    Zero everywhere.

Rows: ``per section`` is Pearson's r within sections, averaged over genes, sections and patients,
with Student's t intervals over the patients of all cohorts; ``pooled`` is r over the spots of all
test sections of a cohort, with the interval over cohorts. ``drop`` is the paired difference of the
protocols, ``growth`` the paired difference of the drop to the strength before, ``lost`` the drop as
a share of the score under random folds, where both are above zero. All synthetic; about four
minutes on one thread.

    python benchmarks/stain_strength.py --out DIR [--quick]
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd

from mvhlib import cohort, encoders, lineage, statistics
from mvhlib.artifacts import write_csv
from mvhlib.cohort import synthetic
from mvhlib.expression import evaluation
from mvhlib.tiles import cut

STRENGTHS = (0.0, 1.0, 2.0)
PROTOCOLS = ("random10_section", "loso")
TILE_UM, TILE_PX = 100.0, 64  # as in 02_tiles
VISIBLE = (*synthetic.CLASSES, "density", *synthetic.FREQUENCY_PROGRAMS)
GROUPS = {"visible": VISIBLE, "study_offset": ("study_offset",), "artefact": ("artefact",),
          "noise": ("noise",)}
FULL = {"seeds": (0, 1, 2), "options": {}}
QUICK = {"seeds": (0, 1), "options": {"n_studies": 3, "sections_per_patient": 1,
                                      "spots_per_side": 6, "n_genes_per_program": 2}}


def evaluate(folder: Path, seed: int, strength: float, **options) -> list[evaluation.Evaluation]:
    """Both protocols on one cohort; the notebooks 01, 02, 04 and 05 in a few lines."""
    people = cohort.read("synthetic", folder, seed=seed, stain_strength=strength,
                         blur_strength=strength, tone_strength=strength, **options)
    encoder = encoders.create_encoder("handmade", device="cpu")
    features = {}
    for section in people:
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=TILE_UM, tile_px=TILE_PX)
        features[section.name] = encoder.encode(tiles.img)
    panels = evaluation.choose_panels(people, PROTOCOLS, ["all"], 0, seed=seed)
    jobs, _ = evaluation.jobs(people.manifest, PROTOCOLS, {"handmade": None}, seed=seed)
    return [evaluation.evaluate(job, people, features, panels, controls=("none",), seed=seed,
                                ceiling_splits=0) for job in jobs]


def per_unit(result: evaluation.Evaluation, seed: int, strength: float) -> pd.DataFrame:
    """Mean r of each group of programs: per section by patient, and pooled by cohort."""
    rows = []
    for group, programs in GROUPS.items():
        scores = result.scores[result.scores["program"].isin(programs)]
        sections = scores.groupby(["patient", "section"])["pcc"].mean()
        for patient, value in sections.groupby("patient").mean().items():
            rows.append((group, "per section", "patient", f"{seed} {patient}", value))
        pooled = result.pooled[result.pooled["program"].isin(programs)
                               & (result.pooled["scope"] == "all")]
        rows.append((group, "pooled", "cohort", str(seed), pooled["pcc_pooled"].mean()))
    table = pd.DataFrame(rows, columns=["program", "level", "unit", "name", "pcc"])
    return table.assign(protocol=result.job.protocol, strength=strength)


def summary(units: pd.DataFrame) -> pd.DataFrame:
    """One row per program, level and strength, with intervals over the units."""
    rows = []
    for (program, level, unit), part in units.groupby(["program", "level", "unit"], sort=False):
        table = part.pivot(index="name", columns=["strength", "protocol"], values="pcc")
        last = None
        for strength in sorted(part["strength"].unique()):
            random, loso = (table[strength, protocol] for protocol in PROTOCOLS)
            drop = random - loso
            row = {"program": program, "level": level, "strength": strength, "unit": unit}
            for name, values in {"random": random, "loso": loso, "drop": drop,
                                 "growth": None if last is None else drop - last}.items():
                found = statistics.t_interval([] if values is None else values)
                row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row | {"n_units": int(drop.notna().sum()),
                               "lost": row["drop"] / row["random"]
                               if row["random_low"] > 0 and row["loso"] > 0 else float("nan")})
            last = drop
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for stain_strength.csv")
    parser.add_argument("--quick", action="store_true", help="tiny cohorts, no claim")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    tables = []
    for seed in plan["seeds"]:
        for strength in STRENGTHS:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                results = evaluate(Path(folder), seed, strength, **plan["options"])
            tables += [per_unit(result, seed, strength) for result in results]
            print(f"seed {seed}, strength {strength:g}: {time.perf_counter() - start:.0f} s",
                  flush=True)
        table = summary(pd.concat(tables, ignore_index=True))
        table.insert(0, "data", "synthetic")
        table["seeds"] = " ".join(str(s) for s in plan["seeds"][:plan["seeds"].index(seed) + 1])
        table["encoder"] = "handmade"
        lineage.enter(write_csv(options.out / "stain_strength.csv", table), __file__)
    print(table.drop(columns=["data", "encoder"]).round(3).to_string())


if __name__ == "__main__":
    main()
