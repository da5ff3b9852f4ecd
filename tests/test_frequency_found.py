"""What an answer says of frequencies, and the figures it rests on: read from tables made here."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import frequency
from mvhlib.frequency import found


def test_memory_is_said_preset_by_preset():
    halves = pd.DataFrame({"backbone": "mvhybrid", "preset": ["released", "corrected"],
                           "half_life_max": [1.2, 690.3], "energy_share": [0.71, 0.08]})
    said = found.memory(halves, "mvhybrid")
    assert "half gone after 1 token (released, 71% of the energy" in said
    assert "690 tokens (corrected, 8% of" in said
    assert found.memory(halves, "vit12") == "no state-space layer was read."


def test_training_is_said_where_something_was_trained():
    moved = pd.DataFrame({"encoder": ["mvhybrid-dino"] * 2, "state": ["untrained", "trained"],
                          "a_min": [-16.0, -9.5], "a_max": [-1.0, -0.9]})
    assert found.training(moved) == (
        "The eigenvalues of MVHybrid-dino lay at -16.00 to -1.00 before training and lie at -9.50 "
        "to -0.90 after it.")
    assert "No state-space model was trained" in found.training(moved.iloc[:0])


def tilted():
    return pd.DataFrame({
        "panel": ["attention branch", "all blocks", "all blocks"], "preset": "released",
        "encoder": ["vit12", "vit12", "mvhybrid"], "state": "untrained",
        "fastest_over_mean": [0.01, 1.0, 1.2]})


def test_blocks_count_those_that_pass_all_alike():
    assert found.blocks(tilted()) == (
        "All blocks in a row pass the fastest wave 1.00 to 1.20 times as well as the mean of all "
        "tokens, 1 of 2 models within 5% of alike.")


def test_the_finest_octave_is_said_beside_the_twin():
    rows = pd.DataFrame({"encoder": ["vit12-dino", "vit12-dino", "handmade", "vit12-dino"],
                         "state": ["untrained", "trained", "fixed", "trained"],
                         "frequency": [0.2, 0.2, 0.2, 0.1], "mean": [0.04, 0.02, 0.3, 9.0],
                         "ci_low": [0.03, 0.01, 0.2, 8.0], "ci_high": [0.05, 0.03, 0.4, 10.0],
                         "n_units": 16})
    said = found.finest(rows, "patient")
    assert "ViT12-dino by 0.020 [0.010, 0.030] (untrained 0.040 [0.030, 0.050] over 16" in said
    assert "9.0" not in said
    untrained = found.finest(rows[rows["state"] != "trained"], "patient")
    assert "ViT12-dino by 0.04 [0.03, 0.05] and hand-made by 0.30" in untrained


def test_each_border_has_its_own_band():
    inside = pd.DataFrame({"of": ["any border"] * 3 + ["tumour border"] * 2 + ["noise"] * 2,
                           "low": [0.0, 0.01, 0.25, 0.01, 0.25, 0.01, 0.25],
                           "high": [0.0, 0.02, 0.5, 0.02, 0.5, 0.02, 0.5],
                           "mean": [0.9, 0.3, 0.1, 0.05, 0.2, 0.0, 0.0]})
    assert found.longest(inside, mpp=2.0) == (
        "Best told inside the tile: any border by waves of 100 to 200 um (30% of its variance) and "
        "tumour border by waves of 4 to 8 um (20% of its variance).")
    assert "No border is known" in found.longest(inside[inside["of"] == "noise"])


def test_a_single_pole_lies_on_its_closed_form_and_every_layer_is_a_point():
    plt = pytest.importorskip("matplotlib.pyplot")
    halves = pd.DataFrame({"backbone": ["mvhybrid", "mvhybrid", "hydrahybrid"],
                           "preset": ["released", "corrected", "released"],
                           "direction": "forward", "delta_median": [0.69, 0.007, 0.006],
                           "energy_share": [0.71, 0.08, 0.02]})
    fig, (left, right) = plt.subplots(1, 2)
    curves = frequency.passes(halves, left)
    single = curves[curves["family"] == frequency.FAMILIES["equal"]]
    np.testing.assert_allclose(single["energy_share"],
                               frequency.mean_energy_share([-1], single["delta"].to_numpy()))
    points = [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor() == "none")
              for line in left.lines if line.get_linestyle() == "None"]
    assert points == [(0.69, 0.71, False), (0.007, 0.08, True), (0.006, 0.02, False)]
    frequency.tilt(tilted(), right, ["attention branch", "all blocks"])
    assert [text.get_text() for text in right.texts] == ["0.01", "1.00", "1.20"]
    assert [text.get_text() for text in right.get_yticklabels()] == [
        "ViT12, released, untrained", "MVHybrid, released, untrained"]
    plt.close(fig)
