"""The Triton programs without a GPU: interpreted against the plain loop in float64, and compiled.

Triton is large and of no use on a CPU, so it is not in the default install. `MVH_TRITON_PYTHON`
names a Python that has it (with torch, numpy below 2.4, h5py and safetensors).
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from mvhlib.artifacts import InputError
from mvhlib.backbones import scan
from tests import interpreted_scan as interpreted
from tests.conftest import ROOT

#: Relative error that a case may have where it is not float32's rounding.
TOLERANCES = {"bfloat16": 5e-3, "float16": 1e-3, "ssd_bfloat16": 5e-3, "ssd_float16": 1e-3,
              "golden_scan": 1e-4, "golden_mixer": 1e-4, "golden_hydra": 1e-4}
CASES = [name.removeprefix("case_") for name in vars(interpreted) if name.startswith("case_")]


def start(golden, *cases):
    python = os.environ.get("MVH_TRITON_PYTHON")
    if not python:
        pytest.skip("needs triton: MVH_TRITON_PYTHON names a Python that has it")
    done = subprocess.run(
        [python, "-m", "tests.interpreted_scan", *cases], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "MVH_GOLDEN": str(golden), "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def interpreted_errors(golden):
    return json.loads(start(golden, *CASES).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_interpreted(case, interpreted_errors):
    found = interpreted_errors[case]
    assert all(error < TOLERANCES.get(case, 5e-6) for error in found.values()), found


@pytest.mark.slow
def test_compiles_for_gpus(golden):
    start(golden)


def test_it_is_never_imported_on_a_cpu():
    code = ("import sys; from mvhlib.backbones import scan; scan.available_backends(); "
            "print(sorted({'triton'} & {m.partition('.')[0] for m in sys.modules}))")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_refused():
    tensors = [torch.zeros(1, 4, 5), torch.zeros(1, 4, 5), torch.zeros(4, 2),
               torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)]
    with pytest.raises(InputError, match="triton is not usable here: PyTorch sees no NVIDIA GPU"):
        scan.selective_scan(*tensors, backend="triton")
    with pytest.raises(InputError, match="triton is not usable here: PyTorch sees no NVIDIA GPU"):
        scan.ssd(torch.zeros(1, 5, 2, 3), torch.zeros(1, 5, 2), torch.zeros(2),
                 torch.zeros(1, 5, 4), torch.zeros(1, 5, 4), backend="triton")


class _Gpu:
    """A tensor's device, for the rule that chooses."""

    type = "cuda"

    def __str__(self):
        return "cuda:0"


@pytest.mark.parametrize("operation", ["selective_scan", "ssd"])
@pytest.mark.parametrize(("working", "is_complex", "chosen"), [
    (("mamba_ssm", "triton"), False, "mamba_ssm"), (("mamba_ssm", "triton"), True, "triton"),
    (("triton",), False, "triton"), ((), False, "torch")])
def test_the_rule_on_a_gpu(monkeypatch, operation, working, is_complex, chosen):
    asked = set()

    def probe(name):
        def answer(operation):
            asked.add(operation)
            return ("kernel", "") if name in working else (None, "missing")
        return answer

    monkeypatch.delenv(scan.ENVIRONMENT, raising=False)
    monkeypatch.setattr(scan, "_announce", lambda *_: None)
    monkeypatch.setattr(scan, "_mamba", probe("mamba_ssm"))
    monkeypatch.setattr(scan, "_triton", probe("triton"))
    gpu, single = _Gpu(), torch.float32
    unfit = {"native": scan._unfit_for_native(gpu, single),
             "mamba_ssm": scan._unfit_for_mamba(gpu, single, is_complex, 16),
             "triton": scan._unfit_for_triton(gpu, single)}
    assert scan._choose(operation, "auto", unfit) == chosen
    assert asked == {operation}
