"""Conversion of published weights to our models: names, nesting and the doubled bias.

Read are checkpoints of MVHybrid's DINOv2 training (``teacher.backbone.*``,
``student.backbone.*``, nested or flat, with blocks in chunks or not), of a DINOv2 ViT, and single
mixers under their authors' names (MambaVision, Vim, Hydra, SiMBA's EinFFT). A key too many, a key
too few or a wrong shape is an error that lists them all.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvhlib.artifacts import InputError, check_file, reading
from mvhlib.backbones.mixers import MambaVisionMixer
from mvhlib.backbones.sealed import check_finite

#: Wrappers that add themselves in front of, or inside, a parameter's name.
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module)\.")
#: Parts of a self-supervised checkpoint that are not the backbone.
_HEADS = re.compile(r"^(dino_head|ibot_head|dino_loss|ibot_patch_loss|ibot_loss)\.")
#: Published names -> ours, in this order.
_RENAMES = (
    (re.compile(r"^blocks\.blocks\.(\d+)\."), r"blocks.\1."),  # MambaVision's flat layer
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),  # chunks: the inner index counts on
    (re.compile(r"^layers\.(\d+)\.norm\."), r"blocks.\1.norm1."),  # Vim
    (re.compile(r"^layers\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"^norm_f\."), "norm."),
    (re.compile(r"^(blocks\.\d+)\.attn\."), r"\1.mixer."),
    (re.compile(r"^(blocks\.\d+)\.mlp\."), r"\1.channel_mixer."),
    (re.compile(r"^(blocks\.\d+)\.ls([12])\.gamma$"), r"\1.gamma\2"),
)


def rename_reference_key(key: str) -> str:
    """Our name of a published backbone's or mixer's parameter."""
    for pattern, ours in _RENAMES:
        key = pattern.sub(ours, key)
    return key


def load_reference_state_dict(model: nn.Module, path: str | os.PathLike | Mapping[str, Any],
                              branch: str = "teacher", dt_bias_count: int = 2) -> nn.Module:
    """Load published weights into a backbone or a mixer, in place.

    Parameters
    ----------
    model
        A `Backbone`, or one of the mixers.
    path
        Checkpoint file (PyTorch, read with ``weights_only=True``; .safetensors; .npz), or a
        mapping from names to tensors or arrays.
    branch
        ``"teacher"`` or ``"student"``, where the checkpoint holds both.
    dt_bias_count
        How often the checkpoint's own code adds MambaVision's time-step bias. Where the model
        adds it another number of times, the stored bias is scaled so that the steps stay equal.

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    InputError
        If the file cannot be read, a weight is not finite, or keys or shapes do not fit; lists all
        of them.
    """
    where = "state dict" if isinstance(path, Mapping) else Path(path)
    content = path if isinstance(path, Mapping) else _read(Path(path))
    with reading(where, "content", "holds no tensors by name", "save the state dict alone"):
        flat = _select(_flatten(content), branch)
    check_finite(flat, where)

    found: dict[str, Tensor] = {}
    problems = []
    for key, value in flat.items():
        ours = rename_reference_key(key)
        if ours in found:
            problems.append(f"two keys stand for {ours}")
        found[ours] = value
    own = model.state_dict()
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    problems += [f"missing {missing}"] * bool(missing) + [f"extra {extra}"] * bool(extra)
    problems += [f"{name} is {tuple(found[name].shape)}, expected {tuple(own[name].shape)}"
                 for name in own if name in found and found[name].shape != own[name].shape]
    if problems:
        raise InputError(where, "keys", "; ".join(problems),
                         "build the model with the arguments that the checkpoint was trained with")
    for name, module in model.named_modules():
        if isinstance(module, MambaVisionMixer) and module.dt_bias_count != dt_bias_count:
            key = f"{name}.dt_proj.bias".removeprefix(".")
            found[key] = found[key] * (dt_bias_count / module.dt_bias_count)
    model.load_state_dict(found)
    return model


def _read(path: Path) -> Mapping[str, Any]:
    check_file(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own text would advise to load the code along.
        raise InputError(path, "content",
                         f"cannot be read as plain tensors ({type(error).__name__})",
                         "download it again, or export the state dict alone; checkpoints that "
                         "carry code are refused") from error
    if not isinstance(content, Mapping):
        raise InputError(path, "content", f"is a {type(content).__name__}, not a mapping",
                         "save the state dict alone")
    return content


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a nested mapping by dotted name; counters and settings are left out."""
    flat = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, name + ".")
        elif isinstance(value, (Tensor, np.ndarray)):
            flat[_WRAPPERS.sub("", name)] = torch.as_tensor(value)
    return flat


def _select(flat: dict[str, Tensor], branch: str) -> dict[str, Tensor]:
    """The backbone's keys: container, branch and ``backbone.`` taken off, heads left out."""
    for container in ("model.", "state_dict.", "param."):
        inside = {key.removeprefix(container): value for key, value in flat.items()
                  if key.startswith(container)}
        if inside:
            # Beside a container lie optimiser states and the like, or the arrays of a test.
            flat = inside
    if any(key.startswith(f"{branch}.") for key in flat):
        flat = {key.removeprefix(f"{branch}."): value for key, value in flat.items()
                if key.startswith(f"{branch}.")}
    flat = {key: value for key, value in flat.items() if not _HEADS.match(key)}
    if any(key.startswith("backbone.") for key in flat):
        flat = {key.removeprefix("backbone."): value for key, value in flat.items()}
    return flat
