"""Tables: what users' and run tables hold is read right, or refused in one line that says where."""

import csv
import gzip
import io
import os
import random
import time

import numpy as np
import pandas as pd
import pytest

from mvhlib import artifacts, tables
from mvhlib.artifacts import InputError

PLAIN = "name,age,note\n007,50,a b\nP2,6.5,\n"


def put(folder, content, name="t.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(read, path, said):
    with pytest.raises(InputError, match=said) as error:
        read(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("content", [
    PLAIN, PLAIN.encode("utf-8-sig"), PLAIN.replace("\n", "\r\n"), PLAIN.replace("\n", "\r"),
    PLAIN.replace(",", ";").replace("6.5", "6,5"), PLAIN.replace(",", "\t").replace("6.5", "6,5"),
    "sep=;\n" + PLAIN.replace(",", ";"), '"sep=\t"\r\n' + PLAIN.replace(",", "\t"),
    ' name , age,note\n" 007 ", 50 ,a b\n P2,6.5,\t\n', PLAIN + "\n,,\n\n", "\n" + PLAIN,
    '"","name","age","note"\n"1","007",50,"a b"\n"2","P2",6.5,""\n',
    "name,age,note,,\n007,50,a b,,\nP2,6.5,,,\n"], ids=range(13))
def test_one_table_however_it_is_written(tmp_path, content):
    path = put(tmp_path, content)
    frame = tables.read_table(path, ("name", "age"))
    assert frame.to_dict("list") | {"age": None} == {"name": ["007", "P2"], "age": None,
                                                     "note": ["a b", ""]}
    assert tables.numbers(frame, "age", path).tolist() == [50, 6.5]


def test_packed_tables_and_rows_as_an_editor_shows_them(tmp_path):
    path = put(tmp_path, gzip.compress(PLAIN.encode(), mtime=0), "t.csv.gz")
    assert len(tables.read_table(path)) == 2
    frame = tables.read_table(put(tmp_path, 'a,b\n\n"x\ny",1\n\nz,2\n'))
    assert frame.index.tolist() == [3, 6] and frame["a"].tolist() == ["x\ny", "z"]


@pytest.mark.parametrize(("content", "said"), [
    ("", "file: is empty"), ("\ufeff \n", "is empty"), (PLAIN[:14], "rows: are none below"),
    (PLAIN.encode("utf-16"), "encoding: is UTF-16"),
    (PLAIN.encode("utf-16")[2:], "row 1: holds a byte of zero"),
    ("name\nНовак\n".encode("cp1251"), "row 2: holds the byte"),
    ("name\nNováček\n".encode("cp1250"), "row 2: holds the byte"),
    ("name\n山田\n".encode("shift-jis"), "holds the byte"),
    (PLAIN + "P3,1\n", "row 4: has 2 cells where the header .row 1. has 3"),
    (PLAIN + "P3,1,2,3\n", "row 4: has 4 cells"),
    ("name,age\n1,007,50\n2,P2,60\n", "row 2: has 3 cells.*row.names=FALSE"),
    (PLAIN + 'P3,1,"open\n', "row 4: begins a quote that never closes"),
    (PLAIN + 'P3,"1"2,\n', "row 4: cannot be read"),
    ("name,age,age\n1,2,3\n", "age stands more than once"),
    ("name, age,age \n1,2,3\n", "age stands more than once"),
    ("Name,age\n1,2\n", "columns: lacks .'name'.*rename 'Name' for 'name'"),
    ("patient,age\n1,2\n", "lacks .'name'.; has 'patient', 'age'"),
    ("name,,age\n1,x,2\n", "column 2: has no name and is filled in row 2"),
    (PLAIN + "P\0,1,2\n", "row 4: holds a byte of zero"),
    (gzip.compress(PLAIN.encode(), mtime=0), "is gzip, not a csv"),
    (b"PK\x03\x04" + bytes(9), "Excel workbook"), (b"\x89HDF\r\n\x1a\n", "an h5 file"),
    ("<!DOCTYPE html><html>", "a web page"), ("version https://git-lfs.github.com/spec", "Git LFS"),
    ("sep=|\nname|age\n1|2\n", "row 1: says that the separator is '|'"),
    pytest.param(PLAIN + "P3,1," + "x" * 200_000 + "\n", "row 4: cannot be read", id="long cell"),
    pytest.param("name" + "," * 30_000 + "\n", "columns: are more than 20000", id="columns"),
    pytest.param(PLAIN + "P3,1,2\n" * (tables.LARGEST // 7), "has more than 16 MB", id="large")])
def test_what_is_no_table(tmp_path, content, said):
    refused(lambda path: tables.read_table(path, ("name",)), put(tmp_path, content), said)


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "dangling.csv").symlink_to("absent_as_well.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    cut = put(tmp_path, gzip.compress(PLAIN.encode(), mtime=0)[:-6], "cut.csv.gz")
    for read in (tables.read_table, artifacts.read_csv):
        refused(read, tmp_path / "folder.csv", "is a folder")
        refused(read, tmp_path / "dangling.csv", "which does not exist")
        refused(read, tmp_path / "loop.csv", "runs in a circle")
        refused(read, tmp_path / "absent.csv", "does not exist")
    refused(tables.read_table, cut, "cannot be unpacked")
    refused(tables.read_table, put(tmp_path, PLAIN, "plain.csv.gz"), "is not a gzip file")


def test_latin_letters_of_an_old_file_are_read_where_there_is_one_way(tmp_path):
    path = put(tmp_path, "name\nMüller\nJosé\n".encode("cp1252"))
    assert tables.read_table(path)["name"].tolist() == ["Müller", "José"]
    for page in ("cp1250", "iso8859-15"):
        assert path.read_bytes().decode(page) == "name\nMüller\nJosé\n"


def column(folder, cells, sep=",", more=()):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sep)
    writer.writerows([("x", "y"), *((cell, "k") for cell in cells), *more])
    path = put(folder, text.getvalue())
    return tables.read_table(path), path


@pytest.mark.parametrize(("cells", "sep", "given"), [
    (["1", "-0.5", "+2e-3", ".5", "3."], ",", [1, -0.5, 0.002, 0.5, 3]),
    (["0,5", "12", "1,25"], ";", [0.5, 12, 1.25]), (["0,5"], "\t", [0.5]),
    (["1,234", "1,2"], ";", [1.234, 1.2]), (["1.234"], ";", [1.234])])
def test_numbers(tmp_path, cells, sep, given):
    frame, path = column(tmp_path, cells, sep)
    found = tables.numbers(frame, "x", path)
    assert found.dtype == np.float64 and found.tolist() == given


@pytest.mark.parametrize(("cells", "sep", "said"), [
    (["1", "0,5"], ",", "x: row 3 is '0,5' and not a number"),
    (["1,234"], ",", "row 2 is '1,234' which may mean thousands"),
    (["1,234"], ";", "row 2 is '1,234' which may mean thousands"),
    (["1,5", "2.5"], ";", "row 2 is '1,5' beside numbers with a decimal point"),
    (["1.234.567"], ";", "row 2 is '1.234.567' and not a number"),
    (["nan"], ",", "row 2 is 'nan' where a number is needed"), ([""], ",", "row 2 is blank"),
    *[([cell], ",", "not a number") for cell in ("inf", "-inf", "0x10", "1_0", "1e", "5 mm", "٣",
                                                  "#DIV/0!", "TRUE", "−1", "1 2", "--5")],
    (["1e999"], ",", "infinite"), (["-1"], ",", "must be 0 or more"),
    (["9"], ",", "must be 8 or less .mm."), (["1.5"], ",", "not a whole number")])
def test_what_is_no_number(tmp_path, cells, sep, said):
    frame, path = column(tmp_path, cells, sep)
    refused(lambda p: tables.numbers(frame, "x", p, low=0, high=8, whole=True, unit="mm"), path,
            said)


def test_a_point_in_a_table_of_decimal_commas_may_mean_thousands(tmp_path):
    path = put(tmp_path, "x;y\n1.234;0,5\n")
    refused(lambda p: tables.numbers(tables.read_table(p), "x", p), path, "may mean thousands")


def test_unknown_numbers_and_words(tmp_path):
    frame, path = column(tmp_path, ["1", "NA", "", "[Not Available]", "--", "not reported"])
    np.testing.assert_array_equal(tables.numbers(frame, "x", path, missing=True),
                                  [1] + 5 * [np.nan])
    frame, path = column(tmp_path, ["Yes", " NO ", "unknown"])
    np.testing.assert_array_equal(tables.whole_words(frame, "x", path, {"yes": 1, "no": 0}),
                                  [1, 0, np.nan])
    refused(lambda p: tables.whole_words(frame, "x", p, {"y": 1, "n": 0}), path,
            "row 2 .and 1 more. is 'Yes' which is not understood")


def test_names(tmp_path):
    frame, path = column(tmp_path, ["007", "1e5", "Müller"])
    assert tables.names(frame, "x", path, unique=True).tolist() == ["007", "1e5", "Müller"]
    for cells, said in ((["a", ""], "row 3 is blank"), (["NA"], "row 2 is 'NA'"),
                        (["a", "a"], "row 3 is 'a' a second time"),
                        (["a\u200b"], "an invisible character"),
                        (["e\u0301", "é"], "accents encoded differently")):
        frame, path = column(tmp_path, cells)
        refused(lambda p, frame=frame: tables.names(frame, "x", p, unique=True), path, said)
    frame, path = column(tmp_path, ["NA"])
    assert tables.names(frame, "x", path, none=("",)).tolist() == ["NA"]
    refused(lambda p: tables.names(frame, "z", p), path, "lacks .'z'")


FORMULAS = ['=HYPERLINK("http://x")', "+1", "@SUM(A1)", "-1+1", "\ta", "\r=1", "\n=1", "+1%+A1",
            "-1 to A1()", "'=x", "''=x", "'-"]
HARMLESS = ["'", "'a", "-", "-4", "-10 to 0", "+42% (HVG), +93% (HMHVG)", "-43 %", "HLA-A", "a\nb",
            "a\rb", "NA", "007", "nan", "a,b", 'a"b', "O'Brien", "MT-CO1", " x "]


def test_no_cell_is_a_formula_and_every_value_comes_back(tmp_path):
    names = FORMULAS + HARMLESS
    frame = pd.DataFrame({
        "gene": names, "=x": np.arange(len(names)) - 3, "f": np.linspace(-1, 1, len(names)),
        "kind": pd.Categorical(names), "some": [n if k % 2 else None for k, n in enumerate(names)]})
    path = artifacts.write_csv(tmp_path / "t.csv", frame)
    with open(path, newline="", encoding="utf-8") as stream:
        cells = [row for row in csv.reader(stream)]
    for text in (*cells[0], *(row[0] for row in cells[1:1 + len(FORMULAS)])):
        assert text[:1] not in set("=+-@\t\r\n")
    again = artifacts.read_csv(path)
    assert list(again.columns) == list(frame.columns)
    assert again["gene"].tolist() == names == again["kind"].tolist()
    assert again["some"].where(again["some"].notna(), None).tolist() == frame["some"].tolist()
    assert again["=x"].tolist() == frame["=x"].tolist() and again["=x"].dtype == np.int64
    np.testing.assert_allclose(again["f"], frame["f"], rtol=1e-8)
    assert frame["gene"].tolist() == names  # what was given is left as it was


def test_ordinary_tables_are_written_as_pandas_does(tmp_path):
    frame = pd.DataFrame({"gene": ["HLA-A", "NA", "a,b"], "pcc": [-0.5, np.nan, 1e-12],
                          "pool": ["-", "cls", "mean"], "n": [-1, 0, 1]})
    path = artifacts.write_csv(tmp_path / "t.csv", frame)
    assert path.read_text() == frame.to_csv(index=False, float_format=artifacts.FLOAT_FORMAT)


@pytest.mark.parametrize(("content", "said"), [
    ("", "file: is empty"), (PLAIN.encode("utf-16"), "byte of zero"),
    (PLAIN.encode() + b"\xe9,1,2\n", "row 4: holds the byte 0xe9"),
    ('name,n\n"a,1\nb,2\n', "row 2: cannot be read"),
    ("name,n\na,1\nb,2,3\n", "row 3: has 3 cells"),
    ("name,n\na,1,7\nb,2,7\n", "row 2: has 3 cells"), ("name,n\na,1\nb\n", "row 3: has 1 cells"),
    ('name,n\n"a",1\nb\n', "row 3: has 1 cells"), ("name,n,n\na,1,2\n", "n stands more than once"),
    ("Name,n\na,1\n", "lacks .'name'"),
    ("name,pcc\na,1\nb,x\n", "pcc: row 3 is 'x', not a number")])
def test_run_tables_are_read_strictly(tmp_path, content, said):
    refused(lambda path: artifacts.read_csv(path, ("name",)), put(tmp_path, content), said)


def test_names_of_a_run_table_stay_text(tmp_path):
    path = put(tmp_path, "section,patient,gene,fold,n_spots,mean,flag\n"
                         "007,01,NA,0,5,1.5,True\n151673,2,1e5,1,6,,False\n")
    frame = artifacts.read_csv(path)
    assert frame["section"].tolist() == ["007", "151673"]
    assert frame["patient"].tolist() == ["01", "2"] and frame["gene"].tolist() == ["NA", "1e5"]
    assert frame["fold"].tolist() == ["0", "1"] and frame["n_spots"].tolist() == [5, 6]
    assert frame["flag"].dtype == bool and np.isnan(frame["mean"][1])
    assert artifacts.read_csv(path, dtype={"fold": int})["fold"].tolist() == [0, 1]
    header = artifacts.write_csv(tmp_path / "empty.csv", frame.iloc[:0])
    assert list(artifacts.read_csv(header).columns) == list(frame.columns)


@pytest.mark.parametrize("read", [tables.read_table, artifacts.read_csv])
def test_a_changed_byte_is_read_or_refused_in_one_line(tmp_path, read):
    """No other library speaks, whatever a byte is changed to."""
    rng = random.Random(0)
    base = bytearray(b'section,n_spots,note\n"a",1,x\nb,2,"y, z"\nc,3,\n')
    for _ in range(400):
        content = bytearray(base)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            content[at:at + rng.randint(0, 2)] = bytes(rng.choices(b'\0\r\n",;\t\xff\xe9a1\\', k=1))
        path = put(tmp_path, bytes(content))
        try:
            frame = read(path)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert len(frame) <= 6


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_child_process_is_waited_for_and_not_for_ever(pidfd, monkeypatch):
    from mvhlib.artifacts import h5

    if not pidfd:
        monkeypatch.delattr(h5.os, "pidfd_open", raising=False)
    children, fork = [], os.fork
    monkeypatch.setattr(h5.os, "fork", lambda: children.append(fork()) or children[-1])
    assert os.WEXITSTATUS(h5._in_child(lambda: os._exit(7))) == 7
    assert os.WTERMSIG(h5._in_child(lambda: os.kill(os.getpid(), 11))) == 11
    monkeypatch.setattr(h5, "_WALK_S", 0.05)
    assert h5._in_child(lambda: time.sleep(60)) is None
    assert len(children) == 3
    for child in children:  # none is left behind
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def test_files_of_a_folder_are_walked_through_together_and_a_damaged_one_is_still_named(
        tmp_path, monkeypatch):
    import h5py

    from mvhlib.artifacts import h5

    paths = [tmp_path / f"{number}.h5" for number in range(3)]
    for path in paths:
        with h5py.File(path, "w") as stream:
            stream["x"] = [1, 2]
    asked, own = [], h5._in_child
    monkeypatch.setattr(h5, "_in_child", lambda work: asked.append(1) or own(work))
    h5.check_h5_files([*paths, tmp_path / "missing.h5"])
    assert len(asked) == 1 and all(h5.check_h5(path) == path for path in paths)
    assert len(asked) == 1
    paths[1].write_bytes(paths[1].read_bytes())  # another time of change: looked at again
    walk = h5._walk_h5
    monkeypatch.setattr(h5, "_walk_h5", lambda path: os.kill(os.getpid(), 11)
                        if path == paths[1] else walk(path))
    os.utime(paths[0], ns=(1, 1)), os.utime(paths[1], ns=(1, 1))
    h5.check_h5_files(paths)
    assert h5.check_h5(paths[0]) == paths[0]
    with pytest.raises(InputError, match="1.h5: file: is damaged: the h5 library crashes"):
        h5.check_h5(paths[1])
