"""Figures of notebook 03: views, live curves, losses, and the memory of the layers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import phrases
from mvhlib.artifacts import InputError, write_text
from mvhlib.dino.config import Config
from mvhlib.dino.data import TileSource

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from mvhlib.notebook import Run

#: Okabe and Ito's colours, for the parts of a curve.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
TERMS = ("dino_global", "dino_local", "ibot", "koleo")


def draw_views(config: Config, source: TileSource, ax: "Axes", n_images: int = 4) -> "Axes":
    """Draw the views of step 0, one row per image: two masked global ones, then the local ones.

    Parameters
    ----------
    config
        Settings of the run.
    source
        Its tiles.
    n_images
        Rows.
    """
    import torch

    from mvhlib.backbones import create_model
    from mvhlib.dino.augment import MultiCrop
    from mvhlib.dino.data import sample_order
    from mvhlib.dino.masking import BlockMasks

    n_images = min(n_images, config.batch)
    index = np.arange(n_images)
    tiles = source.__getitems__(sample_order(len(source), config.seed, 0, n_images))
    views, local = MultiCrop(config.views(), (0, 0, 0), (1, 1, 1))(
        torch.from_numpy(tiles), config.seed, 0, index)
    model = create_model(config.backbone, **config.backbone_options)
    patch = model.patch_embed.patch_size[0]
    grid, side = config.global_px // patch, config.global_px
    masks = BlockMasks(grid, config.mask_share, config.mask_min, config.mask_max).draw(
        config.seed, 0, 2 * config.batch, [*index, *(index + config.batch)])
    hidden = torch.from_numpy(masks.reshape(-1, 1, grid, grid)).repeat_interleave(
        patch, 2).repeat_interleave(patch, 3)
    views = torch.where(hidden, 0.5, views)
    gap = max(2, side // 32)
    sheet = np.ones((n_images * (side + gap), 2 * (side + gap)
                     + config.n_local * (config.local_px + gap), 3), np.float32)
    for image in range(n_images):
        top, left = image * (side + gap), 0
        row = [*views.unflatten(0, (2, -1))[:, image]]
        if config.n_local:
            row += [*local.unflatten(0, (config.n_local, -1))[:, image]]
        for view in row:
            pixels = view.permute(1, 2, 0).numpy()  # (3, S, S) -> (S, S, 3)
            sheet[top:top + len(pixels), left:left + len(pixels)] = pixels
            left += len(pixels) + gap
    ax.imshow(sheet, interpolation="nearest")
    ax.set_axis_off()
    return ax


def pretrain_and_draw(config: Config, processes: int = 1) -> Path:
    """Pretrain, with curves that move where a notebook is looked at; returns the folder.

    Parameters
    ----------
    config
        Settings of the run.
    processes
        1 trains in this process; more are started by torchrun, and only their log is read.

    Raises
    ------
    InputError
        If the processes of torchrun fail; names their log.
    """
    from mvhlib.dino.pretrain import pretrain

    curves = _LiveCurves(config.path / "log.csv")
    if processes <= 1:
        folder = pretrain(config, watch=lambda step, row: curves.update())
        curves.close()
        return folder
    import yaml

    config.path.mkdir(parents=True, exist_ok=True)
    settings = config.path / "settings.yaml"
    write_text(settings, yaml.safe_dump(asdict(config), sort_keys=False))
    said = config.path / "torchrun.txt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", str(processes), "-m", "mvhlib.dino.pretrain", str(settings),
               "progress=false"]
    with open(said, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            while process.poll() is None:
                time.sleep(1)
                curves.update()
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun passes it on; the step is saved first
                process.wait()
    curves.close()
    if process.returncode:
        tail = said.read_text(encoding="utf-8").strip().splitlines()
        last = tail[-1] if tail else "it said nothing"
        reason = next((line for line in tail if line.startswith("error:")), last)
        raise InputError(said, "torchrun", f"ended with {process.returncode}: {reason}",
                         "read this file, then run the cell again: it goes on where it stopped")
    return config.path


class _LiveCurves:
    """Redraws the log of a run every few seconds in a notebook; silent anywhere else."""

    def __init__(self, path: Path, seconds: float = 5.0):
        self.path, self.seconds = path, seconds
        self.handle: Any = None
        self.drawn = time.monotonic()

    def update(self) -> None:
        if time.monotonic() - self.drawn < self.seconds or "IPython" not in sys.modules:
            return
        self.drawn = time.monotonic()
        shell = sys.modules["IPython"].get_ipython()
        if shell is None or not hasattr(shell, "kernel") or not self.path.exists():
            return
        import matplotlib.pyplot as plt
        import pandas as pd
        from IPython.display import display

        log = pd.read_csv(self.path)
        if len(log) < 2:
            return
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.0))
        draw_log(log, axes)
        if self.handle is None:
            self.handle = display(fig, display_id=True)
        else:
            self.handle.update(fig)
        plt.close(fig)

    def close(self) -> None:
        """Take the live curves away: the notebook draws those of the whole run."""
        if self.handle is not None:
            from IPython.display import Markdown

            self.handle.update(Markdown("*The curves of the whole run are drawn below.*"))


def draw_log(log: "pd.DataFrame", axes: "np.ndarray") -> "np.ndarray":
    """Draw losses, effective rank and gradient norms of a log on three axes."""
    series: list[tuple[Any, Callable[[str], str]]] = [
        (TERMS, lambda name: name.replace("_", " ")),
        (("effective_rank",), lambda name: ""),
        ([name for name in log if name.startswith("grad_")],
         lambda name: name.removeprefix("grad_").replace("_", " "))]
    for ax, (names, label), title in zip(
            axes, series, ("loss", "effective rank", "gradient norm"), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            ax.plot(log["step"], log[name], color=colour, label=label(name))
        ax.set_xlabel("step")
        ax.set_ylabel(title)
        ax.set_ylim(bottom=0)
    axes[0].set_ylim(0, 1.35 * log[list(TERMS)].to_numpy().max())  # room for four names
    axes[0].legend(ncols=2, loc="upper center")
    axes[2].legend()
    return axes


def without_tiles(run: "Run") -> bool:
    """True if 02_tiles has run and cut no tile, neither of the cohort nor for pretraining.

    Raises
    ------
    InputError
        If it has not run.
    """
    import csv

    apart = run.path("pretraining", "tiles")
    with open(run.need(run.path("tiles", "manifest.csv"), made_by="02_tiles"),
              newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    return len(rows) < 2 and not any(apart.glob("*.h5"))


def half_lives(log: "pd.DataFrame") -> "pd.DataFrame":
    """Half-life [tokens] of each state-space layer's slowest state at its median time step.

    Columns step, block, half_life; empty for a backbone without such layers. A state with pole a
    (negative) is multiplied by exp(delta a) at each token.
    """
    import pandas as pd

    blocks = [name.split("_")[1] for name in log if name.startswith("delta_")
              and name.endswith("_0.5")]
    parts = [pd.DataFrame({"step": log["step"], "block": int(block), "half_life": np.log(2)
                           / (log[f"delta_{block}_0.5"] * -log[f"pole_{block}_0.95"])})
             for block in blocks]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(
        columns=["step", "block", "half_life"])


def draw_half_lives(table: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Draw the table of `half_lives`, one line per block, light to dark from first to last."""
    blocks = sorted(set(table["block"]))
    for number, block in enumerate(blocks):
        rows = table[table["block"] == block]
        grey = 0.75 * (1 - number / max(1, len(blocks) - 1)) if len(blocks) > 1 else 0.2
        ax.plot(rows["step"], rows["half_life"], color=str(round(grey, 2)), label=f"block {block}")
    ax.set_xlabel("step")
    ax.set_ylabel("half-life [tokens]")
    ax.set_ylim(0, 1.4 * table["half_life"].max())
    ax.legend(ncols=3, loc="upper center")
    return ax


def answer(log: "pd.DataFrame", memory: "pd.DataFrame", initial: float) -> tuple[str, str]:
    """Summarise a run's log: the losses, the spread of the embedding, the layers' memory.

    Parameters
    ----------
    log
        One row per logged step.
    memory
        From `half_lives`.
    initial
        Share of the initial weights in the exported teacher [0-1].

    Returns
    -------
    tuple of str
        What was found, after the name of the encoder; and what that does not show.
    """
    tenth = max(1, len(log) // 10)
    early, late = log.iloc[:tenth].mean(), log.iloc[-tenth:].mean()
    change = late["dino_local"] - early["dino_local"]
    moved = "fell" if change < 0 else "rose" if change > 0 else "stayed"
    steps = phrases.count(int(log["step"].iloc[-1]) + 1, "step")
    found = (f"over {steps} the local loss {moved} from {early['dino_local']:.2f} to "
             f"{late['dino_local']:.2f} (means of the first and the last tenth), and the effective "
             f"rank of the class token went from {early['effective_rank']:.1f} to "
             f"{late['effective_rank']:.1f}, where 1 is collapse. ")
    found += f"Of the exported teacher {initial:.0%} is initial weights"
    if len(memory):
        longest = memory.groupby("step")["half_life"].max()
        found += (f"; the longest half-life of a state-space layer went from {longest.iloc[0]:.2f} "
                  f"to {longest.iloc[-1]:.2f} tokens")
    else:
        found += "; it has no state-space layer, whose memory could be asked for"
    limits = ("Whether what was learned is of use: only a comparison with the same network before "
              "training, in `05_expression`, says that")
    if initial > 0.1:
        limits += (f", and with {initial:.0%} of initial weights left most of what the two have in "
                   "common was never trained")
    return f"{found}.", f"{limits}."
