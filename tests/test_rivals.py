"""HisToGene and DeepPT: what each can see, and what it cannot."""

from dataclasses import replace

import numpy as np
import pytest

from mvhlib.artifacts import InputError
from mvhlib.expression.early_stopping import held_out, within
from mvhlib.expression.protocols import Sample
from mvhlib.expression.rivals import DeepPT, HisToGene
from mvhlib.expression.rivals.samples import embedding
from mvhlib.expression.scores import pearson
from mvhlib.training import FitConfig

SIDE, WIDTH = 7, 6
PLACES = np.stack(np.divmod(np.arange(SIDE * SIDE), SIDE), axis=1).astype(float) * 100


def section(number):
    """Expression that follows what the spot's own embedding shows."""
    X = np.random.default_rng(number).standard_normal((len(PLACES), WIDTH)).astype(np.float32)
    return Sample(f"s{number}", "U1", f"p{number // 2}", X, X[:, :2] + X[:, 2:4] + 3, PLACES)


def scored(estimator, n=6):
    estimator.fit([section(number) for number in range(n)], ["a", "b"], "f0", 0)
    hidden = section(n)
    guess = estimator.predict(replace(hidden, Y=np.full_like(hidden.Y, np.nan)))
    return pearson(hidden.Y, guess), guess, hidden


@pytest.mark.parametrize("make", [
    lambda **more: HisToGene(width=32, depth=1, heads=2, dropout=0.0, **more,
                             training=FitConfig(epochs=25, batch=1, lr=5e-3)),
    lambda **more: DeepPT(code=16, hidden=32, dropout=0.0, **more,
                          training=FitConfig(epochs=25, batch=32, lr=5e-3))])
def test_both_learn_what_a_spot_shows(make, tmp_path):
    r, guess, hidden = scored(make(folder=tmp_path))
    assert (r > 0.9).all() and abs(guess.mean() - hidden.Y.mean()) < 0.3
    again = scored(make(folder=tmp_path))[1]  # its state is found, and is the same
    np.testing.assert_array_equal(guess, again)


def test_only_attention_sees_the_rest_of_the_section():
    short = FitConfig(epochs=2, batch=1, lr=1e-3)
    for model, sees in ((HisToGene(width=16, depth=1, heads=2, training=short), True),
                        (DeepPT(code=8, hidden=8, training=replace(short, batch=64)), False)):
        _, guess, hidden = scored(model, 3)
        other = hidden.X.copy()
        other[1:] += 1
        moved = model.predict(replace(hidden, X=other))[0]
        assert np.allclose(moved, guess[0], atol=1e-6) != sees


def test_the_order_of_spots_does_not_matter():
    model = HisToGene(width=16, depth=1, heads=2, training=FitConfig(epochs=2, batch=1, lr=1e-3))
    hidden = scored(model, 3)[2]
    order = np.random.default_rng(0).permutation(len(PLACES))
    turned = replace(hidden, X=hidden.X[order], Y=hidden.Y[order], coords=PLACES[order])
    np.testing.assert_allclose(model.predict(turned), model.predict(hidden)[order], atol=1e-5)


def test_tokens_of_several_views_give_the_class_token_of_the_tile():
    tokens = np.random.default_rng(0).standard_normal((5, 3, 4, 6))
    np.testing.assert_array_equal(embedding(tokens, "s"), tokens[:, 0, 0].astype(np.float32))


def test_training_stops_on_whole_patients():
    rows, unit = held_out([section(number) for number in range(8)], 0.3, 0)
    held = rows.reshape(8, -1)
    assert (held == held[:, :1]).all() and unit == "patient"
    held = held[:, 0]
    assert 0 < held.sum() < 8 and (held[::2] == held[1::2]).all()
    nobody, unit = held_out([section(0)], 0.3, 0)
    assert not nobody.any() and unit == "none"


def test_errors_within_sections_do_not_see_what_a_section_is_off_by():
    rng = np.random.default_rng(0)
    left, owners = rng.standard_normal((12, 3)), np.repeat([4, 0, 2], 4)
    offsets = np.array([5.0, 0, -3, 0, 7])
    np.testing.assert_allclose(within(left + offsets[owners][:, None], owners),
                               within(left, owners), atol=1e-12)
    np.testing.assert_allclose(within(left, owners)[4:8], left[4:8] - left[4:8].mean(axis=0))


@pytest.mark.parametrize(("call", "field"), [
    (lambda: HisToGene().predict(section(0)), "model"),
    (lambda: DeepPT().predict(section(0)), "model"),
    (lambda: HisToGene().fit([replace(section(0), coords=None)], ["a", "b"], "f", 0),
     "coordinates"),
    (lambda: DeepPT().fit([replace(section(0), X=np.zeros((3, 2, 2)))], ["a", "b"], "f", 0),
     "embedding")])
def test_bad_input_is_one_error(call, field):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.field == field
