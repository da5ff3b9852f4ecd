"""What a data set is: sections that know their study, patient and specimen, and a cohort of them.

A section on disk is one h5ad file: ``layers["counts"]`` raw counts (spots x genes), ``obs`` with
study, patient, section, ``obsm["spatial"]`` spot centres (x, y) in level-0 pixels and, where
there is an image, ``uns["spatial"][section]`` with a thumbnail, as squidpy draws it.
``uns["mvh"]`` says where the full image lies; see `ImageRef`.

What the source ``run`` accepts of such a folder:

==================  ================================================================================
what                how it is read
==================  ================================================================================
``manifest.csv``    one row per section, strictly (`mvhlib.artifacts.read_csv`); study, patient,
                    specimen, source, scale, image and sizes must be those of the section's h5ad
names               text; no slash, no blank, unique without regard to case
``uns["mvh"]``      every key with the type that `write_section` gave it; scale above 0, or -1
                    where there is none
image               a relative path below DATA or the cohort folder; links on the way are followed
counts              whole numbers from 0 to 2,147,483,647, not all 0; sparse ones are checked before
                    anything is computed
places              ``(n, 2)`` finite numbers; at most one spot in twenty outside the image
==================  ================================================================================

All else is refused in one line.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import (
    InputError,
    atomic,
    check_file,
    check_sayable,
    h5_array,
    h5_reader,
    h5_sizes,
    read_csv,
    reading,
    safe_name,
    sha256_file,
)
from mvhlib.tiles.slides import Slide, open_slide

if TYPE_CHECKING:
    from anndata import AnnData

MANIFEST_COLUMNS = ("section", "study", "patient", "specimen", "n_spots", "n_genes", "has_image",
                    "mpp", "image_width_px", "image_height_px", "source")
#: Least and most of what can be the scale of a section's image [um/px]: from a cell's organelles
#: to a slide of a few dozen pixels.
MPP_RANGE = (0.01, 1000.0)
#: Largest share of spots that may lie outside the image: the rim of a scan cuts single spots.
MOST_OUTSIDE = 0.05
#: Bytes that a study's or patient's name may have: titles of HEST have 227, and a patient of HEST
#: is called by both.
_LONGEST_LABEL = 600
#: Places beyond this are no pixels of any image [px].
_FARTHEST_PX = 1e8


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

    def __post_init__(self):
        self.name = safe_name(self.name, "cohort", "section")
        for label in ("study", "patient", "specimen"):
            setattr(self, label, safe_name(getattr(self, label), f"section {self.name}", label,
                                           longest=_LONGEST_LABEL))
        if self.mpp is not None:
            self.mpp = check_mpp(self.mpp, f"section {self.name}")
        if self.image_ref is not None and self.image_size is not None:
            width, height = self.image_size
            if not (width >= 1 and height >= 1):
                raise InputError(f"section {self.name}", "image_size", f"is {width} x {height} px",
                                 "give the width and height of the image")

    @cached_property
    def adata(self) -> "AnnData":
        """Counts and coordinates, read at first use.

        Raises
        ------
        InputError
            If they are no raw counts, no finite places, or places of another image.
        """
        adata = self.load()
        check_counts(adata, self.name)
        check_places(adata, self.name)
        if self.image_ref is not None and self.image_size is not None:
            check_inside(adata.obsm["spatial"], self.image_size, self.name)
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
        return [sha256_file(self._image_path()), self.mpp, self.image_ref.exclude,
                self.image_ref.dark_background]

    def _image_path(self) -> Path:
        if self.image_ref is None:
            raise InputError(self.name, "image", "this section is expression-only",
                             "choose a section with has_image in the manifest")
        root = self.roots.get(self.image_ref.root)
        if root is None:
            raise InputError(self.name, self.image_ref.root, "the image's folder is not known",
                             "pass the data directory that the cohort was read from")
        return check_file(root / self.image_ref.path, "image")

    @property
    def slide(self) -> Slide:
        """The section's pixels, to be read region by region.

        Raises
        ------
        InputError
            If the section has no image, or the file is not where the record says.
        """
        return open_slide(self._image_path(), mpp=self.mpp,
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
        width, height = self.image_size or ("?", "?")
        image = "no image" if self.image_ref is None else f"image {width} x {height} px at {scale}"
        return (f"Section {self.name}: {size}, {image}; study {self.study}, "
                f"patient {self.patient}, specimen {self.specimen} ({self.source})")


class Cohort:
    """Sections by name, with the table of who they belong to.

    Parameters
    ----------
    sections
        Their names must be unique over the cohort, also where upper and lower case, or two
        encodings of one accent, do not count: a disk that knows no case would keep one of them.
    """

    def __init__(self, sections: Iterable[Section]):
        sections = list(sections)
        number = Counter(section.name for section in sections)
        twice = sorted(name for name, n in number.items() if n > 1)
        if twice:
            raise InputError("cohort", "section", f"the same name stands twice: {twice}",
                             "give every section its own id")
        spelt: dict[str, str] = {}
        for name in number:
            other = spelt.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if other != name:
                raise InputError("cohort", "section", f"{other!r} and {name!r} would be one file "
                                 "on a disk that does not tell them apart",
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


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, hidden files left out; nothing where there is no folder.

    Raises
    ------
    InputError
        If it is a file, a link that leads nowhere, or may not be read.
    """
    if not folder.is_dir():
        if folder.is_symlink() or folder.exists():
            raise InputError(folder, "folder", "is a link that leads nowhere" if folder.is_symlink()
                             else "is a file", "mend the link, or put the folder itself there")
        return []
    with reading(folder, "folder", fix="change its permissions"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def present(path: Path, field: str = "file") -> bool:
    """Whether there is a file; what is there and cannot be one is refused, not passed over.

    Raises
    ------
    InputError
        If it is a folder, or a link that leads nowhere or in a circle.
    """
    if not (path.exists() or path.is_symlink()):
        return False
    check_file(path, field)
    return True


def section_list(sections: Iterable[str], where) -> list[str]:
    """Names of sections that a caller asks for.

    Raises
    ------
    InputError
        If it is one text and no list, or a name is no text (YAML reads 007 as a number).
    """
    if isinstance(sections, str) or not isinstance(sections, Iterable):
        raise InputError(where, "sections", f"is {sections!r}, and no list",
                         f"write a list, as in [{sections}]")
    return [safe_name(name, where, "sections") for name in sections]


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
    """Refuse a scale, or a distance, that is not the one that was measured.

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
    """Refuse an image that is not the one that the spots' places speak of.

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
        reason = "the image was cropped, or the places are of another one"
    else:
        reason = "the image was cropped, turned or reduced"
    raise InputError(where, field, f"{n} of {len(centers)} spots ({n / len(centers):.0%}) lie "
                     f"outside its {size[0]:.0f} x {size[1]:.0f} px (they reach {reach[0]:.0f}, "
                     f"{reach[1]:.0f}): {reason}", "give the image that the places were made for")


def check_sparse(matrix: Any, where, field: str = "counts") -> None:
    """Refuse a compressed sparse matrix whose pointers lead out of it.

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
                         "no whole numbers", fix)
    rows, columns = matrix.shape
    major, minor = (columns, rows) if getattr(matrix, "format", "csr") == "csc" else (rows, columns)
    if indptr.shape != (major + 1,) or indptr[0] != 0 or indptr[-1] != n_values or \
            (indptr[1:] < indptr[:-1]).any():
        raise InputError(where, field, f"indptr does not rise from 0 to the {n_values} values in "
                         f"{major} steps", fix)
    if indices.shape != (n_values,) or (
            n_values and not (0 <= int(indices.min()) and int(indices.max()) < minor)):
        raise InputError(where, field, f"indices point outside the {minor} genes or spots", fix)


def check_counts(adata: "AnnData", where) -> None:
    """Refuse what is no table of raw counts.

    Raises
    ------
    InputError
        On repeated or blank barcodes or genes, negative, fractional, missing or impossibly large
        counts, counts that are all 0, or no spot at all.
    """
    if adata.n_obs == 0:
        raise InputError(where, "spots", "no spot lies on tissue", "check selection and join")
    if adata.n_vars == 0:
        raise InputError(where, "genes", "there is none", "give a table with one gene or more")
    for field_name, index in (("barcode", adata.obs_names), ("gene", adata.var_names)):
        blank = np.array([not str(name).strip() for name in index])
        if blank.any():
            raise InputError(where, field_name, f"is blank in {int(blank.sum())} of {len(index)} "
                             f"places, the first is number {int(blank.argmax()) + 1}",
                             "give every one its name")
        check_sayable(index, where, field_name)
        if not index.is_unique:
            twice = list(index[index.duplicated()][:3])
            raise InputError(where, field_name, f"stands more than once, for example {twice}",
                             "make the names unique or sum the rows")
    counts = adata.layers.get("counts")
    if counts is None:
        raise InputError(where, 'layers["counts"]', "is missing", "store the raw counts there")
    if hasattr(counts, "indptr"):
        check_sparse(counts, where)
    values = np.asarray(counts.data if hasattr(counts, "tocsr") else counts)
    if values.dtype.kind not in "iufb":
        raise InputError(where, "counts", f"are {values.dtype}, no numbers", "store the raw counts")
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
        raise InputError(where, "counts", f"reach {most:g}, which no spot has",
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
    lost = ~(np.abs(places.astype(np.float64)) <= _FARTHEST_PX).all(axis=1)
    if lost.any():
        first = int(lost.argmax())
        raise InputError(where, name, f"is {places[first].tolist()} for spot "
                         f"{adata.obs_names[first]!r} (and {int(lost.sum()) - 1} more)",
                         "give every spot a finite place, or leave it out")
    if len(places) > 2 and (places == places[0]).all():
        raise InputError(where, name, f"is {places[0].tolist()} for all of {len(places)} spots",
                         "give every spot its own place")


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

    fix = "make the file by 01_cohort"
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
            raise InputError(path, 'uns["mvh"]["exclude"]', "holds no boxes x0, y0, x1, y1", fix)
        if (size < 1).any():
            raise InputError(path, 'uns["mvh"]["image_size"]', f"is {size.tolist()}", fix)
        ref = ImageRef(text("image_path"), text("image_root"),
                       tuple(tuple(int(v) for v in box) for box in exclude),
                       bool(entry("dark_background", "numeric-scalar")))
        _check_ref(ref, path)
        record["image"] = (ref, tuple(int(v) for v in size))
    return record


def _check_ref(ref: ImageRef, where) -> None:
    """Refuse an image that is not named by its way down from DATA or the cohort folder."""
    if ref.root not in ("data", "cohort"):
        raise InputError(where, "image_root", f"is {ref.root!r}", "use data or cohort")
    way = PurePosixPath(ref.path)
    if way.is_absolute() or ".." in way.parts or not way.parts or "\0" in ref.path:
        raise InputError(where, "image_path", f"is {ref.path!r}, which does not lie below "
                         f"{'DATA' if ref.root == 'data' else 'the cohort folder'}",
                         "put the image, or a link to it, into the data directory")


def _n_names(path: Path, stream: Any, axis: str) -> int:
    """How many rows the table ``obs`` or ``var`` of an h5ad has."""
    import h5py

    table = stream.get(axis)
    column = table.attrs.get("_index") if isinstance(table, h5py.Group) else None
    if not isinstance(column, str):
        raise InputError(path, axis, "is no table with an index", "make the file by 01_cohort")
    return len(h5_array(table, column, kind="text", ndim=1, read=False))


def _check_owner(path: Path, adata: "AnnData", record: dict[str, Any]) -> None:
    """Refuse a file whose spots are said to be of another section, patient or study."""
    for column, said in (("section", path.stem), ("study", record["study"]),
                         ("patient", record["patient"]), ("specimen", record["specimen"])):
        if column not in adata.obs:
            raise InputError(path, f"obs[{column}]", "is missing", "make the file by 01_cohort")
        found = adata.obs[column].astype(object)
        other = found[found != said]
        if len(other):
            raise InputError(path, f"obs[{column}]", f"is {other.iloc[0]!r} for {len(other)} of "
                             f"{len(found)} spots, and {said!r} by the file",
                             "make the file by 01_cohort, under its own name")


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
        raise InputError(file, "file", "does not exist", "make it by 01_cohort")
    manifest = _read_manifest(file)
    if sections is not None:
        sections = section_list(sections, file)
        unknown = [name for name in sections if name not in set(manifest["section"])]
        if unknown:
            raise InputError(file, "section", f"lacks {unknown}",
                             f"use some of {list(manifest['section'])}")
        manifest = manifest.set_index("section", drop=False).loc[sections]
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
        refuse(column, manifest[column].isna(), "where a name must stand")
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
    """Refuse a row of the manifest that says other than the section's own record."""
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
                             f"says {said!r}", "run 01_cohort again, and change neither by hand")


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
    found = {}
    for section in sections:
        path = Path(truth) / f"{section.name}.h5ad"
        if truth and path.exists():
            found[section.name] = _read_truth(path, "obs", "tissue_class")["tissue_class"]
        elif "label" in section.adata.obs and section.adata.obs["label"].notna().any():
            found[section.name] = section.adata.obs["label"]
    return found


def truth_genes(truth: str | Path) -> pd.DataFrame:
    """What the synthetic truth says of each gene (``var``); empty where there is no truth."""
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
