"""CMRCNet as an estimator, and BLEEP as one of its configurations."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mvhlib import neighbours
from mvhlib.artifacts import (
    InputError,
    atomic,
    read_json,
    reading,
    remove_tree,
    sha256_file,
    sha256_of,
    write_json,
)
from mvhlib.encoders import PatchEncoder, names_of, seen
from mvhlib.expression.cmrcnet.fitted import Fitted
from mvhlib.expression.cmrcnet.network import FrozenTokens, Network, TileTokens, embed_rows
from mvhlib.expression.cmrcnet.samples import paired
from mvhlib.expression.cmrcnet.settings import Settings
from mvhlib.expression.early_stopping import held_out
from mvhlib.training import Fit, FitConfig, fit

if TYPE_CHECKING:
    from mvhlib.cohort import Section
    from mvhlib.expression.protocols import Sample
    from mvhlib.features import Features

#: The published schedule; the weights of the lowest validation loss are kept.
PUBLISHED_TRAINING = FitConfig(epochs=60, batch=64, lr=1e-4, min_lr=1e-5, optimizer="adamw",
                               weight_decay=1e-3)


class CMRCNet:
    """Contrastive learning with masked reconstruction, as an estimator for `protocols.run`.

    Parameters
    ----------
    encoder
        None: samples hold features `(T, D)` or tokens `(T, N, D)` of a frozen encoder
        (`token_encoder`). A `PatchEncoder` whose model has tokens: samples hold uint8 tiles
        `(T, S, S, 3)`, and a copy of it is trained in every fold (`published_encoder`).
    settings
        See `Settings`.
    training
        See `mvhlib.training.FitConfig`; default `PUBLISHED_TRAINING`.
    k
        Neighbours that are averaged.
    index, recall
        Kind of `mvhlib.neighbours`; an index other than ``"exact"`` is tuned to this recall on
        the held-out images.
    grid
        Patch tokens are averaged over `grid` x `grid` fields before the reconstruction; 0 keeps
        all, as published. Of trained encoders; frozen tokens come as they are.
    spots_per_section
        Train on at most so many spots of a section, drawn at random; all of them are stored.
    validation
        Share of the training spots held out to choose the best epoch: whole patients, or whole
        sections where there is one patient. With one training section nothing is held out, and
        the last epoch counts. (Published: a fifth of the spots at random, whose neighbours are
        trained on.)
    folder
        Holds the state of every fold, so that a killed run goes on, and its final weights.
    device
        Where the model is trained.
    name
        In tables.
    """

    def __init__(self, encoder: PatchEncoder | None = None, *, settings: Settings | None = None,
                 training: FitConfig | None = None, k: int = 50, index: str = "exact",
                 recall: float = 0.99, grid: int = 0, spots_per_section: int | None = None,
                 validation: float = 0.2, folder: str | os.PathLike | None = None,
                 device: str | torch.device = "cpu", name: str = "cmrcnet"):
        self.encoder, self.settings = encoder, settings or Settings()
        self.training, self.k = training or PUBLISHED_TRAINING, k
        self.index, self.recall, self.grid = index, recall, grid
        self.spots_per_section, self.validation = spots_per_section, validation
        self.folder = None if folder is None else Path(folder)
        self.device, self.name = torch.device(device), name
        self.fitted: dict[str, Fitted] = {}
        self.current: Fitted | None = None

    def fit(self, samples: "Sequence[Sample]", genes: Sequence[str], fold: str,
            seed: int) -> dict[str, Any]:
        """Train on a fold's sections and store their spots.

        Parameters
        ----------
        samples
            Objects with ``name, study, patient, X, Y``; `Y` may be any second modality, as long as
            its rows are the spots and its columns are named by `genes`.
        fold
            Key of `fitted`, and name of the state's folder.

        Returns
        -------
        dict
            What was trained on; see `describe`.

        Raises
        ------
        InputError
            If `k` is larger than the gallery, or samples do not fit each other or the encoder.
        """
        X = [self._checked(sample) for sample in samples]
        Y = np.concatenate([np.asarray(sample.Y, dtype=np.float32) for sample in samples])
        if not 1 <= self.k <= len(Y):
            raise InputError("cmrcnet", "k", f"is {self.k} for a gallery of {len(Y)} spots in fold "
                             f"{fold}", f"use 1 to {len(Y)}")
        gallery = pd.DataFrame({
            "section": np.repeat([sample.name for sample in samples], [len(x) for x in X]),
            "row": np.concatenate([np.arange(len(x)) for x in X])})
        held, unit = held_out(samples, self.validation, seed)
        train = np.flatnonzero(~held & self._drawn(X, seed))
        X = np.concatenate(X)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Network(self._image(X[train]), Y.shape[1], self.settings).to(self.device)
        report = self._train(network, X, Y, train, np.flatnonzero(held), str(fold), seed)
        about = {"fold": str(fold), "n_slides": len(samples), "n_spots": len(Y),
                 "n_trained": len(train), "n_validation": int(held.sum()), "inner_unit": unit,
                 "n_patients": len({sample.patient for sample in samples}),
                 "n_genes": len(genes), "n_parameters": report.n_parameters,
                 "epochs": report.n_epochs, "best_epoch": report.best_epoch,
                 "spots": {sample.name: len(sample.X) for sample in samples}}
        trained_on = seen(names_of(samples), self.encoder and self.encoder.pretrained_on)
        stored = embed_rows(network.embed_spots, Y, network)
        index = neighbours.build(stored, self.index, seed=seed)
        self.current = Fitted(network, list(genes), gallery, Y, index, report, about, trained_on,
                              self.encoder)
        if self.index != "exact" and held.any():
            index.tune(self.current.embed_images(X[held][:256]), self.k, self.recall)
        self.fitted[str(fold)] = self.current
        return about

    def predict(self, sample: "Sample", k: int | None = None) -> np.ndarray:
        """Predict the genes of the last fit from the sample's images, `(T, G)`."""
        if self.current is None:
            raise InputError("cmrcnet", "fit", "has not been called", "fit first")
        return self.current.predict(self._checked(sample), k or self.k)

    def predict_genes(self, X: np.ndarray, tables: Mapping[str, np.ndarray], *,
                      fold: str | None = None, k: int | None = None) -> np.ndarray:
        """Average any table of the training spots over the retrieved neighbours; see `table`."""
        fitted = self.current if fold is None else self.fitted[str(fold)]
        return fitted.predict_table(X, tables, k or self.k)

    def describe(self) -> pd.DataFrame:
        """One row per fold: slides, spots, genes, patients and parameters trained."""
        rows = [{name: value for name, value in fitted.about.items() if name != "spots"}
                for fitted in self.fitted.values()]
        return pd.DataFrame([{"method": self.name} | row for row in rows])

    def log(self) -> pd.DataFrame:
        """Loss terms, target entropy and alignment of every epoch of every fold."""
        return pd.concat([pd.DataFrame(fitted.fit.log).assign(method=self.name, fold=fold)
                          for fold, fitted in self.fitted.items()], ignore_index=True)

    def match(self, folds: pd.DataFrame, cohort: Mapping[str, "Section"],
              images: "Mapping[str, Features]") -> pd.DataFrame:
        """`Fitted.match` of every test section, by the model of its fold.

        Parameters
        ----------
        folds
            Columns fold, section, role.

        Returns
        -------
        DataFrame
            Columns of `Fitted.match`, fold, section.
        """
        tested = folds[folds["role"] == "test"]
        return pd.concat([
            fitted.match(*paired(cohort[name], images[name], fitted.genes)).assign(
                fold=fold, section=name)
            for fold, fitted in self.fitted.items()
            for name in tested.loc[tested["fold"].astype(str) == fold, "section"]],
            ignore_index=True)

    # ---- parts of fit

    def _checked(self, sample: "Sample") -> np.ndarray:
        """The sample's images as the model reads them, or an error that names the section."""
        X = np.asarray(sample.X)
        if self.encoder is None:
            if X.ndim not in (2, 3):
                raise InputError(sample.name, "features", f"have shape {X.shape}",
                                 "give (T, D) or tokens (T, N, D), or an encoder for tiles")
            return X[:, None] if X.ndim == 2 else X  # (T, D) -> (T, 1, D)
        if X.dtype != np.uint8 or X.ndim != 4 or X.shape[-1] != 3:
            raise InputError(sample.name, "tiles", f"are {X.dtype} of shape {X.shape}",
                             "give uint8 tiles (T, S, S, 3)")
        return X

    def _image(self, X: np.ndarray) -> nn.Module:
        if self.encoder is None:
            return FrozenTokens(torch.from_numpy(np.asarray(X, np.float32)), self.settings.width)
        model = copy.deepcopy(self.encoder.model).train().requires_grad_(True)
        return TileTokens(model, self.encoder.eval_transforms, self.grid)

    def _drawn(self, X, seed: int) -> np.ndarray:
        """True for the spots that are trained on."""
        if self.spots_per_section is None:
            return np.ones(sum(map(len, X)), dtype=bool)
        rng = np.random.default_rng(seed)
        return np.concatenate([rng.permutation(len(x)) < self.spots_per_section for x in X])

    def _train(self, network: Network, X: np.ndarray, Y: np.ndarray, train: np.ndarray,
               held: np.ndarray, fold: str, seed: int) -> Fit:
        x, y = torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(Y)
        first_half = math.ceil(self.training.epochs / 2)

        def terms(rows: np.ndarray, reconstruct: bool = True, generator=None) -> dict:
            chosen = torch.from_numpy(rows)
            return network.losses(x[chosen].to(self.device), y[chosen].to(self.device),
                                  reconstruct=reconstruct, generator=generator)

        def loss(rows: np.ndarray, epoch: int) -> dict[str, Tensor]:
            joint = self.settings.schedule == "joint" or epoch >= first_half
            return terms(train[rows], joint)

        def validate() -> dict[str, float]:
            # Masks as in training, and the same ones in every epoch. The whole sum counts in both
            # stages, or the first would always look best.
            generator = torch.Generator().manual_seed(seed)
            size = self.training.batch
            parts = [terms(held[start:start + size], generator=generator)
                     for start in range(0, max(1, len(held) - len(held) % size), size)]
            return {name: float(np.mean([float(part[name]) for part in parts]))
                    for name in parts[0]}

        options = {"seed": seed, "validate": validate if len(held) else None}
        if self.folder is None:
            return fit(network, loss, len(train), self.training, **options)
        recipe = {"settings": asdict(self.settings), "training": asdict(self.training),
                  "grid": self.grid, "seed": seed,
                  "encoder": None if self.encoder is None else self.encoder.identity,
                  "data": sha256_of(X, Y, train, held)}
        folder = self.folder / f"{fold}-{sha256_of(recipe)[:12]}"
        done = _read_finished(folder, network)
        if done is not None:
            return done
        report = fit(network, loss, len(train), self.training, folder=folder, key=recipe,
                     **options)
        _write_finished(folder, network, report)
        return report


def _write_finished(folder: Path, network: nn.Module, report: Fit) -> None:
    """Write the final weights, then the report with their hash; delete the optimiser's state."""
    from safetensors.torch import save_model

    with atomic(folder / "model.safetensors") as temporary:
        save_model(network, str(temporary))
    # JSON of ours has sorted keys: the order of the log's columns is kept beside it.
    write_json(folder / "fit.json", asdict(report) | {
        "log_columns": list(report.log[0]) if report.log else [],
        "weights_sha256": sha256_file(folder / "model.safetensors")})
    remove_tree(folder / "state")


def _read_finished(folder: Path, network: nn.Module) -> Fit | None:
    from safetensors.torch import load_model

    from mvhlib.backbones.sealed import check_finite

    path = folder / "fit.json"
    if not path.is_file():
        return None
    with reading(folder, "model", "is not a finished fit", "delete this folder and run it again"):
        content = read_json(path)
        weights = folder / "model.safetensors"
        # Fits saved before hashes were written are accepted if their weights are finite.
        if content.pop("weights_sha256", None) not in (None, sha256_file(weights)):
            raise ValueError("the weights are not those that fit.json vouches for")
        load_model(network, str(weights))
        check_finite(network.state_dict(), weights)
        network.eval()
        columns = content.pop("log_columns", None) or list(content["log"][0])
        if any(row.keys() != set(columns) for row in content["log"]):
            raise ValueError("its log has other columns than it says")
        report = Fit(**content | {"log": [{name: row[name] for name in columns}
                                          for row in content["log"]]})
        if type(report.best_epoch) is not int or not 1 <= report.best_epoch <= report.n_epochs or (
                not all(isinstance(row.get("epoch"), int) for row in report.log)):
            raise ValueError("its epochs are not whole numbers")
        if not all(row.keys() == report.log[0].keys() and all(
                isinstance(value, (int, float)) for value in row.values()) for row in report.log):
            raise ValueError("its log is not a table of numbers")
        return report


def bleep(encoder: PatchEncoder | None = None, *, settings: Settings | None = None,
          **options: Any) -> CMRCNet:
    """BLEEP (Xie et al., NeurIPS 2023): no reconstruction, and no logarithm of the loss."""
    settings = replace(settings or Settings(), reconstruct="none", log_scale=False)
    return CMRCNet(encoder, settings=settings, **({"name": "bleep"} | options))

#: Named configurations.
METHODS = {"cmrcnet": CMRCNet, "bleep": bleep}
