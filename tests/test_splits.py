"""Folds: properties over random manifests, and what has to be refused."""

import numpy as np
import pandas as pd
import pytest

from mvhlib.artifacts import InputError
from mvhlib.cohort import splits


def random_manifest(seed: int) -> pd.DataFrame:
    """Studies of patients of specimens of sections, in random numbers, shuffled."""
    rng = np.random.default_rng(seed)
    rows = []
    for study in range(rng.integers(2, 6)):
        for patient in range(rng.integers(1, 5)):
            for specimen in range(rng.integers(1, 3)):
                for section in range(rng.integers(1, 4)):
                    who = f"s{study}p{patient}"
                    rows.append({"section": f"{who}b{specimen}n{section}", "study": f"s{study}",
                                 "patient": who, "specimen": f"{who}b{specimen}",
                                 "has_image": bool(rng.random() < 0.8), "mpp": 0.5})
    table = pd.DataFrame(rows)
    # Two studies with images at least, so that every protocol but section is possible.
    for study in ("s0", "s1"):
        table.loc[table.index[table["study"] == study][0], "has_image"] = True
    return table.sample(frac=1, random_state=int(rng.integers(1 << 30))).reset_index(drop=True)


def sides(folds, manifest, level):
    """Per fold, the units of a level in training and in test."""
    who = manifest.set_index("section")[level] if level != "section" else None
    for fold, rows in folds.groupby("fold"):
        names = [rows.loc[rows["role"] == role, "section"] for role in ("train", "test")]
        yield fold, *(set(n if who is None else who.loc[n]) for n in names)


SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_protocol_separates_its_unit(seed):
    manifest = random_manifest(seed)
    imaged = set(manifest.loc[manifest["has_image"], "section"])
    for protocol, levels in {"loso": ["study", "patient", "specimen"],
                             "patient": ["patient", "specimen"],
                             "hest_bench": ["patient", "specimen"],
                             "random10_section": ["specimen"]}.items():
        folds = splits.make(manifest, protocol, seed=seed)
        assert list(folds.columns) == ["fold", "section", "role"]
        for level in levels:
            for fold, train, test in sides(folds, manifest, level):
                assert train and test, (protocol, fold)
                assert not train & test, (protocol, level, fold)
        # Every imaged section is tested exactly once and stands in every fold once.
        tested = folds.loc[folds["role"] == "test", "section"]
        assert sorted(tested) == sorted(imaged)
        assert set(folds.groupby("fold").size()) == {len(imaged)}
        assert not folds.duplicated(["fold", "section"]).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_section_stays_within_a_patient(seed):
    manifest = random_manifest(seed)
    imaged = manifest[manifest["has_image"]]
    sizes = imaged.groupby("patient").size()
    expected = sizes[sizes >= 2]
    if expected.empty:
        with pytest.raises(InputError, match="two imaged sections"):
            splits.make(manifest, "section")
        return
    folds = splits.make(manifest, "section")
    assert folds["fold"].nunique() == expected.sum()
    who = manifest.set_index("section")["patient"]
    for fold, rows in folds.groupby("fold"):
        patients = set(who.loc[rows["section"]])
        assert len(patients) == 1 and len(rows) == expected[patients.pop()]
        assert (rows["role"] == "test").sum() == 1
        assert fold.endswith("." + rows.loc[rows["role"] == "test", "section"].item())
        assert fold.split(".")[0] == who.loc[rows["section"].iloc[0]]


def test_random_folds_are_even_seeded_and_differ_by_seed():
    manifest = pd.DataFrame([{"section": f"n{i}", "study": f"s{i % 3}", "patient": f"p{i}",
                              "specimen": f"p{i}", "has_image": True} for i in range(37)])
    first = splits.make(manifest, "random10_section", seed=4)
    sizes = first[first["role"] == "test"].groupby("fold").size()
    assert len(sizes) == 10 and sizes.max() - sizes.min() <= 1
    pd.testing.assert_frame_equal(first, splits.make(manifest, "random10_section", seed=4))
    assert not first.equals(splits.make(manifest, "random10_section", seed=5))
    # The same sections in another order are the same folds.
    shuffled = splits.make(manifest.sample(frac=1, random_state=0), "random10_section", seed=4)
    keys = ["fold", "section"]
    pd.testing.assert_frame_equal(first.sort_values(keys, ignore_index=True),
                                  shuffled.sort_values(keys, ignore_index=True))
    # Studies are mixed: that is what the protocol is compared for.
    studies = [len(train & test) for _, train, test in sides(first, manifest, "study")]
    assert min(studies) >= 1


def test_fewer_specimens_than_folds(caplog):
    manifest = random_manifest(0)
    few = manifest[manifest["specimen"].isin(
        manifest.loc[manifest["has_image"], "specimen"].unique()[:3])]
    folds = splits.make(few, "random10_section")
    assert folds["fold"].nunique() == 3
    assert "3 specimens make 3 folds" in caplog.text


def test_spot_folds_partition_every_section():
    manifest = random_manifest(3)
    folds = splits.make(manifest, "random10_spot")
    assert set(folds["role"]) == {"both"} and folds["fold"].nunique() == 10
    assert "neighbouring" in folds.attrs["leak"]
    for n in (7, 10, 187):
        assigned = splits.spot_folds(n, seed=1, section="A1")
        counts = np.bincount(assigned, minlength=10)
        assert counts.sum() == n and counts.max() - counts.min() <= 1
    same = splits.spot_folds(187, seed=1, section="A1")
    np.testing.assert_array_equal(same, assigned)
    assert (same != splits.spot_folds(187, seed=1, section="A2")).any()
    assert (same != splits.spot_folds(187, seed=2, section="A1")).any()


def small() -> pd.DataFrame:
    return pd.DataFrame({"section": ["a1", "a2", "b1", "c1"], "study": ["x", "x", "x", "y"],
                         "patient": ["a", "a", "b", "c"], "specimen": ["a", "a", "b", "c"],
                         "has_image": True, "mpp": [0.5, 0.52, 0.55, 3.2]})


def frame(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["fold", "section", "role"])


@pytest.mark.parametrize(("folds", "unit", "field"), [
    (frame((0, "a1", "train"), (0, "a2", "test")), "patient", "patient"),
    (frame((0, "a1", "train"), (0, "a2", "test")), "specimen", "specimen"),
    (frame((0, "a1", "train"), (0, "b1", "test")), "study", "study"),
    (frame((0, "a1", "train"), (0, "a1", "test")), "section", "section"),
    (frame((0, "a1", "train"), (0, "b1", "train")), "patient", "role"),
    (frame((0, "a1", "train"), (0, "b1", "tset")), "patient", "role"),
    (frame((0, "a1", "train"), (0, "z9", "test")), "patient", "section"),
    (frame((0, "a1", "both"), (0, "c1", "test")), "patient", "role"),
    (frame(), "patient", "fold"),
    (frame((0, "a1", "train"), (0, "b1", "test")), "spot", "role"),
])
def test_check_refuses(folds, unit, field):
    with pytest.raises(InputError) as caught:
        splits.check(folds, small(), unit)
    assert caught.value.field == field


def test_check_accepts_what_is_clean():
    clean = frame((0, "a1", "train"), (0, "a2", "train"), (0, "b1", "test"))
    splits.check(clean, small(), "patient")
    splits.check(frame((0, "a1", "train"), (0, "a2", "test")), small(), "section")


def test_a_patient_of_two_studies_is_caught_by_loso():
    manifest = small()
    manifest.loc[3, "patient"] = "b"
    manifest.loc[3, "specimen"] = "b-other-block"
    with pytest.raises(InputError, match="on both sides") as caught:
        splits.make(manifest, "loso")
    assert caught.value.field == "patient" and "'b'" in caught.value.problem


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
def test_a_specimen_of_two_studies_is_refused(protocol):
    manifest = small()
    manifest.loc[3, ["specimen", "patient"]] = "b"
    with pytest.raises(InputError, match="duplicate") as caught:
        splits.make(manifest, protocol)
    assert caught.value.field == "specimen"


@pytest.mark.parametrize(("change", "field"), [
    ({"patient": [None, "a", "b", "c"]}, "patient"),
    ({"section": ["a1", "a1", "b1", "c1"]}, "section"),
    ({"patient": ["a", "q", "b", "c"]}, "specimen"),
    ({"has_image": False}, "has_image"),
])
def test_broken_manifests(change, field):
    with pytest.raises(InputError) as caught:
        splits.make(small().assign(**change), "patient")
    assert caught.value.field == field


def test_resolution_is_matched_or_left_out_and_said(caplog):
    caplog.set_level("INFO")
    matched = splits.make(small(), "patient").attrs["resolution"]
    assert matched.status == "matched" and matched.mpp == 3.2
    assert "3.2 um/px" in caplog.text and "patient c" in caplog.text
    with pytest.raises(InputError, match="left out"):
        splits.make(small(), "patient", mismatch="leave_out")
    # Within patient a there is nothing to match, whatever patient c was scanned at.
    assert splits.make(small(), "section").attrs["resolution"].status == "comparable"
    near = small().iloc[:3]
    assert splits.make(near, "patient").attrs["resolution"].status == "comparable"


def test_possible_names_reasons():
    reasons = splits.possible(small().iloc[:3])
    assert reasons["patient"] == "" and reasons["section"] == ""
    assert "only ['x']" in reasons["loso"]
    with pytest.raises(InputError, match="not among"):
        splits.make(small(), "losso")


def test_manifest_from_csv(tmp_path):
    path = tmp_path / "manifest.csv"
    small().assign(has_image=[True, True, True, False]).to_csv(path, index=False)
    folds = splits.make(pd.read_csv(path, dtype=str).assign(mpp=1.0), "patient")
    assert set(folds["section"]) == {"a1", "a2", "b1"}


def contaminate(manifest: pd.DataFrame, seed: int, level: str) -> pd.DataFrame:
    """Give an imaged section of one study the patient (and specimen) of one of another study."""
    rng = np.random.default_rng([seed, 7])
    imaged = manifest[manifest["has_image"]]
    source = imaged.sample(1, random_state=int(rng.integers(1 << 30))).iloc[0]
    others = imaged[imaged["study"] != source["study"]]
    target = others.sample(1, random_state=int(rng.integers(1 << 30))).index[0]
    changed = manifest.copy()
    changed.loc[target, "patient"] = source["patient"]
    changed.loc[target, "specimen"] = (source["specimen"] if level == "specimen"
                                       else f"{source['patient']}-elsewhere")
    return changed


@pytest.mark.parametrize("seed", SEEDS)
def test_a_duplicate_in_two_studies_is_refused_anywhere(seed):
    """Whatever the cohort: a specimen that stands in two studies passes no protocol."""
    manifest = contaminate(random_manifest(seed), seed, "specimen")
    for protocol in splits.PROTOCOLS:
        with pytest.raises(InputError) as caught:
            splits.make(manifest, protocol, seed=seed)
        assert caught.value.field == "specimen"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_patient_of_two_studies_never_stands_on_both_sides(seed):
    """Refused by default; left out of training where asked, and the test side stays whole."""
    manifest = contaminate(random_manifest(seed), seed, "patient")
    clean = manifest["patient"].where(manifest["has_image"])
    if manifest.groupby(clean)["study"].nunique().max() < 2:
        pytest.fail("the manifest was not contaminated")
    with pytest.raises(InputError) as caught:
        splits.make(manifest, "loso")
    assert caught.value.field == "patient"
    imaged = manifest[manifest["has_image"]]
    tests = {study: set(own["section"]) for study, own in imaged.groupby("study")}
    try:
        folds = splits.make(manifest, "loso", shared_donors="leave_out")
    except InputError as error:  # a fold may lose its whole training side
        assert error.field == "role" and "no train section" in error.problem
        return
    for fold, train, test in sides(folds, manifest, "patient"):
        assert train and not train & test
        rows = folds[folds["fold"] == fold]
        assert set(rows.loc[rows["role"] == "test", "section"]) == tests[fold]
    # Nothing but the shared patient's sections is lost.
    lost = {(fold, name) for fold in tests for name in set(imaged["section"])
            - set(folds.loc[folds["fold"] == fold, "section"])}
    who = manifest.set_index("section")
    for fold, name in lost:
        assert who.at[name, "patient"] in set(who.loc[list(tests[fold]), "patient"])
        assert who.at[name, "study"] != fold


def test_without_shared_patients_the_option_changes_nothing():
    manifest = random_manifest(1)
    pd.testing.assert_frame_equal(splits.make(manifest, "loso"),
                                  splits.make(manifest, "loso", shared_donors="leave_out"))
    with pytest.raises(InputError, match="refuse or leave_out"):
        splits.make(manifest, "loso", shared_donors="ignore")


@pytest.mark.parametrize("seed", range(20))
def test_given_folds_are_checked(seed):
    """Random halves as a task might state them: passed on if and only if no patient is cut."""
    manifest = random_manifest(seed)
    rng = np.random.default_rng([seed, 9])
    imaged = manifest[manifest["has_image"]].reset_index(drop=True)
    by = "patient" if seed % 2 else "section"
    units = imaged[by].unique()
    tested = set(rng.permutation(units)[:max(1, len(units) // 2)])
    role = np.where(imaged[by].isin(tested), "test", "train")
    given = pd.DataFrame({"fold": 0, "section": imaged["section"], "role": role})
    cut = imaged.groupby("patient")["section"].apply(
        lambda names: given.set_index("section").loc[names, "role"].nunique()).max() > 1
    if cut:
        with pytest.raises(InputError) as caught:
            splits.make(manifest, "hest_bench", given=given)
        assert caught.value.field in ("patient", "specimen")
        return
    folds = splits.make(manifest, "hest_bench", given=given)
    assert list(folds["section"]) == list(given["section"])  # in the task's order
    assert list(folds["fold"].unique()) == ["0"]
    # Other protocols do not look at them.
    pd.testing.assert_frame_equal(splits.make(manifest, "patient", given=given),
                                  splits.make(manifest, "patient"))


def test_given_folds_that_do_not_fit():
    with pytest.raises(InputError, match="lacks"):
        splits.make(small(), "hest_bench", given=pd.DataFrame({"fold": [0], "section": ["a1"]}))
    with pytest.raises(InputError, match="not in the manifest"):
        splits.make(small(), "hest_bench",
                    given=frame((0, "a1", "train"), (0, "z9", "test")))


def test_sizes_by_hand():
    table = small().assign(n_spots=[10, 20, 30, 40])
    found = splits.sizes(splits.make(table, "loso"), table).set_index("fold")
    assert found.loc["x"].to_dict() == {
        "train_sections": 1, "train_patients": 1, "train_studies": 1, "train_spots": 40,
        "test_sections": 3, "test_patients": 2, "test_studies": 1, "test_spots": 60}
    spots = splits.sizes(splits.make(table, "random10_spot"), table.drop(columns="n_spots"))
    assert (spots["train_sections"] == 4).all() and (spots["test_sections"] == 4).all()


def test_hold_out_takes_whole_groups_and_leaves_both_sides():
    rng = np.random.default_rng(0)
    for seed in range(40):
        groups = rng.integers(0, rng.integers(2, 9), size=60).astype(str)
        if len(set(groups)) < 2:
            continue
        held = splits.hold_out(groups, 0.2, seed)
        assert held.any() and not held.all()
        assert not set(groups[held]) & set(groups[~held])
        assert np.array_equal(held, splits.hold_out(groups, 0.2, seed))
    with pytest.raises(InputError, match="two groups"):
        splits.hold_out(["a", "a"], 0.2, 0)


# ---- one group alone against another


@pytest.mark.parametrize("seed", range(20))
def test_transfer_trains_on_one_group_and_tests_another(seed):
    manifest = random_manifest(seed)
    imaged = manifest[manifest["has_image"]]
    of = imaged.groupby("study")["section"].apply(set)
    folds = splits.make(manifest, "transfer")
    assert set(folds["fold"]) == {f"{a}->{b}" for a in of.index for b in of.index if a != b}
    for fold, train, test in sides(folds, manifest, "section"):
        trained_on, tested_on = fold.split("->")
        assert train == of[trained_on] and test == of[tested_on]
        assert set(folds.attrs["measured_in"][fold]) == train | test
    several = imaged.groupby("study")["patient"].nunique()
    several = set(several.index[several > 1])
    if not several:
        with pytest.raises(InputError, match="two patients"):
            splits.make(manifest, "within")
        return
    inside = splits.make(manifest, "within")
    tested = inside.loc[inside["role"] == "test", "section"]
    assert sorted(tested) == sorted(set().union(*(of[name] for name in several)))
    for fold, train, test in sides(inside, manifest, "section"):
        assert train | test == of[fold.split("->")[0]]
        # Every study is tested on this one, so a gene must be measured in all of them.
        assert set(inside.attrs["measured_in"][fold]) == set(imaged["section"])


def organs():
    """Two organs of three studies, one study with one patient."""
    return pd.DataFrame([
        {"section": f"{study}{patient}", "study": study, "patient": f"{study}{patient}",
         "specimen": f"{study}{patient}", "has_image": True}
        for study, n in (("x", 2), ("y", 2), ("z", 1)) for patient in range(n)])


def test_groups_and_pairs_are_the_users(tmp_path, caplog):
    manifest = organs()
    pd.DataFrame({"section": [*manifest["section"], "w0"],
                  "group": ["gut", "gut", "gut", "gut", "liver", "skin"]}).to_csv(
        tmp_path / "groups.csv", index=False)
    found = splits.group_of(manifest, str(tmp_path / "groups.csv"))
    assert list(found) == ["gut"] * 4 + ["liver"]
    assert found.attrs["known"] == ["gut", "liver", "skin"]
    chosen = {"groups": str(tmp_path / "groups.csv"), "pairs": [["gut", "liver"], ["skin", "gut"]]}
    folds = splits.make(manifest, "transfer", **chosen)
    assert set(folds["fold"]) == {"gut->liver"}
    assert "there is no section of ['skin'], so skin->gut is left out" in caplog.text
    # The one group that is tested has one patient: it has no diagonal.
    with pytest.raises(InputError, match="two patients"):
        splits.make(manifest, "within", **chosen)
    assert splits.possible(manifest, ["transfer", "within"], **chosen)["transfer"] == ""
    back = splits.make(manifest, "within", groups=dict(found), pairs=[["liver", "gut"]])
    assert list(dict.fromkeys(back["fold"])) == ["gut->x0", "gut->x1", "gut->y0", "gut->y1"]
    assert set(back.attrs["measured_in"]["gut->x0"]) == set(manifest["section"])
    by_study = splits.make(manifest, "within", pairs=[["z", "x"]])
    assert set(by_study["section"]) == {"x0", "x1"}
    assert set(by_study.attrs["measured_in"]["x->x0"]) == {"x0", "x1", "z0"}


@pytest.mark.parametrize(("options", "field", "problem"), [
    ({"groups": "organ"}, "groups", "neither a column"),
    ({"groups": {"x0": "a"}}, "group", "is not stated"),
    ({"groups": "specimen_kind.csv"}, "file", "does not exist"),
    ({"groups": {n: "a->b" for n in organs()["section"]}}, "group", "holds '->'"),
    ({"groups": {n: "a" for n in organs()["section"]}}, "groups", "only"),
    ({"pairs": [["x", "q"]]}, "pairs", "is not a pair"),
    ({"pairs": [["x"]]}, "pairs", "is not a pair"),
    ({"pairs": [["x", "x"]]}, "pairs", "is not a pair"),
    # A study in both groups is a leak of the laboratory, whatever the organ.
    ({"groups": {n: n[1] for n in organs()["section"]}}, "study", "on both sides")])
def test_groups_that_cannot_be_compared(options, field, problem):
    with pytest.raises(InputError, match=problem) as caught:
        splits.make(organs(), "transfer", **options)
    assert caught.value.field == field


def test_a_donor_of_two_groups_is_refused():
    manifest = organs()
    manifest.loc[manifest["section"] == "y0", "patient"] = "x0"
    with pytest.raises(InputError, match="on both sides") as caught:
        splits.make(manifest, "transfer")
    assert caught.value.field == "patient"


def test_a_table_of_groups_is_read_strictly(tmp_path):
    frame = pd.DataFrame({"section": ["007", "8"]})
    path = tmp_path / "groups.csv"
    for content in ("section,group\n007,x\n8,y\n",
                    '"","section","group"\n"1","007","x"\n"2","8","y"\n',
                    "section;group\n 007 ;x\n8;y\n9;y\n"):
        path.write_text(content)
        assert splits.group_of(frame, str(path)).tolist() == ["x", "y"]
    for content, said in (("section,group\n007,x\n007,y\n8,x\n", "row 3 is '007' a second time"),
                          ("section,group\n007,\n8,y\n", "group: row 2 is blank"),
                          ("section,group\n7,x\n8,y\n", "of .'007'. is not stated"),
                          ("section,group\n007,x,z\n8,y\n", "row 2: has 3 cells")):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            splits.group_of(frame, str(path))


@pytest.mark.parametrize(("column", "value", "said"), [
    ("has_image", "maybe", "has_image: is 'maybe'"), ("mpp", 0.0, "mpp: is 0.0 for section b"),
    ("mpp", np.inf, "mpp: is inf"), ("patient", " ", "patient: is empty in a row"),
    ("study", None, "study: is empty in a row")])
def test_a_manifest_that_cannot_be_true_makes_no_folds(column, value, said):
    table = pd.DataFrame({"section": ["a", "b"], "study": ["s", "t"], "patient": ["p", "q"],
                          "specimen": ["p", "q"], "has_image": [True, True], "mpp": [0.5, 0.5]})
    assert len(splits.make(table, "loso")) == 4
    table[column] = [table[column][0], value]
    with pytest.raises(InputError, match=said):
        splits.make(table, "loso")
