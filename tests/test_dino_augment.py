"""Views against PyTorch's and Pillow's own operations, and the statistics of the recipe."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvhlib.artifacts import InputError
from mvhlib.dino import augment
from mvhlib.dino.augment import COLUMNS, N_TRIES, MultiCrop, ViewSettings

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.2)
N_DRAWS = 10_000


@pytest.fixture(scope="module")
def tiles():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (6, 48, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def numbers():
    """Random numbers of 10,000 views: each of 2,500 samples has two global, two local ones."""
    return augment.draw(0, 0, np.arange(N_DRAWS // 4), 4)


def column(numbers, name):
    return numbers[:, :, 2 * N_TRIES + COLUMNS.index(name)]


def test_a_crop_is_torchs_antialiased_bicubic(tiles):
    boxes = np.array([[[3, 5, 40, 30], [0, 0, 48, 40], [10, 11, 7, 9]]] * 6)
    flip = np.zeros((6, 3), bool)
    flip[:, 1] = True
    x = tiles.double() / 255
    views = augment.crop(x, boxes, 32, flip, ~flip).view(3, 6, 3, 32, 32)
    for v, (top, left, height, width) in enumerate(boxes[0]):
        part = x.permute(0, 3, 1, 2)[:, :, top:top + height, left:left + width]
        expected = F.interpolate(part, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
        expected = expected.flip(3 if flip[0, v] else 2)
        torch.testing.assert_close(views[v], expected, rtol=0, atol=1e-12)


def test_crop_areas_and_aspects_over_many_draws(numbers):
    for scale in ((0.32, 1.0), (0.05, 0.32)):
        boxes = augment.crop_boxes(numbers, 256, 256, scale, 4 / 3).reshape(-1, 4)
        top, left, height, width = boxes.T
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 256).all() and (left + width <= 256).all()
        area = height * width / 256**2
        # Sides are whole pixels, so that an area may pass its bound by a pixel's width.
        assert scale[0] - 0.005 <= area.min() and area.max() <= scale[1] + 0.005
        log_aspect = np.log(width / height)
        assert np.abs(log_aspect).max() <= np.log(4 / 3) + 0.02
        assert abs(log_aspect.mean()) < 0.01
    # Small crops always fit, so that areas are uniform and aspects log-uniform.
    assert area.mean() == pytest.approx((0.05 + 0.32) / 2, abs=0.003)
    assert area.std() == pytest.approx(0.27 / np.sqrt(12), rel=0.03)
    assert log_aspect.std() == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), rel=0.03)
    side = np.sqrt([0.05, 0.32]) * 256
    assert 57 <= round(side[0]) and round(side[1]) <= 145
    # Places are uniform: corners are reached.
    assert left.min() == 0 and (left + width).max() == 256


def test_where_no_try_fits_the_box_is_centred():
    numbers = np.zeros((1, 1, 2 * N_TRIES + len(COLUMNS)))
    numbers[..., :2 * N_TRIES:2] = 1.0  # whole area
    boxes = augment.crop_boxes(numbers, 100, 400, (0.32, 1.0), 4 / 3)
    np.testing.assert_array_equal(boxes[0, 0], [0, (400 - 133) // 2, 100, 133])


def test_blur_frequencies_are_the_published_code_s(tiles, monkeypatch):
    """Never on the first global view, on 90 % of the second, on half of the local ones."""
    counted = {}

    def count(x, sigma, chosen):
        counted.setdefault(len(chosen), []).append(chosen)
        assert sigma.min() >= 0.1 and sigma.max() <= 2.0
        return x

    monkeypatch.setattr(augment, "gaussian_blur", count)
    make = MultiCrop(ViewSettings(global_px=8, local_px=8, n_local=3), MEAN, STD)
    many = tiles[:1, :16, :16].expand(2500, -1, -1, -1)
    make(many, 0, 0, np.arange(2500))
    first, second = counted[5000][0].reshape(2, 2500)
    assert first.sum() == 0
    assert second.mean() == pytest.approx(0.9, abs=0.02)
    assert counted[7500][0].mean() == pytest.approx(0.5, abs=0.02)


def test_probabilities_over_many_draws(numbers):
    chosen = ViewSettings()
    for name, p in (("flip", chosen.flip), ("jitter", chosen.jitter), ("grey", chosen.grey)):
        assert (column(numbers, name) < p).mean() == pytest.approx(p, abs=0.02)
    orders = np.stack([column(numbers, f"order{i}").ravel() for i in range(4)], 1).argsort(1)
    _, count = np.unique(orders, axis=0, return_counts=True)
    assert len(count) == 24 and count.min() > 0.7 * N_DRAWS / 24


def test_blur_equals_a_convolution(tiles):
    x = tiles.permute(0, 3, 1, 2)[:, :, :40, :40].double() / 255
    sigma = np.array([0.1, 0.5, 1.0, 1.5, 2.0, 2.0])
    chosen = np.array([True] * 5 + [False])
    blurred = augment.gaussian_blur(x.clone(), sigma, chosen)
    taps = torch.arange(9, dtype=torch.float64) - 4
    for i in range(5):
        kernel = torch.exp(-0.5 * (taps / sigma[i])**2)
        kernel = (kernel / kernel.sum()).view(1, 1, 9)
        kernel = (kernel.transpose(1, 2) * kernel).expand(3, 1, 9, 9)
        padded = F.pad(x[i:i + 1], (4, 4, 4, 4), mode="reflect")
        expected = F.conv2d(padded, kernel, groups=3)[0]
        torch.testing.assert_close(blurred[i], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(blurred[5], x[5], rtol=0, atol=0)


def test_hue_equals_the_standard_library():
    colours = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    colours[0, :, 0, 0] = 0.3  # grey has no hue
    shift = torch.tensor([0.1, -0.07, 0.0, 0.5]).double().view(-1, 1, 1)
    shifted = augment.shift_hue(colours, shift)
    for n in range(4):
        for i in range(5):
            for j in range(5):
                h, s, v = colorsys.rgb_to_hsv(*colours[n, :, i, j].tolist())
                expected = colorsys.hsv_to_rgb((h + shift[n].item()) % 1, s, v)
                assert shifted[n, :, i, j].tolist() == pytest.approx(expected, abs=1e-12)


def test_brightness_contrast_saturation_and_grey_follow_their_formulas():
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    factor = torch.full((1, 1, 1, 1), 1.15).double()
    expected = {"brightness": 1.15 * x, "contrast": 1.15 * x - 0.15 * grey.mean(),
                "saturation": 1.15 * x - 0.15 * grey[:, None]}
    for name, value in expected.items():
        torch.testing.assert_close(augment._jitter(x, name, factor), value.clamp(0, 1))
    made = augment.to_grey(x.clone(), np.array([True]))
    torch.testing.assert_close(made, grey[:, None].expand(-1, 3, -1, -1))


def test_jitter_is_applied_in_the_order_that_was_drawn():
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3)).double()
    names = ("brightness", "contrast", "saturation", "hue")
    u = {name: np.array([0.9]) for name in names} | {"jitter": np.array([0.0])}
    u |= {f"order{i}": np.array([v]) for i, v in enumerate((0.7, 0.1, 0.9, 0.4))}
    found = augment.colour_jitter(x.clone(), u, ViewSettings())
    expected = x.clone()
    for name in ("contrast", "hue", "brightness", "saturation"):
        most = 0.1 if name == "hue" else 0.2
        factor = torch.tensor(0.8 * most + (name != "hue")).double().view(1, 1, 1, 1)
        expected = augment._jitter(expected, name, factor)
    torch.testing.assert_close(found, expected)


def test_views_do_not_depend_on_how_the_batch_is_divided(tiles):
    make = MultiCrop(ViewSettings(global_px=32, local_px=16, n_local=3, rotate=True, stain=0.1),
                     MEAN, STD, torch.float64)
    views, local = make(tiles, 5, 9, np.arange(6))
    assert views.shape == (12, 3, 32, 32) and local.shape == (18, 3, 16, 16)
    views, local = views.view(2, 6, 3, 32, 32), local.view(3, 6, 3, 16, 16)
    some_views, some_local = make(tiles[4:], 5, 9, np.array([4, 5]))
    torch.testing.assert_close(some_views.view(2, 2, 3, 32, 32), views[:, 4:], rtol=0, atol=1e-12)
    torch.testing.assert_close(some_local.view(3, 2, 3, 16, 16), local[:, 4:], rtol=0, atol=1e-12)
    for key in ((5, 10), (6, 9)):
        other, _ = make(tiles, *key, np.arange(6))
        assert (other.view_as(views) - views).abs().mean() > 0.1


def test_plain_settings_only_normalise(tiles):
    plain = ViewSettings(global_px=40, local_px=16, n_local=0, global_scale=(1.0, 1.0), flip=0,
                         jitter=0, grey=0, blur=(0, 0, 0), aspect_max=1.0)
    square = tiles[:, :40, :40]
    views, local = MultiCrop(plain, MEAN, STD)(square, 0, 0, np.arange(6))
    expected = square.permute(0, 3, 1, 2).float() / 255
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(views[:6], expected, atol=1e-5, rtol=0)
    assert len(local) == 0


def test_rotation_reaches_all_eight_orientations():
    corner = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    corner[0, 0, 1] = 255
    plain = ViewSettings(global_px=8, local_px=8, n_local=0, global_scale=(1.0, 1.0), jitter=0,
                         grey=0, blur=(0, 0, 0), aspect_max=1.0, rotate=True)
    views, _ = MultiCrop(plain, (0, 0, 0), (1, 1, 1))(corner.expand(200, -1, -1, -1), 0, 0,
                                                     np.arange(200))
    places = {int(view[0].argmax()) for view in views}
    assert len(places) == 8


def test_stain_jitter_of_strength_zero_changes_nothing():
    x = 0.05 + 0.95 * torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(4)).double()
    u = {name: np.array([0.1, 0.5, 0.9]) for name in COLUMNS}
    torch.testing.assert_close(augment.stain_jitter(x, u, 0.0), x)
    changed = augment.stain_jitter(x, u, 0.2)
    assert (changed[0] - x[0]).abs().max() > 0.01
    torch.testing.assert_close(changed[1], x[1])  # its draws lie in the middle


def test_nonsense_is_refused(tiles):
    with pytest.raises(InputError, match="global_scale"):
        ViewSettings(global_scale=(0.5, 0.2))
    with pytest.raises(InputError, match="blur"):
        ViewSettings(blur=(0, 2, 0))
    with pytest.raises(InputError, match="uint8"):
        MultiCrop(ViewSettings(), MEAN, STD)(tiles.float(), 0, 0, np.arange(6))
