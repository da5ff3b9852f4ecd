"""What the arms of an ablation were short of, and the verdicts that this leaves."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import statistics
from mvhlib.expression import preconditions
from mvhlib.verdicts import AS_CLAIMED, NOT_MET


def fits(n_spots=(100, 120), **columns):
    return pd.DataFrame({"fold": ["a", "b"], "n_spots": n_spots, "inner_unit": "patient"} | columns)


WHOLE = fits(epochs=60, best_epoch=4)


@pytest.mark.parametrize(("arms", "said"), [
    (fits(epochs=15, best_epoch=[4, 15]), []),                       # chosen before the end in half
    (fits(epochs=60, best_epoch=60), []),                            # as long as published
    (fits(epochs=5, best_epoch=5), ["the last of 5 epochs was the best in 2 of 2 trainings"]),
    (fits(epochs=10, best_epoch=10, inner_unit="none"),
     ["10 of 60 epochs, and nobody held out to choose one"]),
    (fits((50, 60), epochs=15, best_epoch=3), ["learned from 50% of the training spots"]),
    (fits(epochs=15, best_epoch=3, n_trained=[80, 96], n_validation=[20, 24]), []),
    (fits(epochs=15, best_epoch=3, n_trained=[16, 20], n_validation=[4, 4]),
     ["learned from 20% of the training spots"])])
def test_spots_and_epochs_are_what_a_claim_takes_for_granted(arms, said):
    assert preconditions.unmet(arms, WHOLE, 60) == said


def test_each_stage_is_judged():
    arms = fits(epochs_stage1=50, best_epoch_stage1=50, epochs_stage2=9, best_epoch_stage2=9)
    assert preconditions.unmet(arms, WHOLE, 50) == [
        "the last of 9 epochs was the best in 2 of 2 trainings"]


def test_an_arm_without_a_stage_has_no_epochs_of_it():
    arms = pd.concat([fits(epochs_stage1=9, best_epoch_stage1=3, epochs_stage2=0,
                           best_epoch_stage2=0)] * 3
                     + [fits(epochs_stage1=9, best_epoch_stage1=3, epochs_stage2=7,
                             best_epoch_stage2=1)])
    assert preconditions.unmet(arms, WHOLE, 50) == []
    assert preconditions.unmet(arms[arms["epochs_stage2"] == 0], WHOLE, 50) == []


def test_a_claim_whose_preconditions_are_not_met_has_no_other_verdict():
    units = pd.DataFrame({"a": [0.5, 0.6, 0.55, 0.52], "b": [0.1, 0.21, 0.14, 0.13]})
    row = statistics.judge(units, "a beats b", "a", "b")
    assert row["verdict"] == AS_CLAIMED
    assert preconditions.void([row], []) == [row]
    [void] = preconditions.void([row], ["half of the spots", "one epoch"])
    assert (void["verdict"], void["why"]) == (NOT_MET, "half of the spots; one epoch")
    assert np.isclose(void["difference"], row["difference"])
