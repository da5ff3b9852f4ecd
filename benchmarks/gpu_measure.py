"""Parts of `gpu.py` that train nothing to keep: what works, the scan, the speed of the models."""

import contextlib
import copy
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from backbones import PublishedEinFFT
from torch import Tensor, nn

from mvhlib.artifacts import one_line
from mvhlib.backbones import create_model, inference, list_models, mixers, scan
from mvhlib.backbones.channel import EinFFT, Mlp
from mvhlib.backbones.reference import load_reference_state_dict
from mvhlib.dino.config import Config
from mvhlib.dino.pretrain import Pretraining

if TYPE_CHECKING:
    from gpu import Bench

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
TOKENS = (65, 257, 1025, 4097)
#: Tokens in a batch of `scan`, whatever their number in a sequence.
TOKENS_AT_ONCE = 64 * 257
LOW = torch.bfloat16


class Absent(RuntimeError):
    """What a row would measure is not on this machine."""


def seconds_of(task: Callable[[], object], device: torch.device, dry: bool = False) -> float:
    """Median seconds of a task, after two runs that do not count; 0.4 s of runs, 5 at least."""
    if dry:
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    def once() -> float:
        start = time.perf_counter()
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    once()
    taken: list[float] = []
    while len(taken) < 5 or (sum(taken) < 0.4 and len(taken) < 200):
        taken.append(once())
    return float(np.median(taken))


def peak_mb(task: Callable[[], object], device: torch.device) -> float | str:
    """Memory that a run of the task reaches on the GPU [MB]; "" on a CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    task()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 1e6


def autocast(device: torch.device, dtype: torch.dtype):
    on = dtype != torch.float32
    return torch.autocast(device.type, dtype) if on else contextlib.nullcontext()


# ---- works ----


def works(bench: "Bench") -> None:
    """Backends, golden files, a step on both devices."""
    bench.row("versions", functools.partial(_versions, bench))
    for name in ("triton", "mamba_ssm", "torch"):
        for kind in ("real", "complex", "bfloat16"):
            bench.row(f"scan {name} {kind}", functools.partial(_scan_error, bench, name, kind),
                      unit="relative error")
    for name in ("triton", "mamba_ssm", "torch"):
        bench.row(f"ssd {name}", functools.partial(_ssd_error, bench, name),
                  unit="relative error")
    for name in GOLDEN:
        bench.row(f"golden {name}", functools.partial(_golden_error, bench, name),
                  unit="relative error")
    families = ("mvhybrid", "vit12") if bench.dry else (
        "mvhybrid", "vit12", "vimeinfft", "hydraeinfft", "hydrahybrid")
    for family in families:
        bench.row(f"step {family}_micro", functools.partial(_step_error, bench, family),
                  unit="relative difference of the loss, CPU and GPU")


def _versions(bench: "Bench") -> dict[str, Any]:
    found = [f"Python {sys.version.split()[0]}", f"torch {torch.__version__}"]
    for name in ("triton", "mamba_ssm", "causal_conv1d", "timm"):
        try:
            found.append(f"{name} {getattr(__import__(name), '__version__', 'there')}")
        except Exception as error:  # a broken build raises what it likes
            found.append(f"{name} {type(error).__name__}")
    found.append(f"backends {', '.join(scan.available_backends())}")
    for operation in ("selective_scan", "ssd"):
        for name, (_, reason) in (("triton", scan._triton(operation)),
                                  ("mamba_ssm", scan._mamba(operation))):
            found += [f"{name} for {operation}: {reason}"] if reason else []
    return {"note": one_line("; ".join(found), 600)}


def _usable(bench: "Bench", name: str, operation: str = "selective_scan") -> None:
    """Raise where a backend cannot be asked."""
    if name == "triton" and (reason := scan._triton(operation)[1]):
        raise Absent(reason)
    if name == "mamba_ssm" and (reason := scan._mamba(operation)[1]):
        raise Absent(reason)


def scan_inputs(batch: int, channels: int, length: int, states: int, *,
                is_complex: bool = False, dtype: torch.dtype = torch.float64,
                device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Inputs with steps as after Mamba's initialisation; `dtype` is that of the large ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    given = [normal(batch, channels, length), normal(batch, channels, length),
             -torch.arange(1.0, states + 1).repeat(channels, 1), normal(batch, states, length),
             normal(batch, states, length), normal(channels), normal(channels) - 4]
    if is_complex:
        for i in (2, 3, 4):
            given[i] = torch.complex(given[i], normal(*given[i].shape))
    small = torch.float64 if dtype == torch.float64 else torch.float32
    found = {}
    for name, tensor in zip(NAMES, given, strict=True):
        kind = small if name in ("A", "D", "delta_bias") else dtype
        if tensor.is_complex():
            kind = torch.complex128 if small == torch.float64 else torch.complex64
        found[name] = tensor.to(device, kind)
    return found


def ssd_inputs(batch: int, length: int, heads: int, width: int, states: int) -> dict[str, Tensor]:
    """Float32 inputs of `ssd` with steps about softplus(-3)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, heads, width, generator=generator)
    dt = torch.nn.functional.softplus(torch.randn(batch, length, heads, generator=generator) - 3)
    B, C = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    return {"x": x, "dt": dt, "A": -torch.arange(1.0, heads + 1), "B": B, "C": C}


def _with_gradients(function: Callable, given: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    y = function(**leaves)
    gradients = torch.autograd.grad(y.float().square().sum(), list(leaves.values()))
    return [y.detach(), *gradients]


def _worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative error over some tensors; NaN stays NaN."""
    errors = [float((a.cpu().to(b.dtype) - b).norm() / b.norm().clamp(min=1e-30))
              for a, b in zip(found, expected, strict=True)]
    return max(errors) if np.isfinite(errors).all() else float("nan")


def _scan_error(bench: "Bench", name: str, kind: str) -> dict[str, Any]:
    _usable(bench, name)
    if name == "mamba_ssm" and kind == "complex":
        raise Absent("this bridge is real only")
    dtype = LOW if kind == "bfloat16" else torch.float32
    sizes = (1, 5, 18, 3) if bench.dry else (4, 100, 257, 16)
    given = scan_inputs(*sizes, is_complex=kind == "complex", dtype=dtype)
    wide = {key: t.to(torch.complex128 if t.is_complex() else torch.float64)
            for key, t in given.items()}
    expected = _with_gradients(functools.partial(scan.selective_scan, backend="reference"), wide)
    found = _with_gradients(functools.partial(scan.selective_scan, backend=name),
                            {key: t.to(bench.device) for key, t in given.items()})
    return _within(_worst(found, expected), 2e-2 if dtype == LOW else 1e-3)


def _within(error: float, tolerance: float) -> dict[str, Any]:
    """A row of an error; one beyond the tolerance has failed."""
    status = "ok" if error <= tolerance else "failed"
    return {"value": error, "status": status, "note": f"allowed {tolerance:g}"}


def _ssd_error(bench: "Bench", name: str) -> dict[str, Any]:
    _usable(bench, name, "ssd")
    given = ssd_inputs(*((1, 9, 2, 4, 4) if bench.dry else (2, 257, 4, 64, 64)))
    expected = _with_gradients(functools.partial(scan.ssd, backend="reference"),
                               {key: t.double() for key, t in given.items()})
    found = _with_gradients(functools.partial(scan.ssd, backend=name),
                            {key: t.to(bench.device) for key, t in given.items()})
    # Triton's matrix products round their inputs to TF32.
    return _within(_worst(found, expected), 2e-2 if name == "mamba_ssm" else 1e-3)


#: File -> the module whose numbers it holds; the scan's has none.
GOLDEN: dict[str, Callable[[], nn.Module] | None] = {
    "selective_scan": None,
    "mambavision_mixer": lambda: mixers.MambaVisionMixer(32, d_state=16, d_conv=4, expand=2),
    "einfft": lambda: EinFFT(32, n_blocks=4),
    "vim_mixer": lambda: mixers.BidirectionalMamba(32),
    "hydra_mixer": lambda: mixers.HydraMixer(32, d_state=16, d_conv=7, headdim=16)}


def _golden_error(bench: "Bench", name: str) -> dict[str, Any]:
    path = bench.pack / "golden" / f"{name}.npz" if bench.pack else None
    if path is None or not path.is_file():
        raise Absent("it was not packed")
    with np.load(path, allow_pickle=False) as stream:
        arrays = {key: stream[key] for key in stream.files}
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    upstream = tensors["grad_output"].to(bench.device)
    if GOLDEN[name] is None:
        leaves = {key: tensors[key].to(bench.device).requires_grad_() for key in NAMES}
        y = scan.selective_scan(**leaves)
    else:
        module = GOLDEN[name]()
        load_reference_state_dict(module, arrays)
        module = module.to(bench.device)
        x = tensors["input"].to(bench.device).requires_grad_()
        leaves, y = {"input": x, **dict(module.named_parameters())}, module(x)
    y.backward(upstream)
    found = [y.detach(), *(leaf.grad for leaf in leaves.values())]
    expected = [tensors["output"], *(tensors[f"grad.{key}"] for key in leaves)]
    return _within(_worst(found, expected), 1e-3)


def micro_config(folder: Path, tiles: Path, device: str, **changes: Any) -> Config:
    """A pretraining of a few tiny steps."""
    small = {"batch": 4, "global_px": 32, "local_px": 16, "n_local": 2, "prototypes": 32,
             "head_hidden": 16, "head_bottleneck": 8, "koleo_group": 4, "progress": False,
             "steps": 8}
    return Config(**{"tiles": str(tiles), "folder": str(folder), "device": device,
                     **small, **changes})


def write_noise(folder: Path, side: int, n: int) -> Path:
    """Tiles of noise, where none were packed."""
    from mvhlib.tiles import store
    from mvhlib.tiles.cut import Tiles

    img = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    tiles = Tiles(img, np.zeros((n, 2), int), np.zeros(n, np.float32), side, float(side), 1.0, 1.0)
    store.write_tiles(folder / "noise.h5", tiles, [f"spot{i}" for i in range(n)])
    return folder


def _step_error(bench: "Bench", family: str) -> dict[str, Any]:
    """Three steps on the CPU and on the GPU from the same start; float32 on both."""
    losses = []
    with tempfile.TemporaryDirectory() as scratch:
        tiles = write_noise(Path(scratch, "tiles"), 64, 16)
        for device in ("cpu", bench.device.type):
            run = Pretraining(micro_config(Path(scratch, device), tiles, device,
                                           backbone=f"{family}_micro_patch8_64"))
            run.order = run._order()
            losses.append([float(run.step(images, step)["loss"]) for (step, images), _ in
                           zip(run._batches(), range(1 if bench.dry else 3), strict=False)])
    first, second = np.array(losses)
    return _within(float(np.abs(second / first - 1).max()), 1e-3)


# ---- scan ----


def scans(bench: "Bench") -> None:
    """Each row: ours, mamba-ssm's as baseline, plain PyTorch in the note where not too slow."""
    for length in TOKENS[:1] if bench.dry else TOKENS:
        for dtype in (torch.float32, LOW):
            for backward in (False, True):
                what = f"{'forward+backward' if backward else 'forward'} L{length}"
                for name, measure in (("scan", _scan_time), ("ssd", _ssd_time)):
                    bench.row(f"{name} {what} {_name(dtype)}", functools.partial(
                        measure, bench, length, dtype, backward), unit="ms", dtype=_name(dtype))
    for name, make in MIXERS.items():
        for dtype in (torch.float32, LOW):
            bench.row(f"{name} forward+backward {_name(dtype)}", functools.partial(
                _mixer_time, bench, make, dtype), unit="ms", dtype=_name(dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _scan_time(bench: "Bench", length: int, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    batch, channels, states = (1, 4, 2) if bench.dry else (
        max(1, TOKENS_AT_ONCE // length), 384, 16)
    given = scan_inputs(batch, channels, 5 if bench.dry else length, states, dtype=dtype,
                        device=bench.device)
    # As the mixers hand them over: tokens by channels in memory, seen the other way round.
    given = {name: t.mT.contiguous().mT if t.ndim == 3 else t for name, t in given.items()}
    return _race(bench, scan.selective_scan, _mamba_scan, given, backward,
                 ("triton", "mamba_ssm", *(("torch",) if length <= 257 else ())),
                 f"B{batch} D{channels} N{states}")


def _ssd_time(bench: "Bench", length: int, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """As Hydra asks: twelve heads of 64 channels, 64 states, both directions in a batch."""
    batch, heads, width, states = (1, 1, 4, 4) if bench.dry else (
        2 * max(1, TOKENS_AT_ONCE // length), 12, 64, 64)
    given = ssd_inputs(batch, 5 if bench.dry else length, heads, width, states)
    given = {name: t.to(bench.device, dtype if name in ("x", "B", "C") else torch.float32)
             for name, t in given.items()}
    return _race(bench, scan.ssd, _mamba_ssd, given, backward, ("triton", "mamba_ssm", "torch"),
                 f"B{batch} H{heads} P{width} N{states}")


def _race(bench: "Bench", operation: Callable[..., Tensor], mamba: Callable[..., Tensor],
          given: dict[str, Tensor], backward: bool, names: tuple[str, ...], sizes: str
          ) -> dict[str, Any]:
    """Our Triton programs against mamba-ssm's kernel itself, which takes bfloat16 as it is."""
    given = {name: t.requires_grad_(backward) for name, t in given.items()}

    def run(function: Callable[..., Tensor]) -> None:
        with contextlib.nullcontext() if backward else torch.no_grad():
            y = function(**given)
        if backward:
            torch.autograd.grad(y, list(given.values()), torch.ones_like(y))

    taken, notes = {}, [sizes]
    for name in names:
        try:
            _usable(bench, name, operation.__name__)
            function = mamba if name == "mamba_ssm" else functools.partial(operation, backend=name)
            taken[name] = 1e3 * seconds_of(functools.partial(run, function), bench.device,
                                           bench.dry)
        except Absent as error:
            notes.append(f"{name}: {error}")
    if "torch" in taken:
        notes.append(f"torch {taken['torch']:.3g} ms")
    if "triton" not in taken:
        return {"status": "absent", "baseline": taken.get("mamba_ssm", ""),
                "note": "; ".join(notes)}
    peak = peak_mb(functools.partial(run, functools.partial(operation, backend="triton")),
                   bench.device)
    return {"value": taken["triton"], "peak_mb": peak, "note": "; ".join(notes),
            **_against(taken.get("mamba_ssm"), taken["triton"])}


def _mamba_scan(u, delta, A, B, C, D, delta_bias) -> Tensor:
    return scan._mamba("selective_scan")[0](u, delta, A, B, C, D=D, z=None,
                                            delta_bias=delta_bias, delta_softplus=True)


def _mamba_ssd(x, dt, A, B, C) -> Tensor:
    return scan._mamba("ssd")[0](x, dt, A, B[:, :, None], C[:, :, None], chunk_size=64,
                                 dt_softplus=False)


def _against(baseline: float | None, value: float) -> dict[str, float]:
    """How many times shorter than the baseline; nothing where that was not measured."""
    return {} if baseline is None else {"baseline": baseline, "ratio": baseline / value}


MIXERS: dict[str, Callable[[int], nn.Module]] = {
    "MambaVision mixer": mixers.MambaVisionMixer, "Vim mixer": mixers.BidirectionalMamba,
    "Hydra mixer": mixers.HydraMixer, "attention": mixers.Attention, "EinFFT": EinFFT, "MLP": Mlp}


def _mixer_time(bench: "Bench", make: Callable[[int], nn.Module], dtype: torch.dtype
                ) -> dict[str, Any]:
    """With the backend that is chosen by itself; the baseline is plain PyTorch's scan."""
    batch, length, dim = (1, 9, 96) if bench.dry else (64, 257, 384)
    taken = {}
    for backend in ("auto", "torch"):
        module = make(dim).to(bench.device)
        if not hasattr(module, "scan_backend") and backend == "torch":
            continue
        if hasattr(module, "scan_backend"):
            module.scan_backend = backend
        x = torch.randn(batch, length, dim, device=bench.device, requires_grad=True)
        wanted = [x, *module.parameters()]

        def run(module=module, x=x, wanted=wanted) -> None:
            with autocast(bench.device, dtype):
                y = module(x)
            torch.autograd.grad(y.float().sum(), wanted, allow_unused=True)

        taken[backend] = 1e3 * seconds_of(run, bench.device, bench.dry)
        if backend == "auto":
            peak = peak_mb(run, bench.device)
    return {"value": taken["auto"], "peak_mb": peak, "note": f"B{batch} L{length} D{dim}",
            **_against(taken.get("torch"), taken["auto"])}


# ---- speed ----


def speed(bench: "Bench") -> None:
    """Embedding and a pretraining step at the published size."""
    size = "micro_patch8_64" if bench.dry else "small_patch16_256"
    names = [name for name in list_models(f"*_{size}") if "." not in name]
    names = ["mvhybrid_micro_patch8_64", "vit12_micro_patch8_64"] if bench.dry else names
    names.sort(key=lambda name: (not name.startswith(("mvhybrid", "vit24", "vit12")), name))
    bench.row("bf16 matrix products", functools.partial(_peak, bench), unit="TFLOP/s",
              dtype="bfloat16")
    for name in names:
        for dtype in (torch.float32, LOW):
            bench.row(f"embed {name} {_name(dtype)}", functools.partial(
                _embed_rate, bench, name, dtype), unit="images/s", dtype=_name(dtype))
        bench.row(f"embed {name} bfloat16, EinFFT too, one launch", functools.partial(
            _embed_rate, bench, name, LOW, faster=True), unit="images/s", dtype="bfloat16")
    bench.row("embed timm vit_small_patch16_224 bfloat16", functools.partial(_timm_rate, bench),
              unit="images/s", dtype="bfloat16")
    for name in [n for n in names if n.startswith(("mvhybrid", "vit12"))]:
        bench.row(f"step {name}", functools.partial(_step_rate, bench, name),
                  unit="images/s", dtype="bfloat16")
    bench.row(f"embed {names[0]} compiled", functools.partial(_compiled_rate, bench, names[0]),
              unit="images/s", dtype="bfloat16")


def _peak(bench: "Bench") -> dict[str, Any]:
    edge = 128 if bench.dry else 8192
    left, right = (torch.randn(edge, edge, device=bench.device, dtype=LOW) for _ in range(2))
    seconds = seconds_of(functools.partial(torch.mm, left, right), bench.device, bench.dry)
    return {"value": 2 * edge**3 / seconds / 1e12, "note": f"{edge} x {edge} x {edge}"}


def _published(model: nn.Module) -> nn.Module:
    """Turn a model, in place, to the authors' formulation: mamba-ssm's kernels, their EinFFT.

    Parameters stay the same tensors, so that an optimiser keeps them.
    """
    backend = "auto" if scan._mamba("selective_scan")[0] is None else "mamba_ssm"
    for block in model.blocks:
        if hasattr(block.mixer, "scan_backend"):
            block.mixer.scan_backend = backend
        if isinstance(block.channel_mixer, EinFFT):
            block.channel_mixer = PublishedEinFFT(block.channel_mixer)
    return model


@torch.inference_mode()
def _embed_rate(bench: "Bench", name: str, dtype: torch.dtype, faster: bool = False
                ) -> dict[str, Any]:
    """Images per second, the published formulation in float32 as baseline.

    `faster`: EinFFT in bfloat16 as well, and every batch one launch of a CUDA graph.
    """
    from torch.utils.flop_counter import FlopCounterMode

    batch, side = (2, 64) if bench.dry else (256, 256)
    model = create_model(name).eval().to(bench.device)
    x = torch.randn(batch, 3, side, side, device=bench.device)

    def embed(module: nn.Module, dtype: torch.dtype, batch: Tensor = x) -> Tensor:
        with autocast(bench.device, dtype):
            return module(batch).float()

    plain = _published(copy.deepcopy(model))
    if faster:
        half = inference.with_half_einfft(model)
        task = functools.partial(
            inference.captured(lambda batch: embed(half, dtype, batch), x), x)
    else:
        task = functools.partial(embed, model, dtype)
    seconds = seconds_of(task, bench.device, bench.dry)
    slow = seconds_of(functools.partial(embed, plain, torch.float32), bench.device, bench.dry)
    cosine = inference.least_cosine(task(), embed(plain, torch.float32))
    notes = [f"cosine to the published formulation in float32 {cosine:.6f} at least"]
    with FlopCounterMode(display=False) as counter:
        embed(plain, torch.float32)
    rate = counter.get_total_flops() / seconds / 1e12
    peak = bench.ledger.rows.get((bench.part, "bf16 matrix products"), {}).get("value")
    if dtype == LOW and peak:
        notes.append(f"{rate:.3g} TFLOP/s, {rate / float(peak):.2f} of the peak "
                     "(transforms and scan not counted)")
    return {"value": batch / seconds, "baseline": batch / slow, "ratio": slow / seconds,
            "peak_mb": peak_mb(task, bench.device), "note": "; ".join(notes)}


@torch.inference_mode()
def _timm_rate(bench: "Bench") -> dict[str, Any]:
    try:
        import timm
    except Exception as error:  # next to a CPU build of torch it raises RuntimeError
        raise Absent(f"timm: {type(error).__name__}") from error
    batch, side = (1, 64) if bench.dry else (256, 256)
    model = timm.create_model("vit_small_patch16_224", pretrained=False, img_size=side,
                              num_classes=0).eval().to(bench.device)
    x = torch.randn(batch, 3, side, side, device=bench.device)

    def embed() -> Tensor:
        with autocast(bench.device, LOW):
            return model(x)

    return {"value": batch / seconds_of(embed, bench.device, bench.dry),
            "peak_mb": peak_mb(embed, bench.device), "note": f"{side} px, 12 blocks"}


@torch.inference_mode()
def _compiled_rate(bench: "Bench", name: str) -> dict[str, Any]:
    """`torch.compile`, as it is; the compilation is in the row's seconds, not in its rate."""
    if bench.dry:
        raise Absent("not in a dry run: it compiles for minutes")
    batch, side = 256, 256
    model = create_model(name).eval().to(bench.device)
    x = torch.randn(batch, 3, side, side, device=bench.device)
    fast = torch.compile(model)

    def embed(module: nn.Module) -> Tensor:
        with autocast(bench.device, LOW):
            return module(x).float()

    cosine = inference.least_cosine(embed(fast), embed(model))
    seconds, plain = (seconds_of(functools.partial(embed, each), bench.device)
                      for each in (fast, model))
    return {"value": batch / seconds, "baseline": batch / plain, "ratio": plain / seconds,
            "note": f"baseline: not compiled; cosine to it {cosine:.6f} at least"}


def unfuse(optimizer: torch.optim.Optimizer) -> None:
    """One kernel for each operation of AdamW in place of one for all, as published."""
    for group in optimizer.param_groups:
        group["foreach"], group["fused"] = True, False


def _step_rate(bench: "Bench", name: str) -> dict[str, Any]:
    """A pretraining step with the published views and heads; baseline as published in float32."""
    rates, notes = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        tiles = write_noise(Path(scratch, "tiles"), 64 if bench.dry else 256, 64)
        full = {"batch": 64, "global_px": 256, "local_px": 112, "n_local": 8, "prototypes": 65_536,
                "head_hidden": 2048, "head_bottleneck": 256, "koleo_group": 64, "steps": 100}
        for kind, precision in (("ours", "bf16"), ("published", "float32")):
            run = Pretraining(micro_config(
                Path(scratch, kind), tiles, bench.device.type, backbone=name, precision=precision,
                **({} if bench.dry else full)))
            if kind == "published":
                for model in (run.student, run.teacher):
                    _published(model.backbone)
                unfuse(run.optimizer)
            run.order = run._order()
            steps = zip(run._batches(), range(2 if bench.dry else 6), strict=False)
            taken = []
            for (step, images), _ in steps:
                start = time.perf_counter()
                run.step(images, step)
                if bench.device.type == "cuda":
                    torch.cuda.synchronize(bench.device)
                taken.append(time.perf_counter() - start)
            rates[kind] = run.config.batch / float(np.median(taken[1:]))
            if bench.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(bench.device) / 1e6
                torch.cuda.reset_peak_memory_stats(bench.device)
                notes.append(f"{kind} {peak:.0f} MB")
            del run
    return {"value": rates["ours"], "baseline": rates["published"],
            "ratio": rates["ours"] / rates["published"], "note": "; ".join(notes)}
