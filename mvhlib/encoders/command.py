"""The command ``python -m mvhlib.encoders``."""

import argparse
import json
import sys
from collections.abc import Sequence

from mvhlib.artifacts import InputError
from mvhlib.encoders.create import create_encoder
from mvhlib.encoders.folder import encode_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 2 on bad input, after one line that says what to mend."""
    parser = argparse.ArgumentParser(prog="python -m mvhlib.encoders",
                                     description="Encode a folder of tiles; resumes by itself.")
    parser.add_argument("--encoder", required=True,
                        help="a name, a directory, timm:<name>, hf-hub:<name>, "
                             "python:file.py:function; see mvhlib.encoders")
    parser.add_argument("--tiles", required=True, help="folder of <section>.h5")
    parser.add_argument("--out", required=True, help="folder for the features, <section>.h5 each")
    parser.add_argument("--sections", nargs="+", help="names; default: every h5 file of --tiles")
    parser.add_argument("--name", help="name in the files; default: from the encoder")
    parser.add_argument("--weights", help="random, pretrained, a directory or a file")
    parser.add_argument("--seed", type=int, help="of random weights")
    parser.add_argument("--mpp", type=float, help="working resolution [um/px]")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), help="on a GPU")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps; default: auto")
    parser.add_argument("--batch-size", type=int, help="default: by memory")
    parser.add_argument("--layout", default="mvhlib", choices=("mvhlib", "trident", "hest"))
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON",
                        help="any other option of create_encoder, for example bands=true")
    given = parser.parse_args(arguments)
    try:
        options = {name: value for name in ("name", "weights", "seed", "mpp", "precision", "device")
                   if (value := getattr(given, name)) is not None}
        for option in given.option:
            name, _, value = option.partition("=")
            try:
                options[name] = json.loads(value)
            except ValueError:
                options[name] = value
        encoder = create_encoder(given.encoder, **options)
        print(encoder, flush=True)
        rows = encode_folder(encoder, given.tiles, given.out, given.sections, layout=given.layout,
                             batch_size=given.batch_size, progress=sys.stderr.isatty(),
                             report=lambda line: print(line, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    done = [row for row in rows if not row["skipped"]]
    print(f"{len(rows)} sections in {given.out}, {len(done)} of them encoded now")
    return 0
