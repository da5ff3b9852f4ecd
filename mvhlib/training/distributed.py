"""One process or many: the same calls, which do nothing in one."""

import torch
import torch.distributed as dist
from torch import Tensor


def as_double(x: Tensor) -> Tensor:
    """`x` in float64, where it is; on the CPU where its device has no such numbers (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def is_distributed() -> bool:
    """True if more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
    """Reduce `tensor` over all processes in place, and return it; alone, nothing happens."""
    if is_distributed():
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
    return tensor


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient of a row returns to its owner."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.n_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = all_reduce(gradient.contiguous().clone())
        return gradient[rank() * ctx.n_rows:(rank() + 1) * ctx.n_rows]


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, `(n, D)` to `(W n, D)`, with gradient.

    Every process gets the gradient summed over all of them, W times that of a loss which all
    compute alike; averaging gradients over processes, as DDP does, takes that factor out again.
    """
    return _Gather.apply(rows) if is_distributed() else rows
