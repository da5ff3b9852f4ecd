"""The answer of a notebook: what this run found, in numbers, and what that does not show.

A notebook that ends with `mvhlib.notebook.Run.answer` leaves two short paragraphs::

    OUT/figures/<profile>/<notebook>/answer.md              one execution
    OUT/figures/<profile>/<notebook>/answer.<encoder>.md    one of several

The gallery, the book, the console and `RESULTS.md` quote them, so that a sentence with a number is
written once, where the number was computed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mvhlib import artifacts
from mvhlib.artifacts import InputError

FILE = re.compile(r"answer(?:\.(?P<which>.+))?\.md")
#: Values that are no numbers: an answer states in words what was not measured.
NO_NUMBER = re.compile(r"\b(nan|inf)\b")


@dataclass(frozen=True)
class Answer:
    """What a notebook found.

    Attributes
    ----------
    notebook
        Name of the notebook, such as ``05_expression``.
    which
        The encoder, of a notebook that runs once for each; else empty.
    found
        One or two sentences with the numbers of the run and their intervals.
    limits
        What they do not show.
    """

    notebook: str
    which: str
    found: str
    limits: str

    def __post_init__(self):
        for field in ("found", "limits"):
            text = getattr(self, field)
            if not text.strip() or "\n\n" in text or (said := NO_NUMBER.search(text)):
                problem = "is not one paragraph" if not text.strip() or "\n\n" in text else \
                    f"says {said[0]!r}: {artifacts.one_line(text, 200)}"
                raise InputError(self.notebook, f"answer: {field}", problem,
                                 "write one paragraph, and say in words what was not measured")

    def markdown(self) -> str:
        """The two paragraphs, as the notebook shows them."""
        return f"**Answer.** {self.found}\n\n**Not shown.** {self.limits}"


def file_name(which: str = "") -> str:
    """Name of the file that holds the answer of one execution."""
    return f"answer.{which}.md" if which else "answer.md"


def write(answer: Answer, folder: Path) -> Path:
    """Write an answer to the folder of its notebook's figures."""
    return artifacts.write_text(folder / file_name(answer.which), answer.markdown() + "\n")


def read(path: Path) -> Answer:
    """Read one answer.

    Raises
    ------
    InputError
        If the file is none.
    """
    name = FILE.fullmatch(path.name)
    with artifacts.reading(path, "answer", "cannot be read as an answer",
                           "delete the file and run make figures again"):
        found, limits = path.read_text(encoding="utf-8").strip().split("\n\n")
        return Answer(path.parent.name, name["which"] or "",
                      found.removeprefix("**Answer.** "), limits.removeprefix("**Not shown.** "))


def of_notebook(folder: Path) -> list[Answer]:
    """Every answer in the folder of a notebook's figures, by the name of its file."""
    return [read(path) for path in sorted(folder.glob("answer*.md")) if FILE.fullmatch(path.name)]


def of_profile(figures: Path) -> Mapping[str, list[Answer]]:
    """Every answer below ``figures/<profile>``: notebook -> its answers, notebooks in order."""
    each = {folder.name: of_notebook(folder) for folder in sorted(figures.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")}
    return {name: found for name, found in each.items() if found}
