"""Sections made of outputs, with what the user says of each: options and the samples table."""

import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import tables
from mvhlib.artifacts import InputError, check_spelling, safe_name
from mvhlib.cohort.base import MPP_RANGE, Cohort, Section, check_inside, check_mpp
from mvhlib.cohort.visium.images import image_ref
from mvhlib.cohort.visium.layouts import first_of
from mvhlib.places import resolve

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)


def number_option(name: str, value: Any, *, above: float | None = None, low: float | None = None,
                  high: float | None = None) -> Any:
    """A numeric option, as it was given; None stays None."""
    if value is None:
        return None
    bounds = ", ".join(f"{word} {bound:g}" for word, bound in
                       (("above", above), ("at least", low), ("at most", high))
                       if bound is not None)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) \
            or not np.isfinite(value) or (above is not None and not value > above) \
            or (low is not None and value < low) or (high is not None and value > high):
        raise InputError("options", name, f"is {value!r}", f"give a number {bounds}")
    return value


def samples_table(samples: str | Path | pd.DataFrame) -> pd.DataFrame:
    """Rows of the samples table as text; a column ``mpp`` as numbers, NaN where it is blank."""
    columns = ("section", "study", "patient")
    if isinstance(samples, pd.DataFrame):
        missing = [column for column in columns if column not in samples.columns]
        if missing:
            raise InputError("samples", "columns", f"lacks {missing}", "add the columns")
        table = samples.astype(object).where(samples.notna(), "").map(
            lambda cell: str(cell).strip()).set_axis(range(1, len(samples) + 1))
        where: str | Path = "samples"
    else:
        where = resolve(samples)
        table = tables.read_table(where, columns)
    for column in columns:
        found = tables.names(table, column, where, unique=column == "section")
        if column != "section":
            check_spelling(found, where, column)
    if "mpp" in table:
        table["mpp"] = tables.numbers(table, "mpp", where, low=MPP_RANGE[0], high=MPP_RANGE[1],
                                      missing=True, unit="µm/px")
    return table


def make_cohort(root: Path, outputs: dict[str, Path], samples, study, patient, image, mpp,
                make: Callable[[str, Path, Path, dict[str, Any]], Section]) -> Cohort:
    """Sections of the outputs, with what the samples table says of each."""
    if mpp is not None:
        check_mpp(mpp, "options")
    if samples is None:
        samples = first_of(root.absolute(), ("samples.csv",))
    if samples is None:
        if len(outputs) > 1 and patient is None:
            raise InputError(root / "samples.csv", "file",
                             f"does not exist, so the patients of {sorted(outputs)} are unknown",
                             "write section,study,patient,specimen for each, or pass patient= "
                             "if they are all of one")
        name = root.absolute().name
        table = pd.DataFrame([{"section": section, "study": study or name,
                               "patient": patient or section, "specimen": patient or section}
                              for section in outputs]).astype(str)
    else:
        table = samples_table(samples)
    where = resolve(samples) if isinstance(samples, (str, Path)) else root
    if image is not None:
        if len(outputs) > 1:
            raise InputError(root, "image", f"is one for {len(outputs)} sections",
                             "name each section's image in samples.csv")
        table["image"] = str(image)
    made, used = [], {}
    spelt = {unicodedata.normalize("NFC", name): folder for name, folder in outputs.items()}
    for row in table.to_dict("records"):
        row = {key: value for key, value in row.items() if value != "" and not pd.isna(value)}
        row.setdefault("specimen", row["patient"])
        for field in ("section", "study", "patient", "specimen"):
            row[field] = safe_name(row[field], where, field)
        name = row["section"]
        folder = spelt.get(unicodedata.normalize("NFC", row.get("folder", name)))
        if folder is None:
            raise InputError(where, "section", f"{name} has no output folder; there are "
                             f"{sorted(outputs)}", "name the folder in a column folder")
        if folder in used:
            raise InputError(where, "folder", f"{row.get('folder', name)} is read as section "
                             f"{used[folder]} and as {name}", "give every section its own output")
        used[folder] = name
        if mpp is not None:
            row.setdefault("mpp", mpp)
        made.append(make(name, folder, root, row))
    left = sorted(name for name, folder in outputs.items() if folder not in used)
    if left:
        log.warning("%s names no section of the outputs %s: they are not read", where, left)
    return Cohort(made)


def assemble(name: str, row: dict[str, Any], root: Path, source: str,
             load: Callable[[], "AnnData"], image: Path | None, mpp: float | None,
             pixel: np.ndarray | None = None) -> Section:
    """Make the section; spots at `pixel`, or those that `load` gives, must lie in the image."""
    ref, size = image_ref(image, root, "mpp" in row, mpp) if image is not None else (None, None)
    if pixel is not None and len(pixel) and ref is not None:
        check_inside(pixel, size, image)

    def checked() -> "AnnData":
        adata = load()
        if ref is not None:
            check_inside(adata.obsm["spatial"], size, image)
        return adata

    return Section(name=name, study=row["study"], patient=row["patient"],
                   specimen=row["specimen"], source=source, load=checked,
                   mpp=mpp if image is not None else None, image_ref=ref, image_size=size,
                   roots={"data": root})
