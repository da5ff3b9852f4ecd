"""Put what `gpu.py --bring` packed where the profiles `one_gpu` and `one_gpu_her2st` look for it.

    python benchmarks/gpu_unpack.py DIR --out OUT

DIR holds ``gpu_*.zip``. What comes out::

    OUT/runs/one_gpu/encoders/<encoder>/         weights, recipe, log, states.csv
    OUT/runs/one_gpu/half_precision/<cell>.csv   trajectories of part `stability`
    OUT/runs/one_gpu/rows.csv                    every row that was measured
    OUT/runs/one_gpu_her2st/features/<encoder>.no-<section>.<read-out>/<section>.h5, and beside them
                                                 what 04_embed writes: manifest, owners, recipe

Features hold all read-outs side by side as they come; here each gets a folder of its own. A file
that is there already and equal is left alone.
"""

import argparse
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mvhlib import artifacts, features, read_outs
from mvhlib.artifacts import InputError
from mvhlib.tiles import pools

#: Part of an archive -> where it goes below ``runs/``.
PLACES = {"encoders": "one_gpu/encoders", "stability": "one_gpu/half_precision",
          "features": "one_gpu_her2st/features"}
#: An encoder that was trained without one section: its name, and the section's.
HELD_OUT = re.compile(r"(?P<encoder>.+)\.no-(?P<section>[a-z0-9.-]+)")


def extract(archives: Sequence[Path], folder: Path) -> None:
    """Unpack archives of `gpu.py`; a path that leaves the folder, or another file, is refused."""
    for path in archives:
        with artifacts.reading(path, "archive", "is no whole zip file", "bring it home again"), \
                zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                parts = PurePosixPath(name).parts
                known = name == "rows.csv" or (parts[0] == "home" and len(parts) > 2
                                               and parts[1] in PLACES)
                if not known or ".." in parts or PurePosixPath(name).is_absolute():
                    raise InputError(path, name, "is no file that gpu.py --bring packs",
                                     "take the archives as they were made")
            archive.extractall(folder)


def place(source: Path, target: Path) -> None:
    """Copy a file unless an equal one is there; it appears whole."""
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        with artifacts.atomic(target) as temporary:
            Path(temporary).write_bytes(content)


def split(folder: Path, runs: Path, kinds: Sequence[str]) -> list[str]:
    """Make one encoder's features into one folder for each read-out; returns their names."""
    about = artifacts.read_json(folder / "about.json")
    found = HELD_OUT.fullmatch(folder.name)
    if found is None:
        raise InputError(folder, "name", "does not end in .no-<section>", "unpack it afresh")
    sections = [row["section"] for row in about["rows"]]
    made = []
    for kind in kinds:

        name = read_outs.slug(folder.name, kind)
        target = runs / PLACES["features"] / name
        rows = features.write_read_out(folder, target, kind, sections)
        pools.write_manifest(target, rows)
        recipe = about["made"]["recipe"] | {"options": {"pool": kind}}
        features.write_about(target, about["pretrained_on"],
                             about["made"] | {"pool": kind, "recipe": recipe})
        made.append(name)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds gpu_*.zip")
    parser.add_argument("--out", type=Path, default=Path("."))
    given = parser.parse_args(arguments)
    archives = sorted(given.folder.glob("gpu_*.zip"))
    if not archives:
        raise InputError(given.folder, "gpu_*.zip", "are not there", "name the folder of --bring")
    runs = given.out / "runs"
    with tempfile.TemporaryDirectory() as scratch:
        extract(archives, Path(scratch))
        home = Path(scratch) / "home"
        rows = Path(scratch) / "rows.csv"
        if rows.exists():
            place(rows, runs / "one_gpu" / "rows.csv")
        for part in ("encoders", "stability"):
            for path in sorted(p for p in (home / part).rglob("*") if p.is_file()):
                place(path, runs / PLACES[part] / path.relative_to(home / part))
        members = sorted(path.parent for path in (home / "features").glob("*/about.json"))
        names = [name for folder in members for name in split(folder, runs, read_outs.READ_OUTS)]
    encoders = sorted(path.parent.name for path in
                      (runs / PLACES["encoders"]).glob("*/model.safetensors"))
    print(f"{len(encoders)} encoders in {runs / PLACES['encoders']}")
    print(f"{len(names)} folders of features in {runs / PLACES['features']}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
