"""One vision backbone whose parts are arguments.

An image becomes patches, a class token joins them, and `depth` pre-norm blocks follow:

    x <- x + gamma1 mixer(norm1(x));   x <- x + gamma2 channel_mixer(norm2(x)).

`split` of the blocks hold a state-space mixer, the others attention; `order` says where they
stand. The published models are points in this space (see `mvhlib.backbones.registry`), and every
ablation is another one.

Saved models are a directory with ``model.safetensors`` and ``config.json``; each holds the hash
of the other, so a truncated or edited file is noticed.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mvhlib
from mvhlib import read_outs
from mvhlib.artifacts import InputError, reading
from mvhlib.backbones import sealed
from mvhlib.backbones.channel import EinFFT, Mlp
from mvhlib.backbones.initial import initialise
from mvhlib.backbones.mixers import Attention, BidirectionalMamba, HydraMixer, MambaVisionMixer

#: Statistics of H&E tiles that the published models normalise with (Kang et al. 2023, "Lunit").
LUNIT_MEAN = (0.70322989, 0.53606487, 0.66096631)
LUNIT_STD = (0.21716536, 0.26081574, 0.20723464)

MIXERS: dict[str, Callable[..., nn.Module]] = {
    "mamba_vision": MambaVisionMixer, "vim": BidirectionalMamba, "hydra": HydraMixer,
    "attention": Attention}
CHANNEL_MIXERS: dict[str, Callable[..., nn.Module]] = {"einfft": EinFFT, "mlp": Mlp}
#: Read-out of an image's tokens -> its width, in widths of a token. `std` is over patches and
#: divides by n, not n - 1.
READ_OUTS = {name: name.count("+") + 1 for name in (*read_outs.READ_OUTS, read_outs.ALL)}
#: A file with larger values is damaged, and would exhaust memory before it fails.
LARGEST = {"img_size": 1 << 16, "patch_size": 1 << 12, "in_chans": 1 << 10, "embed_dim": 1 << 15,
           "depth": 1000, "num_heads": 1 << 12}
CHOICES = {
    "mixer": tuple(MIXERS), "channel_mixer": tuple(CHANNEL_MIXERS),
    "attention_channel_mixer": tuple(CHANNEL_MIXERS),
    "order": ("ssm_first", "attention_first", "interleaved"),
    "cls_position": ("first", "middle"), "pos_embed": ("learned", "none"),
    "norm": ("layer", "rms"), "drop_path_schedule": ("uniform", "linear"),
    "init": ("vit", "mvhybrid", "vim", "hydra"), "dt_init": ("released", "mamba"),
    "projections": ("family", "mamba"),
    "no_decay": ("dinov2-names", "mamba"), "pool": tuple(READ_OUTS),
}

#: What "mamba" exempts from weight decay beyond biases and norms: poles, skips, steps, EinFFT's.
MAMBA_NO_DECAY = ("A_log", "A_b_log", "A_imag", "D", "D_b", "dt_bias", "complex_bias_1",
                  "complex_bias_2")
#: Added to the grid's size before a position embedding is resized, as DINOv2 does.
INTERPOLATE_OFFSET = 0.1


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token.

    Parameters
    ----------
    img_size, patch_size
        Side of the image that positions are learned for, and of a patch [px].
    in_chans, dim
        Input channels; width of the tokens, D.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        if img_size % patch_size:
            raise InputError("PatchEmbed", "patch_size",
                             f"{patch_size} does not divide the image size {img_size}",
                             "choose a divisor")
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size,) * 2
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, 3, H, W)` to `(B, N, D)`, row by row."""
        patch = self.patch_size[0]
        if x.ndim != 4 or x.shape[1] != self.proj.in_channels \
                or x.shape[2] % patch or x.shape[3] % patch or 0 in x.shape[2:]:
            raise InputError("input image", "shape", f"is {tuple(x.shape)}",
                             f"pass (B, {self.proj.in_channels}, H, W) with H and W multiples of "
                             f"the patch, {patch} px")
        return self.proj(x).flatten(2).transpose(1, 2)


class DropPath(nn.Module):
    """Drop a whole residual branch for some samples of a batch while training.

    The draw is a step of its own, so that a block recomputed in the backward pass sees the same
    one, and so that it can come from the caller's generator (Huang et al. 2016).

    Parameters
    ----------
    rate
        Share of samples whose branch is dropped.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Factor per sample `(B, 1, 1)`, 0 or 1 / (1 - rate); None where nothing is dropped."""
        if not self.training or self.rate == 0:
            return None
        u = torch.rand(x.shape[0], 1, 1, generator=generator, device=x.device)
        return (u >= self.rate).to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Block(nn.Module):
    """Pre-norm residual block: a token mixer, then a channel mixer.

    Parameters
    ----------
    mixer, channel_mixer
        The two branches.
    norm
        Makes a normalisation layer.
    dim
        Width of the tokens, D.
    layer_scale
        Initial factor of both branches (LayerScale), or None for none.
    drop_path
        Rate of `DropPath` in both branches.
    """

    def __init__(self, mixer: nn.Module, channel_mixer: nn.Module, norm: Callable[[], nn.Module],
                 dim: int, layer_scale: float | None, drop_path: float):
        super().__init__()
        self.norm1, self.mixer = norm(), mixer
        self.norm2, self.channel_mixer = norm(), channel_mixer
        self.drop_path = DropPath(drop_path)
        scale = layer_scale is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scale else None
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale))) if scale else None

    def forward(self, x: Tensor, keep1: Tensor | None = None,
                keep2: Tensor | None = None) -> Tensor:
        """Map `(B, N, D)` to `(B, N, D)`; `keep1`, `keep2` come from `DropPath.draw`."""
        x = self._add(x, self.mixer(self.norm1(x)), self.gamma1, keep1)
        return self._add(x, self.channel_mixer(self.norm2(x)), self.gamma2, keep2)

    @staticmethod
    def _add(x: Tensor, branch: Tensor, gamma: Tensor | None, keep: Tensor | None) -> Tensor:
        if gamma is not None:
            branch = branch * gamma
        return x + (branch if keep is None else branch * keep)


def ssm_positions(depth: int, split: int, order: str) -> list[bool]:
    """Which of `depth` blocks hold the state-space mixer, `split` of them in all.

    Examples
    --------
    >>> ssm_positions(4, 2, "interleaved")
    [True, False, True, False]
    """
    if order == "ssm_first":
        return [i < split for i in range(depth)]
    if order == "attention_first":
        return [i >= depth - split for i in range(depth)]
    # As evenly spread as integers allow, a state-space block first.
    ranks = [-(-i * split // max(1, depth)) for i in range(depth + 1)]
    return [ranks[i + 1] > ranks[i] for i in range(depth)]


class Backbone(nn.Module):
    """Isotropic vision backbone of state-space and attention blocks.

    Parameters
    ----------
    img_size, patch_size, in_chans
        Image side that learned positions are stored for [px], patch side [px], input channels.
        Any crop that the patch divides can be passed.
    embed_dim, depth, num_heads, mlp_ratio
        Width D, blocks, attention heads, hidden width of the MLPs over D.
    split
        How many blocks hold `mixer`; the others hold attention. 0 is a ViT, `depth` a pure
        state-space model.
    order
        ``"ssm_first"``, ``"attention_first"`` or ``"interleaved"``.
    mixer, channel_mixer
        Of the `split` blocks: ``"mamba_vision"``, ``"vim"``, ``"hydra"`` or ``"attention"``;
        ``"einfft"`` or ``"mlp"``.
    attention_channel_mixer
        Of the attention blocks.
    mixer_options, channel_options
        Further arguments of the two classes in the `split` blocks, for example
        ``{"d_state": 8}``; `channel_options` reaches every EinFFT.
    cls_position
        ``"first"``, or ``"middle"`` of the patches, at index N // 2.
    pos_embed
        ``"learned"``, resized bicubically for other crops, or ``"none"``.
    layer_scale
        Initial LayerScale, or None for none.
    norm, norm_eps
        ``"layer"`` or ``"rms"``, and its epsilon.
    drop_path, drop_path_schedule
        Rate, the same everywhere (``"uniform"``) or rising from 0 to it (``"linear"``).
    init
        Family whose initialisation is used: ``"vit"``, ``"mvhybrid"``, ``"vim"``, ``"hydra"``.
    dt_init
        ``"released"``: the published code overwrites Mamba's time-step initialisation (every
        step is ln 2; in Vim those of the backward direction); ``"mamba"``: it is kept.
    projections
        ``"family"``: the linear layers of state-space mixers are drawn as `init` says;
        ``"mamba"``: as Mamba's authors draw them (see `mvhlib.backbones.initial`).
    dt_bias_count
        How often MambaVision's mixer adds its time-step bias.
    no_decay
        Rule of `no_weight_decay`: ``"dinov2-names"`` or ``"mamba"``.
    pool
        What `forward` returns: ``"cls"`` or ``"mean"`` `(B, D)`, ``"cls+mean"`` or
        ``"mean+std"`` `(B, 2 D)`, ``"cls+mean+std"`` `(B, 3 D)`; mean and
        standard deviation are those of the patch tokens.
    scan_backend
        See `mvhlib.backbones.scan`; never stored with a model.
    seed
        Of the initial weights, which are drawn below it by name: models that share a part share
        its weights. The global random state is left alone.

    Attributes
    ----------
    embed_dim, num_features
        Width D of the tokens; width of what `forward` returns.
    architecture, preset
        Registry name and preset, or ``"custom"``.
    pretrained_on
        ``{"sections": [...], "patients": [...], "studies": [...]}`` or None.

    Raises
    ------
    InputError
        On an unknown choice, or on Mamba's time-step initialisation with a bias that enters
        twice: every step would fall to about 1e-4 and the state-space branch go silent.
    """

    def __init__(self, *, img_size: int = 256, patch_size: int = 16, in_chans: int = 3,
                 embed_dim: int = 384, depth: int = 24, num_heads: int = 6,
                 mlp_ratio: float = 4.0, split: int = 12, order: str = "ssm_first",
                 mixer: str = "mamba_vision", channel_mixer: str = "einfft",
                 attention_channel_mixer: str = "mlp",
                 mixer_options: dict[str, Any] | None = None,
                 channel_options: dict[str, Any] | None = None,
                 cls_position: str = "middle", pos_embed: str = "none",
                 layer_scale: float | None = None, norm: str = "layer", norm_eps: float = 1e-5,
                 drop_path: float = 0.0, drop_path_schedule: str = "linear",
                 init: str = "mvhybrid", dt_init: str = "released",
                 projections: str = "family", dt_bias_count: int = 2,
                 no_decay: str = "dinov2-names", pool: str = "cls", scan_backend: str = "auto",
                 seed: int = 0):
        super().__init__()
        args = {name: value for name, value in locals().items()
                if name in inspect.signature(Backbone).parameters}
        _check(args)
        self.model_args = {name: value for name, value in args.items()
                           if name not in ("scan_backend", "seed")}
        if type(norm_eps) not in (int, float) or not 0 <= norm_eps < 1:
            raise InputError("backbone", "norm_eps", f"is {norm_eps!r}",
                             "give a number from 0 to 1, such as 1e-6")
        self.architecture, self.preset = "custom", "custom"
        self.pretrained_on: dict[str, list[str]] | None = None
        self.embed_dim = embed_dim
        self.num_features = embed_dim * READ_OUTS[pool]
        self.num_prefix_tokens = 1
        self.cls_position, self.pool, self.no_decay = cls_position, pool, no_decay
        self.grad_checkpointing = False
        self.generator: torch.Generator | None = None
        self.pretrained_cfg = {
            "input_size": (in_chans, img_size, img_size), "mean": LUNIT_MEAN, "std": LUNIT_STD,
            "interpolation": "bicubic", "crop_pct": 1.0, "num_classes": 0}

        def make_norm() -> nn.Module:
            kind = nn.LayerNorm if norm == "layer" else nn.RMSNorm
            return kind(embed_dim, eps=norm_eps)

        def make_channel_mixer(kind: str) -> nn.Module:
            if kind == "mlp":
                return Mlp(embed_dim, mlp_ratio)
            return _build(EinFFT, "channel_options", embed_dim, **(channel_options or {}))

        def make_mixer() -> nn.Module:
            options = dict(mixer_options or {})
            if mixer == "attention":
                options = {"num_heads": num_heads} | options
            else:
                options["scan_backend"] = scan_backend
            if mixer == "mamba_vision":
                options["dt_bias_count"] = dt_bias_count
            return _build(MIXERS[mixer], "mixer_options", embed_dim, **options)

        with torch.random.fork_rng(devices=[]):  # all weights are drawn again later, by name
            self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
            self.pos_embed = None
            if pos_embed == "learned":
                self.pos_embed = nn.Parameter(
                    torch.zeros(1, 1 + self.patch_embed.num_patches, embed_dim))
            ramp = [drop_path * i / max(1, depth - 1) for i in range(depth)]
            self.blocks = nn.ModuleList(
                Block(make_mixer() if is_ssm else Attention(embed_dim, num_heads),
                      make_channel_mixer(channel_mixer if is_ssm else attention_channel_mixer),
                      make_norm, embed_dim, layer_scale,
                      ramp[i] if drop_path_schedule == "linear" else drop_path)
                for i, is_ssm in enumerate(ssm_positions(depth, split, order)))
            self.norm = make_norm()
        initialise(self, seed, init=init, dt_init=dt_init, projections=projections)

    def _embed(self, x: Tensor, masks: Tensor | None) -> Tensor:
        """Tokens `(B, 1 + N, D)` that enter the first block."""
        grid = tuple(side // patch for side, patch in
                     zip(x.shape[-2:], self.patch_embed.patch_size, strict=True))
        x = self.patch_embed(x)  # (B, 3, H, W) -> (B, N, D)
        if masks is not None:
            if masks.shape != x.shape[:2]:
                raise InputError("masks", "shape", f"is {tuple(masks.shape)}",
                                 f"pass one boolean per patch, {tuple(x.shape[:2])}")
            x = torch.where(masks.bool().unsqueeze(-1), self.mask_token.to(x.dtype), x)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        if self.pos_embed is not None:
            # The class embedding is stored first wherever the token stands, so that the patch
            # embeddings stay a grid.
            cls = cls + self.pos_embed[:, :1]
            x = x + self._patch_positions(grid)
        at = self.cls_index(x.shape[1])
        return torch.cat([x[:, :at], cls.to(x.dtype), x[:, at:]], dim=1)

    def _patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings `(1, N, D)` of the patches, resized to `grid` rows and columns."""
        patches = self.pos_embed[:, 1:]
        if grid == self.patch_embed.grid_size:
            return patches
        own = self.patch_embed.grid_size
        with torch.autocast(patches.device.type, enabled=False):
            image = patches.float().reshape(1, *own, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
            scale = tuple((new + INTERPOLATE_OFFSET) / old
                          for new, old in zip(grid, own, strict=True))
            image = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=False)
        if image.shape[-2:] != torch.Size(grid):
            raise InputError("input image", "shape", f"gives a grid of {grid} patches",
                             "choose a crop closer to the size that positions were learned for")
        return image.flatten(2).transpose(1, 2).to(patches.dtype)

    def cls_index(self, n_patches: int) -> int:
        """Where the class token stands among `n_patches` patches."""
        return n_patches // 2 if self.cls_position == "middle" else 0

    def _run(self, block: Block, x: Tensor) -> Tensor:
        keep = [block.drop_path.draw(x, self.generator) for _ in range(2)]
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *keep, use_reentrant=False)
        return block(x, *keep)

    def forward_features(self, x: Tensor | Sequence[Tensor],
                         masks: Tensor | Sequence[Tensor | None] | None = None
                         ) -> dict[str, Tensor | None] | list[dict[str, Tensor | None]]:
        """Normalised tokens of an image batch, or of several batches of different crop sizes.

        Parameters
        ----------
        x
            `(B, 3, H, W)`, normalised as `pretrained_cfg` says, or a list of such batches.
        masks
            `(B, N)`, true where a patch is replaced by the mask token; a list for a list.

        Returns
        -------
        dict
            ``cls`` `(B, D)`; ``patch_tokens`` `(B, N, D)` in raster order; ``masks`` as passed.
            A list of them for a list.

        Raises
        ------
        InputError
            If the patch does not divide a crop, or a mask does not fit it.
        """
        if not isinstance(x, Tensor):
            masks = [None] * len(x) if masks is None else masks
            if len(masks) != len(x):
                raise InputError("masks", "length", f"is {len(masks)} for {len(x)} batches",
                                 "pass one mask, or None, per batch")
            return [self.forward_features(crop, mask)
                    for crop, mask in zip(x, masks, strict=True)]
        x = self._embed(x, masks)
        for block in self.blocks:
            x = self._run(block, x)
        return self._output(self.norm(x), masks)

    def _output(self, x: Tensor, masks: Tensor | None) -> dict[str, Tensor | None]:
        at = self.cls_index(x.shape[1] - 1)
        return {"cls": x[:, at], "masks": masks,
                "patch_tokens": torch.cat([x[:, :at], x[:, at + 1:]], dim=1)}

    def forward_head(self, features: dict[str, Tensor | None], pool: str | None = None) -> Tensor:
        """Pool what `forward_features` returns: `(B, D)` or `(B, 2 D)`."""
        return read_out(features["cls"], features["patch_tokens"], pool or self.pool)

    def forward(self, x: Tensor) -> Tensor:
        """Embed `(B, 3, H, W)` as `(B, num_features)`."""
        return self.forward_head(self.forward_features(x))

    @torch.no_grad()
    def forward_intermediates(self, x: Tensor, indices: Sequence[int] | None = None,
                              norm: bool = False) -> list[dict[str, Tensor | None]]:
        """Tokens behind each block, or behind those of `indices`, as `forward_features` gives them.

        Parameters
        ----------
        x
            `(B, 3, H, W)`.
        indices
            Blocks, negative ones counted from the last.
        norm
            Apply the final normalisation to each.
        """
        depth = len(self.blocks)
        wanted = range(depth) if indices is None else [i % depth for i in indices]
        x = self._embed(x, None)
        found = {}
        for i, block in enumerate(self.blocks):
            x = self._run(block, x)
            if i in wanted:
                found[i] = self._output(self.norm(x) if norm else x, None)
        return [found[i] for i in wanted]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay under the model's policy.

        ``"dinov2-names"`` is the published rule, on names alone: what ends in ``.bias`` or
        contains ``norm`` or ``gamma``. It decays the poles, skips and time steps of the
        state-space layers, which ``"mamba"`` exempts along with EinFFT's biases.
        """
        exempt = MAMBA_NO_DECAY if self.no_decay == "mamba" else ()
        return {name for name, _ in self.named_parameters()
                if name.endswith(".bias") or "norm" in name or "gamma" in name
                or name.rsplit(".", 1)[-1] in exempt}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def save_pretrained(self, folder: str | Path,
                        pretrained_on: dict[str, Sequence[str]] | None = None) -> Path:
        """Write ``model.safetensors`` and ``config.json`` into `folder`, each by atomic rename.

        Parameters
        ----------
        folder
            Made if it is not there.
        pretrained_on
            Sections, patients and studies whose images the weights have seen; default: what the
            model already says.
        """
        folder = Path(folder)
        if pretrained_on is not None:
            unknown = set(pretrained_on) - {"sections", "patients", "studies"}
            if unknown:
                raise InputError(folder, "pretrained_on", f"has unknown keys {sorted(unknown)}",
                                 "use sections, patients, studies")
            self.pretrained_on = {key: [str(v) for v in values]
                                  for key, values in pretrained_on.items()}
        sealed.write(folder, self.state_dict(), {
            "architecture": self.architecture, "preset": self.preset,
            "model_args": self.model_args, "embed_dim": self.embed_dim,
            "num_features": self.num_features, "pretrained_cfg": self.pretrained_cfg,
            "pretrained_on": self.pretrained_on, "mvhlib_version": mvhlib.__version__})
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> "Backbone":
        """Read a model that `save_pretrained` wrote, in evaluation mode.

        Parameters
        ----------
        folder
            Holds ``model.safetensors`` and ``config.json``.
        overrides
            `pool`, `scan_backend`, `drop_path` and the like: arguments that leave the weights as
            they are.

        Raises
        ------
        InputError
            If a file is missing, truncated or altered, the two do not belong together, or a weight
            is not finite.
        """
        folder = Path(folder)
        config_path, again = folder / sealed.CONFIG, "copy or train the model again"
        tensors, config = sealed.read(folder, again)
        with reading(config_path, "content", "is not a model configuration", again):
            args = dict(config["model_args"])
        unsaid = [name for name, value in args.items()
                  if isinstance(value, float) and not math.isfinite(value)]
        if unsaid:
            raise InputError(config_path, f"model_args: {unsaid[0]}", f"is {args[unsaid[0]]}",
                             again)
        with reading(config_path, "model_args", "do not fit the weights",
                     "pass no override that changes the weights, or use the version of mvhlib that "
                     f"wrote it, {config.get('mvhlib_version')}"):
            try:
                with torch.device("meta"):  # initial weights would be thrown away
                    model = cls(**(args | overrides))
            except InputError as error:
                raise InputError(config_path, f"{error.where}: {error.field}", error.problem,
                                 error.fix) from error
            model.load_state_dict(tensors, assign=True)
            kinds = {tensor.dtype for tensor in model.parameters()}
            if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
                raise TypeError(f"weights are of {sorted(map(str, kinds))}")
            model.architecture, model.preset = config["architecture"], config["preset"]
            model.pretrained_on = config["pretrained_on"]
        return model.eval()


def read_out(cls: Tensor | None, patches: Tensor, pool: str) -> Tensor:
    """Pool the tokens of each image to one vector.

    Parameters
    ----------
    cls
        `(B, D)`; None where the network has no class token.
    patches
        `(B, N, D)`, registers left out.
    pool
        A name of `READ_OUTS`.

    Returns
    -------
    Tensor
        `(B, D)`, `(B, 2 D)` or `(B, 3 D)`.

    Raises
    ------
    InputError
        On a name that is none of them, or where a class token is wanted and there is none.
    """
    if pool not in READ_OUTS:
        raise InputError("read-out", "pool", f"is {pool!r}", f"use one of {', '.join(READ_OUTS)}")
    if cls is None and "cls" in pool:
        raise InputError("read-out", "pool", f"is {pool!r}, and there is no class token",
                         "use mean or mean+std")
    parts = {"cls": lambda: cls, "mean": lambda: patches.mean(dim=1),
             "std": lambda: patches.float().std(dim=1, correction=0)}
    found = [parts[part]() for part in pool.split("+")]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def _build(kind: Callable[..., nn.Module], field: str, dim: int, **options: Any) -> nn.Module:
    known = list(inspect.signature(kind).parameters)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(kind.__name__, field, f"has unknown options {unknown}",
                         f"use {', '.join(known[1:])}")
    return kind(dim, **options)


def _check(args: dict[str, Any]) -> None:
    """Refuse arguments that name nothing, or a mixture that silences the state-space branch."""
    for name, choices in CHOICES.items():
        if args[name] not in choices:
            raise InputError("backbone", name, f"is {args[name]!r}",
                             f"choose one of {', '.join(choices)}")
    for name, largest in LARGEST.items():
        least = 0 if name == "depth" else 1
        if not (isinstance(args[name], int) and least <= args[name] <= largest):
            raise InputError("backbone", name, f"is {args[name]!r}",
                             f"choose a whole number from {least} to {largest}")
    if not 0 <= args["split"] <= args["depth"]:
        raise InputError("backbone", "split", f"is {args['split']} of {args['depth']} blocks",
                         "choose between 0 and depth")
    if not 0 <= args["drop_path"] < 1:
        raise InputError("backbone", "drop_path", f"is {args['drop_path']}",
                         "choose a rate in [0, 1)")
    if args["mixer"] == "mamba_vision" and args["split"] and args["dt_init"] == "mamba" \
            and args["dt_bias_count"] == 2:
        raise InputError(
            "backbone", "dt_init, dt_bias_count",
            "Mamba's time-step initialisation with a bias that enters twice lets the median step "
            "fall from 1e-2 to 1e-4", 'use preset="corrected" (dt_bias_count=1) or '
            'preset="released" (dt_init="released")')
