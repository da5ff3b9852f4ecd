"""Protocols: which sections train and which are tested in each fold."""

import logging
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError
from mvhlib.cohort.splits.dealing import (
    ARROW,
    as_given,
    between_groups,
    directed_pairs,
    grouped,
    inside_groups,
    leave_one_out,
    random_specimens,
    with_images,
    within_patients,
    without_shared,
)
from mvhlib.cohort.splits.guards import COLUMNS, at_least_two, check
from mvhlib.cohort.splits.resolution import MPP_TOLERANCE, worst_resolution
from mvhlib.places import resolve

log = logging.getLogger(__name__)

#: What no fold of a protocol may separate.
UNITS = {"loso": "patient", "patient": "patient", "section": "section",
         "random10_section": "specimen", "random10_spot": "spot", "hest_bench": "patient",
         "mvhybrid_bench": "patient", "transfer": "study", "within": "patient"}
PROTOCOLS = tuple(UNITS)
#: Known leaks of a protocol, printed beside its numbers.
LEAKS = {"section": "replicate test: sections of one patient on both sides",
         "random10_section": "studies, and patients with several specimens, on both sides",
         "random10_spot": "neighbouring spots of one section on both sides"}
#: Test sections of the folds of ``mvhybrid_bench``: the eight pairs of HEST-Benchmark's COAD and
#: READ tasks, merged, in the groups that HEST's issue 87 asks for. The first group is called a
#: patient there and is three people.
MVHYBRID_GROUPS = (("TENX147", "TENX148", "TENX149"), ("TENX111",), ("ZEN36", "ZEN40"),
                   ("ZEN48", "ZEN49"))


def make(manifest: pd.DataFrame, protocol: str, seed: int = 0, n_folds: int = 10, *,
         mpp_tolerance: float = MPP_TOLERANCE, mismatch: str = "match",
         given: pd.DataFrame | None = None, shared_donors: str = "refuse",
         groups: str | Mapping[str, str] = "study",
         pairs: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Make the folds of a protocol.

    Parameters
    ----------
    manifest
        One row per section: section, study, patient, specimen, and where known has_image, mpp.
    protocol
        One of `PROTOCOLS`.
    seed
        Of the random protocols; the others do not depend on it.
    n_folds
        Of the random protocols; at most the number of specimens.
    mpp_tolerance
        Ratio of scales up to which the sections of a fold are comparable.
    mismatch
        What happens where a fold holds scales further apart: ``match`` the resolution (the
        folds are made, and ``frame.attrs["resolution"]`` says to which scale all their images
        have to be reduced), or ``leave_out`` the protocol (an error, which `possible` reports).
    given
        Folds of ``hest_bench`` as a task states them (`mvhlib.cohort.hest.bench_folds`); None
        leaves one patient out after the other. Other protocols do not look at it.
    shared_donors
        What happens in ``loso`` where a patient gave tissue to two studies: ``refuse``, or
        ``leave_out`` the patient's sections from the training side of the folds that test another
        section of the same patient. The test side stays whole.
    groups, pairs
        Of ``transfer`` and ``within``: what a group is (see `group_of`), and which group is trained
        on to test which other one. None given: each on each. ``within`` makes folds of the groups
        that are tested.

    Returns
    -------
    DataFrame
        Columns fold, section, role, as in ``folds.csv``. ``attrs`` holds protocol, unit, leak,
        resolution (a `Resolution`) and, of ``transfer`` and ``within``, ``measured_in``: fold ->
        sections that a gene must be measured in for the fold to predict it. Those are the fold's
        own and, for ``within``, those of all groups that are tested on this one: otherwise the
        two halves would speak of different genes.

    Raises
    ------
    InputError
        If the protocol is not known, the cohort is too small for it, or someone would stand on
        both sides of a fold.
    """
    if protocol not in UNITS:
        raise InputError("folds", "protocol", f"{protocol!r} is not among {list(PROTOCOLS)}",
                         "use one of these")
    if mismatch not in ("match", "leave_out"):
        raise InputError("folds", "mismatch", f"is {mismatch!r}", "use match or leave_out")
    if shared_donors not in ("refuse", "leave_out"):
        raise InputError("folds", "shared_donors", f"is {shared_donors!r}",
                         "use refuse or leave_out")
    table = with_images(manifest, protocol)
    measured_in: dict[str, list[str]] | None = None
    if protocol == "loso":
        rows = leave_one_out(table, "study")
        if shared_donors == "leave_out":
            rows = without_shared(rows, table)
    elif protocol == "hest_bench" and given is not None:
        rows = as_given(given)
    elif protocol == "mvhybrid_bench":
        rows = grouped(table, MVHYBRID_GROUPS)
    elif protocol in ("patient", "hest_bench"):
        rows = leave_one_out(table, "patient")
    elif protocol == "section":
        rows = within_patients(table)
    elif protocol in ("transfer", "within"):
        member = group_of(table, groups)
        directed = directed_pairs(member, pairs)
        make_rows = between_groups if protocol == "transfer" else inside_groups
        rows, measured_in = make_rows(table, member, directed)
    elif protocol == "random10_section":
        rows = random_specimens(table, seed, n_folds)
    else:
        rows = [(f"{fold:02d}", name, "both") for fold in range(at_least_two(n_folds))
                for name in table["section"]]
    folds = pd.DataFrame(rows, columns=list(COLUMNS))
    resolution = worst_resolution(folds, table, mpp_tolerance)
    if resolution.status == "matched" and mismatch == "leave_out":
        raise InputError("manifest.csv", "mpp", f"protocol {protocol} is left out: "
                         f"{resolution.message}", 'pass mismatch="match"')
    check(folds, table, unit=UNITS[protocol])
    folds.attrs = {"protocol": protocol, "unit": UNITS[protocol],
                   "leak": LEAKS.get(protocol, ""), "resolution": resolution}
    if measured_in is not None:
        folds.attrs["measured_in"] = measured_in
    log.info("protocol %s: %d folds over %d sections; %s", protocol, folds["fold"].nunique(),
             folds["section"].nunique(), resolution.message)
    return folds


def group_of(manifest: pd.DataFrame, groups: str | Mapping[str, str]) -> pd.Series:
    """Group of each section, for ``transfer`` and ``within``.

    Parameters
    ----------
    groups
        A column of the manifest (``study``, ``source``), the path of a csv with the columns section
        and group (relative to the clone, read by `mvhlib.tables.read_table`; every section stands
        once, and it may name sections that are not there), or section -> group.

    Returns
    -------
    Series
        Indexed by section, in the manifest's order. ``attrs["known"]``: names of all groups.

    Raises
    ------
    InputError
        If it is neither a column nor a csv, a section has no group, or a group's name holds the
        arrow of the folds.
    """
    names = manifest["section"].astype(str)
    if not isinstance(groups, str):
        where, table = "groups", {str(name): group for name, group in groups.items()}
    elif groups in manifest.columns:
        where, table = "manifest.csv", dict(zip(names, manifest[groups], strict=True))
    elif groups.endswith(".csv"):
        where = resolve(groups)
        listed = tables.read_table(where, ("section", "group"))
        table = dict(zip(tables.names(listed, "section", where, unique=True),
                         tables.names(listed, "group", where, none=tables.NO_NAME), strict=True))
    else:
        raise InputError("folds", "groups", f"{groups!r} is neither a column of the manifest nor a "
                         "csv", f"use one of {list(manifest.columns)} or a csv with section and "
                         "group")
    bare = [name for name in names if name not in table or pd.isna(table[name])]
    if bare:
        raise InputError(where, "group", f"of {bare[:3]} is not stated",
                         "give each section a group")
    known = sorted({str(group) for group in table.values() if not pd.isna(group)})
    if any(ARROW in group for group in known):
        raise InputError(where, "group", f"holds {ARROW!r}", "choose another name")
    found = pd.Series([str(table[name]) for name in names], index=names)
    found.attrs["known"] = known
    return found


def possible(manifest: pd.DataFrame, protocols=PROTOCOLS, **options) -> dict[str, str]:
    """Check which protocols the cohort allows: protocol -> "", or the reason against it."""
    reasons = {}
    for protocol in protocols:
        try:
            make(manifest, protocol, **options)
            reasons[protocol] = ""
        except InputError as error:
            reasons[protocol] = str(error)
            log.warning("protocol %s is left out: %s", protocol, error)
    return reasons


def spot_folds(n_spots: int, seed: int = 0, n_folds: int = 10, section: str = "") -> np.ndarray:
    """Fold in which each spot of a section is tested, for ``random10_spot``.

    Parameters
    ----------
    n_spots
        Spots of the section.
    section
        Its name, so that sections of one size do not share their folds.

    Returns
    -------
    array
        `(T,)` int, 0 to ``n_folds - 1``, as even as can be; fold k of the frame is
        ``f"{k:02d}"``.
    """
    rng = np.random.default_rng([seed, zlib.crc32(section.encode())])
    return rng.permutation(np.arange(n_spots) % at_least_two(n_folds))


def hold_out(groups, share: float, seed: int) -> np.ndarray:
    """Choose whole groups for inner validation, for example patients of the training sections.

    Parameters
    ----------
    groups
        `(n,)` the group of each row.
    share
        Of the rows; whole groups are taken in random order until it is reached, and at least one
        group stays on either side.

    Returns
    -------
    array
        `(n,)` bool, True where the row's group is held out.

    Raises
    ------
    InputError
        If there is one group only, or `share` is not between 0 and 1.
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if not 0 < share < 1:
        raise InputError("hold_out", "share", f"is {share}", "use a number between 0 and 1")
    if len(names) < 2:
        raise InputError("hold_out", "groups", f"are all {names[0] if len(names) else 'missing'!r}",
                         "give two groups or more, or group by something finer")
    sizes = np.bincount(member)
    order = np.random.default_rng(seed).permutation(len(names))[:-1]
    before = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    return np.isin(member, order[before < share * len(member)])
