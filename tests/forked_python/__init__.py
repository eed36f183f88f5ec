"""Workers, and jobs that load models, in processes that have PyTorch and transformers imported.

These imports are four of the five seconds of CPU time in which a tiny model's worker starts, and
the tests start some two hundred. One server for each process of the tests imports them and is
forked for each. `site/sitecustomize.py`, which Python imports when it starts, asks for it where
such a process would start. This project's code is imported by that process, from where it would be.

What a process would inherit otherwise (limits, a control group, signals to its group), and what the
system tells of its environment, is the server's. Tests of these have NOT_FORKED.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: Longer than any command line, which is written over it.
ROOM = "-" * 20_000
#: Where processes are to start as they do elsewhere.
NOT_FORKED = {"FORK_SERVER": ""}
HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """What jobs need in their environment so that they and their workers start fast."""
    return {"PYTHONPATH": str(HERE / "site"), "FORK_SERVER": str(_server())}


@functools.cache
def _server() -> Path:
    """The socket of this process's server, which ends with this process."""
    socket = Path(tempfile.mkdtemp(prefix="kvf-fork-")) / "server.sock"
    # Its standard input is never written to. It ends when that is closed: when this process ends.
    subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), str(socket), ROOM],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return socket
