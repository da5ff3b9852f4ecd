"""The recurrences against float64 loops, closed forms and each other."""

import os
import subprocess
import sys

import pytest
import torch

from mvhlib.artifacts import InputError
from mvhlib.backbones import native_scan, scan, torch_scan

LENGTHS = (1, 2, 50, 64, 257)
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
needs_compiler = pytest.mark.skipif(
    "native" not in scan.available_backends(), reason="needs a C compiler")
FAST = ["torch", pytest.param("native", marks=needs_compiler)]


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    monkeypatch.delenv(scan.ENVIRONMENT, raising=False)


def scan_inputs(batch, channels, length, states, *, seed=0, large_steps=False):
    """Float64 inputs and a gradient for the output; small steps have a long memory."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = [
        normal(batch, channels, length), normal(batch, channels, length),
        -torch.exp(normal(channels, states)), normal(batch, states, length),
        normal(batch, states, length), normal(channels), normal(channels) - 3,
    ]
    if large_steps:
        tensors[1] = 3 * tensors[1]
        tensors[1][:, :, length // 2] = 12.0 - tensors[6].min()
    return tensors, normal(batch, channels, length)


def turning_inputs(batch, channels, length, states, *, imaginary=(2, 3, 4), seed=0, **options):
    """The same with imaginary parts for `imaginary`, positions of A, B and C, and rounded to single
    precision: what remains between two computations is theirs."""
    tensors, upstream = scan_inputs(batch, channels, length, states, seed=seed, **options)
    turned, _ = scan_inputs(batch, channels, length, states, seed=seed + 1)
    for i in imaginary:
        tensors[i] = torch.complex(tensors[i], 3 * turned[i] if i == 2 else turned[i])
    return [widened(t) for t in singles(tensors)], upstream.float().double()


def singles(tensors):
    return [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in tensors]


def widened(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def ssd_inputs(batch, length, heads, width, states, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = [
        normal(batch, length, heads, width),
        torch.nn.functional.softplus(normal(batch, length, heads) - 1),
        -torch.exp(normal(heads)), normal(batch, length, states), normal(batch, length, states),
    ]
    return tensors, normal(batch, length, heads, width)


def with_gradients(function, tensors, upstream, dtype=None, **options):
    """Output and the gradient of every input."""
    leaves = [(t if dtype is None else t.to(dtype)).detach().clone().requires_grad_()
              for t in tensors]
    output = function(*leaves, **options)
    output.backward(upstream.to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(found, expected, tolerance, names):
    for name, a, b in zip(names, found, expected, strict=True):
        error = (a.to(b.dtype) - b).norm()
        assert error <= tolerance * b.norm() + 1e-30, f"{name}: {error / b.norm():.2e}"


# ---- the selective scan ----


def test_reference_is_a_convolution_where_the_step_is_constant():
    channels, states, length, step = 3, 4, 30, 0.3
    (u, _, A, B, C, D, _), _ = scan_inputs(2, channels, length, states)
    B, C = (t[:, :, :1].expand(-1, -1, length) for t in (B, C))
    y = scan.selective_scan(u, torch.full_like(u, step), A, B, C, D, delta_softplus=False,
                            backend="reference")
    lags = torch.arange(length, dtype=torch.float64)
    kernel = torch.einsum("bn,dnk->bdk", step * B[:, :, 0] * C[:, :, 0],
                          torch.exp(step * A[..., None] * lags))
    expected = torch.stack([
        (kernel[:, :, : t + 1].flip(-1) * u[:, :, : t + 1]).sum(-1) for t in range(length)
    ], dim=-1)
    torch.testing.assert_close(y, expected + D[:, None] * u, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("large_steps", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_scan_matches_the_float64_loop(length, large_steps, backend):
    # 37 channels and 5 states leave a rest in every blocking.
    tensors, upstream = scan_inputs(2, 37, length, 5, large_steps=large_steps)
    expected = with_gradients(scan.selective_scan, tensors, upstream, backend="reference")
    found = with_gradients(scan.selective_scan, tensors, upstream, torch.float32, backend=backend)
    assert_close(found, expected, 3e-6, ("y", *NAMES))


def assert_as_if_plain(odd, plain, backend, tolerance):
    """Tensors of odd layouts give the values and gradients of plain ones, from a summed output."""
    leaves = [t.detach().requires_grad_() for t in odd]
    y = scan.selective_scan(*leaves, backend=backend)
    y.sum().backward()
    found = [y.detach(), *(leaf.grad for leaf in leaves)]
    expected = with_gradients(scan.selective_scan, plain, torch.ones(3, 32, 70),
                              backend="reference")
    assert_close(found, expected, tolerance, ("y", *NAMES))


@pytest.mark.parametrize("backend", FAST)
def test_scan_takes_any_memory_layout(backend):
    """Channels-last input, sliced and expanded tensors, an upstream gradient without memory."""
    (u, delta, A, B, C, D, bias), _ = scan_inputs(3, 32, 70, 4, seed=1)
    plain = [u, delta, A, B[:1].expand(3, -1, -1).contiguous(), C, D, bias]
    odd = [t.float() for t in plain]
    odd[0] = torch.cat([odd[0], odd[0]], dim=1).mT.contiguous().mT[:, 32:]
    odd[1] = odd[1].mT.contiguous().mT
    odd[2] = odd[2].t().contiguous().t()
    odd[3] = B[:1].float().expand(3, -1, -1)
    odd[4] = torch.stack([odd[4], odd[4]], dim=-1)[..., 0]
    assert_as_if_plain(odd, plain, backend, 3e-6)


@pytest.mark.parametrize("backend", FAST)
def test_optional_inputs_and_a_step_without_softplus(backend):
    (u, delta, A, B, C, _, _), upstream = scan_inputs(2, 16, 20, 3, seed=2)
    tensors = [u, delta.abs(), A, B, C]
    expected, found = (
        with_gradients(scan.selective_scan, tensors, upstream, dtype, delta_softplus=False,
                       backend=name)
        for dtype, name in ((None, "reference"), (torch.float32, backend)))
    assert_close(found, expected, 3e-6, ("y", *NAMES[:5]))


@pytest.mark.parametrize("backend", FAST)
def test_a_growing_state_is_not_clipped(backend):
    tensors, upstream = scan_inputs(1, 16, 40, 3, seed=3)
    tensors[2] = tensors[2].abs()
    expected = with_gradients(scan.selective_scan, tensors, upstream, backend="reference")
    found = with_gradients(scan.selective_scan, tensors, upstream, torch.float32, backend=backend)
    assert_close(found, expected, 1e-5, ("y", *NAMES))


@pytest.mark.parametrize("backend", FAST)
def test_nan_passes_through_and_never_back_in_time(backend):
    tensors, _ = scan_inputs(1, 16, 40, 4)
    tensors = [t.float() for t in tensors]
    tensors[1][0, 3, 20] = torch.nan
    y = scan.selective_scan(*tensors, backend=backend)
    assert y[0, 3, 20:].isnan().all()
    assert y[0, 3, :20].isfinite().all() and y[0, :3].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_only_wanted_gradients_and_none_without_grad(backend):
    tensors, upstream = scan_inputs(2, 16, 20, 4)
    tensors = [t.float() for t in tensors]
    full = with_gradients(scan.selective_scan, tensors, upstream, backend=backend)
    for wanted in range(len(tensors)):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        scan.selective_scan(*leaves, backend=backend).backward(upstream.float())
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (i != wanted)
        assert torch.equal(leaves[wanted].grad, full[wanted + 1])
    with torch.no_grad():
        y = scan.selective_scan(*(t.requires_grad_() for t in tensors), backend=backend)
    assert not y.requires_grad
    assert torch.equal(y, full[0])


@pytest.mark.parametrize("backend", FAST)
def test_half_precision_in_and_out_but_not_inside(backend):
    tensors, upstream = scan_inputs(2, 16, 100, 4)
    low = [t.to(torch.bfloat16) for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(scan.selective_scan, low, upstream, backend=backend)
    assert {t.dtype for t in found} == {torch.bfloat16}
    expected = with_gradients(scan.selective_scan, [t.double() for t in low],
                              upstream.to(torch.bfloat16), backend="reference")
    # one rounding to bfloat16 at the end: 2**-9, and no error that grows along the sequence
    assert_close(found, expected, 4e-3, ("y", *NAMES))


def test_torch_scan_passes_gradcheck():
    tensors, _ = scan_inputs(1, 2, torch_scan.CHECKPOINT + 3, 2)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(
        lambda *t: scan.selective_scan(*t, backend="torch"), leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("length", LENGTHS)
def test_complex_scan_matches_the_loop(length):
    tensors, upstream = turning_inputs(2, 6, length, 3, seed=4)
    expected = with_gradients(scan.selective_scan, tensors, upstream, backend="reference")
    found = with_gradients(scan.selective_scan, tensors, upstream, backend="torch")
    assert_close(found, expected, 1e-12, ("y", *NAMES))
    found = with_gradients(scan.selective_scan, singles(tensors), upstream)
    assert_close(found, expected, 1e-5, ("y", *NAMES))


#: What is complex: poles alone, everything, and whatever else may be mixed.
MIXTURES = ((2,), (2, 3, 4), (2, 3), (2, 4), (3,), (4,), (3, 4))


@needs_compiler
@pytest.mark.parametrize("large_steps", [False, True])
@pytest.mark.parametrize(("channels", "states"), [(37, 5), (16, 1), (48, 16)])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("imaginary", MIXTURES[:2])
def test_native_complex_scan_matches_the_float64_loop(imaginary, length, channels, states,
                                                      large_steps):
    tensors, upstream = turning_inputs(2, channels, length, states, imaginary=imaginary,
                                       large_steps=large_steps)
    expected = with_gradients(scan.selective_scan, tensors, upstream, backend="torch")
    found, plain = (
        with_gradients(scan.selective_scan, singles(tensors), upstream, backend=backend)
        for backend in ("native", "torch"))
    # The rounding of a step turns a state by its frequency as much; where gradients cancel, what
    # single precision has lost in any order counts.
    for name, *tensors in zip(("y", *NAMES), found, expected, plain, strict=True):
        lost = (tensors[2] - tensors[1]).norm() / tensors[1].norm().clamp(min=1e-30)
        assert_close(*([t] for t in tensors[:2]), 1e-5 + 4 * lost, [name])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("imaginary", MIXTURES)
def test_complex_scan_gives_gradients_in_the_kind_of_each_input(imaginary, backend):
    tensors, upstream = turning_inputs(2, 20, 70, 3, imaginary=imaginary, seed=2)
    expected = with_gradients(scan.selective_scan, tensors, upstream, backend="reference")
    found = with_gradients(scan.selective_scan, singles(tensors), upstream, backend=backend)
    assert [t.is_complex() for t in found[1:]] == [i in imaginary for i in range(7)]
    assert_close(found, expected, 1e-5, ("y", *NAMES))


@pytest.mark.parametrize("backend", FAST)
def test_complex_scan_takes_any_memory_layout(backend):
    """Slices, transposed and expanded tensors; conjugates and signs that are not in memory yet."""
    (u, delta, A, B, C, D, bias), _ = turning_inputs(3, 32, 70, 4, seed=1)
    plain = [u, delta, A, B[:1].expand(3, -1, -1).contiguous(), C, D, bias]
    odd = singles(plain)
    odd[0] = torch.complex(torch.zeros(3, 32, 70), -odd[0]).conj().imag
    odd[1] = odd[1].mT.contiguous().mT
    odd[2] = odd[2].t().contiguous().t()
    odd[3] = odd[3][:1].expand(3, -1, -1)
    odd[4] = torch.stack([odd[4], odd[4]], dim=-1)[..., 0].conj().resolve_conj().conj()
    assert odd[0].is_neg() and odd[4].is_conj()
    assert_as_if_plain(odd, plain, backend, 1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("imaginary", MIXTURES[:2])
def test_complex_scan_without_skip_bias_and_softplus(imaginary, backend):
    (u, delta, A, B, C, _, _), upstream = turning_inputs(2, 16, 20, 3, imaginary=imaginary)
    tensors = [u, delta.abs(), A, B, C]
    expected, found = (
        with_gradients(scan.selective_scan, given, upstream, delta_softplus=False, backend=name)
        for given, name in ((tensors, "reference"), (singles(tensors), backend)))
    assert_close(found, expected, 1e-5, ("y", *NAMES[:5]))


@pytest.mark.parametrize("backend", FAST)
def test_complex_scan_turns_as_often_as_asked(backend):
    """One pulse, decayed and turned by up to ten thousand radians, against the exponential."""
    generator = torch.Generator().manual_seed(0)
    channels, states = 64, 8
    A = torch.complex(-torch.rand(channels, states, generator=generator),
                      1e4 * (2 * torch.rand(channels, states, generator=generator) - 1))
    A.imag[0], A.real[1] = 0, 0
    u, ones = torch.zeros(1, channels, 2), torch.ones(1, states, 2)
    u[..., 0] = 1
    for state in range(states):
        only = ones * (torch.arange(states) == state)[:, None]
        y = scan.selective_scan(u, torch.ones_like(u), A, ones, only, delta_softplus=False,
                                backend=backend)[0, :, 1]
        expected = 2 * A[:, state].to(torch.complex128).exp().real
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("imaginary", MIXTURES[:2])
@needs_compiler
def test_native_complex_scan_stays_finite_where_the_angle_is_beyond_its_digits(imaginary):
    tensors, upstream = turning_inputs(1, 20, 70, 4, imaginary=imaginary)
    tensors = singles(tensors)
    tensors[1] = tensors[1] * 1e3
    tensors[2].imag.mul_(1e6)
    tensors[2].real[:10] = 0
    found = with_gradients(scan.selective_scan, tensors, upstream, backend="native")
    assert all(torch.view_as_real(t).isfinite().all() if t.is_complex() else t.isfinite().all()
               for t in found)


@needs_compiler
def test_native_complex_scan_agrees_with_differences_of_its_values():
    """Central differences of a kernel in single precision: steps of a hundredth, a coarse bound."""
    tensors, upstream = turning_inputs(1, 5, 9, 3, seed=7)
    tensors, upstream = singles(tensors), upstream.float()
    _, *gradients = with_gradients(scan.selective_scan, tensors, upstream, backend="native")

    def loss(i, step):
        moved = [t + step if i == j else t for j, t in enumerate(tensors)]
        y = scan.selective_scan(*moved, backend="native")
        return float((y.double() * upstream).sum())

    for i, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(i),
                                dtype=gradient.dtype)
        step = 1e-2 * direction / direction.norm()
        found = (loss(i, step) - loss(i, -step)) / 2
        expected = float((gradient.conj() * step).sum().real)
        assert abs(found - expected) < 2e-3 * float(gradient.norm() * step.norm()), NAMES[i]


@needs_compiler
def test_native_complex_scan_makes_only_wanted_gradients():
    tensors, upstream = turning_inputs(2, 16, 20, 4)
    tensors, upstream = singles(tensors), upstream.float()
    full = with_gradients(scan.selective_scan, tensors, upstream, backend="native")
    for wanted in range(len(tensors)):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        scan.selective_scan(*leaves, backend="native").backward(upstream)
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(7)]
        assert torch.equal(leaves[wanted].grad, full[wanted + 1])
    with torch.no_grad():
        y = scan.selective_scan(*(t.requires_grad_() for t in tensors), backend="native")
    assert not y.requires_grad and torch.equal(y, full[0])


def test_complex_scan_stands_for_conjugate_pairs():
    """States `a` and `conj(a)` with conjugate projections sum to twice the real part of one."""
    (u, delta, A, B, C, D, bias), _ = scan_inputs(2, 5, 30, 2, seed=6)
    A = torch.complex(A, 3 * A)
    C = torch.complex(C, B)
    once = scan.selective_scan(u, delta, A, B, C, D, bias, backend="torch")
    pairs = scan.selective_scan(
        u, delta, torch.cat([A, A.conj()], 1), torch.cat([B, B], 1), torch.cat([C, C.conj()], 1),
        D, bias, backend="torch")
    skip = D[:, None] * u
    torch.testing.assert_close(2 * (once - skip), pairs - skip, rtol=1e-12, atol=1e-12)
    real = scan.selective_scan(u, delta, A.real, B, C.real, D, bias, backend="reference")
    flat = scan.selective_scan(u, delta, A.real + 0j, B, C.real, D, bias, backend="torch")
    torch.testing.assert_close(flat - skip, 2 * (real - skip), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("imaginary", ((), *MIXTURES[:2]))
def test_scan_is_bit_equal_from_run_to_run(imaginary, backend):
    tensors, upstream = turning_inputs(3, 48, 130, 16, imaginary=imaginary)
    runs = [with_gradients(scan.selective_scan, singles(tensors), upstream, backend=backend)
            for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_compiler
@pytest.mark.parametrize("imaginary", ((), *MIXTURES[:2]))
def test_native_scan_does_not_depend_on_the_number_of_threads(imaginary):
    tensors, upstream = turning_inputs(3, 80, 130, 16, imaginary=imaginary)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(with_gradients(scan.selective_scan, singles(tensors), upstream,
                                       backend="native"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["torch", "triton", "auto"])
def test_scan_on_a_gpu(backend):
    tensors, upstream = scan_inputs(2, 32, 257, 16)
    expected = with_gradients(scan.selective_scan, tensors, upstream, backend="reference")
    leaves = [t.float().cuda().requires_grad_() for t in tensors]
    y = scan.selective_scan(*leaves, backend=backend)
    y.backward(upstream.float().cuda())
    assert_close([t.cpu() for t in (y.detach(), *(leaf.grad for leaf in leaves))], expected, 1e-3,
                 ("y", *NAMES))


# ---- SSD ----


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_ssd_matches_the_float64_loop(length, chunk):
    tensors, upstream = ssd_inputs(2, length, 3, 4, 5)
    expected = with_gradients(scan.ssd, tensors, upstream, backend="reference")
    names = ("y", "x", "dt", "A", "B", "C")
    found = with_gradients(scan.ssd, tensors, upstream, chunk=chunk)
    assert_close(found, expected, 1e-12, names)
    found = with_gradients(scan.ssd, tensors, upstream, torch.float32, chunk=chunk)
    # The gradient of A sums differences over a whole chunk, hence a digit less than the others.
    assert_close(found, expected, 2e-5, names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("length", [1, 65, 257, 1000])
def test_ssd_on_a_gpu(length, backend):
    tensors, upstream = ssd_inputs(2, length, 2, 64, 64)
    expected = with_gradients(scan.ssd, tensors, upstream, backend="reference")
    leaves = [t.float().cuda().requires_grad_() for t in tensors]
    y = scan.ssd(*leaves, backend=backend)
    y.backward(upstream.float().cuda())
    found = [t.cpu() for t in (y.detach(), *(leaf.grad for leaf in leaves))]
    names = ("y", "x", "dt", "A", "B", "C")
    # One token has no state to decay: the gradient of A is zero, and has no relative error.
    kept = [i for i in range(6) if length > 1 or names[i] != "A"]
    assert_close([found[i] for i in kept], [expected[i] for i in kept], 1e-3,
                 [names[i] for i in kept])


def test_ssd_is_a_selective_scan_with_one_decay_per_head():
    (x, dt, A, B, C), _ = ssd_inputs(2, 40, 3, 4, 5)
    u = x.flatten(2).mT  # (B, L, H, P) -> (B, H * P, L)
    steps = dt.repeat_interleave(4, dim=2).mT
    rates = A.repeat_interleave(4)[:, None].expand(-1, 5)
    y = scan.selective_scan(u, steps, rates, B.mT, C.mT, delta_softplus=False, backend="reference")
    torch.testing.assert_close(scan.ssd(x, dt, A, B, C, chunk=16), y.mT.reshape(x.shape),
                               rtol=1e-10, atol=1e-12)


def test_ssd_survives_steps_that_forget_everything():
    tensors, upstream = ssd_inputs(1, 100, 2, 3, 4)
    tensors[1] = 400 * tensors[1]
    expected = with_gradients(scan.ssd, tensors, upstream, backend="reference")
    found = with_gradients(scan.ssd, tensors, upstream, torch.float32)
    assert all(t.isfinite().all() for t in found)
    assert_close(found[:2], expected[:2], 1e-4, ("y", "x"))


def test_ssd_passes_gradcheck():
    tensors, _ = ssd_inputs(1, 7, 2, 2, 2)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: scan.ssd(*t, chunk=3), leaves, atol=1e-7)


def test_ssd_keeps_half_precision_outside():
    tensors, _ = ssd_inputs(2, 70, 3, 4, 5)
    low = [t.to(torch.bfloat16) for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        y = scan.ssd(*low)
    assert y.dtype == torch.bfloat16
    expected = scan.ssd(*(t.double() for t in low), backend="reference")
    assert_close([y], [expected], 4e-3, ["y"])


# ---- choosing a backend ----


def test_environment_chooses_where_the_argument_does_not(monkeypatch):
    tensors, _ = scan_inputs(1, 4, 10, 2)
    calls = []
    for name in ("torch", "reference"):
        monkeypatch.setitem(scan._SELECTIVE, name,
                            lambda *_, name=name: calls.append(name) or torch.zeros(1, 4, 10))
    monkeypatch.setenv(scan.ENVIRONMENT, "reference")
    scan.selective_scan(*tensors)
    scan.selective_scan(*tensors, backend="torch")
    monkeypatch.setenv(scan.ENVIRONMENT, "auto")
    scan.selective_scan(*tensors)  # float64: the native kernel does not take it
    assert calls == ["reference", "torch", "torch"]


@needs_compiler
@pytest.mark.parametrize("imaginary", ((), *MIXTURES[:2]))
def test_auto_takes_the_compiled_kernel_for_float32_on_a_cpu(monkeypatch, imaginary):
    tensors = singles(turning_inputs(1, 4, 10, 2, imaginary=imaginary)[0])
    called = []
    monkeypatch.setitem(scan._SELECTIVE, "native",
                        lambda *_: called.append(1) or torch.zeros(1, 4, 10))
    scan.selective_scan(*tensors)
    assert called == [1]


def test_unknown_backend_is_refused(monkeypatch):
    tensors, _ = scan_inputs(1, 4, 10, 2)
    with pytest.raises(InputError, match="cuda_graphs.*choose one of auto, torch"):
        scan.selective_scan(*tensors, backend="cuda_graphs")
    monkeypatch.setenv(scan.ENVIRONMENT, "fast")
    with pytest.raises(InputError, match="MVH_SCAN_BACKEND.*'fast'"):
        scan.ssd(*ssd_inputs(1, 4, 1, 2, 2)[0])


@pytest.mark.skipif("mamba_ssm" in scan.available_backends(), reason="mamba-ssm works here")
def test_missing_mamba_says_how_to_install_it():
    for function, tensors in ((scan.selective_scan, scan_inputs(1, 4, 10, 2)[0]),
                              (scan.ssd, ssd_inputs(1, 4, 1, 2, 2)[0])):
        with pytest.raises(InputError, match="--no-build-isolation"):
            function(*tensors, backend="mamba_ssm")


def test_without_a_compiler_auto_falls_back_and_native_says_so(monkeypatch, tmp_path):
    tensors = [t.float() for t in scan_inputs(1, 4, 10, 2)[0]]
    expected = scan.selective_scan(*tensors, backend="torch")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MVH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    native_scan.library.cache_clear()
    try:
        assert scan.available_backends()[-2:] == ["torch", "reference"]
        assert "native" not in scan.available_backends()
        assert torch.equal(scan.selective_scan(*tensors), expected)
        with pytest.raises(InputError, match="no C compiler.*apt install gcc"):
            scan.selective_scan(*tensors, backend="native")
    finally:
        native_scan.library.cache_clear()


@needs_compiler
def test_native_refuses_what_it_cannot_take():
    tensors, _ = scan_inputs(1, 4, 10, 2)
    with pytest.raises(InputError, match="float64"):
        scan.selective_scan(*tensors, backend="native")
    tensors, _ = turning_inputs(1, 4, 10, 2)
    with pytest.raises(InputError, match="float64"):
        scan.selective_scan(*tensors, backend="native")
    with pytest.raises(InputError, match="no kernel for ssd"):
        scan.ssd(*ssd_inputs(1, 4, 1, 2, 2)[0], backend="native")


def test_a_backend_from_the_environment_leaves_ssd_to_torch(monkeypatch):
    tensors, _ = ssd_inputs(1, 9, 2, 2, 2)
    expected = scan.ssd(*tensors, backend="torch")
    monkeypatch.setenv(scan.ENVIRONMENT, "native")
    assert torch.equal(scan.ssd(*tensors), expected)


@needs_compiler
def test_a_damaged_kernel_file_is_compiled_anew(monkeypatch, tmp_path):
    # A truncated library crashes the process that loads it, so it must be seen before. Two folders:
    # the loader knows a library by its path and would not open the same one twice.
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    monkeypatch.setenv("MVH_CACHE", str(whole))
    native_scan.load()
    (file,) = whole.iterdir()
    damaged.mkdir()
    (damaged / file.name).write_bytes(file.read_bytes()[:1000])
    monkeypatch.setenv("MVH_CACHE", str(damaged))
    native_scan.load()
    assert [path.name for path in damaged.iterdir()] == [file.name]
    assert (damaged / file.name).stat().st_size == file.stat().st_size


def test_import_compiles_and_probes_nothing(tmp_path):
    code = (
        "import sys; import mvhlib.backbones.scan as s; "
        "assert not s.native_scan.library.cache_info().currsize; "
        "assert not s._mamba.cache_info().currsize; "
        "print(sorted({'scanpy', 'pandas', 'triton', 'mamba_ssm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "MVH_CACHE": str(tmp_path / "cache")})
    assert done.stdout.strip() == "[]", done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("position", "shape", "field"), [
    (1, (2, 4, 9), "delta"), (2, (5, 3), "A"), (3, (2, 4, 10), "B"), (5, (1,), "D"),
    (6, (4, 1), "delta_bias"),
])
def test_wrong_shapes_are_named(position, shape, field):
    tensors, _ = scan_inputs(2, 4, 10, 3)
    tensors[position] = torch.zeros(shape)
    with pytest.raises(InputError, match=f"selective_scan: {field}: has shape"):
        scan.selective_scan(*tensors)


def test_wrong_shapes_are_named_for_ssd():
    x, dt, A, B, C = ssd_inputs(1, 4, 2, 2, 2)[0]
    with pytest.raises(InputError, match="ssd: dt: has shape"):
        scan.ssd(x, dt[:, :3], A, B, C)
    with pytest.raises(InputError, match="ssd: chunk"):
        scan.ssd(x, dt, A, B, C, chunk=0)
