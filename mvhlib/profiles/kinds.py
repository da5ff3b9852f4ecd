"""The table of kinds of data, and which of them a directory holds.

==================  ================================================================================
kind                is recognised by
==================  ================================================================================
her2st              a folder ``ST-cnts``
mob                 ``alignment_table_*`` beside ``metaData.csv``
hest                ``st/*.h5ad`` or ``adata/*.h5ad`` (HEST-1k, tasks of hest-bench)
visium              a feature matrix beside ``spatial/`` (Space Ranger, or its layout)
visium_hd           ``binned_outputs``, or ``square_*um`` with a feature matrix
segmented           ``segmented_outputs`` of Space Ranger 4 without bins beside it
xenium              ``transcripts.parquet`` or ``.csv``
xenium_cells        ``cell_feature_matrix`` beside ``cells.csv.gz``, without transcripts
legacy_st           tables of counts whose rows are called ``XxY``, in folders or side by side
spatialdata         a folder ``*.zarr``
h5ad                other ``*.h5ad``
outcomes            a table of patients with time and event; PANTHER's and SurvPath's folders
glas                ``labels.csv`` with image, patient_id and label
mhist               a csv with Image Name and Majority Vote Label
slides              whole slides, with or without ``slides.csv``; other images, where they are in no
                    two classes
folder              images in one folder per class, or with their class before their name: two
                    classes or more of two images or more
features            folders of TRIDENT's and CLAM's feature files
flat                files of Space Ranger or Xenium with a prefix, as GEO has them, or loose
==================  ================================================================================

Images are looked at where nothing with expression is: a section's image is no slide of its own. A
directory with two kinds in it is refused, because a run reads one. What may not be read is passed
over and named; where the reader of a kind cannot pass it over, and so no run could, it is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mvhlib.artifacts import InputError
from mvhlib.profiles import images, outcomes, sections, shared, slide_tables
from mvhlib.profiles.found import Found
from mvhlib.profiles.names import unwritable
from mvhlib.profiles.permissions import closed, open_folders
from mvhlib.tiles import whole

#: Folders below a directory of no known kind that are looked into: how deep, how many a level.
_DEEPEST, _MOST_FOLDERS = 3, 50
_OPEN = "change its permissions, or put the data into a folder without it"


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes
    ----------
    says
        What it is, in words.
    holds
        Whether a directory holds it: by names and the beginnings of files, and so in no time.
    look
        Reads it as a run would.
    pixels_only
        Whether it is images without expression, or tables without either: such a kind is asked for
        where no other has answered.
    """

    says: str
    holds: Callable[[Path], bool]
    look: Callable[[Path], Found]
    pixels_only: bool = False


KINDS: dict[str, Kind] = {
    "her2st": Kind("legacy Spatial Transcriptomics in her2st's folders",
                   sections.holds_her2st, sections.look_her2st),
    "mob": Kind("legacy Spatial Transcriptomics in mob's files",
                sections.holds_mob, sections.look_mob),
    "hest": Kind("samples of HEST-1k", sections.holds_hest, sections.look_hest),
    "visium": Kind("spots of Visium in Space Ranger's layout",
                   sections.holds_output("visium"), sections.look_output("visium")),
    "visium_hd": Kind("bins of Visium HD, summed to pseudo-spots",
                      sections.holds_output("visium_hd"), sections.look_output("visium_hd")),
    "segmented": Kind("cells of Space Ranger 4, summed to pseudo-spots",
                      sections.holds_output("segmented"), sections.look_output("segmented")),
    "xenium": Kind("transcripts of Xenium, counted in pseudo-spots",
                   sections.holds_output("xenium"), sections.look_output("xenium")),
    "xenium_cells": Kind("cells of Xenium, summed to pseudo-spots",
                         sections.holds_output("xenium_cells"),
                         sections.look_output("xenium_cells")),
    "legacy_st": Kind("legacy Spatial Transcriptomics, tables of counts and spots",
                      sections.holds_legacy, sections.look_legacy),
    "spatialdata": Kind("stores of SpatialData", sections.holds_files(".zarr"),
                        sections.look_files("spatialdata", ".zarr", "stores of SpatialData")),
    "h5ad": Kind("AnnData files", sections.holds_files(".h5ad"),
                 sections.look_files("h5ad", ".h5ad", "AnnData files")),
    "outcomes": Kind("outcomes of patients, without pixels",
                     outcomes.holds, outcomes.look, pixels_only=True),
    "glas": Kind("labelled images with patients", images.holds_glas, images.look_labelled("glas"),
                 pixels_only=True),
    "mhist": Kind("labelled images in MHIST's layout", images.holds_mhist,
                  images.look_labelled("mhist"), pixels_only=True),
    "slides": Kind("whole slides", images.holds_slides, images.look_slides, pixels_only=True),
    "folder": Kind("labelled images, a folder or a beginning of the name for each class",
                   images.holds_folder, images.look_labelled("folder"), pixels_only=True),
    "features": Kind("features of tiles, by TRIDENT or CLAM", slide_tables.holds,
                     slide_tables.look, pixels_only=True),
    "flat": Kind("loose files of a platform, as GEO has them",
                 sections.holds_flat, sections.look_flat),
}


def kinds_of(root: Path) -> list[str]:
    """Kinds that a directory holds; images and tables alone where nothing has expression."""
    holding = [name for name, kind in KINDS.items() if not kind.pixels_only and _holds(kind, root)]
    if holding:
        return holding
    without = [name for name, kind in KINDS.items() if kind.pixels_only and _holds(kind, root)]
    # A table and thumbnails beside features belong to them.
    apart = "slides" in without and bool(whole.find(root))
    return ["features"] if "features" in without and not apart else without


def _holds(kind: Kind, root: Path) -> bool:
    """Whether a directory holds a kind, as far as this user may read it."""
    try:
        return kind.holds(root)
    except PermissionError:
        return False


def _unknown(root: Path) -> tuple[str, str]:
    """Say why a directory is of no known kind, and what to do."""
    inside = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    if (root / "images").is_dir() and any(name.endswith(".csv") for name in inside):
        return (f"holds images, but no table of labels that is recognised; it has {inside[:6]}",
                "name the table's columns image, label and patient_id, or put the images into one "
                "folder per class")
    level = [root]
    for _ in range(_DEEPEST):
        level = [folder for above in level for folder in open_folders(above, 1)[1:]][:_MOST_FOLDERS]
        below = [f"{folder.relative_to(root)} "
                 f"({'a link' if folder.is_symlink() else kinds_of(folder)[0]})"
                 for folder in level if kinds_of(folder)]
        if below:
            return (f"holds data sets in folders of their own: {', '.join(below[:4])}",
                    "name one of them with DATA=")
    if shut := closed(root):
        return (f"holds nothing readable; it has {inside[:6]}, and {', '.join(shut[:3])} may not "
                "be read by this user", _OPEN)
    if any(name.lower().removesuffix(".gz").endswith((".rds", ".rdata", ".qs", ".h5seurat"))
           for name in inside):
        return (f"holds objects of R; it has {inside[:6]}",
                "write them as AnnData with raw counts and obsm['spatial'], for instance by "
                "anndataR or sceasy")
    packed = next((name for name in inside if name.endswith(
        (".tar", ".tgz", ".zip", ".7z", ".rar", ".gz", ".bz2", ".xz"))), None)
    if packed:
        return f"holds nothing readable, but {packed}", f"unpack {packed}"
    if datasets := slide_tables.other_h5(root):
        return (f"holds h5 files with {datasets}, but not with the dataset features",
                "store features (n, D) and coords (n, 2) as TRIDENT does")
    if two := outcomes.of_two_times(root):
        return (f"holds {two[0].name}, with {two[1]} for the dead and {two[2]} for the others",
                "write one column of times beside the event, such as time_days and event")
    return f"holds nothing readable; it has {inside[:6] or 'nothing'}", \
        "see DATA.md, which lists what can be read"


def look(data: str | Path) -> Found:
    """Inspect a data set.

    Raises
    ------
    InputError
        If nothing in it is known, it holds two kinds, or something may not be read that the kind's
        reader does not pass over.
    """
    root = Path(data)
    found = kinds_of(root)
    if not found:
        raise InputError(root, "data", *_unknown(root))
    if len(found) > 1:
        raise InputError(root, "data", "holds two kinds of data: " + " and ".join(
            f"{KINDS[name].says} ({name})" for name in found[:2]),
            "give each its own folder and name one of them with DATA=")
    [name] = found
    try:
        seen = KINDS[name].look(root)
    except PermissionError as error:
        raise InputError(error.filename or root, "file", "may not be read by this user", _OPEN
                         ) from error
    seen.closed = closed(root)
    for row in seen.readable:
        row.problem = unwritable(root, row.cells)
    if not seen.readable and seen.source:
        problem, _, fix = (seen.rows[0].problem if seen.rows else "").partition(". Fix: ")
        raise InputError(root, name, "was recognised, but cannot be read: "
                         f"{problem or 'it is empty'}", fix.rstrip(".") or "check the files")
    if seen.of == "section":
        shared.keep_alike(seen)
    return seen
