"""The synthetic cohort: sections with counts, images and their truth."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.artifacts import InputError, atomic
from mvhlib.cohort.base import Cohort, ImageRef, Section
from mvhlib.cohort.synthetic.genes import CAUSES, draw_counts, log_rates, make_genes, wiring
from mvhlib.cohort.synthetic.laboratory import Appearance, draw_appearances, expose, plan_studies
from mvhlib.cohort.synthetic.texture import (
    CONTRAST_MOMENTS,
    FREQUENCY_PROGRAMS,
    draw_contrasts,
    draw_texture,
)
from mvhlib.cohort.synthetic.tissue import (
    CLASSES,
    VERSION,
    draw_labels,
    generator,
    lay_out,
    smooth_field,
)

if TYPE_CHECKING:
    import pandas as pd

ROLES = {"evaluation": ("S", 0), "pretraining": ("U", 1), "prediction": ("V", 4)}

#: Shift of the prevalences of tumour, glands and lymphocytes by organ, in units of the spread of
#: patients, relative to the first organ's.
_ORGAN_TILTS = ((0.0, 0.0, 0.0, 0.0), (-1.5, 1.5, 0.0, 0.0), (0.0, -1.5, 1.5, 0.0),
                (1.5, 0.0, -1.5, 0.0), (-1.5, 0.0, 1.5, 0.0))


@dataclass(frozen=True)
class _Recipe:
    """Everything that a cohort is made from; stored with it."""

    seed: int
    version: str
    role: str
    n_studies: int
    patients_per_study: int
    sections_per_patient: int
    spots_per_side: int
    tile_px: int
    mpp: float
    stain_strength: float
    blur_strength: float
    tone_strength: float
    artefact_strength: float
    texture_strength: float
    n_genes_per_program: int
    depth: float
    dispersion: float
    n_organs: int = 1

    def __post_init__(self):
        def refuse(name: str, problem: str, fix: str):
            raise InputError("synthetic cohort", name, problem, fix)

        if self.version != VERSION:
            refuse("version", f"{self.version!r} is not {VERSION!r}, the one that this code makes",
                   f"use version {VERSION!r}, or install the release that made the other")
        if self.role not in ROLES:
            refuse("role", f"{self.role!r} is unknown", f"use one of {sorted(ROLES)}")
        for name in ("n_studies", "patients_per_study", "sections_per_patient"):
            if not 1 <= getattr(self, name) <= 26:
                refuse(name, f"is {getattr(self, name)}", "use 1 to 26")
        if not 1 <= self.n_organs <= len(_ORGAN_TILTS):
            refuse("n_organs", f"is {self.n_organs}", f"use 1 to {len(_ORGAN_TILTS)}")
        if self.spots_per_side < 3:
            refuse("spots_per_side", f"is {self.spots_per_side}", "use at least 3")
        if self.tile_px < 36 or self.tile_px % 2:
            refuse("tile_px", f"is {self.tile_px}; the fine band starts at 16 cycles per tile",
                   "use an even number of at least 36")
        if self.n_genes_per_program < 2:
            refuse("n_genes_per_program", f"is {self.n_genes_per_program}", "use at least 2")
        for name in ("mpp", "depth", "dispersion"):
            if not 0 < getattr(self, name) < np.inf:
                refuse(name, f"is {getattr(self, name)}", "use a positive number")
        for name in ("stain_strength", "blur_strength", "tone_strength", "artefact_strength",
                     "texture_strength"):
            if not 0 <= getattr(self, name) <= 4:
                refuse(name, f"is {getattr(self, name)}", "use 0 (no effect) to 4")


# Every parameter of the recipe by name: notebooks and params set them flat.
def make_cohort(folder: str | Path, *, seed: int = 0, version: str = VERSION,
                role: str = "evaluation", n_studies: int = 8, patients_per_study: int = 2,
                sections_per_patient: int = 2, spots_per_side: int = 12, tile_px: int = 64,
                mpp: float = 1.5625, stain_strength: float = 1.0, blur_strength: float = 1.0,
                tone_strength: float = 1.0, artefact_strength: float = 1.0,
                texture_strength: float = 1.0, n_genes_per_program: int = 8,
                depth: float = 4000.0, dispersion: float = 0.15, n_organs: int = 1) -> Cohort:
    """Make the synthetic cohort: images and truth on disk, counts in the sections.

    Parameters
    ----------
    folder
        Takes ``images/<section>.png`` and ``truth/<section>.h5ad``; the latter holds
        ``layers["rate"]``, the log share of the library that each gene was given in each spot,
        and every cause in ``obs``.
    seed
        Everything follows from it; strengths change no draw.
    version
        Of the generator, part of the cohort's identity.
    role
        ``"evaluation"`` (studies S1...), ``"pretraining"`` (studies U1...) or ``"prediction"``
        (studies V1...): no study, patient or section of the one is in another.
    n_studies, patients_per_study, sections_per_patient
        A section is a specimen of its own: none is a replicate of another.
    spots_per_side
        Side of the square spot grid; spots less than three quarters on tissue are left out.
    tile_px, mpp
        Side of a spot's tile, which is also the distance of spots [px], and micrometres per px.
    stain_strength, blur_strength, tone_strength
        Spread of the studies in stain vectors and their gains, in blur, in haze and tone curve;
        1 is a spread as between laboratories, 0 none.
    artefact_strength
        Size of the gradient of stain and focus inside sections.
    texture_strength
        Relative contrast of the frequency textures.
    n_genes_per_program
        Genes of each program (of noise at least 20).
    depth
        Mean library size [counts].
    dispersion
        Of the negative binomial: variance `mean + dispersion * mean**2`.
    n_organs
        Organs that the studies are dealt to in turn; see the package, and `organs`.

    Raises
    ------
    InputError
        If a parameter is out of its range.
    """
    recipe = _Recipe(
        seed=seed, version=version, role=role, n_studies=n_studies,
        patients_per_study=patients_per_study, sections_per_patient=sections_per_patient,
        spots_per_side=spots_per_side, tile_px=tile_px, mpp=mpp, stain_strength=stain_strength,
        blur_strength=blur_strength, tone_strength=tone_strength,
        artefact_strength=artefact_strength, texture_strength=texture_strength,
        n_genes_per_program=n_genes_per_program, depth=depth, dispersion=dispersion,
        n_organs=n_organs)
    folder = Path(folder)
    letter, stream = ROLES[role]
    genes = make_genes(seed, n_genes_per_program)
    if n_organs > 1:
        is_second = genes.groupby("program").cumcount() % 2 == 1
        genes["organ_specific"] = (is_second & genes["program"].isin(CLASSES)).astype(int)
    signs, offsets, scores = plan_studies(generator(seed, stream, 0), n_studies)
    looks = draw_appearances(scores, stain_strength, blur_strength, tone_strength)
    drawn = []
    for study in range(n_studies):
        for patient in range(patients_per_study):
            tilt = generator(seed, stream, 2, study, patient).standard_normal(4)
            for number in range(sections_per_patient):
                name = f"{letter}{study + 1}P{patient + 1}{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[number]}"
                drawn.append((
                    folder, name, recipe, genes,
                    generator(seed, stream, 3, study, patient, number).spawn(6),
                    tilt + np.array(_ORGAN_TILTS[study % n_organs]), looks[study], signs[study],
                    offsets[study], study % n_organs))
    # Every section has generators of its own, so that their order does not matter.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return Cohort(list(pool.map(lambda each: _make_section(*each), drawn)))


def organs(cohort: Cohort) -> dict[str, str]:
    """Organ of each section of a cohort made here, for `mvhlib.cohort.splits.make`'s `groups`."""
    return {section.name: f"organ {section.adata.uns['synthetic'].get('organ', 1)}"
            for section in cohort}


def read(path: str | Path, **options) -> Cohort:
    """`make_cohort` under the signature of the other readers; `path` is the folder it fills."""
    import inspect

    known = [name for name in inspect.signature(make_cohort).parameters if name != "folder"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError("synthetic cohort", ", ".join(unknown), "no such option",
                         f"use {', '.join(known)}")
    return make_cohort(path, **options)


#: Change per unit of the gradient, which runs from about -1 to 1: log H gain, log E gain, log blur.
#: Both stains and the blur grow together, as where a section is thicker.
_GRADIENT = np.array([0.60, 0.60, 0.70])


@dataclass(frozen=True)
class _Drawn:
    """A drawn section, and its values at each of the T spots.

    Attributes
    ----------
    pixels
        `(H, W, 3)` uint8.
    look
        The study's, with the section's own jitter.
    row, column
        `(T,)` place on the grid.
    centres
        `(T, 2)` x and y [px].
    shares
        `(T, 5)` of each class in the spot's tile.
    nuclei
        `(T,)` in the spot's tile; `per_mm2` is their density.
    contrast
        `(T, 6)` of each frequency program.
    artefact
        `(T,)` signed gradient of stain and focus.
    """

    pixels: np.ndarray
    look: Appearance
    row: np.ndarray
    column: np.ndarray
    centres: np.ndarray
    shares: np.ndarray
    tissue: np.ndarray
    nuclei: np.ndarray
    per_mm2: np.ndarray
    contrast: np.ndarray
    artefact: np.ndarray


def _draw(recipe: _Recipe, rngs: list[np.random.Generator], tilt: np.ndarray, look: Appearance,
          sign: float) -> _Drawn:
    """Draw the tissue and the pixels of one section."""
    n, tile, mpp = recipe.spots_per_side, recipe.tile_px, recipe.mpp
    side, margin = (n + 1) * tile, tile // 2
    shape = (side, side)
    labels = draw_labels(rngs[0], shape, mpp, tilt)
    crowding = np.clip(1 + 0.4 * smooth_field(rngs[1], shape, 150 / mpp), 0.4, 1.6)
    layout = lay_out(rngs[1], labels, mpp, crowding)

    # every section has this gradient, so that the images of no study can be told by it
    angle = rngs[2].uniform(0, 2 * np.pi)
    ramp = (np.arange(side) + 0.5) / side * 2 - 1
    gradient = np.cos(angle) * ramp[None] + np.sin(angle) * ramp[:, None]  # (H, W)
    drift = gradient * recipe.artefact_strength * _GRADIENT[:, None, None]
    drift[2] = np.exp(drift[2])

    # a ring of tiles around the spots, so that the margin looks like the rest
    contrast = draw_contrasts(rngs[3], n + 2)
    centre = np.clip((np.arange(n + 2) * tile).astype(int), 0, side - 1)
    blur_px = look.blur_um / mpp * drift[2][np.ix_(centre, centre)]
    texture = draw_texture(rngs[4], n + 2, tile, contrast, blur_px)[margin:-margin, margin:-margin]
    jitter = np.exp(0.06 * recipe.stain_strength * rngs[5].standard_normal(2))
    look = replace(look, gains=tuple(np.array(look.gains) * jitter))
    pixels = expose(layout, 0.28 * recipe.texture_strength * texture, look, mpp, drift)

    grid = labels[margin:-margin, margin:-margin].reshape(n, tile, n, tile).swapaxes(1, 2)
    shares = np.stack([(grid == index).mean((2, 3)) for index in range(len(CLASSES))], -1)
    tissue = shares.sum(-1)
    row, column = np.nonzero(tissue >= 0.75)
    cell = (layout.nuclei - margin) // tile
    inside = ((cell >= 0) & (cell < n)).all(1)
    nuclei = np.zeros((n, n))
    np.add.at(nuclei, tuple(cell[inside].astype(int).T[::-1]), 1)
    per_mm2 = nuclei / (tile * mpp / 1000) ** 2
    centres = margin + (np.stack([column, row], 1) + 0.5) * tile
    at = sign * gradient[centres[:, 1].astype(int), centres[:, 0].astype(int)]
    return _Drawn(pixels, look, row, column, centres, shares[row, column], tissue[row, column],
                  nuclei[row, column].astype(int), per_mm2[row, column],
                  contrast[1:-1, 1:-1][row, column], at)


def _causes(drawn: _Drawn, offset: float) -> dict[str, np.ndarray]:
    """Every cause `(T,)` that a gene can follow."""
    causes = {name: drawn.shares[:, index] for index, name in enumerate(CLASSES)}
    causes["density"] = np.log((drawn.per_mm2 + 500) / 3000) / 0.5
    mean, deviation = CONTRAST_MOMENTS
    for index, program in enumerate(FREQUENCY_PROGRAMS):
        causes[program] = (drawn.contrast[:, index] - mean) / deviation
    causes["study_offset"] = np.full(len(drawn.row), offset)
    causes["artefact"] = drawn.artefact
    return causes


def _about(recipe: _Recipe, drawn: _Drawn, sign: float, offset: float, organ: int) -> dict:
    """``uns["synthetic"]``: the recipe, the look of the section, and what its study does."""
    parameters = {key: getattr(recipe, key) for key in recipe.__dataclass_fields__}
    if parameters["n_organs"] == 1:  # cohorts without organs stay as they were, byte by byte
        del parameters["n_organs"]
    else:
        parameters["organ"] = organ + 1
    look = drawn.look
    return parameters | {
        "stain_gains": np.array(look.gains), "stain_vectors": look.stains,
        "blur_um": look.blur_um, "haze": look.haze, "tone_curve": look.curve,
        "artefact_sign": sign, "study_offset": offset}


def _make_section(folder: Path, name: str, recipe: _Recipe, genes: "pd.DataFrame",
                  rngs: list[np.random.Generator], tilt: np.ndarray, look: Appearance,
                  sign: float, offset: float, organ: int = 0) -> Section:
    """Draw one section, write image and truth, and return it with its counts."""
    import anndata
    import pandas as pd
    from PIL import Image
    from scipy import sparse

    drawn = _draw(recipe, rngs, tilt, look, sign)
    causes = _causes(drawn, offset)
    rate = log_rates(genes, causes, organ)
    counts, library = draw_counts(rngs[5], rate, recipe.depth, recipe.dispersion)

    place = {"study": name.split("P")[0], "patient": name[:-1], "section": name}
    obs = pd.DataFrame({"array_row": drawn.row, "array_col": drawn.column},
                       index=[f"{x}x{y}" for x, y in zip(drawn.column, drawn.row, strict=True)])
    truth = obs.assign(**{f"cause_{key}": value for key, value in causes.items()},
                       tissue=drawn.tissue, nuclei=drawn.nuclei, nuclei_per_mm2=drawn.per_mm2,
                       library=library, tissue_class=pd.Categorical.from_codes(
                           drawn.shares.argmax(1), CLASSES), **place)
    for index, program in enumerate(FREQUENCY_PROGRAMS):
        truth[f"contrast_{program}"] = drawn.contrast[:, index]
    uns = {"synthetic": _about(recipe, drawn, sign, offset, organ)}
    var = genes[["program", "cause"]].assign(cause=[CAUSES[d] for d in wiring(genes, organ)])
    image = folder / "images" / f"{name}.png"
    with atomic(image) as temporary:
        Image.fromarray(drawn.pixels).save(temporary, format="PNG", compress_level=4)
    with atomic(folder / "truth" / f"{name}.h5ad") as temporary:
        anndata.AnnData(
            obs=truth, var=genes, layers={"rate": rate.astype(np.float32)},
            obsm={"spatial": drawn.centres}, uns=uns).write_h5ad(temporary)

    side = len(drawn.pixels)
    step = max(1, -(-side // 1000))
    thumbnail = (np.asarray(Image.fromarray(drawn.pixels).reduce(step)) if step > 1
                 else drawn.pixels)
    adata = anndata.AnnData(
        X=sparse.csr_matrix(counts.astype(np.float32)), obs=obs.assign(**place), var=var,
        obsm={"spatial": drawn.centres},
        uns=uns | {"spatial": {name: {
            "images": {"hires": thumbnail},
            "scalefactors": {"tissue_hires_scalef": 1 / step,
                             "spot_diameter_fullres": float(recipe.tile_px)}}}})
    adata.layers["counts"] = adata.X.copy()
    return Section(
        name=name, study=place["study"], patient=place["patient"], specimen=name,
        source="synthetic", load=lambda: adata, mpp=recipe.mpp,
        image_ref=ImageRef(f"images/{name}.png", root="cohort"), image_size=(side, side),
        roots={"cohort": folder})
