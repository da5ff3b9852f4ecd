"""SpatialData stores (``*.zarr``): a table of counts, the places of its spots, an image.

The package ``spatialdata`` reads them; without it a store is refused in one line. Taken are, of
each store:

==================  ================================================================================
table               the one that is called ``table``, else the only one; its rows are spots
places              centroids of the shapes (or points) that the table annotates
image               the only image with three or four channels, or the one named by the column
                    ``element``; of several scales the finest that is at most `LONGEST_PX` long
coordinates         centroids are carried into the image's pixels by the transformations to one
                    coordinate system that both have, ``global`` first
scale, owners       as of AnnData files: `mvhlib.cohort.anndata_files`
==================  ================================================================================
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, reading
from mvhlib.cohort import anndata_files
from mvhlib.cohort.base import Cohort, Section

if TYPE_CHECKING:
    from anndata import AnnData

#: Longest side of an image that is copied into the run [px].
LONGEST_PX = 16_000
_AXES = ("x", "y")


def read(path: str | Path, *, samples: str | Path | pd.DataFrame | None = None,
         keep: str | Path | None = None) -> Cohort:
    """Read the stores of a directory, each a section.

    Parameters
    ----------
    path
        The directory, or a store.
    samples, keep
        As in `mvhlib.cohort.anndata_files.read`.

    Raises
    ------
    InputError
        If the package is not installed, a store is broken, or has no table, places or coordinate
        system in common with its image; and as for AnnData files.
    """
    root = Path(path)
    if root.suffix == ".zarr":
        files, root = {root.stem: root}, root.parent
    else:
        files = anndata_files.find(root, ".zarr")
    package = _package(root)

    def make(name: str, row: dict[str, Any]) -> Section:
        store = files[row.get("file", name)]
        with reading(store, "store", "cannot be read", "copy it again as a whole"):
            data = package.read_zarr(store)
        adata, inside = _taken(data, store, str(row.get("element", "")))
        return anndata_files.make_section(name, store, adata, root, row, keep, inside,
                                          source="spatialdata")

    return anndata_files.make_cohort(root, files, samples, make)


def _package(where: Path):
    try:
        import spatialdata
    except ImportError as error:
        raise InputError(where, "source", "is SpatialData, and the package spatialdata is not "
                         "installed", "pip install spatialdata") from error
    return spatialdata


def _taken(data: Any, store: Path, element: str) -> "tuple[AnnData, anndata_files.Picture | None]":
    """Counts with places in pixels of the image, and the image."""
    tables = dict(data.tables)
    table = tables.get("table") or (next(iter(tables.values())) if len(tables) == 1 else None)
    if table is None:
        raise InputError(store, "tables", f"are {sorted(tables) or 'none'}",
                         "keep one table of counts, or call it table")
    with reading(store, "table", "annotates no shapes", "give a table with region and instance"):
        attrs = table.uns["spatialdata_attrs"]
        regions = list(np.unique(table.obs[attrs["region_key"]].astype(str)))
    if len(regions) != 1:
        raise InputError(store, "region", f"names several: {regions}", "write one store for each")
    shapes = data[regions[0]]
    images = {name: image for name, image in data.images.items() if _channels(image) in (3, 4)}
    if element and element not in images:
        raise InputError(store, "element", f"is {element!r}; images are {sorted(images)}",
                         "name one of them")
    if not element and len(images) > 1:
        raise InputError(store, "images", f"are {len(images)}: {sorted(images)}",
                         "name one in the column element of samples.csv")
    name = element or next(iter(images), "")
    with reading(store, regions[0], "has no places that can be read", "give circles or polygons"):
        places, inside = _placed(shapes, images.get(name), store)
    table = table.copy()
    with reading(store, attrs["instance_key"], "of the table are not those of its shapes",
                 "write the store again"):
        table.obsm["spatial"] = places.loc[table.obs[attrs["instance_key"]]].to_numpy(float)
    return anndata_files.raw_counts(table, store), inside


def _finest(image: Any) -> Any:
    """The array of an image: of several scales the finest that is not too long."""
    if not hasattr(image, "children"):
        return image
    scales = [next(iter(child.data_vars.values())) for child in image.children.values()]
    small = [scale for scale in scales if max(scale.sizes["x"], scale.sizes["y"]) <= LONGEST_PX]
    return (small or scales[-1:])[0]


def _channels(image: Any) -> int:
    return int(_finest(image).sizes.get("c", 1))


def _placed(shapes: Any, image: Any, store: Path
            ) -> "tuple[pd.DataFrame, anndata_files.Picture | None]":
    """Centroids in pixels of the image (of the shapes' own system without one), and the image."""
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    systems = get_transformation(shapes, get_all=True)
    pixels = None if image is None else _finest(image)
    shared = [system for system in systems
              if pixels is None or system in get_transformation(pixels, get_all=True)]
    if not shared:
        raise InputError(store, "coordinate system", "is not shared by the spots and the image",
                         "align them in one system")
    system = "global" if "global" in shared else shared[0]
    centroids = get_centroids(shapes, coordinate_system=system).compute()
    places = centroids[list(_AXES)]
    if pixels is None:
        return places, None
    to_system = get_transformation(pixels, to_coordinate_system=system).to_affine_matrix(
        _AXES, _AXES)
    own = np.column_stack([places.to_numpy(), np.ones(len(places))]) @ np.linalg.inv(to_system).T
    array = pixels.transpose("y", "x", "c")
    height, width = array.shape[:2]
    return pd.DataFrame(own[:, :2], index=places.index, columns=list(_AXES)), \
        anndata_files.Picture((width, height), 1.0, lambda: anndata_files.as_pixels(
            array.to_numpy(), store))
