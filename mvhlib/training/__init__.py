"""Parts of every training loop: random numbers by key, state, checkpoints, logs, early stopping.

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

from mvhlib.training.checkpoints import Checkpoints, LoopState
from mvhlib.training.distributed import (
    all_reduce,
    as_double,
    gather,
    is_distributed,
    rank,
    world_size,
)
from mvhlib.training.logs import CsvLog, read_log
from mvhlib.training.loop import Fit, FitConfig, clip_gradients, fit, learning_rate
from mvhlib.training.rng import keyed_generator
from mvhlib.training.settings import read_config, read_pairs
from mvhlib.training.stopping import (
    EarlyStop,
    Interrupted,
    StopSignal,
    TrainingStopped,
    stop_on_signal,
)

__all__ = ["Checkpoints", "CsvLog", "EarlyStop", "Fit", "FitConfig", "Interrupted", "LoopState",
           "StopSignal", "TrainingStopped", "all_reduce", "as_double", "clip_gradients", "fit",
           "gather", "is_distributed", "keyed_generator", "learning_rate", "rank", "read_config",
           "read_log", "read_pairs", "stop_on_signal", "world_size"]
