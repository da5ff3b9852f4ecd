"""Scores: per gene and section, pooled with its floor, the drop, and the attainable ceiling."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import normalize
from mvhlib.expression import scores as own
from mvhlib.expression.scores import (
    best_genes,
    ceiling,
    drop,
    pearson,
    per_gene,
    pooled_scores,
    section_scores,
)


def test_section_scores_equal_scipy_and_hand():
    rng = np.random.default_rng(0)
    y, p = rng.standard_normal((50, 4)), rng.standard_normal((50, 4))
    frame = section_scores(y, p, list("abcd"))
    assert list(frame.columns) == ["gene", "n_spots", "pcc", "mae", "mse"]
    assert (frame["n_spots"] == 50).all()
    for g in range(4):
        assert frame["pcc"][g] == pytest.approx(stats.pearsonr(y[:, g], p[:, g])[0], abs=1e-12)
        assert frame["mae"][g] == pytest.approx(np.abs(y[:, g] - p[:, g]).mean())
        assert frame["mse"][g] == pytest.approx(((y[:, g] - p[:, g])**2).mean())


@pytest.mark.parametrize("shape", [(3, 2), (61, 1), (400, 7), (9, 300)])
@pytest.mark.parametrize("made", [np.asarray, np.asfortranarray, np.float32,
                                  lambda values: values[::-1]])
def test_blocks_of_spots_change_no_byte_of_the_scores(shape, made, monkeypatch):
    rng = np.random.default_rng(0)
    y = made(rng.standard_normal(shape) + 5)
    p = made(rng.standard_normal(shape))

    def scored(block):
        monkeypatch.setattr(own, "BLOCK", block)
        return section_scores(y, p, range(shape[1]))[["pcc", "mae", "mse"]].to_numpy()

    whole = scored(y.size)
    assert all(scored(block).tobytes() == whole.tobytes() for block in (1, 16, 100, 1000))
    # The same in one go, as one would write it down.
    x, z = (np.asarray(values, np.float64) for values in (y, p))
    x, z, error = x - x.mean(axis=0), z - z.mean(axis=0), z - x
    np.testing.assert_allclose(whole.T, [
        (x * z).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (z**2).sum(axis=0)),
        np.abs(error).mean(axis=0), (error**2).mean(axis=0)], rtol=1e-9, atol=1e-12)


def test_properties_of_genes_are_means_over_the_tested_sections():
    rng = np.random.default_rng(4)
    sections = []
    for name, n_spots in (("s", 20), ("t", 35), ("untested", 10)):
        counts = rng.poisson([2.0, 5.0, 9.0], (n_spots, 3))
        adata = anndata.AnnData(counts.astype(np.float32), var=pd.DataFrame(index=list("abc")))
        adata.layers["counts"] = sparse.csr_matrix(counts)
        sections.append(SimpleNamespace(name=name, adata=adata))
    scores = pd.DataFrame([{"section": name, "gene": gene, "program": None, "pcc": pcc,
                            "ceiling": 0.8} for name, gene, pcc in
                           (("s", "b", 0.2), ("s", "a", 0.4), ("t", "b", 0.4), ("t", "a", 0.0))])
    found = per_gene(scores, sections).set_index("gene")
    assert list(found.index) == ["a", "b"]
    np.testing.assert_allclose(found["pcc"], [0.2, 0.3])
    np.testing.assert_allclose(found["share"], [0.25, 0.375])
    for column, gene in enumerate("ab"):
        values = [np.log1p(1e4 * (x := section.adata.X.astype(float)) / x.sum(1, keepdims=True)
                           )[:, column] for section in sections[:2]]
        assert found.at[gene, "mean_expression"] == pytest.approx(np.mean([*map(np.mean, values)]),
                                                                  rel=1e-5)
        assert found.at[gene, "variance"] == pytest.approx(np.mean([*map(np.var, values)]),
                                                           rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_constant_genes_are_nan_on_either_side_and_tiny_scales_are_not(offset):
    rng = np.random.default_rng(1)
    y = rng.standard_normal((30, 3))
    p = y + rng.standard_normal((30, 3))
    expected = pearson(y, p)
    y[:, 0] = offset
    p[:, 1] = offset / 3
    found = pearson(y, p)
    assert np.isnan(found[:2]).all() and found[2] == pytest.approx(expected[2])
    np.testing.assert_allclose(pearson(y[:, 2:] * 1e-170, p[:, 2:] * 1e-170), expected[2:])
    assert np.isnan(pearson(y[:1], p[:1])).all()  # one spot has no correlation


def test_pooled_floor_is_what_shuffles_within_sections_leave():
    rng = np.random.default_rng(2)
    y, p = [], []
    for offset, n in ((0.0, 30), (2.0, 60), (-1.0, 45)):
        signal = rng.standard_normal((n, 3))
        y.append(signal + offset)
        p.append(0.3 * signal + offset * np.array([1.0, -1.0, 0.0]) + rng.standard_normal((n, 3)))
    pooled, floor = pooled_scores(y, p)
    shuffled = np.mean([pearson(np.concatenate(y), np.concatenate(
        [part[rng.permutation(len(part))] for part in p])) for _ in range(800)], axis=0)
    np.testing.assert_allclose(floor, shuffled, atol=0.01)
    np.testing.assert_allclose(pooled, pearson(np.concatenate(y), np.concatenate(p)))
    assert floor[0] > 0.3 and floor[1] < -0.3 and abs(floor[2]) < 0.1
    # One section alone has no offsets to exploit.
    assert np.abs(pooled_scores(y[:1], p[:1])[1]).max() < 1e-12


def test_pooled_scores_of_constants_are_nan_in_both_columns():
    y = [np.ones((5, 1)), np.ones((6, 1))]
    p = [np.arange(5.0)[:, None], np.arange(6.0)[:, None]]
    assert all(np.isnan(column).all() for column in pooled_scores(y, p))


def test_pcc10_takes_the_ten_best_means_without_unknown_ones():
    genes = [f"g{n:02d}" for n in range(14)]
    frame = pd.DataFrame({"gene": genes * 2, "pcc": [n / 20 for n in range(14)] * 2})
    frame.loc[frame["gene"] == "g13", "pcc"] = np.nan
    frame.loc[13 + 14 - 1, "pcc"] = np.nan  # one of two g12 values: the other one stands
    assert best_genes(frame) == [f"g{n:02d}" for n in range(12, 2, -1)]


def test_drop_of_errors_and_of_nothing():
    assert drop(2.0, 3.0, error=True) == pytest.approx(0.5)
    assert np.isnan(drop(0.0, 0.1)) and np.isnan(drop(-0.1, 0.1))


@pytest.mark.parametrize("depth", [300, 5000])
def test_ceiling_is_what_a_perfect_predictor_reaches(depth):
    """Known rates: the best prediction is the mean of many measurements of the same rates."""
    rng = np.random.default_rng(3)
    n_spots, n_genes = 2000, 60
    spread = np.tile(np.linspace(0.2, 1.2, 6), 10)
    rate = np.exp(rng.standard_normal((n_spots, n_genes)) * spread
                  + np.repeat(np.linspace(-3, 3, 10), 6))
    rate *= depth / rate.sum(axis=1, keepdims=True)

    def measure():
        counts = rng.poisson(rate)
        return counts, normalize(counts, "log1p_cp10k", counts.sum(axis=1))

    truth = np.mean([measure()[1] for _ in range(40)], axis=0)
    reached = np.mean([pearson(measure()[1], truth) for _ in range(5)], axis=0)
    counts = measure()[0]
    error = ceiling(counts, counts.sum(axis=1), rng=np.random.default_rng(0)) - reached
    well_counted = counts.mean(axis=0) > 3
    assert well_counted.sum() >= 20 and reached[well_counted].max() - reached.min() > 0.5
    assert np.abs(error[well_counted]).mean() < 0.03
    assert abs(error.mean()) < 0.05  # about one count per spot: slightly high, as documented


def test_ceiling_of_sparse_counts_repeats_and_knows_constants():
    rng = np.random.default_rng(4)
    counts = rng.poisson(3.0, size=(200, 5))
    counts[:, 2] = 0
    library = counts.sum(axis=1) + 50
    a = ceiling(counts, library, rng=np.random.default_rng(7))
    b = ceiling(sparse.csr_matrix(counts), library, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(a, b)
    assert np.isnan(a[2]) and np.isfinite(a[[0, 1, 3, 4]]).all()


@pytest.mark.parametrize("call, field", [
    (lambda: pearson(np.ones((3, 2)), np.ones((3, 1))), "shape"),
    (lambda: pearson(np.full((3, 2), np.nan), np.ones((3, 2))), "measured"),
    (lambda: pearson(np.ones((3, 2)), np.full((3, 2), np.inf)), "predicted"),
    (lambda: section_scores(np.ones((3, 2)), np.ones((3, 2)), ["a"]), "genes"),
    (lambda: ceiling(np.full((3, 2), 0.5), np.ones(3), rng=np.random.default_rng(0)), "counts"),
    (lambda: ceiling(np.full((3, 2), -1), np.ones(3), rng=np.random.default_rng(0)), "counts"),
    (lambda: ceiling(np.ones((3, 2)), np.ones(3), rng=np.random.default_rng(0)), "library"),
])
def test_bad_input_is_one_error(call, field):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.field == field
