"""The explorer: what its figure holds, what a click does, and a click in a real browser."""

import base64
import io
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from mvhlib import artifacts, cohort, commands, explorer, features
from mvhlib.artifacts import InputError
from mvhlib.cohort import base
from mvhlib.explorer import panels
from mvhlib.expression.scores import dense
from mvhlib.tiles import cut, store

ROOT = Path(__file__).resolve().parents[1]
GENES = ["A1", "B<2>", "C3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two sections by two encoders, as 01, 02, 04 and 05 leave it."""
    folder = tmp_path_factory.mktemp("out") / "runs" / "small"
    people = cohort.read("synthetic", folder / "cohort", seed=0, n_studies=1,
                         patients_per_study=2, sections_per_patient=1, spots_per_side=6)
    rng = np.random.default_rng(0)
    for section in people:
        base.write_section(section, folder / "cohort")
        names = list(section.adata.obs_names)
        with section.slide as slide:
            tiles = cut.cut_spots(slide, section.centers, tile_um=100.0, tile_px=32)
        store.write_tiles(folder / "tiles" / f"{section.name}.h5", tiles, names)
        for width, encoder in ((5, "one"), (7, "two")):
            vectors = rng.standard_normal((len(names), width)).astype(np.float32) + 3
            features.write_features(folder / "features" / encoder / f"{section.name}.h5",
                                    features.Features(vectors, tiles.coords, names, {}))
            truth = rng.gamma(2.0, 1.0, (len(names), len(GENES)))
            prediction = anndata.AnnData(
                obs=pd.DataFrame(index=names), var=pd.DataFrame(index=GENES),
                layers={"measured": truth, "predicted": 5 + truth + rng.random(truth.shape)},
                obsm={"spatial": section.centers})
            home = folder / "expression" / "loso" / "ridge" / encoder
            with artifacts.atomic(home / "predictions" / f"{section.name}.h5ad") as path:
                prediction.write_h5ad(path)
            artifacts.write_csv(home / "scores.csv", pd.DataFrame({"pcc": [0.5]}))
    artifacts.write_csv(folder / "cohort" / "manifest.csv", people.manifest)
    return folder


@pytest.fixture(scope="module")
def predicted(run, tmp_path_factory):
    """What make predict leaves of a slide, and the slide."""
    folder = tmp_path_factory.mktemp("predictions")
    section = next(iter(cohort.read("run", run / "cohort")))
    adata = section.adata.copy()
    made = anndata.AnnData(np.log1p(adata.layers["counts"].astype(float)), obs=adata.obs[[]],
                           var=adata.var[[]], obsm={"spatial": section.centers})
    made.uns["spatial"] = {"slide": next(iter(adata.uns["spatial"].values()))}
    made.uns["mvh"] = {"encoder": "one", "unit": "ln(1 + counts)", "tile_um": 100.0, "mpp": 1.5625,
                       "tile_px": 64}
    with artifacts.atomic(folder / "slide" / "slide.h5ad") as path:
        made.write_h5ad(path)
    return folder, section.roots["cohort"] / section.image_ref.path


def pixels_of(uri):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))), float)


def test_panels_hold_z_scores_and_their_difference(run):
    shown = explorer.explore(run, encoder="two", gene="C3")
    fig = (shown.widget, shown.figure_widget)[1]
    layers = anndata.read_h5ad(run / "expression/loso/ridge/two/predictions"
                               / f"{shown.view.section}.h5ad").layers
    z = {name: (layers[name][:, 2] - layers[name][:, 2].mean()) / layers[name][:, 2].std()
         for name in ("measured", "predicted")}
    z["residual"] = z["measured"] - z["predicted"]
    assert [trace.name for trace in fig.data[:3]] == list(z)
    for trace in fig.data[:3]:
        np.testing.assert_allclose(trace.marker.color, z[trace.name], atol=1e-9)
        np.testing.assert_allclose(trace.customdata, np.column_stack(
            [layers["measured"][:, 2], layers["predicted"][:, 2], z["residual"]]), atol=1e-9)
        assert list(trace.text) == shown.view.barcodes
    both = np.quantile(np.abs([z["measured"], z["predicted"]]), 0.99)
    assert fig.data[0].marker.coloraxis == fig.data[1].marker.coloraxis == "coloraxis"
    assert fig.data[2].marker.coloraxis == "coloraxis2"
    assert fig.layout.coloraxis.cmax == pytest.approx(both) == -fig.layout.coloraxis.cmin
    assert fig.layout.coloraxis2.cmax == pytest.approx(np.quantile(np.abs(z["residual"]), 0.99))
    r = np.corrcoef(layers["measured"][:, 2], layers["predicted"][:, 2])[0, 1]
    assert f"r = {r:.2f}" in fig.layout.title.text


@pytest.mark.parametrize("size, scale", [((400, 300), 0.1), ((90, 4000), 1.0), ((31, 17), 0.013)])
def test_a_spot_lies_where_it_lies_on_the_section(run, size, scale):
    """A black pixel below each spot is found again below the spot, whatever the picture's size."""
    width, height = size
    rng = np.random.default_rng(1)
    places = rng.integers(1, [width - 1, height - 1], (6, 2))
    picture = np.full((height, width, 3), 255, np.uint8)
    for x, y in places:
        picture[max(0, y - 8):y + 8, max(0, x - 8):x + 8] = 0
    tissue = anndata.AnnData(np.zeros((6, 2)), obsm={"spatial": places / scale})
    tissue.var_names, tissue.uns["spatial"] = ["g", "h"], {"s": {
        "images": {"hires": picture},
        "scalefactors": {"tissue_hires_scalef": scale, "spot_diameter_fullres": 5 / scale}}}
    view = explorer.View("s", "e", tissue, tissue)
    fig = panels.build(view, "g", 0.5)
    (image,) = fig.layout.images
    drawn = pixels_of(image.source)
    assert max(drawn.shape[:2]) == min(panels.PICTURE_PX, max(size))
    for x, y in zip(fig.data[0].x, fig.data[0].y, strict=True):
        column = int((x - image.x) / image.sizex * drawn.shape[1])
        row = int((y - image.y) / image.sizey * drawn.shape[0])
        assert drawn[row, column].max() < 60
    assert (image.xanchor, image.yanchor, image.sizing) == ("left", "top", "stretch")
    bottom, top = fig.layout.yaxis.range
    assert bottom > top, "pixels count downwards"


def test_all_panels_move_together_and_keep_their_shape(run):
    fig = (shown := explorer.explore(run)).widget and shown.figure_widget
    axes = [fig.layout[f"{axis}{number}"] for axis in ("xaxis", "yaxis") for number in (1, 2, 3)]
    assert [axis.matches for axis in axes[1:3] + axes[4:]] == ["x", "x", "y", "y"]
    assert (fig.layout.yaxis.scaleanchor, fig.layout.yaxis.scaleratio) == ("x", 1)
    assert [image.xref for image in fig.layout.images] == ["x", "x2", "x3"]
    size = fig.data[0].marker.size
    (left, right), (bottom, top) = fig.layout.xaxis.range, fig.layout.yaxis.range
    # A panel's side on the screen, from the layout alone: spots are as large as on the tissue.
    low, high = fig.layout.xaxis2.domain
    side = (high - low) * (fig.layout.width - fig.layout.margin.l - fig.layout.margin.r)
    assert side == pytest.approx(fig.layout.height - fig.layout.margin.t - fig.layout.margin.b)
    assert size == pytest.approx(64 * side / max(right - left, bottom - top))
    fig.update_layout(xaxis_range=(left, left + (right - left) / 2),
                      yaxis_range=(bottom, bottom + (top - bottom) / 2))
    np.testing.assert_allclose([trace.marker.size for trace in fig.data[:3]], 2 * size)


def click(shown, row, panel=0):
    """What the browser's message of a click calls."""
    from plotly.callbacks import InputDeviceState, Points

    trace = shown.figure_widget.data[panel]
    trace._dispatch_on_click(Points([row], [trace.x[row]], [trace.y[row]], trace.name, panel),
                             InputDeviceState())


@pytest.mark.parametrize("panel", [0, 1, 2])
def test_a_click_shows_the_tile_and_the_nearest_by_cosine(run, panel):
    shown = explorer.explore(run, encoder="two")
    shown.widget  # noqa: B018, made at first use
    section, row = shown.view.section, 4 + panel
    click(shown, row, panel)
    stored = features.read_folder(run / "features" / "two")
    names = [(name, barcode) for name in stored for barcode in stored[name].barcodes]
    vectors = np.concatenate([each.features for each in stored.values()]).astype(np.float64)
    vectors = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    own = names.index((section, shown.view.barcodes[row]))
    cosine = vectors @ vectors[own] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[own])
    cosine[own] = -2
    assert shown.shown == [names[own]] + [names[i] for i in np.argsort(-cosine)[:5]]
    tiles = store.read_tiles(run / "tiles" / f"{section}.h5")
    np.testing.assert_array_equal(shown.source.tile(section, shown.view.barcodes[row]),
                                  tiles.img[tiles.barcodes.index(shown.view.barcodes[row])])
    page = shown.controls["tiles"].value
    assert page.count("<img") == 6 and f"spot {shown.view.barcodes[row]} of {section}" in page
    for ring in shown.figure_widget.data[3:]:
        np.testing.assert_allclose((ring.x[0], ring.y[0]), shown.view.places[row])


def test_choosers_change_what_is_drawn(run):
    shown = explorer.explore(run)
    shown.widget  # noqa: B018
    fig, parts = shown.figure_widget, shown.controls
    click(shown, 2)
    first, before = shown.shown, np.array(fig.data[1].marker.color)
    zoomed = (10.0, 90.0)
    fig.layout.xaxis.range = zoomed
    parts["gene"].value = "B<2>"
    assert "B&lt;2&gt;" in fig.layout.title.text and not np.allclose(fig.data[1].marker.color,
                                                                     before)
    assert tuple(fig.layout.xaxis.range) == zoomed and shown.shown == first
    parts["encoder"].value = "two"
    assert "from two" in fig.layout.title.text
    assert shown.shown[0] == first[0] and shown.shown != first
    assert (tuple(parts["section"].options), tuple(parts["encoder"].options)) == (
        tuple(shown.source.names), ("one", "two"))
    parts["section"].value = other = shown.source.names[1]
    assert shown.view.section == other and shown.shown == [] and len(fig.data[3].x) == 0
    assert tuple(fig.layout.xaxis.range) != zoomed
    np.testing.assert_allclose(np.column_stack([fig.data[2].x, fig.data[2].y]), shown.view.places)
    parts["gene"].value = ""  # somebody empties it to type
    assert shown.gene == "B<2>"
    parts["opacity"].value = 0.2
    assert {trace.marker.opacity for trace in fig.data[:3]} == {0.2}


def test_a_prediction_has_one_panel_and_tiles_of_its_slide(run, predicted):
    folder, slide = predicted
    shown = explorer.explore(folder / "slide", slide=slide)
    assert repr(explorer.explore(folder)) == repr(shown)
    shown.widget  # noqa: B018
    assert [trace.name for trace in shown.figure_widget.data] == ["predicted", "ring"]
    np.testing.assert_allclose(shown.figure_widget.data[0].marker.color,
                               dense(shown.view.prediction[:, shown.gene].X).ravel())
    click(shown, 3)
    values = dense(shown.view.prediction.X).astype(np.float64)
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    order = [row for row in np.argsort(-(unit @ unit[3])) if row != 3]
    assert [barcode for _, barcode in shown.shown[1:]] == [shown.view.barcodes[i]
                                                           for i in order[:5]]
    assert "predicted expression" in shown.controls["said"].value
    # The slide at hand, a tile is as 02 cuts it; the thumbnail of so small a slide is the slide.
    name, barcode = next(iter(cohort.read("run", run / "cohort"))).name, shown.view.barcodes[3]
    with cohort.read("run", run / "cohort")[name].slide as opened:
        own = cut.cut_spots(opened, shown.view.places[3:4], tile_um=100.0, tile_px=64).img[0]
    np.testing.assert_array_equal(shown.source.tile("slide", barcode), own)
    np.testing.assert_array_equal(explorer.explore(folder).source.tile("slide", barcode), own)


def test_what_is_not_there_is_refused_by_name(run, predicted, tmp_path):
    for options, text in (({"gene": "Z9"}, "'Z9' was not predicted"),
                          ({"section": "S9"}, "'S9' was not predicted"),
                          ({"encoder": "three"}, "'three' was not scored")):
        with pytest.raises(InputError, match=text):
            explorer.explore(run, **options)
    with pytest.raises(InputError, match="make predict"):
        explorer.explore(tmp_path)
    shown = explorer.explore(run)
    with pytest.raises(InputError, match="'no such spot'"):
        shown.click("no such spot")
    shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("features", "tiles"))
    bare = explorer.explore(tmp_path / "bare")
    bare.widget  # noqa: B018
    click(bare, 0)
    assert bare.shown == [(bare.view.section, bare.view.barcodes[0])]
    assert bare.controls["tiles"].value.count("<img") == 1
    assert "keeps no embedding" in bare.controls["said"].value


def test_without_a_browser_there_is_one_static_figure(run, predicted, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    for shown in (explorer.explore(run), explorer.explore(predicted[0])):
        fig = shown.show()
        assert shown._widget is None, "no widget is made, and none is stored in the notebook"
        titles = [ax.get_title() for ax in fig.axes]
        assert sum(title.startswith(("spot of", "nearest")) for title in titles) == 6
        plt.close(fig)


@pytest.fixture
def lab(run, tmp_path):
    """JupyterLab on a notebook that shows the explorer; its address."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    notebook = {"cells": [{"cell_type": "code", "id": "one", "metadata": {}, "outputs": [],
                           "execution_count": None, "source": "from mvhlib import explorer\n"
                           f"shown = explorer.explore({str(run)!r})\nshown"}],
                "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                            "language": "python"}},
                "nbformat": 4, "nbformat_minor": 5}
    artifacts.write_json(tmp_path / "home" / "look.ipynb", notebook)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex()
    env = commands.surroundings(tmp_path) | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "lab.log", "w") as log, subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
             "--expose-app-in-browser",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
             f"--notebook-dir={tmp_path / 'home'}"],
            env=env, stdout=log, stderr=log, cwd=tmp_path) as server:
        yield f"http://127.0.0.1:{port}/lab/tree/look.ipynb?token={token}"
        server.terminate()  # it ends its kernels, and waits for them


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window, and nothing of a person's."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 "window-size=1400,1100", f"user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument("--" + flag)
    opened = webdriver.Chrome(service=webdriver.ChromeService(driver), options=options)
    yield opened
    opened.quit()


@pytest.mark.slow
def test_in_a_browser_a_clicked_spot_shows_its_tile(run, browser, lab, tmp_path):
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver import ActionChains, Keys

    def until(script, *given, seconds=120):
        """What the page answers, once it is something."""
        for _ in range(4 * seconds):
            if found := browser.execute_script("return " + script, *given):
                return found
            time.sleep(0.25)
        browser.save_screenshot(str(tmp_path / "waited.png"))
        pytest.fail(f"waited {seconds} s for {script}: {tmp_path}")

    for _ in range(120):
        try:
            browser.get(lab)
            break
        except WebDriverException:  # the server is starting
            time.sleep(0.5)
    until("window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell') && "
          "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    until("document.querySelectorAll('.js-plotly-plot .scatterlayer path.point').length > 9")

    section = explorer.explore(run).view.section
    barcodes = list(anndata.read_h5ad(
        run / "expression/loso/ridge/one/predictions" / f"{section}.h5ad").obs_names)
    # Spots of the synthetic sections touch: on the screen too, as far as one can see.
    apart, width = browser.execute_script(
        "const places = [...document.querySelectorAll('.js-plotly-plot g.points')[0]"
        ".querySelectorAll('path.point')].map(each => each.getBoundingClientRect());"
        "return [places[1].left - places[0].left, places[0].width]")
    assert apart == pytest.approx(width, rel=0.02)

    for row, panel in ((7, 0), (11, 4)):  # of the measured and of the residual panel
        point = browser.execute_script(
            "return document.querySelectorAll('.js-plotly-plot g.points')[arguments[0]]"
            ".querySelectorAll('path.point')[arguments[1]]", panel, row)
        ActionChains(browser).move_to_element(point).pause(0.3).click().perform()
        title = f"spot {barcodes[row]} of {section}"
        until("[...document.querySelectorAll('.mvh-tiles figcaption')].some("
              "each => each.textContent === arguments[0])", title)
        assert until("document.querySelectorAll('.mvh-tiles img').length") == 6
        assert until("document.querySelector('.hoverlayer').textContent.includes(arguments[0])",
                     barcodes[row])
    browser.save_screenshot(str(tmp_path / "clicked.png"))

    ranges = ("['xaxis', 'xaxis2', 'xaxis3'].map(axis => "
              "document.querySelector('.js-plotly-plot')._fullLayout[axis].range.join())")
    before = until(ranges)
    size = "document.querySelector('.js-plotly-plot')._fullData[1].marker.size"
    drawn = until(size)
    browser.execute_script(
        "const at = document.querySelectorAll('.js-plotly-plot .nsewdrag')[0], "
        "box = at.getBoundingClientRect(); at.dispatchEvent(new WheelEvent('wheel', {deltaY: -200,"
        "clientX: box.left + 100, clientY: box.top + 100, bubbles: true, cancelable: true}))")
    after = until(f"{ranges}[0] !== arguments[0] && {ranges}", before[0])
    assert len(set(before)) == len(set(after)) == 1, "three panels show one part of the section"
    assert until(f"{size} > 1.05 * arguments[0] && {size}", drawn), "spots grow with the tissue"

    field = browser.find_element("xpath", "//label[.='gene']/parent::*//input")
    field.click()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("C3", Keys.ENTER)
    until("document.querySelector('.js-plotly-plot .gtitle').textContent.includes(', C3, ')")
    browser.save_screenshot(str(tmp_path / "zoomed.png"))
