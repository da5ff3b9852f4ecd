"""Variants of an encoder, several seeds each, compared pair by pair.

A variant is a group of encoders whose slugs differ in their seed alone (``vit12-dino.s0``,
``vit12-dino.s1``, ...; see `mvhlib.workflow.read_plan`). Two sources of chance stand side by side:
another seed of the weights and the training, and another patient or study. A difference that is
larger than both is a finding; one seed allows none.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression import site

if TYPE_CHECKING:
    from mvhlib.features import Features

SEEDED = re.compile(r"(?P<variant>.+)\.s(?P<seed>\d+)")

#: Seeds from which on a comparison that was named in advance is read as one.
SEEDS_FOR_A_CLAIM = 8

COMPARISON_COLUMNS = ("protocol", "measure", "variant", "reference", "kind", "mean",
                      "reference_mean", "difference", "seed_low", "seed_high", "n_seeds",
                      "unit_low", "unit_high", "unit", "n_units", "p_seeds", "p_holm", "reading")


def split_slug(slug: str) -> tuple[str, int]:
    """Variant and seed of an encoder's slug; a slug without seed is seed 0 of itself."""
    found = SEEDED.fullmatch(slug)
    return (found["variant"], int(found["seed"])) if found else (slug, 0)


def read_scores(folder: str | Path, protocols: Sequence[str], encoders: Sequence[str],
                method: str = "ridge") -> pd.DataFrame:
    """Scores that 05 wrote, averaged to one row per section and gene program.

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.

    Returns
    -------
    pd.DataFrame
        Columns protocol, variant, seed, study, patient, section, measure (``all`` or a program),
        value (mean Pearson r over genes).

    Raises
    ------
    InputError
        If an encoder was not scored under a protocol.
    """
    parts = []
    for protocol in protocols:
        for slug in encoders:
            path = Path(folder) / protocol / method / slug / "scores.csv"
            if not path.exists():
                raise InputError(path, "file", "does not exist",
                                 f"run 05_expression with encoder {slug!r}")
            table = artifacts.read_csv(path)
            table = table[(table["control"] == "none")
                          & (table["panel"] == table["panel"].iloc[0])]
            table = pd.concat([table.assign(measure="all"),
                               table[table["program"].fillna("") != ""].assign(
                                   measure=lambda rows: rows["program"])])
            variant, seed = split_slug(slug)
            means = table.groupby(["study", "patient", "section", "measure"], sort=False,
                                  as_index=False)["pcc"].mean()
            parts.append(means.rename(columns={"pcc": "value"}).assign(
                protocol=protocol, variant=variant, seed=seed))
    return pd.concat(parts, ignore_index=True)


def drops(scores: pd.DataFrame, random: str = "random10_section", loso: str = "loso"
          ) -> pd.DataFrame:
    """What an unseen study costs, section by section, in the columns of `read_scores`.

    ``protocol`` is ``drop``, ``value`` the score under random folds less that on an unseen study:
    a variant with a smaller value loses less. Empty where one of the two was not run.
    """
    keys = ["study", "patient", "section", "measure", "variant", "seed"]
    wide = scores[scores["protocol"].isin([random, loso])].pivot(
        index=keys, columns="protocol", values="value")
    if not {random, loso} <= set(wide.columns):
        return scores.iloc[:0]
    lost = (wide[random] - wide[loso]).rename("value").dropna().reset_index()
    return lost.assign(protocol="drop")[list(scores.columns)]


def tissue_scores(features: "Mapping[str, Mapping[str, Features]]", sections: Iterable[Any],
                  labels: Mapping[str, pd.Series], *, seed: int = 0) -> pd.DataFrame:
    """Linear prediction of the tissue class on studies not seen, in the columns of `read_scores`.

    ``value`` is the balanced accuracy of `mvhlib.expression.site.probe` in each held-out study;
    ``protocol`` is ``loso``, ``measure`` ``tissue_class``.
    """
    sections, parts = list(sections), []
    for slug, given in features.items():
        found = site.unit_accuracy(site.rows(given, sections, labels), "label", seed=seed)
        variant, number = split_slug(slug)
        parts.append(pd.DataFrame({
            "study": found.index, "patient": found.index, "section": found.index,
            "measure": "tissue_class", "value": found.to_numpy(), "protocol": "loso",
            "variant": variant, "seed": number}))
    return pd.concat(parts, ignore_index=True)


def compare(scores: pd.DataFrame, pairs: Iterable[Sequence[str]], *, advance: int = 0,
            unit: str = "patient") -> pd.DataFrame:
    """Every pair of variants, with the interval over seeds and the one over units.

    Parameters
    ----------
    scores
        From `read_scores`; or any table with its columns.
    pairs
        ``[variant, reference]`` each. Of the seeds of both the common ones are paired.
    advance
        The first so many pairs were named in advance: they are the confirmatory family, corrected
        by Holm's method within a protocol over their measure ``all``; the others are exploratory.
    unit
        ``patient`` or ``study``: seeds are averaged within it.

    Returns
    -------
    pd.DataFrame
        Columns `COMPARISON_COLUMNS`; ``seed_low`` to ``seed_high`` is Student's interval of the
        mean over seeds, ``unit_low`` to ``unit_high`` that over units, ``p_seeds`` Wilcoxon's over
        seeds, ``reading`` the difference in words. Pairs of which a side was not run are left out.
    """
    rows = []
    for number, (variant, reference) in enumerate(pairs):
        kind = "named in advance" if number < advance else "exploratory"
        both = scores[scores["variant"].isin([variant, reference])]
        for (protocol, measure), part in both.groupby(["protocol", "measure"], sort=False):
            values = statistics.unit_means(part, unit, by=["variant", "seed"], value="value")
            if not {variant, reference} <= set(values.index.get_level_values("variant")):
                continue
            a, b = (values[name].unstack(unit) for name in (variant, reference))
            if len(b) == 1 and len(a) > 1:  # a reference without seeds meets every seed
                b = pd.DataFrame(np.repeat(b.to_numpy(), len(a), axis=0), a.index, b.columns)
            seeds = a.index.intersection(b.index)
            gap = a.loc[seeds] - b.loc[seeds]
            over_seeds = statistics.t_interval(gap.mean(axis=1))
            over_units = statistics.t_interval(gap.mean(axis=0))
            test = statistics.compare({"pair": (a.loc[seeds].mean(axis=1).to_numpy(),
                                                b.loc[seeds].mean(axis=1).to_numpy())})
            rows.append({
                "protocol": protocol, "measure": measure, "variant": variant,
                "reference": reference, "kind": kind, "mean": a.loc[seeds].to_numpy().mean(),
                "reference_mean": b.loc[seeds].to_numpy().mean(), "difference": over_seeds.mean,
                "seed_low": over_seeds.low, "seed_high": over_seeds.high, "n_seeds": len(seeds),
                "unit_low": over_units.low, "unit_high": over_units.high, "unit": unit,
                "n_units": over_units.n, "p_seeds": test["p_wilcoxon"].iloc[0]})
    table = pd.DataFrame(rows, columns=[name for name in COMPARISON_COLUMNS
                                        if name not in ("p_holm", "reading")])
    table["p_holm"] = np.nan
    first = (table["kind"] == "named in advance") & (table["measure"] == "all")
    for _, part in table[first].groupby("protocol"):
        table.loc[part.index, "p_holm"] = statistics.holm(part["p_seeds"])
    table["reading"] = [_read(row) for row in table.itertuples()]
    return table[list(COMPARISON_COLUMNS)]


def _read(row: Any) -> str:
    """A difference in fixed words; both intervals must leave zero out."""
    if row.n_seeds < 2:
        return "one seed, no claim"
    lows, highs = (row.seed_low, row.unit_low), (row.seed_high, row.unit_high)
    if not np.isfinite([*lows, *highs]).all():
        return "no interval"
    seen = ("higher" if min(lows) > 0 else "lower" if max(highs) < 0 else "no difference shown")
    if row.kind == "exploratory" or row.n_seeds < SEEDS_FOR_A_CLAIM:
        return f"{seen}, exploratory"
    return seen


def sentence(row: Any) -> str:
    """A row of `compare` (as `itertuples` gives it) to be read."""
    over_seeds = (f"{row.n_seeds} seeds {row.seed_low:+.3f} to {row.seed_high:+.3f}"
                  if row.n_seeds > 1 else "one seed")
    return (f"{row.variant} against {row.reference}, {row.measure}: {row.difference:+.3f} "
            f"({over_seeds}; {row.unit}s {row.unit_low:+.3f} to {row.unit_high:+.3f}): "
            f"{row.reading}")


def spread(scores: pd.DataFrame, *, measure: str = "all", unit: str = "patient") -> pd.DataFrame:
    """Mean of each variant with its standard deviation over seeds and over units.

    Returns
    -------
    pd.DataFrame
        protocol, variant, n_seeds, mean, ci_low, ci_high (Student's interval over seeds), sd_seeds,
        sd_units, n_units.
    """
    rows = []
    chosen = scores[scores["measure"] == measure]
    for (protocol, variant), part in chosen.groupby(["protocol", "variant"], sort=False):
        values = statistics.unit_means(part, unit, by=["seed"], value="value").unstack(unit)
        found = statistics.t_interval(values.mean(axis=1))
        rows.append({"protocol": protocol, "variant": variant, "n_seeds": len(values),
                     "mean": found.mean, "ci_low": found.low, "ci_high": found.high,
                     "sd_seeds": values.mean(axis=1).std(), "sd_units": values.mean(axis=0).std(),
                     "n_units": values.shape[1]})
    return pd.DataFrame(rows)


def costs(folder: str | Path, encoders: Sequence[str]) -> pd.DataFrame:
    """What each pretrained variant costs: parameters, FLOPs of its views, steps, and minutes.

    Parameters
    ----------
    folder
        ``runs/<profile>/encoders``.
    encoders
        Slugs; those that were not pretrained here are left out.

    Returns
    -------
    pd.DataFrame
        variant, parameters, steps, gflops_per_tile (forward pass of a tile's global and local
        views; FFT and scan are not counted), tflops_training (three times that, over the run's
        tiles), and minutes, a clock time.
    """
    rows: dict[str, dict[str, Any]] = {}
    for slug in encoders:
        own = Path(folder) / slug
        variant, _ = split_slug(slug)
        if variant in rows or not (own / "recipe.json").exists():
            continue
        recipe = json.loads((own / "recipe.json").read_text(encoding="utf-8"))["settings"]
        rows[variant] = {"variant": variant, **_size(own, recipe),
                         "minutes": _minutes(own / "log.timing.csv")}
    return pd.DataFrame(rows.values(), columns=["variant", "parameters", "steps",
                                                "gflops_per_tile", "tflops_training", "minutes"])


def _size(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mvhlib.backbones import from_pretrained

    model, total = from_pretrained(folder), 0
    for side, number in ((recipe["global_px"], 2), (recipe["local_px"], recipe["n_local"])):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.zeros(1, 3, side, side))
        total += number * counter.get_total_flops()
    return {"parameters": sum(p.numel() for p in model.parameters()), "steps": recipe["steps"],
            "gflops_per_tile": total / 1e9,
            "tflops_training": 3 * total * recipe["batch"] * recipe["steps"] / 1e12}


def _minutes(path: Path) -> float:
    if not path.exists():
        return float("nan")
    return float(artifacts.read_csv(path)["seconds"].iloc[-1]) / 60
