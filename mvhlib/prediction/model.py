"""A saved model: its training data, its expected correlations, and all that applying it needs.

::

    models/<method>/<encoder>/
        model.json          encoder, tile, genes with what to expect of each, whom it has seen
        model.safetensors   the regression and the training distribution
        CARD.md             the same for a person
        encoder/            weights of the encoder, where a notebook of ours made them

The folder can be moved and copied: nothing in it points elsewhere, but for encoders whose weights
are published, which are named. Both files vouch for each other by hashes, and the encoder that is
loaded must be the one that the regression was fitted on, to the last weight.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvhlib import artifacts
from mvhlib.artifacts import InputError, sha256_file, sha256_of
from mvhlib.cohort.genes import UNITS
from mvhlib.encoders import PatchEncoder, create_encoder
from mvhlib.expression.protocols import NOTES
from mvhlib.prediction import domain as domains
from mvhlib.prediction import expected, regressors
from mvhlib.prediction.card import card

RECORD, WEIGHTS, CARD, ENCODER = "model.json", "model.safetensors", "CARD.md", "encoder"
FORMAT = 1
_AGAIN = "copy the model's folder again, or fit it again with notebook 05, 12 or 13"


@dataclass
class Model:
    """A model that can be applied.

    Attributes
    ----------
    record
        What ``model.json`` holds.
    regressor, domain
        The regression behind the encoder, and the training distribution.
    encoder
        What the regression was fitted on.
    sha256
        Of the model: its record, which names the hash of the weights.
    """

    record: dict[str, Any] = field(repr=False)
    regressor: Any = field(repr=False)
    domain: domains.Domain = field(repr=False)
    encoder: PatchEncoder
    sha256: str

    @property
    def genes(self) -> pd.DataFrame:
        """Columns `expected.COLUMNS`, in the order of the predictions."""
        return pd.DataFrame(self.record["genes"], columns=list(expected.COLUMNS)).astype(
            {"expected_r": float, "ci_low": float, "ci_high": float})

    @property
    def tile_um(self) -> float:
        return float(self.record["tile"]["tile_um"])

    @property
    def tile_px(self) -> int:
        return int(self.record["tile"]["tile_px"])

    @property
    def name(self) -> str:
        """Method and encoder, and the fold of a model that was fitted on one."""
        fold = self.record["fold"]
        suffix = f", fold {fold['protocol']}/{fold['fold']}" if fold else ""
        return f"{self.record['method']} on {self.record['encoder']['slug']}{suffix}"

    def effective_mpp(self, mpp: float) -> float:
        """Resolution at which the encoder sees a slide of `mpp` [um/px]."""
        return max(mpp, self.tile_um / self.tile_px, self.encoder.mpp or 0.0)


def save(folder: str | os.PathLike, regressor: Any, domain: domains.Domain, encoder: PatchEncoder,
         *, recipe: Mapping[str, Any], weights: str | os.PathLike = "", method: str,
         tile: Mapping[str, float], genes: pd.DataFrame, protocol: str, unit: str,
         normalize: str, seen: Mapping[str, Sequence[str]], about: Mapping[str, str],
         fold: Mapping[str, str] | None = None) -> list[Path]:
    """Write a model; it is complete once ``model.json``, the last file, exists.

    Parameters
    ----------
    folder
        ``models/<method>/<encoder>``.
    regressor, domain
        See `regressors` and `domains`.
    encoder
        Created on the CPU as `recipe` says.
    recipe
        ``source``, ``weights``, ``options`` and ``seed`` of the encoder, as 04_embed was given
        them.
    weights
        Folder of the encoder's weights, which is copied; "" where `recipe` is enough.
    tile
        ``tile_um`` [um] and ``tile_px`` [px].
    genes
        Columns `expected.COLUMNS`, in the order of the predictions.
    protocol, unit
        Whose folds `genes` speaks of, and their unit of inference.
    seen
        ``sections``, ``patients``, ``studies`` that the regression was fitted on.
    about
        ``organ`` and ``scanner`` of the training sections, where the user stated them.
    fold
        ``protocol`` and ``fold`` where it was fitted on the training sections of one fold alone.

    Returns
    -------
    list of Path
        What was written.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    (folder / RECORD).unlink(missing_ok=True)  # a half-replaced folder must not pass for a model
    written = _copy(Path(weights), folder / ENCODER) if weights else []
    tensors = regressor.tensors() | {f"domain.{key}": array
                                     for key, array in domain.tensors().items()}
    with artifacts.atomic(folder / WEIGHTS) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()},
                  temporary)
    record = {
        "format": FORMAT, "method": method, "kind": regressor.kind,
        "settings": regressor.settings(), "fold": fold,
        "encoder": {"slug": encoder.enc_name, "copied": bool(weights), **{
            key: recipe[key] for key in ("source", "weights", "options", "seed")},
            "sha256": encoder.identity, "description": encoder.description,
            "pretrained_on": encoder.pretrained_on},
        "tile": {"tile_um": float(tile["tile_um"]), "tile_px": int(tile["tile_px"]),
                 "mpp": float(tile["tile_um"]) / int(tile["tile_px"])},
        "expression": {"normalize": normalize, "unit": UNITS[normalize]},
        "genes": [[None if isinstance(cell, float) and np.isnan(cell) else cell for cell in row]
                  for row in genes[list(expected.COLUMNS)].to_numpy(object).tolist()],
        "expected": {"protocol": protocol, "unit": unit, "interval": "of a new section, "
                     f"{expected.CONFIDENCE:.0%}", "note": NOTES.get(protocol, "")},
        "seen": {key: sorted(values) for key, values in seen.items()} | {
            key: about.get(key, "") for key in ("organ", "scanner")},
        "domain": domain.record(), "weights_sha256": sha256_file(folder / WEIGHTS)}
    record["sha256"] = sha256_of(record)
    written += [folder / WEIGHTS, artifacts.write_text(folder / CARD, card(record, domain)),
                artifacts.write_json(folder / RECORD, record)]
    return written


def _copy(source: Path, target: Path) -> list[Path]:
    """Copy weights, by hard link where the file system has them: they are never written again."""
    made = []
    for path in sorted(source.rglob("*")):
        if path.suffix not in (".json", ".safetensors") or "state" in path.parts:
            continue
        place = target / path.relative_to(source)
        with artifacts.atomic(place) as temporary:
            temporary.unlink()
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
        made.append(place)
    return made


def read(folder: str | os.PathLike, device: str = "cpu") -> Model:
    """Read a model after checking every hash.

    Raises
    ------
    InputError
        If a file is missing or was changed, belongs to another version of the format, or the
        encoder that its recipe makes is not the one that the regression was fitted on.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    record = read_record(folder)
    path = artifacts.check_file(folder / WEIGHTS, "weights")
    if sha256_file(path) != record["weights_sha256"]:
        raise InputError(path, "sha256", f"is not the one in {RECORD}: the file was changed, or is "
                         "of another model", _AGAIN)
    with artifacts.reading(path, "weights", "are not safetensors", _AGAIN):
        tensors = load_file(path)
    encoder = _encoder(folder, record)
    shape = {key.removeprefix("domain."): tensors.pop(key)
             for key in list(tensors) if key.startswith("domain.")}
    names = [row[0] for row in record["genes"]]
    kind = regressors.kind_of(record["kind"], folder / RECORD)
    with artifacts.reading(path, "weights", f"do not fit {RECORD}", _AGAIN):
        encoder = encoder.to(device)
        return Model(record, kind.restore(record["settings"], tensors, names, encoder),
                     domains.restore(shape, record["domain"]), encoder, record["sha256"])


def read_record(folder: str | os.PathLike) -> dict[str, Any]:
    """Read ``model.json`` after checking its own hash."""
    path = Path(folder) / RECORD
    if Path(folder).is_dir() and not os.path.lexists(path):
        inside = sorted(str(p.parent.relative_to(folder)) for p in Path(folder).rglob(RECORD))
        raise InputError(folder, "MODEL", f"holds no {RECORD}", f"name one of {inside[:6]} in it"
                         if inside else "name a folder runs/<profile>/models/<method>/<encoder>")
    record = artifacts.read_json(path)
    with artifacts.reading(path, "content", "is not a model of this format", _AGAIN):
        if record["format"] != FORMAT:
            raise InputError(path, "format", f"is {record['format']!r}, this version reads "
                             f"{FORMAT}", "fit the model again with notebook 05, 12 or 13")
        stated = record["sha256"]
        if sha256_of({key: value for key, value in record.items() if key != "sha256"}) != stated:
            raise InputError(path, "sha256", "does not fit the content: the file was changed",
                             _AGAIN)
        record["genes"], record["tile"]["tile_um"], record["encoder"]["sha256"]
    return record


def _encoder(folder: Path, record: Mapping[str, Any]) -> PatchEncoder:
    """Create the encoder of the recipe; refuse another one than the model was fitted on."""
    about = record["encoder"]
    options = dict(about["options"])
    if about["copied"]:
        options["weights"] = str(folder / ENCODER)
        if not (folder / ENCODER).is_dir():
            raise InputError(folder / ENCODER, "encoder", "is missing", _AGAIN)
    elif about["weights"]:
        options["weights"] = about["weights"]
    if about["weights"] == "random":
        options["seed"] = about["seed"]
    source = about["source"]
    if about["copied"] and Path(source).is_dir():
        source, _ = str(folder / ENCODER), options.pop("weights")
    encoder = create_encoder(source, name=about["slug"], device="cpu", **options)
    if encoder.identity != about["sha256"]:
        raise InputError(folder / RECORD, "encoder", f"{source!r} makes another encoder here than "
                         "the one that this model was fitted on (its weights, options or version "
                         "differ)", "restore the encoder's own file, or fit the model again")
    return encoder
