"""Plan of an evaluation: encoders, protocols, and which training of an encoder serves a fold."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from mvhlib.cohort import splits
from mvhlib.expression import protocols

if TYPE_CHECKING:
    from mvhlib.features import Features

#: What was not run, and why; also of ``expression/left_out.csv``.
LEFT_OUT_COLUMNS = ["protocol", "encoder", "left_out"]

#: An encoder's resolution may miss the coarsest image's by this factor and still count as matched.
MPP_SLACK = 1.05


@dataclass(frozen=True)
class Job:
    """One encoder under one protocol."""

    protocol: str
    encoder: str
    folds: pd.DataFrame = field(repr=False, compare=False)


def resolution(features: "Mapping[str, Features]") -> float | None:
    """Resolution that every section was reduced to before it was embedded [um/px].

    The coarser of the tiles' own scale and the encoder's working resolution, where all sections
    agree on it but for rounding (HEST cuts whole pixels); None where they do not, or it is not
    stated.
    """
    reduced = []
    for each in features.values():
        stated = [each.attrs.get(name) for name in ("mpp", "working_mpp")]
        reduced.append(max((float(value) for value in stated if value), default=0.0))
    alike = bool(reduced) and 0 < max(reduced) <= min(reduced) * MPP_SLACK
    return min(reduced) if alike else None


def method_of(protocol: str, method: "str | protocols.Estimator"
              ) -> "tuple[str | protocols.Estimator, str | None]":
    """Method and normalisation of a protocol: benchmarks have a regression of their own.

    An estimator keeps its place there, since a benchmark's folds and genes are what it is asked
    to be compared on.

    Returns
    -------
    tuple
        The method, and the normalisation that it demands (None: free).
    """
    if protocol in protocols.BENCHMARKS and isinstance(method, str):
        return "hest_ridge", "log1p"
    return method, None


@dataclass(frozen=True)
class Member:
    """One training of an encoder that was pretrained several times, each time without one section.

    Attributes
    ----------
    features
        Section -> `Features`.
    pretrained_on
        ``{"sections": ..., "patients": ..., "studies": ...}``.
    """

    features: "Mapping[str, Features]" = field(repr=False)
    pretrained_on: Mapping[str, Iterable[str]]


def assign(members: Mapping[str, Member], folds: pd.DataFrame, protocol: str,
           manifest: pd.DataFrame) -> tuple[dict[Hashable, str], str]:
    """Choose for every fold the first member that was not pretrained on what the fold tests.

    What counts as seen is said by `protocols.unseen_units`.

    Parameters
    ----------
    manifest
        Columns section, patient, study.

    Returns
    -------
    tuple
        Fold -> member; and "", or why there is none for a fold.
    """
    owners = manifest.astype({"section": str}).set_index("section")[["patient", "study"]]
    chosen = {}
    for fold, part in folds.groupby("fold", sort=False):
        names = part.loc[part["role"] != "train", "section"].astype(str)
        tested = protocols.unseen_units(protocol, sections=names, patients=owners.loc[
            names, "patient"], studies=owners.loc[names, "study"])
        seen = {name: protocols.overlap(member.pretrained_on, **tested)
                for name, member in members.items()}
        clean = [name for name, shared in seen.items() if not shared]
        if not clean:
            return {}, (f"fold {fold}: each of its {len(members)} trainings saw "
                        f"{next(iter(seen.values()))[0]}")
        chosen[fold] = clean[0]
    return chosen, ""


def jobs(manifest: pd.DataFrame, wanted: Sequence[str], encoders: Mapping[str, float | None],
         seed: int = 0, *, members: Mapping[str, Mapping[str, Member]] | None = None,
         **fold_options) -> tuple[list[Job], pd.DataFrame]:
    """Plan which encoders are compared under which protocols.

    Parameters
    ----------
    manifest
        The cohort's; see `mvhlib.cohort.splits.make`.
    wanted
        Protocols.
    encoders
        Slug -> resolution that every section is reduced to [um/px] (see `resolution`), or None
        where tiles are taken as they are.
    seed
        Of the random protocols.
    members
        Encoders that were pretrained several times: slug -> `Member` by name.
    fold_options
        Further options of `mvhlib.cohort.splits.make`: ``given``, ``shared_donors``, ``groups``,
        ``pairs``.

    Returns
    -------
    list of Job, DataFrame
        What to run; and ``protocol, encoder, left_out`` for what is not run, with the reason: a
        cohort too small for the protocol, images of unlike resolution and an encoder that would see
        the difference, or a fold whose test sections each of an encoder's trainings saw.
    """
    planned, reasons = [], []
    for protocol in wanted:
        why = splits.possible(manifest, [protocol], seed=seed, **fold_options)[protocol]
        if why:
            reasons.append({"protocol": protocol, "encoder": "all", "left_out": why})
            continue
        folds = splits.make(manifest, protocol, seed=seed, **fold_options)
        used = manifest[manifest["section"].isin(folds["section"])]
        common = splits.match_resolution(used)
        for encoder, mpp in encoders.items():
            if common.mpp is not None and (mpp or 0) * MPP_SLACK < common.mpp:
                reasons.append({"protocol": protocol, "encoder": encoder, "left_out":
                                f"{common.message}; this encoder does not reduce them"})
                continue
            _, why = assign(members[encoder], folds, protocol, manifest) if encoder in (
                members or {}) else ({}, "")
            if why:
                reasons.append({"protocol": protocol, "encoder": encoder, "left_out": why})
            else:
                planned.append(Job(protocol, encoder, folds))
    return planned, pd.DataFrame(reasons, columns=LEFT_OUT_COLUMNS)


def fewer(job: Job, n_folds: int = 0, manifest: pd.DataFrame | None = None,
          per_patient: int = 0) -> Job:
    """Reduce a job to its first folds and to fewer sections, for ablations.

    Parameters
    ----------
    n_folds
        0 keeps all folds.
    manifest
        Columns section and patient; needed where `per_patient` is given.
    per_patient
        Sections of each patient that are kept; 0 keeps all, as protocol ``section`` always does.
    """
    folds = job.folds
    folds = folds[folds["fold"].isin(list(folds["fold"].unique())[:n_folds or None])]
    if per_patient and job.protocol != "section":
        kept = manifest.groupby("patient").head(per_patient)["section"]
        folds = folds[folds["section"].isin(kept)]
    return replace(job, folds=folds)


def first_possible(manifest: pd.DataFrame, wanted: Sequence[str], resolution: Mapping[str, Any],
                   panels: pd.DataFrame, seed: int = 0) -> tuple[str, list[Job], pd.DataFrame]:
    """Return the first protocol that the cohort allows and that has gene panels from 01.

    Returns
    -------
    tuple
        Protocol ("" where there is none), its jobs, and what is left out of those tried (see
        `jobs`).
    """
    reasons = []
    for protocol in dict.fromkeys(wanted):
        planned, left_out = jobs(manifest, [protocol], resolution, seed=seed)
        reasons.append(left_out)
        if planned and (panels["protocol"] == protocol).any():
            return protocol, planned, pd.concat(reasons, ignore_index=True)
    return "", [], pd.concat(reasons, ignore_index=True)


def with_panels(planned: Sequence[Job], panels: pd.DataFrame) -> tuple[list[Job], pd.DataFrame]:
    """Keep jobs whose protocol has gene panels from 01; list the others as `jobs` does."""
    there = set(panels["protocol"])
    lacking = dict.fromkeys(job.protocol for job in planned if job.protocol not in there)
    return [job for job in planned if job.protocol in there], pd.DataFrame(
        [(protocol, "all", f"01_cohort chose no genes for {protocol}; name it in its `protocols`")
         for protocol in lacking], columns=LEFT_OUT_COLUMNS)


def nobody_imaged(manifest: pd.DataFrame) -> str:
    """Say why a cohort without images allows no prediction; "" where a section has an image."""
    imaged = manifest["has_image"].astype(str).str.lower().isin(("true", "1"))
    return "" if imaged.any() else ("No section of this cohort has an image, so that no expression "
                                    "can be predicted from one.")
