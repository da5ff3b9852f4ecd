"""The two recurrences of the state-space mixers, and the kernels that compute them.

`selective_scan` is Mamba's recurrence with a diagonal state per channel (Gu and Dao, arXiv
2312.00752, algorithm 2), `ssd` Mamba-2's with one decay per head (Dao and Gu, arXiv 2405.21060,
section 6). Each has a plain loop as its reference and faster ways to the same numbers:

=============  ==========================================================================
``reference``  the loop over whole tensors, as published; any dtype, slow, much memory
``torch``      PyTorch alone, CPU or GPU, any dtype
``native``     a C kernel compiled at first use (CPU, float32, complex `A` too; selective scan only)
``mamba_ssm``  the CUDA and Triton kernels of the package mamba-ssm (GPU, real `A`)
``triton``     Triton programs of ours (GPU, complex `A` too)
``auto``       on a GPU mamba_ssm where it works, then triton; native on a CPU where it works; else
               torch. Who has compiled mamba-ssm wants it, and its kernels have been timed
=============  ==========================================================================

The argument `backend` chooses; where it is ``"auto"``, the environment variable
``MVH_SCAN_BACKEND`` does. Nothing is compiled or probed at import. The axis letters here are those
of the papers: B batch, D channels, L length, N states, H heads, P width of a head.
"""

import functools
import logging
import os

import torch
from torch.nn import functional

from mvhlib.artifacts import InputError
from mvhlib.backbones import native_scan, torch_scan

BACKENDS = ("auto", "torch", "native", "mamba_ssm", "triton", "reference")
ENVIRONMENT = "MVH_SCAN_BACKEND"

#: Columns of a head's state that our Triton programs for `ssd` take, at most: with 256 they compile
#: for minutes, and most of what they hold leaves the registers.
SSD_STATES = 128

INSTALL_MAMBA = (
    "on a machine with an NVIDIA GPU, nvcc and torch already installed, run "
    "`pip install --no-build-isolation mamba-ssm causal-conv1d`, or choose another backend"
)
INSTALL_TRITON = (
    "on a machine with an NVIDIA GPU install PyTorch's CUDA build, which brings it, or choose "
    "another backend"
)
INSTALL_COMPILER = (
    "install a C compiler (Debian, Ubuntu: `apt install gcc libc6-dev`; conda: "
    "`conda install c-compiler`) or name one in CC, or choose another backend"
)

_log = logging.getLogger(__name__)


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = "auto",
) -> torch.Tensor:
    """Scan a sequence with a diagonal state whose step, input and output depend on the token.

    With `dt = softplus(delta + delta_bias)`, for each channel d and state n::

        h[t] = exp(dt[t] * A[d, n]) * h[t-1] + dt[t] * B[n, t] * u[d, t],      h[-1] = 0
        y[d, t] = sum_n C[n, t] * h[t] + D[d] * u[d, t]

    (Gu and Dao, arXiv 2312.00752, equations 2 and 4 with their simplified discretisation of B.)
    Where any of `A`, `B`, `C` is complex, the sum is replaced by twice its real part, as mamba-ssm
    does: the states then stand for one half of conjugate pairs, so a complex `A` with zero
    imaginary part gives twice the real recurrence.

    Parameters
    ----------
    u
        Input, `(B, D, L)`. Its memory may be `(B, L, D)`: no backend needs it contiguous.
    delta
        Step before bias and softplus, `(B, D, L)`.
    A
        Continuous-time eigenvalues, `(D, N)`, real or complex; a negative real part keeps the
        state bounded. That it is negative is up to the caller.
    B, C
        Input and output projection per token, `(B, N, L)`, real or complex.
    D
        Skip connection, `(D,)`.
    delta_bias
        Added to `delta` before the softplus, `(D,)`.
    delta_softplus
        False where `delta` is the step itself.
    backend
        One of `BACKENDS`.

    Returns
    -------
    `(B, D, L)` in the dtype of `u`. Computed in float32 (float64 where an input is that), also
    under autocast. Differentiable once in every tensor.

    Raises
    ------
    InputError
        A shape, dtype, device or backend that does not fit, or a backend that is missing.

    Notes
    -----
    At a fixed backend and number of threads the result is bit-equal from run to run on a CPU; the
    native kernel's is so for any number of threads. Different backends agree to rounding only.
    """
    _check_scan(u, delta, A, B, C, D, delta_bias)
    given = [tensor for tensor in (u, delta, A, B, C, D, delta_bias) if tensor is not None]
    is_complex = any(tensor.is_complex() for tensor in given)
    precision = _precision(given)
    unfit = {
        "native": _unfit_for_native(u.device, precision),
        "mamba_ssm": _unfit_for_mamba(u.device, precision, is_complex, A.shape[1]),
        "triton": _unfit_for_triton(u.device, precision),
    }
    chosen = _choose("selective_scan", backend, unfit)
    with torch.autocast(u.device.type, enabled=False):
        if chosen == "triton":  # its kernel widens what it reads
            return _triton("selective_scan")[0](
                u, delta, A, B, C, D, delta_bias, delta_softplus)
        wide = [None if tensor is None else _widen(tensor, precision)
                for tensor in (u, delta, A, B, C, D, delta_bias)]
        y = _SELECTIVE[chosen](*wide, delta_softplus)
        return y.to(u.dtype)


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk: int = 64,
    backend: str = "auto",
) -> torch.Tensor:
    """Scan a sequence with one scalar decay per head and a matrix state (Mamba-2).

    For each head h::

        S[t] = exp(dt[t, h] * A[h]) * S[t-1] + dt[t, h] * outer(x[t, h], B[t]),      S[-1] = 0
        y[t, h] = S[t] @ C[t]

    computed in chunks: inside a chunk as masked attention, between chunks by the state (Dao and Gu,
    arXiv 2405.21060, section 6). Exponentials are taken of masked differences of the cumulated
    decay, which are never positive for `A < 0`, so a large step gives 0 and not NaN.

    Parameters
    ----------
    x
        Input, `(B, L, H, P)`.
    dt
        Step after its softplus, `(B, L, H)`.
    A
        Decay rate per head, `(H,)`, negative.
    B, C
        Input and output projection per token, shared by all heads, `(B, L, N)`.
    chunk
        Tokens in a chunk, at most; a length that is no multiple is padded with steps of zero. A
        matter of speed alone; ``"triton"`` has chunks of its own.
    backend
        One of `BACKENDS`; ``"native"`` has no kernel here and is refused as an argument, while
        ``MVH_SCAN_BACKEND=native`` leaves this operation to torch.

    Returns
    -------
    `(B, L, H, P)` in the dtype of `x`. Computed in float32 (float64 where an input is that), also
    under autocast.

    Raises
    ------
    InputError
        A shape, dtype, device or backend that does not fit, or a backend that is missing.
    """
    _check_ssd(x, dt, A, B, C, chunk)
    precision = _precision([x, dt, A, B, C])
    unfit = {
        "native": "it has no kernel for ssd",
        "mamba_ssm": _unfit_for_mamba(x.device, precision, False, B.shape[-1]),
        "triton": _unfit_for_triton(x.device, precision, B.shape[-1]),
    }
    chosen = _choose("ssd", backend, unfit)
    with torch.autocast(x.device.type, enabled=False):
        if chosen == "triton":  # widens what it reads by itself
            return _triton("ssd")[0](x, dt, A, B, C)
        wide = [_widen(tensor, precision) for tensor in (x, dt, A, B, C)]
        return _SSD[chosen](*wide, chunk).to(x.dtype)


def available_backends() -> list[str]:
    """Backends of the selective scan that work in this process, fastest first.

    Compiles the native kernel and probes mamba-ssm where that was not done before.
    """
    names = []
    if _mamba("selective_scan")[0] is not None:
        names.append("mamba_ssm")
    if _triton("selective_scan")[0] is not None:
        names.append("triton")
    if native_scan.library()[0] is not None:
        names.append("native")
    return [*names, "torch", "reference"]


# ---- choosing ----


def _choose(operation: str, backend: str, unfit: dict[str, str]) -> str:
    """The backend for one call. `unfit` says per backend why these inputs do not suit it, or ""."""
    where, asked = operation, backend
    if backend == "auto":
        asked = os.environ.get(ENVIRONMENT) or "auto"
        where = f"{operation} ({ENVIRONMENT})" if asked != "auto" else operation
    if asked not in BACKENDS:
        raise InputError(where, "backend", f"unknown backend {asked!r}",
                         f"choose one of {', '.join(BACKENDS)}")
    if asked == "native" and operation == "ssd" and backend == "auto":
        asked = "torch"
    if asked == "auto":
        chosen = "torch"
        if not unfit["mamba_ssm"] and _mamba(operation)[0] is not None:
            chosen = "mamba_ssm"
        elif not unfit["native"] and native_scan.library()[0] is not None:
            chosen = "native"
        elif not unfit["triton"] and _triton(operation)[0] is not None:
            chosen = "triton"
        _announce(operation, chosen)
        return chosen
    # What is not installed comes before what does not fit: on a machine without the package,
    # "needs a GPU tensor" would send the reader the wrong way.
    if asked == "mamba_ssm" and (reason := _mamba(operation)[1]):
        raise InputError(where, "backend", f"mamba_ssm is not usable here: {reason}", INSTALL_MAMBA)
    if asked == "triton" and (reason := _triton(operation)[1]):
        raise InputError(where, "backend", f"triton is not usable here: {reason}", INSTALL_TRITON)
    if asked == "native" and operation == "selective_scan" and (reason := native_scan.library()[1]):
        raise InputError(where, "backend", f"native is not usable here: {reason}", INSTALL_COMPILER)
    if unfit.get(asked):
        raise InputError(where, "backend", f"{asked} cannot take these inputs: {unfit[asked]}",
                         "use backend='auto' or 'torch'")
    return asked


@functools.cache
def _announce(operation: str, chosen: str) -> None:
    """Say once which backend was chosen, and why not a faster one."""
    reasons = []
    if torch.cuda.is_available() and chosen != "mamba_ssm" and _mamba(operation)[1]:
        reasons.append(f"mamba_ssm: {_mamba(operation)[1]}")
    if torch.cuda.is_available() and chosen == "torch" and _triton(operation)[1]:
        reasons.append(f"triton: {_triton(operation)[1]}")
    if operation == "selective_scan" and chosen == "torch" and (
            native_scan.library.cache_info().currsize and native_scan.library()[1]):
        reasons.append(f"native: {native_scan.library()[1]}")
    detail = "; ".join(filter(None, reasons))
    _log.info("%s runs on the backend %s%s", operation, chosen, f" ({detail})" if detail else "")


def _precision(tensors: list[torch.Tensor]) -> torch.dtype:
    """float64 where one of the tensors is (or is complex of) that, else float32."""
    wide = {torch.float64, torch.complex128}
    return torch.float64 if any(tensor.dtype in wide for tensor in tensors) else torch.float32


def _widen(tensor: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    return tensor.to(precision.to_complex() if tensor.is_complex() else precision)


def _unfit_for_native(device: torch.device, precision: torch.dtype) -> str:
    if device.type != "cpu":
        return f"tensors are on {device}, it runs on the CPU"
    if precision != torch.float32:
        return "an input is float64, it computes in float32"
    return ""


def _unfit_for_mamba(
    device: torch.device, precision: torch.dtype, is_complex: bool, states: int
) -> str:
    if device.type != "cuda":
        return f"tensors are on {device}, it runs on a GPU"
    if is_complex:
        return "A, B or C is complex, this bridge is real only"
    if precision != torch.float32:
        return "an input is float64, it computes in float32"
    if states > 256:
        return f"{states} states, it takes at most 256"
    return ""


def _unfit_for_triton(device: torch.device, precision: torch.dtype, states: int = 0) -> str:
    """`states` are those of ssd; the selective scan takes any number."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"tensors are on {device}, it runs on a GPU"
    if precision != torch.float32:
        return "an input is float64, it computes in float32"
    if states > SSD_STATES:
        return f"{states} states, it takes at most {SSD_STATES}"
    return ""


def _check_shapes(where: str, tensors: dict[str, tuple[torch.Tensor | None, tuple]]) -> None:
    device = next(iter(tensors.values()))[0].device
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InputError(where, name, f"has shape {tuple(tensor.shape)}, needs {shape}",
                             "pass tensors of matching sizes")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise InputError(where, name, f"has dtype {tensor.dtype}",
                             "pass floating point numbers")
        if tensor.device != device:
            raise InputError(where, name, f"is on {tensor.device}, the input on {device}",
                             "move all tensors to one device")


def _check_scan(u, delta, A, B, C, D, delta_bias) -> None:
    where = "selective_scan"
    if u.ndim != 3 or 0 in u.shape:
        raise InputError(where, "u", f"has shape {tuple(u.shape)}", "pass a non-empty (B, D, L)")
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[1] == 0:
        raise InputError(where, "A", f"has shape {tuple(A.shape)}", f"pass ({channels}, N)")
    states = A.shape[1]
    _check_shapes(where, {
        "u": (u, (batch, channels, length)), "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)), "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)), "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    })
    for name, tensor in (("u", u), ("delta", delta), ("D", D), ("delta_bias", delta_bias)):
        if tensor is not None and tensor.is_complex():
            raise InputError(where, name, "is complex", "only A, B and C may be complex")


def _check_ssd(x, dt, A, B, C, chunk) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise InputError("ssd", "x", f"has shape {tuple(x.shape)}", "pass a non-empty (B, L, H, P)")
    if chunk < 1:
        raise InputError("ssd", "chunk", f"is {chunk}", "pass a positive number of tokens")
    if B.ndim != 3 or B.shape[-1] == 0:
        raise InputError("ssd", "B", f"has shape {tuple(B.shape)}", "pass a non-empty (B, L, N)")
    batch, length, heads, width = x.shape
    states = B.shape[-1]
    _check_shapes("ssd", {
        "x": (x, (batch, length, heads, width)), "dt": (dt, (batch, length, heads)),
        "A": (A, (heads,)), "B": (B, (batch, length, states)), "C": (C, (batch, length, states)),
    })
    for name, tensor in (("x", x), ("dt", dt), ("A", A), ("B", B), ("C", C)):
        if tensor.is_complex():
            raise InputError("ssd", name, "is complex", "pass real tensors")


# ---- mamba-ssm ----


@functools.cache
def _mamba(operation: str):
    """mamba-ssm's function for `operation`, or None and the reason why it cannot be used.

    A broken build shows itself in many ways (undefined symbols, a stub that raises, Triton's own
    errors), hence any exception counts, and the function has to compute something to pass.
    """
    if not torch.cuda.is_available():
        return None, "PyTorch sees no NVIDIA GPU"
    try:
        if operation == "selective_scan":
            import selective_scan_cuda  # noqa: F401
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as function

            zeros = torch.zeros(1, 8, 8, device="cuda")
            function(zeros, zeros, zeros[0], zeros, zeros, delta_softplus=True)
        else:
            from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as function

            zeros = torch.zeros(1, 16, 1, 16, device="cuda")
            function(zeros, zeros[..., 0], zeros[0, 0, :, 0], zeros, zeros, chunk_size=16)
        torch.cuda.synchronize()
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return function, ""


def _scan_mamba(u, delta, A, B, C, D, delta_bias, delta_softplus):
    function, _ = _mamba("selective_scan")
    u, delta, B, C = (tensor.contiguous() for tensor in (u, delta, B, C))
    return function(u, delta, A.contiguous(), B, C, D=D, z=None, delta_bias=delta_bias,
                    delta_softplus=delta_softplus)


def _ssd_mamba(x, dt, A, B, C, chunk):
    function, _ = _mamba("ssd")
    x, dt, B, C = (tensor.contiguous() for tensor in (x, dt, B, C))
    # Triton wants a power of two, at least 16.
    size = max(16, 1 << (chunk - 1).bit_length())
    return function(x, dt, A, B[:, :, None], C[:, :, None], chunk_size=size, dt_softplus=False)


# ---- triton ----


@functools.cache
def _triton(operation: str):
    """Our Triton programs for `operation`, or None and the reason why they cannot be used.

    Imports triton for a GPU only. They have to find the output and gradients that plain PyTorch
    finds: a kernel that compiles and is wrong on some card or version of the compiler is left
    alone.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not interpreted:
        return None, "PyTorch sees no NVIDIA GPU"
    try:
        if operation == "selective_scan":
            from mvhlib.backbones.triton_scan import scan as function
        else:
            from mvhlib.backbones.triton_ssd import ssd as function

        if not interpreted:
            _try_out(operation, function, torch.device("cuda"))
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return function, ""


def _try_out(operation: str, function, device: torch.device) -> None:
    """Raise if a kernel does not agree with plain PyTorch on a small case, gradients included."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    if operation == "selective_scan":
        plain, options = torch_scan.scan, (True,)
        tensors = [normal(2, 33, 19), normal(2, 33, 19), -normal(33, 3).exp(), normal(2, 3, 19),
                   normal(2, 3, 19), normal(33), normal(33)]
    else:
        plain, options = functools.partial(torch_scan.ssd, chunk=64), ()
        tensors = [normal(2, 83, 2, 35), functional.softplus(normal(2, 83, 2)), -normal(2).exp(),
                   normal(2, 83, 33), normal(2, 83, 33)]
    found = []
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for compute in (function, plain):
            leaves = [tensor.to(device, copy=True).requires_grad_() for tensor in tensors]
            y = compute(*leaves, *options)
            found.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, expected in zip(*found, strict=True):
        error = float((ours - expected).norm() / expected.norm())
        if not error < 1e-4:
            raise RuntimeError(f"differs from plain PyTorch by {error:.1e} on {device}")


_SELECTIVE = {"reference": torch_scan.scan_by_loop, "torch": torch_scan.scan,
              "native": native_scan.scan, "mamba_ssm": _scan_mamba}
_SSD = {"reference": torch_scan.ssd_by_loop, "torch": torch_scan.ssd, "mamba_ssm": _ssd_mamba}
