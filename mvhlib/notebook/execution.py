"""One execution of a notebook: its paths, figures, tables, checks, answer and provenance."""

import importlib.metadata
import os
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvhlib import answers, artifacts, freshness, phrases
from mvhlib.artifacts import InputError
from mvhlib.notebook.figures import (
    DPI,
    LARGEST_FIGURE_KB,
    check_figure,
    is_large,
    reduce_colours,
    settle,
)
from mvhlib.notebook.parameters_cell import WILDCARDS
from mvhlib.places import choose_device, home, resolve

#: Profiles whose figures git ignores; their pictures may be larger.
UNCOMMITTED = ("demo", "test")

#: Packages whose versions can change a number.
PACKAGES = ("anndata", "h5py", "lifelines", "matplotlib", "numpy", "pandas", "papermill", "pillow",
            "scanpy", "scikit-image", "scikit-learn", "scipy", "seaborn", "squidpy", "torch")

_held = {}  # lock path -> ExitStack; a kernel that begins twice must not wait for itself


class CheckFailed(AssertionError):
    """A check cell found that a stage did not work as it should."""


def stem(name: str, parameters: dict[str, Any]) -> str:
    """Name of one execution: the notebook's, and the values of its wildcards behind dots."""
    values = [parameters[key] for key in WILDCARDS if isinstance(parameters.get(key), str)]
    return ".".join([name, *values])


@dataclass
class Run:
    """One execution of one notebook; made by `begin`."""

    name: str
    parameters: dict[str, Any]
    home: Path = field(default_factory=home)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def profile(self) -> str:
        return self.parameters["profile"]

    @property
    def seed(self) -> int:
        return self.parameters["seed"]

    @property
    def out(self) -> Path:
        return resolve(self.parameters["out"])

    @property
    def data(self) -> Path | None:
        return resolve(self.parameters["data"]) if self.parameters["data"] else None

    @property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``mps``; see `mvhlib.places.choose_device`."""
        return choose_device(self.parameters["device"], where=self.name)

    @property
    def stem(self) -> str:
        return stem(self.name, self.parameters)

    @property
    def is_synthetic(self) -> bool:
        """True while no data of a user's is read; titles then say "synthetic"."""
        return self.data is None

    def path(self, *parts: str) -> Path:
        """A place in the run folder, ``OUT/runs/<profile>/...``.

        Raises
        ------
        InputError
            If a part, such as a name that a table gave, leads out of it.
        """
        return _inside(self.out / "runs" / self.profile, parts, self.name)

    @property
    def figures(self) -> Path:
        return self.out / "figures" / self.profile / self.name

    def need(self, path: str | os.PathLike, made_by: str) -> Path:
        """Return an input that an earlier notebook made, and note its hash.

        Raises
        ------
        InputError
            If it is not there; names the notebook that makes it.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(path, "input", "does not exist yet",
                             f"run notebooks/{made_by}.ipynb with profile {self.profile!r} first")
        if path.is_file():
            self.inputs[self._relative(path)] = artifacts.sha256_file(path)
        return path

    def note(self, path: str | os.PathLike) -> Path:
        """Note a file that this notebook wrote by itself, so that its provenance lists it."""
        path = Path(path)
        self.outputs[self._relative(path)] = artifacts.sha256_file(path)
        return path

    def save_figure(self, fig, name: str, data=None, shows_tissue: bool = False,
                    caption: str = "") -> Path:
        """Write a figure as png and svg, its source data as csv, and its provenance as json.

        Parameters
        ----------
        fig
            matplotlib figure, 3.5 or 7.2 inch wide, no text under 6 pt.
        name
            File name without ending.
        data
            Data frame that the figure draws.
        shows_tissue
            True where pixels of real tissue are seen: such a figure stays in the run folder,
            with ``.tissue`` in its name, and is never committed.
        caption
            One sentence for the gallery.

        Raises
        ------
        InputError
            If the width or a text size is not one that a page can print, in a profile of the
            project on data that it makes itself. Anyone else's run prints that and goes on: how a
            page is laid out must not cost the results.
        """
        try:
            check_figure(fig, f"{self.name}/{name}")
        except InputError as error:
            self._complain(error)
        settle(fig)
        folder = self.path("figures", self.name) if shows_tissue else self.figures
        _inside(folder, (name,), self.name)
        base = f"{name}.tissue" if shows_tissue else name
        self._claim(base, "figure")
        is_committed = not shows_tissue and self.profile not in UNCOMMITTED
        clean = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
        for ending, metadata in clean.items():
            with artifacts.atomic(folder / f"{base}.{ending}") as temporary:
                for dpi in DPI[ending]:
                    fig.savefig(temporary, format=ending, metadata=metadata, dpi=dpi)
                    if ending == "png" and is_committed and is_large(temporary):
                        reduce_colours(temporary)
                    if not (is_committed and is_large(temporary)):
                        break
            size = self.note(folder / f"{base}.{ending}").stat().st_size
            if is_committed and size > LARGEST_FIGURE_KB * 1000:
                self._complain(InputError(
                    folder / f"{base}.{ending}", "size",
                    f"is {size // 1000} kB, more than {LARGEST_FIGURE_KB}",
                    "draw large clouds with rasterized=True, or thin them"))
        record = {"figure": name, "notebook": self.name, "caption": caption,
                  "synthetic": self.is_synthetic, "shows_tissue": shows_tissue,
                  "provenance": self._hashed()}
        if data is not None:
            self.note(artifacts.write_csv(folder / f"{base}.csv", data))
            record["data_sha256"] = artifacts.sha256_file(folder / f"{base}.csv")
        self.note(artifacts.write_json(folder / f"{base}.json", record))
        return folder / f"{base}.png"

    def _complain(self, error: InputError) -> None:
        """Raise the fault of a figure that the project prints; report that of any other."""
        if self.is_synthetic and (self.home / "params" / self.profile / "workflow.yaml").exists():
            raise error
        print(f"note: {error}")

    def save_table(self, frame, name: str, timing=None) -> Path:
        """Write a table to the figures folder; wall-clock columns go to ``<name>.timing.csv``."""
        self._claim(name, "table")
        _inside(self.figures, (name,), self.name)
        path = self.note(artifacts.write_csv(self.figures / f"{name}.csv", frame))
        if timing is not None:
            artifacts.write_csv(self.figures / f"{name}.timing.csv", timing)
        return path

    def _claim(self, name: str, kind: str) -> None:
        """Refuse one name for a table and a figure's data, since both are ``<name>.csv``."""
        if self.names.setdefault(name, kind) != kind:
            raise InputError(self.name, name, f"is a {self.names[name]} already",
                             f"give the {kind} another name")

    def check(self, ok: Any, message: str) -> None:
        """Note that something holds; stop the notebook where it does not.

        Raises
        ------
        CheckFailed
            With `message`.
        """
        if not bool(ok):
            raise CheckFailed(f"{self.name}: {message}: does not hold")
        self.checks.append(message)
        print(f"✓ {message}")

    def answer(self, found: str, limits: str) -> None:
        """Show and write the answer to the notebook's question; the last but one cell calls this.

        Parameters
        ----------
        found
            One or two sentences with the numbers of this run, each mean with its interval.
        limits
            What they do not show.

        Raises
        ------
        InputError
            If one is empty, or a number in it is none.
        """
        from IPython.display import Markdown, display

        display(Markdown(self._write_answer(found, limits).markdown()))

    def _write_answer(self, found: str, limits: str) -> answers.Answer:
        which = self.stem.removeprefix(self.name).removeprefix(".")
        said = answers.Answer(self.name, which, " ".join(found.split()), " ".join(limits.split()))
        self.note(answers.write(said, self.figures))
        return said

    def finish(self) -> None:
        """Write the provenance, last of all, and print how much was made and where it is."""
        record = {"hashed": self._hashed() | {"outputs": self.outputs, "checks": self.checks},
                  "minutes": round((time.time() - self.started) / 60, 2),
                  "platform": platform.platform()}
        record["sha256"] = artifacts.sha256_of(record["hashed"])
        artifacts.write_json(self.path("provenance", f"{self.stem}.json"), record)
        print(f"{self.name} ({self.profile}) took {record['minutes']:.1f} min and wrote:")
        folders = {}
        for name in self.outputs:
            folders.setdefault("/".join(Path(name).parts[:-1][:3]), []).append(name)
        for folder, names in sorted(folders.items()):
            size_kb = sum((self.out / name).stat().st_size for name in names) / 1000
            print(f"  {folder}: {phrases.count(len(names), 'file')}, {size_kb:,.0f} kB")
        _release(self._lock_path)

    def end(self, reason: str) -> None:
        """End well where nothing is left to do: say why, write the provenance, run no more cells.

        The reason is the notebook's answer where it has given none before. papermill, and with it
        the workflow, takes ``SystemExit(0)`` for success; JupyterLab runs no further cell.

        Raises
        ------
        SystemExit
            With 0.
        """
        print(reason)
        if not any(answers.FILE.fullmatch(Path(name).name) for name in self.outputs):
            self._write_answer(reason, "Nothing was measured here, which speaks neither for nor "
                                       "against anything.")
        self.finish()
        raise SystemExit(0)

    @property
    def _lock_path(self) -> Path:
        return self.path(".locks", self.stem)

    def _relative(self, path: Path) -> str:
        """Return `path` without the part that depends on this machine."""
        path = path.resolve()
        for root in (self.out, self.data, self.home):
            if root is not None and path.is_relative_to(root):
                return str(path.relative_to(root))
        return path.name

    def _hashed(self) -> dict[str, Any]:
        """All that determines the numbers: inputs, parameters, code, versions, threads, seed."""
        import torch

        source = self.home / "notebooks" / f"{self.name}.ipynb"
        modules = {name: freshness.code_sha256(Path(module.__file__))
                   for name, module in sorted(sys.modules.items())
                   if name.split(".")[0] == "mvhlib" and getattr(module, "__file__", None)}
        return {
            "parameters": {key: value for key, value in self.parameters.items()
                           if key not in ("out", "data")},
            "inputs": dict(sorted(self.inputs.items())),
            "notebook": freshness.code_sha256(source) if source.exists() else None,
            "modules": modules,
            "versions": {"python": platform.python_version()} | {
                package: _version(package) for package in PACKAGES},
            "threads": torch.get_num_threads(),
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return f"Run {self.stem}: profile {self.profile}, seed {self.seed}, out {self.out}"


def _inside(folder: Path, parts: tuple[str, ...], where: str) -> Path:
    """`folder` with `parts`, which must not lead out of it."""
    for part in parts:
        if os.path.isabs(part) or ".." in Path(part).parts or "\0" in os.fspath(part):
            raise InputError(where, "name", f"{os.fspath(part)!r} leads out of {folder}",
                             "choose a name without slashes and dots in front")
    return folder.joinpath(*parts)


def hold_lock(path: Path) -> None:
    if path not in _held:
        stack = ExitStack()
        stack.enter_context(artifacts.lock(path))
        _held[path] = stack


def _release(path: Path) -> None:
    if path in _held:
        _held.pop(path).close()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
