"""How fast expression and tissue vary: over the spots of a section, and inside the tile of a spot.

"Slow" has two meanings. Over the array a map is slow where neighbouring spots agree: on a grid
that joins its edges Moran's I is the mean of (cos kx + cos ky) / 2 over the map's own power
spectrum, 1 for the slowest maps, 0 for white ones. Inside a tile a band is slow where its waves
are long. The first says how expression is laid out, the second where in the tile it can be read.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import standardise
from mvhlib.frequency.noise import band_contrast

if TYPE_CHECKING:
    from pandas import DataFrame


def borders(obs: "DataFrame") -> dict[str, np.ndarray]:
    """Amount of border in the tile of each spot, from the synthetic truth; empty without it.

    Parameters
    ----------
    obs
        Of ``truth/<section>.h5ad``.

    Returns
    -------
    dict
        ``tumour border``: the smaller of the shares of tumour and of everything else, `(T,)`;
        ``any border``: chance that two points of the tile's tissue are of unlike class (Gini).
    """
    from mvhlib.cohort.synthetic import CLASSES

    names = [f"cause_{name}" for name in CLASSES]
    if not set(names) <= set(obs.columns):
        return {}
    shares = obs[names].to_numpy(float)
    shares = shares / shares.sum(axis=1, keepdims=True)
    tumour = shares[:, CLASSES.index("tumour")]
    return {"tumour border": np.minimum(tumour, 1 - tumour),
            "any border": 1 - (shares**2).sum(axis=1)}


def explained(predictors: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Share of each target's variance that each predictor alone explains, `(targets, predictors)`.

    Adjusted for chance, so that unrelated columns have 0 on average and single ones may be
    negative; NaN for constant columns.

    Parameters
    ----------
    predictors, targets
        `(T, P)` and `(T, G)`.
    """
    n = len(targets)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (np.where(scale.varies, scale(v), np.nan) for v, scale in (
            (v, standardise.fit(v)) for v in (predictors, targets)))
    return 1 - (1 - (y.T @ x / n) ** 2) * (n - 1) / (n - 2)


def slow_and_fast(sections: Iterable[Any], tiles: str | Path, truth: str | Path,
                  bands: Sequence[tuple[float, float]], n_genes: int = 200
                  ) -> tuple["DataFrame", "DataFrame"]:
    """Measure how slowly expression and borders vary over spots, and which band predicts them.

    Parameters
    ----------
    sections
        Such as a `mvhlib.cohort.base.Cohort`.
    tiles, truth
        Folders of 02_tiles and of the synthetic truth; sections without tiles are left out, and
        without truth there are no borders.
    bands
        Frequencies from, to [cycles per px of a tile].
    n_genes
        Genes that are read, those with the most counts over all sections.

    Returns
    -------
    over_spots
        Columns section, of, morans_i: mean over the genes of a program (``genes`` where the data
        knows none), and over the tiles' borders.
    in_tiles
        Columns section, of, low, high, share: variance over the spots of a section that the
        log-contrast of the tile in one band explains (`explained`), mean over the genes; low = 0,
        high = 0 is the mean brightness of the tile.
    """
    import anndata
    import pandas as pd
    import torch

    from mvhlib import lattice
    from mvhlib.cohort import genes
    from mvhlib.expression import spatial
    from mvhlib.tiles import store

    sections = [s for s in sections if (Path(tiles) / f"{s.name}.h5").exists()]
    totals = sum(pd.Series(np.asarray(s.adata.layers["counts"].sum(axis=0)).ravel(),
                           index=s.adata.var_names) for s in sections)
    chosen = list(totals.dropna().sort_values(ascending=False, kind="stable").index[:n_genes])
    over, inside = [], []
    for section in sections:
        known = Path(truth) / f"{section.name}.h5ad"
        cut = store.read_tiles(Path(tiles) / f"{section.name}.h5")
        adata = section.adata[list(cut.barcodes)]
        programs = adata.var["program"] if "program" in adata.var else pd.Series(
            "genes", index=adata.var_names)
        values = genes.targets(adata, chosen)
        names = list(programs.loc[chosen])
        if known.exists():
            found = borders(anndata.read_h5ad(known).obs.loc[list(cut.barcodes)])
            values = np.column_stack([values, *found.values()])
            names += list(found)
        pixels = torch.from_numpy(cut.img).permute(0, 3, 1, 2).float() / 255
        contrast = np.log(band_contrast(pixels, bands).clip(1e-6))
        shares = explained(np.column_stack([pixels.mean((1, 2, 3)).numpy(), contrast]), values)
        graph = lattice.graph(adata.obsm["spatial"])
        over.append(pd.DataFrame({"section": section.name, "of": names,
                                  "morans_i": spatial.morans_i(values, graph)}))
        inside += [pd.DataFrame({"section": section.name, "of": names, "low": low, "high": high,
                                 "share": shares[:, k]})
                   for k, (low, high) in enumerate([(0.0, 0.0), *bands])]
    keys = ["section", "of", "low", "high"]
    return (pd.concat(over).groupby(keys[:2], sort=False, as_index=False)["morans_i"].mean(),
            pd.concat(inside).groupby(keys, sort=False, as_index=False)["share"].mean())
