"""The Triton programs on a CPU, by Triton's interpreter: what `tests/test_triton_scan.py` starts.

``python -m tests.interpreted_scan CASE...`` prints a JSON object, case -> name -> relative error of
the output and of every gradient against the plain loop in float64; without a case it compiles the
programs for two kinds of GPU instead. It needs torch, triton and numpy below 2.4
(Triton 3.6 hands arrays of one number to `int`), and no pytest.
"""

import json
import os
import sys

import numpy as np
import torch

from mvhlib.backbones import load_reference_state_dict, scan
from mvhlib.backbones.mixers import HydraMixer, MambaVisionMixer

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def inputs(batch, channels, length, states, imaginary=()):
    """Float64 inputs, of which those in `imaginary` are complex, and a gradient for the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = dict(zip(NAMES, [
        normal(batch, channels, length), normal(batch, channels, length),
        -torch.exp(normal(channels, states)), normal(batch, states, length),
        normal(batch, states, length), normal(channels), normal(channels) - 3], strict=True))
    for name in imaginary:
        given[name] = torch.complex(given[name], normal(*given[name].shape))
    return given, normal(batch, channels, length)


def ssd_inputs(batch, length, heads, width, states, steps=-1.0):
    """Float64 inputs of `ssd` with steps about softplus(`steps`), a gradient for the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = {"x": normal(batch, length, heads, width),
             "dt": torch.nn.functional.softplus(normal(batch, length, heads) + steps),
             "A": -torch.exp(normal(heads)), "B": normal(batch, length, states),
             "C": normal(batch, length, states)}
    return given, normal(batch, length, heads, width)


def results(backend, given, upstream, function=scan.selective_scan, **options):
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    y = function(**leaves, backend=backend, **options)
    y.backward(upstream.to(y.dtype))
    return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def errors(found, expected):
    """Norm of the difference over the norm of what is expected; NaN and a wrong dtype show."""
    return {name: float((found[name].to(expected[name].dtype) - expected[name]).norm()
                        / expected[name].norm().clamp(min=1e-30)) for name in expected}


def compare(given, upstream, dtype=torch.float32, **options):
    low = {name: tensor.to(torch.complex64 if tensor.is_complex() else dtype)
           for name, tensor in given.items()}
    found = results("triton", low, upstream, **options)
    assert found["y"].dtype == dtype
    assert all(found[name].dtype == tensor.dtype for name, tensor in low.items())
    wide = {name: tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
            for name, tensor in low.items()}
    expected = results("reference", wide, upstream.to(dtype), **options)
    return errors(found, expected)


def case_real():
    return compare(*inputs(2, 34, 18, 3))  # a second span of tokens, a second block of channels


def case_many_states():
    return compare(*inputs(1, 5, 18, 18))


def case_one_token():
    return {name: error for name, error in compare(*inputs(2, 5, 1, 4)).items()
            if name != "A"}  # the first token has no state to decay: the gradient is zero


def case_complex():
    return compare(*inputs(2, 5, 18, 9, ("A", "B", "C")))


def case_complex_poles_alone():
    return compare(*inputs(1, 5, 18, 3, ("A",)))


def case_bfloat16():
    return compare(*inputs(2, 5, 34, 4), dtype=torch.bfloat16)


def case_float16():
    return compare(*inputs(1, 5, 18, 4), dtype=torch.float16)


def case_without_options():
    """No skip, no bias, no softplus; inputs in the memory order of tokens."""
    given, upstream = inputs(2, 5, 18, 3)
    given = {name: given[name] for name in NAMES[:5]}
    given["delta"] = given["delta"].abs()
    given = {name: t.mT.contiguous().mT if t.ndim == 3 else t for name, t in given.items()}
    return compare(given, upstream, delta_softplus=False)


def case_nothing_recorded():
    """Without gradients no state is kept, and the output is the same."""
    given, _ = inputs(1, 5, 18, 3)
    low = {name: tensor.float() for name, tensor in given.items()}
    recorded = scan.selective_scan(
        **{name: t.clone().requires_grad_() for name, t in low.items()}, backend="triton")
    with torch.no_grad():
        plain = scan.selective_scan(**low, backend="triton")
    assert recorded.requires_grad and not plain.requires_grad
    assert torch.equal(recorded, plain)
    return errors({"y": plain}, {"y": scan.selective_scan(**given, backend="reference")})


def case_ssd_1():
    return {name: error for name, error in compare(*ssd_inputs(2, 1, 2, 4, 5),
                                                   function=scan.ssd).items()
            if name != "A"}  # the first token has no state to decay: the gradient is zero


def case_ssd_65():
    return compare(*ssd_inputs(2, 65, 3, 4, 5), function=scan.ssd)


def case_ssd_96():
    """Whole chunks; rows of two programs, one of them in part empty."""
    return compare(*ssd_inputs(1, 96, 1, 70, 64), function=scan.ssd)


def case_ssd_257():
    return compare(*ssd_inputs(1, 257, 2, 16, 16), function=scan.ssd)


def case_ssd_most_states():
    return compare(*ssd_inputs(1, 20, 1, 36, scan.SSD_STATES), function=scan.ssd)


def case_ssd_forgets():
    """Steps after which nothing of the state is left; the gradient of A is that of little."""
    return compare(*ssd_inputs(1, 100, 2, 4, 4, steps=30.0), function=scan.ssd)


def case_ssd_bfloat16():
    return compare(*ssd_inputs(1, 65, 2, 4, 5), dtype=torch.bfloat16, function=scan.ssd)


def case_ssd_float16():
    return compare(*ssd_inputs(1, 65, 2, 4, 5), dtype=torch.float16, function=scan.ssd)


def case_ssd_strides():
    """Views, as mixers hand them over: heads before tokens, columns apart, an upstream of ones."""
    given, upstream = ssd_inputs(2, 20, 3, 4, 10)
    given["x"] = given["x"].transpose(1, 2).contiguous().transpose(1, 2)
    given["dt"] = given["dt"].mT.contiguous().mT
    given["B"], given["C"] = given["B"][..., :5], given["C"][..., ::2]
    return compare(given, torch.ones(()).expand(upstream.shape), function=scan.ssd)


def case_ssd_only_some_gradients():
    given, upstream = ssd_inputs(1, 20, 2, 4, 5)
    low = {name: tensor.float().requires_grad_(name in "xB") for name, tensor in given.items()}
    y = scan.ssd(**low, backend="triton")
    y.backward(upstream.float())
    assert [name for name, tensor in low.items() if tensor.grad is not None] == ["x", "B"]
    expected = results("reference", given, upstream, function=scan.ssd)
    return errors({name: low[name].grad for name in "xB"}, {name: expected[name] for name in "xB"})


def case_tried_out():
    """What is asked of them on a GPU before they are used; a wrong one is refused."""
    for operation in ("selective_scan", "ssd"):
        function, reason = scan._triton(operation)
        assert function is not None and not reason
        scan._try_out(operation, function, torch.device("cpu"))
        try:
            scan._try_out(operation, _scaled(function), torch.device("cpu"))
        except RuntimeError as error:
            assert "differs from plain PyTorch" in str(error)
        else:
            raise AssertionError(f"a wrong {operation} was taken")
    return {}


def _scaled(function):
    return lambda *given: 1.001 * function(*given)


def case_chosen():
    """By the environment, where mamba-ssm is missing; more states than it takes go elsewhere."""
    os.environ[scan.ENVIRONMENT] = "triton"
    try:
        given, _ = ssd_inputs(1, 9, 2, 4, 5)
        low = {name: tensor.float() for name, tensor in given.items()}
        assert torch.equal(scan.ssd(**low), scan.ssd(**low, backend="triton"))
        assert not torch.equal(scan.ssd(**low), scan.ssd(**low, backend="torch"))
    finally:
        del os.environ[scan.ENVIRONMENT]
    assert torch.equal(scan.ssd(**low), scan.ssd(**low, backend="triton"))
    assert scan._unfit_for_triton(torch.device("cuda"), torch.float32, scan.SSD_STATES + 1)
    return {}


def case_golden_scan():
    arrays = _golden("selective_scan")
    found = results("triton", {name: arrays[name] for name in NAMES}, arrays["grad_output"])
    return errors(found, {"y": arrays["output"]} | {name: arrays[f"grad.{name}"]
                                                    for name in NAMES})


def case_golden_mixer():
    return _mixer_errors("mambavision_mixer",
                         MambaVisionMixer(32, d_state=16, d_conv=4, expand=2))


def case_golden_hydra():
    return _mixer_errors("hydra_mixer", HydraMixer(32, d_state=16, d_conv=7, headdim=16))


def _mixer_errors(name, mixer):
    arrays = _golden(name)
    mixer.scan_backend = "triton"
    load_reference_state_dict(mixer, {name: t.numpy() for name, t in arrays.items()})
    x = arrays["input"].clone().requires_grad_()
    y = mixer(x)
    y.backward(arrays["grad_output"])
    named = {"input": x, **dict(mixer.named_parameters())}
    return errors({"y": y.detach()} | {name: t.grad for name, t in named.items()},
                  {"y": arrays["output"]} | {name: arrays[f"grad.{name}"] for name in named})


def _golden(name):
    with np.load(f"{os.environ['MVH_GOLDEN']}/{name}.npz", allow_pickle=False) as stream:
        return {key: torch.from_numpy(stream[key]) for key in stream.files}


def compile_all():
    """For two kinds of GPU, with the compiler that the interpreter passes over."""
    from mvhlib.backbones import triton_scan, triton_ssd

    # A number that is 1 is a constant to the compiler: strides of rows, a single image or token.
    ones = {name: 1 for name in ("batch", "length", "u_d", "delta_d", "B_n", "C_n")}
    for is_complex, constant in ((False, {}), (True, {}), (False, ones)):
        chosen = {"SOFTPLUS": True, "HAS_SKIP": True, "HAS_BIAS": True, "KEEP": True,
                  "COMPLEX": is_complex, "EVERY": triton_scan.EVERY,
                  "BLOCK_N": triton_scan.MOST_STATES[is_complex],
                  "BLOCK_D": triton_scan.BLOCK_D, **constant}
        low = ("u", "delta", "y", "dy", "du", "ddelta", *(() if is_complex else ("B", "C")))
        for target in TARGETS:
            for kernel in (triton_scan._forward, triton_scan._backward):
                built = compile_one(kernel, target, chosen, low, {"num_warps": 1})
                # Sums over states stay in a thread: no exchange between threads in this one.
                if kernel is triton_scan._forward:
                    assert "shfl" not in built.asm["ptx"]

    ones = {name: 1 for name in ("x_p", "B_n", "C_n", "dy_p", "dt_h")}
    for width, states, low in ((64, 64, ("x", "B", "C", "dy", "y", "dx")), (16, 16, ())):
        x, b = torch.empty(1, 1, 1, width), torch.empty(1, 1, states)
        chosen = {**triton_ssd._sizes(x, b), "EVERY": triton_ssd.EVERY, **ones}
        for target in TARGETS:
            for kernel in (triton_ssd._forward, triton_ssd._back_to_C, triton_ssd._back_to_x):
                built = compile_one(kernel, target, chosen, low, triton_ssd.OPTIONS)
                assert "mma" in built.asm["ptx"]  # on tensor cores
                assert built.metadata.shared <= 99 * 1024  # of every GPU from Ampere on


#: Compute capabilities times ten.
TARGETS = (80, 90)


def compile_one(kernel, target, chosen, low, options):
    """Compile a program with some arguments constant and the tensors in `low` in bfloat16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name):
        if name in chosen:
            return "constexpr"
        is_number = name.endswith(("_b", "_d", "_l", "_n", "_h", "_p")) or name in (
            "batch", "channels", "length", "states", "heads", "width")
        return "i32" if is_number else "*bf16" if name in low else "*fp32"

    names = kernel.arg_names
    return triton.compile(
        ASTSource(kernel, {name: kind(name) for name in names},
                  constexprs={name: chosen[name] for name in chosen if name in names}),
        target=GPUTarget("cuda", target, 32), options=options)


def main(cases):
    torch.set_num_threads(1)
    if not cases:
        return compile_all()
    os.environ["TRITON_INTERPRET"] = "1"
    print(json.dumps({case: globals()[f"case_{case}"]() for case in cases}))


if __name__ == "__main__":
    main(sys.argv[1:])
