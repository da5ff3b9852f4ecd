"""Give every reader broken files and count what comes of it.

::

    python -m tests.fuzz.run --mutants 1000 --seed 0 --readers all --out DIR [--jobs 2]
    python -m tests.fuzz.run --readers visium_h5 --only 17     one mutant, with its traceback

Mutants are read in forked children, each with 20 s of processor time and 2 GB above what the parent
has; one that fails beside others is read once more by itself, and that counts. Outcomes:

============  ====================================================================================
same          accepted, with the values of the whole file
other         accepted, with other values that a reader cannot doubt
refused       one `InputError` of one line that names a file
traceback     any other exception
crash         killed by a signal
hang          no end within 20 s of processor time, or 60 s in all
memory        more than 2 GB asked for, also where the refusal came from a failed allocation
believed      accepted though it cannot be true, or a change that alters no value altered values
lines         refused in several lines
no file       refused without the name of a file
escape        something was written or read outside the folder of the input
============  ====================================================================================

All below ``refused`` are failures. ``fuzz.csv`` holds the counts by reader, ``failures.csv`` one
row per failure, ``outcomes.*.jsonl`` one line per mutant, as readers are done, and ``inputs/`` the
changed files of the first of each root.
"""

import argparse
import csv
import faulthandler
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutate import Change, mutate, pick
from tests.fuzz.readers import READERS, Reader, digest, preload

CPU_S, WALL_S, MEMORY_BYTES = 20, 60, 2 << 30
ACCEPTED = ("same", "other", "refused")
FAILURES = ("traceback", "crash", "hang", "memory", "believed", "lines", "no file", "escape")
#: Changed files that are kept of each root, and the largest that is [bytes].
KEPT_PER_ROOT, LARGEST_KEPT = 1, 1 << 20
#: Mutants that one fork reads.
BATCH = 25


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant."""

    reader: str
    index: int
    mutation: str
    outcome: str
    exception: str = ""
    frame: str = ""
    message: str = ""

    @property
    def root(self) -> tuple[str, str, str]:
        """What failures of one cause have in common."""
        place = self.frame
        if self.outcome == "believed":
            place = re.sub(r"[\d.e+-]+", "#", self.message)
        return self.outcome, self.exception, place


# --------------------------------------------------------------------------------------------
# one mutant


def generator(reader: str, seed: int, index: int) -> np.random.Generator:
    """The chance of one mutant, whatever others were made before it."""
    return np.random.default_rng([seed, zlib.crc32(reader.encode()), index])


def change(reader: Reader, folder: Path, seed: int, index: int) -> tuple[Change, Path | None]:
    """Change one file below `folder`, where a whole input of `reader` lies."""
    rng = generator(reader.name, seed, index)
    pattern, kind = pick(rng, list(reader.files.items()))
    path = pick(rng, sorted(folder.glob(pattern)))
    done = mutate(path, kind, rng)
    if reader.seal is not None and path.exists() and rng.random() < 0.6:
        reader.seal(folder)
        done = Change(f"{done.words} (hashes made to fit)", neutral=False)
    return done, path


def _frame(frames: Iterable[tuple[str, int, str]]) -> str:
    """The innermost of our own frames, given the innermost last."""
    for file, line, name in reversed(list(frames)):
        if "/mvhlib/" in file and "/site-packages/" not in file:
            return f"mvhlib/{file.rsplit('/mvhlib/', 1)[1]}:{line} {name}"
    return ""


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _of_memory(error: BaseException) -> bool:
    return any(isinstance(each, MemoryError) or re.search(
        r"unable to allocate|not allocate|allocation fail|bad_alloc|out of memory|realloc|malloc",
        str(each), re.IGNORECASE) for each in _chain(error))


def _refusal(error: Exception, place: Path) -> str:
    text = str(error)
    if "\n" in text or "\r" in text:
        return "lines"
    names = {path.name for path in place.rglob("*") if not path.is_dir()} | {str(place)}
    return "refused" if any(name in text for name in names) else "no file"


def _judged(reader: Reader, folder: Path, whole: str | None, change: Change) -> dict[str, Any]:
    """Outcome of reading `folder`, in this process."""
    from mvhlib.artifacts import InputError

    before = set(folder.parents[2].glob("*")) | set(folder.parents[1].glob("*")) | set(
        folder.parent.glob("*"))
    try:
        values, problems = reader.call(folder)
        found = digest(values)
    except BaseException as error:
        frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
        about = {"exception": type(error).__name__, "frame": _frame(frames),
                 "message": str(error)[:600], "traceback": traceback.format_exc()}
        if _of_memory(error):
            return about | {"outcome": "memory"}
        if isinstance(error, InputError):
            kind = _refusal(error, folder)
            return about | {"outcome": "refused" if kind == "no file" and not reader.names_file
                            else kind}
        if not about["frame"]:  # read, and our own look at the values stumbled over them
            return about | {"outcome": "believed", "message": f"values of no use: {error}"[:300]}
        return about | {"outcome": "traceback"}
    after = set(folder.parents[2].glob("*")) | set(folder.parents[1].glob("*")) | set(
        folder.parent.glob("*"))
    escaped = sorted(path.name for path in after - before
                     if path.name not in ("out", "secret.h5"))
    if escaped:
        return {"outcome": "escape", "message": f"written outside: {escaped}"}
    if problems:
        return {"outcome": "believed", "message": "; ".join(map(str, problems))[:600]}
    if whole is None or found == whole:
        return {"outcome": "same", "digest": found}
    if change.neutral and not reader.own:
        return {"outcome": "escape" if "another file" in change.words else "believed",
                "message": "other values than of the whole file"}
    rotten = re.search(r"bit|bytes|fill|block|truncate", change.words.split(": ")[1])
    if reader.guarded and rotten and "hashes made to fit" not in change.words:
        return {"outcome": "believed", "message": "rotten bytes give other values"}
    return {"outcome": "other"}


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time() -> None:
    """So much processor time from now on, and so much time in all."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, WALL_S)


def _in_child(root: Path, jobs: Iterable[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Answers of `jobs` in one forked child under limits; the last one says so if it dies."""
    answers, stack = root / "answers.jsonl", root / "stack.txt"
    answers.write_text("")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        try:
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            trace = open(stack, "w")  # noqa: SIM115 - written by signal handlers until the end
            faulthandler.enable(trace)
            for number in (signal.SIGALRM, signal.SIGXCPU):
                signal.signal(number, signal.SIG_DFL)
                faulthandler.register(number, trace, chain=True)
            _limit_memory()
            with open(answers, "a", encoding="utf-8") as said:
                for job in jobs:
                    _limit_time()
                    said.write(json.dumps(job()) + "\n")
                    said.flush()
        except BaseException:
            with open(stack, "a") as said:
                traceback.print_exc(file=said)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status, _ = os.wait4(child, 0)
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    if status:
        said = stack.read_text(errors="replace") if stack.exists() else ""
        frames = [(file, int(line), name) for file, line, name in re.findall(
            r'File "([^"]+)", line (\d+) in (\S+)', said)][::-1]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        late = number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL)
        found.append({"outcome": "hang" if late else "crash",
                      "exception": signal.Signals(number).name if number else "no answer",
                      "frame": _frame(frames), "message": said[:300] if number else said[-600:]})
    return found


# --------------------------------------------------------------------------------------------
# one reader


class Broken(Exception):
    """The whole input of a reader is not read."""


def fuzz(reader: Reader, indices: Sequence[int], seed: int, out: Path | None = None,
         show: bool = False) -> list[Outcome]:
    """Outcomes of the mutants `indices` of one reader.

    Raises
    ------
    Broken
        If the unchanged input is refused, or read otherwise the second time.
    """
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{reader.name}-") as name:
        root = Path(name)
        template = root / "whole"
        template.mkdir()
        reader.build(template)
        whole, nothing = None, Change("nothing")
        for turn in range(2):  # the first one in this process, which then has all imports
            folder = _fresh(root, template)
            job = partial(_judged, reader, folder, whole, nothing)
            found = _in_child(root, [job])[0] if turn else job()
            if found["outcome"] != "same":
                raise Broken(f"{reader.name}: the whole input: {found['outcome']} "
                             f"{found.get('traceback') or found.get('message', '')}")
            whole = found["digest"]

        def one(index: int) -> dict[str, Any]:
            place = _fresh(root, template)
            done, _ = change(reader, place, seed, index)
            return {"words": done.words} | _judged(reader, place, whole, done)

        kept: Counter = Counter()

        def alone(index: int) -> Outcome:
            """What failed beside others must fail by itself."""
            place = _fresh(root, template)
            changed, path = change(reader, place, seed, index)
            found = _in_child(root, [partial(_judged, reader, place, whole, changed)])[0]
            outcome = _outcome(reader, index, changed.words, found, root)
            if show:
                print(f"{changed.words}\n{found.get('traceback', '')}\n{outcome}")
            if out is not None and outcome.outcome in FAILURES and kept[
                    outcome.root] < KEPT_PER_ROOT:
                kept[outcome.root] += 1
                _keep(path, out / "inputs" / reader.name / f"{outcome.index}-{path.name}")
            return outcome

        if show:
            return [alone(index) for index in indices]
        outcomes: list[Outcome] = []
        while len(outcomes) < len(indices):
            batch = indices[len(outcomes):len(outcomes) + BATCH]
            # Fewer answers than mutants where the child died; the last one then says so.
            answers = _in_child(root, [partial(one, index) for index in batch])
            outcomes += [alone(index) if answer["outcome"] in FAILURES else
                         _outcome(reader, index, answer["words"], answer, root)
                         for index, answer in zip(batch, answers, strict=False)]
    return outcomes


def _outcome(reader: Reader, index: int, words: str, found: dict[str, Any], root: Path) -> Outcome:
    said = {field: str(found.get(field, "")).replace(str(root), "")
            for field in ("exception", "frame", "message")}
    return Outcome(reader.name, index, words, found["outcome"], **said)


def _fresh(root: Path, template: Path) -> Path:
    """A copy of the whole input, two folders deep: what escapes from it is seen."""
    folder = root / "mutant" / "a" / "b" / "input"
    shutil.rmtree(root / "mutant", ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    (folder.parent / "out").mkdir()
    return folder


def _keep(path: Path, place: Path) -> None:
    if path.is_file() and path.stat().st_size <= LARGEST_KEPT:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


# --------------------------------------------------------------------------------------------
# all readers


def _work(names: Sequence[str], args: argparse.Namespace, result: Path) -> None:
    """Fuzz readers in this process, each in a fork of its own; one file of lines for all."""
    for name in names:
        start = time.monotonic()
        child = os.fork()
        if not child:
            code = 1
            try:
                indices = [args.only] if args.only is not None else range(args.mutants)
                found = fuzz(READERS[name], indices, args.seed, args.out, args.only is not None)
                with open(result, "a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in found)
                code = 0
            except Broken as error:
                print(error, file=sys.stderr)
                with open(result, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(Outcome(
                        name, -1, "nothing", "traceback", "Broken", "", str(error)[-600:]))) + "\n")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        used = os.wait4(child, 0)[2]
        print(f"{name}: {time.monotonic() - start:.0f} s, of a processor "
              f"{used.ru_utime + used.ru_stime:.1f} s", file=sys.stderr, flush=True)


def table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Counts by reader, the sum last."""
    rows = []
    for name in [*dict.fromkeys(outcome.reader for outcome in outcomes), "all"]:
        own = [o for o in outcomes if name in (o.reader, "all")]
        counts = Counter(o.outcome for o in own)
        rows.append({"reader": name, "mutants": len(own)}
                    | {kind: counts[kind] for kind in (*ACCEPTED, *FAILURES)})
    return rows


def roots(outcomes: Sequence[Outcome]) -> list[tuple[int, Outcome]]:
    """Failures by cause, the most frequent first: how many, and one of them."""
    groups: dict[tuple, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.outcome in FAILURES:
            groups.setdefault((outcome.reader, *outcome.root), []).append(outcome)
    return sorted(((len(group), group[0]) for group in groups.values()), key=lambda pair: -pair[0])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 only without a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default="all", help="names with commas between them, or all")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int, help="index of one mutant, to be seen again")
    args = parser.parse_args(arguments)
    names = list(READERS) if args.readers == "all" else args.readers.split(",")
    unknown = sorted(set(names) - set(READERS))
    if unknown:
        parser.error(f"no readers {unknown}; there are {', '.join(READERS)}")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        place, workers = args.out or Path(temporary), []
        for file in place.glob("outcomes.*.jsonl"):
            file.unlink()
        for job in range(args.jobs):
            worker = os.fork()
            if not worker:
                try:
                    _work(names[job::args.jobs], args, place / f"outcomes.{job}.jsonl")
                finally:
                    os._exit(0)
            workers.append(worker)
        for worker in workers:
            os.waitpid(worker, 0)
        found = [Outcome(**json.loads(line)) for file in sorted(place.glob("outcomes.*.jsonl"))
                 for line in file.read_text(encoding="utf-8").splitlines()]
    outcomes = sorted(found, key=lambda o: (names.index(o.reader), o.index))
    silent = [name for name in names if name not in {o.reader for o in outcomes}]
    outcomes += [Outcome(name, -1, "nothing", "crash", "the fuzzer ended") for name in silent]
    failures = [asdict(o) for o in outcomes if o.outcome in FAILURES]
    rows = table(outcomes)
    if args.only is None:
        width = max(len(row["reader"]) for row in rows)
        print(f"{'reader':{width}} " + " ".join(f"{key:>9}" for key in list(rows[0])[1:]))
        for row in rows:
            print(f"{row['reader']:{width}} " + " ".join(
                f"{value or '.':>9}" for value in list(row.values())[1:]))
        for n, example in roots(outcomes):
            print(f"{n:4d} {example.reader} #{example.index}: {example.outcome} "
                  f"{example.exception} {example.frame} | {example.mutation} | "
                  f"{' '.join(example.message.split())[:150]}")
    if args.out is not None:
        _write(args.out / "fuzz.csv", rows)
        _write(args.out / "failures.csv",
               failures or [dict.fromkeys((f.name for f in fields(Outcome)), "")])
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
