"""One way to bring columns to mean 0 and spread 1, with one rule for what does not vary."""

from dataclasses import dataclass, field

import numpy as np

#: A column whose spread is no more than this share of its largest magnitude is constant: numbers
#: that were float32 once differ by as much from rounding alone.
CONSTANT = 1e-7


def varies(spread: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Whether columns vary, from their spread and their largest magnitude, `(D,)` bool."""
    return spread > CONSTANT * np.maximum(largest, 1e-300)


@dataclass(frozen=True)
class Scale:
    """Means and spreads of columns, fitted on some rows and applied to others.

    Attributes
    ----------
    mean
        `(D,)` float64.
    spread
        `(D,)` standard deviations (of the population, ``ddof`` 0); infinite where a column is
        constant, so that it becomes 0 wherever it is applied and rounding is never blown up.
    """

    mean: np.ndarray = field(repr=False)
    spread: np.ndarray = field(repr=False)

    @property
    def varies(self) -> np.ndarray:
        """Columns that vary, `(D,)` bool."""
        return np.isfinite(self.spread)

    @property
    def inverse(self) -> np.ndarray:
        """One over the spread, `(D,)`; 0 where a column is constant."""
        return 1.0 / self.spread

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardise `(T, D)` values."""
        return (values - self.mean) / self.spread


def fit(values: np.ndarray) -> Scale:
    """Measure the scale of columns.

    Parameters
    ----------
    values
        `(T, D)`; NaN are left out of mean and spread.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, spread, largest = ((values.mean(axis=0), values.std(axis=0), np.abs(values).max(axis=0))
                             if np.isfinite(values).all() else
                             (np.nanmean(values, axis=0), np.nanstd(values, axis=0),
                              np.nanmax(np.abs(values), axis=0)))
    return Scale(mean, np.where(varies(spread, largest), spread, np.inf))


def standardise(values: np.ndarray) -> np.ndarray:
    """Bring columns to mean 0 and spread 1, `(T, D)` float64; constant columns become 0."""
    values = np.asarray(values, dtype=np.float64)
    return fit(values)(values)
