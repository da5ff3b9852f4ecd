"""DeepPT: an autoencoder compresses a tile's embedding, a network predicts expression from it.

Hoang et al., "A deep-learning framework to predict cancer treatment response from histopathology
images through imputed transcriptomics", Nature Cancer 2024. The authors compress 2,048 features of
a ResNet50 to 512 by an autoencoder that is trained without expression, then train a network of one
hidden layer on the compressed features. They predict slides from the mean over tiles; a spot is
one tile here.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError, sha256_of
from mvhlib.expression.early_stopping import held_out, within
from mvhlib.expression.rivals.samples import embedding
from mvhlib.standardise import fit as scale_of
from mvhlib.training import FitConfig, fit


class Narrowed(nn.Module):
    """An autoencoder `(T, D) -> (T, code) -> (T, D)` of one layer each way."""

    def __init__(self, width: int, code: int):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(width, code), nn.ReLU())
        self.decode = nn.Linear(code, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class DeepPT:
    """Autoencoder and regression network, for `mvhlib.expression.protocols.run`.

    Parameters
    ----------
    code, hidden, dropout
        Numbers that are left of the embedding, units of the hidden layer, and its dropout;
        published: 512, 512, 0.2.
    training
        Of both stages; a row is a spot.
    validation
        Share of the patients to stop early on; 0 keeps the last epoch.
    folder
        Holds the state of every fold and stage, so that a killed run goes on.
    """

    def __init__(self, *, code: int = 64, hidden: int = 128, dropout: float = 0.2,
                 training: FitConfig | None = None, validation: float = 0.0,
                 folder: str | os.PathLike | None = None, device: str = "cpu",
                 name: str = "deeppt"):
        self.code, self.hidden, self.dropout = code, hidden, dropout
        self.training = training or FitConfig(epochs=50, batch=64, lr=1e-3)
        self.validation, self.device, self.name = validation, torch.device(device), name
        self.folder = None if folder is None else Path(folder)
        self.head: nn.Module | None = None

    def _tiles(self, X: np.ndarray, where: str) -> Tensor:
        return torch.from_numpy(self.scale(embedding(X, where)).astype(np.float32)).to(self.device)

    def fit(self, samples: Sequence[Any], genes: Sequence[str], fold: Any, seed: int
            ) -> dict[str, Any]:
        """Train the autoencoder, then the network on its codes.

        Raises
        ------
        InputError
            If embeddings have another shape than `(T, D)`.
        """
        held, _ = held_out(samples, self.validation, seed)
        raw = np.concatenate([embedding(sample.X, sample.name) for sample in samples])
        self.scale = scale_of(raw[~held])
        tiles = self._tiles(raw, self.name)
        Y = torch.from_numpy(np.concatenate([np.asarray(sample.Y, dtype=np.float32)
                                             for sample in samples])).to(self.device)
        owners = np.repeat(np.arange(len(samples)), [len(sample.X) for sample in samples])
        rows, inner = np.flatnonzero(~held), np.flatnonzero(held)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.narrow = Narrowed(raw.shape[1], self.code).to(self.device)
            self.head = nn.Sequential(
                nn.Linear(self.code, self.hidden), nn.ReLU(), nn.Dropout(self.dropout),
                nn.Linear(self.hidden, len(genes))).to(self.device)
        with torch.no_grad():  # the mean is known before anything is learned
            self.head[-1].bias.copy_(Y[rows].mean(dim=0))
        key = {"data": sha256_of(raw[::97], Y.cpu().numpy()), "validation": self.validation,
               "shape": [self.code, self.hidden, self.dropout]}
        place = None if self.folder is None else self.folder / f"fold_{fold}"

        def trained(model: nn.Module, loss, validate, stage: str):
            return fit(model, loss, len(rows), self.training, seed=seed, key=key,
                       validate=validate if len(inner) else None,
                       folder=None if place is None else place / stage)

        def rebuilds(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            own = tiles[rows[batch]]
            return {"loss": F.mse_loss(self.narrow(own), own)}

        first = trained(self.narrow, rebuilds, torch.no_grad()(
            lambda: float(F.mse_loss(self.narrow(tiles[inner]), tiles[inner]))), "autoencoder")
        with torch.no_grad():
            codes = self.narrow.encode(tiles)

        def predicts(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            return {"loss": F.mse_loss(self.head(codes[rows[batch]]), Y[rows[batch]])}

        @torch.no_grad()
        def validate() -> float:
            left = (self.head(codes[inner]) - Y[inner]).cpu().numpy()
            return float(np.square(within(left, owners[inner])).mean())

        second = trained(self.head, predicts, validate, "network")
        return {"fold": fold, "n_parameters": first.n_parameters + second.n_parameters,
                "epochs": second.n_epochs}

    @torch.no_grad()
    def predict(self, sample: Any) -> np.ndarray:
        """Expression `(T, G)` of one section, spot by spot.

        Raises
        ------
        InputError
            Before `fit`, or on another shape.
        """
        if self.head is None:
            raise InputError(self.name, "model", "is not fitted", "call fit first")
        self.narrow.eval(), self.head.eval()
        return self.head(self.narrow.encode(self._tiles(sample.X, sample.name))).cpu().numpy()
