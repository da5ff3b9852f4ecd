"""Habits of the field that look like data of another kind: read right, or refused in one line.

Each stands for what many do: AnnData whose places are in another unit, tables that a spreadsheet
or another program wrote, folders as they were downloaded.
"""

import json
import unicodedata

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from mvhlib import cohort, own_tables, parameters, slide_features, tables
from mvhlib.artifacts import InputError
from mvhlib.cohort import clinical, dated_genes, pseudospots, qc
from mvhlib.cohort.base import Section
from mvhlib.cohort.legacy_st.tables import read_counts
from mvhlib.features import read_features
from mvhlib.tiles import labelled, whole
from tests.test_cohort import refuses, write_10x_h5, write_visium
from tests.test_profiles import doctor, profile
from tests.test_qc import planted


@pytest.fixture
def params(tmp_path):
    (tmp_path / "params").mkdir()
    return tmp_path / "params"


def scanpys(path, factor=0.5, **obs) -> anndata.AnnData:
    """AnnData as scanpy reads Visium: a hexagonal array 5 um/px, an image reduced by `factor`."""
    row, column = (axis.ravel() for axis in np.mgrid[0:6, 0:12])
    kept = (row + column) % 2 == 0
    row, column = row[kept], column[kept]
    adata = anndata.AnnData(np.random.default_rng(0).poisson(3, (len(row), 8)).astype(np.float32))
    adata.var_names = [f"G{k}" for k in range(8)]
    adata.obs["array_row"], adata.obs["array_col"] = row, column
    for name, value in {"patient": "P", "study": "S", **obs}.items():
        adata.obs[name] = value
    adata.obsm["spatial"] = np.column_stack([column * 10 + 30, row * 10 * 3**0.5 + 40])
    adata.uns["spatial"] = {"lib": {
        "images": {"hires": np.full((100, 100, 3), 200, np.uint8)},
        "scalefactors": {"tissue_hires_scalef": factor, "spot_diameter_fullres": 13.0}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    return adata


def read_one(adata, path) -> Section:
    adata.write_h5ad(path)
    [section] = cohort.read("h5ad", path.parent)
    section.adata  # noqa: B018
    return section


# --- AnnData ------------------------------------------------------------------------------------

def test_places_of_scanpys_files(tmp_path):
    adata = scanpys(tmp_path / "S.h5ad")
    section = read_one(adata, tmp_path / "S.h5ad")
    assert section.mpp == pytest.approx(10) and section.has_image
    np.testing.assert_allclose(section.centers, adata.obsm["spatial"] * 0.5)


@pytest.mark.parametrize(("change", "words"), [
    (lambda xy: xy[:, ::-1], ["swapped"]),            # (row, column), as older readers gave them
    (lambda xy: xy * 5, ["spot_diameter_fullres", "um"]),   # micrometres
    (lambda xy: xy * 0.5, ["spot_diameter_fullres"])])      # multiplied by the factor already
def test_places_in_another_unit_or_order(tmp_path, change, words):
    adata = scanpys(tmp_path / "S.h5ad")
    adata.obsm["spatial"] = change(adata.obsm["spatial"]).copy()
    refuses(lambda: read_one(adata, tmp_path / "S.h5ad"), 'obsm["spatial"]', *words)


def test_a_quarter_turn_is_no_exchange_of_axes(tmp_path):
    adata = scanpys(tmp_path / "S.h5ad")
    x, y = adata.obsm["spatial"].T
    adata.obsm["spatial"] = np.column_stack([160 - y, x])
    assert read_one(adata, tmp_path / "S.h5ad").mpp == pytest.approx(10)


def test_a_stated_scale_is_compared_with_the_array(tmp_path):
    scanpys(tmp_path / "S.h5ad").write_h5ad(tmp_path / "S.h5ad")
    (tmp_path / "samples.csv").write_text("section,study,patient,mpp\nS,A,P,0.5\n")
    refuses(lambda: cohort.read("h5ad", tmp_path), "mpp", "0.5", "5")
    (tmp_path / "samples.csv").write_text("section,study,patient,mpp\nS,A,P,5.1\n")
    assert cohort.read("h5ad", tmp_path)["S"].mpp == pytest.approx(10.2)


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("1", "0"), ("1.0", "0.0"),
                                         (True, False), (1, 0), ("TRUE", "false")])
def test_spots_off_tissue_in_every_spelling(tmp_path, yes, no):
    adata = scanpys(tmp_path / "S.h5ad")
    under = adata.obs["array_col"].to_numpy() < 8
    values = [yes if is_under else no for is_under in under]
    adata.obs["in_tissue"] = pd.Categorical(values) if isinstance(yes, str) else values
    assert read_one(adata, tmp_path / "S.h5ad").adata.n_obs == under.sum()
    adata.obs["in_tissue"] = ["tissue" if is_under else "glass" for is_under in under]
    refuses(lambda: read_one(adata, tmp_path / "S.h5ad"), "in_tissue")


@pytest.mark.parametrize(("size", "factor"), [("downscaled_fullres", 0.5), ("fullres", 1.0)])
def test_images_of_other_names_are_not_lost(tmp_path, size, factor):
    adata = scanpys(tmp_path / "S.h5ad")
    library = adata.uns["spatial"]["lib"]
    library["images"][size] = np.full((200, 200, 3), 200, np.uint8)
    del library["images"]["hires"]
    library["scalefactors"][f"tissue_{size}_scalef"] = factor
    section = read_one(adata, tmp_path / "S.h5ad")
    assert section.has_image and section.mpp == pytest.approx(5 / factor)
    library["images"] = {"photo": library["images"][size]}
    refuses(lambda: read_one(adata, tmp_path / "S.h5ad"), "photo", "hires")


@pytest.mark.parametrize(("value", "known"), [("0.5", True), (np.array([0.5]), True), ("NA", False),
                                              (np.nan, False), (True, False)])
def test_scale_factors_as_other_languages_write_them(tmp_path, value, known):
    adata = scanpys(tmp_path / "S.h5ad", factor=value)
    if known:
        assert read_one(adata, tmp_path / "S.h5ad").mpp == pytest.approx(10)
    else:
        refuses(lambda: read_one(adata, tmp_path / "S.h5ad"), "tissue_hires_scalef")


def test_a_patient_of_a_number_has_one_name(tmp_path):
    for name, patient in (("A", 7.0), ("B", 7), ("C", "7")):
        scanpys(tmp_path / f"{name}.h5ad", patient=patient).write_h5ad(tmp_path / f"{name}.h5ad")
    assert cohort.read("h5ad", tmp_path).patients == ["7"]


def test_releases_of_ensembl_name_one_gene(tmp_path, capsys):
    for name, release in (("A", 2), ("B", 5)):
        adata = scanpys(tmp_path / "data/x")
        adata.var_names = [f"ENSG0000000{k:04d}.{release}" for k in range(8)]
        adata.write_h5ad(tmp_path / f"data/{name}.h5ad")
    _, said, _ = doctor(tmp_path / "data", capsys)
    assert "genes in all: 8" in said
    (tmp_path / "one").mkdir()
    adata.var_names = ["ENSG00000000001.2", "ENSG00000000001.5", *adata.var_names[2:]]
    kept = read_one(adata, tmp_path / "one/A.h5ad").adata.var_names
    assert list(kept) == list(adata.var_names)  # two would become one name


def test_a_file_without_spots_is_left_out_and_the_others_are_read(tmp_path, capsys):
    adata = scanpys(tmp_path / "A.h5ad")
    for name, n in (("A", 36), ("one", 1), ("empty", 0)):
        adata[:n].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    status, said, _ = doctor(tmp_path, capsys)
    assert status == 0 and "left out:" in said and "empty.h5ad: spots: no spot lies" in said
    assert "1 section," in said or "2 sections," in said


def test_folders_name_files_that_are_all_called_alike(tmp_path):
    for name in "AB":
        scanpys(tmp_path / name / "adata.h5ad").write_h5ad(tmp_path / name / "adata.h5ad")
    assert list(cohort.read("h5ad", tmp_path).sections) == ["A", "B"]


# --- genes that a spreadsheet has made dates of --------------------------------------------------

def test_dates_are_no_genes():
    dates = ["1-Mar", "2-Sep", "Sep-02", "2001-03-01", "1-Mar-1", "1-Dez", "2001-09-02 00:00:00"]
    genes = ["MARCH1", "SEPT2", "SEPTIN2", "DEC1", "MARC1", "HLA-A", "Mar1", "NKX2-1", "1-8U"]
    assert dated_genes.dated(dates).all() and not dated_genes.dated(genes).any()


def test_genes_called_by_dates_are_left_out_and_never_summed(tmp_path, caplog):
    (tmp_path / "a.tsv").write_text("\tACTB\t1-Mar\t1-Mar\tG\n1x1\t3\t1\t2\t4\n1x2\t5\t1\t1\t0\n")
    for sum_doubled in (False, True):
        adata = read_counts(tmp_path / "a.tsv", sum_doubled)
        assert list(adata.var_names) == ["ACTB", "G"]
        assert adata.layers["counts"].toarray().tolist() == [[3, 4], [5, 0]]
    assert "2 genes have dates for names" in caplog.text and "1-Mar" in caplog.text
    adata = scanpys(tmp_path / "h/S.h5ad")
    adata.var_names = ["2-Sep", *adata.var_names[1:]]
    assert "2-Sep" not in read_one(adata, tmp_path / "h/S.h5ad").adata.var_names


def test_controls_of_every_platform_are_no_genes():
    controls = ["NegControlProbe_00042", "UnassignedCodeword_0479", "DeprecatedCodeword_0321",
                "BLANK_0006", "Blank-12", "antisense_PROKR2", "Intergenic_Region_123", "Negative01",
                "DEPRECATED_ENSG00000123456", "negative_control_3", "SystemControl12", "FalseCode7"]
    genes = ["NEGR1", "BLNK", "INTS1", "ANTXR1", "DEPDC1", "CONTROL1", "UNC13A", "SYS1", "FALS"]
    assert pseudospots.is_control(pd.Index(controls)).all()
    assert not pseudospots.is_control(pd.Index(genes)).any()


# --- outputs as they are copied and downloaded ---------------------------------------------------

def test_counts_of_another_section_are_refused(tmp_path):
    table = write_visium(tmp_path / "S")
    names = list(table.index)
    write = tmp_path / "S/filtered_feature_bc_matrix.h5"
    under = [name for name in names if table.at[name, "in_tissue"]]
    counts = np.random.default_rng(0).poisson(3, (36, 5))
    genes = ["A", "B", "C", "D", "E"]
    write_10x_h5(write, counts[:len(under) - 8], under[8:], genes)  # some left out by hand
    assert cohort.read("visium", tmp_path / "S")["S"].adata.n_obs == len(under) - 8
    off = [name for name in names if not table.at[name, "in_tissue"]]
    write_10x_h5(write, counts[:len(under) - 8 + len(off)], under[8:] + off, genes)
    refuses(lambda: cohort.read("visium", tmp_path / "S")["S"].adata, "two sections")


def test_outs_unpacked_into_outs_keeps_the_samples_name(tmp_path):
    for name in ("A", "B"):
        write_visium(tmp_path / name / "outs/outs")
    assert list(cohort.read("visium", tmp_path, patient="P").sections) == ["A", "B"]


@pytest.mark.parametrize("names", [["V1_Breast"], ["V1_Breast", "V1_Brain"]])
def test_spatial_without_prefix_belongs_to_the_matrix_beside_it(tmp_path, names):
    for name in names:
        home = tmp_path / "data" / (name if len(names) > 1 else "")
        write_visium(home)
        (home / "filtered_feature_bc_matrix.h5").rename(
            home / f"{name}_filtered_feature_bc_matrix.h5")
        (home / f"{name}_spatial.tar.gz").write_bytes(b"x")
    found = cohort.read("flat", tmp_path / "data", patient="P")
    assert sorted(found.sections) == sorted(names)
    assert all(section.adata.n_obs == 30 for section in found)


def test_files_whose_section_stands_behind_their_names(tmp_path):
    write_visium(tmp_path / "x")
    (tmp_path / "data").mkdir()
    for path in [*(tmp_path / "x/spatial").iterdir(), tmp_path / "x/filtered_feature_bc_matrix.h5"]:
        path.rename(tmp_path / "data" / f"{path.stem}_A1{path.suffix}")
    [section] = cohort.read("flat", tmp_path / "data")
    assert section.name == "A1" and section.has_image and section.adata.n_obs == 30


def test_accents_in_either_encoding_are_one_name(tmp_path):
    composed, apart = "Zo\u00e9", "Zoe\u0301"
    for name in (composed, apart):
        write_visium(tmp_path / name / f"{name}" / "outs")
        (tmp_path / name / "samples.csv").write_text(
            f"section,study,patient\n{apart if name == composed else composed},S,P\n")
        assert len(cohort.read("visium", tmp_path / name)) == 1


@pytest.mark.parametrize("ending", [".jpeg", ".tif", ".png.gz"])
def test_a_reduced_image_of_another_ending_is_no_absence(tmp_path, ending):
    write_visium(tmp_path / "S")
    path = tmp_path / "S/spatial/tissue_hires_image.png"
    if ending == ".png.gz":
        path.rename(f"{path}.gz")
        refuses(lambda: cohort.read("visium", tmp_path), "unpack it")
    else:
        Image.open(path).save(path.with_suffix(ending))
        path.unlink()
        assert cohort.read("visium", tmp_path / "S")["S"].has_image


def test_images_that_are_no_stain_are_said(caplog):
    section = planted(signal=True)
    shown = section.adata.uns["spatial"]["S"]["images"]
    coloured = shown["hires"].copy()
    coloured[..., 1] = coloured[..., 1] * 0.6
    for pixels, words in ((coloured, ""), (shown["hires"] // 1, "grey"), (255 - coloured, "dark"),
                          (255 - coloured // 2, "green")):
        shown["hires"] = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(
            np.uint8) if words == "grey" else pixels
        if words == "dark":
            shown["hires"][:6] = shown["hires"][-6:] = 0
            shown["hires"][:, :6] = shown["hires"][:, -6:] = 0
        said = qc.strange_colours(section)
        assert said.startswith(words) and bool(said) == bool(words)


def test_the_bigtiff_of_10x_is_an_image(tmp_path, capsys):
    write_visium(tmp_path / "data/S/outs")
    tifffile.imwrite(tmp_path / "data/S/S_tissue_image.btf", np.full((180, 200, 3), 200, np.uint8),
                     photometric="rgb", bigtiff=True)
    assert "200 x 180 px" in doctor(tmp_path / "data", capsys)[1]


# --- names that are one --------------------------------------------------------------------------

def test_patients_that_differ_in_case_are_refused(tmp_path):
    for name in "ab":
        write_visium(tmp_path / name)
    (tmp_path / "samples.csv").write_text("section,study,patient\na,A,P1\nb,A,p1\n")
    refuses(lambda: cohort.read("visium", tmp_path), "samples.csv", "patient", "'P1' and 'p1'")


def write_slides(folder, rows, names):
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(names):
        Image.new("RGB", (32, 32), (200, 100, shade)).save(folder / f"{name}.png")
    if rows:
        (folder / "slides.csv").write_text("slide,patient,label\n" + "".join(
            f"{name}.png,{row}\n" for name, row in zip(names, rows, strict=True)))


def test_classes_of_slides_that_differ_in_case_are_refused(tmp_path):
    write_slides(tmp_path, ["P,MSI", "Q,msi"], ["a", "b"])
    refuses(lambda: whole.read(tmp_path), "label", "'MSI' and 'msi'")
    write_slides(tmp_path, ["P,1", "Q,1.0"], ["a", "b"])
    refuses(lambda: whole.read(tmp_path), "label", "'1' and '1.0'")


def test_samples_of_a_tcga_patient_are_one_patient(tmp_path):
    names = ["TCGA-A1-A0SB-01Z-00-DX1", "TCGA-A1-A0SB-11A-01-TS1"]
    write_slides(tmp_path, [f"{names[0][:16]},a", f"{names[1][:16]},b"], names)
    assert {slide.patient for slide in whole.read(tmp_path)} == {"TCGA-A1-A0SB"}
    write_slides(tmp_path, ["TCGA-A1-A0SB,a", "TCGA-A1-A0SD,b"], names)
    refuses(lambda: whole.read(tmp_path), "patient, row 3", "by its barcode")


@pytest.mark.parametrize(("columns", "said"), [
    ("slide,Patient,label", "Patient: .*rename it to 'patient'"),
    ("slide,patient,Label", "Label: .*rename it to 'label'"),
    ("slide,patient,MPP", "MPP: .*rename it to 'mpp'"),
    ("slide,Time (days),event", r"Time \(days\): .*rename it to 'time_days'"),
    ("slide,Time_dss,Event_dss", "Time_dss: .*rename it to 'time_dss'")])
def test_a_column_of_slides_that_is_spelled_otherwise_is_refused(tmp_path, columns, said):
    write_slides(tmp_path, ["P,0.5", "Q,0.5"], ["a", "b"])
    path = tmp_path / "slides.csv"
    path.write_text(path.read_text().replace("slide,patient,label", columns))
    with pytest.raises(InputError, match=f"slides.csv: {said}"):
        whole.read(tmp_path)


def test_endpoints_and_columns_of_ones_own_are_no_other_spelling(tmp_path):
    write_slides(tmp_path, ["P,x,3,1,7", "Q,y,4,0,9"], ["a", "b"])
    path = tmp_path / "slides.csv"
    path.write_text(path.read_text().replace(
        "patient,label", "patient,label,time_DSS,event_DSS,Time point"))
    assert whole.endpoints(whole.read(tmp_path)) == ["DSS"]


def test_a_slide_has_one_row(tmp_path):
    write_slides(tmp_path, ["P,x", "Q,y"], ["a", "b"])
    path = tmp_path / "slides.csv"
    path.write_text(path.read_text() + "a,R,y\n")
    refuses(lambda: whole.read(tmp_path), "slides.csv", "slide: row 4 is 'a'", "a row above it",
            "keep one row for each slide")


def test_names_whose_accents_macos_took_apart_are_found(tmp_path):
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        write_slides(folder, ["P,x"], [unicodedata.normalize(form, "Süd")])
        other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "Süd")
        (folder / "slides.csv").write_text(f"slide,patient\n{other},P\n", encoding="utf-8")
        [slide] = whole.read(folder)
        assert slide.path.is_file() and slide.name == other


def test_files_of_one_name_take_their_folders(tmp_path):
    for folder, name in (("P1", "HE"), ("P2", "HE"), ("P2", "b")):
        write_slides(tmp_path / folder, [], [name])
    assert [slide.name for slide in whole.of_files(tmp_path, whole.find(tmp_path, [".png"]))] == [
        "P1-HE", "P2-HE", "b"]
    (tmp_path / "slides.csv").write_text("slide,patient\nP1/HE.png,P1\nP2/HE.png,P2\n")
    assert [slide.name for slide in whole.read(tmp_path)] == ["P1-HE", "P2-HE"]
    (tmp_path / "slides.csv").write_text("slide,patient\nP1/HE.png,P1\nb,P2\n")
    assert [slide.name for slide in whole.read(tmp_path)] == ["HE", "b"]


def write_classes(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (200, 100, len(name))).save(
            folder / name / f"{name.replace('/', '_').strip()}.png")


@pytest.mark.parametrize(("names", "wanted"), [
    (["Tumor", "Normal "], {"Tumor", "Normal"}), (["Tumor", "tumor", "Normal"], "differ"),
    (["train/T", "train/N", "test/T", "test/N"], "parts of a set"),
    (["training set/T", "Val/N"], "parts of a set"),
    (["T/P1", "T/P2", "N/P1"], {"T", "N"}), (["test", "control"], {"test", "control"}),
    (["benign/SOB/a", "malignant/SOB/b"], {"benign", "malignant"})])
def test_class_folders(tmp_path, names, wanted):
    write_classes(tmp_path, names)
    if isinstance(wanted, set):
        assert {image.label for image in labelled.read("folder", tmp_path)} == wanted
    else:
        refuses(lambda: labelled.read("folder", tmp_path), wanted)


def test_what_a_run_drew_inside_data_is_no_class(tmp_path):
    write_classes(tmp_path, ["T", "N"])
    for out in (tmp_path, tmp_path / "results"):
        (out / "runs/mine").mkdir(parents=True)
        write_classes(out / "figures", [f"{out.name[:3]}_tiles"])
    assert {image.label for image in labelled.read("folder", tmp_path)} == {"T", "N"}


# --- tables of other programs --------------------------------------------------------------------

def write_features(folder, names, n=6):
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        with h5py.File(folder / f"{name}.h5", "w") as stream:
            stream["features"] = np.random.default_rng(seed).normal(size=(n, 4)).astype("f4")
            stream["coords"] = np.column_stack([np.arange(n) * 256, np.zeros(n, int)])


@pytest.mark.parametrize(("yes", "no"), [
    (True, False), ("TRUE", "FALSE"), ("yes", "no"), ("censored", "event"), ("1", "0"),
    ("1.0", "0.0")])
def test_who_was_censored_has_no_event(tmp_path, params, capsys, yes, no):
    names = [f"s{k}" for k in range(4)]
    write_features(tmp_path / "data/uni/h5_files", names)
    pd.DataFrame({"case_id": ["P0", "P1", "P2", "P3"], "slide_id": names, "time_days": 365.25,
                  "censored": [yes, no, yes, no]}).to_csv(tmp_path / "data/t.csv", index=False)
    assert profile(tmp_path / "data", params) == 0
    given = pd.read_csv(params / "mine/slides.csv")
    assert given["event"].tolist() == [0, 1, 0, 1] and given["time"].tolist() == [12.0] * 4


def test_outcomes_with_decimal_commas_are_taken_over_and_broken_ones_are_said(
        tmp_path, params, capsys, caplog):
    names = [f"s{k}" for k in range(4)]
    write_features(tmp_path / "data/uni/h5_files", names)
    table = tmp_path / "data/t.csv"
    table.write_text("case_id;slide_id;time_months;event\n" + "".join(
        f"P{k};s{k};{k},5;{k % 2}\n" for k in range(4)))
    assert profile(tmp_path / "data", params) == 0
    assert pd.read_csv(params / "mine/slides.csv")["time"].tolist() == [0.5, 1.5, 2.5, 3.5]
    table.write_text(table.read_text().replace(";1\n", ";maybe\n"))
    assert profile(tmp_path / "data", params, "other") == 0
    assert "t.csv: event" in caplog.text and "not taken over" in caplog.text


def test_a_time_of_zero_does_not_stop_a_written_profile(tmp_path, params, capsys):
    write_features(tmp_path / "data/uni", ["s0", "s1", "s2", "s3"])
    (tmp_path / "data/t.csv").write_text("case_id,slide_id,time_months,event\nA,s0,0,0\n"
                                         "B,s1,4,1\nC,s2,5,0\nD,s3,6,1\n")
    assert profile(tmp_path / "data", params) == 0
    slides = whole.read(tmp_path / "data", str(params / "mine/slides.csv"),
                        files=slide_features.find(tmp_path / "data")["uni"])
    whole.table(slides).to_csv(tmp_path / "slides.csv", index=False)
    given = parameters.read_yaml(params / "mine/09_survival.yaml")
    read = clinical.read("slides", tmp_path, "os", **given["columns"])
    assert len(read.table) == 3 and "1 patients have a time of zero or less" in read.notes
    refuses(lambda: clinical.read("slides", tmp_path, "os"), "time", "not_positive: drop",
            "09_survival.yaml")


def test_a_table_whose_slides_lack_the_uuid_joins_by_patient(tmp_path, params, capsys):
    names = [f"TCGA-A1-{k:04d}-01Z-00-DX1.F6E9A5DF-D8FB" for k in range(4)]
    write_features(tmp_path / "data/uni", names)
    pd.DataFrame({"case_id": [name[:12] for name in names], "slide_id": [n[:23] for n in names],
                  "label": list("abab")}).to_csv(tmp_path / "data/t.csv", index=False)
    assert profile(tmp_path / "data", params) == 0
    assert pd.read_csv(params / "mine/slides.csv")["label"].tolist() == list("abab")


def test_one_table_lists_slides_and_another_patients(tmp_path, params, capsys):
    write_features(tmp_path / "data/uni", ["s1", "s2", "s3"])
    (tmp_path / "data/SLIDE.csv").write_text("\ufeffFILENAME,PATIENT\ns1,P1\ns2,P1\ns3,P2\n")
    (tmp_path / "data/CLINI.csv").write_text("PATIENT,age,label\nP1,60,MSI\nP2,70,MSS\nP9,1,x\n")
    assert profile(tmp_path / "data", params) == 0
    given = pd.read_csv(params / "mine/slides.csv")
    assert given["patient"].tolist() == ["P1", "P1", "P2"]
    assert given["label"].tolist() == ["MSI", "MSI", "MSS"]
    assert "SLIDE.csv and CLINI.csv" in capsys.readouterr().out
    (tmp_path / "data/CLINI.csv").write_text("PATIENT,MSIStatus,gender\nP1,MSI,F\nP2,MSS,M\n")
    assert "called label" in doctor(tmp_path / "data", capsys)[1]


def test_comments_above_a_header_are_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("#Patient Identifier\tOverall Survival\n#STRING\tNUMBER\n"
                                    "PATIENT_ID\tOS_MONTHS\nP1\t3.5\n")
    table = tables.read_table(tmp_path / "a.txt", ("PATIENT_ID",))
    assert table["OS_MONTHS"].tolist() == ["3.5"] and list(table.index) == [4]
    (tmp_path / "b.csv").write_text("#slide,patient\na,P\n")  # one line may be a header
    assert list(tables.read_table(tmp_path / "b.csv").columns) == ["#slide", "patient"]


def test_times_of_an_unknown_unit_and_of_two_columns_are_said(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "lung").mkdir()
    pd.DataFrame({"id": range(30), "time": rng.integers(5, 1000, 30),
                  "status": rng.integers(0, 2, 30)}).to_csv(tmp_path / "lung/l.csv", index=False)
    _, said, _ = doctor(tmp_path / "lung", capsys)
    assert "months" in said and "does not say its unit" in said
    (tmp_path / "gdc").mkdir()
    (tmp_path / "gdc/clinical.tsv").write_text(
        "case_submitter_id\tvital_status\tdays_to_death\tdays_to_last_follow_up\nP1\tDead\t3\t'--\n")
    status, _, said = doctor(tmp_path / "gdc", capsys)
    assert status == 2 and "days_to_death for the dead" in said


@pytest.mark.parametrize("cell", ["", "?", "??", "...", "-", "n/a", "unknown", "TODO", "tbd"])
def test_a_cell_that_somebody_meant_to_come_back_to_is_not_filled_in(tmp_path, cell):
    path = tmp_path / "samples.csv"
    path.write_text(f"section,study,patient,label\nA,S,P1,??\nB,S,{cell},x\n")
    refuses(lambda: own_tables.check_filled(path), "patient, row 3", "'B'")
    path.write_text("section,study,patient\nA,S,P1\nB,S,X?\n")
    own_tables.check_filled(path)


# --- containers ----------------------------------------------------------------------------------

def test_a_broken_feature_file_is_named_though_it_is_the_first(tmp_path, capsys):
    write_features(tmp_path / "features_uni", ["a", "b", "c"])
    whole_file = (tmp_path / "features_uni/a.h5").read_bytes()
    (tmp_path / "features_uni/a.h5").write_bytes(whole_file[:400])
    status, said, _ = doctor(tmp_path, capsys)
    assert status == 0 and "2 slides" in said and "features_uni/a.h5" in said
    with pytest.raises(InputError, match="a.h5"):
        slide_features.take(tmp_path, "features:features_uni", "", tmp_path / "out", "uni")


def test_slides_in_which_no_tissue_was_found_are_left_out(tmp_path, capsys, caplog):
    write_features(tmp_path / "features_uni", ["a", "c"])
    with h5py.File(tmp_path / "features_uni/b.h5", "w") as stream:
        stream["features"], stream["coords"] = np.zeros((0, 4), "f4"), np.zeros((0, 2), "i8")
    status, said, _ = doctor(tmp_path, capsys)
    assert status == 0 and "2 slides" in said and "hold no tile" in said
    slide_features.take(tmp_path, "features:features_uni", "", tmp_path / "out", "uni")
    assert pd.read_csv(tmp_path / "out/slides.csv")["slide"].tolist() == ["a", "c"]
    assert "1 slides have no tile and are left out: b" in caplog.text


def test_a_table_of_slides_beside_features_makes_no_second_kind(tmp_path, capsys):
    write_features(tmp_path / "uni", ["a", "b"])
    (tmp_path / "slides.csv").write_text("slide,patient,label\na,P,x\nb,Q,y\n")
    status, said, _ = doctor(tmp_path, capsys)
    assert status == 0 and "2 slides" in said and "source features" in said


def test_arrays_with_an_axis_more_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as stream:
        stream["features"] = np.ones((1, 5, 3), "f2")
        stream["coords"] = np.arange(10).reshape(1, 5, 2)
    found = read_features(tmp_path / "a.h5")
    assert found.features.shape == (5, 3) and found.coords[4].tolist() == [8, 9]


def test_levels_of_a_dicom_slide_are_no_slides_of_their_own(tmp_path):
    for name in ("1.dcm", "2.dcm", "label.dcm"):
        (tmp_path / name).write_bytes(b"DICM")
    refuses(lambda: whole.read(tmp_path), "3 DICOM files", "slides.csv")
    (tmp_path / "slides.csv").write_text("slide\n1.dcm\n")
    assert [slide.name for slide in whole.read(tmp_path)] == ["1"]


def test_a_table_of_labels_with_other_columns_is_said(tmp_path, capsys):
    write_classes(tmp_path, ["images"])
    (tmp_path / "annotations.csv").write_text("filename,class\nimages,T\n")
    status, _, said = doctor(tmp_path, capsys)
    assert status == 2 and "columns image, label and patient_id" in said


@pytest.mark.parametrize(("name", "words"), [
    ("GSM1_a.h5ad.gz", "unpack GSM1_a.h5ad.gz"), ("slide.svs.gz", "unpack"), ("a.rds.gz", "of R")])
def test_packed_files_are_to_be_unpacked(tmp_path, capsys, name, words):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    status, _, said = doctor(tmp_path, capsys)
    assert status == 2 and words in said and said.count("\n") == 1


def test_h5_files_of_another_program_are_said(tmp_path, capsys):
    (tmp_path / "stamp").mkdir()
    with h5py.File(tmp_path / "stamp/a.h5", "w") as stream:
        stream["feats"] = np.ones((3, 4))
    status, _, said = doctor(tmp_path, capsys)
    assert status == 2 and "['feats']" in said and "with the dataset features" in said


def test_segmented_cells_in_two_scales_are_refused(tmp_path):
    home = tmp_path / "S/segmented_outputs"
    (home / "spatial").mkdir(parents=True)
    (home / "spatial/scalefactors_json.json").write_text(json.dumps({"microns_per_pixel": 0.5}))
    write_10x_h5(home / "filtered_feature_cell_matrix.h5", np.ones((1, 1), int),
                 ["cellid_000000001-1"], ["A"])
    refuses(lambda: cohort.read("segmented", tmp_path, mpp=2.0), "mpp", "microns_per_pixel")
