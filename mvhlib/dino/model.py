"""Student and teacher: a backbone with a head for each loss, and how their weights move."""

from typing import Any

import torch
from torch import Tensor, nn

from mvhlib.backbones import create_model
from mvhlib.dino.config import Config
from mvhlib.dino.heads import ProjectionHead

#: Parts whose gradients are clipped one by one.
PARTS = ("backbone", "dino_head", "ibot_head")


class DinoModel(nn.Module):
    """A backbone with a head for each loss; the student is one, the teacher another.

    Parameters
    ----------
    config
        Names the backbone and the sizes of the heads.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.backbone = create_model(config.backbone, seed=config.seed, **config.backbone_options)
        self.backbone.set_grad_checkpointing(config.checkpointing)
        sizes = {"n_prototypes": config.prototypes, "hidden": config.head_hidden,
                 "bottleneck": config.head_bottleneck}
        width = self.backbone.embed_dim
        # The two heads differ from the start, and from the backbone's numbers.
        self.dino_head = ProjectionHead(width, seed=2 * config.seed + 1_000_001, **sizes)
        self.ibot_head = ProjectionHead(width, seed=2 * config.seed + 1_000_002, **sizes)

    def forward(self, views: Tensor, masks: Tensor, local: Tensor | None = None,
                hide: bool = True) -> dict[str, Tensor]:
        """Logits of both heads.

        Parameters
        ----------
        views
            Global views `(2 B, 3, S, S)`.
        masks
            `(2 B, N)` bool: patches that the student does not see and that iBOT compares.
        local
            Local views `(V B, 3, s, s)`, or None.
        hide
            Replace the masked patches by the mask token (student), or only pick them (teacher).

        Returns
        -------
        dict
            ``cls`` `(2 B, D)`, ``dino`` `(2 B, K)`, ``ibot`` `(M, K)` in the order of
            ``tokens[masks]``, and ``dino_local`` `(V B, K)` where there are local views.
        """
        seen = self.backbone.forward_features(views, masks if hide else None)
        tokens = seen["patch_tokens"][masks]  # (2 B, N, D) -> (M, D)
        cls = [seen["cls"]]
        if local is not None and len(local):
            cls.append(self.backbone.forward_features(local)["cls"])
        logits = self.dino_head(torch.cat(cls))
        return {"cls": seen["cls"], "dino": logits[:len(views)], "dino_local": logits[len(views):],
                "ibot": self.ibot_head(tokens)}


def parameter_groups(student: DinoModel, patch_embed_lr: float = 0.2,
                     layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters in groups that share a factor of the learning rate and of the weight decay.

    Parameters
    ----------
    student
        Its backbone says which of its parameters take no weight decay (`no_weight_decay`: the
        published rule on names, or Mamba's); in the heads all biases are exempt.
    patch_embed_lr
        Factor of the patch embedding's learning rate.
    layer_decay
        Factor of the learning rate per block, counted from the last; 1 for none.

    Returns
    -------
    list of dict
        ``params``, ``names``, ``lr_factor``, ``wd_factor``, ``is_last_layer``.
    """
    exempt = {f"backbone.{name}" for name in student.backbone.no_weight_decay()}
    depth = len(student.backbone.blocks)
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in student.named_parameters():
        name = name.replace("_orig_mod.", "")
        in_backbone = name.startswith("backbone.")
        decays = name not in exempt if in_backbone else not name.endswith(".bias")
        last_layer = ".last_layer." in name
        factor = 1.0
        if in_backbone:
            factor = layer_decay ** (depth + 1 - _layer_of(name, depth))
            if ".patch_embed." in name:
                factor *= patch_embed_lr
        key = (factor, decays, last_layer)
        group = groups.setdefault(key, {"params": [], "names": [], "lr_factor": factor,
                                        "wd_factor": float(decays), "is_last_layer": last_layer})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _layer_of(name: str, depth: int) -> int:
    """0 for what comes before the blocks, 1 to depth for blocks, depth + 1 behind them."""
    if ".blocks." in name:
        return int(name.split(".blocks.")[1].split(".")[0]) + 1
    before = (".patch_embed.", ".cls_token", ".mask_token", ".pos_embed")
    return 0 if any(part in name for part in before) else depth + 1


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student: t <- m t + (1 - m) s, for every parameter."""
    # Of a tensor that is spread over processes each moves its own part; both are spread alike.
    mine, theirs = ([p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
                    for model in (teacher, student))
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
