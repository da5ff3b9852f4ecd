"""Site or biology: how much of an encoder's features is the laboratory, and what that costs.

An encoder whose features tell the study apart may be using it: what it learns from one study's
stain is lost on the next. Three views of that, one table: a linear probe that names the study (or
the patient, or the tissue class) of sections it has not seen, the shares of the features' variance
that lie between studies and between tissue classes, and both beside the drop from random folds to
an unseen study (`mvhlib.expression.evaluation.drops`).

Remedies are stain normalisation of the tiles (`mvhlib.tiles.stain`) and centring of the features
per study, below.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import spots, standardise, statistics
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from mvhlib.features import Features

#: Most spots of a section that a probe is trained on and asked about.
PROBE_SPOTS = 400

#: What a probe may be asked for: what it leaves out together, from coarse to fine.
UNSEEN = {"study": ("patient", "section"), "patient": ("section",),
          "label": ("study", "patient", "section")}

#: What a remedy adds to an encoder's slug.
REMEDIES = ("+centred", "-macenko", "-reinhard")

PROBE_COLUMNS = ("encoder", "target", "unseen", "n_classes", "n_units", "balanced_accuracy",
                 "chance", "excess", "ci_low", "ci_high", "note")
SHARE_COLUMNS = ("encoder", "factor", "within", "n_groups", "n_units", "share", "by_chance",
                 "adjusted")


@dataclass(frozen=True)
class Rows:
    """Features of many sections, spot by spot, with what is known of each spot.

    Attributes
    ----------
    X
        `(T, D)` float64.
    about
        One row per spot: section, study, patient, specimen where it is known, and label (None
        where there is none).
    """

    X: np.ndarray = field(repr=False)
    about: pd.DataFrame = field(repr=False)


def rows(features: "Mapping[str, Features | np.ndarray]", sections: Iterable[Any],
         labels: str | Mapping[str, pd.Series] | None = None) -> Rows:
    """Join features with section, patient, study and, where given, a label per spot.

    Parameters
    ----------
    features
        Section -> `Features`, joined on barcode; or an array with one row per spot.
    sections
        Such as a `Cohort`; those without features are left out.
    labels
        A column of the sections' ``obs`` (``"label"`` of her2st), or section -> series indexed by
        barcode (``tissue_class`` of the synthetic truth). Sections may lack it.

    Raises
    ------
    InputError
        On features that do not join, are not finite or differ in width, or where no section has
        any.
    """
    X, about = [], []
    for section in sections:
        if section.name not in features:
            continue
        given, adata = features[section.name], section.adata
        kept, values = spots.join(section.name, adata.obs_names, given)
        if values.ndim != 2:
            raise InputError(section.name, "features", f"shape {values.shape} for "
                             f"{adata.n_obs} spots", "give one row per spot")
        names = np.asarray(adata.obs_names, dtype=str)[kept]
        if X and values.shape[1] != X[0].shape[1]:
            raise InputError(section.name, "features", f"are {values.shape[1]} wide, others "
                             f"{X[0].shape[1]}", "use features of one encoder")
        X.append(np.asarray(values, dtype=np.float64))
        about.append(pd.DataFrame({
            "section": section.name, "study": str(section.study), "patient": str(section.patient),
            "specimen": str(getattr(section, "specimen", section.name)),
            "label": _labels(labels, section.name, adata, names)}, index=names))
    if not X:
        raise InputError("site", "features", "are of none of the sections",
                         "give features of the cohort's sections")
    return Rows(np.concatenate(X), pd.concat(about))


def _labels(labels, section: str, adata, names: np.ndarray) -> np.ndarray:
    """Label of each spot as text, None where it has none."""
    if isinstance(labels, str):
        series = adata.obs[labels] if labels in adata.obs else None
    else:
        series = None if labels is None else labels.get(section)
    return spots.classes(section, names, series)


def probe(joined: Rows, target: str, *, encoder: str = "", max_spots: int = PROBE_SPOTS,
          confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """How well a linear classifier names the study, patient or label of sections not seen.

    Linear discriminants with equal priors and the covariance shrunken by Ledoit and Wolf's rule
    (scikit-learn). To name the study, whole patients are held out where each study has two or
    more, so that the study is recognised and not the patient; otherwise sections. To name the
    patient, sections are held out, and all sections of one specimen together, since replicates are
    nearly the same tissue; the choice is among the patients of the spot's own study, for who knows
    the study has half the patient already. Labels are asked for on studies that were held out,
    where there are two, else on patients, else on sections. Classes that are found in one unit only
    cannot be held out and are left out, as are patients without another one in their study.

    Parameters
    ----------
    joined
        From `rows`.
    target
        ``"study"``, ``"patient"`` or ``"label"``.
    encoder
        Its slug in the table.
    max_spots
        Spots per section at most, drawn at random.
    confidence, seed
        Of the interval; of the draw.

    Returns
    -------
    pd.DataFrame
        One row, columns `PROBE_COLUMNS`: accuracy averaged over classes; ``chance``, one over the
        number of classes to choose among; ``excess``, the distance from it as a share of what can
        be gained (0 chance, 1 perfect); Student's t interval of the accuracy over held-out units.
        NaN with a note where the cohort allows no such test.

    Raises
    ------
    InputError
        On an unknown target.
    """
    asked = _ask(joined, target, max_spots, seed)
    base = {"encoder": encoder, "target": target, "unseen": asked.unseen,
            "n_classes": len(asked.classes)}
    if asked.by_unit.empty:
        why = f"fewer than two {target} classes are found in two units or more" + (
            " of one study" if target == "patient" else "")
        return pd.DataFrame([base | {"n_units": 0, "note": why}], columns=list(PROBE_COLUMNS))
    # Each unit's own balanced accuracy carries the interval: spots of one section are not units.
    interval = statistics.t_interval(asked.by_unit, confidence)
    half = (interval.high - interval.low) / 2
    dropped = joined.about[target].dropna().nunique() - len(asked.classes)
    return pd.DataFrame([base | {
        "n_units": interval.n, "balanced_accuracy": asked.accuracy, "chance": asked.chance,
        "excess": (asked.accuracy - asked.chance) / (1 - asked.chance),
        "ci_low": max(asked.accuracy - half, 0.0), "ci_high": min(asked.accuracy + half, 1.0),
        "note": f"{dropped} classes of one unit left out" if dropped else ""}],
        columns=list(PROBE_COLUMNS))


def unit_accuracy(joined: Rows, target: str, *, max_spots: int = PROBE_SPOTS,
                  seed: int = 0) -> pd.Series:
    """Balanced accuracy of `probe` in each held-out unit, for paired comparisons of encoders.

    Returns
    -------
    pd.Series
        Indexed by unit (study, patient or section, as `probe` chose); empty where the cohort
        allows no such test.
    """
    return _ask(joined, target, max_spots, seed).by_unit


@dataclass(frozen=True)
class _Answers:
    """What a probe answered: overall balanced accuracy, its chance level, and unit by unit."""

    unseen: str
    classes: list[str]
    accuracy: float
    chance: float
    by_unit: pd.Series


def _ask(joined: Rows, target: str, max_spots: int, seed: int) -> _Answers:
    """Fit and ask the classifier that `probe` describes."""
    if target not in UNSEEN:
        raise InputError("site", "target", f"{target!r} is not known", f"use one of {list(UNSEEN)}")
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(seed)
    about = joined.about.reset_index(drop=True)
    kept = [rng.permutation(np.asarray(spots))[:max_spots] for _, spots in
            about[about[target].notna()].groupby("section", sort=True).groups.items()]
    chosen = np.sort(np.concatenate(kept)) if kept else np.array([], dtype=np.int64)
    about, X = about.iloc[chosen], joined.X[chosen]
    unseen, classes = _hold_out(about, target)
    # The classes among which a spot's is chosen: all, or the patients of its study.
    rivals = {name: set(classes) for name in classes}
    if target == "patient":
        home = about.drop_duplicates("patient").set_index("patient")["study"]
        rivals = {name: {n for n in classes if home[n] == home[name]} for name in classes}
        classes = [name for name in classes if len(rivals[name]) > 1]
    if len(classes) < 2:
        return _Answers(unseen, classes, np.nan, np.nan, pd.Series(dtype=np.float64))
    usable = about[target].isin(classes).to_numpy()
    about, X = about[usable], X[usable]
    truth, units = about[target].to_numpy(str), _units(about, unseen)
    guess = np.full(len(truth), "", dtype=object)
    for unit in np.unique(units):
        test = units == unit
        train = ~test
        if len(np.unique(truth[train])) < 2:
            continue
        model = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto",
            priors=np.full(len(np.unique(truth[train])), 1 / len(np.unique(truth[train]))))
        scale = standardise.fit(X[train])
        z = scale(X)[:, scale.varies]
        model.fit(z[train], truth[train])
        chances = model.predict_log_proba(z[test])
        allowed = np.array([[name in rivals[own] for name in model.classes_]
                            for own in truth[test]])
        guess[test] = model.classes_[np.where(allowed, chances, -np.inf).argmax(axis=1)]
    right = guess == truth
    asked = guess != ""
    recall = [right[asked & (truth == name)].mean() for name in classes
              if (asked & (truth == name)).any()]
    score = float(np.mean(recall))
    chance = float(np.mean([1 / len(rivals[name]) for name in classes]))
    by_unit = {unit: np.mean([right[(units == unit) & (truth == name)].mean()
                              for name in np.unique(truth[units == unit])])
               for unit in np.unique(units[asked])}
    return _Answers(unseen, classes, score, chance, pd.Series(by_unit, dtype=np.float64))


def _units(about: pd.DataFrame, unseen: str) -> np.ndarray:
    """What is held out together; replicates of one specimen are one section."""
    if unseen != "section":
        return about[unseen].to_numpy(str)
    return (about["patient"] + "/" + about["specimen"]).to_numpy(str)


def _hold_out(about: pd.DataFrame, target: str) -> tuple[str, list[str]]:
    """The coarsest unit that leaves every class something to learn from, and the classes."""
    best: tuple[str, list[str]] = (UNSEEN[target][-1], [])
    n_classes = about[target].nunique()
    for unseen in UNSEEN[target]:
        units = pd.DataFrame({"class": about[target].to_numpy(str),
                              "unit": _units(about, unseen)}).drop_duplicates()
        found = units["class"].value_counts()
        classes = sorted(found.index[found >= 2])
        if len(classes) == n_classes >= 2:
            return unseen, classes
        if len(classes) > len(best[1]):
            best = (unseen, classes)
    return best


def variance_shares(joined: Rows, *, encoder: str = "", scale: str = "each") -> pd.DataFrame:
    """Where the variance of the features lies: studies, patients, sections, labels, the rest.

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
        raise InputError("site", "features", "do not vary", "look at the encoder")
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
    """What labels explain of the variance within sections, over labelled spots."""
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


def table(features: "Mapping[str, Mapping[str, Features | np.ndarray]]", sections: Iterable[Any],
          labels: str | Mapping[str, pd.Series] | None = None, *, seed: int = 0,
          scale: str = "each") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probes and variance shares of many encoders.

    Parameters
    ----------
    features
        Encoder -> section -> features.
    sections, labels
        See `rows`.
    seed, scale
        See `probe`, `variance_shares`.

    Returns
    -------
    tuple of DataFrame
        Probes (`PROBE_COLUMNS`) and shares (`SHARE_COLUMNS`), all encoders together.
    """
    sections = list(sections)
    probes, shares = [], []
    for encoder, given in features.items():
        joined = rows(given, sections, labels)
        targets = [target for target in UNSEEN if target != "label"
                   or joined.about["label"].notna().any()]
        probes += [probe(joined, target, encoder=encoder, seed=seed) for target in targets]
        shares.append(variance_shares(joined, encoder=encoder, scale=scale))
    return pd.concat(probes, ignore_index=True), pd.concat(shares, ignore_index=True)


def relate(probes: pd.DataFrame, shares: pd.DataFrame, drops: pd.DataFrame) -> pd.DataFrame:
    """Site beside drop, one row per encoder.

    Parameters
    ----------
    probes, shares
        From `table`.
    drops
        From `mvhlib.expression.evaluation.drops`; rows of all genes (program ``all``).

    Returns
    -------
    pd.DataFrame
        ``encoder, method, panel, study_excess, patient_excess, label_excess, study_share,
        label_share, site_to_label, random, loso, difference, ci_low, ci_high, drop``;
        ``site_to_label`` is the share of studies over that of labels, adjusted shares where they
        are known. Encoders without a drop keep their row. How the columns go together over
        encoders is for the eye: `correlations` says when it is more.
    """
    wide = probes.pivot(index="encoder", columns="target", values="excess")
    out = pd.DataFrame({f"{target}_excess": wide.get(target, np.nan) for target in UNSEEN},
                       index=wide.index)
    best = shares.assign(value=shares["adjusted"].fillna(shares["share"]))
    part = best.pivot(index="encoder", columns="factor", values="value").reindex(out.index)
    out["study_share"], out["label_share"] = part["study"], part["label"]
    out["site_to_label"] = np.where(out["label_share"] > 0,
                                    out["study_share"] / out["label_share"].where(
                                        out["label_share"] > 0), np.nan)
    whole = drops[drops["program"] == "all"]
    columns = ["encoder", "method", "panel", "random", "loso", "difference", "ci_low", "ci_high",
               "drop"]
    joined = out.reset_index().merge(whole[columns], on="encoder", how="left")
    order = ["encoder", "method", "panel", *out.columns, *columns[3:]]
    return joined[order]


def correlations(related: pd.DataFrame, against: str = "difference",
                 columns: Sequence[str] = ("study_excess", "patient_excess", "study_share",
                                           "site_to_label")) -> pd.DataFrame:
    """Spearman's rank correlation of each measure of site with the drop, over encoders.

    Encoders are not a sample of anything, and there are few: the p is the exact one of a
    permutation of their order, and its smallest value stands beside it.

    Parameters
    ----------
    related
        From `relate`; of one method and panel, else an error.
    against
        ``"difference"`` (random less unseen study) or ``"drop"``.
    columns
        Measures of site.

    Returns
    -------
    pd.DataFrame
        ``measure, n_encoders, spearman, p, p_smallest, note``.
    """
    from itertools import permutations
    from math import factorial

    from scipy import stats

    known = related.dropna(subset=[against])
    if known["encoder"].duplicated().any():
        raise InputError("site", "encoder", "stands more than once", "choose one method and panel")
    found = []
    for column in columns:
        pair = known[[column, against]].dropna()
        n = len(pair)
        row = {"measure": column, "n_encoders": n, "spearman": np.nan, "p": np.nan,
               "p_smallest": min(1.0, 2 / factorial(n)) if n >= 2 else np.nan, "note": ""}
        if n < 3 or pair.nunique().min() < 2:
            row["note"] = "no rank correlation over so few encoders"
        else:
            a, b = (stats.rankdata(pair[name]) for name in (column, against))
            row["spearman"] = float(np.corrcoef(a, b)[0, 1])
            if row["p_smallest"] > 0.05:
                row["note"] = statistics.IMPOSSIBLE
            elif n <= 8:
                a, b = a - a.mean(), b - b.mean()
                sums = np.array([a @ b[list(order)] for order in permutations(range(n))])
                row["p"] = float((np.abs(sums) >= abs(a @ b) - 1e-9).mean())
            else:
                row["p"] = float(stats.spearmanr(a, b).pvalue)
        found.append(row)
    return pd.DataFrame(found)


def centre(features: "Mapping[str, Features | np.ndarray]", groups: Mapping[str, str], *,
           scale: bool = False) -> "dict[str, Features | np.ndarray]":
    """Subtract each group's mean from its features; a remedy that needs no expression.

    It uses the images of the test study as a whole (which spots look how), but none of its
    expression: transductive, and possible at a new hospital as soon as it has a few sections. What
    a study has more of (a tissue class, say) is subtracted with its stain. Features of one section
    per group lose every difference between sections.

    Parameters
    ----------
    features
        Section -> `Features` or `(T, D)`.
    groups
        Section -> study (or patient, or the section itself).
    scale
        Divide by each group's standard deviation as well; features constant in a group become 0.

    Returns
    -------
    dict
        Copies; sections of a group weigh the same. Values are float32, ``attrs["centred"]`` says
        what was done.

    Raises
    ------
    InputError
        If a section has no group.
    """
    missing = sorted(set(features) - set(groups))
    if missing:
        raise InputError("site", "groups", f"lack {missing[:3]}", "name every section's study")
    values = {name: np.asarray(getattr(given, "features", given), dtype=np.float64)
              for name, given in features.items()}
    out = {}
    for group in dict.fromkeys(groups[name] for name in features):
        members = [name for name in features if groups[name] == group]
        mean = np.mean([values[name].mean(axis=0) for name in members], axis=0)
        spread = np.ones_like(mean)
        if scale:
            square = np.mean([((values[name] - mean) ** 2).mean(axis=0) for name in members],
                             axis=0)
            size = np.max([np.abs(values[name]).max(axis=0) for name in members], axis=0)
            spread = np.where(standardise.varies(np.sqrt(square), size), np.sqrt(square), np.inf)
        for name in members:
            moved = ((values[name] - mean) / spread).astype(np.float32)
            given = features[name]
            out[name] = moved if not hasattr(given, "features") else replace(
                given, features=moved,
                attrs=given.attrs | {"centred": "mean and spread" if scale else "mean"})
    return {name: out[name] for name in features}


def remedy_effects(scores: pd.DataFrame, *, plain: str, unit: str = "patient",
                   confidence: float = 0.95) -> pd.DataFrame:
    """What each remedy adds to an encoder's scores, within units.

    Parameters
    ----------
    scores
        Rows of `protocols.Result` (columns protocol, method, encoder, control, panel, pcc and
        `unit`), the remedies under slugs of their own, for instance ``vit12-random+centred``.
    plain
        The slug without remedy.
    unit
        The difference is taken within each unit, and the interval over units.

    Returns
    -------
    pd.DataFrame
        ``protocol, method, panel, remedy, plain, treated, difference, ci_low, ci_high, n_units``:
        means of Pearson's r and their paired difference.

    Raises
    ------
    InputError
        If `plain` has no rows.
    """
    scores = scores[scores["control"] == "none"]
    if plain not in set(scores["encoder"]):
        raise InputError("site", "encoder", f"{plain!r} has no scores",
                         f"use one of {sorted(set(scores['encoder']))}")
    found = []
    for keys, part in scores.groupby(["protocol", "method", "panel"], sort=False):
        means = statistics.unit_means(part, unit, by=["encoder"]).unstack("encoder")
        if plain not in means:
            continue
        for remedy in dict.fromkeys(part["encoder"]):
            if remedy == plain:
                continue
            pair = means[[plain, remedy]].dropna()
            gap = statistics.t_interval(pair[remedy] - pair[plain], confidence)
            found.append((*keys, remedy, pair[plain].mean(), pair[remedy].mean(), gap.mean,
                          gap.low, gap.high, gap.n))
    return pd.DataFrame(found, columns=["protocol", "method", "panel", "remedy", "plain",
                                        "treated", "difference", "ci_low", "ci_high", "n_units"])


def all_remedies(scores: pd.DataFrame, *, unit: str = "patient") -> pd.DataFrame:
    """`remedy_effects` of every encoder that was also tried with a remedy.

    A remedy's slug is the plain one with ``+centred``, ``-macenko`` or ``-reinhard`` behind it.
    """
    slugs = list(dict.fromkeys(scores["encoder"]))
    found = []
    for plain in slugs:
        own = [slug for slug in slugs if slug in {plain + ending for ending in REMEDIES}]
        if own:
            rows = scores[scores["encoder"].isin([plain, *own])]
            effects = remedy_effects(rows, plain=plain, unit=unit)
            effects.insert(3, "encoder", plain)
            found.append(effects)
    columns = ["protocol", "method", "panel", "encoder", "remedy", "plain", "treated",
               "difference", "ci_low", "ci_high", "n_units"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
