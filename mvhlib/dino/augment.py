"""Multi-crop views of H&E tiles as batched tensor operations, on whatever device the tiles are.

The published recipe (Oquab et al. 2023 with the settings of Cho et al. 2025 for H&E): random
resized crops (bicubic, antialiased), horizontal flip, colour jitter, greyscale, Gaussian blur,
normalisation; no solarisation. Rotation by right angles and stain jitter are options.

Every random number is a function of (seed, step, index of the sample in the global batch): the
views of a sample are the same however the batch is divided among processes and micro-batches.

Cropping, resizing and flipping are one product with a matrix for rows and one for columns, and so
is the blur. The matrices hold the weights that Pillow and PyTorch use for antialiased resizing;
the result stays in floating point where a chain of Pillow images would round to bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mvhlib.artifacts import InputError
from mvhlib.training import keyed_generator

#: Luma of ITU-R BT.601, as Pillow's conversion to grey.
LUMA = (0.299, 0.587, 0.114)
#: Optical densities of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
#: Random numbers of one view: area and aspect of ten tries, then one column for each name.
N_TRIES = 10
COLUMNS = ("x", "y", "flip", "flip_down", "turn", "jitter", "order0", "order1", "order2", "order3",
           "brightness", "contrast", "saturation", "hue", "stain", "stain_h", "stain_e", "stain_d",
           "shift_h", "shift_e", "shift_d", "grey", "blur", "sigma")
BLUR_TAPS = 9


@dataclass(frozen=True)
class ViewSettings:
    """How views are made.

    Parameters
    ----------
    global_px, local_px
        Side of a crop after resizing [px].
    n_local
        Local crops per image; there are always two global ones.
    global_scale, local_scale
        Range of the cropped share of the image's area.
    aspect_max
        Aspect ratios are log-uniform in [1 / aspect_max, aspect_max].
    flip
        Probability of a horizontal flip.
    rotate
        Also flip vertically and turn by right angles, all eight orientations equally likely;
        off in the published recipe.
    jitter, brightness, contrast, saturation, hue
        Probability of colour jitter and its strengths.
    stain
        Strength of a jitter of haematoxylin and eosin in optical density (Tellez et al. 2018);
        0, the published recipe, leaves it out.
    grey
        Probability of greyscale.
    blur
        Probabilities for the first global, the second global, and the local crops. Published:
        (0, 0.9, 0.5), which is what the published code does rather than what it says.
    sigma_min, sigma_max
        Range of the blur [px]; the kernel has nine taps.
    """

    global_px: int = 256
    local_px: int = 112
    n_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    aspect_max: float = 4 / 3
    flip: float = 0.5
    rotate: bool = False
    jitter: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    stain: float = 0.0
    grey: float = 0.2
    blur: tuple[float, float, float] = (0.0, 0.9, 0.5)
    sigma_min: float = 0.1
    sigma_max: float = 2.0

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise InputError("views", name, f"is {[low, high]}",
                                 "give shares of the area, 0 < smaller <= larger <= 1")
        for name in ("flip", "jitter", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError("views", name, f"is {getattr(self, name)}",
                                 "give a probability")
        if len(self.blur) != 3 or not all(0 <= p <= 1 for p in self.blur):
            raise InputError("views", "blur", f"is {list(self.blur)}",
                             "give three probabilities: first global, second global, local")
        if not 0 <= self.hue <= 0.5 or not 0 < self.sigma_min <= self.sigma_max:
            raise InputError("views", "hue, sigma", f"are {self.hue}, {self.sigma_min} to "
                             f"{self.sigma_max}", "choose a hue of 0 to 0.5, and sigma above 0 "
                             "with the smaller first")


class MultiCrop:
    """Makes two global and several local views of each image.

    Parameters
    ----------
    settings
        See `ViewSettings`.
    mean, std
        Of the colours [0-1], what the backbone expects.
    dtype
        float32, or float64 for exact comparisons.
    """

    def __init__(self, settings: ViewSettings, mean: Sequence[float], std: Sequence[float],
                 dtype: torch.dtype = torch.float32):
        self.settings, self.dtype = settings, dtype
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, images: Tensor, seed: int, step: int,
                 index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Views of `images`.

        Parameters
        ----------
        images
            `(B, H, W, 3)` uint8, on the device on which the views are wanted.
        seed, step
            The key, together with `index`.
        index
            Position of each image in the global batch, `(B,)`.

        Returns
        -------
        tuple of Tensor
            Global views `(2 B, 3, S, S)` and local views `(V B, 3, s, s)`, normalised, all images'
            first view before all images' second.

        Raises
        ------
        InputError
            If the images are not uint8 `(B, H, W, 3)`.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
            raise InputError("views", "images", f"are {images.dtype} of shape "
                             f"{tuple(images.shape)}", "give uint8 images (B, H, W, 3)")
        chosen = self.settings
        drawn = draw(seed, step, index, 2 + chosen.n_local)  # (B, views, numbers)
        x = images.to(self.dtype).div_(255)
        blur = np.array(chosen.blur)
        first = self._views(x, drawn[:, :2], chosen.global_px, chosen.global_scale, blur[:2])
        local = self._views(x, drawn[:, 2:], chosen.local_px, chosen.local_scale,
                            np.repeat(blur[2], chosen.n_local))
        return first, local

    def _views(self, x: Tensor, drawn: np.ndarray, side: int, scale: tuple[float, float],
               blur: np.ndarray) -> Tensor:
        """One size of views: `(B, H, W, 3)` and numbers `(B, V, n)` to `(V B, 3, side, side)`."""
        chosen, n_views = self.settings, drawn.shape[1]
        if n_views == 0:
            return x.new_empty(0, 3, side, side)
        boxes = crop_boxes(drawn, x.shape[1], x.shape[2], scale, chosen.aspect_max)
        u = {name: drawn[:, :, 2 * N_TRIES + i].T.reshape(-1) for i, name in enumerate(COLUMNS)}
        flip = u["flip"] < (0.5 if chosen.rotate else chosen.flip)
        down = (u["flip_down"] < 0.5) & chosen.rotate
        views = crop(x, boxes, side, flip.reshape(n_views, -1).T, down.reshape(n_views, -1).T)
        turned = torch.from_numpy(np.flatnonzero((u["turn"] < 0.5) & chosen.rotate)).to(x.device)
        if len(turned):
            views[turned] = views[turned].transpose(2, 3)
        if chosen.stain > 0:
            views = stain_jitter(views, u, chosen.stain)
        views = colour_jitter(views, u, chosen)
        views = to_grey(views, u["grey"] < chosen.grey)
        sigma = chosen.sigma_min + u["sigma"] * (chosen.sigma_max - chosen.sigma_min)
        views = gaussian_blur(views, sigma, u["blur"] < np.repeat(blur, len(x)))
        mean, std = (views.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return views.sub_(mean).div_(std)


def draw(seed: int, step: int, index: np.ndarray, n_views: int) -> np.ndarray:
    """Uniform numbers `(B, n_views, 20 + len(COLUMNS))`, a function of (seed, step, index)."""
    size = (n_views, 2 * N_TRIES + len(COLUMNS))
    return np.stack([keyed_generator(seed, step, int(i), stream="augmentation").random(size)
                     for i in index]) if len(index) else np.empty((0, *size))


def crop_boxes(drawn: np.ndarray, height: int, width: int, scale: tuple[float, float],
               aspect_max: float) -> np.ndarray:
    """Boxes (top, left, height, width) of random resized crops, `(B, V, 4)` [px].

    The first of ten draws of area and aspect that fits into the image; where none does, the
    largest centred box whose aspect is allowed (as torchvision's RandomResizedCrop).
    """
    tries = drawn[..., :2 * N_TRIES].reshape(*drawn.shape[:2], N_TRIES, 2)
    area = height * width * (scale[0] + tries[..., 0] * (scale[1] - scale[0]))
    aspect = np.exp((2 * tries[..., 1] - 1) * math.log(aspect_max))  # width / height
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.argmax(axis=2)[..., None]
    w, h = (np.take_along_axis(v, first, 2)[..., 0].astype(int) for v in (w, h))
    # floor(u n) with u < 1 is uniform over the n places where the box can lie.
    place = drawn[..., 2 * N_TRIES:2 * N_TRIES + 2]
    left = np.floor(place[..., 0] * (width - w + 1)).astype(int)
    top = np.floor(place[..., 1] * (height - h + 1)).astype(int)
    h_all = min(height, round(width * aspect_max))
    w_all = min(width, round(height * aspect_max))
    centred = [(height - h_all) // 2, (width - w_all) // 2, h_all, w_all]
    boxes = np.stack([top, left, h, w], axis=-1)
    return np.where(fits.any(axis=2)[..., None], boxes, centred)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, Pillow's bicubic filter."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_matrix(start: Tensor, length: Tensor, reverse: Tensor, size_in: int,
                  size_out: int) -> Tensor:
    """Weights `(..., size_out, size_in)` that resize pixels [start, start + length) to `size_out`.

    Parameters
    ----------
    start, length
        `(...,)` [px].
    reverse
        `(...,)` bool: mirror the result.
    """
    position = torch.arange(size_out, device=start.device, dtype=start.dtype)
    position = torch.where(reverse[..., None], size_out - 1 - position, position)
    scale = (length / size_out)[..., None]
    # Widened to the reduction, so that no source pixel is skipped.
    stretch = scale.clamp(min=1)
    centre = start[..., None] + (position + 0.5) * scale  # (..., size_out)
    n_taps = math.ceil(4 * max(1.0, size_in / size_out)) + 1
    tap = torch.arange(n_taps, device=start.device, dtype=start.dtype)
    pixel = torch.floor(centre - 2 * stretch)[..., None] + tap  # (..., size_out, taps)
    weight = cubic((pixel + 0.5 - centre[..., None]) / stretch[..., None])
    first, end = start[..., None, None], (start + length)[..., None, None]
    weight = weight * ((pixel >= first) & (pixel < end))
    weight = weight / weight.sum(dim=-1, keepdim=True)
    matrix = weight.new_zeros(*centre.shape, size_in)
    return matrix.scatter_add_(-1, pixel.clamp_(0, size_in - 1).long(), weight)


def crop(x: Tensor, boxes: np.ndarray, side: int, flip: np.ndarray, down: np.ndarray) -> Tensor:
    """Cut, resize and flip: `(B, H, W, 3)` and boxes `(B, V, 4)` to `(V B, 3, side, side)`.

    Parameters
    ----------
    flip, down
        `(B, V)` bool: mirror left-right, and top-down.
    """
    n, height, width, _ = x.shape
    n_views = boxes.shape[1]
    top, left, h, w = torch.from_numpy(boxes).to(x.device, x.dtype).unbind(-1)
    flip, down = (torch.from_numpy(np.ascontiguousarray(v)).to(x.device) for v in (flip, down))
    rows = resize_matrix(top, h, down, height, side)    # (B, V, side, H)
    columns = resize_matrix(left, w, flip, width, side)  # (B, V, side, W)
    y = torch.bmm(rows.flatten(1, 2), x.flatten(2))     # (B, V side, H) x (B, H, 3 W)
    y = y.view(n, n_views, side, width, 3).permute(1, 0, 4, 2, 3)  # (V, B, 3, side, W)
    y = y.reshape(n_views * n, 3 * side, width)
    columns = columns.transpose(0, 1).reshape(n_views * n, side, width)
    y = torch.bmm(y, columns.transpose(1, 2))           # (V B, 3 side, side)
    return y.view(-1, 3, side, side).clamp_(0, 1)


def luma(x: Tensor) -> Tensor:
    """Grey `(n, 1, S, S)` of colours `(n, 3, S, S)`."""
    return LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of colours `(n, 3, S, S)` by `shift` `(n, 1, 1)` [turns]."""
    value, least = x.amax(dim=1), x.amin(dim=1)
    chroma = value - least
    r, g, b = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(value == r, (g - b) / safe,
                         torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    sector = sector + 6 * shift
    out = []
    for offset in (5, 3, 1):
        k = torch.remainder(sector + offset, 6)
        out.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(out, dim=1)


def colour_jitter(x: Tensor, u: dict[str, np.ndarray], chosen: ViewSettings) -> Tensor:
    """Brightness, contrast, saturation and hue, in a random order for each view, in place.

    Each of the four is applied to the views whose turn it is, so that a view is touched once by
    each whatever its order.
    """
    touched = u["jitter"] < chosen.jitter
    order = np.stack([u[f"order{i}"] for i in range(4)], axis=1).argsort(axis=1)
    strength = {"brightness": chosen.brightness, "contrast": chosen.contrast,
                "saturation": chosen.saturation, "hue": chosen.hue}
    for turn in range(4):
        for number, (name, most) in enumerate(strength.items()):
            mine = np.flatnonzero(touched & (order[:, turn] == number))
            if not len(mine) or most == 0:
                continue
            factor = (2 * u[name][mine] - 1) * most
            if name != "hue":
                factor = np.maximum(0, 1 + factor)
            factor = torch.from_numpy(factor).to(x.device, x.dtype).view(-1, 1, 1, 1)
            rows = torch.from_numpy(mine).to(x.device)
            x[rows] = _jitter(x[rows], name, factor)
    return x


def _jitter(x: Tensor, name: str, factor: Tensor) -> Tensor:
    if name == "hue":
        return shift_hue(x, factor[:, 0])
    if name == "brightness":
        return (x * factor).clamp_(0, 1)
    grey = luma(x)
    if name == "contrast":
        grey = grey.mean(dim=(1, 2, 3), keepdim=True)
    return (grey + factor * (x - grey)).clamp_(0, 1)


def stain_jitter(x: Tensor, u: dict[str, np.ndarray], strength: float) -> Tensor:
    """Scale and shift the densities of the three stains of every view (Tellez et al. 2018).

    Factors are uniform in 1 ± strength, shifts in ± strength / 10 [optical density].
    """
    to_rgb = x.new_tensor(STAINS)
    to_rgb = to_rgb / to_rgb.norm(dim=1, keepdim=True)
    numbers = np.stack([u[name] for name in ("stain_h", "stain_e", "stain_d", "shift_h", "shift_e",
                                             "shift_d")], axis=1)
    numbers = torch.from_numpy(2 * numbers - 1).to(x.device, x.dtype) * strength
    density = -torch.log(x.clamp(min=1 / 255))  # (n, 3, S, S)
    stains = torch.einsum("ncij,cs->nsij", density, torch.linalg.inv(to_rgb))
    stains = stains * (1 + numbers[:, :3, None, None]) + 0.1 * numbers[:, 3:, None, None]
    return torch.exp(-torch.einsum("nsij,sc->ncij", stains, to_rgb)).clamp_(0, 1)


def to_grey(x: Tensor, chosen: np.ndarray) -> Tensor:
    """Make the chosen views grey, in place."""
    rows = torch.from_numpy(np.flatnonzero(chosen)).to(x.device)
    if len(rows):
        x[rows] = luma(x[rows]).expand(-1, 3, -1, -1)
    return x


@lru_cache(maxsize=16)
def _shifts(side: int) -> np.ndarray:
    """For each tap a matrix that shifts by it, mirrored at the border: `(taps, side, side)`."""
    reach = BLUR_TAPS // 2
    shifts = np.zeros((BLUR_TAPS, side, side))
    for tap in range(BLUR_TAPS):
        source = np.abs(np.arange(side) + tap - reach)
        source = np.where(source >= side, 2 * (side - 1) - source, source)
        shifts[tap, np.arange(side), source] = 1
    return shifts


def gaussian_blur(x: Tensor, sigma: np.ndarray, chosen: np.ndarray) -> Tensor:
    """Blur the chosen views `(n, 3, S, S)` with a Gaussian of nine taps each, in place.

    Parameters
    ----------
    sigma
        `(n,)` [px].
    chosen
        `(n,)` bool.

    Raises
    ------
    InputError
        If the views are smaller than the kernel's reach.
    """
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return x
    side = x.shape[-1]
    if side <= BLUR_TAPS // 2:
        raise InputError("views", "local_px", f"{side} px is too small to blur",
                         f"use crops of at least {BLUR_TAPS // 2 + 1} px")
    taps = np.arange(BLUR_TAPS) - BLUR_TAPS // 2
    kernel = np.exp(-0.5 * (taps / sigma[rows, None])**2)
    kernel = torch.from_numpy(kernel / kernel.sum(axis=1, keepdims=True)).to(x.device, x.dtype)
    shifts = torch.from_numpy(_shifts(side)).to(x.device, x.dtype)
    matrix = torch.einsum("nt,tij->nij", kernel, shifts)  # (n, S, S)
    index = torch.from_numpy(rows).to(x.device)
    y = x[index].flatten(1, 2)                            # (n, 3 S, S)
    y = torch.bmm(y, matrix.transpose(1, 2)).view(len(rows), 3, side, side)  # columns
    y = torch.matmul(matrix[:, None], y)                  # rows
    x[index] = y
    return x
