"""The fuzzer tells outcomes apart, and no reader fails on a broken file.

``make test`` reads five mutants of each reader, ``make test SLOW=1`` a thousand, or as many as
``MVH_FUZZ_MUTANTS`` says, from the seed ``MVH_FUZZ_SEED``.
"""

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from safetensors.torch import load_file, save_file

from mvhlib import claims, cohort, places
from mvhlib.artifacts import InputError, check_file, h5_array, h5_reader, read_csv, write_csv
from mvhlib.backbones import from_pretrained
from mvhlib.cohort import base
from mvhlib.dino.config import read_settings
from mvhlib.encoders import create_encoder
from mvhlib.expression import leaderboard, transfer
from mvhlib.features import Features, read_features, write_features
from mvhlib.tiles import whole
from mvhlib.tiles.slides import open_slide
from mvhlib.training import read_log
from tests.fuzz import mutate, run
from tests.fuzz.readers import READERS, Reader, digest, seal_encoder

ROOT = Path(__file__).resolve().parents[1]
TEXT = "a,b\n1,2\n3,4\n"


def in_lines(folder):
    error = InputError(folder / "a.csv", "b", "is odd", "mend it")
    error.args = ("a.csv: one\ntwo",)
    raise error


def refuse(where):
    raise InputError(where, "b", "is odd", "mend it")


def for_ever(folder):
    while True:
        pass


#: Outcome -> what a reader does with a broken file.
BEHAVIOUR = {
    "traceback": lambda folder: places.resolve(None),
    "crash": lambda folder: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": for_ever,
    "memory": lambda folder: (np.zeros(3 << 30, np.uint8).sum(), []),
    "believed": lambda folder: ("x", ["NaN"]),
    "lines": in_lines,
    "no file": lambda folder: refuse("here"),
    "escape": lambda folder: ((folder.parents[1] / "x").write_text(""), []),
    "refused": lambda folder: refuse(folder / "a.csv"),
    "other": lambda folder: ("x", []),
}


def toy(behaviour):
    def call(folder):
        try:
            whole = (folder / "a.csv").read_text(encoding="utf-8") == TEXT
        except (OSError, ValueError):
            whole = False
        return ("whole", []) if whole else BEHAVIOUR[behaviour](folder)

    return Reader("toy", lambda folder: (folder / "a.csv").write_text(TEXT), {"a.csv": "text"},
                  call)


@pytest.mark.parametrize("behaviour", BEHAVIOUR)
def test_outcomes_are_told_apart(behaviour, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "CPU_S", 1)
    monkeypatch.setattr(mutate, "FILES", [mutate.absent, mutate.directory, mutate.looping_link])
    n = 3 if behaviour == "hang" else 8
    found = run.fuzz(toy(behaviour), range(n), 0, tmp_path)
    neutral = Counter(o.outcome for o in found if "text_encoding" in o.mutation)
    others = Counter(o.outcome for o in found if "text_encoding" not in o.mutation)
    assert set(others) == {behaviour} and sum(others.values()) + sum(neutral.values()) == n
    # The same table in another encoding must not read as another one.
    assert behaviour != "other" or set(neutral) <= {"believed"}


def test_a_mutant_is_made_again_from_its_seed(tmp_path):
    reader = READERS["clinical_table"]
    words = []
    for turn in ("one", "two"):
        words.append([])
        for index in range(12):
            folder = tmp_path / turn / str(index)
            folder.mkdir(parents=True)
            reader.build(folder)
            words[-1].append(run.change(reader, folder, 5, index)[0])
    assert words[0] == words[1] and len({change.words for change in words[0]}) > 8
    for index in range(12):
        one, two = (tmp_path / turn / str(index) / "own.csv" for turn in ("one", "two"))
        assert one.is_file() == two.is_file()
        assert not one.is_file() or one.read_bytes() == two.read_bytes()


def test_a_digest_tells_values_apart_and_no_folders():
    def values(number=1.0, text="x", n=3, last=None):
        return {"a": [number, text, np.arange(n)], "b": last}

    assert digest(values()) == digest(values(1))
    others = [values(1.5), values(text="y"), values(n=4), values(last=float("nan")),
              dict(reversed(values().items()))]
    assert len({digest(each) for each in [values(), *others]}) == 6


# ---- what was found, by name


def refused(message, call, *arguments, **options):
    with pytest.raises(InputError, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_damaged_collection_of_texts_does_not_hang(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as stream:
        stream.attrs["encoder"] = "x" * 500
        stream["names"] = np.array(["a", "bcd", "e" * 100], dtype=h5py.string_dtype())
    with h5_reader(path) as stream:
        assert stream["names"][2].decode() == "e" * 100
    data = bytearray(path.read_bytes())
    place, free = data.index(b"GCOL") + 16, None
    while free is None:
        number, size = (int.from_bytes(data[at:at + n], "little")
                        for at, n in ((place, 2), (place + 8, 8)))
        free = place if number == 0 else None
        place += 16 + -(-size // 8) * 8
    data[free + 8:free + 16] = bytes(8)  # free space of no size: HDF5 takes no step forward
    path.write_bytes(data)
    refused("is damaged: the h5 library", read_features, path)


def test_an_attribute_that_asks_for_gigabytes(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as stream:
        stream.attrs["encoder"] = "x" * 500
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL").to_bytes(8, "little")
    place = data.index((500).to_bytes(4, "little") + heap)
    data[place:place + 4] = b"\xff" * 4
    path.write_bytes(data)
    refused("is damaged: the h5 library asks for more than 2 GB", read_features, path)


def test_a_text_longer_than_its_file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as stream:
        stream["who"] = "P007"
        offset = stream["who"].id.get_offset()
    with h5_reader(path) as stream:
        assert h5_array(stream, "who", kind="text", ndim=0).item() == "P007"
    data = bytearray(path.read_bytes())
    data[offset:offset + 4] = b"\xff" * 4
    path.write_bytes(data)
    with h5_reader(path) as stream:
        refused("who: holds a text of 4,294,967,295 bytes", h5_array, stream, "who", kind="text",
                ndim=0)


def test_names_that_no_line_can_hold(tmp_path):
    found = Features(np.ones((2, 3), np.float32), np.zeros((2, 2), np.int64), ["a", "b"],
                     {"encoder": "x"})
    write_features(tmp_path / "a.h5", found)
    with h5py.File(tmp_path / "a.h5", "r+") as stream:
        stream.attrs["encoder"] = "x\ny"
    refused("encoder: number 1 is", read_features, tmp_path / "a.h5")
    found.barcodes[1] = "b\x13c"
    refused("barcode: number 2 is", write_features, tmp_path / "b.h5", found)
    counts = anndata.AnnData(np.ones((2, 2)), obs=pd.DataFrame(index=["a", "b"]),
                             var=pd.DataFrame(index=["G1", "G\n2"]))
    counts.layers["counts"] = counts.X
    refused("a.h5: gene: number 2", base.check_counts, counts, "a.h5")


@pytest.mark.parametrize("value", [1e300, 0.0, float("inf")])
def test_scales_of_no_slide(tmp_path, value):
    write_features(tmp_path / "a.h5", Features(np.ones((2, 3), np.float32), np.zeros(
        (2, 2), np.int64), ["a", "b"], {"source_mpp": 0.5}))
    with h5py.File(tmp_path / "a.h5", "r+") as stream:
        stream.attrs["source_mpp"] = value
    refused("source_mpp: is", read_features, tmp_path / "a.h5")


@pytest.mark.parametrize("row", ["0.5,1", "-1,1", "1,2,3", "1", "x,1"])
def test_a_log_of_no_whole_steps(tmp_path, row):
    (tmp_path / "log.csv").write_text(f"step,loss\n0,3.5\n{row}\n")
    refused("log.csv: log: is no log", read_log, tmp_path / "log.csv")


def test_half_an_interval(tmp_path):
    table = claims.evaluate(tmp_path, data="toy", command="make")
    table.loc[2, ["measured", "ci_low"]] = 0.1, 0.05
    write_csv(tmp_path / "toy/14_leaderboard/claims.csv", table)
    (tmp_path / "toy").rename(tmp_path / "her2st")
    refused("claims.csv: ci_low, ci_high: row 4", claims.collect, tmp_path)


def test_scores_without_a_column(tmp_path):
    READERS["scores"].build(tmp_path)
    path = tmp_path / "within/ridge/vit/scores.csv"
    path.write_text(path.read_text().replace("encoder,", ",", 1))
    for read in (lambda: leaderboard.read(tmp_path, "within"), lambda: transfer.read(tmp_path)):
        refused("scores.csv: columns: lacks .'encoder'", read)


def test_links_are_named_as_they_were_given(tmp_path):
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "gone.csv").symlink_to("/nowhere.csv")
    for name in ("loop.csv", "gone.csv"):
        assert places.resolve(tmp_path / name) == tmp_path / name
        refused(f"{name}: file: is a link to", check_file, places.resolve(tmp_path / name))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert places.resolve(tmp_path / "link") == (tmp_path / "real").resolve()


@pytest.mark.parametrize(("text", "message"), [
    ("blur: [0.0, 0.9]", "blur: is"), ("more: {x: 1}", "x: is not"),
    ("backbone_options: {a: [.nan]}", "backbone_options: is"),
    ("more: {precision: half}", "precision: is 'half'")])
def test_settings_name_their_file(tmp_path, text, message):
    (tmp_path / "03.yaml").write_text(text + "\n")
    refused(f"03.yaml: {message}", read_settings, tmp_path / "03.yaml")


def test_weights_of_two_kinds(tmp_path):
    READERS["encoder_weights"].build(tmp_path)
    path = tmp_path / "vit/model.safetensors"
    config = json.loads((tmp_path / "vit/config.json").read_text())
    for name, value, message in (("norm_eps", float("nan"), "model_args: norm_eps: is nan"),
                                 ("channel_mixer", "x", "backbone: channel_mixer: is 'x'")):
        changed = config | {"model_args": config["model_args"] | {name: value}}
        (tmp_path / "vit/config.json").write_text(json.dumps(changed))
        seal_encoder(tmp_path)
        refused(f"config.json: {message}", from_pretrained, tmp_path / "vit")
    (tmp_path / "vit/config.json").write_text(json.dumps(config))
    tensors = load_file(path)
    tensors["norm.weight"] = tensors["norm.weight"].double()
    save_file(tensors, path)
    seal_encoder(tmp_path)
    refused("config.json: model_args: do not fit", from_pretrained, tmp_path / "vit")


def test_a_finished_fit_vouches_for_its_weights(tmp_path):
    reader = READERS["cmrcnet_saved"]
    reader.build(tmp_path)
    assert reader.call(tmp_path)[1] == []
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"abcd")
    refused("not those that fit.json vouches for", reader.call, tmp_path)
    path.write_bytes(whole)
    report = json.loads((tmp_path / "fit.json").read_text())
    (tmp_path / "fit.json").write_text(json.dumps(report | {"best_epoch": 0}))
    refused("is no finished fit", reader.call, tmp_path)


@pytest.mark.parametrize("reader", ["slide_ome", "slide_svs", "slide_tiff"])
def test_a_tiff_that_declares_more_than_it_can_hold(tmp_path, reader):
    READERS[reader].build(tmp_path)
    [path] = tmp_path.glob("a.*")
    with tifffile.TiffFile(path, mode="r+") as tif:
        for name in ("ImageWidth", "ImageLength"):
            tif.pages[0].tags[name].overwrite(50_000)
    refused(f"{path.name}: tiff: declares 50000 x 50000 px", open_slide, path)


def test_names_that_only_a_damaged_file_holds(tmp_path):
    for reader, name, old, new, message in (
            ("gene_sets", "sets.gmt", "G2", "G\x082", "line 1: number"),
            ("hest_bench", "splits/test_1.csv", "\nB3", "\n../B3", "sample_id, row 2"),
            ("tile_source", "manifest.csv", ",s\n", ",s\x0bx\n", "study: is"),
            ("scores", "within/ridge/vit/scores.csv", None, "", "rows: are none"),
            ("clinical_survpath", "tcga_coadread.csv", None, None, "slide_id")):
        folder = tmp_path / reader
        folder.mkdir()
        READERS[reader].build(folder)
        text = (folder / name).read_text()
        first, second, *rest = text.splitlines(keepends=True)
        if old is None:  # no row, or the first one twice
            text = first if new == "" else first + second + second + "".join(rest)
        else:
            assert old in text
            text = text.replace(old, new, 1)
        (folder / name).write_text(text)
        refused(f"{Path(name).name}: {message}", READERS[reader].call, folder)


def test_a_control_character_in_a_table_of_the_run(tmp_path):
    path = write_csv(tmp_path / "a.csv", pd.DataFrame({"gene": ["A", "B"], "pcc": [1, 2]}))
    path.write_bytes(path.read_bytes().replace(b"B", b"B\x13"))
    refused("a.csv: row 3: holds the control character 0x13", read_csv, path)


def test_unsigned_indices_are_read(tmp_path):
    READERS["run_h5ad"].build(tmp_path)
    whole = READERS["run_h5ad"].call(tmp_path)
    with h5py.File(tmp_path / "run/A1.h5ad", "r+") as stream:
        for name in ("indices", "indptr"):
            values = stream[f"layers/counts/{name}"][:].astype(np.uint64)
            del stream[f"layers/counts/{name}"]
            stream[f"layers/counts/{name}"] = values
    assert digest(READERS["run_h5ad"].call(tmp_path)) == digest(whole)


def test_an_altered_configuration_of_mmap(tmp_path):
    READERS["mmap_saved"].build(tmp_path)
    path = tmp_path / "mmap/config.json"
    path.write_text(path.read_text().replace('"s0"', '"s9"'))
    refused("config.json: content: was altered", create_encoder, tmp_path / "mmap", device="cpu")


def test_weights_that_overflow(tmp_path):
    READERS["encoder_weights"].build(tmp_path)
    path = tmp_path / "vit/model.safetensors"
    tensors = load_file(path)
    tensors["norm.weight"] = tensors["norm.weight"] * 3e38
    save_file(tensors, path)
    seal_encoder(tmp_path)
    encoder = create_encoder(tmp_path / "vit", device="cpu")
    refused("features: are NaN or infinite for", encoder.encode,
            np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))


def test_one_slide_under_two_names_is_said(tmp_path, caplog):
    for name, text in (("a.svs", "one"), ("b.svs", "one"), ("c.svs", "two")):
        (tmp_path / name).write_text(text)
    whole.read(tmp_path)
    [said] = [record.getMessage() for record in caplog.records]
    assert "a.svs" in said and "b.svs" in said and "the same file" in said
    caplog.clear()
    (tmp_path / "slides.csv").write_text("slide,patient\na,P1\nb,P1\nc,P2\n")
    whole.read(tmp_path)
    assert not caplog.records


def test_one_name_for_two_sections_names_the_data(tmp_path):
    READERS["visium_samples"].build(tmp_path)
    path = tmp_path / "samples.csv"
    path.write_text(path.read_text().replace("second,", "first,"))
    refused(str(tmp_path), cohort.read, "visium", tmp_path)


# ---- every reader


def fuzz(out, mutants, seed=0):
    """Run the fuzzer in a process of its own, whose threads are known; gives its tables."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "--mutants", str(mutants), "--seed", str(seed),
         "--jobs", str(min(4, os.cpu_count() or 1)), "--out", str(out)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "MVH_HOME": str(ROOT)},
        capture_output=True, text=True)
    print(made.stdout, made.stderr[-4000:])
    with open(out / "fuzz.csv", newline="", encoding="utf-8") as stream:
        rows = {row["reader"]: row for row in csv.DictReader(stream)}
    with open(out / "failures.csv", newline="", encoding="utf-8") as stream:
        failures = [row for row in csv.DictReader(stream) if row["outcome"]]
    return rows, failures, made.returncode


def check(rows, failures, code, mutants):
    said = [f"{row['reader']} #{row['index']}: {row['outcome']} {row['exception']} {row['frame']} "
            f"| {row['mutation']} | {row['message'][:150]}" for row in failures]
    assert not said, "\n".join(said)
    assert code == 0 and set(rows) == {*READERS, "all"}
    assert all(int(rows[name]["mutants"]) == mutants for name in READERS)


def test_three_mutants_of_every_reader(tmp_path):
    check(*fuzz(tmp_path, 3), 3)


@pytest.mark.slow
def test_a_thousand_mutants_of_every_reader(tmp_path):
    mutants = int(os.environ.get("MVH_FUZZ_MUTANTS", 1000))
    check(*fuzz(tmp_path, mutants, int(os.environ.get("MVH_FUZZ_SEED", 0))), mutants)
