"""What the workflow asks of profiles, parameters, code and provenance."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mvhlib import artifacts, notebook, workflow
from mvhlib.artifacts import InputError
from mvhlib.places import home

PARAMS = home() / "params"
PROFILES = sorted(path.parent.name for path in PARAMS.glob("*/workflow.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_its_notebooks(profile, tmp_path):
    (tmp_path / "glas/images").mkdir(parents=True)  # so that no encoder is left out
    plan = workflow.read_plan(PARAMS / profile, data=str(tmp_path / "given"))
    names = {path.stem for path in PARAMS.glob(f"{profile}/*.yaml")} - {"workflow"}
    for name in names:
        workflow.read_params(PARAMS / profile, name)
    assert names <= set(plan["notebooks"])
    for options in plan["encoders"].values():
        options = dict(options)
        for name, given in (("03_pretrain", options.pop("pretrain", {})), ("04_embed", options)):
            declared = notebook.declared_parameters(notebook.read_parameters_cell(
                home() / f"notebooks/{name}.ipynb"))
            notebook.check_parameters(name, declared, given)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'demo'"):
        workflow.read_plan(PARAMS / "dmo")


def test_profile_with_real_data_wants_data():
    with pytest.raises(InputError, match="DATA.*make figures PROFILE=her2st DATA="):
        workflow.read_plan(PARAMS / "her2st")


@pytest.mark.parametrize("plan, problem", [
    ({"encoder": {}}, "encoder: is not a key"),
    ({"encoders": {"Hand Made": {"source": "handmade"}}}, "not a slug"),
    ({"encoders": {"a": {}}}, "has no source"),
    ({"methods": {"mmap": ["a"]}}, "methods: mmap: ['a']"),
    ({"encoders": {"a": {"source": "b", "weights": "cmrcnet:c"}}}, "add it to methods: cmrcnet"),
    ({"methods": {"stem": []}}, "is not a method"),
    ({"methods": {"mmap": "a"}}, "list encoders by name"), ({"methods": ["mmap"]}, "type dict"),
    ({"methods": {"mmap": [False]}}, "list encoders by name"),
    ({"encoders": ["a"]}, "type dict"), ({"encoders": {"a": 5}}, "encoders: a: is 5"),
    *(({"encoders": {slug: {"source": "x"}}}, "not a slug") for slug in ("..", "-rf", ".a", "a/b")),
    ({"encoders": {"a" * 201: {"source": "x"}}}, "longer than 200 bytes"),
    ({"encoders": {"a": {"source": 5}}}, "source: is 5"),
    ({"encoders": {"a": {"source": "x", "wieghts": "random"}}}, "did you mean 'weights'"),
    ({"encoders": {"a": {"source": "x", "weights": 5}}}, "weights: is 5"),
    ({"encoders": {"a": {"source": "x", "out": "/"}}}, "out: is not a key"),
    ({"encoders": {"a": {"source": "x", "seed": -1}}}, "seed: is -1"),
    ({"encoders": {"a": {"source": "x", "weights": "pretrained", "pretrain": {"setps": 1}}}},
     "did you mean 'steps'"),
    ({"encoders": {"a": {"source": "x", "weights": "pretrained", "pretrain": {"out": "/"}}}},
     "out: is not a parameter"),
    ({"encoders": {"a": {"source": "x", "seeds": 2}, "a.s1": {"source": "y"}}}, "another encoder"),
    ({"notebooks": ["05_expresion"]}, "did you mean '05_expression'"),
    ({"notebooks": "05_expression"}, "type list[str]"), ({"threads": {"05": 1}}, "not a notebook"),
    ({"threads": {"05_expression": 0}}, "too small"), ({"threads": {"05_expression": "2"}}, "int"),
    ({"gpus": -1}, "too small"), ({"needs_data": "maybe"}, "type bool"),
    ({"encoders": {"a": {"source": "b", "weights": "pretrained"}}}, "has only one of")])
def test_wrong_plan_is_refused(tmp_path, plan, problem):
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(InputError, match=re.escape(problem)):
        workflow.read_plan(tmp_path)


@pytest.mark.parametrize("name", ["05_expresion.yaml", "05_expression.yml", "workflow.yml"])
def test_a_parameter_file_that_nothing_would_read_is_refused(tmp_path, name):
    (tmp_path / "workflow.yaml").write_text("notebooks: [05_expression]\n")
    (tmp_path / "._05_x.yaml").write_bytes(b"\0")
    workflow.read_plan(tmp_path)
    (tmp_path / name).write_text("n_genes: 3\n")
    with pytest.raises(InputError, match=rf"{name}: name: is read by no notebook"):
        workflow.read_plan(tmp_path)


def test_a_link_to_nothing_does_not_mean_the_defaults(tmp_path):
    assert workflow.read_params(tmp_path, "13_cmrcnet") == {}
    for name, read in (("13_cmrcnet.yaml", lambda: workflow.read_params(tmp_path, "13_cmrcnet")),
                       ("workflow.yaml", lambda: workflow.read_plan(tmp_path))):
        (tmp_path / name).symlink_to("/nowhere.yaml")
        with pytest.raises(InputError, match=f"{name}: file: is a link to /nowhere.yaml"):
            read()


def test_an_encoder_with_seeds_becomes_several(tmp_path):
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(
        {"encoders": {"a": {"source": "x"}, "b": {"source": "y", "seeds": 2}}}))
    assert workflow.read_plan(tmp_path)["encoders"] == {
        "a": {"source": "x"}, "b.s0": {"source": "y", "seed": 0},
        "b.s1": {"source": "y", "seed": 1}}
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(
        {"encoders": {"b": {"source": "y", "seeds": 0}}}))
    with pytest.raises(InputError, match="b: seeds: is 0"):
        workflow.read_plan(tmp_path)


def write_plan(folder, **plan):
    (folder / "workflow.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder


def test_an_encoder_with_held_out_sections_is_pretrained_once_without_each(tmp_path):
    trained = {"source": "x", "weights": "pretrained", "pretrain": {"steps": 3, "exclude": ["A1"]}}
    plan = workflow.read_plan(write_plan(tmp_path, encoders={
        "plain": {"source": "y"}, "a": trained | {"held_out": ["C2", "C3"], "seeds": 1}}))
    assert plan["scored"] == ["plain", "a.s0"]
    assert plan["members"] == {"a.s0": ["a.s0.no-c2", "a.s0.no-c3"]}
    assert list(plan["encoders"]) == ["plain", "a.s0.no-c2", "a.s0.no-c3"]
    assert plan["encoders"]["a.s0.no-c3"] == trained | {
        "seed": 0, "pretrain": {"steps": 3, "exclude": ["A1", "C3"]}}


@pytest.mark.parametrize("change", [
    {"held_out": []}, {"held_out": "C2"}, {"held_out": ["C2", "c2"]}, {"held_out": ["C 2"]},
    {"held_out": ["C2"], "pretrain": None}])
def test_held_out_sections_that_make_no_encoder_are_refused(tmp_path, change):
    options = {"source": "x", "weights": "pretrained", "pretrain": {}} | change
    if options["pretrain"] is None:
        options = {"source": "x", "held_out": ["C2"]}
    with pytest.raises(InputError, match="a: held_out"):
        workflow.read_plan(write_plan(tmp_path, encoders={"a": options}))


def test_an_encoder_whose_tiles_are_not_there_is_left_out_with_the_reason(tmp_path):
    data = tmp_path / "her2st"
    data.mkdir()
    write_plan(tmp_path, needs_data=True, methods={"mmap": ["a", "b"]}, encoders={
        "a": {"source": "x"}, "b": {"source": "x", "if_data": "../glas/images"}})
    plan = workflow.read_plan(tmp_path, data=str(data))
    assert plan["left_out"] == {"b": "DATA has no ../glas/images"}
    assert list(plan["encoders"]) == plan["scored"] == plan["methods"]["mmap"] == ["a"]
    (tmp_path / "glas/images").mkdir(parents=True)
    plan = workflow.read_plan(tmp_path, data=str(data))
    assert plan["left_out"] == {} and plan["encoders"]["b"] == {"source": "x"}


def test_her2st_holds_each_section_out_and_says_who_saw_what():
    plan = workflow.read_plan(PARAMS / "her2st", data="given")
    for encoder, members in plan["members"].items():
        saw = workflow.read_params(PARAMS / "her2st", "05_expression")["saw_test_images"]
        assert len(members) == 4 and encoder not in saw and f"{encoder}-saw" in saw
        held = [plan["encoders"][member]["pretrain"]["exclude"] for member in members]
        assert held == [["C2"], ["C3"], ["C4"], ["C5"]]


def test_wrong_parameter_in_a_profile_names_file_and_field(tmp_path):
    (tmp_path / "05_expression.yaml").write_text("encodrs: [a]\n")
    with pytest.raises(InputError, match=r"05_expression.yaml: encodrs: .*encoders"):
        workflow.read_params(tmp_path, "05_expression")


def test_code_hash_follows_imports_inside_functions(tmp_path, monkeypatch):
    monkeypatch.setenv("MVH_HOME", str(tmp_path))
    for name, text in {"__init__": "", "a": "def f():\n    from mvhlib import b", "b": "x = 1",
                       "c": "x = 1"}.items():
        artifacts.write_text(tmp_path / "mvhlib" / f"{name}.py", text)
    before = workflow.code_hash("mvhlib.a")
    (tmp_path / "mvhlib/c.py").write_text("x = 2")
    assert workflow.code_hash("mvhlib.a") == before
    (tmp_path / "mvhlib/b.py").write_text('"""What b is."""\n# why\nx = 1\n')
    assert workflow.code_hash("mvhlib.a") == before
    (tmp_path / "mvhlib/b.py").write_text("x = 2")
    assert workflow.code_hash("mvhlib.a") != before


def test_a_lost_table_makes_its_notebook_run_again(tmp_path):
    run = tmp_path / "runs/demo"
    for name in ("a", "b"):
        artifacts.write_text(tmp_path / f"figures/{name}.csv", "x")
        artifacts.write_json(run / f"provenance/{name}.json",
                             {"hashed": {"outputs": {f"figures/{name}.csv": ""}}})
    artifacts.write_text(run / "provenance/c.json", "{half")
    for name, content in (("d", [1]), ("e", {"hashed": {"outputs": [5]}}), ("f", {"hashed": 0})):
        artifacts.write_json(run / f"provenance/{name}.json", content)
    (tmp_path / "figures/a.csv").unlink()
    assert workflow.forget_incomplete(run) == ["a", "c", "d", "e", "f"]
    assert [path.stem for path in run.glob("provenance/*.json")] == ["b"]


def test_a_failed_notebook_names_its_cell(tmp_path):
    path = tmp_path / "05_expression.ipynb"
    path.write_text(json.dumps({"cells": [
        {"id": "fit-ridge", "outputs": [{"output_type": "error", "ename": "InputError",
                                         "evalue": "x.h5: file: is truncated"}]}]}))
    said = workflow.explain(path)
    assert "'fit-ridge'" in said and "x.h5: file: is truncated" in said
    assert "did not start" in workflow.explain(Path(tmp_path / "none.ipynb"))


def test_explain_says_that_a_disk_is_full(tmp_path, monkeypatch):
    """Whoever met it, in whatever words, and whatever could still be written."""
    path = tmp_path / "04_embed.a.ipynb"
    full = f"04_embed.a: {tmp_path}: disk: is full. Fix: free some space"
    path.with_name("04_embed.a.ipynb.txt").write_text(
        "RuntimeError: Can't decrement id ref count (error message = 'No space left on device')")
    assert workflow.explain(path).startswith(full)
    path.with_name("04_embed.a.ipynb.txt").write_text("")
    assert not workflow.explain(path).startswith(full)
    monkeypatch.setattr(workflow.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert workflow.explain(path).startswith(full)


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": 5}', '{"cells": [{"outputs": [5]}]}'])
def test_a_broken_executed_notebook_is_named_in_one_line(tmp_path, text, capsys):
    (tmp_path / "a.ipynb").write_text(text)
    assert workflow.main([str(tmp_path / "a.ipynb")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a.ipynb" in said


def test_parameters_come_back_from_papermills_base64():
    import base64

    values = {"data": "/a: b/{x} #'\"", "alphas": [1e-6, 1.0], "names": ["007", "no", "2020-01-01"],
              "options": {"no": {"1:30": "é"}}, "seed": 7, "flag": True}
    assert yaml.safe_load(base64.b64decode(workflow.to_papermill(values))) == values
