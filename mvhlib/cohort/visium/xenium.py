"""Xenium: transcripts, counted in squares, and the alignment that carries them into the image."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.cohort import pseudospots
from mvhlib.cohort.base import MPP_RANGE, Cohort, Section
from mvhlib.cohort.feature_matrix import open_packed
from mvhlib.cohort.visium.array import fit_steps
from mvhlib.cohort.visium.images import full_image
from mvhlib.cohort.visium.layouts import TRANSCRIPT_FILES, TRUNCATED, find_outputs, first_of
from mvhlib.cohort.visium.positions import as_text
from mvhlib.cohort.visium.scale import SCALE_TOLERANCE, agree
from mvhlib.cohort.visium.sections import assemble, make_cohort, number_option

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Side of a pixel of Xenium's morphology image [µm].
XENIUM_PX_UM = 0.2125


def read_xenium(path: str | Path, *, spot_um: float = 100.0, min_counts: int = 10,
                min_qv: float = 20.0, samples: str | Path | pd.DataFrame | None = None,
                study: str | None = None, patient: str | None = None,
                image: str | Path | None = None, mpp: float | None = None) -> Cohort:
    """Read Xenium, its transcripts counted in squares of `spot_um`; controls are dropped.

    Positions are ``he_x, he_y`` [px of the H&E image] where the table has them (HEST's layout),
    else ``x_location, y_location`` [µm]. The latter are carried into the H&E image by the 3 x 3
    matrix that Xenium exports (column ``alignment`` of the samples table; it maps H&E pixels to
    pixels of the morphology image); without it the section is expression-only.

    Parameters
    ----------
    path
        Folder with ``transcripts.parquet`` (or .csv, .csv.gz), or a folder of several.
    spot_um
        Side of a pseudo-spot [µm].
    min_counts
        Pseudo-spots with fewer transcripts are left out.
    min_qv
        Transcripts of a lower quality value are left out (20 is Xenium's own limit).
    samples, study, patient, image
        As in `mvhlib.cohort.visium.read`.
    mpp
        Micrometres per pixel of the H&E image [µm/px]; needed with ``he_x, he_y``, else taken
        from the matrix.

    Raises
    ------
    InputError
        If a file is missing or broken, a column is missing, or the scale is not known.
    """
    spot_um = number_option("spot_um", spot_um, above=0.0)
    min_counts = number_option("min_counts", min_counts, low=0.0)
    min_qv = number_option("min_qv", min_qv, low=0.0)
    outputs = find_outputs(Path(path), "xenium")

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _xenium_section(name, folder, root, row, spot_um, min_counts, min_qv)

    return make_cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


def _read_transcripts(path: Path, places: tuple[str, str], min_qv: float) -> tuple[pd.DataFrame,
                                                                                   int]:
    """Transcripts of genes at sufficient quality, and how many were dropped as controls."""
    present = _columns(path)
    missing = [name for name in ("feature_name", *places) if name not in present]
    if missing:
        raise InputError(path, missing[0] if missing[0] == "feature_name" else "columns",
                         f"lacks {missing}; has {present}", "give a transcripts table of Xenium")
    wanted = [name for name in present if name in ("feature_name", "qv", *places)]
    with reading(path, fix=TRUNCATED):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path, columns=wanted)
        else:
            with open_packed(path) as stream:
                table = pd.read_csv(stream, usecols=wanted, keep_default_na=False,
                                    na_values=[""])[wanted]
    if len(table) == 0:
        raise InputError(path, "rows", "are none", "copy it again from its source")
    if table["feature_name"].dtype.kind in "iufb":
        raise InputError(path, "feature_name", f"holds numbers, such as "
                         f"{table['feature_name'].iloc[0]}, where names of genes are needed",
                         "give every row one cell per column, and write no row names")
    if isinstance(table["feature_name"].iloc[0], bytes):
        with reading(path, "feature_name", fix=TRUNCATED):
            table["feature_name"] = table["feature_name"].str.decode("utf-8")
    # Tens of millions of rows name a few thousand genes.
    odd = [name for name in table["feature_name"].unique()
           if not as_text(name) or not as_text(name).isprintable()]
    if odd:
        at = (table["feature_name"].isna() | table["feature_name"].isin(odd)).to_numpy()
        raise InputError(path, "feature_name", f"is {as_text(odd[0])!r} in row "
                         f"{int(at.argmax()) + 1}, not a name", "copy it again from its source")
    spaced = {name: name.strip() for name in table["feature_name"].unique()
              if name != name.strip()}
    if spaced:
        table["feature_name"] = table["feature_name"].astype(object).replace(spaced)
    for name in (*places, *(["qv"] if "qv" in wanted else [])):
        values = pd.to_numeric(table[name], errors="coerce")
        # The largest slide is a few centimetres; a pixel index is no further than that.
        wrong = ~(values.abs() < 1e6).to_numpy()
        if wrong.any():
            raise InputError(path, name, f"is {as_text(table[name].iloc[int(wrong.argmax())])!r} "
                             f"in row {int(wrong.argmax()) + 1}, not a number below 1e6",
                             "copy it again from its source")
        table[name] = values
    if "qv" in table.columns:
        table = table[table["qv"] >= min_qv]
    names = pd.Index(table["feature_name"].astype(str).unique())
    control = set(names[pseudospots.is_control(names)])
    drop = table["feature_name"].isin(control)
    return table[~drop], int(drop.sum())


def _columns(path: Path) -> list[str]:
    """Column names of a transcripts table, without reading its rows."""
    with reading(path, fix=TRUNCATED):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        with open_packed(path) as stream:
            first = pd.read_csv(stream, nrows=1, header=0)
    if not isinstance(first.index, pd.RangeIndex):  # pandas takes surplus cells for row names
        raise InputError(path, "rows", "have more cells than the header has columns",
                         "write the table without row names")
    return list(first.columns)


def _read_alignment(path: Path) -> np.ndarray:
    """Matrix `(3, 3)` from H&E pixels to pixels of the morphology image."""
    check_file(path, "alignment")
    fix = "export the H&E image alignment from Xenium Explorer again"
    with reading(path, "alignment", "is not a 3 x 3 matrix", fix):
        matrix = np.loadtxt(path, delimiter=",", encoding="utf-8-sig", max_rows=100)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(
            matrix[2], [0, 0, 1], atol=1e-6):
        raise InputError(path, "alignment", f"is not a 3 x 3 matrix of finite numbers that ends in "
                         f"0,0,1 (shape {matrix.shape})", fix)
    scales = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not scales[1] > 1e-3 or scales[0] > 1e3 or scales[0] / scales[1] > 1 + SCALE_TOLERANCE:
        raise InputError(path, "alignment", f"scales its two axes by {scales[0]:.4g} and "
                         f"{scales[1]:.4g}, as no image of a tissue section does", fix)
    return matrix


def _xenium_px_um(folder: Path) -> float:
    """Side of a pixel of the morphology image [µm], as ``experiment.xenium`` says."""
    path = first_of(folder, ("experiment.xenium",))
    if path is None:
        return XENIUM_PX_UM
    check_file(path)
    with reading(path, problem="is not JSON", fix="copy it again from the Xenium output"):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    value = found.get("pixel_size", XENIUM_PX_UM) if isinstance(found, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or \
            not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
        raise InputError(path, "pixel_size", f"is {value!r}, not micrometres per pixel",
                         "copy it again from the Xenium output")
    return float(value)


def _check_he(path: Path, mpp: float) -> None:
    """Compare `mpp` with the distances that the same transcripts have in µm and in pixels."""
    both = ("x_location", "y_location")
    if not set(both) <= set(_columns(path)):
        return
    table, _ = _read_transcripts(path, ("he_x", "he_y", *both), 0.0)
    some = table.iloc[:: max(1, len(table) // 10_000)]
    found = fit_steps(some[list(both)].to_numpy(float), some[["he_x", "he_y"]].to_numpy(float))
    if found is not None:
        px_per_um = float(np.linalg.norm(found[0], axis=1).mean())
        agree(mpp, 1 / px_per_um if px_per_um > 0 else None, path, "mpp",
              "he_x, he_y against x_location, y_location say",
              "pass mpp= of the H&E image that he_x and he_y refer to")


def xenium_image(name: str, folder: Path, root: Path, row: dict[str, Any]) -> tuple[
        Path | None, float | None, Callable[[np.ndarray], np.ndarray]]:
    """H&E image of an output, its scale [µm/px], and what carries µm of the output into it.

    Without an alignment there is no image, and places stay in µm.
    """
    image, mpp, px_um = full_image(row, root) if "image" in row else None, row.get("mpp"), \
        _xenium_px_um(folder)
    if "alignment" not in row:
        if image is not None:
            log.warning("%s: positions in um cannot be placed on the image without an alignment; "
                        "the section is expression-only", name)
        return None, mpp, lambda um: um
    to_morphology = _read_alignment(root / str(row["alignment"]))
    to_he = np.linalg.inv(to_morphology)
    aligned = float(px_um * abs(np.linalg.det(to_morphology[:2, :2])) ** 0.5)
    agree(mpp, aligned, root / str(row["alignment"]), "mpp", "the alignment says",
          "leave mpp out, or export the alignment of this image")

    def to_pixels(um: np.ndarray) -> np.ndarray:
        return (np.column_stack([um / px_um, np.ones(len(um))]) @ to_he.T)[:, :2]

    return image, mpp or aligned, to_pixels


def _xenium_section(name: str, folder: Path, root: Path, row: dict[str, Any], spot_um: float,
                    min_counts: int, min_qv: float) -> Section:
    path = check_file(first_of(folder, TRANSCRIPT_FILES))
    he = {"he_x", "he_y"} <= set(_columns(path))
    if he:
        image, mpp = full_image(row, root) if "image" in row else None, row.get("mpp")
        if not mpp:
            raise InputError(path, "mpp", "he_x and he_y are pixels of unknown size",
                             "pass mpp= of the H&E image in micrometres per pixel")
    else:
        image, mpp, to_pixels = xenium_image(name, folder, root, row)

    def load() -> "AnnData":
        columns = ("he_x", "he_y") if he else ("x_location", "y_location")
        if he:
            _check_he(path, mpp)
        table, n_controls = _read_transcripts(path, columns, min_qv)
        um = table[list(columns)].to_numpy(float) * (mpp if he else 1.0)
        genes = sorted(table["feature_name"].unique())
        feature = pd.Categorical(table["feature_name"], categories=genes).codes
        counts, cells = pseudospots.aggregate_points(feature, um, len(genes), spot_um, min_counts)
        if len(cells) == 0:
            raise InputError(path, "min_counts", "no pseudo-spot lies on tissue",
                             "lower min_counts or min_qv")
        adata = pseudospots.to_adata(counts, cells, pd.DataFrame(index=pd.Index(genes)), spot_um)
        centre = (cells + 0.5) * spot_um
        adata.obsm["spatial"] = centre / mpp if he else to_pixels(centre)
        if not he and "alignment" not in row:
            adata.uns["lattice"]["coordinates"] = "um"
        adata.uns["join"] = {"n_transcripts": len(table), "n_control_transcripts": n_controls,
                             "n_pseudospots": len(cells)}
        return adata

    return assemble(name, row, root, "xenium", load, image, mpp)
