"""Retrieval: metrics against loops and closed forms, prototypes and CCA against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from mvhlib.artifacts import InputError
from mvhlib.downstream import retrieval
from mvhlib.expression.site import Rows
from mvhlib.features import Features


def planted(seed=0, n_patients=6, per_class=8, signal=3.0, offset=0.0, width=12):
    """Three classes in every patient; `offset` shifts each patient as a stain would."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, width)) * signal
    X, about = [], []
    for patient in range(n_patients):
        shift = rng.normal(size=width) * offset
        for k, name in enumerate("abc"):
            X.append(centres[k] + shift + rng.normal(size=(per_class, width)))
            about += [(f"s{patient}", f"study{patient // 2}", f"p{patient}", name)] * per_class
    frame = pd.DataFrame(about, columns=["section", "study", "patient", "label"],
                         index=[f"t{i}" for i in range(len(about))])
    return Rows(np.concatenate(X), frame)


# ------------------------------------------------------------------------------------- metrics


def test_metrics_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    similarity, relevant = rng.normal(size=(9, 23)), rng.random((9, 23)) < 0.3
    relevant[0] = False
    hits = retrieval.ranked(similarity, relevant)
    for q in range(9):
        order = sorted(range(23), key=lambda j, q=q: -similarity[q, j])
        found = [bool(relevant[q, j]) for j in order]
        assert list(hits[q]) == found
        total = sum(found)
        precisions = [sum(found[:i + 1]) / (i + 1) for i in range(23) if found[i]]
        expected = sum(precisions) / total if total else np.nan
        assert retrieval.average_precision(hits)[q] == pytest.approx(expected, nan_ok=True)
        for k in (1, 4, 10):
            assert retrieval.accuracy_at_k(hits, k)[q] == float(any(found[:k]))
            depth = min(k, max(total, 1))
            assert retrieval.precision_at_k(hits, k)[q] == pytest.approx(sum(found[:depth]) / depth)


def test_a_perfect_order_scores_one_and_the_worst_order_its_closed_form():
    n, m = 20, 6
    best = np.arange(n)[None, :] < m
    assert retrieval.average_precision(best)[0] == 1
    assert all(retrieval.precision_at_k(best, k)[0] == 1 for k in (1, 6, 15))
    worst = best[:, ::-1]
    expected = np.mean([i / (n - m + i) for i in range(1, m + 1)])
    assert retrieval.average_precision(worst)[0] == pytest.approx(expected)
    assert retrieval.accuracy_at_k(worst, n - m)[0] == 0


@pytest.mark.parametrize("n, m, k", [(7, 1, 1), (7, 2, 3), (8, 5, 4), (5, 5, 2), (6, 3, 9)])
def test_chance_levels_are_means_over_all_orders(n, m, k):
    from itertools import combinations

    hits = np.zeros((0, n), bool)
    for places in combinations(range(n), m):
        row = np.zeros((1, n), bool)
        row[0, list(places)] = True
        hits = np.concatenate([hits, row])
    assert retrieval.chance_accuracy(np.array([m]), n, k)[0] == pytest.approx(
        retrieval.accuracy_at_k(hits, k).mean())
    assert retrieval.chance_average_precision(np.array([m]), n)[0] == pytest.approx(
        retrieval.average_precision(hits).mean())
    assert retrieval.precision_at_k(hits, k).mean() == pytest.approx(m / n)


# ---------------------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("scale", [False, True])
def test_prototypes_are_the_nearest_centroids_of_normalised_data(scale):
    from sklearn.neighbors import NearestCentroid
    from sklearn.preprocessing import Normalizer, StandardScaler

    rows = planted(signal=0.6)
    y = rows.about["label"].to_numpy()
    train = (rows.about["patient"] != "p0").to_numpy()
    X = rows.X * np.geomspace(1, 50, rows.X.shape[1])
    scaler = StandardScaler(with_std=scale).fit(X[train])
    z = Normalizer().fit_transform(scaler.transform(X))
    oracle = NearestCentroid().fit(z[train], y[train])
    ours = retrieval.Prototypes(scale).fit(X[train], y[train])
    np.testing.assert_allclose(ours.prototypes_, oracle.centroids_, atol=1e-12)
    np.testing.assert_array_equal(ours.predict(X[~train]), oracle.predict(z[~train]))
    distance = ((z[~train][:, None] - oracle.centroids_) ** 2).sum(-1)
    np.testing.assert_allclose(ours.distances(X[~train]), distance, atol=1e-12)


def test_a_constant_feature_counts_for_nothing_when_scaled():
    rows = planted()
    y = rows.about["label"].to_numpy()
    with_constant = np.column_stack([rows.X, np.full(len(rows.X), 7.3)])
    plain = retrieval.Prototypes(True).fit(rows.X, y)
    other = retrieval.Prototypes(True).fit(with_constant, y)
    np.testing.assert_allclose(other.distances(with_constant), plain.distances(rows.X), atol=1e-12)


# ------------------------------------------------------------------------------------ retrieval


@pytest.mark.parametrize("split", ["patient", "study"])
def test_no_patient_is_in_query_and_gallery(split):
    rows = planted()
    about = rows.about.copy()
    about.loc[about["section"] == "s3", "patient"] = "p0"  # a patient of two studies
    plan = retrieval.folds(about, split)
    asked = np.zeros(len(about), int)
    for fold in plan:
        asked += fold.query
        query, gallery = (set(about["patient"][side]) for side in (fold.query, fold.gallery))
        assert query.isdisjoint(gallery) and gallery
        if split == "study":
            assert set(about["study"][fold.query]).isdisjoint(about["study"][fold.gallery])
    assert (asked == 1).all()


def test_the_random_split_has_patients_on_both_sides_and_repeats_by_its_seed():
    about = planted().about
    plan = retrieval.folds(about, "random", seed=3)
    assert all(set(about["patient"][f.query]) & set(about["patient"][f.gallery]) for f in plan)
    again, other = (retrieval.folds(about, "random", seed=s) for s in (3, 4))
    assert all((a.query == b.query).all() for a, b in zip(plan, again, strict=True))
    assert any((a.query != b.query).any() for a, b in zip(plan, other, strict=True))


def test_planted_classes_are_found_and_in_noise_chance_is_what_it_says():
    rows = planted(signal=6.0)
    perfect = retrieval.retrieve(rows, "patient", ks=(1, 5))
    wanted = perfect[perfect["metric"] != "map"]
    assert (wanted["value"] == 1).all() and (perfect["value"] > 0.99).all()
    rng = np.random.default_rng(1)
    chance, values = [], []
    for _ in range(12):
        noise = Rows(rng.normal(size=rows.X.shape), rows.about)
        found = retrieval.retrieve(noise, "patient", ks=(1, 5))
        mean = found.groupby(["classifier", "metric"])[["value", "chance"]].mean()
        values.append(mean["value"])
        chance.append(mean["chance"])
    gap = pd.concat(values, axis=1).mean(axis=1) - pd.concat(chance, axis=1).mean(axis=1)
    assert gap.abs().max() < 0.05  # 12 x 144 tiles or 12 x 18 rankings


def test_nearest_equals_a_plain_loop():
    rows = planted(signal=0.8, n_patients=4, per_class=4)
    truth, patient = (rows.about[name].to_numpy() for name in ("label", "patient"))
    table = retrieval.retrieve(rows, "patient", ks=(3,)).query("classifier == 'nearest'")
    for who in np.unique(patient):
        query, gallery = np.flatnonzero(patient == who), np.flatnonzero(patient != who)
        mean = rows.X[gallery].mean(axis=0)
        scores = {name: [] for name in "abc"}
        for q in query:
            cosine = [np.dot(rows.X[q] - mean, rows.X[g] - mean)
                      / np.linalg.norm(rows.X[g] - mean) for g in gallery]
            top = gallery[np.argsort(cosine)[::-1][:3]]
            scores[truth[q]].append(truth[q] in truth[top])
        expected = np.mean([np.mean(s) for s in scores.values()])
        own = table[(table["patient"] == who) & (table["metric"] == "acc@3")]
        assert own["value"].item() == pytest.approx(expected)


def test_a_patient_of_one_class_is_no_unit_of_a_prototypes_ranking():
    rows = planted()
    kept = ~((rows.about["patient"] == "p0") & (rows.about["label"] != "a")).to_numpy()
    table = retrieval.retrieve(Rows(rows.X[kept], rows.about[kept]), "patient")
    ranking = table[(table["classifier"] == "prototypes") & (table["metric"] == "map")]
    assert set(ranking["patient"]) == {f"p{i}" for i in range(1, 6)}
    assert "p0" in set(table[table["metric"] == "acc@1"]["patient"])


def test_an_offset_per_patient_leaks_through_a_random_split_only():
    """Labels that follow the patient: nothing is learned that a new patient has."""
    rng = np.random.default_rng(0)
    patient = np.repeat([f"p{i}" for i in range(10)], 12)
    X = rng.normal(size=(10, 8))[np.repeat(np.arange(10), 12)] * 5 + rng.normal(size=(120, 8))
    about = pd.DataFrame({"section": patient, "study": "one", "patient": patient,
                          "label": np.where(np.repeat(np.arange(10) % 2, 12) == 0, "x", "y")})
    found = {split: retrieval.retrieve(Rows(X, about), split).query(
        "classifier == 'nearest' and metric == 'acc@1'")["value"].mean()
        for split in ("patient", "random")}
    assert found["random"] > 0.95 and found["patient"] < 0.7


def test_summary_has_the_contracts_columns_an_interval_and_one_chance_row():
    from mvhlib.statistics import t_interval

    rows = planted(signal=1.0)
    values = pd.concat([retrieval.retrieve(rows, "patient", encoder=name) for name in "uv"])
    table = retrieval.summarise(values, "planted")
    assert list(table.columns) == ["dataset", "encoder", "classifier", "split", "metric", "unit",
                                   "n_units", "mean", "ci_low", "ci_high"]
    own = values.query("encoder == 'u' and classifier == 'nearest' and metric == 'map'")["value"]
    row = table.query("encoder == 'u' and classifier == 'nearest' and metric == 'map'").iloc[0]
    expected = t_interval(own)
    assert row["n_units"] == 6
    np.testing.assert_allclose(row[["mean", "ci_low", "ci_high"]].astype(float),
                               [expected.mean, expected.low, expected.high])
    chance = table[table["encoder"] == "chance"]
    assert not chance.duplicated(["classifier", "metric"]).any()
    assert chance.query("classifier == 'prototypes' and metric == 'acc@1'")["mean"].item() == (
        pytest.approx(1 / 3))
    by_study = retrieval.summarise(values, "planted", unit="study")
    assert set(by_study["n_units"]) == {3}
    whole = retrieval.summarise(values.assign(value=1.0), "planted")
    assert whole["ci_low"].isna().all()  # no spread, no interval


def test_comparisons_are_paired_by_unit():
    rows = planted(signal=1.0)
    noise = Rows(np.random.default_rng(5).normal(size=rows.X.shape), rows.about)
    values = pd.concat([retrieval.retrieve(rows, "patient", encoder="good"),
                        retrieval.retrieve(noise, "patient", encoder="noise")])
    table = retrieval.compare(values, "encoder", "noise", classifier="prototypes",
                              split="patient", metric="acc@1")
    wide = values.query("classifier == 'prototypes' and metric == 'acc@1'").pivot(
        index="patient", columns="encoder", values="value")
    assert table["difference"].item() == pytest.approx((wide["good"] - wide["noise"]).mean())
    assert table["n_units"].item() == 6
    with pytest.raises(InputError, match="has no values"):
        retrieval.compare(values, "encoder", "absent", metric="map")


def test_bad_labels_and_cohorts_are_refused():
    rows = planted()
    lone = rows.about.assign(label=np.where(rows.about["patient"] == "p0", "rare",
                                            rows.about["label"]))
    with pytest.raises(InputError, match="'rare' is found in one patient only"):
        retrieval.retrieve(Rows(rows.X, lone), "patient")
    kept, dropped = retrieval.keep_classes(Rows(rows.X, lone), "patient")
    assert dropped == ["rare"] and set(kept.about["label"]) == {"a", "b", "c"}
    retrieval.retrieve(kept, "patient")
    partly = rows.about["label"].where(rows.about["patient"] != "p1", None)
    with pytest.raises(InputError, match="have none"):
        retrieval.retrieve(Rows(rows.X, rows.about.assign(label=partly)), "patient")
    with pytest.raises(InputError, match="two classes"):
        retrieval.retrieve(Rows(rows.X, rows.about.assign(label="a")), "patient")
    with pytest.raises(InputError, match="two or more"):
        retrieval.folds(rows.about.assign(patient="p0"), "patient")
    with pytest.raises(InputError, match="not known"):
        retrieval.folds(rows.about, "loso")
    nothing, _ = retrieval.keep_classes(Rows(rows.X, rows.about.assign(patient="p0")), "patient")
    assert len(nothing.X) == 0


def images(names):
    rng = np.random.default_rng(0)
    return {name: Features(rng.normal(size=(3, 4)).astype(np.float32), np.zeros((3, 2), int),
                           ["0", "1", "2"]) for name in names}


def test_an_image_is_the_mean_of_its_tiles():
    labels = pd.DataFrame({"image": ["u", "v"], "patient": [4, 7], "label": ["x", "y"]})
    given = images("vu")
    rows = retrieval.image_rows(given, labels)
    np.testing.assert_allclose(rows.X[1], given["v"].features.mean(axis=0), rtol=1e-6)
    assert list(rows.about["patient"]) == ["4", "7"] and list(rows.about.index) == ["u", "v"]


@pytest.mark.parametrize("change, message", [
    (lambda t: t[t["image"] != "u"], "have features and no label"),
    (lambda t: pd.concat([t, t.assign(image="w").iloc[:1]]), "have a label and no features"),
    (lambda t: pd.concat([t, t.iloc[:1]]), "occurs twice"),
    (lambda t: t.assign(label=["x", None]), "is empty for v"),
    (lambda t: t.drop(columns="patient"), "lacks"),
])
def test_labels_and_images_must_fit(change, message):
    labels = pd.DataFrame({"image": ["u", "v"], "patient": ["4", "7"], "label": ["x", "y"]})
    with pytest.raises(InputError, match=message):
        retrieval.image_rows(images("uv"), change(labels))


# -------------------------------------------------------------------- image against expression


def latent(seed, n=150, width=10, genes=14, shared=3, noise=0.3, mix=None):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, shared))
    a, b = mix or (rng.normal(size=(shared, width)), rng.normal(size=(shared, genes)))
    return (z @ a + noise * rng.normal(size=(n, width)),
            z @ b + noise * rng.normal(size=(n, genes)), (a, b))


def test_canonical_ridge_without_shrinkage_is_scikit_learns_cca():
    from sklearn.cross_decomposition import CCA

    X, Y, _ = latent(0, n=400, noise=1.0)
    ours = retrieval.CanonicalRidge(3, shrinkages=[0.0]).fit(X, Y)
    u, v = CCA(3, max_iter=5000, tol=1e-12).fit_transform(X, Y)
    oracle = [np.corrcoef(u[:, k], v[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(ours.correlations_, oracle, atol=1e-6)
    mine = ours.transform(X, Y)
    for k in range(3):
        assert abs(np.corrcoef(mine[0][:, k], u[:, k])[0, 1]) == pytest.approx(1, abs=1e-5)
        assert abs(np.corrcoef(mine[1][:, k], v[:, k])[0, 1]) == pytest.approx(1, abs=1e-5)


def test_full_shrinkage_is_partial_least_squares():
    from sklearn.cross_decomposition import PLSSVD

    X, Y, _ = latent(1)
    ours = retrieval.CanonicalRidge(3, shrinkages=[1.0]).fit(X, Y)
    u, v = PLSSVD(3).fit_transform(X, Y)
    for mine, theirs in zip(ours.transform(X, Y), (u, v), strict=True):
        for k in range(3):
            assert abs(np.corrcoef(mine[:, k], theirs[:, k])[0, 1]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("model", [retrieval.CanonicalRidge(), retrieval.RidgeMatch()])
def test_planted_shared_latents_find_their_pairs_in_new_sections(model):
    X, Y, mix = latent(2, noise=0.05)
    model.fit(X, Y, groups=np.repeat(list("abc"), 50), sections=np.repeat(list("abc"), 50))
    new_x, new_y, _ = latent(3, n=60, noise=0.05, mix=mix)
    scores = retrieval.match_scores(retrieval.similarity(*model.transform(new_x, new_y)), (1, 5))
    scores = scores.set_index("metric")["value"]
    for direction in retrieval.DIRECTIONS:
        assert scores[f"{direction}_recall@5"] > 0.95
        assert scores[f"{direction}_median_rank"] < 0.02
    strangers = np.random.default_rng(0).permutation(new_y)
    scores = retrieval.match_scores(retrieval.similarity(*model.transform(new_x, strangers)))
    scores = scores.set_index("metric")["value"]
    assert abs(scores["image_to_expression_median_rank"] - 0.5) < 0.15


def test_similarity_does_not_see_what_shifts_a_whole_section():
    X, Y, _ = latent(4, n=40)
    model = retrieval.CanonicalRidge(shrinkages=[0.1]).fit(X, Y)
    plain = retrieval.similarity(*model.transform(X, Y))
    moved = retrieval.similarity(*model.transform(X + 3.0, Y - 2.0))
    np.testing.assert_allclose(plain, moved, atol=1e-10)


def test_pair_ranks_equal_a_loop_and_ties_give_chance():
    matrix = np.random.default_rng(0).normal(size=(30, 30))
    expected = [1 + sum(matrix[i] > matrix[i, i]) for i in range(30)]
    np.testing.assert_array_equal(retrieval.pair_ranks(matrix), expected)
    flat = retrieval.match_scores(np.zeros((31, 31)), ks=(1,)).set_index("metric")["value"]
    assert flat["image_to_expression_median_rank"] == 0.5
    assert flat["image_to_expression_recall@1"] == 0
    perfect = retrieval.match_scores(np.eye(31), ks=(1,)).set_index("metric")
    assert set(perfect["value"]) == {1.0, 0.0}
    assert perfect.loc["expression_to_image_recall@1", "chance"] == pytest.approx(1 / 31)
    with pytest.raises(InputError, match="shape"):
        retrieval.match_scores(np.zeros((3, 4)))


class Section:
    """What `cross_modal` reads of a section."""

    def __init__(self, name, study, patient, adata):
        self.name, self.study, self.patient, self.adata = name, study, patient, adata


def counted(seed=0, n_studies=3, n=40):
    """Sections whose counts and features follow two shared factors; each study has its offset."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 6)), rng.normal(size=(2, 20))
    sections, features = [], {}
    for index in range(n_studies):
        z = rng.normal(size=(n, 2))
        rate = np.exp(0.8 * z @ b + 3 + rng.normal(size=20) * 0.3)
        adata = AnnData(obs=pd.DataFrame(index=[f"x{i}" for i in range(n)]),
                        var=pd.DataFrame(index=[f"g{i}" for i in range(20)]))
        adata.layers["counts"] = rng.poisson(rate).astype(np.float32)
        name = f"s{index}"
        sections.append(Section(name, f"study{index}", f"p{index}", adata))
        kept = np.sort(rng.permutation(n)[:n - 5])
        values = z @ a + rng.normal(size=6) * 4 + 0.1 * rng.normal(size=(n, 6))
        features[name] = Features(values[kept].astype(np.float32), np.zeros((n - 5, 2), int),
                                  [f"x{i}" for i in kept])
    return sections, features


def test_cross_modal_finds_planted_pairs_in_an_unseen_study():
    sections, features = counted()
    names = [s.name for s in sections]
    folds = pd.DataFrame([(s.study, other, "test" if other == s.name else "train")
                          for s in sections for other in names],
                         columns=["fold", "section", "role"])
    genes = {s.study: [f"g{i}" for i in range(0, 20, 2)] for s in sections}
    table = retrieval.cross_modal(sections, features, folds, genes, split="loso", encoder="e")
    assert list(table.columns) == list(retrieval.VALUE_COLUMNS)
    mean = table.groupby(["classifier", "metric"])[["value", "chance"]].mean()
    for method in ("ridge", "cca"):
        for direction in retrieval.DIRECTIONS:
            top = mean.loc[(method, f"{direction}_recall@5")]
            assert top["chance"] == pytest.approx(5 / 35) and top["value"] > 4 * top["chance"]
    with pytest.raises(InputError, match="neither"):
        retrieval.cross_modal(sections, features, folds, genes, split="random10_spot")
    with pytest.raises(InputError, match="has no genes"):
        retrieval.cross_modal(sections, features, folds, {}, split="loso")
    with pytest.raises(InputError, match="missing"):
        retrieval.cross_modal(sections, {k: features[k] for k in names[:2]}, folds, genes,
                              split="loso")


def test_cross_modal_never_reads_the_test_pairs_when_fitting():
    """Other expression in the test section changes nothing about the models of its fold."""
    sections, features = counted()
    folds = pd.DataFrame({"fold": "only", "section": ["s0", "s1", "s2"],
                          "role": ["train", "train", "test"]})
    genes = {"only": [f"g{i}" for i in range(20)]}
    first = retrieval.cross_modal(sections, features, folds, genes, split="loso")
    order = np.random.default_rng(9).permutation(40)
    sections[2].adata.layers["counts"] = sections[2].adata.layers["counts"][order]
    second = retrieval.cross_modal(sections, features, folds, genes, split="loso")
    ranks = [t[t["metric"].str.endswith("median_rank")]["value"].mean() for t in (first, second)]
    assert ranks[0] < 0.1 and 0.3 < ranks[1] < 0.7


def test_the_hits_of_a_fold_are_its_query_in_falling_likeness():
    rows = planted(signal=1.5)
    fold = retrieval.folds(rows.about, "patient")[2]
    table = retrieval.hits(rows, fold, n_hits=4)
    assert set(table.loc[table["place"] > 0, "patient"]) == {"p2"}
    assert "p2" not in set(table.loc[table["place"] == 0, "patient"])
    y = rows.about["label"].to_numpy()
    fitted = retrieval.Prototypes().fit(rows.X[fold.gallery], y[fold.gallery])
    place = {name: i for i, name in enumerate(rows.about.index)}
    for k, name in enumerate("abc"):
        own = table[table["prototype"] == name].sort_values("place")
        found = own["tile"].iloc[1:]
        distance = fitted.distances(rows.X[[place[t] for t in found]])[:, k]
        best = np.sort(fitted.distances(rows.X[fold.query])[:, k])[:4]
        np.testing.assert_allclose(distance, best)
        assert list(own["hit"]) == list(own["label"] == name)


@pytest.mark.slow
def test_umap_repeats_and_keeps_its_rows():
    rows = planted(signal=4.0)
    first, second = (retrieval.umap(rows, seed=1, max_rows=90) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert len(first) == 90 and np.isfinite(first[["umap1", "umap2"]]).all().all()
    place = first[["umap1", "umap2"]].to_numpy()
    gap = ((place[:, None] - place[None]) ** 2).sum(-1) + 1e9 * np.eye(90)
    label = first["label"].to_numpy()
    assert (label[gap.argmin(axis=1)] == label).mean() > 0.95


def test_images_of_nobody_leave_nothing_to_search():
    labels = pd.DataFrame({"image": ["a", "b"], "patient": [np.nan, np.nan], "label": ["x", "y"]})
    rows = retrieval.image_rows(images(["a", "b"]), labels)
    assert rows.about["patient"].isna().all()
    kept, dropped = retrieval.keep_classes(rows, "patient")
    assert len(kept.X) == 0 and dropped == ["x", "y"]
    nothing = pd.DataFrame(columns=list(retrieval.VALUE_COLUMNS))
    assert list(retrieval.summarise(nothing, "d").columns) == list(retrieval.SUMMARY_COLUMNS)
    tests = retrieval.compare_all(nothing, ["e"], ["patient", "study"])
    assert tests.empty and {"of", "classifier", "p_wilcoxon_holm"} <= set(tests.columns)
