"""Reduced pictures of a slide: the one that an h5ad holds, or the patches put together."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.cohort.hest.patches import Patches

if TYPE_CHECKING:
    from anndata import AnnData

#: Longest side of the picture that patches are put together to [px].
MOSAIC_PX = 2000


def stored_picture(stored: "AnnData", path: Path) -> tuple[np.ndarray, float] | None:
    """The reduced slide that HEST's h5ad holds, with its scale."""
    for entry in dict(stored.uns.get("spatial", {})).values():
        for key, pixels in dict(entry.get("images", {})).items():
            scale = entry.get("scalefactors", {}).get(f"tissue_{key}_scalef")
            pixels = np.asarray(pixels)
            if scale is None or pixels.ndim != 3 or pixels.shape[2] < 3:
                continue
            if pixels.dtype.kind not in "uif" or pixels.size == 0 or not np.isfinite(pixels).all():
                raise InputError(path, f'uns["spatial"] {key}', f"is {pixels.dtype} of shape "
                                 f"{pixels.shape}, or holds NaN", "delete it, or fetch it again")
            if isinstance(scale, str) or not 0 < float(scale) <= 1.5:
                raise InputError(path, f"tissue_{key}_scalef", f"is {scale!r}",
                                 "delete the picture, or fetch the file again")
            pixels = pixels[..., :3]
            if pixels.dtype != np.uint8:
                pixels = np.clip(np.rint(pixels * (255 if pixels.max() <= 1 else 1)), 0, 255)
            step = max(1, -(-max(pixels.shape[:2]) // MOSAIC_PX))
            return (np.ascontiguousarray(pixels[::step, ::step].astype(np.uint8)),
                    float(scale) / step)
    return None


def mosaic(cut: Patches, corners: np.ndarray, side: float,
           size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The slide as far as patches cover it, reduced; white elsewhere."""
    from PIL import Image

    scale = min(1.0, MOSAIC_PX / max(size))
    px = max(1, round(side * scale))
    canvas = np.full((max(px, round(size[1] * scale)), max(px, round(size[0] * scale)), 3), 255,
                     dtype=np.uint8)
    height, width = canvas.shape[:2]
    for start in range(0, len(corners), 256):
        for corner, pixels in zip(corners[start:start + 256], cut.img[start:start + 256],
                                  strict=True):
            small = np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BOX))
            x, y = (int(round(value * scale)) for value in corner)
            left, top = max(0, -x), max(0, -y)
            right, bottom = min(px, width - x), min(px, height - y)
            if right > left and bottom > top:
                canvas[y + top:y + bottom, x + left:x + right] = small[top:bottom, left:right]
    return canvas, scale
