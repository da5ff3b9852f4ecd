"""Attention multiple-instance learning: a label of a slide from the bag of its tiles.

Of the tiles `h_t` of a bag, gated attention takes the weighted mean `z` that it classifies by:

.. math:: a_t = \\mathrm{softmax}_t\\; w^T(\\tanh(V h_t) \\odot \\sigma(U h_t)), \\quad
          z = \\sum_t a_t h_t

Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018, equations
7 to 9. The attention of a tile is its weight in the mean, not a probability; in a bag without the
sought instances it goes to the tiles that resemble them most.

Bags are read from feature files when they are needed and kept only while they fit into a stated
memory. Training sees at most `max_tiles` of a bag at each step, drawn anew; testing sees all tiles,
in parts, with a softmax that is carried along and exact.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mvhlib import standardise, statistics
from mvhlib.artifacts import (
    InputError,
    check_h5_files,
    h5_array,
    h5_reader,
    read_attr,
    sha256_file,
    sha256_of,
)
from mvhlib.downstream import probe
from mvhlib.training import Fit, FitConfig, fit, keyed_generator

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mvhlib.tiles.cut import Tiles

#: How the network of a fold is trained, where nothing else is asked for. Found on a synthetic
#: cohort: attention settles late, and a validation loss may rise for 20 epochs before it falls.
CONFIG = FitConfig(epochs=80, batch=16, lr=3e-3, warmup_epochs=2, optimizer="adamw",
                   weight_decay=1e-2, clip=1.0, patience=25)

#: Networks per fold, of which the best by validation loss is kept. On the same cohort one in four
#: attended to the wrong tiles from its first epochs on and never left them.
STARTS = 3

#: Share of the training patients that decide when to stop.
INNER_SHARE = 0.2


class Bags:
    """Feature files of slides, read tile by tile.

    Parameters
    ----------
    folder
        Holds ``<name>.h5`` in any layout of `mvhlib.features`.
    names
        Slides, one bag each.
    centre
        Subtract each slide's own mean from its tiles: what is the same all over a slide, its stain
        above all, goes, and with it what the slide is made of on the whole. What stands out in the
        slide stays.
    memory_mb
        Bags are kept once read, until they fill this; the others are read again each time.

    Attributes
    ----------
    sizes, width
        Tiles of each bag, `(n,)`; width of the features.
    key
        Hash of what the features were made from.

    Raises
    ------
    InputError
        If a file is missing or holds no features per tile, a bag has no tile, or widths differ.
    """

    def __init__(self, folder: str | os.PathLike, names: Sequence[str], *, centre: bool = False,
                 memory_mb: float = 1000):
        self.folder, self.names = Path(folder), list(names)
        if not self.names:
            raise InputError(folder, "bags", "are none", "name the slides")
        check_h5_files(map(self._path, self.names))
        shapes = [self._shape(name) for name in self.names]
        empty = [name for name, shape in zip(self.names, shapes, strict=True) if shape[0] == 0]
        if empty:
            raise InputError(folder, "bags", f"have no tile in {empty[:3]}",
                             "leave the slide out, or lower the share of tissue that a tile needs")
        widths = sorted({shape[1] for shape in shapes})
        if len(widths) > 1:
            raise InputError(folder, "features", f"differ in width: {widths}",
                             "embed all slides with one encoder")
        self.sizes, self.width = np.array([shape[0] for shape in shapes]), widths[0]
        self.key = sha256_of([read_attr(self._path(name), "key") or sha256_file(self._path(name))
                              for name in self.names])
        self._room = memory_mb * 1e6
        self._kept: dict[int, np.ndarray] = {}
        self.centre, self._means = centre, {}

    def __len__(self) -> int:
        return len(self.names)

    def read(self, bag: int, tiles: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Features of some tiles of a bag, `(T, D)` float32.

        Parameters
        ----------
        tiles
            A slice, or positions in ascending order.
        """
        if bag in self._kept:
            return self._kept[bag][tiles]
        nbytes = 4 * int(self.sizes[bag]) * self.width
        keep = nbytes <= self._room
        with h5_reader(self._path(self.names[bag])) as stream:
            values = np.asarray(self._dataset(stream)[slice(None) if keep else tiles], np.float32)
        if not np.isfinite(values).all():
            raise InputError(self._path(self.names[bag]), "features", "hold NaN or infinity",
                             "embed the slide again")
        if self.centre:
            values = values - self._mean(bag, values if keep else None)
        if not keep:
            return values
        self._room -= nbytes
        self._kept[bag] = values
        return values[tiles]

    def _mean(self, bag: int, values: np.ndarray | None, size: int = 4096) -> np.ndarray:
        """Mean of all tiles of a bag, `(D,)`; of one that is not in memory, summed up in parts."""
        if bag not in self._means:
            if values is not None:
                total = values.sum(axis=0, dtype=np.float64)
            else:
                with h5_reader(self._path(self.names[bag])) as stream:
                    data = self._dataset(stream)
                    total = sum(data[start:start + size].sum(axis=0, dtype=np.float64)
                                for start in range(0, len(data), size))
            self._means[bag] = (total / self.sizes[bag]).astype(np.float32)
        return self._means[bag]

    def parts(self, bag: int, size: int) -> Iterator[np.ndarray]:
        """All tiles of a bag in order, at most `size` at a time."""
        for start in range(0, int(self.sizes[bag]), size):
            yield self.read(bag, slice(start, start + size))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.h5"

    def _shape(self, name: str) -> tuple[int, int]:
        with h5_reader(self._path(name)) as stream:
            shape = self._dataset(stream).shape
        if len(shape) != 2:
            raise InputError(self._path(name), "features", f"have shape {shape}", "store (n, D)")
        return shape

    @staticmethod
    def _dataset(stream):
        for name in ("features", "embeddings"):
            if name in stream:
                found = h5_array(stream, name, read=False)
                return _OnlyBag(found) if found.ndim == 3 and len(found) == 1 else found
        raise InputError(stream.filename, "features", f"is missing; the file has {sorted(stream)}",
                         "make the file with 04_embed")


class _OnlyBag:
    """TRIDENT's `(1, n, D)` features, read as `(n, D)` without loading them."""

    def __init__(self, dataset):
        self.dataset, self.shape = dataset, dataset.shape[1:]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.dataset[0, rows]


class GatedAttention(nn.Module):
    """Gated-attention pooling of the tiles of a bag, and a linear classifier.

    Parameters
    ----------
    width
        Of the features, `D`.
    n_classes
        `K`.
    hidden, attention
        Width of the tile's representation, and of the two branches of the gate.
    dropout
        Of the tile's representation and of the gate, in training.
    """

    def __init__(self, width: int, n_classes: int, hidden: int = 32, attention: int = 16,
                 dropout: float = 0.25):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.represent = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.content = nn.Sequential(nn.Linear(hidden, attention), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(hidden, attention), nn.Sigmoid(), nn.Dropout(dropout))
        self.weigh = nn.Linear(attention, 1)
        self.classify = nn.Linear(hidden, n_classes)

    def tiles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representation `(..., H)` and log-attention `(...)`, not normalised, of `(..., D)`."""
        h = self.represent((x - self.mean) / self.spread)
        return h, self.weigh(self.content(h) * self.gate(h)).squeeze(-1)

    def forward(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Classify bags of different sizes, padded to the largest.

        Parameters
        ----------
        x, there
            Tiles `(B, T, D)`, filled up to the largest bag, and which of them exist `(B, T)`.

        Returns
        -------
        tuple of Tensor
            Logits `(B, K)` and attention `(B, T)`, which sums to 1 over the tiles that exist.
        """
        h, log_attention = self.tiles(x)
        attention = log_attention.masked_fill(~there, -torch.inf).softmax(dim=1)
        z = torch.einsum("bt,bth->bh", attention, h)
        return self.classify(z), attention

    @torch.no_grad()
    def stream(self, parts: Iterable[np.ndarray]) -> tuple[Tensor, Tensor]:
        """One bag in parts: logits `(K,)` and attention `(T,)`, as `forward` gives them.

        Only the log-attention of all tiles is kept; sum and weighted mean are rescaled whenever a
        larger log-attention comes (the softmax of Milakov and Gimelshein, arXiv 1805.02867).
        """
        kept, largest, total, z = [], -torch.inf, 0.0, 0.0
        for part in parts:
            h, log_attention = self.tiles(torch.as_tensor(part, device=self.mean.device))
            new = max(largest, float(log_attention.max()))
            weight = (log_attention - new).exp()
            old = float(np.exp(largest - new))
            total = total * old + float(weight.sum())
            z = z * old + weight @ h
            largest = new
            kept.append(log_attention)
        return self.classify(z / total), (torch.cat(kept) - largest).exp() / total


@dataclass(frozen=True)
class Result:
    """Predictions and attention on unseen slides.

    Attributes
    ----------
    classes, truth
        Names; class of each slide `(n,)`.
    probability
        `(n, K)`.
    attention
        Slide -> attention of each tile in the order of its file, `(T,)`.
    fold
        Which network tested each slide, `(n,)`.
    groups
        Patient (or site) of each slide, `(n,)`.
    fits
        Training of the network that was kept, one per fold.
    """

    classes: tuple[str, ...]
    truth: np.ndarray = field(repr=False)
    probability: np.ndarray = field(repr=False)
    attention: dict[str, np.ndarray] = field(repr=False)
    fold: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    fits: list[Fit] = field(repr=False)

    def scores(self, seed: int = 0) -> probe.Scores:
        """Counts of `mvhlib.downstream.probe`; AUROC compares slides of one fold only."""
        return probe.score(self.truth, self.probability, self.classes, self.groups, fold=self.fold,
                           seed=seed)

    def table(self, *, dataset: str, encoder: str, classifier: str = "mil",
              split: str = "grouped", unit: str = "patient", seed: int = 0) -> "pd.DataFrame":
        """Rows of ``summary.csv``."""
        rows = self.scores(seed).intervals(seed=seed)
        return rows.assign(dataset=dataset, encoder=encoder, classifier=classifier, split=split,
                           unit=unit)[list(probe.COLUMNS)]


def train(bags: Bags, labels: np.ndarray, rows: np.ndarray, valid: np.ndarray, *, n_classes: int,
          seed: int = 0, config: FitConfig = CONFIG, max_tiles: int = 1024,
          folder: str | os.PathLike | None = None, key=None, device: str = "cpu", **size
          ) -> tuple[GatedAttention, Fit]:
    """Train one network.

    Parameters
    ----------
    bags, labels
        All bags, and the class of each as a number `(n,)`.
    rows, valid
        Bags to train on, and bags whose loss decides when to stop (none: no early stop).
    max_tiles
        Most tiles of a bag in one step.
    folder, key
        As in `mvhlib.training.fit`: killed and called again, the weights end the same.
    **size
        Widths and dropout of `GatedAttention`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_generator(seed).integers(2**62)))
        model = GatedAttention(bags.width, n_classes, **size)
    mean, spread = _moments(bags, rows, max_tiles)
    model.mean.copy_(torch.from_numpy(mean))
    model.spread.copy_(torch.from_numpy(spread))
    model.to(device)
    target = torch.as_tensor(labels, device=device)

    def loss(batch: np.ndarray, epoch: int) -> dict[str, Tensor]:
        chosen = rows[batch]
        drawn = [bags.read(bag, _draw(bags.sizes[bag], max_tiles, seed, epoch, bag))
                 for bag in chosen]
        logits, _ = model(*_stacked(drawn, device))
        return {"loss": nn.functional.cross_entropy(logits, target[chosen])}

    def validate() -> float:
        return float(nn.functional.cross_entropy(predict(model, bags, valid, max_tiles)[0],
                                                 target[valid]))

    found = fit(model, loss, len(rows), config, seed=seed, folder=folder, key=key,
                validate=validate if len(valid) else None)
    return model, found


@torch.no_grad()
def predict(model: GatedAttention, bags: Bags, rows: Sequence[int], max_tiles: int = 1024,
            batch: int = 64) -> tuple[Tensor, list[np.ndarray]]:
    """Logits `(n, K)` of some bags and the attention `(T,)` of all tiles of each.

    Bags of up to `max_tiles` are taken together, larger ones in parts by themselves.
    """
    device = model.mean.device
    logits, attention = {}, {}
    small = [bag for bag in rows if bags.sizes[bag] <= max_tiles]
    for start in range(0, len(small), batch):
        chosen = small[start:start + batch]
        found, weight = model(*_stacked([bags.read(bag) for bag in chosen], device))
        for row, bag in enumerate(chosen):
            logits[bag], attention[bag] = found[row], weight[row, :bags.sizes[bag]]
    for bag in set(rows) - set(small):
        logits[bag], attention[bag] = model.stream(bags.parts(bag, max_tiles))
    return (torch.stack([logits[bag] for bag in rows]),
            [attention[bag].cpu().numpy() for bag in rows])


def _draw(n: int, most: int, seed: int, epoch: int, bag: int) -> np.ndarray | slice:
    """Tiles of one bag at one step: all, or `most` drawn by (seed, epoch, bag)."""
    if n <= most:
        return slice(None)
    return np.sort(keyed_generator(seed, epoch, bag).choice(n, most, replace=False))


def _stacked(bags: list[np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    """Pad bags to one tensor `(B, T, D)`; also a mask `(B, T)` of the tiles that exist."""
    longest = max(map(len, bags))
    x = np.zeros((len(bags), longest, bags[0].shape[1]), np.float32)
    there = np.zeros((len(bags), longest), bool)
    for row, bag in enumerate(bags):
        x[row, :len(bag)], there[row, :len(bag)] = bag, True
    return torch.from_numpy(x).to(device), torch.from_numpy(there).to(device)


def _moments(bags: Bags, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each feature over the tiles of the training bags, read once in parts."""
    n, first, second = 0, np.zeros(bags.width), np.zeros(bags.width)
    shift = next(bags.parts(int(rows[0]), size)).astype(np.float64).mean(axis=0)
    for bag in rows:
        for part in bags.parts(bag, size):
            moved = part.astype(np.float64) - shift
            n, first, second = n + len(part), first + moved.sum(0), second + (moved**2).sum(0)
    spread = np.sqrt(np.maximum(second / n - (first / n) ** 2, 0))
    # A feature that does not vary in training is left as it is, and not blown up in testing.
    varies = standardise.varies(spread, np.abs(shift + first / n))
    return ((shift + first / n).astype(np.float32),
            np.where(varies, spread, 1.0).astype(np.float32))


def cross_validate(bags: Bags, labels: Sequence[str], groups: Sequence[str], *, n_folds: int = 5,
                   seed: int = 0, config: FitConfig = CONFIG, starts: int = STARTS,
                   max_tiles: int = 1024, folder: str | os.PathLike | None = None,
                   device: str = "cpu", unit: str = "patient", **size) -> Result:
    """Train and test on folds that hold out whole patients, or whole sites.

    In each fold, a fifth of the training patients (or sites) trains nothing: it decides when each
    network stops, and which of `starts` networks of other initial weights is tested.

    Parameters
    ----------
    bags, labels, groups
        Slides, with class and patient of each, `(n,)`; or class and site, for sites not seen.
    folder
        Takes training states, in one sub-folder per recipe and fold.
    unit
        What the groups are (patient, study), for errors.
    n_folds, seed, config, starts, max_tiles, device, **size
        See `probe.folds`, `train`, `GatedAttention`.

    Raises
    ------
    InputError
        As `probe.folds`, and where labels do not fit the bags.
    """
    labels, groups = np.asarray(labels, dtype=str), np.asarray(groups, dtype=str)
    if not len(labels) == len(groups) == len(bags):
        raise InputError("mil", "labels", f"are {len(labels)}, with {len(groups)} groups, for "
                         f"{len(bags)} bags", "give one of each per bag")
    from mvhlib.cohort.splits import hold_out

    fold = probe.folds(labels, groups, n_folds=n_folds, seed=seed, unit=unit)
    classes, code = np.unique(labels, return_inverse=True)
    recipe = {"bags": bags.key, "centre": bags.centre, "max_tiles": max_tiles,
              "labels": sha256_of(labels.tolist(), groups.tolist()),
              "size": str(sorted(size.items()))}
    probability, attention, fits = np.empty((len(bags), len(classes))), {}, []
    for k in range(int(fold.max()) + 1):
        train_rows = np.flatnonzero(fold != k)
        inner = hold_out(groups[train_rows], INNER_SHARE, seed + k)
        best = None
        for start in range(starts):
            place = None
            if folder is not None:
                digest = sha256_of(recipe, asdict(config), n_folds, seed)[:12]
                place = Path(folder) / digest / f"fold{k}.{start}"
            model, found = train(
                bags, code, train_rows[~inner], train_rows[inner], n_classes=len(classes),
                seed=int(np.random.SeedSequence([seed, k, start]).generate_state(1)[0]),
                config=config, max_tiles=max_tiles, folder=place, key=recipe | {"fold": k},
                device=device, **size)
            loss = found.log[found.best_epoch - 1]["valid_loss"]
            if best is None or loss < best[0]:
                best = loss, model, found
        model, found = best[1:]
        fits.append(found)
        tested = np.flatnonzero(fold == k)
        logits, weights = predict(model, bags, tested, max_tiles)
        probability[tested] = logits.cpu().double().softmax(dim=1).numpy()
        attention |= {bags.names[bag]: w for bag, w in zip(tested, weights, strict=True)}
    return Result(tuple(classes), labels, probability,
                  {name: attention[name] for name in bags.names}, fold, groups, fits)


def attention_auroc(attention: Mapping[str, np.ndarray], planted: Mapping[str, np.ndarray]
                    ) -> "pd.DataFrame":
    """How well attention finds the instances that make a bag's label, slide by slide.

    Parameters
    ----------
    attention
        Slide -> attention `(T,)`.
    planted
        Slide -> which tiles are sought, `(T,)`. Slides without one, or with nothing else, tell
        nothing and are left out.

    Returns
    -------
    DataFrame
        slide, n_tiles, n_planted, auroc.

    Raises
    ------
    InputError
        If a slide has no truth, or one of another number of tiles.
    """
    import pandas as pd

    rows = []
    for slide, weight in attention.items():
        truth = np.asarray(planted.get(slide, []), dtype=bool)
        if len(truth) != len(weight):
            raise InputError("mil", f"truth of {slide}", f"has {len(truth)} tiles of {len(weight)}",
                             "give one truth per tile, in the order of the features")
        score = statistics.auroc(weight, truth)
        if np.isfinite(score):
            rows.append({"slide": slide, "n_tiles": len(truth), "n_planted": int(truth.sum()),
                         "auroc": score})
    return pd.DataFrame(rows, columns=["slide", "n_tiles", "n_planted", "auroc"])


def attention_row(per_slide: "pd.DataFrame", units: Mapping[str, str], *, dataset: str,
                  encoder: str, split: str = "grouped", unit: str = "patient") -> "pd.DataFrame":
    """The row of ``summary.csv`` for `attention_auroc`.

    Mean over a unit's slides, then over units, with Student's t interval; `units` names the
    patient (or site) of each slide.
    """
    import pandas as pd

    owned = per_slide.assign(section=per_slide["slide"], unit=per_slide["slide"].map(dict(units)))
    found = statistics.t_interval(statistics.unit_means(owned, "unit", value="auroc"))
    return pd.DataFrame([{
        "dataset": dataset, "encoder": encoder, "classifier": "mil", "split": split,
        "metric": "attention_auroc", "unit": unit, "n_units": found.n, "mean": found.mean,
        "ci_low": max(found.low, 0.0), "ci_high": min(found.high, 1.0)}],
        columns=list(probe.COLUMNS))


def attention_map(coords: np.ndarray, values: np.ndarray, side: float, ax: "Axes", *,
                  img: np.ndarray | None = None, marked: np.ndarray | None = None,
                  cmap: str = "magma") -> "Axes":
    """Draw one value per tile at its place on the slide.

    Parameters
    ----------
    coords, side
        Top-left corners `(T, 2)` and side of the tiles [level-0 px].
    values
        `(T,)`; attention is drawn by its rank between 0 and 1, or a few tiles take all the colour.
    img
        Tiles `(T, S, S, 3)`, drawn instead of the values.
    marked
        Tiles to be framed, `(T,)` bool.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle
    from scipy.stats import rankdata

    coords = np.asarray(coords, dtype=np.float64)
    left, top = coords.min(axis=0)
    right, bottom = coords.max(axis=0) + side
    if img is not None:
        ax.imshow(_mosaic(img, coords, side), extent=(left, right, bottom, top))
    else:
        squares = PatchCollection([Rectangle(place, side, side) for place in coords], cmap=cmap,
                                  edgecolor="face", linewidth=0.1, rasterized=True)
        squares.set_array((rankdata(values) - 1) / max(len(values) - 1, 1))
        squares.set_clim(0, 1)
        ax.add_collection(squares)
    if marked is not None:
        inset = 0.06 * side
        for x, y in coords[np.asarray(marked, dtype=bool)]:
            ax.add_patch(Rectangle((x + inset, y + inset), side - 2 * inset, side - 2 * inset,
                                   fill=False, edgecolor="#00B050", linewidth=1.4))
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.set_axis_off()
    return ax


def draw_slide(tiles: "Tiles", weight: np.ndarray, marked: np.ndarray
               ) -> "tuple[Figure, pd.DataFrame]":
    """Draw a slide's tiles beside their attention by rank; and return what is drawn.

    Parameters
    ----------
    weight
        Attention of each tile `(T,)`.
    marked
        Tiles that are framed `(T,)`: the planted ones.
    """
    import matplotlib.pyplot as plt
    import pandas as pd

    from mvhlib import plots

    fig, axes = plt.subplots(1, 2, figsize=(plots.PAGE, 3.7))
    attention_map(tiles.coords, weight, tiles.source_px, axes[0], img=tiles.img, marked=marked)
    attention_map(tiles.coords, weight, tiles.source_px, axes[1], marked=marked)
    axes[0].set_title("tiles; planted ones framed")
    axes[1].set_title("attention")
    fig.colorbar(axes[1].collections[0], ax=axes[1], shrink=0.7,
                 label="rank among the slide's tiles (1: highest)")
    return fig, pd.DataFrame({"barcode": tiles.barcodes, "x_px": tiles.coords[:, 0],
                              "y_px": tiles.coords[:, 1], "attention": weight, "planted": marked})


def _mosaic(img: np.ndarray, coords: np.ndarray, side: float, max_px: int = 1200) -> np.ndarray:
    """The slide put together again from its tiles, white where there is none."""
    extent = coords.max(axis=0) + side - coords.min(axis=0)
    step = int(np.clip(max_px * side / extent.max(), 1, img.shape[1]))
    keep = (np.arange(step) * img.shape[1]) // step
    shape = np.ceil(extent / side * step).astype(int) + 1
    canvas = np.full((shape[1], shape[0], 3), 255, np.uint8)
    corners = np.floor((coords - coords.min(axis=0)) / side * step).astype(int)
    for tile, (x, y) in zip(img, corners, strict=True):
        canvas[y:y + step, x:x + step] = tile[keep][:, keep]
    return canvas[:-1, :-1]
