"""Figures as a journal can print them and a repository can hold them."""

from pathlib import Path

from mvhlib.artifacts import InputError

#: Column widths of a printed page [inch]; a figure has one of them.
WIDTHS = (3.5, 7.2)
SMALLEST_TEXT_PT = 6
LARGEST_FIGURE_KB = 500
#: Dots per inch of a png, and of what is rasterised inside an svg: the first that makes a file
#: small enough to be committed.
DPI = {"png": (300, 200, 150), "svg": (150, 100, 72)}


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


def settle(fig) -> None:
    """Keep the layout as it was drawn, to six digits.

    The layout engine's last bit differs between processes, and names inside an svg hash it. It
    needs a second pass where text hangs below the axes.
    """
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:
        ax.set_position([round(value, 6) for value in ax.get_position(original=True).bounds])


def is_large(path: Path) -> bool:
    return path.stat().st_size > LARGEST_FIGURE_KB * 1000


def reduce_colours(path: Path) -> None:
    """Store a large picture with 256 colours: a third of the bytes, no difference in print."""
    from PIL import Image

    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
