"""What `make doctor` says of data that a test wrote, and what `make profile` makes of them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mvhlib import artifacts, cohort, commands, own_files, own_tables, tables, workflow
from mvhlib.artifacts import InputError
from mvhlib.places import home, resolve
from mvhlib.tiles import whole
from tests.absent import walk
from tests.test_cohort import write_10x_h5, write_st_section, write_visium

RECIPES = home() / "params/recipes"
_spec = importlib.util.spec_from_file_location("make_input", RECIPES / "make_input.py")
make_input = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_input)


def tables_stamp(call, name):
    return own_files.stamp(own_files.tables_of(workflow.read_params(call.folder, name), call.data))


def run_profile(folder, data, out, leave_out=()):
    """Every notebook of a profile in this process, as the workflow would call them."""
    plan = workflow.prepare(workflow.Call(folder.name, str(data), 0, str(folder.parent)))
    said = {}
    for name in [name for name in plan["notebooks"] if name not in leave_out]:
        given = workflow.read_params(folder, name)
        extra = {"05_expression": {"encoders": plan["scored"], "n_draws": 9},
                 "06_spatial_maps": {"n_permutations": 9}}.get(name, {})
        jobs = [{"encoder": slug, **options} for slug, options in plan["encoders"].items()
                ] if name == "04_embed" else [extra]
        for job in jobs:
            said[name] = walk(name, out, profile=folder.name, data=str(data), **given | job)
    return said


def write_legacy(root, name, genes=("A", "B", "C")):
    """A section as laboratories keep it: a folder with counts, spots and a jpg."""
    work = root / ".work"
    write_st_section(work, "A1", n=6, genes=list(genes),
                     counts=np.random.default_rng(1).poisson(3.0, (36, len(genes))))
    (root / name).mkdir(parents=True)
    (work / "ST-cnts/A1.tsv.gz").rename(root / name / f"{name}_stdata_counts.tsv.gz")
    (work / "ST-spotfiles/A1_selection.tsv").rename(root / name / f"{name}_selection.tsv")
    (work / "ST-imgs/A/A1/scan.jpg").rename(root / name / f"{name}_HE.jpg")
    shutil.rmtree(work)


def write_h5ad(path, n=36, genes=12, patient=None, image=True, mpp_of_visium=None):
    rng = np.random.default_rng(len(path.stem))
    row, column = np.divmod(np.arange(n), 6)
    adata = anndata.AnnData(rng.poisson(3.0, (n, genes)).astype(np.float32))
    adata.var_names = [f"G{k}" for k in range(genes)]
    adata.obsm["spatial"] = np.column_stack([column, row]) * 40.0 + 60
    if mpp_of_visium:
        step = 50 / mpp_of_visium  # a column of Visium's array is 50 um
        adata.obs["array_row"], adata.obs["array_col"] = row, 2 * column + row % 2
        adata.obsm["spatial"] = np.column_stack(
            [adata.obs["array_col"] * step, row * step * 3**0.5]) + 20
    if patient:
        adata.obs["donor"] = patient
    if image:
        pixels = rng.integers(90, 230, (150, 150, 3), dtype=np.uint8)
        adata.uns["spatial"] = {"lib": {"images": {"hires": pixels}, "scalefactors": {
            "tissue_hires_scalef": 0.5, "spot_diameter_fullres": 20.0}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return adata


def doctor(data, capsys):
    status = commands.main(["doctor"], {"DATA": str(data)})
    said = capsys.readouterr()
    return status, said.out, said.err


def profile(data, params, name="mine"):
    return commands.main(["profile"], {"DATA": str(data), "PARAMS": str(params), "PROFILE": name})


def fill(path, **columns):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(path, index=False)


@pytest.fixture
def params(tmp_path):
    (tmp_path / "params").mkdir()
    return tmp_path / "params"


def test_doctor_says_what_a_laboratory_folder_holds_and_writes_nothing(tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("N1", "N2"):
        write_legacy(data, name)
    (data / "notes.txt").write_text("by hand\n")
    before = sorted(tmp_path.rglob("*"))
    status, said, _ = doctor(data, capsys)
    assert status == 0 and sorted(tmp_path.rglob("*")) == before
    assert "source legacy_st" in said and "2 sections" in said
    assert "patients: to be filled in" in said and "not recognised: notes.txt" in said
    # 36 spots, 3 genes, spots 50 px and 200 um apart, hence 4 um/px; the image is 480 x 500.
    rows = [line.split() for line in said.splitlines() if line.strip().startswith(("N1", "N2"))]
    assert [row[:5] for row in rows] == [[name, "?", "?", "36", "3"] for name in ("N1", "N2")]
    assert [float(row[5]) for row in rows] == pytest.approx([4, 4], rel=1e-3)
    assert all(row[6:] == ["480", "x", "500", "px"] for row in rows)


def cut_short(path):
    raw = path.read_bytes()
    path.write_bytes(raw[:len(raw) // 3])


def test_one_broken_output_of_a_platform_is_left_out_and_the_others_are_not(
        tmp_path, params, capsys):
    # Genes are named alike in all outputs of a cohort: a matrix that is no part of it has no say.
    data = tmp_path / "data"
    for name in ("A", "B", "C"):
        write_visium(data / name)
    cut_short(data / "B/filtered_feature_bc_matrix.h5")
    status, said, _ = doctor(data, capsys)
    assert status == 0 and "2 sections" in said and "left out:\n  B: " in said
    assert profile(data, params) == 0
    table = params / "mine/samples.csv"
    assert list(pd.read_csv(table)["section"]) == ["A", "C"]
    fill(table, study="s", patient="p")
    read = cohort.read("visium", data, samples=table)
    assert [section.adata.n_obs > 0 for section in read] == [True, True]


@pytest.mark.parametrize("kind", ["h5ad", "legacy_st", "visium"])
def test_a_section_that_cannot_be_read_is_left_out_of_the_users_own_table(
        tmp_path, params, capsys, kind):
    data, columns = tmp_path / "data", {}
    for name in ("A", "B", "C"):
        if kind == "h5ad":
            write_h5ad(data / f"{name}.h5ad", mpp_of_visium=2.0)
        elif kind == "visium":
            write_visium(data / name)
        else:
            write_legacy(data, name)
            columns[name] = (f",{name}/{name}_stdata_counts.tsv.gz,{name}/{name}_selection.tsv,"
                             f"{name}/{name}_HE.jpg")
    more = ",counts,spots,image" if columns else ""
    rows = [f"{name},s1,{who}{columns.get(name, '')}" for name, who in zip("ABC", "pqr",
                                                                            strict=True)]
    (data / "samples.csv").write_text("\n".join([f"section,study,patient{more}", *rows, ""]))
    broken = {"h5ad": "B.h5ad", "visium": "B/filtered_feature_bc_matrix.h5",
              "legacy_st": "B/B_stdata_counts.tsv.gz"}[kind]
    cut_short(data / broken)

    status, said, _ = doctor(data, capsys)
    assert status == 0 and "2 sections, patients: 2" in said
    assert f"left out:\n  B: {data / broken}: " in said
    assert "samples.csv cannot be run as it stands" in said and "without B." in said
    assert profile(data, params) == 0
    plan = workflow.read_params(params / "mine", "01_cohort")
    read = cohort.read(plan["source"], data, **plan["options"])
    assert [(section.name, section.study, section.patient) for section in read] == [
        ("A", "s1", "p"), ("C", "s1", "r")]


def test_a_table_that_is_wrong_as_a_whole_is_refused_as_it_was(tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("A", "B"):
        write_h5ad(data / f"{name}.h5ad", mpp_of_visium=2.0)
    cut_short(data / "B.h5ad")
    for rows, named in (("A,s,p\nA,s,p\n", "section"), ("A,s,p\nA,s,p\nB,s,q\n", "section")):
        (data / "samples.csv").write_text(f"section,study,patient\n{rows}")
        status, _, error = doctor(data, capsys)
        assert status == 2 and "samples.csv" in error and named in error
    write_h5ad(data / "B.h5ad", mpp_of_visium=2.0)
    for rows, named in (("A,s,p\nA,s,p\n", "section"), ("A,s,p\nB,s,P\n", "patient")):
        (data / "samples.csv").write_text(f"section,study,patient\n{rows}")
        status, _, error = doctor(data, capsys)
        assert status == 2 and "samples.csv" in error and named in error


def test_a_profile_is_refused_until_its_table_is_filled_in(tmp_path, params, capsys):
    data = tmp_path / "data"
    for name in ("N1", "N2"):
        write_legacy(data, name)
    assert profile(data, params) == 0
    assert "fill in study, patient in" in capsys.readouterr().out
    given = {"PROFILE": "mine", "DATA": str(data), "PARAMS": str(params), "SEED": "0",
             "JOBS": "1", "OUT": str(tmp_path / "out")}
    table = params / "mine/samples.csv"
    fill(table, study="S")
    assert commands.main(["figures"], given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{table}: patient, row 2: is not filled in for section 'N1' (and 1 more cell" in said
    fill(table, patient=["P1", ""])  # a blank is no patient either
    with pytest.raises(InputError, match="patient, row 3: is not filled in for section 'N2'"):
        own_tables.check_filled(table)
    fill(table, patient=["P1", "P2"])
    call = workflow.Call("mine", str(data), 0, str(params))
    before = tables_stamp(call, "01_cohort")
    plan = workflow.prepare(call)
    assert list(plan["encoders"]) == ["handmade", "vit12-random"]
    fill(table, patient=["P1", "P1"])  # a correction makes 01_cohort run again
    assert tables_stamp(call, "01_cohort") != before
    assert not (tmp_path / "out").exists()


def test_a_written_table_is_read_back_as_it_was(tmp_path):
    starts = ["+", "-", "=", "@", "'", "'+", "#", '"', "sep=", "+7", "=1+1", "-4", "007", "a"]
    rests = ["", "_HE.png", "a,b", "a;b", 'say "x"', " x", "é/切片", "\tx", "(A1)"]
    names = [name for start in starts for rest in rests if (name := f"{start}{rest}".strip())]
    rows = [{"slide": name, "patient": name[::-1].strip(), "label": start, "mpp": own_tables.BLANK}
            for name, start in zip(names, starts * len(rests), strict=False)]
    for separator in tables.SEPARATORS:
        path = own_tables.write_template(tmp_path / "t.csv", list(rows[0]), rows,
                                         separator=separator)
        assert tables.read_table(path, ("slide",)).to_dict("records") == rows


def test_slides_whose_names_look_like_formulas_run_from_their_profile(tmp_path, params):
    names = ["+7_HE", "=1+1", "@x", "b"]
    (tmp_path / "data").mkdir()
    for shade, name in enumerate(names):
        Image.new("RGB", (300, 300), (200, 100, shade)).save(tmp_path / f"data/{name}.png")
    assert profile(tmp_path / "data", params) == 0
    fill(params / "mine/slides.csv", mpp="0.5")
    slides = whole.read(tmp_path / "data", str(params / "mine/slides.csv"))
    assert [slide.name for slide in slides] == names


def write_slides(data, names):
    """Slides with tissue on glass, one of them truncated: `names` and ``broken``."""
    data.mkdir(parents=True)
    for seed, name in enumerate([*names, "broken"]):
        pixels = np.full((600, 600, 3), 245, np.uint8)
        pixels[100:500, 100:500] = (180, 90, 150) + np.random.default_rng(seed).integers(
            0, 40, (400, 400, 3))
        Image.fromarray(pixels).save(data / f"{name}.png")
    (data / "broken.png").write_bytes((data / "broken.png").read_bytes()[:20])


@pytest.mark.parametrize("table, wanted", [
    ("slide,patient,label,mpp\na,P1,x,0.5\nbroken,P2,y,0.5\nc.png,P3,y,\nd,P4,x,?\n",
     "slide,patient,label,mpp\na,P1,x,0.5\nc.png,P3,y,?\nd,P4,x,?\n"),
    ("slide;label;patient;age;mpp\na;?;P1;60,5;0,5\nbroken;x;P2;61;\nc;y;P3;?;0,5\nd;x;P4;9;\n",
     "slide;label;patient;age;mpp\na;;P1;60,5;0,5\nc;y;P3;;0,5\nd;x;P4;9;?\n"),
    ("slide,patient\na,P1\nbroken,P2\n+c,P3\n", "slide,patient,mpp\na,P1,?\n+c,P3,?\n"),
    ("slide,mpp,note\na,0.5,=1\nbroken,0.5,\nc,0.5,z\n", "slide,mpp,note\na,0.5,=1\nc,0.5,z\n")])
def test_what_is_left_out_of_slides_csv_is_left_out_of_the_run(tmp_path, params, capsys, table,
                                                               wanted):
    data = tmp_path / "data"
    write_slides(data, ["a", "c", "d", "+c"])
    (data / "slides.csv").write_text(table)
    assert profile(data, params) == 0
    said = capsys.readouterr().out
    own = params / "mine/slides.csv"
    assert own.read_text() == wanted and (data / "slides.csv").read_text() == table
    assert "left out:\n  broken: " in said and "writes one of its own, without broken" in said
    assert resolve(workflow.read_params(params / "mine", "02_tiles")["slides"]) == own
    if "?" in wanted:
        assert f"fill in mpp in {own}" in said
        with pytest.raises(InputError, match="slides.csv: mpp, row .* is not filled in for slide"):
            workflow.prepare(workflow.Call("mine", str(data), 0, str(params)))
        own.write_text(wanted.replace("?", "0.5" if ",mpp" in wanted else "0,5"))
    else:
        assert "now run:" in said
    workflow.prepare(workflow.Call("mine", str(data), 0, str(params)))
    slides = whole.read(data, str(own))
    assert "broken" not in [slide.name for slide in slides] and {s.mpp for s in slides} == {0.5}


def test_tiles_are_cut_of_the_slides_that_are_left(tmp_path, params):
    data = tmp_path / "data"
    write_slides(data, ["a", "d"])
    (data / "slides.csv").write_text("slide,patient,mpp\na,P1,0.5\nbroken,P2,0.5\nd,P3,\n")
    assert profile(data, params) == 0
    fill(params / "mine/slides.csv", mpp="0.5")
    given = workflow.read_params(params / "mine", "02_tiles")
    walk("02_tiles", tmp_path / "out", profile="mine", data=str(data), **given)
    cut = artifacts.read_csv(tmp_path / "out/runs/mine/slides/slides.csv")
    assert cut["slide"].tolist() == ["a", "d"] and cut["patient"].tolist() == ["P1", "P3"]


def test_a_list_that_can_be_run_is_run_as_it_stands(tmp_path, params):
    data = tmp_path / "data"
    write_slides(data, ["a", "c"])
    (data / "slides.csv").write_text("slide,mpp\na,0.5\nc,0.5\n")
    assert profile(data, params) == 0
    assert not (params / "mine/slides.csv").exists()
    assert workflow.read_params(params / "mine", "02_tiles")["slides"] == "slides.csv"


def test_of_a_profile_that_cannot_be_written_nothing_stays(tmp_path, params, monkeypatch, capsys):
    write_h5ad(tmp_path / "data/S1.h5ad")
    write, there = artifacts.write_text, []

    def fails(path, text):
        there.append(path)
        if len(there) > 1:
            raise OSError("no more")
        return write(path, text)

    monkeypatch.setattr(sys.modules["mvhlib.profiles.write"], "write_text", fails)
    assert profile(tmp_path / "data", params) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not [*params.iterdir()]
    monkeypatch.undo()
    assert profile(tmp_path / "data", params) == 0


def test_names_that_are_no_utf8_are_left_out_and_printed(tmp_path, params):
    data = tmp_path / "data"
    write_slides(data, ["a", "-x"])
    write_slides(data / "F", ["b"])
    try:
        (data / os.fsdecode(b"S\xfcd.png")).write_bytes((data / "a.png").read_bytes())
        (data / "F").rename(data / os.fsdecode(b"F\xfc"))
        (data / "G").mkdir()
        Image.new("RGB", (300, 300), "pink").save(data / "G/c.png")
        (data / os.fsdecode(b"notes\xfc.txt")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for target, name in (("doctor", ""), ("profile", "mine")):
        done = subprocess.run(
            [sys.executable, "-m", "mvhlib.commands", target], cwd=home(), capture_output=True,
            text=True, env=os.environ | {"DATA": str(data), "PARAMS": str(params), "PROFILE": name,
                                         "PYTHONIOENCODING": "utf-8:strict"})
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "2 slides," in done.stdout and "not recognised: notes?.txt" in done.stdout
        left = done.stdout.partition("left out:")[2]
        assert "S?d: " in left and "-x: " in left and "which begins with '-'" in left
        assert "b: " in left and "which is no UTF-8" in left
    assert (params / "mine/slides.csv").read_text().splitlines()[1:] == ["a.png,,,,,,?",
                                                                         "G/c.png,,,,,,?"]


def test_nothing_is_written_over_a_profile(tmp_path, params, capsys):
    write_h5ad(tmp_path / "data/S1.h5ad")
    (params / "mine").mkdir()
    (params / "mine/workflow.yaml").write_text("notebooks: []\n")
    assert profile(tmp_path / "data", params) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "exists already" in said
    assert (params / "mine/workflow.yaml").read_text() == "notebooks: []\n"


def test_every_line_of_a_written_profile_has_its_comment(tmp_path, params):
    write_legacy(tmp_path / "data", "N1")
    profile(tmp_path / "data", params)
    for path in (params / "mine").glob("*.yaml"):
        above = ""
        for line in path.read_text().splitlines():
            assert "#" in line or "#" in above, (path.name, line)
            above = line


def test_two_kinds_of_data_are_one_line(tmp_path, capsys):
    write_legacy(tmp_path / "data", "N1")
    write_h5ad(tmp_path / "data/S1.h5ad")
    status, _, said = doctor(tmp_path / "data", capsys)
    assert status == 2 and said.count("\n") == 1
    assert "holds two kinds of data" in said and "legacy_st" in said and "h5ad" in said


@pytest.mark.parametrize("make, problem", [
    (lambda d: (d / "a.docx").write_bytes(b"PK"), "holds nothing readable; it has ['a.docx']"),
    (lambda d: write_h5ad(d / "x/y/S1.h5ad") and None, "holds data sets in folders"),
    (lambda d: None, "it has nothing"),
    (lambda d: (d / "S.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n"), "was recognised, but cannot be")])
def test_what_cannot_be_read_is_one_line(tmp_path, capsys, make, problem):
    data = tmp_path / "data"
    data.mkdir()
    make(data)
    status, _, said = doctor(data, capsys)
    assert status == 2 and said.count("\n") == 1 and problem in said


def write_classes(root, n=3):
    """Images in a folder per class, nobody's."""
    for label, colour in (("LYM", (120, 80, 160)), ("TUM", (200, 120, 170))):
        (root / label).mkdir(parents=True)
        for k in range(n):
            noise = np.random.default_rng(k).integers(-20, 20, (64, 64, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(
                root / label / f"{label}{k}.png")


@pytest.mark.slow
def test_a_folder_per_class_without_patients_says_so_to_the_end(tmp_path, params, capsys):
    data = tmp_path / "data"
    write_classes(data, 12)
    assert profile(data, params) == 0
    said = capsys.readouterr().out
    assert "24 images" in said and "the image is the unit of every table" in said
    assert "fill in labelled_mpp" in said
    with pytest.raises(InputError, match="labelled_mpp: is '\\?'"):
        workflow.prepare(workflow.Call("mine", str(data), 0, str(params)))
    path = params / "mine/02_tiles.yaml"
    path.write_text(path.read_text().replace("labelled_mpp: '?'", "labelled_mpp: 0.5"))
    run_profile(params / "mine", data, tmp_path / "out")
    summary = artifacts.read_csv(tmp_path / "out/figures/mine/07_classification/summary.csv")
    assert set(summary["unit"]) == {"image"}


def test_files_of_anndata_say_what_they_know(tmp_path, capsys):
    data = tmp_path / "data"
    given = write_h5ad(data / "S1.h5ad", patient="P7", mpp_of_visium=2.0)
    write_h5ad(data / "S2.h5ad", image=False)
    status, said, _ = doctor(data, capsys)
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert status == 0 and "patients: to be filled in" in said
    # Half the pixels of the full image: 2 um/px become 4.
    assert rows["S1"][1:6] == ["?", "P7", "36", "12", "4"] and rows["S1"][6:] == [
        "150", "x", "150", "px"]
    assert rows["S2"][2] == "?" and rows["S2"][-1] == "none"
    people = cohort.read("h5ad", data, keep=tmp_path / "kept", samples=pd.DataFrame(
        [{"section": "S1", "study": "T", "patient": "P7"}]))
    section = people["S1"]
    np.testing.assert_allclose(section.centers, given.obsm["spatial"] / 2)
    np.testing.assert_array_equal(section.image(), given.uns["spatial"]["lib"]["images"]["hires"])
    np.testing.assert_array_equal(section.adata.layers["counts"].toarray(), given.X)


@pytest.mark.parametrize("spoil, problem", [
    (lambda a: a.obsm.pop("spatial"), 'obsm["spatial"]: is missing'),
    (lambda a: setattr(a, "X", a.X + 0.5), "counts: are in none of X"),
    (lambda a: a.uns["spatial"]["lib"]["scalefactors"].pop("tissue_hires_scalef"), "scalef: is"),
    (lambda a: a.uns["spatial"].update(S1=a.uns["spatial"]["lib"]), "several libraries")])
def test_broken_anndata_is_refused_by_field(tmp_path, spoil, problem):
    adata = write_h5ad(tmp_path / "S1.h5ad")
    spoil(adata)
    adata.write_h5ad(tmp_path / "S1.h5ad")
    with pytest.raises(InputError) as refused:
        cohort.read("h5ad", tmp_path, samples=pd.DataFrame(
            [{"section": "S1", "study": "T", "patient": "P", "mpp": "1"}]))
    assert problem in str(refused.value)


def write_two_libraries(folder):
    """Two sections in one file, as scanpy.concat makes it, rows in no order; and the two alone."""
    alone = {name: write_h5ad(folder / f"alone/{name}.h5ad") for name in ("left", "right2")}
    for name, adata in alone.items():
        adata.uns["spatial"] = {name: adata.uns["spatial"]["lib"]}
    both = anndata.concat(alone, label="library_id", uns_merge="unique", index_unique="-")
    both = both[np.random.default_rng(0).permutation(len(both))].copy()
    both.obs["note"] = "left"  # a column that names one library alone tells nothing apart
    (folder / "data").mkdir()
    both.write_h5ad(folder / "data/both.h5ad")
    return alone, both


def test_a_file_of_several_libraries_is_as_many_sections(tmp_path, capsys):
    alone, both = write_two_libraries(tmp_path)
    write_h5ad(tmp_path / "data/S3.h5ad")
    status, said, _ = doctor(tmp_path / "data", capsys)
    assert status == 0 and "3 sections" in said and "both" not in said.split("3 sections")[0]
    people = cohort.read("h5ad", tmp_path / "data", keep=tmp_path / "kept", samples=pd.DataFrame(
        [{"section": name, "study": "T", "patient": name, "mpp": "1"}
         for name in ("left", "right2", "S3")]))
    for name, given in alone.items():
        section = people[name]
        order = [spot.removesuffix(f"-{name}") for spot in section.adata.obs_names]
        assert sorted(order) == sorted(given.obs_names)
        np.testing.assert_array_equal(section.adata.layers["counts"].toarray(), given[order].X)
        np.testing.assert_allclose(section.centers, given[order].obsm["spatial"] / 2)
        np.testing.assert_array_equal(section.image(),
                                      given.uns["spatial"][name]["images"]["hires"])


def test_libraries_that_nothing_tells_apart_are_refused(tmp_path):
    _, both = write_two_libraries(tmp_path)
    path, told = tmp_path / "data/both.h5ad", pd.DataFrame(
        [{"section": "left", "study": "T", "patient": "P", "mpp": "1"}])
    both.obs["slide"] = both.obs["library_id"].astype(str).to_numpy()[::-1]
    both.write_h5ad(path)
    with pytest.raises(InputError, match=r"both.h5ad: obs: .*'slide'.* different ones"):
        cohort.read("h5ad", tmp_path / "data", samples=told)
    both.obs = both.obs[[]]
    both.write_h5ad(path)
    with pytest.raises(InputError, match="several libraries .*no column of obs says"):
        cohort.read("h5ad", tmp_path / "data", samples=told)


def test_an_image_beside_anndata_is_the_full_one(tmp_path):
    write_h5ad(tmp_path / "S1.h5ad")
    Image.fromarray(np.full((320, 330, 3), 200, np.uint8)).save(tmp_path / "S1.png")
    with pytest.raises(InputError, match="mpp: is not known"):
        cohort.read("h5ad", tmp_path, samples=pd.DataFrame(
            [{"section": "S1", "study": "T", "patient": "P"}]))
    section = cohort.read("h5ad", tmp_path, samples=pd.DataFrame(
        [{"section": "S1", "study": "T", "patient": "P", "mpp": "0.5"}]))["S1"]
    assert section.image_size == (330, 320) and section.mpp == 0.5
    assert section.centers.min() == 60


@pytest.mark.parametrize("columns, options", [
    ("Patient ID,OS_MONTHS,OS_STATUS", {"patient": "Patient ID", "time": "OS_MONTHS",
                                        "event": "OS_STATUS", "unit": "months"}),
    ("bcr_patient_barcode,OS.time,OS", {"patient": "bcr_patient_barcode", "time": "OS.time",
                                        "event": "OS", "unit": "days"}),
    ("id,days,censorship", {"patient": "id", "time": "days", "event": None,
                            "censorship": "censorship", "unit": "days"})])
def test_a_table_of_outcomes_is_known_by_its_columns(tmp_path, params, capsys, columns, options):
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"P{k},{k + 1},{k % 2}" for k in range(40)]
    (data / "o.csv").write_text("\n".join([columns, *rows]) + "\n")
    status, said, _ = doctor(data, capsys)
    assert status == 0 and "o.csv: os" in said and "40 patients, 20 events" in said
    assert profile(data, params) == 0
    given = workflow.read_params(params / "mine", "09_survival")
    assert given["columns"] == options | {"file": "o.csv", "covariates": []}


def test_the_profile_of_the_recipe_section_runs_to_its_figures(tmp_path, params, capsys):
    data = tmp_path / "data"
    data.mkdir()
    make_input.section(data)
    assert profile(data, params) == 0
    said = capsys.readouterr().out
    assert "4 sections" in said and "fill in study, patient, mpp" in said
    fill(params / "mine/samples.csv", study="S", patient=["a", "a", "b", "b"], mpp="1.5625")
    run_profile(params / "mine", data, tmp_path / "out", leave_out=("06_spatial_maps",))
    summary = artifacts.read_csv(tmp_path / "out/figures/mine/05_expression/summary.csv")
    assert set(summary["protocol"]) == {"patient", "section"}  # one study: no other to leave out
    left = artifacts.read_csv(tmp_path / "out/runs/mine/expression/left_out.csv")
    assert set(left["protocol"]) == {"loso"}
    whole = summary[(summary["program"] == "all") & (summary["metric"] == "pcc")]
    r = whole.set_index(["protocol", "encoder", "control"])["mean"]
    # Expression is planted in the tissue: colour and texture find it, shuffled features do not.
    assert r["patient", "handmade", "none"] > 0.1 > abs(r["patient", "handmade", "permuted"])


@pytest.mark.parametrize("recipe", ["section", "slides", "outcomes", "genes", "encoder"])
def test_recipe_pages_are_short_and_their_profiles_fit(recipe, tmp_path):
    page = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 25
    assert f"make figures PARAMS=params/recipes PROFILE={recipe}" in page
    workflow.prepare(workflow.Call(recipe, str(tmp_path), 0, str(RECIPES)))


@pytest.mark.slow
@pytest.mark.parametrize("recipe, needs, shown", [
    ("section", "section", "05_expression/summary.csv"),
    ("genes", "section", "05_expression/summary.csv"),
    ("slides", "slides", "07_classification/summary.csv"),
    ("outcomes", "outcomes", "09_survival/summary.csv")])
def test_recipe_runs(recipe, needs, shown, tmp_path):
    (tmp_path / "data").mkdir()
    assert make_input.main([needs, str(tmp_path / "data")]) == 0
    run_profile(RECIPES / recipe, tmp_path / "data", tmp_path / "out")
    table = artifacts.read_csv(tmp_path / "out/figures" / recipe / shown)
    assert len(table)
    if recipe == "genes":
        scores = pd.concat(map(artifacts.read_csv, (tmp_path / "out").rglob("scores.csv")))
        wanted = artifacts.read_csv(RECIPES / "genes/my_genes.csv")["gene"]
        assert set(scores["gene"]) == set(wanted)


def write_segmented(root, squares=(4, 3), per_square=2, mpp=0.5, spot_um=100.0):
    """Cells of Space Ranger 4: `per_square` in each square of 100 um, counts known."""
    folder = root / "segmented_outputs"
    (folder / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(0)
    centres, owner = [], []
    for square in np.ndindex(*squares):
        for _ in range(per_square):
            um = (np.array(square) + rng.uniform(0.2, 0.8, 2)) * spot_um
            centres.append(um / mpp)
            owner.append(square)
    counts = rng.poisson(9.0, (len(centres), 4))
    outline = np.array([[-4, -4], [4, -4], [4, 4], [-4, 4], [-4, -4]])
    (folder / "cell_segmentations.geojson").write_text(json.dumps({
        "type": "FeatureCollection", "features": [
            {"type": "Feature", "properties": {"cell_id": k + 1}, "geometry": {
                "type": "Polygon", "coordinates": [(outline + centre).tolist()]}}
            for k, centre in enumerate(centres)]}))
    write_10x_h5(folder / "filtered_feature_cell_matrix.h5", counts,
                 [f"cellid_{k + 1:09d}-1" for k in range(len(centres))], ["A", "B", "C", "D"])
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps({
        "microns_per_pixel": mpp, "tissue_hires_scalef": 0.5}))
    size = (int(squares[0] * spot_um / mpp / 2), int(squares[1] * spot_um / mpp / 2))
    Image.new("RGB", size, (200, 150, 180)).save(folder / "spatial/tissue_hires_image.png")
    return counts, owner


def test_segmented_cells_become_pseudo_spots(tmp_path, capsys):
    counts, owner = write_segmented(tmp_path / "S1")
    status, said, _ = doctor(tmp_path, capsys)
    assert status == 0 and "source segmented" in said
    section = cohort.read("segmented", tmp_path)["S1"]
    adata = section.adata
    # A reduced image at 1 um/px: the centre of square (x, y) is at 100 (x, y) + 50 px.
    assert section.mpp == 1.0
    for k, place in enumerate(adata.obsm["spatial"]):
        square = tuple(((place - 50) / 100).round().astype(int))
        np.testing.assert_allclose(place, np.array(square) * 100 + 50)
        mine = [at for at, other in enumerate(owner) if other == square]
        np.testing.assert_array_equal(adata.layers["counts"][k].toarray().ravel(),
                                      counts[mine].sum(axis=0))
    assert adata.n_obs == 12
    path = tmp_path / "S1/segmented_outputs/cell_segmentations.geojson"
    cells = json.loads(path.read_text())
    path.write_text(json.dumps(cells | {"features": cells["features"][1:]}))
    with pytest.raises(InputError, match="cell_id: lacks 1 of 24 cells, the first is 'cellid_0"):
        len(cohort.read("segmented", tmp_path)["S1"].adata)
