"""The synthetic cohort: what it promises about causes is checked against its pixels and counts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mvhlib.artifacts import InputError, sha256_file, sha256_of
from mvhlib.cohort import synthetic
from mvhlib.cohort.base import read_section, write_section

SMALL = dict(n_studies=3, patients_per_study=1, sections_per_patient=1, spots_per_side=5)


def tiles_of(section, folder) -> np.ndarray:
    pixels = np.asarray(Image.open(folder / "images" / f"{section.name}.png"))
    corners = (section.adata.obsm["spatial"] - 32).astype(int)
    return np.stack([pixels[y:y + 64, x:x + 64] for x, y in corners])


def histogram_features(tiles: np.ndarray) -> np.ndarray:
    """Per channel: moments of intensity and of optical density, quantiles. No pixel's place."""
    light = tiles.reshape(len(tiles), -1, 3) / 255.0
    density = -np.log(light + 1 / 255)
    quantiles = np.quantile(light, [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98], axis=1)
    return np.concatenate([light.mean(1), light.std(1), density.mean(1), density.std(1),
                           quantiles.transpose(1, 0, 2).reshape(len(tiles), -1)], 1)


def band_features(tiles: np.ndarray) -> np.ndarray:
    """Energy by cycles per tile along and across, written without the generator's masks."""
    density = -np.log((tiles + 1.0) / 256).mean(-1)
    power = np.abs(np.fft.fft2(density - density.mean((1, 2), keepdims=True))) ** 2
    fy, fx = np.meshgrid(*2 * [np.abs(np.fft.fftfreq(64) * 64)], indexing="ij")
    columns = []
    for low, high in ((0.5, 2), (4, 8), (16, 32)):
        for first, second in ((fx, fy), (fy, fx)):
            keep = (np.hypot(fx, fy) >= low) & (np.hypot(fx, fy) <= high) & (second < first / 2)
            columns.append(np.log(power[:, keep].sum(1) + 1e-3))
    return np.stack(columns, 1)


def edge_features(tiles: np.ndarray) -> np.ndarray:
    """Mean absolute slope along and across at four scales, per channel."""
    from scipy.ndimage import gaussian_filter

    density = -np.log((tiles + 1.0) / 256)
    columns = []
    for width in (0.01, 1.0, 2.0, 4.0):
        smooth = gaussian_filter(density, (0, width, width, 0))
        columns += [np.abs(np.diff(smooth, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    return np.concatenate(columns, 1)


def ridge(x, y, train, test, penalty=1e-3):
    centre, scale = x[train].mean(0), x[train].std(0) + 1e-9
    a, b = (x[train] - centre) / scale, (x[test] - centre) / scale
    gram = a.T @ a + penalty * len(a) * np.eye(a.shape[1])
    return b @ np.linalg.solve(gram, a.T @ (y[train] - y[train].mean(0))) + y[train].mean(0)


def pearson(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


def scores(cohort, features, held_out) -> np.ndarray:
    """PCC per section and gene `(sections, G)`; `held_out` gives each section's fold."""
    sections = list(cohort)
    group = np.repeat(np.arange(len(sections)), [s.adata.n_obs for s in sections])
    counts = np.concatenate([s.adata.layers["counts"].toarray() for s in sections])
    y = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    x = np.concatenate(features)
    fold = np.asarray(held_out)[group]
    predicted = np.empty_like(y)
    for value in np.unique(fold):
        predicted[fold == value] = ridge(x, y, fold != value, fold == value)
    return np.stack([pearson(predicted[group == k], y[group == k])
                     for k in range(len(sections))])


def by_patient(values: np.ndarray, cohort) -> np.ndarray:
    patient = np.array([section.patient for section in cohort])
    return np.stack([values[patient == name].mean(0) for name in np.unique(patient)])


def interval(values: np.ndarray) -> tuple[float, float]:
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


def truth_of(section, folder):
    import anndata

    return anndata.read_h5ad(folder / "truth" / f"{section.name}.h5ad")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    cohort = synthetic.make_cohort(folder, seed=0, sections_per_patient=1, spots_per_side=10)
    return cohort, folder, [tiles_of(section, folder) for section in cohort]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return synthetic.make_cohort(folder, seed=3, **SMALL), folder


def test_equal_parameters_give_equal_bytes_in_any_folder(small, tmp_path):
    cohort, folder = small
    again = synthetic.read(tmp_path, seed=3, **SMALL)
    other = synthetic.read(tmp_path / "other", seed=4, **SMALL)
    assert list(cohort.sections) == list(again.sections) == ["S1P1A", "S2P1A", "S3P1A"]
    for name in cohort.sections:
        image = f"images/{name}.png"
        assert sha256_file(folder / image) == sha256_file(tmp_path / image)
        assert sha256_file(folder / image) != sha256_file(tmp_path / "other" / image)
        counts = [sha256_of(c[name].adata.layers["counts"].toarray())
                  for c in (cohort, again, other)]
        assert counts[0] == counts[1] != counts[2]
        np.testing.assert_array_equal(*(truth_of(c[name], place).layers["rate"]
                                        for c, place in ((cohort, folder), (again, tmp_path))))


def test_strength_changes_the_laboratory_and_no_draw(small, tmp_path):
    cohort, folder = small
    none = synthetic.make_cohort(tmp_path, seed=3, **SMALL, stain_strength=0.0, blur_strength=0.0,
                                 tone_strength=0.0)
    looks = []
    for section in none:
        np.testing.assert_array_equal(section.adata.layers["counts"].toarray(),
                                      cohort[section.name].adata.layers["counts"].toarray())
        record = section.adata.uns["synthetic"]
        looks.append((*record["stain_gains"], *record["stain_vectors"].ravel(), record["blur_um"],
                      record["haze"], record["tone_curve"]))
        image = f"images/{section.name}.png"
        assert sha256_file(tmp_path / image) != sha256_file(folder / image)
    assert len(set(looks)) == 1 and looks[0][:2] == (1.0, 1.0)


def test_truth_is_what_the_counts_were_drawn_from(demo):
    cohort, folder, _ = demo
    programs = next(iter(cohort)).adata.var["program"].to_numpy()
    assert list(dict.fromkeys(programs)) == list(synthetic.PROGRAMS)
    noise, offset = programs == "noise", programs == "study_offset"
    assert noise.sum() >= 20
    log_noise, residuals = [], []
    for section in cohort:
        truth = truth_of(section, folder)
        rate = truth.layers["rate"].astype(float)
        np.testing.assert_allclose(np.exp(rate).sum(1), 1, rtol=1e-5)
        assert np.ptp(rate[:, offset], 0).max() < 1e-5
        log_noise.append(rate[:, noise])
        mean = np.exp(rate) * truth.obs["library"].to_numpy()[:, None]
        counts = section.adata.layers["counts"].toarray()
        residuals.append((counts - mean) / np.sqrt(mean + 0.15 * mean**2))
        np.testing.assert_array_equal(truth.obs_names, section.adata.obs_names)
        shares = truth.obs[[f"cause_{name}" for name in synthetic.CLASSES]].sum(1)
        np.testing.assert_allclose(shares, truth.obs["tissue"])
    # noise genes have one rate everywhere, whatever their neighbours in the library do
    assert np.ptp(np.concatenate(log_noise), 0).max() < 1e-5
    residuals = np.concatenate(residuals)
    assert abs(residuals.mean()) < 0.01 and abs(residuals.var() - 1) < 0.03


def test_offset_differs_between_studies_and_artefact_changes_sign(demo):
    cohort, _, _ = demo
    record = pd.DataFrame([{"study": s.study, "patient": s.patient,
                            **{key: s.adata.uns["synthetic"][key]
                               for key in ("study_offset", "artefact_sign")}} for s in cohort])
    per_study = record.groupby("study").agg(list)
    assert per_study.study_offset.map(lambda v: len(set(v))).eq(1).all()
    assert sorted(v[0] for v in per_study.artefact_sign) == 4 * [-1.0] + 4 * [1.0]
    assert sorted(v[0] for v in per_study.study_offset) == 4 * [-1.0] + 4 * [1.0]


@pytest.mark.parametrize("n", [2, 4, 8, 11])
def test_studies_are_equally_far_from_the_middle(n):
    signs, offsets, scores = synthetic.laboratory.plan_studies(np.random.default_rng(n), n)
    np.testing.assert_allclose((scores**2).sum(1), 5)
    assert abs(signs.sum()) <= 1
    if n == 8:
        assert abs(signs @ offsets) == 0
        gap = np.linalg.norm(scores[:, None] - scores[None], axis=-1)[~np.eye(n, dtype=bool)]
        assert gap.min() > 1.5


def test_texture_hides_its_band_from_mean_and_histogram():
    rng = np.random.default_rng(0)
    contrast = np.full((6, 6, 6), 0.1)
    for index in range(6):
        contrast[index, :, index] = np.sqrt(1 - 5 * 0.01)
    for blur in (0.3, 1.2):
        texture = synthetic.texture.draw_texture(rng, 6, 64, contrast, np.full((6, 6), blur))
        tiles = texture.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)
        ordered = np.sort(tiles.reshape(36, -1), 1)
        np.testing.assert_array_equal(ordered, np.broadcast_to(ordered[0], ordered.shape))
        assert abs(ordered[0].mean()) < 1e-12 and abs(ordered[0].std() - 1) < 1e-12
    sharp = synthetic.texture.draw_texture(rng, 6, 64, contrast, np.full((6, 6), 0.01))
    tiles = sharp.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)
    # the band that was given the contrast holds the most energy, in every tile
    energy = band_features(255 * np.exp(-0.2 * tiles[..., None] - 1).repeat(3, -1))
    share = energy - energy.mean(0)
    np.testing.assert_array_equal(share.argmax(1), np.repeat(np.arange(6), 6))


def test_mean_and_histogram_do_not_see_frequency_programs_and_band_energy_does(demo):
    cohort, folder, tiles = demo
    programs = next(iter(cohort)).adata.var["program"].to_numpy()
    study = [section.study for section in cohort]
    nuclei = [truth_of(s, folder).obs[["nuclei"]].to_numpy(float) for s in cohort]
    flat = [np.hstack([histogram_features(t), n]) for t, n in zip(tiles, nuclei, strict=True)]
    bands = [np.hstack([f, band_features(t), edge_features(t)])
             for f, t in zip(flat, tiles, strict=True)]
    blind, seeing = scores(cohort, flat, study), scores(cohort, bands, study)
    every = np.isin(programs, synthetic.FREQUENCY_PROGRAMS)
    low, high = interval(by_patient(blind[:, every].mean(1), cohort))
    assert low <= 0 <= high
    for program in synthetic.FREQUENCY_PROGRAMS:
        genes = programs == program
        low, high = interval(by_patient(blind[:, genes].mean(1), cohort))
        assert low <= 0 <= high or abs(blind[:, genes].mean()) < 0.05, program
        assert seeing[:, genes].mean() > 0.3, program


def test_tissue_class_is_predicted_and_noise_is_not(demo):
    cohort, _, tiles = demo
    programs = next(iter(cohort)).adata.var["program"].to_numpy()
    features = [np.hstack([histogram_features(t), band_features(t)]) for t in tiles]
    pcc = scores(cohort, features, [section.study for section in cohort])
    assert pcc[:, np.isin(programs, synthetic.CLASSES)].mean() >= 0.4
    assert pcc[:, programs == "density"].mean() >= 0.4
    # The study's offset has no place inside a section, and noise none at all.
    assert abs(pcc[:, programs == "study_offset"].mean()) < 0.03


def test_noise_genes_are_noise_in_studies_that_no_training_saw(demo):
    """One half of the studies predicts the other.

    Not cross-validation: there, what two sections share by chance counts twice (each is trained
    on for the other), the mean's error is sqrt(2) times what patients' scatter says, and an
    interval of nominal 95 % covers zero in about 86 % of causeless genes.
    """
    cohort, _, tiles = demo
    noise = (next(iter(cohort)).adata.var["program"] == "noise").to_numpy()
    features = [np.hstack([histogram_features(t), band_features(t)]) for t in tiles]
    half = np.array([section.study in ("S1", "S2", "S3", "S4") for section in cohort])
    pcc = scores(cohort, features, half)[half][:, noise][:, :20]
    low, high = interval(by_patient(pcc, [s for s, h in zip(cohort, half, strict=True) if h]))
    assert ((low <= 0) & (high >= 0)).sum() >= 18


@pytest.mark.slow
def test_drop_is_absent_at_strength_0_and_grows(tmp_path):
    drops, artefact = {}, {}
    for strength in (0.0, 1.0, 2.0):
        folder = tmp_path / f"{strength:g}"
        cohort = synthetic.make_cohort(folder, seed=0, stain_strength=strength,
                                       blur_strength=strength, tone_strength=strength)
        features = []
        for section in cohort:
            tiles = tiles_of(section, folder)
            features.append(np.hstack([histogram_features(tiles), band_features(tiles),
                                       edge_features(tiles)]))
        programs = next(iter(cohort)).adata.var["program"].to_numpy()
        order = np.random.default_rng(0).permutation(len(cohort))
        random = scores(cohort, features, order % 10)
        loso = scores(cohort, features, [section.study for section in cohort])
        caused = np.isin(programs, (*synthetic.CLASSES, "density", *synthetic.FREQUENCY_PROGRAMS))
        drops[strength] = by_patient((random - loso)[:, caused].mean(1), cohort)
        artefact[strength] = [by_patient(s[:, programs == "artefact"].mean(1), cohort)
                              for s in (random, loso)]
    assert abs(drops[0.0].mean()) < 0.005
    assert interval(drops[1.0])[0] > 0
    assert drops[2.0].mean() > 1.3 * drops[1.0].mean()
    assert interval(artefact[1.0][0])[0] > 0
    assert interval(artefact[1.0][1])[0] <= 0


def test_roles_share_no_name_and_no_tissue(small, tmp_path):
    cohort, folder = small
    other = synthetic.make_cohort(tmp_path, seed=3, role="pretraining", **SMALL)
    for names in ("studies", "patients"):
        assert not set(getattr(cohort, names)) & set(getattr(other, names))
    assert not set(cohort.sections) & set(other.sections)
    assert not {sha256_file(p) for p in (folder / "images").iterdir()} & {
        sha256_file(p) for p in (tmp_path / "images").iterdir()}


def test_sections_survive_the_cohort_folder(small):
    cohort, folder = small
    section = cohort["S2P1A"]
    again = read_section(write_section(section, folder))
    assert (again.study, again.patient, again.mpp) == ("S2", "S2P1", section.mpp)
    np.testing.assert_array_equal(again.adata.layers["counts"].toarray(),
                                  section.adata.layers["counts"].toarray())
    with again.slide as slide:
        assert (slide.width, slide.height) == section.image_size
        pixels, outside = slide.region(0, 0, 64, 64)
    stored = np.asarray(Image.open(folder / "images" / "S2P1A.png"))
    np.testing.assert_array_equal(pixels, stored[:64, :64])
    assert outside == 0
    assert cohort.manifest["has_image"].all()
    assert not any(column.startswith("cause") for column in again.adata.obs)


@pytest.mark.parametrize("option, value", [
    ("version", "0"), ("role", "test"), ("n_studies", 0), ("tile_px", 32), ("mpp", -1.0),
    ("stain_strength", -0.1), ("n_genes_per_program", 1), ("spots_per_side", 2), ("colour", 1)])
def test_bad_options_are_named_before_anything_is_written(tmp_path, option, value):
    with pytest.raises(InputError, match=option):
        synthetic.read(tmp_path / "out", **{option: value})
    assert not (tmp_path / "out").exists()


def test_heavier_stain_multiplies_optical_density():
    """Beer-Lambert: doubling both gains doubles the density of every pixel above the blank."""
    rng = np.random.default_rng(1)
    labels = synthetic.tissue.draw_labels(rng, (128, 128), 1.5625, np.zeros(4))
    layout = synthetic.tissue.lay_out(rng, labels, 1.5625, np.ones((128, 128)))
    look = synthetic.laboratory.Appearance(gains=(0.5, 0.5))
    thin, thick = (-np.log(synthetic.laboratory.expose(layout, 0.0, look_, 1.5625) / 255.0) - 0.03
                   for look_ in (look, replace(look, gains=(1.0, 1.0))))
    tissue = thin > 0.15
    assert tissue.mean() > 0.1
    np.testing.assert_allclose(np.median(thick[tissue] / thin[tissue]), 2, atol=0.02)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return synthetic.make_slide_cohort(folder, seed=0, n_patients=300, tiles_per_slide=16,
                                       tile_px=24), folder


def test_slide_cohort_has_events_hazards_and_planted_tiles(slides):
    from lifelines.utils import concordance_index

    table, folder = slides
    truth = pd.read_csv(folder / "tiles_truth.csv")
    assert table["patient"].is_unique and table["site"].nunique() == 8
    for suffix in ("", "_spread"):
        assert 0.35 <= table[f"event{suffix}"].mean() <= 0.45
        assert (table[f"time_months{suffix}"] > 0).all()
        assert concordance_index(table[f"time_months{suffix}"], -table[f"log_hazard{suffix}"],
                                 table[f"event{suffix}"]) > 0.65
    planted = truth.groupby("slide")["planted"].sum().loc[table["slide"]].to_numpy()
    np.testing.assert_array_equal(planted > 0, table["label"] == "MSI")
    # equal means, given spread: what the second hazard needs
    plain = truth[(truth["tissue_class"] == "tumour") & (truth["planted"] == 0)]
    grade = plain.groupby("slide")["grade"].agg(["mean", lambda v: v.std(ddof=0)])
    grade = grade.loc[table["slide"]].to_numpy()
    assert abs(grade[:, 0]).max() < 1e-6
    np.testing.assert_allclose(grade[:, 1], table["grade_spread"], rtol=1e-6)
    shares = truth["tissue_class"].eq("tumour").groupby(truth["slide"]).mean()
    np.testing.assert_allclose(shares.loc[table["slide"]], table["share_tumour"])


@pytest.mark.slow
def test_pixels_of_a_bag_carry_the_spread_and_the_bags_repeat(slides, tmp_path):
    from mvhlib.tiles.store import read_tiles

    table, folder = slides
    truth = pd.read_csv(folder / "tiles_truth.csv").groupby("slide")
    darkness, spread = [], []
    for name in table["slide"][:80]:
        tiles = read_tiles(folder / "tiles" / f"{name}.h5")
        rows = truth.get_group(name)
        assert list(rows["barcode"]) == list(tiles.barcodes)
        tumour = ((rows["tissue_class"] == "tumour") & (rows["planted"] == 0)).to_numpy()
        red = -np.log((tiles.img[tumour][..., 0] + 1.0) / 256).mean((1, 2))
        darkness.append(pearson(red, rows["grade"].to_numpy()[tumour]))
        spread.append(red.std() / red.mean())
    assert np.mean(darkness) > 0.3
    assert pearson(np.array(spread), table["grade_spread"].to_numpy()[:80]) > 0.4

    # the draws of a slide do not depend on how many slides there are
    first, second = (synthetic.make_slide_cohort(tmp_path / name, seed=0, n_patients=20,
                                                 tiles_per_slide=16, tile_px=24)
                     for name in "ab")
    pd.testing.assert_frame_equal(first, second)
    for name in first["slide"]:
        one, two = (read_tiles(tmp_path / place / "tiles" / f"{name}.h5") for place in "ab")
        np.testing.assert_array_equal(one.img, two.img)


def test_slide_cohort_refuses_what_it_cannot_make(tmp_path):
    for option in ({"n_patients": 3}, {"tiles_per_slide": 4}, {"event_rate": 1.0},
                   {"version": "7"}):
        with pytest.raises(InputError, match=next(iter(option))):
            synthetic.make_slide_cohort(tmp_path, **option)
    assert not list(tmp_path.iterdir())


#: Identity of the demo cohort, version 1. A change needs a line in CHANGELOG.md with the numbers
#: before and after, since every result on synthetic data hangs on it.
DEMO = "8d54773b9e64dc37185a1cf45284a63a7f820880d06c6a0294917cd869042eca"


def test_the_demo_cohort_is_the_one_that_results_were_made_on(tmp_path):
    from PIL import Image

    cohort = synthetic.make_cohort(tmp_path)
    content = []
    for name, section in cohort.sections.items():
        with Image.open(tmp_path / "images" / f"{name}.png") as image:
            pixels = np.asarray(image)
        counts = section.adata.layers["counts"].toarray().astype(np.int64)
        content.append([name, sha256_of(pixels), sha256_of(counts), list(section.adata.var_names)])
    assert sha256_of(content) == DEMO
