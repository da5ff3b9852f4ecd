"""Mutants of valid inputs for every reader of users' and run files; see `tests.fuzz.run`."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # a fork copies no threads: whoever waits for one waits for ever
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve gigabytes of addresses
os.environ.setdefault("MVH_DEVICE", "cpu")
