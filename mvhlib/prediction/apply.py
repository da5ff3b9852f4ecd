"""Application of a model to slides, for ``make predict`` and notebook 16.

Each slide has a folder of its own. What is finished there carries a key of the slide, the model
and the wishes, and a hash of every file: a second call gives it back as it is, and a file that
somebody changed or lost is made again. A slide that cannot be predicted is named, and the others
are done.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvhlib import artifacts, tables
from mvhlib.artifacts import InputError, sha256_file, sha256_of
from mvhlib.own_files import TABLES
from mvhlib.prediction import belief as beliefs
from mvhlib.prediction import outputs, page, stream
from mvhlib.prediction.model import Model
from mvhlib.prediction.slides import Asked, read_spots
from mvhlib.tiles.slides import open_slide

if TYPE_CHECKING:
    from anndata import AnnData

#: Record of the complete files in a slide's folder; written last.
DONE, PARTS = "done.json", "parts"
#: The page to read first; and the traceback of a slide that failed unexpectedly.
PAGE, TRACE = page.PAGE, "error.txt"
#: Genes in tables for people, where nobody named any.
SHOWN = 20
THUMBNAIL_PX = 1000
#: Part of the cache key: increment when code changes the outputs of a slide.
VERSION = 2


@dataclass(frozen=True)
class Wish:
    """Settings of a prediction.

    Attributes
    ----------
    stride_um
        Distance of neighbouring tiles of the grid [um]; None puts them edge to edge.
    genes
        None takes all of the model.
    least_r
        Expected r below which a gene is greyed out.
    zarr
        Write SpatialData too.
    """

    stride_um: float | None = None
    genes: tuple[str, ...] | None = None
    least_r: float = beliefs.LEAST_R
    zarr: bool = True


@dataclass
class Outcome:
    """Result for one slide.

    Attributes
    ----------
    files
        What stands in its folder.
    verdict, warnings, n_tiles
        See `beliefs.Belief`.
    error
        Why it could not be predicted; "" where it was.
    was_done
        Whether an earlier call had finished it.
    """

    name: str
    folder: Path
    files: list[str] = field(default_factory=list)
    verdict: str = ""
    warnings: list[str] = field(default_factory=list)
    n_tiles: int = 0
    error: str = ""
    was_done: bool = False


def read(folder: Path, name: str) -> "AnnData":
    """Predictions of a finished slide, ``<folder>/<name>/<name>.h5ad``.

    Raises
    ------
    InputError
        If they are not there, or no such file.
    """
    import anndata

    path = artifacts.check_h5(folder / name / f"{name}.h5ad")
    with artifacts.reading(path, fix="predict the slide again"):
        return anndata.read_h5ad(path)


def genes_of(text: str) -> tuple[str, ...] | None:
    """Genes that are named as ``A,B`` or stand in a file, a line each; None where none are.

    A csv or tsv, plain or packed by gzip, has them in its column ``gene``; any other file has one
    in each line. ``NA`` is a gene.

    Raises
    ------
    InputError
        If the file holds none, or a row of the table none.
    """
    if not text.strip():
        return None
    if os.path.exists(text):
        path = artifacts.check_file(text, "GENES")
        if path.name.lower().endswith(TABLES):
            named = tables.names(tables.read_table(path, ("gene",)), "gene", path, none=("",))
            return tuple(dict.fromkeys(named))
        with artifacts.reading(path, "GENES", "is not a list of genes",
                               "write a gene in each line"):
            found = path.read_text(encoding="utf-8-sig").split()
    else:
        found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise InputError(text, "GENES", "names no gene",
                         "write A,B, or a file with a gene in each line")
    return tuple(dict.fromkeys(found))


def predict(slides: Sequence[Asked], model: Model, out: Path, wish: Wish | None = None, *,
            report: Callable[[str], None] | None = print) -> list[Outcome]:
    """Predict slides one after the other; name those that fail, and go on.

    Parameters
    ----------
    out
        Gets a folder per slide.
    report
        Gets lines about progress.

    Raises
    ------
    InputError
        On a wish that no slide could be given, such as genes that the model lacks.
    """
    wish = wish or Wish()
    stream.check_genes(model, wish.genes)
    found = []
    for number, asked in enumerate(slides, 1):
        title = f"[{number}/{len(slides)}] {asked.name}"
        try:
            outcome = one(asked, model, out / asked.name, wish, None if report is None else
                          lambda line, title=title: report(f"{title}: {line}"))
        except InputError as error:
            outcome = Outcome(asked.name, out / asked.name, error=str(error))
        except Exception as error:  # whatever fails in one slide must not stop the others
            outcome = Outcome(asked.name, out / asked.name,
                              error=_unforeseen(error, asked, out / asked.name))
        if report is not None:
            report(f"{title}: {outcome.error or outcome.verdict}"
                   + (" (was done already)" if outcome.was_done else ""))
        found.append(outcome)
    return found


def _unforeseen(error: Exception, asked: Asked, folder: Path) -> str:
    """Report an unexpected error in one line; write its traceback to a file."""
    lines = "".join(traceback.format_exception(error))
    try:
        told = f"send {artifacts.write_text(folder / TRACE, lines)} to the authors"
    except (OSError, InputError):
        told = "check OUT: it cannot be written to"
    return str(InputError(asked.path, "prediction", f"failed ({type(error).__name__}: "
                          f"{artifacts.one_line(error, 160)})", told))


def one(asked: Asked, model: Model, folder: Path, wish: Wish,
        report: Callable[[str], None] | None = None) -> Outcome:
    """Predict one slide, unless it is done already.

    Raises
    ------
    InputError
        If the slide cannot be read, its scale is unknown or far from the model's, or it has no
        tissue.
    """
    artifacts.check_file(asked.path, "slide")
    with artifacts.reading(asked.path, "slide", fix="change its permissions, or copy it again"):
        content = sha256_file(asked.path)
    key = sha256_of(VERSION, content, asked.mpp, asked.organ, asked.scanner,
                    None if asked.spots is None else sha256_file(asked.spots), model.sha256,
                    asdict(wish))
    done = _done(asked.name, folder, key)
    if done is not None:
        return done
    with artifacts.reading(folder, "OUT", "cannot be written",
                           "choose a folder that you may write to"):
        folder.mkdir(parents=True, exist_ok=True)
    with artifacts.lock(folder / ".lock", report or print):
        made, remarks = _make(asked, model, folder, key, wish, report)
        adata = outputs.to_adata(made)
        written, missing = outputs.write(made, adata, folder, wish.zarr)
        written.append(page.write_maps(adata, folder))
        written.append(page.write_page(made, folder, remarks + ([missing] if missing else []),
                                       written))
        (folder / TRACE).unlink(missing_ok=True)
        if missing and report is not None:
            report(missing)
        outcome = Outcome(asked.name, folder, [path.name for path in written],
                          made.belief.verdict, made.belief.warnings, len(made.places))
        artifacts.write_json(folder / DONE, {
            "key": key, "verdict": outcome.verdict, "warnings": outcome.warnings,
            "n_tiles": outcome.n_tiles, "files": {path.name: _hash(path) for path in written}})
        stream.clear(folder / PARTS)
    return outcome


def _make(asked: Asked, model: Model, folder: Path, key: str, wish: Wish,
          report: Callable[[str], None] | None) -> tuple[outputs.Made, list[str]]:
    """Compute everything about a slide that will be written."""
    with open_slide(asked.path, mpp=asked.mpp) as slide:
        stream.check_scale(slide, model)
        spots = None if asked.spots is None else read_spots(asked.spots)
        where = stream.places(slide, model, spots, wish.stride_um)
        predicted = stream.run(slide, model, where, folder / PARTS, key, genes=wish.genes,
                               report=report)
        belief = beliefs.judge(asked, slide, model, predicted, wish.least_r)
        thumbnail = slide.thumbnail(THUMBNAIL_PX)
        scale = thumbnail.shape[1] / slide.width
    at = "the given spots" if spots is not None else (
        f"a grid over the tissue, {where.spacing_px * slide.mpp:.4g} um apart")
    shown = outputs.shown_genes(belief, wish.genes, SHOWN)
    thumbnail = np.ascontiguousarray(thumbnail)
    made = outputs.Made(asked.name, model, where, predicted, belief, thumbnail, float(scale), shown)
    return made, [f"Predicted at {at}."]


def _hash(path: Path) -> str:
    """sha256 of a file; of a zarr folder, of its files' names and content."""
    if path.is_dir():
        return sha256_of([[str(p.relative_to(path)), sha256_file(p)]
                          for p in sorted(path.rglob("*")) if p.is_file()])
    return sha256_file(path)


def _done(name: str, folder: Path, key: str) -> Outcome | None:
    """Return the result of an earlier call with this key, if no file has changed since."""
    path = folder / DONE
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = artifacts.read_json(path)
        whole = record["key"] == key and all(
            (folder / file).exists() and _hash(folder / file) == digest
            for file, digest in record["files"].items())
        return Outcome(name, folder, list(record["files"]), record["verdict"],
                       list(record["warnings"]), int(record["n_tiles"]), was_done=True
                       ) if whole else None
    except (InputError, KeyError, TypeError, OSError):
        return None
