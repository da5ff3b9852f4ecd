"""What the notebooks ask of methods: variants, arms, pairs and folds that the library lines up."""

import inspect
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas as pd

from mvhlib.downstream import probe, survival
from mvhlib.expression import cmrcnet, evaluation, mmap


def folds():
    rows = [(fold, f"{patient}{number}", "test" if patient == fold else "train")
            for fold in "abc" for patient in "abc" for number in (1, 2)]
    return pd.DataFrame(rows, columns=["fold", "section", "role"])


def test_fewer_folds_and_sections():
    manifest = pd.DataFrame({"section": [f"{p}{n}" for p in "abc" for n in (1, 2)],
                             "patient": list("aabbcc")})
    job = evaluation.Job("loso", "e", folds())
    assert evaluation.fewer(job).folds.equals(job.folds)
    few = evaluation.fewer(job, 2, manifest, 1).folds
    assert list(few["fold"].unique()) == ["a", "b"]
    assert set(few["section"]) == {"a1", "b1", "c1"}
    kept = evaluation.fewer(evaluation.Job("section", "e", folds()), 1, manifest, 1).folds
    assert set(kept["fold"]) == {"a"} and len(kept) == 6


def test_variants_of_mmap_change_its_settings_and_claims_name_them():
    tried = mmap.variants(list(mmap.QUESTIONS), [8, 16])
    known = set(inspect.signature(mmap.MMAP.__init__).parameters)
    assert all(set(changes) <= known for _, changes in tried.values())
    assert {arm for pair in mmap.authors_claims([8, 16]).values() for arm in pair} <= set(tried)
    assert list(mmap.variants([], [8])) == ["full", "no prototypes"]


def test_variants_are_compared_with_the_reference_of_their_question():
    rng = np.random.default_rng(0)
    table = pd.DataFrame([{"variant": name, "patient": patient, "section": patient, "gene": "g",
                           "pcc": rng.normal() + (name == "K 8")}
                          for name in ("full", "no prototypes", "K 8") for patient in "abcd"])
    found = mmap.compare_variants(table, mmap.variants(["prototypes"], [8]), ["prototypes"],
                                  "patient").set_index("variant")
    wide = table.pivot(index="patient", columns="variant", values="pcc")
    for name in ("K 8", "no prototypes"):
        assert np.isclose(found.loc[name, "difference"], (wide[name] - wide["full"]).mean())
    assert mmap.compare_variants(table, {}, [], "patient").empty


def test_arms_of_cmrcnet():
    known = {field.name for field in fields(cmrcnet.Settings)}
    assert all(set(changes) <= known for changes in cmrcnet.TERMS.values())
    assert cmrcnet.neighbours_to_try([10, 50, 500], 100, 50) == [10, 50]
    assert cmrcnet.neighbours_to_try([500], 100, 50) == [50]
    assert cmrcnet.neighbours_to_try([500], 20, 50) == [20]
    scores = {10: [0.1, 0.2, 0.3], 50: [0.3, 0.3, 0.6]}
    swept = {k: SimpleNamespace(unit_means=lambda unit, over="mean", own=own: pd.Series(own))
             for k, own in scores.items()}
    found = cmrcnet.compare_neighbours(swept, 500, "patient")
    assert found.reference == "k 10" and list(found.gaps["arm"]) == ["k 50", "k 50"]
    np.testing.assert_allclose(found.gaps["mean"], 0.2)
    assert [row["claim"] for row in found.judged] == ["median: k 50 beats k 10"]


def test_survival_models_and_pairs():
    embeddings = {"mean": 1, "histogram": 2, "mixture": 3}
    models = survival.models_of(("age", "stage"), embeddings, ["e+scaled"], ["e"],
                                true_hazard=True)
    there = {(model.name, model.encoder) for model in models}
    assert len(there) == len(models) == 8
    assert models[0].covariates == ("stage",) and ("mixture", "e") in there
    pairs = survival.pairs_of(("age", "stage"), ["e+scaled"], ["e"])
    assert {side for pair in pairs for side in pair} <= there
    assert (("mixture", "e+scaled"), ("mixture", "e")) in pairs
    assert survival.models_of((), embeddings, [], []) == survival.pairs_of((), [], []) == []


def test_a_patient_on_both_sides_is_counted():
    result = SimpleNamespace(fold=[np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])])
    compared = SimpleNamespace(results={("logistic", "grouped"): result,
                                        ("logistic", "random"): result})
    assert probe.shared_patients(compared, ["a", "a", "b", "b"]) == 2
    assert probe.shared_patients(compared, ["a", "b", "c", "d"]) == 0
