"""Outputs in a directory: what each platform's folder looks like, and which files it holds."""

import re
from pathlib import Path

from mvhlib.artifacts import InputError, check_file

COUNT_FILES = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix",
               "raw_feature_bc_matrix.h5", "raw_feature_bc_matrix")
TRANSCRIPT_FILES = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")
#: Of Xenium's cells: read by `mvhlib.cohort.xenium_cells` where no transcripts are at hand.
CELL_MATRICES = ("cell_feature_matrix.h5", "cell_feature_matrix")
CELL_TABLES = ("cells.parquet", "cells.csv.gz", "cells.csv")
#: Ends of the names of files that `mvhlib.cohort.flat` reads where they lie loose.
_LOOSE = re.compile(r".+((filtered|raw)_feature_bc_matrix\.h5|(matrix\.mtx|features\.tsv|"
                    r"barcodes\.tsv|scalefactors_json\.json|"
                    r"tissue_positions(_list)?\.(csv|parquet)|transcripts\.(csv|parquet))(\.gz)?)")
#: What to do about an output that is not whole.
COPY_SPATIAL = "copy spatial/ of the Space Ranger output as a whole"
TRUNCATED = "it is probably truncated: copy it again from its source"


def first_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is in `folder`; a link that leads nowhere is an error."""
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            check_file(path)
        if path.exists():
            return path
    return None


def is_visium(folder: Path) -> bool:
    """Whether a folder holds a matrix of counts beside ``spatial``, be it of spots or of bins."""
    spatial = folder / "spatial"
    packed = spatial / "scalefactors_json.json.gz"  # packed singly, as on GEO: mvhlib.cohort.flat
    return first_of(folder, COUNT_FILES) is not None and spatial.is_dir() and not packed.exists()


def _is_spots(folder: Path) -> bool:
    return is_visium(folder) and not is_bin_folder(folder)


def is_bin_folder(folder: Path) -> bool:
    """Whether a folder's name is that of Visium HD's bins of one size, ``square_*um``."""
    return folder.absolute().name.startswith("square_")


def _has_bins(folder: Path) -> bool:
    return (folder / "binned_outputs").is_dir() or (is_bin_folder(folder) and is_visium(folder))


def _is_xenium(folder: Path) -> bool:
    return first_of(folder, TRANSCRIPT_FILES) is not None


def _is_cells(folder: Path) -> bool:
    return not _is_xenium(folder) and first_of(folder, CELL_MATRICES) is not None \
        and first_of(folder, CELL_TABLES) is not None


#: Source -> what a folder of its output looks like.
PLATFORMS = {"visium": _is_spots, "visium_hd": _has_bins, "xenium": _is_xenium,
             "xenium_cells": _is_cells,
             "segmented": lambda folder: (folder / "segmented_outputs").is_dir()}


def _levels(root: Path) -> list[list[Path]]:
    """List `root` and three levels of folders below it, without hidden ones."""
    levels = [[root]]
    for _ in range(3):
        levels.append([folder for above in levels[-1] for folder in sorted(above.glob("*/"))
                       if not folder.name.startswith(".")])
    return levels


def holds(path: str | Path, source: str) -> bool:
    """True if a directory has outputs of a platform, judged by names alone.

    Parameters
    ----------
    source
        One of `PLATFORMS`.
    """
    return any(PLATFORMS[source](folder) for level in _levels(Path(path)) for folder in level)


def outputs(path: str | Path, source: str) -> dict[str, Path]:
    """Name -> folder of a directory's outputs of a platform, as its reader calls them.

    Raises
    ------
    InputError
        If there is none, or two would have one name.
    """
    path = Path(path)
    if source == "visium_hd" and path.name == "binned_outputs":
        path = path.parent  # its folders are one tissue at several bin sizes
    return find_outputs(path, source)


def find_outputs(root: Path, source: str) -> dict[str, Path]:
    """Outputs of a platform at `root` or up to three levels below, as `outputs` gives them.

    They are named after the folder, not ``outs``.
    """
    accept = PLATFORMS[source]
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "pass an output folder")
    levels = _levels(root)
    accepted: list[Path] = []
    for level in levels:
        accepted += [folder for folder in level if accept(folder)
                     and not any(folder.is_relative_to(above) for above in accepted)]
    if not accepted:
        raise InputError(root, "data", *_what_else(levels, source))
    named: dict[str, Path] = {}
    for folder in accepted:
        name = next(part for part in reversed(folder.absolute().parts) if part != "outs")
        if name in named:
            raise InputError(folder, "section", f"a second output is called {name}",
                             "give every output folder its own name")
        named[name] = folder
    return named


def _what_else(levels: list[list[Path]], source: str) -> tuple[str, str]:
    """Describe what was found instead of an output of `source`, and what to do."""
    for other, accept, what in (("visium_hd", _has_bins, "bins of Visium HD"),
                                ("visium", _is_spots, "spots of Visium"),
                                ("xenium", _is_xenium, "transcripts of Xenium"),
                                ("xenium_cells", _is_cells, "cells of Xenium")):
        found = next((folder for level in levels for folder in level if accept(folder)), None)
        if other != source and found is not None:
            return f"holds {what} ({found})", f"read it with source {other}"
    folders = [folder for level in levels for folder in level]
    files = [path for folder in folders[:200] for path in sorted(folder.iterdir())
             if not path.name.startswith(".")]
    loose = next((path for path in files if _LOOSE.fullmatch(path.name)), None)
    if loose is not None:
        return f"holds {loose.name}, whose name has a prefix", "read it with source flat"
    packed = next((path for path in files if path.name.endswith((".tar", ".tar.gz", ".zip"))),
                  None)
    if packed is not None:
        return f"holds no output, but {packed.name}", "unpack it"
    if source == "xenium" and any(path.name == "cell_feature_matrix.h5" for path in files):
        return ("holds cells of Xenium, but no transcripts",
                "copy transcripts.parquet of the same output, which is what is read")
    counts = next((folder for folder in folders if first_of(folder, COUNT_FILES)), None)
    if counts is not None:
        return f"holds counts in {counts} without spatial/ beside them", COPY_SPATIAL
    return ("holds no output of this platform",
            "pass the folder with the feature matrix and spatial/, or with transcripts")
