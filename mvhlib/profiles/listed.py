"""The user's ``slides.csv``, where a run cannot take it as it stands.

A slide that cannot be read ends a run, and so does one whose scale nobody states: then the profile
has a table of its own, with the other rows as they are, and the scale to be filled in.
"""

from mvhlib import tables
from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import Found

#: Slides that are named in a sentence.
_NAMED = 5


def own_table(found: Found) -> None:
    """Give `found` a table to write where ``slides.csv`` lists what cannot be read, or no scale.

    Parameters
    ----------
    found
        Of a directory with ``slides.csv``; its rows are those of the table, in their order. They
        get the table's cells.
    """
    table = tables.read_table(found.root / "slides.csv", ("slide",))
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
    found.advice.append("slides.csv cannot be run as it stands: make profile writes one of its "
                        f"own, {' and '.join(said)}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
