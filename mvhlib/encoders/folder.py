"""Encode the tiles of every section of a folder."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mvhlib.artifacts import (
    InputError,
    check_h5_files,
    read_attr,
    sha256_file,
    sha256_of,
)
from mvhlib.encoders.patch import PatchEncoder
from mvhlib.features import Features, write_features
from mvhlib.tiles.store import open_tiles


def encode_folder(encoder: PatchEncoder, tiles_dir: str | os.PathLike, out_dir: str | os.PathLike,
                  sections: Sequence[str] | None = None, *, layout: str = "mvhlib",
                  batch_size: int | None = None, progress: bool = False,
                  report: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Encode the tiles of every section of a folder; finished sections are skipped.

    Parameters
    ----------
    encoder
        What to encode with.
    tiles_dir
        Holds ``<section>.h5``.
    out_dir
        Gets ``<section>.h5``, each whole or not there.
    sections
        Names; None takes every h5 file of `tiles_dir`.
    layout
        ``mvhlib``, ``trident`` or ``hest``.
    batch_size, progress
        As in `PatchEncoder.encode`.
    report
        Gets one line per section, `print` for instance.

    Returns
    -------
    list of dict
        section, n_tiles, width, skipped, seconds.

    Raises
    ------
    InputError
        If no section is there, or one of them is truncated or coarser than the working
        resolution. Those before it are kept.

    Notes
    -----
    A section is skipped when its file carries the key that this call would give it: a hash of the
    weights and settings of the encoder, the bytes of the tiles, and the layout.
    """
    tiles_dir, out_dir = Path(tiles_dir), Path(out_dir)
    found = sorted(path.stem for path in tiles_dir.glob("*.h5"))
    names = found if sections is None else list(sections)
    missing = [name for name in names if name not in set(found)]
    if missing or not names:
        raise InputError(tiles_dir, "tiles", f"{missing or 'no section'} has no h5 file here",
                         "cut them by 02_tiles" if not found else f"here are {found[:8]}")
    identity, rows = encoder.identity, []
    check_h5_files(tiles_dir / f"{name}.h5" for name in names)
    check_h5_files(out_dir / f"{name}.h5" for name in names)
    for name in names:
        start = time.perf_counter()
        source, target = tiles_dir / f"{name}.h5", out_dir / f"{name}.h5"
        source_sha256 = sha256_file(source)
        key = sha256_of(identity, encoder.enc_name, source_sha256, layout)
        with open_tiles(source) as (head, img):
            # Enlarged tiles say a fine mpp and are blurred: what counts is their slide's own.
            if encoder.mpp is not None and head.source_mpp > encoder.mpp * 1.01:
                raise InputError(source, "mpp", f"the slide's {head.source_mpp:.3g} µm/px are "
                                 f"coarser than the working resolution {encoder.mpp:.3g}",
                                 f"create the encoder with mpp={head.source_mpp:.3g} or more")
            skipped = read_attr(target, "key") == key
            if not skipped:
                try:
                    values = encoder.encode(img, batch_size, progress, tile_mpp=head.mpp)
                except OSError as error:
                    raise InputError(source, "img", f"cannot be read ({error})",
                                     "it is probably truncated: delete it and make it again"
                                     ) from error
        if not skipped:
            attrs = {"encoder": encoder.enc_name, "tile_px": head.tile_px, "tile_um": head.tile_um,
                     "mpp": head.mpp, "source_mpp": head.source_mpp,
                     "working_mpp": encoder.mpp, "source_sha256": source_sha256}
            write_features(target, Features(values, head.coords, head.barcodes, attrs), layout,
                           key)
        seconds = time.perf_counter() - start
        rows.append({"section": name, "n_tiles": head.n_tiles, "width": encoder.embedding_dim,
                     "skipped": skipped, "seconds": seconds})
        if report is not None:
            report(f"{name}: {head.n_tiles} tiles "
                   + ("were done already" if skipped else
                      f"in {seconds:.1f} s ({head.n_tiles / max(seconds, 1e-9):.0f} per s)"))
    return rows
