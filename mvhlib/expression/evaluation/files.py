"""Tables and predictions of 05_expression, written and read again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.cohort import splits
from mvhlib.expression import protocols, score_files
from mvhlib.expression.evaluation.comparison import comparisons, drops
from mvhlib.expression.evaluation.plan import LEFT_OUT_COLUMNS

if TYPE_CHECKING:
    from mvhlib.notebook import Run


def write_left_out(folder: str | Path, left_out: pd.DataFrame) -> Path:
    """Write ``left_out.csv``: what 05 could not score, for the notebooks that follow it."""
    return artifacts.write_csv(Path(folder) / "left_out.csv", left_out)


def write_nothing(run: "Run", *reasons: str) -> None:
    """Write 05's tables without rows, and the reasons, for the notebooks that follow it."""
    reasons = pd.DataFrame([("all", "all", why) for why in dict.fromkeys(reasons)],
                           columns=LEFT_OUT_COLUMNS)
    run.note(write_left_out(run.path("expression"), reasons))
    empty = pd.DataFrame(columns=list(protocols.SCORE_COLUMNS))
    run.save_table(protocols.summarise(empty, "patient"), "summary")
    run.save_table(drops(empty), "drop")
    run.save_table(comparisons(empty, []), "comparisons")


def scored(folder: str | Path, protocol: str, method: str, encoder: str) -> tuple[str, str, str]:
    """Find the scores to show: those requested, else others that 05 has written.

    Parameters
    ----------
    folder
        ``runs/<profile>/expression``.
    protocol, method, encoder
        What was asked for.

    Returns
    -------
    tuple
        Protocol and encoder of scores that are there; and "", or a sentence that says what is shown
        instead and why. Another encoder stands in only where one alone was scored. Both are ""
        where 05 could score nothing, and the sentence says why.

    Raises
    ------
    InputError
        If 05 has not run, or several encoders were scored and the one asked for was not.
    """
    folder = Path(folder)
    there = [path.parent for path in sorted(folder.glob(f"*/{method}/*/scores.csv"))]
    made = {(path.parent.parent.name, path.name) for path in there}
    if (protocol, encoder) in made:
        return protocol, encoder, ""
    made = {each for each in made if each[0] not in ("transfer", "within")}  # those are 15's
    reasons = artifacts.read_csv(folder / "left_out.csv") if (
        folder / "left_out.csv").exists() else pd.DataFrame(columns=LEFT_OUT_COLUMNS)
    if not made:
        if reasons.empty:
            raise InputError(folder / protocol / method / encoder / "scores.csv", "input",
                             "does not exist yet", "run notebooks/05_expression.ipynb first")
        return "", "", "Nothing was scored by 05_expression. " + str(reasons["left_out"].iloc[0])
    encoders = sorted({name for _, name in made})
    said = []
    if encoder not in encoders:
        if len(encoders) > 1:
            raise InputError("05_expression", "encoder", f"{encoder!r} was not scored by {method}",
                             f"choose one of {encoders}")
        said.append(f"{encoder} was not scored, {encoders[0]} is the only encoder.")
        encoder = encoders[0]
    own = [name for name in splits.PROTOCOLS if (name, encoder) in made]
    own += sorted({name for name, of in made if of == encoder} - set(own))
    if protocol not in own:
        why = reasons.loc[(reasons["protocol"] == protocol)
                          & reasons["encoder"].isin(["all", encoder]), "left_out"]
        said.append(f"{protocol} was left out by 05_expression ("
                    + (str(why.iloc[0]) if len(why) else "it was not asked for")
                    + f"), {own[0]} is shown.")
        protocol = own[0]
    return protocol, encoder, " ".join(said)


def read_scores(run: "Run", wanted: Sequence[str], method: str,
                encoders: Sequence[str]) -> pd.DataFrame:
    """Read what 05 has scored of the protocols in `wanted`: all panels, with their controls.

    Returns
    -------
    DataFrame
        Columns of `protocols.SCORE_COLUMNS`; without a row where nothing was scored.
    """
    paths = [run.path("expression", protocol, method, encoder, "scores.csv")
             for protocol in wanted for encoder in encoders]
    found = [score_files.read_scores(run.need(path, made_by="05_expression"),
                                     ("control", "panel", "program"))
             for path in paths if path.exists()]
    return (pd.concat(found, ignore_index=True) if found
            else pd.DataFrame(columns=list(protocols.SCORE_COLUMNS)))


def features_of(folder: str | Path, section: str) -> str:
    """Name below ``features/`` of the embedding that a section was predicted from.

    Parameters
    ----------
    folder
        ``expression/<protocol>/<method>/<encoder>``. The embedding is the encoder's own or, where
        it was pretrained several times, that of the training which did not see the section.
    """
    folder = Path(folder)
    if not (folder / "members.csv").exists():
        return folder.name
    folds = artifacts.read_csv(folder / "folds.csv", dtype=str)
    members = artifacts.read_csv(folder / "members.csv", dtype=str).set_index("fold")["member"]
    own = folds.loc[(folds["role"] == "test") & (folds["section"] == section), "fold"]
    return members[own.item()]


def read_prediction(folder: str | Path, section: str):
    """Read one section as `Evaluation.write` wrote it: AnnData of measured and predicted."""
    import anndata

    path = Path(folder) / "predictions" / f"{section}.h5ad"
    if not path.exists():
        raise InputError(path, "file", "does not exist", "run 05_expression for this section")
    again = "delete it and run 05_expression again"
    with artifacts.h5_reader(path) as stream:
        artifacts.h5_sizes(stream)
    with artifacts.reading(path, fix=again):
        adata = anndata.read_h5ad(path)
    for layer in ("measured", "predicted"):
        if layer not in adata.layers:
            raise InputError(path, f"layers/{layer}", "is missing", again)
    return adata
