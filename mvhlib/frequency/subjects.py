"""Subjects of the frequency audit: images spread over a cohort, and models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import artifacts, encoders, plots
from mvhlib.expression.variants import split_slug
from mvhlib.tiles import store

if TYPE_CHECKING:
    from pandas import Series
    from torch import Tensor

    from mvhlib.encoders import PatchEncoder
    from mvhlib.notebook import Run

#: Side of images of noise [px].
NOISE_PX = 64
#: Unit of intervals where the images are noise.
UNITS = {True: "patient", False: "section"}


@dataclass(frozen=True)
class Images:
    """Input images of the models.

    Attributes
    ----------
    pixels
        `(B, 3, H, W)`, 0 to 1.
    sections
        Section of each image, `(B,)`.
    patients
        Section -> patient; None for noise, whose images are units of their own.
    mpp
        Scale [um/px]; 1 for noise.
    """

    pixels: "Tensor" = field(repr=False)
    sections: "Series" = field(repr=False)
    patients: Mapping[str, str] | None
    mpp: float

    @property
    def unit(self) -> str:
        """Unit of the intervals."""
        return UNITS[self.patients is not None]

    def for_model(self, encoder: "PatchEncoder", which=slice(None)) -> "Tensor":
        """The images as an encoder's own model reads them."""
        return encoder.eval_transforms.batch(self.pixels[which]).to(encoder.device)


def images(run: "Run", kind: str, n: int) -> Images:
    """Tiles of 02_tiles, as many of every section as of the others, or noise.

    Parameters
    ----------
    kind
        ``tiles``, or ``noise``, which needs nothing; a run without a tile gets noise.
    n
        How many, from sections spread evenly over the cohort.
    """
    import pandas as pd

    names: Sequence[str] = ()
    if kind == "tiles":
        place = run.need(run.path("tiles", "manifest.csv"), made_by="02_tiles")
        every = artifacts.read_csv(place)["section"]
        if every.empty:
            print("No tile was cut by 02_tiles: the models are shown noise.")
        else:
            names = every.iloc[np.unique(np.linspace(0, len(every) - 1, n).round().astype(int))]
    if not len(names):
        pixels = np.random.default_rng(run.seed).integers(0, 256, (n, NOISE_PX, NOISE_PX, 3),
                                                          dtype=np.uint8)
        found = Images(_tensor(pixels), pd.Series([f"noise {k}" for k in range(n)]), None, 1.0)
    else:
        take = [len(part) for part in np.array_split(np.arange(n), len(names))]
        cut = [store.read_tiles(run.need(run.path("tiles", f"{name}.h5"), made_by="02_tiles"))
               for name in names]
        parts = [c.img[:: max(1, len(c.img) // k)][:k] for c, k in zip(cut, take, strict=True)]
        whose = artifacts.read_csv(run.need(run.path("cohort", "manifest.csv"),
                                            made_by="01_cohort"))
        found = Images(_tensor(np.concatenate(parts)),
                       pd.Series(np.repeat(list(names), [len(part) for part in parts])),
                       whose.set_index("section")["patient"].astype(str).to_dict(), cut[0].mpp)
    print(f"{len(found.pixels)} images of {found.pixels.shape[-1]} px, from "
          f"{found.sections.nunique()} {'sections' if found.patients else 'draws of noise'}")
    return found


def _tensor(pixels: np.ndarray) -> "Tensor":
    import torch

    # (B, H, W, 3) -> (B, 3, H, W)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def models(run: "Run", trained: Sequence[str], others: Sequence[str], presets: Sequence[str],
           size: str) -> list[tuple[dict[str, Any], "PatchEncoder"]]:
    """Encoders that the run trained, each with its untrained twin, and others as they begin.

    Parameters
    ----------
    trained
        Slugs of 03_pretrain; the twin of each is its recipe at step 0.
    others
        Families of backbones. The first is made in every preset, the rest in the first; where a
        twin is of the family and preset, it stands for them.
    presets, size
        As in `mvhlib.encoders.create_encoder`.

    Returns
    -------
    list
        (encoder, seed, preset and state: ``untrained`` or ``trained``) of each, with its encoder.
    """
    found: list[tuple[dict[str, Any], PatchEncoder]] = []
    for slug in trained:
        place = run.need(run.path("encoders", slug, "recipe.json"), made_by="03_pretrain")
        recipe = json.loads(place.read_text(encoding="utf-8"))["settings"]
        variant, seed = split_slug(slug)
        twin = encoders.create_encoder(recipe["backbone"], weights="random", seed=recipe["seed"],
                                       device=run.device, **recipe["backbone_options"])
        about = {"encoder": variant, "seed": seed, "preset": twin.model.preset}
        done = encoders.create_encoder(run.path("encoders", slug), device=run.device)
        found += [(about | {"state": "untrained"}, twin), (about | {"state": "trained"}, done)]
    twins = {plots.family(slug) for slug in trained}
    for name in others:
        for preset in presets if name == others[0] else presets[:1]:
            if preset == presets[0] and name in twins:
                continue
            made = encoders.create_encoder(f"{name}_{size}", preset=preset, weights="random",
                                           seed=run.seed, device=run.device)
            found.append(({"encoder": name, "seed": 0, "preset": preset, "state": "untrained"},
                          made))
    return found
