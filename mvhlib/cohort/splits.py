"""Folds that know studies, patients and duplicate specimens.

A protocol says who may stand on which side. Its unit is what no fold may separate; `check` refuses
a fold that does, and `make` calls it before it returns.

=================  ==========================================  ===========  =====================
protocol           test of a fold                              unit         fold id
=================  ==========================================  ===========  =====================
loso               one study                                   patient      study
patient            one patient                                 patient      patient
section            one section, trained on the patient's other section      patient.section
random10_section   a tenth of the specimens, studies mixed     specimen     00, 01, ...
random10_spot      a tenth of the spots of every section       spot         00, 01, ...
hest_bench         as its task says, else one patient          patient      0, 1, ... or patient
mvhybrid_bench     four groups of HEST's COAD and READ tasks   patient      0, 1, 2, 3
transfer           one group, trained on another one alone     study        trained->tested
within             one patient, trained on the group's others  patient      group->patient
=================  ==========================================  ===========  =====================

``section`` is a replicate test within a patient and allows no inference to patients.
``random10_section`` has patients on both sides where a patient gave several specimens.
``random10_spot`` has neighbouring spots on both sides: it is there to show how much that leaks.
Its sections have the role ``both``; `spot_folds` says which spots are tested in which fold.

``transfer`` and ``within`` are the two halves of one question: what does a model that learned on
one organ, data set or study know of another (the cells of a matrix), and what does one that learned
there (its diagonal)? A group is whatever `group_of` makes of a section. A group may be tested by
several others, so ``transfer`` tests its sections more than once.

``hest_bench`` and ``mvhybrid_bench`` are other authors' protocols; what is particular about them
beside the folds is in `mvhlib.expression.evaluation`.

Sections without an image cannot be predicted and are left out, which the log says.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError
from mvhlib.places import resolve

log = logging.getLogger(__name__)

#: What no fold of a protocol may separate.
UNITS = {"loso": "patient", "patient": "patient", "section": "section",
         "random10_section": "specimen", "random10_spot": "spot", "hest_bench": "patient",
         "mvhybrid_bench": "patient", "transfer": "study", "within": "patient"}
PROTOCOLS = tuple(UNITS)
#: What a protocol lets through, to be printed beside its numbers.
LEAKS = {"section": "replicate test: sections of one patient on both sides",
         "random10_section": "studies, and patients with several specimens, on both sides",
         "random10_spot": "neighbouring spots of one section on both sides"}
#: Test sections of the folds of ``mvhybrid_bench``: the eight pairs of HEST-Benchmark's COAD and
#: READ tasks, merged, in the groups that HEST's issue 87 asks for. The first group is called a
#: patient there and is three people.
MVHYBRID_GROUPS = (("TENX147", "TENX148", "TENX149"), ("TENX111",), ("ZEN36", "ZEN40"),
                   ("ZEN48", "ZEN49"))
COLUMNS = ("fold", "section", "role")
ROLES = ("train", "test", "both")
#: Between what a fold of ``transfer`` or ``within`` is trained on and what it tests.
ARROW = "->"
#: Scales whose ratio is below this are comparable; above it images are matched in resolution.
MPP_TOLERANCE = 1.25


@dataclass(frozen=True)
class Resolution:
    """Whether the sections of a protocol can be compared at the scale that they come in.

    Attributes
    ----------
    status
        ``comparable``, or ``matched``: read all images at `mpp`.
    mpp
        Scale to read all images at [µm/px]; the coarsest one. None where the scales are
        comparable or not known.
    message
        One sentence for the log and the figure.
    """

    status: str
    mpp: float | None
    message: str


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
    table = _imaged(manifest, protocol)
    measured_in: dict[str, list[str]] | None = None
    if protocol == "loso":
        rows = _leave_one_out(table, "study")
        if shared_donors == "leave_out":
            rows = _without_shared(rows, table)
    elif protocol == "hest_bench" and given is not None:
        rows = _as_given(given)
    elif protocol == "mvhybrid_bench":
        rows = _grouped(table, MVHYBRID_GROUPS)
    elif protocol in ("patient", "hest_bench"):
        rows = _leave_one_out(table, "patient")
    elif protocol == "section":
        rows = _within_patients(table)
    elif protocol in ("transfer", "within"):
        member = group_of(table, groups)
        directed = _directed(member, pairs)
        make_rows = _between_groups if protocol == "transfer" else _inside_groups
        rows, measured_in = make_rows(table, member, directed)
    elif protocol == "random10_section":
        rows = _random_specimens(table, seed, n_folds)
    else:
        rows = [(f"{fold:02d}", name, "both") for fold in range(_at_least_two(n_folds))
                for name in table["section"]]
    folds = pd.DataFrame(rows, columns=list(COLUMNS))
    resolution = _worst_resolution(folds, table, mpp_tolerance)
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
        raise InputError("folds", "groups", f"{groups!r} is no column of the manifest and no csv",
                         f"use one of {list(manifest.columns)} or a csv with section and group")
    bare = [name for name in names if name not in table or pd.isna(table[name])]
    if bare:
        raise InputError(where, "group", f"of {bare[:3]} is not stated", "give each section one")
    known = sorted({str(group) for group in table.values() if not pd.isna(group)})
    if any(ARROW in group for group in known):
        raise InputError(where, "group", f"holds {ARROW!r}", "choose another name")
    found = pd.Series([str(table[name]) for name in names], index=names)
    found.attrs["known"] = known
    return found


def possible(manifest: pd.DataFrame, protocols=PROTOCOLS, **options) -> dict[str, str]:
    """Which protocols the cohort allows: protocol -> "" or the reason why not."""
    reasons = {}
    for protocol in protocols:
        try:
            make(manifest, protocol, **options)
            reasons[protocol] = ""
        except InputError as error:
            reasons[protocol] = str(error)
            log.warning("protocol %s is left out: %s", protocol, error)
    return reasons


def sizes(folds: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """How large the folds are, one row each.

    Returns
    -------
    DataFrame
        Columns fold, then for training and test: sections, patients, studies, and spots where the
        manifest counts them.
    """
    who = manifest.set_index("section")
    rows = []
    for fold, part in folds.groupby("fold", sort=False):
        row: dict[str, object] = {"fold": fold}
        for side in ("train", "test"):
            own = who.loc[part.loc[part["role"].isin((side, "both")), "section"]]
            row |= {f"{side}_sections": len(own), f"{side}_patients": own["patient"].nunique(),
                    f"{side}_studies": own["study"].nunique()}
            if "n_spots" in who.columns:
                row[f"{side}_spots"] = int(own["n_spots"].astype(int).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def match_resolution(manifest: pd.DataFrame, tolerance: float = MPP_TOLERANCE) -> Resolution:
    """Compare the scales of all sections that have one."""
    if "mpp" not in manifest.columns or manifest["mpp"].isna().all():
        return Resolution("comparable", None, "no scale is known, so none is compared")
    scales = manifest.dropna(subset=["mpp"])
    odd = ~(np.isfinite(scales["mpp"]) & (scales["mpp"] > 0))
    if odd.any():
        raise InputError("manifest.csv", "mpp", f"is {scales['mpp'][odd].iloc[0]} for section "
                         f"{scales['section'][odd].iloc[0]}", "state a scale above 0 [um/px], or "
                         "leave it blank")
    finest, coarsest = float(scales["mpp"].min()), float(scales["mpp"].max())
    span = f"{finest:.3g} to {coarsest:.3g} um/px"
    if coarsest <= finest * tolerance:
        return Resolution("comparable", None, f"scales are comparable ({span})")
    who = sorted(scales.loc[scales["mpp"] > finest * tolerance, "patient"].unique())
    return Resolution("matched", coarsest, f"scales differ ({span}; coarse: patient "
                      f"{', '.join(map(str, who))}), all images are reduced to "
                      f"{coarsest:.3g} um/px")


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
    return rng.permutation(np.arange(n_spots) % _at_least_two(n_folds))


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


def check(folds: pd.DataFrame, manifest: pd.DataFrame, unit: str = "patient") -> None:
    """Refuse folds that separate what belongs together.

    Parameters
    ----------
    folds
        Columns fold, section, role.
    manifest
        One row per section: section, study, patient, specimen.
    unit
        What must stand on one side: ``study``, ``patient`` (each with all that it holds),
        ``specimen``, ``section``, or ``spot`` (nothing; roles are ``both``).

    Raises
    ------
    InputError
        If a fold has one unit on both sides, lacks a side or names an unknown section, or if a
        specimen stands in two studies or is said to be of two patients.
    """
    for where, frame, columns in (("folds", folds, COLUMNS), ("manifest", manifest,
                                  ("section", "study", "patient", "specimen"))):
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise InputError(where, "columns", f"lacks {missing}", "add the columns")
    levels = {"study": ["study", "patient", "specimen"], "patient": ["patient", "specimen"],
              "specimen": ["specimen"], "section": [], "spot": []}
    if unit not in levels:
        raise InputError("folds", "unit", f"{unit!r} is not among {list(levels)}",
                         "use one of these")
    _check_manifest(manifest)
    bad = sorted(set(folds["role"]) - set(ROLES))
    if bad:
        raise InputError("folds", "role", f"is {bad}", f"use {list(ROLES)}")
    who = manifest.set_index("section")
    unknown = sorted(set(folds["section"]) - set(who.index))
    if unknown:
        raise InputError("folds", "section", f"{unknown[:3]} are not in the manifest",
                         "make the folds of this manifest")
    if len(folds) == 0:
        raise InputError("folds", "fold", "there is none", "make folds of at least two units")
    for fold, rows in folds.groupby("fold", sort=False):
        if unit == "spot":
            if set(rows["role"]) != {"both"}:
                raise InputError("folds", "role", f"fold {fold} splits sections by spots",
                                 "give every section the role both")
            continue
        train = rows.loc[rows["role"] == "train", "section"]
        test = rows.loc[rows["role"] == "test", "section"]
        if (rows["role"] == "both").any():
            raise InputError("folds", "role", f"fold {fold} has sections on both sides",
                             "use train and test; both is for random10_spot")
        for side, names in (("train", train), ("test", test)):
            if len(names) == 0:
                raise InputError("folds", "role", f"fold {fold} has no {side} section",
                                 "leave the fold out or add sections")
        for level in ["section", *levels[unit]]:
            sides = [set(names if level == "section" else who.loc[names, level])
                     for names in (train, test)]
            both = sorted(sides[0] & sides[1])
            if both:
                raise InputError("folds", level, f"{both[:3]} on both sides of fold {fold}",
                                 f"put all sections of one {level} on one side")


def _worst_resolution(folds: pd.DataFrame, table: pd.DataFrame, tolerance: float) -> Resolution:
    """The resolution that all folds can share: that of the fold with the coarsest mismatch."""
    found = [match_resolution(table[table["section"].isin(rows["section"])], tolerance)
             for _, rows in folds.groupby("fold", sort=False)]
    matched = [resolution for resolution in found if resolution.status == "matched"]
    return max(matched, key=lambda resolution: resolution.mpp) if matched else found[0]


def _imaged(manifest: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Rows of the sections that have an image."""
    missing = [column for column in ("section", "study", "patient", "specimen")
               if column not in manifest.columns]
    if missing:
        raise InputError("manifest.csv", "columns", f"lacks {missing}", "make it by 01_cohort")
    _check_manifest(manifest)
    table = manifest
    if "has_image" in manifest.columns:
        said = manifest["has_image"].astype(str).str.lower()
        odd = ~said.isin(("true", "1", "false", "0"))
        if odd.any():
            raise InputError("manifest.csv", "has_image", f"is {said[odd].iloc[0]!r} for section "
                             f"{manifest['section'][odd].iloc[0]}", "write True or False")
        table = manifest[said.isin(("true", "1"))]
        if len(table) < len(manifest):
            log.info("protocol %s: %d of %d sections have no image and are left out", protocol,
                     len(manifest) - len(table), len(manifest))
    if len(table) == 0:
        raise InputError("manifest.csv", "has_image", "no section has an image",
                         "give the data directory with the images")
    return table.reset_index(drop=True)


def _check_manifest(manifest: pd.DataFrame) -> None:
    """Refuse names that stand twice and specimens of two studies or two patients."""
    for column in ("section", "study", "patient", "specimen"):
        if (manifest[column].isna() | (manifest[column].astype(str).str.strip() == "")).any():
            raise InputError("manifest.csv", column, "is empty in a row",
                             "name it; what is not known cannot be kept apart")
    if manifest["section"].duplicated().any():
        twice = list(manifest["section"][manifest["section"].duplicated()][:3])
        raise InputError("manifest.csv", "section", f"stands more than once: {twice}",
                         "give every section its own id")
    for column in ("study", "patient"):
        counts = manifest.groupby("specimen")[column].nunique()
        split = counts[counts > 1].index
        if len(split):
            specimen = split[0]
            of = sorted(manifest.loc[manifest["specimen"] == specimen, column].unique(), key=str)
            raise InputError("manifest.csv", "specimen", f"{specimen} stands in more than one "
                             f"{column}: {of}", "it is a duplicate: keep one of them, or give "
                             f"both the same {column}")


def _leave_one_out(table: pd.DataFrame, unit: str) -> list[tuple[str, str, str]]:
    units = sorted(table[unit].astype(str).unique())
    if len(units) < 2:
        raise InputError("manifest.csv", unit, f"only {units} has images",
                         f"leave this protocol out or add a second {unit}")
    owner = table[unit].astype(str)
    return [(name, section, "test" if of == name else "train") for name in units
            for section, of in zip(table["section"], owner, strict=True)]


def _without_shared(rows: list[tuple[str, str, str]],
                    table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Folds less the training sections of patients who stand in the fold's test side as well."""
    patient = table.set_index("section")["patient"].astype(str)
    tested: dict[str, set[str]] = {}
    for fold, section, role in rows:
        if role == "test":
            tested.setdefault(fold, set()).add(patient[section])
    kept = [(fold, section, role) for fold, section, role in rows
            if role == "test" or patient[section] not in tested[fold]]
    if len(kept) < len(rows):
        log.warning("protocol loso: %d times a training section is left out, its patient is in the "
                    "tested study as well", len(rows) - len(kept))
    return kept


def _as_given(given: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Rows of a frame of folds, in its order."""
    missing = [column for column in COLUMNS if column not in given.columns]
    if missing:
        raise InputError("folds", "given", f"lacks {missing}", f"give the columns {list(COLUMNS)}")
    return [(str(fold), str(section), role)
            for fold, section, role in given[list(COLUMNS)].itertuples(index=False)]


def _grouped(table: pd.DataFrame,
             groups: tuple[tuple[str, ...], ...]) -> list[tuple[str, str, str]]:
    """Each group is tested once, and all the others train."""
    missing = [name for group in groups for name in group if name not in set(table["section"])]
    if missing:
        raise InputError("manifest.csv", "section", f"{missing} of the protocol are not there",
                         "read them as well (include: bench), or leave this protocol out")
    return [(str(fold), name, "test" if group is tested else "train")
            for fold, tested in enumerate(groups) for group in groups for name in group]


def _within_patients(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    rows = []
    for patient, own in table.groupby(table["patient"].astype(str), sort=True):
        if len(own) < 2:
            log.info("protocol section: patient %s has one imaged section and is left out", patient)
            continue
        rows += [(f"{patient}.{held}", section, "test" if section == held else "train")
                 for held in own["section"] for section in own["section"]]
    if not rows:
        raise InputError("manifest.csv", "patient", "none has two imaged sections",
                         "leave this protocol out")
    return rows


def _directed(member: pd.Series, pairs: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The pairs of groups to run; each on each where none is named."""
    present = sorted(member.unique())
    if len(present) < 2:
        raise InputError("folds", "groups", f"only {present} has images",
                         "add a second group, or leave this protocol out")
    if not pairs:
        return [(a, b) for a in present for b in present if a != b]
    kept = []
    for pair in pairs:
        a, b = (str(name) for name in pair) if len(pair) == 2 else ("", "")
        unknown = [name for name in (a, b) if name not in member.attrs["known"]]
        if unknown or a == b:
            raise InputError("folds", "pairs", f"{list(pair)} is no pair of two groups",
                             f"write [trained on, tested on], of {member.attrs['known']}")
        absent = [name for name in (a, b) if name not in present]
        if absent:
            log.warning("protocol transfer: no section of %s is there, %s%s%s is left out", absent,
                        a, ARROW, b)
        elif (a, b) not in kept:
            kept.append((a, b))
    if not kept:
        raise InputError("folds", "pairs", f"none of {len(pairs)} has both its groups, there are "
                         f"{present}", "add the sections, or name other pairs")
    return kept


def _between_groups(table: pd.DataFrame, member: pd.Series, directed: list[tuple[str, str]]):
    """Folds of ``transfer``: all of one group train, all of another one are tested."""
    rows, measured_in = [], {}
    for a, b in directed:
        fold = f"{a}{ARROW}{b}"
        own = [(fold, name, "train" if member[name] == a else "test") for name in table["section"]
               if member[name] in (a, b)]
        rows += own
        measured_in[fold] = [name for _, name, _ in own]
    return rows, measured_in


def _inside_groups(table: pd.DataFrame, member: pd.Series, directed: list[tuple[str, str]]):
    """Folds of ``within``: one patient of a group is tested, the group's others train."""
    patient = table.set_index("section")["patient"].astype(str)
    rows, measured_in = [], {}
    for group in dict.fromkeys(b for _, b in directed):
        beside = {a for a, b in directed if b == group} | {group}
        own = [name for name in table["section"] if member[name] == group]
        patients = sorted(patient[own].unique())
        if len(patients) < 2:
            log.warning("protocol within: %s has one patient and is left out", group)
            continue
        for held in patients:
            fold = f"{group}{ARROW}{held}"
            rows += [(fold, name, "test" if patient[name] == held else "train") for name in own]
            measured_in[fold] = [name for name in table["section"] if member[name] in beside]
    if not rows:
        raise InputError("manifest.csv", "patient", "no group has two patients",
                         "leave this protocol out")
    return rows, measured_in


def _random_specimens(table: pd.DataFrame, seed: int, n_folds: int) -> list[tuple[str, str, str]]:
    sizes = table.groupby(table["specimen"].astype(str), sort=True).size()
    if len(sizes) < 2:
        raise InputError("manifest.csv", "specimen", f"only {list(sizes.index)} has images",
                         "leave this protocol out or add a second specimen")
    n_folds = _at_least_two(n_folds)
    if n_folds > len(sizes):
        log.warning("protocol random10_section: %d specimens make %d folds, not %d", len(sizes),
                    len(sizes), n_folds)
        n_folds = len(sizes)
    rng = np.random.default_rng(seed)
    shuffled = sizes.iloc[rng.permutation(len(sizes))]
    # Largest first into the fold that holds least: even folds; equal sizes stay in random order.
    shuffled = shuffled.sort_values(ascending=False, kind="stable")
    load, home = np.zeros(n_folds, int), {}
    for specimen, size in shuffled.items():
        home[specimen] = int(np.argmin(load))
        load[home[specimen]] += size
    fold_of = table["specimen"].astype(str).map(home)
    return [(f"{fold:02d}", section, "test" if of == fold else "train") for fold in range(n_folds)
            for section, of in zip(table["section"], fold_of, strict=True)]


def _at_least_two(n_folds: int) -> int:
    if n_folds < 2:
        raise InputError("folds", "n_folds", f"is {n_folds}", "use two folds or more")
    return int(n_folds)
