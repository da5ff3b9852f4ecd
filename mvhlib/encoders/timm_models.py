"""Models of timm and of the Hugging Face hub, and published pathology encoders by name.

Weights come from the hub's cache or the hub, or from a file of the user's own (`weights`), which is
read without running what stands in it.
"""

import contextlib
import difflib
import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvhlib.artifacts import InputError, check_file, one_line, reading
from mvhlib.backbones.sealed import check_finite
from mvhlib.encoder_sources import Published
from mvhlib.encoders.memory import lacks_memory
from mvhlib.encoders.options import (
    refuse,
    take_depths,
    take_input_px,
    take_mpp,
    take_pool,
    take_precision,
    take_seed,
)
from mvhlib.encoders.patch import EvalTransform, PatchEncoder
from mvhlib.encoders.tokens import ReadOut
from mvhlib.places import resolve

#: Words in the names of timm's options that make it load weights, whatever `weights` says.
_LOADS = ("checkpoint", "pretrained", "weights", "cache", "file", "path", "url", "state_dict")
#: Names that hold the network's weights in a checkpoint of a training.
_INSIDE = ("state_dict", "model", "teacher", "network")
_NO_TIMM = ("pip install timm, with a torchvision built for your torch (the extra timm; a "
            "CPU build of torch takes torchvision from its own index)")


def from_timm(text: str, options: dict[str, Any]) -> PatchEncoder:
    """A model of timm, or of the Hugging Face hub through timm.

    Raises
    ------
    InputError
        If timm is missing or cannot make the model, or weights are not to be had or do not fit.
    """
    timm = _timm(text)
    weights, seed = options.pop("weights", "pretrained"), take_seed(options)
    name, mpp = options.pop("name", None), take_mpp(options)
    input_px, precision = take_input_px(options), take_precision(options)
    pool, depths = take_pool(options), take_depths(options)
    stated = sorted(options.items())
    if options.get("checkpoint_path"):
        # Read here, and not by timm, which runs what a pickle says.
        weights = options.pop("checkpoint_path")
    file = _weights_file(weights)
    for option in options:
        if option in ("pretrained", "num_classes", "features_only"):
            raise InputError("create_encoder", option, "is not for encoders of timm",
                             {"pretrained": "say weights: pretrained, random or a file",
                              "num_classes": "leave it out: features are read, no classes",
                              "features_only": "say depths: [..], the stages that are wanted"}[
                                  option])
    with torch.random.fork_rng():  # timm initialises from the global state
        torch.manual_seed(seed)
        with _asking(text, "it", text.partition(":")[2] if text.startswith("hf-hub:") else ""):
            model = timm.create_model(text.removeprefix("timm:"),
                                      pretrained=weights == "pretrained", num_classes=0, **options)
    if file is not None:
        _load(model, file)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    px = input_px or cfg.get("input_size", (3, 224, 224))[-1]
    transform = EvalTransform(int(px), cfg.get("mean", (0.485, 0.456, 0.406)),
                              cfg.get("std", (0.229, 0.224, 0.225)),
                              cfg.get("interpolation", "bicubic"))
    # An option that loads weights makes the encoder pretrained, on data that are not known.
    is_random = weights == "random" and not any(_loads(key, value) for key, value in stated)
    title = name or text.partition(":")[2].replace("/", "-").lower()
    return _wrapped(title, model, transform, pool, depths, precision=precision, mpp=mpp,
                    is_random=is_random, kind="timm",
                    identity={"timm": text, "options": repr(stated)})


def from_table(row: Published, options: dict[str, Any]) -> PatchEncoder:
    """A published encoder, by a row of the table `mvhlib.encoder_sources.published`.

    Raises
    ------
    InputError
        As `from_timm`; and where only the authors' own code builds it, what to do.
    """
    if row.loader == "python":
        where = f"https://huggingface.co/{row.hub}" if row.hub else "the authors' pages"
        raise InputError("create_encoder", row.name, f"is built by its authors' own code ({where}; "
                         f"{row.note})", "name a function that returns it, source: "
                         f"python:file.py:function, with input_px {row.input_px}")
    weights, seed = options.pop("weights", "pretrained"), take_seed(options)
    name, mpp = options.pop("name", row.name), take_mpp(options)
    input_px, precision = take_input_px(options), take_precision(options)
    pool, depths = take_pool(options), take_depths(options)
    refuse(row.name, options, ("name", "weights", "mpp", "input_px", "precision", "pool", "depths",
                               "seed", "device"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make = _by_timm if row.loader == "timm" else _by_transformers
        model = make(row, weights)
    resize = row.resize_px if input_px is None else None
    transform = EvalTransform(input_px or row.input_px, row.mean, row.std, row.interpolation,
                              resize)
    pool = pool or (None if row.pool == "-" or depths is not None else row.pool)
    made = _wrapped(name, model, transform, pool, depths, precision=precision, mpp=mpp,
                    is_random=weights == "random", kind=f"{row.name} by {row.loader}",
                    identity={"published": row.name})
    if made.pool == row.pool and depths is None and made.embedding_dim != row.width:
        raise InputError(row.name, "width", f"is {made.embedding_dim}, published is {row.width}",
                         "these are the weights of another network")
    return made


def _wrapped(title: str, model: nn.Module, transform: EvalTransform, pool: str | None,
             depths: list[int | str] | None, *, identity: dict[str, Any], **stated: Any
             ) -> PatchEncoder:
    """Wrap a model with the requested read-out; without one, its own output is used."""
    own = _own_pool(model)
    as_it_is = depths is None and own is not None and pool in (None, own)
    read = ReadOut(model, None if as_it_is else pool, depths, title)
    with reading(title, "input_px", f"is {transform.input_px}: such an image cannot be read",
                 "take the input_px that the network was built for"):
        width = read.width(transform.input_px)
    if as_it_is:
        return PatchEncoder(title, model, transform, width, identity=identity, pool=own, **stated)
    return PatchEncoder(title, read, transform, width, pool=read.read_out,
                        identity=identity | {"read_out": [pool, depths]}, **stated)


def _own_pool(model: nn.Module) -> str | None:
    """Pooling of a timm model's tokens; ``-`` without tokens, None where it returns them."""
    if not hasattr(model, "num_prefix_tokens"):
        return None if getattr(model, "returns_tokens", False) else "-"
    pools = {"token": "cls", "avg": "mean", "": None}
    return pools.get(getattr(model, "global_pool", "-"), "-")


def _loads(key: str, value: Any) -> bool:
    """True if an option of timm makes it load weights."""
    if any(word in key for word in _LOADS):
        return value not in (None, "", False)
    with contextlib.suppress(OSError, ValueError, TypeError):
        return isinstance(value, str) and Path(value).is_file()
    return False


def _timm(text: str) -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise InputError("create_encoder", "source", f"{text!r} needs timm "
                         f"({one_line(error, 120)})", _NO_TIMM) from error
    return timm


@contextlib.contextmanager
def _asking(text: str, what: str, hub: str) -> Iterator[None]:
    """Say in one line why a model or its weights are not available, and what can be done."""
    try:
        # timm reads the hub's older files as pickles, which run what stands in them.
        with _environment("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1"):
            yield
    except InputError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error, 160)}"
        names = {each.__name__ for each in type(error).__mro__}
        page = f"https://huggingface.co/{hub}" if hub else "the hub"
        fix = "check the name and the options"
        if lacks_memory(error):
            fix = "take a smaller network, or a machine with more memory"
        elif "GatedRepoError" in names or "401" in said or "403" in said or "gated" in said.lower():
            fix = (f"ask for access at {page} and log in by `hf auth login`, or give weights: the "
                   "file that you downloaded")
        elif type(error) is FileNotFoundError:
            fix = "name a file that is there"
        elif "huggingface_hub" in said:
            fix = "pip install huggingface_hub"
        elif isinstance(error, OSError) or names & {
                "LocalEntryNotFoundError", "OfflineModeIsEnabled", "HfHubHTTPError", "ConnectError",
                "RepositoryNotFoundError", "TransportError", "HTTPError"}:
            fix = (f"the hub does not answer: download from {page} on a machine that reaches it, "
                   "and give weights: that file")
        elif isinstance(error, TypeError) and "unexpected keyword" in said:
            fix = "leave this option out: the model does not know it"
        raise InputError("create_encoder", "source", f"{what} cannot be made of {text!r} ({said})",
                         fix) from error


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _weights_file(weights: Any) -> Path | None:
    """The user's own file of weights, or None for the words that are no file."""
    if weights in ("pretrained", "random"):
        return None
    if not isinstance(weights, str) or not weights:
        raise InputError("create_encoder", "weights", f"is {weights!r}",
                         "write pretrained, random, or a file of weights")
    path = resolve(weights)
    if not path.exists():
        near = difflib.get_close_matches(weights, ("pretrained", "random"), n=1)
        raise InputError(path, "weights", "is not there", f"did you mean {near[0]!r}?" if near else
                         "write pretrained, random, or a file of weights")
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "pytorch_model.bin")
                 if (path / name).is_file()]
        if not found:
            raise InputError(path, "weights", "is a folder without model.safetensors or "
                             "pytorch_model.bin", "name the file")
        path = found[0]
    return check_file(path, "weights")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read names and tensors of a checkpoint without running any code in it.

    Raises
    ------
    InputError
        If it holds anything but tensors and plain values, or none.
    """
    fix = "give a .safetensors file, or a state dict that torch.save wrote"
    with reading(path, "weights", "cannot be read as tensors alone", fix):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    for name in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
        raise InputError(path, "weights", "holds no names with tensors", fix)
    check_finite(found, path)
    if all(key.startswith("module.") for key in found):  # left by training on several GPUs
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return found


def _load(model: nn.Module, path: Path, drop: tuple[str, ...] = ("head.", "fc.", "classifier.")
          ) -> None:
    """Give a model the weights of a file, all of them; a classifier's head may be left over."""
    found, own = read_weights(path), model.state_dict()
    found = {key: value for key, value in found.items()
             if key in own or not key.startswith(drop)}
    missing, left = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    shapes = [key for key in own.keys() & found.keys() if own[key].shape != found[key].shape]
    if missing or left or shapes:
        said = (f"lack {missing[0]!r}" if missing else f"hold {left[0]!r}, which is not in it"
                if left else f"hold {shapes[0]!r} of shape {tuple(found[shapes[0]].shape)}, not "
                f"{tuple(own[shapes[0]].shape)}")
        raise InputError(path, "weights", f"are of another network: they {said}, and "
                         f"{len(missing) + len(left) + len(shapes)} names in all do not fit",
                         "name the network that they belong to")
    model.load_state_dict(found)


def _by_timm(row: Published, weights: Any) -> nn.Module:
    timm = _timm(row.name)
    arguments = {key: _object(value) for key, value in row.arguments.items()}
    file = _weights_file(weights)
    if weights == "pretrained" and not row.hub_file:
        with _asking(row.name, "the encoder", row.hub):
            return timm.create_model(f"hf-hub:{row.hub}", pretrained=True, num_classes=0,
                                     **arguments)
    if not row.architecture:
        raise InputError(row.name, "weights", "of a file do not say how the network is built",
                         f"leave weights out: the hub's own copy of {row.hub} says it")
    with _asking(row.name, "the encoder", row.hub):
        model = timm.create_model(row.architecture, pretrained=False, num_classes=0, **arguments)
        if weights == "pretrained":
            from huggingface_hub import hf_hub_download
            file = Path(hf_hub_download(row.hub, row.hub_file))
    if file is not None:
        _load(model, file)
    return model


def _object(value: Any) -> Any:
    """An argument of the table: ``"package.module:name"`` stands for the object of that name."""
    if isinstance(value, str) and ":" in value:
        module, name = value.split(":")
        return getattr(importlib.import_module(module), name)
    return value


class _HiddenState(nn.Module):
    """A vision model of the transformers library that returns its tokens."""

    returns_tokens = True

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # Position embeddings for another size are resized where the model can do that.
        self.resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, x: Tensor) -> Tensor:
        """Images to tokens `(B, 1 + N, D)`, class token first."""
        more = {"interpolate_pos_encoding": True} if self.resizes else {}
        return self.model(pixel_values=x, **more).last_hidden_state


def _by_transformers(row: Published, weights: Any) -> nn.Module:
    try:
        from transformers import AutoModel
    except (ImportError, RuntimeError) as error:
        raise InputError("create_encoder", "source", f"{row.name!r} needs transformers "
                         f"({one_line(error, 120)})", "pip install transformers") from error
    place = row.hub
    if weights == "random":
        raise InputError(row.name, "weights", "cannot be random: its hub says how it is built",
                         "write weights: pretrained, or the folder that you downloaded")
    if weights != "pretrained":
        place = resolve(str(weights))
        if not (place / "config.json").is_file():
            raise InputError(place, "weights", "is not a folder with config.json",
                             f"download all of https://huggingface.co/{row.hub} into one folder")
    with _asking(row.name, "the encoder", row.hub):
        return _HiddenState(AutoModel.from_pretrained(str(place), trust_remote_code=False))
