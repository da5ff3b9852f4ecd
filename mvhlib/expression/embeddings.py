"""How much of the variance of each encoder's features lies between studies, and how much within.

This needs the features and their owners alone. `mvhlib.expression.site` also uses tissue classes
and probes, where the cohort has them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import phrases, plots
from mvhlib.expression import site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mvhlib.features import Features

#: Panels beside each other in `draw_planes`.
N_COLUMNS = 4


def of_pool(features: "Mapping[str, Features]", owners: pd.DataFrame, *, encoder: str = ""
            ) -> pd.DataFrame:
    """Shares of variance of one encoder's features, from their owners alone.

    Parameters
    ----------
    features
        Section, slide or image -> its features.
    owners
        Columns section, study and patient, as `mvhlib.tiles.pools.owners` gives them. A section
        without a named patient counts as a patient of its own.

    Returns
    -------
    pd.DataFrame
        Columns `site.SHARE_COLUMNS`; no row where the features do not vary.
    """
    owners = owners.astype(object).set_index("section")
    about = pd.concat([pd.DataFrame({
        "section": name, "study": str(owners.at[name, "study"]), "label": None,
        "patient": str(name if pd.isna(who := owners.at[name, "patient"]) else who)},
        index=range(len(given.features))) for name, given in features.items()])
    X = np.concatenate([given.features for given in features.values()]).astype(np.float64)
    if np.ptp(X, axis=0).max(initial=0.0) == 0:
        return pd.DataFrame(columns=list(site.SHARE_COLUMNS))
    return site.variance_shares(site.Rows(X, about), encoder=encoder)


def strongest(shares: pd.DataFrame) -> pd.DataFrame:
    """Share between studies of each encoder, largest excess over chance first.

    Parameters
    ----------
    shares
        Tables of `of_pool`, one below the other.

    Returns
    -------
    pd.DataFrame
        The rows of factor ``study`` with the column ``excess``: the share beyond what dealing out
        patients to studies at random would give, or the share itself where each study is one
        patient and the two cannot be told apart.
    """
    rows = shares[shares["factor"] == "study"]
    excess = rows["share"] - rows["by_chance"].fillna(0.0)
    return rows.assign(excess=excess).sort_values("excess", ascending=False, kind="stable")


def sentence(shares: pd.DataFrame, called: str = "study") -> str:
    """Summarise the shares of several encoders in one sentence; parameters as in `draw_shares`."""
    if shares.empty:
        return "the features do not vary, so that nothing explains them."
    many, order = phrases.plural(called), strongest(shares)
    if order["n_groups"].max() < 2:
        inside = shares.loc[shares["factor"] == "rest", "share"]
        return (f"there is one {called}, so that nothing can lie between {many}; "
                f"{phrases.span(100 * inside)} % of the variance of the features lies within "
                "sections.")

    def in_encoder(row: pd.Series) -> str:
        chance = "" if np.isnan(row["by_chance"]) else f" ({row['by_chance']:.0%} by chance)"
        return f"{row['share']:.0%}{chance} in {plots.label(row['encoder'])}"

    found = f"{in_encoder(order.iloc[0])} lies between the " \
            f"{phrases.count(int(order['n_groups'].iloc[0]), called)}"
    if len(order) > 1:
        found += f", the most of {phrases.count(len(order), 'encoder')}, and " \
                 f"{in_encoder(order.iloc[-1])}, the least"
    return f"of the variance of the features, {found}."


def draw_shares(shares: pd.DataFrame, ax: "Axes", called: str = "study") -> "Axes":
    """Draw the shares of each encoder as one bar of four parts.

    The black mark is the share between studies that chance would give; encoders whose share exceeds
    it most stand on top.

    Parameters
    ----------
    shares
        Tables of `of_pool`, one below the other.
    called
        What stands in the study's place: study, site or class.
    """
    parts = {"study": (f"between {phrases.plural(called)}", "#D55E00"),
             "patient": (f"between patients of a {called}", "#E69F00"),
             "section": ("between sections of a patient", "#F0E442"),
             "rest": ("within sections", "0.85")}
    order = strongest(shares)["encoder"].tolist()
    wide = shares.pivot(index="encoder", columns="factor", values="share").loc[order]
    chance = shares[shares["factor"] == "study"].set_index("encoder")["by_chance"].loc[order]
    place, left = np.arange(len(order)), np.zeros(len(order))
    for factor, (name, colour) in parts.items():
        width = wide[factor].to_numpy().clip(min=0)
        ax.barh(place, width, left=left, height=0.62, color=colour, label=name)
        left = left + width
    ax.plot(chance, place, "|", color="black", markersize=11, markeredgewidth=1.3,
            label=f"between {phrases.plural(called)}, by chance")
    for y, share in enumerate(wide["study"]):
        ax.text(1.02, y, f"{share:.0%}", va="center", fontsize=plots.SMALLEST_PT)
    ax.set_yticks(place, [plots.label(name) for name in order])
    ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.5), xlabel="share of the variance")
    return ax


def draw_planes(planes: "Mapping[str, pd.DataFrame]", fig: "Figure", by: str) -> None:
    """Draw the first two principal components of each encoder in a panel of its own.

    Parameters
    ----------
    planes
        Encoder -> table with the columns pc1, pc2 and `by`.
    by
        Column that colours the points.
    """
    n_rows = -(-len(planes) // N_COLUMNS)
    axes = fig.subplots(n_rows, min(N_COLUMNS, len(planes)), squeeze=False).ravel()
    for ax, (encoder, plane) in zip(axes, planes.items(), strict=False):
        last = encoder == list(planes)[min(N_COLUMNS, len(planes)) - 1]
        plots.scatter(plane, "pc1", "pc2", by, ax=ax, legend=last, size=3)
        ax.set(title=plots.label(encoder), xticks=[], yticks=[], xlabel="", ylabel="")
    for ax in axes[len(planes):]:
        ax.set_axis_off()
    axes[0].set(xlabel="PC 1", ylabel="PC 2")
