"""An epoch loop for small supervised models."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvhlib.artifacts import InputError, atomic
from mvhlib.training.checkpoints import Checkpoints, LoopState
from mvhlib.training.logs import cell
from mvhlib.training.rng import keyed_generator
from mvhlib.training.stopping import EarlyStop, TrainingStopped


def clip_gradients(parameters: Iterable[Tensor], largest_norm: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `largest_norm`; returns the norm before.

    0 measures without clipping.
    """
    held = [p for p in parameters if p.grad is not None]
    limit = largest_norm if largest_norm > 0 else math.inf
    return torch.nn.utils.clip_grad_norm_(held, limit)


@dataclass
class FitConfig:
    """Training settings of a small supervised model.

    Attributes
    ----------
    epochs, batch
        Passes over the rows, and rows in a step.
    lr, min_lr, warmup_epochs
        Learning rate: linear warm-up, then half a cosine down to `min_lr`.
    optimizer, weight_decay
        ``"adam"`` (decay is added to the gradient) or ``"adamw"`` (decoupled).
    clip
        Largest norm of all gradients together; 0 does not clip.
    patience
        Epochs without a better validation loss after which training stops; 0 never stops early.
    save_every
        Epochs between checkpoints.
    """

    epochs: int = 50
    batch: int = 16
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_epochs: int = 0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip: float = 0.0
    patience: int = 0
    save_every: int = 1

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("save_every", 1), ("patience", 0),
                            ("warmup_epochs", 0)):
            if getattr(self, name) < least:
                raise InputError("FitConfig", name, f"is {getattr(self, name)}",
                                 f"use {least} or more")
        if self.optimizer not in ("adam", "adamw"):
            raise InputError("FitConfig", "optimizer", f"is {self.optimizer!r}",
                             "choose adam or adamw")
        if not 0 <= self.min_lr <= self.lr:
            raise InputError("FitConfig", "min_lr", f"is {self.min_lr} beside lr {self.lr}",
                             "use 0 to lr")


@dataclass(frozen=True)
class Fit:
    """Result of an epoch loop.

    Attributes
    ----------
    log
        One dict per epoch: epoch, lr, the mean of every loss term, and the validation's values
        under ``valid_<name>``.
    best_epoch
        The epoch (from 1) whose weights the model now has: the best by validation, else the last.
    n_parameters
        Numbers that were trained.
    """

    log: list[dict[str, float]]
    best_epoch: int
    n_parameters: int

    @property
    def n_epochs(self) -> int:
        return len(self.log)


def learning_rate(config: FitConfig, progress: float) -> float:
    """Learning rate after `progress` epochs: linear warm-up, then half a cosine to `min_lr`."""
    if progress < config.warmup_epochs:
        return config.lr * progress / config.warmup_epochs
    whole = max(config.epochs - config.warmup_epochs, 1)
    angle = math.pi * min((progress - config.warmup_epochs) / whole, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(angle)) / 2


def fit(model: torch.nn.Module, loss: Callable[[np.ndarray, int], Mapping[str, Tensor]], n: int,
        config: FitConfig, *, seed: int,
        validate: Callable[[], float | Mapping[str, float]] | None = None,
        folder: str | os.PathLike | None = None, key: Any = None) -> Fit:
    """Train a model over epochs, stop early, keep the best weights.

    Parameters
    ----------
    model
        Parameters with ``requires_grad`` are trained, in place.
    loss
        Rows `(B,)` and epoch (from 0) -> terms; ``"loss"`` is minimised, all of them are logged.
        torch's global generator is seeded by (seed, step) before each call, so that dropout and
        augmentation repeat after a resume; a last batch of one row is dropped unless it is alone.
    n
        Rows to train on; their order is a function of seed and epoch.
    validate
        Called after each epoch in evaluation mode; lower is better. Of a mapping, ``"loss"``
        counts. None: no early stop, and the last weights are the result.
    folder
        Holds ``state/`` and ``log.csv``. Killed and called again, training ends with the same
        weights. None: nothing is written.
    key
        Names the recipe; a state of another one is refused.

    Raises
    ------
    TrainingStopped
        If the loss is not finite.
    InputError
        If the folder holds the state of another recipe, or there are no rows.
    """
    if n < 1:
        raise InputError("fit", "n", "is 0 rows", "give training rows")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("fit", "model", "has no parameter to train", "let some require gradients")
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    optimizer = kind(trained, lr=config.lr, weight_decay=config.weight_decay)
    stop = EarlyStop(config.patience)
    state = LoopState(model=model, optimizer=optimizer, stop=stop)
    state.notes = {"log": [], "best": None, "stopped": False}
    checkpoints = None
    if folder is not None:
        recipe = {"config": asdict(config), "n": n, "seed": seed, "key": key}
        checkpoints = Checkpoints(Path(folder) / "state", keep=1, key=recipe)
        checkpoints.resume(state)
    batches = [slice(start, start + config.batch) for start in range(0, n, config.batch)]
    if len(batches) > 1 and n - batches[-1].start == 1:
        batches.pop()
    with torch.random.fork_rng(devices=[]):
        while state.step < config.epochs and not state.notes["stopped"]:
            epoch = state.step
            order = keyed_generator(seed, epoch, stream="order").permutation(n)
            row = _train_epoch(model, loss, [order[batch] for batch in batches], config, epoch,
                               trained=trained, optimizer=optimizer, seed=seed)
            better = True
            if validate is not None:
                model.eval()
                with torch.no_grad():
                    found = validate()
                found = dict(found) if isinstance(found, Mapping) else {"loss": float(found)}
                row |= {f"valid_{name}": float(value) for name, value in found.items()}
                state.notes["stopped"] = stop.update(float(found["loss"]), epoch + 1)
                better = stop.best_step == epoch + 1
            state.notes["log"].append(row)
            if better:
                state.notes["best"] = {name: value.detach().clone()
                                       for name, value in model.state_dict().items()}
            state.step = epoch + 1
            last = state.step == config.epochs or state.notes["stopped"]
            if checkpoints is not None and (last or state.step % config.save_every == 0):
                checkpoints.save(state)
    log = state.notes["log"]
    if state.notes["best"] is not None:
        model.load_state_dict(state.notes["best"])
    model.eval()
    if folder is not None:
        _write_log(Path(folder) / "log.csv", log)
    best = stop.best_step if validate is not None and stop.best_step > 0 else len(log)
    return Fit(log, best, sum(p.numel() for p in trained))


def _train_epoch(model: torch.nn.Module, loss: Callable[[np.ndarray, int], Mapping[str, Tensor]],
                 batches: list[np.ndarray], config: FitConfig, epoch: int, *, trained: list[Tensor],
                 optimizer: torch.optim.Optimizer, seed: int) -> dict[str, float]:
    """Take one step per batch of rows; the log's row: epoch, lr, mean of every loss term."""
    model.train()
    sums: dict[str, float] = {}
    for number, rows in enumerate(batches):
        step = epoch * len(batches) + number
        rate = learning_rate(config, step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        number_of_step = int(keyed_generator(seed, step).integers(2**62))
        torch.default_generator.manual_seed(number_of_step)
        if torch.cuda.is_initialized():  # this check costs little, seeding a millisecond
            torch.cuda.manual_seed(number_of_step)
        terms = loss(rows, epoch)
        if not torch.isfinite(terms["loss"]):
            raise TrainingStopped(f"the loss is {float(terms['loss'].detach())} in epoch "
                                  f"{epoch + 1}; lower lr or set clip")
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if config.clip:
            clip_gradients(trained, config.clip)
        optimizer.step()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    return {"epoch": epoch + 1, "lr": rate,
            **{name: value / len(batches) for name, value in sums.items()}}


def _write_log(path: Path, log: list[dict[str, float]]) -> None:
    columns = list(log[0])
    with atomic(path) as temporary:
        lines = [",".join(columns), *(",".join(cell(row[name]) for name in columns)
                                      for row in log)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
