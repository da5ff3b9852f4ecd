"""The lists of packages agree, and the tree keeps to its own rules."""

import json
import re
import subprocess
import tomllib
from urllib.parse import unquote

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from mvhlib import doctor, lineage, results
from mvhlib.artifacts import read_csv, sha256_file
from mvhlib.places import home

ROOT = home()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch"}


def specifiers(requirements):
    return {CONDA_NAMES.get(r.name, r.name): str(r.specifier)
            for r in map(Requirement, requirements)}


def conda(path):
    lines = [line for line in yaml.safe_load((ROOT / path).read_text())["dependencies"]
             if isinstance(line, str)]
    parsed = {name: spec.strip() for name, _, spec in (line.partition(" ") for line in lines)}
    assert parsed.pop("python") == PROJECT["requires-python"]
    parsed.pop("pip")
    return parsed


def same(a, b):
    return {k: set(filter(None, v.split(","))) for k, v in a.items()} == {
        k: set(filter(None, v.split(","))) for k, v in b.items()}


def test_environments_equal_pyproject():
    gpu = specifiers(PROJECT["optional-dependencies"]["gpu"])
    assert same(conda("environment-cpu.yml"), specifiers(PROJECT["dependencies"]))
    assert same(conda("environment.yml"), specifiers(PROJECT["dependencies"]) | gpu)
    for name in ("environment.yml", "environment-cpu.yml"):
        assert "Not solved" in (ROOT / name).read_text()


def test_constraints_meet_pyproject():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = Version(version)
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        assert pins[requirement.name] in requirement.specifier, requirement


def tracked():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode or not listing.stdout.strip():
        pytest.skip("not a git checkout with files")
    return [ROOT / line for line in listing.stdout.splitlines()]


def test_no_module_without_a_subject():
    refused = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [p for p in tracked() if p.name in refused]


def test_what_is_committed_is_small_and_shows_no_tissue():
    files = [p for p in tracked() if p.exists()]
    figures = [p for p in files if p.is_relative_to(ROOT / "figures")]
    assert not [p for p in figures if ".tissue." in p.name]
    assert not [p for p in figures if p.stat().st_size > 500_000]
    assert sum(p.stat().st_size for p in figures) < 20e6


def test_committed_tables_are_those_that_their_runs_wrote():
    figures, written = ROOT / "figures", {}
    for path in tracked():
        if path.suffix in lineage.KINDS and path.is_relative_to(figures):
            profile, *inside = path.relative_to(figures).parts
            if len(inside) > 1:
                written.setdefault(profile, []).append("/".join(inside))
    assert len(written) > 10
    for profile, names in written.items():
        assert lineage.unlike(figures / profile, names) == [], profile


def test_every_link_of_a_committed_gallery_leads_somewhere():
    files = set(tracked())
    pages = [p for p in files if p.name == "FIGURES.md"]
    assert len(pages) >= 7
    for page in pages:
        links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        assert links and not [link for link in links if page.parent / link not in files], page


def test_library_and_notebooks_name_no_folder_of_one_machine():
    folders = ("mvhlib", "notebooks", "params", "workflow")
    for path in tracked():
        if path.exists() and path.relative_to(ROOT).parts[0] in folders:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"/(home|root|work|tmp)/|MVH_SHARED|\.\./shared", text), path


def test_doctor_finds_what_every_notebook_needs():
    lines, healthy = doctor.report()
    assert healthy
    for name in doctor.NEEDS:
        assert any(f" {name} " in line for line in lines), name


def test_doctor_says_what_to_do_and_never_fails(monkeypatch, tmp_path):
    def refuse(name):
        raise {"torch": OSError("libc10.so:\nno such file"),
               "squidpy": ModuleNotFoundError("no", name="dask")}.get(
                   name, ModuleNotFoundError("no", name=name))

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    monkeypatch.setattr(doctor, "_compute", lambda: 1 / 0)
    monkeypatch.setenv("MVH_HOME", str(tmp_path / "nowhere"))
    lines, healthy = doctor.report()
    text = "\n".join(lines)
    assert not healthy and all("\n" not in line for line in lines)
    for said in ("✗ torch broken (OSError)", "it said: OSError: libc10.so: no such file",
                 "✗ squidpy missing, it needs dask", "ZeroDivisionError", "0 notebooks",
                 "set MVH_HOME to the clone"):
        assert said in text, said


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_numbers_of_pages_are_those_of_the_committed_tables(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert results.fill(text, ROOT, page) == text, "run python -m mvhlib.results " + page


def test_links_of_pages_lead_somewhere():
    broken = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = unquote(link.split("#")[0])
            if target and not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
        for name in re.findall(r"`((?:tests|mvhlib|benchmarks|params|workflow)/[\w./-]+)`", text):
            if "/mine" not in name and not (ROOT / name).exists():
                broken.append(f"{page.relative_to(ROOT)}: {name}")
    assert not broken, broken


def test_a_group_leader_reads_the_readme_in_minutes():
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert sum(bool(re.search(r"\w", word)) for word in text.split()) < 900


def test_benchmark_numbers_are_those_of_the_committed_table():
    table = read_csv(ROOT / "benchmarks/backbones.csv").set_index(["what", "baseline", "candidate"])
    what = "selective scan forward+backward B16 D384 L257 N16"
    text = (ROOT / "benchmarks/README.md").read_text()
    for candidate in ("torch", "native"):
        ratio = table.loc[(what, "published loop", candidate), "ratio"]
        assert f"| {ratio:,.0f} |" in text


def test_pretraining_numbers_are_those_of_the_committed_table():
    table = read_csv(ROOT / "benchmarks/dino.csv").set_index("what")
    page = (ROOT / "benchmarks/README.md").read_text()
    for side, said in (("64 + 32", "{:,.0f} images a second at 64 px ({:.1f} times"),
                       ("256 + 112", "{:.0f} at 256 px ({:.1f} times)")):
        row = table.loc[f"augmentation of an image, {side} px"]
        assert said.format(1 / row["candidate_s"], row["ratio"]) in page
    steps = [8 / table.loc[f"{name}_small_patch16_256: whole step", "candidate_s"]
             for name in ("vit12", "mvhybrid")]
    assert "{:.1f} images a second with ViT12 and {:.1f} with MVHybrid".format(*steps) in page
    days = table[table.index.str.startswith("mvhybrid_small_patch16_256: the published")]["note"]
    assert days.iloc[0].split(" days")[0] + " days" in page


def test_retrieval_numbers_are_those_of_the_committed_table():
    table = read_csv(ROOT / "benchmarks/retrieval.csv").set_index(["what", "candidate"])
    text = (ROOT / "benchmarks/README.md").read_text()
    for n in (10_000, 100_000, 1_000_000):
        for kind in ("cells", "ivf", "hnsw"):
            if (f"{n} vectors, one query, p50", kind) not in table.index:
                continue
            p50, p99, many, built = (
                table.loc[(f"{n} vectors, {what}", kind)] for what in
                ("one query, p50", "one query, p99", "512 queries at once, per query", "building"))
            recall, change = re.search(r"recall@50 (\S+), change in PCC (\S+)",
                                       p50["note"]).groups()
            assert (f"| {n:,} | {kind} | {1e3 * p50['candidate_s']:.2g} | {p50['ratio']:.1f} | "
                    f"{1e3 * p99['candidate_s']:.2g} | {many['ratio']:.1f} | {float(recall):.3f} | "
                    f"{change} | {built['candidate_s']:.2g} s |") in text


def test_ridge_numbers_are_those_of_the_committed_table():
    table = read_csv(ROOT / "benchmarks/ridge.csv")
    text = (ROOT / "benchmarks/README.md").read_text()
    baselines = ["sklearn Ridge(cholesky) refitted, float32",
                 "sklearn Ridge(cholesky) refitted, float64", "one eigendecomposition per fold"]
    folds = table[table["baseline"].isin(baselines)]
    for what, rows in folds.groupby("what", sort=False):
        spots, genes = (int(n) for n in re.search(r"(\d+) spots, (\d+) genes", what).groups())
        ratios = rows.set_index("baseline").loc[baselines, "ratio"]
        cells = " | ".join(f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" for ratio in ratios)
        assert f"| {spots:,} x {genes:,} | {cells} |" in text


def test_committed_figures_agree_with_their_provenance():
    records = [p for p in tracked() if p.is_relative_to(ROOT / "figures") and p.suffix == ".json"]
    for path in records:
        record = json.loads(path.read_text())
        if "data_sha256" in record:
            assert sha256_file(path.with_suffix(".csv")) == record["data_sha256"], path
