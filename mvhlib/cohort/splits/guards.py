"""Guards of folds against leaks, and the folds' sizes."""

import pandas as pd

from mvhlib.artifacts import InputError

COLUMNS = ("fold", "section", "role")
ROLES = ("train", "test", "both")


def sizes(folds: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Sizes of the folds, one row each.

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
    check_manifest(manifest)
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
                raise InputError("folds", level, f"{both[:3]} are on both sides of fold {fold}",
                                 f"put all sections of one {level} on one side")


def check_manifest(manifest: pd.DataFrame) -> None:
    """Refuse names that stand twice and specimens of two studies or two patients."""
    for column in ("section", "study", "patient", "specimen"):
        if (manifest[column].isna() | (manifest[column].astype(str).str.strip() == "")).any():
            raise InputError("manifest.csv", column, "is empty in a row",
                             "fill it in: folds cannot keep apart what has no name")
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
            raise InputError("manifest.csv", "specimen", f"{specimen} is in more than one "
                             f"{column}: {of}", "it is a duplicate: keep one of them, or give "
                             f"both the same {column}")


def at_least_two(n_folds: int) -> int:
    if n_folds < 2:
        raise InputError("folds", "n_folds", f"is {n_folds}", "use two folds or more")
    return int(n_folds)
