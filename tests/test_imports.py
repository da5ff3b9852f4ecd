"""The house has floors: a module imports what stands below it, and nothing in a circle.

Imports inside functions count. Two tables name modules by text and look them up when somebody
needs them, `cohort.SOURCES` and `encoders.LOADERS`: they may name what stands above.
"""

import ast
from pathlib import Path

import mvhlib

#: From the ground up. A row may import from rows below it and, within the row, from its left.
FLOORS = (
    ("files, errors, places",
     "artifacts phrases places progress parameters tables spelling own_tables tcga"),
    ("names of encoders and of their read-outs, the user's files",
     "encoder_sources read_outs own_files"),
    ("numbers", "standardise lattice verdicts statistics power nulls neighbours"),
    ("loops and pictures", "training plots dots maps"),
    ("pixels", "tiles"),
    ("networks", "backbones dino"),
    ("data sets, and what is known of a spot", "cohort features slide_features spots"),
    ("encoders", "encoders"),
    ("what is predicted, and what follows", "expression prediction frequency downstream"),
    ("a notebook", "answers freshness lineage notebook explorer"),
    ("a run and its report", "profiles workflow doctor commands gallery results claims book cover"),
)
HOME = Path(mvhlib.__file__).parent


def _modules() -> dict[str, Path]:
    found = {}
    for path in HOME.rglob("*.py"):
        parts = path.relative_to(HOME).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the library that a file imports when it runs, in function bodies too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            names = [f"{node.module}.{name.name}" for name in node.names]
            names = [name if name.removeprefix("mvhlib.") in modules else node.module
                     for name in names]
        else:
            continue
        found |= {name.removeprefix("mvhlib.") for name in names if name.startswith("mvhlib.")}
    return found


MODULES = _modules()
IMPORTS = {name: _imports(path, MODULES) - {name} for name, path in MODULES.items()}


def test_every_module_has_its_floor():
    listed = [name for _, names in FLOORS for name in names.split()]
    assert len(listed) == len(set(listed))
    assert {name.split(".")[0] for name in MODULES if name} == set(listed)


def test_imports_go_down():
    order = {name: place for place, name in enumerate(
        name for _, names in FLOORS for name in names.split())}
    climbing = [f"{name} imports {other}" for name, others in IMPORTS.items() if name
                for other in others
                if order[other.split(".")[0]] > order[name.split(".")[0]]]
    assert not climbing


def test_no_circles():
    left = {name: set(others) for name, others in IMPORTS.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"
