"""10x platforms: Visium spots, Visium HD bins and Xenium transcripts.

Each reader takes one output folder, or a folder of several. What the outputs do not say (study,
patient, specimen, full image) stands in a table ``samples.csv`` beside them, columns
``section,study,patient,specimen`` and optionally ``folder,image,mpp,alignment``; a single output
needs none.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, read_csv
from mvhlib.cohort import pseudospots
from mvhlib.cohort.base import Cohort, ImageRef, Section, check_counts
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Distance of neighbouring Visium spots and their diameter [µm].
PITCH_UM, SPOT_UM = 100.0, 55.0
#: Diameter [µm] that Space Ranger's ``spot_diameter_fullres`` stands for: not the 55 µm of a
#: spot, but a theoretical 65 µm (Space Ranger documentation, "Imaging outputs").
SCALEFACTOR_SPOT_UM = 65.0
#: Side of a pixel of Xenium's morphology image [µm].
XENIUM_PX_UM = 0.2125

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres",
                    "pxl_col_in_fullres")
COUNT_FILES = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix",
               "raw_feature_bc_matrix.h5", "raw_feature_bc_matrix")
POSITION_FILES = ("tissue_positions.csv", "tissue_positions.parquet", "tissue_positions_list.csv")
TRANSCRIPT_FILES = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")


def read(path: str | Path, *, samples: str | Path | pd.DataFrame | None = None,
         study: str | None = None, patient: str | None = None,
         image: str | Path | None = None, mpp: float | None = None) -> Cohort:
    """Read Space Ranger output of Visium.

    Counts come from the filtered matrix (else the raw one), spots with ``in_tissue`` are kept, and
    the scale is measured: neighbouring spots are 100 µm apart. Without a full image the
    sections' image is ``tissue_hires_image.png``, and coordinates are in its pixels.

    Parameters
    ----------
    path
        An ``outs`` folder, or a folder of several.
    samples
        Table of the sections (see the module); None looks for ``samples.csv`` in `path`.
    study, patient
        For a single output without a table: names of its study and patient.
    image
        Full-resolution image of a single output; relative paths are taken from `path`.
    mpp
        Micrometres per pixel of the full image [µm/px]; None measures it.

    Raises
    ------
    InputError
        If a file is missing or broken, spots and counts do not join, or several outputs stand
        there without a table that names their patients.
    """
    outputs = _outputs(Path(path), _is_visium)
    return _cohort(Path(path), outputs, samples, study, patient, image, mpp, _visium_section)


def read_hd(path: str | Path, *, spot_um: float = 100.0, min_fill: float = 0.25,
            samples: str | Path | pd.DataFrame | None = None, study: str | None = None,
            patient: str | None = None, image: str | Path | None = None,
            mpp: float | None = None) -> Cohort:
    """Read Visium HD, its bins summed into squares of `spot_um`.

    Parameters
    ----------
    path
        A Space Ranger ``outs`` folder with ``binned_outputs``, one ``square_*um`` folder, or a
        folder of several. The coarsest bins that divide `spot_um` are taken.
    spot_um
        Side of a pseudo-spot [µm].
    min_fill
        Pseudo-spots with a smaller share of their bins under tissue are left out [0-1].
    samples, study, patient, image, mpp
        As in `read`; the scale is the file's own ``microns_per_pixel``.

    Raises
    ------
    InputError
        As `read`, and if no bins divide `spot_um`.
    """
    outputs = {name: _bins(folder, spot_um)
               for name, folder in _outputs(Path(path), _has_bins).items()}

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _hd_section(name, folder, root, row, spot_um, min_fill)

    return _cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


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
        As in `read`.
    mpp
        Micrometres per pixel of the H&E image [µm/px]; needed with ``he_x, he_y``, else taken
        from the matrix.

    Raises
    ------
    InputError
        If a file is missing or broken, a column is missing, or the scale is not known.
    """
    outputs = _outputs(Path(path), lambda folder: _first(folder, TRANSCRIPT_FILES) is not None)

    def make(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
        return _xenium_section(name, folder, root, row, spot_um, min_counts, min_qv)

    return _cohort(Path(path), outputs, samples, study, patient, image, mpp, make)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is in `folder`."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def _is_visium(folder: Path) -> bool:
    return _first(folder, COUNT_FILES) is not None and (folder / "spatial").is_dir()


def _has_bins(folder: Path) -> bool:
    return (folder / "binned_outputs").is_dir() or (
        folder.name.startswith("square_") and _is_visium(folder))


def _outputs(root: Path, accept: Callable[[Path], bool]) -> dict[str, Path]:
    """Output folders at `root`, one or two levels below; named after the folder, not ``outs``."""
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "pass an output folder")
    for level in range(3):
        folders = [root] if level == 0 else sorted(root.glob("*/" * level))
        accepted = [folder for folder in folders if accept(folder)]
        if accepted:
            named = {}
            for folder in accepted:
                absolute = folder.absolute()
                name = absolute.parent.name if absolute.name == "outs" else absolute.name
                if name in named:
                    raise InputError(folder, "section", f"a second output is called {name}",
                                     "give every output folder its own name")
                named[name] = folder
            return named
    raise InputError(root, "data", "holds no output of this platform",
                     "pass the folder with the feature matrix and spatial/, or with transcripts")


def _cohort(root: Path, outputs: dict[str, Path], samples, study, patient, image, mpp,
            make: Callable[[str, Path, Path, dict[str, Any]], Section]) -> Cohort:
    """Sections of the outputs, with what the samples table says of each."""
    if samples is None and (root / "samples.csv").is_file():
        samples = root / "samples.csv"
    if samples is None:
        if len(outputs) > 1 and patient is None:
            raise InputError(root / "samples.csv", "file",
                             f"does not exist, so the patients of {sorted(outputs)} are unknown",
                             "write section,study,patient,specimen for each, or pass patient= "
                             "if they are all of one")
        name = root.absolute().name
        table = pd.DataFrame([{"section": section, "study": study or name,
                               "patient": patient or section, "specimen": patient or section}
                              for section in outputs])
    elif isinstance(samples, pd.DataFrame):
        table = samples.copy()
    else:
        table = read_csv(samples, ("section", "study", "patient"), dtype=str)
    where = samples if isinstance(samples, (str, Path)) else root
    if image is not None:
        if len(outputs) > 1:
            raise InputError(root, "image", f"is one for {len(outputs)} sections",
                             "name each section's image in samples.csv")
        table["image"] = str(image)
    made = []
    for row in table.to_dict("records"):
        row = {key: value for key, value in row.items() if not pd.isna(value)}
        name = str(row["section"])
        folder = outputs.get(str(row.get("folder", name)))
        if folder is None:
            raise InputError(where, "section", f"{name} has no output folder; there are "
                             f"{sorted(outputs)}", "name the folder in a column folder")
        for field in ("study", "patient"):
            if field not in row:
                raise InputError(where, field, f"is empty for section {name}", "fill it in")
        row.setdefault("specimen", row["patient"])
        if mpp is not None:
            row.setdefault("mpp", mpp)
        if "mpp" in row:
            row["mpp"] = float(row["mpp"])
        made.append(make(name, folder, root, row))
    return Cohort(made)


def _read_matrix(path: Path) -> "AnnData":
    """Counts of a feature matrix, h5 or folder; a broken file is one clear error."""
    import scanpy as sc

    try:
        if path.is_dir():
            adata = sc.read_10x_mtx(path, make_unique=False, gex_only=True)
        else:
            import warnings

            with warnings.catch_warnings():  # gene symbols that repeat are made unique below
                warnings.simplefilter("ignore", UserWarning)
                adata = sc.read_10x_h5(path)
    except Exception as error:  # h5py, zlib, pandas and scanpy each raise their own
        raise InputError(path, "file", f"is not a readable feature matrix ({error})",
                         "it is probably truncated: copy it again from its source") from error
    if not adata.obs_names.is_unique:
        twice = list(adata.obs_names[adata.obs_names.duplicated()][:3])
        raise InputError(path, "barcode", f"stands more than once, for example {twice}",
                         "make the names unique or sum the rows")
    adata.var_names_make_unique()  # two Ensembl ids may share a symbol; the ids stay in var
    adata.layers["counts"] = adata.X.tocsr()
    check_counts(adata, path)
    adata.layers["counts"] = adata.layers["counts"].astype(np.int32)
    adata.X = adata.layers["counts"].copy()
    return adata[:, ~pseudospots.is_control(adata.var_names)].copy()


def _read_positions(folder: Path) -> pd.DataFrame:
    """Positions by barcode; files of Space Ranger 1 have no header, those of 2 and later do."""
    path = _first(folder, POSITION_FILES)
    if path is None:
        raise InputError(folder, "tissue_positions", "does not exist",
                         "copy spatial/ of the Space Ranger output as a whole")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with open(path, encoding="utf-8") as stream:
                headed = stream.readline().startswith("barcode")
            table = pd.read_csv(path, header=0 if headed else None,
                                names=None if headed else list(POSITION_COLUMNS))
    except Exception as error:  # pyarrow's errors are its own
        raise InputError(path, "table", f"cannot be read ({error})",
                         "it is probably truncated: copy it again from its source") from error
    missing = [column for column in POSITION_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "copy the file again from the Space Ranger output")
    table["barcode"] = table["barcode"].astype(str)
    if table["barcode"].duplicated().any():
        twice = list(table["barcode"][table["barcode"].duplicated()][:3])
        raise InputError(path, "barcode", f"stands more than once, for example {twice}",
                         "keep one row per barcode")
    return table.set_index("barcode")


def _read_scalefactors(folder: Path) -> dict[str, Any]:
    path = folder / "scalefactors_json.json"
    if not path.is_file():
        raise InputError(path, "file", "does not exist",
                         "copy spatial/ of the Space Ranger output as a whole")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, "file", f"is no JSON ({error})",
                         "copy it again from the Space Ranger output") from error


def _place(adata: "AnnData", positions: pd.DataFrame, matrix: Path) -> "AnnData":
    """Keep barcodes that have a position and lie on tissue; count the others."""
    joined = adata.obs_names.isin(positions.index)
    if not joined.any():
        raise InputError(matrix, "barcode", f"none of {adata.n_obs} spots has a position "
                         f"({adata.obs_names[0]!r} against {positions.index[0]!r})",
                         "give the matrix and spatial/ of the same section")
    on_tissue = positions["in_tissue"].reindex(adata.obs_names).fillna(0).to_numpy() != 0
    if not on_tissue.any():
        raise InputError(matrix, "in_tissue", "no spot lies on tissue",
                         "run Space Ranger's tissue detection again or correct in_tissue")
    record = {"n_counts": adata.n_obs, "n_spots": len(positions), "n_kept": int(on_tissue.sum()),
              "n_without_position": int((~joined).sum()),
              "n_off_tissue": int((joined & ~on_tissue).sum()),
              "n_without_counts": int((~positions.index[positions["in_tissue"] != 0].isin(
                  adata.obs_names)).sum())}
    if record["n_without_position"]:
        log.warning("%s: %d of %d spots have no position and are dropped", matrix,
                    record["n_without_position"], adata.n_obs)
    adata = adata[on_tissue].copy()
    place = positions.loc[adata.obs_names]
    adata.obs["array_row"] = place["array_row"].to_numpy()
    adata.obs["array_col"] = place["array_col"].to_numpy()
    adata.obsm["spatial"] = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    adata.uns["join"] = record
    return adata


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
    grid = positions[["array_row", "array_col"]].to_numpy(float)
    pixel = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    um = grid * [PITCH_UM * 3**0.5 / 2, PITCH_UM / 2]
    design = np.column_stack([um - um.mean(0), np.ones(len(um))])
    if len(um) >= 3 and np.linalg.matrix_rank(design) == 3:
        steps = np.linalg.lstsq(design, pixel, rcond=None)[0][:2]  # px per µm, along each axis
        lengths = np.linalg.norm(steps, axis=1)
        if lengths.min() > 0:
            return float(1 / lengths.mean())
    diameter = float(scalefactors.get("spot_diameter_fullres", 0))
    if not diameter > 0:
        raise InputError(where, "spot_diameter_fullres", "is missing", "pass mpp=")
    return SCALEFACTOR_SPOT_UM / diameter


def _find_image(row: dict[str, Any], root: Path, spatial: Path,
                scalefactors: dict[str, Any]) -> tuple[Path | None, float]:
    """The user's full image at scale 1, else Space Ranger's reduced one with its scale."""
    if "image" in row:
        path = root / str(row["image"])
        if not path.is_file():
            raise InputError(path, "image", "does not exist", "correct the path of the full image")
        return path, 1.0
    for size in ("hires", "lowres"):
        path = spatial / f"tissue_{size}_image.png"
        if path.is_file():
            scale = float(scalefactors.get(f"tissue_{size}_scalef", 0))
            if not scale > 0:
                raise InputError(spatial / "scalefactors_json.json", f"tissue_{size}_scalef",
                                 "is missing", "copy it again from the Space Ranger output")
            return path, scale
    return None, 1.0


def _image_ref(image: Path, root: Path) -> tuple[ImageRef, tuple[int, int]]:
    """Record of an image; one outside the data directory keeps its absolute path."""
    with open_slide(image) as slide:
        size = (slide.width, slide.height)
    inside = image.absolute().is_relative_to(root.absolute())
    path = image.absolute().relative_to(root.absolute()) if inside else image.absolute()
    return ImageRef(str(path)), size


def _assemble(name: str, row: dict[str, Any], root: Path, source: str,
              load: Callable[[], "AnnData"], image: Path | None, mpp: float | None) -> Section:
    ref, size = _image_ref(image, root) if image is not None else (None, None)
    return Section(name=name, study=str(row["study"]), patient=str(row["patient"]),
                   specimen=str(row["specimen"]), source=source, load=load,
                   mpp=mpp if image is not None else None, image_ref=ref, image_size=size,
                   roots={"data": root})


def _visium_section(name: str, folder: Path, root: Path, row: dict[str, Any]) -> Section:
    spatial = folder / "spatial"
    scalefactors = _read_scalefactors(spatial)
    positions = _read_positions(spatial)
    mpp = row.get("mpp") or measure_mpp(positions, scalefactors, spatial)
    image, scale = _find_image(row, root, spatial, scalefactors)
    matrix = _first(folder, COUNT_FILES)

    def load() -> "AnnData":
        adata = _place(_read_matrix(matrix), positions, matrix)
        adata.obsm["spatial"] = adata.obsm["spatial"] * scale
        adata.uns["lattice"] = {"kind": "hexagonal", "n_neighs": 6, "spot_um": SPOT_UM,
                                "pitch_um": PITCH_UM, "coordinates": "pixel"}
        return adata

    return _assemble(name, row, root, "visium", load, image, mpp / scale)


def _bins(folder: Path, spot_um: float) -> Path:
    """The folder of the coarsest bins that divide `spot_um`."""
    if folder.name.startswith("square_"):
        return folder
    sizes = {}
    for path in sorted((folder / "binned_outputs").glob("square_*um")):
        digits = path.name.removeprefix("square_").removesuffix("um")
        if digits.isdigit() and _is_visium(path):
            sizes[int(digits)] = path
    dividing = [size for size in sizes if spot_um / size >= 1 and spot_um % size == 0]
    if not dividing:
        raise InputError(folder / "binned_outputs", "spot_um",
                         f"{spot_um:g} is no multiple of the bins there ({sorted(sizes)} um)",
                         "choose spot_um as a multiple of a bin")
    return sizes[max(dividing)]


def _hd_section(name: str, folder: Path, root: Path, row: dict[str, Any], spot_um: float,
                min_fill: float) -> Section:
    spatial = folder / "spatial"
    scalefactors = _read_scalefactors(spatial)
    mpp = row.get("mpp") or float(scalefactors.get("microns_per_pixel", 0))
    bin_um = float(scalefactors.get("bin_size_um", 0))
    for field, value in (("microns_per_pixel", mpp), ("bin_size_um", bin_um)):
        if not value > 0:
            raise InputError(spatial / "scalefactors_json.json", field, "is missing",
                             "copy it again from the Space Ranger output, or pass mpp=")
    if spot_um < bin_um or abs(spot_um / bin_um - round(spot_um / bin_um)) > 1e-6:
        raise InputError(folder, "spot_um", f"{spot_um:g} is no multiple of the bins "
                         f"({bin_um:g} um)", "choose spot_um as a multiple of a bin")
    image, scale = _find_image(row, root, spatial, scalefactors)
    matrix = _first(folder, COUNT_FILES)

    def load() -> "AnnData":
        bins = _place(_read_matrix(matrix), _read_positions(spatial), matrix)
        # Rows and columns of the bins make the raster, so a turned slide stays square; an affine
        # fit carries the squares' centres into the image.
        grid = bins.obs[["array_col", "array_row"]].to_numpy(float)
        counts, cells = pseudospots.aggregate_bins(
            bins.layers["counts"], (grid + 0.5) * bin_um, spot_um, bin_um, min_fill)
        if len(cells) == 0:
            raise InputError(matrix, "min_fill", "no pseudo-spot lies on tissue",
                             "lower min_fill or spot_um")
        design = np.column_stack([grid, np.ones(len(grid))])
        map_to_px = np.linalg.lstsq(design, bins.obsm["spatial"], rcond=None)[0]
        centres = (cells + 0.5) * spot_um / bin_um - 0.5
        adata = pseudospots.to_adata(counts, cells, bins.var, spot_um)
        adata.obsm["spatial"] = np.column_stack([centres, np.ones(len(centres))]) @ map_to_px
        adata.obsm["spatial"] *= scale
        adata.uns["join"] = bins.uns["join"] | {"n_pseudospots": len(cells), "bin_um": bin_um}
        return adata

    return _assemble(name, row, root, "visium_hd", load, image, mpp / scale)


def _read_transcripts(path: Path, min_qv: float) -> tuple[pd.DataFrame, int]:
    """Transcripts of genes at sufficient quality, and how many were dropped as controls."""
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # pyarrow's errors are its own
        raise InputError(path, "file", f"cannot be read ({error})",
                         "it is probably truncated: copy it again from its source") from error
    if "feature_name" not in table.columns:
        raise InputError(path, "feature_name", f"is missing; there are {list(table.columns)}",
                         "give a transcripts table of Xenium")
    if len(table) and isinstance(table["feature_name"].iloc[0], bytes):
        table["feature_name"] = table["feature_name"].str.decode("utf-8")
    if "qv" in table.columns:
        table = table[table["qv"] >= min_qv]
    names = pd.Index(table["feature_name"].astype(str).unique())
    control = set(names[pseudospots.is_control(names)])
    drop = table["feature_name"].isin(control)
    return table[~drop], int(drop.sum())


def _read_alignment(path: Path) -> np.ndarray:
    """Matrix `(3, 3)` from H&E pixels to pixels of the morphology image."""
    try:
        matrix = np.loadtxt(path, delimiter=",")
        if matrix.shape != (3, 3) or abs(np.linalg.det(matrix)) < 1e-12:
            raise ValueError(f"shape {matrix.shape}, or no inverse")
    except (OSError, ValueError) as error:
        raise InputError(path, "alignment", f"is no 3 x 3 matrix ({error})",
                         "export the H&E image alignment from Xenium Explorer again") from error
    return matrix


def _xenium_section(name: str, folder: Path, root: Path, row: dict[str, Any], spot_um: float,
                    min_counts: int, min_qv: float) -> Section:
    path = _first(folder, TRANSCRIPT_FILES)
    image = root / str(row["image"]) if "image" in row else None
    if image is not None and not image.is_file():
        raise InputError(image, "image", "does not exist", "correct the path of the H&E image")
    he = {"he_x", "he_y"} <= set(_columns(path))
    mpp, to_he = row.get("mpp"), None
    if he and not mpp:
        raise InputError(path, "mpp", "he_x and he_y are pixels of unknown size",
                         "pass mpp= of the H&E image in micrometres per pixel")
    if not he and "alignment" in row:
        to_morphology = _read_alignment(root / str(row["alignment"]))
        to_he = np.linalg.inv(to_morphology)
        mpp = mpp or float(XENIUM_PX_UM * abs(np.linalg.det(to_morphology[:2, :2])) ** 0.5)
    elif not he and image is not None:
        log.warning("%s: transcripts cannot be placed on the image without an alignment; the "
                    "section is expression-only", name)
        image = None

    def load() -> "AnnData":
        table, n_controls = _read_transcripts(path, min_qv)
        columns = ["he_x", "he_y"] if he else ["x_location", "y_location"]
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                             "give a transcripts table of Xenium")
        um = table[columns].to_numpy(float) * (mpp if he else 1.0)
        genes = sorted(table["feature_name"].unique())
        feature = pd.Categorical(table["feature_name"], categories=genes).codes
        counts, cells = pseudospots.aggregate_points(feature, um, len(genes), spot_um, min_counts)
        if len(cells) == 0:
            raise InputError(path, "min_counts", "no pseudo-spot lies on tissue",
                             "lower min_counts or min_qv")
        adata = pseudospots.to_adata(counts, cells, pd.DataFrame(index=pd.Index(genes)), spot_um)
        centre = (cells + 0.5) * spot_um
        if he:
            adata.obsm["spatial"] = centre / mpp
        elif to_he is not None:
            pixels = np.column_stack([centre / XENIUM_PX_UM, np.ones(len(centre))])
            adata.obsm["spatial"] = (pixels @ to_he.T)[:, :2]
        else:
            adata.obsm["spatial"] = centre
            adata.uns["lattice"]["coordinates"] = "um"
        adata.uns["join"] = {"n_transcripts": len(table), "n_control_transcripts": n_controls,
                             "n_pseudospots": len(cells)}
        return adata

    return _assemble(name, row, root, "xenium", load, image, mpp)


def _columns(path: Path) -> list[str]:
    """Column names of a transcripts table, without reading its rows."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        return list(pd.read_csv(path, nrows=0).columns)
    except Exception as error:  # pyarrow's errors are its own
        raise InputError(path, "file", f"cannot be read ({error})",
                         "it is probably truncated: copy it again from its source") from error
