"""Hours of a pretraining: by hand, from a log, from the committed table, and never from another."""

import json
from dataclasses import replace

import pytest

from mvhlib.artifacts import InputError, read_csv
from mvhlib.dino import cost
from mvhlib.dino.config import Config, read_settings
from mvhlib.places import home

PAPER = home() / "params/paper/03_pretrain.yaml"


def write_log(folder, config, rows):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps({"settings": config.recipe()}))
    (folder / "log.timing.csv").write_text("\n".join(
        ["step,seconds,images_per_second,peak_mb",
         *(f"{step},{seconds},{images / seconds},1" for step, seconds, images in rows)]) + "\n")
    return folder / "log.timing.csv"


def test_hours_are_images_by_rate():
    config = read_settings(PAPER)
    assert (config.steps, config.batch) == (98600, 1536)  # 200 epochs of 755,936 tiles
    assert cost.hours(config, 1000.0, 24, 0.5) == pytest.approx(98600 * 1536 / 12000 / 3600)


def test_a_log_counts_from_its_second_row_and_its_last_sitting(tmp_path):
    config = Config(steps=40, batch=8)
    # First sitting 1 image a second; second: compiled for 9 s, then 4 images a second.
    rows = [(0, 8, 8), (1, 16, 16), (2, 10, 8), (3, 12, 16), (4, 14, 24)]
    log = write_log(tmp_path, config, rows)
    assert cost.rate_of_log(log, config, 1) == pytest.approx(4.0)
    assert cost.rate_of_log(log, config, 2) == pytest.approx(2.0)
    with pytest.raises(InputError, match="20 steps or more that was not interrupted"):
        cost.rate_of_log(write_log(tmp_path, config, rows[:1]), config, 1)


@pytest.mark.parametrize("change", [{"backbone": "vit12_micro_patch8_64"}, {"n_local": 3},
                                    {"precision": "float64"}])
def test_a_rate_of_another_run_is_refused(tmp_path, change):
    config = Config(backbone="mvhybrid_micro_patch8_64")
    log = write_log(tmp_path, replace(config, **change), [(0, 1, 8), (1, 2, 16)])
    with pytest.raises(InputError, match="measure a short run of the planned settings"):
        cost.rate_of_log(log, config, 1)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(InputError, match="the run has not ended"):
        cost.rate_of_log(log, config, 1)


def test_the_command_says_hours_and_cost(capsys):
    assert cost.main([str(PAPER), "--rate", "1000", "--price", "2", "--processes", "24"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "151.4 million images" in said[0]
    assert said[-1].split() == ["24", "1.8", "0.1", "42", "84"]
    assert cost.main([str(PAPER)]) == 0
    one = capsys.readouterr().out.splitlines()[3].split()
    table = read_csv(home() / "benchmarks/dino.csv").set_index("what")
    step = table.loc["mvhybrid_small_patch16_256: whole step", "candidate_s"]  # of 8 images [s]
    by_hand = 98600 * 1536 * step / 8 / 3600
    assert float(one[1].replace(",", "")) == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("words", [["--rate", "0"], ["--rate", "nan"], ["--keeps", "1.5"],
                                   ["--processes", "0"], ["--price", "-1"]])
def test_numbers_that_cannot_be_are_refused(capsys, words):
    assert cost.main([str(PAPER), *words]) == 2
    assert capsys.readouterr().err.startswith("error: command line: --")
