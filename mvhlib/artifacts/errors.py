"""Errors that say in one line which file, which field, what is wrong and how to mend it."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class InputError(ValueError):
    """Bad input, said in one line: which file, which field, what is wrong, how to mend it.

    Parameters
    ----------
    where
        File or directory (or the name of a parameter set) that holds the fault.
    field
        Column, key, dataset or parameter.
    problem
        What was found.
    fix
        What the user can do about it.
    """

    def __init__(self, where: str | os.PathLike, field: str, problem: str, fix: str):
        self.where, self.field, self.problem, self.fix = (
            one_line(part) for part in (where, field, problem, fix))
        super().__init__(f"{self.where}: {self.field}: {self.problem}. Fix: {self.fix}.")

    def __reduce__(self):
        return type(self), (self.where, self.field, self.problem, self.fix)


class TooFew(InputError):
    """The data are valid but too few: a notebook leaves this part out and says so."""


def where_enough(items: Iterable[Any], function: Callable[[Any], Any]
                 ) -> tuple[dict[Any, Any], list[str]]:
    """Call `function` for every item; where it says `TooFew`, go on with the others.

    Returns
    -------
    tuple
        Item -> result, of those that had enough; and why the others are left out, a sentence each.
    """
    done, reasons = {}, []
    for item in items:
        try:
            done[item] = function(item)
        except TooFew as error:
            reasons.append(f"{item} is left out: {error.where}: {error.field} {error.problem}.")
    return done, reasons


def one_line(text: Any, longest: int = 400) -> str:
    """Put `text` on one line of at most `longest` characters; its middle is left out beyond."""
    line = " ".join(str(text).split())
    if len(line) <= longest:
        return line
    return f"{line[:longest // 2]} ... {line[-longest // 2:]}"


@contextlib.contextmanager
def reading(path: str | os.PathLike, field: str = "file", problem: str = "cannot be read",
            fix: str = "replace it with a complete file of this kind") -> Iterator[None]:
    """Turn what a library raises over a broken file into one `InputError` that names the file.

    A reader wraps the lines that parse a user's file, no more: an error of our own code behind
    them must stay a traceback. An `InputError` raised inside passes as it is, so that a reader
    says what it knows better.

    Parameters
    ----------
    path
        The file or folder that is read.
    field
        Column, key or dataset at fault, where it is known.
    problem
        What is said before the library's own words.
    fix
        What the user can do about it.

    Raises
    ------
    InputError
        For every error of the block but a lack of disk space, which is no fault of the file.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(path, field, f"{problem} ({_said(error)})", fix) from error
    except Exception as error:
        raise InputError(path, field, f"{problem} ({_said(error)})", fix) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}" if str(error) else type(error).__name__
