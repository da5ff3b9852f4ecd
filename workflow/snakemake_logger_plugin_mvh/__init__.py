"""What ``make figures`` prints: one line as each notebook ends, and nothing of the engine's own.

Snakemake finds this package by its name, where ``PYTHONPATH`` names the folder that it lies in
(`mvhlib.commands.figures`), and uses it with ``--logger mvh``. Its complete log stays in
``OUT/.snakemake/log``.
"""

import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from mvhlib.workflow import explain
from snakemake_logger_plugin_mvh import slurm

#: Said by the engine at the end of a run in which a job failed; each of these has had its line.
KNOWN = "At least one job did not complete successfully"
#: The same again, in the engine's words: the command of a job whose line has come.
REPEATED = ("RuleException:\nCalledProcessError", "Exiting because a job execution failed")
#: Said by the executor where a site has no accounts, whatever one tells it.
NO_ACCOUNT = ("No SLURM account given", "No account was given", "Unable to guess SLURM account")


class LogHandler(LogHandlerBase):
    """Counts jobs, and prints ``[12/30] 05_expression  2.1 min  ok``."""

    #: What the engine asks of a handler: this one prints, by itself, whatever it lets through.
    writes_to_stream = has_filter = has_formatter = True
    writes_to_file = needs_rulegraph = False

    def __post_init__(self) -> None:
        # Where the disk is full the engine's own log cannot be written; what failed has its line.
        logging.raiseExceptions = False
        self.total = 0
        self.done: set[int] = set()
        self.failed: set[int] = set()
        self.started: dict[int, tuple[str, float]] = {}  # job -> name, clock [s]

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            # `all` is a job of the engine's that runs nothing.
            self.total = int(record.stats["total"]) - ("all" in record.stats)
            self._say(f"{self.total} jobs to run; a line as each ends")
        elif event == LogEvent.JOB_INFO:
            self._start(record.jobid, self._notebook(record))
        elif event == LogEvent.JOB_FINISHED:
            self._end(record.job_id, self.done)
        elif event == LogEvent.JOB_ERROR:
            self._fail([record.jobid], record.rule_msg, record.log)
        elif event == LogEvent.GROUP_ERROR:
            self._fail([job["jobid"] for job in record.job_error_info], "", record.aux_logs)
        elif event in (None, LogEvent.ERROR) and record.levelno >= logging.WARNING:
            self._complain(record)
        elif event is None and "Nothing to be done" in record.getMessage():
            self._say("Nothing is left to do: every table and figure is there.")

    def _notebook(self, record: logging.LogRecord) -> str:
        """Name of a job: its executed notebook's, where it has one."""
        notebooks = [Path(path).stem for path in record.log or [] if str(path).endswith(".ipynb")]
        return notebooks[0] if notebooks else record.rule_name

    def _start(self, job: int, name: str) -> None:
        if job in self.failed:
            self.failed.remove(job)
            self._say(f"{name} is submitted again, with more memory and time")
        self.started[job] = (name, time.time())

    def _end(self, job: int, among: set[int]) -> None:
        name, since = self.started.pop(job, (None, 0.0))
        if name in (None, "all"):
            return
        among.add(job)
        width = len(str(self.total))
        how = "ok" if among is self.done else "FAILED"
        self._say(f"[{self._ended():{width}d}/{self.total}] {name:<40} "
                  f"{(time.time() - since) / 60:5.1f} min  {how}")

    def _ended(self) -> int:
        return len(self.done) + len(self.failed)

    def _fail(self, jobs: list[int], message: str | None, logs: Iterable[str]) -> None:
        """Jobs that share a submission fail together; each has its line, the reason one."""
        logs = list(logs)
        reason = slurm.why(message or "", logs)
        names = [self.started[job][0] for job in jobs if job in self.started]
        for job in jobs:
            self._end(job, self.failed)
        notebooks = [Path(log) for log in logs if str(log).endswith(".ipynb")]
        if reason:
            self._say(f"{', '.join(names)}: {reason}; see {logs[-1]}")
        elif message:  # of a job that ran elsewhere, whose words did not come here
            for log in notebooks:
                self._say(explain(log))
        elif logs and not notebooks:
            self._say(f"see {logs[-1]}")

    def _complain(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith((*NO_ACCOUNT, *REPEATED)):
            return
        if KNOWN not in said:
            self._say(said)
        elif self.failed:
            self._say(f"{len(self.failed)} of {self.total} jobs failed, "
                      f"{self.total - self._ended()} wait "
                      "for them; what is done stays, and `make figures` goes on from there")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
