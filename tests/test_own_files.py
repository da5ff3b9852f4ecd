"""Which files of the user's make a notebook run again where they change."""

import pytest

from mvhlib import own_files


@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.setenv("MVH_HOME", str(tmp_path / "clone"))
    (tmp_path / "clone").mkdir()
    return tmp_path / "clone"


def put(path, text="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_table_is_looked_for_in_the_data_first_then_at_the_clone(tmp_path, clone):
    data = tmp_path / "data"
    both, at_clone = put(data / "slides.csv"), put(clone / "params/mine/owners.CSV")
    put(clone / "slides.csv")
    deep = put(data / "more/symbols.tsv.gz")
    values = {"slides": "slides.csv", "owners": "params/mine/owners.CSV", "n": 3,
              "options": {"sources": [{"symbols": "data/more/symbols.tsv.gz"}], "of": "no.csv"}}
    assert own_files.tables_of(values, str(data)) == [both, at_clone, deep]
    assert own_files.tables_of(values) == [clone / "slides.csv", at_clone]


@pytest.mark.parametrize("name", own_files.BY_DEFAULT)
def test_a_table_that_readers_look_for_by_themselves_counts(tmp_path, clone, name):
    path = put(tmp_path / "data" / name)
    found = own_files.tables_of({}, str(tmp_path / "data"))
    assert found == [path]
    before = own_files.stamp(found)
    put(path, "corrected")
    assert own_files.stamp(found) != before


def test_an_encoder_is_its_code_its_weights_and_the_files_of_its_options(tmp_path, clone):
    code, weights = put(tmp_path / "mine.py", "def f(): ..."), put(tmp_path / "w.pt")
    vocabulary = put(tmp_path / "v.json")
    options = {"source": f"python:{code}:f", "weights": str(weights),
               "options": {"vocabulary": str(vocabulary), "width": 4, "pool": "mean"}}
    found = own_files.of_encoder(options)
    assert found == [code, weights, vocabulary]
    before = own_files.stamp(found)
    put(weights, "trained further")
    assert own_files.stamp(own_files.of_encoder(options)) != before


@pytest.mark.parametrize("key", ["source", "weights"])
def test_a_folder_of_weights_counts_with_its_files(tmp_path, clone, key):
    put(tmp_path / "net/state/log.csv")
    config, model = put(tmp_path / "net/config.json"), put(tmp_path / "net/model.safetensors")
    options = {"source": "vit12_micro_patch8_64"} | {key: str(tmp_path / "net")}
    assert own_files.of_encoder(options) == [config, model]


@pytest.mark.parametrize("weights", own_files.NO_PATH)
def test_words_for_weights_are_no_folders_of_the_clone(clone, weights):
    put(clone / "random/model.safetensors")
    put(clone / "pretrained/model.safetensors")
    assert own_files.of_encoder({"source": "handmade", "weights": weights}) == []


def test_a_large_file_is_known_by_its_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(own_files, "LARGE", 3)
    path = put(tmp_path / "w.pt", "abcd")
    before = own_files.stamp([path])
    assert before.startswith("4-")
    put(path, "abcde")
    assert own_files.stamp([path]).startswith("5-")
