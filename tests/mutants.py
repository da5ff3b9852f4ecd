"""Change one operator or number of a module at a time, and count the changes that no test notices.

    .venv/bin/python -m tests.mutants --out check
    .venv/bin/python -m tests.mutants --out check --only mvhlib/statistics.py --mutants 100

For each module of `TESTS`, `--mutants` changes are drawn (`--seed`). Each is written into a copy of
the library, against which the module's tests run until the first fails, in a forked process.
``mutants.csv`` in `--out` has one row per change: module, line, the code before and after, and
whether it was killed, survived, or took longer than `LIMIT_S`, which counts as killed. Changes that
mean the same as the original survive too: read the survivors.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mvhlib import artifacts
from mvhlib.places import home

#: Module -> its tests.
TESTS = {
    "mvhlib/expression/scores.py": ["test_scores", "test_ceilings", "test_evaluation"],
    "mvhlib/cohort/splits/protocols.py": ["test_splits"],
    "mvhlib/cohort/splits/dealing.py": ["test_splits"],
    "mvhlib/statistics.py": ["test_statistics", "test_evaluation", "test_spatial"],
    "mvhlib/dino/losses.py": ["test_dino_losses", "test_dino_step"],
    "mvhlib/dino/pretrain.py": ["test_dino_pretrain", "test_dino_step"],
    "mvhlib/expression/ridge/moments.py": ["test_ridge"],
    "mvhlib/expression/ridge/penalty.py": ["test_ridge"],
    "mvhlib/expression/ridge/probe.py": ["test_ridge"],
}
LIMIT_S = 180
COLUMNS = ("module", "line", "before", "after", "outcome")
_OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
          ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.Lt: ast.LtE,
          ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
          ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
          ast.And: ast.Or, ast.Or: ast.And}
#: Loaded once, before processes are forked for the changes.
_HEAVY = ("torch", "scipy.stats", "sklearn.linear_model", "pytest", "h5py", "matplotlib.pyplot")


class One(ast.NodeTransformer):
    """Changes the operator or number at one place of a module, counted from 0."""

    def __init__(self, place: int):
        self.place, self.n_seen, self.found = place, 0, ()

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Raise, ast.arguments, ast.JoinedStr, ast.AnnAssign)):
            return node
        other = changed(node)
        if other is not None:
            self.n_seen += 1
            if self.n_seen == self.place + 1:
                self.found = (node.lineno, ast.unparse(node), ast.unparse(other))
                return other
        return self.generic_visit(node)


def changed(node: ast.AST) -> ast.AST | None:
    """A copy of the node with another operator or number; None where it has neither."""
    other = copy.copy(node)
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in _OTHER:
        other.op = _OTHER[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
        other.ops = [_OTHER[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        return node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        other.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        other.value = node.value + 1
    else:
        return None
    return other


def run(folder: Path, tests: list[str]) -> str:
    """Run tests on the library in a folder, in a process of its own, until the first fails."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ |= {"PYTHONPATH": str(folder), "MVH_HOME": str(folder)}
        for name in [name for name in sys.modules if name.split(".")[0] in ("mvhlib", "tests")]:
            del sys.modules[name]
        with open(os.devnull, "w") as silence:
            os.dup2(silence.fileno(), 1)
            os.dup2(silence.fileno(), 2)
        os._exit(int(importlib.import_module("pytest").main(
            ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow",
             *[f"tests/{name}.py" for name in tests]])))
    began = time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() - began > LIMIT_S:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "too slow"
        time.sleep(0.05)
    return "killed" if ended[1] else "survived"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--mutants", type=int, default=25, help="of each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in _HEAVY:
        importlib.import_module(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in ("mvhlib", "tests", "params", "notebooks", "workflow"):
            shutil.copytree(home() / part, Path(folder) / part)
        shutil.copy(home() / "pyproject.toml", folder)
        for module in options.only:
            path = Path(folder) / module
            source = path.read_text(encoding="utf-8")
            if run(Path(folder), TESTS[module]) != "survived":
                raise SystemExit(f"{module}: its tests fail, or are too slow, without any change")
            whole = One(-1)
            whole.visit(ast.parse(source))
            places = random.Random(f"{options.seed} {module}").sample(
                range(whole.n_seen), min(options.mutants, whole.n_seen))
            for place in sorted(places):
                one = One(place)
                path.write_text(ast.unparse(one.visit(ast.parse(source))), encoding="utf-8")
                outcome = run(Path(folder), TESTS[module])
                rows.append((module, *one.found, outcome))
                if outcome == "survived":
                    print(*rows[-1], sep=" | ", flush=True)
                artifacts.write_csv(options.out / "mutants.csv",
                                    pd.DataFrame(rows, columns=list(COLUMNS)))
            path.write_text(source, encoding="utf-8")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    print(table.groupby("module", sort=False)["outcome"].value_counts().unstack(fill_value=0))


if __name__ == "__main__":
    main()
