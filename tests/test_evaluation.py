"""What the evaluation adds to the protocols: comparisons, nulls, calibration, remedies."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvhlib import artifacts, notebook
from mvhlib.artifacts import InputError
from mvhlib.cohort import base, splits
from mvhlib.expression import evaluation, scores, site
from mvhlib.expression.protocols import Prediction
from mvhlib.features import Features, from_tiles
from mvhlib.tiles.cut import Tiles


def score_table(means, seed=0, studies=8, noise=0.02):
    """Scores of encoders whose patients share a study's luck."""
    rng = np.random.default_rng(seed)
    rows = []
    for study in range(studies):
        luck = rng.normal(0, 0.1)
        for patient in range(2):
            for encoder, mean in means.items():
                for section in "ab":
                    for gene in "xyz":
                        rows.append({
                            "protocol": "loso", "method": "ridge", "encoder": encoder,
                            "control": "none", "panel": "hvg", "study": f"s{study}",
                            "patient": f"s{study}p{patient}", "gene": gene,
                            "section": f"s{study}p{patient}{section}", "program": "",
                            "pcc": mean + luck + noise * rng.standard_normal()})
    return pd.DataFrame(rows)


def test_the_primary_comparison_stands_alone_and_equals_scipy():
    table = score_table({"a": 0.30, "b": 0.27, "c": 0.10, "d": 0.29})
    found = evaluation.comparisons(table, ["a", "b"])
    assert set(found["unit"]) == {"patient", "study"}
    first = found[(found["family"] == "primary") & (found["unit"] == "study")].iloc[0]
    means = table.groupby(["encoder", "study", "section"])["pcc"].mean().groupby(
        ["encoder", "study"]).mean().unstack("encoder")
    assert first["comparison"] == "a - b" and first["n_units"] == 8
    assert first["difference"] == pytest.approx((means["a"] - means["b"]).mean())
    assert first["p_wilcoxon"] == pytest.approx(stats.wilcoxon(means["a"], means["b"]).pvalue)
    second = found[(found["family"] == "secondary") & (found["unit"] == "study")]
    assert list(second["comparison"]) == ["a - c", "a - d"]
    assert (second["p_wilcoxon_holm"] >= second["p_wilcoxon"]).all()
    assert evaluation.comparisons(table, ["absent", "b"]).empty


def test_correlation_of_two_encoders_is_taken_over_studies():
    table = score_table({"a": 0.3, "b": 0.2}, noise=0.001)
    assert evaluation.encoder_correlation(table, ["a", "b"]) > 0.99
    assert np.isnan(evaluation.encoder_correlation(table, ["a", "z"]))
    assert np.isnan(evaluation.encoder_correlation(score_table({"a": 1, "b": 1}, studies=2),
                                                   ["a", "b"]))


def test_replicates_of_one_patient_are_the_unit_and_further_pairs_a_family():
    table = score_table({"a": 0.3, "b": 0.2, "c": 0.1}, studies=1)
    table = table.assign(protocol="section", patient="p")
    found = evaluation.comparisons(table, ["a", "b"], protocol="section",
                                   planned=[["c", "b"], ["c", "absent"]])
    assert set(found["unit"]) == {"section"} and set(found["n_units"]) == {4}
    assert list(zip(found["family"], found["comparison"], strict=True)) == [
        ("primary", "a - b"), ("secondary", "a - c"), ("planned", "c - b")]
    assert (found["note"] == "no test possible at this n").all()
    assert found["difference"].iloc[2] == pytest.approx(-0.1, abs=0.02)


def test_remarks_name_the_protocol_and_who_saw_the_test():
    summary = pd.DataFrame({"protocol": "section", "encoder": ["a", "b", "b"], "unit": "block",
                            "encoder_saw_test_images": ["no", "yes", "yes"], "n_units": 59})
    assert evaluation.remarks(summary) == (
        "section: spots of one patient, no inference to patients. Pretrained on test images: b.")
    assert "Pretrained" not in evaluation.remarks(summary[:1])
    learned = evaluation.remarks(summary, ["b"])
    assert "Learned from the expression of sections that are tested here" in learned
    assert "Pretrained" not in learned


class People(list):
    """Sections with a manifest, as a `Cohort` has them."""

    manifest = property(lambda self: pd.DataFrame([
        {"section": s.name, "study": s.study, "patient": s.patient, "specimen": s.patient,
         "mpp": 0.5, "has_image": True} for s in self]))


@pytest.fixture(scope="module")
def replicates():
    """Three sections of one patient; three trainings of an encoder, each without one of them."""
    rng = np.random.default_rng(0)
    names, genes = ["C2", "C3", "C4"], [f"g{i}" for i in range(6)]
    weights = rng.standard_normal((5, 6))
    y, x = np.mgrid[:8, :8]
    places = np.c_[x.ravel(), y.ravel()] * 100
    people, looks = People(), {}
    for name in names:
        looks[name] = rng.standard_normal((64, 5))
        counts = rng.poisson(np.exp(1 + 0.4 * looks[name] @ weights)).astype(np.float32)
        adata = anndata.AnnData(counts, obs=pd.DataFrame(index=[f"{name}:{i}" for i in range(64)]),
                                var=pd.DataFrame(index=genes), layers={"counts": counts})
        adata.obsm["spatial"] = places.astype(float)
        people.append(SimpleNamespace(name=name, study="s", patient="C", adata=adata))
    members = {}
    for held in names:
        turn = rng.standard_normal((5, 5))  # every training has coordinates of its own
        members[f"e.no-{held.lower()}"] = evaluation.Member(
            {name: Features((looks[name] @ turn + 0.5 * rng.standard_normal((64, 5))).astype(
                np.float32), places, list(s.adata.obs_names), {})
             for name, s in zip(names, people, strict=True)},
            {"sections": [name for name in names if name != held], "patients": ["C"],
             "studies": ["s"]})
    folds = splits.make(people.manifest, "section")
    panels = pd.concat([pd.DataFrame({"panel": panel, "protocol": "section", "fold": fold,
                                      "rank": range(1, len(chosen) + 1), "gene": chosen})
                        for panel, chosen in (("few", genes[:3]), ("all", genes))
                        for fold in folds["fold"].unique()], ignore_index=True)
    return people, members, folds, panels


def test_each_fold_is_the_one_that_its_own_training_gives(replicates):
    people, members, folds, panels = replicates
    found = evaluation.crossfit(evaluation.Job("section", "e", folds), people, members, panels)
    assert found.members == {f"C.{s}": f"e.no-{s.lower()}" for s in ("C2", "C3", "C4")}
    for fold, name in found.members.items():
        alone = evaluation.evaluate(
            evaluation.Job("section", "e", folds[folds["fold"] == fold]), people,
            members[name].features, panels, pretrained_on=members[name].pretrained_on)
        for table in ("scores", "penalties"):
            whole = getattr(found, table)
            pd.testing.assert_frame_equal(whole[whole["fold"] == fold].reset_index(drop=True),
                                          getattr(alone, table))
        section = fold.split(".")[1]
        np.testing.assert_array_equal(found.predictions[section].predicted,
                                      alone.predictions[section].predicted)
    assert list(found.scores["fold"].unique()) == list(folds["fold"].unique())
    assert set(found.scores["encoder"]) == {"e"}
    assert set(found.scores["encoder_saw_test_images"]) == {"no"}
    assert set(found.summary["panel"]) == {"few", "all"}


def test_trainings_that_are_alike_are_one_encoder(replicates):
    """With equal features every table is that of the plain evaluation, pooled rows included."""
    people, members, folds, panels = replicates
    same = next(iter(members.values())).features
    job = evaluation.Job("section", "e", folds)
    found = evaluation.crossfit(job, people, {name: evaluation.Member(same, m.pretrained_on)
                                              for name, m in members.items()}, panels)
    plain = evaluation.evaluate(job, people, same, panels)
    for table in ("scores", "pooled", "penalties", "summary"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(plain, table), rtol=1e-5)


def test_a_fold_that_every_training_saw_is_left_out_and_refused(replicates, tmp_path):
    people, members, folds, panels = replicates
    fewer = {name: members[name] for name in list(members)[:2]}
    planned, left_out = evaluation.jobs(people.manifest, ["section"], {"e": 0.5, "plain": 0.5},
                                        members={"e": fewer})
    assert [job.encoder for job in planned] == ["plain"]
    assert left_out.iloc[0].tolist() == ["section", "e", "fold C.C4: each of its 2 trainings saw "
                                         "sections ['C4']"]
    with pytest.raises(InputError, match=r"e: members: fold C\.C4"):
        evaluation.crossfit(evaluation.Job("section", "e", folds), people, fewer, panels)
    assert not evaluation.assign(members, folds, "section", people.manifest)[1]
    assert "patients ['C']" in evaluation.assign(members, folds, "patient", people.manifest)[1]
    result = evaluation.crossfit(evaluation.Job("section", "e", folds), people, members, panels,
                                 controls=["none"])
    result.write(tmp_path)
    assert (tmp_path / "members.csv").read_text().splitlines()[1] == "C.C2,e.no-c2"
    assert evaluation.features_of(tmp_path, "C3") == "e.no-c3"
    assert evaluation.features_of(tmp_path / "plain", "C3") == "plain"


def maps(signal, seed=0, side=12):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    coords = np.c_[x.ravel(), y.ravel()] * 100.0
    truth = rng.standard_normal((side**2, 4))
    guess = signal * truth + rng.standard_normal((side**2, 4))
    return Prediction(truth.astype(np.float32), guess.astype(np.float32), list("abcd"),
                      [str(i) for i in range(side**2)], coords, "0")


def result(signal):
    return SimpleNamespace(
        predictions={"s1": maps(signal, 1), "s2": maps(signal, 2)}, method="ridge",
        job=evaluation.Job("loso", "e", pd.DataFrame()))


def test_nulls_hold_noise_and_let_signal_out():
    signal, noise = evaluation.nulls(result(1.0)), evaluation.nulls(result(0.0))
    assert list(signal["null"]) == ["permutation", "random shift"]
    assert (signal["p"] == signal["p_smallest"]).all()
    assert (signal["observed"] > signal["high"]).all()
    assert (noise["p"] > 0.05).all()


def test_calibration_finds_the_slope_and_sorts_the_bins():
    rng = np.random.default_rng(0)
    parts = []
    for offset in (0.0, 5.0):  # an offset of a section is no error of calibration
        predicted = rng.standard_normal((400, 3))
        part = anndata.AnnData(np.zeros((400, 3)))
        part.layers["predicted"] = predicted + offset
        part.layers["measured"] = 0.5 * predicted + 0.01 * rng.standard_normal((400, 3)) + 2
        parts.append(part)
    table = scores.calibration(parts, n_bins=8)
    assert table["slope"].iloc[0] == pytest.approx(0.5, abs=0.01)
    assert table["predicted"].is_monotonic_increasing and len(table) == 8
    assert np.allclose(table["measured"], 0.5 * table["predicted"], atol=0.01)
    with pytest.raises(InputError, match="fewer bins"):
        scores.calibration([parts[0][:5]], n_bins=8)


def test_remedies_are_found_by_their_slug():
    table = score_table({"a": 0.30, "a+centred": 0.35, "a-macenko": 0.28, "b": 0.2})
    found = site.all_remedies(table)
    assert set(zip(found["encoder"], found["remedy"], strict=True)) == {
        ("a", "a+centred"), ("a", "a-macenko")}
    gain = found.set_index("remedy")["difference"]
    assert gain["a+centred"] == pytest.approx(0.05, abs=0.01)
    assert gain["a-macenko"] == pytest.approx(-0.02, abs=0.01)
    assert site.all_remedies(score_table({"b": 0.2})).empty


def test_labels_come_from_the_pathologist_or_the_truth(tmp_path):
    names = ["x", "y"]

    def section(name, **obs):
        adata = anndata.AnnData(np.zeros((2, 1)), obs=pd.DataFrame(obs, index=names))
        return SimpleNamespace(name=name, adata=adata)

    truth = anndata.AnnData(np.zeros((2, 1)), obs=pd.DataFrame(
        {"tissue_class": ["tumour", "stroma"]}, index=names),
        var=pd.DataFrame({"effect": [-1.0]}, index=["g"]))
    truth.write_h5ad(tmp_path / "made.h5ad")
    found = base.spot_labels([section("made"), section("read", label=["cancer", None]),
                              section("bare")], tmp_path)
    assert list(found) == ["made", "read"]
    assert list(found["made"]) == ["tumour", "stroma"] and found["read"]["x"] == "cancer"
    assert base.truth_genes(tmp_path).at["g", "effect"] == -1.0
    assert base.truth_genes(tmp_path / "none").empty


def test_features_of_a_function_keep_names_and_places():
    tiles = Tiles(np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
                  np.array([[0, 0], [4, 0]]), np.zeros(2, np.float32), 4, 2.0, 0.5, 0.5, ["u", "v"])

    def brightness(images):
        return images.mean(axis=(1, 2))

    found = from_tiles(tiles, brightness)
    assert found.barcodes == ["u", "v"] and found.attrs["encoder"] == "brightness"
    assert np.allclose(found.features, tiles.img.mean(axis=(1, 2)))


@pytest.mark.parametrize("primary", [[], ["a"]])
def test_without_a_comparison_named_there_is_none(primary):
    table = score_table({"a": 0.3})
    found = evaluation.comparisons(table, primary)
    named = evaluation.comparisons(score_table({"a": 0.3, "b": 0.2}), ["a", "b"])
    assert found.empty and list(found.columns) == list(named.columns)
    assert np.isnan(evaluation.encoder_correlation(table, primary))


@pytest.mark.parametrize("mean, half, n_units, verdict", [
    (0.01, 0.001, 16, "none"), (0.058, 0.17, 2, "open"), (0.2, 0.02, 16, "leak"),
    (0.2, 0.19, 16, "open"), (0.2, np.nan, 1, "open")])
def test_only_an_interval_without_zero_proves_a_leak(mean, half, n_units, verdict):
    row = dict.fromkeys(["protocol", "encoder", "panel"], "x") | {
        "unit": "patient", "control": "permuted", "metric": "pcc", "program": "all",
        "mean": mean, "ci_low": mean - half, "ci_high": mean + half, "n_units": n_units}
    found = evaluation.leaks(pd.DataFrame([row, row | {"control": "none", "mean": 0.9}]))
    assert list(found["verdict"]) == [verdict]
    if n_units == 16:  # half of a t interval of 99.9 % over half of one of 95 %
        wider = stats.t.ppf(0.9995, 15) / stats.t.ppf(0.975, 15)
        assert found["high"].item() == pytest.approx(mean + wider * half)


def test_scores_of_05_are_read_together_and_their_absence_is_no_error(tmp_path):
    run = notebook.Run("20_site", {"profile": "test", "out": str(tmp_path), "data": "", "seed": 0,
                                   "device": "cpu"})
    table = score_table({"a": 0.3}, studies=2)
    path = run.path("expression", "loso", "ridge", "a", "scores.csv")
    artifacts.write_csv(path, table)
    found = evaluation.read_scores(run, ["loso", "random10_section"], "ridge", ["a", "b"])
    np.testing.assert_allclose(found["pcc"], table["pcc"], rtol=1e-8)
    assert [name.endswith("a/scores.csv") for name in run.inputs] == [True]
    assert evaluation.read_scores(run, ["loso"], "ridge", ["b"]).empty


def test_what_05_left_out_is_shown_by_another_protocol_and_said(tmp_path):
    with pytest.raises(InputError, match="run notebooks/05_expression"):
        evaluation.scored(tmp_path, "loso", "ridge", "mine")
    evaluation.write_left_out(tmp_path, pd.DataFrame(
        [("loso", "all", "one study")], columns=evaluation.LEFT_OUT_COLUMNS))
    artifacts.write_csv(tmp_path / "transfer" / "ridge" / "mine" / "scores.csv",
                        pd.DataFrame({"pcc": [0.1]}))  # of 15_transfer
    protocol, encoder, why = evaluation.scored(tmp_path, "loso", "ridge", "mine")
    assert (protocol, encoder) == ("", "") and "one study" in why
    for protocol in ("random10_section", "patient"):
        artifacts.write_csv(tmp_path / protocol / "ridge" / "mine" / "scores.csv",
                            pd.DataFrame({"pcc": [0.1]}))
    assert evaluation.scored(tmp_path, "patient", "ridge", "mine") == ("patient", "mine", "")
    protocol, encoder, why = evaluation.scored(tmp_path, "loso", "ridge", "handmade")
    assert (protocol, encoder) == ("patient", "mine")
    assert "handmade was not scored" in why and "loso was left out" in why and "one study" in why
    artifacts.write_csv(tmp_path / "patient" / "ridge" / "other" / "scores.csv",
                        pd.DataFrame({"pcc": [0.1]}))
    with pytest.raises(InputError, match="choose one of .'mine', 'other'"):
        evaluation.scored(tmp_path, "loso", "ridge", "handmade")


def test_a_cohort_without_images_says_so():
    assert evaluation.nobody_imaged(pd.DataFrame({"has_image": ["False", False]}))
    assert evaluation.nobody_imaged(pd.DataFrame({"has_image": [True, False]})) == ""
