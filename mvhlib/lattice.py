"""The array that spots lie on: its pitch, its kind, rows and columns, neighbours and blocks.

Everything is told from the spot centres, whatever the rotation of the image, so that it holds for
legacy arrays, Visium and bins alike.
"""

import logging

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from mvhlib.artifacts import InputError

#: Neighbours of a spot on the two kinds of array.
SQUARE, HEXAGONAL = 4, 6

#: Sides of a block for the spatial bootstrap [spots].
BLOCK_SPOTS = 5


def nearest(coords: np.ndarray) -> np.ndarray:
    """Distance of each spot to the nearest other one, `(T,)`, in the unit of `coords`."""
    coords = np.asarray(coords, dtype=np.float64)
    return cKDTree(coords).query(coords, k=2)[0][:, 1]


def pitch(coords: np.ndarray) -> float:
    """Distance of neighbouring spots: the median over spots of that to the nearest one.

    Parameters
    ----------
    coords
        Spot centres `(T, 2)`, two or more.

    Returns
    -------
    float
        In the unit of `coords`; 0 where most spots share a point with another one.
    """
    return float(np.median(nearest(coords)))


def neighbours_on(coords: np.ndarray) -> int:
    """Neighbours per spot of the array: 4 (legacy ST, binned HD) or 6 (Visium), from coordinates.

    The directions to the nearest spots repeat every 90 or every 60 degrees, whatever the rotation
    of the image: the larger of the two bond-orientation averages decides (Halperin and Nelson
    1978). Holes, edges and a tenth of a pitch of jitter do not matter.

    Parameters
    ----------
    coords
        Spot centres `(T, 2)`, any unit, equal scale on both axes.

    Raises
    ------
    InputError
        With fewer than four spots, or spots that share a point.
    """
    coords = np.asarray(coords, dtype=np.float64)
    if len(coords) < 4:
        raise InputError("lattice", "spots", f"are {len(coords)}", "use a section with more spots")
    distance, index = cKDTree(coords).query(coords, k=min(7, len(coords)))
    distance, index = distance[:, 1:], index[:, 1:]
    pitch = np.median(distance[:, 0])
    if distance[:, 0].min() <= 1e-9 * max(pitch, 1e-300):
        raise InputError("lattice", "coordinates", "several spots lie on one point",
                         "give one position per spot")
    step = coords[index] - coords[:, None]
    angle = np.arctan2(step[..., 1], step[..., 0])
    near = distance <= 1.25 * pitch
    order = {fold: np.abs((np.exp(1j * fold * angle) * near).sum(axis=1)).sum() / near.sum()
             for fold in (SQUARE, HEXAGONAL)}
    return SQUARE if order[SQUARE] >= order[HEXAGONAL] else HEXAGONAL


def graph(coords: np.ndarray, n_neighbors: int | None = None) -> sparse.csr_matrix:
    """Neighbours on the array, rows scaled to sum 1, by `squidpy.gr.spatial_neighbors`.

    Parameters
    ----------
    coords
        Spot centres `(T, 2)`.
    n_neighbors
        4 or 6; None to detect it by `neighbours_on`.

    Returns
    -------
    sparse.csr_matrix
        `(T, T)`; a spot without neighbours has an empty row.
    """
    import anndata
    import squidpy

    coords = np.asarray(coords, dtype=np.float64)
    kind = neighbours_on(coords) if n_neighbors is None else n_neighbors
    adata = anndata.AnnData(sparse.csr_matrix((len(coords), 1), dtype=np.float32))
    adata.obsm["spatial"] = coords
    # squidpy announces every graph; one line per section and encoder drowns a notebook.
    announcer = logging.getLogger("spatialdata._logging")
    level = announcer.level
    announcer.setLevel(logging.WARNING)
    try:
        if hasattr(squidpy.gr, "spatial_neighbors_grid"):  # since squidpy 1.8
            squidpy.gr.spatial_neighbors_grid(adata, n_neighs=kind, n_rings=1)
        else:
            squidpy.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=kind, n_rings=1)
    finally:
        announcer.setLevel(level)
    links = sparse.csr_matrix(adata.obsp["spatial_connectivities"], dtype=np.float64)
    degree = np.asarray(links.sum(axis=1)).ravel()
    scale = np.divide(1.0, degree, out=np.zeros_like(degree), where=degree > 0)
    return sparse.csr_matrix(sparse.diags(scale) @ links)


def array_positions(coords: np.ndarray) -> np.ndarray:
    """Row and column on the array from spot centres, whatever the image's rotation and jitter.

    Steps between neighbours are rounded to the array's directions and added up along a walk from
    spot to spot, so that neither drift nor a small rotation adds up to a wrong row; islands are
    placed by a linear fit to the largest piece.

    Parameters
    ----------
    coords
        `(T, 2)`, any unit.

    Returns
    -------
    np.ndarray
        `(T, 2)` int64 from 0. On a hexagonal array (Visium) columns count half pitches and
        ``row + column`` is even, as Visium's own ``array_row`` and ``array_col`` have it.

    Raises
    ------
    InputError
        If two spots fall on one place.
    """
    coords = np.asarray(coords, dtype=np.float64)
    order = neighbours_on(coords)
    distance = pitch(coords)
    a, b = cKDTree(coords).query_pairs(1.3 * distance, output_type="ndarray").T
    step = coords[b] - coords[a]
    turn = np.angle(np.exp(1j * order * np.arctan2(step[:, 1], step[:, 0])).sum()) / order
    # Directions of a row and of the next row, in array units; multiples of the turn's period.
    if order == 4:
        axes, units = (0.0, np.pi / 2), np.array([[0, 1], [1, 0]])
    else:
        axes, units = (0.0, np.pi / 3), np.array([[0, 2], [1, 1]])
    frame = distance * np.array([[np.cos(turn + angle), np.sin(turn + angle)] for angle in axes])
    hops = np.rint(step @ np.linalg.inv(frame)).astype(np.int64)
    n = len(coords)
    links = sparse.coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])),
                              shape=(n, n)).tocsr()
    _, piece = csgraph.connected_components(links, directed=False)
    largest = np.flatnonzero(piece == np.bincount(piece).argmax())
    hop = {(i, j): h for i, j, h in zip(a.tolist(), b.tolist(), hops, strict=True)}
    walked, before = csgraph.breadth_first_order(links, largest[0], directed=False)
    index = np.zeros((n, 2), dtype=np.int64)
    for spot in walked[1:].tolist():
        last = int(before[spot])
        index[spot] = index[last] + (hop[last, spot] if (last, spot) in hop
                                     else -hop[spot, last])
    known = np.c_[coords[largest], np.ones(len(largest))]
    if np.linalg.matrix_rank(known - known.mean(axis=0)) >= 2:
        fit = np.linalg.lstsq(known, index[largest].astype(np.float64), rcond=None)[0]
    else:  # one row of spots says nothing about the other direction
        linear = np.linalg.inv(frame)
        fit = np.vstack([linear, -coords[largest[0]] @ linear])
    islands = piece != piece[largest[0]]
    index[islands] = np.rint(np.c_[coords[islands], np.ones(islands.sum())] @ fit).astype(np.int64)
    places = index @ units
    places -= places.min(axis=0)
    if order == 6:
        places[:, 1] += places[0].sum() % 2  # the parity that the walk's start was given
    if len(np.unique(places, axis=0)) < n:
        raise InputError("array positions", "coordinates", "put two spots on one position of the "
                         "array", "give the array's own rows and columns")
    return places


def spatial_blocks(coords: np.ndarray, side_spots: int = BLOCK_SPOTS,
                   least: int = 4) -> np.ndarray:
    """Assign the spots of one section to square blocks.

    Parameters
    ----------
    coords
        `(T, 2)`, any unit.
    side_spots
        Side of a block in distances between neighbouring spots; halved (by ones) until there are
        `least` blocks.
    least
        Blocks wanted at least.

    Returns
    -------
    np.ndarray
        Label per spot, 0 to the number of blocks less one.
    """
    coords = np.asarray(coords, dtype=np.float64)
    if len(coords) < 2:
        return np.zeros(len(coords), dtype=np.int64)
    distance = pitch(coords)
    if distance == 0:
        raise InputError("spatial blocks", "coordinates", "several spots lie on one point",
                         "give one position per spot")
    start = coords.min(axis=0) - distance / 2
    for side in range(side_spots, 0, -1):
        cell = np.floor((coords - start) / (side * distance)).astype(np.int64)
        labels = np.unique(cell, axis=0, return_inverse=True)[1].ravel()
        if labels.max() + 1 >= least:
            break
    return labels
