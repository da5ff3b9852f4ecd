"""Block masks: the published statistics, and independence of how a batch is divided."""

import numpy as np
import pytest

from mvhlib.artifacts import InputError
from mvhlib.dino.masking import BlockMasks

N_CROPS = 128


@pytest.fixture(scope="module")
def many():
    """Sixteen steps of 128 crops."""
    masks = BlockMasks(16)
    drawn = [masks.draw(0, step, N_CROPS, np.arange(N_CROPS)) for step in range(16)]
    return masks, np.stack(drawn)  # (steps, crops, N)


def test_exactly_half_of_the_crops_are_masked(many):
    _, drawn = many
    assert (drawn.any(axis=2).sum(axis=1) == N_CROPS // 2).all()
    # Shuffled over both views: the first half of the crops does not hold a fixed share.
    first = drawn[:, :N_CROPS // 2].any(axis=2).sum(axis=1)
    assert first.min() < 32 < first.max()


def test_ratios_lie_where_the_published_ones_do(many):
    masks, drawn = many
    aimed = np.stack([masks.ratios(0, step, N_CROPS) for step in range(16)])
    share = drawn.mean(axis=2)
    masked = aimed > 0
    assert drawn.sum(axis=2).max() <= 128
    # What is reached lies slightly below what is aimed at (0.1 -> 0.097, 0.5 -> 0.4996).
    assert (share[masked] <= aimed[masked] + 1 / 256).all()
    for low, high, shortfall in ((0.1, 0.12, 0.006), (0.3, 0.32, 0.006), (0.48, 0.5, 0.004)):
        rows = masked & (aimed >= low) & (aimed < high)
        assert rows.sum() > 20
        gap = (aimed[rows] - share[rows]).mean()
        assert 0 <= gap < shortfall, (low, gap)
    assert share[masked].mean() == pytest.approx(0.3, abs=0.01)


def test_one_ratio_in_every_stratum():
    masks = BlockMasks(16)
    ratios = np.sort(masks.ratios(3, 4, 64))
    assert (ratios[:32] == 0).all()
    strata = np.floor((ratios[32:] - 0.1) / (0.4 / 32)).astype(int)
    np.testing.assert_array_equal(strata, np.arange(32))


def test_realised_shares_follow_the_target():
    """At fixed targets the realised share is what was measured for the published generator."""
    for target, published in ((0.1, 0.097), (0.2, 0.199), (0.3, 0.297), (0.4, 0.398),
                              (0.5, 0.4996)):
        masks = BlockMasks(16, share=1.0, ratio_min=target, ratio_max=target)
        masks = _with_block_limit(masks)
        share = masks.draw(1, 0, 400, np.arange(400)).mean()
        assert share == pytest.approx(published, abs=0.004)


def _with_block_limit(masks):
    """Blocks of up to half of the grid, as in the recipe, whatever the target."""

    class Limited(BlockMasks):
        def _add_block(self, mask, gap, rng):
            wide = BlockMasks(self.grid, self.share, 0.1, 0.5)
            return wide._add_block(mask, gap, rng)

    return Limited(masks.grid, masks.share, masks.ratio_min, masks.ratio_max)


def test_a_process_draws_its_own_crops_only():
    masks = BlockMasks(8)
    whole = masks.draw(7, 11, 40, np.arange(40))
    some = np.array([3, 17, 39])
    np.testing.assert_array_equal(masks.draw(7, 11, 40, some), whole[some])
    assert not np.array_equal(masks.draw(7, 12, 40, np.arange(40)), whole)


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="grid"):
        BlockMasks(1)
    with pytest.raises(InputError, match="ratio"):
        BlockMasks(8, ratio_min=0.6)
