"""Transfer between organs, data sets or studies: the matrix of scores, and the gap.

Two protocols give the scores (`mvhlib.cohort.splits`): ``transfer`` trains on one group and tests
another, ``within`` tests one patient and trains on the others of its group. The second is the
diagonal of the matrix; the gap is the diagonal less the transfer.

The gap is paired: the same sections, genes and patients under both. A gene counts where both sides
chose it, each on its own training sections. A diagonal fold trains on one patient less than its
group has, a transfer fold on all of another group: with two patients a group the diagonal has half
of the data, so the gap is a lower bound of what another group costs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import phrases, statistics
from mvhlib.artifacts import InputError
from mvhlib.cohort.splits import ARROW
from mvhlib.expression.score_files import read_scores
from mvhlib.expression.scores import pearson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvhlib.cohort import Section
    from mvhlib.expression.protocols import Prediction
    from mvhlib.notebook import Run

PROTOCOLS = ("transfer", "within")
#: In place of a group's name: the mean over all of them.
ANY, ALL = "any other", "all"
#: A matrix of correlations is drawn on a scale that ends here or beyond.
LEAST_SCALE = 0.1
#: A system is a method on an encoder, on one panel of genes.
SYSTEM = ["method", "encoder", "panel"]
CELL_COLUMNS = [*SYSTEM, "trained_on", "tested_on", "n_genes", "n_nan", "unit", "n_units", "mean",
                "ci_low", "ci_high", "note"]
GAP_COLUMNS = [*SYSTEM, "trained_on", "tested_on", "n_genes", "unit", "n_units", "transfer",
               "within", "difference", "ci_low", "ci_high", "p_permutation", "p_holm", "p_smallest",
               "note"]


def read(folder: str | Path) -> pd.DataFrame:
    """Scores of every method and encoder under both protocols, controls left out.

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.

    Raises
    ------
    InputError
        If nothing was scored under ``transfer``.
    """
    columns = ("protocol", "control", "method", "encoder", "patient", "section", "gene", "pcc")
    parts = [read_scores(path, columns) for protocol in PROTOCOLS
             for path in sorted(Path(folder, protocol).glob("*/*/scores.csv"))]
    if not any((part["protocol"] == "transfer").any() for part in parts):
        raise InputError(folder, "transfer", "holds no scores", "run 15_transfer, or 12_mmap or "
                         "13_cmrcnet with protocols: [transfer, within]")
    table = pd.concat(parts, ignore_index=True)
    return table[table["control"] == "none"].reset_index(drop=True)


def directed(scores: pd.DataFrame, group: Mapping[str, str]) -> pd.DataFrame:
    """Scores with the columns ``trained_on`` and ``tested_on``.

    Parameters
    ----------
    scores
        Columns of ``scores.csv``, protocols ``transfer`` and ``within``.
    group
        Section -> group, as the folds were made with (`mvhlib.cohort.splits.group_of`).
    """
    table = scores[scores["protocol"].isin(PROTOCOLS)].fillna({"panel": "", "program": ""})
    trained = table["fold"].astype(str).str.split(ARROW, n=1, regex=False).str[0]
    return table.assign(trained_on=trained, tested_on=table["section"].map(dict(group)))


def cells(scores: pd.DataFrame, unit: str = "patient") -> pd.DataFrame:
    """The matrix: one row per system, training group and tested group.

    Parameters
    ----------
    scores
        From `directed`.
    unit
        Of the interval: ``patient`` or ``study``, of the tested group.

    Returns
    -------
    pd.DataFrame
        Columns `CELL_COLUMNS`; rows whose two groups are one are the diagonal. Mean Pearson r over
        genes, then sections, then units, with Student's t interval over units; ``n_nan`` counts
        constant genes (gene x section), which have no correlation.
    """
    rows = []
    keys = [*SYSTEM, "trained_on", "tested_on"]
    for values, part in scores.groupby(keys, sort=True):
        found = statistics.t_interval(statistics.unit_means(part, unit, within=["trained_on"]))
        note = "" if found.n > 1 else f"one {unit}, no interval"
        rows.append((*values, part["gene"].nunique(), int(part["pcc"].isna().sum()), unit, found.n,
                     found.mean, found.low, found.high, note))
    return pd.DataFrame(rows, columns=CELL_COLUMNS)


def paired(scores: pd.DataFrame) -> pd.DataFrame:
    """Pair each transfer score with the diagonal's, on the genes and sections that both have.

    Returns
    -------
    pd.DataFrame
        Rows of ``transfer`` with a column ``within``; empty where no diagonal was possible.
    """
    keys = [*SYSTEM, "section", "gene"]
    diagonal = scores.loc[scores["protocol"] == "within", [*keys, "pcc"]]
    both = scores[scores["protocol"] == "transfer"].merge(
        diagonal.rename(columns={"pcc": "within"}), on=keys)
    return both.dropna(subset=["pcc", "within"])


def gaps(scores: pd.DataFrame, unit: str = "patient") -> pd.DataFrame:
    """Compute the transfer gap: the diagonal less the transfer, unit by unit.

    Parameters
    ----------
    scores
        From `directed`.
    unit
        Over which differences are averaged and tested.

    Returns
    -------
    pd.DataFrame
        Columns `GAP_COLUMNS`. One row per pair of groups; and, where a group is tested by several
        or several are tested, means over what it was trained on (`ANY`) and over all tested groups
        (`ALL`). Permutation p by sign flips, corrected by Holm's method over the pairs of a
        system; where the units allow no test, the note says so. Empty without a diagonal.
    """
    both = paired(scores)
    tables = []
    for system, part in both.groupby(SYSTEM, sort=True):
        sets = {pair: own for pair, own in part.groupby(["trained_on", "tested_on"], sort=True)}
        tables.append(_family(sets, system, unit))
        if len(sets) > 1:
            pooled = {(ANY, group): own for group, own in part.groupby("tested_on", sort=True)
                      if own["trained_on"].nunique() > 1}
            tables.append(_family(pooled | {(ANY, ALL): part}, system, unit))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=GAP_COLUMNS)


def write_nothing(run: "Run") -> None:
    """Write the tables of 15 without rows, for the notebooks that follow it."""
    run.save_table(pd.DataFrame(columns=CELL_COLUMNS), "cells")
    run.save_table(pd.DataFrame(columns=GAP_COLUMNS), "gaps")


def _family(sets: Mapping[tuple[str, str], pd.DataFrame], system: Iterable[str],
            unit: str) -> pd.DataFrame:
    """Rows of `gaps` that are corrected together."""
    sides = {pair: tuple(statistics.unit_means(own, unit, value=side, within=["trained_on"])
                         for side in ("within", "pcc")) for pair, own in sets.items()}
    names = {pair: ARROW.join(pair) for pair in sets}
    # A fixed seed: beyond 16 units flips are drawn, and the table has to repeat.
    tested = statistics.compare({names[pair]: both for pair, both in sides.items()},
                                rng=np.random.default_rng(0)).set_index("comparison")
    rows = []
    for pair, (within, transfer) in sides.items():
        row = tested.loc[names[pair]]
        rows.append((*system, *pair, sets[pair]["gene"].nunique(), unit, int(row["n_units"]),
                     transfer.mean(), within.mean(), row["difference"], row["ci_low"],
                     row["ci_high"], row["p_permutation"], row["p_permutation_holm"],
                     row["p_smallest"], row["note"]))
    return pd.DataFrame(rows, columns=GAP_COLUMNS)


def matrix(table: pd.DataFrame, column: str, groups: Iterable[str] | None = None) -> pd.DataFrame:
    """One system's rows of `cells` or `gaps` as a matrix: trained on (rows), tested on (columns).

    Parameters
    ----------
    column
        Such as ``mean`` or ``difference``.
    groups
        Order of rows and columns; None sorts them. Cells that were not run are NaN.
    """
    wide = table.pivot(index="trained_on", columns="tested_on", values=column)
    names = list(groups) if groups is not None else sorted({*wide.index, *wide.columns})
    return wide.reindex(index=names, columns=names)


def draw(values: pd.DataFrame, ax: "Axes", *, label: str, vmax: float | None = None,
         decimals: int = 2) -> "Axes":
    """Draw a matrix of `matrix` with its numbers; the diagonal is framed, empty cells stay blank.

    Parameters
    ----------
    label
        Of the colour bar.
    vmax
        End of the scale, symmetric about 0; None takes the largest magnitude, and at least
        `LEAST_SCALE`, so that nothing is no deep red.
    """
    from matplotlib.patches import Rectangle

    from mvhlib import plots

    numbers = values.to_numpy(dtype=float)
    largest = vmax or max(LEAST_SCALE, float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0)))
    plots.heatmap(np.ma.masked_invalid(numbers), ax, vmax=largest, label=label)
    names = [str(name).replace("_", " ") for name in values.index]
    ax.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 4 else 0,
                  ha="right" if max(map(len, names)) > 4 else "center", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("tested on")
    ax.set_ylabel("trained on")
    for (row, column), value in np.ndenumerate(numbers):
        if np.isfinite(value):
            ax.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=6,
                    color="white" if abs(value) > 0.6 * largest else "black")
        if row == column:
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=0.9,
                                   edgecolor="black"))
    return ax


def sentence(gap: Mapping) -> str:
    """Describe one row of `gaps`."""
    note = f"; {gap['note']}" if gap["note"] else ""
    return (f"{gap['method']} on {gap['encoder']}, trained on {gap['trained_on']}, tested on "
            f"{gap['tested_on']}: r {gap['transfer']:.3f}, inside the group {gap['within']:.3f}, "
            f"gap {phrases.mean(gap['difference'], gap['ci_low'], gap['ci_high'], 3)} over "
            f"{phrases.count(gap['n_units'], gap['unit'])}{note}")


def answer(gaps: pd.DataFrame, cells: pd.DataFrame, method: str, encoder: str, what: str,
           name: str) -> str:
    """Say how much of a system's score remains on other groups, over all pairs or the only one.

    Parameters
    ----------
    gaps, cells
        Of that system and others.
    what
        What a group is, such as ``study``.
    name
        How the system is called in the sentence.
    """
    own, table = (part[(part["method"] == method) & (part["encoder"] == encoder)]
                  for part in (gaps, cells))
    if own.empty:
        away = table[table["trained_on"] != table["tested_on"]]
        return (f"trained on one {what} alone, {name} reaches a mean Pearson r of "
                f"{phrases.span(away['mean'].agg(['min', 'max']), 2)} on another; no {what} has "
                f"two patients, so that nothing says what it reaches inside its own.")
    row = own[(own["trained_on"] == ANY) & (own["tested_on"] == ALL)]
    row = (row if len(row) else own).iloc[0]
    return (f"trained on one {what} alone, {name} reaches a mean Pearson r of "
            f"{phrases.number(row['transfer'])} on another and {phrases.number(row['within'])} "
            f"on unseen patients of its own; the gap is "
            f"{phrases.mean(row['difference'], row['ci_low'], row['ci_high'])} over "
            f"{phrases.count(int(row['n_units']), row['unit'])}.")


def extremes(cells: pd.DataFrame, what: str = "group") -> str:
    """Name the groups from which one system transfers worst and best; from its rows of `cells`.

    A group that is predicted well from inside itself may still teach nothing: where its own
    diagonal is known, it is said beside it.
    """
    away = cells[cells["trained_on"] != cells["tested_on"]]
    taught = away.groupby("trained_on")["mean"].agg(["mean", "min", "max"]).dropna().sort_values(
        "mean", kind="stable")
    if len(taught) < 2:
        return f"Only {phrases.count(len(taught), what)} was trained on: none teaches less or more."
    inside = cells[cells["trained_on"] == cells["tested_on"]].set_index("trained_on")["mean"]
    least, most = taught.index[0], taught.index[-1]
    own = f"; inside itself {phrases.number(inside[least])}" if least in inside else ""
    return (f"{least} teaches the others least, mean r {phrases.number(taught['mean'].iloc[0])} "
            f"({phrases.span(taught.iloc[0][['min', 'max']], 2)}{own}), and {most} most, "
            f"{phrases.number(taught['mean'].iloc[-1])}.")


def beside_depth(predictions: Mapping[str, "Prediction"], sections: Mapping[str, "Section"],
                 unit: str = "patient") -> pd.DataFrame:
    """Correlation, and partial correlation given the total count of each spot.

    Tissue with more cells gives more counts, and even log-normalised expression of abundant genes
    can follow the count. A model that sees cellularity then predicts genes of any organ or species.
    The partial correlation given the logarithm of the library removes this effect.

    Parameters
    ----------
    predictions
        ``<fold>/<section>`` -> `Prediction`, of ``transfer``.
    sections
        Name -> section, such as a `Cohort`, for the libraries.

    Returns
    -------
    pd.DataFrame
        Columns fold, measure (``pcc``, ``pcc_given_library``), unit, n_units, mean, ci_low,
        ci_high: means over genes, sections, units. Spots without a count are left out.
    """
    rows = []
    for key, prediction in predictions.items():
        fold, name = key.rsplit("/", 1)
        section = sections[name]
        counts = section.adata[prediction.barcodes].layers["counts"]
        library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        kept = library > 0
        depth = np.log(library[kept])
        m, p = prediction.measured[kept], prediction.predicted[kept]
        r, with_m, with_p = (pearson(a, b) for a, b in (
            (m, p), (m, np.broadcast_to(depth[:, None], m.shape)),
            (p, np.broadcast_to(depth[:, None], p.shape))))
        if np.ptp(depth) == 0:  # a section of one depth has nothing to take out
            with_m = with_p = np.zeros_like(r)
        with np.errstate(divide="ignore", invalid="ignore"):
            partial = (r - with_m * with_p) / np.sqrt((1 - with_m**2) * (1 - with_p**2))
        rows += [{"fold": fold, "measure": measure, unit: getattr(section, unit), "section": name,
                  "value": float(np.nanmean(values)) if np.isfinite(values).any() else np.nan}
                 for measure, values in (("pcc", r), ("pcc_given_library", partial))]
    return statistics.unit_table(pd.DataFrame(rows), unit, by=["fold", "measure"], value="value")
