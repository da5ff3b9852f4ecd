"""Features of slides that somebody else computed: found, kept, and read by 07 and 09."""

import unicodedata

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from mvhlib import artifacts, features, own_tables, profiles, slide_features, workflow
from mvhlib.artifacts import InputError
from mvhlib.places import resolve
from tests.test_profiles import doctor, profile, run_profile

N = 40
SLIDES = [f"TCGA-{'AB'[k % 2]}{'XY'[k // 2 % 2]}-{1000 + k}-01Z-00-DX1.u{k}" for k in range(N)]
FEW = 6
LABELS = ["MSI" if k % 3 == 0 else "MSS" for k in range(N)]


def bag(k: int, width: int = 6, tiles: int = 20) -> np.ndarray:
    """Tiles of a slide: a fifth of them say its label."""
    values = np.random.default_rng(k).normal(0, 1, (tiles, width)).astype(np.float32)
    values[: tiles // 5] += 2.0 * (LABELS[k] == "MSI")
    return values


def write_h5(path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as stream:
        stream["features"] = values
        stream["coords"] = np.arange(2 * len(values)).reshape(-1, 2) * 256


def write_trident(root, n):
    """TRIDENT's folder of a job: two encoders, coordinates, thumbnails, and somebody's table."""
    job = root / "20x_256px_0px_overlap"
    for k, name in enumerate(SLIDES[:n]):
        write_h5(job / f"features_uni_v1/{name}.h5", bag(k))
        write_h5(job / f"features_conch/{name}.h5", bag(k, 4))
        write_h5(job / f"slide_features_titan/{name}.h5", bag(k)[0])
        (job / "patches").mkdir(exist_ok=True)
        with h5py.File(job / f"patches/{name}_patches.h5", "w") as stream:
            stream["coords"] = np.zeros((3, 2))
    for k, folder in enumerate(("thumbnails", "contours")):
        (root / folder).mkdir()
        (root / folder / f"{k}.jpg").write_bytes(b"x")
    time = np.random.default_rng(0).exponential(600, n).round() + 1
    pd.DataFrame({"bcr_patient_barcode": [name[:12] for name in SLIDES[:n]], "OS.time": time,
                  "OS": [int(k % 5 > 1) for k in range(n)], "age": [40 + k for k in range(n)],
                  "gender": [("male", "female")[k % 7 // 3 % 2] for k in range(n)], "ajcc_stage": [
                      f"Stage {'I' * (k % 3 + 1)}" for k in range(n)], "label": LABELS[:n]}).to_csv(
        root / "clinical.csv", index=False)
    return root


@pytest.fixture
def trident(tmp_path):
    return write_trident(tmp_path / "data", FEW)


@pytest.fixture
def params(tmp_path):
    (tmp_path / "params").mkdir()
    return tmp_path / "params"


def test_features_of_trident_and_their_owners_are_found(trident, params, capsys):
    status, said, _ = doctor(trident, capsys)
    assert status == 0 and f"{FEW} slides, patients: {FEW}, studies: 4" in said
    assert "Encoders: conch, uni_v1." in said and "those of clinical.csv" in said
    assert profile(trident, params) == 0
    table = pd.read_csv(params / "mine/slides.csv").set_index("slide").loc[SLIDES[:FEW]]
    clinical = pd.read_csv(trident / "clinical.csv")
    assert list(table["label"]) == LABELS[:FEW] and list(table["event"]) == list(clinical["OS"])
    assert list(table["patient"]) == [name[:12] for name in SLIDES[:FEW]]
    np.testing.assert_allclose(table["time"], clinical["OS.time"] * 12 / 365.25, atol=1e-3)
    plan = workflow.prepare(workflow.Call("mine", str(trident), 0, str(params)))
    assert plan["notebooks"] == ["04_embed", "07_classification", "09_survival"]


def test_kept_features_are_those_of_the_files(trident, params, tmp_path):
    profile(trident, params)
    source = "features:20x_256px_0px_overlap/features_uni_v1"
    table = str(params / "mine/slides.csv")
    slide_features.take(trident, source, table, tmp_path / "run/slides", "uni")
    kept = features.read_folder(tmp_path / "run/slides/features/uni")
    assert sorted(kept) == sorted(SLIDES[:FEW])
    for k in (0, 5):
        np.testing.assert_array_equal(kept[SLIDES[k]].features, bag(k))
    people = artifacts.read_csv(tmp_path / "run/slides/slides.csv")
    assert set(people["site"]) == {"AX", "AY", "BX", "BY"}

    write_h5(trident / source.partition(":")[2] / f"{SLIDES[3]}.h5", bag(3, 5))
    with pytest.raises(InputError, match="are 5 wide, those of .* 6"):
        slide_features.take(trident, source, table, tmp_path / "run/slides", "uni")
    (trident / source.partition(":")[2] / f"{SLIDES[3]}.h5").unlink()
    with pytest.raises(InputError, match=rf"row \d+: is '{SLIDES[3]}', which has no features"):
        slide_features.take(trident, source, table, tmp_path / "run/slides", "uni")
    with pytest.raises(InputError, match="holds no features of tiles. Fix: name one of"):
        slide_features.take(trident, "features:elsewhere", table, tmp_path / "run/slides", "uni")


def test_tensors_of_clam_are_read_without_running_code(tmp_path):
    folder = tmp_path / "pt_files"
    folder.mkdir()
    for k in range(3):
        torch.save(torch.from_numpy(bag(k)), folder / f"s{k}.pt")
    run = tmp_path.parent / f"{tmp_path.name}-run"
    slide_features.take(tmp_path, "features:pt_files", "", run, "clam")
    kept = features.read_folder(run / "features/clam")
    np.testing.assert_array_equal(kept["s2"].features, bag(2))
    torch.save(print, folder / "s1.pt")
    with pytest.raises(InputError, match="s1.pt: features: are not a tensor that can be read"):
        slide_features.take(tmp_path, "features:pt_files", "", run, "clam")
    (tmp_path / "h5_files").mkdir()
    write_h5(tmp_path / "h5_files/s0.h5", bag(0))  # with h5 beside them tensors are passed over
    assert list(slide_features.find(tmp_path)) == ["h5_files"]


def test_a_table_by_slide_is_found_whatever_its_columns_are_called(tmp_path):
    for k in range(6):
        write_h5(tmp_path / f"h5_files/s{k}.h5", bag(k))
    pd.DataFrame({"case_id": [f"P{k // 2}" for k in range(6)],
                  "slide_id": [f"s{k}.svs" for k in range(6)], "label": list("ababab"),
                  }).to_csv(tmp_path / "task.csv", index=False)
    found = profiles.look(tmp_path)
    assert [row.known("patient") for row in found.rows] == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert [row.known("label") for row in found.rows] == list("ababab")
    (tmp_path / "task.csv").unlink()
    found = profiles.look(tmp_path)
    assert found.blanks() == ["patient"] and "No table holds label" in found.advice[-1]


@pytest.mark.parametrize("twice", ["s1", "s1.svs"])
def test_a_slide_with_two_rows_is_refused_when_the_table_is_read(tmp_path, capsys, twice):
    for k in range(3):
        write_h5(tmp_path / f"data/uni/s{k}.h5", bag(k))
    (tmp_path / "data/slides.csv").write_text(
        f"slide,patient,label\ns0,P0,a\ns1,P1,b\n{twice},P2,a\n")
    with pytest.raises(InputError, match=f"slide: row 4 is '{twice}'.*keep one row for each"):
        slide_features.take(tmp_path / "data", "features:uni", "", tmp_path / "out", "uni")
    status, _, said = doctor(tmp_path / "data", capsys)
    assert status == 2 and f"row 4 is '{twice}'" in said
    assert profile(tmp_path / "data", tmp_path) == 2 and not (tmp_path / "mine").exists()


def test_a_table_that_contradicts_itself_leaves_its_cells_to_the_user(tmp_path, capsys):
    for k in range(4):
        write_h5(tmp_path / f"data/uni/s{k}.h5", bag(k))
    table, params = tmp_path / "data/t.csv", tmp_path / "params"
    params.mkdir()
    lines = ["s0,P0,a,3,1", "s1,P1,b,4,0", "s2,P2,a,5,1", "s3,P3,b,6,0", "s1.svs,P1,,4,0"]
    table.write_text("\n".join(["slide_id,case_id,label,time_months,event", *lines]) + "\n")
    assert profile(tmp_path / "data", params, "whole") == 0  # two rows that agree are one
    assert pd.read_csv(params / "whole/slides.csv")["label"].tolist() == list("abab")
    lines += ["s0,P0,b,3,1", "s2,P9,a,7,1"]
    for number, order in enumerate((lines, lines[::-1])):
        table.write_text("\n".join(["slide_id,case_id,label,time_months,event", *order]) + "\n")
        capsys.readouterr()
        assert profile(tmp_path / "data", params, f"p{number}") == 0
        said = capsys.readouterr().out
        assert "Rows of t.csv contradict each other: " in said and "label of s0 is " in said
        cells = said.partition("contradict each other: ")[2].partition(". These cells")[0]
        assert "patient of s2 is " in cells and "time of s2 is " in cells and "s1" not in cells
        given = pd.read_csv(params / f"p{number}/slides.csv", dtype=str)
        assert given["label"].tolist() == ["?", "b", "a", "b"]
        assert given["patient"].tolist() == ["P0", "P1", "?", "P3"]
        assert given["time"].tolist() == ["3.0", "4.0", "?", "6.0"]
        assert given["event"].tolist() == ["1", "0", "1", "0"]
        with pytest.raises(InputError, match="is not filled in for slide 's0'"):
            own_tables.check_filled(params / f"p{number}/slides.csv")


def test_rows_of_one_patient_that_contradict_each_other_are_left_to_the_user(tmp_path, capsys):
    names = [f"TCGA-A1-{k:04d}-01Z-00-DX1.u" for k in range(3)]
    for k, name in enumerate(names):
        write_h5(tmp_path / f"data/uni/{name}.h5", bag(k))
    (tmp_path / "params").mkdir()
    (tmp_path / "data/t.csv").write_text(f"case_id,label,age\n{names[0][:12]},a,60\n"
                                         f"{names[1][:12]},b,61\n{names[1][:12]}-01A,a,61\n")
    assert profile(tmp_path / "data", tmp_path / "params") == 0
    assert f"label of {names[1]} is b and a" in capsys.readouterr().out
    given = pd.read_csv(tmp_path / "params/mine/slides.csv", dtype=str, keep_default_na=False)
    assert given["label"].tolist() == ["a", "?", ""] and given["age"].tolist() == ["60", "61", ""]


def test_listed_slides_without_whole_features_are_left_out_of_the_run(tmp_path, capsys):
    data, params = tmp_path / "data", tmp_path / "params"
    for k in range(5):
        write_h5(data / f"uni/s{k}.h5", bag(k))
        if k != 3:
            write_h5(data / f"conch/s{k}.h5", bag(k, 4))
    (data / "uni/s1.h5").write_bytes((data / "uni/s1.h5").read_bytes()[:300])
    (data / "slides.csv").write_text("slide,patient,label\n" + "".join(
        f"s{k},P{k},{'ab'[k % 2]}\n" for k in range(5)))
    params.mkdir()
    assert profile(data, params) == 0
    said = capsys.readouterr().out
    assert "3 slides" in said and "writes one of its own, without s1, s3" in said
    assert "s3: " in said and "conch: features: of s3 are not there" in said
    table = workflow.read_params(params / "mine", "04_embed")["slides"]
    assert resolve(table) == params / "mine/slides.csv"
    for encoder in ("uni", "conch"):
        slide_features.take(data, f"features:{encoder}", table, tmp_path / "out", encoder)
        assert set(features.read_folder(tmp_path / f"out/features/{encoder}")) == {"s0", "s2", "s4"}


def test_features_whose_names_macos_took_apart_are_found(tmp_path):
    apart, one = (unicodedata.normalize(form, "Süd") for form in ("NFD", "NFC"))
    write_h5(tmp_path / f"data/uni/{apart}.h5", bag(0))
    write_h5(tmp_path / "data/uni/b.h5", bag(1))
    (tmp_path / "data/slides.csv").write_text(f"slide,patient\n{one},P0\nb,P1\n")
    [row, _] = profiles.look(tmp_path / "data").rows
    assert row.name == one and row.known("holds") == "20 tiles x 6"
    slide_features.take(tmp_path / "data", "features:uni", "", tmp_path / "out", "uni")
    kept = features.read_folder(tmp_path / "out/features/uni")
    np.testing.assert_array_equal(kept[one].features, bag(0))


@pytest.mark.slow
def test_features_made_elsewhere_run_to_the_end(params, tmp_path):
    trident = write_trident(tmp_path / "data", N)
    profile(trident, params)
    path = params / "mine/07_classification.yaml"
    path.write_text(path.read_text() + "starts: 1  # network\n")
    run_profile(params / "mine", trident, tmp_path / "out")
    tables = tmp_path / "out/figures/mine"
    classes = artifacts.read_csv(tables / "07_classification/summary.csv")
    labels = classes[(classes["dataset"] == "slide_label") & (classes["split"] == "grouped")
                     & (classes["metric"] == "auroc")]
    assert labels["mean"].max() > 0.7  # a fifth of the tiles says it
    survival = artifacts.read_csv(tables / "09_survival/summary.csv")
    assert {"conch", "none"} <= {name.partition("+")[0] for name in survival["encoder"]}
