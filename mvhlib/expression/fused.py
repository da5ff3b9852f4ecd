"""The fused token of a trained MMAP's stage 1, as an encoder of tiles.

A tile is cropped at MMAP's zooms, a backbone reads every view, and the attention that was trained
with expression fuses their tokens; see `mvhlib.expression.mmap`. Where the backbone was frozen,
this fusion (and the spread of the tokens that it divides by) is all that expression has changed;
where it was adapted, its low-rank updates come as well. Prototypes belong to a slide and stay out.

::

    <folder>/
        config.json, model.safetensors   zooms, grid, what was trained and on whom
        backbone/                        what `save_pretrained` wrote of the backbone

`mvhlib.encoders.create_encoder` reads such a folder like any other.
"""

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mvhlib import encoders
from mvhlib.artifacts import InputError, reading
from mvhlib.backbones import sealed
from mvhlib.backbones.backbone import Backbone
from mvhlib.encoders import EvalTransform, PatchEncoder, model_tokens, pool_tokens, seen
from mvhlib.expression.mmap import MMAP, SpotModel, adapted_copies, crop_views

#: Says in ``config.json`` what kind of encoder a folder holds.
KIND = "mmap"
#: A view is no smaller a part of its tile, and has no more fields a side.
_MOST_ZOOM, _MOST_GRID = 64, 64


class FusedToken(nn.Module):
    """Tiles to the fused token of MMAP's stage 1.

    Parameters
    ----------
    backbone
        Gives class and patch tokens.
    transform
        Makes its input of a view.
    spots
        The trained stage 1. Where it holds encoders of its own, `backbone` is not asked.
    zooms, grid
        Views, and fields that patch tokens are averaged over, as in training.
    where
        The file that says so, for errors.
    """

    def __init__(self, backbone: nn.Module, transform: EvalTransform, spots: SpotModel,
                 zooms: tuple[int, ...], grid: int, where: Any = "FusedToken"):
        super().__init__()
        if not all(type(zoom) is int and 0 < zoom <= _MOST_ZOOM for zoom in zooms):
            raise ValueError(f"zooms are {zooms}")
        if type(grid) is not int or not 0 <= grid <= _MOST_GRID:
            raise ValueError(f"grid is {grid!r}")
        self.backbone, self.transform, self.spots = backbone, transform, spots
        self.zooms, self.grid, self.where = zooms, grid, where

    def forward(self, x: Tensor) -> Tensor:
        """Tiles `(B, 3, S, S)` in 0-1 to features `(B, D)`."""
        views = [self.transform.batch(view) for view in crop_views(x, self.zooms)]
        if self.spots.encoders is None:
            views = [pool_tokens(model_tokens(self.backbone, view), self.grid, self.where).float()
                     for view in views]
        return self.spots(views)[1]


def save(estimator: MMAP, folder: str | os.PathLike, encoder: PatchEncoder, grid: int = 0) -> Path:
    """Write the last fit's fused token as an encoder.

    Parameters
    ----------
    folder
        Made if it is not there.
    encoder
        What the tokens were made by, or what was adapted.
    grid
        That of `mvhlib.expression.mmap.token_folder`; 0 for an adapted encoder.

    Raises
    ------
    InputError
        Before `fit`, for one view (nothing is fused), or an encoder that is no backbone of ours.
    """
    if estimator.spot_model is None:
        raise InputError(estimator.name, "model", "is not fitted", "call fit first")
    if len(estimator.zooms) < 2:
        raise InputError(estimator.name, "zooms", f"are {list(estimator.zooms)}: nothing is fused",
                         "train with two views or more")
    if not isinstance(encoder.model, Backbone):
        raise InputError(encoder.enc_name, "encoder", f"is a {type(encoder.model).__name__}, no "
                         "backbone of mvhlib", "build MMAP on one that save_pretrained can write")
    folder = Path(folder)
    before = encoder.pretrained_on
    encoder.model.save_pretrained(folder / "backbone", before)
    adapted = estimator.encoder is not None
    sealed.write(folder, estimator.spot_model.state_dict(), {
        "kind": KIND, "architecture": encoder.model.architecture, "zooms": list(estimator.zooms),
        "grid": grid, "n_genes": len(estimator.genes), "attention": estimator.attention,
        "adapted": [estimator.rank, estimator.alpha, estimator.first_block] if adapted else None,
        # If the base weights' training data are not listed, this list would be incomplete.
        "pretrained_on": None if before is None else seen(before, estimator.trained_on)})
    return folder


def load(folder: Path, config: dict[str, Any], name: str, **options: Any) -> PatchEncoder:
    """Read what `save` wrote; `options` are those of the backbone's directory.

    Raises
    ------
    InputError
        If a file is missing or was altered, or the weights are not those of the configuration.
    """
    again = "copy it again, or run 12_mmap"
    weights, _ = sealed.read(folder, again)
    base = encoders.create_encoder(folder / "backbone", name=name, device="cpu", **options)
    with reading(folder / sealed.CONFIG, "configuration", "does not fit the weights", again):
        zooms, lora = tuple(config["zooms"]), config["adapted"]
        copies = None if lora is None else adapted_copies(base.model, len(zooms), *lora)
        spots = SpotModel(base.model.embed_dim, config["n_genes"], len(zooms), copies,
                          **config["attention"])
        spots.load_state_dict(weights)
        model = FusedToken(base.model, base.eval_transforms, spots, zooms, config["grid"],
                           folder / sealed.CONFIG)
    # The views are resized behind the crop, so that the tile itself is taken as it is.
    return PatchEncoder(
        name, model, EvalTransform(None), base.model.embed_dim, precision=base.precision,
        mpp=base.mpp, min_px=max(base.min_px, *zooms),
        kind=f"fused token of MMAP on {type(base.model).__name__}", config=config,
        identity={"base": base._identity, "transform": repr(base.eval_transforms),
                  "zooms": list(zooms), "grid": config["grid"]})
