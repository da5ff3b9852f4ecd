"""An image that is decoded as a whole, at the first read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError
from mvhlib.tiles import tiff
from mvhlib.tiles.slides.formats import CONVERT, FOREIGN, on_white

#: Most pixels of an image that is decoded as a whole, at 4 bytes each; a pyramid has no such bound.
MAX_PIXELS = 1_000_000_000

#: Formats that Pillow reads; it knows others, some of which start programs.
PLAIN = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "DIB", "JPEG2000", "AVIF", "PPM", "GIF",
         "TGA")

#: What each format may gain by compression, in pixels' bytes per byte of the file.
_PACKED = {"PNG": 1_100, "JPEG": 5_000, "MPO": 5_000, "BMP": 300, "PPM": 10, "TGA": 300}


class Plain:
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
            kind = FOREIGN.get(Path(self._path).suffix.lower())
            said = f"is {kind}, which is not read here" if kind else (
                "cannot be decoded (it is no image of a kind that is read here, or truncated)")
            raise InputError(self._path, "image", said, CONVERT if kind else
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
            return on_white(tiff.decode(Path(self._path), self._plan))
        with self._open() as opened:
            deep = opened.format == "PNG" and "16" in str(getattr(opened, "tile", ""))
            image = on_white(opened)
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
