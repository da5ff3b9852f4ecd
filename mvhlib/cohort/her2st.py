"""HER2-positive breast cancer on legacy Spatial Transcriptomics arrays.

Andersson et al., Nature Communications 12, 6012 (2021). Letter = patient, digit = section; the
sections of a patient are neighbours in one block, hence one specimen.

==================  ================================================================================
what                how it is read
==================  ================================================================================
folders             ``ST-cnts``, ``ST-spotfiles``, ``ST-imgs`` or any other with images,
                    ``ST-pat-lbl``; each may be a link
names               letters and digits, as in ``A1.tsv.gz``: patient and section. Others need
                    `patients`; hidden files are passed over
absent              spot file: array positions, expression-only, and the log says so. Counts of a
                    spot file: refused, unless `sections` names what there is
scale               measured from spots 200 um apart; see `mvhlib.cohort.legacy_st` for the tables
==================  ================================================================================
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mvhlib.artifacts import InputError, safe_name
from mvhlib.cohort.base import Cohort, entries
from mvhlib.cohort.legacy_st import (
    ImageFacts,
    check_keys,
    check_names,
    find_images,
    find_tables,
    is_counts,
    make_section,
    table_suffix,
)

log = logging.getLogger(__name__)

SECTION = r"(?P<section>(?P<patient>[A-Za-z]+)\d+)"

#: Published images that do not say what they are: width of the full image, what is pasted in.
KNOWN_IMAGES = {
    "A1_HE_image_dark.png": ImageFacts(full_width_px=6954, exclude=((1480, 0, 2000, 560),),
                                       dark_background=True),
}


def read(path: str | Path, *, sections: Iterable[str] | None = None, images: bool = True,
         full_width_px: Mapping[str, float] | None = None, pitch_um: float | None = None,
         study: str = "her2st", patients: Mapping[str, str] | None = None) -> Cohort:
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
    patients
        Patient per section, for names that do not say it; None takes the letters of the name.

    Raises
    ------
    InputError
        If the directory or a file is missing or broken, a spot file has no counts, or nobody says
        whose a section is.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory",
                         "pass the directory that holds ST-cnts")
    pattern = SECTION
    if patients is not None:
        given = {safe_name(name, "option patients", "section"): safe_name(
            patient, "option patients", "patient") for name, patient in
            check_keys(patients, "patients").items()}
        pattern = f"(?P<section>{'|'.join(map(re.escape, given)) or '(?!)'})"
    counts = find_tables(root, ["ST-cnts"], pattern)
    nobody = [path for path in entries(root / "ST-cnts")
              if table_suffix(path) and path not in counts.values() and is_counts(path)]
    if nobody and sections is None:
        raise InputError(nobody[0], "section", "has no known patient: its name is not a letter "
                         "and a number, as in A1" if patients is None else "is not among patients",
                         "pass patients={section: patient} for all tables, name the sections= to "
                         "read, or move the file elsewhere")
    if not counts:
        raise InputError(root, "ST-cnts", "holds no count table (A1.tsv.gz, ...)",
                         "pass the directory that holds ST-cnts; for another layout, list "
                         "sections, counts, spots and images in samples.csv and use the source "
                         "legacy_st")
    names = check_names(counts, sections, root)
    spots = find_tables(root, ["ST-spotfiles"], pattern + r"(_selection)?")
    labels = find_tables(root, ["ST-pat-lbl"], pattern + r"(_labeled_coordinates)?")
    alone = [name for name in spots if name not in counts]
    if alone and sections is None:
        raise InputError(root / "ST-cnts", "counts", f"are missing for {alone[:5]}, which "
                         f"{spots[alone[0]].name} places", "add the count tables, or name the "
                         "sections= to read")
    for name in names:
        if name not in spots:
            log.warning("%s: has no spot file, so it is expression-only, in array positions", name)
    check_keys(full_width_px, "full_width_px", counts)
    pictures = find_images(root, names) if images else {}
    made = []
    for name in names:
        patient = re.fullmatch(SECTION, name)["patient"] if patients is None else given[name]
        image = pictures.get(name)
        facts = KNOWN_IMAGES.get(image.name) if image else None
        if full_width_px and name in full_width_px:
            facts = replace(facts or ImageFacts(), full_width_px=full_width_px[name])
        made.append(make_section(
            name, root=root, counts=counts[name], spot_file=spots.get(name), image=image,
            study=study, patient=patient, specimen=patient, source="her2st",
            labels=labels.get(name), facts=facts, pitch_um=pitch_um))
    return Cohort(made)
