"""Reliability of a prediction, in sentences for the top of its page.

Three kinds of doubt are distinguished. About the slide: a scale, stain, organ or scanner that was
not in the training data. About its tiles: those outside the training distribution. About each gene:
how well it was predicted on held-out sections, and to which sections that estimate applies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mvhlib.prediction.card import PROTOCOLS, plural
from mvhlib.prediction.domain import INSIDE
from mvhlib.prediction.model import Model
from mvhlib.prediction.slides import Asked
from mvhlib.prediction.stream import Predicted
from mvhlib.tiles.slides import Slide

#: Expected r below which a gene is greyed out, where the user says nothing else.
LEAST_R = 0.2
#: Share of a slide's tiles outside the training distribution that is reported at the top.
MANY_OUTSIDE = 0.1


@dataclass(frozen=True)
class Belief:
    """Reliability of one slide's predictions.

    Attributes
    ----------
    warnings
        What speaks against believing them, the slide as a whole first.
    remarks
        What else a reader must know.
    outside
        Which tiles lie outside the training distribution, `(T,)` bool.
    genes
        Columns `expected.COLUMNS` and ``believed``: whether the expected r reaches `least_r`.
    least_r
        The stated least expected r.
    facts
        Numbers behind the sentences.
    """

    warnings: list[str]
    remarks: list[str]
    outside: np.ndarray = field(repr=False)
    genes: pd.DataFrame = field(repr=False)
    least_r: float
    facts: dict[str, Any]

    @property
    def verdict(self) -> str:
        """One line for tables and consoles."""
        n = int(self.genes["believed"].sum())
        known = " on slides like the training sections" if self.warnings else ""
        many = f"{len(self.warnings)} warning{'' if len(self.warnings) == 1 else 's'}"
        return (f"{n} of {len(self.genes)} genes are expected to reach r {self.least_r:g}{known}; "
                f"{self.facts['share_outside']:.0%} of the tiles lie outside the training "
                f"distribution; {many if self.warnings else 'no warning'}")


def by_expected(genes: pd.DataFrame) -> pd.DataFrame:
    """Genes with the largest expected r first.

    One that a single unit was scored on comes behind those with an interval, unless none has
    one: the largest of many single values is large by luck. Without an expected r it is last.
    """
    order = genes.assign(_interval=genes["ci_low"].notna()).sort_values(
        ["_interval", "expected_r"], ascending=False, kind="stable", na_position="last")
    return order.drop(columns="_interval")


def judge(asked: Asked, slide: Slide, model: Model, predicted: Predicted,
          least_r: float = LEAST_R) -> Belief:
    """Compare a slide with the training data of its model."""
    record, domain = model.record, model.domain
    outside = predicted.distance > domain.bound
    share = float(outside.mean())
    mpp = model.effective_mpp(slide.mpp)
    scale, colour = domain.new_scale(mpp), domain.new_colour(predicted.colour)
    facts = {"slide_mpp": slide.mpp, "seen_at_mpp": mpp, "scale_factor": scale,
             "colour_times_bound": colour, "share_outside": share, "scanner": slide.scanner}
    warnings = []
    if scale > 1:
        warnings.append(f"Scale never seen: the encoder sees this slide at {mpp:.3g} um/px, and "
                        f"the training sections at {domain.mpp.min():.3g} to "
                        f"{domain.mpp.max():.3g}.")
    if colour is not None and colour > 1:
        warnings.append("Stain never seen: the mean colour of this slide lies "
                        f"{colour:.1f} times as far from the nearest training section as training "
                        "sections of different origin may lie from each other.")
    warnings += _origin(asked, slide, record["seen"])
    if share > MANY_OUTSIDE:
        warnings.append(f"Tissue never seen: {share:.0%} of the tiles lie outside the training "
                        f"distribution; of held-out training tiles {1 - INSIDE:.0%} do.")
    genes = model.genes.set_index("gene").loc[predicted.genes].reset_index()
    genes["believed"] = (genes["expected_r"] >= least_r).to_numpy()
    remarks = _remarks(record, genes, least_r, colour)
    if any(text.startswith(("Organ unseen", "Scanner unseen")) for text in warnings):
        remarks.append("Organ and scanner of a slide are stated in slides.csv beside it (columns "
                       "organ and scanner), those of the training sections by the parameters of "
                       "these names of 05_expression.")
    return Belief(warnings, remarks, outside, genes, least_r, facts)


def _origin(asked: Asked, slide: Slide, seen: Mapping[str, Any]) -> list[str]:
    """Compare organ and scanner with those of the training sections."""
    found = []
    for what, said in (("organ", asked.organ), ("scanner", asked.scanner or slide.scanner)):
        known = seen[what]
        if said and known and said.lower() == known.lower():
            continue
        this = f"this slide's is {said}" if said else "this slide's is not stated"
        model = "that of the training sections is " + (known or "not stated")
        verb = "never seen" if said and known else "unseen, as far as is known"
        found.append(f"{what.capitalize()} {verb}: {this}, {model}.")
    return found


def _remarks(record: Mapping[str, Any], genes: pd.DataFrame, least_r: float,
             colour: float | None) -> list[str]:
    expected, seen = record["expected"], record["seen"]
    where = PROTOCOLS.get(expected["protocol"], f"protocol {expected['protocol']}")
    n = int(genes["n_units"].max()) if len(genes) else 0
    found = [f"Expected r comes from {where} (protocol {expected['protocol']}): "
             f"{plural(expected['unit'], n)} left out in turn. Its interval is one for a new "
             "section" + (", and there is none with one unit." if n < 2 else ".")]
    if expected["unit"] != "study":
        found.append(f"All training sections are of {plural('study', len(seen['studies']))} "
                     f"({', '.join(seen['studies'][:4])}), and the folds left out "
                     f"{expected['unit']}s: expect a lower r on slides of another laboratory, by "
                     "an amount that was not measured.")
    if expected["note"]:
        found.append(f"Note on these folds: {expected['note']}.")
    weak = int((~genes["believed"]).sum())
    found.append(f"{weak} of {len(genes)} genes have an expected r below {least_r:g} and are "
                 "greyed out: their maps are not evidence.")
    if colour is None:
        found.append("The model holds no training colours, so that the stain was not compared.")
    found.append(f"Values are {record['expression']['unit']}. They are smoother than measured "
                 "expression and do not resolve single cells.")
    return found

