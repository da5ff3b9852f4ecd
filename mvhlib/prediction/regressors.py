"""Regressors: the part of a model that follows its encoder, for every method.

Each kind has the same four verbs. `read` turns tiles into what it reads, `look` gives one vector
per tile for the training distribution, `step` predicts some tiles of a slide, and `finish` what
needs the whole slide (MMAP's prototypes); what `step` gives is a few numbers per tile, so that a
slide of any size can be streamed.

=============  =============================================================================
kind           what it is
=============  =============================================================================
``linear``     ridge regression of either kind: coefficients for features as they are
``mmap``       `mvhlib.expression.mmap`, frozen or adapted
``retrieval``  `mvhlib.expression.cmrcnet` and BLEEP: the mean expression of the nearest stored
               spots
=============  =============================================================================
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mvhlib.artifacts import InputError
from mvhlib.encoders import PatchEncoder
from mvhlib.expression import cmrcnet, mmap, ridge


class Linear:
    """Features times coefficients.

    Parameters
    ----------
    coef, intercept
        `(D, G)` and `(G,)` float64, for features as they are.
    """

    kind = "linear"

    def __init__(self, coef: np.ndarray, intercept: np.ndarray):
        self.coef, self.intercept = np.asarray(coef, float), np.asarray(intercept, float)

    def settings(self) -> dict[str, Any]:
        """Entries that are not arrays."""
        return {}

    def tensors(self) -> dict[str, np.ndarray]:
        """Entries that are arrays."""
        return {"coef": self.coef, "intercept": self.intercept}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray],
                genes: Sequence[str], encoder: PatchEncoder) -> "Linear":
        """Rebuild from `settings` and `tensors`."""
        coef, intercept = tensors["coef"], tensors["intercept"]
        if coef.shape != (encoder.embedding_dim, len(genes)) or intercept.shape != (len(genes),):
            raise ValueError(f"coefficients {coef.shape} for {encoder.embedding_dim} features and "
                             f"{len(genes)} genes")
        return cls(coef, intercept)

    def read(self, encoder: PatchEncoder, tiles: np.ndarray, mpp: float) -> np.ndarray:
        """Turn tiles `(T, S, S, 3)` uint8 into the method's input."""
        return encoder.encode(tiles, tile_mpp=mpp)

    def look(self, X: np.ndarray) -> np.ndarray:
        """One vector per tile for the training distribution, `(T, D)`."""
        return X

    def step(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """Some tiles of a slide: ``predicted`` `(T, G)` float32, and what `finish` needs."""
        return {"predicted": ridge.predict(X, self.coef, self.intercept).astype(np.float32)}

    def finish(self, found: Mapping[str, np.ndarray], where: str) -> np.ndarray:
        """Expression `(T, G)` of all tiles of a slide."""
        return found["predicted"]


class Mmap:
    """Stage 1 tile by tile, stage 2 once all tiles of the slide are there.

    Parameters
    ----------
    estimator
        Fitted.
    grid
        That of the tokens; see `mmap.view_tokens`. Not used where the encoder was adapted.
    """

    kind = "mmap"

    def __init__(self, estimator: mmap.MMAP, grid: int):
        self.estimator, self.grid = estimator, grid

    def settings(self) -> dict[str, Any]:
        return self.estimator.state()[0] | {"grid": self.grid}

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.estimator.state()[1].items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray],
                genes: Sequence[str], encoder: PatchEncoder) -> "Mmap":
        return cls(mmap.MMAP.restore(settings, _torch(tensors), genes, encoder,
                                     str(encoder.device)), settings["grid"])

    def read(self, encoder: PatchEncoder, tiles: np.ndarray, mpp: float) -> np.ndarray:
        if self.estimator.encoder is not None:
            return tiles
        return mmap.view_tokens(encoder, tiles, grid=self.grid, tile_mpp=mpp)

    def look(self, X: np.ndarray) -> np.ndarray:
        if X.ndim == 4 and X.dtype != np.uint8:
            return mmap.class_token(X)
        return self.estimator.fused(X)

    def step(self, X: np.ndarray) -> dict[str, np.ndarray]:
        predicted, token = self.estimator.first_stage(X)
        return {"predicted": predicted, "token": token}

    def finish(self, found: Mapping[str, np.ndarray], where: str) -> np.ndarray:
        return self.estimator.second_stage(found["predicted"], found["token"], where)


class Retrieval:
    """The mean expression of the stored spots that lie nearest in the shared space.

    Parameters
    ----------
    fitted
        The trained network with its gallery.
    k
        Neighbours that are averaged.
    image, grid
        What it reads: ``features``, ``tokens`` (averaged over `grid`) or ``tiles``.
    """

    kind = "retrieval"

    def __init__(self, fitted: cmrcnet.Fitted, k: int, image: str, grid: int):
        self.fitted, self.k, self.image, self.grid = fitted, k, image, grid
        self._reader: tuple[PatchEncoder, PatchEncoder] | None = None

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "image": self.image, "tokens": self.grid} | self.fitted.state()[0]

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.fitted.state()[1].items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray],
                genes: Sequence[str], encoder: PatchEncoder) -> "Retrieval":
        fitted = cmrcnet.Fitted.restore(settings, _torch(tensors), genes, encoder,
                                        str(encoder.device))
        return cls(fitted, settings["k"], settings["image"], settings["tokens"])

    def read(self, encoder: PatchEncoder, tiles: np.ndarray, mpp: float) -> np.ndarray:
        if self.image == "tiles":
            return tiles
        if self.image == "features":
            return encoder.encode(tiles, tile_mpp=mpp)
        if self._reader is None or self._reader[0] is not encoder:
            self._reader = (encoder, cmrcnet.token_encoder(encoder, self.grid))
        width = int(getattr(encoder.model, "embed_dim", encoder.embedding_dim))
        return self._reader[1].encode(tiles, tile_mpp=mpp).reshape(len(tiles), -1, width)

    def look(self, X: np.ndarray) -> np.ndarray:
        if X.dtype == np.uint8:
            return self.fitted.embed_images(X)
        return X if X.ndim == 2 else X.mean(axis=1)

    def step(self, X: np.ndarray) -> dict[str, np.ndarray]:
        return {"predicted": self.fitted.predict(X, self.k)}

    def finish(self, found: Mapping[str, np.ndarray], where: str) -> np.ndarray:
        return found["predicted"]


def _torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}


KINDS = {each.kind: each for each in (Linear, Mmap, Retrieval)}


def kind_of(name: Any, where: Any) -> type:
    """The class of a kind by its name.

    Raises
    ------
    InputError
        If there is no such kind.
    """
    if name not in KINDS:
        raise InputError(where, "kind", f"is {name!r}", f"use one of {list(KINDS)}")
    return KINDS[name]
