"""The encoder that a run's parameters name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mvhlib import encoder_sources
from mvhlib.encoders.create import create_encoder
from mvhlib.encoders.patch import PatchEncoder

if TYPE_CHECKING:
    from mvhlib.notebook import Run


def of_run(run: "Run", encoder: str, source: str, weights: str,
           options: Mapping[str, Any]) -> PatchEncoder:
    """Create the encoder of a notebook that builds a method on top of it.

    Parameters
    ----------
    encoder
        Its slug: the folder below ``encoders/``.
    source, weights, options
        As in 04_embed. ``weights="pretrained"`` is what 03_pretrain made in this run, unless the
        source brings weights of its own; ``"random"`` draws them from the run's seed.

    Raises
    ------
    InputError
        If 03_pretrain has not made the weights yet, and as `create_encoder`.
    """
    if weights == "pretrained" and not encoder_sources.brings_weights(source):
        run.need(run.path("encoders", encoder, "model.safetensors"), made_by="03_pretrain")
        weights = str(run.path("encoders", encoder))
    given = {"weights": weights} if weights else {}
    given |= {"seed": run.seed} if weights == "random" else {}
    return create_encoder(source, name=encoder, device=run.device, **given, **options)
