"""Change one valid file a little, as disks, spreadsheets, transfers and strangers do.

`mutate` draws one change from those that fit the kind of a file. Everything random comes from the
generator that is handed in, so that a mutant can be made again from its seed.
"""

import copy
import csv
import gzip
import io
import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class Unfit(Exception):
    """The change has nothing to work on in this file."""


@dataclass(frozen=True)
class Change:
    """What was done to a file.

    Attributes
    ----------
    words
        Said in the table of failures.
    neutral
        True where no honest reading gives other values than before: the reader may read the same
        or refuse, and other values are a failure.
    """

    words: str
    neutral: bool = False


Mutator = Callable[[Path, np.random.Generator], Change | str]


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of `choices`, which may be of any kind."""
    if not len(choices):
        raise Unfit
    return choices[int(rng.integers(len(choices)))]


def mutate(path: Path, kind: str, rng: np.random.Generator) -> Change:
    """Change the file `path` in place.

    Parameters
    ----------
    path
        A whole file.
    kind
        A key of `KINDS`; files of other kinds get changes of their bytes and their place only.
    rng
        The only source of chance.
    """
    structural = KINDS.get(kind, ())
    for _ in range(50):
        chance = 1.0 if kind == "value" else rng.random()
        family = FILES if chance < 0.08 else BYTES if chance < 0.3 or not structural else structural
        mutator = pick(rng, family)
        before = path.read_bytes()
        try:
            done = mutator(path, rng)
        except Exception:  # Unfit, or what a library says of values that it cannot store
            path.write_bytes(before)
            continue
        change = Change(done) if isinstance(done, str) else done
        return Change(f"{path.name}: {mutator.__name__}: {change.words}", change.neutral)
    return Change(f"{path.name}: nothing fits", neutral=True)


# --------------------------------------------------------------------------------------------
# bytes


def _span(data: bytes, rng: np.random.Generator, longest: int = 64) -> tuple[int, int]:
    if not data:
        raise Unfit
    start = int(rng.integers(len(data)))
    return start, min(len(data), start + 1 + int(rng.integers(longest)))


def flip_bit(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    where, bit = _span(data, rng)[0], int(rng.integers(8))
    data[where] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {where}"


def random_bytes(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    start, end = _span(data, rng)
    data[start:end] = rng.bytes(end - start)
    path.write_bytes(data)
    return f"{start} to {end}"


def fill(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    start, end = _span(data, rng, 512)
    value = pick(rng, [0, 255])
    data[start:end] = bytes([value]) * (end - start)
    path.write_bytes(data)
    return f"{value} from {start} to {end}"


def truncate(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    if not data:
        raise Unfit
    kept = pick(rng, [int(rng.integers(len(data))), len(data) // 2, len(data) * 9 // 10,
                      len(data) - 1, min(len(data) - 1, 20)])
    path.write_bytes(data[:kept])
    return f"{kept} of {len(data)} bytes are left"


def insert_bytes(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    start, end = _span(data, rng)
    path.write_bytes(data[:start] + rng.bytes(end - start) + data[start:])
    return f"{end - start} bytes at {start}"


def delete_block(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    start, end = _span(data, rng)
    path.write_bytes(data[:start] + data[end:])
    return f"{start} to {end}"


def swap_blocks(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    if len(data) < 16:
        raise Unfit
    size = min(32, len(data) // 4)
    a, b = sorted(int(v) for v in rng.integers(0, len(data) - 2 * size + 1, 2))
    b = max(b, a + size)
    data[a:a + size], data[b:b + size] = data[b:b + size], data[a:a + size]
    path.write_bytes(data)
    return f"{size} bytes at {a} and {b}"


def append_bytes(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    more = pick(rng, [rng.bytes(16), b"\0" * 64, b"\n\n\n", data[:200]])
    path.write_bytes(data + more)
    return f"{len(more)} bytes behind the end"


BYTES: list[Mutator] = [flip_bit, flip_bit, random_bytes, fill, truncate, truncate, insert_bytes,
                        delete_block, swap_blocks, append_bytes]


# --------------------------------------------------------------------------------------------
# the file as a whole


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def absent(path: Path, rng: np.random.Generator) -> str:
    _remove(path)
    return "is not there"


def directory(path: Path, rng: np.random.Generator) -> str:
    _remove(path)
    path.mkdir()
    return "is a directory"


def dangling_link(path: Path, rng: np.random.Generator) -> str:
    _remove(path)
    path.symlink_to("/nowhere" + path.suffix)
    return "leads nowhere"


def looping_link(path: Path, rng: np.random.Generator) -> str:
    _remove(path)
    path.symlink_to(path.name)
    return "leads to itself"


def empty(path: Path, rng: np.random.Generator) -> str:
    path.write_bytes(b"")
    return "0 bytes"


def good_link(path: Path, rng: np.random.Generator) -> Change:
    elsewhere = path.parent / f".{path.name}.elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)
    return Change("a link to the same bytes", neutral=True)


def mislabelled_gzip(path: Path, rng: np.random.Generator) -> Change:
    """Compressed under a plain name, or plain under the name of a compressed file."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.decompress(data))
        return Change("is no gzip", neutral=True)
    path.write_bytes(gzip.compress(data, mtime=0))
    return Change("is gzip", neutral=True)


def mac_shadow(path: Path, rng: np.random.Generator) -> Change:
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        \0\2\0\0\0")
    (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\0\0")
    return Change("a file ._ of macOS stands beside", neutral=True)


def unreadable_kind(path: Path, rng: np.random.Generator) -> str:
    content = pick(rng, [b"PK\3\4", b"%PDF-1.7\n", b"<!doctype html><html>404</html>\n",
                         b"\x89PNG\r\n\x1a\n", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs."
                         b"github.com/spec/v1\noid sha256:00\nsize 1\n", b"\0" * 4096, b"{}", b"5"])
    path.write_bytes(content)
    return f"begins with {content[:12]!r}"


FILES: list[Mutator] = [absent, directory, dangling_link, looping_link, empty, good_link,
                        mislabelled_gzip, mac_shadow, unreadable_kind]


# --------------------------------------------------------------------------------------------
# tables of text

CELLS = ["", " ", "NaN", "inf", "-inf", "-1", "0", "1e308", "-1e308", "1e-320", "0,5", "1,234",
         "text", "../x", "a/b", "=1+1", "é", "\0", "x" * 140_000, "NA", "0.9", "007", " x ",
         "1e400", "99999999999999999999", "True", "2020-99-99", "a\nb", "\u202ex", "2.5", "1e9",
         "#N/A", "<b>x</b>", "-", "9" * 5000]


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _put_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _rows(path: Path) -> tuple[list[list[str]], str]:
    text = _text(path)
    first = text.partition("\n")[0]
    separator = max(",\t;", key=first.count)
    rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    if len(rows) < 2:
        raise Unfit
    return rows, separator


def _joined(rows: list[list[str]], separator: str, newline: str = "\n", quote: bool = False) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator=newline,
               quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL).writerows(rows)
    return stream.getvalue()


def _write_rows(path: Path, rows: list[list[str]], separator: str, **options: Any) -> None:
    _put_bytes(path, _joined(rows, separator, **options).encode("utf-8"))


def _has_header(rows: list[list[str]]) -> bool:
    def is_number(text: str) -> bool:
        return re.fullmatch(r"[-+.\deE]+", text) is not None

    return not any(is_number(cell) for cell in rows[0])


def _some_cell(rows: list[list[str]], rng: np.random.Generator) -> tuple[int, int]:
    row = int(rng.integers(1, len(rows)))
    if not rows[row]:
        raise Unfit
    return row, int(rng.integers(len(rows[row])))


def one_cell(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row, column = _some_cell(rows, rng)
    rows[row][column] = pick(rng, CELLS)
    _write_rows(path, rows, separator)
    return f"row {row + 1}, column {column + 1} is {rows[row][column][:20]!r}"


def one_column(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    column, value = int(rng.integers(len(rows[0]))), pick(rng, CELLS)
    for row in rows[1:]:
        if column < len(row):
            row[column] = value
    _write_rows(path, rows, separator)
    return f"column {column + 1} is {value[:20]!r} throughout"


def copied_cell(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row, column = _some_cell(rows, rng)
    other = int(rng.integers(1, len(rows)))
    if column >= len(rows[other]):
        raise Unfit
    rows[row][column] = rows[other][column]
    _write_rows(path, rows, separator)
    return f"column {column + 1} of row {row + 1} is that of row {other + 1}"


def padded_cell(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row, column = _some_cell(rows, rng)
    rows[row][column] = pick(rng, [" {}", "{} ", "{}\u00a0", "\t{}", "'{}"]).format(
        rows[row][column])
    _write_rows(path, rows, separator)
    return f"row {row + 1}, column {column + 1} is {rows[row][column]!r}"


def row_dropped(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row = int(rng.integers(len(rows)))
    del rows[row]
    _write_rows(path, rows, separator)
    return f"row {row + 1}"


def rows_all_dropped(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    kept = int(rng.integers(1, 3))
    _write_rows(path, rows[:kept], separator)
    return f"{kept} rows are left"


def row_doubled(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row = int(rng.integers(len(rows)))
    rows.insert(int(rng.integers(1, len(rows) + 1)), rows[row])
    _write_rows(path, rows, separator)
    return f"row {row + 1}"


def row_longer(path: Path, rng: np.random.Generator) -> Change:
    rows, separator = _rows(path)
    row, cell = int(rng.integers(1, len(rows))), pick(rng, ["7", "x", ""])
    rows[row] = [*rows[row], cell]
    _write_rows(path, rows, separator)
    return Change(f"row {row + 1} by {cell!r}", neutral=True)


def rows_longer(path: Path, rng: np.random.Generator) -> Change:
    rows, separator = _rows(path)
    if not rows[0][0]:
        raise Unfit  # a table with row names: its header has a blank already
    cell = pick(rng, ["7", "x"])
    _write_rows(path, [rows[0], *([*row, cell] for row in rows[1:])], separator)
    return Change(f"every row by {cell!r}", neutral=True)


def row_shorter(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row = int(rng.integers(1, len(rows)))
    rows[row] = rows[row][:-1 - int(rng.integers(2))]
    _write_rows(path, rows, separator)
    return f"row {row + 1}"


def blank_row(path: Path, rng: np.random.Generator) -> Change:
    rows, separator = _rows(path)
    row = int(rng.integers(1, len(rows) + 1))
    rows.insert(row, pick(rng, [[], [""] * len(rows[0]), [" "]]))
    _write_rows(path, rows, separator)
    return Change(f"row {row + 1} is {rows[row]}", neutral=True)


def header_dropped(path: Path, rng: np.random.Generator) -> Change:
    rows, separator = _rows(path)
    if not _has_header(rows):
        raise Unfit
    _write_rows(path, rows[1:], separator)
    return Change("the first row is data", neutral=True)


def header_changed(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    column = int(rng.integers(len(rows[0])))
    old = rows[0][column]
    rows[0][column] = pick(rng, ["", " ", old.upper(), old + " ", "x", "é", "Unnamed: 0", "7",
                                 pick(rng, rows[0])])
    if rows[0][column] == old:
        raise Unfit
    _write_rows(path, rows, separator)
    return f"{old!r} is {rows[0][column]!r}"


def column_dropped(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    column = int(rng.integers(len(rows[0])))
    _write_rows(path, [[*row[:column], *row[column + 1:]] for row in rows], separator)
    return f"{rows[0][column]!r}"


def column_doubled(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    column = int(rng.integers(len(rows[0])))
    other = int(rng.integers(len(rows[0])))
    _write_rows(path, [[*row, row[other if number else column] if other < len(row) else ""]
                       for number, row in enumerate(rows)], separator)
    return f"{rows[0][column]!r}, with the values of column {other + 1}"


def columns_turned(path: Path, rng: np.random.Generator) -> Change:
    rows, separator = _rows(path)
    if not _has_header(rows) or not rows[0][0] or len({len(row) for row in rows}) > 1:
        raise Unfit
    order = rng.permutation(len(rows[0]))
    _write_rows(path, [[row[i] for i in order] for row in rows], separator)
    return Change("columns in another order")


def written_otherwise(path: Path, rng: np.random.Generator) -> Change:
    """The same table as another program writes it."""
    rows, separator = _rows(path)
    text = _text(path)
    how = pick(rng, ["BOM", "UTF-16", "UTF-16 without BOM", "CRLF", "CR", "quotes", "semicolons",
                     "tabs", "row names of R", "blank end", "no newline at the end", "UTF-32"])
    if how in ("semicolons", "tabs") and separator != ",":
        raise Unfit
    if how == "row names of R":
        if not _has_header(rows) or not rows[0][0]:
            raise Unfit
        rows = [rows[0], *([str(n), *row] for n, row in enumerate(rows[1:], 1))]
        quoted = pick(rng, [True, False])
        _write_rows(path, rows if pick(rng, [True, False]) else [["", *rows[0]], *rows[1:]],
                    separator, quote=quoted)
        return Change(how, neutral=True)
    data = {"BOM": lambda: text.encode("utf-8-sig"), "UTF-16": lambda: text.encode("utf-16"),
            "UTF-16 without BOM": lambda: text.encode("utf-16-le"),
            "UTF-32": lambda: text.encode("utf-32"),
            "CRLF": lambda: text.replace("\n", "\r\n").encode(),
            "CR": lambda: text.replace("\n", "\r").encode(),
            "quotes": lambda: _joined(rows, separator, quote=True).encode(),
            "semicolons": lambda: _joined(rows, ";").encode(),
            "tabs": lambda: _joined(rows, "\t").encode(),
            "blank end": lambda: (text + "\n\n  \n").encode(),
            "no newline at the end": lambda: text.rstrip("\n").encode()}[how]()
    _put_bytes(path, data)
    return Change(how, neutral=True)


def decimal_commas(path: Path, rng: np.random.Generator) -> Change:
    rows, separator = _rows(path)
    if separator != ",":
        raise Unfit
    turned = [rows[0], *([re.sub(r"^(-?\d+)\.(\d+)$", r"\1,\2", cell) for cell in row]
                         for row in rows[1:])]
    _put_bytes(path, _joined(turned, ";").encode())
    return Change("semicolons and decimal commas", neutral=True)


def foreign_text(path: Path, rng: np.random.Generator) -> str:
    rows, separator = _rows(path)
    row, column = _some_cell(rows, rng)
    rows[row][column] += pick(rng, ["é", "ß", "µ", "Ω"])
    encoding = pick(rng, ["latin-1", "cp1252", "utf-8", "shift-jis", "utf-16"])
    _put_bytes(path, _joined(rows, separator).encode(encoding, errors="replace"))
    return f"row {row + 1}, column {column + 1} in {encoding}"


def open_quote(path: Path, rng: np.random.Generator) -> str:
    lines = _text(path).splitlines(keepends=True)
    line = int(rng.integers(len(lines)))
    at = pick(rng, [0, 3])
    lines[line] = lines[line][:at] + '"' + lines[line][at:]
    _put_bytes(path, "".join(lines).encode())
    return f"line {line + 1}"


def remark(path: Path, rng: np.random.Generator) -> str:
    words = pick(rng, ["# made by hand\n", "sep=,\n", "\n", "Table 1. Patients\n\n"])
    _put_bytes(path, (words + _text(path)).encode())
    return f"{words!r} above the table"


TABLE: list[Mutator] = [
    one_cell, one_cell, one_cell, one_cell, one_cell, one_column, one_column, copied_cell,
    copied_cell, padded_cell, row_dropped, rows_all_dropped, row_doubled, row_longer, rows_longer,
    row_shorter, blank_row, header_dropped, header_changed, column_dropped, column_doubled,
    columns_turned, written_otherwise, written_otherwise, decimal_commas, foreign_text, open_quote,
    remark]


# --------------------------------------------------------------------------------------------
# json and yaml

VALUES = [None, True, False, 0, 5, -1, 0.0, 0.5, -2.5, float("nan"), float("inf"), 1e308, "", "x",
          " ", "../x", "é", "a\nb", [], {}, [1], ["a"], [[]], [None], {"a": 1}, {"": {}}, "5",
          10 ** 30, "<script>alert(1)</script>", "no", "a/b", "-rf", "..", "x" * 5000, {"0": []},
          [float("nan")], 2 ** 63, -0.0, "\0"]


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(
        tree, list) else ()
    for key, value in items:
        found += _places(value, (*path, key))
    return found


def _holder(tree: Any, path: tuple) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def _changed_tree(tree: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """One value replaced, or one key dropped, renamed, moved or added."""
    tree = copy.deepcopy(tree)
    path = pick(rng, _places(tree))
    words = "/".join(map(str, path)) or "everything"
    if not path:
        return pick(rng, VALUES), f"{words} is replaced"
    holder, key = _holder(tree, path), path[-1]
    how = pick(rng, ["value", "value", "value", "drop", "rename", "add", "double"])
    if how == "value":
        holder[key] = pick(rng, VALUES)
        return tree, f"{words} is {str(holder[key])[:20]!r}"
    if how == "drop":
        del holder[key]
        return tree, f"{words} is gone"
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]) if how == "double" else pick(rng, VALUES))
        return tree, f"something stands before {words}"
    if how == "double":
        other = pick(rng, list(holder))
        holder[key] = copy.deepcopy(holder[other])
        return tree, f"{words} is {other}"
    name = pick(rng, [f"{key}s", str(key)[:-1], "x", "../x", "", "-rf", "..", str(key).upper(),
                      f" {key}"])
    if how == "rename":
        holder[name] = holder.pop(key)
        return tree, f"{words} is called {name!r}"
    holder[name] = pick(rng, VALUES)
    return tree, f"{name!r} beside {words}"


def json_tree(path: Path, rng: np.random.Generator) -> str:
    tree, words = _changed_tree(json.loads(path.read_text(encoding="utf-8")), rng)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return words


def json_text(path: Path, rng: np.random.Generator) -> str:
    text = path.read_text(encoding="utf-8")
    how = pick(rng, ["deep", "deep", "BOM", "UTF-16", "latin-1", "comma", "double", "comment",
                     "two", "digits", "escape"])
    key = pick(rng, re.findall(r'"([A-Za-z_]+)"\s*:', text) or ["a"])
    data = {"deep": ("[" * 100_000).encode(),
            "BOM": text.encode("utf-8-sig"), "UTF-16": text.encode("utf-16"),
            "latin-1": text.replace("a", "é", 1).encode("latin-1", errors="replace"),
            "comma": re.sub(r"([}\]])\s*$", r",\1", text).encode(),
            "double": re.sub(r"^\s*{", f'{{"{key}": 5, ', text).encode(),
            "comment": ("// made by hand\n" + text).encode(), "two": (text + text).encode(),
            "digits": re.sub(r"\d+", "9" * 6000, text, count=1).encode(),
            "escape": text.replace('"', '"\\ud800', 1).encode()}[how]
    if how == "deep" and rng.random() < 0.5:
        deep = '{"a":' * 5000 + "1" + "}" * 5000
        data = re.sub(r":\s*[^,{}\[\]]+", lambda _: f": {deep}", text, count=1).encode()
    path.write_bytes(data)
    return how


def yaml_tree(path: Path, rng: np.random.Generator) -> str:
    import yaml

    tree, words = _changed_tree(yaml.safe_load(path.read_text(encoding="utf-8")), rng)
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return words


def yaml_text(path: Path, rng: np.random.Generator) -> str:
    text = path.read_text(encoding="utf-8")
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n"
                                           for n in range(1, 30))
    key = pick(rng, re.findall(r"^(\w+):", text, re.MULTILINE) or ["a"])
    lines = {"tab": f"{key}:\n\tb: 1\n", "unclosed": f"{key}: [1, 2\n", "tag": f"{key}: "
             "!!python/object/apply:os.system ['true']\n", "int key": "1: 2\n", "yes": "yes: 1\n",
             "date": "2020-01-01: 1\n", "bad date": f"{key}: 2020-99-99\n", "two": "---\nb: 2\n",
             "digits": f"{key}: {'9' * 6000}\n", "list key": "? [a, b]\n: 1\n", "null": "~: 1\n",
             "alias": f"{key}: &a [*a]\n", "unknown alias": f"{key}: *b\n", "merge": "<<: 5\n",
             "sexagesimal": f"{key}: 1:30\n", "octal": f"{key}: 010\n", "nan": f"{key}: .nan\n",
             "twice": f"{key}: 5\n", "dict key": "? {a: b}\n: 1\n", "colon": f"{key}: a: b\n",
             "binary": f"{key}: !!binary aGk=\n", "set": f"{key}: !!set {{a, b}}\n"}
    how = pick(rng, [*lines, "deep", "UTF-16", "latin-1", "laughs", "number", "BOM", "nul"])
    if how in lines:
        data = (text + lines[how] if rng.random() < 0.7 else lines[how]).encode()
    else:
        data = {"deep": b"[" * 5000, "UTF-16": text.encode("utf-16"),
                "latin-1": (text + "# ").encode() + b"\xe9\n", "laughs": (text + laughs).encode(),
                "number": b"5\n", "BOM": text.encode("utf-8-sig"),
                "nul": text.encode() + b"\0"}[how]
    path.write_bytes(data)
    return how


# --------------------------------------------------------------------------------------------
# h5


def _h5_names(stream: Any, kind: type | tuple | None = None) -> list[str]:
    """Paths of the objects below the root, links that lead nowhere left out."""
    names: list[str] = []
    stream.visititems(lambda name, node: names.append(name)
                      if kind is None or isinstance(node, kind) else None)
    return names


def _h5_replace(stream: Any, name: str, value: Any, keep_attrs: bool = True, **options) -> None:
    attrs = dict(stream[name].attrs)
    del stream[name]
    node = stream.create_dataset(name, data=value, **options) if value is not None else (
        stream.create_dataset(name, **options))
    if keep_attrs:
        for key, attr in attrs.items():
            node.attrs[key] = attr


def _as_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iufb" or not values.size:
        raise Unfit
    return values


def h5_values(path: Path, rng: np.random.Generator) -> str:
    """Other values, shape or type in one dataset."""
    import h5py

    with h5py.File(path, "r+") as stream:
        name = pick(rng, _h5_names(stream, h5py.Dataset))
        values = stream[name][()]
        values = np.asarray(values)
        how = pick(rng, list(_H5_VALUES))
        changed = _H5_VALUES[how](values, rng)
        _h5_replace(stream, name, changed, keep_attrs=rng.random() < 0.9)
    return f"{name}: {how}"


def _one(values: np.ndarray, rng: np.random.Generator, value: Any, dtype: Any = None) -> np.ndarray:
    values = _as_numbers(values).astype(dtype or values.dtype)
    flat = values.reshape(-1)
    flat[int(rng.integers(flat.size))] = value
    return flat.reshape(values.shape)


def _strings(values: np.ndarray, change: Callable[[list[bytes]], list[bytes]]) -> np.ndarray:
    if values.dtype.kind not in "SO" or not values.size:
        raise Unfit
    flat = [v if isinstance(v, bytes) else str(v).encode() for v in values.reshape(-1).tolist()]
    changed = np.array(change(flat), dtype=object)
    longest = max(len(v) for v in changed.tolist())
    return changed.astype(f"S{max(1, longest)}").reshape(values.shape)


def _first_string(value: bytes) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda values, rng: _strings(values, lambda flat: [value, *flat[1:]])


def _needs_rows(values: np.ndarray) -> np.ndarray:
    if not values.ndim or not len(values):
        raise Unfit
    return values


_H5_VALUES: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "one NaN": lambda v, rng: _one(v, rng, np.nan, float),
    "one inf": lambda v, rng: _one(v, rng, np.inf, float),
    "one -1": lambda v, rng: _one(v, rng, -1, np.int64 if v.dtype.kind in "ub" else None),
    "one 2**40": lambda v, rng: _one(v, rng, 2.0 ** 40 if v.dtype.kind == "f" else 2 ** 40,
                                     None if v.dtype.kind == "f" else np.int64),
    "one 0.5": lambda v, rng: _one(v, rng, 0.5, float),
    "one 0": lambda v, rng: _one(v, rng, 0),
    "one 1e300": lambda v, rng: _one(v, rng, 1e300, float),
    "all NaN": lambda v, rng: np.full(v.shape, np.nan),
    "all 0": lambda v, rng: np.zeros_like(_as_numbers(v)),
    "text": lambda v, rng: np.full(v.shape, b"abc"),
    "numbers": lambda v, rng: np.ones(v.shape),
    "float": lambda v, rng: _as_numbers(v).astype(float),
    "int8": lambda v, rng: _as_numbers(v).astype(np.int8),
    "uint64": lambda v, rng: _as_numbers(v).astype(np.uint64),
    "complex": lambda v, rng: _as_numbers(v).astype(complex),
    "bool": lambda v, rng: _as_numbers(v).astype(bool),
    "records": lambda v, rng: np.zeros(v.shape, [("a", "i4"), ("b", "f4")]),
    "scalar": lambda v, rng: 3,
    "text scalar": lambda v, rng: "x",
    "empty": lambda v, rng: _needs_rows(v)[:0],
    "one row less": lambda v, rng: _needs_rows(v)[:-1],
    "one row more": lambda v, rng: np.concatenate([_needs_rows(v), v[:1]]),
    "first row twice": lambda v, rng: np.concatenate([_needs_rows(v)[:1], v[:1], v[2:]]),
    "turned": lambda v, rng: _needs_rows(v).T.copy() if v.ndim > 1 else v[::-1].copy(),
    "one dimension more": lambda v, rng: v[None],
    "two dimensions more": lambda v, rng: v[..., None, None],
    "flat": lambda v, rng: v.reshape(-1) if v.ndim > 1 else _needs_rows(v).reshape(1, -1),
    "one column more": lambda v, rng: np.concatenate([v, v[:, :1]], 1) if v.ndim > 1
    else _needs_rows(v[:0]),
    "first blank": _first_string(b""), "first spaces": _first_string(b"  "),
    "first not UTF-8": _first_string(b"\xff\xfe"), "first with a slash": _first_string(b"../x"),
    "first with a line break": _first_string(b"a\nb"), "first with NUL": _first_string(b"a\0b"),
    "first two alike": lambda v, rng: _strings(v, lambda flat: [flat[0], flat[0], *flat[2:]][
        :len(flat)]),
    "all alike": lambda v, rng: _strings(v, lambda flat: [flat[0]] * len(flat)),
}


def h5_object(path: Path, rng: np.random.Generator) -> str | Change:
    """An object gone, of the other kind, or behind a link."""
    import h5py

    with h5py.File(path, "r+") as stream:
        name = pick(rng, _h5_names(stream))
        node = stream[name]
        is_group = isinstance(node, h5py.Group)
        how = pick(rng, ["gone", "gone", "group", "dataset", "dangling", "loop", "external",
                         "external nowhere", "huge", "huge", "renamed", "type", "empty kind"])
        if how == "group":
            if is_group:
                raise Unfit
            del stream[name]
            stream.create_group(name)
        elif how == "dataset":
            del stream[name]
            stream[name] = np.arange(3)
        elif how == "dangling":
            del stream[name]
            stream[name] = h5py.SoftLink("/no/such/thing")
        elif how == "loop":
            del stream[name]
            stream[name] = h5py.SoftLink("/" + name)
        elif how == "external nowhere":
            del stream[name]
            stream[name] = h5py.ExternalLink("/nowhere.h5", "/x")
        elif how == "external":
            secret = path.parent.parent / "secret.h5"
            with h5py.File(secret, "w") as other:
                if is_group:
                    stream.copy(name, other, "x")
                else:
                    values = np.asarray(node[()])
                    other["x"] = values[::-1] if values.ndim else values
                    for key, value in node.attrs.items():
                        other["x"].attrs[key] = value
            del stream[name]
            stream[name] = h5py.ExternalLink(str(secret), "/x")
            return Change(f"{name} is read from another file", neutral=True)
        elif how == "huge":
            if is_group or node.dtype.kind == "O":
                raise Unfit
            shape = (pick(rng, [10 ** 8, 10 ** 9, 2 ** 40]), *node.shape[1:])
            chunk = (min(shape[0], 1000), *(max(1, min(side, 8)) for side in shape[1:]))
            _h5_replace(stream, name, None, shape=shape, dtype=node.dtype, chunks=chunk)
        elif how == "renamed":
            stream.move(name, name + "_x")
        elif how == "type":
            dtype = None if is_group else node.dtype
            if dtype is None:
                raise Unfit
            _h5_replace(stream, name, None, dtype=h5py.ref_dtype, shape=node.shape)
        else:
            if is_group:
                raise Unfit
            _h5_replace(stream, name, h5py.Empty("f4"))
        if how == "gone":
            del stream[name]
    return f"{name}: {how}"


def h5_attribute(path: Path, rng: np.random.Generator) -> str:
    """An attribute gone, or of another value."""
    import h5py

    values = [np.nan, -1.0, 0.0, np.inf, 1e300, "x", "", np.bytes_(b"\xff\xfe"), 10 ** 12, -5,
              np.array([1.0, 2.0]), np.array([], float), "NaN", "../x", "a\nb", True, 0.5,
              h5py.Empty("f4"), np.array(["a", "b"], "S"), np.void(b"abc"), 1e-300, "0,5"]
    with h5py.File(path, "r+") as stream:
        holders = ["/", *_h5_names(stream)]
        pairs = [(name, key) for name in holders for key in stream[name].attrs]
        name, key = pick(rng, pairs)
        if rng.random() < 0.2:
            del stream[name].attrs[key]
            return f"{name}@{key} is gone"
        value = pick(rng, values)
        stream[name].attrs[key] = value
    return f"{name}@{key} is {value!r}"


H5: list[Mutator] = [h5_values, h5_values, h5_values, h5_object, h5_attribute]


# --------------------------------------------------------------------------------------------
# parquet


def parquet_table(path: Path, rng: np.random.Generator) -> str:
    import pandas as pd

    table = pd.read_parquet(path)
    column = pick(rng, list(table.columns))
    row = int(rng.integers(len(table)))
    is_text = not pd.api.types.is_numeric_dtype(table[column])
    how = pick(rng, ["NaN", "inf", "-1", "1e308", "text", "drop", "rename", "empty", "twice",
                     "as text", "all NaN", "blank", "copied", "row", "bytes", "zero"])
    one = {"NaN": np.nan, "inf": np.inf, "-1": -1.0, "1e308": 1e308, "blank": "", "zero": 0}
    if how in one:
        if is_text != (how == "blank") and how != "NaN":
            raise Unfit
        table[column] = table[column].astype(object if is_text else float)
        table.iloc[row, table.columns.get_loc(column)] = one[how]
    elif how == "text":
        table[column] = "abc"
    elif how == "drop":
        table = table.drop(columns=column)
    elif how == "rename":
        table = table.rename(columns={column: column + "s"})
    elif how == "empty":
        table = table.iloc[:0]
    elif how == "twice":
        table = pd.concat([table, table.iloc[:1]])
    elif how == "as text":
        table[column] = table[column].astype(str)
    elif how == "all NaN":
        table[column] = np.nan
    elif how == "copied":
        table.iloc[row, table.columns.get_loc(column)] = table[column].iloc[-1]
    elif how == "row":
        table = table.drop(index=table.index[row])
    else:
        table[column] = [b"\xff"] * len(table)
    table.to_parquet(path)
    return f"{column}: {how}"


# --------------------------------------------------------------------------------------------
# images


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def declared_size(path: Path, rng: np.random.Generator) -> str:
    """The header says another width and height than there are pixels."""
    data = bytearray(path.read_bytes())
    side = pick(rng, [0, 1, 7, 5_000, 20_000, 50_000, 65_500])
    other = pick(rng, [side, side, 1, 100])
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        side = pick(rng, [side, 10 ** 9])
        data[16:24] = struct.pack(">II", side, other)
        data[8:33] = _png_chunk(b"IHDR", bytes(data[16:29]))
    elif data[:2] == b"\xff\xd8":
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            place = data.find(marker)
            if place > 0:
                data[place + 5:place + 9] = struct.pack(">HH", other & 0xFFFF, side & 0xFFFF)
                break
        else:
            raise Unfit
    elif data[:4] in (b"II*\0", b"II+\0"):
        _tiff_tags(data, {256: side, 257: other})
    else:
        raise Unfit
    path.write_bytes(data)
    return f"{side} x {other} px"


def _tiff_entries(data: bytearray) -> list[tuple[int, int, int, int]]:
    """Tag, type, count and place of the value of every entry of the first directory."""
    big = data[2] == 43
    start, = struct.unpack_from("<Q" if big else "<I", data, 8 if big else 4)
    n, = struct.unpack_from("<Q" if big else "<H", data, start)
    found = []
    for i in range(n):
        at = start + (8 + 20 * i if big else 2 + 12 * i)
        tag, kind = struct.unpack_from("<HH", data, at)
        count, = struct.unpack_from("<Q" if big else "<I", data, at + 4)
        found.append((tag, kind, count, at + (12 if big else 8)))
    return found


def _tiff_tags(data: bytearray, values: dict[int, int]) -> None:
    for tag, kind, _, place in _tiff_entries(data):
        if tag in values:
            struct.pack_into({3: "<H", 4: "<I", 16: "<Q"}[kind], data, place,
                             values[tag] & (0xFFFF if kind == 3 else 0xFFFFFFFF))


def tiff_tag(path: Path, rng: np.random.Generator) -> str:
    """One tag of a tiff has another value, type or count."""
    data = bytearray(path.read_bytes())
    if data[:3] not in (b"II*", b"II+"):
        raise Unfit
    tag, kind, _count, place = pick(rng, _tiff_entries(data))
    how = pick(rng, ["value", "value", "type", "count"])
    if how == "value":
        struct.pack_into("<I", data, place, pick(rng, [0, 1, 2, 3, 5, 7, 255, 65_535, 2 ** 31,
                                                       34_712, 33_005]))
    elif how == "type":
        struct.pack_into("<H", data, place - (10 if data[2] == 43 else 6), pick(rng, [0, 2, 5, 99]))
    else:
        struct.pack_into("<I", data, place - (8 if data[2] == 43 else 4),
                         pick(rng, [0, 2, 1000, 2 ** 31 - 1]))
    path.write_bytes(data)
    return f"{how} of tag {tag} ({kind})"


def image_mode(path: Path, rng: np.random.Generator) -> str:
    """Another mode or format of the same picture under the same name."""
    from PIL import Image, ImageCms

    mode = pick(rng, ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"])
    kind = pick(rng, ["PNG", "TIFF", "JPEG", "BMP", "GIF", "WEBP", "JPEG2000", "PPM"])
    with Image.open(path) as image:
        plain = image.convert("RGB")
    if mode == "LAB":
        changed = ImageCms.profileToProfile(plain, ImageCms.createProfile("sRGB"),
                                            ImageCms.createProfile("LAB"), outputMode="LAB")
    elif mode in ("I;16", "I", "F"):
        changed = plain.convert("L").convert("I" if mode == "I;16" else mode).convert(mode)
    else:
        changed = plain.convert(mode)
    stream = io.BytesIO()
    changed.save(stream, format=kind)
    path.write_bytes(stream.getvalue())
    return f"{mode} as {kind}"


def _format(path: Path) -> str:
    return {".jpg": "JPEG", ".png": "PNG"}.get(path.suffix, "TIFF")


def image_size(path: Path, rng: np.random.Generator) -> str:
    """A picture of another size."""
    from PIL import Image

    size = pick(rng, [(1, 1), (1, 3000), (3000, 1), (7, 5), (400, 400)])
    Image.new("RGB", size, "pink").save(path, format=_format(path))
    return f"{size[0]} x {size[1]} px"


def image_remarks(path: Path, rng: np.random.Generator) -> str:
    """Resolution, orientation, colour profile and further frames that make no sense."""
    from PIL import Image

    with Image.open(path) as image:
        plain = image.convert("RGB")
    how = pick(rng, ["dpi", "profile", "exif", "frames", "palette"])
    options: dict[str, Any] = {"format": _format(path)}
    if how == "dpi":
        options["dpi"] = (pick(rng, [1, 72, 96, 1e6, 0.001]),) * 2
    elif how == "profile":
        options["icc_profile"] = b"nonsense" * 20
    elif how == "exif":
        options["exif"] = Image.Exif()
        options["exif"][274] = pick(rng, [0, 3, 6, 99])
    elif how == "frames":
        options |= {"save_all": True, "append_images": [plain.resize((9, 9))]}
    else:
        plain, options = plain.quantize(4), {"format": "PNG", "transparency": 0}
    plain.save(path, **options)
    return how


IMAGE: list[Mutator] = [declared_size, declared_size, tiff_tag, image_mode, image_size,
                        image_remarks]
TIFF: list[Mutator] = [declared_size, tiff_tag, tiff_tag, image_mode, image_size, image_remarks]


# --------------------------------------------------------------------------------------------
# states of torch and safetensors

TENSORS = ["NaN", "shape", "dtype", "empty", "None", "more"]


def _other_tensor(tensor: Any, rng: np.random.Generator) -> tuple[Any, str]:
    import torch

    how = pick(rng, TENSORS)
    if how == "NaN":
        if not tensor.is_floating_point() or not tensor.numel():
            raise Unfit
        tensor = tensor.clone()
        tensor.view(-1)[0] = float(pick(rng, [np.nan, np.inf]))
    elif how == "shape":
        tensor = tensor.reshape(-1).clone() if tensor.ndim > 1 else tensor[None].clone()
    elif how == "dtype":
        tensor = tensor.to(pick(rng, [torch.float64, torch.int64, torch.bool, torch.complex64]))
    elif how == "empty":
        tensor = torch.zeros(0)
    elif how == "more":
        tensor = torch.cat([tensor.reshape(1, -1)] * 2)
    else:
        tensor = None
    return tensor, how


def torch_tree(path: Path, rng: np.random.Generator) -> str:
    """One value or tensor of a saved state is another."""
    import torch

    tree = torch.load(path, weights_only=True, map_location="cpu")
    places = [place for place in _places(_plain_tree(tree)) if place]
    place = pick(rng, places)
    holder, key = _holder(tree, place), place[-1]
    words = "/".join(map(str, place))
    if isinstance(holder[key], torch.Tensor):
        holder[key], how = _other_tensor(holder[key], rng)
    elif rng.random() < 0.25:
        del holder[key]
        how = "gone"
    else:
        holder[key] = pick(rng, VALUES)
        how = str(holder[key])[:20]
    torch.save(tree, path)
    return f"{words}: {how}"


def _plain_tree(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain_tree(value) for key, value in tree.items()}
    return [_plain_tree(value) for value in tree] if isinstance(tree, list) else None


def safetensors_header(path: Path, rng: np.random.Generator) -> str:
    """Another name, type, shape or place of one tensor, or another length of the header."""
    data = path.read_bytes()
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    if rng.random() < 0.15:
        length = pick(rng, [0, size + 1, 2 ** 40, 2 ** 63])
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        return f"header of {length} bytes"
    header, words = _changed_tree(header, rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size:])
    return words


def safetensors_values(path: Path, rng: np.random.Generator) -> str:
    """One tensor has other values, another shape, type or name."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    name = pick(rng, sorted(tensors))
    if rng.random() < 0.2:
        tensors[name + "_x"] = tensors.pop(name)
        how = "renamed"
    else:
        tensors[name], how = _other_tensor(tensors[name], rng)
        if tensors[name] is None:
            del tensors[name]
    save_file(tensors, path, metadata=metadata)
    return f"{name}: {how}"


# --------------------------------------------------------------------------------------------
# lines of text


def line_changed(path: Path, rng: np.random.Generator) -> str:
    lines = _text(path).splitlines(keepends=True)
    if not lines:
        raise Unfit
    line = int(rng.integers(len(lines)))
    how = pick(rng, ["gone", "twice", "blank", "long", "value", "joined"])
    new = {"gone": "", "twice": lines[line] * 2, "blank": "\n", "long": "x" * 200_000 + "\n",
           "value": re.sub(r"[\w.]+", str(pick(rng, CELLS)).replace("\\", ""), lines[line],
                           count=1),
           "joined": lines[line].rstrip("\n")}[how]
    lines[line] = new
    _put_bytes(path, "".join(lines).encode())
    return f"line {line + 1}: {how}"


def text_encoding(path: Path, rng: np.random.Generator) -> Change:
    how = pick(rng, ["utf-8-sig", "utf-16", "utf-32"])
    _put_bytes(path, _text(path).encode(how))
    return Change(how, neutral=True)


#: Kind of a file -> the changes of its structure.
KINDS: dict[str, list[Mutator]] = {
    "csv": TABLE,
    "json": [json_tree, json_tree, json_tree, json_text],
    "yaml": [yaml_tree, yaml_tree, yaml_text], "h5": H5, "parquet": [parquet_table],
    "image": IMAGE, "tiff": TIFF, "torch": [torch_tree],
    "safetensors": [safetensors_header, safetensors_values],
    "text": [line_changed, line_changed, text_encoding],
    "value": [yaml_tree],  # no file at all: what a caller passes, kept as YAML
}
