"""Where the tests find reference material, and what they say when it is not there."""

import os
from pathlib import Path

# numba reads this when it is imported and raises if it changes later, as tests.fuzz would have it.
os.environ["NUMBA_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """The run of a whole profile first: it takes as long as a third of the rest."""
    items.sort(key=lambda item: item.path.name != "test_walk.py")


def _folder(variable: str, default: Path) -> Path:
    """The folder named by an environment variable.

    A folder that was asked for by name and is missing is a failure; only the absent default is
    a reason to skip.
    """
    named = os.environ.get(variable)
    folder = Path(named) if named else default
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"{variable}={named} is not a directory")
    pytest.skip(f"needs reference material: set {variable}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and golden tensors."""
    return _folder("MVH_SHARED", ROOT.parent / "shared")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with the golden tensors alone."""
    base = Path(os.environ.get("MVH_SHARED") or ROOT.parent / "shared")
    if os.environ.get("MVH_SHARED") and not os.environ.get("MVH_GOLDEN"):
        os.environ["MVH_GOLDEN"] = str(base / "golden")
    return _folder("MVH_GOLDEN", base / "golden")
