"""Stain normalisation, against images whose stains are known."""

import numpy as np
import pytest
from PIL import Image

from mvhlib.artifacts import InputError
from mvhlib.tiles import stain
from mvhlib.tiles.cut import Tiles
from mvhlib.tiles.store import read_tiles, write_tiles

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.14, 0.88, 0.455])


def unit(*vectors):
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


def stained(stains, seed=0, strength=(1.0, 1.0), n_tiles=4, side=48):
    """Tiles with nuclei, cytoplasm and glass, and their concentrations."""
    rng = np.random.default_rng(seed)
    shape = (n_tiles, side, side)
    nucleus = rng.random(shape) < 0.3
    glass = ~nucleus & (rng.random(shape) < 0.2)
    amount = np.stack([np.where(nucleus, rng.uniform(0.8, 2.0, shape), 0.0),
                       np.where(nucleus, 0.0, rng.uniform(0.5, 1.4, shape))], -1)
    # A tenth of the nuclei lie under cytoplasm.
    amount[..., 1] += np.where(nucleus & (rng.random(shape) < 0.1), 0.5, 0.0)
    amount[glass] = 0.0
    amount = amount * np.asarray(strength)
    return np.rint(255 * np.exp(-amount @ stains)).astype(np.uint8), amount


def angles(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1, 1)))


def test_optical_density_and_lab_are_inverted():
    grey = np.arange(1, 256)
    assert stain.intensity(stain.optical_density(grey)) == pytest.approx(grey, abs=1e-9)
    assert stain.optical_density(np.array([255, 0])).tolist() == [0.0, pytest.approx(np.log(255))]
    colours = np.random.default_rng(0).integers(40, 256, (500, 3))
    assert stain.from_lab(stain.to_lab(colours)) == pytest.approx(colours, abs=1e-8)
    # A grey pixel has no colour: alpha and beta are 0.
    assert stain.to_lab(np.full((1, 3), 77.0))[0, 1:] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("swap", [False, True])
def test_macenko_recovers_both_vectors_within_a_degree(swap):
    # The second pair is turned as another batch of dye is, and eosin reddened.
    stains = unit(HAEMATOXYLIN, EOSIN) if not swap else unit(
        np.array([0.55, 0.75, 0.36]), np.array([0.07, 0.95, 0.30]))
    images, _ = stained(stains, seed=3)
    found = stain.estimate_stains(images)
    assert angles(found, stains).max() < 1.0
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1])


def test_concentrations_are_those_that_were_drawn():
    stains = unit(HAEMATOXYLIN, EOSIN)
    images, amount = stained(stains)
    # Rounding to 8 bits moves a dark pixel's optical density by up to 0.01.
    assert np.abs(stain.concentrations(images, stains) - amount).max() < 0.05


def test_macenko_makes_two_laboratories_alike():
    a, b = unit(HAEMATOXYLIN, EOSIN), unit(np.array([0.56, 0.74, 0.37]),
                                           np.array([0.10, 0.92, 0.38]))
    here, _ = stained(a, seed=1)
    there, _ = stained(b, seed=1, strength=(0.7, 1.3))  # the same tissue, stained elsewhere
    fitted = stain.profiles({"here": here, "there": there})
    moved = stain.normalise(there, fitted["there"], fitted["here"])
    before = np.abs(there.astype(float) - here).mean()
    after = np.abs(moved.astype(float) - here).mean()
    assert moved.dtype == np.uint8 and before > 12 and after < 3
    again = stain.normalise(there, fitted["there"], fitted["here"], as_float=True)
    assert np.abs(again - moved).max() <= 0.5 + 1e-4
    # A section moved to its own profile stays where it was, as far as two stains explain it.
    own = stain.normalise(here, fitted["here"], fitted["here"])
    assert np.abs(own.astype(float) - here).mean() < 2


def test_reinhard_moves_the_tissue_and_not_the_glass():
    here, amount = stained(unit(HAEMATOXYLIN, EOSIN), seed=1)
    there, _ = stained(unit(HAEMATOXYLIN, EOSIN), seed=2, strength=(0.85, 1.1))
    fitted = stain.profiles({"here": here, "there": there}, "reinhard")
    moved = stain.normalise(there, fitted["there"], fitted["here"], as_float=True)
    glass = (there == 255).all(axis=-1)
    assert glass.any() and (moved[glass] == 255).all()
    tissue = stain.is_tissue(there)
    lab = stain.to_lab(moved[tissue])
    unclipped = (moved[tissue] > 1).all(axis=1) & (moved[tissue] < 255).all(axis=1)
    assert unclipped.mean() > 0.98
    assert lab.mean(axis=0) == pytest.approx(fitted["here"].mean, abs=0.02)
    assert lab.std(axis=0) == pytest.approx(fitted["here"].spread, rel=0.1)


def test_average_lies_between_and_is_of_one_method():
    images = {"a": stained(unit(HAEMATOXYLIN, EOSIN))[0],
              "b": stained(unit(HAEMATOXYLIN, EOSIN), strength=(2, 2))[0]}
    fitted = stain.profiles(images)
    middle = stain.average(fitted)
    product = fitted["a"].strong * fitted["b"].strong
    assert middle.strong == pytest.approx(np.sqrt(product))
    assert np.linalg.norm(middle.stains, axis=1) == pytest.approx([1, 1])
    other = stain.profiles(images, "reinhard")
    with pytest.raises(InputError, match="2 methods"):
        stain.average({"a": fitted["a"], "b": other["b"]})
    with pytest.raises(InputError, match="reinhard"):
        stain.normalise(images["a"], fitted["a"], other["a"])


def test_what_has_no_two_stains_is_refused():
    glass = np.full((2, 32, 32, 3), 250, np.uint8)
    with pytest.raises(InputError, match="absorb light") as caught:
        stain.profiles({"S1": glass})
    assert caught.value.where == "S1" and caught.value.field == "tissue"
    rng = np.random.default_rng(0)
    one = 255 * np.exp(-rng.uniform(0.5, 2, (2, 32, 32, 1)) * unit(HAEMATOXYLIN)[0])
    with pytest.raises(InputError, match="one stain only"):
        stain.estimate_stains(one)
    with pytest.raises(InputError, match=r"\(\.\.\., 3\)"):
        stain.estimate_stains(np.zeros((4, 4)))
    with pytest.raises(InputError, match="vahadane"):
        stain.profiles({"S1": one}, "vahadane")


def test_folder_is_written_once_and_keeps_everything_but_pixels(tmp_path):
    for number, strength in enumerate([(1, 1), (0.6, 1.4)]):
        images, _ = stained(unit(HAEMATOXYLIN, EOSIN), seed=number, strength=strength)
        n = len(images)
        write_tiles(tmp_path / "tiles" / f"S{number}.h5", Tiles(
            images, np.arange(2 * n).reshape(n, 2), np.zeros(n, np.float32), 48, 96.0, 2.0, 1.0),
            [f"b{i}" for i in range(n)])
    fitted = stain.normalise_folder(tmp_path / "tiles", tmp_path / "out")
    assert list(fitted) == ["S0", "S1"]
    old, new = (read_tiles(tmp_path / where / "S1.h5") for where in ("tiles", "out"))
    assert new.barcodes == old.barcodes and new.tile_um == old.tile_um
    assert (new.coords == old.coords).all() and (new.img != old.img).any()
    after = {name: stain.Macenko.fit(read_tiles(tmp_path / "out" / f"{name}.h5").img).strong
             for name in fitted}
    gap = np.abs(np.log(after["S0"] / after["S1"])).max()
    assert gap < 0.05 < np.abs(np.log(fitted["S0"].strong / fitted["S1"].strong)).max()
    stamp = (tmp_path / "out" / "S1.h5").stat().st_mtime_ns
    stain.normalise_folder(tmp_path / "tiles", tmp_path / "out")
    assert (tmp_path / "out" / "S1.h5").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another folder"):
        stain.normalise_folder(tmp_path / "tiles", tmp_path / "tiles")
    with pytest.raises(InputError, match="02_tiles"):
        stain.normalise_folder(tmp_path / "none", tmp_path / "out")


def test_colour_statistics_are_moments_of_density():
    images, _ = stained(unit(HAEMATOXYLIN, EOSIN))
    found = stain.colour_statistics(images)
    density = -np.log(images[2].reshape(-1, 3) / 255.0)
    assert found.shape == (4, 6)
    assert found[2] == pytest.approx(np.r_[density.mean(0), density.std(0)])


def test_real_tiles_get_the_vectors_of_haematoxylin_and_eosin(shared):
    """Stroma, tumour and normal mucosa of one collection, which is colour-normalised already."""
    folder = shared / "data" / "crc_tiles" / "nct_crc_he_9class"
    paths = [path for path in sorted(folder.glob("*.tif")) if path.name[:3] in ("STR", "TUM",
                                                                                 "NOR")]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    found = stain.estimate_stains(images)
    assert angles(found, unit(HAEMATOXYLIN, EOSIN)).max() < 20
    with pytest.raises(InputError):
        stain.estimate_stains(np.asarray(Image.open(next(folder.glob("BACK*"))).convert("RGB")))
