"""What a run survives: kills, a stop, a full disk, a read-only OUT, two calls in one OUT.

    python benchmarks/faults.py --out DIR [--profile test --params params] [--stages 02_tiles ...]
                                [--each] [--seed 0] [--work DIR]

The profile runs once without any fault, one job at a time. For each stage its state at the stage's
start is laid again, the profile is called, and when the stage's kernel is at work something
happens. The same command, given again where the first did not end well, must make the same bytes.
Stages meet faults by turns, or each stage every fault (`--each`); what befalls the whole OUT stands
once, in the middle. The default is the smallest profile; `test` takes two hours. `faults.csv`::

    stage, fault       where, and what
    seen               exit status and last words of the call that met the fault
    again              of the same command, given afterwards; empty where the first ended well
    tables_equal       yes where every table and figure has the bytes of the run without a fault

A disk of its own size (tmpfs) and a read-only one need the right to mount; elsewhere `seen` says
that they were not tried.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A package of the name coverage is asked for by numba, and a benchmark beside this file has it.
sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd  # noqa: E402
import psutil  # noqa: E402

from mvhlib import artifacts, lineage  # noqa: E402
from mvhlib.places import home, resolve  # noqa: E402
from tests.faults import comparable, differences  # noqa: E402

COLUMNS = ("profile", "stage", "fault", "seen", "again", "tables_equal")
#: Seconds that a stopped run sleeps.
STOPPED = 10.0
#: Room that a full disk leaves beyond what is there when the stage begins [bytes].
ROOM = 300_000


class Runs:
    """Calls of one profile in one folder.

    Parameters
    ----------
    work
        Scratch; the run's OUT is ``work/out``, since a run's files name it.
    profile, params
        What runs.
    seed
        Of the moments at which something happens.
    """

    def __init__(self, work: Path, profile: str, params: str, seed: int):
        self.work, self.profile, self.params = work, profile, params
        self.out, self.kept = work / "out", work / "reference"
        self.rng = random.Random(seed)
        self.calls = 0

    def call(self) -> tuple[subprocess.Popen, Path]:
        """Start the profile in a process group of its own; the file holds what it says."""
        self.calls += 1
        said = self.work / f"call{self.calls}.txt"
        given = {"PROFILE": self.profile, "PARAMS": self.params, "OUT": str(self.out),
                 "SEED": "0", "JOBS": "1", "DATA": "", "CLUSTER": "", "MVH_HOME": str(home())}
        with open(said, "w", encoding="utf-8") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "mvhlib.commands", "figures"], cwd=home(),
                env=os.environ | given | {"PYTHONPATH": str(home())}, start_new_session=True,
                stdout=stream, stderr=subprocess.STDOUT), said

    def finish(self) -> str:
        """Give the command again, until it ends by itself."""
        process, said = self.call()
        return self.heard(process.wait(), said)

    def heard(self, code: int, said: Path) -> str:
        """Exit status and last words, without names of this machine's folders."""
        lines = [line.strip() for line in said.read_text(encoding="utf-8").splitlines()
                 if re.search(r"FAILED|Fix:|waiting|Error:|failed|Errno|Nothing is left", line)]
        last = " / ".join(lines[-3:]).replace(str(self.out), "OUT").replace(str(home()), ".")
        last = last.replace(sys.prefix, ".venv")
        last = re.sub(r"process \d+ on [^\s,]+", "process N on HOST", last)
        last = re.sub(r" +\d+\.\d min", "", re.sub(r"\s+", " ", last))
        status = f"signal {-code}" if code < 0 else f"exit {code}"
        return f"{status}: {last[:260]}" if last else status

    def reference(self) -> dict[str, str]:
        """Run without a fault, and keep what it made."""
        code = self.finish()
        if not code.startswith("exit 0"):
            sys.exit(f"the run without a fault ended with {code}: see {self.work}")
        self.kept.mkdir()
        _copy(self.out, self.kept)
        self.files = comparable(self.out)
        return self.files

    def stages(self) -> list[str]:
        """Jobs in the order in which they ended."""
        return [path.stem for path in self._provenance()]

    def _provenance(self) -> list[Path]:
        found = self.kept.glob(f"runs/{self.profile}/provenance/[!.]*.json")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def lay(self, stage: str) -> float:
        """Make OUT what it was when a stage began; returns how long the stage took [s]."""
        _empty(self.out)
        _copy(self.kept, self.out)
        place = self.stages().index(stage)
        ended = [path.stat().st_mtime_ns for path in self._provenance()]
        before = ended[place - 1] if place else 0
        for folder in ("runs", "figures"):
            for path in (self.out / folder).rglob("*"):
                if path.is_file() and path.stat().st_mtime_ns > before and (
                        ".locks" not in path.parts):
                    path.unlink()
        minutes = artifacts.read_json(self._provenance()[place])["minutes"]
        return max(2.0, 60 * float(minutes))

    def kernel(self, call: subprocess.Popen, stage: str) -> psutil.Process | None:
        """The kernel of a stage's notebook, once it runs; None where the call ended before."""
        while call.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(call.pid).children(recursive=True):
                    words = process.cmdline()
                    if "papermill" in words and words[-1].endswith(f"/{stage}.ipynb"):
                        for child in process.children():
                            return child
            time.sleep(0.2)
        return None

    def equal(self) -> str:
        return "no" if differences(self.files, comparable(self.out)) else "yes"


def _copy(source: Path, target: Path) -> None:
    """Files and times of one folder into another that is there."""
    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True,
                    ignore=shutil.ignore_patterns("lost+found"))


def _empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# --------------------------------------------------------------------------------------------
# what happens while a stage is at work: (runs, call, kernel) -> nothing


def kernel_killed(_runs: Runs, _call: subprocess.Popen, kernel: psutil.Process) -> None:
    kernel.kill()


def workflow_killed(runs: Runs, call: subprocess.Popen, _kernel: psutil.Process) -> None:
    """Its notebooks go on writing, as after a lost connection."""
    call.kill()


def group_killed(_runs: Runs, call: subprocess.Popen, _kernel: psutil.Process) -> None:
    family = psutil.Process(call.pid).children(recursive=True)
    call.kill()  # first: it must not see the others go
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def stopped(_runs: Runs, call: subprocess.Popen, _kernel: psutil.Process) -> None:
    family = [psutil.Process(call.pid), *psutil.Process(call.pid).children(recursive=True)]
    for how in (signal.SIGSTOP, signal.SIGCONT):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        time.sleep(STOPPED if how == signal.SIGSTOP else 0)


FAULTS: dict[str, Callable] = {
    "kernel killed": kernel_killed, "workflow killed": workflow_killed,
    "all processes killed": group_killed, f"stopped for {STOPPED:g} s": stopped}


def during(runs: Runs, stage: str, fault: str) -> dict[str, str]:
    """One stage meets one fault; where it was too quick, the moment is halved."""
    share = runs.rng.uniform(0.2, 0.7)
    while True:
        seconds = runs.lay(stage)
        call, said = runs.call()
        kernel = runs.kernel(call, stage)
        if kernel is not None:
            time.sleep(share * seconds)
        if kernel is not None and kernel.is_running() and call.poll() is None:
            break
        call.wait()
        share /= 2
    FAULTS[fault](runs, call, kernel)
    seen = runs.heard(call.wait(), said)
    return _row(runs, stage, fault, seen)


def two_calls(runs: Runs, stage: str) -> dict[str, str]:
    """A second call while the first is at work waits, and then has nothing to do."""
    runs.lay(stage)
    first, _ = runs.call()
    runs.kernel(first, stage)
    second, said = runs.call()
    ended = first.wait()
    return _row(runs, stage, "two calls in one OUT",
                f"first exit {ended}; second {runs.heard(second.wait(), said)}")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A memory disk at a folder; False where nobody lets us."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
                          capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(runs: Runs, stage: str) -> dict[str, str]:
    """The disk is full in the middle of a stage; afterwards it has room."""
    with mounted(runs.out, "size=4g") as ours:
        if not ours:
            return _row(runs, stage, "disk full", "not tried: no right to mount", fresh=True)
        runs.lay(stage)
        used = os.statvfs(runs.out)
        taken = (used.f_blocks - used.f_bfree) * used.f_frsize
        _remount(runs.out, f"size={taken + ROOM}")
        call, said = runs.call()
        seen = runs.heard(call.wait(), said)
        _remount(runs.out, "size=4g")
        return _row(runs, stage, "disk full", seen)


def read_only(runs: Runs, stage: str) -> dict[str, str]:
    """OUT cannot be written from the start; afterwards it can."""
    with mounted(runs.out, "size=4g") as ours:
        if not ours:
            return _row(runs, stage, "OUT read-only", "not tried: no right to mount", fresh=True)
        runs.lay(stage)
        _remount(runs.out, "ro")
        call, said = runs.call()
        seen = runs.heard(call.wait(), said)
        _remount(runs.out, "rw")
        return _row(runs, stage, "OUT read-only", seen)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _row(runs: Runs, stage: str, fault: str, seen: str, fresh: bool = False) -> dict[str, str]:
    """What was seen; then the command again, where the call did not end well."""
    again = equal = ""
    if not fresh:
        well = seen.startswith(("exit 0", "first exit 0"))
        again = "" if well else runs.finish().split(":")[0]
        equal = runs.equal()
    row = {"profile": runs.profile, "stage": stage, "fault": fault, "seen": seen, "again": again,
           "tables_equal": equal}
    print(f"{stage}, {fault}: {seen}; again {again or '-'}; equal {equal or '-'}", flush=True)
    return row


def _rows(runs: Runs, stages: list[str], each: bool) -> Iterator[dict[str, str]]:
    """Every fault that the stages meet."""
    for number, stage in enumerate(stages):
        met = list(FAULTS) if each else [list(FAULTS)[number % len(FAULTS)]]
        for fault in met:
            yield during(runs, stage, fault)
        if number == len(stages) // 2:
            for whole in (two_calls, full_disk, read_only):
                yield whole(runs, stage)


def main(arguments: argparse.Namespace) -> int:
    """Number of rows whose tables differ."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    runs = Runs(work, arguments.profile, str(resolve(arguments.params)), arguments.seed)
    runs.reference()
    stages = arguments.stages or runs.stages()
    rows = []
    for row in _rows(runs, stages, arguments.each):
        rows.append(row)  # the table grows with each, whatever becomes of the next
        lineage.enter(artifacts.write_csv(arguments.out / "faults.csv",
                                          pd.DataFrame(rows)[list(COLUMNS)]), __file__)
    shutil.rmtree(work)
    wrong = sum(row["tables_equal"] == "no" for row in rows)
    print(f"{len(rows)} faults, {wrong} with other tables")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--params", default="tests/cluster/params")
    parser.add_argument("--stages", nargs="*")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    sys.exit(1 if main(parser.parse_args()) else 0)
