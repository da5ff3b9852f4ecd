"""Legacy Spatial Transcriptomics: readers shared by every data set of that family.

A section is three files: counts (spots x genes, index ``XxY`` in array positions), a spot file
(array position and pixel of every spot, and which of them lie under tissue) and, sometimes, an
image. The scale is measured, not believed: neighbouring spots of an array are a known distance
apart, so their distance in pixels gives micrometres per pixel.

Sources: Ståhl et al., Science 353, 78 (2016), for the arrays; Andersson et al., Nature
Communications 12, 6012 (2021), and Bergenstråhle et al., BMC Genomics 21, 482 (2020), for the
file formats.

==================  ================================================================================
what                how it is read
==================  ================================================================================
tables              apart by tabs, or by commas; UTF-8 or UTF-16 with byte order mark; packed by
                    gzip or not, whatever the ending says; the header may lack the corner, as R
                    writes it; other ragged rows are refused
counts              one row per spot, one column per gene; a header is asked for, names once each;
                    whole numbers, not all 0
doubled genes       refused, since nothing tells which is which; the source ``legacy_st`` sums them
                    where it is asked to
index of counts     ``10x13``; ``9.97x13.04``, as the ST pipeline aligns them, is rounded where
                    there is a spot file
spot file           x, y, pixel_x, pixel_y (or rows ``XxY`` with X, Y [px]): finite numbers;
                    selected: 0 and 1, or TRUE and FALSE
positions           pixels must follow array positions by one map, its steps equally long within a
                    quarter; else they are of another image
scale               measured from the spots; a stated one must agree within a tenth
image               at most one spot in twenty outside. One that was reduced is recognised by more
                    than a tenth outside, and its scale found, unless it could be a cut-out as well
absent              image: expression-only; spot file: array positions, expression-only; labels
``samples.csv``     for the source ``legacy_st``: columns section, study, patient, counts;
                    optionally specimen, spots, image, labels (paths below DATA) and full_width_px.
                    One file belongs to one section
refused             links that lead nowhere, paths that leave DATA, two files for one section
==================  ================================================================================
"""

from mvhlib.cohort.legacy_st.files import (
    IMAGE_SUFFIXES,
    check_keys,
    check_names,
    find_images,
    find_tables,
    is_counts,
    table_suffix,
)
from mvhlib.cohort.legacy_st.scale import ImageFacts, estimate_scale, measure_lattice
from mvhlib.cohort.legacy_st.sections import make_section, read
from mvhlib.cohort.legacy_st.tables import POSITION, is_spots, read_counts, read_spots, with_tabs

__all__ = ["IMAGE_SUFFIXES", "ImageFacts", "POSITION", "check_keys", "check_names",
           "estimate_scale", "find_images", "find_tables", "is_counts", "is_spots", "make_section",
           "measure_lattice", "read", "read_counts", "read_spots", "table_suffix", "with_tabs"]
