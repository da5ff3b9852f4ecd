"""Attention MIL: the formula, streaming, resuming, and whether it finds what was planted."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mvhlib.artifacts import InputError
from mvhlib.downstream import mil
from mvhlib.features import Features, write_features
from mvhlib.training import FitConfig

QUICK = FitConfig(epochs=4, batch=8, lr=3e-3, optimizer="adamw", patience=0)


def write_bags(folder, sizes, width=6, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    bags = {}
    for index, n in enumerate(sizes):
        name = f"b{index:03d}"
        bags[name] = (rng.normal(size=(n, width)) + shift * rng.normal(size=width)).astype("f4")
        write_features(folder / f"{name}.h5", Features(
            bags[name], np.zeros((n, 2), int), [f"t{k}" for k in range(n)]))
    return bags


def network(width=6, n_classes=3, seed=0, **size):
    torch.manual_seed(seed)
    return mil.GatedAttention(width, n_classes, **size).eval()


def test_attention_is_the_papers():
    model, rng = network(), np.random.default_rng(0)
    model.mean.copy_(torch.tensor(rng.normal(size=6)))
    model.spread.copy_(torch.tensor(rng.uniform(0.5, 2, size=6)))
    bag = rng.normal(size=(9, 6)).astype("f4")
    p = {name: value.double().numpy() for name, value in model.state_dict().items()}
    h = np.maximum((bag - p["mean"]) / p["spread"] @ p["represent.0.weight"].T
                   + p["represent.0.bias"], 0)
    content = np.tanh(h @ p["content.0.weight"].T + p["content.0.bias"])
    gate = 1 / (1 + np.exp(-(h @ p["gate.0.weight"].T + p["gate.0.bias"])))
    log_attention = (content * gate) @ p["weigh.weight"][0] + p["weigh.bias"]
    a = np.exp(log_attention) / np.exp(log_attention).sum()
    z = (a[:, None] * h).sum(axis=0)
    logits = p["classify.weight"] @ z + p["classify.bias"]
    with torch.no_grad():
        found, attention = model(torch.tensor(bag)[None], torch.ones(1, 9, dtype=bool))
    np.testing.assert_allclose(attention[0], a, rtol=2e-5)
    np.testing.assert_allclose(found[0], logits, rtol=2e-5, atol=1e-6)


def test_parts_give_what_the_whole_gives():
    model, rng = network(seed=1), np.random.default_rng(1)
    bag = (8 * rng.normal(size=(53, 6))).astype("f4")
    with torch.no_grad():
        logits, attention = model(torch.tensor(bag)[None], torch.ones(1, 53, dtype=bool))
    for size in (1, 7, 53, 100):
        parts = (bag[start:start + size] for start in range(0, 53, size))
        found, weight = model.stream(parts)
        torch.testing.assert_close(found, logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weight, attention[0], rtol=1e-4, atol=1e-7)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-5)


def test_other_bags_of_a_batch_do_not_matter():
    model, rng = network(), np.random.default_rng(0)
    bags = [rng.normal(size=(n, 6)).astype("f4") for n in (3, 11, 1)]
    with torch.no_grad():
        together, weights = model(*mil._stacked(bags, "cpu"))
        for row, bag in enumerate(bags):
            alone, weight = model(*mil._stacked([bag], "cpu"))
            torch.testing.assert_close(together[row], alone[0])
            torch.testing.assert_close(weights[row, :len(bag)], weight[0])
            assert (weights[row, len(bag):] == 0).all()


@pytest.mark.parametrize("centre", [False, True])
def test_bags_larger_than_memory_are_read_in_parts(tmp_path, centre, monkeypatch):
    given = write_bags(tmp_path, [40, 5, 23], shift=3.0)
    kept = mil.Bags(tmp_path, list(given), centre=centre)
    small = mil.Bags(tmp_path, list(given), centre=centre, memory_mb=1e-4)
    read = []
    plain = np.asarray

    class Spy:
        def __init__(self, data):
            self.data, self.shape = data, data.shape

        def __len__(self):
            return len(self.data)

        def __getitem__(self, rows):
            read.append(len(self.data[rows]))
            return self.data[rows]

    dataset = mil.Bags._dataset
    monkeypatch.setattr(mil.Bags, "_dataset", staticmethod(lambda stream: Spy(dataset(stream))))
    for bag, name in enumerate(given):
        whole = given[name] - (given[name].mean(axis=0) if centre else 0)
        np.testing.assert_allclose(plain(kept.read(bag)), whole, atol=1e-5)
        rows = np.array([0, 2, 4])
        read.clear()
        np.testing.assert_allclose(small.read(bag, rows), whole[rows], atol=1e-5)
        assert read[0] == 3
        np.testing.assert_allclose(np.concatenate(list(small.parts(bag, 7))), whole, atol=1e-5)
    assert not small._kept and len(kept._kept) == 3
    monkeypatch.undo()
    model = network()
    by_parts, _ = mil.predict(model, small, [0, 1, 2], max_tiles=4)
    at_once, _ = mil.predict(model, kept, [0, 1, 2])
    torch.testing.assert_close(by_parts, at_once, rtol=1e-5, atol=1e-5)


def test_a_step_sees_other_tiles_of_a_large_bag_each_time():
    draws = [mil._draw(1000, 50, 0, epoch, 3) for epoch in range(2)]
    for rows in draws:
        assert len(set(rows)) == 50 and (np.diff(rows) > 0).all()
    assert set(draws[0]) != set(draws[1])
    np.testing.assert_array_equal(draws[0], mil._draw(1000, 50, 0, 0, 3))
    assert mil._draw(50, 50, 0, 0, 3) == slice(None)


def test_moments_are_those_of_the_training_tiles(tmp_path):
    given = write_bags(tmp_path, [9, 30, 14], shift=100.0)
    bags = mil.Bags(tmp_path, list(given))
    mean, spread = mil._moments(bags, np.array([0, 2]), size=4)
    tiles = np.concatenate([given["b000"], given["b002"]]).astype(float)
    np.testing.assert_allclose(mean, tiles.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(spread, tiles.std(axis=0), rtol=1e-4)


def planted_bags(folder, n=90, size=12, width=8, seed=0):
    """Bags of class ``b`` hold two tiles that are moved along one direction."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(n) % 2 == 0, "a", "b")
    names, truth = [f"s{index:03d}" for index in range(n)], {}
    for name, label in zip(names, labels, strict=True):
        X, marked = rng.normal(size=(size, width)), np.zeros(size, bool)
        marked[rng.choice(size, 2, replace=False)] = label == "b"
        X[marked, 0] += 4
        truth[name] = marked
        write_features(folder / f"{name}.h5", Features(
            X.astype("f4"), np.zeros((size, 2), int), [f"t{k}" for k in range(size)]))
    patients = np.array([f"p{index // 2}" for index in rng.permutation(n)])
    return names, labels, patients, truth


@pytest.mark.slow
def test_planted_tiles_are_found_on_patients_not_seen(tmp_path):
    names, labels, patients, truth = planted_bags(tmp_path)
    result = mil.cross_validate(mil.Bags(tmp_path, names), labels, patients, n_folds=3, starts=2,
                                config=FitConfig(epochs=40, batch=16, lr=5e-3, optimizer="adamw",
                                                 weight_decay=1e-2, patience=15))
    for name in np.unique(patients):
        assert len(set(result.fold[patients == name])) == 1
    table = result.table(dataset="d", encoder="e").set_index("metric")
    assert table.loc["auroc", "ci_low"] > 0.8 and table.loc["auroc", "n_units"] == 45
    found = mil.attention_auroc(result.attention, truth)
    assert set(found["slide"]) == {n for n, label in zip(names, labels, strict=True)
                                   if label == "b"}
    assert found["auroc"].mean() > 0.9
    for _, row in found.iterrows():
        assert row["auroc"] == pytest.approx(
            roc_auc_score(truth[row["slide"]], result.attention[row["slide"]]))
    owner = dict(zip(names, patients, strict=True))
    row = mil.attention_row(found, owner, dataset="d", encoder="e").iloc[0]
    per_patient = found.groupby(found["slide"].map(owner))["auroc"].mean()
    assert row["n_units"] == len(per_patient) and row["mean"] == pytest.approx(per_patient.mean())
    assert row["ci_low"] < row["mean"] <= row["ci_high"] <= 1


def test_sites_are_held_out_as_patients_are(tmp_path):
    names, labels, _, truth = planted_bags(tmp_path, n=24)
    sites = np.array([f"h{index // 2 % 4}" for index in range(24)])
    bags = mil.Bags(tmp_path, names)
    result = mil.cross_validate(bags, labels, sites, n_folds=4, starts=1, config=QUICK,
                                unit="study")
    assert pd.Series(result.fold).groupby(sites).nunique().max() == 1
    table = result.table(dataset="d", encoder="e", split="grouped_study", unit="study")
    assert set(table["split"]) == {"grouped_study"} and set(table["n_units"]) == {4}
    row = mil.attention_row(mil.attention_auroc(result.attention, truth),
                            dict(zip(names, sites, strict=True)), dataset="d", encoder="e",
                            split="grouped_study", unit="study").iloc[0]
    assert (row["split"], row["unit"], row["n_units"]) == ("grouped_study", "study", 4)
    with pytest.raises(InputError, match="has one study"):
        mil.cross_validate(bags, labels, np.where(labels == "a", "h0", "h1"), unit="study")


def test_killed_training_ends_with_the_same_weights(tmp_path):
    given = write_bags(tmp_path / "bags", [30] * 12)
    labels, rows = np.arange(12) % 2, np.arange(9)

    class Killed(mil.Bags):
        left = 10**9

        def read(self, bag, tiles=slice(None)):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().read(bag, tiles)

    def train(folder, left=10**9):
        bags = Killed(tmp_path / "bags", list(given))
        bags.left = left
        return mil.train(bags, labels, rows, np.arange(9, 12), n_classes=2, config=QUICK,
                         max_tiles=10, folder=folder, key="k")

    whole, fit = train(tmp_path / "whole")
    for left in (50, 60):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", left)
    assert list((tmp_path / "killed" / "state").glob("*.pt"))
    again, refit = train(tmp_path / "killed")
    assert fit.log == refit.log and fit.best_epoch == refit.best_epoch
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    assert (tmp_path / "whole" / "log.csv").read_bytes() == (
        tmp_path / "killed" / "log.csv").read_bytes()


def test_equal_seeds_give_equal_answers_and_other_recipes_other_folders(tmp_path):
    names, labels, patients, _ = planted_bags(tmp_path / "bags", n=24)
    bags = mil.Bags(tmp_path / "bags", names)
    settings = {"n_folds": 2, "starts": 1, "config": QUICK}
    first = mil.cross_validate(bags, labels, patients, **settings, folder=tmp_path / "a")
    state = torch.random.get_rng_state()
    torch.rand(5)
    second = mil.cross_validate(bags, labels, patients, **settings)
    np.testing.assert_array_equal(first.probability, second.probability)
    torch.random.set_rng_state(state)
    mil.cross_validate(bags, labels, patients, **settings, folder=tmp_path / "a", hidden=8)
    assert len(list((tmp_path / "a").iterdir())) == 2
    other = mil.cross_validate(bags, labels, patients, **settings | {"starts": 3})
    best = [fit.log[fit.best_epoch - 1]["valid_loss"] for fit in other.fits]
    one = [fit.log[fit.best_epoch - 1]["valid_loss"] for fit in first.fits]
    assert all(a <= b for a, b in zip(best, one, strict=True))


def test_bad_bags_are_refused(tmp_path):
    write_bags(tmp_path, [5, 0, 4])
    with pytest.raises(InputError, match="have no tile in \\['b001'\\]"):
        mil.Bags(tmp_path, ["b000", "b001", "b002"])
    with pytest.raises(InputError, match="does not exist"):
        mil.Bags(tmp_path, ["b000", "absent"])
    with pytest.raises(InputError, match="are none"):
        mil.Bags(tmp_path, [])
    write_features(tmp_path / "wide.h5", Features(np.zeros((2, 7)), np.zeros((2, 2)), ["a", "b"]))
    with pytest.raises(InputError, match="differ in width"):
        mil.Bags(tmp_path, ["b000", "wide"])
    import h5py

    with h5py.File(tmp_path / "broken.h5", "w") as stream:
        stream["features"] = np.full((3, 6), np.nan, "f4")
    with pytest.raises(InputError, match="NaN or infinity"):
        mil.Bags(tmp_path, ["broken"]).read(0)
    with pytest.raises(InputError, match="one of each per bag"):
        mil.cross_validate(mil.Bags(tmp_path, ["b000", "b002"]), ["a"], ["p", "q"])
    with pytest.raises(InputError, match="has one patient"):
        mil.cross_validate(mil.Bags(tmp_path, ["b000", "b002"]), ["a", "b"], ["p", "q"])
    with pytest.raises(InputError, match="has 2 tiles of 3"):
        mil.attention_auroc({"s": np.ones(3)}, {"s": [True, False]})


def test_attention_is_drawn_where_the_tiles_are():
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    slide = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    coords = np.array([(x, y) for y in (0, 8, 16) for x in (0, 8, 16, 24)]) + 100
    img = np.stack([slide[y - 100:y - 92, x - 100:x - 92] for x, y in coords])
    np.testing.assert_array_equal(mil._mosaic(img, coords.astype(float), 8.0), slide)
    fig, axes = plt.subplots(1, 2)
    values, marked = rng.random(12), np.arange(12) == 5
    drawn = mil.attention_map(coords, values, 8.0, axes[0], marked=marked)
    squares = drawn.collections[0]
    np.testing.assert_array_equal(np.argsort(squares.get_array()), np.argsort(values))
    assert len(squares.get_paths()) == 12 and len(drawn.patches) == 1
    assert drawn.patches[0].get_x() == pytest.approx(coords[5, 0] + 0.48)
    assert drawn.get_xlim() == (100, 132) and drawn.get_ylim() == (124, 100)
    mil.attention_map(coords, values, 8.0, axes[1], img=img)
    np.testing.assert_array_equal(axes[1].images[0].get_array(), slide)
    plt.close(fig)


def test_tridents_features_are_read_as_ours(tmp_path):
    import h5py

    bags = write_bags(tmp_path / "ours", [5, 3])
    (tmp_path / "trident").mkdir()
    for name, values in bags.items():
        with h5py.File(tmp_path / "trident" / f"{name}.h5", "w") as stream:
            stream["features"] = values[None]
    ours, theirs = (mil.Bags(tmp_path / layout, list(bags)) for layout in ("ours", "trident"))
    assert list(theirs.sizes) == [5, 3] and theirs.width == ours.width
    for bag in range(2):
        np.testing.assert_array_equal(ours.read(bag), theirs.read(bag))
