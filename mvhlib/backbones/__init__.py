"""Vision backbones: six of the MV_Hybrid comparison and a parameter-matched control.

>>> from mvhlib.backbones import create_model
>>> model = create_model("mvhybrid_small_patch16_256")
>>> features = model.forward_features(images)      # {"cls": (B, D), "patch_tokens": (B, N, D)}

`scan` holds the recurrences, `mixers` and `channel` the layers, `backbone` the model,
`registry` its names, `reference` the way from published weights.
"""

from mvhlib.backbones.backbone import Backbone
from mvhlib.backbones.reference import load_reference_state_dict
from mvhlib.backbones.registry import (
    PRESETS,
    create_model,
    is_model,
    list_models,
    register_model,
)

from_pretrained = Backbone.from_pretrained

__all__ = ["PRESETS", "Backbone", "create_model", "from_pretrained", "is_model", "list_models",
           "load_reference_state_dict", "register_model"]
