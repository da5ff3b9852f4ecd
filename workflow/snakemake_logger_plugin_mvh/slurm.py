"""What SLURM says of a job that did not end well: its state and its node, in one phrase."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: What a state of SLURM's means to the person who waits for the job.
MEANINGS = {"CANCELLED": "was cancelled", "NODE_FAIL": "lost its node",
            "OUT_OF_MEMORY": "needed more memory than it had asked for",
            "TIMEOUT": "needed more time than it had asked for",
            "PREEMPTED": "had to make room", "BOOT_FAIL": "had a node that did not start"}


def why(message: str, logs: Iterable[str]) -> str:
    """Why a job failed, where SLURM knows more than the notebook does; else empty.

    Parameters
    ----------
    message
        The executor's.
    logs
        Its logs; SLURM's is called by the job's number.
    """
    if refused := re.search(r"sbatch failed.*?The error message was '(.*?)'\.?\s*(sbatch call|$)",
                            message or "", re.S):
        return "sbatch refused it: " + " ".join(refused[1].replace("sbatch: ", "").split())
    numbers = [Path(log).stem for log in logs if log and re.fullmatch(r"\d+\.log", Path(log).name)]
    if not numbers:
        return ""
    shown = _shown(numbers[-1])
    state = shown.get("JobState") or next(iter(re.findall(r"status is:\s*'(\w+)'", message or "")),
                                          "")
    if state not in MEANINGS:
        return ""
    node = shown.get("NodeList") or shown.get("BatchHost", "")
    where = f" ({node})" if node not in ("", "(null)") else ""
    return f"SLURM job {numbers[-1]} {MEANINGS[state]}{where}"


def _shown(number: str) -> dict[str, str]:
    """Fields of ``scontrol show job``; empty where it is not there or forgot the job."""
    try:
        done = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True,
                              timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(re.findall(r"(\w+)=(\S*)", done.stdout))
