"""How a DINOv2 step is put together, against a transcription in float64 by loops.

The terms alone are held by the golden tensors (`test_golden.py`); here it is who learns from whom,
how often each term counts, and at which temperature the teacher speaks.
"""

import numpy as np
import pytest
import torch

from mvhlib.dino.pretrain import Pretraining
from tests.test_dino_pretrain import settings, textures, write_section

B, K, D, N = 4, 6, 5, 7  # images, prototypes, width, tokens of a view


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step")
    write_section(folder, "a", textures(16, np.random.default_rng(0)))
    return Pretraining(settings(folder, folder / "out", batch=B, dino_weight=0.7, ibot_weight=1.3,
                                koleo_weight=0.2, koleo_group=2))


def seen_of(rng, n_local):
    """What a student says of 2 B views and n_local B crops, and where it was masked."""
    masks = rng.random((2 * B, N)) < 0.4
    masks[0] = False  # a crop without a mask counts with 0
    draw = lambda *shape: torch.from_numpy(rng.normal(size=shape))  # noqa: E731
    return {"dino": draw(2 * B, K), "dino_local": draw(n_local * B, K), "cls": draw(2 * B, D),
            "ibot": draw(int(masks.sum()), K)}, masks


def balanced(logits, temperature):
    """Sinkhorn-Knopp by the book: columns to equal mass, rows to 1, three times."""
    q = np.exp((logits - logits.max()) / temperature)
    for _ in range(3):
        q = q / q.sum(axis=0) / q.shape[1]
        q = q / q.sum(axis=1, keepdims=True) / len(q)
    return q * len(q)


def entropy(student, target, temperature):
    scaled = student / temperature
    log_p = scaled - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())
    return -(target * log_p).sum()


def nearest(x):
    """Mean of -log distance to the nearest of a group, of unit vectors."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return [-np.log(min(np.linalg.norm(a - b) for j, b in enumerate(x) if j != i))
            for i, a in enumerate(x)]


def test_the_four_terms_of_a_step(loop):
    rng, n_local, t = np.random.default_rng(3), loop.config.n_local, loop.config.student_temperature
    seen, masks = seen_of(rng, n_local)
    teacher = {"dino": balanced(rng.normal(size=(2 * B, K)), 0.5),
               "ibot": balanced(rng.normal(size=(int(masks.sum()), K)), 0.5)}
    found = loop._losses(seen, {k: torch.from_numpy(v) for k, v in teacher.items()},
                         torch.from_numpy(masks))
    view = {k: v.numpy() for k, v in seen.items()}
    n_terms = 2 + 2 * n_local
    across = sum(entropy(view["dino"][i], teacher["dino"][(i + B) % (2 * B)], t)
                 for i in range(2 * B)) / B
    local = sum(entropy(view["dino_local"][crop * B + i], teacher["dino"][half * B + i], t)
                for crop in range(n_local) for half in range(2) for i in range(B)) / B
    hidden, row = 0.0, 0
    for own in masks:
        terms = [entropy(view["ibot"][row + i], teacher["ibot"][row + i], t)
                 for i in range(own.sum())]
        row += own.sum()
        hidden += np.mean(terms) if terms else 0.0
    koleo = sum(np.mean([value for start in range(0, B, 2) for value in
                         nearest(half[start:start + 2])])
                for half in (view["cls"][:B], view["cls"][B:]))
    expected = {"dino_global": 0.7 * across / n_terms, "dino_local": 0.7 * local / n_terms,
                "ibot": 1.3 * hidden / (2 * B), "koleo": 0.2 * koleo}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-6), name


def test_targets_are_balanced_over_all_micro_batches_at_the_teachers_temperature(loop,
                                                                                 monkeypatch):
    rng = np.random.default_rng(4)
    logits = [{"dino": rng.normal(size=(2 * B, K)), "ibot": rng.normal(size=(n, K))}
              for n in (9, 5)]
    asked = []

    def teacher(views, masks, hide):
        asked.append(hide)
        return {k: torch.from_numpy(v).clone() for k, v in logits[views].items()}

    monkeypatch.setattr(loop, "run_teacher", teacher)
    found = loop._targets([{"views": i, "masks": None} for i in range(2)], 0.6)
    assert asked == [False, False]  # a teacher sees what the student must guess
    for head in ("dino", "ibot"):
        together = balanced(np.concatenate([each[head] for each in logits]), 0.6)
        np.testing.assert_allclose(np.concatenate([each[head].numpy() for each in found]), together,
                                   rtol=1e-9)


def test_a_step_asks_at_the_temperature_of_its_schedule(loop, monkeypatch):
    asked, real = [], loop._targets
    monkeypatch.setattr(loop, "_targets", lambda batches, temperature: (
        asked.append(temperature), real(batches, temperature))[1])
    loop.order = loop._order()
    images = [torch.from_numpy(textures(B, np.random.default_rng(5), 32))]
    for step in (0, 7):
        loop.step(images, step)
    assert asked == [loop.schedules.at(step)["teacher_temperature"] for step in (0, 7)]
    assert asked[0] != asked[1]


def test_a_row_of_the_log_against_numpy(loop):
    rng = np.random.default_rng(6)
    p = rng.dirichlet(np.ones(K), size=2 * B)
    p[0] = np.eye(K)[0]  # sure of one prototype: 0 log 0 counts as 0
    cls = rng.normal(size=(7, D))
    side = loop.config.global_px
    loop.last = {"cls": torch.from_numpy(cls), "views": torch.zeros(5, 3, side, side),
                 "targets": [{"dino": torch.from_numpy(part)} for part in (p[:5], p[5:])]}
    row = loop._row(7, {"loss": torch.tensor(2.5)})
    assert row["loss"] == 2.5 and row["lr"] == loop.schedules.at(7)["lr"]
    expected = np.mean([-sum(x * np.log(x) for x in one if x > 0) for one in p])
    assert row["target_entropy"] == pytest.approx(expected, rel=1e-9)
    assert row["feature_std"] == pytest.approx(cls.std(axis=0, ddof=1).mean(), rel=1e-9)
