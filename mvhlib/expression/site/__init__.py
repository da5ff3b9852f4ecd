"""Site or biology: how much of an encoder's features reflects the laboratory, and its cost.

An encoder whose features identify the study may mislead a model: what it learns from one study's
stain does not hold on the next. One table has three measures of this: a linear probe that predicts
the study (or the patient, or the tissue class) of unseen sections; the shares of the features'
variance between studies and between tissue classes; and the drop from random folds to an unseen
study (`mvhlib.expression.evaluation.drops`).

Remedies are stain normalisation of the tiles (`mvhlib.tiles.stain`) and centring of the features
per study, below.
"""

from mvhlib.expression.site.probing import probe, unit_accuracy
from mvhlib.expression.site.remedies import all_remedies, centre, remedy_effects
from mvhlib.expression.site.shares import SHARE_COLUMNS, variance_shares
from mvhlib.expression.site.spot_rows import Rows, rows
from mvhlib.expression.site.summary import correlations, relate, said, table

__all__ = ["Rows", "SHARE_COLUMNS", "all_remedies", "centre", "correlations", "probe", "relate",
           "remedy_effects", "rows", "said", "table", "unit_accuracy", "variance_shares"]
