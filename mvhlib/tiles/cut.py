"""Cut tiles around spots or on a grid, their size stated in micrometres, and find the tissue.

A tile covers `tile_um` micrometres of tissue whatever the scanner was, so that sections of unlike
resolution give the same field of view. What reaches over the border is padded white and recorded
per tile in `Tiles.outside`.

The tissue mask follows CLAM (Lu et al., Nature Biomedical Engineering 5, 2021): median-blurred
saturation, a fixed or Otsu threshold, closing, then small tissue and small holes dropped. CLAM's
own settings are here by their names.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from mvhlib.artifacts import InputError, reading
from mvhlib.tiles.slides import BLACK, Slide

#: Fewer source pixels than this along a tile's side carry no texture; such a cut is refused.
MIN_SOURCE_PX = 16

#: Most memory that the tiles of one call may take [GB].
MAX_GB = 16.0

#: Most places of a grid: a slide of 100,000 px in steps of 14 px.
MAX_PLACES = 50_000_000


@dataclass
class Tiles:
    """Tiles of one section and where they come from.

    Attributes
    ----------
    img
        Pixels `(T, S, S, 3)` uint8.
    coords
        Top-left corner (x, y) of each tile, `(T, 2)` int64 [level-0 px].
    outside
        Share of each tile that is no image (padding, excluded box), `(T,)` float32 [0-1].
    tile_px, tile_um
        Side of a tile [px], [µm].
    mpp
        Scale of the tiles, `tile_um / tile_px` [µm/px].
    source_mpp
        Scale of level 0 of the slide [µm/px]; larger than `mpp` where tiles were enlarged.
    barcodes
        One name per tile, or None.
    """

    img: np.ndarray = field(repr=False)
    coords: np.ndarray = field(repr=False)
    outside: np.ndarray = field(repr=False)
    tile_px: int
    tile_um: float
    mpp: float
    source_mpp: float
    barcodes: list[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.img)

    @property
    def source_px(self) -> float:
        """Side of a tile in level-0 pixels [px]."""
        return self.tile_um / self.source_mpp

    def select(self, index: np.ndarray | slice) -> "Tiles":
        """The tiles at `index` (positions or a boolean mask), in that order."""
        names = self.barcodes
        if names is not None:
            names = [str(name) for name in np.asarray(names, dtype=object)[index]]
        return replace(self, img=self.img[index], coords=self.coords[index],
                       outside=self.outside[index], barcodes=names)

    def __repr__(self) -> str:
        enlarged = self.source_mpp / self.mpp
        scale = f", enlarged {enlarged:.2f} times" if enlarged > 1.001 else ""
        padded = int((self.outside > 0).sum())
        return (f"Tiles: {len(self)} of {self.tile_px} px = {self.tile_um:g} µm "
                f"({self.mpp:.3g} µm/px, source {self.source_mpp:.3g}{scale}); {padded} padded")


def cut_spots(slide: Slide, centers: np.ndarray, *, tile_um: float, tile_px: int,
              max_gb: float = MAX_GB) -> Tiles:
    """Cut one tile around each spot.

    Parameters
    ----------
    slide
        Pixels with a known scale.
    centers
        Spot centres (x, y), `(T, 2)` [level-0 px].
    tile_um
        Side of a tile on the tissue [µm].
    tile_px
        Side of a tile in the output [px].
    max_gb
        Most memory that the tiles may take [GB].

    Returns
    -------
    Tiles
        In the order of `centers`; none is left out, `outside` says how much of each is padding.

    Raises
    ------
    InputError
        If the scale is unknown, a tile covers fewer than 16 source pixels, no tile touches the
        image (coordinates of another scale), or the tiles need more than `max_gb`.
    """
    with reading(slide.path, "centers", "are no numbers", "give one finite (x, y) per spot"):
        centers = np.asarray(centers, dtype=np.float64)
    if centers.ndim != 2 or centers.shape[1] != 2 or not np.isfinite(centers).all():
        raise InputError(slide.path, "centers", f"have shape {centers.shape} or are not finite",
                         "give one finite (x, y) per spot")
    corners = np.rint(centers - _source_px(slide, tile_um, tile_px) / 2).astype(np.int64)
    return cut_at(slide, corners, tile_um=tile_um, tile_px=tile_px, max_gb=max_gb)


def grid(slide: Slide, *, tile_um: float, tile_px: int, step_um: float | None = None,
         mask: "TissueMask | None" = None, min_tissue: float = 0.5,
         max_gb: float = MAX_GB) -> Tiles:
    """Cut tiles on a regular grid over the tissue.

    Parameters
    ----------
    slide, tile_um, tile_px, max_gb
        As in `cut_spots`; what needs more is cut from parts of `grid_corners`.
    step_um
        Distance of neighbouring corners [µm]; None puts tiles edge to edge.
    mask
        Tissue; None keeps the whole slide.
    min_tissue
        Least share of a tile that must be tissue [0-1]; unused without a mask.

    Returns
    -------
    Tiles
        Row by row. Those of the last row and column may reach over the border.

    Raises
    ------
    InputError
        As `cut_spots`, and if no place on the grid has enough tissue.
    """
    corners = grid_corners(slide, tile_um=tile_um, tile_px=tile_px, step_um=step_um, mask=mask,
                           min_tissue=min_tissue)
    return cut_at(slide, corners, tile_um=tile_um, tile_px=tile_px, max_gb=max_gb)


def grid_corners(slide: Slide, *, tile_um: float, tile_px: int, step_um: float | None = None,
                 mask: "TissueMask | None" = None, min_tissue: float = 0.5) -> np.ndarray:
    """Corners `(T, 2)` int64 of `grid`, without pixels: a large slide is cut from parts of them."""
    side = _source_px(slide, tile_um, tile_px)
    step = side if step_um is None else _number(slide, "step_um", step_um) / slide.mpp
    if not step >= 1:
        raise InputError(slide.path, "step_um", f"{step_um} µm is less than one pixel",
                         f"take at least {slide.mpp:.3g} µm")
    if not 0 <= _number(slide, "min_tissue", min_tissue, low=-1) <= 1:
        raise InputError(slide.path, "min_tissue", f"is {min_tissue}", "give a share from 0 to 1")
    if slide.width / step * (slide.height / step) > MAX_PLACES:
        raise InputError(slide.path, "step_um", f"of {step * slide.mpp:.3g} µm makes more than "
                         f"{MAX_PLACES:,} places", "take larger steps")
    x = np.rint(np.arange(0, slide.width, step)).astype(np.int64)
    y = np.rint(np.arange(0, slide.height, step)).astype(np.int64)
    corners = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)  # (rows, columns, 2) -> (T, 2)
    if mask is not None:
        share = mask.fraction(corners[:, 0], corners[:, 1], side, side)
        corners = corners[share >= min_tissue]
        if len(corners) == 0:
            raise InputError(slide.path, "tissue", f"no tile of {tile_um:g} µm has {min_tissue:g} "
                             "of it", "lower min_tissue or choose another preset of the mask")
    return corners


def cut_at(slide: Slide, corners: np.ndarray, *, tile_um: float, tile_px: int,
           max_gb: float = MAX_GB) -> Tiles:
    """Cut tiles at the given top-left corners `(T, 2)` [level-0 px]; errors as `cut_spots`."""
    side = _source_px(slide, tile_um, tile_px)
    with reading(slide.path, "corners", "are no numbers", "give one (x, y) per tile"):
        corners = np.asarray(corners)
        if corners.dtype.kind == "f" and not np.isfinite(corners).all():
            raise InputError(slide.path, "corners", "are not finite", "give one (x, y) per tile")
        corners = corners.astype(np.int64).reshape(-1, 2)
    needed = len(corners) * int(tile_px) ** 2 * 3 / 1e9
    if needed > max_gb:
        raise InputError(slide.path, "tiles", f"{len(corners):,} of {tile_px} px need {needed:.0f} "
                         f"GB, more than max_gb={max_gb:g}", "cut parts of them, take larger steps "
                         "or smaller tiles, or raise max_gb")
    tile_px = int(tile_px)
    img = np.empty((len(corners), tile_px, tile_px, 3), dtype=np.uint8)
    outside = np.empty(len(corners), dtype=np.float32)
    for row, (x, y) in enumerate(corners.tolist()):
        img[row], outside[row] = slide.region(x, y, side, side, out_px=(tile_px, tile_px))
    if len(corners) and (outside >= 1).all():
        raise InputError(slide.path, "coordinates", "no tile touches the image "
                         f"({slide.width} x {slide.height} px)",
                         "give (x, y) in pixels of this image at full resolution")
    return Tiles(img, corners, outside, tile_px, float(tile_um), tile_um / tile_px, slide.mpp)


def _source_px(slide: Slide, tile_um: float, tile_px: int) -> float:
    """Side of a tile in level-0 pixels, after checking that the cut makes sense."""
    if slide.mpp is None:
        raise InputError(slide.path, "mpp", "is not known, so micrometres mean nothing",
                         "state it: open_slide(path, mpp=...)")
    _number(slide, "tile_um", tile_um)
    if _number(slide, "tile_px", tile_px) != int(tile_px) or tile_px < 1:
        raise InputError(slide.path, "tile_um, tile_px", f"are {tile_um} µm and {tile_px} px",
                         "give a positive extent and a whole number of pixels")
    side = tile_um / slide.mpp
    if side < MIN_SOURCE_PX:
        raise InputError(slide.path, "tile_um", f"{tile_um:g} µm are {side:.1f} px of this image "
                         f"({slide.mpp:.3g} µm/px), less than {MIN_SOURCE_PX}",
                         f"take at least {MIN_SOURCE_PX * slide.mpp:.0f} µm, or a sharper image")
    return side


def _number(slide: Slide, name: str, value: float, low: float = 0.0) -> float:
    """`value`, if it is a finite number above `low`."""
    if isinstance(value, (str, bytes, bool)) or value is None or not np.isscalar(value) or not (
            np.isfinite(value) and value > low):
        raise InputError(slide.path, name, f"is {value!r}", f"give a finite number above {low:g}")
    return value


@dataclass(frozen=True)
class MaskPreset:
    """Settings of the tissue mask; the names are CLAM's.

    Parameters
    ----------
    sthresh
        Least saturation of tissue [0-255]; with `use_otsu` the least threshold that Otsu may give.
    mthresh
        Side of the median filter [px of the mask], odd.
    close
        Side of the closing [px of the mask].
    use_otsu
        Threshold between the two modes of the saturation instead of at `sthresh`.
    a_t, a_h
        Least area of a piece of tissue and of a hole in it, in squares of `unit_um`.
    max_n_holes
        Most holes that one piece of tissue keeps; the largest are kept, the others filled.
    mask_um
        Resolution of the mask [µm/px]; CLAM's is level 0 of a 40x scan reduced 64 times.
    unit_um
        Side of the square that `a_t` and `a_h` count [µm]; None: 512 level-0 pixels, as CLAM's.
    otsu_max
        Greatest threshold that Otsu may give: on a field without glass it would split the tissue.
    """

    sthresh: int = 10
    mthresh: int = 5
    close: int = 4
    use_otsu: bool = True
    a_t: float = 2.0
    a_h: float = 0.5
    max_n_holes: int = 16
    mask_um: float = 8.0
    unit_um: float | None = 128.0
    otsu_max: int = 50


_CLAM = {"use_otsu": False, "mask_um": 16.0, "unit_um": None}

#: Settings by name; `biopsy`, `resection` and `tcga` are CLAM's.
PRESETS = {
    "default": MaskPreset(),
    "biopsy": MaskPreset(15, 11, 2, a_t=1, a_h=1, max_n_holes=2, **_CLAM),
    "resection": MaskPreset(15, 11, 4, a_t=100, a_h=16, max_n_holes=8, **_CLAM),
    "tcga": MaskPreset(8, 7, 4, a_t=16, a_h=4, max_n_holes=8, **_CLAM),
}


@dataclass
class TissueMask:
    """Mask of tissue at low resolution.

    Attributes
    ----------
    mask
        `(h, w)` bool.
    scale
        Level-0 pixels per mask pixel, (along x, along y).
    threshold
        Saturation above which a pixel counted as tissue [0-255].
    """

    mask: np.ndarray = field(repr=False)
    scale: tuple[float, float]
    threshold: float = 0.0

    def __post_init__(self):
        # Summed area with a zero row and column in front: any rectangle in four look-ups.
        self._sums = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        self._sums[1:, 1:] = self.mask.cumsum(axis=0).cumsum(axis=1)

    def fraction(self, x: np.ndarray | float, y: np.ndarray | float, w: np.ndarray | float,
                 h: np.ndarray | float) -> np.ndarray:
        """Share of the rectangles at corners `x`, `y` with size `w`, `h` that is tissue.

        All in level-0 pixels, broadcast against each other; what lies outside the image is none.
        """
        x, y, w, h = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, y, w, h)))
        left, right = x / self.scale[0], (x + w) / self.scale[0]
        top, bottom = y / self.scale[1], (y + h) / self.scale[1]
        tissue = (self._sum(bottom, right) - self._sum(top, right)
                  - self._sum(bottom, left) + self._sum(top, left))
        return np.clip(tissue / ((right - left) * (bottom - top)), 0.0, 1.0)

    def _sum(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Tissue above and left of a point; linear between grid lines, which is exact."""
        rows, columns = self.mask.shape
        row, column = np.clip(row, 0, rows), np.clip(column, 0, columns)
        r0 = np.minimum(row.astype(int), rows - 1)
        c0 = np.minimum(column.astype(int), columns - 1)
        a, b = row - r0, column - c0
        sums = self._sums
        return ((1 - a) * ((1 - b) * sums[r0, c0] + b * sums[r0, c0 + 1])
                + a * ((1 - b) * sums[r0 + 1, c0] + b * sums[r0 + 1, c0 + 1]))

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return (f"TissueMask {width} x {height}, {self.scale[0]:.3g} level-0 px each: "
                f"{self.mask.mean():.1%} tissue (saturation above {self.threshold:g})")


def tissue_mask(slide: Slide | np.ndarray, preset: str | MaskPreset = "default") -> TissueMask:
    """Find the tissue of a slide.

    Parameters
    ----------
    slide
        A slide, or pixels `(H, W, 3)` uint8 that are taken as they are.
    preset
        A name in `PRESETS` or settings of your own.

    Returns
    -------
    TissueMask

    Raises
    ------
    InputError
        On an unknown preset.

    Notes
    -----
    Black (scanner background, black pen) and pixels greener than red (blue and green pen) are no
    tissue. Red pen cannot be told from eosin by colour: exclude it by a box. Without a known scale
    the mask is 1024 px long at most and areas count squares of 512 level-0 pixels.
    """
    settings = _preset(preset)
    if isinstance(slide, Slide):
        longest = max(slide.width, slide.height)
        wanted = 1024 if slide.mpp is None else longest * slide.mpp / settings.mask_um
        image = slide.thumbnail(max_px=int(np.clip(wanted, 1, 4096)))
        scale = (slide.width / image.shape[1], slide.height / image.shape[0])
        unit = 512 if slide.mpp is None or settings.unit_um is None else (
            settings.unit_um / slide.mpp)
    else:
        image, scale = np.asarray(slide), (1.0, 1.0)
        unit = 512
    from scipy import ndimage

    saturation = _saturation(image)
    saturation = ndimage.median_filter(saturation, size=settings.mthresh)
    threshold = float(settings.sthresh)
    if settings.use_otsu:
        threshold = float(np.clip(_otsu(saturation), settings.sthresh, settings.otsu_max))
    tissue = saturation > threshold
    if settings.close > 1:
        # Closing at the border would eat tissue there: pad by the edge first.
        margin = settings.close
        tissue = ndimage.binary_closing(np.pad(tissue, margin, mode="edge"),
                                        np.ones((settings.close,) * 2))
        tissue = tissue[margin:-margin, margin:-margin]
    square = unit**2 / (scale[0] * scale[1])  # in pixels of the mask
    tissue = _drop_small(tissue, settings.a_t * square, settings.a_h * square,
                         settings.max_n_holes)
    return TissueMask(tissue, scale, threshold)


def _preset(preset: str | MaskPreset) -> MaskPreset:
    if isinstance(preset, MaskPreset):
        return preset
    if preset not in PRESETS:
        raise InputError("tissue_mask", "preset", f"{preset!r} is not among {list(PRESETS)}",
                         "use one of these names or a MaskPreset")
    return PRESETS[preset]


def _saturation(image: np.ndarray) -> np.ndarray:
    """HSV saturation `(H, W)` uint8; 0 where black or pen."""
    red, green = image[..., 0].astype(np.int16), image[..., 1].astype(np.int16)
    top, bottom = image.max(axis=-1), image.min(axis=-1)
    saturation = np.rint(255.0 * (top - bottom) / np.maximum(top, 1)).astype(np.uint8)
    saturation[(top < BLACK) | (green - red > 25)] = 0
    return saturation


def _otsu(values: np.ndarray) -> int:
    """Threshold that splits a histogram of uint8 with the greatest variance between classes.

    Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979): values up to and with the
    threshold are background.
    """
    count = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = count.cumsum()
    above = count.sum() - below
    total = (count * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return int(np.nanargmax(between)) if np.isfinite(between).any() else 255


def _drop_small(tissue: np.ndarray, a_t: float, a_h: float, max_n_holes: int) -> np.ndarray:
    """Drop pieces of at most `a_t` pixels; per piece keep the largest holes above `a_h`."""
    from scipy import ndimage

    pieces, n = ndimage.label(tissue, structure=np.ones((3, 3)))
    kept = np.zeros_like(tissue)
    for number, window in enumerate(ndimage.find_objects(pieces, n), start=1):
        piece = pieces[window] == number
        if piece.sum() <= a_t:
            continue
        filled = ndimage.binary_fill_holes(piece)
        # 4-connected: a hole does not leak through the diagonal that joins the piece.
        holes, n_holes = ndimage.label(filled & ~piece)
        area = np.bincount(holes.ravel(), minlength=n_holes + 1)[1:]
        order = np.argsort(-area, kind="stable")[:max_n_holes]
        largest = [hole + 1 for hole in order if area[hole] > a_h]
        # A smaller piece inside a hole of this one is its own: only this piece is written.
        kept[window] |= filled & ~np.isin(holes, largest)
    return kept
