"""The pretraining loop of DINOv2, the same on one CPU core, one GPU and many.

::

    python -m mvhlib.dino.pretrain params/demo/03_pretrain.yaml encoder=vit12-dino [key=value ...]
    torchrun --nproc-per-node 8 -m mvhlib.dino.pretrain params/paper/03_pretrain.yaml

A step: the teacher sees the two global views of every image; its logits over prototypes are
balanced over the whole batch (Sinkhorn-Knopp) and become targets; the student sees the same views
with patches hidden, and small local views; the teacher follows the student as a moving average.
With gradient accumulation the teacher goes over all micro-batches first, so that the balance is
struck over the whole batch, and a step is the same however the batch is divided.

What it writes, in the encoder's folder::

    model.safetensors, config.json    the teacher's backbone, and the sections that it has seen
    log.csv, log.timing.csv           one row per logged step
    recipe.json                       every setting, and what was read
    state/                            the last few checkpoints

Oquab et al. 2023, DINOv2; the recipe for H&E by Cho et al. 2025. Needs no package metadata.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mvhlib import progress, training
from mvhlib.artifacts import InputError, sha256_file, write_json
from mvhlib.backbones import create_model
from mvhlib.dino import losses, sharding
from mvhlib.dino.augment import MultiCrop
from mvhlib.dino.config import DTYPES, Config, read_settings
from mvhlib.dino.data import BatchOrder, TileSource
from mvhlib.dino.masking import BlockMasks
from mvhlib.dino.model import PARTS, DinoModel, parameter_groups, update_teacher
from mvhlib.dino.monitors import effective_rank, state_space_quantiles
from mvhlib.places import choose_device
from mvhlib.training import TrainingStopped

#: Rows of embeddings that the monitors look at; fixed, so that a log does not depend on the batch.
MONITORED = 4096


class Pretraining:
    """One run: student, teacher, optimiser, data, log, checkpoints.

    Parameters
    ----------
    config
        Every setting.

    Raises
    ------
    InputError
        If settings do not fit each other, the tiles or the number of processes.
    """

    def __init__(self, config: Config):
        self.config = config
        self.device = _device(config.device)
        self.n_processes, self.rank = training.world_size(), training.rank()
        self.micro_batch = _micro_batch(config, self.n_processes)
        self.n_micro = config.batch // (self.micro_batch * self.n_processes)
        self.schedules = config.schedules()
        self.source = open_tiles(config)

        dtype = DTYPES[config.precision]
        self.student = DinoModel(config).to(self.device, dtype)
        self.teacher = DinoModel(config).to(self.device, dtype)
        self.teacher.requires_grad_(False).eval()
        patch = _check_sizes(config, self.source, self.student.backbone)
        cfg = self.student.backbone.pretrained_cfg
        self.views = MultiCrop(config.views(), cfg["mean"], cfg["std"], dtype)
        self.masks = BlockMasks(config.global_px // patch, config.mask_share, config.mask_min,
                                config.mask_max)
        if config.parallel == "fsdp" and self.n_processes > 1:
            sharding.shard(self.student)
            sharding.shard(self.teacher)
        groups = parameter_groups(self.student, config.patch_embed_lr, config.layer_decay)
        # On a GPU a step of the optimiser is one kernel; parts of tensors have none.
        fused = self.device.type == "cuda" and not self._sharded
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), foreach=not fused,
                                           fused=fused)
        self.clipped = {part: list(getattr(self.student, part).parameters()) for part in PARTS}
        self.state = training.LoopState(student=self.student, teacher=self.teacher,
                                        optimizer=self.optimizer)
        self.key = config.recipe() | {"tiles_sha256": self.source.identity}
        self.checkpoints = training.Checkpoints(config.path / "state", config.keep, self.key)
        self.run_student: Callable = self._wrapped()
        self.run_teacher: Callable = self._compiled(self.teacher)
        self.low_rank_for = 0

    def _compiled(self, model: nn.Module) -> nn.Module:
        """The model by `torch.compile`, if that is asked for; what does not compile runs as it is.

        PyTorch warns of every part that it leaves as it is.
        """
        if not self.config.compile:
            return model
        import torch._dynamo  # takes seconds

        torch._dynamo.config.suppress_errors = True
        return torch.compile(model)

    def _wrapped(self) -> Callable:
        model = self._compiled(self.student)
        if self.n_processes == 1 or self.config.parallel == "fsdp":
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    # ---- one step

    def step(self, images: list[Tensor], step: int) -> dict[str, Tensor]:
        """Train on one global batch.

        Parameters
        ----------
        images
            This process's micro-batches, `(B, H, W, 3)` uint8 each.
        step
            Counted from 0.

        Returns
        -------
        dict
            Losses and gradient norms as tensors, averaged over micro-batches and processes
            (`self.last` keeps what the monitors look at).
        """
        now = self.schedules.at(step)
        self._set_rates(now)
        batches = [self._prepare(x, step, micro) for micro, x in enumerate(images)]
        targets = self._targets(batches, now["teacher_temperature"])
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        cls = []
        for micro, (batch, target) in enumerate(zip(batches, targets, strict=True)):
            with self._sync_only_at_the_end(micro):
                self._key_drop_path(step, micro)
                with self._autocast():
                    seen = self.run_student(batch["views"], batch["masks"], batch["local"])
                parts = self._losses(seen, target, batch["masks"])
                loss = sum(parts.values())
                (loss / self.n_micro).backward()
            cls.append(seen["cls"].detach())
            for name, value in ({"loss": loss} | parts).items():
                total[name] = total.get(name, 0) + training.as_double(value.detach()) / self.n_micro
        norms = {f"grad_{part}": training.clip_gradients(held, self.config.clip)
                 for part, held in self.clipped.items()}
        if self._sharded:
            norms = {name: norm.full_tensor() for name, norm in norms.items()}
        self.optimizer.step()
        update_teacher(self.teacher, self.student, now["momentum"])
        names = list(total)
        mean = training.all_reduce(torch.stack([total[n] for n in names])) / self.n_processes
        self.last = {"cls": torch.cat(cls), "targets": targets, "views": batches[0]["views"]}
        return dict(zip(names, mean, strict=True)) | norms

    def _set_rates(self, now: dict[str, float]) -> None:
        for group in self.optimizer.param_groups:
            lr = now["lr_last_layer"] if group["is_last_layer"] else now["lr"]
            group["lr"] = lr * group["lr_factor"]
            group["weight_decay"] = now["weight_decay"] * group["wd_factor"]

    def _prepare(self, images: Tensor, step: int, micro: int) -> dict[str, Tensor]:
        """Views and masks of a micro-batch, keyed by the samples' places in the global batch."""
        index = self.order.positions(micro)
        images = images.to(self.device, non_blocking=True)
        views, local = self.views(images, self.config.seed, step, index)
        n = self.config.batch
        crops = [*index, *(index + n)]  # first views of the batch, then second views
        masks = torch.from_numpy(self.masks.draw(self.config.seed, step, 2 * n, crops))
        return {"views": views, "local": local, "masks": masks.to(self.device)}

    @torch.no_grad()
    def _targets(self, batches: list[dict[str, Tensor]],
                 temperature: float) -> list[dict[str, Tensor]]:
        """The teacher's assignments, balanced over all micro-batches of all processes."""
        with self._autocast():
            seen = [self.run_teacher(b["views"], b["masks"], hide=False) for b in batches]
        dino = losses.sinkhorn([s["dino"] for s in seen], temperature)
        ibot = losses.sinkhorn([s["ibot"] for s in seen], temperature)
        return [{"dino": d, "ibot": i} for d, i in zip(dino, ibot, strict=True)]

    def _losses(self, seen: dict[str, Tensor], target: dict[str, Tensor],
                masks: Tensor) -> dict[str, Tensor]:
        """The four terms, weighted."""
        config, t = self.config, self.config.student_temperature
        first, second = target["dino"].chunk(2)  # (2 B, K) -> 2 x (B, K)
        student = seen["dino"].chunk(2)
        n_terms = 2 + 2 * config.n_local
        # A view is never compared with itself: view 1 learns from view 2.
        across = losses.dino_loss(student[:1], [second], t) + losses.dino_loss(
            student[1:], [first], t)
        local = across.new_zeros(())
        if config.n_local:
            crops = seen["dino_local"].chunk(config.n_local)
            local = losses.dino_loss(crops, [first, second], t)
        spread = sum(losses.koleo_loss(view, config.koleo_group)
                     for view in seen["cls"].chunk(2))
        return {"dino_global": config.dino_weight * across / n_terms,
                "dino_local": config.dino_weight * local / n_terms,
                "ibot": config.ibot_weight * losses.ibot_loss(seen["ibot"], target["ibot"], masks,
                                                              t),
                "koleo": config.koleo_weight * spread}

    def _sync_only_at_the_end(self, micro: int):
        """Gradients of the processes are averaged once per step."""
        last = micro == self.n_micro - 1
        if isinstance(self.run_student, nn.parallel.DistributedDataParallel) and not last:
            return self.run_student.no_sync()
        if self.config.parallel == "fsdp" and self.n_processes > 1:
            self.student.set_requires_gradient_sync(last)
        return nullcontext()

    def _autocast(self):
        on = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def _key_drop_path(self, step: int, micro: int) -> None:
        """Stochastic depth draws from the key of the micro-batch, so that resuming repeats it."""
        if self.config.backbone_options.get("drop_path"):
            rng = training.keyed_generator(self.config.seed, step, int(self.order.positions(
                micro)[0]), stream="drop_path")
            generator = torch.Generator(self.device)
            generator.manual_seed(int(rng.integers(2**62)))
            self.student.backbone.generator = generator

    # ---- the loop

    def train(self, watch: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """Run to the last step, from the newest checkpoint if there is one.

        Parameters
        ----------
        watch
            Called with step and row whenever the log has grown, in the first process.

        Raises
        ------
        TrainingStopped
            If the loss is not finite or the embedding has collapsed.
        Interrupted
            On SIGTERM or SIGINT, after the step was saved.
        InputError
            If memory runs out; says which micro-batch fits.
        """
        config = self.config
        self._resume()
        self.order = self._order()
        log, timing = self._logs()
        with training.stop_on_signal() as stop, progress.bar(
                config.steps, config.encoder, "step", done=self.state.step,
                show=config.progress and not self.rank) as bar:
            clock, done_before = time.perf_counter(), self.state.step
            for step, images in self._batches():
                try:
                    values = self.step(images, step)
                except RuntimeError as error:  # torch.OutOfMemoryError is one
                    if not _is_out_of_memory(error):
                        raise
                    raise self._memory_advice(images) from error
                self.state.step = step + 1
                saves = self.state.step % config.save_every == 0 or self.state.step == config.steps
                if step % config.log_every == 0 or saves:
                    row = self._row(step, values)
                    self._watch(row)
                    if self.rank == 0 and step % config.log_every == 0:
                        log.add(step, row)
                        seconds = time.perf_counter() - clock
                        timing.add(step, {"seconds": seconds, "images_per_second": (
                            self.state.step - done_before) * config.batch / seconds,
                            "peak_mb": _peak_mb(self.device)})
                        if watch is not None:
                            watch(step, row)
                    bar.set_postfix_str(f"loss {row['loss']:.3f}, rank {row['effective_rank']:.1f}")
                if saves:
                    self._save()
                bar.update(1)
                if stop.wanted(self.device) and self.state.step < config.steps:
                    path = self._save()
                    raise training.Interrupted(f"{stop.received or 'a signal'} after step "
                                               f"{self.state.step}; saved {path}")

    def _order(self) -> BatchOrder:
        return BatchOrder(len(self.source), self.config.seed, self.config.batch, self.micro_batch,
                          self.rank, self.n_processes, self.state.step, self.config.steps)

    def _batches(self) -> Iterator[tuple[int, list[Tensor]]]:
        """Micro-batches of every step that is still to come."""
        loader = torch.utils.data.DataLoader(
            self.source, batch_sampler=self.order, collate_fn=torch.from_numpy,
            num_workers=self.config.workers, pin_memory=self.device.type == "cuda")
        stream = iter(loader)
        for step in self.order.steps:
            yield step, [next(stream) for _ in range(self.n_micro)]

    def _resume(self) -> None:
        if self.config.restart and self.rank == 0:
            newest = self.checkpoints.latest()
            try:
                if newest is not None:
                    self.checkpoints.read(newest)
            except InputError as error:
                print(f"begins afresh: {error.problem}", file=sys.stderr)
                self.checkpoints.clear()
        if training.is_distributed():
            dist.barrier()
        if self._sharded:
            sharding.load_sharded(self)
        else:
            self.checkpoints.resume(self.state, self.device)
        self.low_rank_for = int(self.state.notes.get("low_rank_for", 0))

    @property
    def _sharded(self) -> bool:
        return self.config.parallel == "fsdp" and self.n_processes > 1

    def _save(self) -> Path:
        """Checkpoint by the first process; the others wait, so that none runs ahead of it."""
        self.state.notes = {"low_rank_for": self.low_rank_for}
        content = sharding.gather_sharded(self) if self._sharded else self.state
        path = self.checkpoints.folder / f"step_{self.state.step:08d}.pt"
        if self.rank == 0:
            path = self.checkpoints.save(content)
        if training.is_distributed():
            dist.barrier()
        return path

    def _logs(self) -> tuple[training.CsvLog, training.CsvLog]:
        side, dtype = self.config.global_px, DTYPES[self.config.precision]
        quantiles = self._quantiles(torch.zeros(1, 3, side, side, device=self.device, dtype=dtype))
        columns = ["loss", "dino_global", "dino_local", "ibot", "koleo",
                   *(f"grad_{part}" for part in PARTS), *self.schedules.at(0), "target_entropy",
                   "feature_std", "effective_rank", *quantiles]
        log = training.CsvLog(self.config.path / "log.csv", columns)
        timing = training.CsvLog(self.config.path / "log.timing.csv",
                                 ["seconds", "images_per_second", "peak_mb"])
        if self.rank == 0:
            log.cut(self.state.step)
            timing.cut(self.state.step)
        return log, timing

    @torch.no_grad()
    def _row(self, step: int, values: dict[str, Tensor]) -> dict[str, float]:
        """One row of the log; every process computes it alike."""
        cls = training.gather(training.as_double(self.last["cls"]))[:MONITORED]
        p = training.as_double(torch.cat([t["dino"] for t in self.last["targets"]]))
        entropy = -(p * torch.log(p.clamp(min=1e-300))).sum(dim=1).mean()
        entropy = training.all_reduce(entropy) / self.n_processes
        quantiles = self._quantiles(self.last["views"][:4])
        return ({name: float(value) for name, value in values.items()} | self.schedules.at(step)
                | {"target_entropy": float(entropy),
                   "feature_std": float(cls.std(dim=0).mean()),
                   "effective_rank": effective_rank(cls) if bool(cls.isfinite().all()) else 0.0}
                | quantiles)

    def _quantiles(self, views: Tensor) -> dict[str, float]:
        """Time steps and poles of the teacher; not where its layers are spread over processes."""
        return {} if self._sharded else state_space_quantiles(self.teacher.backbone, views)

    def _watch(self, row: dict[str, float]) -> None:
        """Stop a run that has gone wrong, and name its last good checkpoint."""
        good = self.checkpoints.latest()
        last = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        if not math.isfinite(row["loss"]) or not all(
                math.isfinite(row[f"grad_{part}"]) for part in PARTS):
            raise TrainingStopped(
                f"step {self.state.step - 1}: loss {row['loss']:g}, gradient norms "
                f"{[row[f'grad_{part}'] for part in PARTS]}: not finite; {last}. "
                "Lower base_lr, lengthen warmup, or use precision=float32")
        collapsed = row["effective_rank"] < self.config.least_rank
        self.low_rank_for = self.low_rank_for + 1 if collapsed else 0
        if self.low_rank_for > self.config.patience:
            raise TrainingStopped(
                f"step {self.state.step - 1}: the embedding has collapsed (effective rank "
                f"{row['effective_rank']:.2f} < {self.config.least_rank:g} at "
                f"{self.low_rank_for} logged steps in a row); {last}. Raise koleo_weight, lower "
                "base_lr, or check that the tiles are not blank")

    def _memory_advice(self, images: list[Tensor]) -> InputError:
        """What to do when memory ran out: the largest micro-batch that a trial fits."""
        fits = self._largest_that_fits(images[0])
        advice = (f"set micro_batch={fits}: the batch of {self.config.batch} is then accumulated "
                  "and the result stays the same" if fits else
                  "not even one image at a time fits: use a smaller backbone or crop, or "
                  "checkpointing=true")
        return InputError("pretrain", "micro_batch", f"memory ran out at {self.micro_batch} images "
                          f"at once on {self.device}", advice)

    def _largest_that_fits(self, images: Tensor) -> int:
        # Halving keeps a divisor of the batch wherever the batch is a power of two.
        size = self.micro_batch // 2
        while size:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                self._trial(images[:size])
                return size
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                size //= 2
        return 0

    def _trial(self, images: Tensor) -> None:
        """Forward and backward of the student alone, without touching the weights."""
        index = np.arange(len(images))
        views, local = self.views(images.to(self.device), self.config.seed, 0, index)
        masks = self.masks.draw(self.config.seed, 0, 2 * len(images), np.arange(2 * len(images)))
        masks = torch.from_numpy(masks).to(self.device)
        with self._autocast():
            seen = self.student(views, masks, local)
            sum(value.float().square().mean() for value in seen.values() if len(value)).backward()

    # ---- the end

    def export(self) -> Path:
        """Write the teacher's backbone with the list of its training data; the recipe last."""
        folder = self.config.path
        # Gathering needs every process, writing only the first.
        content = sharding.gather_sharded(self)["parts"]["teacher"] if self._sharded else (
            self.teacher.state_dict())
        if self.rank == 0:
            backbone = create_model(self.config.backbone, seed=self.config.seed,
                                    **self.config.backbone_options)
            backbone.load_state_dict({
                name.removeprefix("backbone."): tensor for name, tensor in content.items()
                if name.startswith("backbone.")})
            backbone.save_pretrained(folder, pretrained_on=self.source.saw)
            write_json(folder / "recipe.json", {
                "settings": self.key, "steps_done": self.state.step,
                "n_tiles": len(self.source), "peak_lr": self.schedules.peak_lr,
                "weights_sha256": sha256_file(folder / "model.safetensors")})
        if training.is_distributed():
            dist.barrier()
        return folder

    def is_finished(self) -> bool:
        """True if this recipe has already run to its end here."""
        path, weights = self.config.path / "recipe.json", self.config.path / "model.safetensors"
        if not path.exists() or not weights.exists():
            return False
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return (content.get("settings") == json.loads(json.dumps(self.key))
                and content.get("weights_sha256") == sha256_file(weights))


def pretrain(config: Config, watch: Callable[[int, dict[str, float]], None] | None = None) -> Path:
    """Pretrain one backbone and return its folder; at once where that is done already.

    Parameters
    ----------
    config
        Every setting.
    watch
        Called with step and row whenever the log has grown, in the first process.

    Raises
    ------
    InputError, TrainingStopped, Interrupted
        See `Pretraining`.
    """
    run = Pretraining(config)
    if run.is_finished():
        return config.path
    run.train(watch)
    return run.export()


def open_tiles(config: Config) -> TileSource:
    """The tiles that a configuration names.

    Where a run has slides for pretraining, whose patients are not evaluated, those are the default.
    """
    apart = config.run / "pretraining"
    default = apart / "tiles" if apart.is_dir() else config.run / "tiles"
    path = config.place("tiles") if config.tiles else default
    manifest = config.manifest and config.place("manifest")
    own = (apart if apart.is_dir() else config.run / "cohort") / "manifest.csv"
    if not manifest and config.tiles == "" and own.exists():
        manifest = own
    return TileSource(path, tile_px=config.tile_px,
                      tile_um=config.tile_um, sections=config.sections, exclude=config.exclude,
                      manifest=manifest, study=config.study, on_bad=config.on_bad)


def _device(wanted: str) -> torch.device:
    """The device of this process: under torchrun ``cuda`` is the card of its local rank."""
    wanted = choose_device(wanted, where="pretrain")
    if wanted == "cuda":
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device(wanted)


def _micro_batch(config: Config, n_processes: int) -> int:
    share = config.batch // n_processes
    micro = config.micro_batch or share
    if micro < 1 or config.batch % (micro * n_processes):
        raise InputError("pretrain", "batch", f"{config.batch} is not a multiple of {n_processes} "
                         f"processes x micro_batch {max(1, micro)}",
                         "choose sizes that divide the batch")
    if micro % config.koleo_group and (micro * n_processes) % config.koleo_group:
        raise InputError("pretrain", "koleo_group", f"{config.koleo_group} does not divide the "
                         f"{micro * n_processes} images that are processed together",
                         f"choose a divisor, for example {math.gcd(micro, config.koleo_group)}")
    return micro


def _check_sizes(config: Config, source: TileSource, backbone: nn.Module) -> int:
    """Return the patch size, after checking that tiles, crops and patches fit each other."""
    patch = backbone.patch_embed.patch_size[0]
    for name in ("global_px", "local_px"):
        side = getattr(config, name)
        if side % patch:
            raise InputError("pretrain", name, f"{side} is not a multiple of the patch, {patch} px",
                             f"use {max(1, side // patch) * patch}")
    if source.tile_px < config.global_px:
        raise InputError(source.path, "tile size", f"is {source.tile_px} px, less than the global "
                         f"crop of {config.global_px} px",
                         "cut larger tiles, or set a smaller global_px")
    return patch


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On a GPU its own error; on a CPU a plain one whose text says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# --------------------------------------------------------------------------------------------
# the command


def start_processes(device: torch.device) -> None:
    """Join the other processes when torchrun has started this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line: a YAML file, then ``key=value`` settings that override it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        print("settings and defaults:")
        for name, value in asdict(Config()).items():
            print(f"  {name}={value!r}")
        return 0
    path = None if "=" in arguments[0] else arguments.pop(0)
    code = 0
    try:
        config = read_settings(path, arguments)
        start_processes(_device(config.device))
        folder = pretrain(config)
        if training.rank() == 0:
            print(f"pretrained {config.backbone}: {folder}")
    except training.Interrupted as error:
        print(f"interrupted: {error}", file=sys.stderr)
        code = 143
    except (InputError, TrainingStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
