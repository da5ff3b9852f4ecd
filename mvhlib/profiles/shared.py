"""Choice of the sections that can be read as one cohort: those with the same gene names.

A panel of genes is of all sections of a fold, so that sections which share none, or next to none,
cannot stand in one run: mouse beside human, symbols beside Ensembl ids, one platform's panel beside
another's.
"""

import re
from collections.abc import Sequence

from mvhlib.own_tables import BLANK
from mvhlib.profiles.found import Found, Row

#: Sections share enough genes with so many, or with half of those that the poorer one has.
ENOUGH = 20
_ENSEMBL = re.compile(r"ENS[A-Z]{0,6}G\d{6,}(\.\d+)?")


def _enough(shared: int, rows: Sequence[Row]) -> bool:
    return shared >= max(1, min(ENOUGH, min(len(row.genes) for row in rows) / 2))


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share genes, the group with the most to learn from first.

    Rows whose genes were not read go with the first group. The richest section opens a group, and
    takes in, one by one, those that leave it enough genes.
    """
    counted = sorted((row for row in rows if row.genes), key=_size, reverse=True)
    made: list[tuple[list[Row], frozenset[str]]] = []
    for row in counted:
        for number, (members, genes) in enumerate(made):
            if _enough(len(genes & row.genes), [*members, row]):
                made[number] = ([*members, row], genes & row.genes)
                break
        else:
            made.append(([row], row.genes))
    made.sort(key=lambda group: (len(group[0]), sum(map(_size, group[0]))), reverse=True)
    found = [members for members, _ in made] or [[]]
    found[0] += [row for row in rows if not row.genes]
    return [[row for row in rows if row in members] for members in found]


def _size(row: Row) -> int:
    return len(row.genes) * row.facts.get("spots", 1)


def n_shared(rows: Sequence[Row]) -> int | None:
    """Genes that all rows have; None where those of one alone, or of none, were read."""
    read = [row.genes for row in rows if row.genes]
    return len(frozenset.intersection(*read)) if len(read) > 1 else None


def keep_alike(found: Found) -> None:
    """Leave out of `found` the sections that share no genes with most others, and say so.

    Where a table says which sections are read, the profile's lists the others' alone; a data set
    that has no such table is told.
    """
    alike, *others = groups(found.readable)
    fix = "keep its row alone in the samples.csv of a second profile" if found.table else \
        "put it into a folder of its own"
    for row in [row for group in others for row in group]:
        said = (f"shares {len(row.genes & _genes(alike))} of its {len(row.genes)} genes with "
                f"{alike[0].name}{_why(row.genes, alike[0].genes)}. Fix: {fix}")
        if found.table:
            row.problem = said
        else:
            found.advice.append(f"{row.name} {said}.")
    if others and found.table and len(alike) == 1:
        stands = {"study": found.root.absolute().name, "patient": alike[0].name}
        alike[0].cells |= {field: name for field, name in stands.items()
                           if alike[0].cells.get(field) == BLANK}
    found.shared_genes = n_shared(alike)


def _genes(rows: Sequence[Row]) -> frozenset[str]:
    return frozenset.intersection(*(row.genes for row in rows if row.genes))


def _why(genes: frozenset[str], others: frozenset[str]) -> str:
    """Explain by their form why two lists of gene names differ, where it shows."""
    ids = [sum(bool(_ENSEMBL.fullmatch(name)) for name in names) > len(names) / 2
           for names in (genes, others)]
    if ids[0] != ids[1]:
        return ": one names genes by symbols, the other by Ensembl ids"
    folded = {name.upper() for name in genes} & {name.upper() for name in others}
    if len(folded) > max(ENOUGH, 2 * len(genes & others)):
        return ": names differ in case, as those of human and mouse do"
    return ""
