"""Report on this machine: what is installed, and which parts of the collection will run.

``python -m mvhlib.doctor`` prints one line per question, and below a line that is not well what can
be done; it exits with 1 if something that every notebook needs is missing. It never fails itself:
what cannot be found out is a line too.
"""

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mvhlib.artifacts import one_line
from mvhlib.places import choose_device, home

#: package -> what it is for; the last column says whether nothing works without it.
NEEDS = {
    "torch": ("every encoder", True), "anndata": ("cohorts", True), "scanpy": ("gene panels", True),
    "squidpy": ("maps and graphs", True), "sklearn": ("PCA, oracles", True),
    "papermill": ("running notebooks", True), "snakemake": ("running all of them", True),
    "lifelines": ("09_survival", True), "openslide": ("whole slides: extra wsi", False),
    "faiss": ("large retrieval galleries: extra search", False),
    "mamba_ssm": ("GPU scan: extra gpu, with --no-build-isolation", False),
}
INSTALL = "run make; it installs into .venv what pyproject.toml lists"
LEAST_GB = {"disk": 5, "memory": 4}


def report() -> tuple[list[str], bool]:
    """Return the lines of the report, and whether everything required is installed."""
    lines, healthy = [], True
    questions: list[Callable[[], list[tuple]]] = [_python, _packages, _compute, _machine, _places]
    for question in questions:
        try:
            answers = question()
        except Exception as error:  # a broken installation may raise anything
            answers = [(False, f"{question.__name__[1:]}: {_said(error)}", "could not be checked",
                        True, INSTALL)]
        for ok, found, purpose, needed, advice in answers:
            healthy &= bool(ok) or not needed
            lines.append(_line(ok, found, purpose, needed))
            if not ok and advice:
                lines.append(f"    {advice}")
    return lines, healthy


def _python() -> list[tuple]:
    version = sys.version_info
    return [((3, 11) <= version[:2] < (3, 13), f"Python {version[0]}.{version[1]}", "3.11 or 3.12",
             True, "choose one: make PYTHON=python3.11")]


def _packages() -> list[tuple]:
    answers = []
    for name, (purpose, needed) in NEEDS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
            answers.append((True, f"{name} {_version(name)}", purpose, needed, ""))
        except ModuleNotFoundError as error:
            inside = "" if error.name == name else f", it needs {error.name}"
            answers.append((False, f"{name} missing{inside}", purpose, needed,
                            INSTALL if needed else ""))
        except Exception as error:  # a broken binary may raise anything
            answers.append((False, f"{name} broken ({type(error).__name__})", purpose, needed,
                            f"it said: {_said(error)}"))
    return answers


def _version(module: str) -> str:
    packages = importlib.metadata.packages_distributions().get(module, [])
    return importlib.metadata.version(packages[0]) if packages else "found"


def _compute() -> list[tuple]:
    import torch

    from mvhlib.backbones.scan import available_backends

    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    compiler = shutil.which("gcc") or shutil.which("cc")
    backends = available_backends()
    answers = [
        (gpu, name, "a GPU: pretraining at full size", False, ""),
        (bool(compiler), f"C compiler {compiler or 'missing'}", "the fast CPU scan", False, ""),
        (True, "scan backends " + ", ".join(backends), "state-space layers", True, ""),
    ]
    device, scan = os.environ.get("MVH_DEVICE"), os.environ.get("MVH_SCAN_BACKEND")
    if device:
        try:
            answers.append((True, f"MVH_DEVICE={choose_device(device)}", "as you set it", True, ""))
        except ValueError as error:  # InputError is one
            answers.append((False, f"MVH_DEVICE={device}", "as you set it", True, str(error)))
    if scan:
        answers.append((scan in ("auto", *backends), f"MVH_SCAN_BACKEND={scan}", "as you set it",
                        True, f"unset it, or use auto, {', '.join(backends)}"))
    return answers


def _machine() -> list[tuple]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    coding = sys.getfilesystemencoding().lower()
    return [
        (memory > LEAST_GB["memory"], f"{cores} cores, {memory:.0f} GB memory",
         f"{LEAST_GB['memory']} GB for the demo", False, "run one job at a time: make JOBS=1"),
        (coding == "utf-8", f"file names in {coding}", "names with umlauts and other letters",
         False, "set LC_ALL=C.UTF-8"),
    ]


def _places() -> list[tuple]:
    clone = home()
    notebooks = sorted(clone.glob("notebooks/[0-9]*.ipynb"))
    own = Path(__file__).resolve().parents[1]
    answers = [
        (bool(notebooks), f"{len(notebooks)} notebooks in {clone}", "the clone", True,
         "set MVH_HOME to the clone, or unset it"),
        (own == clone, f"mvhlib of {own}", "the clone's own library", False,
         f"another library would run: run make in {own}, or reinstall by running make here"),
        (_can_write(clone), f"{'can' if _can_write(clone) else 'cannot'} write in {clone}",
         "runs and figures", False, "choose a folder that you may write to: make OUT=..."),
    ]
    free = shutil.disk_usage(clone if clone.exists() else own).free / 1e9
    answers.append((free > LEAST_GB["disk"], f"{free:.0f} GB free",
                    f"{LEAST_GB['disk']} GB for the environment and the demo", False,
                    "choose a folder on another disk: make OUT=..."))
    return answers


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"


def _line(ok: bool, found: str, purpose: str, needed: bool = True) -> str:
    return f"{'✓' if ok else '✗' if needed else '–'} {one_line(found, 200):<42} {purpose}"


def main(arguments: Sequence[str] = ()) -> int:
    """Print the report; return 1 if something required is missing."""
    text, ok = report()
    say(text)
    return 0 if ok else 1


def say(lines: Sequence[str]) -> None:
    """Print lines; what a terminal cannot show, such as a name of no coding, becomes ``?``."""
    if hasattr(sys.stdout, "reconfigure"):  # not where somebody collects what is printed
        sys.stdout.reconfigure(errors="replace")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
