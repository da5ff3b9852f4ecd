"""HER2-positive breast cancer on legacy Spatial Transcriptomics arrays.

Andersson et al., Nature Communications 12, 6012 (2021). Letter = patient, digit = section; the
sections of a patient are neighbours in one block, hence one specimen.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mvhlib.artifacts import InputError
from mvhlib.cohort.base import Cohort
from mvhlib.cohort.legacy_st import (
    ImageFacts,
    check_names,
    find_images,
    find_tables,
    make_section,
)

SECTION = r"(?P<section>(?P<patient>[A-Za-z]+)\d+)"

#: Published images that do not say what they are: width of the full image, what is pasted in.
KNOWN_IMAGES = {
    "A1_HE_image_dark.png": ImageFacts(full_width_px=6954, exclude=((1480, 0, 2000, 560),),
                                       dark_background=True),
}


def read(path: str | Path, *, sections: Iterable[str] | None = None, images: bool = True,
         full_width_px: Mapping[str, float] | None = None, pitch_um: float | None = None,
         study: str = "her2st") -> Cohort:
    """Read a directory in the layout of the published data.

    ``ST-cnts/<section>.tsv.gz`` makes a section; ``ST-spotfiles/<section>_selection.tsv`` places
    its spots; an image is taken from wherever it lies (``ST-imgs/C/C2/*.jpg``, or a reduced one
    such as ``imgs-2000px/A1_*.png``); ``ST-pat-lbl/<section>_labeled_coordinates.tsv`` fills
    ``obs["label"]``. A section without an image is expression-only.

    Parameters
    ----------
    path
        Directory that holds ``ST-cnts``.
    sections
        Names to read; None reads all.
    images
        False reads every section as expression-only.
    full_width_px
        Per section, width of the full image that the spots' pixels belong to [px], where the
        image is a reduced one. Files in `KNOWN_IMAGES` need none; for others it is estimated.
    pitch_um
        Distance of neighbouring spots [µm]; None is that of the array.

    Raises
    ------
    InputError
        If the directory or a file is missing or broken.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "pass the one that holds ST-cnts")
    counts = find_tables(root, ["ST-cnts"], SECTION)
    if not counts:
        raise InputError(root, "ST-cnts", "holds no count table (A1.tsv.gz, ...)",
                         "pass the directory that holds ST-cnts")
    names = check_names(counts, sections, root)
    spots = find_tables(root, ["ST-spotfiles"], SECTION + r"(_selection)?")
    labels = find_tables(root, ["ST-pat-lbl"], SECTION + r"(_labeled_coordinates)?")
    pictures = find_images(root, names) if images else {}
    made = []
    for name in names:
        patient = re.fullmatch(SECTION, name)["patient"]
        image = pictures.get(name)
        facts = KNOWN_IMAGES.get(image.name) if image else None
        if full_width_px and name in full_width_px:
            facts = replace(facts or ImageFacts(), full_width_px=full_width_px[name])
        made.append(make_section(
            name, root=root, counts=counts[name], spot_file=spots.get(name), image=image,
            study=study, patient=patient, specimen=patient, source="her2st",
            labels=labels.get(name), facts=facts, pitch_um=pitch_um))
    return Cohort(made)
