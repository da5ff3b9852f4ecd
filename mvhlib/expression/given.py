"""Scoring of other systems' predictions, as our own are scored: ``make score``.

A folder holds a file per section, and a few words about who made them::

    <section>.h5ad      X (or layers["predicted"]), names of spots and genes, obsm["spatial"]
    <section>.csv       a row per spot: `barcode`, or `x` and `y` [level-0 px]; a column per gene.
                        A first column without a name, as pandas writes an index, is `barcode`.
                        `.tsv`, `.csv.gz` and `.tsv.gz` are read as well
    predictor.yaml      name: STPath
                        saw: nothing            # or unknown, or lists of what it was trained on:
                        saw: {studies: [her2st], patients: [C], sections: [C3, C4]}

Endings may be in upper case. Files that are named after no section are passed over, and named.

Spots are joined by name where names agree, else by place: a prediction counts for the spot whose
centre it lies nearest to, at most half the distance of neighbouring spots away. Folds, genes,
normalisation, ceilings and scorer are those of our own methods; genes of a panel that the
predictions lack are left out and counted. If a predictor's training data are not stated, every
table says that they are unknown. `mvhlib.expression.scored_on` says what the scores are of.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, cohort, phrases, tables
from mvhlib.artifacts import InputError
from mvhlib.cohort.base import entries
from mvhlib.expression import evaluation, protocols, scored_on
from mvhlib.expression.scores import dense
from mvhlib.features import Features
from mvhlib.own_files import TABLES
from mvhlib.parameters import check, read_yaml_if_any
from mvhlib.spelling import spelt

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort, Section

#: Stands in the column ``method``, and for the folder below ``expression/<protocol>``.
METHOD = scored_on.GIVEN
ABOUT = "predictor.yaml"
#: Endings of a section's predictions, in lower case.
ENDINGS = (".h5ad", *TABLES)
#: A prediction belongs to the nearest spot up to this share of the spots' distance.
NEAR = 0.5
#: Exchanged axes are refused where they fit this much better than the axes as they were given.
EXCHANGED = 0.1
#: Largest csv of a section [bytes]; a larger one is better kept as h5ad.
LARGEST_CSV = 128 * 2**20
LEVELS = ("sections", "patients", "studies")
#: Protocols under which sections are cut, or which have groups of their own.
NOT_SCORED = {"random10_spot": "it cuts sections", "transfer": "it has folds for every pair of "
              "groups", "within": "it is a ceiling of transfer"}


@dataclass(frozen=True)
class Table:
    """Predictions of one section, joined to its spots.

    Attributes
    ----------
    values
        `(T, G)`, rows in the order of `barcodes`.
    genes, barcodes
        Names of columns, and of the section's spots that have a prediction.
    joined_by
        ``name`` or ``place``.
    strange
        Rows whose names are no spots of the section.
    """

    values: np.ndarray = field(repr=False)
    genes: list[str] = field(repr=False)
    barcodes: list[str] = field(repr=False)
    joined_by: str
    strange: int = 0


@dataclass
class Given:
    """An `Estimator` that learns nothing and returns the predictions of given tables.

    Its features are places in the tables, one number per spot.
    """

    tables: Mapping[str, Table]
    name: str = METHOD
    genes: list[str] = field(default_factory=list)

    def fit(self, samples: Sequence[Any], genes: Sequence[str], fold: str, seed: int) -> None:
        """Remember which genes to return."""
        self.genes = list(genes)

    def predict(self, sample: Any) -> np.ndarray:
        """The table's rows of a section, `(T, G)`."""
        table = self.tables[sample.name]
        place = {gene: number for number, gene in enumerate(table.genes)}
        rows = sample.X[:, 0].astype(np.int64)
        return table.values[rows][:, [place[gene] for gene in self.genes]]


def about(folder: Path) -> tuple[str, dict[str, list[str]] | None]:
    """Read a predictor's name and what it was trained on; None where that is not stated.

    Raises
    ------
    InputError
        If ``predictor.yaml`` holds anything else, or is called otherwise.
    """
    path = folder / ABOUT
    for other in entries(folder):
        if other.name != ABOUT and other.name.lower() in (ABOUT, "predictor.yml"):
            raise InputError(other, "file", f"is not read, since it is not called {ABOUT}",
                             f"rename it to {ABOUT}")
    given = read_yaml_if_any(path)
    saw = given.pop("saw", "unknown")
    check(path, {"name": "str"}, given, noun="key of predictor.yaml")
    title = given.get("name", folder.name)
    name = re.sub(r"[^a-z0-9_.-]+", "-", title.lower()).strip("-.")
    artifacts.safe_name(name, path, "name")
    if isinstance(saw, dict):
        check(path, dict.fromkeys(LEVELS, "list[str]"), saw, noun="key of saw")
        return name, {level: list(saw.get(level, [])) for level in LEVELS}
    if saw not in ("unknown", "nothing"):
        raise InputError(path, "saw", f"is {saw!r}", "write nothing, unknown, or "
                         "{studies: [...], patients: [...], sections: [...]}")
    return name, dict.fromkeys(LEVELS, []) if saw == "nothing" else None


def check_saw(path: Path, saw: Mapping[str, Sequence[str]], people: "Cohort") -> None:
    """Refuse training data that are the cohort's own, but for their spelling or their level.

    They would count as not seen. Names that resemble none of the cohort are another data set's.

    Parameters
    ----------
    path
        ``predictor.yaml``.
    saw
        From `about`.

    Raises
    ------
    InputError
        Naming the entry, and the name and the level that it has in the cohort.
    """
    own = {"sections": {s.name for s in people}, "patients": {s.patient for s in people},
           "studies": {s.study for s in people}}
    for level, names in saw.items():
        for name in (name for name in names if name not in own[level]):
            for right in (level, *(other for other in LEVELS if other != level)):
                meant = [each for each in sorted(own[right]) if _plainly(each) == _plainly(name)]
                if meant:
                    raise InputError(
                        path, f"saw: {level}", f"holds {name!r}, which is none of the cohort's "
                        f"{level}; its {right} have {meant[0]!r}",
                        f"write {meant[0]!r} under {right}")


def _plainly(name: str) -> str:
    """A name without what makes it another spelling: case, blanks, how accents are encoded."""
    return " ".join(spelt(name).casefold().split())


def _files(folder: Path, people: "Cohort") -> tuple[list[tuple[str, Path]], list[str]]:
    """Sections and their files, in `folder` and one level below; names that are passed over."""
    found, others = [], []
    for path in [*entries(folder), *(p for d in entries(folder) if d.is_dir() for p in entries(d))]:
        ending = next((each for each in ENDINGS if path.name.lower().endswith(each)), "")
        section = path.name[:-len(ending)] if ending else ""
        if section in people.sections:
            found.append((section, path))
        elif path.name != ABOUT and not path.is_dir():
            others.append(str(path.relative_to(folder)))
    return found, others


def passed_over(folder: Path, people: "Cohort") -> list[str]:
    """Files of `folder`, and one level below, that are named after no section of the cohort."""
    return _files(folder, people)[1]


def read(folder: Path, people: "Cohort") -> dict[str, Table]:
    """Read each section's predictions and join them to its spots; skip sections without a file.

    Raises
    ------
    InputError
        If no file is named after a section, a section has two, or a file cannot be joined to it.
    """
    found: dict[str, Table] = {}
    files, others = _files(folder, people)
    for section, path in files:
        if section in found:
            raise InputError(path, "section", f"{section} has two files", "keep one")
        found[section] = _joined(path, people[section])
    if not found:
        first = next(iter(people.sections))
        has = f", but {phrases.listed(others, 3)}" if others else ""
        raise InputError(folder, "PREDICTIONS", "holds no file that is named after a section, such "
                         f"as {first}.h5ad or {first}.csv{has}", "name files after the sections of "
                         "the profile's cohort")
    return found


def _joined(path: Path, section: "Section") -> Table:
    values, genes, names, places = (
        _read_h5ad if path.suffix.lower() == ".h5ad" else _read_csv)(path)
    if not np.isfinite(values).all():
        raise InputError(path, "predictions", "hold NaN or infinity", "leave out such spots")
    twice = sorted({gene for gene in genes if genes.count(gene) > 1}) if (
        len(set(genes)) < len(genes)) else []
    if twice:
        raise InputError(path, "genes", f"{twice[:3]} stand more than once", "keep one column each")
    own = [str(name) for name in section.adata.obs_names]
    row = {} if names is None else {name: number for number, name in enumerate(names)}
    if names is not None and len(row) < len(names):
        raise InputError(path, "barcode", "stands more than once", "keep one row per spot")
    shared = [name for name in own if name in row]
    if shared:
        return Table(values[[row[name] for name in shared]], genes, shared, "name",
                     len(row) - len(shared))
    if places is None:
        raise InputError(path, "barcode", f"{(names or ['none'])[0]!r} and the others are not "
                         f"spots of {section.name} (such as {own[0]!r}), and no positions are "
                         "given", "name spots as the cohort does, or give x and y [level-0 px]")
    rows, spots = _nearest(path, places, section.centers)
    return Table(values[rows], genes, [own[spot] for spot in spots], "place")


def _nearest(path: Path, places: np.ndarray, centres: np.ndarray) -> tuple[list[int], list[int]]:
    """Match spots to `places`: rows of the nearest places, and the spots that have one near."""
    from scipy.spatial import cKDTree

    if not np.isfinite(places).all():
        raise InputError(path, "x, y", "are not finite in some rows", "leave out such rows")
    pitch = np.median(cKDTree(centres).query(centres, k=2)[0][:, 1])
    _refuse_exchanged(path, places, centres, NEAR * pitch)
    distance, row = cKDTree(places).query(centres)
    near = np.flatnonzero(distance <= NEAR * pitch)
    if len(near) == 0:
        raise InputError(path, "x, y", "lie near no spot of the section",
                         "give centres (x, y) in level-0 pixels of its image")
    return row[near].tolist(), near.tolist()


def _refuse_exchanged(path: Path, places: np.ndarray, centres: np.ndarray, near: float) -> None:
    """Refuse places that fit the spots when x and y are exchanged, and do not as they are.

    Distances [px] are taken from the fewer to the more: predictions may lack spots, and may stand
    on a finer grid. The mean sees places of which only some lie beyond the spots.
    """
    from scipy.spatial import cKDTree

    def distances(points: np.ndarray) -> np.ndarray:
        fewer, more = sorted((points, centres), key=len)
        return cKDTree(more).query(fewer)[0]

    given, exchanged = distances(places), distances(places[:, ::-1])
    for typical in (np.median, np.mean):
        # Both fit where places and spots are symmetric: then nothing can be said.
        if typical(given) > EXCHANGED * near and typical(exchanged) <= min(
                near, EXCHANGED * typical(given)):
            raise InputError(path, "x, y", "x and y are exchanged: the other way round they lie on "
                             "the spots of the section", "exchange them: x runs along the width "
                             "of the image, y along its height")


def _read_csv(path: Path):
    try:
        frame = tables.read_table(path, largest=LARGEST_CSV)
    except InputError as error:
        if not error.problem.startswith((f"are more than {tables.MOST_COLUMNS}",
                                         f"has more than {LARGEST_CSV // 2**20} MB")):
            raise
        raise InputError(error.where, error.field, error.problem, "write predictions of so many "
                         "genes and spots as AnnData, <section>.h5ad") from error
    if "barcode" not in frame and not {"x", "y"} <= set(frame):
        frame = _with_index(path, frame)
    keys = [name for name in ("barcode", "x", "y") if name in frame]
    if not ("barcode" in keys or {"x", "y"} <= set(keys)):
        raise InputError(path, "columns", f"are {list(frame)[:4]}...",
                         "give barcode, or x and y, beside a column per gene")
    genes = [name for name in frame if name not in keys]
    try:
        values = frame[genes].to_numpy().astype(np.float64)
    except ValueError:  # another decimal sign, or no number: named by its cell
        values = np.stack([tables.numbers(frame, gene, path).to_numpy() for gene in genes], axis=1)
    names = list(tables.names(frame, "barcode", path)) if "barcode" in keys else None
    places = np.stack([tables.numbers(frame, axis, path, unit="px").to_numpy() for axis in "xy"],
                      axis=1) if {"x", "y"} <= set(keys) else None
    return values, genes, names, places


def _with_index(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """A table with the names of its rows, where its first column has no name: pandas' index."""
    with artifacts.reading(path, "columns", fix="give barcode, or x and y"):
        first = pd.read_csv(path, sep=frame.attrs["separator"], usecols=[0], dtype=str,
                            encoding="utf-8-sig", keep_default_na=False)
    if not str(first.columns[0]).startswith("Unnamed: 0") or len(first) != len(frame):
        return frame
    named = frame.assign(barcode=first.iloc[:, 0].str.strip().to_numpy())
    named.attrs = frame.attrs
    return named


def _read_h5ad(path: Path):
    import anndata

    with artifacts.h5_reader(path) as stream:
        artifacts.h5_sizes(stream)
    with artifacts.reading(path, fix="write it again by anndata"):
        adata = anndata.read_h5ad(path)
        layer = adata.layers["predicted"] if "predicted" in adata.layers else adata.X
        if layer is None:
            raise InputError(path, "X", "is missing", "store predictions in X")
        values = np.asarray(dense(layer), dtype=np.float64)
        places = np.asarray(adata.obsm["spatial"], float)[:, :2] if (
            "spatial" in adata.obsm) else None
    return values, [str(gene) for gene in adata.var_names], list(map(str, adata.obs_names)), places


def score(run: Path, folder: Path, *, data: str = "", unit: str = "patient", seed: int = 0,
          normalize: str = "log1p_cp10k", n_draws: int = 49) -> list[str]:
    """Score a folder of predictions under every protocol of a profile that has been run.

    Parameters
    ----------
    run
        ``runs/<profile>``.
    folder
        See the head of this module.
    unit, normalize, seed
        As 05_expression was given them.
    n_draws
        Of the nulls.

    Returns
    -------
    list of str
        What was scored and what was left out, a sentence each.

    Raises
    ------
    InputError
        If the profile was not run, or nothing of the predictions can be scored.
    """
    if not (run / "cohort" / "manifest.csv").exists():
        raise InputError(run, "PROFILE", "has not been run yet", "run make figures with it first")
    people = cohort.read("run", run / "cohort", data=data or None)
    panels = artifacts.read_csv(run / "cohort" / "panels.csv")
    name, saw = about(folder)
    check_saw(folder / ABOUT, saw or {}, people)
    found = read(folder, people)
    by = sorted({table.joined_by for table in found.values()})
    said = [f"{name}: {len(found)} of {len(people)} sections, joined by {' and '.join(by)}"]
    strange = {section: table.strange for section, table in found.items() if table.strange}
    if strange:
        worst = max(strange, key=strange.__getitem__)
        said.append(f"{sum(strange.values())} rows name no spot of their section and are not used, "
                    f"{strange[worst]} of them in {worst}")
    others = passed_over(folder, people)
    if others:
        said.append(f"passed over, being named after no section (<section>{', '.join(ENDINGS)}): "
                    f"{phrases.listed(others, 3)}")
    scored = 0
    for protocol in dict.fromkeys(panels["protocol"]):
        known = scored_on.folds_of(run, protocol)
        why = NOT_SCORED.get(protocol, "" if known else "05_expression has not scored it")
        if why:
            said.append(f"{protocol} is left out: {why}")
            continue
        folds = artifacts.read_csv(known)
        key = scored_on.state(run, protocol) | {"unit": unit, "normalize": normalize}
        result, notes = _evaluate(people, found, folds, protocol, panels, name, saw, unit=unit,
                                  seed=seed, normalize=normalize, tiles=run / "tiles")
        if result is None:
            said.append(f"{protocol} is left out: {notes}")
            continue
        place = run / "expression" / protocol / METHOD / name
        result.write(place)
        artifacts.write_csv(place / "nulls.csv", evaluation.nulls(result, n_draws=n_draws,
                                                                  seed=seed))
        artifacts.write_json(place / scored_on.KEY, key)
        whole = result.summary.query("program == 'all' and metric == 'pcc'").iloc[0]
        said.append(f"{protocol}: mean r {whole['mean']:.3f} over {whole['n_units']} "
                    f"{whole['unit']}s, {notes}; saw test images: "
                    f"{result.scores['encoder_saw_test_images'].iloc[0]}")
        said += scored_on.stale(run / "expression", protocol).values()
        scored += 1
    if not scored:
        raise InputError(folder, "PREDICTIONS", "; ".join(said[1:]) or "match no protocol",
                         "predict whole test sections of a protocol")
    return said


def _evaluate(people: "Cohort", found: Mapping[str, Table], folds: pd.DataFrame, protocol: str,
              panels: pd.DataFrame, name: str, saw: Mapping[str, Sequence[str]] | None, *,
              unit: str, seed: int, normalize: str, tiles: Path):
    """An evaluation and a remark; None and the reason where nothing can be scored."""
    kept = folds[(folds["role"] != "test") | folds["section"].isin(found)]
    tested = kept.loc[kept["role"] == "test", ["fold", "section"]]
    kept = kept[kept["fold"].isin(tested["fold"])]
    if kept.empty:
        return None, "none of its test sections has predictions"
    predicted = {fold: set.intersection(*(set(found[s].genes) for s in sections))
                 for fold, sections in tested.groupby("fold")["section"]}
    own = panels[(panels["protocol"] == protocol) & panels["fold"].isin(predicted)]
    cut = own[[gene in predicted[fold] for fold, gene in zip(own["fold"], own["gene"],
                                                             strict=True)]]
    if set(cut["fold"]) < set(predicted):
        return None, "a fold has no gene that is predicted"
    features, missing = {}, 0
    for section in kept["section"].unique():
        table = found.get(section)
        spots = table.barcodes if table else list(map(str, people[section].adata.obs_names))
        place = {spot: number for number, spot in enumerate(spots)}
        wanted = _with_tile(tiles / f"{section}.h5", people[section].adata.obs_names)
        chosen = [spot for spot in spots if spot in wanted]
        missing += len(wanted) - len(chosen)
        rows = np.array([[place[spot]] for spot in chosen], dtype=np.float64).reshape(-1, 1)
        features[section] = Features(rows, np.zeros((len(rows), 2), np.int64), chosen)
    claim, seen = "unknown", None
    if saw is not None:
        owners = [people[s] for s in tested["section"].unique()]
        unseen = protocols.unseen_units(
            protocol, sections=[s.name for s in owners], patients=[s.patient for s in owners],
            studies=[s.study for s in owners])
        claim, seen = ("yes" if protocols.overlap(saw, **unseen) else "no"), saw
    result = evaluation.evaluate(
        evaluation.Job(protocol, name, kept), people, features, cut, method=Given(found),
        controls=["none"], unit=unit, seed=seed, encoder_saw_test_images=claim,
        pretrained_on=seen, **({} if protocol in protocols.BENCHMARKS else
                               {"normalize": normalize}))
    lacking = len(set(own["gene"]) - set(cut["gene"]))
    remarks = [f"{cut['gene'].nunique()} genes"]
    remarks += [f"{lacking} of the panel are not predicted"] if lacking else []
    remarks += [f"{missing} spots that ours are scored on have no prediction"] if missing else []
    return result, ", ".join(remarks)


def _with_tile(path: Path, spots: Sequence[str]) -> set[str]:
    """Spots that our own methods are scored on: those with a tile, where tiles were cut."""
    from mvhlib.tiles.store import open_tiles

    names = {str(spot) for spot in spots}
    if not path.exists():
        return names
    with open_tiles(path) as (head, _):
        return names & set(head.barcodes)


def main(words: Sequence[str]) -> int:
    """``python -m mvhlib.expression.given``: score, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m mvhlib.expression.given")
    parser.add_argument("--run", required=True, help="runs/<profile>")
    parser.add_argument("--predictions", required=True, help="a folder of predictions")
    parser.add_argument("--data", default="")
    parser.add_argument("--options", default="{}", help="json: unit, normalize, seed")
    given = parser.parse_args(words)
    try:
        for line in score(Path(given.run), Path(given.predictions), data=given.data,
                          **json.loads(given.options)):
            print(line, flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main(sys.argv[1:]))
