"""The backbones: counts of the published models, their quirks, and what a user can rely on."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvhlib.artifacts import InputError
from mvhlib.backbones import (
    Backbone,
    create_model,
    from_pretrained,
    is_model,
    list_models,
    load_reference_state_dict,
    register_model,
    registry,
)
from mvhlib.backbones.backbone import Block, DropPath, ssm_positions
from mvhlib.backbones.channel import EinFFT, Mlp
from mvhlib.backbones.mixers import Attention, BidirectionalMamba, HydraMixer, MambaVisionMixer

FAMILIES = ("vit12", "vit17", "vit24", "vimeinfft", "hydraeinfft", "hydrahybrid", "mvhybrid")
MICRO = [f"{family}_micro_patch8_64" for family in FAMILIES]
ROOT = Path(__file__).resolve().parents[1]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shape_only(family, **options):
    """The small model without its weights."""
    with torch.device("meta"):
        return create_model(f"{family}_small_patch16_256", **options)


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def jitter(module, scale=0.1, seed=1):
    """Move every parameter away from its initial value, so that a zero bias cannot hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator,
                                             dtype=parameter.dtype)
    return module


# Counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "options", "expected"), [
    ("vit12", {}, 21_689_088),
    ("vit12", {"layer_scale": 1e-5}, 21_698_304),
    ("vit17", {}, 30_561_408),
    ("vit24", {}, 42_982_656),
    ("vit24", {"layer_scale": 1e-5}, 43_001_088),
    ("vimeinfft", {}, 29_020_032),
    ("vimeinfft", {"norm": "layer"}, 29_038_848),
    ("vimeinfft", {"pos_embed": "none"}, 28_921_344),
    ("hydraeinfft", {}, 28_240_608),
    ("hydraeinfft", {"pos_embed": "none"}, 28_141_920),
    ("hydraeinfft", {"norm": "layer"}, 28_259_424),
    ("hydraeinfft", {"norm": "layer", "pos_embed": "none"}, 28_160_736),
    ("hydrahybrid", {}, 35_522_352),
    ("hydrahybrid", {"pos_embed": "learned"}, 35_621_040),
    ("mvhybrid", {}, 30_963_072),
    ("mvhybrid", {"pos_embed": "learned"}, 31_061_760),
])
def test_parameters_of_published_size(family, options, expected):
    assert count(shape_only(family, **options)) == expected
    assert count(shape_only(family, preset="corrected", **options)) == expected


def test_parameters_of_modules():
    vit, vim, hydra, mv = (shape_only(f) for f in ("vit12", "vimeinfft", "hydraeinfft",
                                                   "mvhybrid"))
    hybrid = shape_only("hydrahybrid")
    sizes = {
        "patch": (count(vit.patch_embed), 295_296),
        "cls": (vit.cls_token.numel(), 384), "mask": (vit.mask_token.numel(), 384),
        "pos": (vit.pos_embed.numel(), 98_688),
        "LayerNorm": (count(vit.norm), 768), "RMSNorm": (count(vim.norm), 384),
        "attention": (count(vit.blocks[0].mixer), 591_360),
        "qkv": (count(vit.blocks[0].mixer.qkv), 442_368 + 1_152),
        "proj": (count(vit.blocks[0].mixer.proj), 147_456 + 384),
        "mlp": (count(vit.blocks[0].channel_mixer), 1_181_568),
        "fc1": (count(vit.blocks[0].channel_mixer.fc1), 589_824 + 1_536),
        "fc2": (count(vit.blocks[0].channel_mixer.fc2), 589_824 + 384),
        "einfft": (count(mv.blocks[0].channel_mixer), 148_992),
        "W1": (mv.blocks[0].channel_mixer.complex_weight_1.numel(), 73_728),
        "b1": (mv.blocks[0].channel_mixer.complex_bias_1.numel(), 768),
        "mv": (count(mv.blocks[0].mixer), 630_528),
        "mv in": (count(mv.blocks[0].mixer.in_proj), 294_912),
        "mv x": (count(mv.blocks[0].mixer.x_proj), 21_504),
        "mv dt": (count(mv.blocks[0].mixer.dt_proj), 9_216 + 384),
        "mv A": (mv.blocks[0].mixer.A_log.numel(), 6_144),
        "mv conv": (count(mv.blocks[0].mixer.conv1d_x), 1_536),
        "mv out": (count(mv.blocks[0].mixer.out_proj), 294_912),
        "vim": (count(vim.blocks[0].mixer), 1_042_944),
        "vim in": (count(vim.blocks[0].mixer.in_proj), 589_824),
        "vim conv": (count(vim.blocks[0].mixer.conv1d_b), 3_072 + 768),
        "vim x": (count(vim.blocks[0].mixer.x_proj_b), 43_008),
        "vim dt": (count(vim.blocks[0].mixer.dt_proj_b), 18_432 + 768),
        "vim A": (vim.blocks[0].mixer.A_b_log.numel(), 12_288),
        "hydra": (count(hydra.blocks[0].mixer), 1_010_468),
        "hydra in": (count(hydra.blocks[0].mixer.in_proj), 697_344),
        "hydra conv": (count(hydra.blocks[0].mixer.conv1d), 7_168 + 1_024),
        "hydra heads": (hydra.blocks[0].mixer.dt_bias.numel(), 12),
        "hydra fc_D": (count(hydra.blocks[0].mixer.fc_D), 9_216),
        "hydra norm": (count(hydra.blocks[0].mixer.norm), 768),
        "block vit": (count(vit.blocks[0]), 1_774_464),
        "block vit LayerScale": (count(shape_only("vit12", layer_scale=1.0).blocks[0]),
                                 1_774_464 + 768),
        "block mv": (count(mv.blocks[0]), 781_056), "block mv 12": (count(mv.blocks[12]),
                                                                    1_774_464),
        "block vim": (count(vim.blocks[0]), 1_192_704),
        "block vim LN": (count(shape_only("vimeinfft", norm="layer").blocks[0]), 1_193_472),
        "block hydra": (count(hydra.blocks[0]), 1_160_228),
        "block hydra LN": (count(hybrid.blocks[0]), 1_160_996),
    }
    assert {name: found for name, (found, _) in sizes.items()} == {
        name: expected for name, (_, expected) in sizes.items()}
    assert mv.blocks[0].mixer.conv1d_x.bias is None and mv.blocks[0].mixer.conv1d_z.bias is None
    assert {type(block.norm1) for block in vim.blocks} == {nn.RMSNorm}
    assert {block.norm1.eps for block in mv.blocks} == {1e-5}
    assert {block.norm1.eps for block in vit.blocks} == {1e-6}


# Tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "at_256", "at_112"), [
    ("vit12", 0, 0), ("vimeinfft", 128, 24), ("hydraeinfft", 128, 24), ("hydrahybrid", 128, 24),
    ("mvhybrid", 128, 24)])
def test_token_count_and_place_of_the_class_token(family, at_256, at_112):
    model = create_model(f"{family}_small_patch16_256", embed_dim=64, num_heads=2, depth=1)
    with torch.no_grad():
        model.cls_token.fill_(1000.0)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for side, n, at in ((256, 256, at_256), (112, 49, at_112)):
        features = model.forward_features(images(1, 3, side, side))
        assert features["patch_tokens"].shape == (1, n, 64) and features["cls"].shape == (1, 64)
        tokens = seen.pop()
        assert tokens.shape == (1, n + 1, 64)
        assert (tokens[0].mean(-1) > 500).nonzero().tolist() == [[at]]


def test_patch_tokens_come_in_raster_order():
    """Each patch is its own only source when there is no block."""
    model = create_model("mvhybrid_micro_patch8_64", depth=0, split=0)
    x = torch.zeros(1, 3, 32, 48)
    reference = model.forward_features(x)["patch_tokens"]
    x[:, :, 8:16, 16:24] = 1  # row 1, column 2 of a grid of 4 x 6
    moved = (model.forward_features(x)["patch_tokens"] - reference).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 * 6 + 2]


def bicubic(grid, height, width):
    """Bicubic resampling (a = -0.75, borders repeated) with DINOv2's offset, in float64."""
    def weights(old, new):
        w = np.zeros((new, old))
        for i in range(new):
            centre = (i + 0.5) * old / (new + 0.1) - 0.5
            for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                t = abs(centre - j)
                value = (1.25 * t**3 - 2.25 * t**2 + 1) if t <= 1 else (
                    -0.75 * (t**3 - 5 * t**2 + 8 * t - 4))
                w[i, min(max(j, 0), old - 1)] += value
        return w
    return np.einsum("ia,jb,abd->ijd", weights(grid.shape[0], height),
                     weights(grid.shape[1], width), grid)


@pytest.mark.parametrize("side", [(112, 112), (64, 160), (320, 320)])
def test_positions_are_resized_as_dinov2_does(side):
    model = create_model("vit12_small_patch16_256", embed_dim=12, num_heads=1, depth=0)
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        model.pos_embed.copy_(images(1, 257, 12))
    model.norm = nn.Identity()
    tokens = model.forward_features(torch.zeros(1, 3, *side))
    grid = model.pos_embed[0, 1:].detach().double().numpy().reshape(16, 16, 12)
    expected = bicubic(grid, side[0] // 16, side[1] // 16).reshape(-1, 12)
    np.testing.assert_allclose(tokens["patch_tokens"][0].detach().numpy(), expected, atol=2e-5)
    torch.testing.assert_close(tokens["cls"], (model.cls_token + model.pos_embed[:, :1])[:, 0])


def test_published_hybrid_knows_no_positions():
    assert create_model("mvhybrid_micro_patch8_64").pos_embed is None
    assert create_model("vimeinfft_micro_patch8_64").pos_embed is not None


@pytest.mark.parametrize("name", ["vit12_micro_patch8_64", "mvhybrid_micro_patch8_64"])
def test_masked_patches_hide_their_pixels(name):
    model = create_model(name).eval()
    x = images(2, 3, 64, 64)
    masks = torch.zeros(2, 64, dtype=torch.bool)
    masks[0, 9] = True  # row 1, column 1
    hidden, open_ = x.clone(), x.clone()
    hidden[0, :, 8:16, 8:16] += 1
    open_[0, :, 8:16, 16:24] += 1
    with torch.no_grad():
        base = model.forward_features(x, masks)
        assert torch.equal(model.forward_features(hidden, masks)["cls"], base["cls"])
        assert not torch.equal(model.forward_features(open_, masks)["cls"][0], base["cls"][0])
        assert not torch.equal(model.forward_features(x)["cls"][0], base["cls"][0])
    assert base["masks"] is masks


def test_lists_of_crops_equal_single_crops():
    model = create_model("mvhybrid_micro_patch8_64", pool="cls+mean").eval()
    crops = [images(2, 3, 64, 64), images(3, 3, 32, 32, seed=1)]
    masks = [torch.rand(2, 64, generator=torch.Generator().manual_seed(2)) < 0.3, None]
    with torch.no_grad():
        both = model.forward_features(crops, masks)
        for crop, mask, found in zip(crops, masks, both, strict=True):
            alone = model.forward_features(crop, mask)
            assert torch.equal(found["cls"], alone["cls"])
            assert torch.equal(found["patch_tokens"], alone["patch_tokens"])
        expected = torch.cat([both[1]["cls"], both[1]["patch_tokens"].mean(1)], dim=1)
        assert torch.equal(model(crops[1]), expected)
    assert model.num_features == 2 * model.embed_dim


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_crops_that_the_patch_does_not_divide_are_refused(shape):
    with pytest.raises(InputError, match="multiples of the patch, 8 px"):
        create_model("mvhybrid_micro_patch8_64", depth=0, split=0).forward_features(
            torch.zeros(shape))


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(InputError, match="one boolean per patch"):
        create_model("vit12_micro_patch8_64", depth=0).forward_features(
            torch.zeros(1, 3, 32, 32), torch.zeros(1, 64, dtype=torch.bool))


# Mixers -------------------------------------------------------------------------------------


def test_mambavision_convolution_reaches_one_back_and_two_ahead():
    """An impulse at t shows in outputs t - 2 to t + 1 when the scan is silent."""
    mixer = jitter(MambaVisionMixer(16)).eval()
    with torch.no_grad():
        mixer.out_proj.weight[:, :16] = 0  # the scan's half
        x = torch.zeros(1, 40, 16)
        base = mixer(x)
        x[0, 20] = 1
        moved = (mixer(x) - base).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == [18, 19, 20, 21]


def test_mambavision_hears_nothing_from_beyond_the_convolution():
    mixer = jitter(MambaVisionMixer(16)).eval()
    x = images(1, 64, 16)
    with torch.no_grad():
        base = mixer(x)
        x[0, 30] += 1
        moved = mixer(x)
    assert torch.equal(moved[:, :28], base[:, :28])
    assert bool(((moved - base)[0, 28:].abs().amax(-1) > 0).all())


def naive_scan(u, dt, A, B, C, D):
    """The recurrence token by token; `u`, `dt` `(B, N, D)`, `B`, `C` `(B, N, S)`."""
    state, outputs = torch.zeros(u.shape[0], u.shape[2], A.shape[1], dtype=u.dtype), []
    for t in range(u.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state \
            + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, dim=1)


def vim_direction(mixer, x, suffix):
    """One direction of Vim's mixer from its own sequence `x`, by the equations."""
    conv, x_proj, dt_proj = (getattr(mixer, f"{name}{suffix}")
                             for name in ("conv1d", "x_proj", "dt_proj"))
    xs, z = mixer.in_proj(x).chunk(2, dim=-1)
    k = conv.weight.shape[-1]
    padded = torch.cat([torch.zeros_like(xs[:, :k - 1]), xs], dim=1)
    u = F.silu(sum(padded[:, i:i + xs.shape[1]] * conv.weight[:, 0, i] for i in range(k))
               + conv.bias)
    dt, b, c = x_proj(u).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    dt = F.softplus(dt @ dt_proj.weight.T + dt_proj.bias)
    a_log, d = (mixer.A_log, mixer.D) if suffix == "" else (mixer.A_b_log, mixer.D_b)
    return naive_scan(u, dt, -torch.exp(a_log), b, c, d) * F.silu(z)


def test_vim_is_the_mean_of_both_directions():
    mixer = jitter(BidirectionalMamba(16).double())
    x = images(2, 11, 16).double()
    forth, back = vim_direction(mixer, x, ""), vim_direction(mixer, x.flip(1), "_b").flip(1)
    assert relative(mixer(x), mixer.out_proj((forth + back) / 2)) < 1e-12
    mixer.divide = False
    assert relative(mixer(x), mixer.out_proj(forth + back)) < 1e-12


def hydra_dense(mixer, u):
    """Hydra's output from its N x N matrices, entry by entry."""
    n_batch, n, _ = u.shape
    s, heads, width = mixer.d_state, mixer.n_heads, mixer.headdim
    inner = heads * width
    z, xbc, dt = mixer.in_proj(u).split([inner, inner + 4 * s, 2 * heads], dim=-1)
    k = mixer.d_conv
    edge = torch.zeros(n_batch, k // 2, xbc.shape[-1], dtype=u.dtype)
    padded = torch.cat([edge, xbc, edge], dim=1)
    xbc = F.silu(sum(padded[:, i:i + n] * mixer.conv1d.weight[:, 0, i] for i in range(k))
                 + mixer.conv1d.bias)
    x, b_f, c_f, b_b, c_b = xbc.split([inner, s, s, s, s], dim=-1)
    d_f, d_b = (F.softplus(t + mixer.dt_bias) for t in dt.chunk(2, dim=-1))
    a = -torch.exp(mixer.A_log)
    diagonal = x @ mixer.fc_D.weight.T + mixer.D
    matrix = torch.zeros(n_batch, heads, n, n, dtype=u.dtype)
    for i in range(n):
        for j in range(n):
            if i > j:
                decay = torch.exp(a * d_f[:, j + 1:i].sum(1))
                dot = (c_f[:, i - 1] * b_f[:, j]).sum(-1, keepdim=True)
                matrix[:, :, i, j] = d_f[:, j] * dot * decay
            elif i < j:
                decay = torch.exp(a * d_b[:, i + 1:j].sum(1))
                dot = (c_b[:, i + 1] * b_b[:, j]).sum(-1, keepdim=True)
                matrix[:, :, i, j] = d_b[:, j] * dot * decay
            else:
                matrix[:, :, i, i] = diagonal[:, i]
    y = torch.einsum("bhij,bjhp->bihp", matrix, x.view(n_batch, n, heads, width))
    y = y.reshape(n_batch, n, inner)
    y = y / torch.sqrt((y**2).mean(-1, keepdim=True) + 1e-5) * mixer.norm.weight
    return mixer.out_proj(y * F.silu(z))


@pytest.mark.parametrize("n", [1, 2, 21])
def test_hydra_equals_its_dense_matrix(n):
    mixer = jitter(HydraMixer(16, d_state=8, headdim=8, chunk=8).double())
    x = images(2, n, 16).double()
    with torch.no_grad():
        assert relative(mixer(x), hydra_dense(mixer, x)) < 1e-12


def test_one_direction_of_vim_is_a_mamba():
    """With the backward direction silent and not halved, Vim is its own forward direction."""
    both = jitter(BidirectionalMamba(16, d_state=4, divide=False))
    one = BidirectionalMamba(16, d_state=4, directions=1)
    left = {name for name, _ in both.named_parameters()} - {n for n, _ in one.named_parameters()}
    assert left == {"A_b_log", "D_b", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight",
                    "dt_proj_b.weight", "dt_proj_b.bias"}
    with torch.no_grad():
        both.conv1d_b.weight.zero_()
        both.conv1d_b.bias.zero_()
    one.load_state_dict({name: tensor for name, tensor in both.state_dict().items()
                         if name not in left})
    x = images(2, 9, 16)
    torch.testing.assert_close(one(x), both(x))


def test_mambavision_in_two_directions_is_even():
    """Without the off-centre convolution the mirrored sequence gives the mirrored output."""
    mixer = jitter(MambaVisionMixer(16, d_state=4, d_conv=1, directions=2), 0.5).double()
    plain = MambaVisionMixer(16, d_state=4, d_conv=1).double()
    plain.load_state_dict(mixer.state_dict())
    x = images(2, 9, 16).double()
    torch.testing.assert_close(mixer(x.flip(1)), mixer(x).flip(1))
    torch.testing.assert_close(mixer(x), (plain(x) + plain(x.flip(1)).flip(1)) / 2)
    assert relative(plain(x.flip(1)), plain(x).flip(1)) > 1e-3
    with pytest.raises(InputError, match="directions"):
        MambaVisionMixer(16, directions=3)


def test_attention_is_softmax_attention():
    mixer = jitter(Attention(12, 3).double())
    x = images(2, 7, 12).double()
    q, k, v = mixer.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        weights = torch.softmax(q[..., part] @ k[..., part].mT / 2, dim=-1)
        heads.append(weights @ v[..., part])
    assert relative(mixer(x), mixer.proj(torch.cat(heads, dim=-1))) < 1e-12


@pytest.mark.parametrize("stored", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_poles_are_negative_whatever_is_stored(stored):
    for mixer in (MambaVisionMixer(16), MambaVisionMixer(16, eigenvalues="complex"),
                  BidirectionalMamba(16), HydraMixer(16, headdim=8)):
        with torch.no_grad():
            mixer.A_log.fill_(stored)
        poles = mixer.A.real if mixer.A.is_complex() else mixer.A
        assert bool((poles < 0).all()) and bool(torch.isfinite(poles).all())
        assert bool(torch.isfinite(mixer(images(1, 9, 16))).all())


def test_complex_eigenvalues_are_those_of_s4d_lin():
    mixer = jitter(MambaVisionMixer(16, d_state=4, eigenvalues="complex"), 0)
    expected = torch.complex(torch.full((4,), -0.5), torch.pi * torch.arange(4.0))
    torch.testing.assert_close(mixer.A[3], expected)
    mixer(images(2, 9, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in mixer.parameters())


# Channel mixers -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 50, 64, 257, 1100])
def test_einfft_by_products_equals_the_transform(n):
    fast = EinFFT(16).double()
    plain = EinFFT(16, formulation="fft").double()
    plain.load_state_dict(jitter(fast).state_dict())
    x = images(2, n, 16).double()
    seed = images(2, n, 16, seed=3).double()
    results = []
    for layer in (fast, plain):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(seed)
        results.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        assert relative(found, expected) < 1e-12


def test_einfft_differentiates_twice():
    layer = jitter(EinFFT(8)).double()
    x = images(1, 5, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("formulation", ["product", "fft"])
@pytest.mark.parametrize("n", [1, 50, 257])
def test_einfft_computes_in_float32_under_autocast(n, formulation):
    layer = EinFFT(384, formulation=formulation)
    assert count(layer) == 148_992
    x = images(2, n, 384)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            from_half = layer(x.bfloat16())
    assert y.dtype == from_half.dtype == torch.float32
    assert torch.equal(y, layer(x))


def test_einfft_mixes_tokens():
    """Not a channel mixer in the strict sense: permuting tokens does more than permute outputs."""
    layer = jitter(EinFFT(16), 0.5)
    x = images(1, 12, 16)
    assert relative(layer(x.roll(1, dims=1)), layer(x).roll(1, dims=1)) > 0.1


def test_einfft_over_tokens_alone_differs():
    both, tokens = EinFFT(16), EinFFT(16, transform="token")
    tokens.load_state_dict(both.state_dict())
    x = images(1, 12, 16)
    assert relative(tokens(x), both(x)) > 0.1


def test_einfft_over_blocks_alone_lets_no_token_hear_another():
    both, blocks = EinFFT(16), EinFFT(16, transform="block")
    blocks.load_state_dict(jitter(both, 0.5).state_dict())
    x = images(1, 12, 16)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blocks(x[:, shuffled]), blocks(x)[:, shuffled])
    # A single token has no other: the two transforms are then the same one.
    torch.testing.assert_close(blocks(x[:, :1]), both(x[:, :1]))


# Presets and initialisation -----------------------------------------------------------------


def quantiles(mixer, **options):
    noise = F.layer_norm(images(2, 257, 384), (384,))
    with torch.no_grad():
        delta = mixer.delta(noise, **options)
    return delta.min().item(), delta.median().item(), delta.max().item()


def test_released_preset_forgets_mambas_time_steps():
    mixer = create_model("mvhybrid_small_patch16_256", depth=1, split=1).blocks[0].mixer
    assert torch.equal(mixer.dt_proj.bias, torch.zeros(384)) and mixer.dt_bias_count == 2
    low, _, high = quantiles(mixer)
    assert 0.6 < low and high < 0.8
    vim = create_model("vimeinfft_small_patch16_256", depth=1).blocks[0].mixer
    assert 5e-3 < quantiles(vim)[1] < 2e-2
    low, median, high = quantiles(vim, backward=True)
    assert abs(median - np.log(2)) < 0.01


def test_corrected_preset_keeps_them():
    mixer = create_model("mvhybrid_small_patch16_256.corrected", depth=1, split=1).blocks[0].mixer
    assert mixer.dt_bias_count == 1
    assert 5e-3 < quantiles(mixer)[1] < 2e-2
    vim = create_model("vimeinfft_small_patch16_256", preset="corrected", depth=1).blocks[0].mixer
    for backward in (False, True):
        assert 5e-3 < quantiles(vim, backward=backward)[1] < 2e-2


def test_hydra_starts_with_one_pole_for_all():
    mixer = create_model("hydrahybrid_small_patch16_256", depth=1, split=1).blocks[0].mixer
    assert torch.equal(mixer.A, -torch.ones(12))
    steps = F.softplus(mixer.dt_bias)
    assert 1e-3 <= steps.min() and steps.max() <= 0.1


def test_the_mixture_that_silences_the_scan_is_refused():
    for options in ({"dt_init": "mamba"}, {"preset": "corrected", "dt_bias_count": 2}):
        with pytest.raises(InputError, match="dt_bias_count"):
            create_model("mvhybrid_micro_patch8_64", **options)
    # A mixer whose bias enters once anyway has nothing to refuse.
    assert create_model("vimeinfft_micro_patch8_64", dt_init="mamba").preset == "custom"
    assert create_model("mvhybrid_micro_patch8_64", dt_bias_count=1).preset == "custom"


def test_initial_weights_of_the_families():
    vit = create_model("vit12_small_patch16_256", depth=2)
    assert abs(vit.blocks[0].mixer.qkv.weight.std().item() - 0.02) < 1e-3
    assert vit.cls_token.abs().max() < 1e-4 and abs(vit.pos_embed.std().item() - 0.02) < 1e-3
    assert not vit.blocks[0].mixer.qkv.bias.any()
    mv = create_model("mvhybrid_small_patch16_256", depth=2)
    assert abs(mv.blocks[0].mixer.x_proj.weight.std().item() - 0.02) < 1e-3
    assert 0.49 < mv.blocks[0].mixer.conv1d_x.weight.abs().max() <= 0.5
    assert abs(mv.blocks[0].channel_mixer.complex_weight_1.std().item() - 0.02) < 1e-3
    assert torch.equal(mv.blocks[0].mixer.A[7], -torch.arange(1.0, 17.0).log().exp())
    vim = create_model("vimeinfft_small_patch16_256", depth=24)
    bound = 768**-0.5 / 24**0.5  # uniform, divided by the root of the depth
    assert 0.99 * bound < vim.blocks[5].mixer.out_proj.weight.abs().max() <= bound
    assert abs(vim.patch_embed.proj.weight.std().item() - 768**-0.5) < 1e-3
    assert not vim.patch_embed.proj.bias.any()


def test_the_seed_decides_and_the_global_state_stays():
    state = torch.random.get_rng_state()
    first, again, other = (create_model("mvhybrid_micro_patch8_64", seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.patch_embed.proj.weight, other.patch_embed.proj.weight)


# Weight decay -------------------------------------------------------------------------------

MV_BIASES = {
    "patch_embed.proj.bias", "norm.weight", "norm.bias",
    "blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.0.norm2.weight",
    "blocks.0.norm2.bias", "blocks.0.mixer.dt_proj.bias",
    "blocks.1.norm1.weight", "blocks.1.norm1.bias", "blocks.1.norm2.weight",
    "blocks.1.norm2.bias", "blocks.1.mixer.qkv.bias", "blocks.1.mixer.proj.bias",
    "blocks.1.channel_mixer.fc1.bias", "blocks.1.channel_mixer.fc2.bias"}


def test_weight_decay_by_the_published_rule():
    model = create_model("mvhybrid_micro_patch8_64", depth=2)
    assert model.no_weight_decay() == MV_BIASES
    small = shape_only("mvhybrid")
    undecayed = small.no_weight_decay()
    assert sum(p.numel() for name, p in small.named_parameters() if name in undecayed) == 84_096
    scaled = create_model("vit12_micro_patch8_64", depth=1, layer_scale=1e-5)
    assert {"blocks.0.gamma1", "blocks.0.gamma2"} <= scaled.no_weight_decay()
    assert not {"pos_embed", "cls_token", "mask_token"} & scaled.no_weight_decay()


@pytest.mark.parametrize(("family", "moved"), [
    ("mvhybrid", {"mixer.A_log", "mixer.D"}),
    ("vimeinfft", {"mixer.A_log", "mixer.D", "mixer.A_b_log", "mixer.D_b"}),
    ("hydraeinfft", {"mixer.A_log", "mixer.D", "mixer.dt_bias"}),
])
def test_weight_decay_as_mamba_means_it(family, moved):
    released, corrected = (create_model(f"{family}_micro_patch8_64", preset, depth=1, split=1)
                           for preset in ("released", "corrected"))
    expected = {f"blocks.0.{name}" for name in moved} | {
        f"blocks.0.channel_mixer.complex_bias_{i}" for i in (1, 2)}
    assert corrected.no_weight_decay() - released.no_weight_decay() == expected
    assert released.no_weight_decay() <= corrected.no_weight_decay()


# Structure ----------------------------------------------------------------------------------


def test_order_of_the_halves():
    assert ssm_positions(4, 1, "ssm_first") == [True, False, False, False]
    assert ssm_positions(4, 1, "attention_first") == [False, False, False, True]
    assert ssm_positions(6, 3, "interleaved") == [True, False] * 3
    for depth in range(13):
        for split in range(depth + 1):
            for order in ("ssm_first", "attention_first", "interleaved"):
                assert sum(ssm_positions(depth, split, order)) == split


@pytest.mark.parametrize(("options", "mixers", "channels"), [
    ({"order": "attention_first"}, [Attention, MambaVisionMixer], [Mlp, EinFFT]),
    ({"mixer": "hydra", "channel_mixer": "mlp"}, [HydraMixer, Attention], [Mlp, Mlp]),
    ({"mixer": "vim", "attention_channel_mixer": "einfft"}, [BidirectionalMamba, Attention],
     [EinFFT, EinFFT]),
    ({"split": 0}, [Attention, Attention], [Mlp, Mlp]),
    ({"split": 2}, [MambaVisionMixer, MambaVisionMixer], [EinFFT, EinFFT]),
    ({"mixer": "attention"}, [Attention, Attention], [EinFFT, Mlp]),
])
def test_every_ablation_is_an_argument(options, mixers, channels):
    model = create_model("mvhybrid_micro_patch8_64", depth=2, **options)
    assert [type(block.mixer) for block in model.blocks] == mixers
    assert [type(block.channel_mixer) for block in model.blocks] == channels
    assert model(images(1, 3, 32, 32)).shape == (1, 96)


def test_options_of_mixers_reach_them():
    model = create_model("mvhybrid_micro_patch8_64", mixer_options={"d_state": 5},
                         channel_options={"n_blocks": 2})
    assert model.blocks[0].mixer.A_log.shape == (96, 5)
    assert model.blocks[0].channel_mixer.n_blocks == 2
    with pytest.raises(InputError, match="d_stat"):
        create_model("mvhybrid_micro_patch8_64", mixer_options={"d_stat": 5})


@pytest.mark.parametrize("name", MICRO)
def test_every_parameter_learns(name):
    model = create_model(name)
    masks = torch.zeros(2, 64, dtype=torch.bool)
    masks[:, ::3] = True
    full, local = model.forward_features([images(2, 3, 64, 64), images(2, 3, 32, 32)],
                                         [masks, None])
    loss = full["cls"].sin().sum() + full["patch_tokens"].sin().sum() + local["cls"].sin().sum()
    loss.backward()
    silent = [n for n, p in model.named_parameters()
              if p.grad is None or not bool(torch.isfinite(p.grad).all())
              or float(p.grad.abs().sum()) == 0]
    assert silent == []


@pytest.mark.parametrize("name", ["mvhybrid_micro_patch8_64", "hydraeinfft_micro_patch8_64"])
def test_recomputed_blocks_give_the_same_gradients(name):
    gradients = []
    for recompute in (False, True):
        model = create_model(name, drop_path=0.5)
        model.set_grad_checkpointing(recompute)
        model.generator = torch.Generator().manual_seed(5)
        model(images(4, 3, 32, 32)).sin().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MICRO)
def test_bfloat16_autocast_stays_close(name):
    model = create_model(name).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(x)
    assert F.cosine_similarity(exact, rounded.float()).min() > 0.999


def test_drop_path_keeps_the_mean_and_rests_in_evaluation():
    layer = DropPath(0.25)
    x = torch.ones(4000, 1, 1)
    draw = layer.draw(x, torch.Generator().manual_seed(0))
    assert draw.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert abs(draw.mean().item() - 1) < 0.05
    assert layer.eval().draw(x, None) is None
    uniform = create_model("vit12_micro_patch8_64", drop_path=0.3)
    assert [block.drop_path.rate for block in uniform.blocks] == [0.3] * 3
    linear = create_model("mvhybrid_micro_patch8_64", drop_path=0.5)
    np.testing.assert_allclose([block.drop_path.rate for block in linear.blocks],
                               np.linspace(0, 0.5, 6))


def test_a_dropped_block_is_the_identity():
    block = Block(Attention(8, 2), Mlp(8), lambda: nn.LayerNorm(8), 8, None, 0.5)
    x, zero, one = images(2, 3, 8), torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    assert torch.equal(block(x, zero, zero), x)
    assert torch.equal(block(x, one, one), block(x))


def test_intermediates_end_in_the_features():
    model = create_model("hydrahybrid_micro_patch8_64").eval()
    x = images(1, 3, 64, 64)
    every = model.forward_intermediates(x, norm=True)
    assert len(every) == 6
    assert torch.equal(every[-1]["cls"], model.forward_features(x)["cls"])
    last, first = model.forward_intermediates(x, [-1, 0], norm=True)
    assert torch.equal(last["cls"], every[5]["cls"])
    assert torch.equal(first["patch_tokens"], every[0]["patch_tokens"])


# Registry -----------------------------------------------------------------------------------


def test_names():
    expected = {f"{family}_{size}" for family in FAMILIES
                for size in ("micro_patch8_64", "tiny_patch16_224", "small_patch16_256")}
    assert set(list_models()) == expected
    assert list_models("vit*_micro_*") == ["vit12_micro_patch8_64", "vit17_micro_patch8_64",
                                           "vit24_micro_patch8_64"]
    assert is_model("mvhybrid_tiny_patch16_224.corrected") and not is_model("mvhybrid.corrected")
    model = create_model("mvhybrid_tiny_patch16_224.corrected")
    assert (model.architecture, model.preset) == ("mvhybrid_tiny_patch16_224", "corrected")
    assert (model.embed_dim, len(model.blocks)) == (192, 12)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert model.patch_embed.grid_size == (14, 14)


@pytest.mark.parametrize(("name", "options", "said"), [
    ("mvhybrid_smal_patch16_256", {}, "mvhybrid_small_patch16_256"),
    ("mvhybrid_micro_patch8_64", {"ordr": "interleaved"}, "did you mean 'order'"),
    ("mvhybrid_micro_patch8_64", {"preset": "fixed"}, "released, corrected"),
    ("mvhybrid_micro_patch8_64.corrected", {"preset": "released"}, "differ"),
    ("mvhybrid_micro_patch8_64", {"order": "mixed"}, "ssm_first, attention_first"),
    ("mvhybrid_micro_patch8_64", {"split": 7}, "between 0 and depth"),
    ("mvhybrid_micro_patch8_64", {"img_size": 60}, "does not divide"),
])
def test_what_does_not_exist_is_named(name, options, said):
    with pytest.raises(InputError, match=said):
        create_model(name, **options)


def test_own_models_join_the_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_model
    def thin_patch8_64(**options):
        return Backbone(**({"img_size": 64, "patch_size": 8, "embed_dim": 32, "num_heads": 2,
                            "depth": 2, "split": 1} | options))

    assert "thin_patch8_64" in list_models("thin*")
    assert create_model("thin_patch8_64", preset="corrected").preset == "corrected"
    with pytest.raises(InputError, match="taken"):
        register_model(thin_patch8_64)


# Saving -------------------------------------------------------------------------------------


def small_model(**options):
    return create_model("mvhybrid_micro_patch8_64", depth=2, **options)


@pytest.mark.parametrize("name", MICRO)
def test_reloaded_weights_give_bit_equal_features(name, tmp_path):
    model = jitter(create_model(name, preset="corrected", pool="cls+mean")).eval()
    model.save_pretrained(tmp_path, pretrained_on={"sections": ["a"], "patients": ["p"],
                                                   "studies": ["s"]})
    again = from_pretrained(tmp_path)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert (again.architecture, again.preset) == (name, "corrected")
    assert again.pretrained_on == {"sections": ["a"], "patients": ["p"], "studies": ["s"]}
    assert again.no_weight_decay() == model.no_weight_decay()
    assert not again.training and all(p.requires_grad for p in again.parameters())


def test_saved_files_are_the_same_bytes_each_time(tmp_path):
    from safetensors import safe_open

    for folder in ("a", "b"):
        small_model().save_pretrained(tmp_path / folder)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as stream:
        assert len(stream.metadata()) == 1
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["architecture"] == "mvhybrid_micro_patch8_64"
    assert config["model_args"]["dt_bias_count"] == 2 and config["pretrained_on"] is None
    from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    assert (tmp_path / "a" / "config.json").read_bytes() == \
        (tmp_path / "c" / "config.json").read_bytes()


def _truncate(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def _edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _weights_of_another(folder):
    small_model(seed=1).save_pretrained(folder / "other")
    (folder / "other" / "model.safetensors").rename(folder / "model.safetensors")


@pytest.mark.parametrize("damage", [
    lambda f: _truncate(f, "model.safetensors"),
    lambda f: _truncate(f, "config.json"),
    lambda f: (f / "config.json").write_text("[1]"),
    lambda f: (f / "config.json").write_text("{}"),
    lambda f: (f / "model.safetensors").unlink(),
    lambda f: (f / "config.json").unlink(),
    _flip_a_bit,
    lambda f: _edit_config(f, preset="corrected"),
    lambda f: _edit_config(f, pretrained_on={"sections": [], "patients": [], "studies": []}),
    _weights_of_another,
    lambda f: (f / "config.json").write_text("[" * 100_000),
    lambda f: (f / "config.json").write_bytes(b"\xff\xfe"),
    lambda f: _edit_config(f, model_args=5),
    lambda f: _edit_config(f, weights_sha256=None),
    lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("/nowhere.json")),
    lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
], ids=["weights cut", "config cut", "config a list", "config empty", "weights gone",
        "config gone", "bit flipped", "preset edited", "provenance edited", "weights swapped",
        "nested", "config not UTF-8", "arguments a number", "no hash", "link to nothing",
        "a folder"])
def test_a_damaged_model_is_one_clear_error(damage, tmp_path):
    small_model().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "Fix:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="norm.weight: holds NaN or infinite weights"):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match="norm.weight: holds NaN or infinite weights"):
        load_reference_state_dict(small_model(), model.state_dict())


def test_loading_can_change_what_leaves_the_weights_alone(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert from_pretrained(tmp_path, pool="cls+mean").num_features == 192
    with pytest.raises(InputError, match="do not fit the weights"):
        from_pretrained(tmp_path, depth=3)


# Published checkpoints ----------------------------------------------------------------------


def published_names(model):
    """The model's weights under MVHybrid's own names."""
    return {name.replace("blocks.", "blocks.blocks.", 1): value.clone()
            for name, value in model.state_dict().items()}


@pytest.mark.parametrize("layout", ["plain", "teacher file", "flat", "student", "wrapped",
                                    "chunks", "model", "safetensors"])
def test_published_checkpoints_load(layout, tmp_path):
    source, target = jitter(small_model()), small_model(seed=9)
    names = published_names(source)
    head = {"dino_head.mlp.0.weight": torch.zeros(2)}
    chunks = {name.replace("blocks.", "blocks.0.", 1): v for name, v in
              source.state_dict().items()}
    content = {
        "plain": names,
        "teacher file": {"teacher": {f"backbone.{k}": v for k, v in names.items()} | head},
        "flat": {f"teacher.backbone.{k}": v for k, v in names.items()}
        | {f"student.backbone.{k}": v + 1 for k, v in names.items()},
        "student": {f"teacher.backbone.{k}": v + 1 for k, v in names.items()}
        | {f"student.backbone.{k}": v for k, v in names.items()},
        "wrapped": {f"module.backbone._fsdp_wrapped_module.{k}": v for k, v in names.items()},
        "chunks": chunks,
        "model": {"model": names, "iteration": 5, "optimizer": {"state": torch.zeros(3)}},
        "safetensors": names,
    }[layout]
    if layout == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "checkpoint.safetensors"
        save_file(content, path)
    else:
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path)
    branch = "student" if layout == "student" else "teacher"
    assert load_reference_state_dict(target, path, branch=branch) is target
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_dinov2_vit_names_load():
    source = jitter(create_model("vit12_micro_patch8_64", layer_scale=0.1))
    target = create_model("vit12_micro_patch8_64", layer_scale=0.1, seed=1)
    names = {}
    for name, value in source.state_dict().items():
        for ours, theirs in ((".mixer.", ".attn."), (".channel_mixer.", ".mlp."),
                             (".gamma1", ".ls1.gamma"), (".gamma2", ".ls2.gamma")):
            name = name.replace(ours, theirs)
        names[name] = value
    load_reference_state_dict(target, names)
    x = images(1, 3, 64, 64)
    assert torch.equal(target(x), source(x))


def test_a_single_bias_model_takes_the_doubled_one():
    """Published code adds the bias twice; adding twice its value once is the same."""
    published = jitter(small_model()).eval()
    single = small_model(preset="corrected").eval()
    load_reference_state_dict(single, published_names(published))
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert relative(single(x), published(x)) < 1e-6
        assert torch.equal(single.blocks[0].mixer.dt_proj.bias,
                           2 * published.blocks[0].mixer.dt_proj.bias)


def test_everything_that_does_not_fit_is_listed():
    names = published_names(small_model())
    del names["norm.weight"], names["blocks.blocks.1.mixer.qkv.bias"]
    names["register_tokens"] = torch.zeros(1)
    names["mask_token"] = torch.zeros(1, 7)
    target = small_model(seed=2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_reference_state_dict(target, names)
    for said in ("missing ['blocks.1.mixer.qkv.bias', 'norm.weight']",
                 "extra ['register_tokens']", "mask_token is (1, 7), expected (1, 96)"):
        assert said in str(caught.value)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_that_carries_code_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": Mlp(4)}, path)
    with pytest.raises(InputError, match="checkpoint.pth.*refused"):
        load_reference_state_dict(Mlp(4), path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="checkpoint.pth"):
        load_reference_state_dict(Mlp(4), path)


# A bare machine -----------------------------------------------------------------------------

BARE = """
import importlib.abc, sys
BLOCKED = {blocked}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import torch
torch.set_num_threads(2)
from mvhlib.backbones import create_model
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & set(BLOCKED), loaded & set(BLOCKED)
for family in ("vit12", "vit24", "vimeinfft", "hydraeinfft", "hydrahybrid", "mvhybrid"):
    model = create_model(f"{{family}}_{size}", **{options})
    for side in {sides}:
        x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        y = model(x)
        assert y.shape == (1, model.embed_dim) and bool(torch.isfinite(y).all())
        y.sin().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None and n != "mask_token"]
    assert not missing, missing
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters()
               if p.grad is not None)
    print(family, sum(p.numel() for p in model.parameters()))
"""
ABSENT = ["timm", "torchvision", "triton", "mamba_ssm", "causal_conv1d", "xformers", "scanpy",
          "anndata", "pandas", "squidpy", "sklearn", "matplotlib"]


def run_bare(size, sides, options="{}"):
    code = BARE.format(blocked=ABSENT, size=size, sides=sides, options=options)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                            text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_all_six_run_on_a_bare_machine():
    assert len(run_bare("micro_patch8_64", (64, 32)).splitlines()) == 6


@pytest.mark.slow
def test_all_six_run_at_the_published_size_on_a_bare_machine():
    out = run_bare("small_patch16_256", (256, 112))
    assert "mvhybrid 30963072" in out and "vimeinfft 29020032" in out
