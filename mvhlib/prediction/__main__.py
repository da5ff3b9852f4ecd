"""``python -m mvhlib.prediction``: slides predicted from a command line; ``make predict`` calls it.

    python -m mvhlib.prediction --slides FILE_OR_DIR --model DIR --out DIR

Prints a line per slide, and others about progress. Ends with 0 where all slides were done, 1 where
one was not, 2 where nothing could be begun.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.places import choose_device
from mvhlib.prediction import apply, several, slides

#: Pages that are named at the end.
SHOWN = 5


def main(words: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mvhlib.prediction")
    parser.add_argument("--slides", required=True, help="a slide or a folder of slides")
    parser.add_argument("--model", required=True, help="a folder with model.json")
    parser.add_argument("--out", required=True, help="gets a folder per slide")
    parser.add_argument("--mpp", type=float, help="um per pixel of all slides")
    parser.add_argument("--stride-um", type=float, help="distance of tiles; default: edge to edge")
    parser.add_argument("--genes", default="", help="A,B or a file with a gene in each line")
    parser.add_argument("--jobs", type=int, default=1,
                        help="slides at once; threads, where there are fewer slides")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(words)
    try:
        asked = slides.find(given.slides, given.mpp)
        wish = apply.Wish(given.stride_um, apply.genes_of(given.genes))
        device = choose_device(given.device, where="predict")
        found = several.predict(asked, given.model, Path(given.out), wish, jobs=given.jobs,
                                device=device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    broken = [outcome for outcome in found if outcome.error]
    several.say(f"{len(found) - len(broken)} of {len(found)} slides are predicted, in {given.out}")
    for outcome in found[:SHOWN]:
        if not outcome.error:
            several.say(f"read first: {outcome.folder / apply.PAGE}")
    for outcome in broken:
        print(f"not predicted: {outcome.name}: {artifacts.one_line(outcome.error, 600)}",
              file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main(sys.argv[1:]))
