"""Ceilings: what noise of counting and of single spots leaves to a perfect predictor."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import cohort
from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import normalize
from mvhlib.expression import ceilings
from mvhlib.expression.scores import ceiling, pearson

SIDE, GENES = 40, 24


def smooth_counts(dispersion, seed=0, depth=60.0):
    """Negative binomial counts of a smooth map on a square array: places, counts, true rates."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
    waves = rng.uniform(-np.pi, np.pi, (2, GENES)) / SIDE
    phase = row[:, None] * waves[0] + column[:, None] * waves[1] + rng.uniform(0, 6, GENES)
    size = np.exp(0.3 * rng.standard_normal((len(row), 1)))
    rate = depth / GENES * np.exp(0.8 * np.sin(phase)) * np.linspace(0.5, 4, GENES)
    mean = rate * size
    noise = rng.gamma(1 / dispersion, dispersion, mean.shape) if dispersion else 1.0
    return np.stack([row, column], axis=1), rng.poisson(mean * noise), rate, mean.sum(axis=1)


@pytest.mark.parametrize("dispersion", [0.0, 0.15, 0.6])
def test_dispersion_is_found_between_neighbours(dispersion):
    places, counts, _, library = smooth_counts(dispersion)
    found = ceilings.dispersion(counts, library, places)
    assert abs(found.mean() - dispersion) < 0.03 and np.abs(found - dispersion).max() < 0.15


def test_spots_without_counts_are_left_out_of_the_neighbours():
    places, counts, _, library = smooth_counts(0.15)
    empty = np.random.default_rng(2).random(len(counts)) < 0.05
    counts[empty], library = 0, np.where(empty, 0, library)
    found = ceilings.dispersion(counts, library, places)
    assert abs(found.mean() - 0.15) < 0.03  # as if they had not been measured


def test_thinning_with_the_dispersion_is_right_where_poisson_is_too_high():
    places, counts, rate, library = smooth_counts(0.6)
    truth = pearson(normalize(counts, library=library), normalize(rate, library=rate.sum(axis=1)))
    high = ceiling(counts, counts.sum(axis=1), rng=np.random.default_rng(0))
    found = ceiling(counts, counts.sum(axis=1), rng=np.random.default_rng(0),
                    dispersion=ceilings.dispersion(counts, library, places))
    assert (high - truth).mean() > 0.15 and abs((found - truth).mean()) < 0.03


def test_no_dispersion_is_poisson():
    _, counts, _, library = smooth_counts(0.0)
    plain = ceiling(counts, counts.sum(axis=1), rng=np.random.default_rng(3))
    zero = ceiling(counts, counts.sum(axis=1), rng=np.random.default_rng(3), dispersion=0.0)
    np.testing.assert_array_equal(plain, zero)


def test_halves_of_negative_binomial_counts_are_independent():
    """Counts about one mean have no signal: what halves share is what thinning left in."""
    rng = np.random.default_rng(1)
    counts = rng.negative_binomial(1 / 0.5, 1 / (1 + 0.5 * 20), size=(20000, 3))
    library = np.full(len(counts), 10_000)
    shared = {value: ceiling(counts, library, "log1p", n_splits=1, dispersion=value,
                             rng=np.random.default_rng(0)) for value in (None, 0.5)}
    assert (shared[None] > 0.9).all() and (shared[0.5] < 0.25).all()


def test_a_table_beside_the_truth(tmp_path):
    people = cohort.read("synthetic", tmp_path, n_studies=1, patients_per_study=1,
                         sections_per_patient=1, spots_per_side=16, n_genes_per_program=2)
    genes = list(next(iter(people)).adata.var_names)
    table = ceilings.table(people, genes, truth=tmp_path / "truth", n_splits=2)
    assert list(table["gene"]) == genes and table["program"].ne("").all()
    ordered = table[["ceiling_neighbours", "ceiling_common", "ceiling_counting"]].mean()
    assert ordered.is_monotonic_increasing
    # counting alone promises too much; the dispersion that was put in, 0.15, is common to all
    known = table[table["ceiling_true"] > 0.3]
    error = {name: (known[name] - known["ceiling_true"]).mean() for name in ordered.index}
    assert abs(error["ceiling_common"]) < 0.03 < 0.06 < error["ceiling_counting"]
    assert error["ceiling_neighbours"] < -0.1
    assert table["ceiling_true"].between(-1, 1).all()
    pd.testing.assert_frame_equal(
        table, ceilings.table(people, genes, truth=tmp_path / "truth", n_splits=2))
    assert "ceiling_true" not in ceilings.table(people, genes, n_splits=1)
    assert ceilings.said(table).startswith("Ceiling of the mean gene: noise of counting alone 0.")


@pytest.mark.parametrize(("call", "field"), [
    (lambda: ceilings.dispersion(np.ones((9, 1)), np.zeros(9), np.ones((9, 2))), "library"),
    (lambda: ceiling(np.ones((3, 2)), np.full(3, 2), dispersion=-1.0,
                     rng=np.random.default_rng(0)), "dispersion")])
def test_bad_input_is_one_error(call, field):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.field == field
