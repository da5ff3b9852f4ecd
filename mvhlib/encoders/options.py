"""Options that every kind of encoder takes, each checked once."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mvhlib.artifacts import InputError, check_sayable
from mvhlib.backbones.backbone import READ_OUTS
from mvhlib.parameters import check_seed, fits

WHERE = "create_encoder"


def take_mpp(options: dict[str, Any], where: Any = WHERE) -> float | None:
    """Working resolution [µm/px], or None for the tiles' own."""
    mpp = options.pop("mpp", None)
    if mpp is not None and not (fits(mpp, "float") and mpp > 0):
        raise InputError(where, "mpp", f"is {mpp!r}",
                         "give micrometres per pixel, above 0")
    return None if mpp is None else float(mpp)


def take_seed(options: dict[str, Any]) -> int:
    """Seed of random weights."""
    return check_seed(options.pop("seed", 0), WHERE)


def take_precision(options: dict[str, Any], default: str = "bf16") -> torch.dtype:
    """Type that autocast uses on a GPU."""
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    asked = options.pop("precision", default)
    if asked not in known:
        raise InputError(WHERE, "precision", f"is {asked!r}",
                         f"use one of {list(known)}")
    return known[asked]


def take_input_px(options: dict[str, Any], where: Any = WHERE) -> int | None:
    """Side of the network's input [px], or None for its own."""
    px = options.pop("input_px", None)
    if px is not None and not (fits(px, "int") and 0 < px <= 16384):
        raise InputError(where, "input_px", f"is {px!r}", "give a whole number of pixels, above 0")
    return px


def take_pool(options: dict[str, Any], where: Any = WHERE) -> str | None:
    """Read-out of the tokens, or None for the source's own."""
    pool = options.pop("pool", None)
    if pool is not None and pool not in READ_OUTS:
        raise InputError(where, "pool", f"is {pool!r}", f"use one of {', '.join(READ_OUTS)}")
    return pool


def take_depths(options: dict[str, Any], where: Any = WHERE) -> list[int | str] | None:
    """Layers whose features are wanted, or None for the network's end."""
    depths = options.pop("depths", None)
    if depths is None:
        return None
    if isinstance(depths, str) or not isinstance(depths, Sequence) or not depths or not all(
            fits(depth, "int") or (isinstance(depth, str) and depth) for depth in depths):
        raise InputError(where, "depths", f"is {depths!r}", "list numbers of blocks from 0, "
                         "negative ones counted from the last, or names of modules")
    return list(depths)


def take_colours(options: dict[str, Any], where: Any = WHERE
                 ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of the colours [0-1], both or neither."""
    found: list[tuple[float, ...] | None] = []
    for name in ("mean", "std"):
        value = options.pop(name, None)
        if value is not None and not (
                isinstance(value, list | tuple) and len(value) == 3
                and all(fits(part, "float") and (part > 0 or name == "mean") for part in value)):
            raise InputError(where, name, f"is {value!r}", "give three numbers, of red, green "
                             "and blue, in 0-1")
        found.append(None if value is None else tuple(float(part) for part in value))
    if (found[0] is None) != (found[1] is None):
        raise InputError(where, "mean, std", "are given by half", "give both or neither")
    return found[0], found[1]


def check_saw(saw: Any, where: Any) -> None:
    """Refuse a `pretrained_on` that is neither None nor lists of names, by level."""
    if saw is not None and not (isinstance(saw, dict) and all(
            isinstance(names, list) and all(
                isinstance(name, str) and name and name == name.strip() for name in names)
            for names in saw.values())):
        raise InputError(where, "pretrained_on", f"is {saw!r}", "list names of sections, patients "
                         "and studies, or copy it again from its source")
    check_sayable((name for names in (saw or {}).values() for name in names), where,
                  "pretrained_on")


def refuse(where: Any, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first option that nothing reads."""
    for name in options:
        near = difflib.get_close_matches(name, list(known), n=1)
        raise InputError(where, name, "is no option of this encoder",
                         f"did you mean {near[0]}?" if near else f"options are {list(known)}")
