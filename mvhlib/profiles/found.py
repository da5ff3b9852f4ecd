"""Report on a data set, for a person to read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvhlib.own_tables import BLANK

#: Columns of the printed table, and what stands above them.
HEADINGS = {"name": "", "study": "study", "patient": "patient", "label": "label",
            "spots": "spots", "genes": "genes", "mpp": "um/px", "image": "image", "holds": "holds",
            "images": "images", "patients": "patients"}
#: Rows that are printed; the others are counted.
MOST_LINES = 40


@dataclass
class Row:
    """A section, slide or image, or a table of patients.

    Attributes
    ----------
    name
        As the reader calls it.
    cells
        Column -> cell of the table that the user fills in; `BLANK` where only the user knows.
    facts
        Column of `HEADINGS` -> what the reader found.
    problem
        Why it is left out, in one line; empty where it is not.
    genes
        Names of the genes that were measured, where they were read.
    """

    name: str
    cells: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    genes: frozenset[str] = field(default=frozenset(), repr=False)

    def known(self, column: str) -> Any:
        """Value of a column, from the table or the reader; None where neither states it."""
        return self.facts.get(column, self.cells.get(column))


@dataclass
class Found:
    """A data set as one kind of data reads it.

    Attributes
    ----------
    root
        The data set's directory.
    kind, says, source
        Name in `mvhlib.profiles.kinds.KINDS`, what it is in words, and the reader's name; without
        a source nothing can be run, and `advice` says what to do first.
    of
        What a row is: section, slide, image, table.
    rows
        In the reader's order.
    used
        Names in `root` that belong to it; the others were not recognised.
    options
        Of the reader, as the profile states them.
    table
        Columns of the table that the user fills in; empty where none is needed.
    separator
        Of that table's columns.
    advice
        Sentences on what was found.
    shared_genes
        Genes that all sections have, where those of several were read.
    closed
        Files and folders of `root` that this user may not read, named from there.
    """

    root: Path
    kind: str
    says: str
    source: str
    of: str = "section"
    rows: list[Row] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    options: dict[str, Any] = field(default_factory=dict)
    table: Sequence[str] = ()
    separator: str = ","
    advice: list[str] = field(default_factory=list)
    shared_genes: int | None = None
    closed: Sequence[str] = ()

    @property
    def readable(self) -> list[Row]:
        return [row for row in self.rows if not row.problem]

    def blanks(self) -> list[str]:
        """Columns that the user has to fill in."""
        return [column for column in self.table
                if any(row.cells.get(column) == BLANK for row in self.readable)]

    def values(self, column: str) -> list[Any] | None:
        """Distinct values of a column; None where one of them is still to be filled in."""
        said = [row.known(column) for row in self.readable]
        if not said or any(value in (None, "", BLANK) for value in said):
            return None
        return list(dict.fromkeys(said))

    def not_recognised(self) -> list[str]:
        """Names in the directory that no reader of this kind looks at, of what may be read."""
        return sorted(path.name for path in self.root.iterdir() if not path.name.startswith(".")
                      and path.name not in self.used and path.name not in self.closed)

    def lines(self) -> list[str]:
        """The report: what it is, one line for each row, what is to be filled in, what is left."""
        read_by = f", source {self.source}" if self.source else ""
        lines = [f"{self.root}", f"  recognised: {self.says}{read_by}", *_indent(self._counts())]
        if self.readable:
            listed = self._listed()
            lines += ["", *_indent(table(listed[:MOST_LINES], "class" if self.of == "image"
                                         else self.of))]
            if len(listed) > MOST_LINES:
                lines.append(f"  and {len(listed) - MOST_LINES} more")
        problems = [row for row in self.rows if row.problem]
        if problems:
            lines += ["", "  left out:"]
            lines += [f"  {row.name}: {row.problem}" for row in problems]
        closed = [name for name in self.closed if not any(
            row.problem.startswith(f"{self.root / name}: ") for row in problems)]
        for said, names in (("may not be read by this user", closed),
                            ("not recognised", self.not_recognised())):
            if names:
                more = f" and {len(names) - 12} more" if len(names) > 12 else ""
                lines += ["", f"  {said}: {', '.join(names[:12])}{more}"]
        return [*lines, *([""] if self.advice else []), *_indent(self.advice)]

    def _listed(self) -> list[dict[str, Any]]:
        """What is printed line by line: sections and the like; of images, the classes."""
        if self.of != "image":
            return [{"name": row.name} | {name: row.known(name) for name in HEADINGS
                                          if name != "name"} for row in self.readable]
        labels = list(dict.fromkeys(row.facts["label"] for row in self.readable))
        each = {label: [row for row in self.readable if row.facts["label"] == label]
                for label in sorted(labels)}
        return [{"name": label, "images": len(rows), "patients": len(
            {row.facts["patient"] for row in rows} - {None}) or None}
            for label, rows in each.items()]

    def _counts(self) -> list[str]:
        n = len(self.readable)
        said = [f"{n} {self.of}{'s' if n != 1 else ''}"]
        for column, plural in (("patient", "patients"), ("study", "studies")):
            if self.of == "table" or not self.readable:
                continue
            values = self.values(column)
            said.append(f"{plural}: to be filled in" if column in self.blanks() else
                        f"{plural}: not stated" if values is None else f"{plural}: {len(values)}")
        scales = [row.known("mpp") for row in self.readable if _is_number(row.known("mpp"))]
        if scales:
            low, high = min(scales), max(scales)
            said.append(f"um/px: {low:.3g}" + (f" to {high:.3g}" if high > 1.02 * low else ""))
        if self.shared_genes is not None:
            said.append(f"genes in all: {self.shared_genes}")
        return [", ".join(said)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def table(rows: Sequence[Mapping[str, Any]], of: str = "") -> list[str]:
    """Lines of a table whose columns stand under each other; columns without a value are left out.

    Parameters
    ----------
    rows
        Column of `HEADINGS` -> value.
    of
        Heading of the first column.
    """
    kept = [name for name in HEADINGS if any(row.get(name) not in (None, "") for row in rows)]
    cells = [[HEADINGS[name] or of for name in kept]] + [
        [_cell(row.get(name)) for name in kept] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(kept))]
    align: list[Callable[[str, int], str]] = [
        str.rjust if any(_is_number(row.get(name)) for row in rows) else str.ljust for name in kept]
    return ["  ".join(put(cell, width) for put, cell, width in
                      zip(align, line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
