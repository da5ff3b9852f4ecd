"""The mixture of prototypes against scikit-learn's, and the slide embeddings built on it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.mixture import GaussianMixture

from mvhlib.artifacts import InputError
from mvhlib.downstream import mixture as mx


def blobs(seed=0, n_bags=12, tiles=40, width=5, n_kinds=3):
    """Bags of tiles of a few kinds, in shares that differ from bag to bag."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.standard_normal((n_kinds, width))
    bags, shares = [], []
    for _ in range(n_bags):
        kind = rng.choice(n_kinds, tiles, p=rng.dirichlet(np.ones(n_kinds)))
        bags.append(centres[kind] + rng.standard_normal((tiles, width)))
        shares.append(np.bincount(kind, minlength=n_kinds) / tiles)
    return bags, np.array(shares), centres


@pytest.mark.filterwarnings("ignore:Initialization")
@pytest.mark.parametrize("n_iter", [1, 4])
def test_em_without_prior_is_scikit_learns(n_iter):
    """As tau goes to nothing the prior vanishes, and the step is maximum likelihood."""
    bags, _, centres = blobs(tiles=300)
    start = centres + 0.3
    ours = mx.map_em(bags[0], start, n_iter=n_iter, tau=1e-9, eps=1.7)
    theirs = GaussianMixture(3, covariance_type="diag", max_iter=n_iter, tol=0, reg_covar=0,
                             weights_init=np.full(3, 1 / 3), means_init=start,
                             precisions_init=np.full(start.shape, 1 / 1.7))
    with pytest.warns(match="converge"):
        theirs.fit(bags[0])
    np.testing.assert_allclose(ours.pi, theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(ours.mu, theirs.means_, rtol=1e-6)
    np.testing.assert_allclose(ours.sigma, theirs.covariances_, rtol=1e-5)


def test_responsibilities_are_scikit_learns_and_survive_distant_tiles():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((30, 4))
    pi, mu, sigma = rng.dirichlet(np.ones(3)), rng.standard_normal((3, 4)), rng.uniform(.2, 2,
                                                                                        (3, 4))
    oracle = GaussianMixture(3, covariance_type="diag")
    oracle.weights_, oracle.means_, oracle.covariances_ = pi, mu, sigma
    oracle.precisions_cholesky_ = 1 / np.sqrt(sigma)
    np.testing.assert_allclose(mx.e_step(X, pi, mu, sigma), oracle.predict_proba(X), atol=1e-12)
    far = mx.e_step(X + 1e4, pi, mu, sigma)  # every density underflows
    assert np.isfinite(far).all()
    np.testing.assert_allclose(far.sum(axis=1), 1)


def test_a_bag_of_one_tile_by_hand():
    """Two prototypes at -1 and 1, one tile at 1: everything is a sum of two terms."""
    found = mx.map_em(np.array([[1.0]]), np.array([[-1.0], [1.0]]), tau=2.0, eps=0.5)
    q = 1 / (1 + np.exp(-4.0))  # log ratio of the densities: (2^2 - 0) / (2 * 0.5)
    assert found.responsibility[0, 1] == pytest.approx(q)
    np.testing.assert_allclose(found.pi, [(3 - q) / 5, (2 + q) / 5])
    mean = (q - 1 * 2 + (1 - q) - q) / (3 - q)  # (1 - q) * 1 + 2 * (-1)
    assert found.mu[0, 0] == pytest.approx(mean)
    assert found.sigma[0, 0] == pytest.approx(((1 - q) + 2 * 1.5) / (3 - q) - mean**2)


def test_a_heavy_prior_leaves_the_prototypes_and_no_variance_is_negative():
    bags, _, centres = blobs()
    found = mx.map_em(bags[0], centres, tau=1e9, eps=0.3)
    np.testing.assert_allclose(found.mu, centres, rtol=1e-5)
    np.testing.assert_allclose(found.sigma, 0.3, rtol=1e-4)
    for tau in (1e-3, 1.0):
        assert (mx.map_em(np.repeat(bags[0][:1], 9, 0), centres, n_iter=3, tau=tau).sigma > 0).all()


def test_the_order_of_tiles_does_not_matter_and_a_bag_twice_is_the_bag_without_prior():
    bags, _, centres = blobs()
    order = np.random.default_rng(0).permutation(len(bags[0]))
    np.testing.assert_allclose(mx.map_em(bags[0], centres, 3).vector,
                               mx.map_em(bags[0][order], centres, 3).vector, rtol=1e-10)
    np.testing.assert_allclose(mx.map_em(bags[0], centres, 1, tau=1.0).vector,
                               mx.map_em(np.tile(bags[0], (2, 1)), centres, 1, tau=2.0).vector,
                               rtol=1e-10)


def test_shares_follow_the_planted_ones():
    bags, shares, _ = blobs(n_bags=40, tiles=60)
    for kind in (mx.HistogramEmbedding(3), mx.MixtureEmbedding(3, tau=0.01)):
        found = kind.fit(bags).describe(bags)[:, :3]
        order = [int(np.argmax([abs(np.corrcoef(found[:, k], shares[:, j])[0, 1])
                                for j in range(3)])) for k in range(3)]
        assert sorted(order) == [0, 1, 2]
        np.testing.assert_allclose(found, shares[:, order], atol=0.05)
        assert (np.diff(found.mean(axis=0)) < 0).all()  # the commonest stands first


def test_the_spread_of_a_class_is_in_the_mixture_and_not_in_the_mean():
    rng = np.random.default_rng(3)
    spread = rng.uniform(0.2, 1.5, 60)
    bags = [np.concatenate([s * rng.standard_normal((30, 4)), 8 + rng.standard_normal((30, 4))])
            for s in spread]
    # what sampling leaves in the means is taken out: equal means are the point
    bags = [np.concatenate([b[:30] - b[:30].mean(0), b[30:] - b[30:].mean(0) + 8]) for b in bags]
    fitted = mx.MixtureEmbedding(2).fit(bags)
    table = mx.prototype_table(fitted, bags)
    best = max(abs(np.corrcoef(table[name], spread)[0, 1]) for name in ("spread 0", "spread 1"))
    assert best > 0.9
    assert np.ptp(mx.MeanEmbedding().fit(bags).describe(bags), axis=0).max() < 1e-12


def test_blocks_weigh_the_same_on_training_slides_and_test_slides_use_their_scale():
    bags, _, _ = blobs(n_bags=20)
    fitted = mx.MixtureEmbedding(3, n_components=4).fit(bags[:15])
    values = fitted.transform(bags[:15])
    assert values.shape == (15, 3 + 2 * 3 * 4)
    for block in fitted.blocks_:
        assert values[:, block].var(axis=0).sum() == pytest.approx(1)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-12)
    both = fitted.transform(bags)
    np.testing.assert_allclose(both[:15], values)  # a slide's vector knows no other test slide
    raw = mx.MixtureEmbedding(3).fit(bags[:15])
    np.testing.assert_allclose(raw.describe(bags[:2])[1], raw.mixture(bags[1]).vector)


def test_units_of_the_features_do_not_matter_and_a_constant_feature_adds_nothing():
    bags, _, _ = blobs(n_bags=10)
    moved = [np.c_[bag * [1, 100, 1, 0.01, 1] + 7, np.full(len(bag), 3.0)] for bag in bags]
    one, two = (mx.MixtureEmbedding(3, n_components=5).fit(given).describe(given)
                for given in (bags, moved))
    np.testing.assert_allclose(np.abs(one), np.abs(two), rtol=1e-6, atol=1e-8)


def test_fits_repeat_and_bags_are_read_one_at_a_time():
    class Lazy:
        """A sequence that counts how many bags are alive at once."""

        def __init__(self, bags):
            self.bags, self.reads = bags, 0

        def __len__(self):
            return len(self.bags)

        def __getitem__(self, index):
            if index >= len(self.bags):
                raise IndexError
            self.reads += 1
            return self.bags[index]

    bags, _, _ = blobs()
    lazy = Lazy(bags)
    one = mx.MixtureEmbedding(3, seed=4, tiles_per_slide=10).fit(lazy)
    two = mx.MixtureEmbedding(3, seed=4, tiles_per_slide=10).fit(bags)
    assert lazy.reads >= 2 * len(bags)
    np.testing.assert_array_equal(one.prototypes_, two.prototypes_)
    other = mx.MixtureEmbedding(3, seed=5, tiles_per_slide=10).fit(bags)
    assert not np.array_equal(one.prototypes_, other.prototypes_)


def test_nearest_tiles_are_the_nearest_and_of_different_slides():
    bags, _, _ = blobs(n_bags=8)
    named = {f"s{index}": bag for index, bag in enumerate(bags)}
    fitted = mx.MixtureEmbedding(3).fit(bags)
    found = mx.nearest_tiles(fitted, named, n=4)
    assert found.groupby("prototype")["slide"].nunique().tolist() == [4, 4, 4]
    first = found[found["prototype"] == 1].iloc[0]
    distance = {name: fitted.distance(bag)[:, 1] for name, bag in named.items()}
    assert first["distance"] == pytest.approx(min(d.min() for d in distance.values()))
    assert distance[first["slide"]][first["tile"]] == pytest.approx(first["distance"])
    many = mx.nearest_tiles(fitted, named, n=20)  # more than slides: then any tile
    assert len(many) == 60 and not many[many["prototype"] == 0].duplicated(["slide", "tile"]).any()


def test_slides_of_a_patient_become_one_bag():
    slides = pd.DataFrame({"slide": ["a", "b", "c"], "patient": ["p", "q", "p"]})
    bags = mx.gather({name: np.full((n, 2), n) for name, n in zip("abc", (1, 2, 3), strict=True)},
                     slides)
    assert list(bags) == ["p", "q"] and bags["p"][:, 0].tolist() == [1, 3, 3, 3]


def test_bad_bags_are_named():
    bags, _, centres = blobs()
    slides = pd.DataFrame({"slide": ["a", "b"], "patient": ["p", "q"]})
    with pytest.raises(InputError, match="missing for 1 of 2 slides"):
        mx.gather({"a": bags[0]}, slides)
    with pytest.raises(InputError, match="have features but no row"):
        mx.gather({"a": bags[0], "b": bags[1], "c": bags[2]}, slides)
    with pytest.raises(InputError, match="q: bag: has shape"):
        mx.gather({"a": bags[0], "b": bags[1][:0]}, slides)
    for wrong in (bags[0][:0], bags[0][:, :3], np.full_like(bags[0], np.nan)):
        with pytest.raises(InputError, match="bag"):
            mx.map_em(wrong, centres)
        with pytest.raises(InputError):
            mx.MixtureEmbedding(3).fit([bags[1], wrong])
    with pytest.raises(InputError, match="prior"):
        mx.map_em(bags[0], centres, tau=0)
    with pytest.raises(InputError, match="prototypes"):
        mx.HistogramEmbedding(50).fit([bags[0]])
