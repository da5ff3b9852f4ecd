"""The selective scan by a C kernel that is compiled at first use (CPU, float32).

Arguments and axes are those of `mvhlib.backbones.scan`, which checks them.
"""

import ctypes
import functools
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from mvhlib.artifacts import sha256_file, sha256_of

_log = logging.getLogger(__name__)


class _Source(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("b", ctypes.c_int64), ("d", ctypes.c_int64),
                ("l", ctypes.c_int64)]


class _Scan(ctypes.Structure):
    """Mirrors `Scan` in `_scan.c`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "batch", "channels", "length", "states", "groups", "softplus", "threads",
            "kind")),
        *((name, _Source) for name in ("u", "delta", "B", "C", "dy")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias")),
        *((name, _Source) for name in ("y", "du", "ddelta")),
        *((name, ctypes.c_void_p) for name in ("checkpoints", "dA", "dB", "dC", "dD", "dbias")),
    ]


#: What is complex, as `_scan.c` has it.
_REAL, _POLES, _ALL = range(3)


def _kind(A: torch.Tensor, B: torch.Tensor) -> int:
    if not A.is_complex():
        return _REAL
    return _ALL if B.is_complex() else _POLES


def _strided(tensor: torch.Tensor) -> _Source:
    """Address and strides, these in floats: a complex number is two."""
    width = 2 if tensor.is_complex() else 1
    return _Source(tensor.data_ptr(), *(width * stride for stride in tensor.stride()))


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def scan(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """`mvhlib.backbones.scan.selective_scan` by the kernel, on inputs that were checked."""
    if B.is_complex() or C.is_complex():  # the kernel has both complex or none, and A with them
        A, B, C = (tensor.to(torch.complex64) for tensor in (A, B, C))
    # Signs and conjugates that PyTorch puts off are not in memory yet.
    u, delta, A, B, C, D, delta_bias = (
        None if tensor is None else tensor.resolve_conj().resolve_neg()
        for tensor in (u, delta, A, B, C, D, delta_bias))
    # Inside a Function gradients are off in any case, so it has to be told whether they are wanted.
    return _NativeScan.apply(
        u, delta, A, B, C, D, delta_bias, delta_softplus, torch.is_grad_enabled())


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus, recording):
        compiled, _ = library()
        A, D, delta_bias = (None if t is None else t.contiguous() for t in (A, D, delta_bias))
        y = torch.empty_like(u)
        checkpoints = None
        if recording and any(ctx.needs_input_grad):
            blocks, chunks = _blocks(compiled, u)
            checkpoints = A.new_empty(
                u.shape[0], blocks, chunks, A.shape[1], compiled.scan_lanes())
        call = _describe(u, delta, A, B, C, D, delta_bias, delta_softplus)
        call.y, call.checkpoints = _strided(y), _address(checkpoints)
        _run(compiled.scan_forward, call)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, checkpoints)
        ctx.delta_softplus = delta_softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        compiled, _ = library()
        u, delta, A, B, C, D, delta_bias, checkpoints = ctx.saved_tensors
        batch, channels, length = u.shape
        states, lanes = A.shape[1], compiled.scan_lanes()
        blocks, _ = _blocks(compiled, u)
        # Enough pieces for many cores; by shapes alone, so that threads do not change the sums.
        groups = min(blocks, -(-_TASKS // batch))
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        parts, bc_parts = (2 if tensor.is_complex() else 1 for tensor in (A, B))
        dA = u.new_empty(batch, blocks, parts, states, lanes)
        dB, dC = (u.new_empty(groups, batch, bc_parts, states, length) for _ in range(2))
        dD, dbias = (u.new_empty(batch, blocks, lanes) for _ in range(2))

        call = _describe(u, delta, A, B, C, D, delta_bias, ctx.delta_softplus)
        call.groups, call.checkpoints = groups, _address(checkpoints)
        dy = dy.resolve_neg()
        call.dy, call.du, call.ddelta = _strided(dy), _strided(du), _strided(ddelta)
        call.dA, call.dB, call.dC = _address(dA), _address(dB), _address(dC)
        call.dD, call.dbias = _address(dD), _address(dbias)
        _run(compiled.scan_backward, call)

        def channelwise(lane_sums):
            return lane_sums.sum(0).flatten()[:channels]

        needed = ctx.needs_input_grad
        return (
            du if needed[0] else None,
            ddelta if needed[1] else None,
            _joined(dA.sum(0)).mT.reshape(-1, states)[:channels] if needed[2] else None,
            _joined(dB.sum(0)) if needed[3] else None,
            _joined(dC.sum(0)) if needed[4] else None,
            channelwise(dD) if needed[5] else None,
            channelwise(dbias) if needed[6] else None,
            None,
            None,
        )


#: The backward pass is cut into at least this many pieces (where there are so many).
_TASKS = 32


def _joined(parts: torch.Tensor) -> torch.Tensor:
    """The number that axis 1 holds in one or, real and imaginary, two parts."""
    return torch.complex(*parts.unbind(1)) if parts.shape[1] == 2 else parts.squeeze(1)


def _blocks(compiled, u) -> tuple[int, int]:
    """Blocks of channels, and chunks of tokens."""
    return -(-u.shape[1] // compiled.scan_lanes()), -(-u.shape[2] // compiled.scan_chunk())


def _describe(u, delta, A, B, C, D, delta_bias, delta_softplus) -> _Scan:
    batch, channels, length = u.shape
    return _Scan(
        batch=batch, channels=channels, length=length, states=A.shape[1], groups=1,
        softplus=int(delta_softplus), threads=torch.get_num_threads(), kind=_kind(A, B),
        u=_strided(u), delta=_strided(delta), B=_strided(B), C=_strided(C),
        A=_address(A), D=_address(D), bias=_address(delta_bias),
    )


def _run(function, call: _Scan) -> None:
    if function(ctypes.byref(call)):
        raise MemoryError("selective_scan: no memory for the scratch space of the native kernel")


@functools.cache
def library():
    """The compiled kernel, or None and the reason why there is none."""
    try:
        return load(), ""
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, str(error)


def load() -> ctypes.CDLL:
    """The kernel's library: of this source, compiler and processor, compiled where it is not there.

    Raises
    ------
    RuntimeError
        If there is no compiler, or it fails.
    """
    source = Path(__file__).with_name("_scan.c")
    named = os.environ.get("CC")
    candidates = [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    compiler = next((command for command in candidates if shutil.which(command[0])), None)
    if compiler is None:
        raise RuntimeError(f"no C compiler found (looked for {named or 'cc, gcc, clang'})")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
    runtimes = sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*"))
    key = sha256_of(source.read_text(), compiler, version.stdout, _flags(),
                    [path.name for path in runtimes], _processor())
    folder = _cache_folder()
    # The name ends in a hash of the content: to load a damaged library kills the process.
    for path in sorted(folder.glob(f"scan-{key[:16]}-*.so")):
        if path.stem.endswith(sha256_file(path)[:16]):
            try:
                return _bind(path)
            except (OSError, AttributeError) as error:
                _log.info("%s does not load, compiling anew: %s", path, error)
        else:
            path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        built = Path(temporary) / "scan.so"
        _compile(compiler, source, built, runtimes)
        path = folder / f"scan-{key[:16]}-{sha256_file(built)[:16]}.so"
        os.replace(built, path)
    return _bind(path)


def _flags() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    tune = ["-march=native", "-mprefer-vector-width=512"] if x86 else ["-mcpu=native"]
    # Not -ffast-math: in a shared library it makes the whole process flush denormals.
    return ["-O3", *tune, "-fno-math-errno", "-fno-trapping-math", "-fPIC"]


def _compile(compiler: list[str], source: Path, target: Path, runtimes: list[Path]) -> None:
    """Build with PyTorch's own OpenMP, else the compiler's, else without threads.

    Two OpenMP runtimes in one process keep two pools of threads, and the one that waits spins on
    the cores that the other needs.
    """
    unit = str(target.with_suffix(".o"))
    shared = ["-shared", "-o", str(target)]
    attempts = [[[*_flags(), "-fopenmp", "-c", str(source), "-o", unit],
                 [*shared, unit, str(runtime)]] for runtime in runtimes[:1]]
    attempts += [[[*_flags(), *openmp, str(source), *shared]] for openmp in (["-fopenmp"], [])]
    for steps in attempts:
        results = []
        for step in steps:
            results.append(subprocess.run([*compiler, *step], capture_output=True, text=True,
                                          timeout=300))
            if results[-1].returncode:
                break
        else:
            return
    lines = results[-1].stderr.strip().splitlines() or ["no message"]
    said = next((line for line in lines if "error" in line), lines[-1])
    raise RuntimeError(f"{compiler[0]} failed: {said}")


def _bind(path: Path) -> ctypes.CDLL:
    bound = ctypes.CDLL(str(path))
    for name in ("scan_lanes", "scan_chunk"):
        getattr(bound, name).restype = ctypes.c_int64
    for name in ("scan_forward", "scan_backward"):
        getattr(bound, name).argtypes = [ctypes.POINTER(_Scan)]
    return bound


def _processor() -> str:
    """What the compiler's ``native`` means here: the features of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def _cache_folder() -> Path:
    """``MVH_CACHE``, else ``.cache/mvhlib`` in the clone, else a private temporary folder."""
    if named := os.environ.get("MVH_CACHE"):
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    home = os.environ.get("MVH_HOME")
    above = [p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file()]
    clone = Path(home) if home else next(iter(above), None)
    if clone is not None:
        folder = clone / ".cache" / "mvhlib"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
        except OSError:
            pass
    # A library is code: load it from a folder of this user's only.
    folder = Path(tempfile.gettempdir()) / f"mvhlib-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        folder = Path(tempfile.mkdtemp(prefix="mvhlib-"))
    return folder
