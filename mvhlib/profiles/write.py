"""A profile for what was found: the YAML files that differ from the defaults, each line commented.

Everything here is a choice that a user may change; it is made so that the first run takes minutes
and is informative: hand-made features beside a small untrained network, and the protocols that the
owners of the sections allow.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mvhlib import own_tables
from mvhlib.artifacts import InputError, reading, remove_tree, write_text
from mvhlib.places import home
from mvhlib.profiles.found import Found
from mvhlib.tiles.cut import MIN_SOURCE_PX

#: Side of a tile [µm] of Visium and of platforms that are summed to 100 µm, and of legacy arrays.
TILE_UM, LEGACY_TILE_UM = 112.0, 150.0
#: Most pixels of a tile's side: what encoders read.
MOST_PX = 224
#: Genes of a panel.
N_GENES = 200
#: Scales this far apart make one resolution necessary.
UNLIKE = 1.1
#: A longer line has its comment above it.
_BESIDE = 44
_ENCODERS = [
    ("encoders:", "what is compared; how to add one: README.md, Your own data"),
    ("  handmade: {source: handmade%s}", "colour and texture: seconds"),
    ("  vit12-random: {source: vit12_micro_patch8_64, weights: random%s}",
     "a small untrained network: a baseline for others")]


def check_free(params: Path, name: str) -> None:
    """Refuse to write over a profile.

    Raises
    ------
    InputError
        If something of that name is there.
    """
    folder = params / name
    if os.path.lexists(folder):
        raise InputError(folder, "PROFILE", "exists already, and is not overwritten",
                         "choose another name, or delete the folder")


def write(found: Found, params: Path, name: str) -> list[Path]:
    """Write the profile; where that fails, nothing of it stays.

    Parameters
    ----------
    found
        From `mvhlib.profiles.look`.
    params
        Folder of profiles; made where it is not there.
    name
        Of the profile.

    Returns
    -------
    list of Path
        The files, ``workflow.yaml`` first.

    Raises
    ------
    InputError
        If nothing can be run on this kind, the name is taken, or the folder cannot be written.
    """
    if not found.source:
        raise InputError(found.root, found.kind, f"is {found.says}, which no notebook reads as it "
                         "is", "run make doctor DATA=..., which says what to do")
    check_free(params, name)
    folder = params / name
    plan = _given_features if found.kind == "features" else {
        "section": _sections, "image": _images, "table": _outcomes, "slide": _slides}[found.of]
    with reading(folder, "PARAMS", "cannot be written", "choose a folder that you may write to"):
        folder.mkdir(parents=True)
        try:
            made = {}
            if found.table:
                table = "slides.csv" if found.of == "slide" else "samples.csv"
                made[table] = own_tables.write_template(
                    folder / table, found.table, [row.cells for row in found.readable],
                    len(found.table) if found.of == "slide" else 3, found.separator)
            files = plan(found, next(iter(made.values()), None))
            for file, lines in files.items():
                made[file] = write_text(folder / file, _text(found, file, lines))
        except BaseException:
            remove_tree(folder)
            raise
    first = made.pop("workflow.yaml")
    return [first, *made.values()]


def what_next(found: Found, written: Sequence[Path], own: bool) -> list[str]:
    """Return the commands to type next.

    Parameters
    ----------
    own
        Whether the profile lies outside the clone's ``params/``.
    """
    folder = written[0].parent
    lines = ["written:", *(f"  {path}" for path in written)]
    if blanks := found.blanks():
        lines.append(f"fill in {', '.join(blanks)} in {_table(written)} (cells that hold "
                     f"{own_tables.BLANK}), then run:")
    elif found.of == "image" and any(row.facts["mpp"] == own_tables.BLANK
                                     for row in found.readable):
        lines.append(f"fill in labelled_mpp in {folder / '02_tiles.yaml'}, then run:")
    else:
        lines.append("now run:")
    params = f" PARAMS={_quoted(folder.parent)}" if own else ""
    return [*lines, f"  make figures PROFILE={folder.name}{params} DATA={_quoted(found.root)}"]


def _table(written: Sequence[Path]) -> Path:
    return next(path for path in written if path.suffix == ".csv")


def _quoted(path: Path) -> str:
    text = str(path)
    return text if text.replace("/", "").replace(".", "").replace("-", "").replace(
        "_", "").isalnum() else "'" + text.replace("'", "'\\''") + "'"


def _text(found: Found, file: str, lines: Sequence[tuple[str, str]]) -> str:
    """Lines of YAML with their comments beside them, under each other."""
    said = f"# {found.says[0].upper()}{found.says[1:]}. Written by make profile."
    head = [said] if file == "workflow.yaml" else []
    side = [line for line, comment in lines if comment and len(line) <= _BESIDE]
    width = max(map(len, side), default=0)
    body = []
    for line, comment in lines:
        if comment and (len(line) > _BESIDE or width + len(comment) > 96):
            indent = " " * (len(line) - len(line.lstrip()))
            body += [f"{indent}# {comment}", line]
        else:
            body.append(f"{line:<{width}}  # {comment}" if comment else line)
    return "\n".join([*head, *body]) + "\n"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix(
        "\n...").strip()


def _named(path: Path) -> str:
    """A path as parameters name it: from the clone where it lies in there, else in full."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(home())) if path.is_relative_to(home()) else str(path)


def _protocols(found: Found) -> tuple[list[str], str]:
    """Protocols that the owners allow, and why these."""
    imaged = [row for row in found.readable if row.facts.get("image") != "none"]
    studies, patients = found.values("study"), found.values("patient")
    if len(imaged) == 1:
        return ["random10_spot"], "one section: training spots adjoin tested ones, which leaks"
    if studies is None or patients is None:
        return ["loso", "patient", "section"], \
            "unseen study, patient, section; 05 leaves out, and names, what the data do not allow"
    patients = [row.known("patient") for row in imaged]
    chosen = []
    if len({row.known("study") for row in imaged}) > 1:
        chosen += ["random10_section", "loso"]
    if len(set(patients)) > 1 and "loso" not in chosen:
        chosen.append("patient")
    if len(set(patients)) < len(patients):
        chosen.append("section")
    return chosen or ["patient"], "what is left out of training, and tested"


def _sections(found: Found, samples: Path | None) -> dict[str, list[tuple[str, str]]]:
    """Files of a profile for sections with expression."""
    imaged = [row for row in found.readable if row.facts.get("image") != "none"]
    genes = [row.facts["genes"] for row in found.readable if "genes" in row.facts]
    protocols, why = _protocols(found)
    options = found.options | ({"samples": _named(samples)} if samples else {})
    cohort = [(f"source: {found.source}", "reader of the files")]
    if options:
        cohort.append((f"options: {_flow(options)}", "of the reader; samples: owners of sections"))
    few = min(genes, default=N_GENES) if found.shared_genes is None else found.shared_genes
    cohort += [("imaged_only: true", "sections without an image are left out")] if imaged else []
    cohort += [(f"panels: [{'all' if few <= N_GENES else 'hvg'}]",
                "every gene, since few were measured" if few <= N_GENES else
                "highly variable genes, chosen on training sections"),
               (f"n_genes: {min(N_GENES, few)}", "genes that are predicted"),
               (f"protocols: {_flow(protocols)}", why)]
    if not imaged:
        return {"workflow.yaml": _workflow(["01_cohort"], []), "01_cohort.yaml": cohort}
    tile_um = LEGACY_TILE_UM if found.source in ("her2st", "mob", "legacy_st") else TILE_UM
    scales = [row.facts["mpp"] for row in imaged if isinstance(row.facts.get("mpp"), float)]
    finest, coarsest = min(scales, default=0.5), max(scales, default=0.5)
    if len(scales) < len(imaged):  # of unknown scale, perhaps a coarse one
        tile_um = LEGACY_TILE_UM
    options = ""
    if coarsest > UNLIKE * finest:
        options = f", options: {{mpp: {float(f'{coarsest:.3g}') + 0.01:.3g}}}"
    tiles = _tiles(scales, tile_um, "side of a tile [um]: a spot and its surroundings")
    expression = [(f"protocols: {_flow(protocols)}", "as in 01_cohort.yaml"),
                  ("primary: [handmade, vit12-random]", "the comparison named in advance")]
    if len(found.values("study") or []) > 2:
        expression.append(("unit: study", "unit of the intervals"))
    return {"workflow.yaml": _workflow(["01_cohort", "02_tiles", "04_embed", "05_expression",
                                        "06_spatial_maps", "18_embeddings", "19_genes"],
                                       _encoders(options), ["20_site"],
                                       "samples.csv names several studies"),
            "01_cohort.yaml": cohort, "02_tiles.yaml": tiles, "05_expression.yaml": expression,
            "06_spatial_maps.yaml": [(f"protocol: {protocols[0]}",
                                      "whose predictions are drawn; another where 05 left it out")]}


def _tiles(scales: Sequence[float], tile_um: float, said: str) -> list[tuple[str, str]]:
    """Extent of a tile: as it should be, or as wide as the coarsest image makes necessary."""
    least = math.ceil(MIN_SOURCE_PX * max(scales, default=0.0))
    if least > tile_um:
        said = f"side of a tile [um]: {MIN_SOURCE_PX} px of the images, which are coarse"
    tile_um = max(tile_um, float(least))
    finest = min(scales, default=0.5)
    seen = f"; images have {finest:.3g} um/px" if scales else ""
    tile_px = max(MIN_SOURCE_PX, min(MOST_PX, round(tile_um / finest)))
    return [(f"tile_um: {tile_um}", said), (f"tile_px: {tile_px}", f"side of a tile [px]{seen}")]


def _encoders(options: str = "") -> list[tuple[str, str]]:
    each = [(line % options if "%s" in line else line, comment) for line, comment in _ENCODERS]
    if options:
        each.insert(1, ("  # mpp: image scales differ; all are reduced to the coarsest", ""))
    return each


def _workflow(notebooks: Sequence[str], encoders: Sequence[tuple[str, str]],
              later: Sequence[str] = (), when: str = "slides.csv has a label, an outcome"
              ) -> list[tuple[str, str]]:
    """Lines of ``workflow.yaml``; `later` are notebooks that wait for something to be filled in."""
    said = "what runs, in this order"
    if later:
        said += f"; add {', '.join(later)} when {when}"
    return [("needs_data: true", "make figures ... DATA=<directory>"),
            (f"notebooks: {_flow(list(notebooks))}", said), *encoders]


def _later(notebooks: Sequence[str]) -> list[str]:
    return [name for name in ("07_classification", "09_survival") if name not in notebooks]


def _images(found: Found, samples: Path | None) -> dict[str, list[tuple[str, str]]]:
    """Files of a profile for labelled images."""
    scales = [row.facts["mpp"] for row in found.readable]
    known = all(isinstance(scale, float) for scale in scales)
    tiles = [(f"labelled: {found.source}", "reader of the images")]
    if not known:
        tiles.append((f"labelled_mpp: '{own_tables.BLANK}'",
                      "fill in: micrometres per pixel of the images, such as 0.5"))
    tiles += _tiles(scales if known else [], TILE_UM,
                    "side of a tile [um]; a smaller image is one tile")
    patients = {row.facts["patient"] for row in found.readable} - {None}
    classes = [("datasets: [labelled]", "what is classified"),
               ("encoders: [handmade, vit12-random]", "folders below features/"),
               ("mil_encoders: []", "no networks on bags: images are classified by their mean"),
               (f"repeats: {10 if 0 < len(patients) < 40 else 1}", "repeats of the folds")]
    return {"workflow.yaml": _workflow(["02_tiles", "04_embed", "07_classification"], _encoders()),
            "02_tiles.yaml": tiles, "07_classification.yaml": classes}


def _outcomes(found: Found, samples: Path | None) -> dict[str, list[tuple[str, str]]]:
    """Files of a profile for tables of outcomes."""
    first = found.readable[0].cells["options"]
    same = [row for row in found.readable if row.cells["options"].get("file") == first.get("file")]
    endpoints = [row.cells["endpoint"] for row in same]
    survival = [(f"source: {found.source}", "reader of the tables")]
    if found.source == "table":
        if len({row.cells["options"]["time"] for row in same}) > 1:
            endpoints = endpoints[:1]  # one table's columns name one endpoint
        survival.append((f"columns: {_flow(first)}", "of the table; see mvhlib.cohort.clinical"))
    survival += [(f"endpoints: {_flow(endpoints)}", "each with models of its own"),
                 ("encoders: []", "no slides: clinical models alone"),
                 ("shown_model: clinical", "whose risk groups are drawn")]
    return {"workflow.yaml": _workflow(["09_survival"], []), "09_survival.yaml": survival}


def _given_features(found: Found, samples: Path | None) -> dict[str, list[tuple[str, str]]]:
    """Files of a profile for precomputed features of slides."""
    encoders = [("encoders:", "features of each are checked and copied, nothing is computed")]
    encoders += [(f"  {slug}: {{source: {_flow(source)}}}", "folder below DATA")
                 for slug, source in found.options["encoders"].items()]
    notebooks, files = _of_slides(found, list(found.options["encoders"]))
    slides = _named(samples) if samples else "slides.csv"
    return {"workflow.yaml": _workflow(["04_embed", *notebooks], encoders, _later(notebooks)),
            "04_embed.yaml": [(f"slides: {_flow(slides)}", "owners of the slides")]} | files


def _of_slides(found: Found, encoders: Sequence[str]
               ) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """Notebooks that labels and outcomes of slides allow, and files for both."""
    notebooks = []
    if len({row.known("label") for row in found.readable} - {None, ""}) > 1:
        notebooks.append("07_classification")
    endpoints = found.options.get("endpoints") or ["os"]
    n_studies = len(found.values("study") or [])
    if found.options.get("endpoints"):
        notebooks.append("09_survival")
    return notebooks, {
        "07_classification.yaml": [
            ("datasets: [slides]", "what is classified"),
            (f"encoders: {_flow(list(encoders))}", "folders below slides/features/"),
            (f"mil_encoders: {_flow(list(encoders[:1]))}", "networks with attention over tiles"),
            (f"shown_encoder: {encoders[0]}", "of the confusion matrix"),
            ("least_attention: 0", "for planted tiles, which real slides lack")],
        "09_survival.yaml": [
            ("columns: {not_positive: drop}", "patients whose time is 0 are left out, and counted"),
            (f"endpoints: {_flow(endpoints)}", "each with models of its own"),
            (f"encoders: {_flow(list(encoders[:1]))}", "folders below slides/features/"),
            (f"n_folds: {min(5, n_studies) if n_studies > 1 else 5}",
             "outer folds, disjoint by study"),
            ("shown_model: clinical+mixture", "whose risk groups are drawn")]}


def _slides(found: Found, samples: Path | None) -> dict[str, list[tuple[str, str]]]:
    """Files of a profile for whole slides: 07 where there are labels, 09 with outcomes."""
    scales = [row.facts["mpp"] for row in found.readable if isinstance(row.facts["mpp"], float)]
    finest = min(scales, default=0.5)
    notebooks, files = _of_slides(found, ["handmade", "vit12-random"])
    slides = _named(samples) if samples else "slides.csv"
    files["02_tiles.yaml"] = [
        (f"slides: {_flow(slides)}", "owners of the slides: see mvhlib.tiles.whole"),
        *_tiles(scales, TILE_UM, "side of a tile [um]"),
        ("slide_tiles: 1000", "tiles of a slide at most, drawn at random; 0 for all")]
    unlike = max(scales, default=finest) > UNLIKE * finest
    options = f", options: {{mpp: {max(scales) + 0.01:.3g}}}" if unlike else ""
    plan = _workflow(["02_tiles", "04_embed", *notebooks], _encoders(options), _later(notebooks))
    return {"workflow.yaml": plan} | files
