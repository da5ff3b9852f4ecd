"""Pages whose numbers come from tables, and tables that are older than their code."""

import json

import pytest

from mvhlib import answers, freshness, results

CODE = '''"""A module."""

# A comment.
def f(x):
    """Says what f does,
    on two lines."""
    text = """kept
    too"""
    return x + 1  # one more


class A:
    """An A."""
'''


def test_prose_is_no_code():
    bare = freshness.code_of(CODE)
    assert bare.splitlines() == ["def f(x):", '    text = """kept', '    too"""',
                                 "    return x + 1  # one more", "class A:"]
    assert freshness.code_of(CODE.replace("A comment", "Another").replace("two lines", "2")) == bare
    assert freshness.code_of(CODE.replace("x + 1", "x + 2")) != bare


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A clone with one module, one notebook, and a figure that both drew."""
    monkeypatch.setattr(freshness, "home", lambda: tmp_path)
    freshness.code_sha256.cache_clear()
    (tmp_path / "mvhlib").mkdir()
    (tmp_path / "notebooks").mkdir()
    module = tmp_path / "mvhlib/a.py"
    module.write_text(CODE)
    notebook = tmp_path / "notebooks/05_a.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1"]},
                                              {"cell_type": "markdown", "source": ["Prose."]}]}))
    record = tmp_path / "figures/toy/05_a/map.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({
        "figure": "map", "notebook": "05_a", "provenance": {
            "notebook": freshness.code_sha256(notebook),
            "modules": {"mvhlib.a": freshness.code_sha256(module)}}}))
    freshness.code_sha256.cache_clear()
    return tmp_path


@pytest.mark.parametrize("path, old, new, stale", [
    ("mvhlib/a.py", "A comment", "Another", []),
    ("mvhlib/a.py", "x + 1", "x + 2", ["toy/05_a"]),
    ("notebooks/05_a.ipynb", "Prose", "Better prose", []),
    ("notebooks/05_a.ipynb", "x = 1", "x = 2", ["toy/05_a"])])
def test_a_figure_is_stale_where_its_code_has_changed(house, path, old, new, stale):
    assert freshness.stale(house / "figures") == []
    freshness.code_sha256.cache_clear()
    (house / path).write_text((house / path).read_text().replace(old, new))
    assert freshness.stale(house / "figures") == stale


def test_a_figure_of_a_module_that_is_gone_is_stale(house):
    (house / "mvhlib/a.py").unlink()
    assert freshness.stale(house / "figures") == ["toy/05_a"]


# ---- blocks

TABLE = """encoder,protocol,metric,mean,ci_low,ci_high,control
vit12-dino,loso,pcc,0.123456,0.1,0.2,none
handmade,loso,pcc,0.3,,,none
handmade,loso,pcc,0.001,,,permuted
"""


def page(kind, body, old=""):
    return f"Before.\n<!-- {kind}\n{body}\n-->\n{old}<!-- end -->\nAfter.\n"


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    return tmp_path


BODY = """file: t.csv
where: control == 'none'
sort: mean
columns: {test: protocol, who: encoder, r: "{mean:.3f}", interval: "{ci_low:.1f} to {ci_high:.1f}",
          permuted: mean_beside}
beside: {where: "control == 'permuted'", on: [encoder]}"""


def test_a_table_is_made_from_its_file_and_stays_when_made_again(tables):
    once = results.fill(page("table", BODY, "old\n"), tables, "page.md")
    assert once.split("-->\n")[1].splitlines()[:4] == [
        "| test | who | r | interval | permuted |", "|---|---|---|---|---|",
        "| unseen study | hand-made | 0.300 |  | 0.001 |",
        "| unseen study | ViT12-dino | 0.123 | 0.1 to 0.2 |  |"]
    assert results.fill(once, tables, "page.md") == once
    assert once.startswith("Before.\n") and once.endswith("<!-- end -->\nAfter.\n")


@pytest.mark.parametrize(("made", "shown"), [
    ("nan", ""), ("nan%", ""), ("[nan to nan]", ""), ("0.1 nan to nan", "0.1"), ("nanny", "nanny"),
    ("a | b", "a \\| b"), (float("nan"), "")])
def test_what_is_not_known_is_blank(made, shown):
    assert results._cell(made) == shown


def test_a_sentence_reads_one_row_or_several(tables):
    one = "file: t.csv\nwhere: encoder == 'vit12-dino'\ntext: '{encoder} reaches {mean:.2f}.'"
    assert "-->\nViT12-dino reaches 0.12.\n<!-- end" in results.fill(page("say", one), tables, "p")
    two = """rows:
  a: {file: t.csv, where: "encoder == 'handmade' and control == 'none'"}
  b: {file: t.csv, where: "encoder == 'vit12-dino'"}
text: |
  {a.encoder} {a.mean:.1f},
  {b.encoder} {b.mean:.1f}."""
    assert "-->\nhand-made 0.3, ViT12-dino 0.1.\n" in results.fill(page("say", two), tables, "p")


def test_means_stand_over_their_units(tables):
    (tables / "m.csv").write_text("data,section,held_out,r\na,1,x,0.2\na,2,x,0.4\na,3,y,0.7\n"
                                  "a,4,y,\nb,5,z,0.1\n")
    body = """file: m.csv
means: {value: r, unit: held_out, by: [data]}
columns: {data: data, mean: "{mean:.2f}", over: "{n_units} {unit}", interval: "{ci_high:.2f}"}"""
    made = results.fill(page("table", body), tables, "p").splitlines()
    assert "| a | 0.50 | 2 held_out | 3.04 |" in made  # 0.5 + 12.706 * 0.2
    assert "| b | 0.10 | 1 held_out |  |" in made
    (tables / "m.csv").write_text("data,held_out,r\na,x,0.2\na,x,0.4\na,y,0.7\na,y,\nb,z,0.1\n")
    assert results.fill(page("table", body), tables, "p").splitlines() == made  # rows are sections


def test_an_answer_is_quoted(tables):
    answers.write(answers.Answer("05_a", "", "It is 0.3.", "Why."), tables / "05_a")
    said = results.fill(page("answer", "file: 05_a/answer.md"), tables, "p")
    assert "-->\nIt is 0.3. *Not shown: Why.*\n" in said


@pytest.mark.parametrize("kind, body, said", [
    ("chart", "file: t.csv", "is not a kind of block"),
    ("table", "file: gone.csv\ncolumns: {a: encoder}", "gone.csv"),
    ("table", "file: t.csv\ncolumns: {a: nowhere}", "nowhere"),
    ("table", "file: t.csv\nwhere: mean > 9\ncolumns: {a: encoder}", "selects no row"),
    ("table", "fil: t.csv", "fil"), ("table", "- 1", "is not a mapping"),
    ("say", "file: t.csv\ntext: x", "selects 3 rows"), ("answer", "file: t.csv", "t.csv")])
def test_a_broken_block_is_one_line(tables, kind, body, said, capsys):
    (tables / "page.md").write_text(page(kind, body, "kept\n"))
    assert results.main([str(tables / "page.md")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and "Fix: " in error
    assert "kept" in (tables / "page.md").read_text()
