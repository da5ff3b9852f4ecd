"""What every training loop shares: random numbers by key, state, checkpoints, logs, early stopping.

A loop that is killed at any moment and started again ends with the same bytes. Three things make
that true: random numbers depend on (seed, step, index) and on nothing that happened before;
checkpoints appear by rename, so that a file is whole or absent; the log is cut back to the
checkpoint before it grows again.

::

    <folder>/state/step_00000120.pt     weights, optimiser, generators, step; the last few are kept;
                                        ends with the sha256 of its bytes
    <folder>/log.csv                    one row per logged step; equal runs give equal bytes
    <folder>/log.timing.csv             wall-clock columns, which never repeat

Works in one process and under ``torchrun``; the helpers for many processes do nothing in one.
"""

import contextlib
import csv
import hashlib
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mvhlib.artifacts import FLOAT_FORMAT, InputError, atomic, reading, sha256_file
from mvhlib.parameters import check, parse_yaml, read_yaml


class TrainingStopped(RuntimeError):
    """A monitor stopped the loop; the message says why and names the last good checkpoint."""


class Interrupted(RuntimeError):
    """A signal stopped the loop after its step was saved; starting again goes on from there."""


# --------------------------------------------------------------------------------------------
# random numbers


#: Streams that must not share numbers although their keys are equal.
STREAMS = ("augmentation", "masks", "mask_ratios", "order", "drop_path", "noise")


def keyed_generator(seed: int, step: int = 0, index: int = 0,
                    stream: str = "noise") -> np.random.Generator:
    """A generator that is a function of its key alone.

    Parameters
    ----------
    seed, step, index
        Not negative. Sample `index` of step `step` gets the same numbers whichever process,
        and whichever micro-batch, it falls into.
    stream
        One of `STREAMS`.

    Notes
    -----
    Philox (Salmon et al., SC 2011) maps (key, counter) to numbers without any state: the key is
    (seed, step), and the two upper words of the counter are (stream, index).
    """
    counter = [0, 0, STREAMS.index(stream), index]
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=counter))


# --------------------------------------------------------------------------------------------
# many processes


def as_double(x: Tensor) -> Tensor:
    """`x` in float64, where it is; on the CPU where its device has no such numbers (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def is_distributed() -> bool:
    """Whether more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
    """Reduce `tensor` over all processes in place, and return it; alone, nothing happens."""
    if is_distributed():
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
    return tensor


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient of a row returns to its owner."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.n_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = all_reduce(gradient.contiguous().clone())
        return gradient[rank() * ctx.n_rows:(rank() + 1) * ctx.n_rows]


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, `(n, D)` to `(W n, D)`, with gradient.

    Every process gets the gradient summed over all of them, W times that of a loss which all
    compute alike; averaging gradients over processes, as DDP does, takes that factor out again.
    """
    return _Gather.apply(rows) if is_distributed() else rows


# --------------------------------------------------------------------------------------------
# configuration


def read_config(kind: type, path: str | os.PathLike | None = None,
                overrides: Sequence[str] | Mapping[str, Any] = ()) -> Any:
    """Make a flat dataclass of a YAML file and ``key=value`` overrides.

    Parameters
    ----------
    kind
        A dataclass; its annotations (int, float, str, bool, list[...], dict) are the types.
    path
        A YAML file of names and values, or None for the defaults.
    overrides
        ``["steps=10", ...]`` or a mapping; they win over the file.

    Raises
    ------
    InputError
        On an unknown name (the nearest is named), a wrong type, or a file that is no mapping.
    """
    where = kind.__name__ if path is None else path
    values = {} if path is None else read_yaml(path)
    _check_config(kind, where, values)
    if not isinstance(overrides, Mapping):
        overrides = read_pairs(overrides)
    _check_config(kind, "command line", dict(overrides))
    merged = values | dict(overrides)
    types = {field.name: field.type for field in fields(kind)}
    return kind(**{name: _coerce(value, types[name]) for name, value in merged.items()})


def read_pairs(items: Sequence[str]) -> dict[str, Any]:
    """Values of ``["key=value", ...]``, each value read as YAML.

    Raises
    ------
    InputError
        If an item has no ``=``.
    """
    pairs = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError("command line", item, "is no key=value", "write key=value")
        pairs[name] = parse_yaml(text, "command line", name)
    return pairs


def _check_config(kind: type, where: str | os.PathLike, values: Mapping[str, Any]) -> None:
    known = {field.name: field for field in fields(kind)}
    check(where, {name: field.type for name, field in known.items()},
          {name: _coerce(value, known[name].type) if name in known else value
           for name, value in values.items()},
          noun="setting", examples={name: field.default for name, field in known.items()
                                    if field.default is not MISSING})


def _coerce(value: Any, annotation: Any) -> Any:
    """YAML reads ``1e-6`` as text and ``1`` as an integer; a float is meant by both."""
    if annotation is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if getattr(annotation, "__origin__", None) is list and isinstance(value, list):
        return [_coerce(item, annotation.__args__[0]) for item in value]
    return value


# --------------------------------------------------------------------------------------------
# state and checkpoints


class LoopState:
    """What has to be kept so that the next step is the one that would have come.

    Parameters
    ----------
    parts
        Named objects with `state_dict` and `load_state_dict` (modules, optimisers, `EarlyStop`),
        or generators of numpy or torch.

    Attributes
    ----------
    step
        Steps that are done.
    notes
        Plain values (numbers, strings, lists) that the loop wants to keep.

    Examples
    --------
    >>> state = LoopState(model=model, optimizer=optimizer, rng=rng)
    >>> checkpoints = Checkpoints(folder / "state", keep=3)
    >>> checkpoints.resume(state)                     # step 0 where there is none
    >>> while state.step < n_steps:
    ...     train_one_step(); state.step += 1
    ...     checkpoints.save(state)
    """

    def __init__(self, **parts: Any):
        self.parts = parts
        self.step = 0
        self.notes: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "notes": self.notes,
                "parts": {name: _state_of(part) for name, part in self.parts.items()}}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises
        ------
        KeyError, RuntimeError, ValueError
            If it is the state of something else.
        """
        if set(content["parts"]) != set(self.parts):
            raise KeyError(f"parts {sorted(content['parts'])}, not {sorted(self.parts)}")
        for name, part in self.parts.items():
            _restore(part, content["parts"][name])
        self.step, self.notes = content["step"], content["notes"]


def _state_of(part: Any) -> Any:
    if isinstance(part, np.random.Generator):
        return _packed(part.bit_generator.state)
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict()


def _restore(part: Any, content: Any) -> None:
    if isinstance(part, np.random.Generator):
        part.bit_generator.state = _unpacked(content)
    elif isinstance(part, torch.Generator):
        part.set_state(content)
    else:
        part.load_state_dict(content)


def _packed(value: Any) -> Any:
    """The state of a numpy generator in types that a safe load accepts (arrays are not)."""
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"array": [int(item) for item in value], "dtype": str(value.dtype)}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    if isinstance(value, dict):
        return {key: _unpacked(item) for key, item in value.items()}
    return value


class Checkpoints:
    """The last few states of a loop in one folder.

    Parameters
    ----------
    folder
        Made if it is not there.
    keep
        States that stay; older ones are deleted after a newer one is in place.
    key
        Names the recipe; a state that was saved under another key is refused.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 3, key: Any = None):
        self.folder, self.keep, self.key = Path(folder), max(1, keep), key

    def files(self) -> list[Path]:
        """Saved states, oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def latest(self) -> Path | None:
        found = self.files()
        return found[-1] if found else None

    def save(self, state: LoopState | dict[str, Any]) -> Path:
        """Write a state by atomic rename, then delete those that are too old."""
        content = state.state_dict() if hasattr(state, "state_dict") else state
        path = self.folder / f"step_{content['step']:08d}.pt"
        with atomic(path) as temporary:
            torch.save({"key": self.key, **content}, temporary)
            _seal(temporary)
        for old in self.files()[:-self.keep]:
            old.unlink(missing_ok=True)
        return path

    def read(self, path: Path, map_location: Any = "cpu") -> dict[str, Any]:
        """Read one state, as tensors and plain values only.

        Raises
        ------
        InputError
            If the file's bytes are not those whose hash it ends with (truncated, rotten, edited, or
            of a version that wrote none: nothing would vouch for them), or it was saved under
            another key (says which entries differ).
        """
        fix = "delete this file; the one before it is used then"
        with reading(path, "content", "is no readable state", fix):
            if not _is_sealed(path):
                raise InputError(path, "sha256", "is no readable state: its bytes are not those "
                                 "that were saved", fix)
            content = torch.load(path, map_location=map_location, weights_only=True)
            step = content["step"]
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise InputError(path, "step", f"is {step!r}", fix)
            if not isinstance(content["parts"], dict) or not isinstance(content["notes"], dict):
                raise InputError(path, "parts", "are no readable state", fix)
        if content.get("key") != self.key:
            raise InputError(path, "key", f"was saved by another recipe: "
                             f"{difference(content.get('key'), self.key)}",
                             "restore these settings, or begin afresh with restart=true")
        return content

    def resume(self, state: LoopState, map_location: Any = "cpu") -> bool:
        """Load the newest state into `state`; False where there is none.

        Raises
        ------
        InputError
            If the newest is unreadable, of another recipe, or of another model.
        """
        path = self.latest()
        if path is None:
            return False
        content = self.read(path, map_location)
        try:
            state.load_state_dict(content)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(path, "content", f"is the state of another model ({reason})",
                             "name another folder, or begin afresh with restart=true") from error
        return True

    def clear(self) -> None:
        for path in self.files():
            path.unlink(missing_ok=True)


#: What stands before the hash, and the length of both together.
_SEAL, _SEALED = b"sha256:", len(b"sha256:") + 64


def _seal(path: Path) -> None:
    """Put the hash of a zip archive (which a state is) behind it, as the archive's comment.

    One file holds both, so that no kill and no copy can part them.
    """
    with open(path, "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(_SEALED.to_bytes(2, "little"))  # length of the comment
    digest = sha256_file(path)
    with open(path, "ab") as stream:
        stream.write(_SEAL + digest.encode())


def _is_sealed(path: Path) -> bool:
    with open(path, "rb") as stream:
        left = stream.seek(0, os.SEEK_END) - _SEALED
        stream.seek(0)
        digest = hashlib.sha256()
        while left > 0 and (chunk := stream.read(min(left, 2**20))):
            digest.update(chunk)
            left -= len(chunk)
        return stream.read() == _SEAL + digest.hexdigest().encode()


def difference(old: Any, new: Any) -> str:
    """Say in which entries two keys differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{old!r}, not {new!r}"
    parts = [f"{name} was {old.get(name, 'absent')!r}, is {new.get(name, 'absent')!r}"
             for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return "; ".join(parts) or "nothing"


# --------------------------------------------------------------------------------------------
# logs


class CsvLog:
    """A csv that grows by one row per logged step and survives being killed.

    Parameters
    ----------
    path
        Its first column is ``step``.
    columns
        Names of the other columns.
    """

    def __init__(self, path: str | os.PathLike, columns: Iterable[str]):
        self.path = Path(path)
        self.columns = ["step", *columns]

    def cut(self, step: int) -> None:
        """Keep only whole rows of steps before `step`: those after it will be written again."""
        rows = []
        if self.path.exists():
            with reading(self.path, "log", fix="delete it"), \
                    open(self.path, newline="", encoding="utf-8") as stream:
                text = stream.read()
            whole = text[:text.rfind("\n") + 1]
            rows = [line for line in whole.splitlines()[1:]
                    if line.split(",", 1)[0].isdigit() and int(line.split(",", 1)[0]) < step]
        with atomic(self.path) as temporary:
            lines = [",".join(self.columns), *rows]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row.

        Raises
        ------
        InputError
            If a column is missing or unknown.
        """
        row = {"step": step, **values}
        if set(row) != set(self.columns):
            raise InputError(self.path, "columns", f"{set(row) ^ set(self.columns)} are missing or "
                             "unknown", "give a value for every column")
        line = ",".join(_cell(row[name]) for name in self.columns)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return FLOAT_FORMAT % value
    return str(value)


def read_log(path: str | os.PathLike) -> dict[str, list[float]]:
    """Read a log as lists of numbers, one per column; an unfinished last row is left out."""
    with reading(path, "log", "is no log of numbers", "delete it and train again"):
        with open(path, newline="", encoding="utf-8") as stream:
            text = stream.read()
        names, *rows = [row for row in csv.reader(text[:text.rfind("\n") + 1].splitlines())
                        if row] or [[]]
        if any(len(row) != len(names) for row in rows) or len(set(names)) < len(names):
            raise ValueError("its rows differ in width, or a column stands twice")
        found = {name: [float(row[at]) for row in rows] for at, name in enumerate(names) if rows}
        if rows and not all(step >= 0 and step.is_integer() for step in found["step"]):
            raise ValueError("its steps are no whole numbers from 0")
        return found


# --------------------------------------------------------------------------------------------
# stopping


class EarlyStop:
    """Stop when a score has not improved for some time.

    Parameters
    ----------
    patience
        Checks without improvement after which `update` says stop; 0 never stops.
    mode
        ``"min"`` or ``"max"``: which way is better.
    min_delta
        Improvement that counts.
    """

    def __init__(self, patience: int, mode: str = "min", min_delta: float = 0.0):
        if mode not in ("min", "max"):
            raise InputError("EarlyStop", "mode", f"is {mode!r}", "choose min or max")
        self.patience, self.mode, self.min_delta = patience, mode, min_delta
        self.best = math.inf if mode == "min" else -math.inf
        self.best_step = -1
        self.waited = 0

    def update(self, value: float, step: int) -> bool:
        """Note a score; True where training should stop. NaN never counts as an improvement."""
        sign = 1 if self.mode == "min" else -1
        if sign * value < sign * self.best - self.min_delta:
            self.best, self.best_step, self.waited = float(value), step, 0
        else:
            self.waited += 1
        return bool(self.patience) and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        self.best, self.best_step = content["best"], content["best_step"]
        self.waited = content["waited"]


class StopSignal:
    """Turns SIGTERM and SIGINT into a wish that the loop reads between two steps.

    SLURM sends SIGTERM before it takes a node away; a step that is under way is finished and
    saved first. Works in the main thread only; elsewhere signals keep their meaning.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def wanted(self, device: Any = "cpu") -> bool:
        """Whether any process was asked to stop; all of them agree on the answer."""
        if not is_distributed():
            return self.received is not None
        flag = torch.tensor(float(self.received is not None), device=device)
        return bool(all_reduce(flag, "max").item())


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """Catch SIGTERM and SIGINT while the block runs; a second SIGINT kills as usual.

    A second SIGTERM is no haste: a scheduler signals every process of a job, and a launcher passes
    it on to its workers, so that each of them is told twice.
    """
    wish = StopSignal()

    def note(number: int, _frame: Any) -> None:
        if wish.received and number == signal.SIGTERM:
            return
        if wish.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        wish.received = signal.Signals(number).name
        print(f"{wish.received}: stopping after this step", file=sys.stderr)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clip_gradients(parameters: Iterable[Tensor], largest_norm: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `largest_norm`; returns the norm before.

    0 measures without clipping.
    """
    held = [p for p in parameters if p.grad is not None]
    limit = largest_norm if largest_norm > 0 else math.inf
    return torch.nn.utils.clip_grad_norm_(held, limit)


# --------------------------------------------------------------------------------------------
# an epoch loop


@dataclass
class FitConfig:
    """How a small supervised model is trained.

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
    """What an epoch loop gave.

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
            model.train()
            sums: dict[str, float] = {}
            for number, batch in enumerate(batches):
                step = epoch * len(batches) + number
                rate = learning_rate(config, step / len(batches))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                number_of_step = int(keyed_generator(seed, step).integers(2**62))
                torch.default_generator.manual_seed(number_of_step)
                if torch.cuda.is_initialized():  # asking costs little, seeding a millisecond
                    torch.cuda.manual_seed(number_of_step)
                terms = loss(order[batch], epoch)
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
            row = {"epoch": epoch + 1, "lr": rate,
                   **{name: value / len(batches) for name, value in sums.items()}}
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


def _write_log(path: Path, log: list[dict[str, float]]) -> None:
    columns = list(log[0])
    with atomic(path) as temporary:
        lines = [",".join(columns), *(",".join(_cell(row[name]) for name in columns)
                                      for row in log)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
