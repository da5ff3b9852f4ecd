"""A table of ``obsm`` takes the genes' place: antibodies are read, refused and predicted."""

import anndata
import numpy as np
import pandas as pd
import pytest

from mvhlib import cohort, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression import cmrcnet, evaluation
from mvhlib.features import Features
from mvhlib.training import FitConfig

NAMES = ["CD3", "CD19", "PanCK", "Vimentin"]


def write(folder, name, seed, change=None):
    """A section whose antibodies follow two hidden axes, and whose genes are noise."""
    rng = np.random.default_rng(seed)
    n = 48
    hidden = rng.normal(size=(n, 2))
    rate = np.exp(3 + hidden @ np.array([[0.5, -0.5, 0.3, 0.0], [0.0, 0.4, -0.3, 0.5]]))
    adata = anndata.AnnData(rng.poisson(3.0, (n, 6)).astype(np.float32))
    adata.obs_names = [f"{name}-{i}" for i in range(n)]
    adata.obsm["spatial"] = np.column_stack(np.divmod(np.arange(n), 8))[:, ::-1] * 40.0 + 60
    adata.obsm["protein"] = pd.DataFrame(rng.poisson(rate), index=adata.obs_names, columns=NAMES)
    adata.uns["spatial"] = {"lib": {
        "images": {"hires": rng.integers(90, 230, (340, 400, 3), dtype=np.uint8)},
        "scalefactors": {"tissue_hires_scalef": 1.0}}}
    if change is not None:
        change(adata)
    folder.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(folder / f"{name}.h5ad")
    return hidden, adata


def read(folder, **options):
    names = sorted(path.stem for path in folder.glob("*.h5ad"))
    samples = pd.DataFrame({"section": names, "study": "A", "mpp": 1.0,
                            "patient": [f"P{name}" for name in names]})
    return cohort.read("h5ad", folder, samples=samples, keep=folder / "kept", **options)


def test_the_table_is_read_as_it_stands_in_the_file(tmp_path):
    _, given = write(tmp_path, "S1", 0)
    section = read(tmp_path, obsm="protein")["S1"]
    assert list(section.adata.var_names) == NAMES
    np.testing.assert_array_equal(section.adata.layers["counts"].toarray(), given.obsm["protein"])
    genes = read(tmp_path)["S1"].adata
    np.testing.assert_array_equal(genes.layers["counts"].toarray(), given.X)


def _unnamed(adata):
    adata.obsm["protein"] = adata.obsm["protein"].to_numpy()


def _doubled(adata):
    adata.obsm["protein"].columns = [" CD3", "CD3", "PanCK", "Vimentin"]


def _scaled(adata):
    adata.obsm["protein"] = np.log1p(adata.obsm["protein"])


@pytest.mark.parametrize("change, problem", [
    (_unnamed, "no names"), (_doubled, "two columns of one name"), (_scaled, "whole numbers"),
    (lambda adata: adata.obsm.pop("protein"), r"there are \['spatial'\]")])
def test_what_is_no_table_of_counts_is_refused_by_its_key(tmp_path, change, problem):
    write(tmp_path, "S1", 0, change=change)
    with pytest.raises(InputError, match=problem) as refused:
        read(tmp_path, obsm="protein")["S1"].adata  # noqa: B018
    assert 'obsm["protein"]' in str(refused.value) and "S1.h5ad" in str(refused.value)


@pytest.mark.slow
def test_cmrcnet_and_ridge_predict_it_on_patients_that_they_have_not_seen(tmp_path):
    features = {}
    for number in range(3):
        name = f"S{number}"
        hidden, adata = write(tmp_path, name, number)
        mixed = np.random.default_rng(9).normal(size=(2, 16))
        features[name] = Features((hidden @ mixed).astype(np.float32), adata.obsm["spatial"],
                                  np.array(adata.obs_names))
    people = read(tmp_path, obsm="protein")
    panels = evaluation.choose_panels(people, ["patient"], ["all"], 10)
    (job,), _ = evaluation.jobs(people.manifest, ["patient"], {"e": None})
    model = cmrcnet.CMRCNet(settings=cmrcnet.Settings(width=16, gene_hidden=32, gene_tokens=4),
                            training=FitConfig(epochs=10, batch=48, lr=3e-3, optimizer="adamw"),
                            k=10)
    for method in (model, "ridge"):
        result = evaluation.evaluate(job, people, features, panels, method=method, seed=0,
                                     controls=["none"], ceiling_splits=0,
                                     encoder_saw_test_images="no")
        assert set(result.scores["gene"]) == set(NAMES)
        found = statistics.unit_table(result.scores, "patient")
        assert found["ci_low"].item() > 0.2, method
