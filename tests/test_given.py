"""Predictions that another program wrote, scored as ours are."""

import copy
import shutil
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mvhlib import artifacts, cohort, tables
from mvhlib.artifacts import InputError
from mvhlib.cohort import base
from mvhlib.expression import evaluation, given, leaderboard

TINY = {"n_studies": 3, "patients_per_study": 1, "sections_per_patient": 1, "spots_per_side": 5,
        "n_genes_per_program": 2}


class Sklearn:
    """Scikit-learn's ridge as an estimator of ours: the oracle."""

    name = "sklearn"

    def fit(self, samples, genes, fold, seed):
        self.model = make_pipeline(StandardScaler(), Ridge(30.0)).fit(
            np.concatenate([s.X for s in samples]), np.concatenate([s.Y for s in samples]))

    def predict(self, sample):
        return self.model.predict(sample.X)


class World:
    """A run folder with a cohort that was scored, and what scikit-learn predicts of it."""

    def __init__(self, folder):
        self.run = folder / "runs/test"
        self.people = cohort.read("synthetic", self.run / "cohort", seed=0, **TINY)
        for section in self.people:
            base.write_section(section, self.run / "cohort")
        artifacts.write_csv(self.run / "cohort/manifest.csv", self.people.manifest)
        self.panels = evaluation.choose_panels(self.people, ["loso", "random10_section"], ["hvg"],
                                               12)
        artifacts.write_csv(self.run / "cohort/panels.csv", self.panels)
        rng = np.random.default_rng(0)
        self.X = {s.name: np.log1p(s.adata.layers["counts"].toarray()[:, ::3])
                  + rng.standard_normal((s.adata.n_obs, 1)) for s in self.people}
        (self.job,), _ = evaluation.jobs(self.people.manifest, ["loso"], {"ours": None})
        self.result = evaluation.evaluate(self.job, self.people, self.X, self.panels,
                                          method=Sklearn(), controls=["none"])
        self.result.write(self.run / "expression/loso/ridge/ours")

    def frames(self):
        """Section -> what scikit-learn and pandas alone make of it: a table by barcode."""
        genes = self.panels.query("protocol == 'loso'")
        for fold, part in self.job.folds.groupby("fold"):
            chosen = list(genes[genes["fold"].astype(str) == str(fold)]["gene"])
            targets = {}
            for section in part["section"]:
                counts = self.people[section].adata.to_df("counts").astype(np.float64)
                targets[section] = np.log1p(
                    counts[chosen].mul(1e4 / counts.sum(axis=1), axis=0)).astype(np.float32)
            train = list(part.loc[part["role"] == "train", "section"])
            fitted = make_pipeline(StandardScaler(), Ridge(30.0)).fit(
                np.concatenate([self.X[s] for s in train]),
                np.concatenate([targets[s] for s in train]))
            for section in part.loc[part["role"] == "test", "section"]:
                yield section, pd.DataFrame(fitted.predict(self.X[section]), columns=chosen,
                                            index=targets[section].index)

    def write(self, folder, **about):
        folder.mkdir()
        for section, frame in self.frames():
            frame.rename_axis("barcode").to_csv(folder / f"{section}.csv", float_format="%.17g")
        if about:
            artifacts.write_json(folder / "predictor.yaml", about)  # JSON is YAML
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


class Wide:
    """A section whose spots lie as Visium's do, over a tissue that is wider than it is high."""

    def __init__(self):
        row, column = (axis.ravel() for axis in np.mgrid[0:5, 0:14])
        spots = [f"spot{n}" for n in range(len(row))]
        self.sections = {"S1P1A": SimpleNamespace(
            name="S1P1A", centers=np.column_stack([column * 100 + row % 2 * 50 + 730, row * 86.6
                                                   + 310]),
            adata=SimpleNamespace(obs_names=spots))}
        self.people = self
        self.frame = pd.DataFrame({"a": np.arange(len(row)), "b": 1.0}, index=spots)

    def __getitem__(self, name):
        return self.sections[name]

    def frames(self):
        yield "S1P1A", self.frame


def scores(world, name, protocol="loso"):
    return artifacts.read_csv(world.run / "expression" / protocol / "given" / name / "scores.csv")


def test_another_programs_predictions_get_the_scores_that_ours_get(world, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.run_tables, "FLOAT_FORMAT", "%.17g")
    said = given.score(world.run, world.write(tmp_path / "Other Model"))
    assert said[0] == "other-model: 3 of 3 sections, joined by name"
    assert "saw test images: unknown" in said[1]
    assert "random10_section is left out: 05_expression has not scored it" in said[2]
    keys = ["section", "gene"]
    theirs = scores(world, "other-model").set_index(keys)
    ours = world.result.scores.set_index(keys).loc[theirs.index]
    assert len(ours) == len(theirs) == len(world.result.scores)
    for metric in ("pcc", "mae", "mse", "ceiling"):
        np.testing.assert_allclose(theirs[metric], ours[metric], atol=1e-12, rtol=0)
    assert (world.run / "expression/loso/given/other-model/nulls.csv").exists()


def test_they_stand_in_the_leaderboard_with_their_mark(world, tmp_path):
    given.score(world.run, world.write(tmp_path / "p", name="Said", saw={"studies": ["S1"]}))
    table = leaderboard.table(leaderboard.read(world.run / "expression", "loso", ["ours"]))
    row = table.set_index("system").loc["said"]
    assert row["encoder_saw_test_images"] == "yes" and row["method"] == "given"
    ours = table.set_index("system").loc["ours"]
    assert row["mean"] == pytest.approx(ours["mean"], abs=1e-7)


@pytest.fixture
def changing(world, tmp_path):
    """A copy of the world whose run may be changed, scored once as ``said``."""
    copied = copy.copy(world)
    copied.run = tmp_path / "runs/test"
    shutil.copytree(world.run, copied.run)
    shutil.rmtree(copied.run / "expression/loso/given", ignore_errors=True)
    artifacts.write_json(copied.run / "provenance/05_expression.json", {"hashed": {
        "parameters": {"unit": "patient", "normalize": "log1p_cp10k", "seed": 0}}})
    given.score(copied.run, copied.write(tmp_path / "said"), n_draws=1)
    return copied


def other_counts(run):
    path = run / "cohort/S1P1A.h5ad"
    adata = anndata.read_h5ad(path)
    adata.layers["counts"] = adata.layers["counts"][::-1]
    adata.write_h5ad(path)


def edited(name, change):
    def edit(run):
        table = artifacts.read_csv(run / name)
        artifacts.write_csv(run / name, change(table))
    return edit


@pytest.mark.parametrize(("change", "why"), [
    (other_counts, "with other sections"),
    (edited("cohort/manifest.csv", lambda t: t.assign(remark="new")), "with other sections"),
    (edited("cohort/panels.csv", lambda t: t[t["rank"] < 9]), "with other genes"),
    (edited("expression/loso/ridge/ours/folds.csv", lambda t: t[t["fold"] != "S1"]),
     "with other sections and other folds"),
    (lambda run: artifacts.write_csv(run / "tiles/manifest.csv", pd.DataFrame(
        {"section": ["S1P1A"], "n_tiles": [3]})), "with other spots that have a tile"),
    (lambda run: artifacts.write_json(run / "provenance/05_expression.json", {"hashed": {
        "parameters": {"unit": "patient", "normalize": "log1p"}}}), "with another normalisation"),
    (lambda run: (run / "expression/loso/given/said/key.json").unlink(), "no record says"),
    (lambda run: (run / "expression/loso/given/said/key.json").write_text("{"), "no record says")])
def test_scores_of_another_cohort_are_left_out_until_they_are_made_again(changing, tmp_path,
                                                                        capsys, change, why):
    def systems():
        found = leaderboard.read(changing.run / "expression", "loso", ["ours"])
        return set(found["system"]), capsys.readouterr().out.splitlines()

    assert systems() == ({"ours", "said"}, [])
    change(changing.run)
    left, (line,) = systems()
    assert left == {"ours"}
    assert line.startswith(f"said was scored on another cohort ({why}")
    assert "is left out of loso: run make " in line and line.endswith("score again.")
    lines = []
    leaderboard.read(changing.run / "expression", "loso", ["ours"], report=lines.append)
    assert (lines, capsys.readouterr().out) == ([line], "")
    said = given.score(changing.run, changing.write(tmp_path / "other"), n_draws=1)
    assert line in said
    if "normalisation" in why:
        assert systems()[0] == {"ours"}  # it was scored with what 05 did not run with
        return
    given.score(changing.run, tmp_path / "said", n_draws=1)
    assert systems() == ({"ours", "said", "other"}, [])


def test_what_does_not_change_the_scores_does_not_leave_them_out(changing, capsys):
    panels = artifacts.read_csv(changing.run / "cohort/panels.csv")
    more = panels[panels["protocol"] == "loso"].assign(protocol="patient")
    artifacts.write_csv(changing.run / "cohort/panels.csv", pd.concat([panels, more]))
    shutil.copytree(changing.run / "expression/loso/ridge/ours",
                    changing.run / "expression/loso/mmap/another")
    shutil.rmtree(changing.run / "provenance")
    found = leaderboard.read(changing.run / "expression", "loso", ["ours"])
    assert "said" in set(found["system"]) and capsys.readouterr().out == ""


@pytest.mark.parametrize("saw, mark", [("nothing", "no"), ("unknown", "unknown"),
                                       ({"studies": ["elsewhere"]}, "no"),
                                       ({"sections": ["S2P1A"]}, "yes")])
def test_what_a_predictor_saw_is_marked(world, tmp_path, saw, mark):
    given.score(world.run, world.write(tmp_path / "p", name=f"m-{mark}", saw=saw), n_draws=1)
    assert set(scores(world, f"m-{mark}")["encoder_saw_test_images"]) == {mark}


def test_anndata_is_joined_by_place_where_names_differ(world, tmp_path):
    folder = tmp_path / "by-place"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for section, frame in world.frames():
        order = rng.permutation(len(frame))
        adata = anndata.AnnData(frame.to_numpy()[order], obs=pd.DataFrame(
            index=[f"cell{n}" for n in range(len(frame))]), var=pd.DataFrame(index=frame.columns))
        adata.obsm["spatial"] = world.people[section].centers[order] + rng.uniform(-9, 9, (
            len(frame), 2))
        adata.write_h5ad(folder / f"{section}.h5ad")
    assert "joined by place" in given.score(world.run, folder, n_draws=1)[0]
    theirs = scores(world, "by-place").set_index(["section", "gene"])["pcc"]
    ours = world.result.scores.set_index(["section", "gene"])["pcc"].loc[theirs.index]
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def by_place(world, folder, change):
    """Predictions with places, which `change` takes: a section's frame and its centres."""
    folder.mkdir()
    for section, frame in world.frames():
        values, places = change(frame, world.people[section].centers)
        named = pd.DataFrame(places, columns=["x", "y"], index=values.index)
        pd.concat([named, values], axis=1).to_csv(folder / f"{section}.csv", index=False)
    return folder


def dense_grid(frame, centres):
    """Predictions on a finer grid than the spots', which lies beyond them as well."""
    x, y = (np.arange(low - 100, high + 100, 19.0) for low, high in zip(
        centres.min(axis=0), centres.max(axis=0), strict=True))
    places = np.array([(a, b) for a in x for b in y])
    return pd.DataFrame(np.zeros((len(places), frame.shape[1])), columns=frame.columns), places


@pytest.mark.parametrize("shape", [
    lambda frame, centres: (frame, centres),
    lambda frame, centres: (frame[::3], centres[::3]),        # of some spots only
    lambda frame, centres: (frame, np.round(centres)), dense_grid])
def test_places_whose_axes_are_exchanged_are_refused(tmp_path, shape):
    wide = Wide()

    def exchanged(frame, centres):
        values, places = shape(frame, centres)
        return values, places[:, ::-1]

    found = given.read(by_place(wide, tmp_path / "right", shape), wide)["S1P1A"]
    assert found.barcodes == wide.frame.index.tolist()[::3 if len(found.values) < 70 else 1]
    folder = by_place(wide, tmp_path / "exchanged", exchanged)
    with pytest.raises(InputError, match=r"S1P1A.csv: x, y: x and y are exchanged.* Fix: exchange"):
        given.read(folder, wide)


@pytest.mark.parametrize("noise", [0.0, 1e-9, 5.0])
def test_places_that_fit_both_ways_are_read(world, tmp_path, noise):
    rng = np.random.default_rng(0)
    section = world.people["S1P1A"]
    assert np.allclose(sorted(map(tuple, section.centers)),
                       sorted(map(tuple, section.centers[:, ::-1])))  # a square of spots
    found = given.read(by_place(world, tmp_path / "p", lambda frame, centres: (
        frame, centres + noise * rng.standard_normal(centres.shape))), world.people)
    assert found["S1P1A"].barcodes == list(section.adata.obs_names)


def test_pandas_index_is_the_barcode_and_strange_rows_are_counted(world, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for section, frame in world.frames():
        extra = frame.iloc[:2].set_axis(["who", "where"], axis=0)
        pd.concat([extra, frame]).to_csv(folder / f"{section}.csv")
    said = given.score(world.run, folder, n_draws=1)
    assert "joined by name" in said[0]
    assert said[1].startswith("6 rows name no spot of their section and are not used, 2 of them")
    theirs = scores(world, "plain").set_index(["section", "gene"])["pcc"]
    ours = world.result.scores.set_index(["section", "gene"])["pcc"].loc[theirs.index]
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_fewer_genes_and_sections_are_counted(world, tmp_path):
    folder = world.write(tmp_path / "few")
    (folder / "S3P1A.csv").unlink()
    for path in folder.glob("*.csv"):
        pd.read_csv(path).drop(columns=pd.read_csv(path).columns[1]).iloc[1:].to_csv(
            path, index=False)
    said = given.score(world.run, folder, n_draws=1)
    assert "few: 2 of 3 sections" in said[0]
    assert "of the panel are not predicted" in said[1]
    assert "spots that ours are scored on have no prediction" in said[1]
    assert set(scores(world, "few")["section"]) == {"S1P1A", "S2P1A"}


@pytest.mark.parametrize(("saw", "said"), [
    ({"studies": ["s1"]}, "studies: holds 's1', .* Fix: write 'S1' under studies"),
    ({"patients": ["elsewhere", "S1P1A"]}, "patients: holds 'S1P1A', .*'S1P1A' under sections"),
    ({"sections": ["S1P1A", "S2P1"]}, "sections: holds 'S2P1', .* write 'S2P1' under patients"),
    ({"sections": [" s2p1 "]}, "sections: holds ' s2p1 ', .* write 'S2P1' under patients"),
    ({"studies": ["s2P1a"]}, "studies: holds 's2P1a', .* write 'S2P1A' under sections")])
def test_what_a_predictor_saw_of_the_cohort_is_never_taken_for_another_data_set(world, tmp_path,
                                                                                saw, said):
    folder = world.write(tmp_path / "p", saw=saw)
    with pytest.raises(InputError, match="predictor.yaml: saw: " + said):
        given.score(world.run, folder, n_draws=1)


@pytest.mark.parametrize("name", ["predictor.yml", "Predictor.yaml", "PREDICTOR.YML"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_predictor_of_another_name_is_not_passed_over(world, tmp_path, name, beside):
    folder = world.write(tmp_path / "p", **({"name": "one"} if beside else {}))
    (folder / name).write_text("saw: nothing\n")
    with pytest.raises(InputError, match=f"{name}: file: .*Fix: rename it to predictor.yaml"):
        given.score(world.run, folder)


def test_files_are_read_whatever_the_case_of_their_endings(world, tmp_path):
    folder = world.write(tmp_path / "cases")
    (folder / "S1P1A.csv").rename(folder / "S1P1A.CSV")
    pd.read_csv(folder / "S2P1A.csv").to_csv(folder / "S2P1A.csv.gz", index=False)
    (folder / "S2P1A.csv").unlink()
    pd.read_csv(folder / "S3P1A.csv", index_col=0).to_csv(folder / "S3P1A.TSV", sep="\t")
    (folder / "S3P1A.csv").unlink()
    said = given.score(world.run, folder, n_draws=1)
    assert said[0] == "cases: 3 of 3 sections, joined by name"
    theirs = scores(world, "cases").set_index(["section", "gene"])["pcc"]
    ours = world.result.scores.set_index(["section", "gene"])["pcc"].loc[theirs.index]
    np.testing.assert_allclose(theirs, ours, atol=1e-6)
    frame = pd.read_csv(folder / "S2P1A.csv.gz", index_col=0)
    anndata.AnnData(frame).write_h5ad(folder / "again.h5ad")
    (folder / "again.h5ad").rename(folder / "S2P1A.H5AD")
    with pytest.raises(InputError, match="section: S2P1A has two files"):
        given.score(world.run, folder)
    (folder / "S2P1A.csv.gz").unlink()
    assert list(given.read(folder, world.people)["S2P1A"].genes) == list(frame)


def test_files_that_are_passed_over_are_named(world, tmp_path):
    folder = world.write(tmp_path / "others", saw="nothing")
    assert not any("passed over" in line for line in given.score(world.run, folder, n_draws=1))
    (folder / "S3P1A.csv").rename(folder / "S3P1A.xlsx")
    (folder / "S9P1A.csv").write_text("x")
    (folder / "logs").mkdir()
    for name in ("a.log", "b.log"):
        (folder / "logs" / name).write_text("x")
    said = given.score(world.run, folder, n_draws=1)
    assert said[1].startswith("passed over, being named after no section (<section>.h5ad, .csv")
    assert said[1].endswith(": S3P1A.xlsx, S9P1A.csv, logs/a.log and 1 more")
    for path in folder.glob("S[12]*"):
        path.unlink()
    with pytest.raises(InputError, match="named after a section.*, but S3P1A.xlsx, S9P1A.csv"):
        given.score(world.run, folder)


def test_a_csv_with_too_many_genes_is_told_to_become_anndata(world, tmp_path, monkeypatch):
    folder = tmp_path / "wide"
    folder.mkdir()
    names = [f"g{n}" for n in range(tables.MOST_COLUMNS + 1)]
    (folder / "S1P1A.csv").write_text(f"barcode,{','.join(names)}\nb{',1' * len(names)}\n")
    with pytest.raises(InputError, match="S1P1A.csv: columns: are more than 20000. "
                                         "Fix: write predictions .* as AnnData, <section>.h5ad"):
        given.score(world.run, folder)
    monkeypatch.setattr(given, "LARGEST_CSV", 2**20)
    (folder / "S1P1A.csv").write_text("barcode,a\n" + "b,1\n" * 2**19)
    with pytest.raises(InputError, match="has more than 1 MB.*as AnnData, <section>.h5ad"):
        given.score(world.run, folder)


def test_what_cannot_be_scored_is_one_line(world, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(InputError, match="PREDICTIONS: holds no file that is named after a sec"):
        given.score(world.run, folder)
    (folder / "S1P1A.csv").write_text("barcode,gland-01\nnobody,1\n")
    with pytest.raises(InputError, match=r"S1P1A.csv: barcode: 'nobody' and the others are not"):
        given.score(world.run, folder)
    (folder / "S1P1A.csv").write_text("spot,gland-01\nnobody,1\n")
    with pytest.raises(InputError, match="columns: are .*give barcode, or x and y"):
        given.score(world.run, folder)
    (folder / "S1P1A.csv").write_text("x,y,gland-01\n1e7,1e7,1\n")
    with pytest.raises(InputError, match="x, y: lie near no spot"):
        given.score(world.run, folder)
    (folder / "S1P1A.csv").unlink()
    placed = anndata.AnnData(np.zeros((2, 1)), obsm={"spatial": np.full((2, 2), np.nan)})
    placed.write_h5ad(folder / "S1P1A.h5ad")
    with pytest.raises(InputError, match="S1P1A.h5ad: x, y: are not finite"):
        given.score(world.run, folder)
    (folder / "predictor.yaml").write_text("saw: everything\n")
    with pytest.raises(InputError, match="predictor.yaml: saw: is 'everything'"):
        given.score(world.run, folder)
    with pytest.raises(InputError, match="PROFILE: has not been run yet"):
        given.score(tmp_path, folder)
