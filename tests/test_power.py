"""Power and nulls, against closed forms, scipy and simulated coverage."""

import numpy as np
import pytest
from scipy import integrate, stats

from benchmarks.simulation import null_coverage, simulated_power, smooth_field
from mvhlib import lattice, nulls, power
from mvhlib.artifacts import InputError


def test_sd_of_difference_is_that_of_drawn_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 200_000))
    a, b = 0.166 * x, 0.203 * (0.8 * x + 0.6 * y)
    assert power.sd_of_difference(0.166, 0.203, 0.8) == pytest.approx((a - b).std(), rel=0.01)
    assert power.sd_of_difference(0.1, 0.1, 1.0) == 0.0
    for bad in ((-0.1, 0.1, 0), (0.1, 0.1, 1.2)):
        with pytest.raises(InputError):
            power.sd_of_difference(*bad)


@pytest.mark.parametrize("gap, sd, n", [(0.04, 0.05, 8), (0.1, 0.26, 20), (0.3, 0.1, 4)])
def test_power_equals_its_integral(gap, sd, n):
    """Over the standard deviation found: chi with n - 1 degrees of freedom, the mean normal."""
    limit = stats.t.ppf(0.975, n - 1)

    def density(u):  # u = s / sd
        edge = limit * u
        shift = gap * np.sqrt(n) / sd
        inside = stats.norm.cdf(edge - shift) - stats.norm.cdf(-edge - shift)
        return (1 - inside) * stats.chi.pdf(u * np.sqrt(n - 1), n - 1) * np.sqrt(n - 1)

    expected = integrate.quad(density, 0, 12, limit=200)[0]
    assert power.paired_power(gap, sd, n) == pytest.approx(expected, abs=1e-6)


def test_power_at_its_edges():
    assert power.paired_power(0.0, 0.1, 10) == pytest.approx(0.05)
    assert power.paired_power(-0.2, 0.1, 8) == pytest.approx(power.paired_power(0.2, 0.1, 8))
    assert power.paired_power(0.2, 0.1, 1) == 0.0
    assert power.paired_power(0.2, 0.0, 3) == 1.0
    assert power.paired_power(10.0, 0.1, 50) == 1.0
    grown = [power.paired_power(0.05, 0.1, n) for n in range(2, 60)]
    assert (np.diff(grown) > 0).all()


@pytest.mark.parametrize("published", power.PUBLISHED_GAPS, ids=["0.04", "0.10"])
@pytest.mark.parametrize("correlation", power.POWER_CORRELATIONS)
def test_closed_form_agrees_with_simulation(published, correlation):
    sd = power.sd_of_difference(published.sd_a, published.sd_b, correlation)
    n = 4000
    for studies in (8, 30):
        closed = power.paired_power(published.gap, sd, studies)
        drawn = simulated_power(published.gap, published.sd_a, published.sd_b, correlation,
                                   studies, n_repetitions=n, seed=7)
        assert drawn == pytest.approx(closed, abs=4 * np.sqrt(0.25 / n))


def test_studies_needed_is_the_first_number_that_suffices():
    for gap, sd in ((0.041, 0.1486), (0.102, 0.0688), (0.5, 0.1), (0.04, 0.9)):
        n = int(power.studies_needed(gap, sd))
        assert power.paired_power(gap, sd, n) >= 0.8
        assert n == 2 or power.paired_power(gap, sd, n - 1) < 0.8
    assert power.studies_needed(0.0, 0.1) == np.inf
    assert power.studies_needed(1e-6, 1.0) == np.inf
    assert power.studies_needed(0.1, 0.0) == 2
    with pytest.raises(InputError):
        power.studies_needed(0.1, 0.1, power=0.01)


def test_published_gaps_need_many_studies_unless_encoders_agree():
    """At eight studies neither gap could be expected to show without a correlation near 0.95."""
    table = power.power_table(measured=0.9)
    assert len(table) == 10 and (~table["assumed"]).sum() == 2
    assert table["gap"].unique() == pytest.approx([0.041, 0.102])
    for _, part in table.groupby("comparison"):
        part = part.sort_values("correlation")
        assert (np.diff(part["n_needed"]) <= 0).all() and (np.diff(part["power_published"]) > 0
                                                           ).all()
        assert (part.loc[part["correlation"] <= 0.8, "power_published"] < 0.8).all()
        shows = part["power_published"] >= 0.8
        assert (shows == (part["n_needed"] <= part["n_published"])).all()
    assert len(power.power_table(measured=float("nan"))) == 8


def test_signed_rank_test_has_no_power_below_six_pairs():
    assert simulated_power(5.0, 0.1, 0.1, 0.0, 5, test="wilcoxon", n_repetitions=50) == 0.0
    assert simulated_power(5.0, 0.1, 0.1, 0.0, 6, test="wilcoxon", n_repetitions=50) == 1.0
    with pytest.raises(InputError, match="u-test"):
        simulated_power(0.1, 0.1, 0.1, 0, 8, test="u-test")


def test_score_correlation_equals_scipy():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(12)
    b = a + rng.standard_normal(12)
    expected = stats.pearsonr(a, b)
    low, high = expected.confidence_interval(0.9)
    found = power.score_correlation(np.r_[a, np.nan], np.r_[b, 1.0], 0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.statistic, low, high))
    assert found.n == 12
    three = power.score_correlation(a[:3], b[:3])
    assert np.isfinite(three.mean) and np.isnan(three.low)
    assert np.isnan(power.score_correlation(a[:2], b[:2]).mean)
    assert np.isnan(power.score_correlation(a, np.ones(12)).mean)


def square(side):
    return np.stack(np.divmod(np.arange(side**2), side), 1)


def hexagonal(rows, columns):
    """Visium's own row and column, and spot centres of pitch 100."""
    row, number = np.divmod(np.arange(rows * columns), columns)
    column = 2 * number + row % 2
    return np.stack([row, column], 1), np.stack([50.0 * column, 50.0 * np.sqrt(3) * row], 1)


@pytest.mark.parametrize("degrees", [0, 7, -20, 38])
def test_array_positions_undo_rotation_jitter_and_holes(degrees):
    rng = np.random.default_rng(1)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for kind, (places, coords) in (("square", (square(18), 100.0 * square(18)[:, ::-1])),
                                   ("hexagonal", hexagonal(18, 14))):
        keep = rng.random(len(places)) < 0.9
        seen = (coords[keep] + rng.normal(0, 5, (keep.sum(), 2))) @ turn + 3000
        found = lattice.array_positions(seen)
        assert (found.min(axis=0) >= 0).all() and found.dtype == np.int64
        # The array is found up to its own symmetry: steps between spots keep their lengths.
        scale = np.array([1.0, 1.0])
        if kind == "hexagonal":
            assert (found.sum(axis=1) % 2 == 0).all()
            scale = np.array([np.sqrt(3) / 2, 0.5])
        truth, guess = places[keep] * scale, found * scale
        pick = rng.integers(0, len(truth), (400, 2))
        lengths = [np.linalg.norm(each[pick[:, 0]] - each[pick[:, 1]], axis=1)
                   for each in (truth, guess)]
        assert lengths[1] == pytest.approx(lengths[0], abs=1e-9)


def test_array_positions_place_islands_and_refuse_doubles():
    places = square(12)
    keep = ~np.isin(places[:, 1], (6, 7))  # a gap of two columns
    found = lattice.array_positions(50.0 * places[keep].astype(float))
    steps = found - found[0], places[keep] - places[keep][0]
    assert np.linalg.norm(steps[0], axis=1) == pytest.approx(np.linalg.norm(steps[1], axis=1))
    twice = np.r_[100.0 * square(6), [[210.0, 210.0]]]
    with pytest.raises(InputError, match="one position"):
        lattice.array_positions(twice)


def brute_force(truth, guess, places, min_overlap):
    """Every shift on the torus by hand."""
    places = places - places.min(axis=0)
    height, width = places.max(axis=0) + 1
    at = {tuple(place): number for number, place in enumerate(places)}
    found = []
    for dy in range(height):
        for dx in range(width):
            pairs = [(number, at[(y + dy) % height, (x + dx) % width])
                     for (y, x), number in at.items()
                     if ((y + dy) % height, (x + dx) % width) in at]
            if len(pairs) >= min_overlap * len(places):
                a, b = np.array(pairs).T
                found.append(np.mean([np.corrcoef(truth[a, g], guess[b, g])[0, 1]
                                      for g in range(truth.shape[1])]))
    return found


def test_shifts_by_fourier_equal_shifts_by_hand():
    rng = np.random.default_rng(0)
    places = square(7)[rng.random(49) < 0.85]
    truth, guess = rng.standard_normal((2, len(places), 3))
    found = nulls._shifted_scores(truth, guess, places, 0.6)
    assert np.sort(found) == pytest.approx(np.sort(brute_force(truth, guess, places, 0.6)))
    assert found[0] == pytest.approx(np.mean([np.corrcoef(truth[:, g], guess[:, g])[0, 1]
                                              for g in range(3)]))


def test_shifts_without_wrapping_score_the_overlap():
    rng = np.random.default_rng(0)
    places, side = square(6), 6
    truth, guess = rng.standard_normal((2, 36, 1))
    t, g = truth.reshape(6, 6), guess.reshape(6, 6)
    expected = []
    for dy in range(-5, 6):
        for dx in range(-5, 6):
            rows = slice(max(0, -dy), side - max(0, dy))
            columns = slice(max(0, -dx), side - max(0, dx))
            a = t[rows, columns]
            b = g[max(0, dy):side + min(0, dy), max(0, dx):side + min(0, dx)]
            if a.size >= 0.5 * 36:
                expected.append(np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size / 36))
    found = nulls._shifted_scores(truth, guess, places, 0.5, wrap=False)
    assert np.sort(found) == pytest.approx(np.sort(expected))


def test_hexagonal_shifts_pair_spots_with_spots():
    places, _ = hexagonal(8, 6)
    rng = np.random.default_rng(0)
    truth, guess = rng.standard_normal((2, len(places), 1))
    # A full array on an even torus: every shift of one parity pairs all spots, none of the other.
    assert len(nulls._shifted_scores(truth, guess, places, 0.99)) == len(places)


@pytest.mark.parametrize("method", ["permutation", "toroidal shift"])
def test_null_finds_a_relation_and_forgets_missing_spots(method):
    rng = np.random.default_rng(0)
    truth = [rng.standard_normal((144, 3)) for _ in range(2)]
    guess = [each + rng.standard_normal(each.shape) for each in truth]
    guess[1][:20] = np.nan
    guess[0][:, 2] = 1.0  # constant: left out of this section

    def run(seed):
        rng = np.random.default_rng(seed)
        return (nulls.permutation_null(truth, guess, n_draws=199, rng=rng)
                if method == "permutation" else
                nulls.toroidal_null(truth, guess, [square(12)] * 2, n_draws=199, rng=rng))

    null = run(1)
    r = [np.mean([np.corrcoef(truth[0][:, g], guess[0][:, g])[0, 1] for g in range(2)]),
         np.mean([np.corrcoef(truth[1][20:, g], guess[1][20:, g])[0, 1] for g in range(3)])]
    assert null.observed == pytest.approx(np.mean(r))
    assert null.p == null.p_smallest == 1 / 200 and null.high < 0.3 < null.observed
    assert null.low < 0 < null.high and len(null.draws) == 199
    assert (run(1).draws == null.draws).all() and (run(2).draws != null.draws).any()


def test_permutation_null_has_the_exact_variance():
    """Over all orders, r of one gene has mean 0 and variance 1 / (T - 1)."""
    rng = np.random.default_rng(0)
    null = nulls.permutation_null([rng.gamma(1, size=(50, 1))], [rng.gamma(1, size=(50, 1))],
                               n_draws=20_000, rng=rng)
    assert null.draws.mean() == pytest.approx(0, abs=4 / np.sqrt(49 * 20_000))
    assert null.draws.var() == pytest.approx(1 / 49, rel=0.05)


def test_null_refuses():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((16, 2))
    with pytest.raises(InputError, match="vary"):
        nulls.permutation_null([values], [values * 0], rng=rng)
    with pytest.raises(InputError, match="number"):
        nulls.permutation_null([values], [], rng=rng)
    with pytest.raises(InputError, match="one order"):
        nulls.toroidal_null([values], [values], [square(3)], rng=rng)
    with pytest.raises(InputError, match="one position"):
        nulls.toroidal_null([values], [values], [square(4) // 2], rng=rng)
    with pytest.raises(InputError, match="whole numbers"):
        nulls.toroidal_null([values], [values], [square(4) * 1.5], rng=rng)
    with pytest.raises(InputError, match="min_overlap"):
        nulls.toroidal_null([values], [values], [np.c_[np.arange(16) ** 2, np.zeros(16, int)]],
                         min_overlap=0.9, rng=rng)
    with pytest.raises(InputError, match="jack-knife"):
        null_coverage("jack-knife")


def test_smooth_field_has_unit_variance_and_the_kernel_s_correlation():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, (12, 12), 1.5) for _ in range(1500)])
    assert fields.var() == pytest.approx(1.0, abs=0.03)
    lag = (fields[:, :, :-1] * fields[:, :, 1:]).mean()
    assert lag == pytest.approx(np.exp(-1 / (4 * 1.5**2)), abs=0.03)


def test_permutation_is_too_narrow_for_smooth_maps_and_shifting_is_not():
    """Smooth maps correlate by chance: why the toroidal null exists."""
    narrow, torus, free = (null_coverage(method, n_sections=2, side=16, smooth=1.2, n_draws=99,
                                            n_repetitions=300, seed=20)
                           for method in ("permutation", "toroidal shift", "random shift"))
    assert narrow < 0.75 and torus > 0.88 and free > 0.91


@pytest.mark.slow
@pytest.mark.parametrize("n_sections", [4, 8, 16, 30])
@pytest.mark.parametrize("method, side, smooth", [
    ("permutation", 8, 0.0), ("toroidal shift", 24, 0.8), ("random shift", 16, 0.8)])
def test_nulls_cover(method, side, smooth, n_sections):
    found = null_coverage(method, n_sections=n_sections, side=side, smooth=smooth, n_draws=199,
                             n_repetitions=2000, seed=20)
    assert 0.93 <= found <= 0.97
