"""Where a worker listens: one socket per user, job of the scheduler, checkout and device."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from kvfidelity.errors import UserError


def folder() -> Path:
    """A folder that only the user can enter, made if need be.

    Raises:
        UserError: it exists and belongs to somebody else or others may enter it.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    place = base / f"kvfidelity-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    state = place.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise UserError(
            f"{place} can be entered by others: remove it, or set XDG_RUNTIME_DIR to a folder of "
            "your own"
        )
    return place


def socket_path() -> Path:
    """The worker's socket: short, for a Unix socket's path holds about 100 characters."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    job = os.environ.get("SLURM_JOB_ID", "local")
    key = "\0".join((str(Path.cwd()), job, devices))
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.sock"
