"""Commands behind ``make``: its variables are read, checked, and passed on unchanged.

A recipe that pastes ``$(DATA)`` into its text lets a shell read a path: it runs what stands in
backticks and cuts at quotes. So the Makefile exports its variables, and every recipe is
``python -m mvhlib.commands TARGET``: no value passes through a shell, or through YAML.

============  ===================================================  ==============================
variable      what it is                                           refused
============  ===================================================  ==============================
PROFILE       folder below PARAMS                                  other than letters, digits,
                                                                   ``.-_``; a profile that there
                                                                   is not; a broken file in it
PARAMS        folder of profiles; or empty, for ``params/`` of     no directory, a line break
              the clone; `profile` makes it
DATA          the data set's directory, may be read-only; or       no directory, a line break
              empty
OUT           where ``runs/``, ``figures/`` and                    blank, the root, a file, a line
              ``predictions/`` are made                            break, no right to write
SEED          whole number from 0                                  anything else
JOBS          processes at once, from 1; or empty: one for each    anything else
              core that has 2 GB of memory
SLIDES        predict: a slide or a folder of them                 nothing there, a line break
MODEL         predict: a folder with ``model.json``                nothing there, a changed file
MPP           predict: micrometres per pixel of all slides         no number above 0
STRIDE_UM     predict: distance of tiles on the grid               no number above 0
GENES         predict: ``A,B``, or a file, a gene in each line     genes that the model lacks
PREDICTIONS   score: a folder (`mvhlib.expression.given`)          nothing there
CLUSTER       figures: a folder with Snakemake's ``config.yaml``   no such file; a file without a
              (``workflow/profiles/slurm``), whose jobs count; or  mapping
              a file of what differs from that at one site
PORT, ARGS    lab: its port, further words for JupyterLab          no port, an open quote
============  ===================================================  ==============================

Everything is refused before anything is written or run. ``profile`` and ``doctor`` look into DATA.
"""

import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvhlib import artifacts, workflow
from mvhlib.artifacts import InputError
from mvhlib.doctor import say
from mvhlib.parameters import read_yaml
from mvhlib.places import home

#: Variables of the Makefile; they are meant for this module and not for what it starts.
VARIABLES = ("PROFILE", "PARAMS", "DATA", "OUT", "SEED", "JOBS", "SLOW", "PYTHON", "SLIDES",
             "MODEL", "MPP", "STRIDE_UM", "GENES", "PREDICTIONS", "CLUSTER", "PORT", "ARGS")
#: Variables that make passes to a make below it; a make started by another program is not one.
OF_MAKE = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKE_TERMOUT", "MAKE_TERMERR")
#: The other scheduler asks a solver by way of files, and breaks where the disk is full.
SCHEDULER = ("--scheduler", "greedy")
#: Settings that a cluster's own file overrides.
SLURM = "workflow/profiles/slurm"
#: Memory that a notebook may take [bytes].
JOB_BYTES = 2 << 30


def out_folder(given: Mapping[str, str]) -> Path:
    """Make and return OUT, with links resolved.

    Raises
    ------
    InputError
        If it is blank, the root of the file system, or cannot be written.
    """
    text = artifacts.safe_path(given.get("OUT", ""), "make", "OUT")
    with artifacts.reading(f"OUT={text}", "OUT", "cannot be written",
                           "choose a folder that you may write to"):
        out = Path(os.path.realpath(text))
        if out == Path(out.anchor):
            raise InputError(f"OUT={text}", "OUT", "is the root of the file system",
                             "choose a folder that you may write to")
        out.mkdir(parents=True, exist_ok=True)
        (out / ".cache" / "tmp").mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(f"no right to write in {out}")
    return out


def surroundings(out: Path) -> dict[str, str]:
    """Environment of started programs: all caches of libraries go below ``OUT/.cache``."""
    cache = out / ".cache"
    (cache / "matplotlib").mkdir(parents=True, exist_ok=True)
    places = {
        "IPYTHONDIR": cache / "ipython", "JUPYTER_RUNTIME_DIR": cache / "jupyter-runtime",
        "JUPYTER_CONFIG_DIR": cache / "jupyter-config", "JUPYTER_DATA_DIR": cache / "jupyter-data",
        "MPLCONFIGDIR": cache / "matplotlib", "NUMBA_CACHE_DIR": cache / "numba",
        "XDG_CACHE_HOME": cache, "TMPDIR": cache / "tmp", "MVH_HOME": home()}
    rest = {name: value for name, value in os.environ.items()
            if name not in VARIABLES + OF_MAKE}
    return rest | {name: str(path) for name, path in places.items()} | {
        "MVH_CACHE": os.environ.get("MVH_CACHE") or str(cache / "mvhlib"),
        "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def become(words: Sequence[str], env: Mapping[str, str]) -> None:
    """Go on as another program, whose signals and exit status are then make's."""
    sys.stdout.flush()
    os.execve(words[0], list(words), dict(env))


def figures(given: Mapping[str, str]) -> None:
    """Run a profile's notebooks by Snakemake, here or on a cluster."""
    call = _call(given)
    where = _cluster(given) or ["--cores", str(_jobs(given))]
    workflow.prepare(call)
    out = out_folder(given)
    _wait_for_others(out / "runs" / call.profile)
    become([sys.executable, "-m", "snakemake", "--snakefile", str(home() / "workflow/Snakefile"),
            "--directory", str(out), *where, "--nolock", "--rerun-incomplete", *SCHEDULER,
            "--keep-going", "--logger", "mvh", "--config", workflow.to_jobs(call)],
           _with_console(surroundings(out)))


def _with_console(env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Snakemake finds the plugin that prints a line for each job."""
    paths = [str(home() / "workflow"), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(paths)}


def tour(given: Mapping[str, str]) -> int:
    """Run the first notebook alone, and say where its picture is."""
    out = out_folder(given)
    seed = workflow.whole_number(given.get("SEED"), "make", "SEED")
    failed = _notebook("00_tour", {"profile": "demo", "out": str(out), "seed": seed}, out,
                       surroundings(out))
    if not failed:
        print(*sorted((out / "figures/demo/00_tour").glob("*.png")), sep="\n")
    return failed


def _cluster(given: Mapping[str, str]) -> list[str]:
    """Snakemake's words for a cluster; empty where the machine itself does the work."""
    if not (given.get("CLUSTER") or "").strip():
        return []
    named = Path(_there(given, "CLUSTER"))
    if named.is_file():
        read_yaml(named)  # refused here in plain words, before Snakemake refuses it
        return ["--profile", str(home() / SLURM), "--workflow-profile", str(named)]
    if not (named / "config.yaml").is_file():
        raise InputError(f"CLUSTER={named}", "CLUSTER", "holds no config.yaml",
                         f"name a file like {SLURM}/site.yaml, with your site's partitions in it")
    return ["--profile", str(named)]


def _jobs(given: Mapping[str, str]) -> int:
    """Processes at once: as many as were asked for, else as the machine bears."""
    if (given.get("JOBS") or "").strip():
        return workflow.whole_number(given["JOBS"], "make", "JOBS", least=1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                      else os.cpu_count() or 1, memory // JOB_BYTES))


def _call(given: Mapping[str, str]) -> workflow.Call:
    return workflow.read_call({
        "profile": given.get("PROFILE"), "data": _absolute(given, "DATA"),
        "seed": given.get("SEED"), "params": _absolute(given, "PARAMS")})


def _absolute(given: Mapping[str, str], name: str) -> str:
    """A folder as an absolute path; links in it stay, since names may be read off it."""
    return os.path.abspath(given[name]) if given.get(name) else ""


def doctor(given: Mapping[str, str]) -> None:
    """Report what DATA holds, and write nothing; without DATA, what this machine has."""
    if not given.get("DATA"):
        become([sys.executable, "-m", "mvhlib.doctor"], os.environ)
    from mvhlib import profiles  # brings every reader, which other targets need not wait for

    say(profiles.look(_data(given, "doctor")).lines())


def profile(given: Mapping[str, str]) -> None:
    """Report what DATA holds, and write a profile that runs on it."""
    from mvhlib import profiles

    name = workflow.profile_name(given.get("PROFILE"), "make")
    params = workflow.params_folder(_absolute(given, "PARAMS"))
    profiles.check_free(params, name)
    found = profiles.look(_data(given, "profile"))
    say(found.lines())
    written = profiles.write(found, params, name)
    say(["", *profiles.what_next(found, written, own=bool(given.get("PARAMS")))])


def _data(given: Mapping[str, str], target: str) -> Path:
    """DATA of a command that inspects it."""
    if not given.get("DATA"):
        raise InputError("make", "DATA", "is not given", f"run make {target} DATA=<directory>")
    return Path(workflow.folder_text(_absolute(given, "DATA"), "make", "DATA",
                                     "name the data set's folder"))


def _wait_for_others(run: Path) -> None:
    """Hold the profile's run folder until this process, or what it becomes, ends.

    Two workflows in one folder delete each other's files.
    """
    path = run / ".locks" / "workflow"
    with artifacts.reading(path, "OUT", "cannot be written",
                           "choose a folder that you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 300).decode(errors="replace") or "unknown"
        print(f"waiting for process {holder}, which still runs this profile in {run}",
              file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    os.truncate(handle, 0)
    os.pwrite(handle, artifacts.this_process().encode(), 0)
    os.set_inheritable(handle, True)


def predict(given: Mapping[str, str]) -> int:
    """Predict slides, and then run 16_predict on what was made."""
    slides, model = (_there(given, name) for name in ("SLIDES", "MODEL"))
    jobs = _jobs(given)
    numbers = {name: _above_zero(given, name) for name in ("MPP", "STRIDE_UM")}
    genes = _path_if_any(given.get("GENES") or "")
    out = out_folder(given)
    env, target = surroundings(out), str(out / "predictions")
    env.setdefault("OMP_NUM_THREADS", "1")
    words = ["--slides", slides, "--model", model, "--out", target, "--jobs", str(jobs),
             f"--genes={genes}"]
    words += [f"--{name.lower().replace('_', '-')}={value!r}"
              for name, value in numbers.items() if value]
    done = subprocess.run([sys.executable, "-m", "mvhlib.prediction", *words], env=env)
    if done.returncode > 1 or not any((out / "predictions").glob("*/done.json")):
        return done.returncode
    from mvhlib.prediction import apply

    values = {"profile": "predict", "out": str(out), "slides": slides, "model": model,
              "predictions": target, "mpp": numbers["MPP"], "stride_um": numbers["STRIDE_UM"],
              "genes": list(apply.genes_of(genes) or ())}
    return _notebook("16_predict", values, out, env) or done.returncode


def score(given: Mapping[str, str]) -> int:
    """Score predictions of another system, and redraw 14's leaderboard with them in it."""
    predictions = _there(given, "PREDICTIONS")
    call = _call(given)
    plan = workflow.prepare(call)
    out = out_folder(given)
    env, run = surroundings(out), out / "runs" / call.profile
    env.setdefault("OMP_NUM_THREADS", "1")
    _wait_for_others(run)
    scored = workflow.read_params(call.folder, "05_expression")
    options = {key: scored[key] for key in ("unit", "normalize") if key in scored}
    done = subprocess.run(
        [sys.executable, "-m", "mvhlib.expression.given", "--run", str(run), "--predictions",
         predictions, "--data", call.data, "--options",
         json.dumps(options | {"seed": call.seed})], env=env)
    if done.returncode or "14_leaderboard" not in plan["notebooks"]:
        return done.returncode
    # Encoders are those that the profile's file names, if it does, as workflow/Snakefile has it.
    values = {"encoders": [*plan["scored"], *plan["chosen"]]} | workflow.read_params(
        call.folder, "14_leaderboard") | {
        "profile": call.profile, "out": str(out), "data": call.data, "seed": call.seed}
    failed = _notebook("14_leaderboard", values, out, env)
    if not failed:
        print(f"{out / 'figures' / call.profile / '14_leaderboard' / 'leaderboard.csv'} "
              "has them beside ours")
    return failed


def _there(given: Mapping[str, str], name: str) -> str:
    """Return the absolute path that a variable names; it must exist."""
    text = artifacts.safe_path(given.get(name) or "", "make", name)
    if not os.path.exists(text):
        raise InputError(f"{name}={text}", name, "does not exist", "check the path")
    return os.path.abspath(text)


def _above_zero(given: Mapping[str, str], name: str) -> float:
    """A variable that holds a number above 0; 0 where it is empty."""
    text = (given.get(name) or "").strip()
    with artifacts.reading(f"{name}={text}", name, "is not a number",
                           "write it with a decimal point"):
        value = float(text or 0.0)
    if text and not 0 < value < float("inf"):
        raise InputError(f"{name}={text}", name, "is not above 0", "give micrometres")
    return value


def _path_if_any(text: str) -> str:
    return os.path.abspath(text) if text and os.path.exists(text) else text


def _notebook(name: str, values: Mapping[str, Any], out: Path, env: Mapping[str, str]) -> int:
    """Execute one notebook outside a workflow; its status, after a line where it failed."""
    executed = out / "runs" / values["profile"] / "notebooks" / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{executed}.txt", "w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar", "--cwd",
             str(home()), "-b", workflow.to_papermill(values),
             workflow.notebook_for_papermill(name), str(executed)],
            env=dict(env), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        print(workflow.explain(executed), file=sys.stderr)
    return done.returncode


def test(given: Mapping[str, str]) -> None:
    """Run the tests."""
    jobs = _jobs(given)
    env = surroundings(out_folder(given))
    env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("NUMBA_NUM_THREADS", "1")  # plugins import numba before the tests can say so
    # Files in their order: the longest comes first (tests/conftest.py).
    words = ["-q", "-rs", "-p", "no:cacheprovider", "-n", str(jobs), "--dist", "loadfile",
             "--no-loadscope-reorder", "tests"]
    become([sys.executable, "-m", "pytest", *words,
            *([] if given.get("SLOW") else ["-m", "not slow"])], env)


def lab(given: Mapping[str, str]) -> None:
    """Start JupyterLab in the clone."""
    words = [str(Path(sys.executable).parent / "jupyter"), "lab", f"--notebook-dir={home()}"]
    if (given.get("PORT") or "").strip():
        words.append(f"--port={workflow.whole_number(given['PORT'], 'make', 'PORT', least=1)}")
    with artifacts.reading("make", "ARGS", "cannot be split into words", "close its quotes"):
        words += shlex.split(given.get("ARGS") or "")
    become(words, surroundings(out_folder(given)))


def bench(given: Mapping[str, str]) -> int:
    """Run every benchmark; tables go to OUT, or to ``benchmarks/`` where OUT is the clone.

    Those for a GPU (``gpu*.py``) are a kit of their own, see ``GPU.md``.
    """
    out = out_folder(given)
    target = home() / "benchmarks" if out == home() else out
    scripts = (home() / "benchmarks").glob("*.py")
    for script in sorted(path for path in scripts if not path.name.startswith("gpu")):
        done = subprocess.run([sys.executable, str(script), "--out", str(target)],
                              env=surroundings(out))
        if done.returncode:
            return done.returncode
    return 0


def book(given: Mapping[str, str]) -> int:
    """Write the executed notebooks of a profile as static pages."""
    profile, out = workflow.profile_name(given.get("PROFILE"), "make"), out_folder(given)
    become([sys.executable, "-m", "mvhlib.book", str(out / "runs" / profile),
            str(out / "book" / profile)], surroundings(out))


TARGETS = {target.__name__: target for target in (
    figures, tour, profile, doctor, predict, score, test, lab, bench, book)}


def main(arguments: Sequence[str], given: Mapping[str, str]) -> int:
    """Run one target; return 2, after one line, if a variable cannot be used."""
    try:
        return TARGETS[arguments[0]](given) or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
