"""Both recurrences in PyTorch alone: the loops as published, and faster ways to the same numbers.

Arguments and axes are those of `mvhlib.backbones.scan`, which checks them.
"""

import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

#: Steps between stored states; a backward pass recomputes what lies between.
CHECKPOINT = 8


def _step_sizes(delta, delta_bias, delta_softplus):
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return functional.softplus(delta) if delta_softplus else delta


def _real_output(y: torch.Tensor) -> torch.Tensor:
    return 2 * y.real if y.is_complex() else y


def scan_by_loop(u, delta, A, B, C, D, delta_bias, delta_softplus):
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


def ssd_by_loop(x, dt, A, B, C, chunk):
    """Mamba-2's recurrence token by token; `chunk` is not used."""
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1])  # (B, H, P, N)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None, :]
        state = decay * state + drive
        outputs.append((state * C[:, t, None, None, :]).sum(-1))
    return torch.stack(outputs, dim=1)  # (B, L, H, P)


# ---- torch ----


def scan(u, delta, A, B, C, D, delta_bias, delta_softplus):
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


def ssd(x, dt, A, B, C, chunk):
    """Mamba-2's recurrence in chunks: masked attention inside, the state between them."""
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
