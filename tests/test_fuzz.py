"""The fuzzer tells outcomes apart, and no reader fails on a broken file.

``make test`` reads 20 mutants of each reader, ``make test SLOW=1`` a thousand, or as many as
``MVH_FUZZ_MUTANTS`` says, from the seed ``MVH_FUZZ_SEED``.
"""

import csv
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mvhlib import places
from mvhlib.artifacts import InputError
from tests.fuzz import mutate, run
from tests.fuzz.readers import READERS, Reader, digest

ROOT = Path(__file__).resolve().parents[1]
TEXT = "a,b\n1,2\n3,4\n"


def in_lines(folder):
    error = InputError(folder / "a.csv", "b", "is odd", "mend it")
    error.args = ("a.csv: one\ntwo",)
    raise error


def refuse(where):
    raise InputError(where, "b", "is odd", "mend it")


def for_ever(folder):
    while True:
        pass


#: Outcome -> what a reader does with a broken file.
BEHAVIOUR = {
    "traceback": lambda folder: places.resolve(None),
    "crash": lambda folder: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": for_ever,
    "memory": lambda folder: (np.zeros(3 << 30, np.uint8).sum(), []),
    "believed": lambda folder: ("x", ["NaN"]),
    "lines": in_lines,
    "no file": lambda folder: refuse("here"),
    "escape": lambda folder: ((folder.parents[1] / "x").write_text(""), []),
    "refused": lambda folder: refuse(folder / "a.csv"),
    "other": lambda folder: ("x", []),
}


def toy(behaviour):
    def call(folder):
        try:
            whole = (folder / "a.csv").read_text(encoding="utf-8") == TEXT
        except (OSError, ValueError):
            whole = False
        return ("whole", []) if whole else BEHAVIOUR[behaviour](folder)

    return Reader("toy", lambda folder: (folder / "a.csv").write_text(TEXT), {"a.csv": "text"},
                  call)


@pytest.mark.parametrize("behaviour", BEHAVIOUR)
def test_outcomes_are_told_apart(behaviour, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "CPU_S", 1)
    monkeypatch.setattr(mutate, "FILES", [mutate.absent, mutate.directory, mutate.looping_link])
    n = 3 if behaviour == "hang" else 8
    found = run.fuzz(toy(behaviour), range(n), 0, tmp_path)
    neutral = Counter(o.outcome for o in found if "text_encoding" in o.mutation)
    others = Counter(o.outcome for o in found if "text_encoding" not in o.mutation)
    assert set(others) == {behaviour} and sum(others.values()) + sum(neutral.values()) == n
    # The same table in another encoding must not read as another one.
    assert behaviour != "other" or set(neutral) <= {"believed"}


def test_a_mutant_is_made_again_from_its_seed(tmp_path):
    reader = READERS["clinical_table"]
    words = []
    for turn in ("one", "two"):
        words.append([])
        for index in range(12):
            folder = tmp_path / turn / str(index)
            folder.mkdir(parents=True)
            reader.build(folder)
            words[-1].append(run.change(reader, folder, 5, index)[0])
    assert words[0] == words[1] and len({change.words for change in words[0]}) > 8
    for index in range(12):
        one, two = (tmp_path / turn / str(index) / "own.csv" for turn in ("one", "two"))
        assert one.is_file() == two.is_file()
        assert not one.is_file() or one.read_bytes() == two.read_bytes()


def test_a_digest_tells_values_apart_and_no_folders():
    def values(number=1.0, text="x", n=3, last=None):
        return {"a": [number, text, np.arange(n)], "b": last}

    assert digest(values()) == digest(values(1))
    others = [values(1.5), values(text="y"), values(n=4), values(last=float("nan")),
              dict(reversed(values().items()))]
    assert len({digest(each) for each in [values(), *others]}) == 6


def fuzz(out, mutants, seed=0):
    """Run the fuzzer in a process of its own, whose threads are known; gives its tables."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "--mutants", str(mutants), "--seed", str(seed),
         "--jobs", str(min(4, os.cpu_count() or 1)), "--out", str(out)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "MVH_HOME": str(ROOT)},
        capture_output=True, text=True)
    print(made.stdout, made.stderr[-4000:])
    with open(out / "fuzz.csv", newline="", encoding="utf-8") as stream:
        rows = {row["reader"]: row for row in csv.DictReader(stream)}
    with open(out / "failures.csv", newline="", encoding="utf-8") as stream:
        failures = [row for row in csv.DictReader(stream) if row["outcome"]]
    return rows, failures, made.returncode


def check(rows, failures, code, mutants):
    said = [f"{row['reader']} #{row['index']}: {row['outcome']} {row['exception']} {row['frame']} "
            f"| {row['mutation']} | {row['message'][:150]}" for row in failures]
    assert not said, "\n".join(said)
    assert code == 0 and set(rows) == {*READERS, "all"}
    assert all(int(rows[name]["mutants"]) == mutants for name in READERS)


def test_twenty_mutants_of_every_reader(tmp_path):
    check(*fuzz(tmp_path, 20), 20)


@pytest.mark.slow
def test_a_thousand_mutants_of_every_reader(tmp_path):
    mutants = int(os.environ.get("MVH_FUZZ_MUTANTS", 1000))
    check(*fuzz(tmp_path, mutants, int(os.environ.get("MVH_FUZZ_SEED", 0))), mutants)
