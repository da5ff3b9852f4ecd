"""Early ends of a training loop: a monitor, a signal, or no more progress."""

import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch

from mvhlib.artifacts import InputError
from mvhlib.training.distributed import all_reduce, is_distributed


class TrainingStopped(RuntimeError):
    """A monitor stopped the loop; the message says why and names the last good checkpoint."""


class Interrupted(RuntimeError):
    """A signal stopped the loop after its step was saved; starting again goes on from there."""


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
