"""Factory of encoders, from the source that a user names."""

import difflib
import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvhlib.artifacts import InputError, read_json
from mvhlib.backbones.backbone import LUNIT_MEAN, LUNIT_STD
from mvhlib.encoder_sources import IMAGENET, PYTHON, find_published, published
from mvhlib.encoders.handmade import handmade
from mvhlib.encoders.imagenet import imagenet
from mvhlib.encoders.options import (
    check_saw,
    refuse,
    take_depths,
    take_input_px,
    take_mpp,
    take_pool,
    take_precision,
    take_seed,
)
from mvhlib.encoders.patch import EvalTransform, PatchEncoder
from mvhlib.encoders.python_models import from_python
from mvhlib.encoders.timm_models import from_table, from_timm
from mvhlib.encoders.tokens import ReadOut
from mvhlib.places import choose_device

#: What reads a directory whose config.json names another kind than a backbone, as module:function.
LOADERS = {"mmap": "mvhlib.expression.fused:load"}


def create_encoder(source: str | os.PathLike, **options: Any) -> PatchEncoder:
    """Create an encoder.

    Parameters
    ----------
    source
        See the head of this module.
    **options
        For all: `name` (in tables; default from the source), `mpp` (working resolution [µm/px]),
        `device`. Networks: `input_px`, `precision` (``"bf16"``, ``"fp16"``, ``"fp32"``, on GPU).
        `pool` (read-out of the tokens: ``cls``, ``mean``, ``cls+mean``, ``mean+std``) and
        `depths` (layers, by number or name, whose `pool`, by default ``mean+std``, stands one
        after another). ``handmade``: `bands`. Backbones: `weights` (``"random"`` or a directory),
        `seed`, `preset`, and what `mvhlib.backbones.create_model` takes; directories:
        `scan_backend`. timm and the field's encoders: `weights` (``"random"``, ``"pretrained"``
        or a file), `seed`; timm: what `timm.create_model` takes. ``python:``: what the function
        takes, `mean` and `std`.

    Returns
    -------
    PatchEncoder

    Raises
    ------
    InputError
        On an unknown source or option, a missing package, or weights that do not fit.
    """
    text = os.fspath(source)
    chosen = choose_device(options.pop("device", None), where="create_encoder")
    device = torch.device(chosen)
    if text == "handmade":
        encoder = handmade(options)
    elif text == IMAGENET:
        encoder = imagenet(options)
    elif text.startswith(PYTHON):
        encoder = from_python(text, options, chosen)
    elif text.startswith(("timm:", "hf-hub:")):
        encoder = from_timm(text, options)
    elif Path(text).is_dir():
        encoder = _directory(Path(text), options)
    elif (row := find_published(text)) is not None:
        encoder = from_table(row, options)
    else:
        encoder = _backbone(text, options)
    return encoder.to(device)


def _backbone(text: str, options: dict[str, Any]) -> PatchEncoder:
    """A registry name, with random weights or those of a directory."""
    from mvhlib import backbones

    name = text.removeprefix("backbone:")
    if not backbones.is_model(name):
        known = ["handmade", IMAGENET, *backbones.list_models(), *published()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise InputError("create_encoder", "source", f"{text!r} is neither a directory nor a name "
                         "of the registry", f"did you mean {' or '.join(near)}? Other sources: "
                         "timm:<name>, hf-hub:<org/name>, python:file.py:function")
    weights = options.pop("weights", "random")
    if weights not in (None, "random"):
        if not Path(weights).is_dir():
            raise InputError(weights, "weights", "is no directory",
                             "give weights='random' or what save_pretrained wrote")
        config, (wanted, _, preset) = _read_config(Path(weights)), name.partition(".")
        architecture, own = config.get("architecture", wanted), config.get("preset", preset)
        if architecture != wanted or preset not in ("", own):
            raise InputError(weights, "architecture", f"is '{architecture}.{own}', not {name!r}",
                             "name the architecture of the weights, or give the directory alone")
        options.setdefault("name", name)
        return _directory(Path(weights), options)
    if options.get("preset") not in (None, "released") and "." not in name:
        name = f"{name}.{options.pop('preset')}"
    title, mpp, seed = options.pop("name", name), take_mpp(options), take_seed(options)
    input_px, precision = take_input_px(options), take_precision(options)
    depths, pool = take_depths(options), take_pool(options)
    if pool is not None and depths is None:
        options["pool"] = pool
    model = backbones.create_model(name, seed=seed, **options)
    return _network(title, model, mpp, input_px, precision, is_random=True, config={},
                    pool=pool, depths=depths)


def _directory(folder: Path, options: dict[str, Any]) -> PatchEncoder:
    """Read a directory written by `save_pretrained` or `mvhlib.expression.fused.save`."""
    from mvhlib import backbones

    config = _read_config(folder)
    options.pop("weights", None)
    title = options.pop("name", folder.name)
    if config.get("kind") in LOADERS:
        module, function = LOADERS[config["kind"]].split(":")
        made = getattr(importlib.import_module(module), function)(folder, config, title, **options)
        made.where = folder
        return made
    mpp = take_mpp(options)
    input_px, precision = take_input_px(options), take_precision(options)
    depths, pool = take_depths(options), take_pool(options)
    overrides = {"scan_backend": options.pop("scan_backend")} if "scan_backend" in options else {}
    refuse(folder, options, ("name", "mpp", "input_px", "precision", "device", "pool", "depths",
                             "scan_backend"))
    if pool is not None and depths is None:
        overrides["pool"] = pool
    model = backbones.from_pretrained(folder, **overrides)
    made = _network(title, model, mpp, input_px, precision, is_random=False, config=config,
                    pool=pool, depths=depths)
    made.where = folder
    return made


def _read_config(folder: Path) -> dict[str, Any]:
    """Read an encoder's ``config.json``, with the list of its training data if there is one."""
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise InputError(folder, "config.json", "is missing",
                         "give a directory that save_pretrained wrote")
    config = read_json(path)
    check_saw(config.get("pretrained_on"), path)
    return config


def _network(name: str, model: nn.Module, mpp: float | None, input_px: int | None,
             precision: torch.dtype, is_random: bool, config: dict[str, Any],
             pool: str | None = None, depths: list[int | str] | None = None) -> PatchEncoder:
    """Wrap one of our backbones; its input size is the one it was built for."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size", (3, None, None))
    patch_px = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    patch_px = patch_px[0] if isinstance(patch_px, (tuple, list)) else patch_px
    px = input_px or size[-1]
    if px is None:
        raise InputError(name, "input_px", "is not known for this model", "pass input_px=")
    if patch_px and px % patch_px:
        raise InputError(name, "input_px", f"{px} px is not a multiple of the patch, {patch_px} px",
                         f"take {max(1, px // patch_px) * patch_px} px")
    transform = EvalTransform(int(px), cfg.get("mean", LUNIT_MEAN),
                              cfg.get("std", LUNIT_STD),
                              cfg.get("interpolation", "bilinear"))
    # Arguments such as pool or dt_bias_count change the numbers and no weight.
    identity = {"model_args": getattr(model, "model_args", {})}
    width, kind, read = model.num_features, type(model).__name__, getattr(model, "pool", "-")
    if depths is not None:
        identity["read_out"] = [pool, depths]
        model = ReadOut(model, pool, depths, name)
        width, read = model.width(int(px)), model.read_out
    return PatchEncoder(name, model, transform, width, precision=precision, mpp=mpp,
                        min_px=patch_px or 1, is_random=is_random, kind=kind, config=config,
                        identity=identity, pool=read)


def names_of(samples: Iterable[Any]) -> dict[str, list[str]]:
    """Sections, patients and studies of training samples, as ``pretrained_on`` lists them."""
    samples = list(samples)
    return {level: sorted({str(getattr(sample, attribute)) for sample in samples})
            for level, attribute in (("sections", "name"), ("patients", "patient"),
                                     ("studies", "study"))}


def seen(*lists: Mapping[str, Iterable[str]] | None) -> dict[str, list[str]]:
    """Union of the training data of several trainings; None counts as no data."""
    return {level: sorted({name for each in lists for name in (each or {}).get(level, ())})
            for level in ("sections", "patients", "studies")}
