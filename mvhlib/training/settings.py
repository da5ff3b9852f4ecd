"""Settings of a loop: a flat dataclass, a YAML file, and ``key=value`` above it."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from mvhlib.artifacts import InputError
from mvhlib.parameters import check, parse_yaml, read_yaml


def read_config(kind: type, path: str | os.PathLike | None = None,
                overrides: Sequence[str] | Mapping[str, Any] = ()) -> Any:
    """Make a flat dataclass of a YAML file and ``key=value`` overrides.

    Parameters
    ----------
    kind
        A dataclass; its annotations (int, float, str, bool, list[...], dict) are the types.
    path
        A YAML file of names and values, or None for the defaults.
    overrides
        ``["steps=10", ...]`` or a mapping; they win over the file.

    Raises
    ------
    InputError
        On an unknown name (the nearest is named), a wrong type, or a file that is no mapping.
    """
    where = kind.__name__ if path is None else path
    values = {} if path is None else read_yaml(path)
    _check_config(kind, where, values)
    if not isinstance(overrides, Mapping):
        overrides = read_pairs(overrides)
    _check_config(kind, "command line", dict(overrides))
    merged = values | dict(overrides)
    types = {field.name: field.type for field in fields(kind)}
    return kind(**{name: _coerce(value, types[name]) for name, value in merged.items()})


def read_pairs(items: Sequence[str]) -> dict[str, Any]:
    """Values of ``["key=value", ...]``, each value read as YAML.

    Raises
    ------
    InputError
        If an item has no ``=``.
    """
    pairs = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError("command line", item, "is not a key=value", "write key=value")
        pairs[name] = parse_yaml(text, "command line", name)
    return pairs


def _check_config(kind: type, where: str | os.PathLike, values: Mapping[str, Any]) -> None:
    known = {field.name: field for field in fields(kind)}
    check(where, {name: field.type for name, field in known.items()},
          {name: _coerce(value, known[name].type) if name in known else value
           for name, value in values.items()},
          noun="setting", examples={name: field.default for name, field in known.items()
                                    if field.default is not MISSING})


def _coerce(value: Any, annotation: Any) -> Any:
    """YAML reads ``1e-6`` as text and ``1`` as an integer; a float is meant by both."""
    if annotation is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if getattr(annotation, "__origin__", None) is list and isinstance(value, list):
        return [_coerce(item, annotation.__args__[0]) for item in value]
    return value
