"""Checkpoints: the state of a loop, from which it continues with the same next step."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvhlib.artifacts import InputError, atomic, reading, sha256_file


class LoopState:
    """State of a loop: everything that its next step depends on.

    Parameters
    ----------
    parts
        Named objects with `state_dict` and `load_state_dict` (modules, optimisers, `EarlyStop`),
        or generators of numpy or torch.

    Attributes
    ----------
    step
        Steps that are done.
    notes
        Plain values (numbers, strings, lists) that the loop wants to keep.

    Examples
    --------
    >>> state = LoopState(model=model, optimizer=optimizer, rng=rng)
    >>> checkpoints = Checkpoints(folder / "state", keep=3)
    >>> checkpoints.resume(state)                     # step 0 where there is none
    >>> while state.step < n_steps:
    ...     train_one_step(); state.step += 1
    ...     checkpoints.save(state)
    """

    def __init__(self, **parts: Any):
        self.parts = parts
        self.step = 0
        self.notes: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "notes": self.notes,
                "parts": {name: _state_of(part) for name, part in self.parts.items()}}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises
        ------
        KeyError, RuntimeError, ValueError
            If it is the state of something else.
        """
        if set(content["parts"]) != set(self.parts):
            raise KeyError(f"parts {sorted(content['parts'])}, not {sorted(self.parts)}")
        for name, part in self.parts.items():
            _restore(part, content["parts"][name])
        self.step, self.notes = content["step"], content["notes"]


def _state_of(part: Any) -> Any:
    if isinstance(part, np.random.Generator):
        return _packed(part.bit_generator.state)
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict()


def _restore(part: Any, content: Any) -> None:
    if isinstance(part, np.random.Generator):
        part.bit_generator.state = _unpacked(content)
    elif isinstance(part, torch.Generator):
        part.set_state(content)
    else:
        part.load_state_dict(content)


def _packed(value: Any) -> Any:
    """The state of a numpy generator in types that a safe load accepts (arrays are not)."""
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"array": [int(item) for item in value], "dtype": str(value.dtype)}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    if isinstance(value, dict):
        return {key: _unpacked(item) for key, item in value.items()}
    return value


class Checkpoints:
    """The last few states of a loop in one folder.

    Parameters
    ----------
    folder
        Made if it is not there.
    keep
        States that stay; older ones are deleted after a newer one is in place.
    key
        Names the recipe; a state that was saved under another key is refused.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 3, key: Any = None):
        self.folder, self.keep, self.key = Path(folder), max(1, keep), key

    def files(self) -> list[Path]:
        """Saved states, oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def latest(self) -> Path | None:
        found = self.files()
        return found[-1] if found else None

    def save(self, state: LoopState | dict[str, Any]) -> Path:
        """Write a state by atomic rename, then delete those that are too old."""
        content = state.state_dict() if hasattr(state, "state_dict") else state
        path = self.folder / f"step_{content['step']:08d}.pt"
        with atomic(path) as temporary:
            torch.save({"key": self.key, **content}, temporary)
            _seal(temporary)
        for old in self.files()[:-self.keep]:
            old.unlink(missing_ok=True)
        return path

    def read(self, path: Path, map_location: Any = "cpu") -> dict[str, Any]:
        """Read one state, as tensors and plain values only.

        Raises
        ------
        InputError
            If the file's bytes are not those whose hash it ends with (truncated, rotten, edited, or
            of a version that wrote none: nothing would vouch for them), or it was saved under
            another key (says which entries differ).
        """
        fix = "delete this file: the checkpoint before it is then used"
        with reading(path, "content", "is not a readable state", fix):
            if not _is_sealed(path):
                raise InputError(path, "sha256", "is not a readable state: its bytes are not those "
                                 "that were saved", fix)
            content = torch.load(path, map_location=map_location, weights_only=True)
            step = content["step"]
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise InputError(path, "step", f"is {step!r}", fix)
            if not isinstance(content["parts"], dict) or not isinstance(content["notes"], dict):
                raise InputError(path, "parts", "are not those of a readable state", fix)
        if content.get("key") != self.key:
            raise InputError(path, "key", f"was saved by another recipe: "
                             f"{difference(content.get('key'), self.key)}",
                             "restore these settings, or begin afresh with restart=true")
        return content

    def resume(self, state: LoopState, map_location: Any = "cpu") -> bool:
        """Load the newest state into `state`; False where there is none.

        Raises
        ------
        InputError
            If the newest is unreadable, of another recipe, or of another model.
        """
        path = self.latest()
        if path is None:
            return False
        content = self.read(path, map_location)
        try:
            state.load_state_dict(content)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(path, "content", f"is the state of another model ({reason})",
                             "name another folder, or begin afresh with restart=true") from error
        return True

    def clear(self) -> None:
        for path in self.files():
            path.unlink(missing_ok=True)


#: What stands before the hash, and the length of both together.
_SEAL, _SEALED = b"sha256:", len(b"sha256:") + 64


def _seal(path: Path) -> None:
    """Put the hash of a zip archive (which a state is) behind it, as the archive's comment.

    One file holds both, so that no kill and no copy can part them.
    """
    with open(path, "r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(_SEALED.to_bytes(2, "little"))  # length of the comment
    digest = sha256_file(path)
    with open(path, "ab") as stream:
        stream.write(_SEAL + digest.encode())


def _is_sealed(path: Path) -> bool:
    with open(path, "rb") as stream:
        left = stream.seek(0, os.SEEK_END) - _SEALED
        stream.seek(0)
        digest = hashlib.sha256()
        while left > 0 and (chunk := stream.read(min(left, 2**20))):
            digest.update(chunk)
            left -= len(chunk)
        return stream.read() == _SEAL + digest.hexdigest().encode()


def difference(old: Any, new: Any) -> str:
    """Say in which entries two keys differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{old!r}, not {new!r}"
    parts = [f"{name} was {old.get(name, 'absent')!r}, is {new.get(name, 'absent')!r}"
             for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return "; ".join(parts) or "nothing"
