"""A section, its image, and a cohort of sections."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_file, safe_name, sha256_file
from mvhlib.cohort import dated_genes
from mvhlib.cohort.base.checks import check_counts, check_inside, check_mpp, check_places
from mvhlib.tiles.slides import Slide, open_slide

if TYPE_CHECKING:
    from anndata import AnnData

MANIFEST_COLUMNS = ("section", "study", "patient", "specimen", "n_spots", "n_genes", "has_image",
                    "mpp", "image_width_px", "image_height_px", "source")

#: Bytes that a study's or patient's name may have: titles of HEST have 227, and a patient of HEST
#: is called by both.
_LONGEST_LABEL = 600


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
    file
        Where the counts come from, for errors; None names the section there.
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
    file: Path | None = field(default=None, repr=False)

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
        """Counts and coordinates, read at first use; without genes that are called by dates.

        Raises
        ------
        InputError
            If they are no raw counts, no finite places, or places of another image.
        """
        adata = self.load()
        lost = dated_genes.dated(adata.var_names)
        if lost.any() and not lost.all():
            dated_genes.say(adata.var_names, lost, self.name)
            adata = adata[:, ~lost].copy()
        where = self.name if self.file is None else self.file
        check_counts(adata, where)
        check_places(adata, where)
        if self.image_ref is not None and self.image_size is not None:
            check_inside(adata.obsm["spatial"], self.image_size, where)
        return adata

    @property
    def has_image(self) -> bool:
        return self.image_ref is not None

    @property
    def has_slide(self) -> bool:
        """True if pixels can be read anywhere, not only in ready-made patches."""
        return self.image_ref is not None and not self.image_ref.path.endswith(".h5")

    @property
    def centers(self) -> np.ndarray:
        """Spot centres (x, y), `(T, 2)` float [level-0 px]."""
        return np.asarray(self.adata.obsm["spatial"], dtype=np.float64)

    def image_key(self) -> list:
        """Identity of the pixels, for cache keys of everything made from them.

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
