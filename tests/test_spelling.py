"""Optional columns with another spelling are refused, never passed over."""

import pytest

from mvhlib.artifacts import InputError
from mvhlib.spelling import refuse_other_spellings

KNOWN = ("mpp", "organ", "time_days")


@pytest.mark.parametrize(("column", "name"), [
    ("MPP", "mpp"), ("Organ", "organ"), ("Time Days", "time_days"), ("time-days", "time_days"),
    ("timeDays", "time_days"), ("time.days", "time_days"), ("m p p", "mpp")])
def test_another_spelling_is_named_with_its_right_one(column, name):
    with pytest.raises(InputError, match=f"slides.csv: {column}: .*Fix: rename it to '{name}'"):
        refuse_other_spellings("slides.csv", ["slide", column], KNOWN)


def test_right_names_and_other_columns_are_left_alone():
    refuse_other_spellings("slides.csv", ["slide", *KNOWN, "mpp2", "organ donor", "Notes", "?"],
                           KNOWN)
    refuse_other_spellings("slides.csv", [], KNOWN)
    refuse_other_spellings("slides.csv", iter(["MPP", "mpp"]), iter(["MPP", "mpp"]))


def test_two_spellings_side_by_side_are_refused():
    with pytest.raises(InputError, match="MPP: stands beside 'mpp'.*Fix: delete one of the two"):
        refuse_other_spellings("slides.csv", ["slide", "mpp", "MPP"], KNOWN)
