"""Logistic regression and nearest neighbours, fitted on training rows alone."""

from collections.abc import Sequence

import numpy as np

from mvhlib import standardise
from mvhlib.artifacts import TooFew
from mvhlib.downstream.probe.splits import deal, most_folds

#: L2 penalties per row of training data that the inner folds choose from.
PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
INNER_FOLDS = 3

#: Neighbours that vote.
NEIGHBOURS = 20


class LogisticProbe:
    """Multinomial logistic regression on standardised features, its L2 chosen on inner folds.

    The penalty is per row (`C = 1 / (penalty n)` in scikit-learn), so that what the smaller inner
    folds choose means the same on the whole training side. The choice is by log loss, a proper
    score, over inner folds of the same kind as the outer ones.

    Parameters
    ----------
    penalties
        To choose from; one alone is taken as it is.
    split, seed
        Of the inner folds.

    Attributes
    ----------
    classes_, penalty_
        Classes in the order of the probabilities; the penalty that was chosen.
    """

    def __init__(self, penalties: Sequence[float] = PENALTIES, split: str = "grouped",
                 seed: int = 0):
        self.penalties, self.split, self.seed = tuple(penalties), split, seed

    def fit(self, X: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> "LogisticProbe":
        """Choose the penalty, then fit on all rows."""
        X, labels = np.asarray(X, dtype=np.float64), np.asarray(labels, dtype=str)
        groups = np.asarray(groups, dtype=str)
        self.classes_ = np.unique(labels)
        self.penalty_ = self.penalties[0]
        if len(self.penalties) > 1:
            if self.split == "grouped" and len(np.unique(groups)) < 2:
                raise TooFew("probe", "patients", "are one on the training side, too few to "
                                 "choose a penalty on", "add patients, or give one penalty")
            n_folds = most_folds(labels, groups, self.split, INNER_FOLDS)
            if n_folds > 1:  # else no class could be held out and learned: the strongest penalty
                inner = deal(labels, groups, self.split, n_folds, [self.seed, 1])
                loss = sum(self._inner_losses(X, labels, inner == k) for k in np.unique(inner))
                # Of equal losses the stronger penalty, which stands first.
                self.penalty_ = self.penalties[int(np.argmin(loss))]
        self._fitted = self._path(X, labels, [self.penalty_])[0]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of each class, `(n, K)`."""
        return self._fitted(np.asarray(X, dtype=np.float64))

    def _inner_losses(self, X: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Summed log loss of the rows under `test`, one number per penalty."""
        if test.all() or len(np.unique(labels[~test])) < 2:
            return np.zeros(len(self.penalties))
        column = np.searchsorted(self.classes_, labels[test])
        losses = []
        for predict in self._path(X[~test], labels[~test], self.penalties):
            chances = predict(X[test])[np.arange(len(column)), column]
            # A class that the inner training side lacks has probability 0 under every penalty.
            losses.append(-np.log(np.maximum(chances, 1e-6)).sum())
        return np.array(losses)

    def _path(self, X: np.ndarray, labels: np.ndarray, penalties: Sequence[float]) -> list:
        """One prediction function per penalty, each started from the one before."""
        from sklearn.linear_model import LogisticRegression

        # Constant on the training side: no information there, and arbitrary scale on the test side.
        scale = standardise.fit(X)

        def scaled(values):
            return scale(values)[:, scale.varies]

        z, found = scaled(X), []
        model = LogisticRegression(max_iter=2000, warm_start=True)
        columns = np.searchsorted(self.classes_, np.unique(labels))
        for penalty in penalties:
            model.set_params(C=1 / (penalty * len(z)))
            model.fit(z, labels)
            weight, bias = model.coef_.copy(), model.intercept_.copy()

            def predict(values, weight=weight, bias=bias):
                score = scaled(values) @ weight.T + bias
                if len(columns) == 2:  # scikit-learn keeps one column for two classes
                    score = np.concatenate([np.zeros_like(score), score], axis=1)
                score = np.exp(score - score.max(axis=1, keepdims=True))
                chances = np.zeros((len(values), len(self.classes_)))
                chances[:, columns] = score / score.sum(axis=1, keepdims=True)
                return chances

            found.append(predict)
        return found


class NearestNeighbours:
    """Vote of the `k` training rows of greatest cosine, after centring by the training mean.

    Embeddings share a large offset, in which the cosine of any two is near 1: hence the centring
    (SimpleShot, Wang et al., arXiv 1911.04623).
    """

    def __init__(self, k: int = NEIGHBOURS):
        self.k = k

    def fit(self, X: np.ndarray, labels: np.ndarray, groups: object = None) -> "NearestNeighbours":
        """Keep the training rows; `groups` are taken for the sake of one signature, and unused."""
        labels = np.asarray(labels, dtype=str)
        self.classes_, self._code = np.unique(labels, return_inverse=True)
        self._mean = np.asarray(X, dtype=np.float64).mean(axis=0)
        self._rows = self._unit(X)
        return self

    def predict_proba(self, X: np.ndarray, batch: int = 1024) -> np.ndarray:
        """Share of each class among the neighbours, `(n, K)`; of equal cosines the earlier row."""
        k = min(self.k, len(self._rows))
        votes = np.zeros((len(X), len(self.classes_)))
        for start in range(0, len(X), batch):
            cosine = self._unit(X[start:start + batch]) @ self._rows.T
            nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
            for column in range(len(self.classes_)):
                votes[start:start + batch, column] = (self._code[nearest] == column).mean(axis=1)
        return votes

    def _unit(self, X: np.ndarray) -> np.ndarray:
        centred = np.asarray(X, dtype=np.float64) - self._mean
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        return centred / np.where(length > 0, length, 1)
