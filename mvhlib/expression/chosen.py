"""Selection of a read-out for each fold on its inner folds, and the scores of that selection.

Inner folds are parts of an outer fold's training sections (`mvhlib.expression.ridge.choose_alpha`),
so that no test section has a say in what is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from mvhlib import read_outs
from mvhlib.expression import protocols
from mvhlib.expression.evaluation import Evaluation

COLUMNS = ("protocol", "method", "encoder", "panel", "fold", "chosen", "inner", "second")


def choose(results: Sequence[Evaluation], kinds: Mapping[str, Sequence[str]], *,
           unit: str = "patient") -> tuple[list[Evaluation], pd.DataFrame]:
    """Choose each fold's read-out on its inner folds; join the folds per encoder and protocol.

    Parameters
    ----------
    results
        Of every read-out of every encoder in `kinds`.
    kinds
        Encoder -> names of its read-outs (``read_outs`` of `mvhlib.workflow.read_plan`).
    unit
        Over which intervals of the summaries are taken.

    Returns
    -------
    list of Evaluation, DataFrame
        One `Evaluation` per encoder and protocol, called `mvhlib.read_outs.slug` of `CHOSEN`, and
        the choices in `COLUMNS`: ``inner`` is the criterion on inner folds (mean Pearson r) of
        what was chosen, ``second`` that of the next best. A control takes the choice that was made
        without it.
    """
    by_name = {(one.job.protocol, one.job.encoder): one for one in results}
    made, rows = [], []
    for encoder, names in kinds.items():
        for protocol in dict.fromkeys(protocol for protocol, name in by_name if name in names):
            parts = {name: by_name[protocol, name] for name in names
                     if (protocol, name) in by_name}
            slug = read_outs.slug(encoder, read_outs.CHOSEN)
            table = pd.concat([part.penalties for part in parts.values()], ignore_index=True)
            table = table[table["control"] == "none"]
            if table["best"].isna().any() or table.empty:
                continue  # no inner fold, no choice
            better = table["best"].where(table["criterion"] != "mse", -table["best"])
            ranked = table.assign(by=better).sort_values("by", ascending=False, kind="stable")
            for (panel, fold), group in ranked.groupby(["panel", "fold"], sort=False):
                rows.append((protocol, parts[names[0]].method, slug, panel, fold,
                             group["encoder"].iloc[0], group["best"].iloc[0],
                             group["best"].iloc[1] if len(group) > 1 else float("nan")))
            own = pd.DataFrame([row for row in rows if row[2] == slug and row[0] == protocol],
                               columns=COLUMNS)
            made.append(_joined(slug, parts, own, unit))
    return made, pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["protocol", "encoder", "panel", "fold"], kind="stable", ignore_index=True)


def _joined(slug: str, parts: Mapping[str, Evaluation], choices: pd.DataFrame,
            unit: str) -> Evaluation:
    """Rows of each fold, from the read-out chosen for it."""
    wanted = choices[["panel", "fold", "chosen"]].rename(columns={"chosen": "encoder"}).astype(
        {"fold": str})

    def rows(tables: list[pd.DataFrame]) -> pd.DataFrame:
        table = pd.concat(tables, ignore_index=True)
        keyed = table.assign(key=table["fold"].astype(str)).merge(
            wanted.rename(columns={"fold": "key"}), on=["panel", "key", "encoder"])
        return keyed.drop(columns="key").assign(encoder=slug)

    first = next(iter(parts.values()))
    scores = rows([part.scores for part in parts.values()])
    penalties = rows([part.penalties for part in parts.values()])
    pooled = rows([part.pooled for part in parts.values()])
    predictions = _predictions(scores, parts, wanted)
    return replace(first, job=replace(first.job, encoder=slug), scores=scores, pooled=pooled,
                   penalties=penalties, summary=_summary(scores, unit, pooled, predictions),
                   predictions=predictions, members={},
                   notes=["each fold by the read-out that its inner folds prefer"])


def _summary(scores: pd.DataFrame, unit: str, pooled: pd.DataFrame,
             predictions: Mapping[str, protocols.Prediction]) -> pd.DataFrame:
    """Means and intervals; by spatial blocks of the predictions where no unit is left.

    Predictions are those of the first panel without a control, as everywhere.
    """
    tables = []
    for i, ((panel, control), part) in enumerate(
            scores.groupby(["panel", "control"], sort=False)):
        held = i == 0 and control == "none" and set(part["section"]) <= set(predictions)
        own = pooled[(pooled["panel"] == panel) & (pooled["control"] == control)]
        tables.append(protocols.summarise(part, unit, pooled=own,
                                          predictions=predictions if held else None))
    return pd.concat(tables, ignore_index=True)


def _predictions(scores: pd.DataFrame, parts: Mapping[str, Evaluation], choices: pd.DataFrame
                 ) -> dict[str, protocols.Prediction]:
    """Predictions of each section that one fold tests, from the read-out chosen for that fold."""
    of_fold = choices.drop_duplicates("fold").set_index("fold")["encoder"]
    found = {}
    for section, folds in scores.groupby("section", sort=False)["fold"].unique().items():
        own = parts[of_fold[str(folds[0])]].predictions
        if len(folds) == 1 and section in own:
            found[section] = own[section]
    return found
