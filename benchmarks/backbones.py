"""Side-by-side timings of the backbones and their parts: `backbones.csv`.

    python benchmarks/backbones.py --out DIR [--quick]

Every row compares a candidate with a baseline on the same tensors in the same process. Times are
the least of several repeats, taken in turns, since anything else that runs on the machine can only
add to them. `peak_mb` is what the candidate adds to the resident memory of a fresh process, its
output and gradients included [MB = 10^6 bytes].
"""

import argparse
import copy
import functools
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mvhlib import artifacts, lineage
from mvhlib.backbones import create_model, scan
from mvhlib.backbones.channel import EinFFT

COLUMNS = ("what", "baseline", "candidate", "baseline_s", "candidate_s", "ratio", "peak_mb",
           "threads", "device", "dtype", "note")
THREADS = 2


def row(what: str, baseline: str, candidate: str, baseline_s: float, candidate_s: float,
        peak_mb: float = float("nan"), device: str = "cpu", dtype: str = "float32",
        note: str = "") -> dict:
    """One line of the table; `ratio` says how many times faster the candidate is."""
    values = (what, baseline, candidate, baseline_s, candidate_s, baseline_s / candidate_s, peak_mb,
              torch.get_num_threads(), device, dtype, note)
    return dict(zip(COLUMNS, values, strict=True))


def least_seconds(task: Callable[[], object], repeats: int, warm: bool = True) -> float:
    """The shortest of `repeats` runs, after one that does not count."""
    if warm:
        task()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _memory_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _peak_in_this_process(prepare: Callable, threads: int, answer) -> None:
    torch.set_num_threads(threads)
    task, warm_up = prepare()
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _memory_bytes("VmRSS")
    kept = task()
    answer.put((_memory_bytes("VmHWM") - before) / 1e6)
    del kept


def peak_mb(prepare: Callable) -> float:
    """Memory that a task adds [MB], in a fresh process; NaN where the system does not tell.

    `prepare` is a module-level function or a `functools.partial` of one. It returns the task, and a
    small run that loads what the task needs.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return float("nan")
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_peak_in_this_process,
                              args=(prepare, torch.get_num_threads(), answer))
    process.start()
    process.join()
    return answer.get() if process.exitcode == 0 else float("nan")


# ---- scans ----


def published_loop() -> tuple[Callable, str]:
    """The reference scan, and where it comes from."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_ref
    except Exception:  # a broken install shows itself in many ways
        loop = functools.partial(scan.selective_scan, backend="reference")
        return loop, "baseline: transcription that indexes as mamba's selective_scan_ref"
    return (lambda *tensors: selective_scan_ref(*tensors[:6], None, tensors[6], True),
            "baseline: mamba_ssm's own selective_scan_ref")


def scan_tensors(batch: int, channels: int, length: int, states: int) -> list[torch.Tensor]:
    """Inputs in the order of `selective_scan`, steps as after Mamba's initialisation."""
    generator = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(batch, channels, length, generator=generator) for _ in range(2))
    B, C = (torch.randn(batch, states, length, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    tensors = [u, 0.5 * delta, A, B, C, torch.ones(channels), torch.full((channels,), -4.6)]
    return [tensor.requires_grad_() for tensor in tensors]


def forward(function: Callable, tensors: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return function(*tensors)


def forward_backward(function: Callable, tensors: list[torch.Tensor]) -> tuple:
    y = function(*tensors)
    return y.detach(), torch.autograd.grad(y, tensors, torch.ones_like(y))


def prepare_scan(backend: str, run: Callable, sizes: tuple[int, int, int, int]):
    function = functools.partial(scan.selective_scan, backend=backend)
    small = scan_tensors(1, 16, 20, sizes[3])
    return (functools.partial(run, function, scan_tensors(*sizes)),
            functools.partial(run, function, small))


def scan_rows(quick: bool) -> list[dict]:
    """Selective scan of each backend against the published loop, forward and with gradients."""
    sizes = (2, 64, 65, 16) if quick else (16, 384, 257, 16)
    repeats = 3 if quick else 15
    shape = "B{} D{} L{} N{}".format(*sizes)
    loop, origin = published_loop()
    tensors = scan_tensors(*sizes)
    names = [name for name in ("torch", "native") if name in scan.available_backends()]
    rows = []
    for label, run in (("forward", forward), ("forward+backward", forward_backward)):
        slow = run is forward_backward
        seconds = dict.fromkeys(names, float("inf"))
        for turn in range(2):
            for name in names:
                task = functools.partial(
                    run, functools.partial(scan.selective_scan, backend=name), tensors)
                seconds[name] = min(seconds[name], least_seconds(task, repeats))
            if turn == 0:
                # The backward pass of the loop is quadratic in L: once is enough.
                baseline = least_seconds(functools.partial(run, loop, tensors),
                                         1 if slow else 3, warm=not slow)
        for name in names:
            rows.append(row(
                f"selective scan {label} {shape}", "published loop", name, baseline, seconds[name],
                peak_mb(functools.partial(prepare_scan, name, run, sizes)),
                note=f"{origin}; least of {2 * repeats}, baseline of {1 if slow else 3}"))
    return rows


def pole_rows(quick: bool) -> list[dict]:
    """What complex poles cost the compiled kernel, and what it saves; B and C real, as mixers have
    them, or complex too."""
    if "native" not in scan.available_backends():
        return []
    sizes = (2, 64, 65, 16) if quick else (16, 384, 257, 16)
    real = [tensor.detach() for tensor in scan_tensors(*sizes)]
    generator = torch.Generator().manual_seed(1)
    states = real[2].shape[1]
    frequency = math.pi * torch.arange(states).repeat(sizes[1], 1)
    turning = [*real[:2], torch.complex(real[2], frequency), *real[3:]]
    B, C = (torch.complex(tensor, torch.randn(tensor.shape, generator=generator))
            for tensor in real[3:5])
    rows = []
    for label, run in (("forward", forward), ("forward+backward", forward_backward)):
        def task(backend, tensors, run=run):
            given = [tensor.clone().requires_grad_() for tensor in tensors]
            return functools.partial(
                run, functools.partial(scan.selective_scan, backend=backend), given)

        for kind, tensors in (("complex poles", turning),
                              ("complex poles, B and C", [*turning[:3], B, C, *turning[5:]])):
            seconds = in_turns({
                "real poles, native": task("native", real),
                f"{kind}, torch": task("torch", tensors),
                f"{kind}, native": task("native", tensors)}, 2 if quick else 9)
            *baselines, candidate = seconds
            rows += [row(
                "selective scan {} B{} D{} L{} N{}, {}".format(label, *sizes, kind),
                baseline, candidate, seconds[baseline], seconds[candidate],
                note="a complex product is four real ones") for baseline in baselines]
    return rows


def ssd_rows(quick: bool) -> list[dict]:
    """Chunked SSD against its loop, forward and with gradients."""
    batch, length, heads, width, states = (2, 65, 2, 16, 16) if quick else (4, 257, 12, 64, 64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, heads, width, generator=generator)
    dt = torch.nn.functional.softplus(torch.randn(batch, length, heads, generator=generator) - 4)
    B, C = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    tensors = [t.requires_grad_() for t in (x, dt, -torch.arange(1.0, heads + 1), B, C)]
    rows = []
    for label, run in (("forward", forward), ("forward+backward", forward_backward)):
        baseline, candidate = (
            functools.partial(run, functools.partial(scan.ssd, backend=name), tensors)
            for name in ("reference", "torch"))
        seconds = least_seconds(baseline, 2), least_seconds(candidate, 3 if quick else 10)
        rows.append(row(f"SSD {label} B{batch} L{length} H{heads} P{width} N{states}",
                        "loop over tokens", "chunks of 64", *seconds))
    return rows


# ---- channel mixer and whole models ----


class PublishedEinFFT(torch.nn.Module):
    """EinFFT as SiMBA and MVHybrid compute it: eight products of strided real and imaginary parts.

    Transcribed operation by operation, to be timed; takes its weights from ours.
    """

    def __init__(self, layer: EinFFT):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, (n_batch, n, dim) = self.layer, x.shape
        x = torch.fft.fft2(x.view(n_batch, n, layer.n_blocks, -1), dim=(1, 2), norm="ortho")
        real, imaginary = x.real, x.imag
        for step, activate in ((1, torch.nn.functional.relu), (2, lambda part: part)):
            weight = getattr(layer, f"complex_weight_{step}")
            bias = getattr(layer, f"complex_bias_{step}")

            def times(part, i, weight=weight):
                return torch.einsum("...bd,bdk->...bk", part, weight[i])

            real, imaginary = (
                activate(times(real, 0) - times(imaginary, 1) + bias[0]),
                activate(times(real, 1) + times(imaginary, 0) + bias[1]))
        x = torch.stack([real, imaginary], dim=-1).float()
        x = torch.view_as_complex(torch.nn.functional.softshrink(x, layer.threshold))
        return torch.fft.ifft2(x, dim=(1, 2), norm="ortho").real.float().reshape(n_batch, n, dim)


def in_turns(tasks: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Least seconds of each task, taken in turns so that a slow minute hits all of them."""
    for task in tasks.values():
        task()
    seconds = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            seconds[name] = min(seconds[name], least_seconds(task, 1, warm=False))
    return seconds


def large_product(quick: bool) -> tuple[Callable, int]:
    """A product of two large matrices, which runs at the machine's peak, and its operations."""
    edge = 512 if quick else 4096
    left, right = (torch.randn(edge, edge) for _ in range(2))
    return functools.partial(torch.mm, left, right), 2 * edge**3


def flops_of(task: Callable) -> int:
    """Operations of the matrix products, convolutions and attention in a task."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, depth=0) as counter:
        task()
    return counter.get_total_flops()


def channel_rows(quick: bool) -> list[dict]:
    """EinFFT by real products against its published formulation."""
    batch, n, dim = (2, 65, 64) if quick else (16, 257, 384)
    layer = EinFFT(dim)
    x = torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(0), requires_grad=True)
    product, work = large_product(quick)
    rows = []
    for label in ("forward", "forward+backward"):
        def run(module, label=label):
            if label == "forward":
                with torch.no_grad():
                    return module(x)
            return module(x).sum().backward()  # torch counts no operations in autograd.grad

        seconds = in_turns({"product": product, "published": functools.partial(
            run, PublishedEinFFT(layer)), "ours": functools.partial(run, layer)},
            3 if quick else 9)
        what = f"EinFFT {label} B{batch} N{n} D{dim}"
        rows.append(row(what, "published formulation", "real products", seconds["published"],
                        seconds["ours"]))
        peak = work / seconds["product"]
        alone = flops_of(functools.partial(run, layer)) / peak
        rows.append(row(
            f"{what}: share of matrix-product peak", f"products alone at {peak / 1e9:.0f} GFLOP/s",
            "real products", alone, seconds["ours"],
            note=f"ratio is the share; at the peak it would be {seconds['published'] / alone:.1f} "
                 f"times the published one; {where_time_goes(functools.partial(run, layer))}"))
    return rows


def as_published(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of `model` with the published loop for its scans and the published EinFFT."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        if hasattr(block.mixer, "scan_backend"):
            block.mixer.scan_backend = "reference"
        if isinstance(block.channel_mixer, EinFFT):
            block.channel_mixer = PublishedEinFFT(block.channel_mixer)
    return model


#: Profiler's names of operations, by what they do.
PARTS = {
    "matrix products": ("addmm", "mm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "scan": ("_NativeScan", "_Checkpointed"),
    "GELU, SiLU, soft threshold": ("gelu", "silu", "silu_", "softshrink", "clamp_min_", "relu_"),
    "convolutions": ("mkldnn_convolution",),
    "normalisation": ("native_layer_norm",),
    "copies": ("copy_", "cat", "flip", "fill_", "neg", "constant_pad_nd"),
    "sums": ("add", "sub", "add_"),
}


def where_time_goes(task: Callable) -> str:
    """Share of each part in a run, in words, largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        task()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total
             for event in profiler.key_averages()}
    total = sum(spent.values())
    shares = {part: sum(spent.get(name, 0) for name in names) / total
              for part, names in PARTS.items()}
    shares["other"] = 1 - sum(shares.values())
    return ", ".join(f"{part} {100 * share:.0f} %"
                     for part, share in sorted(shares.items(), key=lambda item: -item[1]))


def model_rows(quick: bool) -> list[dict]:
    """MVHybrid against ViT24 and its own published formulation, and its share of the peak."""
    size, batch, side = ("micro_patch8_64", 2, 64) if quick else ("small_patch16_256", 16, 256)
    mvhybrid, vit24 = (create_model(f"{family}_{size}").eval() for family in ("mvhybrid", "vit24"))
    published = as_published(mvhybrid)
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    product, work = large_product(quick)

    def embed(model):
        with torch.inference_mode():
            return model(x)

    # The peak is taken within the same turns as the models, so that they share its conditions.
    seconds = in_turns({
        "product": product,
        "ViT24": functools.partial(embed, vit24), "MVHybrid": functools.partial(embed, mvhybrid),
        "published": functools.partial(embed, published)}, 2 if quick else 5)
    peak = work / seconds["product"]  # [FLOP/s]
    # Counted on the published formulation, whose transform and scan are no products.
    flops = flops_of(functools.partial(embed, published))
    time = seconds["MVHybrid"]
    per_second = {name: batch / s for name, s in seconds.items()}
    what = f"MVHybrid forward B{batch} {side} px"
    return [
        row(what, "ViT24 of the same width", "MVHybrid", seconds["ViT24"], time,
            note=f"{per_second['ViT24']:.2f} and {per_second['MVHybrid']:.2f} images per second"),
        row(what, "published scan loop and EinFFT", "MVHybrid", seconds["published"], time,
            note=f"{per_second['published']:.2f} images per second as published"),
        row(f"{what}: share of matrix-product peak", f"products alone at {peak / 1e9:.0f} GFLOP/s",
            "MVHybrid", flops / peak, time,
            note=f"ratio is the share; {flops / batch / 1e9:.2f} GFLOP per image (transforms and "
                 f"scan not counted); {where_time_goes(functools.partial(embed, mvhybrid))}"),
    ]


#: What `backbones.csv` holds, in its order. Each takes `quick` and returns rows.
SECTIONS = (scan_rows, pole_rows, ssd_rows, channel_rows, model_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for backbones.csv")
    parser.add_argument("--quick", action="store_true", help="small tensors, to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="SECTION",
                        choices=[section.__name__ for section in SECTIONS], help="some sections")
    options = parser.parse_args()
    import pandas as pd

    torch.set_num_threads(THREADS)
    rows = []
    for section in SECTIONS:
        if options.only and section.__name__ not in options.only:
            continue
        for found in section(options.quick):
            print(f"{found['what']}: {found['candidate']} {1e3 * found['candidate_s']:.2f} ms, "
                  f"{found['ratio']:.1f} times {found['baseline']}, "
                  f"{found['peak_mb']:.0f} MB", flush=True)
            rows.append(found)
    lineage.enter(artifacts.write_csv(options.out / "backbones.csv",
                                      pd.DataFrame(rows, columns=list(COLUMNS))), __file__)


if __name__ == "__main__":
    main()
