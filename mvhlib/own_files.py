"""Files of the user's that a run depends on: tables, an encoder's code, its weights.

The workflow runs a notebook again where one of them has changed: a patient that was corrected, an
encoder that was trained further. A small file is known by its content; a large one, which every
job of a run would read whole, by its size and the time of its last change.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvhlib import artifacts, encoder_sources
from mvhlib.places import resolve

#: Endings of tables, in lower case.
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
#: Tables that readers look for in DATA, whether or not a parameter names them.
BY_DEFAULT = ("slides.csv", "samples.csv")
#: Words that stand for weights and are no path.
NO_PATH = ("", "pretrained", "random")
#: Above it a file is known by its size and time [bytes].
LARGE = 2**26


def named_tables(values: Mapping[str, Any], data: str = "") -> list[Path]:
    """Tables that a notebook's parameters name, and that are there.

    Parameters
    ----------
    values
        Of the notebook's parameter file; names are looked for below `data`, then at the clone.
    data
        The data set's directory; empty without one.
    """
    found = []
    for text in (text for text in _texts(values) if text.lower().endswith(TABLES)):
        places = [Path(data) / text.removeprefix("data/")] if data else []
        found += [path for path in (*places, resolve(text)) if path.is_file()][:1]
    return list(dict.fromkeys(found))


def tables_of(values: Mapping[str, Any], data: str = "") -> list[Path]:
    """`named_tables`, and those that readers find in `data` by themselves."""
    there = [Path(data) / name for name in BY_DEFAULT] if data else []
    return list(dict.fromkeys([*named_tables(values, data), *(p for p in there if p.is_file())]))


def of_encoder(options: Mapping[str, Any]) -> list[Path]:
    """Files that an encoder of a profile is made of beside mvhlib: its code, weights, options.

    Parameters
    ----------
    options
        Of the encoder in ``workflow.yaml``.
    """
    source, weights = options.get("source", ""), options.get("weights", "")
    named = [text for text in (source, weights, *_texts(options.get("options") or {}))
             if text not in NO_PATH and not text.startswith(encoder_sources.PYTHON)]
    found = encoder_sources.files_of(source)
    for path in map(resolve, named):
        if path.is_file():
            found.append(path)
        elif path.is_dir():  # of weights: a network's folder, not what lies deeper
            found += sorted(each for each in path.iterdir() if each.is_file())
    return list(dict.fromkeys(found))


def stamp(paths: list[Path]) -> str:
    """What changes where one of the files does; empty without files."""
    return " ".join(map(_stamp, paths))


def _stamp(path: Path) -> str:
    status = path.stat()
    if status.st_size > LARGE:
        return f"{status.st_size}-{status.st_mtime_ns}"
    return artifacts.sha256_file(path)


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested parameters."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
