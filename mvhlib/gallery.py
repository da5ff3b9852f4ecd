"""The gallery of a profile: ``FIGURES.md``, generated from the json beside every figure.

``python -m mvhlib.gallery runs/<profile> figures/<profile>/FIGURES.md``
"""

import json
import sys
from pathlib import Path

from mvhlib import artifacts


def gallery(run: Path, page: Path) -> str:
    """Text of ``FIGURES.md``: every figure with its caption, every table, and what is left out.

    Parameters
    ----------
    run
        ``runs/<profile>``, for the provenance and the figures that show tissue.
    page
        The file to be written, for links relative to it.
    """
    profile = run.name
    outputs = {}  # output -> notebook's stem
    for path in sorted(run.glob("provenance/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        outputs |= dict.fromkeys(record["hashed"]["outputs"], path.stem)
    lines = [f"# Figures and tables of the profile `{profile}`", "",
             f"Made by `make figures PROFILE={profile}`; this page is generated: do not edit.", ""]
    left_out = []
    folder = page.parent
    for notebook in sorted(path for path in folder.iterdir() if path.is_dir()):
        lines += [f"## {notebook.name}", ""]
        for record_path in sorted(notebook.glob("*.json")):
            record = json.loads(record_path.read_text(encoding="utf-8"))
            name = record["figure"]
            origin = "synthetic data" if record["synthetic"] else "real data"
            lines += [f"**{name}** ({origin}). {record['caption']}", "",
                      f"![{name}]({notebook.name}/{name}.png)", ""]
        tables = sorted(path.name for path in notebook.glob("*.csv")
                        if not path.with_suffix(".json").exists()
                        and not path.name.endswith(".timing.csv"))
        if tables:
            lines += ["Tables: " + ", ".join(f"[{t}]({notebook.name}/{t})" for t in tables), ""]
    for name in sorted(outputs):
        if ".tissue." in name and name.endswith(".png"):
            left_out.append(name)
    if left_out:
        lines += ["## Left out", "",
                  "These figures show pixels of real tissue; they stay where they were made:", "",
                  *[f"- `{name}`" for name in left_out], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    run, page = Path(sys.argv[1]), Path(sys.argv[2])
    artifacts.write_text(page, gallery(run, page))
    print(f"the figures are in {page.parent.resolve()}; start with {page.name}")
