"""The loop: equal however a batch is divided, whoever kills it, and clear about bad input."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from mvhlib import notebook, training
from mvhlib.artifacts import InputError, sha256_file
from mvhlib.backbones import create_model, from_pretrained
from mvhlib.dino import pretrain as loop
from mvhlib.dino.config import Config, read_settings
from mvhlib.dino.data import BatchOrder, TileSource, sample_order
from mvhlib.dino.model import DinoModel, parameter_groups, update_teacher
from mvhlib.dino.monitors import effective_rank
from mvhlib.dino.pretrain import Pretraining, open_tiles, pretrain
from mvhlib.places import home
from mvhlib.tiles import store
from mvhlib.tiles.cut import Tiles
from mvhlib.training import TrainingStopped, read_log

ROOT = home()
#: As small as a backbone can be: 2 blocks, 24 wide, 16 tokens.
TINY = {"depth": 2, "embed_dim": 24, "img_size": 32}
SMALL = {"backbone": "mvhybrid_micro_patch8_64", "backbone_options": TINY, "prototypes": 32,
         "head_hidden": 16, "head_bottleneck": 8, "steps": 10, "batch": 16, "global_px": 32,
         "local_px": 16, "n_local": 2, "koleo_group": 4, "progress": False, "device": "cpu",
         "save_every": 4, "momentum": 0.9}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def textures(n, rng, side=40):
    """Tiles of stripes: wide or narrow, in four colours."""
    y, x = np.mgrid[:side, :side] / side
    tiles = np.empty((n, side, side, 3), np.uint8)
    for tile in tiles:
        angle, kind = rng.uniform(0, np.pi), rng.integers(4)
        wave = np.sin(2 * np.pi * (2 + 3 * kind) * (x * np.cos(angle) + y * np.sin(angle)))
        colour = np.array([[200, 130, 180], [150, 100, 180], [220, 180, 200], [120, 90, 150]])[kind]
        tile[:] = np.clip(colour + 40 * wave[..., None] + rng.normal(0, 8, tile.shape), 0, 255)
    return tiles


def write_section(folder, name, img):
    n, side = img.shape[:2]
    coords = np.stack([np.arange(n) * side, np.zeros(n, int)], axis=1)
    tiles = Tiles(img, coords, np.zeros(n, np.float32), side, float(side), 1.0, 1.0)
    store.write_tiles(folder / f"{name}.h5", tiles, [f"{name}_{i}" for i in range(n)], key=name)


def write_sections(folder):
    rng = np.random.default_rng(0)
    for name in ("a1", "a2", "b1"):
        write_section(folder, name, textures(20, rng))
    return folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_sections(tmp_path_factory.mktemp("tiles"))


def settings(tiles, folder, **changes):
    return Config(**(SMALL | {"tiles": str(tiles), "folder": str(folder)} | changes))


def command_line(config):
    default = asdict(Config())
    return [f"{name}={json.dumps(value)}" for name, value in asdict(config).items()
            if value != default[name]]


def start(config, world=1, rank=0, port=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if world > 1:
        environment |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank),
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "mvhlib.dino.pretrain", *command_line(config)], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_processes(config, world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [start(config, world, rank, port) for rank in range(world)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * world, said


def final_state(folder):
    content = torch.load(sorted((folder / "state").glob("*.pt"))[-1], weights_only=True)
    return {f"{part}.{name}": tensor.double() for part in ("student", "teacher")
            for name, tensor in content["parts"][part].items()}


def largest_difference(one, other):
    """Largest relative error over the tensors of two states."""
    assert one.keys() == other.keys()
    return max(((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-12)).item()
               for name in one)


# ---- however the batch is divided


#: Their gradients are zero in part but for rounding (a key's bias shifts all scores of a query
#: alike; the imaginary part of EinFFT's constant frequency is dropped), and Adam divides rounding
#: by rounding.
WITHOUT_GRADIENT = ("qkv.bias", "complex_bias_2")


@pytest.mark.parametrize(("precision", "tolerance"), [
    ("float64", 1e-8), pytest.param("float32", 1e-4, marks=pytest.mark.slow)])
def test_two_processes_and_four_accumulations_are_one_batch(tiles, tmp_path, precision, tolerance):
    """Ten steps; KoLeo's groups of 4 lie within, of 8 across, what is processed together."""
    common = {"precision": precision, "save_every": 10}
    for group, divided in ((4, "accumulated"), (16, "processes")):
        whole = settings(tiles, tmp_path / f"whole{group}", koleo_group=group, **common)
        pretrain(whole)
        expected = final_state(whole.path)
        config = replace(whole, folder=str(tmp_path / divided))
        if divided == "accumulated":
            pretrain(replace(config, micro_batch=4))
        else:
            run_processes(config, 2)
        found = final_state(config.path)
        joined = [torch.cat([state[n].flatten() for n in expected]) for state in (found, expected)]
        assert (joined[0] - joined[1]).norm() / joined[1].norm() < tolerance, divided
        sure = [n for n in expected if precision == "float64" or not n.endswith(WITHOUT_GRADIENT)]
        assert largest_difference({n: found[n] for n in sure},
                                  {n: expected[n] for n in sure}) < tolerance, divided
        one, other = (read_log(c.path / "log.csv") for c in (whole, config))
        for name in ("loss", "koleo", "grad_backbone", "target_entropy", "effective_rank"):
            np.testing.assert_allclose(one[name], other[name], rtol=max(1e-7, 10 * tolerance))
    untrained = create_model(whole.backbone, **TINY).state_dict()
    moved = [expected[f"student.backbone.{name}"].sub(tensor).abs().max()
             for name, tensor in untrained.items()]
    assert min(moved) > 1e-6  # every parameter was trained, the mask token too


@pytest.mark.slow
def test_both_together(tiles, tmp_path):
    """Two processes that accumulate twice, with a transformer."""
    whole = settings(tiles, tmp_path / "whole", precision="float64",
                     backbone="vit12_micro_patch8_64")
    pretrain(whole)
    divided = replace(whole, folder=str(tmp_path / "divided"), micro_batch=4)
    run_processes(divided, 2)
    assert largest_difference(final_state(divided.path), final_state(whole.path)) < 1e-8


@pytest.mark.slow
def test_sharded_processes_are_one_batch_and_resume(tiles, tmp_path):
    """FSDP2 over two processes that accumulate twice, whole and from its fifth step."""
    whole = settings(tiles, tmp_path / "whole", precision="float64", save_every=5)
    pretrain(whole)
    sharded = replace(whole, folder=str(tmp_path / "sharded"), parallel="fsdp", micro_batch=4)
    run_processes(sharded, 2)
    assert largest_difference(final_state(sharded.path), final_state(whole.path)) < 1e-8
    resumed = replace(sharded, folder=str(tmp_path / "resumed"))
    (resumed.path / "state").mkdir(parents=True)
    shutil.copy(sharded.path / "state" / "step_00000005.pt", resumed.path / "state")
    run_processes(resumed, 2)
    assert read_log(resumed.path / "log.csv")["step"][0] == 5
    assert largest_difference(final_state(resumed.path), final_state(whole.path)) < 1e-8


# ---- killed and resumed


def kill_until_done(config, n_kills, seed):
    """Kill at random moments of the run until `n_kills` are spent, then let it finish."""
    rng = random.Random(seed)
    log, killed = config.path / "log.csv", 0
    while killed < n_kills:
        process = start(config)
        done = _rows(log)
        until = done + rng.randint(1, 3)
        deadline = time.time() + 120
        while _rows(log) < until and process.poll() is None and time.time() < deadline:
            time.sleep(0.003)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if process.returncode == 0:
            break
    process = start(config)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return killed


def _rows(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _equal_runs(one, other):
    for name in ("model.safetensors", "config.json", "log.csv", "recipe.json"):
        assert sha256_file(one.path / name) == sha256_file(other.path / name), name


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tiles, tmp_path):
    whole = settings(tiles, tmp_path / "whole", steps=12, save_every=3)
    said, _ = start(whole).communicate(timeout=200)
    assert (whole.path / "model.safetensors").exists(), said
    killed = replace(whole, folder=str(tmp_path / "killed"))
    assert kill_until_done(killed, 2, seed=1) >= 1
    _equal_runs(whole, killed)


@pytest.mark.slow
def test_ten_kills(tiles, tmp_path):
    whole = settings(tiles, tmp_path / "whole", steps=60, save_every=3)
    start(whole).communicate(timeout=300)
    killed = replace(whole, folder=str(tmp_path / "killed"))
    assert kill_until_done(killed, 10, seed=2) == 10
    _equal_runs(whole, killed)


def test_a_signal_saves_the_step_and_the_run_goes_on(tiles, tmp_path, monkeypatch):
    whole = settings(tiles, tmp_path / "whole", steps=6, save_every=100)
    pretrain(whole)
    config = replace(whole, folder=str(tmp_path / "stopped"))
    step = Pretraining.step

    def step_and_signal(self, images, number):
        if number == 3 and self.config.folder.endswith("stopped"):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, images, number)

    monkeypatch.setattr(Pretraining, "step", step_and_signal)
    with pytest.raises(training.Interrupted, match="after step 4"):
        pretrain(config)
    monkeypatch.undo()
    assert [p.name for p in (config.path / "state").iterdir()] == ["step_00000004.pt"]
    pretrain(config)
    _equal_runs(whole, config)


# ---- what it leaves


def test_what_is_written(tiles, tmp_path, capsys):
    config = settings(tiles, tmp_path / "enc", steps=5, exclude=["b1"], study="here")
    folder = pretrain(config)
    model = from_pretrained(folder)
    assert model.pretrained_on == {"sections": ["a1", "a2"], "patients": [], "studies": ["here"]}
    teacher = final_state(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.double(), teacher[f"teacher.backbone.{name}"])
    log = read_log(folder / "log.csv")
    assert log["step"] == [0, 1, 2, 3, 4]
    total = sum(np.array(log[name]) for name in ("dino_global", "dino_local", "ibot", "koleo"))
    np.testing.assert_allclose(log["loss"], total, rtol=1e-6)
    assert log["lr"] == pytest.approx([config.schedules().at(s)["lr"] for s in range(5)])
    # The released state-space layers start with time steps of ln 2 and poles of -1 to -16.
    assert log["delta_0_0.5"][0] == pytest.approx(np.log(2), abs=0.05)
    assert -17 < log["pole_0_0.05"][0] < log["pole_0_0.95"][0] < -0.9
    assert "images_per_second" in read_log(folder / "log.timing.csv")
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    pretrain(config)  # done already
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_patients_and_studies_come_from_the_manifest(tiles, tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("section,study,patient\na1,s1,p1\na2,s1,p1\nb1,s2,p2\n", encoding="utf-8")
    source = TileSource(tiles, manifest=manifest, exclude=["a1"])
    assert source.saw == {"sections": ["a2", "b1"], "patients": ["p1", "p2"],
                          "studies": ["s1", "s2"]}
    manifest.write_text("section,study,patient\na1,s1,p1\n", encoding="utf-8")
    with pytest.raises(InputError, match="does not list"):
        TileSource(tiles, manifest=manifest)


def test_the_teacher_follows_and_never_trains(tiles, tmp_path):
    run = Pretraining(settings(tiles, tmp_path, momentum=0.75, momentum_end=0.75))
    run.order = run._order()
    before = [p.clone() for p in run.teacher.parameters()]
    (step, images) = next(iter(run._batches()))
    run.step(images, step)
    for old, teacher, student in zip(before, run.teacher.parameters(), run.student.parameters(),
                                     strict=True):
        torch.testing.assert_close(teacher, 0.75 * old + 0.25 * student)
        assert not teacher.requires_grad and teacher.grad is None
    assert not run.teacher.training and run.student.training


def test_update_teacher_reaches_plain_modules():
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.9 * teacher.weight + 0.1 * student.weight
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, expected)


# ---- parameter groups


def _names(groups, **wanted):
    return {name for group in groups for name in group["names"]
            if all(group[key] == value for key, value in wanted.items())}


def test_groups_follow_both_decay_policies():
    options = {"prototypes": 16, "head_hidden": 8, "head_bottleneck": 4}
    for preset, exempt in (("", False), (".corrected", True)):
        student = DinoModel(Config(backbone=f"mvhybrid_micro_patch8_64{preset}", **options))
        groups = parameter_groups(student)
        plain = _names(groups, wd_factor=0.0)
        everything = {name for name, _ in student.named_parameters()}
        assert sum(len(g["names"]) for g in groups) == len(everything) == len(_names(groups))
        for name in everything:
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("A_log", "D", "complex_bias_1", "complex_bias_2"):
                assert (name in plain) == exempt, name
            elif leaf in ("cls_token", "mask_token", "weight_g", "weight_v"):
                assert name not in plain
            else:
                assert (name in plain) == (leaf == "bias" or "norm" in name), name
        assert _names(groups, is_last_layer=True) == {
            f"{head}.last_layer.{leaf}" for head in ("dino_head", "ibot_head")
            for leaf in ("weight_g", "weight_v")}
        assert _names(groups, lr_factor=0.2) == {"backbone.patch_embed.proj.weight",
                                                 "backbone.patch_embed.proj.bias"}


def test_layer_decay_counts_from_the_last_block():
    student = DinoModel(Config(prototypes=16, head_hidden=8, head_bottleneck=4))  # 3 blocks
    groups = parameter_groups(student, patch_embed_lr=1.0, layer_decay=0.5)
    factor = {name: g["lr_factor"] for g in groups for name in g["names"]}
    assert factor["backbone.cls_token"] == 0.5**4
    assert factor["backbone.blocks.0.norm1.weight"] == 0.5**3
    assert factor["backbone.blocks.2.norm1.weight"] == 0.5
    assert factor["backbone.norm.weight"] == 1 and factor["dino_head.mlp.0.weight"] == 1


# ---- monitors


def test_effective_rank_of_known_matrices():
    x = torch.zeros(40, 6)
    assert effective_rank(x + 3) == 0
    assert effective_rank(x + 3 + 1e-7 * torch.randn(40, 6)) == 0
    directions = torch.linalg.qr(torch.randn(40, 4).double())[0]
    directions = torch.linalg.qr(directions - directions.mean(0))[0]  # centred, orthonormal
    for rank in (1, 2, 4):
        assert effective_rank(directions[:, :rank]) == pytest.approx(rank, rel=1e-6)


def test_a_diverged_run_names_the_last_good_checkpoint(tiles, tmp_path):
    config = settings(tiles, tmp_path / "enc", steps=8, save_every=1, clip=0.0)
    step = Pretraining.step

    def poisoned(self, images, number):
        if number == 3:
            next(self.student.parameters()).data.fill_(float("nan"))
        return step(self, images, number)

    run = Pretraining(config)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingStopped) as caught:
        patch.setattr(Pretraining, "step", poisoned)
        run.train()
    assert "not finite" in str(caught.value) and "step_00000003.pt" in str(caught.value)
    assert training.Checkpoints(config.path / "state").latest().name == "step_00000003.pt"


def test_collapse_is_noticed(tmp_path):
    """Blank tiles without colour jitter leave nothing to tell apart."""
    write_section(tmp_path, "blank", np.full((20, 40, 40, 3), 200, np.uint8))
    config = settings(tmp_path, tmp_path / "enc", jitter=0.0, mask_share=0.0, patience=3)
    with pytest.raises(TrainingStopped, match="collapsed"):
        pretrain(config)


# ---- order of samples


def test_every_pass_sees_every_tile_once():
    order = sample_order(10, seed=3, first=0, n=30)
    for i in range(3):
        assert sorted(order[10 * i:10 * i + 10]) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    np.testing.assert_array_equal(sample_order(10, 3, 7, 12), order[7:19])


def test_processes_and_micro_batches_share_a_batch_without_overlap():
    whole = np.concatenate(list(BatchOrder(50, 1, 12, 12, 0, 1, first_step=4, n_steps=6)))
    parts = [list(BatchOrder(50, 1, 12, 3, rank, 2, first_step=4, n_steps=6)) for rank in (0, 1)]
    joined = [parts[rank][i] for i in range(4) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(joined), whole)


# ---- sources of tiles


def test_folders_of_images_are_searched_and_cut(tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (64, 100, 3), dtype=np.uint8)
    (tmp_path / "real" / "deep").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "real" / "deep" / "large.png")
    Image.fromarray(pixels[:32, :32]).save(tmp_path / "real" / "small.png")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "real")
    source = TileSource(tmp_path / "top", tile_px=32)
    assert len(source) == 2 * 3 + 1
    assert source.saw["sections"] == ["link/deep/large", "link/small"]
    found = source.__getitems__([6, 4, 0])
    np.testing.assert_array_equal(found[0], pixels[:32, :32])
    np.testing.assert_array_equal(found[1], pixels[32:64, 32:64])
    np.testing.assert_array_equal(found[2], pixels[:32, :32])


def test_sections_are_named_by_pattern(tiles):
    assert TileSource(tiles, sections=["a*"]).saw["sections"] == ["a1", "a2"]
    assert TileSource(tiles, sections=["a*"], exclude=["*2"]).saw["sections"] == ["a1"]
    with pytest.raises(InputError, match=r"c\*.*do not exist"):
        TileSource(tiles, sections=["a1", "c*"])


@pytest.mark.parametrize(("text", "said"), [
    ("section,patient\na1,p1\na2,p1\nb1\n", "row 4"), ("section,patient\na1,p1\na2\t,p1\nb1,\n",
                                                       "patient: is blank"),
    ("section,patient\na1,p1\na1,p2\na2,p1\nb1,p1\n", "two patients"), ("", "manifest.csv"),
    ("section,patient,patient\na1,p,p\n", "more than once")])
def test_a_broken_manifest_is_one_line(tiles, tmp_path, text, said):
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as caught:
        TileSource(tiles, manifest=tmp_path / "manifest.csv")
    assert "\n" not in str(caught.value)


def test_names_of_a_manifest_are_read_whatever_program_wrote_it(tiles, tmp_path):
    (tmp_path / "manifest.csv").write_bytes(
        '\ufeff"section";"patient"\r\na1 ;007\r\na2;"007"\r\nb1;8\r\n'.encode())
    assert TileSource(tiles, manifest=tmp_path / "manifest.csv").saw["patients"] == ["007", "8"]


@pytest.mark.parametrize("name", ["../x", "/x", "", "-rf"])
@pytest.mark.parametrize("setting", ["profile", "encoder"])
def test_settings_that_lead_out_of_their_folder_are_refused(setting, name):
    with pytest.raises(InputError, match=f"pretrain: {setting}: is"):
        Config(**{setting: name})


def test_tiles_and_their_manifest_may_lie_beside_the_data(tiles, tmp_path):
    data = tmp_path / "her2st"
    data.mkdir()
    (tmp_path / "other").symlink_to(tiles)
    (tmp_path / "labels.csv").write_text("image,patient_id\na1.png,4\na2.png,7\nb1.png,7\n")
    config = Config(tiles="data/../other", manifest="data/../labels.csv", study="glas",
                    data=str(data))
    assert open_tiles(config).saw == {"sections": ["a1", "a2", "b1"], "patients": ["4", "7"],
                                      "studies": ["glas"]}
    assert Config(tiles="data", data=str(data)).place("tiles") == data
    assert Config(tiles="database").place("tiles") == ROOT / "database"
    with pytest.raises(InputError, match="tiles: .*data/../other.*DATA="):
        open_tiles(Config(tiles="data/../other"))


def test_bad_images_are_reported_and_skipped_only_when_asked(tmp_path, capsys):
    rng = np.random.default_rng(2)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:300])  # the head is whole, the pixels are not
    (tmp_path / "no_image.png").write_bytes(b"hello")
    with pytest.raises(InputError, match="no_image.png"):
        TileSource(tmp_path)
    (tmp_path / "no_image.png").rename(tmp_path / "note.txt")
    source = TileSource(tmp_path)
    with pytest.raises(InputError, match=r"1\.png.*on_bad"):
        source.__getitems__([0, 1, 2])
    source = TileSource(tmp_path, on_bad="skip")
    found = source.__getitems__([0, 1, 2, 1])
    np.testing.assert_array_equal(found[1], found[2])  # the one behind it
    assert source.skipped == [str(tmp_path / "1.png")]
    assert capsys.readouterr().err.count("1.png") == 1


def test_workers_read_what_the_process_would(tiles, tmp_path):
    plain, with_workers = (Pretraining(settings(tiles, tmp_path, workers=w)) for w in (0, 2))
    for run in (plain, with_workers):
        run.order = run._order()
    for (_, one), (_, other), _ in zip(plain._batches(), with_workers._batches(), range(3),
                                       strict=False):
        assert torch.equal(one[0], other[0])


# ---- bad input


def test_bad_settings_and_tiles_are_refused(tiles, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ({"tiles": str(empty)}, "holds no tile"), ({"tiles": str(tmp_path / "no")}, "not exist"),
        ({"global_px": 48}, "less than the global crop"), ({"local_px": 20}, "not a multiple"),
        ({"warmup": 1.2}, "warmup"), ({"base_lr": -1.0}, "base_lr"),
        ({"batch": 15, "micro_batch": 4}, "not a multiple"), ({"koleo_group": 5}, "koleo_group"),
        ({"exclude": ["a9"]}, "a9"), ({"tile_px": 64}, "tile size"),
        ({"exclude": ["a1", "a2", "b1"]}, "no tile is left")]
    for change, words in cases:
        with pytest.raises(InputError, match=words):
            Pretraining(settings(**({"tiles": tiles, "folder": tmp_path} | change)))
    for change in ({"precision": "half"}, {"steps": 0}, {"blur": [0.5]}, {"parallel": "dp"}):
        with pytest.raises(InputError, match=next(iter(change))):
            settings(tiles, tmp_path, **change)


def test_the_state_of_another_recipe_is_refused_unless_told_to_restart(tiles, tmp_path, capsys):
    config = settings(tiles, tmp_path / "enc", steps=3)
    pretrain(config)
    other = replace(config, base_lr=0.01)
    with pytest.raises(InputError, match="base_lr was 0.002, is 0.01"):
        pretrain(other)
    with pytest.raises(InputError, match="another recipe"):
        pretrain(replace(config, backbone="vit12_micro_patch8_64"))
    pretrain(replace(other, restart=True))
    assert "begins afresh" in capsys.readouterr().err
    assert json.loads((config.path / "recipe.json").read_text())["settings"]["base_lr"] == 0.01
    assert read_log(config.path / "log.csv")["step"] == [0, 1, 2]


def test_out_of_memory_names_a_batch_that_fits(tiles, tmp_path, monkeypatch):
    forward = DinoModel.forward

    def greedy(self, views, *args, **options):
        if len(views) > 2 * 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, views, *args, **options)

    monkeypatch.setattr(DinoModel, "forward", greedy)
    with pytest.raises(InputError, match="set micro_batch=4"):
        pretrain(settings(tiles, tmp_path / "enc"))
    monkeypatch.undo()
    pretrain(settings(tiles, tmp_path / "enc", micro_batch=4, steps=2))


@pytest.mark.parametrize(("world", "joined", "calls"), [
    (None, False, []), ("1", False, []), ("2", False, ["gloo"]), ("2", True, [])])
def test_only_what_torchrun_starts_joins_other_processes(monkeypatch, world, joined, calls):
    made = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(loop.dist, "is_initialized", lambda: joined)
    monkeypatch.setattr(loop.dist, "init_process_group", made.append)
    loop.start_processes(torch.device("cpu"))
    assert made == calls


def test_the_command_refuses_unknown_settings(capsys):
    assert loop.main(["stepz=3"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_more_reaches_every_setting_and_the_command_line_wins(tmp_path):
    path = tmp_path / "03_pretrain.yaml"
    path.write_text("steps: 9\nprocesses: 24\nmore: {workers: 8, end_lr: 1e-5}\n", encoding="utf-8")
    found = read_settings(path, ["workers=2"])
    assert (found.steps, found.workers, found.end_lr, found.more) == (9, 2, 1e-5, {})
    path.write_text("more: {workerz: 8}\n", encoding="utf-8")
    with pytest.raises(InputError, match="did you mean 'workers'"):
        read_settings(path)


def test_options_that_change_speed_only(tiles, tmp_path):
    """Recomputing blocks gives the same bytes; bf16 gives another, finite run."""
    plain = settings(tiles, tmp_path / "plain", steps=3)
    pretrain(plain)
    again = replace(plain, folder=str(tmp_path / "again"), checkpointing=True)
    pretrain(again)
    assert largest_difference(final_state(again.path), final_state(plain.path)) < 1e-5
    half = replace(plain, folder=str(tmp_path / "half"), precision="bf16")
    pretrain(half)
    one, other = (read_log(c.path / "log.csv") for c in (plain, half))
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=0.02)
    assert other["loss"] != one["loss"]


def test_drop_path_is_repeated_after_resuming(tiles, tmp_path):
    options = TINY | {"drop_path": 0.5}
    whole = settings(tiles, tmp_path / "whole", steps=4, save_every=2, backbone_options=options)
    pretrain(whole)
    halves = replace(whole, folder=str(tmp_path / "halves"))
    run = Pretraining(halves)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(training.Interrupted):
        patch.setattr(training.StopSignal, "wanted", lambda self, device: run.state.step == 2)
        run.train()
    pretrain(halves)
    _equal_runs(whole, halves)


# ---- it learns


def patterns(n, rng, side=40):
    """Tiles of one stain and any scale; the class is the pattern: stripes, checks, rings, noise."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    kinds, tiles = rng.integers(4, size=n), np.empty((n, side, side, 3), np.uint8)
    for tile, kind in zip(tiles, kinds, strict=True):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
        waves = 2 * np.pi * rng.uniform(3, 7)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        pattern = (np.sin(waves * along + phase),
                   np.sign(np.sin(waves * along + phase) * np.sin(waves * across)),
                   np.sin(waves * np.hypot(x - 0.3 * np.sin(phase), y) * 1.5),
                   rng.normal(size=(side, side)))[kind]
        colour = np.array([170, 120, 160]) + rng.normal(0, 5, 3)
        tile[:] = np.clip(colour + 40 * pattern[..., None] + rng.normal(0, 10, tile.shape), 0, 255)
    return tiles, kinds


def probe(model, tiles, kinds):
    """Accuracy of a linear probe that is fitted on the first half."""
    x = torch.from_numpy(tiles[:, :32, :32]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        z = model.eval().forward_features((x - 0.6) / 0.2)["cls"].double()
    half = len(z) // 2
    z = (z - z[:half].mean(0)) / (z[:half].std(0) + 1e-6)
    z = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    y = torch.nn.functional.one_hot(torch.from_numpy(kinds), 4).double()
    gram = z[:half].T @ z[:half] + 10 * torch.eye(z.shape[1])
    return ((z[half:] @ torch.linalg.solve(gram, z[:half].T @ y[:half])).argmax(1)
            == y[half:].argmax(1)).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit12_micro_patch8_64", "mvhybrid_micro_patch8_64"])
def test_pretraining_beats_random_weights(tmp_path, backbone):
    """A linear probe tells patterns apart better than before training; chance is 1 in 4."""
    tiles, kinds = patterns(600, np.random.default_rng(5))
    write_section(tmp_path, "a", tiles)
    options = {"img_size": 32, "embed_dim": 48, "depth": 2}
    config = settings(tmp_path, tmp_path / "enc", backbone=backbone, backbone_options=options,
                      steps=300, batch=32, koleo_group=16, prototypes=128, head_hidden=64,
                      head_bottleneck=32, momentum=0.95, base_lr=0.008, save_every=300)
    pretrain(config)
    log = read_log(config.path / "log.csv")
    assert np.mean(log["dino_local"][-10:]) < np.mean(log["dino_local"][:10]) - 0.05
    assert log["effective_rank"][-1] > 3
    before = probe(create_model(backbone, **options), tiles, kinds)
    assert probe(from_pretrained(config.path), tiles, kinds) > before + 0.05, before


# ---- the notebook and the command share their defaults


def test_notebook_and_command_have_the_same_defaults():
    path = ROOT / "notebooks" / "03_pretrain.ipynb"
    if not path.exists():
        pytest.skip("notebook 03 is not there")
    declared = notebook.declared_parameters(notebook.read_parameters_cell(path))
    defaults = asdict(Config())
    shared = {name: value for name, (_, value) in declared.items() if name in defaults}
    different = {name for name, value in shared.items() if value != defaults[name]}
    assert different <= {"restart"}
    assert set(declared) <= set(defaults)  # so that its YAML files serve the command too
