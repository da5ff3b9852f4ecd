"""The HTML book: every figure inside its page, both colour schemes, narrow screens."""

import base64
import json
import re

import pytest

from mvhlib import book
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
    assert "Does &lt;it&gt; work?" in text


def test_nothing_run_or_a_broken_notebook_is_one_error(run, tmp_path, capsys):
    with pytest.raises(InputError, match="make figures PROFILE=empty"):
        book.write_book(tmp_path / "empty", tmp_path / "book")
    (run / "notebooks/02_c.ipynb").write_text("{")
    assert book.main([str(run), str(tmp_path / "book")]) == 1
    assert "02_c.ipynb: content" in capsys.readouterr().err
    assert book.main([]) == 2
