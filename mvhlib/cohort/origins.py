"""Tissue of origin: data sets of several organs side by side, each image labelled by its organ.

Labelled images are cut in a grid, sections of a cohort at their spots. What a publisher made with
one scanner is one study: where every study is of one organ, origin and scanner are confounded, and
a classifier may name the scanner (`mvhlib.downstream.probe.confounding` says where).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvhlib import cohort
from mvhlib.artifacts import InputError
from mvhlib.tiles import labelled
from mvhlib.tiles.labelled import LabelledImage

#: Keys of one data set: its reader and folder must be there, the others may.
KEYS = ("reader", "folder", "study", "mpp")


def read(origins: Mapping[str, Sequence[Mapping[str, Any]]], data: str | os.PathLike
         ) -> list[LabelledImage]:
    """Read data sets by the readers of this library.

    Parameters
    ----------
    origins
        Organ -> its data sets, each with `KEYS`: ``reader`` of `mvhlib.tiles.labelled` or of
        `mvhlib.cohort`, ``folder`` below `data`, ``study`` (default: the folder's name) and, for
        labelled images that state no scale, ``mpp`` [µm/px].
    data
        Directory that holds the folders.

    Returns
    -------
    list of LabelledImage
        Named ``<study>-<image>``, label the organ, ``study`` in extra. Images of a study that names
        no patients count as of one patient, so that they never stand on two sides of a fold.

    Raises
    ------
    InputError
        If fewer than two organs are given, a key or reader is not known, a set holds no image, or
        as the readers do.
    """
    if len(origins) < 2:
        raise InputError("origins", "organs", f"are {list(origins)}", "name two organs or more")
    images = []
    for organ, sets in origins.items():
        for each in sets:
            unknown = [key for key in each if key not in KEYS]
            missing = [key for key in KEYS[:2] if key not in each]
            if unknown or missing:
                raise InputError(f"origins: {organ}", ", ".join(unknown or missing),
                                 "is not a key" if unknown else "is missing", f"use {KEYS}")
            study = str(each.get("study", Path(each["folder"]).name))
            found = list(_images(organ, study, each, Path(data) / each["folder"]))
            if not found:
                raise InputError(Path(data) / each["folder"], "images", "are none",
                                 "give a data set with images")
            images += found
    return images


def _images(organ: str, study: str, given: Mapping[str, Any], folder: Path
            ) -> Iterator[LabelledImage]:
    """Images of one data set under the name of its organ."""
    about = {"label": organ, "extra": {"study": study}}
    if given["reader"] in labelled.KINDS:
        for image in labelled.read(given["reader"], folder, n_classes=1):
            yield LabelledImage(f"{study}-{image.name}", image.path, **about,
                                patient=f"{study}-{image.patient or 'unnamed'}",
                                opened={"mpp": given["mpp"]} if "mpp" in given else {})
    elif given["reader"] in cohort.SOURCES:
        for section in cohort.read(given["reader"], folder):
            if section.has_slide:
                ref = section.image_ref
                yield LabelledImage(
                    f"{study}-{section.name}", section.roots[ref.root] / ref.path, **about,
                    patient=f"{study}-{section.patient}", centers=section.centers,
                    opened={"mpp": section.mpp, "exclude": ref.exclude,
                            "dark_background": ref.dark_background})
    else:
        raise InputError(f"origins: {organ}", "reader", f"{given['reader']!r} is not known",
                         f"use one of {[*labelled.KINDS, *cohort.SOURCES]}")
