"""What a run's tables rest on: the code of every step, not of the last one alone.

A figure's own record (`mvhlib.freshness`) names the modules of the notebook that drew it. What that
notebook read was computed by earlier ones, whose provenance stays in ``runs/``. At the end of a run
`write` puts both together in ``figures/<profile>/lineage.json``:

``code``    modules, notebooks and scripts, each with a hash of its code, by the steps that ran them
``tables``  committed table or answer -> hash of its bytes
``torn``    steps that read a file which an earlier step has since written anew

Benchmarks are scripts; each enters its table in ``benchmarks/lineage.json`` (`enter`).
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvhlib import artifacts, freshness
from mvhlib.places import home

NAME = "lineage.json"
#: Digits of a hash that are kept.
DIGITS = 12
AGAIN = "delete it and run the command again"
#: What a reader may check against its bytes; pictures differ with fonts, timings always.
KINDS = (".csv", ".md")


def write(run: Path, folder: Path) -> Path:
    """Write what the steps of a run were computed by.

    Parameters
    ----------
    run
        ``runs/<profile>``, whose ``provenance`` is read.
    folder
        ``figures/<profile>``.

    Raises
    ------
    InputError
        If a provenance is broken.
    """
    steps = {}
    for path in sorted(run.glob("provenance/*.json")):
        record = artifacts.read_json(path)
        with artifacts.reading(path, "hashed", "names no code", AGAIN):
            steps[path.stem] = {key: dict(record["hashed"][key])
                                for key in ("modules", "inputs", "outputs")}
            steps[path.stem]["modules"][path.stem.split(".")[0]] = record["hashed"]["notebook"]
    inside = f"figures/{run.name}/"
    tables = {name.removeprefix(inside): code[:DIGITS] for step in steps.values()
              for name, code in step["outputs"].items()
              if name.startswith(inside) and name.endswith(KINDS)}
    return artifacts.write_json(folder / NAME, {
        "code": _grouped((stem.split(".")[0], step["modules"]) for stem, step in steps.items()),
        "tables": tables, "torn": _torn(steps)})


def enter(table: Path, script: str | Path) -> Path:
    """Enter a table that the running script has written: its bytes, and all code that is loaded.

    Parameters
    ----------
    table
        The csv; ``lineage.json`` stands beside it.
    script
        The script's ``__file__``. Modules that were loaded from its folder count.
    """
    script, path = Path(script).resolve(), table.parent / NAME
    modules = {script.name: freshness.code_sha256(script)}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.split(".")[0] == "mvhlib":
            modules[name] = freshness.code_sha256(Path(file))
        elif file and Path(file).resolve().parent == script.parent:
            modules[Path(file).name] = freshness.code_sha256(Path(file))
    known = artifacts.read_json(path) if path.exists() else {"code": [], "tables": {}}
    steps = {name: dict(code) for name, code in _by_step(path, known).items()}
    return artifacts.write_json(path, {
        "code": _grouped((steps | {table.name: modules}).items()), "torn": [],
        "tables": known["tables"] | {table.name: artifacts.sha256_file(table)[:DIGITS]}})


def stale(folder: Path) -> list[str]:
    """Steps below a folder that today's code has not run again, or whose files do not fit together.

    Such are a step that read what an earlier one has since written anew, and one whose table is not
    what it wrote.

    Parameters
    ----------
    folder
        ``figures``, with a lineage in the folder of each profile, or ``benchmarks`` with its own.

    Returns
    -------
    list of str
        ``<profile>/<notebook>``, or ``<folder>/<table>`` of a benchmark.

    Raises
    ------
    InputError
        If a lineage is broken.
    """
    found = set()
    for path in [*folder.glob(NAME), *folder.glob(f"*/{NAME}")]:
        content = artifacts.read_json(path)
        for step, modules in _by_step(path, content).items():
            if any(code != (_now(path, name) or "")[:DIGITS] for name, code in modules):
                found.add(f"{path.parent.name}/{step}")
        with artifacts.reading(path, "torn", "names no steps", AGAIN):
            found |= {f"{path.parent.name}/{step}" for step in content["torn"]}
            names = {name for name in content["tables"] if (path.parent / name).exists()}
        names |= {table.name for table in path.parent.glob("*.csv")}
        found |= {f"{path.parent.name}/{name.split('/')[0]}"
                  for name in unlike(path.parent, names)}
    return sorted(found)


def unlike(folder: Path, names: Iterable[str]) -> list[str]:
    """Tables of one folder that are not those which its steps wrote; `names` are relative to it."""
    content = artifacts.read_json(folder / NAME)
    with artifacts.reading(folder / NAME, "tables", "names no tables", AGAIN):
        known = dict(content["tables"])
    return sorted(name for name in names
                  if known.get(name) != artifacts.sha256_file(folder / name)[:DIGITS])


def _grouped(steps: Iterable[tuple[str, Mapping[str, str | None]]]) -> list[dict[str, Any]]:
    """Code by the steps that share it; a step is named once though it ran for several encoders."""
    users = defaultdict(dict)  # (name, hash) -> steps
    for step, modules in steps:
        for name, code in modules.items():
            users[name, (code or "gone")[:DIGITS]][step] = None
    shared = defaultdict(list)
    for named, each in sorted(users.items()):
        shared[tuple(sorted(each))].append(named)
    return [{"steps": " ".join(each), "code": [" ".join(named) for named in code]}
            for each, code in sorted(shared.items())]


def _by_step(path: Path, content: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Step -> names of its code, each with a hash."""
    found = defaultdict(list)
    with artifacts.reading(path, "code", "names no code", AGAIN):
        for group in content["code"]:
            for step in group["steps"].split():
                found[step] += [(name, code) for name, code in map(str.split, group["code"])]
    return dict(found)


def _now(path: Path, name: str) -> str | None:
    """Hash of the code that bears a name today; None if nothing does."""
    if name.split(".")[0] == "mvhlib":
        place = home().joinpath(*name.split("."))
        place = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    elif name.endswith(".py"):
        place = path.parent / name
    else:
        place = home() / "notebooks" / f"{name}.ipynb"
    return freshness.code_sha256(place) if place.exists() else None


def _torn(steps: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    """Notebooks that read a file of the run as no step has left it."""
    written = {}
    for step in steps.values():
        written |= step["outputs"]
    return sorted({stem.split(".")[0] for stem, step in steps.items()
                   for name, code in step["inputs"].items() if written.get(name, code) != code})
