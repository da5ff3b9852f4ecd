"""Quality control: one row of measures per section, before anything is fitted.

`alignment` also tests whether spots lie where their expression was measured: it compares how much
of the expression the colour under the spots explains with how much the colour one pitch away does.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mvhlib import lattice
from mvhlib.cohort.base import Section
from mvhlib.cohort.pseudospots import is_control
from mvhlib.cohort.thumbnail import attach_thumbnail

log = logging.getLogger(__name__)

COLUMNS = ("section", "study", "patient", "n_spots", "n_genes", "n_genes_found",
           "n_empty_spots", "counts_q05", "counts_q25", "counts_median", "counts_q75",
           "counts_q95", "genes_per_spot_q05", "genes_per_spot_median", "genes_per_spot_q95",
           "mito_fraction_median", "n_control_features", "n_dropped", "mpp", "spot_pitch_um",
           "n_outside_image", "tissue_fraction_median", "fraction_on_tissue",
           "alignment_r2", "alignment_r2_shifted_best", "alignment_rank", "alignment")

#: Number of genes (the most variable) and of their first components that colour must explain.
ALIGNMENT_GENES, ALIGNMENT_COMPONENTS = 60, 5
#: Fewest spots for the test.
ALIGNMENT_SPOTS = 40
#: R2 below which colour is uninformative, and the margin by which another place must be better.
ALIGNMENT_FLOOR, ALIGNMENT_MARGIN = 0.02, 0.03
#: Difference of a pixel's brightest and darkest channel that 19 of 20 pixels of a grey image stay
#: below, brightness of the border below which nobody's glass is, and difference of channels above
#: which a pixel has a colour [0-255].
GREY_SPREAD, DARK_RIM, COLOURED = 8, 50, 30
#: Pixels per pitch that the thumbnail is reduced to: enough for a spot's mean colour.
_PITCH_PX = 8


def table(sections: Iterable[Section], *, min_tissue: float = 0.5,
          preset: str = "default") -> pd.DataFrame:
    """Quality of each section.

    Parameters
    ----------
    sections
        A cohort or sections.
    min_tissue
        A spot lies on tissue where at least this share of it is tissue [0-1].
    preset
        Settings of the tissue mask; see `mvhlib.tiles.cut`.

    Returns
    -------
    DataFrame
        One row per section, columns `COLUMNS`. Numbers that a section cannot have are NaN: of the
        image where it has none, mitochondrial where genes have no symbols. The last four are of
        `alignment`; a section whose spots seem to lie elsewhere is also named in the log.

    Raises
    ------
    InputError
        If counts or an image cannot be read.
    """
    return pd.DataFrame([_row(section, min_tissue, preset) for section in sections],
                        columns=list(COLUMNS))


def per_spot(section: Section, *, preset: str = "default") -> pd.DataFrame:
    """Per spot: counts, genes found, mitochondrial share, tissue share, and whether it is outside.

    Returns
    -------
    DataFrame
        Index: barcodes; columns counts, genes, mito_fraction, tissue_fraction (NaN without an
        image), outside_image (False without one).
    """
    adata = section.adata
    counts = adata.layers["counts"]
    total = np.asarray(counts.sum(axis=1)).ravel().astype(float)
    mito = adata.var_names.str.match("^(MT-|mt-)")
    if mito.any():
        part = np.asarray(counts[:, np.flatnonzero(mito)].sum(axis=1)).ravel()
        mito_fraction = np.divide(part, total, out=np.full(len(total), np.nan), where=total > 0)
    else:
        mito_fraction = np.full(len(total), np.nan)
    frame = pd.DataFrame({"counts": total, "genes": np.asarray((counts > 0).sum(axis=1)).ravel(),
                          "mito_fraction": mito_fraction, "tissue_fraction": np.nan,
                          "outside_image": False}, index=adata.obs_names)
    if not section.has_image:
        return frame
    x, y = np.asarray(adata.obsm["spatial"], float).T
    width, height = section.image_size
    frame["outside_image"] = (x < 0) | (y < 0) | (x >= width) | (y >= height)
    for x0, y0, x1, y1 in section.image_ref.exclude:
        frame["outside_image"] |= (x >= x0) & (y >= y0) & (x < x1) & (y < y1)
    frame["tissue_fraction"] = _tissue(section, x, y, preset)
    return frame


def _tissue(section: Section, x: np.ndarray, y: np.ndarray, preset: str) -> np.ndarray:
    """Share of each spot's square that is tissue."""
    from mvhlib.tiles.cut import tissue_mask
    from mvhlib.tiles.slides import Slide

    # The thumbnail is enough for a spot of 100 um, and the section needs one anyway: its
    # full image is decoded once, not twice.
    attach_thumbnail(section)
    small = section.adata.uns["spatial"][section.name]
    scale = float(small["scalefactors"]["tissue_hires_scalef"])
    side = float(small["scalefactors"]["spot_diameter_fullres"]) * scale
    with Slide.from_array(small["images"]["hires"], name=section.name,
                          mpp=section.mpp / scale if section.mpp else None) as slide:
        mask = tissue_mask(slide, preset)
    return mask.fraction(x * scale - side / 2, y * scale - side / 2, side, side)


@dataclass(frozen=True)
class Alignment:
    """How well the colour under the spots explains their expression, here and elsewhere.

    Attributes
    ----------
    r2
        Share of variance explained at the places stated, in spots of other blocks of the section.
    r2_shifted_best
        The best of the eight places that are one pitch away.
    rank
        How many of those eight are better: 0 if the stated place is the best.
    words
        The same in words: ``best here``, what is better, or why it cannot be told.
    """

    r2: float
    r2_shifted_best: float
    rank: float
    words: str

    @property
    def is_doubtful(self) -> bool:
        return self.words.startswith("better")


def alignment(section: Section) -> Alignment:
    """Test on the thumbnail, within seconds, whether the spots lie where they were measured.

    Mean colour and contrast (optical density) of each spot's square explain the first components
    of the most variable genes by ridge, fitted without the block of the section that is
    explained, of nine. The same is done with all spots shifted by one pitch, in eight directions,
    and with the axes of the image exchanged or mirrored. Where the spots are placed right, a
    shift makes it worse: in eleven real sections by 0.004 to 0.21 of R2, in one (of 100 genes) not.

    Returns
    -------
    Alignment
        NaN without an image, with fewer than `ALIGNMENT_SPOTS` spots, or without variation.

    Notes
    -----
    A weak test: tissue that is alike over several pitches, or counts without structure, tells
    nothing (``colour tells nothing``), and a shift of less than half a pitch is not seen.
    """
    if not section.has_image:
        return Alignment(np.nan, np.nan, np.nan, "no image")
    adata = section.adata
    if adata.n_obs < ALIGNMENT_SPOTS:
        return Alignment(np.nan, np.nan, np.nan, f"fewer than {ALIGNMENT_SPOTS} spots")
    target = _components(adata.layers["counts"])
    attach_thumbnail(section)
    small = section.adata.uns["spatial"][section.name]
    xy = section.centers * float(small["scalefactors"]["tissue_hires_scalef"])
    pitch = _pitch(xy)
    if target is None or pitch is None:
        return Alignment(np.nan, np.nan, np.nan, "counts or places do not vary")
    colours = _Colours(small["images"]["hires"], pitch)
    blocks = _blocks(xy)

    def explained(places: np.ndarray) -> float:
        return _explained(colours.at(places), target, blocks)

    shifts = [(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy]

    def around(places: np.ndarray) -> list[float]:
        return [explained(places + pitch * np.array(shift)) for shift in shifts]

    here, shifted = explained(xy), around(xy)
    best, rank = max(shifted), sum(value > here for value in shifted)
    words = "best here"
    if best - here > ALIGNMENT_MARGIN and best > ALIGNMENT_FLOOR:
        dx, dy = shifts[shifted.index(best)]
        sides = [side for side in (("left", "", "right")[dx + 1], ("up", "", "down")[dy + 1])
                 if side]
        words = f"better one pitch {' and '.join(sides)} (R2 {best:.3f}, here {here:.3f})"
    elif here < ALIGNMENT_FLOOR:
        words = f"colour tells nothing (R2 {here:.3f})"
    elif rank:
        words = f"as good one pitch away (R2 {best:.3f}, here {here:.3f})"
    turned = {name: explained(places) for name, places in _turned(xy, colours.size).items()}
    name = max(turned, key=turned.get)
    if turned[name] - here > ALIGNMENT_MARGIN and turned[name] > best:
        # Smooth tissue fits somewhere else by chance; where the spots belong it is a peak.
        peak = turned[name] - max(around(_turned(xy, colours.size)[name]))
        if peak > max(0.0, here - best) and turned[name] > 2 * ALIGNMENT_FLOOR:
            words = f"better with {name} (R2 {turned[name]:.3f}, here {here:.3f})"
    return Alignment(round(here, 4), round(best, 4), rank, words)


def strange_colours(section: Section) -> str:
    """Say why a section's image does not look like H&E in transmitted light; empty if it does.

    Grey, dark around the tissue, or green: a scan of the fiducials, a negative, a fluorescence
    image. Such an image is read as it is, but its colours are no stains.
    """
    if not section.has_image:
        return ""
    attach_thumbnail(section)
    pixels = np.asarray(section.adata.uns["spatial"][section.name]["images"]["hires"])
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * pixels).astype(np.uint8)
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    if np.percentile(spread, 95) < GREY_SPREAD:
        return "grey: colours tell nothing of its stains"
    rim = max(1, min(pixels.shape[:2]) // 50)
    brightest = pixels.max(axis=2)
    border = np.concatenate([brightest[:rim].ravel(), brightest[-rim:].ravel(),
                             brightest[:, :rim].ravel(), brightest[:, -rim:].ravel()])
    if np.median(border) < DARK_RIM:
        return "dark along its border, where glass is bright: is it a negative, or fluorescence?"
    coloured = pixels[spread > COLOURED].astype(int)
    if len(coloured) > 0.05 * spread.size and np.median(
            coloured[:, 1] - coloured[:, [0, 2]].max(axis=1)) > GREY_SPREAD:
        return "green, which neither of its stains is: is it a negative, or stained otherwise?"
    return ""


def _components(counts) -> np.ndarray | None:
    """First components of log counts per 10,000 of the most variable genes `(T, K)`, centred."""
    from scipy import sparse

    counts = sparse.csr_matrix(counts).astype(float)
    total = np.asarray(counts.sum(axis=1)).ravel()
    logged = sparse.diags(1e4 / np.maximum(total, 1)) @ counts
    logged.data = np.log1p(logged.data)
    n = logged.shape[0]
    mean = np.asarray(logged.mean(axis=0)).ravel()
    variance = np.asarray(logged.multiply(logged).mean(axis=0)).ravel() - mean**2
    # A gene seen in a few spots is noise, however large its variance.
    variance[np.asarray((counts > 0).sum(axis=0)).ravel() < max(5, 0.05 * n)] = 0
    chosen = np.argsort(-variance, kind="stable")[:ALIGNMENT_GENES]
    chosen = chosen[variance[chosen] > 0]
    if len(chosen) == 0:
        return None
    dense = logged.tocsc()[:, chosen].toarray()
    left, length, _ = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)
    return left[:, :ALIGNMENT_COMPONENTS] * length[:ALIGNMENT_COMPONENTS]


def _pitch(xy: np.ndarray) -> float | None:
    """Distance of neighbouring spots [px of the thumbnail], None where all lie at one place."""
    if not np.isfinite(xy).all():
        return None
    distance = lattice.pitch(xy)
    return distance if distance > 0 else None


class _Colours:
    """Mean optical density and contrast of gray, in a square of most of a pitch at any place."""

    def __init__(self, pixels: np.ndarray, pitch: float):
        from scipy.ndimage import uniform_filter

        step = max(1, int(pitch / _PITCH_PX))
        height, width = (side // step * step for side in pixels.shape[:2])

        def cells(values: np.ndarray) -> np.ndarray:  # (H, W, ...) -> (H / step, W / step, ...)
            blocks = values.reshape(height // step, step, width // step, step, *values.shape[2:])
            return blocks.mean(axis=(1, 3), dtype=np.float32)

        pixels_here = pixels[:height, :width]
        density = -np.log((cells(pixels_here) + 1) / 256)
        gray = pixels_here.mean(axis=2, dtype=np.float32)
        side = max(1, round(0.8 * pitch / step))
        mean, squared = (uniform_filter(cells(values), side, mode="nearest")
                         for values in (gray, gray * gray))
        maps = [uniform_filter(density[..., channel], side, mode="nearest")
                for channel in range(3)]
        maps.append(np.sqrt(np.maximum(squared - mean**2, 0)))
        self.size, self._step, self._maps = (pixels.shape[1], pixels.shape[0]), step, maps

    def at(self, places: np.ndarray) -> np.ndarray:
        """Features `(T, 4)`; places outside take the nearest of the image."""
        height, width = self._maps[0].shape
        column, row = (np.clip((side / self._step).astype(int), 0, last - 1)
                       for side, last in zip(places.T, (width, height), strict=True))
        return np.column_stack([values[row, column] for values in self._maps])


def _blocks(xy: np.ndarray, n: int = 3) -> np.ndarray:
    """Nine blocks of neighbouring spots: n bands by x times n bands by y, equally full."""
    bands = [np.argsort(np.argsort(side, kind="stable"), kind="stable") * n // len(side)
             for side in xy.T]
    return bands[0] * n + bands[1]


def _explained(features: np.ndarray, target: np.ndarray, blocks: np.ndarray) -> float:
    """R2 of ridge over spots of blocks that were not fitted; features are scaled on the others."""
    left = total = 0.0
    for block in np.unique(blocks):
        fitted = blocks != block
        if fitted.sum() < 2:
            continue
        mean, scale = features[fitted].mean(axis=0), features[fitted].std(axis=0) + 1e-6
        centre = target[fitted].mean(axis=0)
        x = (features - mean) / scale
        gram = x[fitted].T @ x[fitted] + 0.01 * fitted.sum() * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[fitted].T @ (target[fitted] - centre))
        truth = target[~fitted] - centre
        left += float(((truth - x[~fitted] @ weights)**2).sum())
        total += float((truth**2).sum())
    return 1 - left / total


def _turned(xy: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The places if the axes were exchanged, or the image turned or mirrored."""
    (x, y), (width, height) = xy.T, size
    return {name: np.column_stack(places) for name, places in {
        "x and y exchanged": (y, x), "the image turned by 90 degrees": (width - y, x),
        "the image turned by 270 degrees": (y, height - x),
        "the image turned by 180 degrees": (width - x, height - y),
        "x mirrored": (width - x, y), "y mirrored": (x, height - y),
        "x and y exchanged and mirrored": (width - y, height - x)}.items()}


def _median(values: pd.Series) -> float:
    """Median of the known values, NaN where there are none."""
    return float(values.median()) if values.notna().any() else np.nan


def _row(section: Section, min_tissue: float, preset: str) -> dict[str, object]:
    adata, spots = section.adata, per_spot(section, preset=preset)
    counts = adata.layers["counts"]
    found = np.asarray((counts > 0).sum(axis=0)).ravel() > 0
    join = adata.uns.get("join", {})
    record: dict[str, object] = {
        "section": section.name, "study": section.study, "patient": section.patient,
        "n_spots": adata.n_obs, "n_genes": adata.n_vars, "n_genes_found": int(found.sum()),
        "n_empty_spots": int((spots["counts"] == 0).sum()),
        "mito_fraction_median": _median(spots["mito_fraction"]),
        "n_control_features": int(is_control(adata.var_names).sum()),
        "n_dropped": int(join.get("n_without_position", 0)),
        "mpp": np.nan if section.mpp is None else section.mpp,
        "spot_pitch_um": float(adata.uns.get("lattice", {}).get("pitch_um", np.nan)),
        "n_outside_image": int(spots["outside_image"].sum()) if section.has_image else np.nan,
        "tissue_fraction_median": _median(spots["tissue_fraction"]),
        "fraction_on_tissue": ((spots["tissue_fraction"] >= min_tissue).mean()
                               if section.has_image else np.nan)}
    if words := strange_colours(section):
        log.warning("%s: the image is %s", section.name, words)
    found_at = alignment(section)
    if found_at.is_doubtful:
        log.warning("%s: spots and image may not fit: %s", section.name, found_at.words)
    record |= {"alignment_r2": found_at.r2, "alignment_r2_shifted_best": found_at.r2_shifted_best,
               "alignment_rank": found_at.rank, "alignment": found_at.words}
    for field, percents in (("counts", (5, 25, 50, 75, 95)), ("genes", (5, 50, 95))):
        label = "counts" if field == "counts" else "genes_per_spot"
        for percent in percents:
            name = "median" if percent == 50 else f"q{percent:02d}"
            record[f"{label}_{name}"] = float(np.percentile(spots[field], percent))
    return record
