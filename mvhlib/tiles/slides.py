"""Read pixels of an image, plain or whole-slide, by rectangles in level-0 coordinates.

One surface for three kinds of source: plain images (Pillow), pyramids such as ``.svs`` (openslide,
an extra) and arrays in memory. Whatever lies outside the image comes back white and is counted,
so that a tile at a corner is padded but never silently so.

Resampling: a triangle filter widened to the reduction (antialiased, mean-preserving, weights never
negative, so no ringing at nuclear borders) when pixels get fewer, bicubic when they get more.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib import artifacts
from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.tiles import tiff

#: Formats that only openslide reads; tiff is tried with it first and with Pillow after.
WHOLE_SLIDE = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm")
TIFF = (".tif", ".tiff")
INSTALL_WSI = 'pip install "mvhlib[wsi]"'

#: Most pixels of an image that is decoded as a whole, at 4 bytes each; a pyramid has no such bound.
MAX_PIXELS = 1_000_000_000

#: Pixels of a band of rows that is read at once, and the fewest rows: those of a tile.
_BAND_PX, _BAND_ROWS = 2**24, 256

#: Formats that Pillow reads; it knows others, some of which start programs.
PLAIN = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "DIB", "JPEG2000", "AVIF", "PPM", "GIF",
         "TGA")

#: What each format may gain by compression, in pixels' bytes per byte of the file.
_PACKED = {"PNG": 1_100, "JPEG": 5_000, "MPO": 5_000, "BMP": 300, "PPM": 10, "TGA": 300}

#: Formats by the first bytes or the ending, which no reader here knows.
_FOREIGN = {".czi": "a Zeiss CZI file", ".dcm": "a DICOM file", ".lif": "a Leica LIF file",
            ".nd2": "a Nikon ND2 file", ".vsi": "an Olympus VSI file", ".oir": "an Olympus file",
            ".oib": "an Olympus file", ".ims": "an Imaris file", ".jxl": "a JPEG XL file",
            ".isyntax": "a Philips iSyntax file", ".i2syntax": "a Philips iSyntax file",
            ".pdf": "a PDF", ".eps": "PostScript", ".ps": "PostScript", ".svg": "a drawing",
            ".psd": "a Photoshop file", ".heic": "a HEIC file", ".xcf": "a GIMP file",
            ".kfb": "a KFBIO file", ".sdpc": "an SDPC file", ".qptiff": "an Akoya file"}
_CONVERT = ("convert it to a pyramidal tiff in RGB, for example by bfconvert (Bio-Formats), QuPath "
            "or vips")

#: Where files say which scanner made them.
SCANNERS = ("aperio.ScanScope ID", "hamamatsu.Product", "leica.device-model",
            "ventana.ScannerModel", "philips.DICOM_MANUFACTURERS_MODEL_NAME")

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

    def __init__(self, source: "_Plain | _Pyramid", path: str | os.PathLike,
                 mpp: float | None = None, exclude: Iterable[tuple[int, int, int, int]] = (),
                 dark_background: bool = False):
        self._source = source
        self.path = path
        self.width, self.height = source.size
        self.mpp = None if mpp is None else _scale(path, mpp)
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
        return cls(_Plain(name, image), name, mpp, exclude, dark_background)

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


class _Plain:
    """An image that is decoded as a whole, at the first read."""

    kind = "plain image"
    scanner = ""

    def __init__(self, path: str | os.PathLike, image: Any = None, *,
                 max_pixels: int = MAX_PIXELS, plan: tiff.Plan | None = None):
        self._path, self._image, self._in_memory = path, image, image is not None
        self._plan = plan
        if image is not None:
            self.size = image.size
            return
        if plan is not None and plan.reader == "pages":
            self.size = plan.size
            self._check_area(max_pixels, 100_000, 3)
        else:
            with self._open() as opened:
                self.size = opened.size
                self._check_area(max_pixels, _PACKED.get(opened.format, 100_000),
                                 1 / 8 if opened.mode in ("1", "P", "L") else
                                 len(opened.getbands()))
                _check_header(path, opened)

    def _check_area(self, max_pixels: int, packed: int, values: float) -> None:
        """Refuse what would not fit into memory, and sizes that the file cannot hold."""
        width, height = self.size
        if width * height > max_pixels:
            raise InputError(self._path, "image", f"declares {width} x {height} px and is decoded "
                             f"as a whole, more than max_pixels={max_pixels:,}", "convert it to a "
                             "pyramidal tiff, or raise max_pixels= (4 bytes of memory a pixel)")
        held = os.path.getsize(self._path)
        if width * height > 4_000_000 and width * height * values > packed * held:
            raise InputError(self._path, "image", f"declares {width} x {height} px in {held:,} "
                             "bytes, more than it can hold",
                             "it is probably truncated: copy it again from its source")

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Open without Pillow's pixel limit, for which `max_pixels` stands; no half images."""
        from PIL import Image, ImageFile

        Image.init()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        half, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            with Image.open(self._path, formats=[f for f in PLAIN if f in Image.OPEN]) as opened:
                yield opened
        except InputError:
            raise
        except Image.UnidentifiedImageError as error:
            kind = _FOREIGN.get(Path(self._path).suffix.lower())
            said = f"is {kind}, which is not read here" if kind else (
                "cannot be decoded (it is no image of a kind that is read here, or truncated)")
            raise InputError(self._path, "image", said, _CONVERT if kind else
                             "give a jpg, png, webp, bmp, tif or a whole slide") from error
        except Exception as error:  # Pillow raises whatever a broken header leads to
            compressed = f"of compression {self._plan.compression} " if self._plan else ""
            raise InputError(self._path, "image", f"{compressed}cannot be decoded "
                             f"({str(error) or type(error).__name__})",
                             "it is probably truncated: copy it again from its source") from error
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limit, half

    def whole_px(self, level: int, down: float) -> int:
        """Most pixels of a canvas that is read at once; the image is in memory in any case."""
        return 2**27

    def level_for(self, reduction: float) -> tuple[int, float]:
        return 0, 1.0

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Any:
        if self._image is None:
            self._image = self._decode()
        return self._image.crop((x, y, x + width, y + height))

    def _decode(self) -> Any:
        if self._plan is not None and self._plan.reader == "pages":
            return _on_white(tiff.decode(Path(self._path), self._plan))
        with self._open() as opened:
            deep = opened.format == "PNG" and "16" in str(getattr(opened, "tile", ""))
            image = _on_white(opened)
            _check_header(self._path, opened)
            if image.size != self.size:
                raise InputError(self._path, "image", f"is {self.size} px by its header and "
                                 f"{image.size} px decoded", "save it again")
            if deep and max(high for _, high in image.getextrema()) < 64:
                raise InputError(self._path, "image", "has 16 bits a sample, and which of them are "
                                 "in use cannot be told: the upper two are not",
                                 "save it with 8 bits")
            return image

    def close(self) -> None:
        if not self._in_memory:
            self._image = None


def _check_header(path: str | os.PathLike, opened: Any) -> None:
    """Refuse images that programs show turned, and several in one file."""
    # A png is decoded as a whole by getexif() where its tags do not stand in front.
    known = opened.format != "PNG" or "exif" in opened.info
    orientation = opened.getexif().get(0x0112, 1) if known else 1
    if orientation not in (0, 1):
        raise InputError(path, "Orientation", f"tag says {orientation}: the image is shown turned "
                         "or mirrored by some programs and not by others",
                         "save it upright without that tag")
    # A phone's MPO holds a small second image; a tiff's pages were looked at before.
    frames = getattr(opened, "n_frames", 1) if opened.format not in ("MPO", "TIFF") else 1
    if frames > 1:
        raise InputError(path, "image", f"holds {frames} images", "save the one that is meant")
    if opened.mode == "CMYK" and opened.info.get("icc_profile"):
        raise InputError(path, "image", "is CMYK with a printer's profile", "convert it to RGB")


class _Pyramid:
    """A whole slide read by openslide, level by level."""

    kind = "whole slide"

    def __init__(self, path: Path, openslide: Any):
        self._path, self._openslide, self._handle = path, openslide, None
        self.size = self._slide().dimensions
        if max(self.size) > 2**22:
            raise InputError(path, "slide", f"declares {self.size[0]} x {self.size[1]} px",
                             "no slide is so large: copy it again from its source")

    def _slide(self) -> Any:
        if self._handle is None:
            try:
                self._handle = self._openslide.OpenSlide(str(self._path))
            except self._openslide.OpenSlideUnsupportedFormatError as error:
                kind = _FOREIGN.get(self._path.suffix.lower(), "of a format or compression")
                raise InputError(
                    self._path, "slide", f"is {kind} that openslide "
                    f"{self._openslide.__library_version__} does not read, or truncated",
                    _CONVERT) from error
            except (self._openslide.OpenSlideError, OSError, ValueError) as error:
                raise InputError(self._path, "slide", f"cannot be opened ({error})",
                                 "it is probably truncated: copy it again from its source"
                                 ) from error
        return self._handle

    @property
    def vendor(self) -> str:
        return self._slide().properties.get("openslide.vendor", "")

    @property
    def scanner(self) -> str:
        found = [self.vendor] + [self._slide().properties.get(name, "") for name in SCANNERS]
        return artifacts.one_line(" ".join(dict.fromkeys(filter(None, found))), 80)

    @property
    def mpp(self) -> float | None:
        """The scale that the file states, or None."""
        found = [self._slide().properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if None in found:
            return None
        with reading(self._path, "openslide.mpp-x", "is no number", "pass mpp="):
            across, along = (float(v) for v in found)
        if not (across > 0 and along > 0):
            return None
        return tiff.square(self._path, across, along)

    def whole_px(self, level: int, down: float) -> int:
        """Most pixels of a canvas that is read at once: a mask of lower levels never needs more.

        Bands of a level with a fractional factor do not lie on its raster.
        """
        if level == 0:
            return 2**25
        return 2**27 if down == int(down) else 2**28

    def level_for(self, reduction: float) -> tuple[int, float]:
        slide = self._slide()
        # A hair of tolerance: a factor of 2 must find the level of 2.0005.
        level = slide.get_best_level_for_downsample(max(1.0, reduction * 1.01))
        return level, float(slide.level_downsamples[level])

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Any:
        try:
            return _on_white(self._slide().read_region((x, y), level, (width, height)))
        except (self._openslide.OpenSlideError, OSError, ValueError) as error:
            self.close()  # openslide refuses everything after an error
            raise InputError(self._path, "slide", f"cannot be decoded ({error})",
                             "it is probably truncated: copy it again from its source") from error

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _on_white(image: Any) -> Any:
    """RGB pixels; transparent ones become white, as glass is."""
    if image.mode == "RGB":
        image.load()  # Pillow's context closes the file, the pixels stay
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        from PIL import Image

        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith(("I", "F")) or image.mode == "LAB":
        raise ValueError(f"mode {image.mode} holds no colour of 8 bits: save it so")
    if image.mode in ("RGBa", "La"):
        return _on_white(image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode]))
    return image.convert("RGB")


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
    mpp = None if mpp is None else _scale(path, mpp)
    suffix = path.suffix.lower()
    source: _Plain | _Pyramid
    stated: tuple[float, str] | None = None
    if suffix in WHOLE_SLIDE:
        openslide = _import_openslide(path)
        if openslide.OpenSlide.detect_format(str(path)) is None and path.stat().st_size and (
                tiff.is_tiff(path)):
            source, stated = _open_tiff(path, max_pixels)
        else:
            source = _Pyramid(path, openslide)
    elif suffix in TIFF or tiff.is_tiff(path):
        source, stated = _open_tiff(path, max_pixels)
    else:
        source = _Plain(path, max_pixels=max_pixels)
    if isinstance(source, _Pyramid) and source.vendor != "generic-tiff":
        found = source.mpp
        stated = None if found is None else (found, "openslide.mpp-x")
    if mpp is None:
        mpp = stated[0] if stated else None
    elif stated and abs(mpp / stated[0] - 1) > 0.05:
        raise InputError(path, "mpp", f"is given as {mpp:.4g}, but the file states {stated[0]:.4g} "
                         f"µm per pixel ({stated[1]})", "leave mpp out, or correct the file: a "
                         "resized image keeps its old tag")
    return Slide(source, path, mpp, exclude, dark_background)


def _scale(path: str | os.PathLike, mpp: Any) -> float:
    """`mpp` as a finite number above 0; anything else is refused."""
    try:
        number = math.nan if isinstance(mpp, bool) else float(mpp)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(path, "mpp", f"is {mpp!r}", "state micrometres per pixel, a finite number "
                         "above 0 with a decimal point")
    return number


def _open_tiff(path: Path, max_pixels: int
               ) -> "tuple[_Plain | _Pyramid, tuple[float, str] | None]":
    """A tiff by the reader that gives its right colours, and the scale that it states."""
    openslide, vendor, missing = None, None, None
    try:
        openslide = _import_openslide(path)
    except InputError as error:
        missing = error
    if openslide is not None:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in (None, "generic-tiff"):
            return _Pyramid(path, openslide), None
    plan = tiff.plan(path, known_to_openslide=vendor is not None)
    if missing is not None and plan.several:
        raise missing  # levels, of which Pillow would read the first alone
    if plan.reader == "openslide":
        return _Pyramid(path, openslide), plan.mpp
    return _Plain(path, max_pixels=max_pixels, plan=plan), plan.mpp


def _import_openslide(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: the C library is missing
        raise InputError(path, "slide", "is a whole slide and openslide is not installed",
                         INSTALL_WSI) from error
    return openslide
