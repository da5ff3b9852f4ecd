"""Transfer between groups: the matrix, its paired gaps, and causes that are known to differ."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mvhlib.artifacts import InputError
from mvhlib.cohort import splits, synthetic
from mvhlib.expression import evaluation, transfer
from mvhlib.expression.protocols import Prediction
from mvhlib.statistics import IMPOSSIBLE, t_interval

GENES = list("uvwxyz")


def scores(n_patients=3, loss=0.1, seed=0):
    """Three groups of patients with two sections; every other group costs `loss`."""
    rng = np.random.default_rng(seed)
    people = [(g, f"{g}{p}", f"{g}{p}{s}") for g in "ABC" for p in range(n_patients) for s in "ab"]
    luck = {patient: rng.normal(0, 0.05) for _, patient, _ in people}
    rows = []
    for tested, patient, section in people:
        for trained in "ABC":
            inside = trained == tested
            # Each side has a gene that the other did not choose, which must not count.
            for gene in GENES[:5] if inside else GENES[1:]:
                value = 0.5 + luck[patient] - (0 if inside else loss)
                odd = gene in (GENES[0], GENES[5])
                rows.append({"protocol": "within" if inside else "transfer", "method": "ridge",
                             "encoder": "e", "panel": "hvg", "control": "none", "program": "",
                             "fold": f"{trained}->{patient if inside else tested}",
                             "study": tested, "patient": patient, "section": section,
                             "gene": gene, "pcc": -9.0 if odd else value})
    group = {section: tested for tested, _, section in people}
    return transfer.directed(pd.DataFrame(rows), group)


def test_the_gap_is_paired_on_what_both_sides_predict():
    table = scores()
    gaps = transfer.gaps(table).set_index(["trained_on", "tested_on"])
    pairs = {(a, b) for a in "ABC" for b in "ABC" if a != b}
    several = {(transfer.ANY, name) for name in ("A", "B", "C", transfer.ALL)}
    assert set(gaps.index) == pairs | several
    np.testing.assert_allclose(gaps["difference"], 0.1, atol=1e-12)
    assert (gaps["n_genes"] == 4).all()
    assert gaps.loc[("A", "B"), "n_units"] == 3
    assert gaps.loc[(transfer.ANY, transfer.ALL), "n_units"] == 9
    # Three patients cannot reach 0.05, nine can: 2 of 2^9 patterns of signs.
    assert (gaps.loc[list(pairs), "note"] == IMPOSSIBLE).all()
    assert gaps.loc[list(pairs), "p_permutation"].isna().all()
    assert gaps.loc[(transfer.ANY, transfer.ALL), "p_permutation"] == pytest.approx(2 / 2**9)
    row = gaps.reset_index().iloc[0].to_dict()
    assert "gap 0.100 [0.100, 0.100] over 3 patients" in transfer.sentence(row)


def test_cells_average_genes_then_sections_then_patients():
    table = scores()
    table.loc[table.index[3], "pcc"] = np.nan
    cells = transfer.cells(table).set_index(["trained_on", "tested_on"])
    own = table[(table["trained_on"] == "A") & (table["tested_on"] == "B")]
    by_hand = own.groupby(["patient", "section"])["pcc"].mean().groupby("patient").mean()
    interval = t_interval(by_hand)
    found = cells.loc[("A", "B")]
    assert (found["mean"], found["ci_low"], found["ci_high"]) == pytest.approx(
        (interval.mean, interval.low, interval.high))
    assert cells["n_nan"].sum() == 1 and len(cells) == 9
    by_study = transfer.cells(table, "study")
    assert by_study["ci_low"].isna().all() and set(by_study["note"]) == {"one study, no interval"}


def test_no_diagonal_no_gap():
    table = scores()
    assert transfer.gaps(table[table["protocol"] == "transfer"]).empty
    one = transfer.gaps(table[table["tested_on"] == "B"].query("trained_on != 'C'"))
    assert list(one["trained_on"]) == ["A"] and list(one["tested_on"]) == ["B"]


def test_the_answer_is_the_gap_or_says_that_there_is_none():
    table = scores()
    cells, gaps = transfer.cells(table), transfer.gaps(table)
    method, encoder = cells[["method", "encoder"]].iloc[0]
    asked = (method, encoder, "study", "ridge")
    said = transfer.answer(gaps, cells, *asked)
    assert "the gap is 0.10 [0.10, 0.10] over 9 patients" in said
    away = table[table["protocol"] == "transfer"]
    said = transfer.answer(transfer.gaps(away), transfer.cells(away), *asked)
    assert "no study has two patients" in said and "nan" not in said
    one = table[table["tested_on"] == "B"].query("trained_on != 'C'")
    assert "over 3 patients" in transfer.answer(transfer.gaps(one), transfer.cells(one), *asked)


def test_who_teaches_least_and_most():
    cells = transfer.cells(scores())
    cells.loc[(cells["trained_on"] == "B") & (cells["tested_on"] != "B"), "mean"] = -9.0
    cells.loc[(cells["trained_on"] == "C") & (cells["tested_on"] != "C"), "mean"] = 0.9
    own = cells.loc[(cells["trained_on"] == "B") & (cells["tested_on"] == "B"), "mean"].item()
    assert transfer.extremes(cells) == (
        f"B teaches the others least, mean r -9.00 (-9.00; inside itself {own:.2f}), and C "
        "most, 0.90.")
    assert transfer.extremes(cells[cells["trained_on"] == "A"], "organ").startswith("Only 1 organ")


def test_matrix_and_its_drawing():
    cells = transfer.cells(scores())
    wide = transfer.matrix(cells, "mean", list("BACD"))
    assert list(wide.index) == list("BACD") and np.isnan(wide.loc["D", "A"])
    assert wide.loc["A", "B"] == pytest.approx(
        cells.set_index(["trained_on", "tested_on"]).at[("A", "B"), "mean"])
    fig, ax = plt.subplots()
    transfer.draw(wide, ax, label="r")
    assert len(ax.texts) == 9 and len(ax.patches) == 4  # a number per cell, a frame per diagonal
    plt.close(fig)


def test_scores_of_every_system_are_read(tmp_path):
    with pytest.raises(InputError, match="holds no scores"):
        transfer.read(tmp_path)
    table = scores().drop(columns=["trained_on", "tested_on"])
    table["pcc"] = table["pcc"].clip(-1, 1)
    for protocol, part in table.groupby("protocol"):
        for method in ("ridge", "mmap"):
            place = tmp_path / protocol / method / "e"
            place.mkdir(parents=True)
            both = pd.concat([part, part.assign(control="permuted")]).assign(method=method)
            both.to_csv(place / "scores.csv", index=False)
    found = transfer.read(tmp_path)
    assert len(found) == 2 * len(table) and set(found["control"]) == {"none"}


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    """Three studies of two synthetic organs, and the true causes of every spot as its features."""
    folder = tmp_path_factory.mktemp("organs")
    cohort = synthetic.make_cohort(folder, seed=1, n_studies=3, patients_per_study=2,
                                   sections_per_patient=1, spots_per_side=7, n_organs=2,
                                   n_genes_per_program=4)
    import anndata

    causes = {}
    for section in cohort:
        truth = anndata.read_h5ad(folder / "truth" / f"{section.name}.h5ad").obs
        columns = [f"cause_{name}" for name in synthetic.CLASSES]
        causes[section.name] = truth[columns].to_numpy(np.float32)
    return cohort, causes


def test_what_means_another_thing_in_another_organ_does_not_transfer(organs):
    """The encoder is perfect and the laboratory absent, so all that is lost is biology."""
    cohort, causes = organs
    panels = evaluation.choose_panels(cohort, transfer.PROTOCOLS, ["all"], 0)
    jobs, left_out = evaluation.jobs(cohort.manifest, transfer.PROTOCOLS, {"causes": None})
    assert left_out.empty and len(jobs) == 2
    results = [evaluation.evaluate(job, cohort, causes, panels, controls=["none"],
                                   ceiling_splits=0) for job in jobs]
    # A section is tested by both other studies, and keeps both predictions.
    assert set(results[0].predictions) == {
        f"{a}->{b}/{b}P{p}A" for a in ("S1", "S2", "S3") for b in ("S1", "S2", "S3") if a != b
        for p in (1, 2)}
    study = {section.name: section.study for section in cohort}
    table = transfer.directed(pd.concat([r.scores for r in results]), study)
    home = {section.study: synthetic.organs(cohort)[section.name] for section in cohort}
    assert home == {"S1": "organ 1", "S2": "organ 2", "S3": "organ 1"}
    near = table["trained_on"].map(home) == table["tested_on"].map(home)
    var = next(iter(cohort)).adata.var
    own = pd.DataFrame({s.name: s.adata.var["cause"] for s in cohort}).nunique(axis=1) > 1
    assert own.sum() == 2 * len(synthetic.CLASSES)
    classes = table["gene"].map(var["program"]).isin(synthetic.CLASSES)
    away = table["protocol"] == "transfer"
    mean = {(kind, place): table[away & classes & (table["gene"].map(own) == kind)
                                 & (near == place)]["pcc"].mean()
            for kind in (False, True) for place in (False, True)}
    assert mean[True, True] > 0.3 and mean[False, True] > 0.3  # same organ: both kinds
    assert mean[False, False] > mean[False, True] - 0.15  # other organ: shared causes stay
    assert mean[True, False] < mean[True, True] - 0.4  # and own causes do not


def test_without_organs_no_byte_changes(organs, tmp_path):
    cohort, _ = organs
    plain = synthetic.make_cohort(tmp_path, seed=1, n_studies=3, patients_per_study=2,
                                  sections_per_patient=1, spots_per_side=7, n_genes_per_program=4)
    for name in ("S1P1A", "S3P2A"):  # the first organ is the cohort without organs
        np.testing.assert_array_equal(plain[name].adata.layers["counts"].toarray(),
                                      cohort[name].adata.layers["counts"].toarray())
    other = [c["S2P1A"].adata.obs_names for c in (plain, cohort)]
    assert list(other[0]) != list(other[1]) or (
        plain["S2P1A"].adata.layers["counts"] != cohort["S2P1A"].adata.layers["counts"]).nnz
    assert "n_organs" not in plain["S1P1A"].adata.uns["synthetic"]
    assert "organ_specific" not in plain["S1P1A"].adata.var
    with pytest.raises(InputError, match="n_organs"):
        synthetic.make_cohort(tmp_path, n_organs=9)


def test_a_pair_has_the_genes_that_both_its_groups_measured():
    """A small panel meets a transcriptome: the panel's genes for that pair, all for the other."""
    rng = np.random.default_rng(0)
    import anndata

    def section(name, group, genes):
        adata = anndata.AnnData(np.zeros((30, len(genes))), var=pd.DataFrame(index=genes))
        adata.layers["counts"] = rng.poisson(4, (30, len(genes)))
        return SimpleNamespace(name=name, study=group, patient=name, adata=adata)

    wide = [f"g{i:02d}" for i in range(40)]
    people = [section("x0", "X", wide[:10]), section("x1", "X", wide[:10]),
              *(section(f"{g}{i}", g.upper(), wide) for g in "yz" for i in range(2))]
    manifest = pd.DataFrame([{"section": s.name, "study": s.study, "patient": s.patient,
                              "specimen": s.patient, "has_image": True} for s in people])
    cohort = type("Cohort", (dict,), {"manifest": manifest})({s.name: s for s in people})
    pairs = [["X", "Y"], ["Y", "Z"]]
    panels = evaluation.choose_panels(cohort, ["transfer", "within"], ["all"], 0, pairs=pairs)
    sizes = panels.groupby("fold").size().to_dict()
    assert sizes == {"X->Y": 10, "Y->Z": 40, "Y->y0": 10, "Y->y1": 10, "Z->z0": 40, "Z->z1": 40}
    assert json.dumps(splits.make(manifest, "within", pairs=pairs).attrs["measured_in"]["Y->y0"])


def test_depth_is_taken_out_of_both_sides():
    """The partial correlation is that of what regressions on the logarithm of the library leave."""
    rng = np.random.default_rng(4)
    import anndata

    n, made = 400, {}
    for name in ("p1", "p2"):
        counts = 1 + rng.poisson(rng.gamma(2, 20, (n, 1)) * np.ones((n, 5)))
        adata = anndata.AnnData(np.zeros((n, 5)), obs=pd.DataFrame(
            index=[str(i) for i in range(n)]))
        adata.layers["counts"] = counts
        made[name] = SimpleNamespace(name=name, patient=name, adata=adata)
    names = [str(i) for i in range(n)]

    def prediction(section, own):
        depth = np.log(section.adata.layers["counts"].sum(axis=1))[:, None]
        shared = rng.standard_normal((n, 3))
        sides = [(2 * depth + own * shared + rng.standard_normal((n, 3))).astype(np.float32)
                 for _ in range(2)]
        return Prediction(*sides, list("abc"), names, None, "A->B")

    predictions = {f"A->B/{name}": prediction(made[name], 0.0) for name in made}
    predictions |= {f"A->C/{name}": prediction(made[name], 2.0) for name in made}
    found = transfer.beside_depth(predictions, made).set_index(["fold", "measure"])["mean"]
    assert found["A->B", "pcc"] > 0.4 and abs(found["A->B", "pcc_given_library"]) < 0.05
    assert found["A->C", "pcc_given_library"] == pytest.approx(0.8, abs=0.03)  # 4 of 4 + 1
    expected = []
    for name, section in made.items():
        each = predictions[f"A->B/{name}"]
        X = np.column_stack([np.ones(n), np.log(section.adata.layers["counts"].sum(axis=1))])
        left = [side - X @ np.linalg.lstsq(X, side, rcond=None)[0]
                for side in (each.measured, each.predicted)]
        expected.append(np.mean([np.corrcoef(left[0][:, g], left[1][:, g])[0, 1]
                                 for g in range(3)]))
    assert found["A->B", "pcc_given_library"] == pytest.approx(np.mean(expected), abs=1e-5)
