"""Kinds with expression: each is read by its own reader, section by section where it has to be."""

import gzip
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from mvhlib import cohort
from mvhlib.artifacts import InputError
from mvhlib.cohort import anndata_files, flat, legacy_st, libraries, visium
from mvhlib.cohort.base import Cohort, Section, entries
from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import Found, Row
from mvhlib.profiles.listed import own_table, sections_apart
from mvhlib.profiles.permissions import open_folders

#: Columns of the tables that readers of outputs and of legacy tables take.
OUTPUT_COLUMNS = ("section", "study", "patient", "specimen", "folder", "mpp", "image", "alignment")
LEGACY_COLUMNS = ("section", "study", "patient", "specimen", "counts", "spots", "image", "labels",
                  "full_width_px")
#: Most sections whose counts are read for a report.
MOST_READ = 40
#: Bytes of a line that are looked at: a header of 40,000 genes has fewer.
_LONGEST_LINE = 2**22
#: Side of a pseudo-spot [um] where bins of 2, 8 and 16 um can be summed to it, so that the coarsest
#: ones do.
_HD_SPOT_UM = 112.0
#: A trial scale, to see whether an unknown scale is all that is missing.
_TRIED_MPP = 1.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the readers while several ways are tried; the report states the result."""
    logger = logging.getLogger("mvhlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _row(section: Section, cells: dict[str, Any], counted: bool = True) -> Row:
    """Table row of a section."""
    size = section.image_size
    image = "none" if not section.has_image else f"{size[0]} x {size[1]} px" if size else "patches"
    shape = {"spots": section.adata.n_obs, "genes": section.adata.n_vars} if counted else {}
    return Row(section.name, cells, shape | {"mpp": section.mpp, "image": image},
               genes=frozenset(section.adata.var_names) if counted else frozenset())


def _rows(people: Cohort, cells: Callable[[Section], dict[str, Any]]) -> list[Row]:
    """Rows of a cohort; counts are read of the first `MOST_READ` sections."""
    made = []
    for number, section in enumerate(people):
        try:
            made.append(_row(section, cells(section), number < MOST_READ))
        except InputError as error:
            made.append(Row(section.name, cells(section), problem=str(error)))
    return made


def _rows_with_owners(people: Cohort) -> list[Row]:
    """Rows of sections whose owners the data set states."""
    rows = _rows(people, lambda section: {})
    for row, section in zip(rows, people, strict=True):
        row.facts |= {"study": section.study, "patient": section.patient}
    return rows


def _listed(root: Path, source: str, says: str, used: set[str]) -> Found:
    """The sections of ``samples.csv``, those that cannot be read with the reason.

    Raises
    ------
    InputError
        If none can be read, or each can, but not together.
    """
    with _quiet():
        whole, rows = None, []
        try:
            rows = _rows_with_owners(cohort.read(source, root))
        except InputError as error:
            whole = error
        if whole or any(row.problem for row in rows):  # one may be at fault for all
            rows = []
            for name, read in sections_apart(source, root).items():
                rows += [Row(name, problem=read)] if isinstance(read, str) else \
                    _rows_with_owners(read)
            if whole and len({bool(row.problem) for row in rows}) < 2:
                raise whole
    found = Found(root, source, says, source, rows=rows, used=used | {"samples.csv"})
    own_table(found)
    return found


# --- data sets that say who is who ---------------------------------------------------------------

def holds_her2st(root: Path) -> bool:
    return (root / "ST-cnts").is_dir()


def look_her2st(root: Path) -> Found:
    with _quiet():
        people = cohort.read("her2st", root)
        rows = _rows_with_owners(people)
    known = {"ST-cnts", "ST-spotfiles", "ST-pat-lbl"} | {
        Path(section.image_ref.path).parts[0] for section in people if section.image_ref}
    return Found(root, "her2st", "legacy Spatial Transcriptomics in her2st's folders", "her2st",
                 rows=rows, used=known)


def holds_mob(root: Path) -> bool:
    return bool((root / "metaData.csv").is_file() and any(root.glob("alignment_table_*")))


def look_mob(root: Path) -> Found:
    with _quiet():
        people = cohort.read("mob", root)
        rows = _rows_with_owners(people)
    used = {path.name for path in entries(root) for section in people
            if path.stem.removeprefix("alignment_table_").partition(".")[0] == section.name}
    return Found(root, "mob", "legacy Spatial Transcriptomics in mob's files", "mob", rows=rows,
                 used=used | {"metaData.csv"})


def holds_hest(root: Path) -> bool:
    return any((home / sub).is_dir() and any((home / sub).glob("*.h5ad"))
               for home in open_folders(root, 1) for sub in ("st", "adata"))


def look_hest(root: Path) -> Found:
    with _quiet():
        people = cohort.read("hest", root)
        rows = _rows_with_owners(people)
    used = {path.name for path in entries(root) if path.name.startswith("HEST_v")
            or path.name in ("st", "adata", "wsis", "patches", "metadata", "splits")}
    used |= {path.name for path in open_folders(root, 1)[1:]
             if any((path / sub).is_dir() for sub in ("st", "adata"))}
    found = Found(root, "hest", "samples of HEST-1k", "hest", rows=rows, used=used)
    if not any(root.glob("HEST_v*.csv")) and not any(root.glob("metadata/*.json")):
        found.advice = ["HEST's csv (HEST_v*.csv) is not here: studies and patients are not known, "
                        "and all sections count as one patient's. Put it beside st/."]
    return found


# --- outputs of the 10x platforms ----------------------------------------------------------------

def holds_output(source: str) -> Callable[[Path], bool]:
    # Cells and bins of one slide lie side by side: then its bins are read.
    return lambda root: _is_there(root, source) and not (
        source == "segmented" and _is_there(root, "visium_hd"))


def _is_there(root: Path, source: str) -> bool:
    """Whether a directory has outputs of a platform where it may be read (`visium.holds`)."""
    return any(visium.PLATFORMS[source](folder) for folder in open_folders(root, 3))


def look_output(source: str) -> Callable[[Path], Found]:
    says = {"visium": "spots of Visium in Space Ranger's layout",
            "visium_hd": f"bins of Visium HD, summed to pseudo-spots of {_HD_SPOT_UM:g} um",
            "segmented": "cells of Space Ranger 4, summed to pseudo-spots of 100 um",
            "xenium": "transcripts of Xenium, counted in pseudo-spots of 100 um",
            "xenium_cells": "cells of Xenium, summed to pseudo-spots of 100 um"}[source]

    def look(root: Path) -> Found:
        outputs = visium.outputs(root, source)
        used = {folder.relative_to(root).parts[0] if folder != root else path.name
                for folder in outputs.values() for path in (entries(root) if folder == root
                                                            else [folder])}
        if (root / "samples.csv").is_file():
            return _listed(root, source, says, used)
        named = _with_images(_named(outputs, root), outputs, root)
        options = {"spot_um": _HD_SPOT_UM} if source == "visium_hd" else {}
        with _quiet():
            rows = _each(source, root, named, options)
        used |= {Path(row.cells["image"]).parts[0] for row in rows if "image" in row.cells}
        return Found(root, source, says, source, rows=rows, used=used, table=OUTPUT_COLUMNS,
                     options=options, advice=_alone(rows, root) + _reduced(rows))

    return look


def _reduced(rows: Sequence[Row]) -> list[str]:
    """Explain that a blank scale is that of the full image, where only a reduced one is at hand."""
    times = {row.name: row.facts.get("reduced") or 1.0 for row in rows}
    name = max(times, key=times.get, default="")
    return [f"mpp in samples.csv is that of the full image, in whose pixels positions are given: "
            f"the image of {name} is reduced {times[name]:.3g} times and has {times[name]:.3g} "
            "times its um/px."] if times and times[name] > 1.01 else []


def _named(outputs: Iterable[str], root: Path) -> list[dict[str, Any]]:
    """Rows of the samples table as far as folders tell; one output alone needs no more."""
    names = list(outputs)
    if len(names) == 1:
        return [{"section": names[0], "study": root.absolute().name, "patient": names[0]}]
    return [{"section": name, "study": BLANK, "patient": BLANK} for name in names]


def _with_images(named: Sequence[dict[str, Any]], outputs: Mapping[str, Path], root: Path
                 ) -> list[dict[str, Any]]:
    """Rows with the one image that stands beside an output: the full one, if it fits (`_each`)."""
    loose = [path for path in entries(root) if _is_picture(path)]
    made = []
    for row in named:
        folder = outputs[row["section"]]
        places = [folder, folder.parent] if folder.name == "outs" else [folder]
        beside = {path for place in places if place != root and place.is_relative_to(root)
                  for path in entries(place) if _is_picture(path)}
        beside |= {path for path in loose if len(named) == 1 or re.search(
            rf"(?<![0-9A-Za-z]){re.escape(row['section'])}(?![0-9A-Za-z])", path.name)}
        images = {"image": str(beside.pop().relative_to(root))} if len(beside) == 1 else {}
        made.append(row | images)
    return made


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in anndata_files.IMAGE_SUFFIXES and path.is_file()


def _alone(rows: Sequence[Row], root: Path) -> list[str]:
    return ["One section is its own patient, and its study has the folder's name; a single section "
            "can be predicted on its own spots alone, which leaks between neighbours."] \
        if len(rows) == 1 else []


def _each(source: str, root: Path, named: Sequence[dict[str, Any]], options: Mapping[str, Any]
          ) -> list[Row]:
    """Read outputs together; where that fails one by one, and then with a scale that is tried.

    An image that was found beside an output and does not fit it is left out again.
    """
    stands = [row | {"study": "study", "patient": row["section"]} for row in named]
    cells = {row["section"]: dict(row) for row in named}
    try:
        people = cohort.read(source, root, samples=pd.DataFrame(stands).fillna(""), **options)
        rows = _rows(people, lambda section: cells[section.name])
        if not any(row.problem for row in rows):
            return rows
    except InputError:
        pass  # one section is at fault: reading each alone shows which
    return [_one(source, root, row, cells[row["section"]], options) for row in stands]


def _one(source: str, root: Path, row: dict[str, Any], cells: dict[str, Any],
         options: Mapping[str, Any]) -> Row:
    """Read one output; the scale is to be filled in where it is all that is missing."""
    without = {key: value for key, value in row.items() if key != "image"}
    problem = ""
    tries = [stated | scale for stated in ([row, without] if "image" in row else [row])
             for scale in ({}, {"mpp": _TRIED_MPP})]
    for tried in tries:
        told = {key: value for key, value in cells.items() if key in tried}
        try:
            people = cohort.read(source, root, samples=pd.DataFrame([tried]), **options)
            [made] = _rows(people, lambda section, told=told: told)
        except InputError as error:
            made = Row(row["section"], told, problem=str(error))
        if not made.problem:
            if "mpp" in tried:  # tried at 1 um/px: its mpp is then the reduction
                made.facts["reduced"] = made.facts["mpp"]
                made.cells["mpp"], made.facts["mpp"] = BLANK, BLANK
            return made
        if tried == without or "image" not in row:
            problem = problem or made.problem
    return Row(row["section"], told, problem=problem)


# --- tables of counts and spots ------------------------------------------------------------------

def _texts(root: Path) -> list[Path]:
    """Tables of text in a directory, in its folders and in theirs."""
    return [path for folder in open_folders(root, 2) for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith(".") and legacy_st.table_suffix(path)]


def holds_legacy(root: Path) -> bool:
    if holds_her2st(root) or holds_mob(root):
        return False
    return any(_is_counts(path) for path in _texts(root)[:200])


def _is_counts(path: Path) -> bool:
    """Whether a table has array positions down its side, or, to be refused, along its top."""
    if path.name.startswith(("barcodes", "features", "genes", "matrix")):
        return False
    lines = legacy_st.with_tabs(_first_lines(path))
    if len(lines) < 2 or legacy_st.is_spots(lines):
        return False
    top = [cell.strip('"') for cell in lines[0].split("\t")[1:]]
    side = lines[1].split("\t")[0].strip('"')
    return any(names and all(re.fullmatch(legacy_st.POSITION, name) for name in names)
               for names in ([side], top[:20] if len(top) > 2 else []))


def _first_lines(path: Path) -> list[str]:
    """The first two lines of a table, packed or not; none of what is no text."""
    try:
        with open(path, "rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as stream:
            return [stream.readline(_LONGEST_LINE).decode("utf-8-sig") for _ in range(2)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return []


def look_legacy(root: Path) -> Found:
    tables = _texts(root)
    counts = [path for path in tables if _is_counts(path)]
    spots = [path for path in tables if legacy_st.is_spots(_first_lines(path))]
    pictures = [path for folder in {path.parent for path in counts} | {*open_folders(root, 2)[1:]}
                for path in sorted(folder.iterdir())
                if path.suffix.lower() in legacy_st.IMAGE_SUFFIXES]
    names = _section_names(counts)
    used, made = set(), []
    for path in counts:
        name = names[path]
        places = _nearest(path, name, spots)
        image = _nearest(path, name, pictures)
        cells = {"section": name, "study": BLANK, "patient": BLANK}
        cells |= {column: str(file.relative_to(root)) for column, file in
                  (("counts", path), ("spots", places), ("image", image)) if file is not None}
        used |= {Path(cells[column]).parts[0] for column in ("counts", "spots", "image")
                 if column in cells}
        made.append(cells)
    if (root / "samples.csv").is_file():
        return _listed(root, "legacy_st", "legacy Spatial Transcriptomics, listed in samples.csv",
                       used)
    if len(made) == 1:
        made[0] |= {"study": root.absolute().name, "patient": made[0]["section"]}
    found = Found(root, "legacy_st", "legacy Spatial Transcriptomics, tables of counts and spots",
                  "legacy_st", used=used, table=LEGACY_COLUMNS)
    with _quiet():
        found.rows = [_legacy_row(root, cells, sum_doubled=False) for cells in made]
        if any("stands more than once" in row.problem for row in found.rows):
            found.options["sum_doubled"] = True
            found.rows = [_legacy_row(root, cells, sum_doubled=True) for cells in made]
    found.advice = _alone(found.rows, root)
    if found.options:
        found.advice.append("Genes that stand more than once in a table are summed (sum_doubled).")
    return found


def _legacy_row(root: Path, cells: dict[str, Any], sum_doubled: bool) -> Row:
    try:
        section = legacy_st.make_section(
            cells["section"], root=root, counts=root / cells["counts"],
            spot_file=root / cells["spots"] if "spots" in cells else None,
            image=root / cells["image"] if "image" in cells else None, study="study",
            patient=cells["section"], specimen=cells["section"], source="legacy_st", labels=None,
            facts=None, pitch_um=None, sum_doubled=sum_doubled)
        return _row(section, cells)
    except InputError as error:
        return Row(cells["section"], cells, problem=str(error))


def _section_names(counts: Sequence[Path]) -> dict[Path, str]:
    """A section's folder names it where each has its own; else the file, without what all share."""
    folders = [path.parent.name for path in counts]
    if len(set(folders)) == len(counts) > 1 or (len(counts) == 1 and counts[0].name.startswith(
            folders[0])):
        return dict(zip(counts, folders, strict=True))
    stems = [path.name.removesuffix(legacy_st.table_suffix(path) or "") for path in counts]
    tail = re.compile(r"[_.-]*(stdata|counts?|matrix|aligned|ids?|raw|filtered|st)(?=[_.-]|$)",
                      re.IGNORECASE)
    short = [tail.sub("", stem) or stem for stem in stems]
    return dict(zip(counts, short if len(set(short)) == len(short) else stems, strict=True))


def _nearest(counts: Path, name: str, files: Sequence[Path]) -> Path | None:
    """The file that goes with a table: it has the section's name, or is alone beside it."""
    beside = [path for path in files if path.parent == counts.parent]
    named = [path for path in beside or files if re.search(
        rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", path.name)]
    if len(named) == 1:
        return named[0]
    return beside[0] if len(beside) == 1 else None


# --- AnnData and SpatialData ---------------------------------------------------------------------

def holds_files(ending: str) -> Callable[[Path], bool]:
    """Whether there are files (or stores) of an ending that are no samples of HEST."""
    def holds(root: Path) -> bool:
        if ending == ".h5ad" and (holds_hest(root) or any(root.glob("*.zarr"))):
            return False
        return any(not path.name.startswith(".") for pattern in (f"*{ending}", f"*/*{ending}")
                   for path in root.glob(pattern))
    return holds


def look_files(source: str, ending: str, says: str) -> Callable[[Path], Found]:
    def look(root: Path) -> Found:
        files = libraries.parts(anndata_files.find(root, ending))
        used = {part.path.relative_to(root).parts[0] for part in files.values()}
        used |= {path.name for path in root.iterdir() if path.stem in files}
        if (root / "samples.csv").is_file():
            return _listed(root, source, says, used)
        with _quiet():
            rows = [_file_row(source, root, name, alone=len(files) == 1) for name in files]
        return Found(root, source, says, source, rows=rows, used=used,
                     table=("section", "study", "patient", "specimen", "mpp", "image"),
                     advice=_alone(rows, root))

    return look


def _file_row(source: str, root: Path, name: str, alone: bool) -> Row:
    """Read one file; what its obs does not say of its owners is to be filled in."""
    cells = {"section": name}
    for tried in ({}, {"mpp": _TRIED_MPP}):
        samples = pd.DataFrame([{"section": name, "study": "study", "patient": name} | tried])
        try:
            [section] = cohort.read(source, root, samples=samples)
            guess = {"study": root.absolute().name, "patient": name} if alone else {}
            for field in ("study", "patient"):
                said = anndata_files.owner(section.adata, field)
                cells[field] = said or guess.get(field, BLANK)
            row = _row(section, cells)
        except InputError as error:
            problem = str(error)
            continue
        if tried:
            row.cells["mpp"], row.facts["mpp"] = BLANK, BLANK
        return row
    return Row(name, cells, problem=problem)


# --- loose files of the platforms ----------------------------------------------------------------

def holds_flat(root: Path) -> bool:
    if any(_is_there(root, source) for source in visium.PLATFORMS):
        return False
    return any(flat.is_part(parts) for parts in flat.find(root).values())


def look_flat(root: Path) -> Found:
    found = {name: parts for name, parts in flat.find(root).items() if flat.is_part(parts)}
    used = {file.relative_to(root).parts[0] for parts in found.values() for file in parts.values()}
    says = "loose files of Space Ranger or Xenium, as GEO has them"
    if (root / "samples.csv").is_file():
        return _listed(root, "flat", says, used)
    broken = []
    for name, parts in list(found.items()):
        try:
            flat.check(root, name, parts)
        except InputError as error:
            broken.append(Row(name, problem=str(error)))
            del found[name]
    rows = []
    if found:
        with _quiet():
            rows = _each("flat", root, _named(found, root), {})
    return Found(root, "flat", says, "flat", rows=[*rows, *broken], used=used,
                 table=OUTPUT_COLUMNS, advice=_alone(rows, root))
