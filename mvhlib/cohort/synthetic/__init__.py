"""A synthetic cohort whose every cause is known; also synthetic slides and images of organs.

A section is drawn in optical-density space. Smooth random fields lay out lumen, glands, stroma,
tumour and lymphocytes; nuclei of class-specific size, density and chromatin texture are stamped on
it; haematoxylin and eosin add up along two stain vectors (Ruifrok & Johnston 2001) and Beer-Lambert
turns them into pixels. Counts are negative binomial around a rate that is a known function of what
was drawn, or of nothing. The causes stay in ``truth/<section>.h5ad``.

Gene programs (``var["program"]``)
    ``lumen gland stroma tumour lymphocytes`` follow the share of that class in the spot's tile,
    ``density`` the nuclei per area, the six frequency programs the contrast that the tile carries
    in one band and one orientation, ``study_offset`` nothing but the study, ``artefact`` the
    gradient of stain and focus that every section shows, with a sign that differs between
    studies, ``noise`` nothing at all.

What a study does
    It multiplies the optical density of each stain, turns the stain vectors a little, blurs, and
    bends the tone curve. Biology, counts and the section's layout do not depend on these strengths:
    cohorts of one seed at different strengths are the same tissue seen by other laboratories.

What an organ does (``n_organs`` above 1; the demo has one)
    Studies are dealt to organs in turn. An organ has more of one tissue class and less of another,
    and every second gene of the class programs follows another class than in the first organ
    (``var["organ_specific"]``): a gland gene of the first organ is a stroma gene of the second.
    The other half, density and textures mean the same everywhere. What a model loses between
    organs is then the biology, what it loses between studies of one organ the laboratory.

Simplifications that a careful user should know
    * Every program takes a fixed share of the library and the library size is independent of
      the tissue, so that neither normalisation nor dropout hands a tissue signal to noise genes.
      Real library sizes follow cellularity.
    * Frequency textures modulate eosin inside the tile of one spot. Their total contrast is the
      same in every tile, and is restored after blur (blur moves contrast from fine to coarse
      bands but leaves the tile's histogram alone); real blur would also narrow the histogram.
    * A tile that is larger than `tile_px`, or off the spot grid, sees textures of neighbours.
    * Blur acts on stain concentrations rather than on light, and there is no sensor noise.
    * Classes do not overlap, nuclei do not touch on purpose, sections of a patient share
      prevalences but not outlines, and no study differs in biology from others of its organ.

Rendering is in float64, so that another CPU's last bit practically never changes a pixel.
"""

from mvhlib.cohort.synthetic.genes import PROGRAMS, WITHOUT_SIGNAL, group_of
from mvhlib.cohort.synthetic.sections import make_cohort, organs, read
from mvhlib.cohort.synthetic.slides import make_organ_images, make_slide_cohort
from mvhlib.cohort.synthetic.texture import FREQUENCY_PROGRAMS
from mvhlib.cohort.synthetic.tissue import CLASSES

__all__ = ["CLASSES", "FREQUENCY_PROGRAMS", "PROGRAMS", "WITHOUT_SIGNAL", "group_of", "make_cohort",
           "make_organ_images", "make_slide_cohort", "organs", "read"]
