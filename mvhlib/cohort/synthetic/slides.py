"""Synthetic slides with outcomes, and images of organs: bags of tiles."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError, write_csv
from mvhlib.cohort.synthetic.laboratory import Appearance, draw_appearances, expose, plan_studies
from mvhlib.cohort.synthetic.texture import BANDS, draw_texture
from mvhlib.cohort.synthetic.tissue import CLASSES, VERSION, generator, lay_out, smooth_field

if TYPE_CHECKING:
    import pandas as pd

#: Classes that a tile of the slide cohort can have, and their mean share.
_SLIDE_CLASSES = {"gland": 0.20, "stroma": 0.33, "tumour": 0.35, "lymphocytes": 0.12}


def make_slide_cohort(folder: str | Path, *, seed: int = 0, version: str = VERSION,
                      n_patients: int = 300, n_sites: int = 8, tiles_per_slide: int = 25,
                      tile_px: int = 32, mpp: float = 1.5625, site_strength: float = 1.0,
                      event_rate: float = 0.4, effect: float = 1.1) -> "pd.DataFrame":
    """Make the slide cohort: one slide per patient, a bag of tiles each, a label and two outcomes.

    Every tile is of one class. The label ``MSI`` plants tumour tiles that lymphocytes invade,
    ``MSS`` slides have none. The hazard of the first outcome is linear in the bag's class shares;
    that of the second depends on how much nuclear stain differs among tumour tiles, while its mean
    over them is the same in every slide. Both also depend on stage and, a little, on site.

    Parameters
    ----------
    folder
        Takes ``tiles/<slide>.h5`` (layout of `mvhlib.tiles.store`), ``slides.csv`` (the returned
        table) and ``tiles_truth.csv`` (slide, barcode, tissue_class, grade, planted).
    n_sites
        Each has its own stain, blur and tone, a share of MSI and a baseline hazard of its own.
    tiles_per_slide
        At least 16, of which at least 8 are tumour.
    site_strength
        0: sites are alike in everything.
    event_rate
        Share of patients whose event is seen before censoring.
    effect
        Change of log-hazard per standard deviation of the image's cause.

    Returns
    -------
    pd.DataFrame
        slide, patient, site, age, sex, stage, label, time_months, event, time_months_spread,
        event_spread, the true log_hazard and log_hazard_spread, and their causes: share_<class>,
        grade_spread, n_planted.

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    import pandas as pd

    _check_ranges(
        "synthetic slide cohort", ("n_patients", n_patients, 20, 100_000),
        ("n_sites", n_sites, 1, 26), ("tiles_per_slide", tiles_per_slide, 16, 10_000),
        ("tile_px", tile_px, 24, 1024), ("mpp", mpp, 0.1, 10),
        ("site_strength", site_strength, 0, 4), ("event_rate", event_rate, 0.05, 0.95),
        ("effect", effect, 0, 5))
    if version != VERSION:
        raise InputError("synthetic slide cohort", "version", f"{version!r} is not {VERSION!r}",
                         f"use version {VERSION!r}")
    folder = Path(folder)
    rng = generator(seed, 2, 0)
    looks = draw_appearances(plan_studies(rng, n_sites)[2], *[site_strength] * 3)
    site = rng.permutation(np.arange(n_patients) % n_sites)
    site_score = rng.permutation(np.linspace(-1, 1, n_sites)) if n_sites > 1 else np.zeros(1)
    planted_site = rng.permutation(site_score)[site]
    msi = rng.uniform(size=n_patients) < 0.3 + 0.12 * site_strength * planted_site
    stage = rng.choice(4, n_patients, p=[0.18, 0.36, 0.30, 0.16]) + 1
    age = np.round(np.clip(rng.normal(67, 11, n_patients), 25, 95)).astype(int)
    sex = np.where(rng.uniform(size=n_patients) < 0.5, "female", "male")
    spread = rng.uniform(0.05, 0.55, n_patients)
    width = len(str(n_patients))
    names = [f"SL{index + 1:0{width}d}" for index in range(n_patients)]

    shares, planted, tiles_truth = _draw_bags(folder, names, seed, msi, spread,
                                              [looks[number] for number in site], tiles_per_slide,
                                              tile_px, mpp, site_strength)

    def score(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / max(values.std(), 1e-12)

    columns = dict(zip(_SLIDE_CLASSES, shares.T, strict=True))
    clinical = 0.45 * (stage - 2.4) + 0.25 * site_strength * site_score[site]
    hazards = {"": clinical + effect * score(columns["tumour"] - columns["lymphocytes"]),
               "_spread": clinical + effect * score(spread)}
    table = pd.DataFrame({
        "slide": names, "patient": [f"PT{name[2:]}" for name in names],
        "site": [f"site{index + 1}" for index in site], "age": age, "sex": sex, "stage": stage,
        "label": np.where(msi, "MSI", "MSS")})
    for suffix, hazard in hazards.items():
        table[f"time_months{suffix}"], table[f"event{suffix}"] = _follow(rng, hazard, event_rate)
    for suffix, hazard in hazards.items():
        table[f"log_hazard{suffix}"] = hazard
    table = table.assign(**{f"share_{tissue}": values for tissue, values in columns.items()},
                         grade_spread=spread, n_planted=planted)
    write_csv(folder / "tiles_truth.csv", tiles_truth)
    write_csv(folder / "slides.csv", table)
    return table


def _check_ranges(what: str, *ranges: tuple[str, float, float, float]) -> None:
    """Refuse a parameter outside its range; of each: name, value, least, most."""
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise InputError(what, name, f"is {value}", f"use {low} to {high}")


def _draw_bags(folder: Path, names: list[str], seed: int, msi: np.ndarray, spread: np.ndarray,
               looks: list[Appearance], tiles_per_slide: int, tile_px: int, mpp: float,
               site_strength: float) -> "tuple[np.ndarray, np.ndarray, pd.DataFrame]":
    """Draw and write the tiles of every slide.

    Returns
    -------
    shares
        `(slides, 4)` of each class in the bag, in the order of `_SLIDE_CLASSES`.
    planted
        `(slides,)` invaded tiles.
    tiles_truth
        slide, barcode, tissue_class, grade, planted.
    """
    import pandas as pd

    from mvhlib.tiles.cut import Tiles
    from mvhlib.tiles.store import write_tiles

    shares, tiles_truth = np.empty((len(names), len(_SLIDE_CLASSES))), []
    planted = np.zeros(len(names), dtype=int)
    for index, name in enumerate(names):
        draw = generator(seed, 2, 1, index)
        kind, grade, invaded = _draw_bag(draw, tiles_per_slide, bool(msi[index]), spread[index])
        shares[index] = [(kind == CLASSES.index(tissue)).mean() for tissue in _SLIDE_CLASSES]
        planted[index] = invaded.sum()
        jitter = np.exp(0.06 * site_strength * draw.standard_normal(2))
        look = replace(looks[index], gains=tuple(np.array(looks[index].gains) * jitter))
        img, coords = _draw_tiles(draw, kind, grade, invaded, look, tile_px, mpp)
        barcodes = [f"{x // tile_px}x{y // tile_px}" for x, y in coords]
        write_tiles(folder / "tiles" / f"{name}.h5", Tiles(
            img, coords, np.zeros(len(img), np.float32), tile_px, tile_px * mpp, mpp, mpp,
            barcodes))
        tiles_truth.append(pd.DataFrame({
            "slide": name, "barcode": barcodes, "tissue_class": np.array(CLASSES)[kind],
            "grade": grade, "planted": invaded.astype(int)}))
    return shares, planted, pd.concat(tiles_truth)


def make_organ_images(folder: str | Path, *, seed: int = 0, version: str = VERSION,
                      n_organs: int = 3, n_scanners: int = 9, patients_per_cell: int = 3,
                      tiles_per_image: int = 9, tile_px: int = 64, mpp: float = 1.5625,
                      scanner_strength: float = 1.0, contrast: float = 0.8) -> "pd.DataFrame":
    """Make images of organs, each seen by every scanner: tissue of origin without a confounder.

    Organs have the same classes of tissue in the same shares. They differ in the scale of their
    texture: coarse, middle or fine. Its histogram is one for all, so that no statistic of colour
    tells an organ from another, and whoever names the organ has looked at structure. A confounded
    set is part of this one: keep one organ of each scanner.

    Parameters
    ----------
    folder
        Takes ``tiles/<image>.h5`` (layout of `mvhlib.tiles.store`) and ``labels.csv`` (the returned
        table).
    n_organs
        2 or 3; two are the coarse and the middle one.
    n_scanners
        Each has its own stain, blur and tone.
    patients_per_cell
        Patients, with one image each, of every organ at every scanner.
    tiles_per_image
        At least 9, of which 8 are tumour.
    scanner_strength
        0: scanners are alike.
    contrast
        Share of the texture's variance at the organ's own scale; the other scales share the rest.

    Returns
    -------
    pd.DataFrame
        image, patient, label (the organ), study (the scanner).

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    import pandas as pd

    from mvhlib.tiles.cut import Tiles
    from mvhlib.tiles.store import write_tiles

    _check_ranges(
        "synthetic organs", ("n_organs", n_organs, 2, len(BANDS)),
        ("n_scanners", n_scanners, 1, 26), ("patients_per_cell", patients_per_cell, 1, 1000),
        ("tiles_per_image", tiles_per_image, 9, 10_000), ("tile_px", tile_px, 36, 1024),
        ("mpp", mpp, 0.1, 10), ("scanner_strength", scanner_strength, 0, 4),
        ("contrast", contrast, 0, 1))
    if version != VERSION:
        raise InputError("synthetic organs", "version", f"{version!r} is not {VERSION!r}",
                         f"use version {VERSION!r}")
    folder, rows = Path(folder), []
    scores = plan_studies(generator(seed, 3, 0), n_scanners)[2]
    looks = draw_appearances(scores, *[scanner_strength] * 3)
    for organ, scanner, number in np.ndindex(n_organs, n_scanners, patients_per_cell):
        draw = generator(seed, 3, 1, organ, scanner, number)
        power = np.full(len(BANDS), (1 - contrast) / (len(BANDS) - 1))
        power[organ] = contrast
        kind, grade, planted = _draw_bag(draw, tiles_per_image, False, 0.0)
        jitter = np.exp(0.06 * scanner_strength * draw.standard_normal(2))
        look = replace(looks[scanner], gains=tuple(np.array(looks[scanner].gains) * jitter))
        img, coords = _draw_tiles(draw, kind, grade, planted, look, tile_px, mpp,
                                  contrast=np.repeat(np.sqrt(power / 2), 2))
        name = f"{list(BANDS)[organ]}-scanner{scanner + 1}-{number + 1:02d}"
        write_tiles(folder / "tiles" / f"{name}.h5", Tiles(
            img, coords, np.zeros(len(img), np.float32), tile_px, tile_px * mpp, mpp, mpp,
            [f"{x // tile_px}x{y // tile_px}" for x, y in coords]))
        rows.append((name, f"OP{len(rows) + 1:04d}", f"{list(BANDS)[organ]} organ",
                     f"scanner{scanner + 1}"))
    table = pd.DataFrame(rows, columns=["image", "patient", "label", "study"])
    write_csv(folder / "labels.csv", table)
    return table


def _draw_bag(rng: np.random.Generator, n: int, msi: bool, spread: float
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, grade and whether it is invaded, of each of `n` tiles, shuffled."""
    share = rng.dirichlet(7 * np.array(list(_SLIDE_CLASSES.values())))
    number = rng.multinomial(n - 8, share)
    number[list(_SLIDE_CLASSES).index("tumour")] += 8
    kind = rng.permutation(np.repeat([CLASSES.index(tissue) for tissue in _SLIDE_CLASSES], number))
    tumour = np.flatnonzero(kind == CLASSES.index("tumour"))
    invaded, grade = np.zeros(n, dtype=bool), np.zeros(n)
    if msi:
        invaded[tumour[:rng.integers(2, 5)]] = True
    plain = tumour[~invaded[tumour]]
    # evenly spaced grades, so that mean and spread of the bag are exact and none runs away
    even = np.linspace(-1, 1, len(plain))
    grade[rng.permutation(plain)] = spread * even / even.std()
    return kind, grade, invaded


def _draw_tiles(rng: np.random.Generator, kind: np.ndarray, grade: np.ndarray,
                invaded: np.ndarray, look: Appearance, tile_px: int, mpp: float,
                contrast: np.ndarray | float = 6**-0.5) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(T, S, S, 3)` and corners `(T, 2)` of the tiles of one slide.

    `contrast` is the RMS of the six textures `(6,)`, squares summing to 1.
    """
    side = int(np.ceil(np.sqrt(len(kind))))
    shape = (side * tile_px, side * tile_px)

    def mosaic(values: np.ndarray) -> np.ndarray:
        grid = np.full(side * side, 0, dtype=values.dtype)
        grid[:len(values)] = values
        return np.kron(grid.reshape(side, side), np.ones((tile_px, tile_px), values.dtype))

    labels = mosaic(kind.astype(np.int8))
    is_invaded = mosaic(invaded.astype(np.int8)).astype(bool)
    labels[is_invaded & (smooth_field(rng, shape, 14 / mpp) > 0.2)] = CLASSES.index("lymphocytes")
    layout = lay_out(rng, labels, mpp, np.ones(shape), grade=mosaic(grade))
    texture = draw_texture(rng, side, tile_px, np.full((side, side, 6), contrast),
                           np.full((side, side), look.blur_um / mpp))
    pixels = expose(layout, 0.28 * texture, look, mpp)
    tiles = pixels.reshape(side, tile_px, side, tile_px, 3).swapaxes(1, 2)
    row, column = np.divmod(np.arange(len(kind)), side)
    return (tiles.reshape(-1, tile_px, tile_px, 3)[:len(kind)],
            np.stack([column, row], 1).astype(np.int64) * tile_px)


def _follow(rng: np.random.Generator, log_hazard: np.ndarray, event_rate: float
            ) -> tuple[np.ndarray, np.ndarray]:
    """Time [months] and event; Weibull times, uniform censoring of a length that gives the rate."""
    n = len(log_hazard)
    shape = 1.2
    death = 70 * (rng.exponential(size=n) * np.exp(-log_hazard)) ** (1 / shape)
    follow_up = rng.uniform(0.1, 1, n)
    # at length L the patients with death <= L * follow_up have their event seen
    length = np.quantile(death / follow_up, event_rate)
    time = np.minimum(death, length * follow_up)
    return np.maximum(np.round(time, 1), 0.1), (death <= length * follow_up).astype(int)
