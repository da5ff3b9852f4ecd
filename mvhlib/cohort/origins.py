"""Tissue of origin: data sets of several organs side by side, each image labelled by its organ.

Labelled images are cut in a grid, sections of a cohort at their spots. What a publisher made with
one scanner is one study: where every study is of one organ, origin and scanner are confounded, and
a classifier may name the scanner (`mvhlib.downstream.probe.confounding` says where).

==========  ====================================================================================
key         what is read
==========  ====================================================================================
organ       text, with a list of one data set or more
reader      of `mvhlib.tiles.labelled` or `mvhlib.cohort`
folder      text, below the data
study       a name; the folder's own where it is not given; each set has another one
mpp         a number from 0.01 to 1000 [µm/px], for images that state no scale
==========  ====================================================================================
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvhlib import cohort
from mvhlib.artifacts import InputError, check_sayable, safe_name
from mvhlib.cohort.base import check_mpp
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
        If fewer than two organs are given, an organ has no set, a key or reader is not known, a set
        holds no image, two images share a name or a file is of two organs, or as the readers do.
    """
    if not isinstance(origins, Mapping):
        raise InputError("origins", "organs", f"are {origins!r}", "map each organ to its data sets")
    if len(origins) < 2:
        raise InputError("origins", "organs", f"are {list(origins)}", "name two organs or more")
    images = []
    for organ, sets in origins.items():
        where = f"origins: {organ}"
        if not (isinstance(organ, str) and organ.strip() and organ == organ.strip()):
            raise InputError("origins", "organs", f"hold {organ!r}, which is no name",
                             "write the organ's name without blanks around it, in quotes")
        check_sayable([organ], "origins", "organs")
        if isinstance(sets, str | Mapping) or not isinstance(sets, Sequence) or not sets:
            raise InputError(where, "sets", f"are {sets!r}", "give a list of one data set or more")
        for each in sets:
            study = _study(where, each)
            found = list(_images(organ, study, each, Path(data) / each["folder"]))
            if not found:
                raise InputError(Path(data) / each["folder"], "images", "are none",
                                 "give a data set with images")
            images += found
    twice = [name for name, n in Counter(image.name for image in images).items() if n > 1]
    if twice:
        raise InputError("origins", "study", f"gives two images the name {twice[0]}",
                         "give every data set a study of its own")
    labelled.one_file_each("origins", images, of=("label",))
    return images


def _study(where: str, given: Mapping[str, Any]) -> str:
    """Check the keys of one data set; the name of its study."""
    if not isinstance(given, Mapping):
        raise InputError(where, "sets", f"hold {given!r}", f"write a mapping of {KEYS}")
    unknown = [str(key) for key in given if key not in KEYS]
    missing = [key for key in KEYS[:2] if key not in given]
    if unknown or missing:
        raise InputError(where, ", ".join(unknown or missing),
                         "is not a key" if unknown else "is missing", f"use {KEYS}")
    for key in KEYS[:2]:
        if not (isinstance(given[key], str) and given[key].strip()):
            raise InputError(where, key, f"is {given[key]!r}, which is no text", "write a name")
    check_mpp(given.get("mpp", 1.0), where)
    study = given.get("study", Path(given["folder"]).name)
    if isinstance(study, bool) or not isinstance(study, str | int):
        raise InputError(where, "study", f"is {study!r}, which is no name", "write it in quotes")
    return safe_name(str(study), where, "study")


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
