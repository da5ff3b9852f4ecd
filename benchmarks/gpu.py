"""One command for a GPU that is at hand for half an hour: what works, how fast, what is learned.

    python benchmarks/gpu.py --out DIR [--pack DIR] [--minutes 25] [--only works,scan] [--dry-run]
                             [--bring DIR]

It needs torch, triton, numpy, h5py, safetensors and, to unpack tiles, Pillow; mamba-ssm and timm
where they are to be compared with. `benchmarks/gpu_pack.py` makes what `--pack` names.

============  ==================================================================================
part          what it asks
============  ==================================================================================
works         which backends run, whether they, a step and the golden files give the same numbers
scan          the scan and the mixers against mamba-ssm's kernels, 65 to 4,097 tokens
speed         images per second and memory at the published size, against timm's ViT and against
              the published formulation; share of the card's bf16 peak
main          the encoders of profile `evidence`, 2,000 steps of 256 tiles, eight seeds
stability     24 blocks, MLP and EinFFT, two rates, float16 and bf16, 1,500 steps
her2st        ViT12 and MVHybrid at full size, 400 steps without the section that is tested
============  ==================================================================================

A dry run (`--minutes 3`) touches every part, with Triton's interpreter where there is no GPU.

Every row is written to DIR/rows.csv as soon as it is measured. A part has its share of the minutes,
and what it leaves over goes to those behind it. The same command again goes on: rows that are there
are kept, trainings resume from their last checkpoint. `--bring` packs what is to be carried home,
in archives below 15 MB (`benchmarks/gpu_unpack.py` takes them).
"""

import argparse
import csv
import os
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_measure
import gpu_train

from mvhlib import artifacts
from mvhlib.artifacts import InputError

COLUMNS = ("part", "what", "status", "value", "unit", "baseline", "ratio", "peak_mb", "dtype",
           "device", "seconds", "note")
#: Part -> its function and its share of the minutes, in the order in which they run.
PARTS: dict[str, tuple[Callable[["Bench"], None], float]] = {
    "works": (gpu_measure.works, 2.0), "scan": (gpu_measure.scans, 2.5),
    "speed": (gpu_measure.speed, 4.0), "main": (gpu_train.main_experiment, 10.0),
    "stability": (gpu_train.stability, 3.0), "her2st": (gpu_train.her2st, 3.5)}
#: Bytes of an archive that is brought home, before it is packed.
ARCHIVE = 15_000_000
#: A row with one of these is not measured again.
SETTLED = ("ok", "absent")


class Ledger:
    """Rows of ``rows.csv``; each is on the disk before the next is measured."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with open(path, newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    if None not in row.values():  # a line that was cut short is measured again
                        self.rows[row["part"], row["what"]] = row
        self._write_all()

    def _write_all(self) -> None:
        with artifacts.atomic(self.path) as temporary, open(
                temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows.values())

    def is_settled(self, part: str, what: str) -> bool:
        return self.rows.get((part, what), {}).get("status") in SETTLED

    def add(self, row: dict[str, Any]) -> None:
        row = dict.fromkeys(COLUMNS, "") | row
        known = (row["part"], row["what"]) in self.rows
        self.rows[row["part"], row["what"]] = row
        if known:
            self._write_all()
            return
        with open(self.path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerow(row)
            stream.flush()
            os.fsync(stream.fileno())


@dataclass
class Bench:
    """What parts share: places, device, sizes, the ledger and the time that is left.

    Attributes
    ----------
    out, pack
        Folder of results; folder that `gpu_pack` made, or None.
    device
        Where everything runs.
    dry
        Micro sizes, to see that the command runs.
    deadline
        Of the part that runs [s of `time.monotonic`].
    """

    out: Path
    pack: Path | None
    device: torch.device
    dry: bool
    ledger: Ledger
    part: str = ""
    deadline: float = 0.0
    name: str = field(default="")

    def left(self) -> float:
        """Seconds that this part still has."""
        return self.deadline - time.monotonic()

    def row(self, what: str, measure: Callable[[], dict[str, Any]], **fixed: Any) -> None:
        """Measure and write one row, unless it is known or there is no time; an error is a row."""
        if self.ledger.is_settled(self.part, what):
            return
        if self.left() <= 0:
            print(f"  {what}: no time left", flush=True)
            return
        start = time.monotonic()
        try:
            found = {"status": "ok"} | measure()
        except gpu_measure.Absent as error:
            found = {"status": "absent", "note": artifacts.one_line(error, 300)}
        except Exception as error:  # one failure must not cost the rows behind it
            found = {"status": "failed",
                     "note": artifacts.one_line(f"{type(error).__name__}: {error}", 300)}
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.write(what, found | {"seconds": time.monotonic() - start}, **fixed)

    def write(self, what: str, found: dict[str, Any], **fixed: Any) -> None:
        """Write one row that was measured elsewhere."""
        row = {"part": self.part, "what": what, "device": self.name} | fixed | found
        row = {key: f"{value:.5g}" if isinstance(value, float) else value
               for key, value in row.items()}
        self.ledger.add(row)
        shown = " ".join(str(row[key]) for key in ("value", "unit") if row.get(key, "") != "")
        ratio = f", {row['ratio']} times the baseline" if row.get("ratio") else ""
        print(f"  {what}: {row['status']} {shown}{ratio} {row.get('note', '')}", flush=True)


def shares(names: Sequence[str], minutes: float, now: float) -> Callable[[str, float], float]:
    """A function of a part and the time: its deadline, given what was left over before it."""
    end = now + 60 * minutes

    def deadline(name: str, at: float) -> float:
        behind = names[names.index(name):]
        total = sum(PARTS[other][1] for other in behind)
        return at + max(0.0, end - at) * PARTS[name][1] / total

    return deadline


def bring(out: Path, target: Path) -> list[Path]:
    """Pack what is carried home: everything below ``home/`` and the rows, in several archives."""
    files = [out / "rows.csv", *sorted(p for p in (out / "home").rglob("*") if p.is_file())]
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("gpu_*.zip"):
        old.unlink()
    archives: list[list[Path]] = [[]]
    size = 0
    for path in files:
        if archives[-1] and size + path.stat().st_size > ARCHIVE:
            archives.append([])
            size = 0
        archives[-1].append(path)
        size += path.stat().st_size
    made = []
    for number, members in enumerate(archives):
        made.append(target / f"gpu_{number:02d}.zip")
        with zipfile.ZipFile(made[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            for path in members:
                archive.write(path, path.relative_to(out))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--dry-run", action="store_true", help="micro sizes, on a CPU too")
    parser.add_argument("--bring", type=Path, help="folder for archives of what is carried home")
    given = parser.parse_args(arguments)
    names = [name for name in given.only.split(",") if name] or list(PARTS)
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise InputError("gpu.py", "--only", f"names {unknown}", f"use {', '.join(PARTS)}")
    names = [name for name in PARTS if name in names]
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not given.dry_run:
        raise InputError("gpu.py", "device", "PyTorch sees no GPU", "add --dry-run to try it out")
    if given.pack is not None and not given.pack.is_dir():
        raise InputError(given.pack, "--pack", "is no folder", "make it by benchmarks/gpu_pack.py")
    device = torch.device("cuda" if on_gpu else "cpu")
    bench = Bench(given.out.resolve(), given.pack and given.pack.resolve(), device, given.dry_run,
                  Ledger(given.out.resolve() / "rows.csv"),
                  name=torch.cuda.get_device_name() if on_gpu else "cpu")
    begun = time.monotonic()
    deadline = shares(names, given.minutes, begun)
    if given.dry_run:  # micro sizes all fit; a share would cut parts short that start slowly
        def deadline(*_: object) -> float:
            return begun + 60 * given.minutes
    for name in names:
        bench.part, bench.deadline = name, deadline(name, time.monotonic())
        print(f"{name}: {bench.left():.0f} s", flush=True)
        PARTS[name][0](bench)
    if given.bring:
        for path in bring(bench.out, given.bring):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    bad = [key for key, row in bench.ledger.rows.items() if row["status"] == "failed"]
    print(f"{len(bench.ledger.rows)} rows in {bench.ledger.path}, {len(bad)} failed")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
