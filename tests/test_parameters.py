"""Names and parameter files of users: kept as they were meant, or refused in one line."""

import json

import pytest
import yaml

from mvhlib import artifacts, parameters
from mvhlib.artifacts import InputError

# ---- names


@pytest.mark.parametrize("name", ["S1", "007", "P 1", "Müller's", "切片", "a.b-c_d", "{x}", "$(x)"])
def test_a_name_of_one_folder_stays_as_it_is(name):
    assert artifacts.safe_name(name, "samples.csv", "section") == name
    assert artifacts.safe_name(f" {name}\t", "samples.csv", "section") == name


@pytest.mark.parametrize("name", [
    "", "  ", ".", "..", "../x", "a/b", "a\\b", "/etc", "-rf", "._S1", ".DS_Store", "a\nb",
    "a\x00b",
    "a\x7fb", "a\u2028b", "\udcff", "x" * 201, "é" * 101, 7, None, float("nan"), ["a"]])
def test_a_name_that_is_no_file_of_its_folder_is_refused_in_one_line(name):
    with pytest.raises(InputError, match="samples.csv: section: is .* Fix: ") as caught:
        artifacts.safe_name(name, "samples.csv", "section")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["/a/b #2", "a: b", "{x}", "-x", "Müller", "a'b\"c", "$HOME"])
def test_a_path_stays_as_it_is(path):
    assert artifacts.safe_path(path, "make", "DATA") == path


@pytest.mark.parametrize("path", ["", "  ", "a\nb", "/a\x00", "/\udcff", "a\u2028"])
def test_a_path_that_cannot_be_said_in_a_line_is_refused(path):
    with pytest.raises(InputError, match="make: DATA: is") as caught:
        artifacts.safe_path(path, "make", "DATA")
    assert str(caught.value).isprintable()


# ---- yaml


def read(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return parameters.read_yaml(path)


def test_plain_yaml_reads_as_pyyaml_reads_it(tmp_path):
    text = """# a comment
a: 1
b: 1.5e-3
c: [yes, no, null, text, "no", 1_000, -5, +.5]
d: {e: {f: [1, 2]}}
g: &anchor {h: 1}
i: {<<: *anchor, k: 'it''s'}
l: 1e3
"""
    assert read(tmp_path, text) == yaml.safe_load(text)
    assert read(tmp_path, "\ufeff" + text) == yaml.safe_load(text)
    assert read(tmp_path, "") == read(tmp_path, "# nothing\n") == {}


def test_names_and_dates_stay_text(tmp_path):
    found = read(tmp_path, "no: 1\n007: 2\n2020-01-01: 3\na: 007\nb: 2020-99-99\nc: 1:30\n")
    assert found == {"no": 1, "007": 2, "2020-01-01": 3, "a": "007", "b": "2020-99-99",
                     "c": "1:30"}


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]"
                                       for i in range(1, 12))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}"
                                        for i in range(1, 12))])


@pytest.mark.parametrize(("content", "said"), [
    ("a:\n\tb: 1\n", "line 2"), ("a: [1, 2\n", "line 2"), ("a: 1\nb: 2\na: 3\n", "line 3: 'a'"),
    ("a: {b: 1, b: 2}\n", "'b' stands in line 1 already"), ("a: 1\n---\nb: 2\n", "document"),
    (b"a: 1 # \xe9\n", "UTF-8"), ("a: 1\n".encode("utf-16"), "UTF-16"), (b"\x00\x01", "not YAML"),
    ("a: !!python/object/apply:os.system ['true']\n", "constructor"), ("a: !!set {b}\n", "tag"),
    ("a: !!timestamp 2020-01-01\n", "tag"), ("[" * 5000, "levels"), ("a: &b [*b]\n", "levels"),
    ("a: " + "[" * 60 + "]" * 60, "levels"), ("5\n", "names and values"),
    ("- a\n", "names and values"),
    ("a: " + "9" * 6000 + "\n", "limit"), ("? [a]\n: 1\n", "not a name"),
        (LAUGHS, "100,000 values"),
    (MERGES, "100,000 values"), ("a: " + "x" * 600_000, "over 200 kB"), ("%YAML 9\n", "YAML")])
def test_what_is_no_file_of_parameters_is_one_line(tmp_path, content, said):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert said in message and message.startswith(str(tmp_path / "a.yaml")) and (
        "\n" not in message)


def test_only_an_absent_file_means_the_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    assert parameters.read_yaml_if_any(path) == {}
    path.symlink_to("/nowhere.yaml")
    with pytest.raises(InputError, match="is a link to /nowhere.yaml, which does not exist"):
        parameters.read_yaml_if_any(path)
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        parameters.read_yaml_if_any(tmp_path / "b.yaml")


# ---- names and types


@pytest.mark.parametrize(("value", "kind", "ok"), [
    (1, "int", True), (1, "float", True), (True, "int", False), (1.0, "int", False),
    (float("nan"), "float", False), (float("inf"), "float", False), (2**63, "int", False),
    (10**400, "float", False), ("a", "str", True), (None, "str", False), ([1, 2.5], "list[float]",
    True), (["a", False], "list[str]", False), ({}, dict, True), ([1], list[int], True)])
def test_types_are_checked(value, kind, ok):
    assert parameters.fits(value, kind) is ok


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="x.yaml: wieghts: is not a setting. "
                       "Fix: did you mean 'weights'"):
        parameters.check("x.yaml", {"weights": "str", "seed": "int"}, {"wieghts": 1}, "setting")
    with pytest.raises(InputError, match="seed: is 'a' .str.. Fix: give a value of type int, for "
                       "example 3"):
        parameters.check("x.yaml", {"seed": int}, {"seed": "a"}, examples={"seed": 3})


@pytest.mark.parametrize("seed", [-1, 2**31, True, 1.0, "1", None])
def test_a_seed_is_one_that_every_library_takes(seed):
    with pytest.raises(InputError, match="seed"):
        parameters.check_seed(seed, "x")
    assert parameters.check_seed(2**31 - 1, "x") == 2**31 - 1


# ---- json


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", "null", "[" * 100_000, '{"a": 1}x', "\xff"])
def test_broken_json_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="a.json: content: is ") as caught:
        artifacts.read_json(path)
    assert "\n" not in str(caught.value)
    path.write_text(json.dumps({"a": [1]}))
    assert artifacts.read_json(path) == {"a": [1]}
