"""MMAP: parts against hand calculations, both stages on made-up slides, resuming, bad input."""

import copy
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch

from mvhlib import encoders
from mvhlib.artifacts import InputError
from mvhlib.backbones import create_model
from mvhlib.cohort import splits
from mvhlib.encoders import create_encoder
from mvhlib.expression import mmap
from mvhlib.expression.early_stopping import held_out
from mvhlib.expression.protocols import Sample
from mvhlib.training import FitConfig

SMALL = {"heads": 2, "head_width": 8, "stage1": FitConfig(epochs=3, batch=16, lr=5e-3)}
GENES = ["a", "b", "c"]


def made_up(n_slides=4, n_spots=40, width=12, n_patches=4, seed=0):
    """Slides whose expression is a linear function of the wide view's patch tokens, plus noise."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(width, len(GENES)))
    slides = []
    for number in range(n_slides):
        cause = rng.normal(size=(n_spots, width))
        X = rng.normal(size=(n_spots, 3, 1 + n_patches, width))
        X[:, 0, 1:] += cause[:, None]
        Y = cause @ W + 5 + rng.normal(scale=0.1, size=(n_spots, len(GENES)))
        slides.append(Sample(f"s{number}", f"st{number}", f"p{number // 2}", X.astype(np.float32),
                             Y.astype(np.float32), rng.uniform(size=(n_spots, 2))))
    return slides


def tiles(n=6, side=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


# ---- parts


def test_similarity_by_hand_on_two_samples():
    # cosines: own 1 and 0.6; others 0.8 and 0: [0 + 0.4 + (0.8 - 0.2) + 0] / 2
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    b = torch.tensor([[5.0, 0.0], [0.8, 0.6]])
    assert float(mmap.similarity_loss(a, b)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("n, k", [(178, 35), (346, 69), (691, 80), (100, 32), (20, 20)])
def test_number_of_prototypes_follows_the_rule(n, k):
    assert mmap.n_prototypes(n) == k


def test_number_selected_is_a_share_or_fixed():
    assert [mmap.n_selected(k, 0.5) for k in (35, 69, 80)] == [17, 34, 40]
    assert mmap.n_selected(35, 8) == 8 and mmap.n_selected(5, 8) == 5


def test_selection_is_by_cosine_not_by_length():
    centres = np.array([[100.0, 1.0], [1.0, 1.0], [0.0, 0.1]], np.float32)
    chosen = mmap.select(np.array([[0.0, 2.0], [3.0, 0.0]], np.float32), centres, 2)
    np.testing.assert_array_equal(chosen, [[2, 1], [0, 1]])


def test_attention_without_mask_equals_softmax_over_tokens_in_float64():
    torch.manual_seed(0)
    block = mmap.CrossAttention(6, heads=2, head_width=3, dropout=0.0).double()
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    normed = torch.nn.functional.layer_norm(x, (6,), block.pre_norm.weight, block.pre_norm.bias)
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        q, k, v = (normed[0] @ layer.weight[part].T
                   for layer in (block.to_q, block.to_k, block.to_v))
        heads.append(torch.softmax(k @ q[0] / 3**0.5, dim=0) @ v)
    expected = block.to_out[0](torch.cat(heads))
    torch.testing.assert_close(block(x)[0, 0], expected)


def test_centre_crop_keeps_the_centre_and_random_crops_stay_inside():
    tile = torch.arange(64 * 64.0).view(1, 1, 64, 64).expand(2, 3, 64, 64)
    one, two, four = mmap.crop_views(tile)
    assert [x.shape[-1] for x in (one, two, four)] == [64, 32, 16]
    torch.testing.assert_close(four, tile[..., 24:40, 24:40])
    corner = mmap.crop_views(tile, (4,), torch.tensor([[[0.0, 0.0]], [[0.9999, 0.9999]]]))[0]
    torch.testing.assert_close(corner[0], tile[0, :, :16, :16])
    torch.testing.assert_close(corner[1], tile[1, :, 48:, 48:])


def test_pooling_averages_fields_of_patch_tokens():
    tokens = torch.arange(17.0).view(1, 17, 1)
    pooled = encoders.pool_tokens(tokens, 2).flatten().tolist()
    # patches 1..16 row by row: the first field holds 1, 2, 5, 6
    assert pooled == [0.0, 3.5, 5.5, 11.5, 13.5]
    with pytest.raises(InputError, match="cannot be made"):
        encoders.pool_tokens(tokens, 5)


def test_augmentation_keeps_the_views_of_a_spot_together_and_pixels_without_bending():
    x = torch.rand(8, 1, 3, 16, 16).expand(8, 2, 3, 16, 16)
    torch.manual_seed(1)
    turned = mmap.augment(x, elastic=False)
    torch.testing.assert_close(turned[:, 0], turned[:, 1])
    kept = [torch.allclose(a.sort().values, b.sort().values) for a, b in
            zip(turned[:, 0].flatten(1), x[:, 0].flatten(1), strict=True)]
    assert sum(kept) >= 5 and not torch.equal(turned, x)
    torch.manual_seed(1)
    bent = mmap.augment(x)
    assert bent.shape == x.shape and not torch.allclose(bent, turned)
    assert float(bent.min()) >= 0 and float(bent.max()) <= 1


# ---- low-rank updates


@pytest.mark.parametrize("name", ["vit12_micro_patch8_64", "mvhybrid_micro_patch8_64",
                                  "vimeinfft_micro_patch8_64"])
def test_lora_starts_as_identity_and_leaves_base_weights_alone(name):
    model = create_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = encoders.model_tokens(model, x)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = mmap.add_lora(model, rank=4, alpha=8)
    first = round(len(model.blocks) * 15 / 24)
    assert {int(each.split(".")[1]) for each in wrapped} == set(range(first, len(model.blocks)))
    with torch.no_grad():
        torch.testing.assert_close(encoders.model_tokens(model, x), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = {id(layer): layer for layer in model.modules()
            if isinstance(layer, mmap.LowRankLinear)}.values()
    assert sum(p.numel() for p in trained) == sum(
        4 * (layer.base.in_features + layer.base.out_features) for layer in rows)
    optimizer = torch.optim.Adam(trained, lr=0.1)
    for _ in range(2):
        encoders.model_tokens(model, x).square().mean().backward()
        optimizer.step()
    after = {key.replace(".base.", "."): value for key, value in model.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in base.items())
    with torch.no_grad():
        assert not torch.allclose(encoders.model_tokens(model, x), before, atol=1e-3)


def test_lora_refuses_a_model_without_projections():
    with pytest.raises(InputError, match="none of 3 from block 3"):
        mmap.add_lora(create_model("vit12_micro_patch8_64"), first_block=3)


# ---- padding


def padded_inputs(value):
    torch.manual_seed(0)
    model = mmap.PrototypeModel(8, 3, heads=2, head_width=4, dropout=0.0).eval()
    token, near, before = torch.randn(5, 8), torch.randn(5, 6, 8), torch.randn(5, 3)
    near[:, 4:] = value
    mask = torch.arange(6).expand(5, 6) < 4
    return model, token, near, mask, before


def test_masked_rows_have_no_influence_and_zero_rows_do_without_mask():
    model, token, near, mask, before = padded_inputs(0.0)
    shorter = model(token, near[:, :4], None, before)[0]
    torch.testing.assert_close(model(token, near, mask, before)[0], shorter)
    torch.testing.assert_close(model(token, near + 9 * ~mask[..., None], mask, before)[0], shorter)
    assert not torch.allclose(model(token, near, None, before)[0], shorter, atol=1e-3)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_zero_rows_get_attention_only_with_the_flag(mask_padding):
    slides = made_up(n_spots=70)  # the rule: K 32, L 16, padded to 40
    model = mmap.MMAP(**SMALL, mask_padding=mask_padding)
    model.fit(slides, GENES, "x", 0)
    _, _, _, near, paid = model._predict(slides[0].X, "s0")
    assert near.shape == (70, 16) and paid.shape == (70, 41)
    np.testing.assert_allclose(paid.sum(axis=1), 1, rtol=1e-5)
    on_padding = paid[:, 17:].sum(axis=1)
    assert (on_padding == 0).all() if mask_padding else (on_padding > 0).all()


# ---- both stages


def test_it_learns_what_the_wide_view_shows_and_one_view_cannot():
    slides = made_up(n_slides=8, n_spots=80)
    options = SMALL | {"stage1": FitConfig(epochs=15, batch=32, lr=1e-2), "dropout": 0.0}
    full, narrow = mmap.MMAP(**options), mmap.MMAP(**options, zooms=(4,), prototypes="none")
    scores = []
    for model in (full, narrow):
        model.fit(slides[:6], GENES, "x", 0)
        scores.append(np.mean([np.corrcoef(model.predict(s)[:, g], s.Y[:, g])[0, 1]
                               for s in slides[6:] for g in range(3)]))
    assert scores[0] > 0.45 and abs(scores[1]) < 0.25


def test_same_seed_same_prediction_another_seed_another():
    slides = made_up()
    found = []
    for seed in (1, 1, 2):
        model = mmap.MMAP(**SMALL, prototypes=8)
        model.fit(slides[:3], GENES, "x", seed)
        found.append(model.predict(slides[3]))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_prediction_averages_stage_one_and_the_prototype_head():
    slides = made_up()
    model = mmap.MMAP(**SMALL, prototypes=8)
    model.fit(slides[:3], GENES, "x", 0)
    with torch.no_grad():
        model.prototype_model.head.weight.zero_()
        model.prototype_model.head.bias.fill_(3.0)
    alone, _ = model._spots(slides[3].X)
    np.testing.assert_allclose(model.predict(slides[3]), (alone + 3) / 2, rtol=1e-5)


def test_prediction_does_not_read_the_truth_and_only_its_own_slide():
    slides = made_up()
    model = mmap.MMAP(**SMALL, prototypes=8)
    model.fit(slides[:3], GENES, "x", 0)
    hidden = Sample("s3", "st3", "p1", slides[3].X, np.full_like(slides[3].Y, np.nan), None)
    first = model.predict(hidden)
    model.predict(slides[0])
    np.testing.assert_array_equal(model.predict(slides[3]), first)


def test_held_out_rows_are_whole_patients_then_sections():
    slides = made_up()
    held, unit = held_out(slides, 0.3, 0)
    by_slide = held.reshape(4, 40)
    assert unit == "patient" and sorted(by_slide.sum(axis=1)) == [0, 0, 40, 40]
    assert by_slide[0, 0] == by_slide[1, 0]
    assert held_out(slides[:2], 0.3, 0)[1] == "section"
    assert held_out(slides[:1], 0.3, 0)[1] == "none"


def test_offsets_of_sections_do_not_stop_training():
    model = mmap.MMAP(**SMALL)
    model._owner = np.array([0, 0, 1, 1, 1])
    residual = np.array([[9.0], [11.0], [-1.0], [-1.0], [-1.0]])
    found = model._errors(residual, np.arange(5))
    assert found == {"loss": pytest.approx(2 / 5), "mse": pytest.approx(205 / 5)}


def test_differences_are_paired_by_unit_and_verdicts_follow_their_interval():
    rows = [(variant, f"p{p}", f"p{p}{s}", base + 0.1 * p + shift)
            for variant, base, shift in (("ref", 0.2, 0.0), ("worse", 0.1, 0.0))
            for p in range(6) for s in "ab"]
    scores = pd.DataFrame(rows, columns=["variant", "patient", "section", "pcc"])
    scores.loc[scores["variant"] == "worse", "pcc"] += np.tile([0.001, -0.001, 0.002], 4)
    table = mmap.against(scores, "ref", "patient").set_index("variant")
    assert table.loc["worse", "difference"] == pytest.approx(-0.1, abs=0.002)
    assert table.loc["worse", "diff_high"] < -0.09 and table.loc["ref", "note"] == "reference"
    assert table.loc["ref", "mean"] == pytest.approx(0.45)
    said = mmap.verdicts(scores, {"right": ("ref", "worse"), "wrong": ("worse", "ref"),
                                  "absent": ("ref", "other")}, "patient").set_index("claim")
    assert list(said["verdict"]) == ["as claimed", "the other way"]
    assert (said["n_units"] == 6).all()


def test_stnet_is_a_linear_head_on_one_view_of_any_embedding():
    slides = made_up()
    flat = [Sample(s.name, s.study, s.patient, s.X[:, 0, 1], s.Y, None) for s in slides]
    model = mmap.stnet(**SMALL)
    model.fit(flat[:3], GENES, "x", 0)
    row = model.describe().iloc[0]
    assert row["method"] == "stnet" and row["n_parameters_stage1"] == (12 + 1) * 3
    assert row["n_parameters_stage2"] == 0 and model.predict(flat[3]).shape == (40, 3)
    # linear: the prediction of a mean is the mean of predictions
    middle = Sample("m", "", "", flat[3].X[:2].mean(axis=0, keepdims=True), None, None)
    np.testing.assert_allclose(model.predict(middle)[0], model.predict(flat[3])[:2].mean(axis=0),
                               rtol=1e-4, atol=1e-4)


def test_describe_counts_slides_spots_patients_and_parameters():
    slides = made_up()
    model = mmap.MMAP(**SMALL, prototypes=8)
    model.fit(slides[:3], GENES, "f", 0)
    row = model.describe().iloc[0]
    assert (row["n_slides"], row["n_spots"], row["n_patients"], row["n_genes"]) == (3, 120, 2, 3)
    assert row["n_parameters_stage1"] == weights(model.spot_model).numel()
    assert row["n_parameters_stage2"] == weights(model.prototype_model).numel()
    assert (row["k_min"], row["k_max"]) == (8, 8)


def test_prototypes_shown_belong_together():
    rng = np.random.default_rng(0)
    slides = made_up()
    groups = rng.integers(0, 4, size=60)
    X = 6 * np.eye(12)[groups][:, None, None] + 0.05 * rng.normal(size=(60, 3, 5, 12))
    model = mmap.MMAP(**SMALL, prototypes=4)
    model.fit(slides, GENES, "x", 0)
    shown = model.prototypes(X.astype(np.float32), n_nearest=3)
    pairs = {(g, k) for g, k in zip(groups, shown.assignment, strict=True)}
    assert len(pairs) == 4  # one prototype per group
    assert shown.sizes.sum() == 60 and shown.nearest.shape == (4, 3)
    assert all(len(set(groups[near])) == 1 for near in shown.nearest)
    table = shown.expression()
    first = table[table["prototype"] == 0].set_index("gene")["predicted"]
    np.testing.assert_allclose(first.to_numpy(),
                               shown.predicted[shown.assignment == 0].mean(axis=0), rtol=1e-5)
    top = shown.top_genes(2)
    assert list(top.groupby("prototype").size()) == [2] * 4
    best = table[table["prototype"] == 1].sort_values("above", ascending=False)["gene"].iloc[0]
    assert top[(top["prototype"] == 1) & (top["rank"] == 1)]["gene"].item() == best


# ---- encoders


def test_tokens_of_views_are_the_encoders_own():
    encoder = create_encoder("vit12_micro_patch8_64", device="cpu")
    x = tiles()
    found = mmap.view_tokens(encoder, x, grid=0)
    assert found.shape == (6, 3, 65, 96)
    np.testing.assert_allclose(found[:, 0, 0], encoder.encode(x), rtol=1e-4, atol=1e-5)
    narrow = encoder.encode(np.ascontiguousarray(x[:, 24:40, 24:40]))
    np.testing.assert_allclose(found[:, 2, 0], narrow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("native", [False, True])
def test_an_adapted_encoder_is_trained_in_copies_and_stays_as_it_was(native):
    encoder = create_encoder("vit12_micro_patch8_64", device="cpu")
    before = encoder.identity
    slides = []
    for number in range(2):
        x = tiles(12, 32, number)
        x = np.stack([x, x[:, ::-1], x[:, :, ::-1]], axis=1) if native else x
        Y = np.random.default_rng(number).normal(size=(12, 3)).astype(np.float32)
        slides.append(Sample(f"s{number}", "st", f"p{number}", x, Y, None))
    options = SMALL | {"stage1": FitConfig(epochs=1, batch=6, lr=1e-2)}
    model = mmap.MMAP(encoder, **options, rank=2, alpha=4, prototypes=4)
    model.fit(slides, GENES, "x", 0)
    np.testing.assert_array_equal(model.predict(slides[0]), model.predict(slides[0]))
    assert encoder.identity == before
    parts = {name.split(".")[1] for name, p in model.spot_model.named_parameters()
             if p.requires_grad and name.startswith("encoders")}
    assert parts == {"0", "1", "2"}
    kept = model.spot_model.state_dict()
    assert not any(".base." in name or "patch_embed" in name for name in kept)
    fresh = copy.deepcopy(model.spot_model)
    with torch.no_grad():
        for p in fresh.parameters():
            if p.requires_grad:
                p.zero_()
    fresh.load_state_dict(kept)
    assert torch.equal(weights(fresh), weights(model.spot_model))
    if not native:
        quirk = mmap.MMAP(encoder, **options, rank=2, alpha=4, prototypes="none",
                          random_crop_eval=True)
        quirk.fit(slides, GENES, "x", 0)
        assert np.abs(quirk.predict(slides[0]) - quirk.predict(slides[0])).max() > 0


def test_token_folder_reads_what_is_there_and_makes_what_is_not(tmp_path, monkeypatch):
    from mvhlib.tiles import store
    from mvhlib.tiles.cut import Tiles

    encoder = create_encoder("vit12_micro_patch8_64", device="cpu")
    names = [f"b{i}" for i in range(6)]
    store.write_tiles(tmp_path / "tiles" / "s.h5", Tiles(
        tiles(), np.zeros((6, 2), np.int64), np.zeros(6, np.float32), 64, 100.0, 1.5625, 1.5625,
        names))
    first = mmap.token_folder(encoder, tmp_path / "tiles", tmp_path / "tokens", ["s"], grid=2)["s"]
    np.testing.assert_array_equal(first.features, mmap.view_tokens(encoder, tiles(), grid=2))
    assert first.barcodes == names and first.features.shape == (6, 3, 5, 96)
    monkeypatch.setattr(mmap.tokens, "view_tokens", lambda *a, **k: pytest.fail("made twice"))
    again = mmap.token_folder(encoder, tmp_path / "tiles", tmp_path / "tokens", ["s"], grid=2)["s"]
    np.testing.assert_array_equal(again.features, first.features)


class Slides:
    """A section whose slide is an array of a given scale."""

    def __init__(self, mpp, side=256):
        from mvhlib.tiles.slides import Slide

        image = np.random.default_rng(0).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
        self.name, self.slide = "rough", Slide.from_array(image, mpp=mpp)


def test_native_views_show_wider_fields_around_one_centre():
    section = Slides(1.0)
    views = mmap.cut_views(section, np.array([[128.0, 128.0]]), (128, 64, 32), tile_px=32)
    assert [view.mpp for view in views] == [4.0, 2.0, 1.0]
    pixels = section.slide.region(0, 0, 256, 256, out_px=(256, 256))[0]
    np.testing.assert_array_equal(views[2].img[0], pixels[112:144, 112:144])
    wide = pixels[64:192, 64:192].reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(views[0].img[0] - wide).mean() < 8  # an average, whatever the filter


# ---- bad input


def test_a_section_too_coarse_for_a_view_is_named():
    with pytest.raises(InputError, match=r"rough: mpp: a view of 32 µm has 16 px"):
        mmap.cut_views(Slides(2.0), np.array([[128.0, 128.0]]), (128, 64, 32), tile_px=32)
    with pytest.raises(InputError, match="widest"):
        mmap.cut_views(Slides(1.0), np.array([[128.0, 128.0]]), (32, 64), tile_px=32)


def test_fewer_spots_than_prototypes_is_refused_by_name():
    slides = made_up(n_spots=10)
    with pytest.raises(InputError, match="s0: spots: are 10, fewer than 16 prototypes"):
        mmap.MMAP(**SMALL, prototypes=16).fit(slides, GENES, "x", 0)
    model = mmap.MMAP(**SMALL, prototypes=16)
    model.fit(made_up(), GENES, "x", 0)
    with pytest.raises(InputError, match="s0: spots: are 10"):
        model.predict(slides[0])
    ruled = mmap.MMAP(**SMALL)  # the rule gives as many as there are
    ruled.fit(slides, GENES, "x", 0)
    assert ruled.fits[0]["k_max"] == 10


def test_a_cohort_of_one_section_has_no_folds():
    one = pd.DataFrame({"section": ["s"], "study": ["st"], "patient": ["p"], "specimen": ["s"],
                        "has_image": [True], "mpp": [1.0]})
    assert all(splits.possible(one, ["loso", "patient", "section"]).values())


@pytest.mark.parametrize("options, match", [
    ({"zooms": (3,)}, "zooms"), ({"zooms": ()}, "zooms"), ({"prototypes": "some"}, "prototypes"),
    ({"prototypes": 0}, "prototypes"), ({"selected": 0}, "selected"),
    ({"random_crop_eval": True}, "needs pixels")])
def test_strange_options_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        mmap.MMAP(**options)


def test_samples_of_another_shape_are_refused_by_name():
    flat = [Sample("s9", "", "", np.zeros((5, 12), np.float32), np.zeros((5, 3)), None)]
    with pytest.raises(InputError, match="s9: tokens: have shape"):
        mmap.MMAP(**SMALL).fit(flat, GENES, "x", 0)
    encoder = create_encoder("vit12_micro_patch8_64", device="cpu")
    with pytest.raises(InputError, match="s9: tiles: are float32"):
        mmap.MMAP(encoder, **SMALL).fit(flat, GENES, "x", 0)
    with pytest.raises(InputError, match="no class token"):
        mmap.view_tokens(create_encoder("handmade", device="cpu"), tiles())
    with pytest.raises(InputError, match="not fitted"):
        mmap.MMAP(**SMALL).predict(flat[0])


# ---- resuming


KILLED = """
    import os, signal, sys
    import torch
    torch.set_num_threads(int(sys.argv[4]))
    from mvhlib import training
    from tests.test_mmap import GENES, SMALL, made_up
    from mvhlib.expression import mmap

    saves = 0
    save = training.Checkpoints.save

    def then_die(self, state):
        global saves
        save(self, state)
        saves += 1
        if saves == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

    training.Checkpoints.save = then_die
    mmap.MMAP(**SMALL, prototypes=8, validation=0.3, folder=sys.argv[1]).fit(
        made_up(), GENES, "x", int(sys.argv[3]))
"""


# In stage 1 and in stage 2, of three epochs each.
@pytest.mark.parametrize("after", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_killed_and_resumed_gives_the_same_weights(tmp_path, after):
    slides = made_up()
    whole = mmap.MMAP(**SMALL, prototypes=8, validation=0.3)
    whole.fit(slides, GENES, "x", 0)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(after), "0",
               str(torch.get_num_threads())]
    from mvhlib.places import home

    assert subprocess.run(command, cwd=home()).returncode == -9
    resumed = mmap.MMAP(**SMALL, prototypes=8, validation=0.3, folder=tmp_path)
    resumed.fit(slides, GENES, "x", 0)
    assert torch.equal(weights(resumed.spot_model), weights(whole.spot_model))
    assert torch.equal(weights(resumed.prototype_model), weights(whole.prototype_model))


def test_variants_of_stage_two_share_stage_one(tmp_path):
    slides = made_up()
    for k in (4, 8):
        mmap.MMAP(**SMALL, prototypes=k, folder=tmp_path).fit(slides, GENES, "x", 0)
    mmap.MMAP(**SMALL, prototypes=4, folder=tmp_path).fit(made_up(seed=1), GENES, "x", 0)
    stages = sorted(path.name.split("-")[0] for path in (tmp_path / "fold_x").iterdir())
    assert stages == ["stage1", "stage1", "stage2", "stage2", "stage2"]
