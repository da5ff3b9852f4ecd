"""Variants with seeds: the two intervals by hand, and what may be called a finding."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvhlib.artifacts import InputError, write_csv
from mvhlib.expression import variants


def table(gaps, n_seeds=8, n_units=6, seed_sd=0.01, unit_sd=0.01, seed=0):
    """Values of variants whose distance from 0.2 is `gaps`, two sections per patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for variant, gap in gaps.items():
        own_seed, own_unit = (rng.normal(0, sd, n) for sd, n in ((seed_sd, n_seeds),
                                                                  (unit_sd, n_units)))
        for number in range(n_seeds):
            for unit in range(n_units):
                for section in range(2):
                    rows.append({"protocol": "loso", "measure": "all", "variant": variant,
                                 "seed": number, "patient": f"p{unit}", "study": f"s{unit // 2}",
                                 "section": f"p{unit}{section}",
                                 "value": 0.2 + gap + own_seed[number] + own_unit[unit]
                                 + 0.001 * section})
    return pd.DataFrame(rows)


def named(variant, reference, claimed="higher", protocol="loso", measure="all"):
    """A comparison that was named in advance."""
    return dict(zip(variants.PRIMARY, (variant, reference, protocol, measure, claimed),
                    strict=True))


def test_slugs_are_split_into_variant_and_seed():
    assert variants.split_slug("vit12-dino.s11") == ("vit12-dino", 11)
    assert variants.split_slug("vit12-dino") == ("vit12-dino", 0)
    assert variants.split_slug("handmade-3.2um") == ("handmade-3.2um", 0)


def test_both_intervals_by_hand():
    scores = table({"a": 0.05, "b": 0.0})
    row = variants.compare(scores, [["a", "b"]], primary=[named("a", "b")]).iloc[0]
    cube = scores.groupby(["variant", "seed", "patient"])["value"].mean()
    gap = (cube["a"] - cube["b"]).unstack("patient")
    for part, low, high in ((gap.mean(axis=1), "seed_low", "seed_high"),
                            (gap.mean(axis=0), "unit_low", "unit_high")):
        bounds = stats.t.interval(0.95, len(part) - 1, part.mean(), stats.sem(part))
        assert (row[low], row[high]) == pytest.approx(bounds)
    assert row["difference"] == pytest.approx(gap.to_numpy().mean())
    half = np.hypot(row["seed_high"] - row["seed_low"], row["unit_high"] - row["unit_low"]) / 2
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        (row["difference"] - half, row["difference"] + half))
    assert row["p_seeds"] == pytest.approx(stats.wilcoxon(gap.mean(axis=1)).pvalue)
    assert row["n_seeds"] == 8 and row["n_units"] == 6 and row["reading"] == "higher"


def test_the_drop_is_taken_section_by_section_and_compared_like_a_score():
    random, loso = table({"a": 0.05, "b": 0.0}, seed=1), table({"a": 0.03, "b": -0.04}, seed=2)
    both = pd.concat([random.assign(protocol="random10_section"), loso])
    found = variants.drops(both)
    keys = ["variant", "seed", "section"]
    expected = random.set_index(keys)["value"] - loso.set_index(keys)["value"]
    assert found.set_index(keys)["value"].to_dict() == pytest.approx(expected.to_dict())
    assert set(found["protocol"]) == {"drop"} and list(found.columns) == list(both.columns)
    row = variants.compare(found, [["a", "b"]]).iloc[0]
    means = expected.groupby("variant").mean()
    assert row["difference"] == pytest.approx(means["a"] - means["b"])
    assert variants.drops(loso).empty


@pytest.mark.parametrize(("options", "advance", "reading"), [
    ({}, 0, "higher, exploratory"), ({"n_seeds": 3}, 1, "higher, exploratory"),
    ({"n_seeds": 1}, 1, "one seed, no claim"), ({"unit_sd": 0.3}, 1, "no difference shown"),
    ({"seed_sd": 0.3}, 1, "no difference shown")])
def test_a_finding_needs_seeds_units_and_to_be_named_in_advance(options, advance, reading):
    scores = table({"a": 0.05, "b": 0.0}, **options)
    primary = [named("a", "b")] * advance
    assert variants.compare(scores, [["a", "b"]],
                            primary=primary)["reading"].iloc[0] == reading


def test_holm_covers_the_pairs_named_in_advance_only():
    scores = table({"a": 0.05, "b": 0.0, "c": 0.01})
    found = variants.compare(scores, [["a", "b"], ["c", "b"], ["a", "c"]],
                             primary=[named("a", "b"), named("c", "b", "lower")])
    assert found["p_holm"].notna().tolist() == [True, True, False]
    assert found["p_holm"].iloc[0] == pytest.approx(min(1, 2 * found["p_seeds"].iloc[0]))


def test_a_reference_without_seeds_meets_every_seed_and_absent_ones_are_left_out():
    scores = pd.concat([table({"a": 0.05}), table({"h": 0.0}, n_seeds=1)])
    found = variants.compare(scores, [["a", "h"], ["a", "absent"]])
    assert len(found) == 1 and found["n_seeds"].iloc[0] == 8


@pytest.mark.parametrize(("gap", "claimed", "unmet", "verdict"), [
    (0.05, "higher", {}, "as claimed"), (0.05, "lower", {}, "the other way"),
    (-0.05, "lower", {"c": ["never"]}, "as claimed"), (0.0, "higher", {}, "undecided"),
    (0.05, "higher", {"b": ["no state"]}, "precondition not met")])
def test_a_comparison_named_in_advance_gets_a_verdict(gap, claimed, unmet, verdict):
    primary = [named("a", "b", claimed), named("a", "absent")]
    scores = table({"a": gap, "b": 0.0}, unit_sd=0.001, seed_sd=0.005)
    found = variants.compare(scores, [["a", "b"]], primary=primary, unmet=unmet)
    row, = variants.judge(found, primary).to_dict("records")
    assert row["verdict"] == verdict and row["difference"] == found["difference"].iloc[0]
    half = (row["ci_high"] - row["ci_low"]) / 2
    assert row["why"] == {"undecided": f"a difference of {half:.3f} could have been seen",
                          "precondition not met": "b: no state"}.get(verdict, "")
    few = variants.compare(table({"a": gap, "b": 0.0}, n_seeds=3), [["a", "b"]], primary=primary)
    assert variants.judge(few, primary)["why"].iloc[0].startswith("exploratory, 3 seeds")


def test_the_effect_of_training_is_paired_with_the_twin_of_the_same_seed():
    scores = pd.concat([table({"a-dino.cls": 0.05}, seed=1), table({"a-random.cls": 0.0}, seed=2),
                        table({"b": 0.0})])
    found = variants.effects(scores, {"a-dino": "a-random"})
    keys = ["seed", "section"]
    own, twin = (scores[scores["variant"] == name].set_index(keys)["value"]
                 for name in ("a-dino.cls", "a-random.cls"))
    assert found.set_index(keys)["value"].to_dict() == pytest.approx((own - twin).to_dict())
    assert set(found["variant"]) == {"a-dino.cls"} and set(found["protocol"]) == {"effect"}
    assert variants.effects(scores, {}).empty


@pytest.mark.parametrize(("given", "said"), [
    ({}, "0 of 2 pairs of variants differ beyond what another seed and another patient would move "
         "(on an unseen study, mean Pearson r of all genes, 8 seeds and 6"),
    ({"gap": 0.05}, "of all genes, 8 seeds and 6 patients): A less B 0.0"),
    ({"n_seeds": 1}, "(on an unseen study, mean Pearson r of all genes, 6 patients); one seed "
                     "makes no claim."),
    ({"primary": [named("a", "b")], "gap": 0.05},
     "Of 1 comparison named in advance, over 8 seeds and 6 patients: A less B, on an unseen study, "
     "all genes: 0.0")])
def test_the_answer_says_what_was_compared(given, said, monkeypatch):
    monkeypatch.setattr(variants.plots, "label", str.upper)
    given = {"gap": 0.0, "n_seeds": 8, "primary": []} | given
    scores = table({"a": given["gap"], "b": 0.0, "c": 0.0}, n_seeds=given["n_seeds"])
    scores.loc[scores["variant"] == "c", "value"] = scores.loc[
        scores["variant"] == "b", "value"].to_numpy()
    found = variants.compare(scores, [["a", "b"], ["c", "b"]], primary=given["primary"])
    judged = variants.judge(found, given["primary"])
    assert said in variants.answer(found, judged, "loso", "all")


def test_no_pair_is_an_answer_too():
    found = variants.compare(table({"a": 0.0}), [])
    assert variants.answer(found, variants.judge(found, []), "drop", "all") == (
        "No pair of variants was compared in what an unseen study costs.")


def test_spread_separates_seeds_from_units():
    found = variants.spread(table({"a": 0.0}, seed_sd=0.0, unit_sd=0.05)).iloc[0]
    assert found["sd_seeds"] == pytest.approx(0, abs=1e-12) and found["sd_units"] > 0.02
    found = variants.spread(table({"a": 0.0}, seed_sd=0.05, unit_sd=0.0)).iloc[0]
    assert found["sd_units"] == pytest.approx(0, abs=1e-12) and found["sd_seeds"] > 0.02


def test_signal_and_slow_less_fine_follow_from_the_programs(tmp_path):
    values = {"slow_along": 0.5, "slow_across": 0.3, "fine_along": 0.2, "fine_across": 0.0,
              "gland": 0.9, "noise": 0.0, "artefact": 0.4, "study_offset": -0.1}
    frame = pd.DataFrame({"control": "none", "panel": "hvg", "study": "s", "patient": "p",
                          "section": "x", "program": values.keys(), "pcc": values.values()})
    write_csv(tmp_path / "loso/ridge/a/scores.csv", frame)
    found = variants.read_scores(tmp_path, ["loso"], ["a"]).set_index("measure")["value"]
    assert found[variants.SIGNAL] == pytest.approx((0.5 + 0.3 + 0.2 + 0 + 0.9) / 5)
    assert found[variants.SLOW_LESS_FINE] == pytest.approx(0.3)


def test_scores_are_read_per_program_and_a_missing_encoder_is_named(tmp_path):
    frame = pd.DataFrame({"control": "none", "panel": "hvg", "study": "s", "patient": "p",
                          "section": "x", "program": ["noise", "noise", "slow"],
                          "pcc": [0.0, 0.2, 0.7]})
    write_csv(tmp_path / "loso/ridge/a.s3/scores.csv", frame)
    found = variants.read_scores(tmp_path, ["loso"], ["a.s3"]).set_index("measure")
    assert found["value"].to_dict() == pytest.approx(
        {"all": 0.3, "noise": 0.1, "slow": 0.7, variants.SIGNAL: 0.7})
    assert found["seed"].unique() == [3] and found["variant"].unique() == ["a"]
    with pytest.raises(InputError, match="05_expression"):
        variants.read_scores(tmp_path, ["loso"], ["b"])


def test_costs_count_parameters_and_flops(tmp_path):
    from mvhlib.artifacts import write_json
    from mvhlib.backbones import create_model

    model = create_model("vit12_micro_patch8_64")
    model.save_pretrained(tmp_path / "v.s0")
    recipe = {"global_px": 64, "local_px": 32, "n_local": 4, "batch": 2, "steps": 5}
    write_json(tmp_path / "v.s0" / "recipe.json", {"settings": recipe})
    table = variants.costs(tmp_path, ["v.s0", "v.s1", "v.mean-std.s0", "v.chosen.s0", "w.cls.s0",
                                      "handmade"])
    assert list(table["variant"]) == ["v", "v.mean-std", "v.chosen"]
    assert len(table.drop(columns="variant").drop_duplicates()) == 1
    row = table.iloc[0]
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["tflops_training"] == pytest.approx(3 * row["gflops_per_tile"] * 10 / 1000)
    # The MLPs alone: 3 blocks, 2 layers of 96 x 384, two FLOPs per weight and token.
    tokens = 2 * 65 + 4 * 17
    assert row["gflops_per_tile"] > 3 * 2 * 96 * 384 * 2 * tokens / 1e9


def test_preconditions_are_named(tmp_path):
    """No state, hardly trained, and not apart from its twin: each is said, and no other."""
    scores = pd.concat([table({"a": 0.1, "b": 0.0, "v": 0.1, "w": 0.0}, unit_sd=0.002,
                              seed_sd=0.002)])
    twins = {"a": "b", "v": "w", "b": "w"}
    scores = pd.concat([scores, variants.effects(scores, twins)])
    states = pd.DataFrame([(f"a.s{seed}", block, share) for seed in range(8)
                           for block, share in ((0, 0.0004), (1, 0.5), (2, 0.01))],
                          columns=["encoder", "block", "share"])
    initial = {f"{name}.s{seed}": left for name, left in (("a", 0.01), ("b", 0.35), ("v", 0.0))
               for seed in range(8)}
    found = variants.preconditions(scores, states, initial, twins).set_index("variant")
    assert found.loc["a", "state_share"] == pytest.approx(0.01)  # the median of the layers
    assert found.loc["a", "unmet"] == "states add 1.00% to the skip path, less than 5%"
    assert found.loc["v", "unmet"] == "" and np.isnan(found.loc["v", "state_share"])
    assert found.loc["b", "unmet"] == ("35% of its weights are initial, more than 5%; "
                                       "not apart from its untrained twin")
