"""Intervals and tests over few clusters, against closed forms, scipy and simulated coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import simulation
from mvhlib import lattice
from mvhlib import statistics as st
from mvhlib.artifacts import InputError


def test_t_interval_equals_scipy_and_counts_what_is_known():
    values = np.array([0.1, 0.4, np.nan, 0.2, 0.35])
    known = values[np.isfinite(values)]
    low, high = stats.t.interval(0.9, 3, known.mean(), stats.sem(known))
    found = st.t_interval(values, 0.9)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 4)
    one = st.t_interval([0.3, np.nan])
    assert one.mean == 0.3 and np.isnan(one.low) and one.n == 1
    assert np.isnan(st.t_interval([]).mean)


@pytest.mark.parametrize("n_clusters", [4, 8, 16, 30])
def test_t_covers(n_clusters):
    found = simulation.coverage(lambda values, rng: st.t_interval(values), n_clusters, seed=20)
    assert 0.93 <= found <= 0.97


def test_the_simulation_can_tell_an_interval_that_does_not_cover():
    def percentile(values, rng):
        means = values[rng.integers(0, len(values), size=(300, len(values)))].mean(axis=1)
        return st.Interval(values.mean(), *np.quantile(means, [0.025, 0.975]), len(values), "")

    assert simulation.coverage(percentile, 4, n_repetitions=600, seed=20) < 0.88


@pytest.mark.parametrize(("n_seeds", "n_units"), [(8, 8), (4, 16)])
def test_two_sources_of_chance_are_covered_by_the_root_of_their_squares(n_seeds, n_units):
    found = simulation.two_way_coverage(st.combine, n_seeds, n_units, n_repetitions=1500, seed=20)
    assert 0.93 <= found <= 0.985
    one = simulation.two_way_coverage(lambda seeds, units: units, n_seeds, n_units,
                                      n_repetitions=1500, seed=20)
    assert one < 0.93


def test_combined_interval_in_closed_form():
    a, b = st.Interval(0.5, 0.2, 0.8, 8, "t"), st.Interval(0.5, 0.1, 0.9, 16, "t")
    found = st.combine(a, b)
    assert (found.mean, found.n) == (0.5, 8)
    assert found.high - found.mean == pytest.approx(0.5) == pytest.approx(found.mean - found.low)
    assert np.isnan(st.combine(a, st.Interval(0.5, np.nan, np.nan, 1, "t")).low)


@pytest.mark.parametrize("unit", ["patient", "section"])
def test_units_count_once_however_many_sections_and_genes(unit):
    rng = np.random.default_rng(3)
    rows = [{"encoder": encoder, "patient": patient, "section": f"{patient}{k}", "fold": fold,
             "gene": gene, "pcc": rng.normal()}
            for encoder in ("b", "a") for patient, n in (("P", 1), ("Q", 3)) for k in range(n)
            for fold in range(1 + k) for gene in range(4 + k)]
    scores = pd.DataFrame(rows)
    scores.loc[2, "pcc"] = np.nan
    means = st.unit_means(scores, unit, by=["encoder"], within=["fold"])
    for (encoder, name), value in means.items():
        own = scores[(scores["encoder"] == encoder) & (scores[unit] == name)]
        expected = np.mean([np.mean([np.nanmean(part["pcc"]) for _, part in each.groupby("fold")])
                            for _, each in own.groupby("section")])
        assert value == pytest.approx(expected)
    table = st.unit_table(scores, unit, by=["encoder"], within=["fold"])
    assert list(table["encoder"]) == ["b", "a"] and (table["unit"] == unit).all()
    row = table.iloc[0]
    low, high = stats.t.interval(0.95, len(means["b"]) - 1, means["b"].mean(),
                                 stats.sem(means["b"]))
    assert (row["mean"], row["ci_low"], row["ci_high"]) == (
        pytest.approx(means["b"].mean()), pytest.approx(low), pytest.approx(high))


def test_blocks_cover_a_section_in_squares():
    x, y = np.meshgrid(np.arange(20), np.arange(10))
    coords = np.stack([x.ravel(), y.ravel()], axis=1) * 200.0 + 1e5
    labels = lattice.spatial_blocks(coords, side_spots=5)
    assert labels.max() + 1 == 8 and (np.bincount(labels) == 25).all()
    for block in range(8):
        assert np.ptp(coords[labels == block], axis=0).max() == 800
    small = lattice.spatial_blocks(coords[(x.ravel() < 4) & (y.ravel() < 4)], side_spots=5)
    assert small.max() + 1 >= 4
    with pytest.raises(InputError):
        lattice.spatial_blocks(np.zeros((5, 2)))


def _autocorrelated(rng, side, block):
    """A field that is constant within squares of `block` spots, the worst case of dependence."""
    coarse = rng.standard_normal((side // block, side // block))
    return np.kron(coarse, np.ones((block, block))).ravel()


def test_block_bootstrap_covers_where_spots_as_units_do_not():
    rng = np.random.default_rng(11)
    x, y = np.meshgrid(np.arange(30), np.arange(30))
    coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    labels = lattice.spatial_blocks(coords)
    member = np.eye(labels.max() + 1)[:, labels]
    hits, naive = 0, 0
    n_repetitions = 300
    for _ in range(n_repetitions):
        values = _autocorrelated(rng, 30, 5)
        sums, counts = member @ values, member.sum(axis=1)
        found = st.spatial_block_bootstrap(
            values.mean(), lambda w, s=sums, c=counts: (w[0] @ s) / (w[0] @ c), [len(sums)],
            n_boot=199, rng=rng)
        hits += found.low <= 0 <= found.high
        spots = st.t_interval(values)
        naive += spots.low <= 0 <= spots.high
    assert hits / n_repetitions > 0.90 > 0.5 > naive / n_repetitions


def test_block_bootstrap_refuses_an_interval_from_one_block():
    found = st.spatial_block_bootstrap(0.2, lambda w: np.zeros(9), [1, 1],
                                       rng=np.random.default_rng(0))
    assert found.mean == 0.2 and np.isnan(found.low)


@pytest.mark.parametrize("n", [5, 8, 13])
def test_signed_rank_equals_scipy_without_ties(n):
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal(n) + 0.4, rng.standard_normal(n)
    assert st.signed_rank_test(a, b) == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_signed_rank_with_ties_and_zeros_is_the_enumeration():
    difference = np.array([0.5, -0.5, 1.0, 1.0, 2.0, 0.0, 3.0])
    d = difference[difference != 0]
    ranks = stats.rankdata(np.abs(d))
    observed = ranks[d > 0].sum()
    middle = ranks.sum() / 2
    patterns = [ranks[[bool(k >> i & 1) for i in range(6)]].sum() for k in range(64)]
    expected = np.mean([abs(value - middle) >= abs(observed - middle) for value in patterns])
    assert st.signed_rank_test(difference, np.zeros(7)) == pytest.approx(expected)


def test_sign_flip_equals_scipy_and_its_random_form_agrees():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal(10) + 0.5, rng.standard_normal(10)
    expected = stats.permutation_test((a, b), lambda x, y: (x - y).mean(), n_resamples=np.inf,
                                      permutation_type="samples").pvalue
    assert st.sign_flip_test(a, b) == pytest.approx(expected)
    a, b = rng.standard_normal(24) + 0.4, rng.standard_normal(24)
    drawn = st.sign_flip_test(a, b, rng=np.random.default_rng(0))
    approximate = stats.permutation_test((a, b), lambda x, y: (x - y).mean(), n_resamples=20000,
                                         permutation_type="samples", rng=1).pvalue
    assert drawn == pytest.approx(approximate, abs=0.015)
    with pytest.raises(InputError):
        st.sign_flip_test(a, b)


@pytest.mark.parametrize("n", range(1, 11))
def test_smallest_p_is_reached_by_the_clearest_data(n):
    a, b = np.arange(1.0, n + 1), np.zeros(n)
    assert st.signed_rank_test(a, b) == pytest.approx(st.smallest_p(n))
    assert st.sign_flip_test(a, b) == pytest.approx(st.smallest_p(n))


def test_holm_by_hand():
    # 3 * .01 = .03; 2 * .04 = .08; 1 * .03 is raised to what stands before it.
    np.testing.assert_allclose(st.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(st.holm([0.01, np.nan, 0.6]), [0.02, np.nan, 0.6])
    assert st.holm([0.9, 0.8]).max() == 1.0


def test_compare_says_when_no_test_is_possible():
    rng = np.random.default_rng(0)
    few = st.compare({"a - b": (rng.standard_normal(5) + 9, rng.standard_normal(5))})
    assert few["note"][0] == st.IMPOSSIBLE and few["p_smallest"][0] == 2**-4
    assert few[["p_wilcoxon", "p_permutation", "p_wilcoxon_holm"]].isna().all(axis=None)
    assert few["ci_low"][0] < few["difference"][0] < few["ci_high"][0]  # the effect remains
    a = np.arange(8.0)
    many = st.compare({"one": (a + 1, a * 0), "two": (a, a + 0.5), "same": (a, a)})
    assert list(many["p_wilcoxon"]) == [pytest.approx(2**-7)] * 2 + [1.0]
    assert many["p_wilcoxon_holm"][0] == pytest.approx(3 * 2**-7)
    assert many["note"][2] == "8 pairs do not differ"


# ---- sentences


def test_another_arm_is_ahead_behind_or_not_told_apart():
    assert st.placed("b", 0.05, 0.03, 0.07) == "b is ahead by 0.050 [0.030, 0.070]"
    assert st.placed("b", -0.05, -0.07, -0.03) == "b is behind by 0.050 [0.030, 0.070]"
    assert st.placed("b", 0.01, -0.01, 0.03) == (
        "b is not told apart from it (0.010 [-0.010, 0.030])")
    assert st.placed("b", 0.01, np.nan, np.nan) == "b differs by 0.010 (no interval)"


def test_arms_are_paired_with_their_reference():
    rng = np.random.default_rng(3)
    units = pd.DataFrame({"a": rng.random(6)}).assign(b=lambda t: t["a"] + 0.1, c=rng.random(6))
    found = st.against(units, "a", "study").set_index("arm")
    assert list(found.index) == ["b", "c"] and (found["n_units"] == 6).all()
    assert found.loc["b", ["mean", "ci_low", "ci_high"]].tolist() == pytest.approx([0.1] * 3)
    by_hand = st.t_interval(units["c"] - units["a"])
    assert found.loc["c", "ci_low"] == pytest.approx(by_hand.low)
    assert st.against(units[["a"]], "a", "study").empty


def test_verdicts_are_counted_and_those_that_decide_are_named():
    units = pd.DataFrame({"a": [0.5, 0.51, 0.52, 0.5], "b": [0.3, 0.3, 0.31, 0.29],
                          "c": [0.9, 0.1, 0.6, 0.4]})
    rows = pd.DataFrame([st.judge(units, words, *arms, unit="study") for words, arms in (
        ("a wins", ("a", "b")), ("b wins", ("b", "a")), ("a beats c", ("a", "c")))])
    assert st.tally(rows) == ("Of 3 claims tried over 4 studies: 1 as claimed (a wins); 1 "
                                      "the other way (b wins); 1 undecided.")
    assert st.tally(rows.iloc[:0]) == "No claim was tried."
    assert st.sentence(rows.iloc[0]).endswith("over 4 studies")


def test_arms_beside_another_are_placed_from_their_own_side():
    compared = pd.DataFrame({
        "comparison": ["m - r", "m - s", "r - s"], "difference": [0.05, -0.01, 9],
        "ci_low": [0.02, -0.03, 8], "ci_high": [0.07, 0.01, 9]})
    assert st.placed_beside("m", compared, {"r": "ridge", "s": "slow"}) == [
        "ridge is behind by 0.050 [0.020, 0.070]",
        "slow is not told apart from it (0.010 [-0.010, 0.030])"]


def test_pairs_without_a_difference_prove_nothing_and_pairs_must_fit():
    for test in (st.sign_flip_test, st.signed_rank_test):
        assert test([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1.0
        for a, b in (([0.1, 0.2], [0.1]), ([[0.1], [0.2]], [[0.0], [0.1]])):
            with pytest.raises(InputError, match="pairs"):
                test(a, b)


def test_auroc_counts_pairs_in_order_with_ties_as_half():
    rng = np.random.default_rng(5)
    score, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    higher = score[positive][:, None] - score[~positive]
    by_hand = ((higher > 0) + 0.5 * (higher == 0)).mean()
    assert st.auroc(score, positive) == pytest.approx(by_hand, abs=1e-12)
    assert np.isnan(st.auroc(score, np.ones(40))) and np.isnan(st.auroc(score, np.zeros(40)))
    for bad in (np.where(np.arange(40) == 3, np.nan, score), score[1:]):
        with pytest.raises(InputError, match="auroc"):
            st.auroc(bad, positive)
