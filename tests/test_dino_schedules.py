"""Schedules against the published probes and against their formulas."""

import math

import numpy as np
import pytest

from mvhlib.artifacts import InputError
from mvhlib.dino.config import read_settings
from mvhlib.dino.schedules import Schedules, cosine, teacher_weights
from mvhlib.places import home

EPOCH = 493
STEPS = 200 * EPOCH
#: epoch: learning rate, weight decay, momentum, teacher temperature, as published.
PROBES = {
    0: ("0", "0.04", "0.992", "0.0400"), 1: ("2.45e-4", "0.04002", "0.9920", "0.0407"),
    5: ("1.225e-3", "0.0406", "0.99201", "0.0433"),
    10: ("2.4495e-3", "0.0422", "0.99205", "0.0467"),
    30: ("2.383e-3", "0.0596", "0.99244", "0.06"), 50: ("2.191e-3", "0.0927", "0.99317", None),
    100: ("1.326e-3", "0.22", "0.996", None), 150: ("3.96e-4", "0.347", "0.99883", None),
    199: ("1.17e-6", "0.39998", "1.0", None)}


@pytest.fixture(scope="module")
def published():
    """The schedules of the profile `paper`, as the command line would read them."""
    settings = read_settings(home() / "params/paper/03_pretrain.yaml")
    assert (settings.steps, settings.batch) == (STEPS, 1536)
    return settings.schedules()


def half_cosine(start, end, i, n):
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * i / n))


@pytest.mark.parametrize("epoch", PROBES)
def test_probes(published, epoch):
    step, now = epoch * EPOCH, published.at(epoch * EPOCH)
    names = ("lr", "weight_decay", "momentum", "teacher_temperature")
    for name, printed in zip(names, PROBES[epoch], strict=True):
        if printed is not None:  # equal to the last digit that is printed
            mantissa, _, exponent = printed.partition("e")
            digits = len(mantissa.partition(".")[2])
            unit = 10.0 ** (int(exponent or 0) - digits)
            assert abs(now[name] - float(printed)) <= 0.51 * unit, name
    peak = 0.002 * math.sqrt(1.5)
    lr = peak * step / 4929 if step < 4930 else half_cosine(peak, 1e-6, step - 4930, STEPS - 4930)
    exact = {"lr": lr, "weight_decay": half_cosine(0.04, 0.4, step, STEPS),
             "momentum": half_cosine(0.992, 1.0, step, STEPS),
             "teacher_temperature": min(0.06, 0.04 + 0.02 * step / 14789)}
    for name, value in exact.items():
        assert now[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name


def test_peak_and_frozen_prototypes(published):
    assert published.peak_lr == pytest.approx(0.0024494897, abs=5e-11)
    last = published.tables["lr_last_layer"]
    assert (last[:493] == 0).all()
    np.testing.assert_array_equal(last[493:], published.tables["lr"][493:])
    assert last[493] > 0


def test_warmup_contains_both_ends_and_the_cosine_never_arrives():
    values = cosine(2.0, 1.0, 10, warmup=4, warmup_from=0.5)
    np.testing.assert_allclose(values[:4], [0.5, 1.0, 1.5, 2.0])
    assert values[4] == 2.0 and 1.0 < values[-1] < 1.1


def test_shape_does_not_depend_on_the_length():
    short, long = Schedules(200, 64), Schedules(20_000, 64)
    for name in ("weight_decay", "momentum"):
        np.testing.assert_allclose(short.tables[name], long.tables[name][::100], rtol=1e-12)


@pytest.mark.parametrize(("field", "value"), [
    ("warmup", 1.5), ("freeze", -0.1), ("base_lr", 0.0), ("momentum", 1.2), ("temperature", -1.0),
    ("n_steps", 0), ("weight_decay", float("nan"))])
def test_a_wrong_schedule_is_refused_by_name(field, value):
    settings = {"n_steps": 10, "batch": 8} | {field: value}
    with pytest.raises(InputError, match=field):
        Schedules(**settings)


def test_teacher_weights_are_those_of_the_running_average():
    rng = np.random.default_rng(0)
    momentum = Schedules(n_steps=50, batch=8, momentum=0.9).tables["momentum"]
    students, teacher = rng.standard_normal((51, 3)), None
    for step, student in enumerate(students):
        teacher = student if step == 0 else (
            momentum[step - 1] * teacher + (1 - momentum[step - 1]) * student)
    weights = teacher_weights(momentum)
    assert weights @ students == pytest.approx(teacher, rel=1e-12)
    assert weights.sum() == pytest.approx(1) and weights[0] == pytest.approx(momentum.prod())
    # A constant momentum leaves (1 - m) / (1 + m) of the variance of independent noise.
    constant = teacher_weights(np.full(4000, 0.95))
    assert np.square(constant).sum() == pytest.approx(0.05 / 1.95)
