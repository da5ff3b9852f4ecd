"""A section's small image, where squidpy and scanpy look for it; and all of them on one sheet."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvhlib.cohort.base import Section

#: Longest side of a thumbnail [px].
MAX_PX = 2000


def attach_thumbnail(section: "Section", max_px: int = MAX_PX) -> None:
    """Put a thumbnail into ``uns["spatial"][section]``; nothing happens if one is there.

    Without an image nothing is added: squidpy then draws points alone.

    Parameters
    ----------
    max_px
        Longest side [px]; never enlarged.

    Raises
    ------
    InputError
        If the image is missing or cannot be decoded, or the width of a spot is none.
    """
    adata = section.adata
    if not section.has_image or section.name in adata.uns.get("spatial", {}):
        return
    with section.slide as slide:
        pixels = slide.thumbnail(max_px)
        scale = pixels.shape[1] / slide.width
    lattice = adata.uns.get("lattice", {})
    spot_um = float(lattice.get("spot_um", 100.0))
    if not (math.isfinite(spot_um) and spot_um > 0):
        raise InputError(section.name, 'uns["lattice"]["spot_um"]', f"is {spot_um}",
                         "state the width of a spot in micrometres, above 0")
    # A section of unknown scale is still drawn, with spots of a size that one can see.
    diameter = spot_um / section.mpp if section.mpp else 0.02 * max(pixels.shape[:2]) / scale
    adata.uns.setdefault("spatial", {})[section.name] = {
        "images": {"hires": np.ascontiguousarray(pixels)},
        "scalefactors": {"tissue_hires_scalef": float(scale),
                         "spot_diameter_fullres": float(diameter)},
        "metadata": {}}


def sheet_height(n: int, n_columns: int = 8) -> float:
    """Height of a figure for the contact sheet of `n` sections [inch]."""
    return 0.45 + 0.98 * -(-n // n_columns)


def contact_sheet(sections: Sequence["Section"], ax: "Axes", *, n_columns: int = 8,
                  side_px: int = 150) -> "Axes":
    """Draw the thumbnail of each section, its name above it, row by row.

    Parameters
    ----------
    sections
        With an image.
    side_px
        Longer side of a thumbnail on the sheet [px].
    """
    from PIL import Image

    pitch, name_px = side_px + 8, 24
    n_rows = -(-len(sections) // n_columns)
    sheet = Image.new("RGB", (n_columns * pitch, n_rows * (pitch + name_px)), "white")
    for number, section in enumerate(sections):
        attach_thumbnail(section)
        pixels = np.asarray(section.adata.uns["spatial"][section.name]["images"]["hires"])
        small = Image.fromarray(pixels if pixels.dtype == np.uint8 else
                                np.rint(255 * pixels).astype(np.uint8))
        small.thumbnail((side_px, side_px))
        x, y = number % n_columns * pitch, number // n_columns * (pitch + name_px)
        sheet.paste(small, (x, y + name_px))
        ax.text(x, y + name_px - 4, section.name[:14], fontsize=6, va="bottom")
    ax.imshow(sheet, interpolation="bilinear")
    ax.set_axis_off()
    return ax
