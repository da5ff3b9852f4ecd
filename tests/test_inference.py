"""Faster embedding against the model as it is; what needs a GPU is tried where one is."""

import pytest
import torch

from mvhlib.backbones import create_model, inference
from mvhlib.backbones.channel import EinFFT

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_tokens", [65, 50])
def test_einfft_in_bfloat16_is_the_layer_to_bfloat16s_rounding(device, n_tokens):
    torch.manual_seed(0)
    layer = EinFFT(32).to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(10)  # at its start the layer gives next to nothing
    x = torch.randn(2, n_tokens, 32, device=device)
    half = inference.HalfEinFFT(layer)
    with torch.no_grad():
        found, expected = half(x), layer(x)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).norm() < 2e-2 * expected.norm()
    assert torch.equal(half(x.requires_grad_()), layer(x))  # a gradient is wanted: as it was


@pytest.mark.parametrize("device", DEVICES)
def test_a_backbone_with_it_embeds_alike_and_the_first_is_untouched(device):
    model = create_model("mvhybrid_micro_patch8_64", seed=0).eval().to(device)
    faster = inference.with_half_einfft(model)
    x = torch.randn(3, 3, 64, 64, device=device)
    with torch.no_grad():
        assert inference.least_cosine(faster(x), model(x)) > 0.999
    assert sum(isinstance(m, inference.HalfEinFFT) for m in faster.modules()) > 0
    assert not any(isinstance(m, inference.HalfEinFFT) for m in model.modules())


def test_the_least_cosine_is_that_of_the_worst_row():
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    second = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert inference.least_cosine(first, second) == pytest.approx(0.5**0.5)


def test_on_a_cpu_there_is_no_graph():
    def function(x):
        return 2 * x

    assert inference.captured(function, torch.ones(2)) is function


@needs_gpu
def test_a_graph_gives_the_same_numbers_for_any_batch():
    model = create_model("mvhybrid_micro_patch8_64", seed=0).eval().cuda()
    x = torch.randn(4, 3, 64, 64, device="cuda")
    run = inference.captured(model, x)
    with torch.no_grad():
        for batch in (x, x + 1, x[:2]):
            torch.testing.assert_close(run(batch), model(batch), rtol=1e-4, atol=1e-5)


@needs_gpu
def test_what_cannot_be_captured_runs_as_it_is():
    def waits(x):
        return x * float(x.sum())  # a decision on the CPU

    x = torch.ones(3, device="cuda")
    assert torch.equal(inference.captured(waits, x)(x), 3 * x)
