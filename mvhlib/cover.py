"""The picture on top of the README: one gene's map, and what each encoder reaches.

``python -m mvhlib.cover OUT PICTURE`` draws it from a finished run of profile ``demo`` in OUT. The
gene is the one that the best encoder predicts best on an unseen study, on the section where it does
so middlingly; the rows beside it are all encoders of the run that learned from no tested section's
expression.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mvhlib import artifacts, cohort, dots, encoder_sources, maps, plots
from mvhlib.artifacts import InputError
from mvhlib.expression import evaluation

PROFILE, PROTOCOL, EASIER = "demo", "loso", "random10_section"
MADE_BY = "run make figures first"


def shown(scores: pd.DataFrame) -> tuple[str, str, float]:
    """Gene, section and r of the map: the best gene by its mean, where it is in the middle.

    Parameters
    ----------
    scores
        Columns ``gene, section, control, pcc``.
    """
    own = scores[scores["control"] == "none"].dropna(subset=["pcc"])
    gene = own.groupby("gene", sort=True)["pcc"].mean().idxmax()
    ranked = own[own["gene"] == gene].sort_values(["pcc", "section"])
    row = ranked.iloc[len(ranked) // 2]
    return gene, row["section"], float(row["pcc"])


def draw(out: Path):
    """The figure, from ``OUT/runs/demo`` and ``OUT/figures/demo``."""
    import matplotlib.pyplot as plt

    summary = artifacts.read_csv(_made(out / "figures" / PROFILE / "05_expression/summary.csv"))
    rows = summary[(summary["metric"] == "pcc") & (summary["program"] == "all")
                   & (summary["control"] == "none")
                   & summary["protocol"].isin([PROTOCOL, EASIER])]
    run = out / "runs" / PROFILE
    rows = rows[[_is_test(run / "features" / name) for name in rows["encoder"]]]
    rows = rows.assign(open=rows["protocol"] == EASIER)
    names = dots.order(rows)
    folder = run / "expression" / PROTOCOL / "ridge" / names[0]
    gene, section, r = shown(artifacts.read_csv(_made(folder / "scores.csv")))
    people = cohort.read("run", run / "cohort")
    plots.set_style()
    fig = plt.figure(figsize=(plots.PAGE, 2.3))
    left, right = fig.subfigures(1, 2, width_ratios=[2.1, 1])
    axes = left.subplots(1, 4, squeeze=False)
    maps.measured_predicted(people[section].adata, evaluation.read_prediction(folder, section),
                            [gene], axes)
    left.suptitle(f"{gene} on a study that the model has not seen: r {r:.2f} (synthetic)",
                  fontsize=8)
    ax = right.subplots()
    dots.rows(rows, ax, names=names, joined=True, xlabel="mean Pearson r")
    right.suptitle("open: random; filled: unseen study", fontsize=8)
    fig.canvas.draw()  # colour bars take height from the maps, not from the tissue
    fig.set_layout_engine("none")
    tissue, first = (ax.get_position() for ax in axes[0, :2])
    axes[0, 0].set_position([tissue.x0, first.y0, tissue.width, first.height])
    return fig


def _is_test(features: Path) -> bool:
    """True if an encoder learned nothing from the expression of tested sections."""
    recipe = features / "encoder.json"
    return not (recipe.exists() and encoder_sources.learned_expression(
        artifacts.read_json(recipe).get("recipe", {}).get("weights", "")))


def _made(path: Path) -> Path:
    if not path.exists():
        raise InputError(path, "file", "does not exist", MADE_BY)
    return path


def main(arguments: Sequence[str]) -> int:
    """Command line: OUT of the run, and the picture."""
    if len(arguments) != 2:
        print("usage: python -m mvhlib.cover OUT PICTURE", file=sys.stderr)
        return 2
    try:
        fig = draw(Path(arguments[0]))
        with artifacts.atomic(Path(arguments[1])) as temporary:
            fig.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(arguments[1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
