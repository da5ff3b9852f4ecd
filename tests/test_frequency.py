"""Frequencies of state-space layers: closed forms against quadrature, scans, published bounds."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from mvhlib import frequency
from mvhlib.artifacts import InputError
from mvhlib.backbones import create_model
from mvhlib.backbones.scan import selective_scan
from mvhlib.dino.schedules import Schedules

MODELS = ["mvhybrid_micro_patch8_64", "vimeinfft_micro_patch8_64",
          "hydraeinfft_micro_patch8_64", "hydrahybrid_micro_patch8_64"]


def quad_variation(poles, c, omega0):
    """The definition, by an adaptive rule that shares nothing with the module's."""
    poles, c = np.asarray(poles, complex), np.asarray(c, complex)

    def speed(u):  # omega = omega0 + u / (1 - u)
        omega = omega0 + u / (1 - u)
        return abs((c / (1j * omega - poles) ** 2).sum()) / (1 - u) ** 2

    turns = sorted({(w - omega0) / (1 + w - omega0) for w in poles.imag if w > omega0})
    return integrate.quad(speed, 0, 1, points=turns or None, limit=400, epsrel=1e-10)[0]


# ---- continuous time ----


@pytest.mark.parametrize(("pole", "expected", "published"), [
    (-4, 0.0951266, 0.0928477), (-0.5 + 8j, 0.4899573, 0.5)])
def test_one_mode_has_the_reference_values(pole, expected, published):
    assert frequency.mode_variation(1, pole, 10) == pytest.approx(expected, abs=5e-8)
    given = frequency.published_real if pole == -4 else frequency.published_complex
    assert given([1], [pole], 10) == pytest.approx(published, abs=5e-8)


@pytest.mark.parametrize("pole", [-0.01, -1, -16, -0.5 + 8j, -10 + 5j, -0.05 - 3j])
@pytest.mark.parametrize("omega0", [0.0, 0.1, 6.0, 100.0])
def test_closed_form_agrees_with_two_quadratures(pole, omega0):
    closed = frequency.mode_variation(2 - 1j, pole, omega0)
    assert frequency.variation([pole], [2 - 1j], omega0) == pytest.approx(closed, rel=1e-9)
    assert quad_variation([pole], [2 - 1j], omega0) == pytest.approx(closed, rel=1e-4)


@pytest.mark.parametrize("family", ["real", "s4d_lin", "random"])
def test_quadrature_of_many_modes_agrees_with_an_adaptive_rule(family):
    rng = np.random.default_rng(3)
    poles = frequency.families(16, rng)[family]
    c = rng.standard_normal(16) + 1j * rng.standard_normal(16)
    for omega0 in (0.0, 7.0, 60.0):
        ours = frequency.variation(poles, c, omega0)
        assert ours == pytest.approx(quad_variation(poles, c, omega0), rel=1e-4)
        # The triangle inequality.
        assert ours <= frequency.mode_variation(c, poles, omega0).sum() * (1 + 1e-12)


def test_whole_curve_of_a_single_mode_is_a_circle():
    # G runs once around a circle of diameter |c| / |v|.
    for pole in (-3, -0.5 + 40j):
        whole = frequency.variation([pole], [2], -np.inf)
        assert whole == pytest.approx(math.pi * 2 / abs(complex(pole).real), rel=1e-9)


def test_chain_of_bounds_and_what_the_published_expressions_are():
    rng = np.random.default_rng(0)
    lam, omega0 = 10 ** rng.uniform(-2, 2, 200), 10 ** rng.uniform(-2, 3, 200)
    v = frequency.mode_variation(1, -lam, omega0)
    low, high = frequency.mode_variation_bounds(1, -lam, omega0)
    assert (low <= v).all() and (v <= high).all()
    assert (high <= 1 / omega0).all() and (high <= math.pi / 2 * low * (1 + 1e-15)).all()
    # The published real expression is the gain at omega0, below V, by a factor up to pi/2 ...
    for a, w, exact in zip(lam, omega0, v, strict=True):
        stated = frequency.published_real([1], [-a], w)
        assert stated == pytest.approx(abs(frequency.transfer([-a], [1], w)))
        assert stated < exact < math.pi / 2 * stated
    # ... and the published complex one is above V, without bound near the mode.
    for w in (8.001, 9, 20, 200):
        exact = frequency.mode_variation(1, -0.5 + 8j, w)
        assert exact < frequency.published_complex([1], [-0.5 + 8j], w)
    assert frequency.published_complex([1], [-0.5 + 8j], 8.001) > 100 * frequency.mode_variation(
        1, -0.5 + 8j, 8.001)


@pytest.mark.parametrize(("omega0", "ratio"), [(0.1, 1.565), (1, 1.511), (10, 1.194), (100, 1.004)])
def test_ratio_to_the_published_expression(omega0, ratio):
    v = frequency.mode_variation(1, -16, omega0)
    assert v / frequency.published_real([1], [-16], omega0) == pytest.approx(ratio, abs=5e-4)


def test_real_poles_are_not_uniformly_smoother():
    # A damped complex mode varies less above omega0 than a slow real one: no blanket claim.
    complex_mode = frequency.mode_variation(1, -10 + 5j, 6)
    real_mode = frequency.mode_variation(1, -1, 6)
    assert complex_mode == pytest.approx(0.147, abs=5e-4)
    assert real_mode == pytest.approx(0.165, abs=5e-4)
    assert complex_mode < real_mode


def test_poles_minus_two_and_minus_five():
    omega = np.linspace(0, 20, 200_001)
    for pole in (-2.0, -5.0):
        gain = np.abs(frequency.transfer([pole], [1], omega))
        found = omega[np.argmin(np.abs(gain / gain[0] - 0.5**0.5))]
        assert found == pytest.approx(float(frequency.cutoff(pole)), abs=1e-4)
    # Two low-passes side by side with weights -2 and 5 pass nothing at zero.
    assert abs(frequency.transfer([-2, -5], [-2, 5], 0.0)) < 1e-15
    assert abs(frequency.transfer([-2, -5], [-2, 5], 3.0)) > 0.4


@pytest.mark.parametrize(("omega0", "real", "equal", "s4d"), [
    (10, 0.179, 0.063, 0.809), (40, 0.055, 0.016, 0.192), (60, 0.036, 0.011, 0.002)])
def test_share_of_variation_of_the_families(omega0, real, equal, s4d):
    rng = np.random.default_rng(1)
    poles = frequency.families(16)
    draws = rng.standard_normal((24, 16))
    share = {name: np.mean([frequency.variation_share(p, c, omega0) for c in draws])
             for name, p in poles.items()}
    assert share["equal"] == pytest.approx(equal, abs=6e-4)  # the same for every draw
    # Reference values are means of twelve draws; these are means of 24 others.
    assert share["real"] == pytest.approx(real, rel=0.5)
    assert share["s4d_lin"] == pytest.approx(s4d, rel=0.25)
    # Inside the band of S4D-Lin real poles vary less, above it S4D-Lin does.
    assert (share["real"] < share["s4d_lin"]) == (omega0 < 47)


def test_weight_decay_alone_draws_every_pole_to_minus_one():
    plan = Schedules(n_steps=98_600, batch=1536)  # as published
    rate, decay = plan.tables["lr"], plan.tables["weight_decay"]
    poles = frequency.decayed([-16, -4, -1], rate, decay)
    for epoch, reference in {10: -8.7, 20: -3.5, 30: -1.94, 50: -1.13}.items():
        assert poles[493 * epoch - 1, 0] == pytest.approx(reference, rel=5e-3)
    assert poles[-1] == pytest.approx([-1, -1, -1], abs=1e-6)
    # AdamW without a gradient, step by step.
    log = torch.nn.Parameter(torch.tensor([16.0], dtype=torch.float64).log())
    log.grad = torch.zeros_like(log)
    optimizer = torch.optim.AdamW([log])
    for step in range(5000, 5020):
        optimizer.param_groups[0].update(lr=rate[step], weight_decay=decay[step])
        optimizer.step()
    expected = frequency.decayed([-16], rate[5000:5020], decay[5000:5020])[-1, 0]
    assert -log.exp().item() == pytest.approx(expected, rel=1e-12)


def test_an_unstable_pole_is_refused():
    with pytest.raises(InputError, match="negative real part"):
        frequency.transfer([0.1 + 3j], [1], 1.0)


# ---- per token ----


@pytest.mark.parametrize(("delta", "lam", "rho", "ratio"), [
    (math.log(2), 1, 0.5, 0.333), (math.log(2), 4, 0.0625, 0.882), (math.log(2), 16, 1.5e-5, 1.0),
    (0.1, 1, 0.905, 0.050), (0.1, 16, 0.202, 0.664), (0.01, 4, 0.961, 0.020),
    (0.001, 1, 0.999, 0.0005), (0.001, 16, 0.984, 0.008)])
def test_gain_at_nyquist_over_dc(delta, lam, rho, ratio):
    assert frequency.multiplier(-lam, delta).real == pytest.approx(rho, abs=5e-4)
    response = np.abs(frequency.token_response([-lam], [1], delta, [0, np.pi]))
    assert frequency.nyquist_to_dc(delta, lam) == pytest.approx(response[1] / response[0])
    assert frequency.nyquist_to_dc(delta, lam) == pytest.approx(ratio, abs=5e-4)


def test_token_cutoff_is_where_three_decibels_are_lost():
    for rho in (0.18, 0.5, 0.99, 1 - 1e-9):
        theta = frequency.token_cutoff(rho)
        # |1 - rho e^-i theta|^2 without the cancellation near rho = 1.
        power = (1 - rho) ** 2 / ((1 - rho) ** 2 + 4 * rho * math.sin(theta / 2) ** 2)
        assert power == pytest.approx(0.5, rel=1e-9)
        if rho < 0.999:
            classic = math.acos((4 * rho - 1 - rho**2) / (2 * rho))
            assert theta == pytest.approx(classic, rel=1e-6)
    assert np.isnan(frequency.token_cutoff([0.17, 0.0])).all()


def test_half_life_halves():
    tokens = frequency.half_life([-1, -16, -2 + 30j], 0.01)
    assert np.abs(np.exp(0.01 * tokens * np.array([-1, -16, -2 + 30j]))) == pytest.approx(0.5)
    assert frequency.half_life(-1, 1e-3) == pytest.approx(693, abs=0.5)


@pytest.mark.parametrize(("delta", "real", "equal", "s4d"), [
    (math.log(2), 0.69, 0.43, 0.75), (0.1, 0.33, 0.076, 0.81), (0.01, 0.038, 0.0077, 0.0045),
    (0.001, 0.0037, 0.00077, 0.0004)])
def test_energy_share_of_the_families(delta, real, equal, s4d):
    rng = np.random.default_rng(0)
    c = rng.standard_normal((500, 16)) + 1j * rng.standard_normal((500, 16))
    poles = frequency.families(16)
    for name, expected, rtol in (("real", real, 0.06), ("equal", equal, 0.01),
                                 ("s4d_lin", s4d, 0.06)):
        share = frequency.energy_share(poles[name], c, delta)
        assert share.mean() == pytest.approx(expected, rel=rtol)
        expectation = frequency.mean_energy_share(poles[name], delta)
        assert expectation == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("family", ["real", "s4d_lin", "random"])
@pytest.mark.parametrize("delta", [math.log(2), 0.05])
def test_energy_share_agrees_with_a_sum_over_the_circle(family, delta):
    rng = np.random.default_rng(2)
    poles = frequency.families(8, rng)[family]
    c = rng.standard_normal(8) + 1j * rng.standard_normal(8)
    n = 1 << 16
    theta = (np.arange(n) + 0.5) * 2 * np.pi / n - np.pi
    # A trapezoid on the circle converges exponentially; the border falls between two nodes.
    power = np.abs(frequency.token_response(poles, c, delta, theta)) ** 2
    expected = power[np.abs(theta) > np.pi / 4].sum() / power.sum()
    assert frequency.energy_share(poles, c, delta) == pytest.approx(expected, rel=1e-6)
    density = frequency.mean_density(poles, delta, theta)
    assert density.mean() == pytest.approx(1, rel=1e-9)
    above = density[np.abs(theta) > np.pi / 4].sum() / n
    assert frequency.mean_energy_share(poles, delta) == pytest.approx(above, rel=1e-6)


# ---- a model ----


def tokens_of(name, preset="released"):
    model = create_model(name, preset=preset, seed=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return model, frequency.audit(model, images, max_tokens=64)


def test_released_mvhybrid_forgets_after_a_token_and_corrected_does_not():
    _, released = tokens_of(MODELS[0])
    _, corrected = tokens_of(MODELS[0], "corrected")
    assert len(released) == len(corrected) == 3
    for layer in released:
        assert layer.delta.min() > 0.6 and layer.delta.max() < 0.8
        assert layer.row()["half_life_max"] < 1.2
        # Ten of the sixteen poles lie from -10 to 0; delta times A is another matter.
        assert layer.row()["a_in_range"] == 10 / 16
        assert layer.row()["delta_a_in_range"] == pytest.approx(14 / 16, abs=0.01)
        assert layer.mean_energy_share() > 0.65
    steps = np.concatenate([layer.delta.ravel() for layer in corrected])
    assert 5e-3 < np.median(steps) < 2e-2
    assert max(layer.half_lives.max() for layer in corrected) > 300


@pytest.mark.parametrize("name", MODELS)
def test_audit_reads_what_the_mixers_use(name):
    model, layers = tokens_of(name)
    directions = 1 if name.startswith("mvhybrid") else 2
    with_ssm = 3 if "hybrid" in name else 6
    assert len(layers) == with_ssm * directions
    assert all((layer.poles.real < 0).all() and (layer.delta > 0).all() for layer in layers)
    expected = -np.arange(1, 17) if not name.startswith("hydra") else -1
    for layer in layers:
        assert layer.poles.real == pytest.approx(np.broadcast_to(expected, layer.poles.shape),
                                                 rel=1e-6)
        edges = np.geomspace(1e-6, 100, 50)
        assert frequency.histogram([layer], edges, "delta_a").sum() == pytest.approx(1)
        assert layer.rates.shape == (64, *layer.poles.shape)
    assert not any(module._forward_pre_hooks for module in model.modules())
    if name.startswith("vim"):
        forward, backward = layers[0], layers[1]
        assert np.median(forward.delta) < 0.05
        assert np.median(backward.delta) == pytest.approx(math.log(2), abs=0.1)


@pytest.mark.parametrize("name", MODELS[:2])
def test_audit_keeps_the_projections_of_the_same_tokens(name):
    model, _ = tokens_of(name)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    inputs = {}
    mixer = model.blocks[2].mixer
    mixer.register_forward_pre_hook(lambda module, given: inputs.update(x=given[0]))
    layers = [layer for layer in frequency.audit(model, images) if layer.block == 2]
    x = inputs["x"]
    if len(layers) == 1:
        expected = [mixer._branches(x)[1:4]]
    else:
        z = mixer.in_proj(x).chunk(2, dim=-1)[0]
        expected = [mixer._inputs(z, "")[1:], mixer._inputs(z.flip(1), "_b")[1:]]
    for layer, (dt, b, c) in zip(layers, expected, strict=True):
        assert layer.b == pytest.approx(b[0].detach().numpy())
        assert layer.c == pytest.approx(c[0].detach().numpy())
        bias = (mixer.dt_proj_b if layer.direction == "backward" else mixer.dt_proj).bias
        step = torch.nn.functional.softplus(dt[0] + bias).detach().numpy()
        assert layer.delta == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"mixer_options": {"eigenvalues": "complex"}}])
def test_frozen_response_is_the_gain_of_the_scan_on_a_wave(options):
    model = create_model(MODELS[0], preset="corrected", **options).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    layer = frequency.audit(model, images)[1]
    token, theta, length = 7, 0.7, 6000
    # Only channels that have settled by the end of the sequence.
    fast = np.flatnonzero(layer.half_lives[token].max(-1) < length / 60)
    assert len(fast) > 20

    def full(values):
        return torch.tensor(values, dtype=torch.float64)[None, :, None].expand(-1, -1, length)

    t = np.arange(length)
    wave = torch.tensor(np.cos(theta * t)).expand(1, len(fast), length)
    poles = layer.poles[fast] if layer.is_complex else layer.poles[fast].real
    y = selective_scan(wave, full(layer.delta[token][fast]), torch.tensor(poles),
                       full(layer.b[token]), full(layer.c[token]), torch.tensor(layer.skip[fast]),
                       delta_softplus=False, backend="reference")[0].numpy()
    gain = layer.response([theta], token, skip=True)[fast]
    expected = (gain * np.exp(1j * theta * t)).real
    assert y[:, -40:] == pytest.approx(expected[:, -40:], rel=1e-9, abs=1e-9)
    # Without the skip, what is left is not nothing.
    assert np.abs(layer.response([theta], token)).max() > 0


def test_density_of_the_own_coefficients_is_normalised():
    _, layers = tokens_of(MODELS[0], "corrected")
    n = 1 << 13
    theta = (np.arange(n) + 0.5) * np.pi / n
    assert layers[0].density(theta, n_tokens=2).mean() == pytest.approx(1, rel=5e-3)
    # The skip of a state-space layer is an all-pass, far larger than its modes at initialisation.
    assert layers[0].density([3.0], n_tokens=2, skip=True) == pytest.approx(1, abs=0.05)
    table = frequency.density_table(layers[:2], [0.1, 3.0])
    assert table["density"].to_numpy() == pytest.approx(
        (layers[0].density([0.1, 3.0]) + layers[1].density([0.1, 3.0])) / 2)


def test_audit_refuses_what_has_no_blocks_and_finds_nothing_in_a_vit():
    with pytest.raises(InputError, match="without blocks"):
        frequency.audit(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    assert tokens_of("vit12_micro_patch8_64")[1] == []
    _, hydra = tokens_of(MODELS[2])
    with pytest.raises(InputError, match="not known for this mixer"):
        hydra[0].response([0.1], 0)
