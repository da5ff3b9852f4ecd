"""What make and Snakemake hand on: every value as it was given, or one line before all else."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from mvhlib import commands, workflow
from mvhlib.artifacts import InputError
from mvhlib.places import home

#: What a path may hold; each would be read by a shell, by YAML, by make or by Snakemake.
ODD = ["a #b", "it's", 'say "x"', "a: b", "{x}", "{{x}}", "a  b", "Müller", "$HOME", "$(echo x)",
       "`echo x`", "x=y", "-rf", "[x]", "1e3", "no", "a\\b", "%s", "~", "&x", "*", "a;b", "(", "!x"]
#: All of it in one name.
ODDEST = ("-a #b it's \"x\": {x} {{y}} {encoder} Müller 切片 $HOME $(echo x) `echo x` x=y \\ %s "
          "&x; ( [~] !*")
NOTEBOOK = """
import json
from mvhlib import notebook
run = notebook.begin("00_tour", globals())
(run.out / "got.json").write_text(json.dumps(run.parameters))
run.finish()
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone whose only notebook writes down the parameters that reach it."""
    clone = tmp_path_factory.mktemp("clone {a} #1")
    shutil.copy(home() / "Makefile", clone)
    for name in ("workflow", "notebooks"):
        shutil.copytree(home() / name, clone / name)
    (clone / "mvhlib").symlink_to(home() / "mvhlib")
    (clone / "params/tiny").mkdir(parents=True)
    (clone / "params/tiny/workflow.yaml").write_text("notebooks: [00_tour]\n")
    content = json.loads((home() / "notebooks/00_tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"]
             if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", [])]
    content["cells"] = cells + [{"cell_type": "code", "id": "run", "metadata": {}, "outputs": [],
                                 "execution_count": None, "source": NOTEBOOK}]
    (clone / "notebooks/00_tour.ipynb").write_text(json.dumps(content))
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


def make(clone, *words, **environment):
    """Call make with the stamp of .venv taken for granted."""
    plain = {name: value for name, value in os.environ.items()
             if name not in (*commands.VARIABLES, *commands.OF_MAKE, "MVH_HOME")}
    return subprocess.run(["make", "-o", ".venv/.installed", *words], cwd=clone, text=True,
                          capture_output=True, env=plain | environment)


def snakemake(clone, out, *entries):
    """Call Snakemake as a cluster's user would, without running anything."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(clone / "workflow/Snakefile"), "--directory",
         str(out), "-c", "1", "-n", "-p", "--nolock", "--config", *entries],
        capture_output=True, text=True, env=os.environ | {"MVH_HOME": str(clone)})


@pytest.mark.slow
def test_an_odd_path_reaches_the_notebook_unchanged(clone, tmp_path):
    out, data = tmp_path / "out" / ODDEST, tmp_path / "data" / ODDEST
    data.mkdir(parents=True)
    done = make(clone, "figures", "PROFILE=tiny", f"OUT={out}", f"DATA={data}", "SEED=7")
    assert done.returncode == 0, done.stdout + done.stderr
    got = json.loads((out / "got.json").read_text())
    assert (got["out"], got["data"], got["seed"]) == (str(out), str(data), 7)
    assert (out / "figures/tiny/FIGURES.md").exists()


@pytest.mark.parametrize("value", ODD + [ODDEST, "a\nb"])
@pytest.mark.parametrize("through", ["make", "environment"])
def test_make_hands_on_a_value_as_it_stands(clone, tmp_path, value, through):
    """By a Makefile of which nothing but the recipe is another."""
    text = (clone / "Makefile").read_text()
    recipe = re.search(r"(?m)^figures .*: \.venv/\.installed$", text).start()
    (tmp_path / "show.py").write_text(
        "import json, os\nprint(json.dumps([os.environ[n] for n in ('OUT', 'DATA')]))")
    (tmp_path / "Makefile").write_text(
        text[:recipe] + f"figures:\n\t@'{sys.executable}' show.py\n")
    given = {"OUT": value, "DATA": value}
    words = [f"{k}={v}" for k, v in given.items()] if through == "make" else []
    done = make(tmp_path, "figures", *words, **(given if through == "environment" else {}))
    assert json.loads(done.stdout) == [value, value]


@pytest.mark.parametrize("name", ["a #b", "a: b", "{x}", "[x]", "a b", "Müller", "&x", "a;b"])
def test_snakemakes_config_is_taken_as_it_stands(name, tmp_path):
    (tmp_path / name).mkdir()
    path = str(tmp_path / name)
    config = {"profile": "mob", "data": yaml.safe_load(f"data: '{path}'")["data"][:-1]}
    call = workflow.given_to_snakemake(config, ["profile=mob", f"data={path}", "seed=3"])
    assert call == workflow.Call("mob", path, 3)
    assert workflow.given_to_snakemake({}, [workflow.to_jobs(call)]) == call
    assert workflow.to_jobs(call).isascii() and not set(workflow.to_jobs(call)) & set(" '\"$`#{")


def test_snakemake_prints_what_it_was_given(clone, tmp_path):
    data = tmp_path / "mob #2"
    data.mkdir()
    done = snakemake(clone, tmp_path / "out", "profile=tiny", f"data={data}")
    assert done.returncode == 0 and f"data: {data}, seed: 0" in done.stderr
    encoded = done.stdout.split(" -b ")[1].split()[0]
    assert yaml.safe_load(base64.b64decode(encoded)) == {
        "profile": "tiny", "out": str(tmp_path / "out"), "data": str(data), "seed": 0}


def test_a_cluster_gets_every_job_with_its_resources(clone, tmp_path):
    """The executor's dry run, by the profile and the example of a site in the repository."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(clone / "workflow/Snakefile"), "--directory",
         str(tmp_path / "out"), "-n", "--nolock", "--config", "profile=tiny",
         *commands._cluster({"CLUSTER": str(clone / "workflow/profiles/slurm/site.yaml")})],
        capture_output=True, text=True, env=os.environ | {"MVH_HOME": str(clone)})
    assert done.returncode == 0, done.stderr
    asked = re.search(r"rule tour:.*?resources: (.*?)\n", done.stdout, re.S)[1]
    assert "slurm_partition=main" in asked and "mem_mb=4000" in asked and "runtime=120" in asked


@pytest.mark.parametrize("text", ["- a", "a: [", "a: 1\na: 2"])
def test_a_site_that_cannot_be_read_is_refused_in_one_line(clone, tmp_path, text):
    (tmp_path / "site.yaml").write_text(text)
    done = make(clone, "figures", "PROFILE=tiny", f"OUT={tmp_path / 'o'}",
                f"CLUSTER={tmp_path / 'site.yaml'}")
    assert done.returncode == 2 and not (tmp_path / "o").exists()
    said = [line for line in done.stderr.splitlines() if "site.yaml" in line]
    assert len(said) == 1 and "Fix: " in said[0] and "Traceback" not in done.stderr


def test_a_cluster_without_a_profile_is_refused_in_one_line(clone, tmp_path):
    done = make(clone, "figures", "PROFILE=tiny", f"OUT={tmp_path / 'o'}", f"CLUSTER={tmp_path}")
    assert done.returncode == 2 and "CLUSTER: holds no config.yaml. Fix: name a file" in done.stderr


def test_snakemake_refuses_in_one_line(clone, tmp_path):
    done = snakemake(clone, tmp_path / "out", "profile=tiny", "data=/no where #x")
    assert done.returncode == 2 and not (tmp_path / "out/runs").exists()
    said = [line for line in done.stderr.splitlines() if "DATA" in line]
    assert said == ["DATA=/no where #x: DATA: is not a directory. Fix: name the data set's folder."]
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


@pytest.mark.parametrize(("entry", "said"), [
    ("seed=abc", "SEED: is 'abc'"), ("seed=-1", "SEED"), ("profile=a: b", "PROFILE: is 'a: b'"),
    ("profile=../x", "PROFILE"), ("prfile=tiny", "did you mean 'profile'"), ("data=a\nb", "DATA")])
def test_a_wrong_config_is_one_line(entry, said):
    with pytest.raises(InputError, match="--config: ") as caught:
        workflow.given_to_snakemake({}, [entry])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def variables(tmp_path, **changed):
    return {"PROFILE": "test", "DATA": "", "OUT": str(tmp_path / "out"), "SEED": "0", "JOBS": "1",
            "SLOW": ""} | changed


@pytest.mark.parametrize(("name", "value"), [
    *(("SEED", v) for v in ("abc", "-1", "", "1.0", "1e3", "9" * 5000, "2147483648", "٣", "true")),
    *(("JOBS", v) for v in ("0", "x", "-1")),
    *(("PROFILE", v) for v in ("", "nosuch", "..", "a/b", "../test", "-rf", "a\nb", "{x}", "$(x)",
                               "a: b", ".hidden", "test ", "1", "true", "her2st")),
    *(("DATA", v) for v in ("/etc/none", "/etc/passwd", "a\nb", "/\udcff")),
    *(("OUT", v) for v in ("", " ", "/", "//", "/..", "/etc/passwd", "/etc/passwd/x", "a\nb",
                           "/dev/null/x", "x" * 300))])
def test_a_wrong_variable_is_one_line_before_anything_runs(tmp_path, monkeypatch, capsys, name,
                                                           value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "become", lambda *words: pytest.fail(f"was run: {words}"))
    assert commands.main(["figures"], variables(tmp_path, **{name: value})) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name in said and "Fix: " in said
    assert list(tmp_path.iterdir()) == []


def test_figures_becomes_snakemake_with_the_call_in_plain_letters(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(commands, "become", lambda words, env: became.append((words, env)))
    monkeypatch.setenv("OUT", "left over")
    monkeypatch.setenv("MAKELEVEL", "1")
    (tmp_path / "d {x}").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk #2")
    (tmp_path / "disk #2").mkdir()
    given = variables(tmp_path, DATA=str(tmp_path / "d {x}"), SEED="5")
    assert commands.main(["figures"], given) == 0
    words, env = became[0]
    assert words[words.index("--directory") + 1] == str(tmp_path / "disk #2")
    assert workflow.given_to_snakemake({}, [words[-1]]) == workflow.Call(
        "test", str(tmp_path / "d {x}"), 5)
    assert not {"OUT", "MAKELEVEL"} & set(env)
    assert env["TMPDIR"] == str(tmp_path / "disk #2/.cache/tmp")


def test_without_jobs_there_is_one_for_each_core(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(commands, "become", lambda words, env: became.append(words))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    for given, memory, expected in (("", 1 << 40, "3"), (" ", 5 << 30, "2"), ("", 1 << 20, "1"),
                                    ("7", 1 << 20, "7")):
        monkeypatch.setattr(os, "sysconf", lambda name, n=memory: {
            "SC_PAGE_SIZE": 1 << 12}.get(name, n >> 12))
        # A run holds its folder as long as its process lives: each has one of its own.
        commands.main(["figures"], variables(tmp_path, JOBS=given, OUT=str(tmp_path / expected)))
        assert became[-1][became[-1].index("--cores") + 1] == expected


@pytest.mark.parametrize(("named", "expected"), [
    ("", ["handmade", "vit"]), ("encoders: [handmade]\nunit: study\n", ["handmade"])])
def test_score_redraws_14_with_the_encoders_that_the_workflow_gives_it(tmp_path, monkeypatch,
                                                                       named, expected):
    folder = tmp_path / "params/mine"
    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(
        "notebooks: [01_cohort, 02_tiles, 04_embed, 05_expression, 14_leaderboard]\nencoders:\n"
        "  handmade: {source: handmade}\n"
        "  vit: {source: vit12_micro_patch8_64, weights: random}\n")
    (folder / "14_leaderboard.yaml").write_text(named)
    (tmp_path / "predictions").mkdir()
    ran = {}
    monkeypatch.setattr(commands, "_notebook",
                        lambda name, values, out, env: ran.update({name: values}) or 0)
    monkeypatch.setattr(commands.subprocess, "run",
                        lambda words, **how: subprocess.CompletedProcess(words, 0))
    assert commands.main(["score"], variables(
        tmp_path, PROFILE="mine", PARAMS=str(tmp_path / "params"),
        PREDICTIONS=str(tmp_path / "predictions"))) == 0
    values = ran["14_leaderboard"]
    assert values["encoders"] == expected and values["profile"] == "mine"
    assert values.get("unit") == ("study" if named else None)


def test_lab_takes_a_port_and_words_and_no_shell(tmp_path, monkeypatch, capsys):
    became = []
    monkeypatch.setattr(commands, "become", lambda words, env: became.append(words))
    given = variables(tmp_path, PORT="8899", ARGS="--no-browser --ip='$(id) x'")
    assert commands.main(["lab"], given) == 0
    assert became[0][-3:] == ["--port=8899", "--no-browser", "--ip=$(id) x"]
    for name, value in (("PORT", "x"), ("ARGS", "'open")):
        assert commands.main(["lab"], variables(tmp_path, **{name: value})) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and name in said


def test_data_may_be_read_only(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o555)
    assert workflow.read_call({"profile": "test", "data": str(data)}).data == str(data)


# ---- make clean


@pytest.mark.parametrize("out", ["", " ", "/", "//", "/..", "/tmp/..", "root", "../../../../../.."])
@pytest.mark.parametrize("target", ["clean", "clean-all"])
def test_cleaning_nothing_or_the_root_is_refused(clone, tmp_path, out, target):
    """In a copy of the Makefile whose rm only prints."""
    (tmp_path / "root").symlink_to("/")
    text = (clone / "Makefile").read_text().replace("rm -rf", "echo WOULD DELETE")
    (tmp_path / "Makefile").write_text(text)
    out = out.replace("../../../../../..", "/".join([".."] * 20))
    done = make(tmp_path, target, f"OUT={out}")
    assert done.returncode != 0 and "WOULD DELETE" not in done.stdout + done.stderr
    assert "Fix: name the folder to clean" in done.stderr


@pytest.mark.parametrize("name", ["x", "a #b $(touch y) {x}", "-rf"])
def test_clean_deletes_runs_and_what_git_ignores_and_no_more(clone, tmp_path, name):
    out = tmp_path / name
    for folder in ("runs/demo", "figures/demo", "figures/test", "figures/her2st", ".cache",
                   ".snakemake"):
        (out / folder).mkdir(parents=True)
    shutil.copy(clone / "Makefile", tmp_path)
    assert make(tmp_path, "clean", f"OUT={name}").returncode == 0
    assert sorted(p.name for p in out.iterdir()) == [".cache", "figures"]
    assert [p.name for p in (out / "figures").iterdir()] == ["her2st"]
    assert not (tmp_path / "y").exists()
    assert make(tmp_path, "clean", "OUT=nothing there").returncode == 0


def test_two_workflows_in_one_folder_wait_for_each_other(tmp_path):
    code = ("import sys; from pathlib import Path; from mvhlib import commands\n"
            "commands._wait_for_others(Path(sys.argv[1])); print('held', flush=True); input()")
    words = [sys.executable, "-c", code, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = subprocess.Popen(words, **pipes)
    assert first.stdout.readline() == "held\n"
    second = subprocess.Popen(words, **pipes)
    assert f"waiting for process {first.pid}" in second.stderr.readline()
    first.kill()
    first.communicate()
    assert second.stdout.readline() == "held\n"
    second.communicate("\n")


def test_a_broken_job_of_the_cluster_is_one_line():
    with pytest.raises(InputError, match="--config: call"):
        workflow.given_to_snakemake({}, ["call=%%%"])
