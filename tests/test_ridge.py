"""The ridge solver against scikit-learn, HEST's own numbers, and what must not leak."""

import tracemalloc

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mvhlib.artifacts import InputError
from mvhlib.expression import ridge
from mvhlib.expression.ridge import (
    DEFAULT_ALPHAS,
    GroupMoments,
    RidgeProbe,
    choose_alpha,
    hest_ridge,
)


def make_groups(seed=0, sizes=(60, 45, 80, 30, 70), width=24, n_genes=3, mean=0.0):
    """Groups with their own offset and scale, correlated features, as studies have."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) / 3 + np.eye(width)
    beta = rng.standard_normal((width, n_genes))
    groups = {}
    for number, size in enumerate(sizes):
        x = rng.standard_normal((size, width)) @ mix * rng.uniform(0.5, 2, width)
        x += mean + rng.standard_normal(width)
        y = x @ beta / 10 + rng.standard_normal((size, n_genes)) + rng.standard_normal(n_genes)
        groups[f"s{number}"] = (x.astype(np.float32), y.astype(np.float32))
    return groups


def gather(groups, **options):
    moments = GroupMoments(**options)
    for name, (x, y) in groups.items():
        moments.add(name, x, y)
    return moments


def stack(groups, names):
    return tuple(np.concatenate([groups[name][side] for name in names]).astype(np.float64)
                 for side in (0, 1))


def reference(groups, train, alpha):
    x, y = stack(groups, train)
    return make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="svd")).fit(x, y)


# The third case has fewer spots than features, the fourth features far from zero, the fifth more
# (penalty, gene) pairs than 2 D, which takes the other path through the held-out matrix; the next
# two cut that matrix into blocks, the last penalties into groups as well.
@pytest.mark.parametrize("case", [
    {}, {"sizes": (50, 3, 20)}, {"sizes": (6, 7, 5, 8), "width": 40}, {"mean": 1e3},
    {"n_genes": 60, "width": 12}, {"sizes": (150, 200, 90), "width": 140},
    {"sizes": (150, 200, 90), "width": 140, "n_genes": 300}])
def test_every_fold_and_penalty_equals_scikit_learn(case):
    groups = make_groups(**case)
    moments = gather(groups, chunk_rows=32)
    worst = 0.0
    for held_out, (x, y) in groups.items():
        train = [name for name in groups if name != held_out]
        pcc, mse = moments.decompose(train).fit().score(moments.groups[held_out], DEFAULT_ALPHAS)
        for number, alpha in enumerate(DEFAULT_ALPHAS):
            expected = reference(groups, train, alpha).predict(x.astype(np.float64))
            coef, intercept = ridge.solve(moments, train, alpha)
            found = ridge.predict(x, coef, intercept)
            worst = max(worst, np.abs(found - expected).max())
            r = [np.corrcoef(expected[:, g], y[:, g])[0, 1] for g in range(y.shape[1])]
            np.testing.assert_allclose(pcc[number], r, atol=1e-7)
            np.testing.assert_allclose(
                mse[number], mean_squared_error(y.astype(np.float64), expected,
                                                multioutput="raw_values"), rtol=1e-7)
    assert worst < 1e-6


def test_collinear_features_are_as_exact():
    # Encoders' features are nearly dependent; sums of float32 products miss this bound by far.
    groups = make_groups(sizes=(900, 800, 1000), width=60)
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((60, 60)))[0] for _ in range(2))
    squeeze = left * np.logspace(0, -4, 60) @ right
    groups = {name: ((x @ squeeze).astype(np.float32), y) for name, (x, y) in groups.items()}
    moments = gather(groups, chunk_rows=256)
    for held_out, (x, _) in groups.items():
        train = [name for name in groups if name != held_out]
        for alpha in DEFAULT_ALPHAS:
            expected = reference(groups, train, alpha).predict(x.astype(np.float64))
            found = ridge.predict(x, *ridge.solve(moments, train, alpha))
            assert np.abs(found - expected).max() < 1e-6


def test_gene_columns_are_solved_as_if_alone():
    groups = make_groups(n_genes=6)
    moments = gather(groups)
    train = ["s0", "s1", "s2"]
    coef, intercept = ridge.solve(moments, train, 3.0, columns=[4, 1])
    whole, all_intercepts = ridge.solve(moments, train, 3.0)
    np.testing.assert_allclose(coef, whole[:, [4, 1]], rtol=1e-12)
    np.testing.assert_allclose(intercept, all_intercepts[[4, 1]], rtol=1e-12)


def test_rows_may_come_in_pieces():
    groups = make_groups()
    whole = gather(groups)
    pieces = GroupMoments(chunk_rows=7)
    for name, (x, y) in groups.items():
        for start in range(0, len(x), 19):
            pieces.add(name, x[start:start + 19], y[start:start + 19])
    for held_out in groups:
        train = [name for name in groups if name != held_out]
        for a, b in zip(ridge.solve(whole, train, 0.5), ridge.solve(pieces, train, 0.5),
                        strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kept", [["s0"], ["s1"], ["s0", "s1", "s2", "s4"]])
def test_subset_is_the_sum_of_its_groups_whatever_is_left_out(kept):
    groups = make_groups(sizes=(30, 4000, 50, 60, 20))
    moments = gather(groups)
    found = moments.subset(kept)
    x, y = stack(groups, kept)
    x, y = x - moments.shift_x, y - moments.shift_y
    assert found.n == len(x)
    np.testing.assert_allclose(found.xx, x.T @ x, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(found.xy, x.T @ y, rtol=1e-9, atol=1e-8)


def test_constant_features_and_genes_are_no_correlations():
    groups = make_groups()
    for name, (x, y) in groups.items():
        x[:, 5] = 0.1  # constant everywhere
        y[:, 1] = 0.3 if name != "s0" else y[:, 1]  # varies in s0 only
    moments = gather(groups)
    pcc, mse = moments.decompose(["s1", "s2", "s3"]).fit().score(moments.groups["s0"], [1.0, 10.0])
    assert np.isnan(pcc[:, 1]).all()  # nothing was learned, so the prediction is constant
    assert np.isfinite(pcc[:, [0, 2]]).all() and np.isfinite(mse).all()
    pcc, _ = moments.decompose(["s0", "s2"]).fit().score(moments.groups["s1"], [1.0])
    assert np.isnan(pcc[0, 1])  # constant truth
    coef, _ = ridge.solve(moments, ["s0", "s2"], 1.0)
    assert (coef[5] == 0).all()
    expected = reference(groups, ["s0", "s2"], 1.0).predict(groups["s1"][0].astype(np.float64))
    found = ridge.predict(groups["s1"][0], *ridge.solve(moments, ["s0", "s2"], 1.0))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("criterion", ["pcc", "mse"])
def test_inner_choice_equals_refitting_scikit_learn(criterion):
    groups = make_groups(seed=3, sizes=(40, 50, 60, 45, 55, 35))
    units = {"s0": "a", "s1": "a", "s2": "b", "s3": "c", "s4": "c"}  # s5 is the outer test
    alphas = (0.1, 3.0, 50.0, 1e3, 1e5)
    curves = []
    for unit in "abc":
        inner_train = [name for name in units if units[name] != unit]
        rows = []
        for alpha in alphas:
            model = reference(groups, inner_train, alpha)
            values = []
            for name in (n for n in units if units[n] == unit):
                x, y = (side.astype(np.float64) for side in groups[name])
                p = model.predict(x)
                values.append(np.mean([np.corrcoef(p[:, g], y[:, g])[0, 1] for g in range(3)])
                              if criterion == "pcc" else ((p - y)**2).mean())
            rows.append(np.mean(values))
        curves.append(rows)
    curve = np.mean(curves, axis=0)
    best = alphas[int(np.argmax(curve) if criterion == "pcc" else np.argmin(curve))]
    found = choose_alpha(gather(groups), units, alphas, criterion=criterion)
    np.testing.assert_allclose(found.curve, curve, rtol=1e-6)
    assert found.alpha == best and found.n_inner == 3
    assert found.at_edge == (best in (alphas[0], alphas[-1]))


def test_the_test_group_decides_nothing():
    groups = make_groups(seed=1)
    units = {name: name for name in ("s0", "s1", "s2", "s3")}
    before = gather(groups)
    x, y = groups["s4"]
    groups["s4"] = (x[::-1] * 7 + 3, -y * 9)
    after = gather(groups)
    a, b = (choose_alpha(m, units, DEFAULT_ALPHAS) for m in (before, after))
    assert a.alpha == b.alpha
    np.testing.assert_allclose(a.curve, b.curve, rtol=1e-12)  # last bits: it was subtracted
    for one, other in zip(ridge.solve(before, units, 2.0), ridge.solve(after, units, 2.0),
                          strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_more_units_than_inner_folds_are_dealt_whole():
    units = {f"g{n}": f"patient{n // 2}" for n in range(20)}
    folds = ridge.inner_folds(units, 3)
    assert len(folds) == 3
    assert sorted(group for fold in folds for group in fold) == sorted(units)
    for fold in folds:  # both sections of a patient stay together
        assert all((f"g{int(g[1:]) ^ 1}") in fold for g in fold)


def test_ties_go_to_the_larger_penalty_and_one_unit_to_the_middle():
    groups = {f"s{n}": (np.zeros((5, 2)), np.arange(10.0).reshape(5, 2)) for n in range(3)}
    moments = gather(groups)
    tie = choose_alpha(moments, {n: n for n in groups}, (1.0, 10.0, 100.0), criterion="mse")
    assert tie.alpha == 100.0 and tie.at_edge
    alone = choose_alpha(moments, {"s0": 0}, (1.0, 10.0, 100.0))
    assert alone.alpha == 10.0 and alone.n_inner == 0


def test_the_edge_and_the_middle_of_the_penalties_are_said():
    np.testing.assert_allclose(DEFAULT_ALPHAS, [  # half a decade apart
        *(scale * step for scale in (0.1, 1, 10, 100, 1e3, 1e4) for step in (1, 10**0.5)), 1e5])
    x = np.random.default_rng(2).standard_normal((90, 2))
    groups = {f"s{n}": (x[n::3], x[n::3] @ [[1.0, 2.0], [3.0, -1.0]]) for n in range(3)}
    exact = choose_alpha(gather(groups), {n: n for n in groups}, (0.1, 1.0, 10.0), criterion="mse")
    assert exact.alpha == 0.1 and exact.at_edge  # without noise nothing should be shrunk
    for alphas, middle in (((5.0,), 5.0), ((7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0), 4.0)):
        alone = choose_alpha(gather(groups), {"s0": 0}, alphas)
        assert alone.alpha == middle and alone.n_inner == 0 and not alone.at_edge
        assert alone.curve.shape == (len(alphas),) and np.isnan(alone.curve).all()


def test_a_section_of_constant_genes_takes_no_part_in_the_choice():
    groups = make_groups(seed=4)
    groups["s4"] = (groups["s4"][0], np.full_like(groups["s4"][1], 0.7))
    moments, alphas = gather(groups), (0.1, 10.0, 1e3)
    curves = []
    for held in ("s0", "s1", "s2", "s3"):
        fit = moments.decompose([name for name in groups if name != held]).fit()
        curves.append(fit.score(moments.groups[held], alphas)[0].mean(axis=1))
    found = choose_alpha(moments, {name: name for name in groups}, alphas)
    np.testing.assert_allclose(found.curve, np.mean(curves, axis=0), rtol=1e-12)


@pytest.mark.parametrize(("x_unit", "y_unit"), [
    (2.0**60, 1.0), (2.0**-60, 1.0), (1.0, 2.0**-40), (1.0, 2.0**40)])
def test_units_of_features_and_of_expression_change_no_correlation(x_unit, y_unit):
    groups = {name: tuple(side.astype(np.float64) for side in both)
              for name, both in make_groups(seed=5).items()}
    scaled = {name: (x * x_unit, y * y_unit) for name, (x, y) in groups.items()}
    plain, found = (m.decompose(["s0", "s1", "s2"]).fit().score(m.groups["s3"], [0.1, 100.0])
                    for m in (gather(groups), gather(scaled)))
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-9)
    np.testing.assert_allclose(found[1], plain[1] * y_unit**2, rtol=1e-9)


def test_no_correlation_is_beyond_one():
    rng = np.random.default_rng(6)
    x, beta = rng.standard_normal((60, 3)), rng.standard_normal((3, 400))
    beta[:, 200:] = 0  # predictions of these would be constant
    groups = {"s0": (x[:30], x[:30] @ beta), "s1": (x[30:], x[30:] @ beta),
              "s2": (x[30:], -(x[30:] @ beta))}
    moments = gather(groups)
    fit = moments.decompose(["s0"]).fit()
    for name, sign in (("s1", 1.0), ("s2", -1.0)):
        pcc = fit.score(moments.groups[name], [1e-9])[0][0]
        np.testing.assert_allclose(pcc[:200], sign, rtol=1e-12)
        assert np.abs(pcc[:200]).max() <= 1 and np.isnan(pcc[200:]).all()


def test_the_decomposition_that_was_not_used_longest_makes_room(monkeypatch):
    moments = gather(make_groups())
    first, second = (moments.decompose(names) for names in (["s0", "s1"], ["s0", "s2"]))
    monkeypatch.setattr("mvhlib.expression.ridge.moments.CACHE_BYTES", 2 * first.nbytes)
    assert moments.decompose(["s0", "s1"]) is first
    third = moments.decompose(["s1", "s2"])
    assert moments.decompose(["s1", "s2"]) is third and moments.decompose(["s0", "s1"]) is first
    assert moments.decompose(["s0", "s2"]) is not second


def test_memory_does_not_grow_with_spots():
    def peak(n_chunks):
        rng = np.random.default_rng(0)
        tracemalloc.start()
        moments = GroupMoments(chunk_rows=500)
        for _ in range(n_chunks):
            moments.add("s", rng.standard_normal((500, 64)), rng.standard_normal((500, 8)))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(40) < 1.1 * peak(4)


def test_probe_is_a_scikit_learn_estimator():
    groups = make_groups(seed=2)
    x, y = stack(groups, groups)
    labels = np.repeat(list(groups), [len(g[0]) for g in groups.values()])
    probe = clone(RidgeProbe(alphas=(1.0, 30.0, 900.0), criterion="mse", n_inner=4))
    assert probe.get_params() == {"alphas": (1.0, 30.0, 900.0), "criterion": "mse", "n_inner": 4}
    probe.fit(x, y, groups=labels)
    assert probe.alpha_ in (1.0, 30.0, 900.0) and probe.coef_.shape == (3, 24)
    expected = make_pipeline(StandardScaler(), Ridge(alpha=probe.alpha_)).fit(x, y)
    np.testing.assert_allclose(probe.predict(x), expected.predict(x), atol=1e-8)
    single = RidgeProbe(alphas=probe.alpha_).fit(x, y[:, 0])
    assert single.coef_.shape == (24,)
    np.testing.assert_allclose(single.predict(x), expected.predict(x)[:, 0], atol=1e-8)
    # R squared comes from scikit-learn's own mixin.
    assert single.score(x, y[:, 0]) == pytest.approx(
        1 - ((single.predict(x) - y[:, 0])**2).sum() / ((y[:, 0] - y[:, 0].mean())**2).sum())


def test_probe_leaves_out_groups_whole_and_scores_by_section():
    groups = make_groups(seed=7, sizes=(40, 50, 60, 45))
    study, alphas = {"s0": "a", "s1": "a", "s2": "b", "s3": "c"}, (0.1, 10.0, 1e3)
    x, y = stack(groups, groups)
    sections = np.repeat(list(groups), [len(g[0]) for g in groups.values()])
    probe = RidgeProbe(alphas=alphas).fit(x, y, groups=[study[name] for name in sections],
                                          sections=sections)
    expected = choose_alpha(gather(groups), study, alphas)
    np.testing.assert_allclose(probe.choice_.curve, expected.curve, rtol=1e-6)
    assert probe.choice_.n_inner == 3
    runs = np.repeat(range(5), len(x) // 5)  # without groups: five runs of neighbours
    np.testing.assert_array_equal(RidgeProbe(alphas=alphas).fit(x, y).choice_.curve,
                                  RidgeProbe(alphas=alphas).fit(x, y, groups=runs).choice_.curve)


def _bad(groups, change):
    x, y = groups["s1"]
    groups["s1"] = change(x.copy(), y.copy())
    return groups


def _put(x, y, value, side):
    (x, y)[side][3, 1] = value
    return x, y


@pytest.mark.parametrize("change, field", [
    (lambda x, y: _put(x, y, np.nan, 0), "features"),
    (lambda x, y: _put(x, y, -np.inf, 0), "features"),
    (lambda x, y: _put(x, y, np.nan, 1), "expression"),
    (lambda x, y: (x[:, :-1], y), "features"),
    (lambda x, y: (x, y[:, :-1]), "genes"),
    (lambda x, y: (x[:-1], y), "features"),
    (lambda x, y: (x[:0], y[:0]), "features"),
])
def test_bad_groups_are_one_error_that_names_the_group(change, field):
    with pytest.raises(InputError) as caught:
        gather(_bad(make_groups(), change))
    assert (caught.value.where, caught.value.field) == ("s1", field)


@pytest.mark.parametrize("call, field", [
    (lambda m: choose_alpha(m, {"s0": 0, "s1": 1}, (0.0, 1.0)), "alphas"),
    (lambda m: choose_alpha(m, {"s0": 0, "s1": 1}, ()), "alphas"),
    (lambda m: choose_alpha(m, {"s0": 0, "s1": 1}, (1.0, 2.0), criterion="r2"), "criterion"),
    (lambda m: m.subset(["s9"]), "groups"),
    (lambda m: m.subset([]), "groups"),
    (lambda m: GroupMoments().add("a", np.ones((1, 2)), np.ones((1, 1))).decompose(["a"]),
     "training spots"),
    (lambda m: RidgeProbe(1.0).fit(np.ones((4, 2)), np.ones((3, 1))), "X"),
    (lambda m: RidgeProbe(1.0).fit(np.eye(4), np.eye(4), groups=[1, 2]), "groups"),
    (lambda m: RidgeProbe(1.0).fit(np.eye(4), np.eye(4)).predict(np.eye(3)), "X"),
])
def test_bad_calls_are_one_error(call, field):
    with pytest.raises(InputError) as caught:
        call(gather(make_groups()))
    assert caught.value.field == field


def test_hest_ridge_lacks_an_intercept_and_pays_for_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 20))
    y = 5.0 + rng.standard_normal((400, 2))  # nothing to learn but the mean
    found = hest_ridge(x[:300], y[:300], x[300:])
    mse = ((found - y[300:])**2).mean(axis=0)
    np.testing.assert_allclose(mse, y[300:].var(axis=0) + y[300:].mean(axis=0)**2, rtol=0.2)
    assert (np.abs(found.mean(axis=0)) < 1).all()


@pytest.mark.parametrize("train, test", [
    (np.ones((9, 4)), np.ones((3, 5))),
    (np.full((9, 4), np.nan), np.ones((3, 4))),
    (np.ones((9, 4)), np.full((3, 4), np.inf)),
])
def test_hest_ridge_refuses_bad_features(train, test):
    with pytest.raises(InputError):
        hest_ridge(train, np.ones((9, 2)), test)
