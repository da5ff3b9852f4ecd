"""The leaderboard: ranks by hand, Demsar's example, and no order that no test supports."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvhlib.artifacts import InputError, write_csv
from mvhlib.expression import leaderboard


def scores(gaps, n=12, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, 0.1, n)
    return pd.DataFrame([
        {"system": system, "method": "ridge", "encoder": system, "encoder_saw_test_images": "no",
         "study": f"s{unit // 2}", "patient": f"p{unit}", "section": f"p{unit}a", "gene": gene,
         "program": "noise" if gene == "x" else "slow",
         "pcc": 0.3 + gap + luck[unit] + noise * rng.standard_normal()}
        for system, gap in gaps.items() for unit in range(n) for gene in "xy"])


def test_critical_difference_is_demsars():
    """Table 5 of Demsar 2006: q 2.343 for two..., 2.569 for four classifiers at 5 %."""
    means = pd.DataFrame(np.random.default_rng(0).random((14, 4)))
    assert leaderboard.rank(means).critical_difference == pytest.approx(
        2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)


def test_ranks_and_friedman_by_hand():
    means = leaderboard.unit_means(scores({"a": 0.1, "b": 0.05, "c": 0.0}))
    found = leaderboard.rank(means)
    assert list(found.ranks.index) == ["a", "b", "c"]
    by_hand = np.mean([stats.rankdata(-row) for row in means.to_numpy()], axis=0)
    assert found.ranks[["a", "b", "c"]].tolist() == pytest.approx(by_hand.tolist())
    assert found.p_friedman == pytest.approx(stats.friedmanchisquare(*means.to_numpy().T).pvalue)


def test_alike_systems_share_one_bar_and_distinct_ones_do_not():
    one_bar = []
    for seed in range(40):  # alike systems are told apart in about one draw of twenty
        table = scores({"a": 0, "b": 0, "c": 0}, noise=0.2, seed=seed)
        found = leaderboard.rank(leaderboard.unit_means(table))
        one_bar.append(found.groups() == [tuple(found.ranks.index)])
    assert 0.8 < np.mean(one_bar) < 1.0
    apart = leaderboard.rank(leaderboard.unit_means(scores({"a": 0.2, "b": 0.1, "c": 0.0}, n=40)))
    assert all(len(group) == 1 for group in apart.groups())


def test_the_table_names_the_best_and_only_what_a_test_separates():
    found = leaderboard.table(scores({"a": 0.1, "b": 0.1, "c": 0.0}, noise=0.03)).set_index(
        "system")
    first = found.index[0]
    assert found.at[first, "note"] == "best mean rank" and first in ("a", "b")
    other = "b" if first == "a" else "a"
    assert found.at[other, "note"] == "not separable from it"
    assert found.at["c", "note"] == "behind it" and found.at["c", "behind_low"] > 0
    replicates = leaderboard.table(scores({"a": 0.1, "c": 0.0}), unit="section")
    assert replicates["n_units"].tolist() == [12, 12]
    few = leaderboard.table(scores({"a": 0.1, "c": 0.0}, n=4)).set_index("system")
    assert few.at["c", "note"] == "no test possible at this n"


def test_scores_are_cut_to_what_all_systems_have(tmp_path):
    for method, encoder, genes in (("ridge", "e", "xyz"), ("mmap", "e", "xy")):
        rows = scores({"e": 0.0})
        rows = pd.concat([rows[rows["gene"] == "x"].assign(gene=gene) for gene in genes])
        rows = rows.assign(control="none", panel="hvg", method=method).drop(columns="system")
        write_csv(tmp_path / "loso" / method / encoder / "scores.csv", rows)
    found = leaderboard.read(tmp_path, "loso")
    assert set(found["system"]) == {"e", "mmap on e"} and set(found["gene"]) == {"x", "y"}
    assert list(leaderboard.by_program(found).columns) == ["noise"]
    with pytest.raises(InputError, match="05_expression"):
        leaderboard.read(tmp_path, "patient")


def test_one_system_has_no_order_and_none_has_no_row(tmp_path):
    board = leaderboard.table(scores({"only": 0.0}))
    assert list(board["note"]) == ["the only system"] and board["mean_rank"].item() == 1
    assert np.isfinite(board[["mean", "ci_low", "ci_high"]].to_numpy(float)).all()
    nothing = leaderboard.read(tmp_path, "")
    assert nothing.empty and list(leaderboard.table(nothing).columns) == list(board.columns)
    assert leaderboard.rank(leaderboard.unit_means(nothing)).ranks.empty
    with pytest.raises(InputError, match="holds no scores"):
        leaderboard.read(tmp_path, "loso")
