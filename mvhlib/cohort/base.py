"""What a data set is: sections that know their study, patient and specimen, and a cohort of them.

A section on disk is one h5ad file: ``layers["counts"]`` raw counts (spots x genes), ``obs`` with
study, patient, section, ``obsm["spatial"]`` spot centres (x, y) in level-0 pixels and, where
there is an image, ``uns["spatial"][section]`` with a thumbnail, as squidpy draws it.
``uns["mvh"]`` says where the full image lies; see `ImageRef`.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, atomic, read_csv, sha256_file
from mvhlib.tiles.slides import Slide, open_slide

if TYPE_CHECKING:
    from anndata import AnnData

MANIFEST_COLUMNS = ("section", "study", "patient", "specimen", "n_spots", "n_genes", "has_image",
                    "mpp", "image_width_px", "image_height_px", "source")


@dataclass(frozen=True)
class ImageRef:
    """Where a section's pixels are, without tying the record to one machine.

    Parameters
    ----------
    path
        File, relative to `root`.
    root
        ``"data"``: the user's data directory; ``"cohort"``: the run's own cohort folder.
    exclude
        Boxes `(x0, y0, x1, y1)` in level-0 pixels that are no tissue (pasted thumbnails, labels).
    dark_background
        True where the surroundings of the tissue are black; they are then read as white.
    """

    path: str
    root: str = "data"
    exclude: tuple[tuple[int, int, int, int], ...] = ()
    dark_background: bool = False


@dataclass
class Section:
    """One tissue section: expression per spot and, where there is one, its image.

    Attributes
    ----------
    name, study, patient, specimen
        Identifiers; two sections of one specimen are replicates and never separated by a fold.
    mpp
        Micrometres per level-0 pixel, or None without an image.
    source
        Name of the reader that made it.
    """

    name: str
    study: str
    patient: str
    specimen: str
    source: str
    load: Callable[[], "AnnData"] = field(repr=False)
    mpp: float | None = None
    image_ref: ImageRef | None = None
    image_size: tuple[int, int] | None = None  # (width, height) [px]
    roots: dict[str, Path] = field(default_factory=dict, repr=False)

    @cached_property
    def adata(self) -> "AnnData":
        """Counts and coordinates, read at first use."""
        adata = self.load()
        check_counts(adata, self.name)
        return adata

    @property
    def has_image(self) -> bool:
        return self.image_ref is not None

    @property
    def has_slide(self) -> bool:
        """Whether pixels can be read anywhere, not only in patches that somebody else cut."""
        return self.image_ref is not None and not self.image_ref.path.endswith(".h5")

    @property
    def centers(self) -> np.ndarray:
        """Spot centres (x, y), `(T, 2)` float [level-0 px]."""
        return np.asarray(self.adata.obsm["spatial"], dtype=np.float64)

    def image_key(self) -> list:
        """What identifies the pixels, for keys of what is made from them.

        The file's hash, and how it is read; not where it lies.
        """
        path = self.roots[self.image_ref.root] / self.image_ref.path
        return [sha256_file(path), self.mpp, self.image_ref.exclude,
                self.image_ref.dark_background]

    @property
    def slide(self) -> Slide:
        """The section's pixels, to be read region by region.

        Raises
        ------
        InputError
            If the section has no image, or the file is not where the record says.
        """
        if self.image_ref is None:
            raise InputError(self.name, "image", "this section is expression-only",
                             "choose a section with has_image in the manifest")
        root = self.roots.get(self.image_ref.root)
        if root is None:
            raise InputError(self.name, self.image_ref.root, "the image's folder is not known",
                             "pass the data directory that the cohort was read from")
        return open_slide(root / self.image_ref.path, mpp=self.mpp,
                          exclude=self.image_ref.exclude,
                          dark_background=self.image_ref.dark_background)

    def image(self, level: int = 0) -> np.ndarray:
        """Pixels `(H, W, 3)` uint8; `level` 0 is full resolution, each further one half of it."""
        with self.slide as slide:
            longest = max(slide.width, slide.height) // 2**level
            return slide.thumbnail(max_px=max(1, longest))

    def record(self) -> dict:
        """The section's row of the manifest; reads the counts."""
        width, height = self.image_size or (None, None)
        return dict(zip(MANIFEST_COLUMNS, (
            self.name, self.study, self.patient, self.specimen, self.adata.n_obs,
            self.adata.n_vars, self.has_image, self.mpp, width, height, self.source), strict=True))

    def __repr__(self) -> str:
        size = f"{self.adata.n_obs} spots x {self.adata.n_vars} genes"
        scale = "unknown scale" if self.mpp is None else f"{self.mpp:.3g} µm/px"
        image = "no image" if self.image_ref is None else (
            f"image {self.image_size[0]} x {self.image_size[1]} px at {scale}")
        return (f"Section {self.name}: {size}, {image}; study {self.study}, "
                f"patient {self.patient}, specimen {self.specimen} ({self.source})")


class Cohort:
    """Sections by name, with the table of who they belong to.

    Parameters
    ----------
    sections
        Their names must be unique over the cohort.
    """

    def __init__(self, sections: Iterable[Section]):
        sections = list(sections)
        names = [section.name for section in sections]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError("cohort", "section", f"the same name stands twice: {twice}",
                             "give every section its own id")
        if not sections:
            raise InputError("cohort", "section", "no section was found", "check the directory")
        self.sections: dict[str, Section] = {section.name: section for section in sections}

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row per section, columns `MANIFEST_COLUMNS`."""
        return pd.DataFrame([section.record() for section in self.sections.values()],
                            columns=list(MANIFEST_COLUMNS))

    @property
    def studies(self) -> list[str]:
        return sorted({section.study for section in self.sections.values()})

    @property
    def patients(self) -> list[str]:
        return sorted({section.patient for section in self.sections.values()})

    def panel(self, name: str, sections: Iterable[str] | None = None, n_genes: int = 50,
              **options):
        """Genes of panel `name`, chosen on `sections` only; see `mvhlib.cohort.genes.panel`."""
        from mvhlib.cohort import genes

        chosen = list(self.sections if sections is None else sections)
        return genes.panel(name, [self[section].adata for section in chosen], n_genes=n_genes,
                           **options)

    def subset(self, sections: Iterable[str]) -> "Cohort":
        """The cohort of the named sections, in the order given."""
        return Cohort(self[name] for name in sections)

    def __getitem__(self, name: str) -> Section:
        if name not in self.sections:
            raise InputError("cohort", "section", f"{name!r} is not among {list(self.sections)}",
                             "use one of these names")
        return self.sections[name]

    def __iter__(self):
        return iter(self.sections.values())

    def __len__(self) -> int:
        return len(self.sections)

    def __repr__(self) -> str:
        imaged = sum(section.has_image for section in self)
        sources = ", ".join(sorted({section.source for section in self}))
        return (f"Cohort ({sources}): {len(self)} sections ({imaged} with image) of "
                f"{len(self.patients)} patients, studies {', '.join(self.studies)}")


def check_counts(adata: "AnnData", where) -> None:
    """Refuse what is no table of raw counts.

    Raises
    ------
    InputError
        On repeated barcodes or genes, negative, fractional or missing counts, or no spot at all.
    """
    if adata.n_obs == 0:
        raise InputError(where, "spots", "no spot lies on tissue", "check selection and join")
    for field_name, index in (("barcode", adata.obs_names), ("gene", adata.var_names)):
        if not index.is_unique:
            twice = list(index[index.duplicated()][:3])
            raise InputError(where, field_name, f"stands more than once, for example {twice}",
                             "make the names unique or sum the rows")
    counts = adata.layers.get("counts")
    if counts is None:
        raise InputError(where, 'layers["counts"]', "is missing", "store the raw counts there")
    values = np.asarray(counts.data if hasattr(counts, "tocsr") else counts)
    if not np.isfinite(values).all():
        raise InputError(where, "counts", "hold NaN or infinity", "store the raw counts")
    if (values < 0).any():
        raise InputError(where, "counts", f"are negative (least {values.min():g})",
                         "store raw counts, not scaled or corrected values")
    if (values != np.round(values)).any():
        raise InputError(where, "counts", "are fractional",
                         "store raw counts, not normalised values")


def write_section(section: Section, folder: str | Path) -> Path:
    """Write ``<folder>/<section>.h5ad`` by atomic rename, with a thumbnail of its image.

    Raises
    ------
    InputError
        If the counts or the image cannot be read.
    """
    from mvhlib.cohort.thumbnail import attach_thumbnail

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
    from anndata.io import read_elem

    from mvhlib.artifacts import h5_reader

    path = Path(path)
    with h5_reader(path) as stream:
        if "mvh" not in stream.get("uns", {}):
            raise InputError(path, 'uns["mvh"]', "is missing", "make the file by 01_cohort")
        record = read_elem(stream["uns/mvh"])
    ref = None
    if "image_path" in record:
        ref = ImageRef(str(record["image_path"]), str(record["image_root"]),
                       tuple(tuple(int(v) for v in box) for box in record["exclude"]),
                       bool(record["dark_background"]))

    def load() -> "AnnData":
        import anndata

        try:
            return anndata.read_h5ad(path)
        except Exception as error:
            raise InputError(path, "file", f"cannot be read ({error})",
                             "it is probably truncated: delete it and run 01_cohort") from error

    mpp = float(record["mpp"])
    return Section(
        name=path.stem, study=str(record["study"]), patient=str(record["patient"]),
        specimen=str(record["specimen"]), source=str(record["source"]), load=load,
        mpp=None if mpp < 0 else mpp, image_ref=ref,
        image_size=tuple(int(v) for v in record["image_size"]) if ref else None,
        roots={"cohort": path.parent} | ({"data": Path(data)} if data else {}))


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
    if not (folder / "manifest.csv").is_file():
        raise InputError(folder / "manifest.csv", "file", "does not exist",
                         "make it by 01_cohort")
    text = dict.fromkeys(("section", "study", "patient", "specimen", "source"), str)
    manifest = read_csv(folder / "manifest.csv", MANIFEST_COLUMNS, dtype=text)
    if sections is not None:
        sections = list(sections)
        unknown = [name for name in sections if name not in set(manifest["section"])]
        if unknown:
            raise InputError(folder / "manifest.csv", "section", f"lacks {unknown}",
                             f"use some of {list(manifest['section'])}")
        manifest = manifest.set_index("section", drop=False).loc[sections]
    cohort = Cohort(read_section(folder / f"{name}.h5ad", data) for name in manifest["section"])
    # The table on disk spares reading every section's counts.
    cohort.manifest = manifest[list(MANIFEST_COLUMNS)].reset_index(drop=True)
    return cohort


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
    import anndata

    found = {}
    for section in sections:
        path = Path(truth) / f"{section.name}.h5ad"
        if truth and path.exists():
            found[section.name] = anndata.read_h5ad(path).obs["tissue_class"]
        elif "label" in section.adata.obs and section.adata.obs["label"].notna().any():
            found[section.name] = section.adata.obs["label"]
    return found


def truth_genes(truth: str | Path) -> pd.DataFrame:
    """What the synthetic truth says of each gene (``var``); empty where there is no truth."""
    import anndata

    path = next(iter(sorted(Path(truth).glob("*.h5ad"))), None)
    return pd.DataFrame() if path is None else anndata.read_h5ad(path).var
