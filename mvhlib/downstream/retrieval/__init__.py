"""Retrieval of similar tissue: class prototypes, nearest tiles, and image against expression.

Three questions to an encoder whose weights stay as they are:

* ``prototypes``: the mean embedding of a class, made from some patients, is held against the tiles
  of another one. Is a tile's nearest prototype its own class, and are a prototype's nearest tiles
  of its class? ``prototypes_scaled`` divides each feature by its training spread first, without
  which features with units (the hand-made ones) count by their size.
* ``nearest``: are the tiles most alike, among other patients, of the same class?
* ``ridge`` and ``cca``: given a spot's image, which of its section's expression profiles is its
  own, and the other way round?

Query and gallery never share a patient (split ``patient``) or a study (``study``); ``random`` is
there to show what that leaks. Means are over classes within a patient, so that a common class does
not speak for a rare one, and intervals over patients or studies.

`classes`  folds, prototypes, nearest tiles, and scores of a ranking
`modal`    image against expression
`summary`  intervals over patients or studies, paired differences
`figures`  what prototypes find, maps, UMAP
"""

from mvhlib.downstream.retrieval.classes import (
    CLASSIFIERS,
    SPLITS,
    VALUE_COLUMNS,
    Fold,
    Prototypes,
    accuracy_at_k,
    average_precision,
    chance_accuracy,
    chance_average_precision,
    folds,
    image_rows,
    keep_classes,
    precision_at_k,
    ranked,
    retrieve,
)
from mvhlib.downstream.retrieval.figures import (
    LEAST_UMAP,
    draw_hits,
    draw_map,
    hits,
    median_fold,
    tile_images,
    umap,
)
from mvhlib.downstream.retrieval.modal import (
    DIRECTIONS,
    CanonicalRidge,
    Pairs,
    RidgeMatch,
    cross_modal,
    match_scores,
    pair_ranks,
    read_pairs,
    relative_rank,
    similarity,
)
from mvhlib.downstream.retrieval.summary import SUMMARY_COLUMNS, compare, compare_all, summarise

__all__ = ["CLASSIFIERS", "DIRECTIONS", "LEAST_UMAP", "SPLITS", "SUMMARY_COLUMNS", "VALUE_COLUMNS",
           "CanonicalRidge", "Fold", "Pairs", "Prototypes", "RidgeMatch", "accuracy_at_k",
           "average_precision", "chance_accuracy", "chance_average_precision", "compare",
           "compare_all", "cross_modal", "draw_hits", "draw_map", "folds", "hits", "image_rows",
           "keep_classes", "match_scores", "median_fold", "pair_ranks", "precision_at_k", "ranked",
           "read_pairs", "relative_rank", "retrieve", "similarity", "summarise", "tile_images",
           "umap"]
