"""One forward pass of a backbone with hooks, which leaves the backbone unchanged."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


def watch(model: "nn.Module", images: "Tensor",
          attach: "Callable[[nn.Module], list[RemovableHandle]]") -> None:
    """Send images through a backbone in evaluation mode, without gradients, while hooks look on.

    Parameters
    ----------
    model
        A `mvhlib.backbones.Backbone`; left in the mode in which it came, without the hooks.
    images
        `(B, 3, H, W)`, normalised for the model.
    attach
        Called with the model; registers hooks and returns their handles.

    Raises
    ------
    InputError
        If the model has no blocks.
    """
    import torch

    if not hasattr(model, "blocks"):
        raise InputError("frequency.watch", "model", f"is a {type(model).__name__} without blocks",
                         "give a mvhlib.backbones.Backbone; for a PatchEncoder, pass its model")
    hooks, was_training = attach(model), model.training
    model.eval()
    try:
        with torch.no_grad():
            model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
