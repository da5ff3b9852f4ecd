"""Gene sets: their sources, their scores in every spot, and how well these are predicted."""

import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import standardise
from mvhlib.artifacts import InputError, check_sayable
from mvhlib.cohort.genes import marker_sets
from mvhlib.expression.scores import is_constant, pearson

if TYPE_CHECKING:
    from anndata import AnnData

#: Fewest measured genes of a gene set that is scored.
LEAST_GENES = 3

SET_COLUMNS = ("section", "gene_set", "n_in_set", "n_genes", "n_spots", "pcc", "pcc_genes", "gain")


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Read gene sets from a GMT file (also gzipped): name, description, genes, separated by tabs.

    Returns
    -------
    dict
        Name -> genes in the order of the file, each once.

    Raises
    ------
    InputError
        If the file is missing, holds no set, names one twice, or a line has no gene.

    References
    ----------
    Format of the Molecular Signatures Database (Liberzon et al., Bioinformatics 2011).
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "file", "does not exist", "check the path")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(path, "file", f"cannot be read as text ({error})",
                         "fetch the file again") from error
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = [part.strip() for part in line.split("\t")]
        genes = list(dict.fromkeys(gene for gene in rest[1:] if gene))
        if not name or not genes:
            raise InputError(path, f"line {number}", f"{line[:40]!r} has no name or no gene",
                             "give name, description and genes, separated by tabs")
        check_sayable([name, *genes], path, f"line {number}")
        if name in sets:
            raise InputError(path, f"line {number}", f"the set {name!r} stands twice",
                             "give every set its own name")
        sets[name] = genes
    if not sets:
        raise InputError(path, "sets", "there is none", "give one set per line")
    return sets


def program_sets(adata: "AnnData") -> dict[str, list[str]]:
    """Genes by ``var["program"]``: the synthetic cohort's own gene sets.

    Half of the genes of some programs fall with their cause, so that a plain mean cancels: pass
    `gene_signs` of the truth to `set_scores`.
    """
    if "program" not in adata.var:
        raise InputError("section", 'var["program"]', "is missing", "give a GMT file instead")
    programs = adata.var["program"].astype(str)
    return {name: list(programs.index[programs == name]) for name in dict.fromkeys(programs)
            if name not in ("", "nan")}


def gene_signs(var: pd.DataFrame) -> dict[str, float]:
    """Direction of every gene with its cause, from ``var["effect"]`` of the synthetic truth.

    Genes without an effect (noise) count as rising; a table without that column gives no signs.
    """
    if "effect" not in var:
        return {}
    return {str(gene): -1.0 if effect < 0 else 1.0 for gene, effect in var["effect"].items()}


def gene_sets(source: str | Path | Mapping[str, Sequence[str]] | None,
              sections: Iterable[Any]) -> dict[str, list[str]]:
    """Gene sets of a GMT file or a mapping.

    None takes the programs of the first section, where its genes have any, else the marker lists
    that come with the library (`mvhlib.cohort.genes`).
    """
    if source is None or source == "":
        adata = next(iter(sections)).adata
        return program_sets(adata) if "program" in adata.var else marker_sets()
    if isinstance(source, Mapping):
        return {name: list(genes) for name, genes in source.items()}
    return read_gmt(source)


def set_scores(values: np.ndarray, genes: Sequence[str], sets: Mapping[str, Sequence[str]], *,
               signs: Mapping[str, float] | None = None,
               least_genes: int = LEAST_GENES) -> pd.DataFrame:
    """Score of every gene set in every spot: the mean of its genes' z-scores within the section.

    Each gene counts the same however highly it is expressed (the combined z-score of Lee et al.,
    PLoS Computational Biology 2008, divided by the number of genes in place of its root).

    Parameters
    ----------
    values
        `(T, G)` of one section.
    genes
        Names of the columns.
    sets
        Name -> genes; those that are not measured are left out.
    signs
        Gene -> +1 or -1, for sets whose genes go both ways; None: all rise together.
    least_genes
        Sets with fewer measured genes that vary are left out.

    Returns
    -------
    pd.DataFrame
        `(T, K)`, one column per set.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(genes):
        raise InputError("gene sets", "values", f"shape {values.shape} for {len(genes)} genes",
                         "name every column")
    scale = standardise.fit(values)
    varies, z = scale.varies, scale(values)
    if signs is not None:
        z = z * np.array([float(signs.get(gene, 1.0)) for gene in genes])
    column = {gene: number for number, gene in enumerate(genes) if varies[number]}
    found = {}
    for name, members in sets.items():
        here = [column[gene] for gene in members if gene in column]
        if len(here) >= least_genes:
            found[name] = z[:, here].mean(axis=1)
    return pd.DataFrame(found, index=range(len(values)), dtype=float)


def score_sets(predictions: Mapping[str, Any], sets: Mapping[str, Sequence[str]], *,
               signs: Mapping[str, float] | None = None,
               least_genes: int = LEAST_GENES) -> pd.DataFrame:
    """Measure how well the score of each gene set is predicted, and how well its single genes are.

    Averaging coherent genes removes counting noise from the truth, so a pathway is commonly
    predicted better than its genes; ``gain`` is by how much. It is 0 or less where the genes of a
    set do not go together.

    Parameters
    ----------
    predictions
        Section -> `protocols.Prediction`, or AnnData with layers measured and predicted.
    sets, signs, least_genes
        See `set_scores`. Genes that do not vary in truth or prediction are left out of both.

    Returns
    -------
    pd.DataFrame
        Columns `SET_COLUMNS`, one row per section and set: genes of the set, those scored, Pearson
        r of the set's score over spots, mean r of its genes, and their difference.

    Raises
    ------
    InputError
        Where no set has enough genes among those predicted.
    """
    found = []
    for section, prediction in predictions.items():
        measured, predicted, genes = maps_of(section, prediction)
        varies = ~(is_constant(measured) | is_constant(predicted))
        kept = [gene for gene, keep in zip(genes, varies, strict=True) if keep]
        truth, guess = (set_scores(values[:, varies], kept, sets, signs=signs,
                                   least_genes=least_genes) for values in (measured, predicted))
        single = dict(zip(kept, pearson(measured[:, varies], predicted[:, varies]), strict=True))
        if truth.shape[1] == 0:
            continue
        whole = pearson(truth.to_numpy(), guess.to_numpy())
        for name, r in zip(truth.columns, whole, strict=True):
            here = [single[gene] for gene in dict.fromkeys(sets[name]) if gene in single]
            found.append({"section": section, "gene_set": name, "n_in_set": len(sets[name]),
                          "n_genes": len(here), "n_spots": len(truth), "pcc": float(r),
                          "pcc_genes": float(np.mean(here)), "gain": float(r - np.mean(here))})
    if not found:
        raise InputError("gene sets", "genes", f"no set has {least_genes} genes among those "
                         "predicted", "use the genes' naming scheme, a larger panel or set")
    return pd.DataFrame(found, columns=list(SET_COLUMNS))


def maps_with_names(prediction: Any) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Truth, prediction, genes and barcodes of an AnnData or a `protocols.Prediction`."""
    if hasattr(prediction, "layers"):
        return (prediction.layers["measured"], prediction.layers["predicted"],
                [str(gene) for gene in prediction.var_names],
                [str(name) for name in prediction.obs_names])
    return (prediction.measured, prediction.predicted, list(prediction.genes),
            list(prediction.barcodes))


def maps_of(section: str, prediction: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth, prediction and genes, without spots that either lacks."""
    measured, predicted, genes, _ = maps_with_names(prediction)
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    if measured.shape != predicted.shape or measured.shape[1] != len(genes):
        raise InputError(section, "prediction", f"measured {measured.shape}, predicted "
                         f"{predicted.shape}, {len(genes)} genes", "give one shape")
    known = np.isfinite(measured).all(axis=1) & np.isfinite(predicted).all(axis=1)
    if known.sum() < 3:
        raise InputError(section, "prediction", f"has {known.sum()} spots with both values",
                         "use a section that was predicted")
    return measured[known], predicted[known], genes
