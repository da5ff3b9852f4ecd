"""Projection heads of DINO and iBOT (Caron et al. 2021, sec. 3.1; Oquab et al. 2023).

Three linear layers with GELU lead to a narrow layer; its L2-normalised output meets K prototypes,
which are weight-normalised. The two losses have a head each.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """A linear map without bias whose rows have a learned length, 1 at first.

    Parameters
    ----------
    dim, n_prototypes
        Width of the input; K.
    """

    def __init__(self, dim: int, n_prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(n_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(n_prototypes, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(R, D)` to `(R, K)`."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class ProjectionHead(nn.Module):
    """Tokens to logits over prototypes.

    Parameters
    ----------
    dim
        Width D of the tokens.
    n_prototypes
        K; published 65,536.
    hidden, bottleneck
        Widths of the layers; published 2,048 and 256.
    n_layers
        Linear layers before the prototypes.
    seed
        Of the initial weights; the global random state is left alone.
    """

    def __init__(self, dim: int, n_prototypes: int = 65_536, hidden: int = 2048,
                 bottleneck: int = 256, n_layers: int = 3, seed: int = 0):
        super().__init__()
        widths = [dim, *[hidden] * (n_layers - 1), bottleneck]
        layers: list[nn.Module] = []
        for width, following in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width, following), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = Prototypes(bottleneck, n_prototypes)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)
        # PyTorch's default for a linear layer.
        bound = 1 / math.sqrt(bottleneck)
        nn.init.uniform_(self.last_layer.weight_v, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(R, D)` to `(R, K)`."""
        x = self.mlp(x)
        eps = 1e-6 if x.dtype == torch.float16 else 1e-12
        return self.last_layer(F.normalize(x, dim=-1, eps=eps))
