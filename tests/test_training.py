"""What loops share: keyed numbers, configuration, checkpoints, logs, early stopping."""

import os
import signal
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from mvhlib import training
from mvhlib.artifacts import InputError
from mvhlib.training import Checkpoints, CsvLog, EarlyStop, LoopState, read_config, read_log


@dataclass(frozen=True)
class Settings:
    steps: int = 10
    rate: float = 0.1
    name: str = "a"
    fast: bool = False
    sizes: list[float] = field(default_factory=list)
    options: dict = field(default_factory=dict)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# ---- numbers


def test_keyed_numbers_depend_on_every_part_of_the_key():
    keys = [(0, 0, 0, "noise"), (1, 0, 0, "noise"), (0, 1, 0, "noise"), (0, 0, 1, "noise"),
            (0, 0, 0, "masks")]
    drawn = [training.keyed_generator(*key).random(4).tolist() for key in keys]
    assert len({tuple(row) for row in drawn}) == len(keys)
    assert training.keyed_generator(*keys[2]).random(4).tolist() == drawn[2]


# ---- configuration


def test_a_file_and_overrides_make_a_configuration(tmp_path):
    path = write(tmp_path / "a.yaml", "steps: 3\nrate: 1e-5\nsizes: [1, 2.5]\n")
    found = read_config(Settings, path, ["steps=7", "fast=true", "options={a: 1}"])
    assert found == Settings(7, 1e-5, "a", True, [1.0, 2.5], {"a": 1})
    assert isinstance(found.rate, float) and isinstance(found.sizes[0], float)


@pytest.mark.parametrize(("text", "field_name", "hint"), [
    ("stepz: 3\n", "stepz", "did you mean 'steps'"), ("steps: many\n", "steps", "int"),
    ("steps: 1.5\n", "steps", "int"), ("steps: true\n", "steps", "int"),
    ("rate: fast\n", "rate", "float"), ("sizes: [a]\n", "sizes", "list"),
    ("fast: 1\n", "fast", "bool"), ("- a\n", "content", "name: value"),
    ("a: [\n", "content", "YAML"), ("rate: .nan\n", "rate", "float"),
    ("rate: nan\n", "rate", "float"),
    ("steps: 99999999999999999999\n", "steps", "int"), ("no: 1\n", "no", "not a setting"),
    ("steps: 007\n", "steps", "int"), ("steps: 1\nsteps: 2\n", "content", "line 2")])
def test_a_wrong_file_is_refused_by_name(tmp_path, text, field_name, hint):
    with pytest.raises(InputError) as caught:
        read_config(Settings, write(tmp_path / "a.yaml", text))
    assert caught.value.field == field_name and hint in str(caught.value)


def test_wrong_overrides_are_refused():
    with pytest.raises(InputError, match="rate"):
        read_config(Settings, None, ["ratee=1"])
    with pytest.raises(InputError, match="key=value"):
        read_config(Settings, None, ["steps"])


# ---- state


def loop(folder, n_steps, keep=2, stop_after=None):
    """A small training loop that uses every kind of part."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    rng, noise = np.random.default_rng(3), torch.Generator().manual_seed(4)
    state = LoopState(model=model, optimizer=optimizer, rng=rng, noise=noise,
                      stop=EarlyStop(5))
    checkpoints = Checkpoints(folder / "state", keep=keep, key={"n": 1})
    checkpoints.resume(state)
    log = CsvLog(folder / "log.csv", ["loss", "best"])
    log.cut(state.step)
    while state.step < n_steps and state.step != stop_after:
        x = torch.from_numpy(rng.normal(size=(4, 3))).float()
        loss = (model(x) + torch.randn(4, 2, generator=noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state.parts["stop"].update(loss.item(), state.step)
        log.add(state.step, {"loss": loss.item(), "best": state.parts["stop"].best})
        state.step += 1
        if state.step % 3 == 0:
            checkpoints.save(state)
    return model.weight.detach().clone()


def test_a_resumed_loop_ends_with_the_same_bytes(tmp_path):
    whole = loop(tmp_path / "whole", 12)
    loop(tmp_path / "halves", 12, stop_after=8)  # two steps beyond its last checkpoint
    assert torch.equal(loop(tmp_path / "halves", 12), whole)
    for name in ("log.csv",):
        assert (tmp_path / "halves" / name).read_bytes() == (
            tmp_path / "whole" / name).read_bytes()


def test_only_the_last_states_are_kept(tmp_path):
    loop(tmp_path, 12, keep=2)
    assert [p.name for p in Checkpoints(tmp_path / "state").files()] == [
        "step_00000009.pt", "step_00000012.pt"]


def test_an_interrupted_write_leaves_the_old_state(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    state = LoopState(rng=np.random.default_rng(0))
    checkpoints.save(state)

    def fail(content, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    state.step = 5
    with pytest.raises(OSError, match="space"):
        checkpoints.save(state)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000000.pt"]


def test_states_of_something_else_are_refused(tmp_path):
    state = LoopState(model=nn.Linear(3, 2))
    Checkpoints(tmp_path, key={"width": 3, "seed": 0}).save(state)
    with pytest.raises(InputError, match="width was 3, is 4") as caught:
        Checkpoints(tmp_path, key={"width": 4, "seed": 0}).resume(state)
    assert "seed" not in caught.value.problem
    with pytest.raises(InputError, match="another model"):
        Checkpoints(tmp_path, key={"width": 3, "seed": 0}).resume(
            LoopState(model=nn.Linear(5, 2)))
    with pytest.raises(InputError, match="another model"):
        Checkpoints(tmp_path, key={"width": 3, "seed": 0}).resume(
            LoopState(net=nn.Linear(3, 2)))
    path = tmp_path / "step_00000000.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="a readable state"):
        Checkpoints(tmp_path, key={"width": 3, "seed": 0}).resume(state)


def saved(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    state = LoopState(model=model, optimizer=optimizer)
    state.step = 5
    return state, Checkpoints(tmp_path).save(state)


def test_a_state_is_one_file_that_torch_reads(tmp_path):
    state, path = saved(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005.pt"]
    content = torch.load(path, weights_only=True)
    assert content["step"] == 5 and torch.equal(content["parts"]["model"]["weight"],
                                                state.parts["model"].weight)
    moved = path.rename(tmp_path / "step_00000007.pt")
    assert Checkpoints(tmp_path).read(moved)["step"] == 5


@pytest.mark.parametrize("change", [
    {"step": None}, {"step": -1}, {"step": 1.5}, {"parts": None}, {"notes": 3},
    {"parts": {"model": {}, "optimizer": None}}])
def test_an_edited_state_is_refused(tmp_path, change):
    state, path = saved(tmp_path)
    content = torch.load(path, weights_only=True) | change
    torch.save(content, path)  # nothing vouches for it
    with pytest.raises(InputError, match="step_00000005.pt: sha256: is not a readable state"):
        Checkpoints(tmp_path).resume(state)
    training.checkpoints._seal(path)  # somebody vouches for it
    with pytest.raises(InputError, match="step_00000005.pt: (step|parts|content): "):
        Checkpoints(tmp_path).resume(state)


def test_one_rotten_byte_anywhere_is_noticed(tmp_path):
    state, path = saved(tmp_path)
    whole = path.read_bytes()
    for at in [*range(0, len(whole), 997), len(whole) - 1]:
        rotten = bytearray(whole)
        rotten[at] ^= 1
        path.write_bytes(rotten)
        with pytest.raises(InputError, match="sha256"):
            Checkpoints(tmp_path).resume(state)
    for length in (0, 1, 70, 71, 72, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="a readable state"):
            Checkpoints(tmp_path).resume(state)
    path.write_bytes(whole)
    assert Checkpoints(tmp_path).resume(state)


def test_a_broken_log_is_one_line(tmp_path):
    for content in (b"step,loss\n0,abc\n", b"step\n\xff\n"):
        (tmp_path / "log.csv").write_bytes(content)
        with pytest.raises(InputError, match="log.csv: log: is not a log of numbers"):
            read_log(tmp_path / "log.csv")


def test_a_state_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    torch.save({"key": None, "step": 0, "parts": {"a": Evil()}}, tmp_path / "step_00000000.pt")
    with pytest.raises(InputError, match="a readable state"):
        Checkpoints(tmp_path).resume(LoopState(a=nn.Linear(1, 1)))
    assert not (tmp_path / "ran").exists()


# ---- logs


def test_a_log_is_cut_back_and_survives_half_a_row(tmp_path):
    log = CsvLog(tmp_path / "log.csv", ["loss"])
    log.cut(0)
    for step in range(5):
        log.add(step, {"loss": step / 3})
    with open(log.path, "a", encoding="utf-8") as stream:
        stream.write("5,0.12")  # killed while writing
    assert read_log(log.path)["step"] == [0, 1, 2, 3, 4]
    log.cut(3)
    log.add(3, {"loss": 9.0})
    assert log.path.read_text(encoding="utf-8") == (
        "step,loss\n0,0\n1,0.333333333\n2,0.666666667\n3,9\n")
    with pytest.raises(InputError, match="columns"):
        log.add(4, {"los": 1.0})


# ---- stopping


def test_early_stop_counts_checks_without_improvement():
    stop = EarlyStop(patience=2, mode="max", min_delta=0.1)
    answers = [stop.update(v, i) for i, v in enumerate([0.5, 0.55, 0.7, float("nan"), 0.75])]
    assert answers == [False, False, False, False, True]
    assert (stop.best, stop.best_step) == (0.7, 2)
    again = EarlyStop(patience=2, mode="max", min_delta=0.1)
    again.load_state_dict(stop.state_dict())
    assert again.update(0.7, 5)
    assert not EarlyStop(patience=0).update(float("inf"), 0)


def test_a_signal_is_a_wish_until_the_block_ends():
    before = signal.getsignal(signal.SIGTERM)
    with training.stop_on_signal() as stop:
        assert not stop.wanted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted() and stop.received == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_is_no_haste():
    """A scheduler signals every process of a job, and a launcher passes it on."""
    with training.stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"


def test_gradients_are_clipped_to_their_joint_norm():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert training.clip_gradients(parameters, 0).item() == pytest.approx(5)
    assert parameters[1].grad.item() == 4
    training.clip_gradients(parameters, 2.5)
    assert parameters[0].grad[0].item() == pytest.approx(1.5, rel=1e-5)


# ---- the epoch loop


def line(seed=0, n=24):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


def network(dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))


def squared(model, x, y):
    return lambda rows, epoch: {"loss": ((model(x[rows])[:, 0] - y[rows]) ** 2).mean()}


def test_fit_finds_the_line_and_logs_every_epoch():
    x, y = line()
    model = nn.Linear(3, 1)
    found = training.fit(model, squared(model, x, y), len(x),
                         training.FitConfig(epochs=200, batch=8, lr=0.1), seed=0)
    assert np.allclose(model.weight.detach().numpy(), [[1, -2, 0.5]], atol=1e-3)
    assert found.n_epochs == 200 and found.best_epoch == 200 and found.n_parameters == 4
    assert found.log[-1]["loss"] < found.log[0]["loss"] / 1000


@pytest.mark.parametrize("killed_after", [1, 4, 5])
def test_fit_goes_on_after_a_kill_to_the_same_weights(tmp_path, killed_after):
    x, y = line()
    config = training.FitConfig(epochs=7, batch=8, lr=0.05, optimizer="adamw", weight_decay=0.1,
                                clip=1.0)

    def train(folder, stop_after=None):
        model, seen = network(dropout=0.5), []

        def loss(rows, epoch):
            if epoch == stop_after:
                raise KeyboardInterrupt
            seen.append(epoch)
            return squared(model, x, y)(rows, epoch)

        def validate():
            return float(squared(model, x, y)(np.arange(24), 0)["loss"])

        result = training.fit(model, loss, 24, config, seed=1, folder=folder, validate=validate)
        return model.state_dict(), result, seen

    whole, first, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop_after=killed_after)
    resumed, second, seen = train(tmp_path / "killed")
    assert min(seen) == killed_after
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert first == second
    assert (tmp_path / "whole/log.csv").read_bytes() == (tmp_path / "killed/log.csv").read_bytes()


def test_fit_stops_early_and_puts_the_best_weights_back():
    model = nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    found = training.fit(model, lambda rows, epoch: {"loss": -model.weight.sum()}, 4,
                         training.FitConfig(epochs=50, batch=4, lr=1.0, min_lr=1.0, patience=3),
                         seed=0, validate=lambda: abs(float(model.weight.detach()) - 2.0))
    # Adam moves by lr: the weight is 1, 2, 3, 4, 5 after epochs 1 to 5.
    assert found.best_epoch == 2 and found.n_epochs == 5
    assert float(model.weight.detach()) == pytest.approx(2.0, abs=1e-4)


def test_fit_refuses_another_recipe_nan_and_nothing_to_train(tmp_path):
    x, y = line()
    config = training.FitConfig(epochs=1, batch=8)
    model = network()
    training.fit(model, squared(model, x, y), 24, config, seed=0, folder=tmp_path)
    with pytest.raises(InputError, match="another recipe"):
        training.fit(model, squared(model, x, y), 24, config, seed=9, folder=tmp_path)
    with pytest.raises(training.TrainingStopped, match="lower lr"):
        training.fit(model, squared(model, x * np.nan, y), 24, config, seed=0)
    with pytest.raises(InputError, match="no parameter"):
        training.fit(model.requires_grad_(False), squared(model, x, y), 24, config, seed=0)


def test_the_learning_rate_warms_up_and_falls_by_a_cosine():
    config = training.FitConfig(epochs=10, lr=1.0, min_lr=0.2, warmup_epochs=2)
    rates = [training.learning_rate(config, at) for at in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2])
