"""MMAP: three magnifications of a spot, then the prototypes of its slide (arXiv 2510.11344).

Stage 1 reads three views of a spot. In one cross-attention the class token of the highest
zoom attends to the tokens of the other two; a linear head on the fused token and one on the class
token are averaged. Stage 2 clusters the fused tokens of each slide by k-means, lets every spot
attend to the most similar half of its slide's centres, and averages again. A slide's prototypes
come from its own image, so a prediction needs the whole slide but none of its expression.

::

    tiles  --view_tokens-->  (T, V, N, D)  --stage 1-->  prediction, fused token
                                                             |
                                k-means per slide, top L     v
    prototypes  <------------------------------------  fused tokens  --stage 2-->  prediction

The views come from an encoder that is frozen (its tokens are computed once: `token_folder`) or that
is adapted by low-rank updates while stage 1 is trained (`MMAP(encoder=...)` on uint8 tiles).

Written from the description of the method, not from its code. Two flags restore what the authors'
code does: `random_crop_eval` and ``mask_padding=False``. Our own additions: tokens are standardised
by their mean and spread over the training spots, heads start at the mean expression of the
training spots, and training may stop early on held-out patients.

`stnet` is MMAP with one view and no prototypes: a linear head on the embedding of the tile, after
He et al. (Nature Biomedical Engineering 4, 2020). `mvhlib.expression.fused` saves a trained stage 1
as an encoder of tiles for other tasks.

`views`       crops of the tile, fields of the slide, augmentation
`tokens`      tokens of the views, section by section
`lora`        low-rank updates of an encoder
`network`     attention, similarity term, the models of both stages
`prototypes`  k-means per slide, selection, maps and tiles of prototypes
`recurring`   whether prototypes follow gene programs more than a smooth map would
`estimator`   `MMAP` and `stnet`
`ablations`   paired differences of variants, and their verdicts
`questions`   the variants, and the authors' claims about them
"""

from mvhlib.expression.mmap.ablations import (
    against,
    draw_differences,
    sentence,
    verdicts,
)
from mvhlib.expression.mmap.estimator import (
    EVAL_BATCH,
    METHODS,
    MMAP,
    STANDARD_SPOTS,
    stnet,
)
from mvhlib.expression.mmap.lora import (
    PROJECTIONS,
    LowRankLinear,
    adapted_copies,
    add_lora,
)
from mvhlib.expression.mmap.network import (
    MARGIN,
    CrossAttention,
    PrototypeModel,
    SpotModel,
    similarity_loss,
)
from mvhlib.expression.mmap.prototypes import (
    FEWEST,
    MOST,
    Prototypes,
    cluster,
    draw_attention,
    draw_map,
    draw_tiles,
    n_prototypes,
    n_selected,
    select,
)
from mvhlib.expression.mmap.questions import (
    QUESTIONS,
    authors_claims,
    compare_variants,
    draw_variants,
    variants,
)
from mvhlib.expression.mmap.tokens import (
    all_views,
    class_token,
    tile_folder,
    token_folder,
    view_tokens,
)
from mvhlib.expression.mmap.views import (
    MIN_VIEW_PX,
    ZOOMS,
    augment,
    crop_views,
    cut_views,
)

__all__ = ["CrossAttention", "EVAL_BATCH", "FEWEST", "LowRankLinear", "MARGIN", "METHODS",
           "MIN_VIEW_PX", "MMAP", "MOST", "PROJECTIONS", "PrototypeModel", "Prototypes",
           "QUESTIONS", "STANDARD_SPOTS", "SpotModel", "ZOOMS", "adapted_copies", "add_lora",
           "against", "all_views", "augment", "authors_claims", "class_token", "cluster",
           "compare_variants", "crop_views", "cut_views", "draw_attention", "draw_differences",
           "draw_map", "draw_tiles", "draw_variants", "n_prototypes", "n_selected", "select",
           "sentence", "similarity_loss", "stnet", "tile_folder", "token_folder", "variants",
           "verdicts", "view_tokens"]
