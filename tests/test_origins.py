"""Tissue of origin: data sets side by side, and synthetic organs with and without a confounder."""

import json

import numpy as np
import pytest
from PIL import Image

from mvhlib.artifacts import InputError, read_csv
from mvhlib.cohort import origins, synthetic
from mvhlib.downstream import probe
from mvhlib.encoders import create_encoder
from mvhlib.tiles import labelled, store

COLUMNS = ("label", "study", "patient")


def draw(path, side=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def sets(tmp_path):
    """Two sets of one organ, of which one names no patients, and one of another."""
    for name in ("colon-a/X/1.png", "colon-a/X/2.png", "colon-b/Y/1.png", "liver/Z/1.png"):
        draw(tmp_path / name)
    (tmp_path / "colon-a/patients.csv").write_text("image,patient\n1,p1\n2,p2\n")
    return {"colon": [{"reader": "folder", "folder": "colon-a", "mpp": 0.5},
                      {"reader": "folder", "folder": "colon-b", "mpp": 1.0, "study": "b"}],
            "liver": [{"reader": "folder", "folder": "liver", "mpp": 0.5}]}


def test_data_sets_are_put_together_under_their_organ(sets, tmp_path):
    images = origins.read(sets, tmp_path)
    assert [(i.name, i.label, i.patient, i.extra["study"]) for i in images] == [
        ("colon-a-1", "colon", "colon-a-p1", "colon-a"),
        ("colon-a-2", "colon", "colon-a-p2", "colon-a"),
        ("b-1", "colon", "b-unnamed", "b"), ("liver-1", "liver", "liver-unnamed", "liver")]
    labelled.cut(images, tmp_path / "out", tile_um=16, tile_px=32)
    found = {i.name: store.read_tiles(tmp_path / f"out/tiles/{i.name}.h5") for i in images}
    assert {name: tiles.source_mpp for name, tiles in found.items()} == {
        "colon-a-1": 0.5, "colon-a-2": 0.5, "b-1": 1.0, "liver-1": 0.5}
    assert len(found["b-1"]) == 16 and len(found["liver-1"]) == 4
    table = read_csv(tmp_path / "out/labels.csv")
    assert list(table.columns) == ["image", "patient", "label", "study"]
    note = probe.confounding(*(table[column] for column in COLUMNS))
    assert dict(zip(note["label"], note["n_studies"], strict=True)) == {"colon": 2, "liver": 1}
    assert set(note["note"]) == {"origin and scanner are confounded"}


def test_sections_are_cut_at_their_spots(shared, tmp_path):
    if not (shared / "data" / "mob").is_dir():
        pytest.skip("needs the mob and glas data sets")
    images = origins.read({
        "bulb": [{"reader": "mob", "folder": "mob"}],
        "colon": [{"reader": "glas", "folder": "glas", "mpp": 0.62}]}, shared / "data")
    assert len({i.patient for i in images if i.label == "bulb"}) == 2
    assert {i.extra["study"] for i in images} == {"mob", "glas"} and len(images) == 4 + 120
    first = next(i for i in images if i.label == "bulb")
    labelled.cut([first], tmp_path, tile_um=112, tile_px=32)
    tiles = store.read_tiles(tmp_path / f"tiles/{first.name}.h5")
    assert len(tiles) == len(first.centers) > 100
    middle = tiles.coords + tiles.source_px / 2
    assert np.abs(middle - first.centers).max() < 2


@pytest.mark.parametrize(("change", "said"), [
    ({"reader": "camelyon"}, "reader: 'camelyon' is not known"), ({"scale": 2}, "scale: is not a"),
    ({"folder": "absent"}, "is not a directory")])
def test_wrong_sets_are_refused(sets, tmp_path, change, said):
    sets["liver"] = [sets["liver"][0] | change]
    with pytest.raises(InputError, match=said):
        origins.read(sets, tmp_path)
    with pytest.raises(InputError, match="two organs or more"):
        origins.read({"colon": sets["colon"]}, tmp_path)
    with pytest.raises(InputError, match="reader: is missing"):
        origins.read({"colon": [{"folder": "colon-a"}], "liver": []}, tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    ({"mpp": 0}, "mpp: is 0"), ({"mpp": "0,5"}, "mpp: is '0,5'"), ({"mpp": True}, "mpp: is True"),
    ({"mpp": 1e19}, "mpp: is 1e.19"),
    ({"mpp": float("nan")}, "mpp: is nan"), ({"study": "../../x"}, "study: "),
    ({"study": "colon-a"}, "study: gives two images the name colon-a-1"),
    ({"study": None}, "study: is None"), ({"folder": 7}, "folder: is 7, not text"),
    ({"folder": "colon-a", "study": "c"}, "label: is colon, liver for one file")])
def test_a_data_set_that_cannot_be_meant_is_refused(sets, tmp_path, change, said):
    sets["liver"] = [sets["liver"][0] | change]
    with pytest.raises(InputError, match=said):
        origins.read(sets, tmp_path)


@pytest.mark.parametrize(("given", "said"), [
    ({"colon": []}, "colon: sets: are .."), ({"colon": "folder"}, "colon: sets: are 'folder'"),
    ({"colon": {"reader": "folder"}}, "colon: sets"),
    ({"colon": ["folder"]}, "sets: hold 'folder'"), ({True: []}, "organs: hold True")])
def test_an_organ_without_data_sets_is_refused(sets, tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        origins.read(given | {"liver": sets["liver"]}, tmp_path)
    with pytest.raises(InputError, match="map each organ"):
        origins.read(["colon", "liver"], tmp_path)


def test_one_class_of_each_study_is_kept_and_classes_are_spread():
    studies, labels = np.repeat(["s1", "s2", "s3", "s4"], 4), np.tile(["a", "a", "b", "b"], 4)
    kept = probe.one_class_per_study(labels, studies)
    assert [set(labels[kept & (studies == s)]) for s in np.unique(studies)] == [
        {"a"}, {"b"}, {"a"}, {"b"}]
    assert kept.sum() == 8 and probe.one_class_per_study(studies, studies).all()
    crossed = probe.confounding(labels, studies, studies)
    assert list(crossed["shared"]) == [1, 1] and set(crossed["note"]) == {""}
    alone = probe.confounding(labels[kept], studies[kept], studies[kept])
    assert list(alone["n_studies"]) == [2, 2] and list(alone["shared"]) == [0, 0]


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("organs")
    return folder, synthetic.make_organ_images(folder, tile_px=48, mpp=2.0)


@pytest.mark.slow
def test_stain_explains_a_confounded_organ_and_not_a_crossed_one(organs):
    folder, table = organs
    names = list(table["image"])
    stain = probe.image_means(probe.colour_features(folder / "tiles", names), names)
    handmade = create_encoder("handmade", device="cpu")
    texture = np.stack([handmade.encode(store.read_tiles(folder / f"tiles/{name}.h5").img).mean(0)
                        for name in names])
    alone = probe.one_class_per_study(table["label"], table["study"])
    assert alone.sum() == len(table) / 3

    def auroc(X, rows, by):
        found = probe.evaluate(X[rows], table["label"][rows], table[by][rows], n_folds=3)
        return found.scores.intervals().set_index("metric").loc["auroc"]

    everything = np.ones(len(table), bool)
    assert auroc(stain, alone, "patient")["ci_low"] > 0.8
    assert auroc(stain, everything, "patient")["mean"] < 0.6
    assert auroc(texture, everything, "patient")["ci_low"] > 0.9
    assert auroc(texture, everything, "study")["mean"] > auroc(stain, everything, "study")["mean"]
    # what was learned from a confounded set is the scanner: on a scanner not seen it is of no use
    assert auroc(stain, alone, "study")["mean"] < 0.75


def test_an_organ_does_not_change_colours(organs):
    """Mean and spread of optical density by organ, within scanners, differ by chance alone."""
    from scipy.stats import f_oneway

    folder, table = organs
    names = list(table["image"])
    stain = probe.image_means(probe.colour_features(folder / "tiles", names), names)
    scanner = table["study"].to_numpy()
    for each in np.unique(scanner):
        stain[scanner == each] -= stain[scanner == each].mean(axis=0)
    parts = [stain[(table["label"] == organ).to_numpy()] for organ in table["label"].unique()]
    assert f_oneway(*parts).pvalue.min() > 0.01


def test_organs_repeat_and_refuse_what_cannot_be_made(organs, tmp_path):
    folder, table = organs
    few = synthetic.make_organ_images(tmp_path, n_scanners=9, patients_per_cell=1, tile_px=48,
                                      mpp=2.0)
    name = few["image"].iloc[-1]
    np.testing.assert_array_equal(store.read_tiles(tmp_path / f"tiles/{name}.h5").img,
                                  store.read_tiles(folder / f"tiles/{name}.h5").img)
    assert table["patient"].is_unique and json.dumps(list(table.columns)) == json.dumps(
        ["image", "patient", "label", "study"])
    assert table.groupby("study")["label"].nunique().eq(3).all()
    for option in ({"n_organs": 4}, {"tiles_per_image": 8}, {"version": "7"}, {"contrast": 1.1}):
        with pytest.raises(InputError, match=next(iter(option))):
            synthetic.make_organ_images(tmp_path, **option)
