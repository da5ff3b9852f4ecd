"""The leaderboard: ranks by hand, no order that no test supports, no rank for who peeked."""

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


def test_programs_are_averaged_over_genes_then_sections_then_units():
    table = scores({"a": 0.1, "b": 0.0})
    second = table[(table["patient"] == "p0")].assign(section="p0b", pcc=0.9)
    table = pd.concat([table, second, second.assign(section="p0c", pcc=0.7)])
    found = leaderboard.by_program(table, "patient")
    assert list(found.columns) == ["noise", "slow"]
    own = table[(table["system"] == "a") & (table["program"] == "slow")]
    by_hand = np.mean([np.mean([rows["pcc"].mean() for _, rows in patient.groupby("section")])
                       for _, patient in own.groupby("patient")])
    assert found.at["a", "slow"] == pytest.approx(by_hand, rel=1e-12)


def test_genes_without_a_cause_are_left_out_where_these_are_known():
    programs = ["tumour", "noise", "", "slow_along"]
    rows = pd.DataFrame({"program": programs, "gene": list("abcd"), "pcc": 0.1})
    assert list(leaderboard.with_signal(rows)["gene"]) == ["a", "d"]
    real = rows.assign(program=["tumour", "", "", "slow_along"])  # marker panels have names, too
    assert leaderboard.with_signal(real).empty
    assert leaderboard.table(leaderboard.with_signal(real)).empty


def test_ranks_and_friedman_by_hand():
    means = leaderboard.unit_means(scores({"a": 0.1, "b": 0.05, "c": 0.0}))
    found = leaderboard.rank(means)
    assert list(found.ranks.index) == ["a", "b", "c"]
    by_hand = np.mean([stats.rankdata(-row) for row in means.to_numpy()], axis=0)
    assert found.ranks[["a", "b", "c"]].tolist() == pytest.approx(by_hand.tolist())
    assert found.p_friedman == pytest.approx(stats.friedmanchisquare(*means.to_numpy().T).pvalue)


def test_who_learned_from_tested_sections_is_listed_last_and_has_no_rank():
    table = scores({"peeks": 0.3, "a": 0.1, "b": 0.0})
    table.loc[table["system"] == "peeks", "encoder_saw_test_images"] = "yes"
    board = leaderboard.table(table)
    assert list(board["system"]) == ["a", "b", "peeks"]
    last = board.iloc[-1]
    assert last["note"] == leaderboard.APART
    assert last[["mean_rank", "behind", "p_holm"]].isna().all()
    assert last["mean"] > board["mean"].iloc[0]
    without = leaderboard.table(table[table["system"] != "peeks"])
    assert list(board["mean_rank"][:2]) == list(without["mean_rank"])
    alone = leaderboard.table(table[table["system"] == "peeks"])
    assert list(alone["note"]) == [leaderboard.APART]


def said(gaps, peeks=(), unstated=(), **how):
    table = scores(gaps, **how)
    table.loc[table["system"].isin(peeks), "encoder_saw_test_images"] = "yes"
    table.loc[table["system"].isin(unstated), "encoder_saw_test_images"] = "unknown"
    return leaderboard.sentence(leaderboard.table(table), "on an unseen study", str.upper)


def test_the_sentence_says_what_the_tests_allow():
    clear = said({"a": 0.3, "b": 0.1, "c": 0.0})
    assert "A reaches a mean Pearson r of" in clear and "over 12 patients on an unseen" in clear
    assert "every other system behind it; the closest, B, by 0.19 [" in clear
    alike = said({"a": 0.1, "b": 0.1, "c": 0.0}, noise=0.03)
    assert "puts 1 of the other 2 behind it and cannot tell it from" in alike
    assert "With 4 patients no test can" in said({"a": 0.1, "c": 0.0}, n=4)
    assert "(no interval) over 1 patient" in said({"a": 0.1, "c": 0.0}, n=1)
    apart = said({"a": 0.1, "b": 0.0}, peeks=["b"])
    assert "is the only system with a rank. B (" in apart and "has no rank" in apart
    assert said({"a": 0.1, "b": 0.0}, peeks=["a", "b"]).endswith("have no rank.")
    doubt = "What it was trained on is not stated"
    assert doubt in said({"a": 0.1, "b": 0.0}, unstated=["a"])
    assert doubt not in said({"a": 0.1, "b": 0.0}, unstated=["b"])
    nothing = leaderboard.table(scores({"a": 0.1}).iloc[:0])
    assert "no system was scored" in leaderboard.sentence(nothing, "", str)


def test_what_is_drawn_is_what_the_table_says():
    from matplotlib.figure import Figure

    table = scores({"a": 0.3, "b": 0.29, "c": 0.0, "d": 0.5}, noise=0.05)
    table.loc[table["system"] == "d", "encoder_saw_test_images"] = "yes"
    board = leaderboard.table(table)
    axes = Figure().subplots(1, 2, sharey=True)
    leaderboard.draw(board, axes, str, lambda _: "black")
    behind = [line.get_xdata()[0] for line in axes[1].lines if line.get_marker() == "o"]
    assert sorted(set(behind)) == pytest.approx(sorted(-board["behind"].dropna()))
    assert [text.get_text() for text in axes[0].get_yticklabels()] == list(board["system"])
    assert [text.get_text() for text in axes[0].texts] == [f"{v:.2f}" for v in board["mean"]]


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
