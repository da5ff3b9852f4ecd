"""Folds that respect studies, patients and duplicate specimens.

A protocol states which sections train and which are tested. No fold may split one of its units;
`check` refuses a fold that does, and `make` calls it before it returns.

=================  ==========================================  ===========  =====================
protocol           test of a fold                              unit         fold id
=================  ==========================================  ===========  =====================
loso               one study                                   patient      study
patient            one patient                                 patient      patient
section            one section, trained on the patient's other section      patient.section
random10_section   a tenth of the specimens, studies mixed     specimen     00, 01, ...
random10_spot      a tenth of the spots of every section       spot         00, 01, ...
hest_bench         as its task says, else one patient          patient      0, 1, ... or patient
mvhybrid_bench     four groups of HEST's COAD and READ tasks   patient      0, 1, 2, 3
transfer           one group, trained on another one alone     study        trained->tested
within             one patient, trained on the group's others  patient      group->patient
=================  ==========================================  ===========  =====================

``section`` is a replicate test within a patient and allows no inference to patients.
``random10_section`` has patients on both sides where a patient gave several specimens.
``random10_spot`` has neighbouring spots on both sides: it is there to show how much that leaks.
Its sections have the role ``both``; `spot_folds` says which spots are tested in which fold.

``transfer`` and ``within`` belong together: ``transfer`` scores a model of one organ, data set or
study on another (the cells of a matrix), ``within`` scores a model trained on the tested group
itself (its diagonal). `group_of` gives the group of each section. Several groups may be tested on
the same one, so ``transfer`` tests its sections more than once.

``hest_bench`` and ``mvhybrid_bench`` are other authors' protocols; what is particular about them
beside the folds is in `mvhlib.expression.evaluation`.

Sections without an image cannot be predicted and are left out, which the log says.
"""

from mvhlib.cohort.splits.dealing import ARROW
from mvhlib.cohort.splits.guards import check, sizes
from mvhlib.cohort.splits.protocols import (
    LEAKS,
    MVHYBRID_GROUPS,
    PROTOCOLS,
    group_of,
    hold_out,
    make,
    possible,
    spot_folds,
)
from mvhlib.cohort.splits.resolution import match_resolution

__all__ = ["ARROW", "LEAKS", "MVHYBRID_GROUPS", "PROTOCOLS", "check", "group_of", "hold_out",
           "make", "match_resolution", "possible", "sizes", "spot_folds"]
