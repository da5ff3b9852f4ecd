"""Modules, functions and notebooks stay small enough to be read at once; what does not says why."""

import ast
import json
from pathlib import Path

import pytest

import mvhlib
from mvhlib.places import home

MODULE_LINES, FUNCTION_LINES, PARAMETERS = 600, 60, 12
NOTEBOOK_LINES, NOTEBOOK_WORDS = 200, 1200

#: Longer than the rest, and why.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "backbones/backbone.py:Backbone.__init__": "builds every part, in the order of the data",
    "claims.py:claims": "a table: one row per claim",
}
MANY_PARAMETERS = {
    "backbones/backbone.py:Backbone.__init__": "timm's surface: every option by its name",
    "cohort/legacy_st/sections.py:make_section": "what no file says of a section",
    "cohort/synthetic/sections.py:make_cohort": "the recipe, flat, as params set it",
    "expression/mmap/estimator.py:MMAP.__init__": "an estimator's settings, as scikit-learn's",
    "expression/protocols/evaluate.py:run": "a keyword per choice that the tables name",
    "prediction/model.py:save": "what a model's file says of its making",
}
LONG_NOTEBOOKS: dict[str, str] = {}

HOME = Path(mvhlib.__file__).parent
MODULES = {str(path.relative_to(HOME)): path.read_text(encoding="utf-8")
           for path in sorted(HOME.rglob("*.py"))}


def _code_lines(node: ast.AST, lines: list[str]) -> int:
    """Lines of a function without its docstrings, comments and blank lines."""
    prose = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part):
            prose |= set(range(part.body[0].lineno, part.body[0].end_lineno + 1))
    return sum(bool(lines[number - 1].strip()) and not lines[number - 1].lstrip().startswith("#")
               for number in range(node.lineno, node.end_lineno + 1) if number not in prose)


def _functions():
    """Name, code lines and parameters (without ``self``) of every function and method.

    Kernels of a GPU, which take a pointer and strides per array, are left out.
    """
    for name, source in MODULES.items():
        lines, todo = source.splitlines(), [("", ast.parse(source))]
        while todo:
            prefix, node = todo.pop()
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.ClassDef):
                    todo.append((f"{prefix}{part.name}.", part))
                elif isinstance(part, ast.FunctionDef) and not any(
                        "jit" in ast.unparse(each) for each in part.decorator_list):
                    taken = part.args.posonlyargs + part.args.args + part.args.kwonlyargs
                    n = len([each for each in taken if each.arg not in ("self", "cls")])
                    yield f"{name}:{prefix}{part.name}", _code_lines(part, lines), n


FUNCTIONS = list(_functions())


def test_modules_are_short():
    assert {name for name, source in MODULES.items()
            if len(source.splitlines()) > MODULE_LINES} <= set(LONG_MODULES)


def test_functions_are_short():
    assert len(FUNCTIONS) > 1000
    assert {name for name, n, _ in FUNCTIONS if n > FUNCTION_LINES} <= set(LONG_FUNCTIONS)


def test_functions_take_few_parameters():
    assert {name for name, _, n in FUNCTIONS if n > PARAMETERS} <= set(MANY_PARAMETERS)


@pytest.mark.parametrize("path", sorted((home() / "notebooks").glob("*.ipynb")),
                         ids=lambda path: path.stem)
def test_notebooks_are_short(path):
    cells = [(cell["cell_type"], "".join(cell["source"]))
             for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    code = [line.strip() for kind, text in cells if kind == "code" for line in text.splitlines()]
    lines = sum(bool(line) and not line.startswith("#") for line in code)
    words = sum(len(text.split()) for kind, text in cells if kind == "markdown")
    short = lines <= NOTEBOOK_LINES and words <= NOTEBOOK_WORDS
    assert short or path.stem in LONG_NOTEBOOKS, f"{lines} lines of code, {words} words"
