"""Slides, tiles, masks and tile files, against arrays whose content is known."""

import sys
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from mvhlib import notebook
from mvhlib.artifacts import InputError, sha256_file
from mvhlib.tiles import pools, store
from mvhlib.tiles.cut import (
    PRESETS,
    MaskPreset,
    TissueMask,
    _otsu,
    cut_spots,
    grid,
    grid_corners,
    tissue_mask,
)
from mvhlib.tiles.slides import Slide, open_slide
from mvhlib.tiles.store import encode_names, manifest_row, read_manifest, read_tiles, write_tiles

PINK = (200, 120, 170)


def noise(height=120, width=160, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def discs(height=600, width=800):
    """Glass with one large piece (a large and a small hole in it), one small piece and pen."""
    image = np.full((height, width, 3), 245, np.uint8)
    y, x = np.mgrid[:height, :width]
    image[(x - 250) ** 2 + (y - 300) ** 2 < 180**2] = PINK
    image[(x - 250) ** 2 + (y - 250) ** 2 < 60**2] = 245  # large hole
    image[(x - 330) ** 2 + (y - 380) ** 2 < 6**2] = 245  # small hole
    image[(x - 600) ** 2 + (y - 100) ** 2 < 10**2] = PINK  # crumb
    image[420:560, 560:600] = (20, 60, 200)  # blue pen
    image[420:560, 640:680] = (10, 10, 10)  # black
    return image


# slides


def test_region_at_level_0_is_the_array():
    image = noise()
    pixels, outside = Slide.from_array(image, mpp=0.5).region(30, 20, 50, 40)
    np.testing.assert_array_equal(pixels, image[20:60, 30:80])
    assert outside == 0


@pytest.mark.parametrize("x, y", [(-10, -5), (140, 100), (-10, 100), (30, 20), (500, 500)])
def test_padding_is_white_and_counted(x, y):
    image, exclude = noise(), [(0, 0, 40, 30), (35, 10, 60, 50)]
    slide = Slide.from_array(image, exclude=exclude)
    padded = np.full((700, 700, 3), 255, np.uint8)
    valid = np.zeros((700, 700), bool)
    padded[100:220, 100:260], valid[100:220, 100:260] = image, True
    for x0, y0, x1, y1 in exclude:
        padded[100 + y0:100 + y1, 100 + x0:100 + x1] = 255
        valid[100 + y0:100 + y1, 100 + x0:100 + x1] = False
    pixels, outside = slide.region(x, y, 48, 32)
    window = np.s_[100 + y:132 + y, 100 + x:148 + x]
    np.testing.assert_array_equal(pixels, padded[window])
    assert outside == pytest.approx(1 - valid[window].mean(), abs=1e-12)


def test_resampling_keeps_a_ramp_and_its_fractional_place():
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)
    slide = Slide.from_array(ramp)
    for x, width, out in ((20.0, 90.0, 30), (20.5, 90.0, 30), (31.3, 77.7, 21)):
        pixels, _ = slide.region(x, 10, width, 30, out_px=(out, 10))
        centres = x - 0.5 + (np.arange(out) + 0.5) * width / out
        # The outermost pixel of the filter is cut at the box; inside the ramp is exact.
        np.testing.assert_allclose(pixels[5, 1:-1, 0], centres[1:-1], atol=0.51)


def test_reduction_keeps_the_mean_and_does_not_ring():
    image = np.where(np.arange(300)[None, :, None] < 150, 40, 220).astype(np.uint8)
    image = np.broadcast_to(image, (90, 300, 3))
    pixels, _ = Slide.from_array(image).region(0, 0, 300, 90, out_px=(111, 33))
    assert pixels.min() >= 40 and pixels.max() <= 220
    assert pixels.mean() == pytest.approx(image.mean(), abs=0.5)


def test_thumbnail_is_never_enlarged():
    slide = Slide.from_array(noise())
    np.testing.assert_array_equal(slide.thumbnail(2000), noise())
    assert slide.thumbnail(80).shape == (60, 80, 3)


def test_black_background_is_read_as_white_and_a_nucleus_is_not():
    image = np.zeros((300, 400, 3), np.uint8)
    image[80:220, 100:300] = PINK
    image[140:146, 190:196] = 10  # as black as the background, but small
    slide = Slide.from_array(image, dark_background=True)
    pixels = slide.thumbnail()
    assert (pixels[:75] == 255).all() and (pixels[225:] == 255).all()
    np.testing.assert_array_equal(pixels[85:215, 105:295], image[85:215, 105:295])
    region, outside = slide.region(-20, -20, 60, 60)
    assert (region == 255).all() and outside == pytest.approx(1 - 40**2 / 60**2)


def test_truncated_jpg_names_the_file(tmp_path):
    path = tmp_path / "section.jpg"
    Image.fromarray(noise(400, 400)).save(path, quality=90)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="section.jpg.*truncated"):
        open_slide(path).region(0, 0, 10, 10)
    path.write_bytes(b"no image at all")
    with pytest.raises(InputError, match="section.jpg"):
        open_slide(path)
    with pytest.raises(InputError, match="does not exist"):
        open_slide(tmp_path / "absent.png")


def test_pillows_pixel_limit_does_not_apply_and_stays(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.fromarray(noise()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(open_slide(path).thumbnail(), noise())
    assert Image.MAX_IMAGE_PIXELS == 100


def test_transparent_pixels_are_white(tmp_path):
    image = np.dstack([noise(40, 40), np.full((40, 40), 255, np.uint8)])
    image[:20, :, 3] = 0
    Image.fromarray(image).save(tmp_path / "a.png")
    pixels = open_slide(tmp_path / "a.png").thumbnail()
    assert (pixels[:20] == 255).all()
    np.testing.assert_array_equal(pixels[20:], image[20:, :, :3])


def test_whole_slide_without_openslide_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.svs").write_bytes(b"")
    with pytest.raises(InputError, match=r"mvhlib\[wsi\]"):
        open_slide(tmp_path / "a.svs")
    Image.fromarray(noise()).save(tmp_path / "plain.tif")  # needs no openslide
    np.testing.assert_array_equal(open_slide(tmp_path / "plain.tif").thumbnail(), noise())


def test_broken_whole_slide_names_the_file(tmp_path):
    pytest.importorskip("openslide")
    (tmp_path / "a.svs").write_bytes(b"II*\0")
    with pytest.raises(InputError, match="a.svs"):
        open_slide(tmp_path / "a.svs")


def test_real_whole_slides(shared):
    openslide = pytest.importorskip("openslide")
    path = shared / "data" / "slides" / "cmu-1-small-region.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        assert (slide.width, slide.height) == oracle.dimensions
        assert slide.mpp == pytest.approx(0.499)
        want = np.asarray(oracle.read_region((700, 900), 0, (256, 200)).convert("RGB"))
        np.testing.assert_array_equal(slide.region(700, 900, 256, 200)[0], want)
        pixels, outside = slide.region(-64, -64, 128, 128)
        assert outside == 0.75 and (pixels[:64] == 255).all() and (pixels[:, :64] == 255).all()
        np.testing.assert_array_equal(pixels[64:, 64:], slide.region(0, 0, 64, 64)[0])


def test_lower_level_of_a_pyramid_lies_where_level_0_does(shared):
    from scipy.ndimage import gaussian_filter

    pytest.importorskip("openslide")
    slide = open_slide(shared / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs")
    assert slide.mpp is None  # the file does not say
    for x, y in ((1000, 1200), (2001, 1503)):
        low, _ = slide.region(x, y, 512, 512, out_px=(200, 200))  # level 1
        full = Slide.from_array(slide.region(x, y, 512, 512)[0])
        high, _ = full.region(0, 0, 512, 512, out_px=(200, 200))

        def difference(down, right, low=low, high=high):
            moved = np.roll(high.astype(float), (down, right), axis=(0, 1)).mean(axis=2)
            smooth = gaussian_filter(low.mean(axis=2) - moved, 1)  # levels differ in sharpness
            return np.abs(smooth[6:-6, 6:-6]).mean()

        for move in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            assert difference(0, 0) < 0.6 * difference(*move)
    with pytest.raises(InputError, match="mpp"):
        cut_spots(slide, np.array([[1000, 1000]]), tile_um=100, tile_px=224)


# kinds of pixels: the right colours, or one line

STRIPES = np.array([[245, 244, 246], [230, 120, 160], [90, 40, 120]], np.uint8)


def stripes():
    """Glass, eosin and haematoxylin, 64 rows each of 256 px."""
    return np.repeat(STRIPES[:, None, :], 64, axis=0).repeat(256, axis=1)


def seen(path, **options):
    """Mean colour within each stripe."""
    with open_slide(path, **options) as slide:
        assert (slide.width, slide.height) == (256, 192)
        pixels = slide.region(0, 0, 256, 192)[0].astype(float)
    return np.stack([pixels[y + 16:y + 48, 32:224].reshape(-1, 3).mean(0) for y in (0, 64, 128)])


def refused(path, problem, **options):
    with pytest.raises(InputError, match=problem) as caught:
        with open_slide(path, **options) as slide:
            slide.region(0, 0, 64, 64)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


def planes(pixels):
    return np.moveaxis(pixels, 2, 0)


SIXTEEN = stripes().astype(np.uint16)
CYX = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}


@pytest.mark.parametrize("tile", [None, (128, 128)], ids=["strips", "tiles"])
@pytest.mark.parametrize("pixels, options", [
    *((stripes(), {"photometric": "rgb", "compression": name})
      for name in (None, "lzw", "deflate", "zstd", "packbits", "jpeg2000", "jpegxl", "webp")),
    (planes(stripes()), {"photometric": "rgb", "planarconfig": "separate"}),
    (planes(stripes()), {"photometric": "rgb", "planarconfig": "separate", "compression": "lzw"}),
    (planes(stripes()), CYX),
    (planes(stripes()), CYX | {"ome": True}),
    (planes(stripes())[::-1], CYX | {"ome": True, "metadata": {
        "axes": "CYX", "Channel": {"Name": ["Blue", "Green", "Red"]}}}),
    (stripes(), {"photometric": "rgb", "ome": True, "metadata": {"axes": "YXS"}}),
    (SIXTEEN * 257, {"photometric": "rgb"}),
    (planes(SIXTEEN * 257), {"photometric": "rgb", "planarconfig": "separate"}),
    (np.round(SIXTEEN / 255 * 4095).astype(np.uint16), {"photometric": "rgb"}),
    (np.round(SIXTEEN / 255 * 16383).astype(np.uint16), {"photometric": "rgb"}),
    (SIXTEEN, {"photometric": "rgb"}),
    (SIXTEEN // 4 * 16, {"photometric": "rgb", "extratags": [(281, 3, 3, (4095,) * 3, True)]}),
    (np.dstack([stripes(), np.full((192, 256), 7, np.uint8)]),
     {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    (np.asarray(Image.fromarray(stripes()).convert("CMYK")), {"photometric": "separated"}),
    (np.asarray(Image.fromarray(stripes()).convert("YCbCr")).copy(),
     {"photometric": "ycbcr", "subsampling": (1, 1)}),
], ids=["plain", "lzw", "deflate", "zstd", "packbits", "jpeg2000", "jpegxl", "webp", "planar",
        "planar-lzw", "axes", "ome-planes", "ome-bgr", "ome-rgb", "16", "16-planar", "12-of-16",
        "14-of-16", "8-of-16", "max-sample-value", "unnamed-fourth", "cmyk", "ycbcr"])
def test_colours_of_a_tiff(tmp_path, pixels, options, tile):
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.ascontiguousarray(pixels), tile=tile, **options)
    want = STRIPES // 4 * 4 if "extratags" in options else STRIPES
    if "extratags" in options:
        want = (pixels[[0, 64, 128], 0] >> 4).astype(float)
    np.testing.assert_allclose(seen(path), want, atol=2.0)


def test_imagej_planes_are_colours_and_its_stacks_are_none(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "image.tif"
    for pixels in (stripes(), SIXTEEN * 257):
        tifffile.imwrite(path, planes(pixels), imagej=True, metadata={"axes": "CYX"})
        np.testing.assert_allclose(seen(path), STRIPES)
    for axes, problem in (("ZYX", "3 depths"), ("TYX", "3 times")):
        tifffile.imwrite(path, planes(stripes()), imagej=True, metadata={"axes": axes})
        refused(path, problem)


@pytest.mark.parametrize("tile", [None, (128, 128)], ids=["strips", "tiles"])
@pytest.mark.parametrize("pixels, options, problem", [
    ((stripes() / 255).astype(np.float32), {"photometric": "rgb"}, "float numbers of 32 bits"),
    (stripes().astype(np.int16), {"photometric": "rgb"}, "signed numbers"),
    (SIXTEEN[..., 0] * 257, {"photometric": "minisblack"}, "grey of 16 bits"),
    (SIXTEEN * 5, {"photometric": "rgb"}, "of 16 bits reach 1230"),
    (stripes(), {"photometric": "cielab"}, "CIE Lab"),
    (stripes(), {"photometric": "icclab"}, "ICC Lab"),
    (planes(stripes()), {"photometric": "minisblack"}, "3 grey pages of one size"),
    (np.stack([stripes()] * 5), {"photometric": "rgb"}, "5 pages of one size"),
    (np.zeros((5, 192, 256), np.uint8), CYX | {"ome": True}, "are 5; H&E has red, green"),
    (np.zeros((2, 192, 256), np.uint8), CYX | {"ome": True}, "are 2; H&E has red, green"),
    (planes(stripes()) // 8, CYX | {"ome": True}, "dark over most of the image"),
    (planes(stripes()), CYX | {"ome": True, "metadata": {
        "axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "CD8"]}}}, "DAPI, CD3, CD8"),
    (planes(stripes()), CYX | {"ome": True, "metadata": {
        "axes": "CYX", "Channel": {"EmissionWavelength": [450, 520, 600]}}}, "fluorescence"),
    (np.stack([stripes()] * 3), {"photometric": "rgb", "ome": True, "metadata": {"axes": "ZYXS"}},
     "3 depths"),
    (stripes(), {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}, "Orientation"),
], ids=["float", "signed", "grey-16", "bits-unknown", "lab", "icclab", "three-pages", "stack",
        "five-channels", "two-channels", "dark", "named", "wavelengths", "ome-depths", "turned"])
def test_tiffs_that_are_refused(tmp_path, pixels, options, problem, tile):
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, tile=tile, **options)
    refused(path, problem)


def test_a_compression_without_a_decoder_is_named(tmp_path):
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    path = tmp_path / "image.ome.tif"
    tifffile.imwrite(path, stripes(), photometric="rgb", tile=(128, 128), compression="jpeg2000")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset:offset + 40] = bytes(40)
    path.write_bytes(content)
    refused(path, "compression: JPEG 2000 cannot be decoded here.*vips tiffsave")
    path.write_bytes(content[:offset + 4])
    refused(path, "lacks 4 of its 4 strips or tiles|truncated")


@pytest.mark.parametrize("name, options", [
    ("a.jpg", {"quality": 95}), ("a.png", {}), ("a.webp", {"lossless": True}), ("a.bmp", {}),
    ("a.jp2", {}), ("a.gif", {}), ("a.ppm", {})])
def test_colours_of_plain_images(tmp_path, name, options):
    Image.fromarray(stripes()).save(tmp_path / name, **options)
    np.testing.assert_allclose(seen(tmp_path / name), STRIPES, atol=2)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:len(whole) * 2 // 3])
    refused(tmp_path / name, "truncated")


def test_modes_of_plain_images(tmp_path):
    image = Image.fromarray(stripes())
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.tif")
    for name in ("p.png", "cmyk.jpg", "p.tif"):
        np.testing.assert_allclose(seen(tmp_path / name), STRIPES, atol=2)
    for name in ("l.png", "l.tif"):
        image.convert("L").save(tmp_path / name)
        np.testing.assert_allclose(seen(tmp_path / name)[:, 0], [245, 158, 64], atol=1.5)
    image.point(lambda v: 255 * (v > 200)).convert("1").save(tmp_path / "1.tif")
    np.testing.assert_allclose(seen(tmp_path / "1.tif")[[0, 2]], [[255] * 3, [0] * 3])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png", "turned.webp"):
        image.save(tmp_path / name, exif=exif)
        refused(tmp_path / name, "Orientation: tag says 6")
    image.save(tmp_path / "two.png", save_all=True, append_images=[Image.new("RGB", image.size)])
    refused(tmp_path / "two.png", "holds 2 images")
    Image.fromarray(SIXTEEN[..., 0] * 257).save(tmp_path / "grey16.png")
    refused(tmp_path / "grey16.png", "mode I;16")


def test_png_of_16_bits_uses_them_all_or_is_refused(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    path = tmp_path / "a.png"
    path.write_bytes(codecs.png_encode(SIXTEEN * 257))
    np.testing.assert_allclose(seen(path), STRIPES)
    path.write_bytes(codecs.png_encode(SIXTEEN * 16))
    refused(path, "16 bits a sample")


def test_transparency_in_a_tiff_is_white(tmp_path):
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    alpha = np.full((192, 256), 255, np.uint8)
    alpha[:64] = 0
    for kind in ("unassalpha", "assocalpha"):
        for tile in (None, (128, 128)):
            pixels = np.dstack([stripes() * (alpha > 0)[..., None], alpha])
            tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind],
                             tile=tile)
            np.testing.assert_allclose(seen(tmp_path / "a.tif"), [[255] * 3, *STRIPES[1:]])


def test_formats_that_nothing_here_reads_are_named(tmp_path):
    pytest.importorskip("openslide")
    for name, content, problem in (
            ("a.czi", b"ZISRAWFILE", "a Zeiss CZI file that openslide.*bfconvert"),
            ("a.dcm", bytes(128) + b"DICM", "a DICOM file that openslide.*bfconvert"),
            ("a.jxl", b"\xff\x0a", "a JPEG XL file"), ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0",
                                                       "is PostScript"),
            ("a.nd2", b"x", "a Nikon ND2 file"), ("a.png", b"", "cannot be decoded")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, problem)


def test_links_to_images(tmp_path):
    Image.fromarray(stripes()).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    np.testing.assert_allclose(seen(tmp_path / "link.png"), STRIPES)
    (tmp_path / "dangling.png").symlink_to("gone.png")
    refused(tmp_path / "dangling.png", "is a link to gone.png, which does not exist")
    (tmp_path / "loop.png").symlink_to("loop.png")
    refused(tmp_path / "loop.png", "runs in a circle")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "is a folder")


# scale


CM, INCH, NONE = 3, 2, 1
OME = {"ome": True}


def ome(x, unit="µm", y=None):
    return OME | {"metadata": {"axes": "YXS", "PhysicalSizeX": x, "PhysicalSizeXUnit": unit,
                               "PhysicalSizeY": x if y is None else y,
                               "PhysicalSizeYUnit": unit}}


@pytest.mark.parametrize("tile", [None, (128, 128)], ids=["strips", "tiles"])
@pytest.mark.parametrize("options, want", [
    *(({"resolution": (dpi, dpi), "resolutionunit": INCH}, None) for dpi in (72, 96, 300, 2400)),
    ({"resolution": (101600, 101600), "resolutionunit": INCH}, 0.25),
    ({"resolution": (20000, 20000), "resolutionunit": CM}, 0.5),
    ({"resolution": (28.346, 28.346), "resolutionunit": CM}, None),  # 72 dpi
    ({"resolution": (2, 2), "resolutionunit": NONE}, None),
    ({"resolution": (20000, 40000), "resolutionunit": CM}, "not square"),
    *((ome(*size), 0.5) for size in ((0.5,), (500, "nm"), (0.0005, "mm"), (0.5 / 25400, "in"))),
    (ome(352.7778), None),  # 72 dpi, as Bio-Formats writes it
    (ome(1, "pixel"), None),
    (ome(10), 10.0),
    (ome(0.5, y=1.0), "not square"),
    *((ome(size), "states") for size in (0, -1, float("nan"), "0,5")),
    ({"description": "Aperio Image Library\r\n100x100 |AppMag = 20|MPP = 0.4990"}, 0.499),
    (ome(0.5) | {"resolution": (40000, 40000), "resolutionunit": CM}, "0.5.*0.25"),
])
def test_the_scale_that_a_tiff_states(tmp_path, options, want, tile):
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, stripes(), photometric="rgb", tile=tile, **options)
    if isinstance(want, str):
        refused(path, f"mpp: .*{want}")
        return
    with open_slide(path) as slide:
        assert slide.mpp == (None if want is None else pytest.approx(want, rel=1e-4))
    if want:
        assert open_slide(path, mpp=want * 1.04).mpp == want * 1.04
        refused(path, f"is given as {want * 2:.4g}.*file states {want:.4g}", mpp=want * 2)
    else:
        assert open_slide(path, mpp=0.5).mpp == 0.5


@pytest.mark.parametrize("unit, want", [("micron", 0.5), ("um", 0.5), ("\\u00B5m", 0.5),
                                        ("nm", 0.0005), ("inch", None), ("pixel", None)])
def test_imagejs_unit(tmp_path, unit, want):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", stripes(), imagej=True, metadata={"unit": unit},
                     resolution=(2.0, 2.0))
    assert open_slide(tmp_path / "a.tif").mpp == want


@pytest.mark.parametrize("mpp", [0, -0.5, float("nan"), float("inf"), "0,5", "x", True, [1]])
def test_scales_that_are_none(tmp_path, mpp):
    Image.fromarray(stripes()).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "mpp", mpp=mpp)
    with pytest.raises(InputError, match="array: mpp"):
        Slide.from_array(stripes(), mpp=mpp)


def test_a_scale_beside_that_of_a_whole_slide(shared):
    pytest.importorskip("openslide")
    path = shared / "data" / "slides" / "cmu-1-small-region.svs"
    assert open_slide(path, mpp=0.5).mpp == 0.5
    refused(path, "given as 0.25.*states 0.499", mpp=0.25)
    path = shared / "data" / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    assert open_slide(path, mpp=0.25).mpp == 0.25  # the file does not say


# memory


def test_sizes_that_a_file_cannot_hold(tmp_path):
    import struct
    import zlib

    def chunk(kind, content):
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))

    path = tmp_path / "bomb.png"
    for side, problem in ((50_000, "max_pixels=1,000,000,000"), (30_000, "more than it can hold")):
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(
            b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(
            b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
        refused(path, problem)
    Image.fromarray(stripes()).save(path)
    refused(path, "declares 256 x 192 px.*max_pixels=1,000", max_pixels=1000)
    assert open_slide(path, max_pixels=256 * 192).width == 256


def test_bands_give_the_same_pixels(monkeypatch):
    from mvhlib.tiles import slides

    image = noise(300, 420)
    slide = Slide.from_array(image, mpp=1.0, exclude=[(10, 20, 60, 90)], dark_background=True)
    asked = [(0, 0, 420, 300, (90, 64)), (-30.5, 12.25, 400, 280, (77, 54)),
             (100, 250, 200, 100, (50, 25))]
    whole = [slide.region(*box[:4], out_px=box[4])[0].astype(int) for box in asked]
    thumbnail = slide.thumbnail(105)
    monkeypatch.setattr(slides.plain.Plain, "whole_px", lambda self, level, down: 0)
    monkeypatch.setattr(slides.slide, "_BAND_PX", 1)
    monkeypatch.setattr(slides.slide, "_BAND_ROWS", 17)
    np.testing.assert_array_equal(slide.thumbnail(105), thumbnail)
    for box, want in zip(asked, whole, strict=True):
        assert np.abs(slide.region(*box[:4], out_px=box[4])[0] - want).max() <= 1


def test_a_slide_without_lower_levels_is_read_in_bands(tmp_path, monkeypatch):
    from mvhlib.tiles import slides

    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("openslide")
    image = np.tile(discs(), (2, 2, 1))
    tifffile.imwrite(tmp_path / "flat.tif", image, photometric="rgb", tile=(256, 256))
    with open_slide(tmp_path / "flat.tif", mpp=2.0) as slide:
        whole = tissue_mask(slide)
        asked, read = [], slides.pyramid.Pyramid.read
        monkeypatch.setattr(slides.pyramid.Pyramid, "whole_px", lambda self, level, down: 0)
        monkeypatch.setattr(slides.slide, "_BAND_PX", 1)
        monkeypatch.setattr(slides.pyramid.Pyramid, "read",
                            lambda self, *a: asked.append(a[-2:]) or read(self, *a))
        np.testing.assert_array_equal(tissue_mask(slide).mask, whole.mask)
    assert asked == [(1600, 256)] * 4 + [(1600, 176)]
    assert 0.15 < whole.mask.mean() < 0.25


def test_cuts_that_need_too_much(tmp_path):
    slide = Slide.from_array(noise(600, 800), mpp=1.0)
    with pytest.raises(InputError, match="step_um.*more than 50,000,000 places"):
        grid_corners(Slide.from_array(np.zeros((8000, 8000, 3), np.uint8), mpp=1.0), tile_um=20,
                     tile_px=8, step_um=1)
    with pytest.raises(InputError, match="tiles: 20 of 20000 px need 24 GB.*max_gb=16"):
        cut_spots(slide, np.full((20, 2), 100.0), tile_um=40, tile_px=20_000)
    with pytest.raises(InputError, match="max_gb=0.001"):
        grid(slide, tile_um=40, tile_px=40, max_gb=0.001)
    for field, given in (("tile_um", {"tile_um": "0,5", "tile_px": 8}),
                         ("tile_um", {"tile_um": np.inf, "tile_px": 8}),
                         ("tile_px", {"tile_um": 40, "tile_px": 0}),
                         ("tile_px", {"tile_um": 40, "tile_px": 8.5}),
                         ("step_um", {"tile_um": 40, "tile_px": 8, "step_um": -1}),
                         ("min_tissue", {"tile_um": 40, "tile_px": 8, "min_tissue": np.nan})):
        with pytest.raises(InputError, match=field):
            grid_corners(slide, **given)


# tiles


def test_spots_are_centred_and_corners_padded():
    image = np.full((400, 500, 3), 230, np.uint8)
    centers = np.array([[100.0, 150.0], [250.0, 200.0], [0.0, 0.0], [499.5, 399.5]])
    for x, y in centers[:2].astype(int):
        image[y - 5:y + 5, x - 5:x + 5] = (90, 40, 120)
    tiles = cut_spots(Slide.from_array(image, mpp=0.5), centers, tile_um=40, tile_px=40)
    assert tiles.img.shape == (4, 40, 40, 3) and tiles.mpp == 1.0 and tiles.source_px == 80
    np.testing.assert_array_equal(tiles.coords, np.rint(centers - 40))
    for tile in tiles.img[:2]:
        dark = tile[..., 1] < 150
        y, x = np.nonzero(dark)
        assert (y.mean(), x.mean()) == (19.5, 19.5) and dark.sum() in range(20, 40)
    np.testing.assert_allclose(tiles.outside, [0, 0, 0.75, 0.75], atol=0.02)
    assert tiles.select(np.array([True, False, True, False])).coords.tolist() == [
        tiles.coords[0].tolist(), tiles.coords[2].tolist()]


def test_micrometres_mean_the_same_at_two_resolutions():
    rng = np.random.default_rng(1)
    coarse = np.clip(rng.normal(150, 40, (60, 60, 3)), 0, 255).astype(np.uint8)
    fine = coarse.repeat(4, axis=0).repeat(4, axis=1)
    centers = np.array([[20.0, 24.0], [36.0, 30.0]])
    one = cut_spots(Slide.from_array(coarse, mpp=2.0), centers, tile_um=40, tile_px=20)
    two = cut_spots(Slide.from_array(fine, mpp=0.5), centers * 4, tile_um=40, tile_px=20)
    # The triangle filter of a reduction is a little softer than no filter at all.
    correlation = np.corrcoef(one.img.ravel().astype(float), two.img.ravel().astype(float))[0, 1]
    assert correlation > 0.9
    shifted = cut_spots(Slide.from_array(fine, mpp=0.5), centers * 4 + 4, tile_um=40, tile_px=20)
    assert np.corrcoef(one.img.ravel().astype(float),
                       shifted.img.ravel().astype(float))[0, 1] < 0.5


def test_refusals_name_the_image():
    slide = Slide.from_array(noise(), mpp=10.0, name="section-A1")
    with pytest.raises(InputError, match="section-A1.*10.0 px.*less than 16"):
        cut_spots(slide, np.array([[50, 50]]), tile_um=100, tile_px=224)
    with pytest.raises(InputError, match="section-A1.*no tile touches"):
        cut_spots(slide, np.array([[5000, 5000]]), tile_um=200, tile_px=20)
    with pytest.raises(InputError, match="section-A1.*mpp"):
        cut_spots(Slide.from_array(noise(), name="section-A1"), np.array([[5, 5]]), tile_um=200,
                  tile_px=20)
    with pytest.raises(InputError, match="section-A1.*centers"):
        cut_spots(slide, np.array([[np.nan, 5]]), tile_um=200, tile_px=20)


def test_grid_covers_the_slide_edge_to_edge():
    image = noise(130, 210)
    tiles = grid(Slide.from_array(image, mpp=1.0), tile_um=50, tile_px=50)
    assert len(tiles) == 3 * 5
    canvas = np.zeros((150, 250, 3), np.uint8)
    for tile, (x, y) in zip(tiles.img, tiles.coords, strict=True):
        canvas[y:y + 50, x:x + 50] = tile
    np.testing.assert_array_equal(canvas[:130, :210], image)
    np.testing.assert_allclose(tiles.outside.sum() * 2500, 150 * 250 - 130 * 210, rtol=1e-5)


def test_grid_keeps_what_has_enough_tissue():
    slide = Slide.from_array(discs(), mpp=1.0)
    mask = TissueMask((discs() != 245).any(axis=2), (1.0, 1.0))
    corners = grid_corners(slide, tile_um=40, tile_px=40, step_um=20, mask=mask, min_tissue=0.3)
    inside = np.pad(mask.mask, ((0, 40), (0, 40)))
    want = [(x, y) for y in range(0, 600, 20) for x in range(0, 800, 20)
            if inside[y:y + 40, x:x + 40].mean() >= 0.3]
    assert list(map(tuple, corners.tolist())) == want
    with pytest.raises(InputError, match="tissue"):
        grid(slide, tile_um=40, tile_px=40, mask=TissueMask(np.zeros((60, 80), bool), (10, 10)))


def test_fraction_is_the_exact_area():
    mask = np.random.default_rng(0).random((30, 40)) < 0.4
    tissue = TissueMask(mask, (10.0, 10.0))
    fine = np.pad(mask.repeat(10, axis=0).repeat(10, axis=1), 100)  # one cell per level-0 pixel
    x, y = np.array([0, 13, 395, -40, 7]), np.array([0, 27, 290, -30, 0])
    w, h = np.array([400, 35, 20, 80, 1]), np.array([300, 61, 30, 60, 5])
    want = [fine[100 + b:100 + b + d, 100 + a:100 + a + c].mean()
            for a, b, c, d in zip(x, y, w, h, strict=True)]
    np.testing.assert_allclose(tissue.fraction(x, y, w, h), want, atol=1e-12)


# mask


def test_otsu_is_scikit_images():
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(0)
    values = np.clip(np.r_[rng.normal(20, 6, 5000), rng.normal(110, 25, 3000)], 0, 255)
    values = values.astype(np.uint8)
    assert _otsu(values) == threshold_otsu(values)


def test_mask_finds_the_piece_and_neither_pen_nor_crumb():
    image = discs()
    truth = (image == PINK).all(axis=2)
    truth[80:121, 580:621] = False
    mask = tissue_mask(Slide.from_array(image, mpp=8.0)).mask
    assert mask.shape == truth.shape
    union = mask | truth
    assert (mask & truth).sum() / union.sum() > 0.98
    assert not mask[400:, 540:].any() and not mask[:200, 500:].any()
    assert mask[380, 330] and not mask[250, 250]  # small hole filled, large hole kept


def test_holes_and_pieces_by_number_and_area():
    image = discs()
    square = {"unit_um": 8.0, "mask_um": 8.0, "use_otsu": False, "sthresh": 15}  # one mask pixel
    slide = Slide.from_array(image, mpp=8.0)

    def kept(**settings):
        mask = tissue_mask(slide, MaskPreset(mthresh=1, close=1, **square, **settings)).mask
        return bool(mask[380, 330]), bool(mask[250, 250]), bool(mask[100, 600])

    assert kept(a_t=0, a_h=0, max_n_holes=9) == (False, False, True)
    assert kept(a_t=0, a_h=0, max_n_holes=1) == (True, False, True)  # the larger hole is kept
    assert kept(a_t=0, a_h=0, max_n_holes=0) == (True, True, True)
    assert kept(a_t=0, a_h=500, max_n_holes=9) == (True, False, True)
    assert kept(a_t=500, a_h=0, max_n_holes=9) == (False, False, False)


def test_presets_are_clams():
    biopsy = PRESETS["biopsy"]
    assert (biopsy.sthresh, biopsy.mthresh, biopsy.close, biopsy.use_otsu, biopsy.a_t, biopsy.a_h,
            biopsy.max_n_holes) == (15, 11, 2, False, 1, 1, 2)
    with pytest.raises(InputError, match="biopsi.*biopsy"):
        tissue_mask(discs(), "biopsi")


def test_clams_areas_count_squares_of_512_level_0_pixels():
    # 400 x 400 px of tissue are 0.61 squares, 600 x 600 are 1.37: only these pass a_t = 1.
    image = np.full((1400, 1400, 3), 245, np.uint8)
    image[100:500, 100:500] = PINK
    image[700:1300, 700:1300] = PINK
    mask = tissue_mask(Slide.from_array(image, mpp=4.0), "biopsy")
    middle = (np.array([300, 1000]) / mask.scale[0]).astype(int)
    assert mask.mask[middle, middle].tolist() == [False, True]


def test_glass_alone_is_no_tissue():
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(240, 1.5, (300, 300, 1)) + rng.normal(0, 1, (300, 300, 3)), 0, 255)
    assert tissue_mask(glass.astype(np.uint8)).mask.mean() == 0


def test_mask_of_a_real_section(shared):
    path = sorted((shared / "data" / "her2st" / "ST-imgs").glob("C/C2/*.jpg"))[0]
    table = shared / "data" / "her2st" / "ST-spotfiles" / "C2_selection.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    place = [rows[0].index(name) for name in ("pixel_x", "pixel_y")]
    centers = np.array([[float(row[i]) for i in place] for row in rows[1:]])
    with open_slide(path, mpp=0.69) as slide:
        mask = tissue_mask(slide)
        under = mask.fraction(centers[:, 0] - 72, centers[:, 1] - 72, 144, 144)
        assert np.mean(under > 0.5) > 0.9  # spots were selected on tissue
        assert 0.1 < mask.mask.mean() < 0.25
        assert mask.fraction(0, 0, 9000, 2000) < 0.02  # glass


# store


@pytest.fixture
def tiles():
    slide = Slide.from_array(noise(300, 300), mpp=0.5)
    centers = np.array([[60.0, 60.0], [0.0, 10.0], [200.0, 150.0]])
    return cut_spots(slide, centers, tile_um=32, tile_px=32)


NAMES = ["AAAC-1", "10x12", "ö"]


def test_tiles_come_back_and_equal_tiles_give_equal_bytes(tmp_path, tiles):
    write_tiles(tmp_path / "a.h5", tiles, NAMES, key="k")
    time.sleep(1.1)  # h5 time stamps count seconds
    write_tiles(tmp_path / "b.h5", tiles, NAMES, key="k")
    assert sha256_file(tmp_path / "a.h5") == sha256_file(tmp_path / "b.h5")
    back = read_tiles(tmp_path / "a.h5")
    for name in ("img", "coords", "outside"):
        np.testing.assert_array_equal(getattr(back, name), getattr(tiles, name))
    assert back.barcodes == NAMES
    assert (back.tile_px, back.tile_um, back.mpp, back.source_mpp) == (32, 32.0, 1.0, 0.5)


def test_the_file_is_hests(tmp_path, tiles):
    write_tiles(tmp_path / "a.h5", tiles, NAMES)
    with h5py.File(tmp_path / "a.h5") as stream:
        assert stream["barcode"].shape == (3, 1) and stream["barcode"].dtype.kind == "S"
        assert dict(stream["img"].attrs) == {"patch_size_src": 64, "patch_size_target": 32,
                                             "downsample": 2, "pixel_size": 0.5}


def test_places_of_legacy_arrays_are_padded_for_hest_and_come_back(tmp_path, tiles):
    names = ["9x12", "10x12", *(f"{n}x1" for n in range(len(tiles) - 2))]
    write_tiles(tmp_path / "a.h5", tiles, names, layout="hest")
    with h5py.File(tmp_path / "a.h5") as stream:
        stored = [name.decode() for name in stream["barcode"][:, 0]]
    assert stored[:2] == ["009x012", "010x012"] and len(set(map(len, stored))) == 1
    assert read_tiles(tmp_path / "a.h5").barcodes == names
    with pytest.raises(InputError, match="layout: 'clam'"):
        write_tiles(tmp_path / "b.h5", tiles, names, layout="clam")


@pytest.mark.parametrize("side", [224, 256])
def test_hests_own_files_are_read_at_their_size(tmp_path, side):
    img = np.zeros((2, side, side, 3), np.uint8)
    with h5py.File(tmp_path / "T.h5", "w") as stream:
        stream["img"], stream["coords"] = img, np.array([[5, 6], [7, 8]])
        stream["barcode"] = np.array([[b"A-1"], [b"B-1"]])
        stream["img"].attrs.update({"patch_size_src": 323, "patch_size_target": side,
                                    "downsample": 1.44, "pixel_size": 0.3467})
    tiles = read_tiles(tmp_path / "T.h5")
    assert tiles.tile_px == side and tiles.barcodes == ["A-1", "B-1"]
    assert tiles.tile_um == pytest.approx(323 * 0.3467) and tiles.source_mpp == 0.3467
    with h5py.File(tmp_path / "T.h5", "a") as stream:
        del stream["img"].attrs["patch_size_src"]
    with pytest.raises(InputError, match="tile_um"):
        read_tiles(tmp_path / "T.h5")
    assert read_tiles(tmp_path / "T.h5", tile_um=112).mpp == 112 / side


def test_broken_tile_files_are_one_clear_error(tmp_path, tiles):
    path = tmp_path / "section.h5"
    write_tiles(path, tiles, NAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="section.h5.*truncated"):
        read_tiles(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as stream:
        del stream["coords"]
        stream["coords"] = np.zeros((2, 2), int)
    with pytest.raises(InputError, match="section.h5: coords: has 2 rows for 3"):
        read_tiles(path)
    for names, problem in ((["a", "a", "b"], "more than once"), (["a"], "1 names for 3"),
                           (None, "no names")):
        with pytest.raises(InputError, match=problem):
            write_tiles(tmp_path / "x.h5", tiles, names)
    assert not (tmp_path / "x.h5").exists()


def test_a_manifest_row_says_what_a_file_holds(tmp_path):
    slide = Slide.from_array(np.full((300, 300, 3), 200, np.uint8), mpp=0.5)
    tiles = cut_spots(slide, np.array([[20, 150], [150, 150]]), tile_um=32.0, tile_px=32)
    write_tiles(tmp_path / "a.h5", tiles, ["x", "y"], key="k")
    row = manifest_row(tmp_path / "a.h5")
    assert {k: row[k] for k in ("section", "n_tiles", "tile_px", "sha256")} == {
        "section": "a", "n_tiles": 2, "tile_px": 32, "sha256": "k"}
    assert row["tile_um"] == 32.0 and row["mpp"] == 1.0 and row["source_mpp"] == 0.5
    assert row["padded_max"] == pytest.approx(tiles.outside.max()) and row["padded_max"] > 0


def changed(path, **change):
    """Replace datasets, and attributes of the file (`attrs`) or of `img` (`img_attrs`)."""
    with h5py.File(path, "a") as stream:
        for name, value in change.pop("attrs", {}).items():
            stream.attrs[name] = value
        for name, value in change.pop("img_attrs", {}).items():
            stream["img"].attrs[name] = value
        for name, value in change.items():
            kept = dict(stream[name].attrs)
            del stream[name]
            stream[name] = value
            stream[name].attrs.update(kept)


@pytest.mark.parametrize("change, problem", [
    ({"img": np.zeros((3, 32, 32, 3), np.float32)}, "img: holds fractions"),
    ({"img": np.zeros((3, 32, 32, 3), np.uint16)}, "img: is uint16"),
    ({"img": np.zeros((3, 32, 31, 3), np.uint8)}, "img: is uint8 of shape"),
    ({"img": np.zeros((3, 32, 32, 4), np.uint8)}, "img: is uint8 of shape"),
    ({"img": np.zeros((3, 0, 0, 3), np.uint8)}, "img: is uint8 of shape"),
    ({"img": np.zeros((3, 16, 16, 3), np.uint8)}, "tile_px: is 32, the tiles are 16 px"),
    ({"coords": np.full((3, 2), np.nan)}, "coords: holds NaN"),
    ({"coords": np.full((3, 2), 1.5)}, "coords: holds fractions"),
    ({"coords": np.array([[b"1", b"2"]] * 3)}, "coords: holds text"),
    ({"outside": np.full(3, np.nan, np.float32)}, "outside: holds NaN"),
    ({"outside": np.full(3, 1.5, np.float32)}, "outside: is no share"),
    ({"outside": np.zeros(2, np.float32)}, "outside: has 2 rows for 3"),
    ({"barcode": np.array([b"a", b"a", b"b"])}, "barcode: stands more than once"),
    ({"barcode": np.array([b"a", b"", b"b"])}, "barcode: is blank in row 1"),
    ({"barcode": np.array([b"a", b"\xfe", b"b"])}, "barcode: is not UTF-8 in row 1"),
    *(({"attrs": {name: value}}, f"{name}: is ") for name in ("tile_um", "mpp", "source_mpp")
      for value in (0.0, -1.0, np.nan, np.inf, "0,5")),
    ({"attrs": {"mpp": 2.0}}, "mpp: is 2, but tile_um / tile_px is 1"),
    ({"img_attrs": {"pixel_size": 0.25}}, "source_mpp: is 0.5, but pixel_size is 0.25"),
    ({"img_attrs": {"pixel_size": -1.0}}, "pixel_size: is -1.0"),
])
def test_tile_files_that_cannot_be_true(tmp_path, tiles, change, problem):
    path = tmp_path / "a.h5"
    write_tiles(path, tiles, NAMES)
    changed(path, **change)
    with pytest.raises(InputError, match=f"a.h5: {problem}") as caught:
        read_tiles(path)
    assert "\n" not in str(caught.value)


def test_tiles_that_cannot_be_true_are_not_written(tmp_path, tiles):
    from dataclasses import replace

    for change, problem in (({"img": tiles.img.astype(np.float32)}, "img: is float32"),
                            ({"img": tiles.img[:, :30]}, "img: is uint8 of shape"),
                            ({"coords": np.full((3, 2), np.nan)}, "coords"),
                            ({"outside": np.full(3, -0.1)}, "outside"),
                            ({"tile_um": -1.0}, "tile_um"), ({"mpp": 3.0}, "mpp: is 3"),
                            ({"source_mpp": np.inf}, "source_mpp")):
        with pytest.raises(InputError, match=problem):
            write_tiles(tmp_path / "a.h5", replace(tiles, **change), NAMES)
    with pytest.raises(InputError, match="blank"):
        write_tiles(tmp_path / "a.h5", tiles, ["a", " ", "b"])
    assert not (tmp_path / "a.h5").exists()


def test_a_repeated_name_among_many_is_found_by_counting():
    class Counted(str):
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Counted(f"B{i}") for i in range(4000)]
    with pytest.raises(InputError, match="more than once.*B0"):
        encode_names("x", names[:-1] + [Counted("B0")], 4000)
    assert Counted.compared < 40_000


def test_the_manifest_of_tiles_is_compared(tmp_path, tiles):
    import pandas as pd

    for name in ("007", "8"):
        write_tiles(tmp_path / f"{name}.h5", tiles, NAMES, key=f"k{name}")
    rows = pd.DataFrame([manifest_row(tmp_path / f"{name}.h5") for name in ("007", "8")])
    rows.to_csv(tmp_path / "manifest.csv", index=False)
    assert read_manifest(tmp_path)["section"].tolist() == ["007", "8"]
    for column, value in (("n_tiles", 4), ("mpp", 2.0), ("sha256", "other")):
        rows.assign(**{column: value}).to_csv(tmp_path / "manifest.csv", index=False)
        with pytest.raises(InputError, match=f"manifest.csv: {column}: of section 007 is"):
            read_manifest(tmp_path)
    rows.assign(section=["007", "9"]).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(InputError, match="9.h5: file: does not exist"):
        read_manifest(tmp_path)


def test_no_tile_is_a_table_with_columns_and_no_picture(tmp_path):
    found = store.manifest(tmp_path, [])
    assert found.empty and list(found.columns) == list(store.MANIFEST_COLUMNS)
    assert store.pictures(tmp_path, ["absent"], [0]) is None


def test_features_of_one_pool_are_found_and_encoders_without_it_are_named(tmp_path, capsys):
    run = notebook.Run("x", {"profile": "p", "out": str(tmp_path), "data": "", "seed": 0})
    with pytest.raises(InputError, match="04_embed"):
        pools.embedded(run, ["a"])
    for encoder, pool, rows in (("a", "", []), ("a", "slides", ["S"]), ("b", "labelled", ["I"])):
        pools.write_manifest(run.path(pool, "features", encoder), [
            {"section": name, "n_tiles": 3, "width": 2} for name in rows])
    pool, found = pools.embedded(run, ["a", "b"])
    assert pool == "slides" and found == {"a": run.path("slides", "features", "a")}
    assert "Left out" in capsys.readouterr().out
    assert pools.embedded(run, ["b"])[0] == "labelled"
    pools.write_manifest(run.path("features", "c"), [])
    assert pools.embedded(run, ["c"]) == ("cohort", {})
