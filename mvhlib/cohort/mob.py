"""Mouse olfactory bulb on 1,934-spot arrays: a second study of the same family as her2st.

Bergenstråhle et al., BMC Genomics 21, 482 (2020). Genes are Ensembl ids with their version.

==================  ================================================================================
what                how it is read
==================  ================================================================================
tables              ``<section>.tsv`` and ``alignment_table_<section>.tsv``, both for every section
                    that one of them, or ``metaData.csv``, names; else refused, unless `sections`
                    names what there is. See `mvhlib.cohort.legacy_st` for what they hold
``metaData.csv``    samples and individual, by semicolons, commas or tabs; only the stem of a path
                    counts. A blank individual is refused
images              ``<section>.jpg``, or as `mvhlib.cohort.legacy_st.find_images` finds them;
                    absent: expression-only
scale               measured from spots 141 um apart
==================  ================================================================================
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

from mvhlib import tables
from mvhlib.artifacts import InputError, safe_name
from mvhlib.cohort.base import Cohort
from mvhlib.cohort.legacy_st import (
    check_keys,
    check_names,
    find_images,
    find_tables,
    is_counts,
    make_section,
)


def read(path: str | Path, *, sections: Iterable[str] | None = None, images: bool = True,
         patients: Mapping[str, str] | None = None, pitch_um: float | None = None,
         study: str = "mob") -> Cohort:
    """Read a directory with ``<section>.tsv``, ``alignment_table_<section>.tsv`` and images.

    Only spots that the alignment table selects lie under tissue and are kept.

    Parameters
    ----------
    path
        Directory of the data set.
    sections
        Names to read; None reads all.
    images
        False reads every section as expression-only.
    patients
        Animal per section; None reads it from the column ``individual`` of ``metaData.csv``.
    pitch_um
        Distance of nearest spots [µm]; None is 141, that of two 200 µm lattices set into one
        another, for which pixels come out square within 1 % on the 6.2 x 6.6 mm array.

    Raises
    ------
    InputError
        If the directory or a file is missing or broken, a section lacks one of its tables, or its
        animal is not known.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory",
                         "pass the directory that holds the alignment tables")
    spots = find_tables(root, ["."], r"alignment_table_(?P<section>.+)")
    counts = find_tables(root, ["."], r"(?!alignment_table_)(?P<section>.+)")
    whole = {name: file for name, file in counts.items() if name in spots}
    if not whole:
        raise InputError(root, "alignment_table_*.tsv", "no table with counts beside it",
                         "pass the directory that holds the alignment tables and counts")
    animals = _animals(root) if patients is None else {
        safe_name(name, "option patients", "section"): safe_name(animal, "option patients",
                                                                 "patient")
        for name, animal in check_keys(patients, "patients").items()}
    if sections is None:
        named = [name for name in (*spots, *animals) if name not in whole]
        named += [name for name, file in counts.items() if name not in whole and is_counts(file)]
        if named:
            lacking = "counts" if named[0] not in counts else "alignment table"
            raise InputError(root, lacking, f"is missing for section {named[0]}" if len(named) == 1
                             else f"or counts are missing for sections {sorted(set(named))[:5]}",
                             "add the tables, or name the sections= to read")
    names = check_names(whole, sections, root)
    unknown = [name for name in names if name not in animals]
    if unknown:
        raise InputError(root / "metaData.csv", "individual", f"is not stated for {unknown}",
                         "add the sections, or pass patients={section: animal}")
    pictures = find_images(root, names) if images else {}
    return Cohort(make_section(
        name, root=root, counts=whole[name], spot_file=spots[name], image=pictures.get(name),
        study=study, patient=animals[name], specimen=animals[name], source="mob",
        pitch_um=pitch_um) for name in names)


def _animals(root: Path) -> dict[str, str]:
    """Animal per section; the table names files of its author's computer, only stems count."""
    path = root / "metaData.csv"
    if not path.is_file():
        raise InputError(path, "file", "does not exist, so the sections' animals are not known",
                         "add it, or pass patients={section: animal}")
    table = tables.read_table(path, ("samples", "individual"))
    animals = tables.names(table, "individual", path)
    # PureWindowsPath splits at both kinds of slash.
    stems = [PureWindowsPath(name).name.split(".")[0]
             for name in tables.names(table, "samples", path)]
    twice = [stem for stem, n in Counter(stems).items() if n > 1]
    if twice:
        raise InputError(path, "samples", f"names section {twice[0]} more than once",
                         "keep one row per section")
    return {stem: f"mouse{animal}" for stem, animal in zip(stems, animals, strict=True)}
