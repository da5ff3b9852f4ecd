"""Losses against the published numbers, a float64 reference, and each other over processes."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch

from mvhlib.artifacts import InputError
from mvhlib.dino import losses
from mvhlib.dino.heads import ProjectionHead


def relative(value, reference):
    value, reference = (torch.as_tensor(x).detach().double() for x in (value, reference))
    assert value.shape == reference.shape
    return ((value - reference).norm() / reference.norm()).item()


def textbook_sinkhorn(logits, temperature, n_iterations=3):
    """The iteration as it is written in the paper, in float64."""
    plan = torch.exp(logits.double() / temperature).T  # (K, R)
    plan /= plan.sum()
    for _ in range(n_iterations):
        plan /= plan.sum(dim=1, keepdim=True) * plan.shape[0]
        plan /= plan.sum(dim=0, keepdim=True) * plan.shape[1]
    return (plan * plan.shape[1]).T


def test_sinkhorn_equals_the_textbook_and_ignores_constants():
    logits = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    expected = textbook_sinkhorn(logits, 0.06)
    targets = losses.sinkhorn(logits, 0.06)
    assert relative(targets, expected) < 1e-5
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(40))
    assert relative(losses.sinkhorn(logits + 50, 0.06), expected) < 1e-3
    assert relative(losses.sinkhorn(logits.double() + 50, 0.06), expected) < 1e-10


def test_sinkhorn_over_parts_is_that_of_the_whole():
    logits = torch.randn(30, 12, generator=torch.Generator().manual_seed(2)).double()
    whole = losses.sinkhorn(logits, 0.05)
    parts = losses.sinkhorn([logits[:7], logits[7:7], logits[7:]], 0.05)
    assert relative(torch.cat(parts), whole) < 1e-13


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_sinkhorn_survives_large_logits(scale):
    """Logits over temperature of 88 overflow float32 where no maximum is taken out."""
    logits = scale * torch.randn(20, 8, generator=torch.Generator().manual_seed(3))
    targets = losses.sinkhorn(logits, 0.04)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(20))


def test_ibot_weights_make_every_crop_count_once():
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]]).bool()
    weights = losses.token_weights(masks)
    torch.testing.assert_close(weights, torch.tensor([1 / 2] * 2 + [1 / 3] * 3 + [1.0]))
    assert weights.sum().item() == pytest.approx(3)  # masked crops
    logits = torch.randn(6, 5, requires_grad=True)
    targets = torch.full((6, 5), 0.2)
    loss = losses.ibot_loss(logits, targets, masks)
    per_token = losses.cross_entropy(logits, targets, 0.1)
    expected = (per_token[:2].mean() + per_token[2:5].mean() + per_token[5]) / 4
    torch.testing.assert_close(loss, expected)


def test_ibot_without_any_mask_is_zero_and_has_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = losses.ibot_loss(logits, torch.zeros(0, 5), torch.zeros(4, 9).bool())
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 5)


def test_koleo_groups_are_means_over_groups():
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(4))
    expected = torch.stack([losses.koleo_loss(part) for part in x.split(4)]).mean()
    torch.testing.assert_close(losses.koleo_loss(x, group=4), expected)
    assert abs(losses.koleo_loss(x) - expected) > 1e-3
    with pytest.raises(InputError, match="group"):
        losses.koleo_loss(x, group=5)


def _over_processes(rank, port, queue):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    x, logits = _rows()
    mine = x[rank * 6:(rank + 1) * 6].requires_grad_()
    loss = losses.koleo_loss(mine, group=12)
    loss.backward()
    uneven = logits[:5] if rank == 0 else logits[5:]
    queue.put((rank, loss.item(), (mine.grad / 2).numpy(),
               losses.sinkhorn(uneven, 0.05).numpy()))
    torch.distributed.destroy_process_group()


def _rows():
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(12, 6, generator=generator).double(),
            torch.randn(13, 7, generator=generator).double())


def test_two_processes_compute_what_one_does():
    """KoLeo's groups reach over processes, and Sinkhorn balances unequal numbers of rows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_over_processes, args=(rank, port, queue))
               for rank in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    x, logits = _rows()
    x.requires_grad_()
    loss = losses.koleo_loss(x)
    loss.backward()
    assert [item[1] for item in found] == pytest.approx([loss.item()] * 2, rel=1e-12)
    # Averaging over processes, as DDP does, gives the gradient of one process.
    assert relative(np.concatenate([item[2] for item in found]), x.grad) < 1e-12
    targets = np.concatenate([item[3] for item in found])
    assert relative(targets, losses.sinkhorn(logits, 0.05)) < 1e-12


def test_head_has_the_published_size_and_unit_prototypes():
    assert sum(p.numel() for p in ProjectionHead(384).parameters()) == 22_352_128
    head = ProjectionHead(16, n_prototypes=8, hidden=12, bottleneck=6)
    assert head.last_layer.weight_g.requires_grad
    x = torch.randn(5, 16)
    # With length 1 and unit input every logit is a cosine.
    assert head(x).abs().max() <= 1 + 1e-6
    first, second = (ProjectionHead(16, 8, 12, 6, seed=s).last_layer.weight_v for s in (0, 1))
    assert not torch.equal(first, second)
