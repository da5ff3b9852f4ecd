"""HisToGene: the spots of a section as one sequence, each with its place on the array.

Pang et al. 2021 (bioRxiv 2021.11.28.470212). A spot's token is a linear map of what its tile looks
like plus two learned vectors, of its row and of its column; transformer layers let every spot of
the section attend to every other; layer norm and a linear head give expression; the loss is the
mean squared error and a step takes one whole section. The authors map the pixels of the tile
themselves; here the embedding is given and frozen.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib import lattice
from mvhlib.artifacts import InputError, sha256_of
from mvhlib.expression.early_stopping import held_out, within
from mvhlib.expression.rivals.samples import embedding
from mvhlib.standardise import fit as scale_of
from mvhlib.training import FitConfig, fit

#: Rows and columns that have a vector of their own; beyond them all spots share the last one.
PLACES = 128


class SectionTransformer(nn.Module):
    """Expression `(T, G)` of a section from embeddings `(T, D)` and places `(T, 2)`."""

    def __init__(self, in_dim: int, n_genes: int, width: int, depth: int, heads: int,
                 dropout: float):
        super().__init__()
        self.tile = nn.Linear(in_dim, width)
        self.row, self.column = nn.Embedding(PLACES, width), nn.Embedding(PLACES, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu",
                                           batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_genes))

    def forward(self, tiles: Tensor, places: Tensor) -> Tensor:
        row, column = places.clamp(max=PLACES - 1).T
        tokens = self.tile(tiles) + self.row(row) + self.column(column)
        return self.head(self.layers(tokens[None]))[0]


class HisToGene:
    """Attention over the spots of a section, for `mvhlib.expression.protocols.run`.

    Parameters
    ----------
    width, depth, heads, dropout
        Of the transformer; published: 1024, 8, 16, 0.1.
    training
        A row is a section; published: 100 epochs, batch 1, Adam at 1e-5, for 785 genes and 36
        sections.
    validation
        Share of the patients to stop early on; 0 keeps the last epoch.
    folder
        Holds the state of every fold, so that a killed run goes on.
    """

    def __init__(self, *, width: int = 128, depth: int = 2, heads: int = 4, dropout: float = 0.1,
                 training: FitConfig | None = None, validation: float = 0.0,
                 folder: str | os.PathLike | None = None, device: str = "cpu",
                 name: str = "histogene"):
        self.shape = {"width": width, "depth": depth, "heads": heads, "dropout": dropout}
        self.training = training or FitConfig(epochs=100, batch=1, lr=1e-3)
        self.validation, self.device, self.name = validation, torch.device(device), name
        self.folder = None if folder is None else Path(folder)
        self.model: SectionTransformer | None = None

    def _inputs(self, sample: Any) -> tuple[Tensor, Tensor]:
        if sample.coords is None:
            raise InputError(sample.name, "coordinates", "are missing, and every spot needs its "
                             "place", "use a data set with spot positions")
        tiles = self.scale(embedding(sample.X, sample.name)).astype(np.float32)
        places = lattice.array_positions(sample.coords)
        return (torch.from_numpy(tiles).to(self.device),
                torch.from_numpy(places - places.min(axis=0)).to(self.device))

    def fit(self, samples: Sequence[Any], genes: Sequence[str], fold: Any, seed: int
            ) -> dict[str, Any]:
        """Learn from the training sections of a fold.

        Raises
        ------
        InputError
            If a section has no positions, or embeddings of another shape.
        """
        rows_held, _ = held_out(samples, self.validation, seed)
        ends = np.cumsum([len(sample.X) for sample in samples])
        held = rows_held[ends - 1]  # sections are held out whole
        learned = [sample for sample, out in zip(samples, held, strict=True) if not out]
        rows = np.concatenate([embedding(sample.X, sample.name) for sample in learned])
        self.scale = scale_of(rows)
        inputs = [self._inputs(sample) for sample in samples]
        targets = [torch.from_numpy(np.asarray(sample.Y, dtype=np.float32)).to(self.device)
                   for sample in samples]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = SectionTransformer(rows.shape[1], len(genes), **self.shape)
        self.model.to(self.device)
        with torch.no_grad():  # the mean is known before anything is learned
            self.model.head[1].bias.copy_(torch.cat([y for y, out in zip(
                targets, held, strict=True) if not out]).mean(dim=0))
        train, inner = np.flatnonzero(~held), np.flatnonzero(held)

        def loss(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            parts = [F.mse_loss(self.model(*inputs[n]), targets[n]) for n in train[batch]]
            return {"loss": torch.stack(parts).mean()}

        @torch.no_grad()
        def validate() -> float:
            left = [(self.model(*inputs[n]) - targets[n]).cpu().numpy() for n in inner]
            owners = np.repeat(inner, [len(each) for each in left])
            return float(np.square(within(np.concatenate(left), owners)).mean())

        key = {"data": sha256_of(rows[::97], *(np.asarray(sample.Y) for sample in samples)),
               "shape": self.shape, "validation": self.validation}
        found = fit(self.model, loss, len(train), self.training, seed=seed, key=key,
                    validate=validate if len(inner) else None,
                    folder=None if self.folder is None else self.folder / f"fold_{fold}")
        return {"fold": fold, "n_parameters": found.n_parameters, "epochs": found.n_epochs}

    @torch.no_grad()
    def predict(self, sample: Any) -> np.ndarray:
        """Expression `(T, G)` of one section, whose spots attend to each other.

        Raises
        ------
        InputError
            Before `fit`, or without positions.
        """
        if self.model is None:
            raise InputError(self.name, "model", "is not fitted", "call fit first")
        self.model.eval()
        return self.model(*self._inputs(sample)).cpu().numpy()
