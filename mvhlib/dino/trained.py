"""Checks of finished pretrainings: initial weights that remain, and use of the states."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError, read_csv, read_json
from mvhlib.dino.config import Config
from mvhlib.dino.monitors import state_shares
from mvhlib.dino.schedules import teacher_weights
from mvhlib.tiles import store

if TYPE_CHECKING:
    import pandas as pd

#: Columns of `examine`: state over skip of one state-space layer.
STATE_COLUMNS = ("encoder", "block", "share")


def finished(folder: str | os.PathLike) -> dict[str, Path]:
    """Find every finished pretraining below ``encoders/``: encoder -> its folder."""
    found = sorted(path.parent for path in Path(folder).glob("*/recipe.json"))
    return {path.name: path for path in found if (path / "model.safetensors").exists()}


def initial_weights_left(folder: str | os.PathLike) -> float:
    """Share of the weights that training began with in the exported teacher, 0 to 1.

    Raises
    ------
    InputError
        If the recipe that 03_pretrain left is not there or cannot be read.
    """
    path = Path(folder) / "recipe.json"
    settings = {key: value for key, value in read_json(path).get("settings", {}).items()
                if key != "tiles_sha256"}
    try:
        plan = Config(**settings).schedules()
    except TypeError as error:
        raise InputError(path, "settings", f"are of another version ({error})",
                         "run 03_pretrain again") from error
    return float(teacher_weights(plan.tables["momentum"])[0])


def examine(folders: Mapping[str, Path], tiles: str | os.PathLike, *, n_images: int = 16
            ) -> tuple["pd.DataFrame", dict[str, float]]:
    """State over skip of every layer, and initial weights left, of every training.

    Parameters
    ----------
    folders
        Encoder -> folder, from `finished`.
    tiles
        ``tiles/`` of 02_tiles; the models see tiles evenly spread over its sections.
    n_images
        How many.

    Returns
    -------
    DataFrame, dict
        Columns `STATE_COLUMNS`, without rows of models that have no state-space layer; and
        encoder -> share of initial weights.
    """
    import pandas as pd
    import torch

    from mvhlib.backbones import from_pretrained

    pixels = _spread(Path(tiles), n_images) if folders else None
    rows, initial = [], {}
    for slug, folder in folders.items():
        model = from_pretrained(folder).eval()
        cfg = model.pretrained_cfg
        mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        side = cfg["input_size"][1]
        if images.shape[-1] != side:
            images = torch.nn.functional.interpolate(images, size=(side, side), mode="bicubic",
                                                     antialias=True, align_corners=False)
        rows += [(slug, block, share)
                 for block, share in state_shares(model, (images - mean) / std).items()]
        initial[slug] = initial_weights_left(folder)
    return pd.DataFrame(rows, columns=list(STATE_COLUMNS)), initial


def _spread(folder: Path, n_images: int) -> np.ndarray:
    """Tiles `(n, S, S, 3)` uint8, one of each of evenly spread sections."""
    manifest = read_csv(folder / "manifest.csv", ("section", "n_tiles"))
    at = np.linspace(0, len(manifest) - 1, n_images).round().astype(int)
    return np.stack([store.read_tiles(folder / f"{row.section}.h5").img[row.n_tiles // 2]
                     for row in manifest.iloc[at].itertuples()])
