"""A real SLURM of two nodes on this machine's loopback.

It runs slurmctld, two slurmd and a separate munge, from Debian's `slurm-wlm` and `munge`. It needs
root.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest

from tests.debian import why_not
from tests.patience import limit
from tests.ports import free_port

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
WAIT_SECONDS = 600.0
"""That anything here may take on a fast, idle machine, a chain of nine jobs too."""
SILENCE_SECONDS = 30
"""After which SLURM takes a node for lost: a test that loses one says so itself (`give_up`)."""
GRACE_SECONDS = 120
"""That a preempted job has to save and to end."""
REVOKED_SECONDS = 5
"""Times of credentials are whole seconds, and a node that comes back hears a little later what it
missed."""

CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=100000,bf_interval=2
ReturnToService=2
JobRequeue=1
MinJobAge=3600
SlurmdTimeout={silence}
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{port1},{port2}] CPUs=2 RealMemory=4000
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """The daemons of a SLURM cluster, and SLURM's commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf)}
        self._came_back = 0.0

    def ask(self, *command: str) -> str:
        """Returns the output of a SLURM command."""
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=limit(60),
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def job(self, number: int | str) -> dict[str, str]:
        """`scontrol show job`, by key."""
        said = self.ask("scontrol", "show", "job", "-o", str(number))
        return dict(part.partition("=")[::2] for part in said.split(" ") if "=" in part)

    def wait(
        self, until: Callable[[], object], what: str, seconds: float = WAIT_SECONDS, job: str = ""
    ) -> None:
        """Waits until something is true; fails with the state of the cluster otherwise.

        `job` may have been requeued meanwhile, and then need not wait two minutes.
        """
        seconds = limit(seconds)
        deadline = time.monotonic() + seconds
        while not until():
            if job and self._may_start_again(job):
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            if time.monotonic() > deadline:
                jobs = self.ask("scontrol", "show", "job", "-o")
                nodes, said = self.ask("sinfo", "-N"), (self.folder / "slurmctld.log").read_text()
                pytest.fail(f"{what}: not after {seconds:.0f} s\n{jobs}\n{nodes}\n{said[-6000:]}")
            time.sleep(0.1)

    def wait_for(self, number: int | str, *states: str, seconds: float = WAIT_SECONDS) -> str:
        """Waits until a job is in one of the states, and returns which."""

        def is_there() -> bool:
            return self.job(number)["JobState"] in states

        self.wait(is_there, f"job {number} to be {' or '.join(states)}", seconds, str(number))
        return self.job(number)["JobState"]

    def said(self, job: str) -> str:
        """Returns what the controller knows of a job."""
        lines = (self.folder / "slurmctld.log").read_text().splitlines()
        return "\n".join([str(self.job(job)), *(line for line in lines if f"JobId={job}" in line)])

    @contextmanager
    def frozen(self, job: str) -> Iterator[list[int]]:
        """Stops the processes that train for a job meanwhile: signals wait for them."""
        found = [
            pid
            for pid, command in self._running(f"SLURM_JOB_ID={job}")
            if b"-mpretrain" in command and b"distributed.run" not in command
        ]
        ranks = [pid for pid in found if parent(pid) not in found]
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield ranks
        finally:
            self.thaw(ranks)

    def thaw(self, ranks: list[int]) -> None:
        """Continues stopped processes."""
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def torchrun(self, node: str) -> list[int]:
        """The torchrun of a node, and its ranks."""
        found = self._running(f"SLURMD_NODENAME={node}")
        return [
            pid
            for pid, command in found
            if b"-mpretrain" in command and not command.startswith(b"srun")
        ]

    def start_node(self, name: str) -> None:
        """Starts a slurmd."""
        (self.folder / f"spool.{name}").mkdir(exist_ok=True)
        subprocess.run(
            ["slurmd", "-f", self.conf, "-N", name],
            env=os.environ | self.environment,
            check=True,
            timeout=limit(30),
        )

    def bring_back(self, name: str) -> None:
        """Starts the slurmd of a lost node, and waits until it has heard what it missed."""
        self.start_node(name)
        self.wait(self.is_idle, "both nodes to be idle")
        self._came_back = time.time()

    def park(self, job: str) -> None:
        """Lets a job that waits after a requeue wait until it is waited for."""
        if self.job(job)["JobState"] == "PENDING":
            self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+1hour")

    def give_up(self, name: str) -> None:
        """Says that a lost node is down, which SLURM finds out by itself much later."""
        self.ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=lost")

    def lose_node(self, name: str) -> None:
        """Kills all that runs on a node: its slurmd, the steps, their ranks."""
        steps = [pid for pid, _ in self._running(f"SLURMD_NODENAME={name}")]
        for pid in [*self._daemon(f"slurmd.{name}"), *steps]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        """Starts everything, and waits until both nodes are idle."""
        port, port1, port2 = free_port(), free_port(), free_port()
        for name in ("state", "munge"):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        ports = {"port": port, "port1": port1, "port2": port2}
        bounds = {"silence": round(limit(SILENCE_SECONDS)), "grace": round(limit(GRACE_SECONDS))}
        self.conf.write_text(CONF.format(host=host, folder=self.folder, **ports, **bounds))
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        files = {"socket": "socket", "key-file": "key", "pid-file": "munged.pid"}
        files |= {"log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        subprocess.run(
            ["munged", "--force", *options],
            check=True,
            timeout=limit(30),
            stderr=subprocess.DEVNULL,
        )
        subprocess.run(["slurmctld", "-f", self.conf], check=True, timeout=limit(30))
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait(self.is_idle, "both nodes to be idle")

    def is_idle(self) -> bool:
        """Returns True if both nodes are up and idle."""
        return self.ask("sinfo", "-h", "-p", "low", "-o", "%D %t") == "2 idle"

    def stop(self) -> None:
        """Ends all jobs, then the daemons."""
        with suppress(AssertionError, subprocess.TimeoutExpired, pytest.fail.Exception):
            self.ask("scancel", "--user", "root")
            self.ask("scancel", "--signal=KILL", "--user", "root")
            self.wait(lambda: not self.ask("squeue", "-h"), "no jobs", 60)
        names = ("slurmd.n1", "slurmd.n2", "slurmctld", "munge/munged")
        for pid in [pid for name in names for pid in self._daemon(name)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _may_start_again(self, job: str) -> bool:
        """Returns True if a requeued job only waits for its start time.

        Nothing of its last start may be left.

        Its old processes must be gone, whose end SLURM would take for that of the new ones. And
        slurmd refuses credentials of the second in which it revoked the job's last ("Job credential
        revoked"): at the requeue, which SLURM writes down as the submission, or when a lost
        node comes back.
        """
        about = self.job(job)
        if about["Reason"] != "BeginTime":
            return False
        requeued = datetime.fromisoformat(about["SubmitTime"]).timestamp()
        revoked = max(requeued, self._came_back)
        return time.time() > revoked + REVOKED_SECONDS and not self._ending(job)

    def _ending(self, job: str) -> bool:
        """Returns True if processes of a job, or SLURM's processes for it, still exist.

        Another cluster on this machine has jobs of the same numbers: a slurmstepd, whose title
        covers a part of its environment, works in the folder of its cluster.
        """
        if any(self._running(f"SLURM_JOB_ID={job}")):
            return True
        title, home = f"slurmstepd: [{job}.".encode(), self.folder.resolve()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    named = (folder / "cmdline").read_bytes().startswith(title)
                    if named and (folder / "cwd").readlink().is_relative_to(home):
                        return True
        return False

    def _daemon(self, name: str) -> list[int]:
        path = self.folder / f"{name}.pid"
        return [int(path.read_text())] if path.is_file() else []

    def _running(self, *variables: str) -> Iterator[tuple[int, bytes]]:
        """Returns the processes of this cluster's jobs whose environment has the variables.

        Each has its command line, without spaces.
        """
        wanted = {f"SLURM_CONF={self.conf}".encode(), *map(str.encode, variables)}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    if wanted <= {*(folder / "environ").read_bytes().split(b"\0")}:
                        command = (folder / "cmdline").read_bytes()
                        yield int(folder.name), command.replace(b"\0", b"")


def parent(pid: int) -> int:
    """Returns the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def signalled(pid: int, number: int) -> bool:
    """Returns True if a signal is pending for a process, or has ended it.

    SLURM wakes the processes that it signals.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    masks = re.findall(r"^S[ih][gd]Pnd:\t(\w+)$", status, re.M)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster; skips, saying why, where it cannot be."""
    if os.geteuid():
        pytest.skip("SLURM needs root to be started here")
    if reason := why_not(NEEDED, "slurm-wlm", "munge"):
        pytest.skip(reason)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
