"""Every reader of users' and run files: a tiny whole input, the call, and what must hold.

An entry of `READERS` names which files are changed and how their values are told apart; `call`
gives what was read and a list of what cannot be true of it.
"""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

#: No section is this small or large [um/px]: a tenth of an electron microscope's, a hand's width.
LEAST_MPP, LARGEST_MPP = 1e-3, 1e4
#: Coordinates beyond this many pixels lie on no slide.
FARTHEST_PX = 1e8

Found = tuple[Any, list[str]]


@dataclass(frozen=True)
class Reader:
    """One reader and its valid input.

    Attributes
    ----------
    name
        In the table of outcomes.
    build
        Writes a whole input into a folder; the same bytes for the same code.
    files
        Glob below that folder -> kind of the files, a key of `tests.fuzz.mutate.KINDS`.
    call
        Reads the folder: values, and what cannot be true of them.
    names_file
        False where a parameter is read, which stands in no file.
    guarded
        True where a hash stands beside the file: altered bytes must never be believed.
    seal
        Makes the hashes fit what was changed, so that mutants come past them.
    own
        True where nobody but the collection writes the files: that another spelling of them is
        taken for a broken file, and the file made again, is right.
    """

    name: str
    build: Callable[[Path], Any]
    files: Mapping[str, str]
    call: Callable[[Path], Found]
    names_file: bool = True
    guarded: bool = False
    seal: Callable[[Path], None] | None = None
    own: bool = False


def digest(value: Any) -> str:
    """A hash of what was read: equal values give an equal one, whatever folder they came from."""
    found = hashlib.sha256()
    _feed(value, found.update)
    return found.hexdigest()


def _feed(value: Any, put: Callable[[bytes], None]) -> None:
    if isinstance(value, pd.DataFrame):
        for name in value.columns:
            _feed([name, value[name]], put)
    elif isinstance(value, (pd.Series, pd.Index)):
        _feed(value.tolist(), put)
    elif isinstance(value, np.ndarray):
        put(f"{value.dtype.kind}{value.shape}".encode())
        if value.dtype.kind == "O":
            _feed(value.tolist(), put)
        else:
            put(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            put(b"{")
            _feed(key, put)
            _feed(value[key], put)
    elif isinstance(value, (list, tuple)):
        put(b"[")
        for item in value:
            _feed(item, put)
            put(b",")
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(asdict(value), put)
    elif isinstance(value, float) and value == int(value if math.isfinite(value) else 0):
        put(repr(int(value)).encode())  # 3.0 read from a column with a blank is the 3 that it was
    else:
        put(repr(value).encode())


def preload() -> None:
    """Import what readers import late, so that forks have it."""
    import importlib
    import pkgutil

    import anndata
    import h5py
    import nbconvert
    import pyarrow
    import scanpy
    import torch._dynamo

    import mvhlib
    from tests import (
        test_backbones,
        test_book,
        test_cohort,
        test_fused,
        test_hest,
        test_labelled,
        test_layouts,
        test_profiles,
    )

    for module in pkgutil.walk_packages(mvhlib.__path__, "mvhlib."):
        # triton is no part of an install for a CPU
        if not module.name.endswith(("__main__", "triton_scan", "triton_ssd")):
            importlib.import_module(module.name)
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    assert all((anndata, h5py, nbconvert, scanpy, test_backbones, test_book, test_cohort,
                test_fused, test_hest, test_labelled, test_layouts, test_profiles))


# --------------------------------------------------------------------------------------------
# what must hold


def names(what: str, values: Iterable[Any], unique: bool = True, path: bool = False) -> list[str]:
    """Faults of identifiers: blank, made of a missing value, padded, repeated, no file's name."""
    values = list(values)
    bad = [f"{what} {value!r:.40} is no name" for value in values
           if not isinstance(value, str) or not value.strip() or value != value.strip()
           or value in ("nan", "None", "<NA>") or any(ord(sign) < 32 for sign in value)
           or (path and (set("/\\") & set(value) or value in (".", "..") or value[0] == "-"))]
    if unique and len(set(map(str, values))) < len(values):
        bad.append(f"{what} repeated")
    return bad[:3]


def scale(what: str, value: Any, least: float = LEAST_MPP, most: float = LARGEST_MPP) -> list[str]:
    """Faults of a length or scale that may be None."""
    if value is None:
        return []
    if not isinstance(value, (int, float, np.number)) or not least <= float(value) <= most:
        return [f"{what} is {value!r:.40}"]
    return []


def places(what: str, values: np.ndarray, n: int) -> list[str]:
    """Faults of coordinates `(n, 2)`."""
    values = np.asarray(values)
    if values.shape != (n, 2):
        return [f"{what} of shape {values.shape} for {n}"]
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        return [f"{what} not finite"]
    return [f"{what} off any slide"] if (np.abs(values) > FARTHEST_PX).any() else []


def numbers(what: str, values: Any, low: float = -math.inf, high: float = math.inf,
            missing: bool = False) -> list[str]:
    """Faults of a column of numbers."""
    values = np.asarray(values)
    if values.dtype.kind not in "iufb":
        return [f"{what} is {values.dtype}"]
    values = values.astype(float)
    known = values[~np.isnan(values)] if missing else values
    bad = ~np.isfinite(known) | (known < low) | (known > high)
    return [f"{what} holds {known[bad][:1]}"] if bad.any() else []


def _section(section: Any, pixels: bool = True) -> Found:
    """Values and faults of a section, its counts and a look at its image."""
    adata = section.adata
    counts = adata.layers["counts"]
    dense = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts)
    spatial = np.asarray(adata.obsm["spatial"])
    bad = names("section", [section.name], path=True)
    for what in ("study", "patient", "specimen"):
        bad += names(what, [getattr(section, what)])
    bad += names("barcode", adata.obs_names) + names("gene", adata.var_names)
    bad += scale("mpp", section.mpp) + places("spatial", spatial, adata.n_obs)
    bad += numbers("counts", dense, 0)
    if dense.shape != (len(adata.obs_names), len(adata.var_names)) or not len(dense):
        bad.append(f"counts of shape {dense.shape}")
    if (dense != np.round(dense)).any():
        bad.append("counts are fractional")
    values = [section.name, section.study, section.patient, section.specimen, section.mpp,
              section.image_size, section.has_image, list(adata.obs_names), list(adata.var_names),
              dense.astype(float), spatial.astype(float)]
    if section.image_size is not None and (len(section.image_size) != 2
                                           or min(section.image_size) < 1):
        bad.append(f"image of {section.image_size} px")
    if pixels and section.has_slide:
        with section.slide as slide:
            values += [(slide.width, slide.height), slide.thumbnail(64)]
            if (slide.width, slide.height) != tuple(section.image_size):
                bad.append("image_size is not the image's")
    return values, bad


def _cohort(cohort: Any, pixels: bool = True) -> Found:
    found = [_section(section, pixels) for section in cohort]
    manifest = cohort.manifest
    bad = [fault for _, faults in found for fault in faults]
    for section in cohort:
        row = manifest[manifest["section"].astype(str) == section.name]
        if len(row) != 1:
            bad.append(f"manifest has {len(row)} rows of {section.name}")
            continue
        row = row.iloc[0]
        own = [section.study, section.patient, section.specimen, section.adata.n_obs,
               section.adata.n_vars, section.has_image]
        listed = [row[name] for name in ("study", "patient", "specimen", "n_spots", "n_genes",
                                         "has_image")]
        if list(map(str, own)) != list(map(str, listed)):
            bad.append("manifest and section disagree")
        stated = None if pd.isna(row["mpp"]) else float(row["mpp"])
        if (stated is None) != (section.mpp is None) or (
                stated is not None and abs(stated - section.mpp) > 1e-6 * section.mpp):
            bad.append("manifest and section disagree on mpp")
    return [values for values, _ in found], bad


def _read(source: str, pixels: bool = True, **options: Any) -> Callable[[Path], Found]:
    def call(folder: Path) -> Found:
        from mvhlib import cohort

        return _cohort(cohort.read(source, folder, **options), pixels)

    return call


# --------------------------------------------------------------------------------------------
# run pages: gallery, book, claims


def build_gallery(folder: Path) -> None:
    for name, hashed in (("01_cohort", ["figures/toy/01_cohort/map.png"]),
                         ("04_embed.vit", ["figures/toy/04/a.tissue.png"])):
        _json(folder / f"runs/toy/provenance/{name}.json", {
            "hashed": {"outputs": dict.fromkeys(hashed, "0" * 64), "seed": 0}, "minutes": 1.0})
    for name in ("map", "bars"):
        _json(folder / f"figures/toy/01_cohort/{name}.json", {
            "figure": name, "caption": "Spots of a section.", "synthetic": name == "map"})
    (folder / "figures/toy/01_cohort/map.csv").write_text("a,b\n1,2\n")
    (folder / "figures/toy/01_cohort/table.csv").write_text("a,b\n1,2\n")


def call_gallery(folder: Path) -> Found:
    from mvhlib import gallery

    text = gallery.gallery(folder / "runs/toy", folder / "figures/toy/FIGURES.md")
    return text, ["page holds a script"] if "<script" in text else []


def build_book(folder: Path) -> None:
    from tests.test_book import notebook

    for name, n in (("01_a", 1), ("04_b.vit-x", 1)):
        _json(folder / f"runs/toy/notebooks/{name}.ipynb", notebook(f"{name} · A", n))


def call_book(folder: Path) -> Found:
    from mvhlib import book

    pages = book.write_book(folder / "runs/toy", folder.parent / "out" / "book")
    index = pages[0].read_text(encoding="utf-8")
    bad = ["index holds a script"] if "<script" in index else []
    return [index, [len(page.read_text(encoding="utf-8")) for page in pages[1:]]], bad


def _claim() -> Any:
    from mvhlib import claims

    return claims.Claim("P", "better", "yes", lookup=claims.Lookup(
        "t/x.*.csv", "claim == 'better'", n_seeds=1))


def build_claims(folder: Path) -> None:
    (folder / "t").mkdir()
    for seed in range(2):
        pd.DataFrame([{"claim": "other", "difference": 0.2, "ci_low": 0.1, "ci_high": 0.3,
                       "n_seeds": 8, "seed_low": 0.1, "seed_high": 0.3},
                      {"claim": "better", "difference": 0.1 + seed / 8, "ci_low": 0.05,
                       "ci_high": 0.25, "n_seeds": 8, "seed_low": 0.01, "seed_high": 0.3}]).to_csv(
            folder / f"t/x.vit.s{seed}.csv", index=False)


def call_claims(folder: Path) -> Found:
    from mvhlib import claims

    table = claims.evaluate(folder, data="toy", command="make", chosen=[_claim()])
    row = table.iloc[0]
    bad = numbers("measured", row[["measured", "ci_low", "ci_high"]].astype(float), missing=True)
    if row["ci_low"] > row["ci_high"]:
        bad.append("interval the wrong way round")
    return table, bad


def build_collected(folder: Path) -> None:
    from mvhlib import claims

    for profile in ("evidence", "her2st"):
        table = claims.evaluate(folder / "nothing", data=profile, command="make")
        table.loc[2, ["measured", "ci_low", "ci_high"]] = 0.1, 0.05, 0.2
        place = folder / profile / "14_leaderboard"
        place.mkdir(parents=True)
        table.iloc[:5].to_csv(place / "claims.csv", index=False)


def call_collected(folder: Path) -> Found:
    from mvhlib import claims

    table = claims.collect(folder)
    text = claims.page(table)
    measured = pd.to_numeric(table["measured"].replace("", np.nan))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    bad = numbers("measured", measured, missing=True)
    if any("nan" in line for line in lines):
        bad.append("page says nan")
    if any("<script" in line for line in lines):
        bad.append("page holds a script")
    return [table, text], bad


# --------------------------------------------------------------------------------------------
# profiles and parameters


def build_plan(folder: Path) -> None:
    trained = {"source": "vit12_micro_patch8_64", "weights": "pretrained",
               "pretrain": {"steps": 3, "exclude": ["A1"]}}
    _yaml(folder / "toy/workflow.yaml", {
        "needs_data": False, "notebooks": ["01_cohort", "02_tiles", "04_embed", "05_expression"],
        "encoders": {"handmade": {"source": "handmade", "options": {"mpp": 1.0}},
                     "vit-dino": trained | {"seeds": 2},
                     "vit-held": trained | {"held_out": ["C2", "C3"]},
                     "vit-random": {"source": "vit12_micro_patch8_64", "weights": "random"}},
        "methods": {"mmap": ["handmade"], "cmrcnet": ["vit-random"]},
        "threads": {"05_expression": 2}, "gpus": 0})


def call_plan(folder: Path) -> Found:
    from mvhlib import workflow
    from mvhlib.places import home

    plan = workflow.read_plan(folder / "toy")
    known = {path.stem for path in (home() / "notebooks").glob("*.ipynb")}
    bad = [f"notebook {name!r:.30}" for name in plan["notebooks"] if name not in known]
    for slug, options in plan["encoders"].items():
        bad += names("slug", [slug], path=True)
        bad += names("source", [options.get("source")], unique=False)
        if not isinstance(options.get("options", {}), dict):
            bad.append("options of an encoder are no mapping")
    bad += [f"threads {value!r:.20}" for value in plan["threads"].values()
            if type(value) is not int or value < 1]
    if type(plan["gpus"]) is not int or plan["gpus"] < 0 or type(plan["needs_data"]) is not bool:
        bad.append(f"gpus {plan['gpus']!r:.20} or needs_data {plan['needs_data']!r:.20}")
    return [plan], [*bad, *_no_nan(plan)]


def _no_nan(tree: Any) -> list[str]:
    """NaN is no parameter: everything that is made with it is NaN."""
    if isinstance(tree, float) and math.isnan(tree):
        return ["a value is NaN"]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(
        tree, (list, tuple)) else ()
    return [fault for item in items for fault in _no_nan(item)][:1]


def build_params(folder: Path) -> None:
    _yaml(folder / "toy/13_cmrcnet.yaml", {
        "encoder": "vit12-dino", "grid": 4, "protocols": ["loso", "patient"], "unit": "study",
        "model": {"width": 64, "gene_hidden": 512}, "fit": {"epochs": 4, "lr": 0.001},
        "ks": [10, 50], "mask_rates": [0.0, 0.5], "ablation_folds": 1})


def call_params(folder: Path) -> Found:
    from mvhlib import workflow

    values = workflow.read_params(folder / "toy", "13_cmrcnet")
    bad = [f"{key!r:.20} is no parameter" for key in values if not str(key).isidentifier()]
    return [values], bad + _no_nan(values)


def build_settings(folder: Path) -> None:
    _yaml(folder / "03_pretrain.yaml", {
        "backbone": "vit12_micro_patch8_64", "backbone_options": {"drop_path": 0.1}, "steps": 40,
        "batch": 16, "base_lr": 0.002, "global_scale": [0.32, 1.0], "blur": [0.0, 0.9, 0.5],
        "sections": ["A*"], "more": {"workers": 2, "precision": "float32"}, "rotate": True})


def call_settings(folder: Path) -> Found:
    from mvhlib.dino import config

    settings = asdict(config.read_settings(folder / "03_pretrain.yaml"))
    lengths = [settings[name] for name in ("steps", "batch", "global_px", "local_px")]
    return [settings], numbers("lengths", lengths, 1, 1e12) + _no_nan(settings)


def build_parameters_cell(folder: Path) -> None:
    cell = {"cell_type": "code", "id": "p", "metadata": {"tags": ["parameters"]}, "outputs": [],
            "execution_count": None, "source": ["steps: int = 3  # length [steps]\n",
                                                "rate: float = 0.1  # step\n",
                                                "names: list[str] = ['a']  # sections\n"]}
    _json(folder / "05_x.ipynb", {"nbformat": 4, "nbformat_minor": 5, "metadata": {},
                                  "cells": [cell]})


def call_parameters_cell(folder: Path) -> Found:
    from mvhlib import notebook

    source = notebook.read_parameters_cell(folder / "05_x.ipynb")
    return [source, notebook.declared_parameters(source)], []


def build_executed(folder: Path) -> None:
    from tests.test_book import notebook

    content = notebook("01 · A", 1)
    content["cells"][1]["outputs"].append({"output_type": "error", "ename": "InputError",
                                           "evalue": "a: b", "traceback": []})
    _json(folder / "runs/toy/notebooks/01_a.ipynb", content)
    (folder / "figures/toy").mkdir(parents=True)
    (folder / "figures/toy/a.csv").write_text("a\n1\n")
    _json(folder / "runs/toy/provenance/01_a.json",
          {"hashed": {"outputs": {"figures/toy/a.csv": "0" * 64}}})


def call_executed(folder: Path) -> Found:
    from mvhlib import workflow

    said = workflow.explain(folder / "runs/toy/notebooks/01_a.ipynb")
    return [said.replace(str(folder), ""), workflow.forget_incomplete(folder / "runs/toy")], []


# --------------------------------------------------------------------------------------------
# features and tiles


def build_features(layout: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        from mvhlib.features import Features, write_features
        from tests.test_features import ATTRS, NAMES

        rng = np.random.default_rng(0)
        write_features(folder / "a.h5", Features(
            rng.normal(size=(4, 7)).astype(np.float32), rng.integers(0, 9999, (4, 2)), list(NAMES),
            dict(ATTRS)), layout)

    return build


def _features(found: Any) -> list[str]:
    n = len(found.features)
    bad = numbers("features", found.features) + places("coords", found.coords, n)
    bad += names("barcode", found.barcodes)
    if not n or found.features.ndim != 2 or not found.features.shape[1]:
        bad.append(f"features of shape {found.features.shape}")
    if len(found.barcodes) != n:
        bad.append("barcodes and features differ in number")
    for name in ("mpp", "source_mpp", "tile_um", "tile_px", "working_mpp"):
        if name in found.attrs:
            bad += scale(name, found.attrs[name])
    if "encoder" in found.attrs:
        bad += names("encoder", [found.attrs["encoder"]])
    return bad


def call_features(folder: Path) -> Found:
    from mvhlib.features import read_features

    found = read_features(folder / "a.h5")
    return [found.features, found.coords, found.barcodes, dict(found.attrs)], _features(found)


def build_feature_folder(folder: Path) -> None:
    build_features("mvhlib")(folder)
    build_features("mvhlib")(folder / "x")
    (folder / "x/a.h5").rename(folder / "b.h5")
    shutil.rmtree(folder / "x")


def call_feature_folder(folder: Path) -> Found:
    from mvhlib.features import read_folder

    found = read_folder(folder)
    bad = [fault for each in found.values() for fault in _features(each)]
    if not found or not set(found) <= {"a", "b"}:  # that a file is gone, a folder cannot tell
        bad.append(f"sections {sorted(found)}")
    return [[name, each.features, each.coords, each.barcodes] for name, each in found.items()], bad


def _tiles(n: int = 3, side: int = 16) -> Any:
    from mvhlib.tiles.cut import Tiles

    rng = np.random.default_rng(0)
    return Tiles(rng.integers(0, 256, (n, side, side, 3), np.uint8),
                 rng.integers(0, 5000, (n, 2)), np.zeros(n, np.float32), side, 32.0, 2.0, 0.5,
                 [f"BC{i}-1" for i in range(n)])


def build_tiles(folder: Path) -> None:
    from mvhlib.tiles.store import write_tiles

    write_tiles(folder / "a.h5", _tiles(), key="k")


def build_tiles_hest(folder: Path) -> None:
    from tests.test_hest import write_sample

    write_sample(folder, "TENX1", n=6, side=16, missing=1)
    (folder / "patches/TENX1.h5").rename(folder / "a.h5")
    shutil.rmtree(folder / "st")
    (folder / "patches").rmdir()


def _tile_faults(found: Any) -> list[str]:
    n = len(found.img)
    bad = places("coords", found.coords, n) + names("barcode", found.barcodes)
    bad += numbers("outside", found.outside, 0, 1)
    for name in ("tile_px", "tile_um", "mpp", "source_mpp"):
        bad += scale(name, getattr(found, name))
    if found.img.dtype != np.uint8 or found.img.shape[1:] != (found.tile_px, found.tile_px, 3):
        bad.append(f"img {found.img.dtype} {found.img.shape}")
    if len(found.outside) != n or len(found.barcodes or []) != n or not n:
        bad.append("parts differ in number")
    if not bad and abs(found.tile_um / found.tile_px - found.mpp) > 1e-6 * found.mpp:
        bad.append("mpp is not tile_um by tile_px")
    return bad


def call_tiles(folder: Path) -> Found:
    from mvhlib.tiles.store import manifest_row, read_tiles

    found = read_tiles(folder / "a.h5")
    row = manifest_row(folder / "a.h5")
    return [asdict(found), {k: v for k, v in row.items() if k != "sha256"}], _tile_faults(found)


def build_source(folder: Path) -> None:
    from PIL import Image

    from mvhlib.tiles.store import write_tiles

    for name in ("A1", "B1"):
        write_tiles(folder / f"tiles/{name}.h5", _tiles())
    Image.fromarray(_tiles().img[0]).save(folder / "tiles/C1.png")
    (folder / "manifest.csv").write_text(
        "section,patient,study\nA1,007,s\nB1,P2,s\nC1,P2,s\n")


def call_source(folder: Path) -> Found:
    from mvhlib.dino.data import TileSource

    source = TileSource(folder / "tiles", manifest=folder / "manifest.csv")
    pixels = source.__getitems__(list(range(len(source))))
    bad = [fault for what in ("sections", "patients", "studies")
           for fault in names(what, source.saw[what])]
    return [pixels, source.saw], bad


# --------------------------------------------------------------------------------------------
# training states and weights


def _loop(n_steps: int = 0) -> Any:
    import torch

    from mvhlib.training import EarlyStop, LoopState

    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    state = LoopState(model=model, optimizer=optimizer, rng=np.random.default_rng(3),
                      noise=torch.Generator().manual_seed(4), stop=EarlyStop(5))
    for step in range(n_steps):
        _train(state)
        state.parts["stop"].update(1.0 / (step + 1), step)
        state.step += 1
    return state


def _train(state: Any) -> None:
    import torch

    model, optimizer = state.parts["model"], state.parts["optimizer"]
    optimizer.zero_grad()
    model(torch.ones(2, 8)).square().mean().backward()
    optimizer.step()


def build_checkpoint(folder: Path) -> None:
    from mvhlib.training import Checkpoints

    Checkpoints(folder, key={"n": 1}).save(_loop(3))


def call_checkpoint(folder: Path) -> Found:
    import torch

    from mvhlib.training import Checkpoints

    state = _loop()
    resumed = Checkpoints(folder, key={"n": 1}).resume(state)
    before = [state.step, state.notes, state.parts["model"].weight.detach().numpy().copy(), resumed]
    bad = [] if type(state.step) is int and 0 <= state.step < 1e12 else [f"step {state.step!r:.30}"]
    if not isinstance(state.notes, dict):
        bad.append("notes are no mapping")
    _train(state)
    state.parts["stop"].update(0.5, 4)
    draw = [state.parts["rng"].random(2), torch.randn(2, generator=state.parts["noise"]).numpy()]
    weights = state.parts["model"].weight.detach().numpy()
    return [before, draw, weights], bad + numbers("weights", weights)


def build_log(folder: Path) -> None:
    (folder / "log.csv").write_text("step,loss,rank\n0,3.5,1\n1,2.5,2\n2,1.25,2.5\n")


def call_log(folder: Path) -> Found:
    from mvhlib.training import CsvLog, read_log

    found = read_log(folder / "log.csv")
    CsvLog(folder / "log.csv", ["loss", "rank"]).cut(2)  # must not fail either
    steps = found.get("step", [])
    bad = [] if all(float(step).is_integer() and step >= 0 for step in steps) else ["steps"]
    return found, bad


def build_encoder(folder: Path) -> None:
    from mvhlib.backbones import create_model

    model = create_model("vit12_micro_patch8_64", depth=1, embed_dim=24, img_size=16)
    model.save_pretrained(folder / "vit", {"sections": ["A1"], "patients": ["007"],
                                           "studies": ["s"]})


def seal_encoder(folder: Path) -> None:
    """Make the hashes of configuration and weights fit them, as somebody who means it could."""
    _seal(folder / "vit")


def _seal(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    from mvhlib.artifacts import sha256_file, sha256_of

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("weights_sha256", None)
        path = folder / "model.safetensors"
        save_file(load_file(path), path, metadata={"config_sha256": sha256_of(config)})
        config["weights_sha256"] = sha256_file(path)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    except Exception:  # whatever was broken stays so
        return


def call_encoder(folder: Path) -> Found:
    from mvhlib.encoders import create_encoder

    return _encoder(create_encoder(folder / "vit", device="cpu"))


def _encoder(encoder: Any) -> Found:
    import torch

    tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    features = encoder.encode(tiles)
    bad = numbers("features", features)
    bad += [f"weights {name} not finite" for name, value in encoder.model.state_dict().items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            and not value.isfinite().all()][:1]
    saw = encoder.pretrained_on
    for what in saw or {}:
        bad += names(what, saw[what], unique=False)
    return [features, encoder.embedding_dim, saw, encoder.mpp], bad


def build_fused(folder: Path) -> None:
    from mvhlib.encoders import create_encoder
    from mvhlib.expression import fused, mmap
    from tests.test_fused import GENES, SMALL, samples

    base = create_encoder("vit12_micro_patch8_64", device="cpu", seed=1, depth=1, embed_dim=24,
                          img_size=16)

    def read(x: np.ndarray) -> np.ndarray:
        return mmap.view_tokens(base, x, grid=2)

    model = mmap.MMAP(**SMALL, zooms=(1, 4), prototypes="none")
    model.fit(samples(read), GENES, "x", 0)
    fused.save(model, folder / "mmap", base, grid=2)


def seal_fused(folder: Path) -> None:
    """Make the hashes of MMAP's configuration and weights fit them."""
    _seal(folder / "mmap")


def call_fused(folder: Path) -> Found:
    from mvhlib.encoders import create_encoder

    return _encoder(create_encoder(folder / "mmap", device="cpu"))


def build_finished(folder: Path) -> None:
    from mvhlib.expression.cmrcnet import estimator
    from mvhlib.training import Fit

    estimator._write_finished(folder, _network(), Fit(
        [{"epoch": 1, "lr": 0.1, "loss": 2.0}, {"epoch": 2, "lr": 0.1, "loss": 1.5}], 2, 72))


def _network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))


def call_finished(folder: Path) -> Found:
    from mvhlib.expression.cmrcnet import estimator

    network = _network()
    done = estimator._read_finished(folder, network)
    weights = [value.detach().numpy() for value in network.state_dict().values()]
    bad = [fault for value in weights for fault in numbers("weights", value)]
    if done is not None:
        bad += numbers("log", [row["loss"] for row in done.log], missing=True)
        if type(done.best_epoch) is not int or not 1 <= done.best_epoch <= max(1, done.n_epochs):
            bad.append(f"best_epoch {done.best_epoch!r:.20}")
    return [done and asdict(done), weights], bad


def build_reference(ending: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from tests.test_backbones import jitter, published_names, small_model

        weights = published_names(jitter(small_model()))
        weights = {name: value.contiguous() for name, value in weights.items()}
        if ending == ".pth":
            torch.save({"teacher": {f"backbone.{name}": value for name, value in weights.items()},
                        "iteration": 5}, folder / "checkpoint.pth")
        elif ending == ".npz":
            np.savez(folder / "checkpoint.npz", **{k: v.numpy() for k, v in weights.items()})
        else:
            save_file(weights, folder / "checkpoint.safetensors")

    return build


def call_reference(ending: str) -> Callable[[Path], Found]:
    def call(folder: Path) -> Found:
        from mvhlib.backbones import load_reference_state_dict
        from tests.test_backbones import small_model

        model = load_reference_state_dict(small_model(seed=9), folder / f"checkpoint{ending}")
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        return weights, [fault for value in weights.values() for fault in numbers("weights", value)]

    return call


# --------------------------------------------------------------------------------------------
# HEST


def build_hest(folder: Path) -> None:
    from tests.test_hest import GENES, write_csv, write_sample

    for name in ("TENX1", "TENX2"):
        write_sample(folder, name, n=12, side=16, missing=2, genes=GENES[:8])
    write_csv(folder, [{"id": "TENX1", "patient": "007"},
                       {"id": "TENX2", "patient": "Patient 2", "nb_genes": 8}])
    _json(folder / "metadata/TENX1.json", {"id": "TENX1", "patient": "007", "subseries": "a",
                                           "pixel_size_um_estimated": 0.3})


def call_hest(folder: Path) -> Found:
    from mvhlib import cohort
    from mvhlib.cohort import hest

    found = cohort.read("hest", folder)
    values, bad = _cohort(found)
    for section in found:
        if section.has_image:
            tiles = hest.tiles(folder, section)
            values.append(asdict(tiles))
            bad += _tile_faults(tiles)
            if not set(tiles.barcodes) <= set(section.adata.obs_names):
                bad.append("tiles of no spot")
    return values, bad


def build_corrections(folder: Path) -> None:
    row = {"study": "x", "substudy": "x1", "donor": "007", "specimen": "b1", "duplicate_of": "",
           "note": ""}
    pd.DataFrame([{"section": "A", **row, "S": 1, "group": "COAD"},
                  {"section": "B", **row, "duplicate_of": "A", "S": 0, "group": "COAD"},
                  {"section": "C", **row, "donor": "P2", "S": 1, "group": "READ"}]).to_csv(
        folder / "samples.csv", index=False)


def call_corrections(folder: Path) -> Found:
    from mvhlib.cohort import hest

    table = hest.read_corrections(folder / "samples.csv")
    bad = names("section", table["section"], path=True)
    for column in ("study", "substudy", "donor", "specimen"):
        bad += names(column, table[column], unique=False)
    bad += names("column", table.columns)
    return table.fillna(""), bad


def build_bench(folder: Path) -> None:
    (folder / "splits").mkdir()
    for fold, (train, test) in enumerate(((["B1", "B3"], ["B2"]), (["B2"], ["B3", "B1"]))):
        for side, samples in (("train", train), ("test", test)):
            pd.DataFrame({"sample_id": samples,
                          "patches_path": [f"patches/{n}.h5" for n in samples],
                          "expr_path": [f"adata/{n}.h5ad" for n in samples]}).to_csv(
                folder / f"splits/{side}_{fold}.csv", index=False)
    _json(folder / "var_50genes.json", {"genes": ["A", "B", "NA"]})


def call_bench(folder: Path) -> Found:
    from mvhlib.cohort import hest

    folds, genes = hest.bench_folds(folder), hest.bench_genes(folder)
    bad = names("section", folds["section"], unique=False, path=True) + names("gene", genes)
    if not genes:
        bad.append("no genes")
    return [folds, genes], bad


# --------------------------------------------------------------------------------------------
# cohorts: runs, joined sets, origins


def build_run(folder: Path) -> None:
    from mvhlib import cohort
    from mvhlib.artifacts import write_csv
    from mvhlib.cohort import base
    from tests.test_cohort import write_st_section

    write_st_section(folder / "data", n=4)
    write_st_section(folder / "data", "B1", n=4, image=None)
    made = cohort.read("her2st", folder / "data")
    for section in made:
        base.write_section(section, folder / "run")
    write_csv(folder / "run/manifest.csv", made.manifest)


def call_run(folder: Path) -> Found:
    from mvhlib import cohort

    found = cohort.read("run", folder / "run", data=folder / "data")
    values, bad = _cohort(found)
    for section in found:
        if section.image_ref is not None:
            place = (section.roots[section.image_ref.root] / section.image_ref.path).resolve()
            if not place.is_relative_to(folder.resolve()):
                bad.append("an image outside the data")
    return values, bad


def build_joined(folder: Path) -> None:
    from tests.test_cohort import write_mob, write_st_section

    write_st_section(folder / "human", n=4)
    write_mob(folder / "mouse")
    (folder / "symbols.csv").write_text("gene,symbol\nG1,GENEA\nG2,GENEB\n")
    _yaml(folder / "sources.yaml", [
        {"source": "her2st", "path": "human"},
        {"source": "mob", "path": "mouse", "symbols": "symbols.csv", "options": {"images": True}}])


def call_joined(folder: Path) -> Found:
    from mvhlib import cohort

    sources = yaml.safe_load((folder / "sources.yaml").read_text(encoding="utf-8"))
    for entry in sources if isinstance(sources, list) else ():
        if isinstance(entry, dict) and entry.get("symbols") == "symbols.csv":
            entry["symbols"] = str(folder / "symbols.csv")
    return _cohort(cohort.read("joined", folder, sources=sources))


def build_origins(folder: Path) -> None:
    for name in ("colon-a/X/1.png", "colon-a/X/2.png", "colon-b/Y/1.png", "liver/Z/1.png"):
        _picture(folder / name)
    (folder / "colon-a/patients.csv").write_text("image,patient\n1,007\n2,p2\n")
    _yaml(folder / "origins.yaml", {
        "colon": [{"reader": "folder", "folder": "colon-a", "mpp": 0.5},
                  {"reader": "folder", "folder": "colon-b", "mpp": 1.0, "study": "b"}],
        "liver": [{"reader": "folder", "folder": "liver", "mpp": 0.5}]})


def call_origins(folder: Path) -> Found:
    from mvhlib.cohort import origins

    given = yaml.safe_load((folder / "origins.yaml").read_text(encoding="utf-8"))
    return _labelled(origins.read(given, folder), folder)


def _labelled(images: list, folder: Path, **options: Any) -> Found:
    from mvhlib.tiles import labelled, store

    bad = names("image", [image.name for image in images], path=True)
    bad += names("label", [image.label for image in images], unique=False)
    patients = [image.patient for image in images]
    bad += names("patient", patients, unique=False) if any(patients) else []
    for image in images:
        bad += scale("mpp", image.opened.get("mpp"))
    out = folder.parent / "out"
    labelled.cut(images, out, tile_um=16, tile_px=16, **options)
    cut = [asdict(store.read_tiles(path)) for path in sorted(out.glob("tiles/*.h5"))]
    about = [[image.name, image.label, image.patient, image.extra, image.opened,
              str(image.path.relative_to(folder))] for image in images]
    return [about, cut], bad


# --------------------------------------------------------------------------------------------
# 10x


def build_visium(**options: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        from tests.test_cohort import write_visium

        write_visium(folder / "S1/outs", **options)

    return build


def build_visium_parquet(folder: Path) -> None:
    build_visium()(folder)
    spatial = folder / "S1/outs/spatial"
    pd.read_csv(spatial / "tissue_positions.csv").to_parquet(spatial / "tissue_positions.parquet")
    (spatial / "tissue_positions.csv").unlink()


def build_visium_mtx(folder: Path) -> None:
    """The feature matrix as the three files of a folder, gzipped as Space Ranger writes them."""
    import gzip

    import h5py

    build_visium()(folder)
    outs = folder / "S1/outs"
    with h5py.File(outs / "filtered_feature_bc_matrix.h5") as stream:
        matrix = {name: stream[f"matrix/{name}"][()] for name in ("data", "indices", "indptr",
                                                                  "barcodes")}
        genes = [name.decode() for name in stream["matrix/features/name"][()]]
    place = outs / "filtered_feature_bc_matrix"
    place.mkdir()
    column = np.repeat(np.arange(len(matrix["barcodes"])), np.diff(matrix["indptr"]))
    lines = [f"{row + 1} {spot + 1} {value}" for row, spot, value in zip(
        matrix["indices"], column, matrix["data"], strict=True)]
    head = ["%%MatrixMarket matrix coordinate integer general",
            f"{len(genes)} {len(matrix['barcodes'])} {len(lines)}"]
    features = [f"ENSG{i}\t{gene}\tGene Expression" for i, gene in enumerate(genes)]
    for name, text in (("matrix.mtx", [*head, *lines]), ("features.tsv", features),
                       ("barcodes.tsv", [name.decode() for name in matrix["barcodes"]])):
        (place / f"{name}.gz").write_bytes(gzip.compress("".join(
            line + "\n" for line in text).encode(), mtime=0))
    (outs / "filtered_feature_bc_matrix.h5").unlink()


def build_visium_samples(folder: Path) -> None:
    from PIL import Image

    for name in ("S1", "S2"):
        build_visium()(folder / name)
        (folder / name / "S1/outs").rename(folder / name / "outs")
        (folder / name / "S1").rmdir()
        Image.new("RGB", (200, 180), "pink").save(folder / f"{name}.png")
    (folder / "samples.csv").write_text(
        "section,folder,study,patient,specimen,image,mpp\n"
        "first,S1,X,007,b1,S1.png,5.0\nsecond,S2,X,P2,b2,S2.png,5.0\n")


def call_visium(folder: Path) -> Found:
    from mvhlib import cohort

    given = {} if (folder / "samples.csv").exists() or (folder / "S2").is_dir() else {
        "patient": "p"}
    return _cohort(cohort.read("visium", folder, **given))


def build_hd(folder: Path) -> None:
    from PIL import Image

    from tests.test_cohort import write_10x_h5

    spatial = folder / "S1/outs/binned_outputs/square_008um/spatial"
    spatial.mkdir(parents=True)
    rows, columns = (axis.ravel() for axis in np.mgrid[0:20, 0:10])
    table = pd.DataFrame({
        "barcode": [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(rows, columns, strict=True)],
        "in_tissue": 1, "array_row": rows, "array_col": columns,
        "pxl_row_in_fullres": 16.0 * rows + 100, "pxl_col_in_fullres": 16.0 * columns + 50})
    table.to_parquet(spatial / "tissue_positions.parquet")
    _json(spatial / "scalefactors_json.json", {
        "microns_per_pixel": 0.5, "bin_size_um": 8.0, "tissue_hires_scalef": 1.0,
        "spot_diameter_fullres": 16.0})
    Image.new("RGB", (300, 500), "pink").save(spatial / "tissue_hires_image.png")
    write_10x_h5(spatial.parent / "filtered_feature_bc_matrix.h5", np.ones((200, 3), int),
                 list(table["barcode"]), ["A", "B", "C"])


def build_xenium(ending: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        n = 300
        table = pd.DataFrame({
            "feature_name": rng.choice(["ERBB2", "EPCAM", "NegControlProbe_00042"], n),
            "x_location": rng.uniform(0, 300, n), "y_location": rng.uniform(0, 200, n),
            "qv": rng.choice([12.0, 35.0], n)})
        (folder / "S1").mkdir()
        path = folder / f"S1/transcripts{ending}"
        table.to_parquet(path) if ending == ".parquet" else table.to_csv(path, index=False)
        np.savetxt(folder / "align.csv", np.diag([2.0, 2.0, 1.0]), delimiter=",")
        Image.new("RGB", (710, 480), "pink").save(folder / "he.png")
        (folder / "samples.csv").write_text(
            "section,study,patient,image,alignment\nS1,s,007,he.png,align.csv\n")

    return build


def call_xenium(folder: Path) -> Found:
    from mvhlib import cohort

    return _cohort(cohort.read("xenium", folder, min_counts=1))


# --------------------------------------------------------------------------------------------
# what other laboratories and tools have


def build_h5ad(folder: Path) -> None:
    from tests.test_profiles import write_h5ad

    write_h5ad(folder / "A.h5ad", mpp_of_visium=2.0)
    (folder / "samples.csv").write_text("section,study,patient,mpp\nA,s,007,2.0\n")


def build_segmented(folder: Path) -> None:
    from tests.test_profiles import write_segmented

    write_segmented(folder / "S1")


def build_flat(folder: Path) -> None:
    """Loose files with a prefix, tables packed as GEO has them."""
    import gzip

    build_visium()(folder)
    for path in sorted(path for path in (folder / "S1").rglob("*") if path.is_file()):
        packed = path.suffix == ".csv"
        content = path.read_bytes()
        (folder / f"GSM1_a_{path.name}{'.gz' if packed else ''}").write_bytes(
            gzip.compress(content, mtime=0) if packed else content)
    shutil.rmtree(folder / "S1")
    (folder / "samples.csv").write_text("section,study,patient,mpp\nGSM1_a,s,007,5.0\n")


def build_xenium_cells(folder: Path) -> None:
    from tests.test_layouts import write_cells

    write_cells(folder / "S1")
    (folder / "samples.csv").write_text("section,study,patient\nS1,s,007\n")


def _kept(source: str, **options: Any) -> Callable[[Path], Found]:
    """Read with a cohort folder of its own, where images inside files go."""
    def call(folder: Path) -> Found:
        from mvhlib import cohort

        return _cohort(cohort.read(source, folder, keep=folder / "kept", **options))

    return call


def build_whole_slides(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        _picture(folder / name)
    (folder / "slides.csv").write_text(
        "slide,patient,study,label,time,event,age,sex,stage,mpp\n"
        "a.png,007,h1,MSI,34.5,1,61,female,II,0.5\nb,P2,h2,MSS,60.0,0,70,male,IIIB,0.5\n")


def _whole_slides(slides: Any, low: int = 1) -> Found:
    bad = names("slide", [slide.name for slide in slides], path=True)
    for slide in slides:
        bad += scale("mpp", slide.mpp)
        bad += [] if isinstance(slide.outcome, Mapping) else ["no outcome"]
    if len(slides) < low:
        bad.append("no slide")
    return [[slide.name, slide.path.name, slide.patient, slide.study, slide.label, slide.mpp,
             dict(slide.outcome)] for slide in slides], bad


def call_whole_slides(folder: Path) -> Found:
    from mvhlib.tiles import whole

    return _whole_slides(whole.read(folder))


def build_slide_features(folder: Path) -> None:
    build_features("trident")(folder)
    (folder / "features_uni").mkdir()
    for name in ("s1", "s2"):
        shutil.copy(folder / "a.h5", folder / f"features_uni/{name}.h5")
    (folder / "a.h5").unlink()
    (folder / "slides.csv").write_text("slide,patient,label\ns1,007,MSI\ns2.svs,P2,MSS\n")


def call_slide_features(folder: Path) -> Found:
    from mvhlib import features, slide_features
    from mvhlib.artifacts import read_csv

    slide_features.take(folder, "features:features_uni", "", folder / "run", "uni")
    found = features.read_folder(folder / "run/features/uni")
    people = read_csv(folder / "run/slides.csv")
    bad = [fault for each in found.values() for fault in _features(each)]
    bad += names("slide", map(str, people["slide"]), path=True)
    return [[name, each.features, each.coords] for name, each in sorted(found.items())] + [
        people.astype(str)], bad


# --------------------------------------------------------------------------------------------
# tables of the run and of users


def build_csv(folder: Path) -> None:
    (folder / "t.csv").write_text("section,patient,fold,n,x\nA1,007,0,1,0.5\nB1,P2,1,2,NA\n"
                                  "C1,P3,0,3,1.5\n")


def call_csv(folder: Path) -> Found:
    from mvhlib.artifacts import read_csv

    table = read_csv(folder / "t.csv", ("section", "patient", "fold", "n", "x"))
    bad = names("column", table.columns)
    for column in ("section", "patient"):
        given = [value for value in table[column] if not pd.isna(value)]
        bad += [f"{column} {value!r} is no text" for value in given if not isinstance(value, str)]
    return table.fillna(""), bad


def build_scores(folder: Path) -> None:
    rows = [{"protocol": protocol, "fold": "A>B", "study": "s", "patient": patient,
             "section": f"x{patient}", "method": "ridge", "encoder": encoder,
             "encoder_saw_test_images": "no", "control": "none", "panel": "hvg", "program": "p",
             "gene": gene, "n_spots": 30, "pcc": 0.25, "mae": 0.5, "mse": 0.5, "ceiling": 0.7}
            for protocol in ("transfer", "within") for patient in ("007", "P2")
            for gene in ("A", "NA") for encoder in ("vit", "handmade")]
    table = pd.DataFrame(rows)
    for (protocol, encoder), part in table.groupby(["protocol", "encoder"]):
        place = folder / protocol / "ridge" / encoder
        place.mkdir(parents=True)
        part.to_csv(place / "scores.csv", index=False)


def call_scores(folder: Path) -> Found:
    from mvhlib.expression import leaderboard, transfer

    table, board = transfer.read(folder), leaderboard.read(folder, "within")
    bad = []
    for each in (table, board):
        for column in ("patient", "section", "encoder", "gene"):
            bad += names(column, each[column], unique=False)
        bad += numbers("pcc", each["pcc"], -1, 1, missing=True)
    return [table.fillna(""), board.fillna("")], bad


def _clinical(found: Any) -> Found:
    table = found.table
    bad = names("patient", table["patient"])
    bad += numbers("time_months", table["time_months"], 1e-9, 2000)
    if not set(table["event"]) <= {0, 1}:
        bad.append(f"event {sorted(set(table['event']))[:3]}")
    for column, low, high in (("age", 0, 130), ("male", 0, 1), ("stage", 0, 4),
                              ("t_stage", 0, 4)):
        if column in table:
            bad += numbers(column, table[column], low, high, missing=True)
    if "male" in table and not set(table["male"].dropna()) <= {0, 1}:
        bad.append("male is neither 0 nor 1")
    if "site" in table:
        bad += names("site", table["site"], unique=False)
    values = [table.fillna(-1), list(found.covariates)]
    if found.slides is not None:
        bad += names("slide", found.slides["slide"])
        bad += names("slide's patient", found.slides["patient"], unique=False)
        values.append(found.slides)
    if found.folds is not None:
        values.append(found.folds)
    return values, bad


def _clinical_call(source: str, **options: Any) -> Callable[[Path], Found]:
    def call(folder: Path) -> Found:
        from mvhlib.cohort import clinical

        endpoint = "composition" if source == "slides" else "os"
        return _clinical(clinical.read(source, folder, endpoint, **options))

    return call


def build_panther(folder: Path) -> None:
    from tests.test_clinical import patients, write_panther

    write_panther(folder, patients(18), n_folds=2)


def build_survpath(folder: Path) -> None:
    from tests.test_clinical import patients

    table = patients(12)
    pd.DataFrame({"case_id": table["case_id"], "slide_id": table["slide_id"] + ".svs",
                  "age": table["age_at_initial_pathologic_diagnosis"],
                  "site": table["tissue_source_site"], "is_female": (table["sex"] == "F") * 1.0,
                  "survival_months": table["os_survival_days"] / 30,
                  "censorship": table["os_censorship"]}).to_csv(
        folder / "tcga_coadread.csv", index=False)
    pd.DataFrame({"case_id": table["case_id"], "stage": ["I", "II", "III", "IV"] * 3,
                  "grade": "N/A"}).to_csv(folder / "tcga_coadread_clinical.csv", index=False)


def build_slides(folder: Path) -> None:
    pd.DataFrame({"slide": [f"s{i}" for i in range(8)],
                  "patient": [f"00{i // 2}" for i in range(8)],
                  "site": [f"S{i // 4}" for i in range(8)], "age": [50 + i // 2 for i in range(8)],
                  "sex": ["M", "M", "F", "F"] * 2, "stage": [1 + i // 2 for i in range(8)],
                  "time_months": [3.5 + i // 2 for i in range(8)],
                  "event": [0, 0, 1, 1, 0, 0, 1, 1]}).to_csv(folder / "slides.csv", index=False)


def build_outcomes(folder: Path) -> None:
    (folder / "own.csv").write_text(
        "who,days,dead,age,centre\n001,365.25,0,50,S1\n002,30,1,61.5,S1\n003,100,1,,S2\n"
        "004,800,0,47,S2\n")


def build_markers(folder: Path) -> None:
    (folder / "m.csv").write_text("list,gene,source\nx,G1,a\nx,G2,a\ny,NA,b\n")


def call_markers(folder: Path) -> Found:
    import anndata

    from mvhlib.cohort import genes

    adata = anndata.AnnData(np.ones((3, 4), np.float32), var=pd.DataFrame(
        index=["G1", "G2", "NA", "G4"]))
    adata.layers["counts"] = adata.X.astype(int)
    found = genes.panel(str(folder / "m.csv"), [adata])
    return [list(found), found.absent], names("gene", found) + names("absent", found.absent)


def build_groups(folder: Path) -> None:
    (folder / "groups.csv").write_text("section,group\nA1,COAD\nB1,READ\n007,READ\nD4,IDC\n")


def call_groups(folder: Path) -> Found:
    from mvhlib.cohort import splits

    manifest = pd.DataFrame({"section": ["A1", "B1", "007"], "study": "s"})
    found = splits.group_of(manifest, str(folder / "groups.csv"))
    return [found, list(found.index), found.attrs["known"]], names("group", found, unique=False)


def build_gmt(folder: Path) -> None:
    (folder / "sets.gmt").write_text("A\tfirst\tG1\tG2\nB\tsecond\tG2\tNA\tG3\n")


def call_gmt(folder: Path) -> Found:
    from mvhlib.expression import structure

    sets = structure.read_gmt(folder / "sets.gmt")
    return sets, names("set", sets) + [fault for own in sets.values()
                                       for fault in names("gene", own)]


# --------------------------------------------------------------------------------------------
# images


def _pixels(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, (x + y) * 2], -1).astype(np.uint8)


def _picture(path: Path, **options: Any) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels()).save(path, **options)


def build_slide(kind: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import tifffile

        pixels = _pixels(256, 320)
        if kind == "svs":
            with tifffile.TiffWriter(folder / "a.svs") as stream:
                for step in (1, 4):
                    stream.write(
                        pixels[::step, ::step], tile=(64, 64), photometric="rgb",
                        compression="zlib", metadata=None, software=False, subfiletype=0,
                        description="Aperio Image Library v10\r\n320x256 (64x64)|AppMag = 20|"
                                    "MPP = 0.5")
        elif kind == "ome":
            tifffile.imwrite(folder / "a.ome.tif", pixels, photometric="rgb", tile=(64, 64),
                             metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5,
                                       "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm",
                                       "UUID": "urn:uuid:" + "0" * 32})
        elif kind == "tiff":
            tifffile.imwrite(folder / "a.tif", pixels, photometric="rgb", metadata=None,
                             software=False, resolution=(20000, 20000),
                             resolutionunit="CENTIMETER")
        else:
            _picture(folder / f"a.{kind}")

    return build


def call_slide(name: str) -> Callable[[Path], Found]:
    return lambda folder: _slide(folder / name)


def _slide(path: Path) -> Found:
    from mvhlib.tiles.cut import tissue_mask
    from mvhlib.tiles.slides import open_slide

    with open_slide(path) as slide:
        bad = scale("mpp", slide.mpp)
        if min(slide.width, slide.height) < 1:
            bad.append(f"{slide.width} x {slide.height} px")
        small, (part, outside) = slide.thumbnail(40), slide.region(5, 6, 20, 10)
        tissue_mask(slide)
        if small.ndim != 3 or small.shape[2] != 3 or small.dtype != np.uint8:
            bad.append(f"pixels {small.dtype} {small.shape}")
        return [slide.width, slide.height, slide.mpp, small, part, outside], bad


# --------------------------------------------------------------------------------------------
# labelled images


def build_glas(folder: Path) -> None:
    from tests.test_labelled import glas

    glas(folder)


def build_folders(folder: Path) -> None:
    for name in ("ADI/1.png", "ADI/2.png", "TUM/deeper/1.png"):
        _picture(folder / name)
    (folder / "patients.csv").write_text("image,patient\nADI-1,007\nADI-2,p2\nTUM-1,p3\n")


def build_mhist(folder: Path) -> None:
    votes = "Number of Annotators who Selected SSA (Out of 7)"
    (folder / "annotations.csv").write_text(
        f"Image Name,Majority Vote Label,{votes},Partition\nMHIST_aaa.png,SSA,6,train\n"
        "MHIST_aab.png,HP,0,test\n")
    for name in ("MHIST_aaa.png", "MHIST_aab.png"):
        _picture(folder / "images" / name)


def _labelled_call(kind: str) -> Callable[[Path], Found]:
    def call(folder: Path) -> Found:
        from mvhlib.tiles import labelled

        return _labelled(labelled.read(kind, folder), folder, mpp=0.5)

    return call


# --------------------------------------------------------------------------------------------
# legacy ST


def build_her2st(folder: Path) -> None:
    from tests.test_cohort import write_st_section

    write_st_section(folder, n=4)
    (folder / "ST-pat-lbl").mkdir()
    pd.DataFrame({"Row.names": ["a", "b", "c"], "x": [2.02, 3.9, 4.1], "y": [3.01, 2.97, 4.0],
                  "label": ["invasive cancer", "adipose tissue", "undetermined"]}).to_csv(
        folder / "ST-pat-lbl/A1_labeled_coordinates.tsv", sep="\t", index=False)


def call_her2st(folder: Path) -> Found:
    from mvhlib import cohort

    found = cohort.read("her2st", folder)
    values, bad = _cohort(found)
    for section in found:
        if "label" in section.adata.obs:
            values.append(section.adata.obs["label"].astype(object).where(
                section.adata.obs["label"].notna(), "").tolist())
    return values, bad


def build_mob(folder: Path) -> None:
    from tests.test_cohort import write_mob

    write_mob(folder / "mob")


def call_mob(folder: Path) -> Found:
    from mvhlib import cohort

    found = cohort.read("mob", folder / "mob")
    values, bad = _cohort(found)
    if len(found) < 2:
        bad.append("a section was left out in silence")
    return values, bad


def build_legacy(folder: Path) -> None:
    from tests.test_cohort import write_st_section

    write_st_section(folder, n=4, image=None)
    import gzip

    packed = folder / "ST-cnts/A1.tsv.gz"
    (folder / "A1.tsv").write_bytes(gzip.decompress(packed.read_bytes()))
    (folder / "ST-spotfiles/A1_selection.tsv").rename(folder / "spots.tsv")
    shutil.rmtree(folder / "ST-cnts")
    shutil.rmtree(folder / "ST-spotfiles")


def call_legacy(folder: Path) -> Found:
    from mvhlib.cohort import legacy_st

    adata, spots = legacy_st.read_counts(folder / "A1.tsv"), legacy_st.read_spots(
        folder / "spots.tsv")
    counts = adata.layers["counts"].toarray()
    bad = names("barcode", adata.obs_names) + names("gene", adata.var_names)
    bad += numbers("counts", counts, 0) + names("spot", spots.index)
    bad += places("pixel", spots[["pixel_x", "pixel_y"]].to_numpy(), len(spots))
    return [counts.astype(float), list(adata.obs_names), list(adata.var_names), list(spots.index),
            spots.reset_index(drop=True).fillna(-1)], bad


# --------------------------------------------------------------------------------------------


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _yaml(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(copy.deepcopy(content), sort_keys=False), encoding="utf-8")


_OUTS = "S1/outs"

READERS: dict[str, Reader] = {reader.name: reader for reader in (
    Reader("gallery", build_gallery, {"runs/toy/provenance/*.json": "json",
                                      "figures/toy/01_cohort/*.json": "json"}, call_gallery),
    Reader("book", build_book, {"runs/toy/notebooks/*.ipynb": "json"}, call_book),
    Reader("claims", build_claims, {"t/*.csv": "csv"}, call_claims),
    Reader("claims_collected", build_collected, {"*/14_leaderboard/claims.csv": "csv"},
           call_collected),
    Reader("plan", build_plan, {"toy/workflow.yaml": "yaml"}, call_plan),
    Reader("params", build_params, {"toy/13_cmrcnet.yaml": "yaml"}, call_params),
    Reader("settings", build_settings, {"03_pretrain.yaml": "yaml"}, call_settings),
    Reader("parameters_cell", build_parameters_cell, {"*.ipynb": "json"}, call_parameters_cell,
           names_file=False),
    Reader("executed", build_executed, {"runs/toy/*/*.*": "json"}, call_executed, own=True),
    Reader("features", build_features("mvhlib"), {"a.h5": "h5"}, call_features),
    Reader("features_trident", build_features("trident"), {"a.h5": "h5"}, call_features),
    Reader("features_hest", build_features("hest"), {"a.h5": "h5"}, call_features),
    Reader("features_folder", build_feature_folder, {"*.h5": "h5"}, call_feature_folder),
    Reader("tiles", build_tiles, {"a.h5": "h5"}, call_tiles),
    Reader("tiles_hest", build_tiles_hest, {"a.h5": "h5"}, call_tiles),
    Reader("tile_source", build_source, {"tiles/*.h5": "h5", "tiles/*.png": "image",
                                         "manifest.csv": "csv"}, call_source),
    Reader("checkpoint", build_checkpoint, {"step_*.pt": "torch"}, call_checkpoint, guarded=True),
    Reader("log", build_log, {"log.csv": "csv"}, call_log, own=True),
    Reader("encoder_config", build_encoder, {"vit/config.json": "json"}, call_encoder,
           seal=seal_encoder),
    Reader("encoder_weights", build_encoder, {"vit/model.safetensors": "safetensors"},
           call_encoder, guarded=True, seal=seal_encoder),
    Reader("mmap_saved", build_fused, {"mmap/config.json": "json", "mmap/backbone/config.json":
                                       "json", "mmap/model.safetensors": "safetensors"},
           call_fused, guarded=True, seal=seal_fused),
    Reader("cmrcnet_saved", build_finished, {"fit.json": "json",
                                             "model.safetensors": "safetensors"}, call_finished),
    Reader("reference_pth", build_reference(".pth"), {"checkpoint.pth": "torch"},
           call_reference(".pth")),
    Reader("reference_safetensors", build_reference(".safetensors"),
           {"checkpoint.safetensors": "safetensors"}, call_reference(".safetensors")),
    Reader("reference_npz", build_reference(".npz"), {"checkpoint.npz": "npz"},
           call_reference(".npz")),
    Reader("hest_csv", build_hest, {"HEST_v1_1_0.csv": "csv", "metadata/*.json": "json"},
           call_hest),
    Reader("hest_h5ad", build_hest, {"st/*.h5ad": "h5"}, call_hest),
    Reader("hest_patches", build_hest, {"patches/*.h5": "h5"}, call_hest),
    Reader("hest_corrections", build_corrections, {"samples.csv": "csv"}, call_corrections),
    Reader("hest_bench", build_bench, {"splits/*.csv": "csv", "var_50genes.json": "json"},
           call_bench),
    Reader("run_manifest", build_run, {"run/manifest.csv": "csv"}, call_run),
    Reader("run_h5ad", build_run, {"run/*.h5ad": "h5"}, call_run),
    Reader("joined_sources", build_joined, {"sources.yaml": "value"}, call_joined,
           names_file=False),
    Reader("joined_symbols", build_joined, {"symbols.csv": "csv"}, call_joined),
    Reader("origins", build_origins, {"origins.yaml": "value"}, call_origins, names_file=False),
    Reader("origins_files", build_origins, {"*/patients.csv": "csv", "*/*/*.png": "image"},
           call_origins),
    Reader("visium_h5", build_visium(), {f"{_OUTS}/*.h5": "h5"}, call_visium),
    Reader("visium_mtx", build_visium_mtx, {
        f"{_OUTS}/filtered_feature_bc_matrix/matrix.mtx.gz": "text",
        f"{_OUTS}/filtered_feature_bc_matrix/features.tsv.gz": "csv",
        f"{_OUTS}/filtered_feature_bc_matrix/barcodes.tsv.gz": "text"}, call_visium),
    Reader("visium_positions", build_visium(), {f"{_OUTS}/spatial/*.csv": "csv"}, call_visium),
    Reader("visium_positions_list", build_visium(header=False), {f"{_OUTS}/spatial/*.csv": "csv"},
           call_visium),
    Reader("visium_positions_parquet", build_visium_parquet,
           {f"{_OUTS}/spatial/*.parquet": "parquet"}, call_visium),
    Reader("visium_scalefactors", build_visium(), {f"{_OUTS}/spatial/*.json": "json"},
           call_visium),
    Reader("visium_samples", build_visium_samples, {"samples.csv": "csv"}, call_visium),
    Reader("visium_image", build_visium(), {f"{_OUTS}/spatial/*.png": "image"}, call_visium),
    Reader("visium_hd", build_hd, {"S1/outs/*/*/*.h5": "h5", "S1/outs/*/*/spatial/*.parquet":
                                   "parquet", "S1/outs/*/*/spatial/*.json": "json"},
           _read("visium_hd", spot_um=40.0, patient="p")),
    Reader("xenium_parquet", build_xenium(".parquet"), {"S1/*.parquet": "parquet",
                                                        "samples.csv": "csv"}, call_xenium),
    Reader("xenium_csv", build_xenium(".csv"), {"S1/*.csv": "csv", "align.csv": "csv"},
           call_xenium),
    Reader("h5ad_folder", build_h5ad, {"*.h5ad": "h5"}, _kept("h5ad")),
    Reader("h5ad_samples", build_h5ad, {"samples.csv": "csv"}, _kept("h5ad")),
    Reader("segmented", build_segmented, {
        "S1/segmented_outputs/*.h5": "h5", "S1/segmented_outputs/*.geojson": "json",
        "S1/segmented_outputs/spatial/*.json": "json"}, _read("segmented", patient="p")),
    Reader("flat", build_flat, {"*.h5": "h5", "*.csv.gz": "csv", "*.json": "json",
                                "samples.csv": "csv"}, _kept("flat")),
    Reader("xenium_cells", build_xenium_cells, {"S1/*.h5": "h5", "S1/*.csv.gz": "csv",
                                                "samples.csv": "csv"}, _read("xenium_cells")),
    Reader("whole_slides", build_whole_slides, {"slides.csv": "csv"}, call_whole_slides),
    Reader("slide_features", build_slide_features, {"*/*.h5": "h5", "slides.csv": "csv"},
           call_slide_features),
    Reader("read_csv", build_csv, {"t.csv": "csv"}, call_csv, own=True),
    Reader("scores", build_scores, {"*/*/*/scores.csv": "csv"}, call_scores,
           own=True),
    Reader("clinical_panther", build_panther, {"*/*.csv": "csv"}, _clinical_call("panther")),
    Reader("clinical_survpath", build_survpath, {"*.csv": "csv"}, _clinical_call("survpath")),
    Reader("clinical_slides", build_slides, {"slides.csv": "csv"}, _clinical_call("slides")),
    Reader("clinical_table", build_outcomes, {"own.csv": "csv"}, _clinical_call(
        "table", file="own.csv", patient="who", time="days", event="dead", unit="days",
        covariates=["age"], site="centre")),
    Reader("markers", build_markers, {"m.csv": "csv"}, call_markers),
    Reader("groups", build_groups, {"groups.csv": "csv"}, call_groups),
    Reader("gene_sets", build_gmt, {"sets.gmt": "text"}, call_gmt),
    Reader("slide_png", build_slide("png"), {"a.png": "image"}, call_slide("a.png")),
    Reader("slide_jpg", build_slide("jpg"), {"a.jpg": "image"}, call_slide("a.jpg")),
    Reader("slide_tiff", build_slide("tiff"), {"a.tif": "tiff"}, call_slide("a.tif")),
    Reader("slide_ome", build_slide("ome"), {"a.ome.tif": "tiff"}, call_slide("a.ome.tif")),
    Reader("slide_svs", build_slide("svs"), {"a.svs": "tiff"}, call_slide("a.svs")),
    Reader("labelled_glas", build_glas, {"labels.csv": "csv", "images/*.png": "image"},
           _labelled_call("glas")),
    Reader("labelled_folder", build_folders, {"patients.csv": "csv", "*/*.png": "image"},
           _labelled_call("folder")),
    Reader("labelled_mhist", build_mhist, {"annotations.csv": "csv", "images/*.png": "image"},
           _labelled_call("mhist")),
    Reader("her2st_counts", build_her2st, {"ST-cnts/*.tsv.gz": "csv"}, call_her2st),
    Reader("her2st_spots", build_her2st, {"ST-spotfiles/*.tsv": "csv"}, call_her2st),
    Reader("her2st_labels", build_her2st, {"ST-pat-lbl/*.tsv": "csv"}, call_her2st),
    Reader("her2st_image", build_her2st, {"ST-imgs/*/*/*.jpg": "image"}, call_her2st),
    Reader("mob", build_mob, {"mob/*.tsv": "csv", "mob/metaData.csv": "csv", "mob/*.jpg": "image"},
           call_mob),
    Reader("legacy", build_legacy, {"A1.tsv": "csv", "spots.tsv": "csv"}, call_legacy),
)}
