"""Widgets around the maps: choosers, the response to clicks, the layout."""

import html
from typing import TYPE_CHECKING, Any

from mvhlib.artifacts import InputError
from mvhlib.explorer import panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipywidgets import Widget

    from mvhlib.explorer import Explorer

INVITATION = "Click a spot to see its tile, and those nearest to it."


def make(shown: "Explorer") -> "dict[str, Widget]":
    """Choosers of section, gene and encoder by typing, opacity, and places for text and tiles."""
    import ipywidgets as widgets

    fig = shown.figure_widget
    made: dict[str, Any] = {
        name: widgets.Combobox(description=name, ensure_option=True, continuous_update=False,
                               placeholder="empty it, then type",
                               layout=widgets.Layout(width="250px"),
                               style={"description_width": "60px"})
        for name in ("section", "gene", "encoder")}
    made["opacity"] = widgets.FloatSlider(
        value=shown.opacity, min=0, max=1, step=0.05, description="opacity",
        layout=widgets.Layout(width="250px"), style={"description_width": "60px"})
    made["said"] = widgets.HTML(INVITATION)
    made["tiles"] = widgets.HTML()
    for trace in fig.data[:len(panels.panels_of(shown.view))]:
        trace.on_click(lambda trace, points, state: _clicked(shown, points.point_inds))
    fig.layout.on_change(lambda layout, x, y: _resize(shown, x, y), "xaxis.range", "yaxis.range")
    made["opacity"].observe(lambda change: _fade(shown, change["new"]), names="value")
    shown.controls = made
    offer(shown)
    for name in ("section", "gene", "encoder"):
        made[name].observe(lambda change, name=name: _chosen(shown, name, change["new"]),
                           names="value")
    return made


def offer(shown: "Explorer") -> None:
    """Let the choosers offer what there is, and say what is shown."""
    view = shown.view
    for name, options, value in (
            ("section", shown.source.sections(view.encoder), view.section),
            ("gene", sorted(view.genes), shown.gene),
            ("encoder", shown.source.encoders, view.encoder)):
        chooser = shown.controls[name]
        with chooser.hold_trait_notifications():
            chooser.options, chooser.value = tuple(options), value


def lay_out(shown: "Explorer") -> "Widget":
    """Choosers above the maps, tiles below; no chooser of one encoder."""
    import ipywidgets as widgets

    parts = shown.controls
    names = ["section", "gene", "encoder", "opacity"]
    if len(shown.source.encoders) == 1:
        names.remove("encoder")
    return widgets.VBox([widgets.HBox([parts[name] for name in names],
                                      layout=widgets.Layout(flex_flow="row wrap")),
                         shown.figure_widget, parts["said"], parts["tiles"]])


def _clicked(shown: "Explorer", rows: "Sequence[int]") -> None:
    """Respond to a click; a fault of a file is shown below the maps."""
    if len(rows):
        try:
            shown.click(shown.view.barcodes[rows[0]])
        except InputError as error:
            say(shown, error)


def say(shown: "Explorer", text: object) -> None:
    """Show a line below the maps."""
    shown.controls["said"].value = html.escape(str(text))


def _chosen(shown: "Explorer", name: str, value: str) -> None:
    """Follow a chooser; while somebody empties it nothing happens."""
    now = {"section": shown.view.section, "gene": shown.gene, "encoder": shown.view.encoder}
    if not value or value == now[name]:
        return
    try:
        shown.choose(**{name: value})
    except InputError as error:
        say(shown, error)
        offer(shown)  # what is still shown, not what was chosen


def _fade(shown: "Explorer", opacity: float) -> None:
    shown.opacity = opacity
    with shown.figure_widget.batch_update():
        for trace in shown.figure_widget.data[:len(panels.panels_of(shown.view))]:
            trace.marker.opacity = opacity


def _resize(shown: "Explorer", x: Any, y: Any) -> None:
    """Keep spots as large as they are on the tissue while it is zoomed."""
    if not x or not y:
        return
    size = panels.spot_size(shown.view, abs(x[1] - x[0]), abs(y[1] - y[0]))
    fig, n = shown.figure_widget, len(panels.panels_of(shown.view))
    if abs(size - fig.data[0].marker.size) > 0.02 * size:
        with fig.batch_update():
            for number, trace in enumerate(fig.data):
                trace.marker.size = size if number < n else size + 6
