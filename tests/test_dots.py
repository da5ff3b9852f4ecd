"""Figures that a reader decodes without a legend: rows, numbers, blocks, maps on one scale."""

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mvhlib import dots, maps, plots
from mvhlib.expression import blocks
from mvhlib.expression.structure import CoExpression

TABLE = pd.DataFrame({
    "encoder": ["vit12-dino", "handmade", "handmade", "vit12-mmap"],
    "mean": [0.17, 0.324, 0.0, np.nan], "ci_low": [0.1, 0.3, -0.1, np.nan],
    "ci_high": [0.2, 0.35, 0.1, np.nan], "open": [False, False, True, False]})


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def names(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def test_one_row_per_encoder_with_its_number(ax):
    order = dots.order(TABLE)
    dots.rows(TABLE, ax, names=order, marked=["vit12-mmap"])
    assert order == ["handmade", "vit12-dino", "vit12-mmap"]
    assert names(ax) == ["hand-made", "ViT12-dino", "ViT12-mmap *"]
    assert [text.get_text() for text in ax.texts] == ["0.32", "0.17"]  # none of the open dot
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top


def test_rows_that_a_panel_lacks_stay_empty_and_differences_have_a_sign(ax):
    dots.rows(TABLE[:1], ax, names=["handmade", "vit12-dino"], signed=True, digits=3)
    assert names(ax) == ["hand-made", "ViT12-dino"]
    assert [text.get_text() for text in ax.texts] == ["+0.170"]


def test_a_matrix_writes_its_numbers_and_leaves_gaps_blank(ax):
    table = pd.DataFrame({"slow_along": [0.5, np.nan], "noise": [-0.001, 0.1]},
                         index=["handmade", "vit12-dino"])
    dots.matrix(table, ax, label="r", marked=["vit12-dino"])
    assert sorted(text.get_text() for text in ax.texts) == ["0.00", "0.10", "0.50"]
    assert names(ax) == ["hand-made", "ViT12-dino *"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["slow along", "noise"]


def test_genes_of_a_program_stand_side_by_side():
    together = CoExpression(list("abcde"), np.eye(5), np.eye(5), 1.0, 0.01, 0.0, 0.0, 1.0, 2, [])
    programs = {"a": "x", "b": "y", "d": "x", "e": "y"}
    positions, own = blocks.order(together, programs)
    assert own == ["x", "x", "y", "y", ""] and list(positions) == [0, 3, 1, 4, 2]
    fig, axes = plt.subplots(1, 2)
    blocks.draw(together, programs, axes)
    assert names(axes[0]) == ["x", "y", "other"] and not any(names(axes[1]))
    blocks.draw(together, {}, axes)
    assert names(axes[0]) == list("abcde")
    plt.close(fig)


def test_maps_are_drawn_in_standard_deviations():
    import anndata

    rng = np.random.default_rng(0)
    measured = rng.normal(5, 3, (40, 2))
    prediction = anndata.AnnData(
        obs=pd.DataFrame(index=[f"s{k}" for k in range(40)]),
        var=pd.DataFrame(index=["G1", "G2"]), layers={"measured": measured,
                                                      "predicted": 10 * measured + 2})
    prediction.obsm["spatial"] = rng.uniform(0, 100, (40, 2))
    drawn = maps.map_values(prediction, ["G2"])
    np.testing.assert_allclose(drawn["measured"], measured[:, 1])
    np.testing.assert_allclose(drawn["measured_z"], drawn["predicted_z"], atol=1e-9)
    np.testing.assert_allclose([drawn["measured_z"].mean(), drawn["measured_z"].std(ddof=0)],
                               [0, 1], atol=1e-9)
    assert np.abs(drawn["residual"]).max() < 1e-9


def test_rows_without_a_filled_dot_follow_as_they_come():
    table = pd.DataFrame({"encoder": list("dcbab"), "mean": [0.1, 0.2, 0.3, 0.4, 0.5],
                          "open": [True, True, True, False, False]})
    assert dots.order(table) == ["b", "a", "d", "c"]


def test_no_spot_of_a_coarse_map_is_cut_at_its_border(ax):
    place = np.argwhere(np.ones((4, 4))) * 100.0 + 60
    adata = anndata.AnnData(np.ones((16, 1), np.float32), obsm={"spatial": place}, uns={
        "spatial": {"s": {"images": {"hires": np.ones((25, 25, 3), np.float32)}, "scalefactors": {
            "tissue_hires_scalef": 0.05, "spot_diameter_fullres": 100.0}}}})
    plots.spatial_map(adata, np.arange(16.0), ax, colorbar=False)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    edge = 0.05 * (60 - 50)  # where the first spots begin
    assert left < edge and top < edge and right > 0.05 * 410 and bottom > 0.05 * 410
