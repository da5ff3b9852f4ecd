"""Assignment of sections to folds."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError
from mvhlib.cohort.splits.guards import COLUMNS, at_least_two, check_manifest

log = logging.getLogger(__name__)

#: Between what a fold of ``transfer`` or ``within`` is trained on and what it tests.
ARROW = "->"


def with_images(manifest: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Rows of the sections that have an image."""
    missing = [column for column in ("section", "study", "patient", "specimen")
               if column not in manifest.columns]
    if missing:
        raise InputError("manifest.csv", "columns", f"lacks {missing}", "run 01_cohort again")
    check_manifest(manifest)
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


def leave_one_out(table: pd.DataFrame, unit: str) -> list[tuple[str, str, str]]:
    units = sorted(table[unit].astype(str).unique())
    if len(units) < 2:
        raise InputError("manifest.csv", unit, f"only {units} has images",
                         f"leave this protocol out or add a second {unit}")
    owner = table[unit].astype(str)
    return [(name, section, "test" if of == name else "train") for name in units
            for section, of in zip(table["section"], owner, strict=True)]


def without_shared(rows: list[tuple[str, str, str]],
                   table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Drop from each fold the training sections of its test patients."""
    patient = table.set_index("section")["patient"].astype(str)
    tested: dict[str, set[str]] = {}
    for fold, section, role in rows:
        if role == "test":
            tested.setdefault(fold, set()).add(patient[section])
    kept = [(fold, section, role) for fold, section, role in rows
            if role == "test" or patient[section] not in tested[fold]]
    if len(kept) < len(rows):
        log.warning("protocol loso: %d times a training section is left out, as its patient is in "
                    "the tested study as well", len(rows) - len(kept))
    return kept


def as_given(given: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Rows of a frame of folds, in its order."""
    missing = [column for column in COLUMNS if column not in given.columns]
    if missing:
        raise InputError("folds", "given", f"lacks {missing}", f"give the columns {list(COLUMNS)}")
    return [(str(fold), str(section), role)
            for fold, section, role in given[list(COLUMNS)].itertuples(index=False)]


def grouped(table: pd.DataFrame,
            groups: tuple[tuple[str, ...], ...]) -> list[tuple[str, str, str]]:
    """Test each group once, with all the others for training."""
    missing = [name for group in groups for name in group if name not in set(table["section"])]
    if missing:
        raise InputError("manifest.csv", "section", f"{missing} of the protocol are not in this "
                         "cohort", "read them as well (include: bench), or leave this protocol out")
    return [(str(fold), name, "test" if group is tested else "train")
            for fold, tested in enumerate(groups) for group in groups for name in group]


def within_patients(table: pd.DataFrame) -> list[tuple[str, str, str]]:
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


def directed_pairs(member: pd.Series, pairs: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return the pairs of groups to run; all ordered pairs where none is named."""
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
            raise InputError("folds", "pairs", f"{list(pair)} is not a pair of two groups",
                             f"write [trained on, tested on], of {member.attrs['known']}")
        absent = [name for name in (a, b) if name not in present]
        if absent:
            log.warning("protocol transfer: there is no section of %s, so %s%s%s is left out",
                        absent, a, ARROW, b)
        elif (a, b) not in kept:
            kept.append((a, b))
    if not kept:
        raise InputError("folds", "pairs", f"none of {len(pairs)} has both its groups, there are "
                         f"{present}", "add the sections, or name other pairs")
    return kept


def between_groups(table: pd.DataFrame, member: pd.Series, directed: list[tuple[str, str]]):
    """Folds of ``transfer``: all of one group train, all of another one are tested."""
    rows, measured_in = [], {}
    for a, b in directed:
        fold = f"{a}{ARROW}{b}"
        own = [(fold, name, "train" if member[name] == a else "test") for name in table["section"]
               if member[name] in (a, b)]
        rows += own
        measured_in[fold] = [name for _, name, _ in own]
    return rows, measured_in


def inside_groups(table: pd.DataFrame, member: pd.Series, directed: list[tuple[str, str]]):
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


def random_specimens(table: pd.DataFrame, seed: int, n_folds: int) -> list[tuple[str, str, str]]:
    sizes = table.groupby(table["specimen"].astype(str), sort=True).size()
    if len(sizes) < 2:
        raise InputError("manifest.csv", "specimen", f"only {list(sizes.index)} has images",
                         "leave this protocol out or add a second specimen")
    n_folds = at_least_two(n_folds)
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
