"""Nearest neighbours among stored vectors, through one interface: exact or by an index.

=========  ======================================================================================
kind       what it is
=========  ======================================================================================
``exact``  every similarity is computed, in torch on any device; ties go to the lower row
``cells``  an inverted file of our own: k-means cells stored one after the other, of which those
           nearest to the query are searched; needs nothing but torch
``hnsw``   faiss's navigable small-world graph (Malkov and Yashunin 2018); extra ``search``
``ivf``    faiss's inverted file; extra ``search``
=========  ======================================================================================

An index finds most of the true neighbours, not all; how many is its recall, measured by `recall`
and set by `tune`, on queries like those that will be asked. Vectors that fill all of a space's
dimensions evenly have no structure that an index could use: it then searches nearly everything.

    index = neighbours.build(vectors, "cells")
    index.tune(some_queries, k=50, at_least=0.99)
    similarity, rows = index.search(queries, k=50)
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvhlib.artifacts import InputError

KINDS = ("exact", "cells", "hnsw", "ivf")
METRICS = ("cosine", "dot")

#: Similarities computed at once: 128 MB of float32.
BLOCK = 2**25

#: Values at once of the exact search on a CPU: 16 MB, which are written over from block to block,
#: where larger ones would be fresh memory every time.
CPU_BLOCK = 2**22

#: Rows of a gallery that the exact search compares at once, and at least so many per neighbour:
#: with fewer, finding the nearest of every part takes longer than those of the whole.
PART_ROWS, ROWS_PER_NEIGHBOUR = 2**16, 256

#: Training vectors per cell, and rounds, of k-means: more hardly moves the recall.
PER_CELL, ROUNDS = 64, 8


def build(vectors: Any, kind: str = "exact", *, metric: str = "cosine", device: str = "cpu",
          seed: int = 0, cells: int | None = None, links: int = 32) -> "Index":
    """Store vectors for search.

    Parameters
    ----------
    vectors
        `(n, D)`, an array or tensor; kept as float32.
    kind, metric
        See `KINDS` and `METRICS`. With ``"cosine"`` vectors and queries are divided by their norm.
    device
        Of the exact search; indices live on the CPU.
    seed
        Of k-means.
    cells
        Of ``cells`` and ``ivf``; None takes about 2 sqrt(n).
    links
        Of ``hnsw``, per vector and layer.

    Raises
    ------
    InputError
        On an unknown kind or metric, vectors that are not finite, or faiss that is not installed.
    """
    for name, value, known in (("kind", kind, KINDS), ("metric", metric, METRICS)):
        if value not in known:
            raise InputError("neighbours", name, f"is {value!r}", f"use one of {list(known)}")
    rows = torch.as_tensor(vectors)
    if rows.ndim != 2 or rows.numel() == 0:
        raise InputError("neighbours", "vectors", f"have shape {tuple(rows.shape)}",
                         "give (n, D) with at least one row and column")
    rows = rows.detach().float()
    # Both carry a NaN on, and need no arrays as large as the gallery.
    if not torch.isfinite(torch.stack(rows.aminmax())).all():
        raise InputError("neighbours", "vectors", "hold NaN or infinity", "embed them again")
    rows = _unit(rows) if metric == "cosine" else rows
    if kind == "exact":
        return Exact(rows.to(device), metric)
    rows = rows.cpu()
    number = cells or max(1, min(len(rows) // 4, round(2 * math.sqrt(len(rows)))))
    if not 1 <= number <= len(rows):
        raise InputError("neighbours", "cells", f"are {number} for {len(rows)} vectors",
                         "use 1 to the number of vectors")
    if kind == "cells":
        return Cells(rows, metric, number, seed)
    return Faiss(rows, metric, kind, number, links, seed)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


class Index:
    """Base of every kind of index.

    Attributes
    ----------
    n, width
        Vectors stored, and their width D.
    metric
        ``"cosine"`` or ``"dot"``.
    effort
        How much of an index is searched (cells, or faiss's efSearch); None for the exact search.
    """

    n: int
    width: int
    metric: str
    effort: int | None = None
    most_effort: int = 1

    def search(self, queries: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` most similar rows of each query, most similar first.

        Parameters
        ----------
        queries
            `(Q, D)`, or `(D,)` for one.
        k
            Neighbours, at most the number of vectors stored.

        Returns
        -------
        ndarray, ndarray
            Similarities `(Q, k)` float32 and row numbers `(Q, k)` int64.

        Raises
        ------
        InputError
            If `k` is larger than the gallery, or the widths differ.
        """
        asked = torch.as_tensor(queries).detach().float()
        asked = asked[None] if asked.ndim == 1 else asked
        if asked.ndim != 2 or asked.shape[1] != self.width:
            raise InputError("neighbours", "queries", f"have shape {tuple(asked.shape)}, the "
                             f"gallery is {self.width} wide", "embed both by one model")
        if not 1 <= k <= self.n:
            raise InputError("neighbours", "k", f"is {k} for a gallery of {self.n}",
                             f"use 1 to {self.n}, or a larger gallery")
        return self._search(_unit(asked) if self.metric == "cosine" else asked, k)

    def _search(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Memory that the index holds [bytes]."""
        raise NotImplementedError

    def vectors(self) -> Tensor:
        """The stored vectors `(n, D)` in the order that they were given."""
        raise NotImplementedError

    def tune(self, queries: Any, k: int, at_least: float = 0.99) -> float:
        """Set `effort` so that the recall on `queries` is enough, and return that recall.

        Take queries like those that will be asked, but not the same: embeddings of images, not
        the stored vectors, which find themselves too easily. At full effort an index searches
        everything.
        """
        if self.effort is None:
            return 1.0
        truth = Exact(self.vectors(), self.metric).search(queries, k)[1]

        def reached(effort: int) -> float:
            self.effort = effort
            return recall(self.search(queries, k)[1], truth)

        low, high = 0, 1
        while (found := reached(high)) < at_least and high < self.most_effort:
            low, high = high, min(2 * high, self.most_effort)
        while high - low > max(1, high // 16):  # doubling goes too far by up to a half
            middle = (low + high) // 2
            now = reached(middle)
            if now >= at_least:
                high, found = middle, now
            else:
                low = middle
        self.effort = high
        return found


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbours `(Q, k)` that were found, mean over queries."""
    shared = [len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]
    return float(np.mean(shared) / truth.shape[1])


class Exact(Index):
    """All similarities, block by block; ties go to the lower row number.

    Beside the vectors a search holds similarities of a few queries with a part of the gallery.
    """

    def __init__(self, rows: Tensor, metric: str):
        self.rows, self.metric = rows, metric
        self.n, self.width = rows.shape

    def _search(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        size = max(PART_ROWS, ROWS_PER_NEIGHBOUR * k)
        # No part is short, of either side: products of a few rows are rounded otherwise.
        starts = range(0, max(self.n - size // 8, 1), size)
        gallery = [self.rows[start:end]
                   for start, end in zip(starts, [*starts[1:], self.n], strict=True)]
        block = CPU_BLOCK if self.rows.device.type == "cpu" else BLOCK
        rounds = math.ceil(len(queries) / max(1, block // min(self.n, size)))
        parts = [self._nearest(some.to(self.rows.device), gallery, k)
                 for some in queries.tensor_split(max(1, rounds))]
        values, places = (torch.cat(side).cpu().numpy() for side in zip(*parts, strict=True))
        return values, places

    @staticmethod
    def _nearest(queries: Tensor, gallery: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
        """The `k` nearest of a few queries: those of each part of the gallery, and of these."""
        found, start = [], 0
        for rows in gallery:
            values, places = _largest(queries @ rows.T, min(k, len(rows)))
            found.append((values, places + start))
            start += len(rows)
        if len(found) == 1:
            return found[0]
        values, places = (torch.cat(side, dim=1) for side in zip(*found, strict=True))
        # Equal values stand in the order of their rows, within a part and from part to part.
        values, chosen = _largest(values, k)
        return values, places.gather(1, chosen)

    @property
    def nbytes(self) -> int:
        return self.rows.numel() * 4

    def vectors(self) -> Tensor:
        return self.rows


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each row `(Q, n)` in order; equal values by their place."""
    values, places = similarity.topk(k, dim=1)
    # topk takes any of several equal values at its edge; rows where that matters are sorted whole.
    edge = values[:, -1:]
    cut = torch.nonzero((similarity >= edge).sum(dim=1) > k).flatten()
    for row in cut.tolist():
        kept = torch.nonzero(similarity[row] >= edge[row]).flatten()
        order = similarity[row, kept].sort(descending=True, stable=True).indices[:k]
        values[row], places[row] = similarity[row, kept[order]], kept[order]
    places, by_place = places.sort(dim=1)
    values, by_value = values.gather(1, by_place).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, by_value)


class Cells(Index):
    """An inverted file: k-means cells, of which the nearest are searched exactly.

    A query first meets the centres of all cells, then the vectors of the `effort` cells whose
    centres are most similar, stored one after the other in memory (Jegou et al., TPAMI 2011,
    without their compression). Where those hold fewer than k vectors, further cells are opened.
    """

    def __init__(self, rows: Tensor, metric: str, cells: int, seed: int):
        self.n, self.width = rows.shape
        self.metric = metric
        self.centres = _k_means(rows, cells, seed)
        cell = _nearest_centre(rows, self.centres)
        self.order = torch.argsort(cell, stable=True)
        self.rows = rows[self.order]
        sizes = torch.bincount(cell, minlength=len(self.centres))
        self.ends = sizes.cumsum(0)
        self.starts = self.ends - sizes
        self.sizes = sizes
        self.most_effort = len(self.centres)
        self.effort = min(8, self.most_effort)

    def _search(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        if len(queries) == 1:
            return self._search_one(queries[0].numpy(), k)
        values = np.empty((len(queries), k), np.float32)
        places = np.empty((len(queries), k), np.int64)
        at_once = max(1, BLOCK // max(1, self.n * self.effort // self.most_effort * 2))
        for start in range(0, len(queries), at_once):
            block = queries[start:start + at_once]
            found = self._search_block(block, k)
            values[start:start + len(block)], places[start:start + len(block)] = found
        return values, places

    def _search_one(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """One query: cells are contiguous in memory, so that each is one product with a view."""
        rows, starts, ends = self.rows.numpy(), self.starts.numpy(), self.ends.numpy()
        nearest = np.argsort(-(self.centres.numpy() @ query), kind="stable")
        held = np.cumsum(self.sizes.numpy()[nearest])
        opened = nearest[:max(self.effort, int(np.searchsorted(held, k)) + 1)]
        similarity = np.empty(held[len(opened) - 1], np.float32)
        at = 0
        for start, end in zip(starts[opened].tolist(), ends[opened].tolist(), strict=True):
            np.dot(rows[start:end], query, out=similarity[at:at + end - start])
            at += end - start
        best = np.argpartition(-similarity, k - 1)[:k] if k < len(similarity) else np.arange(k)
        best = best[np.argsort(-similarity[best], kind="stable")]
        # Back from the place among the opened cells to the row that was given.
        rank = np.searchsorted(held, best, side="right")
        within = best - (held[rank] - self.sizes.numpy()[nearest[rank]])
        places = self.order.numpy()[starts[nearest[rank]] + within]
        return similarity[best][None], places[None]

    def _search_block(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        nearest = (queries @ self.centres.T).argsort(dim=1, descending=True, stable=True)
        held = self.sizes[nearest].cumsum(dim=1)  # vectors in the first 1, 2, ... cells
        opened = (held < k).sum(dim=1).add(1).clamp(min=self.effort)
        counts = held.gather(1, opened[:, None] - 1)[:, 0]
        width = int(counts.max())
        similarity = torch.full((len(queries), width), -torch.inf)
        where = torch.zeros(len(queries), width, dtype=torch.int64)
        is_open = torch.arange(nearest.shape[1]) < opened[:, None]
        query, rank = torch.nonzero(is_open, as_tuple=True)
        cell = nearest[query, rank]
        offset = held[query, rank] - self.sizes[cell]
        # All queries that open a cell meet it together: one matrix product per cell.
        by_cell = torch.argsort(cell, stable=True)
        query, offset, cell = query[by_cell], offset[by_cell], cell[by_cell]
        names, numbers = torch.unique_consecutive(cell, return_counts=True)
        begin = 0
        for name, number in zip(names.tolist(), numbers.tolist(), strict=True):
            start, end = int(self.starts[name]), int(self.ends[name])
            who, column = query[begin:begin + number], offset[begin:begin + number]
            begin += number
            if end == start:
                continue
            product = queries[who] @ self.rows[start:end].T
            columns = column[:, None] + torch.arange(end - start)
            similarity[who[:, None], columns] = product
            where[who[:, None], columns] = self.order[start:end].expand(number, -1)
        values, columns = similarity.topk(k, dim=1)
        return values.numpy(), where.gather(1, columns).numpy()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in
                   (self.rows, self.order, self.centres, self.starts, self.ends, self.sizes))

    def vectors(self) -> Tensor:
        return torch.empty_like(self.rows).index_copy_(0, self.order, self.rows)


def _k_means(rows: Tensor, cells: int, seed: int) -> Tensor:
    """Centres `(cells, D)` by Lloyd's rounds on a sample; an emptied cell takes a random vector."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(rows), generator=generator)[:cells * PER_CELL]
    sample = rows[sample]
    centres = sample[:cells].clone()
    for _ in range(ROUNDS):
        cell = _nearest_centre(sample, centres)
        # Sums in the order of the rows: index_add_ on one thread repeats bit by bit.
        sums = torch.zeros_like(centres).index_add_(0, cell, sample)
        sizes = torch.bincount(cell, minlength=cells)
        centres = sums / sizes.clamp(min=1)[:, None]
        empty = torch.nonzero(sizes == 0).flatten()
        if len(empty):
            spare = torch.randperm(len(sample), generator=generator)[:len(empty)]
            centres[empty] = sample[spare]
    return centres


def _nearest_centre(rows: Tensor, centres: Tensor) -> Tensor:
    """Number of the centre nearest to each row, by Euclidean distance, `(n,)`."""
    half = centres.square().sum(dim=1) / 2
    size = max(1, BLOCK // len(centres))
    return torch.cat([(part @ centres.T - half).argmax(dim=1) for part in rows.split(size)])


class Faiss(Index):
    """faiss's graph or inverted file over inner products, with the vectors uncompressed."""

    def __init__(self, rows: Tensor, metric: str, kind: str, cells: int, links: int, seed: int):
        try:
            import faiss
        except ImportError as error:
            raise InputError("neighbours", "kind", f"{kind!r} needs faiss ({error})",
                             'pip install "mvhlib[search]", or use kind="cells"') from error
        self.n, self.width = rows.shape
        self.metric, self.kind, self._faiss = metric, kind, faiss
        array = np.ascontiguousarray(rows.numpy())
        if kind == "hnsw":
            self.index = faiss.IndexHNSWFlat(self.width, links, faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efConstruction = 100
            self.most_effort = max(16, self.n)
        else:
            centres = faiss.IndexFlatIP(self.width)
            self.index = faiss.IndexIVFFlat(centres, self.width, cells,
                                            faiss.METRIC_INNER_PRODUCT)
            self.index.own_fields = True
            centres.this.disown()
            self.index.cp.seed = seed + 1
            self.index.cp.max_points_per_centroid = PER_CELL
            self.index.cp.min_points_per_centroid = 1
            self.index.train(array)
            self.index.make_direct_map()
            self.most_effort = cells
        self.index.add(array)
        self.effort = min(64 if kind == "hnsw" else 8, self.most_effort)

    def _search(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries, effort = np.ascontiguousarray(queries.numpy()), self.effort
        while True:
            if self.kind == "hnsw":
                self.index.hnsw.efSearch = max(effort, k)
            else:
                self.index.nprobe = effort
            values, places = self.index.search(queries, k)
            # Fewer than k found: faiss fills up with -1. Search wider until every place is taken.
            if (places >= 0).all() or effort >= self.most_effort:
                return values, places
            effort = min(2 * effort, self.most_effort)

    @property
    def nbytes(self) -> int:
        return len(self._faiss.serialize_index(self.index))

    def vectors(self) -> Tensor:
        return torch.from_numpy(self.index.reconstruct_n(0, self.n))
