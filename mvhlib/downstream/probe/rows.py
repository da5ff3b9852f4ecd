"""Input of a probe: embeddings of tiles or images, and the choice of usable rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from mvhlib.features import Features
    from mvhlib.notebook import Run


def image_means(features: "Mapping[str, Features | np.ndarray]", names: Sequence[str]
                ) -> np.ndarray:
    """Mean of the tile embeddings of each image, `(n, D)` float64, in the order of `names`.

    Raises
    ------
    InputError
        If an image has no features, or no tiles.
    """
    missing = [name for name in names if name not in features]
    if missing:
        raise InputError("probe", "features", f"are missing for {missing[:3]} and "
                         f"{max(0, len(missing) - 3)} more", "embed every image")
    values = [np.asarray(getattr(features[name], "features", features[name]), dtype=np.float64)
              for name in names]
    empty = [name for name, each in zip(names, values, strict=True) if len(each) == 0]
    if empty:
        raise InputError("probe", "tiles", f"are none in {empty[:3]}",
                         "leave the image out, or lower the share of tissue that a tile needs")
    return np.stack([each.mean(axis=0) for each in values])


def embeddings(run: "Run", pool: str, encoders: Sequence[str], names: Sequence[str]
               ) -> "dict[str, dict[str, Features]]":
    """Features of each encoder, and `colour_features` as ``stain`` where the tiles are there.

    Parameters
    ----------
    pool
        Folder in the run: "" of the cohort, ``slides``, ``labelled``.
    names
        Sections, slides or images.
    """
    from mvhlib.features import read_folder

    found = {encoder: read_folder(run.need(run.path(pool, "features", encoder), made_by="04_embed"),
                                  names) for encoder in encoders}
    if all(run.path(pool, "tiles", f"{name}.h5").exists() for name in names):
        return found | {"stain": colour_features(run.path(pool, "tiles"), names)}
    print(f"{pool or 'cohort'}: features came without tiles, so that stain is not compared.")
    return found


def embedded(run: "Run", pool: str, encoders: Sequence[str], names: Iterable[str]) -> list[str]:
    """Keep the `names` that every encoder has features of."""
    folders = [run.need(run.path(pool, "features", encoder), made_by="04_embed")
               for encoder in encoders]
    return sorted(name for name in names
                  if all((folder / f"{name}.h5").exists() for folder in folders))


def saw(run: "Run", encoder: str) -> set[str]:
    """Sections that an encoder was pretrained on; none where that is not known."""
    import json

    path = run.path("features", encoder, "pretrained_on.json")
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return set((told or {}).get("sections", ()))


def colour_features(tiles_dir, names: Sequence[str], batch: int = 512) -> "dict[str, Features]":
    """The stain-only baseline: mean and spread of each channel's optical density, per tile.

    What six numbers of colour name as well as an embedding does, the embedding need not have
    learned from tissue. Origin and scanner are confounded wherever one hospital sends one organ.
    """
    from pathlib import Path

    from mvhlib.features import Features
    from mvhlib.tiles.stain import colour_statistics
    from mvhlib.tiles.store import open_tiles

    found = {}
    for name in names:
        with open_tiles(Path(tiles_dir) / f"{name}.h5") as (head, img):
            values = [colour_statistics(img[start:start + batch])
                      for start in range(0, head.n_tiles, batch)]
        found[name] = Features(np.concatenate([np.zeros((0, 6)), *values]).astype(np.float32),
                               head.coords, head.barcodes)
    return found


def in_two_units(labels: Sequence[str], units: Sequence[str]) -> np.ndarray:
    """Rows `(n,)` whose class is found in two patients or more: the others cannot be held out.

    Where nobody says who a row is of (blank or NaN), the row itself is the unit.
    """
    owners = [("row", at) if pd.isna(unit) or unit == "" else unit for at, unit in enumerate(units)]
    found = pd.DataFrame({"label": list(labels), "unit": pd.Series(owners, dtype=object)})
    return (found.groupby("label")["unit"].transform("nunique") > 1).to_numpy()


def one_class_per_study(labels: Sequence[str], studies: Sequence[str]) -> np.ndarray:
    """Rows `(n,)` of a confounded set: one class of each study, classes spread over the studies.

    Where every study holds one class anyway, these are all rows.
    """
    labels, studies = np.asarray(labels, dtype=str), np.asarray(studies, dtype=str)
    kept, taken = np.zeros(len(labels), dtype=bool), dict.fromkeys(np.unique(labels), 0)
    for study in np.unique(studies):
        here = studies == study
        chosen = min(np.unique(labels[here]), key=taken.__getitem__)
        taken[chosen] += 1
        kept |= here & (labels == chosen)
    return kept


def confounding(labels: Sequence[str], studies: Sequence[str], patients: Sequence[str]
                ) -> pd.DataFrame:
    """Check each class for confounding: whether its studies hold other classes as well.

    Returns
    -------
    pd.DataFrame
        ``label, n_rows, n_patients, n_studies, shared`` (share of its rows from studies that hold
        another class as well) and ``note``.
    """
    table = pd.DataFrame({"label": labels, "study": studies, "patient": patients}, dtype=str)
    table["shared"] = table.groupby("study")["label"].transform("nunique") > 1
    found = table.groupby("label").agg(
        n_rows=("study", "size"), n_patients=("patient", "nunique"),
        n_studies=("study", "nunique"), shared=("shared", "mean")).reset_index()
    found["note"] = np.where(found["shared"] == 0, "origin and scanner are confounded", "")
    return found


def thin(groups: Sequence[str], most: int, seed: int = 0) -> np.ndarray:
    """Positions of at most `most` rows of each group, drawn at random, in their order."""
    rng, groups = np.random.default_rng(seed), np.asarray(groups, dtype=str)
    kept = [rng.permutation(np.flatnonzero(groups == name))[:most] for name in np.unique(groups)]
    return np.sort(np.concatenate(kept))
