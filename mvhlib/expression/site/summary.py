"""Probes and variance shares of many encoders, and their loss between studies."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import phrases, plots, statistics
from mvhlib.artifacts import InputError
from mvhlib.expression.site.probing import UNSEEN, probe
from mvhlib.expression.site.shares import variance_shares
from mvhlib.expression.site.spot_rows import rows

if TYPE_CHECKING:
    from mvhlib.features import Features


def table(features: "Mapping[str, Mapping[str, Features | np.ndarray]]", sections: Iterable[Any],
          labels: str | Mapping[str, pd.Series] | None = None, *, seed: int = 0,
          scale: str = "each") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probes and variance shares of many encoders.

    Parameters
    ----------
    features
        Encoder -> section -> features.
    sections, labels
        See `rows`.
    seed, scale
        See `probe`, `variance_shares`.

    Returns
    -------
    tuple of DataFrame
        Probes (`PROBE_COLUMNS`) and shares (`SHARE_COLUMNS`), all encoders together.
    """
    sections = list(sections)
    probes, shares = [], []
    for encoder, given in features.items():
        joined = rows(given, sections, labels)
        targets = [target for target in UNSEEN if target != "label"
                   or joined.about["label"].notna().any()]
        probes += [probe(joined, target, encoder=encoder, seed=seed) for target in targets]
        shares.append(variance_shares(joined, encoder=encoder, scale=scale))
    return pd.concat(probes, ignore_index=True), pd.concat(shares, ignore_index=True)


def relate(probes: pd.DataFrame, shares: pd.DataFrame, drops: pd.DataFrame) -> pd.DataFrame:
    """Table of site measures and drop, one row per encoder.

    Parameters
    ----------
    probes, shares
        From `table`.
    drops
        From `mvhlib.expression.evaluation.drops`; rows of all genes (program ``all``).

    Returns
    -------
    pd.DataFrame
        ``encoder, method, panel, study_excess, patient_excess, label_excess, study_share,
        label_share, site_to_label, random, loso, difference, ci_low, ci_high, drop``;
        ``site_to_label`` is the share of studies over that of labels, adjusted shares where they
        are known. Encoders without a drop keep their row. How the columns go together over
        encoders is for the eye: `correlations` says when it is more.
    """
    wide = probes.pivot(index="encoder", columns="target", values="excess")
    out = pd.DataFrame({f"{target}_excess": wide.get(target, np.nan) for target in UNSEEN},
                       index=wide.index)
    best = shares.assign(value=shares["adjusted"].fillna(shares["share"]))
    part = best.pivot(index="encoder", columns="factor", values="value").reindex(out.index)
    out["study_share"], out["label_share"] = part["study"], part["label"]
    out["site_to_label"] = np.where(out["label_share"] > 0,
                                    out["study_share"] / out["label_share"].where(
                                        out["label_share"] > 0), np.nan)
    whole = drops[drops["program"] == "all"]
    columns = ["encoder", "method", "panel", "random", "loso", "difference", "ci_low", "ci_high",
               "drop"]
    joined = out.reset_index().merge(whole[columns], on="encoder", how="left")
    order = ["encoder", "method", "panel", *out.columns, *columns[3:]]
    return joined[order]


def correlations(related: pd.DataFrame, against: str = "difference",
                 columns: Sequence[str] = ("study_excess", "patient_excess", "study_share",
                                           "site_to_label")) -> pd.DataFrame:
    """Spearman's rank correlation of each measure of site with the drop, over encoders.

    Encoders are not a sample of anything, and there are few: the p is the exact one of a
    permutation of their order, and its smallest value stands beside it.

    Parameters
    ----------
    related
        From `relate`; of one method and panel, else an error.
    against
        ``"difference"`` (random less unseen study) or ``"drop"``.
    columns
        Measures of site.

    Returns
    -------
    pd.DataFrame
        ``measure, n_encoders, spearman, p, p_smallest, note``.
    """
    from itertools import permutations
    from math import factorial

    from scipy import stats

    known = related.dropna(subset=[against])
    if known["encoder"].duplicated().any():
        raise InputError("site", "encoder", "stands more than once", "choose one method and panel")
    found = []
    for column in columns:
        pair = known[[column, against]].dropna()
        n = len(pair)
        row = {"measure": column, "n_encoders": n, "spearman": np.nan, "p": np.nan,
               "p_smallest": min(1.0, 2 / factorial(n)) if n >= 2 else np.nan, "note": ""}
        if n < 3 or pair.nunique().min() < 2:
            row["note"] = "no rank correlation over so few encoders"
        else:
            a, b = (stats.rankdata(pair[name]) for name in (column, against))
            row["spearman"] = float(np.corrcoef(a, b)[0, 1])
            if row["p_smallest"] > 0.05:
                row["note"] = statistics.IMPOSSIBLE
            elif n <= 8:
                a, b = a - a.mean(), b - b.mean()
                sums = np.array([a @ b[list(order)] for order in permutations(range(n))])
                row["p"] = float((np.abs(sums) >= abs(a @ b) - 1e-9).mean())
            else:
                row["p"] = float(stats.spearmanr(a, b).pvalue)
        found.append(row)
    return pd.DataFrame(found)


def said(probes: pd.DataFrame, against: pd.DataFrame, remedies: pd.DataFrame,
         protocol: str) -> tuple[str, str]:
    """Say which embedding names the study most readily, what goes with that, and what helps.

    Parameters
    ----------
    probes, against, remedies
        From `table`, `correlations` and `all_remedies`.
    protocol
        Whose remedies are quoted.

    Returns
    -------
    tuple of str
        What was found, and what that does not show.
    """
    known = probes.dropna(subset=["balanced_accuracy"])
    known = known[known["target"] == "study"].sort_values("balanced_accuracy", kind="stable")
    if known.empty:
        found = ["no probe could name a study: the data hold one, or too few patients of each."]
    else:
        most = known.iloc[-1]
        found = [f"a linear probe names the study of unseen patients best from "
                 f"{plots.label(most['encoder'])}, with a balanced accuracy of "
                 + phrases.mean(most["balanced_accuracy"], most["ci_low"], most["ci_high"])
                 + f" where chance gives {phrases.number(most['chance'])}"]
        if len(known) > 1:
            least = known.iloc[0]
            found[0] += (f", and worst from {plots.label(least['encoder'])} with "
                         + phrases.mean(least["balanced_accuracy"], least["ci_low"],
                                        least["ci_high"]))
        found[0] += "."
    for row in against[against["measure"] == "study_excess"].itertuples():
        p = f"p {row.p:.2g}" if pd.notna(row.p) else row.note
        encoders = phrases.count(row.n_encoders, "encoder")
        found.append("Whether that goes with what an unseen study costs is not known." if pd.isna(
            row.spearman) else f"Its rank correlation with what an unseen study costs is "
            f"{phrases.number(row.spearman)} over {encoders} ({p}).")
    for row in remedies[remedies["protocol"] == protocol].itertuples():
        found.append(f"{plots.label(row.remedy)} changes r of {plots.label(row.encoder)} by "
                     f"{phrases.mean(row.difference, row.ci_low, row.ci_high, 3)}.")
    return " ".join(found), (
        "A probe finds what can be read from an embedding, not what a model uses of it. Encoders "
        "are not a sample of anything, so that a correlation over them only suggests.")
