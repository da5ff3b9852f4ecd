"""Gene programs: the cause that drives each gene, and counts around its rate."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mvhlib.cohort.synthetic.texture import BANDS, FREQUENCY_PROGRAMS
from mvhlib.cohort.synthetic.tissue import CLASSES, generator

if TYPE_CHECKING:
    import pandas as pd

PROGRAMS = (*CLASSES, "density", *FREQUENCY_PROGRAMS, "study_offset", "artefact", "noise")
#: Programs whose genes follow nothing that tissue shows.
WITHOUT_SIGNAL = ("study_offset", "artefact", "noise")
#: What programs have in common: groups that are few enough to be told apart in a figure.
GROUPS = {**dict.fromkeys((*CLASSES, "density"), "tissue class"),
          **dict.fromkeys(FREQUENCY_PROGRAMS, "texture"),
          **dict.fromkeys(("study_offset", "artefact"), "artefact"), "noise": "noise"}

CAUSES = {
    **{name: f"share of {name} in the spot's tile" for name in CLASSES},
    "density": "nuclei per mm2 in the spot's tile",
    **{f"{band}_{way}": f"texture contrast at {low:g} to {high:g} cycles per tile (at most the "
                        f"tile's Nyquist), varying {way} the raster"
       for band, (low, high) in BANDS.items() for way in ("along", "across")},
    "study_offset": "the study, equal in all its spots",
    "artefact": "gradient of stain and focus across the section, its sign differing by study",
    "noise": "none",
}

#: Share of the library that goes to each group of programs. Fixed, see the package's docstring.
_SHARES = {"classes": 0.30, "density": 0.06, "frequency": 0.36, "study_offset": 0.06,
           "artefact": 0.06, "noise": 0.16}
#: Change of log-rate per unit of a cause (class share: 0 to 1; the others are standardised).
_EFFECTS = {"classes": 2.5, "density": 0.7, "frequency": 0.8, "study_offset": 0.6, "artefact": 1.3}


def make_genes(seed: int, n_per_program: int) -> "pd.DataFrame":
    """The genes: program, cause, direction and effect, and abundance before any cause."""
    import pandas as pd

    rng = generator(seed, 99)
    rows = []
    for program in PROGRAMS:
        n = max(20, n_per_program) if program == "noise" else n_per_program
        for number in range(n):
            group = _group(program)
            direction = 0 if group == "noise" else -1 if group != "classes" and number % 2 else 1
            effect = direction * _EFFECTS.get(group, 0.0) * rng.uniform(0.8, 1.2)
            rows.append((f"{program.replace('_', '-')}-{number + 1:02d}", program,
                         CAUSES[program], effect, np.exp(0.4 * rng.standard_normal())))
    frame = pd.DataFrame(rows, columns=["gene", "program", "cause", "effect", "abundance"])
    return frame.set_index("gene")


def group_of(program: object) -> str:
    """The group of a gene's program, for figures; genes of no program of ours are ``genes``."""
    return GROUPS.get(str(program), "genes")


def _group(program: str) -> str:
    if program in CLASSES:
        return "classes"
    return "frequency" if program in FREQUENCY_PROGRAMS else program


def wiring(genes: "pd.DataFrame", organ: int) -> np.ndarray:
    """Name of the cause that drives each gene in an organ, counted from 0."""
    drivers = genes["program"].to_numpy(dtype=object).copy()
    if organ:
        turned = np.flatnonzero(genes["organ_specific"])
        drivers[turned] = [CLASSES[(CLASSES.index(name) + organ) % len(CLASSES)]
                           for name in drivers[turned]]
    return drivers


def log_rates(genes: "pd.DataFrame", causes: Mapping[str, np.ndarray],
              organ: int = 0) -> np.ndarray:
    """Log share of the library per spot and gene `(T, G)`; shares sum to 1 in every spot.

    Each group of programs (each frequency program by itself) is normalised to its own share of
    the library: what rises in it is paid by what falls in it, never by another group's genes.
    """
    n_spots = len(causes["density"])
    rate = np.empty((n_spots, len(genes)))
    program, drivers = genes["program"].to_numpy(), wiring(genes, organ)
    for blocks, group in [((*CLASSES,), "classes"), *(((p,), _group(p)) for p in PROGRAMS[5:])]:
        columns = np.flatnonzero(np.isin(program, blocks))
        driver = np.stack([causes[p] if p != "noise" else np.zeros(n_spots)
                           for p in drivers[columns]], 1)  # (T, genes of the block)
        part = genes["effect"].to_numpy()[columns] * driver \
            + np.log(genes["abundance"].to_numpy()[columns])
        part -= np.log(np.exp(part).sum(1, keepdims=True))
        share = _SHARES[group] / (len(FREQUENCY_PROGRAMS) if group == "frequency" else 1)
        rate[:, columns] = part + np.log(share)
    return rate


def draw_counts(rng: np.random.Generator, rate: np.ndarray, depth: float,
                dispersion: float) -> tuple[np.ndarray, np.ndarray]:
    """Negative binomial counts `(T, G)` and expected library sizes `(T,)`.

    Variance `mean + dispersion * mean**2`; the library is log-normal over spots.
    """
    library = depth * np.exp(0.3 * rng.standard_normal(len(rate)) - 0.045)
    mean = library[:, None] * np.exp(rate)
    counts = rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape))
    return counts, library
