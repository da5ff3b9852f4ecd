"""Pages whose numbers come from tables: blocks between two comments that one command fills again.

``python -m mvhlib.results README.md RESULTS.md`` rewrites what stands between a block's comments,
and nothing else; a test holds that it would change nothing. A block names its kind and, in YAML,
what it shows::

    <!-- table
    file: figures/her2st/05_expression/summary.csv
    where: metric == 'pcc' and program == 'all'
    columns: {encoder: encoder, r: "{mean:.3f}", interval: "{ci_low:.3f} to {ci_high:.3f}"}
    -->
    ...
    <!-- end -->

==========  ===================================================================================
kind        what it shows
==========  ===================================================================================
``table``   `file`'s rows that `where` (a pandas query) leaves, in the order of `sort`, `columns`
            as headings: a column's name, or a format of several. `beside` {where, on} joins rows
            of the same file under names that end in ``_beside``; `means` {value, unit, by} shows
            their means over units (`mvhlib.statistics.unit_table`; rows of a table without
            sections are means over them already); `words` {value: text} says what a cell's
            slug means
``say``     `text`, a format of the one row that `where` leaves; `rows` {name: {file, where}} for
            sentences over several, as ``{name.column:.2f}``
``answer``  the answer of a notebook (`file`: its ``answer.md``)
``stale``   what today's code did not compute below the folder `file`: figures, and steps of a run
==========  ===================================================================================

Columns of encoders are printed as in figures (`mvhlib.plots.label`), protocols in words.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from mvhlib import answers, artifacts, freshness, lineage, parameters, plots, statistics
from mvhlib.artifacts import InputError

BLOCK = re.compile(r"<!-- (?P<kind>\w+)\n(?P<body>.*?)\n?-->\n(?P<old>.*?)<!-- end -->", re.S)
#: Key of a block -> its type, by kind.
KEYS = {
    "table": {"file": "str", "where": "str", "sort": "str", "columns": "dict", "beside": "dict",
              "means": "dict", "words": "dict"},
    "say": {"file": "str", "where": "str", "means": "dict", "text": "str", "rows": "dict"},
    "answer": {"file": "str"},
    "stale": {"file": "str"},
}
#: Columns that hold encoders, or two of them with a minus between.
ENCODERS = ("encoder", "variant", "reference", "comparison")


def fill(text: str, root: Path, where: str) -> str:
    """A page with every block made again.

    Parameters
    ----------
    text
        The page, as Markdown.
    root
        The folder that files of blocks are relative to.
    where
        The page's name, for errors.

    Raises
    ------
    InputError
        If a block is broken, names a file that is not there, or leaves no row.
    """
    return BLOCK.sub(lambda found: _filled(found, root, where), text)


def _filled(found: re.Match, root: Path, where: str) -> str:
    kind, body = found["kind"], found["body"]
    field = f"block {kind!r}"
    if kind not in KEYS:
        raise InputError(where, field, "is not a kind of block", f"use {', '.join(KEYS)}")
    block = parameters.parse_yaml(body, where, field)
    if not isinstance(block, dict):
        raise InputError(where, field, "is not a mapping", "write `file: ...` and what it shows")
    parameters.check(f"{where}: {field}", KEYS[kind], block)
    shown = {"table": _table, "say": _say, "answer": _answer, "stale": _stale}[kind]
    file = block.get("file", "")
    with artifacts.reading(where, f"{field} {file}", "cannot be made", "correct the block"):
        made = shown(block, root)
    return f"<!-- {kind}\n{body}\n-->\n{made.rstrip()}\n<!-- end -->"


def _rows(block: Mapping[str, Any], root: Path) -> pd.DataFrame:
    """The rows that a block means, at least one, with words for encoders and protocols."""
    path = root / block["file"]
    frame = artifacts.read_csv(path)
    where = block.get("where", "")
    rows = frame.query(where) if where else frame
    if beside := block.get("beside"):
        rows = rows.merge(frame.query(beside["where"]), on=list(beside["on"]), how="left",
                          suffixes=("", "_beside"))
    if means := block.get("means"):
        if "section" not in rows:  # each row is a mean over sections already
            rows = rows.assign(section=range(len(rows)))
        rows = statistics.unit_table(rows.dropna(subset=[means["value"]]), means["unit"],
                                     by=means.get("by", []), value=means["value"])
    if rows.empty:
        raise InputError(path, "where", f"{where} selects no row", "correct the block, or make the "
                         "table again")
    if block.get("sort"):
        rows = rows.sort_values(block["sort"], ascending=False, kind="stable")
    rows = rows.copy()
    for column in rows.columns.intersection(ENCODERS):
        rows[column] = rows[column].map(
            lambda names: " less ".join(map(plots.label, str(names).split(" - "))))
    if "protocol" in rows:
        rows["protocol"] = rows["protocol"].map(
            lambda name: plots.PROTOCOLS.get(name, name).replace("\n", " "))
    return rows


def _table(block: Mapping[str, Any], root: Path) -> str:
    rows, columns = _rows(block, root).replace(block.get("words", {})), block["columns"]
    lines = ["| " + " | ".join(map(str, columns)) + " |", "|" + "---|" * len(columns)]
    for row in rows.to_dict("records"):
        cells = (form.format(**row) if "{" in form else row[form] for form in columns.values())
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = "" if pd.isna(value) else str(value)
    return re.sub(r"\[?nan to nan\]?|\bnan\b%?", "", text).replace("|", "\\|").strip()


def _say(block: Mapping[str, Any], root: Path) -> str:
    one = {"": block} if "file" in block else block["rows"]
    found = {}
    for name, each in one.items():
        row = _rows(each, root)
        if len(row) > 1:
            raise InputError(root / each["file"], "where", f"{each.get('where')} selects "
                             f"{len(row)} rows, and a sentence needs one", "narrow `where`")
        found[name] = row.iloc[0].to_dict()
    values = found[""] if "file" in block else {
        name: SimpleNamespace(**row) for name, row in found.items()}
    return " ".join(block["text"].format(**values).split())


def _answer(block: Mapping[str, Any], root: Path) -> str:
    answer = answers.read(root / block["file"])
    return f"{answer.found} *Not shown: {answer.limits}*"


def _stale(block: Mapping[str, Any], root: Path) -> str:
    folder = root / block["file"]
    found = sorted({*freshness.stale(folder), *lineage.stale(folder)})
    if not found:
        return "None: all of it was computed by the code of this version."
    return ", ".join(f"`{name}`" for name in found) + "."


def main(arguments: Sequence[str]) -> int:
    """Command line: the pages; says which changed."""
    if not arguments:
        print("usage: python -m mvhlib.results PAGE [PAGE ...]", file=sys.stderr)
        return 2
    for name in arguments:
        page = Path(name)
        try:
            with artifacts.reading(page, "page", "cannot be read", "name a Markdown page"):
                text = page.read_text(encoding="utf-8")
            filled = fill(text, page.resolve().parent, name)
        except InputError as error:
            print(error, file=sys.stderr)
            return 1
        if filled != text:
            artifacts.write_text(page, filled)
        print(f"{name}: {'written' if filled != text else 'unchanged'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
