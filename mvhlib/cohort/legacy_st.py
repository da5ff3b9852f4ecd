"""Legacy Spatial Transcriptomics: what every data set of that family shares.

A section is three files: counts (spots x genes, index ``XxY`` in array positions), a spot file
(array position and pixel of every spot, and which of them lie under tissue) and, sometimes, an
image. The scale is measured, not believed: neighbouring spots of an array are a known distance
apart, so their distance in pixels gives micrometres per pixel.

Sources: Ståhl et al., Science 353, 78 (2016), for the arrays; Andersson et al., Nature
Communications 12, 6012 (2021), and Bergenstråhle et al., BMC Genomics 21, 482 (2020), for the
file formats.
"""

import gzip
import logging
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.base import ImageRef, Section, check_counts
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Distance of neighbouring spots [µm] on the 1,007-spot arrays.
PITCH_UM = 200.0
#: Nearest spots [µm] on the 1,934-spot arrays: two 1,007-spot lattices, one set into the centres
#: of the other.
STAGGERED_PITCH_UM = PITCH_UM / 2**0.5
#: Diameter of a spot [µm].
SPOT_UM = 100.0

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
TABLE_SUFFIXES = (".tsv.gz", ".tsv", ".txt.gz", ".txt")
SPOT_COLUMNS = ("x", "y", "pixel_x", "pixel_y")


@dataclass(frozen=True)
class Lattice:
    """What the spots of one section say about the scale of their pixels.

    Attributes
    ----------
    pitch_px
        Distance of nearest spots [px of the spot file].
    pitch_um
        The same distance on the array [µm].
    anisotropy
        Distance along x over distance along y, each per array step; 1 on a square lattice.
    staggered
        True for arrays that use every other position of their grid.
    """

    pitch_px: float
    pitch_um: float
    anisotropy: float
    staggered: bool

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the spot file [µm/px]."""
        return self.pitch_um / self.pitch_px


@dataclass(frozen=True)
class ImageFacts:
    """What an image file does not say about itself.

    Attributes
    ----------
    full_width_px
        Width of the full-resolution image that the spot file's pixels belong to [px].
    exclude
        Boxes `(x0, y0, x1, y1)` [px of this file] that are no tissue.
    dark_background
        True where the surroundings of the tissue are black.
    """

    full_width_px: float | None = None
    exclude: tuple[tuple[int, int, int, int], ...] = ()
    dark_background: bool | None = None


def open_text(path: Path):
    """Open a text file, gzipped or not, judged by its first bytes and not by its name."""
    with open(path, "rb") as stream:
        magic = stream.read(2)
    if magic == b"\x1f\x8b":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def read_table(path: Path, **options) -> pd.DataFrame:
    """Read a tab-separated table.

    Raises
    ------
    InputError
        If the file is missing, truncated, empty, or no table.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "file", "does not exist", "check the path")
    try:
        with open_text(path) as stream:
            return pd.read_csv(stream, sep="\t", **options)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(path, "file", f"is a broken gz file ({error})",
                         "it is probably truncated: copy it again from its source") from error
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(path, "table", f"cannot be read ({error})",
                         "give a tab-separated table") from error


def read_counts(path: Path) -> "AnnData":
    """Read a count table: one row per spot (index ``XxY``), one column per gene.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 CSR `(T, G)`; the same matrix is X.

    Raises
    ------
    InputError
        If the file is missing or truncated, a cell is no number, a barcode or gene stands twice,
        or counts are negative or fractional.
    """
    from anndata import AnnData
    from scipy import sparse

    path = Path(path)
    # Header and body apart: pandas would rename a gene that stands twice and hide the fault.
    header = read_table(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    genes = [str(gene) for gene in header.iloc[0]]
    body = read_table(path, header=None, skiprows=1, index_col=0, dtype={0: str},
                      keep_default_na=False, na_values=[""])
    if len(genes) == body.shape[1] + 1:
        genes = genes[1:]  # R leaves the corner out, the ST pipeline writes it
    if len(genes) != body.shape[1]:
        raise InputError(path, "header", f"names {len(genes)} genes for {body.shape[1]} columns",
                         "the file is probably truncated: copy it again from its source")
    words = [gene for gene, kind in zip(genes, body.dtypes, strict=True) if kind.kind not in "iuf"]
    if words:
        raise InputError(path, "counts", f"hold text in column {words[0]!r}",
                         "give a table of numbers")
    counts = sparse.csr_matrix(body.to_numpy())
    with warnings.catch_warnings():  # names that repeat: check_counts refuses them
        warnings.simplefilter("ignore", UserWarning)
        adata = AnnData(obs=pd.DataFrame(index=body.index.astype(str).rename(None)),
                        var=pd.DataFrame(index=pd.Index(genes, dtype=str)))
    adata.layers["counts"] = counts
    check_counts(adata, path)
    adata.layers["counts"] = counts.astype(np.int32)
    adata.X = adata.layers["counts"].copy()
    return adata


def read_spots(path: Path) -> pd.DataFrame:
    """Read a spot file.

    Returns
    -------
    DataFrame
        Index ``XxY`` (rounded array position); columns array_x, array_y (int), pixel_x, pixel_y
        [px] and selected (bool, True throughout where the file does not say).

    Raises
    ------
    InputError
        If a column is missing or no number, or two spots share an array position.
    """
    path = Path(path)
    table = read_table(path)
    missing = [column for column in SPOT_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "give x, y, pixel_x and pixel_y")
    numbers = table[list(SPOT_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    if numbers.isna().to_numpy().any():
        row = int(np.flatnonzero(numbers.isna().any(axis=1))[0])
        raise InputError(path, "x, y, pixel_x, pixel_y", f"hold no number in row {row + 1}",
                         "remove or complete the row")
    spots = pd.DataFrame({
        "array_x": numbers["x"].round().astype(int), "array_y": numbers["y"].round().astype(int),
        "pixel_x": numbers["pixel_x"].astype(float), "pixel_y": numbers["pixel_y"].astype(float),
        "selected": (pd.to_numeric(table["selected"], errors="coerce").fillna(0) != 0
                     if "selected" in table.columns else True)})
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["array_x"], spots["array_y"],
                                                      strict=True)])
    if not spots.index.is_unique:
        twice = list(spots.index[spots.index.duplicated()][:3])
        raise InputError(path, "x, y", f"two spots share an array position, for example {twice}",
                         "keep one row per array position")
    return spots


def measure_lattice(spots: pd.DataFrame, where, pitch_um: float | None = None) -> Lattice:
    """Measure how many pixels lie between neighbouring spots.

    An affine map from array positions to pixels is fitted to all spots by least squares, so that
    the jitter of single spots averages out and a turned array does no harm.

    Parameters
    ----------
    spots
        As from `read_spots`.
    pitch_um
        Distance of nearest spots [µm]; None takes `PITCH_UM`, or `STAGGERED_PITCH_UM` where the
        spots use every other array position.

    Raises
    ------
    InputError
        If all spots stand in one row or column.
    """
    position = spots[["array_x", "array_y"]].to_numpy(float)
    pixel = spots[["pixel_x", "pixel_y"]].to_numpy(float)
    design = np.column_stack([position - position.mean(0), np.ones(len(spots))])
    if np.linalg.matrix_rank(design) < 3:
        raise InputError(where, "x, y", "spots in one line do not give the scale",
                         "pass mpp= in micrometres per pixel")
    step_x, step_y = np.linalg.lstsq(design, pixel, rcond=None)[0][:2]  # px per array step
    across, along = np.linalg.norm(step_x), np.linalg.norm(step_y)
    parity = (spots["array_x"] + spots["array_y"]) % 2
    staggered = len(spots) > 4 and parity.nunique() == 1
    if staggered:
        pitch_px = (np.linalg.norm(step_x + step_y) + np.linalg.norm(step_x - step_y)) / 2
    else:
        pitch_px = (across + along) / 2
    if not pitch_px > 0 or min(across, along) == 0:
        raise InputError(where, "pixel_x, pixel_y", "do not change with the array position",
                         "give pixel positions of the image")
    default = STAGGERED_PITCH_UM if staggered else PITCH_UM
    return Lattice(float(pitch_px), float(pitch_um or default), float(across / along),
                   bool(staggered))


def estimate_scale(path: Path, facts: ImageFacts, spots: pd.DataFrame, lattice: Lattice) -> float:
    """Find how much an image was reduced, by laying the spots' footprint over its tissue.

    The reduction is the one parameter; the overlap (intersection over union) of tissue and
    footprint has one clear peak over it. Good to about one per cent: state the full width where
    it is known.

    Returns
    -------
    float
        Pixels of this image per pixel of the spot file.

    Raises
    ------
    InputError
        If no reduction makes the spots cover the tissue.
    """
    with open_slide(path, exclude=facts.exclude,
                    dark_background=bool(facts.dark_background)) as slide:
        thumbnail = slide.thumbnail(500).astype(int)
        shrink = thumbnail.shape[1] / slide.width
    height, width = thumbnail.shape[:2]
    tissue = thumbnail.max(axis=2) - thumbnail.min(axis=2) > 15  # stained, neither white nor grey
    if facts.dark_background:
        # White inside the tissue counts as well: its outline was cut out by hand.
        tissue |= thumbnail.max(axis=2) < 250
    pixel = spots[["pixel_x", "pixel_y"]].to_numpy()
    rows, columns = np.mgrid[:height, :width]

    def overlap(scale: float) -> float:
        half = lattice.pitch_px * scale / 2
        footprint = np.zeros_like(tissue)
        for x, y in pixel * scale:
            footprint[max(0, round(y - half)):max(0, round(y + half)),
                      max(0, round(x - half)):max(0, round(x + half))] = True
        return (footprint & tissue).sum() / max(1, (footprint | tissue).sum())

    reach = pixel.max(axis=0) + lattice.pitch_px / 2
    most = min(width / reach[0], height / reach[1]) * 1.02
    scales = most * 0.985 ** np.arange(100)
    best = max(scales, key=overlap)
    scales = best * np.linspace(0.985, 1.015, 31)
    best = max(scales, key=overlap)
    if overlap(best) < 0.6:
        raise InputError(path, "full_width_px",
                         f"the image is reduced and its scale cannot be found (best overlap of "
                         f"spots and tissue {overlap(best):.2f})",
                         "pass full_width_px={section: width of the full image in px}")
    return float(best / shrink)


def find_tables(root: Path, folders: Iterable[str], pattern: str) -> dict[str, Path]:
    """Files of `folders` below `root` whose whole name matches `pattern`, by section.

    Parameters
    ----------
    pattern
        Regular expression with a group ``section``, without the table suffix.

    Raises
    ------
    InputError
        If two files claim one section.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((root / folder).glob("*")):
            suffix = next((end for end in TABLE_SUFFIXES if path.name.endswith(end)), None)
            match = suffix and re.fullmatch(pattern, path.name.removesuffix(suffix))
            if not match or path.name.startswith("."):
                continue
            name = match["section"]
            if name in found:
                raise InputError(path, "section", f"{name} has a second file, {found[name].name}",
                                 "keep one of them")
            found[name] = path
    return found


def find_images(root: Path, names: Iterable[str], depth: int = 3) -> dict[str, Path]:
    """The image of each section, wherever it lies below `root`.

    A file belongs to a section if its folder has the section's name, or its own name begins with
    it. A folder of its own wins: there the full-resolution image lies.

    Raises
    ------
    InputError
        If a section has two images of equal standing.
    """
    files = [path for level in range(depth + 1) for path in sorted(root.glob("*/" * level + "*"))
             if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    found = {}
    for name in names:
        in_folder = [path for path in files if path.parent.name == name and path.parent != root]
        by_name = [path for path in files
                   if re.match(rf"{re.escape(name)}(?![0-9A-Za-z])", path.name)]
        candidates = in_folder or by_name
        if len(candidates) > 1:
            raise InputError(candidates[1], "image", f"section {name} has two images, the other is "
                             f"{candidates[0]}", "keep one of them")
        if candidates:
            found[name] = candidates[0]
    return found


def make_section(name: str, *, root: Path, counts: Path, spot_file: Path | None,
                 image: Path | None, study: str, patient: str, specimen: str, source: str,
                 labels: Path | None = None, facts: ImageFacts | None = None,
                 pitch_um: float | None = None, mpp: float | None = None) -> Section:
    """Make a section of its files; counts are read at first use.

    Parameters
    ----------
    root
        Data directory; the image is recorded relative to it.
    spot_file
        None gives an expression-only section whose coordinates are array positions.
    labels
        Table with x, y and label per spot, or None.
    facts
        What is known of the image file.
    pitch_um
        Distance of nearest spots [µm]; see `measure_lattice`.
    mpp
        Micrometres per pixel of the spot file [µm/px]; None measures it.

    Raises
    ------
    InputError
        If the spot file is broken or its scale cannot be measured.
    """
    spots = lattice = ref = size = image_mpp = None
    scale = 1.0
    if spot_file is not None:
        spots = read_spots(spot_file)
        if not spots["selected"].any():
            raise InputError(spot_file, "selected", "no spot lies on tissue",
                             "select the spots under tissue (1), or leave the column out")
    elif image is not None:
        log.warning("%s: has an image and no spot file, so it is expression-only", name)
        image = None
    if image is not None:
        if mpp is None:
            lattice = measure_lattice(spots, spot_file, pitch_um)
            mpp = lattice.mpp
        else:
            pitch = float(pitch_um or PITCH_UM)
            lattice = Lattice(pitch / mpp, pitch, 1.0, False)
        with open_slide(image) as slide:
            size = (slide.width, slide.height)
        facts = facts or ImageFacts()
        reduced = facts.full_width_px is not None or _beyond(spots, size) > 0.1
        if facts.dark_background is None and reduced:
            # Only reduced images come cut out of black, and looking costs a whole decoding.
            facts = replace(facts, dark_background=_is_dark(image))
        if reduced:
            scale = _scale(name, image, size, facts, spots, lattice)
        image_mpp = mpp / scale
        ref = ImageRef(str(image.relative_to(root)), "data", facts.exclude,
                       bool(facts.dark_background))
        if abs(lattice.anisotropy - 1) > 0.05 and not lattice.staggered:
            log.warning("%s: spots are %.3g times as far apart along x as along y; the image may "
                        "be stretched", name, lattice.anisotropy)

    def load() -> "AnnData":
        adata = _join(read_counts(counts), spots, counts, spot_file, scale)
        adata.uns["lattice"] = {
            "kind": "square", "n_neighs": 4, "spot_um": SPOT_UM,
            "pitch_um": lattice.pitch_um if lattice else PITCH_UM,
            "pitch_px": lattice.pitch_px * scale if lattice else -1.0,
            "anisotropy": lattice.anisotropy if lattice else 1.0,
            "coordinates": "array" if spots is None else "pixel"}
        if labels is not None:
            adata.obs["label"] = _read_labels(labels).reindex(adata.obs_names).to_numpy()
            adata.obs["label"] = adata.obs["label"].astype("category")
        return adata

    return Section(name=name, study=study, patient=patient, specimen=specimen, source=source,
                   load=load, mpp=image_mpp, image_ref=ref, image_size=size, roots={"data": root})


def check_names(found: Mapping[str, Path], wanted: Iterable[str] | None, root: Path) -> list[str]:
    """Names of the sections to read, in their natural order; all that were found by default."""
    if wanted is None:
        return sorted(found, key=_natural)
    wanted = list(wanted)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise InputError(root, "sections", f"{unknown} are not there; there are "
                         f"{sorted(found, key=_natural)}", "name sections that exist")
    return wanted


def _natural(name: str) -> list:
    """Sort key that puts A2 before A10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _beyond(spots: pd.DataFrame, size: tuple[int, int]) -> float:
    """Share of the selected spots whose pixel lies beyond an image of `size` (width, height)."""
    pixel = spots.loc[spots["selected"], ["pixel_x", "pixel_y"]].to_numpy()
    return float((pixel >= size).any(axis=1).mean())


def _is_dark(path: Path) -> bool:
    """True where most of an image's outermost pixels are black."""
    with open_slide(path) as slide:
        brightest = slide.thumbnail(200).max(axis=2)
    border = np.concatenate([brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1]])
    return bool(np.median(border) < 40)


def _scale(name: str, image: Path, size: tuple[int, int], facts: ImageFacts, spots: pd.DataFrame,
           lattice: Lattice) -> float:
    """Pixels of a reduced image per pixel of the spot file."""
    if facts.full_width_px is not None:
        return size[0] / facts.full_width_px
    scale = estimate_scale(image, facts, spots[spots["selected"]], lattice)
    log.warning("%s: %s is a reduced image; laid over its tissue, the spots give a full width of "
                "%.0f px (about 1 %% certain; full_width_px= states it)", name, image.name,
                size[0] / scale)
    return scale


def _join(adata: "AnnData", spots: pd.DataFrame | None, counts: Path, spot_file: Path | None,
          scale: float) -> "AnnData":
    """Keep the spots that have counts, a position and lie under tissue; count the others."""
    if spots is None:
        try:
            position = np.array([[float(v) for v in name.split("x")] for name in adata.obs_names])
            position = position.reshape(adata.n_obs, 2)
        except ValueError as error:
            raise InputError(counts, "index", "holds no array positions like 10x13",
                             "give a spot file, or an index XxY") from error
        adata.obs["array_x"], adata.obs["array_y"] = position.astype(int).T
        adata.obsm["spatial"] = position
        return adata
    joined = adata.obs_names.isin(spots.index)
    if not joined.any():
        raise InputError(counts, "index", f"none of {adata.n_obs} spots is in {spot_file} "
                         f"({adata.obs_names[0]!r} against {spots.index[0]!r})",
                         "give the counts and the spots of the same section")
    selected = spots["selected"].reindex(adata.obs_names, fill_value=False).to_numpy(bool)
    if not selected.any():
        raise InputError(spot_file, "selected", "no spot with counts lies on tissue",
                         "select the spots under tissue (1), or leave the column out")
    record = {"n_counts": adata.n_obs, "n_spots": len(spots), "n_kept": int(selected.sum()),
              "n_without_position": int((~joined).sum()),
              "n_off_tissue": int((joined & ~selected).sum()),
              "n_without_counts": int((~spots.index[spots["selected"]].isin(
                  adata.obs_names)).sum()),
              "scale": scale}
    if record["n_without_position"]:
        log.warning("%s: %d of %d spots have no position and are dropped", counts.name,
                    record["n_without_position"], adata.n_obs)
    adata = adata[selected].copy()
    place = spots.loc[adata.obs_names]
    adata.obs["array_x"] = place["array_x"].to_numpy()
    adata.obs["array_y"] = place["array_y"].to_numpy()
    adata.obsm["spatial"] = place[["pixel_x", "pixel_y"]].to_numpy() * scale
    adata.uns["join"] = record
    return adata


def _read_labels(path: Path) -> pd.Series:
    """Class per spot, index ``XxY``; rows without a position are left out."""
    table = read_table(path)
    missing = [column for column in ("x", "y", "label") if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "give x, y and label")
    table = table.dropna(subset=["x", "y"])
    labels = pd.Series(table["label"].astype(str).to_numpy(),
                       index=[f"{round(x)}x{round(y)}"
                              for x, y in zip(table["x"], table["y"], strict=True)])
    return labels[~labels.index.duplicated()]
