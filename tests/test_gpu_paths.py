"""Ways of a GPU that change speed alone, each against the plain one, on a CPU and on a GPU.

What is tested elsewhere: EinFFT in bfloat16 and CUDA graphs in `test_inference.py`; EinFFT in
float32 under autocast and embeddings under autocast in `test_backbones.py`; a whole run in bfloat16
and workers in `test_dino_pretrain.py`; scans in `test_scan.py` and `test_triton_scan.py`.
"""

import functools
import importlib
import warnings

import numpy as np
import pytest
import torch

from mvhlib.backbones import inference, mixers
from mvhlib.dino import losses
from mvhlib.dino import pretrain as loop
from mvhlib.dino.augment import MultiCrop, ViewSettings
from mvhlib.dino.config import Config
from mvhlib.dino.pretrain import Pretraining
from mvhlib.tiles import store
from tests.test_gpu_kit import tissue

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


@pytest.fixture
def config(tmp_path):
    store.write_tiles(tmp_path / "tiles" / "a.h5", tissue(12, 32))
    return Config(tiles=str(tmp_path / "tiles"), folder=str(tmp_path / "run"), device="cpu",
                  backbone="mvhybrid_micro_patch8_64",
                  backbone_options={"depth": 2, "embed_dim": 24, "img_size": 32}, batch=4,
                  global_px=32, local_px=16, n_local=2, prototypes=32, head_hidden=16,
                  head_bottleneck=8, koleo_group=4, progress=False, steps=3)


def take_steps(config, n=2):
    """Losses and weights after some steps."""
    run = Pretraining(config)
    run.order = run._order()
    found = [run.step(images, step)["loss"]
             for (step, images), _ in zip(run._batches(), range(n), strict=False)]
    return found + [p.detach().cpu() for p in run.student.parameters()]


# ---- float32 under autocast ----


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("make", "operation", "wide"), [
    (mixers.MambaVisionMixer, "selective_scan", ("A", "D", "delta_bias")),
    (mixers.BidirectionalMamba, "selective_scan", ("A", "D", "delta_bias")),
    (mixers.HydraMixer, "ssd", ("x", "dt", "A", "B", "C"))])
def test_poles_steps_and_skips_keep_float32_under_autocast(monkeypatch, make, operation, wide,
                                                           device):
    """And the recurrence computes in it: its output is that of the same inputs in float32."""
    torch.manual_seed(0)
    mixer = make(64).to(device)
    names = {"selective_scan": ("u", "delta", "A", "B", "C", "D"),
             "ssd": ("x", "dt", "A", "B", "C")}[operation]
    compute, calls = getattr(mixers, operation), []

    def watch(*given, **more):
        tensors = dict(zip(names, given, strict=False)) | {
            name: value for name, value in more.items() if torch.is_tensor(value)}
        calls.append((tensors, compute(*given, **more)))
        return calls[-1][1]

    monkeypatch.setattr(mixers, operation, watch)
    x = torch.randn(2, 9, 64, device=device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        low = mixer(x)
    assert calls and low.dtype == torch.bfloat16
    for tensors, y in calls:
        assert {name: tensors[name].dtype for name in wide} == dict.fromkeys(wide, torch.float32)
        expected = compute(**{name: t.double() for name, t in tensors.items()},
                           backend="reference")
        rounding = 5e-3 if y.dtype == torch.bfloat16 else 1e-4
        assert (y - expected).norm() < rounding * expected.norm()
    with torch.no_grad():
        exact = mixer(x)
    assert inference.least_cosine(low.flatten(1), exact.flatten(1)) > 0.999


@pytest.mark.parametrize("device", DEVICES)
def test_losses_compute_in_float32_under_autocast(device):
    torch.manual_seed(0)
    cls, student, teacher = (torch.randn(8, 16, device=device, dtype=torch.bfloat16)
                             for _ in range(3))

    def all_of_them(convert):
        target = losses.sinkhorn([convert(teacher)], 0.04)[0]
        return [losses.koleo_loss(convert(cls), 4), target,
                losses.dino_loss([convert(student)], [target], 0.1)]

    with torch.autocast(device, torch.bfloat16):
        low = all_of_them(lambda t: t)
    for found, expected in zip(low, all_of_them(torch.Tensor.float), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# ---- the optimiser, the compiler, graphs ----


@pytest.mark.parametrize("device", DEVICES)
def test_a_fused_optimiser_takes_the_same_steps(device):
    results = []
    for options in ({"foreach": True}, {"fused": True}):
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 3).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2, **options)
        for step in range(5):
            optimizer.zero_grad()
            model(torch.full((2, 7), step + 1.0, device=device)).square().sum().backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_run_is_fused_on_a_gpu_alone(config):
    (group, *_) = Pretraining(config).optimizer.param_groups
    assert group["foreach"] and not group["fused"]


@needs_gpu
def test_a_step_on_a_gpu_is_fused_and_the_cpus(config):
    config = Config(**config.__dict__ | {"device": "cuda"})
    assert Pretraining(config).optimizer.param_groups[0]["fused"]
    on_cpu = take_steps(Config(**config.__dict__ | {"device": "cpu"}))
    for found, expected in zip(take_steps(config), on_cpu, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def attention_alone(config):
    """A scan on a CPU is no matter of PyTorch's compiler, and it takes minutes to find that out."""
    return Config(**config.__dict__ | {"backbone": "vit12_micro_patch8_64"})


@pytest.fixture
def compile_by(monkeypatch):
    """A function of the backend that `torch.compile` is to take; nothing of it is kept."""
    dynamo = importlib.import_module("torch._dynamo")
    monkeypatch.setattr(dynamo.config, "suppress_errors", False)
    dynamo.reset()
    yield lambda backend: monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend=backend))
    dynamo.reset()


@pytest.mark.slow
def test_what_does_not_compile_runs_as_it_is(config, compile_by):
    config, asked = attention_alone(config), []

    def broken(*_):
        asked.append(True)
        raise RuntimeError("no compiler is here")

    compile_by(broken)
    expected = take_steps(config, 1)
    found = take_steps(Config(**config.__dict__ | {"compile": True}), 1)
    assert asked
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_a_compiled_run_takes_the_same_steps(config, compile_by):
    """What PyTorch traces, forth and back; the code that is made of it is the compiler's matter."""
    config, traced = attention_alone(config), []
    whole = importlib.import_module("torch._dynamo").lookup_backend("aot_eager")

    def watch(graph, inputs):
        traced.append(graph)
        return whole(graph, inputs)

    compile_by(watch)
    expected = take_steps(config)
    found = take_steps(Config(**config.__dict__ | {"compile": True}))
    assert traced
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_captured_runs_as_it_is(monkeypatch):
    class OnGpu:
        """A batch that says that it is on a GPU."""

        device = torch.device("cuda")

        def clone(self):
            return self

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)

    def function(x):
        return 2 * x

    assert inference.captured(function, OnGpu()) is function


# ---- batches and views ----


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_hold_the_same_tiles(config, monkeypatch, workers):
    asked = []
    loader = torch.utils.data.DataLoader

    def watch(*given, **more):
        asked.append(more["pin_memory"])
        return loader(*given, **more)

    monkeypatch.setattr(loop.torch.utils.data, "DataLoader", watch)
    plain, pinned = Pretraining(config), Pretraining(
        Config(**config.__dict__ | {"workers": workers}))
    pinned.device = torch.device("cuda")  # where batches would go; nothing else asks here
    for run in (plain, pinned):
        run.order = run._order()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU nothing is pinned, as PyTorch says
        for (_, one), (_, other), _ in zip(plain._batches(), pinned._batches(), range(3),
                                           strict=False):
            assert torch.equal(one[0], other[0])
    assert asked == [False, True]


@pytest.mark.parametrize("device", DEVICES)
def test_views_in_float32_are_those_in_float64_on_any_device(device):
    settings = ViewSettings(global_px=32, local_px=16, n_local=2, rotate=True, stain=0.1)
    images = torch.from_numpy(tissue(6, 48).img)
    given = ((0.7, 0.5, 0.6), (0.2, 0.3, 0.2))
    expected = MultiCrop(settings, *given, torch.float64)(images, 0, 3, np.arange(6))
    found = MultiCrop(settings, *given, torch.float32)(images.to(device), 0, 3, np.arange(6))
    for view, wide in zip(found, expected, strict=True):
        assert view.device.type == device and view.dtype == torch.float32
        torch.testing.assert_close(view.cpu().double(), wide, rtol=0, atol=2e-3)
