"""Encoders made by a user's function: ``python:path/file.py:function``.

The function is called without arguments, or with those options that it names. What it returns is

======================  ==========================================================================
a torch module          images `(N, 3, H, W)` float32 in 0-1 to features `(N, D)`, or to tokens
                        `(N, P + 1, D)`, class token first
an object with          tiles `(T, H, W, 3)` uint8 to features `(T, D)`
``encode``
a `PatchEncoder`        as it is
======================  ==========================================================================

Attributes of it (or options, which win): `input_px` (tiles are resized to it; None leaves them),
`mpp`, `mean` and `std` (three numbers each; tensors of these names are the network's own affair),
`pool`, `depths`, `num_prefix_tokens`, `pretrained_on`, `feature_names`.

Nobody knows what such weights have seen unless `pretrained_on` says it, so tables say ``unknown``.
Caches go by the sha256 of the file, of a module's weights, and of files that options name; what the
file itself imports or reads is not seen: change the file, or an option, when that changes.
"""

import contextlib
import difflib
import hashlib
import inspect
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvhlib.artifacts import InputError, one_line, sha256_file
from mvhlib.encoder_sources import python_file, read_code
from mvhlib.encoders.memory import TooLarge, lacks_memory, within_memory
from mvhlib.encoders.options import (
    check_saw,
    take_colours,
    take_depths,
    take_input_px,
    take_mpp,
    take_pool,
    take_precision,
    take_seed,
)
from mvhlib.encoders.patch import EvalTransform, PatchEncoder, update_by_weights
from mvhlib.encoders.tokens import ReadOut
from mvhlib.places import resolve

#: Options of the encoder; all others are the function's.
OWN = ("name", "mpp", "input_px", "precision", "mean", "std", "interpolation", "pool", "depths",
       "seed", "device")
#: Those that the object may carry itself.
CARRIED = ("mpp", "input_px", "mean", "std", "pool", "depths")
#: Side of the tiles that an encoder of any size is tried on [px].
TRIED_PX = 224


def from_python(text: str, options: dict[str, Any], device: str = "cpu") -> PatchEncoder:
    """Create an encoder by a user's function.

    Raises
    ------
    InputError
        One line that names file and function: either is missing, the function fails or wants
        what is not given, or what it returns is no encoder.
    """
    path, name = python_file(text)
    fence, where = Fence(path, name), f"{path}: {name}"
    function = _load(path, name, fence)
    own = {key: options.pop(key) for key in OWN if key in options}
    given = _arguments(function, path, name, options, own | {"device": device})
    seed = take_seed(own)
    with fence("it fails"), _seeded(seed):
        made = function(**given)
    module = isinstance(made, nn.Module)
    if not module and not callable(getattr(made, "encode", None)):
        what = "a function" if inspect.isroutine(made) else f"a {type(made).__name__}"
        raise InputError(path, name, f"returns {what if made is not None else 'nothing'}",
                         "return a torch module, or an object with encode(tiles) -> (T, D)")
    saw = getattr(made, "pretrained_on", None)
    check_saw(saw, where)
    if unknown := set(saw or ()) - {"sections", "patients", "studies"}:
        raise InputError(where, "pretrained_on", f"has the unknown key {sorted(unknown)[0]!r}",
                         "use sections, patients and studies")
    own = _carried(made) | own
    if isinstance(made, PatchEncoder):
        made = made.model
    title = own.pop("name", None) or name.lower()
    mpp, input_px = take_mpp(own, where), take_input_px(own, where)
    precision, interpolation = take_precision(own, "fp32"), own.pop("interpolation", "bilinear")
    mean, std = take_colours(own, where)
    pool, depths = take_pool(own, where), take_depths(own, where)
    if not module and (mean or pool or depths):
        field = "mean" if mean else "pool" if pool else "depths"
        raise InputError(path, name, f"returns an object with encode, which does not use {field}",
                         f"leave {field} out, and do in encode what it would do")
    with fence("it is not an encoder"):
        inner = (ReadOut(made.eval().requires_grad_(False), pool, depths, where,
                         lambda: fence("it fails on images"))
                 if module else TileObject(made, lambda: fence("encode fails")))
    checked = Checked(inner, path, name)
    transform = EvalTransform(input_px, mean, std, interpolation)
    width = _try(checked, transform, path, name, input_px)
    checked.feature_names = _names(made, width)
    return PatchEncoder(
        title, checked, transform, width, precision=precision, mpp=mpp, kind=f"python: {name}",
        config={"pretrained_on": saw},
        pool=inner.read_out if module else "-",
        identity={"python": sha256_file(path), "function": name, "seed": seed,
                  "options": {key: _stated(value) for key, value in sorted(given.items())
                              if key != "device"},
                  "read_out": [pool, depths], "inside": _weights_inside(made)})


class Fence:
    """Runs a user's code; turns any error of it into one line with file and function."""

    def __init__(self, path: Path, function: str):
        self.path, self.function = path, function

    @contextlib.contextmanager
    def __call__(self, doing: str) -> Iterator[None]:
        kept = torch.get_default_dtype()
        try:
            with within_memory():
                yield
        except (InputError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # sys.exit() of a user must not end a run silently
            said = f"{type(error).__name__}: {one_line(error, 160)}".removesuffix(": ")
            if lacks_memory(error):
                raise TooLarge(self.path, self.function, "needs more memory than there is "
                               f"({said})", "take a smaller network, fewer input_px, or a machine "
                               "with more memory") from error
            raise InputError(self.path, self.function, f"{doing}{self._line(error)} ({said})",
                             "correct it, or what it is given") from error
        finally:
            torch.set_default_dtype(kept)

    def _line(self, error: BaseException) -> str:
        """Line of the user's file where an error arose, if it arose there."""
        line, frame = 0, error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == str(self.path):
                line = frame.tb_lineno
            frame = frame.tb_next
        return f" in line {line}" if line else ""


def _load(path: Path, name: str, fence: Fence) -> Callable[..., Any]:
    """Run the file, with its folder importable, and return its function."""
    tree, text = read_code(path, name)
    # Of the content too: an edited file is another module, also in a notebook that runs on.
    module = types.ModuleType(f"mvhlib_user_{hashlib.sha256(f'{path}{text}'.encode()).hexdigest()}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    with fence("its file fails"), _beside(path):
        exec(compile(tree, str(path), "exec"), module.__dict__)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(path, name, "is not a function" if hasattr(module, name) else
                         "is not there after the file has run", "define it at the file's top level")

    def beside(**arguments: Any) -> Any:
        with _beside(path):
            return function(**arguments)

    with contextlib.suppress(TypeError, ValueError):  # built-in functions have no signature
        beside.__signature__ = inspect.signature(function)
    return beside


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, and leave no compiled files beside them."""
    before, kept = sys.dont_write_bytecode, list(sys.path)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        sys.dont_write_bytecode, sys.path[:] = before, kept


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw the same random weights each time, without changing the global random state."""
    kept = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def _arguments(function: Callable[..., Any], path: Path, name: str, options: dict[str, Any],
               own: dict[str, Any]) -> dict[str, Any]:
    """Choose the options of the call: the function's own, and those of ours that it names."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}
    named = [key for key, each in parameters.items()
             if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for key in options if not takes_any else ():
        if key not in named:
            known = [*(each for each in named if each not in OWN), *OWN]
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(path, name, f"takes no option {key!r}",
                             f"did you mean {near[0]}?" if near else f"options are {known}")
    given = options | {key: own[key] for key in named if key in own}
    missing = [key for key, each in parameters.items()
               if each.default is each.empty and key not in given
               and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if missing:
        raise InputError(path, name, f"needs {missing[0]!r}, which is not given",
                         f"write options: {{{missing[0]}: ...}}, or give it a default")
    return given


def _carried(made: Any) -> dict[str, Any]:
    """Read what the object states about its input and its read-out.

    Only plain values count: a network's `mean` may be its own buffer, its `pool` a layer.
    """
    if isinstance(made, PatchEncoder):
        look = made.eval_transforms
        return {"mpp": made.mpp, "input_px": look.input_px, "mean": look.mean, "std": look.std,
                "interpolation": look.interpolation}
    plain = {"mpp": int | float, "input_px": int, "mean": list | tuple, "std": list | tuple,
             "pool": str, "depths": list | tuple}
    found = {key: getattr(made, key, None) for key in CARRIED}
    return {key: value for key, value in found.items() if isinstance(value, plain[key])}


def _names(made: Any, width: int) -> list[str] | None:
    """Names of the features, where the object has as many as features."""
    names = getattr(made, "feature_names", None)
    fits = isinstance(names, list | tuple) and len(names) == width and all(
        isinstance(name, str) for name in names)
    return list(names) if fits else None


def _stated(value: Any) -> Any:
    """Return an option as part of a cache key: a file by its bytes, not by its name."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(value, str) and value and resolve(value).is_file():
            return sha256_file(resolve(value))
    return repr(value)


def _weights_inside(made: Any) -> str:
    """sha256 of the networks that an object with ``encode`` holds."""
    digest = hashlib.sha256()
    if not isinstance(made, nn.Module):
        for key, value in sorted(getattr(made, "__dict__", {}).items()):
            if isinstance(value, nn.Module):
                digest.update(key.encode())
                update_by_weights(digest, value)
    return digest.hexdigest()


class TileObject(nn.Module):
    """An object with ``encode``, handed tiles as they were cut."""

    def __init__(self, made: Any, fence: Callable[[], Any]):
        super().__init__()
        self.made, self.fence = made, fence

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, 3, S, S)` in 0-1, through uint8 `(B, S, S, 3)`, to `(B, D)`."""
        tiles = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        with self.fence():
            out = self.made.encode(tiles)
            if isinstance(out, np.ndarray) and out.dtype.kind in "fiub":
                out = torch.from_numpy(np.ascontiguousarray(out))
        return out.to(x.device) if isinstance(out, Tensor) else out


class Checked(nn.Module):
    """Checks that the output is one row of finite numbers per tile."""

    def __init__(self, model: nn.Module, path: Path, function: str):
        super().__init__()
        self.model, self.path, self.function = model, path, function
        self.feature_names: list[str] | None = None

    def forward_features(self, x: Tensor) -> Mapping[str, Tensor | None]:
        """Tokens of the network, for methods that work on them."""
        if not isinstance(self.model, ReadOut):
            raise InputError(self.path, self.function, "returns an object with encode, which has "
                             "no tokens", "return a torch module that gives tokens")
        return self.model.forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images to features `(B, D)`.

        Raises
        ------
        InputError
            If they are no tensor of decimal numbers, of another shape, or not finite.
        """
        out = self.model(x)
        if not isinstance(out, Tensor):
            self._refuse(f"gives a {type(out).__name__}, not a tensor or array of decimal numbers",
                         "return one row of features per tile")
        if not out.is_floating_point():
            self._refuse(f"gives {str(out.dtype).removeprefix('torch.')}, not decimal numbers",
                         "return float32")
        if out.ndim != 2 or len(out) != len(x) or out.shape[1] == 0:
            self._refuse(f"gives shape {tuple(out.shape)} for {len(x)} tiles",
                         "return (N, D), or tokens (N, P + 1, D) of a torch module")
        out = out.float()
        if bad := int((~torch.isfinite(out)).any(dim=1).sum()):
            self._refuse(f"gives NaN or infinite features for {bad} of {len(x)} tiles",
                         "look at its weights, its precision, and what it does with flat tiles")
        return out

    def _refuse(self, problem: str, fix: str) -> None:
        raise InputError(self.path, self.function, problem, fix)


@torch.inference_mode()
def _try(checked: Checked, transform: EvalTransform, path: Path, name: str,
         input_px: int | None) -> int:
    """Encode two tiles, and return the width of their features."""
    px = input_px or TRIED_PX
    noise = np.random.default_rng(0).integers(0, 256, (2, px, px, 3), dtype=np.uint8)
    first = next((t for t in (*checked.parameters(), *checked.buffers())), None)
    device = torch.device("cpu") if first is None else first.device
    x = torch.from_numpy(noise).to(device).permute(0, 3, 1, 2).float() / 255
    try:
        return checked(transform.batch(x)).shape[1]
    except TooLarge:
        raise
    except InputError as error:
        if input_px is None and error.fix.startswith("correct it"):
            raise InputError(path, name, error.problem, f"correct it; it was tried on {px} px: if "
                             "it needs another size, say input_px") from error
        raise
