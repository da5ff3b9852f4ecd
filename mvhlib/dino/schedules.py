"""Schedules over the steps of a run: learning rate, weight decay, momentum, temperature.

The schedules of DINOv2 (Oquab et al. 2023). Warm-ups are given as shares of the run, so that a
run of sixty steps and one of a hundred thousand have the same shape.
"""

import math
from dataclasses import dataclass

import numpy as np

from mvhlib.artifacts import InputError


def cosine(start: float, end: float, n_steps: int, *, warmup: int = 0,
           warmup_from: float = 0.0) -> np.ndarray:
    """Values `(n_steps,)`: a linear warm-up, then half a cosine.

    Parameters
    ----------
    start, end
        Value after the warm-up, and the one that is approached.
    n_steps
        Length of the run.
    warmup
        Steps of the warm-up; it contains both its ends.
    warmup_from
        Value at step 0 where there is a warm-up.

    Raises
    ------
    InputError
        If the warm-up is longer than the run.
    """
    if not 0 <= warmup <= n_steps or n_steps < 1:
        raise InputError("schedule", "warmup", f"{warmup} of {n_steps} steps",
                         "let the warm-up end before the run does")
    n_rest = n_steps - warmup
    rest = end + 0.5 * (start - end) * (1 + np.cos(math.pi * np.arange(n_rest) / max(1, n_rest)))
    return np.concatenate([np.linspace(warmup_from, start, warmup), rest])


def teacher_weights(momentum: np.ndarray) -> np.ndarray:
    """Shares of the initial weights and of every step's student in the final teacher.

    The teacher is ``m_t teacher + (1 - m_t) student_t`` after step t, hence the student of step t
    is in the last teacher with ``(1 - m_t) m_(t+1) ... m_T``.

    Parameters
    ----------
    momentum
        m_1 ... m_T `(steps,)`.

    Returns
    -------
    np.ndarray
        `(steps + 1,)`, the initial weights first; sums to 1. The sum of squares is the variance
        that is left of noise that is independent from step to step, and one over it the number of
        students that the teacher averages.

    Examples
    --------
    >>> teacher_weights(np.array([0.5, 0.75])).tolist()
    [0.375, 0.375, 0.25]
    """
    momentum = np.asarray(momentum, float)
    later = np.append(np.cumprod(momentum[::-1])[::-1], 1.0)
    return np.append(later[0], (1 - momentum) * later[1:])


@dataclass(frozen=True)
class Schedules:
    """Everything that depends on the step, one value per step.

    Parameters
    ----------
    n_steps, batch
        Length of the run and images per step.
    base_lr
        Learning rate for a batch of 1024; scaled by the square root of the batch.
    end_lr
        Learning rate that the cosine approaches.
    warmup, freeze, temperature_warmup
        Shares of the run: learning-rate warm-up, frozen prototypes, rise of the temperature
        (published: 10, 1 and 30 of 200 epochs).
    weight_decay, weight_decay_end
    momentum, momentum_end
        Of the teacher.
    temperature_from, temperature
        Of the teacher.

    Raises
    ------
    InputError
        If a share is not in [0, 1], a rate or temperature not positive, or a momentum not in
        [0, 1].
    """

    n_steps: int
    batch: int
    base_lr: float = 0.002
    end_lr: float = 1e-6
    warmup: float = 0.05
    freeze: float = 0.005
    temperature_warmup: float = 0.15
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    momentum: float = 0.992
    momentum_end: float = 1.0
    temperature_from: float = 0.04
    temperature: float = 0.06

    def __post_init__(self) -> None:
        def refuse(name: str, fix: str) -> None:
            raise InputError("schedule", name, f"is {getattr(self, name)}", fix)

        for name in ("n_steps", "batch"):
            if getattr(self, name) < 1:
                refuse(name, "give at least 1")
        for name in ("warmup", "freeze", "temperature_warmup", "momentum", "momentum_end"):
            if not 0 <= getattr(self, name) <= 1:
                refuse(name, "give a number from 0 to 1 (a warm-up is a share of the run)")
        for name in ("base_lr", "temperature_from", "temperature"):
            if not getattr(self, name) > 0:
                refuse(name, "give a number above 0")
        for name in ("end_lr", "weight_decay", "weight_decay_end"):
            if not getattr(self, name) >= 0:
                refuse(name, "give a number of at least 0")
        n = self.n_steps
        tables = {
            "lr": cosine(self.peak_lr, self.end_lr, n, warmup=round(self.warmup * n)),
            "weight_decay": cosine(self.weight_decay, self.weight_decay_end, n),
            "momentum": cosine(self.momentum, self.momentum_end, n),
            "teacher_temperature": cosine(
                self.temperature, self.temperature, n,
                warmup=round(self.temperature_warmup * n), warmup_from=self.temperature_from)}
        last_layer = tables["lr"].copy()
        last_layer[:round(self.freeze * n)] = 0
        object.__setattr__(self, "tables", tables | {"lr_last_layer": last_layer})

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up."""
        return self.base_lr * math.sqrt(self.batch / 1024)

    def at(self, step: int) -> dict[str, float]:
        """Values of step `step`, counted from 0."""
        return {name: float(table[step]) for name, table in self.tables.items()}
