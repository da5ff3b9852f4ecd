"""Where things are: the clone, the paths that parameters name, the device that computes."""

import os
from pathlib import Path

from mvhlib.artifacts import InputError


def home() -> Path:
    """The clone: ``MVH_HOME``, else found upward from this file."""
    named = os.environ.get("MVH_HOME")
    return Path(named).resolve() if named else Path(__file__).resolve().parents[1]


def resolve(path: str | os.PathLike) -> Path:
    """Resolve a path of a parameter: a relative one starts at the clone, whatever the cwd is."""
    place = home() / Path(path).expanduser()
    try:
        resolved = place.resolve()
    except RuntimeError:  # a link that leads to itself; whoever opens it says so
        return Path(os.path.abspath(place))
    if place.is_symlink() and not resolved.exists():  # an error must name the link
        return Path(os.path.abspath(place))
    return resolved


def choose_device(wanted: str | None = "auto", *, where: str = "parameters") -> str:
    """Resolve the name of a device.

    Parameters
    ----------
    wanted
        A torch device, or ``auto``: what ``MVH_DEVICE`` says, else a GPU if there is one.
    where
        Who asks, for the error.

    Returns
    -------
    str
        ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises
    ------
    InputError
        If the device is not one that torch knows, or none is seen.
    """
    import torch

    wanted = wanted or "auto"
    if wanted == "auto":
        wanted = os.environ.get("MVH_DEVICE") or "auto"
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError as error:
        raise InputError(where, "device", f"{wanted!r} is not a device",
                         "use auto, cpu, cuda or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(),
               "mps": torch.backends.mps.is_available()}
    if not present.get(kind, False):
        raise InputError(where, "device", f"is {wanted}, but PyTorch sees no such device",
                         "use device auto or cpu")
    return wanted
