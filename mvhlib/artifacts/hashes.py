"""Hashes of files and of content."""

import hashlib
import json
import os
from typing import Any

import numpy as np


def sha256_file(path: str | os.PathLike) -> str:
    """sha256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(*content: Any) -> str:
    """sha256 of JSON-like content and numpy arrays; equal content gives an equal key."""
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=as_json).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def as_json(value: Any) -> Any:
    """Turn numpy scalars, arrays and paths into what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
