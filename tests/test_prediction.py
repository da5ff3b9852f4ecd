"""Models that are kept, applied to slides, and what is said of their predictions."""

import base64
import gzip
import json
import shutil
import subprocess
import sys
import unicodedata
import uuid

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mvhlib import artifacts, cohort, encoders, features, notebook
from mvhlib.artifacts import InputError
from mvhlib.expression import cmrcnet, evaluation, mmap
from mvhlib.prediction import (
    apply,
    belief,
    domain,
    expected,
    keep,
    model,
    regressors,
    slides,
    stream,
    truth,
)
from mvhlib.tiles import cut, store
from mvhlib.tiles.slides import Slide
from mvhlib.training import FitConfig

TINY = {"n_studies": 3, "patients_per_study": 1, "sections_per_patient": 1, "spots_per_side": 5,
        "n_genes_per_program": 2}
RECIPE = {"source": "handmade", "weights": "", "options": {}, "seed": 0, "normalise_stain": ""}


def run_in(folder):
    return notebook.Run("05_expression", {"profile": "test", "out": str(folder), "data": "",
                                          "seed": 0, "device": "cpu"})


def embed(run, people, encoder, tile_um, tile_px):
    """Tiles and features of a cohort, in the run folder."""
    for section in people:
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=tile_um, tile_px=tile_px)
        store.write_tiles(run.path("tiles", f"{section.name}.h5"), tiles,
                          [str(n) for n in section.adata.obs_names])
    encoders.encode_folder(encoder, run.path("tiles"), run.path("features", encoder.enc_name))
    return features.read_folder(run.path("features", encoder.enc_name))


class Kept:
    """A small cohort, the model of its handmade features, and a slide of an unseen study."""

    def __init__(self, folder):
        self.run = run_in(folder)
        self.people = cohort.read("synthetic", folder / "cohort", seed=0, **TINY)
        self.features = embed(self.run, self.people, encoders.create_encoder("handmade"), 100, 64)
        self.panels = evaluation.choose_panels(self.people, ["loso"], ["hvg"], 12)
        jobs, _ = evaluation.jobs(self.people.manifest, ["loso"], {"handmade": None})
        self.result = evaluation.evaluate(jobs[0], self.people, self.features, self.panels,
                                          controls=["none"], ceiling_splits=0)
        self.written, self.why = keep.keep(
            self.run, [self.result], self.people, self.features, self.panels, recipe=RECIPE,
            folds=["loso/S1"], about={"organ": "synthetic organ", "scanner": ""})
        self.folder = self.run.path("models/ridge/handmade")
        unseen = cohort.read("synthetic", folder / "unseen", seed=0, role="prediction",
                             **TINY | {"n_studies": 1})
        self.section = unseen["V1P1A"]
        self.images = folder / "unseen/images"
        self.slide = self.images / "V1P1A.png"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def fitted(kept):
    return model.read(kept.folder)


@pytest.fixture(scope="module")
def predicted(kept, fitted, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    (outcome,) = apply.predict(slides.find(kept.slide, 1.5625), fitted, out, report=None)
    assert outcome.error == ""
    return out


def ask(path, **more):
    return slides.Asked(path, path.stem, 1.5625, **more)


# ---- a model on disk


def test_a_model_is_three_files_and_says_what_it_is(kept, fitted):
    assert kept.why == ""
    assert {p.name for p in kept.folder.iterdir()} == {"model.json", "model.safetensors",
                                                       "CARD.md", "folds"}
    record = fitted.record
    assert record["seen"]["studies"] == ["S1", "S2", "S3"]
    assert record["seen"]["organ"] == "synthetic organ" and record["expected"]["unit"] == "study"
    assert (fitted.tile_um, fitted.tile_px) == (100, 64)
    card = (kept.folder / "CARD.md").read_text()
    assert "On an unseen study (protocol `loso`)" in card and "3 studies" in card
    assert all(gene in card for gene in fitted.genes.dropna()["gene"])


def test_a_fold_gives_its_own_predictions(kept):
    own = model.read(kept.folder / "folds/loso.S1")
    assert own.record["fold"] == {"protocol": "loso", "fold": "S1"}
    assert own.record["seen"]["studies"] == ["S2", "S3"]
    told = kept.result.predictions["S1P1A"]
    found = own.regressor.step(kept.features["S1P1A"].features)["predicted"]
    assert list(own.genes["gene"]) == told.genes
    np.testing.assert_allclose(found, told.predicted, atol=1e-5)


def test_expected_r_is_the_mean_over_units_with_an_interval_for_a_new_section():
    from scipy import stats

    rows = pd.DataFrame({"study": list("aabbcc"), "patient": list("abcdef"),
                         "section": list("abcdef"), "gene": "g", "pcc": [.1, .3, .2, .6, .5, .1]})
    table, unit = expected.table(rows, "loso")
    means = np.array([.2, .4, .3])
    half = stats.t.ppf(.975, 2) * np.sqrt(
        ((rows["pcc"] - means.mean()) ** 2).sum() / 5) * np.sqrt(1 + 1 / 3)
    row = table.iloc[0]
    assert unit == "study" and (row["n_sections"], row["n_units"]) == (6, 3)
    np.testing.assert_allclose([row["expected_r"], row["ci_low"], row["ci_high"]],
                               [.3, max(-1, .3 - half), min(1, .3 + half)])
    alone, unit = expected.table(rows.assign(study="a", patient="a", section="a"), "loso")
    assert unit == "section" and alone["ci_low"].isna().all()


def test_the_stated_interval_covers_new_sections():
    rng = np.random.default_rng(0)
    r = 0.3 + 0.1 * rng.standard_normal((400, 6))
    rows = pd.DataFrame({"study": np.tile(list("abcde"), 400), "gene": np.repeat(range(400), 5),
                         "pcc": r[:, :5].ravel()})
    table, _ = expected.table(rows.assign(patient=rows["study"], section=rows["study"]), "loso")
    inside = (table["ci_low"] <= r[:, 5]) & (r[:, 5] <= table["ci_high"])
    assert 0.92 <= inside.mean() <= 0.98


def copied(kept, tmp_path):
    return shutil.copytree(kept.folder, tmp_path / "model")


def test_a_changed_model_is_refused(kept, tmp_path):
    folder = copied(kept, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    with pytest.raises(InputError, match=r"model.safetensors: sha256: is not the one"):
        model.read(folder)


def test_a_changed_record_is_refused(kept, tmp_path):
    folder = copied(kept, tmp_path)
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"log1p_cp10k"', '"log1p"'))
    with pytest.raises(InputError, match="model.json: sha256: does not fit the content"):
        model.read(folder)


def rewritten(folder, change):
    record = json.loads((folder / "model.json").read_text())
    record.pop("sha256")
    change(record)
    record["sha256"] = artifacts.sha256_of(record)
    artifacts.write_json(folder / "model.json", record)


def test_a_model_of_another_encoder_is_refused(kept, tmp_path):
    folder = copied(kept, tmp_path)
    rewritten(folder, lambda record: record["encoder"].update(options={"bands": True}))
    with pytest.raises(InputError, match="encoder: 'handmade' makes another encoder here"):
        model.read(folder)


def test_a_folder_above_models_names_them(kept):
    with pytest.raises(InputError, match="MODEL: holds no model.json.*handmade"):
        model.read(kept.run.path("models"))


def test_what_allows_no_model_is_said(kept):
    def why(**changes):
        given = {"results": [kept.result], "features": kept.features, "recipe": RECIPE} | changes
        return keep.keep(kept.run, given["results"], kept.people, given["features"], kept.panels,
                         recipe=given["recipe"])

    assert why(recipe=None)[1].startswith("it is not known how")
    assert "stain" in why(recipe=RECIPE | {"normalise_stain": "macenko"})[1]
    assert why(results=[])[1].startswith("none of the protocols")
    with pytest.raises(InputError, match=r"loso/S9: is not a fold.*loso/S1"):
        keep.keep(kept.run, [kept.result], kept.people, kept.features, kept.panels,
                  recipe=RECIPE, folds=["loso/S9"])


@pytest.fixture(scope="module")
def network():
    return encoders.create_encoder("vit12_micro_patch8_64", name="vit", seed=3)


VIT = {"source": "vit12_micro_patch8_64", "weights": "random", "options": {}, "seed": 3}


def token_views(kept, network):
    names = list(kept.people.sections)
    return mmap.token_folder(network, kept.run.path("tiles"), kept.run.path("tokens"), names,
                             grid=2)


@pytest.mark.parametrize("method", ["mmap", "cmrcnet"])
def test_the_other_methods_come_back_as_they_were(kept, network, method, tmp_path):
    if method == "mmap":
        views = token_views(kept, network)
        estimator = mmap.MMAP(stage1=FitConfig(epochs=1, batch=32), heads=2, head_width=8,
                              similarity_from=0)

        def wrap(each):
            return regressors.Mmap(each, 2)
    else:
        run = kept.run.path()
        views = cmrcnet.inputs("tokens", network, run, list(kept.people.sections), 2)
        estimator = cmrcnet.CMRCNet(settings=cmrcnet.Settings(width=16, gene_hidden=32), k=5,
                                    training=FitConfig(epochs=1, batch=16))

        def wrap(each):
            return regressors.Retrieval(each.current, 5, "tokens", 2)
    result = evaluation.evaluate(replace_encoder(kept.result.job, "vit"), kept.people, views,
                                 kept.panels, method=estimator, controls=["none"],
                                 ceiling_splits=0)
    run = run_in(tmp_path)
    shutil.copytree(kept.run.path("tiles"), run.path("tiles"))
    _, why = keep.keep(run, [result], kept.people, views, kept.panels, method=estimator, wrap=wrap,
                       recipe=VIT, folds=["loso/S1"])
    assert why == ""
    own = model.read(run.path("models", method, "vit/folds/loso.S1"))
    tiles = store.read_tiles(run.path("tiles/S1P1A.h5"))
    X = own.regressor.read(own.encoder, tiles.img, tiles.mpp)
    found = own.regressor.finish(own.regressor.step(X), "S1P1A")
    np.testing.assert_allclose(found, result.predictions["S1P1A"].predicted, atol=1e-5)
    assert np.isfinite(own.domain.distance(own.regressor.look(X))).all()


def replace_encoder(job, name):
    return evaluation.Job(job.protocol, name, job.folds)


# ---- the training distribution


def test_distance_is_mahalanobis_by_scikit_learn():
    from sklearn.covariance import LedoitWolf

    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal((200, 4)) @ rng.standard_normal((4, 4)) for name in "ab"}
    units = {"study": {"a": "x", "b": "x"}, "patient": {"a": "x", "b": "x"},
             "section": {"a": "a", "b": "b"}}
    found = domain.fit(parts, units, {"a": 0.5, "b": 0.5}, {})
    X = np.concatenate(list(parts.values()))
    Z = (X - X.mean(0)) / X.std(0)
    oracle = LedoitWolf(assume_centered=True).fit(Z)
    np.testing.assert_allclose(found.distance(X)**2, oracle.mahalanobis(Z), rtol=1e-6)
    assert (found.unit, found.n_units) == ("section", 2)


def test_tiles_far_away_are_outside_and_a_constant_feature_does_not_matter():
    rng = np.random.default_rng(1)
    parts = {str(n): np.c_[rng.standard_normal((300, 3)), np.ones(300)] for n in range(4)}
    units = {level: {n: n for n in parts} for level in ("study", "patient", "section")}
    found = domain.fit(parts, units, dict.fromkeys(parts, 0.5), {
        n: np.array([0.2, 0.3, 0.2]) + 0.01 * int(n) for n in parts})
    new = np.c_[rng.standard_normal((500, 3)), np.ones(500)]
    assert (found.distance(new) > found.bound).mean() < 0.05
    assert (found.distance(new + 8) > found.bound).all()
    assert found.new_colour(np.array([0.21, 0.31, 0.21])) < 1 < found.new_colour(np.ones(3))
    assert found.new_scale(0.55) == 1 and found.new_scale(2.0) == 4
    again = domain.restore(found.tensors(), found.record())
    np.testing.assert_array_equal(again.distance(new), found.distance(new))


# ---- genes


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", b"\xef\xbb\xbfEPCAM\r\nNA\r\n"), ("a.lst", b"EPCAM\nNA\nEPCAM\n"),
    ("a.csv", b"\xef\xbb\xbfgene,rank\nEPCAM,1\nNA,2\nEPCAM,3\n"),
    ("a.TSV", b"rank\tgene\n1\tEPCAM\n2\tNA\n"),
    ("a.csv.gz", gzip.compress(b"gene\nEPCAM\nNA\n", mtime=0)),
    ("a.tsv.gz", gzip.compress(b"gene\tn\nEPCAM\t1\nNA\t2\n", mtime=0))])
def test_lists_of_genes_as_programs_write_them(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert apply.genes_of(str(tmp_path / name)) == ("EPCAM", "NA") == apply.genes_of("EPCAM, NA")


def test_a_list_of_genes_without_one_is_refused(tmp_path):
    for name, content, said in (("a.txt", " \n", "names no gene"),
                                ("a.csv", "gene,n\nA,1\n,2\n", "gene: row 3 is blank"),
                                ("b.csv", "EPCAM\nKRT8\n", "columns: lacks")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=said):
            apply.genes_of(str(tmp_path / name))


# ---- slides


def test_slides_are_found_with_what_is_said_of_them(kept, tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (40, 40), "white").save(tmp_path / name)
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "slides.csv").write_text("slide,mpp,organ\na,0.5,breast\nb.png,,\n")
    (tmp_path / "b.spots.csv").write_text("x,y\n1,2\n")
    a, b = slides.find(tmp_path, 2.0)
    assert (a.name, a.mpp, a.organ) == ("a", 0.5, "breast")
    assert (b.name, b.mpp) == ("b", 2.0) and b.spots.name == "b.spots.csv"
    np.testing.assert_array_equal(slides.read_spots(b.spots)[0], [[1, 2]])
    (tmp_path / "slides.csv").write_text("slide,mpp\nc,0.5\n")
    with pytest.raises(InputError, match="slides.csv: slide: 'c' is not a slide"):
        slides.find(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.bmp")
    with pytest.raises(InputError, match="'b' is the name of two slides"):
        slides.find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="SLIDES: holds no slide"):
        slides.find(tmp_path / "empty")


def said_of(folder, table, names=("a.png", "b.png")):
    """A folder of slides with this ``slides.csv``."""
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), "white").save(folder / name)
    (folder / "slides.csv").write_text(table, encoding="utf-8")
    return folder


def test_one_slide_is_found_with_what_is_said_of_it_whatever_lies_beside_it(tmp_path):
    folder = said_of(tmp_path / "s", "slide,mpp,organ\na,0.5,colon\nb.png,0.25,skin\n")
    for name in ("a.xml", "a.geojson", "b.png.json", "b.txt"):
        (folder / name).write_text("x")
    for where in (folder, folder / "a.png"):
        a = slides.find(where)[0]
        assert (a.name, a.mpp, a.organ) == ("a", 0.5, "colon")
    Image.new("RGB", (8, 8)).save(folder / "a.tif")  # the row means the slide that is asked for
    for name in ("a.png", "a.tif"):
        (a,) = slides.find(folder / name)
        assert (a.path.name, a.mpp) == (name, 0.5)
    (folder / "slides.csv").write_text("slide,mpp\na.png,0.5\na.tif,0.25\n")
    assert [slides.find(folder / name)[0].mpp for name in ("a.png", "a.tif")] == [0.5, 0.25]
    (folder / "slides.csv").write_text("slide,mpp\na.xml,0.5\n")
    with pytest.raises(InputError, match="slides.csv: slide: 'a.xml' is not a slide"):
        slides.find(folder / "a.png")


def test_a_slide_that_has_two_rows_is_refused(tmp_path):
    folder = said_of(tmp_path / "s", "slide,mpp\na,0.5\nb,1\na.png,0.25\n")
    for where in (folder, folder / "a.png"):
        with pytest.raises(InputError, match="slides.csv: slide: row 4 is 'a.png' and names the "
                                             "same file as a row above.*keep one row"):
            slides.find(where)


@pytest.mark.parametrize(("column", "name"), [("MPP", "mpp"), ("Organ", "organ"),
                                              ("SCANNER", "scanner")])
def test_what_is_said_in_a_column_of_another_spelling_is_not_lost(tmp_path, column, name):
    folder = said_of(tmp_path / "s", f"slide,{column}\na,1\n")
    with pytest.raises(InputError, match=f"slides.csv: {column}: .*rename it to '{name}'"):
        slides.find(folder)
    (tmp_path / "a.spots.csv").write_text("x,y,Barcode\n1,2,s\n")
    with pytest.raises(InputError, match="a.spots.csv: Barcode: .*rename it to 'barcode'"):
        slides.read_spots(tmp_path / "a.spots.csv")


def test_a_name_from_macos_is_the_name_that_was_typed(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        other = "NFD" if form == "NFC" else "NFC"
        name = unicodedata.normalize(form, "Prüfung-é.png")
        folder = said_of(tmp_path / str(number), "slide,mpp\n" + unicodedata.normalize(
            other, "Prüfung-é") + ",0.5\n", [name])
        for where in (folder, folder / name):
            (found,) = slides.find(where)
            assert (found.path.name, found.mpp) == (name, 0.5)
    Image.new("RGB", (8, 8)).save(folder / unicodedata.normalize("NFC", name))
    with pytest.raises(InputError, match="is the name of two slides"):
        slides.find(folder)


@pytest.mark.parametrize("mpp, said", [
    (None, "mpp: is not known: the file states none. Fix: give MPP="),
    (9.0, r"mpp: 9 um/px is far from what the model has seen, 1.56 to 1.56")])
def test_a_wrong_scale_is_one_line(kept, fitted, tmp_path, mpp, said):
    (outcome,) = apply.predict(slides.find(kept.slide, mpp), fitted, tmp_path, report=None)
    assert said.replace(r"\.", ".") in outcome.error and "\n" not in outcome.error


def test_no_tissue_and_lacking_genes_are_one_line(kept, fitted, tmp_path):
    Image.new("RGB", (300, 300), "white").save(tmp_path / "glass.png")
    (outcome,) = apply.predict([ask(tmp_path / "glass.png")], fitted, tmp_path, report=None)
    assert "glass.png: tissue: is none" in outcome.error
    with pytest.raises(InputError, match="GENES: ACTB are not among its"):
        apply.predict([ask(kept.slide)], fitted, tmp_path, apply.Wish(genes=("ACTB",)))


def test_a_broken_slide_is_named_and_the_others_are_done(kept, fitted, tmp_path):
    for name in "abc":
        shutil.copy(kept.slide, tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(kept.slide.read_bytes()[:3000])
    said = []
    found = apply.predict(slides.find(tmp_path, 1.5625), fitted, tmp_path / "out",
                          apply.Wish(zarr=False), report=said.append)
    assert [bool(each.error) for each in found] == [False, True, False]
    assert "b.png: image: cannot be decoded" in found[1].error
    assert not (tmp_path / "out/b/b.h5ad").exists()
    assert sum("tiles/s" in line and "min left" in line for line in said) == 2


def test_a_slide_that_may_not_be_read_is_no_fault_of_ours(kept, fitted, tmp_path, monkeypatch):
    shutil.copy(kept.slide, tmp_path / "a.png")

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(apply, "sha256_file", closed)
    (found,) = apply.predict(slides.find(tmp_path, 1.5625), fitted, tmp_path / "out", report=None)
    assert "a.png: slide: cannot be read" in found.error and "permissions" in found.error
    assert not (tmp_path / "out/a" / apply.TRACE).exists()


def test_what_nobody_foresaw_ends_one_slide_only(kept, fitted, tmp_path, monkeypatch):
    for name in "ab":
        shutil.copy(kept.slide, tmp_path / f"{name}.png")
    real = stream.run

    def run(slide, *rest, **more):
        if slide.path.stem == "a":
            raise ZeroDivisionError("of a library")
        return real(slide, *rest, **more)

    monkeypatch.setattr(stream, "run", run)
    wish = apply.Wish(zarr=False)
    asked = slides.find(tmp_path, 1.5625)
    a, b = apply.predict(asked, fitted, tmp_path / "out", wish, report=None)
    assert "a.png: prediction: failed (ZeroDivisionError: of a library)" in a.error
    assert "\n" not in a.error and b.error == ""
    assert "Traceback" in (tmp_path / "out/a/error.txt").read_text()
    monkeypatch.undo()
    a, b = apply.predict(asked, fitted, tmp_path / "out", wish, report=None)
    assert a.error == "" and b.was_done and not (tmp_path / "out/a/error.txt").exists()


# ---- streaming


def test_parts_change_nothing_and_a_killed_run_goes_on(kept, fitted, tmp_path, monkeypatch):
    with Slide.from_array(np.asarray(Image.open(kept.slide)), 1.5625) as slide:
        where = stream.places(slide, fitted)
        whole = stream.run(slide, fitted, where, tmp_path / "whole", "key")
        monkeypatch.setattr(stream, "PART", 5)
        reads, real = [], stream._predict
        dying = [True]

        def predict(model_, tiles, colour):
            reads.append(len(tiles))
            if dying[0] and len(reads) == 3:
                raise KeyboardInterrupt
            return real(model_, tiles, colour)

        monkeypatch.setattr(stream, "_predict", predict)
        with pytest.raises(KeyboardInterrupt):
            stream.run(slide, fitted, where, tmp_path / "parts", "key")
        dying[0] = False
        assert len(list((tmp_path / "parts").glob("*.h5"))) == 2
        damaged = tmp_path / "parts/000001.h5"
        damaged.write_bytes(damaged.read_bytes()[:200])
        reads.clear()
        again = stream.run(slide, fitted, where, tmp_path / "parts", "key")
        assert sum(reads) == len(where) - 5  # the first part alone was believed
        reads.clear()
        stream.run(slide, fitted, where, tmp_path / "parts", "another key")
        assert sum(reads) == len(where)
    np.testing.assert_allclose(again.values, whole.values, atol=1e-6)
    np.testing.assert_allclose(again.distance, whole.distance, rtol=1e-6)


def test_the_grid_gives_what_the_model_gives_tile_by_tile(kept, fitted):
    pixels = np.asarray(Image.open(kept.slide))
    with Slide.from_array(pixels, 1.5625) as slide:
        where = stream.places(slide, fitted)
        tiles = cut.cut_at(slide, where.corners, tile_um=100, tile_px=64)
        assert (where.tissue >= stream.MIN_TISSUE).all()
    embedded = encoders.create_encoder("handmade").encode(tiles.img)
    np.testing.assert_allclose(where.centres, where.corners + 32)
    coef, intercept = fitted.regressor.coef, fitted.regressor.intercept
    np.testing.assert_allclose(fitted.regressor.step(embedded)["predicted"],
                               embedded @ coef + intercept, atol=1e-4)


def test_what_is_done_is_given_back_and_what_was_changed_is_made_again(kept, fitted, predicted):
    def call():
        return apply.predict(slides.find(kept.slide, 1.5625), fitted, predicted, report=None)[0]

    assert call().was_done
    table = predicted / "V1P1A/tiles.csv"
    before = table.read_bytes()
    table.write_text("x\n")
    assert not call().was_done and table.read_bytes() == before
    assert not (predicted / "V1P1A/parts").exists()


# ---- what is written


def test_the_h5ad_opens_in_scanpy_and_squidpy(predicted):
    import matplotlib.pyplot as plt
    import scanpy as sc
    import squidpy as sq

    adata = anndata.read_h5ad(predicted / "V1P1A/V1P1A.h5ad")
    assert {"expected_r", "ci_low", "ci_high"} <= set(adata.var)
    assert {"out_of_distribution", "tissue"} <= set(adata.obs)
    assert adata.uns["mvh"]["unit"] == "ln(1 + counts per 10,000 of the spot)"
    assert np.isfinite(adata.X).all() and adata.obsm["spatial"].shape == (len(adata), 2)
    np.testing.assert_array_equal(adata.obs["domain"] == "outside training distribution",
                                  adata.obs["out_of_distribution"])
    sq.pl.spatial_scatter(adata, color=[adata.var_names[0], "distance", "domain"])
    sq.gr.spatial_neighbors(adata, coord_type="generic")
    sc.pp.pca(adata, n_comps=2)
    plt.close("all")


#: What QuPath's documentation asks of a FeatureCollection that it imports.
QUPATH = {
    "type": "object", "required": ["type", "features"], "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {"type": "array", "items": {
            "type": "object", "required": ["type", "id", "geometry", "properties"],
            "properties": {
                "type": {"const": "Feature"}, "id": {"type": "string"},
                "geometry": {"type": "object", "required": ["type", "coordinates"], "properties": {
                    "type": {"const": "Polygon"}, "coordinates": {"type": "array", "items": {
                        "type": "array", "minItems": 4, "items": {
                            "type": "array", "minItems": 2, "maxItems": 2,
                            "items": {"type": "number"}}}}}},
                "properties": {"type": "object", "required": ["objectType"], "properties": {
                    "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                    "classification": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string"}, "color": {
                            "type": "array", "minItems": 3, "maxItems": 3,
                            "items": {"type": "integer", "minimum": 0, "maximum": 255}}}},
                    "measurements": {"type": "object",
                                     "additionalProperties": {"type": "number"}}}}}}}}}


def test_the_geojson_keeps_to_qupaths_rules(predicted):
    import jsonschema

    content = json.loads((predicted / "V1P1A/V1P1A.geojson").read_text())
    jsonschema.validate(content, QUPATH)
    adata = anndata.read_h5ad(predicted / "V1P1A/V1P1A.h5ad")
    assert len(content["features"]) == len(adata)
    for feature, (x, y) in zip(content["features"], adata.obsm["spatial"], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        np.testing.assert_allclose(np.mean(ring[:-1], axis=0), (x, y), atol=0.01)
        uuid.UUID(feature["id"])
    gene = adata.var["expected_r"].idxmax()
    told = [f["properties"]["measurements"][gene] for f in content["features"]]
    np.testing.assert_allclose(told, adata.obs_vector(gene), atol=1e-5)


def test_the_zarr_is_spatialdata(predicted):
    spatialdata = pytest.importorskip("spatialdata")
    whole = spatialdata.read_zarr(predicted / "V1P1A/V1P1A.zarr")
    table = whole.tables["predicted"]
    assert set(whole.shapes) == {"tiles"} and list(whole.images) == ["thumbnail"]
    assert list(table.obs_names) == list(whole.shapes["tiles"].index)
    spatialdata.models.TableModel().validate(table)


def test_the_page_says_first_what_cannot_be_believed(kept, fitted, predicted):
    text = (predicted / "V1P1A/report.html").read_text()
    at = text.index("What can be believed")
    assert at < text.index("Organ unseen, as far as is known") < text.index("maps.png")
    assert "columns organ and scanner" in text and "drag it onto the slide in QuPath" in text
    picture = base64.b64encode((predicted / "V1P1A/maps.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{picture}"' in text  # so that the page can be sent alone
    weak = fitted.genes[~(fitted.genes["expected_r"] >= belief.LEAST_R)]["gene"]
    for gene in weak:
        assert f"<tr class=grey><td>{gene}</td>" in text
    assert text.count("class=grey") == len(weak)
    assert (predicted / "V1P1A/maps.png").stat().st_size > 10_000


def test_predictions_of_the_folds_open_in_squidpy_too(kept, tmp_path):
    import matplotlib.pyplot as plt
    import squidpy as sq

    kept.result.write(tmp_path)
    adata = anndata.read_h5ad(tmp_path / "predictions/S1P1A.h5ad")
    np.testing.assert_array_equal(adata.X, adata.layers["predicted"])
    assert adata.uns["mvh"] == {"unit": "ln(1 + counts per 10,000 of the spot)",
                                "model": "ridge on handmade", "protocol": "loso"}
    sq.pl.spatial_scatter(adata, color=adata.var_names[0])
    plt.close("all")


def test_genes_with_an_interval_come_before_single_lucky_ones():
    genes = pd.DataFrame({"gene": list("abcd"), "expected_r": [0.3, 0.9, np.nan, 0.5],
                          "ci_low": [0.1, np.nan, np.nan, 0.2]})
    assert list(belief.by_expected(genes)["gene"]) == ["d", "a", "b", "c"]
    alone = genes.assign(ci_low=np.nan)
    assert list(belief.by_expected(alone)["gene"]) == ["b", "d", "a", "c"]


def judged(fitted, kept, pixels, mpp=1.5625, **said):
    with Slide.from_array(pixels, mpp) as slide:
        where = stream.places(slide, fitted)
        tiles = cut.cut_at(slide, where.corners, tile_um=fitted.tile_um, tile_px=fitted.tile_px)
        found = stream._predict(fitted, tiles, stream.colours(tiles))
        return belief.judge(ask(kept.slide, **said), slide, fitted, stream.Predicted(
            found["predicted"], list(fitted.genes["gene"]), found["distance"],
            found["colour"].mean(axis=0), found["outside"]))


def test_unseen_scale_stain_and_organ_are_called_so(kept, fitted):
    pixels = np.asarray(Image.open(kept.slide))
    told = judged(fitted, kept, pixels, organ="Synthetic organ")
    assert not [w for w in told.warnings if w.startswith(("Organ", "Scale"))]
    told = judged(fitted, kept, pixels, mpp=2.5, organ="liver", scanner="other")
    assert any(w.startswith("Scale never seen") for w in told.warnings)
    assert any(w.startswith("Organ never seen: this slide's is liver") for w in told.warnings)
    assert any("unseen, as far as is known: this slide's is other" in w
               for w in told.warnings)
    blue = 255 - (255 - pixels[..., ::-1].astype(float)) * 1.5  # red and blue exchanged
    told = judged(fitted, kept, np.clip(blue, 0, 255).astype(np.uint8))
    assert any(w.startswith("Stain never seen") for w in told.warnings)
    assert told.outside.mean() > belief.MANY_OUTSIDE
    assert any(w.startswith("Tissue never seen") for w in told.warnings)


def test_against_the_truth_at_given_spots(kept, fitted, tmp_path):
    shutil.copy(kept.slide, tmp_path / "V1P1A.png")
    kept.section.adata[:, :0].write_h5ad(tmp_path / "V1P1A.spots.h5ad")
    (asked,) = slides.find(tmp_path / "V1P1A.png", 1.5625)
    (outcome,) = apply.predict([asked], fitted, tmp_path / "out", apply.Wish(zarr=False),
                               report=None)
    adata = apply.read(tmp_path / "out", "V1P1A")
    assert list(adata.obs_names) == list(kept.section.adata.obs_names)
    np.testing.assert_allclose(adata.obsm["spatial"], kept.section.centers)
    table = truth.against(adata, kept.section.adata)
    counts = kept.section.adata.to_df("counts")
    gene = table["gene"].iloc[0]
    measured = np.log1p(counts[gene] / counts.sum(axis=1) * 1e4)
    assert table["r"].iloc[0] == pytest.approx(
        np.corrcoef(measured, adata.obs_vector(gene))[0, 1], abs=1e-5)
    with pytest.raises(InputError, match="STRIDE_UM: is given, and so are spots"):
        apply.one(asked, fitted, tmp_path / "x", apply.Wish(stride_um=50.0))


def test_what_was_found_is_said_beside_what_was_promised():
    table = pd.DataFrame({"r": [0.2, 0.4, np.nan], "expected_r": [0.3, 0.5, 0.1],
                          "inside": [True, False, None]})
    assert truth.sentence(table) == (
        "a mean Pearson r of 0.30 over 2 genes, where 0.30 was expected; 1 of the 2 genes with a "
        "stated 95 % interval lie within it")
    unknown = table.assign(expected_r=np.nan, inside=None)
    assert truth.sentence(unknown).endswith("over 2 genes; no interval had been stated")


def test_the_command_ends_with_what_it_did(kept, tmp_path):
    shutil.copy(kept.slide, tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    words = [sys.executable, "-m", "mvhlib.prediction", "--model", str(kept.folder), "--slides",
             str(tmp_path), "--out", str(tmp_path / "out"), "--mpp", "1.5625"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 slides are predicted" in done.stdout
    assert "not predicted: bad" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*words, "--genes", "nobody"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
