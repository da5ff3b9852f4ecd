"""10x platforms: Visium spots, Visium HD bins and Xenium transcripts.

Each reader takes one output folder, or a folder of several. What the outputs do not say (study,
patient, specimen, full image) stands in a table ``samples.csv`` beside them, columns
``section,study,patient,specimen`` and optionally ``folder,image,mpp,alignment``; a single output
needs none.

===============  =================================================================================
what             what is accepted; anything else is refused in one line
===============  =================================================================================
layouts          Space Ranger 1 to 4: ``filtered_feature_bc_matrix`` (else ``raw_``) as h5 or as a
                 folder, gzipped or not, beside ``spatial/``; ``binned_outputs/square_*um`` of
                 Visium HD (parquet or csv); ``transcripts.parquet``, ``.csv`` or ``.csv.gz`` of
                 Xenium. Flat files with a prefix, as GEO has them, are to be sorted into folders
counts           whole, not negative, features x barcodes; genes alone (antibodies are left out)
genes            a symbol that stands for several genes is numbered by Ensembl id, alike in all
                 sections of a cohort
barcodes         unique; every one of a filtered matrix has a position, with or without ``-1``
positions        with a header or without, `POSITION_COLUMNS`; whole array positions, finite pixels
scale            measured from the positions; what scale factors, `mpp`, the image's own tags and
                 Xenium's ``pixel_size`` state must agree within 5 %
array            Visium: hexagonal. A square array needs ``pitch_um=`` or ``mpp=``; bins of
                 Visium HD need source ``visium_hd``
image            the sizes of the full and the reduced images fit their scale factors, and at most
                 5 % of the spots lie outside
hidden files     ``._*``, ``.DS_Store`` and folders that begin with a dot are passed over
===============  =================================================================================
"""

from mvhlib.cohort.visium.array import (
    PITCH_UM,
    SPOT_RANGE_UM,
    SPOT_UM,
    array_kind,
    lies_transposed,
    measure_mpp,
)
from mvhlib.cohort.visium.counts import genes_of
from mvhlib.cohort.visium.hd import read_hd
from mvhlib.cohort.visium.images import find_image
from mvhlib.cohort.visium.layouts import (
    CELL_MATRICES,
    CELL_TABLES,
    PLATFORMS,
    TRANSCRIPT_FILES,
    first_of,
    holds,
    outputs,
)
from mvhlib.cohort.visium.positions import POSITION_COLUMNS, POSITION_FILES
from mvhlib.cohort.visium.scale import agree, read_scalefactors
from mvhlib.cohort.visium.sections import assemble, make_cohort, number_option, samples_table
from mvhlib.cohort.visium.spots import read
from mvhlib.cohort.visium.xenium import read_xenium, xenium_image

__all__ = ["CELL_MATRICES", "CELL_TABLES", "PITCH_UM", "PLATFORMS", "POSITION_COLUMNS",
           "POSITION_FILES", "SPOT_RANGE_UM", "SPOT_UM", "TRANSCRIPT_FILES", "agree", "array_kind",
           "assemble", "find_image", "first_of", "genes_of", "holds", "lies_transposed",
           "make_cohort", "measure_mpp", "number_option", "outputs", "read", "read_hd",
           "read_scalefactors", "read_xenium", "samples_table", "xenium_image"]
