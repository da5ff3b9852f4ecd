"""The fault script: it lays a run as it was when a stage began, and its table shows no loss."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mvhlib.artifacts import read_csv
from mvhlib.places import home


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fault_table", home() / "benchmarks/faults.py")
    module, path = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture
def runs(script, tmp_path):
    """Three stages, each with a table written a second before its provenance; two locks."""
    runs = script.Runs(tmp_path, "p", "", 0)
    for number, stage in enumerate(("01_a", "02_b", "03_c")):
        files = {f"figures/p/{stage}/t.csv": stage, f"runs/p/provenance/{stage}.json": json.dumps(
            {"minutes": number}), f"runs/p/.locks/{stage}": ""}
        for second, (name, text) in enumerate(files.items()):
            path = runs.kept / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (10 * number + second + 1000,) * 2)
    return runs


def test_a_stage_begins_with_what_was_there(runs):
    assert runs.stages() == ["01_a", "02_b", "03_c"]
    assert runs.lay("03_c") == 120.0
    assert runs.lay("02_b") == 60.0
    left = {str(path.relative_to(runs.out)) for path in runs.out.rglob("*") if path.is_file()}
    assert left == {"figures/p/01_a/t.csv", "runs/p/provenance/01_a.json",
                    *(f"runs/p/.locks/{stage}" for stage in runs.stages())}
    runs.lay("01_a")
    assert not list(runs.out.rglob("*.csv"))


def test_words_name_no_folder_of_a_machine(runs, tmp_path):
    said = tmp_path / "said.txt"
    said.write_text(f"chatter\n[1/2] 01_a       3.2 min  FAILED\nin {runs.out}/x: [Errno 28] full\n"
                    "waiting for process 12 on host7, which still runs\n")
    assert runs.heard(1, said) == ("exit 1: [1/2] 01_a FAILED / in OUT/x: [Errno 28] full / "
                                   "waiting for process N on HOST, which still runs")
    assert runs.heard(-9, tmp_path / "said.txt").startswith("signal 9: ")


def test_kills_reach_whom_they_should(script, runs):
    call = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    script.stopped.__globals__["STOPPED"] = 0.1
    script.stopped(runs, call, None)
    assert call.poll() is None
    script.group_killed(runs, call, None)
    assert call.wait(10) == -9


def test_nothing_was_lost():
    path = home() / "benchmarks/faults.csv"
    if not path.exists():
        pytest.skip("benchmarks/faults.py has not been run")
    table = read_csv(path)
    tried = ~table["seen"].str.startswith("not tried")
    assert tried.sum() >= 6 and (table.loc[tried, "tables_equal"] == "yes").all()
    assert not table["seen"].str.contains(r"Traceback|(?<!\w)/\w").any()
