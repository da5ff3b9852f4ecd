"""Rules that every notebook keeps, read from its file without running it."""

import ast
import json
import re

import pytest

from mvhlib import notebook
from mvhlib.places import home

NOTEBOOKS = sorted((home() / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    return request.param, json.loads(request.param.read_text(encoding="utf-8"))


def code_cells(content):
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_stripped_and_normalised(book):
    path, content = book
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}}
    for cell in code_cells(content):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]+", name) for name in ids)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert path.read_text(encoding="utf-8") == text
    assert len(text) <= 60_000


def test_opens_with_question_parameters_and_begin(book):
    path, content = book
    cells = content["cells"]
    title = source(cells[0])
    assert cells[0]["cell_type"] == "markdown" and title.startswith(f"# {path.stem[:2]} · ")
    for word in ("**Question**", "**In**", "**Out**", "**Cost**", "**Expect**"):
        assert word in title, word
    first, second = code_cells(content)[:2]
    assert first["metadata"].get("tags") == ["parameters"]
    declared = notebook.declared_parameters(source(first))
    assert tuple(declared)[:5] == notebook.COMMON
    for line in source(first).splitlines():
        assert re.search(r"  # \S", line), f"no meaning beside: {line}"
    assert f'notebook.begin("{path.stem}", globals())' in source(second)
    assert "run.finish()" in source(code_cells(content)[-1])


def test_small_cells_with_prose_before_each(book):
    _, content = book
    codes = code_cells(content)
    assert len(codes) <= 25
    for cell in codes:
        assert len(source(cell).splitlines()) <= 25, cell["id"]
        assert max(map(len, source(cell).splitlines())) <= 100, cell["id"]
    for before, cell in zip(content["cells"], content["cells"][1:], strict=False):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", cell["id"]


def test_no_cleverness(book):
    _, content = book
    for cell in code_cells(content):
        tree = ast.parse(source(cell))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.ClassDef), cell["id"]
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 8, cell["id"]
        assert not re.search(r"sys\.path|!pip|%pip|os\.chdir|^\s*[%!]", source(cell), re.M)


def test_a_figure_is_followed_by_what_it_shows_and_a_stage_is_checked(book):
    _, content = book
    cells = content["cells"]
    assert any("run.check(" in source(cell) for cell in code_cells(content))
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code" and "save_figure(" in source(cell):
            assert cells[index + 1]["cell_type"] == "markdown", cell["id"]
