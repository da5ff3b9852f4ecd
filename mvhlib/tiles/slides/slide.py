"""One interface to all images: rectangles in level-0 coordinates."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.tiles import tiff
from mvhlib.tiles.slides.formats import TIFF, WHOLE_SLIDE, import_openslide, scale_of
from mvhlib.tiles.slides.plain import MAX_PIXELS, Plain
from mvhlib.tiles.slides.pyramid import Pyramid

#: Pixels of a band of rows that is read at once, and the fewest rows: those of a tile.
_BAND_PX, _BAND_ROWS = 2**24, 256

#: A pixel whose brightest channel is below this may be black background [0-255].
BLACK = 40


class Slide:
    """Pixels of one image with its scale; a context manager.

    Parameters
    ----------
    source
        A backend that reads rectangles: see `open_slide` and `Slide.from_array`.
    path
        The file, or a name for an array; used in errors.
    mpp
        Micrometres per level-0 pixel [µm/px], or None where nobody said it.
    exclude
        Boxes `(x0, y0, x1, y1)` [level-0 px] that are no tissue; read as white, counted outside.
    dark_background
        True where black surrounds the tissue; large black areas are then read as white.
    """

    def __init__(self, source: "Plain | Pyramid", path: str | os.PathLike,
                 mpp: float | None = None, exclude: Iterable[tuple[int, int, int, int]] = (),
                 dark_background: bool = False):
        self._source = source
        self.path = path
        self.width, self.height = source.size
        self.mpp = None if mpp is None else scale_of(path, mpp)
        with reading(path, "exclude", "holds no boxes", "give (x0, y0, x1, y1) in whole pixels"):
            self.exclude = tuple(tuple(int(v) for v in box) for box in exclude)
        self.dark_background = bool(dark_background)
        self._black: np.ndarray | None = None
        for box in self.exclude:
            if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
                raise InputError(path, "exclude", f"{box} is no box",
                                 "give (x0, y0, x1, y1) with x0 < x1 and y0 < y1")

    @classmethod
    def from_array(cls, array: np.ndarray, mpp: float | None = None, *, name: str = "array",
                   exclude: Iterable[tuple[int, int, int, int]] = (),
                   dark_background: bool = False) -> "Slide":
        """Make a slide of pixels `(H, W, 3)` uint8 that are in memory already."""
        from PIL import Image

        array = np.asarray(array)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise InputError(name, "array", f"is {array.dtype} of shape {array.shape}",
                             "give uint8 pixels of shape (height, width, 3)")
        image = Image.fromarray(np.ascontiguousarray(array))
        return cls(Plain(name, image), name, mpp, exclude, dark_background)

    @property
    def size_um(self) -> tuple[float, float] | None:
        """Width and height in micrometres, or None where the scale is unknown."""
        return None if self.mpp is None else (self.width * self.mpp, self.height * self.mpp)

    @property
    def scanner(self) -> str:
        """Maker and model of the scanner, as far as the file says it; "" where it does not."""
        return self._source.scanner

    def region(self, x: float, y: float, width: float, height: float,
               out_px: tuple[int, int] | None = None) -> tuple[np.ndarray, float]:
        """Read a level-0 rectangle, which may reach over the border.

        Parameters
        ----------
        x, y
            Top-left corner [level-0 px]; may be negative, and fractional where `out_px` is given.
        width, height
            Extent [level-0 px], above 0.
        out_px
            `(width, height)` to resample to; None keeps level-0 pixels (the rectangle is rounded).

        Returns
        -------
        pixels, outside
            uint8 `(h, w, 3)`, and the share of the rectangle that is no image: padded white, or in
            an excluded box.

        Raises
        ------
        InputError
            If the file is truncated or otherwise cannot be decoded.
        """
        if not all(math.isfinite(v) for v in (x, y, width, height)):
            raise InputError(self.path, "region", f"({x}, {y}, {width}, {height}) is not finite",
                             "ask for a rectangle of numbers")
        if out_px is None:
            x, y, width, height = (int(round(v)) for v in (x, y, width, height))
            out_px = (width, height)
        if width <= 0 or height <= 0 or min(out_px) < 1:
            raise InputError(self.path, "region", f"{width} x {height} px to {out_px} is empty",
                             "ask for at least one pixel")
        pixels = self._read(x, y, width, height, (int(out_px[0]), int(out_px[1])), clean=True)
        return pixels, self._outside(x, y, width, height)

    def thumbnail(self, max_px: int = 2000) -> np.ndarray:
        """The whole image, uint8 `(h, w, 3)`, its longer side `max_px` at most; never enlarged."""
        if not max_px >= 1:
            raise InputError(self.path, "max_px", f"is {max_px}", "ask for at least one pixel")
        scale = min(1.0, max_px / max(self.width, self.height))
        size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        return self._read(0, 0, self.width, self.height, size, clean=True)

    def close(self) -> None:
        """Release the file; reading again opens it again."""
        self._source.close()
        self._black = None

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        scale = "unknown scale" if self.mpp is None else (
            f"{self.mpp:.3g} µm/px, {self.size_um[0] / 1e3:.3g} x {self.size_um[1] / 1e3:.3g} mm")
        more = f"; {len(self.exclude)} boxes excluded" if self.exclude else ""
        more += "; black background read as white" if self.dark_background else ""
        name = Path(self.path).name
        return f"Slide {name}: {self.width} x {self.height} px, {scale} ({self._source.kind}){more}"

    def _read(self, x: float, y: float, width: float, height: float, out_px: tuple[int, int],
              clean: bool) -> np.ndarray:
        """Paste the part inside the image on white, clean it, resample it to `out_px`.

        A rectangle too large for memory is read in bands of rows, each reduced along x, and what
        they give is reduced along y. Pillow takes the other order for some shapes; a grey level is
        the most that differs.
        """
        from PIL import Image

        reduction = min(width / out_px[0], height / out_px[1])
        level, down = self._source.level_for(reduction)
        # The canvas is the rectangle in pixels of that level, grown to whole level-0 pixels so
        # that the fractional rest is left to the filter, which takes a fractional box.
        x0, y0 = math.floor(x), math.floor(y)
        columns = max(1, math.ceil((x + width - x0) / down))
        rows = max(1, math.ceil((y + height - y0) / down))
        box = ((x - x0) / down, (y - y0) / down,
               min(columns, (x - x0 + width) / down), min(rows, (y - y0 + height) / down))
        shrinks = (box[2] - box[0]) > out_px[0] or (box[3] - box[1]) > out_px[1]
        method = Image.Resampling.BILINEAR if shrinks else Image.Resampling.BICUBIC

        def canvas(first: int, last: int) -> Any:
            return self._canvas(x0, y0, level, down, (columns, rows), (first, last), clean)

        if columns * rows <= self._source.whole_px(level, down):
            whole = canvas(0, rows)
            if box == (0, 0, *out_px) and whole.size == out_px:
                return np.asarray(whole).copy()
            return np.asarray(whole.resize(out_px, method, box=box)).copy()
        high = max(_BAND_ROWS, _BAND_PX // columns)
        narrow = np.empty((rows, out_px[0], 3), dtype=np.uint8)
        for first in range(0, rows, high):
            last = min(first + high, rows)
            narrow[first:last] = np.asarray(canvas(first, last).resize(
                (out_px[0], last - first), method, box=(box[0], 0, box[2], last - first)))
        out = np.empty((out_px[1], out_px[0], 3), dtype=np.uint8)
        for left in range(0, out_px[0], 256):
            part = Image.fromarray(np.ascontiguousarray(narrow[:, left:left + 256]))
            out[:, left:left + 256] = np.asarray(part.resize(
                (part.width, out_px[1]), method, box=(0, box[1], part.width, box[3])))
        return out

    def _canvas(self, x0: int, y0: int, level: int, down: float, size: tuple[int, int],
                window: tuple[int, int], clean: bool) -> Any:
        """The rows `window` (first, last) of a canvas of `size` at (x0, y0), white outside."""
        from PIL import Image

        canvas = Image.new("RGB", (size[0], window[1] - window[0]), (255, 255, 255))
        # Whole level pixels of padding keep the pasted part on the canvas' raster.
        left, top = math.ceil(max(0, -x0) / down), math.ceil(max(0, -y0) / down)
        inside_x, inside_y = x0 + int(round(left * down)), y0 + int(round(top * down))
        if inside_x < self.width and inside_y < self.height:
            width = min(size[0] - left, math.ceil((self.width - inside_x) / down))
            first = max(top, window[0])
            last = min(size[1], top + math.ceil((self.height - inside_y) / down), window[1])
            if width > 0 and first < last:
                canvas.paste(self._source.read(
                    inside_x, inside_y + int(round((first - top) * down)), level, width,
                    last - first), (left, first - window[0]))
        return self._clean(canvas, x0, y0 + window[0] * down, down) if clean else canvas

    def _clean(self, canvas: Any, x0: int, y0: float, down: float) -> Any:
        """White out excluded boxes and, where asked, the black background."""
        for bx0, by0, bx1, by1 in self.exclude:
            box = (max(0, math.floor((bx0 - x0) / down)), max(0, math.floor((by0 - y0) / down)),
                   min(canvas.width, math.ceil((bx1 - x0) / down)),
                   min(canvas.height, math.ceil((by1 - y0) / down)))
            if box[0] < box[2] and box[1] < box[3]:
                canvas.paste((255, 255, 255), box)
        if not self.dark_background:
            return canvas
        from PIL import Image

        black = self._black_areas()
        step_x, step_y = self.width / black.shape[1], self.height / black.shape[0]
        columns = ((x0 + (np.arange(canvas.width) + 0.5) * down) / step_x).astype(int)
        rows = ((y0 + (np.arange(canvas.height) + 0.5) * down) / step_y).astype(int)
        mask = black[np.clip(rows, 0, black.shape[0] - 1)[:, None],
                     np.clip(columns, 0, black.shape[1] - 1)[None, :]]
        pixels = np.array(canvas)
        # At the seam a pixel is part black, part glass: a laxer bound there, no dark outline left.
        pixels[mask & (pixels.max(axis=2) < 4 * BLACK)] = 255
        return Image.fromarray(pixels)

    def _black_areas(self) -> np.ndarray:
        """Large black areas at 2048 px or less, with a rim of two; nuclei are far too small."""
        if self._black is None:
            from scipy import ndimage

            scale = min(1.0, 2048 / max(self.width, self.height))
            size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
            dark = self._read(0, 0, self.width, self.height, size, clean=False).max(axis=2) < BLACK
            labels, n = ndimage.label(dark)
            area = np.bincount(labels.ravel(), minlength=n + 1)
            area[0] = 0
            large = (area >= 0.001 * dark.size)[labels]
            self._black = ndimage.binary_dilation(large, iterations=2)
        return self._black

    def _outside(self, x: float, y: float, width: float, height: float) -> float:
        """Share of a rectangle covered by the union of the border's far side and the boxes."""
        far = math.inf
        boxes = [(-far, -far, 0, far), (self.width, -far, far, far), (-far, -far, far, 0),
                 (-far, self.height, far, far), *self.exclude]
        clipped = [(max(x, a), max(y, b), min(x + width, c), min(y + height, d))
                   for a, b, c, d in boxes]
        clipped = [box for box in clipped if box[0] < box[2] and box[1] < box[3]]
        xs = sorted({v for box in clipped for v in (box[0], box[2])})
        ys = sorted({v for box in clipped for v in (box[1], box[3])})
        area = 0.0
        for left, right in zip(xs, xs[1:], strict=False):
            for top, bottom in zip(ys, ys[1:], strict=False):
                if any(a <= left and right <= c and b <= top and bottom <= d
                       for a, b, c, d in clipped):
                    area += (right - left) * (bottom - top)
        return min(1.0, area / (width * height))


def open_slide(path: str | os.PathLike, mpp: float | None = None,
               exclude: Iterable[tuple[int, int, int, int]] = (),
               dark_background: bool = False, *, max_pixels: int = MAX_PIXELS) -> Slide:
    """Open an image file of any kind; pixels are decoded when they are asked for.

    =================================  =========================================================
    file                               read as
    =================================  =========================================================
    jpg, png, webp, bmp, jp2, avif,    red, green, blue of 8 bits; grey and black-and-white as
    ppm, gif, tga                      grey, palettes by their colours, transparency on white,
                                       CMYK without a profile; png of 16 bits that uses them all
    svs, ndpi, mrxs, scn, bif, vms,    whole slides, level by level, by openslide (DICOM too)
    vmu, svslide, Philips' tiff
    tiff, one page or a pyramid,       RGB (interleaved or planar), YCbCr, palette, grey, CMYK;
    tiled or in strips                 none, LZW, deflate, packbits, JPEG, zstd; by imagecodecs
                                       JPEG 2000, JPEG XL, WebP, LERC where RGB
    tiff of three grey pages           where OME, ImageJ or tifffile call them channels, and
                                       nothing says fluorescence
    tiff of 16 bits                    RGB, the upper 8 of the bits in use (`tiff.decode`)
    =================================  =========================================================

    Refused in one line: float, signed and 16-bit grey samples, Lab, CMYK with a profile, two or
    more than four channels, fluorescence, stacks of depths or times, several images in one file,
    an Orientation tag that turns the image, CZI and others that openslide does not read, truncated
    files, and sizes that the file cannot hold or memory cannot.

    Scale: what openslide reports, OME's PhysicalSize with its unit, ImageJ's unit, Aperio's MPP,
    then a tiff's resolution tags where they can be a scale (72, 96, 300 dpi and the like are none).
    Other plain images state nothing that can be trusted.

    Parameters
    ----------
    path
        A file, or a link to one.
    mpp
        Micrometres per level-0 pixel [µm/px]. None takes what the file states, if it does.
    exclude, dark_background
        As in `Slide`.
    max_pixels
        Most pixels of an image that must be decoded as a whole.

    Returns
    -------
    Slide

    Raises
    ------
    InputError
        If the file is missing, cannot be decoded, is of a kind that is refused, needs openslide
        and that is not installed, its pixels are not square, or `mpp` is no number above 0 or
        differs by more than 5 % from what the file states.
    """
    path = check_file(path, "image")
    mpp = None if mpp is None else scale_of(path, mpp)
    suffix = path.suffix.lower()
    source: Plain | Pyramid
    stated: tuple[float, str] | None = None
    if suffix in WHOLE_SLIDE:
        openslide = import_openslide(path)
        if openslide.OpenSlide.detect_format(str(path)) is None and path.stat().st_size and (
                tiff.is_tiff(path)):
            source, stated = _open_tiff(path, max_pixels)
        else:
            source = Pyramid(path, openslide)
    elif suffix in TIFF or tiff.is_tiff(path):
        source, stated = _open_tiff(path, max_pixels)
    else:
        source = Plain(path, max_pixels=max_pixels)
    if isinstance(source, Pyramid) and source.vendor != "generic-tiff":
        if source.vendor == "aperio":
            tiff.check_size(path)
        found = source.mpp
        stated = None if found is None else (found, "openslide.mpp-x")
    if mpp is None:
        mpp = stated[0] if stated else None
    elif stated and abs(mpp / stated[0] - 1) > 0.05:
        raise InputError(path, "mpp", f"is given as {mpp:.4g}, but the file states {stated[0]:.4g} "
                         f"µm per pixel ({stated[1]})", "leave mpp out, or correct the file: a "
                         "resized image keeps its old tag")
    return Slide(source, path, mpp, exclude, dark_background)


def _open_tiff(path: Path, max_pixels: int
               ) -> "tuple[Plain | Pyramid, tuple[float, str] | None]":
    """A tiff by the reader that gives its right colours, and the scale that it states."""
    openslide, vendor, missing = None, None, None
    try:
        openslide = import_openslide(path)
    except InputError as error:
        missing = error
    if openslide is not None:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in (None, "generic-tiff"):
            return Pyramid(path, openslide), None
    plan = tiff.plan(path, known_to_openslide=vendor is not None)
    if missing is not None and plan.several:
        raise missing  # levels, of which Pillow would read the first alone
    if plan.reader == "openslide":
        return Pyramid(path, openslide), plan.mpp
    return Plain(path, max_pixels=max_pixels, plan=plan), plan.mpp
