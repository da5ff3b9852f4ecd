"""Look at one spot: its place, its tile, and the tiles that are most like it.

    from mvhlib import explorer
    explorer.explore("runs/demo")                  # the sections that a run tested
    explorer.explore("predictions/slide_7")        # what make predict wrote, without a truth

In JupyterLab the maps of measured, predicted and residual expression lie on the H&E, zoom and move
together, say value and barcode where the pointer is, and answer a click on a spot by its tile and
those nearest to it. Anywhere else (papermill, a script) there is one static figure.

The maps are a ``FigureWidget`` of plotly: one figure holds panels whose axes are linked
(``matches``), colour bars and hover texts, draws many spots by WebGL and hands clicks to Python;
its JavaScript is in its wheel, so that it works offline, and as an anywidget it needs no build of
JupyterLab.
jupyter-islide shows a slide at every depth, but needs the slide's file, which a run need not
have, and knows no panels that are linked. ipyleaflet has maps, one a widget: what links them, their
colour bars and hover texts would be code of ours. vitessce is an application of its own, whose
data come from stores that a local web server offers.
"""

import os
from typing import TYPE_CHECKING

import numpy as np

from mvhlib import maps, plots
from mvhlib.artifacts import InputError
from mvhlib.explorer import controls, panels
from mvhlib.explorer.sources import Gallery, OfPrediction, OfRun, View, open_source

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure

__all__ = ["Explorer", "Gallery", "OfPrediction", "OfRun", "View", "explore"]

N_NEAREST = 5

#: Of the spots at first [0-1].
OPACITY = 0.7


def explore(folder: str | os.PathLike, *, section: str | None = None, gene: str | None = None,
            encoder: str | None = None, protocol: str = "loso", method: str = "ridge",
            slide: str | os.PathLike | None = None) -> "Explorer":
    """Open a run or a prediction; the last line of a cell in JupyterLab shows it.

    Parameters
    ----------
    folder
        ``OUT/runs/<profile>``, or ``OUT`` or ``OUT/<slide>`` of `make predict`.
    section, gene, encoder
        What is shown at first; None takes the first of each.
    protocol, method
        Whose predictions of a run; where 05 left the protocol out, one that it wrote.
    slide
        The slide that one prediction was made of, for tiles at full resolution.

    Raises
    ------
    InputError
        If the folder is neither, or lacks what is asked for.
    """
    source = open_source(folder, protocol=protocol, method=method, encoder=encoder, slide=slide)
    if encoder is not None and encoder not in source.encoders:
        raise InputError(folder, "encoder", f"{encoder!r} predicted nothing here",
                         f"choose one of {source.encoders}")
    if source.remark:
        print(source.remark)
    return Explorer(source, source.encoders[0], section, gene)


class Explorer:
    """One section, gene and encoder at a time, and the spot that was clicked.

    Parameters
    ----------
    source
        `OfRun` or `OfPrediction`.
    encoder, section, gene
        What is shown at first; None takes the first.

    Attributes
    ----------
    view
        What is shown.
    gene, barcode
        The gene that is drawn, and the clicked spot; None before a click.
    shown
        Section and barcode of the tiles below the maps: the clicked spot's, then its nearest.
    """

    def __init__(self, source: OfRun | OfPrediction, encoder: str, section: str | None = None,
                 gene: str | None = None):
        self.source, self.opacity = source, OPACITY
        self.barcode: str | None = None
        self.shown: list[tuple[str, str]] = []
        self.controls: dict[str, Widget] = {}
        self._widget: Widget | None = None
        names = source.sections(encoder)
        if not names:
            raise InputError("explorer", "predictions", f"of {encoder} do not exist",
                             "run 05_expression again")
        self.view = self._view(names[0] if section is None else section, encoder)
        self.gene = self.view.genes[0] if gene is None else gene
        self.view.values(self.gene)  # refuses a gene that is not there

    def _view(self, section: str, encoder: str) -> View:
        names = self.source.sections(encoder)
        if section not in names:
            raise InputError("explorer", "section", f"{section!r} was not predicted from {encoder}",
                             f"choose one of {names[:5]} ...")
        return self.source.view(section, encoder)

    def nearest(self, barcode: str, n: int = N_NEAREST) -> list[tuple[str, str]]:
        """Section and barcode of the tiles most like a spot's, itself left out.

        Empty where a run does not keep the embedding.
        """
        gallery = self.source.gallery(self.view.section, self.view.encoder)
        return [] if gallery is None else gallery.nearest(self.view.section, barcode, n)

    # What widgets call.

    def click(self, barcode: str) -> None:
        """Show the tile of a spot, and those nearest to it."""
        self.view.row(barcode)  # refuses a spot that is not there
        self.barcode = barcode
        try:
            self.shown = [(self.view.section, barcode), *self.nearest(barcode)]
            said = "" if len(self.shown) > 1 else "The run keeps no embedding to search."
        except InputError as error:  # a spot off the tissue has no tile, and the maps stay
            self.shown, said = [(self.view.section, barcode)], str(error)
        if self._widget is None:
            return
        panels.ring(self.figure_widget, self.view, barcode)
        gallery = self.source.gallery(self.view.section, self.view.encoder)
        controls.say(self, f"Nearest by cosine {gallery.likeness}." if gallery and not said
                     else said)
        self.controls["tiles"].value = self.tiles_html()

    def tiles_html(self) -> str:
        """The tiles of `shown`, each with its title."""
        return panels.strip([self.source.tile(*each) for each in self.shown],
                            [f"{'spot' if place == 0 else f'nearest {place}:'} {barcode} of {name}"
                             for place, (name, barcode) in enumerate(self.shown)])

    def choose(self, *, section: str | None = None, gene: str | None = None,
               encoder: str | None = None) -> None:
        """Show another section, gene or encoder; a gene that it lacks gives way to its first."""
        before = self.view
        encoder = self.view.encoder if encoder is None else encoder
        if section is None:
            names = self.source.sections(encoder)
            section = before.section if before.section in names else names[0]
        self.view = self._view(section, encoder)
        wanted = self.gene if gene is None else gene
        self.gene = wanted if gene is not None or wanted in self.view.genes else self.view.genes[0]
        moved = self.view.section != before.section
        if self._widget is None:
            self.view.values(self.gene)
            return
        panels.fill(self.figure_widget, self.view, self.gene, self.opacity,
                    again=moved or self.view.barcodes != before.barcodes)
        if moved or self.barcode not in self.view.barcodes:
            self.barcode, self.shown = None, []
            panels.ring(self.figure_widget, self.view, None)
            self.controls["tiles"].value = ""
            controls.say(self, controls.INVITATION)
        elif self.view is not before:
            self.click(self.barcode)
        controls.offer(self)

    @property
    def widget(self) -> "Widget":
        """Maps, tiles and what chooses them; made at first use."""
        if self._widget is None:
            self.figure_widget = panels.build(self.view, self.gene, self.opacity)
            self.controls = controls.make(self)
            self._widget = controls.lay_out(self)
        return self._widget

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    def show(self) -> "Figure":
        """Display widgets where somebody can use them; return the static view in any case."""
        if os.environ.get("JPY_SESSION_NAME"):
            self._ipython_display_()
        return self.figure()

    def figure(self, barcode: str | None = None) -> "Figure":
        """The static view; without `barcode` the spot with the highest value is shown."""
        import matplotlib.pyplot as plt

        view = self.view
        if barcode is None:
            values = view.values(self.gene)
            column = values["measured" if view.has_truth else "predicted"]
            barcode = view.barcodes[int(np.nanargmax(column))]
        with plt.rc_context():
            plots.set_style()
            return self._drawn(plt.figure(figsize=(plots.PAGE, 3.8)), barcode)

    def _drawn(self, fig: "Figure", barcode: str) -> "Figure":
        """The maps above, and below them the tile of a spot and its nearest."""
        view, shown = self.view, [(self.view.section, barcode), *self.nearest(barcode)]
        fig.suptitle(f"{view.section}, spot {barcode} (ringed), and the tiles that look most alike"
                     if view.has_truth else f"{view.section}, spot {barcode} (ringed), and tiles "
                     "alike in predicted expression")
        above, below = fig.subfigures(2, 1, height_ratios=[1.9, 1])
        if view.has_truth:
            maps.measured_predicted(view.tissue, view.prediction, [self.gene],
                                    above.subplots(1, 4)[None], img=True, marked=barcode)
        else:
            self._draw_prediction(above.subplots(), barcode)
        for place, (ax, (name, spot)) in enumerate(zip(
                np.atleast_1d(below.subplots(1, len(shown))), shown, strict=True)):
            pixels = self.source.tile(name, spot)
            if pixels is not None:
                ax.imshow(pixels)
            ax.set_title(f"spot of {name}" if place == 0 else f"nearest {place}: {name}")
            ax.set_axis_off()
        return fig

    def _draw_prediction(self, ax, barcode: str) -> None:
        view = self.view
        plots.spatial_map(view.prediction, view.values(self.gene)["predicted"].to_numpy(), ax,
                          img=True, alpha=0.6, title=self.gene)
        ax.scatter(*view.places[view.row(barcode)] * plots.image_scale(view.prediction), s=45,
                   facecolor="none", edgecolor="black", linewidth=1.0)

    def __repr__(self) -> str:
        n = len(self.source.sections(self.view.encoder))
        return (f"Explorer: {self.gene} of {self.view.section} by {self.view.encoder}, "
                f"{n} section{'s' * (n != 1)}")
