"""The rails of a notebook: parameters that are checked, a seeded start, outputs with provenance.

A notebook begins with ``run = notebook.begin("05_expression", globals())`` and ends with
``run.finish()``. Between them it reads through `Run.need` and writes through `Run.save_figure`,
`Run.save_table` and `Run.path`::

    OUT/runs/<profile>/provenance/<stem>.json       what went in, what came out; written last
    OUT/figures/<profile>/<name>/<figure>.png .svg .csv .json
    OUT/figures/<profile>/<name>/<table>.csv, <table>.timing.csv
    OUT/figures/<profile>/<name>/answer.md          what this run found (`mvhlib.answers`)
    OUT/runs/<profile>/figures/<name>/<figure>.tissue.*      figures with pixels of real tissue

papermill only warns about a parameter that the notebook does not have; `begin` refuses it. It also
sees to it that an `InputError` or a failed check is one line in the notebook, without the traceback
above it, wherever the notebook runs.
"""

import ast
import importlib.metadata
import os
import platform
import random
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvhlib import answers, artifacts, freshness, phrases
from mvhlib.artifacts import InputError
from mvhlib.parameters import check, check_seed
from mvhlib.places import choose_device, home, resolve

#: The parameters that every notebook starts with, in this order.
COMMON = ("profile", "out", "data", "seed", "device")
#: Parameters that are wildcards of the workflow: one job and one executed notebook per value.
WILDCARDS = ("encoder",)
#: Column widths of a printed page [inch]; a figure has one of them.
WIDTHS = (3.5, 7.2)
SMALLEST_TEXT_PT = 6
LARGEST_FIGURE_KB = 500
#: Dots per inch of a png, and of what is rasterised inside an svg: the first that makes a file
#: small enough to be committed.
DPI = {"png": (300, 200, 150), "svg": (150, 100, 72)}
#: Profiles whose figures git ignores; their pictures may be larger.
UNCOMMITTED = ("demo", "test")
#: Columns and rows of a table on screen.
SHOWN = (8, 16)
#: What libraries say of themselves: category, and how the message begins.
QUIET = ((SyntaxWarning, ".* is not a valid key!"),)
#: Packages whose versions can change a number.
PACKAGES = ("anndata", "h5py", "lifelines", "matplotlib", "numpy", "pandas", "papermill", "pillow",
            "scanpy", "scikit-image", "scikit-learn", "scipy", "seaborn", "squidpy", "torch")

_held = {}  # lock path -> ExitStack; a kernel that begins twice must not wait for itself


class CheckFailed(AssertionError):
    """A check cell found that a stage did not do what it says."""


def stem(name: str, parameters: dict[str, Any]) -> str:
    """Name of one execution: the notebook's, and the values of its wildcards behind dots."""
    values = [parameters[key] for key in WILDCARDS if isinstance(parameters.get(key), str)]
    return ".".join([name, *values])


# --------------------------------------------------------------------------------------------
# parameters


def declared_parameters(source: str) -> dict[str, tuple[str, Any]]:
    """Read a parameters cell: name -> (annotation, default).

    Raises
    ------
    InputError
        If a parameter has no annotation or no literal, or a default string holds ``=``, which
        papermill takes apart wrongly.
    """
    parameters = {}
    with artifacts.reading("parameters cell", "code", "is no Python", "take it from git again"):
        body = ast.parse(source).body
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                and node.value is not None):
            raise InputError("parameters cell", ast.unparse(node), "is no annotated literal",
                             "write `name: type = literal  # meaning [unit]`")
        name, annotation = node.target.id, ast.unparse(node.annotation)
        try:
            value = ast.literal_eval(node.value)
        except ValueError as error:
            raise InputError("parameters cell", name, "its default is not a literal",
                             "derive values in a later cell") from error
        if isinstance(value, str) and "=" in value:
            raise InputError("parameters cell", name, 'its default string holds "="',
                             "papermill mis-reads that; pass such a value from a YAML file")
        parameters[name] = (annotation, value)
    return parameters


def given_parameters(source: str) -> dict[str, Any]:
    """Read the cell that papermill injects: name -> value.

    Raises
    ------
    InputError
        If a value is no literal: papermill writes NaN and infinities as calls.
    """
    given = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            with artifacts.reading("injected parameters", name, f"is {ast.unparse(node.value)}",
                                   "give a number, text, list or mapping"):
                given[name] = ast.literal_eval(node.value)
    return given


def check_parameters(name: str, declared: dict[str, tuple[str, Any]],
                     values: dict[str, Any]) -> None:
    """Refuse unknown names and wrong types.

    Raises
    ------
    InputError
        Names the parameter and, where it is unknown, the nearest that exists.
    """
    check(name, {key: annotation for key, (annotation, _) in declared.items()}, values,
          noun="parameter of this notebook")


def read_parameters_cell(path: Path) -> str:
    """Source of the cell tagged ``parameters`` in a notebook file."""
    content = artifacts.read_json(path)
    with artifacts.reading(path, "cells", "are no notebook", "take it from git again"):
        for cell in content["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                return "".join(cell["source"])
    raise InputError(path, "parameters", "no cell has this tag", "tag the first code cell")


def _collect(name: str, namespace: dict[str, Any]) -> tuple[dict, dict]:
    """Declared parameters, and the values in force, of the notebook that runs in `namespace`."""
    history = [cell for cell in namespace.get("In", []) if isinstance(cell, str)]
    own = [cell for cell in history if re.match(r"\s*profile\s*:\s*str\s*=", cell)]
    source = own[-1] if own else read_parameters_cell(home() / "notebooks" / f"{name}.ipynb")
    declared = declared_parameters(source)
    if tuple(declared)[:len(COMMON)] != COMMON:
        raise InputError(name, "parameters", f"start with {list(declared)[:5]}",
                         f"start with {list(COMMON)}")
    injected = [cell for cell in history if cell.lstrip().startswith("# Parameters")]
    if injected:
        check_parameters(name, declared, given_parameters(injected[-1]))
    values = {key: namespace.get(key, default) for key, (_, default) in declared.items()}
    check_parameters(name, declared, values)
    return declared, values


# --------------------------------------------------------------------------------------------
# the run


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
        _settle(fig)
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
                    if ending == "png" and is_committed and _is_large(temporary):
                        _reduce_colours(temporary)
                    if not (is_committed and _is_large(temporary)):
                        break
            size = self.note(folder / f"{base}.{ending}").stat().st_size
            if is_committed and size > LARGEST_FIGURE_KB * 1000:
                self._complain(InputError(
                    folder / f"{base}.{ending}", "size", f"is {size // 1000} kB",
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
        """Raise what is wrong with a figure that the project prints; else say it and go on."""
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
        """A figure's data and a table are both ``<name>.csv``: one name is one of them."""
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
        """Write the provenance, last of all, and say how much was made and where it lies."""
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
        """`path` without what is particular to this machine."""
        path = path.resolve()
        for root in (self.out, self.data, self.home):
            if root is not None and path.is_relative_to(root):
                return str(path.relative_to(root))
        return path.name

    def _hashed(self) -> dict[str, Any]:
        """What decides the numbers: inputs, parameters, code, versions, threads, seed."""
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


def begin(name: str, namespace: dict[str, Any]) -> Run:
    """Check the parameters, seed everything, take the stage's lock and set the style.

    Parameters
    ----------
    name
        The notebook's file name without ending, for example ``"05_expression"``.
    namespace
        ``globals()`` of the notebook.

    Raises
    ------
    InputError
        On an unknown or mistyped parameter, a profile or encoder that is no name of a folder, a
        seed that is none, a data directory that is not there or a place that cannot be written.
    """
    show_errors_in_one_line()
    _, values = _collect(name, namespace)
    for key in ("profile", *WILDCARDS):
        if isinstance(values.get(key), str) and artifacts.safe_name(values[key], name, key) != (
                values[key]):
            raise InputError(name, key, f"is {values[key]!r}", "take off the blanks around it")
    check_seed(values["seed"], name)
    artifacts.safe_path(values["out"], name, "out")
    if values["data"]:
        artifacts.safe_path(values["data"], name, "data")
    run = Run(name, values)
    if run.data is not None and not run.data.is_dir():
        raise InputError(run.data, "data", "is not a directory",
                         "pass DATA=<directory> (make) or -p data <directory> (papermill)")
    with artifacts.reading(run.out, "out", "cannot be written", "name a folder of yours"):
        run._lock_path.parent.mkdir(parents=True, exist_ok=True)
    _hold(run._lock_path)
    seed_everything(run.seed)
    from mvhlib import plots

    plots.set_style()
    set_tables()
    print(f"{run.stem}: profile {run.profile}, seed {run.seed}, device {run.device}")
    return run


def set_tables() -> None:
    """Show tables as a page can hold them: `SHOWN` columns and rows, three digits; files keep all.

    Warnings that a reader can do nothing about, of libraries about themselves, are not shown.
    """
    import warnings

    import pandas as pd

    n_columns, n_rows = SHOWN
    pd.set_option("display.max_columns", n_columns, "display.max_rows", n_rows,
                  "display.min_rows", n_rows, "display.width", 100, "display.max_colwidth", 60,
                  "display.float_format", three_digits)
    for category, message in QUIET:
        warnings.filterwarnings("ignore", category=category, message=message)


def three_digits(value: float) -> str:
    """A number as a table shows it.

    Examples
    --------
    >>> [three_digits(value) for value in (0.12345, 3897.4, -0.00004, 2.0)]
    ['0.123', '3,897', '-4e-05', '2']
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def show_errors_in_one_line() -> None:
    """Show `InputError` and `CheckFailed` without a traceback in the kernel that runs this.

    The message says what to mend; frames of the library would only stand between it and its reader.
    All other errors keep their traceback.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return

    def show(shell, kind, error, traceback, tb_offset=None):
        line = f"{kind.__name__}: {artifacts.one_line(error, 2000)}"
        shell._showtraceback(kind, error, [line])
        return [line]

    shell.set_custom_exc((InputError, CheckFailed), show)


def _inside(folder: Path, parts: tuple[str, ...], where: str) -> Path:
    """`folder` with `parts`, which must not lead out of it."""
    for part in parts:
        if os.path.isabs(part) or ".." in Path(part).parts or "\0" in os.fspath(part):
            raise InputError(where, "name", f"{os.fspath(part)!r} leads out of {folder}",
                             "choose a name without slashes and dots in front")
    return folder.joinpath(*parts)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; library code draws from generators that it is handed."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_figure(fig, where: str) -> None:
    """Refuse a figure that a journal could not print at column width.

    Raises
    ------
    InputError
        If it is not 3.5 or 7.2 inch wide, holds text under 6 pt, or a title or label is cut off.
    """
    from matplotlib.text import Text

    width = fig.get_figwidth()
    if min(abs(width - allowed) for allowed in WIDTHS) > 0.01:
        raise InputError(where, "width", f"is {width:g} inch", f"use one of {WIDTHS} inch")
    small = [text.get_text() for text in fig.findobj(Text)
             if text.get_visible() and text.get_text().strip()
             and text.get_fontsize() < SMALLEST_TEXT_PT - 0.01]
    if small:
        raise InputError(where, "text", f"is under {SMALLEST_TEXT_PT} pt: {small[:3]}",
                         "enlarge it or leave it out")
    fig.canvas.draw()
    page = fig.bbox
    inside = [ax for ax in fig.axes if ax.axison]
    shown = [text for ax in inside for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    shown += [text for text in (fig._suptitle, *fig.texts) if text is not None]
    shown = [text for text in shown if text.get_text().strip() and text.get_visible()]
    shown += [legend for legend in (*fig.legends, *(ax.get_legend() for ax in fig.axes)) if legend]
    for artist in shown:
        box = artist.get_window_extent()
        if min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) < -1:
            name = repr(artist.get_text()) if isinstance(artist, Text) else "a legend"
            raise InputError(where, "text", f"is cut off: {name}",
                             "shorten it, break the line or enlarge the figure")


def _settle(fig) -> None:
    """Keep the layout as it was drawn, to six digits.

    The layout engine's last bit differs between processes, and names inside an svg hash it. It
    needs a second pass where text hangs below the axes.
    """
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:
        ax.set_position([round(value, 6) for value in ax.get_position(original=True).bounds])


def _is_large(path: Path) -> bool:
    return path.stat().st_size > LARGEST_FIGURE_KB * 1000


def _reduce_colours(path: Path) -> None:
    """Store a large picture with 256 colours: a third of the bytes, no difference in print."""
    from PIL import Image

    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


def _hold(path: Path) -> None:
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
