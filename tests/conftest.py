"""Where the tests find reference material, and what they say when it is not there."""

import ipaddress
import os
import socket
from pathlib import Path

# numba reads this when it is imported and raises if it changes later, as tests.fuzz would have it.
os.environ["NUMBA_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """The run of a whole profile first: it takes as long as a third of the rest."""
    items.sort(key=lambda item: item.path.name != "test_walk.py")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing asks for another machine: whoever does finds none, and the test fails."""
    asked, connect = [], socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            asked.append(address)
            raise OSError(f"a test asked for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not asked, f"asked for {asked} without being told to"


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


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
