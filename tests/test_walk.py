"""The whole way from slide to figure, by the commands of the README, on the profile ``test``."""

import json
import os
import subprocess
import sys
import time

import pytest

from mvhlib import artifacts, workflow
from mvhlib.places import home
from tests import faults

STAMP = home() / ".venv/.installed"
pytestmark = pytest.mark.skipif(not STAMP.exists(), reason="needs .venv made by make")

SCORES = ("protocol,fold,study,patient,section,method,encoder,encoder_saw_test_images,control,"
          "panel,program,gene,n_spots,pcc,mae,mse,ceiling").split(",")
SUMMARY = ("protocol,method,encoder,pool,encoder_saw_test_images,control,panel,program,metric,"
           "n_genes,n_nan,unit,n_units,mean,ci_low,ci_high").split(",")
MANIFEST = ("section,study,patient,specimen,n_spots,n_genes,has_image,mpp,image_width_px,"
            "image_height_px,source").split(",")


def make(*words, **environment):
    """Call make as a person would; `environment` is added to this process's own."""
    return subprocess.run(["make", *words], cwd=home(), capture_output=True, text=True,
                          env=os.environ | environment)


@pytest.fixture(scope="session")
def walked(tmp_path_factory):
    """``make figures PROFILE=test`` into a folder whose name holds a space.

    The folder, the empty home, and what a run under kills is held against: files, seconds.
    """
    out = tmp_path_factory.mktemp("walk") / "out put"
    empty = tmp_path_factory.mktemp("home")
    began = time.monotonic()
    done = make("figures", "PROFILE=test", f"OUT={out}", HOME=str(empty))
    lasted = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out, empty, (faults.comparable(out), lasted)


@pytest.fixture
def walk(walked):
    return walked[:2]


def test_nothing_is_written_outside(walk):
    _, empty = walk
    assert not [path for path in empty.rglob("*") if path.is_file()]


def test_every_table_of_the_contract_is_there(walk):
    out, _ = walk
    run = out / "runs/test"
    manifest = artifacts.read_csv(run / "cohort/manifest.csv")
    assert list(manifest.columns) == MANIFEST
    assert list(artifacts.read_csv(run / "cohort/panels.csv").columns) == [
        "panel", "protocol", "fold", "rank", "gene"]
    scores = sorted(run.glob("expression/*/*/*/scores.csv"))
    assert scores
    for path in scores:
        assert list(artifacts.read_csv(path).columns) == SCORES
        assert list(artifacts.read_csv(path.parent / "folds.csv").columns) == [
            "fold", "section", "role"]
        # A section that several folds test has no prediction by what each of them chose.
        in_parts = path.parts[-4] == "random10_spot" and ".chosen" in path.parent.name
        assert in_parts != bool(list((path.parent / "predictions").rglob("*.h5ad"))), path
    for encoder in (run / "features").iterdir():
        assert {p.stem for p in encoder.glob("*.h5")} == set(manifest["section"])
    summary = artifacts.read_csv(out / "figures/test/05_expression/summary.csv")
    assert list(summary.columns) == SUMMARY
    assert (out / "figures/test/FIGURES.md").read_text().count("![") >= 6


def test_executed_notebooks_have_no_error_and_provenance_matches(walk):
    out, _ = walk
    books = sorted((out / "runs/test/notebooks").glob("*.ipynb"))
    records = sorted((out / "runs/test/provenance").glob("*.json"))
    assert [b.stem for b in books] == [r.stem for r in records]
    plan = workflow.read_plan(home() / "params/test")
    assert {r.stem.split(".")[0] for r in records} == set(plan["notebooks"])
    assert {r.stem.partition(".")[2] for r in records if r.stem.startswith("04")} == set(
        plan["encoders"])
    for path in books:
        cells = json.loads(path.read_text())["cells"]
        assert not [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    for path in records:
        hashed = json.loads(path.read_text())["hashed"]
        assert hashed["checks"] and str(out) not in json.dumps(hashed)
        for name, digest in hashed["outputs"].items():
            assert artifacts.sha256_file(out / name) == digest, name


def test_a_second_call_makes_a_lost_table_and_nothing_else(walk):
    out, empty = walk
    before, lost = faults.comparable(out), out / "figures/test/08_retrieval"
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.csv")}
    (lost / "summary.csv").unlink()  # nothing else is made of it
    assert make("figures", "PROFILE=test", f"OUT={out}", HOME=str(empty)).returncode == 0
    assert faults.differences(before, faults.comparable(out)) == []
    assert {p for p, t in times.items() if p.stat().st_mtime_ns != t} == set(lost.glob("*.csv"))


@pytest.mark.slow
def test_one_notebook_by_hand_from_any_directory(walk, tmp_path):
    out, _ = walk
    book = home() / "notebooks/06_spatial_maps.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(book), "out.ipynb", "--no-progress-bar", "-f",
         str(home() / "params/test/06_spatial_maps.yaml"), "-p", "out", str(out), "-p",
         "profile", "test"],
        cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_unknown_parameter_by_hand_is_refused(tmp_path):
    book = home() / "notebooks/02_tiles.ipynb"
    done = subprocess.run([sys.executable, "-m", "papermill", str(book), "out.ipynb",
                           "--no-progress-bar", "-p", "tile_pixels", "64", "-p", "out",
                           str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "tile_pixels: is not a parameter" in done.stderr
    assert "did you mean 'tile_px'" in done.stderr


@pytest.mark.parametrize("words, said", [
    (("PROFILE=tets",), "did you mean 'test'"),
    (("PROFILE=her2st",), "DATA"),
    (("PROFILE=her2st", "DATA=/nowhere at all"), "is not a directory")])
def test_wrong_call_is_one_clear_error(tmp_path, words, said):
    done = make("figures", f"OUT={tmp_path}", *words)
    assert done.returncode != 0 and said in done.stdout + done.stderr


@pytest.mark.slow
def test_killed_and_called_again(walked, tmp_path):
    assert faults.main("test", kills=2, seed=0, out=tmp_path, known=walked[2]) == 0


@pytest.mark.slow
def test_killed_many_times(walked, tmp_path):
    assert faults.main("test", kills=12, seed=1, out=tmp_path, known=walked[2]) == 0
