"""Sentences that are read off tables: true for any run, with numbers that stand in a row."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import answers
from mvhlib.dino import watch
from mvhlib.downstream import findings as downstream
from mvhlib.expression import embeddings, evaluation, findings
from mvhlib.expression.protocols import SUMMARY_COLUMNS
from mvhlib.features import Features


def said(*texts):
    """The sentences, which an answer accepts: no nan, no inf, not empty."""
    for text in texts:
        answers.Answer("05_a", "", text, "x")
    return " ".join(texts)


def summary(*rows):
    """Rows of 05's summary from (protocol, encoder, control, mean, half-width, saw)."""
    return pd.DataFrame([{
        "protocol": protocol, "method": "ridge", "encoder": encoder, "control": control,
        "encoder_saw_test_images": saw, "panel": "hvg", "program": "all", "metric": "pcc",
        "n_genes": 132, "n_nan": 0, "unit": "patient", "n_units": 16 if half == half else 1,
        "mean": mean, "ci_low": mean - half, "ci_high": mean + half}
        for protocol, encoder, control, mean, half, saw in rows], columns=list(SUMMARY_COLUMNS))


NO_DROPS = evaluation.drops(pd.DataFrame(columns=["control", "protocol"]))
NO_TESTS = pd.DataFrame(columns=["family"])
THREE = [("loso", "handmade", "none", 0.32, 0.03, "no"),
         ("loso", "handmade", "permuted", 0.001, 0.01, "no"),
         ("loso", "vit12-dino", "none", 0.17, 0.02, "no"),
         ("loso", "vit12-mmap", "none", 0.60, 0.02, "yes")]


def test_the_best_encoder_is_one_that_did_not_learn_from_the_test():
    found, limits = findings.prediction(summary(*THREE), NO_DROPS, NO_TESTS, "loso",
                                        ["vit12-mmap"])
    text = said(found, limits)
    assert "hand-made predicts expression on a study that no model saw with a mean Pearson r of " \
           "0.32 [0.29, 0.35] over 16 patients and 132 genes, the best of 2 encoders" in text
    assert "permuted within sections, 0.00 [-0.01, 0.01]" in text
    assert "What an unseen study costs was not measured" in text
    assert "Learned from the expression of sections that are tested here" in limits
    assert "flatters" in limits


def test_what_an_unseen_study_costs_and_the_comparison_named_in_advance():
    drops = pd.DataFrame([("ridge", "handmade", "hvg", "all", 0.37, 0.32, 0.05, 0.03, 0.07, 16,
                           0.13)], columns=list(NO_DROPS))
    row = {"family": "primary", "comparison": "mvhybrid-dino - vit12-dino", "difference": -0.0123,
           "ci_low": -0.02, "ci_high": 0.004, "note": ""}
    tests = pd.DataFrame([row | {"unit": "patient", "n_units": 16, "p_wilcoxon_holm": 0.01},
                          row | {"unit": "study", "n_units": 8, "p_wilcoxon_holm": np.nan,
                                 "note": "no test possible at this n"}])
    one = findings.prediction(summary(*THREE), drops, tests.assign(n_units=[16, 1]), "loso")[0]
    assert "over 16 patients (signed-rank p 0.01)" in one  # one study has no interval
    found, _ = findings.prediction(summary(*THREE), drops, tests, "loso")
    assert "Under random folds it reaches 0.37: the unseen study costs 0.05 [0.03, 0.07]." in found
    assert ("MVHybrid-dino less ViT12-dino, gives -0.012 [-0.020, 0.004] over 8 studies (no test "
            "possible at this n)") in found


def test_one_encoder_of_one_patient_without_a_control():
    only = summary(("section", "handmade", "none", 0.1, np.nan, "no"))
    found, limits = findings.prediction(only, NO_DROPS, NO_TESTS, "section")
    text = said(found, limits)
    assert "0.10 (no interval) over 1 patient" in text and "no permuted control" in text
    assert "best" not in text and "One patient says nothing of another." in limits


def test_studies_and_genes_with_a_cause_are_said_apart():
    scores = pd.DataFrame([(f"S{s}", f"S{s}P{p}", f"S{s}P{p}", program, f"{program}-1", r + s / 50)
                           for s in range(3) for p in range(2)
                           for program, r in (("tumour", 0.6), ("noise", 0.0))],
                          columns=["study", "patient", "section", "program", "gene", "pcc"])
    scores = scores.assign(encoder="handmade", protocol="loso", panel="hvg", control="none")
    found, _ = findings.prediction(summary(*THREE), NO_DROPS, NO_TESTS, "loso", scores=scores)
    assert "Over 3 studies, the safer unit, the interval is [0.27, 0.37]." in found
    assert "Over the 1 gene that follow something in the tissue it is 0.62 [0.60, 0.64]." in found
    real = scores.assign(program=np.nan)
    found, _ = findings.prediction(summary(*THREE), NO_DROPS, NO_TESTS, "loso", scores=real)
    assert "safer unit" in found and "follow something" not in found


def test_nothing_that_varies_is_said_in_words():
    empty = summary(("loso", "handmade", "none", np.nan, np.nan, "no"))
    assert "no correlation" in said(*findings.prediction(empty, NO_DROPS, NO_TESTS, "loso"))


def test_genes_far_below_their_ceiling_are_named_by_group():
    genes = pd.DataFrame({"group": ["noise", "noise", "tissue class"], "pcc": [0.0, 0.02, 0.8],
                          "ceiling": [0.86, 0.88, 0.9]})
    text = said(findings.far_below_ceiling(genes))
    assert text.index("noise by 0.86") < text.index("tissue class by 0.10")
    assert findings.far_below_ceiling(genes.assign(pcc=np.nan)) == "No gene has a ceiling."


def test_genes_are_said_by_quartiles_with_their_ceiling_and_slope():
    per_gene = pd.DataFrame({"gene": list("abcde"), "pcc": [0.0, 0.1, 0.2, 0.3, 0.4],
                             "ceiling": 0.5, "group": "tissue class"})
    limit = pd.DataFrame({"gene": list("abcde"), "ceiling_counting": 0.8, "ceiling_true": 0.7})
    bins = pd.DataFrame({"slope": [0.9]})
    found, limits = findings.genes(per_gene, limit, bins, "handmade", "loso")
    assert found.startswith("hand-made predicts the median gene on a study that no model saw with "
                            "r 0.20 (quartiles 0.10 and 0.30 of 5 genes)")
    assert "by 0.30 (r 0.20, ceiling 0.50)" in found and "a measured one of 0.90" in found
    assert "synthetic rates" in limits
    flat, _ = findings.genes(per_gene.assign(pcc=np.nan), limit, bins, "handmade", "loso")
    assert "no correlation for any gene" in flat
    _, real = findings.genes(per_gene, limit.drop(columns="ceiling_true"),
                             bins.assign(slope=np.nan), "handmade", "loso")
    assert "known on synthetic tissue alone" in real


def test_a_program_below_zero_is_turned_round():
    rows = pd.DataFrame({"program": ["artefact", "artefact", "tumour"], "mean": [-0.3, -0.1, 0.6],
                         "ci_low": [-0.4, -0.3, 0.5], "ci_high": [-0.2, 0.1, 0.7]})
    assert "artefact by 1 encoder, at worst r -0.30" in findings.turned(rows)
    assert "No program" in findings.turned(rows[1:])


PLACES = pd.DataFrame({
    "source": ["measured", "predicted", "colour"] * 3, "metric": ["ari"] * 3 + ["nmi"] * 3
    + ["auroc"] * 3, "mean": [0.4, 0.35, 0.1, 0.5, 0.55, 0.54, 0.9, 0.7, 0.68]})


def test_a_prediction_is_nearer_to_what_it_scores_like():
    near = findings.nearer(PLACES).set_index("metric")["nearer"]
    assert dict(near) == {"ari": "measured", "nmi": "measured", "auroc": "colour"}
    assert findings.nearer(PLACES[PLACES["source"] != "colour"].iloc[:0]).empty
    assert findings.nearer(PLACES[PLACES["source"] != "colour"]).empty


def test_maps_say_what_they_have_and_no_more():
    rng = np.random.default_rng(0)
    scored = pd.DataFrame({"patient": list("aabb"), "section": list("stuv"), "gene": "g",
                           "pcc": [0.2, 0.3, 0.4, 0.5]})
    moran = scored.assign(i_true=0.2, i_pred=0.6, oversmoothing=0.4 + 0.01 * rng.normal(size=4))
    text = said(findings.maps(scored, moran, pd.DataFrame(), pd.DataFrame(), None))
    assert text.startswith("reach a mean Pearson r of 0.35") and "over 2 patients" in text
    assert "smoother than the counts: Moran's I 0.60 against 0.20" in text
    assert "Mantel" not in text and "gene set" not in text and "tissue classes" not in text
    sets = pd.DataFrame({"metric": "gain", "ci_low": [0.1, -0.1, -0.3],
                         "ci_high": [0.2, 0.1, -0.1]})
    more = said(findings.maps(scored, moran, sets, PLACES, (0.8, 0.005)))
    assert "Of 3 gene sets, 1 are predicted better as one map than gene by gene and 1 worse" in more
    assert "Mantel's r 0.80 (permutation p 0.005)" in more
    assert "by ARI and NMI they stand nearer to measured expression than to colour" in more


def pool(gap):
    """Two studies of two patients of one section each, `gap` apart."""
    rng = np.random.default_rng(0)
    names = ["A1", "A2", "B1", "B2"]
    owners = pd.DataFrame({"section": names, "study": list("AABB"), "patient": names})
    given = {name: Features(features=(rng.normal(size=(30, 5)) + gap * (name[0] == "B")),
                            coords=np.zeros((30, 2)), barcodes=None) for name in names}
    return given, owners


def test_what_orders_a_pool_is_the_study_where_studies_differ():
    shares = {gap: embeddings.of_pool(*pool(gap)).set_index("factor")["share"] for gap in (0, 9)}
    assert shares[0]["study"] < 0.05 and shares[9]["study"] > 0.9
    both = pd.concat([embeddings.of_pool(*pool(gap), encoder=name)
                      for name, gap in (("vit12", 0), ("handmade", 9))])
    assert list(embeddings.strongest(both)["encoder"]) == ["handmade", "vit12"]
    text = said(embeddings.sentence(both))
    high, low = (both[both["factor"] == "study"].set_index("encoder")["share"][name]
                 for name in ("handmade", "vit12"))
    assert text.index(f"{high:.0%} (") < text.index("in hand-made lies between the 2 studies")
    assert f"the most of 2 encoders, and {low:.0%} (" in text and "in ViT12, the least" in text
    given, owners = pool(0)
    one = embeddings.sentence(embeddings.of_pool(given, owners.assign(study="A")))
    assert "there is one study" in said(one)
    flat = {name: Features(features=np.ones((3, 2)), coords=np.zeros((3, 2)), barcodes=None)
            for name in given}
    assert "do not vary" in said(embeddings.sentence(embeddings.of_pool(flat, owners)))


def test_images_of_nobody_are_each_their_own():
    given, owners = pool(3)
    shares = embeddings.of_pool(given, owners.assign(patient=np.nan))
    assert "2 classes" in said(embeddings.sentence(shares, "class"))


def test_a_log_of_pretraining_says_whether_its_loss_fell():
    log = pd.DataFrame({"step": range(20), "dino_local": np.linspace(5, 4, 20),
                        "effective_rank": 12.0})
    memory = pd.DataFrame({"step": [0, 19], "block": 0, "half_life": [1.0, 1.5]})
    found, limits = watch.answer(log, memory, 0.35)
    text = said(found, limits)
    assert "over 20 steps the local loss fell from 4.97 to 4.03" in text
    assert "35% is initial weights; the longest half-life" in text and "never trained" in limits
    found, limits = watch.answer(log[::-1].assign(step=range(20)), memory[:0], 0.0)
    assert "rose" in found and "no state-space layer" in found and "never trained" not in limits


COLUMNS = ("dataset", "encoder", "classifier", "split", "metric", "unit", "n_units", "mean",
           "ci_low", "ci_high")


def test_classes_are_quoted_on_unseen_patients_beside_colour():
    rows = [("tissue_class", "handmade", "logistic", "grouped", "auroc", "patient", 16, 0.9, .8, 1),
            ("tissue_class", "vit12-mmap", "logistic", "grouped", "auroc", "patient", 16, .99, .9,
             1),
            ("tissue_class", "handmade", "logistic", "grouped_study", "auroc", "study", 8, 0.8, .7,
             .9),
            ("tissue_class", "stain", "logistic", "grouped", "auroc", "patient", 16, 0.7, .6, .8),
            ("image_label", "handmade", "logistic", "random", "auroc", "image", 9, .6, np.nan,
             np.nan)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    text = said(downstream.classification(table, ["vit12-mmap"]))
    assert text.startswith("tissue class, hand-made: 0.90 [0.80, 1.00] on 16 unseen patients and "
                           "0.80 [0.70, 0.90] on 8 unseen studies, colour 0.70; image label, "
                           "hand-made: 0.60 (no interval) on random rows of 9 images")
    assert "no class" in said(downstream.classification(table[:0]))


def test_attention_below_chance_finds_nothing():
    table = pd.DataFrame({"encoder": ["handmade", "vit12-dino"], "auroc": [0.41, 0.93]})
    assert downstream.attention(table, 0.0) == "hand-made 0.41 (not found) and ViT12-dino 0.93 " \
                                               "(found)"


def test_retrieval_stands_beside_its_own_chance():
    rows = [("d", "handmade", "nearest", "patient", "acc@1", "patient", 6, 0.5, 0.4, 0.6),
            ("d", "vit12-dino", "nearest", "patient", "acc@1", "patient", 6, 0.3, 0.2, 0.4),
            ("d", "handmade", "nearest", "study", "acc@1", "patient", 6, 0.4, 0.3, 0.5),
            ("d", "chance", "nearest", "patient", "acc@1", "patient", 6, 0.2, np.nan, np.nan),
            ("d", "handmade", "ridge", "loso", "image_to_expression_recall@5", "patient", 6, 0.3,
             0.2, 0.4)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    text = said(downstream.retrieval(table))
    assert "0.50 [0.40, 0.60] over 6 patients (chance 0.20) in an unseen patient, by hand-made, " \
           "the best of 2 encoders and 1 way" in text
    assert "in an unseen study for 0.40 [0.30, 0.50]" in text
    assert "among the 5 nearest of its section for 0.30 [0.20, 0.40] over 6 patients." in text
    nothing = said(downstream.retrieval(table[:0]))
    assert "no two classes" in nothing and "No image was held against expression." in nothing


@pytest.mark.parametrize("encoder, words", [("handmade", "with the slide's tiles (hand-made) 0.70"),
                                            (None, "age, sex and stage alone")])
def test_survival_with_and_without_slides(encoder, words):
    row = {"dataset": "d", "endpoint": "composition", "fold_scheme": "site_disjoint",
           "metric": "harrell_c", "n_patients": 300, "n_events": 140, "encoder": "none"}
    table = pd.DataFrame([
        row | {"model": "clinical", "mean": 0.6, "ci_low": 0.5, "ci_high": 0.7},
        row | {"model": "clinical+mixture", "encoder": "handmade", "mean": 0.7, "ci_low": 0.6,
               "ci_high": 0.8},
        row | {"model": "mixture.permuted", "encoder": "handmade", "mean": 0.52,
               "ci_low": np.nan, "ci_high": np.nan}])
    gaps = pd.DataFrame([{
        "endpoint": "composition", "model": "clinical+mixture", "encoder": "handmade",
        "than": "clinical", "difference": 0.1, "ci_low": 0.02, "ci_high": 0.18, "n_folds": 4,
        "p_added_holm": np.nan}])
    text = said(downstream.survival(table, gaps, encoder, ["age", "male", "stage"]))
    assert words in text and "(300 patients, 140 events)" in text
    assert "permuted outcomes give 0.52" in text
    assert ("a difference of 0.10 [0.02, 0.18] over 4 folds" in text) == bool(encoder)


def test_survival_of_slides_without_clinical_columns():
    row = {"dataset": "d", "endpoint": "os", "fold_scheme": "patients", "metric": "harrell_c",
           "n_patients": 30, "n_events": 14, "model": "mixture", "encoder": "uni", "mean": 0.6,
           "ci_low": 0.5, "ci_high": 0.7}
    gaps = pd.DataFrame(columns=["endpoint", "model", "encoder", "than"])
    text = said(downstream.survival(pd.DataFrame([row]), gaps, "uni", []))
    assert "(30 patients, 14 events)" in text and "no age, sex or stage was given" in text
    assert "0.60 [0.50, 0.70]" in text
    assert said(downstream.survival(pd.DataFrame([row]), gaps, None, [])) == (
        "No endpoint could be modelled.")
