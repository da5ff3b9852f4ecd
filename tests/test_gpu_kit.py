"""The kit for a GPU machine, on a CPU: the pack, and the whole command in micro sizes."""

import csv
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml

from mvhlib import artifacts, workflow
from mvhlib.artifacts import InputError
from mvhlib.tiles import store
from mvhlib.tiles.cut import Tiles
from tests.absent import walk
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

#: What a bare machine lacks; importing one of them fails there.
MISSING = ("anndata", "scanpy", "squidpy", "spatialdata", "pandas", "matplotlib", "seaborn", "yaml",
           "snakemake", "papermill", "nbformat", "lifelines", "openslide", "timm", "torchvision",
           "tqdm", "numba", "zarr", "mamba_ssm")
#: They are not found, by whoever asks: torch itself looks whether pandas is there.
BLOCKER = f"""
from importlib.machinery import PathFinder

found = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None: (
    None if name.partition(".")[0] in {MISSING!r} else found(name, path, target)))
"""


def tissue(n, side, seed=0):
    """Tiles with smooth colour, as tissue has it: noise is not what JPEG is made for."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 220, (n, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    return Tiles(coarse.astype(np.uint8), np.arange(2 * n).reshape(n, 2), np.zeros(n, np.float32),
                 side, side * 0.5, 0.5, 0.5, [f"{i}x{i}" for i in range(n)])


def write_run(folder):
    """A run that has come as far as its tiles."""
    for number, name in enumerate(("C2", "C3")):
        store.write_tiles(folder / "tiles" / f"{name}.h5", tissue(12, 64, number))
    (folder / "cohort").mkdir()
    (folder / "cohort" / "manifest.csv").write_text(
        "section,patient,study\nC2,C,her2st\nC3,C,her2st\n")
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "her2st")


def test_a_pack_comes_back_as_tiles(run, tmp_path, capsys):
    import gpu_pack

    pack = tmp_path / "pack"
    gpu_pack.main(["--out", str(pack), "--her2st", str(run), "--held-out", "C2"])
    assert "24 tiles of 2 sections" in capsys.readouterr().out
    assert (pack / "her2st" / "folds.csv").read_text().split() == ["out", "C2"]
    folder = gpu_pack.unpack(pack / "her2st", tmp_path / "tiles")
    for name in ("C2", "C3"):
        before = store.read_tiles(run / "tiles" / f"{name}.h5")
        after = store.read_tiles(folder / f"{name}.h5")
        assert after.barcodes == before.barcodes and after.mpp == before.mpp
        assert np.array_equal(after.coords, before.coords)
        assert np.abs(after.img.astype(float) - before.img).mean() < 3
    stamp = (folder / "C2.h5").stat().st_mtime_ns
    gpu_pack.unpack(pack / "her2st", folder)  # what is there is kept
    assert (folder / "C2.h5").stat().st_mtime_ns == stamp
    few = gpu_pack.unpack(pack / "her2st", tmp_path / "few", 1, 5)
    assert [len(store.read_tiles(path)) for path in few.glob("*.h5")] == [5]


def test_a_pack_that_is_too_large_or_names_a_missing_section(run, tmp_path):
    import gpu_pack

    with pytest.raises(InputError, match=r"held_out: \['C9'\] are not there"):
        gpu_pack.main(["--out", str(tmp_path / "a"), "--her2st", str(run), "--held-out", "C9"])
    with pytest.raises(InputError, match="MB, more than 0.001"):
        gpu_pack.main(["--out", str(tmp_path / "b"), "--her2st", str(run), "--held-out", "C2",
                       "--most-mb", "0.001"])


def test_rows_are_kept_and_time_is_handed_on(tmp_path, capsys):
    import gpu
    import torch

    def bench():
        return gpu.Bench(tmp_path, None, torch.device("cpu"), True,
                         gpu.Ledger(tmp_path / "rows.csv"), "scan", float("inf"), "cpu")

    asked = []

    def measure(name, answer):
        asked.append(name)
        if isinstance(answer, Exception):
            raise answer
        return {"value": answer}

    for attempt in range(2):
        one = bench()
        one.row("good", lambda: measure("good", 1.5), unit="ms")
        one.row("bad", lambda: measure("bad", ValueError("it broke\nhere")))
        one.row("not here", lambda: measure("not here", gpu.gpu_measure.Absent("no card")))
        one.deadline = 0.0
        one.row("late", lambda: measure("late", 1.0))
        assert asked == ["good", "bad", "not here"] + ["bad"] * attempt
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as stream:
        rows = {row["what"]: row for row in csv.DictReader(stream)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "ok", "bad": "failed", "not here": "absent"}
    assert rows["good"]["value"] == "1.5" and "it broke" in rows["bad"]["note"]
    assert "late: no time left" in capsys.readouterr().out
    with open(tmp_path / "rows.csv", "a", encoding="utf-8") as stream:
        stream.write("scan,cut sho")  # the machine was taken away
    assert set(bench().ledger.rows) == {("scan", name) for name in rows}

    deadline = gpu.shares(["scan", "her2st"], 6.0, 0.0)
    assert deadline("scan", 0.0) == pytest.approx(150)
    assert deadline("her2st", 10.0) == pytest.approx(360)  # what scan left over is not lost


def dry_run(tmp_path, *more):
    """The command in three minutes, as often as a slow machine needs: it goes on where it was."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
                   "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # With triton where a Python that has it is named; else its rows say that it is absent.
    python = os.environ.get("MVH_TRITON_PYTHON") or sys.executable
    for _ in range(5):
        done = subprocess.run(
            [python, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out"),
             "--pack", str(tmp_path / "pack"), "--minutes", "3", "--dry-run", *more],
            capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        if "no time left" not in done.stdout:
            break
    return done.stdout


@pytest.fixture(scope="module")
def brought(golden, tmp_path_factory):
    """Folder of a dry run on a bare machine, what it said, and what it brought home."""
    import gpu_pack

    folder = tmp_path_factory.mktemp("bare")
    run = write_run(folder / "runs" / "her2st")
    gpu_pack.main(["--out", str(folder / "pack"), "--her2st", str(run), "--held-out", "C2",
                   "--synthetic", str(run), "--golden", str(golden)])
    return folder, dry_run(folder, "--bring", str(folder / "home"))


@pytest.mark.slow
def test_the_whole_command_on_a_bare_machine(brought):
    import gpu_unpack

    folder, said = brought
    with open(folder / "out" / "rows.csv", newline="", encoding="utf-8") as stream:
        rows = {(row["part"], row["what"]): row for row in csv.DictReader(stream)}
    assert not [key for key, row in rows.items() if row["status"] == "failed"], said
    assert {part for part, _ in rows} == {"works", "scan", "speed", "main", "stability", "her2st"}
    assert rows["works", "golden hydra_mixer"]["status"] == "ok"
    assert rows["speed", "embed mvhybrid_micro_patch8_64 bfloat16"]["status"] == "ok"
    if os.environ.get("MVH_TRITON_PYTHON"):
        assert rows["works", "scan triton complex"]["status"] == "ok"
        assert rows["works", "ssd triton"]["status"] == "ok"
        for name in ("scan", "ssd"):
            assert rows["scan", f"{name} forward+backward L65 float32"]["status"] == "ok"
    before = (folder / "out" / "rows.csv").read_bytes()
    dry_run(folder)
    assert (folder / "out" / "rows.csv").read_bytes() == before  # nothing was measured again

    gpu_unpack.main([str(folder / "home"), "--out", str(folder / "clone")])
    there = folder / "clone" / "runs"
    encoder = there / "one_gpu" / "encoders" / "mvhybrid-dino.s0"
    assert {path.name for path in encoder.iterdir()} >= {"model.safetensors", "states.csv"}
    slug = "vit12-dino.no-c2.mean-std"
    assert (there / "one_gpu_her2st" / "features" / slug / "C3.h5").exists()


def micro_profile(folder, runs):
    """Profile `one_gpu` in `folder` for what a dry run brings: two seeds, few small sections."""
    shutil.copytree(ROOT / "params" / "one_gpu", folder)

    def change(name, **values):
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))

    encoders = {}
    for slug, options in yaml.safe_load((folder / "workflow.yaml").read_text())[
            "encoders"].items():
        options = dict(options)
        if options.get("weights", "").startswith("runs/"):
            options["weights"] = str(runs.parent / options["weights"])
        if slug.endswith((".s2", ".s3", ".s4", ".s5", ".s6", ".s7")):
            continue
        options |= {"seeds": 2} if "seeds" in options else {}
        options |= {"read_outs": ["cls", "mean+std"]} if "read_outs" in options else {}
        encoders[slug] = options
    change("workflow", encoders=encoders)
    change("01_cohort", source="synthetic", n_genes=60, pretraining={"n_studies": 1}, options={
        "n_studies": 3, "patients_per_study": 2, "sections_per_patient": 1, "spots_per_side": 6,
        "n_genes_per_program": 2})
    change("05_expression", n_draws=9)
    change("11_ablations", stability_grid=[{"lr_factor": [10], "depth": [2]}], stability_steps=4)
    return folder


@pytest.mark.slow
def test_what_is_brought_home_is_drawn_on_a_cpu(brought, tmp_path, monkeypatch):
    """Notebooks 05, 11 and 14 of profile `one_gpu`, called as the workflow calls them."""
    import gpu_unpack

    # numba would take benchmarks/coverage.py for the package of that name.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(ROOT / "benchmarks")])
    gpu_unpack.main([str(brought[0] / "home"), "--out", str(tmp_path)])
    folder = micro_profile(tmp_path / "params" / "one_gpu", tmp_path / "runs")
    plan = workflow.prepare(workflow.Call("one_gpu", params=str(folder.parent)))
    whole = [*plan["scored"], *plan["chosen"]]
    given = {"05_expression": {"encoders": plan["scored"], "members": plan["members"],
                               "read_outs": plan["read_outs"]},
             "11_ablations": {"encoders": whole}, "14_leaderboard": {"encoders": whole}}
    for name in ("01_cohort", "02_tiles", "04_embed", "05_expression", "11_ablations",
                 "14_leaderboard"):
        jobs = [{"encoder": slug, **options} for slug, options in plan["encoders"].items()
                ] if name == "04_embed" else [given.get(name, {})]
        for job in jobs:
            walk(name, tmp_path, profile="one_gpu", **workflow.read_params(folder, name) | job)

    figures = tmp_path / "figures" / "one_gpu"
    for name in given:
        assert list((figures / name).glob("*.png")) and (figures / name / "answer.md").exists()
    table = artifacts.read_csv(figures / "11_ablations" / "comparisons.csv")
    pair = table[(table["variant"] == "mvhybrid-dino.chosen") & (table["measure"] == "all")
                 & (table["reference"] == "vit17-dino.chosen")]
    assert {"random10_section", "loso", "drop"} <= set(pair["protocol"])
    assert set(pair["n_seeds"]) == {2} and np.isfinite(pair["difference"]).all()
    states = artifacts.read_csv(figures / "11_ablations" / "state_shares.csv")
    assert {"mvhybrid-dino", "mvhybrid-mamba"} <= set(states["encoder"].str.partition(".s")[0])
    board = artifacts.read_csv(figures / "14_leaderboard" / "leaderboard.csv")
    assert any("mvhybrid-dino" in str(value) for value in board.to_numpy().ravel())
    saw = artifacts.read_json(
        tmp_path / "runs/one_gpu/features/mvhybrid-dino.cls.s0/pretrained_on.json")
    assert saw["patients"] == ["C"]  # whom the encoder saw is known at home


def test_a_command_that_cannot_run_says_so(tmp_path):
    import gpu

    with pytest.raises(InputError, match="--only: names .'speeed'"):
        gpu.main(["--out", str(tmp_path), "--only", "speeed", "--dry-run"])
    with pytest.raises(InputError, match="--pack: is no folder"):
        gpu.main(["--out", str(tmp_path), "--pack", str(tmp_path / "none"), "--dry-run"])


def test_the_profiles_of_what_is_brought_home_name_what_is_unpacked(tmp_path):
    import gpu_train
    import gpu_unpack

    params = ROOT / "params"
    plan = workflow.read_plan(params / "one_gpu")
    trained = {slug: options for slug, options in plan["encoders"].items()
               if options.get("weights", "").startswith("runs/")}
    assert set(trained) == {f"{name}.s{seed}" for name in gpu_train.ENCODERS
                            for seed in range(gpu_train.SEEDS)}
    for slug, options in trained.items():
        assert options["weights"] == f"runs/{gpu_unpack.PLACES['encoders']}/{slug}"
        assert options["source"] == gpu_train.ENCODERS[slug.partition(".s")[0]]
    plan = workflow.read_plan(params / "one_gpu_her2st", data=str(tmp_path))
    assert {slug.partition(".no-")[0]: options["source"]
            for slug, options in plan["encoders"].items()} == gpu_train.FULL
    assert "vit12-dino.no-c2.mean-std" in plan["members"]["vit12-dino.mean-std"]
    recipe = workflow.read_params(params / "her2st_gpu", "03_pretrain")
    flat = recipe | recipe["more"]
    assert all(flat[name] == gpu_train.FULL_RECIPE[name] for name in (
        "steps", "batch", "global_px", "local_px", "n_local", "prototypes", "head_hidden",
        "head_bottleneck", "koleo_group", "momentum", "precision"))


def test_archives_stay_small(tmp_path, monkeypatch):
    import gpu

    (tmp_path / "rows.csv").write_text("part\n")
    for number in range(5):
        path = tmp_path / "home" / "encoders" / f"e{number}" / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(400))
    monkeypatch.setattr(gpu, "ARCHIVE", 1000)
    made = gpu.bring(tmp_path, tmp_path / "home_bound")
    names = [zipfile.ZipFile(path).namelist() for path in made]
    assert [len(each) for each in names] == [3, 2, 1] and names[0][0] == "rows.csv"
