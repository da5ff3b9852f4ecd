"""Selective scan on a GPU in Triton, forward and backward; loaded only where a GPU is seen.

For every sequence, channel d and state n, with `p = dt u` and the decay `a = exp(dt A)`::

    (1)  dt = softplus(delta + bias)
    (2)  h[t] = a[t] h[t-1] + p[t] B[t],                 h[-1] = 0
    (3)  y[t] = sum_n C[n, t] h[n, t] + D u[t]

(Gu and Dao, arXiv 2312.00752, equation 2a with their simplified B); where A, B and C are complex,
twice the real part of the sum. With `G[t]` the gradient to `h[t]`, the bar the conjugate (none
where everything is real) and `m` 2 for complex numbers and 1 for real ones, going back in time::

    (4)  G[t]  = m dy[t] conj(C[t]) + conj(a[t+1]) G[t+1]
    (5)  dC[t] = sum_d m dy[t] conj(h[t]),               dB[t] = sum_d p[t] G[t]
    (6)  dp[t] = sum_n Re(conj(B[t]) G[t])
    (7)  E[t]  = conj(a[t] h[t-1]) G[t], the gradient to dt A
    (8)  dA    = sum_t dt[t] E[t]
    (9)  ddt[t] = dp[t] u[t] + sum_n Re(conj(A) E[t]),   ddelta = ddt sigmoid(delta + bias)
    (10) du[t] = dp[t] dt[t] + D dy[t]

One program goes through time with `BLOCK_D` channels of one sequence, a channel to a thread, and
with up to `BLOCK_N` states of each in that thread's registers: the sum over states in (3), (6) and
(9) then needs no other thread. Where there are more states, further programs take them, and their
parts of y, du and ddelta are added. The forward pass keeps the state before every `EVERY`-th token;
the backward pass recomputes the tokens between from there, forth with (2) and back with (4). All is
float32 whatever the tensors are; every sum has an order that shapes alone decide, so that a run can
be repeated to the bit. Tensors come with strides, hence need not be copied.

`TRITON_INTERPRET=1` runs the same programs on a CPU, for tests.
"""

import contextlib
import os

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

#: Tokens between kept states.
EVERY = 16
#: Channels of a program: one warp, so that nothing waits for another one.
BLOCK_D = 32
#: States of a program, at most: real ones, complex ones. A thread of a GPU has 255 registers, and
#: the backward pass of so many just fits.
MOST_STATES = (16, 8)


@triton.jit
def _time_step(x, SOFTPLUS: tl.constexpr):
    """Step of (1) and its derivative; the logarithm by atanh, so that small steps keep digits."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    dt = x
    if SOFTPLUS:
        z = tl.exp(-tl.abs(x))
        slope = tl.where(x >= 0, slope, z) / (1.0 + z)
        s = z / (2.0 + z)
        s2 = s * s
        q = 0.2802446186542511 * s2 + 0.27999141812324524
        q = q * s2 + 0.4002169966697693
        q = q * s2 + 0.6666641235351562
        dt = tl.maximum(x, 0.0) + (2.0 * s + s * s2 * q)
    return dt, slope


@triton.jit
def _decay(dt, rate, rate_i, COMPLEX: tl.constexpr):
    """`exp(dt A)`, real and imaginary part."""
    size = tl.exp(dt[None, :] * rate)
    turned = size
    if COMPLEX:
        angle = dt[None, :] * rate_i
        turned = size * tl.sin(angle)
        size = size * tl.cos(angle)
    return size, turned


@triton.jit
def _forward(u, delta, A, B, C, skip, bias, y, kept, batch, channels, length, states,
             u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l,
             SOFTPLUS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_BIAS: tl.constexpr,
             COMPLEX: tl.constexpr, KEEP: tl.constexpr, EVERY: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    blocks = tl.cdiv(channels, BLOCK_D)
    spans = tl.cdiv(length, EVERY)
    sequence = tl.cast(tl.program_id(0) // blocks, tl.int64)
    part = tl.program_id(1)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = part * BLOCK_N + tl.arange(0, BLOCK_N)
    is_d, is_n = d < channels, n < states
    is_state = is_n[:, None] & is_d[None, :]
    place = n[:, None] * channels + d[None, :]

    rate = tl.load(A + place, mask=is_state, other=0.0)
    rate_i = rate
    if COMPLEX:
        rate_i = tl.load(A + states * channels + place, mask=is_state, other=0.0)
    shift, through = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + d, mask=is_d, other=0.0)
    if HAS_SKIP:  # added once, by the first part of the states
        through = tl.load(skip + d, mask=is_d & (part == 0), other=0.0)

    u_at, delta_at = u + sequence * u_b + d * u_d, delta + sequence * delta_b + d * delta_d
    B_at, C_at = B + sequence * B_b + n * B_n, C + sequence * C_b + n * C_n
    y_at = y + (part * batch + sequence) * length * channels + d
    kept_at = kept + sequence * spans * states * channels
    kept_i = kept_at + tl.cast(batch, tl.int64) * spans * states * channels
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    h_i = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)

    # Each token is read one turn before it is used: a warp has nothing else to do meanwhile.
    next_u = tl.load(u_at, mask=is_d, other=0.0)
    next_delta = tl.load(delta_at, mask=is_d, other=0.0)
    next_b, next_c = tl.load(B_at, mask=is_n, other=0.0), tl.load(C_at, mask=is_n, other=0.0)
    next_bi, next_ci = next_b, next_c
    if COMPLEX:
        next_bi = tl.load(B_at + 1, mask=is_n, other=0.0)
        next_ci = tl.load(C_at + 1, mask=is_n, other=0.0)
    for span in range(spans):
        if KEEP:
            tl.store(kept_at + place, h, mask=is_state)
            kept_at += states * channels
            if COMPLEX:
                tl.store(kept_i + place, h_i, mask=is_state)
                kept_i += states * channels
        for t in range(span * EVERY, tl.minimum((span + 1) * EVERY, length)):
            u_t, step = next_u.to(tl.float32), next_delta.to(tl.float32)
            b, c = next_b.to(tl.float32), next_c.to(tl.float32)
            bi, ci = next_bi.to(tl.float32), next_ci.to(tl.float32)
            more = t + 1 < length
            u_at += u_l
            delta_at += delta_l
            B_at += B_l
            C_at += C_l
            next_u = tl.load(u_at, mask=is_d & more, other=0.0)
            next_delta = tl.load(delta_at, mask=is_d & more, other=0.0)
            next_b = tl.load(B_at, mask=is_n & more, other=0.0)
            next_c = tl.load(C_at, mask=is_n & more, other=0.0)
            dt, _ = _time_step(step + shift, SOFTPLUS)  # (1)
            a, a_i = _decay(dt, rate, rate_i, COMPLEX)
            push = (dt * u_t)[None, :]
            if COMPLEX:
                next_bi = tl.load(B_at + 1, mask=is_n & more, other=0.0)
                next_ci = tl.load(C_at + 1, mask=is_n & more, other=0.0)
                turned = a * h_i + a_i * h
                h = a * h - a_i * h_i + b[:, None] * push  # (2)
                h_i = turned + bi[:, None] * push
                total = 2.0 * tl.sum(c[:, None] * h - ci[:, None] * h_i, axis=0)
            else:
                h = a * h + b[:, None] * push  # (2)
                total = tl.sum(c[:, None] * h, axis=0)
            tl.store(y_at, total + through * u_t, mask=is_d)  # (3)
            y_at += channels


@triton.jit
def _backward(u, delta, A, B, C, skip, bias, dy, kept, scratch,
              du, ddelta, dA, dB, dC, dskip, dbias, batch, channels, length, states,
              u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l,
              dy_b, dy_d, dy_l,
              SOFTPLUS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_BIAS: tl.constexpr,
              COMPLEX: tl.constexpr, EVERY: tl.constexpr, BLOCK_N: tl.constexpr,
              BLOCK_D: tl.constexpr):
    blocks = tl.cdiv(channels, BLOCK_D)
    spans = tl.cdiv(length, EVERY)
    sequence = tl.cast(tl.program_id(0) // blocks, tl.int64)
    block, part = tl.program_id(0) % blocks, tl.program_id(1)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = part * BLOCK_N + tl.arange(0, BLOCK_N)
    is_d, is_n = d < channels, n < states
    is_state = is_n[:, None] & is_d[None, :]
    numbers = 2 if COMPLEX else 1  # a complex number is two floats
    place = n[:, None] * channels + d[None, :]

    rate = tl.load(A + place, mask=is_state, other=0.0)
    rate_i = rate
    if COMPLEX:
        rate_i = tl.load(A + states * channels + place, mask=is_state, other=0.0)
    shift, through = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + d, mask=is_d, other=0.0)
    if HAS_SKIP:
        through = tl.load(skip + d, mask=is_d & (part == 0), other=0.0)

    u_row, delta_row = u + sequence * u_b + d * u_d, delta + sequence * delta_b + d * delta_d
    B_row, C_row = B + sequence * B_b + n * B_n, C + sequence * C_b + n * C_n
    dy_row = dy + sequence * dy_b + d * dy_d
    first = (part * batch + sequence) * length * channels
    du_row, ddelta_row = du + first + d, ddelta + first + d
    per_token = (block * batch + sequence) * length * states
    dB_row, dC_row = dB + (per_token + n) * numbers, dC + (per_token + n) * numbers
    kept_row = kept + sequence * spans * states * channels
    kept_row_i = kept_row + tl.cast(batch, tl.int64) * spans * states * channels
    # States before each token of one span, of this program alone.
    own = tl.cast(tl.program_id(1), tl.int64) * tl.num_programs(0) + tl.program_id(0)
    cell = tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    scratch_row = scratch + own * (EVERY * BLOCK_N * BLOCK_D * numbers) + cell
    half = EVERY * BLOCK_N * BLOCK_D

    g = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    g_i = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_A = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_A_i = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_skip, sum_bias = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    m = 2.0 if COMPLEX else 1.0
    for done in range(spans):
        span = spans - 1 - done
        start = span * EVERY
        count = tl.minimum(EVERY, length - start)
        h = tl.load(kept_row + tl.cast(span, tl.int64) * states * channels + place, mask=is_state,
                    other=0.0)
        h_i = h
        if COMPLEX:
            h_i = tl.load(kept_row_i + tl.cast(span, tl.int64) * states * channels + place,
                          mask=is_state, other=0.0)
        for k in range(count):
            t = tl.cast(start + k, tl.int64)
            u_t = tl.load(u_row + t * u_l, mask=is_d, other=0.0).to(tl.float32)
            step = tl.load(delta_row + t * delta_l, mask=is_d, other=0.0).to(tl.float32)
            dy_t = tl.load(dy_row + t * dy_l, mask=is_d, other=0.0).to(tl.float32)
            b = tl.load(B_row + t * B_l, mask=is_n, other=0.0).to(tl.float32)
            dt, _ = _time_step(step + shift, SOFTPLUS)
            a, a_i = _decay(dt, rate, rate_i, COMPLEX)
            push = (dt * u_t)[None, :]
            tl.store(scratch_row + k * (BLOCK_N * BLOCK_D), h)
            if COMPLEX:
                tl.store(scratch_row + half + k * (BLOCK_N * BLOCK_D), h_i)
                bi = tl.load(B_row + t * B_l + 1, mask=is_n, other=0.0).to(tl.float32)
                turned = a * h_i + a_i * h
                h = a * h - a_i * h_i + b[:, None] * push  # (2)
                h_i = turned + bi[:, None] * push
                tl.store(dC_row + t * (states * numbers) + 1,
                         tl.sum(-m * dy_t[None, :] * h_i, axis=1), mask=is_n)
            else:
                h = a * h + b[:, None] * push  # (2)
            tl.store(dC_row + t * (states * numbers),
                     tl.sum(m * dy_t[None, :] * h, axis=1), mask=is_n)  # (5)
        tl.debug_barrier()  # what one thread stored another may load
        for k in range(count):
            i = count - 1 - k
            t = tl.cast(start + i, tl.int64)
            u_t = tl.load(u_row + t * u_l, mask=is_d, other=0.0).to(tl.float32)
            step = tl.load(delta_row + t * delta_l, mask=is_d, other=0.0).to(tl.float32)
            dy_t = tl.load(dy_row + t * dy_l, mask=is_d, other=0.0).to(tl.float32)
            b = tl.load(B_row + t * B_l, mask=is_n, other=0.0).to(tl.float32)
            c = tl.load(C_row + t * C_l, mask=is_n, other=0.0).to(tl.float32)
            before = tl.load(scratch_row + i * (BLOCK_N * BLOCK_D))
            dt, slope = _time_step(step + shift, SOFTPLUS)
            a, a_i = _decay(dt, rate, rate_i, COMPLEX)
            push = (dt * u_t)[None, :]
            g += m * c[:, None] * dy_t[None, :]  # (4)
            if COMPLEX:
                bi = tl.load(B_row + t * B_l + 1, mask=is_n, other=0.0).to(tl.float32)
                ci = tl.load(C_row + t * C_l + 1, mask=is_n, other=0.0).to(tl.float32)
                before_i = tl.load(scratch_row + half + i * (BLOCK_N * BLOCK_D))
                g_i -= m * ci[:, None] * dy_t[None, :]
                tl.store(dB_row + t * (states * numbers) + 1, tl.sum(g_i * push, axis=1),
                         mask=is_n)
                tl.store(dB_row + t * (states * numbers), tl.sum(g * push, axis=1), mask=is_n)
                dp = tl.sum(b[:, None] * g + bi[:, None] * g_i, axis=0)  # (6)
                back = a * g + a_i * g_i  # conj(a) G, the real part first
                g_i = a * g_i - a_i * g
                g = back
                e = before * g + before_i * g_i  # (7)
                e_i = before * g_i - before_i * g
                sum_A += dt[None, :] * e  # (8)
                sum_A_i += dt[None, :] * e_i
                by_decay = tl.sum(rate * e + rate_i * e_i, axis=0)
            else:
                tl.store(dB_row + t * (states * numbers), tl.sum(g * push, axis=1),
                         mask=is_n)  # (5)
                dp = tl.sum(b[:, None] * g, axis=0)  # (6)
                g = a * g
                e = before * g  # (7)
                sum_A += dt[None, :] * e  # (8)
                by_decay = tl.sum(rate * e, axis=0)
            change = (dp * u_t + by_decay) * slope  # (9)
            tl.store(ddelta_row + t * channels, change, mask=is_d)
            tl.store(du_row + t * channels, dp * dt + through * dy_t, mask=is_d)  # (10)
            sum_bias += change
            sum_skip += dy_t * u_t
        tl.debug_barrier()
    dA_at = dA + sequence * states * channels * numbers + place
    tl.store(dA_at, sum_A, mask=is_state)
    if COMPLEX:
        tl.store(dA_at + states * channels, sum_A_i, mask=is_state)
    per_channel = (part * batch + sequence) * channels + d
    if HAS_SKIP:
        tl.store(dskip + per_channel, sum_skip, mask=is_d & (part == 0))
    if HAS_BIAS:
        tl.store(dbias + per_channel, sum_bias, mask=is_d)


def is_interpreted() -> bool:
    """True if Triton's interpreter runs the programs, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def scan(u, delta, A, B, C, D, delta_bias, delta_softplus) -> torch.Tensor:
    """`mvhlib.backbones.scan.selective_scan` of checked tensors in any of the half precisions.

    Returns
    -------
    `(B, D, L)` in the dtype of `u`, its memory `(B, L, D)`.
    """
    if any(t.is_complex() for t in (A, B, C)):
        A, B, C = (t.to(torch.complex64) for t in (A, B, C))
    else:
        A = A.float()
    D, delta_bias = (None if t is None else t.float() for t in (D, delta_bias))
    return _Scan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus, torch.is_grad_enabled())


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus, recording):
        batch, channels, length = u.shape
        D, delta_bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
        # Channels last, as in everything that threads read together: (N, D), complex (2, N, D).
        A = A.mT.contiguous() if not A.is_complex() else torch.stack([A.mT.real, A.mT.imag])
        B, C = B.resolve_conj(), C.resolve_conj()
        given = (u, delta, A, B, C, D, delta_bias)
        sizes = _sizes(*given, delta_softplus)
        parts = triton.cdiv(A.shape[-2], sizes["BLOCK_N"])
        y = u.new_empty(parts, batch, length, channels,
                        dtype=u.dtype if parts == 1 else torch.float32)
        keep = recording and any(ctx.needs_input_grad)
        spans = triton.cdiv(length, EVERY)
        kept = torch.empty((1 + sizes["COMPLEX"], batch, spans, A.shape[-2], channels)
                           if keep else (1,), dtype=torch.float32, device=u.device)
        with on(u.device):
            _forward[_grid(u, parts)](*_pointers(*given), y, kept, *_shape(u, A),
                                      *_strides(u, delta, B, C), **sizes, KEEP=keep, num_warps=1)
        ctx.save_for_backward(*given, kept)
        ctx.sizes, ctx.parts = sizes, parts
        return _together(y, u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *given, kept = ctx.saved_tensors
        u, delta, A, B, C, D, delta_bias = given
        (batch, channels, length), states = u.shape, A.shape[-2]
        parts, blocks = ctx.parts, triton.cdiv(channels, BLOCK_D)

        def empty(*shape):
            return torch.empty(shape, dtype=torch.float32, device=u.device)

        numbers = (2,) if A.ndim == 3 else ()
        scratch = empty(parts * batch * blocks, *numbers, EVERY, ctx.sizes["BLOCK_N"], BLOCK_D)
        whole = parts == 1
        du, ddelta = (torch.empty(parts, batch, length, channels, device=u.device,
                                  dtype=t.dtype if whole else torch.float32) for t in (u, delta))
        dA = empty(batch, *numbers, states, channels)
        dB, dC = (empty(blocks, batch, length, states, *numbers) for _ in range(2))
        dskip, dbias = empty(batch, channels), empty(parts, batch, channels)
        with on(u.device):
            _backward[_grid(u, parts)](
                *_pointers(*given), dy, kept, scratch, du, ddelta, dA, dB, dC, dskip, dbias,
                *_shape(u, A), *_strides(u, delta, B, C, dy), **ctx.sizes, num_warps=1)
        dA, dB, dC = (t.sum(0) for t in (dA, dB, dC))
        if numbers:
            dA = torch.complex(*dA)
            dB, dC = (torch.view_as_complex(t) for t in (dB, dC))
        gradients = (
            _together(du, u.dtype), _together(ddelta, delta.dtype), dA.mT, dB.mT.to(B.dtype),
            dC.mT.to(C.dtype), dskip.sum(0), dbias.sum((0, 1)))
        return (*(gradient if needed else None for gradient, needed in zip(
            gradients, ctx.needs_input_grad, strict=False)), None, None)


def _sizes(u, delta, A, B, C, D, delta_bias, delta_softplus) -> dict:
    """Constants that a program is compiled for."""
    is_complex = A.ndim == 3
    most = MOST_STATES[is_complex]
    return {"SOFTPLUS": bool(delta_softplus), "HAS_SKIP": D is not None,
            "HAS_BIAS": delta_bias is not None, "COMPLEX": is_complex, "EVERY": EVERY,
            "BLOCK_N": min(most, triton.next_power_of_2(A.shape[-2])), "BLOCK_D": BLOCK_D}


def _grid(u, parts: int) -> tuple[int, int]:
    return u.shape[0] * triton.cdiv(u.shape[1], BLOCK_D), parts


def _shape(u, A) -> tuple[int, ...]:
    """Batch, channels, length, states."""
    return (*u.shape, A.shape[-2])


def _pointers(u, delta, A, B, C, D, delta_bias) -> list[torch.Tensor]:
    """Tensors as programs take them: complex ones as pairs of floats, a stand-in for none."""
    return [u if t is None else torch.view_as_real(t) if t.is_complex() else t
            for t in (u, delta, A, B, C, D, delta_bias)]


def _strides(*tensors) -> list[int]:
    """Strides in floats."""
    return [stride * (2 if t.is_complex() else 1) for t in tensors for stride in t.stride()]


def _together(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`(parts, B, L, D)` to `(B, D, L)`."""
    whole = parts[0] if len(parts) == 1 else parts.sum(0)
    return whole.to(dtype).transpose(1, 2)


def on(device: torch.device):
    """Programs start on the current GPU, whatever tensors they are given."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
