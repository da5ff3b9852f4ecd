"""What ``make figures`` prints: one line as each notebook ends, and nothing of the engine's own.

Snakemake finds this package by its name, where ``PYTHONPATH`` names the folder that it lies in
(`mvhlib.commands.figures`), and uses it with ``--logger mvh``. Its complete log stays in
``OUT/.snakemake/log``.
"""

import logging
import sys
import time
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

#: Said by the engine at the end of a run in which a job failed; each of these has had its line.
KNOWN = "At least one job did not complete successfully"


class LogHandler(LogHandlerBase):
    """Counts jobs, and prints ``[12/30] 05_expression  2.1 min  ok``."""

    #: What the engine asks of a handler: this one prints, by itself, whatever it lets through.
    writes_to_stream = has_filter = has_formatter = True
    writes_to_file = needs_rulegraph = False

    def __post_init__(self) -> None:
        self.total = self.ended = self.failed = 0
        self.started: dict[int, tuple[str, float]] = {}  # job -> name, clock [s]

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            # `all` is a job of the engine's that runs nothing.
            self.total = int(record.stats["total"]) - ("all" in record.stats)
            self._say(f"{self.total} jobs to run; a line as each ends")
        elif event == LogEvent.JOB_INFO:
            self.started[record.jobid] = (self._notebook(record), time.time())
        elif event == LogEvent.JOB_FINISHED:
            self._end(record.job_id, "ok")
        elif event == LogEvent.JOB_ERROR:
            self._end(record.jobid, "FAILED")
        elif event in (None, LogEvent.ERROR) and record.levelno >= logging.WARNING:
            self._complain(record)
        elif event is None and "Nothing to be done" in record.getMessage():
            self._say("Nothing is left to do: every table and figure is there.")

    def _notebook(self, record: logging.LogRecord) -> str:
        """Name of a job: its executed notebook's, where it has one."""
        notebooks = [Path(path).stem for path in record.log or [] if str(path).endswith(".ipynb")]
        return notebooks[0] if notebooks else record.rule_name

    def _end(self, job: int, how: str) -> None:
        name, since = self.started.pop(job, (None, 0.0))
        if name in (None, "all"):
            return
        self.ended += 1
        self.failed += how != "ok"
        width = len(str(self.total))
        self._say(f"[{self.ended:{width}d}/{self.total}] {name:<40} "
                  f"{(time.time() - since) / 60:5.1f} min  {how}")

    def _complain(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if KNOWN not in said:
            self._say(said)
        elif self.failed:
            self._say(f"{self.failed} of {self.total} jobs failed, {self.total - self.ended} wait "
                      "for them; what is done stays, and `make figures` goes on from there")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
