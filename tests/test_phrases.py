"""Numbers as they stand in a sentence: a mean, its interval, its units, and what has none."""

import doctest

import pandas as pd
import pytest

from mvhlib import phrases


def test_examples_hold():
    found = doctest.testmod(phrases)
    assert found.attempted > 5 and not found.failed


def test_one_unit_has_no_interval_and_no_unit_has_no_mean():
    row = pd.Series({"mean": 0.314, "ci_low": float("nan"), "ci_high": float("nan"),
                     "unit": "study", "n_units": 1})
    assert phrases.row_mean(row) == "0.31 (no interval) over 1 study"
    row["mean"], row["n_units"] = float("nan"), 0
    assert phrases.row_mean(row) == "not measured over 0 studies"


@pytest.mark.parametrize("value, said", [(-0.0, "0.00"), (-0.004, "0.00"), (-0.006, "-0.01"),
                                         (float("inf"), "not measured")])
def test_a_zero_has_no_sign(value, said):
    assert phrases.number(value) == said


def test_a_sentence_on_synthetic_data_says_so():
    class Run:
        is_synthetic = True

    assert phrases.on(Run(), "hand-made reaches 0.3.") == (
        "On synthetic data, one seed: hand-made reaches 0.3.")
    assert phrases.on(Run()) == "On synthetic data, one seed: "
    Run.is_synthetic = False
    assert phrases.on(Run()) == ""
    assert phrases.on(Run(), "hand-made reaches 0.3.") == "Hand-made reaches 0.3."
