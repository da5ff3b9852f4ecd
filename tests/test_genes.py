"""Panels and targets against closed forms and a second way of computing them."""

import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from mvhlib.artifacts import InputError
from mvhlib.cohort import genes


def section(counts, names, dense=False) -> anndata.AnnData:
    counts = np.asarray(counts)
    adata = anndata.AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(len(counts))]),
                            var=pd.DataFrame(index=pd.Index(names)))
    adata.layers["counts"] = counts if dense else sparse.csr_matrix(counts)
    return adata


def simulated(seed: int, n_genes: int = 300, n_spots: int = 80) -> anndata.AnnData:
    """Negative-binomial genes; every tenth varies far more than its mean explains."""
    rng = np.random.default_rng(seed)
    mean = np.exp(np.random.default_rng(9).uniform(-1, 3, n_genes))
    size = np.where(np.arange(n_genes) % 10 == 0, 0.4, 20.0)
    counts = rng.poisson(rng.gamma(size, mean / size, (n_spots, n_genes)))
    return section(counts, [f"G{i:03d}" for i in range(n_genes)])


def test_hvg_finds_the_genes_that_vary():
    panel = genes.panel("hvg", [simulated(1), simulated(2)], 30, min_spots=0.0)
    planted = {f"G{i:03d}" for i in range(0, 300, 10)}
    assert len(planted & set(panel)) >= 24  # 3 would be there by chance
    assert len(panel) == 30 == len(set(panel))


def test_hvg_of_one_section_is_scanpys():
    import scanpy as sc

    adata = simulated(1)
    work = anndata.AnnData(adata.layers["counts"].astype(np.float32), var=adata.var)
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    table = sc.pp.highly_variable_genes(work, flavor="seurat", inplace=False)
    expected = pd.Series(table["dispersions_norm"].to_numpy(), adata.var_names)
    expected = expected.sort_values(ascending=False).index[:25]
    panel = genes.panel("hvg", [adata], 25, min_spots=0.0)
    assert set(panel) == set(expected) and panel[:5] == list(expected[:5])


def test_offsets_between_sections_do_not_make_a_gene_variable():
    first, second = simulated(1), simulated(2)
    for adata, level in ((first, 1.0), (second, 15.0)):  # Poisson in each, only the levels differ
        counts = adata.layers["counts"].toarray()
        counts[:, 5] = np.random.default_rng(0).poisson(level, adata.n_obs)
        adata.layers["counts"] = sparse.csr_matrix(counts)
    pooled = section(np.vstack([adata.layers["counts"].toarray() for adata in (first, second)]),
                     first.var_names)
    assert "G005" in genes.panel("hvg", [pooled], 60, min_spots=0.0)  # what would go wrong
    assert "G005" not in genes.panel("hvg", [first, second], 60, min_spots=0.0)


@pytest.mark.parametrize("name", genes.COMPUTED)
def test_panels_are_deterministic_and_blind_to_spot_order(name):
    sections = [simulated(1), simulated(2)]
    shuffled = [adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
                for adata in reversed(sections)]
    first = genes.panel(name, sections, 40)
    assert first == genes.panel(name, sections, 40)
    assert set(first) == set(genes.panel(name, shuffled, 40))


def test_panels_of_overlapping_folds_are_the_same_with_a_memory():
    sections, memory = [simulated(k) for k in range(4)], {}
    for train in ([0, 1, 2], [1, 2, 3], [0, 3]):
        for name in genes.COMPUTED:
            for available in (None, sections[0].var_names[:80]):
                given = [sections[k] for k in train]
                assert (genes.panel(name, given, 30, available=available, memory=memory)
                        == genes.panel(name, given, 30, available=available))
    assert len(memory) == 8  # four sections, all genes or those that are available


def test_hmhvg_equals_raising_m():
    sections = [simulated(3), simulated(4)]
    names = list(sections[0].var_names)
    for index, label in ((0, "MT-CO1"), (10, "RPS6"), (20, "RPL3"), (30, "mt-Nd1")):
        names[index] = label
    for adata in sections:
        adata.var_names = names
    n = 35
    panel = genes.panel("hmhvg", sections, n, min_spots=0.0)
    assert not any(gene.upper().startswith(("MT-", "RPS", "RPL")) for gene in panel)

    # The recipe word by word: with 300 genes the top 2,000 of each section are all of them.
    values = np.vstack([genes.normalize(adata.layers["counts"].toarray()) for adata in sections])
    keep = [i for i, gene in enumerate(names)
            if not gene.upper().startswith(("MT-", "RPS", "RPL"))]
    by_mean = sorted(keep, key=lambda i: -values[:, i].astype(float).mean())
    by_std = sorted(keep, key=lambda i: -values[:, i].astype(float).std())
    m = n
    while len(chosen := set(by_mean[:m]) & set(by_std[:m])) < n:
        m += 1
    before = set(by_mean[:m - 1]) & set(by_std[:m - 1])
    assert {names[i] for i in before} <= set(panel) <= {names[i] for i in chosen}
    assert len(panel) == n


def test_heg_weighs_sections_alike():
    names = ["A", "B", "C"]
    many = section(np.tile([1, 10, 5], (90, 1)), names)
    few = section(np.tile([200, 1, 5], (3, 1)), names)
    # Mean of the two sections: A (6.4 + 9.2) / 2, C (8.1 + 5.5) / 2, B (8.7 + 3.9) / 2; pooled
    # spots would put B first.
    assert genes.panel("heg", [many, few], 3) == ["A", "C", "B"]
    assert genes.panel("heg", [many], 3) == ["B", "C", "A"]


def test_rare_genes_do_not_qualify(caplog):
    counts = np.full((20, 3), 4)
    counts[1:, 2] = 0  # found in one spot of twenty
    counts[:, 1] = np.arange(20) + 1
    panel = genes.panel("heg", [section(counts, ["A", "B", "C"])], 3, min_spots=0.1)
    assert set(panel) == {"A", "B"} and "2 genes qualify" in caplog.text
    caplog.clear()
    memory = {}
    for _ in range(3):  # as for three folds of one cohort
        genes.panel("heg", [section(counts, ["A", "B", "C"])], 3, memory=memory)
    assert caplog.text.count("genes qualify") == 1


def test_only_shared_genes_and_no_controls():
    first = section(np.full((10, 4), 3), ["A", "B", "C", "NegControlProbe_1"])
    second = section(np.full((10, 4), 3), ["B", "NegControlProbe_1", "D", "A"])
    assert set(genes.panel("heg", [first, second], 9)) == {"A", "B"}
    assert set(genes.panel("heg", [first, second], 9, available=["B", "Z"])) == {"B"}


def test_no_shared_gene_is_an_error(tmp_path):
    human, mouse = section(np.ones((5, 2)), ["ERBB2", "EPCAM"]), section(
        np.ones((5, 2)), ["ENSMUSG1", "ENSMUSG2"])
    for name in ("hvg", "heg", "markers_breast"):
        with pytest.raises(InputError, match="share none"):
            genes.panel(name, [human, mouse])
    with pytest.raises(InputError, match=r"markers\.csv: gene: none of its"):
        genes.panel("markers_liver", [mouse])
    with pytest.raises(InputError, match="none was given"):
        genes.panel("hvg", [])
    with pytest.raises(InputError, match="markers_colorectal"):
        genes.panel("hgv", [human])
    with pytest.raises(InputError, match="does not exist"):
        genes.panel(str(tmp_path / "mine.csv"), [human])


def test_marker_panels_list_what_is_absent(tmp_path):
    adata = section(np.ones((5, 3)), ["ERBB2", "EPCAM", "OTHER"])
    panel = genes.panel("markers_breast", [adata])
    assert set(panel) == {"ERBB2", "EPCAM"}
    assert "ESR1" in panel.absent and "ERBB2" not in panel.absent
    assert "ESR1" in repr(panel)
    again = pickle.loads(pickle.dumps(panel))
    assert again == panel and again.absent == panel.absent and again.name == panel.name
    path = tmp_path / "mine.csv"
    path.write_text("gene\nOTHER\nNA\nOTHER\n")
    mine = genes.panel(str(path), [adata])
    assert mine == ["OTHER"] and mine.absent == ["NA"]


def test_all_and_the_table_of_panels():
    first = section(np.ones((4, 3)), ["B", "A", "BLANK_1"])
    second = section(np.ones((4, 2)), ["A", "B"])
    panel = genes.panel("all", [first, second], 1)
    assert panel == ["B", "A"]
    table = genes.concat([genes.frame(panel, "all", "loso", "s1"),
                          genes.frame(["C"], "heg", "loso", "s2")])
    assert list(table.columns) == ["panel", "protocol", "fold", "rank", "gene"]
    assert table["rank"].tolist() == [1, 2, 1] and table["gene"].tolist() == ["B", "A", "C"]
    assert list(genes.concat([]).columns) == list(table.columns)


def test_marker_file_is_sound():
    table = pd.read_csv(genes.MARKERS, keep_default_na=False)
    assert list(table.columns) == ["list", "gene", "source"]
    assert not table.duplicated(["list", "gene"]).any()
    assert genes.marker_lists() == ["markers_breast", "markers_colorectal", "markers_liver"]
    assert table["source"].str.contains(r"\(20\d\d\)").all()
    assert (table.groupby("list").size() >= 20).all()


@pytest.mark.parametrize("as_sparse", [False, True])
def test_normalize_closed_forms(as_sparse):
    counts = np.array([[1, 3, 0], [0, 0, 0], [50, 25, 25]])
    given = sparse.csr_matrix(counts) if as_sparse else counts

    def values(*args, **options):
        found = genes.normalize(given, *args, **options)
        assert found.dtype == np.float32 and sparse.issparse(found) == as_sparse
        return found.toarray() if as_sparse else found

    np.testing.assert_allclose(values("log1p"), np.log(1 + counts), rtol=1e-6)
    share = np.array([[0.25, 0.75, 0], [0, 0, 0], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(values(), np.log(1 + 1e4 * share), rtol=1e-6)
    np.testing.assert_allclose(values("mmap"), np.log10(1 + 1e4 * share), rtol=1e-6)
    library = np.array([8, 1, 1000])
    np.testing.assert_allclose(values("log1p_cp10k", library),
                               np.log(1 + 1e4 * counts / library[:, None]), rtol=1e-6)
    np.testing.assert_allclose(values("mmap", library), values("mmap"))
    with pytest.raises(InputError, match="log1p_cp10k"):
        genes.normalize(given, "cpm")
    with pytest.raises(InputError, match="library"):
        genes.normalize(given, library=np.ones(2))


@pytest.mark.parametrize("dense", [False, True])
def test_targets_use_the_library_of_all_genes(dense):
    adata = section([[1, 2, 7], [4, 0, 6]], ["A", "B", "C"], dense)
    np.testing.assert_allclose(genes.targets(adata, ["C", "A"]),
                               np.log1p(1e3 * np.array([[7, 1], [6, 4]])), rtol=1e-6)
    np.testing.assert_allclose(genes.targets(adata, ["B", "A"], "mmap"),
                               np.log10(1 + 1e4 * np.array([[2 / 3, 1 / 3], [0, 1]])), rtol=1e-6)
    with pytest.raises(InputError, match="lacks"):
        genes.targets(adata, ["Z"])


def test_real_panels(shared):
    from mvhlib import cohort

    found = cohort.read("her2st", shared / "data" / "her2st", sections=["C2", "C3"], images=False)
    adatas = [part.adata for part in found]
    panels = {name: genes.panel(name, adatas, 200) for name in genes.COMPUTED}
    for panel in panels.values():
        assert len(panel) == 200
        assert all(gene in adata.var_names for gene in panel for adata in adatas)
    # The tumour is HER2-positive and the tissue full of plasma cells: both must be seen.
    assert "ERBB2" in panels["heg"][:20] and "IGKC" in panels["heg"][:20]
    assert {"ERBB2", "EPCAM", "CD68"} <= set(genes.panel("markers_breast", adatas))
    mean = {name: genes.targets(adatas[0], panel).mean() for name, panel in panels.items()}
    assert mean["heg"] > mean["hmhvg"] > mean["hvg"]


def test_a_users_list_is_read_strictly(tmp_path):
    counts = np.ones((4, 3), int)
    adata, path = section(counts, ["NA", "1e5", "HLA-A"]), tmp_path / "mine.csv"
    for content in ("gene\nNA\n1e5\nHLA-A\n",
                    '"","gene"\n"1","NA"\n"2","1e5"\n"3","HLA-A"\n',
                    "list;gene\na;NA\na; 1e5\nb;HLA-A\n"):
        path.write_text(content)
        assert genes.panel(str(path), [adata]) == ["NA", "1e5", "HLA-A"]
    for content, said in (("gene,x\nNA,1\n,2\n", "gene: row 3 is blank"),
                          ("gene\n2-Sep\n", "row 2 is '2-Sep' a date"),
                          ("gene\nMar-01\n", "a date"), ("", "is empty"), ("Gene\na\n", "'Gene'"),
                          ("gene\nzz\n", "none of its 1 genes")):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            genes.panel(str(path), [adata])
