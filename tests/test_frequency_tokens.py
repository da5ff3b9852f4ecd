"""Spectra of token maps, waves through blocks, band-limited noise: known waves and filters."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mvhlib import frequency
from mvhlib.artifacts import InputError
from mvhlib.backbones import create_model
from mvhlib.backbones.mixers import Attention
from mvhlib.backbones.scan import selective_scan
from mvhlib.cohort.synthetic import CLASSES
from mvhlib.encoders import EvalTransform, PatchEncoder, create_encoder
from mvhlib.tiles import store
from mvhlib.tiles.cut import Tiles

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plane_wave(grid, down, right, channels=2):
    """Tokens `(1, N, D)` of one wave with `down` and `right` periods over the map."""
    y, x = np.meshgrid(np.arange(grid[0]) / grid[0], np.arange(grid[1]) / grid[1], indexing="ij")
    wave = np.cos(2 * np.pi * (down * y + right * x) + 0.3)
    return np.broadcast_to(wave.reshape(1, -1, 1), (1, wave.size, channels))


# ---- token maps


@pytest.mark.parametrize("name", ["mvhybrid_micro_patch8_64", "vit12_micro_patch8_64"])
def test_streams_are_what_the_blocks_hand_on(name):
    model = create_model(name, seed=0).train()
    streams = frequency.token_streams(model, IMAGES)
    assert model.training and len(streams) == len(model.blocks) + 1
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in model.blocks)
    model.eval()
    with torch.no_grad():
        found = model.forward_features(IMAGES)["patch_tokens"]
        places = frequency.patch_positions(model, 64)
        assert torch.allclose(model.norm(streams[-1])[:, places], found)
        # In front of the first block, after adding positions, stand the embedded patches.
        if model.pos_embed is None:
            assert torch.equal(streams[0][:, places], model.patch_embed(IMAGES))
    with pytest.raises(InputError, match="without blocks"):
        frequency.token_streams(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize(("down", "right"), [(0, 3), (2, 0), (1, 2), (4, 4)])
def test_a_plane_wave_peaks_in_its_bin_and_power_is_that_of_the_tokens(down, right):
    grid = (8, 10)
    maps = plane_wave(grid, down, right)
    power = frequency.map_power(maps, grid)[0]
    assert power.sum() == pytest.approx((maps[..., 0] ** 2).sum())
    assert power[down, right] == pytest.approx(power.max())
    assert power[down, right] + power[-down, -right] * ((down, right) != (4, 4)) <= power.sum() * (
        1 + 1e-12)
    with pytest.raises(InputError, match="does not fit"):
        frequency.map_power(maps, (8, 8))


def test_rings_and_directions_of_waves():
    grid = (16, 16)
    for (down, right), direction in {(0, 5): "along", (3, 0): "across"}.items():
        table = frequency.radial_amplitude(
            frequency.map_power(plane_wave(grid, down, right), grid)[0] + 1e-12)
        own = table[table["direction"] == direction]
        assert own.loc[own["log_amplitude"].idxmax(), "radius"] == (down + right) / 16
        other = {"along": "across", "across": "along"}[direction]
        assert table.loc[table["direction"] == other, "log_amplitude"].max() < -5
        contrast = frequency.high_minus_low(
            frequency.map_power(plane_wave(grid, down, right), grid) + 1e-12)
        assert (contrast["all"][0] > 0) == (down + right > 4)


def test_white_maps_are_flat():
    maps = np.random.default_rng(0).standard_normal((4, 256, 400))
    power = frequency.map_power(maps, (16, 16))
    for values in frequency.high_minus_low(power).values():
        assert np.abs(values).max() < 0.02
    table = frequency.radial_amplitude(power.mean(0))
    assert set(table["direction"]) == {"all", "along", "across"}
    assert table["log_amplitude"].abs().max() < 0.02
    assert table["radius"].max() == 0.5


def test_spectra_of_a_model_leave_out_what_all_images_share():
    model = create_model("vit12_micro_patch8_64", seed=0).eval()
    spectra, contrasts = frequency.token_spectra(model, IMAGES)
    assert sorted(set(spectra["layer"])) == [0, 1, 2, 3]
    assert len(contrasts) == 4 * 3 * 3
    with torch.no_grad():  # learned positions, as large as they may be, change nothing at layer 0
        model.pos_embed += torch.randn(model.pos_embed.shape)
    shifted = frequency.token_spectra(model, IMAGES)[0]
    assert shifted.loc[:11, "log_amplitude"].to_numpy() == pytest.approx(
        spectra.loc[:11, "log_amplitude"].to_numpy(), abs=1e-4)


# ---- waves through blocks


def circular(kernel):
    """A filter over the tokens that joins the end of the sequence to its beginning."""
    return lambda x: sum(weight * x.roll(lag, dims=1) for lag, weight in enumerate(kernel))


def test_gain_of_a_filter_is_its_transfer_function():
    kernel, n = (0.5, 0.3, -0.4), 32
    tokens = torch.randn(3, n, 5, dtype=torch.float64)
    theta = 2 * np.pi * np.array([0, 1, 5, 16]) / n
    expected = np.abs(sum(w * np.exp(-1j * theta * k) for k, w in enumerate(kernel)))
    for function, at_theta in ((circular(kernel), expected),
                               (lambda x: x + circular(kernel)(x), np.abs(
                                   1 + sum(w * np.exp(-1j * theta * k)
                                           for k, w in enumerate(kernel))))):
        gain, total = frequency.wave_gain(function, tokens, theta, np.arange(n),
                                          np.random.default_rng(0))
        assert gain == pytest.approx(at_theta, rel=1e-9)
        assert total == pytest.approx(at_theta, rel=1e-9)  # a filter scatters nothing


def test_what_depends_on_the_place_scatters():
    n = 32
    tokens = torch.randn(2, n, 4, dtype=torch.float64)
    window = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    gain, total = frequency.wave_gain(lambda x: x * window, tokens, [2 * np.pi * 3 / n],
                                      np.arange(n), np.random.default_rng(0))
    assert gain == pytest.approx(window.mean().item(), rel=1e-9)
    assert total == pytest.approx(window.square().mean().sqrt().item(), rel=1e-9)


def test_gain_agrees_with_the_exact_derivative():
    torch.manual_seed(0)
    function, n, theta = Attention(12, num_heads=3).double(), 17, 2 * np.pi * 3 / 16
    tokens = torch.randn(2, n, 12, dtype=torch.float64)
    places = np.delete(np.arange(n), 8)
    gain, _ = frequency.wave_gain(function, tokens, [theta], places, np.random.default_rng(3),
                                  step=1e-4)
    direction = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 12)))
    answer = 0
    for wave, unit in ((np.cos(theta * np.arange(16)), 1), (np.sin(theta * np.arange(16)), 1j)):
        added = torch.zeros_like(tokens)
        added[:, places] = torch.from_numpy(wave)[None, :, None] * direction[:, None]
        with sdpa_kernel(SDPBackend.MATH):  # the only one that is twice differentiable
            exact = torch.autograd.functional.jvp(function, tokens, added)[1]
        answer = answer + unit * exact[:, places].detach().numpy()
    own = np.einsum("bnd,n->bd", answer, np.exp(-1j * theta * np.arange(16))) / 16
    assert gain == pytest.approx(np.sqrt((np.abs(own) ** 2).sum() / (direction**2).sum().item()),
                                 rel=1e-5)


def test_frozen_scan_has_the_gain_of_the_closed_form():
    model = create_model("mvhybrid_micro_patch8_64", seed=0).eval()
    layer, token, n = frequency.audit(model, IMAGES)[1], 5, 512
    channel = 7

    def scan(x):  # (B, N, 1)
        u = x.transpose(1, 2)

        def full(values):
            return torch.tensor(values, dtype=torch.float64)[None, :, None].expand(len(u), -1, n)

        y = selective_scan(u, full(layer.delta[token, [channel]]),
                           torch.tensor(layer.poles[[channel]].real), full(layer.b[token]),
                           full(layer.c[token]), torch.zeros(1, dtype=torch.float64),
                           delta_softplus=False, backend="reference")
        return y.transpose(1, 2)

    theta = 2 * np.pi * np.array([1, 40, 200, 256]) / n
    gain, _ = frequency.wave_gain(scan, torch.zeros(1, n, 1, dtype=torch.float64) + 1, theta,
                                  np.arange(n), np.random.default_rng(0))
    # What is left is the start of the sequence, a few of its 512 tokens.
    assert gain == pytest.approx(np.abs(layer.response(theta, token)[channel]), rel=5e-3)


def test_blocks_without_branches_pass_everything():
    model = create_model("mvhybrid_micro_patch8_64", seed=0).eval()
    theta = 2 * np.pi * np.array([1, 32]) / 64
    for kind in ("own", "silent"):
        if kind == "silent":
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if name.startswith("blocks") and ("proj" in name or "fc2" in name
                                                      or "complex" in name):
                        p.zero_()
        table = frequency.block_response(model, IMAGES, np.random.default_rng(0), theta)
        assert len(table) == (6 * 3 + 1) * 2
        assert set(table.loc[table["part"] == "mixer", "kind"]) == {"MambaVisionMixer",
                                                                   "Attention"}
        whole = table[table["part"].isin(["block", "all blocks"])]
        branch = table[table["part"].isin(["mixer", "channel mixer"])]
        if kind == "silent":
            assert whole["gain"].to_numpy() == pytest.approx(1, abs=1e-4)
            assert branch["gain"].abs().max() == 0
        else:
            # Triangle inequality: no block is farther from 1 than its branches allow.
            bound = table.pivot(index=["block", "theta"], columns="part", values="total").drop(-1)
            most = (1 + bound["mixer"]) * (1 + 2 * bound["channel mixer"])
            assert (bound["block"] < most).all() and branch["gain"].min() > 0


# ---- noise in bands


def test_octaves_cover_all_frequencies_once():
    assert frequency.octaves(64) == [(2.0**-k, 2.0**(1 - k)) for k in (6, 5, 4, 3, 2)]
    edges = frequency.octaves(224)
    assert edges[0][0] == 1 / 224 and edges[-1][1] == 0.5
    assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))


def test_noise_has_energy_in_its_band_alone_and_the_same_in_every_band():
    bands, shape = frequency.octaves(32), (3, 32, 32)
    radius = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None])
    taken = np.zeros((32, 32), int)
    for low, high in bands:
        noise = frequency.band_noise(shape, (low, high), np.random.default_rng(0), rms=0.02)
        assert (noise**2).mean(axis=(1, 2)) == pytest.approx(0.02**2)
        power = np.abs(np.fft.fft2(noise)) ** 2
        inside = (radius >= low) & (radius < high) | (radius == 0.5) & (high == 0.5)
        assert power[:, ~inside].max() < 1e-20 * power.sum()
        assert (power[:, inside] > 0).all()
        taken += inside
    assert (taken[(radius > 0) & (radius <= 0.5)] == 1).all() and taken[0, 0] == 0
    with pytest.raises(InputError, match="holds no frequency"):
        frequency.band_noise(shape, (0.001, 0.02), np.random.default_rng(0))


class Toy(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.mean(1)).flatten(1)


def toy(function, width):
    return PatchEncoder("toy", Toy(function), EvalTransform(None), width)


def low_pass(image):
    """The frequencies of a tile below four cycles, exactly."""
    radius = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.fftfreq(32)[None])
    return torch.fft.ifft2(torch.fft.fft2(image) * (radius < 4 / 32)).real


def test_a_low_pass_encoder_reacts_to_low_bands_alone():
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bands = frequency.octaves(32)
    ideal = frequency.sensitivity(toy(low_pass, 1024), images, bands, rms=0.02, seed=0)
    change = ideal.groupby("low")["change"].mean()
    assert change[change.index >= 4 / 32].max() < 1e-4 * change.iloc[0]
    pooled = frequency.sensitivity(
        toy(lambda x: nn.functional.avg_pool2d(x[:, None], 8), 16), images, bands, rms=0.02,
        seed=0).groupby("low")["change"].mean()
    assert pooled.is_monotonic_decreasing and pooled.iloc[-1] < 0.2 * pooled.iloc[0]


def test_change_is_in_units_of_the_distance_between_tiles():
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # Pixels of the mean of three uniform colours have a standard deviation of 1/6.
    found = {scale: frequency.sensitivity(toy(lambda x, k=scale: k * x, 1024), images,
                                          [(0.25, 0.5)], rms=0.05, seed=1)["change"].to_numpy()
             for scale in (1.0, 1000.0)}
    assert found[1.0] == pytest.approx(0.05 * 6 / 2**0.5, rel=0.05)
    assert found[1000.0] == pytest.approx(found[1.0], rel=1e-4)
    with pytest.raises(InputError, match="is the same for all"):
        frequency.sensitivity(toy(lambda x: x[:, :2] * 0 + 3, 64), images, [(0.25, 0.5)],
                              rms=0.05, seed=1)


def test_every_encoder_sees_the_same_noise_and_the_handmade_one_answers():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    bands = frequency.octaves(64)[-2:]
    one, two = (frequency.sensitivity(create_encoder("handmade"), images, bands, rms=0.02, seed=0)
                for _ in range(2))
    assert one.equals(two) and (one["change"] > 0).all() and len(one) == 8


def test_contrast_of_tiles_adds_up_to_their_variance():
    noise = frequency.band_noise((5, 32, 32), (1 / 32, 0.5), np.random.default_rng(0), rms=0.1)
    images = torch.from_numpy(np.repeat(noise[:, None], 3, axis=1) + 0.5).float()
    contrast = frequency.band_contrast(images, frequency.octaves(32))
    assert (contrast**2).sum(1) == pytest.approx(0.01, rel=1e-4)
    one = frequency.band_noise((5, 32, 32), (0.125, 0.25), np.random.default_rng(0), rms=0.1)
    images = torch.from_numpy(one[:, None]).float().expand(-1, 3, -1, -1)
    contrast = frequency.band_contrast(images, frequency.octaves(32))
    assert contrast == pytest.approx(np.tile([0, 0, 0.1, 0], (5, 1)), abs=1e-6)


# ---- tissue


def test_explained_variance_is_that_of_a_regression_and_zero_by_chance():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    y = np.column_stack([x[:, 0] + rng.standard_normal(400), rng.standard_normal((400, 300)),
                         np.ones(400)])
    share = frequency.explained(x, y)
    assert share[0, 0] == pytest.approx(0.5, abs=0.08)
    assert np.abs(share[1:-1].mean(0)).max() < 2e-3  # adjusted: nothing is explained by chance
    assert np.isnan(share[-1]).all()


def test_borders_of_pure_and_mixed_tiles():
    names = [f"cause_{name}" for name in CLASSES]
    obs = pd.DataFrame(0.0, index=["pure", "halves", "stroma", "thin"], columns=names)
    obs.loc["pure", "cause_tumour"] = 1.0
    obs.loc["halves", ["cause_tumour", "cause_stroma"]] = 0.4  # a fifth lies off the tissue
    obs.loc["stroma", ["cause_gland", "cause_stroma"]] = 0.5
    obs.loc["thin", ["cause_tumour", "cause_stroma"]] = [0.1, 0.9]
    found = frequency.borders(obs)
    assert found["tumour border"] == pytest.approx([0, 0.5, 0, 0.1])
    assert found["any border"] == pytest.approx([0, 0.5, 0.5, 0.18])
    assert frequency.borders(obs.drop(columns="cause_gland")) == {}


def test_slow_and_fast_finds_the_map_and_the_band_that_were_put_in(tmp_path):
    rng, side, band = np.random.default_rng(0), 8, (0.125, 0.25)
    y, x = np.meshgrid(range(side), range(side), indexing="ij")
    smooth, white = (x + y).ravel() / (2 * side - 2), rng.permutation(side**2) / side**2
    counts = np.column_stack([200 + 300 * smooth, 200 + 300 * white, np.full(side**2, 2000)])
    names = [f"{a}x{b}" for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    adata = anndata.AnnData(counts.round(), obs=pd.DataFrame(index=names), var=pd.DataFrame(
        {"program": ["slow", "white", "filler"]}, index=["a", "b", "c"]))
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["spatial"] = 32.0 * np.column_stack([x.ravel(), y.ravel()])
    # The tile of a spot carries the white map in one octave and nothing in the others.
    noise = frequency.band_noise((side**2, 32, 32), band, rng) * (5 + 40 * white[:, None, None])
    pixels = np.clip(128 + noise, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    tiles = Tiles(pixels, adata.obsm["spatial"].astype(int), np.zeros(side**2), 32, 32.0, 1.0, 1.0,
                  names)
    store.write_tiles(tmp_path / "tiles" / "one.h5", tiles)
    section = SimpleNamespace(name="one", adata=adata)
    elsewhere = SimpleNamespace(name="without tiles", adata=adata)
    over, inside = frequency.slow_and_fast([section, elsewhere], tmp_path / "tiles",
                                           tmp_path / "truth", frequency.octaves(32), n_genes=3)
    assert set(over["section"]) == {"one"}
    index = over.set_index("of")["morans_i"]
    assert index["slow"] > 0.6 and abs(index["white"]) < 0.25
    share = inside.pivot(index="of", columns="low", values="share")
    assert share.loc["white"].idxmax() == band[0] and share.loc["white"].max() > 0.6
    assert share.loc["slow"].max() < 0.3


def test_draws_every_curve_and_every_program():
    plt = pytest.importorskip("matplotlib.pyplot")
    states = [("mvhybrid-dino", "released", "untrained"), ("mvhybrid-dino", "released", "trained"),
              ("mvhybrid-mlp", "released", "trained"), ("mvhybrid", "corrected", "untrained"),
              ("handmade", "none", "fixed")]
    table = pd.concat([pd.DataFrame({"encoder": e, "preset": p, "state": s, "x": [1, 2],
                                     "mean": [0.1, 0.2], "ci_low": 0.0, "ci_high": 0.3})
                       for e, p, s in states])
    fig, (ax, *pair) = plt.subplots(1, 3)
    frequency.curves(table, ax, x="x")
    styles = [(line.get_linestyle(), line.get_marker()) for line in ax.lines]
    assert styles == [("--", ""), ("-", ""), ("-", "o"), (":", ""), ("-", "")]
    assert len(ax.collections) == 3  # intervals of what is not untrained
    frequency.legend(table, fig)
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts == ["MVHybrid", "hand-made", "untrained", "trained", "corrected, untrained",
                     "MVHybrid-mlp"]
    over = pd.DataFrame({"of": ["b", "a border"], "mean": [0.1, 0.4], "ci_low": 0.0,
                         "ci_high": 0.5})
    inside = pd.DataFrame({"of": ["b", "b", "a border", "a border"], "low": [0, 0.1] * 2,
                           "high": [0, 0.2] * 2, "mean": [0.1, 0.2, 0.3, 0.4]})
    frequency.draw_slow_and_fast(over, inside, pair, mpp=2.0)
    assert [text.get_text() for text in pair[0].get_yticklabels()] == ["b", "a border"]
    assert pair[1].images[0].get_array().tolist() == [[0.3, 0.4], [0.1, 0.2]]
    assert [text.get_text() for text in pair[1].get_xticklabels()] == ["mean", "10-\n20"]
    plt.close(fig)
