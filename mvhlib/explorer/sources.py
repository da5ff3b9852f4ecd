"""Sources for an explorer: the sections of a run, or slides that a saved model predicted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import cohort, features, lattice, maps, neighbours
from mvhlib.artifacts import InputError, read_csv
from mvhlib.expression import evaluation, scores
from mvhlib.standardise import standardise
from mvhlib.tiles import slides, store

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Sections that are kept in memory at once.
KEPT = 8


@dataclass(frozen=True)
class View:
    """One section as one encoder predicted it.

    Attributes
    ----------
    section, encoder
        Their names.
    prediction
        Layers ``measured`` and ``predicted``; or, where nothing was measured, `X` predicted.
    tissue
        Holds the picture of the section in ``uns["spatial"]``; it may hold more spots.
    unit
        Of the values.
    """

    section: str
    encoder: str
    prediction: "AnnData" = field(repr=False)
    tissue: "AnnData" = field(repr=False)
    unit: str = ""

    @property
    def has_truth(self) -> bool:
        return "measured" in self.prediction.layers

    @property
    def genes(self) -> list[str]:
        return [str(gene) for gene in self.prediction.var_names]

    @property
    def barcodes(self) -> list[str]:
        return [str(name) for name in self.prediction.obs_names]

    @property
    def places(self) -> np.ndarray:
        """Centres (x, y) of the spots, `(T, 2)` float64 [level-0 px]."""
        return np.asarray(self.prediction.obsm["spatial"], dtype=np.float64)

    @property
    def picture(self) -> tuple[np.ndarray, float] | None:
        """The H&E `(h, w, 3)` uint8 and its pixels per level-0 pixel; None without an image."""
        library = next(iter(self.tissue.uns.get("spatial", {}).values()), None)
        if library is None:
            return None
        pixels = np.asarray(library["images"]["hires"])
        if pixels.dtype != np.uint8:
            pixels = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
        return pixels, float(library["scalefactors"]["tissue_hires_scalef"])

    @property
    def spot_px(self) -> float:
        """Diameter of a spot [level-0 px]; without an image that of spots which all but touch."""
        library = next(iter(self.tissue.uns.get("spatial", {}).values()), None)
        if library is not None:
            return float(library["scalefactors"]["spot_diameter_fullres"])
        return 0.9 * lattice.pitch(self.places) if len(self.places) > 1 else 1.0

    def row(self, barcode: str) -> int:
        """Row of a spot.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        if barcode not in self.prediction.obs_names:
            raise InputError(self.section, "spot", f"{barcode!r} was not predicted",
                             f"choose one of {self.barcodes[:3]} ...")
        return int(self.prediction.obs_names.get_loc(barcode))

    def values(self, gene: str) -> "pd.DataFrame":
        """One row per spot: `mvhlib.maps.map_values`; only ``predicted`` where nothing is measured.

        Raises
        ------
        InputError
            If the gene was not predicted.
        """
        import pandas as pd

        if gene not in self.prediction.var_names:
            raise InputError(self.section, "gene", f"{gene!r} was not predicted",
                             f"choose one of {self.genes[:5]} ...")
        if self.has_truth:
            return maps.map_values(self.prediction, [gene])
        column = scores.dense(self.prediction[:, gene].X).ravel().astype(float)
        x, y = self.places.T
        return pd.DataFrame({"gene": gene, "spot": self.barcodes, "x_px": x, "y_px": y,
                             "predicted": column})

    def crop(self, barcode: str, side_px: float) -> np.ndarray | None:
        """The square around a spot, `(s, s, 3)` uint8, cut from the picture; white over its border.

        Parameters
        ----------
        side_px
            Its side [level-0 px].
        """
        if self.picture is None:
            return None
        pixels, scale = self.picture
        with slides.Slide.from_array(pixels, name=self.section) as slide:
            side = max(1, round(side_px * scale))
            x, y = np.round(self.places[self.row(barcode)] * scale - side / 2)
            return slide.region(x, y, side, side)[0]


class Gallery:
    """Tiles of several sections, to be searched for those that are alike.

    Parameters
    ----------
    names
        Section and barcode of every tile.
    vectors
        `(N, D)`, one per tile. They are standardised over all of them first: without that, what
        all tiles have in common decides the cosine.
    likeness
        What they are alike in, for the caption.
    """

    def __init__(self, names: Sequence[tuple[str, str]], vectors: np.ndarray, likeness: str):
        self.names, self.likeness = list(names), likeness
        self.rows = {name: row for row, name in enumerate(self.names)}
        self.vectors = standardise(vectors).astype(np.float32)  # (N, D)
        self.index = neighbours.build(self.vectors, "exact", metric="cosine")

    def nearest(self, section: str, barcode: str, n: int) -> list[tuple[str, str]]:
        """Section and barcode of the `n` tiles most alike, the tile itself left out.

        Raises
        ------
        InputError
            If the spot has no tile here.
        """
        row = self.rows.get((section, barcode))
        if row is None:
            raise InputError(section, "spot", f"{barcode!r} has no tile", "choose another spot")
        found = self.index.search(self.vectors[row], min(n + 1, len(self.names)))[1][0]
        return [self.names[other] for other in found if other != row][:n]


class OfRun:
    """The sections that a run tested, by every encoder of one protocol and method.

    Parameters
    ----------
    folder
        ``OUT/runs/<profile>``.
    protocol, method, encoder
        As in ``expression/<protocol>/<method>/<encoder>``; without an encoder the first by name.

    Raises
    ------
    InputError
        If 05_expression has not run, or did not score what is asked for.
    """

    def __init__(self, folder: str | os.PathLike, protocol: str = "loso", method: str = "ridge",
                 encoder: str | None = None):
        self.folder = Path(folder)
        self.names = read_csv(self.folder / "cohort" / "manifest.csv", ("section",),
                              dtype={"section": str})["section"].tolist()
        expression = self.folder / "expression"
        if encoder is None:
            made = sorted(expression.glob(f"{protocol}/{method}/*/scores.csv")) or sorted(
                expression.glob(f"*/{method}/*/scores.csv"))
            encoder = made[0].parent.name if made else "any"
        self.protocol, encoder, self.remark = evaluation.scored(
            expression, protocol, method, encoder)
        if not self.protocol:
            raise InputError(expression, "predictions", "are none: " + self.remark,
                             "choose a run whose sections could be scored")
        self.home = expression / self.protocol / method
        there = [path.parent.name for path in sorted(self.home.glob("*/scores.csv"))]
        self.encoders = [encoder, *(name for name in there if name != encoder)]
        self.view = lru_cache(KEPT)(self._view)

    def sections(self, encoder: str) -> list[str]:
        """Those with a prediction, in the order of the cohort."""
        return [name for name in self.names
                if (self.home / encoder / "predictions" / f"{name}.h5ad").exists()]

    def _view(self, section: str, encoder: str) -> View:
        prediction = evaluation.read_prediction(self.home / encoder, section)
        own = cohort.read("run", self.folder / "cohort", sections=[section])[section]
        return View(section, encoder, prediction, own.adata,
                    str(prediction.uns.get("mvh", {}).get("unit", "")))

    def gallery(self, section: str, encoder: str) -> Gallery | None:
        """The tiles in the embedding that predicted `section`; None where it is not kept."""
        return self._gallery(evaluation.features_of(self.home / encoder, section),
                             tuple(self.sections(encoder)))

    @lru_cache(2)  # noqa: B019, an explorer lives as long as its notebook
    def _gallery(self, name: str, sections: tuple[str, ...]) -> Gallery | None:
        folder = self.folder / "features" / name
        there = [section for section in sections if (folder / f"{section}.h5").exists()]
        if not there:
            return None
        found = features.read_folder(folder, there)
        return Gallery([(section, barcode) for section in there
                        for barcode in found[section].barcodes],
                       np.concatenate([found[section].features for section in there]),
                       f"in the features of {name}")

    def tile(self, section: str, barcode: str) -> np.ndarray | None:
        """Pixels of a spot's tile, `(S, S, 3)` uint8, as 02 cut it; else from the picture."""
        path = self.folder / "tiles" / f"{section}.h5"
        if path.exists():
            with store.open_tiles(path) as (head, pixels):
                if barcode in head.barcodes:
                    return pixels[head.barcodes.index(barcode)]
        view = self.view(section, next(
            name for name in self.encoders if section in self.sections(name)))
        return view.crop(barcode, view.spot_px)


class OfPrediction:
    """Slides that `make predict` wrote, of which nothing was measured.

    Parameters
    ----------
    folder
        That of one slide, ``OUT/predictions/<slide>``, or of several.
    slide
        The file that was predicted, for its tiles at full resolution; without it they are cut
        from the thumbnail. Only with the folder of one slide.

    Raises
    ------
    InputError
        If there is no prediction.
    """

    def __init__(self, folder: str | os.PathLike, slide: str | os.PathLike | None = None):
        folder = Path(folder).resolve()
        if (folder / f"{folder.name}.h5ad").exists():
            self.folder, self.names = folder.parent, [folder.name]
        else:
            self.folder = folder
            self.names = sorted(path.stem for path in folder.glob("*/*.h5ad")
                                if path.stem == path.parent.name)
        if not self.names:
            raise InputError(folder, "folder", "holds neither expression/ of a run nor <slide>/"
                             "<slide>.h5ad of make predict", "give OUT/runs/<profile>, or OUT of "
                             "make predict")
        if slide is not None and len(self.names) > 1:
            raise InputError(folder, "slide", f"is one file for {len(self.names)} predictions",
                             "give the folder of that slide alone")
        self.slide, self.remark = slide, ""
        self.view = lru_cache(KEPT)(self._view)

    @cached_property
    def encoders(self) -> list[str]:
        """That of the first slide alone: a slide was predicted once, and its view names by what."""
        return [self.view(self.names[0], "").encoder]

    def sections(self, encoder: str) -> list[str]:
        """All slides."""
        return self.names

    def _view(self, section: str, encoder: str) -> View:
        from mvhlib.prediction import apply

        adata = apply.read(self.folder, section)
        about: Any = adata.uns.get("mvh", {})
        for name in ("encoder", "unit", "tile_um", "mpp"):
            if name not in about:
                raise InputError(self.folder / section / f"{section}.h5ad", f'uns["mvh"]["{name}"]',
                                 "is missing", "predict the slide again")
        return View(section, str(about["encoder"]), adata, adata, str(about["unit"]))

    @lru_cache(2)  # noqa: B019, an explorer lives as long as its notebook
    def gallery(self, section: str, encoder: str) -> Gallery:
        """The slide's tiles by what was predicted of them: their features are not kept."""
        view = self.view(section, encoder)
        return Gallery([(section, barcode) for barcode in view.barcodes],
                       scores.dense(view.prediction.X), "in predicted expression")

    def tile(self, section: str, barcode: str) -> np.ndarray | None:
        """Pixels of a tile, `(s, s, 3)` uint8, from the slide where it is known."""
        view = self.view(section, "")
        about = view.prediction.uns["mvh"]
        side = float(about["tile_um"]) / float(about["mpp"])
        if self.slide is None:
            return view.crop(barcode, side)
        x, y = view.places[view.row(barcode)] - side / 2
        with slides.open_slide(self.slide, mpp=float(about["mpp"])) as opened:
            return opened.region(x, y, side, side, (int(about["tile_px"]),) * 2)[0]


def open_source(folder: str | os.PathLike, *, protocol: str = "loso", method: str = "ridge",
                encoder: str | None = None, slide: str | os.PathLike | None = None
                ) -> OfRun | OfPrediction:
    """A run's folder, or one of `make predict`, told apart by what lies in it."""
    if (Path(folder) / "expression").is_dir():
        return OfRun(folder, protocol, method, encoder)
    return OfPrediction(folder, slide)
