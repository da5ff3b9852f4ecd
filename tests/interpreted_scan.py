"""The Triton scan on a CPU, by Triton's interpreter: what `tests/test_triton_scan.py` starts.

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
from mvhlib.backbones.mixers import MambaVisionMixer

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


def results(backend, given, upstream, **options):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    y = scan.selective_scan(**leaves, backend=backend, **options)
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
    assert all(found["y" if name == "u" else name].dtype == tensor.dtype
               for name, tensor in low.items())
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


def case_tried_out():
    """What is asked of it on a GPU before it is used; a wrong one is refused."""
    function, reason = scan._triton()
    assert function is not None and not reason
    scan._try_out(function, torch.device("cpu"))
    try:
        scan._try_out(lambda *given: 1.001 * function(*given), torch.device("cpu"))
    except RuntimeError as error:
        assert "differs from plain PyTorch" in str(error)
        return {}
    raise AssertionError("a wrong scan was taken")


def case_golden_scan():
    arrays = _golden("selective_scan")
    found = results("triton", {name: arrays[name] for name in NAMES}, arrays["grad_output"])
    return errors(found, {"y": arrays["output"]} | {name: arrays[f"grad.{name}"]
                                                    for name in NAMES})


def case_golden_mixer():
    arrays = _golden("mambavision_mixer")
    mixer = MambaVisionMixer(32, d_state=16, d_conv=4, expand=2, scan_backend="triton")
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
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mvhlib.backbones import triton_scan

    # A number that is 1 is a constant to the compiler: strides of rows, a single image or token.
    ones = {name: 1 for name in ("batch", "length", "u_d", "delta_d", "B_n", "C_n")}
    for is_complex, constant in ((False, {}), (True, {}), (False, ones)):
        for target in (80, 90):
            for kernel in (triton_scan._forward, triton_scan._backward):
                chosen = {"SOFTPLUS": True, "HAS_SKIP": True, "HAS_BIAS": True, "KEEP": True,
                          "COMPLEX": is_complex, "EVERY": triton_scan.EVERY,
                          "BLOCK_N": triton_scan.MOST_STATES[is_complex],
                          "BLOCK_D": triton_scan.BLOCK_D, **constant}
                low = ("u", "delta", "y", "dy", "du", "ddelta")
                low = low if is_complex else (*low, "B", "C")
                kinds = {name: "constexpr" if name in chosen else "*bf16" if name in low
                         else "i32" if name in ("batch", "channels", "length", "states")
                         or name.endswith(("_b", "_d", "_l", "_n")) else "*fp32"
                         for name in kernel.arg_names}
                built = triton.compile(
                    ASTSource(kernel, kinds, constexprs={name: chosen[name] for name in chosen
                                                         if name in kernel.arg_names}),
                    target=GPUTarget("cuda", target, 32), options={"num_warps": 1})
                # Sums over states stay in a thread: no exchange between threads in this one.
                if kernel is triton_scan._forward:
                    assert "shfl" not in built.asm["ptx"]


def main(cases):
    torch.set_num_threads(1)
    if not cases:
        return compile_all()
    os.environ["TRITON_INTERPRET"] = "1"
    print(json.dumps({case: globals()[f"case_{case}"]() for case in cases}))


if __name__ == "__main__":
    main(sys.argv[1:])
