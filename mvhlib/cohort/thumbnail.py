"""A section's small image, where squidpy and scanpy look for it."""

import math
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError

if TYPE_CHECKING:
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
