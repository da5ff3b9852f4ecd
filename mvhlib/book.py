"""The executed notebooks of a run as a static HTML book, for a browser and without a server.

``python -m mvhlib.book runs/demo book/demo`` writes one page per executed notebook and an index
with each notebook's question. Pages follow the browser's light or dark setting; figures keep their
white ground, and wide tables scroll by themselves on a narrow screen. A page runs nothing and asks
for nothing, whatever names of samples its tables show.
"""

import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from mvhlib.artifacts import InputError, read_json, reading, write_text

#: What a browser may do with a page: show its own pictures and styles. No script, no request.
POLICY = ('<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
          "img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; "
          "form-action 'none'\">")
AGAIN = "delete it and run make figures again"

#: What is put on top of nbconvert's own style, which is light and knows no small screens.
STYLE = """
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; }
body { max-width: 62rem; margin: 0 auto; padding: 0 1rem 4rem; overflow-wrap: break-word; }
nav.book { font: 0.9rem sans-serif; padding: 1rem 0; }
.jp-RenderedImage img, .jp-OutputArea-output img, img { max-width: 100%; height: auto;
  background: #fff; }
.jp-RenderedHTMLCommon, .jp-OutputArea-output { overflow-x: auto; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
@media (prefers-color-scheme: dark) {
  :root { --jp-layout-color0: #16181c; --jp-layout-color1: #16181c; --jp-layout-color2: #24272e;
    --jp-cell-editor-background: #1e2127; --jp-cell-editor-border-color: #333842;
    --jp-content-font-color0: #f2f2f2; --jp-content-font-color1: #e4e4e4;
    --jp-content-font-color2: #b8b8b8; --jp-ui-font-color1: #e4e4e4; --jp-border-color2: #444;
    --jp-rendermime-table-row-background: #1e2127; --jp-rendermime-table-row-hover-background:
    #2a2e36; --jp-content-link-color: #7db7ff; --jp-mirror-editor-variable-color: #e4e4e4;
    --jp-mirror-editor-keyword-color: #6cc070; --jp-mirror-editor-string-color: #e08f8f;
    --jp-mirror-editor-comment-color: #9ab; --jp-mirror-editor-number-color: #9ad;
    --jp-mirror-editor-punctuation-color: #c8ccd4; --jp-mirror-editor-operator-color: #c79be8; }
  body { background: #16181c; color: #e4e4e4; }
  a { color: #7db7ff; }
}
</style>
"""


def question(notebook: dict) -> tuple[str, str]:
    """Title and question of a notebook, from its first cell."""
    text = "".join(notebook["cells"][0]["source"]) if notebook["cells"] else ""
    title = re.search(r"^#\s*(.+)$", text, re.MULTILINE)
    asked = re.search(r"\*\*Question\*\*\s*(.+)$", text, re.MULTILINE)
    return (title[1] if title else "notebook", asked[1] if asked else "")


def write_book(run: str | Path, out: str | Path) -> list[Path]:
    """Write the pages and the index.

    Parameters
    ----------
    run
        ``OUT/runs/<profile>``; its ``notebooks/`` holds the executed ones.
    out
        Gets ``index.html`` and one page per notebook, figures inside the pages.

    Returns
    -------
    list of Path
        The index first.

    Raises
    ------
    InputError
        If nothing was run, or a notebook is no JSON.
    """
    import nbformat
    from nbconvert import HTMLExporter

    run, out = Path(run), Path(out)
    sources = sorted(path for path in (run / "notebooks").glob("*.ipynb")
                     if not path.name.startswith("."))
    if not sources:
        raise InputError(run / "notebooks", "notebooks", "none was executed",
                         f"run make figures PROFILE={run.name} first")
    exporter = HTMLExporter(template_name="lab", embed_images=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    pages, entries = [], []
    for source in sources:
        content = read_json(source)
        with reading(source, "content", "is no notebook", AGAIN):
            body, _ = exporter.from_notebook_node(nbformat.reads(
                json.dumps(content), as_version=4))
            title, asked = question(content)
        head, _, body = body.partition("</head>")
        head = re.sub(r"<script\b.*?</script>", "", head, flags=re.DOTALL)
        head = re.sub(r"<title>.*?</title>", "", head, flags=re.DOTALL)
        head = head.replace("<head>", f"<head>{POLICY}<title>{html.escape(title)}</title>", 1)
        body = re.sub(r"(<body[^>]*>)", r'\1<nav class="book"><a href="index.html">all '
                      "notebooks</a></nav>", body, count=1)
        body = f"{head}{STYLE}</head>{body}"
        pages.append(write_text(out / f"{source.stem}.html", body))
        wildcard = source.stem.partition(".")[2]
        entries.append(f'<li><a href="{quote(source.stem)}.html">{html.escape(title)}'
                       f'{html.escape(f" ({wildcard})" if wildcard else "")}</a><br>'
                       f"{html.escape(asked)}</li>")
    name = html.escape(run.name)
    index = (f'<!doctype html><html lang="en"><head>{POLICY}<meta charset="utf-8">'
             f"<title>{name}</title>{STYLE}</head><body><h1>Profile {name}</h1>"
             f'<ul>{"".join(entries)}</ul></body></html>')
    return [write_text(out / "index.html", index), *pages]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: the run's folder, and the book's."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 2:
        print("usage: python -m mvhlib.book runs/<profile> FOLDER", file=sys.stderr)
        return 2
    try:
        pages = write_book(*given)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(pages) - 1} notebooks; open {pages[0]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
