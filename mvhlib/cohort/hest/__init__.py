"""Reader of HEST-1k and hest-bench in their layouts on disk.

::

    HEST-1k                                hest-bench, one folder per task
        st/<id>.h5ad                           adata/<id>.h5ad
        patches/<id>.h5                        patches/<id>.h5
        wsis/<id>.tif                          splits/{train,test}_<i>.csv
        metadata/<id>.json                     var_50genes.json
        HEST_v1_1_0.csv

Counts are raw in ``X``; ``obsm["spatial"]`` are spot centres [level-0 px]. Patches hold `img`,
`coords` (top-left corners) and a name per patch; there are fewer of them than spots, in an order of
their own, and their side differs between releases. All is joined on barcode.

Who gave which tissue is not always stated, and in places stated wrongly. A table of corrections
(``params/hest_crc/samples.csv`` for colorectal tissue, ``params/hest_transfer/samples.csv`` for the
data sets of CMRCNet) overrules the metadata, says which samples are duplicates, and holds the sets
that a cohort can be made of.

What is accepted:

==================  ================================================================================
what                how it is read
==================  ================================================================================
csv, corrections,   as `mvhlib.tables` reads users' tables: text, stripped; ids once each. Blank,
splits              ``NA`` and ``not reported`` are not stated
``<id>.h5ad``       raw counts in ``X``, dense or sparse, whole and not all 0; barcodes once each;
                    ``obsm["spatial"]`` of shape (n, 2), finite
symbols             a doubled one gets a suffix, in the order of ``var["gene_ids"]`` where there are
                    any, else of the file
patches             ``img`` uint8 (n, S, S, 3), ``coords`` (n, 2) finite, ``barcode`` (or
                    ``barcodes``) once each; ``pixel_size``, ``patch_size_src`` above 0, or absent
scale               ``pixel_size_um_estimated`` must give spots their distance (100 um; 200 um or
                    ``inter_spot_dist`` on legacy arrays) within a tenth, and be the patches'.
                    ``pixel_size_um_embedded`` is not believed: half of HEST's are dots per inch
image               at most one spot in twenty outside
absent              slide: the patches; patches as well: expression-only. A link that leads nowhere
                    is refused
==================  ================================================================================

HEST: Jaume et al., NeurIPS 2024.
"""

from mvhlib.cohort.hest.bench import bench_folds, bench_genes, bench_options
from mvhlib.cohort.hest.corrections import (
    CORRECTION_COLUMNS,
    MEMBERSHIPS,
    describe,
    label,
    read_corrections,
)
from mvhlib.cohort.hest.genes import k_genes
from mvhlib.cohort.hest.hub import HUB, fetch
from mvhlib.cohort.hest.patches import patch_file, tiles
from mvhlib.cohort.hest.sections import PITCH_UM, read

__all__ = ["CORRECTION_COLUMNS", "HUB", "MEMBERSHIPS", "PITCH_UM", "bench_folds", "bench_genes",
           "bench_options", "describe", "fetch", "k_genes", "label", "patch_file", "read",
           "read_corrections", "tiles"]
