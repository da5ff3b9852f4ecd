"""The fused token of MMAP as an encoder: it equals what MMAP computes, and comes back from disk."""

import numpy as np
import pytest
import torch

from mvhlib import encoders
from mvhlib.artifacts import InputError
from mvhlib.encoders import create_encoder
from mvhlib.expression import fused, mmap
from mvhlib.expression.protocols import Sample
from mvhlib.training import FitConfig

NAME = "vit12_micro_patch8_64"
GENES = ["a", "b"]
SMALL = {"heads": 2, "head_width": 8, "stage1": FitConfig(epochs=1, batch=8, lr=1e-2)}


def tiles(seed, n=8, side=32):
    return np.random.default_rng(seed).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8)


def samples(read):
    return [Sample(f"s{number}", f"st{number}", f"p{number}", read(tiles(number)),
                   np.random.default_rng(number).normal(size=(8, 2)).astype(np.float32), None)
            for number in range(2)]


@pytest.fixture
def base():
    return create_encoder(NAME, device="cpu", seed=1)


def test_on_frozen_tokens_it_is_what_stage_one_fuses(tmp_path, base):
    def read(x):
        return mmap.view_tokens(base, x, grid=2)

    model = mmap.MMAP(**SMALL, zooms=(1, 4), prototypes="none")
    model.fit(samples(read), GENES, "x", 0)
    place = fused.save(model, tmp_path / "mmap-base", base, grid=2)
    again = create_encoder(NAME, weights=str(place), name="mine", device="cpu")
    new = tiles(9)
    want = model.fused(read(new))
    np.testing.assert_allclose(again.encode(new), want, rtol=1e-4, atol=1e-5)
    assert np.abs(want - base.encode(new)).max() > 0.1
    assert again.enc_name == "mine" and "fused token of MMAP" in repr(again)
    assert again.pretrained_on == {"sections": ["s0", "s1"], "patients": ["p0", "p1"],
                                   "studies": ["st0", "st1"]}
    assert again.identity == create_encoder(place, device="cpu", name="mine").identity
    with torch.no_grad():
        again.model.spots.fusion.to_q.weight.add_(1)
    assert again.identity != create_encoder(place, device="cpu", name="mine").identity


def test_an_adapted_encoder_brings_its_updates(tmp_path, base):
    model = mmap.MMAP(base, **SMALL, prototypes=4, rank=2, alpha=4)
    model.fit(samples(lambda x: x), GENES, "x", 0)
    again = create_encoder(fused.save(model, tmp_path, base), device="cpu")
    new = tiles(9)
    np.testing.assert_allclose(again.encode(new), model.fused(new), rtol=1e-4, atol=1e-5)
    plain = encoders.create_encoder(tmp_path / "backbone", device="cpu")
    np.testing.assert_array_equal(plain.encode(new), base.encode(new))


def test_what_the_encoder_saw_before_is_listed_or_unknown(tmp_path, base):
    model = mmap.MMAP(base, **SMALL, prototypes="none", rank=2, alpha=4)
    model.fit(samples(lambda x: x), GENES, "x", 0)
    base.is_random = False
    for before, want in (({"studies": ["st0", "U"]}, ["U", "st0", "st1"]), (None, None)):
        base.config = {"pretrained_on": before}
        again = create_encoder(fused.save(model, tmp_path, base), device="cpu").pretrained_on
        assert (again and again["studies"]) == want


def test_what_cannot_be_written_or_read_is_refused(tmp_path, base):
    with pytest.raises(InputError, match="is not fitted"):
        fused.save(mmap.MMAP(), tmp_path, base)
    one = mmap.stnet(base, **SMALL, rank=2, alpha=4)
    one.fit(samples(lambda x: x), GENES, "x", 0)
    with pytest.raises(InputError, match="nothing is fused"):
        fused.save(one, tmp_path, base)
    model = mmap.MMAP(base, **SMALL, prototypes="none", rank=2, alpha=4)
    model.fit(samples(lambda x: x), GENES, "x", 0)
    with pytest.raises(InputError, match="no backbone of mvhlib"):
        fused.save(model, tmp_path, create_encoder("handmade", device="cpu"))
    place = fused.save(model, tmp_path / "whole", base)
    with pytest.raises(InputError, match="colour: is not an option"):
        create_encoder(place, colour=1)
    (place / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="model.safetensors: sha256"):
        create_encoder(place)
