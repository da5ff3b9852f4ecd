"""Outcomes and covariates of patients, checked before any survival model is fitted.

`read` gives one row per patient whatever the layout:

=========  =========================================================================================
source     what lies in the folder
=========  =========================================================================================
panther    ``<name>_k=<fold>/{train,test[,val]}.csv`` (PANTHER, Song et al., CVPR 2024): one row per
           slide, days, ``<endpoint>_censorship``; the five folds of TCGA-COADREAD are disjoint by
           tissue source site. AJCC stage stands in ``ajcc_pathologic_tumor_stage``;
           ``clinical_stage`` is "[Not Applicable]" throughout.
survpath   ``tcga_<cancer>.csv`` and ``tcga_<cancer>_clinical.csv`` (SurvPath, Jaume et al., CVPR
           2024): one row per slide, months of 30 days. The column ``stage`` of the clinical table
           is not the AJCC stage: beside PANTHER's table, stage IIA (T3 N0) stands as "III" and
           stage IIB (T4 N0) as "IV". It is the T of TNM in Roman numerals, and is read as
           ``t_stage``. ``grade`` is "N/A" throughout.
slides     ``slides.csv`` of a cohort of bags: slide, patient, ``time_months``, ``event``; more
           endpoints have a suffix, ``time_months_spread``.
table      any csv with one row per patient, its columns named by the caller (`read_table`).
=========  =========================================================================================

What is read of their columns, upper or lower case; any other cell is refused with its row:

=========  =========================================================================================
column     accepted
=========  =========================================================================================
patient    text, so that ``007`` stays; every TCGA barcode is cut to its first 12 characters; none
           may be blank, ``NA`` or the like, or hold a slash (`mvhlib.artifacts.safe_name`)
slide      text; of one patient alone, whom a TCGA barcode in its name must not contradict
time       finite numbers, up to a hundred years; blank or ``NA`` leaves the patient out, and a note
           says so
event      0 and 1, ``alive`` and ``dead``, ``yes`` and ``no``, cBioPortal's ``1:DECEASED`` and what
           else stands in `EVENTS`; blank or ``NA`` as for the time
sex        ``male``, ``female``, M, F, and the same in other languages (`SEXES`); or not known
stage      0 to 4, I to IV with A to C behind, ``Stage`` or ``Stadium`` before; ``Stage X`` is not
           known
age        numbers from 0 to 120 [years]; or not known
site       text; none may be blank
=========  =========================================================================================

What is not known (`mvhlib.tables.NOT_KNOWN`) is NaN, and `Clinical.complete` leaves it out with a
note; a column of which nothing is known is no covariate. A table of several TCGA studies (COAD and
READ count as one) is refused unless ``only`` says which are meant.

``event`` is 1 where it was seen and 0 where the patient was censored; the layouts above that say
``censorship`` mean the opposite (1 is censored). Times are months of 365.25 / 12 days.
"""

from mvhlib.cohort.clinical.folds import check_folds, grouped_folds, site_folds
from mvhlib.cohort.clinical.outcomes import ENDPOINTS, Clinical, check_outcomes
from mvhlib.cohort.clinical.sources import (
    read,
    read_panther,
    read_slides,
    read_survpath,
    read_table,
    read_with_folds,
)
from mvhlib.cohort.clinical.values import stage_number

__all__ = ["Clinical", "ENDPOINTS", "check_folds", "check_outcomes",
           "grouped_folds", "read", "read_panther", "read_slides", "read_survpath", "read_table",
           "read_with_folds", "site_folds", "stage_number"]
