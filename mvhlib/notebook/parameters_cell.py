"""The parameters cell of a notebook: read, compared with what was given, checked."""

import ast
import re
from pathlib import Path
from typing import Any

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.parameters import check
from mvhlib.places import home

#: The parameters that every notebook starts with, in this order.
COMMON = ("profile", "out", "data", "seed", "device")
#: Parameters that are wildcards of the workflow: one job and one executed notebook per value.
WILDCARDS = ("encoder",)


def declared_parameters(source: str) -> dict[str, tuple[str, Any]]:
    """Read a parameters cell: name -> (annotation, default).

    Raises
    ------
    InputError
        If a parameter has no annotation or no literal, or a default string holds ``=``, which
        papermill takes apart wrongly.
    """
    parameters = {}
    with artifacts.reading("parameters cell", "code", "is not Python", "restore it from git"):
        body = ast.parse(source).body
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                and node.value is not None):
            raise InputError("parameters cell", ast.unparse(node), "is not an annotated literal",
                             "write `name: type = literal  # meaning [unit]`")
        name, annotation = node.target.id, ast.unparse(node.annotation)
        try:
            value = ast.literal_eval(node.value)
        except ValueError as error:
            raise InputError("parameters cell", name, "its default is not a literal",
                             "derive values in a later cell") from error
        if isinstance(value, str) and "=" in value:
            raise InputError("parameters cell", name, 'its default string holds "="',
                             "papermill mis-reads that; pass such a value from a YAML file")
        parameters[name] = (annotation, value)
    return parameters


def given_parameters(source: str) -> dict[str, Any]:
    """Read the cell that papermill injects: name -> value.

    Raises
    ------
    InputError
        If a value is no literal: papermill writes NaN and infinities as calls.
    """
    given = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            with artifacts.reading("injected parameters", name, f"is {ast.unparse(node.value)}",
                                   "give a number, text, list or mapping"):
                given[name] = ast.literal_eval(node.value)
    return given


def check_parameters(name: str, declared: dict[str, tuple[str, Any]],
                     values: dict[str, Any]) -> None:
    """Refuse unknown names and wrong types.

    Raises
    ------
    InputError
        Names the parameter and, where it is unknown, the nearest that exists.
    """
    check(name, {key: annotation for key, (annotation, _) in declared.items()}, values,
          noun="parameter of this notebook")


def read_parameters_cell(path: Path) -> str:
    """Source of the cell tagged ``parameters`` in a notebook file."""
    content = artifacts.read_json(path)
    with artifacts.reading(path, "cells", "are not those of a notebook", "restore it from git"):
        for cell in content["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                return "".join(cell["source"])
    raise InputError(path, "parameters", "no cell has this tag", "tag the first code cell")


def collect(name: str, namespace: dict[str, Any]) -> tuple[dict, dict]:
    """Declared parameters, and the values in force, of the notebook that runs in `namespace`."""
    history = [cell for cell in namespace.get("In", []) if isinstance(cell, str)]
    own = [cell for cell in history if re.match(r"\s*profile\s*:\s*str\s*=", cell)]
    source = own[-1] if own else read_parameters_cell(home() / "notebooks" / f"{name}.ipynb")
    declared = declared_parameters(source)
    if tuple(declared)[:len(COMMON)] != COMMON:
        raise InputError(name, "parameters", f"start with {list(declared)[:5]}",
                         f"start with {list(COMMON)}")
    injected = [cell for cell in history if cell.lstrip().startswith("# Parameters")]
    if injected:
        check_parameters(name, declared, given_parameters(injected[-1]))
    values = {key: namespace.get(key, default) for key, (_, default) in declared.items()}
    check_parameters(name, declared, values)
    return declared, values
