"""Mamba-2's recurrence on a GPU in Triton, forward and backward; loaded only where a GPU is seen.

For every sequence and head, with the scalar log decay `l = dt A` and the row `p = dt x` of P
numbers, the state `S` is a P x N matrix::

    (1)  S[t] = exp(l[t]) S[t-1] + p[t] B[t]',       S[-1] = 0
    (2)  y[t] = S[t] C[t]

(Dao and Gu, arXiv 2405.21060, section 6). A chunk of `CHUNK` tokens is computed at once. With `s`
the sum of `l` from the chunk's first token to t, `T` its last token, `S0` the state before it, and
`K[t, r] = exp(s[t] - s[r])` where r <= t and zero where r > t::

    (3)  y[t] = sum_r K[t, r] (C[t] . B[r]) p[r] + exp(s[t]) S0 C[t]
    (4)  S[T] = exp(s[T]) S0 + sum_r exp(s[T] - s[r]) p[r] B[r]'

With `G` the gradient to S[T], going back from chunk to chunk, G = 0 after the last one::

    (5)  dp[r] = sum_t K[t, r] (C[t] . B[r]) dy[t] + exp(s[T] - s[r]) G B[r]
    (6)  dC[t] = sum_r K[t, r] (dy[t] . p[r]) B[r] + exp(s[t]) S0' dy[t]
    (7)  dB[r] = sum_t K[t, r] (dy[t] . p[r]) C[t] + exp(s[T] - s[r]) G' p[r]
    (8)  dl[j] = the sum of what goes from a token before j to one from j on, through that decay:
                 sum over r < j <= t of K[t, r] (C[t] . B[r]) (dy[t] . p[r])
                 + sum over t >= j of dy[t] . exp(s[t]) S0 C[t]
                 + sum over r < j of p[r] . exp(s[T] - s[r]) G B[r]  +  exp(s[T]) <S0, G>
    (9)  dx = dt dp,     ddt = dp . x + A dl,     dA = sum of dt dl
    (10) G of the chunk before = exp(s[T]) G + sum_t exp(s[t]) dy[t] C[t]'

(8) has no term of a token with itself, which would cancel, and leave its rounding, where the decay
forgets quickly. No exponent is positive where `A < 0`.

One program takes `BLOCK_P` rows of one head's state through time, all its columns, hence at most
`mvhlib.backbones.scan.SSD_STATES` of them. The rows do not meet in (1) to (4); of dB, dC, ddt and
dA the parts of all programs are added. The forward pass keeps no state. The backward pass goes
forth once more and keeps the state before every `EVERY`-th chunk, then back, and recomputes from
there. It is two programs because one would need more than the 255 registers of a thread. All is
float32 whatever the tensors are, products included: on tensor cores each is three in TF32, which
together have float32's digits. Every sum has an order that shapes alone decide, so that a run can
be repeated to the bit. Tensors come with strides, hence need not be copied.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from mvhlib.backbones.triton_scan import on

#: Tokens of a chunk.
CHUNK = 16
#: Chunks between kept states.
EVERY = 4
#: Numbers of the state that a program holds, at most, and as many of its gradient: they stay in
#: registers.
STATE = 4096
#: How a program is compiled.
OPTIONS = {"num_warps": 4, "num_stages": 1}
#: Tensor cores multiply no smaller matrices.
SMALLEST = 16


@triton.jit
def _product(left, right):
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _numbers(at, places, is_t):
    """A number of each token of a chunk as float32."""
    return tl.load(at + places, mask=is_t, other=0.0).to(tl.float32)


@triton.jit
def _rows(at, i, by_token, columns, by_column, is_t, is_column):
    """A row of each token of a chunk as float32; places within a chunk need no 64 bits."""
    places = i[:, None] * by_token + columns[None, :] * by_column
    return tl.load(at + places, mask=is_t[:, None] & is_column, other=0.0).to(tl.float32)


@triton.jit
def _sums(log_decay, CHUNK: tl.constexpr):
    """Sums `s` of a chunk, what follows each token, and the whole: s[t], s[T] - s[t], s[T]."""
    i = tl.arange(0, CHUNK)
    so_far = tl.sum(tl.where(i[:, None] <= i[None, :], log_decay[:, None], 0.0), axis=0)
    behind = tl.sum(tl.where(i[:, None] > i[None, :], log_decay[:, None], 0.0), axis=0)
    return so_far, behind, tl.sum(log_decay, axis=0)


@triton.jit
def _between(so_far, CHUNK: tl.constexpr):
    """`K[t, r]` of a chunk."""
    i = tl.arange(0, CHUNK)
    exponent = so_far[:, None] - so_far[None, :]
    return tl.exp(tl.where(i[:, None] >= i[None, :], exponent, float("-inf")))


@triton.jit
def _after(state, b, push, behind, whole):
    """(4)"""
    added = _product(tl.trans(b), tl.exp(behind)[:, None] * push)
    return tl.exp(whole) * state + added


@triton.jit
def _own(heads):
    """Number of a program's head among those of all sequences, its sequence, and its head."""
    own = tl.cast(tl.program_id(0), tl.int64)
    return own, own // heads, own % heads


@triton.jit
def _places(width, states, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr):
    """Tokens of a chunk, columns and rows of a state, and which of the two there are."""
    n = tl.arange(0, BLOCK_N)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    return tl.arange(0, CHUNK), n, p, (n < states)[None, :], (p < width)[None, :]


@triton.jit
def _begin(x, dt, B, C, sequence, head, x_b, x_h, dt_b, dt_h, B_b, C_b):
    """Where the first token of a sequence and head stands in each tensor."""
    return (x + sequence * x_b + head * x_h, dt + sequence * dt_b + head * dt_h,
            B + sequence * B_b, C + sequence * C_b)


@triton.jit
def _forward(x, dt, A, B, C, y, length, heads, width, states,
             x_b, x_l, x_h, x_p, dt_b, dt_l, dt_h, B_b, B_l, B_n, C_b, C_l, C_n,
             CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    own, sequence, head = _own(heads)
    i, n, p, is_n, is_p = _places(width, states, CHUNK, BLOCK_N, BLOCK_P)
    x_at, dt_at, B_at, C_at = _begin(x, dt, B, C, sequence, head, x_b, x_h, dt_b, dt_h, B_b, C_b)
    rate = tl.load(A + head)
    y_at = y + (sequence * length * heads + head) * width

    state = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)  # S0'
    for chunk in range(tl.cdiv(length, CHUNK)):
        start = tl.cast(chunk, tl.int64) * CHUNK
        is_t = start + i < length  # behind the end steps are zero: no decay, nothing is added
        step = _numbers(dt_at + start * dt_l, i * dt_l, is_t)
        push = step[:, None] * _rows(x_at + start * x_l, i, x_l, p, x_p, is_t, is_p)
        b = _rows(B_at + start * B_l, i, B_l, n, B_n, is_t, is_n)
        c = _rows(C_at + start * C_l, i, C_l, n, C_n, is_t, is_n)
        so_far, behind, whole = _sums(step * rate, CHUNK)
        pairs = _between(so_far, CHUNK) * _product(c, tl.trans(b))
        out = _product(pairs, push) + tl.exp(so_far)[:, None] * _product(c, state)  # (3)
        tl.store(y_at + start * heads * width + (i[:, None] * (heads * width) + p[None, :]), out,
                 mask=is_t[:, None] & is_p)
        state = _after(state, b, push, behind, whole)


@triton.jit
def _back_to_C(x, dt, A, B, C, dy, kept, flow, dC, length, heads, width, states,
               x_b, x_l, x_h, x_p, dt_b, dt_l, dt_h, B_b, B_l, B_n, C_b, C_l, C_n,
               dy_b, dy_l, dy_h, dy_p,
               CHUNK: tl.constexpr, EVERY: tl.constexpr, BLOCK_P: tl.constexpr,
               BLOCK_N: tl.constexpr):
    """Forth in time: (6), the first two sums of (8), and every `EVERY`-th state."""
    own, sequence, head = _own(heads)
    i, n, p, is_n, is_p = _places(width, states, CHUNK, BLOCK_N, BLOCK_P)
    x_at, dt_at, B_at, C_at = _begin(x, dt, B, C, sequence, head, x_b, x_h, dt_b, dt_h, B_b, C_b)
    rate = tl.load(A + head)
    part = tl.cast(tl.program_id(1), tl.int64) * tl.num_programs(0) + own
    dy_at = dy + sequence * dy_b + head * dy_h
    flow_at, dC_at = flow + part * length, dC + part * length * states
    kept_at = kept + own * tl.cdiv(length, CHUNK * EVERY) * states * width

    earlier = tl.where(i[:, None] < i[None, :], 1.0, 0.0)  # [r, j]: r < j
    state = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    for chunk in range(tl.cdiv(length, CHUNK)):
        if chunk % EVERY == 0:
            tl.store(kept_at + (n[:, None] * width + p[None, :]), state,
                     mask=(n < states)[:, None] & is_p)
            kept_at += states * width
        start = tl.cast(chunk, tl.int64) * CHUNK
        is_t = start + i < length
        step = _numbers(dt_at + start * dt_l, i * dt_l, is_t)
        so_far, behind, whole = _sums(step * rate, CHUNK)
        out = _rows(dy_at + start * dy_l, i, dy_l, p, dy_p, is_t, is_p)
        by_state = tl.exp(so_far)[:, None] * _product(out, tl.trans(state))
        push = step[:, None] * _rows(x_at + start * x_l, i, x_l, p, x_p, is_t, is_p)
        b = _rows(B_at + start * B_l, i, B_l, n, B_n, is_t, is_n)
        state = _after(state, b, push, behind, whole)
        weights = _between(so_far, CHUNK) * _product(out, tl.trans(push))
        tl.store(dC_at + start * states + (i[:, None] * states + n[None, :]),
                 _product(weights, b) + by_state, mask=is_t[:, None] & is_n)  # (6)
        c = _rows(C_at + start * C_l, i, C_l, n, C_n, is_t, is_n)
        pairs = weights * _product(c, tl.trans(b))
        into = _product(pairs, earlier) + tl.sum(c * by_state, axis=1)[:, None]  # [t, j]
        tl.store(flow_at + start + i, tl.sum(tl.where(i[:, None] >= i[None, :], into, 0.0), axis=0),
                 mask=is_t)  # (8), where S0 and what is before j go to t


@triton.jit
def _back_to_x(x, dt, A, B, C, dy, kept, flow, dx, ddt, dA, dB, length, heads, width, states,
               x_b, x_l, x_h, x_p, dt_b, dt_l, dt_h, B_b, B_l, B_n, C_b, C_l, C_n,
               dy_b, dy_l, dy_h, dy_p,
               CHUNK: tl.constexpr, EVERY: tl.constexpr, BLOCK_P: tl.constexpr,
               BLOCK_N: tl.constexpr):
    """Back in time: (5), (7), the rest of (8), (9) and (10)."""
    own, sequence, head = _own(heads)
    i, n, p, is_n, is_p = _places(width, states, CHUNK, BLOCK_N, BLOCK_P)
    x_at, dt_at, B_at, C_at = _begin(x, dt, B, C, sequence, head, x_b, x_h, dt_b, dt_h, B_b, C_b)
    rate = tl.load(A + head)
    part = tl.cast(tl.program_id(1), tl.int64) * tl.num_programs(0) + own
    dy_at = dy + sequence * dy_b + head * dy_h
    dx_at = dx + (sequence * length * heads + head) * width
    flow_at, ddt_at, dB_at = flow + part * length, ddt + part * length, dB + part * length * states
    kept_at = kept + own * tl.cdiv(length, CHUNK * EVERY) * states * width

    earlier = tl.where(i[:, None] < i[None, :], 1.0, 0.0)  # [r, j]: r < j
    g = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)  # G'
    sum_A = 0.0
    chunks = tl.cdiv(length, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        span = tl.cast(chunk // EVERY, tl.int64)
        state = tl.load(kept_at + span * states * width + (n[:, None] * width + p[None, :]),
                        mask=(n < states)[:, None] & is_p, other=0.0)
        for before in range(chunk // EVERY * EVERY, chunk):  # whole chunks, all of them
            start = tl.cast(before, tl.int64) * CHUNK
            step = _numbers(dt_at + start * dt_l, i * dt_l, i >= 0)
            push = step[:, None] * _rows(x_at + start * x_l, i, x_l, p, x_p, i >= 0, is_p)
            b = _rows(B_at + start * B_l, i, B_l, n, B_n, i >= 0, is_n)
            so_far, behind, whole = _sums(step * rate, CHUNK)
            state = _after(state, b, push, behind, whole)
        through = tl.sum(tl.sum(state * g, axis=1), axis=0)

        start = tl.cast(chunk, tl.int64) * CHUNK
        is_t = start + i < length
        step = _numbers(dt_at + start * dt_l, i * dt_l, is_t)
        so_far, behind, whole = _sums(step * rate, CHUNK)
        decay = _between(so_far, CHUNK)
        source = _rows(x_at + start * x_l, i, x_l, p, x_p, is_t, is_p)
        push = step[:, None] * source
        out = _rows(dy_at + start * dy_l, i, dy_l, p, dy_p, is_t, is_p)
        c = _rows(C_at + start * C_l, i, C_l, n, C_n, is_t, is_n)
        weights = decay * _product(out, tl.trans(push))
        d_b = tl.exp(behind)[:, None] * _product(push, tl.trans(g))
        d_b += _product(tl.trans(weights), c)  # (7)
        tl.store(dB_at + start * states + (i[:, None] * states + n[None, :]), d_b,
                 mask=is_t[:, None] & is_n)
        b = _rows(B_at + start * B_l, i, B_l, n, B_n, is_t, is_n)
        by_next = tl.exp(behind)[:, None] * _product(b, g)
        d_push = _product(tl.trans(decay * _product(c, tl.trans(b))), out) + by_next  # (5)
        tl.store(dx_at + start * heads * width + (i[:, None] * (heads * width) + p[None, :]),
                 step[:, None] * d_push, mask=is_t[:, None] & is_p)  # (9)
        d_log = _numbers(flow_at + start, i, is_t) + tl.exp(whole) * through
        d_log += tl.sum(earlier * tl.sum(push * by_next, axis=1)[:, None], axis=0)  # (8)
        sum_A += tl.sum(step * d_log, axis=0)
        tl.store(ddt_at + start + i, tl.sum(d_push * source, axis=1) + rate * d_log,
                 mask=is_t)  # (9)
        g = tl.exp(whole) * g + _product(tl.trans(c), tl.exp(so_far)[:, None] * out)  # (10)
    tl.store(dA + part, sum_A)


def ssd(x, dt, A, B, C) -> torch.Tensor:
    """`mvhlib.backbones.scan.ssd` of checked tensors in any of the half precisions."""
    return _Ssd.apply(x, dt, A.float().contiguous(), B, C)


class _Ssd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C):
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        sizes = _sizes(x, B)
        with on(x.device):
            _forward[_grid(x, sizes)](x, dt, A, B, C, y, *x.shape[1:], B.shape[-1],
                                      *_strides(x, dt, B, C), **sizes, **OPTIONS)
        ctx.save_for_backward(x, dt, A, B, C)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, dt, A, B, C = given = ctx.saved_tensors
        batch, length, heads, width = x.shape
        states = B.shape[-1]
        sizes = _sizes(x, B) | {"EVERY": EVERY}
        programs, parts = grid = _grid(x, sizes)

        def empty(*shape, dtype=torch.float32):
            return torch.empty(shape, dtype=dtype, device=x.device)

        kept = empty(programs, triton.cdiv(length, CHUNK * EVERY), states, width)
        flow, ddt = (empty(parts, programs, length) for _ in range(2))
        dx, dA = empty(*x.shape, dtype=x.dtype), empty(parts, batch, heads)
        dB, dC = (empty(parts, batch, heads, length, states) for _ in range(2))
        shape = (length, heads, width, states, *_strides(x, dt, B, C, dy))
        with on(x.device):
            _back_to_C[grid](*given, dy, kept, flow, dC, *shape, **sizes, **OPTIONS)
            _back_to_x[grid](*given, dy, kept, flow, dx, ddt, dA, dB, *shape, **sizes, **OPTIONS)
        ddt = ddt.sum(0).view(batch, heads, length).transpose(1, 2)
        gradients = (dx, ddt.to(dt.dtype), dA.sum((0, 1)), dB.sum((0, 2)).to(B.dtype),
                     dC.sum((0, 2)).to(C.dtype))
        return tuple(gradient if needed else None for gradient, needed in zip(
            gradients, ctx.needs_input_grad, strict=True))


def _sizes(x: torch.Tensor, B: torch.Tensor) -> dict[str, int]:
    """Constants that a program is compiled for."""
    block = max(SMALLEST, triton.next_power_of_2(B.shape[-1]))
    return {"CHUNK": CHUNK, "BLOCK_N": block,
            "BLOCK_P": max(SMALLEST, min(triton.next_power_of_2(x.shape[-1]), STATE // block))}


def _grid(x: torch.Tensor, sizes: dict[str, int]) -> tuple[int, int]:
    """Programs: a head of a sequence, and a block of its rows."""
    return x.shape[0] * x.shape[2], triton.cdiv(x.shape[3], sizes["BLOCK_P"])


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()]
