"""Sections built from their files; counts are read at first use."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, check_file, check_spelling
from mvhlib.cohort.base import Cohort, ImageRef, Section, check_inside, check_mpp, check_scale
from mvhlib.cohort.legacy_st.files import check_names
from mvhlib.cohort.legacy_st.scale import (
    PITCH_UM,
    ImageFacts,
    Lattice,
    is_dark,
    measure_lattice,
    positive,
    scale_of,
    share_beyond,
)
from mvhlib.cohort.legacy_st.tables import (
    FARTHEST_STEP,
    POSITION,
    read_counts,
    read_labels,
    read_spots,
)
from mvhlib.places import resolve
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

#: Diameter of a spot [µm].
SPOT_UM = 100.0


def read(path: str | Path, *, samples: str | Path | None = None,
         sections: Iterable[str] | None = None, images: bool = True,
         pitch_um: float | None = None, sum_doubled: bool = False) -> Cohort:
    """Read sections of any laboratory, whose files a table names.

    Parameters
    ----------
    path
        Data directory; the paths of the table start there.
    samples
        The table (see the package); None takes ``samples.csv`` in `path`.
    sections
        Names to read; None reads all.
    images
        False reads every section as expression-only.
    pitch_um
        Distance of nearest spots [µm]; None is that of the array.
    sum_doubled
        Sum the columns of a gene that stands more than once, as symbols of two Ensembl ids do.

    Raises
    ------
    InputError
        If a file is missing or broken, or a path leaves `path`.
    """
    root = Path(path)
    file = resolve(samples) if samples is not None else root / "samples.csv"
    table = tables.read_table(file, ("section", "study", "patient", "counts"))
    for column in ("section", "study", "patient", "counts"):
        found = tables.names(table, column, file, unique=column in ("section", "counts"))
        if column in ("study", "patient"):
            check_spelling(found, file, column)
    for column in ("specimen", "spots", "image", "labels", "full_width_px"):
        if column not in table:
            table[column] = ""
    widths = tables.numbers(table, "full_width_px", file, above=0, missing=True, unit="px")
    rows = {row["section"]: row | {"full_width_px": width} for row, width in
            zip(table.to_dict("records"), widths, strict=True)}
    for column in ("spots", "image", "labels"):
        twice = [name for name, n in Counter(table[column]).items() if name and n > 1]
        if twice:
            raise InputError(file, column, f"{twice[0]!r} stands more than once",
                             "give every section its own file")

    def below(row: Mapping[str, Any], column: str) -> Path | None:
        if not row[column]:
            return None
        way = Path(row[column])
        if way.is_absolute() or ".." in way.parts:
            raise InputError(file, column, f"is {row[column]!r}, which leads out of {root}",
                             "put the file, or a link to it, into the data directory")
        return check_file(root / way, column)

    made = []
    for name in check_names(rows, sections, root) if sections is not None else rows:
        row = rows[name]
        width = row["full_width_px"]
        made.append(make_section(
            name, root=root, counts=below(row, "counts"), spot_file=below(row, "spots"),
            image=below(row, "image") if images else None, study=row["study"],
            patient=row["patient"], specimen=row["specimen"] or row["patient"],
            source="legacy_st", labels=below(row, "labels"),
            facts=ImageFacts(full_width_px=width) if width > 0 else None, pitch_um=pitch_um,
            sum_doubled=sum_doubled))
    return Cohort(made)


def make_section(name: str, *, root: Path, counts: Path, spot_file: Path | None,
                 image: Path | None, study: str, patient: str, specimen: str, source: str,
                 labels: Path | None = None, facts: ImageFacts | None = None,
                 pitch_um: float | None = None, mpp: float | None = None,
                 sum_doubled: bool = False) -> Section:
    """Make a section of its files; counts are read at first use.

    Parameters
    ----------
    root
        Data directory; the image is recorded relative to it.
    spot_file
        None gives an expression-only section whose coordinates are array positions.
    labels
        Table with x, y and label per spot, or None.
    facts
        What is known of the image file.
    pitch_um
        Distance of nearest spots [µm]; see `measure_lattice`.
    mpp
        Micrometres per pixel of the spot file [µm/px]; None measures it.
    sum_doubled
        See `read_counts`.

    Raises
    ------
    InputError
        If the spot file is broken, its scale cannot be measured or is not `mpp`, or its spots lie
        outside the image.
    """
    spots = lattice = ref = size = image_mpp = None
    scale = 1.0
    if spot_file is not None:
        spots = read_spots(spot_file)
        if not spots["selected"].any():
            raise InputError(spot_file, "selected", "no spot lies on tissue",
                             "select the spots under tissue (1), or leave the column out")
    elif image is not None:
        log.warning("%s: has an image and no spot file, so it is expression-only", name)
        image = None
    if image is not None:
        if mpp is None or spots["array_x"].nunique() > 1 < spots["array_y"].nunique():
            lattice = measure_lattice(spots, spot_file, pitch_um)
            if mpp is not None:
                check_scale(check_mpp(mpp, spot_file), lattice.mpp, spot_file, "mpp",
                            said="{:.4g} um/px is stated", seen="spots that are "
                            f"{lattice.pitch_um:.4g} um apart make it {{:.4g}}")
        else:
            pitch = PITCH_UM if pitch_um is None else positive(pitch_um, name, "pitch_um")
            lattice = Lattice(pitch / check_mpp(mpp, spot_file), pitch, 1.0, False)
        mpp = lattice.mpp if mpp is None else mpp
        with open_slide(check_file(image, "image")) as slide:
            size = (slide.width, slide.height)
        facts = facts or ImageFacts()
        if facts.full_width_px is not None:
            positive(facts.full_width_px, f"section {name}", "full_width_px")
        reduced = facts.full_width_px is not None or share_beyond(spots, size) > 0.1
        if facts.dark_background is None and reduced:
            # Only reduced images come cut out of black, and looking costs a whole decoding.
            facts = replace(facts, dark_background=is_dark(image))
        if reduced:
            scale = scale_of(name, image, size, facts, spots, lattice)
        check_inside(spots.loc[spots["selected"], ["pixel_x", "pixel_y"]].to_numpy() * scale, size,
                     image)
        image_mpp = mpp / scale
        ref = ImageRef(str(image.relative_to(root)), "data", facts.exclude,
                       bool(facts.dark_background))
        if abs(lattice.anisotropy - 1) > 0.05 and not lattice.staggered:
            log.warning("%s: spots are %.3g times as far apart along x as along y; the image may "
                        "be stretched", name, lattice.anisotropy)

    def load() -> "AnnData":
        adata = _join(read_counts(counts, sum_doubled), spots, counts, spot_file, scale)
        adata.uns["lattice"] = {
            "kind": "square", "n_neighs": 4, "spot_um": SPOT_UM,
            "pitch_um": lattice.pitch_um if lattice else PITCH_UM,
            "pitch_px": lattice.pitch_px * scale if lattice else -1.0,
            "anisotropy": lattice.anisotropy if lattice else 1.0,
            "coordinates": "array" if spots is None else "pixel"}
        if labels is not None:
            adata.obs["label"] = read_labels(labels).reindex(adata.obs_names).to_numpy()
            adata.obs["label"] = adata.obs["label"].astype("category")
        return adata

    return Section(name=name, study=study, patient=patient, specimen=specimen, source=source,
                   load=load, mpp=image_mpp, image_ref=ref, image_size=size, roots={"data": root})


def _join(adata: "AnnData", spots: pd.DataFrame | None, counts: Path, spot_file: Path | None,
          scale: float) -> "AnnData":
    """Keep the spots that have counts, a position and lie under tissue; count the others."""
    if spots is None:
        parts = [re.fullmatch(POSITION, name) for name in adata.obs_names]
        if None in parts:
            raise InputError(counts, "index", f"{adata.obs_names[parts.index(None)]!r} is not an "
                             "array position like 10x13", "give a spot file, or name rows by array "
                             "position, as in 10x13")
        position = np.array([[float(v) for v in part.groups()] for part in parts])
        if np.abs(position).max() > FARTHEST_STEP:
            raise InputError(counts, "index", "holds positions that lie on no array",
                             "give a spot file, or name rows by array position, as in 10x13")
        adata.obs["array_x"], adata.obs["array_y"] = np.rint(position).astype(int).T
        adata.obsm["spatial"] = position
        return adata
    adata = _rounded(adata, counts)
    joined = adata.obs_names.isin(spots.index)
    if not joined.any():
        raise InputError(counts, "index", f"none of {adata.n_obs} spots is in {spot_file} "
                         f"({adata.obs_names[0]!r} against {spots.index[0]!r})",
                         "give the counts and the spots of the same section")
    selected = spots["selected"].reindex(adata.obs_names, fill_value=False).to_numpy(bool)
    if not selected.any():
        raise InputError(spot_file, "selected", "no spot with counts lies on tissue",
                         "select the spots under tissue (1), or leave the column out")
    record = {"n_counts": adata.n_obs, "n_spots": len(spots), "n_kept": int(selected.sum()),
              "n_without_position": int((~joined).sum()),
              "n_off_tissue": int((joined & ~selected).sum()),
              "n_without_counts": int((~spots.index[spots["selected"]].isin(
                  adata.obs_names)).sum()),
              "scale": scale}
    if record["n_without_position"]:
        log.warning("%s: %d of %d spots have no position and are dropped", counts.name,
                    record["n_without_position"], adata.n_obs)
    adata = adata[selected].copy()
    place = spots.loc[adata.obs_names]
    adata.obs["array_x"] = place["array_x"].to_numpy()
    adata.obs["array_y"] = place["array_y"].to_numpy()
    adata.obsm["spatial"] = place[["pixel_x", "pixel_y"]].to_numpy() * scale
    adata.uns["join"] = record
    return adata


def _rounded(adata: "AnnData", counts: Path) -> "AnnData":
    """Spots named by the array position next to their aligned one (``9.97x13.04``: ``10x13``)."""
    parts = [re.fullmatch(POSITION, name) for name in adata.obs_names]
    if None in parts or not any("." in name for name in adata.obs_names):
        return adata
    names = pd.Index(["x".join(str(round(float(value))) for value in part.groups())
                      for part in parts])
    if names.has_duplicates:
        first = names[names.duplicated()][0]
        raise InputError(counts, "index", f"{list(adata.obs_names[names == first])} are both next "
                         f"to array position {first}", "keep one spot per array position")
    adata.obs["aligned"] = adata.obs_names.to_numpy()
    adata.obs_names = names
    return adata
