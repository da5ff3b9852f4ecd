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

import ctypes
import functools
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mvhlib.artifacts import InputError, sha256_file, sha256_of

BACKENDS = ("auto", "torch", "native", "mamba_ssm", "triton", "reference")
ENVIRONMENT = "MVH_SCAN_BACKEND"

#: Steps between stored states of the torch backend; a backward pass recomputes what lies between.
CHECKPOINT = 8

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
    if _native()[0] is not None:
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
        elif not unfit["native"] and _native()[0] is not None:
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
    if asked == "native" and operation == "selective_scan" and (reason := _native()[1]):
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
    if operation == "selective_scan" and chosen == "torch" and _native.cache_info().currsize:
        reasons.append(f"native: {_native()[1]}" if _native()[1] else "")
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


# ---- reference ----


def _step_sizes(delta, delta_bias, delta_softplus):
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return functional.softplus(delta) if delta_softplus else delta


def _real_output(y: torch.Tensor) -> torch.Tensor:
    return 2 * y.real if y.is_complex() else y


def _scan_reference(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """Decay and input for all tokens first, `(B, D, L, N)`, then the loop indexes them.

    This is how the published loop goes about it, and why its backward pass costs L squared: the
    gradient of each index is a zero-filled tensor of the full size.
    """
    dt = _step_sizes(delta, delta_bias, delta_softplus)
    decay = torch.exp(dt[..., None] * A[:, None, :])  # (B, D, L, N)
    drive = (dt * u)[..., None] * B.transpose(1, 2)[:, None]  # (B, D, L, N)
    state = torch.zeros_like(decay[:, :, 0] * drive[:, :, 0])  # (B, D, N)
    outputs = []
    for t in range(u.shape[-1]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    y = _real_output(torch.stack(outputs, dim=-1))  # (B, D, L)
    return y if D is None else y + D[:, None] * u


def _ssd_reference(x, dt, A, B, C, chunk):
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1])  # (B, H, P, N)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None, :]
        state = decay * state + drive
        outputs.append((state * C[:, t, None, None, :]).sum(-1))
    return torch.stack(outputs, dim=1)  # (B, L, H, P)


# ---- torch ----


def _scan_torch(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """The loop with channels last: with the state as `(B, N, D)` every step works on long rows."""
    if any(tensor.is_complex() for tensor in (A, B, C)):
        return _scan_unrolled(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return _Checkpointed.apply(
        u, delta, A, B, C, D, delta_bias, delta_softplus, torch.is_grad_enabled())


def _scan_unrolled(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """Autograd does the rest; unbinding once spares it a full-size gradient for every index."""
    dt = _step_sizes(delta, delta_bias, delta_softplus)
    drive = dt * u
    rates = A.t()  # (N, D)
    state = rates.new_zeros(u.shape[0], *rates.shape)  # (B, N, D)
    outputs = []
    for step, push, b, c in zip(*(tensor.unbind(-1) for tensor in (dt, drive, B, C)), strict=True):
        state = torch.exp(step[:, None] * rates) * state + b[:, :, None] * push[:, None]
        outputs.append((state * c[:, :, None]).sum(1))
    y = _real_output(torch.stack(outputs, dim=-1))  # (B, D, L)
    return y if D is None else y + D[:, None] * u


class _Checkpointed(torch.autograd.Function):
    """Real scan that keeps one state in `CHECKPOINT` steps and recomputes the others.

    Step size, decay and drive are made for a few tokens at a time, while they are in the cache.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus, recording):
        batch, channels, length = u.shape
        keep = recording and any(ctx.needs_input_grad)
        spans = _spans(length)
        rates = A.t().contiguous()  # (N, D)
        kept = u.new_empty(len(spans) if keep else 0, batch, *rates.shape)
        state = u.new_zeros(batch, *rates.shape)  # (B, N, D)
        decay = u.new_empty(min(CHECKPOINT, length), batch, *rates.shape)
        y = u.new_empty(batch, length, channels)
        sources = [tensor.transpose(1, 2).contiguous() for tensor in (u, delta, B, C)]
        for i, span in enumerate(spans):
            if keep:
                kept[i] = state
            u_, delta_, B_, C_ = (_time_first(tensor, span) for tensor in sources)
            dt = _step_sizes(delta_.mT, delta_bias, delta_softplus).mT
            a = _decays(dt, rates, decay)
            drive, y_ = dt * u_, torch.empty_like(u_)  # (K, B, D)
            for a_k, b, c, push, out in zip(a, B_, C_, drive, y_, strict=True):
                state.mul_(a_k).addcmul_(b[:, :, None], push[:, None])
                torch.bmm(c[:, None], state, out=out[:, None])
            y[:, span] = (y_ if D is None else y_.addcmul_(D, u_)).transpose(0, 1)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, kept)
        ctx.delta_softplus = delta_softplus
        return y.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        with torch.autocast(dy.device.type, enabled=False):
            gradients = _Checkpointed._gradients(ctx, dy)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return (*(gradient if need else None for gradient, need in needed), None, None)

    @staticmethod
    def _gradients(ctx, dy):
        u, delta, A, B, C, D, delta_bias, kept = ctx.saved_tensors
        needs_A, needs_B, needs_C = ctx.needs_input_grad[2:5]
        batch, channels, length = u.shape
        rates = A.t().contiguous()  # (N, D)
        states = rates.shape[0]
        du, ddelta = (u.new_empty(batch, length, channels) for _ in range(2))
        dB, dC = (u.new_empty(batch, length, states) for _ in range(2))
        drates, dD, dbias = torch.zeros_like(rates), u.new_zeros(channels), u.new_zeros(channels)
        size = (min(CHECKPOINT, length), batch, states, channels)
        decay, decayed, state, adjoint = (u.new_empty(size) for _ in range(4))
        carry = u.new_zeros(batch, states, channels)
        sources = [tensor.transpose(1, 2).contiguous() for tensor in (u, delta, B, C, dy)]
        for i, span in reversed(list(enumerate(_spans(length)))):
            u_, delta_, B_, C_, dy_ = (_time_first(tensor, span) for tensor in sources)
            count = len(u_)
            if delta_bias is not None:
                delta_ += delta_bias
            dt = functional.softplus(delta_) if ctx.delta_softplus else delta_
            drive = dt * u_
            a = _decays(dt, rates, decay)
            # decayed[k] = a[k] h[k-1] and h[k] = decayed[k] + drive: both are needed below.
            before, h, g = decayed[:count], state[:count], adjoint[:count]
            previous = kept[i]
            for a_k, b, push, old, new in zip(a, B_, drive, before, h, strict=True):
                torch.mul(a_k, previous, out=old)
                previous = torch.addcmul(old, b[:, :, None], push[:, None], out=new)
            for k in reversed(range(count)):
                torch.addcmul(carry, C_[k, :, :, None], dy_[k, :, None], out=g[k])
                torch.mul(g[k], a[k], out=carry)
            # Rows times matrices: the column form is many times slower on a CPU.
            if needs_C:
                dC[:, span] = _rows_times(dy_, h.mT).transpose(0, 1)
            if needs_B:
                dB[:, span] = _rows_times(drive, g.mT).transpose(0, 1)
            ddrive = _rows_times(B_, g)  # (K, B, D)
            exponent = before.mul_(g)  # gradient to dt * A
            ddt = torch.mul(exponent, rates, out=a).sum(2).addcmul_(ddrive, u_)
            if needs_A:
                drates += exponent.mul_(dt[:, :, None]).sum((0, 1))
            if ctx.delta_softplus:
                ddt *= torch.sigmoid(delta_)
            ddrive *= dt
            if D is not None:
                dD += (dy_ * u_).sum((0, 1))
                ddrive.addcmul_(D, dy_)
            if delta_bias is not None:
                dbias += ddt.sum((0, 1))
            du[:, span], ddelta[:, span] = ddrive.transpose(0, 1), ddt.transpose(0, 1)
        return (du.mT, ddelta.mT, drates.t(), dB.mT, dC.mT, dD, dbias)


def _spans(length: int) -> list[slice]:
    return [slice(at, min(at + CHECKPOINT, length)) for at in range(0, length, CHECKPOINT)]


def _time_first(tensor, span):
    """A copy of a few tokens, `(B, L, ...)` -> `(K, B, ...)`."""
    return tensor[:, span].transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _decays(dt, rates, out):
    """`exp(dt * A)` of a few steps, `(K, B, N, D)`."""
    return torch.mul(dt[:, :, None], rates, out=out[: len(dt)]).exp_()


def _rows_times(rows, matrices):
    """`(K, B, I)` times `(K, B, I, J)` -> `(K, B, J)`."""
    product = torch.bmm(rows.flatten(0, 1)[:, None], matrices.flatten(0, 1))
    return product.view(*rows.shape[:2], -1)


def _ssd_torch(x, dt, A, B, C, chunk):
    batch, length, heads, width = x.shape
    # Chunks of equal length: 65 tokens in chunks of at most 64 are two of 33, not two of 64.
    chunk = math.ceil(length / math.ceil(length / chunk))
    padding = -length % chunk
    if padding:
        # A step of zero neither decays the state nor adds to it.
        x = functional.pad(x, (0, 0, 0, 0, 0, padding))
        dt = functional.pad(dt, (0, 0, 0, padding))
        B, C = (functional.pad(tensor, (0, 0, 0, padding)) for tensor in (B, C))
    count = (length + padding) // chunk
    drive = (dt[..., None] * x).view(batch, count, chunk, heads, width).transpose(2, 3)
    dt = dt.view(batch, count, chunk, heads).transpose(2, 3)  # (B, K, H, c)
    B, C = (tensor.reshape(batch, count, chunk, -1) for tensor in (B, C))  # (B, K, c, N)

    cumulated = (dt * A[:, None]).cumsum(-1)  # (B, K, H, c)
    difference = cumulated[..., :, None] - cumulated[..., None, :]  # (B, K, H, c, c)
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    decay = difference.masked_fill(future, -torch.inf).exp()
    attention = (C @ B.mT)[:, :, None] * decay
    y = attention @ drive  # (B, K, H, c, P)

    if count > 1:
        to_end = (cumulated[..., -1:] - cumulated).exp()  # (B, K, H, c)
        added = (drive * to_end[..., None]).mT @ B[:, :, None]  # (B, K, H, P, N)
        whole = cumulated[..., -1].exp()[..., None, None]  # (B, K, H, 1, 1)
        entering = [torch.zeros_like(added[:, 0])]
        for k in range(count - 1):
            entering.append(whole[:, k] * entering[-1] + added[:, k])
        state = torch.stack(entering, dim=1)
        y = y + (C[:, :, None] @ state.mT) * cumulated.exp()[..., None]
    return y.transpose(2, 3).reshape(batch, count * chunk, heads, width)[:, :length]


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
        plain, options = _scan_torch, (True,)
        tensors = [normal(2, 33, 19), normal(2, 33, 19), -normal(33, 3).exp(), normal(2, 3, 19),
                   normal(2, 3, 19), normal(33), normal(33)]
    else:
        plain, options = functools.partial(_ssd_torch, chunk=64), ()
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


# ---- native ----


class _Source(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("b", ctypes.c_int64), ("d", ctypes.c_int64),
                ("l", ctypes.c_int64)]


class _Scan(ctypes.Structure):
    """Mirrors `Scan` in `_scan.c`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "batch", "channels", "length", "states", "groups", "softplus", "threads",
            "kind")),
        *((name, _Source) for name in ("u", "delta", "B", "C", "dy")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias")),
        *((name, _Source) for name in ("y", "du", "ddelta")),
        *((name, ctypes.c_void_p) for name in ("checkpoints", "dA", "dB", "dC", "dD", "dbias")),
    ]


#: What is complex, as `_scan.c` has it.
_REAL, _POLES, _ALL = range(3)


def _kind(A: torch.Tensor, B: torch.Tensor) -> int:
    if not A.is_complex():
        return _REAL
    return _ALL if B.is_complex() else _POLES


def _strided(tensor: torch.Tensor) -> _Source:
    """Address and strides, these in floats: a complex number is two."""
    width = 2 if tensor.is_complex() else 1
    return _Source(tensor.data_ptr(), *(width * stride for stride in tensor.stride()))


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _scan_native(u, delta, A, B, C, D, delta_bias, delta_softplus):
    if B.is_complex() or C.is_complex():  # the kernel has both complex or none, and A with them
        A, B, C = (tensor.to(torch.complex64) for tensor in (A, B, C))
    # Signs and conjugates that PyTorch puts off are not in memory yet.
    u, delta, A, B, C, D, delta_bias = (
        None if tensor is None else tensor.resolve_conj().resolve_neg()
        for tensor in (u, delta, A, B, C, D, delta_bias))
    # Inside a Function gradients are off in any case, so it has to be told whether they are wanted.
    return _NativeScan.apply(
        u, delta, A, B, C, D, delta_bias, delta_softplus, torch.is_grad_enabled())


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus, recording):
        library, _ = _native()
        A, D, delta_bias = (None if t is None else t.contiguous() for t in (A, D, delta_bias))
        y = torch.empty_like(u)
        checkpoints = None
        if recording and any(ctx.needs_input_grad):
            blocks, chunks = _blocks(library, u)
            checkpoints = A.new_empty(
                u.shape[0], blocks, chunks, A.shape[1], library.scan_lanes())
        call = _describe(u, delta, A, B, C, D, delta_bias, delta_softplus)
        call.y, call.checkpoints = _strided(y), _address(checkpoints)
        _run(library.scan_forward, call)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, checkpoints)
        ctx.delta_softplus = delta_softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        library, _ = _native()
        u, delta, A, B, C, D, delta_bias, checkpoints = ctx.saved_tensors
        batch, channels, length = u.shape
        states, lanes = A.shape[1], library.scan_lanes()
        blocks, _ = _blocks(library, u)
        # Enough pieces for many cores; by shapes alone, so that threads do not change the sums.
        groups = min(blocks, -(-_TASKS // batch))
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        parts, bc_parts = (2 if tensor.is_complex() else 1 for tensor in (A, B))
        dA = u.new_empty(batch, blocks, parts, states, lanes)
        dB, dC = (u.new_empty(groups, batch, bc_parts, states, length) for _ in range(2))
        dD, dbias = (u.new_empty(batch, blocks, lanes) for _ in range(2))

        call = _describe(u, delta, A, B, C, D, delta_bias, ctx.delta_softplus)
        call.groups, call.checkpoints = groups, _address(checkpoints)
        dy = dy.resolve_neg()
        call.dy, call.du, call.ddelta = _strided(dy), _strided(du), _strided(ddelta)
        call.dA, call.dB, call.dC = _address(dA), _address(dB), _address(dC)
        call.dD, call.dbias = _address(dD), _address(dbias)
        _run(library.scan_backward, call)

        def channelwise(lane_sums):
            return lane_sums.sum(0).flatten()[:channels]

        needed = ctx.needs_input_grad
        return (
            du if needed[0] else None,
            ddelta if needed[1] else None,
            _joined(dA.sum(0)).mT.reshape(-1, states)[:channels] if needed[2] else None,
            _joined(dB.sum(0)) if needed[3] else None,
            _joined(dC.sum(0)) if needed[4] else None,
            channelwise(dD) if needed[5] else None,
            channelwise(dbias) if needed[6] else None,
            None,
            None,
        )


#: The backward pass is cut into at least this many pieces (where there are so many).
_TASKS = 32


def _joined(parts: torch.Tensor) -> torch.Tensor:
    """The number that axis 1 holds in one or, real and imaginary, two parts."""
    return torch.complex(*parts.unbind(1)) if parts.shape[1] == 2 else parts.squeeze(1)


def _blocks(library, u) -> tuple[int, int]:
    """Blocks of channels, and chunks of tokens."""
    return -(-u.shape[1] // library.scan_lanes()), -(-u.shape[2] // library.scan_chunk())


def _describe(u, delta, A, B, C, D, delta_bias, delta_softplus) -> _Scan:
    batch, channels, length = u.shape
    return _Scan(
        batch=batch, channels=channels, length=length, states=A.shape[1], groups=1,
        softplus=int(delta_softplus), threads=torch.get_num_threads(), kind=_kind(A, B),
        u=_strided(u), delta=_strided(delta), B=_strided(B), C=_strided(C),
        A=_address(A), D=_address(D), bias=_address(delta_bias),
    )


def _run(function, call: _Scan) -> None:
    if function(ctypes.byref(call)):
        raise MemoryError("selective_scan: no memory for the scratch space of the native kernel")


@functools.cache
def _native():
    """The compiled kernel, or None and the reason why there is none."""
    try:
        return _load(), ""
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, str(error)


def _load() -> ctypes.CDLL:
    source = Path(__file__).with_name("_scan.c")
    named = os.environ.get("CC")
    candidates = [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    compiler = next((command for command in candidates if shutil.which(command[0])), None)
    if compiler is None:
        raise RuntimeError(f"no C compiler found (looked for {named or 'cc, gcc, clang'})")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
    runtimes = sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*"))
    key = sha256_of(source.read_text(), compiler, version.stdout, _flags(),
                    [path.name for path in runtimes], _processor())
    folder = _cache_folder()
    # The name ends in a hash of the content: to load a damaged library kills the process.
    for path in sorted(folder.glob(f"scan-{key[:16]}-*.so")):
        if path.stem.endswith(sha256_file(path)[:16]):
            try:
                return _bind(path)
            except (OSError, AttributeError) as error:
                _log.info("%s does not load, compiling anew: %s", path, error)
        else:
            path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        built = Path(temporary) / "scan.so"
        _compile(compiler, source, built, runtimes)
        path = folder / f"scan-{key[:16]}-{sha256_file(built)[:16]}.so"
        os.replace(built, path)
    return _bind(path)


def _flags() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    tune = ["-march=native", "-mprefer-vector-width=512"] if x86 else ["-mcpu=native"]
    # Not -ffast-math: in a shared library it makes the whole process flush denormals.
    return ["-O3", *tune, "-fno-math-errno", "-fno-trapping-math", "-fPIC"]


def _compile(compiler: list[str], source: Path, target: Path, runtimes: list[Path]) -> None:
    """Build with PyTorch's own OpenMP, else the compiler's, else without threads.

    Two OpenMP runtimes in one process keep two pools of threads, and the one that waits spins on
    the cores that the other needs.
    """
    unit = str(target.with_suffix(".o"))
    shared = ["-shared", "-o", str(target)]
    attempts = [[[*_flags(), "-fopenmp", "-c", str(source), "-o", unit],
                 [*shared, unit, str(runtime)]] for runtime in runtimes[:1]]
    attempts += [[[*_flags(), *openmp, str(source), *shared]] for openmp in (["-fopenmp"], [])]
    for steps in attempts:
        results = []
        for step in steps:
            results.append(subprocess.run([*compiler, *step], capture_output=True, text=True,
                                          timeout=300))
            if results[-1].returncode:
                break
        else:
            return
    lines = results[-1].stderr.strip().splitlines() or ["no message"]
    said = next((line for line in lines if "error" in line), lines[-1])
    raise RuntimeError(f"{compiler[0]} failed: {said}")


def _bind(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("scan_lanes", "scan_chunk"):
        getattr(library, name).restype = ctypes.c_int64
    for name in ("scan_forward", "scan_backward"):
        getattr(library, name).argtypes = [ctypes.POINTER(_Scan)]
    return library


def _processor() -> str:
    """What the compiler's ``native`` means here: the features of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def _cache_folder() -> Path:
    """``MVH_CACHE``, else ``.cache/mvhlib`` in the clone, else a private temporary folder."""
    if named := os.environ.get("MVH_CACHE"):
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    home = os.environ.get("MVH_HOME")
    above = [p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file()]
    clone = Path(home) if home else next(iter(above), None)
    if clone is not None:
        folder = clone / ".cache" / "mvhlib"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
        except OSError:
            pass
    # A library is code: load it from a folder of this user's only.
    folder = Path(tempfile.gettempdir()) / f"mvhlib-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        folder = Path(tempfile.mkdtemp(prefix="mvhlib-"))
    return folder


_SELECTIVE = {"reference": _scan_reference, "torch": _scan_torch, "native": _scan_native,
              "mamba_ssm": _scan_mamba}
_SSD = {"reference": _ssd_reference, "torch": _ssd_torch, "mamba_ssm": _ssd_mamba}
