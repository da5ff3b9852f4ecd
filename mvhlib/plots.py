"""One look for every figure: style, one colour per backbone, and the plots that return often.

Functions take `ax` and return it; argument names are scanpy's and squidpy's. Figures are 3.5 or
7.2 inch wide, one or two columns of a journal page.
"""

from typing import TYPE_CHECKING

import numpy as np

from mvhlib import phrases

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

COLUMN, PAGE = 3.5, 7.2  # [inch]
SMALLEST_PT = 6  # text that a page can still print [pt]

#: Okabe and Ito's colours, safe for colour-blind readers; one per encoder family, everywhere.
PALETTE = {
    "handmade": "#7F7F7F",
    "vit12": "#0072B2",
    "vit17": "#004C78",
    "vit24": "#56B4E9",
    "vimeinfft": "#CC79A7",
    "hydraeinfft": "#F0E442",
    "hydrahybrid": "#E69F00",
    "mvhybrid": "#D55E00",
    "mmap": "#009E73",
    "cmrcnet": "#6A3D9A",
    "stnet": "#8CCFBB",
    "histogene": "#A6761D",
    "deeppt": "#999933",
    "bleep": "#B79BCF",
    "ridge": "#444444",
    "other": "#000000",
}

#: How encoder families are written in print.
LABELS = {
    "handmade": "hand-made", "vit12": "ViT12", "vit17": "ViT17", "vit24": "ViT24",
    "vimeinfft": "ViMEinFFT", "hydraeinfft": "HydraEinFFT", "hydrahybrid": "HydraHybrid",
    "mvhybrid": "MVHybrid", "mmap": "MMAP", "cmrcnet": "CMRCNet",
    "stnet": "ST-Net", "histogene": "HisToGene", "deeppt": "DeepPT", "bleep": "BLEEP",
}


#: Entries of a legend beside a figure at most: what two columns hold.
LEGEND_ENTRIES = 28
#: Category of points that have none, and its colour.
UNNAMED, UNNAMED_COLOUR = "not known", "#BBBBBB"

#: Columns of tables as they are written on an axis.
AXES = {
    "pcc": "Pearson r", "ceiling": "attainable Pearson r", "i_true": "Moran's I, measured",
    "i_pred": "Moran's I, predicted", "oversmoothing": "over-smoothing, predicted - measured",
    "pc1": "principal component 1", "pc2": "principal component 2",
    "mean_expression": "mean, log1p counts per 10,000",
    "variance": "variance within sections",
    "study_excess": "naming the study, accuracy above chance",
    "difference": "Pearson r, random less unseen study",
    "ceiling_counting": "ceiling, noise of counting",
    "ceiling_common": "and noise of all genes",
    "ceiling_neighbours": "and all unlike neighbours",
    "ceiling_true": "ceiling, true rates known",
}


#: Protocols as they are written in a figure: what was not seen in training, and what may leak.
PROTOCOLS = {
    "loso": "unseen study", "patient": "unseen patient",
    "section": "unseen section\nof one patient", "random10_section": "random sections",
    "random10_spot": "random spots\n(neighbours leak)",
    "transfer": "another group", "within": "unseen patient\nof the group",
}


def on_protocol(protocol: str) -> str:
    """A protocol as it stands in a sentence: ``on an unseen study``, ``on random sections``.

    Examples
    --------
    >>> on_protocol("loso"), on_protocol("random10_section"), on_protocol("transfer")
    ('on an unseen study', 'on random sections', 'on another group')
    """
    said = PROTOCOLS.get(protocol, protocol.replace("_", " ")).replace("\n", " ")
    return f"on {'an ' if said.startswith('unseen') else ''}{said}"


def set_style() -> None:
    """Set matplotlib's defaults: sizes for print, text kept as text, bytes that repeat."""
    import matplotlib as mpl

    mpl.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 300, "figure.figsize": (COLUMN, 2.6),
        "figure.constrained_layout.use": True, "savefig.bbox": None,
        "font.family": "DejaVu Sans", "font.size": 7, "axes.titlesize": 8, "axes.labelsize": 7,
        "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5,
        "figure.titlesize": 9, "legend.frameon": False, "legend.title_fontsize": 6.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2,
        "image.cmap": "viridis", "svg.hashsalt": "mvhlib", "svg.fonttype": "none",
        "pdf.fonttype": 42, "axes.axisbelow": True,
    })


def family(encoder: str) -> str:
    """The family that an encoder's slug belongs to: the longest that it starts with or holds."""
    matches = [name for name in PALETTE if encoder.startswith(name)]
    matches = matches or [name for name in PALETTE if name in encoder]
    return max(matches, key=len) if matches else "other"


def colour(encoder: str) -> str:
    """The one colour of an encoder."""
    return PALETTE[family(encoder)]


def label(encoder: str) -> str:
    """An encoder's slug as it is printed: the family's name, then what follows it.

    A method built on an encoder (``mmap on vit12-dino``) is printed with both names.
    """
    if " on " in encoder:
        return " on ".join(label(part) for part in encoder.split(" on "))
    name = family(encoder)
    return encoder.replace(name, LABELS[name], 1) if name in LABELS else encoder


def spatial_map(adata: "AnnData", values, ax: "Axes", *, title: str = "", cmap: str = "viridis",
                vmin: float | None = None, vmax: float | None = None, img: bool = False,
                colorbar: bool = True, size: float = 1.0, palette=None,
                alpha: float = 1.0) -> "Axes":
    """Draw one value per spot at its place, on the H&E or on white.

    Parameters
    ----------
    adata
        One section, with ``obsm["spatial"]`` and ``uns["spatial"]`` as squidpy expects them.
    values
        One number (or category) per spot, `(T,)`.
    img
        Draw the thumbnail below the spots. Leave it off for figures of real tissue that are
        committed.
    size
        Diameter of a spot relative to its own.
    alpha
        Opacity of the spots [0-1].
    """
    import pandas as pd
    import squidpy as sq

    library = next(iter(adata.uns.get("spatial", {})), None)
    categorical = not np.issubdtype(np.asarray(values).dtype, np.number)
    shown = adata[:, :0].copy()
    shown.obs["value"] = pd.Categorical(values) if categorical else np.asarray(values, float)
    options = {"cmap": cmap, "vmin": vmin, "vmax": vmax} if not categorical else {
        "palette": palette}
    if library is None:
        spread = np.ptp(shown.obsm["spatial"], axis=0).max()
        options |= {"shape": None, "size": 9000 * size / max(1.0, spread) ** 0.5}
    else:
        options |= {"library_id": library, "size": size, "img": img}
    sq.pl.spatial_scatter(shown, color="value", ax=ax, title=title, frameon=False,
                          colorbar=colorbar and not categorical, alpha=alpha, **options)
    ax.set_xlabel("")
    ax.set_ylabel("")
    scale = image_scale(adata) if library is not None else 1.0
    places = np.asarray(shown.obsm["spatial"], float) * scale
    (left, top), (right, bottom) = places.min(axis=0), places.max(axis=0)
    radius = 0.0 if library is None else scale * size / 2 * float(
        adata.uns["spatial"][library]["scalefactors"]["spot_diameter_fullres"])
    margin = max(0.06 * max(right - left, bottom - top), 1.05 * radius)
    ax.set_xlim(left - margin, right + margin)
    ax.set_ylim(bottom + margin, top - margin)
    for collection in ax.collections:
        collection.set_rasterized(True)
    for text in [*ax.texts, ax.title]:
        text.set_fontsize(max(6.5, min(8, text.get_fontsize())))
    return ax


def image_scale(adata: "AnnData") -> float:
    """Units of the drawn map per level-0 pixel: squidpy draws in the thumbnail's pixels."""
    library = next(iter(adata.uns["spatial"].values()))
    return float(library["scalefactors"]["tissue_hires_scalef"])


def headline(text: str, run=None, summary: "pd.DataFrame | None" = None, seeds=None) -> str:
    """A title that says what the numbers are: synthetic or not, and over how many units.

    Parameters
    ----------
    run
        The `mvhlib.notebook.Run`; adds "synthetic" where no data of a user's is read.
    summary
        Columns ``unit``, ``n_units``; adds for example "16 patients" and, on synthetic data, that
        one seed allows no claim.
    seeds
        Numbers of seeds of what is drawn; adds their range in place of "one seed, no claim".
    """
    remarks = []
    if summary is not None and len(summary):
        counts = summary.groupby("unit", sort=False)["n_units"].max()
        remarks += [phrases.count(n, unit) for unit, n in counts.items()]
    if run is not None and run.is_synthetic:
        remarks.append("synthetic")
    if seeds is not None and len(seeds):
        low, high = min(seeds), max(seeds)
        remarks.append("one seed, no claim" if high == 1 else
                       f"{low} seeds" if low == high else f"{low} to {high} seeds")
    elif summary is not None and run is not None and run.is_synthetic:
        remarks.append("one seed, no claim")
    if not remarks:
        return text
    remark = f"({', '.join(remarks)})"
    return f"{text}{' ' if len(text) + len(remark) < 45 else chr(10)}{remark}"


def forest(table: "pd.DataFrame", ax: "Axes", *, by: str = "protocol", hue: str = "encoder",
           xlabel: str = "mean Pearson r", zero: bool = True, snug: bool = False) -> "Axes":
    """Draw means with their intervals, one row per `by`, one colour per `hue`; see `legend_below`.

    Parameters
    ----------
    table
        Columns `by`, `hue`, ``mean``, ``ci_low``, ``ci_high``; rows whose ``control`` is not
        ``none`` are drawn open.
    snug
        Give each row the height that its own hues need. Panels side by side with one y axis want
        equal heights.
    """
    groups, hues = list(dict.fromkeys(table[by])), list(dict.fromkeys(table[hue]))
    step = 0.7 / max(1, len(hues))
    held = {group: [h for h in hues if not snug or ((table[by] == group) & (table[hue] == h)).any()]
            for group in groups}
    # A label of two lines needs the height of three hues.
    heights = np.array([max(len(own), min(3, len(hues))) / len(hues) for own in held.values()])
    centres = dict(zip(groups, np.cumsum(heights) - heights / 2 - 0.5, strict=True))
    # Encoders of one family share its colour and differ in the mark.
    marks = dict(zip(hues, "osD^vPX<>ph*d8" * 9, strict=False))
    for name in hues:
        for is_control in (False, True):
            rows = table[(table[hue] == name)]
            if "control" in table:
                rows = rows[(rows["control"] != "none") == is_control]
            elif is_control:
                continue
            y = [centres[group] + (held[group].index(name) + 0.5 - len(held[group]) / 2) * step
                 for group in rows[by]]
            error = np.abs([rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]])
            ax.errorbar(rows["mean"], y, xerr=np.nan_to_num(error), fmt=marks[name], markersize=3.2,
                        capsize=1.5, linewidth=0.9, color=colour(name),
                        markerfacecolor="white" if is_control else colour(name),
                        label=None if is_control else label(name))
    if zero:
        ax.axvline(0, color="0.75", linewidth=0.6, zorder=0)
    ax.set_yticks(list(centres.values()), [
        PROTOCOLS.get(group, str(group).replace("_", " ")) for group in groups])
    ax.set_ylim(heights.sum() - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.locator_params(axis="x", nbins=6)
    return ax


def differences(table: "pd.DataFrame", ax: "Axes", *, by: str, xlabel: str) -> "Axes":
    """Draw each row's filled interval and, below it, its open one, in the encoder's colour.

    Parameters
    ----------
    table
        Columns `by`, encoder, mean, ci_low, ci_high and control (``none`` is filled).
    """
    groups = list(dict.fromkeys(table[by]))
    for row in table.itertuples():
        filled = row.control == "none"
        y = groups.index(getattr(row, by)) + (-0.13 if filled else 0.13)
        error = np.nan_to_num([[row.mean - row.ci_low], [row.ci_high - row.mean]])
        ax.errorbar(row.mean, y, xerr=error, fmt="o", markersize=3.2, capsize=1.5, linewidth=0.9,
                    color=colour(row.encoder),
                    markerfacecolor=colour(row.encoder) if filled else "white")
    ax.axvline(0, color="0.75", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(groups)), groups)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    return ax


def heatmap(values, ax: "Axes", *, vmax: float = 1.0, label: str = "", cmap: str = "RdBu_r",
            vmin: float | None = None) -> "Axes":
    """Draw a matrix with its colour bar and without ticks."""
    drawn = ax.imshow(values, cmap=cmap, vmin=-vmax if vmin is None else vmin, vmax=vmax,
                      interpolation="nearest", rasterized=True)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label=label)
    return ax


def legend_below(fig, ax: "Axes") -> None:
    """Put the legend of `ax` under the whole figure, in as many columns as its width holds."""
    handles, labels = ax.get_legend_handles_labels()
    room = 2 if fig.get_figwidth() < PAGE else 4
    fig.legend(handles, labels, loc="outside lower center", ncols=min(room, len(labels)))


def scatter(table: "pd.DataFrame", x: str, y: str, by: str, ax: "Axes", *, diagonal: bool = False,
            size: float | None = None, legend: bool = True) -> "Axes":
    """Draw points coloured by a category, with the legend to the right; fewer points are larger.

    Points of no category are grey, and the legend, which has no room for more than
    `LEGEND_ENTRIES`, names the first of them and counts the rest.
    """
    if table[by].isna().any():
        table = table.assign(**{by: table[by].astype(object).where(table[by].notna(), UNNAMED)})
    groups = list(dict.fromkeys(table[by]))
    size = size or float(np.clip(3000 / max(1, len(table)), 3, 12))
    colours = categorical_colours(groups) | {UNNAMED: UNNAMED_COLOUR}
    for group in groups:
        rows = table[table[by] == group]
        name = str(group).replace("_", " ") or "all genes"
        if len(groups) > LEGEND_ENTRIES and group in groups[LEGEND_ENTRIES - 1:]:
            name = f"and {len(groups) - LEGEND_ENTRIES + 1} more" if (
                group == groups[LEGEND_ENTRIES - 1]) else "_nolegend_"
        ax.scatter(rows[x], rows[y], s=size, color=colours[group], label=name, linewidth=0,
                   alpha=0.8, rasterized=len(table) > 500)
    if diagonal:
        ax.axline((0, 0), slope=1, color="0.6", linewidth=0.6, zorder=0)
    ax.set_xlabel(AXES.get(x, x.replace("_", " ")))
    ax.set_ylabel(AXES.get(y, y.replace("_", " ")))
    if legend and len(groups) > 1:
        ax.legend(title=by, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.5,
                  ncols=1 + min(len(groups), LEGEND_ENTRIES) // 14)
    return ax


def categorical_colours(names) -> dict:
    """One colour per name, distinguishable to most eyes up to twenty names."""
    import matplotlib as mpl

    names = list(names)
    wheel = mpl.colormaps["tab10" if len(names) <= 10 else "tab20"].colors
    return {name: wheel[index % len(wheel)] for index, name in enumerate(names)}


def principal_plane(embeddings: "dict[str, np.ndarray]", manifest: "pd.DataFrame"):
    """First two principal components of all embeddings together, one row per tile.

    Parameters
    ----------
    embeddings
        Section -> `(T, D)`.
    manifest
        Columns section, study, patient.

    Returns
    -------
    DataFrame
        Columns section, study, patient (``not named`` where nobody says), pc1, pc2. The sign of a
        component is fixed by its largest loading, since it is arbitrary.
    """
    import pandas as pd
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    stacked = np.concatenate(list(embeddings.values())).astype(np.float64)
    fitted = PCA(min(2, *stacked.shape), svd_solver="full")
    plane = fitted.fit_transform(StandardScaler().fit_transform(stacked))
    largest = np.abs(fitted.components_).argmax(axis=1)
    plane *= np.sign(fitted.components_[np.arange(len(largest)), largest])
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))  # one tile has no second component
    owner = manifest.set_index("section")
    names = np.repeat(list(embeddings), [len(e) for e in embeddings.values()])
    return pd.DataFrame({"section": names, "study": owner.loc[names, "study"].to_numpy(),
                         "patient": owner.loc[names, "patient"].fillna("not named").to_numpy(),
                         "pc1": plane[:, 0], "pc2": plane[:, 1]})


def quality(table: "pd.DataFrame", ax: "Axes", *, column: str, ylabel: str) -> "Axes":
    """Draw a quality measure per section, median and the span of most spots, coloured by study.

    Parameters
    ----------
    table
        From `mvhlib.cohort.qc.table`, with ``<column>_q05``, ``_median`` and ``_q95``.
    """
    colours = categorical_colours(dict.fromkeys(table["study"]))
    x = np.arange(len(table))
    middle = table[f"{column}_median"]
    ax.vlines(x, table[f"{column}_q05"], table[f"{column}_q95"], linewidth=1.5, alpha=0.5,
              color=[colours[study] for study in table["study"]])
    ax.scatter(x, middle, s=8, color=[colours[study] for study in table["study"]], zorder=3)
    ax.set_xticks(x, table["section"], rotation=90, fontsize=6)
    ax.set_ylabel(ylabel)
    ax.set_ylim(0, 1.08 * table[f"{column}_q95"].max())
    return ax


def tile_overlay(slide, tiles, mask, ax: "Axes", *, max_px: int = 600) -> "Axes":
    """Draw a slide's thumbnail, the outline of the tissue mask and the squares of its tiles.

    Parameters
    ----------
    slide
        `mvhlib.tiles.slides.Slide`.
    tiles
        `mvhlib.tiles.Tiles` of it.
    mask
        `mvhlib.tiles.cut.TissueMask` of it.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    extent = (0, slide.width, slide.height, 0)
    ax.imshow(slide.thumbnail(max_px), extent=extent, interpolation="bilinear")
    height, width = mask.mask.shape
    ax.contour((np.arange(width) + 0.5) * slide.width / width,
               (np.arange(height) + 0.5) * slide.height / height,
               mask.mask.astype(float), levels=[0.5], colors="#009E73", linewidths=0.7)
    side = tiles.tile_um / tiles.source_mpp
    corners = np.concatenate([tiles.coords, tiles.coords + side])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    margin = 0.08 * max(right - left, bottom - top)
    ax.set_xlim(left - margin, right + margin)
    ax.set_ylim(bottom + margin, top - margin)
    ax.add_collection(PatchCollection([Rectangle(corner, side, side) for corner in tiles.coords],
                                      facecolor="none", edgecolor="black", linewidth=0.3))
    ax.set_axis_off()
    return ax


def tile_grid(images: np.ndarray, ax: "Axes", *, n_columns: int = 8, gap_px: int = 2) -> "Axes":
    """Draw tiles `(T, S, S, 3)` side by side on white."""
    n, side = len(images), images.shape[1]
    n_rows = -(-n // n_columns)
    sheet = np.full((n_rows * (side + gap_px) - gap_px, n_columns * (side + gap_px) - gap_px, 3),
                    255, np.uint8)
    for index, image in enumerate(images):
        y, x = (index // n_columns) * (side + gap_px), (index % n_columns) * (side + gap_px)
        sheet[y:y + side, x:x + side] = image
    ax.imshow(sheet, interpolation="nearest")
    ax.set_axis_off()
    return ax
