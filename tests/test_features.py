"""Feature files: every layout back to the same features, and refusals."""

import time

import h5py
import numpy as np
import pytest

from mvhlib.artifacts import InputError, read_attr, sha256_file
from mvhlib.features import (
    LAYOUTS,
    Features,
    align,
    read_features,
    read_folder,
    write_features,
)

NAMES = ["AAAC-1", "AAAG-1", "10x12", "12x12"]
ATTRS = {"encoder": "handmade", "tile_px": 224, "tile_um": 112.0, "mpp": 0.5, "source_mpp": 0.69,
         "source_sha256": "0" * 64}


@pytest.fixture
def feats():
    rng = np.random.default_rng(0)
    return Features(rng.normal(size=(4, 7)).astype(np.float32), rng.integers(-9, 9999, (4, 2)),
                    list(NAMES), dict(ATTRS))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back(tmp_path, feats, layout):
    write_features(tmp_path / "a.h5", feats, layout, key="k")
    back = read_features(tmp_path / "a.h5")
    np.testing.assert_array_equal(back.features, feats.features)
    np.testing.assert_array_equal(back.coords, feats.coords)
    assert back.features.dtype == np.float32 and back.coords.dtype == np.int64
    assert back.barcodes == NAMES and back.width == 7 and len(back) == 4
    assert read_attr(tmp_path / "a.h5", "key") == "k"
    known = {"mvhlib": ATTRS, "hest": {},
             "trident": {k: v for k, v in ATTRS.items() if k != "source_sha256"}}[layout]
    for name, value in known.items():
        assert back.attrs[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_trident_finds_its_own_names(tmp_path, feats):
    write_features(tmp_path / "S1.h5", feats, "trident")
    with h5py.File(tmp_path / "S1.h5") as stream:
        assert dict(stream["features"].attrs) == {"encoder": "handmade", "name": "S1",
                                                  "savetodir": ""}
        attrs = dict(stream["coords"].attrs)
        assert attrs["patch_size"] == 224 and attrs["overlap"] == 0
        assert attrs["patch_size_level0"] == round(112 / 0.69)
        assert attrs["target_magnification"] == pytest.approx(20)
        assert stream["coords"].dtype == np.int64


def test_hest_finds_its_own_names(tmp_path, feats):
    write_features(tmp_path / "a.h5", feats, "hest")
    with h5py.File(tmp_path / "a.h5") as stream:
        assert set(stream) == {"embeddings", "barcodes", "coords"}
        assert stream["barcodes"].shape == (4, 1) and stream["barcodes"].dtype.kind == "S"


def test_equal_features_give_equal_bytes(tmp_path, feats):
    write_features(tmp_path / "a.h5", feats, key="k")
    time.sleep(1.1)  # h5 time stamps count seconds
    feats.attrs = dict(reversed(feats.attrs.items()))
    write_features(tmp_path / "b.h5", feats, key="k")
    assert sha256_file(tmp_path / "a.h5") == sha256_file(tmp_path / "b.h5")


def test_foreign_files_are_read(tmp_path):
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    with h5py.File(tmp_path / "trident.h5", "w") as stream:  # no barcodes
        stream["features"], stream["coords"] = values, np.array([[0, 0], [512, 0], [0, 512]])
        stream["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512,
                                       "level0_magnification": 40, "target_magnification": 20})
        stream["features"].attrs["encoder"] = "uni_v1"
    feats = read_features(tmp_path / "trident.h5")
    assert feats.barcodes == ["x0_y0", "x512_y0", "x0_y512"] and feats.attrs["mpp"] == 0.5
    assert feats.attrs["tile_um"] == 128 and feats.attrs["encoder"] == "uni_v1"
    with h5py.File(tmp_path / "clam.h5", "w") as stream:
        stream["features"], stream["coords"] = values[None], np.zeros((3, 2))
        stream["barcode"] = np.array([b"a", b"b", b"c"])
    feats = read_features(tmp_path / "clam.h5")
    np.testing.assert_array_equal(feats.features, values)  # (1, n, D)
    assert feats.barcodes == ["a", "b", "c"]
    with h5py.File(tmp_path / "text.h5", "w") as stream:
        stream["embeddings"], stream["coords"] = values, np.zeros((3, 2))
        stream["barcodes"] = ["a", "b", "ö"]
    assert read_features(tmp_path / "text.h5").barcodes == ["a", "b", "ö"]


def test_broken_feature_files_are_one_clear_error(tmp_path, feats):
    path = tmp_path / "section.h5"
    write_features(path, feats)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="section.h5.*truncated"):
        read_features(path)
    for content, problem in (
            ({"features": np.zeros(5)}, "one vector of 5 for the whole slide"),
            ({"features": np.zeros((5, 2)), "coords": np.zeros((4, 2))}, "4 rows for 5"),
            ({"coords": np.zeros((4, 2))}, "features: is missing"),
            ({"features": np.zeros((2, 5, 2))}, "has shape")):
        with h5py.File(path, "w") as stream:
            for name, value in content.items():
                stream[name] = value
        with pytest.raises(InputError, match=problem):
            read_features(path)


def test_what_is_not_written(tmp_path, feats):
    path = tmp_path / "a.h5"
    with pytest.raises(InputError, match="layout"):
        write_features(path, feats, "clam")
    feats.features[2, 3] = np.nan
    with pytest.raises(InputError, match="not finite in 1 of 4"):
        write_features(path, feats)
    feats.features[2, 3] = 0
    feats.barcodes[0] = feats.barcodes[1]
    with pytest.raises(InputError, match="more than once"):
        write_features(path, feats)
    assert not path.exists()


def test_align_follows_the_names(feats):
    np.testing.assert_array_equal(align(feats, ["12x12", "AAAC-1"]), feats.features[[3, 0]])
    with pytest.raises(InputError, match=r"1 of 2 spots.*'AAAC'.*'AAAC-1'"):
        align(feats, ["AAAC", "AAAG-1"])
    feats.barcodes[0] = feats.barcodes[1]
    with pytest.raises(InputError, match="repeated"):
        align(feats, ["12x12"])


def test_a_folder_of_two_encoders_is_refused(tmp_path):
    for name, width in (("a", 3), ("b", 4)):
        feats = Features(np.ones((2, width), np.float32), np.zeros((2, 2), np.int64),
                                  ["x", "y"], {"working_mpp": 2.0})
        write_features(tmp_path / f"{name}.h5", feats)
    assert read_folder(tmp_path, ["a"])["a"].attrs["working_mpp"] == 2.0
    with pytest.raises(InputError, match="differ in width"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="holds no h5 file"):
        read_folder(tmp_path / "none")
