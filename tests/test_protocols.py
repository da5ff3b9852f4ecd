"""Protocols against an independent scikit-learn transcription, and what must be refused."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mvhlib.artifacts import InputError, read_csv, write_csv
from mvhlib.cohort import splits
from mvhlib.cohort.genes import normalize
from mvhlib.expression.protocols import (
    SCORE_COLUMNS,
    SUMMARY_COLUMNS,
    benchmark_table,
    check_overlap,
    run,
    summarise,
)
from mvhlib.expression.ridge import hest_ridge
from mvhlib.expression.scores import section_scores
from mvhlib.features import Features

GENES = ["seen0", "seen1", "seen2", "offset", "noise0", "noise1", "silent"]
WIDTH = 12
ALPHAS = (0.3, 30.0, 3000.0)


def make_cohort(n_studies=4, per_study=2, side=9, seed=0, programs=True):
    """Sections whose first genes follow the features, one follows the study, two nothing."""
    rng = np.random.default_rng(seed)
    beta = rng.standard_normal((WIDTH, 3)) / 4
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    coords = np.stack([x.ravel(), y.ravel()], axis=1) * 100.0
    sections, features = [], {}
    for study in range(n_studies):
        offset = rng.standard_normal(WIDTH)
        level = rng.uniform(0.2, 3.0)
        for number in range(per_study):
            name = f"st{study}-{number}"
            values = rng.standard_normal((side**2, WIDTH))
            rate = np.exp(np.clip(values @ beta, -2, 2)) * 6
            rate = np.concatenate([rate, np.full((side**2, 1), level * 5),
                                   np.full((side**2, 2), 5.0), np.zeros((side**2, 1)),
                                   np.full((side**2, 1), 300.0)], axis=1)
            adata = anndata.AnnData(
                obs=pd.DataFrame(index=[f"{name}:{spot}" for spot in range(side**2)]),
                var=pd.DataFrame(index=[*GENES, "rest"]))
            adata.layers["counts"] = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
            adata.obsm["spatial"] = coords
            if programs:
                adata.var["program"] = ["signal"] * 3 + ["study"] + ["noise"] * 2 + ["none"] * 2
            sections.append(SimpleNamespace(name=name, study=f"study{study}",
                                            patient=f"p{study}.{number}", adata=adata))
            features[name] = Features((values + offset).astype(np.float32),
                                      coords.astype(np.int64), list(adata.obs_names),
                                      {"encoder": "toy"})
    return sections, features


def manifest(sections):
    return pd.DataFrame([{"section": s.name, "study": s.study, "patient": s.patient,
                          "specimen": s.name} for s in sections])


def evaluate(sections, features, protocol="loso", genes=GENES, **options):
    folds = splits.make(manifest(sections), protocol, n_folds=options.pop("n_folds", 4))
    per_fold = {fold: list(genes) for fold in folds["fold"].unique()}
    options = {"encoder": "toy", "alphas": ALPHAS, "ceiling_splits": 0} | options
    return run(sections, features, folds, protocol, per_fold, **options)


def targets(section, genes):
    counts = section.adata.layers["counts"].toarray()
    columns = [list(section.adata.var_names).index(gene) for gene in genes]
    return normalize(counts[:, columns], "log1p_cp10k", counts.sum(axis=1)).astype(np.float64)


def test_loso_equals_a_transcription_in_scikit_learn():
    sections, features = make_cohort()
    genes = GENES[:6]
    result = evaluate(sections, features, genes=genes)
    x = {s.name: features[s.name].features.astype(np.float64) for s in sections}
    y = {s.name: targets(s, genes) for s in sections}

    def fitted(train, alpha):
        model = make_pipeline(StandardScaler(), Ridge(alpha=alpha))
        return model.fit(np.concatenate([x[s.name] for s in train]),
                         np.concatenate([y[s.name] for s in train]))

    def score(model, section):
        p, truth = model.predict(x[section.name]), y[section.name]
        return np.array([np.corrcoef(p[:, g], truth[:, g])[0, 1] for g in range(len(genes))])

    for study in sorted({s.study for s in sections}):
        train = [s for s in sections if s.study != study]
        curve = [np.mean([np.mean([score(fitted([t for t in train if t.study != inner], alpha),
                                         s).mean() for s in train if s.study == inner])
                          for inner in sorted({t.study for t in train})]) for alpha in ALPHAS]
        row = result.penalties.set_index("fold").loc[study]
        assert row["alpha"] == ALPHAS[int(np.argmax(curve))]
        assert row["best"] == pytest.approx(max(curve), abs=1e-6)
        assert (row["inner_unit"], row["n_inner"]) == ("study", 3)
        model = fitted(train, row["alpha"])
        for section in (s for s in sections if s.study == study):
            found = result.predictions[section.name]
            expected = model.predict(x[section.name])
            np.testing.assert_allclose(found.predicted, expected, atol=1e-5)
            np.testing.assert_allclose(found.measured, y[section.name], atol=1e-5)
            table = result.scores[result.scores["section"] == section.name].set_index("gene")
            np.testing.assert_allclose(table.loc[genes, "pcc"], score(model, section), atol=1e-5)
            np.testing.assert_allclose(table.loc[genes, "mse"],
                                       ((expected - y[section.name])**2).mean(axis=0), rtol=1e-4)
            np.testing.assert_allclose(table.loc[genes, "mae"],
                                       np.abs(expected - y[section.name]).mean(axis=0), rtol=1e-4)


def test_the_tables_have_the_columns_of_the_contract():
    result = evaluate(*make_cohort(), ceiling_splits=3, panel="hvg")
    assert tuple(result.scores.columns) == (
        "protocol", "fold", "study", "patient", "section", "method", "encoder",
        "encoder_saw_test_images", "control", "panel", "program", "gene", "n_spots", "pcc", "mae",
        "mse", "ceiling") == SCORE_COLUMNS
    assert tuple(result.summary("study").columns) == (
        "protocol", "method", "encoder", "encoder_saw_test_images", "control", "panel", "program",
        "metric", "n_genes", "n_nan", "unit", "n_units", "mean", "ci_low",
        "ci_high") == SUMMARY_COLUMNS
    assert len(result.scores) == 8 * len(GENES)
    by_gene = result.scores.set_index("gene")
    assert by_gene.loc["silent", ["pcc", "ceiling"]].isna().all(axis=None)
    assert by_gene.loc["seen0", "ceiling"].between(0.3, 1).all()
    assert (by_gene.loc["seen1", "program"] == "signal").all()
    adata = result.predictions["st0-0"].to_adata()
    assert set(adata.layers) == {"measured", "predicted"} and "spatial" in adata.obsm


def test_signal_is_found_noise_is_not_and_offsets_only_when_pooled():
    pooled = {"loso": [], "random10_section": []}
    for seed in range(6):
        sections, features = make_cohort(n_studies=6, side=14, seed=seed)
        for protocol, rows in pooled.items():
            result = evaluate(sections, features, protocol)
            per_gene = result.scores.groupby("gene")["pcc"].mean()
            assert per_gene[["seen0", "seen1", "seen2"]].min() > 0.25
            assert per_gene[["noise0", "noise1", "offset"]].abs().max() < 0.1
            rows.append(result.pooled.query("scope == 'all' and gene == 'offset'").iloc[0])
    loso, random = (pd.DataFrame(rows)[["pcc_pooled", "pcc_floor"]].mean()
                    for rows in pooled.values())
    # A study never seen is predicted by the mean of the others: low where it is high.
    assert loso["pcc_pooled"] < 0
    assert random["pcc_pooled"] > 0.3
    assert random["pcc_floor"] > 0.9 * random["pcc_pooled"]


def test_permuting_features_within_sections_leaves_nothing():
    sections, features = make_cohort(side=14)
    plain = evaluate(sections, features)
    control = evaluate(sections, features, control="permuted")
    signal = {r: r_.scores[r_.scores["program"] == "signal"]["pcc"].mean()
              for r, r_ in (("plain", plain), ("permuted", control))}
    assert abs(signal["permuted"]) < 0.05 < 0.3 < signal["plain"]
    assert (control.scores["control"] == "permuted").all()
    # The permutation belongs to the section, not to the order of work.
    again = evaluate(sections[::-1], features, control="permuted")
    columns = ["section", "gene", "pcc"]
    a, b = (r.scores[columns].sort_values(columns[:2], ignore_index=True) for r in (control, again))
    pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-5)


def test_test_sections_decide_nothing_about_their_prediction():
    sections, features = make_cohort()
    before = evaluate(sections, features)
    for section in sections[:2]:  # all of study0
        section.adata.layers["counts"] = sparse.csr_matrix(
            section.adata.layers["counts"].toarray()[:, ::-1])
    after = evaluate(sections, features)
    for name in ("st0-0", "st0-1"):
        np.testing.assert_allclose(before.predictions[name].predicted,
                                   after.predictions[name].predicted, atol=1e-5)
    assert not np.allclose(before.predictions["st1-0"].predicted,
                           after.predictions["st1-0"].predicted, atol=1e-3)


def test_rows_are_joined_by_barcode_and_spots_without_a_tile_left_out():
    sections, features = make_cohort()
    expected = evaluate(sections, features)
    rng = np.random.default_rng(0)
    for name, feats in features.items():
        order = rng.permutation(len(feats))
        features[name] = Features(feats.features[order], feats.coords[order],
                                  [feats.barcodes[i] for i in order], feats.attrs)
    shuffled = evaluate(sections, features)
    pd.testing.assert_frame_equal(expected.scores, shuffled.scores)
    few = features["st0-0"]
    features["st0-0"] = Features(few.features[:50], few.coords[:50], few.barcodes[:50], few.attrs)
    result = evaluate(sections, features)
    assert set(result.predictions["st0-0"].barcodes) == set(few.barcodes[:50])
    assert (result.scores.query("section == 'st0-0'")["n_spots"] == 50).all()
    assert result.notes == ["31 spots without a tile left out"]


def test_genes_may_differ_between_folds():
    sections, features = make_cohort()
    folds = splits.make(manifest(sections), "loso")
    per_fold = {f"study{n}": GENES[n:n + 3] for n in range(4)}
    result = run(sections, features, folds, "loso", per_fold, encoder="toy", alphas=[5.0],
                 ceiling_splits=0)
    for n in range(4):
        alone = run(sections, features, folds, "loso", {f: per_fold[f"study{n}"] for f in per_fold},
                    encoder="toy", alphas=[5.0], ceiling_splits=0)
        pd.testing.assert_frame_equal(
            *(r.scores.query(f"fold == 'study{n}'").reset_index(drop=True)
              for r in (result, alone)), rtol=1e-6)
        assert result.predictions[f"st{n}-1"].genes == per_fold[f"study{n}"]


def test_one_training_section_chooses_its_penalty_on_strips():
    sections, features = make_cohort(n_studies=1, per_study=2)
    for section in sections:
        section.patient = "only"
    result = evaluate(sections, features, "section")
    assert list(result.penalties["inner_unit"]) == ["block", "block"]
    assert list(result.penalties["n_inner"]) == [4, 4]
    assert "no inference to patients" in " ".join(result.notes)


def test_spot_folds_test_each_spot_once_and_never_train_on_it():
    rng = np.random.default_rng(0)
    sections, features = make_cohort(n_studies=2, per_study=1, side=10)
    for name, feats in features.items():  # as wide as a lookup table: it could learn by heart
        features[name] = Features(rng.standard_normal((100, 140)).astype(np.float32),
                                  feats.coords, feats.barcodes)
    result = evaluate(sections, features, "random10_spot", genes=GENES[:6], alphas=[1e-3])
    assert all(np.isfinite(p.predicted).all() for p in result.predictions.values())
    per_section = result.scores.groupby(["section", "gene"])["n_spots"].sum()
    assert (per_section == 100).all()
    noise = [np.corrcoef(p.measured[:, g], p.predicted[:, g])[0, 1]
             for p in result.predictions.values() for g in (0, 1, 2, 4, 5)]
    assert abs(np.mean(noise)) < 0.15
    assert result.notes == [splits.LEAKS["random10_spot"]]


def test_hest_method_equals_its_steps():
    sections, features = make_cohort()
    result = evaluate(sections, features, method="hest_ridge", genes=GENES[:5])
    train = [s for s in sections if s.study != "study2"]
    test = [s for s in sections if s.study == "study2"]
    columns = slice(0, 5)
    x, raw = (np.concatenate(v) for v in (
        [features[s.name].features for s in train],
        [s.adata.layers["counts"].toarray()[:, columns] for s in train]))
    predicted = hest_ridge(x, np.log1p(raw), np.concatenate(
        [features[s.name].features for s in test]))
    np.testing.assert_allclose(
        np.concatenate([result.predictions[s.name].predicted for s in test]), predicted, atol=1e-5)
    measured = np.log1p(np.concatenate([s.adata.layers["counts"].toarray()[:, columns]
                                        for s in test]))
    pooled = result.pooled.query("scope == 'fold' and fold == 'study2'").set_index("gene")
    for g, gene in enumerate(GENES[:5]):  # HEST scores the concatenated test split
        assert pooled.loc[gene, "pcc_pooled"] == pytest.approx(
            np.corrcoef(predicted[:, g], measured[:, g])[0, 1], abs=1e-5)
    assert (result.penalties["alpha"] == 100 / (WIDTH * 5)).all()


def test_summary_by_hand(tmp_path):
    sections, features = make_cohort(n_studies=3, per_study=3)
    result = evaluate(sections, features)
    scores = result.scores
    found = result.summary("study").set_index(["program", "metric"])
    per_section = scores.groupby(["study", "section"])["pcc"].mean()
    units = per_section.groupby("study").mean()
    row = found.loc[("all", "pcc")]
    assert row["mean"] == pytest.approx(units.mean())
    assert row["ci_high"] - row["mean"] == pytest.approx(4.302653 * units.std() / np.sqrt(3))
    assert (row["n_units"], row["unit"], row["n_genes"]) == (3, "study", 7)
    assert row["n_nan"] == 9 == scores["pcc"].isna().sum()  # the silent gene in nine sections
    assert found.loc[("noise", "mae"), "mean"] == pytest.approx(
        scores[scores["program"] == "noise"].groupby(["study", "section"])["mae"].mean()
        .groupby("study").mean().mean())
    assert found.loc[("all", "pcc_pooled"), "unit"] == "fold"
    pooled = result.pooled[result.pooled["scope"] == "fold"]
    assert found.loc[("all", "pcc_pooled"), "mean"] == pytest.approx(
        pooled.groupby("fold")["pcc_pooled"].mean().mean())
    by_patient = result.summary("patient").set_index(["program", "metric"])
    assert by_patient.loc[("all", "pcc"), "n_units"] == 9
    # A table read back gives the same rows, empty panel and all.
    path = write_csv(tmp_path / "scores.csv", scores)
    again = summarise(read_csv(path), "study")
    ours = summarise(scores, "study")
    pd.testing.assert_frame_equal(ours, again, rtol=1e-6)


def test_pcc10_is_the_mean_of_the_ten_best_per_fold():
    result = evaluate(*make_cohort(programs=False))
    scores = pd.concat([result.scores.assign(gene=result.scores["gene"] + tag,
                                             pcc=result.scores["pcc"] - shift)
                        for tag, shift in (("", 0.0), ("'", 0.01), ("''", 0.5))])
    found = summarise(scores, "study").set_index(["program", "metric"]).loc[("all", "pcc10")]
    folds = []
    for _, frame in scores.groupby("fold"):
        best = frame.groupby("gene")["pcc"].mean().nlargest(10).index
        folds.append(frame[frame["gene"].isin(best)]["pcc"].mean())  # two sections, equal weight
    assert found["mean"] == pytest.approx(np.mean(folds))
    assert set(summarise(scores, "study")["program"]) == {"all"}


def test_replicates_of_one_patient_get_an_interval_by_blocks():
    sections, features = make_cohort(n_studies=1, per_study=3, side=12)
    for section in sections:
        section.patient = "only"
    result = evaluate(sections, features, "section")
    found = result.summary("patient").set_index(["program", "metric"])
    row = found.loc[("all", "pcc")]
    assert row["unit"] == "block" and row["n_units"] == 27  # 12 x 12 spots: 3 x 3 blocks of 5
    scores = result.scores
    assert row["mean"] == pytest.approx(scores.groupby("section")["pcc"].mean().mean(), abs=1e-6)
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    assert 0.01 < row["ci_high"] - row["ci_low"] < 0.3
    for metric in ("pcc10", "mae", "mse"):
        assert found.loc[("signal", metric), "ci_low"] < found.loc[("signal", metric), "ci_high"]
    assert found.loc[("all", "mse"), "mean"] == pytest.approx(scores["mse"].mean(), rel=1e-5)
    bare = summarise(scores, "patient").set_index(["program", "metric"]).loc[("all", "pcc")]
    assert bare["unit"] == "block" and np.isnan(bare["ci_low"])
    assert bare["mean"] == pytest.approx(row["mean"], abs=1e-6)


def test_more_genes_than_spots():
    sections, features = make_cohort(n_studies=3, per_study=1, side=3)
    rng = np.random.default_rng(0)
    many = [f"g{n}" for n in range(60)]
    for section in sections:
        obs = section.adata.obs
        section.adata = anndata.AnnData(obs=obs, var=pd.DataFrame(index=many))
        section.adata.layers["counts"] = rng.poisson(4.0, (9, 60)).astype(np.float32)
    result = evaluate(sections, features, genes=many)
    assert len(result.scores) == 180 and np.isfinite(result.scores["mse"]).all()


@pytest.mark.parametrize("pretrained, refused", [
    ({"sections": ["st0-0"]}, True), ({"patients": ["p2.1"]}, True),
    ({"studies": ["study3"]}, True),
    ({"sections": ["other"], "patients": [], "studies": ["U1"]}, False), (None, False)])
def test_an_encoder_that_saw_the_test_tissue_cannot_say_no(pretrained, refused):
    sections, features = make_cohort()
    if not refused:
        result = evaluate(sections, features, pretrained_on=pretrained)
        assert (result.scores["encoder_saw_test_images"] == "no").all()
        return
    with pytest.raises(InputError) as caught:
        evaluate(sections, features, pretrained_on=pretrained)
    assert (caught.value.where, caught.value.field) == ("toy", "encoder_saw_test_images")
    honest = evaluate(sections, features, pretrained_on=pretrained, encoder_saw_test_images="yes")
    assert (honest.scores["encoder_saw_test_images"] == "yes").all()
    check_overlap(pretrained, sections=["elsewhere"])  # only what is tested counts


def test_under_a_replicate_test_a_section_is_what_must_be_unseen():
    """Patient and study are shared by design; another protocol refuses the same encoder."""
    sections, features = make_cohort(n_studies=2, per_study=2)
    for section in sections:
        section.patient = section.study
    saw = {"sections": ["st9-9"], "patients": ["study0"], "studies": ["study0"]}
    found = evaluate(sections, features, "section", pretrained_on=saw)
    assert (found.scores["encoder_saw_test_images"] == "no").all()
    with pytest.raises(InputError, match="patients"):
        evaluate(sections, features, "patient", pretrained_on=saw)
    with pytest.raises(InputError, match=r"sections \['st0-1'\]"):
        evaluate(sections, features, "section", pretrained_on=saw | {"sections": ["st0-1"]})


def _replace(by_name, name, **change):
    old = by_name[name]
    fields = {"features": old.features.copy(), "coords": old.coords, "barcodes": old.barcodes}
    by_name[name] = Features(**(fields | change))


def _nan(sections, features):
    values = features["st1-0"].features.copy()
    values[4, 2] = np.inf
    _replace(features, "st1-0", features=values)


def _foreign(sections, features):
    _replace(features, "st1-0", barcodes=[f"x{n}" for n in range(81)])


def _narrow(sections, features):
    _replace(features, "st1-0", features=features["st1-0"].features[:, :5])


def _no_gene(sections, features):
    sections[3].adata = sections[3].adata[:, sections[3].adata.var_names != "seen1"].copy()


def _no_features(sections, features):
    del features["st2-1"]


def _two_programs(sections, features):
    sections[1].adata.var["program"] = "other"


@pytest.mark.parametrize("spoil, where, field", [
    (_nan, "st1-0", "features"), (_foreign, "st1-0", "barcodes"), (_narrow, "toy", "features"),
    (_no_gene, "st1-1", "genes"), (_no_features, "folds", "features"),
    (_two_programs, "st0-1", 'var["program"]')])
@pytest.mark.parametrize("method", ["ridge", "hest_ridge"])
def test_bad_sections_are_one_error(spoil, where, field, method):
    sections, features = make_cohort()
    spoil(sections, features)
    with pytest.raises(InputError) as caught:
        evaluate(sections, features, method=method)
    assert (caught.value.where, caught.value.field) == (where, field)


def _folds(rows):
    return pd.DataFrame(rows, columns=["fold", "section", "role"])


@pytest.mark.parametrize("folds, options, field", [
    ([("a", "st0-0", "train"), ("a", "st0-1", "test")], {}, "study"),  # one study
    ([("a", "st0-0", "train"), ("a", "st1-0", "train")], {}, "fold a"),  # no test section
    ([("a", "st0-0", "test")], {}, "fold a"),  # one-study LOSO as the splits would leave it
    ([("a", "st0-0", "train"), ("a", "st1-0", "test"), ("a", "st0-1", "test")], {}, "fold a"),
    ([("a", "st0-0", "train"), ("a", "st0-0", "test")], {"protocol": "section"}, "fold a"),
    ([("a", "st0-0", "both")], {}, "role"),
    ([("a", "nowhere", "train"), ("a", "st1-0", "test")], {}, "sections"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test"), ("b", "st2-0", "train"),
      ("b", "st1-0", "test")], {}, "section"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"genes": []}, "fold a"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"genes": ["seen0"] * 2}, "fold a"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"method": "lasso"}, "method"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"control": "shuffled"}, "control"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"alphas": [0.0]}, "alphas"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"inner_unit": "spot"}, "inner_unit"),
    ([("a", "st0-0", "train"), ("a", "st1-0", "test")], {"normalize": "tpm"}, "how"),
])
def test_bad_folds_and_options_are_one_error(folds, options, field):
    sections, features = make_cohort()
    genes = options.pop("genes", ["seen0"])
    protocol = options.pop("protocol", "loso")
    with pytest.raises(InputError) as caught:
        run(sections, features, _folds(folds), protocol, {"a": genes, "b": genes}, encoder="toy",
            **options)
    assert caught.value.field == field


def test_summary_refuses_what_it_cannot_tell_apart():
    sections, features = make_cohort(n_studies=1, per_study=2)
    for section in sections:
        section.patient = "only"
    result = evaluate(sections, features, "section")
    twice = pd.concat([result.scores, result.scores.assign(encoder="other")])
    with pytest.raises(InputError):
        summarise(twice, "patient", predictions=result.predictions)
    with pytest.raises(InputError):
        summarise(result.scores, "spot")
    with pytest.raises(InputError):
        summarise(result.scores.drop(columns="pcc"), "study")
    assert len(summarise(twice, "patient")) == 2 * len(summarise(result.scores, "patient"))


def test_equal_calls_give_equal_bytes(tmp_path):
    written = []
    for n in range(2):
        sections, features = make_cohort()
        result = evaluate(sections, features, ceiling_splits=2, control="permuted", seed=3)
        paths = [write_csv(tmp_path / f"{n}-{name}.csv", frame) for name, frame in (
            ("scores", result.scores), ("pooled", result.pooled), ("penalties", result.penalties),
            ("summary", result.summary("study")))]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


def test_a_benchmark_keeps_the_order_of_the_features_file():
    """Rows as in the file, targets in float64: what HEST's solver sees."""
    sections, features = make_cohort(n_studies=2, per_study=1)
    name = sections[0].name
    order = np.random.default_rng(0).permutation(81)[:70]
    own = features[name]
    features[name] = Features(own.features[order], own.coords[order],
                              [own.barcodes[i] for i in order], {})
    genes = GENES[:5]
    result = evaluate(sections, features, "patient", genes=genes, method="hest_ridge")
    found = result.predictions[name]
    assert found.barcodes == [own.barcodes[i] for i in order]
    counts = sections[0].adata.layers["counts"].toarray()[order][:, :5]
    np.testing.assert_array_equal(found.measured, np.log1p(counts.astype(np.float64))
                                  .astype(np.float32))
    np.testing.assert_array_equal(found.coords, sections[0].adata.obsm["spatial"][order])
    assert "11 spots without a tile left out" in result.notes
    assert evaluate(sections, features, "patient", genes=genes).predictions[name].barcodes == [
        b for b in own.barcodes if b in set(found.barcodes)]


def test_benchmark_table_by_hand():
    rows = [("fold", "0", 0.2), ("fold", "0", 0.4), ("fold", "1", 0.5), ("fold", "1", 0.9),
            ("all", "all", 0.0)]
    pooled = pd.DataFrame([{"protocol": "hest_bench", "method": "hest_ridge", "encoder": "e",
                            "control": "none", "panel": None, "scope": scope, "fold": fold,
                            "pcc_pooled": r} for scope, fold, r in rows])
    found = benchmark_table(pooled).iloc[0]
    assert found["n_folds"] == 2 and found["pearson_mean"] == pytest.approx(0.5)
    assert found["pearson_std"] == pytest.approx(0.2)  # of the population of folds, as HEST prints
    pooled.loc[0, "pcc_pooled"] = np.nan
    assert np.isnan(benchmark_table(pooled)["pearson_mean"].iloc[0])  # not guarded, as there


def test_a_constant_gene_is_no_number_in_the_benchmark():
    sections, features = make_cohort(n_studies=2, per_study=1)
    result = evaluate(sections, features, "patient", method="hest_ridge")
    pooled = result.pooled.query("scope == 'fold'").set_index("gene")["pcc_pooled"]
    assert pooled["silent"].isna().all() and pooled.drop("silent").notna().all()
    assert benchmark_table(result.pooled)["pearson_mean"].isna().all()


@pytest.mark.parametrize("protocol", ["loso", "patient", "hest_bench", "mvhybrid_bench"])
def test_folds_of_another_maker_cannot_separate_a_patient(protocol):
    """Folds are checked where they are used, not only where they are made."""
    sections, features = make_cohort(n_studies=3, per_study=1)
    sections[2].patient = sections[0].patient
    folds = _folds([("a", "st0-0", "train"), ("a", "st1-0", "train"), ("a", "st2-0", "test")])
    with pytest.raises(InputError, match="patient .* on both sides") as caught:
        run(sections, features, folds, protocol, {"a": ["seen0"]}, encoder="toy")
    assert caught.value.field == "fold a"


# ---- estimators


class Nearest:
    """Predicts by the training spot whose features are nearest; notes what it was told."""

    name = "nearest"

    def __init__(self):
        self.told = []

    def fit(self, samples, genes, fold, seed):
        self.told.append((fold, [s.name for s in samples], list(genes), seed))
        self.X = np.concatenate([s.X.reshape(len(s.X), -1) for s in samples])
        self.Y = np.concatenate([s.Y for s in samples])

    def predict(self, sample):
        assert np.isnan(sample.Y).all(), "the truth of a test section is hidden"
        X = sample.X.reshape(len(sample.X), -1)
        return self.Y[((X[:, None] - self.X[None]) ** 2).sum(-1).argmin(1)]


def test_an_estimator_is_fitted_per_fold_and_scored_like_ridge():
    sections, joined = make_cohort()
    features = {name: each.features for name, each in joined.items()}
    stacked = {name: np.stack([X, X], axis=1) for name, X in features.items()}
    judge = Nearest()
    found = evaluate(sections, stacked, method=judge)
    ridge_scores = evaluate(sections, features).scores
    keys = ["fold", "section", "gene", "n_spots", "ceiling"]
    pd.testing.assert_frame_equal(found.scores[keys], ridge_scores[keys])
    assert set(found.scores["method"]) == {"nearest"} and found.penalties.empty
    # Each fold by hand.
    by_name = {section.name: section for section in sections}
    for fold, train, genes, _ in judge.told:
        rows = found.scores[found.scores["fold"] == fold]
        X = np.concatenate([features[name] for name in train])
        Y = np.concatenate([targets(by_name[name], genes) for name in train])
        for name, part in rows.groupby("section"):
            assert name not in train
            nearest = ((features[name][:, None] - X[None]) ** 2).sum(-1).argmin(1)
            expected = section_scores(targets(by_name[name], genes).astype(np.float32),
                                      Y[nearest].astype(np.float32), genes)
            assert np.allclose(part["pcc"], expected["pcc"], equal_nan=True, atol=1e-6)


def test_an_estimator_that_returns_nonsense_is_named():
    sections, features = make_cohort()
    judge = Nearest()
    judge.predict = lambda sample: np.full_like(sample.Y, np.nan)
    with pytest.raises(InputError, match="prediction by nearest"):
        evaluate(sections, features, method=judge)
    with pytest.raises(InputError, match="reads whole ones"):
        evaluate(sections, features, protocol="random10_spot", method=judge)
