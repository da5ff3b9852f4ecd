"""Turn tiles into features: one object for every encoder, and a command for whole folders.

`PatchEncoder` has what TRIDENT's `BasePatchEncoder` and HEST's `benchmark(model, transforms,
precision)` ask for, by duck type. `create_encoder` makes one from

====================  ============================================================================
source                what it is
====================  ============================================================================
``handmade``          interpretable colour and texture features, the floor that a network must beat
a registry name       a backbone of `mvhlib.backbones` (also ``backbone:<name>``); weights random,
                      which is the other floor, or a directory
a directory           what `save_pretrained` wrote, or the fused token of MMAP
                      (`mvhlib.expression.fused`)
``python:file.py:f``  what a function of the user's own returns (`mvhlib.encoders.python_models`)
``imagenet``          EfficientNet-Lite0 with ImageNet's weights, from the package registry
``timm:<name>``       a model of timm with its published weights, or those of a file (`weights`)
``hf-hub:<org/name>`` a model that timm finds on the Hugging Face hub
``uni2-h`` and so on  the field's encoders by name (`mvhlib.encoder_sources.published`)
====================  ============================================================================

Tiles are resampled as tensors with antialiasing. With a working resolution `mpp`, finer tiles are
first reduced to it by area, so that sections of unlike sharpness meet on equal terms.

Runs with torch, numpy, h5py and safetensors alone::

    python -m mvhlib.encoders --encoder SLUG_OR_DIR --tiles DIR --out DIR
"""

from mvhlib.encoders.command import main
from mvhlib.encoders.create import LOADERS, create_encoder, names_of, seen
from mvhlib.encoders.folder import encode_folder
from mvhlib.encoders.handmade import HandmadeFeatures
from mvhlib.encoders.of_run import of_run
from mvhlib.encoders.patch import (
    EvalTransform,
    PatchEncoder,
    area_matrix,
    reduce_area,
)
from mvhlib.encoders.tokens import model_tokens, pool_tokens

__all__ = ["LOADERS", "EvalTransform", "HandmadeFeatures", "PatchEncoder", "area_matrix",
           "create_encoder", "encode_folder", "main", "model_tokens", "names_of", "of_run",
           "pool_tokens", "reduce_area", "seen"]
