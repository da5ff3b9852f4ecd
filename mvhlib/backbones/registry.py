"""Names of models, and `create_model` and `list_models` as timm calls them.

Of timm's surface these two are here, with ``num_classes=0``, and of its models `embed_dim`,
`num_features`, `num_prefix_tokens`, `pretrained_cfg` and `no_weight_decay`; `forward_features`
gives a mapping, not one tensor, and weights come by `from_pretrained`. They are no models of timm:
``timm.create_model`` does not know them.

A name is ``<family>_<size>_patch<P>_<R>``: patch P and image R [px], as in
``mvhybrid_small_patch16_256``. It means the published model; with the suffix ``.corrected`` (or
``preset="corrected"``) the one whose time steps are initialised and whose state-space layers are
decayed as Mamba's authors meant; with ``.mamba`` their projections are, too: the published 0.02
for every linear layer leaves the state a thousandth of the skip path beside it.
Sizes: ``small`` is the paper's, ``tiny`` has half its depth and width, ``micro`` is for tests and
demonstrations.

=============  =============================================================================
family         blocks at size small
=============  =============================================================================
vit12          12 attention + MLP
vit17          17 attention + MLP: the transformer with MVHybrid's number of parameters
vit24          24 attention + MLP
vimeinfft      24 Vim (bidirectional Mamba) + EinFFT
hydraeinfft    24 Hydra + EinFFT
hydrahybrid    12 Hydra + EinFFT, then 12 attention + MLP
mvhybrid       12 MambaVision + EinFFT, then 12 attention + MLP
=============  =============================================================================

Published are the sources of ViT and MVHybrid; the other three are assembled from the mixers that
the paper cites, and how their blocks are wired is inferred (Cho et al. 2025, MV_Hybrid).
"""

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from mvhlib.artifacts import InputError
from mvhlib.backbones.backbone import Backbone

#: Switches of the state-space parts; see `Backbone`.
PRESETS: dict[str, dict[str, Any]] = {
    "released": {"dt_init": "released", "projections": "family", "dt_bias_count": 2,
                 "no_decay": "dinov2-names"},
    "corrected": {"dt_init": "mamba", "projections": "family", "dt_bias_count": 1,
                  "no_decay": "mamba"},
    "mamba": {"dt_init": "mamba", "projections": "mamba", "dt_bias_count": 1, "no_decay": "mamba"},
}

_VIT = {"split": 0, "cls_position": "first", "pos_embed": "learned", "norm_eps": 1e-6,
        "drop_path_schedule": "uniform", "init": "vit"}
_PURE = {"cls_position": "middle", "pos_embed": "learned", "norm": "rms"}
_HYBRID = {"cls_position": "middle", "pos_embed": "none", "init": "mvhybrid"}

#: family -> (depths of micro, tiny, small; share of state-space blocks; arguments)
_FAMILIES: dict[str, tuple[tuple[int, int, int], float, dict[str, Any]]] = {
    "vit12": ((3, 6, 12), 0, _VIT),
    "vit17": ((4, 8, 17), 0, _VIT),
    "vit24": ((6, 12, 24), 0, _VIT),
    "vimeinfft": ((6, 12, 24), 1, _PURE | {"mixer": "vim", "init": "vim"}),
    "hydraeinfft": ((6, 12, 24), 1, _PURE | {"mixer": "hydra", "init": "hydra"}),
    "hydrahybrid": ((6, 12, 24), 0.5, _HYBRID | {"mixer": "hydra"}),
    "mvhybrid": ((6, 12, 24), 0.5, _HYBRID | {"mixer": "mamba_vision"}),
}
_SIZES: dict[str, dict[str, int]] = {
    "micro": {"embed_dim": 96, "num_heads": 3, "patch_size": 8, "img_size": 64},
    "tiny": {"embed_dim": 192, "num_heads": 3, "patch_size": 16, "img_size": 224},
    "small": {"embed_dim": 384, "num_heads": 6, "patch_size": 16, "img_size": 256},
}

_REGISTRY: dict[str, Callable[..., Backbone]] = {}


def register_model(function: Callable[..., Backbone] | None = None, *,
                   name: str | None = None) -> Callable:
    """Add a function that returns a `Backbone` to the registry, as a decorator or by a call.

    Parameters
    ----------
    function
        Takes the options of `create_model` as keywords.
    name
        Registry name; default: the function's.

    Raises
    ------
    InputError
        If the name is taken or holds a dot (which introduces the preset).
    """
    if function is None:
        return partial(register_model, name=name)
    name = name or function.__name__
    if name in _REGISTRY or "." in name:
        raise InputError("registry", name, "is taken or holds a dot", "choose another name")
    _REGISTRY[name] = function
    return function


def _split_name(name: str) -> tuple[str, str | None]:
    base, dot, preset = name.partition(".")
    return base, preset if dot else None


def is_model(name: str) -> bool:
    """True if `create_model` knows `name`, with or without a preset as suffix."""
    base, preset = _split_name(name)
    return base in _REGISTRY and (preset is None or preset in PRESETS)


def list_models(pattern: str = "*", *, filter: str | None = None) -> list[str]:
    """Names that match a shell pattern, sorted: ``list_models("vit*")``.

    `filter` is timm's word for `pattern`.
    """
    return sorted(fnmatch.filter(_REGISTRY, filter or pattern or "*"))


def create_model(name: str, preset: str | None = None, **options: Any) -> Backbone:
    """Build a backbone by name.

    Parameters
    ----------
    name
        Registry name, with or without a preset as suffix (``.corrected``).
    preset
        ``"released"`` (default), ``"corrected"`` or ``"mamba"``.
    options
        ``num_classes=0`` and ``pretrained=False``, which change nothing, as in timm. Arguments of
        `Backbone` that differ from the name's, for example `order`, `split`,
        `mixer`, `layer_scale`, `pool`, `img_size`, `seed`.

    Returns
    -------
    Backbone
        In training mode, with initial weights drawn from `seed`.

    Raises
    ------
    InputError
        On an unknown name, preset or option, naming the nearest; on two different presets; and
        on mixtures that `Backbone` refuses.

    Examples
    --------
    >>> create_model("mvhybrid_micro_patch8_64", order="attention_first").embed_dim
    96
    """
    base, suffix = _split_name(name)
    if base not in _REGISTRY:
        raise InputError("registry", "name", f"{name!r} is not a model",
                         _nearest(base, _REGISTRY) + 'see list_models("*")')
    if suffix and preset and suffix != preset:
        raise InputError("registry", "preset", f"{name!r} and preset={preset!r} differ",
                         "give one of them")
    chosen = suffix or preset or "released"
    if chosen not in PRESETS:
        raise InputError("registry", "preset", f"{chosen!r} is unknown",
                         f"choose one of {', '.join(PRESETS)}")
    for option, taken, fix in (
            ("num_classes", (0,), "leave it out: a backbone gives features, a probe gives classes"),
            ("pretrained", (False, None), "read a folder of weights by from_pretrained(folder)")):
        if (value := options.pop(option, taken[0])) not in taken:
            raise InputError(name, option, f"is {value!r}, which these models do not have", fix)
    known = inspect.signature(Backbone).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(name, "options", f"{unknown} are unknown",
                         _nearest(unknown[0], known) + "see the arguments of Backbone")
    switches = PRESETS[chosen]
    model = _REGISTRY[base](**(switches | options))
    model.architecture = base
    same = all(model.model_args[switch] == value for switch, value in switches.items())
    model.preset = chosen if same else "custom"
    return model


def _nearest(word: str, words) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}? " if close else ""


def _published(defaults: dict[str, Any], share: float, **options: Any) -> Backbone:
    args = defaults | options
    # A changed depth keeps the published proportion of state-space blocks.
    args.setdefault("split", round(share * args["depth"]))
    return Backbone(**args)


for _family, (_depths, _share, _args) in _FAMILIES.items():
    for (_size, _shape), _depth in zip(_SIZES.items(), _depths, strict=True):
        register_model(
            partial(_published, _args | _shape | {"depth": _depth}, _share),
            name=f"{_family}_{_size}_patch{_shape['patch_size']}_{_shape['img_size']}")
