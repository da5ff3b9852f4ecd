"""Throughput of a pretraining step by its parts; augmentation against one image at a time.

``python benchmarks/dino.py --out DIR [--quick] [--backbones NAME ...]`` writes ``dino.csv``. Each
row is a ratio of two times that were taken in turns in one process. Without ``--backbones`` a CPU
times the micro models and, in small batches, two at full size (2 x 256 + 8 x 112 px); a GPU times
all six backbones at full size. Of each full-size model a row says how long the published run of
98,600 steps of 1,536 images would take at the throughput measured.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mvhlib import lineage
from mvhlib.artifacts import atomic
from mvhlib.backbones import scan
from mvhlib.dino import augment, losses, model
from mvhlib.dino.augment import COLUMNS, N_TRIES, MultiCrop, ViewSettings
from mvhlib.dino.config import Config
from mvhlib.dino.pretrain import Pretraining

FIELDS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
          "threads", "device", "dtype", "note")
MICRO = ("vit12_micro_patch8_64", "mvhybrid_micro_patch8_64", "hydrahybrid_micro_patch8_64",
         "vimeinfft_micro_patch8_64", "hydraeinfft_micro_patch8_64", "vit24_micro_patch8_64")
#: Steps and batch of the published run.
PUBLISHED = (98_600, 1536)
FULL = tuple(name.replace("micro_patch8_64", "small_patch16_256") for name in MICRO)


class PerImage:
    """The same recipe one image at a time with Pillow, as a chain of torchvision transforms."""

    def __init__(self, settings: ViewSettings, mean, std):
        self.settings, self.mean, self.std = settings, mean, std

    def __call__(self, tiles: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self.settings
        drawn = augment.draw(0, 0, np.arange(len(tiles)), 2 + chosen.n_local)
        first, local = [], []
        for tile, numbers in zip(tiles, drawn, strict=True):
            image = Image.fromarray(tile)
            for view, u in enumerate(numbers):
                large = view < 2
                side = chosen.global_px if large else chosen.local_px
                scale = chosen.global_scale if large else chosen.local_scale
                blur = chosen.blur[min(view, 2)]
                (first if large else local).append(self.view(image, u, side, scale, blur))
        return torch.stack(first), torch.stack(local)

    def view(self, image, numbers, side, scale, blur):
        box = augment.crop_boxes(numbers[None, None], image.height, image.width, scale, 4 / 3)
        top, left, height, width = box[0, 0].tolist()
        image = image.resize((side, side), Image.Resampling.BICUBIC,
                             box=(left, top, left + width, top + height))
        u = dict(zip(COLUMNS, numbers[2 * N_TRIES:].tolist(), strict=True))
        if u["flip"] < 0.5:
            image = ImageOps.mirror(image)
        if u["jitter"] < self.settings.jitter:
            for number in np.argsort([u[f"order{i}"] for i in range(4)]):
                image = self.jitter(image, number, u)
        if u["grey"] < self.settings.grey:
            image = image.convert("L").convert("RGB")
        if u["blur"] < blur:
            image = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * u["sigma"]))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    @staticmethod
    def jitter(image, number, u):
        if number == 3:
            h, s, v = image.convert("HSV").split()
            shift = np.uint8(round((2 * u["hue"] - 1) * 0.1 * 255) % 256)
            h = Image.fromarray(np.asarray(h) + shift)
            return Image.merge("HSV", (h, s, v)).convert("RGB")
        kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
        name = ("brightness", "contrast", "saturation")[number]
        return kind(image).enhance(1 + 0.2 * (2 * u[name] - 1))


class Clock:
    """Times calls by name; waits for a GPU."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, name, function, *args, **options):
        self.wait()
        start = time.perf_counter()
        out = function(*args, **options)
        self.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return out

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def write_tiles(folder: Path, side: int, n: int) -> None:
    from mvhlib.tiles import store
    from mvhlib.tiles.cut import Tiles

    img = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    tiles = Tiles(img, np.zeros((n, 2), int), np.zeros(n, np.float32), side, float(side), 1.0, 1.0)
    store.write_tiles(folder / "noise.h5", tiles, [str(i) for i in range(n)])


#: Parts of the augmentation, functions of `mvhlib.dino.augment`.
PARTS = ("draw", "crop_boxes", "crop", "colour_jitter", "to_grey", "gaussian_blur")


def time_augmentation(full: bool, device: torch.device, repeats: int) -> list[dict]:
    settings = ViewSettings() if full else ViewSettings(64, 32, 4)
    side, n = (256, 16) if full else (64, 64)
    tiles = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    single = PerImage(settings, (0.7, 0.5, 0.6), (0.2, 0.3, 0.2))
    batched = MultiCrop(settings, (0.7, 0.5, 0.6), (0.2, 0.3, 0.2))
    clock = Clock(device)

    def batch():
        return batched(torch.from_numpy(tiles).to(device), 0, 0, np.arange(n))

    for _ in range(repeats + 1):
        clock.time("single", single, tiles)
        clock.time("batched", batch)
    one, other = clock.median("single") / n, clock.median("batched") / n
    what = f"augmentation of an image, {settings.global_px} + {settings.local_px} px"
    rows = [{"what": what, "baseline": "one image at a time, Pillow",
             "candidate": "batched tensors", "baseline_s": one, "candidate_s": other,
             "ratio": one / other,
             "note": f"{1 / other:.0f} images/s; one CPU process for the baseline"}]
    spent, kept = Clock(device), {part: getattr(augment, part) for part in PARTS}
    spy(spent, {part: (augment, part) for part in PARTS})
    try:
        for _ in range(repeats):
            spent.time("whole", batch)
    finally:
        for part, function in kept.items():
            setattr(augment, part, function)
    whole = sum(spent.seconds["whole"]) / n / repeats
    for part in PARTS:
        seconds = sum(spent.seconds[part]) / n / repeats
        rows.append({"what": f"{what}: {part}", "baseline": "batched tensors", "candidate": part,
                     "baseline_s": whole, "candidate_s": seconds, "ratio": whole / seconds,
                     "note": f"{100 * seconds / whole:.0f} % of it"})
    return rows


def time_poles(folder: Path, device: torch.device, repeats: int) -> dict:
    """A whole pretraining step with complex poles against one with real ones, in turns."""
    clock, runs = Clock(device), {}
    for poles in ("real", "complex"):
        options = {} if poles == "real" else {"mixer_options": {"eigenvalues": "complex"}}
        run = Pretraining(Config(
            backbone="mvhybrid_micro_patch8_64", backbone_options=options, tiles=str(folder),
            folder=str(folder / poles), steps=1000, device=device.type, progress=False))
        run.order = run._order()
        runs[poles] = run, run._batches()
    for _ in range(repeats + 1):
        for poles, (run, batches) in runs.items():
            step, images = next(batches)
            clock.time(poles, run.step, images, step)
    real, turning = clock.median("real"), clock.median("complex")
    return {"what": "mvhybrid_micro_patch8_64: whole step, complex poles",
            "baseline": "real poles", "candidate": "complex poles", "baseline_s": real,
            "candidate_s": turning, "ratio": real / turning, "note": "batch 32"}


def time_step(name: str, folder: Path, device: torch.device, quick: bool) -> list[dict]:
    """Seconds of each part of a step, as a share of the whole."""
    full = "small" in name
    sizes = {"global_px": 256, "local_px": 112, "n_local": 8, "prototypes": 65_536,
             "head_hidden": 2048, "head_bottleneck": 256} if full else {}
    sizes["batch"] = 8 if full and device.type == "cpu" else 32
    config = Config(backbone=name, tiles=str(folder), folder=str(folder / name), steps=1000,
                    device=device.type, koleo_group=min(16, sizes["batch"]), progress=False,
                    precision="bf16" if device.type == "cuda" else "float32", **sizes)
    run = Pretraining(config)
    run.order = run._order()
    clock = Clock(device)
    parts = {"augmentation and masks": (run, "_prepare"), "teacher and targets": (run, "_targets"),
             "student forward": (run, "run_student"), "losses": (run, "_losses"),
             "optimiser": (run.optimizer, "step")}
    spy(clock, parts)
    pretrain_module = sys.modules["mvhlib.dino.pretrain"]
    update, backward = model.update_teacher, torch.Tensor.backward
    pretrain_module.update_teacher = lambda *args: clock.time("teacher average", update, *args)
    torch.Tensor.backward = lambda self: clock.time("backward", backward, self)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        n_steps = 3 if quick or sizes["batch"] == 8 else 8
        for (step, images), _ in zip(run._batches(), range(n_steps), strict=False):
            clock.time("whole step", run.step, images, step)
    finally:
        pretrain_module.update_teacher, torch.Tensor.backward = update, backward
    clock.seconds = {key: values[1:] for key, values in clock.seconds.items()}
    whole = clock.median("whole step")
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else ""
    rows = []
    for part in ("whole step", "augmentation and masks", "teacher and targets", "student forward",
                 "losses", "backward", "optimiser", "teacher average"):
        seconds = clock.median(part)
        rows.append({"what": f"{name}: {part}", "baseline": "whole step", "candidate": part,
                     "baseline_s": whole, "candidate_s": seconds, "ratio": whole / seconds,
                     "peak_mb": peak, "dtype": config.precision,
                     "note": f"batch {config.batch}, {config.batch / seconds:.1f} images/s"})
    if full:
        steps, batch = PUBLISHED
        seconds = steps * batch * whole / config.batch
        rows.append({"what": f"{name}: the published {steps:,} steps of {batch:,} images",
                     "baseline": "at this throughput", "candidate": "a step here",
                     "baseline_s": seconds, "candidate_s": whole, "ratio": seconds / whole,
                     "peak_mb": peak, "dtype": config.precision,
                     "note": f"{seconds / 86_400:,.0f} days of this machine; arithmetic, not run"})
    return rows + scan_share(name, run, clock, whole, config)


def spy(clock: Clock, parts: dict) -> None:
    for label, (owner, attribute) in parts.items():
        function = getattr(owner, attribute)
        setattr(owner, attribute, lambda *args, label=label, function=function, **options:
                clock.time(label, function, *args, **options))


def scan_share(name: str, run: Pretraining, clock: Clock, whole: float, config: Config) -> list:
    """Forward recurrences of one student pass, timed by themselves."""
    spent = Clock(run.device)
    mixers = sys.modules["mvhlib.backbones.mixers"]
    kept = {f: getattr(mixers, f) for f in ("selective_scan", "ssd") if hasattr(mixers, f)}
    for function_name, function in kept.items():
        setattr(mixers, function_name, lambda *args, function=function, **options:
                spent.time("scan", function, *args, **options))
    try:
        (step, images) = next(iter(run._batches()))
        batch = run._prepare(images[0], step, 0)
        for _ in range(2):
            spent.seconds.clear()
            with torch.no_grad(), run._autocast():
                start = time.perf_counter()
                run.student(batch["views"], batch["masks"], batch["local"])
                spent.wait()
                forward = time.perf_counter() - start
    finally:
        for function_name, function in kept.items():
            setattr(mixers, function_name, function)
    if not spent.seconds:
        return []
    seconds = sum(spent.seconds["scan"])
    return [{"what": f"{name}: scan within the student's forward pass", "baseline": "forward",
             "candidate": "recurrences", "baseline_s": forward, "candidate_s": seconds,
             "ratio": forward / seconds, "dtype": config.precision,
             "note": f"{100 * seconds / forward:.0f} % of the pass; "
                     f"backends {', '.join(scan.available_backends())}"}]


def time_sinkhorn(device: torch.device, repeats: int) -> dict:
    logits = torch.randn(256, 4096, device=device)

    def rewritten() -> torch.Tensor:
        plan = torch.exp((logits - logits.max()) / 0.05).T
        plan = plan / plan.sum()
        for _ in range(3):
            plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
            plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
        return (plan * plan.shape[1]).T

    clock = Clock(device)
    for _ in range(repeats + 1):
        clock.time("matrix", rewritten)
        clock.time("vectors", losses.sinkhorn, logits, 0.05)
    one, other = clock.median("matrix"), clock.median("vectors")
    return {"what": "Sinkhorn-Knopp, 256 rows, 4096 prototypes",
            "baseline": "matrix rewritten at every iteration", "candidate": "scaling vectors",
            "baseline_s": one, "candidate_s": other, "ratio": one / other, "note": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--backbones", nargs="*")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu, repeats = device.type == "cuda", 2 if given.quick else 7
    names = given.backbones or (FULL if on_gpu else MICRO[:2] if given.quick else
                                (*MICRO, *FULL[:2]))
    rows = [*time_augmentation(False, device, repeats), *time_augmentation(True, device, repeats),
            time_sinkhorn(device, repeats)]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            part = Path(folder, "full" if "small" in name else "micro")
            if not part.exists():
                part.mkdir()
                write_tiles(part, 256 if "small" in name else 64, 64)
            rows += time_step(name, part, device, given.quick)
        if Path(folder, "micro").exists():
            rows.append(time_poles(Path(folder, "micro"), device, repeats))
    common = {"peak_mb": "", "threads": torch.get_num_threads(), "device": device.type,
              "dtype": "float32"}
    with atomic(given.out / "dino.csv") as temporary, open(
            temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            row = common | row
            for column in ("baseline_s", "candidate_s", "ratio"):
                row[column] = f"{row[column]:.4g}"
            writer.writerow(row)
            print(f"{row['what']}: {row['ratio']} ({row['note']})")
    lineage.enter(given.out / "dino.csv", __file__)


if __name__ == "__main__":
    main()
