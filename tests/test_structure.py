"""Gene sets, gene-gene correlation and localisation, against closed forms and scikit-learn."""

import gzip

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from mvhlib import statistics
from mvhlib.artifacts import InputError
from mvhlib.expression import structure
from mvhlib.expression.protocols import Prediction
from mvhlib.features import Features


def prediction(measured, predicted, genes=None, names=None):
    genes = genes or [f"g{i}" for i in range(measured.shape[1])]
    return Prediction(np.asarray(measured, np.float32), np.asarray(predicted, np.float32), genes,
                      names or [f"b{i}" for i in range(len(measured))], None, "0")


def programs(rng, n_spots=80, n_sets=3, per_set=6, noise=1.0):
    """Genes of a few programs, each with its own noise; and what drives them."""
    cause = rng.standard_normal((n_spots, n_sets))
    return np.repeat(cause, per_set, axis=1) + noise * rng.standard_normal(
        (n_spots, n_sets * per_set)), cause


def test_gmt_is_read_plain_and_gzipped(tmp_path):
    text = "HALLMARK_A\thttp://x\tEGFR\tKRAS\tEGFR\t\n\nB\t\tTP53\n"
    (tmp_path / "a.gmt").write_text(text)
    (tmp_path / "a.gmt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.gmt", "a.gmt.gz"):
        assert structure.read_gmt(tmp_path / name) == {"HALLMARK_A": ["EGFR", "KRAS"],
                                                       "B": ["TP53"]}


@pytest.mark.parametrize("text, says", [
    ("A\tx\n", "no gene"), ("", "there is none"), ("A\tx\tg\nA\tx\th\n", "occurs twice"),
    ("\tx\tg\n", "no name")])
def test_broken_gmt_names_its_line(tmp_path, text, says):
    (tmp_path / "a.gmt").write_text(text)
    with pytest.raises(InputError, match=says):
        structure.read_gmt(tmp_path / "a.gmt")
    (tmp_path / "b.gmt").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(InputError, match="cannot be read"):
        structure.read_gmt(tmp_path / "b.gmt")
    with pytest.raises(InputError, match="does not exist"):
        structure.read_gmt(tmp_path / "c.gmt")


def test_programs_are_the_default_sets(tmp_path):
    class Section:
        adata = anndata.AnnData(np.zeros((2, 3), np.float32), var=pd.DataFrame(
            {"program": ["a", "b", "a"], "effect": [1.0, 0.0, -0.7]}, index=["x", "y", "z"]))

    assert structure.gene_sets(None, [Section]) == {"a": ["x", "z"], "b": ["y"]}
    assert structure.gene_sets({"own": ("x",)}, [Section]) == {"own": ["x"]}
    assert structure.gene_signs(Section.adata.var) == {"x": 1.0, "y": 1.0, "z": -1.0}
    assert structure.gene_signs(Section.adata.var[["program"]]) == {}
    with pytest.raises(InputError, match="GMT"):
        structure.program_sets(Section.adata[:, :].copy()[:, []].copy().T)


def test_set_scores_are_mean_z_and_follow_signs():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 5)) * [1, 10, 100, 1, 1]
    values[:, 4] = 3.0  # constant: counts for nothing
    genes = list("abcde")
    found = structure.set_scores(values, genes, {"s": ["a", "b", "c", "e", "absent"],
                                                 "small": ["a", "d", "e"]})
    assert list(found) == ["s"]
    assert found["s"].to_numpy() == pytest.approx(stats.zscore(values[:, :3]).mean(axis=1))
    signed = structure.set_scores(values, genes, {"s": ["a", "b", "c"]}, signs={"b": -1})
    assert signed["s"].to_numpy() == pytest.approx(
        (stats.zscore(values[:, :3]) * [1, -1, 1]).mean(axis=1))


def test_a_set_gains_what_averaging_noise_gives():
    """k genes of one cause, unit noise: r of a gene sqrt(1/2), of their mean sqrt(k / (k + 1))."""
    rng = np.random.default_rng(1)
    values, cause = programs(rng, n_spots=4000, per_set=8)
    guess = np.repeat(cause, 8, axis=1)
    sets = {f"p{i}": [f"g{8 * i + j}" for j in range(8)] for i in range(3)}
    table = structure.score_sets({"S": prediction(values, guess)}, sets)
    assert list(table["n_genes"]) == [8, 8, 8]
    assert table["pcc_genes"].to_numpy() == pytest.approx(np.sqrt(1 / 2), abs=0.02)
    assert table["pcc"].to_numpy() == pytest.approx(np.sqrt(8 / 9), abs=0.02)
    assert (table["gain"] == table["pcc"] - table["pcc_genes"]).all()


def test_set_scores_leave_out_untested_spots_and_constant_predictions():
    values, cause = programs(np.random.default_rng(2))
    guess = np.repeat(cause, 6, axis=1)
    guess[:, 0] = 1.0
    gone = guess.copy()
    gone[:9] = np.nan
    sets = {"p0": [f"g{j}" for j in range(6)]}
    with_gaps = structure.score_sets({"S": prediction(values, gone)}, sets).iloc[0]
    without = structure.score_sets({"S": prediction(values[9:], guess[9:])}, sets).iloc[0]
    assert with_gaps["n_spots"] == 71 and with_gaps["n_genes"] == 5
    assert with_gaps["pcc"] == without["pcc"]
    as_adata = structure.score_sets({"S": prediction(values, gone).to_adata()}, sets).iloc[0]
    assert as_adata["pcc"] == with_gaps["pcc"]
    with pytest.raises(InputError, match="no set"):
        structure.score_sets({"S": prediction(values, guess)}, {"x": ["TP53"]})


def test_mantel_of_identical_matrices_is_one():
    matrix = np.corrcoef(np.random.default_rng(0).standard_normal((12, 40)))
    r, p = structure.mantel(matrix, matrix, rng=np.random.default_rng(0))
    assert r == pytest.approx(1.0) and p == pytest.approx(1 / 1000)
    r, _ = structure.mantel(matrix, -2 * matrix + 1, rng=np.random.default_rng(0))
    assert r == pytest.approx(-1.0)


def test_mantel_equals_correlation_of_entries_and_holds_its_level():
    rng = np.random.default_rng(3)

    def draw():
        return np.corrcoef(rng.standard_normal((9, 15)))

    a, b = draw(), draw()
    upper = np.triu_indices(9, 1)
    r, _ = structure.mantel(a, b, n_permutations=9, rng=rng)
    assert r == pytest.approx(np.corrcoef(a[upper], b[upper])[0, 1])
    p = np.array([structure.mantel(draw(), draw(), n_permutations=39, rng=rng)[1]
                  for _ in range(600)])
    # P(p <= k/40) = k/40 exactly; four standard errors.
    for level in (0.05, 0.25, 0.5):
        assert (p <= level + 1e-9).mean() == pytest.approx(
            level, abs=4 * np.sqrt(level * (1 - level) / 600))


def test_mantel_refuses_and_abstains():
    rng = np.random.default_rng(0)
    eye = np.eye(4)
    assert np.isnan(structure.mantel(eye, eye, rng=rng)).all()
    for a, b in ((eye, np.eye(5)), (np.eye(2), np.eye(2)), (np.triu(np.ones((4, 4))), eye)):
        with pytest.raises(InputError):
            structure.mantel(a, b, rng=rng)


def test_co_expression_of_a_perfect_prediction_and_of_none():
    rng = np.random.default_rng(5)
    sections = {f"S{i}": programs(rng, noise=0.7)[0] for i in range(3)}
    same = structure.co_expression({k: prediction(v, v) for k, v in sections.items()})
    assert same.mantel_r == pytest.approx(1.0) and same.frobenius == pytest.approx(0.0)
    assert same.inflation == pytest.approx(1.0) and same.n_sections == 3
    # Genes of one program stand side by side.
    kinds = [int(gene[1:]) // 6 for gene in same.genes]
    assert sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) == 2
    noise = structure.co_expression({k: prediction(v, rng.standard_normal(v.shape))
                                     for k, v in sections.items()})
    assert abs(noise.mantel_r) < 0.25 and 0.9 < noise.frobenius_share < 1.2
    assert noise.genes == same.genes  # the order is the truth's
    expected = np.mean([np.corrcoef(v, rowvar=False) for v in sections.values()], axis=0)
    place = [int(gene[1:]) for gene in same.genes]
    assert same.measured == pytest.approx(expected[np.ix_(place, place)], abs=1e-5)
    off = ~np.eye(18, dtype=bool)
    error = np.sqrt(((noise.predicted - noise.measured)[off] ** 2).sum())
    assert noise.frobenius == pytest.approx(error)
    assert noise.record()["n_genes"] == 18


def test_co_expression_does_not_see_offsets_between_sections():
    rng = np.random.default_rng(6)
    plain = {f"S{i}": rng.standard_normal((60, 8)) for i in range(2)}
    guess = {name: rng.standard_normal((60, 8)) for name in plain}
    moved = {"S0": plain["S0"] + 50.0, "S1": plain["S1"]}
    a, b = (structure.co_expression({k: prediction(v, guess[k]) for k, v in each.items()})
            for each in (plain, moved))
    assert b.measured == pytest.approx(a.measured, abs=1e-4)
    plain["S1"][:, 3] = 2.0
    c = structure.co_expression({k: prediction(v, guess[k]) for k, v in plain.items()})
    assert c.left_out == ["g3"] and len(c.genes) == 7
    with pytest.raises(InputError, match="absent"):
        structure.co_expression({"S0": prediction(plain["S0"], guess["S0"])}, ["g0", "absent"])
    with pytest.raises(InputError, match="vary"):
        structure.co_expression({"S0": prediction(plain["S0"][:, :2], guess["S0"][:, :2])})


def blobs(rng, n=90, dim=4, far=8.0):
    kind = np.arange(n) % 3
    return far * np.eye(3, dim)[kind] + rng.standard_normal((n, dim)), np.array(
        [f"class{k}" for k in kind], dtype=object)


def test_localise_orders_truth_prediction_and_chance():
    rng = np.random.default_rng(0)
    values, labels = blobs(rng)
    labels[:5] = [None, np.nan, "undetermined", None, None]
    sources = {"measured": {"S": values, "unlabelled": values},
               "predicted": {"S": values + 6 * rng.standard_normal(values.shape)},
               "colour": {"S": rng.standard_normal(values.shape)}}
    table = structure.localise(sources, {"S": labels}).set_index("source")
    assert table["ari"]["measured"] == 1.0 == table["nmi"]["measured"]
    assert table["ari"]["measured"] > table["ari"]["predicted"] > table["ari"]["colour"]
    assert abs(table["ari"]["colour"]) < 0.1
    assert (table["n_spots"] == 85).all() and (table["n_classes"] == 3).all()
    guess = structure.clusters(sources["predicted"]["S"], 3)[5:]
    assert table["ari"]["predicted"] == metrics.adjusted_rand_score(labels[5:], guess)
    with pytest.raises(InputError, match="one label per spot"):
        structure.localise(sources, {"S": labels[:-1]})
    one_class = structure.localise(sources, {"S": ["a"] * 90})
    assert one_class.empty and list(one_class.columns) == list(structure.PLACE_COLUMNS)


def test_clusters_do_not_depend_on_units_or_order():
    values, _ = blobs(np.random.default_rng(1), far=3.0)
    a = structure.clusters(values, 3)
    assert metrics.adjusted_rand_score(a, structure.clusters(values * [1, 9, .1, 2] + 4, 3)) == 1
    assert metrics.adjusted_rand_score(a, structure.clusters(values[:, ::-1], 3)) > 0.9
    with pytest.raises(InputError):
        structure.clusters(values, 91)
    with pytest.raises(InputError, match="vary"):
        structure.clusters(values * 0, 2)


def test_auroc_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 80), rng.random(80) < 0.3
    assert statistics.auroc(score, positive) == pytest.approx(
        metrics.roc_auc_score(positive, score))
    assert np.isnan(statistics.auroc(score, np.ones(80, bool)))
    with pytest.raises(InputError):
        statistics.auroc(score[:-1], positive)


def test_class_auroc_learns_elsewhere_and_is_chance_where_nothing_is_shared():
    rng = np.random.default_rng(2)
    values, labels = {}, {}
    for number in range(4):
        kind = rng.random(120) < 0.4
        values[f"S{number}"] = rng.standard_normal((120, 5)) + 20 * number
        values[f"S{number}"][:, 0] += 2.0 * kind
        labels[f"S{number}"] = np.where(kind, "cancer", "stroma").astype(object)
    table = structure.class_auroc(values, labels, "cancer", source="measured")
    assert len(table) == 4
    # Two unit normals two standard deviations apart: Phi(2 / sqrt 2).
    assert table["auroc"].mean() == pytest.approx(stats.norm.cdf(2 / np.sqrt(2)), abs=0.03)
    assert table["trained_on"][0] == "S1,S2,S3"
    opposite = {name: v * ([1, 1, 1, 1, 1] if name != "S3" else [-1, 1, 1, 1, 1])
                for name, v in values.items()}
    turned = structure.class_auroc(opposite, labels, "cancer").set_index("section")["auroc"]
    assert turned["S3"] < 0.2 < 0.8 < turned["S0"]
    groups = {"S0": "P0", "S1": "P0", "S2": "P1", "S3": "P1"}
    apart = structure.class_auroc(values, labels, "cancer", groups=groups)
    assert list(apart["trained_on"]) == ["S2,S3", "S2,S3", "S0,S1", "S0,S1"]


def test_class_auroc_from_other_expression_and_its_edges():
    rng = np.random.default_rng(3)
    kind = rng.random((2, 100)) < 0.5
    truth = {f"S{i}": rng.standard_normal((100, 3)) + 3 * kind[i][:, None] for i in range(2)}
    labels = {f"S{i}": np.where(kind[i], "cancer", "fat").astype(object) for i in range(2)}
    only = structure.class_auroc({"S0": truth["S0"]}, labels, "cancer")
    assert len(only) == 1 and np.isnan(only["auroc"][0])  # nothing left to learn from
    moved = structure.class_auroc({"S0": truth["S0"]}, labels, "cancer", train=truth)
    assert moved["auroc"][0] > 0.97 and moved["trained_on"][0] == "S1"
    none = structure.class_auroc({"S0": truth["S0"]}, labels | {"S0": ["fat"] * 100}, "cancer",
                                 train=truth)
    assert none.empty
    with pytest.raises(InputError, match="no spot"):
        structure.class_auroc(truth, labels, "bone")
    with pytest.raises(InputError, match="columns"):
        structure.class_auroc({"S0": truth["S0"][:, :2]}, labels, "cancer", train=truth)


def test_align_brings_everything_to_the_same_spots():
    rng = np.random.default_rng(0)
    measured, guess = rng.standard_normal((2, 6, 3))
    guess[1] = np.nan
    names = list("uvwxyz")
    colour = Features(rng.standard_normal((5, 2)).astype(np.float32), np.zeros((5, 2), np.int64),
                      list("zyxvu"))
    labels = {"S": pd.Series(["a", "b", "c"], index=["z", "u", "q"]).astype("category")}
    for given in (prediction(measured, guess, names=names),
                  prediction(measured, guess, names=names).to_adata()):
        sources, found = structure.align({"S": given}, labels, {"colour": {"S": colour}})
        assert list(found["S"]) == ["b", None, None, "a"]  # u x y z
        assert sources["measured"]["S"] == pytest.approx(measured[[0, 3, 4, 5]], abs=1e-6)
        assert (sources["colour"]["S"] == colour.features[[4, 2, 1, 0]]).all()
    with pytest.raises(InputError, match="none in common"):
        structure.align({"S": prediction(measured, guess)}, labels, {"colour": {"S": colour}})


def test_summarise_averages_sections_within_units():
    table = pd.DataFrame({"source": "a", "section": list("wxyz"),
                          "auroc": [0.6, 0.8, 0.9, np.nan]})
    found = structure.summarise(table, "auroc", {"w": "P", "x": "P", "y": "Q", "z": "R"}).iloc[0]
    low, high = stats.t.interval(0.95, 1, 0.8, stats.sem([0.7, 0.9]))
    assert (found["mean"], found["n_units"], found["n_sections"]) == (pytest.approx(0.8), 2, 3)
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(low), pytest.approx(high))
    with pytest.raises(InputError, match="units"):
        structure.summarise(table, "auroc", {"w": "P"})


def test_measured_expression_of_real_sections_places_invasive_cancer(shared):
    """B1 and D1 of her2st have labels; measured expression is the reference for any prediction."""
    from mvhlib.cohort import genes, her2st

    people = her2st.read(shared / "data" / "her2st", sections=["B1", "D1"], images=False)
    shared_names = people["B1"].adata.var_names.intersection(people["D1"].adata.var_names)
    total = np.asarray(people["D1"].adata[:, shared_names].layers["counts"].sum(axis=0)).ravel()
    panel = list(shared_names[np.argsort(-total, kind="stable")[:60]])
    values = {s.name: genes.targets(s.adata, panel) for s in people}
    labels = {s.name: s.adata.obs["label"].to_numpy(object) for s in people}
    table = structure.class_auroc(values, labels, "invasive cancer", source="measured")
    assert len(table) == 2 and table["auroc"].mean() > 0.7
    placed = structure.localise({"measured": values}, labels)
    assert placed["ari"].mean() > 0.1


def test_genes_that_vary_and_classes_that_are_not_there():
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(12, 3))
    measured[:, 1] = 2.0
    part = anndata.AnnData(measured, layers={"measured": measured,
                                             "predicted": rng.normal(size=(12, 3))})
    part.var_names = ["a", "constant", "b"]
    assert structure.varying({"s": part}) == ["a", "b"]
    found = structure.class_aurocs({"measured": {"s": measured}}, {"s": ["x"] * 6 + ["y"] * 6},
                                   "tumour")
    assert found.empty and list(found.columns) == list(structure.AUROC_COLUMNS)


def on_array(measured, predicted, patient_offset=0.0):
    """Spots of a square array, as notebooks read them."""
    side = int(len(measured) ** 0.5)
    adata = anndata.AnnData(np.asarray(measured, np.float32))
    adata.layers["measured"] = adata.X.copy()
    adata.layers["predicted"] = np.asarray(predicted, np.float32)
    adata.obs_names = [f"b{i}" for i in range(len(measured))]
    adata.var_names = [f"g{i}" for i in range(measured.shape[1])]
    adata.obsm["spatial"] = np.column_stack(np.divmod(np.arange(side * side), side)) * 10.0
    return adata


def test_a_system_is_judged_by_what_the_measures_say_one_by_one():
    rng = np.random.default_rng(4)
    truth, cause = programs(rng, 100)
    sets = {"first": [f"g{i}" for i in range(6)], "absent": ["x", "y", "z"]}
    maps = {name: on_array(truth + shift, guess) for name, shift, guess in (
        ("A", 0.0, truth), ("B", 5.0, truth + rng.standard_normal(truth.shape)),
        ("C", 1.0, rng.standard_normal(truth.shape)))}
    labels = {name: pd.Series(np.where(cause[:, 0] > 0, "tumour", "stroma"),
                              index=maps[name].obs_names) for name in maps}
    patients = {"A": "p", "B": "q", "C": "q"}
    judged = structure.judge_system(maps, patients, sets=sets, labels=labels, positive="tumour",
                                    groups=patients, seed=0)
    assert tuple(judged.columns) == structure.SYSTEM_COLUMNS
    mean = judged.set_index(["measure", "source"])["mean"]

    def by_unit(each):
        return np.mean([each["A"], np.mean([each["B"], each["C"]])])

    genes = {name: np.mean([stats.pearsonr(one.layers["measured"][:, k],
                                           one.layers["predicted"][:, k])[0]
                            for k in range(one.n_vars)]) for name, one in maps.items()}
    assert mean["genes", "predicted"] == pytest.approx(by_unit(genes), abs=1e-5)
    together = {name: structure.co_expression({name: one}, n_permutations=0).mantel_r
                for name, one in maps.items()}
    assert together["A"] == pytest.approx(1)
    assert mean["co_expression", "predicted"] == pytest.approx(by_unit(together))
    by_set = structure.score_sets(maps, {"first": sets["first"]}).set_index("section")["pcc"]
    assert mean["gene_sets", "predicted"] == pytest.approx(by_unit(by_set))
    assert mean["ari", "measured"] > mean["ari", "predicted"] > 0
    assert set(judged.loc[judged["measure"] == "auroc", "source"]) == {"measured", "predicted"}

    alone = structure.judge_system({"A": maps["A"]}, None)
    perfect = alone.set_index("measure")["mean"]
    assert perfect["genes"] == pytest.approx(1) and perfect["oversmoothing"] == pytest.approx(0)
    assert set(alone["measure"]) == {"genes", "oversmoothing", "co_expression"}
