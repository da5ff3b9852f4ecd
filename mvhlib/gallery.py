"""The gallery of a profile: ``FIGURES.md``, generated from the json beside every figure.

Beside it the command writes what every step of the run was computed by (`mvhlib.lineage`).

``python -m mvhlib.gallery runs/<profile> figures/<profile>/FIGURES.md``
"""

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from mvhlib import answers, artifacts, lineage
from mvhlib.artifacts import InputError

#: Entries of a figure's record, and their types.
RECORD = {"figure": str, "synthetic": bool, "caption": str}
#: Notebooks whose answers the console shows at the end of a run, where the profile has them.
FINDINGS = ("05_expression", "06_spatial_maps", "09_survival", "14_leaderboard", "16_predict")
AGAIN = "delete it and run make figures again"


def gallery(run: Path, page: Path) -> str:
    """Text of ``FIGURES.md``: every figure with its caption, every table, and what is left out.

    Of a notebook that this run executed only what it made is shown: an older version may have left
    figures that no execution makes any more.

    Parameters
    ----------
    run
        ``runs/<profile>``, for the provenance and the figures that show tissue.
    page
        The file to be written, for links relative to it.

    Raises
    ------
    InputError
        If a record is broken, or is not that of the figure beside it.
    """
    profile = run.name
    outputs = {}  # output -> notebook's stem
    for path in sorted(run.glob("provenance/*.json")):
        record = artifacts.read_json(path)
        with artifacts.reading(path, "hashed", "lists no outputs", AGAIN):
            outputs |= dict.fromkeys(dict(record["hashed"]["outputs"]), path.stem)
    lines = [f"# Figures and tables of the profile `{profile}`", "",
             f"Made by `make figures PROFILE={profile}`; this page is generated: do not edit.", ""]
    left_out = []
    folder = page.parent
    if not folder.is_dir():
        raise InputError(folder, "figures", "is not a folder",
                         f"run make figures PROFILE={profile}")
    for notebook in sorted(path for path in folder.iterdir()
                           if path.is_dir() and not path.name.startswith(".")):
        lines += [f"## {plain(notebook.name)}", ""]
        for answer in answers.of_notebook(notebook):
            which = f"**{plain(answer.which)}.** " if answer.which else ""
            lines += [f"> {which}{plain(answer.found)} *Not shown: {plain(answer.limits)}*", ""]
        executed = any(stem.split(".")[0] == notebook.name for stem in outputs.values())
        made = {Path(name).name for name in outputs
                if name.startswith(f"figures/{profile}/{notebook.name}/")}
        for record_path in sorted(notebook.glob("*.json")):
            record = _record(record_path)
            if executed and record_path.name not in made:
                continue
            name = record["figure"]
            origin = "synthetic data" if record["synthetic"] else "real data"
            lines += [f"**{plain(name)}** ({origin}). {plain(record['caption'])}", "",
                      f"![{plain(name)}]({_link(notebook.name, f'{name}.png')})", ""]
        tables = sorted(path.name for path in notebook.glob("*.csv")
                        if not path.with_suffix(".json").exists()
                        and not path.name.endswith(".timing.csv")
                        and not path.name.startswith(".") and (path.name in made or not executed))
        if tables:
            lines += ["Tables: " + ", ".join(
                f"[{plain(t)}]({_link(notebook.name, t)})" for t in tables), ""]
    for name in sorted(outputs):
        if ".tissue." in name and name.endswith(".png"):
            left_out.append(name)
    if left_out:
        lines += ["## Left out", "",
                  "These figures show pixels of real tissue; they stay where they were made:", "",
                  *[f"- `{plain(name)}`" for name in left_out], ""]
    return "\n".join(lines)


def _record(path: Path) -> dict:
    """A figure's record, checked."""
    record = artifacts.read_json(path)
    for key, kind in RECORD.items():
        if not isinstance(record.get(key), kind):
            raise InputError(path, key, f"is {record.get(key)!r}, not {kind.__name__}", AGAIN)
    if record["figure"] != path.stem:
        raise InputError(path, "figure", f"is {record['figure']!r}, not the file's name", AGAIN)
    return record


def plain(text: str) -> str:
    """Text that Markdown shows as it stands: on one line, and no tag of HTML in it."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(text.splitlines()))


def _link(*parts: str) -> str:
    return "/".join(quote(part, safe="+=,@~") for part in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: the run's folder, and the page."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 2:
        print("usage: python -m mvhlib.gallery runs/<profile> PAGE", file=sys.stderr)
        return 2
    run, page = map(Path, given)
    try:
        artifacts.write_text(page, gallery(run, page))
        lineage.write(run, page.parent)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(findings(page.parent)))
    print(f"the figures are in {page.parent.resolve()}; start with {page.name}")
    return 0


def findings(folder: Path) -> list[str]:
    """Answers of at most five notebooks of a run, wrapped for the console."""
    found = {name: each[0] for name, each in answers.of_profile(folder).items()}
    named = [name for name in FINDINGS if name in found] + [n for n in found if n not in FINDINGS]
    return [line for name in sorted(named[:5]) for line in textwrap.wrap(
        f"{name}: {found[name].found}", 98, subsequent_indent="    ", break_long_words=False)]


if __name__ == "__main__":
    raise SystemExit(main())
