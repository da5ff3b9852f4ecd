"""What ``make`` asks for: variables read from the environment, checked, and handed on unchanged.

A recipe that pastes ``$(DATA)`` into its text lets a shell read a path: it runs what stands in
backticks and cuts at quotes. So the Makefile exports its variables, and every recipe is
``python -m mvhlib.commands TARGET``: no value passes through a shell, or through YAML.

=========  ======================================================  ==============================
variable   what it is                                              refused
=========  ======================================================  ==============================
PROFILE    folder below PARAMS                                     other than letters, digits,
                                                                   ``.-_``; a profile that there
                                                                   is not; a broken file in it
PARAMS     folder of profiles; or empty, for ``params/`` of the    no directory, a line break
           clone; `profile` makes it
DATA       the data set's directory, may be read-only; or empty    no directory, a line break
OUT        where ``runs/`` and ``figures/`` are made               blank, the root, a file, a line
                                                                   break, no right to write
SEED       whole number from 0                                     anything else
JOBS       processes at once, from 1                               anything else
=========  ======================================================  ==============================

Everything is refused before anything is written or run. ``profile`` and ``doctor`` look into DATA.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mvhlib import artifacts, profiles, workflow
from mvhlib.artifacts import InputError
from mvhlib.places import home

#: Variables of the Makefile; they are meant for this module and not for what it starts.
VARIABLES = ("PROFILE", "PARAMS", "DATA", "OUT", "SEED", "JOBS", "SLOW", "PYTHON")


def out_folder(given: Mapping[str, str]) -> Path:
    """Make and return OUT, with links resolved.

    Raises
    ------
    InputError
        If it is blank, the root of the file system, or cannot be written.
    """
    text = artifacts.safe_path(given.get("OUT", ""), "make", "OUT")
    with artifacts.reading(f"OUT={text}", "OUT", "cannot be written", "name a folder of yours"):
        out = Path(os.path.realpath(text))
        if out == Path(out.anchor):
            raise InputError(f"OUT={text}", "OUT", "is the root of the file system",
                             "name a folder of yours")
        out.mkdir(parents=True, exist_ok=True)
        (out / ".cache" / "tmp").mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(f"no right to write in {out}")
    return out


def surroundings(out: Path) -> dict[str, str]:
    """The environment of what is started: whatever a library caches goes below ``OUT/.cache``."""
    cache = out / ".cache"
    (cache / "matplotlib").mkdir(parents=True, exist_ok=True)
    places = {
        "IPYTHONDIR": cache / "ipython", "JUPYTER_RUNTIME_DIR": cache / "jupyter-runtime",
        "JUPYTER_CONFIG_DIR": cache / "jupyter-config", "JUPYTER_DATA_DIR": cache / "jupyter-data",
        "MPLCONFIGDIR": cache / "matplotlib", "NUMBA_CACHE_DIR": cache / "numba",
        "XDG_CACHE_HOME": cache, "TMPDIR": cache / "tmp", "MVH_HOME": home()}
    rest = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return rest | {name: str(path) for name, path in places.items()} | {
        "MVH_CACHE": os.environ.get("MVH_CACHE") or str(cache / "mvhlib"),
        "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def become(words: Sequence[str], env: Mapping[str, str]) -> None:
    """Go on as another program, whose signals and exit status are then make's."""
    sys.stdout.flush()
    os.execve(words[0], list(words), dict(env))


def figures(given: Mapping[str, str]) -> None:
    """Run a profile's notebooks by Snakemake."""
    call = workflow.read_call({
        "profile": given.get("PROFILE"), "data": _absolute(given, "DATA"),
        "seed": given.get("SEED"), "params": _absolute(given, "PARAMS")})
    jobs = workflow.whole_number(given.get("JOBS"), "make", "JOBS", least=1)
    workflow.prepare(call)
    out = out_folder(given)
    _wait_for_others(out / "runs" / call.profile)
    become([sys.executable, "-m", "snakemake", "--snakefile", str(home() / "workflow/Snakefile"),
            "--directory", str(out), "--cores", str(jobs), "--nolock", "--rerun-incomplete",
            "--keep-going", "--quiet", "rules", "progress", "host", "--config",
            workflow.to_jobs(call)], surroundings(out))


def _absolute(given: Mapping[str, str], name: str) -> str:
    """A folder as an absolute path; links in it stay, since names may be read off it."""
    return os.path.abspath(given[name]) if given.get(name) else ""


def doctor(given: Mapping[str, str]) -> None:
    """Say what lies in DATA, and write nothing; without DATA, what this machine has."""
    if not given.get("DATA"):
        become([sys.executable, "-m", "mvhlib.doctor"], os.environ)
    print("\n".join(profiles.look(_data(given, "doctor")).lines()))


def profile(given: Mapping[str, str]) -> None:
    """Say what lies in DATA, and write a profile that runs on it."""
    name = workflow.profile_name(given.get("PROFILE"), "make")
    params = workflow.params_folder(_absolute(given, "PARAMS"))
    profiles.check_free(params, name)
    found = profiles.look(_data(given, "profile"))
    print("\n".join(found.lines()))
    written = profiles.write(found, params, name)
    print("\n".join(["", *profiles.what_next(found, written, own=bool(given.get("PARAMS")))]))


def _data(given: Mapping[str, str], target: str) -> Path:
    """DATA of a command that looks into it."""
    if not given.get("DATA"):
        raise InputError("make", "DATA", "is not given", f"run make {target} DATA=<directory>")
    return Path(workflow.folder_text(_absolute(given, "DATA"), "make", "DATA",
                                     "name the data set's folder"))


def _wait_for_others(run: Path) -> None:
    """Hold the profile's run folder until this process, or what it becomes, ends.

    Two workflows in one folder delete each other's files.
    """
    path = run / ".locks" / "workflow"
    with artifacts.reading(path, "OUT", "cannot be written", "name a folder of yours"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 20).decode(errors="replace") or "unknown"
        print(f"waiting for process {holder}, which still runs this profile in {run}",
              file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    os.truncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    os.set_inheritable(handle, True)


def test(given: Mapping[str, str]) -> None:
    """Run the tests."""
    jobs = workflow.whole_number(given.get("JOBS"), "make", "JOBS", least=1)
    env = surroundings(out_folder(given))
    env.setdefault("OMP_NUM_THREADS", "1")
    become([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-n", str(jobs),
            "--dist", "loadfile", "tests", *([] if given.get("SLOW") else ["-m", "not slow"])], env)


def lab(given: Mapping[str, str]) -> None:
    """Start JupyterLab in the clone."""
    become([str(Path(sys.executable).parent / "jupyter"), "lab", f"--notebook-dir={home()}"],
           surroundings(out_folder(given)))


def bench(given: Mapping[str, str]) -> int:
    """Run every benchmark; tables go to OUT, or to ``benchmarks/`` where OUT is the clone."""
    out = out_folder(given)
    target = home() / "benchmarks" if out == home() else out
    for script in sorted((home() / "benchmarks").glob("*.py")):
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


TARGETS = {"figures": figures, "profile": profile, "doctor": doctor, "test": test, "lab": lab,
           "bench": bench, "book": book}


def main(arguments: Sequence[str], given: Mapping[str, str]) -> int:
    """Do what one target says; 2 after one line, where a variable cannot be used."""
    try:
        return TARGETS[arguments[0]](given) or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
