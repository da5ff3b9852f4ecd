"""Ablations of CMRCNet: arms that differ in one setting, compared by unit on the same folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import statistics
from mvhlib.expression import preconditions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mvhlib.expression.cmrcnet.fitted import Fitted
    from mvhlib.expression.evaluation import Evaluation

#: Share masked that the authors find best, by the loss of the reconstruction. A claim that one arm
#: is the best is judged rival by rival: the best rival by its result would favour itself.
BEST_MASK = {"mse": 0.5, "cosine": 0.3}

#: Neighbours that the authors find best, by how genes are put together.
BEST_NEIGHBOURS = {"median": "k 50", "mean": "k 500"}

#: Loss terms and schedules: arm -> settings that it changes; the first is the reference.
TERMS = {"image, joint": {}, "contrastive alone": {"reconstruct": "none"},
         "genes, joint": {"reconstruct": "genes"}, "image, two stages": {"schedule": "two_stage"},
         "image, as released": {"detach_targets": False, "share_blocks": True}}

#: The authors' claims about the terms: sentence -> the arm that the reference should beat.
CLAIMS = {"reconstruction helps": "contrastive alone", "images beat genes": "genes, joint",
          "both at once beat two stages": "image, two stages"}

#: Kinds of an arm that are drawn open.
_OPEN = ("cosine", "median")


@dataclass(frozen=True)
class Compared:
    """Arms of one question.

    Attributes
    ----------
    of
        What differs, as the figure calls it.
    reference
        The arm that the others are compared with.
    table
        Scores of every arm.
    gaps
        Every arm less the reference: columns of `statistics.against`, of, kind.
    judged
        The authors' claims; see `statistics.judge`.
    """

    of: str
    reference: str
    table: pd.DataFrame = field(repr=False)
    gaps: pd.DataFrame = field(repr=False)
    judged: list[dict[str, Any]]

    def __str__(self) -> str:
        return "\n".join(map(statistics.sentence, self.judged))


def compare_masks(arms: "Mapping[tuple[str, float], Evaluation]", unit: str,
                  unmet: Sequence[str] = ()) -> Compared:
    """Compare shares of masked numbers, under each loss of the reconstruction.

    Parameters
    ----------
    arms
        (loss, share masked) -> its scores.
    unit
        ``patient`` or ``study``.
    unmet
        What the arms' trainings were short of; see `mvhlib.expression.preconditions`.
    """
    table = pd.concat([result.summary.query("program == 'all' and metric == 'pcc'").assign(
        loss=loss, mask_rate=rate) for (loss, rate), result in arms.items()], ignore_index=True)
    judged, gaps = [], []
    for loss in dict.fromkeys(loss for loss, _ in arms):
        units = pd.DataFrame({f"{rate:.0%} masked": result.unit_means(unit)
                              for (of, rate), result in arms.items() if of == loss})
        gaps.append(_gaps(units, units.columns[0], unit, "share masked", loss))
        best = f"{BEST_MASK[loss]:.0%} masked"
        judged += _beats(units, loss, best, unit)
    return Compared("share masked", units.columns[0], table, pd.concat(gaps),
                    preconditions.void(judged, unmet))


def _beats(units: pd.DataFrame, kind: str, best: str, unit: str) -> list[dict[str, Any]]:
    """Judge the arm that the authors find best against each other one."""
    rivals = [name for name in units if name != best] if best in units else []
    return [statistics.judge(units, f"{kind}: {best} beats {rival}", best, rival, unit=unit)
            for rival in rivals]


def neighbours_to_try(asked: Sequence[int], largest: int, k: int) -> list[int]:
    """Return the numbers of neighbours that every gallery can give; if none, `k` or the largest."""
    return [each for each in asked if each <= largest] or [min(k, largest)]


def compare_neighbours(swept: "Mapping[int, Evaluation]", k: int, unit: str,
                       unmet: Sequence[str] = ()) -> Compared:
    """Compare numbers of neighbours, by the mean and by the median over genes.

    Parameters
    ----------
    swept
        Neighbours -> its scores.
    k
        The reference; the first one where it was not tried.
    unmet
        As in `compare_masks`.
    """
    reference = f"k {k if k in swept else next(iter(swept))}"
    rows, judged, gaps = [], [], []
    for how, best in BEST_NEIGHBOURS.items():
        units = pd.DataFrame({f"k {each}": result.unit_means(unit, over=how)
                              for each, result in swept.items()})
        judged += _beats(units, how, best, unit)
        rows += [{"k": each, "over": how, **statistics.unit_row(values, unit)}
                 for each, values in zip(swept, units.to_numpy().T, strict=True)]
        gaps.append(_gaps(units, reference, unit, "neighbours k", how))
    return Compared("neighbours k", reference, pd.DataFrame(rows), pd.concat(gaps),
                    preconditions.void(judged, unmet))


def compare_terms(terms: "Mapping[str, Evaluation]", unit: str,
                  unmet: Sequence[str] = ()) -> Compared:
    """Compare loss terms and schedules with the reference of `TERMS`; `unmet` as above."""
    reference = next(iter(TERMS))
    units = pd.DataFrame({name: result.unit_means(unit) for name, result in terms.items()})
    judged = [statistics.judge(units, words, reference, rival, unit=unit)
              for words, rival in CLAIMS.items()]
    return Compared("loss terms", reference, units,
                    _gaps(units, reference, unit, "loss terms", "all"),
                    preconditions.void(judged, unmet))


def _gaps(units: pd.DataFrame, reference: str, unit: str, of: str, kind: str) -> pd.DataFrame:
    return statistics.against(units, reference, unit).assign(of=of, kind=kind)


def draw_arms(questions: Sequence[Compared]) -> "tuple[Figure, pd.DataFrame]":
    """Draw every arm less its reference, a panel per question; also return the drawn table.

    The table has the columns of `Compared.gaps`, and encoder and control, which colour and open
    the marks.
    """
    import matplotlib.pyplot as plt

    from mvhlib import plots

    gaps = pd.concat([each.gaps for each in questions])
    gaps = gaps.assign(encoder="cmrcnet",
                       control=gaps["kind"].map(dict.fromkeys(_OPEN, "open")).fillna("none"))
    opened = {"share masked": "(open: cosine loss)", "neighbours k": "(open: median gene)"}
    fig, axes = plt.subplots(1, len(questions), figsize=(plots.PAGE, 2.4),
                             width_ratios=[1] * (len(questions) - 1) + [1.1])
    for ax, each in zip(axes, questions, strict=True):
        plots.differences(gaps[gaps["of"] == each.of], ax, by="arm", xlabel="Pearson r, less "
                          f"{each.reference}\n{opened.get(each.of, '')}")
        ax.set_title(each.of)
        ax.locator_params(axis="x", nbins=4)
    return fig, gaps


def draw_log(log: pd.DataFrame, batch: int) -> "Figure":
    """Draw the losses of one fold by epoch, a line per method; held-out patients are dotted.

    Parameters
    ----------
    log
        From `CMRCNet.log`, of one fold, methods in the order of `METHODS`.
    batch
        Spots of a batch: the logarithm is the most that the target's entropy can be.
    """
    import matplotlib.pyplot as plt

    from mvhlib import plots

    fig, axes = plt.subplots(1, 3, figsize=(plots.PAGE, 2.3))
    for (name, rows), colour in zip(log.groupby("method", sort=False),
                                    [plots.colour("cmrcnet"), "0.4"], strict=True):
        for ax, term in zip(axes, ["contrastive", "target_entropy", "alignment"], strict=True):
            ax.plot(rows["epoch"], rows[term], color=colour, label=plots.label(name))
            if f"valid_{term}" in rows:
                ax.plot(rows["epoch"], rows[f"valid_{term}"], color=colour, linestyle=":")
            ax.set(xlabel="epoch", title=term.replace("_", " "))
    axes[1].axhline(np.log(batch), color="0.8", linewidth=0.6)
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel("nat")
    axes[2].set_ylabel("mean cosine")
    plots.legend_below(fig, axes[0])
    return fig


def copying(branches: "Mapping[float, Fitted]", X: np.ndarray, Y: np.ndarray,
            seed: int) -> pd.DataFrame:
    """Measure the rise in each trained branch's error when spots get the genes of other spots.

    Parameters
    ----------
    branches
        Share masked -> a model that rebuilds images.
    X, Y
        Images and expression of one section; see `paired`.

    Returns
    -------
    pd.DataFrame
        Columns mask_rate, own_genes, other_genes (errors), increase (relative).
    """
    rows = []
    for rate, branch in branches.items():
        own, other = (branch.rebuild_error(X, Y, rate, shuffled=shuffled, seed=seed)
                      for shuffled in (False, True))
        rows.append({"mask_rate": rate, "own_genes": own, "other_genes": other,
                     "increase": other / own - 1})
    return pd.DataFrame(rows)
