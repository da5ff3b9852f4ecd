"""Gene panels, chosen on the training sections of each fold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mvhlib.cohort import genes, hest, splits
from mvhlib.expression import protocols

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort

#: What the benchmarks' own panel is called, and its size: genes chosen as HEST does, with the test
#: samples. Under another protocol a panel of this name is chosen on the training sections alone.
HEST_PANELS = {"hest_var": "var", "hest_mean": "mean"}
BENCHMARK_PANEL, BENCHMARK_GENES = "hest_var", 50


def choose_panels(cohort: "Cohort", wanted: Sequence[str], names: Sequence[str], n_genes: int,
                  seed: int = 0, *, benchmark_genes: Sequence[str] | None = None,
                  **fold_options) -> pd.DataFrame:
    """Choose every panel of every fold, each on the fold's training sections alone.

    The benchmarks (``hest_bench``, ``mvhybrid_bench``) are the exception, and say so wherever they
    are printed: their one panel of 50 genes is chosen on all sections of the protocol, as their
    authors did.

    Parameters
    ----------
    wanted
        Protocols; those that the cohort does not allow are left out.
    names, n_genes
        See `mvhlib.cohort.genes.panel`; ``hest_var`` and ``hest_mean`` as well, which choose on the
        training sections as HEST does on all (`mvhlib.cohort.hest.k_genes`).
    benchmark_genes
        Genes of ``hest_bench`` as its task states them (`mvhlib.cohort.hest.bench_genes`); None
        chooses them.
    fold_options
        As in `jobs`; give both the same.

    Returns
    -------
    DataFrame
        Columns of ``panels.csv``: panel, protocol, fold, rank (from 1), gene. Genes are cut to
        those that the protocol's test sections have as well, by name only; for ``transfer`` and
        ``within`` fold by fold (see ``measured_in`` of `mvhlib.cohort.splits.make`).
    """
    parts, known, measured, memory = [], {}, {}, {}
    allowed = [p for p, why in splits.possible(cohort.manifest, wanted, seed=seed,
                                               **fold_options).items() if not why]
    for protocol in allowed:
        folds = splits.make(cohort.manifest, protocol, seed=seed, **fold_options)
        measured |= {s: frozenset(cohort[s].adata.var_names) for s in folds["section"].unique()
                     if s not in measured}
        if protocol in protocols.BENCHMARKS:
            stated = benchmark_genes if protocol == "hest_bench" else None
            chosen = list(stated) if stated is not None else _panel(
                BENCHMARK_PANEL, [cohort[s].adata for s in folds["section"].unique()],
                BENCHMARK_GENES, None, memory)
            parts += [genes.frame(chosen, BENCHMARK_PANEL, protocol, fold)
                      for fold in folds["fold"].unique()]
            continue
        # Groups of unlike platforms share few genes: transfer counts those of each pair.
        everyone = tuple(folds["section"].unique())
        measured_in = folds.attrs.get("measured_in", {})
        for fold, part in folds.groupby("fold", sort=False):
            train = tuple(part.loc[part["role"] != "test", "section"])
            common = frozenset.intersection(*(measured[s] for s in measured_in.get(fold, everyone)))
            for name in names:
                if (train, name, common) not in known:
                    known[train, name, common] = _panel(
                        name, [cohort[s].adata for s in train], n_genes, common, memory)
                parts.append(genes.frame(known[train, name, common], name, protocol, fold))
    return genes.concat(parts)


def _panel(name: str, adatas: list, n_genes: int, available: set[str] | None,
           memory: dict) -> list[str]:
    if name in HEST_PANELS:
        return hest.k_genes(adatas, n_genes, HEST_PANELS[name], available=available)
    return genes.panel(name, adatas, n_genes=n_genes, available=available, memory=memory)
