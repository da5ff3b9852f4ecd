"""Inference on scores and risks: intervals, differences, tests, hazards, calibration."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from mvhlib import standardise, statistics
from mvhlib.artifacts import InputError, TooFew
from mvhlib.downstream.survival.cox import SEPARATES
from mvhlib.downstream.survival.evaluation import Evaluation
from mvhlib.downstream.survival.scores import comparable_pairs, higher_risk, kaplan_meier_at

#: Columns of the summary that the contract names.
SUMMARY = ("dataset", "endpoint", "model", "encoder", "fold_scheme", "metric", "n_patients",
           "n_events", "mean", "ci_low", "ci_high")


def select(risks: pd.DataFrame, model: str, encoder: str = "none") -> pd.DataFrame:
    """Rows of one model.

    Raises
    ------
    InputError
        If there are none.
    """
    part = risks[(risks["model"] == model) & (risks["encoder"] == encoder)]
    if len(part) == 0:
        known = sorted(set(zip(risks["model"], risks["encoder"], strict=True)))
        raise InputError("survival", "model", f"{(model, encoder)} has no risks",
                         f"use one of {known}")
    return part.reset_index(drop=True)


def summarise(scores: pd.DataFrame, *, dataset: str, endpoint: str, fold_scheme: str,
              confidence: float = 0.95) -> pd.DataFrame:
    """Mean of each score over folds with Student's t interval; columns `SUMMARY`.

    Where `scores` has a column permutation, the interval is over permutations of the mean over
    folds.
    """
    rows = []
    for (model, encoder, metric), part in scores.groupby(["model", "encoder", "metric"],
                                                         sort=False):
        n = part[["n_patients", "n_events"]]
        values = part["value"]
        if "permutation" in part:
            n = n[part["permutation"] == part["permutation"].iloc[0]]
            values = part.groupby("permutation")["value"].mean()
        found = statistics.t_interval(values, confidence)
        rows.append((dataset, endpoint, model, encoder, fold_scheme, metric, *map(int, n.sum()),
                     found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def control(scores: pd.DataFrame, confidence: float = 0.999) -> pd.DataFrame:
    """Compare models of permuted outcomes with a C of one half.

    Few permutations have no interval worth the name, so that the width comes from theory: among n
    patients whose order is random, Kendall's tau has the variance 2 (2n + 5) / (9 n (n - 1)), and C
    is (tau + 1) / 2. n is the number of events of a fold, which is too few and so too wide; folds
    are taken to move together, which is again the widest case (see `permuted_scores`);
    permutations are independent.

    Parameters
    ----------
    scores
        From `permuted_scores`.
    confidence
        Of the band; the default lets an honest control fail once in a thousand rows at most.

    Returns
    -------
    pd.DataFrame
        ``model, encoder, n_permutations, mean, low, high, verdict``: the mean of Harrell's C, the
        band about 0.5, and ``none``, ``leak`` (above the band) or ``no control`` (the band holds
        every C, so that nothing could have been seen).

    References
    ----------
    Kendall, "Rank correlation methods", 1948.
    """
    rows = []
    own = scores[scores["metric"] == "harrell_c"]
    for (model, encoder), part in own.groupby(["model", "encoder"], sort=False):
        n = part["n_events"].clip(lower=2).to_numpy(np.float64)
        deviation = np.sqrt((2 * n + 5) / (18 * n * (n - 1))).mean()
        half = stats.norm.ppf(0.5 + confidence / 2) * deviation / np.sqrt(
            part["permutation"].nunique())
        mean = part["value"].mean()
        rows.append((model, encoder, part["permutation"].nunique(), mean, 0.5 - half, 0.5 + half,
                     "no control" if half >= 0.5 else "leak" if mean > 0.5 + half else "none"))
    return pd.DataFrame(rows, columns=["model", "encoder", "n_permutations", "mean", "low", "high",
                                       "verdict"])


def differences(result: Evaluation,
                pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]],
                metric: str = "harrell_c") -> pd.DataFrame:
    """Score of one model less that of another, paired within folds.

    Parameters
    ----------
    pairs
        ``((model, encoder), (model, encoder))``, the second subtracted from the first.

    Returns
    -------
    pd.DataFrame
        ``model, encoder, than, than_encoder, metric, n_folds, difference, ci_low, ci_high``
        (Student's t over folds), ``p_added`` (see `added_value`; NaN where no Cox model of the two
        risks converges), ``p_added_holm`` over the pairs.

    Raises
    ------
    InputError
        If a model has no scores.
    """
    wide = result.scores[result.scores["metric"] == metric].pivot(
        index="fold", columns=["model", "encoder"], values="value")
    rows = []
    for first, second in pairs:
        for name in (first, second):
            if name not in wide:
                raise InputError("survival", "model", f"{name} has no scores",
                                 f"use some of {list(wide.columns)}")
        gap = statistics.t_interval(wide[first] - wide[second])
        try:
            added = added_value(result.risks, first, second)["p"]
        except TooFew:  # a risk separates the few events: no likelihood can be compared
            added = float("nan")
        rows.append((*first, *second, metric, gap.n, gap.mean, gap.low, gap.high, added))
    found = pd.DataFrame(rows, columns=["model", "encoder", "than", "than_encoder", "metric",
                                        "n_folds", "difference", "ci_low", "ci_high", "p_added"])
    return found.assign(p_added_holm=statistics.holm(found["p_added"]))


def patient_interval(risks: pd.DataFrame, *, seed: int, n_boot: int = 999,
                     confidence: float = 0.95) -> statistics.Interval:
    """Mean over folds of Harrell's C of one model, with a bootstrap over patients.

    Patients are drawn with replacement within each test fold, the models stay as they are: the
    interval speaks of other patients of these sites, not of other sites or training sets.

    Parameters
    ----------
    risks
        Rows of one model: fold, time_months, event, risk. Without a column ``fold`` all rows are
        one set, as for a risk that nothing was fitted for.
    """
    rng = np.random.default_rng(seed)
    folds = ([part for _, part in risks.groupby("fold", sort=False)] if "fold" in risks
             else [risks])
    means, draws = [], []
    for part in folds:
        time, event, risk = (part[name].to_numpy(float)
                             for name in ("time_months", "event", "risk"))
        pairs = comparable_pairs(time, event)
        good = pairs * higher_risk(risk)
        weight = rng.multinomial(len(part), np.full(len(part), 1 / len(part)),
                                 size=n_boot).astype(float)
        with np.errstate(invalid="ignore"):
            draws.append(((weight @ good) * weight).sum(1) / ((weight @ pairs) * weight).sum(1))
        means.append(good.sum() / pairs.sum())
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.nanmean(draws, axis=0), [tail, 1 - tail])
    return statistics.Interval(float(np.mean(means)), float(low), float(high), len(risks),
                               "bootstrap over patients within folds")


def likelihood_ratio(frame: pd.DataFrame, small: Sequence[str], large: Sequence[str],
                     strata: str | None = None) -> dict[str, float]:
    """Likelihood-ratio test of nested Cox models without penalty.

    Parameters
    ----------
    frame
        time_months, event, the columns of both models.
    small, large
        Columns; `small` may be empty and must lie in `large`.
    strata
        Column that gets a baseline hazard of its own per value; the fold, where columns are risks.

    Returns
    -------
    dict
        chi2, df, p.

    Notes
    -----
    For clinical columns on one table this is the textbook test. For risks of tested patients (see
    `added_value`) the p is approximate: their models share training patients.
    """
    if not set(small) < set(large):
        raise InputError("likelihood ratio", "columns", f"{list(small)} are not nested in "
                         f"{list(large)}", "give a model and a larger one that has all its columns")
    big = _plain_cox(frame, large, strata)
    if len(small):
        low = _plain_cox(frame, small, strata).log_likelihood_
    else:
        low = big._ll_null_
    chi2 = float(2 * (big.log_likelihood_ - low))
    df = len(large) - len(small)
    return {"chi2": chi2, "df": df, "p": float(stats.chi2.sf(max(chi2, 0.0), df))}


def added_value(risks: pd.DataFrame, model: tuple[str, str], than: tuple[str, str]
                ) -> dict[str, float]:
    """Test whether one model's risk adds to another's on tested patients.

    Among patients who no model was fitted on, both risks enter one Cox model stratified by fold,
    and the larger is tested against the one with `than` alone (one degree of freedom). Unlike a
    test on training patients it does not reward flexibility.
    """
    keys = ["fold", "patient", "time_months", "event"]
    both = select(risks, *than)[[*keys, "risk"]].merge(
        select(risks, *model)[[*keys, "risk"]], on=keys, suffixes=("_than", "_model"))
    return likelihood_ratio(both, ["risk_than"], ["risk_than", "risk_model"], strata="fold")


def hazard_ratios(values: pd.DataFrame, table: pd.DataFrame, *, adjust: Sequence[str] = (),
                  strata: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Hazard ratio per standard deviation of each column, one Cox model per column.

    Parameters
    ----------
    values
        Columns of interest, rows as in `table`.
    table
        time_months, event, and the columns of `adjust` and `strata`.
    adjust
        Covariates that every model holds as well.
    strata
        Column with a baseline hazard of its own per value, for instance the site.

    Returns
    -------
    pd.DataFrame
        ``column, hazard_ratio, ci_low, ci_high, p, p_holm``; Wald; NaN for a column that does not
        vary or whose model does not converge. Describes these patients and is no prediction.
    """
    rows = []
    for name in values:
        column = values[name].to_numpy(float)
        if not standardise.fit(column[:, None]).varies[0]:
            rows.append((name, np.nan, np.nan, np.nan, np.nan))
            continue
        frame = table.assign(**{"value_": (column - column.mean()) / column.std()})
        try:
            fitted = _plain_cox(frame, ["value_", *adjust], strata)
        except TooFew:
            rows.append((name, np.nan, np.nan, np.nan, np.nan))
            continue
        beta, error = fitted.params_["value_"], fitted.standard_errors_["value_"]
        half = stats.norm.ppf(0.5 + confidence / 2) * error
        rows.append((name, *np.exp([beta, beta - half, beta + half]),
                     2 * stats.norm.sf(abs(beta / error))))
    found = pd.DataFrame(rows, columns=["column", "hazard_ratio", "ci_low", "ci_high", "p"])
    known = found["p"].notna()
    found["p_holm"] = np.nan
    found.loc[known, "p_holm"] = statistics.holm(found.loc[known, "p"])
    return found


def proportional_hazards(table: pd.DataFrame, columns: Sequence[str],
                         strata: str | None = None) -> pd.DataFrame:
    """Test proportional hazards over time on scaled Schoenfeld residuals.

    Grambsch and Therneau (Biometrika 1994) with ranked times, by lifelines.

    Returns
    -------
    pd.DataFrame
        ``column, coefficient, chi2, p, p_holm``; a small p speaks against proportional hazards.
    """
    from lifelines.statistics import proportional_hazard_test

    fitted = _plain_cox(table, columns, strata)
    frame = table[["time_months", "event", *columns, *([strata] if strata else [])]]
    found = proportional_hazard_test(fitted, frame, time_transform="rank").summary
    found = found.reindex(list(columns))
    return pd.DataFrame({"column": list(columns),
                         "coefficient": fitted.params_[list(columns)].to_numpy(),
                         "chi2": found["test_statistic"].to_numpy(), "p": found["p"].to_numpy(),
                         "p_holm": statistics.holm(found["p"])})


def _plain_cox(frame: pd.DataFrame, columns: Sequence[str], strata: str | None):
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    chosen = frame[["time_months", "event", *columns, *([strata] if strata else [])]]
    try:
        return CoxPHFitter().fit(chosen, "time_months", "event",
                                 strata=[strata] if strata else None)
    except ConvergenceError as error:
        raise TooFew("cox", "columns", f"{list(columns)} do not converge",
                         SEPARATES) from error


def stratified_logrank(time: np.ndarray, event: np.ndarray, high: np.ndarray,
                       strata: np.ndarray | None = None) -> dict[str, float]:
    """Log-rank test of two groups, observed and expected events summed over strata.

    Returns
    -------
    dict
        chi2, df (1), p. Mantel, Cancer Chemotherapy Reports 1966.

    Raises
    ------
    InputError
        If no stratum has patients of both groups at risk at an event.
    """
    from statsmodels.duration.survfunc import survdiff

    time, event, high = np.asarray(time, float), np.asarray(event, int), np.asarray(high, bool)
    strata = np.zeros(len(time), dtype=int) if strata is None else np.asarray(strata)
    together = any((high[rows] & (time[rows] >= moment)).any()
                   and (~high[rows] & (time[rows] >= moment)).any()
                   for stratum in pd.unique(strata) for rows in [strata == stratum]
                   for moment in time[rows & (event == 1)])
    if not together:
        raise TooFew("log-rank", "groups", "are never at risk together",
                         "check the cut: one group may be empty")
    chi2, p = survdiff(time, event, high.astype(int), strata=strata)
    return {"chi2": float(chi2), "df": 1, "p": float(p)}


def logrank_of(risks: pd.DataFrame) -> dict[str, float]:
    """`stratified_logrank` of one model's risk groups; p is NaN where they cannot be compared."""
    try:
        return stratified_logrank(risks["time_months"], risks["event"], risks["high_risk"],
                                  risks["fold"])
    except TooFew:
        return {"chi2": float("nan"), "df": 1, "p": float("nan")}


def clinical_ratios(table: pd.DataFrame, covariates: Sequence[str], *, strata: str | None = None
                    ) -> tuple[pd.DataFrame, dict[str, float]]:
    """Hazard ratios of the clinical columns with the test of proportional hazards.

    Parameters
    ----------
    covariates
        The stage last.
    strata
        Column with a baseline hazard of its own for each value.

    Returns
    -------
    DataFrame, dict
        `hazard_ratios` with p_proportional and p_proportional_holm; and the likelihood ratio of
        all columns on top of the last one, empty where that is the only one.
    """
    ratios = hazard_ratios(table[list(covariates)], table, strata=strata)
    shape = proportional_hazards(table, covariates, strata=strata)
    test = likelihood_ratio(table, covariates[-1:], covariates, strata=strata) \
        if len(covariates) > 1 else {}
    return ratios.assign(p_proportional=shape["p"].to_numpy(),
                         p_proportional_holm=shape["p_holm"].to_numpy()), test


def calibration(risks: pd.DataFrame, horizon: float) -> pd.DataFrame:
    """Predicted against observed probability of an event by the horizon, in thirds of the risk.

    Thirds are cut on the training risks of each fold. Predicted is the mean of the group, observed
    one less the Kaplan-Meier estimate; both are averaged over the folds in which the group's
    follow-up reaches the horizon.

    Parameters
    ----------
    risks
        Rows of one model.

    Returns
    -------
    pd.DataFrame
        ``third, n_folds, n_patients, predicted, observed, ci_low, ci_high``; Student's t over
        folds.
    """
    rows = []
    for third in range(3):
        pairs, n = [], 0
        for _, part in risks[risks["third"] == third].groupby("fold", sort=False):
            seen = 1 - kaplan_meier_at(part["time_months"], part["event"], horizon)[0]
            if np.isfinite(seen):
                pairs.append((part["event_probability"].mean(), seen))
                n += len(part)
        if pairs:
            predicted, observed = np.array(pairs).T
            found = statistics.t_interval(observed)
            rows.append((third, len(pairs), n, predicted.mean(), found.mean, found.low,
                         found.high))
    return pd.DataFrame(rows, columns=["third", "n_folds", "n_patients", "predicted", "observed",
                                       "ci_low", "ci_high"])


def calibration_slope(risks: pd.DataFrame, confidence: float = 0.95) -> statistics.Interval:
    """Coefficient of the predicted log hazard among tested patients, stratified by fold.

    1 is calibrated, less is a model that promises too much difference between patients. Wald
    interval over patients; NaN where a few events lie so that no slope fits them.
    """
    try:
        fitted = _plain_cox(risks, ["risk"], "fold")
    except TooFew:
        nan = float("nan")
        return statistics.Interval(nan, nan, nan, len(risks), "no Cox model converges")
    beta, error = float(fitted.params_["risk"]), float(fitted.standard_errors_["risk"])
    half = stats.norm.ppf(0.5 + confidence / 2) * error
    return statistics.Interval(beta, beta - half, beta + half, len(risks), "Wald")
