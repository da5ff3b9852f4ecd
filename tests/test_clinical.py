"""Survival tables: layouts, strictness, folds by site."""

import numpy as np
import pandas as pd
import pytest

from mvhlib.artifacts import InputError
from mvhlib.cohort import clinical


def patients(n=30, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "case_id": [f"P{index:02d}" for index in range(n)],
        "slide_id": [f"P{index:02d}-1" for index in range(n)],
        "tissue_source_site": [f"S{index % 6}" for index in range(n)],
        "age_at_initial_pathologic_diagnosis": rng.integers(40, 80, n),
        "sex": np.where(rng.uniform(size=n) < 0.5, "M", "F"),
        "ajcc_pathologic_tumor_stage": rng.choice(["Stage I", "Stage IIA", "Stage IIIC",
                                                   "Stage IV", "[Not Available]"], n),
        "os_survival_days": rng.integers(30, 2000, n),
        "os_censorship": (np.arange(n) % 5 > 1).astype(int)})


def write_panther(folder, table, n_folds=3, change=None):
    for fold in range(n_folds):
        is_test = table["tissue_source_site"].str[1:].astype(int) % n_folds == fold
        for name, part in (("train", table[~is_test]), ("test", table[is_test])):
            part = part.copy() if change is None else change(fold, name, part.copy())
            path = folder / f"cohort_k={fold}" / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            part.to_csv(path, index=False)
    return folder


def test_panthers_layout_is_read_with_its_folds(tmp_path):
    table = patients()
    twice = pd.concat([table, table.iloc[:4].assign(slide_id=lambda t: t["case_id"] + "-2")])
    found = clinical.read("panther", write_panther(tmp_path, twice), "os")
    assert len(found.table) == 30 and len(found.slides) == 34
    assert found.n_events == (table["os_censorship"] == 0).sum()
    row, given = found.table.set_index("patient").loc["P07"], table.iloc[7]
    assert row["time_months"] == pytest.approx(given["os_survival_days"] / (365.25 / 12))
    assert row["male"] == (given["sex"] == "M") and row["site"] == "S1"
    assert found.folds.groupby("fold")["patient"].nunique().tolist() == [30, 30, 30]
    assert found.covariates == ("age", "male", "stage")
    known = table["ajcc_pathologic_tumor_stage"] != "[Not Available]"
    whole = found.complete()
    assert len(whole.table) == known.sum() and f"stage ({(~known).sum()})" in whole.notes[-1]
    assert set(whole.folds["patient"]) == set(whole.table["patient"]) == set(
        whole.slides["patient"])


def test_a_validation_file_trains(tmp_path):
    folder = write_panther(tmp_path, patients())
    for fold in range(3):
        part = pd.read_csv(folder / f"cohort_k={fold}" / "train.csv")
        part.iloc[:5].to_csv(folder / f"cohort_k={fold}" / "val.csv", index=False)
        part.iloc[5:].to_csv(folder / f"cohort_k={fold}" / "train.csv", index=False)
    found = clinical.read_panther(folder)
    assert (found.folds["role"] == "train").sum() == 2 * 30


def faults():
    def disagree(fold, name, part):
        if fold == 1 and name == "train":
            part.loc[part.index[0], "os_survival_days"] += 1
        return part

    def leak(fold, name, part):
        other = patients()
        return pd.concat([part, other[~other["case_id"].isin(part["case_id"])].iloc[:1]]
                         ) if (fold, name) == (0, "train") else part

    def lacking(fold, name, part):
        return part.iloc[1:] if (fold, name) == (2, "train") else part

    def site(fold, name, part):
        part["tissue_source_site"] = np.where(part["case_id"] == "P00", "S1",
                                              part["tissue_source_site"])
        return part

    def time(fold, name, part):
        part["os_survival_days"] *= part["case_id"] != "P03"
        return part

    def competing(fold, name, part):
        part["os_censorship"] = np.where(part["case_id"] == "P02", -1, part["os_censorship"])
        return part

    return {"disagrees between rows or folds": disagree, "on both sides of fold 0": leak,
            "are in one of the folds": lacking, "site: .*on both sides": site,
            "zero or negative": time, "competing risks": competing,
            "all 30 patients are censored": lambda f, n, part: part.assign(os_censorship=1)}


@pytest.mark.parametrize("message", list(faults()))
def test_what_panthers_tables_must_not_hold(tmp_path, message):
    folder = write_panther(tmp_path, patients(), change=faults()[message])
    with pytest.raises(InputError, match=message):
        clinical.read_panther(folder)


def test_times_of_zero_can_be_left_out_and_are_counted(tmp_path):
    folder = write_panther(tmp_path, patients(), change=faults()["zero or negative"])
    found = clinical.read_panther(folder, not_positive="drop")
    assert len(found.table) == 29 and "1 patients have a time of zero" in found.notes[0]
    assert "P03" not in set(found.folds["patient"])


def test_any_csv(tmp_path):
    path = tmp_path / "own.csv"
    frame = pd.DataFrame({"who": ["01", "02", "03"], "days": [365.25, 30, 100], "dead": [0, 1, 1],
                          "age": [50, 60, np.nan]})
    frame.to_csv(path, index=False)
    found = clinical.read_table(path, patient="who", time="days", event="dead", unit="days",
                                covariates=["age"])
    assert found.table["patient"].tolist() == ["01", "02", "03"]
    np.testing.assert_allclose(found.table["time_months"][0], 12)
    turned = clinical.read_table(path, patient="who", time="days", event=None, censorship="dead",
                                 unit="days")
    assert (turned.table["event"] == 1 - found.table["event"]).all()
    assert found.table["site"].tolist() == ["01", "02", "03"] and "no site" in found.notes[0]
    again = clinical.read("table", tmp_path, "os", file="own.csv", patient="who", time="days",
                          event="dead", unit="days", site="dead")
    assert again.table["site"].tolist() == ["0", "1", "1"] and not again.notes
    plain = frame.rename(columns={"who": "id", "days": "time", "dead": "event"})
    plain.to_csv(path, index=False)
    assert clinical.read_table(path).n_events == 2
    for change, message in (
            (plain.assign(id="01"), "more than once"), (plain.assign(time=[1, 0, 2]), "zero"),
            (plain.assign(event=[0, 1, 2]), "event: has values"),
            (plain.assign(event=0), "all 3 patients are censored"),
            (plain.assign(event=["alive", "dead", "perhaps"]), "'perhaps' in row 4"),
            (plain.drop(columns="event"), "lacks")):
        change.to_csv(path, index=False)
        with pytest.raises(InputError, match=message):
            clinical.read_table(path)
    with pytest.raises(InputError, match="are both given, or neither"):
        clinical.read_table(path, event="a", censorship="b")
    with pytest.raises(InputError, match="unit"):
        clinical.read_table(path, unit="weeks")


@pytest.mark.parametrize(("text", "number"), [
    ("Stage I", 1), ("Stage IIA", 2), ("UICC III", 3), ("Stadium IV", 4), ("stage_ii", 2),
    ("2A", 2), (3.5, None), ("5", None), ("T3", None), ("stage iiic", 3),
    ("IV", 4), ("Stage IVB", 4), ("0", 0),
    (3, 3), ("[Discrepancy]", None), ("[Not Available]", None), ("N/A", None), (None, None)])
def test_stages(text, number):
    found = clinical.stage_number(text)
    assert np.isnan(found) if number is None else found == number


def test_site_folds_keep_sites_and_share_out_events():
    rng = np.random.default_rng(0)
    n = 300
    table = pd.DataFrame({"patient": [f"P{i}" for i in range(n)],
                          "site": rng.choice([f"S{i}" for i in range(20)], n),
                          "time_months": rng.uniform(1, 50, n), "event": rng.integers(0, 2, n)})
    folds = clinical.site_folds(table, 5, seed=1)
    tested = folds[folds["role"] == "test"].merge(table, on="patient")
    assert len(tested) == n and tested.groupby("site")["fold"].nunique().max() == 1
    events = tested.groupby("fold")["event"].sum()
    assert events.max() - events.min() <= table.groupby("site")["event"].sum().max()
    pd.testing.assert_frame_equal(folds, clinical.site_folds(table, 5, seed=1))
    assert clinical.site_folds(table[table["site"] < "S12"], 99)["fold"].nunique() == table.loc[
        table["site"] < "S12", "site"].nunique()
    with pytest.raises(InputError, match="groups"):
        clinical.site_folds(table.assign(site="S"), 5)


def test_folds_that_cannot_be_scored_are_refused():
    table = pd.DataFrame({"patient": list("abcdef"), "site": list("112233"),
                          "time_months": range(1, 7), "event": [1, 0, 1, 0, 0, 0]})
    with pytest.raises(InputError, match="no test patient with an event"):
        clinical.site_folds(table, 3)
    folds = clinical.site_folds(table, 2)
    with pytest.raises(InputError, match="tested in more than one fold"):
        again = folds[folds["fold"] == "0"].assign(fold="2")
        clinical.check_folds(pd.concat([folds, again]), table)
    with pytest.raises(InputError, match="no outcome"):
        clinical.check_folds(folds, table.iloc[1:])


def test_the_real_tables_hold_what_is_said_of_them(shared):
    folder = shared / "data" / "tcga_coadread"
    os = clinical.read("panther", folder / "panther", "os")
    assert (len(os.table), os.n_events, os.folds["fold"].nunique()) == (566, 118, 5)
    dss = clinical.read("panther", folder / "panther", "dss")
    assert (len(dss.table), dss.n_events) == (546, 72)
    assert os.table["stage"].isna().sum() == 19
    with pytest.raises(InputError, match="time"):
        clinical.read("panther", folder / "panther", "pfi")
    assert len(clinical.read("panther", folder / "panther", "pfi",
                             not_positive="drop").table) == 564
    path = clinical.read("survpath", folder / "survpath", "os")
    assert len(path.table) == 298 and path.covariates[-1] == "t_stage"
    # the same follow-up in two repositories: 30-day months turned into ours
    both = path.table.merge(os.table, on="patient", suffixes=("_survpath", ""))
    np.testing.assert_allclose(both["time_months_survpath"], both["time_months"])
    assert (both["event_survpath"] == both["event"]).all()
    # SurvPath's "stage" is the T of TNM: stage II (N0) means T3 or T4, so it is 3 or 4 there
    second = both[both["stage"] == 2]
    assert set(second["t_stage"]) == {3.0, 4.0} and (both["stage"] != both["t_stage"]).mean() > 0.5


def slides_csv(folder, rows, header="slide,patient,time_months,event,site,age,sex,stage"):
    (folder / "slides.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


GOOD = ["a,007,10,1,X,50,male,II", "b,P2,20.5,0,Y,60,F,Stage IIIB", "c,P3,5,dead,Y,NA,mujer,4"]


def test_slides_csv_keeps_names_and_reads_whole_words(tmp_path):
    found = clinical.read_slides(slides_csv(tmp_path, GOOD)).table
    assert found["patient"].tolist() == ["007", "P2", "P3"]
    assert found["time_months"].tolist() == [10, 20.5, 5] and found["event"].tolist() == [1, 0, 1]
    assert found["male"].tolist() == [1, 0, 0] and found["stage"].tolist() == [2, 3, 4]
    np.testing.assert_array_equal(found["age"], [50, 60, np.nan])


@pytest.mark.parametrize(("row", "said"), [
    ("d,,5,1,X,50,male,1", "patient: row 5 is blank"),
    ("d,NA,5,1,X,50,male,1", "patient: row 5 is 'NA'"),
    (",P4,5,1,X,50,male,1", "slide: row 5 is blank"),
    ("d,P4,5,1,,50,male,1", "site: row 5 is blank"),
    ("a,P4,5,1,X,50,male,1", r"slide: \['a'\] belong to more than one patient"),
    ("a,007,10,1,X,50,male,II", "slide: row 5 is 'a' a second time"),
    ("d,P4,inf,1,X,50,male,1", "time_months: row 5 is 'inf' and not a number"),
    ("d,P4,-5,1,X,50,male,1", "zero or negative for 1 patients, for example .'P4'"),
    ("d,P4,soon,1,X,50,male,1", "time_months: row 5 is 'soon' and not a number"),
    ('d,P4,"5,5",1,X,50,male,1', "time_months: row 5 is '5,5' and not a number"),
    ("d,P4,5,0.9,X,50,male,1", "event: has values .*'0.9' in row 5"),
    ("d,P4,5,deadly,X,50,male,1", "event: has values .*'deadly' in row 5"),
    ("d,P4,5,1,X,500,male,1", "age: row 5 is '500' and must be 120 or less .years"),
    ("d,P4,5,1,X,old,male,1", "age: row 5 is 'old'"),
    ("d,P4,5,1,X,50,malignant,1", "sex: row 5 is 'malignant' which is not understood"),
    ("d,P4,5,1,X,50,h,1", "sex: row 5 is 'h'"),
    ("d,P4,5,1,X,50,M,1", "sex: row 5 is 'M' in a column with 'mujer'"),
    ("d,P4,5,1,X,50,male,3.5", "stage: row 5 is '3.5' and not a stage"),
    ("d,../P4,5,1,X,50,male,1", "patient, row 5: "), ("d/e,P4,5,1,X,50,male,1", "slide, row 5: "),
    ("d,P4,3650,1,X,50,male,1", "time: is 304 years for patient P4.*unit"),
    ("d,P4,5,1,X,50,male,T3", "stage: row 5 is 'T3' and not a stage"),
    ("d,007,11,1,X,50,male,II", r"time_months: disagrees .*'007'\] \(rows \[2, 5\]\)")])
def test_what_slides_csv_must_not_hold(tmp_path, row, said):
    with pytest.raises(InputError, match=said) as error:
        clinical.read_slides(slides_csv(tmp_path, [*GOOD, row]))
    assert "slides.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("unknown", ["NA", "", "N/A", "[Not Available]", "not reported", "--",
                                     "[Discrepancy]", "unknown", "#N/A"])
def test_what_nobody_knows_is_left_out_with_a_note(tmp_path, unknown):
    rows = [*GOOD, f"d,P4,5,1,X,{unknown},{unknown},{unknown}", f"e,P5,{unknown},1,X,50,male,1",
            f"f,P6,5,{unknown},X,50,male,1"]
    found = clinical.read_slides(slides_csv(tmp_path, rows))
    assert found.table["patient"].tolist() == ["007", "P2", "P3", "P4"]
    assert "2 of 6 patients have no composition" in found.notes
    assert found.table.loc[3, ["age", "male", "stage"]].isna().all()
    whole = found.complete()
    assert len(whole.table) == 2 and "2 of 4 patients are left out" in whole.notes[-1]


def test_spaces_semicolons_and_row_names_read_the_same(tmp_path):
    plain = clinical.read_slides(slides_csv(tmp_path, GOOD)).table
    spaced = [", ".join(f" {cell} " for cell in row.split(",")) for row in GOOD]
    pd.testing.assert_frame_equal(plain, clinical.read_slides(slides_csv(tmp_path, spaced)).table)
    header = "slide,patient,time_months,event,site,age,sex,stage"
    german = [row.replace(",", ";").replace(".", ",") for row in GOOD]
    slides_csv(tmp_path, german, header.replace(",", ";"))
    pd.testing.assert_frame_equal(plain, clinical.read_slides(tmp_path).table)
    quoted = [",".join(f'"{cell}"' for cell in (str(n), *row.split(",")))
              for n, row in enumerate(GOOD, 1)]
    slides_csv(tmp_path, quoted, '"",' + ",".join(f'"{name}"' for name in header.split(",")))
    pd.testing.assert_frame_equal(plain, clinical.read_slides(tmp_path).table)


def test_tcga_barcodes_are_joined_by_patient_and_contradictions_are_refused(tmp_path):
    header = "slide,patient,time_months,event"
    rows = ["TCGA-AA-0001-01Z-00-DX1,TCGA-AA-0001-01A,10,1",
            "TCGA-AA-0001-01Z-00-DX2,tcga-aa-0001,10,1", "TCGA-AA-0002-01Z-00-DX1,TCGA-AA-0002,5,0"]
    found = clinical.read_slides(slides_csv(tmp_path, rows, header))
    assert found.table["patient"].tolist() == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert len(found.slides) == 3
    slides_csv(tmp_path, [*rows, "TCGA-AA-0003-01Z-00-DX1,TCGA-AA-0004,5,0"], header)
    with pytest.raises(InputError, match="row 5 is 'TCGA-AA-0003.*another patient.*0004"):
        clinical.read_slides(tmp_path)


def test_a_second_cancer_is_not_merged(tmp_path):
    write_panther(tmp_path, patients())
    (tmp_path / "cohort_k=0").rename(tmp_path / "other_k=0")
    with pytest.raises(InputError, match="of 2 cohorts or endpoints: cohort, other"):
        clinical.read_panther(tmp_path)
    frame = pd.DataFrame({"id": list("abcd"), "time": [1, 2, 3, 4], "event": [1, 0, 1, 0],
                          "type": ["COAD", "READ", "BRCA", "BRCA"]})
    frame.to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(InputError, match="type: names 2 cancers: .'BRCA', 'COAD', 'READ'"):
        clinical.read_table(tmp_path / "own.csv")
    only = {"type": ["COAD", "READ"]}
    assert clinical.read_table(tmp_path / "own.csv", only=only).table["patient"].tolist() == [
        "a", "b"]
    with pytest.raises(InputError, match="never holds .'STAD'"):
        clinical.read_table(tmp_path / "own.csv", only={"type": "STAD"})
    frame[:2].to_csv(tmp_path / "own.csv", index=False)
    assert len(clinical.read_table(tmp_path / "own.csv").table) == 2


def test_the_tables_of_other_publishers_are_read(shared):
    """Liu 2018 and TCGA-CDR agree about the same patients' sex and stage."""
    folder = shared / "data" / "tcga_labels"
    cdr = clinical.read(
        "table", folder, "os", file="TCGA-CDR_COAD_READ_BRCA_STAD.csv",
        patient="bcr_patient_barcode", time="OS.time", event="vital_status", unit="days",
        covariates=["gender", "ajcc_pathologic_tumor_stage"], only={"type": ["COAD", "READ"]},
        not_positive="drop").table.set_index("patient")
    liu = clinical.read(
        "table", folder, "os", file="liu2018_COAD_READ.csv", patient="TCGA Participant Barcode",
        time="Days to last known alive", event="Vital status", unit="days",
        covariates=["Gender", "Pathologic Stage"], not_positive="drop").table.set_index("patient")
    both = cdr.join(liu, rsuffix="_liu", how="inner")
    assert len(cdr) > 590 and len(both) > 400
    assert (both["gender"] == both["Gender"]).all()
    known = both.dropna(subset=["ajcc_pathologic_tumor_stage", "Pathologic Stage"])
    assert (known["ajcc_pathologic_tumor_stage"] == known["Pathologic Stage"]).mean() > 0.99


def test_a_column_of_which_nothing_is_known_is_no_covariate(tmp_path):
    header = "slide,patient,time_months,event,age,sex"
    found = clinical.read_slides(slides_csv(tmp_path, ["a,P1,5,1,NA,M", "b,P2,6,0,,F"], header))
    assert found.covariates == ("male",) and len(found.complete().table) == 2
    assert "nothing is known of age, which is left out" in found.notes
    with pytest.raises(InputError, match="only: is 'COAD'"):
        clinical.read_slides(tmp_path, only="COAD")
    with pytest.raises(InputError, match="file: is 3"):
        clinical.read("table", tmp_path, "os", file=3)
