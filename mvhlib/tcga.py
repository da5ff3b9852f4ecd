"""Names of The Cancer Genome Atlas: barcodes that hold a patient, and its studies."""

import re

#: A patient at the beginning of a barcode: ``TCGA-A1-A0SB`` of ``TCGA-A1-A0SB-01Z-00-DX1``.
BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)

#: Studies, as tables name them with or without ``TCGA-`` before.
STUDIES = frozenset((
    "ACC BLCA BRCA CESC CHOL COAD COADREAD DLBC ESCA GBM HNSC KICH KIRC KIRP LAML LGG LIHC LUAD "
    "LUSC MESO OV PAAD PCPG PRAD READ SARC SKCM STAD TGCT THCA THYM UCEC UCS UVM").split())


def patient_of(name: str) -> str:
    """The patient of a barcode, its first 12 characters; other names as they are."""
    found = BARCODE.match(name)
    return found[1].upper() if found else name


def of_another(slide: str, patient: str) -> bool:
    """Whether a slide's barcode names another patient than the one that it is said to be of."""
    found = BARCODE.match(slide)
    return bool(found and BARCODE.match(patient) and found[1].upper() != patient_of(patient))
