"""Survival scores and models against lifelines, closed forms and planted hazards."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index

from mvhlib import artifacts, statistics
from mvhlib.artifacts import InputError
from mvhlib.cohort import clinical
from mvhlib.downstream import mixture as mx
from mvhlib.downstream import survival as sv
from mvhlib.downstream.survival import inference
from tests import absent


def outcomes(log_hazard, seed=0, censored=0.5, ties=False):
    """Exponential times [months] at a given log hazard, some censored."""
    rng = np.random.default_rng(seed)
    n = len(log_hazard)
    death = 20 * rng.exponential(size=n) * np.exp(-log_hazard)
    stop = np.quantile(death, 1 - 0.6 * censored) * rng.uniform(0.2, 1.6, n)
    time = np.maximum(np.minimum(death, stop), 0.01)
    return np.ceil(time / 2) if ties else time, (death <= stop).astype(int)


def cohort(n=160, seed=0, n_sites=8, effect=1.0, **options):
    """A clinical table whose hazard is known, patients of several sites."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n))
    log_hazard = effect * (x + 0.3 * y)
    time, event = outcomes(log_hazard, seed + 1, **options)
    return pd.DataFrame({"patient": [f"P{i:03d}" for i in range(n)], "time_months": time,
                         "event": event, "site": [f"S{i % n_sites}" for i in range(n)],
                         "x": x, "y": y, "noise": rng.standard_normal(n),
                         "log_hazard": log_hazard})


# ------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("ties", [False, True])
def test_harrells_c_is_lifelines(ties):
    rng = np.random.default_rng(3)
    for seed in range(5):
        time, event = outcomes(rng.standard_normal(50), seed, ties=ties)
        risk = np.round(rng.standard_normal(50), 1)  # ties of risk as well
        assert sv.harrell_c(time, event, risk) == pytest.approx(
            concordance_index(time, -risk, event), abs=1e-12)
    assert np.isnan(sv.harrell_c([1, 2], [0, 0], [1, 2]))


def test_the_censoring_distribution_is_kaplan_meiers_and_events_leave_first():
    time, event = outcomes(np.zeros(80), 1)
    found = sv.Censoring.fit(time, event)
    theirs = KaplanMeierFitter().fit(time, 1 - event)
    grid = np.linspace(0, time.max() * 0.99, 40)
    np.testing.assert_allclose(found.at(grid), theirs.survival_function_at_times(grid))
    np.testing.assert_allclose(found.before(time), found.at(time - 1e-9))
    # at 2 one dies and one is censored: of the two left, the censored one is at risk alone
    tied = sv.Censoring.fit([1, 2, 2], [0, 1, 0])
    np.testing.assert_allclose(tied.at([0.5, 1, 2]), [1, 2 / 3, 0])
    np.testing.assert_allclose(tied.before([1, 2]), [1, 2 / 3])


def test_unos_c_by_hand():
    """Times 1 2 3 4, the second censored: pairs of the first weigh 1, of the third (3/2)^2."""
    time, event, risk = [1, 2, 3, 4], [1, 0, 1, 1], [1.0, 0.0, 3.0, 2.0]
    censoring = sv.Censoring.fit(time, event)
    # from 1: right against 2 alone (risk 1 > 0); from 3: right against 4
    expected = (1 + 2.25) / (3 + 2.25)
    assert sv.uno_c(time, event, risk, censoring) == pytest.approx(expected)
    assert sv.uno_c(time, event, risk, censoring, tau=3) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="tau"):
        sv.uno_c([1, 9, 10], [1, 1, 0], [1, 2, 3], sv.Censoring.fit([1, 2, 3], [0, 0, 0]))


def test_unos_c_is_harrells_without_censoring_and_does_not_move_with_it():
    rng = np.random.default_rng(0)
    log_hazard = rng.standard_normal(3000)
    risk = log_hazard + rng.standard_normal(3000)
    death = rng.exponential(size=3000) * np.exp(-log_hazard)
    all_seen = sv.harrell_c(death, np.ones(3000), risk)
    assert sv.uno_c(death, np.ones(3000), risk, sv.Censoring.fit(death, np.ones(3000))
                    ) == pytest.approx(all_seen, abs=1e-12)
    tau = np.quantile(death, 0.5)
    truth = sv.uno_c(death, np.ones(3000), risk, sv.Censoring.fit(death, np.ones(3000)), tau)
    stop = rng.uniform(0, 2.5 * tau, 3000)
    time, event = np.minimum(death, stop), (death <= stop).astype(int)
    found = sv.uno_c(time, event, risk, sv.Censoring.fit(time, event), tau)
    harrell = sv.harrell_c(time, event, risk)
    assert abs(found - truth) < 0.012 < abs(harrell - all_seen) + abs(harrell - truth)


def test_brier_scores_by_hand_and_in_closed_form():
    # one dies at 1, one is censored at 2, one lives to 3; at 2.5 the last carries both
    time, event = np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1])
    censoring = sv.Censoring.fit(time, event)
    survival = np.array([[0.8, 0.4], [0.9, 0.7], [0.9, 0.6]])
    found = sv.brier_scores(time, event, survival, [1.5, 2.5], censoring)
    np.testing.assert_allclose(found, [(0.8**2 + 2 * 0.1**2) / 3, (0.4**2 + 0.4**2 / 0.5) / 3])
    rng = np.random.default_rng(0)
    death = rng.exponential(size=500)
    seen = sv.Censoring.fit(death, np.ones(500))
    times = np.linspace(0.1, 1.5, 30)
    half = np.full((500, 30), 0.5)
    assert sv.integrated_brier(death, np.ones(500), half, times, seen) == pytest.approx(0.25)
    with pytest.raises(InputError, match="horizon"):
        sv.brier_scores(time, event, survival, [1, 2.0],
                        sv.Censoring.fit(time, np.zeros(3)).__class__(time, np.zeros(3)))


def test_the_brier_score_does_not_move_with_censoring_and_the_truth_is_best():
    rng = np.random.default_rng(1)
    rate = np.exp(rng.standard_normal(4000))
    death = rng.exponential(size=4000) / rate
    stop = rng.exponential(1.2, 4000)
    time, event = np.minimum(death, stop), (death <= stop).astype(int)
    times = np.linspace(0.05, 1, 20)
    truth = np.exp(-rate[:, None] * times)
    found = sv.brier_scores(time, event, truth, times, sv.Censoring.fit(time, event))
    np.testing.assert_allclose(found, (truth * (1 - truth)).mean(axis=0), atol=0.012)
    everyone = np.broadcast_to(sv.kaplan_meier_at(time, event, times), truth.shape)
    wrong = np.exp(-rate[::-1, None] * times)
    scores = [sv.integrated_brier(time, event, s, times, sv.Censoring.fit(time, event))
              for s in (truth, everyone, wrong)]
    assert scores[0] < scores[1] < scores[2]


def test_kaplan_meier_is_unknown_beyond_the_last_censored_patient():
    np.testing.assert_allclose(sv.kaplan_meier_at([1, 2, 3], [1, 1, 0], [2.5, 3, 4]),
                               [1 / 3, 1 / 3, np.nan])
    np.testing.assert_allclose(sv.kaplan_meier_at([1, 2, 3], [1, 1, 1], [4]), [0])


# -------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("ties", [False, True])
def test_the_penalised_maximum_is_lifelines(ties):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((90, 4))
    time, event = outcomes(X[:, 0] - 0.5 * X[:, 2], 2, ties=ties)
    ours = sv.PartialLikelihood(X, time, event)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(time=time, event=event)
    for ridge in (np.zeros(4), np.array([0.0, 0.1, 0.2, 0.3])):
        # lifelines standardises: its penalty is on coefficients per standard deviation
        theirs = CoxPHFitter(penalizer=ridge).fit(frame, "time", "event",
                                                  fit_options={"precision": 1e-12,
                                                               "r_precision": 1e-14})
        beta = ours.maximise(90 * ridge * X.var(axis=0, ddof=1), np.zeros(4))
        np.testing.assert_allclose(beta, theirs.params_, atol=1e-6)
        assert ours.at(beta)[0] == pytest.approx(
            90 * theirs.score(frame, scoring_method="log_likelihood"), abs=1e-4)


def test_gradient_and_hessian_are_derivatives():
    rng = np.random.default_rng(6)
    X = rng.standard_normal((30, 3))
    time, event = outcomes(X[:, 0], 1, ties=True)
    likelihood, beta, step = sv.PartialLikelihood(X, time, event), rng.standard_normal(3), 1e-5
    _, gradient, hessian = likelihood.at(beta)
    for j in range(3):
        e = step * np.eye(3)[j]
        up, down = likelihood.at(beta + e), likelihood.at(beta - e)
        assert gradient[j] == pytest.approx((up[0] - down[0]) / (2 * step), abs=1e-6)
        np.testing.assert_allclose(hessian[j], -(up[1] - down[1]) / (2 * step), atol=1e-6)
    two = sv.PartialLikelihood(np.array([[1.0], [3.0]]), [1, 2], [1, 0])
    assert two.at(np.array([0.5]))[0] == pytest.approx(-np.log(1 + np.exp(1.0)))


def test_clinical_columns_alone_are_plain_cox():
    table = cohort()
    model = sv.RidgeCox().fit(table["time_months"], table["event"],
                              covariates=table[["x", "y"]].to_numpy())
    frame = table[["time_months", "event", "x", "y"]]
    theirs = CoxPHFitter().fit(frame, "time_months", "event")
    risk = model.risk(covariates=table[["x", "y"]].to_numpy())
    np.testing.assert_allclose(risk - risk.mean(), theirs.predict_log_partial_hazard(frame)
                               - theirs.predict_log_partial_hazard(frame).mean(), atol=1e-5)
    times = np.array([1.0, 5.0, 12.0])
    np.testing.assert_allclose(model.survival(times, covariates=table[["x", "y"]].to_numpy()),
                               theirs.predict_survival_function(frame, times=times).T, atol=1e-5)
    assert np.isnan(model.penalty_)


def test_the_penalty_is_the_best_cross_validated_likelihood():
    """Against the definition: fit without a fold, log-likelihood of all less that of the rest."""
    table = cohort(n=120)
    rng = np.random.default_rng(0)
    image = np.c_[table["x"], rng.standard_normal((120, 3))] * [3, 1, 0.5, 0.3]
    model = sv.RidgeCox(n_components=3, penalties=(0.01, 0.3), n_inner=3, seed=2)
    model.fit(table["time_months"], table["event"], image=image, groups=table["site"])
    fold = clinical.grouped_folds(table["event"].to_numpy(), table["site"].to_numpy(), 3, 2)
    for penalty, found in model.path_.itertuples(index=False):
        total = 0.0
        for held in range(3):
            rest = fold != held
            centre = image[rest].mean(axis=0)
            _, s, axes = np.linalg.svd(image[rest] - centre, full_matrices=False)
            scores = pd.DataFrame((image - centre) @ axes[:3].T, columns=list("abc")).assign(
                time=table["time_months"], event=table["event"])
            cox = CoxPHFitter(penalizer=penalty * (s[0] / s[:3]) ** 2).fit(
                scores[rest], "time", "event")
            total += (cox.score(scores, "log_likelihood") * 120
                      - cox.score(scores[rest], "log_likelihood") * rest.sum())
        assert found == pytest.approx(total / table["event"].sum(), abs=1e-4)
    best = model.path_.loc[model.path_["likelihood"].idxmax(), "penalty"]
    assert model.penalty_ == best


def test_noise_is_shrunk_and_signal_is_not():
    table = cohort(n=200, effect=1.5)
    rng = np.random.default_rng(9)
    noise = rng.standard_normal((200, 30))
    signal = np.c_[3 * table["x"], rng.standard_normal((200, 29))]
    fits = [sv.RidgeCox().fit(table["time_months"], table["event"], image=image,
                              groups=table["site"]) for image in (noise, signal)]
    assert fits[0].penalty_ > fits[1].penalty_
    assert np.std(fits[0].risk(image=noise)) < 0.5 * np.std(fits[1].risk(image=signal))


def test_clinical_columns_are_not_shrunk_beside_an_image():
    table = cohort(n=200)
    noise = np.random.default_rng(1).standard_normal((200, 10))
    x = table[["x"]].to_numpy()
    both = sv.RidgeCox(penalties=(1e4,)).fit(table["time_months"], table["event"], covariates=x,
                                             image=noise)
    alone = sv.RidgeCox().fit(table["time_months"], table["event"], covariates=x)
    np.testing.assert_allclose(both.fitter_.params_.iloc[0], alone.fitter_.params_.iloc[0],
                               rtol=1e-3)


def test_a_patient_is_scored_by_itself():
    table, rng = cohort(), np.random.default_rng(2)
    image = rng.standard_normal((160, 12))
    model = sv.RidgeCox(n_components=5).fit(table["time_months"], table["event"], image=image)
    new = rng.standard_normal((7, 12))
    together = model.risk(image=new)
    np.testing.assert_allclose(together, [model.risk(image=row[None])[0] for row in new])


def test_what_cannot_be_fitted_is_said():
    table = cohort(n=40)
    time, event = table["time_months"], table["event"]
    model = sv.RidgeCox()
    with pytest.raises(InputError, match="are none"):
        model.fit(time, event)
    with pytest.raises(InputError, match="does not vary"):
        model.fit(time, event, covariates=np.ones((40, 1)))
    with pytest.raises(InputError, match="does not vary"):
        model.fit(time, event, image=np.ones((40, 3)))
    with pytest.raises(InputError, match="not finite"):
        model.fit(time, event, covariates=np.full((40, 1), np.nan))
    with pytest.raises(InputError, match="do not converge"):
        model.fit(time, event, covariates=np.c_[table["x"], table["x"]])


# -------------------------------------------------------------------------------------- folds


def spread_bags(table, seed=0, tiles=24):
    """Bags whose tumour tiles spread by how high the hazard is, all means equal."""
    rng = np.random.default_rng(seed)
    bags = {}
    for patient, hazard in zip(table["patient"], table["log_hazard"], strict=True):
        own = rng.standard_normal((tiles // 2, 3))
        own = (own - own.mean(axis=0)) / own.std(axis=0) * np.exp(0.5 * hazard)
        other = rng.standard_normal((tiles // 2, 3))
        bags[patient] = np.concatenate([own, other - other.mean(axis=0) + 12])
    return bags


def test_the_mixture_finds_a_spread_that_the_mean_cannot():
    table = cohort(n=200, effect=1.2)
    folds = clinical.site_folds(table, 4)
    bags = {"planted": spread_bags(table)}
    models = [sv.Model("true hazard", ("log_hazard",)), sv.Model("noise", ("noise",)),
              sv.Model("mean", (), mx.MeanEmbedding(), "planted"),
              sv.Model("mixture", (), mx.MixtureEmbedding(2), "planted")]
    rng = np.random.default_rng(1)  # means are equal: give them something to vary by
    for bag in bags["planted"].values():
        bag += 0.05 * rng.standard_normal(3)
    result = sv.evaluate(table, folds, models, bags, horizon=15.0)
    c = result.scores[result.scores["metric"] == "harrell_c"].groupby("model")["value"].mean()
    assert c["mixture"] > 0.9 * c["true hazard"] > c["mean"] + 0.1
    assert abs(c["noise"] - 0.5) < 0.1
    brier = result.scores.pivot_table(index="model", columns="metric", values="value")
    assert brier["ibs"]["true hazard"] < brier["ibs"]["mixture"] < brier["ibs"]["noise"]
    assert brier["ibs_kaplan_meier"].nunique() == 1
    assert (result.risks.groupby("model")["patient"].nunique() == 200).all()
    gaps = sv.differences(result, [(("mixture", "planted"), ("mean", "planted"))])
    assert gaps["difference"][0] == pytest.approx(c["mixture"] - c["mean"])
    assert gaps["ci_low"][0] > 0 and gaps["p_added_holm"][0] < 1e-4
    added = sv.added_value(result.risks, ("mixture", "planted"), ("noise", "none"))
    nothing = sv.added_value(result.risks, ("noise", "none"), ("true hazard", "none"))
    assert added["p"] < 1e-4 < nothing["p"]


def test_events_that_a_risk_separates_leave_a_test_out_and_not_the_table():
    """Four events in each fold, all of the highest risk: no likelihood has a maximum."""
    n = 12
    own = pd.DataFrame({"fold": np.repeat(["0", "1"], n),
                        "patient": [f"P{i}" for i in range(2 * n)],
                        "time_months": np.tile(np.arange(1.0, n + 1), 2),
                        "event": np.tile(np.arange(n) < 4, 2).astype(int),
                        "risk": np.tile(-np.arange(n, dtype=float), 2)})
    risks = pd.concat([own.assign(model=model, encoder="none") for model in ("a", "b")])
    scores = pd.DataFrame([{"fold": fold, "model": model, "encoder": "none", "metric": "harrell_c",
                            "value": 0.5} for fold in "01" for model in ("a", "b")])
    result = SimpleNamespace(risks=risks, scores=scores)
    gaps = sv.differences(result, [(("a", "none"), ("b", "none"))])
    assert gaps["difference"][0] == 0 and np.isnan(gaps["p_added"][0])


def test_a_single_covariate_is_tested_on_top_of_nothing():
    table = cohort(n=40)
    ratios, test = sv.clinical_ratios(table, ["x"])
    assert list(ratios["column"]) == ["x"] and test == {}
    assert sv.clinical_ratios(table, ["x", "y"])[1]["df"] == 1


def test_models_that_do_not_converge_are_gaps_in_a_table(monkeypatch):
    def fails(*_):
        raise artifacts.TooFew("cox", "columns", "do not converge", "use fewer")

    monkeypatch.setattr(inference, "_plain_cox", fails)
    table = cohort(n=20).assign(risk=0.0, fold="0")
    assert np.isnan(sv.calibration_slope(table).mean)
    ratios = sv.hazard_ratios(table[["x"]], table)
    assert ratios["p"].isna().all() and list(ratios["column"]) == ["x"]


def test_test_patients_teach_nothing():
    """Outcomes and bags of a tested fold, changed, leave the risks of the other patients."""
    table = cohort(n=96, n_sites=6)
    folds = clinical.site_folds(table, 3)
    held = list(folds.query("fold == '0' and role == 'test'")["patient"])
    bags = spread_bags(table)
    models = [sv.Model("both", ("x",), mx.MixtureEmbedding(2, n_components=2), "e")]
    one = sv.evaluate(table, folds, models, {"e": bags}, horizon=10.0).risks
    changed = table.copy()
    own = changed["patient"].isin(held)
    changed.loc[own, "time_months"] = changed.loc[own, "time_months"].to_numpy()[::-1] * 0.9
    two = sv.evaluate(changed, folds, models, {"e": bags}, horizon=10.0).risks
    same = one["fold"] == "0"
    np.testing.assert_array_equal(one.loc[same, "risk"], two.loc[same, "risk"])
    assert (one.loc[~same, "risk"] != two.loc[~same, "risk"]).any()
    # the bag of one tested patient moves no other tested patient
    moved = dict(bags) | {held[0]: bags[held[0]] + 5}
    three = sv.evaluate(table, folds, models, {"e": moved}, horizon=10.0).risks
    others = same & (one["patient"] != held[0])
    np.testing.assert_array_equal(one.loc[others, "risk"], three.loc[others, "risk"])


def test_a_shared_cache_changes_no_number():
    table = cohort(n=96, n_sites=6)
    folds, bags = clinical.site_folds(table, 3), {"e": spread_bags(table)}
    models, cache = [sv.Model("mixture", (), mx.MixtureEmbedding(2), "e")], {}
    first = sv.evaluate(table, folds, models, bags, horizon=10.0, cache=cache)
    again = sv.evaluate(table, folds, models, bags, horizon=10.0, cache=cache)
    assert len(cache) == 3
    pd.testing.assert_frame_equal(first.scores, again.scores)
    other = [sv.Model("mixture", (), mx.MixtureEmbedding(3), "e")]
    sv.evaluate(table, folds, other, bags, horizon=10.0, cache=cache)
    assert len(cache) == 6


def test_permuted_outcomes_give_a_half():
    table = cohort(n=160, effect=2.0)
    folds = clinical.site_folds(table, 4)
    scores = sv.permuted_scores(table, folds, [sv.Model("x", ("x",))], n_permutations=8, seed=0,
                                horizon=8.0)
    row = sv.summarise(scores, dataset="d", endpoint="os", fold_scheme="site").set_index(
        "metric").loc["harrell_c"]
    assert row["ci_low"] < 0.5 < row["ci_high"] and row["ci_high"] - row["ci_low"] < 0.15
    assert (row["model"], row["n_patients"]) == ("x.permuted", 160)
    assert row["n_events"] == table["event"].sum()
    drawn = sv.permute_outcomes(table, 1)
    assert sorted(zip(drawn["time_months"], drawn["event"], strict=True)) == sorted(
        zip(table["time_months"], table["event"], strict=True))
    assert drawn["x"].equals(table["x"]) and not drawn["event"].equals(table["event"])


def test_a_control_by_permutation_fails_on_a_leak_and_not_on_chance():
    table = cohort(n=160, effect=2.0)
    folds = clinical.site_folds(table, 4)
    options = {"n_permutations": 2, "seed": 0, "horizon": 8.0}
    scores = sv.permuted_scores(table, folds, [sv.Model("x", ("x",))], **options)
    found = sv.control(scores).iloc[0]
    assert found["verdict"] == "none" and found["low"] < found["mean"] < found["high"] < 0.7
    # A model that knows the test patients' permuted outcomes.
    leaky = scores.assign(value=np.where(scores["metric"] == "harrell_c", 0.9, scores["value"]))
    assert sv.control(leaky)["verdict"].item() == "leak"
    few = sv.control(scores.assign(n_events=3)).iloc[0]
    assert few["verdict"] == "no control" and few["low"] <= 0


def test_the_band_of_the_control_is_that_of_random_orders():
    rng = np.random.default_rng(0)
    n = 30
    drawn = [sv.harrell_c(np.arange(1.0, n + 1), np.ones(n), rng.normal(size=n))
             for _ in range(2000)]
    scores = pd.DataFrame({"metric": "harrell_c", "model": "m", "encoder": "e", "permutation": 0,
                           "n_events": n, "value": [0.5]})
    band = sv.control(scores, confidence=0.95).iloc[0]
    assert np.mean((np.array(drawn) < band["low"]) | (np.array(drawn) > band["high"])
                   ) == pytest.approx(0.05, abs=0.02)


def test_summary_has_the_contracts_columns_and_is_over_folds():
    table = cohort()
    result = sv.evaluate(table, clinical.site_folds(table, 4), [sv.Model("x", ("x",))],
                         horizon=8.0)
    found = sv.summarise(result.scores, dataset="d", endpoint="os", fold_scheme="site_disjoint")
    assert ",".join(found.columns) == ("dataset,endpoint,model,encoder,fold_scheme,metric,"
                                       "n_patients,n_events,mean,ci_low,ci_high")
    row = found[found["metric"] == "harrell_c"].iloc[0]
    values = result.scores.loc[result.scores["metric"] == "harrell_c", "value"]
    assert len(values) == 4 and row["n_patients"] == 160
    assert tuple(row[["mean", "ci_low", "ci_high"]]) == pytest.approx(
        tuple(vars(statistics.t_interval(values))[k] for k in ("mean", "low", "high")))
    interval = sv.patient_interval(result.risks, seed=0)
    assert interval.mean == pytest.approx(values.mean()) and interval.low < values.mean()
    lone = sv.patient_interval(table.assign(risk=table["x"]), seed=0)
    assert lone.mean == pytest.approx(sv.harrell_c(table["time_months"], table["event"],
                                                   table["x"]))


def test_bootstrap_over_patients_covers():
    rng = np.random.default_rng(0)
    hazard = rng.standard_normal(4000)
    time, event = outcomes(hazard, 3)
    truth = sv.harrell_c(time, event, hazard)
    hits = 0
    for draw in range(100):
        rows = rng.permutation(4000)[:80]
        part = pd.DataFrame({"time_months": time[rows], "event": event[rows],
                             "risk": hazard[rows]})
        found = sv.patient_interval(part, seed=draw, n_boot=300)
        hits += found.low <= truth <= found.high
    assert 88 <= hits <= 99


def test_evaluate_refuses_what_would_compare_unlike_patients_or_leak():
    table, bags = cohort(n=60), {"e": spread_bags(cohort(n=60))}
    folds = clinical.site_folds(table, 3)
    image = sv.Model("mixture", (), mx.MixtureEmbedding(2), "e")
    hole = table.assign(x=table["x"].where(table["patient"] != "P003"))
    short = {"e": {name: bag for name, bag in bags["e"].items() if name != "P001"}}
    tested = folds.index[folds["role"] == "test"][0]
    leak = folds.assign(role=folds["role"].where(folds.index != tested, "train"))
    for arguments, message in (
            ((hole, folds, [sv.Model("x", ("x",))], None), "lack one of"),
            ((table, folds, [sv.Model("x", ("age",))], None), "not in the table"),
            ((table, folds, [image], short), "lack \\['P001'\\]"),
            ((table, folds, [image], {}), "lack the encoder 'e'"),
            ((table, folds, [image, image], bags), "more than once"),
            ((table, leak, [sv.Model("x", ("x",))], None), "site: .*both sides"),
            ((table.assign(event=0), folds, [sv.Model("x", ("x",))], None), "censored")):
        with pytest.raises(InputError, match=message):
            sv.evaluate(*arguments, horizon=8.0)


# ------------------------------------------------------------------------------ tests of effects


def test_log_rank_is_lifelines_and_adds_up_over_strata():
    table = cohort(ties=True)
    high = (table["x"] > 0).to_numpy()
    time, event = table["time_months"].to_numpy(), table["event"].to_numpy()
    found = sv.stratified_logrank(time, event, high)
    theirs = logrank_test(time[high], time[~high], event[high], event[~high])
    assert (found["chi2"], found["p"]) == pytest.approx((theirs.test_statistic, theirs.p_value))
    double = sv.stratified_logrank(np.tile(time, 2), np.tile(event, 2), np.tile(high, 2),
                                   np.repeat([0, 1], len(time)))
    assert double["chi2"] == pytest.approx(2 * found["chi2"])
    with pytest.raises(InputError, match="never at risk"):
        sv.stratified_logrank(time, event, np.ones(len(time)))


def test_likelihood_ratio_and_hazard_ratios_are_lifelines():
    table = cohort()
    theirs = CoxPHFitter().fit(table[["time_months", "event", "x", "y"]], "time_months", "event")
    whole = sv.likelihood_ratio(table, (), ("x", "y"))
    expected = theirs.log_likelihood_ratio_test()
    assert (whole["chi2"], whole["p"]) == pytest.approx(
        (expected.test_statistic, expected.p_value))
    step = sv.likelihood_ratio(table, ("x",), ("x", "y"))["chi2"]
    assert step + sv.likelihood_ratio(table, (), ("x",))["chi2"] == pytest.approx(whole["chi2"])
    with pytest.raises(InputError, match="not nested"):
        sv.likelihood_ratio(table, ("noise",), ("x", "y"))
    found = sv.hazard_ratios(table[["x", "noise"]], table, adjust=["y"]).set_index("column")
    beta = theirs.params_["x"] * table["x"].std(ddof=0)
    assert found["hazard_ratio"]["x"] == pytest.approx(np.exp(beta), rel=1e-5)
    assert found["ci_low"]["x"] == pytest.approx(np.exp(
        beta - 1.959964 * theirs.standard_errors_["x"] * table["x"].std(ddof=0)), rel=1e-5)
    assert found["ci_low"]["noise"] < 1 < found["ci_high"]["noise"]
    moved = sv.hazard_ratios(-5 * table[["x"]] + 3, table, adjust=["y"])
    assert moved["hazard_ratio"][0] == pytest.approx(np.exp(-beta), rel=1e-5)
    assert sv.hazard_ratios(table[["x"]].assign(flat=1.0), table)["p"].isna().tolist() == [
        False, True]


def test_hazards_that_cross_are_not_proportional():
    rng = np.random.default_rng(4)
    x = rng.integers(0, 2, 400)
    # group 1 dies early or hardly at all, group 0 evenly: the effect turns around
    time = np.where(x == 1, 10 * rng.weibull(0.5, 400), 10 * rng.weibull(2.5, 400))
    table = pd.DataFrame({"time_months": np.maximum(time, 0.01), "event": 1, "crossing": x,
                          "nothing": rng.standard_normal(400)})
    found = sv.proportional_hazards(table, ["crossing", "nothing"]).set_index("column")
    assert found["p_holm"]["crossing"] < 1e-4 and found["p"]["nothing"] > 0.01


def predicted(n=3000, stretch=1.0):
    """Risks of patients whose hazard is known, over three folds."""
    rng = np.random.default_rng(8)
    hazard = rng.standard_normal(n)
    death = rng.exponential(size=n) * 20 * np.exp(-hazard)
    stop = rng.uniform(5, 60, n)
    probability = 1 - np.exp(-np.exp(stretch * hazard) * 12 / 20)
    return pd.DataFrame({
        "fold": rng.integers(0, 3, n), "time_months": np.minimum(death, stop),
        "event": (death <= stop).astype(int), "risk": stretch * hazard,
        "third": np.digitize(hazard, np.quantile(hazard, [1 / 3, 2 / 3])),
        "high_risk": hazard > 0, "event_probability": probability})


def test_calibration_of_the_truth_and_of_a_model_that_promises_too_much():
    honest, loud = predicted(), predicted(stretch=2.0)
    table = sv.calibration(honest, 12.0)
    assert table["n_patients"].sum() == 3000 and (table["n_folds"] == 3).all()
    np.testing.assert_allclose(table["predicted"], table["observed"], atol=0.03)
    far = sv.calibration(loud, 12.0)
    assert np.abs(far["predicted"] - far["observed"]).max() > 0.06
    slope, half = sv.calibration_slope(honest), sv.calibration_slope(loud)
    assert slope.low < 1 < slope.high and half.mean == pytest.approx(slope.mean / 2, rel=1e-5)


def test_kaplan_meier_figure_draws_the_curves_the_ticks_and_the_counts():
    import matplotlib.pyplot as plt

    risks = predicted(200)
    fig, ax = plt.subplots()
    sv.plot_kaplan_meier(risks, ax)
    curves = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    for curve, is_high in zip(curves, (False, True), strict=True):
        part = risks[risks["high_risk"] == is_high]
        np.testing.assert_allclose(
            curve.get_ydata(), KaplanMeierFitter().fit(part["time_months"], part["event"])
            .survival_function_.to_numpy()[:, 0])
    ticks = [line for line in ax.lines if line.get_marker() == "|"]
    assert sum(len(line.get_xdata()) for line in ticks) == (risks["event"] == 0).sum()
    counts = [text.get_text() for text in ax.texts]
    assert {str((risks["high_risk"] == value).sum()) for value in (True, False)} <= set(counts)
    plt.close(fig)


# ---------------------------------------------------------------------------------- real tables


@pytest.mark.parametrize(("endpoint", "fold_mean", "everyone", "with_age"),
                         [("os", 0.69, 0.70, 0.70), ("dss", 0.79, 0.78, 0.79)])
def test_stage_of_tcga_coadread(shared, endpoint, fold_mean, everyone, with_age):
    found = clinical.read("panther", shared / "data" / "tcga_coadread" / "panther",
                          endpoint).complete()
    models = [sv.Model("stage", ("stage",)), sv.Model("clinical", found.covariates)]
    result = sv.evaluate(found.table, found.folds, models, horizon=36.0)
    c = result.scores[result.scores["metric"] == "harrell_c"].groupby("model")["value"].mean()
    assert c["stage"] == pytest.approx(fold_mean, abs=0.01)
    assert c["clinical"] == pytest.approx(with_age, abs=0.015)
    table = found.table
    assert sv.harrell_c(table["time_months"], table["event"], table["stage"]
                        ) == pytest.approx(everyone, abs=0.01)
    # inside every fold the same as lifelines on that fold's patients
    for _, part in sv.select(result.risks, "clinical").groupby("fold"):
        oracle = concordance_index(part["time_months"], -part["risk"], part["event"])
        value = result.scores.query("model == 'clinical' and metric == 'harrell_c' and "
                                    "fold == @part['fold'].iloc[0]")["value"].iloc[0]
        assert value == pytest.approx(oracle, abs=1e-12)


@pytest.mark.slow
def test_planted_hazards_of_the_synthetic_slides(tmp_path):
    """Linear in composition: the mean is as good; spread within tumour: the mixture wins."""
    from mvhlib.cohort.synthetic import make_slide_cohort
    from mvhlib.encoders import create_encoder, encode_folder
    from mvhlib.expression.site import centre
    from mvhlib.features import read_folder

    slides = make_slide_cohort(tmp_path, seed=0)
    encode_folder(create_encoder("handmade", device="cpu"), tmp_path / "tiles", tmp_path / "f")
    tiles = centre(read_folder(tmp_path / "f"), dict(zip(slides["slide"], slides["site"],
                                                         strict=True)), scale=True)
    bags = {"handmade": mx.gather(tiles, slides)}
    models = [sv.Model("true hazard", ("log_hazard",)),
              sv.Model("mean", (), mx.MeanEmbedding(), "handmade"),
              sv.Model("mixture", (), mx.MixtureEmbedding(8, n_components=16), "handmade")]
    cache, gap, c = {}, {}, {}
    for endpoint in ("composition", "spread"):
        found = clinical.read("slides", tmp_path, endpoint)
        result = sv.evaluate(found.table, clinical.site_folds(found.table, 8), models, bags,
                             horizon=24.0, cox=sv.RidgeCox(n_components=40), cache=cache)
        pair = ("mixture", "handmade"), ("mean", "handmade")
        gap[endpoint] = sv.differences(result, [pair]).iloc[0]
        c[endpoint] = result.scores[result.scores["metric"] == "harrell_c"].groupby("model")[
            "value"].mean()
    assert abs(gap["composition"]["difference"]) < 0.03
    assert c["composition"]["mean"] > c["composition"]["true hazard"] - 0.08
    assert gap["spread"]["ci_low"] > 0.1
    assert c["spread"]["mixture"] > c["spread"]["true hazard"] - 0.08
    assert c["spread"]["mean"] < 0.56


def test_groups_that_never_meet_have_no_p():
    risks = pd.DataFrame({"time_months": [1.0, 2.0, 3.0], "event": [1, 1, 0],
                          "high_risk": [True] * 3, "fold": ["0"] * 3})
    assert np.isnan(sv.logrank_of(risks)["p"])


def test_too_little_leaves_an_endpoint_out_and_one_site_keeps_patients_apart(tmp_path):
    absent.slides(tmp_path, 24, sites=1)
    found, folds = clinical.read_with_folds("slides", tmp_path, "composition", 3, 0)
    assert found.table["site"].is_unique and "one site" in found.notes[-1]
    assert folds["fold"].nunique() == 3
    absent.slides(tmp_path, 24, events=False)
    done, why = artifacts.where_enough(["composition"], lambda endpoint: clinical.read_with_folds(
        "slides", tmp_path, endpoint, 3, 0))
    assert done == {} and "all 24 patients are censored" in why[0]
    with pytest.raises(InputError, match="is missing"):  # what is wrong is refused as ever
        absent.slides(tmp_path, 24, time_months=0.0)
        artifacts.where_enough([0], lambda _: clinical.read_with_folds(
            "slides", tmp_path, "composition", 3, 0))
