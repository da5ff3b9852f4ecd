"""What the workflow asks about a profile: its plan, its parameters, its code, what is unfinished.

``workflow/Snakefile`` holds the rules; this module holds the questions that they put, so that they
can be tested without running anything. A profile is a folder ``params/<profile>``::

    workflow.yaml             notebooks, encoders, methods (mmap and cmrcnet: the encoders that they
                              are built on), threads
    <notebook>.yaml           what differs from the notebook's defaults; may be absent

A notebook that compares encoders takes all of them; 07 and 08 those that their file names, if it
does. An encoder is its `source`, `weights`, `options` and other parameters of `04_embed`, and

==============  ==================================================================================
``pretrain``    parameters of `03_pretrain`, which then makes its weights
``seeds``       a number: so many encoders, ``<slug>.s0`` and so on
``held_out``    a list of sections: pretrained once without each of them, ``<slug>.no-<section>``;
                05 and 14 read all of them as one encoder, every fold by the one that did not see
                it, and notebooks that compare embeddings (07, 08, 11) leave them out
``if_data``     a path that begins in DATA, ``../glas/images``: without it the encoder is left out
==============  ==================================================================================
"""

import ast
import difflib
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.notebook import check_parameters, declared_parameters, read_parameters_cell
from mvhlib.places import home, resolve

SLUG = re.compile(r"[a-z0-9_.-]+")
#: Methods that train on tiles, each by a notebook of its own.
METHODS = ("mmap", "cmrcnet")
#: Keys of workflow.yaml and what stands for them where they are absent.
PLAN = {"needs_data": False, "notebooks": [], "encoders": {}, "methods": {}, "threads": {},
        "gpus": 0}


def read_plan(folder: Path, data: str = "") -> dict[str, Any]:
    """Read ``params/<profile>/workflow.yaml``.

    An encoder with ``seeds: n`` becomes n encoders, each with its ``seed`` (counted from the
    run's); one with ``held_out`` becomes one per section, which its ``pretrain: exclude`` names.

    Returns
    -------
    dict
        The keys of `PLAN`, and three that follow from them: ``scored`` (encoders as tables name
        them), ``members`` (of those the ones with ``held_out`` -> slugs that stand for it in
        ``encoders``) and ``left_out`` (slug -> reason).

    Raises
    ------
    InputError
        If the profile does not exist, a key is unknown, an encoder's name is no slug, or the
        profile wants a data directory and none is given.
    """
    path = folder / "workflow.yaml"
    if not path.exists():
        profiles = sorted(p.parent.name for p in folder.parent.glob("*/workflow.yaml"))
        near = difflib.get_close_matches(folder.name, profiles, n=1)
        raise InputError(path, "PROFILE", f"there is no profile {folder.name!r}",
                         f"did you mean {near[0]!r}?" if near else f"use one of {profiles}")
    given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for key in given:
        if key not in PLAN:
            raise InputError(path, key, "is not a key of workflow.yaml", f"use {list(PLAN)}")
    plan = PLAN | given
    for slug, options in plan["encoders"].items():
        if not SLUG.fullmatch(slug):
            raise InputError(path, f"encoders: {slug}", "is no slug",
                             "use lower-case letters, digits, dot, hyphen, underscore")
        if "source" not in options:
            raise InputError(path, f"encoders: {slug}", "has no source",
                             "add `source: handmade`, a registry name or a directory")
        if ("pretrain" in options) != (options.get("weights") == "pretrained"):
            raise InputError(path, f"encoders: {slug}", "is pretrained in one place only",
                             "write `weights: pretrained` and `pretrain: {...}` together")
    if plan["needs_data"] and not data:
        raise InputError(path, "DATA", f"profile {folder.name!r} reads a data set of yours",
                         f"run make figures PROFILE={folder.name} DATA=<directory>")
    plan["left_out"] = _without_data(plan["encoders"], data)
    plan["methods"] = {method: [slug for slug in slugs if slug not in plan["left_out"]]
                       for method, slugs in plan["methods"].items()}
    kept = {slug: {key: value for key, value in options.items() if key != "if_data"}
            for slug, options in plan["encoders"].items() if slug not in plan["left_out"]}
    seeded = _each_seed(path, kept)
    plan["scored"] = list(seeded)
    plan["encoders"], plan["members"] = _each_held_out(path, seeded)
    for slug, options in plan["encoders"].items():
        method, _, built_on = options.get("weights", "").partition(":")
        if method in METHODS and built_on not in plan["methods"].get(method, []):
            raise InputError(path, f"encoders: {slug}", f"has weights of {method} on {built_on!r}, "
                             "which is not run", f"add it to methods: {method}")
    for method, slugs in plan["methods"].items():
        unknown = sorted(set(slugs) - set(plan["encoders"]))
        if method not in METHODS or unknown:
            raise InputError(path, f"methods: {method}", f"{unknown or 'is not a method'}",
                             f"use {list(METHODS)}, each with encoders of this file")
    return plan


def _each_seed(path: Path, encoders: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every encoder as often as it asks for."""
    each = {}
    for slug, options in encoders.items():
        options = dict(options)
        if "seeds" not in options:
            each[slug] = options
            continue
        n = options.pop("seeds")
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise InputError(path, f"encoders: {slug}: seeds", f"is {n!r}", "give a number from 1")
        each |= {f"{slug}.s{seed}": options | {"seed": seed} for seed in range(n)}
    return each


def _without_data(encoders: dict[str, dict[str, Any]], data: str) -> dict[str, str]:
    """Encoders whose tiles the data directory does not have, and what is missing."""
    return {slug: f"DATA has no {options['if_data']}" for slug, options in encoders.items()
            if "if_data" in options
            and not (data and (resolve(data) / options["if_data"]).exists())}


def _each_held_out(path: Path, encoders: dict[str, dict[str, Any]]
                   ) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Every encoder once per section that it may not have seen, and which belong together."""
    each: dict[str, dict[str, Any]] = {}
    members: dict[str, list[str]] = {}
    for slug, options in encoders.items():
        options = dict(options)
        sections = options.pop("held_out", None)
        if sections is None:
            each[slug] = options
            continue
        if "pretrain" not in options or not isinstance(sections, list) or not sections:
            raise InputError(path, f"encoders: {slug}: held_out", f"is {sections!r}",
                             "list sections, and say `pretrain: {...}`")
        for section in sections:
            name = f"{slug}.no-{str(section).lower()}"
            if not SLUG.fullmatch(name) or name in each:
                raise InputError(path, f"encoders: {slug}: held_out", f"{section!r} makes no slug "
                                 "of its own", "name sections of letters, digits, dot, hyphen")
            exclude = [*options["pretrain"].get("exclude", []), str(section)]
            each[name] = options | {"pretrain": options["pretrain"] | {"exclude": exclude}}
            members.setdefault(slug, []).append(name)
    return each, members


def read_params(folder: Path, name: str) -> dict[str, Any]:
    """Read ``params/<profile>/<notebook>.yaml`` and check it against the parameters cell."""
    path = folder / f"{name}.yaml"
    if not path.exists():
        return {}
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise InputError(path, "content", "is no list of names and values", "write `name: value`")
    source = home() / "notebooks" / f"{name}.ipynb"
    check_parameters(str(path), declared_parameters(read_parameters_cell(source)), values)
    return values


def code_hash(name: str) -> str:
    """sha256 over a notebook (or module) and every mvhlib module that it imports, transitively."""
    if name.startswith("mvhlib"):
        sources, todo = {}, [name]
    else:
        path = home() / "notebooks" / f"{name}.ipynb"
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        sources, todo = {name: artifacts.sha256_file(path)}, imported_modules(code)
    while todo:
        module = todo.pop()
        path = _module_file(module)
        if path is None or module in sources:
            continue
        sources[module] = artifacts.sha256_file(path)
        todo += imported_modules(path.read_text(encoding="utf-8"))
    return artifacts.sha256_of(sources)


def imported_modules(code: str) -> list[str]:
    """Names of mvhlib modules that Python code imports anywhere, also inside functions."""
    code = re.sub(r"(?m)^\s*[%!].*$", "", code)
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = {name for name in found if name.split(".")[0] == "mvhlib"}
    parents = {name.rsplit(".", depth)[0] for name in found for depth in range(name.count(".") + 1)}
    return sorted(found | parents)


def _module_file(module: str) -> Path | None:
    base = home().joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def forget_incomplete(run: Path) -> list[str]:
    """Delete the provenance of every notebook whose outputs are not all there any more.

    The workflow then runs it again: a table that somebody deleted comes back by ``make figures``.
    Returns the stems that were forgotten.
    """
    forgotten = []
    out = run.parent.parent
    for path in sorted(run.glob("provenance/*.json")):
        try:
            outputs = json.loads(path.read_text(encoding="utf-8"))["hashed"]["outputs"]
        except (ValueError, KeyError):
            outputs = {"": None}
        if not all((out / name).is_file() for name in outputs):
            path.unlink(missing_ok=True)
            forgotten.append(path.stem)
    return forgotten


def explain(executed: Path) -> str:
    """Say in a few lines which cell of an executed notebook failed, and how."""
    if not executed.exists():
        log = Path(f"{executed}.txt")
        tail = log.read_text(encoding="utf-8").strip().splitlines()[-3:] if log.exists() else []
        return "\n".join([f"{executed.stem}: did not start", *tail])
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return (f"{executed.stem}: cell {cell['id']!r} failed\n"
                        f"  {output['ename']}: {output['evalue']}\n"
                        f"  the notebook up to there: {executed}")
    return f"{executed.stem}: stopped without an error in a cell; see {executed}.txt"


if __name__ == "__main__":
    print(explain(Path(sys.argv[1])), file=sys.stderr)
