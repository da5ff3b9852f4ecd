"""Content of a tiff, the reader that gives its right colours, and the scale in its tags.

A tiff is a container. Colours may be interleaved, in planes of one page or on pages of their own;
samples have 1 to 64 bits; pages may be levels, depths, times, channels or a label. Readers take
the first page and show something in any case, so the tags are read before any pixel is believed.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mvhlib.artifacts import InputError, reading

CONVERT = ("convert it to 8-bit RGB, for example by: vips tiffsave IN OUT.tif --tile --pyramid "
           "--compression jpeg")

#: Compressions that openslide's libtiff and Pillow's decode; others go to imagecodecs.
_OPENSLIDE = {1, 5, 7, 8, 32773, 32946, 50000}
_PILLOW = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}

#: Names of compressions for errors, where tifffile's own are terse.
_NAMES = {33003: "JPEG 2000 (Aperio)", 33005: "JPEG 2000 (Aperio)", 34712: "JPEG 2000",
          50002: "JPEG XL", 52546: "JPEG XL (DNG)", 34887: "LERC", 50001: "WebP", 6: "old JPEG"}

_GREY, _RGB, _PALETTE, _CMYK, _YCBCR = (0, 1), 2, 3, 5, 6
_KINDS = {8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 4: "a transparency mask",
          32803: "a camera's raw mosaic", 34892: "a camera's linear raw"}

#: Resolutions that programs write without having measured anything [pixels per inch].
_DPI = (72, 75, 90, 96, 100, 120, 144, 150, 160, 180, 200, 240, 250, 300, 350, 360, 400, 600, 720,
        800, 900, 1000, 1200)
_SCANNER_DPI = (1440, 2400, 4800, 9600)

_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
          "micrometre": 1.0, "\\u00b5m": 1.0, "nm": 1e-3, "nanometer": 1e-3, "mm": 1e3,
          "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6, "in": 25400.0,
          "inch": 25400.0, "Å": 1e-4, "pm": 1e-6}

#: Names of channels that say nothing, or that they are colours.
_COLOURS = {"red": 0, "r": 0, "green": 1, "g": 1, "blue": 2, "b": 2}
_NAMELESS = re.compile(r"(c|ch|chan|channel|plane)?[\s:_-]*\d*([:_-]\d+)*", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """How a tiff is read.

    Attributes
    ----------
    reader
        ``"openslide"``, ``"pillow"`` or ``"pages"`` (`decode`).
    size
        Width and height of the first page [px].
    planes
        Pages that hold red, green and blue; the first alone where a page holds all three.
    bits
        Bits of a sample that the file says are in use, or None.
    mpp
        Scale [µm/px] and the tag that states it, or None.
    compression
        Its name.
    several
        True where the file has more pages than the planes.
    """

    reader: str
    size: tuple[int, int]
    planes: tuple[int, ...]
    bits: int | None
    mpp: tuple[float, str] | None
    compression: str
    several: bool


def is_tiff(path: Path) -> bool:
    """True where the first bytes are those of a tiff or a BigTIFF."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    return head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def plan(path: Path, known_to_openslide: bool) -> Plan:
    """Read the tags of a tiff and choose its reader.

    Raises
    ------
    InputError
        If the tags are broken, or the file holds anything but one image in colour or grey.
    """
    import tifffile

    with reading(path, "tiff", fix="it is probably truncated: copy it again from its source"):
        with tifffile.TiffFile(path, _multifile=False) as tif:
            if not len(tif.pages):
                raise InputError(path, "tiff", "holds no page",
                                 "it is probably truncated: copy it again from its source")
            first = tif.pages[0]
            _check_segments_named(path, first)
            description = first.description or ""
            ome = _ome(path, description)
            _check_samples(path, first)
            same, several = _other_pages(path, tif)
            planes = _planes(path, first, description, ome, same)
            scale = _scale(path, first, description, ome)
            bits = _stated_bits(first, ome)
            reader = _reader(path, first, planes, known_to_openslide)
            return Plan(reader, (int(first.imagewidth), int(first.imagelength)), planes, bits,
                        scale, _compression(first), several and len(planes) == 1)


def _compression(page: Any) -> str:
    number = int(page.compression)
    return _NAMES.get(number, getattr(page.compression, "name", str(number)).replace("_", " "))


def _check_samples(path: Path, page: Any) -> None:
    """Refuse what cannot be shown in 8 bits of red, green and blue without guessing."""
    if not (0 < page.imagewidth and 0 < page.imagelength) or page.imagedepth > 1:
        raise InputError(path, "tiff", f"is {page.imagewidth} x {page.imagelength} x "
                         f"{page.imagedepth} px", "save one plane of it")
    orientation = page.tags.valueof(274, 1)
    if orientation not in (0, 1, None):
        raise InputError(path, "Orientation", f"tag says {orientation}: the image is shown turned "
                         "or mirrored by some programs and not by others",
                         "save it upright without that tag")
    photometric = int(page.photometric)
    bits = page.bitspersample
    bits = max(bits) if isinstance(bits, tuple) else int(bits)
    if int(page.sampleformat) not in (1, 4):
        kind = {2: "signed", 3: "float"}.get(int(page.sampleformat), "complex")
        raise InputError(path, "samples", f"are {kind} numbers of {bits} bits, no colours", CONVERT)
    if photometric not in (*_GREY, _RGB, _PALETTE, _CMYK, _YCBCR):
        raise InputError(path, "colours", f"are {_KINDS.get(photometric, photometric)}", CONVERT)
    if bits not in (1, 2, 4, 8) and not (bits == 16 and photometric in (*_GREY, _RGB)):
        raise InputError(path, "samples", f"have {bits} bits", CONVERT)
    samples = int(page.samplesperpixel)
    wanted = {_RGB: (3, 4), _CMYK: (4,), _YCBCR: (3,)}.get(photometric, (1, 2))
    if photometric in _GREY and samples == 3:
        raise InputError(path, "channels", "are three and the file does not call them colours",
                         CONVERT)
    if samples not in wanted:
        raise InputError(path, "channels", f"are {samples}; H&E has red, green and blue, so this "
                         "looks like fluorescence", "give the H&E image of this section")
    if photometric == _CMYK and 34675 in page.tags:
        raise InputError(path, "colours", "are CMYK with a printer's profile", CONVERT)


def _other_pages(path: Path, tif: Any) -> tuple[list[int], bool]:
    """Pages of the first one's size, and whether there are others; levels and masks are none."""
    first, same, others = tif.pages[0], [], 0
    for number in range(1, len(tif.pages)):
        page = tif.pages[number]
        kind = int(page.subfiletype or 0)
        size = (page.imagewidth, page.imagelength)
        if kind & 4:
            continue
        others += 1
        if size == (first.imagewidth, first.imagelength) and not kind & 1:
            same.append(number)
        elif size[0] > first.imagewidth and size[1] > first.imagelength:
            raise InputError(path, "pages", f"page {number + 1} ({size[0]} x {size[1]} px) is "
                             "larger than the first one", "save the image that is meant alone")
    return same, bool(others)


def _planes(path: Path, page: Any, description: str, ome: dict[str, Any] | None,
            same: list[int]) -> tuple[int, ...]:
    """The page, or the three pages, that hold red, green and blue."""
    axes = _sizes(description, ome)
    for axis, name in (("Z", "depths"), ("T", "times")):
        if axes.get(axis, 1) > 1:
            raise InputError(path, "pages", f"are {axes[axis]} {name}, and one image is needed",
                             "save the plane that is meant alone")
    grey = int(page.samplesperpixel) < 3
    channels = axes.get("C", 1 if grey else int(page.samplesperpixel))
    if channels > (3 if grey else 4) or (grey and channels == 2):
        raise InputError(path, "channels", f"are {channels}; H&E has red, green and blue, so this "
                         "looks like fluorescence", "give the H&E image of this section")
    if ome and ome["fluorescent"]:
        raise InputError(path, "channels", f"are fluorescence ({ome['fluorescent']})",
                         "give the H&E image of this section")
    if not same:
        if grey and channels == 3:
            raise InputError(path, "pages", "are fewer than the three channels that the file "
                             "declares", CONVERT)
        return (0,)
    pages = [0, *same]
    if not (grey and channels == 3 and len(pages) == 3):
        what = "grey pages" if grey else "pages"
        raise InputError(path, "pages", f"are {len(pages)} {what} of one size, and the file does "
                         "not say that they are red, green and blue", "save the image that is "
                         "meant alone, as one page in RGB")
    order = ome["order"] if ome else (0, 1, 2)
    return tuple(pages[number] for number in order)


def _sizes(description: str, ome: dict[str, Any] | None) -> dict[str, int]:
    """Lengths of the axes Z, T and C as OME, ImageJ or tifffile describe them."""
    if ome:
        return ome["sizes"]
    if description.startswith("ImageJ="):
        facts = _imagej(description)
        names = {"slices": "Z", "frames": "T", "channels": "C"}
        found = {axis: int(facts[name]) for name, axis in names.items()
                 if facts.get(name, "").isdigit()}
        images = int(facts["images"]) if facts.get("images", "").isdigit() else 1
        if images > 1 and math.prod(found.values()) == 1:
            found["Z"] = images
        return found
    if description.startswith("{") and '"shape"' in description:
        try:
            facts = json.loads(description)
            sizes = dict(zip(str(facts["axes"]).upper(), facts["shape"], strict=True))
            return {axis: int(sizes[axis]) for axis in "ZTC" if axis in sizes}
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
    return {}


def _imagej(description: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in
            (line.partition("=") for line in description.splitlines()) if value}


def _ome(path: Path, description: str) -> dict[str, Any] | None:
    """What OME-XML says of the first image; None where there is none."""
    if "<OME" not in description[:2000] or "<Pixels" not in description:
        return None
    if "<!ENTITY" in description or "<!DOCTYPE" in description:
        raise InputError(path, "OME-XML", "declares entities", "save the file again")
    with reading(path, "OME-XML", "cannot be read", "save the file again"):
        root = ElementTree.fromstring(description.strip().encode())
        pixels = next(node for node in root.iter() if _tag(node) == "Pixels")
        channels = [node for node in pixels if _tag(node) == "Channel"]
        data = [node for node in pixels if _tag(node) == "TiffData"]
        sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "ZTC"}
        names = [(node.get("Name") or "").strip() for node in channels]
        order = (0, 1, 2)
        for node in data:
            for uuid in node:
                name = uuid.get("FileName")
                if name and name != path.name and len(data) > 1:
                    raise InputError(path, "OME-XML", f"says that some planes lie in {name}",
                                     "save all planes in one file")
        lowered = [name.lower() for name in names]
        glowing = [name or "channel" for name, node in zip(names, channels, strict=True)
                   if node.get("Fluor") or node.get("EmissionWavelength")
                   or "luorescence" in (node.get("ContrastMethod") or "")
                   or node.get("IlluminationType") == "Epifluorescence"]
        if len(names) == 3 and set(lowered) <= set(_COLOURS):
            order = tuple(int(v) for v in np.argsort([_COLOURS[name] for name in lowered]))
            if sorted(_COLOURS[name] for name in lowered) != [0, 1, 2]:
                raise InputError(path, "channels", f"are named {names}", "name red, green, blue")
        elif len(names) > 1 and not all(_NAMELESS.fullmatch(name) for name in names):
            glowing = glowing or [", ".join(names[:5])]
        where = [(int(node.get("FirstC", 0)), int(node.get("IFD", 0))) for node in data]
        if len(where) == 3 and sorted(c for c, _ in where) == [0, 1, 2] and order == (0, 1, 2):
            ranks = {ifd: rank for rank, ifd in enumerate(sorted(ifd for _, ifd in where))}
            if len(ranks) == 3:
                order = tuple(ranks[ifd] for _, ifd in sorted(where))
        bits = pixels.get("SignificantBits")
        return {"sizes": sizes, "order": order, "fluorescent": ", ".join(glowing),
                "bits": int(bits) if bits else None,
                "size": [(pixels.get(f"PhysicalSize{axis}"),
                          pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]}


def _tag(node: Any) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _stated_bits(page: Any, ome: dict[str, Any] | None) -> int | None:
    """Bits in use as OME's SignificantBits or the tag MaxSampleValue say."""
    if ome and ome["bits"]:
        return ome["bits"]
    most = page.tags.valueof(281)
    if most is None:
        return None
    most = int(np.max(most))
    return max(1, most.bit_length()) if most > 0 else None


def _reader(path: Path, page: Any, planes: tuple[int, ...], known: bool) -> str:
    bits = page.bitspersample
    bits = max(bits) if isinstance(bits, tuple) else int(bits)
    photometric, number = int(page.photometric), int(page.compression)
    samples = int(page.samplesperpixel)
    unnamed = photometric == _RGB and samples == 4 and (
        not page.extrasamples or int(page.extrasamples[0]) == 0)
    if len(planes) == 1 and bits <= 8:
        if known and bits == 8 and number in _OPENSLIDE and not unnamed:
            return "openslide"
        if number in _PILLOW and not (unnamed and int(page.planarconfig) != 1):
            return "pillow"
    if bits == 16 and photometric in _GREY and len(planes) == 1:
        raise InputError(path, "samples", "are grey of 16 bits, and colours are needed", CONVERT)
    if bits not in (8, 16) or photometric not in (_RGB, 1):
        raise InputError(path, "compression", f"{_compression(page)} with these colours cannot be "
                         "decoded", CONVERT)
    return "pages"


def decode(path: Path, how: Plan) -> Any:
    """Pixels of a tiff whose reader is ``"pages"``, as a Pillow image in RGB.

    Sixteen bits become eight by leaving out the lower ones of those in use: what the tags
    SignificantBits or MaxSampleValue say, else the fewest of 8, 10, 12, 14 and 16 that hold the
    largest value of the whole image. A largest value below half of 10, 12 or 14 bits leaves it open
    and is refused.
    """
    import tifffile
    from PIL import Image

    with reading(path, "compression", f"{how.compression} cannot be decoded here", CONVERT):
        with tifffile.TiffFile(path, _multifile=False) as tif:
            extra = tif.pages[0].extrasamples
            parts = []
            for number in how.planes:
                page = tif.pages[number]
                _check_segments(path, page)
                part = page.asarray(maxworkers=1)
                if part.ndim == 3 and int(page.planarconfig) == 2:
                    part = np.moveaxis(part, 0, -1)  # (S, H, W) -> (H, W, S)
                parts.append(part)
        pixels = parts[0] if len(parts) == 1 else np.stack(parts, axis=-1)
        if pixels.ndim == 2:
            pixels = np.stack([pixels] * 3, axis=-1)
        if pixels.shape[:2] != how.size[::-1] or pixels.shape[2] not in (3, 4):
            raise InputError(path, "tiff", f"decodes to shape {pixels.shape}, its tags say "
                             f"{how.size[0]} x {how.size[1]} px", CONVERT)
        if pixels.dtype == np.uint16:
            pixels = _eight_bits(path, pixels, how.bits)
        if pixels.dtype != np.uint8:
            raise InputError(path, "samples", f"are {pixels.dtype}", CONVERT)
        if len(parts) == 3 and np.median(pixels[::16, ::16].max(axis=-1)) < 50:
            raise InputError(path, "channels", "are dark over most of the image, as fluorescence "
                             "is", "give the H&E image of this section")
        if pixels.shape[2] == 4 and extra and int(extra[0]) in (1, 2):
            mode = "RGBa" if int(extra[0]) == 1 else "RGBA"
            return Image.frombuffer(mode, how.size, pixels.tobytes()).convert("RGBA")
        return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def check_size(path: Path) -> None:
    """Refuse a tiff whose first page declares more than its strips or tiles can fill.

    Raises
    ------
    InputError
        If that is so, or the tags cannot be read.
    """
    import tifffile

    with reading(path, "tiff", fix="it is probably truncated: copy it again from its source"):
        with tifffile.TiffFile(path, _multifile=False) as tif:
            if len(tif.pages):
                _check_segments_named(path, tif.pages[0])


def _check_segments_named(path: Path, page: Any) -> None:
    """Refuse a page that does not name one strip or tile for each part of its declared size."""
    wanted = math.prod(page.chunked)
    if len(page.dataoffsets) < wanted:
        raise InputError(path, "tiff", f"declares {page.imagewidth} x {page.imagelength} px and "
                         f"names {len(page.dataoffsets)} of its {wanted} strips or tiles",
                         "it is probably damaged: copy it again from its source")


def _check_segments(path: Path, page: Any) -> None:
    """Refuse a page whose strips or tiles are not all in the file: they would come out black."""
    end = path.stat().st_size
    whole = sum(count > 0 and offset + count <= end for offset, count in
                zip(page.dataoffsets, page.databytecounts, strict=False))
    wanted = math.prod(page.chunked)
    if whole < wanted:
        raise InputError(path, "tiff", f"lacks {wanted - whole} of its {wanted} strips or tiles",
                         "it is probably truncated: copy it again from its source")


def _eight_bits(path: Path, pixels: np.ndarray, bits: int | None) -> np.ndarray:
    most = int(pixels.max())
    if bits is None or most >= 2**bits:
        bits = next(n for n in (8, 10, 12, 14, 16) if most < 2**n)
        if 8 < bits < 16 and most < 2 ** (bits - 1):
            raise InputError(path, "samples", f"of 16 bits reach {most}, which tells not how many "
                             "bits are in use", CONVERT)
    if bits <= 8:
        return (pixels << (8 - bits)).astype(np.uint8) if bits < 8 else pixels.astype(np.uint8)
    return (pixels >> (bits - 8)).astype(np.uint8)


def _scale(path: Path, page: Any, description: str, ome: dict[str, Any] | None
           ) -> tuple[float, str] | None:
    """Scale that a tiff states [µm/px] with the tag that does, or None.

    OME's PhysicalSize, ImageJ's unit, Aperio's MPP, then the resolution tags. Resolutions that
    programs write by themselves (72, 96, 300 dpi and the like) are no scale.
    """
    stated = None
    if ome:
        (x, x_unit), (y, y_unit) = ome["size"]
        if x is not None:
            found = [_micrometres(path, x, x_unit), _micrometres(path, y or x, y_unit)]
            if None not in found:
                stated = (*found, "PhysicalSizeX")
    elif description.startswith("ImageJ="):
        unit = _UNITS.get(_imagej(description).get("unit", "").replace("\\u00B5", "µ"))
        found = [_ratio(page.tags.valueof(tag)) for tag in (282, 283)]
        if unit and unit < 25400 and None not in found:  # inches are dots per inch
            stated = (unit / found[0], unit / found[1], "ImageJ unit and resolution")
    elif description.startswith("Aperio") and (match := re.search(r"MPP = ([^|\s]+)", description)):
        value = _micrometres(path, match[1].replace(",", "."), "µm")
        stated = None if value is None else (value, value, "MPP")
    if stated is not None and _is_dpi(stated[0]):
        stated = None
    by_tags = resolution(page)
    if stated is None and by_tags is not None:
        stated = (*by_tags, "resolution tags")
    if stated is None:
        return None
    mpp = square(path, stated[0], stated[1])
    if by_tags is not None and abs(by_tags[0] / mpp - 1) > 0.05:
        raise InputError(path, "mpp", f"is {mpp:.4g} µm per pixel by {stated[2]} and "
                         f"{by_tags[0]:.4g} by the resolution tags",
                         "correct the one that is wrong")
    return mpp, stated[2]


def square(path: Any, across: float, along: float) -> float:
    """One scale of pixels that are square within 2 %; others are refused."""
    if abs(across - along) > 0.02 * across:
        raise InputError(path, "mpp", f"pixels are not square ({across:.4g} x {along:.4g} µm)",
                         "resample the image to square pixels")
    return (across + along) / 2


def _micrometres(path: Path, value: str, unit: str) -> float | None:
    """A physical size in µm; None where its unit is no length."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(path, "mpp", f"the file states {value!r} as the size of a pixel",
                         "correct that tag: a finite number above 0, with a decimal point")
    factor = _UNITS.get(unit.strip())
    return None if factor is None else number * factor


def _ratio(value: Any) -> float | None:
    """A resolution tag as a number above 0, or None."""
    try:
        found = value[0] / value[1] if isinstance(value, tuple) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return None
    return found if math.isfinite(found) and found > 0 else None


def resolution(page: Any) -> tuple[float, float] | None:
    """Size of a pixel by the resolution tags (µm along x, along y), where they can be a scale.

    Between 0.05 and 20 µm where the unit is the centimetre, up to 5 µm where it is the inch; never
    a round number of dots per inch.
    """
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, 2) or 0))
    across, along = (_ratio(page.tags.valueof(tag)) for tag in (282, 283))
    if unit is None or across is None or along is None:
        return None
    x, y = unit / across, unit / along
    if not 0.05 <= x <= (20 if unit == 10000 else 5) or _is_dpi(x, _DPI + _SCANNER_DPI):
        return None
    return x, y


def _is_dpi(mpp: float, numbers: tuple[int, ...] = _DPI) -> bool:
    return any(abs(25400 / mpp / dpi - 1) < 2e-3 for dpi in numbers)
