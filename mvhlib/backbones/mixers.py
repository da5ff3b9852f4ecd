"""Token mixers: three state-space layers and attention.

All take and give `(B, N, D)`. What the recurrences need in full precision (the poles A, the time
steps, the scan's state) is computed in float32 under autocast too.

`MambaVisionMixer`    one scan from left to right beside a convolution, concatenated
`BidirectionalMamba`  one scan per direction, gated, summed (Vim, version 2)
`HydraMixer`          one quasi-separable matrix per head: both directions and a diagonal
`Attention`           softmax attention, the transformer's
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError
from mvhlib.backbones.scan import selective_scan, ssd

#: Range and floor of the time step that Mamba draws its bias from (Gu & Dao 2023, sec. 3.6).
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, left: int,
                   right: int) -> Tensor:
    """Convolve each channel of `x` `(B, N, D)` along N with its own kernel in `weight` `(D, 1, k)`.

    Output t reads inputs `t - left` to `t + right`, zeros beyond the ends.
    """
    if x.device.type == "cpu":
        # As an image one pixel high with channels last, `x` needs no transposition: 4 times
        # faster than conv1d.
        image = F.pad(x, (0, 0, left, right)).transpose(1, 2).unsqueeze(2)  # (B, D, 1, N+k-1)
        y = F.conv2d(image, weight.unsqueeze(2), bias, groups=weight.shape[0])
        return y.squeeze(2).transpose(1, 2)
    y = F.conv1d(F.pad(x.transpose(1, 2), (left, right)), weight, bias, groups=weight.shape[0])
    return y.transpose(1, 2)


def inverse_softplus_steps(n: int) -> Tensor:
    """Bias `(n,)` whose softplus is log-uniform in [DT_MIN, DT_MAX]."""
    dt = torch.exp(torch.rand(n) * math.log(DT_MAX / DT_MIN) + math.log(DT_MIN))
    dt = dt.clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))


def init_dt_proj(dt_proj: nn.Linear) -> None:
    """Mamba's own initialisation of the time-step projection, in place."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    with torch.no_grad():
        dt_proj.bias.copy_(inverse_softplus_steps(dt_proj.out_features))


def _real_poles(n_channels: int, d_state: int) -> Tensor:
    """`A_log` `(D, S)` with A = -1, ..., -S in every channel (S4D-Real)."""
    return torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)).repeat(n_channels, 1)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _negative(log: Tensor) -> Tensor:
    """`-exp(log)`, strictly negative and finite whatever is stored."""
    return -torch.exp(_wide(log).clamp(-80, 80))


def _check_directions(where: str, directions: int) -> None:
    if directions not in (1, 2):
        raise InputError(where, "directions", f"is {directions!r}", "choose 1 or 2")


class MambaVisionMixer(nn.Module):
    """A selective scan on one half of the channels, a convolution alone on the other.

    Parameters
    ----------
    dim
        Width of the tokens, D.
    d_state
        State size S.
    d_conv
        Kernel of the two convolutions; an even one is off-centre, (k - 1) // 2 to the left.
    expand
        Inner width over D; each branch has half of it.
    dt_bias_count
        How often the time-step bias enters: 2 as published (once in the projection, once in the
        scan), 1 as in Mamba.
    eigenvalues
        ``"real"``: A = -exp(A_log), -1 ... -S; ``"complex"``: A = -exp(A_log) + i A_imag, at
        -1/2 + i pi n (S4D-Lin), an ablation.
    directions
        1, as published; 2, an ablation without further parameters: the same scan also runs from
        right to left, and the mean of both is taken.
    scan_backend
        See `mvhlib.backbones.scan.selective_scan`.

    Notes
    -----
    As published, position t hears later tokens only through the convolution.
    Hatamizadeh & Kautz 2024 (MambaVision), sec. 3.2.
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2,
                 dt_bias_count: int = 2, eigenvalues: str = "real", directions: int = 1,
                 scan_backend: str = "auto"):
        super().__init__()
        if dt_bias_count not in (1, 2):
            raise InputError("MambaVisionMixer", "dt_bias_count", f"is {dt_bias_count}",
                             "choose 2 (as published) or 1")
        _check_directions("MambaVisionMixer", directions)
        if eigenvalues not in ("real", "complex"):
            raise InputError("MambaVisionMixer", "eigenvalues", f"is {eigenvalues!r}",
                             "choose real or complex")
        half = expand * dim // 2
        self.d_state, self.d_conv = d_state, d_conv
        self.dt_rank = math.ceil(dim / 16)
        self.dt_bias_count, self.scan_backend = dt_bias_count, scan_backend
        self.directions = directions
        self.in_proj = nn.Linear(dim, 2 * half, bias=False)
        self.conv1d_x = nn.Conv1d(half, half, d_conv, groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, d_conv, groups=half, bias=False)
        self.x_proj = nn.Linear(half, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, half)
        init_dt_proj(self.dt_proj)
        if eigenvalues == "real":
            self.A_log = nn.Parameter(_real_poles(half, d_state))
        else:
            self.A_log = nn.Parameter(torch.full((half, d_state), math.log(0.5)))
            self.A_imag = nn.Parameter(math.pi * torch.arange(d_state).float().repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.out_proj = nn.Linear(2 * half, dim, bias=False)

    @property
    def A(self) -> Tensor:
        """Poles in continuous time `(D, S)`; the real part is negative whatever is stored."""
        real = _negative(self.A_log)
        return torch.complex(real, _wide(self.A_imag)) if hasattr(self, "A_imag") else real

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Inputs of the scan and the other branch: u, time-step projection, B, C, z."""
        xz = self.in_proj(x)  # (B, N, D) -> (B, N, 2D')
        kernels = torch.cat([self.conv1d_x.weight, self.conv1d_z.weight])
        left = (self.d_conv - 1) // 2
        xz = F.silu(depthwise_conv(xz, kernels, None, left, self.d_conv - 1 - left))
        u, z = xz.chunk(2, dim=-1)
        dt, b, c = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        bias = self.dt_proj.bias if self.dt_bias_count == 2 else None
        return u, F.linear(dt, self.dt_proj.weight, bias), b, c, z

    def delta(self, x: Tensor) -> Tensor:
        """Time steps `(B, N, D)` that the mixer uses on its input `x`."""
        return F.softplus(_wide(self._branches(x)[1]) + _wide(self.dt_proj.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        u, dt, b, c, z = self._branches(x)
        # (B, N, D) -> (B, D, N) are views; the scan needs no contiguous memory.
        given = [t.transpose(1, 2) for t in (u, dt, b, c)]
        y = self._scan(*given)
        if self.directions == 2:
            y = (y + self._scan(*(t.flip(2) for t in given)).flip(2)) / 2
        return self.out_proj(torch.cat([y.transpose(1, 2), z], dim=-1))  # -> (B, N, D)

    def state_and_skip(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the scan's output on `x`: of its states, and of its skip path D."""
        u, dt, b, c = (t.transpose(1, 2) for t in self._branches(x)[:4])
        skip = u * self.D[:, None]
        return self._scan(u, dt, b, c) - skip, skip

    def _scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return selective_scan(u, dt, self.A, b, c, self.D, delta_bias=self.dt_proj.bias,
                              backend=self.scan_backend)


class BidirectionalMamba(nn.Module):
    """Vim's mixer, version 2: a Mamba in each direction that share their projections.

    Parameters
    ----------
    dim
        Width of the tokens, D.
    d_state, d_conv, expand
        State size S, kernel of the causal convolutions, inner width over D.
    divide
        Halve the sum of the two directions, as Vim-small does.
    directions
        2, as published; 1, an ablation: a plain Mamba, without the backward direction and its
        parameters.
    scan_backend
        See `mvhlib.backbones.scan.selective_scan`.

    Notes
    -----
    Zhu et al. 2024 (Vision Mamba), alg. 1. Here the time-step bias enters once.
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2,
                 divide: bool = True, directions: int = 2, scan_backend: str = "auto"):
        super().__init__()
        _check_directions("BidirectionalMamba", directions)
        inner = expand * dim
        self.d_state, self.d_conv = d_state, d_conv
        self.dt_rank = math.ceil(dim / 16)
        self.divide, self.scan_backend = divide, scan_backend
        self.directions = directions
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        ends = ("", "_b")[:directions]
        for suffix in ends:
            setattr(self, f"conv1d{suffix}", nn.Conv1d(inner, inner, d_conv, groups=inner))
            setattr(self, f"x_proj{suffix}",
                    nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False))
            dt_proj = nn.Linear(self.dt_rank, inner)
            init_dt_proj(dt_proj)
            setattr(self, f"dt_proj{suffix}", dt_proj)
        for suffix in ends:
            setattr(self, f"A{suffix}_log", nn.Parameter(_real_poles(inner, d_state)))
        for suffix in ends:
            setattr(self, f"D{suffix}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    @property
    def A(self) -> Tensor:
        """Poles of the forward direction `(D, S)`, negative whatever is stored."""
        return _negative(self.A_log)

    @property
    def A_b(self) -> Tensor:
        """Poles of the backward direction `(D, S)`."""
        return _negative(self.A_b_log)

    def _inputs(self, x: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs of one direction's scan from its sequence `x` `(B, N, D)`: u, dt, B, C."""
        conv, x_proj, dt_proj = (getattr(self, f"{name}{suffix}")
                                 for name in ("conv1d", "x_proj", "dt_proj"))
        u = F.silu(depthwise_conv(x, conv.weight, conv.bias, self.d_conv - 1, 0))
        dt, b, c = x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return u, F.linear(dt, dt_proj.weight), b, c

    def _scan(self, x: Tensor, suffix: str) -> Tensor:
        u, dt, b, c = self._inputs(x, suffix)
        poles, skip = (self.A, self.D) if suffix == "" else (self.A_b, self.D_b)
        u, dt, b, c = (t.transpose(1, 2) for t in (u, dt, b, c))
        y = selective_scan(u, dt, poles, b, c, skip, backend=self.scan_backend,
                           delta_bias=getattr(self, f"dt_proj{suffix}").bias)
        return y.transpose(1, 2)

    def state_and_skip(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the forward scan's output on `x`: of its states, and of its skip D."""
        sequence, _ = self.in_proj(x).chunk(2, dim=-1)
        skip = self._inputs(sequence, "")[0] * self.D
        return self._scan(sequence, "") - skip, skip

    def delta(self, x: Tensor, backward: bool = False) -> Tensor:
        """Time steps `(B, N, D)` of one direction, in the order of that direction."""
        sequence, _ = self.in_proj(x).chunk(2, dim=-1)
        suffix = "_b" if backward else ""
        dt = self._inputs(sequence.flip(1) if backward else sequence, suffix)[1]
        return F.softplus(_wide(dt) + _wide(getattr(self, f"dt_proj{suffix}").bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        sequence, z = self.in_proj(x).chunk(2, dim=-1)  # (B, N, D) -> 2 x (B, N, D')
        # The gate of the backward pass is flipped along with it, so one gate serves both.
        y = self._scan(sequence, "")
        if self.directions == 2:
            y = y + self._scan(sequence.flip(1), "_b").flip(1)
            y = y / 2 if self.divide else y
        return self.out_proj(y * F.silu(z))


class HydraMixer(nn.Module):
    """Hydra's quasi-separable mixer: one N x N matrix per head, never formed.

    Parameters
    ----------
    dim
        Width of the tokens, D.
    d_state, d_conv, expand
        State size S, kernel of the centred convolution (odd), inner width over D.
    headdim
        Channels per head; the heads are inner width / headdim.
    chunk
        Tokens per chunk of the recurrence, a matter of speed alone.
    scan_backend
        See `mvhlib.backbones.scan.ssd`.

    Notes
    -----
    Both directions run over the same tokens; their outputs are shifted by one token so that the
    diagonal belongs to neither and gets its own weight. Hence B comes from the source token and
    C from the target's neighbour. Hwang et al. 2024 (Hydra), sec. 3.
    """

    def __init__(self, dim: int, d_state: int = 64, d_conv: int = 7, expand: int = 2,
                 headdim: int = 64, chunk: int = 64, scan_backend: str = "auto"):
        super().__init__()
        inner = expand * dim
        if inner % headdim or d_conv % 2 == 0:
            raise InputError("HydraMixer", "headdim, d_conv", f"headdim {headdim} must divide "
                             f"{inner}, and d_conv {d_conv} must be odd",
                             "change headdim, expand or d_conv")
        self.d_state, self.d_conv, self.headdim = d_state, d_conv, headdim
        self.inner, self.n_heads = inner, inner // headdim
        self.chunk, self.scan_backend = chunk, scan_backend
        n_conv = inner + 4 * d_state
        self.in_proj = nn.Linear(dim, inner + n_conv + 2 * self.n_heads, bias=False)
        self.conv1d = nn.Conv1d(n_conv, n_conv, d_conv, groups=n_conv)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.zeros(self.n_heads))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.fc_D = nn.Linear(inner, self.n_heads, bias=False)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the bias of the time steps, as Mamba does."""
        self.dt_bias.copy_(inverse_softplus_steps(self.n_heads))

    @property
    def A(self) -> Tensor:
        """One pole per head `(H,)`, shared by both directions, negative whatever is stored."""
        return _negative(self.A_log)

    def delta(self, x: Tensor) -> Tensor:
        """Time steps `(B, N, 2 H)`: those of the forward, then of the backward direction."""
        dt = self.in_proj(x)[..., -2 * self.n_heads:]
        return F.softplus(_wide(dt) + _wide(self.dt_bias).repeat(2))

    def state_and_skip(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of what enters the norm: of the states of both directions, and of D."""
        return self._parts(x)[:2]

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        states, skip, z = self._parts(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self.norm((states + skip).flatten(2))
        return self.out_proj(y.to(z.dtype) * F.silu(z))  # (B, N, D') -> (B, N, D)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the states and of the diagonal `(B, N, H, P)`, and the gate's input `(B, N, D')`."""
        n_batch, n, _ = x.shape
        s, heads = self.d_state, self.n_heads
        z, xbc, dt = self.in_proj(x).split(
            [self.inner, self.inner + 4 * s, 2 * heads], dim=-1)
        pad = self.d_conv // 2
        xbc = F.silu(depthwise_conv(xbc, self.conv1d.weight, self.conv1d.bias, pad, pad))
        values, forth, back = xbc.split([self.inner, 2 * s, 2 * s], dim=-1)
        diagonal = F.linear(values, self.fc_D.weight, self.D.to(values.dtype))  # (B, N, H)

        with torch.autocast(x.device.type, enabled=False):
            dt = F.softplus(_wide(dt) + _wide(self.dt_bias).repeat(2))
            v = _wide(values).view(n_batch, n, heads, self.headdim)

            def both(first: Tensor, second: Tensor) -> Tensor:
                # The backward direction rides along as a second half of the batch.
                return torch.cat([first, second.flip(1)])

            bc = both(_wide(forth), _wide(back))
            y = ssd(both(v, v), both(dt[..., :heads], dt[..., heads:]), self.A,
                    bc[..., :s], bc[..., s:], chunk=self.chunk, backend=self.scan_backend)
            y = F.pad(y[:, :-1], (0, 0, 0, 0, 1, 0))  # token t takes the state of t - 1
            return y[:n_batch] + y[n_batch:].flip(1), v * _wide(diagonal)[..., None], z


class Attention(nn.Module):
    """Multi-head softmax attention with biases, without dropout or normalised queries.

    Parameters
    ----------
    dim
        Width of the tokens, D.
    num_heads
        Heads; must divide D.
    """

    def __init__(self, dim: int, num_heads: int = 6):
        super().__init__()
        if dim % num_heads:
            raise InputError("Attention", "num_heads", f"{num_heads} does not divide {dim}",
                             "choose a divisor of the width")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        n_batch, n, dim = x.shape
        qkv = self.qkv(x).view(n_batch, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, N, 3, H, D/H) -> 3 x (B, H, N, D/H)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n_batch, n, dim))
