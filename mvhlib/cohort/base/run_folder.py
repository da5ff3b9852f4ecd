"""The cohort folder of a run: sections written, read again, and their truth."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import (
    InputError,
    atomic,
    check_h5_files,
    h5_array,
    h5_reader,
    h5_sizes,
    read_csv,
    reading,
    safe_name,
)
from mvhlib.cohort.base.checks import (
    check_counts,
    check_mpp,
    check_places,
    check_sparse,
    signed_indices,
)
from mvhlib.cohort.base.listing import section_list
from mvhlib.cohort.base.section import MANIFEST_COLUMNS, Cohort, ImageRef, Section

if TYPE_CHECKING:
    from anndata import AnnData


def write_section(section: Section, folder: str | Path) -> Path:
    """Write ``<folder>/<section>.h5ad`` by atomic rename, with a thumbnail of its image.

    Raises
    ------
    InputError
        If the counts or the image cannot be read, or the image lies outside the data directory:
        whoever reads the run knows that directory and no other.
    """
    from mvhlib.cohort.thumbnail import attach_thumbnail

    if section.image_ref is not None:
        _check_ref(section.image_ref, section.name)
    attach_thumbnail(section)
    adata = section.adata.copy()
    adata.obs["study"], adata.obs["patient"] = section.study, section.patient
    adata.obs["section"], adata.obs["specimen"] = section.name, section.specimen
    ref = None if section.image_ref is None else asdict(section.image_ref)
    record = {"study": section.study, "patient": section.patient, "specimen": section.specimen,
              "source": section.source, "mpp": -1.0 if section.mpp is None else section.mpp}
    if ref is not None:
        record |= {"image_path": ref["path"], "image_root": ref["root"],
                   "exclude": np.asarray(ref["exclude"], dtype=np.int64).reshape(-1, 4),
                   "dark_background": ref["dark_background"],
                   "image_size": np.asarray(section.image_size, dtype=np.int64)}
    adata.uns["mvh"] = record
    path = Path(folder) / f"{section.name}.h5ad"
    with atomic(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return path


def read_section(path: str | Path, data: str | Path | None = None) -> Section:
    """Read a section that `write_section` wrote; counts are loaded at first use.

    Parameters
    ----------
    path
        ``cohort/<section>.h5ad`` of a run.
    data
        The user's data directory, for images that lie there.
    """
    return _read_section(Path(path), data)[0]


def _read_section(path: Path, data: str | Path | None) -> tuple[Section, tuple[int, int]]:
    """The section of a file, and how many spots and genes it has."""
    with h5_reader(path) as stream:
        h5_sizes(stream)
        record = _read_record(path, stream)
        shape = tuple(_n_names(path, stream, axis) for axis in ("obs", "var"))
    ref, size = record.pop("image")
    mpp = record.pop("mpp")

    def load() -> "AnnData":
        import anndata

        with reading(path, fix="it is probably truncated: delete it and run 01_cohort"):
            adata = anndata.read_h5ad(path)
        for name, matrix in (("X", adata.X), *adata.layers.items()):
            if hasattr(matrix, "indptr"):
                check_sparse(matrix, path, name)
                signed_indices(matrix)
        check_counts(adata, path)
        check_places(adata, path)
        _check_owner(path, adata, record)
        return adata

    section = Section(
        name=path.stem, source=record["source"], study=record["study"], patient=record["patient"],
        specimen=record["specimen"], load=load, mpp=mpp, image_ref=ref, image_size=size,
        roots={"cohort": path.parent} | ({"data": Path(data)} if data else {}))
    return section, shape


def _read_record(path: Path, stream: Any) -> dict[str, Any]:
    """``uns["mvh"]`` of a section's file, every entry of the type that `write_section` gives it."""
    import h5py

    fix = "make the file with 01_cohort"
    group = stream.get("uns/mvh")
    if not isinstance(group, h5py.Group):
        raise InputError(path, 'uns["mvh"]', "is missing", fix)

    def entry(name: str, encoding: str, **options) -> Any:
        label = f'uns["mvh"]["{name}"]'
        node = group.get(name)
        if not isinstance(node, h5py.Dataset):
            raise InputError(path, label, "is missing", fix)
        found = node.attrs.get("encoding-type")
        if found != encoding:
            raise InputError(path, label, f"is written as {found!r} and not as {encoding!r}", fix)
        value = h5_array(group, name, ndim=2 if name == "exclude" else 1 if encoding == "array"
                         else 0, **options)
        return value if encoding == "array" else value.item()

    def text(name: str) -> str:
        value = entry(name, "string", kind="text")
        if not value.strip():
            raise InputError(path, f'uns["mvh"]["{name}"]', "is blank", fix)
        return value

    record = {name: text(name) for name in ("study", "patient", "specimen", "source")}
    mpp = float(entry("mpp", "numeric-scalar"))
    record["mpp"] = None if mpp == -1.0 else check_mpp(mpp, path, 'uns["mvh"]["mpp"]')
    record["image"] = (None, None)
    if any(name.startswith("image_") for name in group):
        exclude = entry("exclude", "array", kind="integer")
        size = entry("image_size", "array", kind="integer", rows=2)
        if exclude.shape[1] != 4 or (exclude[:, :2] > exclude[:, 2:]).any():
            raise InputError(path, 'uns["mvh"]["exclude"]', "does not hold boxes (x0, y0, x1, y1)",
                             fix)
        if (size < 1).any():
            raise InputError(path, 'uns["mvh"]["image_size"]', f"is {size.tolist()}", fix)
        ref = ImageRef(text("image_path"), text("image_root"),
                       tuple(tuple(int(v) for v in box) for box in exclude),
                       bool(entry("dark_background", "numeric-scalar")))
        _check_ref(ref, path)
        record["image"] = (ref, tuple(int(v) for v in size))
    return record


def _check_ref(ref: ImageRef, where) -> None:
    """Refuse an image whose path does not lead down from DATA or the cohort folder."""
    if ref.root not in ("data", "cohort"):
        raise InputError(where, "image_root", f"is {ref.root!r}", "use data or cohort")
    way = PurePosixPath(ref.path)
    if way.is_absolute() or ".." in way.parts or not way.parts or "\0" in ref.path:
        raise InputError(where, "image_path", f"is {ref.path!r}, which does not lie below "
                         f"{'DATA' if ref.root == 'data' else 'the cohort folder'}",
                         "put the image, or a link to it, into the data directory")


def _n_names(path: Path, stream: Any, axis: str) -> int:
    """Count the rows of the table ``obs`` or ``var`` of an h5ad."""
    import h5py

    table = stream.get(axis)
    column = table.attrs.get("_index") if isinstance(table, h5py.Group) else None
    if not isinstance(column, str):
        raise InputError(path, axis, "is not a table with an index", "make the file with 01_cohort")
    return len(h5_array(table, column, kind="text", ndim=1, read=False))


def _check_owner(path: Path, adata: "AnnData", record: dict[str, Any]) -> None:
    """Refuse a file whose spots are said to be of another section, patient or study."""
    for column, said in (("section", path.stem), ("study", record["study"]),
                         ("patient", record["patient"]), ("specimen", record["specimen"])):
        if column not in adata.obs:
            raise InputError(path, f"obs[{column}]", "is missing", "make the file with 01_cohort")
        with reading(path, f"obs[{column}]", fix="make the file with 01_cohort"):
            found = adata.obs[column].astype(object)
            other = found[found != said]
        if len(other):
            raise InputError(path, f"obs[{column}]", f"is {other.iloc[0]!r} for {len(other)} of "
                             f"{len(found)} spots, but the file is that of {said!r}",
                             "make the file with 01_cohort, and do not rename it")


def read_run(path: str | Path, *, data: str | Path | None = None,
             sections: Iterable[str] | None = None) -> Cohort:
    """Read the cohort folder of a run: ``manifest.csv`` and one h5ad per section.

    The manifest says what there is; counts and images are read at first use.

    Parameters
    ----------
    path
        ``OUT/runs/<profile>/cohort``.
    data
        The user's data directory, for images that lie there.
    sections
        Names to read; None reads all of the manifest.

    Raises
    ------
    InputError
        If the manifest or a section's file is missing or broken.
    """
    folder = Path(path)
    file = folder / "manifest.csv"
    if not file.is_file() and not file.is_symlink():
        raise InputError(file, "file", "does not exist", "run 01_cohort first")
    manifest = _read_manifest(file)
    if sections is not None:
        sections = section_list(sections, file)
        unknown = [name for name in sections if name not in set(manifest["section"])]
        if unknown:
            raise InputError(file, "section", f"lacks {unknown}",
                             f"use some of {list(manifest['section'])}")
        manifest = manifest.set_index("section", drop=False).loc[sections]
    check_h5_files(folder / f"{name}.h5ad" for name in manifest["section"])
    made = []
    for row in manifest.to_dict("records"):
        section, shape = _read_section(folder / f"{row['section']}.h5ad", data)
        _check_row(file, row, section, shape)
        made.append(section)
    cohort = Cohort(made)
    # The table on disk spares reading every section's counts.
    cohort.manifest = manifest[list(MANIFEST_COLUMNS)].reset_index(drop=True)
    return cohort


def _read_manifest(file: Path) -> pd.DataFrame:
    """The table of a run's sections, every cell of its column's kind."""
    text = dict.fromkeys(("section", "study", "patient", "specimen", "source"), str)
    manifest = read_csv(file, MANIFEST_COLUMNS, dtype=text)
    fix = "run 01_cohort again"
    if manifest.empty:
        raise InputError(file, "section", "has no row", fix)

    def refuse(column: str, wrong, problem: str) -> None:
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise InputError(file, column, f"is {manifest[column].iloc[row]!r} in row {row + 2}, "
                             f"{problem}", fix)

    for column in text:
        refuse(column, manifest[column].isna(), "where a name is needed")
    for name in manifest["section"]:
        if safe_name(name, file, "section") != name:
            raise InputError(file, "section", f"is {name!r}, with a blank at an end", fix)
    refuse("section", manifest["section"].duplicated(), "for the second time")
    for column in ("n_spots", "n_genes", "image_width_px", "image_height_px"):
        values = pd.to_numeric(manifest[column], errors="coerce")
        blank = manifest[column].isna() & column.startswith("image_")
        refuse(column, ~blank & ~((values >= 1) & (values == np.floor(values))),
               "not a whole number above 0")
    values = pd.to_numeric(manifest["mpp"], errors="coerce")
    refuse("mpp", manifest["mpp"].notna() & ~((values > 0) & np.isfinite(values)),
           "not a number above 0")
    refuse("has_image", [not isinstance(value, (bool, np.bool_)) for value in
                         manifest["has_image"]], "not True or False")
    return manifest


def _check_row(file: Path, row: dict[str, Any], section: Section, shape: Sequence[int]) -> None:
    """Refuse a row of the manifest that contradicts the section's own record."""
    width, height = section.image_size or (np.nan, np.nan)
    own = {"study": section.study, "patient": section.patient, "specimen": section.specimen,
           "source": section.source, "has_image": section.has_image, "n_spots": shape[0],
           "n_genes": shape[1], "image_width_px": width, "image_height_px": height,
           "mpp": np.nan if section.mpp is None else section.mpp}
    for column, said in own.items():
        listed = row[column]
        same = listed == said
        if isinstance(said, float) and not same:
            # The table keeps nine digits.
            same = bool(np.isclose(float(listed), said, rtol=1e-6, atol=0, equal_nan=True))
        if not same:
            raise InputError(file, column, f"is {listed!r} for section {section.name}, whose h5ad "
                             f"says {said!r}", "run 01_cohort again, and edit neither file by hand")


def spot_labels(sections: "Iterable[Section]", truth: str | Path = "") -> "dict[str, pd.Series]":
    """Tissue class of each spot, where it is known.

    Parameters
    ----------
    sections
        Such as a `Cohort`; a column ``label`` of ``obs`` is a pathologist's.
    truth
        Folder of the synthetic truth; where it holds ``<section>.h5ad`` the classes are its
        ``tissue_class``.

    Returns
    -------
    dict
        Section -> classes indexed by barcode. Sections without any are left out.
    """
    sections = list(sections)
    check_h5_files(Path(truth) / f"{section.name}.h5ad" for section in sections)
    found = {}
    for section in sections:
        path = Path(truth) / f"{section.name}.h5ad"
        if truth and path.exists():
            found[section.name] = _read_truth(path, "obs", "tissue_class")["tissue_class"]
        elif "label" in section.adata.obs and section.adata.obs["label"].notna().any():
            found[section.name] = section.adata.obs["label"]
    return found


def truth_genes(truth: str | Path) -> pd.DataFrame:
    """Read the synthetic truth about each gene (``var``); empty where there is no truth."""
    path = next((path for path in sorted(Path(truth).glob("*.h5ad"))
                 if not path.name.startswith(".")), None)
    return pd.DataFrame() if path is None else _read_truth(path, "var")


def _read_truth(path: Path, axis: str, *columns: str) -> pd.DataFrame:
    """The table ``obs`` or ``var`` of a file of the synthetic truth."""
    import anndata

    with h5_reader(path) as stream:
        h5_sizes(stream)
    with reading(path, fix="delete it and run 01_cohort"):
        table = getattr(anndata.read_h5ad(path), axis)
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(path, axis, f"lacks {missing}", "delete it and run 01_cohort")
    return table
