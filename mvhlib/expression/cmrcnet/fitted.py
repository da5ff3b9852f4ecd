"""One fold's trained model with its gallery: retrieval and diagnostics."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mvhlib import neighbours
from mvhlib.artifacts import InputError, atomic
from mvhlib.backbones.backbone import Backbone
from mvhlib.encoders import PatchEncoder
from mvhlib.expression.cmrcnet.losses import mask_of, reconstruction_error, soft_targets
from mvhlib.expression.cmrcnet.network import FrozenTokens, Network, TileTokens, embed_rows
from mvhlib.expression.cmrcnet.samples import MeanTokens
from mvhlib.expression.cmrcnet.settings import Settings
from mvhlib.training import Fit


@dataclass
class Fitted:
    """One fold's model with its gallery: what retrieval needs, and nothing of the test sections.

    Attributes
    ----------
    network
        In evaluation mode.
    genes
        Names of the columns of `expression`.
    gallery
        One row per stored spot: section, row (its place among the section's spots).
    expression
        `(n, G)`, of the gallery's rows.
    index
        Over the spots' embeddings.
    fit
        Log, best epoch and parameters of the training.
    about
        Row of `CMRCNet.describe`.
    """

    network: Network = field(repr=False)
    genes: list[str] = field(repr=False)
    gallery: pd.DataFrame = field(repr=False)
    expression: np.ndarray = field(repr=False)
    index: neighbours.Index = field(repr=False)
    fit: Fit = field(repr=False)
    about: dict[str, Any]
    trained_on: dict[str, list[str]] = field(repr=False)
    encoder: PatchEncoder | None = field(default=None, repr=False)

    def embed_images(self, X: np.ndarray) -> np.ndarray:
        """Image embeddings `(T, W)` of tokens, features or tiles."""
        X = X[:, None] if X.ndim == 2 else X
        return embed_rows(self.network.embed_images, X, self.network)

    def embed_spots(self, Y: np.ndarray) -> np.ndarray:
        """Spot embeddings `(T, W)` of expression `(T, G)`."""
        return embed_rows(self.network.embed_spots, np.asarray(Y, dtype=np.float32), self.network)

    def retrieve(self, X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarity and gallery rows of the `k` nearest spots, `(T, k)` each."""
        return self.index.search(self.embed_images(X), k)

    def predict(self, X: np.ndarray, k: int) -> np.ndarray:
        """Unweighted mean of the stored expression of the `k` nearest spots, `(T, G)`."""
        return _mean_of_rows(self.expression, self.retrieve(X, k)[1])

    def predict_table(self, X: np.ndarray, tables: Mapping[str, np.ndarray], k: int) -> np.ndarray:
        """Average any table of the training spots as `predict` does, for example of other genes.

        Parameters
        ----------
        tables
            Section -> `(spots, columns)`, rows in the order of the section's samples; see `table`.

        Raises
        ------
        InputError
            If a training section has no table, or one of another length.
        """
        stored = []
        for section, rows in self.gallery.groupby("section", sort=False)["row"]:
            if section not in tables:
                raise InputError("cmrcnet", "tables", f"lack {section}",
                                 "give one per training section")
            values = np.asarray(tables[section])
            if len(values) != self.about["spots"][section]:
                raise InputError(section, "table", f"has {len(values)} rows for "
                                 f"{self.about['spots'][section]} spots",
                                 "give one row per spot with a tile, in their order")
            stored.append(values[rows.to_numpy()])
        return _mean_of_rows(np.concatenate(stored), self.retrieve(X, k)[1])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the settings (as JSON) and tensors for `restore`, with the stored expression."""
        image = self.network.image
        tensors = {f"network.{name}": tensor.detach().cpu().contiguous().clone()
                   for name, tensor in self.network.state_dict().items()}
        tensors["expression"] = torch.from_numpy(np.ascontiguousarray(self.expression))
        trained = isinstance(image, TileTokens)
        return {"settings": asdict(self.network.settings), "trained": trained,
                "grid": image.grid if trained else 0,
                "width": 0 if trained else image.resize.in_features}, tensors

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor],
                genes: Sequence[str], encoder: PatchEncoder | None, device: str = "cpu"
                ) -> "Fitted":
        """Rebuild a model from `state`, for prediction only: its gallery's spots are anonymous."""
        chosen = Settings(**settings["settings"])
        if settings["trained"]:
            image = TileTokens(copy.deepcopy(encoder.model), encoder.eval_transforms,
                               settings["grid"])
        else:
            image = FrozenTokens(torch.zeros(2, 1, settings["width"]), chosen.width)
        network = Network(image, len(genes), chosen)
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor
                                 in tensors.items() if name.startswith("network.")})
        network.to(device).eval()
        expression = tensors["expression"].numpy()
        stored = neighbours.build(embed_rows(network.embed_spots, expression, network))
        return cls(network, list(genes), pd.DataFrame(), expression, stored, Fit([], 0, 0), {},
                   {}, encoder)

    def match(self, X: np.ndarray, Y: np.ndarray) -> pd.DataFrame:
        """Measure how well images retrieve their own spots in a section, and spots their images.

        Returns
        -------
        DataFrame
            direction (``image to expression`` and back), median_rank (from 1), recall1, recall5,
            recall10, n_spots, and chance_rank, what guessing would give.
        """
        image, spot = self.embed_images(X), self.embed_spots(Y)
        image, spot = (side / np.linalg.norm(side, axis=1, keepdims=True)
                       for side in (image, spot))
        rows = []
        for direction, similarity in (("image to expression", image @ spot.T),
                                      ("expression to image", spot @ image.T)):
            rank = 1 + (similarity > np.diag(similarity)[:, None]).sum(axis=1)
            rows.append({"direction": direction, "median_rank": float(np.median(rank)),
                         **{f"recall{k}": float(np.mean(rank <= k)) for k in (1, 5, 10)},
                         "n_spots": len(rank), "chance_rank": (len(rank) + 1) / 2})
        return pd.DataFrame(rows)

    @torch.inference_mode()
    def rebuild_error(self, X: np.ndarray, Y: np.ndarray, mask_rate: float, *,
                      shuffled: bool = False, seed: int = 0) -> float:
        """Error of the reconstruction of one section, with its own genes or those of other spots.

        Parameters
        ----------
        shuffled
            Give every spot the genes of another one: what the error loses by that is what the
            branch takes from the genes, and does not copy from the image.

        Raises
        ------
        InputError
            If the model was trained without reconstruction, or rebuilds genes.
        """
        self._needs("image")
        network, settings = self.network.eval(), self.network.settings
        image, genes = self._batch(X, Y)
        if shuffled:
            genes = genes[torch.arange(len(genes), device=genes.device).roll(len(genes) // 2)]
        tokens = network.image(image)
        own = network.image_tokens(tokens)
        mask = mask_of(own.shape, mask_rate, generator=torch.Generator().manual_seed(seed)).to(own)
        rebuilt = network.reconstruction(own * mask, network.gene_tokens(genes))
        return float(reconstruction_error(rebuilt, network.image_head(tokens.mean(dim=1)),
                                          settings.loss))

    @torch.inference_mode()
    def attention(self, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Weights of the first cross-attention, `(T, N, M)`: image tokens over gene tokens."""
        self._needs("image")
        network = self.network.eval()
        image, genes = self._batch(X, Y)
        own, other = network.image_tokens(network.image(image)), network.gene_tokens(genes)
        return network.reconstruction.cross(own, other, other)[1].cpu().numpy()

    def attention_moved(self, X: np.ndarray, Y: np.ndarray) -> pd.Series:
        """Mean change of an attention weight when spots exchange their images, or their genes.

        The weight of a uniform attention stands beside it.
        """
        other = np.roll(np.arange(len(X)), len(X) // 2)
        own = self.attention(X, Y)
        return pd.Series({"another spot's image": np.abs(self.attention(X[other], Y) - own).mean(),
                          "another spot's genes": np.abs(self.attention(X, Y[other]) - own).mean(),
                          "uniform weight": 1 / own.shape[-1]}, name="mean change of a weight")

    def push(self, X: np.ndarray, Y: np.ndarray, batch: int = 64) -> pd.Series:
        """Gradient of the contrastive loss with respect to the similarities of one batch of spots.

        It is the softmax less the soft target: negative pulls together, positive pushes apart.
        """
        spots, images = (torch.from_numpy(side[:batch])
                         for side in (self.embed_spots(Y), self.embed_images(X)))
        similarity = (spots @ images.T).requires_grad_()
        (-(soft_targets(spots, images) * similarity.log_softmax(dim=1)).sum()).backward()
        push, is_own = similarity.grad.numpy(), np.eye(len(spots), dtype=bool)
        alike = np.corrcoef(push[~is_own], similarity.detach().numpy()[~is_own])[0, 1]
        return pd.Series({"gradient on a spot's own image": push[is_own].mean(),
                          "gradient on another image": push[~is_own].mean(),
                          "correlation of the push with the similarity": alike},
                         name="one test section")

    def _needs(self, side: str) -> None:
        if self.network.settings.reconstruct != side:
            raise InputError("cmrcnet", "reconstruct", f"is {self.network.settings.reconstruct!r}",
                             f"train with reconstruct={side!r}")

    def _batch(self, X: np.ndarray, Y: np.ndarray) -> tuple[Tensor, Tensor]:
        device = next(self.network.parameters()).device
        X = X[:, None] if X.ndim == 2 else X
        return (torch.from_numpy(np.ascontiguousarray(X)).to(device),
                torch.from_numpy(np.asarray(Y, dtype=np.float32)).to(device))

    def save_embeddings(self, path: str | os.PathLike, X: np.ndarray) -> Path:
        """Write the gallery and queries for `benchmarks/retrieval.py`.

        Parameters
        ----------
        path
            ``.npz`` with spot `(n, W)`, expression `(n, G)` and image `(T, W)`.
        X
            Images that are no part of the gallery.
        """
        with atomic(path) as temporary:
            np.savez(temporary, spot=embed_rows(self.network.embed_spots, self.expression,
                                            self.network),
                     expression=self.expression, image=self.embed_images(X))
        return Path(path)

    def patch_encoder(self, name: str = "cmrcnet") -> PatchEncoder:
        """Return the trained image encoder, for classification, survival or another regression.

        Its features are the mean over all tokens, what the projection head reads.

        Raises
        ------
        InputError
            If the encoder was frozen: it is then what it was before.
        """
        model, given = self._trained_encoder(), self.encoder
        width = self.network.image.width
        return PatchEncoder(name, MeanTokens(copy.deepcopy(model), self.network.image.grid),
                            given.eval_transforms, width, precision=given.precision,
                            min_px=given.min_px, kind=f"{type(model).__name__} of CMRCNet",
                            config={"pretrained_on": self.trained_on})

    def save_encoder(self, folder: str | os.PathLike) -> Path:
        """Write the trained backbone, so that `mvhlib.encoders.create_encoder(folder)` reads it.

        Read it with ``pool="cls+mean"``: the model was trained on the mean over its tokens.

        Raises
        ------
        InputError
            If the encoder was frozen, or is none of ours.
        """
        model = self._trained_encoder()
        if not isinstance(model, Backbone):
            raise InputError(folder, "encoder", f"is a {type(model).__name__}, no backbone of "
                             "mvhlib", "use patch_encoder()")
        return model.save_pretrained(folder, pretrained_on=self.trained_on)

    def _trained_encoder(self) -> nn.Module:
        if not isinstance(self.network.image, TileTokens):
            raise InputError("cmrcnet", "encoder", "was frozen, there is nothing new to export",
                             "give CMRCNet an encoder and tiles")
        return self.network.image.model


def _mean_of_rows(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.stack([table[chosen].mean(axis=0) for chosen in rows]).astype(np.float32)
