"""`make predict` as a user runs it: processes that are started, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml

from mvhlib import artifacts, cohort, encoders, features, notebook
from mvhlib.expression import evaluation
from mvhlib.prediction import apply, keep, several, slides
from mvhlib.tiles import cut, store

pytestmark = pytest.mark.slow
MPP = 1.5625
SMALL = {"n_studies": 3, "patients_per_study": 1, "sections_per_patient": 1, "spots_per_side": 6,
         "n_genes_per_program": 2}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A model's folder, and a slide of a study that it has not seen."""
    folder = tmp_path_factory.mktemp("kept")
    run = notebook.Run("05_expression", {"profile": "test", "out": str(folder), "data": "",
                                         "seed": 0, "device": "cpu"})
    people = cohort.read("synthetic", folder / "cohort", seed=0, **SMALL)
    for section in people:
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=100, tile_px=64)
        store.write_tiles(run.path("tiles", f"{section.name}.h5"), tiles,
                          [str(name) for name in section.adata.obs_names])
    encoders.encode_folder(encoders.create_encoder("handmade"), run.path("tiles"),
                           run.path("features/handmade"))
    read = features.read_folder(run.path("features/handmade"))
    panels = evaluation.choose_panels(people, ["loso"], ["hvg"], 12)
    (job,), _ = evaluation.jobs(people.manifest, ["loso"], {"handmade": None})
    result = evaluation.evaluate(job, people, read, panels, controls=["none"], ceiling_splits=0)
    keep.keep(run, [result], people, read, panels, recipe={
        "source": "handmade", "weights": "", "options": {}, "seed": 0})
    cohort.read("synthetic", folder / "unseen", seed=0, role="prediction",
                **SMALL | {"n_studies": 1})
    return run.path("models/ridge/handmade"), folder / "unseen/images/V1P1A.png"


def command(target, out, **variables):
    """``make TARGET`` but for the installation: its variables come from the environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("SLIDES", "GENES")}
    return subprocess.run([sys.executable, "-m", "mvhlib.commands", target], env={
        **env, "OUT": str(out), "JOBS": "2", "SEED": "0", **variables}, capture_output=True,
        text=True)


def test_nine_of_ten_slides_are_predicted_two_at_a_time(kept, tmp_path):
    model, slide = kept
    (tmp_path / "slides").mkdir()
    for number in range(10):
        (tmp_path / f"slides/s{number}.png").write_bytes(
            slide.read_bytes()[:None if number != 4 else 3000])
    (tmp_path / "slides/slides.csv").write_text(
        "slide,mpp\n" + "".join(f"s{number},{MPP}\n" for number in range(10)))
    done = command("predict", tmp_path / "out", SLIDES=str(tmp_path / "slides"),
                   MODEL=str(model))
    assert done.returncode == 1, done.stderr
    assert "9 of 10 slides are predicted" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.count("not predicted: ") == 1 and "s4.png: image: cannot be" in done.stderr
    tables = sorted((tmp_path / "out/predictions").glob("*/tiles.csv"))
    assert [path.parent.name for path in tables] == [f"s{n}" for n in range(10) if n != 4]
    assert len({path.read_bytes() for path in tables}) == 1
    listed = artifacts.read_csv(tmp_path / "out/figures/predict/16_predict/slides.csv")
    assert list(listed.loc[listed["error"].notna(), "slide"]) == ["s4"]


def start(words):
    return subprocess.Popen([sys.executable, "-m", "mvhlib.prediction", *words])


def test_a_killed_run_goes_on_where_it_was(kept, tmp_path):
    model, slide = kept
    words = ["--slides", str(slide), "--model", str(model), "--mpp", str(MPP), "--stride-um", "20"]
    parts = tmp_path / "killed/V1P1A/parts"
    run = start([*words, "--out", str(tmp_path / "killed")])
    while len(list(parts.glob("*.h5"))) < 2:
        assert run.poll() is None, "it was done before it could be killed"
        time.sleep(0.005)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/V1P1A/done.json").exists()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.h5")}
    assert len(before) >= 2
    again = start([*words, "--out", str(tmp_path / "killed")])
    seen = {}
    while again.poll() is None:
        for path in before:
            if path.exists():
                seen.setdefault(path, set()).add(path.stat().st_mtime_ns)
        time.sleep(0.005)
    assert again.returncode == 0
    assert seen == {path: {stamp} for path, stamp in before.items()}  # none was made again
    assert start([*words, "--out", str(tmp_path / "whole")]).wait() == 0
    for name in ("tiles.csv", "V1P1A.geojson", "maps.png", "report.html"):
        assert (tmp_path / "killed/V1P1A" / name).read_bytes() == (
            tmp_path / "whole/V1P1A" / name).read_bytes()


def test_a_process_that_is_killed_takes_one_slide_with_it(kept, tmp_path):
    model, slide = kept
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(slide.read_bytes())
    out, over = tmp_path / "out", threading.Event()

    def kill():  # as the kernel does where memory ends, whenever b is worked on
        while not over.is_set():
            if (out / "b/.lock").exists():
                for child in active_children():
                    os.kill(child.pid, signal.SIGKILL)
                (out / "b/.lock").unlink(missing_ok=True)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        a, b, c = several.predict(slides.find(tmp_path, MPP), model, out,
                                  apply.Wish(zarr=False), jobs=2)
    finally:
        over.set()
        killer.join()
    assert (a.error, c.error) == ("", "")
    assert "b.png: process: was killed" in b.error and "\n" not in b.error


# ---- the whole way on her2st: notebooks keep models, the command applies them

SECTIONS = ["C2", "C3", "C4", "C5"]
PROFILE = {
    "workflow": {"needs_data": True,
                 "notebooks": ["01_cohort", "02_tiles", "04_embed", "05_expression", "12_mmap",
                               "13_cmrcnet"],
                 "encoders": {"handmade": {"source": "handmade"}, "vit": {
                     "source": "vit12_micro_patch8_64", "weights": "random"}},
                 "methods": {"mmap": ["vit"], "cmrcnet": ["handmade"]}},
    "01_cohort": {"source": "her2st", "options": {"sections": SECTIONS}, "n_genes": 60,
                  "protocols": ["section"]},
    "02_tiles": {"tile_um": 154.6, "tile_px": 224},
    "05_expression": {"organ": "breast", "protocols": ["section"], "primary": [],
                      "n_draws": 9, "keep_folds": ["section/C.C2"]},
    "12_mmap": {"encoder": "vit", "source": "vit12_micro_patch8_64", "weights": "random",
                "protocols": ["section"], "similarity_from": 0, "ablations": ["prototypes"],
                "ablation_folds": 1, "ablation_k": [8], "paired_unit": "section",
                "training": {"epochs": 1, "batch": 64, "lr": 1e-3, "min_lr": 1e-4},
                "keep_folds": ["section/C.C2"]},
    "13_cmrcnet": {"encoder": "handmade", "source": "handmade", "weights": "",
                   "image": "features", "protocols": ["section"], "fit": {"epochs": 1},
                   "model": {"width": 32, "gene_hidden": 64}, "k": 20, "ks": [20],
                   "mask_rates": [0.5], "ablation_folds": 1, "ablation_epochs": 1,
                   "transfer_epochs": 0, "keep_folds": ["section/C.C2"]}}


def test_the_whole_way_on_her2st(shared, tmp_path):
    params, out = tmp_path / "params", tmp_path / "out"
    for name, values in PROFILE.items():
        artifacts.write_text(params / f"fold/{name}.yaml", yaml.safe_dump(values))
    done = command("figures", out, PROFILE="fold", PARAMS=str(params),
                   DATA=str(shared / "data/her2st"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = out / "runs/fold"
    section = cohort.read("her2st", shared / "data/her2st", sections=["C2"])["C2"]
    where = tmp_path / "slides"
    where.mkdir()
    image = Path(section._image_path())
    (where / f"C2{image.suffix}").symlink_to(image)
    (where / "slides.csv").write_text(f"slide,mpp,organ\nC2,{section.mpp!r},breast\n")
    cells = [("ridge", "handmade"), ("mmap", "vit"), ("cmrcnet", "handmade")]
    for method, encoder in cells:
        model = run / "models" / method / encoder / "folds/section.C.C2"
        record = json.loads((model / "model.json").read_text())
        assert record["seen"]["sections"] == ["C3", "C4", "C5"]
        told = anndata.read_h5ad(run / "expression/section" / method / encoder
                                 / "predictions/C2.h5ad")
        spots = pd.DataFrame(section.centers, columns=["x", "y"]).assign(
            barcode=section.adata.obs_names)
        spots[["barcode", "x", "y"]].to_csv(where / "C2.spots.csv", index=False)
        target = tmp_path / f"predicted-{method}/predictions"
        if method == "ridge":  # the whole command once: notebook 16 says nothing of the method
            done = command("predict", target.parent, SLIDES=str(where), MODEL=str(model))
            assert done.returncode == 0, done.stderr
        else:
            assert start(["--slides", str(where), "--model", str(model), "--out", str(target)]
                         ).wait() == 0
        found = anndata.read_h5ad(target / "C2/C2.h5ad")
        np.testing.assert_allclose(found[told.obs_names, told.var_names].X,
                                   told.layers["predicted"], atol=1e-5, err_msg=method)
    (where / "C2.spots.csv").unlink()
    grid = start(["--slides", str(where), "--out", str(tmp_path / "grid"), "--stride-um", "200",
                  "--model", str(run / "models/mmap/vit/folds/section.C.C2")])
    assert grid.wait() == 0
    assert len(anndata.read_h5ad(tmp_path / "grid/C2/C2.h5ad")) > 100
