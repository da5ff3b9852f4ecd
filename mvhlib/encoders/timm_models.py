"""Models of timm, and of the Hugging Face hub through timm."""

from typing import Any

import torch

from mvhlib.artifacts import InputError
from mvhlib.encoders.options import take_mpp, take_precision, take_seed
from mvhlib.encoders.patch import EvalTransform, PatchEncoder


def from_timm(text: str, options: dict[str, Any]) -> PatchEncoder:
    """A model of timm, or of the Hugging Face hub through timm."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise InputError("create_encoder", "source", f"{text!r} needs timm ({error})",
                         "pip install timm, with a torchvision built for your torch") from error
    weights, seed = options.pop("weights", "pretrained"), take_seed(options)
    if weights not in ("pretrained", "random"):
        raise InputError("create_encoder", "weights", f"is {weights!r}",
                         "timm models take 'pretrained' or 'random'")
    name, mpp = options.pop("name", None), take_mpp(options)
    input_px, precision = options.pop("input_px", None), take_precision(options)
    with torch.random.fork_rng():  # timm initialises from the global state
        torch.manual_seed(seed)
        try:
            model = timm.create_model(text.removeprefix("timm:"), pretrained=weights != "random",
                                      num_classes=0, **options)
        except Exception as error:
            raise InputError("create_encoder", "source", f"timm cannot make {text!r} ({error})",
                             "check the name, the network and, for gated models, huggingface-cli "
                             "login") from error
    cfg = getattr(model, "pretrained_cfg", None) or {}
    px = input_px or cfg.get("input_size", (3, 224, 224))[-1]
    transform = EvalTransform(int(px), cfg.get("mean", (0.485, 0.456, 0.406)),
                              cfg.get("std", (0.229, 0.224, 0.225)),
                              cfg.get("interpolation", "bicubic"))
    title = name or text.partition(":")[2].replace("/", "-").lower()
    return PatchEncoder(title, model, transform, model.num_features, precision=precision, mpp=mpp,
                        is_random=weights == "random", kind="timm",
                        identity={"timm": text, "options": repr(sorted(options.items()))})
