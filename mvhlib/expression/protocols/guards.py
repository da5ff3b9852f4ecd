"""Guards against leaks: units that folds keep apart, units that encoders must not have seen."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.expression.protocols.records import INNER_UNITS, check_choice

#: What no fold of a protocol may have on both sides, whoever made the folds.
APART = {"loso": ("study", "patient"), "patient": ("patient",), "hest_bench": ("patient",),
         "mvhybrid_bench": ("patient",), "transfer": ("study", "patient"), "within": ("patient",)}


def checked_plan(folds: pd.DataFrame, protocol: str,
                 by_spot: bool) -> dict[Hashable, tuple[list[str], list[str]]]:
    """Return each fold's training and test sections, checked."""
    missing = [name for name in ("fold", "section", "role") if name not in folds.columns]
    if missing:
        raise InputError("folds", "columns", f"lack {missing}", "use fold, section, role")
    strange = sorted(set(folds["role"]) - ({"both"} if by_spot else {"train", "test"}))
    if strange or len(folds) == 0:
        raise InputError("folds", "role", f"is {strange or 'given for no fold'} under {protocol}",
                         "make the folds with mvhlib.cohort.splits.make for this protocol")
    plan = {}
    for fold, frame in folds.groupby("fold", sort=False):
        train, test = (list(dict.fromkeys(frame.loc[frame["role"].isin((side, "both")), "section"]))
                       for side in ("train", "test"))
        if not train or not test:
            side = "training" if not train else "test"
            raise InputError("folds", f"fold {fold}", f"has no {side} section (one "
                             f"{INNER_UNITS.get(protocol, 'group')} cannot be left out and learned "
                             "from)", "give at least two groups, or choose another protocol")
        both = sorted(set(train) & set(test))
        if both and not by_spot:
            raise InputError("folds", f"fold {fold}", f"has {both[:3]} on both sides",
                             "keep a section on one side")
        plan[fold] = (train, test)
    if by_spot and len(plan) < 2:
        raise InputError("folds", "fold", "is only one, and spot-level protocols need two or more",
                         "give every spot-level fold its own name")
    tests = [name for _, test in plan.values() for name in test]
    twice = sorted({name for name in tests if tests.count(name) > 1})
    if twice and not by_spot and protocol != "transfer":
        raise InputError("folds", "section", f"{twice[:3]} are tested in more than one fold",
                         "test each section once")
    return plan


def check_members(used: set[str], members: Mapping[str, Any], features: Mapping[str, Any],
                  plan: Mapping[Hashable, tuple[list[str], list[str]]], protocol: str) -> None:
    for what, known in (("sections", members), ("features", features)):
        missing = sorted(used - set(known))
        if missing:
            raise InputError("folds", what, f"{missing[:3]} of the folds are not among the {what}",
                             "make the folds from sections that have features")
    for level in APART.get(protocol, ()):
        groups = {getattr(section, level) for section in members.values()}
        if len(groups) < 2:
            raise InputError("folds", level, f"is only {sorted(groups)}, and {protocol} needs "
                             "two", "add another one, or choose another protocol")
        for fold, (train, test) in plan.items():
            both = {getattr(members[n], level) for n in train} & {getattr(members[n], level)
                                                                 for n in test}
            if both:
                raise InputError("folds", f"fold {fold}", f"has {level} {sorted(both)} on both "
                                 "sides", f"leave out whole {level}s")


def unseen_units(protocol: str, *, sections: Iterable[str], patients: Iterable[str],
                 studies: Iterable[str]) -> dict[str, Iterable[str]]:
    """Return the units that an encoder must not have seen under this protocol.

    Under ``section`` it is the sections: patient and study are shared by design, as `NOTES` says.
    Under every other protocol it is the patients and studies as well.
    """
    return {"sections": sections} if protocol == "section" else {
        "sections": sections, "patients": patients, "studies": studies}


def overlap(pretrained_on: Mapping[str, Iterable[str]], **tested: Iterable[str]) -> list[str]:
    """Name the tested units that an encoder was pretrained on; empty where there are none.

    Parameters
    ----------
    pretrained_on
        Sections, patients and studies.
    tested
        From `unseen_units`.
    """
    found = []
    for level, names in tested.items():
        shared = {str(name) for name in names} & {str(n) for n in pretrained_on.get(level, ())}
        found += [f"{level} {sorted(shared)[:3]}"] if shared else []
    return found


def check_overlap(pretrained_on: Mapping[str, Iterable[str]] | None, *,
                  sections: Iterable[str] = (), patients: Iterable[str] = (),
                  studies: Iterable[str] = (), claim: str = "no", encoder: str = "encoder") -> None:
    """Refuse a row that says ``encoder_saw_test_images = no`` when the encoder did.

    Parameters
    ----------
    pretrained_on
        What the encoder's ``config.json`` lists under ``sections``, ``patients``, ``studies``;
        None where nothing is listed (hand-made or random encoders).
    sections, patients, studies
        Of the test sections.
    claim
        ``"no"``, ``"yes"`` or ``"unknown"``.
    encoder
        Named in the error.

    Raises
    ------
    InputError
        On an unknown claim, or ``"no"`` with a shared section, patient or study.
    """
    check_choice("encoder_saw_test_images", claim, ("no", "yes", "unknown"))
    if claim != "no" or not pretrained_on:
        return
    shared = overlap(pretrained_on, sections=sections, patients=patients, studies=studies)
    if shared:
        raise InputError(encoder, "encoder_saw_test_images", f"is 'no', but it was pretrained on "
                         f"{shared[0]} of the test folds", "say 'yes', or pretrain on other tissue")
