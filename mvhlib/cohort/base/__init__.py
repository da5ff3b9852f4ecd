"""Data sets: sections with study, patient and specimen, and cohorts of sections.

A section on disk is one h5ad file: ``layers["counts"]`` raw counts (spots x genes), ``obs`` with
study, patient, section, ``obsm["spatial"]`` spot centres (x, y) in level-0 pixels and, where
there is an image, ``uns["spatial"][section]`` with a thumbnail, as squidpy draws it.
``uns["mvh"]`` says where the full image lies; see `ImageRef`.

What the source ``run`` accepts of such a folder:

==================  ================================================================================
what                how it is read
==================  ================================================================================
``manifest.csv``    one row per section, strictly (`mvhlib.artifacts.read_csv`); study, patient,
                    specimen, source, scale, image and sizes must be those of the section's h5ad
names               text; no slash, no blank, unique without regard to case
``uns["mvh"]``      every key with the type that `write_section` gave it; scale above 0, or -1
                    where there is none
image               a relative path below DATA or the cohort folder; links on the way are followed
counts              whole numbers from 0 to 2,147,483,647, not all 0; sparse ones are checked before
                    anything is computed
places              ``(n, 2)`` finite numbers; at most one spot in twenty outside the image
==================  ================================================================================

All else is refused in one line.
"""

from mvhlib.cohort.base.checks import (
    FARTHEST_PX,
    MPP_RANGE,
    check_counts,
    check_inside,
    check_mpp,
    check_places,
    check_scale,
    check_sparse,
    signed_indices,
)
from mvhlib.cohort.base.listing import entries, present, section_list
from mvhlib.cohort.base.run_folder import (
    read_run,
    read_section,
    spot_labels,
    truth_genes,
    write_section,
)
from mvhlib.cohort.base.section import MANIFEST_COLUMNS, Cohort, ImageRef, Section

__all__ = ["Cohort", "FARTHEST_PX", "ImageRef", "MANIFEST_COLUMNS", "MPP_RANGE", "Section",
           "check_counts", "check_inside", "check_mpp", "check_places", "check_scale",
           "check_sparse", "entries", "present", "read_run", "read_section", "section_list",
           "signed_indices", "spot_labels", "truth_genes", "write_section"]
