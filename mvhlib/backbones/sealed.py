"""Weights and their configuration in one folder, of which neither can be altered by itself.

``model.safetensors`` holds the hash of the configuration, ``config.json`` that of the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvhlib.artifacts import (
    InputError,
    atomic,
    check_file,
    read_json,
    reading,
    sha256_file,
    sha256_of,
    write_json,
)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_SEAL = "config_sha256"


def write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write both files, each by atomic rename; `folder` is made if it is not there."""
    from safetensors.torch import save_file

    config = json.loads(json.dumps(config))
    with atomic(folder / WEIGHTS) as temporary:
        # One key only: safetensors writes several in random order.
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                  temporary, metadata={_SEAL: sha256_of(config)})
        weights = sha256_file(temporary)
    write_json(folder / CONFIG, config | {"weights_sha256": weights})


def read(folder: Path, again: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote: tensors by name, and the configuration.

    Parameters
    ----------
    folder
        Holds both files.
    again
        What an error advises.

    Raises
    ------
    InputError
        If a file is missing, truncated or altered, the two do not belong together, or a weight is
        not finite.
    """
    from safetensors import safe_open

    path, config_path = folder / WEIGHTS, folder / CONFIG
    config = read_json(config_path)
    check_file(path)
    with reading(config_path, "content", "is not a model configuration", again):
        expected = config.pop("weights_sha256")
    with reading(path, "content", "is not readable", again):
        if sha256_file(path) != expected:
            raise InputError(path, "sha256", f"does not match the one in {CONFIG}: truncated, "
                             "altered, or of another model", again)
        with safe_open(path, framework="pt") as stream:
            sealed = (stream.metadata() or {}).get(_SEAL)
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
    if sealed != sha256_of(config):
        raise InputError(config_path, "content", f"was altered after {WEIGHTS} was written", again)
    check_finite(tensors, path)
    return tensors, config


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse weights that are NaN or infinite: every prediction would be NaN, or nothing."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(where, name, "holds NaN or infinite weights",
                             "use a checkpoint from before the training diverged")
