"""Layouts in which other laboratories keep sections: what is recognised is read as it should be."""

import gzip
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mvhlib import cohort, profiles
from mvhlib.artifacts import InputError
from mvhlib.cohort import base
from mvhlib.profiles import shared
from mvhlib.profiles.found import Row
from mvhlib.tiles import whole
from tests.nobody import close, looked_at
from tests.test_cohort import write_10x_h5, write_mtx, write_visium, write_xenium
from tests.test_profiles import doctor, fill, profile, write_h5ad, write_legacy


def loosen(output: Path, target: Path, prefix: str) -> None:
    """Move an output's files to `target` under a prefix, packed as GEO does."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        packed = path.suffix in (".h5", ".gz")
        content = path.read_bytes()
        (target / f"{prefix}{path.name}{'' if packed else '.gz'}").write_bytes(
            content if packed else gzip.compress(content))
    shutil.rmtree(output)


@pytest.mark.parametrize("prefix, matrix", [("GSM1_lab_", "h5"), ("GSM1-lab.", "mtx"), ("", "h5")])
def test_loose_files_are_read_as_the_output_was(tmp_path, prefix, matrix):
    output = tmp_path / ".work/lab"
    write_visium(output, header=matrix == "h5")
    if matrix == "mtx":
        write_mtx(output, packed=False)
    before = cohort.read("visium", output)["lab"]
    counts, places = before.adata.layers["counts"].toarray(), before.centers
    pixels = before.image()
    data = tmp_path / "lab"
    loosen(output, data, prefix)
    files = sorted(data.rglob("*"))
    [section] = cohort.read("flat", data, keep=tmp_path / "run/cohort")
    assert section.name == (prefix.rstrip("_.") or "lab") and section.mpp == before.mpp
    np.testing.assert_array_equal(section.adata.layers["counts"].toarray(), counts)
    np.testing.assert_array_equal(section.centers, places)
    np.testing.assert_array_equal(section.image(), pixels)
    assert sorted(data.rglob("*")) == files  # nothing is written among them
    # What 01_cohort keeps is found again, its image below the run and not below DATA.
    base.write_section(section, tmp_path / "run/cohort")
    again = base.read_section(tmp_path / f"run/cohort/{section.name}.h5ad", data)
    np.testing.assert_array_equal(again.image(), pixels)


def test_doctor_reads_loose_files_and_leaves_nothing(tmp_path, params, capsys):
    for name in ("a", "b"):
        write_visium(tmp_path / name)
        loosen(tmp_path / name, tmp_path / "data", f"GSM_{name}_")
    (tmp_path / "data/GSM_c_filtered_feature_bc_matrix.h5").write_bytes(b"x")
    (tmp_path / "data/GSM_c_spatial.tar.gz").write_bytes(b"x")
    status, said, _ = doctor(tmp_path / "data", capsys)
    assert status == 0 and "2 sections" in said and "source flat" in said
    assert "GSM_c lacks tissue_positions of the spots, scalefactors_json.json. Fix: unpack " \
        "GSM_c_spatial.tar.gz" in said
    assert profile(tmp_path / "data", params) == 0
    table = pd.read_csv(params / "mine/samples.csv")
    assert list(table["section"]) == ["GSM_a", "GSM_b"]
    path = tmp_path / "data/GSM_a_tissue_positions.csv.gz"
    path.write_bytes(gzip.compress(b"barcode,x\na,1\n"))
    _, said, _ = doctor(tmp_path / "data", capsys)
    assert f"GSM_a: {path}: columns: lacks" in said  # by its own name, not the arrangement's


@pytest.fixture
def params(tmp_path):
    (tmp_path / "params").mkdir()
    return tmp_path / "params"


def test_transcripts_and_spots_do_not_make_one_cohort(tmp_path):
    write_visium(tmp_path / "a")
    loosen(tmp_path / "a", tmp_path / "data", "GSM_a_")
    write_xenium(tmp_path / "b")
    loosen(tmp_path / "b", tmp_path / "data", "GSM_b_")
    with pytest.raises(InputError, match="holds sections of Visium and of Xenium"):
        cohort.read("flat", tmp_path / "data")
    (tmp_path / "data/samples.csv").write_text("section,study,patient\nGSM_b,S,P\n")
    assert cohort.read("flat", tmp_path / "data")["GSM_b"].adata.n_vars == 2


def test_the_full_image_beside_an_output_is_taken_where_it_fits(tmp_path, capsys):
    for name, size in (("A", (200, 180)), ("B", (300, 180))):  # hires is 100 x 90 at half size
        write_visium(tmp_path / name / "outs")
        Image.new("RGB", size, "pink").save(tmp_path / name / f"{name}_HE.tif")
    rows = {row.name: row for row in profiles.look(tmp_path).readable}
    assert rows["A"].cells["image"] == "A/A_HE.tif" and rows["A"].facts["mpp"] == pytest.approx(5)
    assert "image" not in rows["B"].cells and rows["B"].facts["mpp"] == pytest.approx(10)


@pytest.mark.parametrize("separator", ["\t", ","])
def test_spot_files_whose_rows_are_called_by_positions(tmp_path, separator):
    write_legacy(tmp_path, "N1")
    truth = pd.read_csv(tmp_path / "N1/N1_selection.tsv", sep="\t")
    (tmp_path / "N1/N1_selection.tsv").unlink()
    for folder, name in (("counts", "N1_stdata_counts.tsv.gz"), ("images", "N1_HE.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / "N1" / name).rename(tmp_path / folder / name)
    (tmp_path / "N1").rmdir()
    pd.DataFrame({"X": truth["pixel_x"].to_numpy(), "Y": truth["pixel_y"].to_numpy()}, index=[
        f"{x}x{y}" for x, y in zip(truth["x"], truth["y"], strict=True)]).to_csv(
        tmp_path / "spots_N1.csv.gz", sep=separator)
    [row] = profiles.look(tmp_path).readable
    assert row.cells["spots"] == "spots_N1.csv.gz" and row.cells["image"] == "images/N1_HE.jpg"
    assert row.facts["mpp"] == pytest.approx(4, rel=1e-3) and row.facts["spots"] == 36
    section = cohort.read("legacy_st", tmp_path, samples=_table(tmp_path, row))["N1"]
    placed = pd.DataFrame(section.centers, index=section.adata.obs_names)
    wanted = truth.set_axis([f"{x}x{y}" for x, y in zip(truth["x"], truth["y"], strict=True)])
    np.testing.assert_allclose(placed, wanted.loc[placed.index, ["pixel_x", "pixel_y"]])


def _table(folder: Path, row: Row) -> Path:
    path = folder / "samples.csv"
    pd.DataFrame([row.cells]).to_csv(path, index=False)
    return path


def test_a_table_of_genes_by_spots_is_refused_and_not_overlooked(tmp_path, capsys):
    (tmp_path / "P1.tsv").write_text("\t10x10\t10x11\t11x10\nGA\t1\t2\t3\nGB\t1\t0\t3\n")
    status, _, said = doctor(tmp_path, capsys)
    assert status == 2 and said.count("\n") == 1 and "the table stands on its side" in said


# --- AnnData of others ----------------------------------------------------------------------------

def alter(path: Path, change) -> None:
    adata = write_h5ad(path, mpp_of_visium=2.0)
    change(adata)
    adata.write_h5ad(path)


def read_one(folder: Path) -> cohort.Section:
    return cohort.read("h5ad", folder, samples=pd.DataFrame(
        [{"section": "A", "study": "S", "patient": "P"}]))["A"]


def test_anndata_of_cellxgene(tmp_path):
    def change(adata):
        adata.obs["in_tissue"] = [1] * 30 + [0] * 6
        adata.uns["spatial"]["is_single"] = np.bool_(True)

    alter(tmp_path / "A.h5ad", change)
    section = read_one(tmp_path)
    assert section.adata.n_obs == 30 and section.image_size == (150, 150)


def test_symbols_that_stand_twice_are_numbered_by_their_ids(tmp_path):
    def change(adata):
        adata.var_names = ["G0", "G0", *adata.var_names[2:]]
        adata.var["gene_ids"] = [f"ENSG{9 - k % 10:011d}" for k in range(12)]

    with pytest.warns(UserWarning, match="not unique"):
        alter(tmp_path / "A.h5ad", change)
        names = list(read_one(tmp_path).adata.var_names)
    assert names[:2] == ["G0-1", "G0"]  # the second has the lower id


def test_places_in_obs_are_taken_where_they_leave_no_doubt(tmp_path):
    def rename(x, y):
        def change(adata):
            adata.obs[x], adata.obs[y] = adata.obsm["spatial"].T
            del adata.obsm["spatial"]
        return change

    alter(tmp_path / "A.h5ad", lambda adata: None)
    wanted = read_one(tmp_path).centers
    alter(tmp_path / "A.h5ad", rename("imagecol", "imagerow"))
    np.testing.assert_allclose(read_one(tmp_path).centers, wanted)
    alter(tmp_path / "A.h5ad", rename("x_pixel", "y_pixel"))
    with pytest.raises(InputError, match=r"obs has \['x_pixel', 'y_pixel'\], but nothing says"):
        read_one(tmp_path)


# --- sections that cannot stand in one run --------------------------------------------------------

def row(name: str, genes, spots: int = 10) -> Row:
    return Row(name, facts={"spots": spots}, genes=frozenset(genes))


def names(first: int, last: int, prefix: str = "G") -> list[str]:
    return [f"{prefix}{k}" for k in range(first, last)]


@pytest.mark.parametrize("rows, wanted", [
    ([row("a", names(0, 99)), row("b", names(0, 80))], [["a", "b"]]),
    ([row("a", names(0, 99)), row("b", names(200, 300))], [["b"], ["a"]]),
    # One gene of 99 in common is none; two of a panel of three are enough.
    ([row("a", names(0, 99)), row("b", names(98, 150))], [["a"], ["b"]]),
    ([row("a", names(0, 3)), row("b", names(1, 4))], [["a", "b"]]),
    # Two poor sections that agree come before a rich one that agrees with none.
    ([row("a", names(0, 900)), row("b", names(0, 50, "X")), row("c", names(0, 60, "X"))],
     [["b", "c"], ["a"]])])
def test_sections_are_grouped_by_the_genes_that_they_share(rows, wanted):
    assert [[each.name for each in group] for group in shared.groups(rows)] == wanted


def test_a_profile_leaves_out_a_section_that_shares_no_genes(tmp_path, params, capsys):
    data = tmp_path / "data"
    alter(data / "A.h5ad", lambda adata: None)
    alter(data / "B.h5ad", lambda adata: setattr(
        adata, "var_names", [f"ENSG{k:011d}" for k in range(12)]))
    alter(data / "C.h5ad", lambda adata: None)
    status, said, _ = doctor(data, capsys)
    assert status == 0 and "2 sections" in said and "genes in all: 12" in said
    assert "B: shares 0 of its 12 genes with A: one names genes by symbols, the other by " \
        "Ensembl ids. Fix: " in said
    profile(data, params)
    assert list(pd.read_csv(params / "mine/samples.csv")["section"]) == ["A", "C"]


# --- cells of Xenium ------------------------------------------------------------------------------

def write_cells(folder: Path, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    counts, um = rng.poisson(5.0, (n, 3)), rng.uniform(0, 300, (n, 2))
    folder.mkdir(parents=True)
    cells = [f"cell{k}-1" for k in range(n)]
    write_10x_h5(folder / "cell_feature_matrix.h5", counts, cells, ["A", "B", "C"])
    pd.DataFrame({"cell_id": cells, "x_centroid": um[:, 0], "y_centroid": um[:, 1]}).sample(
        frac=1, random_state=1).to_csv(folder / "cells.csv.gz", index=False)
    return counts, um


def test_cells_of_xenium_are_summed_where_no_transcripts_are(tmp_path, capsys):
    counts, um = write_cells(tmp_path / "X1")
    status, said, _ = doctor(tmp_path, capsys)
    assert status == 0 and "source xenium_cells" in said
    [section] = cohort.read("xenium_cells", tmp_path, min_counts=0)
    square = (um // 100).astype(int)
    for place, found in zip(section.adata.obsm["spatial"],
                            section.adata.layers["counts"].toarray(), strict=True):
        mine = (square == ((place - 50) / 100).round().astype(int)).all(axis=1)
        np.testing.assert_array_equal(found, counts[mine].sum(axis=0))
    assert section.adata.X.sum() == counts.sum()
    table = pd.read_csv(tmp_path / "X1/cells.csv.gz")
    table[table["cell_id"] != "cell7-1"].to_csv(tmp_path / "X1/cells.csv.gz", index=False)
    with pytest.raises(InputError, match="cell_id: lacks 1 of 40 cells, the first is 'cell7-1'"):
        len(next(iter(cohort.read("xenium_cells", tmp_path))).adata)
    write_xenium(tmp_path / "X1")  # with transcripts at hand these are read
    assert profiles.look(tmp_path).source == "xenium"


def test_what_is_packed_or_of_another_language_says_so(tmp_path, capsys):
    (tmp_path / "GSE1_RAW.tar").write_bytes(b"x")
    assert doctor(tmp_path, capsys)[2].strip().endswith("Fix: unpack GSE1_RAW.tar.")
    (tmp_path / "GSE1_RAW.tar").rename(tmp_path / "a.rds")
    assert "holds objects of R" in doctor(tmp_path, capsys)[2]


# --- images: classes, or slides -------------------------------------------------------------------

def write_images(folder: Path, names) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 300), (200, 100, shade)).save(folder / name)


@pytest.mark.parametrize("names, kind", [
    ([f"S{k}-HE.tif" for k in range(6)], "slides"),  # a beginning of its own for each
    ([f"P{k}/HE.png" for k in range(6)], "slides"),  # a folder for each patient
    ([f"P{k}/{k}.png" for k in range(2)] + ["P1/more.png"], "slides"),
    (["a.png", "b.png"], "slides"),
    ([f"{name}-{k}.tif" for name in ("TUM", "LYM") for k in range(2)], "folder"),
    ([f"{name}/{k}.png" for name in ("TUM", "LYM") for k in range(2)] + ["ADI/0.png"], "folder"),
    ([f"{name}-{k}.tif" for name in ("TUM", "LYM") for k in range(2)] + ["ADI-0.tif"], "folder")])
def test_a_class_has_two_images_and_what_has_one_is_a_slide(tmp_path, params, names, kind):
    data = tmp_path / "data"
    write_images(data, names)
    found = profiles.look(data)
    assert found.kind == kind and len(found.readable) == len(names)
    assert profile(data, params) == 0
    if kind == "slides":
        fill(params / "mine/slides.csv", mpp="0.5")
        slides = whole.read(data, str(params / "mine/slides.csv"))
        assert [slide.path for slide in slides] == sorted(data / name for name in names)
        assert [slide.name for slide in slides] == [row.name for row in found.rows]


def test_flat_images_of_a_table_of_labels_are_no_slides_too(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "labels.csv").write_text("image,patient_id,label\na,P,x\nb,Q,y\n")
    assert profiles.look(tmp_path).kind == "glas"


# --- what may not be read -------------------------------------------------------------------------

def shut(path: Path) -> None:
    if not path.exists():
        path.mkdir(parents=True)
    close(path)


def test_what_may_not_be_read_is_passed_over_and_named(tmp_path):
    write_h5ad(tmp_path / "h5ad/A.h5ad", mpp_of_visium=2.0)
    write_legacy(tmp_path / "legacy", "N1")
    write_images(tmp_path / "images", ["a.png", "b.png", "c.png"])
    write_images(tmp_path / "folders", ["P1/a.png", "P2/b.png"])
    (tmp_path / "listed").mkdir()
    write_images(tmp_path / "listed", ["a.png", "b.png"])
    (tmp_path / "listed/slides.csv").write_text("slide,mpp\na,0.5\nb,0.5\n")
    for name in ("a", "b"):
        (tmp_path / "features/uni").mkdir(parents=True, exist_ok=True)
        with h5py.File(tmp_path / f"features/uni/{name}.h5", "w") as stream:
            stream["features"], stream["coords"] = np.ones((3, 4), "f4"), np.zeros((3, 2), "i8")
    names = ("h5ad", "legacy", "images", "folders", "listed", "features")
    for name in names:
        shut(tmp_path / name / "lost+found")
    for path in ("images/b.png", "listed/b.png", "features/uni/b.h5"):
        close(tmp_path / path)
    said = dict(zip(names, looked_at([tmp_path / name for name in names]), strict=True))
    for name in names:
        assert "\n  may not be read by this user: lost+found\n" in f"{said[name]}\n", said[name]
        assert "not recognised" not in said[name]
    assert "1 section" in said["h5ad"] and "1 section" in said["legacy"]
    assert "2 slides" in said["images"] and "2 slides" in said["folders"]
    for name, path in (("images", "b.png"), ("listed", "b.png"), ("features", "uni/b.h5")):
        assert f"left out:\n  b: {path}: " in said[name]
    assert "make profile writes one of its own, without b." in said["listed"]


def test_a_run_says_which_folders_it_passes_over(tmp_path, monkeypatch, caplog):
    for name in ("ok/a.svs", "shut/b.svs", ".hidden/c.svs"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(whole, "may_list", lambda folder: folder.name in ("ok", tmp_path.name))
    assert [slide.name for slide in whole.read(tmp_path)] == ["a"]
    [said] = [record.getMessage() for record in caplog.records]
    assert "shut may not be read by this user" in said


def test_what_a_reader_does_not_pass_over_is_one_line(tmp_path):
    write_visium(tmp_path / "visium/A")
    write_visium(tmp_path / ".work/B")
    loosen(tmp_path / ".work/B", tmp_path / "flat", "GSM1_B_")
    write_images(tmp_path / "classes", [f"{name}/{k}.png" for name in "ab" for k in range(2)])
    (tmp_path / "table").mkdir()
    (tmp_path / "table/o.csv").write_text("patient,time,event\nP,1,1\n")
    names = ("visium", "flat", "classes", "table")
    for name in names[:3]:
        shut(tmp_path / name / "lost+found")
    close(tmp_path / "table/o.csv")
    for name, said in zip(names, looked_at([tmp_path / name for name in names]), strict=True):
        assert "\n" not in said and ("o.csv" if name == "table" else "lost+found") in said, name
        assert "may not be read by this user" in said or "Permission denied" in said
        assert "Fix: " in said
