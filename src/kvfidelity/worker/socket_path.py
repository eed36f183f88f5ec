"""Where a worker listens: one socket per user, cluster job, checkout and device."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from kvfidelity.errors import UserError

#: Longest path of a Unix socket in bytes.
MAX_PATH_BYTES = 107
#: Environment variable that distinguishes workers without GPUs.
WORKER_VARIABLE = "KVFIDELITY_WORKER"


def socket_path(changed: Mapping[str, str] | None = None) -> Path:
    """The worker's socket.

    Args:
        changed: environment variables that replace this process's.

    Raises:
        UserError: no folder for it; see `socket_folder`.
    """
    given = os.environ | (changed or {})
    device = given.get("CUDA_VISIBLE_DEVICES", "") + given.get(WORKER_VARIABLE, "")
    return socket_folder() / f"{workflow_digest()}-{_digest(device)}.sock"


def all_sockets() -> list[Path]:
    """The sockets of this workflow's workers on this machine, for all devices."""
    return sorted(socket_folder().glob(f"{workflow_digest()}-*.sock"))


def scheduler_job() -> str | None:
    """The id of the cluster job that this process belongs to, if any."""
    return os.environ.get("SLURM_JOB_ID")


def owner_pid() -> int | None:
    """In a Slurm job, the process that Slurm started for it; it ends when the job ends.

    A worker that outlived it would hold a GPU that Slurm has given to another job: not every
    cluster kills the processes that remain after a job.
    """
    if not scheduler_job():
        return None
    import psutil

    ancestry = [psutil.Process(), *psutil.Process().parents()]
    for child, parent in itertools.pairwise(ancestry):
        if parent.name() == "slurmstepd":
            return int(child.pid)
    return None


def socket_folder() -> Path:
    """A folder that only the user can enter; it is created if missing.

    Raises:
        UserError: it belongs to another user, others may enter it, or it cannot be created.
    """
    for base in _bases():
        path = base / f"kvfidelity-{os.getuid()}"
        if len(os.fsencode(path)) + len("/01234567-01234567.sock") > MAX_PATH_BYTES:
            continue
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            # A cluster node often inherits the variable from the login node, but not the folder.
            continue
        status = path.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or path.is_symlink():
            raise UserError(
                f"{path} is not a folder of yours alone: remove it, or set XDG_RUNTIME_DIR to a "
                "folder that only you can enter"
            )
        return path
    raise UserError(
        "no folder for the worker's socket: set XDG_RUNTIME_DIR or TMPDIR to a folder that you can "
        "write to, with a path of less than 60 characters; or run with --no-worker"
    )


def _bases() -> Iterator[Path]:
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime)
    yield Path(tempfile.gettempdir())
    yield Path("/tmp")


def workflow_digest() -> str:
    """A digest of the checkout and the cluster job."""
    return _digest(f"{Path.cwd()}\0{scheduler_job() or 'local'}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
