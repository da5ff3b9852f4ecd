"""The card of a model: what a reader should know before trusting it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mvhlib.prediction.domain import Domain

#: Genes that the card lists, the best first.
LISTED = 20
PROTOCOLS = {"loso": "an unseen study", "patient": "an unseen patient of a known study",
             "section": "an unseen section of a known patient",
             "random10_section": "an unseen section, whose study and patient may be known"}


def card(record: Mapping[str, Any], domain: "Domain") -> str:
    """Text of ``CARD.md``.

    Parameters
    ----------
    record
        What ``model.json`` holds, without its own hash.
    domain
        The training distribution.
    """
    encoder, tile, seen = record["encoder"], record["tile"], record["seen"]
    fold = record["fold"]
    lines = [f"# {record['method']} on {encoder['slug']}", ""]
    if fold:
        lines += [f"Fitted on the training sections of fold `{fold['fold']}` of protocol "
                  f"`{fold['protocol']}` alone, for checks. Use the model of all sections for "
                  "anything else.", ""]
    lines += ["Predicts gene expression from a tile of an H&E slide. Research use; not a medical "
              "device.", "", "## What goes in, what comes out", "",
              f"- tile: {tile['tile_um']:g} um a side, read at {tile['tile_px']} px "
              f"({tile['mpp']:.3g} um/px)",
              f"- encoder: `{encoder['source']}`" + (
                  f", weights `{encoder['weights']}`" if encoder["weights"] else "")
              + f", {encoder['description']['width']} features, read-out "
              f"`{encoder['description']['pool']}`, sha256 `{encoder['sha256'][:16]}`",
              f"- out: {len(record['genes'])} genes, {record['expression']['unit']}", "",
              "## Whom it has seen", ""]
    for key in ("studies", "patients", "sections"):
        lines.append(f"- {key}: {len(seen[key])} ({_some(seen[key])})")
    lines += [f"- organ: {seen['organ'] or 'not stated'}; scanner: "
              f"{seen['scanner'] or 'not stated'}",
              f"- resolution: {domain.mpp.min():.3g} to {domain.mpp.max():.3g} um/px",
              f"- the encoder's own pretraining: {_pretraining(encoder['pretrained_on'])}", "",
              "## What to expect", "", _expectation(record), "",
              f"| gene | expected r | {record['expected']['interval']} | units |",
              "|---|---|---|---|"]
    known = [row for row in record["genes"] if row[1] is not None]
    for gene, mean, low, high, _, n_units in sorted(known, key=lambda row: -row[1])[:LISTED]:
        interval = "-" if low is None else f"{low:.2f} to {high:.2f}"
        lines.append(f"| {gene} | {mean:.3f} | {interval} | {n_units} |")
    lines += ["", f"All {len(record['genes'])} genes stand in `model.json`.", "",
              "## Outside the training distribution", "",
              f"A tile counts as outside where it lies farther from the training tiles than "
              f"{domain.bound:.3g} (Mahalanobis, shrunk covariance): 99 of 100 tiles of a "
              f"{domain.unit if domain.unit != 'none' else 'section'} that was left out lie "
              f"nearer ({domain.n_units} left out in turn).", ""]
    return "\n".join(lines)


def _expectation(record: Mapping[str, Any]) -> str:
    expected = record["expected"]
    values = np.array([row[1] for row in record["genes"] if row[1] is not None], dtype=float)
    units = max((row[5] for row in record["genes"]), default=0)
    where = PROTOCOLS.get(expected["protocol"], f"protocol {expected['protocol']}")
    text = (f"On {where} (protocol `{expected['protocol']}`): mean Pearson r over "
            f"{len(values)} genes {values.mean():.3f}, from {plural(expected['unit'], units)} that "
            "were left out in turn." if len(values) else "No gene was scored in a fold.")
    if expected["note"]:
        text += f" Note: {expected['note']}."
    if expected["unit"] != "study":
        text += " Nothing is known of a study that it has not seen: expect less there."
    if units == 1:
        text += " One unit gives no interval."
    return text


def plural(unit: str, n: int) -> str:
    """A number of units in words: ``1 study``, ``3 studies``, ``4 patients``."""
    return f"{n} {unit if n == 1 else 'studies' if unit == 'study' else unit + 's'}"


def _pretraining(seen: Mapping[str, Any] | None) -> str:
    if seen is None:
        return "unknown; it may have seen any slide"
    return f"studies {_some(seen.get('studies', []))}" if any(seen.values()) else "none"


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
