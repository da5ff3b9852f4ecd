"""``python -m mvhlib.prediction``: slides predicted from a command line; ``make predict`` calls it.

    python -m mvhlib.prediction --slides FILE_OR_DIR --model DIR --out DIR

Prints a line per slide, and others about progress. Ends with 0 where all slides were done, 1 where
one was not, 2 where nothing could be begun.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.places import choose_device
from mvhlib.prediction import apply, model, slides
from mvhlib.prediction.slides import Asked


def _say(line: str) -> None:
    print(line, flush=True)


def _one(asked: Asked, at: tuple[int, int], folder: str, out: str, wish: apply.Wish,
         device: str) -> apply.Outcome:
    """One slide in a process of its own."""
    def report(line: str) -> None:
        _say(line.replace("[1/1]", f"[{at[0]}/{at[1]}]", 1))

    return apply.predict([asked], model.read(folder, device), Path(out), wish, report=report)[0]


def main(words: Sequence[str]) -> int:
    """Do what the words say, and return the status."""
    parser = argparse.ArgumentParser(prog="python -m mvhlib.prediction")
    parser.add_argument("--slides", required=True, help="a slide or a folder of slides")
    parser.add_argument("--model", required=True, help="a folder with model.json")
    parser.add_argument("--out", required=True, help="gets a folder per slide")
    parser.add_argument("--mpp", type=float, help="um per pixel of all slides")
    parser.add_argument("--stride-um", type=float, help="distance of tiles; default: edge to edge")
    parser.add_argument("--genes", default="", help="A,B or a file with a gene in each line")
    parser.add_argument("--jobs", type=int, default=1, help="slides at once")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(words)
    try:
        asked = slides.find(given.slides, given.mpp)
        wish = apply.Wish(given.stride_um, apply.genes_of(given.genes))
        device = choose_device(given.device, where="predict")
        if given.jobs == 1 or len(asked) == 1:
            found = apply.predict(asked, model.read(given.model, device), Path(given.out), wish,
                                  report=_say)
        else:
            model.read_record(given.model)
            with ProcessPoolExecutor(min(given.jobs, len(asked)), get_context("spawn")) as pool:
                n = len(asked)
                found = [each.result() for each in [
                    pool.submit(_one, one, (number, n), given.model, given.out, wish, device)
                    for number, one in enumerate(asked, 1)]]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    broken = [outcome for outcome in found if outcome.error]
    _say(f"{len(found) - len(broken)} of {len(found)} slides are predicted, in {given.out}")
    for outcome in broken:
        print(f"not predicted: {outcome.name}: {artifacts.one_line(outcome.error, 600)}",
              file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main(sys.argv[1:]))
