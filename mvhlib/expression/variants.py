"""Variants of an encoder, several seeds each, compared pair by pair.

A variant is a group of encoders whose slugs differ in their seed alone (``vit12-dino.s0``,
``vit12-dino.s1``, ...; see `mvhlib.workflow.read_plan`). Two sources of chance move a difference:
another seed of the weights and the training, and another patient or study. One that is larger than
both together is a finding; one seed allows none.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, phrases, plots, read_outs, statistics, verdicts
from mvhlib.artifacts import InputError
from mvhlib.cohort import synthetic
from mvhlib.expression import site
from mvhlib.expression.score_files import read_first_panel
from mvhlib.read_outs import CHOSEN, READ_OUTS, SEEDED

if TYPE_CHECKING:
    from mvhlib.features import Features

#: Fewest seeds for a comparison that was named in advance to support a claim.
SEEDS_FOR_A_CLAIM = 8

COMPARISON_COLUMNS = ("protocol", "measure", "variant", "reference", "kind", "mean",
                      "reference_mean", "difference", "ci_low", "ci_high", "seed_low", "seed_high",
                      "n_seeds", "unit_low", "unit_high", "unit", "n_units", "p_seeds", "p_holm",
                      "unmet", "reading")
#: Measures that `read_scores` puts together of programs: genes that the image shows, and how much
#: better slow morphology is read than fine texture.
SIGNAL, SLOW_LESS_FINE = "signal", "slow_less_fine"
#: Below this share of the skip path's norm a model hardly uses its states; above this share of
#: initial weights it was hardly trained.
LEAST_STATE, MOST_INITIAL = 0.05, 0.05
#: Keys of a comparison that is named in advance.
PRIMARY = ("variant", "reference", "protocol", "measure", "claimed")
#: Measures and protocols of a comparison as they stand in a sentence.
GENES = {"all": "all genes", SIGNAL: "the genes that the image shows",
         SLOW_LESS_FINE: "slow morphology less fine texture", "tissue_class": "the tissue class"}
LOST = {"drop": "in what an unseen study costs", "effect": "in what training added"}
VERDICT_COLUMNS = (*PRIMARY, "difference", "ci_low", "ci_high", "n_seeds", "unit", "n_units",
                   "p_seeds", "p_holm", "verdict", "why")


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
        Columns protocol, variant, seed, study, patient, section, measure (``all``, a program,
        `SIGNAL` or `SLOW_LESS_FINE`), value (mean Pearson r over genes).

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
            table = read_first_panel(path, ("study", "patient", "section", "program"))
            variant, seed = split_slug(slug)
            parts.append(_by_measure(table).assign(protocol=protocol, variant=variant, seed=seed))
    return pd.concat(parts, ignore_index=True)


def _by_measure(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the genes of each measure, section by section."""
    named = table[table["program"].fillna("") != ""]
    with_signal = named[~named["program"].isin(synthetic.WITHOUT_SIGNAL)]
    keys = ["study", "patient", "section"]
    measures = [table.assign(measure="all"), named.assign(measure=named["program"])]
    if len(with_signal) < len(named):  # only the synthetic cohort knows which genes have none
        measures.append(with_signal.assign(measure=SIGNAL))
    means = pd.concat(measures).groupby([*keys, "measure"], sort=False,
                                        as_index=False)["pcc"].mean()
    wide = means.pivot(index=keys, columns="measure", values="pcc")
    bands = {band: wide.filter(regex=f"^{band}_(along|across)$") for band in ("slow", "fine")}
    if all(part.shape[1] == 2 for part in bands.values()):
        gap = bands["slow"].mean(axis=1) - bands["fine"].mean(axis=1)
        means = pd.concat([means, gap.rename("pcc").reset_index().assign(measure=SLOW_LESS_FINE)])
    return means.rename(columns={"pcc": "value"})


def effects(scores: pd.DataFrame, twins: Mapping[str, str], protocol: str = "loso") -> pd.DataFrame:
    """Gain over the untrained twin, by seed and section, in the columns of `read_scores`.

    Parameters
    ----------
    scores
        From `read_scores`.
    twins
        Variant -> its untrained twin; a read-out of the one belongs to the same of the other.
    protocol
        Whose scores are compared.

    Returns
    -------
    pd.DataFrame
        ``protocol`` is ``effect``, ``value`` the score less that of the twin with the same seed.
    """
    keys = ["study", "patient", "section", "measure", "seed"]
    own = scores[scores["protocol"] == protocol]
    parts = []
    for variant, rows in own.groupby("variant", sort=False):
        twin = twin_of(variant, twins)
        other = own[own["variant"] == twin]
        if twin and len(other):
            both = rows.merge(other[[*keys, "value"]], on=keys, suffixes=("", "_twin"))
            parts.append(both.assign(value=both["value"] - both["value_twin"], protocol="effect"))
    return (pd.concat(parts, ignore_index=True) if parts else scores.iloc[:0])[list(scores.columns)]


def twin_of(variant: str, twins: Mapping[str, str]) -> str:
    """The untrained twin of a variant or of one of its read-outs; empty where it has none."""
    for trained, twin in twins.items():
        if variant == trained or variant.startswith(f"{trained}."):
            return twin + variant[len(trained):]
    return ""


def drops(scores: pd.DataFrame, random: str = "random10_section", loso: str = "loso"
          ) -> pd.DataFrame:
    """Loss on an unseen study, section by section, in the columns of `read_scores`.

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


def compare(scores: pd.DataFrame, pairs: Iterable[Sequence[str]], *,
            primary: Sequence[Mapping[str, str]] = (), unit: str = "patient",
            unmet: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """Every pair of variants, with the interval over seeds, the one over units, and that of both.

    Parameters
    ----------
    scores
        From `read_scores`; or any table with its columns.
    pairs
        ``[variant, reference]`` each. Of the seeds of both the common ones are paired.
    primary
        Comparisons that were named in advance, `PRIMARY` each: they are the confirmatory family,
        corrected by Holm's method; the others are exploratory.
    unit
        ``patient`` or ``study``: seeds are averaged within it.
    unmet
        Variant -> its preconditions that were not met, in words; see `preconditions`.

    Returns
    -------
    pd.DataFrame
        Columns `COMPARISON_COLUMNS`; ``seed_low`` to ``seed_high`` is Student's interval of the
        mean over seeds, ``unit_low`` to ``unit_high`` that over units, ``ci_low`` to ``ci_high``
        that of both sources together (`mvhlib.statistics.combine`), ``p_seeds`` Wilcoxon's over
        seeds, ``reading`` the difference in words. Pairs of which a side was not run are left out.
    """
    rows = []
    for variant, reference in pairs:
        both = scores[scores["variant"].isin([variant, reference])]
        for (protocol, measure), part in both.groupby(["protocol", "measure"], sort=False):
            values = statistics.unit_means(part, unit, by=["variant", "seed"], value="value")
            if not {variant, reference} <= set(values.index.get_level_values("variant")):
                continue
            a, b = (values[name].unstack(unit) for name in (variant, reference))
            if len(b) == 1 and len(a) > 1:  # a reference without seeds is compared with every seed
                b = pd.DataFrame(np.repeat(b.to_numpy(), len(a), axis=0), a.index, b.columns)
            seeds = a.index.intersection(b.index)
            gap = a.loc[seeds] - b.loc[seeds]
            over_seeds = statistics.t_interval(gap.mean(axis=1))
            over_units = statistics.t_interval(gap.mean(axis=0))
            over_both = statistics.combine(over_seeds, over_units)
            test = statistics.compare({"pair": (a.loc[seeds].mean(axis=1).to_numpy(),
                                                b.loc[seeds].mean(axis=1).to_numpy())})
            rows.append({
                "protocol": protocol, "measure": measure, "variant": variant,
                "reference": reference, "mean": a.loc[seeds].to_numpy().mean(),
                "reference_mean": b.loc[seeds].to_numpy().mean(), "difference": over_seeds.mean,
                "ci_low": over_both.low, "ci_high": over_both.high,
                "seed_low": over_seeds.low, "seed_high": over_seeds.high, "n_seeds": len(seeds),
                "unit_low": over_units.low, "unit_high": over_units.high, "unit": unit,
                "n_units": over_units.n, "p_seeds": test["p_wilcoxon"].iloc[0]})
    table = pd.DataFrame(rows, columns=[name for name in COMPARISON_COLUMNS
                                        if name not in ("kind", "p_holm", "unmet", "reading")])
    named = {tuple(each[key] for key in PRIMARY[:4]) for each in primary}
    first = pd.Series([tuple(row) in named for row in table[list(PRIMARY[:4])].to_numpy()],
                      table.index, dtype=bool)
    table["kind"] = np.where(first, "named in advance", "exploratory")
    table["p_holm"] = np.nan
    table.loc[first, "p_holm"] = statistics.holm(table.loc[first, "p_seeds"])
    table["unmet"] = ["; ".join(f"{side}: {reason}" for side in (row.variant, row.reference)
                                for reason in (unmet or {}).get(side, ()))
                      for row in table.itertuples()]
    table["reading"] = [_read(row) for row in table.itertuples()]
    return table[list(COMPARISON_COLUMNS)]


def judge(table: pd.DataFrame, primary: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Verdicts of the comparisons that were named in advance (`mvhlib.verdicts.judge`).

    Parameters
    ----------
    table
        From `compare`.
    primary
        As there; ``claimed`` is ``higher`` or ``lower``.

    Returns
    -------
    pd.DataFrame
        Columns `VERDICT_COLUMNS`. With fewer than `SEEDS_FOR_A_CLAIM` seeds ``why`` says that the
        row is exploratory. Comparisons of which a side was not scored are left out.
    """
    rows = []
    for each in primary:
        own = table[np.logical_and.reduce([table[key] == each[key] for key in PRIMARY[:4]])]
        for row in own.to_dict("records"):
            verdict, why = verdicts.judge(row["ci_low"], row["ci_high"],
                                          unmet=[row["unmet"]] if row["unmet"] else [],
                                          sign=1 if each["claimed"] == "higher" else -1)
            if row["n_seeds"] < SEEDS_FOR_A_CLAIM:
                few = f"{row['n_seeds']} seeds" if row["n_seeds"] > 1 else "one seed"
                why = "; ".join(filter(None, [f"exploratory, {few}", why]))
            rows.append(row | {"claimed": each["claimed"], "verdict": verdict, "why": why})
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def preconditions(scores: pd.DataFrame, states: pd.DataFrame, initial: Mapping[str, float],
                  twins: Mapping[str, str], *, measure: str = "all", unit: str = "patient"
                  ) -> pd.DataFrame:
    """Check that each trained variant meets the preconditions of a comparison.

    Parameters
    ----------
    scores
        From `read_scores`, with `effects`.
    states, initial
        State over skip of each state-space layer, and encoder -> share of initial weights in what
        was exported, from `mvhlib.dino.trained.examine`.
    twins
        As in `effects`.
    measure, unit
        Of the effect of training.

    Returns
    -------
    pd.DataFrame
        variant, state_share (median of the layers, mean of the seeds; NaN without such layers),
        initial_weights_left, effect, ci_low, ci_high (over seeds and units), unmet: what is below
        `LEAST_STATE`, above `MOST_INITIAL`, or not apart from its twin.
    """
    rows = []
    groups = states["encoder"].map(lambda slug: split_slug(slug)[0])
    for variant in [name for name in scores["variant"].unique() if twin_of(name, twins)]:
        base = next(trained for trained in twins if twin_of(variant, {trained: "x"}))
        own = states[groups == base]
        share = own.groupby("encoder")["share"].median().mean() if len(own) else np.nan
        effect = scores[(scores["protocol"] == "effect") & (scores["variant"] == variant)
                        & (scores["measure"] == measure)]
        found = statistics.Interval(np.nan, np.nan, np.nan, 0, "")
        if len(effect):
            values = statistics.unit_means(effect, unit, by=["seed"], value="value").unstack(unit)
            found = statistics.combine(statistics.t_interval(values.mean(axis=1)),
                                       statistics.t_interval(values.mean(axis=0)))
        left = max((value for slug, value in initial.items() if split_slug(slug)[0] == base),
                   default=np.nan)
        unmet = []
        if share < LEAST_STATE:
            unmet.append(f"states add {share:.2%} to the skip path, less than {LEAST_STATE:.0%}")
        if left > MOST_INITIAL:
            unmet.append(f"{left:.0%} of its weights are initial, more than {MOST_INITIAL:.0%}")
        if not (found.low > 0 or found.high < 0):
            unmet.append("not apart from its untrained twin")
        rows.append((variant, share, left, found.mean, found.low, found.high, "; ".join(unmet)))
    return pd.DataFrame(rows, columns=["variant", "state_share", "initial_weights_left", "effect",
                                       "ci_low", "ci_high", "unmet"])


def _read(row: Any) -> str:
    """Describe a difference in fixed words; a claim needs both sources' interval without zero."""
    if row.n_seeds < 2:
        return "one seed, no claim"
    if not np.isfinite([row.ci_low, row.ci_high]).all():
        return "no interval"
    seen = ("higher" if row.ci_low > 0 else "lower" if row.ci_high < 0 else "no difference shown")
    if row.kind == "exploratory" or row.n_seeds < SEEDS_FOR_A_CLAIM:
        return f"{seen}, exploratory"
    return seen


def answer(table: pd.DataFrame, judged: pd.DataFrame, protocol: str, measure: str) -> str:
    """Summarise the comparisons: those named in advance, else all pairs of a protocol.

    Parameters
    ----------
    table
        From `compare`.
    judged
        From `judge`.
    protocol, measure
        Of the pairs that are summed up where nothing was named in advance.
    """
    if len(judged):
        said = [f"{_pair(row)}, {_where(row.protocol)}, {GENES.get(row.measure, row.measure)}: "
                f"{phrases.mean(row.difference, row.ci_low, row.ci_high, 3)}, {row.verdict}"
                for row in judged.itertuples()]
        return (f"Of {phrases.count(len(judged), 'comparison')} named in advance, over "
                f"{_seeds(judged)}: {'; '.join(said)}.")
    own = table[(table["protocol"] == protocol) & (table["measure"] == measure)]
    over = f"{_where(protocol)}, mean Pearson r of {GENES.get(measure, measure)}"
    if own.empty:
        return f"No pair of variants was compared {_where(protocol)}."
    low, high = own["difference"].min(), own["difference"].max()
    span = phrases.span([low, high], 3)
    if own["n_seeds"].max() < 2:
        units = phrases.count(int(own["n_units"].min()), own["unit"].iloc[0])
        return (f"{phrases.count(len(own), 'pair')} of variants with one seed each "
                f"{'differs' if len(own) == 1 else 'differ'} by {span} ({over}, {units}); one seed "
                f"makes no claim.")
    apart = own[(own["ci_low"] > 0) | (own["ci_high"] < 0)]
    said = [f"{_pair(row)} {phrases.mean(row.difference, row.ci_low, row.ci_high, 3)}"
            for row in apart.itertuples()]
    found = f"{len(apart)} of {phrases.count(len(own), 'pair')} of variants differ beyond what " \
            f"another seed and another {own['unit'].iloc[0]} would move ({over}, {_seeds(own)})"
    return f"{found}: {phrases.listed(said, 3)}." if said else f"{found}; they lie at {span}."


def _pair(row: Any) -> str:
    return f"{plots.label(row.variant)} less {plots.label(row.reference)}"


def _where(protocol: str) -> str:
    return LOST.get(protocol) or plots.on_protocol(protocol)


def _seeds(table: pd.DataFrame) -> str:
    """Seeds and units behind rows of `compare` or `judge`."""
    units = phrases.span([table["n_units"].min(), table["n_units"].max()])
    unit = phrases.count(int(table["n_units"].max()), table["unit"].iloc[0]).split(" ", 1)[1]
    seeds = phrases.span([table["n_seeds"].min(), table["n_seeds"].max()])
    return f"{seeds} {'seed' if table['n_seeds'].max() == 1 else 'seeds'} and {units} {unit}"


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
    """Costs of each pretrained variant: parameters, FLOPs of its views, steps, and minutes.

    Parameters
    ----------
    folder
        ``runs/<profile>/encoders``.
    encoders
        Slugs; those that were not pretrained here are left out, and a read-out of an encoder costs
        what the encoder does.

    Returns
    -------
    pd.DataFrame
        variant, parameters, steps, gflops_per_tile (forward pass of a tile's global and local
        views; FFT and scan are not counted), tflops_training (three times that, over the run's
        tiles), and minutes, a clock time.
    """
    trained = {path.parent.name: path.parent for path in Path(folder).glob("*/recipe.json")}
    read = {name: path for slug, path in trained.items()
            for name in read_outs.names(slug, (*READ_OUTS, CHOSEN))}
    sizes: dict[Path, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for slug in encoders:
        own, (variant, _) = (read | trained).get(slug), split_slug(slug)
        if variant in rows or own is None:
            continue
        if own not in sizes:
            recipe = json.loads((own / "recipe.json").read_text(encoding="utf-8"))["settings"]
            sizes[own] = {**_size(own, recipe), "minutes": _minutes(own / "log.timing.csv")}
        rows[variant] = {"variant": variant, **sizes[own]}
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
