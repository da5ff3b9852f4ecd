"""Training distribution of a model, and the distance of new tiles and slides from it.

A tile's distance is Mahalanobis' from the training tiles, in the features that the model reads:
features are standardised, and their covariance is shrunk towards a ball as Ledoit and Wolf do
(Journal of Multivariate Analysis 88, 2004), since features are many and correlated. The
bound is not taken from the training tiles themselves, which lie close to their own mean.
Each unit of the training set (study, else patient, else section) is left out in turn and its tiles
are measured from the others: a tile counts as outside where it lies farther than 99 of 100 of
these. Colour and resolution are compared slide by slide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvhlib.artifacts import InputError

#: Share of a left-out unit's tiles that counts as inside.
INSIDE = 0.99
#: Most rows that a covariance is taken from.
MOST_ROWS = 20_000
#: Most units that are left out in turn; more are dealt to so many groups.
MOST_UNITS = 8
#: A mean colour may differ from the nearest of the training set's by this factor of what training
#: units differ by, and by this optical density where they hardly do.
COLOUR_FACTOR, COLOUR_FLOOR = 1.5, 0.05
#: A resolution within this factor of the coarsest and sharpest that was seen is no new one.
SCALE_SLACK = 1.25


@dataclass(frozen=True)
class Domain:
    """The training distribution of a model.

    Attributes
    ----------
    centre, spread
        Mean and standard deviation of the features, `(D,)`.
    whitener
        `(D, D)`: standardised features times it have the distance as their length.
    percentiles
        Distances of tiles of units left out, at 0, 1, ..., 100 per cent `(101,)`.
    unit, n_units
        What was left out: ``study``, ``patient``, ``section``, or ``none`` where there was one
        section alone, whose own tiles then stand for others and make the bound too strict.
    colours
        Mean optical density of each section's tiles (red, green, blue), `(S, 3)`; `(0, 3)` where
        no pixels were at hand.
    colour_bound
        Distance from the nearest of `colours` beyond which a slide's colour is a new one.
    mpp
        Resolution at which each section was seen [um/px], `(S,)`.
    """

    centre: np.ndarray = field(repr=False)
    spread: np.ndarray = field(repr=False)
    whitener: np.ndarray = field(repr=False)
    percentiles: np.ndarray = field(repr=False)
    unit: str
    n_units: int
    colours: np.ndarray = field(repr=False)
    colour_bound: float
    mpp: np.ndarray = field(repr=False)

    @property
    def bound(self) -> float:
        """Distance beyond which a tile counts as outside."""
        return float(self.percentiles[round(100 * INSIDE)])

    def distance(self, X: np.ndarray) -> np.ndarray:
        """Distance of each row of `(T, D)` from the training tiles, `(T,)` float64."""
        return _length(X, self.centre, self.spread, self.whitener)

    def new_colour(self, colour: np.ndarray) -> float | None:
        """Distance of a slide's mean optical density `(3,)`, in multiples of the bound.

        None where the model knows no colours; above 1 it is a stain that was never seen.
        """
        if len(self.colours) == 0:
            return None
        return float(np.linalg.norm(self.colours - colour, axis=1).min() / self.colour_bound)

    def new_scale(self, mpp: float) -> float:
        """Factor by which a resolution lies outside the training range; 1 inside it."""
        low, high = self.mpp.min() / SCALE_SLACK, self.mpp.max() * SCALE_SLACK
        return 1.0 if low <= mpp <= high else float(max(mpp / self.mpp.max(), self.mpp.min() / mpp))

    def tensors(self) -> dict[str, np.ndarray]:
        """Arrays to be stored; `record` has the rest."""
        return {name: np.asarray(getattr(self, name), dtype=np.float64) for name in
                ("centre", "spread", "whitener", "percentiles", "colours", "mpp")}

    def record(self) -> dict[str, Any]:
        """Entries of the distribution in the model's json."""
        return {"unit": self.unit, "n_units": self.n_units, "bound": self.bound,
                "colour_bound": self.colour_bound}


def fit(features: Mapping[str, np.ndarray], units: Mapping[str, Mapping[str, str]],
        mpp: Mapping[str, float], colours: Mapping[str, np.ndarray]) -> Domain:
    """Learn the training distribution.

    Parameters
    ----------
    features
        Section -> `(T, D)`.
    units
        ``study``, ``patient`` and ``section`` -> section -> unit. The coarsest of which there are
        two is left out.
    mpp
        Section -> resolution at which it was seen [um/px].
    colours
        Section -> mean optical density `(3,)`; sections without pixels are absent.

    Raises
    ------
    InputError
        Without any row, or with features of unlike width.
    """
    if len({values.shape[1] for values in features.values()}) != 1:
        raise InputError("training distribution", "features", "are none, or differ in width",
                         "use features of one encoder")
    level = next((name for name in ("study", "patient", "section")
                  if len({units[name][s] for s in features}) > 1), "none")
    groups = {section: units[level][section] if level != "none" else section
              for section in features}
    names = sorted(set(groups.values()))
    place = {name: number % MOST_UNITS for number, name in enumerate(names)}
    centre, spread, whitener = _shape(list(features.values()))
    held_out = []
    for number in sorted(set(place.values())):
        inside = [X for s, X in features.items() if place[groups[s]] != number]
        outside = [X for s, X in features.items() if place[groups[s]] == number]
        shape = _shape(inside) if inside else (centre, spread, whitener)
        held_out += [_length(X, *shape) for X in outside]
    percentiles = np.percentile(np.concatenate(held_out), np.arange(101))
    known = np.array([colours[s] for s in features if s in colours]).reshape(-1, 3)
    owners = [groups[s] for s in features if s in colours]
    n_units = 1 if level == "none" else len(names)
    return Domain(centre, spread, whitener, percentiles, level, n_units,
                  known, _colour_bound(known, owners), np.array([mpp[s] for s in features]))


def restore(tensors: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Domain:
    """Rebuild a domain from `Domain.tensors` and `Domain.record`."""
    return Domain(**dict(tensors), unit=str(record["unit"]), n_units=int(record["n_units"]),
                  colour_bound=float(record["colour_bound"]))


def _shape(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, spread and whitener of stacked rows."""
    from sklearn.covariance import ledoit_wolf

    X = np.concatenate(parts).astype(np.float64)
    X = X[::max(1, -(-len(X) // MOST_ROWS))]
    centre, spread = X.mean(axis=0), X.std(axis=0)
    # A feature that is constant in training tells nothing of how far a tile lies.
    spread = np.where(spread > 1e-9 * (np.abs(centre) + 1e-300), spread, np.inf)
    covariance, _ = ledoit_wolf((X - centre) / spread, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    return centre, spread, vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))


def _length(X: np.ndarray, centre: np.ndarray, spread: np.ndarray, whitener: np.ndarray
            ) -> np.ndarray:
    return np.linalg.norm(((X.astype(np.float64) - centre) / spread) @ whitener, axis=1)


def _colour_bound(colours: np.ndarray, owners: list[str]) -> float:
    """Largest distance of a section from the nearest one of another unit, plus a margin."""
    nearest = [min((np.linalg.norm(colours[a] - colours[b]) for b in range(len(colours))
                    if owners[a] != owners[b]), default=0.0) for a in range(len(colours))]
    return max(COLOUR_FLOOR, COLOUR_FACTOR * max(nearest, default=0.0))
