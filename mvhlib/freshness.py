"""Detection of committed tables that are older than the code that makes them.

Every figure's record holds a hash of each module that was loaded when it was drawn
(`mvhlib.notebook.Run.save_figure`). A module is hashed without comments, docstrings and blank
lines, so that prose can be mended without a table growing stale.
"""

import ast
from functools import cache
from pathlib import Path

from mvhlib import artifacts
from mvhlib.places import home


def code_of(source: str) -> str:
    """Python code without docstrings, lines of comment, blank lines and spaces at lines' ends.

    Raises
    ------
    SyntaxError
        If it is no Python.
    """
    lines = source.splitlines()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        todo += [child for child in node.body
                 if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
        first = node.body[0] if node.body else None
        if (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)):
            for row in range(first.lineno - 1, first.end_lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines
                     if line.strip() and not line.lstrip().startswith("#"))


@cache
def code_sha256(path: Path) -> str:
    """Hash of a module's code, or of a notebook's code cells."""
    if path.suffix == ".ipynb":
        cells = artifacts.read_json(path)["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells
                           if cell["cell_type"] == "code")
    else:
        source = path.read_text(encoding="utf-8")
    return artifacts.sha256_of(code_of(source))


def changed(record: Path) -> list[str]:
    """Modules (and the notebook) that are no longer what drew a figure; empty where it is fresh.

    Parameters
    ----------
    record
        A figure's json.
    """
    content = artifacts.read_json(record)
    with artifacts.reading(record, "provenance", "names no code", "run make figures again"):
        made_by, name = content["provenance"], content["notebook"]
        found = [module for module, known in sorted(made_by["modules"].items())
                 if known != _now(_module(module))]
        if made_by["notebook"] != _now(home() / "notebooks" / f"{name}.ipynb"):
            found.append(name)
    return found


def stale(figures: Path) -> list[str]:
    """``<profile>/<notebook>`` of every figure below a folder that today's code did not draw."""
    return sorted({f"{record.parts[-3]}/{record.parts[-2]}"
                   for record in figures.glob("*/*/*.json") if changed(record)})


def _module(name: str) -> Path:
    base = home().joinpath(*name.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _now(path: Path) -> str | None:
    return code_sha256(path) if path.exists() else None
