"""Tokens and layers of a network: search, pooling and read-out.

A network gives tokens by ``forward_features`` (a backbone of ours, a transformer of timm, DINOv2)
or as its output, `(B, P + N, D)`: P before the patches, of which the first is the class token and
the others are registers (`num_prefix_tokens`; 1 unless a network without `forward_features` says
otherwise).
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError
from mvhlib.backbones.backbone import Backbone, read_out
from mvhlib.parameters import nearest

#: Names of what holds a network's blocks or stages, in the order in which they are looked for.
_LAYERS = ("blocks", "stages", "layers", "layer", "features")


def find_tokens(model: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor] | None:
    """Class token `(B, D)`, or None where it has none, and patch tokens `(B, N, D)` of a network.

    None where it has no tokens.
    """
    find = getattr(model, "forward_features", None)
    found = None if find is None else split_tokens(find(images), model)
    return found or split_tokens(model(images), model)


def split_tokens(out: Any, model: nn.Module) -> tuple[Tensor | None, Tensor] | None:
    """Split a network's output into class token and patch tokens; None if it is no tokens."""
    if isinstance(out, Mapping):
        for cls, patches in (("cls", "patch_tokens"), ("x_norm_clstoken", "x_norm_patchtokens")):
            if cls in out and patches in out:
                return out[cls], out[patches]
        out = out.get("last_hidden_state")  # of the transformers library
    if not isinstance(out, Tensor) or out.ndim != 3:
        return None
    # Models with forward_features state their number; a user's network has one, the class token.
    n_prefix = getattr(model, "num_prefix_tokens", 0 if hasattr(model, "forward_features") else 1)
    if not isinstance(n_prefix, int) or not 0 <= n_prefix < out.shape[1]:
        raise InputError(type(model).__name__, "num_prefix_tokens",
                         f"is {n_prefix!r} of {out.shape[1]} tokens",
                         "say how many tokens stand before the patches")
    has_cls = n_prefix > 0 and getattr(model, "has_class_token", True)
    return out[:, 0] if has_cls else None, out[:, n_prefix:]


def model_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Class token, then patch tokens, `(B, 1 + N, D)`, of a backbone of ours or a ViT of timm.

    Raises
    ------
    InputError
        If the model has no class token and patch tokens.
    """
    find = getattr(model, "forward_features", None)
    found = None if find is None else split_tokens(find(images), model)
    if found is None or found[0] is None:
        raise InputError(type(model).__name__, "tokens", "it gives no class token with patch "
                         "tokens", "take a vision transformer or a backbone of mvhlib")
    return torch.cat([found[0][:, None], found[1]], dim=1)  # registers are left out


def pool_tokens(tokens: Tensor, grid: int, where: Any = "pool_tokens") -> Tensor:
    """Average the patch tokens of `(B, 1 + N, D)` over `grid` x `grid` fields; 0 keeps them.

    Raises
    ------
    InputError
        If there are fewer patch tokens than fields; `where` says who asked for them.
    """
    if not grid:
        return tokens
    patches = tokens[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1] or side < grid:
        raise InputError(where, "grid", f"{grid} x {grid} cannot be made of "
                         f"{patches.shape[1]} patch tokens", "use 0, or a coarser grid")
    image = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, N, D) -> (B, D, side, side)
    pooled = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :1], pooled], dim=1)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Blocks of a transformer, or blocks or stages of a convolutional network, first to last.

    The first list of two or more modules called ``blocks``, ``stages``, ``layers``, ``layer`` or
    ``features``, nearest to the surface; ``layer1`` to ``layer4`` are such a list too.
    """
    queue: list[nn.Module] = [model]
    while queue:
        module = queue.pop(0)
        for name in _LAYERS:
            found = getattr(module, name, None)
            if isinstance(found, nn.ModuleList | nn.Sequential) and len(found) > 1:
                return list(found)
        numbered = [getattr(module, f"layer{i}", None) for i in range(1, 10)]
        if sum(isinstance(each, nn.Module) for each in numbered) > 1:
            return [each for each in numbered if isinstance(each, nn.Module)]
        queue += list(module.children())
    return []


class _Enough(Exception):
    """Raised to end a forward pass after the last requested layer."""


class ReadOut(nn.Module):
    """A network that returns the features selected by `pool` and `depths`.

    Parameters
    ----------
    model
        Any network that takes images `(B, 3, S, S)`.
    pool
        A name of `READ_OUTS`; None leaves an output without tokens as it is, reads the class token
        of one that has them, and of `depths` mean and standard deviation.
    depths
        Blocks or stages, by number or by the name of a module; one vector of each, as it leaves
        the layer (without the final normalisation), one after another. Channels of a map
        `(B, C, h, w)` are averaged over its h x w places as tokens over patches.
    where
        Who asks, for the errors.
    fence
        A context in which the network's own code runs.

    Raises
    ------
    InputError
        If the network has no layers of this number or name.
    """

    def __init__(self, model: nn.Module, pool: str | None = None,
                 depths: Sequence[int | str] | None = None, where: Any = "create_encoder",
                 fence: Callable[[], Any] = contextlib.nullcontext):
        super().__init__()
        self.model, self.pool, self.where, self.fence = model, pool, where, fence
        self.depths = None if depths is None else list(depths)
        self._layers = [self._layer(depth) for depth in self.depths or ()]
        #: Where the channels of a map stand; learned from the first square image.
        self._last: dict[int, bool] = {}

    @property
    def read_out(self) -> str:
        """The name that tables use: of `READ_OUTS`, or ``-`` where there are no tokens."""
        return self.pool or ("mean+std" if self.depths else "-")

    @torch.inference_mode()
    def width(self, px: int) -> int:
        """Width of the features, from one image of `px` px."""
        self.model.eval()
        return self(torch.zeros(1, 3, px, px)).shape[1]

    def _layer(self, depth: int | str) -> tuple[nn.Module, ...]:
        """The module behind a depth, in a tuple that hides it from this module's own weights."""
        if isinstance(depth, str):
            named = dict(self.model.named_modules())
            if depth not in named or not depth:
                raise InputError(self.where, "depths", f"{depth!r} is no module of this network",
                                 nearest(depth, list(named)[1:], "see its named_modules()"))
            return (named[depth],)
        layers = find_layers(self.model)
        if not -len(layers) <= depth < len(layers):
            raise InputError(self.where, "depths", f"{depth} is none of its {len(layers)} layers",
                             f"use 0 to {len(layers) - 1}" if layers else
                             "name modules of the network, for example 'trunk.3'")
        return (layers[depth],)

    def forward_features(self, x: Tensor) -> dict[str, Tensor | None]:
        """Class token and patch tokens of the network itself."""
        with self.fence():
            found = find_tokens(self.model, x)
        if found is None:
            raise InputError(self.where, "pool", "is asked of a network that gives no tokens",
                             "leave pool out, or give depths")
        return {"cls": found[0], "patch_tokens": found[1]}

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, 3, S, S)` to features `(B, D)`."""
        if self.depths is not None:
            found = self._backbone_layers(x) if isinstance(self.model, Backbone) else (
                self._hooked_layers(x))
            return torch.cat([self._read(cls, patches) for cls, patches in found], dim=1)
        if self.pool is not None:
            tokens = self.forward_features(x)
            return self._read(tokens["cls"], tokens["patch_tokens"])
        with self.fence():
            out = self.model(x)
            tokens = split_tokens(out, self.model)
        if tokens is None:
            return out
        self.pool = "cls" if tokens[0] is not None else "mean"
        return self._read(*tokens)

    def _read(self, cls: Tensor | None, patches: Tensor) -> Tensor:
        pool = self.read_out
        if cls is None and "cls" in pool:
            raise InputError(self.where, "pool", f"is {pool!r}, and the network has no class token "
                             "there", "use mean or mean+std")
        return read_out(cls, patches, pool)

    def _backbone_layers(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Layer outputs of our backbones, whose class token may stand in the middle."""
        blocks = {id(block): i for i, block in enumerate(self.model.blocks)}
        if unknown := [depth for depth, (layer,) in zip(self.depths, self._layers, strict=True)
                       if id(layer) not in blocks]:
            raise InputError(self.where, "depths", f"{unknown[0]!r} is no block of this backbone",
                             f"use 0 to {len(blocks) - 1}")
        wanted = [blocks[id(layer)] for (layer,) in self._layers]
        return [(each["cls"], each["patch_tokens"])
                for each in self.model.forward_intermediates(x, wanted)]

    def _hooked_layers(self, x: Tensor) -> list[tuple[Tensor | None, Tensor]]:
        """Layer outputs of any other network, caught by hooks; later layers are not run."""
        caught: dict[int, Any] = {}
        waited = {id(layer) for (layer,) in self._layers}

        def catch(module: nn.Module, _: Any, out: Any) -> None:
            caught[id(module)] = out[0] if isinstance(out, tuple | list) and out else out
            if waited <= caught.keys():
                raise _Enough

        hooks = [layer.register_forward_hook(catch)
                 for layer in {id(layer): layer for (layer,) in self._layers}.values()]
        try:
            with self.fence(), contextlib.suppress(_Enough):
                self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        found = []
        for at, (depth, (layer,)) in enumerate(zip(self.depths, self._layers, strict=True)):
            if id(layer) not in caught:
                raise InputError(self.where, "depths", f"layer {depth!r} is not used by the "
                                 "network", "name another")
            found.append(self._places(at, depth, caught[id(layer)], x))
        return found

    def _places(self, at: int, depth: int | str, out: Any, x: Tensor
                ) -> tuple[Tensor | None, Tensor]:
        """Class token and patch tokens `(B, N, D)` of a layer's output, tokens or a map."""
        if isinstance(out, Tensor) and out.ndim == 4:
            if at not in self._last:
                # Images are square, so is the map: its channels are the axis of another length.
                _, a, b, c = out.shape
                known = getattr(self.model, "output_fmt", None)
                self._last[at] = known == "NHWC" if a == b == c or x.shape[2] != x.shape[3] else (
                    a == b)
            # (B, C, h, w) -> (B, h w, C)
            return None, out.flatten(1, 2) if self._last[at] else out.flatten(2).transpose(1, 2)
        found = split_tokens(out, self.model)
        if found is None:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(self.where, "depths", f"layer {depth!r} gives {shape}, neither tokens "
                             "(B, N, D) nor a map (B, C, h, w)", "name another")
        return found
