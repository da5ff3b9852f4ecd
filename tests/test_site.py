"""Site or biology, against planted causes, explicit sums and closed forms."""

from dataclasses import dataclass, field

import anndata
import numpy as np
import pandas as pd
import pytest

from mvhlib.artifacts import InputError
from mvhlib.expression import evaluation, site
from mvhlib.features import Features


@dataclass
class Tissue:
    name: str
    study: str
    patient: str
    adata: anndata.AnnData = field(repr=False)


def cohort(n_studies=4, n_patients=2, n_sections=2, n_spots=30, dim=6, *, study=0.0, patient=0.0,
           label=0.0, seed=0):
    """Sections and features with planted offsets of study, patient and tissue class."""
    rng = np.random.default_rng(seed)
    classes = rng.standard_normal((3, dim))
    sections, features = [], {}
    for s in range(n_studies):
        of_study = rng.standard_normal(dim)
        for p in range(n_patients):
            of_patient = rng.standard_normal(dim)
            for r in range(n_sections):
                name = f"S{s}P{p}{'AB'[r]}"
                kind = rng.integers(0, 3, n_spots)
                names = [f"{i}x{s}" for i in range(n_spots)]
                adata = anndata.AnnData(
                    np.zeros((n_spots, 1), np.float32),
                    obs=pd.DataFrame({"label": [f"class{k}" for k in kind]}, index=names))
                X = (rng.standard_normal((n_spots, dim)) + study * of_study
                     + patient * of_patient + label * classes[kind])
                sections.append(Tissue(name, f"S{s}", f"S{s}P{p}", adata))
                features[name] = Features(X.astype(np.float32), np.zeros((n_spots, 2), np.int64),
                                          names, {"encoder": "e"})
    return sections, features


def one(frame):
    assert len(frame) == 1
    return frame.iloc[0]


def test_rows_join_on_barcode_and_leave_out_spots_without_a_tile():
    sections, features = cohort(2, 1, 1)
    given = features["S0P0A"]
    order = np.r_[5:30, 0:3][::-1]
    features["S0P0A"] = Features(given.features[order], given.coords[order],
                                 [given.barcodes[i] for i in order])
    joined = site.rows(features, sections, "label")
    assert len(joined.X) == 28 + 30
    kept = np.r_[0:3, 5:30]
    assert (joined.X[:28] == given.features[kept]).all()
    assert list(joined.about["label"][:28]) == list(sections[0].adata.obs["label"].iloc[kept])
    series = {"S1P0A": sections[1].adata.obs["label"].replace("class0", "undetermined")}
    other = site.rows(features, sections, series)
    assert other.about["label"][:28].isna().all()
    assert set(other.about["label"].dropna()) == {"class1", "class2"}


def test_rows_refuse_what_does_not_fit():
    sections, features = cohort(2, 1, 1)
    with pytest.raises(InputError, match="none of the sections"):
        site.rows({}, sections)
    foreign = {"S0P0A": pd.Series(["x"], index=["elsewhere"])}
    with pytest.raises(InputError, match="no barcode in common"):
        site.rows(features, sections, foreign)
    with pytest.raises(InputError, match="wide"):
        site.rows(features | {"S1P0A": np.zeros((30, 2))}, sections)
    bad = np.zeros((30, 6))
    bad[3, 2] = np.nan
    with pytest.raises(InputError, match="NaN"):
        site.rows(features | {"S1P0A": bad}, sections)


def test_probe_finds_a_planted_study_and_nothing_where_there_is_none():
    sections, features = cohort(study=2.0, dim=8)
    found = one(site.probe(site.rows(features, sections), "study", encoder="e"))
    assert found["unseen"] == "patient" and found["n_units"] == 8 and found["n_classes"] == 4
    assert found["balanced_accuracy"] > 0.9 and found["chance"] == 0.25
    assert found["excess"] == pytest.approx((found["balanced_accuracy"] - 0.25) / 0.75)
    assert found["ci_low"] <= found["balanced_accuracy"] <= found["ci_high"]
    sections, features = cohort(n_studies=4, n_patients=6)
    nothing = one(site.probe(site.rows(features, sections), "study"))
    assert abs(nothing["excess"]) < 0.12


def test_probe_names_study_not_patient():
    """Patients differ and studies do not: unseen patients say nothing, unseen sections would."""
    sections, features = cohort(n_studies=3, n_patients=5, patient=2.0)
    joined = site.rows(features, sections)
    study, patient = (one(site.probe(joined, target)) for target in ("study", "patient"))
    assert study["excess"] < 0.35 < 0.8 < patient["excess"]
    assert patient["unseen"] == "section" and patient["n_classes"] == 15
    assert patient["chance"] == pytest.approx(0.2)


def test_knowing_the_study_is_not_knowing_the_patient():
    sections, features = cohort(n_studies=4, n_patients=2, study=4.0)
    found = one(site.probe(site.rows(features, sections), "patient"))
    assert found["chance"] == 0.5 and abs(found["excess"]) < 0.2
    # A patient alone in the study has no rival, and is not asked for.
    fewer = [s for s in sections if s.patient != "S3P1"]
    rest = one(site.probe(site.rows(features, fewer), "patient"))
    assert rest["n_classes"] == 6 and "1 classes" in rest["note"]


def test_probe_of_labels_generalises_and_says_what_it_cannot():
    sections, features = cohort(label=2.0, dim=8)
    joined = site.rows(features, sections, "label")
    found = one(site.probe(joined, "label"))
    assert found["unseen"] == "study" and found["n_units"] == 4
    assert found["balanced_accuracy"] > 0.85
    sections, features = cohort(1, 2, 2)
    nothing = one(site.probe(site.rows(features, sections), "study"))
    assert np.isnan(nothing["balanced_accuracy"]) and "two units" in nothing["note"]
    sections, features = cohort(2, 2, 1)
    nothing = one(site.probe(site.rows(features, sections), "patient"))
    assert np.isnan(nothing["excess"]) and nothing["n_units"] == 0
    with pytest.raises(InputError, match="stainer"):
        site.probe(site.rows(features, sections), "stainer")


def test_probe_holds_replicates_of_a_specimen_together():
    sections, features = cohort(n_studies=1, n_patients=3, patient=3.0)
    for section in sections:
        section.specimen = section.patient  # A and B are neighbouring cuts of one block
    nothing = one(site.probe(site.rows(features, sections), "patient"))
    assert np.isnan(nothing["balanced_accuracy"])


def test_shares_equal_explicit_sums():
    sections, features = cohort(3, 2, 2, n_spots=20, study=1.0, patient=0.5, label=1.0)
    joined = site.rows(features, sections, "label")
    shares = site.variance_shares(joined).set_index("factor")
    # Sections are of one size, so plain eta2 per feature, averaged, is the share.
    eta = []
    for column in joined.X.T:
        grand = column.mean()
        total = ((column - grand) ** 2).sum()
        row = []
        for level in ("study", "patient", "section"):
            row.append(sum(len(part) * (part.mean() - grand) ** 2 for part in (
                column[joined.about[level].to_numpy() == name]
                for name in joined.about[level].unique())) / total)
        eta.append(row)
    study, patient, section = np.mean(eta, axis=0)
    assert shares.loc["study", "share"] == pytest.approx(study)
    assert shares.loc["patient", "share"] == pytest.approx(patient - study)
    assert shares.loc["section", "share"] == pytest.approx(section - patient)
    parts = ["study", "patient", "section", "label", "rest"]
    assert shares.loc[parts, "share"].sum() == pytest.approx(1.0)
    # The label's share by ordinary least squares with a dummy per section and per class.
    sections_d = pd.get_dummies(joined.about["section"]).to_numpy(float)
    both = np.c_[sections_d, pd.get_dummies(joined.about["label"]).to_numpy(float)]
    z = (joined.X - joined.X.mean(0)) / joined.X.std(0)

    def residual(design):
        return ((z - design @ np.linalg.lstsq(design, z, rcond=None)[0]) ** 2).sum() / z.size

    expected = residual(sections_d) - residual(both)
    assert shares.loc["label", "share"] == pytest.approx(expected)


def test_by_chance_is_the_mean_over_regroupings_of_patients():
    sections, features = cohort(4, 2, 1, n_spots=15, study=0.5, seed=3)
    # sections of unlike size weigh the same
    for number, name in enumerate(features):
        features[name] = features[name].features[:8 + number]
    for section in sections:
        section.adata = section.adata[:len(features[section.name])].copy()
    shares = site.variance_shares(site.rows(features, sections)).set_index("factor")
    rng, found = np.random.default_rng(0), []
    studies = [section.study for section in sections]
    for _ in range(800):
        order = rng.permutation(len(studies))
        mixed = [Tissue(s.name, studies[i], s.name, s.adata)
                 for s, i in zip(sections, order, strict=True)]
        found.append(site.variance_shares(site.rows(features, mixed)).iloc[0]["share"])
    error = 4 * np.std(found) / np.sqrt(len(found))
    assert shares.loc["study", "by_chance"] == pytest.approx(np.mean(found), abs=error)


def test_adjusted_share_is_zero_by_chance_and_whole_when_study_is_all():
    draws = [site.variance_shares(site.rows(*cohort(4, 2, 2, patient=1.0, seed=seed)[::-1]))
             .iloc[0] for seed in range(60)]
    adjusted = np.array([row["adjusted"] for row in draws])
    assert abs(adjusted.mean()) < 4 * adjusted.std() / np.sqrt(60)
    assert np.mean([row["share"] for row in draws]) > 0.1  # the raw share is not
    sections, features = cohort(3, 2, 2)
    flat = {s.name: np.repeat([[float(s.study[1:]), 1.0]], 30, axis=0) for s in sections}
    whole = site.variance_shares(site.rows(flat, sections)).iloc[0]
    assert whole["share"] == pytest.approx(1.0) and whole["adjusted"] == pytest.approx(1.0)
    with pytest.raises(InputError, match="do not vary"):
        site.variance_shares(site.rows({k: v * 0 for k, v in flat.items()}, sections))


def test_scale_decides_whether_a_loud_feature_rules():
    sections, features = cohort(3, 2, 2, dim=2)
    loud = {s.name: np.c_[features[s.name].features[:, 0],
                          1000.0 * float(s.study[1:]) + features[s.name].features[:, 1]]
            for s in sections}
    each, none = (site.variance_shares(site.rows(loud, sections), scale=scale).iloc[0]["share"]
                  for scale in ("each", "none"))
    assert none > 0.99 and 0.45 < each < 0.6


def test_centring_removes_the_study_and_keeps_the_class():
    sections, features = cohort(study=3.0, label=2.0, dim=8)
    groups = {section.name: section.study for section in sections}
    before = site.rows(features, sections, "label")
    centred = site.centre(features, groups)
    after = site.rows(centred, sections, "label")
    assert one(site.probe(after, "study"))["excess"] < 0.25 < 0.8 < one(
        site.probe(before, "study"))["excess"]
    assert one(site.probe(after, "label"))["balanced_accuracy"] > 0.85
    for study in set(groups.values()):
        means = [centred[name].features.mean(0) for name in groups if groups[name] == study]
        assert np.mean(means, axis=0) == pytest.approx(np.zeros(8), abs=1e-6)
    assert features["S0P0A"].attrs == {"encoder": "e"}  # the originals are left alone
    assert centred["S0P0A"].attrs["centred"] == "mean"
    scaled = site.centre({k: np.c_[v.features, np.full(30, 7.0)] for k, v in features.items()},
                         groups, scale=True)
    stack = np.concatenate([scaled[name] for name in groups if groups[name] == "S1"])
    assert stack.std(0)[:8] == pytest.approx(np.ones(8), abs=1e-5) and (stack[:, 8] == 0).all()
    with pytest.raises(InputError, match="S0P0A"):
        site.centre(features, {})


def scores_of(encoder, protocol, values):
    return pd.DataFrame([{"protocol": protocol, "method": "ridge", "encoder": encoder,
                          "control": "none", "panel": "hvg", "program": "", "gene": "g",
                          "patient": f"P{i}", "section": f"P{i}A", "pcc": value}
                         for i, value in enumerate(values)])


def test_table_stands_beside_the_drop():
    sections, quiet = cohort(label=2.0)
    _, loud = cohort(label=2.0, study=3.0)
    probes, shares = site.table({"quiet": quiet, "loud": loud}, sections, "label")
    assert set(probes["target"]) == {"study", "patient", "label"} and len(probes) == 6
    drops = evaluation.drops(pd.concat([
        scores_of("quiet", "random10_section", [0.4, 0.5, 0.6]),
        scores_of("quiet", "loso", [0.4, 0.45, 0.6]),
        scores_of("loud", "random10_section", [0.5, 0.5, 0.6]),
        scores_of("loud", "loso", [0.1, 0.2, 0.2])]))
    joined = site.relate(probes, shares, drops).set_index("encoder")
    assert joined.loc["loud", "study_excess"] > joined.loc["quiet", "study_excess"]
    assert joined.loc["loud", "site_to_label"] > joined.loc["quiet", "site_to_label"]
    assert joined.loc["loud", "difference"] == pytest.approx(1.1 / 3)
    none = site.relate(probes, shares, drops.iloc[:0])
    assert len(none) == 2 and none["drop"].isna().all()


def test_what_was_scored_under_one_protocol_has_no_drop():
    half = scores_of("half", "loso", [0.1, 0.2, 0.2]).assign(panel="other")
    both = [scores_of("whole", protocol, values) for protocol, values in (
        ("random10_section", [0.4, 0.5, 0.6]), ("loso", [0.3, 0.4, 0.5]))]
    drops = evaluation.drops(pd.concat([half, *both]))
    assert list(drops["encoder"]) == ["whole"]
    assert one(drops)["difference"] == pytest.approx(0.1)


def test_rank_correlation_says_what_few_encoders_allow():
    related = pd.DataFrame({"encoder": list("abcdef"), "study_excess": [1, 2, 3, 4, 5, 6.0],
                            "difference": [2, 3, 5, 4, 8, 9.0]})
    found = one(site.correlations(related, columns=["study_excess"]))
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (6 * 35))
    # Exactly one order of 720 is nearer to rank equality, and five are as near; both ends count.
    assert found["p"] == pytest.approx(2 * (1 + 5) / 720)
    few = one(site.correlations(related[:3], columns=["study_excess"]))
    assert few["note"] == "no test possible at this n" and np.isnan(few["p"])
    assert few["p_smallest"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="more than once"):
        site.correlations(pd.concat([related, related]))


def test_remedy_effect_is_paired_within_units():
    scores = pd.concat([scores_of("e", "loso", [0.1, 0.3, 0.2]),
                        scores_of("e+centred", "loso", [0.2, 0.4, 0.35])])
    found = one(site.remedy_effects(scores, plain="e"))
    assert found["difference"] == pytest.approx(0.35 / 3) and found["n_units"] == 3
    assert found["ci_high"] - found["ci_low"] < 0.2 and found["remedy"] == "e+centred"
    with pytest.raises(InputError, match="no scores"):
        site.remedy_effects(scores, plain="other")


def test_the_answer_quotes_both_ends_of_the_probes_and_the_remedy():
    probes = pd.DataFrame([
        {"encoder": name, "target": "study", "balanced_accuracy": value, "chance": 0.25,
         "ci_low": value - 0.1, "ci_high": value + 0.1} for name, value in (
             ("handmade", 0.75), ("vit12-dino", 0.5))])
    related = pd.DataFrame({"encoder": list("abcdef"), "study_excess": [1, 2, 3, 4, 5, 6.0],
                            "difference": [2, 3, 5, 4, 8, 9.0]})
    remedies = site.all_remedies(pd.concat([
        scores_of("e", "loso", [0.1, 0.3, 0.2]), scores_of("e+centred", "loso", [0.2, 0.4, 0.35])]))
    against = site.correlations(related, columns=["study_excess"])
    found, _ = site.said(probes, against, remedies, "loso")
    assert "best from hand-made, with a balanced accuracy of 0.75 [0.65, 0.85]" in found
    assert "chance gives 0.25" in found and "worst from ViT12-dino with 0.50" in found
    assert "over 6 encoders (p 0.017)" in found and "e+centred changes r of e by +0.117" in (
        found.replace("by 0.117", "by +0.117"))
    few = site.correlations(related[:2], columns=["study_excess"])
    nothing, _ = site.said(probes[:0], few, remedies[:0], "loso")
    assert nothing.startswith("no probe could name a study") and "is not known" in nothing
    assert "nan" not in nothing
