"""Maps of a slide, and the page that states their reliability."""

import base64
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvhlib import artifacts, plots
from mvhlib.prediction.belief import by_expected

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mvhlib.prediction.outputs import Made

MAP, PAGE = "maps.png", "report.html"
#: Maps beside the H&E, and genes in the page's table.
MAPS, LISTED = 5, 60
#: What each file of a slide is for, by its ending.
USES = {".h5ad": "all genes at all tiles: scanpy, squidpy, anndata",
        ".geojson": "the best genes, measurements of tiles: drag it onto the slide in QuPath",
        "tiles.csv": "the best genes and what to believe of each tile, for spreadsheets and R",
        ".zarr": "SpatialData: napari-spatialdata, spatialdata-plot"}
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}img{max-width:100%}
.warn{border-left:.4em solid #d55e00;background:#fdf0e6;padding:.5em 1em;margin:.4em 0}
.fine{border-left:.4em solid #009e73;background:#e6f5f1;padding:.5em 1em;margin:.4em 0}
table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:right}
td:first-child,th:first-child{text-align:left}tr.grey{color:#aaa}
th{border-bottom:1px solid #888}.small{color:#555;font-size:.9em}"""


def tile_map(adata: "AnnData", gene: str | None, ax: "Axes") -> "Axes":
    """Draw one gene as squares at the tiles' places; unreliable tiles are hatched.

    Parameters
    ----------
    adata
        Predictions of a slide, as `outputs.to_adata` makes them.
    gene
        In greys where it is not to be believed; None draws the H&E.
    """
    from matplotlib.collections import PolyCollection

    (place,) = adata.uns["spatial"].values()
    image, scale = place["images"]["hires"], place["scalefactors"]["tissue_hires_scalef"]
    half = place["scalefactors"]["spot_diameter_fullres"] / 2
    corner = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    squares = adata.obsm["spatial"][:, None, :] + corner  # (T, 1, 2) + (4, 2) -> (T, 4, 2)
    if gene is None:
        ax.imshow(image, extent=(0, image.shape[1] / scale, image.shape[0] / scale, 0),
                  interpolation="bilinear")
        _scale_bar(ax, squares, adata.uns["mvh"]["mpp"])
    else:
        cmap = "viridis" if adata.var.at[gene, "believed"] else "Greys"
        drawn = PolyCollection(squares, array=adata.obs_vector(gene).astype(float), cmap=cmap,
                               edgecolors="face", linewidths=0.1, rasterized=True)
        ax.add_collection(drawn)
        ax.figure.colorbar(drawn, ax=ax, shrink=0.7, pad=0.02).ax.tick_params(labelsize=6)
        outside = squares[adata.obs["out_of_distribution"].to_numpy(bool)]
        if len(outside):
            ax.add_collection(PolyCollection(outside, facecolors="none", edgecolors="#d55e00",
                                             linewidths=0.0, hatch="//////", rasterized=True))
    low, high = squares.min(axis=(0, 1)), squares.max(axis=(0, 1))
    margin = 0.03 * (high - low).max()
    ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(high[1] + margin, low[1] - margin),
           aspect="equal")
    ax.set_axis_off()
    return ax


def _scale_bar(ax: "Axes", squares: np.ndarray, mpp: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten um, about a quarter of the tissue's width."""
    (left, _), (right, bottom) = squares.min(axis=(0, 1)), squares.max(axis=(0, 1))
    most = 0.3 * (right - left) * mpp
    um = max(step * 10.0 ** power for power in range(-1, 6) for step in (1, 2, 5)
             if step * 10.0 ** power <= max(most, 0.1))
    ax.plot([left, left + um / mpp], [bottom, bottom], color="black", linewidth=2,
            solid_capstyle="butt")
    text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um"
    ax.annotate(text, (left, bottom), (0, 3), textcoords="offset points", fontsize=6.5,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8})


def maps(adata: "AnnData", n: int = MAPS) -> "Figure":
    """The H&E and the `n` genes that are predicted best, greyed and hatched as in `tile_map`."""
    import matplotlib.pyplot as plt

    genes = list(by_expected(adata.var).index[:n])
    rows = 1 if len(genes) < 3 else 2
    fig, axes = plt.subplots(rows, 3, figsize=(plots.PAGE, 2.1 * rows + 0.3), squeeze=False)
    tile_map(adata, None, axes.flat[0]).set_title("H&E")
    for ax, gene in zip(axes.flat[1:], genes, strict=False):
        row = adata.var.loc[gene]
        said = f"{row['expected_r']:.2f}" if np.isfinite(row["expected_r"]) else "not known"
        tile_map(adata, gene, ax)
        ax.set_title(f"{gene}, expected r {said}" + ("" if row["believed"] else " (weak)"),
                     fontsize=7, color="black" if row["believed"] else "0.55")
    for ax in list(axes.flat)[1 + len(genes):]:
        ax.set_axis_off()
    hatched = "; hatched: outside the training distribution" if (
        adata.obs["out_of_distribution"].any()) else ""
    fig.supxlabel(f"Predicted {adata.uns['mvh']['unit']}, each gene in its own range{hatched}",
                  fontsize=6.5)
    return fig


def write_maps(adata: "AnnData", folder: Path) -> Path:
    """Write ``maps.png``; equal predictions give equal bytes."""
    import matplotlib.pyplot as plt

    plots.set_style()
    fig = maps(adata)
    with artifacts.atomic(folder / MAP) as temporary:
        fig.savefig(temporary, dpi=200, metadata={"Software": None})
    plt.close(fig)
    return folder / MAP


def write_page(made: "Made", folder: Path, remarks: list[str], files: list[Path]) -> Path:
    """Write ``report.html``: warnings first, then maps, genes and files.

    Parameters
    ----------
    folder
        Holds ``maps.png``, which the page carries inside: it can be sent as it is.
    remarks
        Said beside those of the belief.
    files
        What else was written.
    """
    picture = base64.b64encode((folder / MAP).read_bytes()).decode("ascii")
    return artifacts.write_text(folder / PAGE, page(made, remarks, picture, [
        path.name for path in files]))


def page(made: "Made", remarks: list[str], picture: str, files: list[str]) -> str:
    """Text of the page, with the maps as base64 in it."""
    belief, model = made.belief, made.model
    warnings = "\n".join(f'<div class="warn">{escape(text)}</div>' for text in belief.warnings)
    if not belief.warnings:
        warnings = ('<div class="fine">Nothing about this slide is new to the model: its scale, '
                    "stain, organ and scanner were among the training sections'.</div>")
    table = by_expected(belief.genes).sort_values("believed", ascending=False, kind="stable")
    listed = table.head(LISTED)
    more = len(table) - len(listed)
    about = "; ".join([f"model {model.name}", f"sha256 {model.sha256[:16]}",
                       f"tiles of {model.tile_um:g} um at {model.tile_px} px",
                       f"slide at {belief.facts['slide_mpp']:.4g} um/px",
                       f"{len(made.places):,} tiles"])
    notes = "".join(f"<li>{escape(text)}</li>" for text in [*belief.remarks, *remarks])
    used = "".join(f"<li>{escape(name)}: {use}</li>" for ending, use in USES.items()
                   for name in files if name.endswith(ending))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(made.name)}: predicted expression</title>
<style>{_STYLE}</style></head><body>
<h1>{escape(made.name)}: predicted expression</h1>
<p class="small">{escape(about)}</p>
<h2>What can be believed</h2>
{warnings}
<p>{escape(belief.verdict)}.</p>
<ul>{notes}</ul>
<h2>Maps</h2>
<p>The genes that the model predicts best, beside the H&amp;E. Hatched tiles lie outside the
training distribution; greys mark a gene below the stated expected r.</p>
<img src="data:image/png;base64,{picture}" alt="H&amp;E and predicted maps: {MAP}">
<h2>Genes</h2>
<p>Best first; genes that were scored on one left-out unit alone come behind those with an interval.
Grey: below an expected r of {belief.least_r:g}.</p>
<table><tr><th>gene</th><th>expected r</th><th>95 % of new sections</th><th>units</th></tr>
{''.join(_row(row) for row in listed.itertuples())}
</table>
<h2>Files</h2>
<ul>{used}</ul>
<p class="small">{f"{more} further genes stand in {escape(made.name)}.h5ad." if more > 0 else ""}
Research use; not a medical device.</p>
</body></html>
"""


def _row(row: "pd.Series") -> str:
    known = np.isfinite(row.expected_r)
    interval = f"{row.ci_low:.2f} to {row.ci_high:.2f}" if np.isfinite(row.ci_low) else "not known"
    return (f'<tr{"" if row.believed else " class=grey"}><td>{escape(str(row.gene))}</td>'
            f"<td>{f'{row.expected_r:.3f}' if known else 'not known'}</td><td>{interval}</td>"
            f"<td>{row.n_units}</td></tr>\n")
