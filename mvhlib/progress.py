"""One progress bar for every loop."""

from typing import Any


class _Silent:
    """Stands in for tqdm where it is not installed or not wanted."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


def bar(total: int, title: str, unit: str, *, show: bool = True, done: int = 0,
        stays: bool = True) -> Any:
    """Open a progress bar, to be used in a ``with`` block.

    Parameters
    ----------
    total, done
        Steps in all, and those that an earlier call has made.
    title, unit
        What goes on, and what is counted.
    show
        False makes an object that prints nothing.
    stays
        Whether the bar is left on the screen when it is full.

    Returns
    -------
    tqdm.tqdm
        Or a silent stand-in where tqdm is missing: some machines have torch and little else.
    """
    if not show:
        return _Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Silent()
    return tqdm(total=total, initial=done, desc=title, unit=unit, leave=stays, disable=None,
                mininterval=1)
