"""What a bare GPU machine needs of finished runs, small enough to carry: tiles as JPEG.

    python benchmarks/gpu_pack.py --out DIR [--synthetic RUN] [--her2st RUN] [--golden DIR]
                                  [--quality 92] [--most-mb 30]

RUN is a run folder with `tiles/` (``runs/evidence``, ``runs/her2st``); of a run that cut slides for
pretraining those are taken, as `mvhlib.dino.pretrain.open_tiles` does. What comes out::

    DIR/<pool>/<section>.h5      jpeg (bytes of all tiles), ends, coords, outside, barcode
    DIR/<pool>/manifest.csv      section, patient, study: who a model will have seen
    DIR/<pool>/folds.csv         her2st: the sections to leave out, one training without each
    DIR/<pool>/panels.csv        the genes that are scored at home
    DIR/golden/*.npz             reference numbers
    DIR/pack.json                tiles, bytes, quality, error of the round trip per pool

JPEG changes the pixels a little (the table says how much), so that a training on these tiles is not
the training on the originals. `benchmarks/gpu.py` reads the folder.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvhlib import artifacts
from mvhlib.artifacts import InputError
from mvhlib.tiles import store
from mvhlib.tiles.cut import Tiles

SCALES = ("tile_px", "tile_um", "mpp", "source_mpp")


def pack_section(source: Path, target: Path, quality: int) -> dict[str, float]:
    """Write one section's tiles as JPEG; returns tiles, bytes, mean error of a pixel [0-255]."""
    from PIL import Image

    tiles = store.read_tiles(source)
    parts, errors = [], []
    for pixels in tiles.img:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
        parts.append(stream.getvalue())
        errors.append(np.abs(_decoded(parts[-1]).astype(float) - pixels).mean())
    names = [str(name).encode() for name in tiles.barcodes]
    with artifacts.h5_writer(target) as stream:
        for name, array in (("jpeg", np.frombuffer(b"".join(parts), np.uint8)),
                            ("ends", np.cumsum([len(part) for part in parts])),
                            ("coords", tiles.coords), ("outside", tiles.outside),
                            ("barcode", np.array(names, dtype="S"))):
            stream.create_dataset(name, data=array, track_times=False)
        for name in SCALES:
            stream.attrs[name] = getattr(tiles, name)
    return {"n_tiles": len(parts), "bytes": sum(map(len, parts)), "error": float(np.mean(errors))}


def unpack_section(source: Path, target: Path, most: int | None = None) -> int:
    """Make a tile file of ours from a packed section, at most `most` tiles; returns how many."""
    with artifacts.h5_reader(source) as stream:
        ends = stream["ends"][:most]
        content = stream["jpeg"][:int(ends[-1])].tobytes()
        starts = [0, *ends[:-1]]
        pixels = np.stack([_decoded(content[a:b]) for a, b in zip(starts, ends, strict=True)])
        scales = {name: stream.attrs[name].item() for name in SCALES}
        tiles = Tiles(pixels, stream["coords"][:most], stream["outside"][:most], **scales,
                      barcodes=[name.decode() for name in stream["barcode"][:most]])
    store.write_tiles(target, tiles, key=artifacts.sha256_file(source))
    return len(pixels)


def unpack(pool: Path, folder: Path, sections: int | None = None, most: int | None = None) -> Path:
    """Tile files of a packed pool; those that are there already are kept.

    Parameters
    ----------
    pool
        ``DIR/<pool>`` of a pack.
    folder
        Gets ``<section>.h5``.
    sections, most
        Only so many sections, and tiles of each.
    """
    for source in sorted(pool.glob("*.h5"))[:sections]:
        target = folder / source.name
        if artifacts.read_attr(target, "key") != artifacts.sha256_file(source):
            unpack_section(source, target, most)
    return folder


def _decoded(content: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def pack_pool(run: Path, folder: Path, quality: int, held_out: Sequence[str],
              sections: str = "*") -> dict[str, float]:
    """Tiles, owners, folds and panels of the sections of one run whose names match."""
    apart = run / "pretraining"
    tiles = (apart if (apart / "tiles").is_dir() else run) / "tiles"
    found = sorted(tiles.glob(f"{sections}.h5"))
    if not found:
        raise InputError(tiles, "tiles", f"holds no {sections}.h5", "run notebooks 01 and 02 first")
    unknown = sorted(set(held_out) - {path.stem for path in found})
    if unknown:
        raise InputError(tiles, "held_out", f"{unknown} are not there", "name sections of this run")
    rows = [pack_section(path, folder / path.name, quality) for path in found]
    owners = (apart if tiles.parent == apart else run / "cohort") / "manifest.csv"
    for path in (owners, run / "cohort" / "panels.csv"):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    artifacts.write_text(folder / "folds.csv", "".join(f"{line}\n" for line in ("out", *held_out)))
    return {"n_tiles": sum(row["n_tiles"] for row in rows), "sections": len(rows),
            "bytes": sum(row["bytes"] for row in rows),
            "error": float(np.mean([row["error"] for row in rows]))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, help="run folder of the synthetic cohort")
    parser.add_argument("--her2st", type=Path, help="run folder of her2st")
    parser.add_argument("--held-out", nargs="*", default=["C2", "C3", "C4", "C5"],
                        help="sections of her2st, one training without each")
    parser.add_argument("--sections", default="C*",
                        help="of her2st, for instance those of the tested patient")
    parser.add_argument("--golden", type=Path, help="folder of reference numbers (*.npz)")
    parser.add_argument("--quality", type=int, default=92)
    parser.add_argument("--most-mb", type=float, default=30.0)
    given = parser.parse_args(arguments)
    pools = {name: run for name in ("synthetic", "her2st") if (run := getattr(given, name))}
    content = {"quality": given.quality, "pools": {}}
    for name, run in pools.items():
        held_out = given.held_out if name == "her2st" else []
        content["pools"][name] = pack_pool(run, given.out / name, given.quality, held_out,
                                           given.sections if name == "her2st" else "*")
    for path in sorted(given.golden.glob("*.npz")) if given.golden else []:
        (given.out / "golden").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, given.out / "golden" / path.name)
    artifacts.write_json(given.out / "pack.json", content)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file()) / 1e6
    for name, pool in content["pools"].items():
        print(f"{name}: {pool['n_tiles']} tiles of {pool['sections']} sections, "
              f"{pool['bytes'] / 1e6:.1f} MB, mean error of a pixel {pool['error']:.2f} of 255")
    print(f"{given.out}: {size:.1f} MB")
    if size > given.most_mb:
        raise InputError(given.out, "size", f"is {size:.1f} MB, more than {given.most_mb:g}",
                         "lower --quality, or raise --most-mb")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
