"""CMRCNet: losses against float64, masks, retrieval, resume, and what it refuses.

The published blocks and losses are compared number by number in test_golden.
"""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mvhlib import encoders
from mvhlib.artifacts import InputError
from mvhlib.cohort import splits
from mvhlib.expression import cmrcnet, protocols
from mvhlib.expression.early_stopping import held_out
from mvhlib.expression.protocols import Sample
from mvhlib.features import Features
from mvhlib.training import FitConfig

SMALL = cmrcnet.Settings(width=16, gene_hidden=32, gene_tokens=4)
SHORT = FitConfig(epochs=3, batch=16, lr=3e-3, optimizer="adamw")


def make_samples(n_sections=4, n_spots=30, n_genes=6, tokens=3, seed=0, patients=2):
    """Sections whose expression is a function of their tokens."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(5, n_genes))
    samples = []
    for number in range(n_sections):
        z = rng.normal(size=(n_spots, 5))
        X = (z[:, None] + 0.1 * rng.normal(size=(n_spots, tokens, 5))).astype(np.float32)
        Y = np.log1p(np.exp(z @ mixing / 2)).astype(np.float32)
        samples.append(Sample(f"s{number}", "study", f"p{number % patients}", X, Y,
                              rng.random((n_spots, 2))))
    return samples


def make(**changes):
    options = {"settings": SMALL, "training": SHORT, "k": 5} | changes
    return cmrcnet.CMRCNet(**options)


# ---- losses and masks


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_contrastive_terms_against_float64(tau):
    rng = np.random.default_rng(0)
    spot, image = rng.normal(size=(2, 7, 4))
    logits = spot @ image.T / tau
    alike = tau * (image @ image.T + spot @ spot.T) / 2
    target = np.exp(alike - alike.max(axis=1, keepdims=True))
    target /= target.sum(axis=1, keepdims=True)

    def log_softmax(rows):
        rows = rows - rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    expected = [(-(target[i] * log_softmax(logits)[i]).sum()
                 - (target[:, i] * log_softmax(logits.T)[i]).sum()) / 2 for i in range(7)]
    loss, entropy = cmrcnet.contrastive_terms(torch.from_numpy(spot), torch.from_numpy(image), tau)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(entropy, -(target * np.log(target)).sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 4.0])
def test_rows_of_the_soft_target_sum_to_one_and_columns_do_not(tau):
    generator = torch.Generator().manual_seed(1)
    spot, image = torch.randn(2, 9, 8, generator=generator, dtype=torch.float64)
    target = cmrcnet.soft_targets(spot, image, tau)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(9, dtype=torch.float64))
    assert (target.T.sum(dim=1) - 1).abs().max() > 1e-3


def test_a_detached_target_passes_no_gradient():
    spot, image = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    spot.requires_grad_()
    gradients = [torch.autograd.grad(cmrcnet.contrastive_terms(spot, image, detach=d)[0].sum(),
                                     spot)[0] for d in (True, False)]
    fixed = cmrcnet.soft_targets(spot, image).detach()
    logits = spot @ image.T
    loss = -(fixed * logits.log_softmax(1)).sum() - (fixed.T * logits.T.log_softmax(1)).sum()
    torch.testing.assert_close(gradients[0], torch.autograd.grad(loss / 2, spot)[0])
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.7])
def test_masked_share(rate):
    generator = torch.Generator().manual_seed(3)
    shape = (64, 50, 32)
    spread = 4 * (0.25 / np.prod(shape)) ** 0.5
    masked = 1 - cmrcnet.mask_of(shape, rate, generator=generator).mean().item()
    assert abs(masked - rate) <= spread
    kept = cmrcnet.mask_of(shape, rate, keep_prob_semantics=True, generator=generator)
    assert abs(kept.mean().item() - rate) <= spread
    per_feature = cmrcnet.mask_of((4000, 1, 8), 0.5, generator=generator).mean(dim=(0, 1))
    assert per_feature.min() > 0.4  # single numbers are masked, not whole tokens or features


def test_reconstruction_errors():
    a, b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.isclose(cmrcnet.reconstruction_error(a, b), ((a - b) ** 2).mean())
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert torch.isclose(cmrcnet.reconstruction_error(a, b, "cosine"), (1 - cosine).mean())
    assert abs(cmrcnet.reconstruction_error(a, 3 * a, "cosine")) < 1e-12


# ---- the network


def network(settings=SMALL, n_genes=6):
    tokens = torch.from_numpy(make_samples()[0].X)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cmrcnet.Network(cmrcnet.FrozenTokens(tokens, settings.width), n_genes,
                               settings).eval()


def batch():
    sample = make_samples()[0]
    return torch.from_numpy(sample.X), torch.from_numpy(sample.Y)


def test_the_published_form_has_the_published_numbers():
    """56 M parameters in the encoder; 50 tokens; the gene layer is 8 tokens of 256 as it is."""
    with torch.device("meta"):
        from mvhlib.backbones import create_model

        model = create_model("vit12_small_patch16_256", **cmrcnet.PUBLISHED_ENCODER)
        genes = cmrcnet.GeneTokens(1000, 2048, 8, 256)
    n = sum(p.numel() for p in model.parameters()) / 1e6
    assert 55 < n < 62 and len(model.blocks) == 8 and model.patch_embed.num_patches + 1 == 50
    assert isinstance(genes.resize, torch.nn.Identity)
    assert cmrcnet.PUBLISHED_TRAINING == FitConfig(
        epochs=60, batch=64, lr=1e-4, min_lr=1e-5, optimizer="adamw", weight_decay=1e-3)


def test_the_sum_holds_both_terms_as_logarithms():
    x, y = batch()
    net = network(replace(SMALL, mask_rate=0.0))
    terms = net.losses(x, y)
    rows, entropy = cmrcnet.contrastive_terms(net.embed_spots(y), net.embed_images(x))
    torch.testing.assert_close(terms["contrastive"], torch.log1p(rows).mean())
    torch.testing.assert_close(terms["target_entropy"], entropy.mean())
    torch.testing.assert_close(terms["loss"], terms["contrastive"] + terms["reconstruction"])
    assert terms["loss"] > net.losses(x, y, reconstruct=False)["loss"]
    plain = network(replace(SMALL, reconstruct="none", log_scale=False)).losses(x, y)
    assert "reconstruction" not in plain
    torch.testing.assert_close(plain["loss"], rows.mean())


def test_shared_blocks_are_one():
    sizes = [sum(p.numel() for p in cmrcnet.Reconstruction(16, share).parameters())
             for share in (False, True)]
    one = sum(p.numel() for p in cmrcnet.Refine(16).parameters())
    assert sizes[0] - sizes[1] == one


@pytest.mark.parametrize("detach", [True, False])
def test_the_target_of_the_reconstruction_is_a_target(detach):
    """Detached, the image head gets no gradient from the reconstruction; else it does."""
    x, y = batch()
    net = network(replace(SMALL, detach_targets=detach))
    generator = torch.Generator().manual_seed(0)
    whole = net.losses(x, y, generator=generator)["loss"]
    part = net.losses(x, y, reconstruct=False, generator=generator)["loss"]
    gradient = torch.autograd.grad(whole - part, net.image_head.fc.weight)[0]
    assert (gradient.abs().max() < 1e-6) == detach
    shared = torch.autograd.grad(net.losses(x, y)["loss"], net.image.resize.weight)[0]
    assert shared.abs().max() > 0


@pytest.mark.parametrize("side", ["image", "genes"])
def test_masked_numbers_do_not_enter(side):
    x, y = batch()
    net = network(replace(SMALL, reconstruct=side, mask_rate=0.99))
    own = (net.image_tokens(net.image(x)), net.gene_tokens(y))[side == "genes"]
    other = (net.gene_tokens(y), net.image_tokens(net.image(x)))[side == "genes"]
    mask = cmrcnet.mask_of(own.shape, 0.5, generator=torch.Generator().manual_seed(1))
    changed = own + (1 - mask) * 100
    torch.testing.assert_close(net.reconstruction(own * mask, other),
                               net.reconstruction(changed * mask, other))


def test_turned_tiles_are_the_eight_of_a_square():
    tile = torch.arange(16.0).view(1, 1, 4, 4)
    torch.manual_seed(0)
    found = {tuple(cmrcnet.turned(tile).flatten().tolist()) for _ in range(100)}
    eight = {tuple(t.rot90(n, (-2, -1)).flatten().tolist())
             for t in (tile, tile.flip(-1)) for n in range(4)}
    assert found == eight


# ---- the estimator


def test_prediction_is_the_mean_of_the_nearest_training_spots():
    samples = make_samples()
    model = make(k=7)
    about = model.fit(samples[:3], list("abcdef"), "f", 0)
    fitted = model.current
    image, stored = fitted.embed_images(samples[3].X), fitted.embed_spots(fitted.expression)
    cosine = (image @ stored.T) / np.linalg.norm(image, axis=1)[:, None] / np.linalg.norm(
        stored, axis=1)
    rows = np.argsort(-cosine, axis=1, kind="stable")[:, :7]
    expected = np.stack([fitted.expression[chosen].mean(axis=0) for chosen in rows])
    np.testing.assert_allclose(model.predict(samples[3]), expected, rtol=1e-5)
    np.testing.assert_array_equal(fitted.expression, np.concatenate([s.Y for s in samples[:3]]))
    assert about["n_spots"] == 90 and about["n_slides"] == 3 and about["n_patients"] == 2


def test_it_learns_what_tokens_say_about_genes():
    samples = make_samples(n_sections=8, n_spots=60, patients=4)
    model = make(training=replace(SHORT, epochs=12), k=10)
    model.fit(samples[:6], list("abcdef"), "f", 0)
    predicted = model.predict(samples[7])
    r = [np.corrcoef(predicted[:, g], samples[7].Y[:, g])[0, 1] for g in range(6)]
    assert np.mean(r) > 0.5
    match = model.current.match(samples[7].X, samples[7].Y)
    assert (match["median_rank"] < match["chance_rank"] / 2).all()
    log = model.log()
    assert log["alignment"].iloc[-1] > log["alignment"].iloc[0]
    assert {"contrastive", "reconstruction", "target_entropy", "valid_loss"} <= set(log)


def test_predict_reads_no_expression_of_the_test_section():
    samples = make_samples()
    model = make()
    model.fit(samples[:3], list("abcdef"), "f", 0)
    hidden = replace(samples[3], Y=np.full_like(samples[3].Y, np.nan))
    np.testing.assert_array_equal(model.predict(samples[3]), model.predict(hidden))


def test_any_table_of_the_training_spots_can_be_asked_for():
    samples = make_samples()
    model = make()
    model.fit(samples[:3], list("abcdef"), "f", 0)
    tables = {s.name: np.column_stack([s.Y, s.Y[:, 0] * 2 + 1]) for s in samples[:3]}
    found = model.predict_genes(samples[3].X, tables)
    predicted = model.predict(samples[3])
    np.testing.assert_allclose(found[:, :6], predicted, rtol=1e-5)
    np.testing.assert_allclose(found[:, 6], predicted[:, 0] * 2 + 1, rtol=1e-4)
    with pytest.raises(InputError, match="lack s0"):
        model.predict_genes(samples[3].X, {"s1": tables["s1"]})
    with pytest.raises(InputError, match="29 rows for 30 spots"):
        model.predict_genes(samples[3].X, tables | {"s2": tables["s2"][1:]})


def test_without_shared_weights_reconstruction_could_change_nothing():
    """Why the frozen path trains a block: with it the two methods retrieve differently."""
    samples = make_samples()
    embedded = []
    for settings in (SMALL, replace(SMALL, reconstruct="none")):
        model = make(settings=settings)
        model.fit(samples[:3], list("abcdef"), "f", 0)
        embedded.append(model.current.embed_images(samples[3].X))
    assert not np.allclose(*embedded, atol=1e-4)


def test_validation_holds_out_whole_patients():
    samples = make_samples(n_sections=6, patients=3)
    share = make().validation
    held, unit = held_out(samples, share, 0)
    owners = np.repeat([s.patient for s in samples], 30)
    assert unit == "patient" and held.any() and not set(owners[held]) & set(owners[~held])
    assert held_out(samples[:1], share, 0) == (pytest.approx(np.zeros(30)), "none")


def test_two_stages_hold_the_reconstruction_back():
    samples = make_samples()
    logs = {}
    for schedule in ("joint", "two_stage"):
        model = make(settings=replace(SMALL, schedule=schedule),
                     training=replace(SHORT, epochs=4))
        model.fit(samples, list("abcdef"), "f", 0)
        logs[schedule] = model.log()
    gap = logs["two_stage"]["loss"] - logs["two_stage"]["contrastive"]
    assert (gap[:2].abs() < 1e-6).all() and (gap[2:] > 1e-3).all()
    gap = logs["joint"]["loss"] - logs["joint"]["contrastive"]
    np.testing.assert_allclose(gap, logs["joint"]["reconstruction"], rtol=1e-5)


def test_under_the_protocols_with_an_index():
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(5)
    sections, features, genes = [], {}, [f"g{i}" for i in range(6)]
    for sample in make_samples(n_sections=4, n_spots=40, patients=4):
        counts = rng.poisson(np.exp(sample.Y) * 3).astype(np.float32)
        adata = anndata.AnnData(np.zeros_like(counts), var=pd.DataFrame(index=genes),
                                obs=pd.DataFrame(index=[f"b{i}" for i in range(40)]))
        adata.layers["counts"], adata.obsm["spatial"] = counts, sample.coords
        sections.append(SimpleNamespace(name=sample.name, study="st", patient=sample.patient,
                                        specimen=sample.name, adata=adata))
        features[sample.name] = Features(sample.X, sample.coords.astype(int),
                                         list(adata.obs_names))
    manifest = pd.DataFrame([{"section": s.name, "study": "st", "patient": s.patient,
                              "specimen": s.name} for s in sections])
    folds = splits.make(manifest, "patient", 0)
    panel = {fold: genes for fold in folds["fold"].unique()}
    tables = {}
    for index in ("exact", "cells"):
        model = make(index=index, recall=1.0)
        tables[index] = protocols.run(sections, features, folds, "patient", panel,
                                      encoder="e", method=model).scores
        assert set(model.fitted) == set(folds["fold"].astype(str))
        assert (model.describe()["n_patients"] == 3).all()
    assert set(tables["exact"]["method"]) == {"cmrcnet"} and len(tables["exact"]) == 24
    np.testing.assert_allclose(tables["exact"]["mse"], tables["cells"]["mse"], atol=0.05)
    # A gene that a test section lacks is refused by name, and so is a cohort of one section.
    lacking = sections[:3] + [SimpleNamespace(**vars(sections[3]) | {
        "adata": sections[3].adata[:, genes[:5]]})]
    with pytest.raises(InputError, match="not measured"):
        protocols.run(lacking, features, folds, "patient", panel, encoder="e", method=make())
    with pytest.raises(InputError):
        splits.make(manifest.iloc[:1], "section", 0)
    X, Y = cmrcnet.paired(sections[0], features["s0"], genes[:2])
    assert X.shape == (40, 3, 5) and Y.shape == (40, 2)
    with pytest.raises(InputError, match="not measured"):
        cmrcnet.table(sections[0], ["absent"])


def test_bleep_is_the_same_without_reconstruction():
    model = cmrcnet.METHODS["bleep"](settings=SMALL, training=SHORT, k=5)
    model.fit(make_samples(), list("abcdef"), "f", 0)
    assert model.name == "bleep" and not model.settings.log_scale
    assert "reconstruction" not in model.log()
    assert not any("reconstruction" in name for name, _ in
                   model.current.network.named_parameters())


def test_bad_input():
    samples = make_samples()
    with pytest.raises(InputError, match="k: is 200 for a gallery of 120"):
        make(k=200).fit(samples, list("abcdef"), "f", 0)
    with pytest.raises(InputError, match="s0: features"):
        make().fit([replace(samples[0], X=np.zeros((30, 2, 2, 2)))], list("abcdef"), "f", 0)
    with pytest.raises(InputError, match="fit"):
        make().predict(samples[0])
    for change in ({"mask_rate": 1.0}, {"tau": 0.0}, {"loss": "l1"}, {"schedule": "none"},
                   {"width": 12}):
        with pytest.raises(InputError, match=next(iter(change))):
            replace(SMALL, **change)


def test_genes_that_the_authors_choose_on_the_test_section():
    rng = np.random.default_rng(10)
    measured = rng.normal(size=(50, 4)) * [1, 1, 3, 0] + [9, 0, 0, 20]
    predicted = measured * [1, 1, -1, 1] + 1e-9 * rng.normal(size=(50, 4))
    found = cmrcnet.selected_on_test(
        {"s": SimpleNamespace(measured=measured, predicted=predicted)}, n=2)
    # Highest sums: gene 3, constant and so 0, and gene 0, r 1. Largest variance: gene 2, r -1, and
    # one of r 1.
    np.testing.assert_allclose(found["pcc"], [0.5, 0.0], atol=1e-6)
    assert found["genes"].str.contains("selected on test").all()


# ---- trained encoders


@pytest.fixture(scope="module")
def on_tiles():
    """A micro transformer trained on coloured noise whose colour is the expression."""
    rng = np.random.default_rng(8)
    samples = []
    for number in range(3):
        Y = rng.random((12, 4)).astype(np.float32)
        X = (Y[:, None, None, :3] * 160 + rng.random((12, 64, 64, 3)) * 60).astype(np.uint8)
        samples.append(Sample(f"s{number}", "st", f"p{number}", X, Y, None))
    start = encoders.create_encoder("vit12_micro_patch8_64", seed=1)
    model = make(encoder=start, grid=2, training=replace(SHORT, epochs=2))
    model.fit(samples[:2], list("abcd"), "f", 0)
    return start, model, samples


def test_an_encoder_is_trained_and_the_given_one_left_alone(on_tiles):
    start, model, samples = on_tiles
    again = encoders.create_encoder("vit12_micro_patch8_64", seed=1)
    assert again.identity == start.identity
    trained = model.current.network.image.model
    assert not torch.equal(trained.patch_embed.proj.weight, start.model.patch_embed.proj.weight)
    assert model.predict(samples[2]).shape == (12, 4)
    with pytest.raises(InputError, match="tiles"):
        model.predict(replace(samples[2], X=np.zeros((12, 5), np.float32)))


def test_a_trained_encoder_serves_elsewhere(on_tiles, tmp_path):
    start, model, samples = on_tiles
    wrapped = model.current.patch_encoder("mine")
    features = wrapped.encode(samples[2].X)
    assert features.shape == (12, 96) and np.isfinite(features).all()
    assert wrapped.pretrained_on["sections"] == ["s0", "s1"]
    folder = model.current.save_encoder(tmp_path / "mine")
    read = encoders.create_encoder(folder, pool="cls+mean")
    assert read.pretrained_on == {"sections": ["s0", "s1"], "patients": ["p0", "p1"],
                                  "studies": ["st"]}
    both = read.encode(samples[2].X)
    # The mean over all tokens, pooled 2 x 2, is in both: (class + 4 mean of patches) / 5.
    np.testing.assert_allclose(features, (both[:, :96] + 4 * both[:, 96:]) / 5, atol=1e-4)
    frozen = make()
    frozen.fit(make_samples(), list("abcdef"), "f", 0)
    with pytest.raises(InputError, match="frozen"):
        frozen.current.save_encoder(tmp_path / "x")


def test_tokens_in_feature_files(tmp_path):
    from mvhlib.tiles.cut import Tiles
    from mvhlib.tiles.store import write_tiles

    img = np.random.default_rng(9).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    tiles = Tiles(img, np.arange(10).reshape(5, 2), np.zeros(5, np.float32), 64, 100.0, 100 / 64,
                  100 / 64, [f"b{i}" for i in range(5)])
    write_tiles(tmp_path / "tiles" / "a.h5", tiles)
    encoder = encoders.create_encoder("vit12_micro_patch8_64", name="v", seed=1)
    found = cmrcnet.inputs("tokens", encoder, tmp_path, ["a"], grid=2)["a"].features
    x = encoder.eval_transforms.batch(torch.from_numpy(img).permute(0, 3, 1, 2).float() / 255)
    with torch.no_grad():
        tokens = encoder.model.forward_features(x)
    assert found.shape == (5, 5, 96)
    np.testing.assert_allclose(found[:, 0], tokens["cls"], atol=1e-5)
    np.testing.assert_allclose(found[:, 1:].mean(axis=1), tokens["patch_tokens"].mean(dim=1),
                               atol=1e-5)
    pixels = cmrcnet.inputs("tiles", encoder, tmp_path, ["a"])["a"]
    np.testing.assert_array_equal(pixels.features, img)
    coarse = encoders.create_encoder("vit12_micro_patch8_64", name="v", seed=1, mpp=100 / 32)
    assert cmrcnet.inputs("tiles", coarse, tmp_path, ["a"])["a"].features.shape == (5, 32, 32, 3)
    with pytest.raises(InputError, match="kind"):
        cmrcnet.inputs("pixels", encoder, tmp_path, ["a"])


# ---- resume


SCRIPT = """
    import sys
    import torch
    from tests.test_cmrcnet import SHORT, make, make_samples
    from dataclasses import replace
    torch.set_num_threads(1)
    model = make(folder=sys.argv[1], training=replace(SHORT, epochs=15))
    if sys.argv[2] == "slow":
        import time
        from mvhlib import training
        save = training.Checkpoints.save
        def slow(self, state):
            save(self, state); print(state.step, flush=True); time.sleep(0.05)
        training.Checkpoints.save = slow
    model.fit(make_samples(), list("abcdef"), "f", 0)
"""


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path):
    program = textwrap.dedent(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder, speed, **options):
        return subprocess.Popen([sys.executable, "-c", program, str(folder), speed], text=True,
                                env=environment, cwd=os.path.dirname(os.path.dirname(__file__)),
                                **options)

    killed = start(tmp_path / "killed", "slow", stdout=subprocess.PIPE)
    for line in killed.stdout:
        if int(line) >= 4:
            break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "killed").glob("*/fit.json"))
    assert list((tmp_path / "killed").glob("*/state/step_*.pt"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weights = []
        for folder in ("killed", "whole"):
            model = make(folder=tmp_path / folder, training=replace(SHORT, epochs=15))
            model.fit(make_samples(), list("abcdef"), "f", 0)
            weights.append(model.current.network.state_dict())
        # A third time nothing is trained: the finished fold is read.
        again = make(folder=tmp_path / "killed", training=replace(SHORT, epochs=15), k=9)
        again.fit(make_samples(), list("abcdef"), "f", 0)
        weights.append(again.current.network.state_dict())
    finally:
        torch.set_num_threads(threads)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
        assert torch.equal(value, weights[2][name]), name
    assert again.current.fit.log == model.current.fit.log
    assert list(again.log()) == list(model.log())  # the file has the same bytes
    assert not list((tmp_path / "killed").glob("*/state"))
