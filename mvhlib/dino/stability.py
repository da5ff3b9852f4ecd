"""Stability of training recipes: short pretrainings over a grid, with their internals recorded.

Cho et al. 2025 (MV_Hybrid) report that Mamba mixers with MLPs are unstable and suspect positive
eigenvalues. Under A = -exp(A_log) no eigenvalue can be positive, so if such models diverge the
reason lies elsewhere. Here models that differ in the channel mixer alone are trained by one recipe
over a stated grid, and losses, gradients, activations, poles and time steps are kept on the way.

A cell of the grid is a value for each of `AXES`. Learning rates are multiples of the published
peak itself, 0.002 sqrt(1536 / 1024), whatever the batch, and are held from the warm-up to the end.
A pure trunk has a state-space mixer in every block, a hybrid one in the first half.

``inputs="float16"`` and ``"bfloat16"`` round to that type and back what the published loader
rounds, the images, and what a GPU kernel would be handed in that precision: the outputs of the
projections that feed the scan. Gradients pass through as they are. A CPU has no 16-bit training;
nothing else is rounded.

A final norm hides from the loss what grows before it. The residual stream is therefore recorded
behind every block, and a run whose stream grew without bound is not called stable. Gradients are an
outcome of their own: their largest norm before clipping, mixer against mixer.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mvhlib import artifacts, phrases
from mvhlib.artifacts import InputError
from mvhlib.dino.config import Config
from mvhlib.dino.monitors import state_space_extremes
from mvhlib.dino.pretrain import Pretraining, open_tiles
from mvhlib.training import TrainingStopped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Axes of the grid, what each may be, and where a block of a grid that does not name it stands.
AXES: dict[str, tuple[tuple | type, tuple]] = {
    "trunk": (("state_space", "hybrid"), ("state_space",)),
    "inputs": (("float32", "float16", "bfloat16"), ("float32",)),
    "preset": (("released", "corrected"), ("released",)),
    "depth": (int, (12,)),
    "clip": (float, (3.0,)),
    "channel_mixer": (("einfft", "mlp"), ("einfft", "mlp")),
    "lr_factor": (float, (1.0,)),
    "steps": (int, (0,)),  # 0: as many as the grid is run with
}
#: What makes a run of the grid short: `Config` where it says nothing else.
SHORT: dict[str, Any] = {
    "backbone": "mvhybrid_micro_patch8_64", "batch": 8, "koleo_group": 8, "global_px": 48,
    "local_px": 24, "n_local": 2, "prototypes": 256, "log_every": 2}
#: Peak learning rate of the published recipe: base rate, and the batch that it was scaled to.
PUBLISHED_PEAK = 0.002 * math.sqrt(1536 / 1024)
#: A run diverged if its loss ends above where it began by more than this share.
MARGIN = 0.05
#: A residual stream grows without bound if it ends above its first value by more than this factor.
GROWTH = 1000.0
#: Share of the logged steps that is the end of a run.
END = 0.1
#: The largest number that float16 holds.
FLOAT16 = float(np.finfo(np.float16).max)
#: Axes that make a recipe, apart from what is compared along it.
RECIPE = ["trunk", "inputs", "preset", "depth", "clip", "steps"]
#: What `draw_trajectories` shows, and its titles.
DRAWN = {"loss": "loss", "activation": "largest activation", "grad": "gradient norm",
         "pole_max": "largest real part of A"}
#: Columns of a trajectory that hold the largest activation behind a block.
ACTIVATIONS = r"^activation_\d+$"
#: Verdicts, and what they are drawn in.
VERDICTS = {"stable": "#9ECAE9", "growing": "#F6C8A0", "collapsed": "#F0E442",
            "diverged": "#D55E00"}
#: What the two channel mixers are drawn in (Okabe and Ito), and how they are written.
COLOURS = {"einfft": "#0072B2", "mlp": "#E69F00"}
NAMES = {"einfft": "EinFFT", "mlp": "MLP"}


def grid(blocks: Sequence[Mapping[str, Sequence]]) -> list[dict[str, Any]]:
    """Cells of a grid, each once: the union of the products of some axes.

    Parameters
    ----------
    blocks
        Each names values of some of `AXES`; the others stay where `AXES` has them.

    Raises
    ------
    InputError
        On no block, an unknown axis, or a value that it cannot take.
    """
    if not blocks:
        raise InputError("stability", "blocks", "are none", "give at least one, {} for the default")
    cells = {}
    for block in blocks:
        for name in block:
            if name not in AXES:
                raise InputError("stability", name, "is not an axis", f"use {', '.join(AXES)}")
        values = {name: block.get(name, default) for name, (_, default) in AXES.items()}
        for name, (allowed, _) in AXES.items():
            values[name] = [_value(name, value, allowed) for value in values[name]]
        for cell in itertools.product(*values.values()):
            cells[cell] = dict(zip(AXES, cell, strict=True))
    return list(cells.values())


def _value(name: str, value: Any, allowed: tuple | type) -> Any:
    if isinstance(allowed, tuple):
        if value not in allowed:
            raise InputError("stability", name, f"is {value!r}",
                             f"choose one of {', '.join(allowed)}")
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
        raise InputError("stability", name, f"is {value!r}", "give a number that is not negative")
    return allowed(value)


def configure(base: Config, cell: Mapping[str, Any]) -> Config:
    """Settings of one cell: those of `base` where the cell says nothing.

    The peak rate is held to the end, and a run is not stopped for a low rank, so that all
    trajectories have one length unless a number stops being finite.
    """
    pure = cell["trunk"] == "state_space"
    options = {"depth": cell["depth"], "split": cell["depth"] if pure else cell["depth"] // 2,
               "channel_mixer": cell["channel_mixer"], "preset": cell["preset"]}
    peak, steps = cell["lr_factor"] * PUBLISHED_PEAK, cell["steps"] or base.steps
    return replace(
        base, backbone_options=base.backbone_options | options, clip=cell["clip"], steps=steps,
        base_lr=peak / math.sqrt(base.batch / 1024), end_lr=peak,
        save_every=steps, patience=steps, least_rank=0.0, progress=False, restart=True)


class Recorder(Pretraining):
    """A pretraining that also records the internals of its student.

    Parameters
    ----------
    config
        Every setting.
    inputs
        ``"float32"``, ``"float16"`` or ``"bfloat16"`` (see the module).

    Attributes
    ----------
    rows
        One dict per logged step, the one that stopped the run included: what the log has, with
        poles and time steps of the student in place of the teacher's, and ``activation_<block>``,
        the largest absolute value of the residual stream behind that block over all views.
    """

    def __init__(self, config: Config, inputs: str = "float32"):
        super().__init__(config)
        self.rows: list[dict[str, float]] = []
        self._peaks: dict[int, float] = {}
        backbone = self.student.backbone
        for number, block in enumerate(backbone.blocks):
            block.register_forward_hook(
                lambda _block, _args, x, number=number: self._note(number, x))
        if inputs != "float32":
            for model in (backbone, self.teacher.backbone):
                round_inputs(model, getattr(torch, inputs))

    def _note(self, number: int, x: Tensor) -> None:
        peak = float(x.detach().abs().amax())
        # max() would lose a nan, which compares as smaller than nothing.
        known = self._peaks.get(number, 0.0)
        self._peaks[number] = peak if math.isnan(peak) or peak > known else known

    def step(self, images: list[Tensor], step: int) -> dict[str, Tensor]:
        self._peaks.clear()
        return super().step(images, step)

    def _row(self, step: int, values: dict[str, Tensor]) -> dict[str, float]:
        peaks = {f"activation_{number}": peak for number, peak in sorted(self._peaks.items())}
        row = super()._row(step, values)
        self.rows.append({"step": step} | row | peaks)
        return row

    def _quantiles(self, views: Tensor) -> dict[str, float]:
        return state_space_extremes(self.student.backbone, views)


def round_inputs(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Round to `dtype` the images and what the projections hand to the scans."""
    backbone.patch_embed.register_forward_pre_hook(
        lambda _module, args: (_rounded(args[0], dtype),))
    for block in backbone.blocks:
        for name, module in block.mixer.named_children():
            if hasattr(block.mixer, "A") and name.startswith(("in_proj", "x_proj")):
                module.register_forward_hook(lambda _module, _args, x: _rounded(x, dtype))


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as `dtype` holds it, infinite beyond its range; the gradient passes through."""
    return x + (x.detach().to(dtype).to(x.dtype) - x.detach())


def run_cell(base: Config, cell: Mapping[str, Any]) -> "pd.DataFrame":
    """Train one cell and return its trajectory, one row per logged step.

    Parameters
    ----------
    base
        What cells share: backbone, tiles, length, batch, views.
    cell
        One of `grid`.

    Returns
    -------
    pandas.DataFrame
        ``step``, losses, ``grad_*`` before clipping, ``delta_*``, ``pole_*``, ``decay_max`` (see
        `mvhlib.dino.monitors.state_space_extremes`), ``effective_rank``, ``activation_<block>``.
    """
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        run = Recorder(replace(configure(base, cell), folder=folder), cell["inputs"])
        try:
            run.train()
        except TrainingStopped:
            pass  # its last row says why
    return pd.DataFrame(run.rows)


def run_grid(base: Config, cells: Sequence[Mapping[str, Any]],
             folder: Path) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Train all cells and judge them; a cell that was trained before is read.

    Parameters
    ----------
    base
        See `run_cell`.
    cells
        From `grid`.
    folder
        Keeps ``<key>.csv`` per cell, whose key is a hash of its recipe and of the tiles.

    Returns
    -------
    table, trajectories
        One row per cell (its axes, then `judge`), and all trajectories with the axes before them.
    """
    import pandas as pd

    rows, trajectories = [], []
    folder.mkdir(parents=True, exist_ok=True)
    identity = open_tiles(base).identity
    for cell in cells:
        key = artifacts.sha256_of(configure(base, cell).recipe(), cell, base.log_every, identity)
        path = folder / f"{key[:16]}.csv"
        if not path.exists():
            artifacts.write_csv(path, run_cell(base, cell))
        # Read back in any case, so that a repeated run sees the same digits.
        trajectory = artifacts.read_csv(path, ("step", "loss"))
        rows.append({**cell, **judge(trajectory)})
        trajectories.append(pd.concat([pd.DataFrame([cell] * len(trajectory)), trajectory], axis=1))
    return pd.DataFrame(rows), pd.concat(trajectories, ignore_index=True)


def judge(trajectory: "pd.DataFrame") -> dict[str, Any]:
    """The verdict on a trajectory by a fixed rule, and the numbers that it rests on.

    Diverged: a logged loss or gradient norm is not finite, or the mean loss over the last `END` of
    the logged steps is above the first by more than `MARGIN`. Collapsed: it did not diverge, and
    the mean effective rank over these steps is below the `least_rank` of `Config`. Growing:
    neither, and the largest activation behind some block, over these steps, is more than `GROWTH`
    times that of the first step or not finite. Else stable.

    Returns
    -------
    dict
        ``verdict``, ``reason``, ``n_steps``; ``loss_start``, ``loss_end``, ``loss_max``;
        ``grad_max`` over parts and ``activation_max`` over blocks, each over all steps, and
        ``grad_growth``, the largest over the first, and ``activation_growth``, the largest over the
        end of the run over the first; ``float16_step``, the
        first logged step at which an activation is beyond what float16 can hold (nan: none), which
        is no part of the verdict; ``delta_max``, ``pole_max``, ``pole_min``, ``decay_max``;
        ``rank_end``.
    """
    gradients = trajectory.filter(regex="^grad_").to_numpy()
    activations = trajectory.filter(regex=ACTIVATIONS).to_numpy().max(axis=1)
    loss, rank = trajectory["loss"].to_numpy(), trajectory["effective_rank"].to_numpy()
    end = slice(-max(1, round(END * len(loss))), None)
    rise = float(loss[end].mean() / loss[0] - 1)
    growth = float(activations[end].max() / activations[0])
    with np.errstate(invalid="ignore"):  # infinite from the first step on: no number
        grad_growth = float(gradients.max() / gradients[0].max())
    if not np.isfinite(loss).all() or not np.isfinite(gradients).all():
        verdict, reason = "diverged", "loss or gradient not finite"
    elif rise > MARGIN:
        verdict, reason = "diverged", f"loss ends at {1 + rise:.2f} of its start"
    elif rank[end].mean() < Config.least_rank:
        verdict, reason = "collapsed", f"effective rank ends at {rank[end].mean():.2f}"
    elif not growth <= GROWTH:
        verdict, reason = "growing", f"activations end at {growth:.0e} times their start"
    else:
        verdict, reason = "stable", f"loss ends at {1 + rise:.2f} of its start"
    return {"verdict": verdict, "reason": reason, "n_steps": int(trajectory["step"].iloc[-1]) + 1,
            "loss_start": loss[0], "loss_end": loss[end].mean(), "loss_max": loss.max(),
            "grad_max": gradients.max(), "grad_growth": grad_growth,
            "activation_max": activations.max(), "activation_growth": growth,
            "float16_step": trajectory["step"].where(~(activations <= FLOAT16)).min(),
            "delta_max": trajectory["delta_max"].max(), "pole_max": trajectory["pole_max"].max(),
            "pole_min": trajectory["pole_min"].min(), "decay_max": trajectory["decay_max"].max(),
            "rank_end": rank[end].mean()}


def summarise(table: "pd.DataFrame") -> "pd.DataFrame":
    """MLP against EinFFT over cells that differ in nothing else, by trunk, inputs, length and rate.

    The last row, ``all``, counts every pair. Cells of one grid are no sample of anything and each
    was trained once, so there is no interval and no test.

    Returns
    -------
    pandas.DataFrame
        ``trunk, inputs, steps, lr_factor, n_pairs`` (`steps` 0: the grid's own length);
        ``diverged_einfft, diverged_mlp``: cells;
        ``difference``: share of cells that diverged, MLP less EinFFT; ``only_mlp, only_einfft``:
        pairs in which one alone diverged; ``collapsed_*``, ``growing_*``; ``beyond_float16_*``:
        cells whose activations left the range of float16; ``activation_ratio``, ``grad_ratio``:
        geometric means of the largest values, MLP over EinFFT; ``activation_larger``,
        ``grad_larger``: pairs in which that of the MLP is the larger; ``pole_max``: the largest
        real part of any eigenvalue at any logged step; ``n_seeds``.
    """
    import pandas as pd

    keys = [name for name in AXES if name != "channel_mixer"]
    both = table[table["channel_mixer"] == "mlp"].merge(
        table[table["channel_mixer"] == "einfft"], on=keys, suffixes=("_mlp", "_einfft"))
    if both.empty:
        raise InputError("stability", "channel_mixer", "differs in no pair of runs that are "
                         "otherwise the same", "give [einfft, mlp]")
    names = ["trunk", "inputs", "steps", "lr_factor"]
    groups = [*both.groupby(names, sort=False), (("all",) * len(names), both)]
    return pd.DataFrame([dict(zip(names, key, strict=True)) | _counts(pairs)
                         for key, pairs in groups])


def _counts(pairs: "pd.DataFrame") -> dict[str, Any]:
    found = {"n_pairs": len(pairs)}
    failed = {}
    for verdict in ("diverged", "collapsed", "growing"):
        for mixer in NAMES:
            failed[verdict, mixer] = pairs[f"verdict_{mixer}"] == verdict
            found[f"{verdict}_{mixer}"] = int(failed[verdict, mixer].sum())
    for mixer in NAMES:
        found[f"beyond_float16_{mixer}"] = int(pairs[f"float16_step_{mixer}"].notna().sum())
    mlp, einfft = failed["diverged", "mlp"], failed["diverged", "einfft"]
    found |= {"difference": float(mlp.mean() - einfft.mean()),
              "only_mlp": int((mlp & ~einfft).sum()), "only_einfft": int((einfft & ~mlp).sum())}
    for name in ("activation", "grad"):
        ratios = np.log(pairs[f"{name}_max_mlp"] / pairs[f"{name}_max_einfft"])
        found[f"{name}_larger"] = int((ratios > 0).sum())
        # A pair in which something overflowed has no ratio.
        found[f"{name}_ratio"] = float(np.exp(ratios[np.isfinite(ratios)].mean()))
    poles = pairs[["pole_max_mlp", "pole_max_einfft"]].max(axis=None)
    return found | {"pole_max": float(poles), "n_seeds": 1}


def sentence(table: "pd.DataFrame") -> str:
    """Summarise a grid on the published instability: the diverged cells, and their poles.

    Parameters
    ----------
    table
        From `run_grid`.
    """
    counts = [f"{int((own['verdict'] == 'diverged').sum())} of {len(own)} with {NAMES[mixer]}"
              for mixer, own in table.groupby("channel_mixer")]
    beyond = int((~(table["activation_max"] <= FLOAT16)).sum())
    growing = int((table["verdict"] == "growing").sum())
    lengths = sorted(set(table["n_steps"]))
    lasted = " to ".join(str(int(n)) for n in dict.fromkeys([lengths[0], lengths[-1]]))
    return (f"Of {phrases.count(len(table), 'short training')} of {lasted} steps, "
            f"{phrases.listed(counts)} diverged; {growing} kept their loss while their activations "
            f"grew more than {GROWTH:,.0f}-fold, and {beyond} left the range of float16; the "
            f"largest real part of any eigenvalue was "
            f"{phrases.number(table['pole_max'].max(), 3)}.")


def harshest(trajectories: "pd.DataFrame") -> "pd.DataFrame":
    """Longest runs at the highest rate, for the first trunk and inputs, and what is drawn.

    ``activation`` is the largest over blocks, ``grad`` the largest gradient norm over parts.
    """
    first = trajectories[["trunk", "inputs"]].iloc[0]
    chosen = (trajectories[["trunk", "inputs"]] == first).all(axis=1)
    rows = trajectories[chosen]
    rows = rows[rows["lr_factor"] == rows["lr_factor"].max()]
    rows = rows[rows["steps"] == rows["steps"].max()]
    rows = rows.assign(activation=rows.filter(regex=ACTIVATIONS).max(axis=1),
                       grad=rows.filter(regex="^grad_").max(axis=1))
    return rows[[*AXES, "step", *DRAWN, "delta_median", "decay_max", "effective_rank"]]


def draw_trajectories(rows: "pd.DataFrame", axes: "np.ndarray") -> "np.ndarray":
    """Draw what `DRAWN` names against the step, one row of axes per preset.

    Parameters
    ----------
    rows
        From `harshest`. Colours are channel mixers, dashes the deeper trunks, thin lines the cells
        without clipping.
    axes
        `(presets, 4)`.
    """
    depths = sorted(set(rows["depth"]))
    for line, (preset, cells) in zip(axes, rows.groupby("preset", sort=False), strict=True):
        for ax, column in zip(line, DRAWN, strict=True):
            for (mixer, depth, clip), run in cells.groupby(["channel_mixer", "depth", "clip"]):
                ax.plot(run["step"], run[column], color=COLOURS[mixer],
                        linestyle="-" if depth == depths[0] else "--",
                        linewidth=1.2 if clip else 0.6)
            if column in ("activation", "grad"):
                _decades(ax)
        line[0].set_ylabel(preset)
    for ax, label in zip(axes[0], DRAWN.values(), strict=True):
        ax.set_title(label)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return axes


def _decades(ax: "Axes") -> None:
    """A logarithmic axis with few labels, and with some where it spans less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_key(rows: "pd.DataFrame", fig) -> None:
    """Draw the key of the lines below a figure of `draw_trajectories`."""
    from matplotlib.lines import Line2D

    lines = {NAMES[mixer]: {"color": COLOURS[mixer]}
             for mixer in sorted(set(rows["channel_mixer"]))}
    depths = sorted(set(rows["depth"]))
    if len(depths) > 1:
        lines |= {f"{depth} blocks": {"color": "0.3", "linestyle": style}
                  for depth, style in zip(depths, ("-", "--"), strict=False)}
    if rows["clip"].nunique() > 1:
        lines |= {"clipped": {"color": "0.3"}, "not clipped": {"color": "0.3", "linewidth": 0.6}}
    fig.legend([Line2D([], [], **style) for style in lines.values()], list(lines),
               loc="outside lower center", ncols=len(lines))


def draw_verdicts(table: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Draw the verdict of every cell, with its last loss over its first and its largest activation.

    Cells whose activations left the range of float16, which is no part of the verdict, are hatched.

    Parameters
    ----------
    table
        From `run_grid`.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch, Rectangle

    ratio = table["loss_end"] / table["loss_start"]
    texts = ratio.map("{:.2f}".format).where(np.isfinite(ratio), "not finite") + (
        table["activation_max"].map(" | {:.0e}".format))
    wide = table.assign(code=table["verdict"].map([*VERDICTS].index), text=texts,
                        beyond=~(table["activation_max"] <= FLOAT16)).pivot(
        index=RECIPE, columns=["channel_mixer", "lr_factor"], values=["code", "text", "beyond"])
    order = [*table.drop_duplicates(RECIPE)[RECIPE].itertuples(index=False, name=None)]
    codes, texts, beyond = (wide[name].sort_index(axis=1).reindex(order)
                            for name in ("code", "text", "beyond"))
    ax.imshow(codes.to_numpy(float), cmap=ListedColormap(list(VERDICTS.values())),
              vmin=-0.5, vmax=len(VERDICTS) - 0.5, aspect="auto", interpolation="nearest")
    for (i, j), text in np.ndenumerate(texts.where(texts.notna(), "").to_numpy()):
        ax.text(j, i, text, ha="center", va="center", fontsize=6.5,
                bbox=dict(facecolor="white", alpha=0.75, linewidth=0, pad=1) if text else None)
    hatched = {"facecolor": "none", "edgecolor": "0.25", "hatch": "////", "linewidth": 0}
    for i, j in zip(*np.nonzero(beyond.to_numpy() == True), strict=True):  # noqa: E712
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **hatched))
    for axis, n in ((ax.yaxis, len(codes)), (ax.xaxis, codes.shape[1])):
        axis.set_ticks(np.arange(n + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="minor", length=0)
    ax.set_xticks(range(codes.shape[1]), [f"{NAMES[mixer]}\nlr x {rate:g}"
                                          for mixer, rate in codes.columns])
    ax.set_yticks(range(len(codes)), [_row_name(*row) for row in codes.index])
    # Long names are wider in print than on the screen that the layout is made for.
    ax.figure.set_layout_engine("constrained", w_pad=0.1)
    ax.figure.legend([*(Patch(color=colour) for colour in VERDICTS.values()), Patch(**hatched)],
                     [*VERDICTS, f"beyond float16 ({FLOAT16:,.0f})"],
                     loc="outside lower center", ncols=len(VERDICTS) + 1)
    return ax


def _row_name(trunk: str, inputs: str, preset: str, depth: int, clip: float, steps: int) -> str:
    special = [{"state_space": "", "hybrid": "hybrid"}[trunk],
               inputs if inputs != "float32" else ""]
    return ", ".join([*filter(None, special), preset, f"{depth} blocks",
                      f"clip {clip:g}" if clip else "no clip", *([f"{steps} steps"] * bool(steps))])
