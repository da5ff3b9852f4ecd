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

from mvhlib.artifacts import InputError

#: Formats that only openslide reads; tiff is tried with it first and with Pillow after.
WHOLE_SLIDE = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm")
TIFF = (".tif", ".tiff")
INSTALL_WSI = 'pip install "mvhlib[wsi]"'

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
        self.mpp = None if mpp is None else float(mpp)
        self.exclude = tuple(tuple(int(v) for v in box) for box in exclude)
        self.dark_background = bool(dark_background)
        self._black: np.ndarray | None = None
        if self.mpp is not None and not (math.isfinite(self.mpp) and self.mpp > 0):
            raise InputError(path, "mpp", f"is {mpp}", "state micrometres per pixel, above 0")
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
        """Paste the part inside the image on white, clean it, resample it to `out_px`."""
        from PIL import Image

        reduction = min(width / out_px[0], height / out_px[1])
        level, down = self._source.level_for(reduction)
        # The canvas is the rectangle in pixels of that level, grown to whole level-0 pixels so
        # that the fractional rest is left to the filter, which takes a fractional box.
        x0, y0 = math.floor(x), math.floor(y)
        columns = max(1, math.ceil((x + width - x0) / down))
        rows = max(1, math.ceil((y + height - y0) / down))
        canvas = Image.new("RGB", (columns, rows), (255, 255, 255))
        left, top = max(0, -x0), max(0, -y0)
        # Whole level pixels of padding keep the pasted part on the canvas' raster.
        left, top = math.ceil(left / down), math.ceil(top / down)
        inside_x, inside_y = x0 + int(round(left * down)), y0 + int(round(top * down))
        part_w = min(columns - left, math.ceil((self.width - inside_x) / down))
        part_h = min(rows - top, math.ceil((self.height - inside_y) / down))
        if part_w > 0 and part_h > 0 and inside_x < self.width and inside_y < self.height:
            part = self._source.read(inside_x, inside_y, level, part_w, part_h)
            canvas.paste(part, (left, top))
        if clean:
            canvas = self._clean(canvas, x0, y0, down)
        box = ((x - x0) / down, (y - y0) / down,
               min(columns, (x - x0 + width) / down), min(rows, (y - y0 + height) / down))
        if box == (0, 0, *out_px) and canvas.size == out_px:
            return np.asarray(canvas).copy()
        shrinks = (box[2] - box[0]) > out_px[0] or (box[3] - box[1]) > out_px[1]
        method = Image.Resampling.BILINEAR if shrinks else Image.Resampling.BICUBIC
        return np.asarray(canvas.resize(out_px, method, box=box)).copy()

    def _clean(self, canvas: Any, x0: int, y0: int, down: float) -> Any:
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
    """An image that Pillow decodes as a whole, at the first read."""

    kind = "plain image"

    def __init__(self, path: str | os.PathLike, image: Any = None):
        self._path, self._image, self._in_memory = path, image, image is not None
        if image is not None:
            self.size = image.size
        else:
            with self._open() as opened:
                self.size = opened.size

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Open without Pillow's pixel limit, which a section at full resolution passes."""
        from PIL import Image

        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(self._path) as opened:
                yield opened
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(self._path, "image", f"cannot be decoded ({error})",
                             "it is probably truncated: copy it again from its source") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def level_for(self, reduction: float) -> tuple[int, float]:
        return 0, 1.0

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Any:
        if self._image is None:
            with self._open() as opened:
                self._image = _on_white(opened)
        return self._image.crop((x, y, x + width, y + height))

    def close(self) -> None:
        if not self._in_memory:
            self._image = None


class _Pyramid:
    """A whole slide read by openslide, level by level."""

    kind = "whole slide"

    def __init__(self, path: Path, openslide: Any):
        self._path, self._openslide, self._handle = path, openslide, None
        self.size = self._slide().dimensions

    def _slide(self) -> Any:
        if self._handle is None:
            try:
                self._handle = self._openslide.OpenSlide(str(self._path))
            except self._openslide.OpenSlideError as error:
                raise InputError(self._path, "slide", f"cannot be opened ({error})",
                                 "it is probably truncated: copy it again from its source"
                                 ) from error
        return self._handle

    @property
    def mpp(self) -> float | None:
        """The scale that the file states, or None."""
        found = [self._slide().properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if None in found:
            return None
        across, along = (float(v) for v in found)
        if not (across > 0 and along > 0):
            return None
        if abs(across - along) > 0.02 * across:
            raise InputError(self._path, "mpp", f"pixels are not square ({across} x {along} µm)",
                             "state mpp= and resample the slide")
        return (across + along) / 2

    def level_for(self, reduction: float) -> tuple[int, float]:
        slide = self._slide()
        # A hair of tolerance: a factor of 2 must find the level of 2.0005.
        level = slide.get_best_level_for_downsample(max(1.0, reduction * 1.01))
        return level, float(slide.level_downsamples[level])

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Any:
        try:
            return _on_white(self._slide().read_region((x, y), level, (width, height)))
        except self._openslide.OpenSlideError as error:
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
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} holds no 8-bit colour")
    return image.convert("RGB")


def open_slide(path: str | os.PathLike, mpp: float | None = None,
               exclude: Iterable[tuple[int, int, int, int]] = (),
               dark_background: bool = False) -> Slide:
    """Open an image file of any kind; pixels are decoded when they are asked for.

    Parameters
    ----------
    path
        A plain image (jpg, png, webp, bmp, tif) or a whole slide that openslide knows.
    mpp
        Micrometres per level-0 pixel [µm/px]. None takes what a whole slide states; a plain image
        states nothing that can be trusted, so its scale stays unknown.
    exclude, dark_background
        As in `Slide`.

    Returns
    -------
    Slide

    Raises
    ------
    InputError
        If the file is missing, cannot be decoded, or needs openslide and that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "image", "does not exist", "check the path")
    suffix = path.suffix.lower()
    source: _Plain | _Pyramid
    if suffix in WHOLE_SLIDE:
        source = _Pyramid(path, _import_openslide(path))
    elif suffix in TIFF:
        source = _open_tiff(path)
    else:
        source = _Plain(path)
    if mpp is None and isinstance(source, _Pyramid):
        mpp = source.mpp
    return Slide(source, path, mpp, exclude, dark_background)


def _open_tiff(path: Path) -> "_Plain | _Pyramid":
    """A tiff that openslide knows is read with it; others are plain images."""
    try:
        openslide = _import_openslide(path)
    except InputError:
        plain = _Plain(path)
        with plain._open() as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise
        return plain
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return _Plain(path)
    return _Pyramid(path, openslide)


def _import_openslide(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: the C library is missing
        raise InputError(path, "slide", "is a whole slide and openslide is not installed",
                         INSTALL_WSI) from error
    return openslide
