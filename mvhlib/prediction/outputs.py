"""Output files of a slide: AnnData, a table of tiles, GeoJSON for QuPath, SpatialData.

``<slide>.h5ad`` opens in scanpy and squidpy as it is. ``<slide>.geojson`` keeps to QuPath's rules:
a FeatureCollection of closed rings in level-0 pixels, each with an identifier, a classification
and its measurements. QuPath holds all of it in memory, so that it gets the genes that are shown,
not all. ``<slide>.zarr`` is written where the package spatialdata is installed.
"""

import importlib.util
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts
from mvhlib.prediction.belief import Belief, by_expected
from mvhlib.prediction.model import Model
from mvhlib.prediction.stream import Places, Predicted

if TYPE_CHECKING:
    from anndata import AnnData

#: Classes of tiles in QuPath, and their colours (red, green, blue).
INSIDE, OUTSIDE = ("inside training distribution", (0, 158, 115)), (
    "outside training distribution", (213, 94, 0))
NO_SPATIALDATA = "SpatialData is not written: the package spatialdata is not installed"


@dataclass(frozen=True)
class Made:
    """Everything to be written about one slide.

    Attributes
    ----------
    name
        The slide's.
    thumbnail, scale
        Small image `(h, w, 3)` uint8, and its pixels per level-0 pixel.
    shown
        Genes that tables for people hold: those that are predicted best.
    """

    name: str
    model: Model
    places: Places
    predicted: Predicted
    belief: Belief
    thumbnail: np.ndarray = field(repr=False)
    scale: float
    shown: list[str]


def to_adata(made: Made) -> "AnnData":
    """Predictions as AnnData: X, ``obsm["spatial"]``, and the reliability of tiles and genes."""
    import anndata

    belief, model, where = made.belief, made.model, made.places
    obs = pd.DataFrame({
        "tissue": where.tissue, "outside_image": made.predicted.outside.astype(float),
        "distance": made.predicted.distance, "out_of_distribution": belief.outside},
        index=pd.Index(where.names, dtype=str))
    var = belief.genes.set_index("gene")
    var.index = pd.Index(var.index.astype(str), name=None)
    # squidpy draws no truth values, but classes: those of the GeoJSON, in their colours.
    labels = [INSIDE[0], OUTSIDE[0]]
    obs["domain"] = pd.Categorical(np.where(belief.outside, *labels[::-1]), labels)
    adata = anndata.AnnData(X=made.predicted.values, obs=obs, var=var)
    adata.uns["domain_colors"] = np.array([
        "#{:02x}{:02x}{:02x}".format(*colour) for _, colour in (INSIDE, OUTSIDE)], dtype=object)
    adata.obsm["spatial"] = where.centres
    adata.uns["spatial"] = {made.name: {
        "images": {"hires": made.thumbnail},
        "scalefactors": {"tissue_hires_scalef": made.scale,
                         "spot_diameter_fullres": min(where.side_px, where.spacing_px)},
        "metadata": {}}}
    record = model.record
    adata.uns["mvh"] = {
        "model": model.name, "model_sha256": model.sha256, "unit": record["expression"]["unit"],
        "normalize": record["expression"]["normalize"], "encoder": record["encoder"]["slug"],
        "encoder_sha256": record["encoder"]["sha256"],
        "expected_from": record["expected"]["protocol"], "tile_um": model.tile_um,
        "tile_px": model.tile_px, "mpp": float(belief.facts["slide_mpp"]),
        "distance_bound": model.domain.bound, "least_r": belief.least_r,
        "warnings": np.array(belief.warnings, dtype=object),
        "remarks": np.array(belief.remarks, dtype=object)}
    return adata


def tile_table(made: Made) -> pd.DataFrame:
    """One row per tile: its place [level-0 px], its reliability, and the genes shown."""
    where = made.places
    frame = pd.DataFrame({
        "tile": where.names, "x": where.centres[:, 0], "y": where.centres[:, 1],
        "side_px": where.side_px, "tissue": where.tissue,
        "distance": made.predicted.distance, "out_of_distribution": made.belief.outside})
    columns = [made.predicted.genes.index(gene) for gene in made.shown]
    return pd.concat([frame, pd.DataFrame(made.predicted.values[:, columns],
                                          columns=made.shown)], axis=1)


def geojson(made: Made) -> Iterator[str]:
    """GeoJSON for QuPath, line by line: a slide has more tiles than one string should hold."""
    where, values = made.places, made.predicted.values
    columns = [made.predicted.genes.index(gene) for gene in made.shown]
    half = min(where.side_px, where.spacing_px) / 2
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"{made.name}/{made.model.sha256}")
    yield '{"type": "FeatureCollection", "features": [\n'
    for row, (x, y) in enumerate(where.centres.tolist()):
        ring = [[round(x + dx * half, 2), round(y + dy * half, 2)]
                for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
        label, colour = OUTSIDE if made.belief.outside[row] else INSIDE
        measured = {gene: round(float(values[row, column]), 6)
                    for gene, column in zip(made.shown, columns, strict=True)}
        measured["distance to training tiles"] = round(float(made.predicted.distance[row]), 4)
        feature = {"type": "Feature", "id": str(uuid.uuid5(space, where.names[row])),
                   "geometry": {"type": "Polygon", "coordinates": [ring]},
                   "properties": {"objectType": "tile", "name": where.names[row],
                                  "classification": {"name": label, "color": list(colour)},
                                  "measurements": measured}}
        yield ("" if row == 0 else ",\n") + json.dumps(feature, ensure_ascii=False)
    yield "\n]}\n"


def write(made: Made, adata: "AnnData", folder: Path, zarr: bool = True
          ) -> tuple[list[Path], str]:
    """Write all data of a slide, each file by atomic rename.

    Parameters
    ----------
    adata
        Of `to_adata`.

    Returns
    -------
    tuple
        The files (and the zarr folder) that were written; and a sentence where one was not.
    """
    with artifacts.atomic(folder / f"{made.name}.h5ad") as temporary:
        adata.write_h5ad(temporary)
    with artifacts.atomic(folder / f"{made.name}.geojson") as temporary:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.writelines(geojson(made))
    written = [folder / f"{made.name}.h5ad", folder / f"{made.name}.geojson",
               artifacts.write_csv(folder / "tiles.csv", tile_table(made))]
    if not zarr:
        return written, ""
    if importlib.util.find_spec("spatialdata") is None:
        return written, NO_SPATIALDATA
    return [*written, _write_zarr(made, adata, folder / f"{made.name}.zarr")], ""


def _write_zarr(made: Made, adata: "AnnData", target: Path) -> Path:
    """SpatialData with the thumbnail, the tiles as squares and the predictions as their table."""
    import warnings

    import geopandas
    import spatialdata
    from shapely import box
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    half = min(made.places.side_px, made.places.spacing_px) / 2
    squares = geopandas.GeoDataFrame(
        {"geometry": [box(x - half, y - half, x + half, y + half)
                      for x, y in made.places.centres.tolist()]}, index=adata.obs_names)
    table = adata.copy()
    table.uns = {"mvh": table.uns["mvh"]}
    table.obs["region"] = pd.Categorical(["tiles"] * len(table))
    table.obs["tile"] = table.obs_names.to_numpy()
    grow = Scale([1 / made.scale, 1 / made.scale], axes=("x", "y"))
    image: Any = Image2DModel.parse(np.moveaxis(made.thumbnail, -1, 0), dims=("c", "y", "x"),
                                    c_coords=["r", "g", "b"], transformations={"global": grow})
    whole = spatialdata.SpatialData(
        images={"thumbnail": image},
        shapes={"tiles": ShapesModel.parse(squares, transformations={"global": Identity()})},
        tables={"predicted": TableModel.parse(table, region="tiles", region_key="region",
                                              instance_key="tile")})
    temporary = target.with_name(f".{target.stem}~.zarr")
    artifacts.remove_tree(temporary)
    with warnings.catch_warnings():  # it warns of formats that it chose itself
        warnings.simplefilter("ignore")
        whole.write(temporary)
    artifacts.remove_tree(target)
    shutil.move(temporary, target)
    return target


def shown_genes(belief: Belief, asked: Sequence[str] | None, n: int) -> list[str]:
    """Genes for tables and maps: the best predicted of those that were asked for."""
    return list(by_expected(belief.genes)["gene"][:n if asked is None else max(n, len(asked))])
