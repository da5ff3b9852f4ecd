"""Positions of spots and bins: Space Ranger's tables, every cell of them checked."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort.feature_matrix import read_lines
from mvhlib.cohort.visium.layouts import COPY_SPATIAL, TRUNCATED, first_of

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres",
                    "pxl_col_in_fullres")
POSITION_FILES = ("tissue_positions.csv", "tissue_positions.parquet", "tissue_positions_list.csv",
                  "tissue_positions.csv.gz", "tissue_positions_list.csv.gz")


def read_positions(folder: Path) -> pd.DataFrame:
    """Positions by barcode; files of Space Ranger 1 have no header, those of 2 and later do."""
    path = first_of(folder, POSITION_FILES)
    if path is None:
        raise InputError(folder, "tissue_positions", "does not exist", COPY_SPATIAL)
    check_file(path)
    if path.suffix == ".parquet":
        with reading(path, "table", fix=TRUNCATED):
            table = pd.read_parquet(path)
            if "barcode" in table.index.names:
                table = table.reset_index()
    else:
        table = _position_rows(path)
    missing = [column for column in POSITION_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "copy the file again from the Space Ranger output")
    if len(table) == 0:
        raise InputError(path, "rows", "are none", "copy the file again from the Space Ranger "
                         "output")
    table = table.reset_index(drop=True)
    barcode = table["barcode"].map(as_text)
    odd = (barcode == "") | ~barcode.map(str.isprintable).astype(bool)
    if odd.any():
        raise InputError(path, "barcode", f"is {barcode[odd].iloc[0]!r} for spot "
                         f"{int(odd.argmax()) + 1}: blank or no text",
                         "give every spot its barcode")
    if barcode.duplicated().any():
        raise InputError(path, "barcode", "stands more than once, for example "
                         f"{list(barcode[barcode.duplicated()][:3])}", "keep one row per barcode")
    columns = {"in_tissue": _column(table, "in_tissue", path, 0, 1, whole=True)}
    for name in ("array_row", "array_col"):
        columns[name] = _column(table, name, path, 0, 100_000, whole=True)
    for name in ("pxl_row_in_fullres", "pxl_col_in_fullres"):
        columns[name] = _column(table, name, path, -1e7, 1e7)
    found = pd.DataFrame(columns).set_axis(pd.Index(barcode, name="barcode"))
    shared = found.duplicated(["array_row", "array_col"])
    if shared.any():
        raise InputError(path, "array_row, array_col", f"{found.index[shared.argmax()]} has the "
                         "position of another barcode", "give every barcode its own position")
    return found


def array_places(positions: pd.DataFrame) -> np.ndarray:
    """Places on the array `(n, 2)`: row, column."""
    return positions[["array_row", "array_col"]].to_numpy(float)


def pixels(positions: pd.DataFrame) -> np.ndarray:
    """Places in the full image `(n, 2)`: x, y [px]."""
    return positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)


def as_text(value: Any) -> str:
    """A cell as text: None and NaN of a parquet table are blank."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return "" if value is None or value is pd.NA or value != value else str(value).strip()


def _position_rows(path: Path) -> pd.DataFrame:
    """Cells of a csv as text, under the header's names or Space Ranger's order."""
    lines = read_lines(path)
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = [(number, [cell.strip().strip('"') for cell in line.split(separator)])
            for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(path, "rows", "are none", "copy the file again from the Space Ranger "
                         "output")
    header = rows[0][1] if "barcode" in rows[0][1] else list(POSITION_COLUMNS)
    body = rows[1:] if "barcode" in rows[0][1] else rows
    if len(set(header)) < len(header):
        raise InputError(path, "columns", f"occur twice: {header}", "keep one of each")
    if header is rows[0][1] and not set(POSITION_COLUMNS) <= set(header):
        return pd.DataFrame(columns=header)  # the caller says which are missing
    for number, cells in body:
        if len(cells) != len(header):
            raise InputError(path, f"row {number}", f"has {len(cells)} cells for {len(header)} "
                             "columns", TRUNCATED)
    return pd.DataFrame([cells for _, cells in body], columns=header, dtype=object)


def _column(table: pd.DataFrame, name: str, path: Path, low: float, high: float, *,
            whole: bool = False) -> np.ndarray:
    """Numbers of a column, each of them checked; types of a parquet file stay what they are."""
    given = table[name]
    if given.dtype.kind in "iuf":
        found = given.to_numpy()
        number = found.astype(float)
    elif given.dtype.kind == "b":
        number = given.to_numpy().astype(float)
        found = number.astype(np.int64)
    else:
        number = np.array([_number(cell) for cell in given], dtype=float)
        safe = np.isfinite(number).all() and (number == np.floor(number)).all()
        found = number.astype(np.int64) if safe else number
    wrong = ~((number >= low) & (number <= high))
    if whole:
        wrong |= number != np.floor(number)
    if wrong.any():
        at = int(wrong.argmax())
        kind = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
        raise InputError(path, name, f"is {as_text(given.iloc[at])!r} for barcode "
                         f"{as_text(table['barcode'].iloc[at])!r} (spot {at + 1}), not {kind}",
                         "copy the file again from the Space Ranger output")
    return found


def _number(cell: Any) -> float:
    """The number that a cell spells, NaN where it spells none."""
    text = as_text(cell)
    # Python also reads 1_000 and digits of other scripts.
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) \
        else np.nan
