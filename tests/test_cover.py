"""The picture on top of the README: which gene, on which section."""

import pandas as pd

from mvhlib import cover


def test_the_best_gene_is_shown_where_it_is_middling(capsys, tmp_path):
    scores = pd.DataFrame(
        [("a", "s1", "none", 0.9), ("a", "s2", "none", 0.5), ("a", "s3", "none", 0.7),
         ("b", "s1", "none", 0.95), ("b", "s2", "none", 0.1), ("b", "s3", "none", None),
         ("c", "s1", "permuted", 1.0)], columns=["gene", "section", "control", "pcc"])
    assert cover.shown(scores) == ("a", "s3", 0.7)
    assert cover.main([str(tmp_path), str(tmp_path / "x.png")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Fix: run make figures first" in said
