"""Pretraining by torchrun, as params/README.md says: however it is spread, one run's numbers."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from mvhlib.dino.config import Config
from mvhlib.dino.pretrain import pretrain
from mvhlib.places import home
from mvhlib.training import read_log
from tests.test_dino_pretrain import (
    SMALL,
    final_state,
    largest_difference,
    write_sections,
)

pytestmark = pytest.mark.slow
TORCHRUN = Path(sys.executable).parent / "torchrun"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process: its settings, with everything in float64."""
    tiles = write_sections(tmp_path_factory.mktemp("tiles"))
    config = Config(**SMALL | {
        "tiles": str(tiles), "folder": str(tmp_path_factory.mktemp("alone")), "steps": 40,
        "save_every": 4, "keep": 2, "precision": "float64"})
    pretrain(config)
    return config


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_machine(_):
    return ["--standalone", "--nproc-per-node", "2"]


def two_nodes(at):
    """One process each, which find each other by c10d; the address because of loopback."""
    return ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "t",
            "--rdzv-endpoint", f"127.0.0.1:{at}", "--local-addr", "127.0.0.1"]


class Launched:
    """torchrun, once for each node, in a folder's log files."""

    def __init__(self, config, words=one_machine, more=()):
        folder = config.path
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder.parent / "settings.yaml"
        settings.write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
        words = words(port())
        command = [str(TORCHRUN), *words, *more, "-m", "mvhlib.dino.pretrain", str(settings)]
        self.logs = [folder.parent / f"node{node}.txt" for node in range(1 + ("2" == words[1]))]
        self.nodes = []
        for log in self.logs:
            with open(log, "w", encoding="utf-8") as stream:
                self.nodes.append(subprocess.Popen(
                    command, cwd=home(), stdout=stream, stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"}))
        self.config = config

    def wait(self):
        try:
            return [node.wait(timeout=300) for node in self.nodes]
        finally:
            for node in self.nodes:
                node.kill()

    def after(self, rows):
        """Wait for a number of logged steps."""
        log, end = self.config.path / "log.csv", time.monotonic() + 200
        while not log.exists() or log.read_bytes().count(b"\n") <= rows:
            assert time.monotonic() < end and self.nodes[0].poll() is None, self.said()
            time.sleep(0.01)

    def workers(self):
        return [child for node in self.nodes
                for child in psutil.Process(node.pid).children(recursive=True)
                if "mvhlib.dino.pretrain" in child.cmdline() and "-u" in child.cmdline()]

    def said(self):
        return "\n".join(log.read_text(encoding="utf-8")[-2000:] for log in self.logs)


def assert_same(config, reference):
    assert largest_difference(final_state(config.path), final_state(reference.path)) < 1e-8
    found, expected = (read_log(c.path / "log.csv") for c in (config, reference))
    assert found["step"] == expected["step"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-8)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("words", [one_machine, two_nodes])
def test_two_processes_end_where_one_does(alone, tmp_path, words, parallel):
    config = replace(alone, folder=str(tmp_path / "run"), parallel=parallel, steps=40)
    launched = Launched(config, words)
    assert set(launched.wait()) == {0}, launched.said()
    assert_same(config, alone)


def test_a_killed_rank_ends_both_nodes_and_the_same_command_goes_on(alone, tmp_path):
    config = replace(alone, folder=str(tmp_path / "run"))
    launched = Launched(config, two_nodes)
    launched.after(9)
    launched.workers()[-1].kill()
    began = time.monotonic()
    assert 0 not in launched.wait(), launched.said()
    assert time.monotonic() - began < 120
    kept = sorted(path.name for path in (config.path / "state").iterdir())
    assert kept and kept[-1] < "step_00000040.pt"
    assert not (config.path / "recipe.json").exists()
    launched = Launched(config, two_nodes)
    assert launched.wait() == [0, 0], launched.said()
    assert_same(config, alone)


def test_a_killed_rank_is_started_again_where_torchrun_may(alone, tmp_path):
    config = replace(alone, folder=str(tmp_path / "run"))
    launched = Launched(config, more=["--max-restarts", "1"])
    launched.after(9)
    launched.workers()[0].kill()
    assert launched.wait() == [0], launched.said()
    assert_same(config, alone)


def test_a_signal_to_all_processes_at_once_saves(alone, tmp_path):
    """As ``scancel`` sends it: to torchrun, and to workers whom torchrun tells it again."""
    config = replace(alone, folder=str(tmp_path / "run"), save_every=1000)
    launched = Launched(config)
    launched.after(9)
    for process in [*launched.workers(), launched.nodes[0]]:
        process.send_signal(signal.SIGTERM)
    assert 0 not in launched.wait(), launched.said()
    assert len(list((config.path / "state").iterdir())) == 1, launched.said()
    config = replace(config, save_every=alone.save_every)
    launched = Launched(config)
    assert launched.wait() == [0], launched.said()
    assert_same(config, alone)
