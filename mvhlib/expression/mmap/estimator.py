"""MMAP as an estimator: fits both stages, resumes a fit, predicts."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvhlib.artifacts import InputError, sha256_of
from mvhlib.encoders import PatchEncoder, names_of
from mvhlib.expression.early_stopping import held_out, within
from mvhlib.expression.mmap.lora import adapted_copies
from mvhlib.expression.mmap.network import PrototypeModel, SpotModel, similarity_loss
from mvhlib.expression.mmap.prototypes import (
    MOST,
    Prototypes,
    cluster,
    cosine,
    n_prototypes,
    n_selected,
    select,
)
from mvhlib.expression.mmap.tokens import pixels
from mvhlib.expression.mmap.views import ZOOMS, augment, crop_views
from mvhlib.training import Fit, FitConfig, fit, keyed_generator

#: Spots at once where nothing is learned: fixed, so that equal input gives equal bytes.
EVAL_BATCH = 256

#: Spots from which the mean and spread of an adapted encoder's tokens are taken.
STANDARD_SPOTS = 512


class MMAP:
    """Stage 1 and stage 2 as one estimator for `mvhlib.expression.protocols.run`.

    Parameters
    ----------
    encoder
        None: samples hold tokens `(T, V, 1 + N, D)` of the three views (`token_folder`), or plain
        embeddings `(T, D)` where `zooms` names one view. A `PatchEncoder`: samples hold uint8 tiles
        `(T, S, S, 3)`, or views cut from the slide `(T, V, S, S, 3)`, and one copy of it per view
        is adapted.
    zooms
        Which views are used, of 1, 2 and 4.
    prototypes
        ``"rule"``, a number K, or ``"none"`` for stage 1 alone.
    selected
        L: below 1 a share of K, else a number.
    similarity, similarity_from
        Weight of the similarity term, and the epochs of stage 1 that go without it. Stage 2 has it
        from the start.
    stage1, stage2
        How each stage is trained; published: Adam, 1e-5 to 1e-6, 50 epochs, batch 16. None takes
        that, for stage 2 the same as for stage 1.
    validation
        Share of the patients held out of training to stop early and to choose the best epoch
        (`FitConfig.patience`); of the sections where there is one patient. The error is taken
        within sections. 0, as published: the last epoch.
    heads, head_width, dropout
        Of both attention blocks; published: 8, 64, 0.2.
    rank, alpha, first_block
        Of the low-rank updates; see `add_lora`.
    augmented
        Turn, mirror, bend tiles in training (not possible with frozen tokens).
    mask_padding
        False: rows of zeros that fill up a slide's prototypes are attended to, as the authors' are:
        behind the layer norm they are a constant token.
    random_crop_eval
        True: crops are random in evaluation too, as the authors' are; two predictions differ.
    folder
        Holds the state of every fold and stage, so that a killed run goes on. Variants that differ
        in stage 2 alone share stage 1.
    device
        Where models are trained.
    name
        In tables.
    """

    def __init__(self, encoder: PatchEncoder | None = None, *, zooms: Sequence[int] = ZOOMS,
                 prototypes: str | int = "rule", selected: float = 0.5, similarity: float = 0.1,
                 similarity_from: int = 5, stage1: FitConfig | None = None,
                 stage2: FitConfig | None = None, validation: float = 0.0, heads: int = 8,
                 head_width: int = 64, dropout: float = 0.2, rank: int = 16, alpha: float = 32.0,
                 first_block: int | None = None, augmented: bool = True, mask_padding: bool = True,
                 random_crop_eval: bool = False, folder: str | os.PathLike | None = None,
                 device: str = "cpu", name: str = "mmap"):
        self.zooms = tuple(sorted(set(zooms)))
        if not self.zooms or not set(self.zooms) <= set(ZOOMS):
            raise InputError("mmap", "zooms", f"are {list(zooms)}", f"use some of {list(ZOOMS)}")
        if prototypes != "none":
            n_prototypes(10**9, prototypes)
        if not selected > 0:
            raise InputError("mmap", "selected", f"is {selected}",
                             "use a share below 1 or a number")
        if encoder is None and random_crop_eval:
            raise InputError("mmap", "random_crop_eval", "needs pixels, and frozen tokens are of "
                             "centre crops", "give an encoder and tiles")
        if encoder is not None and encoder.mpp is not None:
            raise InputError("mmap", "encoder", f"works at {encoder.mpp:g} µm/px, and an adapted "
                             "one takes tiles as they are", "cut the tiles at this scale and "
                             "create the encoder without mpp")
        self.encoder, self.prototypes_asked, self.selected = encoder, prototypes, selected
        self.similarity, self.similarity_from = similarity, similarity_from
        self.stage1 = stage1 or FitConfig(epochs=50, batch=16, lr=1e-5, min_lr=1e-6)
        self.stage2 = stage2 or self.stage1
        self.validation = validation
        self.attention = {"heads": heads, "head_width": head_width, "dropout": dropout}
        self.rank, self.alpha, self.first_block = rank, alpha, first_block
        self.augmented, self.mask_padding = augmented, mask_padding
        self.random_crop_eval = random_crop_eval
        self.folder = None if folder is None else Path(folder)
        self.device, self.name = torch.device(device), name
        self.spot_model: SpotModel | None = None
        self.prototype_model: PrototypeModel | None = None
        self.trained_on: dict[str, list[str]] = {}
        self.fits: list[dict[str, Any]] = []

    # ---- data

    def _check(self, X: np.ndarray, where: str) -> np.ndarray:
        """Return the array as the model reads it, or raise an error that names the section."""
        if self.encoder is not None:
            if X.dtype != np.uint8 or X.ndim not in (4, 5) or X.shape[-1] != 3 or (
                    X.ndim == 5 and X.shape[1] != len(ZOOMS)):
                raise InputError(where, "tiles", f"are {X.dtype} of shape {X.shape}",
                                 "give uint8 tiles (T, S, S, 3), or (T, 3, S, S, 3) for views cut "
                                 "from the slide")
            return X
        if X.ndim == 2 and len(self.zooms) == 1:
            return X[:, None, None]  # (T, D) -> (T, 1, 1, D): one view, no patch tokens
        if X.ndim != 4 or X.shape[1] != len(ZOOMS):
            raise InputError(where, "tokens", f"have shape {X.shape}",
                             f"give (T, {len(ZOOMS)}, 1 + N, D) by token_folder")
        return X

    def _views(self, X: np.ndarray, train: bool) -> list[Tensor]:
        """The views of a batch: tokens as they are, or images for the encoders."""
        numbers = [ZOOMS.index(zoom) for zoom in self.zooms]
        if self.encoder is None:
            columns = [0] if X.shape[1] == 1 else numbers
            return [torch.from_numpy(np.ascontiguousarray(X[:, n])).to(self.device)
                    for n in columns]
        x = pixels(X, self.device)
        if train and self.augmented:
            x = augment(x)
        if x.shape[1] > 1:
            views = [x[:, number] for number in numbers]
        else:
            places = None
            if train:
                places = torch.rand(len(x), len(numbers), 2)
            elif self.random_crop_eval:
                places = torch.rand(len(x), len(numbers), 2, generator=self._crops)
            views = crop_views(x[:, 0], self.zooms, places)
        return [self.encoder.eval_transforms.batch(view) for view in views]

    def _seeded(self, make: Callable[[], nn.Module], seed: int, stage: int) -> nn.Module:
        """Build a module whose initial weights depend on seed and stage alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_generator(seed, stage).integers(2**62)))
            return make().to(self.device)

    # ---- fitting

    def fit(self, samples: Sequence[Any], genes: Sequence[str], fold: Any,
            seed: int) -> dict[str, Any]:
        """Train both stages.

        Parameters
        ----------
        samples
            Objects with ``name, patient, X, Y``: `(T, ...)` and `(T, G)`.
        genes
            Names of the columns of `Y`.
        fold
            Names the state's folder.
        seed
            Of weights, order, dropout, crops and k-means.

        Returns
        -------
        dict
            What was trained; `describe` joins those of all folds.

        Raises
        ------
        InputError
            On samples of another shape, or with fewer spots than prototypes.
        """
        arrays = [self._check(sample.X, sample.name) for sample in samples]
        if self.prototypes_asked != "none":
            for sample in samples:
                n_prototypes(len(sample.X), self.prototypes_asked, sample.name)
        self.genes, self._seed = list(genes), seed
        self.trained_on = names_of(samples)
        self._crops = torch.Generator().manual_seed(seed)
        Y = np.concatenate([np.asarray(sample.Y, dtype=np.float32) for sample in samples])
        held, unit = held_out(samples, self.validation, seed)
        self._owner = np.repeat(np.arange(len(samples)), [len(array) for array in arrays])
        recipe = self._recipe(samples, arrays, seed)
        first = self._fit_spots(np.concatenate(arrays), Y, held, seed, fold, recipe)
        record = {"fold": fold, "n_slides": len(samples), "n_spots": len(Y),
                  "spots_per_slide_min": min(len(a) for a in arrays),
                  "spots_per_slide_median": float(np.median([len(a) for a in arrays])),
                  "spots_per_slide_max": max(len(a) for a in arrays), "n_genes": len(genes),
                  "n_patients": len({sample.patient for sample in samples}),
                  "inner_unit": unit, "n_parameters_stage1": first.n_parameters,
                  "epochs_stage1": first.n_epochs, "best_epoch_stage1": first.best_epoch,
                  "k_min": 0, "k_max": 0, "n_parameters_stage2": 0, "epochs_stage2": 0,
                  "best_epoch_stage2": 0}
        self.prototype_model = None
        if self.prototypes_asked != "none":
            second, ks = self._fit_prototypes(arrays, Y, held, seed, fold, recipe)
            record |= {"k_min": min(ks), "k_max": max(ks),
                       "n_parameters_stage2": second.n_parameters,
                       "epochs_stage2": second.n_epochs, "best_epoch_stage2": second.best_epoch}
        self.fits.append(record)
        return record

    def _errors(self, residual: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        """Squared errors of held-out rows; early stopping uses the one within sections."""
        own = within(residual, self._owner[rows])
        return {"loss": float((own**2).mean()), "mse": float((residual**2).mean())}

    def _recipe(self, samples: Sequence[Any], arrays: Sequence[np.ndarray],
                seed: int) -> dict[str, Any]:
        """Everything that determines stage 1's weights; some rows represent each section."""
        if self.folder is None:
            return {}
        data = [(sample.name, np.asarray(sample.Y, dtype=np.float32),
                 np.ascontiguousarray(array[::max(1, len(array) // 16)]))
                for sample, array in zip(samples, arrays, strict=True)]
        return {"data": sha256_of(*(part for each in data for part in each)), "seed": seed,
                "genes": sha256_of(self.genes), "zooms": list(self.zooms),
                "similarity": [self.similarity, self.similarity_from],
                "attention": self.attention, "validation": self.validation,
                "encoder": None if self.encoder is None else [
                    self.encoder.identity, self.rank, self.alpha, self.first_block,
                    self.augmented]}

    def _place(self, stage: str, fold: Any, recipe: Mapping[str, Any],
               config: FitConfig) -> Path | None:
        if self.folder is None:
            return None
        digest = sha256_of(dict(recipe), asdict(config))[:12]
        return self.folder / f"fold_{fold}" / f"{stage}-{digest}"

    def _fit_spots(self, X: np.ndarray, Y: np.ndarray, held: np.ndarray, seed: int, fold: Any,
                   recipe: Mapping[str, Any]) -> Fit:
        def make() -> SpotModel:
            copies = None if self.encoder is None else adapted_copies(
                self.encoder.model, len(self.zooms), self.rank, self.alpha, self.first_block)
            width = X.shape[-1] if copies is None else self.encoder.model.embed_dim
            return SpotModel(width, Y.shape[1], len(self.zooms), copies, **self.attention)

        model = self.spot_model = self._seeded(make, seed, 1)
        rows, inner = np.flatnonzero(~held), np.flatnonzero(held)
        heads = [model.head_query] + ([model.head_fused] if len(self.zooms) > 1 else [])
        _start_at_mean(heads, Y[rows])
        with torch.no_grad():
            some = rows if self.encoder is None else rows[::max(1, len(rows) // STANDARD_SPOTS)]
            model.eval()
            parts = [model.tokens(self._views(X[some[n:n + EVAL_BATCH]], train=False))
                     for n in range(0, len(some), EVAL_BATCH)]
            model.standardise([torch.cat(view) for view in zip(*parts, strict=True)])
        target = torch.from_numpy(Y).to(self.device)

        def loss(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            with self._autocast():
                predicted, fused, query = model(self._views(X[rows[batch]], train=True))
            terms = {"mse": F.mse_loss(predicted.float(), target[rows[batch]])}
            terms["similarity"] = similarity_loss(fused.float(), query.float())
            on = len(self.zooms) > 1 and epoch >= self.similarity_from
            weight = self.similarity if on else 0.0
            return terms | {"loss": terms["mse"] + weight * terms["similarity"]}

        def validate() -> dict[str, float]:
            return self._errors(self._spots(X[inner])[0] - Y[inner], inner)

        return fit(model, loss, len(rows), self.stage1, seed=seed,
                   validate=validate if len(inner) else None,
                   folder=self._place("stage1", fold, recipe, self.stage1), key=dict(recipe))

    def _autocast(self) -> torch.autocast:
        half = torch.float32 if self.encoder is None else self.encoder.precision
        on = self.device.type == "cuda" and half != torch.float32
        return torch.autocast(self.device.type, half if on else torch.bfloat16, enabled=on)

    @torch.no_grad()
    def _spots(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stage 1 without training: prediction `(T, G)` and fused token `(T, D)`."""
        self.spot_model.eval()
        parts = []
        for start in range(0, len(X), EVAL_BATCH):
            with self._autocast():
                predicted, fused, _ = self.spot_model(
                    self._views(X[start:start + EVAL_BATCH], train=False))
            parts.append((predicted.float().cpu().numpy(), fused.float().cpu().numpy()))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _slide(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres `(K, D)` of a slide, and which of them each spot attends to, `(T, L)`."""
        k = n_prototypes(len(tokens), self.prototypes_asked)
        centres = cluster(tokens, k, self._seed)
        return centres, select(tokens, centres, n_selected(k, self.selected))

    def _padded(self, chosen: np.ndarray) -> np.ndarray:
        """Indices `(T, L)` filled up with -1 to the greatest L of any slide."""
        most = MOST if self.prototypes_asked == "rule" else int(self.prototypes_asked)
        return np.pad(chosen, ((0, 0), (0, n_selected(most, self.selected) - chosen.shape[1])),
                      constant_values=-1)

    def _gather(self, centres: Tensor, chosen: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Prototypes `(B, L, D)` of each spot with zero rows as padding, and which are real."""
        index = torch.from_numpy(chosen).to(centres.device)
        real = index >= 0
        found = centres[index.clamp(min=0)] * real[..., None]
        return found, real if self.mask_padding else None

    def _fit_prototypes(self, arrays: Sequence[np.ndarray], Y: np.ndarray, held: np.ndarray,
                        seed: int, fold: Any, recipe: Mapping[str, Any]) -> tuple[Fit, list[int]]:
        stage1, tokens, centres, chosen, ks = [], [], [], [], []
        for array in arrays:  # stage 1 is run once; its outputs and the centres stay as they are
            predicted, fused = self._spots(array)
            own, near = self._slide(fused)
            near = self._padded(near)
            chosen.append(np.where(near >= 0, near + sum(ks), -1))  # indices among all centres
            stage1.append(predicted)
            tokens.append(fused)
            centres.append(own)
            ks.append(len(own))
        token, before, target, bank = (
            torch.from_numpy(each).to(self.device) for each in
            (np.concatenate(tokens), np.concatenate(stage1), Y, np.concatenate(centres)))
        near = np.concatenate(chosen)
        model = self.prototype_model = self._seeded(
            lambda: PrototypeModel(token.shape[1], Y.shape[1], **self.attention), seed, 2)
        rows, inner = np.flatnonzero(~held), np.flatnonzero(held)
        _start_at_mean([model.head], Y[rows])

        def forward(batch: np.ndarray) -> tuple[Tensor, Tensor]:
            return model(token[batch], *self._gather(bank, near[batch]), before[batch])

        def loss(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
            own = rows[batch]
            predicted, fused = forward(own)
            terms = {"mse": F.mse_loss(predicted, target[own]),
                     "similarity": similarity_loss(fused, token[own])}
            return terms | {"loss": terms["mse"] + self.similarity * terms["similarity"]}

        def validate() -> dict[str, float]:
            parts = np.array_split(inner, -(-len(inner) // EVAL_BATCH))
            predicted = np.concatenate([forward(part)[0].cpu().numpy() for part in parts])
            return self._errors(predicted - Y[inner], inner)

        recipe = dict(recipe) | {"stage1": asdict(self.stage1), "selected": self.selected,
                                 "prototypes": self.prototypes_asked,
                                 "mask_padding": self.mask_padding,
                                 "random_crop_eval": self.random_crop_eval}
        found = fit(model, loss, len(rows), self.stage2, seed=seed,
                    validate=validate if len(inner) else None,
                    folder=self._place("stage2", fold, recipe, self.stage2), key=recipe)
        return found, ks

    # ---- using

    def predict(self, sample: Any) -> np.ndarray:
        """Expression `(T, G)` of all spots of one slide, which are needed together.

        Raises
        ------
        InputError
            Before `fit`, on another shape, or with fewer spots than prototypes.
        """
        return self._predict(sample.X, sample.name)[0]

    def _predict(self, X: np.ndarray, where: str) -> tuple[np.ndarray, ...]:
        """Prediction, fused tokens, centres, chosen prototypes and the attention paid to them."""
        return self._ask(*self.first_stage(X, where), where)

    def first_stage(self, X: np.ndarray, where: str = "slide") -> tuple[np.ndarray, np.ndarray]:
        """Stage 1 of some spots: prediction `(T, G)` and fused token `(T, D)`.

        No spot needs another one, so that a slide may come in parts.

        Raises
        ------
        InputError
            Before `fit`, or on another shape.
        """
        if self.spot_model is None:
            raise InputError(self.name, "model", "is not fitted", "call fit first")
        return self._spots(self._check(X, where))

    def second_stage(self, predicted: np.ndarray, tokens: np.ndarray, where: str = "slide"
                     ) -> np.ndarray:
        """Expression `(T, G)` of all spots of one slide, from the outputs of `first_stage`."""
        return self._ask(predicted, tokens, where)[0]

    @torch.no_grad()
    def _ask(self, predicted: np.ndarray, tokens: np.ndarray, where: str) -> tuple[np.ndarray, ...]:
        if self.prototype_model is None:
            return predicted, tokens, None, None, None
        n_prototypes(len(tokens), self.prototypes_asked, where)
        centres, near = self._slide(tokens)
        bank, padded = torch.from_numpy(centres).to(self.device), self._padded(near)
        self.prototype_model.eval()
        found, paid = [], []
        for start in range(0, len(tokens), EVAL_BATCH):
            part = slice(start, start + EVAL_BATCH)
            token = torch.from_numpy(tokens[part]).to(self.device)
            chosen, mask = self._gather(bank, padded[part])
            out, _ = self.prototype_model(token, chosen, mask,
                                          torch.from_numpy(predicted[part]).to(self.device))
            whole = torch.cat([token[:, None], chosen], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
            found.append(out.cpu().numpy())
            paid.append(self.prototype_model.fusion.weights(whole, mask).mean(dim=1).cpu().numpy())
        return np.concatenate(found), tokens, centres, near, np.concatenate(paid)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the settings (as JSON) and tensors of the last fit, for `restore`.

        Raises
        ------
        InputError
            Before `fit`.
        """
        if self.spot_model is None:
            raise InputError(self.name, "model", "is not fitted", "call fit first")
        parts = {"spots": self.spot_model}
        if self.prototype_model is not None:
            parts["slide"] = self.prototype_model
        settings = {"zooms": list(self.zooms), "prototypes": self.prototypes_asked,
                    "selected": self.selected, "mask_padding": self.mask_padding,
                    "attention": self.attention, "seed": self._seed, "name": self.name,
                    "width": self.spot_model.head_query.in_features,
                    "adapted": None if self.encoder is None else [
                        self.rank, self.alpha, self.first_block]}
        return settings, {f"{part}.{name}": tensor.detach().cpu().contiguous()
                          for part, model in parts.items()
                          for name, tensor in model.state_dict().items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor],
                genes: Sequence[str], encoder: PatchEncoder | None, device: str = "cpu") -> "MMAP":
        """Rebuild a fitted model from `state`; `encoder` is needed if it was adapted."""
        adapted = settings["adapted"]
        own = cls(None if adapted is None else encoder, zooms=settings["zooms"],
                  prototypes=settings["prototypes"], selected=settings["selected"],
                  mask_padding=settings["mask_padding"], device=device, name=settings["name"],
                  **settings["attention"])
        own.genes, own._seed = list(genes), settings["seed"]
        if adapted is not None:
            own.rank, own.alpha, own.first_block = adapted
        copies = None if adapted is None else adapted_copies(
            encoder.model, len(own.zooms), *adapted)
        own.spot_model = SpotModel(settings["width"], len(genes), len(own.zooms), copies,
                                   **own.attention)
        if own.prototypes_asked != "none":
            own.prototype_model = PrototypeModel(settings["width"], len(genes), **own.attention)
        for part, model in (("spots", own.spot_model), ("slide", own.prototype_model)):
            if model is not None:
                model.load_state_dict({name.removeprefix(f"{part}."): tensor for name, tensor
                                       in tensors.items() if name.startswith(f"{part}.")})
                model.to(own.device).eval()
        return own

    def fused(self, X: np.ndarray, where: str = "slide") -> np.ndarray:
        """Fused tokens `(T, D)` of stage 1, each from its own spot alone."""
        return self.first_stage(X, where)[1]

    def prototypes(self, X: np.ndarray, n_nearest: int = 4, where: str = "slide") -> Prototypes:
        """The prototypes of one slide by the model fitted last.

        Parameters
        ----------
        X
            As in the samples, all spots of the slide.
        n_nearest
            Spots shown per prototype.

        Raises
        ------
        InputError
            For a model without prototypes.
        """
        predicted, tokens, centres, near, paid = self._predict(X, where)
        if centres is None:
            raise InputError(self.name, "prototypes", "are 'none'", "fit with prototypes")
        alike = cosine(tokens, centres)
        weight = np.zeros(len(centres))
        np.add.at(weight, near, paid[:, 1:near.shape[1] + 1])
        nearest = np.argsort(-alike, axis=0, kind="stable")[:n_nearest].T  # (T, K) -> (K, n)
        return Prototypes(alike.argmax(axis=1), nearest, weight / len(X), predicted, self.genes)

    def describe(self) -> pd.DataFrame:
        """One row per fit: slides, spots, genes, patients, prototypes and parameters trained."""
        return pd.DataFrame([{"method": self.name} | record for record in self.fits])


def _start_at_mean(heads: Iterable[nn.Linear], Y: np.ndarray) -> None:
    """Let heads predict the mean of the targets before they have learned anything."""
    with torch.no_grad():
        for head in heads:
            head.weight.zero_()
            head.bias.copy_(torch.from_numpy(Y.mean(axis=0)))


def stnet(encoder: PatchEncoder | None = None, **options: Any) -> MMAP:
    """MMAP with the whole tile as its one view and no prototypes; options as in `MMAP`."""
    return MMAP(encoder, **({"zooms": (1,), "prototypes": "none", "name": "stnet"} | options))

#: Named configurations.
METHODS: dict[str, Callable[..., MMAP]] = {"mmap": MMAP, "stnet": stnet}
