"""Parameter files: one reader of YAML, one check of names and types.

Every YAML of a user comes through `read_yaml`: profiles, the notebooks' parameters, settings of a
pretraining. It reads what people mean and refuses what they cannot have meant:

=============================  ================================================================
in the file                    what becomes of it
=============================  ================================================================
a key                          text as it stands, also ``no``, ``007``, ``2020-01-01``
``007``, ``1:30``, a date      text: other readers would make 7, 90 and a day of them
``yes``, ``no`` as values      true and false, as in every YAML; in a list of names: refused
a key twice, two documents     refused with the line
bytes that are no UTF-8        refused: Latin-1 and UTF-16 have to be saved anew
tags such as ``!!python/...``  refused
a link to nothing, a folder    refused: only a file that is not there means the defaults
over 200 kB, 100,000 values,   refused; values that anchors repeat are counted as often as they
or 50 levels                   are used
=============================  ================================================================
"""

import difflib
import functools
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvhlib.artifacts import InputError, check_file, one_line, reading

if TYPE_CHECKING:
    import yaml

LARGEST_KB, MOST_VALUES, DEEPEST = 200, 100_000, 50
#: Integers beyond it have no place in an array.
LARGEST_INT = 2**63 - 1
#: Values that are read as whole numbers (007 is a name) and as decimal ones.
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_DECIMAL = re.compile(
    r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_TAG = "tag:yaml.org,2002:"


@functools.cache
def _loader() -> type:
    """PyYAML's safe loader without dates, octal and sexagesimal numbers, and doubled keys.

    Made when it is first asked for: encoders check their options on machines without PyYAML.
    """
    import yaml

    def refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    class Loader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token: type) -> None:
            if self.flow_level >= DEEPEST:  # looking ahead in it would take seconds
                raise RecursionError
            super().fetch_flow_collection_start(token)

        def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
            if not isinstance(node, yaml.MappingNode):
                raise refusal("names and values are expected here", node)
            seen: dict[str, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise refusal("a list or a mapping is not a name", key)
                if key.tag == f"{_TAG}merge":
                    continue
                if key.value in seen:
                    raise refusal(f"{key.value!r} stands in line {seen[key.value]} already", key)
                seen[key.value] = key.start_mark.line + 1
            self.flatten_mapping(node)
            return {key.value: self.construct_object(value, deep=True)
                    for key, value in node.value}

    # None stands for every other tag, and refuses it.
    Loader.yaml_constructors = {
        tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in ("str", "int", "float", "bool", "null", "seq")}
    Loader.add_constructor(f"{_TAG}map", Loader.construct_mapping)
    changed = [f"{_TAG}{kind}" for kind in ("timestamp", "int", "float")]
    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in resolvers if pair[0] not in changed]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    Loader.add_implicit_resolver(f"{_TAG}float", _DECIMAL, list("-+0123456789."))
    Loader.add_implicit_resolver(f"{_TAG}int", _WHOLE, list("-+0123456789"))
    return Loader


def parse_yaml(text: str | bytes, where: str | os.PathLike, field: str = "content") -> Any:
    """Read YAML text, by the rules at the head of this module.

    Parameters
    ----------
    text
        Text, or the bytes of a file in UTF-8, with or without a byte order mark.
    where, field
        For the error: the file, and what of it.

    Raises
    ------
    InputError
        If it is no YAML, or too large.
    """
    import yaml

    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            kind = "UTF-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else (
                f"byte {error.start + 1} is {text[error.start]:#04x}")
            raise InputError(where, field, f"is not YAML in UTF-8 ({kind})",
                             "save the file as UTF-8") from error
    with reading(where, field, "is not YAML", "correct it"):
        try:
            loader = _loader()(text)
            try:
                node = loader.get_single_node()
                if node is None:
                    return None
                _measure(node, where, field)
                return loader.construct_document(node)
            finally:
                loader.dispose()
        except RecursionError as error:
            raise InputError(where, field, f"is nested in more than {DEEPEST} levels",
                             "write it flat") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f"line {mark.line + 1}: " if mark is not None else ""
            said = getattr(error, "problem", None) or one_line(error, 160)
            raise InputError(where, field, f"is not YAML ({line}{said})",
                             "correct it: write `name: value`, with blanks and no tabs") from error


def _measure(node: "yaml.Node", where: str | os.PathLike, field: str) -> None:
    """Refuse a document that is too large once its anchors are followed, or that holds itself."""
    import yaml

    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(part: "yaml.Node", depth: int) -> int:
        if id(part) in inside or depth > DEEPEST:
            raise InputError(where, field, f"is nested in more than {DEEPEST} levels",
                             "write it flat")
        if id(part) not in sizes:
            inside.add(id(part))
            children = ([] if isinstance(part, yaml.ScalarNode) else part.value
                        if isinstance(part, yaml.SequenceNode)
                        else [child for pair in part.value for child in pair])
            sizes[id(part)] = 1 + sum(size(child, depth + 1) for child in children)
            inside.discard(id(part))
        if sizes[id(part)] > MOST_VALUES:
            raise InputError(where, field, f"holds more than {MOST_VALUES:,} values",
                             "write what is needed, without anchors that repeat each other")
        return sizes[id(part)]

    size(node, 0)


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file of names and values, by the rules at the head of this module.

    Returns
    -------
    dict
        Empty for an empty file.

    Raises
    ------
    InputError
        If it is no such file: one line that names the file and, where it can, the line.
    """
    path = check_file(path)
    with reading(path):
        if path.stat().st_size > LARGEST_KB * 1000:
            raise InputError(path, "size", f"is over {LARGEST_KB} kB",
                             "name a file of parameters, which is a page at most")
        content = path.read_bytes()
    values = parse_yaml(content, path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(path, "content", "is not a list of names and values",
                         "write `name: value`, one per line")
    return values


def read_yaml_if_any(path: str | os.PathLike) -> dict[str, Any]:
    """`read_yaml`, and nothing where there is no file: a link to nothing is an error."""
    return read_yaml(path) if os.path.lexists(Path(path)) else {}


# --------------------------------------------------------------------------------------------
# names and types


def nearest(name: Any, known: Iterable[str], otherwise: str = "") -> str:
    """Advice after an unknown name: the nearest of those that there are, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"use one of {known}"


def type_name(annotation: Any) -> str:
    """``int``, ``list[float]`` and so on, of a type or of what stands in a parameters cell."""
    if isinstance(annotation, str):
        return annotation
    return str(annotation) if getattr(annotation, "__origin__", None) else annotation.__name__


def fits(value: Any, annotation: Any) -> bool:
    """True if a value is of a type: int, float, str, bool, list, list[...] or dict.

    An int is a float too; a bool is no number; NaN, infinities and integers beyond 64 bits are
    nothing that a parameter can mean.

    Raises
    ------
    InputError
        If the annotation is none of these.
    """
    kind, _, inner = type_name(annotation).partition("[")
    if kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
            return False
        return math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST_INT
    types = {"str": str, "bool": bool, "list": list, "dict": dict}
    if kind not in types:
        raise InputError("parameters cell", type_name(annotation),
                         "is not a type that a parameter can have",
                         f"use one of int, float, {', '.join(types)}")
    if not isinstance(value, types[kind]):
        return False
    if kind == "list" and inner:
        return all(fits(item, inner.removesuffix("]")) for item in value)
    return _all_finite(value)


def _all_finite(value: Any) -> bool:
    """Whether no number, at any depth, is NaN or infinite."""
    if isinstance(value, (dict, list)):
        return all(map(_all_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def check(where: str | os.PathLike, types: Mapping[str, Any], values: Mapping[str, Any],
          noun: str = "parameter", examples: Mapping[str, Any] | None = None) -> None:
    """Refuse unknown names and values of another type.

    Parameters
    ----------
    where
        File, notebook or set of settings, for the error.
    types
        Name -> type, as `fits` takes it.
    values
        What is given.
    noun
        What the names are called: "parameter of this notebook", "setting".
    examples
        Name -> a value that would do.

    Raises
    ------
    InputError
        Names the parameter and, where it is unknown, the nearest that exists.
    """
    for name, value in values.items():
        if name not in types:
            raise InputError(where, str(name), f"is not a {noun}", nearest(name, types))
        if not fits(value, types[name]):
            example = f", for example {examples[name]!r}" if name in (examples or {}) else ""
            raise InputError(where, name, f"is {value!r} ({type(value).__name__})",
                             f"give a value of type {type_name(types[name])}{example}")


def check_seed(seed: int, where: str | os.PathLike) -> int:
    """Return a seed that every library takes: a whole number from 0 to 2,147,483,647."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise InputError(where, "seed", f"is {seed!r}",
                         "give a whole number from 0 to 2147483647")
    return seed
