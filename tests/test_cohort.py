"""Readers: what is in a directory becomes sections in the right place, or one clear error."""

import gzip
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from mvhlib import cohort
from mvhlib.artifacts import InputError, write_csv
from mvhlib.cohort import (
    base,
    feature_matrix,
    legacy_st,
    pseudospots,
    qc,
    thumbnail,
    visium,
)
from mvhlib.cohort.visium import images

PITCH_PX = 50.0  # of the small arrays below; 200 um, hence 4 um/px
GENES = ["GENEA", "GENEB", "MT-CO1", "NA"]


def write_st_section(root: Path, name: str = "A1", n: int = 5, *, image: str | None = "full",
                     spot_names: list[str] | None = None, counts: np.ndarray | None = None,
                     genes: list[str] = GENES, selected: np.ndarray | None = None,
                     turn: float = 0.0) -> np.ndarray:
    """Write an n x n array as the published files look; gives the true pixel of every spot."""
    for folder in ("ST-cnts", "ST-spotfiles"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    y, x = (axis.ravel() for axis in np.mgrid[3:3 + n, 2:2 + n])
    # An array is never quite square to the image: turn the lattice about its corner.
    cos, sin = np.cos(turn), np.sin(turn)
    pixel = PITCH_PX * np.column_stack([cos * x - sin * y, sin * x + cos * y])
    rng = np.random.default_rng(5)
    counts = rng.poisson(4.0, (n * n, len(genes))) if counts is None else counts
    names = spot_names or [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    with gzip.open(root / "ST-cnts" / f"{name}.tsv.gz", "wt") as stream:
        stream.write("\t" + "\t".join(genes) + "\n")
        for barcode, row in zip(names, counts, strict=True):
            stream.write(barcode + "\t" + "\t".join(map(str, row)) + "\n")
    pd.DataFrame({"x": x, "y": y, "new_x": x + 0.04, "new_y": y - 0.03, "pixel_x": pixel[:, 0],
                  "pixel_y": pixel[:, 1],
                  "selected": np.ones(n * n, int) if selected is None else selected}
                 ).to_csv(root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
    if image == "full":
        folder = root / "ST-imgs" / name[0] / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(1).integers(90, 200, (500, 480, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "scan.jpg")
    return pixel


def test_her2st_discovers_and_places(tmp_path):
    pixel = write_st_section(tmp_path, "A1", turn=0.05)
    write_st_section(tmp_path, "B12", image=None)
    (tmp_path / "ST-pat-lbl").mkdir()
    pd.DataFrame({"Row.names": ["a", "b", "c"], "x": [2.02, 3.9, np.nan], "y": [3.01, 2.97, 1.0],
                  "label": ["invasive cancer", "adipose tissue", "undetermined"]}).to_csv(
        tmp_path / "ST-pat-lbl" / "A1_labeled_coordinates.tsv", sep="\t", index=False)

    found = cohort.read("her2st", tmp_path)

    assert list(found.sections) == ["A1", "B12"]
    section = found["A1"]
    assert (section.patient, section.specimen, section.study) == ("A", "A", "her2st")
    assert found["B12"].patient == "B" and not found["B12"].has_image and found["B12"].mpp is None
    np.testing.assert_allclose(section.adata.obsm["spatial"], pixel)
    assert section.mpp == pytest.approx(200 / PITCH_PX, rel=1e-9)
    assert section.image_size == (480, 500)
    assert section.adata.obs["label"].tolist()[:3] == ["invasive cancer", np.nan, "adipose tissue"]
    assert list(section.adata.var_names) == GENES  # the gene called NA is a name
    assert section.adata.layers["counts"].dtype == np.int32
    assert sparse.issparse(section.adata.layers["counts"])
    assert found.manifest["has_image"].tolist() == [True, False]
    assert "2 sections (1 with image)" in repr(found) and "480 x 500 px" in repr(section)


def test_counts_stay_with_their_spot_whatever_the_order(tmp_path):
    counts = np.arange(100).reshape(25, 4)
    write_st_section(tmp_path, counts=counts)
    table = tmp_path / "ST-spotfiles" / "A1_selection.tsv"
    pd.read_csv(table, sep="\t").sample(frac=1, random_state=0).to_csv(table, sep="\t", index=False)
    adata = cohort.read("her2st", tmp_path)["A1"].adata
    spots = legacy_st.read_spots(table)
    for name in ("2x3", "4x6", "6x7"):
        row = adata.obs_names.get_loc(name)
        x, y = (int(v) for v in name.split("x"))
        assert adata.layers["counts"][row].toarray().ravel().tolist() == counts[
            (y - 3) * 5 + x - 2].tolist()
        np.testing.assert_array_equal(adata.obsm["spatial"][row],
                                      spots.loc[name, ["pixel_x", "pixel_y"]].astype(float))


def test_spots_without_position_or_off_tissue_are_counted(tmp_path):
    names = [f"{x}x{y}" for y in range(3, 8) for x in range(2, 7)]
    names[0], names[7] = "40x40", "41x40"
    selected = np.ones(25, int)
    selected[[0, 3, 4]] = 0
    write_st_section(tmp_path, spot_names=names, selected=selected)
    adata = cohort.read("her2st", tmp_path)["A1"].adata
    join = adata.uns["join"]
    assert (adata.n_obs, join["n_kept"]) == (21, 21)
    assert (join["n_without_position"], join["n_off_tissue"], join["n_without_counts"]) == (2, 2, 1)
    assert "5x3" not in adata.obs_names


def test_reduced_image_scales_coordinates(tmp_path):
    pixel = write_st_section(tmp_path, image=None)
    (tmp_path / "thumbs").mkdir()
    Image.new("RGB", (120, 125)).save(tmp_path / "thumbs" / "A1_small.png")
    section = cohort.read("her2st", tmp_path, full_width_px={"A1": 480})["A1"]
    assert section.mpp == pytest.approx(16.0)
    assert section.image_ref.dark_background
    np.testing.assert_allclose(section.adata.obsm["spatial"], pixel / 4)


def test_scale_of_a_reduced_image_is_found(tmp_path):
    pixel = write_st_section(tmp_path, n=9, image=None)
    small = np.zeros((220, 200, 3), np.uint8)
    low, high = pixel.min(0) - PITCH_PX / 2, pixel.max(0) + PITCH_PX / 2
    scale = 0.31
    x0, y0, x1, y1 = np.round(np.concatenate([low, high]) * scale).astype(int)
    small[y0:y1, x0:x1] = (170, 90, 160)
    Image.fromarray(small).save(tmp_path / "A1_dark.png")
    section = cohort.read("her2st", tmp_path)["A1"]
    assert section.mpp == pytest.approx(4.0 / scale, rel=0.01)


def test_image_that_fits_nothing_is_refused(tmp_path):
    write_st_section(tmp_path, n=9, image=None)
    Image.new("RGB", (200, 220), "white").save(tmp_path / "A1_blank.png")
    with pytest.raises(InputError, match="full_width_px"):
        cohort.read("her2st", tmp_path)


def test_links_and_relative_paths(tmp_path, monkeypatch):
    write_st_section(tmp_path / "real", "C2")
    linked = tmp_path / "with space"
    linked.mkdir()
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (linked / folder).symlink_to(tmp_path / "real" / folder)
    monkeypatch.chdir(tmp_path)
    section = cohort.read("her2st", "with space")["C2"]
    assert section.has_image and section.image().shape == (500, 480, 3)


def test_no_spot_file_gives_array_positions(tmp_path):
    write_st_section(tmp_path, image="full")
    (tmp_path / "ST-spotfiles" / "A1_selection.tsv").unlink()
    section = cohort.read("her2st", tmp_path)["A1"]
    assert not section.has_image
    np.testing.assert_array_equal(section.adata.obsm["spatial"][1], [3, 3])


def test_lattice_of_staggered_arrays():
    y, x = (axis.ravel() for axis in np.mgrid[0:20, 0:20])
    keep = (x + y) % 2 == 0
    spots = pd.DataFrame({"array_x": x[keep], "array_y": y[keep], "pixel_x": 10.0 * x[keep],
                          "pixel_y": 12.0 * y[keep]})
    lattice = legacy_st.measure_lattice(spots, "test")
    assert lattice.staggered and lattice.pitch_px == pytest.approx(np.hypot(10, 12))
    assert lattice.mpp == pytest.approx(200 / 2**0.5 / np.hypot(10, 12))



def break_directory(root):
    for path in (root / "ST-cnts").iterdir():
        path.unlink()


def break_gz(root):
    path = root / "ST-cnts" / "A1.tsv.gz"
    path.write_bytes(path.read_bytes()[:-20])


def break_join(root):
    write_st_section(root, spot_names=[f"{90 + i}x1" for i in range(25)])


def break_barcodes(root):
    names = [f"{x}x{y}" for y in range(3, 8) for x in range(2, 7)]
    write_st_section(root, spot_names=[names[1], *names[1:]])


def break_sign(root):
    counts = np.ones((25, 4), int)
    counts[3, 2] = -1
    write_st_section(root, counts=counts)


def break_fraction(root):
    write_st_section(root, counts=np.full((25, 4), 1.5))


def break_genes(root):
    write_st_section(root, genes=["GENEA", "GENEA", "C", "D"])


def break_text(root):
    counts = np.ones((25, 4), object)
    counts[2, 1] = "many"
    write_st_section(root, counts=counts)


def break_selection(root):
    write_st_section(root, selected=np.zeros(25, int))


def break_columns(root):
    path = root / "ST-spotfiles" / "A1_selection.tsv"
    pd.read_csv(path, sep="\t").drop(columns="pixel_x").to_csv(path, sep="\t", index=False)


def break_positions(root):
    path = root / "ST-spotfiles" / "A1_selection.tsv"
    table = pd.read_csv(path, sep="\t")
    pd.concat([table, table.iloc[:1]]).to_csv(path, sep="\t", index=False)


def break_jpg(root):
    path = root / "ST-imgs" / "A" / "A1" / "scan.jpg"
    path.write_bytes(path.read_bytes()[:2000])


def break_images(root):
    Image.new("RGB", (480, 500)).save(root / "ST-imgs" / "A" / "A1" / "again.png")


@pytest.mark.parametrize(("fault", "file", "field"), [
    (break_directory, "her2st", "ST-cnts"),
    (break_gz, "A1.tsv.gz", "file"),
    (break_join, "A1.tsv.gz", "index"),
    (break_barcodes, "A1.tsv.gz", "barcode"),
    (break_sign, "A1.tsv.gz", "counts"),
    (break_fraction, "A1.tsv.gz", "counts"),
    (break_genes, "A1.tsv.gz", "gene"),
    (break_text, "A1.tsv.gz", "counts"),
    (break_selection, "A1_selection.tsv", "selected"),
    (break_columns, "A1_selection.tsv", "columns"),
    (break_positions, "A1_selection.tsv", "x, y"),
    (break_jpg, "scan.jpg", "image"),
    (break_images, "scan.jpg", "image"),
])
def test_bad_input_is_one_clear_error(tmp_path, fault, file, field):
    root = tmp_path / "her2st"

    def whole_way():
        section = cohort.read("her2st", root)["A1"]
        return base.write_section(section, tmp_path / "out")

    write_st_section(root)
    assert whole_way().exists()
    (tmp_path / "out" / "A1.h5ad").unlink()
    fault(root)
    with pytest.raises(InputError) as caught:
        whole_way()
    assert Path(caught.value.where).name == file and caught.value.field == field
    assert caught.value.fix and "\n" not in caught.value.fix
    assert list((tmp_path / "out").iterdir()) == []  # nothing half-written


def test_missing_directory_and_unknown_source(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        cohort.read("her2st", tmp_path / "nowhere")
    with pytest.raises(InputError, match="DATA=dir"):
        cohort.read("mob", "")
    with pytest.raises(InputError, match="did you mean 'visium'"):
        cohort.read("visum", tmp_path)
    write_st_section(tmp_path)
    with pytest.raises(InputError, match="B7"):
        cohort.read("her2st", tmp_path, sections=["B7"])
    with pytest.raises(InputError, match="full_width_px"):
        cohort.read("her2st", tmp_path, width=3)
    assert len(cohort.read("her2st", tmp_path, seed=3)) == 1


def test_write_and_read_run(tmp_path):
    write_st_section(tmp_path / "data")
    write_st_section(tmp_path / "data", "B1", image=None)
    made = cohort.read("her2st", tmp_path / "data")
    folder = tmp_path / "run"
    for section in made:
        base.write_section(section, folder)
    write_csv(folder / "manifest.csv", made.manifest)

    again = cohort.read("run", folder, data=tmp_path / "data")

    assert "adata" not in again["A1"].__dict__  # the counts wait for their first use
    pd.testing.assert_frame_equal(again.manifest, made.manifest, check_dtype=False)
    np.testing.assert_array_equal(again["A1"].adata.layers["counts"].toarray(),
                                  made["A1"].adata.layers["counts"].toarray())
    np.testing.assert_array_equal(again["A1"].image(), made["A1"].image())
    spatial = again["A1"].adata.uns["spatial"]["A1"]
    assert spatial["images"]["hires"].shape == (500, 480, 3)
    assert spatial["scalefactors"]["tissue_hires_scalef"] == 1.0
    assert spatial["scalefactors"]["spot_diameter_fullres"] == pytest.approx(100 / 4.0)
    assert "spatial" not in again["B1"].adata.uns
    assert again["A1"].adata.obs[["study", "patient", "section"]].iloc[0].tolist() == [
        "her2st", "A", "A1"]

    (folder / "B1.h5ad").write_bytes((folder / "B1.h5ad").read_bytes()[:3000])
    with pytest.raises(InputError, match="B1.h5ad"):
        cohort.read("run", folder)
    (folder / "manifest.csv").unlink()
    with pytest.raises(InputError, match="01_cohort"):
        cohort.read("run", folder)


def test_thumbnail_is_bounded_and_overlays(tmp_path):
    pixel = write_st_section(tmp_path)
    section = cohort.read("her2st", tmp_path)["A1"]
    cohort.attach_thumbnail(section, max_px=100)
    record = section.adata.uns["spatial"]["A1"]
    assert max(record["images"]["hires"].shape) == 100
    scale = record["scalefactors"]["tissue_hires_scalef"]
    assert scale == pytest.approx(record["images"]["hires"].shape[1] / 480)
    assert (pixel.max(0) * scale < record["images"]["hires"].shape[1::-1]).all()


def test_a_contact_sheet_names_each_section_and_holds_its_pixels(tmp_path):
    import matplotlib.pyplot as plt

    write_st_section(tmp_path)
    section = cohort.read("her2st", tmp_path)["A1"]
    fig, ax = plt.subplots()
    thumbnail.contact_sheet([section] * 3, ax, n_columns=2, side_px=50)
    assert [text.get_text() for text in ax.texts] == ["A1"] * 3
    sheet = np.asarray(ax.images[0].get_array())
    assert sheet.shape[1] == 2 * 58 and sheet.shape[0] == 2 * (58 + 24)
    assert (sheet[82:, 58:] == 255).all()  # no fourth section
    assert (sheet[24:74, :50] < 255).any()
    plt.close(fig)
    assert thumbnail.sheet_height(9) > thumbnail.sheet_height(8) == thumbnail.sheet_height(1)


def write_mob(root: Path) -> None:
    root.mkdir(exist_ok=True)
    y, x = (axis.ravel() for axis in np.mgrid[1:11, 1:11])
    keep = (x + y) % 2 == 0
    x, y = x[keep], y[keep]
    for name in ("MOB1", "MOB2"):
        pd.DataFrame({"x": x, "y": y, "pixel_x": 10.0 * x, "pixel_y": 10.0 * y,
                      "selected": ((x > 3) & (y > 3)).astype(int)}).to_csv(
            root / f"alignment_table_{name}.tsv", sep="\t", index=False)
        pd.DataFrame(np.ones((len(x), 3), int), columns=["G1", "G2", "G3"],
                     index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)]).to_csv(
            root / f"{name}.tsv", sep="\t")
        Image.new("RGB", (150, 150), "pink").save(root / f"{name}.jpg")
    (root / "metaData.csv").write_text(
        "samples;type;z;individual\n/home/x/MOB1.tsv;Mouse;100;1\nC:\\x\\MOB2.tsv;Mouse;120;2\n")


def test_mob(tmp_path):
    write_mob(tmp_path)
    found = cohort.read("mob", tmp_path)
    assert found.patients == ["mouse1", "mouse2"]
    assert found["MOB1"].adata.n_obs == 25  # 7 x 7 positions, every other one
    assert found["MOB1"].mpp == pytest.approx(10.0)  # 141.4 um over 14.14 px
    (tmp_path / "metaData.csv").unlink()
    with pytest.raises(InputError, match="patients="):
        cohort.read("mob", tmp_path)
    named = cohort.read("mob", tmp_path, patients={"MOB1": "m", "MOB2": "m"})
    assert named.patients == ["m"]


def write_10x_h5(path: Path, counts: np.ndarray, barcodes: list[str], genes: list[str]) -> None:
    matrix = sparse.csc_matrix(counts.T)  # features x barcodes
    with h5py.File(path, "w") as stream:
        group = stream.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"], group["indices"] = matrix.data.astype(np.int32), matrix.indices
        group["indptr"], group["shape"] = matrix.indptr, np.array(matrix.shape)
        features = group.create_group("features")
        features["name"] = np.array(genes, "S")
        features["id"] = np.array([f"ENSG{i}" for i in range(len(genes))], "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), "S")
        features["genome"] = np.array(["GRCh38"] * len(genes), "S")


def write_visium(outs: Path, *, header: bool = True, turn: float = 0.0,
                 spacing_px: float = 20.0) -> pd.DataFrame:
    """A hexagonal lattice with 100 um between spots, hence 5 um/px."""
    (outs / "spatial").mkdir(parents=True)
    rows, columns = (axis.ravel() for axis in np.mgrid[0:6, 0:12])
    keep = (rows + columns) % 2 == 0
    rows, columns = rows[keep], columns[keep]
    x, y = columns * spacing_px / 2 + 30, rows * spacing_px * 3**0.5 / 2 + 40
    cos, sin = np.cos(turn), np.sin(turn)
    table = pd.DataFrame({
        "barcode": [f"BC{i:03d}-1" for i in range(len(rows))],
        "in_tissue": (columns < 10).astype(int), "array_row": rows, "array_col": columns,
        "pxl_row_in_fullres": sin * x + cos * y, "pxl_col_in_fullres": cos * x - sin * y})
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    table.to_csv(outs / "spatial" / name, index=False, header=header)
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps({
        "spot_diameter_fullres": 13.0, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1,
        "fiducial_diameter_fullres": 20.0}))
    Image.new("RGB", (100, 90), "pink").save(outs / "spatial" / "tissue_hires_image.png")
    counts = np.random.default_rng(0).poisson(3, (len(rows), 5))
    write_10x_h5(outs / "filtered_feature_bc_matrix.h5", counts, list(table["barcode"]),
                 ["A", "B", "B", "NegControlProbe_1", "E"])
    table["total"] = counts[:, [0, 1, 2, 4]].sum(1)
    return table.set_index("barcode")


@pytest.mark.parametrize("header", [True, False])
def test_visium_places_spots_and_measures_the_scale(tmp_path, header):
    truth = write_visium(tmp_path / "sample7" / "outs", header=header, turn=0.1)
    section = cohort.read("visium", tmp_path)["sample7"]
    adata = section.adata
    truth = truth[truth["in_tissue"] == 1]
    assert set(adata.obs_names) == set(truth.index)
    assert list(adata.var_names) == ["A", "B", "B-1", "E"]  # the control is gone
    truth = truth.loc[adata.obs_names]
    np.testing.assert_allclose(
        adata.obsm["spatial"], truth[["pxl_col_in_fullres", "pxl_row_in_fullres"]] * 0.5)
    np.testing.assert_array_equal(np.asarray(adata.layers["counts"].sum(1)).ravel(),
                                  truth["total"])
    # 100 um between neighbours of 20 px, image at half size; 55 um over spot_diameter_fullres
    # (which stands for 65 um) would give 4.2 instead of 5.
    assert section.mpp == pytest.approx(10.0, rel=1e-6)
    assert adata.uns["lattice"]["n_neighs"] == 6


def test_visium_takes_the_full_image(tmp_path):
    truth = write_visium(tmp_path / "outs")
    Image.new("RGB", (200, 180), "pink").save(tmp_path / "full.png")
    section = cohort.read("visium", tmp_path / "outs", image=tmp_path / "full.png", patient="P9")[
        tmp_path.name]
    assert section.mpp == pytest.approx(5.0) and section.image_size == (200, 180)
    assert section.patient == "P9" and section.image().shape == (180, 200, 3)
    assert section.adata.obsm["spatial"].max() == pytest.approx(truth.loc[
        truth["in_tissue"] == 1, ["pxl_row_in_fullres", "pxl_col_in_fullres"]].to_numpy().max())


def test_several_outputs_need_to_know_their_patients(tmp_path):
    for name in ("s1", "s2"):
        write_visium(tmp_path / name / "outs")
    with pytest.raises(InputError, match="samples.csv"):
        cohort.read("visium", tmp_path)
    (tmp_path / "samples.csv").write_text(
        "section,folder,study,patient,specimen\nfirst,s1,X,P1,b1\nsecond,s2,X,P2,b2\n")
    found = cohort.read("visium", tmp_path)
    assert found.patients == ["P1", "P2"] and list(found.sections) == ["first", "second"]
    (tmp_path / "samples.csv").write_text("section,study,patient\ns3,X,P1\n")
    with pytest.raises(InputError, match="s3 has no output folder"):
        cohort.read("visium", tmp_path)


@pytest.mark.parametrize(("file", "content", "field"), [
    ("filtered_feature_bc_matrix.h5", b"\x89HDF\r\n\x1a\nshort", "file"),
    ("spatial/scalefactors_json.json", b'{"tissue', "file"),
    ("spatial/tissue_positions.csv", b"barcode,x\na,1\n", "columns"),
])
def test_broken_visium(tmp_path, file, content, field):
    write_visium(tmp_path / "outs")
    (tmp_path / "outs" / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        _ = next(iter(cohort.read("visium", tmp_path))).adata
    assert caught.value.field == field and Path(caught.value.where).name == Path(file).name


def test_visium_that_does_not_join_or_has_no_tissue(tmp_path):
    write_visium(tmp_path / "outs")
    path = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    table.assign(in_tissue=0).to_csv(path, index=False)
    with pytest.raises(InputError, match="no spot lies on tissue"):
        _ = next(iter(cohort.read("visium", tmp_path))).adata
    table.assign(barcode="X" + table["barcode"]).to_csv(path, index=False)
    with pytest.raises(InputError, match="has a position"):
        _ = next(iter(cohort.read("visium", tmp_path))).adata


def test_squares_conserve_counts():
    rng = np.random.default_rng(3)
    um = rng.uniform(0, 1000, (500, 2))
    counts = sparse.csr_matrix(rng.poisson(1.0, (500, 6)))
    summed, cells = pseudospots.aggregate_bins(counts, um, 100.0, 8.0, min_fill=0.0)
    assert summed.sum() == counts.sum()
    for row in (0, 37, len(cells) - 1):
        inside = (np.floor(um / 100.0) == cells[row]).all(axis=1)
        np.testing.assert_array_equal(summed[row].toarray().ravel(),
                                      np.asarray(counts[inside].sum(0)).ravel())


def test_visium_hd_sums_bins(tmp_path):
    spatial = tmp_path / "outs" / "binned_outputs" / "square_008um" / "spatial"
    spatial.mkdir(parents=True)
    rows, columns = (axis.ravel() for axis in np.mgrid[0:30, 0:20])  # 240 x 160 um
    positions = pd.DataFrame({
        "barcode": [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(rows, columns, strict=True)],
        "in_tissue": 1, "array_row": rows, "array_col": columns,
        "pxl_row_in_fullres": 16.0 * rows + 100, "pxl_col_in_fullres": 16.0 * columns + 50})
    positions.to_parquet(spatial / "tissue_positions.parquet")
    (spatial / "scalefactors_json.json").write_text(json.dumps({
        "microns_per_pixel": 0.5, "bin_size_um": 8.0, "tissue_hires_scalef": 1.0,
        "spot_diameter_fullres": 16.0}))
    Image.new("RGB", (400, 600), "pink").save(spatial / "tissue_hires_image.png")
    write_10x_h5(spatial.parent / "filtered_feature_bc_matrix.h5", np.ones((600, 3), int),
                 list(positions["barcode"]), ["A", "B", "C"])
    section = cohort.read("visium_hd", tmp_path / "outs", spot_um=80.0)[tmp_path.name]
    adata = section.adata
    assert adata.n_obs == 6 and section.mpp == pytest.approx(0.5)
    assert (adata.layers["counts"].toarray() == 100).all()
    # Ten bins of 16 px: the centre of the first square lies between bins 4 and 5.
    np.testing.assert_allclose(adata.obsm["spatial"][0], [50 + 4.5 * 16, 100 + 4.5 * 16])
    assert adata.uns["lattice"]["spot_um"] == 80.0
    with pytest.raises(InputError, match="multiple"):
        cohort.read("visium_hd", tmp_path / "outs", spot_um=100.0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz"])
def test_xenium_counts_transcripts(tmp_path, suffix):
    rng = np.random.default_rng(0)
    n = 4000
    table = pd.DataFrame({
        "feature_name": rng.choice(["ERBB2", "EPCAM", "NegControlProbe_00042", "BLANK_0003",
                                    "UnassignedCodeword_1"], n),
        "x_location": rng.uniform(0, 300, n), "y_location": rng.uniform(0, 200, n),
        "qv": rng.choice([12.0, 35.0], n)})
    path = tmp_path / f"transcripts{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    np.savetxt(tmp_path / "align.csv", np.diag([2.0, 2.0, 1.0]), delimiter=",")
    Image.new("RGB", (710, 480), "pink").save(tmp_path / "he.png")
    samples = pd.DataFrame([{"section": tmp_path.name, "study": "s", "patient": "p",
                             "image": "he.png", "alignment": "align.csv"}])
    section = cohort.read("xenium", tmp_path, spot_um=100.0, samples=samples)[tmp_path.name]
    adata = section.adata
    kept = table[(table["qv"] >= 20) & table["feature_name"].isin(["ERBB2", "EPCAM"])]
    assert list(adata.var_names) == ["EPCAM", "ERBB2"] and adata.n_obs == 6
    assert adata.layers["counts"].sum() == len(kept)
    inside = kept[(kept["x_location"] >= 100) & (kept["x_location"] < 200)
                  & (kept["y_location"] < 100)]
    assert adata["1x0"].layers["counts"].sum() == len(inside)
    # An H&E pixel is two morphology pixels of 0.2125 um.
    assert section.mpp == pytest.approx(0.425)
    np.testing.assert_allclose(adata["1x0"].obsm["spatial"][0], [150 / 0.425, 50 / 0.425])
    plain = cohort.read("xenium", tmp_path, patient="p")[tmp_path.name]
    assert not plain.has_image and plain.adata.uns["lattice"]["coordinates"] == "um"


def test_mpp_falls_back_to_the_scalefactor():
    one_row = pd.DataFrame({"array_row": [0, 0, 0], "array_col": [0, 2, 4],
                            "pxl_row_in_fullres": [0, 0, 0], "pxl_col_in_fullres": [0, 20, 40]})
    assert visium.measure_mpp(one_row, {"spot_diameter_fullres": 13.0}, "x") == pytest.approx(5.0)
    with pytest.raises(InputError, match="mpp="):
        visium.measure_mpp(one_row, {}, "x")


def test_qc_counts_by_hand(tmp_path):
    counts = np.array([[1, 2, 1, 0]] * 24 + [[0, 0, 0, 0]])
    write_st_section(tmp_path, counts=counts)
    section = cohort.read("her2st", tmp_path)["A1"]
    section.adata.obsm["spatial"][0] = [-3, 10]
    section.adata.obsm["spatial"][1] = [470, 500]
    row = qc.table([section]).iloc[0]
    assert row["counts_median"] == 4 and row["genes_per_spot_median"] == 3
    assert row["n_empty_spots"] == 1 and row["mito_fraction_median"] == 0.25
    assert row["n_outside_image"] == 2 and row["n_genes_found"] == 3
    assert row["mpp"] == pytest.approx(4.0)


def test_qc_sees_tissue(tmp_path):
    pixel = write_st_section(tmp_path)
    image = np.full((500, 480, 3), 245, np.uint8)
    image[:, :225] = (150, 70, 140)  # the columns at 100, 150 and 200 px
    Image.fromarray(image).save(tmp_path / "ST-imgs" / "A" / "A1" / "scan.jpg", quality=95)
    section = cohort.read("her2st", tmp_path)["A1"]
    spots = qc.per_spot(section)
    on_left = pixel[:, 0] <= 200
    assert (spots["tissue_fraction"][on_left] > 0.5).all()
    assert (spots["tissue_fraction"][~on_left] < 0.5).all()
    assert qc.table([section])["fraction_on_tissue"].iloc[0] == pytest.approx(on_left.mean())


# ---- what cannot be true


def refusal(function, *arguments, **options) -> InputError:
    """The one-line error that a call ends with."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def made_section(**change) -> base.Section:
    def load():
        import anndata

        adata = anndata.AnnData(obs=pd.DataFrame(index=["a", "b", "c"]),
                                var=pd.DataFrame(index=["G", "H"]))
        adata.layers["counts"] = sparse.csr_matrix(np.array([[1, 0], [2, 3], [0, 1]]))
        adata.obsm["spatial"] = np.array([[1.0, 2.0], [5.0, 6.0], [9.0, 9.0]])
        return adata

    return base.Section(**{"name": "S1", "study": "x", "patient": "p", "specimen": "p",
                           "source": "test", "load": load} | change)


@pytest.mark.parametrize("field", ["name", "study", "patient", "specimen"])
@pytest.mark.parametrize("value", ["", "  ", "../../x", "a/b", "a\\b", "a\nb", "..", "-rf", ".x",
                                   None, 7, float("nan"), False, "a\0b"])
def test_names_are_text_that_stays_in_its_folder(field, value):
    assert refusal(made_section, **{field: value}).field in (field, "section")


def test_names_are_stripped_and_numbers_stay_text():
    section = made_section(name="007 ", patient=" P1", study="151673", specimen="x" * 300)
    assert (section.name, section.patient, section.study) == ("007", "P1", "151673")


@pytest.mark.parametrize("mpp", [0, 0.0, -0.5, np.nan, np.inf, -np.inf, "0.5", "0,5", True, 1e-9,
                                 1e9, [0.5]])
def test_a_scale_is_a_number_that_can_be(mpp):
    error = refusal(made_section, mpp=mpp)
    assert error.field == "mpp" and "decimal point" in error.fix
    assert made_section(mpp=np.float32(0.5)).mpp == 0.5


def test_names_that_one_file_would_hold():
    for first, second in (("A1", "a1"), ("\u00e9", "e\u0301"), ("S", "S")):
        assert refusal(cohort.Cohort, [made_section(name=first), made_section(name=second)]
                       ).field == "section"
    many = [made_section(name=f"S{number}") for number in range(20_000)]
    assert "S7'" in str(refusal(cohort.Cohort, [*many, made_section(name="S7")]))


@pytest.mark.parametrize(("size", "scale", "reason"), [
    ((1000, 1000), 1.0, None), ((250, 250), 1.0, "reduced"), ((1000, 700), 1.0, "cropped"),
    ((1000, 1000), -1.0, "cropped")])
def test_spots_outside_are_refused_by_their_share(size, scale, reason):
    y, x = (axis.ravel() for axis in np.mgrid[0:20, 0:20])
    centers = np.column_stack([x, y]) * 49.0 * scale + 10
    if reason is None:
        centers[:20, 0] = -1  # one in twenty is the rim of a scan
        base.check_inside(centers, size, "S1")
        centers[20, 0] = -1
        assert "21 of 400 spots (5%)" in str(refusal(base.check_inside, centers, size, "S1"))
    else:
        error = refusal(base.check_inside, centers, size, "S1")
        assert error.field == "image" and reason in error.problem
    wide = np.column_stack([x * 49.0, y * 20.0])
    assert "turned" in refusal(base.check_inside, wide, (400, 1000), "S1").problem


@pytest.mark.parametrize(("change", "field"), [
    (lambda m: m.indptr.__setitem__(1, 2**30), "counts"),
    (lambda m: m.indptr.__setitem__(1, -5), "counts"),
    (lambda m: m.indices.__setitem__(0, 99), "counts"),
    (lambda m: m.indices.__setitem__(0, -1), "counts")])
def test_pointers_out_of_a_sparse_matrix(change, field):
    for kind in (sparse.csr_matrix, sparse.csc_matrix):
        matrix = kind(np.arange(12).reshape(4, 3))
        base.check_sparse(matrix, "x")
        change(matrix)
        assert refusal(base.check_sparse, matrix, "x").field == field


@pytest.mark.parametrize(("change", "field"), [
    (lambda a: a.obsm.__setitem__("spatial", np.full((3, 2), np.nan)), 'obsm["spatial"]'),
    (lambda a: a.obsm.__setitem__("spatial", np.full((3, 2), 1e300)), 'obsm["spatial"]'),
    (lambda a: a.obsm.__setitem__("spatial", np.ones((3, 2))), 'obsm["spatial"]'),
    (lambda a: a.obsm.__setitem__("spatial", np.ones((3, 3))), 'obsm["spatial"]'),
    (lambda a: a.obsm.__setitem__("spatial", np.full((3, 2), "1")), 'obsm["spatial"]'),
    (lambda a: a.obsm.pop("spatial"), 'obsm["spatial"]'),
    (lambda a: setattr(a, "obs_names", ["a", " ", "c"]), "barcode"),
    (lambda a: setattr(a, "var_names", ["G", ""]), "gene"),
    (lambda a: a.layers.__setitem__("counts", np.zeros((3, 2))), "counts"),
    (lambda a: a.layers.__setitem__("counts", np.full((3, 2), 3e9)), "counts"),
    (lambda a: a.layers.__setitem__("counts", np.full((3, 2), "7")), "counts"),
    (lambda a: a.layers.__setitem__("counts", np.full((3, 2), np.inf)), "counts")])
def test_counts_and_places_that_cannot_be(change, field):
    whole = made_section()
    assert whole.adata.n_obs == 3

    def load():
        adata = whole.load()
        change(adata)
        return adata

    assert refusal(lambda: made_section(load=load).adata).field == field


# ---- the run's folder


def replaced(key, value):
    def change(stream):
        kept = dict(stream[key].attrs)
        del stream[key]
        stream[key] = value
        for name, attribute in kept.items():
            stream[key].attrs[name] = attribute
    return change


def without(key):
    return lambda stream: stream.__delitem__(key)


def grouped(key):
    def change(stream):
        del stream[key]
        stream.create_group(key)
    return change


def attribute(key, name, value):
    return lambda stream: stream[key].attrs.__setitem__(name, value)


def pointed(key, at, value):
    def change(stream):
        stored = stream[key][()]
        stored[at] = value
        stream[key][...] = stored
    return change


def unpacked(stream):
    """A dataset that declares 8 GB and stores nothing."""
    del stream["obsm/spatial"]
    made = stream["obsm"].create_dataset("spatial", shape=(500_000_000, 2), chunks=(1000, 2),
                                         dtype="f8")
    made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("one run")
    write_st_section(root / "data")
    write_st_section(root / "data", "B1", image=None)
    made = cohort.read("her2st", root / "data")
    for section in made:
        base.write_section(section, root / "run")
    write_csv(root / "run" / "manifest.csv", made.manifest)
    return root


def copied_run(run_folder, tmp_path, h5=None, manifest=None):
    """Read a copy of the run, all of it, after a change."""
    shutil.copytree(run_folder / "run", tmp_path / "run")
    if h5 is not None:
        with h5py.File(tmp_path / "run" / "A1.h5ad", "r+") as stream:
            h5(stream)
    if manifest is not None:
        table = pd.read_csv(tmp_path / "run" / "manifest.csv").astype(object)
        write_csv(tmp_path / "run" / "manifest.csv", manifest(table))
    found = cohort.read("run", tmp_path / "run", data=run_folder / "data")
    return [(section.adata.n_obs, section.has_image and section.image().shape)
            for section in found]


@pytest.mark.parametrize(("column", "value"), [
    ("patient", "Z"), ("patient", ""), ("study", "other"), ("specimen", "Z"), ("source", "mob"),
    ("mpp", 4.1), ("mpp", "abc"), ("mpp", 0), ("mpp", -1), ("mpp", np.inf), ("mpp", ""),
    ("has_image", False), ("has_image", "a/b"), ("has_image", ""), ("n_spots", 24),
    ("n_spots", "abc"), ("n_spots", 24.5), ("n_spots", -3), ("n_genes", 5), ("n_genes", ""),
    ("image_width_px", 7), ("image_height_px", ""), ("section", "../A1"), ("section", ""),
    ("section", "B1"), ("section", "C9"), ("section", "A1 ")])
def test_a_manifest_that_says_other_than_its_sections(run_folder, tmp_path, column, value):
    def change(table):
        table.loc[table["section"] == "A1", column] = value
        return table

    error = refusal(copied_run, run_folder, tmp_path, manifest=change)
    assert Path(error.where).name in ("manifest.csv", "C9.h5ad")


@pytest.mark.parametrize("change", [
    lambda f: f.iloc[:0], lambda f: f.drop(columns="mpp"), lambda f: pd.concat([f, f])])
def test_a_manifest_of_another_shape(run_folder, tmp_path, change):
    refusal(copied_run, run_folder, tmp_path, manifest=change)


@pytest.mark.parametrize("change", [
    without("uns/mvh"), without("uns/mvh/image_root"), without("uns/mvh/patient"),
    without("uns/mvh/mpp"), without("uns/mvh/exclude"), without("uns/mvh/image_size"),
    grouped("uns/mvh/patient"), replaced("uns/mvh/patient", ""), replaced("uns/mvh/patient", 3),
    replaced("uns/mvh/patient", "../x"), replaced("uns/mvh/mpp", np.nan),
    replaced("uns/mvh/mpp", 0.0), replaced("uns/mvh/mpp", -4.0), replaced("uns/mvh/mpp", np.inf),
    replaced("uns/mvh/mpp", "4"), replaced("uns/mvh/image_size", np.array([480, -1])),
    replaced("uns/mvh/image_size", np.array([480])),
    replaced("uns/mvh/exclude", np.array([[9, 9, 1, 1]])),
    lambda f: f["uns/mvh/patient"].attrs.__delitem__("encoding-type"),
    replaced("uns/mvh/image_root", "home"), replaced("uns/mvh/image_path", "../secret.png"),
    replaced("uns/mvh/image_path", "/etc/passwd"), replaced("uns/mvh/image_path", "a/../../b.png"),
    replaced("uns/mvh/image_path", ""), replaced("uns/mvh/image_path", "gone.jpg"),
    replaced("obsm/spatial", np.full((25, 2), np.nan)), replaced("obsm/spatial", np.ones((25, 3))),
    replaced("obsm/spatial", np.full((25, 2), "1", dtype="S1")), without("obsm/spatial"),
    replaced("obsm/spatial", np.full((25, 2), 5e3) + np.arange(25)[:, None]), unpacked,
    without("obs/patient"), without("obs/section"), grouped("layers"), without("layers/counts"),
    pointed("layers/counts/indptr", 3, 2**30), pointed("layers/counts/indptr", 3, -2),
    pointed("layers/counts/indices", 3, 2**30), pointed("layers/counts/indices", 3, -7),
    pointed("X/indptr", 3, 2**30), replaced("layers/counts/data", np.zeros(3)),
    attribute("layers/counts", "shape", [10**12, 4]), attribute("layers/counts", "shape", [25, 3]),
    replaced("layers", 1), replaced("obs", 1), without("var"), grouped("obs/_index"),
    replaced("obs/_index", np.array([b"same"] * 25)), replaced("var/_index", np.array([b""] * 4)),
])
def test_a_section_file_that_cannot_be(run_folder, tmp_path, change):
    error = refusal(copied_run, run_folder, tmp_path, h5=change)
    assert "A1" in error.where or "gone.jpg" in error.where


def test_a_whole_run_is_read_and_links_inside_data_work(run_folder, tmp_path):
    assert copied_run(run_folder, tmp_path / "one") == [(25, (500, 480, 3)), (25, False)]
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (linked / folder).symlink_to(run_folder / "data" / folder)
    found = cohort.read("run", run_folder / "run", data=linked)
    assert found["A1"].image().shape == (500, 480, 3)
    assert "data" in str(refusal(lambda: cohort.read("run", run_folder / "run")["A1"].image()))
    assert refusal(cohort.read, "run", run_folder / "run", sections="A1").field == "sections"
    assert refusal(cohort.read, "run", run_folder / "run", sections=[7]).field == "sections"


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"text", None])
def test_a_section_file_that_is_none(run_folder, tmp_path, content):
    folder = tmp_path / "run"
    shutil.copytree(run_folder / "run", folder)
    (folder / "A1.h5ad").unlink()
    if content is None:
        (folder / "A1.h5ad").mkdir()
    else:
        (folder / "A1.h5ad").write_bytes(content)
    assert "A1.h5ad" in refusal(cohort.read, "run", folder).where


def test_an_image_outside_data_is_not_written_into_a_run(tmp_path):
    write_visium(tmp_path / "data" / "outs")
    Image.new("RGB", (200, 180), "pink").save(tmp_path / "full.png")
    section = cohort.read("visium", tmp_path / "data", image=tmp_path / "full.png", patient="P9")[
        "data"]
    assert "link" in refusal(base.write_section, section, tmp_path / "run").fix


# ---- legacy Spatial Transcriptomics


def rewrite_counts(root, change, name="A1.tsv.gz", pack=True):
    path = root / "ST-cnts" / name
    with gzip.open(path, "rt") as stream:
        lines = stream.read().split("\n")
    content = change(lines)
    content = content if isinstance(content, bytes) else "\n".join(content).encode()
    path.write_bytes(gzip.compress(content) if pack else content)


def cell(row, column, value):
    def change(lines):
        cells = lines[row].split("\t")
        cells[column] = value
        lines[row] = "\t".join(cells)
        return lines
    return change


@pytest.mark.parametrize(("change", "field"), [
    (lambda rows: rows[1:], "header"),  # would lose the first spot
    (lambda rows: rows[:1], "counts"),
    (lambda rows: [""], "table"),
    (lambda rows: [rows[0], rows[1] + "\t5", *rows[2:]], "row 3"),
    (lambda rows: [*rows[:9], rows[9].rsplit("\t", 1)[0], *rows[10:]], "row 10"),
    (lambda rows: [rows[0] + "\tX\tY", *rows[1:]], "row 1"),
    (lambda rows: [row.replace("\t", ";") for row in rows], "counts"),
    (lambda rows: "\n".join(rows).encode("utf-16")[2:], "file"),
    (lambda rows: "\n".join(rows).replace("GENEA", "Gén").encode("latin-1"), "file"),
    (lambda rows: b"PK\x03\x04" + b"x" * 99, "file"),
    (lambda rows: ["\t".join(column) for column in
                   zip(*(row.split("\t") for row in rows if row), strict=True)], "header"),
    (cell(4, 2, "many"), "counts"), (cell(4, 2, "-3"), "counts"), (cell(4, 2, "0.5"), "counts"),
    (cell(4, 2, ""), "counts"), (cell(4, 2, "inf"), "counts"), (cell(4, 2, "1e12"), "counts"),
    (cell(4, 2, "1,5"), "counts"), (cell(4, 2, "TRUE"), "counts"), (cell(4, 0, ""), "barcode"),
    (cell(4, 0, "2x3"), "barcode"), (cell(0, 2, ""), "gene"), (cell(0, 2, "GENEA "), "gene"),
    (lambda rows: [rows[0], *("\t".join([r.split("\t")[0], *"0000"]) for r in rows[1:] if r)],
     "counts"),
])
def test_count_tables_that_are_refused(tmp_path, change, field):
    write_st_section(tmp_path)
    rewrite_counts(tmp_path, change)
    error = refusal(lambda: cohort.read("her2st", tmp_path)["A1"].adata)
    assert (Path(error.where).name, error.field) == ("A1.tsv.gz", field)


def test_count_tables_that_are_read_as_they_are(tmp_path):
    """Not packed, with a byte order mark, R's header, UTF-16, Windows' line ends: one content."""
    write_st_section(tmp_path)
    wanted = cohort.read("her2st", tmp_path)["A1"].adata
    with gzip.open(tmp_path / "ST-cnts" / "A1.tsv.gz", "rb") as stream:
        content = stream.read()
    for changed in (content, b"\xef\xbb\xbf" + content, content[1:],
                    b"\xef\xbb\xbf" + content[1:], content.decode().encode("utf-16"),
                    content.replace(b"\n", b"\r\n"), content + b"\n\n"):
        for name in ("A1.tsv.gz", "A1.tsv"):
            for packed in (gzip.compress(changed), changed):
                (tmp_path / "ST-cnts" / "A1.tsv.gz").unlink(missing_ok=True)
                (tmp_path / "ST-cnts" / "A1.tsv").unlink(missing_ok=True)
                (tmp_path / "ST-cnts" / name).write_bytes(packed)
                found = cohort.read("her2st", tmp_path)["A1"].adata
                assert list(found.var_names) == GENES and (found.X != wanted.X).nnz == 0
                assert list(found.obs_names) == list(wanted.obs_names)


@pytest.mark.parametrize(("change", "field"), [
    (lambda t: t.assign(x=t["x"].astype(object).where(t.index != 3, "1,5")),
     "x, y, pixel_x, pixel_y"),
    (lambda t: t.assign(pixel_x=t["pixel_x"].where(t.index != 3)), "x, y, pixel_x, pixel_y"),
    (lambda t: t.assign(pixel_y=np.inf), "x, y, pixel_x, pixel_y"),
    (lambda t: t.assign(x=t["x"] * 1e300), "x, y, pixel_x, pixel_y"),
    (lambda t: t.assign(selected="perhaps"), "selected"),
    (lambda t: t.assign(selected=t["selected"].astype(float).where(t.index != 3)), "selected"),
    (lambda t: t.rename(columns={"new_x": "x"}), "columns"),
    (lambda t: t.iloc[:0], "rows"),
    (lambda t: t.assign(pixel_x=t["pixel_x"].sample(frac=1, random_state=0).to_numpy(),
                        pixel_y=t["pixel_y"].sample(frac=1, random_state=1).to_numpy()),
     "pixel_x, pixel_y"),  # of another section
    (lambda t: t.assign(pixel_y=t["pixel_y"] * 0.7), "pixel_x, pixel_y"),  # stretched
    (lambda t: t.assign(pixel_x=t["pixel_x"] - 240), "image"),  # cropped at the left
])
def test_spot_files_that_are_refused(tmp_path, change, field):
    write_st_section(tmp_path)
    path = tmp_path / "ST-spotfiles" / "A1_selection.tsv"
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)
    error = refusal(lambda: cohort.read("her2st", tmp_path)["A1"].adata)
    assert error.field == field


@pytest.mark.parametrize("change", [
    lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.decode().encode("utf-16"), gzip.compress,
    lambda text: text.replace(b"\t1\n", b"\tTRUE\n"),
    # R's row names have no name in the header.
    lambda text: b"\n".join([text.split(b"\n")[0], *(b"s%d\t%s" % (n, row) for n, row in enumerate(
        text.strip().split(b"\n")[1:]))])])
def test_spot_files_that_are_read_as_they_are(tmp_path, change):
    pixel = write_st_section(tmp_path)
    path = tmp_path / "ST-spotfiles" / "A1_selection.tsv"
    path.write_bytes(change(path.read_bytes()))
    np.testing.assert_allclose(cohort.read("her2st", tmp_path)["A1"].centers, pixel)


def test_a_cut_out_is_not_taken_for_a_reduced_image(tmp_path):
    pixel = write_st_section(tmp_path, n=9, image=None)
    whole = np.full((700, 640, 3), 245, np.uint8)
    x0, y0, x1, y1 = np.round([*(pixel.min(0) - 25), *(pixel.max(0) + 25)]).astype(int)
    whole[y0:y1, x0:x1] = (170, 90, 160)
    Image.fromarray(whole[:400, :380]).save(tmp_path / "A1_part.png")
    assert "cut-out" in refusal(cohort.read, "her2st", tmp_path).problem


def test_stated_scale_against_the_measured_one(tmp_path):
    write_st_section(tmp_path)

    def made(**options):
        return legacy_st.make_section(
            "A1", root=tmp_path, counts=tmp_path / "ST-cnts" / "A1.tsv.gz",
            spot_file=tmp_path / "ST-spotfiles" / "A1_selection.tsv",
            image=tmp_path / "ST-imgs" / "A" / "A1" / "scan.jpg", study="s", patient="p",
            specimen="p", source="her2st", **options)

    assert made(mpp=4.2).mpp == 4.2
    error = refusal(made, mpp=2.0)
    assert error.field == "mpp" and "2 um/px" in error.problem and "4" in error.problem
    for wrong in (0, -1, np.nan, np.inf, "200", True):
        assert refusal(made, mpp=wrong)
        assert refusal(cohort.read, "her2st", tmp_path, pitch_um=wrong).field == "pitch_um"
        assert refusal(cohort.read, "her2st", tmp_path, full_width_px={"A1": wrong}
                       ).field == "full_width_px"
    assert refusal(cohort.read, "her2st", tmp_path, full_width_px={"A7": 480}).field == "section"
    assert refusal(cohort.read, "her2st", tmp_path, full_width_px=480).field == "full_width_px"
    # Spots at half of their pixels beside a width that says the image is whole.
    assert refusal(cohort.read, "her2st", tmp_path, full_width_px={"A1": 240}).field == "image"


def test_no_section_is_left_out_in_silence(tmp_path, caplog):
    write_st_section(tmp_path)
    write_st_section(tmp_path, "B1", image=None)
    (tmp_path / "ST-cnts" / "._A1.tsv.gz").write_bytes(b"\0\5\x16\7")
    (tmp_path / "ST-cnts" / "README.txt").write_text("notes\n")
    assert list(cohort.read("her2st", tmp_path).sections) == ["A1", "B1"]
    (tmp_path / "ST-spotfiles" / "B1_selection.tsv").rename(tmp_path / "b1.tsv")
    assert not cohort.read("her2st", tmp_path)["B1"].has_image
    assert "B1: has no spot file" in caplog.text
    (tmp_path / "b1.tsv").rename(tmp_path / "ST-spotfiles" / "C1_selection.tsv")
    error = refusal(cohort.read, "her2st", tmp_path)
    assert error.field == "counts" and "C1" in error.problem
    assert list(cohort.read("her2st", tmp_path, sections=["A1"]).sections) == ["A1"]
    (tmp_path / "ST-spotfiles" / "C1_selection.tsv").unlink()
    (tmp_path / "ST-cnts" / "B1.tsv.gz").rename(tmp_path / "ST-cnts" / "CN51_C2_2.tsv.gz")
    assert "CN51_C2_2" in refusal(cohort.read, "her2st", tmp_path).where
    named = cohort.read("her2st", tmp_path, patients={"A1": "mouse 1", "CN51_C2_2": "007"})
    assert named.patients == ["007", "mouse 1"]
    assert refusal(cohort.read, "her2st", tmp_path, patients={"A1": 7, "CN51_C2_2": "x"})


@pytest.mark.parametrize(("place", "field"), [
    ("ST-spotfiles", "folder"), ("ST-pat-lbl", "folder"), ("ST-imgs", "link"),
    ("ST-cnts/A1.tsv.gz", "file"), ("ST-spotfiles/A1_selection.tsv", "file")])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_links_that_lead_nowhere_are_no_absence(tmp_path, place, field, target):
    write_st_section(tmp_path)
    path = tmp_path / place
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(path if target == "itself" else tmp_path / "nowhere")
    assert refusal(lambda: cohort.read("her2st", tmp_path)["A1"].adata).field == field


@pytest.mark.parametrize(("rows", "field"), [
    ([("2", "3", "a"), ("2.1", "3.1", "b")], "label"), ([("x", "3", "a")], "x, y"),
    ([("inf", "3", "a")], "x, y")])
def test_labels_that_are_refused(tmp_path, rows, field):
    write_st_section(tmp_path)
    (tmp_path / "ST-pat-lbl").mkdir()
    pd.DataFrame(rows, columns=["x", "y", "label"]).to_csv(
        tmp_path / "ST-pat-lbl" / "A1_labeled_coordinates.tsv", sep="\t", index=False)
    assert refusal(lambda: cohort.read("her2st", tmp_path)["A1"].adata).field == field


def test_an_image_belongs_to_the_longest_name(tmp_path):
    for name in ("C1_HE.png", "C1_2_HE.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    found = legacy_st.find_images(tmp_path, ["C1", "C1_2"])
    assert {name: path.name for name, path in found.items()} == {
        "C1": "C1_HE.png", "C1_2": "C1_2_HE.png"}
    (tmp_path / "C1_HE.png").unlink()
    assert list(legacy_st.find_images(tmp_path, ["C1", "C1_2"])) == ["C1_2"]


@pytest.mark.parametrize(("change", "problem"), [
    (lambda root: (root / "MOB1.tsv").unlink(), "MOB1"),
    (lambda root: (root / "alignment_table_MOB1.tsv").unlink(), "MOB1"),
    (lambda root: [(root / name).unlink() for name in ("MOB1.tsv", "alignment_table_MOB1.tsv")],
     "MOB1"),
    (lambda root: (root / "metaData.csv").write_text("samples;individual\nMOB1.tsv;1\n"), "MOB2"),
    (lambda root: (root / "metaData.csv").write_text(
        "samples;individual\nMOB1.tsv;1\nMOB2.tsv;\n"), "row 3"),
    (lambda root: (root / "metaData.csv").write_text(
        "samples;individual\nMOB1.tsv;1\nMOB1.tsv;2\nMOB2.tsv;2\n"), "MOB1"),
    (lambda root: (root / "metaData.csv").write_text("samples;individual\nMOB1.tsv\n"), "cell"),
    (lambda root: (root / "metaData.csv").write_bytes(b"\xff\xfe\0"), ""),
    (lambda root: (root / "metaData.csv").write_text(""), "empty"),
])
def test_mob_that_lacks_a_part(tmp_path, change, problem):
    write_mob(tmp_path)
    change(tmp_path)
    assert problem in refusal(cohort.read, "mob", tmp_path).problem


def test_mob_reads_what_is_named(tmp_path):
    write_mob(tmp_path)
    (tmp_path / "MOB2.tsv").unlink()
    (tmp_path / "gene_symbols.tsv").write_text("gene\tsymbol\nE1\tA\n")
    assert list(cohort.read("mob", tmp_path, sections=["MOB1"]).sections) == ["MOB1"]
    (tmp_path / "metaData.csv").write_text("samples,individual\nMOB1.tsv,007\n")
    (tmp_path / "alignment_table_MOB2.tsv").unlink()
    assert cohort.read("mob", tmp_path).patients == ["mouse007"]


def test_sections_of_any_laboratory(tmp_path):
    """Aligned positions are rounded to those of the spot file; doubled genes summed if asked."""
    rng = np.random.default_rng(2)
    y, x = (axis.ravel() for axis in np.mgrid[3:8, 2:7])
    names = [f"{a:.3f}x{b:.3f}" for a, b in zip(x + rng.uniform(-0.2, 0.2, 25),
                                               y + rng.uniform(-0.2, 0.2, 25), strict=True)]
    counts = rng.poisson(3, (25, 4))
    pixel = write_st_section(tmp_path, spot_names=names, counts=counts, genes=["A", "B", "A", "C"])
    table = tmp_path / "samples.csv"
    row = "007,s,P 1,ST-cnts/A1.tsv.gz,ST-spotfiles/A1_selection.tsv,ST-imgs/A/A1/scan.jpg\n"
    head = "section,study,patient,counts,spots,image\n"
    table.write_text(head + row)
    assert refusal(lambda: cohort.read("legacy_st", tmp_path)["007"].adata).field == "gene"
    section = cohort.read("legacy_st", tmp_path, sum_doubled=True)["007"]
    assert (section.patient, section.mpp) == ("P 1", pytest.approx(4.0))
    assert list(section.adata.obs["aligned"]) == names
    assert list(section.adata.var_names) == ["A", "B", "C"]
    np.testing.assert_array_equal(section.adata.X.toarray(), np.column_stack(
        [counts[:, 0] + counts[:, 2], counts[:, 1], counts[:, 3]]))
    np.testing.assert_allclose(section.centers, pixel)
    for broken, field in ((row.replace("ST-cnts", "../ST-cnts"), "counts"),
                          (row.replace("scan", "gone"), "image"), (row + row, "section"),
                          (row + row.replace("007", "8"), "counts"),
                          (row.replace("P 1", ""), "patient"),
                          (row.replace("007", "a/b"), "section")):
        table.write_text(head + broken)
        assert refusal(cohort.read, "legacy_st", tmp_path).field == field
    two = [names[0], names[0][:-1] + str((int(names[0][-1]) + 1) % 10), *names[2:]]
    write_st_section(tmp_path, spot_names=two)
    table.write_text(head + row)
    assert refusal(lambda: cohort.read("legacy_st", tmp_path)["007"].adata).field == "index"


def test_real_spinal_cord(shared, tmp_path):
    """Legacy arrays of another laboratory, against pandas and the stated scale."""
    root = shared / "data" / "als_spinal_cord"
    assert "samples.csv" in refusal(cohort.read, "her2st", root).fix
    facts = pd.read_csv(root / "sections.csv", dtype=str)
    facts = facts[facts["section"] == "L6CN51_E1_2"]
    table = pd.DataFrame({
        "section": facts["section"], "study": "als", "patient": facts["mouse"],
        "counts": [f"{n}/{n}_stdata_aligned_counts_IDs.txt.gz" for n in facts["section"]],
        "spots": [f"{n}/{n}_selection.tsv" for n in facts["section"]],
        "image": [f"{n}/{i}" for n, i in zip(facts["section"], facts["image"], strict=True)]})
    write_csv(tmp_path / "samples.csv", table)
    found = cohort.read("legacy_st", root, samples=tmp_path / "samples.csv", sum_doubled=True)
    assert found.patients == ["794"]
    for row in facts.to_dict("records"):
        section = found[row["section"]]
        assert section.mpp == pytest.approx(float(row["um_per_px"]), rel=0.01)
        assert section.image_size == (int(row["width"]), int(row["height"]))
        path = root / section.name / f"{section.name}_stdata_aligned_counts_IDs.txt.gz"
        with gzip.open(path, "rt") as stream:
            genes = stream.readline().rstrip("\n").split("\t")[1:]
        raw = pd.read_csv(path, sep="\t", index_col=0, header=None, skiprows=1)
        raw = raw.set_axis(genes, axis=1).T.groupby(level=0, sort=False).sum().T
        assert list(section.adata.var_names) == list(raw.columns)
        np.testing.assert_array_equal(section.adata.X.toarray(), raw.to_numpy())
        assert list(section.adata.obs["aligned"]) == list(raw.index)
        spots = pd.read_csv(root / section.name / f"{section.name}_selection.tsv", sep="\t")
        np.testing.assert_array_equal(section.centers, spots.set_index("spot").loc[
            raw.index, ["pixel_x", "pixel_y"]])


def test_real_her2st(shared):
    root = shared / "data" / "her2st"
    found = cohort.read("her2st", root, sections=["A1", "B1", "C2"])
    assert [section.has_image for section in found] == [True, False, True]
    assert found["C2"].mpp == pytest.approx(0.69, rel=0.02)  # as its publication states
    assert found["A1"].mpp == pytest.approx(3.2, rel=0.02)
    assert (found["A1"].adata.n_obs, found["C2"].adata.n_obs) == (346, 187)
    assert found["A1"].adata.obs["label"].value_counts()["adipose tissue"] > 5
    # Adipose tissue is bright and invasive cancer dark: labels, spots and pixels agree.
    cohort.attach_thumbnail(found["A1"])
    record = found["A1"].adata.uns["spatial"]["A1"]
    gray = record["images"]["hires"].mean(axis=2)
    xy = found["A1"].adata.obsm["spatial"] * record["scalefactors"]["tissue_hires_scalef"]
    bright = pd.Series([gray[round(y) - 15:round(y) + 15, round(x) - 15:round(x) + 15].mean()
                        for x, y in xy]).groupby(found["A1"].adata.obs["label"].to_numpy()).mean()
    assert bright["adipose tissue"] > bright["invasive cancer"] + 20
    assert (gray[:560, 1480:] == 255).all()  # the pasted thumbnail reads as white


def test_real_a1_scale_is_found_without_being_told(shared):
    root = shared / "data" / "her2st"
    spots = legacy_st.read_spots(root / "ST-spotfiles" / "A1_selection.tsv")
    scale = legacy_st.estimate_scale(
        root / "imgs-2000px" / "A1_HE_image_dark.png", legacy_st.ImageFacts(dark_background=True),
        spots, legacy_st.measure_lattice(spots, "A1"))
    assert scale == pytest.approx(2000 / 6954, rel=0.015)


def test_real_mob(shared):
    found = cohort.read("mob", shared / "data" / "mob")
    assert list(found.manifest["patient"]) == ["mouse1", "mouse1", "mouse2", "mouse2"]
    assert list(found.manifest["n_spots"]) == [379, 407, 438, 403]
    # The array is 6.2 x 6.6 mm: measured pixels times mpp must give it on both axes.
    spots = legacy_st.read_spots(shared / "data" / "mob" / "alignment_table_MOB1.tsv")
    extent = np.ptp(spots[["pixel_x", "pixel_y"]].to_numpy(), axis=0) * found["MOB1"].mpp
    np.testing.assert_allclose(extent, [6200, 6600], rtol=0.02)
    assert qc.table(found)["fraction_on_tissue"].min() > 0.6


# --- Visium, Visium HD and Xenium: right, or refused in one line --------------------------------

def refuses(function, *words: str) -> InputError:
    """The call raises one line that holds every one of `words`."""
    with pytest.raises(InputError) as caught:
        function()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    return caught.value


def load_visium(root: Path, **options):
    return next(iter(cohort.read("visium", root, patient="p", **options))).adata


def change_positions(outs: Path, change) -> None:
    path = outs / "spatial" / "tissue_positions.csv"
    change(pd.read_csv(path).astype(object)).to_csv(path, index=False)


def set_first(column: str, value):
    return lambda t: t.assign(**{column: [value, *t[column][1:]]})


def change_scalefactors(outs: Path, **values) -> None:
    path = outs / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_matrix(outs: Path, **arrays) -> None:
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as stream:
        for name, change in arrays.items():
            name = "matrix/" + name.replace("__", "/")
            values = stream[name][()]
            del stream[name]
            stream[name] = change(values)


@pytest.mark.parametrize(("change", "words"), [
    (set_first("pxl_row_in_fullres", ""), ["pxl_row_in_fullres", "BC000-1"]),
    (set_first("pxl_col_in_fullres", "nan"), ["pxl_col_in_fullres"]),
    (set_first("pxl_col_in_fullres", "12;5"), ["pxl_col_in_fullres", "12;5"]),
    (set_first("array_col", "inf"), ["array_col"]),
    (set_first("array_row", 0.5), ["array_row", "whole number"]),
    (set_first("array_row", -1), ["array_row"]),
    (set_first("in_tissue", "yes"), ["in_tissue", "yes"]),
    (set_first("in_tissue", 2), ["in_tissue"]),
    (set_first("barcode", " "), ["barcode", "blank"]),
    (set_first("barcode", "BC001-1"), ["barcode", "more than once"]),
    (set_first("pxl_row_in_fullres", 900), ["do not fit", "BC000-1"]),
    (lambda t: t[:0], ["rows"]),
    (lambda t: t[:-4], ["4 of 36 spots have no position"]),
    (lambda t: t.assign(barcode=t["barcode"] + "_2"), ["has a position"]),
    (lambda t: t.assign(array_col=t["array_col"][::-1].to_numpy(),
                        array_row=np.roll(t["array_row"], 7)), ["do not fit"]),
    (lambda t: t.rename(columns={"array_row": "array_col", "array_col": "array_row"}),
     ["are swapped"]),
    (lambda t: t.rename(columns={"pxl_row_in_fullres": "pxl_col_in_fullres",
                                 "pxl_col_in_fullres": "pxl_row_in_fullres"}),
     ["swapped", "transposed=True"]),
    (lambda t: t.assign(array_row=0, array_col=0), ["array_row, array_col"]),
    (lambda t: t.assign(pxl_row_in_fullres=t["pxl_row_in_fullres"] * 2), ["neither"]),
])
def test_positions_that_cannot_be_are_refused(tmp_path, change, words):
    write_visium(tmp_path / "outs")
    change_positions(tmp_path / "outs", change)
    refuses(lambda: load_visium(tmp_path), *words)


def test_transposed_positions_are_read_where_they_are_stated(tmp_path):
    truth = write_visium(tmp_path / "outs")
    change_positions(tmp_path / "outs", lambda t: t.rename(columns={
        "pxl_row_in_fullres": "pxl_col_in_fullres", "pxl_col_in_fullres": "pxl_row_in_fullres"}))
    adata = load_visium(tmp_path, transposed=True)
    np.testing.assert_allclose(adata.obsm["spatial"], truth.loc[
        adata.obs_names, ["pxl_row_in_fullres", "pxl_col_in_fullres"]] * 0.5)


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.97])
def test_a_table_of_positions_that_was_cut_is_refused(tmp_path, cut):
    write_visium(tmp_path / "outs")
    path = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    path.write_bytes(path.read_bytes()[:int(cut * path.stat().st_size)])
    refuses(lambda: load_visium(tmp_path))


@pytest.mark.parametrize("write", ["bom", "crlf", "semicolon", "quotes", "gz", "parquet", "order"])
def test_positions_as_programs_write_them(tmp_path, write):
    truth = write_visium(tmp_path / "outs")
    path = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    table, text = pd.read_csv(path), path.read_text()
    if write == "bom":
        path.write_text(text, encoding="utf-8-sig")
    elif write == "crlf":
        path.write_bytes(text.replace("\n", "\r\n").encode())
    elif write == "semicolon":
        path.write_text(text.replace(",", ";"))
    elif write == "quotes":
        table.to_csv(path, index=False, quoting=2)
    elif write == "gz":
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(text.encode()))
    elif write == "order":
        table.sample(frac=1, random_state=0)[table.columns[::-1]].to_csv(path, index=False)
    if write in ("gz", "parquet"):
        path.unlink()
    if write == "parquet":
        table.to_parquet(path.with_suffix(".parquet"))
    adata = load_visium(tmp_path)
    np.testing.assert_allclose(adata.obsm["spatial"], truth.loc[
        adata.obs_names, ["pxl_col_in_fullres", "pxl_row_in_fullres"]] * 0.5)


@pytest.mark.parametrize("side", ["matrix", "positions"])
def test_barcodes_meet_with_and_without_their_suffix(tmp_path, side):
    truth = write_visium(tmp_path / "outs")
    if side == "positions":
        change_positions(tmp_path / "outs", lambda t: t.assign(
            barcode=t["barcode"].str.removesuffix("-1")))
    else:
        change_matrix(tmp_path / "outs",
                      barcodes=lambda v: np.array([b.removesuffix(b"-1") for b in v]))
    adata = load_visium(tmp_path)
    truth.index = truth.index if side == "positions" else truth.index.str.removesuffix("-1")
    np.testing.assert_array_equal(np.asarray(adata.layers["counts"].sum(1)).ravel(),
                                  truth.loc[adata.obs_names, "total"])


@pytest.mark.parametrize(("values", "words"), [
    ({"tissue_hires_scalef": None}, ["tissue_hires_scalef", "null"]),
    ({"tissue_hires_scalef": "0,5"}, ["tissue_hires_scalef", "0,5"]),
    ({"tissue_hires_scalef": 0}, ["tissue_hires_scalef"]),
    ({"tissue_hires_scalef": -0.5}, ["tissue_hires_scalef"]),
    ({"tissue_hires_scalef": float("nan")}, ["tissue_hires_scalef"]),
    ({"tissue_hires_scalef": 1e308}, ["tissue_hires_scalef"]),
    ({"tissue_hires_scalef": True}, ["tissue_hires_scalef"]),
    ({"tissue_hires_scalef": 1.0}, ["outside its"]),
    ({"spot_diameter_fullres": "13"}, ["spot_diameter_fullres"]),
    ({"spot_diameter_fullres": 40.0}, ["40 px", "200 um", "20 px apart"]),
    ({"microns_per_pixel": 0.5}, ["microns_per_pixel", "0.5", "5"]),
    ({"bin_size_um": 8.0}, ["visium_hd"]),
])
def test_scale_factors_that_cannot_be_are_refused(tmp_path, values, words):
    write_visium(tmp_path / "outs")
    change_scalefactors(tmp_path / "outs", **values)
    refuses(lambda: load_visium(tmp_path), *words)


@pytest.mark.parametrize("content", ["[1]", "null", '{"a"', "", "[" * 100_000])
def test_scale_factors_that_are_none_are_refused(tmp_path, content):
    write_visium(tmp_path / "outs")
    (tmp_path / "outs" / "spatial" / "scalefactors_json.json").write_text(content)
    refuses(lambda: load_visium(tmp_path), "scalefactors_json.json")


def test_a_stated_scale_must_be_the_measured_one(tmp_path):
    write_visium(tmp_path / "outs")
    section = next(iter(cohort.read("visium", tmp_path, mpp=5.1)))
    assert section.mpp == pytest.approx(10.2)  # within 5 %: the user's holds
    refuses(lambda: load_visium(tmp_path, mpp=0.5), "mpp", "0.5", "5")
    for mpp in (0, -1.0, float("nan"), float("inf"), "0,5", True):
        refuses(lambda mpp=mpp: load_visium(tmp_path, mpp=mpp), "mpp")
    for written in ('"0,5"', "0", "-1", "nan0", "inf"):
        (tmp_path / "samples.csv").write_text(
            f"section,study,patient,mpp\n{tmp_path.name},A,P,{written}\n")
        refuses(lambda: cohort.read("visium", tmp_path), "samples.csv", "mpp", "row 2")


def test_an_image_of_other_size_is_refused(tmp_path):
    write_visium(tmp_path / "outs")
    for size in [(100, 90), (180, 200), (400, 360), (200, 150)]:
        Image.new("RGB", size, "pink").save(tmp_path / "full.png")
        refuses(lambda: load_visium(tmp_path, image=tmp_path / "full.png"), "full.png",
                f"{size[0]} x {size[1]} px", "200 x 180")
    reduced = tmp_path / "outs" / "spatial" / "tissue_hires_image.png"
    reduced.unlink()
    Image.new("RGB", (60, 54), "pink").save(tmp_path / "full.png")
    refuses(lambda: load_visium(tmp_path, image=tmp_path / "full.png"), "outside its",
            "60 x 54 px")
    Image.new("RGB", (70, 90), "pink").save(reduced)
    Image.new("RGB", (20, 18), "pink").save(reduced.with_name("tissue_lowres_image.png"))
    refuses(lambda: load_visium(tmp_path), "tissue_hires_image.png", "70 x 90 px", "100 x 90")


def test_the_scale_of_the_images_own_tags_must_fit(tmp_path, monkeypatch):
    write_visium(tmp_path / "outs")
    Image.new("RGB", (200, 180), "pink").save(tmp_path / "full.png")
    opened = images.open_slide
    monkeypatch.setattr(images, "open_slide", lambda path: opened(path, mpp=0.25))
    refuses(lambda: load_visium(tmp_path, image=tmp_path / "full.png"), "0.25", "5", "mpp=")
    load_visium(tmp_path, image=tmp_path / "full.png", mpp=5.0)


@pytest.mark.parametrize("file", ["spatial/tissue_hires_image.png", "filtered_feature_bc_matrix.h5",
                                  "spatial/tissue_positions.csv", "spatial/scalefactors_json.json",
                                  "samples.csv"])
def test_a_link_that_leads_nowhere_is_no_absence(tmp_path, file):
    write_visium(tmp_path / "outs")
    (tmp_path / "outs" / file).unlink(missing_ok=True)
    (tmp_path / "outs" / file).symlink_to("/nowhere/at/all")
    refuses(lambda: load_visium(tmp_path / "outs"), Path(file).name, "/nowhere/at/all")


def test_a_square_lattice_is_no_visium_array(tmp_path):
    write_visium(tmp_path / "outs")
    n = 36
    change_positions(tmp_path / "outs", lambda t: t.assign(
        array_row=np.arange(n) // 6, array_col=np.arange(n) % 6,
        pxl_row_in_fullres=20.0 * (np.arange(n) // 6) + 30,
        pxl_col_in_fullres=20.0 * (np.arange(n) % 6) + 30))
    refuses(lambda: load_visium(tmp_path), "square", "20 px", "visium_hd", "pitch_um=", "mpp=")
    for stated in ({"pitch_um": 50.0}, {"mpp": 2.5}, {"mpp": 2.5, "pitch_um": 50.0}):
        section = next(iter(cohort.read("visium", tmp_path, **stated)))
        assert section.mpp == pytest.approx(5.0)  # of the image at half size
        lattice = section.adata.uns["lattice"]
        assert (lattice["kind"], lattice["n_neighs"]) == ("square", 4)
        assert lattice["pitch_um"] == pytest.approx(50.0)
        assert lattice["spot_um"] == pytest.approx(13 * 2.5)
    refuses(lambda: load_visium(tmp_path, pitch_um=50.0, mpp=5.0), "pitch_um", "2.5")


def write_hd(folder: Path, *, bin_um: float = 16.0, shape=(30, 20), **scale) -> pd.DataFrame:
    """Bins of 32 px at 0.5 um/px, in a folder of one bin size."""
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    rows, columns = (axis.ravel() for axis in np.mgrid[0:shape[0], 0:shape[1]])
    positions = pd.DataFrame({
        "barcode": [f"s_016um_{r:05d}_{c:05d}-1" for r, c in zip(rows, columns, strict=True)],
        "in_tissue": 1, "array_row": rows, "array_col": columns,
        "pxl_row_in_fullres": 32.0 * rows + 50, "pxl_col_in_fullres": 32.0 * columns + 50})
    positions.to_parquet(spatial / "tissue_positions.parquet")
    (spatial / "scalefactors_json.json").write_text(json.dumps({
        "microns_per_pixel": 0.5, "bin_size_um": bin_um, "tissue_hires_scalef": 1.0,
        "spot_diameter_fullres": 2 * bin_um} | scale))
    Image.new("RGB", (740, 1060), "pink").save(spatial / "tissue_hires_image.png")
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5", np.ones((len(rows), 3), int),
                 list(positions["barcode"]), ["A", "B", "C"])
    return positions


def test_bins_are_never_read_as_spots(tmp_path):
    write_hd(tmp_path / "S" / "binned_outputs" / "square_016um")
    for path in (tmp_path, tmp_path / "S", tmp_path / "S" / "binned_outputs" / "square_016um",
                 tmp_path / "S" / "binned_outputs"):
        refuses(lambda path=path: cohort.read("visium", path), "Visium HD", "source visium_hd")
    # Under another name the folder is still told by its scale factors, or by its lattice.
    (tmp_path / "S" / "binned_outputs" / "square_016um").rename(tmp_path / "bins")
    (tmp_path / "S" / "binned_outputs").rmdir()
    refuses(lambda: cohort.read("visium", tmp_path), "source visium_hd")
    change_scalefactors(tmp_path / "bins", bin_size_um=None)
    refuses(lambda: cohort.read("visium", tmp_path), "source visium_hd")
    write_visium(tmp_path / "spots" / "outs")
    refuses(lambda: cohort.read("visium_hd", tmp_path / "spots"), "source visium")
    refuses(lambda: cohort.read("xenium", tmp_path / "spots"), "source visium")


@pytest.mark.parametrize(("scale", "words"), [
    ({"microns_per_pixel": 0.25, "spot_diameter_fullres": 64.0}, ["16", "32 px at 0.25"]),
    ({"spot_diameter_fullres": 16.0}, ["spot_diameter_fullres", "8", "16"]),
    ({"bin_size_um": 8.0, "spot_diameter_fullres": 16.0}, ["bin_size_um", "8", "16"]),
    ({"microns_per_pixel": None}, ["microns_per_pixel"]),
    ({"bin_size_um": "16"}, ["bin_size_um"]),
])
def test_bins_whose_scale_disagrees_are_refused(tmp_path, scale, words):
    write_hd(tmp_path / "square_016um", **scale)
    refuses(lambda: next(iter(cohort.read("visium_hd", tmp_path, spot_um=80.0))).adata, *words)


def test_bins_in_the_right_scale_are_read(tmp_path):
    write_hd(tmp_path / "square_016um")
    section = next(iter(cohort.read("visium_hd", tmp_path, spot_um=80.0)))
    assert section.mpp == 0.5 and section.adata.n_obs == 6 * 4
    assert (section.adata.layers["counts"].toarray() == 25).all()
    refuses(lambda: cohort.read("visium_hd", tmp_path, mpp=1.0, spot_um=80.0), "mpp", "0.5")
    # Folders of one output are one tissue, not a section each.
    for um in (16, 80):
        write_hd(tmp_path / "S" / "binned_outputs" / f"square_{um:03d}um", bin_um=16.0)
    (tmp_path / "S" / "binned_outputs" / "square_080um" / "filtered_feature_bc_matrix.h5").unlink()
    found = cohort.read("visium_hd", tmp_path / "S" / "binned_outputs", spot_um=80.0)
    assert list(found.sections) == ["S"]
    for option in ({"spot_um": 0}, {"spot_um": float("nan")}, {"min_fill": 2},
                   {"spot_um": "100"}):
        refuses(lambda option=option: cohort.read("visium_hd", tmp_path, **option), *option)


@pytest.mark.parametrize("change", [
    lambda t: t.assign(array_col=[np.inf, *t["array_col"][1:]]),
    lambda t: t.assign(array_col=[np.nan, *t["array_col"][1:]]),
    lambda t: t.assign(array_row=[0.5, *t["array_row"][1:]]),
    lambda t: t.assign(pxl_col_in_fullres=[None, *t["pxl_col_in_fullres"][1:]]),
    lambda t: t.assign(array_row=t["array_col"], array_col=t["array_row"])])
def test_bins_that_are_nowhere_are_refused(tmp_path, change):
    positions = write_hd(tmp_path / "square_016um")
    change(positions).to_parquet(tmp_path / "square_016um" / "spatial" /
                                 "tissue_positions.parquet")
    if (change(positions)["array_row"] == positions["array_col"]).all():
        # Rows and columns of a square array may be named either way: the places stay the same.
        assert next(iter(cohort.read("visium_hd", tmp_path, spot_um=80.0))).adata.n_obs == 24
    else:
        refuses(lambda: next(iter(cohort.read("visium_hd", tmp_path, spot_um=80.0))).adata,
                "tissue_positions.parquet")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e18])
def test_squares_of_points_that_are_nowhere(bad):
    um = np.array([[1.0, 2.0], [3.0, bad]])
    refuses(lambda: pseudospots.squares(um, 100.0), "point 2")
    refuses(lambda: pseudospots.squares(um[:1], -abs(bad)), "spot_um")


# --- feature matrices ---------------------------------------------------------------------------

@pytest.mark.parametrize(("arrays", "words"), [
    ({"indptr": lambda v: np.where(np.arange(len(v)) == 9, 2**40, v)}, ["indptr"]),
    ({"indptr": lambda v: np.where(np.arange(len(v)) == 9, -1, v)}, ["indptr"]),
    ({"indptr": lambda v: v[:-1]}, ["indptr"]),
    ({"indptr": lambda v: v + 0.5}, ["indptr"]),
    ({"indptr": lambda v: v[None]}, ["indptr"]),
    ({"indices": lambda v: v + 4}, ["indices", "5 features"]),
    ({"indices": lambda v: v - 1}, ["indices"]),
    ({"indices": lambda v: v[:-3]}, ["indices"]),
    ({"indices": lambda v: np.zeros_like(v)}, ["twice"]),
    ({"data": lambda v: v.astype(float) + 0.5}, ["fractional"]),
    ({"data": lambda v: -v}, ["negative"]),
    ({"data": lambda v: v * 0}, ["are 0 in all"]),
    ({"data": lambda v: np.where(np.arange(len(v)) == 3, np.nan, v)}, ["NaN"]),
    ({"data": lambda v: v.astype("i8") + 2**32}, ["more than any spot"]),
    ({"data": lambda v: np.array([b"x"] * len(v))}, ["data"]),
    ({"shape": lambda v: v[::-1]}, ["matrix/shape", "features x barcodes"]),
    ({"shape": lambda v: v + [0, 10**9]}, ["matrix/shape"]),
    ({"barcodes": lambda v: np.array([b"A"] * len(v))}, ["barcode", "more than once"]),
    ({"barcodes": lambda v: np.array([b"", *v[1:]])}, ["barcode", "blank"]),
    ({"features__id": lambda v: v[:-1]}, ["features/id"]),
    ({"features__id": lambda v: np.array([b"ENSG1"] * len(v))}, ["'B'", "ENSG1"]),
    ({"features__name": lambda v: np.array([b" ", *v[1:]])}, ["name", "blank"]),
    ({"features__name": lambda v: np.array([b"a\nb", *v[1:]])}, ["name", "a\\nb"]),
    ({"features__feature_type": lambda v: np.array([b"Antibody Capture"] * len(v))},
     ["Gene Expression", "Antibody Capture"]),
])
def test_matrices_that_cannot_be_are_refused(tmp_path, arrays, words):
    write_visium(tmp_path / "outs")
    change_matrix(tmp_path / "outs", **arrays)
    refuses(lambda: load_visium(tmp_path), "filtered_feature_bc_matrix.h5", *words)


def test_a_matrix_in_other_types_gives_the_same_counts(tmp_path):
    write_visium(tmp_path / "a" / "outs")
    write_visium(tmp_path / "b" / "outs")
    change_matrix(tmp_path / "b" / "outs", data=lambda v: v.astype("f8"),
                  indices=lambda v: v.astype("f8"), indptr=lambda v: v.astype("u2"),
                  shape=lambda v: v.astype("f4"),
                  barcodes=lambda v: np.array([b.decode() for b in v], object))
    one, other = load_visium(tmp_path / "a"), load_visium(tmp_path / "b")
    assert other.layers["counts"].dtype == np.int32
    assert (one.layers["counts"] != other.layers["counts"]).nnz == 0
    assert list(one.obs_names) == list(other.obs_names)


def test_antibodies_are_no_genes(tmp_path):
    truth = write_visium(tmp_path / "outs")
    change_matrix(tmp_path / "outs", features__feature_type=lambda v: np.array(
        [*v[:-1], b"Antibody Capture"]))
    adata = load_visium(tmp_path)
    assert list(adata.var_names) == ["A", "B", "B-1"]
    assert (np.asarray(adata.layers["counts"].sum(1)).ravel()
            <= truth.loc[adata.obs_names, "total"]).all()


def write_mtx(outs: Path, *, packed: bool, lie: bool = False, features: str = "features.tsv",
              names: list[str] | None = None, turn: bool = False) -> np.ndarray:
    """Replace the h5 file of `outs` by a folder of Matrix Market; gives the counts."""
    import scipy.io

    with h5py.File(outs / "filtered_feature_bc_matrix.h5") as stream:
        group = stream["matrix"]
        shape = tuple(group["shape"][()])
        counts = sparse.csc_matrix((group["data"][()], group["indices"][()],
                                    group["indptr"][()]), shape=shape)
        barcodes = group["barcodes"].asstr()[()]
        symbols, ids = (group["features"][name].asstr()[()] for name in ("name", "id"))
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    folder = outs / "filtered_feature_bc_matrix"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", counts.T if turn else counts)
    rows = names or ["\t".join(row) for row in zip(ids, symbols, ["Gene Expression"] * len(ids),
                                                   strict=True)]
    (folder / features).write_text("\n".join(rows) + "\n")
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    for path in list(folder.iterdir()):
        if packed != lie:
            path.write_bytes(gzip.compress(path.read_bytes()))
        if packed:
            path.rename(path.with_name(path.name + ".gz"))
    return counts.toarray().T


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lie", [True, False])
@pytest.mark.parametrize("features", ["features.tsv", "genes.tsv"])
def test_matrix_market_is_read_packed_or_plain_whatever_its_name_says(tmp_path, packed, lie,
                                                                      features):
    truth = write_visium(tmp_path / "outs")
    write_mtx(tmp_path / "outs", packed=packed, lie=lie, features=features)
    (tmp_path / "outs" / "filtered_feature_bc_matrix" / "._matrix.mtx").write_bytes(b"\0\5\x16")
    (tmp_path / "outs" / "._filtered_feature_bc_matrix.h5").write_bytes(b"\0\5\x16")
    (tmp_path / "._outs").mkdir()
    adata = load_visium(tmp_path)
    np.testing.assert_array_equal(np.asarray(adata.layers["counts"].sum(1)).ravel(),
                                  truth.loc[adata.obs_names, "total"])
    assert adata.layers["counts"].dtype == np.int32
    assert list(adata.var["gene_ids"]) == ["ENSG0", "ENSG1", "ENSG2", "ENSG4"]


@pytest.mark.parametrize(("file", "change", "words"), [
    ("matrix.mtx", lambda t: t[:-20], ["matrix.mtx"]),
    ("matrix.mtx", lambda t: t[:0], ["header"]),
    ("matrix.mtx", lambda t: t.replace("general", "symmetric"), ["header", "symmetric"]),
    ("matrix.mtx", lambda t: t.replace("integer", "complex"), ["header"]),
    ("matrix.mtx", lambda t: t.replace("\n5 36 ", "\n5 36 9999999"), ["declares"]),
    ("matrix.mtx", lambda t: t.replace("\n5 36 ", "\n5 36000000000 "), ["36000000000"]),
    ("matrix.mtx", lambda t: t.replace("\n1 1 ", "\n99 1 "), ["matrix"]),
    ("matrix.mtx", lambda t: t.replace("\n3 1 ", "\n1 1 "), ["twice"]),
    ("matrix.mtx", lambda t: t.replace("\n1 1 ", "\n1 1 x"), ["matrix"]),
    ("matrix.mtx", lambda t: t.replace("\n1 1 ", "\n1 1 -"), ["negative"]),
    ("features.tsv", lambda t: t.replace("Gene Expression\n", "Gene Expression\tx\n", 1), ["row"]),
    ("features.tsv", lambda t: "", ["rows"]),
    ("barcodes.tsv", lambda t: t.replace("BC003-1", ""), ["blank"]),
])
def test_broken_matrix_market_is_refused(tmp_path, file, change, words):
    write_visium(tmp_path / "outs")
    write_mtx(tmp_path / "outs", packed=False)
    path = tmp_path / "outs" / "filtered_feature_bc_matrix" / file
    text = path.read_text()
    path.write_text(change(text))
    refuses(lambda: load_visium(tmp_path), file, *words)
    if file == "barcodes.tsv":
        path.write_text("barcode\n" + text)
        refuses(lambda: load_visium(tmp_path), "37 barcodes")


def test_a_transposed_or_incomplete_folder_is_refused(tmp_path):
    write_visium(tmp_path / "a" / "outs")
    write_mtx(tmp_path / "a" / "outs", packed=True, turn=True)
    refuses(lambda: load_visium(tmp_path / "a"), "36 x 5", "transpose")
    (tmp_path / "a" / "outs" / "filtered_feature_bc_matrix" / "barcodes.tsv.gz").unlink()
    refuses(lambda: load_visium(tmp_path / "a"), "barcodes.tsv", "is missing")


def test_a_repeated_symbol_is_one_gene_in_every_section(tmp_path):
    """By Ensembl id, whatever the order of the file, and also where a file lacks one of the two."""
    ids = {"s1": [b"ENSG0", b"ENSG1", b"ENSG2.3", b"ENSG3", b"ENSG4"],
           "s2": [b"ENSG0", b"ENSG2.4", b"ENSG1", b"ENSG3", b"ENSG4"],
           "s3": [b"ENSG0", b"ENSG2", b"ENSG9", b"ENSG3", b"ENSG4"]}
    for name, given in ids.items():
        write_visium(tmp_path / name / "outs")
        change_matrix(tmp_path / name / "outs", features__id=lambda v, g=given: np.array(g))
    change_matrix(tmp_path / "s3" / "outs",
                  features__name=lambda v: np.array([b"A", b"B", b"C", b"D", b"E"]))
    for found in (cohort.read("visium", tmp_path, patient="p"),
                  [section for name in ("s2", "s1") for section in
                   cohort.read("visium", tmp_path / name)]):
        for section in found:
            called = dict(zip(section.adata.var["gene_ids"].str[:5], section.adata.var_names,
                              strict=True))
            assert called["ENSG2"] == "B-1" and called.get("ENSG1", "B") == "B"
            counts = section.adata.layers["counts"].toarray()
            column = list(ids[section.name]).index(
                next(i for i in ids[section.name] if i.startswith(b"ENSG2")))
            with h5py.File(tmp_path / section.name / "outs" /
                           "filtered_feature_bc_matrix.h5") as stream:
                whole = sparse.csr_matrix((stream["matrix/data"][()], stream["matrix/indices"][()],
                                           stream["matrix/indptr"][()])).toarray()
                rows = list(stream["matrix/barcodes"].asstr()[()])
            rows = [rows.index(barcode) for barcode in section.adata.obs_names]
            np.testing.assert_array_equal(
                counts[:, list(section.adata.var_names).index("B-1")], whole[rows, column])


def test_ensembl_ids_are_mapped_by_the_files_own_table(tmp_path):
    write_visium(tmp_path / "outs")
    ids = [f"ENSG{i:011d}" for i in range(5)]
    write_mtx(tmp_path / "outs", packed=False,
              names=[f"{symbol}\t{gene}\tGene Expression"
                     for symbol, gene in zip("ABCDE", ids, strict=True)])
    adata = load_visium(tmp_path)
    assert list(adata.var_names) == list("ABCDE") and list(adata.var["gene_ids"]) == ids


# --- names, tables and layouts ------------------------------------------------------------------

def test_sections_called_by_numbers_stay_text(tmp_path):
    for name in ("007", "151673"):
        write_visium(tmp_path / name / "outs")
    rows = pd.DataFrame({"section": ["007", "151673"], "study": "A", "patient": ["01", " 2 "]})
    rows.to_csv(tmp_path / "samples.csv", index=False)
    for samples in (None, rows):
        found = cohort.read("visium", tmp_path, samples=samples)
        assert list(found.sections) == ["007", "151673"] and found.patients == ["01", "2"]
    assert list(cohort.read("visium", tmp_path, patient="p").sections) == ["007", "151673"]


@pytest.mark.parametrize(("content", "words"), [
    ("section,study,patient\ns1,A,\n", ["patient", "row 2"]),
    ("section,study,patient\n,A,P\n", ["section"]),
    ("section,study,patient\ns1,A,NA\n", ["patient", "row 2"]),
    ("section,study,patient\n../s1,A,P\n", ["section", "../s1"]),
    ("section,study,patient,folder\na/b,A,P,s1\n", ["section", "a/b"]),
    ("section,study,patient\ns1,A,P\ns1,A,P\n", ["s1"]),
    ("section,study,patient,folder\na,A,P,s1\nb,A,Q,s1\n", ["folder", "s1"]),
    ("section,study,patient,image\ns1,A,P,none.png\n", ["none.png", "does not exist"]),
    ("section,study\ns1,A\n", ["patient"]),
    ("", ["samples.csv"]),
    ("section,study,patient\ns1,A,P1\ns2,A,P2,x\n", ["row 3"]),
])
def test_samples_that_name_no_section_are_refused(tmp_path, content, words):
    write_visium(tmp_path / "s1" / "outs")
    (tmp_path / "samples.csv").write_text(content)
    refuses(lambda: cohort.read("visium", tmp_path), *words)


def test_outputs_at_two_depths_are_all_found(tmp_path):
    write_visium(tmp_path / "s1")
    write_visium(tmp_path / "s2" / "outs")
    write_visium(tmp_path / ".hidden")
    assert list(cohort.read("visium", tmp_path, patient="p").sections) == ["s1", "s2"]


@pytest.mark.parametrize("name", [
    "GSM5420749_P1_filtered_feature_bc_matrix.h5", "GSM1_matrix.mtx.gz", "s1.barcodes.tsv.gz",
    "GSM1_tissue_positions_list.csv.gz", "GSM1_scalefactors_json.json.gz"])
def test_flat_files_of_geo_are_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / f"._{name}").write_bytes(b"x")
    refuses(lambda: cohort.read("visium", tmp_path), name, "read it with source flat")


def test_what_else_a_folder_may_hold_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "GSM1.tar.gz").write_bytes(b"x")
    refuses(lambda: cohort.read("visium", tmp_path), "unpack")
    write_visium(tmp_path / "b" / "outs")
    (tmp_path / "b" / "outs" / "spatial").rename(tmp_path / "b" / "space")
    refuses(lambda: cohort.read("visium", tmp_path / "b"), "without spatial/")


# --- Xenium -------------------------------------------------------------------------------------

def write_xenium(root: Path, n: int = 400, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({
        "feature_name": rng.choice(["ERBB2", "EPCAM"], n), "x_location": rng.uniform(0, 300, n),
        "y_location": rng.uniform(0, 200, n), "qv": 30.0}).assign(**columns)
    table.to_csv(root / "transcripts.csv.gz", index=False)
    return table


@pytest.mark.parametrize(("column", "value"), [
    ("x_location", ""), ("x_location", "x"), ("y_location", "inf"), ("x_location", 1e12),
    ("qv", "high"), ("feature_name", " ")])
def test_transcripts_that_are_nowhere_are_refused(tmp_path, column, value):
    table = write_xenium(tmp_path).astype(object)
    table.loc[7, column] = value
    table.to_csv(tmp_path / "transcripts.csv.gz", index=False)
    refuses(lambda: next(iter(cohort.read("xenium", tmp_path))).adata, column, "row 8")


def test_transcripts_packed_or_plain_whatever_their_name_says(tmp_path):
    table = write_xenium(tmp_path)
    first = next(iter(cohort.read("xenium", tmp_path))).adata
    path = tmp_path / "transcripts.csv.gz"
    path.write_bytes(table.to_csv(index=False).encode())
    assert (next(iter(cohort.read("xenium", tmp_path))).adata.X != first.X).nnz == 0
    assert first.layers["counts"].sum() == len(table)


def test_transcripts_with_names_of_rows_are_refused(tmp_path):
    table = write_xenium(tmp_path)
    text = table.to_csv(index=True)
    (tmp_path / "transcripts.csv.gz").write_text(text.removeprefix(","))  # as R writes it
    refuses(lambda: cohort.read("xenium", tmp_path), "without row names")


def test_blanks_around_a_transcripts_gene_are_no_part_of_it(tmp_path):
    table = write_xenium(tmp_path)
    table.loc[::3, "feature_name"] = " " + table["feature_name"] + " "
    table.to_csv(tmp_path / "transcripts.csv.gz", index=False)
    adata = next(iter(cohort.read("xenium", tmp_path, min_counts=0))).adata
    assert list(adata.var_names) == ["EPCAM", "ERBB2"]
    assert adata.layers["counts"].sum() == len(table)


def test_xenium_scales_must_agree(tmp_path):
    he = write_xenium(tmp_path)
    write_xenium(tmp_path, he_x=he["x_location"] / 0.5 + 9, he_y=he["y_location"] / 0.5)
    section = next(iter(cohort.read("xenium", tmp_path, mpp=0.5, min_counts=0)))
    assert section.adata.layers["counts"].sum() == 400
    refuses(lambda: next(iter(cohort.read("xenium", tmp_path, mpp=0.25))).adata, "0.25", "0.5")
    refuses(lambda: cohort.read("xenium", tmp_path), "mpp=")


@pytest.mark.parametrize(("matrix", "words"), [
    (np.diag([2.0, 4.0, 1.0]), ["2", "4"]), (np.diag([2.0, np.nan, 1.0]), ["alignment"]),
    (np.diag([2.0, 0.0, 1.0]), ["alignment"]), (np.ones((2, 3)), ["shape (2, 3)"]),
    (np.diag([2.0, 2.0, 1.0])[::-1], ["0,0,1"])])
def test_an_alignment_that_is_none_is_refused(tmp_path, matrix, words):
    write_xenium(tmp_path)
    np.savetxt(tmp_path / "align.csv", matrix, delimiter=",")
    Image.new("RGB", (710, 480), "pink").save(tmp_path / "he.png")
    rows = pd.DataFrame([{"section": tmp_path.name, "study": "s", "patient": "p",
                          "image": "he.png", "alignment": "align.csv"}])
    refuses(lambda: cohort.read("xenium", tmp_path, samples=rows), "align.csv", *words)


def test_the_morphology_images_own_pixel_size_is_taken(tmp_path):
    write_xenium(tmp_path)
    np.savetxt(tmp_path / "align.csv", np.diag([2.0, 2.0, 1.0]), delimiter=",")
    Image.new("RGB", (710, 480), "pink").save(tmp_path / "he.png")
    rows = pd.DataFrame([{"section": tmp_path.name, "study": "s", "patient": "p",
                          "image": "he.png", "alignment": "align.csv"}])
    (tmp_path / "experiment.xenium").write_text('{"pixel_size": 0.25}')
    section = next(iter(cohort.read("xenium", tmp_path, samples=rows)))
    assert section.mpp == pytest.approx(0.5)
    np.testing.assert_allclose(section.adata["1x0"].obsm["spatial"][0], [300, 100])
    refuses(lambda: cohort.read("xenium", tmp_path, samples=rows, mpp=0.2), "mpp", "0.5")
    Image.new("RGB", (300, 480), "pink").save(tmp_path / "he.png")
    refuses(lambda: next(iter(cohort.read("xenium", tmp_path, samples=rows))).adata, "outside")
    for size in ("0", "-1", "NaN", '"0.2125"', "null"):
        (tmp_path / "experiment.xenium").write_text(f'{{"pixel_size": {size}}}')
        refuses(lambda: cohort.read("xenium", tmp_path, samples=rows), "pixel_size")


# --- files of real instruments ------------------------------------------------------------------

@pytest.mark.parametrize(("name", "options", "mpp"), [
    ("crc_galeano_nino/CRC_16", {}, 15.1),
    ("mouse_brain_10x/V1_Adult_Mouse_Brain_DG", {}, 14.2),
    ("mouse_brain_10x/V1_Mouse_Brain_Sagittal_Anterior_100genes", {}, 14.0),
    ("breast_dcis_msti/LBC_DCIS_IC", {"pitch_um": 100.0}, 8.5)])
def test_real_sections_are_read_as_scanpy_reads_them(shared, name, options, mpp):
    import scanpy as sc

    folder = shared / "data" / name
    section = next(iter(cohort.read("visium", folder, **options)))
    h5 = folder / "filtered_feature_bc_matrix.h5"
    theirs = sc.read_10x_h5(h5) if h5.exists() else sc.read_10x_mtx(h5.with_suffix(""),
                                                                    make_unique=False)
    ours = section.adata
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert list(ours.var["gene_ids"]) == list(theirs.var["gene_ids"])
    assert (ours.layers["counts"] != theirs.X).nnz == 0
    # One name stands for each gene, and is its symbol but for the second of a kind.
    assert ours.var_names.is_unique
    assert (ours.var_names != theirs.var_names).sum() == theirs.var_names.duplicated().sum()
    places = pd.read_csv(folder / "spatial" / "tissue_positions_list.csv", header=None,
                         index_col=0).loc[ours.obs_names, [5, 4]]
    factors = json.loads((folder / "spatial" / "scalefactors_json.json").read_text())
    np.testing.assert_allclose(ours.obsm["spatial"], places * factors["tissue_lowres_scalef"])
    assert section.mpp == pytest.approx(mpp, abs=0.06)


def test_real_files_that_lack_facts_or_contradict_themselves(shared):
    data = shared / "data"
    refuses(lambda: cohort.read("visium", data / "breast_dcis_msti" / "LBC_DCIS_IC"),
            "117.6 px", "square", "pitch_um=")
    fixture = data / "fixtures" / "visium_hd_seurat"
    refuses(lambda: cohort.read("visium", fixture), "source visium_hd")
    bins = fixture / "binned_outputs" / "square_016um"
    assert next(iter(cohort.read("visium_hd", bins, spot_um=96.0))).mpp == pytest.approx(
        0.2738 / 0.2540, rel=1e-3)
    # Its counts are of a Visium section; its 8 um folder holds places of 16 um bins.
    refuses(lambda: next(iter(cohort.read("visium_hd", bins, spot_um=96.0))).adata,
            "2053 of 2695 spots have no position")
    refuses(lambda: next(iter(cohort.read("visium_hd", bins.with_name("square_008um"),
                                          spot_um=96.0))).adata, "bin_size_um", "8 µm", "16")
    cells = data / "fixtures" / "xenium_small"
    refuses(lambda: cohort.read("xenium", cells), "cells of Xenium", "source xenium_cells")
    counts = feature_matrix.read_matrix(cells / "cell_feature_matrix.h5").layers["counts"]
    [section] = cohort.read("xenium_cells", cells, min_counts=0)
    assert section.adata.layers["counts"].sum() == counts.sum() and not section.has_image


def test_a_real_matrix_whose_numbers_are_all_floats(shared):
    """scanpy cannot read it; the sums stand in its table of cells."""
    folder = shared / "data" / "fixtures" / "xenium_small"
    counts = feature_matrix.read_matrix(folder / "cell_feature_matrix.h5")
    assert counts.shape == (6, 4) and counts.layers["counts"].dtype == np.int32
    with h5py.File(folder / "cell_feature_matrix.h5") as stream:
        assert counts.X.sum() == stream["matrix/data"][()].sum()
    assert list(counts.var["gene_ids"])[:2] == ["ENSG00000121270", "ENSG00000107796"]
