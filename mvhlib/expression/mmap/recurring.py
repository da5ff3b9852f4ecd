"""Test of whether a slide's prototypes follow gene programs more than shifted maps of them do.

MMAP's authors read prototypes as recurring tissue. Both prototypes and expression change slowly
over a section, so that they agree somewhat by chance. Here the map of prototypes is shifted over
the array, which keeps it smooth but breaks its link to the tissue: the share of a program's
variance between prototypes is compared with that share at every shift.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import lattice, phrases
from mvhlib.artifacts import InputError
from mvhlib.cohort.genes import targets
from mvhlib.expression.protocols import stream

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort
    from mvhlib.expression.mmap.estimator import MMAP

#: Columns of `follows`.
COLUMNS = ["section", "program", "n_spots", "n_prototypes", "share", "share_shifted", "p"]


def between(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Share of the variance of each column `(T, P)` that lies between groups `(T,)`, `(P,)`.

    NaN where a column is constant.
    """
    values = values - values.mean(axis=0)
    _, group = np.unique(members, return_inverse=True)
    size = np.bincount(group)[:, None]
    sums = np.zeros((len(size), values.shape[1]))
    np.add.at(sums, group, values)
    total = (values**2).sum(axis=0)
    return np.divide((sums**2 / size).sum(axis=0), total, out=np.full(len(total), np.nan),
                     where=total > 0)


def follows(section: str, members: np.ndarray, programs: pd.DataFrame, places: np.ndarray, *,
            n_draws: int = 199, min_overlap: float = 0.5, rng: np.random.Generator
            ) -> pd.DataFrame:
    """Test one slide: share of each program's variance between prototypes, and under shifts.

    Parameters
    ----------
    section
        Its name, for the table.
    members
        Prototype of each spot `(T,)`.
    programs
        Measured score of each program in each spot, `(T, P)`.
    places
        Row and column of each spot on the array `(T, 2)`, integers; `lattice.array_positions`.
    n_draws
        Shifts on the torus. Spots whose shifted place holds no spot are left out of a draw.
    min_overlap
        Least share of the spots that a shift must pair.
    rng
        Source of randomness.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, one row per program; ``p`` is one-sided, ``(1 + shifts as good) / (1 +
        n_draws)``, and not corrected for the number of programs.

    Raises
    ------
    InputError
        If no shift pairs enough spots.
    """
    places = np.asarray(places) - np.min(places, axis=0)
    extent = places.max(axis=0) + 1
    extent += extent % 2  # on a hexagonal array the torus must keep the parity of row and column
    at = np.full(extent, -1)
    at[tuple(places.T)] = np.arange(len(places))
    shifts = rng.permutation(np.argwhere(np.ones(extent, dtype=bool))[1:])
    values = programs.to_numpy(dtype=np.float64)
    drawn = []
    for shift in shifts:
        partner = at[tuple(((places + shift) % extent).T)]
        if (partner >= 0).mean() >= min_overlap:
            drawn.append(between(values[partner[partner >= 0]], members[partner >= 0]))
        if len(drawn) == n_draws:
            break
    if not drawn:
        raise InputError(section, "prototypes", f"cannot be shifted: no shift pairs "
                         f"{min_overlap:.0%} of the spots", "lower min_overlap")
    found, null = between(values, members), np.array(drawn)
    better = (null >= found - 1e-12).sum(axis=0)
    return pd.DataFrame({
        "section": section, "program": programs.columns, "n_spots": len(places),
        "n_prototypes": len(np.unique(members)), "share": found, "share_shifted": null.mean(axis=0),
        "p": (1 + better) / (1 + len(drawn))})[COLUMNS]


def said(tested: pd.DataFrame, level: float = 0.05) -> str:
    """Summarise tables of `follows` in one sentence."""
    if tested.empty:
        return "No gene program is known or measured, so that prototypes were not tested."
    by_program = tested.groupby("program", sort=False)
    most = by_program["p"].apply(lambda p: (p < level).mean() > 0.5)
    names = [str(name).replace("_", " ") for name in most[most].index]
    return (f"Prototypes hold {tested['share'].mean():.0%} of a program's variance in the mean, "
            f"shifted over the array {tested['share_shifted'].mean():.0%}; they follow "
            f"{phrases.listed(names) if names else 'no program'} (p below {level:g}) on most of "
            f"{phrases.count(tested['section'].nunique(), 'slide')}.")


def table(model: "MMAP", views: Mapping[str, Any], people: "Cohort", names: Iterable[str],
          sets: Mapping[str, list[str]], *, signs: Mapping[str, float] | None = None,
          n_draws: int = 199, seed: int = 0) -> pd.DataFrame:
    """Apply `follows` to several slides of a fitted model.

    Parameters
    ----------
    model
        Fitted without the slides that are named, with prototypes.
    views
        Section -> its tokens, as the model reads them (`token_folder`).
    people
        Cohort with raw counts and spot centres.
    names
        Sections to test.
    sets, signs
        As for `mvhlib.expression.structure.set_scores`; all genes of a section may be named.
    n_draws
        Shifts of each slide.
    seed
        Of the shifts; each slide draws from a stream of its own.
    """
    from mvhlib.expression.structure import set_scores

    found = [pd.DataFrame(columns=COLUMNS)]
    for name in names:
        adata = people[name].adata[views[name].barcodes]
        named = [gene for genes in sets.values() for gene in genes if gene in adata.var_names]
        genes = list(dict.fromkeys(named))
        if not genes:
            continue
        programs = set_scores(targets(adata, genes), genes, sets, signs=signs)
        if programs.shape[1]:
            members = model.prototypes(views[name].features, where=name).assignment
            found.append(follows(name, members, programs,
                                 lattice.array_positions(adata.obsm["spatial"]), n_draws=n_draws,
                                 rng=stream(seed, "shifts", name)))
    return pd.concat(found[1:] or found, ignore_index=True)
