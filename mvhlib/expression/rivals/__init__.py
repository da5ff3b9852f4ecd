"""Small versions of systems that MMAP was compared with, on the same embeddings, folds and genes.

============  ====================================================================================
`histogene`   `HisToGene`: spots of a section attend to each other, with a place of their own each
`deeppt`      `DeepPT`: an autoencoder narrows the embedding, a network reads expression off it
`samples`     what both read of a section
============  ====================================================================================

Both are transcriptions of the published design, not of the published system: where the authors
train or use a network of their own on pixels, these take an embedding that is given, so that a
difference is one of the head and of the context alone. ST-Net is `mvhlib.expression.mmap.stnet`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvhlib.expression.rivals.deeppt import DeepPT
from mvhlib.expression.rivals.histogene import HisToGene
from mvhlib.training import FitConfig

__all__ = ["DeepPT", "HisToGene", "both"]


def both(training: Mapping[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    """Both rivals by name, with the same training, each with its state below `folder`.

    Parameters
    ----------
    training
        Fields of `mvhlib.training.FitConfig`; a batch of HisToGene is one section.
    options
        Of both: validation, device.
    """
    return {"histogene": HisToGene(training=FitConfig(**(dict(training) | {"batch": 1})),
                                   folder=Path(folder) / "histogene", **options),
            "deeppt": DeepPT(training=FitConfig(**training), folder=Path(folder) / "deeppt",
                             **options)}
