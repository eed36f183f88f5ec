"""A Slurm of four nodes on one machine, each with a stand-in GPU; gone when it is closed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil

from tests import waiting

#: A look starts one of Slurm's commands or reads all processes: without a pause that takes a core.
wait_until = partial(waiting.wait_until, pause_s=0.5)
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
NODES = ("node1", "node2", "node3", "node4")
#: What the controller runs and a node offers; the machine itself may have less. Finished jobs are
#: remembered for as long as a test may take. Jobs of a lost node start elsewhere once their
#: credentials have expired, which takes two minutes by default.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=500000,batch_sched_delay=0
GresTypes=gpu
ReturnToService=2
KillWait=2
SlurmdTimeout=20
MinJobAge=3600
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=64000 "
    "Gres=gpu:1\n"
)


def missing() -> str | None:
    """Why there can be no Slurm here."""
    if os.geteuid():
        return "starting a private Slurm needs root"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    if not find_spec("snakemake_executor_plugin_slurm"):
        return "no snakemake-executor-plugin-slurm: pip install -r requirements.lock"
    return None


class Cluster:
    """A running Slurm; `environment` is what its commands and Snakemake need to find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
        self.environment = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}
        self._slurmd: dict[str, subprocess.Popen[bytes]] = {}

    def ask(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=check
        )
        return done.stdout.strip()

    def jobs(self, *states: str) -> dict[str, str]:
        """Jobs in the queue: their comment, which names rule or group, by number."""
        chosen = ",".join(states or ("PENDING", "RUNNING"))
        lines = self.ask("squeue", "--noheader", "-o", "%i %k", "--states", chosen).splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def about(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, such as NumCPUs, TimeLimit and Restarts."""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def drain(self) -> None:
        """Let running jobs end, and start no other."""
        self.ask("scontrol", "update", "nodename=ALL", "state=drain", "reason=test")

    def resume(self) -> None:
        """Have all nodes take jobs again."""
        for node in NODES:
            self.ask("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        wait_until(self.idle, self.logs)

    def idle(self) -> bool:
        """Whether every node is up and has nothing to do."""
        nodes = self.ask("sinfo", "--noheader", "-o", "%D %T", check=False)
        return nodes == f"{len(NODES)} idle"

    def clear(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        self.ask("scancel", "--partition=main", check=False)
        wait_until(lambda: not self.jobs("PENDING", "RUNNING", "COMPLETING"), self.logs)

    def start(self, node: str) -> None:
        """Start a node's daemon."""
        command = ("slurmd", "-D", "-N", node)
        folder = self._folder_of(node)
        self._slurmd[node] = _start(self.folder, node, *command, cwd=folder, **self.environment)

    def lose(self, node: str) -> None:
        """Lose a node, and say so, as an administrator does before Slurm finds it out."""
        self.kill(node)
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def kill(self, node: str) -> None:
        """End a node as a loss of power does: its daemon and all that runs on it, at once."""
        daemon = self._slurmd.pop(node)
        daemon.kill()
        daemon.wait()
        # What watches over a job would tell the controller how it ended.
        for find in (self._watching, self._working):
            while found := find(node):
                _kill(found)

    def end(self) -> None:
        """End all jobs and daemons, and their processes."""
        with contextlib.suppress(subprocess.CalledProcessError, AssertionError):
            self.clear()
        for node in list(self._slurmd):
            self.kill(node)

    def _folder_of(self, node: str) -> Path:
        return self.folder / "spool" / node

    def _watching(self, node: str) -> list[psutil.Process]:
        """Slurm's own processes on a node: they stay in its daemon's folder."""
        processes = psutil.process_iter(["cwd"])
        return [one for one in processes if one.info["cwd"] == str(self._folder_of(node))]

    def _working(self, node: str) -> list[psutil.Process]:
        """Processes of jobs on a node: they find this cluster's programs first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                around = process.environ()
                here = around.get("PATH", "").startswith(f"{self.folder}/")
                if here and around.get("SLURMD_NODENAME") == node:
                    found.append(process)
        return found

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(
            f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}"
            for log in sorted(self.folder.glob("*.log"))
        )


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start the daemons, wait for the nodes, and end them and what they started."""
    folder = Path(tempfile.mkdtemp(prefix="kvf-slurm-"))
    folder.chmod(0o755)  # munged wants its socket's folder open to all
    made = Cluster(folder)
    _configure(folder)
    daemons = [_munged(folder)]
    try:
        wait_until((folder / "munge.sock").is_socket, made.logs)
        daemons.append(_start(folder, "slurmctld", "slurmctld", "-D", **made.environment))
        for node in NODES:
            made.start(node)
        wait_until(made.idle, made.logs)
        yield made
    finally:
        made.end()
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder)


def _configure(folder: Path) -> None:
    for name in ("state", "bin", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    first, *others = _free_ports(1 + len(NODES))
    text = CONFIG.format(folder=folder, host=host, port=first)
    for node, port in zip(NODES, others, strict=True):
        text += NODE.format(node=node, host=host, port=port)
    (folder / "slurm.conf").write_text(text)
    os.mknod(folder / "gpu", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # like /dev/null
    lines = [f"NodeName={node} Name=gpu File={folder}/gpu\n" for node in NODES]
    (folder / "gres.conf").write_text("".join(lines))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    # Snakemake's plugin takes SLURM_CONF out of what it gives to srun: a real cluster has its
    # configuration where Slurm looks by itself.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)


def _munged(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"socket": "sock", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
    options.append(f"--log-file={folder}/munged.own.log")
    return _start(folder, "munged", "munged", "--force", "--foreground", *options)


def _start(
    folder: Path, name: str, *command: str, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
