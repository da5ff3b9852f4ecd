"""Moran's I against squidpy and closed forms, the graph of both arrays, and over-smoothing."""

import numpy as np
import pytest
from scipy import sparse, stats

from mvhlib import lattice, maps
from mvhlib.artifacts import InputError
from mvhlib.expression import spatial


def square(width, height, pitch=200.0):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x.ravel(), y.ravel()], axis=1) * pitch


def hexagonal(width, height, pitch=100.0):
    grid = square(width, height, 1.0)
    grid[:, 0] += 0.5 * (grid[:, 1] % 2)
    grid[:, 1] *= np.sqrt(3) / 2
    return grid * pitch


def turn(coords, degrees):
    a = np.deg2rad(degrees)
    return coords @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


@pytest.mark.parametrize("make, neighbors", [(square, 4), (hexagonal, 6)])
@pytest.mark.parametrize("degrees", [0, 17, 45])
@pytest.mark.parametrize("jitter, kept", [(0.0, 1.0), (0.08, 1.0), (0.0, 0.6)])
def test_the_array_is_told_from_its_coordinates(make, neighbors, degrees, jitter, kept):
    rng = np.random.default_rng(0)
    coords = turn(make(14, 11), degrees)
    pitch = np.linalg.norm(coords[1] - coords[0])
    coords = coords + jitter * pitch * rng.standard_normal(coords.shape) / np.sqrt(2)
    assert lattice.neighbours_on(coords[rng.random(len(coords)) < kept]) == neighbors


@pytest.mark.parametrize("make, neighbors, inside", [(square, 4, 8 * 6), (hexagonal, 6, 8 * 6)])
def test_graph_links_neighbours_only(make, neighbors, inside):
    coords = make(10, 8)
    weights = lattice.graph(coords)
    degree = np.diff(weights.indptr)
    assert degree.max() == neighbors and (degree == neighbors).sum() >= inside
    np.testing.assert_allclose(np.asarray(weights.sum(axis=1)).ravel(), 1.0)
    links = weights.tocoo()
    pitch = np.linalg.norm(coords[1] - coords[0])
    np.testing.assert_allclose(np.linalg.norm(coords[links.row] - coords[links.col], axis=1), pitch)
    assert ((weights != 0) != (weights != 0).T).nnz == 0


def test_moran_of_a_wave_on_a_ring_and_of_a_checkerboard():
    n = 40
    ring = sparse.csr_matrix((np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1)) / 2)
    waves = np.stack([np.cos(2 * np.pi * k * np.arange(n) / n) for k in range(1, 20)], axis=1)
    # Waves are eigenvectors of the ring's weights: I is their eigenvalue, cos(2 pi k / n).
    np.testing.assert_allclose(spatial.morans_i(waves, ring),
                               np.cos(2 * np.pi * np.arange(1, 20) / n), atol=1e-12)
    coords = square(8, 6)
    board = (coords.sum(axis=1) / 200 % 2)[:, None]
    assert spatial.morans_i(board, lattice.graph(coords))[0] == pytest.approx(-1.0)


@pytest.mark.parametrize("make", [square, hexagonal])
def test_moran_equals_squidpy(make):
    import anndata
    import squidpy

    rng = np.random.default_rng(1)
    coords = make(15, 12)
    coords = coords[rng.random(len(coords)) < 0.9]
    values = rng.standard_normal((len(coords), 5)) + coords[:, :1] / coords.max() * np.arange(5)
    weights = lattice.graph(coords)
    adata = anndata.AnnData(values)
    adata.obsp["spatial_connectivities"] = (weights > 0).astype(float)
    table = squidpy.gr.spatial_autocorr(adata, mode="moran", copy=True)
    expected = table.loc[adata.var_names, "I"].to_numpy(float)
    np.testing.assert_allclose(spatial.morans_i(values, weights), expected, rtol=1e-6)


@pytest.mark.parametrize("n_genes", [1, 2, 7, 8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_of_genes_change_no_byte_of_moran(n_genes, order, monkeypatch):
    graph = lattice.graph(square(9, 7))
    values = np.asarray(np.random.default_rng(0).standard_normal((63, n_genes)) + 5, order=order)

    def found(block):
        monkeypatch.setattr(spatial, "BLOCK", block)
        return spatial.morans_i(values, graph)

    whole = found(values.size)
    assert all(found(block).tobytes() == whole.tobytes() for block in (1, 3 * 63, 5 * 63))
    z, weights = values - values.mean(axis=0), graph.toarray()
    np.testing.assert_allclose(
        whole, 63 / weights.sum() * np.diag(z.T @ weights @ z) / (z**2).sum(axis=0), rtol=1e-10)


def test_permutation_null_has_the_known_mean_and_uniform_p():
    rng = np.random.default_rng(2)
    coords = square(9, 9)
    weights = lattice.graph(coords)
    noise = rng.standard_normal((81, 400))
    # Permutations of any values have expectation -1 / (T - 1) (Cliff and Ord 1981).
    null = np.mean([spatial.morans_i(noise[rng.permutation(81)], weights).mean()
                    for _ in range(40)])
    assert null == pytest.approx(-1 / 80, abs=0.002)
    table = spatial.moran_test(noise, weights, n_permutations=99, rng=rng)
    assert stats.kstest(table["p"], "uniform").pvalue > 0.001
    assert (table["fdr"] < 0.05).mean() < 0.02


def test_structure_is_found_and_constants_do_not_count():
    rng = np.random.default_rng(3)
    coords = hexagonal(12, 12)
    values = rng.standard_normal((144, 6))
    values[:, 0] += coords[:, 0] / 200
    values[:, 3] = 1.0
    table = spatial.moran_test(values, lattice.graph(coords), n_permutations=199, rng=rng)
    assert table["fdr"][0] < 0.05 and table["p"][0] == pytest.approx(1 / 200)
    assert table.loc[3].isna().all()
    known = table.index != 3
    np.testing.assert_allclose(table["fdr"][known],
                               stats.false_discovery_control(table["p"][known]))


def test_smoothing_measures_the_excess_on_common_spots():
    rng = np.random.default_rng(4)
    coords = square(12, 10)
    signal = np.sin(coords / 700).sum(axis=1, keepdims=True)
    measured = signal + 0.8 * rng.standard_normal((120, 2))
    predicted = np.concatenate([signal, measured[:, 1:]], axis=1)
    measured[7, 0] = np.nan
    predicted[9, 1] = np.nan
    table = spatial.smoothing(measured, predicted, coords, ["smooth", "copy"], n_permutations=49)
    assert (table["n_spots"] == 118).all() and (table["n_neighbors"] == 4).all()
    keep = np.setdiff1d(np.arange(120), [7, 9])
    weights = lattice.graph(coords[keep], 4)
    np.testing.assert_allclose(table["i_true"], spatial.morans_i(measured[keep], weights))
    assert table["oversmoothing"][0] > 0.2
    assert table["oversmoothing"][1] == 0.0  # an exact copy is exactly as smooth
    again = spatial.smoothing(measured, predicted, coords, ["smooth", "copy"], n_permutations=49)
    assert again.equals(table)


def test_residual_and_its_standardised_form():
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((30, 2))
    np.testing.assert_allclose(maps.residual(truth, truth - 2.5), 2.5)
    shifted = maps.residual(truth, 3 * truth + 10, standardised=True)
    np.testing.assert_allclose(shifted, 0, atol=1e-12)
    constant = maps.residual(np.full((5, 1), 0.1), np.arange(5.0)[:, None], standardised=True)
    assert constant.mean() == pytest.approx(0) and constant.std() == pytest.approx(1)


@pytest.mark.parametrize("call, field", [
    (lambda: lattice.neighbours_on(square(3, 1)), "spots"),
    (lambda: lattice.neighbours_on(np.zeros((9, 2))), "coordinates"),
    (lambda: spatial.morans_i(np.ones((3, 1)), sparse.eye(4)), "values"),
    (lambda: spatial.smoothing(np.ones((9, 2)), np.ones((9, 1)), square(3, 3), ["a"]), "shape"),
    (lambda: spatial.smoothing(np.ones((9, 1)), np.ones((9, 1)), square(3, 3), []), "genes"),
    (lambda: maps.residual(np.ones((9, 1)), np.ones((8, 1))), "shape"),
])
def test_bad_input_is_one_error(call, field):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.field == field
