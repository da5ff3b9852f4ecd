"""Probes against scikit-learn, their folds, and their intervals."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mvhlib.artifacts import InputError
from mvhlib.downstream import probe
from mvhlib.features import Features
from mvhlib.tiles import stain, store
from mvhlib.tiles.cut import Tiles


def people(n_patients=12, per_patient=6, n_classes=2, width=5, signal=1.0, patient=0.0, seed=0):
    """Rows whose class moves the embedding by `signal`, and whose patient moves it by `patient`."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"p{k}" for k in range(n_patients)], per_patient)
    classes = np.tile(np.arange(n_classes), len(groups))[:len(groups)]
    X = rng.normal(size=(len(groups), width))
    X += signal * rng.normal(size=(n_classes, width))[classes]
    X += patient * np.repeat(rng.normal(size=(n_patients, width)), per_patient, axis=0)
    return X, np.array([f"class{k}" for k in classes]), groups


@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic_is_scikit_learns(n_classes):
    X, labels, groups = people(n_classes=n_classes)
    X = np.c_[X, np.full(len(X), 3.0)]  # a constant column must not matter
    penalty = 0.02
    ours = probe.LogisticProbe([penalty]).fit(X, labels, groups)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(
        C=1 / (penalty * len(X)), tol=1e-8, max_iter=5000)).fit(X, labels)
    new = np.random.default_rng(1).normal(size=(20, X.shape[1]))
    new[:, -1] = 3.0
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_allclose(ours.predict_proba(new), theirs.predict_proba(new), atol=2e-3)


def test_penalty_is_chosen_by_log_loss_on_unseen_patients():
    X, labels, groups = people(n_patients=9, signal=0.4, patient=1.5, seed=3)
    ours = probe.LogisticProbe(seed=5).fit(X, labels, groups)
    inner = probe.splits.deal(labels, groups, "grouped", probe.classifiers.INNER_FOLDS, [5, 1])
    assert all(len(np.unique(inner[groups == name])) == 1 for name in np.unique(groups))
    losses = []
    for penalty in probe.PENALTIES:
        total = 0.0
        for k in range(probe.classifiers.INNER_FOLDS):
            train = inner != k
            model = make_pipeline(StandardScaler(), LogisticRegression(
                C=1 / (penalty * train.sum()), tol=1e-8, max_iter=5000))
            model.fit(X[train], labels[train])
            total += metrics.log_loss(labels[~train], model.predict_proba(X[~train]),
                                      normalize=False, labels=model.classes_)
        losses.append(total)
    assert ours.penalty_ == probe.PENALTIES[int(np.argmin(losses))]
    assert len(set(np.round(losses, 3))) > 1


def test_neighbours_are_scikit_learns():
    X, labels, groups = people(n_classes=3, n_patients=20)
    ours = probe.NearestNeighbours(7).fit(X, labels, groups)
    new = np.random.default_rng(1).normal(size=(30, X.shape[1]))

    def centred(values):
        values = values - X.mean(axis=0)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    theirs = KNeighborsClassifier(7, metric="cosine").fit(centred(X), labels)
    np.testing.assert_allclose(ours.predict_proba(new, batch=8), theirs.predict_proba(centred(new)))
    few = probe.NearestNeighbours(50).fit(X[:6], labels[:6])
    np.testing.assert_allclose(few.predict_proba(new)[:, 0], (labels[:6] == "class0").mean())


@pytest.mark.parametrize("n_classes", [2, 4])
def test_scores_are_scikit_learns(n_classes):
    rng = np.random.default_rng(0)
    _, truth, groups = people(n_classes=n_classes)
    probability = rng.dirichlet(np.ones(n_classes), len(truth)).round(1)  # many ties
    probability = (probability + 1e-3) / (probability + 1e-3).sum(axis=1, keepdims=True)
    classes = np.unique(truth)
    found = probe.score(truth, probability, classes, groups)
    called = classes[probability.argmax(axis=1)]

    def oracle(rows):
        area = (metrics.roc_auc_score(truth[rows], probability[rows, 1]) if n_classes == 2 else
                np.mean([metrics.roc_auc_score(truth[rows] == name, probability[rows, k])
                         for k, name in enumerate(classes)]))
        return {"balanced_accuracy": metrics.balanced_accuracy_score(truth[rows], called[rows]),
                "weighted_f1": metrics.f1_score(truth[rows], called[rows], average="weighted"),
                "auroc": area}

    everyone = found.metrics(np.ones((1, found.n_units)))
    for name, value in oracle(np.arange(len(truth))).items():
        assert everyone[name][0] == pytest.approx(value, abs=1e-12)
    # A draw of patients is the same as their rows, repeated.
    weights = rng.multinomial(found.n_units, np.full(found.n_units, 1 / found.n_units))
    unit = np.unique(groups, return_inverse=True)[1]
    drawn = found.metrics(weights[None].astype(float))
    for name, value in oracle(np.repeat(np.arange(len(truth)), weights[unit])).items():
        assert drawn[name][0] == pytest.approx(value, abs=1e-12)


def test_auroc_within_folds_is_a_plain_loop():
    rng = np.random.default_rng(0)
    truth, fold = rng.choice(["a", "b"], 40), rng.integers(0, 3, 40)
    value = rng.random(40)
    found = probe.score(truth, np.c_[1 - value, value], ["a", "b"], np.arange(40), fold=fold)
    right = total = 0
    for i in np.flatnonzero(truth == "b"):
        for j in np.flatnonzero(truth == "a"):
            if fold[i] == fold[j]:
                right, total = right + (value[i] > value[j]), total + 1
    assert found.metrics(np.ones((1, 40)))["auroc"][0] == pytest.approx(right / total)


@pytest.mark.parametrize("seed", range(5))
def test_grouped_folds_never_share_a_patient(seed):
    X, labels, groups = people(n_patients=11, per_patient=7, n_classes=3, seed=seed)
    fold = probe.folds(labels, groups, n_folds=4, seed=seed)
    assert pd.Series(fold).groupby(groups).nunique().max() == 1
    assert set(fold) == set(range(4))
    for k in range(4):
        assert set(labels[fold != k]) == set(labels)
    mixed = probe.folds(labels, groups, split="random", n_folds=4, seed=seed)
    assert pd.Series(mixed).groupby(groups).nunique().min() > 1
    np.testing.assert_array_equal(fold, probe.folds(labels, groups, n_folds=4, seed=seed))
    result = probe.evaluate(X, labels, groups, n_folds=4, seed=seed, classifier="knn", repeats=2)
    assert all(pd.Series(cut).groupby(groups).nunique().max() == 1 for cut in result.fold)
    assert np.isfinite(result.probability).all() and len(result.fold) == 2


def test_a_class_with_two_patients_is_always_trained():
    groups = np.repeat([f"p{k}" for k in range(12)], 3)
    labels = np.where(np.isin(groups, ["p3", "p8"]), "rare", "common")
    for seed in range(20):
        fold = probe.folds(labels, groups, n_folds=3, seed=seed)
        assert all((labels[fold != k] == "rare").any() for k in range(3))


def test_two_rows_per_class_are_enough():
    X, _, _ = people(n_patients=10, per_patient=1)
    labels = np.repeat([f"site{k}" for k in range(5)], 2)
    found = probe.evaluate(X, labels, np.arange(10), n_folds=5)
    assert set(found.fold[0]) == {0, 1} and np.isfinite(found.probability).all()


def test_bad_input_is_refused():
    X, labels, groups = people()
    alone = np.where(groups == "p3", "rare", labels)
    with pytest.raises(InputError, match="'rare': has one patient \\(p3\\)"):
        probe.evaluate(X, alone, groups)
    once = labels.copy()
    once[0] = "rare"
    with pytest.raises(InputError, match="'rare': has one row"):
        probe.evaluate(X, once, groups, split="random")
    with pytest.raises(InputError, match="is not named for 6 rows"):
        probe.evaluate(X, labels, np.where(groups == "p3", "", groups))
    with pytest.raises(InputError, match="two classes or more"):
        probe.evaluate(X, np.full(len(X), "a"), groups)
    with pytest.raises(InputError, match="NaN or infinity"):
        probe.evaluate(np.where(X > 2, np.nan, X), labels, groups)
    with pytest.raises(InputError, match="one row per label"):
        probe.evaluate(X[1:], labels, groups)
    with pytest.raises(InputError, match="trains on"):
        probe.evaluate(X, labels, groups, fold=np.where(labels == "class0", 0, -1))
    with pytest.raises(InputError, match="logistic or knn"):
        probe.evaluate(X, labels, groups, classifier="forest")
    with pytest.raises(InputError, match="the classifier was not trained"):
        probe.score(["a", "c"], np.eye(2), ["a", "b"], [0, 1])


def test_a_random_split_leaks_patients_that_a_grouped_one_holds_out():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"p{k:02d}" for k in range(24)], 8)
    labels = np.repeat(np.where(rng.permutation(24) < 12, "a", "b"), 8)
    X = np.repeat(rng.normal(size=(24, 30)), 8, axis=0) + 0.3 * rng.normal(size=(192, 30))
    found = probe.compare(X, pd.DataFrame({"label": labels, "patient": groups}), dataset="d",
                          encoder="e")
    area = found.leaks[found.leaks["metric"] == "auroc"].set_index("classifier")
    # 20 neighbours cannot all be among the 8 rows of one patient.
    assert area.loc["logistic", "random"] > 0.95 and area.loc["knn", "random"] > 0.7
    assert (area["ci_low"] > 0.1).all()
    table = found.table.set_index(["classifier", "split", "metric"])
    assert tuple(found.table.columns) == probe.COLUMNS
    for classifier in ("logistic", "knn"):
        low, high = table.loc[(classifier, "grouped", "auroc"), ["ci_low", "ci_high"]]
        assert low < 0.5 < high
        assert area.loc[classifier, "leak"] == pytest.approx(
            table.loc[(classifier, "random", "auroc"), "mean"]
            - table.loc[(classifier, "grouped", "auroc"), "mean"])


def test_splits_follow_what_is_known():
    X, labels, groups = people()
    about = pd.DataFrame({"label": labels, "patient": groups})

    def splits(frame, rows=slice(None)):
        found = probe.compare(X[rows], frame[rows], dataset="d", encoder="e", classifiers=["knn"])
        return found, {split: set(part["unit"]) for split, part in found.table.groupby("split")}

    assert splits(about)[1] == {"grouped": {"patient"}, "random": {"patient"}}
    assert splits(about, slice(None, None, 5))[1].keys() == {"grouped", "random"}
    own = about.assign(patient=np.arange(len(about)))
    assert splits(own)[1] == {"grouped": {"patient"}}
    unknown, found = splits(about.assign(patient="", partition=np.where(
        np.arange(len(about)) % 3, "train", "test")))
    assert found == {"random": {"image"}, "given": {"image"}}
    assert list(unknown.left_out["split"]) == ["grouped"]
    assert np.isnan(unknown.results["knn", "given"].probability[0][1]).all()
    studied, found = splits(about.assign(study=[f"s{int(name[1:]) % 4}" for name in groups]))
    assert found["grouped_study"] == {"study"}
    tested = studied.results["knn", "grouped_study"].fold[0]
    assert pd.Series(tested).groupby([int(name[1:]) % 4 for name in groups]).nunique().max() == 1
    confounded, _ = splits(about.assign(study=labels))
    assert "has one study" in confounded.left_out["reason"].iloc[0]


def test_a_published_partition_is_one_fold():
    X, labels, groups = people(n_patients=20)
    test = np.isin(groups, ["p1", "p2", "p3", "p4"])
    found = probe.evaluate(X, labels, groups, fold=np.where(test, 0, -1))
    model = probe.LogisticProbe(seed=0).fit(X[~test], labels[~test], groups[~test])
    np.testing.assert_allclose(found.probability[0][test], model.predict_proba(X[test]))
    assert found.scores.n_units == 4


def test_bundles_of_units_keep_the_scores(monkeypatch):
    X, labels, groups = people(n_patients=60, per_patient=2, signal=0.5)
    whole = probe.evaluate(X, labels, groups).scores.intervals()
    monkeypatch.setattr(probe.scores, "MOST_UNITS", 30)
    bundled = probe.evaluate(X, labels, groups).scores
    assert len(bundled.confusion) == 30 and bundled.n_units == 60
    found = bundled.intervals()
    np.testing.assert_allclose(found["mean"], whole["mean"])
    width, other = (frame["ci_high"] - frame["ci_low"] for frame in (whole, found))
    assert ((other / width > 0.5) & (other / width < 2)).all()


def test_means_of_images():
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=(n, 3)) for name, n in (("a", 2), ("b", 5))}
    packed = given | {"b": Features(given["b"], np.zeros((5, 2)), list("vwxyz"))}
    np.testing.assert_allclose(probe.image_means(packed, ["b", "a"]),
                               [given["b"].mean(axis=0), given["a"].mean(axis=0)])
    with pytest.raises(InputError, match="missing for \\['c'\\]"):
        probe.image_means(given, ["a", "c"])
    with pytest.raises(InputError, match="none in \\['d'\\]"):
        probe.image_means(given | {"d": np.zeros((0, 3))}, ["a", "d"])


def test_colour_features_are_read_in_parts(tmp_path):
    img = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    names = [f"t{k}" for k in range(7)]
    tiles = Tiles(img, np.zeros((7, 2), int), np.zeros(7), 16, 8.0, 0.5, 0.5)
    store.write_tiles(tmp_path / "s.h5", tiles, names)
    found = probe.colour_features(tmp_path, ["s"], batch=3)["s"]
    np.testing.assert_allclose(found.features, stain.colour_statistics(img), rtol=1e-6)
    assert found.barcodes == names


def test_rows_that_can_be_held_out_and_thinning():
    labels = ["a", "a", "b", "b", None, "c"]
    usable = probe.in_two_units(labels, ["p", "q", "p", "p", "q", "q"])
    np.testing.assert_array_equal(usable, [True, True, False, False, False, False])
    groups = np.repeat(["x", "y"], [50, 3])
    kept = probe.thin(groups, 10, seed=1)
    assert (groups[kept] == "x").sum() == 10 and (groups[kept] == "y").sum() == 3
    assert (np.diff(kept) > 0).all()


def test_confusion_is_drawn_as_it_is_tabled():
    import matplotlib.pyplot as plt

    X, labels, groups = people(n_classes=3)
    scores = probe.evaluate(X, labels, groups, classifier="knn").scores
    table = probe.confusion_table(scores)
    np.testing.assert_allclose(table.groupby("is")["share"].sum(), 1)
    fig, ax = plt.subplots()
    assert probe.confusion_matrix(scores, ax) is ax
    drawn = [float(text.get_text()) for text in ax.texts]
    np.testing.assert_allclose(drawn, table["share"], atol=0.005)
    plt.close(fig)


def test_intervals_cover_at_sixteen_patients():
    """Rows of a patient share an offset; the truth is AUROC over a large population."""
    rng = np.random.default_rng(0)

    def draw(n_patients):
        unit = np.repeat(np.arange(n_patients), 6)
        truth = np.tile([0, 1], len(unit) // 2)
        value = 0.6 * truth + rng.normal(size=len(unit)) + 0.8 * rng.normal(size=n_patients)[unit]
        return probe.score(np.array(["a", "b"])[truth], np.c_[-value, value], ["a", "b"], unit)

    truth = draw(900).metrics(np.ones((1, 900)))["auroc"][0]
    hits = 0
    for _ in range(300):
        row = draw(16).intervals(n_boot=299).set_index("metric").loc["auroc"]
        hits += row["ci_low"] <= truth <= row["ci_high"]
    assert hits / 300 > 0.91


@pytest.mark.slow
def test_glas_leaks_patients(shared, tmp_path):
    from mvhlib import encoders, features
    from mvhlib.tiles import labelled

    if not (shared / "data" / "glas").is_dir():
        pytest.skip("needs the glas data set")
    images = labelled.read("glas", shared / "data" / "glas")
    labelled.cut(images, tmp_path, tile_um=140, tile_px=224, mpp=0.62)
    encoders.encode_folder(encoders.create_encoder("handmade"), tmp_path / "tiles", tmp_path / "f")
    X = probe.image_means(features.read_folder(tmp_path / "f"), [image.name for image in images])
    about = pd.DataFrame({"label": [image.label for image in images],
                          "patient": [image.patient for image in images]})
    found = probe.compare(X, about, dataset="glas", encoder="handmade", classifiers=["logistic"],
                          repeats=5)
    row = found.leaks.set_index("metric").loc["auroc"]
    assert row["grouped"] < 0.75 and row["random"] > 0.85 and row["ci_low"] > 0


def test_a_classifier_that_has_too_few_patients_is_left_out_alone():
    X, about = np.random.default_rng(0).normal(size=(8, 3)), pd.DataFrame({
        "label": list("aabb") * 2, "patient": ["p"] * 4 + ["q"] * 4})
    found = probe.compare(X, about, dataset="d", encoder="e")
    assert "grouped, logistic" in set(found.left_out["split"])
    assert found.left_out["reason"].str.contains("too few to choose a penalty on").any()
    assert ("knn", "grouped") in found.results and len(found.table)
