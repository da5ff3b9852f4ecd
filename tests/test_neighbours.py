"""Nearest neighbours against a plain sort, and an index against the exact search."""

import importlib.util

import numpy as np
import pytest
import torch

from mvhlib import neighbours
from mvhlib.artifacts import InputError

HAS_FAISS = importlib.util.find_spec("faiss") is not None


def curved(n, seed, dim=4, width=32):
    """Points of a curved sheet with `dim` directions in `width` dimensions."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    inner, outer = fixed.normal(size=(dim, 24)), fixed.normal(size=(24, width))
    return (np.tanh(rng.normal(size=(n, dim)) @ inner) @ outer).astype(np.float32)


def plain(gallery, queries, k, cosine):
    """Row numbers by a full stable sort in float64, one query after the other."""
    gallery, queries = gallery.astype(np.float64), queries.astype(np.float64)
    if cosine:
        gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return np.stack([np.argsort(-(gallery @ query), kind="stable")[:k] for query in queries])


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_exact_is_a_full_sort(metric, monkeypatch):
    monkeypatch.setattr(neighbours, "CPU_BLOCK", 1500)  # several blocks of queries
    gallery, queries = curved(500, 0), curved(20, 1)
    similarity, rows = neighbours.build(gallery, metric=metric).search(queries, 17)
    np.testing.assert_array_equal(rows, plain(gallery, queries, 17, metric == "cosine"))
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert similarity.dtype == np.float32 and rows.dtype == np.int64


@pytest.mark.parametrize("k", [1, 20, 90, 400])
def test_parts_of_the_gallery_change_no_neighbour(k, monkeypatch):
    # Small whole numbers: products are exact, so that there are ties within parts and between.
    rng = np.random.default_rng(0)
    gallery, queries = (rng.integers(-2, 3, (n, 6)).astype(np.float32) for n in (400, 30))
    index = neighbours.build(gallery, metric="dot")
    whole = index.search(queries, k)
    np.testing.assert_array_equal(whole[1], plain(gallery, queries, k, cosine=False))
    monkeypatch.setattr(neighbours, "ROWS_PER_NEIGHBOUR", 1)
    for rows in (1, 64, 100, 390):  # the last leaves ten, which join the part before
        monkeypatch.setattr(neighbours, "PART_ROWS", rows)
        for one, other in zip(index.search(queries, k), whole, strict=True):
            assert one.tobytes() == other.tobytes()


def test_exact_agrees_with_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    gallery, queries = curved(400, 2), curved(15, 3)
    distance, rows = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(
        gallery).kneighbors(queries)
    similarity, found = neighbours.build(gallery).search(queries, 10)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-5)


def test_ties_go_to_the_lower_row():
    one, other = np.eye(2, dtype=np.float32)
    gallery = np.stack([other, one, one, one, other, one])
    for k in (1, 2, 3, 4, 5):
        rows = neighbours.build(gallery).search(one, k)[1][0]
        assert rows.tolist() == [1, 2, 3, 5, 0][:k]


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_cells_at_full_effort_are_exact(metric):
    gallery, queries = curved(700, 4), curved(25, 5)
    index = neighbours.build(gallery, "cells", metric=metric, cells=13, seed=1)
    index.effort = index.most_effort
    expected = neighbours.build(gallery, metric=metric).search(queries, 12)
    for found in (index.search(queries, 12),
                  [np.concatenate(side) for side in
                   zip(*(index.search(query, 12) for query in queries), strict=True)]):
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(index.vectors(), neighbours.build(gallery, metric=metric).vectors())


def test_cells_reach_the_recall_that_is_asked_with_part_of_the_work():
    gallery, asked, queries = curved(20_000, 6), curved(100, 7), curved(100, 8)
    index = neighbours.build(gallery, "cells")
    reached = index.tune(asked, 20, at_least=0.95)
    truth = plain(gallery, queries, 20, True)
    assert reached >= 0.95
    assert neighbours.recall(index.search(queries, 20)[1], truth) > 0.92
    assert index.effort < index.most_effort / 4
    index.effort = 1
    assert neighbours.recall(index.search(queries, 20)[1], truth) < 0.95


def test_one_query_and_many_find_the_same():
    index = neighbours.build(curved(3000, 9), "cells")
    queries = curved(30, 10)
    together = index.search(queries, 5)[1]
    np.testing.assert_array_equal(
        together, np.concatenate([index.search(query, 5)[1] for query in queries]))


def test_few_vectors_per_cell_open_further_cells():
    index = neighbours.build(curved(60, 11), "cells", cells=20)
    index.effort = 1
    for queries in (curved(1, 12), curved(4, 13)):
        similarity, rows = index.search(queries, 40)
        assert np.isfinite(similarity).all()
        assert all(len(set(row)) == 40 for row in rows.tolist())


def test_equal_seeds_give_equal_cells():
    gallery = curved(2000, 14)
    first, second, third = (neighbours.build(gallery, "cells", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.centres, second.centres)
    assert not torch.equal(first.centres, third.centres)


def test_recall_counts_shared_neighbours():
    assert neighbours.recall(np.array([[1, 2, 3, 4]]), np.array([[4, 3, 9, 8]])) == 0.5


@pytest.mark.skipif(not HAS_FAISS, reason="faiss is not installed (extra search)")
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_faiss_reaches_the_recall(kind):
    gallery, asked, queries = curved(5000, 15), curved(50, 16), curved(50, 17)
    index = neighbours.build(gallery, kind)
    assert index.tune(asked, 20, at_least=0.95) >= 0.95
    assert neighbours.recall(index.search(queries, 20)[1], plain(gallery, queries, 20, True)) > 0.9
    np.testing.assert_allclose(index.vectors(), neighbours.build(gallery).vectors(), atol=1e-6)
    assert index.nbytes > gallery.nbytes


@pytest.mark.skipif(HAS_FAISS, reason="faiss is installed")
def test_faiss_that_is_missing_is_named():
    with pytest.raises(InputError, match=r'pip install "mvhlib\[search\]"'):
        neighbours.build(curved(10, 18), "hnsw")


@pytest.mark.parametrize("kind", ["exact", "cells"])
def test_bad_input(kind):
    index = neighbours.build(curved(30, 19), kind)
    with pytest.raises(InputError, match="k: is 31 for a gallery of 30"):
        index.search(curved(2, 20), 31)
    with pytest.raises(InputError, match="gallery is 32 wide"):
        index.search(np.zeros((2, 5), np.float32), 3)
    broken = curved(30, 19)
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        neighbours.build(broken, kind)
    with pytest.raises(InputError, match="kind"):
        neighbours.build(curved(5, 0), "annoy")
