"""What predictions of another system were scored on: ``key.json`` beside their ``scores.csv``.

``make score`` scores them at another time than 05_expression scores our own. Once the cohort, its
folds or genes have changed since, the two must not stand in one leaderboard.
"""

from pathlib import Path

from mvhlib import artifacts, phrases
from mvhlib.artifacts import InputError, sha256_file, sha256_of

#: Method of other systems' predictions (`mvhlib.expression.given`), each an encoder of its own.
GIVEN = "given"
KEY = "key.json"
#: Parts of a key, and what is said of each where it differs; the last two are 05's parameters.
PARTS = {"cohort": "other sections", "folds": "other folds", "panels": "other genes",
         "tiles": "other spots that have a tile", "unit": "another unit",
         "normalize": "another normalisation"}
SETTINGS = ("unit", "normalize")


def folds_of(run: Path, protocol: str) -> Path | None:
    """The ``folds.csv`` of our own methods, on which predictions are scored; None if not scored."""
    known = sorted((run / "expression" / protocol).glob("*/*/folds.csv"))
    return next((path for path in known if path.parent.parent.name != GIVEN), None)


def state(run: Path, protocol: str) -> dict[str, str]:
    """What predictions are scored on now.

    Parameters
    ----------
    run
        ``runs/<profile>``.

    Returns
    -------
    dict
        A hash for the cohort (its manifest and the files of all tested sections), for the folds,
        for the panels of this protocol and, where tiles were cut, for their number per section;
        ``unit`` and ``normalize`` as 05_expression ran with, where its record is there.

    Raises
    ------
    InputError
        If a table of the run cannot be read.
    """
    found, sections = {"folds": ""}, []
    folds = folds_of(run, protocol)
    if folds is not None:
        table = artifacts.read_csv(folds, ("fold", "section", "role"))
        sections = sorted(table.loc[table["role"] == "test", "section"].unique())
        found["folds"] = sha256_of(table[["fold", "section", "role"]].to_numpy().tolist())
    files = [run / "cohort" / name for name in ("manifest.csv", *(f"{s}.h5ad" for s in sections))]
    found["cohort"] = sha256_of([sha256_file(path) if path.is_file() else "" for path in files])
    for name, path, columns in (
            ("panels", run / "cohort/panels.csv", ["protocol", "panel", "fold", "rank", "gene"]),
            ("tiles", run / "tiles/manifest.csv", ["section", "n_tiles"])):
        if path.is_file():
            table = artifacts.read_csv(path, tuple(columns))
            rows = table[table["protocol"] == protocol] if name == "panels" else table
            found[name] = sha256_of(rows[columns].to_numpy().tolist())
        else:
            found[name] = ""
    record = run / "provenance/05_expression.json"
    if record.is_file():
        with artifacts.reading(record, "parameters", "are none", "run 05_expression again"):
            given = artifacts.read_json(record)["hashed"]["parameters"]
            found |= {key: str(given[key]) for key in SETTINGS if key in given}
    return found


def stale(folder: Path, protocol: str) -> dict[str, str]:
    """Systems whose scores are of another state of the run than the present one.

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.

    Returns
    -------
    dict
        System -> a sentence that says so. Scores without a key are of an unknown state.

    Raises
    ------
    InputError
        As `state`.
    """
    there = sorted((Path(folder) / protocol / GIVEN).glob("*/scores.csv"))
    now = state(Path(folder).parent, protocol) if there else {}
    said = {}
    for path in there:
        try:
            key = artifacts.read_json(path.with_name(KEY))
        except InputError:  # of an older version, or cut off
            key = {}
        differ = [part for part in PARTS if part in now and key.get(part) != now[part]]
        if differ:
            why = (f"with {phrases.listed(PARTS[part] for part in differ)}" if key else
                   "no record says on which")
            again = "make figures and make score" if set(differ) <= set(SETTINGS) else "make score"
            said[path.parent.name] = (f"{path.parent.name} was scored on another cohort ({why}) "
                                      f"and is left out of {protocol}: run {again} again.")
    return said
