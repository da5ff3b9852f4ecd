"""Several slides at once, each in a process of its own.

A process that is killed, for want of memory say, takes its slide with it and no other: slides
whose process ended are tried once more one by one, and the one that ends it again is named.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from mvhlib.artifacts import InputError
from mvhlib.prediction import apply, model, stream
from mvhlib.prediction.slides import Asked


def say(line: str) -> None:
    """Print a line at once: a pipe would keep it until the slides are done."""
    print(line, flush=True)


def predict(slides: Sequence[Asked], folder: str | os.PathLike, out: Path, wish: apply.Wish, *,
            jobs: int = 1, device: str = "cpu") -> list[apply.Outcome]:
    """Predict slides, `jobs` at a time; name those that fail, and go on.

    Parameters
    ----------
    folder
        The model's.
    out
        Gets a folder per slide.
    jobs
        Processes; with fewer slides than that, each process has so many more threads. An
        accelerator takes one slide after the other.

    Returns
    -------
    list of Outcome
        In the order of `slides`.

    Raises
    ------
    InputError
        On a model that cannot be read, or a wish that no slide could be given.
    """
    at_once = min(jobs, len(slides)) if device == "cpu" else 1
    fitted = model.read(folder, device)
    stream.check_genes(fitted, wish.genes)
    threads = max(1, jobs // at_once)
    if at_once == 1:
        _use(threads)
        return apply.predict(slides, fitted, out, wish, report=say)
    del fitted
    work = [(asked, (number, len(slides)), str(folder), out, wish, device, threads)
            for number, asked in enumerate(slides, 1)]
    found: list[apply.Outcome | None] = [None] * len(work)
    with _pool(at_once) as pool:
        for number, future in enumerate([pool.submit(_one, *each) for each in work]):
            found[number] = _result(future)
    for number, each in enumerate(work):
        if found[number] is None:
            found[number] = _alone(each)
    return [outcome for outcome in found if outcome is not None]


def _pool(n: int) -> Executor:
    return ProcessPoolExecutor(n, get_context("spawn"))


def _result(future: "Future[apply.Outcome]") -> apply.Outcome | None:
    """Return a process's result; None if it was killed (by which slide is unknown)."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def _alone(work: tuple) -> apply.Outcome:
    asked, (number, n), _, out, *_ = work
    with _pool(1) as pool:
        outcome = _result(pool.submit(_one, *work))
    if outcome is None:
        error = InputError(asked.path, "process", "was killed, probably for lack of memory",
                           "give fewer JOBS, or a larger machine; what was done is kept")
        outcome = apply.Outcome(asked.name, out / asked.name, error=str(error))
        say(f"[{number}/{n}] {asked.name}: {error}")
    return outcome


def _one(asked: Asked, at: tuple[int, int], folder: str, out: Path, wish: apply.Wish,
         device: str, threads: int) -> apply.Outcome:
    """Predict one slide in the current process."""
    def report(line: str) -> None:
        say(line.replace("[1/1]", f"[{at[0]}/{at[1]}]", 1))

    _use(threads)
    return apply.predict([asked], model.read(folder, device), out, wish, report=report)[0]


def _use(threads: int) -> None:
    """Use more threads than the environment states, where the machine has them to spare."""
    if threads > torch.get_num_threads():
        torch.set_num_threads(threads)
