"""Sentences about the tables of frequencies, for the notebook's answer."""

from typing import TYPE_CHECKING

from mvhlib import phrases, plots
from mvhlib.frequency.draw import FLAT

if TYPE_CHECKING:
    from pandas import DataFrame

#: Share of the energy above pi/4 rad per token that white noise has.
WHITE = 0.75


def memory(halves: "DataFrame", backbone: str) -> str:
    """Say how long the slowest state of each preset lasts.

    Parameters
    ----------
    halves
        Columns backbone, preset, half_life_max [tokens], energy_share.
    """
    own = halves[halves["backbone"] == backbone]
    if own.empty:
        return "no state-space layer was read."
    said = [f"{phrases.count(round(rows['half_life_max'].max()), 'token')} ({preset}, "
            f"{rows['energy_share'].mean():.0%} of the energy above pi/4 rad per token)"
            for preset, rows in own.groupby("preset", sort=False)]
    return (f"with initial weights the slowest state of {plots.label(backbone)} is half gone after "
            f"{phrases.listed(said)}; white noise has {WHITE:.0%} there.")


def training(moved: "DataFrame") -> str:
    """Say by how much training moved the poles, from a table of trained encoders and twins.

    Parameters
    ----------
    moved
        Columns encoder, state, a_min, a_max.
    """
    said = []
    for encoder, rows in moved.groupby("encoder", sort=False):
        ends = [f"{phrases.number(row.a_min, 2)} to {phrases.number(row.a_max, 2)}"
                for state in ("untrained", "trained")
                for row in rows[rows["state"] == state].itertuples()]
        if len(ends) == 2:
            said.append(f"the eigenvalues of {plots.label(encoder)} lay at {ends[0]} before "
                        f"training and lie at {ends[1]} after it")
    if not said:
        return "No state-space model was trained here, so that nothing says what training moves."
    text = phrases.listed(said)
    return f"{text[0].upper()}{text[1:]}."


def blocks(tilt: "DataFrame") -> str:
    """Count the models whose blocks pass the fastest wave like the mean of all tokens.

    Parameters
    ----------
    tilt
        Columns panel, encoder, preset, state, fastest_over_mean.
    """
    whole = tilt[tilt["panel"] == "all blocks"].set_index("encoder")["fastest_over_mean"]
    low, high = whole.min(), whole.max()
    flat = whole.between(1 / (1 + FLAT), 1 + FLAT).sum()
    return (f"All blocks in a row pass the fastest wave {phrases.number(low)} to "
            f"{phrases.number(high)} times as well as the mean of all tokens, {flat} of "
            f"{phrases.count(len(whole), 'model')} within {FLAT:.0%} of alike.")


def finest(answered: "DataFrame", unit: str) -> str:
    """Say how far noise in the finest octave moves each trained encoder, and its twin.

    Parameters
    ----------
    answered
        Columns encoder, state, frequency, mean, ci_low, ci_high, n_units; mean in distances
        between two tiles.
    unit
        What the intervals are taken over.
    """
    top = answered[answered["frequency"] == answered["frequency"].max()]
    done = top[top["state"] == "trained"]
    said = []
    for row in done.itertuples():
        twin = top[(top["encoder"] == row.encoder) & (top["state"] == "untrained")]
        before = (f" (untrained {phrases.row_mean(twin.iloc[0].to_dict() | {'unit': unit}, 3)})"
                  if len(twin) else "")
        said.append(f"{plots.label(row.encoder)} by "
                    f"{phrases.mean(row.mean, row.ci_low, row.ci_high, 3)}{before}")
    if not said:
        each = [f"{plots.label(row.encoder)} by {phrases.mean(row.mean, row.ci_low, row.ci_high)}"
                for row in top.drop_duplicates("encoder").itertuples()]
        return f"Noise in the finest octave moves the embedding of {phrases.listed(each, 3)} of " \
               "the distance between two tiles."
    return (f"Noise in the finest octave moves the embedding of {phrases.listed(said, 3)} of the "
            "distance between two tiles.")


def longest(inside: "DataFrame", mpp: float = 1.0) -> str:
    """Name the waves of a tile that predict each kind of border best.

    Parameters
    ----------
    inside
        Columns of, low, high [cycles per px], mean: share of the variance that a band explains.
    mpp
        Scale of the tiles [um/px].
    """
    bands = inside[inside["high"] > 0]
    said = []
    for name, rows in bands[bands["of"].str.contains("border")].groupby("of", sort=False):
        best = rows.loc[rows["mean"].idxmax()]
        said.append(f"{name} by waves of {mpp / best['high']:.3g} to {mpp / best['low']:.3g} um "
                    f"({best['mean']:.0%} of its variance)")
    return f"Best told inside the tile: {phrases.listed(said)}." if said else \
        "No border is known in these data, so that nothing says which waves would tell it."
