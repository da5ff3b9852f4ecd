"""Faster embedding with a trained backbone on a GPU: EinFFT in half precision, one launch a batch.

Both are for inference, change no weight, and step aside by themselves: a layer that is asked for a
gradient computes as it always does, and a batch of another shape, or a model that cannot be
captured, runs as it is. EinFFT in bfloat16 changes the numbers (the published layer forces
float32), so `least_cosine` says by how much; `captured` does not change them.
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mvhlib.backbones.channel import LONGEST_PRODUCT, EinFFT

_log = logging.getLogger(__name__)


class HalfEinFFT(nn.Module):
    """An EinFFT whose matrix products take bfloat16; its weights stay in the layer, in float32.

    Parameters
    ----------
    layer
        The layer that it stands for.

    Notes
    -----
    Transforms exist in half precision for powers of two alone, and 257 tokens are none: here the
    transform is a product of matrices (`mvhlib.backbones.channel`), which has no such limit.
    """

    def __init__(self, layer: EinFFT):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)` float32."""
        layer, (n_batch, n, dim) = self.layer, x.shape
        by_products = (layer.formulation, layer.transform, layer.n_blocks) == ("product", "both", 4)
        if torch.is_grad_enabled() or not by_products or n > LONGEST_PRODUCT:
            return layer(x)
        with torch.autocast(x.device.type, enabled=False):
            blocks = x.to(torch.bfloat16).reshape(n_batch, n, layer.n_blocks, -1)
            return layer._by_products(blocks).float().reshape(n_batch, n, dim)


def with_half_einfft(model: nn.Module) -> nn.Module:
    """A copy of a backbone whose EinFFT layers compute in bfloat16 where no gradient is wanted."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        if isinstance(block.channel_mixer, EinFFT):
            block.channel_mixer = HalfEinFFT(block.channel_mixer)
    return model


def least_cosine(first: Tensor, second: Tensor) -> float:
    """The smallest cosine between two embeddings `(B, D)` of the same images."""
    return float(torch.cosine_similarity(first.double(), second.double(), dim=1).min())


def captured(function: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """`function` as one launch of a CUDA graph, for batches of the shape of `example`.

    Parameters
    ----------
    function
        Of one tensor, without gradients and without decisions that depend on its values. Weights
        that change afterwards in place are seen.
    example
        A batch on the GPU that the graph will be used on.

    Returns
    -------
    callable
        Gives a tensor of its own at every call. Batches of another shape or dtype, tensors on a
        CPU and a function that cannot be captured run as they are; why, the log says.
    """
    if example.device.type != "cuda":
        return function
    entered = example.clone()
    try:
        stream = torch.cuda.Stream(example.device)
        stream.wait_stream(torch.cuda.current_stream(example.device))
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(3):  # the first calls compile and fill caches, which is not to be timed
                function(entered)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            left = function(entered)
    except RuntimeError as error:
        _log.info("runs without a CUDA graph: %s", str(error).splitlines()[0])
        return function

    def replay(x: Tensor) -> Tensor:
        if x.shape != entered.shape or x.dtype != entered.dtype or x.device != entered.device:
            return function(x)
        entered.copy_(x)
        graph.replay()
        return left.clone()

    return replay
