"""What the console says of jobs that SLURM ended: one line each, and nothing counted twice."""

import json
import logging
import os
import sys

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from mvhlib.places import home

SHOWN = """JobId=7 JobName=x
   JobState={state} Reason=None Dependency=(null)
   NodeList=node3
   BatchHost=node3"""
REFUSED = ("SLURM sbatch failed. The error message was 'sbatch: error: Memory specification can "
           "not be satisfied\nsbatch: error: Batch job submission failed'.\n    sbatch call:\n")


@pytest.fixture
def console(tmp_path, monkeypatch):
    """A handler, and a function that hands it records; ``scontrol`` shows what a file holds."""
    monkeypatch.syspath_prepend(str(home() / "workflow"))
    import snakemake_logger_plugin_mvh as plugin

    (tmp_path / "scontrol").write_text(f'#!/bin/sh\ncat "{tmp_path}/shown"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    handler = plugin.LogHandler.__new__(plugin.LogHandler)
    handler.__post_init__()

    def tell(message="", level=logging.INFO, **fields):
        record = logging.LogRecord("snakemake", level, "", 0, message, (), None)
        vars(record).update(fields)
        handler.emit(record)

    tell(event=LogEvent.RUN_INFO, stats={"total": 3, "all": 1})
    for job, name in ((1, "01_cohort"), (2, "04_embed.a")):
        tell(event=LogEvent.JOB_INFO, jobid=job, log=[f"runs/x/notebooks/{name}.ipynb"],
             rule_name="rule")
    yield tell
    sys.modules.pop("snakemake_logger_plugin_mvh", None)


@pytest.mark.parametrize(("state", "meaning"), [
    ("CANCELLED", "was cancelled"), ("NODE_FAIL", "lost its node"),
    ("TIMEOUT", "needed more time than it had asked for"),
    ("OUT_OF_MEMORY", "needed more memory than it had asked for")])
def test_an_end_by_slurm_has_its_line(console, capsys, tmp_path, state, meaning):
    (tmp_path / "shown").write_text(SHOWN.format(state=state))
    console("Error", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=1, rule_msg="SLURM-job '7' ...",
            log=["runs/x/notebooks/01_cohort.ipynb", ".snakemake/slurm_logs/rule_cohort/7.log"])
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("[1/2] 01_cohort ") and said[-2].endswith("FAILED")
    assert said[-1] == (f"01_cohort: SLURM job 7 {meaning} (node3); see "
                        ".snakemake/slurm_logs/rule_cohort/7.log")


def test_a_job_that_is_submitted_again_counts_once(console, capsys, tmp_path):
    (tmp_path / "shown").write_text(SHOWN.format(state="NODE_FAIL"))
    logs = [".snakemake/slurm_logs/group_embed/7.log"]
    console("Error", logging.ERROR, event=LogEvent.GROUP_ERROR, aux_logs=logs,
            job_error_info=[{"jobid": 1}, {"jobid": 2}])
    said = capsys.readouterr().err
    assert "01_cohort, 04_embed.a: SLURM job 7 lost its node (node3)" in said
    for job in (1, 2):
        console(event=LogEvent.JOB_INFO, jobid=job, log=["a/01.ipynb"], rule_name="rule")
        console(event=LogEvent.JOB_FINISHED, job_id=job)
    said = capsys.readouterr().err
    assert "submitted again, with more memory and time" in said and "[2/2]" in said
    console("At least one job did not complete successfully", logging.ERROR)
    assert "failed" not in capsys.readouterr().err


def test_a_notebook_that_failed_elsewhere_says_why_here(console, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown").write_text(SHOWN.format(state="FAILED"))
    error = {"output_type": "error", "ename": "InputError", "evalue": "a.csv: gene: is blank"}
    (tmp_path / "01_cohort.ipynb").write_text(json.dumps(
        {"cells": [{"id": "read", "outputs": [error]}]}))
    console("Error", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=1, rule_msg="SLURM-job '7' ...",
            log=["01_cohort.ipynb", ".snakemake/slurm_logs/rule_cohort/7.log"])
    said = capsys.readouterr().err
    assert "cell 'read' failed" in said and "a.csv: gene: is blank" in said
    console("Error", logging.ERROR, event=LogEvent.GROUP_ERROR, job_error_info=[{"jobid": 2}],
            aux_logs=["logs/8.log"])
    assert capsys.readouterr().err.endswith("FAILED\nsee logs/8.log\n")


def test_what_sbatch_refuses_has_its_words(console, capsys):
    console("Error", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=2, rule_msg=REFUSED,
            log=["runs/x/notebooks/04_embed.a.ipynb"])
    assert capsys.readouterr().err.splitlines()[-1].startswith(
        "04_embed.a: sbatch refused it: error: Memory specification can not be satisfied")


def test_guesses_and_repetitions_are_not_told(console, capsys):
    capsys.readouterr()
    console("No SLURM account given, trying to guess.", logging.WARNING)
    console("RuleException:\nCalledProcessError in file x, line 1:\nCommand", logging.ERROR)
    console("Exiting because a job execution failed. Look above for error messages", logging.ERROR)
    assert capsys.readouterr().err == ""
