"""Sentences about tables of downstream tasks: classes, retrieval, survival.

Each function takes the tables that its notebook writes, whatever rows a run has of them, and
returns sentences that quote means with their intervals, and chance beside them.
"""

from collections.abc import Sequence

import pandas as pd

from mvhlib import phrases, plots
from mvhlib.cohort.clinical import ENDPOINTS

#: Splits of 07; the first one present is the headline.
SPLITS = ("grouped", "given", "grouped_study", "random")
#: Ways to search of 08.
SEARCHES = {"prototypes": "nearest prototype", "prototypes_scaled": "nearest prototype, features "
            "scaled", "nearest": "nearest tile of somebody else"}


def classification(summary: pd.DataFrame, saw_tested: Sequence[str] = ()) -> str:
    """Say how well embeddings predict classes, data set by data set.

    Parameters
    ----------
    summary
        Columns ``dataset, encoder, classifier, split, metric, unit, n_units, mean, ci_low,
        ci_high``; the encoder ``stain`` is six numbers of colour.
    saw_tested
        Encoders that learned from sections whose tissue classes are tested.
    """
    rows = summary[(summary["metric"] == "auroc") & (summary["classifier"] == "logistic")
                   & summary["mean"].notna()]
    said = [text for name, own in rows.groupby("dataset", sort=False)
            if (text := _dataset(name, own, saw_tested if name == "tissue_class" else ()))]
    if not said:
        return "no class could be held out, so that none was tested."
    return f"{'; '.join(said)} (AUROC, chance 0.50; colour: six numbers of it alone)."


def _dataset(name: str, rows: pd.DataFrame, saw: Sequence[str]) -> str:
    split = next((each for each in SPLITS if each in set(rows["split"])), None)
    own = rows[(rows["split"] == split) & (rows["encoder"] != "stain")
               & ~rows["encoder"].isin(saw)]
    if own.empty:
        return ""
    best = own.sort_values("mean", kind="stable").iloc[-1]
    text = f"{name.replace('_', ' ')}, {plots.label(best['encoder'])}: {_on_split(best)}"
    elsewhere = rows[(rows["split"] == "grouped_study") & (rows["encoder"] == best["encoder"])]
    if split != "grouped_study" and len(elsewhere):
        text += f" and {_on_split(elsewhere.iloc[0])}"
    stain = rows[(rows["split"] == split) & (rows["encoder"] == "stain")]
    return text + (f", colour {phrases.number(stain.iloc[0]['mean'])}" if len(stain) else "")


def _on_split(row: pd.Series) -> str:
    said = phrases.mean(row["mean"], row["ci_low"], row["ci_high"])
    who = phrases.count(int(row["n_units"]), row["unit"])
    return f"{said} on " + {"random": f"random rows of {who}", "given": f"the publishers' {who}"
                            }.get(row["split"], who.replace(" ", " unseen ", 1))


def attention(per_slide: pd.DataFrame, least: float) -> str:
    """Say how well attention finds the planted tiles, encoder by encoder.

    Parameters
    ----------
    per_slide
        Columns encoder and auroc, one row per slide.
    least
        AUROC above which attention finds them; 0.5 at least, which is chance.
    """
    means = per_slide.groupby("encoder", sort=False)["auroc"].mean()
    return phrases.listed(f"{plots.label(name)} {phrases.number(mean)} "
                          f"({'found' if mean > max(least, 0.5) else 'not found'})"
                          for name, mean in means.items())


def retrieval(summary: pd.DataFrame, searches: Sequence[str] = tuple(SEARCHES)) -> str:
    """Say how well tiles of a class retrieve each other, and an image its expression.

    Parameters
    ----------
    summary
        Columns ``encoder, classifier, split, metric, unit, n_units, mean, ci_low, ci_high``; the
        encoder ``chance`` is what a random order gives.
    searches
        Classifiers that search for a class; the others match images and expression.
    """
    known = summary[summary["mean"].notna()]
    classes = known[(known["metric"] == "acc@1") & known["classifier"].isin(searches)]
    said = []
    if len(classes):
        splits = list(dict.fromkeys(classes["split"]))
        own = classes[(classes["encoder"] != "chance") & (classes["split"] == splits[0])]
        best = own.sort_values("mean", kind="stable").iloc[-1]
        text = (f"the {SEARCHES[best['classifier']]} is of the tile's own class for "
                f"{_beside_chance(classes, best)} in {_whose(splits[0])}, by "
                f"{plots.label(best['encoder'])}, the best of "
                f"{phrases.count(own['encoder'].nunique(), 'encoder')} and "
                f"{phrases.count(own['classifier'].nunique(), 'way')} to search")
        again = classes[(classes["encoder"] == best["encoder"]) & (classes["split"] == splits[-1])
                        & (classes["classifier"] == best["classifier"])]
        if len(splits) > 1 and len(again):
            text += f"; in {_whose(splits[-1])} for {_beside_chance(classes, again.iloc[0])}"
        said.append(text + ".")
    else:
        said.append("no two classes are of two patients each: no class was searched for.")
    pairs = known[known["metric"].str.startswith("image_to_expression_recall@")
                  & (known["encoder"] != "chance")]
    if len(pairs):
        depth = min(int(metric.rpartition("@")[2]) for metric in pairs["metric"])
        own = pairs[pairs["metric"].str.endswith(f"@{depth}")]
        best = own.sort_values("mean", kind="stable").iloc[-1]
        said.append(f"A tile's own expression is the nearest of its section for "
                    f"{_beside_chance(known, best)}." if depth == 1 else
                    f"A tile's own expression is among the {depth} nearest of its section for "
                    f"{_beside_chance(known, best)}.")
    else:
        said.append("No image was held against expression.")
    return " ".join(said)


def _whose(split: str) -> str:
    return "random rows" if split == "random" else f"an unseen {split}"


def _beside_chance(summary: pd.DataFrame, row: pd.Series) -> str:
    same = summary[(summary["encoder"] == "chance") & (summary["metric"] == row["metric"])
                   & (summary["split"] == row["split"])
                   & (summary["classifier"] == row["classifier"])]
    chance = f" (chance {phrases.number(same.iloc[0]['mean'])})" if len(same) else ""
    return f"{phrases.row_mean(row)}{chance}"


def survival(summary: pd.DataFrame, gaps: pd.DataFrame, encoder: str | None,
             covariates: Sequence[str]) -> str:
    """Say whether slides add to clinical columns in predicting survival, by endpoint.

    Parameters
    ----------
    summary
        Columns of `mvhlib.downstream.survival.SUMMARY`.
    gaps
        From `survival.differences`, with a column endpoint.
    encoder
        Whose mixture stands beside the clinical model; None: no slide was read.
    covariates
        Of the clinical model.
    """
    rows = summary[(summary["metric"] == "harrell_c") & (summary["fold_scheme"] != "all_patients")]
    given = phrases.listed("sex" if name == "male" else name for name in covariates)
    said = []
    for endpoint, own in rows.groupby("endpoint", sort=False):
        alone = own[(own["model"] == "clinical") if covariates else
                    (own["model"] == "mixture") & (own["encoder"] == encoder)]
        if alone.empty:
            continue
        first = alone.iloc[0]
        who = (f"{phrases.count(int(first['n_patients']), 'patient')}, "
               f"{phrases.count(int(first['n_events']), 'event')}")
        what = f"{given} alone reach" if covariates else (
            f"the slide's tiles ({plots.label(encoder)}), beside which no age, sex or stage was "
            "given, reach")
        text = (f"{ENDPOINTS.get(endpoint, endpoint)} ({who}): {what} Harrell's C "
                f"{_concordance(first)}")
        both = own[(own["model"] == "clinical+mixture") & (own["encoder"] == encoder)]
        if len(both):
            text += (f", with the slide's tiles ({plots.label(encoder)}) "
                     f"{_concordance(both.iloc[0])}")
            gap = gaps[(gaps["endpoint"] == endpoint) & (gaps["model"] == "clinical+mixture")
                       & (gaps["encoder"] == encoder) & (gaps["than"] == "clinical")]
            if len(gap):
                row = gap.iloc[0]
                text += (f", a difference of "
                         f"{phrases.mean(row['difference'], row['ci_low'], row['ci_high'])} over "
                         f"{phrases.count(int(row['n_folds']), 'fold')}")
                if row["p_added_holm"] == row["p_added_holm"]:
                    text += f" (likelihood-ratio p {row['p_added_holm']:.2g}, corrected)"
        shuffled = own[own["model"].str.endswith(".permuted")]["mean"].dropna()
        if len(shuffled):
            text += f"; permuted outcomes give {phrases.span(shuffled, 2)}"
        said.append(text)
    return "; ".join(said) + "." if said else "No endpoint could be modelled."


def _concordance(row: pd.Series) -> str:
    return phrases.mean(row["mean"], row["ci_low"], row["ci_high"])
