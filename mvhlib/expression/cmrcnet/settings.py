"""Settings of CMRCNet."""

from dataclasses import dataclass

from mvhlib.artifacts import InputError

CHOICES = {"reconstruct": ("image", "genes", "none"), "loss": ("mse", "cosine"),
           "schedule": ("joint", "two_stage")}


@dataclass(frozen=True)
class Settings:
    """Settings of the model; defaults are the released code's, except the last three flags.

    Attributes
    ----------
    width
        Of both embeddings and of the reconstruction, W.
    tau
        Temperature: divides the logits and multiplies the similarities that make the soft target,
        as CMRCNet has it. (BLEEP divides both; at 1 they agree.)
    reconstruct
        ``"image"``: masked image tokens, helped by genes, rebuild the image embedding;
        ``"genes"``: the other way round; ``"none"``.
    loss
        Of the reconstruction: ``"mse"`` or ``"cosine"`` (1 less the cosine).
    mask_rate
        Share of the tokens' numbers that is set to 0.
    schedule
        ``"joint"``, as in the released code; ``"two_stage"``: the contrastive loss alone for the
        first half of the epochs, then both. The paper's summary names two stages and no more.
    log_scale
        Each term x enters as log(1 + x), the contrastive one per spot. BLEEP adds them as they are.
    gene_hidden, gene_tokens
        Width of the self-normalising gene branch, and the tokens that it is cut into.
    share_blocks
        True: the two refining blocks are one, as in the released code, which lists it twice.
    keep_prob_semantics
        True: `mask_rate` is the share that is kept, as in the released code; the same at 0.5.
    detach_targets
        False: gradients also flow through the soft target and the embedding to be rebuilt, as in
        the released code.
    """

    width: int = 256
    tau: float = 1.0
    reconstruct: str = "image"
    loss: str = "mse"
    mask_rate: float = 0.5
    schedule: str = "joint"
    log_scale: bool = True
    gene_hidden: int = 2048
    gene_tokens: int = 8
    share_blocks: bool = False
    keep_prob_semantics: bool = False
    detach_targets: bool = True

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError("cmrcnet", name, f"is {getattr(self, name)!r}",
                                 f"use one of {list(known)}")
        if not self.tau > 0:
            raise InputError("cmrcnet", "tau", f"is {self.tau}", "use a number above 0")
        if not 0 <= self.mask_rate < 1 and not (self.keep_prob_semantics and self.mask_rate == 1):
            raise InputError("cmrcnet", "mask_rate", f"is {self.mask_rate}",
                             "use 0 (nothing is masked) up to, not including, 1")
        if self.width % 8:
            raise InputError("cmrcnet", "width", f"is {self.width}",
                             "use a multiple of 8, the number of attention heads")
        if self.gene_hidden % self.gene_tokens:
            raise InputError("cmrcnet", "gene_hidden", f"is {self.gene_hidden}",
                             f"use a multiple of gene_tokens, {self.gene_tokens}")
