"""The user's ``slides.csv`` or ``samples.csv``, where a run cannot take it as it stands.

A slide or section that cannot be read ends a run, and so does a slide whose scale nobody states:
then the profile has a table of its own, with the other rows as they are, and the scale to be filled
in.
"""

import tempfile
from pathlib import Path

from mvhlib import cohort, own_tables, tables
from mvhlib.artifacts import InputError
from mvhlib.cohort.base import Cohort
from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import Found

#: Slides that are named in a sentence.
_NAMED = 5


def own_table(found: Found) -> None:
    """Give `found` a table to write where the user's lists what cannot be read, or no scale.

    Parameters
    ----------
    found
        Of a directory with ``slides.csv``, or with ``samples.csv`` where it is of sections; its
        rows are those of the table, in their order. They get the table's cells.
    """
    file = "samples.csv" if found.of == "section" else "slides.csv"
    table = tables.read_table(found.root / file, (found.of,))
    left_out = [row.name for row in found.rows if row.problem]
    no_scale = [row.name for row in found.readable if row.facts.get("mpp") == BLANK]
    if not (left_out or no_scale):
        return
    for row, cells in zip(found.rows, table.to_dict("records"), strict=True):
        row.cells = {column: "" if cell == BLANK else cell for column, cell in cells.items()}
        if row.facts.get("mpp") == BLANK:
            row.cells["mpp"] = BLANK
    columns = list(table.columns)
    found.table = [*columns, "mpp"] if no_scale and "mpp" not in columns else columns
    found.separator = table.attrs["separator"]
    said = ([f"without {_some(left_out)}"] if left_out else []) + (
        [f"with mpp to be filled in for {_some(no_scale)}"] if no_scale else [])
    found.advice.append(f"{file} cannot be run as it stands: make profile writes one of its "
                        f"own, {' and '.join(said)}.")


def sections_apart(source: str, root: Path) -> dict[str, Cohort | str]:
    """Read each section that ``samples.csv`` lists for itself, where they cannot be read together.

    Returns
    -------
    dict
        Section -> a cohort of it alone, or why it cannot be read; in the table's order.

    Raises
    ------
    InputError
        If the table has a section twice.
    """
    file = root / "samples.csv"
    table = tables.read_table(file, ("section", "study", "patient"))
    tables.names(table, "section", file, unique=True)
    found: dict[str, Cohort | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / file.name
        for row in table.to_dict("records"):
            own_tables.write_template(alone, list(table.columns), [row], len(table.columns),
                                      table.attrs["separator"])
            try:
                found[row["section"]] = cohort.read(source, root, samples=alone)
            except InputError as error:
                found[row["section"]] = str(error).replace(str(alone), str(file))
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
