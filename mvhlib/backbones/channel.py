"""Channel mixers: the transformer's MLP and EinFFT, which works on the spectrum.

EinFFT (Patro & Agneeswaran 2024, SiMBA, sec. 3.2) is called a channel mixer, but its Fourier
transform runs over tokens as well as over channel blocks, so it mixes tokens too: it is neither
permutation- nor shift-equivariant. With `F` the unitary 2-D transform over (token, block) and
`W1, W2` one complex matrix per block, it computes

    y = Re F^-1 shrink(W2 relu(W1 F x + b1) + b2),

`relu` and the soft threshold acting on real and imaginary parts separately. The imaginary part
of the result, about half of its energy at initialisation, is dropped as published.

On a CPU the published formulation is bound by strided copies and by a Fourier transform of prime
length (257 tokens). Here every product is one real matrix product per block, and the transform
is a product as well: because `x` is real, only half of its spectrum needs to be computed, and
the map back to real tokens is exactly the transpose of the map forth.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError

#: Above this number of tokens the fast Fourier transform beats the matrix product.
LONGEST_PRODUCT = 1024
#: Axes of `(B, N, blocks, C)` that each `transform` of EinFFT runs over.
TRANSFORMED = {"both": (1, 2), "token": (1,), "block": (2,)}


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them.

    Parameters
    ----------
    dim
        Width of the tokens, D.
    ratio
        Hidden width over D.
    """

    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`."""
        return self.fc2(F.gelu(self.fc1(x)))


@lru_cache(maxsize=32)
def _transforms(n_tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn folded tokens into the independent half of their spectrum.

    With m = (N - 1) // 2, rows and columns of the cosines, `(N - m, N - m)`, are 1..m followed by
    the indices that are their own mirror (0, and N/2 where N is even); of the sines, `(m, m)`,
    they are 1..m. Both are symmetric. Scaled so that the transform over tokens and four blocks
    is unitary.
    """
    # Outside inference mode, since a cached inference tensor could never enter a training step.
    with torch.inference_mode(False), torch.no_grad():
        m = (n_tokens - 1) // 2
        own = [0] if n_tokens % 2 else [0, n_tokens // 2]
        index = torch.tensor([*range(1, m + 1), *own])
        # Reduced modulo N in integers: the angle of a large product would lose digits.
        angle = 2 * math.pi / n_tokens * (index[:, None] * index % n_tokens).double()
        scale = 0.5 / math.sqrt(n_tokens)
        return tuple((wave * scale).to(device=device, dtype=dtype)
                     for wave in (angle.cos(), angle[:m, :m].sin()))


def _across_blocks(x: Tensor) -> Tensor:
    """Real `(B, N, 4, C)` to `(4, B, N, C)`, the transform over the four blocks in real terms.

    Blocks 0 and 2 become s and d, which are real, blocks 1 and 3 become p - iq and p + iq.
    """
    x0, x1, x2, x3 = x.unbind(2)
    even, odd = x0 + x2, x1 + x3
    blocks = x.new_empty(4, x.shape[0], x.shape[1], x.shape[3])
    torch.add(even, odd, out=blocks[0])
    torch.sub(even, odd, out=blocks[1])
    torch.sub(x0, x2, out=blocks[2])
    torch.sub(x1, x3, out=blocks[3])
    return blocks


def _back_across_blocks(blocks: Tensor) -> Tensor:
    """The transpose of `_across_blocks`: `(4, B, N, C)` to `(B, N, 4, C)`."""
    s, d, p, q = blocks.unbind(0)
    even, odd = s + d, s - d
    x = blocks.new_empty(*s.shape[:2], 4, s.shape[2])
    torch.add(even, p, out=x[:, :, 0])
    torch.add(odd, q, out=x[:, :, 1])
    torch.sub(even, p, out=x[:, :, 2])
    torch.sub(odd, q, out=x[:, :, 3])
    return x


def _wave_product(waves: Tensor, blocks: Tensor) -> Tensor:
    """`waves` `(K, K)` times each of `blocks` `(4, B, K, C)`."""
    _, n_batch, n, width = blocks.shape
    product = torch.bmm(waves.expand(4 * n_batch, -1, -1), blocks.view(4 * n_batch, n, width))
    return product.view_as(blocks)


def _to_spectrum(x: Tensor) -> Tensor:
    """Real `(B, N, 4, C)` to the spectrum `(4, B, N, 2, C)`, real and imaginary part.

    Frequencies stand in the order 1..m, own mirrors, -1..-m, which the mixer does not mind
    because its weights do not depend on the token frequency.
    """
    n_batch, n, _, c = x.shape
    m = (n - 1) // 2
    plus, own, minus = slice(0, m), slice(m, n - m), slice(n - m, n)
    cosines, sines = _transforms(n, x.device, x.dtype)
    # Token t and its mirror N - t share a cosine and differ in the sign of their sine.
    head, tail = x[:, 1:m + 1], x[:, n - m:].flip(1)
    folded = x.new_empty(n_batch, n - m, 4, c)
    torch.add(head, tail, out=folded[:, :m])
    folded[:, m] = x[:, 0]
    if n % 2 == 0:
        folded[:, m + 1] = x[:, n // 2]
    cos = _wave_product(cosines, _across_blocks(folded))
    sin = _wave_product(sines, _across_blocks(head - tail))
    cos, self_ = cos[:, :, :m], cos[:, :, m:]

    z = x.new_empty(4, n_batch, n, 2, c)
    for block, wave in ((0, 0), (2, 1)):  # real signals: mirrored frequencies are conjugate
        real, imaginary = z[block, :, :, 0], z[block, :, :, 1]
        real[:, plus], real[:, own], real[:, minus] = cos[wave], self_[wave], cos[wave]
        imaginary[:, own] = 0
        imaginary[:, minus] = sin[wave]
        torch.neg(sin[wave], out=imaginary[:, plus])
    first, third = z[1], z[3]
    torch.sub(cos[2], sin[3], out=first[:, plus, 0])
    third[:, minus, 0] = first[:, plus, 0]
    torch.add(cos[2], sin[3], out=first[:, minus, 0])
    third[:, plus, 0] = first[:, minus, 0]
    torch.add(sin[2], cos[3], out=third[:, minus, 1])
    torch.neg(third[:, minus, 1], out=first[:, plus, 1])
    torch.sub(cos[3], sin[2], out=third[:, plus, 1])
    torch.neg(third[:, plus, 1], out=first[:, minus, 1])
    first[:, own, 0] = self_[2]
    third[:, own, 0] = self_[2]
    third[:, own, 1] = self_[3]
    torch.neg(self_[3], out=first[:, own, 1])
    return z


def _from_spectrum(z: Tensor) -> Tensor:
    """The transpose of `_to_spectrum`, which is the real part of the inverse transform."""
    _, n_batch, n, _, c = z.shape
    m = (n - 1) // 2
    plus, own, minus = slice(0, m), slice(m, n - m), slice(n - m, n)
    cos, sin = z.new_empty(4, n_batch, n - m, c), z.new_empty(4, n_batch, m, c)
    for block, wave in ((0, 0), (2, 1)):
        real, imaginary = z[block, :, :, 0], z[block, :, :, 1]
        torch.add(real[:, plus], real[:, minus], out=cos[wave, :, :m])
        cos[wave, :, m:] = real[:, own]
        torch.sub(imaginary[:, minus], imaginary[:, plus], out=sin[wave])
    first, third = z[1], z[3]
    same = first[:, plus, 0] + third[:, minus, 0]
    other = first[:, minus, 0] + third[:, plus, 0]
    torch.add(same, other, out=cos[2, :, :m])
    torch.sub(other, same, out=sin[3])
    same = third[:, minus, 1] - first[:, plus, 1]
    other = third[:, plus, 1] - first[:, minus, 1]
    torch.sub(same, other, out=sin[2])
    torch.add(same, other, out=cos[3, :, :m])
    torch.add(first[:, own, 0], third[:, own, 0], out=cos[2, :, m:])
    torch.sub(third[:, own, 1], first[:, own, 1], out=cos[3, :, m:])

    cosines, sines = _transforms(n, z.device, z.dtype)
    folded = _back_across_blocks(_wave_product(cosines, cos))
    odd = _back_across_blocks(_wave_product(sines, sin))
    x = z.new_empty(n_batch, n, 4, c)
    torch.add(folded[:, :m], odd, out=x[:, 1:m + 1])
    x[:, n - m:] = (folded[:, :m] - odd).flip(1)
    x[:, 0] = folded[:, m]
    if n % 2 == 0:
        x[:, n // 2] = folded[:, m + 1]
    return x


class _Spectrum(torch.autograd.Function):
    """`_to_spectrum`, whose gradient is its transpose."""

    @staticmethod
    def forward(ctx, x):
        return _to_spectrum(x)

    @staticmethod
    def backward(ctx, gradient):
        return _Tokens.apply(gradient.contiguous())


class _Tokens(torch.autograd.Function):
    """`_from_spectrum`, whose gradient is its transpose."""

    @staticmethod
    def forward(ctx, z):
        return _from_spectrum(z)

    @staticmethod
    def backward(ctx, gradient):
        return _Spectrum.apply(gradient.contiguous())


class EinFFT(nn.Module):
    """Block-wise complex MLP on the spectrum over tokens and channel blocks.

    Parameters
    ----------
    dim
        Width of the tokens, D.
    n_blocks
        Channel blocks, D / C of them; each has its own pair of complex matrices.
    threshold
        Soft threshold lambda on real and imaginary parts.
    formulation
        ``"product"``: real matrix products throughout; ``"fft"``: `torch.fft` and complex
        arithmetic, as the equation is written. Equal to rounding; the second is the oracle.
    transform
        ``"both"``: over tokens and blocks, as published. Two ablations, always by `torch.fft`:
        ``"token"``: over tokens alone; ``"block"``: over blocks alone, so that no token hears
        another.

    Notes
    -----
    Computes in float32 (float64 for float64 input) whatever the autocast: half-precision
    transforms do not exist for 257 tokens, and the published layer forces float32 as well.
    """

    def __init__(self, dim: int, n_blocks: int = 4, threshold: float = 0.01,
                 formulation: str = "product", transform: str = "both"):
        super().__init__()
        if dim % n_blocks:
            raise InputError("EinFFT", "n_blocks", f"{n_blocks} does not divide width {dim}",
                             "choose a divisor of the width")
        if formulation not in ("product", "fft") or transform not in TRANSFORMED:
            raise InputError("EinFFT", "formulation, transform", f"{formulation!r}, {transform!r}",
                             f"choose product or fft, and one of {', '.join(TRANSFORMED)}")
        self.n_blocks, self.threshold = n_blocks, threshold
        self.formulation, self.transform = formulation, transform
        width = dim // n_blocks
        # Index 0 is the real, 1 the imaginary part.
        self.complex_weight_1 = nn.Parameter(torch.empty(2, n_blocks, width, width))
        self.complex_weight_2 = nn.Parameter(torch.empty(2, n_blocks, width, width))
        self.complex_bias_1 = nn.Parameter(torch.empty(2, n_blocks, width))
        self.complex_bias_2 = nn.Parameter(torch.empty(2, n_blocks, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights and biases from a normal of standard deviation 0.02."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`, real float32 (float64 where `x` is)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            n_batch, n, dim = x.shape
            x = x.reshape(n_batch, n, self.n_blocks, -1)  # (B, N, D) -> (B, N, 4, C)
            if self.formulation == "product" and self.transform == "both":
                y = self._by_products(x)
            else:
                y = self._by_fft(x)
            return y.reshape(n_batch, n, dim)

    def _by_products(self, x: Tensor) -> Tensor:
        n_batch, n, n_blocks, width = x.shape
        as_product = n_blocks == 4 and n <= LONGEST_PRODUCT
        if as_product:
            z = _Spectrum.apply(x)
        else:
            spectrum = torch.fft.fft2(x, dim=(1, 2), norm="ortho").permute(2, 0, 1, 3)
            z = torch.stack([spectrum.real, spectrum.imag], dim=3)
        z = z.reshape(n_blocks, n_batch * n, 2 * width)
        z = F.relu_(self._affine(z, self.complex_weight_1, self.complex_bias_1))
        z = self._affine(z, self.complex_weight_2, self.complex_bias_2)
        z = F.softshrink(z, self.threshold).view(n_blocks, n_batch, n, 2, width)
        if as_product:
            return _Tokens.apply(z)
        spectrum = torch.complex(z[:, :, :, 0], z[:, :, :, 1]).permute(1, 2, 0, 3)
        return torch.fft.ifft2(spectrum, dim=(1, 2), norm="ortho").real

    @staticmethod
    def _affine(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Complex affine map per block, `[re, im] @ [[Wr, Wi], [-Wi, Wr]] + [br, bi]`."""
        real, imaginary = weight.to(z.dtype).unbind(0)
        matrix = torch.cat([torch.cat([real, imaginary], dim=2),
                            torch.cat([-imaginary, real], dim=2)], dim=1)
        offset = torch.cat(bias.to(z.dtype).unbind(0), dim=1)[:, None]
        return torch.baddbmm(offset, z, matrix)

    def _by_fft(self, x: Tensor) -> Tensor:
        axes = TRANSFORMED[self.transform]
        z = torch.fft.fftn(x, dim=axes, norm="ortho")
        for step in (1, 2):
            weight = getattr(self, f"complex_weight_{step}").to(x.dtype)
            bias = getattr(self, f"complex_bias_{step}").to(x.dtype)
            z = torch.einsum("bnkc,kcd->bnkd", z, torch.complex(weight[0], weight[1]))
            z = z + torch.complex(bias[0], bias[1])
            if step == 1:
                z = torch.complex(F.relu(z.real), F.relu(z.imag))
        z = torch.complex(F.softshrink(z.real, self.threshold),
                          F.softshrink(z.imag, self.threshold))
        return torch.fft.ifftn(z, dim=axes, norm="ortho").real
