"""Stores of SpatialData, from the store to the tables of a profile."""

import anndata
import numpy as np
import pandas as pd
import pytest

from mvhlib import artifacts, cohort
from mvhlib.artifacts import InputError
from tests.test_profiles import doctor, fill, profile, run_profile

pytestmark = pytest.mark.slow
spatialdata = pytest.importorskip("spatialdata", reason="needs spatialdata")
SIDE, GENES = 12, 12


def write_store(path, images=("he",), regions=("spots",)):
    """A store of 144 spots; a pixel of its image is two units of the system that both share."""
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    rng = np.random.default_rng(len(path.stem) + ord(path.stem[-1]))
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    places = np.column_stack([column, row]) * 80.0 + 60  # in the shared system
    names = [f"spot{n}" for n in range(SIDE**2)]
    pixels = rng.integers(90, 230, (3, 520, 500), dtype=np.uint8)
    pixels[0] = np.clip(pixels[0] + np.linspace(0, 60, 500), 0, 255).astype(np.uint8)
    counts = rng.poisson(2 + 6 * (column / SIDE)[:, None], (SIDE**2, GENES))
    table = anndata.AnnData(counts.astype(np.float32), obs=pd.DataFrame(index=names),
                            var=pd.DataFrame(index=[f"G{k}" for k in range(GENES)]))
    table.obs["region"] = pd.Categorical(np.resize(regions, len(names)))
    table.obs["id"] = names
    order = rng.permutation(len(names))  # a store promises no order
    shapes = {region: ShapesModel.parse(
        places[order], geometry=0, radius=25, index=pd.Index(np.array(names)[order]),
        transformations={"global": Identity()}) for region in regions}
    spatialdata.SpatialData(
        images={name: Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={
            "global": Scale([2.0, 2.0], axes=("x", "y"))}) for name in images},
        shapes=shapes, tables={"table": TableModel.parse(
            table, region=list(regions), region_key="region", instance_key="id")}).write(path)
    return table, places, pixels


def told(*names, **more):
    return pd.DataFrame([{"section": name, "study": "T", "patient": name, "mpp": "1.5"} | more
                         for name in names])


def test_a_store_is_read_into_the_pixels_of_its_image(tmp_path):
    table, places, pixels = write_store(tmp_path / "data/Z1.zarr")
    section = cohort.read("spatialdata", tmp_path / "data", samples=told("Z1"),
                          keep=tmp_path / "kept")["Z1"]
    assert list(section.adata.obs_names) == list(table.obs_names)
    np.testing.assert_array_equal(section.adata.layers["counts"].toarray(), table.X)
    np.testing.assert_allclose(section.centers, places / 2)
    np.testing.assert_array_equal(section.image(), np.moveaxis(pixels, 0, -1))
    assert (section.mpp, section.image_size) == (1.5, (500, 520))


def test_what_a_store_leaves_open_is_one_line(tmp_path):
    write_store(tmp_path / "a/Z1.zarr", images=("he", "if"))
    with pytest.raises(InputError, match="Z1.zarr: images: are 2: .*column element"):
        cohort.read("spatialdata", tmp_path / "a", samples=told("Z1"))
    named = cohort.read("spatialdata", tmp_path / "a", samples=told("Z1", element="if"),
                        keep=tmp_path / "kept")
    assert named["Z1"].image_size == (500, 520)
    write_store(tmp_path / "b/Z1.zarr", regions=("left", "right"))
    with pytest.raises(InputError, match="Z1.zarr: region: of the table are"):
        cohort.read("spatialdata", tmp_path / "b", samples=told("Z1"))
    (tmp_path / "c/Z1.zarr").mkdir(parents=True)
    with pytest.raises(InputError, match="Z1.zarr: "):
        cohort.read("spatialdata", tmp_path / "c", samples=told("Z1"))


def test_a_profile_of_stores_runs_to_its_tables(tmp_path, capsys):
    data, params = tmp_path / "data", tmp_path / "params"
    params.mkdir()
    for name in ("Z1", "Z2", "Z3"):
        write_store(data / f"{name}.zarr")
    status, said, _ = doctor(data, capsys)
    assert status == 0 and "stores of SpatialData" in said and "3 sections" in said
    assert profile(data, params) == 0
    fill(params / "mine/samples.csv", study="T", patient=["P1", "P2", "P3"], mpp="1.5")
    run_profile(params / "mine", data, tmp_path / "out")
    summary = artifacts.read_csv(tmp_path / "out/figures/mine/05_expression/summary.csv")
    scores = summary.query("metric == 'pcc' and control == 'none' and program == 'all'")
    assert len(scores) and np.isfinite(scores["mean"]).all()
    manifest = artifacts.read_csv(tmp_path / "out/runs/mine/cohort/manifest.csv")
    assert list(manifest["n_spots"]) == [SIDE**2] * 3 and set(manifest["mpp"]) == {1.5}
