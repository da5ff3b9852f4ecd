"""Make the tiny inputs of the recipes: what a user would bring, drawn by the synthetic cohort.

``.venv/bin/python params/recipes/make_input.py KIND FOLDER``; KIND: section, slides or outcomes.
Nothing in these files is real; a recipe that runs on them runs on files of the same form.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mvhlib.cohort import synthetic
from mvhlib.tiles.store import read_tiles


def section(folder: Path) -> None:
    """Four sections of two patients as AnnData, each with its image in ``uns["spatial"]``."""
    with tempfile.TemporaryDirectory() as made:
        people = synthetic.make_cohort(made, n_studies=1, patients_per_study=2,
                                       sections_per_patient=2, spots_per_side=6,
                                       n_genes_per_program=3)
        for one in people:
            adata = one.adata.copy()
            for key in ("spatial", "mvh"):
                adata.uns.pop(key, None)
            adata.obs = adata.obs[[]]
            adata.uns["spatial"] = {one.name: {
                "images": {"hires": one.image()}, "scalefactors": {
                    "tissue_hires_scalef": 1.0, "spot_diameter_fullres": 40.0}}}
            adata.write_h5ad(folder / f"{one.name}.h5ad", compression="gzip")


def slides(folder: Path) -> None:
    """Twenty-four slides of three hospitals with a label and an outcome, in ``slides.csv``."""
    with tempfile.TemporaryDirectory() as made:
        table = synthetic.make_slide_cohort(made, n_patients=24, n_sites=3, tiles_per_slide=16,
                                            tile_px=64)
        for name in table["slide"]:
            tiles = read_tiles(Path(made) / "tiles" / f"{name}.h5").img  # (16, S, S, 3)
            side = tiles.shape[1]
            glass = np.full((5 * side, 5 * side, 3), 245, np.uint8)
            rows = [np.concatenate(tiles[k:k + 4], axis=1) for k in range(0, 16, 4)]
            glass[side // 2:-side // 2, side // 2:-side // 2] = np.concatenate(rows)
            Image.fromarray(glass).save(folder / f"{name}.png")
    columns = {"site": "study", "time_months": "time", "label": "label"}
    table = table.rename(columns=columns).assign(mpp=1.5625)
    table[["slide", "patient", "study", "label", "time", "event", "age", "sex", "stage", "mpp"]
          ].to_csv(folder / "slides.csv", index=False)


def outcomes(folder: Path) -> None:
    """Outcomes of 160 patients of five hospitals, without pixels."""
    rng = np.random.default_rng(0)
    n = 160
    stage = rng.integers(1, 5, n)
    months = np.round(1 + 60 * rng.exponential(1, n) * np.exp(-0.6 * (stage - 2.5)), 1)
    censored = np.round(1 + rng.uniform(0, 90, n), 1)
    pd.DataFrame({
        "patient": [f"P{k:03d}" for k in range(n)], "site": [f"hospital{k % 5 + 1}" for k in
                                                             range(n)],
        "age": rng.integers(40, 90, n), "sex": np.where(rng.random(n) < 0.5, "female", "male"),
        "stage": stage, "time_months": np.minimum(months, censored),
        "event": (months <= censored).astype(int)}).to_csv(folder / "outcomes.csv", index=False)


KINDS = {"section": section, "slides": slides, "outcomes": outcomes}


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in KINDS:
        print(f"usage: make_input.py {{{','.join(KINDS)}}} FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[arguments[0]](folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
