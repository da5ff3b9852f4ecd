"""Linear and nearest-neighbour probes: how well a frozen embedding predicts a label.

Rows are tiles, or images by the mean of their tiles; what may not stand on both sides of a fold is
the patient. Scores are balanced accuracy, weighted F1 and AUROC, each with an interval over
patients.

============  ===========================================================================
split         what a fold holds out
============  ===========================================================================
``grouped``   whole patients (or studies, where those are passed as groups)
``random``    rows, whoever they are of: leaks patients, and is there to show how much
``given``     what the publishers of a set hold out; groups are not looked at
============  ===========================================================================

The published systems name these tasks and no protocol. The choices here (frozen features, logistic
regression, 20 neighbours after centring and scaling to length 1) are those of UNI's evaluation
(Chen et al., Nature Medicine 30, 2024), but for the penalty, which UNI fixes by the width and which
is chosen here on inner folds of the training side.
"""

from mvhlib.downstream.probe.classifiers import (
    INNER_FOLDS,
    PENALTIES,
    LogisticProbe,
    NearestNeighbours,
)
from mvhlib.downstream.probe.comparison import (
    COLUMNS,
    LEAK_COLUMNS,
    Comparison,
    Result,
    compare,
    evaluate,
    leak,
    shared_patients,
)
from mvhlib.downstream.probe.panels import draw_auroc
from mvhlib.downstream.probe.rows import (
    colour_features,
    confounding,
    embedded,
    embeddings,
    image_means,
    in_two_units,
    one_class_per_study,
    saw,
    thin,
)
from mvhlib.downstream.probe.scores import Scores, confusion_matrix, confusion_table, score
from mvhlib.downstream.probe.splits import SPLITS, folds

__all__ = ["COLUMNS", "Comparison", "INNER_FOLDS", "LEAK_COLUMNS", "LogisticProbe",
           "NearestNeighbours", "PENALTIES", "Result", "SPLITS", "Scores", "colour_features",
           "compare", "confounding", "confusion_matrix", "confusion_table", "draw_auroc",
           "embedded", "embeddings", "evaluate", "folds", "image_means", "in_two_units", "leak",
           "one_class_per_study", "saw", "score", "shared_patients", "thin"]
