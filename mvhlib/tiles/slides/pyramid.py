"""A whole slide read by openslide, level by level."""

from pathlib import Path
from typing import Any

from mvhlib import artifacts
from mvhlib.artifacts import InputError, reading
from mvhlib.tiles import tiff
from mvhlib.tiles.slides.formats import CONVERT, FOREIGN, on_white

#: Where files say which scanner made them.
SCANNERS = ("aperio.ScanScope ID", "hamamatsu.Product", "leica.device-model",
            "ventana.ScannerModel", "philips.DICOM_MANUFACTURERS_MODEL_NAME")


class Pyramid:
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
                kind = FOREIGN.get(self._path.suffix.lower(), "of a format or compression")
                raise InputError(
                    self._path, "slide", f"is {kind} that openslide "
                    f"{self._openslide.__library_version__} does not read, or truncated",
                    CONVERT) from error
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
            return on_white(self._slide().read_region((x, y), level, (width, height)))
        except (self._openslide.OpenSlideError, OSError, ValueError) as error:
            self.close()  # openslide refuses everything after an error
            raise InputError(self._path, "slide", f"cannot be decoded ({error})",
                             "it is probably truncated: copy it again from its source") from error

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
