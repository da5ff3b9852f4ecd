"""CMRCNet: images and expression in one space; the most similar training spots give predictions.

Zhang et al., arXiv 2506.08854, from its description. An image encoder and an expression head are
trained so that the two embeddings of a spot agree (a contrastive loss with soft targets), while a
second branch rebuilds the image's embedding from tokens of which half the numbers are masked, with
the help of the spot's genes. To predict, the image of a new spot is embedded and the expression of
its `k` nearest training spots is averaged, so that any gene measured there can be predicted.

::

    tile -> tokens (B, N, D) -> mean -> head -> image embedding (B, W)  -.
    genes (B, G) ---------------------> head -> spot embedding (B, W)   -+-> soft-target loss
    tokens, masked -+-> attention to gene tokens, twice refined -> mean -> ~ image embedding

Where the released code differs from the paper's summary, or seems to contain an error, `Settings`
documents it and uses the corrected form; flags restore the authors'.

With a frozen encoder (`encoder=None`, samples hold tokens or features) one transformer block on top
of its tokens is trained, which both branches share. Without this block, and with a detached target,
the reconstruction could not affect retrieval.

`settings`   what the model is made of
`losses`     soft-target contrast, reconstruction error, masks
`network`    tokens, heads, masked reconstruction
`samples`    features, tokens or tiles of a section, and its expression
`estimator`  `CMRCNet` and `bleep`
`fitted`     one fold's model with its gallery: retrieval and diagnostics
`selected`   the authors' scores on genes chosen on the test section
`arms`       ablations: their settings, the authors' claims, and the figures
"""

from mvhlib.expression.cmrcnet.arms import (
    TERMS,
    Compared,
    compare_masks,
    compare_neighbours,
    compare_terms,
    copying,
    draw_arms,
    draw_log,
    neighbours_to_try,
)
from mvhlib.expression.cmrcnet.estimator import (
    METHODS,
    PUBLISHED_TRAINING,
    CMRCNet,
    bleep,
)
from mvhlib.expression.cmrcnet.fitted import Fitted
from mvhlib.expression.cmrcnet.losses import (
    contrastive_terms,
    mask_of,
    reconstruction_error,
    soft_targets,
)
from mvhlib.expression.cmrcnet.network import (
    EMBED_BATCH,
    FrozenTokens,
    GeneTokens,
    Network,
    ProjectionHead,
    Reconstruction,
    Refine,
    ResidualCrossAttention,
    TileTokens,
    turned,
)
from mvhlib.expression.cmrcnet.samples import (
    PUBLISHED_ENCODER,
    as_tokens,
    inputs,
    other_genes,
    paired,
    published_encoder,
    table,
    token_encoder,
)
from mvhlib.expression.cmrcnet.selected import selected_on_test, selected_table
from mvhlib.expression.cmrcnet.settings import CHOICES, Settings

__all__ = ["CHOICES", "CMRCNet", "Compared", "EMBED_BATCH", "Fitted", "FrozenTokens", "GeneTokens",
           "METHODS", "Network", "PUBLISHED_ENCODER", "PUBLISHED_TRAINING", "ProjectionHead",
           "Reconstruction", "Refine", "ResidualCrossAttention", "Settings", "TERMS", "TileTokens",
           "as_tokens", "bleep", "compare_masks", "compare_neighbours", "compare_terms",
           "contrastive_terms", "copying", "draw_arms", "draw_log", "inputs", "mask_of",
           "neighbours_to_try", "other_genes", "paired", "published_encoder",
           "reconstruction_error", "selected_on_test", "selected_table", "soft_targets", "table",
           "token_encoder", "turned"]
