"""Encoders against NumPy, scikit-image and what they must not depend on."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from mvhlib.artifacts import InputError, sha256_file
from mvhlib.encoders import (
    EvalTransform,
    area_matrix,
    create_encoder,
    encode_folder,
    main,
    reduce_area,
)
from mvhlib.features import read_features
from mvhlib.tiles.cut import Tiles
from mvhlib.tiles.store import write_tiles

VIT, HYBRID = "vit12_micro_patch8_64", "mvhybrid_micro_patch8_64"


def tissue(n=6, px=64, seed=0):
    """Tiles with the colours and the grain of a section, each of its own tint."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px] / px
    images = []
    for _ in range(n):
        grain = rng.normal(0, 12, (px, px, 3)) + 30 * np.sin(
            2 * np.pi * (rng.uniform(1, 6) * x + rng.uniform(1, 6) * y))[..., None]
        images.append(np.clip(rng.normal((185, 120, 170), 25) + grain, 0, 255))
    return np.stack(images).astype(np.uint8)


def handmade(**options):
    return create_encoder("handmade", device="cpu", **options)


def by_name(encoder, values):
    return dict(zip(encoder.feature_names, values.T, strict=True))


# the hand-made baseline


def test_colours_and_stains_against_numpy_and_scikit_image():
    from skimage.color import rgb2hed, rgb_from_hed

    tiles = tissue()
    got = by_name(handmade(), handmade().encode(tiles))
    flat = tiles.reshape(len(tiles), -1, 3) / 255.0
    length = np.linalg.norm(rgb_from_hed, axis=1)
    hed = -np.log10(np.maximum(flat, 1 / 255)) @ np.linalg.inv(rgb_from_hed / length[:, None])
    theirs = rgb2hed(tiles).reshape(flat.shape) * 6 * length  # base 1e6, rows not of unit length
    positive = (theirs > 0) & (flat > 0).all(axis=-1, keepdims=True)  # negative ones they cut
    assert positive.mean() > 0.5
    np.testing.assert_allclose(hed[positive], theirs[positive], atol=1e-9)
    for c, name in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(got[f"mean_{name}"], flat[..., c].mean(1), rtol=1e-5)
        np.testing.assert_allclose(got[f"std_{name}"], flat[..., c].std(1), rtol=1e-4)
        np.testing.assert_allclose(got[f"skew_{name}"], stats.skew(flat[..., c], axis=1),
                                   atol=1e-4)
    for s, name in enumerate(("haematoxylin", "eosin", "residual")):
        np.testing.assert_allclose(got[f"od_mean_{name}"], hed[..., s].mean(1), atol=1e-5)
        np.testing.assert_allclose(got[f"od_std_{name}"], hed[..., s].std(1), atol=1e-5)
        for q in (10, 50, 90) if name != "residual" else ():
            want = np.quantile(hed[..., s], q / 100, axis=1, method="inverted_cdf")
            np.testing.assert_allclose(got[f"od_q{q}_{name}"], want, atol=1e-5)
    correlation = [np.corrcoef(tile[:, 0], tile[:, 1])[0, 1] for tile in hed]
    np.testing.assert_allclose(got["od_correlation"], correlation, atol=1e-4)
    area = (hed[..., 0] > 0.35).mean(1)
    np.testing.assert_allclose(got["nuclear_area"], area, atol=2e-4)


def test_band_energy_is_the_spectrums():
    px, cycles = 128, 6
    wave = 0.2 * np.cos(2 * np.pi * cycles * np.arange(px) / px)
    along = np.broadcast_to(wave[None, :, None], (px, px, 3))
    tiles = np.stack([along, along.transpose(1, 0, 2)])
    encoder = handmade(bands=True)
    with torch.inference_mode():
        x = torch.from_numpy(0.5 + tiles).permute(0, 3, 1, 2).float()
        got = by_name(encoder, encoder(x).numpy())
    # A cosine of amplitude a has energy a^2 / 2; all of it in its band and direction.
    want = np.log10(0.2**2 / 2)
    np.testing.assert_allclose(got["band_middle_along"], [want, -7], atol=0.02)
    np.testing.assert_allclose(got["band_middle_across"], [-7, want], atol=0.02)
    for name in ("slow", "fine"):
        for axis in ("along", "across"):
            assert (got[f"band_{name}_{axis}"] < want - 3).all()


@pytest.mark.parametrize("cycles, band", [(0.5, "slow"), (1, "slow"), (2, "slow"), (4, "middle"),
                                          (8, "middle"), (16, "fine"), (40, "fine")])
def test_every_frequency_shows_in_its_band_whatever_its_phase(cycles, band):
    px = 112
    for phase in np.linspace(0, np.pi, 5):
        wave = 0.2 * np.sin(2 * np.pi * cycles * (np.arange(px) + 0.5) / px + phase)
        tile = np.broadcast_to(wave[None, None, None, :], (1, 3, px, px))
        encoder = handmade(bands=True)
        with torch.inference_mode():
            got = by_name(encoder, encoder(torch.from_numpy(0.5 + tile).float()).numpy())
        energy = {name: got[f"band_{name}_along"][0] for name in ("slow", "middle", "fine")}
        assert max(energy, key=energy.get) == band
        assert energy[band] > got[f"band_{band}_across"][0] + 1


def test_bands_are_cut_at_nyquist_and_stay_finite():
    values = handmade(bands=True).encode(tissue(px=16))
    assert np.isfinite(values).all()


def test_turning_a_tile_swaps_the_directions_and_nothing_else():
    encoder, tiles = handmade(bands=True), tissue(px=96)
    got = by_name(encoder, encoder.encode(tiles))
    turned = by_name(encoder, encoder.encode(np.rot90(tiles, axes=(1, 2)).copy()))
    swap = {"along": "across", "across": "along"}
    for name in encoder.feature_names:
        stem, _, end = name.rpartition("_")
        partner = f"{stem}_{swap[end]}" if end in swap else name
        np.testing.assert_allclose(turned[name], got[partner], rtol=2e-3, atol=2e-5, err_msg=name)


def test_shuffled_pixels_change_texture_and_no_colour():
    encoder, tiles = handmade(), tissue()
    order = np.random.default_rng(0).permutation(64 * 64)
    shuffled = tiles.reshape(len(tiles), -1, 3)[:, order].reshape(tiles.shape)
    one, two = by_name(encoder, encoder.encode(tiles)), by_name(encoder, encoder.encode(shuffled))
    texture = [n for n in encoder.feature_names if n.startswith(("gradient", "coher", "pattern"))]
    for name in encoder.feature_names:
        if name not in texture:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert all(np.abs(one[name] - two[name]).max() > 1e-3 for name in texture)


def test_patterns_know_pits_and_peaks():
    encoder = handmade()
    tile = np.full((1, 65, 65, 3), 120, np.uint8)
    tile[:, ::4, ::4] = 40  # dark dots on even ground, none within reach of another
    got = by_name(encoder, encoder.encode(tile))
    dots = 15 * 15 / 61**2  # border of two pixels has no ring
    assert got["pattern_pit"][0] == pytest.approx(dots, rel=1e-4)
    assert got["pattern_peak"][0] == 0


def test_an_even_tile_gives_zeros_and_no_nan():
    encoder = handmade(bands=True)
    for value in (0, 128, 255):
        got = by_name(encoder, encoder.encode(np.full((1, 32, 32, 3), value, np.uint8)))
        assert all(np.isfinite(v).all() for v in got.values())
        for name in encoder.feature_names:
            if name.startswith(("std", "skew", "gradient", "coherence", "pattern", "od_std")):
                assert abs(got[name][0]) < 1e-4, name


def test_names_are_unique_and_bands_come_last():
    plain, bands = handmade(), handmade(bands=True)
    assert bands.feature_names[:plain.embedding_dim] == plain.feature_names
    assert bands.embedding_dim == plain.embedding_dim + 6 == len(set(bands.feature_names))
    assert plain.identity != bands.identity and plain.enc_name != bands.enc_name


# what every encoder keeps to


@pytest.mark.parametrize("source", ["handmade", VIT, HYBRID])
def test_rows_follow_the_tiles_whatever_the_batch(source):
    encoder, tiles = create_encoder(source, device="cpu"), tissue(7)
    whole = encoder.encode(tiles)
    assert whole.shape == (7, encoder.embedding_dim) and whole.dtype == np.float32
    scale = np.abs(whole).max()
    for size in (1, 3):
        np.testing.assert_allclose(encoder.encode(tiles, batch_size=size), whole,
                                   atol=1e-5 * scale)
    order = [4, 0, 6]
    np.testing.assert_allclose(encoder.encode(tiles[order]), whole[order], atol=1e-5 * scale)
    assert encoder.encode(tiles[:0]).shape == (0, encoder.embedding_dim)


@pytest.mark.parametrize("source", ["handmade", VIT])
def test_the_loop_of_tridents_and_hests_gives_the_same(source):
    encoder, tiles = create_encoder(source, device="cpu"), tissue(4, px=96)
    assert encoder.precision in (torch.float32, torch.bfloat16)
    batch = torch.stack([encoder.eval_transforms(Image.fromarray(tile)) for tile in tiles])
    assert batch.dtype == torch.float32 and batch.shape[:2] == (4, 3)
    with torch.inference_mode():
        np.testing.assert_allclose(encoder(batch).numpy(), encoder.encode(tiles), atol=1e-5)


def test_normalised_with_the_statistics_of_tissue():
    x = create_encoder(VIT, device="cpu").eval_transforms(np.full((64, 64, 3), 128, np.uint8))
    mean = np.array([0.70322989, 0.53606487, 0.66096631])
    std = np.array([0.21716536, 0.26081574, 0.20723464])
    np.testing.assert_allclose(x[:, 30, 30], (128 / 255 - mean) / std, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(12, 4), (10, 4), (97, 31), (224, 48)])
def test_area_average_is_exact_for_any_ratio(sizes):
    size, out = sizes
    image = np.random.default_rng(0).random((size, size))
    # In steps of 1 / out of a pixel every edge falls on a step: repeat, then average blocks.
    rows = image.repeat(out, axis=0).reshape(out, size, size).mean(axis=1)
    want = rows.repeat(out, axis=1).reshape(out, out, size).mean(axis=2)
    x = torch.from_numpy(image).float().expand(1, 3, size, size)
    np.testing.assert_allclose(reduce_area(x, out)[0, 1], want, atol=1e-6)
    np.testing.assert_allclose(area_matrix(size, out).sum(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize("source", ["handmade", VIT])
def test_sections_of_unlike_resolution_meet_at_the_working_one(source):
    coarse = tissue(4, px=32)
    fine = coarse.repeat(3, axis=1).repeat(3, axis=2)
    encoder = create_encoder(source, device="cpu", mpp=3.0)
    np.testing.assert_allclose(encoder.encode(fine, tile_mpp=1.0),
                               encoder.encode(coarse, tile_mpp=3.0), atol=2e-4)
    plain = create_encoder(source, device="cpu")
    assert np.abs(plain.encode(fine) - plain.encode(coarse)).max() > 1e-2
    with pytest.raises(InputError, match="tile_mpp"):
        encoder.encode(coarse)
    with pytest.raises(InputError, match="coarser"):
        encoder.encode(coarse, tile_mpp=4.0)
    with pytest.raises(InputError, match="leaves"):
        encoder.encode(coarse[:, :8, :8].repeat(2, axis=1).repeat(2, axis=2), tile_mpp=0.5)


def test_bad_tiles_are_refused():
    with pytest.raises(InputError, match="float32"):
        handmade().encode(tissue().astype(np.float32))
    with pytest.raises(InputError, match="shape"):
        handmade().encode(tissue()[0])
    with pytest.raises(InputError, match="cut them at 16 px"):
        handmade().encode(tissue(px=12))
    with pytest.raises(InputError, match="cut them at 8 px"):
        create_encoder(VIT, device="cpu").encode(tissue(px=7))


# where encoders come from


def test_random_weights_are_the_seeds():
    one, again, other = (create_encoder(VIT, device="cpu", seed=s) for s in (0, 0, 1))
    assert one.is_random and one.pretrained_on == {}
    np.testing.assert_array_equal(one.encode(tissue()), again.encode(tissue()))
    assert one.identity == again.identity != other.identity
    assert np.abs(one.encode(tissue()) - other.encode(tissue())).max() > 1e-3
    assert create_encoder(f"backbone:{VIT}", device="cpu").identity == one.identity
    assert create_encoder(VIT, device="cpu", preset="corrected").enc_name == f"{VIT}.corrected"


def test_a_saved_model_gives_bit_equal_features(tmp_path):
    from mvhlib.backbones import create_model

    model, folder = create_model(HYBRID, seed=3), tmp_path / "mine"
    model.save_pretrained(folder, pretrained_on={"sections": ["S1"], "patients": ["P"],
                                                 "studies": []})
    saved = create_encoder(folder, device="cpu")
    fresh = create_encoder(HYBRID, device="cpu", seed=3)
    np.testing.assert_array_equal(saved.encode(tissue()), fresh.encode(tissue()))
    assert saved.enc_name == "mine" and not saved.is_random
    assert saved.pretrained_on["sections"] == ["S1"] and fresh.pretrained_on == {}
    by_option = create_encoder(HYBRID, device="cpu", weights=str(folder))
    assert by_option.enc_name == HYBRID and by_option.identity == saved.identity
    both = create_encoder(folder, device="cpu", pool="cls+mean")
    assert both.embedding_dim == 2 * saved.embedding_dim and both.identity != saved.identity
    assert both.encode(tissue()).shape == (6, both.embedding_dim)
    with pytest.raises(InputError, match="architecture"):
        create_encoder(VIT, device="cpu", weights=str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="model.safetensors"):
        create_encoder(folder, device="cpu")


def test_saved_weights_are_named_with_their_preset_or_without(tmp_path):
    from mvhlib.backbones import create_model

    create_model(f"{HYBRID}.corrected", seed=3).save_pretrained(tmp_path)
    found = {name: create_encoder(name, device="cpu", weights=str(tmp_path)).identity
             for name in (HYBRID, f"{HYBRID}.corrected")}
    assert len({str(identity) for identity in found.values()}) == 1
    with pytest.raises(InputError, match=rf"'{HYBRID}.corrected', not '{HYBRID}.released'"):
        create_encoder(f"{HYBRID}.released", device="cpu", weights=str(tmp_path))


def test_unknown_names_are_met_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="did you mean handmade"):
        create_encoder("hand_made")
    with pytest.raises(InputError, match="did you mean mvhybrid_micro_patch8_64"):
        create_encoder("mvhybrid_micro_patch16_64")
    with pytest.raises(InputError, match="did you mean bands"):
        create_encoder("handmade", band=True)
    with pytest.raises(InputError, match="depht"):
        create_encoder(VIT, depht=3)
    with pytest.raises(InputError, match="config.json"):
        create_encoder(tmp_path)
    for mpp in (0, -1, "0,5", float("nan"), True):
        with pytest.raises(InputError, match="create_encoder: mpp: is "):
            create_encoder("handmade", mpp=mpp)
    for seed in (-1, "a", 1.5):
        with pytest.raises(InputError, match="create_encoder: seed: is "):
            create_encoder(VIT, seed=seed)
    for config in ("[1]", "{", '{"pretrained_on": 5}', '{"pretrained_on": {"sections": "A1"}}'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(InputError, match="config.json: (content|pretrained_on): is"):
            create_encoder(tmp_path)
    with pytest.raises(InputError, match="precision"):
        create_encoder(VIT, precision="int8")
    with pytest.raises(InputError, match="multiple of the patch"):
        create_encoder(VIT, input_px=60)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device"):
            create_encoder("handmade", device="cuda")


def test_timm_missing_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for source in ("timm:vit_small_patch16_224", "hf-hub:org/model"):
        with pytest.raises(InputError, match="pip install timm"):
            create_encoder(source)


def test_timm_models_bring_their_own_transform(monkeypatch):
    asked = {}

    class Model(torch.nn.Module):
        num_features = 3
        pretrained_cfg = {"input_size": (3, 40, 40), "mean": (0.5,) * 3, "std": (0.25,) * 3,
                          "interpolation": "bicubic"}

        def forward(self, x):
            assert x.shape[-2:] == (40, 40)
            return x.mean(dim=(2, 3))

    def create_model(name, **options):
        asked.update(options, name=name)
        return Model()

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    encoder = create_encoder("hf-hub:Org/Model", device="cpu", img_size=40)
    assert asked == {"name": "hf-hub:Org/Model", "pretrained": True, "num_classes": 0,
                     "img_size": 40}
    assert encoder.enc_name == "org-model" and not encoder.is_random
    got = encoder.encode(np.full((2, 80, 80, 3), 255, np.uint8))
    np.testing.assert_allclose(got, 2.0, atol=1e-6)
    create_encoder("timm:vit_tiny", weights="random", device="cpu")
    assert asked["name"] == "vit_tiny" and asked["pretrained"] is False


def test_reprs_say_what_matters():
    text = repr(create_encoder(VIT, device="cpu", mpp=1.5))
    for part in (VIT, "64 px", "1.5 µm/px", "96 features", "random weights"):
        assert part in text
    assert "37 features" in repr(handmade())


def test_transform_resizes_with_antialiasing():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255  # at the Nyquist limit of the source, beyond that of the input
    small = EvalTransform(40)(stripes)
    assert small.shape == (3, 40, 40)
    assert (small[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("source", [VIT, HYBRID])
def test_half_precision_on_a_gpu_keeps_the_direction(source):
    tiles = tissue(16)
    full = create_encoder(source, device="cpu").encode(tiles)
    half = create_encoder(source, device="cuda").encode(tiles)
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.999


# folders and the command


@pytest.fixture
def folder(tmp_path):
    for section, seed in (("A1", 0), ("B1", 1)):
        put(tmp_path / "tiles", section, tissue(5, seed=seed))
    return tmp_path


def put(directory, section, img):
    coords = np.arange(2 * len(img)).reshape(-1, 2) * 100
    tiles = Tiles(img, coords, np.zeros(len(img), np.float32), img.shape[1], 64.0,
                  64.0 / img.shape[1], 0.5)
    write_tiles(directory / f"{section}.h5", tiles, [f"{section}_{i}" for i in range(len(img))])


def test_a_folder_is_encoded_and_finished_sections_are_skipped(folder):
    tiles, out, lines = folder / "tiles", folder / "features", []
    rows = encode_folder(handmade(), tiles, out, report=lines.append)
    assert [(r["section"], r["n_tiles"], r["width"], r["skipped"]) for r in rows] == [
        ("A1", 5, 37, False), ("B1", 5, 37, False)] and len(lines) == 2
    feats = read_features(out / "A1.h5")
    np.testing.assert_array_equal(feats.features, handmade().encode(tissue(5)))
    assert feats.barcodes == [f"A1_{i}" for i in range(5)]
    assert feats.attrs == {"encoder": "handmade", "width": 37, "tile_px": 64, "tile_um": 64.0,
                           "mpp": 1.0, "source_mpp": 0.5,
                           "source_sha256": sha256_file(tiles / "A1.h5")}
    before = {p.name: (p.stat().st_mtime_ns, sha256_file(p)) for p in out.iterdir()}
    assert [r["skipped"] for r in encode_folder(handmade(), tiles, out)] == [True, True]
    assert {p.name: (p.stat().st_mtime_ns, sha256_file(p)) for p in out.iterdir()} == before

    def skipped(encoder=None, **options):
        return [r["skipped"] for r in encode_folder(encoder or handmade(), tiles, out, **options)]

    put(tiles, "B1", tissue(5, seed=2))  # other tiles
    assert skipped() == [True, False]
    (out / "A1.h5").write_bytes((out / "A1.h5").read_bytes()[:1000])  # a broken file
    assert skipped() == [False, True]
    assert skipped(handmade(mpp=2.0), sections=["A1"]) == [False]  # another encoder
    assert skipped() == [False, True]
    assert skipped(layout="trident") == [False, False]  # another layout
    assert read_features(out / "B1.h5").attrs["tile_um"] == pytest.approx(64)
    (out / "A1.h5").unlink()
    assert skipped(layout="trident") == [False, True]
    assert sha256_file(out / "A1.h5") != before["A1.h5"][1]
    encode_folder(handmade(), tiles, out)
    assert sha256_file(out / "A1.h5") == before["A1.h5"][1]  # byte-equal when made again


def test_a_broken_section_stops_with_its_name_and_the_others_stay(folder):
    broken = folder / "tiles" / "B1.h5"
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(InputError, match="B1.h5.*truncated"):
        encode_folder(handmade(), folder / "tiles", folder / "out")
    assert [p.name for p in (folder / "out").iterdir()] == ["A1.h5"]
    with pytest.raises(InputError, match="Z9"):
        encode_folder(handmade(), folder / "tiles", folder / "out", sections=["Z9"])
    with pytest.raises(InputError, match="A1.h5: mpp: .*0.5 µm/px.*coarser"):
        encode_folder(handmade(mpp=0.25), folder / "tiles", folder / "out", sections=["A1"])
    with h5py.File(broken, "w") as stream:
        stream["img"] = np.zeros((2, 20, 20, 3), np.float32)
        stream["coords"] = np.zeros((2, 2))
    with pytest.raises(InputError, match="B1.h5.*float32"):
        encode_folder(handmade(), folder / "tiles", folder / "out")


def test_command_and_its_options(folder, capsys):
    tiles, out = str(folder / "tiles"), str(folder / "out")
    given = ["--encoder", "handmade", "--tiles", tiles, "--out", out, "--device", "cpu",
             "--option", "bands=true", "--name", "floor", "--sections", "A1"]
    assert main(given) == 0 and main(given) == 0
    said = capsys.readouterr().out
    assert "43 features" in said and "done already" in said and "0 of them encoded now" in said
    assert read_features(folder / "out" / "A1.h5").attrs["encoder"] == "floor"
    assert main(["--encoder", "nothing", "--tiles", tiles, "--out", out]) == 2
    assert capsys.readouterr().err.startswith("error: create_encoder: source")


BARE = """
import json, runpy, sys
ABSENT = set(json.loads(sys.argv.pop(1)))
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
runpy.run_module("mvhlib.encoders", run_name="__main__", alter_sys=True)
"""


def test_command_runs_on_a_bare_machine(folder):
    """With torch, numpy, h5py and safetensors alone, found by PYTHONPATH."""
    absent = ["PIL", "anndata", "pandas", "scanpy", "scipy", "skimage", "sklearn", "matplotlib",
              "tqdm", "timm", "torchvision", "papermill", "mamba_ssm", "openslide", "triton"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", BARE, json.dumps(absent), "--encoder", HYBRID, "--tiles",
         str(folder / "tiles"), "--out", str(folder / "out"), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(root)}, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 sections" in done.stdout
    want = create_encoder(HYBRID, device="cpu").encode(tissue(5))
    np.testing.assert_allclose(read_features(folder / "out" / "A1.h5").features, want, atol=1e-4)
