"""Prototypes against gene programs: the share between groups, and its null of shifts."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LinearRegression

from mvhlib.artifacts import InputError
from mvhlib.expression.mmap import recurring

SIDE = 16
PLACES = np.stack(np.divmod(np.arange(SIDE * SIDE), SIDE), axis=1)


def smooth(rng, n=1, width=2.0):
    maps = [gaussian_filter(rng.standard_normal((SIDE, SIDE)), width, mode="wrap").ravel()
            for _ in range(n)]
    return np.stack(maps, axis=1)


def groups(values, n=6):
    return np.digitize(values, np.quantile(values, np.arange(1, n) / n))


def test_share_between_groups_is_that_of_a_regression_on_them():
    rng = np.random.default_rng(0)
    values, members = rng.standard_normal((60, 3)), rng.integers(0, 5, 60) * 7
    dummies = pd.get_dummies(members).to_numpy(float)
    expected = [LinearRegression().fit(dummies, y).score(dummies, y) for y in values.T]
    np.testing.assert_allclose(recurring.between(values, members), expected)
    assert np.isnan(recurring.between(np.ones((60, 1)), members)).all()


def test_a_program_that_prototypes_follow_is_found_and_another_smooth_one_is_not():
    rng = np.random.default_rng(1)
    hidden, other = smooth(rng), smooth(rng)
    programs = pd.DataFrame({"followed": (hidden + 0.3 * smooth(rng))[:, 0], "other": other[:, 0]})
    found = recurring.follows("s", groups(hidden[:, 0]), programs, PLACES, n_draws=99,
                              rng=rng).set_index("program")
    assert found.at["followed", "p"] == 0.01 and found.at["followed", "share"] > 0.6
    assert found.at["other", "p"] > 0.05
    assert found["share_shifted"].between(0.01, 0.4).all()


def test_p_is_level_where_nothing_is_followed():
    rng = np.random.default_rng(2)
    p = [recurring.follows("s", groups(smooth(rng)[:, 0]), pd.DataFrame(smooth(rng)), PLACES,
                           n_draws=19, rng=rng)["p"].iloc[0] for _ in range(100)]
    assert np.mean(np.array(p) <= 0.05) < 0.12 and abs(np.mean(p) - 0.51) < 0.1


def test_a_hexagonal_array_with_holes_can_be_shifted():
    rng = np.random.default_rng(3)
    row, column = np.divmod(np.arange(400), 20)
    places = np.stack([row, 2 * column + row % 2], axis=1)[rng.permutation(400)[:330]]
    programs = pd.DataFrame({"a": rng.standard_normal(330)})
    found = recurring.follows("s", rng.integers(0, 4, 330), programs, places, n_draws=19, rng=rng)
    assert found["p"].between(0.05, 1).all() and list(found) == recurring.COLUMNS


class Model:
    """Prototypes that follow the first gene."""

    def prototypes(self, X, where):
        return SimpleNamespace(assignment=groups(X[:, 0]))


def test_slides_make_one_table_and_a_sentence():
    rng = np.random.default_rng(4)
    hidden = smooth(rng)
    counts = np.exp(2 + 8 * np.hstack([hidden + 0.2 * smooth(rng) for _ in range(5)]
                                      + [smooth(rng, 3)]))
    names = [f"a{number}" for number in range(5)] + ["b1", "b2", "b3"]
    adata = anndata.AnnData(counts, layers={"counts": counts}, obsm={"spatial": PLACES * 100.0},
                            var=pd.DataFrame(index=names))
    people = {name: SimpleNamespace(adata=adata) for name in ("one", "two")}
    views = {name: SimpleNamespace(barcodes=list(adata.obs_names), features=hidden)
             for name in people}
    found = recurring.table(Model(), views, people, people, n_draws=19,
                            sets={"stroma_like": names[:5], "none": ["x"]})
    assert list(found["section"]) == ["one", "two"] and (found["p"] == 0.05).all()
    assert "follow stroma like (p below 0.1) on most of 2 slides" in recurring.said(found, 0.1)
    nothing = recurring.table(Model(), views, people, people, {"none": ["x"]})
    assert nothing.empty and recurring.said(nothing).startswith("No gene program")


def test_a_slide_that_cannot_be_shifted_is_named():
    places = np.array([[0, 0], [5, 9], [9, 2]])
    with pytest.raises(InputError, match="lone: prototypes: cannot be shifted"):
        recurring.follows("lone", np.array([0, 1, 1]), pd.DataFrame({"a": [1.0, 2, 3]}), places,
                          rng=np.random.default_rng(0))
