"""Every variant that an ablation names can be written in workflow.yaml, and trains."""

import pytest
import torch

from mvhlib.dino.config import read_settings
from mvhlib.dino.pretrain import Pretraining
from tests.test_dino_pretrain import one_thread, textures, tiles, write_section

__all__ = ["one_thread", "textures", "tiles", "write_section"]

SMALL = {"embed_dim": 32, "num_heads": 2, "img_size": 32}
RELEASED, CORRECTED = "mvhybrid_micro_patch8_64", "mvhybrid_micro_patch8_64.corrected"
COMPLEX = {"mixer_options": {"eigenvalues": "complex"}}
VARIANTS = {
    "split 0": {"split": 0}, "split 2": {"split": 2}, "split 4": {"split": 4},
    "split 6": {"split": 6},
    "a quarter of 8": {"depth": 8, "split": 2}, "three quarters of 8": {"depth": 8, "split": 6},
    "attention first": {"order": "attention_first"}, "interleaved": {"order": "interleaved"},
    "complex, hybrid": COMPLEX, "complex, pure": COMPLEX | {"split": 6},
    "two directions": {"mixer_options": {"directions": 2}},
    "one direction of vim": {"mixer": "vim", "mixer_options": {"directions": 1}},
    "no decay of the poles": {"no_decay": "mamba"},
    "einfft over blocks": {"channel_options": {"transform": "block"}},
    "einfft over tokens": {"channel_options": {"transform": "token"}},
} | {f"{mixer} x {channel}": {"mixer": mixer, "channel_mixer": channel}
     for mixer in ("mamba_vision", "vim", "hydra", "attention") for channel in ("einfft", "mlp")}
CASES = [(RELEASED, options) for options in VARIANTS.values()] + [
    (CORRECTED, {}), (CORRECTED, {"no_decay": "dinov2-names"})]


@pytest.mark.parametrize(("backbone", "options"), CASES,
                         ids=[*VARIANTS, "corrected", "corrected, decay of the poles"])
def test_every_variant_trains(backbone, options, tiles, tmp_path):
    """As notebook 03 reads it from ``pretrain: {more: {backbone_options: ...}}``."""
    config = read_settings(None, {
        "backbone": backbone, "tiles": str(tiles), "folder": str(tmp_path), "steps": 1, "batch": 4,
        "more": {"backbone_options": SMALL | options, "n_local": 1, "global_px": 32, "local_px": 16,
                 "koleo_group": 2, "warmup": 0.0, "prototypes": 16, "head_hidden": 16,
                 "head_bottleneck": 8, "progress": False, "device": "cpu"}})
    run = Pretraining(config)
    before = {name: p.detach().clone() for name, p in run.student.backbone.named_parameters()}
    run.order = run._order()
    step, images = next(run._batches())
    assert torch.isfinite(run.step(images, step)["loss"])
    gradients = {name: p.grad for name, p in run.student.backbone.named_parameters()}
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients.values())
    moved = [name for name, p in run.student.backbone.named_parameters()
             if bool((p != before[name]).any())]
    assert set(moved) == {name for name, g in gradients.items() if bool(g.any())}
    assert any(".mixer." in name for name in moved)
    assert {name: run.student.backbone.model_args[name] for name in options} == options
