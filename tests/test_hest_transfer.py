"""The profile hest_transfer on small files of HEST's layout: its table, its folds, every method."""

import subprocess

import anndata
import numpy as np
import pandas as pd
import pytest

from mvhlib import artifacts, workflow
from mvhlib.artifacts import read_csv
from mvhlib.cohort import hest, read, splits
from mvhlib.expression import cmrcnet, evaluation, mmap, transfer
from mvhlib.features import Features
from mvhlib.places import home
from mvhlib.training import FitConfig
from tests.test_hest import CONTROLS, GENES, write_csv, write_sample

FOLDER = home() / "params" / "hest_transfer"
PARAMS = workflow.read_params(FOLDER, "01_cohort")
TABLE = read_csv(FOLDER / "samples.csv")
DIRECTIONS = {"groups": PARAMS["groups"], "pairs": PARAMS["pairs"]}
WIDTH = 6
#: Xenium measures a part of the genes, and its files hold control probes beside them.
PANEL = GENES[:40]


def write_groups(root, side=8, n=40):
    """COAD, IDC (Xenium), READ (Visium): one law from features to counts; PSC has another."""
    rng = np.random.default_rng(2)
    law = rng.standard_normal((WIDTH, len(GENES))) / 2
    used = TABLE[TABLE["group"].isin(PARAMS["options"]["include"])]
    features = {}
    for row in used.itertuples():
        x = rng.standard_normal((n, WIDTH)).astype(np.float32)
        genes = PANEL if row.group in ("COAD", "IDC") else GENES
        rate = x @ (law if row.group != "PSC" else -law)[:, :len(genes)]
        controls = CONTROLS if row.group in ("COAD", "IDC") else []
        counts = np.hstack([rng.poisson(4 * np.exp(rate)), rng.poisson(2, (n, len(controls)))])
        names, _, _ = write_sample(root, row.section, n=n, side=side, missing=2, genes=genes,
                                   controls=controls, counts=counts)
        features[row.section] = Features(x, np.zeros((n, 2), np.int64), list(names), {"mpp": 0.5})
    write_csv(root, [{"id": row.section, "dataset_title": row.study,
                      "st_technology": "Xenium" if row.group in ("COAD", "IDC") else "Visium"}
                     for row in used.itertuples()])
    return features


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    root = tmp_path_factory.mktemp("hest")
    features = write_groups(root)
    cohort = read("hest", root, **PARAMS["options"])
    panels = evaluation.choose_panels(cohort, PARAMS["protocols"], PARAMS["panels"], 12,
                                      **DIRECTIONS)
    jobs, left_out = evaluation.jobs(cohort.manifest, PARAMS["protocols"], {"e": 0.5},
                                     **DIRECTIONS)
    assert left_out.empty
    return cohort, features, panels, {job.protocol: job for job in jobs}


def test_the_table_is_the_one_of_the_released_code():
    """Ids from CMRCNet's README; rows that hest_crc has as well are the same."""
    ids = TABLE.groupby("group")["section"].apply(list).to_dict()
    assert ids == {
        "COAD": ["TENX111", "TENX147", "TENX148", "TENX149"],
        "IDC": ["NCBI783", "NCBI785", "TENX95", "TENX99"],
        "LYMPH_IDC": ["NCBI681", "NCBI682", "NCBI683", "NCBI684"],
        "PSC": ["NCBI672", "NCBI673", "NCBI674", "NCBI675"],
        "READ": ["ZEN36", "ZEN40", "ZEN48", "ZEN49"], "SKCM": ["TENX115", "TENX117"]}
    crc = read_csv(home() / "params/hest_crc/samples.csv").set_index("section")
    own = TABLE.set_index("section")
    both = own.index.intersection(crc.index)
    columns = ["study", "substudy", "donor", "specimen"]
    assert len(both) == 8
    pd.testing.assert_frame_equal(own.loc[both, columns], crc.loc[both, columns])
    donors = TABLE.groupby("group")["donor"].nunique()
    assert donors.to_dict() == {"COAD": 4, "IDC": 4, "LYMPH_IDC": 4, "PSC": 1, "READ": 2, "SKCM": 2}
    corrections = hest.read_corrections(FOLDER / "samples.csv")
    assert corrections["PSC"].sum() == 4 and "group" not in corrections


def test_the_table_against_the_users(shared):
    rows = read_csv(shared / "data/hest_metadata/HEST_v1_1_0.csv").set_index("id")
    own = TABLE.set_index("section")
    rows = rows.loc[own.index]
    assert set(rows["species"]) == {"Homo sapiens"}
    code = rows["oncotree_code"].fillna("PSC").where(rows["organ"] != "Lymph node", "LYMPH_IDC")
    assert (code == own["group"]).all()
    assert (rows["disease_comment"][own["group"] == "PSC"] == "PSC").all()
    # A title is of one study, and the csv's patients are ours where it can be believed.
    assert own["study"].groupby(rows["dataset_title"]).nunique().max() == 1
    believed = rows["patient"].notna() & (own["study"] != "crc-hd-atlas")
    pairs = pd.DataFrame({"theirs": rows["patient"], "study": own["study"], "ours": own["donor"]})
    pairs = pairs[believed].drop_duplicates()
    assert not pairs.duplicated(["theirs", "study"]).any() and not pairs.duplicated("ours").any()
    # Coarsest sample, for the encoders of the profile: HEST cuts patches at 0.5 um/px.
    assert rows["pixel_size_um_estimated"].max() < 0.5


def test_folds_leave_out_patients_and_replicates_stay_together(groups):
    cohort, _, panels, jobs = groups
    assert len(cohort) == 16
    assert all(not set(CONTROLS) & set(section.adata.var_names) for section in cohort)
    folds = jobs["transfer"].folds
    assert list(dict.fromkeys(folds["fold"])) == ["COAD->READ", "IDC->COAD", "COAD->PSC"]
    inside = jobs["within"].folds
    tested = inside[inside["role"] == "test"].groupby("fold")["section"].apply(list).to_dict()
    assert tested["READ->crc-cms-A938797"] == ["ZEN36", "ZEN40"]
    assert tested["READ->crc-cms-A121573"] == ["ZEN48", "ZEN49"]
    assert sum(fold.startswith("COAD->") for fold in tested) == 4
    assert not any(fold.startswith("PSC->") for fold in tested)  # one specimen, no diagonal
    # A pair's genes are among those that both measure: the panel's, though READ has all.
    assert set(panels["gene"]) <= set(PANEL)
    both = panels[panels["fold"].isin(["COAD->READ", "COAD->PSC"])]
    assert both.groupby("rank")["gene"].nunique().max() == 1  # chosen on COAD alone


def methods(folder):
    """Every method of the profile, at the size of a test."""
    short = FitConfig(epochs=1, batch=32, lr=3e-3, min_lr=1e-3)
    small = cmrcnet.Settings(width=16, gene_hidden=64)
    return {
        "ridge": "ridge",
        "cmrcnet": cmrcnet.CMRCNet(settings=small, training=short, k=5, folder=folder / "c"),
        "mmap": mmap.MMAP(zooms=(1,), prototypes=8, stage1=short, heads=1, head_width=8,
                          folder=folder / "m")}


def test_every_method_goes_the_whole_way(groups, tmp_path):
    cohort, features, panels, jobs = groups
    for method in methods(tmp_path).values():
        for protocol, job in jobs.items():
            found = evaluation.evaluate(job, cohort, features, panels, method=method,
                                        controls=["none"], ceiling_splits=0)
            found.write(tmp_path / "expression" / protocol / found.method / "e")
    group = splits.group_of(cohort.manifest, PARAMS["groups"])
    scores = transfer.directed(transfer.read(tmp_path / "expression"), group)
    cells = transfer.cells(scores)
    assert set(cells["method"]) == {"ridge", "cmrcnet", "mmap"}
    ridge = cells[cells["method"] == "ridge"].set_index(["trained_on", "tested_on"])
    # The law of COAD holds for READ and IDC, and the other way round for PSC.
    assert ridge.loc[("COAD", "READ"), "mean"] > 0.4 < ridge.loc[("IDC", "COAD"), "mean"]
    assert ridge.loc[("COAD", "PSC"), "mean"] < -0.3
    assert ridge.loc[("COAD", "PSC"), "note"] == "one patient, no interval"
    gaps = transfer.gaps(scores)
    assert not ((gaps["trained_on"] == "COAD") & (gaps["tested_on"] == "PSC")).any()
    named = gaps[gaps["trained_on"] != transfer.ANY]
    assert set(named["note"]) == {"no test possible at this n"} and len(named) == 2 * 3
    # Predictions of a transfer fold lie in its own folder, and are read back.
    place = tmp_path / "expression/transfer/mmap/e/predictions/COAD->READ"
    assert sorted(path.stem for path in place.iterdir()) == ["ZEN36", "ZEN40", "ZEN48", "ZEN49"]
    kept = anndata.read_h5ad(place / "ZEN36.h5ad")
    assert kept.shape == (40, 12) and kept.uns["fold"] == "COAD->READ"


@pytest.mark.slow
def test_the_profile_runs_as_a_user_runs_it(tmp_path):
    if not (home() / ".venv/.installed").exists():
        pytest.skip("needs .venv made by make")
    write_groups(tmp_path / "data", side=224)
    done = subprocess.run(
        ["make", "figures", "PROFILE=hest_transfer", f"DATA={tmp_path / 'data'}",
         f"OUT={tmp_path / 'out'}"], cwd=home(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cells = artifacts.read_csv(tmp_path / "out/figures/hest_transfer/15_transfer/cells.csv")
    assert set(cells["method"]) == {"ridge", "cmrcnet", "bleep", "mmap", "stnet",
                                    "histogene", "deeppt"}
    assert {("COAD", "READ"), ("IDC", "COAD"), ("COAD", "PSC")} <= set(
        zip(cells["trained_on"], cells["tested_on"], strict=True))
