"""The HTML book: every figure inside its page, both colour schemes, narrow screens."""

import base64
import json
import re
import shutil

import pytest

from mvhlib import answers, book, gallery
from mvhlib.artifacts import InputError

PIXEL = base64.b64encode(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)).decode()


def notebook(title, n_figures):
    output = {"output_type": "display_data", "metadata": {}, "data": {"image/png": PIXEL}}
    table = {"output_type": "execute_result", "metadata": {}, "execution_count": 1,
             "data": {"text/html": "<table><tr><td>0.25</td></tr></table>"}}
    return {"nbformat": 4, "nbformat_minor": 5,
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                        "language": "python"},
                         "language_info": {"name": "python"}},
            "cells": [{"cell_type": "markdown", "id": "title", "metadata": {},
                       "source": [f"# {title}\n", "\n", "**Question** Does <it> work?\n"]},
                      {"cell_type": "code", "id": "draw", "metadata": {}, "source": ["x = 1"],
                       "execution_count": 1, "outputs": [output] * n_figures + [table]}]}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs/toy/notebooks"
    folder.mkdir(parents=True)
    (folder / "01_a.ipynb").write_text(json.dumps(notebook("01 · A", 2)))
    (folder / "04_b.vit-x.ipynb").write_text(json.dumps(notebook("04 · B", 1)))
    return folder.parent


def test_every_figure_and_table_is_inside_its_page(run, tmp_path):
    index, *pages = book.write_book(run, tmp_path / "book")
    assert [page.name for page in pages] == ["01_a.html", "04_b.vit-x.html"]
    for page, n_figures in zip(pages, (2, 1), strict=True):
        text = page.read_text(encoding="utf-8")
        sources = re.findall(r'<img[^>]*src="([^"]{0,30})', text)
        assert len(sources) == n_figures
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert ">0.25<" in text
        assert "prefers-color-scheme: dark" in text and "width=device-width" in text
        assert 'href="index.html"' in text
    text = index.read_text(encoding="utf-8")
    assert 'href="04_b.vit-x.html">04 · B (vit-x)</a>' in text
    assert text.count("data:image/png;base64,") == 2  # the first picture of each
    assert "Does &lt;it&gt; work?" in text


def test_pages_lead_on_and_fold_their_code(run, tmp_path):
    content = notebook("05 · C", 1)
    content["cells"][1]["outputs"].append({
        "output_type": "display_data", "metadata": {},
        "data": {"text/markdown": "**Answer.** It is <0.3>.\n\n**Not shown.** Why."}})
    (run / "notebooks/05_c.ipynb").write_text(json.dumps(content))
    index, *pages = book.write_book(run, tmp_path / "book")
    first, middle, last = (page.read_text(encoding="utf-8") for page in pages)
    assert 'rel="prev"' not in first and first.count('href="04_b.vit-x.html" rel="next"') == 2
    assert 'href="01_a.html" rel="prev"' in middle and 'href="05_c.html" rel="next"' in middle
    assert 'rel="next"' not in last
    folded = re.search(r'<details class="code"><summary>code</summary>(.*?)</details>', first, re.S)
    assert "jp-InputArea" in folded[1] and "jp-OutputArea" not in folded[1]
    assert "<b>It is &lt;0.3&gt;.</b>" in index.read_text(encoding="utf-8")


def test_nothing_run_or_a_broken_notebook_is_one_error(run, tmp_path, capsys):
    with pytest.raises(InputError, match="make figures PROFILE=empty"):
        book.write_book(tmp_path / "empty", tmp_path / "book")
    (run / "notebooks/02_c.ipynb").write_text("{")
    assert book.main([str(run), str(tmp_path / "book")]) == 1
    assert "02_c.ipynb: content" in capsys.readouterr().err
    assert book.main([]) == 2


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_a_page_runs_nothing_whatever_a_name_holds(run, tmp_path):
    content = notebook(EVIL, 1)
    content["cells"][1]["outputs"].append({
        "output_type": "display_data", "metadata": {}, "data": {"text/html": EVIL}})
    (run / "notebooks/05_c.<b>.ipynb").write_text(json.dumps(content))
    pages = book.write_book(run, tmp_path / "book")
    for page in pages:
        head, _, body = page.read_text(encoding="utf-8").partition("</head>")
        assert "<script" not in head and "<link" not in head
        policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', head)
        assert len(policy) == 1 and policy[0].startswith("default-src 'none'; img-src data:;")
        assert "script-src" not in policy[0]
        assert head.index("Security-Policy") < head.index("<style")
    assert "<script" not in pages[0].read_text() and "&lt;script&gt;" in pages[0].read_text()


@pytest.mark.parametrize("text", [
    "", "{", "[1]", "5", '{"cells": 5}', '{"cells": [1]}', '{"nbformat": 4}', "[" * 100_000,
    '{"cells": [{"cell_type": "code"}], "nbformat": 4, "nbformat_minor": 5, "metadata": 3}'])
def test_a_broken_notebook_is_one_line(run, tmp_path, text, capsys):
    (run / "notebooks/02_c.ipynb").write_text(text)
    (run / "notebooks/._01_a.ipynb").write_bytes(b"\0")
    assert book.main([str(run), str(tmp_path / "book")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "02_c.ipynb: content" in said[-1] and "Traceback" not in said


# ---- the gallery


@pytest.fixture
def figures(tmp_path):
    folder = tmp_path / "figures/toy/05_a"
    folder.mkdir(parents=True)
    record = {"figure": "f g", "synthetic": True, "caption": f"p < 0.05 {EVIL}\nnext"}
    (folder / "f g.json").write_text(json.dumps(record))
    (folder / "t.csv").write_text("a\n1\n")
    (folder / "answer.md").write_text(f"**Answer.** It is 0.3. {EVIL}\n\n**Not shown.** Why.\n")
    (folder / "._t.csv").write_bytes(b"\0")
    (tmp_path / "runs/toy/provenance").mkdir(parents=True)
    (tmp_path / "runs/toy/provenance/05_a.json").write_text(
        json.dumps({"hashed": {
            "modules": {}, "notebook": "", "inputs": {}, "outputs": dict.fromkeys(
                ["runs/toy/figures/05_a/map.tissue.png", "figures/toy/05_a/f g.json",
                 "figures/toy/05_a/t.csv"], "")}}))
    return tmp_path


def test_a_gallery_shows_captions_as_text(figures):
    page = figures / "figures/toy/FIGURES.md"
    assert gallery.main([str(figures / "runs/toy"), str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "**f g** (synthetic data). p < 0.05 &lt;script>alert(1)&lt;/script>&lt;img src=x" in text
    assert "> It is 0.3. &lt;script>" in text and "*Not shown: Why.*" in text
    assert "![f g](05_a/f%20g.png)" in text and "Tables: [t.csv](05_a/t.csv)\n" in text
    assert "- `runs/toy/figures/05_a/map.tissue.png`" in text


def test_what_an_older_version_left_is_not_shown(figures):
    folder = figures / "figures/toy/05_a"
    shutil.copy(folder / "t.csv", folder / "old.csv")
    record = json.loads((folder / "f g.json").read_text())
    (folder / "old_map.json").write_text(json.dumps(record | {"figure": "old_map"}))
    page = figures / "figures/toy/FIGURES.md"
    assert "old" not in gallery.gallery(figures / "runs/toy", page)
    (figures / "runs/toy/provenance/05_a.json").unlink()  # nobody says what the run made
    text = gallery.gallery(figures / "runs/toy", page)
    assert "**old_map**" in text and "[old.csv]" in text and "**f g**" in text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"figure": 5}', '{"figure": "other", '
                                  '"synthetic": true, "caption": ""}', "[" * 100_000])
@pytest.mark.parametrize("name", ["figures/toy/05_a/f g.json", "runs/toy/provenance/05_a.json"])
def test_a_broken_record_is_one_line(figures, name, text, capsys):
    (figures / name).write_text(text)
    page = figures / "figures/toy/FIGURES.md"
    assert gallery.main([str(figures / "runs/toy"), str(page)]) == 1 and not page.exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name in said and "Fix: " in said


def test_the_console_says_what_a_run_found(figures, capsys):
    for name in ("00_t", "01_c", "02_t", "03_p", "05_expression", "14_leaderboard"):
        answers.write(answers.Answer(name, "", f"{name} found {'much ' * 40}.", "x"),
                      figures / "figures/toy" / name)
    assert gallery.main([str(figures / "runs/toy"), str(figures / "figures/toy/FIGURES.md")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:-1] if not line.startswith(" ")] == [
        "00_t", "01_c", "02_t", "05_expression", "14_leaderboard"]
    assert all(len(line) <= 98 for line in said[:-1]) and "start with FIGURES.md" in said[-1]
