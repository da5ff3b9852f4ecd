"""A section's maps as one plotly figure, and tiles as HTML: everything that needs no browser.

Axes are in level-0 pixels, downwards like an image. The picture is stretched over the part of them
that it shows, whatever its own size is, so that a spot lies on the tissue that it lies on.
"""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mvhlib.explorer.sources import View

#: Longest side of the picture below the spots [px]; each panel carries it once.
PICTURE_PX = 1500

#: Spots drawn as SVG; more of them are drawn by WebGL, which not every browser has.
SVG_SPOTS = 4000

#: Side of a panel by their number, and what stands around all of them [px]; gaps are shares.
PANEL_PX, TITLE_PX, BAR_PX, MARGIN_PX, GAP = {1: 560, 3: 290}, 70, 90, 5, 0.02

#: Side of a tile on the page [px].
TILE_PX = 110

#: Largest and smallest drawn spot [px].
SPOT_PX = (2.0, 300.0)

_BARS = {"measured": "coloraxis", "predicted": "coloraxis", "residual": "coloraxis2"}
_SHOWN = {"measured": "measured_z", "predicted": "predicted_z", "residual": "residual"}


def panels_of(view: "View") -> list[str]:
    """Names of a view's panels, from left to right."""
    return ["measured", "predicted", "residual"] if view.has_truth else ["predicted"]


def data_uri(pixels: np.ndarray, longest_px: int | None = None) -> str:
    """Pixels `(h, w, 3)` uint8 as a JPEG in a data URI, never enlarged."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if longest_px is not None:
        picture.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def extent(view: "View") -> tuple[float, float, float, float]:
    """What a panel shows at first: left, right, bottom and top [level-0 px].

    The spots and a margin. The picture may go on outside; one sees it by zooming out.
    """
    (left, top), (right, bottom) = view.places.min(axis=0), view.places.max(axis=0)
    margin = max(view.spot_px, 0.04 * max(right - left, bottom - top))
    return left - margin, right + margin, bottom + margin, top - margin


def spot_size(view: "View", width: float, height: float) -> float:
    """Diameter of a marker [screen px], where a panel shows `width` x `height` level-0 px."""
    side = PANEL_PX[len(panels_of(view))]
    drawn = view.spot_px * side / max(width, height, 1e-9)
    return float(np.clip(drawn, *SPOT_PX))


def limits(view: "View", values: "pd.DataFrame") -> dict[str, tuple[float, float]]:
    """Range of each colour axis.

    With a truth values are z-scores, and as in `mvhlib.maps.measured_predicted` measured and
    predicted share one range that is symmetric about 0. A prediction alone is shown in its unit.
    """
    if not view.has_truth:
        low, high = np.nanquantile(values["predicted"], [0.01, 0.99])
        return {"coloraxis": (float(low), float(max(high, low + 1e-9)))}
    both = [max(1e-9, float(np.nanquantile(np.abs(values[kinds]), 0.99)))
            for kinds in (["measured_z", "predicted_z"], ["residual"])]
    return {axis: (-limit, limit) for axis, limit in
            zip(("coloraxis", "coloraxis2"), both, strict=True)}


def build(view: "View", gene: str, opacity: float) -> "go.FigureWidget":
    """The panels of a view; zooming or moving one moves all.

    Parameters
    ----------
    opacity
        Of the spots [0-1].

    Returns
    -------
    FigureWidget
        Its first traces are the panels', named as `panels_of`; those behind ring the chosen spot.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = panels_of(view)
    fig = go.FigureWidget(make_subplots(1, len(names), subplot_titles=names,
                                        horizontal_spacing=GAP))
    fig._config = {"scrollZoom": True, "displaylogo": False, "responsive": False}
    dots = go.Scattergl if len(view.barcodes) > SVG_SPOTS else go.Scatter
    hover = ("<b>%{text}</b>" + "".join(
        f"<br>{kind}{' [z]' * (kind == 'residual')} %{{customdata[{k}]:.3g}}"
        for k, kind in enumerate(names))
        + "<extra></extra>")
    for column, name in enumerate(names, start=1):
        fig.add_trace(dots(mode="markers", name=name, hovertemplate=hover, showlegend=False,
                           marker={"coloraxis": _BARS[name], "line": {"width": 0}},
                           unselected={"marker": {"opacity": None}}), row=1, col=column)
    for column in range(1, len(names) + 1):
        fig.add_trace(go.Scatter(mode="markers", hoverinfo="skip", showlegend=False, name="ring",
                                 marker={"color": "rgba(0,0,0,0)", "size": 20,
                                         "line": {"color": "black", "width": 2.5}}),
                      row=1, col=column)
    fig.update_xaxes(matches="x", visible=False, constrain="domain")
    fig.update_yaxes(matches="y", visible=False, constrain="domain")
    fig.update_yaxes(scaleanchor="x", scaleratio=1, row=1, col=1)
    side, shared = PANEL_PX[len(names)], 1 - GAP * (len(names) - 1)
    fig.update_layout(width=len(names) * side / shared + 2 * MARGIN_PX,
                      height=side + TITLE_PX + BAR_PX, dragmode="pan", template="plotly_white",
                      margin={"l": MARGIN_PX, "r": MARGIN_PX, "t": TITLE_PX, "b": BAR_PX},
                      **_colour_axes(names, view.unit))
    fill(fig, view, gene, opacity)
    return fig


def _colour_axes(names: Sequence[str], unit: str) -> dict[str, Any]:
    """A colour bar below the panels that share it."""
    bar = {"orientation": "h", "y": -0.02, "yanchor": "top", "thickness": 10,
           "title": {"side": "bottom"}}
    if len(names) == 1:
        return {"coloraxis": {"colorscale": _scale("viridis"), "colorbar": bar | {
            "x": 0.5, "len": 0.7, "title": {"text": unit, "side": "bottom"}}}}
    return {"coloraxis": {"colorscale": _scale("viridis"), "colorbar": bar | {
                "x": 1 / 3, "len": 0.4, "title": {"text": "z", "side": "bottom"}}},
            "coloraxis2": {"colorscale": _scale("coolwarm"), "colorbar": bar | {
                "x": 5 / 6, "len": 0.3, "title": {"text": "z, measured - predicted",
                                                  "side": "bottom"}}}}


def _scale(name: str) -> list[list]:
    """A colour map of matplotlib, as plotly takes it."""
    import matplotlib
    from matplotlib.colors import to_hex

    return [[float(at), to_hex(matplotlib.colormaps[name](at))] for at in np.linspace(0, 1, 33)]


def fill(fig: "go.FigureWidget", view: "View", gene: str, opacity: float, *,
         again: bool = True) -> None:
    """Put a view's picture, spots and values into a figure that has its panels.

    Parameters
    ----------
    again
        Show all of the section, and take its picture; False keeps zoom, picture and places, where
        only values change.
    """
    values, names = view.values(gene), panels_of(view)
    left, right, bottom, top = extent(view)
    hovered = np.column_stack([values["residual" if name == "residual" else name]
                               for name in names])
    with fig.batch_update():
        for trace, name in zip(fig.data, names, strict=False):
            shown = values[_SHOWN[name] if view.has_truth else name].to_numpy()
            trace.update(x=values["x_px"].to_numpy(), y=values["y_px"].to_numpy(),
                         text=view.barcodes, customdata=hovered)
            trace.marker.color = shown
            trace.marker.opacity = opacity
        for axis, (low, high) in limits(view, values).items():
            fig.layout[axis].update(cmin=low, cmax=high)
        fig.layout.title = {"text": html.escape(title(view, gene, values)), "x": 0.01,
                            "font": {"size": 14}}
        if again:
            for trace in fig.data[:len(names)]:
                trace.marker.size = spot_size(view, right - left, bottom - top)
            fig.layout.xaxis.range, fig.layout.yaxis.range = (left, right), (bottom, top)
            fig.layout.images = _pictures(view, len(names))


def _pictures(view: "View", n_panels: int) -> list[dict]:
    """The picture below each panel, over the level-0 pixels that it shows."""
    if view.picture is None:
        return []
    pixels, scale = view.picture
    source = data_uri(pixels, PICTURE_PX)
    return [{"source": source, "xref": f"x{number}", "yref": f"y{number}", "x": 0, "y": 0,
             "sizex": pixels.shape[1] / scale, "sizey": pixels.shape[0] / scale,
             "xanchor": "left", "yanchor": "top", "sizing": "stretch", "layer": "below"}
            for number in [""] + list(range(2, n_panels + 1))]


def title(view: "View", gene: str, values: "pd.DataFrame") -> str:
    """Section, gene and encoder; with a truth the Pearson r over the section's spots."""
    text = f"{view.section}, {gene}, predicted from {view.encoder}"
    if not view.has_truth:
        return text
    if values[["measured_z", "predicted_z"]].std().min() <= 0:
        return text + ": constant, no r"
    return text + f": r = {np.corrcoef(values['measured_z'], values['predicted_z'])[0, 1]:.2f}"


def ring(fig: "go.FigureWidget", view: "View", barcode: str | None) -> None:
    """Ring a spot in all panels; None takes the ring away."""
    names = panels_of(view)
    place = view.places[view.row(barcode)] if barcode is not None else None
    with fig.batch_update():
        for trace in fig.data[len(names):]:
            trace.x, trace.y = ([place[0]], [place[1]]) if place is not None else ([], [])
            trace.marker.size = fig.data[0].marker.size + 6


def strip(pictures: Sequence[np.ndarray | None], titles: Sequence[str]) -> str:
    """Tiles in a row, each with its title above it, as HTML; None is a tile without pixels."""
    cells = []
    for pixels, text in zip(pictures, titles, strict=True):
        inside = "no image" if pixels is None else (
            f'<img src="{data_uri(pixels)}" width="{TILE_PX}" height="{TILE_PX}">')
        cells.append(f'<figure style="margin:0;width:{TILE_PX}px"><figcaption '
                     f'style="line-height:1.2;font-size:11px;min-height:2.6em">'
                     f'{html.escape(text)}</figcaption>{inside}</figure>')
    return ('<div class="mvh-tiles" style="display:flex;gap:10px;align-items:flex-start">'
            + "".join(cells) + "</div>")
