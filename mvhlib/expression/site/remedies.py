"""Remedies for site effects that need no expression, and their effect on scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import standardise, statistics
from mvhlib.artifacts import InputError

if TYPE_CHECKING:
    from mvhlib.features import Features

#: What a remedy adds to an encoder's slug.
REMEDIES = ("+centred", "-macenko", "-reinhard")


def centre(features: "Mapping[str, Features | np.ndarray]", groups: Mapping[str, str], *,
           scale: bool = False) -> "dict[str, Features | np.ndarray]":
    """Subtract each group's mean from its features; a remedy that needs no expression.

    It uses the images of the test study as a whole (which spots look how), but none of its
    expression: transductive, and possible at a new hospital as soon as it has a few sections. What
    a study has more of (a tissue class, say) is subtracted with its stain. Features of one section
    per group lose every difference between sections.

    Parameters
    ----------
    features
        Section -> `Features` or `(T, D)`.
    groups
        Section -> study (or patient, or the section itself).
    scale
        Divide by each group's standard deviation as well; features constant in a group become 0.

    Returns
    -------
    dict
        Copies; sections of a group weigh the same. Values are float32, ``attrs["centred"]`` says
        what was done.

    Raises
    ------
    InputError
        If a section has no group.
    """
    missing = sorted(set(features) - set(groups))
    if missing:
        raise InputError("site", "groups", f"lack {missing[:3]}", "name every section's study")
    values = {name: np.asarray(getattr(given, "features", given), dtype=np.float64)
              for name, given in features.items()}
    out = {}
    for group in dict.fromkeys(groups[name] for name in features):
        members = [name for name in features if groups[name] == group]
        mean = np.mean([values[name].mean(axis=0) for name in members], axis=0)
        spread = np.ones_like(mean)
        if scale:
            square = np.mean([((values[name] - mean) ** 2).mean(axis=0) for name in members],
                             axis=0)
            size = np.max([np.abs(values[name]).max(axis=0) for name in members], axis=0)
            spread = np.where(standardise.varies(np.sqrt(square), size), np.sqrt(square), np.inf)
        for name in members:
            moved = ((values[name] - mean) / spread).astype(np.float32)
            given = features[name]
            out[name] = moved if not hasattr(given, "features") else replace(
                given, features=moved,
                attrs=given.attrs | {"centred": "mean and spread" if scale else "mean"})
    return {name: out[name] for name in features}


def remedy_effects(scores: pd.DataFrame, *, plain: str, unit: str = "patient",
                   confidence: float = 0.95) -> pd.DataFrame:
    """What each remedy adds to an encoder's scores, within units.

    Parameters
    ----------
    scores
        Rows of `protocols.Result` (columns protocol, method, encoder, control, panel, pcc and
        `unit`), the remedies under slugs of their own, for instance ``vit12-random+centred``.
    plain
        The slug without remedy.
    unit
        The difference is taken within each unit, and the interval over units.

    Returns
    -------
    pd.DataFrame
        ``protocol, method, panel, remedy, plain, treated, difference, ci_low, ci_high, n_units``:
        means of Pearson's r and their paired difference.

    Raises
    ------
    InputError
        If `plain` has no rows.
    """
    scores = scores[scores["control"] == "none"]
    if plain not in set(scores["encoder"]):
        raise InputError("site", "encoder", f"{plain!r} has no scores",
                         f"use one of {sorted(set(scores['encoder']))}")
    found = []
    for keys, part in scores.groupby(["protocol", "method", "panel"], sort=False):
        means = statistics.unit_means(part, unit, by=["encoder"]).unstack("encoder")
        if plain not in means:
            continue
        for remedy in dict.fromkeys(part["encoder"]):
            if remedy == plain:
                continue
            pair = means[[plain, remedy]].dropna()
            gap = statistics.t_interval(pair[remedy] - pair[plain], confidence)
            found.append((*keys, remedy, pair[plain].mean(), pair[remedy].mean(), gap.mean,
                          gap.low, gap.high, gap.n))
    return pd.DataFrame(found, columns=["protocol", "method", "panel", "remedy", "plain",
                                        "treated", "difference", "ci_low", "ci_high", "n_units"])


def all_remedies(scores: pd.DataFrame, *, unit: str = "patient") -> pd.DataFrame:
    """`remedy_effects` of every encoder that was also tried with a remedy.

    A remedy's slug is the plain one with ``+centred``, ``-macenko`` or ``-reinhard`` behind it.
    """
    slugs = list(dict.fromkeys(scores["encoder"]))
    found = []
    for plain in slugs:
        own = [slug for slug in slugs if slug in {plain + ending for ending in REMEDIES}]
        if own:
            rows = scores[scores["encoder"].isin([plain, *own])]
            effects = remedy_effects(rows, plain=plain, unit=unit)
            effects.insert(3, "encoder", plain)
            found.append(effects)
    columns = ["protocol", "method", "panel", "encoder", "remedy", "plain", "treated",
               "difference", "ci_low", "ci_high", "n_units"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
