"""A SLURM of two nodes on one machine, for tests: loopback, no systemd, no accounting, no root.

::

    python -m tests.cluster.site start DIR      # prints what to export
    python -m tests.cluster.site stop DIR

Needs Debian's packages ``slurm-wlm`` and ``munge`` (22.05 or newer). Everything that it writes lies
in DIR, everything that it starts is ended by process numbers that stand there: the daemons', and
those of processes that have this DIR's ``SLURM_CONF`` in their environment.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

NODES = ("one", "two")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
#: Seconds after which a node that does not answer is called down.
NODE_TIMEOUT = 15


def missing() -> list[str]:
    """Programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if not _program(name)]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Site:
    """One SLURM in a folder.

    Parameters
    ----------
    folder
        Short enough for a socket's path (100 characters).
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).resolve()
        self.conf = self.folder / "slurm.conf"

    def environment(self) -> dict[str, str]:
        """What a user's shell has on such a site."""
        return os.environ | {"SLURM_CONF": str(self.conf),
                             "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def start(self) -> None:
        """Start munged, the controller and both nodes; returns when both are idle.

        Raises
        ------
        RuntimeError
            If they are not within a minute; names the logs.
        """
        shutil.rmtree(self.folder / "state", ignore_errors=True)  # ports are new, jobs are over
        for name in ("state", "munge", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        munge = self.folder / "munge"
        key = munge / "key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)
        # --force: a folder of a user's own is less guarded than /run, which does no harm here.
        self._run(_program("munged"), "--force", f"--socket={munge / 'socket'}",
                  f"--key-file={key}", f"--pid-file={munge / 'pid'}",
                  f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}")
        self._run(_program("slurmctld"), "-f", str(self.conf))
        for node in NODES:
            self.start_node(node)
        self.until(lambda: self.states() == dict.fromkeys(NODES, "idle"), 60, "both nodes idle")

    def _configure(self) -> None:
        user, host = getpass.getuser(), socket.gethostname()
        memory = psutil.virtual_memory().total // 2**20
        first, *ports = _free_ports(1 + len(NODES))
        lines = [f"""
            ClusterName=loop
            SlurmctldHost={host}(127.0.0.1)
            SlurmUser={user}
            SlurmdUser={user}
            AuthType=auth/munge
            AuthInfo=socket={self.folder}/munge/socket,cred_expire=10
            CredType=cred/munge
            SlurmctldPort={first}
            SlurmctldParameters=cloud_dns
            CommunicationParameters=NoInAddrAny
            StateSaveLocation={self.folder}/state
            SlurmdSpoolDir={self.folder}/spool.%n
            SlurmctldPidFile={self.folder}/slurmctld.pid
            SlurmdPidFile={self.folder}/slurmd.%n.pid
            SlurmctldLogFile={self.folder}/slurmctld.log
            SlurmdLogFile={self.folder}/slurmd.%n.log
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            JobAcctGatherType=jobacct_gather/none
            AccountingStorageType=accounting_storage/none
            MpiDefault=none
            SwitchType=switch/none
            SelectType=select/cons_tres
            SelectTypeParameters=CR_CPU_Memory
            SlurmdParameters=config_overrides
            ReturnToService=2
            MinJobAge=3600
            KillWait=10
            InactiveLimit=0
            SlurmdTimeout={NODE_TIMEOUT}
            GresTypes=gpu
            """]
        for node, port in zip(NODES, ports, strict=True):
            lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
                         f"CPUs=2 RealMemory={memory} Gres=gpu:2 State=UNKNOWN")
        lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE")
        text = "\n".join(line.strip() for block in lines for line in block.strip().splitlines())
        self.conf.write_text(text + "\n")
        # A card that nothing may touch: enough for SLURM to count.
        (self.folder / "gres.conf").write_text("Name=gpu Count=2 File=/dev/null,/dev/zero\n")
        # 22.05 knows no "disabled"; with linuxproc and task/none this one is loaded and not used.
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")

        # Snakemake's jobs call srun without SLURM_CONF, which their executor takes away.
        srun = self.folder / "bin" / "srun"
        srun.parent.mkdir(exist_ok=True)
        srun.write_text("#!/bin/sh\n"
                        f'SLURM_CONF="{self.conf}" exec "{_program("srun")}" "$@"\n')
        srun.chmod(0o755)

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()}")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._run(_program("slurmd"), "-N", node, "-f", str(self.conf))

    def kill_node(self, node: str) -> None:
        """Let a node die: its daemon, then its jobs' guards, then their processes, by SIGKILL."""
        os.kill(self._pid(f"slurmd.{node}.pid"), signal.SIGKILL)
        work = [process for process in self.started()
                if process.info["environ"].get("SLURMD_NODENAME") == node]
        for process in [*_guards(work), *work]:
            _end(process.pid)

    def states(self) -> dict[str, str]:
        """State of each node, as ``sinfo`` says it."""
        done = subprocess.run(["sinfo", "--noheader", "-N", "-o", "%N %T"], capture_output=True,
                              text=True, env=self.environment())
        return dict(line.split() for line in done.stdout.splitlines())

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Number of each job that is not over -> its state and comment (Snakemake's rule)."""
        done = subprocess.run(["squeue", "--noheader", "-o", "%i|%T|%k|%N"], capture_output=True,
                              text=True, env=self.environment())
        rows = (line.split("|") for line in done.stdout.splitlines())
        return {row[0]: tuple(row[1:]) for row in rows}

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition; looks twice a second."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"not within {seconds:g} s: {what}; see {self.folder}/*.log")
            time.sleep(0.5)

    def _pid(self, name: str) -> int:
        return int((self.folder / name).read_text().split()[0])

    def started(self) -> list[psutil.Process]:
        """Processes that have this site's configuration in their environment, but not callers."""
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [process for process in psutil.process_iter(["environ"])
                if process.pid not in own
                and (process.info["environ"] or {}).get("SLURM_CONF") == str(self.conf)]

    def stop(self) -> None:
        """End jobs, then daemons, then whatever is left of either."""
        left = self.started()
        left += _guards(left)
        if (self.folder / "slurmctld.pid").exists():
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                subprocess.run(["scancel", "--full", "--user", getpass.getuser()],
                               env=self.environment(), capture_output=True, timeout=30)
                self.until(lambda: not self.jobs(), 20, "no job")
        for name in (*(f"slurmd.{node}.pid" for node in NODES), "slurmctld.pid", "munge/pid"):
            if (self.folder / name).exists():
                _end(self._pid(name), signal.SIGTERM)
        _, alive = psutil.wait_procs(left, timeout=10)
        for process in [*alive, *self.started()]:
            _end(process.pid)


    def guard(self) -> None:
        """Start a process that stops this site when the caller is gone, however it went."""
        subprocess.Popen([sys.executable, "-m", "tests.cluster.site", "guard", str(self.folder),
                          str(os.getpid())], start_new_session=True, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])

    def wait_for_end_of(self, caller: int) -> None:
        """Stop when a process ends; nothing is left to do where the site was stopped before."""
        controller = self._pid("slurmctld.pid")
        while _is_alive(caller) and _is_alive(controller):
            time.sleep(1)
        if _is_alive(controller):
            self.stop()


def _guards(work: list[psutil.Process]) -> set[psutil.Process]:
    """The slurmstepd above each process; it overwrites its own environment with its title."""
    found = set()
    for process in work:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {parent for parent in process.parents() if parent.name() == "slurmstepd"}
    return found


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _end(pid: int, how: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def _free_ports(n: int) -> list[int]:
    held = [socket.socket() for _ in range(n)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def main(arguments: list[str]) -> int:
    """``start DIR`` or ``stop DIR``; ``guard DIR PID`` is for tests."""
    if len(arguments) < 2 or arguments[0] not in ("start", "stop", "guard"):
        print(__doc__, file=sys.stderr)
        return 2
    if missing():
        print(f"this machine has no {', '.join(missing())}: apt-get install slurm-wlm munge",
              file=sys.stderr)
        return 2
    site = Site(Path(arguments[1]))
    if arguments[0] == "stop":
        site.stop()
        return 0
    if arguments[0] == "guard":
        site.wait_for_end_of(int(arguments[2]))
        return 0
    try:
        site.start()
    except BaseException:
        site.stop()
        raise
    print(f"export SLURM_CONF={site.conf} PATH={site.folder / 'bin'}:$PATH")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
