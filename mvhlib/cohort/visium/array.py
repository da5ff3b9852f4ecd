"""The array that spots stand on: its kind and its scale, measured from their positions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.visium.positions import array_places, pixels
from mvhlib.cohort.visium.scale import SCALE_TOLERANCE, scale_factor

#: Distance of neighbouring Visium spots and their diameter [µm].
PITCH_UM, SPOT_UM = 100.0, 55.0
#: Diameter [µm] that Space Ranger's ``spot_diameter_fullres`` stands for: not the 55 µm of a
#: spot, but a theoretical 65 µm (Space Ranger documentation, "Imaging outputs").
SCALEFACTOR_SPOT_UM = 65.0
#: What that diameter may measure [µm]: some versions do write the 55 µm.
SPOT_RANGE_UM = (50.0, 70.0)
#: How far spots may be from the lattice fitted to them: root mean square, and the worst [µm].
RMS_UM, WORST_UM = 15.0, 50.0


def fit_steps(grid: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels per unit of each axis `(2, 2)`, and each spot's distance from that lattice [px]."""
    design = np.column_stack([grid - grid.mean(0), np.ones(len(grid))])
    if len(grid) < 3 or np.linalg.matrix_rank(design) < 3:
        return None
    fitted = np.linalg.lstsq(design, pixel, rcond=None)[0]
    return fitted[:2], np.linalg.norm(pixel - design @ fitted, axis=1)


def measure_mpp(positions: pd.DataFrame, scalefactors: dict[str, Any], where) -> float:
    """Micrometres per pixel of the full image, from neighbouring spots 100 µm apart.

    In a row of the hexagonal lattice neighbours differ by two in ``array_col``; a column step is
    50 µm, a row step 86.6 µm. Both are fitted to all spots. A layout that does not allow it
    falls back to ``spot_diameter_fullres``, which stands for 65 µm.

    Raises
    ------
    InputError
        If neither gives a scale.
    """
    um, pixel = _lattice_um(positions), pixels(positions)
    found = fit_steps(um, pixel)
    if found is not None:
        lengths = np.linalg.norm(found[0], axis=1)  # px per µm, along each axis
        if lengths.min() > 0:
            return float(1 / lengths.mean())
    diameter = scale_factor(scalefactors, "spot_diameter_fullres", where)
    if diameter is None:
        raise InputError(where, "spot_diameter_fullres", "is missing", "pass mpp=")
    return SCALEFACTOR_SPOT_UM / diameter


def _lattice_um(positions: pd.DataFrame) -> np.ndarray:
    """Places on a Visium array `(n, 2)` [µm], along its rows' and its columns' axis."""
    return array_places(positions) * [PITCH_UM * 3**0.5 / 2, PITCH_UM / 2]


def check_lattice(steps: np.ndarray, off: np.ndarray, um_per_px: float, names: pd.Index,
                  where: Path) -> None:
    """Refuse positions that do not lie where their array positions put them."""
    rows, columns = steps
    cosine = rows @ columns / (np.linalg.norm(rows) * np.linalg.norm(columns))
    rms, worst = float(np.sqrt(np.mean(off**2))) * um_per_px, int(off.argmax())
    if abs(cosine) > 0.1 or rms > RMS_UM or off[worst] * um_per_px > WORST_UM:
        raise InputError(
            where, "pxl_row_in_fullres, pxl_col_in_fullres", "do not fit array_row and array_col: "
            f"spots are {rms:.3g} um from the lattice on average, {names[worst]} is "
            f"{off[worst] * um_per_px:.3g} um from it",
            "copy the table of positions again from the Space Ranger output")


def lies_transposed(positions: pd.DataFrame) -> bool:
    """Whether rows of the array run along the image's width and its columns along the height.

    A scan that was turned by a quarter does not lie so: there one of the two runs backwards.
    """
    found = fit_steps(_lattice_um(positions), pixels(positions))
    if found is None:
        return False
    across, along = found[0]  # a row further, a column further: (x, y) [px/µm]
    return bool(across[0] > 0.94 * np.linalg.norm(across) > 0
                and along[1] > 0.94 * np.linalg.norm(along) > 0)


def array_kind(positions: pd.DataFrame, where: Path, transposed: bool) -> str:
    """The kind of the array, hexagonal or square, by its pixels; anything else is refused."""
    found = fit_steps(_lattice_um(positions), pixels(positions))
    if found is None:
        return "hexagonal"  # too few spots to tell
    steps, off = found
    lengths = np.linalg.norm(steps, axis=1)
    if not lengths.min() > 0:
        raise InputError(where, "pxl_row_in_fullres, pxl_col_in_fullres", "are all the same along "
                         "one axis of the array", "copy the table of positions again")
    check_lattice(steps, off, 1 / float(lengths.max()), positions.index, where)
    ratio = lengths[0] / lengths[1]
    if abs(ratio * 3 - 1) < 3 * SCALE_TOLERANCE:
        raise InputError(where, "array_row, array_col", "are swapped: a row further is "
                         f"{lengths[0] * PITCH_UM * 3**0.5 / 2:.4g} px and a column further "
                         f"{lengths[1] * PITCH_UM / 2:.4g} px, where rows lie 1.73 times as far "
                         "apart as columns", "exchange the two columns")
    square = abs(ratio * 3**0.5 - 1) < SCALE_TOLERANCE
    if not square and abs(ratio - 1) > SCALE_TOLERANCE:
        raise InputError(where, "array_row, array_col", f"a row further is "
                         f"{lengths[0] * PITCH_UM * 3**0.5 / 2:.4g} px and a column further "
                         f"{lengths[1] * PITCH_UM / 2:.4g} px, which is neither a hexagonal "
                         "array (1.73 to 1) nor a square one",
                         "copy the table of positions again from the Space Ranger output")
    if not transposed and lies_transposed(positions):
        raise InputError(where, "pxl_row_in_fullres, pxl_col_in_fullres", "rows of the array run "
                         "along the image's width and columns along its height, as if the two were "
                         "swapped", "exchange the two columns, or pass transposed=True if the "
                         "image is really turned like this")
    return "square" if square else "hexagonal"
