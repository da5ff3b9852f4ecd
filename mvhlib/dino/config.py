"""Every setting of a pretraining run, in one flat list that a YAML file can hold.

The names are those of notebook 03's parameters where it has them, so that one file,
``params/<profile>/03_pretrain.yaml``, serves the notebook and ``python -m mvhlib.dino.pretrain``.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from mvhlib.artifacts import InputError, safe_name
from mvhlib.dino.augment import ViewSettings
from mvhlib.dino.schedules import Schedules
from mvhlib.parameters import check_seed
from mvhlib.places import resolve
from mvhlib.training import read_config, read_pairs

DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Sizes default to the demonstration, the recipe to the paper's.

    Lengths of warm-ups are shares of the run. `batch` is the global batch: how it is divided
    (`micro_batch`, processes) changes the speed and the memory, not the result.
    """

    # where
    profile: str = "demo"          # folder below runs/
    out: str = "."                 # where runs/ is; relative paths start at the clone
    data: str = ""                 # the data set's directory
    seed: int = 0
    device: str = "auto"           # auto, cpu, cuda or mps
    encoder: str = "vit12-dino"    # slug: the encoder's folder, runs/<profile>/encoders/<encoder>
    folder: str = ""               # another folder for the encoder
    tiles: str = ""                # folder or file of tiles, images, slides; empty: runs/<profile>
                                   # /pretraining/tiles, else /tiles; "data": the data set's folder,
                                   # "data/...": a path that begins there
    # which tiles
    sections: list[str] = field(default_factory=list)  # only these ("C*"); empty: all
    exclude: list[str] = field(default_factory=list)   # patterns that are left out
    manifest: str = ""             # csv of section, patient, study; empty: the run's, if any;
                                   # "data/..." as in tiles
    study: str = ""                # study of all files, where no manifest says it
    tile_px: int = 0               # side of a tile [px]; 0: as the files have it
    tile_um: float = 0.0           # side of a tile [um]; for whole slides
    on_bad: str = "raise"          # unreadable files: raise or skip
    # model
    backbone: str = "vit12_micro_patch8_64"
    backbone_options: dict = field(default_factory=dict)  # for example {"drop_path": 0.1}
    prototypes: int = 512
    head_hidden: int = 256
    head_bottleneck: int = 64
    # length
    steps: int = 120
    batch: int = 32
    micro_batch: int = 0           # images at once in one process; 0: all of its share
    # views
    global_px: int = 64
    local_px: int = 32
    n_local: int = 4
    global_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    flip: float = 0.5
    rotate: bool = False
    jitter: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    stain: float = 0.0
    grey: float = 0.2
    blur: list[float] = field(default_factory=lambda: [0.0, 0.9, 0.5])
    sigma_min: float = 0.1
    sigma_max: float = 2.0
    # masks
    mask_share: float = 0.5
    mask_min: float = 0.1
    mask_max: float = 0.5
    # losses
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    koleo_group: int = 16          # images among which neighbours are sought
    student_temperature: float = 0.1
    # optimisation
    base_lr: float = 0.002         # for a batch of 1024
    end_lr: float = 1e-6
    warmup: float = 0.05           # share of the steps
    freeze: float = 0.005          # share of the steps in which the prototypes stay
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    patch_embed_lr: float = 0.2    # factor on the learning rate
    layer_decay: float = 1.0       # factor per block, from the last to the first
    clip: float = 3.0              # largest gradient norm of each part; 0: no clipping
    momentum: float = 0.95         # of the teacher, rises to momentum_end; published 0.992, which
                                   # in a hundred steps would leave the teacher where it began
    momentum_end: float = 1.0
    temperature_from: float = 0.04
    temperature: float = 0.06
    temperature_warmup: float = 0.15
    # machine
    precision: str = "float32"     # float32, bf16 (autocast), float64 (for comparisons)
    compile: bool = False          # torch.compile student and teacher, as far as that works
    parallel: str = "ddp"          # ddp or fsdp, for many processes
    checkpointing: bool = False    # recompute blocks in the backward pass
    processes: int = 1             # that notebook 03 starts; torchrun's own count wins
    workers: int = 0               # processes that read tiles
    # watching
    log_every: int = 1
    save_every: int = 50
    keep: int = 3                  # checkpoints
    least_rank: float = 1.5        # effective rank below which the embedding has collapsed
    patience: int = 20             # logged steps below it before the run is stopped
    restart: bool = False          # begin afresh where another recipe left its state
    progress: bool = True
    more: dict = field(default_factory=dict)  # further settings by name, see `read_settings`

    def __post_init__(self) -> None:
        choices = {"device": ("auto", "cpu", "cuda", "mps"), "precision": tuple(DTYPES),
                   "parallel": ("ddp", "fsdp"), "on_bad": ("raise", "skip")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed and not (
                    name == "device" and self.device.startswith("cuda:")):
                raise InputError("pretrain", name, f"is {getattr(self, name)!r}",
                                 f"choose one of {', '.join(allowed)}")
        for name in ("steps", "batch", "prototypes", "head_hidden", "head_bottleneck",
                     "global_px", "local_px", "log_every", "save_every", "keep", "koleo_group"):
            if getattr(self, name) < 1:
                raise InputError("pretrain", name, f"is {getattr(self, name)}", "give at least 1")
        check_seed(self.seed, "pretrain")
        for name in ("profile", "encoder"):
            safe_name(getattr(self, name), "pretrain", name)
        for name in ("micro_batch", "n_local", "workers", "tile_px"):
            if getattr(self, name) < 0:
                raise InputError("pretrain", name, f"is {getattr(self, name)}", "give at least 0")
        for name, length in (("global_scale", 2), ("local_scale", 2), ("blur", 3)):
            if len(getattr(self, name)) != length:
                raise InputError("pretrain", name, f"is {getattr(self, name)}",
                                 f"give {length} numbers")

    @property
    def path(self) -> Path:
        """The encoder's folder."""
        return resolve(self.folder) if self.folder else self.run / "encoders" / self.encoder

    @property
    def run(self) -> Path:
        return resolve(self.out) / "runs" / self.profile

    def place(self, name: str) -> Path:
        """Resolve the path in the setting `name`, which may begin in the data set's folder.

        Raises
        ------
        InputError
            If it begins there and `data` is not given.
        """
        first, *rest = Path(getattr(self, name)).parts
        if first != "data":
            return resolve(getattr(self, name))
        if not self.data:
            raise InputError("pretrain", name, f"is {getattr(self, name)!r}, and there is no data "
                             "directory", "give data=<directory> (DATA= for make)")
        return resolve(self.data).joinpath(*rest).resolve()

    def views(self) -> ViewSettings:
        given = asdict(self)
        names = [f.name for f in fields(ViewSettings) if f.name in given]
        return ViewSettings(**{name: tuple(given[name]) if isinstance(given[name], list)
                               else given[name] for name in names})

    def schedules(self) -> Schedules:
        names = [f.name for f in fields(Schedules) if hasattr(self, f.name)]
        return Schedules(n_steps=self.steps, **{name: getattr(self, name) for name in names})

    def recipe(self) -> dict[str, Any]:
        """The settings that determine the result."""
        given = asdict(self)
        return {name: given[name] for name in given if name not in NOT_IN_RECIPE}


#: Settings that may change between two sittings of one run.
NOT_IN_RECIPE = frozenset({
    "profile", "out", "data", "device", "encoder", "folder", "tiles", "manifest", "study",
    "micro_batch", "processes", "more", "compile", "parallel", "checkpointing", "workers",
    "on_bad", "log_every", "save_every", "keep", "least_rank", "patience", "restart", "progress"})


def read_settings(path: str | os.PathLike | None = None,
                  overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """Read settings as `mvhlib.training.read_config` does, and unfold `more`.

    A notebook shows a part of the settings as parameters; ``more: {workers: 8}`` in its YAML file
    reaches the others. Overrides win over both.

    Raises
    ------
    InputError
        On an unknown name, in `more` too, and on a wrong type.
    """
    try:
        given = read_config(Config, path)
        for name in given.more:
            read_config(Config, None, {name: given.more[name]})
    except InputError as error:
        if path is None or error.where not in ("pretrain", "command line"):
            raise
        raise InputError(path, error.field, error.problem, error.fix) from error
    values = asdict(given) | {"more": {}}
    pairs = dict(overrides) if isinstance(overrides, Mapping) else read_pairs(overrides)
    read_config(Config, None, pairs)
    return read_config(Config, None, values | given.more | pairs.pop("more", {}) | pairs)
