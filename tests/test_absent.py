"""Every notebook ends well where something is absent: it draws what it can, says what it left."""

import pytest

from mvhlib import artifacts
from tests import absent

TWO_STUDIES = [("A", "P1"), ("A", "P2"), ("B", "P3"), ("B", "P4")]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def tables(out, name):
    return {path.stem: artifacts.read_csv(path)
            for path in (out / "figures/walk" / name).glob("*.csv")}


def test_a_cohort_without_images_goes_through(tmp_path, out):
    data = str(absent.people(tmp_path / "data", TWO_STUDIES[1:3], image=False))
    absent.walk("01_cohort", out, data=data)
    for name, said in (("02_tiles", "no tile is cut"), ("04_embed", "nothing can be embedded"),
                       ("05_expression", "no expression can be predicted"),
                       ("06_spatial_maps", "Nothing was scored by 05_expression"),
                       ("07_classification", "nothing is classified"),
                       ("08_retrieval", "no expression can be predicted"),
                       ("14_leaderboard", "Nothing was scored by 05_expression")):
        assert said in absent.walk(name, out, data=data), name
        assert (out / f"runs/walk/provenance/{name}.json").exists() or name == "04_embed"
    summary = tables(out, "05_expression")["summary"]
    assert summary.empty and "ci_low" in summary
    assert tables(out, "14_leaderboard")["claims"].shape[0] > 0


def test_features_of_slides_without_tiles_are_enough_for_survival(out):
    folder = out / "runs/walk/slides"
    absent.trident(folder / "features/uni", list(absent.slides(folder)["slide"]))
    said = absent.walk("09_survival", out, n_folds=2, adjust="none")
    assert "prototypes are drawn without their tiles" in said
    assert len(tables(out, "09_survival")["prototypes"])


@pytest.mark.parametrize("encoders, given", [(["uni"], {"sex": "female"}), ([], {})])
def test_outcomes_without_age_sex_and_stage(out, encoders, given):
    folder = out / "runs/walk/slides"
    table = absent.slides(folder, **given).drop(columns=["age", "stage"] + ["sex"] * (not given))
    table.to_csv(folder / "slides.csv", index=False)  # all women: nothing to learn from their sex
    if encoders:
        absent.trident(folder / "features/uni", list(table["slide"]))
    said = absent.walk("09_survival", out, n_folds=2, adjust="none", encoders=encoders)
    summary = tables(out, "09_survival")["summary"]
    if encoders:
        assert {"mixture", "mean"} <= set(summary["model"]) and "stage" not in set(summary["model"])
    else:
        assert summary.empty and "there is nothing to model" in said


def test_no_event_leaves_a_summary_without_rows(out):
    absent.slides(out / "runs/walk/slides", 6, events=False)
    said = absent.walk("09_survival", out, encoders=[])
    assert "all 6 patients are censored" in said and "No endpoint" in said
    assert tables(out, "09_survival")["summary"].empty


def test_images_of_nobody_are_drawn_and_split_at_random(tmp_path, out):
    absent.images(tmp_path / "data", {"benign": 6, "malignant": 6})
    given = {"data": str(tmp_path / "data")}
    absent.walk("02_tiles", out, labelled="folder", labelled_mpp=1.0, tile_um=32.0, tile_px=32,
                **given)
    absent.walk("04_embed", out, **given)
    said = absent.walk("07_classification", out, datasets=["labelled"], **given)
    assert "No file says which patient each image is of" in said
    assert set(tables(out, "07_classification")["summary"]["split"]) == {"random"}


@pytest.mark.slow
def test_images_of_nobody_leave_nothing_to_search(tmp_path, out):
    absent.images(tmp_path / "data", {"benign": 6, "malignant": 6})
    given = {"data": str(tmp_path / "data")}
    absent.walk("02_tiles", out, labelled="folder", labelled_mpp=1.0, tile_um=32.0, tile_px=32,
                **given)
    absent.walk("04_embed", out, **given)
    said = absent.walk("08_retrieval", out, dataset="labelled", **given)
    assert "neither classes that two patients share" in said
    assert tables(out, "08_retrieval")["summary"].empty


#: What a cohort lacks: options of `absent.people`, of `absent.label` (None: no labels).
COHORTS = {
    "nothing": (TWO_STUDIES, {}, {}),
    "some images": (TWO_STUDIES, {"imageless": (0,)}, {}),
    "all images but one": (TWO_STUDIES, {"imageless": (0, 1, 2)}, {}),
    "a second study": ([("A", "P1"), ("A", "P2")], {}, {}),
    "a second patient": ([("A", "P1"), ("A", "P1")], {}, {}),
    "a second section": ([("A", "P1")], {}, {}),
    "genes": ([("A", "P1"), ("B", "P2")], {"n_genes": 5}, None),
    "genes that vary": (TWO_STUDIES, {"n_genes": 10, "constant": 7}, None),
    "spots": (TWO_STUDIES, {"rows": 4, "columns": 5}, {}),
    "labels": (TWO_STUDIES, {}, None),
    "labels but of one section": (TWO_STUDIES, {}, {"sections": ["S1"]}),
    "a second class": (TWO_STUDIES, {}, {"classes": 1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("lacking", COHORTS)
def test_every_notebook_ends_well_on_a_cohort_that_lacks(lacking, tmp_path, out):
    who, options, labels = COHORTS[lacking]
    data = str(absent.people(tmp_path / "data", who, **options))
    for name in absent.ORDER:
        absent.walk(name, out, data=data)
        if name == "01_cohort" and labels is not None:
            absent.label(out / "runs/walk/cohort", **labels)
        if name == "04_embed":
            absent.walk(name, out, data=data, encoder="mvh", weights="random",
                        source="mvhybrid_micro_patch8_64")


@pytest.mark.slow
@pytest.mark.parametrize("lacking", [{"n": 3}, {"sites": 1}, {"label": ["MSI", "MSS"] * 12}])
def test_survival_and_classification_end_well_on_slides_that_lack(lacking, out):
    folder = out / "runs/walk/slides"
    table = absent.slides(folder, **lacking)
    absent.trident(folder / "features/uni", list(table["slide"]))
    absent.walk("09_survival", out)
    absent.walk("07_classification", out, datasets=["slides"], encoders=["uni"],
                mil_encoders=["uni"], mil={"epochs": 1, "patience": 0}, starts=1)
