"""Read-outs: names, columns, and the one that the inner folds prefer."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import cohort, features, read_outs, workflow
from mvhlib.artifacts import InputError
from mvhlib.backbones import create_model
from mvhlib.expression import chosen, evaluation
from mvhlib.features import Features, read_features, write_features, write_read_out


@pytest.mark.parametrize("read_out", read_outs.READ_OUTS)
def test_columns_of_all_are_the_read_out_of_the_network(read_out, tmp_path):
    """What is cut out of features that hold all equals what the network itself gives."""
    import torch

    images = torch.from_numpy(np.random.default_rng(0).random((3, 3, 64, 64), np.float32))
    with torch.inference_mode():
        whole, alone = (create_model("vit12_micro_patch8_64", pool=pool).eval()(images).numpy()
                        for pool in (read_outs.ALL, read_out))
    np.testing.assert_array_equal(whole[:, read_outs.columns(read_out, whole.shape[1])], alone)
    names = ["a", "b", "c"]
    write_features(tmp_path / "all" / "s.h5", Features(whole, np.zeros((3, 2), int), names))
    for turn in range(2):  # the second finds what the first wrote
        made = write_read_out(tmp_path / "all", tmp_path / "one", read_out, ["s"])
        assert made[0]["skipped"] == bool(turn) and made[0]["width"] == alone.shape[1]
    found = read_features(tmp_path / "one" / "s.h5")
    np.testing.assert_array_equal(found.features, alone)
    assert found.barcodes == names and found.attrs["encoder"] == "one"


def test_names_keep_the_seed_at_the_end():
    assert read_outs.slug("a-dino.s12", "mean+std") == "a-dino.mean-std.s12"
    assert read_outs.slug("a", "cls") == "a.cls"
    with pytest.raises(InputError, match="width"):
        read_outs.columns("cls", 100)


PLAN = """
encoders:
  one: {source: vit12_micro_patch8_64, weights: random, seeds: 2, read_outs: [cls, mean+std]}
  other: {source: handmade}
"""


def test_the_plan_scores_each_read_out(tmp_path):
    (tmp_path / "workflow.yaml").write_text(PLAN)
    plan = workflow.read_plan(tmp_path)
    assert list(plan["encoders"]) == ["one.s0", "one.s1", "other"]
    assert plan["scored"] == ["one.cls.s0", "one.mean-std.s0", "one.cls.s1", "one.mean-std.s1",
                              "other"]
    assert plan["read_outs"]["one.s1"] == ["one.cls.s1", "one.mean-std.s1"]


@pytest.mark.parametrize(("written", "field"), [
    ("read_outs: [cls, max]", "read_outs"), ("read_outs: [cls, cls]", "read_outs"),
    ("read_outs: [cls], options: {pool: mean}", "given together with"),
    ("read_outs: [cls]}\n  one.cls.s0: {source: handmade", "names two encoders")])
def test_what_cannot_be_read_out_is_refused(written, field, tmp_path):
    (tmp_path / "workflow.yaml").write_text(PLAN.replace("read_outs: [cls, mean+std]", written))
    with pytest.raises(InputError, match=field):
        workflow.read_plan(tmp_path)


def scores_of(folder, protocol, **sizes):
    """Two read-outs, one far noisier than the other, and what came of them."""
    people = cohort.read("synthetic", folder, spots_per_side=8, tile_px=36, n_genes_per_program=2,
                         seed=0, **sizes)
    rng = np.random.default_rng(1)
    embedded = {"a.cls": {}, "a.mean": {}}
    for section in people:
        names = list(section.adata.obs_names)
        truth = np.log1p(np.asarray(section.adata.layers["counts"].todense(), float))[:, :4]
        for name, noise in (("a.cls", 3.0), ("a.mean", 0.1)):
            values = truth + noise * rng.standard_normal(truth.shape)
            embedded[name][section.name] = Features(
                values.astype(np.float32), np.zeros((len(names), 2), int), names)
    panels = evaluation.choose_panels(people, [protocol], ["hvg"], 10)
    jobs, _ = evaluation.jobs(people.manifest, [protocol], dict.fromkeys(embedded, None))
    return [evaluation.evaluate(job, people, embedded[job.encoder], panels, unit="study")
            for job in jobs]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return scores_of(tmp_path_factory.mktemp("cohort"), "loso", n_studies=4, patients_per_study=1,
                     sections_per_patient=1)


def test_the_chosen_of_one_patient_has_its_interval_by_blocks(tmp_path):
    scored = scores_of(tmp_path, "section", n_studies=1, patients_per_study=1,
                       sections_per_patient=3)
    (made,), choices = chosen.choose(scored, {"a": ["a.cls", "a.mean"]}, unit="study")
    assert set(choices["chosen"]) == {"a.mean"}
    same = next(one for one in scored if one.job.encoder == "a.mean").summary
    plain = same[same["control"] == "none"].drop(columns="encoder").reset_index(drop=True)
    found = made.summary[made.summary["control"] == "none"].drop(columns="encoder")
    pd.testing.assert_frame_equal(found.reset_index(drop=True), plain)
    assert (plain["unit"].iloc[0], plain["ci_low"].notna().iloc[0]) == ("block", True)


def test_the_best_on_inner_folds_is_taken_fold_by_fold(scored):
    made, choices = chosen.choose(scored, {"a": ["a.cls", "a.mean"]}, unit="study")
    inner = pd.concat([one.penalties for one in scored]).query("control == 'none'")
    expected = inner.set_index("encoder").groupby("fold")["best"].idxmax()
    assert choices.set_index("fold")["chosen"].to_dict() == expected.to_dict()
    assert (choices["inner"] >= choices["second"]).all()
    result, = made
    assert result.job.encoder == "a.chosen"
    for fold, name in expected.items():
        tables = [next(one for one in scored if one.job.encoder == name).scores, result.scores]
        expected_rows, found = (table.loc[table["fold"] == fold, "pcc"].to_numpy()
                                for table in tables)
        np.testing.assert_array_equal(found, expected_rows)
    assert set(result.predictions) == set(result.scores["section"])


def test_the_folder_says_how_it_was_read(tmp_path):
    (tmp_path / "encoder.json").write_text('{"pool": "cls+mean+std"}')
    assert features.read_out(tmp_path) == read_outs.ALL
