"""Reader of loose files of Space Ranger or Xenium, with a prefix (as on GEO) or without.

==================  ================================================================================
what                how it is read
==================  ================================================================================
files               ``<prefix>_filtered_feature_bc_matrix.h5``, or matrix, features and barcodes of
                    Matrix Market; ``<prefix>_tissue_positions(_list).csv``,
                    ``<prefix>_scalefactors_json.json``, ``<prefix>_tissue_hires_image.png`` (or
                    lowres); ``<prefix>_transcripts.csv`` of Xenium. All of them packed by gzip or
                    not, in the directory and three levels of folders below. What is called a prefix
                    here may stand behind as well: ``tissue_positions_list_A.csv``
``spatial/``        without prefixes belongs to the one matrix with a prefix beside it
section             the prefix; without one the folder, where it is not called ``spatial``, ``outs``
                    or like a part of an output
arrangement         the layout of Space Ranger, as links, below the run's cohort folder
                    (``cohort/flat/<section>``); packed images and scale factors are unpacked there.
                    Nothing is written into the data directory
then                `mvhlib.cohort.visium.read`, or `read_xenium` where there are transcripts
``samples.csv``     as theirs; paths in it start at the data directory
==================  ================================================================================
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mvhlib.artifacts import InputError, reading
from mvhlib.cohort import visium
from mvhlib.cohort.base import Cohort, ImageRef, Section
from mvhlib.cohort.feature_matrix import open_packed

if TYPE_CHECKING:
    from anndata import AnnData

#: Folder of the arrangement, below the run's cohort folder.
ARRANGED = "flat"
#: How deep below the data directory files are looked for.
_DEPTH = 3
_MATRIX = "{kind}_feature_bc_matrix"
#: The platforms' own names of files, from where a prefix ends.
_OWN = re.compile(
    r"(?P<h5>(?:filtered|raw)_feature_bc_matrix\.h5)$|"
    r"(?:(?P<kind>filtered|raw)_feature_bc_matrix[_.-])?"
    r"(?P<mtx>(?:matrix\.mtx|features\.tsv|genes\.tsv|barcodes\.tsv)(?:\.gz)?)$|"
    r"(?P<spatial>scalefactors_json\.json|tissue_positions(?:_list)?\.(?:csv|parquet)|"
    r"tissue_(?:hires|lowres)_image\.(?:png|jpg))(?P<packed>\.gz)?$|"
    r"(?P<points>transcripts\.(?:parquet|csv)(?:\.gz)?)$")
#: The same names with what tells sections apart behind them: ``tissue_positions_list_A.csv``.
_SUFFIXED = re.compile(
    r"^(tissue_positions(?:_list)?|tissue_(?:hires|lowres)_image|scalefactors_json|"
    r"(?:filtered|raw)_feature_bc_matrix|matrix|features|barcodes|transcripts)[_-]"
    r"(?!list\.)([^.]+)(\.(?:csv|parquet|png|jpg|json|h5|mtx|tsv)(?:\.gz)?)$")
#: Words that tell what a file or folder is of an output, not which section it is of.
_GENERIC = re.compile(r"(^|[_.-])(spatial|outs?|(filtered|raw)(_feature_bc_matrix)?)$")
_PACKS = (".tar", ".tar.gz", ".tgz", ".zip")


def find(root: str | Path) -> dict[str, dict[str, Path]]:
    """Find all files by their names: section -> place in Space Ranger's layout -> file.

    Where a file lies packed and plain, the plain one is taken.
    """
    root = Path(root)
    found: dict[str, dict[str, Path]] = {}
    for file in _files(root, _DEPTH):
        name = _SUFFIXED.sub(r"\2_\1\3", file.name)
        own = _OWN.search(name)
        if own is None:
            continue
        prefix = name[:own.start()].rstrip("_.-")
        place = _place(own, prefix, file)
        parts = found.setdefault(_section_name(prefix, file, root), {})
        if place not in parts or parts[place].suffix == ".gz":
            parts[place] = file
    _give_spatial(found)
    return found


def _give_spatial(found: dict[str, dict[str, Path]]) -> None:
    """Bring a ``spatial/`` without prefixes to the one matrix that lies beside it.

    So are downloads of 10x laid out: ``X_filtered_feature_bc_matrix.h5`` beside the ``spatial/`` of
    an archive.
    """
    for name, parts in list(found.items()):
        homes = {file.parent.parent for file in parts.values() if file.parent.name == "spatial"}
        if len(homes) != 1 or not all(place.startswith("spatial/") for place in parts):
            continue
        beside = [other for other, files in found.items() if other != name and not any(
            place.startswith("spatial/") for place in files) and all(
            {file.parent, file.parent.parent} & homes for file in files.values())]
        if len(beside) == 1:
            found[beside[0]] |= found.pop(name)


def _files(folder: Path, depth: int) -> Iterator[Path]:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in inside:
        if path.is_dir():
            if depth:
                yield from _files(path, depth - 1)
        else:
            yield path


def _place(own: re.Match, prefix: str, file: Path) -> str:
    """Where a file stands in Space Ranger's layout."""
    if own["spatial"]:
        packed_table = own["packed"] and own["spatial"].endswith(".csv")  # readers unpack these
        return f"spatial/{own['spatial']}{'.gz' if packed_table else ''}"
    if own["mtx"]:
        raw = "raw" in re.split(r"[_.-]", f"{own['kind'] or ''}_{prefix}_{file.parent.name}")
        return f"{_MATRIX.format(kind='raw' if raw else 'filtered')}/{own['mtx']}"
    return own["h5"] or own["points"]


def _section_name(prefix: str, file: Path, root: Path) -> str:
    """The prefix, else the innermost folder that is named after a section."""
    for name in (prefix, *(folder.name for folder in file.relative_to(root).parents
                           if folder.name)):
        while _GENERIC.search(name):
            name = _GENERIC.sub("", name)
        if name:
            return name
    return root.absolute().name


def is_part(parts: Mapping[str, Path]) -> bool:
    """True if files belong to a section: counts, places of spots, or transcripts."""
    return any(not place.startswith("spatial/") or place.removeprefix("spatial/") in
               visium.POSITION_FILES for place in parts)


def lacks(parts: Mapping[str, Path]) -> str:
    """Name the files that a section lacks; empty where nothing is missing."""
    if any(place in visium.TRANSCRIPT_FILES for place in parts):
        return ""
    folders = [_MATRIX.format(kind=kind) for kind in ("filtered", "raw")]
    whole = any(f"{folder}.h5" in parts or all(any(
        f"{folder}/{name}{packed}" in parts for name in names for packed in ("", ".gz"))
        for names in (("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)))
        for folder in folders)
    missing = [] if whole else ["the feature matrix"]
    if not any(f"spatial/{name}" in parts for name in visium.POSITION_FILES):
        missing.append("tissue_positions of the spots")
    if "spatial/scalefactors_json.json" not in parts:
        missing.append("scalefactors_json.json")
    return ", ".join(missing)


def check(root: Path, name: str, parts: Mapping[str, Path]) -> None:
    """Refuse a section whose files are not all there.

    Raises
    ------
    InputError
        Naming what is missing, and the archive that may hold it.
    """
    if not (missing := lacks(parts)):
        return
    seen = next(iter(parts.values()))
    packed = [path for path in _files(root, 1) if path.name.endswith(_PACKS)]
    packed = [path for path in packed if path.name.startswith(name)] or packed
    raise InputError(seen, "section", f"{name} lacks {missing}", f"unpack {packed[0].name}"
                     if packed else f"put the files beside it, named like {name}_"
                     "tissue_positions_list.csv")


def read(path: str | Path, *, samples: str | Path | pd.DataFrame | None = None,
         study: str | None = None, patient: str | None = None, mpp: float | None = None,
         pitch_um: float | None = None, transposed: bool = False, spot_um: float = 100.0,
         min_counts: int = 10, min_qv: float = 20.0, keep: str | Path | None = None) -> Cohort:
    """Read loose files of Space Ranger or Xenium.

    Parameters
    ----------
    path
        The directory.
    samples, study, patient, mpp
        As in `mvhlib.cohort.visium.read`; paths in the table start at `path`.
    pitch_um, transposed
        As there; for spots alone.
    spot_um, min_counts, min_qv
        As in `mvhlib.cohort.visium.read_xenium`; for transcripts alone.
    keep
        The run's cohort folder, which takes the arrangement; None takes a temporary folder, which
        lives as long as the sections.

    Raises
    ------
    InputError
        As the platform's reader, and if files of a section are missing.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory", "name the folder of the files")
    found = find(root)
    table = _samples(root, samples)
    wanted = list(found) if table is None else [
        name for name in found if name in set(table.get("folder", table["section"]))
        | set(table["section"])]
    if not found or not wanted:
        raise InputError(root, "data", f"holds no section of this kind; it has {list(found)[:4]}",
                         "name sections in samples.csv by the first part of their files' names")
    for name in wanted:
        check(root, name, found[name])
    holder = tempfile.TemporaryDirectory(prefix="mvhlib-flat-") if keep is None else None
    kept = Path(holder.name if holder else keep)
    own = arrange(root, {name: found[name] for name in wanted}, kept / ARRANGED)
    study = study or (root.absolute().name if table is None else None)
    shared = {"samples": table, "study": study, "patient": patient, "mpp": mpp}
    with _by_own_names(own, kept / ARRANGED, root):
        if _platform(root, found, wanted) == "xenium":
            people = visium.read_xenium(kept / ARRANGED, spot_um=spot_um, min_counts=min_counts,
                                        min_qv=min_qv, **shared)
        else:
            people = visium.read(kept / ARRANGED, pitch_um=pitch_um, transposed=transposed,
                                 **shared)
    return Cohort(_moved(section, root, kept, own, holder) for section in people)


def _platform(root: Path, found: Mapping[str, Mapping[str, Path]], wanted: Sequence[str]) -> str:
    """The platform of all sections: a run reads one."""
    of = {name: "xenium" if any(part in visium.TRANSCRIPT_FILES for part in found[name])
          else "visium" for name in wanted}
    if len(set(of.values())) > 1:
        raise InputError(root, "data", f"holds sections of Visium and of Xenium: {of}",
                         "give each platform its own folder, or list those of one in samples.csv")
    return of[wanted[0]]


def _samples(root: Path, samples: str | Path | pd.DataFrame | None) -> pd.DataFrame | None:
    """The table of sections, its paths in full."""
    if samples is None:
        samples = visium.first_of(root.absolute(), ("samples.csv",))
    if samples is None:
        return None
    table = visium.samples_table(samples)
    for column in ("image", "alignment"):
        if column in table:
            table[column] = [str(root.absolute() / value) if value else "" for value in
                             table[column]]
    return table


def arrange(root: Path, found: Mapping[str, Mapping[str, Path]], target: Path) -> dict[str, Path]:
    """Lay out files as Space Ranger does: links, and unpacked copies of packed pictures.

    Returns
    -------
    dict
        Path in the arrangement -> file of the user's.

    Raises
    ------
    InputError
        If a file cannot be unpacked, or `target` not be written.
    """
    own: dict[str, Path] = {}
    with reading(target, "OUT", "cannot be written", "choose an OUT that you may write to"):
        shutil.rmtree(target, ignore_errors=True)
        for name, parts in found.items():
            for place, file in parts.items():
                path = target / name / place
                path.parent.mkdir(parents=True, exist_ok=True)
                own[str(path)] = file
                if file.suffix == ".gz" and path.suffix in (".json", ".png", ".jpg", ".parquet"):
                    with reading(file, fix="it is probably truncated: copy it again"), \
                            open_packed(file) as packed, open(path, "wb") as plain:
                        shutil.copyfileobj(packed, plain)
                else:
                    os.symlink(file.absolute(), path)
    return own


@contextmanager
def _by_own_names(own: Mapping[str, Path], target: Path, root: Path) -> Iterator[None]:
    """Let errors name the user's files, not those of the arrangement."""
    try:
        yield
    except InputError as error:
        def said(text: Any) -> str:
            text = str(text)
            for path, file in own.items():
                text = text.replace(path, str(file))
            return text.replace(str(target), str(root))

        raise type(error)(said(error.where), error.field, said(error.problem),
                          said(error.fix)) from error


def _moved(section: Section, root: Path, kept: Path, own: Mapping[str, Path],
           holder: tempfile.TemporaryDirectory | None) -> Section:
    """The section with its image named from the data directory, or from the cohort folder."""
    read_counts = section.load

    def load() -> "AnnData":
        assert holder is None or holder.name  # the temporary folder lives while this does
        with _by_own_names(own, kept / ARRANGED, root):
            return read_counts()

    ref = section.image_ref
    if ref is not None:
        place = Path(os.path.normpath(section.roots["data"] / ref.path))
        file = own.get(str(place), place)
        plain = file.suffix != ".gz" and file.absolute().is_relative_to(root.absolute())
        ref = ImageRef(str(file.absolute().relative_to(root.absolute()))) if plain else ImageRef(
            str(place.relative_to(kept)), root="cohort") if place.is_relative_to(kept) else ref
    return replace(section, source="flat", load=load, image_ref=ref,
                   roots={"data": root, "cohort": kept})
