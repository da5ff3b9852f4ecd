"""HEST's layouts on small files that are written here, its corrections, and its benchmark."""

import json
import sys
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from mvhlib.artifacts import InputError, read_csv
from mvhlib.cohort import base, hest, read, splits
from mvhlib.cohort.hest import metadata
from mvhlib.expression import evaluation, protocols
from mvhlib.features import Features, read_features
from mvhlib.places import home
from mvhlib.tiles.cut import cut_spots
from mvhlib.tiles.slides import Slide
from mvhlib.tiles.store import write_tiles

CORRECTIONS = home() / "params" / "hest_crc" / "samples.csv"
CONTROLS = ["BLANK_0001", "NegControlProbe_00042", "NegControlCodeword_0500", "antisense_X1",
            "UnassignedCodeword_0003", "DeprecatedCodeword_0007"]
N_GENES = 70
GENES = [f"G{number:02d}" for number in range(N_GENES)]


def write_sample(root, name, *, folder="st", n=40, side=224, patches=True, missing=5, extra=1,
                 mpp=0.3, attrs=True, centred=False, plural=False, controls=(), seed=0,
                 counts=None, fmt="csr", picture=False, genes=GENES):
    """A sample in HEST's layout; patches are fewer than spots, shuffled, one without a spot."""
    rng = np.random.default_rng([seed, *name.encode()])
    source = round(side * 0.5 / mpp)  # [level-0 px]
    names = np.array([f"{name[:2]}{'x' * (i % 3)}{i:03d}-1" for i in range(n)])  # unequal lengths
    column, row = np.arange(n) % 8, np.arange(n) // 8
    pitch = 100 / mpp
    centres = np.stack([column, row], 1) * pitch + 700.0
    genes = [*genes, *controls]
    if counts is None:
        counts = rng.poisson(rng.gamma(2.0, 1.5, len(genes)), (n, len(genes)))
    counts = np.asarray(counts, np.float32)
    adata = anndata.AnnData(
        X=sparse.csr_matrix(counts) if fmt == "csr" else counts,
        obs=pd.DataFrame({"array_row": row, "array_col": column, "in_tissue": 0}, index=names),
        var=pd.DataFrame(index=genes))
    adata.obsm["spatial"] = centres
    if picture:
        adata.uns["spatial"] = {"ST": {
            "images": {"downscaled_fullres": np.full((60, 80, 3), 7, np.uint8)},
            "scalefactors": {"tissue_downscaled_fullres_scalef": 0.02}}}
    (root / folder).mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(root / folder / f"{name}.h5ad")
    if patches:
        order = rng.permutation(n)[:n - missing]
        label = [*names[order], *(f"off{i}" for i in range(extra))]
        corners = np.rint(centres[order] - source / 2)
        corners = np.concatenate([corners, np.zeros((extra, 2))]).astype(np.int64)
        if centred:
            corners = corners + source // 2
        (root / "patches").mkdir(parents=True, exist_ok=True)
        with h5py.File(root / "patches" / f"{name}.h5", "w") as stream:
            pixels = rng.integers(0, 200, (len(label), side, side, 3), np.uint8)
            img = stream.create_dataset("img", data=pixels)
            stream["coords"] = corners
            width = max(map(len, label))
            stream["barcodes" if plural else "barcode"] = np.array(
                [b.encode() for b in label], f"S{width}").reshape(-1, 1)
            if attrs:
                img.attrs.update({"patch_size_src": source, "patch_size_target": side,
                                  "downsample": source / side, "pixel_size": mpp})
    return names, centres, counts


def write_csv(root, rows, name="HEST_v1_1_0.csv"):
    columns = {"dataset_title": "A study", "patient": "Patient 1", "subseries": "",
               "st_technology": "Visium", "pixel_size_um_estimated": 0.3, "spots_under_tissue": 40,
               "nb_genes": N_GENES, "fullres_px_width": 5000, "fullres_px_height": 4000}
    frame = pd.DataFrame([columns | row for row in rows])
    frame.to_csv(root / name, index=False)


def refused(function, *arguments, **options) -> InputError:
    """The one-line error that a call ends with."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def hest1k(tmp_path):
    write_sample(tmp_path, "TENX1", controls=CONTROLS)
    write_sample(tmp_path, "TENX2", side=256, plural=True, fmt="dense")
    write_sample(tmp_path, "TENX3", attrs=False, centred=True)
    write_sample(tmp_path, "TENX4", patches=False)
    write_csv(tmp_path, [{"id": "TENX1", "st_technology": "Xenium"},
                         {"id": "TENX2", "patient": "Patient 2"}, {"id": "TENX3", "patient": " "},
                         {"id": "TENX4", "dataset_title": "B study", "patient": np.nan},
                         {"id": "GONE"}])
    return tmp_path


# ---- HEST-1k


def test_reads_hest_1k(hest1k):
    cohort = read("hest", hest1k)
    assert list(cohort.sections) == ["TENX1", "TENX2", "TENX3", "TENX4"]
    manifest = cohort.manifest.set_index("section")
    assert list(manifest["has_image"]) == [True, True, True, False]
    assert list(manifest["study"]) == ["A study"] * 3 + ["B study"]
    # The blank in the csv is no patient: what is not stated is kept together, study by study.
    assert list(manifest["patient"]) == ["A study, Patient 1", "A study, Patient 2",
                                         "A study, donor not stated", "B study, donor not stated"]
    assert manifest.loc["TENX1", "mpp"] == 0.3 and manifest.loc["TENX1", "image_width_px"] == 5000
    assert set(manifest["source"]) == {"hest"}
    adata = cohort["TENX1"].adata
    assert list(adata.var_names) == GENES and adata.uns["hest"]["n_control_features"] == 6
    assert list(read("hest", hest1k, unrecorded="section").manifest["patient"])[2:] == [
        "TENX3", "TENX4"]


def test_counts_and_centres_are_those_of_the_file(hest1k):
    for name in ("TENX1", "TENX2"):  # sparse and dense, with controls at the end and without
        stored = anndata.read_h5ad(hest1k / "st" / f"{name}.h5ad")
        found = read("hest", hest1k)[name].adata
        raw = stored.X.toarray() if sparse.issparse(stored.X) else stored.X
        np.testing.assert_array_equal(found.layers["counts"].toarray(), raw[:, :N_GENES])
        np.testing.assert_array_equal(found.obsm["spatial"], stored.obsm["spatial"])
        assert list(found.obs_names) == list(stored.obs_names)  # in_tissue is 0 and not believed


@pytest.mark.parametrize("name", ["TENX1", "TENX2", "TENX3"])
def test_tiles_are_the_patches(hest1k, name):
    section = read("hest", hest1k)[name]
    tiles = hest.tiles(hest1k, section)
    side = 256 if name == "TENX2" else 224
    source = round(side * 0.5 / 0.3)
    with h5py.File(hest1k / "patches" / f"{name}.h5") as stream:
        key = "barcodes" if name == "TENX2" else "barcode"
        stored = [b.decode() for b in stream[key][:, 0]]
        np.testing.assert_array_equal(tiles.img, stream["img"][:-1])  # the last has no spot
    assert tiles.barcodes == stored[:-1] and len(tiles) == 35  # order of the file, five spots less
    assert tiles.tile_px == side and tiles.source_mpp == 0.3
    assert tiles.tile_um == pytest.approx(source * 0.3, rel=0.01)
    # Corners, whatever the file holds: half a tile from the spot of the same barcode.
    place = {b: i for i, b in enumerate(section.adata.obs_names)}
    centres = section.centers[[place[b] for b in tiles.barcodes]]
    np.testing.assert_allclose(tiles.coords + tiles.source_px / 2, centres, atol=1.5)


def test_attributes_that_are_missing_are_measured(tmp_path):
    write_sample(tmp_path, "S1", attrs=False, side=64)
    write_csv(tmp_path, [{"id": "S1"}])
    tiles = hest.tiles(tmp_path, read("hest", tmp_path)["S1"])
    assert tiles.tile_um == pytest.approx(32.0, rel=0.02)  # 64 px, cut at 0.5 um/px
    assert tiles.source_mpp == 0.3


def test_tiles_survive_the_run_folder(hest1k, tmp_path):
    """What 01 writes, 02 reads: the section of the run gives the same tiles."""
    section = read("hest", hest1k)["TENX2"]
    base.write_section(section, tmp_path / "cohort")
    again = base.read_section(tmp_path / "cohort" / "TENX2.h5ad", data=hest1k)
    assert again.has_image and again.image_key() == section.image_key()
    first, second = hest.tiles(hest1k, section), hest.tiles(hest1k, again)
    assert first.barcodes == second.barcodes
    np.testing.assert_array_equal(first.coords, second.coords)


def test_a_picture_of_patches(tmp_path):
    names, centres, _ = write_sample(tmp_path, "S1", missing=0, extra=0)
    write_csv(tmp_path, [{"id": "S1", "fullres_px_width": 9000, "fullres_px_height": 6000}])
    with h5py.File(tmp_path / "patches" / "S1.h5", "r+") as stream:
        order = [list(names).index(b.decode()) for b in stream["barcode"][:, 0]]
        shade = np.array(order, np.uint8)[:, None, None, None] + 1
        stream["img"][...] = np.broadcast_to(shade, stream["img"].shape)
    record = read("hest", tmp_path)["S1"].adata.uns["spatial"]["S1"]
    scale = record["scalefactors"]["tissue_hires_scalef"]
    pixels = record["images"]["hires"]
    assert scale == pytest.approx(2000 / 9000) and max(pixels.shape) <= 2001
    x, y = np.rint(centres * scale).astype(int).T
    seen = pixels[y, x, 0]
    # Patches overlap by 12 um, far from the centres: each centre shows its own spot.
    np.testing.assert_array_equal(seen, np.arange(40) + 1)
    assert (pixels[-1, -1] == 255).all()


def test_the_stored_picture_is_used_where_there_is_one(tmp_path):
    write_sample(tmp_path, "S1", picture=True)
    write_csv(tmp_path, [{"id": "S1"}])
    record = read("hest", tmp_path)["S1"].adata.uns["spatial"]["S1"]
    assert record["images"]["hires"].shape == (60, 80, 3)
    assert (record["images"]["hires"] == 7).all()
    assert record["scalefactors"]["tissue_hires_scalef"] == 0.02


def test_a_slide_comes_before_patches(hest1k):
    (hest1k / "wsis").mkdir()
    Image.fromarray(np.full((300, 500, 3), 90, np.uint8)).save(hest1k / "wsis" / "TENX1.tif")
    section = read("hest", hest1k)["TENX1"]
    assert section.image_ref.path == "wsis/TENX1.tif" and section.image_size == (500, 300)
    assert section.image(2).shape == (75, 125, 3) and section.mpp == 0.3
    assert not read("hest", hest1k, images=False)["TENX1"].has_image


def test_a_slide_that_the_spots_do_not_fit(tmp_path):
    write_sample(tmp_path, "S1")
    write_csv(tmp_path, [{"id": "S1"}])
    (tmp_path / "wsis").mkdir()
    for size, said in (((500, 300), "100%"), ((2500, 2500), "cropped"),
                       ((2500, 3100), "turned")):
        Image.fromarray(np.full((*size[::-1], 3), 90, np.uint8)).save(
            tmp_path / "wsis" / "S1.tif")
        error = refused(lambda: read("hest", tmp_path)["S1"].adata)
        assert error.field == "image" and said in error.problem
    Image.fromarray(np.full((3200, 3200, 3), 90, np.uint8)).save(tmp_path / "wsis" / "S1.tif")
    assert read("hest", tmp_path)["S1"].adata.n_obs == 40


def test_a_slide_is_read_by_openslide(hest1k):
    pytest.importorskip("openslide")
    tifffile = pytest.importorskip("tifffile")
    (hest1k / "wsis").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (512, 768, 3), np.uint8)
    with tifffile.TiffWriter(hest1k / "wsis" / "TENX4.tif") as stream:
        for level in (pixels, pixels[::2, ::2]):
            stream.write(level, tile=(256, 256), photometric="rgb",
                         subfiletype=int(level is not pixels))
    section = read("hest", hest1k)["TENX4"]
    with section.slide as slide:
        assert (slide.width, slide.height, slide.mpp) == (768, 512, 0.3)
        np.testing.assert_array_equal(slide.region(10, 20, 30, 40)[0], pixels[20:60, 10:40])


def test_metadata_of_the_sample_fill_what_the_csv_lacks(tmp_path):
    write_sample(tmp_path, "S1", attrs=False)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "S1.json").write_text(json.dumps(
        {"dataset_title": "own", "patient": "P7", "pixel_size_um_estimated": 0.3}))
    section = read("hest", tmp_path)["S1"]
    assert (section.study, section.patient, section.mpp) == ("own", "own, P7", 0.3)
    write_csv(tmp_path, [{"id": "S1", "pixel_size_um_estimated": 0.31}], "HEST_v1_9_0.csv")
    write_csv(tmp_path, [{"id": "S1", "pixel_size_um_estimated": 0.32}], "HEST_v1_10_0.csv")
    assert read("hest", tmp_path)["S1"].mpp == 0.32  # the newest table


@pytest.mark.parametrize(("technology", "more", "stated", "measured"), [
    ("Xenium", {}, 0.2, "0.3"), ("Visium", {}, 0.36, "0.3"), ("Visium", {}, 0.27, "0.3"),
    ("Spatial Transcriptomics", {}, 0.3, "0.6"),
    ("Spatial Transcriptomics", {"inter_spot_dist": 110}, 0.5, "0.33")])
def test_a_scale_that_spots_speak_against(tmp_path, technology, more, stated, measured):
    write_sample(tmp_path, "S1", mpp=0.3, attrs=False)
    write_csv(tmp_path, [{"id": "S1", "st_technology": technology,
                          "pixel_size_um_estimated": stated} | more])
    error = refused(lambda: read("hest", tmp_path)["S1"].adata)
    assert error.field == "pixel_size_um_estimated of S1"
    assert str(stated) in error.problem and measured in error.problem


def test_pitch_that_fits_is_measured(tmp_path):
    write_sample(tmp_path, "S1", mpp=0.3)
    for technology, more in (("Visium", {}), ("Xenium", {}), ("", {}),
                             ("Spatial Transcriptomics", {"inter_spot_dist": 110})):
        write_csv(tmp_path, [{"id": "S1", "st_technology": technology} | more])
        lattice = read("hest", tmp_path)["S1"].adata.uns["lattice"]
        assert lattice["pitch_um"] == pytest.approx(100)


# ---- bad input


def broken(root, how):
    stored = root / "patches" / "TENX1.h5"
    if how == "truncated patches":
        stored.write_bytes(stored.read_bytes()[:3000])
    elif how == "truncated h5ad":
        file = root / "st" / "TENX1.h5ad"
        file.write_bytes(file.read_bytes()[:2000])
    elif how == "json":
        (root / "metadata").mkdir()
        (root / "metadata" / "TENX1.json").write_text('{"patient": ')
    else:
        with h5py.File(stored, "r+") as stream:
            if how == "no barcode":
                del stream["barcode"]
            elif how == "other names":
                stream["barcode"][...] = np.array([[f"q{i}".encode()] for i in range(36)], "S8")
            elif how == "repeated":
                stream["barcode"][1] = stream["barcode"][0]
            elif how == "rows":
                coords = stream["coords"][:-1]
                del stream["coords"]
                stream["coords"] = coords
            elif how == "elsewhere":
                stream["coords"][...] = stream["coords"][...] + 2000


@pytest.mark.parametrize(("how", "field"), [
    ("truncated patches", "file"), ("truncated h5ad", "file"), ("json", "file"),
    ("no barcode", "barcode"), ("other names", "barcode"), ("repeated", "barcode"),
    ("rows", "img"), ("elsewhere", "coords")])
def test_broken_files_are_named(hest1k, how, field):
    broken(hest1k, how)
    with pytest.raises(InputError) as caught:
        hest.tiles(hest1k, read("hest", hest1k)["TENX1"])
    assert caught.value.field == field and "TENX1" in caught.value.where


@pytest.mark.parametrize(("value", "field"), [(0.5, "counts"), (-1, "counts"), (np.nan, "counts")])
def test_counts_that_are_not_raw(tmp_path, value, field):
    counts = np.ones((40, N_GENES))
    counts[3, 4] = value
    write_sample(tmp_path, "S1", counts=counts)
    write_csv(tmp_path, [{"id": "S1"}])
    with pytest.raises(InputError) as caught:
        read("hest", tmp_path)["S1"].adata  # noqa: B018
    assert caught.value.field == field


def changed(dataset, change):
    """Another array under the same name, with the attributes of the first."""
    def rewrite(stream):
        values, attrs = stream[dataset][()], dict(stream[dataset].attrs)
        del stream[dataset]
        stream[dataset] = change(values)
        stream[dataset].attrs.update(attrs)
    return rewrite


def stating(name, value):
    return lambda stream: stream["img"].attrs.__setitem__(name, value)


def declared(stream):
    """Patches of 150 GB, none of them stored."""
    attrs = dict(stream["img"].attrs)
    del stream["img"]
    stream.create_dataset("img", shape=(10**6, 224, 224, 3), dtype="u1",
                          chunks=(1, 224, 224, 3)).attrs.update(attrs)


@pytest.mark.parametrize(("change", "field"), [
    *((stating("pixel_size", value), "pixel_size")
      for value in (-1.0, 0.0, np.nan, np.inf, "x", "0,3", [0.3, 0.3], 1e9, 0.6)),
    *((stating("patch_size_src", value), "patch_size_src")
      for value in (-3, 0, np.nan, np.inf, 1e300, "wide")),
    (changed("img", lambda v: v / 255.0), "img"), (changed("img", lambda v: v[..., :2]), "img"),
    (changed("img", lambda v: v[:, :-1]), "img"), (changed("img", lambda v: v[0]), "img"),
    (changed("img", lambda v: v.astype(np.int32)), "img"),
    (changed("img", lambda v: v[:-1]), "img"), (changed("img", lambda v: v[:0]), "img"),
    (declared, "img"),
    (changed("coords", lambda v: np.where(v == v[0], np.inf, v)), "coords"),
    (changed("coords", lambda v: np.where(v == v[0], np.nan, v)), "coords"),
    (changed("coords", lambda v: v * 10**9), "coords"),
    (changed("coords", lambda v: v[:, :1]), "coords"),
    (changed("coords", lambda v: v.astype("S9")), "coords"),
    (changed("coords", lambda v: v[::-1].copy()), "coords"),  # of other spots
    (changed("barcode", lambda v: np.arange(len(v))), "barcode"),
    (changed("barcode", lambda v: np.where(v == v[0], b" ", v)), "barcode"),
    (changed("barcode", lambda v: np.where(v == v[0], b"\xff", v)), "barcode"),
    (lambda stream: [stream.pop("img"), stream.create_group("img")], "img"),
    (lambda stream: stream.__setitem__("img2", h5py.ExternalLink("other.h5", "/img")), "img2"),
])
def test_patches_that_cannot_be(tmp_path, change, field):
    write_sample(tmp_path, "S1", n=12, side=16, missing=2)
    write_csv(tmp_path, [{"id": "S1"}])
    assert len(hest.tiles(tmp_path, read("hest", tmp_path)["S1"])) == 10
    with h5py.File(tmp_path / "patches" / "S1.h5", "r+") as stream:
        change(stream)
    error = refused(lambda: hest.tiles(tmp_path, read("hest", tmp_path)["S1"]))
    assert error.field == field and error.where.endswith("S1.h5")


def pointed(dataset, at, value):
    def change(values):
        values[at] = value
        return values
    return changed(dataset, change)


@pytest.mark.parametrize(("change", "field"), [
    (pointed("X/indptr", 3, 2**30), "X"), (pointed("X/indptr", 3, -1), "X"),
    (pointed("X/indices", 3, 2**30), "X"), (pointed("X/indices", 3, -1), "X"),
    (pointed("X/data", 3, np.inf), "counts"), (pointed("X/data", slice(None), 0), "counts"),
    (changed("obsm/spatial", lambda v: np.full_like(v, np.nan)), 'obsm["spatial"]'),
    (changed("obsm/spatial", lambda v: v[:, :1]), 'obsm["spatial"]'),
    (changed("obsm/spatial", np.ones_like), 'obsm["spatial"]'),
    (changed("obsm/spatial", lambda v: v - 3000), "coords"),
    (pointed("obs/_index", 3, b" "), "barcode"), (pointed("var/_index", 3, b""), "gene"),
    (lambda stream: stream.pop("X"), "X"), (lambda stream: stream.pop("obsm"), 'obsm["spatial"]'),
    (lambda stream: [stream.pop("obs"), stream.__setitem__("obs", 1)], "file"),
    (lambda stream: [stream.pop("X"), stream.create_group("X")], "file"),
    (changed("X/data", lambda v: v.astype("S3")), "X"),
])
def test_counts_and_places_of_hest_that_cannot_be(tmp_path, change, field):
    write_sample(tmp_path, "S1", n=12, side=16)
    write_csv(tmp_path, [{"id": "S1"}])
    assert read("hest", tmp_path)["S1"].adata.n_obs == 12
    with h5py.File(tmp_path / "st" / "S1.h5ad", "r+") as stream:
        change(stream)
    assert refused(lambda: read("hest", tmp_path)["S1"].adata).field in (field, "file")


@pytest.mark.parametrize(("change", "field"), [
    (lambda t: t.assign(pixel_size_um_estimated="0,3"), "pixel_size_um_estimated"),
    (lambda t: t.assign(pixel_size_um_estimated=-1), "pixel_size_um_estimated"),
    (lambda t: t.assign(pixel_size_um_estimated="inf"), "pixel_size_um_estimated"),
    (lambda t: t.assign(pixel_size_um_estimated=1e6), "pixel_size_um_estimated of S1"),
    (lambda t: t.assign(fullres_px_width="wide"), "fullres_px_width"),
    (lambda t: t.drop(columns="patient"), "columns"), (lambda t: t.drop(columns="id"), "columns"),
    (lambda t: pd.concat([t, t]), "id"), (lambda t: pd.concat([t, t.assign(id="S1 ")]), "id"),
    (lambda t: t.assign(id=""), "id"), (lambda t: t.assign(patient="a/b"), "patient"),
    (lambda t: t.iloc[:0], "rows")])
def test_metadata_that_are_refused(tmp_path, change, field):
    write_sample(tmp_path, "S1", n=12, side=16)
    write_csv(tmp_path, [{"id": "S1"}])
    file = tmp_path / "HEST_v1_1_0.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)
    assert refused(read, "hest", tmp_path).field == field


@pytest.mark.parametrize("text", ["[]", "3", "", "{", '{"patient": ["a"]}', '{"patient": true}',
                                  "[" * 100_000, '{"pixel_size_um_estimated": [1]}', "\xff"])
def test_metadata_of_a_sample_that_are_refused(tmp_path, text):
    write_sample(tmp_path, "S1", n=12, side=16)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "S1.json").write_text(text, encoding="latin-1")
    assert "S1.json" in refused(read, "hest", tmp_path).where


def test_names_of_hest_are_text(tmp_path):
    for name in ("007", "151673"):
        write_sample(tmp_path, name, n=12, side=16)
    (tmp_path / "st" / "._007.h5ad").write_bytes(b"\0\5\x16\7")
    write_csv(tmp_path, [{"id": "007", "patient": "01 "}, {"id": "151673", "patient": "NA"}])
    found = read("hest", tmp_path)
    assert list(found.sections) == ["007", "151673"]
    assert found.patients == ["A study, 01", "A study, donor not stated"]
    for sections in ("007", [7]):
        assert refused(read, "hest", tmp_path, sections=sections).field == "sections"


@pytest.mark.parametrize("place", ["patches/S1.h5", "wsis/S1.tif", "metadata/S1.json",
                                   "st/S1.h5ad"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_links_that_lead_nowhere_are_no_absence(tmp_path, place, target):
    write_sample(tmp_path, "S1", n=12, side=16)
    write_csv(tmp_path, [{"id": "S1"}])
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(path if target == "itself" else tmp_path / "nowhere")
    assert refused(lambda: read("hest", tmp_path)["S1"].adata).where == str(path)


def test_doubled_symbols_are_told_apart_by_their_ids(tmp_path):
    """Two files list two genes of one symbol in two orders: a name is one gene in both."""
    counts = np.arange(12 * 3).reshape(12, 3) + 1
    for name, order in (("S1", [0, 1, 2]), ("S2", [2, 1, 0])):
        write_sample(tmp_path, name, n=12, patches=False, genes=["X", "Y", "X"],
                     counts=counts[:, order])
        stored = anndata.read_h5ad(tmp_path / "st" / f"{name}.h5ad")
        stored.var["gene_ids"] = np.array(["ENSG2", "ENSG3", "ENSG1"])[order]
        stored.write_h5ad(tmp_path / "st" / f"{name}.h5ad")
    first, second = (section.adata for section in read("hest", tmp_path))
    assert list(first.var_names) == ["X-1", "Y", "X"]
    assert list(second.var_names) == ["X", "Y", "X-1"]
    np.testing.assert_array_equal(first[:, ["X", "X-1"]].X.toarray(),
                                  second[:, ["X", "X-1"]].X.toarray())


@pytest.mark.parametrize("content", ['{"genes": "ACTB"}', '{"genes": []}', '{"genes": [1]}', "[]",
                                     '{"genes": ["A", ""]}', '{"genes": ["A", "A"]}', "{"])
def test_genes_of_a_task_are_a_list_of_names(tmp_path, content):
    (tmp_path / "var_50genes.json").write_text(content)
    assert refused(hest.bench_genes, tmp_path).field == "genes"


def test_real_metadata_against_pandas(shared):
    """Every row of HEST's table as pandas reads it; what its embedded scales are worth."""
    file = shared / "data" / "hest_metadata" / "HEST_v1_1_0.csv"
    rows, _ = metadata.read_metadata(file.parent, None)
    table = pd.read_csv(file)
    assert list(rows) == list(table["id"])
    for row in table.to_dict("records"):
        found = rows[row["id"]]
        sample = metadata.Sample(row["id"], file.parent, file, found, file)
        assert metadata.stated_number(sample, "pixel_size_um_estimated") == \
            row["pixel_size_um_estimated"]
        assert found["dataset_title"] == row["dataset_title"].strip()
        stated = isinstance(row["patient"], str) and row["patient"].strip()
        assert found.get("patient") == (row["patient"].strip() if stated else None)
        assert found["st_technology"] in hest.PITCH_UM or found["st_technology"] == "Visium HD"
    apart = (table["pixel_size_um_embedded"] / table["pixel_size_um_estimated"] - 1).abs() > 0.1
    assert (apart.sum(), table["pixel_size_um_embedded"].notna().sum()) == (198, 357)


@pytest.mark.parametrize(("options", "field"), [
    ({"include": "S"}, "include"), ({"include": "Z", "corrections": CORRECTIONS}, "include"),
    ({"include": "A", "corrections": CORRECTIONS}, "sections"), ({"sections": ["X"]}, "sections"),
    ({"unrecorded": "guess"}, "unrecorded"), ({"metadata": "nowhere.csv"}, "file"),
    ({"colour": 1}, "colour")])
def test_wrong_options(hest1k, options, field):
    with pytest.raises(InputError) as caught:
        read("hest", hest1k, **options)
    assert caught.value.field == field


def test_no_scale_and_no_samples(tmp_path):
    write_sample(tmp_path, "S1", attrs=False)
    with pytest.raises(InputError, match="metadata="):
        read("hest", tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="h5ad"):
        read("hest", empty)
    with pytest.raises(InputError, match="does not exist"):
        hest.tiles(empty, SimpleNamespace(name="S1"))


# ---- corrections


def test_the_table_of_corrections():
    table = hest.read_corrections(CORRECTIONS)
    assert len(table) == 64 and [int(table[name].sum()) for name in hest.MEMBERSHIPS] == [
        54, 54, 54, 54, 58, 8]
    default = table[table["S"] & table["duplicate_of"].isna()]
    assert len(default) == 57
    assert default["study"].value_counts().to_dict() == {
        "colon-map": 34, "crc-cms": 12, "crc-hd-atlas": 4, "cytassist-post-xenium": 4,
        "cytassist-11mm": 1, "crc-2020-section": 1, "intestine-cancer": 1}
    assert default["substudy"].nunique() == 8
    by_name = table.set_index("section")
    assert by_name.at["TENX128", "duplicate_of"] == "TENX155"
    for group in ("TENX156 TENX149", "TENX155 TENX128 TENX152 TENX148", "TENX154 TENX147",
                  "TENX28 TENX29", "TENX89 TENX90 TENX91 TENX92", "ZEN36 ZEN40", "ZEN48 ZEN49"):
        assert by_name.loc[group.split(), "specimen"].nunique() == 1, group
    assert set(table.loc[table["bench"], "section"]) == {
        name for group in splits.MVHYBRID_GROUPS for name in group}


def test_corrections_against_the_users_table(shared):
    """Membership by rule, studies by title and donors by subseries, from HEST's own csv."""
    rows = read_csv(shared / "data" / "hest_metadata" / "HEST_v1_1_0.csv").set_index("id")
    human = rows[(rows["species"] == "Homo sapiens")
                 & rows["oncotree_code"].isin(["COAD", "READ", "COADREAD"])]
    table = hest.read_corrections(CORRECTIONS).set_index("section")
    assert set(human.index) == set(table.index)
    human = human.loc[table.index]
    panel, xenium = human["nb_genes"] < 2000, human["st_technology"] == "Xenium"
    rules = {"S": ~panel & ~xenium, "A": ~table["bench"] & ~panel,
             "Aprime": ~table["bench"] & (human["oncotree_code"] != "COADREAD"),
             "B": ~panel & ~xenium & (human["spots_under_tissue"] >= 692),
             "C": ~panel & (human["st_technology"] == "Visium")}
    for name, rule in rules.items():
        assert (rule == table[name]).all(), name
    titles = human["dataset_title"]
    assert titles.nunique() == 11
    assert table.groupby(titles)["study"].nunique().max() == 1  # no title is cut in two
    joined = titles.groupby(table["study"]).nunique()
    assert dict(joined[joined > 1]) == {"crc-hd-atlas": 2, "crc-2020-section": 2}
    links = human["study_link"].groupby(table["substudy"]).nunique()
    assert (links <= 1).all()
    # A donor is never two patients of one dataset, where the csv can be believed.
    cms = table["study"] == "crc-cms"
    assert human.loc[cms, "patient"].groupby(table.loc[cms, "donor"]).nunique().max() == 1
    assert table.loc[cms, "donor"].nunique() == human.loc[cms, "patient"].nunique()


@pytest.fixture
def crc(tmp_path):
    """All 64 samples, tiny, with the csv's mistakes in the metadata."""
    table = hest.read_corrections(CORRECTIONS)
    for name in table["section"]:
        write_sample(tmp_path, name, n=12, side=8, missing=1, seed=1)
    write_csv(tmp_path, [{"id": name, "patient": "Patient 1"} for name in table["section"]])
    return tmp_path


def test_the_default_cohort(crc, caplog):
    caplog.set_level("INFO")
    cohort = read("hest", crc, corrections=CORRECTIONS, include="S")
    assert hest.label(cohort, "S") == "CRC-S (57)" and len(cohort.studies) == 7
    assert "TENX128 is left out: it duplicates TENX155" in caplog.text
    assert "CRC-S (57): 57 sections" in caplog.text and "colon-map 34, crc-cms 12" in caplog.text
    manifest = pd.DataFrame([{"section": s.name, "study": s.study, "patient": s.patient,
                              "specimen": s.specimen, "has_image": s.has_image, "n_spots": 12}
                             for s in cohort])
    folds = splits.make(manifest, "loso")
    sizes = splits.sizes(folds, manifest).set_index("fold")
    assert dict(sizes["test_sections"]) == {
        "colon-map": 34, "crc-cms": 12, "crc-hd-atlas": 4, "cytassist-post-xenium": 4,
        "cytassist-11mm": 1, "crc-2020-section": 1, "intestine-cancer": 1}
    assert (sizes["train_sections"] + sizes["test_sections"] == 57).all()
    assert (sizes["train_studies"] == 6).all() and (sizes["test_spots"] == 12
                                                    * sizes["test_sections"]).all()
    kept = read("hest", crc, corrections=CORRECTIONS, include="S", duplicates=True)
    assert len(kept) == 58 and kept["TENX128"].specimen == kept["TENX155"].specimen
    both = read("hest", crc, corrections=CORRECTIONS, include=["S", "bench"])
    assert len(both) == 61 and hest.label(both, ["S", "bench"]) == "CRC-S+bench (61)"


def test_colon_map_as_two_studies(crc):
    cohort = read("hest", crc, corrections=CORRECTIONS, include="S", substudies=True)
    assert len(cohort.studies) == 8
    manifest = pd.DataFrame([{"section": s.name, "study": s.study, "patient": s.patient,
                              "specimen": s.specimen} for s in cohort])
    with pytest.raises(InputError, match="on both sides") as caught:
        splits.make(manifest, "loso")  # donors as far as prefixes tell
    assert caught.value.field == "patient"
    folds = splits.make(manifest, "loso", shared_donors="leave_out")
    sizes = splits.sizes(folds, manifest).set_index("fold")
    assert sizes.loc["colon-map-2021", "test_sections"] == 2
    assert sizes.loc["colon-map-2021", "train_sections"] == 55 - 14  # without 7003_AS and 8899_AS
    assert sizes.loc["colon-map-2023", "train_sections"] == 57 - 32 - 2
    splits.check(folds, manifest, "patient")


def test_missing_samples_are_another_cohort(crc, caplog):
    (crc / "st" / "ZEN45.h5ad").unlink()
    cohort = read("hest", crc, corrections="params/hest_crc/samples.csv", include="S")
    assert hest.label(cohort, "S") == "CRC-S (56)"
    assert "1 of the 58 samples of S are not there, for example ['ZEN45']" in caplog.text


@pytest.mark.parametrize(("change", "field"), [
    ({"S": "2"}, "S"), ({"duplicate_of": "X9"}, "duplicate_of"), ({"donor": None}, "donor"),
    ({"duplicate_of": "b"}, "study")])
def test_broken_corrections(tmp_path, change, field):
    row = {"study": "x", "substudy": "x", "donor": "p", "specimen": "p", "S": "1",
           "duplicate_of": None, "note": None}
    table = pd.DataFrame([{"section": "a"} | row | change,
                          {"section": "b"} | row | {"study": "y"}])
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError) as caught:
        hest.read_corrections(tmp_path / "t.csv")
    assert caught.value.field == field


# ---- hest-bench

FOLDS = ({"train": ["B1", "B3"], "test": ["B2"]}, {"train": ["B2"], "test": ["B3", "B1"]})


def write_task(root, folds=FOLDS, names=("B1", "B2", "B3")):
    """A task whose expression follows random features, with strays in ``splits``."""
    rng = np.random.default_rng(5)
    width = 40
    beta = rng.standard_normal((width, N_GENES)) / 8
    for name in names:
        x = rng.standard_normal((40, width)).astype(np.float32)
        counts = rng.poisson(np.exp(x @ beta) * 3)
        barcodes, _, _ = write_sample(root, name, folder="adata", counts=counts, side=16)
        with h5py.File(root / "patches" / f"{name}.h5") as stream:
            label = [b.decode() for b in stream["barcode"][:, 0]]
            corners = stream["coords"][:]
        place = {b: i for i, b in enumerate(barcodes)}
        (root / "enc").mkdir(exist_ok=True)
        with h5py.File(root / "enc" / f"{name}.h5", "w") as stream:  # HEST's embedding files
            stream["embeddings"] = np.stack([x[place[b]] if b in place else np.zeros(width)
                                             for b in label]).astype(np.float32)
            stream["coords"] = corners
            stream["barcodes"] = np.array([b.encode() for b in label]).reshape(-1, 1)
    (root / "splits").mkdir()
    for number, halves in enumerate(folds):
        for side, samples in halves.items():
            pd.DataFrame({"sample_id": samples,
                          "patches_path": [f"patches/{n}.h5" for n in samples],
                          "expr_path": [f"adata/{n}.h5ad" for n in samples]}).to_csv(
                root / "splits" / f"{side}_{number}.csv", index=False)
    (root / "splits" / "train_0.json").write_text("{}")
    (root / "splits" / "test_0 (copy).csv").write_text("sample_id\n")
    (root / "var_50genes.json").write_text(json.dumps({"genes": GENES[3:53]}))
    write_csv(root, [{"id": name, "patient": f"P{name}"} for name in names])


def transcription(root):
    """The benchmark by its description, from its files, in scikit-learn: fold -> r per gene."""
    genes = json.loads((root / "var_50genes.json").read_text())["genes"]

    def load(samples):
        x, y = [], []
        for name in samples:
            with h5py.File(root / "enc" / f"{name}.h5") as stream:
                barcodes = [b.decode() for b in stream["barcodes"][:, 0]]
                values = stream["embeddings"][:]
            adata = anndata.read_h5ad(root / "adata" / f"{name}.h5ad")
            keep = [b in adata.obs_names for b in barcodes]  # one patch has no spot
            x.append(values[keep])
            rows = adata[[b for b, k in zip(barcodes, keep, strict=True) if k], genes]
            y.append(np.log1p(rows.X.toarray().astype(np.float64)))
        return np.concatenate(x), np.concatenate(y)

    found = {}
    for number in range(2):
        x_train, y_train = load(pd.read_csv(root / "splits" / f"train_{number}.csv")["sample_id"])
        x_test, y_test = load(pd.read_csv(root / "splits" / f"test_{number}.csv")["sample_id"])
        reduce = Pipeline([("scale", StandardScaler()),
                           ("pca", PCA(min(256, *x_train.shape), random_state=1))])
        z_train = reduce.fit_transform(x_train).astype(np.float32).astype(np.float64)  # of tensors
        z_test = reduce.transform(x_test).astype(np.float32).astype(np.float64)
        model = Ridge(solver="lsqr", alpha=100 / (z_train.shape[1] * y_train.shape[1]),
                      random_state=0, fit_intercept=False, max_iter=1000, tol=1e-4)
        predicted = model.fit(z_train, y_train).predict(z_test)
        found[str(number)] = [pearsonr(y_test[:, g], predicted[:, g])[0]
                              for g in range(len(genes))]
    return genes, found


@pytest.fixture
def task(tmp_path):
    write_task(tmp_path)
    return tmp_path


def test_hest_bench_equals_a_transcription(task):
    cohort = read("hest", task)
    features = {s.name: read_features(task / "enc" / f"{s.name}.h5") for s in cohort}
    given = hest.bench_folds(task)
    panels = evaluation.choose_panels(cohort, ["hest_bench"], ["hvg"], 7, given=given,
                                      benchmark_genes=hest.bench_genes(task))
    jobs, left_out = evaluation.jobs(cohort.manifest, ["hest_bench"], {"enc": None}, given=given)
    assert left_out.empty and set(panels["panel"]) == {"hest_var"}
    result = evaluation.evaluate(jobs[0], cohort, features, panels, controls=["none"])
    genes, expected = transcription(task)
    assert len(genes) == 50 and set(expected) == {"0", "1"}
    pooled = result.pooled[result.pooled["scope"] == "fold"]
    # The smallest components are rounding, and differ between processors.
    for fold, values in expected.items():
        own = pooled[pooled["fold"] == fold].set_index("gene")
        np.testing.assert_allclose(own.loc[genes, "pcc_pooled"], values, rtol=0, atol=1e-7)
    table = protocols.benchmark_table(result.pooled).iloc[0]
    means = [np.mean(values) for values in expected.values()]
    assert table["pearson_mean"] == pytest.approx(np.mean(means), abs=1e-7)
    assert table["pearson_std"] == pytest.approx(np.std(means), abs=1e-7)  # of the population
    assert table["n_folds"] == 2 and table["pearson_mean"] > 0.2
    assert result.method == "hest_ridge" and "genes selected with test samples" in result.notes[0]
    # Components: the width of the features, and the 35 training spots of the second fold.
    assert list(result.penalties["alpha"]) == [100 / (40 * 50), 100 / (35 * 50)]


def test_stray_files_in_splits(task, caplog):
    caplog.set_level("INFO")
    folds = hest.bench_folds(task)
    assert folds.values.tolist() == [
        ["0", "B1", "train"], ["0", "B3", "train"], ["0", "B2", "test"],
        ["1", "B2", "train"], ["1", "B3", "test"], ["1", "B1", "test"]]
    assert caplog.text.count("is skipped") == 2


def test_splits_that_do_not_hold(task):
    (task / "splits" / "test_1.csv").rename(task / "splits" / "test_1.bak")
    with pytest.raises(InputError, match="test_1.csv"):
        hest.bench_folds(task)
    pd.DataFrame({"sample_id": ["B2"]}).to_csv(task / "splits" / "test_1.csv", index=False)
    with pytest.raises(InputError, match="both sides"):
        hest.bench_folds(task)
    pd.DataFrame({"sample": ["B2"]}).to_csv(task / "splits" / "test_1.csv", index=False)
    with pytest.raises(InputError, match="sample_id"):
        hest.bench_folds(task)
    with pytest.raises(InputError, match="test_<i>"):
        hest.bench_folds(task / "adata")
    with pytest.raises(InputError, match="does not exist"):
        hest.bench_genes(task, "mean_50genes")


def test_a_task_that_separates_a_patient_is_refused(task):
    """B1 and B2 of one donor: the task's own split is not believed against the metadata."""
    write_csv(task, [{"id": "B1"}, {"id": "B2"}, {"id": "B3", "patient": "other"}])
    cohort = read("hest", task)
    with pytest.raises(InputError) as caught:
        splits.make(cohort.manifest, "hest_bench", given=hest.bench_folds(task))
    assert caught.value.field == "patient"


def test_several_tasks_at_once(tmp_path):
    for name, samples in (("COAD", ["TENX111", "TENX147", "TENX148", "TENX149"]),
                          ("READ", ["ZEN36", "ZEN40", "ZEN48", "ZEN49"])):
        for sample in samples:
            write_sample(tmp_path / name, sample, folder="adata", n=24, side=8,
                         controls=CONTROLS if name == "COAD" else ())
    cohort = read("hest", tmp_path, corrections=CORRECTIONS, include="bench")
    assert len(cohort) == 8 and hest.label(cohort, "bench") == "CRC-bench (8)"
    assert len(hest.tiles(tmp_path, cohort["ZEN36"])) == 19
    folds = splits.make(cohort.manifest, "mvhybrid_bench")
    tested = folds[folds["role"] == "test"].groupby("fold")["section"].apply(set)
    assert list(tested) == [{"TENX147", "TENX148", "TENX149"}, {"TENX111"}, {"ZEN36", "ZEN40"},
                            {"ZEN48", "ZEN49"}]
    panels = evaluation.choose_panels(cohort, ["mvhybrid_bench"], ["hvg"], 5)
    assert panels.groupby("fold").size().tolist() == [50] * 4
    assert panels.groupby("rank")["gene"].nunique().max() == 1  # one list, of all samples
    rng = np.random.default_rng(0)
    features = {s.name: Features(rng.standard_normal((24, 6)).astype(np.float32),
                                 np.zeros((24, 2), np.int64), list(s.adata.obs_names), {"mpp": 0.5})
                for s in cohort}
    jobs, _ = evaluation.jobs(cohort.manifest, ["mvhybrid_bench"], {"e": None})
    result = evaluation.evaluate(jobs[0], cohort, features, panels, controls=["none"])
    assert "genes selected with test samples" in result.notes[0]
    assert "genes selected with test samples" in evaluation.remarks(result.summary)
    with pytest.raises(InputError, match="ZEN49"):
        splits.make(cohort.manifest.query("section != 'ZEN49'"), "mvhybrid_bench")


# ---- genes


def test_k_genes_by_hand():
    """Two samples, so few genes that the selection can be written down."""
    rng = np.random.default_rng(3)
    base_rate = rng.uniform(1, 4, 30)
    parts = []
    for n in (50, 80):
        counts = rng.poisson(np.tile(base_rate, (n, 1)))
        counts[:, 0] = rng.poisson(base_rate[0] * rng.gamma(0.3, 1 / 0.3, n))  # overdispersed
        counts[:, 1] = 0
        counts[:4, 1] = 5  # found in 8 and 5 % of spots
        adata = anndata.AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]),
                                var=pd.DataFrame(index=[*(f"g{i:02d}" for i in range(28)),
                                                        "BLANK_01", "XControlY"]))
        adata.layers["counts"] = sparse.csr_matrix(counts)
        parts.append(adata)
    second = parts[1][:, ::-1].copy()  # another order and one gene less
    second = second[:, second.var_names != "g05"].copy()
    found = hest.k_genes([parts[0], second], 40)
    assert set(found) == {f"g{i:02d}" for i in range(28)} - {"g01", "g05"}
    by_mean = hest.k_genes([parts[0], second], 3, "mean")
    stacked = np.concatenate([parts[0].layers["counts"].toarray(),
                              parts[1].layers["counts"].toarray()])[:, :28].astype(float)
    stacked[:, [1, 5]] = 0
    assert by_mean == [f"g{i:02d}" for i in np.argsort(-stacked.mean(axis=0))[:3]]
    assert "g00" in hest.k_genes([parts[0], second], 3)
    assert hest.k_genes([parts[0], second], 40, available=["g02", "g07"]) in (
        ["g02", "g07"], ["g07", "g02"])
    with pytest.raises(InputError, match="lower min_spots"):
        hest.k_genes([parts[0], second], available=["g01"])


def test_k_genes_are_scanpys():
    """The chosen set is the one that scanpy's own selection flags on the stacked counts."""
    import scanpy as sc

    rng = np.random.default_rng(8)
    rate = rng.gamma(1.0, 3.0, 200) + 0.5
    adatas = []
    for n in (60, 90):
        adata = anndata.AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]),
                                var=pd.DataFrame(index=[f"g{i:03d}" for i in range(200)]))
        adata.layers["counts"] = sparse.csr_matrix(
            rng.poisson(rate * rng.gamma(1.5, 1 / 1.5, (n, 200))).astype(np.float32))
        adatas.append(adata)
    found = hest.k_genes(adatas, 50)
    common = [g for i, g in enumerate(adatas[0].var_names) if all(
        (a.layers["counts"][:, i] > 0).sum() >= np.ceil(0.1 * a.n_obs) for a in adatas)]
    counts = sparse.vstack([a[:, common].layers["counts"] for a in adatas]).tocsr()
    stacked = anndata.AnnData(counts, var=pd.DataFrame(index=common))
    sc.pp.log1p(stacked)
    sc.pp.highly_variable_genes(stacked, n_top_genes=50)
    assert set(found) == set(stacked.var_names[stacked.var["highly_variable"]])


def test_hest_var_sees_training_sections_only_elsewhere(task):
    """Changing a test section's counts changes no panel of a protocol that does not peek."""
    cohort = read("hest", task)
    manifest = cohort.manifest
    first = evaluation.choose_panels(cohort, ["patient", "hest_bench"], ["hest_var"], 20)
    one = cohort["B1"].adata
    one.layers["counts"] = one.layers["counts"].multiply(
        np.linspace(1, 40, one.n_vars).astype(int)[None, ::-1]).tocsr()
    cohort.manifest = manifest
    second = evaluation.choose_panels(cohort, ["patient", "hest_bench"], ["hest_var"], 20)

    def genes(table, protocol, fold):
        return list(table.query("protocol == @protocol and fold == @fold")["gene"])

    held_out = cohort["B1"].patient
    assert genes(first, "patient", held_out) == genes(second, "patient", held_out)
    assert genes(first, "hest_bench", held_out) != genes(second, "hest_bench", held_out)


# ---- resolution, hub


def test_resolution_is_what_all_sections_share():
    def made(**attrs):
        return Features(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int64), ["a"], attrs)

    assert evaluation.resolution({"a": made(mpp=0.4999), "b": made(mpp=0.5006)}) == 0.4999
    assert evaluation.resolution({"a": made(mpp=0.5, working_mpp=0.75),
                                  "b": made(mpp=0.4, working_mpp=0.75)}) == 0.75
    assert evaluation.resolution({"a": made(mpp=0.5), "b": made(mpp=0.7)}) is None
    assert evaluation.resolution({"a": made(), "b": made(mpp=0.7)}) is None


def test_fetch_asks_for_what_was_named(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(
        snapshot_download=lambda **options: asked.update(options)))
    assert hest.fetch(tmp_path, ["TENX1"], revision="abc") == tmp_path
    assert (asked["repo_id"], asked["repo_type"], asked["revision"]) == (
        "MahmoodLab/hest", "dataset", "abc")
    assert "st/TENX1.*" in asked["allow_patterns"] and "HEST_v*.csv" in asked["allow_patterns"]
    assert not any("wsis" in pattern or "TENX11" in pattern for pattern in asked["allow_patterns"])
    hest.fetch(tmp_path, ["Z1"], repository="hest-bench", parts=["adata"])
    assert "*/adata/Z1.*" in asked["allow_patterns"] and "*/splits/*.csv" in asked["allow_patterns"]

    def refuse(**options):
        raise RuntimeError("403 gated")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=refuse))
    with pytest.raises(InputError, match="gated"):
        hest.fetch(tmp_path, ["TENX1"])
    with pytest.raises(InputError, match="name what to fetch"):
        hest.fetch(tmp_path, [])


def test_fetch_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        hest.fetch(tmp_path, ["TENX1"])


def test_hests_own_code_reads_our_tiles_batch_by_batch(tmp_path):
    """What HEST's package does before it embeds: batches of pixels and names of one type."""
    datasets = pytest.importorskip("hestcore.datasets", reason="needs hestcore and its opencv")
    rng = np.random.default_rng(0)
    slide = Slide.from_array(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8), mpp=0.5)
    tiles = cut_spots(slide, rng.uniform(0, 400, (11, 2)), tile_um=32, tile_px=32)
    names = [f"{n + 1}x{9 + n % 3}" for n in range(11)]
    write_tiles(tmp_path / "a.h5", tiles, names, layout="hest")
    read = datasets.H5HESTDataset(str(tmp_path / "a.h5"), chunk_size=4)
    batches = [read[number] for number in range(len(read))]
    np.testing.assert_array_equal(np.concatenate([b["imgs"] for b in batches]), tiles.img)
    np.testing.assert_array_equal(np.concatenate([b["coords"] for b in batches]), tiles.coords)
    kinds = {np.array(batch["barcodes"]).dtype for batch in batches}
    assert len(kinds) == 1  # its writer appends batches, and asserts this
    assert [name.decode() for batch in batches for name in batch["barcodes"]] == [
        f"{n + 1:03d}x{9 + n % 3:03d}" for n in range(11)]
