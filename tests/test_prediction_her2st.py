"""On her2st: a model of patient C without C2, applied by predict to C2's image at C2's spots."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import cohort, encoders, features, notebook
from mvhlib.expression import cmrcnet, evaluation, mmap
from mvhlib.prediction import apply, keep, model, regressors, slides
from mvhlib.tiles import cut, store
from mvhlib.training import FitConfig

pytestmark = pytest.mark.slow
TILE = {"tile_um": 154.6, "tile_px": 224}
SECTIONS = ["C2", "C3", "C4", "C5"]
SOURCES = {"handmade": {"source": "handmade", "weights": ""},
           "vit": {"source": "vit12_micro_patch8_64", "weights": "random"}}


class Her2st:
    """Patient C, tiled as the profile her2st does it, and C2's image with its spots beside it."""

    def __init__(self, shared, folder):
        self.run = notebook.Run("05_expression", {
            "profile": "her2st", "out": str(folder), "data": str(shared / "data/her2st"),
            "seed": 0, "device": "cpu"})
        self.people = cohort.read("her2st", shared / "data/her2st", sections=SECTIONS)
        for section in self.people:
            with section.slide as slide:
                tiles = cut.cut_spots(slide, section.centers, **TILE)
            store.write_tiles(self.run.path("tiles", f"{section.name}.h5"), tiles,
                              [str(name) for name in section.adata.obs_names])
        self.panels = evaluation.choose_panels(self.people, ["section"], ["hvg"], 100)
        (self.job,), _ = evaluation.jobs(self.people.manifest, ["section"], {"any": None})
        self.mpp = self.people["C2"].mpp
        self.slides = folder / "slides"
        self.slides.mkdir()
        image = self.people["C2"]._image_path()
        self.slide = self.slides / f"C2{image.suffix}"
        self.slide.symlink_to(image)
        (self.slides / "slides.csv").write_text(f"slide,mpp,organ\nC2,{self.mpp!r},breast\n")

    def keep(self, encoder, read, method="ridge", wrap=keep.linear):
        """Evaluate a method, keep the model of the fold without C2 and that of all sections."""
        job = evaluation.Job(self.job.protocol, encoder, self.job.folds)
        result = evaluation.evaluate(job, self.people, read, self.panels, method=method,
                                     controls=["none"], ceiling_splits=0)
        fold = result.predictions["C2"].fold
        recipe = SOURCES[encoder] | {"options": {}, "seed": 0}
        _, why = keep.keep(self.run, [result], self.people, read, self.panels, method=method,
                           wrap=wrap, recipe=recipe, folds=[f"section/{fold}"],
                           about={"organ": "breast"})
        assert why == ""
        place = self.run.path("models", result.method, encoder)
        return result.predictions["C2"], place / "folds" / f"section.{fold}", place


@pytest.fixture(scope="module")
def her2st(shared, tmp_path_factory):
    return Her2st(shared, tmp_path_factory.mktemp("her2st"))


@pytest.fixture(scope="module")
def ridge(her2st):
    run = her2st.run
    encoders.encode_folder(encoders.create_encoder("handmade"), run.path("tiles"),
                           run.path("features/handmade"))
    return her2st.keep("handmade", features.read_folder(run.path("features/handmade")))


def at_spots(her2st, folder, out):
    """What predict says at the spots, and that the file of spots is gone again."""
    spots = her2st.slides / "C2.spots.h5ad"
    her2st.people["C2"].adata[:, :0].write_h5ad(spots)
    try:
        (outcome,) = apply.predict(slides.find(her2st.slide), model.read(folder), out,
                                   apply.Wish(zarr=False), report=None)
    finally:
        spots.unlink()
    assert outcome.error == ""
    return apply.read(out, "C2"), outcome


def check(her2st, kept, tmp_path):
    told, fold, _ = kept
    adata, _ = at_spots(her2st, fold, tmp_path)
    assert model.read(fold).record["seen"]["sections"] == ["C3", "C4", "C5"]
    found = adata[told.barcodes, told.genes].X
    np.testing.assert_allclose(found, told.predicted, atol=1e-5)


def test_ridge_on_an_unseen_section(her2st, ridge, tmp_path):
    check(her2st, ridge, tmp_path)


def test_on_a_grid_it_gives_a_map(her2st, ridge, tmp_path):
    (outcome,) = apply.predict(slides.find(her2st.slide), model.read(ridge[1]), tmp_path,
                               apply.Wish(stride_um=200.0, zarr=False), report=None)
    adata = apply.read(tmp_path, "C2")
    assert outcome.n_tiles == len(adata) > 100
    assert not [w for w in outcome.warnings if w.startswith(("Organ", "Scale"))]


def test_mmap_on_an_unseen_section(her2st, tmp_path):
    network = encoders.create_encoder("vit12_micro_patch8_64", name="vit", seed=0)
    views = mmap.token_folder(network, her2st.run.path("tiles"), her2st.run.path("tokens"),
                              SECTIONS, grid=2)
    estimator = mmap.MMAP(stage1=FitConfig(epochs=2, batch=64, lr=1e-3, min_lr=1e-4), heads=4,
                          head_width=16, similarity_from=0)
    kept = her2st.keep("vit", views, estimator, lambda each: regressors.Mmap(each, 2))
    check(her2st, kept, tmp_path)


def test_cmrcnet_on_an_unseen_section(her2st, ridge, tmp_path):
    read = cmrcnet.inputs("features", encoders.create_encoder("handmade"), her2st.run.path(),
                          SECTIONS)
    estimator = cmrcnet.CMRCNet(settings=cmrcnet.Settings(width=64, gene_hidden=128), k=20,
                                training=FitConfig(epochs=3, batch=64))
    kept = her2st.keep("handmade", read, estimator,
                       lambda each: regressors.Retrieval(each.current, 20, "features", 2))
    check(her2st, kept, tmp_path)


def test_real_whole_slides_are_called_unseen(her2st, ridge, shared, tmp_path):
    pytest.importorskip("openslide")
    whole, folder = model.read(ridge[2]), tmp_path / "slides"
    folder.mkdir()
    for path in (shared / "data/slides").glob("*.svs"):
        (folder / path.name).symlink_to(path)
    (unscaled,) = [each for each in apply.predict(slides.find(folder), whole, tmp_path / "first",
                                                  apply.Wish(zarr=False), report=None)
                   if each.error]
    assert "tcga" in unscaled.name and "mpp: is not known" in unscaled.error
    # The scale of the second stands in no file; 40x scans of its kind have 0.25.
    (folder / "slides.csv").write_text(f"slide,mpp\n{unscaled.name},0.25\n")
    found = apply.predict(slides.find(folder), whole, tmp_path / "second",
                          apply.Wish(zarr=False), report=None)
    assert len(found) == 2
    for outcome in found:
        assert outcome.error == ""
        text = (outcome.folder / "report.html").read_text()
        top = text[:text.index("<h2>Maps")]
        assert "Organ unseen, as far as is known: this slide&#x27;s is not stated" in top
        assert "Scanner unseen, as far as is known: this slide&#x27;s is aperio" in top
        table = pd.read_csv(outcome.folder / "tiles.csv")
        assert len(table) == outcome.n_tiles > 0 and np.isfinite(table["distance"]).all()
