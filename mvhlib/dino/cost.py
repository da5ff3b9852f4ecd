"""Cost of a pretraining in hours and money, computed from a measured throughput.

::

    python -m mvhlib.dino.cost params/paper/03_pretrain.yaml                   # by this table's CPU
    python -m mvhlib.dino.cost params/paper/03_pretrain.yaml --log <encoder>/log.timing.csv --on 1
    python -m mvhlib.dino.cost params/paper/03_pretrain.yaml --rate 400 --price 2.50 --keeps 0.9

A rate comes from ``benchmarks/dino.csv`` (two CPU cores), from the log of a finished run of the
same network and crops, or from the command line. It is arithmetic: what many processes lose by
waiting for each other is `keeps`, which is 1 until somebody measures it.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mvhlib.artifacts import InputError, read_csv, read_json
from mvhlib.dino.config import Config, read_settings
from mvhlib.places import home

#: Settings in which a run must equal the one that is planned, for its rate to say something.
ALIKE = ("backbone", "backbone_options", "global_px", "local_px", "n_local", "precision",
         "prototypes", "head_hidden", "head_bottleneck")


def hours(config: Config, rate: float, processes: int, keeps: float = 1.0) -> float:
    """Hours of a whole pretraining.

    Parameters
    ----------
    config
        What is planned: `steps` of `batch` images.
    rate
        Images that one process makes in a second, all of a step included.
    processes
        That share each step.
    keeps
        Share of its rate that a process keeps among so many [0-1].
    """
    return config.steps * config.batch / (rate * processes * keeps) / 3600


def rate_of_log(path: Path, config: Config, processes: int) -> float:
    """Images per second of one process, from a run's ``log.timing.csv``.

    The first logged step of the last sitting, with what is compiled and cached then, is left out.

    Raises
    ------
    InputError
        If the run is not over, is of another network, crop, precision or head, or is too short.
    """
    recipe = path.parent / "recipe.json"
    if not recipe.is_file():
        raise InputError(recipe, "file", "does not exist: the run has not ended",
                         "name the log of a run that ended, of 20 steps or more")
    made, planned = read_json(recipe)["settings"], config.recipe()
    for name in ALIKE:
        if made.get(name) != planned.get(name):
            raise InputError(path, name, f"was {made.get(name)!r} in that run and is planned as "
                             f"{planned.get(name)!r}",
                             "measure a short run of the planned settings")
    log = read_csv(path)
    begins = max((at for at in range(1, len(log))
                  if log["seconds"].iloc[at] < log["seconds"].iloc[at - 1]), default=0)
    sitting = log.iloc[begins:]
    images = sitting["seconds"] * sitting["images_per_second"]
    if len(sitting) < 2:
        raise InputError(path, "rows", f"are only {len(sitting)} since the run was last started",
                         "measure a run of 20 steps or more that was not interrupted")
    return float((images.iloc[-1] - images.iloc[0])
                 / (sitting["seconds"].iloc[-1] - sitting["seconds"].iloc[0])) / processes


def rate_of_benchmark(path: Path, config: Config) -> float:
    """Images per second of a whole step, from the table of ``benchmarks/dino.py``.

    Raises
    ------
    InputError
        If the table has no whole step of this backbone.
    """
    table = read_csv(path)
    rows = table[table["what"] == f"{config.backbone}: whole step"]
    found = [re.search(r"batch (\d+)", str(note)) for note in rows["note"]]
    if len(rows) != 1 or not found[0]:
        raise InputError(path, "what", f"has no row '{config.backbone}: whole step'",
                         "give --rate or --log, or measure it by benchmarks/dino.py")
    return int(found[0][1]) / float(rows["candidate_s"].iloc[0])


def lines(config: Config, rate: float, source: str, processes: Sequence[int], keeps: float,
          price: float) -> list[str]:
    """Lines that the command prints: the sum, then a row for each number of processes."""
    said = [f"{config.backbone}: {config.steps:,} steps of {config.batch:,} images are "
            f"{config.steps * config.batch / 1e6:,.1f} million images",
            f"one process makes {rate:,.3g} images a second ({source}) and keeps {keeps:.0%} of it "
            "beside others",
            f"{'processes':>9}  {'hours':>10}  {'days':>8}  {'process hours':>13}"
            + (f"  {'cost':>12}" if price else "")]
    for n in processes:
        took = hours(config, rate, n, keeps if n > 1 else 1.0)
        said.append(f"{n:>9}  {took:>10,.1f}  {took / 24:>8,.1f}  {took * n:>13,.0f}"
                    + (f"  {took * n * price:>12,.0f}" if price else ""))
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Print hours, and cost where a price is given; 2 after one line about what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", help="a file as mvhlib.dino.pretrain reads it")
    parser.add_argument("--rate", type=float, help="images per second of one process")
    parser.add_argument("--log", type=Path, help="log.timing.csv of a finished run")
    parser.add_argument("--on", type=int, default=1, help="processes of that run")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 24],
                        help="numbers of processes to list; default: 1 8 24")
    parser.add_argument("--keeps", type=float, default=1.0, help="share of its rate that a process "
                        "keeps beside others")
    parser.add_argument("--price", type=float, default=0.0, help="of one process for an hour")
    given = parser.parse_args(arguments)
    try:
        config = read_settings(given.settings)
        for name in ("rate", "on", "keeps"):
            value = getattr(given, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError("command line", f"--{name}", f"is {value}", "give more than 0")
        if min(given.processes) < 1 or given.keeps > 1 or not 0 <= given.price < float("inf"):
            raise InputError("command line", "--processes, --keeps, --price", "are out of range",
                             "give 1 or more processes, a share up to 1, and a price of at least 0")
        if given.rate:
            rate, source = given.rate, "as given"
        elif given.log:
            rate, source = rate_of_log(given.log, config, given.on), str(given.log)
        else:
            table = home() / "benchmarks" / "dino.csv"
            rate, source = rate_of_benchmark(table, config), "two CPU cores, benchmarks/dino.csv"
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(config, rate, source, given.processes, given.keeps, given.price)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
