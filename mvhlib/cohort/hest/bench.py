"""Tasks of hest-bench: the folds and the genes that each of them fixes."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, check_sayable, reading
from mvhlib.cohort.base import entries, present

log = logging.getLogger(__name__)


def bench_options(data: str | Path | None, task: str) -> dict[str, Any]:
    """Folds and genes that a task of hest-bench fixes for every notebook.

    Parameters
    ----------
    data
        Directory of the data set.
    task
        Folder of the task below it; empty where no task is evaluated.

    Returns
    -------
    dict
        ``given`` for `splits.make` and ``benchmark_genes`` for `evaluation.choose_panels`; both
        None without a task.
    """
    if not task:
        return {"given": None, "benchmark_genes": None}
    folder = Path(data or ".") / task
    return {"given": bench_folds(folder), "benchmark_genes": bench_genes(folder)}


def bench_folds(path: str | Path) -> pd.DataFrame:
    """Folds of a task of hest-bench, from its own ``splits/{train,test}_<i>.csv``.

    Anything else in ``splits`` is passed over, and the log says so.

    Parameters
    ----------
    path
        Folder of the task.

    Returns
    -------
    DataFrame
        Columns fold (text), section, role, samples in the order of the files; for
        ``splits.make(..., given=...)``.

    Raises
    ------
    InputError
        If there is no split, a half of one is missing, or a sample stands on both sides.
    """
    folder = Path(path) / "splits"
    halves: dict[int, dict[str, Path]] = {}
    for file in entries(folder):
        named = re.fullmatch(r"(train|test)_(\d+)\.csv", file.name)
        if named is None:
            log.info("%s is not a split and is skipped", file)
            continue
        halves.setdefault(int(named[2]), {})[named[1]] = file
    if not halves:
        raise InputError(folder, "splits", "holds no train_<i>.csv and test_<i>.csv",
                         "pass the folder of a task of hest-bench")
    rows = []
    for number in sorted(halves):
        for role in ("train", "test"):
            file = halves[number].get(role)
            if file is None:
                raise InputError(folder, f"{role}_{number}.csv", "does not exist",
                                 "fetch the task again")
            samples = tables.names(tables.read_table(file, ("sample_id",)), "sample_id", file,
                                   safe=True)
            rows += [(str(number), name, role) for name in dict.fromkeys(samples)]
    frame = pd.DataFrame(rows, columns=["fold", "section", "role"])
    for fold, part in frame.groupby("fold"):
        both = part["section"][part["section"].duplicated()]
        if len(both):
            raise InputError(folder, f"fold {fold}", f"{list(both)[:3]} are on both sides",
                             "keep a sample on one side")
    return frame


def bench_genes(path: str | Path, name: str = "var_50genes") -> list[str]:
    """Genes of a task of hest-bench; they were chosen with its test samples.

    Parameters
    ----------
    path
        Folder of the task.
    name
        ``var_50genes`` or ``mean_50genes``.
    """
    file = Path(path) / f"{name}.json"
    if not present(file):
        raise InputError(file, "file", "does not exist", "pass the folder of a task of hest-bench")
    with reading(file, "genes", fix="fetch it again"):
        genes = json.loads(file.read_text(encoding="utf-8-sig"))["genes"]
    if not isinstance(genes, list) or not genes or not all(
            isinstance(gene, str) and gene.strip() for gene in genes):
        raise InputError(file, "genes", f"is not a list of names ({genes!r:.60})", "fetch it again")
    if len(set(genes)) < len(genes):
        raise InputError(file, "genes", "names a gene more than once", "fetch it again")
    check_sayable(genes, file, "gene")
    return genes
