"""Options that every kind of encoder takes, each checked once."""

import difflib
from collections.abc import Iterable
from typing import Any

import torch

from mvhlib.artifacts import InputError
from mvhlib.parameters import check_seed, fits


def take_mpp(options: dict[str, Any]) -> float | None:
    mpp = options.pop("mpp", None)
    if mpp is not None and not (fits(mpp, "float") and mpp > 0):
        raise InputError("create_encoder", "mpp", f"is {mpp!r}",
                         "give micrometres per pixel, above 0")
    return None if mpp is None else float(mpp)


def take_seed(options: dict[str, Any]) -> int:
    return check_seed(options.pop("seed", 0), "create_encoder")


def take_precision(options: dict[str, Any]) -> torch.dtype:
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    asked = options.pop("precision", "bf16")
    if asked not in known:
        raise InputError("create_encoder", "precision", f"is {asked!r}",
                         f"use one of {list(known)}")
    return known[asked]


def refuse(where: Any, options: dict[str, Any], known: Iterable[str]) -> None:
    for name in options:
        near = difflib.get_close_matches(name, list(known), n=1)
        raise InputError(where, name, "is no option of this encoder",
                         f"did you mean {near[0]}?" if near else f"options are {list(known)}")
