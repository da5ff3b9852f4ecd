"""Read-outs of a network with tokens: their names, and one from features that hold all of them.

============  ==============================================================================
``cls``       the class token, as published
``mean``      mean of the patch tokens
``cls+mean``  both, one after the other
``mean+std``  mean and standard deviation of the patch tokens, channel by channel
============  ==============================================================================

An encoder whose profile lists `read_outs` is embedded once, as `ALL`, and scored once per read-out:
``vit12-dino.s0`` becomes ``vit12-dino.cls.s0``, ``vit12-dino.mean-std.s0`` and so on. Of these
``vit12-dino.chosen.s0`` takes, fold by fold, the best on the inner folds.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib.artifacts import InputError

READ_OUTS = ("cls", "mean", "cls+mean", "mean+std")
#: Read-out that is stored where several are requested.
ALL = "cls+mean+std"
#: Name of the best on inner folds, among read-outs.
CHOSEN = "chosen"

#: An encoder of several seeds, as `mvhlib.workflow.read_plan` names it.
SEEDED = re.compile(r"(?P<variant>.+)\.s(?P<seed>\d+)")


def check(where: str | Path, field: str, names: Any) -> list[str]:
    """Return the names of read-outs, each once.

    Raises
    ------
    InputError
        On a name that is none, or stands twice.
    """
    if not isinstance(names, list) or len(set(map(str, names))) != len(names) or (
            not set(names) <= set(READ_OUTS)):
        raise InputError(where, field, f"is {names!r}", f"list some of {', '.join(READ_OUTS)}")
    return names


def slug(encoder: str, read_out: str) -> str:
    """Name of an encoder by one of its read-outs; the seed stays at the end.

    Examples
    --------
    >>> slug("vit12-dino.s0", "mean+std")
    'vit12-dino.mean-std.s0'
    """
    found = SEEDED.fullmatch(encoder)
    variant, seed = (found["variant"], f".s{found['seed']}") if found else (encoder, "")
    return f"{variant}.{read_out.replace('+', '-')}{seed}"


def columns(read_out: str, width: int) -> np.ndarray:
    """Columns `(D,)` or `(2 D,)` of a read-out in features of width `3 D` that hold `ALL`."""
    d, rest = divmod(width, 3)
    if rest:
        raise InputError("features", "width", f"is {width}, no multiple of three",
                         f"embed with pool {ALL}")
    places = {part: np.arange(i * d, (i + 1) * d) for i, part in enumerate(ALL.split("+"))}
    return np.concatenate([places[part] for part in read_out.split("+")])


def names(encoder: str, read_outs: Sequence[str]) -> list[str]:
    """Names of an encoder by each of its read-outs; itself where it has none."""
    return [slug(encoder, each) for each in read_outs] or [encoder]
