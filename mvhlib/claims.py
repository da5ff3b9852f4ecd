"""Headline claims of the three papers: printed values, their consequences, our measurements.

A claim is looked up, never typed in: its measured value comes from a table that a notebook of this
run saved, what its paper's tables imply is computed from the printed numbers below, and its
verdict is one of those of `mvhlib.verdicts`, or *derivable* or *not derivable* from the printed
rows, or *not testable*; ``why`` says what a verdict rests on where the interval does not.

``python -m mvhlib.claims figures`` puts the tables of all committed profiles together in
``figures/claims.csv`` and, to be read, ``figures/CLAIMS.md``.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, phrases, statistics, verdicts
from mvhlib.expression.scores import drop
from mvhlib.expression.variants import SEEDS_FOR_A_CLAIM, SIGNAL, split_slug
from mvhlib.gallery import plain
from mvhlib.notebook import UNCOMMITTED
from mvhlib.read_outs import CHOSEN, slug

#: No score, count or eigenvalue of the tables is larger.
LARGEST = 1e9
COLUMNS = ("paper", "claim", "published", "implied_by_tables", "measured", "ci_low", "ci_high",
           "data", "verdict", "command", "why")

AGAIN = "delete it and run make figures again"
DERIVABLE = "derivable"
NOT_DERIVABLE = "not derivable"
ONE_SEED = "one seed, no claim"
#: Of comparisons of trained models whose table has no column for it.
UNCHECKED = "made before its preconditions were checked (PROTOCOL.md)"
NOT_TESTABLE = "not testable"

#: MVHybrid's tables on 200 genes, as its README prints them (arXiv 2508.00383): gene panel ->
#: metric -> encoder -> mean over random folds, mean over LOSO folds, and the drop beside them [%].
#: ViT24 is printed for the benchmark alone.
MVHYBRID_PRINTED = {
    "HVG": {"pcc": {"mvhybrid": (0.214, 0.138, 35.5), "vit12": (0.210, 0.097, 53.7)},
            "pcc10": {"mvhybrid": (0.564, 0.386, 31.5), "vit12": (0.555, 0.349, 37.2)},
            "mse": {"mvhybrid": (0.594, 0.881, 48.2), "vit12": (0.593, 1.003, 69.2)},
            "mae": {"mvhybrid": (0.488, 0.614, 25.9), "vit12": (0.488, 0.674, 38.1)}},
    "HMHVG": {"pcc": {"mvhybrid": (0.393, 0.212, 46.0), "vit12": (0.373, 0.110, 70.6)},
              "pcc10": {"mvhybrid": (0.620, 0.454, 26.8), "vit12": (0.605, 0.377, 37.6)},
              "mse": {"mvhybrid": (4.542, 5.889, 29.7), "vit12": (4.581, 7.123, 55.5)},
              "mae": {"mvhybrid": (1.776, 1.957, 10.2), "vit12": (1.780, 2.174, 22.1)}}}

#: Mean Pearson r of highly expressed genes: CMRCNet, and the same without reconstruction
#: (arXiv 2506.08854).
CMRCNET_PRINTED = {"full": 0.3117, "contrastive only": 0.2933}


@dataclass(frozen=True)
class Lookup:
    """Location of a claim's number.

    Attributes
    ----------
    table
        Glob below ``figures/<profile>``. Of several files, those of the first encoder by name: one
        per seed, where it has several (``claims.vit12-dino.s0.csv``).
    where
        A pandas query that leaves one row (of several, the first).
    or_else
        A second one, where the first leaves no row.
    value, low, high
        Columns.
    sign, threshold
        The claim says that sign times the value is above the threshold.
    n_seeds
        1 where each file rests on one training, or on as many as its column of that name says; 0
        where nothing was trained, or where trainings are cells of a grid.
    void, why_void
        A pandas query of the same table: where it leaves a row, the claim cannot be judged by it,
        and why.
    """

    table: str
    where: str
    value: str = "difference"
    low: str = "ci_low"
    high: str = "ci_high"
    sign: int = 1
    threshold: float = 0.0
    n_seeds: int = 0
    or_else: str = ""
    void: str = ""
    why_void: str = ""


@dataclass(frozen=True)
class Claim:
    """One headline.

    Attributes
    ----------
    published
        As the paper says it.
    implied
        What its printed tables give; empty where they say nothing.
    lookup
        None: nothing here can test it, and `why` says why.
    derivable
        For claims of arithmetic: whether the printed rows give the published number.
    """

    paper: str
    claim: str
    published: str
    implied: str = ""
    lookup: Lookup | None = None
    derivable: bool | None = None
    why: str = ""


def loso_gains() -> str:
    """MVHybrid's gain over ViT12 on an unseen study, from the printed means."""
    return ", ".join(f"{rows['pcc']['mvhybrid'][1] / rows['pcc']['vit12'][1] - 1:+.0%} ({panel})"
                     for panel, rows in MVHYBRID_PRINTED.items())


def smaller_losses() -> str:
    """By how much MVHybrid's drop is smaller than ViT12's, from the printed means."""
    lost = {panel: {encoder: drop(*means[:2]) for encoder, means in rows["pcc"].items()}
            for panel, rows in MVHYBRID_PRINTED.items()}
    return ", ".join(f"{1 - rows['mvhybrid'] / rows['vit12']:.0%} ({panel})"
                     for panel, rows in lost.items())


def ablation_gain() -> str:
    """CMRCNet's gain over itself without reconstruction, from the printed means."""
    return f"{CMRCNET_PRINTED['full'] / CMRCNET_PRINTED['contrastive only'] - 1:.2%} over itself " \
           "without reconstruction"


def _variant(variant: str, reference: str, measure: str = SIGNAL, sign: int = 1,
             protocol: str = "loso", read_out: str = CHOSEN) -> Lookup:
    """A pair of 11, over the genes that tissue shows; over all where they are not known."""
    own = [f"'{slug(name, read_out)}'" for name in (variant, reference)]
    if read_out == CHOSEN:  # or of encoders that are read in one way
        own = [f"'{name}', {read}" for name, read in zip((variant, reference), own, strict=True)]
    pair = f"protocol == '{protocol}' and variant in [{own[0]}] and reference in [{own[1]}]"
    return Lookup("11_ablations/comparisons.csv", f"measure == '{measure}' and {pair}",
                  low="unit_low", high="unit_high", sign=sign,
                  or_else=f"measure == 'all' and {pair}" if measure == SIGNAL else "")


def _mmap(claim: str) -> Lookup:
    return Lookup("12_mmap/claims.*.csv", f"claim == '{claim}'", n_seeds=1)


def _cmrcnet(claim: str) -> Lookup:
    return Lookup("13_cmrcnet/claims.*.csv", f"claim == '{claim}'", n_seeds=1)


def claims() -> list[Claim]:
    """Return all headline claims, in the papers' order."""
    mv, mm, cm = "MVHybrid", "MMAP", "CMRCNet"
    return [
        Claim(mv, "57 % higher correlation on an unseen study than the best ViT", "+57 %",
              loso_gains(), derivable=False),
        Claim(mv, "43 % smaller loss on an unseen study than the best ViT", "-43 %",
              smaller_losses(), derivable=False),
        Claim(mv, "higher correlation on an unseen study than a ViT", "higher", loso_gains(),
              _variant("mvhybrid-dino", "vit12-dino")),
        Claim(mv, "as above, against a ViT of nearly as many parameters", "", "",
              _variant("mvhybrid-dino", "vit17-dino")),
        Claim(mv, "as above, by the class token, the published read-out", "", "",
              _variant("mvhybrid-dino", "vit17-dino", read_out="cls")),
        Claim(mv, "a smaller loss on an unseen study than a ViT", "smaller", smaller_losses(),
              _variant("mvhybrid-dino", "vit12-dino", sign=-1, protocol="drop")),
        Claim(mv, "a smaller loss than a ViT of nearly as many parameters", "", "",
              _variant("mvhybrid-dino", "vit17-dino", sign=-1, protocol="drop")),
        Claim(mv, "a smaller loss, by the class token", "", "",
              _variant("mvhybrid-dino", "vit17-dino", sign=-1, protocol="drop", read_out="cls")),
        Claim(mv, "low-frequency bias: ahead of a ViT of nearly as many parameters on slow "
              "morphology more than on fine texture", "yes", "",
              _variant("mvhybrid-dino", "vit17-dino", "slow_less_fine")),
        Claim(mv, "low-frequency bias, by the class token", "", "",
              _variant("mvhybrid-dino", "vit17-dino", "slow_less_fine", read_out="cls")),
        Claim(mv, "eigenvalues lie between -10 and 0", "-10 to 0", "",
              Lookup("10_frequency/audit.csv", "backbone == 'mvhybrid' and preset == 'released'",
                     "a_min", "a_min", "a_min", threshold=-10)),
        Claim(mv, "as above, after a short training", "-10 to 0", "",
              Lookup("10_frequency/before_after.csv",
                     "encoder == 'mvhybrid-dino' and state == 'trained'",
                     "a_min", "a_min", "a_min", threshold=-10, n_seeds=1,
                     void="encoder == 'mvhybrid-dino' and state == 'untrained' and a_min < -10",
                     why_void="the lowest lies outside before training already")),
        Claim(mv, "half state-space, half attention is the best split: better than a third",
              "12/12", "", _variant("mvhybrid-split2", "mvhybrid-dino", sign=-1)),
        Claim(mv, "half state-space, half attention is the best split: better than two thirds",
              "12/12", "", _variant("mvhybrid-split4", "mvhybrid-dino", sign=-1)),
        Claim(mv, "state-space layers first, attention after", "ssm first", "",
              _variant("mvhybrid-attention-first", "mvhybrid-dino", sign=-1)),
        Claim(mv, "EinFFT is needed: better than an MLP in the state-space half", "needed", "",
              _variant("mvhybrid-mlp", "mvhybrid-dino", sign=-1)),
        # Eight pairs of trainings are a grid; the demo's two are an example.
        Claim(mv, "MLPs in the state-space half make training diverge more often than EinFFT",
              "diverges", "",
              Lookup("11_ablations/stability_summary.csv", "trunk == 'all' and n_pairs >= 8",
                     "difference", "difference", "difference",
                     void="trunk == 'all' and diverged_mlp + diverged_einfft == 0",
                     why_void="no training diverged, with either")),
        Claim(mv, "equal or better in classification, retrieval and survival", "equal or better",
              "", why="no images of its data sets are at hand; 07, 08 and 09 show the code on "
                      "others"),
        Claim(mm, "better MAE, MSE and PCC than its rivals; here PCC against ridge on the same "
              "three views", "better", "",
              Lookup("12_mmap/paired.*.csv", "protocol == 'loso' and variant == 'ridge, 3 views'",
                     low="diff_low", high="diff_high", sign=-1, n_seeds=1)),
        Claim(mm, "prototypes help", "yes", "", _mmap("prototypes help")),
        Claim(mm, "half of a slide's prototypes beats a fixed few (8)", "0.5 K", "",
              _mmap("half of K beats L 8")),
        Claim(mm, "three magnifications beat the first alone", "yes", "",
              _mmap("three views beat 1x")),
        Claim(cm, "6.27 % higher correlation of highly expressed genes than other methods",
              "+6.27 %", ablation_gain(), derivable=False),
        Claim(cm, "reconstruction helps", "yes", ablation_gain(),
              Lookup("13_cmrcnet/paired.*.csv", "comparison == 'cmrcnet - bleep'", n_seeds=1)),
        Claim(cm, "6.11 % higher correlation of highly variable genes", "+6.11 %",
              why="no table of single data sets is printed, and its data are not at hand"),
        Claim(cm, "11.26 % higher correlation of marker genes", "+11.26 %",
              why="its marker lists are not published"),
        *(Claim(cm, f"half masked is best with a squared error: better than {rate} %", "50 %", "",
                _cmrcnet(f"mse: 50% masked beats {rate}% masked")) for rate in (0, 30, 70)),
        *(Claim(cm, f"30 % masked is best with a cosine loss: better than {rate} %", "30 %", "",
                _cmrcnet(f"cosine: 30% masked beats {rate}% masked")) for rate in (0, 50, 70)),
        *(Claim(cm, f"k 50 is better for the median gene: than k {k}", "k 50", "",
                _cmrcnet(f"median: k 50 beats k {k}")) for k in (10, 100, 500)),
        *(Claim(cm, f"k 500 is better for the mean over many genes: than k {k}", "k 500", "",
                _cmrcnet(f"mean: k 500 beats k {k}")) for k in (10, 50, 100)),
        Claim(cm, "rebuilding images beats rebuilding genes", "images", "",
              _cmrcnet("images beat genes")),
    ]


@dataclass(frozen=True)
class Measured:
    """A claim's number in one profile, in the claimed direction.

    `n_seeds` is 0 where nothing was trained, `n_units` where the table counts none; `unmet` names
    preconditions that were not met.
    """

    value: float
    low: float
    high: float
    n_seeds: int = 0
    unmet: str = ""
    n_units: int = 0
    unit: str = ""


def measure(lookup: Lookup, figures: Path) -> Measured | None:
    """Value and interval of a lookup; None where its table or its row is not there.

    Every kind of chance counts: where there are several seeds, the half-widths over seeds and over
    units (of several files their mean) add as the root of the sum of their squares.
    """
    found = [row for path in _one_encoder(figures, lookup.table) for row in _row(path, lookup)]
    if not found:
        return None
    value, low, high = (float(np.mean([row[side] for row in found]))
                        for side in (lookup.value, lookup.low, lookup.high))
    over_seeds = "seed_low" in found[0]
    n_seeds = (int(found[0].get("n_seeds", len(found))) if lookup.n_seeds or over_seeds else 0)
    if n_seeds > 1 and (over_seeds or len(found) > 1):
        seeds = (statistics.Interval(value, found[0]["seed_low"], found[0]["seed_high"], n_seeds,
                                     "over seeds") if over_seeds else
                 statistics.t_interval([row[lookup.value] for row in found]))
        both = statistics.combine(statistics.Interval(value, low, high, n_seeds, "over units"),
                                  seeds)
        low, high = both.low, both.high
    low, high = sorted((low * lookup.sign, high * lookup.sign))
    return Measured(value * lookup.sign, low, high, n_seeds, str(found[0].get("unmet", "")),
                    int(found[0].get("n_units", 0)), str(found[0].get("unit", "unit")))


def _row(path: Path, lookup: Lookup) -> list[dict[str, Any]]:
    """The numbers of the row that a lookup means, if it is there."""
    frame = artifacts.read_csv(path, columns=(lookup.value, lookup.low, lookup.high))
    with artifacts.reading(path, lookup.where, "is not a row of numbers", AGAIN):
        rows = frame.query(lookup.where).head(1).to_dict("records")
        if not rows and lookup.or_else:
            rows = frame.query(lookup.or_else).head(1).to_dict("records")
        names = {lookup.value, lookup.low, lookup.high, "seed_low", "seed_high", "n_seeds",
                 "n_units"}
        if ("seed_low" in frame) != ("seed_high" in frame):
            raise KeyError("seed_low and seed_high belong together")
        found = [{name: float(row[name]) for name in names if name in row} for row in rows]
        old = UNCHECKED if {"seed_low", "unit_low"} <= set(frame) else ""
        words = ["" if row.get("unmet", old) != row.get("unmet", old) else row.get("unmet", old)
                 for row in rows]  # a blank cell is NaN
        if lookup.void and len(frame.query(lookup.void)):
            words = [phrases.listed(filter(None, [word, lookup.why_void])) for word in words]
    for row in found:
        wrong = [name for name, value in row.items() if abs(value) > LARGEST or (
            name in ("n_seeds", "n_units") and not (value >= 0 and value.is_integer()))]
        if wrong:
            raise artifacts.InputError(path, wrong[0], f"is {row[wrong[0]]} where {lookup.where}",
                                       AGAIN)
    units = [str(row.get("unit", "unit")) for row in rows]
    return [row | {"unit": unit} | ({"unmet": unmet} if unmet else {})
            for row, unit, unmet in zip(found, units, words, strict=True)]


def _one_encoder(figures: Path, pattern: str) -> list[Path]:
    """Files that match, of the first encoder by name; several seeds of it are several files."""
    paths = sorted(figures.glob(pattern))
    names = [split_slug(path.stem)[0] for path in paths]
    return [path for path, name in zip(paths, names, strict=True) if name == names[0]]


def _origin(data: str, found: Measured) -> str:
    """Describe the data behind a number: its units, and the seeds where models were trained."""
    parts = [data] + [phrases.count(found.n_units, found.unit)] * (found.n_units > 0)
    if found.n_seeds >= 2:
        parts.append(f"{found.n_seeds} seeds")
        parts += ["exploratory"] * (found.n_seeds < SEEDS_FOR_A_CLAIM)
    return ", ".join(parts)


def evaluate(figures: str | Path, *, data: str, command: str,
             chosen: Sequence[Claim] | None = None) -> pd.DataFrame:
    """The claims table of one profile.

    Parameters
    ----------
    figures
        ``OUT/figures/<profile>``, with the tables of notebooks 10 to 13.
    data
        What the numbers were measured on, for the column of that name.
    command
        What makes them again.

    Returns
    -------
    pd.DataFrame
        Columns `COLUMNS`; differences are turned to the claimed direction, above zero is as
        claimed.
    """
    rows = []
    for claim in claims() if chosen is None else chosen:
        found = measure(claim.lookup, Path(figures)) if claim.lookup else None
        if claim.derivable is not None:
            verdict, why = DERIVABLE if claim.derivable else NOT_DERIVABLE, claim.why
        elif found is None:
            verdict = NOT_TESTABLE
            why = claim.why or f"this profile has no row for it in {claim.lookup.table}"
        elif found.n_seeds == 1:
            verdict, why = NOT_TESTABLE, ONE_SEED
        else:
            # The value is turned to the claimed side already, the threshold is not.
            verdict, why = verdicts.judge(found.low, found.high, threshold=claim.lookup.threshold,
                                          unmet=[found.unmet] if found.unmet else [])
        numbers = (found.value, found.low, found.high) if found else (np.nan,) * 3
        rows.append((claim.paper, claim.claim, claim.published, claim.implied, *numbers,
                     _origin(data, found) if found else "", verdict,
                     command if found else "", why))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def collect(figures: str | Path) -> pd.DataFrame:
    """The claims tables of all committed profiles in one.

    Parameters
    ----------
    figures
        The folder of all profiles' figures. Profiles whose figures are not committed are left out.

    Returns
    -------
    pd.DataFrame
        Columns `COLUMNS`, in the papers' order: one row for each profile that measured a claim,
        and one for a claim that none did.

    Raises
    ------
    InputError
        If no profile has a claims table, or one is broken.
    """
    paths = [path for path in sorted(Path(figures).glob("*/14_leaderboard/claims.csv"))
             if path.parts[-3] not in UNCOMMITTED]
    if not paths:
        raise artifacts.InputError(figures, "claims.csv", "no profile has one",
                                   "run make figures with a profile that ends in 14_leaderboard")
    everything = pd.concat([_read_claims(path) for path in paths])
    rows = []
    for claim in claims():
        own = everything[(everything["paper"] == claim.paper)
                         & (everything["claim"] == claim.claim)]
        measured = own[own["measured"] != ""].drop_duplicates(
            [name for name in COLUMNS if name != "command"])  # a constant, in several profiles
        rows.append(measured if len(measured) else own.head(1))
    return pd.concat(rows, ignore_index=True)[list(COLUMNS)]


def _read_claims(path: Path) -> pd.DataFrame:
    """A profile's claims as text, with numbers where numbers belong."""
    frame = artifacts.read_csv(path, columns=COLUMNS, dtype=str).fillna("")
    torn = (frame["ci_low"] == "") != (frame["ci_high"] == "")
    if torn.any():
        raise artifacts.InputError(path, "ci_low, ci_high", f"row {torn.idxmax() + 2} holds only "
                                   "one of them", AGAIN)
    for column in ("measured", "ci_low", "ci_high"):
        given = frame.loc[frame[column] != "", column]
        wrong = given[~(pd.to_numeric(given, errors="coerce").astype(float).abs() <= LARGEST)]
        if len(wrong):
            raise artifacts.InputError(path, column, f"row {wrong.index[0] + 2} holds "
                                       f"{wrong.iloc[0]!r}, not a number", AGAIN)
    return frame


def page(table: pd.DataFrame) -> str:
    """The table of `collect` as a page to be read."""
    lines = ["# What is left of the papers' headlines", "",
             "Generated by `python -m mvhlib.claims figures` from every profile's "
             "`14_leaderboard/claims.csv`: do not edit. Intervals are at 95 %. *As claimed* and "
             "*the other way* mean that the whole interval, of seeds and units together, lies on "
             "one side of zero, *undecided* that it does not, and names the difference that could "
             "have been seen; fewer than eight seeds are exploratory, and so are the rows of the "
             "class token (PROTOCOL.md). A measured difference, of Pearson's r where nothing else "
             "is named, is above zero where it goes as claimed; MVHybrid's are over the genes that "
             "synthetic tissue shows, MMAP's and CMRCNet's over all genes; of eigenvalues the "
             "lowest is shown. None of this is measured at the published scale.",
             "",
             "| paper | claim | published | its tables imply | measured here | data | verdict |",
             "|---|---|---|---|---|---|---|"]
    for row in table.itertuples():
        measured = "" if row.measured == "" else (
            f"{float(row.measured):+.3f} [{float(row.ci_low):+.3f}, {float(row.ci_high):+.3f}]"
            if row.ci_low != row.ci_high else f"{float(row.measured):+.3f}")
        cells = (row.paper, row.claim, row.published, row.implied_by_tables, measured, row.data,
                 f"{row.verdict}: {row.why}" if row.why else row.verdict)
        lines.append("| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str]) -> int:
    """Command line: the folder of all profiles' figures."""
    if len(arguments) != 1:
        print("usage: python -m mvhlib.claims figures", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        collected = collect(folder)
        artifacts.write_csv(folder / "claims.csv", collected)
        artifacts.write_text(folder / "CLAIMS.md", page(collected))
    except artifacts.InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(collected["verdict"].value_counts().to_string())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
