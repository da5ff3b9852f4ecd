"""The rails: what a notebook may be given, and what it leaves behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mvhlib import answers, artifacts, freshness, notebook, plots
from mvhlib.artifacts import InputError

CELL = '''profile: str = "demo"  # folder below runs/
out: str = "{out}"  # where runs/ and figures/ are made
data: str = ""  # the user's data set
seed: int = 0  # seeds everything
device: str = "cpu"  # auto, cpu or cuda
n_genes: int = 50  # genes predicted
alphas: list[float] = [0.1, 1.0]  # penalties
'''


def namespace(tmp_path, injected: str = "", **values):
    """What ``globals()`` of a notebook holds after its parameters cells."""
    cell = CELL.format(out=tmp_path)
    names = {name: default for name, (_, default) in notebook.declared_parameters(cell).items()}
    cells = ["", cell] + (["# Parameters\n" + injected] if injected else [])
    return names | values | {"In": cells}


def begin(tmp_path, injected="", **values):
    return notebook.begin("05_expression", namespace(tmp_path, injected, **values))


def test_unknown_parameter_is_refused_and_the_nearest_is_named(tmp_path):
    with pytest.raises(InputError, match=r"n_gene: .*did you mean 'n_genes'"):
        begin(tmp_path, "n_gene = 5")


@pytest.mark.parametrize("injected, field", [
    ('n_genes = "fifty"', "n_genes"), ("n_genes = True", "n_genes"), ("n_genes = 1.5", "n_genes"),
    ('alphas = "0.1"', "alphas"), ('alphas = [0.1, "b"]', "alphas"), ("seed = None", "seed")])
def test_wrong_type_is_refused(tmp_path, injected, field):
    value = notebook.given_parameters(injected)
    with pytest.raises(InputError, match=f"{field}: is .* Fix: give a value of type"):
        begin(tmp_path, injected, **value)


def test_an_int_is_a_float_and_given_values_win(tmp_path):
    run = begin(tmp_path, "alphas = [1, 2]\nn_genes = 7", alphas=[1, 2], n_genes=7)
    assert run.parameters["alphas"] == [1, 2] and run.parameters["n_genes"] == 7


def test_rerun_in_jupyter_after_papermill_is_not_refused(tmp_path):
    names = namespace(tmp_path, "n_genes = 7", n_genes=7)
    names["In"] += ["x = 1", names["In"][1], names["In"][2]]
    assert notebook.begin("05_expression", names).parameters["n_genes"] == 7


@pytest.mark.parametrize("source, problem", [
    ('a: str = "x=1"', 'holds "="'), ("a = 1", "not an annotated literal"),
    ("a: int = 1 + b", "not a literal"), ("import os", "not an annotated literal")])
def test_parameters_cell_holds_annotated_literals_only(source, problem):
    with pytest.raises(InputError, match=problem):
        notebook.declared_parameters(source)


def test_seed_decides_numpy_and_torch(tmp_path):
    import torch

    draws = []
    for _ in range(2):
        begin(tmp_path, "seed = 3", seed=3)
        draws.append((np.random.rand(), torch.rand(1).item()))
    begin(tmp_path, "seed = 4", seed=4)
    assert draws[0] == draws[1] != (np.random.rand(), torch.rand(1).item())


def test_missing_data_directory_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="nowhere: data: is not a directory. Fix: pass DATA"):
        begin(tmp_path, data=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("name", "value"), [
    *(("profile", v) for v in ("../x", "/x", "a/b", "..", ".", "", " ", "-rf", "a\nb", "demo ")),
    ("seed", -1), ("seed", 2**31), ("out", ""), ("out", "a\nb"), ("data", "a\nb")])
def test_values_that_lead_out_of_their_folder_are_refused(tmp_path, name, value):
    with pytest.raises(InputError, match=f"05_expression: {name}: is"):
        begin(tmp_path / "a/b", **{name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoder", ["../../x", "/x", "..", "-x"])
def test_an_encoder_stays_in_its_folder(tmp_path, encoder):
    cell = CELL.format(out=tmp_path / "a/b") + 'encoder: str = "a"\n'
    values = {name: default for name, (_, default) in notebook.declared_parameters(cell).items()}
    with pytest.raises(InputError, match="04_embed: encoder: is"):
        notebook.begin("04_embed", values | {"encoder": encoder, "In": [cell]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [("../x",), ("features", "../../../x"), ("/etc",), ("a", "/b")])
def test_a_name_of_a_table_cannot_leave_the_run_folder(tmp_path, parts):
    run = begin(tmp_path)
    with pytest.raises(InputError, match="leads out of"):
        run.path(*parts)
    with pytest.raises(InputError, match="leads out of"):
        run.save_table(pd.DataFrame({"a": [1]}), parts[-1])
    assert run.path("features", "a.b", "..c.h5").name == "..c.h5"


def test_a_place_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="out: cannot be written"):
        begin(tmp_path / "file")


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "open('x')"])
def test_what_papermill_cannot_write_as_a_literal_is_refused(value):
    with pytest.raises(InputError, match="injected parameters: rate: is "):
        notebook.given_parameters(f"# Parameters\nrate = {value}\n")


def test_an_error_of_ours_is_one_line_in_the_notebook_and_others_keep_their_traceback():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shown = []
    shell._showtraceback = lambda kind, error, lines: shown.append((kind, lines))
    try:
        notebook.show_errors_in_one_line()
        shell.run_cell("from mvhlib.artifacts import InputError\nfrom mvhlib.notebook import "
                       "CheckFailed\ndef f(kind, *words): raise kind(*words)")
        for code, line in (("f(InputError, 'a.csv', 'b', 'is\\nc', 'd')",
                            "InputError: a.csv: b: is c. Fix: d."),
                           ("f(CheckFailed, 'x: does not hold')", "CheckFailed: x: does not hold")):
            result = shell.run_cell(code)
            assert not result.success and shown[-1][1] == [line]
        shell.run_cell("f(ValueError, 'x')")
        assert len("".join(shown[-1][1]).splitlines()) > 3
    finally:
        InteractiveShell.clear_instance()


def test_need_names_the_notebook_that_makes_it(tmp_path):
    run = begin(tmp_path)
    with pytest.raises(InputError, match="01_cohort.ipynb"):
        run.need(run.path("cohort", "manifest.csv"), made_by="01_cohort")


def figure(width=plots.COLUMN, text="x", size=7):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(width, 2))
    ax.plot([0, 1], [0, 1])
    ax.set_xlabel(text, fontsize=size)
    return fig


def test_figure_is_written_with_data_and_provenance_and_repeats_byte_for_byte(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": [0.1, 1 / 3]})
    seen = []
    for folder in ("one", "two"):
        run = begin(tmp_path / folder)
        run.save_figure(figure(), "line", data=frame, caption="A line.")
        run.save_table(frame, "numbers", timing=pd.DataFrame({"s": [time.time()]}))
        run.check(True, "one holds")
        run.finish()
        files = sorted(p for p in (tmp_path / folder / "figures").rglob("*") if p.is_file())
        assert {p.name for p in files} == {"line.png", "line.svg", "line.csv", "line.json",
                                           "numbers.csv", "numbers.timing.csv"}
        seen.append([p.read_bytes() for p in files if "timing" not in p.name])
    assert seen[0] == seen[1]
    record = json.loads((tmp_path / "one/runs/demo/provenance/05_expression.json").read_text())
    assert record["hashed"]["checks"] == ["one holds"]
    assert str(tmp_path) not in json.dumps(record["hashed"])
    assert record["hashed"]["modules"]["mvhlib.notebook"] == freshness.code_sha256(
        Path(notebook.__file__))


def test_tissue_stays_out_of_the_figures_folder(tmp_path):
    run = begin(tmp_path)
    run.save_figure(figure(), "map", shows_tissue=True)
    assert not (tmp_path / "figures").exists()
    assert run.path("figures", "05_expression", "map.tissue.png").exists()


@pytest.mark.parametrize("options, problem", [({"width": 5}, "width: is 5 inch"),
                                              ({"size": 5}, "under 6 pt"),
                                              ({"text": "long " * 40}, "is cut off")])
def test_unprintable_figure_is_refused(tmp_path, options, problem):
    with pytest.raises(InputError, match=problem):
        begin(tmp_path).save_figure(figure(**options), "bad")


def test_check_stops_the_notebook(tmp_path):
    with pytest.raises(notebook.CheckFailed, match="rows join: does not hold"):
        begin(tmp_path).check(0, "rows join")


def test_second_process_waits_and_names_the_first(tmp_path):
    lock = tmp_path / "stage.lock"
    code = ("import sys, time; from mvhlib import artifacts\n"
            "with artifacts.lock(sys.argv[1]): print('held', flush=True); time.sleep(1.5)")
    first = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert first.stdout.readline().strip() == b"held"
    said = []
    with artifacts.lock(lock, announce=said.append):
        assert first.wait(timeout=10) == 0
    assert len(said) == 1 and str(first.pid) in said[0]


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = artifacts.write_text(tmp_path / "a.csv", "old")
    with pytest.raises(RuntimeError), artifacts.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.csv"]


def test_what_a_killed_process_left_is_deleted(tmp_path):
    (tmp_path / ".a~k2ll3d.csv").write_text("half")
    (tmp_path / ".a-b~r4nn1n.csv").write_text("another file's")
    artifacts.write_text(tmp_path / "a.csv", "whole")
    assert sorted(os.listdir(tmp_path)) == [".a-b~r4nn1n.csv", "a.csv"]


def test_a_page_that_cannot_be_printed_stops_the_project_and_no_user(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="width"):
        begin(tmp_path).save_figure(figure(width=5), "wide")
    for changed in ({"data": str(tmp_path / "data")}, {"profile": "mine"}):
        run = begin(tmp_path, **changed)
        assert run.save_figure(figure(width=5), "wide").exists()
        assert "note: 05_expression/wide: width" in capsys.readouterr().out


def test_a_notebook_with_nothing_left_to_do_ends_well(tmp_path, capsys):
    run = begin(tmp_path)
    with pytest.raises(SystemExit) as end:
        run.end("No section has an image.")
    assert end.value.code == 0 and "No section has an image." in capsys.readouterr().out
    assert run.path("provenance", "05_expression.json").exists()


def test_points_of_no_category_are_one_entry_and_a_legend_has_an_end():
    import matplotlib.pyplot as plt

    table = pd.DataFrame({"x": range(60), "y": range(60), "who": [None, np.nan] + ["a"] * 58})
    _, ax = plt.subplots()
    plots.scatter(table, "x", "y", "who", ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["not known", "a"]
    _, ax = plt.subplots()
    plots.scatter(table.assign(who=range(60)), "x", "y", "who", ax)
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(entries) == plots.LEGEND_ENTRIES and entries[-1] == "and 33 more"
    plt.close("all")


def test_an_answer_is_written_and_read_back(tmp_path):
    run = begin(tmp_path)
    run.answer("It is 0.31 [0.28, 0.34]\n   over 8 studies.", "Real tissue.")
    found, = answers.of_notebook(run.figures)
    assert (found.found, found.limits) == ("It is 0.31 [0.28, 0.34] over 8 studies.",
                                           "Real tissue.")
    run.finish()
    record = json.loads(run.path("provenance", f"{run.stem}.json").read_text())
    assert any(name.endswith("/answer.md") for name in record["hashed"]["outputs"])


@pytest.mark.parametrize("found, limits", [("", "x"), ("It is nan.", "x"), ("a\n\nb", "x"),
                                           ("x", "  "), ("From -inf to 3.", "x")])
def test_an_answer_without_a_number_is_refused(found, limits):
    with pytest.raises(InputError, match=r"05_a: answer: (found|limits)"):
        answers.Answer("05_a", "", found, limits)


def test_a_notebook_that_ends_early_answers_with_its_reason(tmp_path):
    run = begin(tmp_path)
    with pytest.raises(SystemExit):
        run.end("No section has\n  an image.")
    found, = answers.of_notebook(run.figures)
    assert found.found == "No section has an image." and "Nothing was measured" in found.limits
    record = json.loads(run.path("provenance", f"{run.stem}.json").read_text())
    assert any(name.endswith("/answer.md") for name in record["hashed"]["outputs"])


def test_what_was_made_is_said_by_folder(tmp_path, capsys):
    run = begin(tmp_path)
    for name in "abc":
        run.save_table(pd.DataFrame({"x": [1]}), name)
    run.note(artifacts.write_text(run.path("deep", "er", "file.txt"), "x"))
    run.finish()
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said == ["  figures/demo/05_expression: 3 files, 0 kB",
                    "  runs/demo/deep: 1 file, 0 kB"]


def test_tables_on_screen_have_eight_columns_and_three_digits(tmp_path):
    with pd.option_context("display.max_columns", 20):  # put back what `begin` changes
        begin(tmp_path)
        shown = repr(pd.DataFrame({f"c{k}": [k + 0.123456] for k in range(23)}))
    assert "0.123 " in shown and "0.1235" not in shown and "..." in shown
    assert "c3" in shown and "c4 " not in shown and "c19" in shown
