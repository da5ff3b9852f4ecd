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


# what cannot be true


def whole(path, **change):
    """A valid file with some of its datasets replaced; `attrs` are the file's."""
    parts = {"features": np.ones((4, 3), np.float32), "coords": np.arange(8).reshape(4, 2),
             "barcodes": np.array([b"a", b"b", b"c", b"d"]).reshape(-1, 1)} | change
    with h5py.File(path, "w") as stream:
        for name, value in (parts.pop("attrs", None) or {}).items():
            stream.attrs[name] = value
        for name, value in parts.items():
            if value is None:
                continue
            if callable(value):
                value(stream, name)
            else:
                stream[name] = value
    return path


def declared(stream, name):
    stream.create_dataset(name, (10**9, 3), "f4", chunks=(1000, 3), compression="gzip")


def virtual(stream, name):
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 3))
    stream.create_virtual_dataset(name, layout)


NAN = np.array([[1, np.nan, 1]] * 4, np.float32)


@pytest.mark.parametrize("change, problem", [
    ({"features": NAN}, "features: holds NaN or infinity in 4 of 12"),
    ({"features": np.full((4, 3), 1e300)}, "features: holds numbers too large for float32"),
    ({"features": np.full((4, 3), b"1")}, "features: holds text"),
    ({"features": np.ones((4, 3), complex)}, "features: holds neither numbers nor text"),
    ({"features": lambda s, n: s.create_group(n)}, "features: is a group"),
    ({"features": h5py.Empty("f4")}, "features: holds nothing"),
    ({"features": h5py.SoftLink("/none")}, "features: is a link to /none, which leads nowhere"),
    ({"features": h5py.ExternalLink("b.h5", "/x")}, "features: is a link to another file"),
    ({"features": virtual}, "features: keeps its values in another file"),
    ({"features": lambda s, n: s.create_dataset(n, (4, 3), "f4", external=[("b.raw", 0, 48)])},
     "features: keeps its values in another file"),
    ({"features": declared}, r"features: declares 12,000,000,000 bytes.*holds 0"),
    ({"coords": lambda s, n: s.create_dataset(n, (4, 2), "i8")}, "coords: declares 64 bytes"),
    ({"coords": np.full((4, 2), np.nan)}, "coords: holds NaN"),
    ({"coords": np.full((4, 2), 0.5)}, "coords: holds fractions"),
    ({"coords": np.full((4, 2), 1e15)}, "coords: .*beyond any slide"),
    ({"coords": np.zeros((4, 5), int)}, r"coords: is int64 of shape \(4, 5\)"),
    ({"coords": 3}, r"coords: has shape \(\)"),
    ({"barcodes": np.array([b"\xff", b"b", b"c", b"d"])}, "barcodes: is not UTF-8 in row 0"),
    ({"barcodes": np.array([b"a ", b"a", b"c", b"d"])}, r"barcode: stands more than once.*'a'"),
    ({"barcodes": np.array([b"a", b" ", b"c", b"d"])}, "barcode: is blank in row 1"),
    ({"barcodes": np.array([b"a", b"b"])}, "barcodes: has 2 rows for 4"),
    ({"barcodes": np.ones(4)}, "barcodes: holds fractions"),
    ({"barcodes": None, "coords": np.zeros((4, 2), int)}, "coords: stands more than once"),
    ({"attrs": {"mpp": np.nan}}, "mpp: is nan"),
    ({"attrs": {"mpp": 0.0}}, "mpp: is 0.0"),
    ({"attrs": {"tile_um": -1.0}}, "tile_um: is -1.0"),
    ({"attrs": {"source_mpp": "0,5"}}, "source_mpp: is '0,5', not a number"),
    ({"attrs": {"mpp": [0.5, 0.5]}}, "mpp: is an attribute of 2 values"),
    ({"attrs": {"width": 7}}, "width: is 7, the features have 3"),
    ({"attrs": {"tile_px": 224, "tile_um": 112.0, "mpp": 1.0}}, "mpp: is 1, but"),
    ({"attrs": {"encoder": np.bytes_(b"\xff\xfe")}}, "encoder: is not UTF-8"),
    ({"attrs": {"note": np.bytes_(b"\xff\xfe")}}, "UnicodeDecodeError"),
])
def test_what_cannot_be_true_is_one_line(tmp_path, change, problem):
    with pytest.raises(InputError, match=problem) as caught:
        read_features(whole(tmp_path / "a.h5", **change))
    assert "\n" not in str(caught.value) and "a.h5" in str(caught.value)


def test_links_inside_a_file_and_unusual_names_are_read(tmp_path):
    def linked(stream, name):
        stream["stored"] = np.ones((4, 3), np.float32)
        stream[name] = h5py.SoftLink("/stored")

    assert read_features(whole(tmp_path / "a.h5", features=linked)).features.sum() == 12
    found = read_features(whole(tmp_path / "a.h5", barcodes=np.array([[7, 8, 9, 10]])))
    assert found.barcodes == ["7", "8", "9", "10"]
    found = read_features(whole(tmp_path / "a.h5", barcodes=None, coords=None))
    assert found.barcodes == ["row0", "row1", "row2", "row3"] and not found.coords.any()


def test_what_is_no_h5_file_is_one_line(tmp_path):
    def said(path):
        with pytest.raises(InputError) as caught:
            read_features(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is a folder" in said(tmp_path)
    assert "does not exist" in said(tmp_path / "none.h5")
    (tmp_path / "empty.h5").touch()
    assert "is empty" in said(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("no h5")
    assert "not a readable h5 file" in said(tmp_path / "text.h5")
    (tmp_path / "dangling.h5").symlink_to("gone.h5")
    assert "is a link to gone.h5, which does not exist" in said(tmp_path / "dangling.h5")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    assert "runs in a circle" in said(tmp_path / "loop.h5")
    whole(tmp_path / "a.h5")
    (tmp_path / "link.h5").symlink_to("a.h5")
    assert len(read_features(tmp_path / "link.h5")) == 4


def test_a_file_that_hangs_the_library_is_found_out(tmp_path, monkeypatch):
    from mvhlib.artifacts import h5

    path = whole(tmp_path / "a.h5")
    monkeypatch.setattr(h5, "_WALK_CPU_S", 1)

    def hang(_):
        while True:
            pass

    monkeypatch.setattr(h5, "_walk_h5", hang)
    with pytest.raises(InputError, match="a.h5: file: .*does not finish reading"):
        read_features(path)
    assert read_attr(path, "key") is None

    def crash(_):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(h5, "_walk_h5", crash)
    with pytest.raises(InputError, match="crashes on it .SIGSEGV"):
        read_features(path)
    monkeypatch.undo()
    assert len(read_features(path)) == 4


def test_trident_says_its_scale_twice_and_must_agree(tmp_path):
    path = whole(tmp_path / "a.h5")
    for level0, fine in ((512, True), (300, False)):
        with h5py.File(path, "a") as stream:
            stream["coords"].attrs.update({"patch_size": 256, "patch_size_level0": level0,
                                           "level0_magnification": 40, "target_magnification": 20})
        if fine:
            assert read_features(path).attrs["source_mpp"] == 0.25
        else:
            with pytest.raises(InputError, match="patch_size_level0: is 300 px"):
                read_features(path)


def test_places_are_padded_as_hest_does_and_come_back(tmp_path):
    feats = Features(np.ones((3, 2), np.float32), np.arange(6).reshape(3, 2),
                     ["9x12", "10x12", "0x7"])
    write_features(tmp_path / "a.h5", feats, "hest")
    with h5py.File(tmp_path / "a.h5") as stream:
        assert stream["barcodes"][:, 0].tolist() == [b"009x012", b"010x012", b"000x007"]
    assert read_features(tmp_path / "a.h5").barcodes == feats.barcodes
    write_features(tmp_path / "b.h5", feats)
    with h5py.File(tmp_path / "b.h5") as stream:
        assert stream["barcodes"][0, 0] == b"9x12"


def test_the_manifest_of_a_folder_is_compared(tmp_path, feats):
    write_features(tmp_path / "007.h5", feats)
    write_features(tmp_path / "old.h5", feats)
    (tmp_path / "._007.h5").write_bytes(b"macOS")
    manifest = tmp_path / "manifest.csv"
    assert sorted(read_folder(tmp_path)) == ["007", "old"]
    manifest.write_text("section,n_tiles,width\n007,4,7\n")
    assert list(read_folder(tmp_path)) == ["007"]  # what an earlier run left is nobody's
    for row, problem in (("007,5,7", r"n_tiles, width: of section 007 are \(5, 7\)"),
                         ("007,4,7\n007,4,7", "'007' stands more than once"),
                         ("008,4,7", "008.h5: file: does not exist"),
                         ("007,x,7", "n_tiles")):
        manifest.write_text(f"section,n_tiles,width\n{row}\n")
        with pytest.raises(InputError, match=problem):
            read_folder(tmp_path)


def test_scales_and_corners_are_checked_on_writing(tmp_path, feats):
    for name, value in (("mpp", 0), ("tile_um", -1.0), ("source_mpp", np.nan), ("mpp", "0,5")):
        with pytest.raises(InputError, match=name):
            write_features(tmp_path / "a.h5", Features(feats.features, feats.coords, NAMES,
                                                       {name: value}))
    for coords in (np.full((4, 2), np.nan), np.full((4, 2), 0.5)):
        with pytest.raises(InputError, match="coords"):
            write_features(tmp_path / "a.h5", Features(feats.features, coords, NAMES))
    with pytest.raises(InputError, match="blank in row 3"):
        write_features(tmp_path / "a.h5", Features(feats.features, feats.coords,
                                                   [*NAMES[:3], " "]))
    assert not (tmp_path / "a.h5").exists()
