"""Workers, and jobs that load models, in processes that have PyTorch and transformers imported.

These imports are four of the five seconds of CPU time in which a tiny model's worker starts, and
the tests start some two hundred. One server for each process of the tests imports them and is
forked for each. `site/sitecustomize.py`, which Python imports when it starts, asks for it where
such a process would start. This project's code is imported by that process, from where it would be.
`multiprocessing` has a fork server too (`tests.workflow.forked` uses it), but only for processes
that its own parent starts; here others do, which know nothing of tests.

What a process would inherit otherwise (limits, a control group, signals to its group), and what the
system tells of its environment, is the server's. Tests of these have NOT_FORKED.
"""

from __future__ import annotations

import functools
import os
import socket
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
    path = Path(tempfile.mkdtemp(prefix="kvf-fork-")) / "server.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        # Here, so that who asks before the server has imported all waits for it.
        listener.bind(str(path))
        listener.listen(100)
        number = listener.fileno()
        # Its standard input is never written to. It ends when that is closed: when this process
        # ends.
        subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(path), str(number), ROOM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[number],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    return path
