"""Checks of counts, places and scales before anything is computed from them."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_sayable

if TYPE_CHECKING:
    from anndata import AnnData

#: Least and most of what can be the scale of a section's image [um/px]: from a cell's organelles
#: to a slide of a few dozen pixels.
MPP_RANGE = (0.01, 1000.0)
#: Largest share of spots that may lie outside the image: the rim of a scan cuts single spots.
MOST_OUTSIDE = 0.05

#: Places beyond this are no pixels of any image [px].
FARTHEST_PX = 1e8


def check_mpp(mpp: Any, where, field: str = "mpp") -> float:
    """Micrometres per pixel as a float, if they can be [um/px].

    Raises
    ------
    InputError
        If it is text, NaN, infinite, 0, negative or beyond `MPP_RANGE`.
    """
    low, high = MPP_RANGE
    number = isinstance(mpp, (Real, np.number)) and not isinstance(mpp, (bool, np.bool_))
    if not number or not low <= float(mpp) <= high:
        raise InputError(where, field, f"is {mpp!r}",
                         f"give micrometres per pixel, a number from {low:g} to {high:g} with a "
                         "decimal point")
    return float(mpp)


def check_scale(stated: float, measured: float, where, field: str, *, said: str, seen: str,
                tolerance: float = 0.1) -> None:
    """Refuse a scale, or a distance, that contradicts the measured one.

    Parameters
    ----------
    stated, measured
        In one unit, which `said` and `seen` name.
    said, seen
        What each is, for the error: ``"mpp is {:.4g} um/px"``.
    tolerance
        Share by which they may differ.

    Raises
    ------
    InputError
        If they differ by more; both numbers are in it.
    """
    if not abs(math.log(stated / measured)) <= math.log1p(tolerance):
        raise InputError(where, field, f"{said.format(stated)}, but {seen.format(measured)}",
                         "correct the one that is wrong; they must agree within "
                         f"{tolerance:.0%}")


def check_inside(centers: np.ndarray, size: tuple[int, int], where, field: str = "image") -> None:
    """Refuse an image that does not fit the spots' places.

    Parameters
    ----------
    centers
        Spot centres (x, y), `(T, 2)` [px of the image].
    size
        Width and height of the image [px].

    Raises
    ------
    InputError
        If more than `MOST_OUTSIDE` of the spots lie outside; it names the share and the likely
        reason.
    """
    centers, size = np.asarray(centers, dtype=np.float64), np.asarray(size, dtype=np.float64)
    outside = ((centers < 0) | (centers >= size)).any(axis=1)
    n = int(outside.sum())
    if n <= max(1, MOST_OUTSIDE * len(centers)) and n < len(centers):
        return
    reach = centers.max(axis=0)
    over = float((reach / size).max())
    turned = ((centers[:, ::-1] < 0) | (centers[:, ::-1] >= size)).any(axis=1)
    if turned.sum() <= MOST_OUTSIDE * len(centers):
        reason = "x and y are swapped, or the image was turned"
    elif over > 1.5:
        reason = f"the image was reduced (about {over:.3g} times, or more) or cropped"
    elif (centers < 0).any():
        reason = "the image was cropped, or the positions belong to another one"
    else:
        reason = "the image was cropped, turned or reduced"
    raise InputError(where, field, f"{n} of {len(centers)} spots ({n / len(centers):.0%}) lie "
                     f"outside its {size[0]:.0f} x {size[1]:.0f} px (they reach {reach[0]:.0f}, "
                     f"{reach[1]:.0f}): {reason}", "give the image that these positions belong to")


def check_sparse(matrix: Any, where, field: str = "counts") -> None:
    """Refuse a compressed sparse matrix whose pointers lead outside its arrays.

    SciPy believes them, and a wrong one ends the process: check before anything is computed.

    Parameters
    ----------
    matrix
        CSR or CSC of SciPy, or whatever has its `indptr`, `indices`, `data` and `shape`.

    Raises
    ------
    InputError
        If `indptr` does not rise from 0 to the number of values, or an index is out of bounds.
    """
    indptr, indices = np.asarray(matrix.indptr), np.asarray(matrix.indices)
    fix = "the file is damaged: copy or make it again"
    if np.ndim(matrix.data) != 1:
        raise InputError(where, field, f"values are of shape {np.shape(matrix.data)}", fix)
    n_values = len(matrix.data)
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise InputError(where, field, f"indptr or indices are {indptr.dtype} and {indices.dtype}, "
                         "not whole numbers", fix)
    rows, columns = matrix.shape
    major, minor = (columns, rows) if getattr(matrix, "format", "csr") == "csc" else (rows, columns)
    if indptr.shape != (major + 1,) or indptr[0] != 0 or indptr[-1] != n_values or \
            (indptr[1:] < indptr[:-1]).any():
        raise InputError(where, field, f"indptr does not rise from 0 to the {n_values} values in "
                         f"{major} steps", fix)
    if indices.shape != (n_values,) or (
            n_values and not (0 <= int(indices.min()) and int(indices.max()) < minor)):
        raise InputError(where, field, f"indices point outside the {minor} genes or spots", fix)


def signed_indices(matrix: Any) -> Any:
    """The sparse matrix with indices that SciPy computes with; some programs write unsigned ones.

    A dense matrix, and one whose indices are signed, comes back as it is.
    """
    for name in ("indices", "indptr"):
        found = getattr(matrix, name, None)
        if found is not None and found.dtype.kind == "u":
            setattr(matrix, name, found.astype(np.int64))
    return matrix


def _check_identifiers(names: Iterable[str], where, field: str) -> None:
    """Refuse barcodes or genes of which one is blank, holds a control character, or is repeated.

    Raises
    ------
    InputError
        Names the first of them, as `field` of `where`.
    """
    index = pd.Index(names)
    blank = np.array([not str(name).strip() for name in index])
    if blank.any():
        raise InputError(where, field, f"is blank in {int(blank.sum())} of {len(index)} places, "
                         f"the first is number {int(blank.argmax()) + 1}",
                         "give every one its name")
    check_sayable(index, where, field)
    if not index.is_unique:
        twice = list(index[index.duplicated()][:3])
        raise InputError(where, field, f"stands more than once, for example {twice}",
                         "make the names unique or sum the rows")


def check_counts(adata: "AnnData", where) -> None:
    """Refuse a matrix that does not hold raw counts.

    Raises
    ------
    InputError
        On repeated or blank barcodes or genes, negative, fractional, missing or impossibly large
        counts, counts that are all 0, or no spot at all.
    """
    if adata.n_obs == 0:
        raise InputError(where, "spots", "no spot lies on tissue",
                         "check which spots are selected, and that the barcodes of all files agree")
    if adata.n_vars == 0:
        raise InputError(where, "genes", "there is none", "give a table with one gene or more")
    _check_identifiers(adata.obs_names, where, "barcode")
    _check_identifiers(adata.var_names, where, "gene")
    counts = adata.layers.get("counts")
    if counts is None:
        raise InputError(where, 'layers["counts"]', "is missing", "store the raw counts there")
    if hasattr(counts, "indptr"):
        check_sparse(counts, where)
    values = np.asarray(counts.data if hasattr(counts, "tocsr") else counts)
    if values.dtype.kind not in "iufb":
        raise InputError(where, "counts", f"are {values.dtype}, not numbers",
                         "store the raw counts")
    if not np.isfinite(values).all():
        raise InputError(where, "counts", "hold NaN or infinity", "store the raw counts")
    if (values < 0).any():
        raise InputError(where, "counts", f"are negative (least {values.min():g})",
                         "store raw counts, not scaled or corrected values")
    if (values != np.round(values)).any():
        raise InputError(where, "counts", "are fractional",
                         "store raw counts, not normalised values")
    most = values.max(initial=0)
    if most == 0:
        raise InputError(where, "counts", f"are 0 in all of {adata.n_obs} spots",
                         "give the counts of this section, or leave it out")
    if most > np.iinfo(np.int32).max:
        raise InputError(where, "counts", f"reach {most:g}, more than a spot can hold",
                         "store the raw counts")


def check_places(adata: "AnnData", where) -> None:
    """Refuse spots whose places are not known.

    Raises
    ------
    InputError
        If ``obsm["spatial"]`` is not `(T, 2)` finite numbers, or all spots stand at one place.
    """
    name = 'obsm["spatial"]'
    if "spatial" not in adata.obsm:
        raise InputError(where, name, "is missing", "store the spots' centres (x, y) there")
    places = np.asarray(adata.obsm["spatial"])
    if places.shape != (adata.n_obs, 2) or places.dtype.kind not in "iuf":
        raise InputError(where, name, f"is {places.dtype} of shape {places.shape}",
                         f"store numbers of shape ({adata.n_obs}, 2)")
    lost = ~(np.abs(places.astype(np.float64)) <= FARTHEST_PX).all(axis=1)
    if lost.any():
        first = int(lost.argmax())
        raise InputError(where, name, f"is {places[first].tolist()} for spot "
                         f"{adata.obs_names[first]!r} (and {int(lost.sum()) - 1} more)",
                         "give every spot a finite position, or leave it out")
    if len(places) > 2 and (places == places[0]).all():
        raise InputError(where, name, f"is {places[0].tolist()} for all of {len(places)} spots",
                         "give every spot its own position")
