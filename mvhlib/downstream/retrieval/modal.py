"""Image against expression: ridge and canonical correlation, and the ranks of a spot's own pair."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from mvhlib import spots, standardise
from mvhlib.artifacts import InputError
from mvhlib.downstream.retrieval.classes import VALUE_COLUMNS, unit_length

if TYPE_CHECKING:
    from mvhlib.features import Features

DIRECTIONS = ("image_to_expression", "expression_to_image")

#: Shares of the identity that `CanonicalRidge` chooses from; 1 is partial least squares.
SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Pairs:
    """Spots of one section that have a tile: features `(T, D)` and expression `(T, G)`."""

    study: str
    patient: str
    X: np.ndarray = field(repr=False)
    Y: np.ndarray = field(repr=False)


def read_pairs(sections: Iterable[Any], features: "Mapping[str, Features]",
               genes: Sequence[str]) -> dict[str, Pairs]:
    """Join each section's features with its normalised expression (ln of 1 + counts per 10,000).

    Sections without features are left out.
    """
    from mvhlib.cohort.genes import normalize
    from mvhlib.expression.scores import dense

    found = {}
    for section in sections:
        if section.name not in features:
            continue
        adata, given = section.adata, features[section.name]
        kept, values = spots.join(section.name, adata.obs_names, given)
        counts = adata[kept].layers["counts"]
        library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        columns = adata.var_names.get_indexer(list(genes))
        if (columns < 0).any():
            raise InputError(section.name, "genes", f"lack {genes[int(np.argmin(columns))]!r}",
                             "choose genes that all sections have")
        found[section.name] = Pairs(section.study, section.patient, values,
                                    dense(normalize(counts[:, columns], library=library)))
    return found


class RidgeMatch(BaseEstimator):
    """Predict expression from the image, and compare profiles.

    `mvhlib.expression.ridge.RidgeProbe` with its penalty chosen on inner folds. Both sides are
    profiles over genes in units of the genes' training spread.
    """

    def fit(self, X: np.ndarray, Y: np.ndarray, groups: Sequence,
            sections: Sequence) -> "RidgeMatch":
        """Fit on training spots; `groups` are left out together by inner folds."""
        from mvhlib.expression.ridge import RidgeProbe

        self.inverse_ = standardise.fit(Y).inverse
        self.probe_ = RidgeProbe().fit(X, Y, groups=groups, sections=sections)
        return self

    def transform(self, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and measured profiles, `(T, G)` each."""
        return self.probe_.predict(X) * self.inverse_, Y * self.inverse_


class CanonicalRidge(BaseEstimator):
    """Canonical correlation between features and expression, shrunken.

    Both sides are standardised on the training spots, and their correlation matrices replaced by
    `(1 - s) R + s I` before they are inverted (Vinod, "Canonical ridge and econometrics of joint
    production", J. Econometrics 1976): `s` near 0 is canonical correlation analysis, 1 is partial
    least squares. A variate counts by its canonical correlation.

    Parameters
    ----------
    n_components
        Most variates.
    shrinkages
        Values of `s` to choose from by leaving one group out after the other; the criterion is
        the mean relative rank of a spot's own pair within its section. One value fixes it.

    Attributes
    ----------
    shrinkage_
        The `s` used.
    correlations_
        Canonical correlations under the shrunken metric, `(C,)`.
    """

    def __init__(self, n_components: int = 16, shrinkages: Sequence[float] = SHRINKAGES):
        self.n_components = n_components
        self.shrinkages = shrinkages

    def fit(self, X: np.ndarray, Y: np.ndarray, groups: Sequence | None = None,
            sections: Sequence | None = None) -> "CanonicalRidge":
        """Fit on training spots.

        Parameters
        ----------
        X, Y
            `(T, D)` and `(T, G)`.
        groups, sections
            Unit (study, patient) that inner folds leave out, and the section of each spot; both
            are needed where there is something to choose.

        Raises
        ------
        InputError
            On shrinkages outside 0 to 1, or none chosen and no two groups to choose on.
        """
        given = [float(s) for s in np.atleast_1d(self.shrinkages)]
        if not given or min(given) < 0 or max(given) > 1:
            raise InputError("CanonicalRidge", "shrinkages", f"are {given}",
                             "give shares of 0 to 1")
        X, Y = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
        self.shrinkage_ = given[0]
        if len(given) > 1:
            self.shrinkage_ = self._choose(X, Y, given, groups, sections)
        return self._solve(self._moments(X, Y), self.shrinkage_)

    def transform(self, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted variates of images and of expression, `(T, C)` each."""
        return (X - self.mean_x_) @ self.weights_x_, (Y - self.mean_y_) @ self.weights_y_

    def _choose(self, X, Y, given, groups, sections) -> float:
        groups = np.asarray(groups, dtype=str)
        names = np.unique(groups) if groups.ndim else []
        if len(names) < 2 or sections is None or len(groups) != len(X):
            raise InputError("CanonicalRidge", "groups", "are fewer than two", "give the study, "
                             "patient or section of each spot, or fix the shrinkage")
        sections = np.asarray(sections, dtype=str)
        cost = np.zeros(len(given))
        for name in names:
            inside = groups == name
            moments = self._moments(X[~inside], Y[~inside])
            for index, s in enumerate(given):
                self._solve(moments, s)
                ranks = []
                for section in np.unique(sections[inside]):
                    rows = inside & (sections == section)
                    match = similarity(*self.transform(X[rows], Y[rows]))
                    ranks += [relative_rank(pair_ranks(m)).mean() for m in (match, match.T)]
                cost[index] += np.mean(ranks)
        return given[int(np.argmin(cost))]

    @staticmethod
    def _moments(X: np.ndarray, Y: np.ndarray) -> tuple:
        """Means, inverse spreads, and the three correlation matrices."""
        means, inverses, z = [], [], []
        for values in (X, Y):
            scale = standardise.fit(values)
            means.append(scale.mean)
            inverses.append(scale.inverse)
            z.append((values - scale.mean) * scale.inverse)
        n = len(X)
        return means, inverses, z[0].T @ z[0] / n, z[1].T @ z[1] / n, z[0].T @ z[1] / n

    def _solve(self, moments: tuple, s: float) -> "CanonicalRidge":
        means, inverses, rxx, ryy, rxy = moments
        halves = [_inverse_root((1 - s) * r + s * np.eye(len(r))) for r in (rxx, ryy)]
        left, self.correlations_, right = np.linalg.svd(halves[0] @ rxy @ halves[1],
                                                        full_matrices=False)
        kept = slice(0, self.n_components)
        self.correlations_ = self.correlations_[kept]
        weight = np.sqrt(self.correlations_)
        self.mean_x_, self.mean_y_ = means
        self.weights_x_ = inverses[0][:, None] * (halves[0] @ left[:, kept]) * weight
        self.weights_y_ = inverses[1][:, None] * (halves[1] @ right.T[:, kept]) * weight
        return self


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """`matrix^(-1/2)` of a symmetric matrix; directions without variance are left out."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > 1e-10 * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T


def similarity(images: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Cosine of every image with every profile of one section, `(T, T)`.

    Each side is centred on its own mean over the section first: a study's stain or depth shifts
    all its spots alike and says nothing of which belongs to which. No pair is used for that, but
    the section as a whole is.
    """
    sides = [unit_length(side - side.mean(axis=0)) for side in (images, expression)]
    return sides[0] @ sides[1].T


def pair_ranks(similarity: np.ndarray) -> np.ndarray:
    """Rank of each row's own column, 1 the best, `(T,)`; ties share the middle rank."""
    own = np.diag(similarity)[:, None]
    tied = np.isclose(similarity, own, rtol=0, atol=1e-12)
    return 1 + ((similarity > own) & ~tied).sum(axis=1) + (tied.sum(axis=1) - 1) / 2


def relative_rank(ranks: np.ndarray) -> np.ndarray:
    """Ranks as 0 (first) to 1 (last) of the gallery; a random order has mean and median 0.5."""
    return (ranks - 1) / max(len(ranks) - 1, 1)


def match_scores(similarity: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> pd.DataFrame:
    """Recall and median rank of both directions, for any model that embeds both sides.

    Parameters
    ----------
    similarity
        `(T, T)`: rows images, columns expression profiles, pairs on the diagonal.
    ks
        Depths.

    Returns
    -------
    DataFrame
        ``metric, value, chance``: ``<direction>_recall@k``, the share of spots whose pair is among
        the k nearest (a random order finds `k / T`), and ``<direction>_median_rank``, from 0 to 1
        (random 0.5).
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or len(similarity) < 2:
        raise InputError("retrieval", "similarity", f"has shape {similarity.shape}",
                         "give (T, T) of two spots or more, pairs on the diagonal")
    found = []
    for direction, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        ranks = pair_ranks(matrix)
        n = len(ranks)
        found += [(f"{direction}_recall@{k}", (ranks <= k).mean(), min(k, n) / n) for k in ks]
        found.append((f"{direction}_median_rank", np.median(relative_rank(ranks)), 0.5))
    return pd.DataFrame(found, columns=["metric", "value", "chance"])


def cross_modal(sections: Iterable[Any], features: "Mapping[str, Features]", folds: pd.DataFrame,
                genes_by_fold: Mapping[Hashable, Sequence[str]], *, split: str, encoder: str = "",
                ks: Sequence[int] = (1, 5, 10)) -> pd.DataFrame:
    """Find a spot's expression by its image, and its image by its expression, in unseen sections.

    Ridge and canonical correlation are fitted on the training sections of each fold, penalties
    chosen inside; every test section is a gallery of its own, in which each spot has one right
    answer. Neighbouring spots resemble each other, so the first rank is a hard question.

    Parameters
    ----------
    sections, features
        A `Cohort`, and section -> `Features` of one encoder.
    folds
        Columns fold, section, role, of `mvhlib.cohort.splits.make`.
    genes_by_fold
        Fold -> genes, chosen on its training sections.
    split
        The protocol of the folds: ``"loso"`` or ``"patient"``.

    Returns
    -------
    DataFrame
        Columns `VALUE_COLUMNS`, one row per classifier, metric and patient (mean over sections).

    Raises
    ------
    InputError
        On another protocol, a fold without genes, or sections without features.
    """
    if split not in ("loso", "patient"):
        raise InputError("cross_modal", "split", f"{split!r} leaves neither a study nor a patient "
                         "out", "use loso or patient")
    sections = list(sections)
    found = []
    for fold, part in folds.groupby("fold", sort=False):
        if str(fold) not in genes_by_fold:
            raise InputError("panels.csv", f"fold {fold}", "has no genes", "name the protocol "
                             f"{split!r} in 01_cohort's parameters and run it again")
        pairs = read_pairs([s for s in sections if s.name in set(part["section"])], features,
                           genes_by_fold[str(fold)])
        missing = sorted(set(part["section"]) - set(pairs))
        if missing:
            raise InputError("cross_modal", "features", f"of {missing[:3]} are missing",
                             "run 04_embed for all sections of the folds")
        train = {name: pairs[name] for name in part.loc[part["role"] == "train", "section"]}
        X = np.concatenate([pair.X for pair in train.values()]).astype(np.float64)
        Y = np.concatenate([pair.Y for pair in train.values()]).astype(np.float64)
        inner = _inner_groups(train, split)
        for name, model in (("ridge", RidgeMatch()), ("cca", CanonicalRidge())):
            model.fit(X, Y, **inner)
            for section in part.loc[part["role"] == "test", "section"]:
                own = pairs[section]
                scores = match_scores(similarity(*model.transform(own.X, own.Y)), ks)
                found.append(scores.assign(encoder=encoder, classifier=name, split=split,
                                           study=own.study, patient=own.patient))
    keys = [name for name in VALUE_COLUMNS if name not in ("value", "chance")]
    return pd.concat(found).groupby(keys, sort=False, as_index=False)[["value", "chance"]].mean()[
        list(VALUE_COLUMNS)]


def _inner_groups(train: Mapping[str, Pairs], split: str) -> dict[str, np.ndarray]:
    """What inner folds leave out: the unit of the outer ones, or the next finer that there is."""
    sizes = [len(pair.X) for pair in train.values()]
    sections = np.repeat(list(train), sizes)
    levels = ["patient"] if split == "patient" else ["study", "patient"]
    for owner in ([getattr(pair, level) for pair in train.values()] for level in levels):
        if len(set(owner)) > 1:
            return {"groups": np.repeat(owner, sizes), "sections": sections}
    if len(train) > 1:
        return {"groups": sections, "sections": sections}
    # One section is all there is: five runs of consecutive spots, as RidgeProbe takes them.
    runs = (np.arange(sizes[0]) * 5 // sizes[0]).astype(str)
    return {"groups": runs, "sections": runs}
