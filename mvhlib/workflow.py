"""What the workflow asks about a profile: its plan, its parameters, its code, what is unfinished.

``workflow/Snakefile`` holds the rules; this module holds the questions that they put, so that they
can be tested without running anything. A profile is a folder ``params/<profile>``, or
``<PARAMS>/<profile>`` where the user keeps profiles elsewhere::

    workflow.yaml             notebooks, encoders, methods (mmap and cmrcnet: the encoders that they
                              are built on), threads
    <notebook>.yaml           what differs from the notebook's defaults; may be absent

A notebook that compares encoders takes all of them; 07, 08, 14 and 18 those that their file names,
if it does. An encoder is its `source` (`mvhlib.encoders` lists them; a relative path in
``python:file.py:f`` starts here or at the clone), `weights`, `options` and other parameters of
`04_embed`, and

==============  ==================================================================================
``pretrain``    parameters of `03_pretrain`, which then makes its weights
``seeds``       a number: so many encoders, ``<slug>.s0`` and so on
``held_out``    a list of sections: pretrained once without each of them, ``<slug>.no-<section>``;
                05 and 14 read all of them as one encoder, every fold by the one that did not see
                it, and notebooks that compare embeddings (07, 08, 11) leave them out
``read_outs``   a list: embedded once and scored by each of these (see `mvhlib.read_outs`), and by
                the one that is best on inner folds
``if_data``     a path that begins in DATA, ``../glas/images``: without it the encoder is left out
==============  ==================================================================================
"""

import ast
import base64
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mvhlib import artifacts, encoder_sources, freshness, own_files, own_tables, read_outs
from mvhlib.artifacts import InputError
from mvhlib.notebook import check_parameters, declared_parameters, read_parameters_cell
from mvhlib.parameters import check, check_seed, nearest, read_yaml, read_yaml_if_any
from mvhlib.places import home, resolve

#: An encoder's name; neither hidden nor an option of a command.
SLUG = re.compile(r"[a-z0-9_][a-z0-9_.-]*")
#: Methods that train on tiles, each by a notebook of its own.
METHODS = ("mmap", "cmrcnet")
#: Keys of an encoder beside the parameters of 04_embed.
ENCODER = {"pretrain": "dict", "seeds": "int", "held_out": "list[str]", "if_data": "str",
           "seed": "int"}
#: Parameters that the workflow gives by itself.
GIVEN = ("profile", "out", "data", "encoder")
MOST_SEEDS = 1000
#: Room below which a notebook cannot be written [bytes].
LEAST_FREE = 100_000
#: What Snakemake takes by ``--config``.
CONFIG = ("profile", "data", "seed", "params")
#: Types of the keys of workflow.yaml.
PLAN_TYPES = {"needs_data": "bool", "notebooks": "list[str]", "encoders": "dict",
              "methods": "dict", "threads": "dict", "gpus": "int"}
#: Keys of workflow.yaml and what stands for them where they are absent.
PLAN = {"needs_data": False, "notebooks": [], "encoders": {}, "methods": {}, "threads": {},
        "gpus": 0}


@dataclass(frozen=True)
class Call:
    """What the workflow was asked for.

    Attributes
    ----------
    profile
        Folder below `params`.
    data
        The data set's directory, as it was given; empty for the synthetic cohort.
    seed
        Of the whole run.
    params
        Folder of profiles, as it was given; empty for ``params/`` of the clone.
    """

    profile: str = "demo"
    data: str = ""
    seed: int = 0
    params: str = ""

    @property
    def folder(self) -> Path:
        """The profile's own folder."""
        return params_folder(self.params) / self.profile


def read_call(values: Mapping[str, Any], where: str = "make") -> Call:
    """Check profile, data directory and seed, given as text or (the seed) as a number.

    Raises
    ------
    InputError
        On a profile that is no name of a folder, a directory that is not there, or a seed that is
        no whole number from 0.
    """
    profile = profile_name(values.get("profile", "demo"), where)
    data = folder_text(values.get("data"), where, "DATA", "name the data set's folder")
    params = folder_text(values.get("params"), where, "PARAMS", "name the folder of your profiles")
    return Call(profile, data, whole_number(values.get("seed", 0), where, "SEED"), params)


def folder_text(given: Any, where: str, field: str, fix: str) -> str:
    """The name of a folder that can be read, as it was given; empty where none was.

    Raises
    ------
    InputError
        If it is no text, or there is no such folder.
    """
    if not given:
        return ""
    if not isinstance(given, str):
        raise InputError(where, field, f"is {given!r}, not text", "write it in quotes")
    artifacts.safe_path(given, where, field)
    with artifacts.reading(given, field, "cannot be read", "change its permissions"):
        if not resolve(given).is_dir():
            raise InputError(f"{field}={given}", field, "is not a directory", fix)
        os.scandir(resolve(given)).close()
    return given


def params_folder(params: str = "") -> Path:
    """The folder of profiles: the user's, else ``params/`` of the clone."""
    return resolve(params) if params else home() / "params"


def profile_name(profile: Any, where: str) -> str:
    """Return the name of a profile if it is made of letters, digits, ``.``, ``-`` and ``_``."""
    if artifacts.safe_name(profile, where, "PROFILE") != profile or not re.fullmatch(
            r"[\w.-]+", profile):
        raise InputError(where, "PROFILE", f"is {profile!r}",
                         "name a folder below params/, of letters, digits, dot, hyphen, underscore")
    return profile


def whole_number(value: Any, where: str, field: str, least: int = 0) -> int:
    """Read a whole number from `least` to 2,147,483,647 that stands as text."""
    text = value if isinstance(value, str) else repr(value)
    if not re.fullmatch(r"[0-9]{1,10}", text.strip()) or not least <= int(text) < 2**31:
        raise InputError(where, field, f"is {value!r}",
                         f"give a whole number from {least} to {2**31 - 1}")
    return int(text)


def given_to_snakemake(config: Mapping[str, Any], entries: Sequence[str] | None) -> Call:
    """What stands behind ``--config``, before Snakemake took it for YAML.

    Snakemake reads ``data=/a/b #2`` as ``/a/b``, ``data=a: b`` as a mapping, and takes quotes off.

    Parameters
    ----------
    config
        What Snakemake made of it, and of a ``--configfile``.
    entries
        The words behind ``--config``, or `to_jobs` of them.
    """
    values = {key: value for key, value in config.items() if key != "call"}
    for entry in entries or ():
        key, _, text = entry.partition("=")
        if key == "call":
            with artifacts.reading("--config", "call", "is not what the workflow wrote",
                                   "pass profile=, data= and seed="):
                return Call(**json.loads(base64.urlsafe_b64decode(text)))
        values[key] = text
    for key in values:
        if key not in CONFIG:
            raise InputError("--config", str(key), "is not a setting of the workflow",
                             nearest(key, CONFIG))
    return read_call(values, "--config")


def to_jobs(call: Call) -> str:
    """What Snakemake hands to jobs on other machines, where shells and YAML find nothing in it."""
    return "call=" + base64.urlsafe_b64encode(json.dumps(asdict(call)).encode()).decode()


def to_papermill(values: Mapping[str, Any]) -> str:
    """Parameters as papermill takes them by ``-b``: neither a shell nor Snakemake looks inside."""
    text = yaml.safe_dump(dict(values), default_flow_style=True, width=10**6)
    return base64.b64encode(text.encode()).decode()


def notebook_for_papermill(name: str) -> str:
    """Path of a notebook; papermill fills in what stands in braces, so they are doubled."""
    path = str(home() / "notebooks" / f"{name}.ipynb")
    return path.replace("{", "{{").replace("}", "}}")


def prepare(call: Call) -> dict[str, Any]:
    """`read_plan` of a call, after a look into every parameter file of its profile."""
    plan = read_plan(call.folder, data=call.data)
    for slug, options in plan["encoders"].items():
        encoder_sources.check_package(options["source"], call.folder / "workflow.yaml",
                                      f"encoders: {slug}")
    for name in notebooks():
        for path in own_files.named_tables(read_params(call.folder, name), call.data):
            if path.name in own_files.BY_DEFAULT or Path(call.data) not in path.parents:
                own_tables.check_filled(path)
    return plan


def notebooks() -> list[str]:
    """Names of the collection's notebooks, in reading order."""
    return sorted(path.stem for path in (home() / "notebooks").glob("[0-9]*.ipynb"))


def read_plan(folder: Path, data: str = "") -> dict[str, Any]:
    """Read ``params/<profile>/workflow.yaml``.

    An encoder with ``seeds: n`` becomes n encoders, each with its ``seed`` (counted from the
    run's); one with ``held_out`` becomes one per section, which its ``pretrain: exclude`` names.

    Returns
    -------
    dict
        The keys of `PLAN`, and five that follow from them: ``scored`` (encoders as tables name
        them), ``members`` (of those the ones with ``held_out`` -> slugs that stand for it in
        ``features``), ``read_outs`` (encoder -> those of ``scored`` that are its read-outs),
        ``chosen`` (names of the best of them on inner folds) and ``left_out`` (slug -> reason).

    Raises
    ------
    InputError
        If the profile does not exist, a key, notebook or option of an encoder is unknown (names
        the nearest) or of another type, an encoder's name is no slug, or the profile wants a data
        directory and none is given.
    """
    path = folder / "workflow.yaml"
    if not os.path.lexists(path):
        profiles = sorted(p.parent.name for p in folder.parent.glob("*/workflow.yaml"))
        raise InputError(path, "PROFILE", f"there is no profile {folder.name!r}",
                         nearest(folder.name, profiles))
    given = read_yaml(path)
    check(path, PLAN_TYPES, given, noun="key of workflow.yaml")
    plan = PLAN | given
    _check_notebooks(path, plan)
    for slug, options in plan["encoders"].items():
        _check_encoder(path, slug, options)
    plan["encoders"] = {
        slug: options | {"source": encoder_sources.in_plan(options["source"], folder)}
        for slug, options in plan["encoders"].items()}
    if plan["needs_data"] and not data:
        raise InputError(path, "DATA", f"profile {folder.name!r} reads a data set of yours",
                         f"run make figures PROFILE={folder.name} DATA=<directory>")
    plan["left_out"] = _without_data(plan["encoders"], data)
    for method, slugs in plan["methods"].items():
        if not isinstance(slugs, list) or not all(isinstance(slug, str) for slug in slugs):
            raise InputError(path, f"methods: {method}", f"is {slugs!r}", "list encoders by name")
    plan["methods"] = {method: [slug for slug in slugs if slug not in plan["left_out"]]
                       for method, slugs in plan["methods"].items()}
    kept = {slug: {key: value for key, value in options.items() if key != "if_data"}
            for slug, options in plan["encoders"].items() if slug not in plan["left_out"]}
    seeded = _each_seed(path, kept)
    plan["encoders"], members = _each_held_out(path, seeded)
    plan["scored"], plan["members"], plan["read_outs"] = _each_read_out(path, seeded, members)
    plan["chosen"] = [read_outs.slug(slug, read_outs.CHOSEN) for slug in plan["read_outs"]]
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


def _check_notebooks(path: Path, plan: dict[str, Any]) -> None:
    """Refuse names that are no notebook: in the plan, and of files that nothing would read."""
    known = notebooks()
    for field, names in (("notebooks", plan["notebooks"]), ("threads", plan["threads"])):
        for name in names:
            if name not in known:
                raise InputError(path, f"{field}: {name}", "is not a notebook",
                                 nearest(name, known))
    check(f"{path}: threads", dict.fromkeys(known, "int"), plan["threads"])
    for name, n in {"gpus": plan["gpus"] + 1, **plan["threads"]}.items():
        if n < 1:
            raise InputError(path, name, "is too small", "give at least 1, for gpus at least 0")
    for other in sorted(path.parent.iterdir()):
        if other.suffix not in (".yaml", ".yml") or other.name.startswith("."):
            continue
        if other.suffix == ".yml" or other.stem not in (*known, path.stem):
            raise InputError(other, "name", "is read by no notebook",
                             nearest(f"{other.stem}.yaml", [f"{n}.yaml" for n in known]))


def _check_encoder(path: Path, slug: str, options: Any) -> None:
    """Refuse an encoder that is misnamed, lacks a source, or has options that nothing reads."""
    field = f"encoders: {slug}"
    if not SLUG.fullmatch(slug):
        raise InputError(path, field, "is not a slug", "use lower-case letters, digits, dot, "
                         "hyphen, underscore, and begin with a letter or digit")
    artifacts.safe_name(slug, path, field)
    if not isinstance(options, dict):
        raise InputError(path, field, f"is {options!r}", f"write `{slug}: {{source: ...}}`")
    if not options.get("source"):
        raise InputError(path, field, "has no source",
                         "add `source: handmade`, a registry name or a directory")
    artifacts.check_sayable([options["source"]], path, f"{field}: source")
    embed, pretraining = (
        {key: kind for key, (kind, _) in declared_parameters(read_parameters_cell(
            home() / "notebooks" / f"{name}.ipynb")).items() if key not in GIVEN}
        for name in ("04_embed", "03_pretrain"))
    check(f"{path}: {field}", embed | ENCODER, options, noun="key of an encoder")
    for key in ("seed", "backbone"):  # an encoder states them as `seed` and `source`
        pretraining.pop(key)
    check(f"{path}: {field}: pretrain", pretraining, options.get("pretrain", {}),
          noun="parameter of 03_pretrain that an encoder sets")
    check_seed(options.get("seed", 0), f"{path}: {field}")
    if encoder_sources.brings_weights(options["source"]):
        if "pretrain" in options:
            raise InputError(path, field, f"is {options['source']!r}, which 03_pretrain cannot "
                             "train", "leave `pretrain` out, or name a backbone of mvhlib")
    elif ("pretrain" in options) != (options.get("weights") == "pretrained"):
        raise InputError(path, field, "has only one of `weights: pretrained` and `pretrain`",
                         "write `weights: pretrained` and `pretrain: {...}` together, or neither")


def _each_seed(path: Path, encoders: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every encoder as often as it asks for."""
    each = {}
    for slug, options in encoders.items():
        options = dict(options)
        if "seeds" not in options:
            each[slug] = options
            continue
        n = options.pop("seeds")
        if not 1 <= n <= MOST_SEEDS:
            raise InputError(path, f"encoders: {slug}: seeds", f"is {n!r}",
                             f"give a number from 1 to {MOST_SEEDS}")
        seeded = {f"{slug}.s{seed}": options | {"seed": seed} for seed in range(n)}
        if taken := sorted(set(seeded) & (set(encoders) | set(each))):
            raise InputError(path, f"encoders: {slug}: seeds", f"makes {taken[0]!r}, which is "
                             "another encoder", "rename one of them")
        each |= seeded
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
            name = f"{slug}.no-{section.lower()}"
            if not SLUG.fullmatch(name) or name in each or name in encoders:
                raise InputError(path, f"encoders: {slug}: held_out",
                                 f"{section!r} cannot be part of a folder's name",
                                 "rename it: letters, digits, dot, hyphen")
            exclude = [*options["pretrain"].get("exclude", []), section]
            each[name] = options | {"pretrain": options["pretrain"] | {"exclude": exclude}}
            members.setdefault(slug, []).append(name)
    return each, members


def _each_read_out(path: Path, encoders: dict[str, dict[str, Any]], members: dict[str, list[str]]
                   ) -> tuple[list[str], dict[str, list[str]], dict[str, list[str]]]:
    """What is scored: every encoder, or each of its read-outs; members and read-outs by name."""
    scored: list[str] = []
    grouped: dict[str, list[str]] = {}
    kinds: dict[str, list[str]] = {}
    for slug, options in encoders.items():
        asked = read_outs.check(path, f"encoders: {slug}: read_outs", options.get("read_outs", []))
        if asked and {"pool", "depths"} & set(options.get("options", {})):
            raise InputError(path, f"encoders: {slug}: read_outs", "is given together with options "
                             "of a read-out", "leave `pool` and `depths` out")
        for each in asked or [""]:
            name = read_outs.slug(slug, each) if each else slug
            scored.append(name)
            if slug in members:
                grouped[name] = [read_outs.slug(one, each) if each else one
                                 for one in members[slug]]
        if asked:
            kinds[slug] = read_outs.names(slug, asked)
    if len(set(scored)) < len(scored):
        twice = next(name for name in scored if scored.count(name) > 1)
        raise InputError(path, "encoders", f"{twice!r} names two encoders", "rename one of them")
    return scored, grouped, kinds


def read_params(folder: Path, name: str) -> dict[str, Any]:
    """Read ``params/<profile>/<notebook>.yaml`` and check it against the parameters cell."""
    path = folder / f"{name}.yaml"
    values = read_yaml_if_any(path)
    source = home() / "notebooks" / f"{name}.ipynb"
    check_parameters(str(path), declared_parameters(read_parameters_cell(source)), values)
    return values


def code_hash(name: str) -> str:
    """sha256 over a notebook (or module) and the code of every mvhlib module that it imports.

    Imports are followed transitively; prose of modules does not count (`mvhlib.freshness`), so that
    a better docstring makes no notebook run again.
    """
    if name.startswith("mvhlib"):
        sources, todo = {}, [name]
    else:
        path = home() / "notebooks" / f"{name}.ipynb"
        cells = artifacts.read_json(path)["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        sources, todo = {name: artifacts.sha256_file(path)}, imported_modules(code)
    while todo:
        module = todo.pop()
        path = _module_file(module)
        if path is None or module in sources:
            continue
        status = path.stat()
        sources[module], imports = _look_into(path, status.st_mtime_ns, status.st_size)
        todo += imports
    return artifacts.sha256_of(sources)


@functools.cache
def _look_into(path: Path, _changed_ns: int, _n_bytes: int) -> tuple[str, tuple[str, ...]]:
    """Hash of a module's code, without its prose, and its imports.

    They are kept, since every job of a cluster asks for them for all notebooks.
    """
    source = path.read_text(encoding="utf-8")
    return artifacts.sha256_of(freshness.code_of(source)), tuple(imported_modules(source))


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

    Raises
    ------
    InputError
        If a directory stands where a record belongs.
    """
    forgotten = []
    out = run.parent.parent
    for path in sorted(run.glob("provenance/[!.]*.json")):
        if path.is_dir():
            raise InputError(path, "file", "is a directory", "delete it")
        try:
            outputs = dict(artifacts.read_json(path)["hashed"]["outputs"])
            whole = all((out / name).is_file() for name in outputs)
        except (ValueError, KeyError, TypeError):  # InputError is a ValueError
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
            forgotten.append(path.stem)
    return forgotten


def explain(executed: Path) -> str:
    """Say in a few lines which cell of an executed notebook failed, and how."""
    log = Path(f"{executed}.txt")
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if "No space left on device" in said or _free(executed.parent) < LEAST_FREE:
        return (f"{executed.stem}: {executed.parent}: disk: is full. Fix: free some space, and "
                "run the command again; what is done is kept.")
    if not executed.exists():
        return "\n".join([f"{executed.stem}: did not start", *said.strip().splitlines()[-3:]])
    with artifacts.reading(executed, "cells", "are not those of an executed notebook",
                           f"see {log}"):
        for cell in artifacts.read_json(executed)["cells"]:
            for output in cell.get("outputs", []):
                if output.get("output_type") == "error":
                    return (f"{executed.stem}: cell {cell['id']!r} failed\n"
                            f"  {output['ename']}: {artifacts.one_line(output['evalue'], 2000)}\n"
                            f"  the notebook up to there: {executed}")
    return f"{executed.stem}: stopped without an error in a cell; see {log}"


def _free(folder: Path) -> int:
    """Bytes that a user may still write there; plenty where nobody can say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return LEAST_FREE


def main(arguments: Sequence[str]) -> int:
    """Print why an executed notebook failed; the workflow calls it after papermill."""
    try:
        print(explain(Path(arguments[0])), file=sys.stderr)
    except InputError as error:
        print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
