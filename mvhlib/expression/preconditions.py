"""Preconditions of a claim about a part of MMAP or CMRCNet: that the arms learned as was asked.

A part that makes no difference after a training that was cut short, or on a share of the spots,
says nothing of the part (``PROTOCOL.md``, Verdicts).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mvhlib import phrases, verdicts

#: Epochs of the published trainings, which the arms have to reach where nobody was held out.
PUBLISHED_EPOCHS = {"mmap": 50, "cmrcnet": 60}


def unmet(arms: pd.DataFrame, whole: pd.DataFrame, published: int) -> list[str]:
    """What the arms' trainings were short of.

    Parameters
    ----------
    arms
        Rows of ``describe()`` of every arm: fold, n_spots, inner_unit, ``epochs`` and
        ``best_epoch`` (of one stage, or of several with an ending), perhaps n_trained and
        n_validation.
    whole
        The same of the system itself, which learned from all training sections of each fold.
    published
        Epochs of the published training.

    Returns
    -------
    list of str
        In words, of the spots and of the epochs; empty where both are met. Epochs are met where
        patients or sections were held out and the best epoch is not the last in at least half of
        the trainings, or where there were as many as published.
    """
    said = []
    known = whole.drop_duplicates("fold").set_index("fold")["n_spots"]
    used = arms["n_trained"] + arms["n_validation"] if "n_trained" in arms else arms["n_spots"]
    share = float((used / arms["fold"].map(known)).median())
    if share < 0.995:
        said.append(f"learned from {share:.0%} of the training spots")
    for column in [name for name in arms if name.startswith("epochs")]:
        ran = arms[arms[column] > 0]  # an arm without prototypes has no second stage
        longest = int(ran[column].max()) if len(ran) else published
        if longest >= published:
            continue
        last = ran[column.replace("epochs", "best_epoch")] >= ran[column]
        if (ran["inner_unit"] == "none").all():
            said.append(f"{longest} of {published} epochs, and nobody held out to choose one")
        elif last.mean() > 0.5:
            said.append(f"the last of {longest} epochs was the best in {int(last.sum())} of "
                        f"{phrases.count(len(ran), 'training')}")
    return list(dict.fromkeys(said))


def void(judged: Iterable[Mapping[str, Any]], why: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `mvhlib.statistics.judge`, with the verdict that unmet preconditions leave."""
    if not why:
        return [dict(row) for row in judged]
    verdict, said = verdicts.judge(float("nan"), float("nan"), unmet=why)
    return [{**row, "verdict": verdict, "why": said} for row in judged]
