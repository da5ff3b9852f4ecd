"""What a run's tables rest on: the code of every step, and files that fit together."""

import importlib.util
import json
import sys

import pytest

from mvhlib import artifacts, freshness, lineage, results
from mvhlib.artifacts import InputError

NOTEBOOK = {"cells": [{"cell_type": "code", "source": ["x = 1"]}]}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A clone with two modules; 02_a (for two encoders) used one of them, 05_b both."""
    for module in (freshness, lineage):
        monkeypatch.setattr(module, "home", lambda: tmp_path)
    for folder in ("mvhlib", "notebooks", "runs/toy/provenance", "figures/toy/05_b"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / f"mvhlib/{name}.py").write_text(f"{name} = 1\n")
    for name in ("02_a", "05_b"):
        (tmp_path / f"notebooks/{name}.ipynb").write_text(json.dumps(NOTEBOOK))
    (tmp_path / "figures/toy/05_b/scores.csv").write_text("r\n0.5\n")
    for encoder in ("vit", "mv"):
        step(tmp_path, f"02_a.{encoder}", "a", outputs={f"runs/toy/{encoder}.csv": encoder})
    scores = artifacts.sha256_file(tmp_path / "figures/toy/05_b/scores.csv")
    step(tmp_path, "05_b", "a", "b", inputs={"runs/toy/vit.csv": "vit", "data/own.csv": "x"},
         outputs={"figures/toy/05_b/scores.csv": scores, "figures/toy/05_b/map.png": "y"})
    write(tmp_path)
    return tmp_path


def step(home, stem, *modules, inputs=None, outputs=None):
    freshness.code_sha256.cache_clear()
    notebook = home / f"notebooks/{stem.split('.')[0]}.ipynb"
    artifacts.write_json(home / f"runs/toy/provenance/{stem}.json", {"hashed": {
        "modules": {f"mvhlib.{name}": freshness.code_sha256(home / f"mvhlib/{name}.py")
                    for name in modules},
        "notebook": freshness.code_sha256(notebook), "inputs": inputs or {},
        "outputs": outputs or {}}})


def write(home):
    return lineage.write(home / "runs/toy", home / "figures/toy")


def stale(home):
    freshness.code_sha256.cache_clear()
    return lineage.stale(home / "figures")


@pytest.mark.parametrize("name, found", [
    ("mvhlib/a.py", ["toy/02_a", "toy/05_b"]), ("mvhlib/b.py", ["toy/05_b"]),
    ("notebooks/02_a.ipynb", ["toy/02_a"]), ("notebooks/05_b.ipynb", ["toy/05_b"])])
@pytest.mark.parametrize("gone", [False, True])
def test_every_step_whose_code_changed_is_named(house, name, found, gone):
    assert stale(house) == []
    if gone:
        (house / name).unlink()
    else:
        (house / name).write_text((house / name).read_text().replace("= 1", "= 2"))
    assert stale(house) == found


def test_prose_makes_nothing_stale(house):
    (house / "mvhlib/a.py").write_text('"""Prose."""\n# More of it.\na = 1\n')
    assert stale(house) == []


def test_a_step_that_ran_twice_is_stale_by_either_run(house):
    (house / "mvhlib/a.py").write_text("a = 2\n")
    step(house, "02_a.mv", "a", outputs={"runs/toy/mv.csv": "mv"})
    step(house, "05_b", "a", "b")
    write(house)
    assert stale(house) == ["toy/02_a"]  # that of the other encoder
    step(house, "02_a.vit", "a")
    write(house)
    assert stale(house) == []


def test_a_step_that_read_another_version_is_torn(house):
    step(house, "02_a.vit", "a", outputs={"runs/toy/vit.csv": "another"})
    write(house)
    assert stale(house) == ["toy/05_b"]


def test_a_table_changed_by_hand_is_found(house):
    folder = house / "figures/toy"
    assert lineage.unlike(folder, ["05_b/scores.csv"]) == []
    (folder / "05_b/scores.csv").write_text("r\n0.9\n")
    (folder / "05_b/other.csv").write_text("r\n")
    assert lineage.unlike(folder, ["05_b/scores.csv", "05_b/other.csv"]) == [
        "05_b/other.csv", "05_b/scores.csv"]
    assert stale(house) == ["toy/05_b"]


def test_equal_runs_give_equal_bytes(house):
    before = (house / "figures/toy/lineage.json").read_bytes()
    assert write(house).read_bytes() == before


def test_a_page_names_what_is_stale(house):
    page = "<!-- stale\nfile: figures\n-->\n<!-- end -->"
    assert "None: all of it" in results.fill(page, house, "page")
    (house / "mvhlib/b.py").write_text("b = 2\n")
    freshness.code_sha256.cache_clear()
    assert "\n`toy/05_b`.\n" in results.fill(page, house, "page")


def test_a_benchmark_rests_on_what_was_loaded(tmp_path, monkeypatch):
    for name in ("one", "two", "loaded_beside"):
        (tmp_path / f"{name}.py").write_text(f"{name} = 1\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"{name}\n")
    lineage.enter(tmp_path / "one.csv", tmp_path / "one.py")
    spec = importlib.util.spec_from_file_location("loaded_beside", tmp_path / "loaded_beside.py")
    monkeypatch.setitem(sys.modules, "loaded_beside", importlib.util.module_from_spec(spec))
    lineage.enter(tmp_path / "two.csv", tmp_path / "two.py")
    assert lineage.stale(tmp_path) == [] == lineage.unlike(tmp_path, ["one.csv", "two.csv"])
    (tmp_path / "loaded_beside.py").write_text("loaded_beside = 2\n")
    freshness.code_sha256.cache_clear()
    assert lineage.stale(tmp_path) == [f"{tmp_path.name}/two.csv"]
    lineage.enter(tmp_path / "two.csv", tmp_path / "two.py")
    assert lineage.stale(tmp_path) == []
    (tmp_path / "by_hand.csv").write_text("a\n")
    assert lineage.stale(tmp_path) == [f"{tmp_path.name}/by_hand.csv"]
    code = json.loads((tmp_path / lineage.NAME).read_text())["code"]
    assert any("mvhlib.lineage" in each for group in code for each in group["code"])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"code": 5, "torn": []}', '{"code": []}',
                                  '{"code": [{"steps": "a", "code": ["b"]}], "torn": []}'])
def test_a_broken_lineage_is_one_error(house, text):
    (house / "figures/toy/lineage.json").write_text(text)
    with pytest.raises(InputError, match="lineage.json"):
        stale(house)
