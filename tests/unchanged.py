"""Do all tables and figures stay what they were? The profile `test` of two commits, compared.

    .venv/bin/python tests/unchanged.py --against HEAD~1 --out check

Both commits are run below ``--out`` (a folder that holds a finished run already is taken as it is).
Every table, figure and figure's data below ``figures`` and ``runs`` is compared byte for byte; of a
table that differs, each column is listed with its largest difference. Clock times
(``*.timing.csv``), executed notebooks and training state are left out. It prints
"N files, D differences" and ends with 1 where D is not 0.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from mvhlib.places import home

ENDINGS = (".csv", ".svg", ".png")


def run(code: Path, out: Path, profile: str, jobs: int) -> None:
    """Run a profile with the code of one checkout; nothing happens where it is complete."""
    environment = os.environ | {
        "PYTHONPATH": str(code), "MVH_HOME": str(code), "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "MVH_CACHE": str(out / ".cache" / "mvhlib")}
    environment |= {name: str(out / ".cache" / name.lower()) for name in (
        "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR",
        "XDG_CACHE_HOME")}
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "snakemake", "--snakefile",
                    str(code / "workflow" / "Snakefile"), "--directory", str(out), "--cores",
                    str(jobs), "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime",
                    "--quiet", "rules", "progress", "host", "--config", f"profile={profile}"],
                   check=True, env=environment)


def files(out: Path) -> dict[str, Path]:
    """What is compared below a run's folder: relative name -> file."""
    return {str(path.relative_to(out)): path for folder in ("figures", "runs")
            for path in sorted((out / folder).rglob("*"))
            if path.suffix in ENDINGS and not path.name.endswith(".timing.csv")
            and "state" not in path.parts}


def describe(before: Path, after: Path) -> list[str]:
    """How a file differs, a line per column of a table."""
    if before.suffix != ".csv":
        return ["is drawn otherwise"]
    old, new = (pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in
                (before, after))
    if list(old) != list(new):
        return [f"columns {sorted(set(old) ^ set(new)) or 'in another order'}"]
    if len(old) != len(new):
        return [f"{len(old)} rows, now {len(new)}"]
    found = []
    for name in old:
        a, b = old[name], new[name]
        if a.equals(b):
            continue
        numbers = all(np.issubdtype(each.dtype, np.number) for each in (a, b))
        found.append(f"{name}: largest difference {np.nanmax(np.abs(a - b)):.3g}" if numbers
                     else f"{name}: {int((a.astype(str) != b.astype(str)).sum())} cells")
    return found or ["is written otherwise"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="a commit")
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs")
    parser.add_argument("--profile", default="test")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    out = options.out.resolve()
    old_code = out / "code"
    if not old_code.exists():
        subprocess.run(["git", "worktree", "add", "--detach", str(old_code), options.against],
                       check=True, cwd=home())
    try:
        run(old_code, out / "before", options.profile, options.jobs)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(old_code)], cwd=home())
    run(home(), out / "after", options.profile, options.jobs)
    before, after = files(out / "before"), files(out / "after")
    differences = {name: ["is gone"] for name in before.keys() - after.keys()}
    differences |= {name: ["is new"] for name in after.keys() - before.keys()}
    for name in sorted(before.keys() & after.keys()):
        digests = [hashlib.sha256(side[name].read_bytes()).digest() for side in (before, after)]
        if digests[0] != digests[1]:
            differences[name] = describe(before[name], after[name])
    for name, lines in sorted(differences.items()):
        print(name, *(f"    {line}" for line in lines), sep="\n")
    print(f"{len(before.keys() | after.keys())} files, {len(differences)} differences")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
