"""What this machine has, and which parts of the collection will run on it.

``python -m mvhlib.doctor`` prints one line per question; it exits with 1 if something that every
notebook needs is missing.
"""

import importlib
import importlib.metadata
import os
import shutil
import sys
import warnings
from pathlib import Path

#: package -> what it is for; the last column says whether nothing works without it.
NEEDS = {
    "torch": ("every encoder", True), "anndata": ("cohorts", True), "scanpy": ("gene panels", True),
    "squidpy": ("maps and graphs", True), "sklearn": ("PCA, oracles", True),
    "papermill": ("running notebooks", True), "snakemake": ("running all of them", True),
    "lifelines": ("09_survival", True), "openslide": ("whole slides: extra wsi", False),
    "faiss": ("large retrieval galleries: extra search", False),
    "mamba_ssm": ("GPU scan: extra gpu, with --no-build-isolation", False),
}


def report() -> tuple[list[str], bool]:
    """Lines of the report, and whether everything indispensable is there."""
    lines, healthy = [], True
    version = sys.version_info
    fits = (3, 11) <= version[:2] < (3, 13)
    healthy &= fits
    lines.append(_line(fits, f"Python {version[0]}.{version[1]}", "3.11 or 3.12"))
    for name, (purpose, needed) in NEEDS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
            found, text = True, _version(name)
        except Exception as error:  # a broken binary raises what it likes
            found, text = False, f"missing ({type(error).__name__})"
            healthy &= not needed
        lines.append(_line(found, f"{name} {text}", purpose, needed))
    lines += _compute()
    home = Path(os.environ.get("MVH_HOME", Path(__file__).resolve().parents[1]))
    free = shutil.disk_usage(home).free / 1e9
    lines.append(_line(free > 5, f"{free:.0f} GB free", "5 GB for the environment and the demo"))
    return lines, healthy


def _version(module: str) -> str:
    packages = importlib.metadata.packages_distributions().get(module, [])
    return importlib.metadata.version(packages[0]) if packages else "found"


def _compute() -> list[str]:
    import torch

    from mvhlib.backbones.scan import available_backends

    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    compiler = shutil.which("gcc") or shutil.which("cc")
    return [
        _line(gpu, name, "a GPU: pretraining at full size", False),
        _line(bool(compiler), f"C compiler {compiler or 'missing'}", "the fast CPU scan", False),
        _line(True, "scan backends " + ", ".join(available_backends()), "state-space layers"),
    ]


def _line(ok: bool, found: str, purpose: str, needed: bool = True) -> str:
    return f"{'✓' if ok else '✗' if needed else '–'} {found:<42} {purpose}"


if __name__ == "__main__":
    text, ok = report()
    print("\n".join(text))
    sys.exit(0 if ok else 1)
