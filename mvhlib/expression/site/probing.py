"""Linear probes for the study, patient or label of unseen sections."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mvhlib import standardise, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression.site.spot_rows import Rows

#: Most spots of a section that a probe is trained and tested on.
PROBE_SPOTS = 400

#: Target of a probe -> units that it holds out, from coarse to fine.
UNSEEN = {"study": ("patient", "section"), "patient": ("section",),
          "label": ("study", "patient", "section")}

PROBE_COLUMNS = ("encoder", "target", "unseen", "n_classes", "n_units", "balanced_accuracy",
                 "chance", "excess", "ci_low", "ci_high", "note")


def probe(joined: Rows, target: str, *, encoder: str = "", max_spots: int = PROBE_SPOTS,
          confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Measure how well a linear classifier names the study, patient or label of unseen sections.

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
    """Results of a probe: balanced accuracy overall, its chance level, and accuracy by unit."""

    unseen: str
    classes: list[str]
    accuracy: float
    chance: float
    by_unit: pd.Series


def _ask(joined: Rows, target: str, max_spots: int, seed: int) -> _Answers:
    """Fit and test the classifier that `probe` describes."""
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
    """Unit that is held out with each spot; replicates of one specimen count as one section."""
    if unseen != "section":
        return about[unseen].to_numpy(str)
    return (about["patient"] + "/" + about["specimen"]).to_numpy(str)


def _hold_out(about: pd.DataFrame, target: str) -> tuple[str, list[str]]:
    """Choose the coarsest unit that leaves training spots of every class; also the classes."""
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
