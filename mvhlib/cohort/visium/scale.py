"""Scale factors of Space Ranger, and the agreement of two statements of one quantity."""

import json
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort.visium.layouts import COPY_SPATIAL

#: How far a stated scale may be from the measured one, as a share of it.
SCALE_TOLERANCE = 0.05


def read_scalefactors(folder: Path) -> dict[str, Any]:
    """Contents of ``scalefactors_json.json`` in ``spatial``, its factors checked.

    Raises
    ------
    InputError
        If the file is missing or broken, or a factor is no number above 0.
    """
    path = folder / "scalefactors_json.json"
    if not path.exists() and not path.is_symlink():
        raise InputError(path, "file", "does not exist", COPY_SPATIAL)
    check_file(path)
    with reading(path, problem="is not JSON", fix="copy it again from the Space Ranger output"):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(found, dict):
        raise InputError(path, "file", f"holds a {type(found).__name__}, not names and "
                         "values", "copy it again from the Space Ranger output")
    for key in ("spot_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef",
                "microns_per_pixel", "bin_size_um"):
        scale_factor(found, key, path)
    return found


def scale_factor(scalefactors: dict[str, Any], key: str, where: Path, *,
                 needed: bool = False) -> float | None:
    """A scale factor: a number above 0, or None where the file has none."""
    value = scalefactors.get(key)
    if value is None:
        if needed:
            raise InputError(where, key, "is missing" if key not in scalefactors else "is null",
                             "copy it again from the Space Ranger output")
        return None
    high = 10.0 if key.startswith("tissue_") else 1e5
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= high:
        raise InputError(where, key, f"is {value!r}, not a number above 0 and up to {high:g}",
                         "copy it again from the Space Ranger output")
    return float(value)


def agree(stated: float | None, measured: float | None, where: Path | str, field: str,
          what: str, fix: str, unit: str = "µm/px") -> None:
    """Refuse two values of one quantity that are more than 5 % apart."""
    if stated is None or measured is None:
        return
    if abs(stated / measured - 1) > SCALE_TOLERANCE:
        raise InputError(where, field, f"is {stated:.4g} {unit}, but {what} {measured:.4g}", fix)
