"""Parts of `gpu.py` that train: jobs, several at a time, each in a process of its own.

``python gpu_train.py JOB.json`` is one of these processes; in a dry run each takes several jobs in
turn, whose trainings are shorter than its start. What is carried home lies below ``<out>/home``:
encoders without their checkpoints, features, trajectories.
"""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_pack
from gpu_measure import Absent, micro_config, write_noise

from mvhlib import artifacts, training
from mvhlib.dino import stability as grids
from mvhlib.dino.config import Config
from mvhlib.dino.monitors import state_shares
from mvhlib.dino.pretrain import Pretraining
from mvhlib.read_outs import ALL

if TYPE_CHECKING:
    from gpu import Bench

#: Encoders of profile `evidence` that are trained, and their backbones.
ENCODERS = {"mvhybrid-dino": "mvhybrid_micro_patch8_64", "vit17-dino": "vit17_micro_patch8_64",
            "mvhybrid-mamba": "mvhybrid_micro_patch8_64.mamba",
            "vit12-dino": "vit12_micro_patch8_64"}
SEEDS, AT_ONCE = 8, 4
#: Full-size encoders of part `her2st`.
FULL = {"mvhybrid-dino": "mvhybrid_small_patch16_256", "vit12-dino": "vit12_small_patch16_256"}
#: Settings of `params/her2st_gpu/03_pretrain.yaml`: the published views and heads, 400 steps.
FULL_RECIPE = {"steps": 400, "batch": 128, "global_px": 256, "local_px": 112, "n_local": 8,
               "prototypes": 8192, "head_hidden": 2048, "head_bottleneck": 256, "koleo_group": 64,
               "momentum": 0.97, "precision": "bf16", "save_every": 100, "log_every": 5,
               "workers": 6, "keep": 1}
#: By how much losses are raised in float16 at first, so that small gradients are not rounded to
#: zero; halved at every overflow, whose step is left out, and doubled after so many good ones.
LOSS_SCALE, GROWTH = 1024.0, 500
#: Logged steps between two looks at how much the states add to the skip path.
STATES_EVERY = 5
#: What of an encoder's folder is carried home.
CARRIED = ("model.safetensors", "config.json", "recipe.json", "log.csv", "states.csv")


# ---- parts ----


def main_experiment(bench: "Bench") -> None:
    """Every encoder with every seed; seed by seed, so that what is done can be compared."""
    tiles = _tiles(bench, "synthetic")
    jobs = []
    # Two seeds of a dry run are the fewest that profile `one_gpu` draws intervals from.
    for seed in range(2 if bench.dry else SEEDS):
        for encoder, backbone in ENCODERS.items():
            slug = f"{encoder}.s{seed}"
            recipe = {"backbone": backbone, "seed": seed, "encoder": slug, "steps": 2000,
                      "batch": 256, "base_lr": 0.002, "momentum": 0.99, "koleo_group": 16,
                      "prototypes": 512, "save_every": 250, "log_every": 20, "workers": 3,
                      "keep": 1}
            config = _config(bench, bench.out / "main" / slug, tiles, recipe)
            jobs.append(_job(bench, slug, "pretrain", config, {"states": True},
                             home=bench.out / "home" / "encoders" / slug))
    _run_jobs(bench, jobs, 2 if bench.dry else AT_ONCE, tiles)


def stability(bench: "Bench") -> None:
    """Cells of the grid of `mvhlib.dino.stability`, in true half precision."""
    tiles = _tiles(bench, "synthetic")
    depth = 2 if bench.dry else 24
    cells = grids.grid([{"depth": [depth], "channel_mixer": ["mlp", "einfft"],
                         "lr_factor": [3, 1]}])
    jobs = []
    for cell in cells[:1 if bench.dry else None]:
        for precision in ("float16", "bf16"):
            what = f"{cell['channel_mixer']} x{cell['lr_factor']:g} {precision}"
            folder = bench.out / "stability" / what.replace(" ", "_")
            config = _config(bench, folder, tiles, {
                **grids.SHORT, "steps": 1500, "batch": 64, "koleo_group": 16, "log_every": 10,
                "workers": 2, "precision": "bf16"})
            config = replace(grids.configure(config, cell), save_every=config.steps)
            jobs.append(_job(bench, what, "stability", config, {"precision": precision},
                             home=bench.out / "home" / "stability"))
    _run_jobs(bench, jobs, 1 if bench.dry else AT_ONCE, tiles)


def her2st(bench: "Bench") -> None:
    """Two full-size encoders, trained once without each tested section; features of all."""
    tiles = _tiles(bench, "her2st")
    folds = bench.pack / "her2st" / "folds.csv" if bench.pack else None
    held_out = folds.read_text(encoding="utf-8").split()[1:] if folds and folds.exists() else []
    if bench.dry and not held_out:
        held_out = ["noise1"]
    jobs = []
    for section in held_out[:1] if bench.dry else held_out:
        for encoder, backbone in FULL.items():
            slug = f"{encoder}.no-{section.lower()}"
            # Replicates of the tested patient, as profile her2st trains on.
            same = [f"{section.rstrip('0123456789')}*"]
            recipe = {"backbone": backbone.replace("small_patch16_256", "micro_patch8_64")
                      if bench.dry else backbone, "encoder": slug, "exclude": [section],
                      "sections": [] if bench.dry else same, **FULL_RECIPE}
            config = _config(bench, bench.out / "her2st" / slug, tiles, recipe)
            home = bench.out / "home" / "features" / slug
            jobs.append(_job(bench, slug, "pretrain", config,
                             {"states": True, "encode": str(home)}, home=None))
    _run_jobs(bench, jobs, 1, tiles)


def _tiles(bench: "Bench", pool: str) -> Path | None:
    """Unpacked tiles; noise in a dry run without a pack; None where they were not packed."""
    folder = bench.out / "tiles" / pool
    packed = bench.pack / pool if bench.pack else None
    if packed is not None and packed.is_dir():
        return gpu_pack.unpack(packed, folder, *((2, 8) if bench.dry else ()))
    if not bench.dry:
        return None
    for name in ("noise1", "noise2"):
        target = folder / f"{name}.h5"
        if not target.exists():
            write_noise(folder, 64, 8)
            os.replace(folder / "noise.h5", target)
    return folder


def _config(bench: "Bench", folder: Path, tiles: Path | None, recipe: dict[str, Any]) -> Config:
    """Settings of a training; a dry run keeps the model and takes micro sizes."""
    owners = bench.pack / tiles.name / "manifest.csv" if bench.pack and tiles else None
    settings = recipe | {"manifest": str(owners) if owners and owners.is_file() else ""}
    if bench.dry:
        sizes = {"steps": 2, "batch": 4, "koleo_group": 4, "workers": 0, "log_every": 1,
                 "save_every": 1, "precision": "float32", "global_px": 32, "local_px": 16,
                 "n_local": 2, "prototypes": 32, "head_hidden": 16, "head_bottleneck": 8}
        settings |= sizes
    return micro_config(folder, tiles or Path("missing"), bench.device.type, **settings)


# ---- jobs ----


def _job(bench: "Bench", what: str, kind: str, config: Config, options: dict[str, Any],
         home: Path | None) -> dict[str, Any]:
    return {"what": what, "kind": kind, "config": config.__dict__, "options": options,
            "dry": bench.dry, "home": str(home) if home else ""}


def _run_jobs(bench: "Bench", jobs: list[dict[str, Any]], at_once: int, tiles: Path | None) -> None:
    """Run jobs in turn, so many at a time; those that time ran out for are asked to save and stop.

    A process has one job, in a dry run its share of them. A job that stopped leaves no row, and
    goes on from its checkpoint at the next call.
    """
    if tiles is None:
        for job in jobs:
            bench.row(job["what"], _not_packed)
        return
    waiting = [job for job in jobs if not bench.ledger.is_settled(bench.part, job["what"])]
    groups = [waiting[i::at_once] for i in range(at_once)] if bench.dry else [[j] for j in waiting]
    groups = [group for group in groups if group]
    running: list[tuple[list[dict[str, Any]], subprocess.Popen, float]] = []
    while groups or running:
        while groups and len(running) < at_once and bench.left() > 0:
            group = groups.pop(0)
            running.append((group, _start(group), time.monotonic()))
        if not running:
            break
        for one in [one for one in running if one[1].poll() is not None]:
            running.remove(one)
            _finish(bench, *one)
        if bench.left() <= 0:
            groups = []
            for _, process, _ in running:
                process.send_signal(signal.SIGTERM)
            for group, process, started in running:
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                _finish(bench, group, process, started)
            break
        time.sleep(0.2)
    left = [job["what"] for job in jobs
            if not bench.ledger.is_settled(bench.part, job["what"])]
    if left:
        print(f"  no time left for {', '.join(left)}: the same command goes on", flush=True)


def _not_packed() -> dict[str, Any]:
    raise Absent("no tiles of it were packed")


def _folder(job: dict[str, Any]) -> Path:
    return Path(job["config"]["folder"])


def _start(group: list[dict[str, Any]]) -> subprocess.Popen:
    paths = []
    for job in group:
        _folder(job).mkdir(parents=True, exist_ok=True)
        (_folder(job) / "answer.json").unlink(missing_ok=True)
        paths.append(str(artifacts.write_json(_folder(job) / "job.json", job)))
    threads = max(1, (os.cpu_count() or 1) // AT_ONCE)
    log = open(_log(group), "a", encoding="utf-8")  # noqa: SIM115, the process keeps it
    return subprocess.Popen([sys.executable, __file__, *paths], stdout=log, stderr=log,
                            env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def _log(group: list[dict[str, Any]]) -> Path:
    """What a process prints goes to the folder of its first job."""
    return _folder(group[0]) / "job.txt"


def _finish(bench: "Bench", group: list[dict[str, Any]], process: subprocess.Popen,
            started: float) -> None:
    """Write the rows of the jobs of a process that ended by itself."""
    seconds = time.monotonic() - started
    for job in group:
        answer = _folder(job) / "answer.json"
        if answer.exists():
            bench.write(job["what"], {"status": "ok", "seconds": seconds}
                        | artifacts.read_json(answer))
        elif process.returncode not in (INTERRUPTED, -signal.SIGTERM, -signal.SIGKILL):
            said = _log(group).read_text(encoding="utf-8", errors="replace")
            lines = said.strip().splitlines() or ["no message"]
            bench.write(job["what"], {"status": "failed", "seconds": seconds,
                                      "note": artifacts.one_line(lines[-1], 300)})


#: Exit status of a job that saved its state because it was asked to stop.
INTERRUPTED = 143


# ---- one job, in its own process ----


class Half(grids.Recorder):
    """A recorded pretraining whose autocast is float16 or bf16.

    In float16 the gradients inside the network are multiplied by `scaled`, and divided by it as
    they reach a parameter. A run is stopped for an overflow only where `scaled` fell below 1.
    """

    def __init__(self, config: Config, precision: str):
        super().__init__(config)
        self.half = {"float16": torch.float16, "bf16": torch.bfloat16}[precision]
        self.scaled = LOSS_SCALE if precision == "float16" else 1.0
        for parameter in self.student.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._scale_down)
        self.good, self.skipped = 0, 0
        if precision == "float16":
            self.take_step, self.optimizer.step = self.optimizer.step, self._step_unless_overflown

    def _step_unless_overflown(self) -> None:
        sums = [p.grad.sum() for p in self.student.parameters() if p.grad is not None]
        if bool(torch.stack(sums).isfinite().all()):
            self.take_step()
            self.good += 1
            self.scaled *= 1 if self.good % GROWTH else 2
        else:
            self.good, self.skipped, self.scaled = 0, self.skipped + 1, self.scaled / 2

    def _watch(self, row: dict[str, float]) -> None:
        self.rows[-1]["loss_scale"] = self.scaled
        overflown = self.skipped and not self.good and self.scaled >= 1
        if not (overflown and math.isfinite(row["loss"])):
            super()._watch(row)

    def _scale_down(self, parameter: torch.Tensor) -> None:
        parameter.grad.div_(self.scaled)

    def _autocast(self):
        return torch.autocast(self.device.type, self.half)

    def _losses(self, seen, target, masks):
        seen = {name: _ScaledBack.apply(tensor, self.scaled) if tensor.requires_grad else tensor
                for name, tensor in seen.items()}
        return super()._losses(seen, target, masks)


class _ScaledBack(torch.autograd.Function):
    """The same numbers forth, a multiple of the gradient back."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Pretrain, keep how much the states are used, embed where that is asked for."""
    config = Config(**job["config"])
    run = Pretraining(config)
    if not run.is_finished():
        run.train(_states_log(run) if job["options"].get("states") else None)
        run.export()
    log = training.read_log(config.path / "log.csv")
    poles = [name for name in log if name.startswith("pole_")]
    notes = [f"effective rank {log['effective_rank'][-1]:.1f}"]
    if poles:
        notes.append(f"poles {min(log[p][-1] for p in poles):.2f} to "
                     f"{max(log[p][-1] for p in poles):.3f} (quantiles)")
    if job["options"].get("encode"):
        notes.append(f"{_encode(config, Path(job['options']['encode']))} tiles embedded")
    return {"value": log["loss"][-1], "unit": "loss at the end", "dtype": config.precision,
            "note": "; ".join(notes)}


def _states_log(run: Pretraining) -> Callable[[int, dict[str, float]], None]:
    """Writes ``states.csv``: state over skip of every state-space block, now and then."""
    path = run.config.path / "states.csv"
    calls = [0]

    def watch(step: int, row: dict[str, float]) -> None:
        calls[0] += 1
        if (calls[0] - 1) % STATES_EVERY and step + 1 < run.config.steps:
            return
        shares = state_shares(run.teacher.backbone, run.last["views"][:4].float())
        fresh = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if fresh:
                writer.writerow(["step", "block", "share"])
            writer.writerows((step, block, f"{share:.6g}") for block, share in shares.items())

    return watch


def _encode(config: Config, target: Path) -> int:
    """Features of every section by all read-outs, and what 04_embed writes beside them."""
    from mvhlib import encoders

    model = encoders.create_encoder(config.path, name=config.encoder, device=config.device,
                                    pool=ALL)
    rows = encoders.encode_folder(model, config.tiles, target)
    about = {"pretrained_on": model.pretrained_on, "rows": rows, "made": model.description | {
        "recipe": {"encoder": config.encoder, "source": config.backbone, "weights": "pretrained",
                   "options": {}, "seed": config.seed, "normalise_stain": ""}}}
    artifacts.write_json(target / "about.json", about)
    return sum(row["n_tiles"] for row in rows)


def train_cell(job: dict[str, Any]) -> dict[str, Any]:
    """One cell of the stability grid; its trajectory goes to ``<cell>.csv``."""
    run = Half(Config(**job["config"]), job["options"]["precision"])
    stopped = ""
    try:
        run.train()
    except training.TrainingStopped as error:
        stopped = artifacts.one_line(error, 160)
    path = Path(job["home"]) / f"{_folder(job).name}.csv"
    names = list(dict.fromkeys(name for row in run.rows for name in row))
    with artifacts.atomic(path) as temporary, open(
            temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(run.rows)
    first, last = run.rows[0], run.rows[-1]
    largest = max(value for row in run.rows for name, value in row.items()
                  if name.startswith("activation_"))
    return {"value": last["loss"] / first["loss"], "unit": "last loss over first",
            "dtype": job["options"]["precision"],
            "note": f"{int(last['step']) + 1} steps, {run.skipped} left out for an overflow; "
                    f"largest activation {largest:.3g}"
                    + (f"; {stopped}" if stopped else "")}


def main(paths: Sequence[str]) -> int:
    """Jobs in turn, up to one that is asked to stop."""
    for path in paths:
        if status := run(Path(path)):
            return status
    return 0


def run(path: Path) -> int:
    """One job; its answer appears when it is done."""
    job = json.loads(path.read_text(encoding="utf-8"))
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    try:
        answer = {"pretrain": train, "stability": train_cell}[job["kind"]](job)
    except training.Interrupted as error:
        print(error)
        return INTERRUPTED
    if job["home"] and job["kind"] == "pretrain":
        for name in CARRIED:
            source = _folder(job) / name
            if source.exists():
                Path(job["home"]).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, Path(job["home"]) / name)
    artifacts.write_json(_folder(job) / "answer.json", answer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
