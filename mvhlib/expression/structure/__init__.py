"""Structure beyond single genes: gene sets, co-expression, and regions of tissue.

Everything is computed within sections and then averaged over them, so that an offset between
laboratories does not appear as a pathway, a correlation or a tissue class.
"""

from mvhlib.expression.structure.correlations import CoExpression, co_expression, mantel, varying
from mvhlib.expression.structure.gene_set_scores import (
    LEAST_GENES,
    gene_sets,
    gene_signs,
    program_sets,
    read_gmt,
    score_sets,
    set_scores,
)
from mvhlib.expression.structure.regions import (
    AUROC_COLUMNS,
    PLACE_COLUMNS,
    align,
    class_auroc,
    class_aurocs,
    clusters,
    localise,
)
from mvhlib.expression.structure.summary import summarise
from mvhlib.expression.structure.systems import SYSTEM_COLUMNS, judge_system

__all__ = ["AUROC_COLUMNS", "CoExpression", "LEAST_GENES", "PLACE_COLUMNS", "SYSTEM_COLUMNS",
           "align", "class_auroc", "class_aurocs", "clusters", "co_expression", "gene_sets",
           "gene_signs", "judge_system", "localise", "mantel", "program_sets", "read_gmt",
           "score_sets", "set_scores", "summarise", "varying"]
