"""Formats of image files, advice for those that cannot be read, and the stated scale."""

import math
import os
from pathlib import Path
from typing import Any

from mvhlib.artifacts import InputError

#: Formats that only openslide reads; tiff is tried with it first and with Pillow after.
WHOLE_SLIDE = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm")
TIFF = (".tif", ".tiff", ".btf")  # a BigTIFF, as 10x calls its images
INSTALL_WSI = 'pip install "mvhlib[wsi]"'

#: Formats by the first bytes or the ending, which no reader here knows.
FOREIGN = {".czi": "a Zeiss CZI file", ".dcm": "a DICOM file", ".lif": "a Leica LIF file",
           ".nd2": "a Nikon ND2 file", ".vsi": "an Olympus VSI file", ".oir": "an Olympus file",
           ".oib": "an Olympus file", ".ims": "an Imaris file", ".jxl": "a JPEG XL file",
           ".isyntax": "a Philips iSyntax file", ".i2syntax": "a Philips iSyntax file",
           ".pdf": "a PDF", ".eps": "PostScript", ".ps": "PostScript", ".svg": "a drawing",
           ".psd": "a Photoshop file", ".heic": "a HEIC file", ".xcf": "a GIMP file",
           ".kfb": "a KFBIO file", ".sdpc": "an SDPC file", ".qptiff": "an Akoya file"}
CONVERT = ("convert it to a pyramidal tiff in RGB, for example by bfconvert (Bio-Formats), QuPath "
           "or vips")


def on_white(image: Any) -> Any:
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
        return on_white(image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode]))
    return image.convert("RGB")


def scale_of(path: str | os.PathLike, mpp: Any) -> float:
    """`mpp` as a finite number above 0; anything else is refused."""
    try:
        number = math.nan if isinstance(mpp, bool) else float(mpp)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(path, "mpp", f"is {mpp!r}", "state micrometres per pixel, a finite number "
                         "above 0 with a decimal point")
    return number


def import_openslide(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: the C library is missing
        raise InputError(path, "slide", "is a whole slide and openslide is not installed",
                         INSTALL_WSI) from error
    return openslide
