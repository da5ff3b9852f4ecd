"""Reader of AnnData files: counts, ``obsm["spatial"]``, an image inside or beside the file.

==================  ================================================================================
what                how it is read
==================  ================================================================================
files               ``*.h5ad`` in the directory and in its folders, each a section, or as many as it
                    has libraries (`mvhlib.cohort.libraries`); hidden ones are passed over
counts              ``layers["counts"]``, else X, else ``raw.X``: the first of whole numbers;
                    with ``obsm``, such as ``obsm: protein``, that table of obsm instead: a second
                    modality of the same spots, whose columns take the genes' place
genes               ``var_names``; a symbol of several genes is numbered by ``var["gene_ids"]``
places              ``obsm["spatial"]``, centres (x, y) in pixels of the full image; else the
                    columns `PLACES` of obs. Spots of ``obs["in_tissue"]`` 0 are left out
image               a file with the section's name beside it, or the column ``image`` of the table:
                    the full image. Else ``uns["spatial"][...]["images"]``, ``hires`` before
                    ``lowres`` (HEST: ``downscaled_fullres``), with its scale factor; it is copied
                    into the run's cohort folder
scale               the column ``mpp``; else measured where ``array_row``, ``array_col`` are those
                    of a Visium array, whose spots are 100 µm apart. Both, and
                    ``spot_diameter_fullres``, must agree; an array that lies transposed is refused
owners              ``samples.csv``: section, study, patient, optionally specimen, file, image, mpp;
                    else ``obs`` where its columns ``patient`` (donor, ...) and ``study`` say one
                    thing for all spots
==================  ================================================================================

A folder that 01_cohort wrote is read as `mvhlib.cohort.base.read_run` does.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import lattice
from mvhlib.artifacts import InputError, atomic, h5_reader, h5_sizes, reading, safe_name
from mvhlib.cohort import libraries
from mvhlib.cohort.base import (
    Cohort,
    ImageRef,
    Section,
    check_places,
    check_sparse,
    read_run,
    signed_indices,
)
from mvhlib.cohort.feature_matrix import told_apart, without_versions
from mvhlib.cohort.visium import (
    PITCH_UM,
    SPOT_RANGE_UM,
    SPOT_UM,
    agree,
    array_kind,
    lies_transposed,
    measure_mpp,
    samples_table,
)
from mvhlib.cohort.visium import POSITION_COLUMNS as _POSITIONS
from mvhlib.places import resolve
from mvhlib.tiles.slides import TIFF, open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (*TIFF, ".svs", ".ndpi", ".jpg", ".jpeg", ".png", ".webp")
#: Images of ``uns["spatial"]`` that are taken, the first that is there; HEST's is the third, and
#: the last needs no factor.
SIZES = ("hires", "lowres", "downscaled_fullres", "fullres")
#: How far a stated diameter may be off: files of other programs round it, another unit is farther.
UNIT = 1.4
#: Columns of ``obs`` that hold centres (x, y) [px] without doubt: Space Ranger's, and Seurat's.
PLACES = (("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"))
_UNCLEAR = re.compile(r"(pixel_?)?[xy](_?(pixel|coord\w*|centroid))?")
#: Columns of ``obs`` that name an owner, by what they name.
OWNERS = {"study": ("study", "dataset"),
          "patient": ("patient", "patient_id", "donor", "donor_id", "subject", "individual")}


@dataclass
class Picture:
    """An image that a file brings with it.

    Attributes
    ----------
    size
        Width and height [px].
    scale
        Pixels of it per pixel of ``obsm["spatial"]``.
    pixels
        Gives them, `(H, W, 3)` uint8.
    spot_px
        Diameter of a spot as the file states it [px of ``obsm["spatial"]``]; None where it does
        not.
    """

    size: tuple[int, int]
    scale: float
    pixels: Callable[[], np.ndarray]
    spot_px: float | None = None


def read(path: str | Path, *, samples: str | Path | pd.DataFrame | None = None,
         keep: str | Path | None = None, obsm: str = "") -> Cohort:
    """Read the AnnData files of a directory.

    Parameters
    ----------
    path
        The directory.
    samples
        Table of the sections (see the module); None takes ``samples.csv`` in `path`, if there.
    keep
        Folder that takes the images that files bring with them: the run's cohort folder. None
        writes nothing, and such an image cannot be opened.
    obsm
        Key of a table of counts, spots x what was measured in place of genes (antibodies, say):
        it is read instead of the genes. Empty: the genes.

    Raises
    ------
    InputError
        If a file is broken, has no raw counts or no places, an image has no scale, or nobody says
        whose a section is.
    """
    root = Path(path)
    if (root / "manifest.csv").exists():
        return read_run(root)
    files = libraries.parts(find(root))
    return make_cohort(root, files, samples, lambda name, row: _section(
        name, files[row.get("file", name)], root, row, keep, obsm))


def find(root: str | Path, ending: str = ".h5ad") -> dict[str, Path]:
    """Find the files of a directory and its folders; equal file names take their folder's.

    Raises
    ------
    InputError
        If there is none, or two have one name.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "name the folder of the files")
    found: dict[str, Path] = {}
    files = [file for pattern in (f"*{ending}", f"*/*{ending}") for file in sorted(
        root.glob(pattern)) if not any(part.startswith(".") for part in
                                       file.relative_to(root).parts)]
    alike = len(files) > 1 and len({file.stem for file in files}) == 1
    for file in files:  # A/adata.h5ad, B/adata.h5ad: then folders name the sections
        name = file.parent.name if alike and file.parent != root else file.stem
        if name in found:
            raise InputError(file, "section", f"a second file is called {name}",
                             "give every file its own name")
        found[name] = file
    if not found:
        raise InputError(root, "data", f"holds no *{ending}", "name the folder of the files")
    return found


def make_cohort(root: Path, files: Mapping[str, Any],
                samples: str | Path | pd.DataFrame | None,
                make: Callable[[str, dict[str, Any]], Section]) -> Cohort:
    """Sections of files, with what the table of samples says of each.

    Parameters
    ----------
    files
        Name -> file, or its part.
    make
        Makes a section of its name and its row; a row lacks what is not known.
    """
    if samples is None and (root / "samples.csv").exists():
        samples = (root / "samples.csv").absolute()
    if samples is None:
        return Cohort(make(name, {}) for name in files)
    table = samples_table(samples)
    where = resolve(samples) if isinstance(samples, str | Path) else root
    made = []
    for row in table.to_dict("records"):
        row = {key: value for key, value in row.items() if value != "" and not pd.isna(value)}
        name = safe_name(row["section"], where, "section")
        if row.get("file", name) not in files:
            raise InputError(where, "section", f"{name} has no file; there are {sorted(files)[:6]}",
                             "name the file, without its ending, in a column file")
        made.append(make(name, row))
    return Cohort(made)


def _section(name: str, part: libraries.Part, root: Path, row: dict[str, Any],
             keep: str | Path | None, obsm: str) -> Section:
    adata = read_counts(part.path, part.library, obsm)
    return make_section(name, part.path, adata, root, row, keep,
                        picture_inside(adata, part.path), source="h5ad",
                        beside=part.path.with_name(f"{name}.h5ad") if part.library else None)


def make_section(name: str, path: Path, adata: "AnnData", root: Path, row: dict[str, Any],
                 keep: str | Path | None, inside: Picture | None, source: str,
                 beside: Path | None = None) -> Section:
    """A section of counts and places, with the image that is there.

    Parameters
    ----------
    adata
        From `read_counts`; ``obsm["spatial"]`` in pixels of the full image.
    row
        Of the table of samples, without what is not known.
    inside
        The image that the file brings with it.
    beside
        Whose image lies beside it; None is `path`.
    """
    owners = {field: row.get(field) or owner(adata, field) for field in OWNERS}
    for field, said in owners.items():
        if not said:
            raise InputError(root / "samples.csv", field, f"of section {name} is not known: "
                             f"neither a table nor obs[{field!r}] says it",
                             "write section,study,patient for each section")
    full = _beside(beside or path, root, row)
    kind, measured = _scale(adata, path)
    agree(row.get("mpp"), measured, path, "mpp", "spots 100 um apart say",
          "leave mpp out, or give the places in pixels of the full image")
    if inside is not None and inside.spot_px and measured:
        _check_spot(inside.spot_px * measured, path)
    mpp = row.get("mpp") or measured
    scale, ref, size, roots = 1.0, None, None, {"data": root}
    if full is not None:
        with open_slide(full, mpp=mpp) as slide:
            size, mpp = (slide.width, slide.height), slide.mpp
        ref = ImageRef(str(full.absolute().relative_to(root.absolute())))
    elif inside is not None:
        scale, size = inside.scale, inside.size
        ref, roots = ImageRef(f"{name}.image.png", root="cohort"), {"data": root}
        if keep is not None:
            roots["cohort"] = Path(keep)
            _write(Path(keep) / ref.path, inside.pixels())
    if ref is not None and mpp is None:
        raise InputError(path, "mpp", "is not known: no column mpp, no Visium array in obs",
                         "state micrometres per pixel of obsm['spatial'] in the column mpp of "
                         "samples.csv")
    adata.obsm["spatial"] = np.asarray(adata.obsm["spatial"], dtype=np.float64) * scale
    adata.uns["lattice"] = _lattice(adata, kind, None if mpp is None else mpp / scale)
    return Section(name=name, study=owners["study"], patient=owners["patient"],
                   specimen=row.get("specimen") or owners["patient"], source=source,
                   load=lambda: adata, mpp=mpp / scale if ref is not None else None, image_ref=ref,
                   image_size=size, roots=roots, file=path)


def _check_spot(spot_um: float, path: Path) -> None:
    """Refuse places in another unit than the stated diameter of a spot [µm] is."""
    if not SPOT_RANGE_UM[0] / UNIT <= spot_um <= SPOT_RANGE_UM[1] * UNIT:
        raise InputError(path, 'obsm["spatial"]', f"does not fit spot_diameter_fullres: with spots "
                         f"100 um apart it is {spot_um:.4g} um, and Space Ranger means 65 um",
                         "store centres in pixels of the full image, neither in um nor multiplied "
                         "by a scale factor")


def owner(adata: "AnnData", field: str) -> str:
    """Return the one owner that ``obs`` states for all spots; empty for none or several."""
    for column in OWNERS[field]:
        if column in adata.obs:
            values = adata.obs[column]
            if values.dtype.kind == "f" and (values == values.round()).all():
                values = values.astype(np.int64)  # 7.0 where a value was once missing: patient 7
            said = values.astype(str).str.strip().unique()
            if len(said) == 1 and said[0].lower() not in ("", "nan", "none", "unknown"):
                return str(said[0])
    return ""


def _beside(path: Path, root: Path, row: dict[str, Any]) -> Path | None:
    """Find the full image: from the table, else of the same name beside the file."""
    if "image" in row:
        full = root / str(row["image"])
        if not os.path.exists(full) or not full.absolute().is_relative_to(root.absolute()) \
                or ".." in Path(str(row["image"])).parts:
            raise InputError(full, "image", "does not exist, or lies outside the data directory",
                             "write its path relative to the data directory")
        return full
    found = [path.with_suffix(ending) for ending in IMAGE_SUFFIXES
             if path.with_suffix(ending).exists()]
    if len(found) > 1:
        raise InputError(found[1], "image", "is a second image of this section beside "
                         f"{found[0].name}", "keep one, or name the right one in the column image "
                         "of samples.csv")
    return found[0] if found else None


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with reading(path, "image", "cannot be written", "choose an OUT that you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")


def read_counts(path: Path, library: str = "", obsm: str = "") -> "AnnData":
    """Read raw counts, places and the needed part of ``obs`` of one AnnData file.

    Parameters
    ----------
    library
        The one whose spots are taken, where the file has several.
    obsm
        See `read`.

    Raises
    ------
    InputError
        If the file is broken, or holds no whole numbers, no places, or a name twice.
    """
    import anndata

    with h5_reader(path) as stream:
        h5_sizes(stream)
    with reading(path, fix="it is probably truncated: copy it again"):
        stored = anndata.read_h5ad(path)
    return raw_counts(libraries.take(stored, library, path) if library else stored, path, obsm)


def raw_counts(stored: "AnnData", path: Path, obsm: str = "") -> "AnnData":
    """An AnnData with raw counts alone: the first place that holds whole numbers.

    Raises
    ------
    InputError
        As `read_counts`.
    """
    from anndata import AnnData
    from scipy import sparse

    with reading(path, "obs", "is no table of plain columns", "save it again"):
        stored.obs[list(stored.obs)]  # a column of records raises here
    _place(stored, path)
    check_places(stored, path)
    raw = stored.raw
    places = {'layers["counts"]': (stored.layers.get("counts"), stored.var_names),
              "X": (stored.X, stored.var_names),
              "raw.X": (None, None) if raw is None else (raw.X, raw.var_names)}
    if obsm:
        places = {f'obsm["{obsm}"]': _second_modality(stored, path, obsm)}
    taken = None
    for where, (matrix, genes) in places.items():
        if matrix is None:
            continue
        if hasattr(matrix, "indptr"):
            check_sparse(matrix, path, where)
            matrix = signed_indices(matrix)
        values = np.asarray(matrix.data if hasattr(matrix, "indptr") else matrix)
        if values.dtype.kind in "iufb" and np.isfinite(values).all() and (values >= 0).all() and (
                values == np.round(values)).all():
            taken = matrix, genes if obsm else _genes(
                genes, stored if raw is None or where != "raw.X" else raw)
            break
    if taken is None:
        raise InputError(path, "counts", "are in none of " + ", ".join(
            name for name, (matrix, _) in places.items() if matrix is not None) + ": none holds "
            "whole numbers from 0", "store raw counts in " + (
                f'obsm["{obsm}"]' if obsm else 'layers["counts"]'))
    matrix, genes = taken
    most = np.max(matrix.data if hasattr(matrix, "indptr") else matrix, initial=0)
    if most > np.iinfo(np.int32).max:
        raise InputError(path, "counts", f"reach {most:.3g} in one spot", "store raw counts")
    kept = [column for column in (*_POSITIONS, "label", *sum(OWNERS.values(), ()))
            if column in stored.obs]
    adata = AnnData(obs=stored.obs[kept].copy(), var=pd.DataFrame(index=genes.astype(str)))
    adata.obs_names = adata.obs_names.astype(str)
    adata.layers["counts"] = sparse.csr_matrix(matrix).astype(np.int32)
    adata.X = adata.layers["counts"].copy()
    adata.obsm["spatial"] = np.asarray(stored.obsm["spatial"], dtype=np.float64)
    adata = _on_tissue(adata, stored, path)
    if isinstance(stored.uns.get("spatial"), Mapping):
        adata.uns["spatial"] = stored.uns["spatial"]
    return adata


def _second_modality(stored: "AnnData", path: Path, key: str) -> tuple[np.ndarray, pd.Index]:
    """Values and column names of a table of ``obsm``."""
    if key not in stored.obsm:
        raise InputError(path, f'obsm["{key}"]', f"is missing; there are {sorted(stored.obsm)}",
                         "name one of these as obsm in the options of 01_cohort.yaml, or leave it "
                         "out to read genes")
    table = stored.obsm[key]
    if not isinstance(table, pd.DataFrame):
        raise InputError(path, f'obsm["{key}"]', "is an array, whose columns have no names",
                         "store a pandas DataFrame with what was measured as its columns")
    names = pd.Index([str(name).strip() for name in table.columns])
    if "" in names or not names.is_unique:
        raise InputError(path, f'obsm["{key}"]', "has a column without a name, or two columns of "
                         "one name", "name each column by what was measured")
    return table.to_numpy(), names


def _place(stored: "AnnData", path: Path) -> None:
    """Copy centres into ``obsm["spatial"]`` from columns of obs that are unambiguous."""
    if "spatial" in stored.obsm:
        return
    for pair in PLACES:
        if set(pair) <= set(stored.obs):
            stored.obsm["spatial"] = np.column_stack([
                pd.to_numeric(stored.obs[column], errors="coerce") for column in pair])
            return
    unclear = [column for column in stored.obs if _UNCLEAR.fullmatch(str(column).lower())]
    if unclear:
        raise InputError(path, 'obsm["spatial"]', f"is missing; obs has {unclear[:4]}, but "
                         "nothing says which of them runs along the image's width",
                         "plot them on the image, and store centres as (x, y) [px]: "
                         'adata.obsm["spatial"] = adata.obs[[x, y]].to_numpy()')


def _genes(names: pd.Index, of: Any) -> pd.Index:
    """Names of genes; repeated symbols, as scanpy leaves them, get suffixes by gene id.

    Ensembl ids lose their version, which tells releases of the annotation apart and not genes.
    """
    names = without_versions(names)
    if names.is_unique or "gene_ids" not in of.var:
        return names
    return told_apart(names, of.var["gene_ids"])


def _on_tissue(adata: "AnnData", stored: "AnnData", path: Path) -> "AnnData":
    """Drop spots that ``obs["in_tissue"]`` marks as off the tissue."""
    if "in_tissue" not in stored.obs:
        return adata
    said = stored.obs["in_tissue"].astype(str).str.strip().str.lower().map(
        {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}).astype(float)
    if said.isna().any():
        raise InputError(path, "in_tissue", f"is {stored.obs['in_tissue'][said.isna()].iloc[0]!r} "
                         f"for spot {adata.obs_names[said.isna()][0]!r}",
                         "write 1 for spots under tissue and 0 for the others")
    said = said.to_numpy()
    if said.all():
        return adata
    if not said.any():
        raise InputError(path, "in_tissue", "no spot lies on tissue", "correct in_tissue")
    log.warning("%s: %d of %d spots do not lie on tissue (in_tissue 0) and are left out", path,
                int((said == 0).sum()), len(said))
    return adata[said == 1].copy()


def picture_inside(adata: "AnnData", path: Path) -> Picture | None:
    """The image of ``uns["spatial"]``, as scanpy keeps it; taken out of the AnnData.

    Raises
    ------
    InputError
        If an image is none or has no scale factor.
    """
    found = [library for library in adata.uns.pop("spatial", {}).values()
             if isinstance(library, Mapping)]  # the schema of CELLxGENE adds a flag beside them
    if not found:
        return None
    [library] = found
    images, scalefactors = library.get("images"), library.get("scalefactors", {})
    for name, part in (("images", images), ("scalefactors", scalefactors)):
        if part is not None and not isinstance(part, Mapping):
            raise InputError(path, f'uns["spatial"] {name}', f"are a {type(part).__name__}",
                             "store a mapping, as scanpy does")
    if not images:
        return None
    size = next((size for size in SIZES if size in images), None)
    if size is None:
        raise InputError(path, 'uns["spatial"]', f"has images named {sorted(images)[:4]}, "
                         f"of which none is one of {list(SIZES)}", "rename the right one "
                         "to hires, and give its tissue_hires_scalef")
    factor = 1.0 if size == "fullres" else _number(scalefactors.get(f"tissue_{size}_scalef"))
    if factor is None or not 0 < factor <= 10:
        raise InputError(path, f'uns["spatial"] tissue_{size}_scalef',
                         f"is {scalefactors.get(f'tissue_{size}_scalef')!r}",
                         'state pixels of the image per pixel of obsm["spatial"]')
    pixels = as_pixels(images[size], path)
    return Picture((pixels.shape[1], pixels.shape[0]), factor, lambda: pixels,
                   spot_px=_number(scalefactors.get("spot_diameter_fullres")))


def _number(value: Any) -> float | None:
    """A number of ``uns``, whether it is one, text, or an array of one; None of anything else."""
    value = np.asarray(value).reshape(-1)
    if len(value) != 1 or value.dtype.kind not in "iufUSO":
        return None
    try:
        found = float(value[0])
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def as_pixels(image: Any, path: Path) -> np.ndarray:
    """An image in an array `(H, W, 3 or 4)`, bytes or shares of 1, as bytes of red, green, blue.

    Raises
    ------
    InputError
        If it is anything else.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise InputError(path, "image", f"has shape {image.shape}", "store (height, width, 3)")
    image = image[:, :, :3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if image.dtype.kind != "f" or not np.isfinite(image).all() or image.min() < 0 \
            or image.max() > 1:
        raise InputError(path, "image", f"is {image.dtype}, neither uint8 nor float from 0 to 1",
                         "store uint8, or float from 0 to 1")
    return np.rint(image * 255).astype(np.uint8)


def _scale(adata: "AnnData", path: Path) -> tuple[str, float | None]:
    """Kind of the array, and um per pixel of the places where it is Visium's."""
    columns = ("array_row", "array_col")
    if not set(columns) <= set(adata.obs):
        return "unknown", None
    positions = pd.DataFrame({name: pd.to_numeric(adata.obs[name], errors="coerce").astype(float)
                              for name in columns})
    positions["pxl_col_in_fullres"], positions["pxl_row_in_fullres"] = np.asarray(
        adata.obsm["spatial"], dtype=np.float64).T
    if len(positions) < 3 or not np.isfinite(positions.to_numpy()).all():
        return "unknown", None
    try:
        if array_kind(positions, path, transposed=True) != "hexagonal":
            return "unknown", None
    except InputError:
        return "unknown", None  # an array of another platform: its scale has to be stated
    if lies_transposed(positions):
        raise InputError(path, 'obsm["spatial"]', "has rows of the array along the image's width "
                         "and columns along its height, as if x and y were swapped",
                         "exchange its two columns; if the image is really turned like this, leave "
                         "array_row and array_col out and state mpp in samples.csv")
    return "hexagonal", measure_mpp(positions, {}, path)


def _lattice(adata: "AnnData", kind: str, mpp: float | None) -> dict[str, Any]:
    """Properties of the array that maps and graphs need."""
    if kind == "hexagonal":
        return {"kind": kind, "n_neighs": 6, "spot_um": SPOT_UM, "pitch_um": PITCH_UM,
                "coordinates": "pixel"}
    record: dict[str, Any] = {"kind": "square", "n_neighs": 4, "coordinates": "pixel"}
    if mpp is not None and adata.n_obs > 1:
        pitch = float(np.median(lattice.nearest(adata.obsm["spatial"]))) * mpp
        record |= {"pitch_um": pitch, "spot_um": pitch}
    return record
