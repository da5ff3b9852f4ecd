"""Sentences about tables of expression: which encoder predicts best, what a new study costs.

Sentences are built from what a run has: one study, one encoder, no control and no comparison are
said in words, and nothing is claimed beyond the interval of the row that is quoted.
"""

from collections.abc import Sequence

import pandas as pd

from mvhlib import phrases, plots, statistics
from mvhlib.cohort import synthetic
from mvhlib.expression import ceilings, evaluation

#: Protocols as they are said: what a model is tested on, and what of it may be in training.
TESTED_ON = {
    "loso": "on a study that no model saw", "patient": "on patients that no model saw",
    "section": "on unseen sections of one patient",
    "random10_section": "on random sections, whose studies and patients may be in training",
    "random10_spot": "on random spots, whose neighbours are in training",
    "transfer": "on another group", "within": "on unseen patients of the group",
}


def tested_on(protocol: str) -> str:
    """Describe a protocol in words."""
    return TESTED_ON.get(protocol, f"under {protocol}")


def prediction(summary: pd.DataFrame, drops: pd.DataFrame, tests: pd.DataFrame, protocol: str,
               learned: Sequence[str] = (), scores: pd.DataFrame | None = None
               ) -> tuple[str, str]:
    """Say how well expression is predicted, and how much of that remains on an unseen study.

    Parameters
    ----------
    summary
        Columns of `protocols.SUMMARY_COLUMNS`.
    drops, tests
        From `evaluation.drops` and `evaluation.comparisons`; may be empty.
    protocol
        Whose scores are quoted.
    learned
        Encoders that learned from expression of tested sections; they are not called best.
    scores
        Scores per gene and section; where they are given, the interval over studies is said as
        well, and the mean over those genes whose program follows something in the tissue.

    Returns
    -------
    tuple of str
        What was found, and what that does not show.
    """
    rows = summary[(summary["metric"] == "pcc") & (summary["program"] == "all")
                   & (summary["protocol"] == protocol) & summary["mean"].notna()]
    scored = rows[rows["control"] == "none"]
    if scored.empty:
        return ("no correlation could be computed: measured or predicted expression does not vary.",
                "Whether anything could be predicted from these data.")
    scored = scored[scored["panel"] == scored["panel"].iloc[0]]
    fair = scored[(scored["encoder_saw_test_images"] != "yes") & ~scored["encoder"].isin(learned)]
    ranked = fair if len(fair) else scored
    best = ranked.sort_values("mean", kind="stable").iloc[-1]
    several = len(ranked) > 1
    found = [f"{plots.label(best['encoder'])} predicts expression {tested_on(protocol)} with a "
             f"mean Pearson r of {phrases.row_mean(best)} and "
             f"{phrases.count(int(best['n_genes']), 'gene')}"
             + (f", the best of {phrases.count(len(ranked), 'encoder')}" if several else "")
             + _permuted(rows, best) + "." + ("" if scores is None else _apart(scores, best))]
    found.append(_cost(drops, best))
    found.append(_primary(tests))
    limits = [evaluation.remarks(summary[summary["protocol"] == protocol], learned)]
    if several:
        limits.append("The best encoder was picked by the scores that are quoted, which flatters "
                      "it.")
    if best["n_units"] < 2:
        limits.append(f"One {best['unit']} says nothing of another.")
    limits.append("What training another time would change is asked in `11_ablations`.")
    return " ".join(filter(None, found)), " ".join(filter(None, limits))


def _permuted(rows: pd.DataFrame, best: pd.Series) -> str:
    own = rows[(rows["control"] == "permuted") & (rows["encoder"] == best["encoder"])
               & (rows["panel"] == best["panel"])]
    if own.empty:
        return " (no permuted control was run)"
    row = own.iloc[0]
    said = phrases.mean(row["mean"], row["ci_low"], row["ci_high"])
    return f"; after its features were permuted within sections, {said}"


def _apart(scores: pd.DataFrame, best: pd.Series) -> str:
    """Add the mean over studies (their patients are not independent) and over signal genes."""
    own = scores[(scores["encoder"] == best["encoder"]) & (scores["protocol"] == best["protocol"])
                 & (scores["panel"] == best["panel"]) & (scores["control"] == "none")]
    said = ""
    if best["unit"] == "patient" and own["study"].nunique() > 1:
        row = statistics.unit_table(own, "study").iloc[0]
        said += (f" Over {phrases.count(int(row['n_units']), 'study')}, the safer unit, the "
                 f"interval is {phrases.interval(row['ci_low'], row['ci_high'])}.")
    group = own["program"].map(synthetic.group_of)
    signal = own[group.isin(["tissue class", "texture"])]
    if len(signal) and best["unit"] in own and len(signal) < len(own):
        row = statistics.unit_table(signal, best["unit"]).iloc[0]
        said += (f" Over the {phrases.count(signal['gene'].nunique(), 'gene')} that follow "
                 "something in the tissue it is "
                 f"{phrases.mean(row['mean'], row['ci_low'], row['ci_high'])}.")
    return said


def _cost(drops: pd.DataFrame, best: pd.Series) -> str:
    own = drops[(drops["program"] == "all") & (drops["encoder"] == best["encoder"])
                & (drops["panel"] == best["panel"])] if len(drops) else drops
    if own.empty:
        return ("What an unseen study costs was not measured: random folds and leave-one-study-out "
                "were not both scored.")
    row = own.iloc[0]
    gap = phrases.mean(row["difference"], row["ci_low"], row["ci_high"])
    return (f"Under random folds it reaches {phrases.number(row['random'])}: the unseen study "
            f"costs {gap}.")


def _primary(tests: pd.DataFrame) -> str:
    named = tests[tests["family"] == "primary"] if len(tests) else tests
    if named.empty:
        return ""
    several = named[(named["unit"] == "study") & (named["n_units"] > 1)]
    unit = "study" if len(several) else named["unit"].iloc[0]
    row = named[named["unit"] == unit].iloc[0]
    a, b = (plots.label(name) for name in row["comparison"].split(" - "))
    gap = phrases.mean(row["difference"], row["ci_low"], row["ci_high"], 3)
    p = row["p_wilcoxon_holm"]
    test = row["note"] if pd.isna(p) else f"signed-rank p {p:.2g}"
    return (f"The comparison that was named in advance, {a} less {b}, gives {gap} over "
            f"{phrases.count(int(row['n_units']), unit)}{f' ({test})' if test else ''}.")


def far_below_ceiling(per_gene: pd.DataFrame, group: str = "group") -> str:
    """Name the groups of genes that fall furthest below the ceiling of their counts.

    Parameters
    ----------
    per_gene
        Columns ``pcc``, ``ceiling`` and `group`.
    """
    known = per_gene.dropna(subset=["pcc", "ceiling"])
    if known.empty:
        return "No gene has a ceiling."
    short = known.groupby(group, sort=False)[["pcc", "ceiling"]].mean()
    short = short.assign(gap=short["ceiling"] - short["pcc"]).sort_values("gap", ascending=False)
    return "Below their ceiling on average: " + "; ".join(
        f"{str(name) or 'all genes'} by {phrases.number(row['gap'])} "
        f"(r {phrases.number(row['pcc'])}, ceiling {phrases.number(row['ceiling'])})"
        for name, row in short.iterrows()) + "."


def genes(per_gene: pd.DataFrame, limit: pd.DataFrame, bins: pd.DataFrame, encoder: str,
          protocol: str) -> tuple[str, str]:
    """Say which genes are predicted, what their counts allow, and how large differences come out.

    Parameters
    ----------
    per_gene, bins
        From `scores.per_gene`, with a column ``group``, and `scores.calibration`.
    limit
        From `ceilings.table`.
    encoder, protocol
        Whose scores these are.

    Returns
    -------
    tuple of str
        What was found, and what that does not show.
    """
    known = per_gene["pcc"].dropna()
    if known.empty:
        return (f"{plots.label(encoder)} has no correlation for any gene: measured or predicted "
                "expression does not vary.", "Whether anything could be predicted.")
    low, middle, high = (phrases.number(known.quantile(share)) for share in (0.25, 0.5, 0.75))
    slope = bins["slope"].iloc[0]
    said = "" if pd.isna(slope) else (
        f" A predicted difference of 1 is a measured one of {phrases.number(slope)}.")
    found = (f"{plots.label(encoder)} predicts the median gene {tested_on(protocol)} with r "
             f"{middle} (quartiles {low} and {high} of {phrases.count(len(known), 'gene')}). "
             f"{far_below_ceiling(per_gene)} {ceilings.said(limit)}{said}")
    return found, ("Quartiles are over genes and say nothing of other patients: `05_expression` "
                   "has the intervals. " + (
                       "The true ceiling is that of the synthetic rates."
                       if "ceiling_true" in limit else
                       "No estimate of a ceiling is the true one, which is known on synthetic "
                       "tissue alone."))


def turned(kinds: pd.DataFrame) -> str:
    """Name programs predicted with the wrong sign: r below -0.05, its whole interval below 0.

    Parameters
    ----------
    kinds
        Rows of a summary, one per encoder and program of one protocol.
    """
    rows = kinds[(kinds["ci_high"] < 0) & (kinds["mean"] < -0.05)]
    if rows.empty:
        return "No program is predicted turned round: no r below -0.05 has its interval below 0."
    worst = rows.groupby("program", sort=False)["mean"].agg(["size", "min"])
    return "Predicted turned round (interval below 0): " + "; ".join(
        f"{str(name).replace('_', ' ')} by {phrases.count(int(row['size']), 'encoder')}, at worst "
        f"r {phrases.number(row['min'])}" for name, row in worst.iterrows()) + "."


def nearer(places: pd.DataFrame) -> pd.DataFrame:
    """Say whether predicted expression locates classes like measured expression or like colour.

    Parameters
    ----------
    places
        Columns ``source, metric, mean`` with the sources measured, predicted and colour.

    Returns
    -------
    DataFrame
        metric, measured, predicted, colour and ``nearer``: ``measured``, ``colour``, or ``neither``
        where both are as far; a prediction at least as good as measured expression is nearer to it.
        No row for a metric that lacks a source.
    """
    columns = ["metric", "measured", "predicted", "colour", "nearer"]
    if places.empty:
        return pd.DataFrame(columns=columns)
    wide = places.pivot_table(index="metric", columns="source", values="mean", sort=False)
    wide = wide.reindex(columns=columns[1:4]).dropna()
    to_measured = (wide["measured"] - wide["predicted"]).clip(lower=0)
    to_colour = (wide["predicted"] - wide["colour"]).abs()
    wide["nearer"] = ["measured" if a < b else "colour" if b < a else "neither"
                      for a, b in zip(to_measured, to_colour, strict=True)]
    return wide.reset_index()[columns]


def maps(scored: pd.DataFrame, moran: pd.DataFrame, sets: pd.DataFrame, places: pd.DataFrame,
         mantel: tuple[float, float] | None) -> str:
    """Say how much of the tissue one encoder's maps keep; the sentences follow its name.

    Parameters
    ----------
    scored
        Scores of one protocol and panel: patient, section, gene, pcc.
    moran
        From `spatial.smoothing`, with the column patient.
    sets
        From `structure.summarise` over gene sets, with rows of the metric ``gain``; may be empty.
    places
        As in `nearer`; may be empty.
    mantel
        Mantel's r and its p, or None where too few genes vary.
    """
    unit = statistics.unit_table(scored, "patient").iloc[0]
    said = [f"reach a mean Pearson r of {phrases.row_mean(unit)}."]
    known = moran.dropna(subset=["oversmoothing"])
    if len(known):
        more = statistics.unit_table(known, "patient", value="oversmoothing").iloc[0]
        kind = "smoother" if more["mean"] > 0 else "rougher"
        both = [phrases.number(known[side].mean()) for side in ("i_pred", "i_true")]
        said.append(f"They are {kind} than the counts: Moran's I {both[0]} against {both[1]}, a "
                    f"difference of {phrases.row_mean(more)}.")
    gain = sets[sets["metric"] == "gain"] if len(sets) else sets
    if len(gain):
        better, worse = (int((gain["ci_low"] > 0).sum()), int((gain["ci_high"] < 0).sum()))
        said.append(f"Of {phrases.count(len(gain), 'gene set')}, {better} are predicted better as "
                    f"one map than gene by gene and {worse} worse (intervals beside 0).")
    if mantel is not None and mantel[0] == mantel[0]:
        said.append(f"Genes go together in the prediction as they do in the truth with Mantel's r "
                    f"{phrases.number(mantel[0])} (permutation p {mantel[1]:.2g}).")
    verdict = nearer(places)
    if len(verdict):
        like = {"measured": "nearer to measured expression than to colour",
                "colour": "nearer to colour than to measured expression",
                "neither": "as near to the one as to the other"}
        each = [f"by {phrases.listed(rows['metric'].str.upper())} they stand {like[kind]}"
                for kind, rows in verdict.groupby("nearer", sort=False)]
        said.append(f"As places of tissue classes, {phrases.listed(each)}.")
    return " ".join(said)
