"""What orders the tiles of a pool in one embedding: the study that they came from, or less.

`mvhlib.expression.site` asks more, and of all encoders side by side, where tissue classes are
known; this is what one encoder's features alone can tell.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mvhlib import phrases
from mvhlib.expression import site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvhlib.features import Features


def of_pool(features: "Mapping[str, Features]", owners: pd.DataFrame, *, encoder: str = ""
            ) -> pd.DataFrame:
    """`site.variance_shares` of tiles of which no more is known than whose they are.

    Parameters
    ----------
    features
        Section, slide or image -> its features.
    owners
        Columns section, study and patient, as `mvhlib.tiles.pools.owners` gives them; where nobody
        says whose it is, everything counts as a patient of its own.

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


def sentence(shares: pd.DataFrame, called: str = "study") -> str:
    """What shares of one encoder say, in a sentence.

    Parameters
    ----------
    shares
        From `site.variance_shares` or `of_pool`.
    called
        What stands in the study's place: study, site or class.
    """
    if shares.empty:
        return "the features do not vary, so that nothing orders them."
    by = shares.set_index("factor")
    many = phrases.plural(called)
    if by.at["study", "n_groups"] < 2:
        return (f"there is one {called}, so that nothing can lie between {many}; "
                f"{by.at['rest', 'share']:.0%} of the variance of the features lies within "
                "sections.")
    chance = by.at["study", "by_chance"]
    told = "cannot be told from that between patients, since each has one" if np.isnan(chance) \
        else f"would be {chance:.0%} if patients were dealt out to {many} at random"
    return (f"{by.at['study', 'share']:.0%} of the variance of the features lies between the "
            f"{phrases.count(int(by.at['study', 'n_groups']), called)}, which {told}; "
            f"{by.at['rest', 'share']:.0%} lies within sections, where tissue differs.")


def draw_shares(shares: pd.DataFrame, ax: "Axes", called: str = "study") -> "Axes":
    """Draw the shares of `of_pool` as bars; a grey mark is what chance would give."""
    names = {"study": f"between {phrases.plural(called)}",
             "patient": f"between patients\nof a {called}",
             "section": "between sections\nof a patient", "rest": "within sections"}
    rows = shares[shares["factor"].isin(names)]
    place = np.arange(len(rows))
    ax.barh(place, rows["share"], height=0.55, color="#56B4E9")
    ax.plot(rows["by_chance"], place, "|", color="0.3", markersize=14, markeredgewidth=1.2)
    for y, share in enumerate(rows["share"]):
        ax.text(max(share, 0) + 0.02, y, f"{share:.0%}", va="center")
    ax.set_yticks(place, rows["factor"].map(names))
    ax.set_xlim(0, 1.12)
    ax.invert_yaxis()
    ax.set_xlabel("share of the variance (grey: by chance)")
    return ax
