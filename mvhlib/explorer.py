"""Look at one spot: its place, its tile, and the tiles that an encoder holds for alike.

In JupyterLab three widgets choose section, gene and spot; anywhere else (papermill, a script) the
same view is one static figure.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mvhlib import maps, plots
from mvhlib.artifacts import InputError
from mvhlib.standardise import standardise

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from mvhlib.cohort import Cohort
    from mvhlib.features import Features
    from mvhlib.tiles import Tiles

N_NEAREST = 5


class Explorer:
    """Measured, predicted and residual maps of a section, and the tiles behind a spot.

    Parameters
    ----------
    cohort
        The sections that can be chosen.
    predictions
        Section -> AnnData with layers ``measured`` and ``predicted``.
    tiles
        Section -> its tiles.
    features
        Section -> `Features`; nearest tiles are nearest here, over all sections, by cosine of
        the standardised embeddings.
    """

    def __init__(self, cohort: "Cohort", predictions: Callable[[str], "AnnData"],
                 tiles: Callable[[str], "Tiles"], features: "Mapping[str, Features]"):
        self.cohort, self.predictions, self.tiles = cohort, predictions, tiles
        self.names = [name for name in cohort.sections if name in features]
        if not self.names:
            raise InputError("explorer", "features", "belong to none of the sections",
                             "pass features of this cohort")
        stacked = np.concatenate([features[name].features for name in self.names]).astype(float)
        stacked = standardise(stacked)
        self.embedding = stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
        self.owner = [(name, row) for name in self.names
                      for row in range(len(features[name].features))]
        self.first = dict(zip(self.names, np.cumsum(
            [0] + [len(features[name].features) for name in self.names])[:-1], strict=True))
        self.barcodes = {name: list(features[name].barcodes) for name in self.names}

    def nearest(self, section: str, barcode: str, n: int = N_NEAREST) -> list[tuple[str, int]]:
        """The `n` nearest tiles of a spot's tile, itself left out: (section, row of its tiles)."""
        start = self.first[section] + self.barcodes[section].index(barcode)
        likeness = self.embedding @ self.embedding[start]
        likeness[start] = -np.inf
        return [self.owner[index] for index in np.argsort(-likeness, kind="stable")[:n]]

    def figure(self, section: str, gene: str, barcode: str | None = None) -> "Figure":
        """The static view; without `barcode` the spot with the highest measured value is shown.

        Raises
        ------
        InputError
            On a section, gene or spot that the predictions do not have.
        """
        import matplotlib.pyplot as plt

        predicted = self.predictions(section)
        if gene not in predicted.var_names:
            raise InputError(section, "gene", f"{gene!r} was not predicted",
                             f"choose one of {list(predicted.var_names[:5])} ...")
        if barcode is None:
            measured = predicted.layers["measured"][:, list(predicted.var_names).index(gene)]
            barcode = predicted.obs_names[int(np.nanargmax(measured))]
        if barcode not in self.barcodes[section]:
            raise InputError(section, "spot", f"{barcode!r} has no tile", "choose another spot")
        fig = plt.figure(figsize=(plots.PAGE, 3.8))
        fig.suptitle(f"{section}, spot {barcode} (ringed), and the tiles that look most alike")
        above, below = fig.subfigures(2, 1, height_ratios=[1.9, 1])
        axes = above.subplots(1, 4)
        maps.measured_predicted(self.cohort[section].adata, predicted, [gene], axes[None],
                                 img=True, marked=barcode)
        shown = [(section, self.barcodes[section].index(barcode)), *self.nearest(section, barcode)]
        for ax, (name, row), place in zip(below.subplots(1, len(shown)), shown, range(99),
                                          strict=False):
            ax.imshow(self.tiles(name).img[row])
            ax.set_title(f"spot of {name}" if place == 0 else f"nearest {place}: {name}")
            ax.set_axis_off()
        return fig

    def show(self, section: str, gene: str) -> "Figure":
        """Display widgets where somebody can use them; return the static view in any case."""
        if os.environ.get("JPY_SESSION_NAME"):
            self._widgets(section, gene)
        return self.figure(section, gene)

    def _widgets(self, section: str, gene: str) -> None:
        import ipywidgets as widgets
        import matplotlib.pyplot as plt
        from IPython.display import display

        genes = sorted(self.predictions(section).var_names)
        chooser = widgets.Dropdown(options=self.names, value=section, description="section")
        of_gene = widgets.Dropdown(options=genes, value=gene, description="gene")
        spots = widgets.SelectionSlider(options=self.barcodes[section], description="spot",
                                        continuous_update=False)

        def follow(change):
            spots.options = self.barcodes[change["new"]]

        def draw(section, gene, spot):
            if spot in self.barcodes[section]:
                plt.show(self.figure(section, gene, spot))

        chooser.observe(follow, names="value")
        view = widgets.interactive_output(
            draw, {"section": chooser, "gene": of_gene, "spot": spots})
        display(widgets.HBox([chooser, of_gene, spots]), view)

    def __repr__(self) -> str:
        return f"Explorer: {len(self.owner)} tiles of {len(self.names)} sections"
