"""The stability grid: its cells, what is recorded on the way, and the rule of the verdict."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mvhlib.artifacts import InputError
from mvhlib.backbones import create_model
from mvhlib.dino import stability
from mvhlib.dino.config import Config
from mvhlib.dino.monitors import state_space_extremes
from mvhlib.dino.pretrain import Pretraining
from tests.test_dino_pretrain import SMALL, one_thread, tiles

__all__ = ["one_thread", "tiles"]

CELL = stability.grid([{"depth": [2], "channel_mixer": ["mlp"]}])[0]


@pytest.fixture
def base(tiles, tmp_path):
    options = {"embed_dim": 24, "img_size": 32}
    return Config(**(SMALL | {"tiles": str(tiles), "backbone_options": options, "steps": 4,
                              "batch": 4, "log_every": 2, "koleo_group": 2}))


# ---- the grid


def test_a_grid_is_the_union_of_its_blocks():
    cells = stability.grid([{"lr_factor": [1, 3, 10], "clip": [3, 0]}, {"lr_factor": [10.0]},
                            {"trunk": ["hybrid"]}])
    assert len(cells) == 2 * 3 * 2 + 2
    assert len({tuple(cell.items()) for cell in cells}) == len(cells)
    assert all(list(cell) == list(stability.AXES) for cell in cells)


@pytest.mark.parametrize(("blocks", "said"), [
    ([], "at least one"), ([{"rate": [1]}], "not an axis"),
    ([{"trunk": ["attention"]}], "state_space"), ([{"clip": [-1]}], "not negative"),
    ([{"depth": ["deep"]}], "not negative")])
def test_a_grid_that_names_nothing_is_refused(blocks, said):
    with pytest.raises(InputError, match=said):
        stability.grid(blocks)


@pytest.mark.parametrize("batch", [8, 64])
def test_the_rate_is_a_multiple_of_the_published_peak_and_is_held(batch):
    """0.00244949, whatever the batch."""
    config = stability.configure(Config(steps=40, batch=batch, koleo_group=8),
                                 CELL | {"lr_factor": 10.0, "trunk": "hybrid", "depth": 12})
    rates = config.schedules().tables["lr"]
    np.testing.assert_allclose(rates[2:], 10 * 0.00244949, rtol=1e-6)
    assert config.backbone_options == {"depth": 12, "split": 6, "channel_mixer": "mlp",
                                       "preset": "released"}
    assert stability.configure(config, CELL).backbone_options["split"] == 2


# ---- what is recorded


def largest_behind_blocks(run, images):
    """By hand: the student's blocks one by one, on global and local views."""
    batch = run._prepare(images[0], 0, 0)
    backbone, peaks = run.student.backbone, {}
    with torch.no_grad():
        for views, masks in ((batch["views"], batch["masks"]), (batch["local"], None)):
            x = backbone._embed(views, masks)
            for number, block in enumerate(backbone.blocks):
                x = block(x)
                peaks[number] = max(peaks.get(number, 0.0), float(x.abs().max()))
    return peaks


def test_a_recorder_sees_the_residual_stream_and_changes_nothing(base, tmp_path):
    config = replace(base, folder=str(tmp_path / "plain"))
    plain = Pretraining(config)
    plain.order = plain._order()
    expected = largest_behind_blocks(plain, next(plain._batches())[1])
    plain.train()
    recorder = stability.Recorder(replace(config, folder=str(tmp_path / "watched")))
    recorder.train()
    first = recorder.rows[0]
    assert {n: first[f"activation_{n}"] for n in expected} == pytest.approx(expected, rel=1e-6)
    assert [row["step"] for row in recorder.rows] == [0, 2, 3]
    for name, tensor in plain.student.state_dict().items():
        assert torch.equal(recorder.student.state_dict()[name], tensor), name


def test_extremes_bound_every_factor_of_the_recurrence():
    model = create_model("mvhybrid_micro_patch8_64", depth=2, split=2)
    with torch.no_grad():
        model.blocks[1].mixer.A_log.fill_(-2.0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = state_space_extremes(model, images)
    assert found["pole_max"] == pytest.approx(-np.exp(-2.0))
    assert found["pole_min"] == pytest.approx(-16)
    inputs = [model._embed(images, None)]
    factors = []
    with torch.no_grad():
        for block in model.blocks:
            mixer = block.mixer
            delta = mixer.delta(block.norm1(inputs[-1]))
            factors.append(float(torch.exp(delta[..., None] * mixer.A).max()))
            assert found["delta_min"] <= float(delta.min()) <= float(delta.max()) \
                <= found["delta_max"] + 1e-12
            inputs.append(block(inputs[-1]))
    assert max(factors) <= found["decay_max"] * (1 + 1e-6) < 1
    assert state_space_extremes(create_model("vit12_micro_patch8_64"), images) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_images_and_scan_inputs(dtype):
    model = create_model("mvhybrid_micro_patch8_64", depth=2, img_size=32)
    seen = {}
    stability.round_inputs(model, dtype)
    scan, attention = model.blocks[0].mixer, model.blocks[1].mixer
    for name, module in (("images", model.patch_embed.proj), ("scan", scan.x_proj),
                         ("attention", attention.qkv)):
        module.register_forward_hook(
            lambda _m, args, y, name=name: seen.__setitem__(name, (args[0], y)))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(x)[:, 0].sum().backward()

    def is_half(tensor):
        return torch.equal(tensor, tensor.to(dtype).float())

    assert is_half(seen["images"][0]) and is_half(seen["scan"][1])
    assert not is_half(x) and not is_half(seen["attention"][1])
    assert bool(x.grad.abs().sum() > 0)
    assert stability._rounded(torch.tensor(7e4), dtype).isinf() == (dtype == torch.float16)


# ---- the verdict


def trajectory(loss, rank=9.0, grad=1.0):
    n = len(loss)
    return pd.DataFrame({
        "step": 2 * np.arange(n), "loss": loss, "grad_backbone": grad, "effective_rank": rank,
        "activation_0": np.linspace(1, 2, n), "activation_1": np.linspace(2, 6, n),
        "delta_max": 0.7, "delta_median": 0.7, "pole_max": -1.0, "pole_min": -16.0,
        "decay_max": 0.5})


@pytest.mark.parametrize(("given", "verdict"), [
    (trajectory([10.0] * 20), "stable"),
    (trajectory([10.0] * 18 + [10.4] * 2), "stable"),
    (trajectory([10.0] * 18 + [10.6] * 2), "diverged"),
    (trajectory([10.0, 30.0] + [9.0] * 18), "stable"),  # a spike that heals
    (trajectory([10.0] * 5 + [np.nan]), "diverged"),
    (trajectory([10.0] * 20, grad=np.inf), "diverged"),
    (trajectory([10.0] * 20, rank=1.2), "collapsed"),
    (trajectory([10.0] * 18 + [10.6] * 2, rank=1.2), "diverged"),
])
def test_the_verdict_is_a_rule(given, verdict):
    found = stability.judge(given)
    assert found["verdict"] == verdict
    assert found["activation_max"] == 6 and found["activation_growth"] == 3
    assert np.isnan(found["float16_step"])
    assert found["n_steps"] == given["step"].iloc[-1] + 1


@pytest.mark.parametrize(("end", "verdict"), [
    (2000.0, "stable"), (2000.1, "growing"), (np.inf, "growing"), (np.nan, "growing")])
def test_what_the_final_norm_hides_is_no_stability(end, verdict):
    """The stream begins at 2 behind the second block, and the loss goes down throughout."""
    given = trajectory(list(np.linspace(10, 5, 20)))
    given.loc[18, "activation_1"] = end
    given["grad_backbone"] = [2.0, 8.0] + [1.0] * 18
    found = stability.judge(given)
    assert (found["verdict"], found["grad_max"], found["grad_growth"]) == (verdict, 8, 4)
    worse = given.assign(loss=np.linspace(5, 10, 20))
    assert stability.judge(worse)["verdict"] == "diverged"


@pytest.mark.parametrize(("largest", "step"), [(65504.0, np.nan), (65536.0, 6), (np.nan, 6)])
def test_the_step_that_leaves_float16(largest, step):
    """Stated beside the verdict; a spike that is over before the end is no part of it."""
    given = trajectory([10.0] * 6)
    given.loc[3, "activation_0"] = largest
    found = stability.judge(given)
    np.testing.assert_equal(float(found["float16_step"]), step)
    assert found["verdict"] == "stable"


def test_a_rate_without_measure_diverges(base):
    """The loop stops by itself; the row that stopped it is kept."""
    rows = stability.run_cell(base, CELL | {"lr_factor": 1e12, "clip": 0.0})
    verdict = stability.judge(rows)
    assert verdict["verdict"] == "diverged", verdict
    assert verdict["pole_max"] < 0


def test_the_summary_counts_pairs():
    cells = stability.grid([{"lr_factor": [1, 10], "clip": [3, 0]}])
    rows = [{**cell, **stability.judge(trajectory([10.0] * 20))} for cell in cells]
    for row in rows:
        if row["channel_mixer"] == "mlp":
            row["activation_max"] *= 2
            row["verdict"] = "growing"
            if row["lr_factor"] == 10 and row["clip"] == 0:
                row["verdict"] = "diverged"
    table = stability.summarise(pd.DataFrame(rows)).set_index("lr_factor")
    assert table["n_pairs"].to_dict() == {1.0: 2, 10.0: 2, "all": 4}
    assert table["difference"].to_dict() == {1.0: 0, 10.0: 0.5, "all": 0.25}
    assert table.loc["all", ["only_mlp", "only_einfft"]].tolist() == [1, 0]
    np.testing.assert_allclose(table["activation_ratio"], 2)
    assert table["beyond_float16_mlp"].eq(0).all()
    assert table["activation_larger"].to_dict() == {1.0: 2, 10.0: 2, "all": 4}
    assert table["grad_larger"].eq(0).all()
    assert table.loc["all", ["growing_einfft", "growing_mlp"]].tolist() == [0, 3]
    with pytest.raises(InputError, match="einfft, mlp"):
        stability.summarise(pd.DataFrame(rows[:1]))


def test_longer_cells_are_counted_and_drawn_by_themselves():
    cells = stability.grid([{"lr_factor": [1, 10]}, {"lr_factor": [10], "steps": [200]}])
    runs = [trajectory([10.0] * (100 if cell["steps"] else 12)) for cell in cells]
    judged = pd.DataFrame([{**cell, **stability.judge(run)}
                           for cell, run in zip(cells, runs, strict=True)])
    counted = stability.summarise(judged).set_index(["steps", "lr_factor"])["n_pairs"]
    assert counted.to_dict() == {(0, 1.0): 1, (0, 10.0): 1, (200, 10.0): 1, ("all", "all"): 3}
    assert stability.sentence(judged).startswith("Of 6 short trainings of 23 to 199 steps, ")
    rows = pd.concat([pd.concat([pd.DataFrame([cell] * len(run)), run], axis=1)
                      for cell, run in zip(cells, runs, strict=True)], ignore_index=True)
    longest = stability.harshest(rows)
    assert len(longest) == 200 and set(longest["steps"]) == {200}


# ---- cell by cell


def test_a_killed_grid_loses_one_cell(base, tmp_path, monkeypatch):
    trained = []

    def run_cell(config, cell):
        if len(trained) == 2 and cell["lr_factor"] == 10 and cell["channel_mixer"] == "einfft":
            raise KeyboardInterrupt
        trained.append((cell["lr_factor"], cell["channel_mixer"]))
        return trajectory(list(np.linspace(10, 10 / 3, 20)))

    monkeypatch.setattr(stability, "run_cell", run_cell)
    cells = stability.grid([{"lr_factor": [1, 10]}])
    cells.sort(key=lambda cell: cell["lr_factor"])
    with pytest.raises(KeyboardInterrupt):
        stability.run_grid(base, cells, tmp_path)
    trained.append("killed")
    table, rows = stability.run_grid(base, cells, tmp_path)
    assert trained[3:] == [(10.0, "einfft"), (10.0, "mlp")]
    again, _ = stability.run_grid(base, cells, tmp_path)
    assert len(trained) == 5 and again.equals(table)
    assert len(rows) == 80 and set(stability.harshest(rows)["lr_factor"]) == {10.0}
    stability.run_grid(replace(base, steps=5), cells[:1], tmp_path)
    assert len(trained) == 6  # another recipe is another cell


def test_every_cell_is_drawn_with_its_last_loss():
    from matplotlib.figure import Figure

    cells = stability.grid([{"lr_factor": [1, 10]}, {"lr_factor": [10], "inputs": ["float16"]}])
    losses = [[10.0, 5.0], [10.0, np.nan]]
    rows = [{**cell, **stability.judge(trajectory(losses[cell["inputs"] == "float16"]))}
            for cell in cells]
    ax = stability.draw_verdicts(pd.DataFrame(rows), Figure().subplots())
    assert sorted(text.get_text() for text in ax.texts if text.get_text()) == [
        "0.50 | 6e+00"] * 4 + ["not finite | 6e+00"] * 2
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "released, 12 blocks, clip 3", "float16, released, 12 blocks, clip 3"]
    longer = stability.grid([{"lr_factor": [10], "steps": [200]}])[0]
    assert stability._row_name(*(longer[name] for name in stability.RECIPE)).endswith(", 200 steps")
    assert stability.configure(Config(steps=24), longer).steps == 200
    assert stability.configure(Config(steps=24), cells[0]).steps == 24
    assert not ax.patches


def test_what_is_beyond_float16_is_hatched_and_said():
    from matplotlib.figure import Figure

    rows = [{**cell, **stability.judge(trajectory([10.0, 5.0]))}
            for cell in stability.grid([{"lr_factor": [1, 10]}])]
    rows[1]["activation_max"], rows[2]["activation_max"] = 8e4, np.nan
    rows[3]["verdict"] = "diverged"
    table = pd.DataFrame(rows)
    ax = stability.draw_verdicts(table, Figure().subplots())
    assert len(ax.patches) == 2 and all(patch.get_hatch() for patch in ax.patches)
    said = stability.sentence(table)
    assert said.startswith("Of 4 short trainings of 3 steps, ")
    assert "1 of 2 with MLP diverged; 0 kept their loss" in said
    assert "and 2 left the range of float16" in said
    assert said.endswith("eigenvalue was -1.000.")
