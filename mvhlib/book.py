"""The executed notebooks of a run as a static HTML book, for a browser and without a server.

``python -m mvhlib.book runs/demo book/demo`` writes one page per executed notebook, code folded,
with the ones before and after, and an index with each notebook's question, first picture and
answer. `make book` puts the library's reference beside it (`reference`, by pdoc). Pages follow the
browser's light or dark setting; figures keep their white ground, and wide tables scroll by
themselves on a narrow screen. A page of a notebook runs nothing and asks for nothing, whatever
names of samples its tables show.
"""

import base64
import html
import io
import json
import re
import subprocess
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
nav.book { font: 0.9rem sans-serif; padding: 1rem 0; display: flex; flex-wrap: wrap;
  gap: 0 1.5rem; }
details.code > summary { font: 0.75rem sans-serif; color: #777; cursor: pointer;
  padding: 0.3rem 0; }
h1 { font-family: sans-serif; font-weight: 500; }
ol.index { list-style: none; padding: 0; font: 1rem/1.4 sans-serif; }
ol.index li { display: grid; grid-template-columns: 12rem 1fr; gap: 1rem; padding: 1rem 0;
  border-top: 1px solid #8884; align-items: start; }
ol.index p { margin: 0.3rem 0; }
@media (max-width: 40rem) { ol.index li { grid-template-columns: 1fr; } }
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
    contents, links = [], []
    for source in sources:
        content = read_json(source)
        with reading(source, "content", "is not a notebook", AGAIN):
            title, _ = question(content)
            contents.append(nbformat.reads(json.dumps(content), as_version=4))
        wildcard = source.stem.partition(".")[2]
        links.append((f"{quote(source.stem)}.html",
                      html.escape(title + (f" ({wildcard})" if wildcard else ""))))
    pages, entries = [], []
    for i, (source, content) in enumerate(zip(sources, contents, strict=True)):
        with reading(source, "content", "is not a notebook", AGAIN):
            body, _ = exporter.from_notebook_node(content)
            entries.append(_entry(content, *links[i]))
        text = _page(body, links[i][1], _navigation(links, i))
        pages.append(write_text(out / f"{source.stem}.html", text))
    name = html.escape(run.name)
    index = (f'<!doctype html><html lang="en"><head>{POLICY}<meta charset="utf-8">'
             f"<title>{name}</title>{STYLE}</head><body><h1>Profile {name}</h1>"
             f'<ol class="index">{"".join(entries)}</ol></body></html>')
    return [write_text(out / "index.html", index), *pages]


def _navigation(links: Sequence[tuple[str, str]], i: int) -> str:
    """Links to all notebooks, and to the ones before and after."""
    near = ['<a href="index.html">all notebooks</a>']
    if i > 0:
        near.append(f'<a href="{links[i - 1][0]}" rel="prev">← {links[i - 1][1]}</a>')
    if i + 1 < len(links):
        near.append(f'<a href="{links[i + 1][0]}" rel="next">{links[i + 1][1]} →</a>')
    return f'<nav class="book">{"".join(near)}</nav>'


def _page(exported: str, title: str, navigation: str) -> str:
    """nbconvert's page without its scripts, its code folded, with links and our style."""
    from bs4 import BeautifulSoup

    head, _, body = exported.partition("</head>")
    head = re.sub(r"<script\b.*?</script>", "", head, flags=re.DOTALL)
    head = re.sub(r"<title>.*?</title>", "", head, flags=re.DOTALL)
    head = head.replace("<head>", f"<head>{POLICY}<title>{title}</title>", 1)
    soup = BeautifulSoup(body, "html.parser")
    for code in soup.select(".jp-CodeCell > .jp-Cell-inputWrapper"):
        folded = soup.new_tag("details", attrs={"class": "code"})
        summary = soup.new_tag("summary")
        summary.string = "code"
        code.wrap(folded).insert(0, summary)
    main = soup.find("main") or soup
    main.insert(0, BeautifulSoup(navigation, "html.parser"))
    main.append(BeautifulSoup(navigation, "html.parser"))
    return f"{head}{STYLE}</head>{soup}"


def _entry(notebook: dict, link: str, title: str) -> str:
    """A notebook in the index: its first picture, its question and its answer."""
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in
               cell.get("outputs", [])]
    pictures = [data["image/png"] for data in outputs if "image/png" in data]
    said = ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]
    answer = next((text for text in said if text.startswith("**Answer.**")), "")
    found = answer.partition("\n\n")[0].removeprefix("**Answer.** ")
    picture = (f'<img alt="" src="data:image/png;base64,{_thumbnail(pictures[0])}">'
               if pictures else "<span></span>")
    return (f'<li>{picture}<div><a href="{link}">{title}</a>'
            f"<p>{html.escape(question(notebook)[1])}</p><p><b>{html.escape(found)}</b></p>"
            "</div></li>")


def _thumbnail(picture: str, width: int = 400) -> str:
    """A picture in base64, reduced to a width [px]."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode("".join(picture)))) as image:
        image = image.convert("RGB")
        image.thumbnail((width, width))
        image.save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def write_reference(out: Path) -> Path | None:
    """Write the reference of the library's public names from their docstrings; its first page.

    None where pdoc (extra ``dev``) is not installed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", "--docformat", "numpy", "--no-show-source",
         "--output-directory", str(out), "mvhlib", "!mvhlib.*.__main__"],
        capture_output=True, text=True)
    return out / "mvhlib.html" if done.returncode == 0 else None


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
    if reference := write_reference(pages[0].parent / "reference"):
        print(f"the library's reference: {reference}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
