"""Mouse olfactory bulb on 1,934-spot arrays: a second study of the same family as her2st.

Bergenstråhle et al., BMC Genomics 21, 482 (2020). Genes are Ensembl ids with their version.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

from mvhlib.artifacts import InputError
from mvhlib.cohort.base import Cohort
from mvhlib.cohort.legacy_st import (
    check_names,
    find_images,
    find_tables,
    make_section,
    read_table,
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
        If the directory or a file is missing or broken, or a section's animal is not known.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(root, "data", "is not a directory",
                         "pass the one that holds the alignment tables")
    spots = find_tables(root, ["."], r"alignment_table_(?P<section>.+)")
    counts = find_tables(root, ["."], r"(?!alignment_table_)(?P<section>.+)")
    counts = {name: file for name, file in counts.items() if name in spots}
    if not counts:
        raise InputError(root, "alignment_table_*.tsv", "no table with counts beside it",
                         "pass the directory that holds the alignment tables and counts")
    names = check_names(counts, sections, root)
    animals = dict(patients) if patients is not None else _animals(root)
    unknown = [name for name in names if name not in animals]
    if unknown:
        raise InputError(root / "metaData.csv", "individual", f"says nothing of {unknown}",
                         "add the sections, or pass patients={section: animal}")
    pictures = find_images(root, names) if images else {}
    return Cohort(make_section(
        name, root=root, counts=counts[name], spot_file=spots[name], image=pictures.get(name),
        study=study, patient=animals[name], specimen=animals[name], source="mob",
        pitch_um=pitch_um) for name in names)


def _animals(root: Path) -> dict[str, str]:
    """Animal per section; the table names files of its author's computer, only stems count."""
    path = root / "metaData.csv"
    if not path.is_file():
        raise InputError(path, "file", "does not exist, so the sections' animals are not known",
                         "add it, or pass patients={section: animal}")
    # read_table opens and judges the file; the separator of this one is not its tabulator.
    lines = read_table(path, header=None, dtype=str).iloc[:, 0].str.split(";", expand=True)
    table = lines.iloc[1:].set_axis(list(lines.iloc[0]), axis=1)
    missing = [column for column in ("samples", "individual") if column not in table.columns]
    if missing:
        raise InputError(path, "columns", f"lacks {missing}; has {list(table.columns)}",
                         "give samples and individual, separated by semicolons")
    # PureWindowsPath splits at both kinds of slash.
    stems = [PureWindowsPath(name).name.split(".")[0] for name in table["samples"]]
    return {stem: f"mouse{animal}" for stem, animal in
            zip(stems, table["individual"], strict=True)}
