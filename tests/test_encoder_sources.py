"""Encoders that a user brings: functions of their own, read-outs, names of the field."""

import json
import re

import numpy as np
import pytest
import torch
import yaml

from mvhlib import artifacts, encoder_sources, workflow
from mvhlib.artifacts import InputError, sha256_file
from mvhlib.encoders import create_encoder, encode_folder, main, model_tokens
from mvhlib.features import read_features
from mvhlib.places import home
from tests.absent import walk
from tests.test_encoders import put, tissue

RECIPE = home() / "params/recipes/encoder"

#: What users write, well and badly.
FILE = '''
import numpy as np
import torch
from torch import nn

import beside

needs = 3


class Net(nn.Module):
    """As a user has it: with buffers and layers whose names mean something else here."""

    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, x):
        assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        return self.pool(self.conv(x - self.mean)).flatten(1)


class Tokens(nn.Module):
    """Class token, one register, 16 patches of a 64 px tile; `blocks` add 1 each."""

    num_prefix_tokens = 2

    def __init__(self, shift=0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Add() for _ in range(3))

    def forward(self, x):
        patches = nn.functional.avg_pool2d(x, 16).flatten(2).mT  # (N, 3, 4, 4) -> (N, 16, 3)
        tokens = torch.cat([x[:, :, 0, 0][:, None], 1e3 + 0 * patches[:, :1], patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class Add(nn.Module):
    def forward(self, x):
        return x + 1


class Maps(nn.Module):
    """Stages that halve a map; the last holds channels last."""

    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.AvgPool2d(2), Last()

    def forward(self, x):
        return self.layer2(self.layer1(x)).mean((1, 2))


class Last(nn.Module):
    def forward(self, x):
        return nn.functional.avg_pool2d(x, 2).permute(0, 2, 3, 1)


class Object:
    input_px, pretrained_on = 32, {"sections": ["S1"], "patients": [], "studies": []}
    feature_names = ["red", "green", "blue"]

    def encode(self, tiles):
        assert tiles.dtype == np.uint8 and tiles.shape[1:] == (32, 32, 3)
        return tiles.mean((1, 2))


def net(width=beside.WIDTH):
    return Net(width)


def tokens():
    return Tokens()


def maps():
    return Maps()


def anything(**options):
    return Net(options["width"])


def described():
    made = Net(4)
    made.input_px, made.mpp, made.pretrained_on = 48, 2.0, {}
    return made


def coloured():
    class Plain(nn.Module):
        input_px, mean, std = 16, (0.5, 0.5, 0.5), [0.25, 0.25, 0.25]

        def forward(self, x):
            return x.mean((2, 3))
    return Plain()


def ours(**options):
    from mvhlib.encoders import create_encoder
    return create_encoder("vit12_micro_patch8_64", device="cpu")


def made_of(call):
    class Bad(nn.Module):
        def forward(self, x):
            return call(x)
    return Bad()


def nan():
    return made_of(lambda x: x.mean((2, 3)) * float("nan"))


def nan_on_white():
    return made_of(lambda x: x.mean((2, 3)) / (1 - x.amin((1, 2, 3)))[:, None])


def whole():
    return made_of(lambda x: x.mean((2, 3)).long())


def flat():
    return made_of(lambda x: x.flatten())


def map_out():
    return made_of(lambda x: x)


def one_row():
    return made_of(lambda x: x.mean((2, 3))[:1])


def a_list():
    return made_of(lambda x: [x.mean((2, 3))])


def huge():
    return made_of(lambda x: torch.empty(10**14))


def greedy():
    return made_of(lambda x: x.mean((2, 3)) if len(x) < 4 else torch.empty(10**14))


def fails():
    return made_of(lambda x: x.nothing())


def wrong_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))


def halves():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).half()


def breaks():
    return {}["key"]


def leaves():
    raise SystemExit(0)


def nothing():
    pass


def function():
    return lambda x: x


def wants(path):
    return Net()


class Texts:
    def encode(self, tiles):
        return np.array([["a"]] * len(tiles))
'''


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "my #1 encoders: x"
    folder.mkdir()
    (folder / "beside.py").write_text("WIDTH = 8\n")
    (folder / "mine.py").write_text(FILE)
    return folder / "mine.py"


def mine(file, function, **options):
    return create_encoder(f"python:{file}:{function}", device="cpu", **options)


# functions of the user's own


def test_the_lines_of_the_recipe_are_an_encoder(tmp_path):
    page = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 25
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    assert len([line for line in code.splitlines() if line]) <= 10
    assert code == (RECIPE / "my_encoder.py").read_text(encoding="utf-8")
    line = re.search(r"`(my-encoder: \{.*\})`", page)[1]
    (tmp_path / "my_encoder.py").write_text(code)
    (tmp_path / "workflow.yaml").write_text(f"encoders:\n  {line}\n")
    options = workflow.read_plan(tmp_path)["encoders"]["my-encoder"]
    assert options["source"] == f"python:{tmp_path}/my_encoder.py:my_encoder"
    encoder = create_encoder(options["source"], device="cpu", **options["options"])
    assert encoder.encode(tissue(5, px=80)).shape == (5, 32) and encoder.tile_px == 64
    plan = workflow.read_plan(RECIPE)
    assert plan["encoders"]["my-encoder"]["source"] == (
        "python:params/recipes/encoder/my_encoder.py:my_encoder")
    assert yaml.safe_load(line)["my-encoder"]["options"] == (
        plan["encoders"]["my-encoder"]["options"])


def test_a_module_gets_images_in_0_to_1(file):
    encoder, tiles = mine(file, "net"), tissue(5)
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        want = encoder.model.model.model(x)
    np.testing.assert_allclose(encoder.encode(tiles), want, atol=1e-6)
    assert encoder.embedding_dim == 8 and encoder.enc_name == "net" and encoder.pool == "-"
    assert encoder.pretrained_on is None and not encoder.is_random  # nobody knows
    assert mine(file, "net", name="mine", width=3).embedding_dim == 3
    assert mine(file, "anything", width=3).embedding_dim == 3
    assert not list(file.parent.glob("__pycache__"))


def test_what_the_object_says_of_itself_and_options_that_win(file):
    encoder = mine(file, "described")
    assert (encoder.tile_px, encoder.mpp, encoder.pretrained_on) == (48, 2.0, {})
    assert mine(file, "described", input_px=32, mpp=3.0).tile_px == 32
    coloured = mine(file, "coloured")
    grey = np.full((2, 40, 40, 3), 255, np.uint8)
    np.testing.assert_allclose(coloured.encode(grey), 2.0, atol=1e-6)
    plain = mine(file, "coloured", mean=[0, 0, 0], std=[1, 1, 1])
    np.testing.assert_allclose(plain.encode(grey), 1.0, atol=1e-6)


def test_an_object_gets_the_tiles_as_they_are(file):
    encoder, tiles = mine(file, "Object"), tissue(5, px=32)
    np.testing.assert_allclose(encoder.encode(tiles), tiles.mean((1, 2)), rtol=1e-6)
    assert encoder.encode(tissue(3, px=64)).shape == (3, 3)  # resized to its 32 px
    assert encoder.feature_names == ["red", "green", "blue"]
    assert encoder.pretrained_on["sections"] == ["S1"]


def test_an_encoder_of_ours_is_returned_as_it_is(file):
    tiles = tissue(4, px=96)
    want = create_encoder("vit12_micro_patch8_64", device="cpu").encode(tiles)
    np.testing.assert_array_equal(mine(file, "ours").encode(tiles), want)


def test_random_weights_are_the_seeds_and_nobody_elses_draws_change(file):
    torch.manual_seed(7)
    before = torch.rand(3)
    torch.manual_seed(7)
    one, again, other = mine(file, "net"), mine(file, "net"), mine(file, "net", seed=1)
    assert torch.equal(torch.rand(3), before)
    np.testing.assert_array_equal(one.encode(tissue()), again.encode(tissue()))
    assert one.identity == again.identity != other.identity


def test_identity_follows_file_weights_and_options(file, tmp_path):
    first = mine(file, "net").identity
    assert mine(file, "net", width=9).identity != first
    assert mine(file, "described").identity != first
    assert mine(file, "net", input_px=64).identity != first
    weights = tmp_path / "weights.txt"
    weights.write_text("1")
    source = file.read_text()
    file.write_text(source.replace("def anything(**options):", "def anything(**options):\n    #"))
    assert mine(file, "net").identity != first  # any change of the file
    read = mine(file, "anything", width=8, path=str(weights)).identity
    weights.write_text("2")
    assert mine(file, "anything", width=8, path=str(weights)).identity != read


def test_an_edited_file_is_read_anew_and_folders_are_encoded_anew(file, tmp_path):
    put(tmp_path / "tiles", "A1", tissue(4))

    def skipped():
        rows = encode_folder(mine(file, "net"), tmp_path / "tiles", tmp_path / "out")
        return rows[0]["skipped"]

    assert [skipped(), skipped()] == [False, True]
    (file.parent / "mine.py").write_text(FILE.replace("x - self.mean", "x + self.mean"))
    assert [skipped(), skipped()] == [False, True]
    assert read_features(tmp_path / "out/A1.h5").width == 8


@pytest.mark.parametrize("function, options, said", [
    ("absent", {}, "is not defined in this file"),
    ("needs", {}, "is no function"),
    ("net", {"widht": 3}, "takes no option 'widht'. Fix: did you mean width"),
    ("net", {"weights": "random"}, "takes no option 'weights'"),
    ("wants", {}, "wants 'path'"),
    ("breaks", {}, r"in line \d+ \(KeyError"),
    ("leaves", {}, "SystemExit"),
    ("nothing", {}, "returns nothing"),
    ("function", {}, "returns a function"),
    ("fails", {}, r"in line \d+ \(AttributeError"),
    ("wrong_input", {}, "tried on 224 px.*input_px"),
    ("halves", {}, "Half"),
    ("nan", {}, "NaN or infinite features for 2 of 2 tiles"),
    ("whole", {}, "gives int64"),
    ("flat", {}, r"gives shape \(301056,\) for 2 tiles"),
    ("map_out", {}, r"gives shape \(2, 3, 224, 224\)"),
    ("one_row", {}, r"gives shape \(1, 3\) for 2 tiles"),
    ("a_list", {}, "gives a list"),
    ("huge", {}, "more memory than there is"),
    ("Texts", {}, "gives a ndarray"),
    ("net", {"input_px": 0}, "input_px: is 0"),
    ("net", {"mean": [1, 2], "std": [1, 2]}, "three numbers"),
    ("net", {"mean": [0, 0, 0]}, "by half"),
    ("net", {"std": [0, 0, 0], "mean": [0, 0, 0]}, "three numbers"),
    ("net", {"mpp": -1}, "mpp: is -1"),
    ("net", {"pool": "max"}, "use one of cls, mean"),
    ("net", {"pool": "mean"}, "gives no tokens"),
    ("net", {"depths": "3"}, "list numbers"),
    ("net", {"depths": [0]}, "name modules"),
    ("tokens", {"depths": [3]}, "none of its 3 layers"),
    ("tokens", {"depths": ["block"]}, "did you mean 'blocks'"),
    ("maps", {"depths": [0], "pool": "cls"}, "no class token"),
    ("Object", {"pool": "cls"}, "pool is given")])
def test_every_fault_is_one_line_with_file_and_function(file, function, options, said):
    with pytest.raises(InputError) as caught:
        mine(file, function, **options)
    line = str(caught.value)
    assert re.search(said, line), line
    assert str(file) in line and function in line and "\n" not in line


def test_faults_of_the_file_itself(file, tmp_path):
    for source, said in [("python:", "names no function"), ("python:mine.py", "names no function"),
                         ("python:mine.py:a-b", "names no function"),
                         (f"python:{tmp_path}/no.py:f", "no.py: f: .*not there"),
                         (f"python:{tmp_path}:f", "is a folder|is a directory")]:
        with pytest.raises(InputError, match=said):
            create_encoder(source, device="cpu")
    for content, said in [(b"def f(:\n", "no Python .line 1"), (b"\xff\xfe\x00", "cannot be read"),
                          (b"import nothing_of_this_name\ndef f(): pass\n", "ModuleNotFoundError"),
                          (b"def f(): pass\ndel f\n", "not there after the file has run"),
                          (b"f = " + b"(" * 3000 + b")" * 3000, "no Python")]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            mine(file, "f")
        assert str(file) in str(caught.value)


def test_what_fails_on_some_tiles_only_is_said_when_it_does(file):
    encoder = mine(file, "nan_on_white")
    tiles = tissue(3)
    tiles[1] = 255
    with pytest.raises(InputError, match="nan_on_white: gives NaN or infinite features for 1 of 3"):
        encoder.encode(tiles)


def test_fewer_tiles_at_once_where_memory_is_short(file):
    encoder, tiles = mine(file, "greedy"), tissue(9)
    np.testing.assert_allclose(encoder.encode(tiles), tiles.mean((1, 2)) / 255, atol=1e-6)


def test_the_workflow_takes_it_and_sees_every_change(file):
    folder = file.parent
    (folder / "workflow.yaml").write_text(yaml.safe_dump({"encoders": {
        "mine": {"source": "python:mine.py:net", "options": {"width": 4}},
        "theirs": {"source": "timm:vit_tiny_patch16_224", "weights": "pretrained"}}}))
    plan = workflow.read_plan(folder)
    options = plan["encoders"]["mine"]
    assert options["source"] == f"python:{file}:net"
    assert workflow.encoder_code(options) == sha256_file(file)
    assert workflow.encoder_code(plan["encoders"]["theirs"]) == ""
    assert encoder_sources.files_of(options["source"]) == [file]
    for source, extra, said in [("python:no.py:net", {}, "no.py: net"),
                                ("python:mine.py:absent", {}, "absent: is not defined"),
                                ("timm:x", {"weights": "pretrained", "pretrain": {}},
                                 "03_pretrain cannot train")]:
        (folder / "workflow.yaml").write_text(yaml.safe_dump(
            {"encoders": {"mine": {"source": source} | extra}}))
        with pytest.raises(InputError, match=said):
            workflow.read_plan(folder)


def test_it_runs_through_04_and_by_the_command(file, tmp_path, capsys):
    run = tmp_path / "out/runs/walk"
    put(run / "tiles", "A1", tissue(4))
    artifacts.write_text(run / "tiles/manifest.csv", "section,n_tiles\nA1,4\n")
    artifacts.write_text(run / "cohort/manifest.csv", "section,study,patient\nA1,S,P\n")
    walk("04_embed", tmp_path / "out", encoder="mine", source=f"python:{file}:net",
         options={"width": 5}, pools=["cohort"], device="cpu")
    assert read_features(run / "features/mine/A1.h5").width == 5
    record = json.loads((run / "features/mine/encoder.json").read_text())
    assert (record["pool"], record["width"], record["random"]) == ("-", 5, False)
    assert json.loads((run / "features/mine/pretrained_on.json").read_text()) is None
    inputs = json.loads((run / "provenance/04_embed.mine.json").read_text())["hashed"]["inputs"]
    assert sha256_file(file) in inputs.values()
    given = ["--encoder", f"python:{file}:net", "--tiles", str(run / "tiles"), "--out",
             str(tmp_path / "f"), "--device", "cpu"]
    assert main([*given, "--option", "width=4"]) == 0
    assert read_features(tmp_path / "f/A1.h5").width == 4
    capsys.readouterr()
    assert main([*given, "--option", "width=[]"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: net: ")


# read-outs


def by_hand(tokens, pool):
    """The read-outs by NumPy: class token first, patches from `patches` on."""
    cls, patches = tokens[:, 0], tokens[:, 1:]
    parts = {"cls": cls, "mean": patches.mean(1), "std": patches.std(1)}
    return np.concatenate([parts[name] for name in pool.split("+")], axis=1)


@pytest.mark.parametrize("pool, width", [("cls", 1), ("mean", 1), ("cls+mean", 2),
                                         ("mean+std", 2)])
@pytest.mark.parametrize("name", ["vit12_micro_patch8_64", "mvhybrid_micro_patch8_64"])
def test_read_outs_of_our_backbones(name, pool, width):
    plain, encoder = create_encoder(name, device="cpu"), create_encoder(
        name, device="cpu", pool=pool)
    tiles = tissue(4)
    with torch.inference_mode():
        x = plain.eval_transforms.batch(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
        tokens = model_tokens(plain.model, x).numpy()
    np.testing.assert_allclose(encoder.encode(tiles), by_hand(tokens, pool), atol=1e-5)
    assert encoder.pool == pool and encoder.embedding_dim == width * plain.embedding_dim
    assert plain.pool == "cls" and (encoder.identity == plain.identity) == (pool == "cls")


@pytest.mark.parametrize("name", ["vit12_micro_patch8_64", "mvhybrid_micro_patch8_64"])
def test_depths_of_our_backbones_are_mean_and_std_of_each_block(name, tmp_path):
    plain = create_encoder(name, device="cpu")
    encoder = create_encoder(name, device="cpu", depths=[0, -1])
    tiles = tissue(4)
    x = plain.eval_transforms.batch(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    found = plain.model.forward_intermediates(x, [0, len(plain.model.blocks) - 1])
    want = np.concatenate([by_hand(np.concatenate(
        [each["cls"][:, None].numpy(), each["patch_tokens"].numpy()], axis=1), "mean+std")
        for each in found], axis=1)
    np.testing.assert_allclose(encoder.encode(tiles), want, atol=1e-5)
    assert encoder.pool == "mean+std" and encoder.embedding_dim == 4 * plain.embedding_dim
    assert encoder.description["depths"] == [0, -1]
    one = create_encoder(name, device="cpu", depths=["blocks.1"], pool="cls")
    assert one.embedding_dim == plain.embedding_dim and one.pool == "cls"
    plain.model.save_pretrained(tmp_path)
    again = create_encoder(tmp_path, device="cpu", depths=[0, -1])
    np.testing.assert_array_equal(again.encode(tiles), encoder.encode(tiles))
    with pytest.raises(InputError, match="depths: 99 is none of its"):
        create_encoder(name, device="cpu", depths=[99])
    with pytest.raises(InputError, match="use 0 to"):
        create_encoder(name, device="cpu", depths=["norm"])
    with pytest.raises(InputError, match="pool: is 'max'"):
        create_encoder(name, device="cpu", pool="max")


@pytest.mark.parametrize("pool", [None, "cls", "mean", "cls+mean", "mean+std"])
def test_read_outs_of_a_users_tokens(file, pool):
    tiles = tissue(4)
    encoder = mine(file, "tokens", **({"pool": pool} if pool else {}))
    x = tiles / 255.0
    patches = x.reshape(4, 4, 16, 4, 16, 3).mean((2, 4)).reshape(4, 16, 3)
    tokens = np.concatenate([x[:, :1, 0], patches], axis=1) + 3  # the register is left out
    np.testing.assert_allclose(encoder.encode(tiles), by_hand(tokens, pool or "cls"), atol=1e-5)
    assert encoder.pool == (pool or "cls")
    got = model_tokens(encoder.model, torch.from_numpy(x).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(got, tokens, atol=1e-5)
    deep = mine(file, "tokens", depths=[0, "blocks.1"])
    np.testing.assert_allclose(deep.encode(tiles), np.concatenate(
        [by_hand(tokens - 2, "mean+std"), by_hand(tokens - 1, "mean+std")], axis=1), atol=1e-5)


def test_depths_of_a_users_maps_whichever_way_they_hold_channels(file):
    tiles = tissue(4)
    encoder = mine(file, "maps", depths=[0, 1])
    x = tiles / 255.0
    want = []
    for step in (2, 4):
        side = 64 // step
        map_ = x.reshape(4, side, step, side, step, 3).mean((2, 4)).reshape(4, -1, 3)
        want += [map_.mean(1), map_.std(1)]
    np.testing.assert_allclose(encoder.encode(tiles), np.concatenate(want, axis=1), atol=1e-5)
    assert encoder.pool == "mean+std" and mine(file, "maps").pool == "-"
