"""Several data sets as one cohort."""

import numpy as np
import pandas as pd
import pytest

from mvhlib import workflow
from mvhlib.artifacts import InputError, write_csv
from mvhlib.cohort import base, read, synthetic
from mvhlib.expression import evaluation
from mvhlib.places import home


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two small runs side by side; the second names its genes as another species would."""
    root = tmp_path_factory.mktemp("two sets")
    for role, place in (("evaluation", "human"), ("pretraining", "mouse")):
        made = synthetic.make_cohort(root / place, role=role, n_studies=1, patients_per_study=2,
                                     sections_per_patient=1, spots_per_side=4,
                                     n_genes_per_program=2)
        for section in made:
            if place == "mouse":
                section.adata.var_names = [f"ENS{i:03d}.7" for i in range(section.adata.n_vars)]
            base.write_section(section, root / place)
        write_csv(root / place / "manifest.csv", made.manifest)
    names = list(made["U1P1A"].adata.var_names)
    human = base.read_section(root / "human" / "S1P1A.h5ad").adata.var_names
    table = pd.DataFrame({"gene": [n.split(".")[0] for n in names[:5]], "symbol": human[:5]})
    table.to_csv(root / "table.csv", index=False)
    return root


def sources(root, **mouse):
    return [{"source": "run", "path": "human"},
            {"source": "run", "path": "mouse", "symbols": str(root / "table.csv")} | mouse]


def test_two_sets_meet_on_the_genes_of_the_table(two, tmp_path):
    cohort = read("joined", two, sources=sources(two))
    assert list(cohort.sections) == ["S1P1A", "S1P2A", "U1P1A", "U1P2A"]
    mouse, human = cohort["U1P1A"].adata, cohort["S1P1A"].adata
    assert list(mouse.var_names[:6]) == [*human.var_names[:5], "ENS005.7"]
    # What has no orthologue stays: libraries are whole.
    alone = read("run", two / "mouse")["U1P1A"].adata
    np.testing.assert_array_equal(mouse.layers["counts"].toarray(),
                                  alone.layers["counts"].toarray())
    panels = evaluation.choose_panels(cohort, ["transfer"], ["all"], 0)
    assert set(panels["gene"]) == set(human.var_names[:5])
    # The image is found from the common directory, by the run's copy as well.
    again = base.read_section(base.write_section(cohort["U1P1A"], tmp_path), data=two)
    np.testing.assert_array_equal(again.image(1), read("run", two / "mouse")["U1P1A"].image(1))


def test_upper_case_and_two_genes_of_one_name(two):
    cohort = read("joined", two, sources=sources(two, symbols="upper"))
    assert list(cohort["U1P2A"].adata.var_names[:2]) == ["ENS000.7", "ENS001.7"]
    table = pd.read_csv(two / "table.csv")
    table.loc[1, "symbol"] = "ENS009.7"  # the name that another gene has
    table.to_csv(two / "clash.csv", index=False)
    cohort = read("joined", two, sources=sources(two, symbols=str(two / "clash.csv")))
    with pytest.raises(InputError, match="stands more than once"):
        cohort["U1P1A"].adata  # noqa: B018


@pytest.mark.parametrize(("change", "field"), [
    ({"symbols": "lower"}, "symbols"), ({"symbol": "upper"}, "sources"), ({"path": "rat"}, "data"),
    ({"symbols": "twice.csv"}, "symbol"), ({"path": "human"}, "section")])
def test_sources_that_are_refused(two, change, field):
    if change.get("symbols") == "twice.csv":
        pd.DataFrame({"gene": ["a", "b"], "symbol": ["x", "x"]}).to_csv(two / "twice.csv")
        change = {"symbols": str(two / "twice.csv")}
    with pytest.raises(InputError) as caught:
        read("joined", two, sources=sources(two, **change))
    assert caught.value.field == field


@pytest.mark.parametrize(("text", "field"), [
    ("gene,symbol\nENS000,A\n,B\n", "gene"), ("gene,symbol\nENS000,A\nENS001,\n", "symbol"),
    ("gene,symbol\nENS000,A\nENS000 ,B\n", "gene"), ("gene,symbol\nENS000,A\nENS001,A\n", "symbol"),
    ("gene,symbol\nENS000.1,A\nENS000.2,B\n", "gene"), ("gene\nENS000\n", "columns"),
    ("gene,symbol\nENS000,A,x\n", "row 2"), ("gene,symbol\n", "rows"), ("", "file"),
    ("gene,gene,symbol\na,b,c\n", "columns")])
def test_orthologues_that_are_refused(two, tmp_path, text, field):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read("joined", two, sources=sources(two, symbols=str(tmp_path / "t.csv")))
    assert caught.value.field == field and "\n" not in str(caught.value)


def test_orthologues_as_spreadsheets_write_them(two, tmp_path):
    """Semicolons, a byte order mark, blanks at the ends; a gene called NA is a gene."""
    (tmp_path / "t.csv").write_text("\ufeffgene;symbol\nENS000 ;ACTB\nENS001; NA\n")
    cohort = read("joined", two, sources=sources(two, symbols=str(tmp_path / "t.csv")))
    assert list(cohort["U1P1A"].adata.var_names[:3]) == ["ACTB", "NA", "ENS002.7"]


@pytest.mark.parametrize("given", [
    [], None, "human", {"source": "run", "path": "human"}, ["human"], [{"source": "run"}],
    [{"source": 7, "path": "human"}], [{"source": ["run"], "path": "human"}],
    [{"source": "run", "path": 7}], [{"source": "run", "path": ""}],
    [{"source": "run", "path": "../human"}], [{"source": "run", "path": "/tmp"}],
    [{"source": "run", "path": "human", "options": "all"}],
    [{"source": "run", "path": "human", "options": {7: 1}}],
    [{"source": "run", "path": "human", "options": {"sections": "S1P1A"}}],
    [{"source": "run", "path": "human", "symbols": 7}],
    [{"source": "joined", "path": "human"}], [{"source": "synthetic", "path": "human"}]])
def test_sources_of_another_form(two, given):
    with pytest.raises(InputError) as caught:
        read("joined", two, sources=given)
    assert "\n" not in str(caught.value)


def test_two_sources_with_one_section(two):
    with pytest.raises(InputError, match="'S1P1A' is a section of source 1") as caught:
        read("joined", two, sources=sources(two, path="human", symbols=""))
    assert "human" in caught.value.problem


def test_the_profile_reads_real_files(shared):
    """One section of each: they share the orthologues of the profile's table, and nothing else."""
    given = workflow.read_params(home() / "params" / "her2st_mob", "01_cohort")["options"]
    few = [entry | {"options": {"sections": [name], "images": False}}
           for entry, name in zip(given["sources"], ["C1", "MOB1"], strict=True)]
    cohort = read("joined", shared / "data", sources=few)
    genes = [set(section.adata.var_names) for section in cohort]
    table = pd.read_csv(home() / "params/her2st_mob/orthologues.csv")
    assert genes[0] & genes[1] == set(table["symbol"])
