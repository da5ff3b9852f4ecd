"""Quality of sections: whether spots lie where they were measured is seen, and said."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from mvhlib import cohort
from mvhlib.cohort import qc
from mvhlib.cohort.base import ImageRef, Section


def planted(seed: int = 0, n: int = 12, pitch: int = 12, signal: bool = True) -> Section:
    """Spots whose genes follow the darkness of the very square that they stand on."""
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    darkness = rng.uniform(0, 1, (n + 2, n + 4))  # of squares; a rim without spots, not a square
    small = np.repeat(np.repeat(darkness, pitch, 0), pitch, 1)
    pixels = np.clip(230 - 150 * small[..., None] + rng.normal(0, 5, (*small.shape, 3)), 0, 255)
    row, column = (axis.ravel() for axis in np.mgrid[1:n + 1, 1:n + 1])
    x, y = (column + 0.5) * pitch, (row + 0.5) * pitch
    level = darkness[row, column] if signal else rng.uniform(0, 1, n * n)
    rate = np.exp(2.5 + np.outer(level - 0.5, np.linspace(-2, 2, 20)))
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.int32))
    adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n * n)]),
                    var=pd.DataFrame(index=[f"G{i}" for i in range(20)]))
    adata.layers["counts"] = counts
    adata.obsm["spatial"] = np.column_stack([x, y]).astype(float)
    adata.uns["spatial"] = {"S": {"images": {"hires": pixels.astype(np.uint8)}, "scalefactors": {
        "tissue_hires_scalef": 1.0, "spot_diameter_fullres": float(pitch)}}}
    return Section(name="S", study="T", patient="P", specimen="P", source="h5ad",
                   load=lambda: adata, mpp=4.0, image_ref=ImageRef("none.png"),
                   image_size=(pixels.shape[1], pixels.shape[0]))


def moved(section: Section, change) -> qc.Alignment:
    places = section.adata.obsm["spatial"].copy()
    section.adata.obsm["spatial"] = change(places)
    try:
        return qc.alignment(section)
    finally:
        section.adata.obsm["spatial"] = places


@pytest.mark.parametrize("seed", range(4))
def test_a_shift_by_one_pitch_lowers_the_score(seed):
    section = planted(seed)
    here = qc.alignment(section)
    assert here.rank == 0 and here.words == "best here" and not here.is_doubtful
    assert here.r2 > 0.4 > 0.1 > here.r2_shifted_best
    left = moved(section, lambda places: places - [12, 0])
    assert left.r2 < 0.1 and left.r2_shifted_best == pytest.approx(here.r2, abs=0.05)
    assert left.rank >= 1 and "one pitch right (" in left.words and left.is_doubtful
    down = moved(section, lambda places: places + [12, 12])
    assert "one pitch left and up" in down.words


@pytest.mark.parametrize("seed", range(4))
def test_exchanged_axes_and_mirrored_images_are_named(seed):
    section = planted(seed)
    width, height = section.image_size
    assert "x and y exchanged" in moved(section, lambda places: places[:, ::-1]).words
    assert "x mirrored" in moved(section, lambda places: [width, 0] + places * [-1, 1]).words
    assert "180" in moved(section, lambda places: [width, height] - places).words


def test_expression_without_a_place_is_not_believed_either_way():
    found = [qc.alignment(planted(seed, signal=False)) for seed in range(12)]
    assert all(a.r2 < 0.1 for a in found)
    assert sum(a.is_doubtful for a in found) <= 2  # colours of independent squares, by chance


def test_alignment_that_cannot_be_asked_is_said():
    section = planted(n=6)
    assert qc.alignment(section).words == "fewer than 40 spots"
    section = planted()
    section.adata.layers["counts"][:] = 1
    assert np.isnan(qc.alignment(section).r2)
    section = planted()
    section.adata.obsm["spatial"][:] = 5.0
    assert "do not vary" in qc.alignment(section).words
    section.image_ref = None
    assert qc.alignment(section).words == "no image"


def test_the_table_says_it_and_the_log_warns(monkeypatch, caplog):
    section = planted()
    section.adata.obsm["spatial"] = section.adata.obsm["spatial"][:, ::-1].copy()
    row = qc.table([section]).iloc[0]
    assert list(row.index) == list(qc.COLUMNS)
    assert row["alignment"].startswith("better with x and y exchanged")
    assert row["alignment_r2"] < 0.1 and 0 <= row["alignment_rank"] <= 8
    assert "S: spots and image may not fit" in caplog.text


def test_real_sections_are_best_where_they_are(shared):
    """Ranks as in the notes on the data: right places, in images of 14 um/px."""
    root = shared / "data" / "mouse_brain_10x"
    section = cohort.read("visium", root / "V1_Adult_Mouse_Brain_DG")["V1_Adult_Mouse_Brain_DG"]
    assert qc.alignment(section).words == "best here"
    assert "x and y exchanged" in moved(section, lambda places: places[:, ::-1]).words
