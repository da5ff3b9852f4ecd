"""The workflow on a real SLURM: two nodes on this machine, started and stopped by `site`.

``MVH_CLUSTER_PROFILE=test`` lets the whole of profile ``test`` run on it, a quarter of an hour; the
default takes four of its notebooks.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import yaml

from mvhlib.dino.pretrain import pretrain
from mvhlib.places import home
from tests.cluster import site as sites
from tests.cluster.test_torchrun import alone, assert_same  # noqa: F401
from tests.faults import comparable, differences

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    bool(sites.missing()), reason=f"needs {', '.join(sites.missing())}: apt-get install "
                                  "slurm-wlm munge")]
PROFILE = os.environ.get("MVH_CLUSTER_PROFILE", "small")
OWN = home() / "tests/cluster/params"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A running SLURM; it ends with the tests whatever they do."""
    site = sites.Site(tmp_path_factory.mktemp("s"))
    try:
        site.start()
        site.guard()
        yield site
    finally:
        site.stop()


def site_file(folder, **changes):
    """The example of the repository, with other values."""
    values = yaml.safe_load((home() / "workflow/profiles/slurm/site.yaml").read_text())
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def figures(out, profile, environment, **given):
    """Start what ``make figures`` starts."""
    params = "" if (home() / "params" / profile).is_dir() else str(OWN)
    given = {"PROFILE": profile, "PARAMS": params, "OUT": str(out), "SEED": "0",
             "OMP_NUM_THREADS": "1", "PYTHONPATH": str(home()), **given}
    return subprocess.Popen([sys.executable, "-m", "mvhlib.commands", "figures"], cwd=home(),
                            env=environment | given, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def finished(process):
    said, _ = process.communicate(timeout=5400)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Profile -> files of a run of this machine alone, by names below OUT."""
    made = {}

    def run(profile):
        if profile not in made:
            out = tmp_path_factory.mktemp("local") / "out"
            finished(figures(out, profile, os.environ, JOBS="2"))
            made[profile] = comparable(out)
        return made[profile]

    return run


def submitted(site):
    """Comment -> memory, CPUs and GPUs that SLURM was asked for, of all jobs."""
    form = "Comment:90,MinMemory:12,NumCPUs:8,tres-per-job:30"
    done = subprocess.run(["squeue", "--states=all", "--noheader", "-O", form],
                          capture_output=True, text=True, env=site.environment())
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[0]: tuple(row[1:]) for row in rows}


def test_tables_are_those_of_a_local_run(site, local, tmp_path):
    cluster = str(site_file(tmp_path))
    said = finished(figures(tmp_path / "out", PROFILE, site.environment(), CLUSTER=cluster))
    assert "FAILED" not in said and "account" not in said
    assert differences(local(PROFILE), comparable(tmp_path / "out")) == []
    asked = submitted(site)
    assert all(int(memory.removesuffix("M")) <= 16000 and int(cpus) <= 2
               for memory, cpus, _ in asked.values())
    groups = [name for name in asked if "embed" in name.split("_")]
    assert len(groups) == 1, asked  # three encoders, one submission
    if PROFILE == "small":
        assert asked[groups[0]][2] == "gres:gpu:1", asked


def running(site, process, rule):
    """Number and node of a rule's job, once it runs."""
    found = {}

    def there():
        assert process.poll() is None, process.stdout.read()
        found.update({number: node for number, (state, comment, node) in site.jobs().items()
                      if state == "RUNNING" and rule in comment})
        return found

    site.until(there, 600, f"job of {rule} runs")
    return next(iter(found.items()))


def test_a_cancelled_job_and_a_dead_node_are_named_and_the_same_command_goes_on(
        site, local, tmp_path):
    given = {"CLUSTER": str(site_file(tmp_path, retries=0))}
    out = tmp_path / "out"

    process = figures(out, "tiny", site.environment(), **given)
    number, _ = running(site, process, "cohort")
    subprocess.run(["scancel", number], env=site.environment(), check=True)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == 1
    assert re.search(rf"(?m)^01_cohort: SLURM job {number} was cancelled \(\w+\); see ", said), said

    process = figures(out, "tiny", site.environment(), **given)
    number, node = running(site, process, "cohort")
    site.kill_node(node)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == 1
    assert re.search(rf"(?m)^01_cohort: SLURM job {number} lost its node \({node}\); see ", said)

    site.start_node(node)
    said = finished(figures(out, "tiny", site.environment(), **given))
    assert differences(local("tiny"), comparable(out)) == [], said


def test_no_daemon_outlives_a_caller_that_was_killed(tmp_path):
    code = ("import sys, time; from pathlib import Path; from tests.cluster.site import Site; "
            "s = Site(Path(sys.argv[1])); s.start(); s.guard(); print('up', flush=True); "
            "time.sleep(600)")
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")], cwd=home(),
                              stdout=subprocess.PIPE, text=True)
    own = sites.Site(tmp_path / "s")
    try:
        assert caller.stdout.readline() == "up\n"
        assert own.started()
        caller.kill()
        own.until(lambda: not own.started(), 60, "no process")
    finally:
        caller.kill()
        own.stop()


def test_a_job_that_asks_for_too_much_is_refused_in_one_line(site, tmp_path):
    cluster = site_file(tmp_path, retries=0, resources={"mem_mb": 10**9},
                        **{"set-resources": {"cohort": {"mem_mb": 10**8}}})
    process = figures(tmp_path / "out", "tiny", site.environment(), CLUSTER=str(cluster))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert re.search(r"(?m)^01_cohort: sbatch refused it: .*[Mm]emory", said), said


def test_pretraining_over_two_nodes_is_saved_before_its_time_ends_and_goes_on(
        site, alone, tmp_path):  # noqa: F811
    """The sbatch script: the signal that comes before the end, a new place in the queue, the end.

    Two nodes with one process each end where one process does, which never stopped.
    """
    reference = replace(alone, folder=str(tmp_path / "alone"), steps=120, save_every=1000)
    pretrain(reference)
    config = replace(reference, folder=str(tmp_path / "run"))
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    script = home() / "workflow/profiles/slurm/pretrain.sbatch"
    done = subprocess.run(
        ["sbatch", "--parsable", "--nodes", "2", "--output", str(tmp_path / "pretrain.log"),
         str(script), str(settings)], cwd=home(), capture_output=True, text=True,
        env=site.environment() | {"PYTHON": sys.executable, "MASTER": "127.0.0.1",
                                  "PROCESSES": "1", "PYTHONPATH": str(home())})
    number, log = done.stdout.strip(), tmp_path / "run" / "log.csv"
    site.until(lambda: log.exists() and log.read_bytes().count(b"\n") > 10, 300, "ten steps")
    subprocess.run(["scancel", "--batch", f"--signal={signal.SIGUSR1.value}", number],
                   env=site.environment(), check=True)
    saved = tmp_path / "run" / "state"
    site.until(lambda: saved.exists() and any(saved.iterdir()), 300, "a saved step")
    assert log.read_bytes().count(b"\n") < 120
    site.until(lambda: number not in site.jobs(), 900, "the job ends")
    said = (tmp_path / "pretrain.log").read_text(encoding="utf-8")
    assert "interrupted: " in said and "pretrained mvhybrid" in said, said
    assert_same(config, reference)
