"""Kill the workflow at random moments, call it again, and compare what comes out.

``python tests/faults.py --profile test --kills N --seed S --out DIR`` runs the profile once without
interruption, then again under kills: by turns the whole process group and the workflow process
alone (whose notebooks then go on writing, as after a lost connection). Whenever a run gets to its
end its tables and figures are compared with the first; then it starts afresh.
Prints ``N kills, D differences`` and exits with 1 if D is not 0.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from mvhlib.artifacts import remove_tree, sha256_file
from mvhlib.places import home


def start(profile: str, out: Path, data: str = "") -> subprocess.Popen:
    """Start ``make figures`` in a process group of its own."""
    command = ["make", "figures", f"PROFILE={profile}", f"OUT={out}", f"DATA={data}"]
    return subprocess.Popen(command, cwd=home(), start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)


def kill(process: subprocess.Popen, whole_group: bool) -> None:
    """Kill by SIGKILL: the process group, or the process that runs the workflow and no other."""
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        family = psutil.Process(process.pid).children(recursive=True)
        for member in family:
            if "snakemake" in " ".join(member.cmdline()[:3]):
                member.kill()
                break
    process.wait()


def comparable(out: Path) -> dict[str, str]:
    """sha256 of every file whose bytes are promised to repeat."""
    return {str(path.relative_to(out)): sha256_file(path)
            for folder in ("runs", "figures") for path in sorted((out / folder).rglob("*"))
            if path.suffix in {".csv", ".svg", ".png"} and ".timing." not in path.name
            and ".ipynb" not in path.name}


def differences(reference: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names that are missing on one side or differ."""
    names = sorted(reference.keys() | other.keys())
    return [name for name in names if reference.get(name) != other.get(name)]


def uninterrupted(profile: str, out: Path, data: str = "") -> tuple[dict[str, str], float]:
    """Files of a run that nobody kills, and how long it took [s]."""
    began = time.monotonic()
    if start(profile, out, data).wait() != 0:
        sys.exit(f"the uninterrupted run of profile {profile!r} failed: see {out}")
    return comparable(out), time.monotonic() - began


def main(profile: str, kills: int, seed: int, out: Path, data: str = "",
         known: tuple[dict[str, str], float] | None = None) -> int:
    """Return the number of files that differ.

    `known` is what `uninterrupted` would return, where such a run has been made already.
    """
    rng = random.Random(seed)
    reference, lasted = known or uninterrupted(profile, out / "reference", data)
    killed, wrong = 0, []
    while True:
        process = start(profile, out / "killed", data)
        if killed < kills:
            try:
                process.wait(timeout=rng.uniform(0.05, 0.6) * lasted)
            except subprocess.TimeoutExpired:
                kill(process, whole_group=killed % 2 == 0)
                killed += 1
                continue
        if process.wait() != 0:
            sys.exit(f"a resumed run failed after {killed} kills: see {out / 'killed'}")
        wrong += differences(reference, comparable(out / "killed"))
        if killed == kills:
            break
        remove_tree(out / "killed")
    for name in wrong:
        print(f"differs: {name}")
    print(f"{killed} kills, {len(wrong)} differences")
    return len(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="test")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="")
    given = parser.parse_args()
    sys.exit(main(given.profile, given.kills, given.seed, given.out.resolve(), given.data) > 0)
