"""Readers of labelled images and their cutting: what is found, what is refused, what is cut."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mvhlib.artifacts import InputError, read_csv
from mvhlib.downstream import probe
from mvhlib.tiles import labelled, store


def draw(path, width=64, height=64, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def glas(folder, n=4):
    rows = [{"image": f"train_{k}", "patient_id": str(k % 2), "label": "ab"[k % 2],
             "grade": f"g{k}"} for k in range(n)]
    table(folder / "labels.csv", rows)
    for k in range(n):
        draw(folder / "images" / f"train_{k}.png", seed=k)
    return rows


def test_folders_name_the_class(tmp_path):
    for name in ("ADI/1.png", "ADI/2.png", "TUM/deeper/1.png"):
        draw(tmp_path / name)
    images = labelled.read("folder", tmp_path)
    assert {(image.name, image.label) for image in images} == {
        ("ADI-1", "ADI"), ("ADI-2", "ADI"), ("TUM-1", "TUM")}
    assert {image.patient for image in images} == {""}


def test_file_names_name_the_class(tmp_path):
    for name in ("ADI-AAQE.tif", "TUM-AACH.tif"):
        draw(tmp_path / name)
    images = labelled.read("folder", tmp_path)
    assert [(image.name, image.label) for image in images] == [("ADI-AAQE", "ADI"),
                                                               ("TUM-AACH", "TUM")]


def test_unitopatho_names_hold_the_slide(tmp_path):
    draw(tmp_path / "HP" / "149-B2-HP.ndpi_ROI__mpp0.44_reg000_crop_sk1_(1,2,3,4).png")
    draw(tmp_path / "NORM" / "150-B1-NORM.ndpi_ROI__mpp0.44_reg000_crop_sk1_(1,2,3,4).png")
    assert [image.patient for image in labelled.read("folder", tmp_path)] == [
        "149-B2-HP", "150-B1-NORM"]


def test_patients_of_a_folder_come_from_a_table(tmp_path):
    for name in ("A/x.png", "B/y.png"):
        draw(tmp_path / name)
    table(tmp_path / "patients.csv", [{"image": "x.png", "patient": "p1"},
                                      {"image": "y", "patient": "p2"}])
    assert {image.name: image.patient for image in labelled.read("folder", tmp_path)} == {
        "x": "p1", "y": "p2"}
    table(tmp_path / "patients.csv", [{"image": "x.png", "patient": "p1"}])
    with pytest.raises(InputError, match="1 images miss a row: y"):
        labelled.read("folder", tmp_path)


def test_images_behind_a_link_are_found(tmp_path):
    draw(tmp_path / "elsewhere" / "A" / "x.png")
    draw(tmp_path / "elsewhere" / "B" / "y.png")
    (tmp_path / "set").mkdir()
    for name in "AB":
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(labelled.read("folder", tmp_path / "set")) == 2


def test_mhist_csv(tmp_path):
    votes = "Number of Annotators who Selected SSA (Out of 7)"
    table(tmp_path / "annotations.csv", [
        {"Image Name": "MHIST_aaa.png", "Majority Vote Label": "SSA", votes: "6",
         "Partition": "train"},
        {"Image Name": "MHIST_aab.png", "Majority Vote Label": "HP", votes: "0",
         "Partition": "test"}])
    for name in ("MHIST_aaa.png", "MHIST_aab.png"):
        draw(tmp_path / "images" / name)
    images = labelled.read("mhist", tmp_path)
    assert [(image.name, image.label, image.extra) for image in images] == [
        ("MHIST_aaa", "SSA", {"votes_ssa": "6", "partition": "train"}),
        ("MHIST_aab", "HP", {"votes_ssa": "0", "partition": "test"})]


def test_glas_table(tmp_path):
    glas(tmp_path)
    images = labelled.read("glas", tmp_path)
    assert [(image.patient, image.label, image.extra["grade"]) for image in images] == [
        ("0", "a", "g0"), ("1", "b", "g1"), ("0", "a", "g2"), ("1", "b", "g3")]


def test_labels_without_images_and_images_without_labels_are_both_named(tmp_path):
    glas(tmp_path)
    (tmp_path / "images" / "train_1.png").unlink()
    draw(tmp_path / "images" / "stranger.png")
    with pytest.raises(InputError) as error:
        labelled.read("glas", tmp_path)
    assert "1 rows miss an image: train_1" in str(error.value)
    assert "1 images miss a row: stranger" in str(error.value)
    assert "labels.csv" in str(error.value)


@pytest.mark.parametrize(("column", "value", "said"), [
    ("label", "", "label: is empty for train_2"), ("patient_id", "", "patient: is empty"),
    ("image", "train_1", "stands more than once: train_1")])
def test_bad_rows_are_refused(tmp_path, column, value, said):
    rows = glas(tmp_path)
    rows[2][column] = value
    table(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError, match=said):
        labelled.read("glas", tmp_path)


def test_bad_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not known"):
        labelled.read("camelyon", tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        labelled.read("glas", tmp_path / "absent")
    with pytest.raises(InputError, match="no csv has the columns"):
        labelled.read("mhist", tmp_path)
    with pytest.raises(InputError, match="are none below"):
        labelled.read("folder", tmp_path)
    draw(tmp_path / "A" / "x.png")
    with pytest.raises(InputError, match="has 1 class"):
        labelled.read("folder", tmp_path)
    draw(tmp_path / "nothing_says_what_this_is.png")
    with pytest.raises(InputError, match="label: is empty for nothing_says"):
        labelled.read("folder", tmp_path)


def test_a_grid_covers_an_image_without_padding(tmp_path):
    rows = glas(tmp_path, n=2)
    pixels = draw(tmp_path / "images" / "train_0.png", width=130, height=64)
    labelled.cut(labelled.read("glas", tmp_path), tmp_path / "out", tile_um=16, tile_px=32, mpp=0.5)
    tiles = store.read_tiles(tmp_path / "out" / "tiles" / "train_0.h5")
    assert len(tiles) == 4 * 2 and not tiles.outside.any()
    for img, (x, y) in zip(tiles.img, tiles.coords, strict=True):
        np.testing.assert_array_equal(img, pixels[y:y + 32, x:x + 32])
    assert tiles.coords[:, 0].max() + 32 == 130 and tiles.coords.min() == 0
    with open(tmp_path / "out" / "labels.csv", newline="", encoding="utf-8") as stream:
        assert list(csv.DictReader(stream)) == [
            {"image": row["image"], "patient": row["patient_id"], "label": row["label"],
             "grade": row["grade"]} for row in rows]
    with open(tmp_path / "out" / "tiles" / "manifest.csv", encoding="utf-8") as stream:
        assert next(stream).strip() == ("section,n_tiles,tile_px,tile_um,mpp,source_mpp,padded_max,"
                                        "sha256")


def test_an_image_smaller_than_a_tile_is_one_tile_as_a_whole(tmp_path):
    glas(tmp_path, n=2)
    pixels = draw(tmp_path / "images" / "train_0.png", width=32, height=20)
    labelled.cut(labelled.read("glas", tmp_path), tmp_path / "out", tile_um=100, tile_px=32,
                 mpp=0.5)
    tiles = store.read_tiles(tmp_path / "out" / "tiles" / "train_0.h5")
    assert tiles.img.shape == (1, 32, 32, 3) and tiles.tile_um == 16
    np.testing.assert_array_equal(tiles.img[0, 6:26], pixels)
    assert tiles.outside[0] == pytest.approx(12 / 32)
    assert (tiles.img[0, :6] == 255).all() and (tiles.img[0, 26:] == 255).all()


def test_cutting_goes_on_where_it_was(tmp_path):
    glas(tmp_path)
    images, out = labelled.read("glas", tmp_path), tmp_path / "out"
    settings = {"tile_um": 16, "tile_px": 32, "mpp": 0.5}
    first = labelled.cut(images, out, **settings)
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "tiles").glob("*.h5")}
    (out / "tiles" / "train_1.h5").unlink()
    draw(tmp_path / "images" / "train_2.png", seed=99)
    second = labelled.cut(images, out, **settings)
    again = {path.name: path.stat().st_mtime_ns for path in (out / "tiles").glob("*.h5")}
    assert {name for name in stamps if again[name] != stamps[name]} == {"train_1.h5", "train_2.h5"}
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, True]
    third = labelled.cut(images, out, **settings | {"tile_px": 16})
    assert {row["tile_px"] for row in third} == {16}


def test_scale_must_be_stated(tmp_path):
    glas(tmp_path)
    with pytest.raises(InputError, match="mpp: is not known"):
        labelled.cut(labelled.read("glas", tmp_path), tmp_path / "out", tile_um=16, tile_px=32)
    with pytest.raises(InputError, match="cannot be decoded"):
        (tmp_path / "images" / "train_0.png").write_bytes(b"no image")
        labelled.cut(labelled.read("glas", tmp_path), tmp_path / "out", tile_um=16, tile_px=32,
                     mpp=0.5)


def test_real_sets(shared, tmp_path):
    if not (shared / "data" / "glas").is_dir():
        pytest.skip("needs the glas data set")
    images = labelled.read("glas", shared / "data" / "glas")
    assert len(images) == 120 and len({image.patient for image in images}) == 13
    assert Counter(image.label for image in images) == {"benign": 49, "malignant": 71}
    tiles = labelled.read("folder", shared / "data" / "crc_tiles" / "nct_crc_he_9class")
    assert len({image.label for image in tiles}) == 9
    rows = labelled.cut([images[0], *tiles], tmp_path, tile_um=112, tile_px=64, mpp=0.5)
    assert rows[0]["n_tiles"] > 1 and {row["n_tiles"] for row in rows[1:]} == {1}
    assert max(row["padded_max"] for row in rows) == 0


def relink(path, target):
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(("change", "said"), [
    (lambda d: (d / "labels.csv").write_bytes((d / "labels.csv").read_text().encode("utf-16")),
     "labels.csv: encoding: is UTF-16"),
    (lambda d: (d / "labels.csv").write_text((d / "labels.csv").read_text() + "train_4,1\n"),
     "labels.csv: row 6: has 2 cells"),
    (lambda d: ((d / "labels.csv").unlink(), (d / "labels.csv").mkdir()), "csv: file: is a folder"),
    (lambda d: relink(d / "labels.csv", "absent.csv"), "labels.csv: file: is a link to absent"),
    (lambda d: (d / "labels.csv").write_text(
        (d / "labels.csv").read_text().replace("label,", "Label,")), "rename 'Label' for 'label'"),
    (lambda d: relink(d / "images/train_0.png", "absent.png"), "train_0.png: .*not exist"),
    (lambda d: relink(d / "images/train_0.png", "train_0.png"), "train_0.png: .*in a circle"),
    (lambda d: relink(d / "images/train_0.png", "train_1.png"), "label: is a, b for one file"),
    (lambda d: (d / "images/more").symlink_to(d / "absent"), "more: file: .*does not exist"),
    (lambda d: (d / "images/more").symlink_to(d), "more: folder: is a link to a folder that holds"),
    (lambda d: (d / "images/pipe.png").mkdir(), None),
    (lambda d: (d / "._labels.csv").write_bytes(b"\0\x05\x16\x07" + bytes(99)), None),
    (lambda d: (d / "images/._train_0.png").write_bytes(b"\0\x05\x16\x07" + bytes(99)), None),
    (lambda d: (d / "notes.csv").write_bytes("who\nMüllerß\n".encode("latin-1")), None)])
def test_tables_and_links_are_read_or_refused_where_they_stand(tmp_path, change, said):
    glas(tmp_path)
    plain = labelled.read("glas", tmp_path)
    change(tmp_path)
    if said is None:
        assert labelled.read("glas", tmp_path) == plain
        return
    with pytest.raises(InputError, match=said) as error:
        labelled.read("glas", tmp_path)
    assert "\n" not in str(error.value)


def test_semicolons_and_row_names_give_the_same_images(tmp_path):
    glas(tmp_path)
    plain, path = labelled.read("glas", tmp_path), tmp_path / "labels.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([",".join(["", lines[0]]), *(
        f"{n},{line}" for n, line in enumerate(lines[1:], 1))]))
    assert labelled.read("glas", tmp_path) == plain
    path.write_text("\ufeff" + "\r\n".join(lines).replace(",", ";"), encoding="utf-8")
    assert labelled.read("glas", tmp_path) == plain
    assert [image.extra for image in labelled.read("glas", tmp_path)] == [
        image.extra for image in plain]


@pytest.mark.parametrize("word", ["", "NA", "nan", "unknown"])
def test_where_nobody_names_patients_images_are_the_unit(tmp_path, word):
    rows = glas(tmp_path)
    for row in rows:
        row["patient_id"] = word
    table(tmp_path / "labels.csv", rows)
    images = labelled.read("glas", tmp_path)
    assert {image.patient for image in images} == {""}
    labelled.cut(images, tmp_path / "out", tile_um=16, tile_px=16, mpp=0.5)
    about = read_csv(tmp_path / "out" / "labels.csv", dtype=str)
    assert about["patient"].isna().all() and probe.in_two_units(about["label"],
                                                                about["patient"]).all()
    X = np.random.default_rng(0).normal(size=(40, 3))
    many = about.iloc[np.arange(40) % 4].reset_index(drop=True)
    found = probe.compare(X, many, dataset="d", encoder="e", classifiers=["knn"], n_folds=2)
    assert set(found.table["unit"]) == {"image"} and "grouped" in set(found.left_out["split"])


@pytest.mark.parametrize("word", ["NA", "nan", "[Not Available]"])
def test_a_word_for_nothing_is_no_label(tmp_path, word):
    rows = glas(tmp_path)
    rows[2]["label"] = word
    table(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError, match=f"label: is .*{word[-4:-1]}.* for train_2"):
        labelled.read("glas", tmp_path)
    rows[2] |= {"label": "a", "patient_id": word}
    table(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError, match="patient: is empty for train_2"):
        labelled.read("glas", tmp_path)
