"""What users act on beyond single genes: gene sets, genes that go together, and where tissue lies.

Everything is taken within sections and then averaged over them, so that an offset between
laboratories is neither a pathway, nor a correlation, nor a tissue class.
"""

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import spots, standardise, statistics
from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import marker_sets
from mvhlib.expression.scores import is_constant, pearson

if TYPE_CHECKING:
    from anndata import AnnData

    from mvhlib.features import Features

#: A gene set is scored from so many measured genes on.
LEAST_GENES = 3

#: Principal components that clusters are sought in.
COMPONENTS = 20

SET_COLUMNS = ("section", "gene_set", "n_in_set", "n_genes", "n_spots", "pcc", "pcc_genes", "gain")
PLACE_COLUMNS = ("source", "section", "n_spots", "n_classes", "n_clusters", "ari", "nmi")
AUROC_COLUMNS = ("source", "section", "positive", "trained_on", "n_spots", "n_positive", "auroc")


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
    """How well the score of each gene set is predicted, beside its single genes.

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
        measured, predicted, genes = _maps(section, prediction)
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


def _read(prediction: Any) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Truth, prediction, genes and barcodes of an AnnData or a `protocols.Prediction`."""
    if hasattr(prediction, "layers"):
        return (prediction.layers["measured"], prediction.layers["predicted"],
                [str(gene) for gene in prediction.var_names],
                [str(name) for name in prediction.obs_names])
    return (prediction.measured, prediction.predicted, list(prediction.genes),
            list(prediction.barcodes))


def _maps(section: str, prediction: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth, prediction and genes, without spots that either lacks."""
    measured, predicted, genes, _ = _read(prediction)
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    if measured.shape != predicted.shape or measured.shape[1] != len(genes):
        raise InputError(section, "prediction", f"measured {measured.shape}, predicted "
                         f"{predicted.shape}, {len(genes)} genes", "give one shape")
    known = np.isfinite(measured).all(axis=1) & np.isfinite(predicted).all(axis=1)
    if known.sum() < 3:
        raise InputError(section, "prediction", f"has {known.sum()} spots with both values",
                         "use a section that was predicted")
    return measured[known], predicted[known], genes


@dataclass(frozen=True)
class CoExpression:
    """Gene-gene correlation of truth and prediction, in one order.

    Attributes
    ----------
    genes
        In the order of a clustering of the truth.
    measured, predicted
        Correlation matrices `(G, G)`, means over sections of within-section correlations.
    mantel_r, mantel_p
        Correlation of both matrices' entries off the diagonal, and its one-sided p.
    frobenius
        Norm of their difference, off the diagonal.
    frobenius_share
        The same as a share of the truth's own norm: 0 perfect, 1 as far off as predicting
        independent genes.
    inflation
        Mean absolute correlation of the prediction over that of the truth. Above 1 is the rule:
        counting noise weakens the truth's, and a linear model predicts few independent patterns.
    n_sections
        Sections that were averaged.
    left_out
        Genes that do not vary in some section.
    """

    genes: list[str]
    measured: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    mantel_r: float
    mantel_p: float
    frobenius: float
    frobenius_share: float
    inflation: float
    n_sections: int
    left_out: list[str]

    def record(self) -> dict[str, Any]:
        """The numbers, as a row of a table."""
        return {"n_genes": len(self.genes), "n_sections": self.n_sections,
                "mantel_r": self.mantel_r, "mantel_p": self.mantel_p, "frobenius": self.frobenius,
                "frobenius_share": self.frobenius_share, "inflation": self.inflation,
                "n_left_out": len(self.left_out)}


def mantel(a: np.ndarray, b: np.ndarray, *, n_permutations: int = 999,
           rng: np.random.Generator) -> tuple[float, float]:
    """Mantel's r of two symmetric matrices and its one-sided p.

    Pearson's correlation of the entries above the diagonal; under the null, rows and columns of one
    matrix are permuted together, since its entries are not independent of each other (Mantel,
    "The detection of disease clustering", Cancer Research 1967). The observed order counts as one
    permutation.

    Returns
    -------
    tuple of float
        r and p; both NaN where a matrix is constant off its diagonal.

    Raises
    ------
    InputError
        On shapes that differ, matrices that are not symmetric or smaller than 3 x 3.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) < 3:
        raise InputError("mantel", "shape", f"{a.shape} against {b.shape}",
                         "give two square matrices of three rows or more")
    if not (np.isfinite(a).all() and np.isfinite(b).all()
            and np.allclose(a, a.T) and np.allclose(b, b.T)):
        raise InputError("mantel", "matrix", "is not finite or not symmetric",
                         "give correlations or distances")
    n = len(a)
    off = ~np.eye(n, dtype=bool)
    x, y = (np.where(off, m - m[off].mean(), 0.0) for m in (a, b))
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    if np.ptp(a[off]) <= 1e-12 or np.ptp(b[off]) <= 1e-12:
        return float("nan"), float("nan")
    observed = float((x * y).sum() / norm)
    above = 0
    for _ in range(n_permutations):
        order = rng.permutation(n)
        above += (x * y[np.ix_(order, order)]).sum() / norm >= observed - 1e-12
    return float(np.clip(observed, -1, 1)), float((1 + above) / (1 + n_permutations))


def cluster_order(correlation: np.ndarray) -> np.ndarray:
    """Order of the rows that puts alike ones side by side.

    Leaves of an average-linkage tree on `1 - r`, in the optimal order (Bar-Joseph et al.,
    Bioinformatics 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(correlation) < 3:
        return np.arange(len(correlation))
    distance = np.clip(1 - (correlation + correlation.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def varying(predictions: Mapping[str, Any]) -> list[str]:
    """Genes that vary in every section, in the truth and in the prediction."""
    shared: dict[str, int] = {}
    for section, prediction in predictions.items():
        measured, predicted, names = _maps(section, prediction)
        still = ~(is_constant(measured) | is_constant(predicted))
        for name, keep in zip(names, still, strict=True):
            shared[name] = shared.get(name, 0) + bool(keep)
    return [name for name, count in shared.items() if count == len(predictions)]


def co_expression(predictions: Mapping[str, Any], genes: Sequence[str] | None = None, *,
                  n_permutations: int = 999, seed: int = 0) -> CoExpression:
    """Compare gene-gene correlations of truth and prediction, within sections.

    Parameters
    ----------
    predictions
        As in `score_sets`.
    genes
        Which; None takes those that all sections have.
    n_permutations, seed
        Of Mantel's test.

    Raises
    ------
    InputError
        Where fewer than three genes vary in every section.
    """
    maps = {section: _maps(section, prediction) for section, prediction in predictions.items()}
    if not maps:
        raise InputError("co-expression", "sections", "none was given", "give predictions")
    names = list(next(iter(maps.values()))[2] if genes is None else genes)
    shared = set.intersection(*(set(each[2]) for each in maps.values()))
    lacking = [name for name in names if name not in shared]
    if genes is not None and lacking:
        raise InputError("co-expression", "genes", f"{lacking[:3]} are not predicted in every "
                         "section", "choose genes of the panel")
    names = [name for name in names if name in shared]
    picked = []
    for measured, predicted, known in maps.values():
        place = {name: number for number, name in enumerate(known)}
        columns = [place[name] for name in names]
        picked.append((measured[:, columns], predicted[:, columns]))
    varies = np.ones(len(names), dtype=bool)
    for pair in picked:
        for values in pair:
            varies &= ~is_constant(values)
    if varies.sum() < 3:
        raise InputError("co-expression", "genes", f"{varies.sum()} vary in every section",
                         "choose genes that are found in every section")
    truth, guess = (np.mean([np.corrcoef(pair[side][:, varies], rowvar=False) for pair in picked],
                            axis=0) for side in (0, 1))
    order = cluster_order(truth)
    truth, guess = (matrix[np.ix_(order, order)] for matrix in (truth, guess))
    r, p = mantel(truth, guess, n_permutations=n_permutations, rng=np.random.default_rng(seed))
    off = ~np.eye(len(order), dtype=bool)
    error, size = np.linalg.norm((guess - truth)[off]), np.linalg.norm(truth[off])
    kept = [name for name, keep in zip(names, varies, strict=True) if keep]
    return CoExpression([kept[number] for number in order], truth, guess, r, p, float(error),
                        float(error / size), float(np.abs(guess[off]).mean()
                                                   / np.abs(truth[off]).mean()),
                        len(picked), [n for n, keep in zip(names, varies, strict=True) if not keep])


def clusters(values: np.ndarray, n_clusters: int, *, components: int = COMPONENTS,
             seed: int = 0) -> np.ndarray:
    """Cluster the spots of one section: standardise, leading principal components, k-means.

    Parameters
    ----------
    values
        `(T, F)`: expression or image features.
    n_clusters
        How many.
    components
        Principal components at most.
    seed
        Of the starts of k-means (ten).

    Returns
    -------
    np.ndarray
        Cluster of each spot `(T,)`.

    Raises
    ------
    InputError
        On values that are not finite or do not vary, or more clusters than spots.
    """
    from sklearn.cluster import KMeans

    z = _standard(values)
    if n_clusters < 1 or n_clusters > len(z):
        raise InputError("clusters", "n_clusters", f"is {n_clusters} for {len(z)} spots",
                         "ask for fewer")
    left, size, _ = np.linalg.svd(z, full_matrices=False)
    # The sign of a component is arbitrary; a fixed one gives the same clusters on every machine.
    largest = np.abs(left).argmax(axis=0)
    left = left * np.sign(left[largest, np.arange(left.shape[1])])
    k = min(components, left.shape[1])
    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(left[:, :k] * size[:k])


def _standard(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError("structure", "values", f"shape {values.shape} or not finite",
                         "give (spots, features) without NaN")
    scale = standardise.fit(values)
    if not scale.varies.any():
        raise InputError("structure", "values", "do not vary", "give expression or features")
    return scale(values)[:, scale.varies]


def localise(sources: Mapping[str, Mapping[str, np.ndarray]],
             labels: Mapping[str, Sequence[Any]], *, n_clusters: int | None = None,
             seed: int = 0) -> pd.DataFrame:
    """How well clusters of each source agree with labels, section by section.

    Parameters
    ----------
    sources
        For instance ``measured`` (the reference above), ``predicted``, and ``colour`` (below; see
        `mvhlib.tiles.stain.colour_statistics`): each section -> `(T, F)`. A source may lack
        sections.
    labels
        Section -> one label per spot; spots without one (None, NaN, ``undetermined``) are
        clustered and not compared. Sections with fewer than two classes are left out.
    n_clusters
        None: as many as the section has classes.
    seed
        See `clusters`.

    Returns
    -------
    pd.DataFrame
        Columns `PLACE_COLUMNS`: adjusted Rand index (Hubert and Arabie 1985; 0 by chance) and
        normalised mutual information (arithmetic mean; above 0 by chance).

    Raises
    ------
    InputError
        On another number of labels than spots.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    found = []
    for source, sections in sources.items():
        for section, values in sections.items():
            if section not in labels:
                continue
            names, known = _classes(section, labels[section], len(values))
            n_classes = len(set(names[known]))
            if n_classes < 2:
                continue
            k = n_clusters or n_classes
            guess = clusters(values, k, seed=seed)[known]
            found.append({
                "source": source, "section": section, "n_spots": int(known.sum()),
                "n_classes": n_classes, "n_clusters": k,
                "ari": float(adjusted_rand_score(names[known], guess)),
                "nmi": float(normalized_mutual_info_score(names[known], guess))})
    return pd.DataFrame(found, columns=list(PLACE_COLUMNS))


def _classes(section: str, labels: Sequence[Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels as text, and which name a class."""
    values = np.asarray(labels, dtype=object).ravel()
    if len(values) != n:
        raise InputError(section, "labels", f"are {len(values)} for {n} spots",
                         "give one label per spot, None where there is none")
    names = np.array(["" if pd.isna(value) else str(value) for value in values], dtype=str)
    return names, ~np.isin(names, spots.NO_CLASS)


def align(predictions: Mapping[str, Any], labels: Mapping[str, pd.Series],
          features: "Mapping[str, Mapping[str, Features]] | None" = None
          ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Bring truth, prediction, image features and labels to the same spots.

    Parameters
    ----------
    predictions
        As in `score_sets`; AnnData's ``obs_names``, or ``barcodes``, name the spots.
    labels
        Section -> series indexed by barcode; spots that it lacks have no label.
    features
        Name -> section -> `Features` (colour statistics, say); spots without a row in any of
        them are left out.

    Returns
    -------
    tuple of dict
        Sources ``measured``, ``predicted`` and those of `features`, each section -> `(T, F)`; and
        section -> label per spot, None where there is none.
    """
    from mvhlib.features import align as rows_of

    features = features or {}
    sources: dict[str, dict[str, np.ndarray]] = {"measured": {}, "predicted": {},
                                                 **{name: {} for name in features}}
    found = {}
    for section, prediction in predictions.items():
        measured, predicted, _, names = _read(prediction)
        known = np.isfinite(measured).all(axis=1) & np.isfinite(predicted).all(axis=1)
        here = [each[section] for each in features.values() if section in each]
        for each in here:
            known &= np.isin(names, each.barcodes)
        if not known.any():
            raise InputError(section, "barcodes", "of prediction and features have none in common",
                             "take both of the same section")
        kept = [name for name, keep in zip(names, known, strict=True) if keep]
        sources["measured"][section] = np.asarray(measured)[known]
        sources["predicted"][section] = np.asarray(predicted)[known]
        for name, each in features.items():
            if section in each:
                sources[name][section] = rows_of(each[section], kept)
        if section in labels:
            found[section] = spots.classes(section, kept, labels[section])
    return sources, found


def class_auroc(values: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[Any]],
                positive: str, *, source: str = "", train: Mapping[str, np.ndarray] | None = None,
                groups: Mapping[str, str] | None = None, penalty: float = 1.0) -> pd.DataFrame:
    """AUROC of one tissue class by a logistic regression that has not seen the section.

    Every section is standardised by itself. The regression weighs both kinds of spots alike, and
    within training every spot counts the same.

    Parameters
    ----------
    values
        Section -> `(T, F)`; each section with both kinds of spots is scored.
    labels
        Section -> label per spot; see `localise`. May name more sections than `values`.
    positive
        The class, for instance ``invasive cancer``.
    source
        Its name in the table.
    train
        Section -> `(T, F)` to learn from, with the same columns; None: `values`. Give measured
        expression here to ask whether predicted expression can stand in for it; sections
        without an image may serve.
    groups
        Section -> patient or study: all of the scored section's group are left out of training.
        None: the section alone.
    penalty
        Inverse strength ``C`` of the ridge penalty, on standardised columns.

    Returns
    -------
    pd.DataFrame
        Columns `AUROC_COLUMNS`, one row per scored section; no row for sections without both kinds
        of spots, NaN where nothing is left to learn from.

    Raises
    ------
    InputError
        If no section has the class, or training has other columns.
    """
    from sklearn.linear_model import LogisticRegression

    train = values if train is None else train
    known_names = {name for each in labels.values() for name in set(map(str, each))}
    if positive not in known_names:
        raise InputError("auroc", "positive", f"no spot is {positive!r}",
                         f"use one of {sorted(known_names - set(spots.NO_CLASS))[:8]}")

    def read(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes, known = _classes(name, labels[name], len(matrix))
        matrix = np.asarray(matrix, dtype=np.float64)
        return standardise.standardise(matrix)[known], classes[known] == positive

    learn = {name: read(name, matrix) for name, matrix in train.items() if name in labels}
    found = []
    for section, matrix in values.items():
        if section not in labels:
            continue
        x, y = read(section, matrix)
        if y.all() or not y.any():
            continue
        own = section if groups is None else groups[section]
        others = [name for name in learn if name != section
                  and (name if groups is None else groups[name]) != own]
        score, row = np.nan, {"source": source, "section": section, "positive": positive,
                              "trained_on": ",".join(others), "n_spots": len(y),
                              "n_positive": int(y.sum())}
        if others:
            X = np.concatenate([learn[name][0] for name in others])
            Y = np.concatenate([learn[name][1] for name in others])
            if X.shape[1] != x.shape[1]:
                raise InputError(section, "columns", f"are {x.shape[1]}, in training {X.shape[1]}",
                                 "give the same genes in one order")
            if Y.any() and not Y.all():
                model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
                score = statistics.auroc(model.fit(X, Y).decision_function(x), y)
        found.append(row | {"auroc": score})
    return pd.DataFrame(found, columns=list(AUROC_COLUMNS))


def class_aurocs(sources: Mapping[str, Mapping[str, np.ndarray]],
                 labels: Mapping[str, Sequence[Any]], positive: str, *,
                 groups: Mapping[str, str] | None = None) -> pd.DataFrame:
    """`class_auroc` of every source; what is predicted is read as measured expression is.

    No row where no section has the class.
    """
    known = {str(name) for each in labels.values() for name in set(each)}
    tables = [class_auroc(values, labels, positive, source=name, groups=groups,
                          train=sources["measured"] if name == "predicted" else None)
              for name, values in sources.items() if positive in known]
    return pd.concat(tables) if tables else pd.DataFrame(columns=list(AUROC_COLUMNS))


def summarise(table: pd.DataFrame, value: str, units: Mapping[str, str] | None = None, *,
              by: Sequence[str] = ("source",), confidence: float = 0.95) -> pd.DataFrame:
    """Mean and Student's t interval over units, from one row per section.

    Parameters
    ----------
    table
        From `score_sets`, `localise` or `class_auroc`.
    value
        Column to average, for instance ``auroc``.
    units
        Section -> patient or study; sections are averaged within it. None: sections are the units,
        which says nothing of other patients.
    by
        Columns that are kept apart.

    Returns
    -------
    pd.DataFrame
        Columns of `by`, then ``metric, mean, ci_low, ci_high, n_units, n_sections``.
    """
    table = table.dropna(subset=[value])
    unit = table["section"] if units is None else table["section"].map(units)
    if unit.isna().any():
        raise InputError("structure", "units", f"lack {sorted(set(table['section'][unit.isna()]))}",
                         "name every section's patient")
    found = statistics.unit_table(table.assign(unit=unit), "unit", by=list(by), value=value,
                                  confidence=confidence)
    sections = table.groupby(list(by), sort=False)["section"].nunique()
    found = found.assign(metric=value, n_sections=sections.to_numpy())
    return found[[*by, "metric", "mean", "ci_low", "ci_high", "n_units", "n_sections"]]
