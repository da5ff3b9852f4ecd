"""Block masks for masked-patch prediction (Bao et al. 2022, BEiT; Zhou et al. 2022, iBOT).

Half of a step's global crops are masked. How much of each is drawn for the whole batch at once,
one ratio per stratum; where the blocks lie is drawn from a key of its own for each crop. So a
process needs to draw only the crops that it trains on, and the masks do not depend on how the
batch is divided.
"""

import math
from dataclasses import dataclass

import numpy as np

from mvhlib.artifacts import InputError
from mvhlib.training import keyed_generator


@dataclass(frozen=True)
class BlockMasks:
    """Draws masks over a grid of patches.

    Parameters
    ----------
    grid
        Patches along a side of the global crop.
    share
        Share of the crops that are masked.
    ratio_min, ratio_max
        Range of the masked share of a masked crop; a block has at most `ratio_max` of the grid.
    smallest_block
        Patches.
    aspect_min
        Aspect ratios are log-uniform in [aspect_min, 1 / aspect_min].
    n_tries
        Draws for one block before the mask is left as it is.

    Raises
    ------
    InputError
        If a share is not in [0, 1] or the grid has fewer than 2 patches along a side.
    """

    grid: int
    share: float = 0.5
    ratio_min: float = 0.1
    ratio_max: float = 0.5
    smallest_block: int = 4
    aspect_min: float = 0.3
    n_tries: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.ratio_min <= self.ratio_max <= 1:
            raise InputError("masks", "share, ratio", f"are {self.share}, {self.ratio_min} to "
                             f"{self.ratio_max}", "give shares from 0 to 1, the smaller first")
        if self.grid < 2:
            raise InputError("masks", "grid", f"is {self.grid} patches wide",
                             "use a larger crop or a smaller patch")

    def ratios(self, seed: int, step: int, n_crops: int) -> np.ndarray:
        """Masked share that is aimed at, `(n_crops,)`, 0 where a crop stays whole.

        Exactly ``int(n_crops * share)`` crops get one, each from its own slice of the range.
        """
        rng = keyed_generator(seed, step, stream="mask_ratios")
        n_masked = int(n_crops * self.share)
        edges = np.linspace(self.ratio_min, self.ratio_max, n_masked + 1)
        ratios = np.zeros(n_crops)
        ratios[:n_masked] = rng.uniform(edges[:-1], edges[1:])
        return rng.permutation(ratios)

    def draw(self, seed: int, step: int, n_crops: int, crops: np.ndarray) -> np.ndarray:
        """Masks `(len(crops), grid * grid)` bool of some crops of a step.

        Parameters
        ----------
        seed, step
            The key.
        n_crops
            Crops of the whole step.
        crops
            Which of them are wanted, as indices.
        """
        ratios = self.ratios(seed, step, n_crops)
        masks = np.zeros((len(crops), self.grid, self.grid), dtype=bool)
        for mask, crop in zip(masks, crops, strict=True):
            if ratios[crop] > 0:
                rng = keyed_generator(seed, step, int(crop), stream="masks")
                self._fill(mask, int(self.grid**2 * ratios[crop]), rng)
        return masks.reshape(len(crops), -1)

    def _fill(self, mask: np.ndarray, n_wanted: int, rng: np.random.Generator) -> None:
        """Add blocks to `mask` until `n_wanted` patches are covered or a block does not fit."""
        n_covered = 0
        while n_covered < n_wanted:
            n_added = self._add_block(mask, n_wanted - n_covered, rng)
            if n_added == 0:
                break
            n_covered += n_added

    def _add_block(self, mask: np.ndarray, gap: int, rng: np.random.Generator) -> int:
        """Add one block that covers between 1 and `gap` new patches; 0 where none was found."""
        largest = min(gap, int(self.ratio_max * self.grid**2))
        log_aspect = math.log(self.aspect_min)
        for _ in range(self.n_tries):
            # With a gap below the smallest block the range turns round, and a draw may be too
            # large for the gap: the published generator does the same and so stops a little early.
            area = self.smallest_block + rng.random() * (largest - self.smallest_block)
            aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if height >= self.grid or width >= self.grid:
                continue
            top = rng.integers(0, self.grid - height, endpoint=True)
            left = rng.integers(0, self.grid - width, endpoint=True)
            block = mask[top:top + height, left:left + width]
            n_new = block.size - int(block.sum())
            if 0 < n_new <= largest:
                block[:] = True
                return n_new
        return 0
