"""Models that 05, 12 and 13 keep: fitted on all training sections, and saved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib import artifacts, encoder_sources
from mvhlib.artifacts import InputError
from mvhlib.encoders import create_encoder, names_of
from mvhlib.expression import protocols
from mvhlib.features import Features
from mvhlib.prediction import domain, expected, model
from mvhlib.prediction.regressors import Linear
from mvhlib.tiles import stain, store

if TYPE_CHECKING:
    from mvhlib.cohort import Cohort
    from mvhlib.expression.evaluation import Evaluation
    from mvhlib.notebook import Run

#: Tiles of a section whose mean colour stands for it.
COLOUR_TILES = 100
#: Sections may be tiled at sizes that differ by this factor: HEST cuts whole pixels.
TILE_SLACK = 1.01


def linear(fit: protocols.LinearFit) -> Linear:
    """Turn a fitted ridge regression into a regressor."""
    return Linear(fit.coef, fit.intercept)


def recipe_of(folder: Path) -> dict[str, Any] | None:
    """Read 04_embed's settings for the encoder of a folder below ``features/``; None: unknown."""
    path = folder / "encoder.json"
    return artifacts.read_json(path).get("recipe") if path.exists() else None


def learned_expression(run: "Run", encoders: Iterable[str]) -> list[str]:
    """Encoders of a run whose weights a method trained on measured expression (MMAP, CMRCNet)."""
    recipes = {name: recipe_of(run.path("features", name)) or {} for name in encoders}
    return [name for name, recipe in recipes.items()
            if encoder_sources.learned_expression(recipe.get("weights", ""))]


def keep(run: "Run", results: "Sequence[Evaluation]", people: "Cohort",
         features: Mapping[str, Features], panels: pd.DataFrame, *,
         method: "str | protocols.Estimator" = "ridge", wrap: Callable[[Any], Any] = linear,
         recipe: Mapping[str, Any] | None, normalize: str | None = None, seed: int = 0,
         folds: Sequence[str] = (), about: Mapping[str, str] | None = None
         ) -> tuple[list[Path], str]:
    """Fit one encoder on all sections of its hardest protocol, and on folds that were named.

    Parameters
    ----------
    results
        Evaluations of this method and encoder; that of the first protocol of `expected.PROTOCOLS`
        says what to expect.
    features
        Section -> what the method reads.
    panels
        ``panels.csv``: the genes of the model are those of any fold of the first panel which all
        sections have, by their best rank.
    method, normalize, seed
        As the results were made.
    wrap
        What was fitted -> a regressor.
    recipe
        ``source``, ``weights``, ``options``, ``seed`` and ``normalise_stain`` of the encoder, and
        ``encoder``, its slug in 03 and 04 where read-outs have names of their own.
    folds
        Further models, ``<protocol>/<fold>``, fitted on that fold's training sections alone: they
        stand in ``folds/<protocol>.<fold>`` below the model, for checks.
    about
        ``organ`` and ``scanner`` of the sections.

    Returns
    -------
    tuple
        What was written, which the run's provenance names; and "", or why nothing was.
    """
    by_protocol = {result.job.protocol: result for result in results}
    chosen = expected.choose(by_protocol)
    why = _obstacle(chosen, features, recipe)
    if why:
        return [], why
    result = by_protocol[chosen]
    slug, name = result.job.encoder, result.method
    place = run.path("models", name, slug)
    if normalize is None or name == "hest_ridge":
        normalize = "log1p" if name == "hest_ridge" else "log1p_cp10k"
    weights = _weights(run, slug, recipe)
    encoder = _encoder(slug, recipe, weights)
    shared = {"recipe": recipe, "weights": weights, "encoder": encoder, "method": name,
              "normalize": normalize, "about": about or {}}
    written = []
    for where, job, fold in [(place, result.job, None), *_named(place, by_protocol, folds)]:
        own = job.folds if fold is None else job.folds[job.folds["fold"].astype(str) == fold]
        own = own if fold is None else own[own["role"] != "test"]
        train = list(dict.fromkeys(own["section"]))
        genes = _genes(panels, job.protocol, fold, people, train)
        fitted = protocols.fit_on(people, features, train, job.protocol, genes, method=method,
                                  normalize=normalize, fold=fold or "all", seed=seed)
        regressor = wrap(fitted)
        table, unit = _expected(by_protocol[job.protocol].scores, job.protocol, genes)
        written += model.save(
            where, regressor, _domain(run, regressor, people, features, train, encoder),
            genes=table, protocol=job.protocol, unit=unit,
            seen=names_of(people[s] for s in train), tile=_tile(features, train),
            fold=None if fold is None else {"protocol": job.protocol, "fold": fold}, **shared)
    for path in written:
        run.note(path)
    return written, ""


def said(written: Sequence[Path], why: str) -> str:
    """Describe what `keep` did."""
    return f"no model is kept: {why}" if why else f"kept in {written[-1].parent}"


def _obstacle(protocol: str, features: Mapping[str, Features],
              recipe: Mapping[str, Any] | None) -> str:
    """Say why no model can be kept; "" where one can."""
    if not protocol:
        return f"none of the protocols {list(expected.PROTOCOLS)} was scored"
    if recipe is None:
        return "it is not known how its features were made (04_embed did not write encoder.json)"
    if recipe.get("normalise_stain"):
        return "its stain normalisation uses the whole cohort, to which a new slide does not belong"
    scales = [each.attrs.get("tile_um") for each in features.values()]
    if None in scales or not all(scales):
        return "its features do not say how large a tile was"
    if max(scales) > min(scales) * TILE_SLACK:
        return f"its tiles are {min(scales):g} to {max(scales):g} um a side, not of one size"
    return ""


def _named(place: Path, by_protocol: "Mapping[str, Evaluation]", folds: Sequence[str]):
    """Folder, job and fold of every fold that was asked for by name."""
    for text in folds:
        protocol, _, fold = text.partition("/")
        known = sorted({str(f) for f in by_protocol[protocol].job.folds["fold"]}
                       ) if protocol in by_protocol else []
        if fold not in known:
            raise InputError("keep_folds", text, "is not a fold that was scored",
                             f"name one of {[f'{protocol}/{f}' for f in known[:6]]}" if known else
                             f"write protocol/fold, with one of {sorted(by_protocol)}")
        artifacts.safe_name(fold, "keep_folds", text)
        yield place / "folds" / f"{protocol}.{fold}", by_protocol[protocol].job, fold


def _weights(run: "Run", slug: str, recipe: Mapping[str, Any]) -> str:
    """Folder of weights to copy into the model; "" where the recipe is enough."""
    _, folder = encoder_sources.trained_by(recipe["source"], recipe["weights"],
                                           recipe.get("encoder", slug))
    if folder:
        return str(run.path("encoders", folder))
    for text in (recipe["weights"], recipe["source"]):
        if text and Path(text).is_dir():
            return text
    return ""


def _encoder(slug: str, recipe: Mapping[str, Any], weights: str):
    """Create the encoder on the CPU, so that its identity does not depend on the machine."""
    options = dict(recipe["options"])
    if weights and not Path(recipe["source"]).is_dir():
        options["weights"] = weights
    elif recipe["weights"] and not weights:
        options["weights"] = recipe["weights"]
    if recipe["weights"] == "random":
        options["seed"] = recipe["seed"]
    return create_encoder(recipe["source"], name=slug, device="cpu", **options)


def _genes(panels: pd.DataFrame, protocol: str, fold: str | None, people: "Cohort",
           train: Sequence[str]) -> list[str]:
    """A fold's genes; of all folds, those that every section has, the best rank first."""
    own = panels[panels["protocol"] == protocol]
    own = own[own["panel"] == own["panel"].iloc[0]]
    if fold is not None:
        return list(own[own["fold"].astype(str) == fold].sort_values("rank")["gene"])
    best = own.groupby("gene", sort=False)["rank"].min().sort_values(kind="stable")
    common = set.intersection(*(set(people[section].adata.var_names) for section in train))
    return [gene for gene in best.index if gene in common]


def _expected(scores: pd.DataFrame, protocol: str, genes: Sequence[str]
              ) -> tuple[pd.DataFrame, str]:
    """Expected correlations of the genes, in their order."""
    own = scores[scores["control"] == "none"]
    own = own[own["panel"] == own["panel"].iloc[0]]
    table, unit = expected.table(own, protocol)
    table = table.set_index("gene").reindex(list(genes)).reset_index(names="gene")
    counts = ["n_sections", "n_units"]
    return table.assign(**{name: table[name].fillna(0).astype(int) for name in counts}), unit


def _tile(features: Mapping[str, Features], train: Sequence[str]) -> dict[str, float]:
    attrs = features[train[0]].attrs
    return {"tile_um": float(np.median([float(features[s].attrs["tile_um"]) for s in train])),
            "tile_px": int(attrs["tile_px"])}


def _domain(run: "Run", regressor: Any, people: "Cohort", features: Mapping[str, Features],
            train: Sequence[str], encoder: Any) -> domain.Domain:
    """Training distribution of the regressor's input."""
    looks = {s: regressor.look(features[s].features) for s in train}
    units = {level: {s: str(getattr(people[s], name)) for s in train}
             for level, name in (("study", "study"), ("patient", "patient"), ("section", "name"))}
    mpp = {s: max(float(features[s].attrs.get(key) or 0.0)
                  for key in ("source_mpp", "mpp", "working_mpp")) for s in train}
    return domain.fit(looks, units, mpp, colours(run.path("tiles"), train))


def colours(folder: Path, sections: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean optical density `(3,)` of some tiles of each section that has tiles."""
    found = {}
    for section in sections:
        path = folder / f"{section}.h5"
        if not path.exists():
            continue
        with store.open_tiles(path) as (head, img):
            step = max(1, -(-head.n_tiles // COLOUR_TILES))
            found[section] = stain.colour_statistics(img[::step])[:, :3].mean(axis=0)
    return found
