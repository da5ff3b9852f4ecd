"""Names and parameter files of users: kept as they were meant, or refused in one line."""

import pytest

from mvhlib import artifacts
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
