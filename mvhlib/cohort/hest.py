"""Reader of HEST-1k and hest-bench in their layouts on disk.

::

    HEST-1k                                hest-bench, one folder per task
        st/<id>.h5ad                           adata/<id>.h5ad
        patches/<id>.h5                        patches/<id>.h5
        wsis/<id>.tif                          splits/{train,test}_<i>.csv
        metadata/<id>.json                     var_50genes.json
        HEST_v1_1_0.csv

Counts are raw in ``X``; ``obsm["spatial"]`` are spot centres [level-0 px]. Patches hold `img`,
`coords` (top-left corners) and a name per patch; there are fewer of them than spots, in an order of
their own, and their side differs between releases. All is joined on barcode.

Who gave which tissue is not always stated, and in places stated wrongly. A table of corrections
(``params/hest_crc/samples.csv`` for colorectal tissue, ``params/hest_transfer/samples.csv`` for the
data sets of CMRCNet) overrules the metadata, says which samples are duplicates, and holds the sets
that a cohort can be made of.

What is accepted:

==================  ================================================================================
what                how it is read
==================  ================================================================================
csv, corrections,   as `mvhlib.tables` reads users' tables: text, stripped; ids once each. Blank,
splits              ``NA`` and ``not reported`` are not stated
``<id>.h5ad``       raw counts in ``X``, dense or sparse, whole and not all 0; barcodes once each;
                    ``obsm["spatial"]`` of shape (n, 2), finite
symbols             a doubled one gets a suffix, in the order of ``var["gene_ids"]`` where there are
                    any, else of the file
patches             ``img`` uint8 (n, S, S, 3), ``coords`` (n, 2) finite, ``barcode`` (or
                    ``barcodes``) once each; ``pixel_size``, ``patch_size_src`` above 0, or absent
scale               ``pixel_size_um_estimated`` must give spots their distance (100 um; 200 um or
                    ``inter_spot_dist`` on legacy arrays) within a tenth, and be the patches'.
                    ``pixel_size_um_embedded`` is not believed: half of HEST's are dots per inch
image               at most one spot in twenty outside
absent              slide: the patches; patches as well: expression-only. A link that leads nowhere
                    is refused
==================  ================================================================================

HEST: Jaume et al., NeurIPS 2024.
"""

import glob
import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import lattice, tables
from mvhlib.artifacts import (
    InputError,
    check_sayable,
    h5_array,
    h5_attr,
    h5_reader,
    h5_sizes,
    reading,
)
from mvhlib.cohort.base import (
    Cohort,
    ImageRef,
    Section,
    check_counts,
    check_mpp,
    check_places,
    check_scale,
    check_sparse,
    entries,
    present,
    section_list,
)
from mvhlib.cohort.feature_matrix import told_apart
from mvhlib.cohort.pseudospots import is_control
from mvhlib.places import resolve
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

    from mvhlib.tiles.cut import Tiles

log = logging.getLogger(__name__)

#: Columns of a table of corrections beside the sets.
CORRECTION_COLUMNS = ("section", "study", "substudy", "donor", "specimen", "duplicate_of", "note")
#: Sets of the colorectal table; see ``params/hest_crc/README.md``.
MEMBERSHIPS = ("A", "Aprime", "B", "C", "S", "bench")
#: Side of a patch where nothing else tells [um/px]: patches are resampled to this.
PATCH_MPP = 0.5
#: A corner may miss half a patch from its spot by this share of the side.
CORNER_TOLERANCE = 0.25
#: Distance of neighbouring spots that each technology has, or is pooled to [um], and how far a
#: section may be from it. Spots of legacy arrays are printed, and stand less evenly.
PITCH_UM = {"Visium": 100.0, "Xenium": 100.0, "Spatial Transcriptomics": 200.0}
PITCH_TOLERANCE = {"Visium": 0.1, "Xenium": 0.1, "Spatial Transcriptomics": 0.2}
#: Distance where nothing tells [um].
USUAL_PITCH_UM = 100.0
#: Largest side of a patch [level-0 px].
LARGEST_PATCH_PX = 100_000
_NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
#: Longest side of the picture that patches are put together to [px].
MOSAIC_PX = 2000
#: Repositories on the hub.
HUB = {"hest": "MahmoodLab/hest", "hest-bench": "MahmoodLab/hest-bench"}


@dataclass(frozen=True)
class _Sample:
    """One sample on disk and what is known of it."""

    name: str
    root: Path  # folder that st/ or adata/ lies in
    counts: Path
    facts: Mapping[str, Any]  # row of the csv, filled up from the sample's own json
    told_by: Path  # csv, json, or the counts where there is neither


def read(path: str | Path, *, metadata: str | Path | None = None,
         corrections: str | Path | None = None, include: str | Sequence[str] | None = None,
         sections: Iterable[str] | None = None, substudies: bool = False,
         duplicates: bool = False, unrecorded: str = "study", images: bool = True) -> Cohort:
    """Read samples in the layout of HEST-1k, of a task of hest-bench, or of a folder of tasks.

    The image of a section is ``wsis/<id>.tif`` where there is one. Otherwise the patches stand
    for it: the section counts as imaged, and `tiles` gives what was cut.

    Parameters
    ----------
    path
        Folder that holds ``st``, or ``adata``, or task folders with ``adata``.
    metadata
        HEST's csv; None takes the newest ``HEST_v*.csv`` in `path`, where there is one.
    corrections
        Table of `CORRECTION_COLUMNS` and sets; relative paths are taken from the working
        directory, else from the clone.
    include
        Set of that table, or several; a sample of any of them is read. Where the table has a column
        ``group``, its groups are sets as well. None reads all samples.
    sections
        Ids to read; None reads all (of `include`).
    substudies
        Take the column ``substudy`` for the study (COLON MAP then counts as two).
    duplicates
        True keeps samples that duplicate another one.
    unrecorded
        Patient of a section whose donor is stated nowhere: ``"study"`` counts all such sections
        of a study as one patient, so that none is on both sides of a fold; ``"section"`` takes each
        for a patient of its own, on trust.
    images
        False reads every section as expression-only.

    Raises
    ------
    InputError
        If a file is missing or broken, a set or id is not known, or no sample is left.
    """
    root = Path(path)
    if unrecorded not in ("study", "section"):
        raise InputError("hest", "unrecorded", f"is {unrecorded!r}", "use study or section")
    table = None if corrections is None else read_corrections(corrections)
    samples = _find_samples(root, metadata)
    names = _choose(root, list(samples), table, corrections, include, sections, duplicates)
    rows = {} if table is None else table.set_index("section").to_dict("index")
    made = []
    for name in names:
        sample = samples[name]
        study, patient, specimen = _who(sample, rows.get(name), substudies, unrecorded)
        made.append(_section(root, sample, study, patient, specimen, images))
    cohort = Cohort(made)
    log.info("%s", describe(cohort, include))
    return cohort


def label(cohort: Cohort | pd.DataFrame, include: str | Sequence[str] | None = None) -> str:
    """Name the cohort for tables and figures by set and size, as in ``CRC-S (57)``.

    Parameters
    ----------
    cohort
        The cohort or its manifest.
    include
        As in `read`; None for whatever lies in the folder.
    """
    chosen = [include] if isinstance(include, str) else list(include or [])
    colorectal = "CRC-" if set(chosen) <= set(MEMBERSHIPS) else "HEST "
    name = colorectal + "+".join(chosen) if chosen else "HEST"
    return f"{name} ({len(cohort)})"


def describe(cohort: Cohort, include: str | Sequence[str] | None = None) -> str:
    """One line: label, sections per study (the sizes of leave-one-study-out folds), patients."""
    sizes = pd.Series([section.study for section in cohort]).value_counts()
    parts = ", ".join(f"{study} {size}" for study, size in
                      sorted(sizes.items(), key=lambda item: (-item[1], item[0])))
    return (f"{label(cohort, include)}: {len(cohort)} sections of {len(cohort.patients)} patients, "
            f"{len(sizes)} studies: {parts}")


def read_corrections(path: str | Path) -> pd.DataFrame:
    """Read a table of corrections; sets become booleans, and so does each value of ``group``.

    Raises
    ------
    InputError
        If a column is missing, an id stands twice, a set holds other than 0 and 1, or a duplicate
        is not in the study and specimen of what it duplicates.
    """
    found = Path(path)
    if not found.exists() and not found.is_absolute():
        found = resolve(path)
    table = tables.read_table(found, CORRECTION_COLUMNS)
    named = ["group"] if "group" in table else []
    for column in ("section", "study", "substudy", "donor", "specimen", *named):
        tables.names(table, column, found, unique=column == "section", safe=column == "section")
    table = table.reset_index(drop=True)
    for column in ("duplicate_of", "note"):
        table[column] = table[column].where(table[column] != "", np.nan)
    groups = table.pop("group") if named else pd.Series(dtype=str)
    for column in table.columns.difference(CORRECTION_COLUMNS, sort=False):
        if not set(table[column]) <= {"0", "1"}:
            raise InputError(found, column, f"holds {sorted(set(map(str, table[column])))[:5]}",
                             "use 0 and 1 in the columns of sets")
        table[column] = table[column] == "1"
    for group in dict.fromkeys(groups):
        table[group] = groups == group
    by_name = table.set_index("section")
    for name, other in by_name["duplicate_of"].dropna().items():
        if other not in by_name.index:
            raise InputError(found, "duplicate_of", f"of {name} names {other!r}, which has no row",
                             "name a sample of the table")
        for column in ("study", "substudy", "donor", "specimen"):
            if by_name.at[name, column] != by_name.at[other, column]:
                raise InputError(found, column, f"of {name} and {other} differ, though one "
                                 "duplicates the other", "give both the same")
    return table


def _find_samples(root: Path, metadata: str | Path | None) -> dict[str, _Sample]:
    """Id -> sample, of whichever layout `root` is."""
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "pass the folder of HEST-1k")
    homes = [home for home in (root, *(path for path in entries(root) if path.is_dir()))
             if any(entries(home / sub) for sub in ("st", "adata"))]
    if root in homes:
        homes = [root]
    files: dict[str, tuple[Path, Path]] = {}
    for home in homes:
        for sub in ("st", "adata"):
            for file in entries(home / sub):
                if file.suffix != ".h5ad":
                    continue
                if file.stem in files:
                    log.warning("%s stands in %s as well, the first is read", file,
                                files[file.stem][1])
                files.setdefault(file.stem, (home, file))
    if not files:
        raise InputError(root, "st", "holds no <id>.h5ad, nor does adata or a task's adata",
                         "pass the folder of HEST-1k, or one or all tasks of hest-bench")
    rows, csv = _metadata(root, metadata)
    samples = {}
    for name, (home, file) in files.items():
        facts, own = _facts(home, name, rows.get(name, {}))
        samples[name] = _Sample(name, home, file, facts, csv if name in rows else own or file)
    return samples


def _metadata(root: Path, metadata: str | Path | None
              ) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """Read the csv: id -> the stated cells of its row; and the csv itself."""
    if metadata is None:
        def version(file: Path) -> list[int]:
            return [int(number) for number in re.findall(r"\d+", file.stem)]

        found = sorted((file for file in root.glob("HEST_v*.csv")
                        if not file.name.startswith(".")), key=version)
        if not found:
            log.info("%s holds no HEST_v*.csv, only what the samples' own files say is known", root)
            return {}, None
        metadata = found[-1]
    table = tables.read_table(metadata, ("id", "dataset_title", "patient",
                                         "pixel_size_um_estimated"))
    tables.names(table, "id", metadata, unique=True)
    return {row["id"]: {key: value for key, value in row.items() if _stated(value)}
            for row in table.to_dict("records")}, Path(metadata)


def _stated(value: Any) -> bool:
    """True if a cell holds a value; the csv has blank as well as empty cells."""
    said = str(value).strip().lower()
    return said not in tables.NOT_KNOWN and said not in ("[]", "{}")


def _facts(home: Path, name: str, row: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The csv's row, filled up from ``metadata/<id>.json``; and that file, where there is one."""
    path = home / "metadata" / f"{name}.json"
    if not present(path):
        return dict(row), None
    with reading(path, problem="is no JSON object",
                 fix="it is probably truncated: fetch it again"):
        own = json.loads(path.read_text(encoding="utf-8-sig"))
        own = {key: value for key, value in own.items() if _stated(value)}
    return own | dict(row), path


def _choose(root: Path, present: list[str], table: pd.DataFrame | None, where: Any,
            include: str | Sequence[str] | None, sections: Iterable[str] | None,
            duplicates: bool) -> list[str]:
    """Ids to read, in the order of the table, else of their names."""
    names = sorted(present)
    if include is not None:
        if table is None:
            raise InputError("hest", "include", "names a set, but there is no table of sets",
                             "pass corrections=params/hest_crc/samples.csv")
        wanted = [include] if isinstance(include, str) else list(include)
        known = [column for column in table.columns if column not in CORRECTION_COLUMNS]
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            raise InputError(where, "include", f"{unknown} is no set of it", f"use {known}")
        listed = list(table.loc[table[wanted].any(axis=1), "section"])
        names = [name for name in listed if name in set(present)]
        if len(names) < len(listed) and sections is None:
            gone = [name for name in listed if name not in set(present)]
            log.warning("%s: %d of the %d samples of %s are not there, for example %s; this is "
                        "another cohort", root, len(gone), len(listed), "+".join(wanted), gone[:3])
    if sections is not None:
        sections = section_list(sections, root)
        unknown = [name for name in sections if name not in names]
        if unknown:
            raise InputError(root, "sections", f"{unknown[:3]} are not among the {len(names)} "
                             "samples found", "name ids of files in st or adata")
        names = sections
    elif table is not None and not duplicates:
        copies = table.set_index("section")["duplicate_of"].dropna()
        for name in [n for n in names if n in copies.index and copies[n] in names]:
            log.info("%s is left out, it duplicates %s", name, copies[name])
            names.remove(name)
    if not names:
        raise InputError(root, "sections", "no sample is left",
                         "check include against the files in st or adata")
    return names


def _who(sample: _Sample, row: Mapping[str, Any] | None, substudies: bool,
         unrecorded: str) -> tuple[str, str, str]:
    """Study, patient and specimen of a sample."""
    if row is not None:
        return row["substudy" if substudies else "study"], row["donor"], row["specimen"]
    for key in ("dataset_title", "patient"):
        value = sample.facts.get(key, "")
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise InputError(sample.told_by, key, f"of {sample.name} is {value!r}, no name",
                             "write it as text")
    study = str(sample.facts.get("dataset_title", sample.root.absolute().name)).strip()
    if "patient" in sample.facts:
        patient = f"{study}, {str(sample.facts['patient']).strip()}"
    else:
        log.warning("%s: no donor is stated; it counts as %s", sample.name,
                    "one patient with the others of its study" if unrecorded == "study"
                    else "a patient of its own")
        patient = f"{study}, donor not stated" if unrecorded == "study" else sample.name
    # Nothing tells blocks apart, so all sections of a donor count as replicates.
    return study, patient, patient


def _section(root: Path, sample: _Sample, study: str, patient: str, specimen: str,
             images: bool) -> Section:
    wsi = sample.root / "wsis" / f"{sample.name}.tif"
    patches = sample.root / "patches" / f"{sample.name}.h5"
    mpp = _number(sample, "pixel_size_um_estimated")
    if mpp is not None:
        mpp = check_mpp(mpp, sample.told_by, f"pixel_size_um_estimated of {sample.name}")
    ref = size = None
    if images and present(wsi, "slide"):
        with open_slide(wsi, mpp=mpp) as slide:
            size, mpp = (slide.width, slide.height), slide.mpp
        ref = ImageRef(str(wsi.relative_to(root)))
    elif images and present(patches, "patches"):
        with _open_patches(patches) as cut:
            _same_scale(cut, mpp, patches)
            mpp = mpp or cut.mpp
            reach = cut.coords.max(axis=0) + (cut.source_px or 0)
        stated = [_number(sample, f"fullres_px_{side}") for side in ("width", "height")]
        size = tuple(int(max(a or 0, np.ceil(b))) for a, b in zip(stated, reach, strict=True))
        ref = ImageRef(str(patches.relative_to(root)))
    if ref is not None and mpp is None:
        raise InputError(sample.counts, "pixel_size_um_estimated", f"of {sample.name} is stated "
                         "neither by the csv nor by its json nor by its patches",
                         "pass metadata= with HEST's csv")
    return Section(name=sample.name, study=study, patient=patient, specimen=specimen,
                   source="hest", load=lambda: _load(sample, mpp, ref, size, patches),
                   mpp=mpp if ref is not None else None, image_ref=ref, image_size=size,
                   roots={"data": root})


def _number(sample: _Sample, name: str) -> float | None:
    value = sample.facts.get(name)
    if value is None:
        return None
    said = str(value).strip() if isinstance(value, (str, int, float)) else ""
    number = math.nan
    if _NUMBER.fullmatch(said):
        # pandas' own parser: it ends one step of the last digit off, and runs were keyed by that.
        try:
            number = float(pd.to_numeric(said) if isinstance(value, str) else value)
        except ValueError:  # a whole number beyond 64 bits
            number = float(said)
    if not 0 < number < math.inf:
        raise InputError(sample.told_by, name, f"of {sample.name} is {value!r}",
                         "state a positive number, with a decimal point")
    return number


def _same_scale(cut: "_Patches", mpp: float | None, path: Path) -> None:
    """Refuse patches that were cut at another scale than the metadata state."""
    if mpp is not None and cut.mpp is not None:
        check_scale(cut.mpp, mpp, path, "pixel_size", said="is {:.4g} um/px",
                    seen="the metadata say pixel_size_um_estimated {:.4g}")


def _load(sample: _Sample, mpp: float | None, ref: ImageRef | None,
          size: tuple[int, int] | None, patches: Path) -> "AnnData":
    """Counts and centres; controls dropped, a picture kept where there is no slide."""
    import anndata
    from scipy import sparse

    path = sample.counts
    with h5_reader(path) as stream:
        h5_sizes(stream)
    with reading(path, fix="it is probably truncated: fetch it again"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that repeat: told apart or refused
        stored = anndata.read_h5ad(path)
    if stored.X is None:
        raise InputError(path, "X", "is missing", "HEST's files hold raw counts there")
    if hasattr(stored.X, "indptr"):
        check_sparse(stored.X, path, "X")
    check_places(stored, path)
    with reading(path, "obs", "is no table of places", "fetch it again"):
        obs = stored.obs[[c for c in ("array_row", "array_col") if c in stored.obs]]
        adata = anndata.AnnData(obs=obs.copy(),
                                var=pd.DataFrame(index=stored.var_names.astype(str)))
    adata.obs_names = adata.obs_names.astype(str)
    # Two Ensembl ids may share a symbol.
    adata.var_names = told_apart(adata.var_names, stored.var.get("gene_ids"))
    with reading(path, "X", fix="HEST's files hold raw counts there"):
        adata.layers["counts"] = sparse.csr_matrix(stored.X)
    check_counts(adata, path)
    adata.layers["counts"] = adata.layers["counts"].astype(np.int32)
    adata.obsm["spatial"] = np.asarray(stored.obsm["spatial"], dtype=np.float64)
    controls = _is_control(adata.var_names)
    adata = adata[:, ~controls].copy()
    adata.X = adata.layers["counts"].copy()
    technology = str(sample.facts.get("st_technology", "")).strip()
    adata.uns["lattice"] = _lattice(sample, technology, adata.obsm["spatial"], mpp)
    adata.uns["hest"] = {"technology": technology, "n_control_features": int(controls.sum())}
    if ref is not None and ref.path.endswith(".h5"):
        with reading(path, 'uns["spatial"]', fix="delete the pictures there, or fetch it again"):
            picture = _stored_picture(stored, path)
        if picture is None:
            with _open_patches(patches) as cut:
                corners, side, _ = _corners(cut, list(adata.obs_names), adata.obsm["spatial"],
                                            mpp, patches)
                picture = _mosaic(cut, corners, side, size)
        pixels, scale = picture
        diameter = adata.uns["lattice"]["spot_um"] / mpp
        adata.uns["spatial"] = {sample.name: {
            "images": {"hires": pixels}, "metadata": {},
            "scalefactors": {"tissue_hires_scalef": scale, "spot_diameter_fullres": diameter}}}
    return adata


def _is_control(genes: pd.Index) -> np.ndarray:
    """Controls of the platform; HEST's own test is a substring, which catches a few more."""
    named = pd.Series(genes.astype(str)).str.contains("BLANK|Control", regex=True).to_numpy()
    return is_control(genes) | named


def _lattice(sample: _Sample, technology: str, centers: np.ndarray, mpp: float | None
             ) -> dict[str, Any]:
    """Kind of the array, and its pitch as measured from the centres.

    Raises
    ------
    InputError
        If the scale does not give spots the distance that the technology has.
    """
    hexagonal = technology == "Visium"
    record: dict[str, Any] = {"kind": "hexagonal" if hexagonal else "square",
                              "n_neighs": 6 if hexagonal else 4, "coordinates": "pixel"}
    pitch = np.nan
    if len(centers) > 1 and mpp is not None:
        nearest = lattice.nearest(centers) * mpp
        pitch = float(np.median(nearest))
        record["pitch_um"] = pitch
        if pitch == 0:
            raise InputError(sample.counts, 'obsm["spatial"]', "gives half of the spots the place "
                             "of another", "give every spot its own place")
        # Where tissue is torn half of the spots may stand alone, but not all of them.
        close = float(np.quantile(nearest, 0.1))
        if technology in PITCH_UM:
            usual = PITCH_UM[technology]
            if technology == "Spatial Transcriptomics":  # arrays of other makers stand closer
                usual = _number(sample, "inter_spot_dist") or usual
            tolerance = PITCH_TOLERANCE[technology]
            if close <= 0 or abs(math.log(close / usual)) > math.log1p(tolerance):
                check_scale(mpp, mpp * usual / pitch, sample.told_by,
                            f"pixel_size_um_estimated of {sample.name}",
                            said="{:.4g} um/px is stated, by which spots are "
                            f"{pitch:.1f} um apart", seen=f"{technology} has {usual:.0f} um "
                            "between them, so it is {:.4g}", tolerance=tolerance)
    record["spot_um"] = 55.0 if hexagonal else pitch if np.isfinite(pitch) else USUAL_PITCH_UM
    return record


def _stored_picture(stored: "AnnData", path: Path) -> tuple[np.ndarray, float] | None:
    """The reduced slide that HEST's h5ad holds, with its scale."""
    for entry in dict(stored.uns.get("spatial", {})).values():
        for key, pixels in dict(entry.get("images", {})).items():
            scale = entry.get("scalefactors", {}).get(f"tissue_{key}_scalef")
            pixels = np.asarray(pixels)
            if scale is None or pixels.ndim != 3 or pixels.shape[2] < 3:
                continue
            if pixels.dtype.kind not in "uif" or pixels.size == 0 or not np.isfinite(pixels).all():
                raise InputError(path, f'uns["spatial"] {key}', f"is {pixels.dtype} of shape "
                                 f"{pixels.shape}, or holds NaN", "delete it, or fetch it again")
            if isinstance(scale, str) or not 0 < float(scale) <= 1.5:
                raise InputError(path, f"tissue_{key}_scalef", f"is {scale!r}",
                                 "delete the picture, or fetch the file again")
            pixels = pixels[..., :3]
            if pixels.dtype != np.uint8:
                pixels = np.clip(np.rint(pixels * (255 if pixels.max() <= 1 else 1)), 0, 255)
            step = max(1, -(-max(pixels.shape[:2]) // MOSAIC_PX))
            return (np.ascontiguousarray(pixels[::step, ::step].astype(np.uint8)),
                    float(scale) / step)
    return None


@dataclass(frozen=True)
class _Patches:
    """A patch file, open."""

    img: Any  # h5 dataset (n, S, S, 3)
    coords: np.ndarray
    barcodes: list[str]
    side: int  # [px]
    source_px: float | None  # side in level-0 pixels, where it is stated
    mpp: float | None  # of level 0, where it is stated


@contextmanager
def _open_patches(path: Path) -> Iterator[_Patches]:
    with h5_reader(path) as stream:
        img = h5_array(stream, "img", kind="integer", ndim=4, read=False)
        key = next((name for name in ("barcode", "barcodes") if name in stream), None)
        if key is None:
            raise InputError(path, "barcode", f"is missing; the file has {sorted(stream)}",
                             "fetch the file again: patches are joined on barcode")
        names = [str(name) for name in h5_array(stream, key, kind="text", ndim=(1, 2)).reshape(-1)]
        coords = h5_array(stream, "coords", ndim=(2, 3)).astype(np.float64)
        if coords.shape[-1] != 2 or np.abs(coords).max(initial=0) > 1e8:
            raise InputError(path, "coords", f"of shape {coords.shape} are no places of corners, "
                             "(n, 2)", "fetch the file again")
        coords = coords.reshape(-1, 2)
        if img.dtype != np.uint8 or img.shape[3] != 3 or img.shape[1] != img.shape[2] or \
                img.shape[1] == 0:
            raise InputError(path, "img", f"is {img.dtype} of shape {img.shape}",
                             "patches are uint8, (n, S, S, 3): fetch the file again")
        if not len(img) == len(coords) == len(names) or len(img) == 0:
            raise InputError(path, "img", f"of shape {img.shape} stands beside {len(coords)} "
                             f"coords and {len(names)} names", "fetch the file again")
        if len(set(names)) < len(names):
            raise InputError(path, key, "stands more than once", "fetch the file again")
        if not all(name.strip() for name in names):
            raise InputError(path, key, "is blank", "fetch the file again")
        source, mpp = (h5_attr(img, name, above=0) for name in ("patch_size_src", "pixel_size"))
        if source is not None and source > LARGEST_PATCH_PX:
            raise InputError(path, "patch_size_src", f"is {source:g} px", "fetch the file again")
        yield _Patches(img, coords, names, int(img.shape[1]),
                       None if source is None else float(source),
                       None if mpp is None else check_mpp(mpp, path, "pixel_size"))


def _corners(cut: _Patches, names: Sequence[str], centers: np.ndarray, mpp: float | None,
             path: Path) -> tuple[np.ndarray, float, np.ndarray]:
    """Top-left corners `(n, 2)`, the side in level-0 px, and the spot of each patch (-1: none).

    Files differ in what they state, and older ones are said to hold centres. The spots tell: a
    corner is half a side from its spot's centre, a centre is on it.
    """
    place = {name: index for index, name in enumerate(names)}
    spot = np.array([place.get(name, -1) for name in cut.barcodes])
    if (spot < 0).all():
        raise InputError(path, "barcode", f"none of {len(spot)} patches has a spot, for example "
                         f"{cut.barcodes[0]!r} against {next(iter(names))!r}",
                         "take patches and counts of one sample and release")
    joined = spot >= 0
    offset = float(np.median(centers[spot[joined]] - cut.coords[joined]))
    side, scale = cut.source_px, cut.mpp or mpp
    if side is None:
        # No attribute: half a side is what corners are off by; centres leave the usual scale.
        usual = None if scale is None else cut.side * PATCH_MPP / scale
        side = 2 * offset if offset > CORNER_TOLERANCE * cut.side else usual
        if side is None:
            raise InputError(path, "patch_size_src", "is missing, and the pixel size is not known",
                             "pass metadata= with HEST's csv")
    corners = None
    if abs(offset - side / 2) <= CORNER_TOLERANCE * side:
        corners = cut.coords
    elif abs(offset) <= CORNER_TOLERANCE * side:
        log.info("%s: coords are centres, not corners", path)
        corners = cut.coords - side / 2
    if corners is not None:
        # The median says nothing of single patches: with x and y swapped it may be right.
        off = np.abs(corners[joined] + side / 2 - centers[spot[joined]]).max(axis=1)
        far = off > side / 2
        if far.mean() > 0.05:
            raise InputError(path, "coords", f"of {int(far.sum())} of {len(far)} patches lie off "
                             f"their spot by more than half a patch ({side / 2:.0f} px)",
                             "take patches and counts of one sample and release")
        return corners, side, spot
    raise InputError(path, "coords", f"are {offset:.0f} px from the spots' centres, neither half a "
                     f"patch ({side / 2:.0f}) nor none", "take patches and counts of one release")


def patch_file(path: str | Path, section: Section | str) -> Path | None:
    """The section's file of patches below `path`, or None where there is none."""
    name = section if isinstance(section, str) else section.name
    root = Path(path)
    found = [root / "patches" / f"{name}.h5",
             *sorted(root.glob(f"*/patches/{glob.escape(name)}.h5"))]
    return next((file for file in found if present(file, "patches")), None)


def tiles(path: str | Path, section: Section) -> "Tiles":
    """The tiles that HEST cut around the section's spots, as they are.

    Parameters
    ----------
    path
        Folder that the cohort was read from.
    section
        Of that cohort, or of the run's copy of it.

    Returns
    -------
    Tiles
        In the file's order, with top-left corners; spots without a patch are not among them, and
        patches without a spot are left out. Side and scale are the file's own.

    Raises
    ------
    InputError
        If there is no file, it does not fit the spots, or nothing tells its scale.
    """
    from mvhlib.tiles.store import read_tiles

    file = patch_file(path, section)
    if file is None:
        raise InputError(path, f"patches/{section.name}.h5", "does not exist",
                         "fetch the patches, or cut tiles from wsis")
    adata = section.adata
    with _open_patches(file) as cut:
        corners, side, spot = _corners(cut, list(adata.obs_names), adata.obsm["spatial"],
                                       section.mpp, file)
        _same_scale(cut, section.mpp, file)
        mpp = cut.mpp or section.mpp
    if mpp is None:
        raise InputError(file, "pixel_size", "is not stated, and the section has no scale",
                         "pass metadata= with HEST's csv")
    if section.mpp is not None and abs(mpp / section.mpp - 1) > 0.02:
        log.warning("%s: pixel size is %.4g um/px, the metadata say %.4g", file, mpp, section.mpp)
    found = read_tiles(file, tile_um=side * mpp)
    found = replace(found, coords=np.rint(corners).astype(np.int64), source_mpp=float(mpp))
    log.info("%s: %d of %d spots have a patch; %d patches have no spot", section.name,
             int((spot >= 0).sum()), adata.n_obs, int((spot < 0).sum()))
    return found if (spot >= 0).all() else found.select(np.flatnonzero(spot >= 0))


def _mosaic(cut: _Patches, corners: np.ndarray, side: float,
            size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The slide as far as patches cover it, reduced; white elsewhere."""
    from PIL import Image

    scale = min(1.0, MOSAIC_PX / max(size))
    px = max(1, round(side * scale))
    canvas = np.full((max(px, round(size[1] * scale)), max(px, round(size[0] * scale)), 3), 255,
                     dtype=np.uint8)
    height, width = canvas.shape[:2]
    for start in range(0, len(corners), 256):
        for corner, pixels in zip(corners[start:start + 256], cut.img[start:start + 256],
                                  strict=True):
            small = np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BOX))
            x, y = (int(round(value * scale)) for value in corner)
            left, top = max(0, -x), max(0, -y)
            right, bottom = min(px, width - x), min(px, height - y)
            if right > left and bottom > top:
                canvas[y + top:y + bottom, x + left:x + right] = small[top:bottom, left:right]
    return canvas, scale


def k_genes(adatas: Sequence["AnnData"], k: int = 50, criterion: str = "var", *,
            min_spots: float = 0.1, available: Iterable[str] | None = None) -> list[str]:
    """Genes as HEST-Benchmark selects them, the most variable first.

    Genes found in a tenth of the spots of every sample, without controls; raw counts of all samples
    are stacked, ln(1 + x) is taken, and scanpy's most variable genes (``"var"``), or those of the
    highest mean count (``"mean"``), are chosen. HEST does so on all samples of a task, test samples
    among them; give training sections to avoid that.

    Parameters
    ----------
    adatas
        Sections with raw counts in ``layers["counts"]``.
    k
        Genes wanted; all that qualify where there are fewer.
    criterion
        ``"var"`` or ``"mean"``.
    min_spots
        Least share of the spots of every section that a gene is found in [0-1].
    available
        Names to choose among; None: no restriction.

    Raises
    ------
    InputError
        If the criterion is not known or no gene qualifies.
    """
    import anndata
    import scanpy as sc
    from scipy import sparse

    if criterion not in ("var", "mean"):
        raise InputError("k_genes", "criterion", f"is {criterion!r}", "use var or mean")
    adatas = list(adatas)
    if not adatas:
        raise InputError("k_genes", "sections", "none was given", "pass sections with counts")
    common = None if available is None else set(available)
    for adata in adatas:
        counts = sparse.csr_matrix(adata.layers["counts"])
        found = np.asarray((counts > 0).sum(axis=0)).ravel() >= np.ceil(min_spots * adata.n_obs)
        here = set(adata.var_names[found & ~_is_control(adata.var_names)])
        common = here if common is None else common & here
    genes = sorted(common)
    if not genes:
        raise InputError("k_genes", "genes", f"none is found in {min_spots:.0%} of the spots of "
                         f"every one of {len(adatas)} sections", "lower min_spots")
    stacked = sparse.vstack([sparse.csr_matrix(adata.layers["counts"])
                             [:, adata.var_names.get_indexer(genes)] for adata in adatas],
                            format="csr").astype(np.float32)
    if criterion == "mean":
        score = np.asarray(stacked.astype(np.float64).mean(axis=0)).ravel()
    else:
        stacked.data = np.log1p(stacked.data)
        table = sc.pp.highly_variable_genes(
            anndata.AnnData(stacked, var=pd.DataFrame(index=genes)), n_top_genes=k, inplace=False)
        score = np.nan_to_num(table["dispersions_norm"].to_numpy(float), nan=-np.inf)
    order = np.lexsort((np.array(genes), -score))
    return [genes[index] for index in order[:k]]


def bench_options(data: str | Path | None, task: str) -> dict[str, Any]:
    """Folds and genes that a task of hest-bench fixes for every notebook.

    Parameters
    ----------
    data
        Directory of the data set.
    task
        Folder of the task below it; empty where no task is evaluated.

    Returns
    -------
    dict
        ``given`` for `splits.make` and ``benchmark_genes`` for `evaluation.choose_panels`; both
        None without a task.
    """
    if not task:
        return {"given": None, "benchmark_genes": None}
    folder = Path(data or ".") / task
    return {"given": bench_folds(folder), "benchmark_genes": bench_genes(folder)}


def bench_folds(path: str | Path) -> pd.DataFrame:
    """Folds of a task of hest-bench, from its own ``splits/{train,test}_<i>.csv``.

    Anything else in ``splits`` is passed over, and the log says so.

    Parameters
    ----------
    path
        Folder of the task.

    Returns
    -------
    DataFrame
        Columns fold (text), section, role, samples in the order of the files; for
        ``splits.make(..., given=...)``.

    Raises
    ------
    InputError
        If there is no split, a half of one is missing, or a sample stands on both sides.
    """
    folder = Path(path) / "splits"
    halves: dict[int, dict[str, Path]] = {}
    for file in entries(folder):
        named = re.fullmatch(r"(train|test)_(\d+)\.csv", file.name)
        if named is None:
            log.info("%s is no split and is passed over", file)
            continue
        halves.setdefault(int(named[2]), {})[named[1]] = file
    if not halves:
        raise InputError(folder, "splits", "holds no train_<i>.csv and test_<i>.csv",
                         "pass the folder of a task of hest-bench")
    rows = []
    for number in sorted(halves):
        for role in ("train", "test"):
            file = halves[number].get(role)
            if file is None:
                raise InputError(folder, f"{role}_{number}.csv", "does not exist",
                                 "fetch the task again")
            samples = tables.names(tables.read_table(file, ("sample_id",)), "sample_id", file,
                                   safe=True)
            rows += [(str(number), name, role) for name in dict.fromkeys(samples)]
    frame = pd.DataFrame(rows, columns=["fold", "section", "role"])
    for fold, part in frame.groupby("fold"):
        both = part["section"][part["section"].duplicated()]
        if len(both):
            raise InputError(folder, f"fold {fold}", f"{list(both)[:3]} stand on both sides",
                             "keep a sample on one side")
    return frame


def bench_genes(path: str | Path, name: str = "var_50genes") -> list[str]:
    """Genes of a task of hest-bench; they were chosen with its test samples.

    Parameters
    ----------
    path
        Folder of the task.
    name
        ``var_50genes`` or ``mean_50genes``.
    """
    file = Path(path) / f"{name}.json"
    if not present(file):
        raise InputError(file, "file", "does not exist", "pass the folder of a task of hest-bench")
    with reading(file, "genes", fix="fetch it again"):
        genes = json.loads(file.read_text(encoding="utf-8-sig"))["genes"]
    if not isinstance(genes, list) or not genes or not all(
            isinstance(gene, str) and gene.strip() for gene in genes):
        raise InputError(file, "genes", f"is no list of names ({genes!r:.60})", "fetch it again")
    if len(set(genes)) < len(genes):
        raise InputError(file, "genes", "names a gene more than once", "fetch it again")
    check_sayable(genes, file, "gene")
    return genes


def fetch(path: str | Path, sections: Iterable[str], *, repository: str = "hest",
          parts: Sequence[str] = ("st", "patches", "metadata"),
          revision: str | None = None) -> Path:
    """Download samples from the hub. Nothing else here uses the network.

    The data are gated: accept their terms on the hub's page and log in
    (``huggingface-cli login``) first. Patches of a section take some hundred MB, its slide GB.

    Parameters
    ----------
    path
        Folder to fill.
    sections
        Ids.
    repository
        ``"hest"``, ``"hest-bench"``, or the full name of another repository of data sets.
    parts
        Folders to fetch: st, patches, metadata, wsis, ...; for hest-bench adata and patches, and
        the tasks' splits and gene lists come with them.
    revision
        Commit or tag; None takes the newest. Name one for numbers that shall be made again.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        If ``huggingface_hub`` is not installed, nothing is asked for, or the hub refuses.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError("hest.fetch", "huggingface_hub", "is not installed",
                         "pip install huggingface_hub, or copy the files by other means") from error
    sections = list(sections)
    if not sections or not parts:
        raise InputError("hest.fetch", "sections", "or parts are empty", "name what to fetch")
    bench = repository == "hest-bench"
    ahead = "*/" if bench else ""
    wanted = [f"{ahead}{part}/{name}{end}" for name in sections for part in parts
              for end in (".*", "_*")]
    # In hest-bench every file lies below its task.
    wanted += ["*/splits/*.csv", "*/*_50genes.json"] if bench else ["HEST_v*.csv"]
    try:
        snapshot_download(repo_id=HUB.get(repository, repository), repo_type="dataset",
                          revision=revision, allow_patterns=wanted, local_dir=str(path))
    except Exception as error:  # the client's errors are many and change their names
        raise InputError(HUB.get(repository, repository), "download",
                         f"failed ({type(error).__name__}: {error})",
                         "accept the terms on the hub's page, log in, and check the connection"
                         ) from error
    return Path(path)
