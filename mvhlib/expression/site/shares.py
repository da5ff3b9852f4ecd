"""Shares of the features' variance: studies, patients, sections, labels, the rest."""

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.expression.site.spot_rows import Rows

SHARE_COLUMNS = ("encoder", "factor", "within", "n_groups", "n_units", "share", "by_chance",
                 "adjusted")


def variance_shares(joined: Rows, *, encoder: str = "", scale: str = "each") -> pd.DataFrame:
    """Split the features' variance into shares: studies, patients, sections, labels, the rest.

    Sums of squares over all features together, sequential and nested: between studies, between
    patients of a study, between sections of a patient, then what the label explains within
    sections (additive), and the rest; the shares sum to 1. Every patient weighs the same, and every
    section of a patient.

    A few patients differ by chance, and any grouping of them explains part of that. ``by_chance``
    is what a random regrouping of the next finer unit would explain (patients for the study,
    sections for the patient), ``adjusted`` the share beyond it, scaled so that a grouping that
    explains all differences between its units keeps its share: the adjusted R2 of Ezekiel (1930)
    with patients or sections, not spots, as units. Where every study is one patient the two cannot
    be told apart, and it is NaN. For the label the spots are the units, which neighbouring spots
    are not quite.

    Parameters
    ----------
    joined
        From `rows`.
    encoder
        Its slug in the table.
    scale
        ``"each"``: every feature counts the same, the share is the mean of the features' eta2;
        ``"none"``: features count by their variance, as in a principal component analysis.

    Returns
    -------
    pd.DataFrame
        Columns `SHARE_COLUMNS`; factors study, patient, section, label, rest, and apart from the
        sum ``label_alone``, which does not know of sections. Labels are taken over labelled spots
        and rescaled to the variance within sections; NaN where there are none.

    References
    ----------
    Anderson, "A new method for non-parametric multivariate analysis of variance", Austral Ecology
    2001.
    """
    if scale not in ("each", "none"):
        raise InputError("site", "scale", f"{scale!r} is not known", "use each or none")
    about, X = joined.about.reset_index(drop=True), joined.X
    section = pd.factorize(about["section"])[0]
    patient = pd.factorize(about["study"] + "/" + about["patient"])[0]
    study = pd.factorize(about["study"])[0]
    of_section = np.unique(np.stack([section, patient]), axis=1)[1]
    weight = 1.0 / np.bincount(section)[section] / np.bincount(of_section)[patient]
    X = X - np.average(X, axis=0, weights=weight)
    total = weight @ X**2
    varies = total > 1e-24 * max(float(total.max(initial=0.0)), 1e-300)
    if not varies.any():
        raise InputError("site", "features", "do not vary", "check the encoder: all its features "
                         "are the same")
    X = X[:, varies] / np.sqrt(total[varies] if scale == "each" else total.sum())
    if scale == "each":
        X = X / np.sqrt(varies.sum())

    between = [_between(X, groups, weight) for groups in (study, patient, section)]
    n_study, n_patient, n_section = (int(groups.max()) + 1 for groups in (study, patient, section))
    found = [{"factor": "study", "within": "", "n_groups": n_study, "n_units": n_patient,
              "share": between[0]} | _adjust(between[0], between[1], n_study - 1, n_patient - 1),
             {"factor": "patient", "within": "study", "n_groups": n_patient,
              "n_units": n_section, "share": between[1] - between[0]}
             | _adjust(between[1] - between[0], between[2] - between[0], n_patient - n_study,
                       n_section - n_study),
             {"factor": "section", "within": "patient", "n_groups": n_section,
              "n_units": n_section, "share": between[2] - between[1]}]
    inside = 1.0 - between[2]
    by_label = _label_share(X, about["label"].to_numpy(object), section, weight)
    label = np.nan if by_label is None else by_label["share"] * inside
    found.append({"factor": "label", "within": "section", "share": label} | (
        {} if by_label is None else {
            "n_groups": by_label["n_groups"], "n_units": by_label["n_units"],
            "by_chance": by_label["by_chance"] * inside,
            "adjusted": by_label["adjusted"] * inside}))
    found.append({"factor": "rest", "within": "", "share": inside - np.nan_to_num(label)})
    found.append({"factor": "label_alone", "within": "", "share": np.nan} if by_label is None else
                 {"factor": "label_alone", "within": "", "n_groups": by_label["n_groups"],
                  "n_units": by_label["n_units"], "share": by_label["alone"]})
    return pd.DataFrame([{"encoder": encoder} | row for row in found],
                        columns=list(SHARE_COLUMNS))


def _between(X: np.ndarray, groups: np.ndarray, weight: np.ndarray) -> float:
    """Weighted sum of squares of the group means of centred features."""
    mass = np.bincount(groups, weight)
    if len(mass) == 1:
        return 0.0
    sums = np.zeros((len(mass), X.shape[1]))
    np.add.at(sums, groups, weight[:, None] * X)
    return float((sums**2 / mass[:, None]).sum())


def _adjust(share: float, available: float, freedom: int, most: int) -> dict[str, float]:
    """Expectation of `share` under random grouping, and the share beyond it."""
    if freedom < 1 or most < 1:
        return {"by_chance": np.nan, "adjusted": np.nan}
    by_chance = available * freedom / most
    if freedom == most:  # every group is one unit: chance explains as much
        return {"by_chance": by_chance, "adjusted": np.nan}
    return {"by_chance": by_chance,
            "adjusted": (share - by_chance) / (1 - freedom / most)}


def _label_share(X: np.ndarray, labels: np.ndarray, section: np.ndarray,
                 weight: np.ndarray) -> dict[str, float] | None:
    """Share of the variance within sections that labels explain, over labelled spots."""
    known = np.array([label is not None for label in labels])
    if not known.any() or len(set(labels[known])) < 2:
        return None
    X, weight = X[known], weight[known]
    section = pd.factorize(section[known])[0]
    code, names = pd.factorize(labels[known].astype(str))
    mass = np.bincount(section, weight)

    def centred(values):
        sums = np.zeros((len(mass), values.shape[1]))
        np.add.at(sums, section, weight[:, None] * values)
        return values - (sums / mass[:, None])[section]

    root = np.sqrt(weight)[:, None]
    dummies = root * centred(np.eye(len(names))[code])
    inside = root * centred(X)
    total = float((inside**2).sum())
    freedom = int(np.linalg.matrix_rank(dummies))
    most = len(X) - len(mass)
    if freedom < 1 or total <= 0 or most <= freedom:
        return None
    basis = np.linalg.svd(dummies, full_matrices=False)[0][:, :freedom]
    share = float(((basis.T @ inside) ** 2).sum() / total)
    whole = X - np.average(X, axis=0, weights=weight)
    alone = _between(whole, code, weight) / float((weight @ whole**2).sum())
    return {"n_groups": len(names), "n_units": len(X), "share": share, "alone": alone} | _adjust(
        share, 1.0, freedom, most)
