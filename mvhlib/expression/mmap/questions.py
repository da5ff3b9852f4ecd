"""Ablations of MMAP: the variants, the authors' claims about them, and the figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from mvhlib.expression.mmap.ablations import against, draw_differences
from mvhlib.expression.mmap.views import ZOOMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Question -> the variant that the others are compared with, and the figure's title.
QUESTIONS = {"zooms": ("no prototypes", "magnifications, without prototypes"),
             "prototypes": ("full", "prototypes per slide"),
             "selected": ("full", "prototypes a spot asks"), "loss": ("full", "loss and padding")}

#: Zooms that a model reads instead of all three.
SUBSETS = ((1,), (2,), (4,), (1, 2), (1, 4), (2, 4))

#: Prototypes that a spot attends to, instead of half of them.
ASKED = (8,)


def name_of(zooms: Iterable[int]) -> str:
    """Write zooms as tables show them: ``1x + 4x``."""
    return " + ".join(f"{zoom}x" for zoom in zooms)


def variants(questions: Sequence[str], n_prototypes: Iterable[int]
             ) -> dict[str, tuple[str, dict[str, Any]]]:
    """Variants that change one thing at a time, the full model and that without prototypes first.

    Parameters
    ----------
    questions
        Keys of `QUESTIONS`.
    n_prototypes
        Numbers of prototypes to try, beside none and the rule.

    Returns
    -------
    dict
        Variant -> its question, and the settings of `MMAP` that it changes.
    """
    found = {"full": ("full", {}), "no prototypes": ("prototypes", {"prototypes": "none"})}
    if "zooms" in questions:
        found |= {name_of(zooms): ("zooms", {"zooms": zooms, "prototypes": "none"})
                  for zooms in SUBSETS}
    if "prototypes" in questions:
        found |= {f"K {k}": ("prototypes", {"prototypes": k}) for k in n_prototypes}
    if "selected" in questions:
        found |= {f"L {n}": ("selected", {"selected": n}) for n in ASKED}
    if "loss" in questions:
        found |= {"no similarity": ("loss", {"similarity": 0.0}),
                  "padding attended": ("loss", {"mask_padding": False})}
    return found


def authors_claims(n_prototypes: Iterable[int]) -> dict[str, tuple[str, str]]:
    """The authors' claims: sentence -> the variant claimed to be better, the other one."""
    said = {f"three views beat {name_of(zooms)}": ("no prototypes", name_of(zooms))
            for zooms in SUBSETS}
    said |= {"prototypes help": ("full", "no prototypes"),
             "the similarity term helps": ("full", "no similarity")}
    said |= {f"the rule for K beats {k}": ("full", f"K {k}") for k in n_prototypes}
    return said | {f"half of K beats L {n}": ("full", f"L {n}") for n in ASKED}


def compare_variants(scores: pd.DataFrame, tried: Mapping[str, tuple[str, dict[str, Any]]],
                     questions: Sequence[str], unit: str) -> pd.DataFrame:
    """Compare each variant with the reference of its question, paired by unit.

    Parameters
    ----------
    scores
        Columns of `protocols.SCORE_COLUMNS`, and variant.
    tried
        From `variants`.

    Returns
    -------
    pd.DataFrame
        Columns of `against`, and question, the figure's title; empty where nothing was asked.
    """
    compared = []
    for question in questions:
        reference, title = QUESTIONS[question]
        own = [name for name, (group, _) in tried.items() if group == question]
        part = against(scores[scores["variant"].isin([reference, *own])], reference, unit)
        if question == "zooms":
            part["variant"] = part["variant"].replace(reference, name_of(ZOOMS))
        compared.append(part.assign(question=title))
    return pd.concat(compared, ignore_index=True) if compared else pd.DataFrame()


def draw_variants(table: pd.DataFrame) -> "Figure":
    """Draw what each variant gains over its reference, a panel per question."""
    import matplotlib.pyplot as plt

    from mvhlib import plots

    fig, axes = plt.subplots(2, 2, figsize=(plots.PAGE, 3.9), sharex=True, squeeze=False)
    for ax, (title, part) in zip(axes.flat, table.groupby("question", sort=False), strict=False):
        draw_differences(part, ax)
        ax.set_title(title)
        ax.set_xlabel("difference of Pearson r")
        ax.tick_params(labelbottom=True)
    for ax in axes.flat[table["question"].nunique():]:
        ax.set_axis_off()
    return fig
